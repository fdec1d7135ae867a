//! The heartbeat: the host is alive, and what it asks for. Layout: [the table](super).

use super::Error;
use super::field::{put, u8_at};
use super::header::{self, CRC_LEN, Header, Kind};

mod offset {
    pub(super) const REQUEST: usize = 24;
    pub(super) const RESERVED: usize = 25;
    pub(super) const END: usize = 28;
}

/// Bytes of a heartbeat.
pub const FRAME_LEN: usize = offset::END + CRC_LEN;

/// What the host asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Request {
    /// Nothing: only a sign of life.
    None = 0,
    /// Arm, clearing a latched fault. Counts only for the epoch in the header.
    Arm = 1,
    /// Stop and disarm. Obeyed from any session, in any epoch.
    Stop = 2,
}

impl Request {
    /// The request of a code, if there is one.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Arm),
            2 => Some(Self::Stop),
            _ => None,
        }
    }
}

/// A checked view of a heartbeat's bytes.
#[derive(Clone, Copy, Debug)]
pub struct View<T: AsRef<[u8]>> {
    buffer: T,
    request: Request,
}

impl<T: AsRef<[u8]>> View<T> {
    /// Checks CRC, header, length, request and reserved bytes.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn new_checked(buffer: T) -> Result<Self, Error> {
        let bytes = buffer.as_ref();
        header::check(bytes, Kind::Heartbeat)?;
        header::check_len(bytes, FRAME_LEN)?;
        header::check_reserved(bytes, offset::RESERVED, 3)?;
        let code = u8_at(bytes, offset::REQUEST);
        let request = Request::from_code(code).ok_or(Error::Code(code))?;
        Ok(Self { buffer, request })
    }

    /// The header.
    pub fn header(&self) -> Header {
        Header::parse(self.buffer.as_ref())
    }

    /// What the host asks for.
    pub fn request(&self) -> Request {
        self.request
    }
}

/// A heartbeat, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// The header.
    pub header: Header,
    /// What the host asks for.
    pub request: Request,
}

impl Repr {
    /// Decodes a checked view.
    pub fn parse<T: AsRef<[u8]>>(view: &View<T>) -> Self {
        Self { header: view.header(), request: view.request() }
    }

    /// Writes the frame into the head of `buffer` and gives its length in bytes.
    ///
    /// # Errors
    /// The joints are out of range or the buffer is too short.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<usize, Error> {
        self.header.check_joints()?;
        let bytes = header::claim(buffer, FRAME_LEN)?;
        self.header.emit(bytes, Kind::Heartbeat);
        put(bytes, offset::REQUEST, [self.request as u8]);
        Ok(header::seal(bytes))
    }
}
