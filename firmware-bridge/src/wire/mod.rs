//! The frames between host and microcontroller, byte by byte.
//!
//! A frame is a fixed little-endian layout, at most [`MAX_FRAME`] bytes, the same on a serial line, in a UDP
//! datagram and in a zenoh payload (zenoh-pico takes messages under 2 kB). On a serial line it is framed with COBS
//! and ended by a zero byte ([`framing`]). Every field sits at a multiple of its size, so a C struct needs no
//! packing (`include/refrain_wire.h`).
//!
//! # The header, 24 bytes, in every frame
//!
//! | offset | size | field | meaning |
//! | --- | --- | --- | --- |
//! | 0 | u8 | magic | 0xA5 |
//! | 1 | u8 | version | 1 |
//! | 2 | u8 | kind | 1 command, 2 state, 3 heartbeat, 4 fault |
//! | 3 | u8 | joints | n, 1 to 16 |
//! | 4 | u32 | sequence | counts the sender's frames of all kinds, wraps |
//! | 8 | u32 | session | drawn anew by the sender when it starts; not 0 |
//! | 12 | u32 | epoch | the device's count of arming, disarming and faults; the host returns the one it answers |
//! | 16 | u64 | time | sender's clock when sending, µs |
//!
//! The last four bytes of a frame are its CRC-32/ISO-HDLC (the one of Ethernet and zlib; check value 0xCBF43926)
//! over everything before. Magic, version and the place of the CRC stay the same in all versions. Reserved bytes
//! are zero and checked. Floats are finite and checked. A receiver drops a frame that fails any check and counts it.
//!
//! While armed, the device takes only frames of the session that armed it, and each only if its sequence comes after the
//! last one taken: duplicates and frames that were overtaken are refused and do not count as a sign of life. A request to
//! stop is obeyed always.
//!
//! # Command (host to device): one action chunk
//!
//! | offset | size | field | meaning |
//! | --- | --- | --- | --- |
//! | 24 | u32 | chunk | the chunk's number |
//! | 28 | u16 | points | m, 1 to 64, and n·m at most 448 |
//! | 30 | u16 | reserved | 0 |
//! | 32 | u64 | observation | device clock, µs: when the observation was taken |
//! | 40 | u64 | start | device clock, µs: when point 0 is due |
//! | 48 | u64 | valid until | device clock, µs: from here on the device holds |
//! | 56 | u32 | step | µs between points, not 0 |
//! | 60 | u32 | reserved | 0 |
//! | 64 | f32 × n·m | positions | rad (or m), point by point: `[point][joint]` |
//! | 64 + 4nm | u32 | CRC | |
//!
//! # State (device to host)
//!
//! | offset | size | field | meaning |
//! | --- | --- | --- | --- |
//! | 24 | u8 | mode | 0 disarmed, 1 holding, 2 ramping, 3 running, 4 faulted |
//! | 25 | u8 | fault | latched cause, see the fault frame; 0 none |
//! | 26 | u8 | refusal | why the last refused frame was refused; 0 none |
//! | 27 | u8 | torque | 1 motors hold or move, 0 limp |
//! | 28 | u32 | host sequence | the last one accepted |
//! | 32 | u32 | chunk | the last one accepted |
//! | 36 | u32 | bad frames | dropped for framing, CRC or contents |
//! | 40 | u32 | lost frames | gaps in the host's sequence |
//! | 44 | u32 | refused frames | sound frames refused: stale, duplicate, wrong epoch ... |
//! | 48 | u64 | echo | host clock, µs: `time` of the last heartbeat heard; 0 none |
//! | 56 | u64 | echo received | device clock, µs: when that heartbeat came |
//! | 64 | u32 | host session | whom the device obeys; 0 nobody |
//! | 68 | u32 | echo session | who sent that heartbeat; 0 none |
//! | 72 | f32 × n | position | measured, rad |
//! | 72 + 4n | f32 × n | velocity | of the setpoint, rad/s |
//! | 72 + 8n | f32 × n | setpoint | sent to the motors, rad |
//! | 72 + 12n | u32 | CRC | |
//!
//! # Heartbeat (host to device), 32 bytes
//!
//! | offset | size | field | meaning |
//! | --- | --- | --- | --- |
//! | 24 | u8 | request | 0 none, 1 arm, 2 stop |
//! | 25 | u8 × 3 | reserved | 0 |
//! | 28 | u32 | CRC | |
//!
//! # Fault (device to host), 52 bytes: sent when a fault latches
//!
//! | offset | size | field | meaning |
//! | --- | --- | --- | --- |
//! | 24 | u8 | cause | 1 deadman, 2 following error, 3 sensor, 4 driver |
//! | 25 | u8 | joint | 255 when it concerns no single joint |
//! | 26 | u16 | reserved | 0 |
//! | 28 | u32 | count | faults since the device started |
//! | 32 | u64 | at | device clock, µs |
//! | 40 | f32 | value | what was seen, in the limit's unit |
//! | 44 | f32 | limit | what was allowed |
//! | 48 | u32 | CRC | |
//!
//! # A worked example
//!
//! The heartbeat number 7 of session 0x11223344 asks for arming, answering epoch 2, two joints, at 1 s:
//!
//! ```text
//! a5 01 03 02  07 00 00 00  44 33 22 11  02 00 00 00     magic version kind joints, sequence, session, epoch
//! 40 42 0f 00 00 00 00 00                                time 1 000 000 µs
//! 01 00 00 00                                            request arm, reserved
//! 13 bb 46 03                                            CRC 0x0346BB13
//! ```
//!
//! and on a serial line, after COBS:
//!
//! ```text
//! 06 a5 01 03 02 07 01 01 06 44 33 22 11 02 01 01 04 40 42 0f 01 01 01 01 02 01 01 01 05 13 bb 46 03 00
//! ```
//!
//! [`example`] holds these bytes and a command's; a test keeps them true, here and in C.
//!
//! Sources: CRC catalogue <https://reveng.sourceforge.io/crc-catalogue/>; Cheshire and Baker, *Consistent Overhead
//! Byte Stuffing*, 1999.

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

use core::fmt;

pub mod command;
pub mod example;
pub mod fault;
mod field;
pub mod framing;
pub mod header;
pub mod heartbeat;
pub mod state;

pub use command::{Repr as CommandRepr, View as CommandView};
pub use fault::{Cause, Repr as FaultRepr, View as FaultView};
pub use header::{Header, Kind};
pub use heartbeat::{Repr as HeartbeatRepr, Request, View as HeartbeatView};
pub use state::{Mode, Repr as StateRepr, View as StateView};

/// Joints in a frame, at most.
pub const MAX_JOINTS: usize = 16;
/// Points in a command, at most.
pub const MAX_POINTS: usize = 64;
/// Positions in a command (joints times points), at most: 64 points of 7 joints, 28 points of 16.
pub const MAX_VALUES: usize = 448;
/// Bytes of the longest frame, a full command. Under zenoh-pico's 2048-byte batch.
pub const MAX_FRAME: usize = command::frame_len(MAX_VALUES);

/// Why bytes are not a frame, or a frame cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Fewer or more bytes than the frame's kind and counts ask for.
    Length {
        /// Bytes asked for.
        expected: usize,
        /// Bytes there.
        got: usize,
    },
    /// The first byte is not 0xA5.
    Magic(u8),
    /// Another version of the format.
    Version(u8),
    /// The CRC does not match.
    Crc,
    /// Not the kind of frame looked for, or no kind at all.
    Kind(u8),
    /// No joint, more than [`MAX_JOINTS`], or not the number that the values make.
    Joints(u8),
    /// No point, more than [`MAX_POINTS`], or more than [`MAX_VALUES`] values.
    Points(u16),
    /// A step of zero between points.
    Step,
    /// A float is NaN or infinite.
    NonFinite,
    /// A code outside its table (mode, fault, request), or a reserved byte that is not zero.
    Code(u8),
    /// Not a COBS block.
    Framing,
    /// More bytes between two delimiters than any frame has.
    Overrun,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Length { expected, got } => write!(f, "frame length: expected {expected} bytes, got {got}"),
            Self::Magic(got) => write!(f, "frame magic: expected 0xa5, got {got:#04x}"),
            Self::Version(got) => {
                write!(f, "frame version: expected {}, got {got}; update the older end", header::VERSION)
            }
            Self::Crc => f.write_str("frame CRC does not match; the frame was dropped"),
            Self::Kind(got) => write!(f, "frame kind: unexpected {got}"),
            Self::Joints(got) => {
                write!(f, "joints: expected 1 to {MAX_JOINTS}, matching the values, got {got}")
            }
            Self::Points(got) => write!(
                f,
                "points: expected 1 to {MAX_POINTS} with at most {MAX_VALUES} values, got {got}; send fewer points"
            ),
            Self::Step => f.write_str("step: expected at least 1 µs between points, got 0"),
            Self::NonFinite => f.write_str("a float in the frame is NaN or infinite"),
            Self::Code(got) => write!(f, "frame code or reserved byte: unexpected {got}"),
            Self::Framing => f.write_str("bytes between delimiters are not a COBS block"),
            Self::Overrun => f.write_str("more bytes between delimiters than any frame has"),
        }
    }
}

impl core::error::Error for Error {}

#[cfg(test)]
mod tests;
