//! SLCAN: a CAN adapter on a serial line, in text, as LAWICEL's CAN232 and its kin speak it.
//!
//! Standard data frames only, without timestamps: `t`, three hexadecimal digits of the identifier, one of the length, two
//! for each byte, a carriage return. What is none of these (acknowledgements, errors, other frames) is skipped. Source:
//! LAWICEL, *CAN232 manual*, 2008.

use super::PortError;
use super::is_pause;
use embedded_can::{Frame, Id, StandardId};
use serialport::SerialPort;
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

const END: u8 = b'\r';
/// Longest line: a frame with a timestamp, which is skipped.
const LONGEST: usize = 32;
/// A reading of the line waits at most this long.
const TIMEOUT: Duration = Duration::from_millis(1);
/// Frames kept until they are asked for.
const WAITING: usize = 1024;

/// A data frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlcanFrame {
    id: StandardId,
    bytes: [u8; 8],
    len: usize,
}

/// An adapter.
pub struct Slcan {
    port: Box<dyn SerialPort>,
    line: Vec<u8>,
    frames: VecDeque<SlcanFrame>,
}

/// The adapter's line failed.
#[derive(Debug, thiserror::Error)]
#[error("SLCAN: {0}")]
pub struct SlcanError(#[from] io::Error);

impl embedded_can::Error for SlcanError {
    fn kind(&self) -> embedded_can::ErrorKind {
        embedded_can::ErrorKind::Other
    }
}

impl Slcan {
    /// Opens an adapter's serial device and its channel, at 1 Mbit/s.
    ///
    /// # Errors
    /// [`PortError::Open`].
    pub fn open(path: &str, baud: u32) -> Result<Self, PortError> {
        let failed = |source: io::Error| PortError::Open { name: path.into(), source };
        let port = serialport::new(path, baud).open().map_err(|error| failed(error.into()))?;
        Self::on(port).map_err(failed)
    }

    /// On a serial line that is open: closes the channel, sets 1 Mbit/s, opens it.
    ///
    /// # Errors
    /// The line does not take it.
    pub fn on(mut port: Box<dyn SerialPort>) -> io::Result<Self> {
        port.set_timeout(TIMEOUT)?;
        port.write_all(b"C\rS8\rO\r")?;
        Ok(Self { port, line: Vec::with_capacity(LONGEST), frames: VecDeque::new() })
    }

    fn take(&mut self, byte: u8) {
        if byte != END {
            if self.line.len() < LONGEST {
                self.line.push(byte);
            }
            return;
        }
        if let Some(frame) = SlcanFrame::parse(&self.line) {
            if self.frames.len() == WAITING {
                self.frames.pop_front();
            }
            self.frames.push_back(frame);
        }
        self.line.clear();
    }
}

impl embedded_can::nb::Can for Slcan {
    type Frame = SlcanFrame;
    type Error = SlcanError;

    fn transmit(&mut self, frame: &SlcanFrame) -> nb::Result<Option<SlcanFrame>, SlcanError> {
        match self.port.write_all(&frame.line()) {
            Ok(()) => Ok(None),
            Err(error) if is_pause(&error) => Err(nb::Error::WouldBlock),
            Err(error) => Err(nb::Error::Other(error.into())),
        }
    }

    fn receive(&mut self) -> nb::Result<SlcanFrame, SlcanError> {
        if let Some(frame) = self.frames.pop_front() {
            return Ok(frame);
        }
        let mut bytes = [0; 512];
        match self.port.read(&mut bytes) {
            Ok(0) => return Err(nb::Error::Other(io::Error::from(io::ErrorKind::UnexpectedEof).into())),
            Ok(count) => bytes[..count].iter().for_each(|byte| self.take(*byte)),
            Err(error) if is_pause(&error) => {}
            Err(error) => return Err(nb::Error::Other(error.into())),
        }
        self.frames.pop_front().ok_or(nb::Error::WouldBlock)
    }
}

impl SlcanFrame {
    /// As a line of text, with its end.
    pub fn line(&self) -> Vec<u8> {
        let mut line = format!("t{:03X}{}", self.id.as_raw(), self.len);
        for byte in self.data() {
            line.push_str(&format!("{byte:02X}"));
        }
        line.push('\r');
        line.into_bytes()
    }

    /// From a line of text without its end.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(line).ok()?.strip_prefix('t')?;
        let digits = |from: usize, to: usize| {
            let digits = text.get(from..to)?;
            let sound = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            sound.then(|| u16::from_str_radix(digits, 16).ok())?
        };
        let (id, len) = (StandardId::new(digits(0, 3)?)?, usize::from(digits(3, 4)?));
        if len > 8 || text.len() != 4 + 2 * len {
            return None;
        }
        let mut bytes = [0; 8];
        for (index, byte) in bytes[..len].iter_mut().enumerate() {
            *byte = u8::try_from(digits(4 + 2 * index, 6 + 2 * index)?).ok()?;
        }
        Some(Self { id, bytes, len })
    }
}

impl Frame for SlcanFrame {
    fn new(id: impl Into<Id>, data: &[u8]) -> Option<Self> {
        let Id::Standard(id) = id.into() else { return None };
        let mut bytes = [0; 8];
        bytes.get_mut(..data.len())?.copy_from_slice(data);
        Some(Self { id, bytes, len: data.len() })
    }

    fn new_remote(_: impl Into<Id>, _: usize) -> Option<Self> {
        None
    }

    fn is_extended(&self) -> bool {
        false
    }

    fn is_remote_frame(&self) -> bool {
        false
    }

    fn id(&self) -> Id {
        Id::Standard(self.id)
    }

    fn dlc(&self) -> usize {
        self.len
    }

    fn data(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_as_the_manual_has_it() {
        let frame = SlcanFrame::new(StandardId::new(0x100).unwrap(), &[0x11, 0x22]).unwrap();
        assert_eq!(frame.line(), b"t10021122\r");
        assert_eq!(SlcanFrame::parse(b"t10021122"), Some(frame));
        for none in [
            &b"t1002112"[..],
            b"t100211223344",
            b"T000001001",
            b"z",
            b"\x07",
            b"t80011",
            b"t1009",
            b"t10+111",
        ] {
            assert_eq!(SlcanFrame::parse(none), None, "{none:?}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_refused_or_comes_back(line in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Some(frame) = SlcanFrame::parse(&line) {
                prop_assert_eq!(frame.line().to_ascii_lowercase(), [&line[..], b"\r"].concat().to_ascii_lowercase());
            }
        }
    }
}
