//! The parameter services of a ROS 2 node: what of the configuration a graph's tools may ask for.
//!
//! `ros2 param list`, `get` and `describe` are answered; `set` is refused with the reason: a robot's configuration is one
//! checked file, read once. With the plain convention there is no node, and nothing is offered.
//!
//! Source: rcl_interfaces of Jazzy; names and depths are listed as rclcpp lists them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::cdr::{self, Reader, Writer};
use super::interface::{self, Interface};
use super::{Bus, BusError, Convention, Service};
use crate::clock::SECOND;
use crate::config::Robot;
use crate::observation::Refusal;
use crate::safety::Limits;

/// Parameters or prefixes that a request may name.
const MAX_NAMES: usize = 256;
/// Why nothing can be set.
const READ_ONLY: &str = "read only: change robot.toml and start again";

/// A parameter's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Double(f64),
    /// A text.
    Text(String),
    /// One number per joint.
    Doubles(Vec<f64>),
    /// Texts.
    Texts(Vec<String>),
}

/// A parameter, named as in robot.toml where it stands there.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its name; parts are separated by dots.
    pub name: &'static str,
    /// What it is, with its unit.
    pub description: &'static str,
    /// What it says.
    pub value: Value,
}

/// What a robot's node tells of itself.
pub fn parameters(robot: &Robot) -> Vec<Parameter> {
    let parameter = |name, description, value| Parameter { name, description, value };
    let ms = |nanos: i64| Value::Double(nanos as f64 * 1e3 / SECOND as f64);
    let hz = |period: i64| Value::Double(SECOND as f64 / period as f64);
    let limits = |of: fn(&Limits) -> f64| Value::Doubles(robot.control.limits.iter().map(of).collect());
    let topics = robot.topics.iter().map(|topic| topic.topic.clone()).collect();
    vec![
        parameter("name", "the robot's name", Value::Text(robot.name.clone())),
        parameter("seed", "seed of the policy's noise", Value::Integer(robot.seed.cast_signed())),
        parameter("control.rate_hz", "control ticks per second", hz(robot.control.period)),
        parameter("policy.rate_hz", "the policy's actions per second", hz(robot.action_period)),
        parameter("observation.topics", "what the policy looks at", Value::Texts(topics)),
        parameter(
            "observation.max_age_ms",
            "older observations hold the robot",
            ms(robot.control.max_observation_age),
        ),
        parameter("action.valid_ms", "how long a command is valid", ms(robot.control.command_validity)),
        parameter(
            "action.joints",
            "the joints, in the order of the limits",
            Value::Texts(robot.joints.clone()),
        ),
        parameter("action.position_min", "lowest positions, joint's unit", limits(|l| l.position[0])),
        parameter("action.position_max", "highest positions, joint's unit", limits(|l| l.position[1])),
        parameter("action.velocity", "largest speeds, joint's unit/s", limits(|l| l.velocity)),
        parameter(
            "action.acceleration",
            "largest accelerations, joint's unit/s^2",
            limits(|l| l.acceleration),
        ),
        parameter("use_sim_time", "never: time is this machine's", Value::Bool(false)),
    ]
}

/// Offers the six services.
pub(super) fn serve(bus: &Bus, robot: &Robot) -> Result<Vec<Service>, BusError> {
    let (Convention::RmwZenoh, Some(node)) = (robot.bus.convention, &robot.bus.node) else {
        return Ok(Vec::new());
    };
    let parameters = Arc::new(parameters(robot));
    let services: [(&str, &Interface, Reply); 6] = [
        ("list_parameters", &interface::LIST_PARAMETERS, list),
        ("get_parameters", &interface::GET_PARAMETERS, get),
        ("get_parameter_types", &interface::GET_PARAMETER_TYPES, get_types),
        ("describe_parameters", &interface::DESCRIBE_PARAMETERS, describe),
        ("set_parameters", &interface::SET_PARAMETERS, set),
        ("set_parameters_atomically", &interface::SET_PARAMETERS_ATOMICALLY, set_atomically),
    ];
    let serve = |(name, interface, reply): (&str, &Interface, Reply)| {
        let parameters = Arc::clone(&parameters);
        bus.serve(&format!("{node}/{name}"), interface, move |request, response| {
            reply(&parameters, request, response)
        })
    };
    services.into_iter().map(serve).collect()
}

/// Writes the response to a request. What is not one has no response.
type Reply = fn(&[Parameter], &[u8], &mut Vec<u8>) -> Result<(), Refusal>;

/// `ListParameters`: all names that are a prefix or lie below one, no deeper than asked (0: however deep).
fn list(parameters: &[Parameter], request: &[u8], response: &mut Vec<u8>) -> Result<(), Refusal> {
    let mut reader = cdr::open(request)?;
    let wanted = names(&mut reader)?;
    let depth = reader.read_u64().map_err(cdr::undecodable)?;
    let shallow = |rest: &str| depth == 0 || (rest.matches('.').count() as u64) < depth;
    let listed = |name: &str| {
        let below = |prefix: &&str| {
            let rest = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.'));
            name == *prefix || rest.is_some_and(shallow)
        };
        if wanted.is_empty() { shallow(name) } else { wanted.iter().any(below) }
    };
    let found: Vec<&str> = parameters.iter().map(|p| p.name).filter(|name| listed(name)).collect();
    let prefixes: BTreeSet<&str> =
        found.iter().filter_map(|name| name.rsplit_once('.')).map(|(prefix, _)| prefix).collect();
    let mut writer = cdr::start(response);
    write_texts(&mut writer, &found);
    write_texts(&mut writer, &prefixes.into_iter().collect::<Vec<_>>());
    Ok(())
}

/// `GetParameters`: a value per name; one that is not known is not set.
fn get(parameters: &[Parameter], request: &[u8], response: &mut Vec<u8>) -> Result<(), Refusal> {
    let wanted = names(&mut cdr::open(request)?)?;
    let mut writer = cdr::start(response);
    writer.write_sequence_length(wanted.len());
    for name in wanted {
        write_value(&mut writer, find(parameters, name).map(|parameter| &parameter.value));
    }
    Ok(())
}

/// `GetParameterTypes`: a type per name.
fn get_types(parameters: &[Parameter], request: &[u8], response: &mut Vec<u8>) -> Result<(), Refusal> {
    let wanted = names(&mut cdr::open(request)?)?;
    let mut writer = cdr::start(response);
    writer.write_sequence_length(wanted.len());
    for name in wanted {
        writer.write_u8(type_of(find(parameters, name).map(|parameter| &parameter.value)));
    }
    Ok(())
}

/// `DescribeParameters`: a description per name; one that is not known has its name only.
fn describe(parameters: &[Parameter], request: &[u8], response: &mut Vec<u8>) -> Result<(), Refusal> {
    let wanted = names(&mut cdr::open(request)?)?;
    let mut writer = cdr::start(response);
    writer.write_sequence_length(wanted.len());
    for name in wanted {
        let parameter = find(parameters, name);
        writer.write_string(name);
        writer.write_u8(type_of(parameter.map(|parameter| &parameter.value)));
        writer.write_string(parameter.map_or("", |parameter| parameter.description));
        // additional_constraints, read_only, dynamic_typing, and no ranges
        writer.write_string("");
        writer.write_bool(parameter.is_some());
        writer.write_bool(false);
        writer.write_sequence_length(0);
        writer.write_sequence_length(0);
    }
    Ok(())
}

/// `SetParameters`: each is refused.
fn set(_: &[Parameter], request: &[u8], response: &mut Vec<u8>) -> Result<(), Refusal> {
    let count = cdr::length(&mut cdr::open(request)?, MAX_NAMES)?;
    let mut writer = cdr::start(response);
    writer.write_sequence_length(count);
    for _ in 0..count {
        write_refusal(&mut writer);
    }
    Ok(())
}

/// `SetParametersAtomically`: all are refused.
fn set_atomically(_: &[Parameter], request: &[u8], response: &mut Vec<u8>) -> Result<(), Refusal> {
    cdr::length(&mut cdr::open(request)?, MAX_NAMES)?;
    write_refusal(&mut cdr::start(response));
    Ok(())
}

fn find<'a>(parameters: &'a [Parameter], name: &str) -> Option<&'a Parameter> {
    parameters.iter().find(|parameter| parameter.name == name)
}

fn names<'a>(reader: &mut Reader<'a>) -> Result<Vec<&'a str>, Refusal> {
    let count = cdr::length(reader, MAX_NAMES)?;
    (0..count).map(|_| reader.read_str().map_err(cdr::undecodable)).collect()
}

fn write_texts<T: AsRef<str>>(writer: &mut Writer<'_>, texts: &[T]) {
    writer.write_sequence_length(texts.len());
    for text in texts {
        writer.write_string(text.as_ref());
    }
}

/// `rcl_interfaces/SetParametersResult`.
fn write_refusal(writer: &mut Writer<'_>) {
    writer.write_bool(false);
    writer.write_string(READ_ONLY);
}

/// `rcl_interfaces/ParameterType`.
fn type_of(value: Option<&Value>) -> u8 {
    match value {
        None => 0,
        Some(Value::Bool(_)) => 1,
        Some(Value::Integer(_)) => 2,
        Some(Value::Double(_)) => 3,
        Some(Value::Text(_)) => 4,
        Some(Value::Doubles(_)) => 8,
        Some(Value::Texts(_)) => 9,
    }
}

/// `rcl_interfaces/ParameterValue`: a field per type, of which one counts.
fn write_value(writer: &mut Writer<'_>, value: Option<&Value>) {
    writer.write_u8(type_of(value));
    writer.write_bool(matches!(value, Some(Value::Bool(true))));
    writer.write_i64(if let Some(Value::Integer(number)) = value { *number } else { 0 });
    writer.write_f64(if let Some(Value::Double(number)) = value { *number } else { 0.0 });
    writer.write_string(if let Some(Value::Text(text)) = value { text } else { "" });
    // bytes, yes or no, whole numbers
    for _ in 0..3 {
        writer.write_sequence_length(0);
    }
    cdr::write_numbers(writer, if let Some(Value::Doubles(numbers)) = value { numbers } else { &[] });
    write_texts(writer, if let Some(Value::Texts(texts)) = value { texts } else { &[] });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn two() -> Vec<Parameter> {
        let parameter = |name, value| Parameter { name, description: "d", value };
        vec![
            parameter("name", Value::Text("arm".into())),
            parameter("a.b.c", Value::Doubles(vec![0.5])),
            parameter("a.d", Value::Bool(true)),
        ]
    }

    fn listed(wanted: &[&str], depth: u64) -> (Vec<String>, Vec<String>) {
        let (mut request, mut response) = (Vec::new(), Vec::new());
        let mut writer = cdr::start(&mut request);
        write_texts(&mut writer, wanted);
        writer.write_u64(depth);
        list(&two(), &request, &mut response).unwrap();
        let mut reader = cdr::open(&response).unwrap();
        let mut texts =
            || names(&mut reader).unwrap().into_iter().map(str::to_owned).collect::<Vec<String>>();
        (texts(), texts())
    }

    #[test]
    fn lists_by_prefix_and_depth() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(listed(&[], 0), (texts(&["name", "a.b.c", "a.d"]), texts(&["a", "a.b"])));
        assert_eq!(listed(&[], 1), (texts(&["name"]), texts(&[])));
        assert_eq!(listed(&["a"], 1), (texts(&["a.d"]), texts(&["a"])));
        assert_eq!(listed(&["a.b", "name"], 0), (texts(&["name", "a.b.c"]), texts(&["a.b"])));
        assert_eq!(listed(&["na"], 0), (texts(&[]), texts(&[])));
    }

    proptest! {
        #[test]
        fn no_request_panics(bytes in prop::collection::vec(any::<u8>(), 0..64), header in any::<bool>()) {
            let mut request = if header { vec![0, 1, 0, 0] } else { Vec::new() };
            request.extend(bytes);
            let mut response = Vec::new();
            for reply in [list, get, get_types, describe, set, set_atomically] as [Reply; 6] {
                let _ = reply(&two(), &request, &mut response);
                prop_assert!(response.len() < 100_000);
            }
        }
    }
}
