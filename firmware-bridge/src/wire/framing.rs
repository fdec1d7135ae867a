//! Frames on a serial line: COBS, ended by a zero byte.
//!
//! COBS removes every zero from a frame, so a zero always means "a frame ends here". After garbage, loss or a start in
//! the middle, the receiver is right again at the next zero: at most one frame that was sent whole is lost. A sender
//! puts a zero in front of its first frame, which closes whatever garbage came before.

use super::{Error, MAX_FRAME};

/// Byte that ends a frame on a serial line.
pub const DELIMITER: u8 = 0;
/// Bytes on the line of the longest frame: one more per 254 begun, and the delimiter.
pub const MAX_ENCODED: usize = encoded_len(MAX_FRAME);

/// Bytes on the line of a frame of `len` bytes, at most.
pub const fn encoded_len(len: usize) -> usize {
    len.saturating_add(len.div_ceil(254)).saturating_add(1)
}

/// Encodes `frame` into the head of `line`, ends it with the delimiter, and gives the bytes used.
///
/// # Errors
/// [`Error::Length`] when `line` is shorter than [`encoded_len`] of the frame.
pub fn encode(frame: &[u8], line: &mut [u8]) -> Result<usize, Error> {
    let too_short = Error::Length { expected: encoded_len(frame.len()), got: line.len() };
    let used = cobs::try_encode(frame, line).map_err(|_| too_short)?;
    *line.get_mut(used).ok_or(too_short)? = DELIMITER;
    Ok(used.saturating_add(1))
}

/// Finds frames in a stream of bytes.
#[derive(Clone, Debug)]
pub struct Deframer {
    buffer: [u8; MAX_ENCODED],
    len: usize,
    overrun: bool,
}

impl Default for Deframer {
    fn default() -> Self {
        Self::new()
    }
}

impl Deframer {
    /// Starts with nothing heard.
    pub const fn new() -> Self {
        Self { buffer: [0; MAX_ENCODED], len: 0, overrun: false }
    }

    /// Takes one byte. At the end of a frame, gives its bytes, unchecked apart from COBS; an empty one is skipped.
    ///
    /// # Errors
    /// [`Error::Framing`] or [`Error::Overrun`] at the delimiter that ends the bad bytes; the next frame is not
    /// affected.
    pub fn push(&mut self, byte: u8) -> Option<Result<&[u8], Error>> {
        if byte != DELIMITER {
            match self.buffer.get_mut(self.len) {
                Some(slot) => {
                    *slot = byte;
                    self.len = self.len.saturating_add(1);
                }
                None => self.overrun = true,
            }
            return None;
        }
        let (len, overrun) = (self.len, self.overrun);
        self.len = 0;
        self.overrun = false;
        if overrun {
            return Some(Err(Error::Overrun));
        }
        let block = self.buffer.get_mut(..len)?;
        if block.is_empty() {
            return None;
        }
        match cobs::decode_in_place(block) {
            Ok(decoded) => Some(self.buffer.get(..decoded).ok_or(Error::Framing)),
            Err(_) => Some(Err(Error::Framing)),
        }
    }
}
