//! No tick of the control loop allocates, frees or grows anything: a counting allocator watches 100,000 of them, in every
//! mode, with chunks, observations, stops and resets coming in all the while.
//!
//! One test, so that nothing else runs beside it in this process.

#![allow(unsafe_code, reason = "an allocator can only be written with unsafe code")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use refrain_runtime::bus::robot::Signals;
use refrain_runtime::chunk::{Chunk, Interpolation};
use refrain_runtime::clock::{self, MILLISECOND, SECOND, Time};
use refrain_runtime::control::{Command, Control, ControlConfig, Late, Mode, Observed};
use refrain_runtime::daemon::control_loop::ControlLoop;
use refrain_runtime::events;
use refrain_runtime::mailbox::mailbox;
use refrain_runtime::report::ControlTally;
use refrain_runtime::safety::{Kind, Limits, Outside};
use refrain_runtime::threads::Waker;

/// Counts calls and passes them on.
struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator with the arguments as they came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        CALLS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TICKS: u64 = 100_000;
const PERIOD: i64 = MILLISECOND;
const ACTION: i64 = 20 * MILLISECOND;
const STEPS: usize = 15;
const JOINTS: usize = 7;

#[test]
fn a_tick_does_not_touch_the_allocator() {
    let before = CALLS.load(Ordering::SeqCst);
    drop(std::hint::black_box(vec![1u8; 100]));
    assert!(CALLS.load(Ordering::SeqCst) - before >= 2, "the allocator does not count");

    let limits = Limits { kind: Kind::Position, position: [-1.0, 1.0], velocity: 2.0, acceleration: 20.0 };
    let config = ControlConfig {
        period: PERIOD,
        path: Interpolation::Linear.into(),
        chunk_deadline: 200 * MILLISECOND,
        late: Late::Continue,
        max_chunk_age: STEPS as i64 * ACTION,
        max_observation_age: 50 * MILLISECOND,
        command_validity: 10 * MILLISECOND,
        outside: Outside::Clamp,
        limits: vec![limits; JOINTS],
    };
    let (mut chunks, chunks_in) = mailbox(&Chunk::none(STEPS, JOINTS, ACTION));
    let (mut observed, observed_in) = mailbox(&Observed::NONE);
    let (commands, mut commands_out) = mailbox(&Command::NONE);
    let (tallies, mut tallies_out) = mailbox(&ControlTally::default());
    let (recorder, mut drain) = events::ring();
    let signals = Arc::new(Signals::default());
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
        if tick % 5000 == 4500 {
            signals.reset();
        }

        let before = CALLS.load(Ordering::SeqCst);
        let command = control_loop.tick(now);
        control_loop.record(&command, now, now, clock::now(), 0);
        counted += CALLS.load(Ordering::SeqCst) - before;

        modes.insert(command.mode as u8);
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
