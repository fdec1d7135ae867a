//! Mistakes that people make, each found by name; a sound robot has none.

use super::arrivals::Demand;
use super::heard::Heard;
use super::urdf::UrdfError;
use super::*;
use crate::bus::cdr;
use crate::clock::{MILLISECOND, Reading, Wall};
use crate::config::{JointField, MessageKind};

const EXAMPLE: &str = include_str!("../../examples/pusht/robot.toml");
const POLICY: &str = include_str!("../../policies/pusht-small/policy.toml");

const URDF: &str = r#"<?xml version="1.0"?>
<robot name="table">
  <link name="base"/>
  <joint name="slide_x" type="prismatic"><limit lower="0" upper="512" velocity="20000" effort="1"/></joint>
  <joint name="slide_y" type="prismatic"><limit lower="0" upper="512" velocity="20000" effort="1"/></joint>
  <joint name="camera" type="fixed"/>
  <joint name="finger" type="prismatic"><mimic joint="slide_x"/><limit upper="1" velocity="1"/></joint>
  <joint name="wheel" type="continuous"><limit velocity="2.5" effort="1"/></joint>
</robot>"#;

fn policy() -> PolicyConfig {
    let mut policy: PolicyConfig = toml::from_str(POLICY).unwrap();
    for signal in [&mut policy.observation, &mut policy.action] {
        signal.units.iter_mut().for_each(|unit| *unit = "m".into());
    }
    policy
}

fn config() -> RobotConfig {
    let mut config = RobotConfig::parse(EXAMPLE).unwrap();
    config.action.joints[0].joint = Some("slide_x".into());
    config.action.joints[1].joint = Some("slide_y".into());
    config
}

fn found(config: &RobotConfig, policy: &PolicyConfig) -> Vec<String> {
    let robot = config.resolve(policy).unwrap();
    let urdf = Urdf::parse(URDF).unwrap();
    findings(config, &robot, policy, Some(&urdf)).iter().map(Finding::to_string).collect()
}

fn assert_found(found: &[String], parts: &[&str]) {
    assert_eq!(found.len(), parts.len(), "{found:#?}");
    for (finding, part) in found.iter().zip(parts) {
        assert!(finding.contains(part), "{part:?} is not in {finding:?}");
    }
}

#[test]
fn a_sound_robot_is_explained_and_has_no_findings() {
    assert_eq!(found(&config(), &policy()), [""; 0]);
    let robot = config().resolve(&policy()).unwrap();
    let lines = explain(&robot, &policy()).join("\n");
    for part in [
        "policy at 10 Hz".replace("policy", "pusht-small"),
        "in   pusht/observation".into(),
        "[0] -> keypoint_0_x".into(),
    ] {
        assert!(lines.contains(&part), "{part:?} is not in\n{lines}");
    }
    assert!(lines.contains("target_x (m, demonstrated ") && lines.contains(" -> [0]"), "{lines}");
    assert!(lines.contains("to   whoever subscribes, a recorder too"), "{lines}");
    let mut config = config();
    config.action.controller = Some("arm/there".into());
    let lines = explain(&config.resolve(&policy()).unwrap(), &policy()).join("\n");
    assert!(lines.contains("the liveliness token arm/there;"), "{lines}");
}

#[test]
fn limits_and_joints_that_differ_from_the_urdf_are_found() {
    let mut config = config();
    config.action.joints[0].position = Some([-1.0, 512.0]);
    config.action.joints[0].velocity = 30000.0;
    config.action.joints[1].joint = Some("slide_z".into());
    let robot_found = found(&config, &policy());
    assert_found(
        &robot_found,
        &["wider than the URDF's [0, 512] m", "above the URDF's 20000", "no \"slide_z\"; the URDF moves"],
    );
    config.action.joints[0].joint = Some("camera".into());
    config.action.joints[1].joint = Some("finger".into());
    assert_found(&found(&config, &policy()), &["is fixed", "follows another joint"]);
    config = self::config();
    config.observation.topics[0].kind = MessageKind::JointState;
    config.observation.topics[0].joints = (0..20).map(|_| "slide_x".to_owned()).collect();
    config.observation.topics[0].joints[3] = "elbow".into();
    assert_found(
        &found(&config, &policy()),
        &["observation.topics \"pusht/observation\": no joint \"elbow\""],
    );
}

#[test]
fn units_are_compared_by_name_and_by_size() {
    let mut policy = policy();
    policy.action.units[0] = "px".into();
    assert_found(
        &found(&config(), &policy),
        &["measured: \"pusher_x\" is in \"m\", the action in \"px\"", "unit is \"px\""],
    );
    let mut config = config();
    let demonstrated = f64::from(policy.action.normalizer.max[1]);
    config.action.joints[1].position = Some([0.0, demonstrated / DEGREES]);
    let all = found(&config, &self::policy());
    assert_found(&all, &["degrees on one side and radians on the other?"]);
    assert!(all[0].starts_with("wrong:"), "{all:?}");
}

#[test]
fn what_a_urdf_says_is_filled_in_and_what_is_none_is_refused() {
    let urdf = Urdf::parse(URDF).unwrap();
    let section = urdf.section("target_x", "slide_x").unwrap();
    assert!(section.contains("position = [0.0, 512.0]\nvelocity = 20000.0\nacceleration = ?"), "{section}");
    assert!(urdf.section("w", "wheel").unwrap().contains("position = [?, ?]\nvelocity = 2.5"));
    assert_eq!(urdf.section("c", "camera"), None);
    for (text, part) in [
        ("", "URDF: "),
        ("<sdf/>", "expected <robot>, got <sdf>"),
        ("<robot><joint type='fixed'/></robot>", "needs a name"),
        ("<robot><joint name='a' type='revolute'><limit lower='nan'/></joint></robot>", "no finite number"),
    ] {
        let refused: UrdfError = Urdf::parse(text).unwrap_err();
        assert!(refused.to_string().contains(part), "{text}: {refused}");
    }
}

fn demand(rate_hz: f64) -> Demand {
    Demand { rate_hz, max_age: MILLISECOND, clock_tolerance: MILLISECOND, arrival_is_stamp: false }
}

/// What is said of one topic that brings `count` messages, one every `period`, each with these numbers and this age.
fn said_of(values: &[f64], count: i64, period: i64, age: i64) -> Vec<String> {
    let (config, policy) = (config(), policy());
    let robot = config.resolve(&policy).unwrap();
    let mut heard = Heard::new(&robot.topics[0].reading, 20);
    let mut payload = Vec::new();
    cdr::write_array(&mut payload, values);
    for message in 0..count {
        let now = Reading::simulated(message * period);
        heard.take(&payload, Some(Wall::from_nanos(now.wall.nanos() - age)), now);
    }
    let part = &robot.intake.parts[0];
    let demand = Demand { max_age: robot.control.max_observation_age, ..demand(policy.rate_hz) };
    let until = Reading::simulated((count - 1).max(0) * period).time;
    let found = heard.findings(&robot.topics[0], part, &policy.observation, &demand, until);
    found.iter().map(Finding::to_string).collect()
}

#[test]
fn a_topic_that_fits_has_no_findings_and_others_say_why() {
    let normalizer = policy().observation.normalizer;
    let middle: Vec<f64> =
        normalizer.min.iter().zip(&normalizer.max).map(|(l, h)| f64::from((l + h) / 2.0)).collect();
    assert_eq!(said_of(&middle, 50, 20 * MILLISECOND, MILLISECOND), [""; 0]);
    assert_found(&said_of(&middle, 0, 1, 0), &["nothing came"]);
    assert_found(
        &said_of(&middle, 20, 200 * MILLISECOND, 0),
        &["comes at 5.0 Hz, the policy looks at 10 Hz"],
    );
    assert_found(&said_of(&middle, 50, 20 * MILLISECOND, 900 * MILLISECOND), &["an age of 900 ms"]);
    assert_found(&said_of(&middle[..19], 9, 1, 0), &["9 messages were wrong size; 20 numbers are mapped"]);
    let mut radians = middle.clone();
    radians[4] = f64::from(normalizer.max[4]) / DEGREES;
    radians[4] -= f64::from(normalizer.max[4]);
    let said = said_of(&radians, 50, 20 * MILLISECOND, 0);
    assert!(said.len() == 1 && said[0].contains(&policy().observation.names[4]), "{said:?}");
}

#[test]
fn what_never_moved_in_the_demonstrations_is_said() {
    let mut policy = policy();
    let middle: Vec<f64> =
        policy.observation.normalizer.min.iter().map(|low| f64::from(*low) + 1e-3).collect();
    policy.observation.normalizer.max[4] = policy.observation.normalizer.min[4];
    let robot = config().resolve(&policy).unwrap();
    let mut heard = Heard::new(&robot.topics[0].reading, 20);
    let mut payload = Vec::new();
    cdr::write_array(&mut payload, &middle);
    let now = Reading::simulated(2);
    heard.take(&payload, Some(Wall::from_nanos(1)), now);
    let found = heard.findings(
        &robot.topics[0],
        &robot.intake.parts[0],
        &policy.observation,
        &demand(10.0),
        now.time,
    );
    let (name, still) = (&policy.observation.names[4], policy.observation.normalizer.min[4]);
    let now_at = format!("{:.4}", middle[4]);
    assert_eq!(
        found,
        [Finding {
            wrong: false,
            text: format!(
                "observation.topics \"pusht/observation\": {name} was {now_at} to {now_at}; in the demonstrations it never \
                 moved from {still:.4} m"
            )
        }]
    );
}

#[test]
fn joints_that_a_message_lacks_are_named() {
    let reading = MessageReading::Joints { names: vec!["elbow".into()], field: JointField::Position };
    let mut heard = Heard::new(&reading, 1);
    let mut payload = Vec::new();
    cdr::write_joint_state(&mut payload, Wall::from_nanos(1), &["wrist".into()], &[1.0]);
    heard.take(&payload, None, Reading::simulated(2));
    let topic = crate::config::Topic { topic: "joint_states".into(), reading, latched: false };
    let part = crate::observation::Part { places: vec![0], arrival_is_stamp: false };
    let now = Reading::simulated(2).time;
    let found = heard.findings(&topic, &part, &policy().observation, &demand(10.0), now);
    assert!(found[0].text.ends_with("joint missing; wanted elbow"), "{found:?}");
}
