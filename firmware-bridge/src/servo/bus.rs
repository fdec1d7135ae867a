//! A servo bus: positions in, goals and torque out. Ticks on the wire, radians outside.
//!
//! All servos are read and written together (sync read, sync write). A sync write is not acknowledged; what a servo did is
//! seen in the next reading. Registers: Feetech STS3215 memory table; Dynamixel X series control table (ROBOTIS e-Manual).

use super::calibration::ServoJoint;
use rustypot::DynamixelProtocolHandler;
use serde::Deserialize;
use serialport::SerialPort;
use std::io;
use std::time::Duration;

/// Ticks of a turn, for both kinds.
pub const TICKS_PER_TURN: i32 = 4096;
/// A servo that does not answer within this time is silent. A sync read of six servos takes 1 ms at 1 Mbaud.
const TIMEOUT: Duration = Duration::from_millis(8);

/// Kinds of servos.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    /// Feetech STS3215 and its kin (protocol 1).
    Sts3215,
    /// Dynamixel X series: XL330, XL430, XM (protocol 2).
    DynamixelX,
}

/// Why the bus did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The line cannot be opened.
    #[error("cannot open {name}: {source}; check the name, the cable and the rights to it")]
    Open {
        /// The line's name.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// A servo did not answer, or not soundly.
    #[error("servos {ids:?}: {reason}; check power, cable and identifiers")]
    Silent {
        /// Who was asked.
        ids: Vec<u8>,
        /// What went wrong.
        reason: String,
    },
}

/// Place and length of a register.
#[derive(Clone, Copy)]
struct Register {
    address: u8,
    length: u8,
}

struct Registers {
    torque: Register,
    goal: Register,
    position: Register,
}

/// What a servo says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Where it stands.
    pub ticks: i32,
    /// What it complains of: 0 nothing, else its protocol's error byte.
    pub error: u8,
}

/// An open bus.
pub struct ServoBus {
    port: Box<dyn SerialPort>,
    handler: DynamixelProtocolHandler,
    registers: Registers,
    ids: Vec<u8>,
}

impl Model {
    fn registers(self) -> Registers {
        let register = |address, length| Register { address, length };
        match self {
            Self::Sts3215 => {
                Registers { torque: register(40, 1), goal: register(42, 2), position: register(56, 2) }
            }
            Self::DynamixelX => {
                Registers { torque: register(64, 1), goal: register(116, 4), position: register(132, 4) }
            }
        }
    }
}

impl ServoBus {
    /// Opens a serial device.
    ///
    /// # Errors
    /// [`BusError::Open`].
    pub fn open(path: &str, baud: u32, model: Model, joints: &[ServoJoint]) -> Result<Self, BusError> {
        let port = serialport::new(path, baud).open();
        let port = port.map_err(|error| BusError::Open { name: path.into(), source: error.into() })?;
        Ok(Self::on(port, model, joints))
    }

    /// On a port that is open.
    pub fn on(mut port: Box<dyn SerialPort>, model: Model, joints: &[ServoJoint]) -> Self {
        let _ = port.set_timeout(TIMEOUT);
        let handler = match model {
            Model::Sts3215 => DynamixelProtocolHandler::v1(),
            Model::DynamixelX => DynamixelProtocolHandler::v2(),
        };
        let ids = joints.iter().map(|joint| joint.id).collect();
        Self { port, handler, registers: model.registers(), ids }
    }

    /// Where all servos stand, and what they complain of.
    ///
    /// # Errors
    /// [`BusError::Silent`] when one did not answer.
    pub fn read(&mut self) -> Result<Vec<Reading>, BusError> {
        let Register { address, length } = self.registers.position;
        let read = self.handler.sync_read_with_error(self.port.as_mut(), &self.ids, address, length);
        let rows = read.map_err(|error| self.silent(&error))?;
        let readings = rows
            .iter()
            .map(|(bytes, error)| ticks_of(bytes).map(|t| Reading { ticks: t, error: error.byte() }));
        let readings: Option<Vec<Reading>> = readings.collect();
        readings
            .filter(|r| r.len() == self.ids.len())
            .ok_or_else(|| self.silent(&"a reading of the wrong size"))
    }

    /// Sends all goals.
    ///
    /// # Errors
    /// [`BusError::Silent`] when the line does not take them.
    pub fn write_goals(&mut self, ticks: &[i32]) -> Result<(), BusError> {
        let register = self.registers.goal;
        let length = usize::from(register.length);
        let data: Vec<Vec<u8>> = ticks.iter().map(|goal| goal.to_le_bytes()[..length].to_vec()).collect();
        self.write(register, &data)
    }

    /// Turns all torques on or off.
    ///
    /// # Errors
    /// [`BusError::Silent`] when the line does not take it.
    pub fn write_torque(&mut self, on: bool) -> Result<(), BusError> {
        let data = vec![vec![u8::from(on)]; self.ids.len()];
        self.write(self.registers.torque, &data)
    }

    fn write(&mut self, register: Register, data: &[Vec<u8>]) -> Result<(), BusError> {
        let written = self.handler.sync_write(self.port.as_mut(), &self.ids, register.address, data);
        written.map_err(|error| self.silent(&error))
    }

    fn silent(&self, reason: &dyn ToString) -> BusError {
        BusError::Silent { ids: self.ids.clone(), reason: reason.to_string() }
    }
}

/// A position, little-endian. Two bytes are a magnitude with its sign in the highest bit (Feetech), four are two's complement.
fn ticks_of(bytes: &[u8]) -> Option<i32> {
    match *bytes {
        [low, high] => {
            let magnitude = i32::from(u16::from_le_bytes([low, high & 0x7f]));
            Some(if high & 0x80 == 0 { magnitude } else { -magnitude })
        }
        [a, b, c, d] => Some(i32::from_le_bytes([a, b, c, d])),
        _ => None,
    }
}
