//! No inference allocates, frees or grows anything: a counting allocator watches every thread.
//!
//! Without a test harness, so that nothing else runs in this process.

use std::sync::Arc;

use refrain_policies::config::Architecture;
use refrain_policies::package::Dtype;
use refrain_policies::plan::Plan;
use refrain_policies::schedule::Schedule;
use refrain_runtime::engine::Engine;
use refrain_runtime::engine::cpu::CpuEngine;
use refrain_runtime::policy::{Policy, Prediction};
use refrain_tests::counting::{Counting, assert_counting, calls};
use refrain_tests::random::{self, Random};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// An inference does not touch the allocator.
fn main() {
    assert_counting();
    let architecture = Architecture {
        layers: 2,
        heads: 2,
        width: 36,
        condition_layers: 0,
        causal: true,
        time_as_cond: true,
        obs_as_cond: true,
        horizon: 16,
        n_obs_steps: 2,
        n_action_steps: 8,
        pred_action_steps_only: false,
        dit: None,
    };
    let steps = 12;
    let mixing = Architecture { condition_layers: 1, ..architecture.clone() };
    let encoder = Architecture { time_as_cond: false, obs_as_cond: false, ..architecture.clone() };
    for architecture in [architecture, mixing, encoder] {
        let package = Arc::new(random::package(random::config(&architecture, 5, 2, steps, 1), Dtype::F16, 1));
        let mut random = Random::new(2);
        let cached = Schedule::aligned(&architecture, steps, &[0, 4, 9]).expect("a schedule");
        for schedule in
            [Schedule::full(&architecture, steps), cached, random::schedule(&architecture, steps, 30, 4)]
        {
            let plan = Arc::new(Plan::compile(&package.config, &schedule).expect("a plan"));
            let (observation, noise) =
                (random.normals(plan.observation.len()), random.normals(plan.noise_len()));
            let mut trajectory = vec![0.0; plan.trajectory.len()];
            for threads in [1, 2] {
                let engine =
                    || CpuEngine::new(Arc::clone(&package), Arc::clone(&plan), threads).expect("an engine");
                let mut alone = engine();
                alone.infer(&observation, &noise, &mut trajectory).expect("an inference");
                let made = calls(|| {
                    for _ in 0..20 {
                        alone.infer(&observation, &noise, &mut trajectory).expect("an inference");
                    }
                });
                assert_eq!(made, 0, "CpuEngine::infer, {threads} threads");
                let mut policy = Policy::new(package.config.clone(), Box::new(engine()));
                let mut out = Prediction::default();
                policy.predict(&observation, &noise, &mut out).expect("a prediction");
                let made = calls(|| {
                    for _ in 0..20 {
                        policy.predict(&observation, &noise, &mut out).expect("a prediction");
                    }
                });
                assert_eq!(made, 0, "Policy::predict, {threads} threads");
            }
        }
    }
    println!("no allocation in inference");
}
