//! Record A == record B == replay A, byte for byte: in simulated time as files, in real time as messages.

use std::path::Path;
use std::sync::Arc;

use refrain_policies::plan::Plan;
use refrain_runtime::builtin;
use refrain_runtime::clock;
use refrain_runtime::config::RobotConfig;
use refrain_runtime::demo::{self, DemoOptions};
use refrain_runtime::engine::cpu::CpuEngine;
use refrain_runtime::ladder::Rungs;
use refrain_runtime::policy::Policy;
use refrain_runtime::record::{self, Log, Message, Place};
use refrain_runtime::replay;
use refrain_tests::robot::{self, Rig};

fn plans() -> Rungs {
    let package = Arc::new(builtin::package().unwrap());
    let file = builtin::schedule().unwrap();
    let mut config = package.config.clone();
    config.sampler = file.sampler.clone();
    let schedule = file.check(&config, &package.weights_sha256()).unwrap();
    let plan = Arc::new(Plan::compile(&config, &schedule).unwrap());
    let policy = Policy::new(config, Box::new(CpuEngine::new(package, plan, 1).unwrap()));
    Rungs::one(policy, builtin::SCHEDULE_NAME)
}

fn recorded(path: &Path) -> Vec<u8> {
    let options = DemoOptions {
        seed: 4,
        speed: f64::INFINITY,
        max_steps: 60,
        record: Some(path.to_owned()),
        ..DemoOptions::default()
    };
    demo::run(&options, plans(), |_| {}).unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn record_a_is_record_b_is_replay_a() {
    let folder = std::env::temp_dir().join(format!("refrain-replay-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| folder.join(format!("{name}.mcap")));
    let (first, second) = (recorded(&a), recorded(&b));
    assert!(first == second, "two runs of the same seed were recorded differently");

    let (metadata, messages) = record::read(&a).unwrap();
    let count = |is: fn(&Message) -> bool| messages.iter().filter(|m| is(m)).count();
    let ticks = count(|m| matches!(m, Message::Tick(_)));
    assert!(ticks >= 200 && ticks.is_multiple_of(10), "{ticks}");
    assert!(count(|m| matches!(m, Message::Inference(_))) >= 3);
    let config = RobotConfig::parse(&metadata[replay::ROBOT]).unwrap();
    let mut robot = config.resolve(&builtin::package().unwrap().config).unwrap();
    robot.episode = metadata[replay::EPISODE].parse().unwrap();
    let log = Log::begin(Place::File(c.clone()), metadata.clone(), clock::Reading::simulated(0)).unwrap();
    let out = replay::run(&robot, plans(), &messages, Some(log)).unwrap();
    assert_eq!((out.differences, out.missing, out.ticks), (0, 0, ticks as u64), "{out:#?}");
    assert!(first == std::fs::read(&c).unwrap(), "the replay's file differs");

    // Another seed, or another number in what a tick saw, shows.
    robot.episode += 1;
    let out = replay::run(&robot, plans(), &messages, None).unwrap();
    assert!(out.differences > 0 && out.largest > 0.0 && !out.told.is_empty(), "{out:#?}");
    robot.episode -= 1;
    let mut changed = messages.clone();
    let tick =
        changed.iter_mut().rev().find_map(|m| if let Message::Tick(tick) = m { Some(tick) } else { None });
    tick.unwrap().values[0] += 1e-12;
    let out = replay::run(&robot, plans(), &changed, None).unwrap();
    assert_eq!((out.differences, out.told.len()), (1, 1), "{out:#?}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_run_in_real_time_is_computed_again() {
    let file = std::env::temp_dir().join(format!("refrain-real-time-{}.mcap", std::process::id()));
    let metadata = std::collections::BTreeMap::new();
    let log = Log::begin(Place::File(file.clone()), metadata, clock::read()).unwrap();
    let mut rig = Rig::recorded(|_| {}, Some(log));
    rig.observe_until("chunks", |rig| rig.daemon.report().counts.chunks >= 3);
    let robot = rig.robot.clone();
    rig.end();
    let (_, messages) = record::read(&file).unwrap();
    let out = replay::run(&robot, robot::double(), &messages, None).unwrap();
    assert_eq!((out.differences, out.missing), (0, 0), "{out:#?}");
    assert!(out.ticks > 50 && out.inferences >= 3, "{out:#?}");
    std::fs::remove_file(&file).unwrap();
}
