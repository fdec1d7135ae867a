//! The state: what the device does and has heard. Layout: [the table](super).

use super::fault::Cause;
use super::field::{f32_at, put, u8_at, u32_at, u64_at};
use super::header::{self, CRC_LEN, Header, Kind};
use super::{Error, MAX_JOINTS};

mod offset {
    pub(super) const MODE: usize = 24;
    pub(super) const FAULT: usize = 25;
    pub(super) const REFUSAL: usize = 26;
    pub(super) const TORQUE: usize = 27;
    pub(super) const HOST_SEQUENCE: usize = 28;
    pub(super) const CHUNK: usize = 32;
    pub(super) const BAD: usize = 36;
    pub(super) const LOST: usize = 40;
    pub(super) const REFUSED: usize = 44;
    pub(super) const ECHO: usize = 48;
    pub(super) const ECHO_RECEIVED: usize = 56;
    pub(super) const HOST_SESSION: usize = 64;
    pub(super) const ECHO_SESSION: usize = 68;
    pub(super) const JOINTS: usize = 72;
}

/// Bytes of a state of `joints` joints.
pub const fn frame_len(joints: usize) -> usize {
    offset::JOINTS.saturating_add(joints.saturating_mul(12)).saturating_add(CRC_LEN)
}

/// What the device does. The diagram is in [`crate::link::device`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Obeys only a request to arm.
    Disarmed = 0,
    /// Armed, and no valid chunk: stands still.
    Holding = 1,
    /// Follows a chunk with a rising speed limit.
    Ramping = 2,
    /// Follows a chunk.
    Running = 3,
    /// A fault is latched: holds or is limp until armed again.
    Faulted = 4,
}

impl Mode {
    /// The mode of a code, if there is one.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Disarmed),
            1 => Some(Self::Holding),
            2 => Some(Self::Ramping),
            3 => Some(Self::Running),
            4 => Some(Self::Faulted),
            _ => None,
        }
    }

    /// Whether the host's chunks are obeyed: `Holding`, `Ramping` or `Running`.
    pub const fn is_armed(self) -> bool {
        matches!(self, Self::Holding | Self::Ramping | Self::Running)
    }
}

/// Why the device refused a sound frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// Not armed.
    NotArmed = 1,
    /// Another number of joints than the device has.
    Joints = 2,
    /// Not the session that armed the device.
    Session = 3,
    /// Speaks to an earlier arming.
    Epoch = 4,
    /// A duplicate, or overtaken by a newer frame.
    Sequence = 5,
    /// Its validity is already over.
    Expired = 6,
    /// Valid for longer than the device allows.
    Validity = 7,
    /// Its observation is older than the device allows.
    ObservationOld = 8,
    /// Its observation lies in the future.
    ObservationFuture = 9,
    /// Asks to arm an armed device, or one that does not know where its joints are.
    Arm = 10,
    /// A frame that only a device sends.
    Direction = 11,
}

impl Refusal {
    /// The refusal of a code, if there is one.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::NotArmed,
            2 => Self::Joints,
            3 => Self::Session,
            4 => Self::Epoch,
            5 => Self::Sequence,
            6 => Self::Expired,
            7 => Self::Validity,
            8 => Self::ObservationOld,
            9 => Self::ObservationFuture,
            10 => Self::Arm,
            11 => Self::Direction,
            _ => return None,
        })
    }
}

/// A checked view of a state's bytes.
#[derive(Clone, Copy, Debug)]
pub struct View<T: AsRef<[u8]>> {
    buffer: T,
    mode: Mode,
}

impl<T: AsRef<[u8]>> View<T> {
    /// Checks CRC, header, length, codes and that the floats are finite.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn new_checked(buffer: T) -> Result<Self, Error> {
        let bytes = buffer.as_ref();
        let joints = header::check(bytes, Kind::State)?.joint_count();
        header::check_len(bytes, frame_len(joints))?;
        let code = u8_at(bytes, offset::MODE);
        let mode = Mode::from_code(code).ok_or(Error::Code(code))?;
        let fault = u8_at(bytes, offset::FAULT);
        if fault != 0 && Cause::from_code(fault).is_none() {
            return Err(Error::Code(fault));
        }
        let refusal = u8_at(bytes, offset::REFUSAL);
        if refusal != 0 && Refusal::from_code(refusal).is_none() {
            return Err(Error::Code(refusal));
        }
        let torque = u8_at(bytes, offset::TORQUE);
        if torque > 1 {
            return Err(Error::Code(torque));
        }
        let floats = joints.saturating_mul(3);
        if !(0..floats).all(|index| f32_at(bytes, float_offset(index)).is_finite()) {
            return Err(Error::NonFinite);
        }
        Ok(Self { buffer, mode })
    }

    /// The header.
    pub fn header(&self) -> Header {
        Header::parse(self.buffer.as_ref())
    }

    /// What the device does.
    pub fn mode(&self) -> Mode {
        self.mode
    }
}

/// A state, decoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repr {
    /// The header.
    pub header: Header,
    /// What the device does.
    pub mode: Mode,
    /// The latched fault.
    pub fault: Option<Cause>,
    /// Why the last refused frame was refused.
    pub refusal: Option<Refusal>,
    /// Whether the motors hold or move; otherwise they are limp.
    pub torque: bool,
    /// The host's sequence last accepted.
    pub host_sequence: u32,
    /// The chunk last accepted.
    pub chunk: u32,
    /// Frames dropped for framing, CRC or contents.
    pub bad_frames: u32,
    /// Gaps in the host's sequence.
    pub lost_frames: u32,
    /// Sound frames refused.
    pub refused_frames: u32,
    /// Host clock of the last heartbeat heard, µs; 0 none.
    pub echo_us: u64,
    /// Device clock when it came, µs.
    pub echo_received_us: u64,
    /// Session whom the device obeys; 0 nobody.
    pub host_session: u32,
    /// Session of the heartbeat echoed; 0 none.
    pub echo_session: u32,
    /// Measured, rad; zero after the last joint.
    pub position: [f32; MAX_JOINTS],
    /// Of the setpoint, rad/s.
    pub velocity: [f32; MAX_JOINTS],
    /// Sent to the motors, rad.
    pub setpoint: [f32; MAX_JOINTS],
}

impl Repr {
    /// Decodes a checked view.
    pub fn parse<T: AsRef<[u8]>>(view: &View<T>) -> Self {
        let bytes = view.buffer.as_ref();
        let header = view.header();
        let joints = header.joint_count();
        Self {
            header,
            mode: view.mode(),
            fault: Cause::from_code(u8_at(bytes, offset::FAULT)),
            refusal: Refusal::from_code(u8_at(bytes, offset::REFUSAL)),
            torque: u8_at(bytes, offset::TORQUE) == 1,
            host_sequence: u32_at(bytes, offset::HOST_SEQUENCE),
            chunk: u32_at(bytes, offset::CHUNK),
            bad_frames: u32_at(bytes, offset::BAD),
            lost_frames: u32_at(bytes, offset::LOST),
            refused_frames: u32_at(bytes, offset::REFUSED),
            echo_us: u64_at(bytes, offset::ECHO),
            echo_received_us: u64_at(bytes, offset::ECHO_RECEIVED),
            host_session: u32_at(bytes, offset::HOST_SESSION),
            echo_session: u32_at(bytes, offset::ECHO_SESSION),
            position: floats(bytes, joints, 0),
            velocity: floats(bytes, joints, joints),
            setpoint: floats(bytes, joints, joints.saturating_mul(2)),
        }
    }

    /// Writes the frame into the head of `buffer` and gives its length in bytes.
    ///
    /// # Errors
    /// The joints are out of range, a float is not finite, or the buffer is too short.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<usize, Error> {
        self.header.check_joints()?;
        let joints = self.header.joint_count();
        let rows = [&self.position, &self.velocity, &self.setpoint];
        let floats = rows.into_iter().flat_map(|row| row.iter().take(joints));
        if !floats.clone().all(|value| value.is_finite()) {
            return Err(Error::NonFinite);
        }
        let bytes = header::claim(buffer, frame_len(joints))?;
        self.header.emit(bytes, Kind::State);
        put(bytes, offset::MODE, [self.mode as u8]);
        put(bytes, offset::FAULT, [self.fault.map_or(0, |fault| fault as u8)]);
        put(bytes, offset::REFUSAL, [self.refusal.map_or(0, |refusal| refusal as u8)]);
        put(bytes, offset::TORQUE, [u8::from(self.torque)]);
        put(bytes, offset::HOST_SEQUENCE, self.host_sequence.to_le_bytes());
        put(bytes, offset::CHUNK, self.chunk.to_le_bytes());
        put(bytes, offset::BAD, self.bad_frames.to_le_bytes());
        put(bytes, offset::LOST, self.lost_frames.to_le_bytes());
        put(bytes, offset::REFUSED, self.refused_frames.to_le_bytes());
        put(bytes, offset::ECHO, self.echo_us.to_le_bytes());
        put(bytes, offset::ECHO_RECEIVED, self.echo_received_us.to_le_bytes());
        put(bytes, offset::HOST_SESSION, self.host_session.to_le_bytes());
        put(bytes, offset::ECHO_SESSION, self.echo_session.to_le_bytes());
        for (index, value) in floats.enumerate() {
            put(bytes, float_offset(index), value.to_le_bytes());
        }
        Ok(header::seal(bytes))
    }
}

fn float_offset(index: usize) -> usize {
    offset::JOINTS.saturating_add(index.saturating_mul(4))
}

fn floats(bytes: &[u8], joints: usize, first: usize) -> [f32; MAX_JOINTS] {
    let mut values = [0.0; MAX_JOINTS];
    for (index, value) in values.iter_mut().take(joints).enumerate() {
        *value = f32_at(bytes, float_offset(first.saturating_add(index)));
    }
    values
}
