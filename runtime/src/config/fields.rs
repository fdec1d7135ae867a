//! Stamped messages that are numbers only after their header, and what their numbers are called.
//!
//! Covariances have no names: no policy of ours looks at them.

use crate::bus::interface::{self, Interface};

/// A message type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamped {
    /// `sensor_msgs/Imu`.
    Imu,
    /// `geometry_msgs/PoseStamped`.
    Pose,
    /// `geometry_msgs/TwistStamped`.
    Twist,
}

/// The named numbers of a message with their places in it.
type Fields = &'static [(&'static str, usize)];

const IMU: Fields = &[
    ("orientation.x", 0),
    ("orientation.y", 1),
    ("orientation.z", 2),
    ("orientation.w", 3),
    ("angular_velocity.x", 13),
    ("angular_velocity.y", 14),
    ("angular_velocity.z", 15),
    ("linear_acceleration.x", 25),
    ("linear_acceleration.y", 26),
    ("linear_acceleration.z", 27),
];
const POSE: Fields = &[
    ("position.x", 0),
    ("position.y", 1),
    ("position.z", 2),
    ("orientation.x", 3),
    ("orientation.y", 4),
    ("orientation.z", 5),
    ("orientation.w", 6),
];
const TWIST: Fields = &[
    ("linear.x", 0),
    ("linear.y", 1),
    ("linear.z", 2),
    ("angular.x", 3),
    ("angular.y", 4),
    ("angular.z", 5),
];

impl Stamped {
    /// Where the orientation of a pose begins; x, y, z, w.
    pub const ORIENTATION: usize = 3;

    /// Its type on the bus.
    pub fn interface(self) -> &'static Interface {
        match self {
            Self::Imu => &interface::IMU,
            Self::Pose => &interface::POSE_STAMPED,
            Self::Twist => &interface::TWIST_STAMPED,
        }
    }

    /// Numbers in the message, named or not.
    pub fn total(self) -> usize {
        match self {
            Self::Imu => 37,
            Self::Pose => 7,
            Self::Twist => 6,
        }
    }

    /// The place of a named number.
    pub fn place(self, name: &str) -> Option<usize> {
        self.fields().iter().find(|(field, _)| *field == name).map(|(_, place)| *place)
    }

    /// The names, in the message's order.
    pub fn names(self) -> Vec<&'static str> {
        self.fields().iter().map(|(name, _)| *name).collect()
    }

    fn fields(self) -> Fields {
        match self {
            Self::Imu => IMU,
            Self::Pose => POSE,
            Self::Twist => TWIST,
        }
    }
}
