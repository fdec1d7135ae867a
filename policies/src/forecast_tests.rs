use super::*;
use crate::adaptive_caching::BlockStatistics;
use crate::calibration::Calibration;
use crate::config::Architecture;
use crate::schedule::{BlockKind, blocks};

const STEPS: usize = 12;
const FEATURES: usize = 6;
const UPDATES: [usize; 4] = [0, 3, 5, 9];

fn architecture() -> Architecture {
    Architecture {
        layers: 1,
        heads: 1,
        width: FEATURES,
        condition_layers: 0,
        causal: false,
        time_as_cond: false,
        obs_as_cond: false,
        horizon: 1,
        n_obs_steps: 1,
        n_action_steps: 1,
        pred_action_steps_only: false,
        dit: None,
    }
}

fn table() -> Schedule {
    Schedule::aligned(&architecture(), STEPS, &UPDATES).unwrap()
}

/// Output of a block at a step, smooth in the step and different for every observation and element.
fn output(observation: usize, block: usize, step: usize, f: usize) -> f64 {
    let (o, b, t, f) = (observation as f64, block as f64, step as f64 / 4.0, f as f64);
    (0.3 * o + f + b).sin() + t * (o * 1.7 + f).cos() + 0.1 * t * t * (f - o).sin()
}

fn statistics(of: impl Fn(usize, usize, usize, usize) -> f64) -> Statistics {
    let all = blocks(&architecture());
    let mut calibration = Calibration::new(all.clone(), STEPS, FEATURES).unwrap();
    for observation in 0..5 {
        let mut outputs = Vec::new();
        for step in 0..STEPS {
            for block in 0..all.len() {
                outputs.extend((0..FEATURES).map(|f| of(observation, block, step, f) as f32));
            }
        }
        calibration.add(&[observation as f32], &outputs).unwrap();
    }
    calibration.finish().unwrap()
}

fn weights(schedule: &Schedule, step: usize) -> Vec<f32> {
    match &schedule.rows()[0].1[step] {
        Cell::Reuse(weights) => weights.clone(),
        Cell::Update => panic!("step {step} is an update"),
    }
}

#[test]
fn taylor_is_the_authors_recursion() {
    // Their cache: at every update, factor[i + 1] = (factor[i] - old factor[i]) / distance; forecast: sum of
    // factor[i] x^i / i!.
    for order in [1, 2] {
        let forecast = apply(&table(), None, |_, _| Forecast::Taylor { order }).unwrap();
        let signal = |step: usize| output(1, 0, step, 2);
        let mut factors: Vec<f64> = Vec::new();
        let mut last = 0;
        for step in 0..STEPS {
            if UPDATES.contains(&step) {
                let mut fresh = vec![signal(step)];
                for i in 0..order.min(factors.len()) {
                    fresh.push((fresh[i] - factors[i]) / (step - last) as f64);
                }
                (factors, last) = (fresh, step);
                continue;
            }
            let x = (step - last) as f64;
            let expected: f64 = factors.iter().zip([1.0, x, x * x / 2.0]).map(|(f, p)| f * p).sum();
            let before: Vec<usize> = UPDATES.iter().rev().copied().filter(|&u| u < step).collect();
            let got: f64 =
                weights(&forecast, step).iter().zip(before).map(|(&w, u)| f64::from(w) * signal(u)).sum();
            assert!((got - expected).abs() <= 1e-5, "order {order}, step {step}: {got} {expected}");
        }
    }
}

#[test]
fn adams_bashforth_is_the_mean_slope_to_the_next_update() {
    let forecast = apply(&table(), None, |_, _| Forecast::AdamsBashforth).unwrap();
    assert_eq!(weights(&forecast, 1), [1.0]);
    // After 3, with 0 before it and 5 next: half of 2 / 3 more.
    assert_eq!(weights(&forecast, 4), [1.0 + 1.0 / 3.0, -1.0 / 3.0]);
    // After 5, with 3 before it and 9 next: equal for all steps, so that they stay one quiet run.
    for step in 6..9 {
        assert_eq!(weights(&forecast, step), [2.0, -1.0]);
    }
    // With equal distances it is the textbook's 3/2, -1/2.
    let even = Schedule::aligned(&architecture(), STEPS, &[0, 4, 8]).unwrap();
    assert_eq!(weights(&apply(&even, None, |_, _| Forecast::AdamsBashforth).unwrap(), 10), [1.5, -0.5]);
}

#[test]
fn fitted_weights_are_least_squares() {
    let s = statistics(output);
    let fitted = apply(&table(), Some(&s), |_, _| Forecast::Fitted { outputs: 2, ridge: 1e-9 }).unwrap();
    // The normal equations over all observations and elements, solved by hand for two unknowns.
    let (k, u0, u1) = (7, 5, 3);
    let sum = |i: usize, j: usize| -> f64 {
        let pairs = (0..5).flat_map(|o| (0..FEATURES).map(move |f| (o, f)));
        pairs.map(|(o, f)| output(o, 0, i, f) * output(o, 0, j, f)).sum()
    };
    let det = sum(u0, u0) * sum(u1, u1) - sum(u0, u1).powi(2);
    let expected = [
        (sum(u0, k) * sum(u1, u1) - sum(u1, k) * sum(u0, u1)) / det,
        (sum(u1, k) * sum(u0, u0) - sum(u0, k) * sum(u0, u1)) / det,
    ];
    for (got, expected) in weights(&fitted, k).iter().zip(expected) {
        assert!((f64::from(*got) - expected).abs() <= 1e-3, "{got} {expected}");
    }
}

#[test]
fn a_strong_ridge_is_reuse() {
    let s = statistics(output);
    let fitted = apply(&table(), Some(&s), |_, _| Forecast::Fitted { outputs: 3, ridge: 1e9 }).unwrap();
    for (got, expected) in weights(&fitted, 11).iter().zip([1.0, 0.0, 0.0]) {
        assert!((got - expected).abs() <= 1e-6, "{got}");
    }
}

#[test]
fn in_calibration_fitted_beats_every_preset_and_a_gate_never_hurts() {
    let s = statistics(output);
    let error = |forecast: Forecast| {
        let schedule = apply(&table(), Some(&s), |_, _| forecast).unwrap();
        let gate = feature_error(&gated(&schedule, &s).unwrap(), &s).unwrap();
        let own = feature_error(&schedule, &s).unwrap();
        assert!(gate <= own + 1e-12, "{}: gate {gate}, own {own}", forecast.name());
        own
    };
    let fitted = error(Forecast::Fitted { outputs: 3, ridge: 1e-9 });
    let reuse = error(Forecast::Reuse);
    assert!(reuse > 0.1, "{reuse}");
    for preset in [
        Forecast::Reuse,
        Forecast::Taylor { order: 1 },
        Forecast::Taylor { order: 2 },
        Forecast::AdamsBashforth,
    ] {
        let preset_error = error(preset);
        assert!(fitted < preset_error, "{}: {preset_error}, fitted {fitted}", preset.name());
    }
    // Outputs that a straight line forecasts badly at one step only: the gate opens there alone.
    let kink = statistics(|o, b, k, f| output(o, b, k.min(6), f));
    let line = apply(&table(), None, |_, _| Forecast::Taylor { order: 1 }).unwrap();
    let open = gated(&line, &kink).unwrap();
    assert_eq!(weights(&open, 6).len(), 2, "the line is right before the kink");
    assert_eq!(weights(&open, 8), [1.0], "and wrong behind it");
}

#[test]
fn a_line_lies_between_reuse_and_order_one() {
    let with = |forecast| apply(&table(), None, |_, _| forecast).unwrap();
    let line = |share| with(Forecast::Line { share });
    assert_eq!(line(1.0), with(Forecast::Taylor { order: 1 }));
    for step in [6, 8] {
        let (half, whole) = (weights(&line(0.5), step), weights(&line(1.0), step));
        assert!((half[0] - (1.0 + whole[0]) / 2.0).abs() < 1e-6 && half[1] == 1.0 - half[0], "{half:?}");
        assert_eq!(weights(&line(0.0), step), [1.0, 0.0]);
    }
}

#[test]
fn feature_error_is_the_plain_definition() {
    let s = statistics(output);
    let schedule = apply(&table(), None, |_, _| Forecast::Taylor { order: 1 }).unwrap();
    let (mut error, mut size) = (0.0, 0.0);
    for (b, (_, cells)) in schedule.rows().iter().enumerate() {
        for (step, cell) in cells.iter().enumerate() {
            let Cell::Reuse(weights) = cell else { continue };
            let before: Vec<usize> = UPDATES.iter().rev().copied().filter(|&u| u < step).collect();
            for (o, f) in (0..5).flat_map(|o| (0..FEATURES).map(move |f| (o, f))) {
                let value = output(o, b, step, f);
                let forecast: f64 =
                    weights.iter().zip(&before).map(|(&w, &u)| f64::from(w) * output(o, b, u, f)).sum();
                error += (value - forecast).powi(2);
                size += value * value;
            }
        }
    }
    let (got, expected) = (feature_error(&schedule, &s).unwrap(), (error / size).sqrt());
    assert!((got - expected).abs() <= 1e-5 * expected, "{got} {expected}");
}

#[test]
fn wrong_statistics_are_refused() {
    let schedule = Schedule::aligned(&architecture(), STEPS, &UPDATES).unwrap();
    let fit = |s: &Statistics| apply(&schedule, Some(s), |_, _| Forecast::Fitted { outputs: 2, ridge: 0.0 });
    let mut s = statistics(output);
    let block = Block { layer: 0, kind: BlockKind::SelfAttention };
    s.blocks[0].products[0] = f64::NAN;
    assert_eq!(fit(&s), Err(ForecastError::Singular { block, step: 1 }));
    s.blocks[0].products.clear();
    assert!(matches!(fit(&s), Err(ForecastError::Statistics { .. })));
    let s = Statistics { steps: STEPS, blocks: Vec::<BlockStatistics>::new() };
    let error = feature_error(&schedule, &s).unwrap_err().to_string();
    assert!(error.contains("layer0.self_attention") && error.contains("calibrate"), "{error}");
}
