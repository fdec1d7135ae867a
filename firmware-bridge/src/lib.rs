//! Carries actions to a microcontroller and its state back.
//!
//! - [`wire`]: the frames, byte by byte. Shared by host and microcontroller.
//! - [`link`]: what each end does with them: a host and a device state machine without I/O.
//!
//! With the feature `std`:
//!
//! - [`port`]: serial lines and UDP. [`bridge`]: a host on a port, chunks in and states out.
//! - [`rehearsal`]: faults in virtual time, the fault table.
//! - [`servo`] (feature `servo`): arms on Feetech and Dynamixel buses, with the same controller.
//! - The binaries `refrain-bridge` (feature `zenoh`), `refrain-mcu-sim` and `refrain-servo-sim`: a simulated
//!   microcontroller, and simulated servos, behind a pseudo-terminal.
//!
//! `wire` and `link` are `no_std`, allocate nothing, hold no clock (time is an argument) and have no panicking path of their
//! own: indexing, unwrapping and unchecked integer arithmetic are denied by lints. Firmware written in Rust
//! compiles these two modules; firmware in C takes `include/refrain_wire.h` and the tables in [`wire`].
//!
//! What is not here: any policy. Zenoh is in the bridge's binary only.

#![cfg_attr(not(any(test, feature = "std")), no_std)]

#[cfg(feature = "std")]
pub mod bridge;
#[cfg(feature = "std")]
pub mod clock;
pub mod link;
#[cfg(feature = "std")]
pub mod port;
#[cfg(feature = "std")]
pub mod rehearsal;
#[cfg(feature = "servo")]
pub mod servo;
pub mod wire;
