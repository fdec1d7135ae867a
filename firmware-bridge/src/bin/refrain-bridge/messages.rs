//! ROS messages on the bridge's zenoh side: a `JointTrajectory` becomes a chunk, a state becomes a `JointState`.
//!
//! CDR (XCDR1), little-endian. What a trajectory cannot say, its attachment says: 33 bytes as rmw_zenoh has them, then
//! the observation's time and the time until which it is valid, both ns since the epoch. Everything is bounds-checked, and
//! nothing is allocated by a length that a message claims.

use hiroz_cdr::{CdrReader, CdrWriter, LittleEndian};

/// Encapsulation header: CDR, little-endian, no options.
const HEADER: [u8; 4] = [0, 1, 0, 0];
/// Joints and points that a message may have.
const MOST: u32 = 1024;
/// Points may stray from an even step by this, ns.
const UNEVEN: i64 = 1_000_000;
const SECOND: i64 = 1_000_000_000;

/// A trajectory as a chunk; times in ns since the epoch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chunk {
    /// When the observation was made that it comes from.
    pub(crate) observation: i64,
    /// When point 0 is due.
    pub(crate) start: i64,
    /// Nobody may act on it after this.
    pub(crate) valid_until: i64,
    /// Between points.
    pub(crate) step: i64,
    /// `[point][joint]`, in the order of the bridge's joints.
    pub(crate) values: Vec<f32>,
}

/// Reads a trajectory of exactly these joints, in any order. `now` is the wall clock, for a stamp of 0.
///
/// # Errors
/// Why it cannot be executed, in words.
pub(crate) fn read_trajectory(
    bytes: &[u8],
    attachment: Option<&[u8]>,
    joints: &[String],
    now: i64,
) -> Result<Chunk, String> {
    let body = bytes.strip_prefix(&HEADER).ok_or("not a little-endian CDR message")?;
    let mut reader = CdrReader::<LittleEndian>::new(body);
    let stamp = time(&mut reader)?;
    let stamp = if stamp == 0 { now } else { stamp };
    reader.read_str().map_err(cut)?;
    let count = length(&mut reader)?;
    if count != joints.len() {
        return Err(format!("expected {} joints, got {count}", joints.len()));
    }
    let mut places = Vec::new();
    for _ in 0..count {
        let name = reader.read_str().map_err(cut)?;
        let place = joints.iter().position(|joint| joint == name);
        places.push(place.ok_or_else(|| format!("no joint {name:?} here, but {}", joints.join(", ")))?);
    }
    let (mut values, mut times) = (Vec::new(), Vec::new());
    for _ in 0..length(&mut reader)? {
        let positions = length(&mut reader)?;
        if positions != count {
            return Err(format!("a point has {positions} positions for {count} joints"));
        }
        let first = values.len();
        values.resize(first + count, 0.0);
        for place in &places {
            values[first + place] = reader.read_f64().map_err(cut)? as f32;
        }
        for _ in 0..3 {
            for _ in 0..length(&mut reader)? {
                reader.read_f64().map_err(cut)?;
            }
        }
        times.push(time(&mut reader)?);
    }
    let (Some(first), Some(last)) = (times.first(), times.last()) else {
        return Err("a trajectory without points: nothing to execute".into());
    };
    let step = times.get(1).map_or(SECOND / 10, |second| second - first);
    let even = times.windows(2).all(|pair| (pair[1] - pair[0] - step).abs() <= UNEVEN);
    if step <= 0 || !even {
        return Err("points are not evenly spaced in time".into());
    }
    let number = |at: usize| attachment?.get(at..at + 8)?.try_into().ok().map(i64::from_le_bytes);
    Ok(Chunk {
        observation: number(33).unwrap_or(stamp),
        start: stamp.saturating_add(*first),
        valid_until: number(41).unwrap_or(stamp.saturating_add(*last)),
        step,
        values,
    })
}

/// Writes a `JointState`: positions and the setpoints' velocities.
pub(crate) fn write_joint_state(
    out: &mut Vec<u8>,
    stamp: i64,
    joints: &[String],
    positions: &[f32],
    velocities: &[f32],
) {
    out.clear();
    out.extend_from_slice(&HEADER);
    let mut writer = CdrWriter::<LittleEndian>::new(out);
    writer.write_i32(stamp.div_euclid(SECOND) as i32);
    writer.write_u32(stamp.rem_euclid(SECOND) as u32);
    writer.write_string("");
    writer.write_sequence_length(joints.len());
    for joint in joints {
        writer.write_string(joint);
    }
    for numbers in [positions, velocities, &[]] {
        writer.write_sequence_length(numbers.len());
        for number in numbers {
            writer.write_f64(f64::from(*number));
        }
    }
}

/// The first 33 bytes of an attachment.
pub(crate) fn attachment(sequence: i64, source: i64, publisher: [u8; 16]) -> Vec<u8> {
    let mut out = Vec::with_capacity(33);
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&source.to_le_bytes());
    out.push(16);
    out.extend_from_slice(&publisher);
    out
}

fn time(reader: &mut CdrReader<'_, LittleEndian>) -> Result<i64, String> {
    let seconds = reader.read_i32().map_err(cut)?;
    let nanos = reader.read_u32().map_err(cut)?;
    Ok(i64::from(seconds) * SECOND + i64::from(nanos))
}

fn length(reader: &mut CdrReader<'_, LittleEndian>) -> Result<usize, String> {
    let length = reader.read_u32().map_err(cut)?;
    if length > MOST { Err(format!("a length of {length}, at most {MOST}")) } else { Ok(length as usize) }
}

fn cut(error: hiroz_cdr::Error) -> String {
    format!("not a JointTrajectory: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Joints j1, j22; two points, 50 ms and 100 ms after a stamp of 0; written by rosbags.
    const TRAJECTORY: &str = "
        00010000 00000000 00000000 01000000 00000000 02000000 03000000 6a310000 04000000 6a323200 02000000
        02000000 00000000 000000000000e03f 000000000000f0bf 00000000 00000000 00000000 00000000 80f0fa02
        02000000 000000000000e83f 000000000000f4bf 00000000 00000000 00000000 00000000 00e1f505";

    fn bytes() -> Vec<u8> {
        let digits: String = TRAJECTORY.split_whitespace().collect();
        (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_trajectory_is_a_chunk_with_joints_by_name() {
        let chunk = read_trajectory(&bytes(), None, &names(&["j22", "j1"]), 1_000).unwrap();
        let expected = Chunk {
            observation: 1_000,
            start: 50_001_000,
            valid_until: 100_001_000,
            step: 50_000_000,
            values: vec![-1.0, 0.5, -1.25, 0.75],
        };
        assert_eq!(chunk, expected);
        let mut note = attachment(1, 2, [3; 16]);
        note.extend_from_slice(&7_i64.to_le_bytes());
        note.extend_from_slice(&8_i64.to_le_bytes());
        let chunk = read_trajectory(&bytes(), Some(&note), &names(&["j22", "j1"]), 1_000).unwrap();
        assert_eq!((chunk.observation, chunk.valid_until), (7, 8));
    }

    #[test]
    fn what_cannot_be_executed_is_refused_in_words() {
        for (joints, word) in [(&["j1"][..], "expected 1 joints, got 2"), (&["j1", "j3"], "no joint \"j22\"")]
        {
            assert!(read_trajectory(&bytes(), None, &names(joints), 0).unwrap_err().contains(word));
        }
        for end in 0..bytes().len() {
            assert!(read_trajectory(&bytes()[..end], None, &names(&["j1", "j22"]), 0).is_err(), "{end}");
        }
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in 4..128usize, value: u8, cut in 0..128usize) {
            let mut bytes = bytes();
            bytes[at] = value;
            let _ = read_trajectory(&bytes, Some(&[0; 40]), &names(&["j1", "j22"]), i64::MAX);
            let _ = read_trajectory(&bytes[..cut], None, &names(&["j1", "j22"]), i64::MIN);
        }
    }
}
