//! The example is sound, and every mistake is named at once.

use refrain_policies::config::PolicyConfig;

use super::*;
use crate::join::Join;
use crate::planner::Replan;

const EXAMPLE: &str = include_str!("../../../examples/pusht/robot.toml");
const POLICY: &str = include_str!("../../../policies/pusht-small/policy.toml");

fn policy() -> PolicyConfig {
    toml::from_str(POLICY).unwrap()
}

fn problems(config: &RobotConfig) -> Vec<String> {
    match config.resolve(&policy()) {
        Err(ConfigError::Problems(found)) => found,
        other => panic!("expected problems, got {other:?}"),
    }
}

fn assert_named(found: &[String], named: &[&str]) {
    for start in named {
        assert!(found.iter().any(|problem| problem.starts_with(start)), "{start} is not in {found:#?}");
    }
    assert_eq!(found.len(), named.len(), "{found:#?}");
}

#[test]
fn the_example_resolves() {
    let robot = RobotConfig::parse(EXAMPLE).unwrap().resolve(&policy()).unwrap();
    assert_eq!(robot.control.period, 10_000_000);
    assert_eq!(robot.action_period, 100_000_000);
    assert_eq!(robot.replan, Replan::After(8));
    assert_eq!((robot.intake.size, robot.intake.steps), (20, 2));
    assert_eq!(robot.control.max_chunk_age, 1_500_000_000, "15 predicted actions from the observation on");
    assert_eq!((robot.stop_topic.as_str(), robot.reset_topic.as_str()), ("pusht/stop", "pusht/reset"));
    assert_eq!(robot.joints, ["target_x", "target_y"]);
}

/// The commented workspace of the example, as somebody would uncomment it.
#[test]
fn a_workspace_is_a_box_of_positions() {
    let lines = EXAMPLE.lines().skip_while(|line| !line.starts_with("# [action.workspace]")).take(5);
    let section: String = lines.map(|line| format!("{}\n", line.trim_start_matches("# "))).collect();
    let mut config = RobotConfig::parse(&EXAMPLE.replace("[bus]", &format!("{section}\n[bus]"))).unwrap();
    let robot = config.resolve(&policy()).unwrap();
    let axes = vec![(0, [50.0, 462.0]), (1, [50.0, 462.0])];
    assert_eq!(robot.control.workspace, safety::Workspace { axes, outside: safety::Outside::Hold });

    let workspace = config.action.workspace.as_mut().unwrap();
    workspace.elements = vec!["target_x".into(), "tool_z".into()];
    (workspace.low, workspace.high) = (vec![600.0, f64::NAN], vec![700.0, 1.0]);
    assert_named(
        &problems(&config),
        &[
            "action.workspace \"target_x\": 600 to 700 leaves nothing",
            "action.workspace \"tool_z\": the policy moves no such element",
        ],
    );
    let workspace = config.action.workspace.as_mut().unwrap();
    workspace.elements = vec!["target_x".into(), "target_x".into()];
    (workspace.low, workspace.high) = (vec![5.0, 5.0], vec![1.0, 10.0]);
    config.action.joints[0].kind = KindChoice::Velocity;
    config.action.joints[0].position = None;
    config.action.joints[0].measured = None;
    assert_named(
        &problems(&config),
        &[
            "action.workspace \"target_x\": expected low < high",
            "action.workspace \"target_x\": expected kind",
            "action.workspace \"target_x\": expected kind",
            "action.workspace \"target_x\": stands twice",
        ],
    );
    config.action.workspace.as_mut().unwrap().low.pop();
    assert_named(&problems(&config), &["action.workspace: expected low and high"]);
}

#[test]
fn a_shadow_has_topics_of_its_own() {
    let mut config = RobotConfig::parse(EXAMPLE).unwrap();
    config.action.shadow = true;
    let robot = config.resolve(&policy()).unwrap();
    assert!(robot.shadow);
    assert_eq!(
        (robot.stop_topic.as_str(), robot.mode_topic.as_str()),
        ("pusht/shadow/stop", "pusht/shadow/mode")
    );
    assert_eq!(
        (robot.command_topic.as_deref(), robot.bus.node.as_deref()),
        (Some("pusht/command"), Some("pusht_shadow"))
    );
    config.action.command_topic = None;
    config.action.trajectory_topic = Some("t".into());
    config.control.interpolation = crate::chunk::Interpolation::Linear;
    assert_named(&problems(&config), &["action.shadow: needs command_topic"]);
}

#[test]
fn unknown_keys_are_refused() {
    let error = RobotConfig::parse(&EXAMPLE.replace("[bus]", "[bus]\nmulticast = true")).unwrap_err();
    assert!(error.to_string().contains("multicast"), "{error}");
}

#[test]
fn all_problems_are_reported_at_once() {
    let mut config = RobotConfig::parse(EXAMPLE).unwrap();
    config.format = 2;
    config.name = "push t".into();
    config.control.rate_hz = f64::NAN;
    config.control.priority = Some(0);
    config.chunk.replan_after = Some(16);
    config.chunk.deadline_ms = Some(-1.0);
    config.observation.max_age_ms = f64::INFINITY;
    config.observation.clock_tolerance_ms = -1.0;
    config.observation.topics[0].topic = "a/*/b".into();
    config.action.valid_ms = 0.0;
    config.action.command_topic = None;
    config.action.controller = Some("/arm/".into());
    config.bus.zenoh = Some("{}".into());
    config.bus.zenoh_file = Some("zenoh.json5".into());
    config.action.joints[0].velocity = 0.0;
    config.action.joints[0].measured = Some("elbow".into());
    config.action.joints[1].position = Some([5.0, f64::NAN]);
    config.action.joints[1].acceleration = f64::INFINITY;
    assert_named(
        &problems(&config),
        &[
            "format",
            "name",
            "control.rate_hz",
            "control.priority",
            "chunk.replan_after",
            "chunk.deadline_ms",
            "observation.max_age_ms",
            "observation.clock_tolerance_ms",
            "observation.topics: expected a topic",
            "action.valid_ms",
            "action: expected command_topic",
            "action.controller: expected a zenoh key expression",
            "bus: expected zenoh or zenoh_file",
            "action.joints \"target_x\".velocity",
            "action.joints \"target_x\".measured",
            "action.joints \"target_y\".position",
            "action.joints \"target_y\".acceleration",
        ],
    );
}

#[test]
fn limits_are_required() {
    let mut config = RobotConfig::parse(EXAMPLE).unwrap();
    config.action.joints.pop();
    config.action.joints[0].position = None;
    assert_named(
        &problems(&config),
        &["action.joints: \"target_y\" has no limits", "action.joints \"target_x\": position limits"],
    );
    let without = EXAMPLE.replace("acceleration = 4000000.0\n", "");
    assert_named(
        &problems(&RobotConfig::parse(&without).unwrap()),
        &["action.joints \"target_x\".acceleration", "action.joints \"target_y\".acceleration"],
    );
}

#[test]
fn joins_rotations_and_discrete_joints_are_checked() {
    let mut config = RobotConfig::parse(EXAMPLE).unwrap();
    config.chunk.replan_hz = Some(f64::NAN);
    config.chunk.replan_always = true;
    config.chunk.join = Join::Ensemble { decay: f64::NAN };
    config.action.rotations = vec![vec!["target_x".into(), "target_y".into()]];
    config.action.joints[0].thresholds = Some([0.3, 0.7]);
    config.action.joints[1].kind = KindChoice::Discrete;
    config.action.joints[1].thresholds = Some([0.7, 0.3]);
    assert_named(
        &problems(&config),
        &[
            "chunk.replan_hz",
            "chunk: expected one of",
            "chunk.join.decay",
            "action.joints \"target_x\".thresholds",
            "action.joints \"target_y\".thresholds",
            "action.joints \"target_y\".velocity",
            "action.joints \"target_y\".acceleration",
            "action.rotations: expected six or four",
        ],
    );
    let joint = &mut config.action.joints[1];
    (joint.velocity, joint.acceleration, joint.thresholds) = (0.0, 0.0, Some([0.3, 0.7]));
    config.action.joints[0].thresholds = None;
    config.action.rotations.clear();
    config.chunk = toml::from_str("replan_hz = 5.0\njoin = { mode = \"ensemble\" }").unwrap();
    let robot = config.resolve(&policy()).unwrap();
    assert_eq!(robot.replan, Replan::Every(200 * crate::clock::MILLISECOND));
    assert_eq!(robot.join, Join::Ensemble { decay: 0.01 });
    assert_eq!(robot.control.limits[1].kind, safety::Kind::Discrete { below: 0.3, above: 0.7 });
    // How long a prediction may take: the deadline, 1000 ms, less what the chunk before is executed for.
    for (chunk, budget) in [
        ("replan_after = 8", 200),
        ("replan_hz = 5.0", 200),
        ("replan_hz = 1.25", 200),
        ("replan_always = true", 500),
    ] {
        config.chunk = toml::from_str(&format!("deadline_ms = 1000.0\n{chunk}")).unwrap();
        let robot = config.resolve(&policy()).unwrap();
        assert_eq!(robot.budget, budget * crate::clock::MILLISECOND, "{chunk}");
    }
}

#[test]
fn every_element_is_given_once() {
    let mut config = RobotConfig::parse(EXAMPLE).unwrap();
    let mut second = config.observation.topics[0].clone();
    second.topic = "pusher".into();
    second.kind = MessageKind::JointState;
    second.elements = vec!["pusher_x".into(), "pusher_z".into()];
    second.joints = vec!["x".into()];
    config.observation.topics.push(second);
    assert_named(
        &problems(&config),
        &[
            "observation.topics \"pusher\": the policy observes no \"pusher_z\"",
            "observation.topics \"pusher\".joints: expected 2",
            "observation.topics: \"pusher_x\" is given 2 times",
        ],
    );
}

#[test]
fn paths_are_relative_to_the_file() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/pusht");
    let config = RobotConfig::load(&folder.join("robot.toml")).unwrap();
    assert_eq!(config.policy.path, folder.join("../../policies/pusht-small"));
    assert!(matches!(RobotConfig::load(&folder.join("none.toml")), Err(ConfigError::Read { .. })));
}
