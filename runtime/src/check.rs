//! What `robot.toml` means, in words, and what in it does not fit: the policy, the robot's URDF, what is on the bus.
//!
//! Nothing here moves anything. A [`Finding`] names the place in the file, what was expected, what was found, and what to
//! do. Units are compared by name where both sides have one, and by size: what the policy saw in its demonstrations must lie
//! within the limits and look like what the topics bring.

pub mod arrivals;
mod camera;
pub mod heard;
pub mod seen;
pub mod urdf;

use std::fmt;

use refrain_policies::config::{PolicyConfig, Signal};

use crate::config::fields::Stamped;
use crate::config::{CommandWriting, JointSection, KindChoice, MessageReading, Robot, RobotConfig};
use crate::safety::Limits;

use self::urdf::Urdf;

/// Degrees in a radian: the factor that a mix-up of both shows.
const DEGREES: f64 = 180.0 / std::f64::consts::PI;
/// Ranges this many times apart do not have the same unit.
const OTHER_UNIT: f64 = 20.0;
/// Longest list of elements that is shown whole.
const SHOWN: usize = 12;

/// Something that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether the robot cannot run so; else somebody should look.
    pub wrong: bool,
    /// Place, expected, found, what to do.
    pub text: String,
}

impl Finding {
    fn wrong(text: String) -> Self {
        Self { wrong: true, text }
    }

    fn odd(text: String) -> Self {
        Self { wrong: false, text }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.wrong { "wrong:" } else { "look: " }, self.text)
    }
}

/// The mapping in lines: topics and what they give, commands and where they go.
pub fn explain(robot: &Robot, policy: &PolicyConfig) -> Vec<String> {
    let mut lines = vec![format!(
        "{}: policy {} at {} Hz, control at {} Hz",
        robot.name,
        policy.name,
        policy.rate_hz,
        (1e9 / robot.control.period as f64).round()
    )];
    for (topic, part) in robot.topics.iter().zip(&robot.intake.parts) {
        let names: Vec<String> = topic.reading.sources(part.places.len());
        lines.push(format!("in   {}  {}", topic.topic, topic.reading.interface().ros_name()));
        let rows: Vec<String> = names
            .iter()
            .zip(&part.places)
            .map(|(source, place)| format!("       {source} -> {}", element(&policy.observation, *place)))
            .collect();
        lines.extend(shortened(rows));
    }
    lines.extend(camera::explain(robot, policy));
    if let Some(topic) = &robot.command_topic {
        let how = if robot.shadow { "in shadow mode: compared, nothing is sent" } else { "every tick" };
        lines.push(format!("out  {topic}  {}, {how}", robot.command.interface().ros_name()));
        let targets = robot.command.targets(policy.action.size());
        let rows: Vec<String> = targets
            .iter()
            .enumerate()
            .map(|(place, target)| format!("       {} -> {target}", element(&policy.action, place)))
            .collect();
        lines.extend(shortened(rows));
    }
    if let Some(topic) = &robot.trajectory_topic {
        lines.push(format!("out  {topic}  trajectory_msgs/msg/JointTrajectory, every chunk"));
        let rows = robot.joints.iter().enumerate();
        lines.extend(shortened(
            rows.map(|(place, joint)| format!("       {} -> {joint}", element(&policy.action, place)))
                .collect(),
        ));
    }
    if !robot.shadow {
        lines.push(match &robot.controller {
            Some(tokens) => {
                format!("to   whoever holds the liveliness token {tokens}; without it, nothing is sent")
            }
            None => "to   whoever subscribes, a recorder too; action.controller names the controller".into(),
        });
    }
    lines.push(format!(
        "also {}, {} (topics and services), {} (service), {}, {}",
        robot.stop_topic, robot.reset_topic, robot.enable_service, robot.mode_topic, robot.diagnostics_topic
    ));
    lines
}

/// What does not fit between the file, the policy and, if there is one, the URDF.
pub fn findings(
    config: &RobotConfig,
    robot: &Robot,
    policy: &PolicyConfig,
    urdf: Option<&Urdf>,
) -> Vec<Finding> {
    let mut found = Vec::new();
    let names = policy.action.names.iter().zip(&robot.joints).zip(&robot.control.limits);
    for (place, ((name, joint), limits)) in names.enumerate() {
        let Some(section) = config.action.joints.iter().find(|section| section.name == *name) else {
            continue;
        };
        let key = format!("action.joints {name:?}");
        limits_hold_demonstrations(&key, &policy.action, place, section, limits, &mut found);
        measured_in_the_same_unit(&key, policy, place, section, &mut found);
        if let Some(urdf) = urdf {
            found.extend(urdf.compare(&key, joint, unit(&policy.action, place), limits));
        }
    }
    if let Some(urdf) = urdf {
        for topic in &robot.topics {
            if let MessageReading::Joints { names, .. } = &topic.reading {
                let missing = names.iter().filter(|name| urdf.joint(name).is_none());
                found.extend(missing.map(|name| {
                    let known = urdf.names();
                    Finding::wrong(format!(
                        "observation.topics {:?}: no joint {name:?}; {known}",
                        topic.topic
                    ))
                }));
            }
        }
    }
    found.extend(camera::findings(config, policy));
    let rate = 1e9 / robot.control.max_observation_age as f64;
    if rate > policy.rate_hz {
        found.push(Finding::odd(format!(
            "observation.max_age_ms: {} ms is less than the {} ms between two actions; the robot will hold between them",
            config.observation.max_age_ms,
            1e3 / policy.rate_hz
        )));
    }
    found
}

fn limits_hold_demonstrations(
    key: &str,
    action: &Signal,
    place: usize,
    section: &JointSection,
    limits: &Limits,
    found: &mut Vec<Finding>,
) {
    let (KindChoice::Position, Some([low, high])) = (section.kind, demonstrated(action, place)) else {
        return;
    };
    let [lowest, highest] = limits.position;
    if low >= lowest && high <= highest {
        return;
    }
    let ratio = (high - low) / (highest - lowest);
    let guess = match ratio {
        ratio if (ratio / DEGREES - 1.0).abs() < 0.9 => "; degrees on one side and radians on the other?",
        ratio if ratio > OTHER_UNIT => "; another unit?",
        _ => "; such actions will be clamped or held",
    };
    let text = format!(
        "{key}.position: [{lowest}, {highest}] leaves out what was demonstrated, [{low}, {high}] {}{guess}",
        unit(action, place)
    );
    found.push(if ratio > OTHER_UNIT { Finding::wrong(text) } else { Finding::odd(text) });
}

fn measured_in_the_same_unit(
    key: &str,
    policy: &PolicyConfig,
    place: usize,
    section: &JointSection,
    found: &mut Vec<Finding>,
) {
    let Some(measured) = &section.measured else { return };
    let Some(at) = policy.observation.names.iter().position(|name| name == measured) else { return };
    let (here, there) = (unit(&policy.action, place), unit(&policy.observation, at));
    if here != there {
        found.push(Finding::wrong(format!(
            "{key}.measured: {measured:?} is in {there:?}, the action in {here:?}; measure it in the action's unit"
        )));
    }
}

/// Smallest and largest value in the demonstrations, if known.
fn demonstrated(signal: &Signal, place: usize) -> Option<[f64; 2]> {
    let end = |ends: &[f32]| ends.get(place).map(|end| f64::from(*end));
    Some([end(&signal.normalizer.min)?, end(&signal.normalizer.max)?])
}

fn unit(signal: &Signal, place: usize) -> &str {
    signal.units.get(place).map_or("", String::as_str)
}

fn element(signal: &Signal, place: usize) -> String {
    let name = signal.names.get(place).map_or("?", String::as_str);
    let range = demonstrated(signal, place)
        .map_or(String::new(), |[low, high]| format!(", demonstrated {low:.4} to {high:.4}"));
    format!("{name} ({}{range})", unit(signal, place))
}

fn shortened(mut rows: Vec<String>) -> Vec<String> {
    if rows.len() > SHOWN {
        let left = rows.len() - SHOWN + 1;
        rows.truncate(SHOWN - 1);
        rows.push(format!("       and {left} more in the same order"));
    }
    rows
}

impl MessageReading {
    /// What each number is called in the message.
    fn sources(&self, count: usize) -> Vec<String> {
        match self {
            Self::Array { .. } => (0..count).map(|place| format!("[{place}]")).collect(),
            Self::Joints { names, field } => {
                names.iter().map(|name| format!("{name}.{}", format!("{field:?}").to_lowercase())).collect()
            }
            Self::Stamped { kind, places } => places.iter().map(|place| field(*kind, *place)).collect(),
        }
    }
}

impl CommandWriting {
    fn targets(&self, count: usize) -> Vec<String> {
        match self {
            Self::Array => (0..count).map(|place| format!("[{place}]")).collect(),
            Self::Stamped { kind, places, .. } => places.iter().map(|place| field(*kind, *place)).collect(),
        }
    }
}

fn field(kind: Stamped, place: usize) -> String {
    let named = kind.names().into_iter().find(|name| kind.place(name) == Some(place));
    named.unwrap_or("?").to_owned()
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
