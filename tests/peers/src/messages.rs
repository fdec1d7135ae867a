//! Messages as their definitions have them; hiroz computes the type hashes from these fields.

use hiroz::entity::{TypeHash, TypeInfo};
use hiroz::msg::{SerdeCdrSerdes, ZMessage, ZService};
use hiroz::{MessageTypeInfo, ServiceTypeInfo};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, Serialize, Deserialize, MessageTypeInfo)]
#[ros_msg(type_name = "builtin_interfaces/msg/Time")]
pub struct Time {
    pub sec: i32,
    pub nanosec: u32,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, MessageTypeInfo)]
#[ros_msg(type_name = "builtin_interfaces/msg/Duration")]
pub struct Duration {
    pub sec: i32,
    pub nanosec: u32,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, MessageTypeInfo)]
#[ros_msg(type_name = "std_msgs/msg/Header")]
pub struct Header {
    pub stamp: Time,
    pub frame_id: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, MessageTypeInfo)]
#[ros_msg(type_name = "std_msgs/msg/String")]
pub struct Text {
    pub data: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, MessageTypeInfo)]
#[ros_msg(type_name = "sensor_msgs/msg/JointState")]
pub struct JointState {
    pub header: Header,
    pub name: Vec<String>,
    pub position: Vec<f64>,
    pub velocity: Vec<f64>,
    pub effort: Vec<f64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, MessageTypeInfo)]
#[ros_msg(type_name = "trajectory_msgs/msg/JointTrajectoryPoint")]
pub struct JointTrajectoryPoint {
    pub positions: Vec<f64>,
    pub velocities: Vec<f64>,
    pub accelerations: Vec<f64>,
    pub effort: Vec<f64>,
    pub time_from_start: Duration,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, MessageTypeInfo)]
#[ros_msg(type_name = "trajectory_msgs/msg/JointTrajectory")]
pub struct JointTrajectory {
    pub header: Header,
    pub joint_names: Vec<String>,
    pub points: Vec<JointTrajectoryPoint>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, MessageTypeInfo)]
#[ros_msg(type_name = "std_srvs/srv/Trigger_Request")]
pub struct TriggerRequest {
    pub structure_needs_at_least_one_member: u8,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, MessageTypeInfo)]
#[ros_msg(type_name = "std_srvs/srv/Trigger_Response")]
pub struct TriggerResponse {
    pub success: bool,
    pub message: String,
}

macro_rules! messages {
    ($($name:ident),*) => {
        $(
            impl ZMessage for $name {
                type Serdes = SerdeCdrSerdes<Self>;
            }

            #[cfg(feature = "dds")]
            impl ros2_client::Message for $name {}
        )*
    };
}

messages!(
    Time,
    Duration,
    Header,
    Text,
    JointState,
    JointTrajectoryPoint,
    JointTrajectory,
    TriggerRequest,
    TriggerResponse
);

/// `std_srvs/Trigger`.
pub struct Trigger;

impl ZService for Trigger {
    type Request = TriggerRequest;
    type Response = TriggerResponse;
}

impl ServiceTypeInfo for Trigger {
    fn service_type_info() -> TypeInfo {
        let hash = "RIHS01_eeff2cd6fa5ad9d27cdf4dec64818317839b62f212a91e6b5304b634b2062c5f";
        TypeInfo::new("std_srvs::srv::dds_::Trigger_", TypeHash::from_rihs_string(hash).expect("a hash"))
    }
}

impl JointTrajectory {
    /// What joint_trajectory_controller asks of a message.
    pub fn check(&self, joints: &[String]) -> Result<(), String> {
        let mut before = 0;
        for point in &self.points {
            let time = &point.time_from_start;
            let at = i64::from(time.sec) * 1_000_000_000 + i64::from(time.nanosec);
            if at <= before || point.positions.len() != joints.len() {
                return Err(format!("{self:?}"));
            }
            before = at;
        }
        let known = self.joint_names == joints && !self.points.is_empty();
        if known { Ok(()) } else { Err(format!("{joints:?} expected, got {self:?}")) }
    }
}

/// A measured state of these joints.
pub fn joint_state(joints: &[String]) -> JointState {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let stamp = Time { sec: now.as_secs() as i32, nanosec: now.subsec_nanos() };
    JointState {
        header: Header { stamp, frame_id: String::new() },
        name: joints.to_vec(),
        position: vec![100.0; joints.len()],
        velocity: Vec::new(),
        effort: Vec::new(),
    }
}
