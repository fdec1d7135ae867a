//! Arms on a servo bus: Feetech STS3215 (SO-100, SO-101) and Dynamixel X with protocol 2, without a microcontroller.
//!
//! - [`calibration`]: `arm.toml`, which servo is which joint, where its zero is, its limits.
//! - [`bus`]: positions in, goals and torque out, radians outside, ticks on the wire (rustypot).
//! - [`arm`]: the reference controller of [`link`](crate::link::device) on such a bus, as a [`Port`](crate::port::Port):
//!   the bridge talks to it as to a microcontroller, with the same limits, deadman, ramp and latched faults.
//!
//! What this cannot do: a servo keeps its last goal when this process is killed. A microcontroller, or a Dynamixel's own
//! bus watchdog, is what holds then.

pub mod arm;
pub mod bus;
pub mod calibration;

pub use arm::Arm;
pub use bus::{BusError, Model, ServoBus};
pub use calibration::{Calibration, CalibrationError};
