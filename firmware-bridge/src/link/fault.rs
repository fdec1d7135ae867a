//! What a device latches: the cause of a fault, where and when it was, and the number that was too large.

use crate::wire::fault::NO_JOINT;
use crate::wire::{Cause, Error, FaultRepr, Header};

/// A latched fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) cause: Cause,
    joint: u8,
    at_us: u64,
    value: f32,
    limit: f32,
}

impl Fault {
    /// The motor driver complained.
    pub(super) fn driver(at_us: u64, joint: u8) -> Self {
        Self { cause: Cause::Driver, joint, at_us, value: 0.0, limit: 0.0 }
    }

    /// A joint's position is not known.
    pub(super) fn sensor(at_us: u64, joint: u8) -> Self {
        Self { cause: Cause::Sensor, joint, at_us, value: 0.0, limit: 0.0 }
    }

    /// The host was silent for longer than the deadman time; in seconds on the wire.
    pub(super) fn deadman(at_us: u64, silent_us: u64, limit_us: u64) -> Self {
        let (value, limit) = (silent_us as f32 * 1e-6, limit_us as f32 * 1e-6);
        Self { cause: Cause::Deadman, joint: NO_JOINT, at_us, value, limit }
    }

    /// A joint is too far from its setpoint, rad.
    pub(super) fn following(at_us: u64, joint: u8, value: f32, limit: f32) -> Self {
        Self { cause: Cause::FollowingError, joint, at_us, value, limit }
    }

    /// Writes the frame that tells of it; `count` faults were latched so far.
    pub(super) fn emit(self, header: Header, count: u32, buffer: &mut [u8]) -> Result<usize, Error> {
        let Self { cause, joint, at_us, value, limit } = self;
        FaultRepr { header, cause, joint, count, at_us, value, limit }.emit(buffer)
    }
}
