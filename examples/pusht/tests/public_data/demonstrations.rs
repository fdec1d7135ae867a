//! Replays the human demonstrations from their first states, open loop, against what was recorded.
//!
//! Tolerances. Recorded states are f32, so 3e-5 px is exact; where several things touch at once, the order in which they
//! are solved differs between the engines. In demonstration 50 the pusher starts deep inside the block, on the seam of
//! bar and stem, and that order decides which way the block leaves: the one replay that ends elsewhere.

use std::f64::consts::TAU;

use refrain_pusht::geometry::coverage;
use refrain_pusht::{PushT, State};

use crate::files;

/// Distance of the pushers and of the blocks (pixels), and the shortest turn between the blocks (radians).
fn difference(a: &State, b: &State) -> (f64, f64, f64) {
    let turn = (a.angle - b.angle).rem_euclid(TAU);
    (
        (a.pusher[0] - b.pusher[0]).hypot(a.pusher[1] - b.pusher[1]),
        (a.block[0] - b.block[0]).hypot(a.block[1] - b.block[1]),
        turn.min(TAU - turn),
    )
}

#[test]
fn replayed_from_their_starts_they_end_where_they_ended() {
    let Some(demonstrations) = files::demonstrations() else { return };
    assert_eq!(demonstrations.len(), 206);
    let mut ends = Vec::new();
    let mut pushers: f64 = 0.0;
    for demonstration in &demonstrations {
        let mut episode = PushT::from_state(demonstration.states[0]);
        for (action, recorded) in demonstration.actions.iter().zip(&demonstration.states[1..]) {
            episode.step(*action);
            pushers = pushers.max(difference(&episode.state(), recorded).0);
        }
        let last = demonstration.states.last().expect("a state");
        let (_, position, angle) = difference(&episode.state(), last);
        let covered = coverage(&episode.state().block_pose());
        ends.push((position, angle, (covered - coverage(&last.block_pose())).abs()));
    }
    let quantile = |share: f64, of: fn(&(f64, f64, f64)) -> f64| {
        let mut values: Vec<f64> = ends.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[((values.len() - 1) as f64 * share).round() as usize]
    };
    println!("206 demonstrations replayed: pusher off by at most {pushers:.1e} px; the block at the end:");
    for share in [0.5, 0.9, 0.97, 0.99, 1.0] {
        let (p, a, c) = (quantile(share, |e| e.0), quantile(share, |e| e.1), quantile(share, |e| e.2));
        println!("quantile {share:.2}: off by {p:.1e} px, {a:.1e} rad, coverage {c:.1e}");
    }
    assert!(pushers <= 5e-5, "pusher off by {pushers} px");
    assert!(quantile(0.9, |e| e.0) <= 1e-4 && quantile(0.9, |e| e.1) <= 1e-5);
    assert!(quantile(0.99, |e| e.0) <= 0.05 && quantile(0.99, |e| e.1) <= 5e-3);
    assert!(quantile(0.99, |e| e.2) <= 5e-3);
}
