//! How a device is set up: joints, limits and times. Nothing has an unlimited default.

use super::motion::JointLimits;
use crate::wire::MAX_JOINTS;

/// What a latched fault does to the motors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFault {
    /// Brake and hold. The default choice: torque-off lets an arm fall.
    Hold,
    /// Torque off.
    Limp,
}

/// How a device is set up. All times in µs of its own clock.
#[derive(Clone, Copy, Debug)]
pub struct DeviceConfig {
    /// Joints, 1 to [`MAX_JOINTS`].
    pub joints: u8,
    /// Limits of each joint; those after the last are not looked at.
    pub limits: [JointLimits; MAX_JOINTS],
    /// The control period. [`Device::tick`](super::Device::tick) moves the setpoint by one such period, however late it is called.
    pub tick_us: u32,
    /// Time between states.
    pub state_period_us: u32,
    /// An armed device that hears nothing for longer than this is Faulted.
    pub deadman_us: u64,
    /// A command may not be valid for longer than this from its arrival.
    pub max_validity_us: u64,
    /// A command's observation may not be older than this on arrival.
    pub max_observation_age_us: u64,
    /// An observation may lie this far in the future: what the host's estimate of this clock may be wrong by.
    pub clock_slack_us: u64,
    /// Time over which the speed limit rises from 0 after standing still.
    pub ramp_us: u64,
    /// What a latched fault does to the motors.
    pub after_fault: AfterFault,
}

impl DeviceConfig {
    /// Whether joints, limits and times can be run with.
    pub fn is_sound(&self) -> bool {
        let joints = usize::from(self.joints);
        let limits = self.limits.get(..joints).unwrap_or(&[]);
        !limits.is_empty()
            && limits.iter().all(JointLimits::is_sound)
            && self.tick_us > 0
            && self.state_period_us > 0
            && self.deadman_us > 0
    }
}
