//! The body of the real-time thread.
//!
//! [`ControlLoop::tick`] allocates nothing, takes no lock, and waits for nobody: mailboxes and the event ring are
//! wait-free, signals are atomics, and waking the publishing thread is one futex call.

use std::sync::Arc;

use crate::bus::robot::Signals;
use crate::chunk::Chunk;
use crate::clock::{self, Nanos, Ticker, Time};
use crate::control::{Command, Control, Inputs, Observed};
use crate::events::{Recorder, Seen, Tick};
use crate::mailbox::{Receiver, Sender};
use crate::report::ControlTally;
use crate::threads::Waker;

/// What a tick decided, and what it saw.
#[derive(Clone, Copy, Debug)]
pub struct Ticked {
    /// The decision.
    pub command: Command,
    /// What it was made from.
    pub seen: Seen,
}

/// The control loop with everything that it touches.
pub struct ControlLoop {
    /// What decides.
    pub control: Control,
    /// Nanoseconds between ticks.
    pub period: Nanos,
    /// Chunks, from the inference thread.
    pub chunks: Receiver<Chunk>,
    /// Where the robot is, from zenoh's threads.
    pub observed: Receiver<Observed>,
    /// Commands, to the publishing thread.
    pub commands: Sender<Command>,
    /// Counters, to the draining thread.
    pub tallies: Sender<ControlTally>,
    /// Events, to the draining thread.
    pub recorder: Recorder,
    /// Wakes the publishing thread.
    pub wake_publish: Waker,
    /// Stops and resets, and the mode for everybody.
    pub signals: Arc<Signals>,
}

impl ControlLoop {
    /// Ticks until the signals say that it is over. Deadlines follow each other whatever happens; those that a late tick
    /// has passed are counted as missed.
    pub fn run(mut self) {
        let mut ticker = Ticker::new(clock::now(), self.period);
        while !self.signals.has_ended() {
            let due = ticker.deadline();
            clock::sleep_until(due);
            let woke = clock::now();
            let ticked = self.tick(woke);
            let done = clock::now();
            let missed = ticker.advance(done);
            self.record(&ticked, due, woke, done, missed);
        }
    }

    /// One tick: reads what is newest, decides, hands the command on.
    pub fn tick(&mut self, now: Time) -> Ticked {
        self.chunks.take();
        self.observed.take();
        let (chunk, observed) = (self.chunks.latest(), self.observed.latest());
        let (stops, resets) = (self.signals.stops(), self.signals.resets());
        let (operator, controller) = (self.signals.operator(), self.signals.controller());
        let inputs = Inputs { chunk, observed, stops, resets, operator, controller };
        let command = self.control.step(now, &inputs);
        let (chunk, observation) = (chunk.sequence, observed.sequence);
        let seen = Seen { chunk, observation, stops, resets, operator, controller };
        self.commands.send(|slot| *slot = command);
        self.wake_publish.wake();
        self.signals.set_mode(command.mode);
        Ticked { command, seen }
    }

    /// Tells what a tick did.
    pub fn record(&mut self, ticked: &Ticked, due: Time, woke: Time, done: Time, missed: u64) {
        let tally = ControlTally {
            counts: *self.control.counts(),
            gate: *self.control.gate_counts(),
            events_lost: self.recorder.lost(),
            superseded: self.commands.superseded(),
        };
        self.tallies.send(|slot| *slot = tally);
        self.recorder.record(Tick {
            due,
            wake_error: woke - due,
            work: done - woke,
            missed,
            seen: ticked.seen,
            command: ticked.command,
        });
    }
}
