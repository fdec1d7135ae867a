//! ROS 2 messages in CDR (XCDR1), as bytes.
//!
//! A payload starts with the encapsulation header `00 01 00 00` (CDR, little-endian, no options); alignment counts from
//! after it. Reading copies numbers straight into the caller's buffers: nothing is allocated by a length that a message
//! claims, and everything is bounds-checked. Only what Refrain sends and takes is here; field order is that of the `.msg`
//! files of common_interfaces.

use hiroz_cdr::{CdrReader, CdrWriter, LittleEndian};

use super::service::Answer;
use crate::clock::{Nanos, SECOND, Wall};
use crate::config::JointField;
use crate::observation::Refusal;

/// Encapsulation header: CDR, little-endian, no options.
const HEADER: [u8; 4] = [0, 1, 0, 0];

/// A service request without fields: one dummy byte.
pub(super) const EMPTY_REQUEST: [u8; 5] = [0, 1, 0, 0, 0];
/// Dimensions that a `MultiArrayLayout` may have.
const MAX_DIMENSIONS: usize = 16;
/// Joints that a `JointState` may have.
const MAX_NAMES: usize = 1024;

pub(super) type Writer<'a> = CdrWriter<'a, LittleEndian>;
pub(super) type Reader<'a> = CdrReader<'a, LittleEndian>;

/// One point of a `JointTrajectory`.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// One number per joint.
    pub positions: Vec<f64>,
    /// After the trajectory's start, nanoseconds.
    pub time_from_start: Nanos,
}

/// One `diagnostic_msgs/DiagnosticStatus`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// How it is.
    pub level: Level,
    /// What it is about.
    pub name: String,
    /// In words.
    pub message: String,
    /// Which hardware.
    pub hardware_id: String,
    /// Details by name.
    pub values: Vec<(String, String)>,
}

/// Levels of a `DiagnosticStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All is well.
    Ok = 0,
    /// It works, but somebody should look.
    Warn = 1,
    /// It does not work.
    Error = 2,
}

/// `std_msgs/Float64MultiArray` without layout: `values` are `[n]`.
pub fn write_array(out: &mut Vec<u8>, values: &[f64]) {
    let mut writer = start(out);
    writer.write_sequence_length(0);
    writer.write_u32(0);
    write_numbers(&mut writer, values);
}

/// `trajectory_msgs/JointTrajectory`, positions only. A `stamp` of 0 means "start now".
pub fn write_trajectory(out: &mut Vec<u8>, stamp: Wall, joints: &[String], points: &[Point]) {
    let mut writer = start(out);
    write_header(&mut writer, stamp);
    writer.write_sequence_length(joints.len());
    for joint in joints {
        writer.write_string(joint);
    }
    writer.write_sequence_length(points.len());
    for point in points {
        write_numbers(&mut writer, &point.positions);
        // velocities, accelerations, effort
        for _ in 0..3 {
            writer.write_sequence_length(0);
        }
        write_time(&mut writer, point.time_from_start);
    }
}

/// `sensor_msgs/JointState` with positions only.
pub fn write_joint_state(out: &mut Vec<u8>, stamp: Wall, joints: &[String], positions: &[f64]) {
    let mut writer = start(out);
    write_header(&mut writer, stamp);
    writer.write_sequence_length(joints.len());
    for joint in joints {
        writer.write_string(joint);
    }
    write_numbers(&mut writer, positions);
    for _ in 0..2 {
        writer.write_sequence_length(0);
    }
}

/// A stamped message that is numbers only after its header: `geometry_msgs/PoseStamped` and `TwistStamped`.
pub fn write_stamped(out: &mut Vec<u8>, stamp: Wall, frame: &str, numbers: &[f64]) {
    let mut writer = start(out);
    write_time(&mut writer, stamp.nanos());
    writer.write_string(frame);
    for number in numbers {
        writer.write_f64(*number);
    }
}

/// `diagnostic_msgs/DiagnosticArray`.
pub fn write_diagnostics(out: &mut Vec<u8>, stamp: Wall, statuses: &[Status]) {
    let mut writer = start(out);
    write_header(&mut writer, stamp);
    writer.write_sequence_length(statuses.len());
    for status in statuses {
        writer.write_u8(status.level as u8);
        writer.write_string(&status.name);
        writer.write_string(&status.message);
        writer.write_string(&status.hardware_id);
        writer.write_sequence_length(status.values.len());
        for (key, value) in &status.values {
            writer.write_string(key);
            writer.write_string(value);
        }
    }
}

/// `std_msgs/String`.
pub fn write_text(out: &mut Vec<u8>, text: &str) {
    start(out).write_string(text);
}

/// `std_srvs/SetBool_Request`.
pub fn write_bool(out: &mut Vec<u8>, value: bool) {
    start(out).write_bool(value);
}

/// `std_srvs/Trigger_Response` and `std_srvs/SetBool_Response`.
pub fn write_response(out: &mut Vec<u8>, success: bool, message: &str) {
    let mut writer = start(out);
    writer.write_bool(success);
    writer.write_string(message);
}

/// Reads a `std_srvs/SetBool_Request`.
pub fn read_bool(bytes: &[u8]) -> Result<bool, Refusal> {
    open(bytes)?.read_bool().map_err(undecodable)
}

/// Reads a `std_srvs/Trigger_Response` or `std_srvs/SetBool_Response`.
pub fn read_response(bytes: &[u8]) -> Result<Answer, Refusal> {
    let mut reader = open(bytes)?;
    let success = reader.read_bool().map_err(undecodable)?;
    let message = reader.read_str().map_err(undecodable)?.to_owned();
    Ok(Answer { success, message })
}

/// Reads a `std_msgs/String`.
pub fn read_text(bytes: &[u8]) -> Result<&str, Refusal> {
    open(bytes)?.read_str().map_err(undecodable)
}

/// Reads a `std_msgs/Float64MultiArray` of exactly `out.len()` numbers.
pub fn read_array(bytes: &[u8], out: &mut [f64]) -> Result<(), Refusal> {
    let mut reader = open(bytes)?;
    for _ in 0..length(&mut reader, MAX_DIMENSIONS)? {
        reader.read_str().map_err(undecodable)?;
        reader.read_u32().map_err(undecodable)?;
        reader.read_u32().map_err(undecodable)?;
    }
    reader.read_u32().map_err(undecodable)?;
    fill(numbers(&mut reader)?, out)
}

/// Reads the numbers at `places` of a stamped message that has `total` numbers and nothing else after its header, and its
/// header stamp; a stamp of 0 is none.
pub fn read_stamped(
    bytes: &[u8],
    total: usize,
    places: &[usize],
    out: &mut [f64],
) -> Result<Option<Wall>, Refusal> {
    let mut reader = open(bytes)?;
    let stamp = read_header(&mut reader)?;
    reader.align(8).map_err(undecodable)?;
    let bytes = reader.read_bytes(total.checked_mul(8).ok_or(Refusal::Undecodable)?).map_err(undecodable)?;
    let numbers: &[[u8; 8]] = bytes.as_chunks().0;
    if places.len() != out.len() {
        return Err(Refusal::WrongSize);
    }
    for (place, slot) in places.iter().zip(out) {
        *slot = f64::from_le_bytes(*numbers.get(*place).ok_or(Refusal::WrongSize)?);
    }
    Ok(stamp)
}

/// Reads the numbers of `names` from a `sensor_msgs/JointState` and its header stamp; a stamp of 0 is none.
pub fn read_joint_state(
    bytes: &[u8],
    names: &[String],
    field: JointField,
    out: &mut [f64],
) -> Result<Option<Wall>, Refusal> {
    let mut reader = open(bytes)?;
    let stamp = read_header(&mut reader)?;
    let mut places = [usize::MAX; crate::safety::MAX_JOINTS];
    if names.len() > places.len() || names.len() != out.len() {
        return Err(Refusal::WrongSize);
    }
    let count = length(&mut reader, MAX_NAMES)?;
    for place in 0..count {
        let name = reader.read_str().map_err(undecodable)?;
        for (wanted, slot) in names.iter().zip(&mut places) {
            if wanted == name {
                *slot = place;
            }
        }
    }
    let arrays = [numbers(&mut reader)?, numbers(&mut reader)?, numbers(&mut reader)?];
    let values = arrays[field as usize];
    if values.len() != count {
        return Err(Refusal::WrongSize);
    }
    for (place, slot) in places.iter().zip(out) {
        let bytes = values.get(*place).ok_or(Refusal::JointMissing)?;
        *slot = f64::from_le_bytes(*bytes);
    }
    Ok(stamp)
}

pub(super) fn start(out: &mut Vec<u8>) -> Writer<'_> {
    out.clear();
    out.extend_from_slice(&HEADER);
    Writer::new(out)
}

/// `std_msgs/Header` with an empty frame.
pub(super) fn write_header(writer: &mut Writer<'_>, stamp: Wall) {
    write_time(writer, stamp.nanos());
    writer.write_string("");
}

/// `builtin_interfaces/Time` or `Duration`: whole seconds (wrapping past 2038 as ROS does) and nanoseconds.
fn write_time(writer: &mut Writer<'_>, nanos: i64) {
    writer.write_i32(nanos.div_euclid(SECOND) as i32);
    writer.write_u32(nanos.rem_euclid(SECOND) as u32);
}

pub(super) fn write_numbers(writer: &mut Writer<'_>, values: &[f64]) {
    writer.write_sequence_length(values.len());
    for value in values {
        writer.write_f64(*value);
    }
}

pub(super) fn open(bytes: &[u8]) -> Result<Reader<'_>, Refusal> {
    let body = bytes.strip_prefix(&HEADER).ok_or(Refusal::Undecodable)?;
    Ok(Reader::new(body))
}

/// `std_msgs/Header`: its stamp; 0 is none.
pub(super) fn read_header(reader: &mut Reader<'_>) -> Result<Option<Wall>, Refusal> {
    let seconds = reader.read_i32().map_err(undecodable)?;
    let nanos = reader.read_u32().map_err(undecodable)?;
    reader.read_str().map_err(undecodable)?;
    if i64::from(nanos) >= SECOND {
        return Err(Refusal::Undecodable);
    }
    let stamp = i64::from(seconds) * SECOND + i64::from(nanos);
    Ok((stamp != 0).then_some(Wall::from_nanos(stamp)))
}

pub(super) fn length(reader: &mut Reader<'_>, most: usize) -> Result<usize, Refusal> {
    let length = reader.read_u32().map_err(undecodable)? as usize;
    if length > most { Err(Refusal::Undecodable) } else { Ok(length) }
}

/// A `float64[]`, borrowed.
fn numbers<'a>(reader: &mut Reader<'a>) -> Result<&'a [[u8; 8]], Refusal> {
    let length = reader.read_u32().map_err(undecodable)? as usize;
    if length == 0 {
        return Ok(&[]);
    }
    reader.align(8).map_err(undecodable)?;
    let bytes = length.checked_mul(8).ok_or(Refusal::Undecodable)?;
    Ok(reader.read_bytes(bytes).map_err(undecodable)?.as_chunks().0)
}

fn fill(numbers: &[[u8; 8]], out: &mut [f64]) -> Result<(), Refusal> {
    if numbers.len() != out.len() {
        return Err(Refusal::WrongSize);
    }
    for (slot, bytes) in out.iter_mut().zip(numbers) {
        *slot = f64::from_le_bytes(*bytes);
    }
    Ok(())
}

pub(super) fn undecodable(_: hiroz_cdr::Error) -> Refusal {
    Refusal::Undecodable
}

#[cfg(test)]
#[path = "cdr_tests.rs"]
mod tests;
