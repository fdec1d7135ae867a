//! Faults on purpose, in virtual time and with seeds: the proofs that the numbers in the documentation come from.
//!
//! - [`corruption`]: millions of corrupted frames, none accepted.
//! - [`noise`]: a line that loses, corrupts, repeats, reorders and delays.
//! - [`world`]: host, line, device and motors in one virtual time.
//! - [`table`]: the fault table.
//! - `servos` (feature `servo`): Feetech and Dynamixel servos, byte by byte.
//!
//! Not for a robot: nothing here touches a port. The simulated microcontroller puts [`noise`] on its own line.

pub mod corruption;
pub mod noise;
#[cfg(feature = "servo")]
pub mod servos;
pub mod table;
pub mod world;
