//! What travels where: the topics of observations, the messages of commands, `[bus]`; as written in `robot.toml`, and
//! checked.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::fields::Stamped;

/// `[[observation.topics]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicSection {
    /// The topic.
    pub topic: String,
    /// Its message type.
    #[serde(rename = "type")]
    pub kind: MessageKind,
    /// The policy's observation elements that it gives, in the message's order; without it, all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elements: Vec<String>,
    /// For `JointState`, the joint of each element; without it, joints have the elements' names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joints: Vec<String>,
    /// For `JointState`, which of its numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<JointField>,
    /// For stamped messages, the number of the message that each element is, by name ([`fields`](super::fields)); without it, all of them
    /// in the message's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
    /// Its publisher is latched (transient local): what it sent before we came is asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub latched: bool,
    /// What counts as its time where neither header nor attachment says.
    #[serde(default)]
    pub stamp: StampChoice,
}

/// Message types of observations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MessageKind {
    /// An array of numbers.
    #[serde(rename = "std_msgs/Float64MultiArray")]
    Float64MultiArray,
    /// Joints by name, with a header stamp.
    #[serde(rename = "sensor_msgs/JointState")]
    JointState,
    /// An inertial measurement unit.
    #[serde(rename = "sensor_msgs/Imu")]
    Imu,
    /// A pose.
    #[serde(rename = "geometry_msgs/PoseStamped")]
    PoseStamped,
    /// A velocity.
    #[serde(rename = "geometry_msgs/TwistStamped")]
    TwistStamped,
}

/// The arrays of a `JointState`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JointField {
    /// `position`.
    #[default]
    Position,
    /// `velocity`.
    Velocity,
    /// `effort`.
    Effort,
}

/// What counts as a message's time where it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StampChoice {
    /// Nothing: the message is refused.
    #[default]
    Required,
    /// When it arrived.
    Arrival,
}

/// Message types of commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandKind {
    /// The action's numbers in the policy's order.
    #[default]
    #[serde(rename = "std_msgs/Float64MultiArray")]
    Float64MultiArray,
    /// A pose; what no joint gives is 0, the orientation then none.
    #[serde(rename = "geometry_msgs/PoseStamped")]
    PoseStamped,
    /// A velocity; what no joint gives is 0.
    #[serde(rename = "geometry_msgs/TwistStamped")]
    TwistStamped,
}

/// `[bus]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusSection {
    /// How topics become keys.
    #[serde(default)]
    pub convention: Convention,
    /// `ROS_DOMAIN_ID`, 0 to 232; for `rmw_zenoh`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub domain: u32,
    /// The name of the ROS node; without it, the robot's. For `rmw_zenoh`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Zenoh's own configuration file (JSON5), relative to this file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zenoh_file: Option<PathBuf>,
    /// Zenoh's own configuration, inline (JSON5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zenoh: Option<String>,
    /// Endpoints to listen on; without any, a free port on loopback.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<String>,
    /// Endpoints to connect to; for `rmw_zenoh` without any and without `listen`, the router on this machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connect: Vec<String>,
    /// Anything put here (a `std_msgs/Empty`) stops the robot; so does the `std_srvs/Trigger` service of this name.
    /// Default `<name>/stop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_topic: Option<String>,
    /// The same for the reset. Default `<name>/reset`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_topic: Option<String>,
    /// Anything put here puts an operator in charge: the robot gets no command until the hand-back. Default
    /// `<name>/takeover`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takeover_topic: Option<String>,
    /// Anything put here hands the robot back, wherever it is then. Default `<name>/handback`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handback_topic: Option<String>,
    /// A `std_srvs/SetBool` service: true resets, false stops. Default `<name>/enable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_service: Option<String>,
    /// A `diagnostic_msgs/DiagnosticArray` here every second. Default `diagnostics`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnostics_topic: Option<String>,
    /// The mode here as a latched `std_msgs/String`, whenever it changes. Default `<name>/mode`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode_topic: Option<String>,
}

/// How topics become keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Convention {
    /// The topic is the key, as zenoh-bridge-ros2dds has it.
    #[default]
    Plain,
    /// The keys, liveliness tokens and attachments of rmw_zenoh: a node of a ROS 2 graph.
    RmwZenoh,
}

/// A topic of observations.
#[derive(Clone, Debug, PartialEq)]
pub struct Topic {
    /// The topic.
    pub topic: String,
    /// How its messages are read.
    pub reading: MessageReading,
    /// What was sent before is asked for.
    pub latched: bool,
}

/// How a message is read.
#[derive(Clone, Debug, PartialEq)]
pub enum MessageReading {
    /// All numbers of a `Float64MultiArray`.
    Array {
        /// How many.
        size: usize,
    },
    /// Joints of a `JointState`, by name.
    Joints {
        /// Their names.
        names: Vec<String>,
        /// Which of their numbers.
        field: JointField,
    },
    /// Numbers of a stamped message.
    Stamped {
        /// Its type.
        kind: Stamped,
        /// The place in the message of each number.
        places: Vec<usize>,
    },
}

/// How a command is written.
#[derive(Clone, Debug, PartialEq)]
pub enum CommandWriting {
    /// All numbers, as a `Float64MultiArray`.
    Array,
    /// As a stamped message.
    Stamped {
        /// Its type.
        kind: Stamped,
        /// `frame_id` of its header.
        frame: String,
        /// The place in the message of each number of the action.
        places: Vec<usize>,
    },
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[cfg(test)]
#[path = "mapping_tests.rs"]
mod tests;
