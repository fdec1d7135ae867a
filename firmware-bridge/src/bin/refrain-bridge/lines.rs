//! The line to the device, as the arguments choose it.

use crate::zenoh_side::{Session, ZenohLine};
use refrain_firmware_bridge::port::can::Identifiers;
use refrain_firmware_bridge::port::{CanLine, Found, Port, PortError, SerialLine, Slcan, UdpLine};
#[cfg(feature = "servo")]
use refrain_firmware_bridge::servo::{Arm, BusError, Calibration, CalibrationError, ServoBus};
use std::net::SocketAddr;
#[cfg(feature = "servo")]
use std::path::PathBuf;
use std::time::Duration;

/// Baud rate of a microcontroller's line.
const BAUD: u32 = 921_600;
/// Baud rate of a servo bus.
#[cfg(feature = "servo")]
const SERVO_BAUD: u32 = 1_000_000;

#[derive(clap::Args)]
pub(crate) struct Line {
    #[command(flatten)]
    device: Device,
    /// Baud rate; otherwise 921600, for servos 1000000.
    #[arg(long)]
    baud: Option<u32>,
    /// The device's node on a CAN bus, 0 to 63: 0x200 + node to it, 0x280 + node from it.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=63))]
    node: u8,
    /// The arm on the servo bus: `examples/so101/arm.toml` is a commented one.
    #[cfg(feature = "servo")]
    #[arg(long, value_name = "FILE", requires = "servos")]
    calibration: Option<PathBuf>,
    /// Only print where the servos stand, in ticks and rad; turn the arm by hand and write the calibration.
    #[cfg(feature = "servo")]
    #[arg(long, requires = "servos")]
    read: bool,
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
    /// Serial device of a servo bus; needs --calibration.
    #[cfg(feature = "servo")]
    #[arg(long, requires = "calibration")]
    servos: Option<String>,
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
    #[cfg(feature = "servo")]
    Servos(Box<Arm>),
    Zenoh(ZenohLine),
}

/// Why there is no line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    #[error(transparent)]
    Port(#[from] PortError),
    #[cfg(feature = "servo")]
    #[error(transparent)]
    Servos(#[from] BusError),
    #[cfg(feature = "servo")]
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    #[error("zenoh: {0}; is the endpoint free, and the peer up?")]
    Zenoh(zenoh::Error),
    #[error("{0}")]
    Arguments(&'static str),
}

impl Line {
    pub(crate) fn needs_zenoh(&self) -> bool {
        self.device.wire.is_some()
    }

    /// Opens the line; gives the joints' names too where it knows them.
    pub(crate) fn open(
        &self,
        session: Option<&Session>,
    ) -> Result<(AnyPort, Option<Vec<String>>), LineError> {
        match &self.device {
            Device { serial: Some(path), .. } => {
                Ok((AnyPort::Serial(SerialLine::open(path, self.baud.unwrap_or(BAUD))?), None))
            }
            Device { udp: Some(peer), .. } => Ok((AnyPort::Udp(UdpLine::connect(*peer)?), None)),
            Device { slcan: Some(path), .. } => {
                let adapter = Slcan::open(path, self.baud.unwrap_or(BAUD))?;
                Ok((AnyPort::Slcan(CanLine::new(adapter, self.identifiers()?)), None))
            }
            #[cfg(all(feature = "socketcan", target_os = "linux"))]
            Device { can: Some(name), .. } => {
                use socketcan::Socket;
                let failed = |source| PortError::Open { name: name.clone(), source };
                let socket = socketcan::CanSocket::open(name).map_err(failed)?;
                socket.set_nonblocking(true).map_err(failed)?;
                Ok((AnyPort::Can(CanLine::new(socket, self.identifiers()?)), None))
            }
            Device { wire: Some(key), .. } => {
                let session = session.ok_or(LineError::Arguments("--wire needs a zenoh session"))?;
                Ok((AnyPort::Zenoh(session.line(key).map_err(LineError::Zenoh)?), None))
            }
            #[cfg(feature = "servo")]
            Device { servos: Some(_), .. } => {
                let (bus, calibration) = self.servo_bus()?;
                let arm = Arm::new(bus, &calibration)
                    .ok_or(LineError::Arguments("the calibration is not sound"))?;
                let names = calibration.joints.iter().map(|joint| joint.name.clone()).collect();
                Ok((AnyPort::Servos(Box::new(arm)), Some(names)))
            }
            _ => Err(LineError::Arguments("a line to the device is needed, for example --serial")),
        }
    }

    fn identifiers(&self) -> Result<Identifiers, LineError> {
        Identifiers::of_host(self.node).ok_or(LineError::Arguments("--node: expected 0 to 63"))
    }

    /// Whether positions are only to be printed.
    pub(crate) fn only_reads(&self) -> bool {
        #[cfg(feature = "servo")]
        return self.read;
        #[cfg(not(feature = "servo"))]
        false
    }

    /// Turns the torque off and prints where the servos stand, until it is ended.
    #[cfg(not(feature = "servo"))]
    pub(crate) fn read_servos(&self, _: Duration) -> Result<(), LineError> {
        Err(LineError::Arguments("built without the feature servo"))
    }

    /// Turns the torque off and prints where the servos stand, until it is ended.
    #[cfg(feature = "servo")]
    pub(crate) fn read_servos(&self, period: Duration) -> Result<(), LineError> {
        let (mut bus, calibration) = self.servo_bus()?;
        bus.write_torque(false)?;
        loop {
            for (joint, reading) in calibration.joints.iter().zip(bus.read()?) {
                let radians = joint.radians(reading.ticks);
                print!("{} {} ({radians:.3})  ", joint.name, reading.ticks);
            }
            println!();
            std::thread::sleep(period);
        }
    }

    #[cfg(feature = "servo")]
    fn servo_bus(&self) -> Result<(ServoBus, Calibration), LineError> {
        let (Some(path), Some(file)) = (&self.device.servos, &self.calibration) else {
            return Err(LineError::Arguments("--servos needs --calibration"));
        };
        let calibration = Calibration::load(file)?;
        let baud = self.baud.unwrap_or(SERVO_BAUD);
        Ok((ServoBus::open(path, baud, calibration.model, &calibration.joints)?, calibration))
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
            #[cfg(feature = "servo")]
            Self::Servos(port) => port.send(frame),
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
            #[cfg(feature = "servo")]
            Self::Servos(port) => port.receive(timeout, hand_on),
            Self::Zenoh(port) => port.receive(timeout, hand_on),
        }
    }
}
