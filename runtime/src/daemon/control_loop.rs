//! The body of the real-time thread.
//!
//! [`ControlLoop::tick`] allocates nothing, takes no lock, and waits for nobody: mailboxes and the event ring are
//! wait-free, signals are atomics, and waking the publishing thread is one futex call.

use std::sync::Arc;

use crate::bus::robot::Signals;
use crate::chunk::Chunk;
use crate::clock::{self, Nanos, Ticker, Time};
use crate::control::{Command, Control, Inputs, Observed};
use crate::events::{Recorder, Tick};
use crate::mailbox::{Receiver, Sender};
use crate::report::ControlTally;
use crate::threads::Waker;

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
            let command = self.tick(woke);
            let done = clock::now();
            let missed = ticker.advance(done);
            self.record(&command, due, woke, done, missed);
        }
    }

    /// One tick: reads what is newest, decides, hands the command on.
    pub fn tick(&mut self, now: Time) -> Command {
        self.chunks.take();
        self.observed.take();
        let command = self.control.step(
            now,
            &Inputs {
                chunk: self.chunks.latest(),
                observed: self.observed.latest(),
                stops: self.signals.stops(),
                resets: self.signals.resets(),
            },
        );
        self.commands.send(|slot| *slot = command);
        self.wake_publish.wake();
        self.signals.set_mode(command.mode);
        command
    }

    /// Tells what a tick did.
    pub fn record(&mut self, command: &Command, due: Time, woke: Time, done: Time, missed: u64) {
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
            mode: command.mode,
            outcome: command.outcome,
            chunk: command.chunk,
        });
    }
}
