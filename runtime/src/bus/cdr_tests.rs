//! Byte-exact messages (bytes written by rosbags, an independent implementation) and hostile ones.

use proptest::prelude::*;

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect()
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

const ARRAY: &str = "00010000 00000000 00000000 02000000 00000000 000000000000e03f 000000000000f0bf";

const TRAJECTORY: &str = "
    00010000
    00000000 00000000
    01000000 00 000000
    02000000
    03000000 6a3100 00
    04000000 6a323200
    02000000
    02000000 00000000 000000000000e03f 000000000000f0bf
    00000000 00000000 00000000
    00000000 80f0fa02
    02000000 000000000000e83f 000000000000f4bf
    00000000 00000000 00000000
    00000000 00e1f505";

#[test]
fn an_array_is_byte_exact() {
    let mut out = vec![9; 3];
    write_array(&mut out, &[0.5, -1.0]);
    assert_eq!(out, hex(ARRAY));
    let mut values = [0.0; 2];
    read_array(&out, &mut values).unwrap();
    assert_eq!(values, [0.5, -1.0]);
    assert_eq!(read_array(&out, &mut [0.0; 3]), Err(Refusal::WrongSize));
    write_array(&mut out, &[]);
    assert_eq!(out, hex("00010000 00000000 00000000 00000000"), "an empty array has no padding after it");
}

#[test]
fn a_trajectory_is_byte_exact() {
    let mut out = Vec::new();
    let point = |positions: &[f64], time_from_start| Point { positions: positions.to_vec(), time_from_start };
    let points = [point(&[0.5, -1.0], 50_000_000), point(&[0.75, -1.25], 100_000_000)];
    write_trajectory(&mut out, Wall::default(), &names(&["j1", "j22"]), &points);
    assert_eq!(out, hex(TRAJECTORY));
    assert_eq!(out.len(), 128);
}

const HEADER_IN_BASE_LINK: &str = "00010000 00f15365 80b2e60e 0a000000 626173655f6c696e6b00 0000";
const STAMP: Wall = Wall::from_nanos(1_700_000_000_250_000_000);

#[test]
fn a_pose_is_byte_exact() {
    let pose = hex(&format!(
        "{HEADER_IN_BASE_LINK} 000000000000f03f 0000000000000040 0000000000000840
         0000000000000000 0000000000000000 333333333333e33f 9a9999999999e93f"
    ));
    let mut out = Vec::new();
    write_stamped(&mut out, STAMP, "base_link", &[1.0, 2.0, 3.0, 0.0, 0.0, 0.6, 0.8]);
    assert_eq!(out, pose);
    let mut read = [0.0; 3];
    assert_eq!(read_stamped(&pose, 7, &[6, 0, 5], &mut read), Ok(Some(STAMP)));
    assert_eq!(read, [0.8, 1.0, 0.6]);
    assert_eq!(read_stamped(&pose, 7, &[7, 0, 1], &mut read), Err(Refusal::WrongSize));
    for end in 0..pose.len() {
        assert!(read_stamped(&pose[..end], 7, &[6, 0, 5], &mut read).is_err(), "{end}");
    }
}

#[test]
fn a_twist_is_byte_exact() {
    let mut out = Vec::new();
    write_stamped(&mut out, STAMP, "base_link", &[1.0, 2.0, 3.0, -1.0, 0.0, 0.5]);
    let twist = hex(&format!(
        "{HEADER_IN_BASE_LINK} 000000000000f03f 0000000000000040 0000000000000840
         000000000000f0bf 0000000000000000 000000000000e03f"
    ));
    assert_eq!(out, twist);
}

#[test]
fn diagnostics_are_byte_exact() {
    let status = |level, part: &str, message: &str, values: &[(&str, &str)]| Status {
        level,
        name: format!("arm: {part}"),
        message: message.into(),
        hardware_id: "arm".into(),
        values: values.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    };
    let mut out = Vec::new();
    let statuses = [
        status(Level::Warn, "control", "coasting", &[("stops", "0"), ("resets", "12")]),
        status(Level::Ok, "policy", "ok", &[]),
    ];
    write_diagnostics(&mut out, STAMP, &statuses);
    let expected = hex("
        00010000 00f15365 80b2e60e 01000000 00 000000 02000000
        01 000000 0d000000 61726d3a20636f6e74726f6c00 000000 09000000 636f617374696e6700 000000
        04000000 61726d00 02000000
        06000000 73746f707300 0000 02000000 3000 0000 07000000 72657365747300 00 03000000 313200
        00 0c000000 61726d3a20706f6c69637900 03000000 6f6b00 00 04000000 61726d00 00000000");
    assert_eq!(out, expected);
}

#[test]
fn texts_and_booleans_are_byte_exact() {
    let mut out = Vec::new();
    write_text(&mut out, "hello");
    assert_eq!(out, hex("00010000 06000000 68656c6c6f00"));
    assert_eq!(read_text(&out), Ok("hello"));
    write_bool(&mut out, true);
    assert_eq!(out, hex("00010000 01"));
    assert_eq!(read_bool(&out), Ok(true));
    assert_eq!(read_bool(&hex("00010000 02")), Err(Refusal::Undecodable));
    assert_eq!(read_bool(&EMPTY_REQUEST[..4]), Err(Refusal::Undecodable));
}

#[test]
fn a_response_is_byte_exact() {
    let mut out = Vec::new();
    write_response(&mut out, true, "stopped");
    assert_eq!(out, hex("00010000 01000000 08000000 73746f7070656400"));
    assert_eq!(read_response(&out), Ok(Answer { success: true, message: "stopped".into() }));
}

#[test]
fn a_dimension_of_the_layout_is_skipped() {
    let with_layout = hex("00010000 01000000 02000000 7800 0000 02000000 02000000 00000000 02000000 00000000
         000000000000e03f 000000000000f0bf");
    let mut values = [0.0; 2];
    read_array(&with_layout, &mut values).unwrap();
    assert_eq!(values, [0.5, -1.0]);
}

#[test]
fn a_joint_state_is_mapped_by_name() {
    let mut bytes = Vec::new();
    let stamp = Wall::from_nanos(1_700_000_000_250_000_000);
    write_joint_state(&mut bytes, stamp, &names(&["b", "a", "c"]), &[2.0, 1.0, 3.0]);
    let mut out = [0.0; 2];
    let read = |wanted: &[&str], field, out: &mut [f64]| read_joint_state(&bytes, &names(wanted), field, out);
    assert_eq!(read(&["a", "c"], JointField::Position, &mut out), Ok(Some(stamp)));
    assert_eq!(out, [1.0, 3.0]);
    assert_eq!(read(&["a", "d"], JointField::Position, &mut out), Err(Refusal::JointMissing));
    assert_eq!(read(&["a", "c"], JointField::Velocity, &mut out), Err(Refusal::WrongSize));
    write_joint_state(&mut bytes, Wall::default(), &names(&["a"]), &[1.0]);
    assert_eq!(read_joint_state(&bytes, &names(&["a"]), JointField::Position, &mut out[..1]), Ok(None));
}

#[test]
fn every_truncation_is_refused() {
    let array = hex(ARRAY);
    let mut joints = Vec::new();
    write_joint_state(&mut joints, Wall::from_nanos(1), &names(&["a", "b"]), &[1.0, 2.0]);
    for end in 0..array.len() {
        assert!(read_array(&array[..end], &mut [0.0; 2]).is_err(), "{end}");
    }
    for end in 0..joints.len() {
        let read = read_joint_state(&joints[..end], &names(&["a"]), JointField::Position, &mut [0.0]);
        assert!(read.is_err(), "{end}");
    }
}

#[test]
fn other_encapsulations_and_absurd_lengths_are_refused() {
    let mut big_endian = hex(ARRAY);
    big_endian[1] = 0;
    assert_eq!(read_array(&big_endian, &mut [0.0; 2]), Err(Refusal::Undecodable));
    let absurd = hex("00010000 00000000 00000000 ffffffff 00000000 000000000000e03f");
    assert_eq!(read_array(&absurd, &mut [0.0; 2]), Err(Refusal::Undecodable));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), header: bool) {
        if header && bytes.len() >= 4 {
            bytes[..4].copy_from_slice(&HEADER);
        }
        let _ = read_array(&bytes, &mut [0.0; 2]);
        let _ = read_joint_state(&bytes, &names(&["a"]), JointField::Effort, &mut [0.0]);
    }
}
