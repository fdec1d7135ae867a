//! The C header says what the Rust module says: it is compiled and asked.

use refrain_firmware_bridge::wire::framing::{MAX_ENCODED, encode};
use refrain_firmware_bridge::wire::state::Refusal;
use refrain_firmware_bridge::wire::{
    Cause, CommandRepr, FaultRepr, Header, MAX_FRAME, MAX_JOINTS, MAX_POINTS, MAX_VALUES, Mode, StateRepr,
    example, header,
};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Compiles the C program; `None`, loudly, where there is no C compiler.
fn compile(folder: &Path) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = folder.join("c_header");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let run = Command::new(&compiler)
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-o"])
        .arg(&program)
        .arg("-I")
        .arg(root.join("include"))
        .arg(root.join("tests/c_header.c"))
        .output();
    match run {
        Err(error) => {
            eprintln!("SKIPPED: the C header was not checked, no C compiler `{compiler}`: {error}");
            None
        }
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(program)
        }
    }
}

/// What the program prints for one line of bytes: name to value.
fn ask(program: &Path, line: &[u8]) -> HashMap<String, String> {
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    child.stdin.take().expect("piped").write_all(line).expect("the program reads");
    let output = child.wait_with_output().expect("the program ends");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("ASCII");
    text.lines().filter_map(|line| line.split_once(' ')).map(|(k, v)| (k.into(), v.into())).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn encoded(frame: &[u8]) -> Vec<u8> {
    let mut line = [0; MAX_ENCODED];
    let len = encode(frame, &mut line).expect("fits");
    line[..len].to_vec()
}

/// Where a field lies, found by changing it and looking for the first byte that differs.
fn offset_of<R: Copy>(base: R, emit: impl Fn(&R, &mut [u8]) -> usize, change: impl Fn(&mut R)) -> usize {
    let (mut a, mut b) = ([0; MAX_FRAME], [0; MAX_FRAME]);
    emit(&base, &mut a);
    let mut changed = base;
    change(&mut changed);
    emit(&changed, &mut b);
    a.iter().zip(&b).position(|(a, b)| a != b).expect("the field is in the frame")
}

/// The offsets that Rust writes each field at, under the C names.
fn rust_offsets() -> Vec<(&'static str, usize)> {
    let header = Header { joints: 2, sequence: 0, session: 0, epoch: 0, time_us: 0 };
    let command = CommandRepr { header, chunk: 0, points: 1, step_us: 0x100, ..example::command() };
    let command = CommandRepr { observation_us: 0, start_us: 0, valid_until_us: 0, ..command };
    let state = StateRepr {
        header,
        mode: Mode::Disarmed,
        fault: None,
        refusal: None,
        torque: false,
        host_sequence: 0,
        chunk: 0,
        bad_frames: 0,
        lost_frames: 0,
        refused_frames: 0,
        echo_us: 0,
        echo_received_us: 0,
        host_session: 0,
        echo_session: 0,
        position: [0.0; MAX_JOINTS],
        velocity: [0.0; MAX_JOINTS],
        setpoint: [0.0; MAX_JOINTS],
    };
    let fault =
        FaultRepr { header, cause: Cause::Deadman, joint: 0, count: 0, at_us: 0, value: 0.0, limit: 0.0 };
    let c = |change: fn(&mut CommandRepr)| offset_of(command, |r, b| r.emit(b).expect("sound"), change);
    let s = |change: fn(&mut StateRepr)| offset_of(state, |r, b| r.emit(b).expect("sound"), change);
    let f = |change: fn(&mut FaultRepr)| offset_of(fault, |r, b| r.emit(b).expect("sound"), change);
    let h = offset_of(
        example::HEARTBEAT,
        |r, b| r.emit(b).expect("sound"),
        |r| r.request = refrain_firmware_bridge::wire::Request::Stop,
    );
    // A small float differs from zero in its upper bytes only; f32 1.0e-40 is subnormal and sets the lowest ones.
    const TINY: f32 = f32::from_bits(1);
    vec![
        ("refrain_header.sequence", c(|r| r.header.sequence = 1)),
        ("refrain_header.session", c(|r| r.header.session = 1)),
        ("refrain_header.epoch", c(|r| r.header.epoch = 1)),
        ("refrain_header.time_us", c(|r| r.header.time_us = 1)),
        ("refrain_command.chunk", c(|r| r.chunk = 1)),
        ("refrain_command.points", c(|r| r.points = 2)),
        ("refrain_command.observation_us", c(|r| r.observation_us = 1)),
        ("refrain_command.start_us", c(|r| r.start_us = 1)),
        ("refrain_command.valid_until_us", c(|r| r.valid_until_us = 1)),
        ("refrain_command.step_us", c(|r| r.step_us = 0x101)),
        (
            "refrain_command",
            offset_of(command, |r, b| r.emit(b).expect("sound"), |r| r.values[0] = -r.values[0]) - 3,
        ),
        ("refrain_state.mode", s(|r| r.mode = Mode::Holding)),
        ("refrain_state.fault", s(|r| r.fault = Some(Cause::Deadman))),
        ("refrain_state.refusal", s(|r| r.refusal = Some(Refusal::Epoch))),
        ("refrain_state.torque", s(|r| r.torque = true)),
        ("refrain_state.host_sequence", s(|r| r.host_sequence = 1)),
        ("refrain_state.chunk", s(|r| r.chunk = 1)),
        ("refrain_state.bad_frames", s(|r| r.bad_frames = 1)),
        ("refrain_state.lost_frames", s(|r| r.lost_frames = 1)),
        ("refrain_state.refused_frames", s(|r| r.refused_frames = 1)),
        ("refrain_state.echo_us", s(|r| r.echo_us = 1)),
        ("refrain_state.echo_received_us", s(|r| r.echo_received_us = 1)),
        ("refrain_state.host_session", s(|r| r.host_session = 1)),
        ("refrain_state.echo_session", s(|r| r.echo_session = 1)),
        ("refrain_state", s(|r| r.position[0] = TINY)),
        ("refrain_heartbeat.request", h),
        ("refrain_fault.cause", f(|r| r.cause = Cause::Driver)),
        ("refrain_fault.joint", f(|r| r.joint = 1)),
        ("refrain_fault.count", f(|r| r.count = 1)),
        ("refrain_fault.at_us", f(|r| r.at_us = 1)),
        ("refrain_fault.value", f(|r| r.value = TINY)),
        ("refrain_fault.limit", f(|r| r.limit = TINY)),
        ("refrain_header", header::LEN),
        ("REFRAIN_MAX_FRAME", MAX_FRAME),
        ("REFRAIN_MAX_ENCODED", MAX_ENCODED),
        ("REFRAIN_MAX_VALUES", MAX_VALUES),
        ("REFRAIN_MAX_POINTS", MAX_POINTS),
        ("REFRAIN_MAX_JOINTS", MAX_JOINTS),
    ]
}

#[test]
fn c_and_rust_agree_on_every_offset_and_byte() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(program) = compile(folder.path()) else { return };

    let line = encoded(&example::COMMAND_BYTES);
    let said = ask(&program, &line);
    for (name, offset) in rust_offsets() {
        assert_eq!(said.get(name), Some(&offset.to_string()), "{name}");
    }
    assert_eq!(said["check"], "cbf43926");
    assert_eq!(said["frame"], hex(&example::COMMAND_BYTES));
    assert_eq!(said["line"], hex(&line));
    assert_eq!((said["kind"].as_str(), said["count"].as_str()), ("1", "4"));
    assert_eq!((said["chunk"].as_str(), said["valid_until"].as_str()), ("42", "1200000"));
    let values = ["value0", "value1", "value2", "value3"].map(|name| said[name].clone());
    assert_eq!(values, ["0.5", "-1", "0.25", "1.5"]);

    let said = ask(&program, &encoded(&example::HEARTBEAT_BYTES));
    assert_eq!((said["kind"].as_str(), said["count"].as_str()), ("3", "-1"));

    // One flipped bit: C refuses it too.
    let mut broken = example::COMMAND_BYTES;
    broken[66] ^= 0x10;
    assert_eq!(ask(&program, &encoded(&broken))["kind"], "-1");

    // The longest frame, with runs of 254 and more bytes that are not zero.
    let header = Header { joints: 7, sequence: 1, session: 1, epoch: 1, time_us: 1 };
    for value in [1.1f32, 0.0] {
        let full = CommandRepr { header, points: 64, values: [value; MAX_VALUES], ..example::command() };
        let mut frame = [0; MAX_FRAME];
        let len = full.emit(&mut frame).expect("sound");
        let said = ask(&program, &encoded(&frame[..len]));
        assert_eq!(said["line"], hex(&encoded(&frame[..len])));
        assert_eq!((said["kind"].as_str(), said["count"].as_str()), ("1", "448"));
    }
}

#[test]
fn the_c_example_takes_the_worked_command_and_drops_a_damaged_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("device");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let run = Command::new(&compiler)
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-DWITHOUT_ZENOH", "-o"])
        .arg(&program)
        .arg("-I")
        .arg(root.join("include"))
        .arg(root.join("../examples/clients/device.c"))
        .output();
    let Ok(output) = run else {
        eprintln!("SKIPPED: the C example was not compiled, no C compiler `{compiler}`");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let say = |frame: &[u8]| {
        let mut child = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        child.stdin.take().expect("piped").write_all(frame).expect("the program reads");
        String::from_utf8(child.wait_with_output().expect("the program ends").stdout).expect("ASCII")
    };
    assert_eq!(say(&example::COMMAND_BYTES), "chunk 42, 2 points, valid 200000 us, last 0.250 1.500\n");
    let mut damaged = example::COMMAND_BYTES;
    damaged[70] ^= 1;
    assert_eq!(say(&damaged), "dropped\n");
}
