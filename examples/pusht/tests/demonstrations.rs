//! Replays the public human demonstrations from their first states, open loop, against what was recorded.

mod shared_data;

use refrain_pusht::geometry::coverage;
use refrain_pusht::{PushT, State};

/// Largest of the differences in position (pixels) and the difference in angle (radians, shortest way round).
fn difference(a: &State, b: &State) -> (f64, f64, f64) {
    let turn = (a.angle - b.angle).rem_euclid(std::f64::consts::TAU);
    (
        (a.pusher[0] - b.pusher[0]).hypot(a.pusher[1] - b.pusher[1]),
        (a.block[0] - b.block[0]).hypot(a.block[1] - b.block[1]),
        turn.min(std::f64::consts::TAU - turn),
    )
}

#[test]
fn replayed_from_their_starts_they_end_where_they_ended() {
    let Some(demonstrations) = shared_data::demonstrations() else { return };
    let clock = std::time::Instant::now();
    let mut steps = 0;
    let mut finals = Vec::new();
    let mut pushers: f64 = 0.0;
    for demonstration in &demonstrations {
        let mut episode = PushT::from_state(demonstration.states[0]);
        for (action, recorded) in demonstration.actions.iter().zip(&demonstration.states[1..]) {
            episode.step(*action);
            steps += 1;
            pushers = pushers.max(difference(&episode.state(), recorded).0);
        }
        let last = demonstration.states.last().expect("a state");
        let (_, position, angle) = difference(&episode.state(), last);
        finals.push((position, angle, coverage(&episode.state().block_pose()), coverage(&last.block_pose())));
    }
    let per_episode = clock.elapsed().as_secs_f64() / steps as f64 * 300.0;
    finals.sort_by(|a, b| a.0.total_cmp(&b.0));
    let n = finals.len();
    println!("{n} demonstrations, {per_episode:.4} s per 300 steps, pusher off by at most {pushers:.2e} px");
    for share in [0.0, 0.5, 0.75, 0.9, 0.95, 1.0] {
        let (p, a, c, r) = finals[(((n - 1) as f64) * share) as usize];
        println!("quantile {share}: block off by {p:.4} px, {a:.5} rad, coverage {c:.4} recorded {r:.4}");
    }
}
