//! The bridge's zenoh side: a trajectory moves a simulated microcontroller and its joint states come back; a device that
//! speaks zenoh itself gets its frames.
#![cfg(unix)]

use hiroz_cdr::{CdrReader, CdrWriter, LittleEndian};
use refrain_firmware_bridge::clock::{Clock, wall_ns};
use refrain_firmware_bridge::link::Device;
use refrain_firmware_bridge::rehearsal::world::device_config;
use refrain_firmware_bridge::wire::MAX_FRAME;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use zenoh::Wait;

const LONG: Duration = Duration::from_secs(30);
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_endpoint() -> String {
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr()).expect("a port").port();
    format!("tcp/127.0.0.1:{port}")
}

fn session(endpoint: &str) -> zenoh::Session {
    let mut config = zenoh::Config::default();
    for (key, value) in [
        ("scouting/multicast/enabled", "false".to_owned()),
        ("listen/endpoints", "[]".to_owned()),
        ("connect/endpoints", format!("[{endpoint:?}]")),
    ] {
        config.insert_json5(key, &value).expect("zenoh's configuration");
    }
    zenoh::open(config).wait().expect("a session")
}

/// A trajectory to `target` in half a second, joints in reverse order, in CDR.
fn trajectory(target: f64) -> Vec<u8> {
    let mut out = vec![0, 1, 0, 0];
    let mut writer = CdrWriter::<LittleEndian>::new(&mut out);
    let now = wall_ns();
    writer.write_i32((now / 1_000_000_000) as i32);
    writer.write_u32((now % 1_000_000_000) as u32);
    writer.write_string("");
    writer.write_sequence_length(NAMES.len());
    NAMES.iter().rev().for_each(|name| writer.write_string(name));
    writer.write_sequence_length(2);
    for nanos in [100_000_000, 120_000_000] {
        writer.write_sequence_length(NAMES.len());
        (0..NAMES.len()).for_each(|joint| writer.write_f64(target + 0.01 * (5 - joint) as f64));
        (0..3).for_each(|_| writer.write_sequence_length(0));
        writer.write_i32(0);
        writer.write_u32(nanos);
    }
    out
}

/// The positions of a `JointState` whose names are ours.
fn positions(bytes: &[u8]) -> Vec<f64> {
    let mut reader = CdrReader::<LittleEndian>::new(&bytes[4..]);
    reader.read_i32().expect("seconds");
    reader.read_u32().expect("nanoseconds");
    reader.read_str().expect("a frame");
    let count = reader.read_u32().expect("a length");
    let names: Vec<_> = (0..count).map(|_| reader.read_str().expect("a name")).collect();
    assert_eq!(names, NAMES);
    let count = reader.read_u32().expect("a length");
    (0..count).map(|_| reader.read_f64().expect("a number")).collect()
}

fn bridge(arguments: &[&str]) -> Running {
    let bridge = Command::new(env!("CARGO_BIN_EXE_refrain-bridge"))
        .args(arguments)
        .args([
            "--arm",
            "--names",
            "a,b,c,d,e,f",
            "--trajectories",
            "arm/trajectory",
            "--states",
            "arm/states",
        ])
        .stdout(Stdio::null())
        .spawn();
    Running(bridge.expect("the bridge starts"))
}

/// Publishes trajectories until the joint states are there.
fn moved(session: &zenoh::Session) {
    let newest = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&newest);
    let _states = session
        .declare_subscriber("arm/states")
        .callback(move |sample| {
            assert_eq!(sample.attachment().map(|note| note.to_bytes().len()), Some(33));
            *keep.lock().expect("the newest") = Some(positions(&sample.payload().to_bytes()));
        })
        .wait()
        .expect("a subscription");
    let start = Instant::now();
    while start.elapsed() < LONG {
        session.put("arm/trajectory", trajectory(0.3)).wait().expect("a put");
        std::thread::sleep(Duration::from_millis(50));
        let newest = newest.lock().expect("the newest").clone();
        let wanted = |joint: usize| 0.3 + 0.01 * joint as f64;
        let there = |p: &Vec<f64>| p.iter().enumerate().all(|(joint, at)| (at - wanted(joint)).abs() < 0.01);
        if newest.as_ref().is_some_and(there) {
            return;
        }
    }
    panic!("never arrived: {:?}", newest.lock().expect("the newest"));
}

#[test]
fn a_trajectory_moves_a_microcontroller_and_its_states_come_back() {
    let mut simulator = Command::new(env!("CARGO_BIN_EXE_refrain-mcu-sim"))
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)
        .expect("the simulator starts");
    let mut line = String::new();
    BufReader::new(simulator.0.stdout.take().expect("piped")).read_line(&mut line).expect("its port");
    let port = line.trim().strip_prefix("port ").expect("`port PATH`");
    let endpoint = free_endpoint();
    let _bridge = bridge(&["--serial", port, "--listen", &endpoint]);
    moved(&session(&endpoint));
}

#[test]
fn a_device_on_zenoh_gets_frames_and_its_own_come_back() {
    let endpoint = free_endpoint();
    let _bridge = bridge(&["--wire", "arm", "--listen", &endpoint]);
    let session = session(&endpoint);
    let device = Arc::new(Mutex::new(Device::new(device_config(), 7).expect("a sound configuration")));
    let (clock, hears) = (Clock::start(), Arc::clone(&device));
    let _commands = session
        .declare_subscriber("arm/command")
        .callback(move |sample| {
            let frame = sample.payload().to_bytes();
            assert!(frame.len() <= MAX_FRAME && MAX_FRAME < 2048, "zenoh-pico takes it");
            hears.lock().expect("the device").receive(clock.now_us(), &frame);
        })
        .wait()
        .expect("a subscription");
    let own = session.clone();
    std::thread::spawn(move || {
        let (mut frame, mut measured) = ([0; MAX_FRAME], [0.0; 6]);
        while !own.is_closed() {
            let mut device = device.lock().expect("the device");
            let output = device.tick(clock.now_us(), &measured);
            if output.torque {
                measured.copy_from_slice(&output.setpoint[..6]);
            }
            while let Some(len) = device.poll_transmit(clock.now_us(), &mut frame) {
                let _ = own.put("arm/state", frame[..len].to_vec()).wait();
            }
            drop(device);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    moved(&session);
    session.close().wait().expect("a clean end");
}
