//! Topics of every type are mapped, mistakes are named, and no file makes the parser panic.

use proptest::prelude::*;
use refrain_policies::config::PolicyConfig;

use super::*;
use crate::config::{ConfigError, KindChoice, Robot, RobotConfig};
use crate::planner::Replan;

const EXAMPLE: &str = include_str!("../../../examples/pusht/robot.toml");
const POLICY: &str = include_str!("../../../policies/pusht-small/policy.toml");

fn policy() -> PolicyConfig {
    toml::from_str(POLICY).unwrap()
}

fn example() -> RobotConfig {
    RobotConfig::parse(EXAMPLE).unwrap()
}

fn assert_problems(config: &RobotConfig, named: &[&str]) {
    match config.resolve(&policy()) {
        Err(ConfigError::Problems(found)) => {
            for start in named {
                assert!(
                    found.iter().any(|problem| problem.starts_with(start)),
                    "{start} is not in {found:#?}"
                );
            }
            assert_eq!(found.len(), named.len(), "{found:#?}");
        }
        other => panic!("expected problems, got {other:?}"),
    }
}

/// The example with the pusher's position from a pose.
fn with_pose() -> RobotConfig {
    let mut config = example();
    let mut pose = config.observation.topics[0].clone();
    let (arrays, pushers) =
        policy().observation.names.into_iter().partition(|name| !name.starts_with("pusher"));
    config.observation.topics[0].elements = arrays;
    pose.topic = "/pusher".into();
    pose.kind = MessageKind::PoseStamped;
    pose.elements = pushers;
    pose.fields = vec!["position.y".into(), "position.x".into()];
    pose.latched = true;
    config.observation.topics.push(pose);
    config
}

#[test]
fn fields_of_a_stamped_message_are_found_by_name() {
    let robot = with_pose().resolve(&policy()).unwrap();
    let reading = MessageReading::Stamped { kind: Stamped::Pose, places: vec![1, 0] };
    assert_eq!((&robot.topics[1].reading, robot.topics[1].latched), (&reading, true));
    let mut config = with_pose();
    config.observation.topics[1].fields = vec!["position.q".into()];
    assert_problems(
        &config,
        &[
            "observation.topics \"/pusher\".fields: expected 2",
            "observation.topics \"/pusher\".fields: no \"position.q\"",
        ],
    );
    config.observation.topics[1].fields.clear();
    assert_problems(
        &config,
        &["observation.topics \"/pusher\".fields: expected 2 numbers, one per element, got 7"],
    );
    config = with_pose();
    config.observation.topics[0].fields = vec!["linear.x".into()];
    config.observation.topics[1].field = Some(JointField::Effort);
    assert_problems(
        &config,
        &[
            "observation.topics \"pusht/observation\": fields belong",
            "observation.topics \"/pusher\": joints and field",
        ],
    );
}

#[test]
fn commands_are_poses_or_twists_with_fields() {
    let mut config = example();
    config.action.command_kind = CommandKind::PoseStamped;
    config.action.command_frame = "table".into();
    config.action.joints[0].field = Some("position.y".into());
    config.action.joints[1].field = Some("position.x".into());
    let robot = config.resolve(&policy()).unwrap();
    let writing = CommandWriting::Stamped { kind: Stamped::Pose, frame: "table".into(), places: vec![1, 0] };
    assert_eq!(robot.command, writing);
    config.action.joints[1].field = Some("position.y".into());
    assert_problems(&config, &["action.joints \"target_y\".field: \"position.y\" is set twice"]);
    config.action.joints[1].field = Some("orientation.w".into());
    assert_problems(&config, &["action.joints: a pose's orientation needs all"]);
    config.action.command_kind = CommandKind::TwistStamped;
    assert_problems(
        &config,
        &[
            "action.joints \"target_x\".kind",
            "action.joints \"target_x\".field",
            "action.joints \"target_y\".kind",
            "action.joints \"target_y\".field",
        ],
    );
    for (joint, field) in config.action.joints.iter_mut().zip(["linear.x", "angular.z"]) {
        (joint.kind, joint.position, joint.measured) = (KindChoice::Velocity, None, None);
        joint.field = Some(field.into());
    }
    let robot = config.resolve(&policy()).unwrap();
    assert!(
        matches!(robot.command, CommandWriting::Stamped { kind: Stamped::Twist, places, .. } if places == [0, 5])
    );
    config.action.command_kind = CommandKind::Float64MultiArray;
    assert_problems(&config, &["action: command_frame and field belong to stamped"]);
}

#[test]
fn ros_has_its_own_names() {
    let mut config = example();
    config.bus.convention = Convention::RmwZenoh;
    let robot = config.resolve(&policy()).unwrap();
    assert_eq!(robot.bus.node.as_deref(), Some("pusht"));
    assert_eq!((robot.enable_service.as_str(), robot.mode_topic.as_str()), ("pusht/enable", "pusht/mode"));
    config.name = "push-t".into();
    config.bus.domain = 233;
    config.bus.mode_topic = Some("mode-of-it".into());
    assert_problems(&config, &["bus.node", "bus.domain", "bus.mode_topic: ROS topics"]);
}

#[test]
fn poses_are_sent_with_a_direction_or_not_at_all() {
    let writing = |places: &[usize]| CommandWriting::Stamped {
        kind: Stamped::Pose,
        frame: String::new(),
        places: places.to_vec(),
    };
    let stamp = crate::clock::Wall::from_nanos(1);
    let numbers = |writing: CommandWriting, values: &[f64]| {
        let mut out = Vec::new();
        let sent = writing.write(&mut out, stamp, values);
        let mut read = [0.0; 7];
        sent.then(|| {
            crate::bus::cdr::read_stamped(&out, 7, &[0, 1, 2, 3, 4, 5, 6], &mut read).unwrap();
            read
        })
    };
    assert_eq!(numbers(writing(&[2]), &[4.0]), Some([0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 1.0]));
    let turned = numbers(writing(&[3, 4, 5, 6]), &[0.0, 3.0, 0.0, 4.0]);
    assert_eq!(turned, Some([0.0, 0.0, 0.0, 0.0, 0.6, 0.0, 0.8]));
    assert_eq!(numbers(writing(&[3, 4, 5, 6]), &[0.0; 4]), None);
}

/// Whether threads can be made of it.
fn is_sound(robot: &Robot) -> bool {
    robot.control.period > 0
        && robot.control.command_validity > 0
        && robot.control.max_observation_age > 0
        && match robot.replan {
            Replan::After(actions) => actions > 0,
            Replan::Every(period) => period > 0,
            Replan::Always => true,
        }
        && robot.control.limits.iter().all(|limits| {
            limits.velocity > 0.0
                && limits.acceleration.is_finite()
                && limits.position.iter().all(|end| end.is_finite())
        })
}

/// Values that nobody means.
fn hostile() -> impl Strategy<Value = String> {
    let fixed = [
        "-1",
        "0",
        "nan",
        "inf",
        "-inf",
        "1e308",
        "1e-308",
        "9223372036854775807",
        "true",
        "\"\"",
        "\"*\"",
        "\"/\"",
        "\"\\u0000\"",
        "[]",
        "[[]]",
        "{}",
        "1979-05-27",
        "[nan, nan]",
        "[5.0, -5.0]",
        "",
        "\"",
        "'''",
        "=",
    ];
    prop_oneof![
        prop::sample::select(fixed.to_vec()).prop_map(str::to_owned),
        any::<f64>().prop_map(|n| format!("{n:?}")),
        any::<i64>().prop_map(|n| n.to_string()),
        "\\PC{0,20}".prop_map(|text| format!("{text:?}")),
    ]
}

proptest! {
    #[test]
    fn a_hostile_value_is_refused_by_name_or_is_sound(line in any::<prop::sample::Index>(), value in hostile()) {
        let lines: Vec<&str> = EXAMPLE.lines().collect();
        let set: Vec<usize> = (0..lines.len())
            .filter(|i| !lines[*i].starts_with('#') && lines[*i].contains('='))
            .collect();
        let at = set[line.index(set.len())];
        let key = lines[at].split('=').next().unwrap().trim();
        let changed = format!("{key} = {value}");
        let mut text = lines.clone();
        text[at] = &changed;
        match RobotConfig::parse(&text.join("\n")) {
            Err(error) => {
                let error = error.to_string();
                prop_assert!(error.contains(key) || error.contains("TOML parse error"), "{changed}: {error}");
            }
            Ok(config) => match config.resolve(&policy()) {
                Ok(robot) => prop_assert!(is_sound(&robot), "{changed}"),
                Err(error) => {
                    let error = error.to_string();
                    let table = toml::from_str::<toml::Table>(&format!("v = {value}")).ok();
                    let shown = table.and_then(|table| table["v"].as_str().map(|text| format!("{text:?}")));
                    let names = error.contains(key) || shown.is_some_and(|shown| error.contains(&shown));
                    prop_assert!(names, "{changed}: {error}");
                }
            },
        }
    }

    #[test]
    fn lines_may_be_missing_or_stand_twice(cut in any::<prop::sample::Index>(), twice: bool) {
        let mut lines: Vec<&str> = EXAMPLE.lines().collect();
        let at = cut.index(lines.len());
        if twice { lines.insert(at, lines[at]); } else { lines.remove(at); }
        if let Ok(config) = RobotConfig::parse(&lines.join("\n")) {
            prop_assert!(config.resolve(&policy()).as_ref().map_or(true, is_sound));
        }
    }

    #[test]
    fn any_text_is_refused_with_a_reason(text in "\\PC{0,200}") {
        let refused = RobotConfig::parse(&text);
        prop_assert!(refused.is_err_and(|error| !error.to_string().is_empty()));
    }
}
