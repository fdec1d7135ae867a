//! UDP: one frame a datagram, no COBS. The frame's own CRC stands.

use super::{Found, Port, PortError, is_pause};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

/// A UDP socket that talks to one peer.
pub struct UdpLine {
    name: String,
    socket: UdpSocket,
    peer: Option<SocketAddr>,
}

impl UdpLine {
    /// Talks to `peer` from any free address.
    ///
    /// # Errors
    /// [`PortError::Open`].
    pub fn connect(peer: SocketAddr) -> Result<Self, PortError> {
        let any: SocketAddr = if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        Self::open(any, Some(peer))
    }

    /// Waits on `local` and answers whoever sent last.
    ///
    /// # Errors
    /// [`PortError::Open`].
    pub fn listen(local: SocketAddr) -> Result<Self, PortError> {
        Self::open(local, None)
    }

    /// The address waited on.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()
    }

    fn open(local: SocketAddr, peer: Option<SocketAddr>) -> Result<Self, PortError> {
        let name = format!("UDP {}", peer.unwrap_or(local));
        match UdpSocket::bind(local) {
            Ok(socket) => Ok(Self { name, socket, peer }),
            Err(source) => Err(PortError::Open { name, source }),
        }
    }

    fn broken(&self, source: io::Error) -> PortError {
        PortError::Broken { name: self.name.clone(), source }
    }
}

impl Port for UdpLine {
    fn send(&mut self, frame: &[u8]) -> Result<(), PortError> {
        let Some(peer) = self.peer else { return Ok(()) };
        match self.socket.send_to(frame, peer) {
            // Nobody listens there yet: the peer may still start.
            Err(error) if !is_pause(&error) && error.kind() != io::ErrorKind::ConnectionRefused => {
                Err(self.broken(error))
            }
            _ => Ok(()),
        }
    }

    fn receive(&mut self, timeout: Duration, hand_on: &mut dyn FnMut(Found<'_>)) -> Result<(), PortError> {
        let timeout = timeout.max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(timeout)).map_err(|error| self.broken(error))?;
        let mut bytes = [0; 2048];
        match self.socket.recv_from(&mut bytes) {
            Ok((count, from)) => {
                self.peer = Some(from);
                hand_on(Ok(&bytes[..count]));
                Ok(())
            }
            Err(error) if is_pause(&error) || error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) => Err(self.broken(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::example;

    #[test]
    fn carries_frames_both_ways() {
        let mut device = UdpLine::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let mut host = UdpLine::connect(device.local_address().unwrap()).unwrap();
        // A device that nobody has spoken to says nothing.
        device.send(&example::COMMAND_BYTES).unwrap();
        host.send(&example::HEARTBEAT_BYTES).unwrap();
        let receive = |line: &mut UdpLine| {
            let mut got = Vec::new();
            line.receive(Duration::from_secs(5), &mut |found| got = found.unwrap().to_vec()).unwrap();
            got
        };
        assert_eq!(receive(&mut device), example::HEARTBEAT_BYTES);
        device.send(&example::COMMAND_BYTES).unwrap();
        assert_eq!(receive(&mut host), example::COMMAND_BYTES);
        let mut quiet = true;
        host.receive(Duration::from_millis(1), &mut |_| quiet = false).unwrap();
        assert!(quiet);
    }
}
