//! `arm.toml`: which servo is which joint, where its zero is, which way it turns, and its limits.
//!
//! Everything is required but the direction; unknown keys are refused, and all that is wrong is reported at once.

use super::bus::{Model, TICKS_PER_TURN};
use crate::link::{AfterFault, DeviceConfig, JointLimits};
use crate::wire::MAX_JOINTS;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Time over which the speed limit rises from 0 after standing still, µs.
const RAMP_US: u64 = 300_000;
/// Time between states, µs.
const STATE_PERIOD_US: u32 = 20_000;
/// What the host's estimate of the arm's clock may be wrong by, µs.
const CLOCK_SLACK_US: u64 = 20_000;

/// The content of `arm.toml`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// The kind of servo.
    pub model: Model,
    /// Control ticks per second, 10 to 200.
    pub rate_hz: u32,
    /// An arm that hears nothing from its host for longer than this latches a fault, ms.
    pub deadman_ms: u32,
    /// Whether a latched fault turns the torque off; otherwise the arm holds. An arm without torque falls.
    pub limp_after_fault: bool,
    /// One per joint, in the order of the actions.
    pub joints: Vec<ServoJoint>,
}

/// A joint.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServoJoint {
    /// The joint's name, for people.
    pub name: String,
    /// The servo's identifier on the bus.
    pub id: u8,
    /// Ticks at 0 rad.
    pub zero: i32,
    /// More ticks are fewer radians.
    #[serde(default)]
    pub reversed: bool,
    /// Lowest and highest position, rad.
    pub position: [f32; 2],
    /// Highest speed, rad/s.
    pub velocity: f32,
    /// Highest acceleration, rad/s².
    pub acceleration: f32,
    /// Farthest that it may be from its setpoint, rad.
    pub following_error: f32,
}

/// Why a calibration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not TOML, misses a key, or has one that is not known.
    #[error("arm.toml: {0}")]
    Parse(#[from] toml::de::Error),
    /// It says something that cannot be.
    #[error("arm.toml has {} problem(s):\n  {}", .0.len(), .0.join("\n  "))]
    Problems(Vec<String>),
}

impl Calibration {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`CalibrationError`], all problems at once.
    pub fn load(path: &Path) -> Result<Self, CalibrationError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| CalibrationError::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// Reads and checks a file's text.
    ///
    /// # Errors
    /// [`CalibrationError`], all problems at once.
    pub fn parse(text: &str) -> Result<Self, CalibrationError> {
        let calibration: Self = toml::from_str(text)?;
        let problems = calibration.problems();
        if problems.is_empty() { Ok(calibration) } else { Err(CalibrationError::Problems(problems)) }
    }

    /// How the reference controller is set up for this arm.
    pub fn device(&self) -> DeviceConfig {
        let mut limits = [JointLimits {
            position_min: 0.0,
            position_max: 0.0,
            velocity: 0.0,
            acceleration: 0.0,
            following_error: 0.0,
        }; MAX_JOINTS];
        for (slot, joint) in limits.iter_mut().zip(&self.joints) {
            *slot = joint.limits();
        }
        let deadman_us = u64::from(self.deadman_ms) * 1000;
        DeviceConfig {
            joints: self.joints.len() as u8,
            limits,
            tick_us: 1_000_000 / self.rate_hz.max(1),
            state_period_us: STATE_PERIOD_US,
            deadman_us,
            max_validity_us: 2_000_000,
            max_observation_age_us: 2_000_000,
            clock_slack_us: CLOCK_SLACK_US,
            ramp_us: RAMP_US,
            after_fault: if self.limp_after_fault { AfterFault::Limp } else { AfterFault::Hold },
        }
    }

    fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        if !(10..=200).contains(&self.rate_hz) {
            found.push(format!("rate_hz: expected 10 to 200, got {}", self.rate_hz));
        }
        if !(20..=5000).contains(&self.deadman_ms) {
            found.push(format!("deadman_ms: expected 20 to 5000, got {}", self.deadman_ms));
        }
        if self.joints.is_empty() || self.joints.len() > MAX_JOINTS {
            found.push(format!("joints: expected 1 to {MAX_JOINTS}, got {}", self.joints.len()));
        }
        for (i, joint) in self.joints.iter().enumerate() {
            let key = format!("joints {:?}", joint.name);
            if joint.id > 252 {
                found.push(format!("{key}.id: expected 0 to 252, got {}", joint.id));
            }
            if let Some(other) = self.joints[..i].iter().find(|other| other.id == joint.id) {
                found.push(format!("{key}.id: {} is {:?}'s already", joint.id, other.name));
            }
            if !joint.limits().is_sound() {
                found.push(format!(
                    "{key}: expected position [low, high] with low < high, and velocity, acceleration and \
                     following_error above 0, all finite"
                ));
                continue;
            }
            let turn = 0..TICKS_PER_TURN;
            let ends = joint.position.map(|end| joint.ticks(end));
            if !turn.contains(&joint.zero) || !ends.iter().all(|end| turn.contains(end)) {
                found.push(format!(
                    "{key}: zero {} and position limits (ticks {} and {}) must lie in one turn, 0 to {}; \
                     mount the horn anew or narrow the limits",
                    joint.zero,
                    ends[0],
                    ends[1],
                    TICKS_PER_TURN - 1
                ));
            }
        }
        found
    }
}

impl ServoJoint {
    /// Where a servo stands that reads so many ticks, rad.
    pub fn radians(&self, ticks: i32) -> f32 {
        let turns = f64::from(ticks - self.zero) / f64::from(TICKS_PER_TURN);
        (turns * std::f64::consts::TAU) as f32 * self.sign()
    }

    /// The goal for a position, ticks.
    pub fn ticks(&self, radians: f32) -> i32 {
        let turns = f64::from(radians * self.sign()) / std::f64::consts::TAU;
        self.zero.saturating_add((turns * f64::from(TICKS_PER_TURN)).round() as i32)
    }

    fn sign(&self) -> f32 {
        if self.reversed { -1.0 } else { 1.0 }
    }

    fn limits(&self) -> JointLimits {
        JointLimits {
            position_min: self.position[0],
            position_max: self.position[1],
            velocity: self.velocity,
            acceleration: self.acceleration,
            following_error: self.following_error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARM: &str = include_str!("../../../examples/so101/arm.toml");

    #[test]
    fn the_examples_arm_is_sound_and_comes_back() {
        let arm = Calibration::parse(ARM).unwrap();
        assert!(arm.device().is_sound());
        for joint in &arm.joints {
            for ticks in [joint.ticks(joint.position[0]), joint.zero, joint.ticks(joint.position[1])] {
                assert_eq!(joint.ticks(joint.radians(ticks)), ticks, "{}", joint.name);
            }
        }
        let reversed = ServoJoint { reversed: true, zero: 2000, ..arm.joints[0].clone() };
        assert_eq!(reversed.ticks(std::f32::consts::FRAC_PI_2), 2000 - 1024);
        assert!((reversed.radians(976) - std::f32::consts::FRAC_PI_2).abs() < 1e-6);
    }

    #[test]
    fn mistakes_are_named_all_at_once() {
        let mut arm = Calibration::parse(ARM).unwrap();
        arm.rate_hz = 1000;
        arm.deadman_ms = 0;
        arm.joints[1].id = arm.joints[0].id;
        arm.joints[2].velocity = f32::NAN;
        arm.joints[3].zero = 5000;
        let found = arm.problems();
        assert_eq!(found.len(), 5, "{found:#?}");
        for (problem, start) in found.iter().zip(["rate_hz", "deadman_ms"]) {
            assert!(problem.starts_with(start), "{problem}");
        }
        assert!(Calibration::parse(&ARM.replace("zero", "zeros")).unwrap_err().to_string().contains("zeros"));
    }
}
