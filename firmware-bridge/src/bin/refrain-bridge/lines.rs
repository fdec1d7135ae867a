//! The line to the device, as the arguments choose it.

use crate::zenoh_side::{Session, ZenohLine};
use refrain_firmware_bridge::port::can::Identifiers;
use refrain_firmware_bridge::port::{CanLine, Found, Port, PortError, SerialLine, Slcan, UdpLine};
use std::net::SocketAddr;
use std::time::Duration;

/// Baud rate of a microcontroller's line.
const BAUD: u32 = 921_600;

#[derive(clap::Args)]
pub(crate) struct Line {
    #[command(flatten)]
    device: Device,
    /// Baud rate of a serial line; otherwise 921600.
    #[arg(long)]
    baud: Option<u32>,
    /// The device's node on a CAN bus, 0 to 63: 0x200 + node to it, 0x280 + node from it.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=63))]
    node: u8,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Device {
    /// Serial device of a microcontroller, for example /dev/ttyACM0.
    #[arg(long)]
    serial: Option<String>,
    /// Address of a device on UDP.
    #[arg(long)]
    udp: Option<SocketAddr>,
    /// Serial device of an SLCAN adapter (CAN at 1 Mbit/s).
    #[arg(long)]
    slcan: Option<String>,
    /// CAN interface, for example can0.
    #[cfg(all(feature = "socketcan", target_os = "linux"))]
    #[arg(long)]
    can: Option<String>,
    /// A device on zenoh: frames to KEY/command, from KEY/state.
    #[arg(long, value_name = "KEY")]
    wire: Option<String>,
}

pub(crate) enum AnyPort {
    Serial(SerialLine),
    Udp(UdpLine),
    Slcan(CanLine<Slcan>),
    #[cfg(all(feature = "socketcan", target_os = "linux"))]
    Can(CanLine<socketcan::CanSocket>),
    Zenoh(ZenohLine),
}

/// Why there is no line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    #[error(transparent)]
    Port(#[from] PortError),
    #[error("zenoh: {0}; is the endpoint free, and the peer up?")]
    Zenoh(zenoh::Error),
    #[error("{0}")]
    Arguments(String),
}

impl Line {
    pub(crate) fn needs_zenoh(&self) -> bool {
        self.device.wire.is_some()
    }

    /// Opens the line.
    pub(crate) fn open(&self, session: Option<&Session>) -> Result<AnyPort, LineError> {
        match &self.device {
            Device { serial: Some(path), .. } => {
                Ok(AnyPort::Serial(SerialLine::open(path, self.baud.unwrap_or(BAUD))?))
            }
            Device { udp: Some(peer), .. } => Ok(AnyPort::Udp(UdpLine::connect(*peer)?)),
            Device { slcan: Some(path), .. } => {
                let adapter = Slcan::open(path, self.baud.unwrap_or(BAUD))?;
                Ok(AnyPort::Slcan(CanLine::new(adapter, self.identifiers()?)))
            }
            #[cfg(all(feature = "socketcan", target_os = "linux"))]
            Device { can: Some(name), .. } => {
                use socketcan::Socket;
                let failed = |source| PortError::Open { name: name.clone(), source };
                let socket = socketcan::CanSocket::open(name).map_err(failed)?;
                socket.set_nonblocking(true).map_err(failed)?;
                Ok(AnyPort::Can(CanLine::new(socket, self.identifiers()?)))
            }
            Device { wire: Some(key), .. } => {
                let session =
                    session.ok_or_else(|| LineError::Arguments("--wire needs a zenoh session".into()))?;
                Ok(AnyPort::Zenoh(session.line(key).map_err(LineError::Zenoh)?))
            }
            _ => Err(LineError::Arguments("a line to the device is needed, for example --serial".into())),
        }
    }

    fn identifiers(&self) -> Result<Identifiers, LineError> {
        Identifiers::of_host(self.node).ok_or_else(|| LineError::Arguments("--node: expected 0 to 63".into()))
    }
}

impl Port for AnyPort {
    fn send(&mut self, frame: &[u8]) -> Result<(), PortError> {
        match self {
            Self::Serial(port) => port.send(frame),
            Self::Udp(port) => port.send(frame),
            Self::Slcan(port) => port.send(frame),
            #[cfg(all(feature = "socketcan", target_os = "linux"))]
            Self::Can(port) => port.send(frame),
            Self::Zenoh(port) => port.send(frame),
        }
    }

    fn receive(&mut self, timeout: Duration, hand_on: &mut dyn FnMut(Found<'_>)) -> Result<(), PortError> {
        match self {
            Self::Serial(port) => port.receive(timeout, hand_on),
            Self::Udp(port) => port.receive(timeout, hand_on),
            Self::Slcan(port) => port.receive(timeout, hand_on),
            #[cfg(all(feature = "socketcan", target_os = "linux"))]
            Self::Can(port) => port.receive(timeout, hand_on),
            Self::Zenoh(port) => port.receive(timeout, hand_on),
        }
    }
}
