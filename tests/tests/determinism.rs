//! The same input gives the same bits: again, on another engine, and on any number of threads.

use std::sync::Arc;

use refrain_policies::config::Architecture;
use refrain_policies::package::{Dtype, Package};
use refrain_policies::plan::Plan;
use refrain_policies::schedule::Schedule;
use refrain_runtime::engine::Engine;
use refrain_runtime::engine::cpu::CpuEngine;
use refrain_tests::random::{self, Random};

const STEPS: usize = 9;

/// A policy of sizes that no vector width divides.
fn package(dtype: Dtype) -> Arc<Package> {
    let architecture = Architecture {
        layers: 3,
        heads: 3,
        width: 54,
        condition_layers: 0,
        causal: true,
        time_as_cond: true,
        obs_as_cond: true,
        horizon: 19,
        n_obs_steps: 2,
        n_action_steps: 8,
        pred_action_steps_only: false,
        dit: None,
    };
    Arc::new(random::package(random::config(&architecture, 7, 3, STEPS, 5), dtype, 5))
}

fn infer(engine: &mut CpuEngine, plan: &Plan, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    let (observation, noise) = (random.normals(plan.observation.len()), random.normals(plan.noise_len()));
    let mut trajectory = vec![f32::NAN; plan.trajectory.len()];
    engine.infer(&observation, &noise, &mut trajectory).expect("an inference");
    assert!(trajectory.iter().all(|v| v.is_finite()));
    trajectory.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn the_same_input_gives_the_same_bits() {
    for dtype in [Dtype::F32, Dtype::F16] {
        let package = package(dtype);
        let a = &package.config.architecture;
        for schedule in [Schedule::full(a, STEPS), random::schedule(a, STEPS, 30, 3)] {
            let plan = Arc::new(Plan::compile(&package.config, &schedule).expect("a plan"));
            let engine = |threads| {
                CpuEngine::new(Arc::clone(&package), Arc::clone(&plan), threads).expect("an engine")
            };
            let mut first = engine(1);
            let reference: Vec<_> = (0..4).map(|seed| infer(&mut first, &plan, seed)).collect();
            assert!(reference[0] != reference[1], "another input must give another result");
            for threads in [1, 2, 3] {
                let mut engine = engine(threads);
                assert_eq!(engine.threads(), threads);
                // Every input several times, in turn, so that nothing of the inference before shows.
                for round in 0..4 {
                    for (seed, expected) in reference.iter().enumerate() {
                        let got = infer(&mut engine, &plan, seed as u64);
                        assert_eq!(
                            &got, expected,
                            "{dtype:?}, {threads} threads, input {seed}, round {round}"
                        );
                    }
                }
            }
        }
    }
}
