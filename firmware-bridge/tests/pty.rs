//! The bridge against the simulated microcontroller: two processes and a pseudo-terminal between them.
#![cfg(unix)]

use refrain_firmware_bridge::bridge::Bridge;
use refrain_firmware_bridge::link::host::Event;
use refrain_firmware_bridge::link::{Chunk, Link};
use refrain_firmware_bridge::port::SerialLine;
use refrain_firmware_bridge::rehearsal::world::host_config;
use refrain_firmware_bridge::wire::{Cause, Mode, StateRepr};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A simulated microcontroller; ends with the test.
struct Simulator {
    child: Child,
    path: String,
}

impl Simulator {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_refrain-mcu-sim"))
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the simulator starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("it prints its port");
        let path = line.trim().strip_prefix("port ").expect("`port PATH`").to_owned();
        Self { child, path }
    }

    fn bridge(&self) -> Bridge<SerialLine> {
        Bridge::new(SerialLine::open(&self.path, 921_600).expect("the port opens"), host_config())
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a run saw.
#[derive(Default)]
struct Seen {
    states: u32,
    last: Option<StateRepr>,
    faults: Vec<Cause>,
}

/// Polls until `done` or the limit; sends a chunk to `target` every 50 ms if there is one. Gives whether it was done.
fn drive(
    bridge: &mut Bridge<SerialLine>,
    seen: &mut Seen,
    target: Option<f32>,
    limit: Duration,
    done: impl Fn(&Bridge<SerialLine>, &Seen) -> bool,
) -> bool {
    let (start, mut due_us, mut id) = (Instant::now(), 0, 0);
    while start.elapsed() < limit {
        if done(bridge, seen) {
            return true;
        }
        let now_us = bridge.now_us();
        let values = [target.unwrap_or(0.0); 48];
        let chunk = Chunk {
            id,
            observation_us: now_us,
            start_us: now_us,
            valid_until_us: now_us + 150_000,
            step_us: 20_000,
            values: &values,
        };
        let send = target.is_some() && now_us >= due_us && bridge.link() == Link::Armed;
        if send {
            (due_us, id) = (now_us + 50_000, id + 1);
        }
        let polled =
            bridge.poll(send.then_some(&chunk), Duration::from_millis(2), &mut |event| match event {
                Event::State(state) => {
                    seen.states += 1;
                    seen.last = Some(state);
                }
                Event::Fault(fault) => seen.faults.push(fault.cause),
            });
        polled.expect("the port works").ok();
    }
    done(bridge, seen)
}

const LONG: Duration = Duration::from_secs(20);

fn mode(seen: &Seen) -> Option<Mode> {
    seen.last.map(|state| state.mode)
}

fn arrived(seen: &Seen, target: f32) -> bool {
    seen.last.is_some_and(|state| state.position[..6].iter().all(|position| (position - target).abs() < 0.01))
}

#[test]
fn arms_moves_faults_on_silence_and_arms_again() {
    let simulator = Simulator::start(&[]);
    let (mut bridge, mut seen) = (simulator.bridge(), Seen::default());
    assert!(drive(&mut bridge, &mut seen, None, LONG, |bridge, _| bridge.link() == Link::Disarmed));
    assert!(bridge.arm());
    assert!(drive(&mut bridge, &mut seen, None, LONG, |bridge, _| bridge.link() == Link::Armed));
    assert!(drive(&mut bridge, &mut seen, Some(0.5), LONG, |_, seen| arrived(seen, 0.5)));
    // The host does nothing for longer than the deadman time.
    std::thread::sleep(Duration::from_millis(400));
    assert!(drive(&mut bridge, &mut seen, Some(0.5), LONG, |_, seen| mode(seen) == Some(Mode::Faulted)));
    assert!(seen.faults.contains(&Cause::Deadman));
    assert!(!drive(&mut bridge, &mut seen, Some(0.0), Duration::from_millis(300), |_, seen| {
        mode(seen) != Some(Mode::Faulted)
    }));
    assert!(bridge.arm());
    assert!(drive(&mut bridge, &mut seen, Some(0.0), LONG, |_, seen| arrived(seen, 0.0)));
    bridge.stop();
    assert!(drive(&mut bridge, &mut seen, None, LONG, |_, seen| mode(seen) == Some(Mode::Disarmed)));
}

#[test]
fn works_through_a_bad_line() {
    let faults =
        ["--drop", "0.05", "--corrupt", "0.001", "--duplicate", "0.1", "--delay", "3", "--seed", "4"];
    let simulator = Simulator::start(&faults);
    let (mut bridge, mut seen) = (simulator.bridge(), Seen::default());
    assert!(drive(&mut bridge, &mut seen, None, LONG, |bridge, _| bridge.link() == Link::Disarmed));
    assert!(bridge.arm());
    assert!(drive(&mut bridge, &mut seen, Some(0.4), LONG, |_, seen| arrived(seen, 0.4)));
    let state = seen.last.expect("a state");
    assert!(state.bad_frames > 0 && state.refused_frames > 0, "the faults were there: {state:?}");
}

#[test]
fn a_reset_is_seen_and_nothing_moves_until_armed_anew() {
    let simulator = Simulator::start(&["--reset", "1500"]);
    let (mut bridge, mut seen) = (simulator.bridge(), Seen::default());
    assert!(drive(&mut bridge, &mut seen, None, LONG, |bridge, _| bridge.link() == Link::Disarmed));
    let resets = bridge.counters().resets;
    assert!(bridge.arm());
    assert!(drive(&mut bridge, &mut seen, Some(0.2), Duration::from_secs(3), |bridge, _| bridge
        .counters()
        .resets
        > resets));
    // The new device is heard at once; what it heard of before does not move it.
    let soon = Duration::from_millis(500);
    assert!(drive(&mut bridge, &mut seen, Some(0.2), soon, |bridge, _| bridge.link() == Link::Disarmed));
    assert!(!drive(&mut bridge, &mut seen, Some(0.2), Duration::from_millis(300), |_, seen| {
        seen.last.is_some_and(|state| state.torque)
    }));
}

#[test]
fn a_killed_host_leaves_a_device_that_holds_until_another_arms_it() {
    let simulator = Simulator::start(&[]);
    let mut host = Command::new(env!("CARGO_BIN_EXE_refrain-bridge"))
        .args(["--serial", &simulator.path, "--arm", "--demo", "0.5", "--print-ms", "20"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the bridge starts");
    let output = BufReader::new(host.stdout.take().expect("piped"));
    let running = output.lines().map_while(Result::ok).take(500).any(|line| line.contains("Running"));
    assert!(running, "the bridge got the device to run");
    // On Unix this is SIGKILL: no destructor runs, nothing is said to the device.
    host.kill().expect("killed");
    host.wait().expect("reaped");

    let (mut bridge, mut seen) = (simulator.bridge(), Seen::default());
    assert!(drive(&mut bridge, &mut seen, None, LONG, |bridge, seen| {
        // It brakes first.
        bridge.link() == Link::Faulted && seen.last.is_some_and(|state| state.velocity == [0.0; 16])
    }));
    let state = seen.last.expect("a state");
    assert_eq!((state.mode, state.fault, state.torque), (Mode::Faulted, Some(Cause::Deadman), true));
    assert!(bridge.arm());
    assert!(drive(&mut bridge, &mut seen, Some(0.1), LONG, |_, seen| arrived(seen, 0.1)));
}
