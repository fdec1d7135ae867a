//! The fault: what latched, where and by how much. Layout: [the table](super).

use super::Error;
use super::field::{f32_at, put, u8_at, u32_at, u64_at};
use super::header::{self, CRC_LEN, Header, Kind};

mod offset {
    pub(super) const CAUSE: usize = 24;
    pub(super) const JOINT: usize = 25;
    pub(super) const RESERVED: usize = 26;
    pub(super) const COUNT: usize = 28;
    pub(super) const AT: usize = 32;
    pub(super) const VALUE: usize = 40;
    pub(super) const LIMIT: usize = 44;
    pub(super) const END: usize = 48;
}

/// Bytes of a fault.
pub const FRAME_LEN: usize = offset::END + CRC_LEN;
/// The joint of a fault that concerns no single joint.
pub const NO_JOINT: u8 = 255;

/// What latched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// Nothing was heard from the host for the deadman time. Value and limit in seconds.
    Deadman = 1,
    /// A joint is farther from its setpoint than allowed. Value and limit in rad.
    FollowingError = 2,
    /// A measured position is not finite.
    Sensor = 3,
    /// The firmware's motor driver reported it (over-temperature, over-current, supply).
    Driver = 4,
}

impl Cause {
    /// The cause of a code, if there is one.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Deadman),
            2 => Some(Self::FollowingError),
            3 => Some(Self::Sensor),
            4 => Some(Self::Driver),
            _ => None,
        }
    }
}

/// A checked view of a fault's bytes.
#[derive(Clone, Copy, Debug)]
pub struct View<T: AsRef<[u8]>> {
    buffer: T,
    cause: Cause,
}

impl<T: AsRef<[u8]>> View<T> {
    /// Checks CRC, header, length, cause, reserved bytes and that the floats are finite.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn new_checked(buffer: T) -> Result<Self, Error> {
        let bytes = buffer.as_ref();
        header::check(bytes, Kind::Fault)?;
        header::check_len(bytes, FRAME_LEN)?;
        header::check_reserved(bytes, offset::RESERVED, 2)?;
        let code = u8_at(bytes, offset::CAUSE);
        let cause = Cause::from_code(code).ok_or(Error::Code(code))?;
        if !f32_at(bytes, offset::VALUE).is_finite() || !f32_at(bytes, offset::LIMIT).is_finite() {
            return Err(Error::NonFinite);
        }
        Ok(Self { buffer, cause })
    }

    /// The header.
    pub fn header(&self) -> Header {
        Header::parse(self.buffer.as_ref())
    }

    /// What latched.
    pub fn cause(&self) -> Cause {
        self.cause
    }
}

/// A fault, decoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repr {
    /// The header.
    pub header: Header,
    /// What latched.
    pub cause: Cause,
    /// The joint, or [`NO_JOINT`].
    pub joint: u8,
    /// Faults since the device started.
    pub count: u32,
    /// When, µs, device clock.
    pub at_us: u64,
    /// What was seen, in the limit's unit.
    pub value: f32,
    /// What was allowed.
    pub limit: f32,
}

impl Repr {
    /// Decodes a checked view.
    pub fn parse<T: AsRef<[u8]>>(view: &View<T>) -> Self {
        let bytes = view.buffer.as_ref();
        Self {
            header: view.header(),
            cause: view.cause(),
            joint: u8_at(bytes, offset::JOINT),
            count: u32_at(bytes, offset::COUNT),
            at_us: u64_at(bytes, offset::AT),
            value: f32_at(bytes, offset::VALUE),
            limit: f32_at(bytes, offset::LIMIT),
        }
    }

    /// Writes the frame into the head of `buffer` and gives its length in bytes.
    ///
    /// # Errors
    /// The joints are out of range, a float is not finite, or the buffer is too short.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<usize, Error> {
        self.header.check_joints()?;
        if !self.value.is_finite() || !self.limit.is_finite() {
            return Err(Error::NonFinite);
        }
        let bytes = header::claim(buffer, FRAME_LEN)?;
        self.header.emit(bytes, Kind::Fault);
        put(bytes, offset::CAUSE, [self.cause as u8]);
        put(bytes, offset::JOINT, [self.joint]);
        put(bytes, offset::COUNT, self.count.to_le_bytes());
        put(bytes, offset::AT, self.at_us.to_le_bytes());
        put(bytes, offset::VALUE, self.value.to_le_bytes());
        put(bytes, offset::LIMIT, self.limit.to_le_bytes());
        Ok(header::seal(bytes))
    }
}
