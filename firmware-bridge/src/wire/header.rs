//! The header and the CRC that every frame has. Layout: [the table](super).

use super::field::{put, u8_at, u32_at, u64_at};
use super::{Error, MAX_JOINTS};
use crc::{CRC_32_ISO_HDLC, Crc, Table};

/// First byte of every frame.
pub const MAGIC: u8 = 0xA5;
/// Version of the format that this crate speaks.
pub const VERSION: u8 = 1;
/// Bytes of the header.
pub const LEN: usize = 24;
/// Bytes of the CRC that ends a frame.
pub const CRC_LEN: usize = 4;

const CRC: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISO_HDLC);

mod offset {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 1;
    pub(super) const KIND: usize = 2;
    pub(super) const JOINTS: usize = 3;
    pub(super) const SEQUENCE: usize = 4;
    pub(super) const SESSION: usize = 8;
    pub(super) const EPOCH: usize = 12;
    pub(super) const TIME: usize = 16;
}

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// One action chunk, to the device.
    Command = 1,
    /// The device's state.
    State = 2,
    /// The host is alive; carries requests.
    Heartbeat = 3,
    /// A fault latched.
    Fault = 4,
}

impl Kind {
    /// The kind of a code, if there is one.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Command),
            2 => Some(Self::State),
            3 => Some(Self::Heartbeat),
            4 => Some(Self::Fault),
            _ => None,
        }
    }
}

/// The fields common to all frames, apart from magic, version and kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Joints of the robot, 1 to [`MAX_JOINTS`].
    pub joints: u8,
    /// The sender's count of frames of all kinds; wraps.
    pub sequence: u32,
    /// Drawn anew by the sender when it starts; not 0.
    pub session: u32,
    /// The device's epoch: its own in its frames, the one answered to in the host's.
    pub epoch: u32,
    /// Sender's clock when sending, µs.
    pub time_us: u64,
}

impl Header {
    /// Reads the header of a frame whose [`kind`] was found sound.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        Self {
            joints: u8_at(bytes, offset::JOINTS),
            sequence: u32_at(bytes, offset::SEQUENCE),
            session: u32_at(bytes, offset::SESSION),
            epoch: u32_at(bytes, offset::EPOCH),
            time_us: u64_at(bytes, offset::TIME),
        }
    }

    /// Writes the header.
    pub(super) fn emit(&self, bytes: &mut [u8], kind: Kind) {
        put(bytes, offset::MAGIC, [MAGIC]);
        put(bytes, offset::VERSION, [VERSION]);
        put(bytes, offset::KIND, [kind as u8]);
        put(bytes, offset::JOINTS, [self.joints]);
        put(bytes, offset::SEQUENCE, self.sequence.to_le_bytes());
        put(bytes, offset::SESSION, self.session.to_le_bytes());
        put(bytes, offset::EPOCH, self.epoch.to_le_bytes());
        put(bytes, offset::TIME, self.time_us.to_le_bytes());
    }

    /// Joints as a length.
    pub fn joint_count(&self) -> usize {
        usize::from(self.joints)
    }

    pub(super) fn check_joints(&self) -> Result<(), Error> {
        if self.joints == 0 || self.joint_count() > MAX_JOINTS {
            return Err(Error::Joints(self.joints));
        }
        Ok(())
    }
}

/// The kind of a frame, after checking what is common to all: length of the header, magic, CRC, version, joints.
///
/// # Errors
/// [`Error::Length`], [`Error::Magic`], [`Error::Crc`], [`Error::Version`], [`Error::Kind`], [`Error::Joints`].
pub fn kind(bytes: &[u8]) -> Result<Kind, Error> {
    let body_len = bytes.len().saturating_sub(CRC_LEN);
    if body_len < LEN {
        return Err(Error::Length { expected: LEN.saturating_add(CRC_LEN), got: bytes.len() });
    }
    if u8_at(bytes, offset::MAGIC) != MAGIC {
        return Err(Error::Magic(u8_at(bytes, offset::MAGIC)));
    }
    if crc(bytes.get(..body_len).unwrap_or(&[])) != u32_at(bytes, body_len) {
        return Err(Error::Crc);
    }
    if u8_at(bytes, offset::VERSION) != VERSION {
        return Err(Error::Version(u8_at(bytes, offset::VERSION)));
    }
    let code = u8_at(bytes, offset::KIND);
    let kind = Kind::from_code(code).ok_or(Error::Kind(code))?;
    Header::parse(bytes).check_joints()?;
    Ok(kind)
}

/// Checks that `bytes` is a sound frame of kind `wanted`; its length is for the caller to check.
pub(super) fn check(bytes: &[u8], wanted: Kind) -> Result<Header, Error> {
    let got = kind(bytes)?;
    if got != wanted {
        return Err(Error::Kind(got as u8));
    }
    Ok(Header::parse(bytes))
}

/// Checks the length of a frame.
pub(super) fn check_len(bytes: &[u8], expected: usize) -> Result<(), Error> {
    if bytes.len() != expected {
        return Err(Error::Length { expected, got: bytes.len() });
    }
    Ok(())
}

/// Checks that reserved bytes are zero.
pub(super) fn check_reserved(bytes: &[u8], at: usize, len: usize) -> Result<(), Error> {
    let range = bytes.get(at..at.saturating_add(len)).unwrap_or(&[]);
    match range.iter().find(|byte| **byte != 0) {
        Some(byte) => Err(Error::Code(*byte)),
        None => Ok(()),
    }
}

/// The first `len` bytes of `buffer`, zeroed, to write a frame into.
pub(super) fn claim(buffer: &mut [u8], len: usize) -> Result<&mut [u8], Error> {
    let got = buffer.len();
    let bytes = buffer.get_mut(..len).ok_or(Error::Length { expected: len, got })?;
    bytes.fill(0);
    Ok(bytes)
}

/// Writes the CRC over a finished frame and gives its length.
pub(super) fn seal(bytes: &mut [u8]) -> usize {
    let body_len = bytes.len().saturating_sub(CRC_LEN);
    let value = crc(bytes.get(..body_len).unwrap_or(&[]));
    put(bytes, body_len, value.to_le_bytes());
    bytes.len()
}

/// CRC-32/ISO-HDLC of `bytes`.
pub fn crc(bytes: &[u8]) -> u32 {
    CRC.checksum(bytes)
}
