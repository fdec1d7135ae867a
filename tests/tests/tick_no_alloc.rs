//! No tick of the control loop allocates, frees or grows anything: a counting allocator watches 100,000 of them, in every
//! mode, with chunks, observations, stops and resets coming in all the while.
//!
//! Without a test harness, so that nothing else runs in this process.

use std::collections::BTreeSet;
use std::sync::Arc;

use refrain_runtime::bus::robot::Signals;
use refrain_runtime::chunk::{Chunk, Interpolation, Path};
use refrain_runtime::clock::{self, MILLISECOND, SECOND, Time};
use refrain_runtime::control::{Command, Control, ControlConfig, Late, Mode, Observed};
use refrain_runtime::daemon::control_loop::ControlLoop;
use refrain_runtime::events;
use refrain_runtime::mailbox::mailbox;
use refrain_runtime::pose::Rotation;
use refrain_runtime::report::ControlTally;
use refrain_runtime::safety::{Kind, Limits, Outside, Workspace};
use refrain_runtime::threads::Waker;
use refrain_tests::counting::{Counting, assert_counting, calls};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TICKS: u64 = 100_000;
const PERIOD: i64 = MILLISECOND;
const ACTION: i64 = 20 * MILLISECOND;
const STEPS: usize = 15;
const JOINTS: usize = 7;

/// A tick does not touch the allocator.
fn main() {
    assert_counting();
    let limits = Limits { kind: Kind::Position, position: [-1.0, 1.0], velocity: 2.0, acceleration: 20.0 };
    let kind = Kind::Discrete { below: -0.1, above: 0.1 };
    let gripper = Limits { kind, velocity: 0.0, acceleration: 0.0, ..limits };
    let config = ControlConfig {
        period: PERIOD,
        path: Path {
            interpolation: Interpolation::Cubic,
            rotations: vec![Rotation::Quaternion([2, 3, 4, 5])],
        },
        chunk_deadline: 200 * MILLISECOND,
        late: Late::Continue,
        max_chunk_age: STEPS as i64 * ACTION,
        max_observation_age: 50 * MILLISECOND,
        command_validity: 10 * MILLISECOND,
        outside: Outside::Clamp,
        limits: [vec![limits; JOINTS - 1], vec![gripper]].concat(),
        workspace: Workspace { axes: vec![(0, [-0.5, 0.5]), (1, [-0.9, 2.0])], outside: Outside::Clamp },
    };
    let (mut chunks, chunks_in) = mailbox(&Chunk::none(STEPS, JOINTS, ACTION));
    let (mut observed, observed_in) = mailbox(&Observed::NONE);
    let (commands, mut commands_out) = mailbox(&Command::NONE);
    let (tallies, mut tallies_out) = mailbox(&ControlTally::default());
    let (recorder, mut drain) = events::ring();
    let signals = Arc::new(Signals::default());
    signals.received(0, true);
    let mut control_loop = ControlLoop {
        control: Control::new(config),
        period: PERIOD,
        chunks: chunks_in,
        observed: observed_in,
        commands,
        tallies,
        recorder,
        wake_publish: Waker::current(),
        signals: Arc::clone(&signals),
    };

    let mut modes = BTreeSet::new();
    let mut counted = 0;
    let mut sequence = 0;
    for tick in 0..TICKS {
        let now = Time::from_nanos(SECOND + tick as i64 * PERIOD);
        // Observations pause for 100 ms in every second, chunks for 400 ms; there are stops, resets and NaN.
        if tick % 1000 < 900 && tick % 5 == 0 {
            sequence += 1;
            observed.send(|slot| *slot = Observed { sequence, time: now, ..Observed::NONE });
        }
        if tick % 1000 < 600 && tick % 40 == 0 {
            chunks.send(|slot| {
                slot.sequence = tick + 1;
                slot.observation = now;
                slot.steps = STEPS;
                let target = if tick % 3000 == 40 { f64::NAN } else { (tick as f64).sin() };
                slot.actions.fill(target);
            });
        }
        if tick % 5000 == 3333 {
            signals.stop();
        }
        match tick % 7000 {
            2000 => signals.take_over(),
            2300 => signals.hand_back(),
            2500 => signals.received(0, false),
            2600 => signals.received(0, true),
            _ => {}
        }
        if tick % 5000 == 4500 {
            signals.reset();
        }

        let mut mode = None;
        counted += calls(|| {
            let ticked = control_loop.tick(now);
            control_loop.record(&ticked, now, now, clock::now(), 0);
            mode = Some(ticked.command.mode as u8);
        });

        modes.extend(mode);
        if tick % 100 == 0 {
            while drain.take().is_some() {}
            commands_out.take();
            tallies_out.take();
        }
    }
    assert_eq!(counted, 0, "calls of the allocator in {TICKS} ticks");
    let all = [Mode::Warmup, Mode::Running, Mode::Coasting, Mode::Holding, Mode::Stopped];
    assert_eq!(modes, all.map(|mode| mode as u8).into(), "every mode was entered");
    let control = &control_loop.control;
    println!("{TICKS} ticks, 0 allocations; {:?}", control.counts());
}
