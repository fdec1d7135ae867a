//! The demo in simulated time is the same episode every time, and the one that `eval` scores.

use std::sync::Arc;

use refrain_policies::package::Package;
use refrain_policies::plan::Plan;
use refrain_policies::schedule_file::ScheduleFile;
use refrain_policies::vision::Vision;
use refrain_runtime::builtin;
use refrain_runtime::demo::{self, DemoError, DemoOptions};
use refrain_runtime::engine::cpu::CpuEngine;
use refrain_runtime::eval::{self, EvalOptions};
use refrain_runtime::policy::Policy;
use refrain_tests::trace::repository;

/// Seed of an episode that ends early.
const SEED: u64 = 4;

fn policy() -> Policy {
    let package = Arc::new(builtin::package().unwrap());
    let file = builtin::schedule().unwrap();
    let mut config = package.config.clone();
    config.sampler = file.sampler.clone();
    let schedule = file.check(&config, &package.weights_sha256()).unwrap();
    let plan = Arc::new(Plan::compile(&config, &schedule).unwrap());
    Policy::new(config, Box::new(CpuEngine::new(package, plan, 1).unwrap()))
}

#[test]
fn demo_and_eval_are_the_same_episode() {
    let options = DemoOptions { seed: SEED, speed: f64::INFINITY, ..DemoOptions::default() };
    let mut last = 0;
    let first = demo::run(&options, policy(), |progress| last = progress.step).unwrap();
    let again = demo::run(&options, policy(), |_| {}).unwrap();
    let scored = eval::episode(&mut policy(), SEED, 0).unwrap();
    println!(
        "score {} in {} steps over the bus, {} in {} without",
        first.score, first.steps, scored.score, scored.steps
    );
    assert_eq!((first.steps, first.score, first.success), (again.steps, again.score, again.success));
    assert_eq!((first.steps, first.score, first.success), (scored.steps, scored.score, scored.success));
    assert_eq!(last, first.steps);
    assert_eq!((first.robot.refused, first.robot.held), (0, 0));
    assert!(first.score > 0.5, "the policy does not push: {}", first.score);
}

/// The policy that sees, its default schedule.
fn sighted() -> Policy {
    let folder = repository().join("policies/pusht-image");
    let package = Arc::new(Package::load(&folder).unwrap());
    let file = ScheduleFile::load(&folder, package.config.default_schedule.as_ref().unwrap()).unwrap();
    let mut config = package.config.clone();
    config.sampler = file.sampler.clone();
    let schedule = file.check(&config, &package.weights_sha256()).unwrap();
    let plan = Arc::new(Plan::compile(&config, &schedule).unwrap());
    let vision = Vision::new(&package).unwrap();
    Policy::seeing(config, Box::new(CpuEngine::new(package, plan, 1).unwrap()), vision)
}

#[test]
fn a_policy_that_sees_pushes_the_t_over_the_bus() {
    let options = DemoOptions { seed: SEED, speed: f64::INFINITY, ..DemoOptions::default() };
    let shown = demo::run(&options, sighted(), |_| {}).unwrap();
    let scored = eval::episode(&mut sighted(), SEED, 0).unwrap();
    println!("score {} in {} steps over the bus", shown.score, shown.steps);
    assert_eq!((shown.steps, shown.score, shown.success), (scored.steps, scored.score, scored.success));
    assert_eq!((shown.robot.refused, shown.robot.held), (0, 0));
    assert_eq!(shown.policy.refused.iter().sum::<u64>(), 0);
    let [camera] = &shown.policy.cameras[..] else { panic!("one camera") };
    assert_eq!((camera.accepted, camera.shared), (shown.steps as u64, shown.steps as u64));
    assert!(shown.score > 0.5, "the policy does not push: {}", shown.score);
}

#[test]
fn an_evaluation_does_not_depend_on_its_workers() {
    let run = |workers| {
        let options = EvalOptions { episodes: 3, seed: 2, noise_seed: 0, workers };
        eval::run(&options, policy, |_| {}).unwrap()
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn a_speed_below_real_time_is_refused() {
    for speed in [0.5, f64::NAN, -1.0] {
        let options = DemoOptions { speed, ..DemoOptions::default() };
        assert!(matches!(demo::run(&options, policy(), |_| {}), Err(DemoError::Speed(_))), "{speed}");
    }
}
