//! What each end of the wire does with the frames: state machines without I/O, clock or heap.
//!
//! - [`device`]: the microcontroller's end, a reference controller from frames to motor setpoints.
//! - [`host`]: the robot computer's end: arming, heartbeats, the device's clock, chunks into frames.
//! - [`setup`], [`motion`], [`trajectory`], [`clock`], `fault`: what they are made of.
//!
//! Bytes and time come in as arguments (µs of the owner's monotonic clock), bytes go out into buffers. The same code
//! runs in firmware, in the simulated microcontroller and in virtual time in the fault table.
//!
//! How the ends stay safe together:
//!
//! - The **session** tells a restarted host from the one that armed; the **epoch** tells an armed device from the same
//!   device after a fault, a stop or a reset. A command counts only for the session that armed and the epoch that this
//!   arming began, so nothing that was under way before can move the robot after.
//! - A request to arm names the epoch it was made for. A duplicate or delayed one does nothing.
//! - The host turns its times into the device's before sending, from an estimate whose error it knows; the device
//!   compares with its own clock only, and bounds how far ahead a command may reach.

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub mod clock;
pub mod device;
mod fault;
pub mod host;
pub mod motion;
pub mod setup;
pub mod trajectory;

pub use device::Device;
pub use host::{Chunk, Host, HostConfig, Link};
pub use motion::JointLimits;
pub use setup::{AfterFault, DeviceConfig};

/// Whether `sequence` comes after `last` in a counter that wraps; gives how many were skipped between.
pub(crate) fn skipped(last: u32, sequence: u32) -> Option<u32> {
    let ahead = sequence.wrapping_sub(last);
    if ahead == 0 || ahead > u32::MAX / 2 { None } else { Some(ahead.saturating_sub(1)) }
}

#[cfg(test)]
mod tests;
