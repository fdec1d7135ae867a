//! The command: one action chunk with its times. Layout: [the table](super).

use super::field::{f32_at, put, u16_at, u32_at, u64_at};
use super::header::{self, CRC_LEN, Header, Kind};
use super::{Error, MAX_POINTS, MAX_VALUES};

mod offset {
    pub(super) const CHUNK: usize = 24;
    pub(super) const POINTS: usize = 28;
    pub(super) const RESERVED_A: usize = 30;
    pub(super) const OBSERVATION: usize = 32;
    pub(super) const START: usize = 40;
    pub(super) const VALID_UNTIL: usize = 48;
    pub(super) const STEP: usize = 56;
    pub(super) const RESERVED_B: usize = 60;
    pub(super) const VALUES: usize = 64;
}

/// Bytes of a command with `values` positions.
pub const fn frame_len(values: usize) -> usize {
    offset::VALUES.saturating_add(values.saturating_mul(4)).saturating_add(CRC_LEN)
}

/// A checked view of a command's bytes.
#[derive(Clone, Copy, Debug)]
pub struct View<T: AsRef<[u8]>> {
    buffer: T,
}

impl<T: AsRef<[u8]>> View<T> {
    /// Checks everything: CRC, header, counts, length, reserved bytes, step, and that all positions are finite.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn new_checked(buffer: T) -> Result<Self, Error> {
        let bytes = buffer.as_ref();
        let joints = header::check(bytes, Kind::Command)?.joint_count();
        let points = u16_at(bytes, offset::POINTS);
        let values = count_values(joints, points)?;
        header::check_len(bytes, frame_len(values))?;
        header::check_reserved(bytes, offset::RESERVED_A, 2)?;
        header::check_reserved(bytes, offset::RESERVED_B, 4)?;
        let view = Self { buffer };
        if view.step_us() == 0 {
            return Err(Error::Step);
        }
        if !(0..values).all(|index| view.value(index).is_finite()) {
            return Err(Error::NonFinite);
        }
        Ok(view)
    }

    /// The header.
    pub fn header(&self) -> Header {
        Header::parse(self.buffer.as_ref())
    }

    /// The chunk's number.
    pub fn chunk(&self) -> u32 {
        u32_at(self.buffer.as_ref(), offset::CHUNK)
    }

    /// Points in the chunk.
    pub fn points(&self) -> u16 {
        u16_at(self.buffer.as_ref(), offset::POINTS)
    }

    /// When the observation was taken, µs, device clock.
    pub fn observation_us(&self) -> u64 {
        u64_at(self.buffer.as_ref(), offset::OBSERVATION)
    }

    /// When point 0 is due, µs, device clock.
    pub fn start_us(&self) -> u64 {
        u64_at(self.buffer.as_ref(), offset::START)
    }

    /// From when on the device holds, µs, device clock.
    pub fn valid_until_us(&self) -> u64 {
        u64_at(self.buffer.as_ref(), offset::VALID_UNTIL)
    }

    /// Time between points, µs, not 0.
    pub fn step_us(&self) -> u32 {
        u32_at(self.buffer.as_ref(), offset::STEP)
    }

    /// Position number `index` (= point × joints + joint), rad; 0 past the end.
    pub fn value(&self, index: usize) -> f32 {
        f32_at(self.buffer.as_ref(), offset::VALUES.saturating_add(index.saturating_mul(4)))
    }
}

/// A command, decoded. 1.8 kB: firmware short of stack reads a [`View`] instead.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repr {
    /// The header.
    pub header: Header,
    /// The chunk's number.
    pub chunk: u32,
    /// Points in the chunk.
    pub points: u16,
    /// When the observation was taken, µs, device clock.
    pub observation_us: u64,
    /// When point 0 is due, µs, device clock.
    pub start_us: u64,
    /// From when on the device holds, µs, device clock.
    pub valid_until_us: u64,
    /// Time between points, µs, not 0.
    pub step_us: u32,
    /// Positions `[point][joint]`, rad; zero after the last.
    pub values: [f32; MAX_VALUES],
}

impl Repr {
    /// Decodes a checked view.
    pub fn parse<T: AsRef<[u8]>>(view: &View<T>) -> Self {
        let header = view.header();
        let used = header.joint_count().saturating_mul(usize::from(view.points()));
        let mut values = [0.0; MAX_VALUES];
        for (index, value) in values.iter_mut().take(used).enumerate() {
            *value = view.value(index);
        }
        Self {
            header,
            chunk: view.chunk(),
            points: view.points(),
            observation_us: view.observation_us(),
            start_us: view.start_us(),
            valid_until_us: view.valid_until_us(),
            step_us: view.step_us(),
            values,
        }
    }

    /// Writes the frame into the head of `buffer` and gives its length in bytes.
    ///
    /// # Errors
    /// The counts are out of range, a position is not finite, the step is 0, or the buffer is too short.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<usize, Error> {
        self.header.check_joints()?;
        let used = count_values(self.header.joint_count(), self.points)?;
        if self.step_us == 0 {
            return Err(Error::Step);
        }
        let values = self.values.get(..used).ok_or(Error::Points(self.points))?;
        if !values.iter().all(|value| value.is_finite()) {
            return Err(Error::NonFinite);
        }
        let bytes = header::claim(buffer, frame_len(used))?;
        self.header.emit(bytes, Kind::Command);
        put(bytes, offset::CHUNK, self.chunk.to_le_bytes());
        put(bytes, offset::POINTS, self.points.to_le_bytes());
        put(bytes, offset::OBSERVATION, self.observation_us.to_le_bytes());
        put(bytes, offset::START, self.start_us.to_le_bytes());
        put(bytes, offset::VALID_UNTIL, self.valid_until_us.to_le_bytes());
        put(bytes, offset::STEP, self.step_us.to_le_bytes());
        for (index, value) in values.iter().enumerate() {
            let at = offset::VALUES.saturating_add(index.saturating_mul(4));
            put(bytes, at, value.to_le_bytes());
        }
        Ok(header::seal(bytes))
    }
}

fn count_values(joints: usize, points: u16) -> Result<usize, Error> {
    let values = joints.saturating_mul(usize::from(points));
    if points == 0 || usize::from(points) > MAX_POINTS || values > MAX_VALUES {
        return Err(Error::Points(points));
    }
    Ok(values)
}
