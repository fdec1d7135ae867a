//! Both ends together, and the device under random events.

use super::device::Output;
use super::*;
use crate::wire::fault::Cause;
use crate::wire::state::Refusal;
use crate::wire::{CommandRepr, Header, HeartbeatRepr, MAX_FRAME, MAX_JOINTS, MAX_VALUES, Mode, Request};
use proptest::prelude::*;

const TICK_US: u64 = 1_000;
const DEADMAN_US: u64 = 100_000;
const JOINTS: usize = 2;
const HOST: u32 = 77;

const LIMITS: JointLimits = JointLimits {
    position_min: -1.0,
    position_max: 1.5,
    velocity: 2.0,
    acceleration: 20.0,
    following_error: 0.3,
};

fn config() -> DeviceConfig {
    DeviceConfig {
        joints: JOINTS as u8,
        limits: [LIMITS; MAX_JOINTS],
        tick_us: TICK_US as u32,
        state_period_us: 10_000,
        deadman_us: DEADMAN_US,
        max_validity_us: 500_000,
        max_observation_age_us: 300_000,
        clock_slack_us: 5_000,
        ramp_us: 50_000,
        after_fault: AfterFault::Hold,
    }
}

/// A device with motors that follow at once, and a hand that writes frames.
struct Bench {
    device: Device,
    now_us: u64,
    sequence: u32,
    measured: [f32; JOINTS],
    output: Output,
}

impl Bench {
    fn new(config: DeviceConfig) -> Self {
        let mut device = Device::new(config, 10).unwrap();
        let measured = [0.2; JOINTS];
        let output = device.tick(1_000_000, &measured);
        Self { device, now_us: 1_000_000, sequence: 0, measured, output }
    }

    fn header(&mut self) -> Header {
        self.sequence += 1;
        let (sequence, epoch, time_us) = (self.sequence, self.device.epoch(), self.now_us);
        Header { joints: JOINTS as u8, sequence, session: HOST, epoch, time_us }
    }

    fn beat(&mut self, request: Request) {
        let repr = HeartbeatRepr { header: self.header(), request };
        let mut frame = [0; MAX_FRAME];
        let len = repr.emit(&mut frame).unwrap();
        self.device.receive(self.now_us, &frame[..len]);
    }

    /// A chunk of `to` for both joints in 100 points of 10 ms, valid for 200 ms; `change` alters it.
    fn command(&mut self, to: f32, change: impl Fn(&mut CommandRepr)) -> Vec<u8> {
        let mut values = [0.0; MAX_VALUES];
        values[..20].fill(to);
        let mut repr = CommandRepr {
            header: self.header(),
            chunk: self.sequence,
            points: 10,
            observation_us: self.now_us - 50_000,
            start_us: self.now_us,
            valid_until_us: self.now_us + 200_000,
            step_us: 10_000,
            values,
        };
        change(&mut repr);
        let mut frame = [0; MAX_FRAME];
        let len = repr.emit(&mut frame).unwrap();
        frame[..len].to_vec()
    }

    fn send(&mut self, frame: &[u8]) {
        self.device.receive(self.now_us, frame);
    }

    /// One tick; checks what must hold in every tick.
    fn tick(&mut self) -> Result<(), TestCaseError> {
        self.now_us += TICK_US;
        let before = self.output;
        let silent = self.device.mode().is_armed() && self.now_us - self.device.heard_us() > DEADMAN_US;
        self.output = self.device.tick(self.now_us, &self.measured);
        if silent {
            prop_assert_eq!(self.device.mode(), Mode::Faulted);
        }
        let tick_s = TICK_US as f32 * 1e-6;
        for joint in 0..JOINTS {
            let (setpoint, velocity) = (self.output.setpoint[joint], self.output.velocity[joint]);
            prop_assert!(setpoint.is_finite() && velocity.is_finite());
            if self.output.torque {
                let from = if before.torque { before.setpoint[joint] } else { self.measured[joint] };
                prop_assert!((setpoint - from).abs() <= LIMITS.velocity * tick_s);
                let change = velocity - before.velocity[joint];
                prop_assert!(change.abs() <= LIMITS.acceleration * tick_s);
                // A joint that was limp may have been pushed out of its range: then it may only come back.
                let range = LIMITS.position_min.min(from)..=LIMITS.position_max.max(from);
                prop_assert!(range.contains(&setpoint));
                self.measured[joint] = setpoint;
            }
        }
        Ok(())
    }

    fn run(&mut self, ticks: u32) {
        for _ in 0..ticks {
            self.tick().unwrap();
        }
    }

    /// The same, with a heartbeat every 10 ms.
    fn run_alive(&mut self, ticks: u32) {
        for tick in 0..ticks {
            if tick % 10 == 0 {
                self.beat(Request::None);
            }
            self.tick().unwrap();
        }
    }
}

#[test]
fn arms_ramps_runs_and_holds_at_the_end_of_validity() {
    let mut bench = Bench::new(config());
    let frame = bench.command(1.0, |_| ());
    bench.send(&frame);
    assert_eq!((bench.device.mode(), bench.device.refusal()), (Mode::Disarmed, Some(Refusal::NotArmed)));
    assert!(!bench.output.torque);
    bench.beat(Request::Arm);
    assert_eq!(bench.device.mode(), Mode::Holding);
    let frame = bench.command(1.0, |_| ());
    bench.send(&frame);
    assert_eq!(bench.device.mode(), Mode::Ramping);
    bench.run(20);
    assert!(bench.output.velocity[0] <= 2.0 * 20.0 / 50.0);
    bench.run(40);
    assert_eq!(bench.device.mode(), Mode::Running);
    bench.run_alive(200);
    assert_eq!(bench.device.mode(), Mode::Holding);
    let held = bench.output.setpoint[0];
    bench.run_alive(200);
    assert!(bench.output.velocity == [0.0; MAX_JOINTS] && bench.output.setpoint[0] - held < 0.11);
}

#[test]
fn reaches_the_chunks_end_within_the_limits() {
    let mut bench = Bench::new(config());
    bench.beat(Request::Arm);
    for _ in 0..10 {
        let frame = bench.command(1.0, |_| ());
        bench.send(&frame);
        bench.run(90);
    }
    assert!((bench.output.setpoint[0] - 1.0).abs() < 1e-5, "{:?}", bench.output);
}

#[test]
fn a_deadman_latches_until_armed_for_the_new_epoch() {
    let mut bench = Bench::new(config());
    bench.beat(Request::Arm);
    let late = bench.command(1.0, |command| command.valid_until_us += 250_000);
    let frame = bench.command(1.0, |command| command.valid_until_us += 250_000);
    bench.send(&frame);
    bench.run(100);
    assert_eq!(bench.device.mode(), Mode::Running);
    bench.run(1);
    assert_eq!((bench.device.mode(), bench.device.fault()), (Mode::Faulted, Some(Cause::Deadman)));
    // Neither life nor a command nor a request that names the old epoch clears it.
    bench.beat(Request::None);
    bench.send(&late);
    let old = {
        let mut header = bench.header();
        header.epoch -= 1;
        HeartbeatRepr { header, request: Request::Arm }
    };
    let mut buffer = [0; MAX_FRAME];
    let len = old.emit(&mut buffer).unwrap();
    bench.send(&buffer[..len]);
    assert_eq!((bench.device.mode(), bench.device.refusal()), (Mode::Faulted, Some(Refusal::Epoch)));
    bench.run(300);
    assert!(bench.output.torque && bench.output.velocity == [0.0; MAX_JOINTS]);
    bench.beat(Request::Arm);
    assert_eq!((bench.device.mode(), bench.device.fault()), (Mode::Holding, None));
}

#[test]
fn goes_limp_when_so_configured_and_arms_where_the_joint_is() {
    let mut bench = Bench::new(DeviceConfig { after_fault: AfterFault::Limp, ..config() });
    bench.beat(Request::Arm);
    bench.run(101);
    assert_eq!((bench.device.mode(), bench.output.torque), (Mode::Faulted, false));
    bench.measured = [-0.7; JOINTS];
    bench.run(3);
    bench.beat(Request::Arm);
    bench.run(1);
    assert!(bench.output.torque && bench.output.setpoint[..2] == [-0.7; 2]);
}

#[test]
fn refuses_what_is_stale_foreign_or_repeated() {
    type Change = fn(&mut CommandRepr);
    let cases: [(Change, Option<Refusal>); 11] = [
        (|_| (), None),
        (|c| c.header.sequence -= 1, Some(Refusal::Sequence)),
        (|c| c.header.sequence = c.header.sequence.wrapping_sub(5), Some(Refusal::Sequence)),
        (|c| c.header.session += 1, Some(Refusal::Session)),
        (|c| c.header.epoch -= 1, Some(Refusal::Epoch)),
        (|c| (c.header.joints, c.points) = (4, 5), Some(Refusal::Joints)),
        (|c| c.valid_until_us -= 200_000, Some(Refusal::Expired)),
        (|c| c.valid_until_us = 0, Some(Refusal::Expired)),
        (|c| c.valid_until_us = u64::MAX, Some(Refusal::Validity)),
        (|c| c.observation_us -= 300_000, Some(Refusal::ObservationOld)),
        (|c| c.observation_us = u64::MAX, Some(Refusal::ObservationFuture)),
    ];
    for (change, expected) in cases {
        let mut bench = Bench::new(config());
        bench.beat(Request::Arm);
        let frame = bench.command(1.0, change);
        bench.send(&frame);
        assert_eq!(bench.device.refusal(), expected);
        let mode = if expected.is_none() { Mode::Ramping } else { Mode::Holding };
        assert_eq!(bench.device.mode(), mode, "{expected:?}");
        assert_eq!(bench.device.counters().refused, u32::from(expected.is_some()));
    }
}

#[test]
fn a_repeated_frame_does_not_feed_the_deadman() {
    let mut bench = Bench::new(config());
    bench.beat(Request::Arm);
    let frame = bench.command(1.0, |_| ());
    for _ in 0..101 {
        bench.send(&frame);
        bench.run(1);
    }
    assert_eq!(bench.device.fault(), Some(Cause::Deadman));
}

#[test]
fn anybody_may_stop_it() {
    let mut bench = Bench::new(config());
    bench.beat(Request::Arm);
    let mut header = bench.header();
    (header.session, header.epoch, header.sequence) = (5, 99, 0);
    let mut frame = [0; MAX_FRAME];
    let len = HeartbeatRepr { header, request: Request::Stop }.emit(&mut frame).unwrap();
    bench.send(&frame[..len]);
    assert_eq!(bench.device.mode(), Mode::Disarmed);
}

#[test]
fn a_jammed_joint_and_a_broken_sensor_are_faults() {
    let mut bench = Bench::new(config());
    bench.beat(Request::Arm);
    bench.run(1);
    bench.measured[1] = 0.2 - 0.31;
    bench.run(1);
    assert_eq!(bench.device.fault(), Some(Cause::FollowingError));
    let mut device = Bench::new(config());
    device.beat(Request::Arm);
    device.measured[1] = f32::NAN;
    let output = device.device.tick(device.now_us + TICK_US, &device.measured);
    assert_eq!(device.device.fault(), Some(Cause::Sensor));
    assert!(output.setpoint.iter().all(|value| value.is_finite()));
    assert_eq!(device.device.tick(device.now_us + 2 * TICK_US, &[]).setpoint, output.setpoint);
}

#[derive(Clone, Debug)]
enum Happening {
    Ticks(u32),
    Beat(Request),
    Command { to: f32, spread: f32, ahead: i64, valid: u64, step_us: u32 },
    Duplicate,
    Corrupt(usize, u8),
    Noise(Vec<u8>),
    Foreign(Request),
    Push(f32),
    Jump(u64),
    Driver,
}

fn happenings() -> impl Strategy<Value = Happening> {
    let place = prop_oneof![4 => -2.0f32..2.0, 1 => prop_oneof![Just(f32::MAX), Just(f32::MIN), Just(1e-40)]];
    prop_oneof![
        8 => (1..120u32).prop_map(Happening::Ticks),
        2 => Just(Happening::Beat(Request::None)),
        4 => Just(Happening::Beat(Request::Arm)),
        1 => Just(Happening::Beat(Request::Stop)),
        12 => (place.clone(), place, -200_000..200_000i64, 0..600_000u64, 1..100_000u32).prop_map(
            |(to, spread, ahead, valid, step_us)| Happening::Command { to, spread, ahead, valid, step_us }
        ),
        2 => Just(Happening::Duplicate),
        2 => (0..200usize, 1..=255u8).prop_map(|(at, mask)| Happening::Corrupt(at, mask)),
        1 => proptest::collection::vec(any::<u8>(), 0..100).prop_map(Happening::Noise),
        1 => (0..3u8).prop_map(|code| Happening::Foreign(Request::from_code(code).unwrap())),
        1 => (-2.0f32..2.0).prop_map(Happening::Push),
        1 => (0..300_000u64).prop_map(Happening::Jump),
        1 => Just(Happening::Driver),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn whatever_happens_no_limit_is_broken(
        happenings in proptest::collection::vec(happenings(), 1..60),
        limp in any::<bool>(),
    ) {
        let after_fault = if limp { AfterFault::Limp } else { AfterFault::Hold };
        let mut bench = Bench::new(DeviceConfig { after_fault, ..config() });
        bench.beat(Request::Arm);
        let mut last = Vec::new();
        for happening in happenings {
            let faulted = bench.device.mode() == Mode::Faulted;
            let mut may_clear = false;
            match happening {
                Happening::Ticks(ticks) => {
                    for _ in 0..ticks {
                        bench.tick()?;
                    }
                }
                Happening::Beat(request) => {
                    may_clear = request == Request::Arm;
                    bench.beat(request);
                }
                Happening::Command { to, spread, ahead, valid, step_us } => {
                    last = bench.command(to, |command| {
                        command.start_us = command.start_us.saturating_add_signed(ahead);
                        command.valid_until_us = command.start_us + valid;
                        command.step_us = step_us;
                        for (index, value) in command.values[..20].iter_mut().enumerate() {
                            let moved = *value + spread * (index as f32 * 0.7).sin();
                            *value = if moved.is_finite() { moved } else { f32::MAX };
                        }
                    });
                    bench.send(&last);
                }
                Happening::Duplicate => bench.send(&last),
                Happening::Corrupt(at, mask) => {
                    let mut frame = bench.command(0.5, |_| ());
                    let at = at % frame.len();
                    frame[at] ^= mask;
                    let before = bench.device.counters();
                    bench.send(&frame);
                    prop_assert_eq!(bench.device.counters().commands, before.commands);
                    prop_assert_eq!(bench.device.counters().bad, before.bad + 1);
                }
                Happening::Noise(bytes) => bench.send(&bytes),
                Happening::Foreign(request) => {
                    let header = Header { session: 5, sequence: 1, ..bench.header() };
                    may_clear = request == Request::Arm;
                    let mut frame = [0; MAX_FRAME];
                    let len = HeartbeatRepr { header, request }.emit(&mut frame).unwrap();
                    bench.send(&frame[..len]);
                }
                // A hand moves the joints: only where they are limp, or it is a following error.
                Happening::Push(to) if !bench.output.torque => {
                    bench.measured = [to.clamp(-0.99, 1.49); JOINTS];
                    bench.tick()?;
                }
                Happening::Push(by) => {
                    bench.measured[0] += by;
                    bench.tick()?;
                }
                Happening::Jump(us) => bench.now_us += us,
                Happening::Driver => bench.device.trip_driver(bench.now_us, 0),
            }
            if faulted && !may_clear {
                prop_assert_eq!(bench.device.mode(), Mode::Faulted);
            }
        }
    }
}
