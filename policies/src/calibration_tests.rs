use super::*;
use crate::schedule::BlockKind;

const BLOCKS: [Block; 2] =
    [Block { layer: 0, kind: BlockKind::SelfAttention }, Block { layer: 0, kind: BlockKind::FeedForward }];

fn calibration(steps: usize, features: usize) -> Calibration {
    Calibration::new(BLOCKS.to_vec(), steps, features).unwrap()
}

/// `[K, blocks, features]` without pattern, from a small linear congruential generator.
fn outputs(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

#[test]
fn similarity_of_known_vectors() {
    // Block 0 turns by 90 and 180 degrees; block 1 only grows.
    let mut c = calibration(3, 2);
    c.add(&[1.0], &[1.0, 0.0, 1.0, 1.0, 0.0, 2.0, 2.0, 2.0, -3.0, 0.0, 4.0, 4.0]).unwrap();
    let s = c.finish().unwrap();
    assert_eq!(s.steps, 3);
    assert_eq!(s.blocks[0].block, BLOCKS[0]);
    assert_eq!(s.blocks[0].similarity, [1.0, 0.0, -1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 1.0]);
    assert!(s.blocks[1].similarity.iter().all(|v| (v - 1.0).abs() <= 1e-15));
    // Pairs (0, 1), (0, 2), (1, 2): 3 + 4 + 5 over two elements; 2 + 6 + 4.
    assert_eq!(s.blocks[0].mean_l1_difference, 12.0 / 6.0);
    assert_eq!(s.blocks[1].mean_l1_difference, 12.0 / 6.0);
}

#[test]
fn statistics_are_the_plain_definition_averaged_over_observations() {
    let (steps, features) = (5, 7);
    let runs: Vec<Vec<f32>> = (1..4).map(|seed| outputs(seed, steps * 2 * features)).collect();
    let mut c = calibration(steps, features);
    for (i, run) in runs.iter().enumerate() {
        c.add(&[i as f32], run).unwrap();
    }
    assert_eq!(c.observations(), 3);
    let s = c.finish().unwrap();
    for (b, measured) in s.blocks.iter().enumerate() {
        let mut l1 = 0.0;
        for (i, j) in (0..steps).flat_map(|i| (0..steps).map(move |j| (i, j))) {
            let mut expected = 0.0;
            for run in &runs {
                let v = |k: usize, f: usize| f64::from(run[(k * 2 + b) * features + f]);
                let sum = |g: &dyn Fn(usize) -> f64| (0..features).map(g).sum::<f64>();
                let dot = sum(&|f| v(i, f) * v(j, f));
                expected += dot / (sum(&|f| v(i, f).powi(2)) * sum(&|f| v(j, f).powi(2))).sqrt() / 3.0;
                l1 += sum(&|f| (v(i, f) - v(j, f)).abs()) / features as f64 / 3.0;
            }
            let got = measured.similarity[i * steps + j];
            assert!((got - expected).abs() <= 1e-12, "{b} {i} {j}: {got} {expected}");
        }
        let expected = l1 / (steps * (steps - 1)) as f64;
        assert!((measured.mean_l1_difference - expected).abs() <= 1e-12);
    }
}

#[test]
fn tiny_and_huge_outputs_keep_their_direction() {
    for scale in [1e-30_f32, 1e30] {
        let mut c = calibration(2, 2);
        let run: Vec<f32> = [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0].iter().map(|v| v * scale).collect();
        c.add(&[0.0], &run).unwrap();
        let similarity = c.finish().unwrap().blocks[0].similarity[1];
        assert!((similarity - 0.5_f64.sqrt()).abs() <= 1e-7, "{similarity}");
    }
}

#[test]
fn too_little_or_constant_data_is_refused() {
    assert_eq!(calibration(3, 2).finish(), Err(CalibrationError::NoObservations));
    let run = outputs(1, 12);
    let mut c = calibration(3, 2);
    c.add(&[1.0, 2.0], &run).unwrap();
    assert!(c.clone().finish().is_ok(), "one observation is the paper's minimum");
    c.add(&[1.0, 2.0], &outputs(2, 12)).unwrap();
    assert_eq!(c.clone().finish(), Err(CalibrationError::ConstantObservations(2)));
    c.add(&[1.0, 2.5], &run).unwrap();
    assert!(c.finish().is_ok());

    let new =
        |blocks: &[Block], steps, features| Calibration::new(blocks.to_vec(), steps, features).unwrap_err();
    assert_eq!(new(&BLOCKS, 1, 2), CalibrationError::Steps(1));
    assert_eq!(new(&BLOCKS, 1_000_000, 2), CalibrationError::Steps(1_000_000));
    assert_eq!(new(&[], 3, 2), CalibrationError::Empty { blocks: 0, features: 2 });
    assert_eq!(new(&BLOCKS, 3, 0), CalibrationError::Empty { blocks: 2, features: 0 });
}

#[test]
fn bad_runs_are_named_and_add_nothing() {
    let run = outputs(1, 12);
    let mut c = calibration(3, 2);
    c.add(&[1.0, 2.0], &run).unwrap();
    let before = c.clone().finish();

    let mut fails = |observation: &[f32], run: &[f32]| c.add(observation, run).unwrap_err();
    assert_eq!(fails(&[1.0], &run), CalibrationError::ObservationSize { index: 1, expected: 2, got: 1 });
    let e = fails(&[1.0, f32::NAN], &run);
    assert!(e.to_string().starts_with("calibration observation 1, element 1: expected a finite"), "{e}");
    assert_eq!(
        fails(&[1.0, 3.0], &run[1..]),
        CalibrationError::OutputSize { index: 1, expected: 12, got: 11 }
    );
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut bad = run.clone();
        bad[7] = value; // step 1, block 1
        let e = fails(&[1.0, 3.0], &bad).to_string();
        assert!(e.contains("observation 1: block layer0.feed_forward") && e.contains("at step 1"), "{e}");
    }
    let mut zero = run.clone();
    zero[8..10].fill(0.0); // step 2, block 0
    assert_eq!(fails(&[1.0, 3.0], &zero), CalibrationError::ZeroNorm { index: 1, block: BLOCKS[0], step: 2 });

    assert_eq!(c.observations(), 1);
    assert_eq!(c.finish(), before);
}

#[test]
fn products_are_inner_products_averaged_over_observations() {
    let (steps, features) = (4, 5);
    let runs: Vec<Vec<f32>> = (7..9).map(|seed| outputs(seed, steps * 2 * features)).collect();
    let mut c = calibration(steps, features);
    runs.iter().enumerate().for_each(|(i, run)| c.add(&[i as f32], run).unwrap());
    for (b, measured) in c.finish().unwrap().blocks.iter().enumerate() {
        for (i, j) in (0..steps).flat_map(|i| (0..steps).map(move |j| (i, j))) {
            let row = |run: &[f32], k: usize| run[(k * 2 + b) * features..][..features].to_vec();
            let product = |run: &Vec<f32>| -> f64 {
                row(run, i).iter().zip(row(run, j)).map(|(x, y)| f64::from(*x) * f64::from(y)).sum()
            };
            let expected = runs.iter().map(product).sum::<f64>() / 2.0;
            let got = measured.products[i * steps + j];
            assert!((got - expected).abs() <= 1e-12, "{b} {i} {j}: {got} {expected}");
        }
    }
}
