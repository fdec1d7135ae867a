//! Arms on simulated servo buses: the bytes are the vendors', and whatever happens the arm is safe.
#![cfg(unix)]

use refrain_firmware_bridge::bridge::Bridge;
use refrain_firmware_bridge::link::host::Event;
use refrain_firmware_bridge::link::{Chunk, Link};
use refrain_firmware_bridge::rehearsal::servos::Servos;
use refrain_firmware_bridge::rehearsal::world::host_config;
use refrain_firmware_bridge::servo::{Arm, Calibration, Model, ServoBus};
use refrain_firmware_bridge::wire::{Cause, Mode, StateRepr};
use serialport::{SerialPort, TTYPort};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const ARM: &str = include_str!("../../examples/so101/arm.toml");
const LONG: Duration = Duration::from_secs(20);

/// Six servos behind a pseudo-terminal, turned by a thread that ends with the line.
struct Rig {
    servos: Arc<Mutex<Servos>>,
    heard: Arc<Mutex<Vec<u8>>>,
    goals: Arc<Mutex<Vec<[i32; 6]>>>,
}

fn rig(model: Model) -> (Rig, Box<dyn SerialPort>) {
    let (near, mut far) = TTYPort::pair().expect("a pseudo-terminal");
    far.set_timeout(Duration::from_millis(2)).expect("a timeout");
    let servos = Arc::new(Mutex::new(Servos::new(model, 6)));
    let (heard, goals) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let rig = Rig { servos: Arc::clone(&servos), heard: Arc::clone(&heard), goals: Arc::clone(&goals) };
    std::thread::spawn(move || {
        let (mut bytes, mut last) = ([0; 512], Instant::now());
        loop {
            let read = far.read(&mut bytes);
            let mut servos = servos.lock().expect("the servos");
            servos.advance(last.elapsed().as_secs_f64());
            last = Instant::now();
            match read {
                Ok(count) => {
                    heard.lock().expect("what was heard").extend_from_slice(&bytes[..count]);
                    let answer = servos.hear(&bytes[..count]);
                    let told = [1, 2, 3, 4, 5, 6].map(|id| servos.told(id).expect("a servo"));
                    if told.iter().all(|(torque, _)| *torque) {
                        goals.lock().expect("the goals").push(told.map(|(_, goal)| goal));
                    }
                    drop(servos);
                    if far.write_all(&answer).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {}
                Err(_) => return,
            }
        }
    });
    (rig, Box::new(near))
}

fn calibration(limp: bool) -> Calibration {
    Calibration { limp_after_fault: limp, deadman_ms: 2000, ..Calibration::parse(ARM).expect("the example") }
}

fn hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")).collect()
}

/// What the bus writes when told so; bytes seen between rustypot and an independent bus.
fn assert_written(model: Model, act: impl FnOnce(&mut ServoBus), expected: &str) {
    let (rig, near) = rig(model);
    let count = if model == Model::Sts3215 { 6 } else { 2 };
    let mut bus = ServoBus::on(near, model, &calibration(false).joints[..count]);
    act(&mut bus);
    let (expected, start) = (hex(expected), Instant::now());
    while rig.heard.lock().expect("what was heard").len() < expected.len() && start.elapsed() < LONG {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(*rig.heard.lock().expect("what was heard"), expected);
}

#[test]
fn the_bytes_on_a_feetech_bus() {
    let goals = [2048, 2113, 1982, 2373, 2699, 1396];
    assert_written(
        Model::Sts3215,
        |bus| bus.write_torque(true).expect("sent"),
        "ff ff fe 10 83 28 01 01 01 02 01 03 01 04 01 05 01 06 01 2a",
    );
    assert_written(
        Model::Sts3215,
        |bus| bus.write_torque(false).expect("sent"),
        "ff ff fe 10 83 28 01 01 00 02 00 03 00 04 00 05 00 06 00 30",
    );
    assert_written(
        Model::Sts3215,
        |bus| bus.write_goals(&goals).expect("sent"),
        "ff ff fe 16 83 2a 02 01 00 08 02 41 08 03 be 07 04 45 09 05 8b 0a 06 74 05 b5",
    );
    assert_written(
        Model::Sts3215,
        |bus| drop(bus.read().expect("six readings")),
        "ff ff fe 0a 82 38 02 01 02 03 04 05 06 26",
    );
}

#[test]
fn the_bytes_on_a_dynamixel_bus() {
    assert_written(
        Model::DynamixelX,
        |bus| bus.write_goals(&[2048, 2113]).expect("sent"),
        "ff ff fd 00 fe 11 00 83 74 00 04 00 01 00 08 00 00 02 41 08 00 00 76 58",
    );
    let (_rig, near) = rig(Model::DynamixelX);
    let mut bus = ServoBus::on(near, Model::DynamixelX, &calibration(false).joints);
    let readings = bus.read().expect("six readings");
    assert!(readings.iter().all(|reading| (reading.ticks, reading.error) == (2048, 0)), "{readings:?}");
}

/// What a run saw.
#[derive(Default)]
struct Seen {
    last: Option<StateRepr>,
    faults: Vec<(Cause, u8)>,
}

fn drive(
    bridge: &mut Bridge<Arm>,
    seen: &mut Seen,
    target: Option<f32>,
    done: impl Fn(&Bridge<Arm>, &Seen) -> bool,
) -> bool {
    let (start, mut due_us, mut id) = (Instant::now(), 0, 0);
    while start.elapsed() < LONG {
        if done(bridge, seen) {
            return true;
        }
        let now_us = bridge.now_us();
        let values = [target.unwrap_or(0.0); 12];
        let chunk = Chunk {
            id,
            observation_us: now_us,
            start_us: now_us,
            valid_until_us: now_us + 300_000,
            step_us: 100_000,
            values: &values,
        };
        let send = target.is_some() && now_us >= due_us && bridge.link() == Link::Armed;
        if send {
            (due_us, id) = (now_us + 50_000, id + 1);
        }
        let polled =
            bridge.poll(send.then_some(&chunk), Duration::from_millis(2), &mut |event| match event {
                Event::State(state) => seen.last = Some(state),
                Event::Fault(fault) => seen.faults.push((fault.cause, fault.joint)),
            });
        polled.expect("the port works").ok();
    }
    false
}

fn arrived(seen: &Seen, target: f32) -> bool {
    seen.last.is_some_and(|state| state.position[..6].iter().all(|position| (position - target).abs() < 0.02))
}

fn armed_at(model: Model, limp: bool, target: f32) -> (Rig, Bridge<Arm>, Seen) {
    let (rig, near) = rig(model);
    let calibration = calibration(limp);
    let bus = ServoBus::on(near, model, &calibration.joints);
    let mut bridge = Bridge::new(Arm::new(bus, &calibration).expect("a sound calibration"), host_config());
    let mut seen = Seen::default();
    assert!(drive(&mut bridge, &mut seen, None, |bridge, _| bridge.link() == Link::Disarmed));
    assert!(bridge.arm());
    assert!(drive(&mut bridge, &mut seen, Some(target), |_, seen| arrived(seen, target)), "{:?}", seen.last);
    (rig, bridge, seen)
}

#[test]
fn an_arm_follows_within_its_limits_and_holds_after_a_stop() {
    for model in [Model::Sts3215, Model::DynamixelX] {
        let (rig, mut bridge, mut seen) = armed_at(model, false, 0.5);
        bridge.stop();
        assert!(drive(&mut bridge, &mut seen, None, |_, seen| seen
            .last
            .is_some_and(|s| s.mode == Mode::Disarmed)));
        let goals = rig.goals.lock().expect("the goals");
        let calibration = calibration(false);
        for pair in goals.windows(2) {
            for (joint, (before, after)) in calibration.joints.iter().zip(pair[0].iter().zip(pair[1])) {
                let step = (joint.radians(after) - joint.radians(*before)).abs();
                let most = joint.velocity / calibration.rate_hz as f32 + joint.radians(joint.zero + 1).abs();
                assert!(step <= most, "{model:?} {}: {step} rad in a tick, at most {most}", joint.name);
            }
        }
        assert_eq!(rig.servos.lock().expect("the servos").told(1).map(|(torque, _)| torque), Some(true));
    }
}

#[test]
fn a_servo_that_complains_latches_a_fault_and_the_torque_goes_off() {
    let (rig, mut bridge, mut seen) = armed_at(Model::Sts3215, true, 0.3);
    // Overheating, as the status packet says it.
    rig.servos.lock().expect("the servos").servo(4).expect("a servo").error = 0x04;
    assert!(drive(&mut bridge, &mut seen, Some(0.3), |_, seen| !seen.faults.is_empty()));
    assert_eq!(seen.faults, [(Cause::Driver, 3)]);
    let torque_off = |rig: &Rig| {
        let servos = rig.servos.lock().expect("the servos");
        (1..=6).all(|id| servos.told(id).is_some_and(|(torque, _)| !torque))
    };
    assert!(drive(&mut bridge, &mut seen, Some(0.3), |_, _| torque_off(&rig)));
    assert_eq!(seen.last.map(|state| state.mode), Some(Mode::Faulted));
    rig.servos.lock().expect("the servos").servo(4).expect("a servo").error = 0;
    assert!(drive(&mut bridge, &mut seen, None, |bridge, _| bridge.link() == Link::Faulted));
    assert!(bridge.arm());
    assert!(drive(&mut bridge, &mut seen, Some(0.2), |_, seen| arrived(seen, 0.2)));
}

#[test]
fn a_servo_whose_plug_comes_out_is_a_sensor_fault_and_the_others_hold() {
    let (rig, mut bridge, mut seen) = armed_at(Model::Sts3215, false, 0.3);
    rig.servos.lock().expect("the servos").servo(2).expect("a servo").unplugged = true;
    assert!(drive(&mut bridge, &mut seen, Some(0.3), |_, seen| !seen.faults.is_empty()));
    assert_eq!(seen.faults[0].0, Cause::Sensor);
    assert_eq!(rig.servos.lock().expect("the servos").told(1).map(|(torque, _)| torque), Some(true));
}
