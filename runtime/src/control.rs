//! The control loop's decisions: `step(now, inputs)`, once per period.
//!
//! ```text
//!               first chunk, start inside limits
//!    +--------+ -------------------------------> +---------+   older than the deadline    +----------+
//!    | Warmup |                                  | Running | ---------------------------> | Coasting |
//!    +--------+ <--+                             +---------+ <--------------------------- +----------+
//!                  |                               |     ^           newer chunk            |
//!                  |                               |     |                                  |
//!                  |      no action left, stale    |     | newer chunk                      | no action left, stale
//!                  |      observation, non-finite  v     |                                  | observation, ...
//!                  |                             +---------+                                |
//!                  |                             | Holding | <------------------------------+
//!                  |                             +---------+
//!                  |                               ^     |  latched and at rest
//!                  |       stop, from every mode:  |     v
//!                  |       latched, braking -------+   +---------+
//!                  +-------------------------------+-- | Stopped |
//!                        reset, by a person            +---------+
//! ```
//!
//! | mode | entered when | commands |
//! | --- | --- | --- |
//! | `Warmup` | at start, after a reset, and while an operator is in charge or nobody receives: nothing was observed, or no chunk has come | none are sent |
//! | `Running` | the newest chunk is within its deadline | the chunk, through the gate |
//! | `Coasting` | the chunk is past its deadline, and late chunks are continued | the rest of the chunk, through the gate |
//! | `Holding` | the gate refuses, or there is nothing to execute, or a stop is latched and the robot still brakes | brake, then stay |
//! | `Stopped` | a stop is latched and the command is at rest | exactly the same every tick, until a reset |
//!
//! Guarantees: pure (time is an argument), bounded (one pass over the joints), no allocation, always an answer. The same
//! inputs at the same times give the same commands. A tick cannot fail, it can only change mode. In `Stopped` no
//! command differs from the one before; a stop that comes in motion brakes in `Holding` first, within the limits.

use crate::chunk::{Chunk, Path};
use crate::clock::{Nanos, Time};
use crate::safety::{
    Gate, GateCounts, Joints, Limits, MAX_JOINTS, Outside, Reason, Request, Verdict, Workspace,
};

pub use crate::outcome::{Counts, Outcome};

/// What the loop is doing; see the module's diagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Nothing to execute yet, and nothing is sent.
    #[default]
    Warmup,
    /// Executing a chunk within its deadline.
    Running,
    /// Executing the rest of a chunk past its deadline.
    Coasting,
    /// Braking or staying.
    Holding,
    /// Latched, at rest.
    Stopped,
}

impl Mode {
    /// Whether a chunk is being executed.
    pub fn executes(self) -> bool {
        matches!(self, Self::Running | Self::Coasting)
    }
}

/// What happens to a chunk past its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Late {
    /// Its remaining actions are executed, then the robot holds.
    Continue,
    /// The robot holds until a newer chunk comes.
    Hold,
    /// The robot stops, latched.
    Stop,
}

/// What the loop is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlConfig {
    /// Nanoseconds between ticks.
    pub period: Nanos,
    /// From the policy's rate to the control rate.
    pub path: Path,
    /// Oldest a chunk's observation may be for the chunk to count as in time.
    pub chunk_deadline: Nanos,
    /// What happens past it.
    pub late: Late,
    /// Oldest a chunk's observation may be for any of its actions to be executed.
    pub max_chunk_age: Nanos,
    /// Oldest that the newest observation may be.
    pub max_observation_age: Nanos,
    /// How long a command is valid for whoever receives it.
    pub command_validity: Nanos,
    /// What happens to actions outside the position range.
    pub outside: Outside,
    /// Per joint, in the order of the policy's actions.
    pub limits: Vec<Limits>,
    /// The box that some joints together stay in.
    pub workspace: Workspace,
}

/// Where the robot is, by its newest accepted observation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observed {
    /// Counts accepted observations from 1; 0 is none.
    pub sequence: u64,
    /// When it was made.
    pub time: Time,
    /// One measured number per joint, in the units of the actions.
    pub measured: Joints,
}

/// What a tick reads.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The newest chunk.
    pub chunk: &'a Chunk,
    /// The newest observation.
    pub observed: &'a Observed,
    /// Stops asked for since the start.
    pub stops: u64,
    /// Resets asked for since the start.
    pub resets: u64,
    /// Whether an operator is in charge.
    pub operator: bool,
    /// Whether somebody receives the commands.
    pub controller: bool,
}

/// What a tick answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Command {
    /// Counts ticks from 1.
    pub sequence: u64,
    /// The tick's time.
    pub time: Time,
    /// When the observation was made that it comes from: the chunk's when one is followed, else the newest.
    pub observation: Time,
    /// Until when whoever receives it may act on it.
    pub valid_until: Time,
    /// The mode after the tick.
    pub mode: Mode,
    /// What the tick did.
    pub outcome: Outcome,
    /// Whether a stop is latched.
    pub latched: bool,
    /// Whether it is to be sent; in `Warmup` the robot is not ours.
    pub send: bool,
    /// The chunk that it comes from; 0 for none.
    pub chunk: u64,
    /// Index of the action in the chunk.
    pub action: usize,
    /// Joints of this robot.
    pub joints: usize,
    /// One number per joint, in the units of the actions.
    pub values: Joints,
    /// How fast each changes, in units per second; 0 for velocity joints.
    pub rates: Joints,
}

/// The loop's state.
#[derive(Clone, Debug)]
pub struct Control {
    config: ControlConfig,
    gate: Gate,
    mode: Mode,
    sequence: u64,
    latched: bool,
    engaged: bool,
    stops_seen: u64,
    resets_seen: u64,
    chunk_seen: u64,
    /// The chunk being executed; 0 for none.
    chunk: u64,
    chunk_observation: Time,
    /// Chunks from observations before this are not taken up.
    resume_after: Time,
    counts: Counts,
}

impl Observed {
    /// Nothing observed yet.
    pub const NONE: Self = Self { sequence: 0, time: Time::from_nanos(0), measured: [0.0; MAX_JOINTS] };
}

impl Command {
    /// Before the first tick: nothing to send.
    pub const NONE: Self = Self {
        sequence: 0,
        time: Time::from_nanos(0),
        observation: Time::from_nanos(0),
        valid_until: Time::from_nanos(0),
        mode: Mode::Warmup,
        outcome: Outcome::NoObservation,
        latched: false,
        send: false,
        chunk: 0,
        action: 0,
        joints: 0,
        values: [0.0; MAX_JOINTS],
        rates: [0.0; MAX_JOINTS],
    };

    /// One number per joint.
    pub fn values(&self) -> &[f64] {
        &self.values[..self.joints]
    }
}

impl Control {
    /// A loop in `Warmup`.
    ///
    /// # Panics
    /// With more than [`MAX_JOINTS`] joints.
    pub fn new(config: ControlConfig) -> Self {
        Self {
            gate: Gate::for_control(&config),
            config,
            mode: Mode::Warmup,
            sequence: 0,
            latched: false,
            engaged: false,
            stops_seen: 0,
            resets_seen: 0,
            chunk_seen: 0,
            chunk: 0,
            chunk_observation: Time::from_nanos(i64::MIN),
            resume_after: Time::from_nanos(i64::MIN),
            counts: Counts::default(),
        }
    }

    /// One tick.
    pub fn step(&mut self, now: Time, inputs: &Inputs<'_>) -> Command {
        self.sequence += 1;
        self.latch(now, inputs);
        let not_ours = match (inputs.operator, inputs.controller) {
            (true, _) => Some(Outcome::TakenOver),
            (false, false) => Some(Outcome::NoController),
            (false, true) => None,
        };
        if not_ours.is_some() {
            self.release(now);
        }
        let refused = not_ours.or_else(|| self.engage(now, inputs.observed));
        self.take_up(now, inputs.chunk);

        let (mode, outcome, action) = if self.latched {
            self.brake(now, inputs)
        } else if let Some(outcome) = refused {
            (Mode::Warmup, outcome, None)
        } else if self.chunk == 0 {
            self.wait(now, inputs)
        } else {
            self.execute(now, inputs)
        };
        self.counts.mode_changes += u64::from(mode != self.mode);
        self.mode = mode;
        self.counts.outcomes[outcome as usize] += 1;
        Command {
            sequence: self.sequence,
            time: now,
            observation: if action.is_some() { inputs.chunk.observation } else { inputs.observed.time },
            valid_until: now + self.config.command_validity,
            mode,
            outcome,
            latched: self.latched,
            send: self.engaged && mode != Mode::Warmup,
            chunk: if action.is_some() { self.chunk } else { 0 },
            action: action.unwrap_or(0),
            joints: self.gate.joints(),
            values: *self.gate.command(),
            rates: *self.gate.rates(),
        }
    }

    /// The mode after the last tick.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// How often each thing happened.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How often each limit and check of the gate spoke.
    pub fn gate_counts(&self) -> &GateCounts {
        self.gate.counts()
    }

    /// Where a trajectory would lead: the gate as it stands, for looking ahead.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// A stop latches from any mode and wins over a reset in the same tick; a reset unlatches only in `Stopped`.
    fn latch(&mut self, now: Time, inputs: &Inputs<'_>) {
        let stop = inputs.stops != self.stops_seen;
        let reset = inputs.resets != self.resets_seen;
        (self.stops_seen, self.resets_seen) = (inputs.stops, inputs.resets);
        if stop {
            self.stop();
        } else if reset && self.latched && self.mode == Mode::Stopped {
            self.latched = false;
            self.counts.resets += 1;
            // Whoever reset may have moved the robot.
            self.release(now);
            self.mode = Mode::Warmup;
            self.counts.mode_changes += 1;
        } else if reset {
            self.counts.resets_ignored += 1;
        }
    }

    /// The robot is not ours: start again from where it is, with what is seen after now.
    fn release(&mut self, now: Time) {
        self.gate.let_go();
        self.engaged = false;
        self.chunk = 0;
        self.resume_after = now + 1;
    }

    fn stop(&mut self) {
        self.counts.stops += u64::from(!self.latched);
        self.latched = true;
    }

    /// Takes the robot over where it is; afterwards `None`.
    fn engage(&mut self, now: Time, observed: &Observed) -> Option<Outcome> {
        if self.engaged || self.latched {
            return None;
        }
        if observed.sequence == 0 || observed.time < self.resume_after {
            return Some(Outcome::NoObservation);
        }
        if now - observed.time > self.config.max_observation_age {
            return Some(Outcome::StaleObservation);
        }
        match self.gate.engage(&observed.measured[..self.gate.joints()]) {
            Ok(()) => {
                self.engaged = true;
                None
            }
            Err(_) => Some(Outcome::StartRefused),
        }
    }

    fn take_up(&mut self, now: Time, chunk: &Chunk) {
        if chunk.sequence == self.chunk_seen {
            return;
        }
        self.chunk_seen = chunk.sequence;
        self.chunk = 0;
        if chunk.observation < self.resume_after || chunk.observation < self.chunk_observation {
            self.counts.chunks_refused += 1;
        } else if !self.latched {
            self.chunk = chunk.sequence;
            self.chunk_observation = chunk.observation;
            self.counts.chunks += 1;
            self.counts.actions_skipped += chunk.index(now).min(chunk.steps) as u64;
        }
    }

    fn hold(&mut self, now: Time, inputs: &Inputs<'_>) {
        let request =
            Request { target: None, observation: inputs.observed.time, chunk: self.chunk_observation };
        self.gate.pass(now, &request);
    }

    fn brake(&mut self, now: Time, inputs: &Inputs<'_>) -> (Mode, Outcome, Option<usize>) {
        if self.gate.at_rest() {
            return (Mode::Stopped, Outcome::Stopped, None);
        }
        self.hold(now, inputs);
        (Mode::Holding, Outcome::Braking, None)
    }

    fn wait(&mut self, now: Time, inputs: &Inputs<'_>) -> (Mode, Outcome, Option<usize>) {
        if self.mode == Mode::Warmup {
            // The robot is not ours yet: follow where it is.
            self.engaged = false;
            return (Mode::Warmup, Outcome::NoChunk, None);
        }
        self.hold(now, inputs);
        let stale = now - inputs.observed.time > self.config.max_observation_age;
        (Mode::Holding, if stale { Outcome::StaleObservation } else { Outcome::AwaitingChunk }, None)
    }

    fn execute(&mut self, now: Time, inputs: &Inputs<'_>) -> (Mode, Outcome, Option<usize>) {
        let chunk = inputs.chunk;
        let late = now - chunk.observation > self.config.chunk_deadline;
        if late && self.config.late != Late::Continue {
            if self.config.late == Late::Stop {
                self.stop();
            }
            self.hold(now, inputs);
            return (Mode::Holding, Outcome::ChunkLate, None);
        }
        let Some((action, target)) = chunk.at(now, &self.config.path) else {
            self.hold(now, inputs);
            return (Mode::Holding, Outcome::ChunkEnded, None);
        };
        let request = Request {
            target: Some(&target[..chunk.joints]),
            observation: inputs.observed.time,
            chunk: chunk.observation,
        };
        let outcome = match self.gate.pass(now, &request) {
            Verdict::Followed if late => return (Mode::Coasting, Outcome::FollowedLate, Some(action)),
            Verdict::Followed => return (Mode::Running, Outcome::Followed, Some(action)),
            Verdict::Held(Reason::StaleObservation) => {
                // What was planned before the robot went unseen is not executed after it.
                self.chunk = 0;
                self.resume_after = inputs.observed.time + 1;
                Outcome::StaleObservation
            }
            Verdict::Held(Reason::NonFinite) => {
                self.chunk = 0;
                Outcome::NonFinite
            }
            Verdict::Held(Reason::StaleChunk) => Outcome::StaleChunk,
            Verdict::Held(Reason::Outside) => Outcome::OutsideRange,
            Verdict::Held(Reason::Workspace) => Outcome::OutsideWorkspace,
            Verdict::Held(Reason::WrongSize) => Outcome::WrongSize,
            Verdict::Held(Reason::NoTarget) => Outcome::ChunkEnded,
        };
        (Mode::Holding, outcome, None)
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
