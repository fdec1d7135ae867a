//! A serial line: frames in COBS, ended by a zero byte.

use super::{Found, Port, PortError, is_pause};
use crate::wire::framing::{DELIMITER, Deframer, MAX_ENCODED, encode};
use serialport::SerialPort;
use std::io;
use std::time::Duration;

/// A frame that the line does not take within this time is lost.
const WRITE_TIMEOUT: Duration = Duration::from_millis(10);

/// An open serial line.
pub struct SerialLine {
    name: String,
    port: Box<dyn SerialPort>,
    deframer: Box<Deframer>,
    /// The last frame was cut, or none was sent: a delimiter must come first.
    cut: bool,
}

impl SerialLine {
    /// Opens a serial device, 8 bits, no parity, one stop bit.
    ///
    /// # Errors
    /// [`PortError::Open`].
    pub fn open(path: &str, baud: u32) -> Result<Self, PortError> {
        let builder = serialport::new(path, baud).timeout(WRITE_TIMEOUT);
        let port = builder
            .open()
            .map_err(|error| PortError::Open { name: path.into(), source: io::Error::from(error) })?;
        Ok(Self::from_port(path, port))
    }

    /// The near end of a new pseudo-terminal, and the path under which another process opens the far end.
    ///
    /// # Errors
    /// [`PortError::Open`].
    #[cfg(unix)]
    pub fn open_pty() -> Result<(Self, PtyEnd), PortError> {
        let failed =
            |error| PortError::Open { name: "a pseudo-terminal".into(), source: io::Error::from(error) };
        // The pair holds no lock on the far end; another process may take one.
        let (near, far) = serialport::TTYPort::pair().map_err(failed)?;
        let path = far.name().unwrap_or_default();
        Ok((Self::from_port("pty", Box::new(near)), PtyEnd { path, _far: far }))
    }

    fn from_port(name: &str, port: Box<dyn SerialPort>) -> Self {
        Self { name: name.into(), port, deframer: Box::new(Deframer::new()), cut: true }
    }

    fn broken(&self, source: io::Error) -> PortError {
        PortError::Broken { name: self.name.clone(), source }
    }

    /// Sends bytes that are framed already, whatever they hold.
    ///
    /// # Errors
    /// [`PortError::Broken`].
    pub fn send_raw(&mut self, line: &[u8]) -> Result<(), PortError> {
        let _ = self.port.set_timeout(WRITE_TIMEOUT);
        let result = match self.cut {
            true => self.port.write_all(&[DELIMITER]).and_then(|()| self.port.write_all(line)),
            false => self.port.write_all(line),
        };
        self.cut = result.is_err();
        match result {
            Err(error) if !is_pause(&error) => Err(self.broken(error)),
            _ => Ok(()),
        }
    }

    /// Waits for bytes for at most `timeout`; gives them as they are, maybe none.
    ///
    /// # Errors
    /// [`PortError::Broken`].
    pub fn receive_raw<'a>(&mut self, timeout: Duration, bytes: &'a mut [u8]) -> Result<&'a [u8], PortError> {
        let _ = self.port.set_timeout(timeout.max(Duration::from_millis(1)));
        match self.port.read(bytes) {
            Ok(0) => Err(self.broken(io::Error::from(io::ErrorKind::UnexpectedEof))),
            Ok(count) => Ok(&bytes[..count]),
            Err(error) if is_pause(&error) => Ok(&[]),
            Err(error) => Err(self.broken(error)),
        }
    }
}

impl Port for SerialLine {
    fn send(&mut self, frame: &[u8]) -> Result<(), PortError> {
        let mut line = [0; MAX_ENCODED];
        match encode(frame, &mut line) {
            Ok(len) => self.send_raw(&line[..len]),
            // No frame is longer than the buffer; what is longer is none.
            Err(_) => Ok(()),
        }
    }

    fn receive(&mut self, timeout: Duration, hand_on: &mut dyn FnMut(Found<'_>)) -> Result<(), PortError> {
        let mut bytes = [0; 4096];
        for byte in self.receive_raw(timeout, &mut bytes)? {
            if let Some(found) = self.deframer.push(*byte) {
                hand_on(found);
            }
        }
        Ok(())
    }
}

/// The far end of a pseudo-terminal, kept open so that the near end works while nobody else has it open.
#[cfg(unix)]
pub struct PtyEnd {
    /// The path to open.
    pub path: String,
    _far: serialport::TTYPort,
}
