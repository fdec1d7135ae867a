//! Observations on their way in: checked, put together, and kept for as long as the policy looks back.
//!
//! A message is taken or refused by name ([`Refusal`]), and each refusal has a counter. Messages of several topics make
//! one observation when the first-named topic arrives; its time is that of its oldest part. The policy sees To
//! observations, one policy period apart: for each the one nearest to the wanted time; where that lies more than a period
//! back (a gap), or nothing is that old, the next newer one stands in. At the start that repeats the first observation,
//! as the public code's `MultiStepWrapper` does.
//!
//! Pure: time is an argument. Allocates only when made.

use std::collections::VecDeque;

use crate::clock::{Nanos, Reading, Time, Wall};
use crate::control::Observed;
use crate::safety::{Joints, MAX_JOINTS};

/// Why a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The bytes are not the message that the topic's type says.
    #[error("undecodable")]
    Undecodable,
    /// It has more or fewer numbers than configured.
    #[error("wrong size")]
    WrongSize,
    /// A configured joint is not in it.
    #[error("joint missing")]
    JointMissing,
    /// A number is NaN or infinite (or becomes so in single precision).
    #[error("non-finite")]
    NonFinite,
    /// It says neither when it was made nor is arrival time allowed.
    #[error("no stamp")]
    NoStamp,
    /// It has the sequence number of the one before.
    #[error("duplicate")]
    Duplicate,
    /// Its sequence number or time does not advance.
    #[error("out of order")]
    OutOfOrder,
    /// It was made too long ago.
    #[error("too old")]
    TooOld,
    /// It was made later than the clock tolerance allows.
    #[error("from the future")]
    FromTheFuture,
}

impl Refusal {
    /// All refusals, in the order of their counters.
    pub const ALL: [Self; 9] = [
        Self::Undecodable,
        Self::WrongSize,
        Self::JointMissing,
        Self::NonFinite,
        Self::NoStamp,
        Self::Duplicate,
        Self::OutOfOrder,
        Self::TooOld,
        Self::FromTheFuture,
    ];
}

/// Where a message came from and when it was made; from its header or attachment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Sequence number, per publisher.
    pub sequence: Option<i64>,
    /// The publisher.
    pub publisher: Option<[u8; 16]>,
    /// When it was made.
    pub stamp: Option<Wall>,
}

/// What one topic contributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// For each number of the message, its place in the observation `[O]`.
    pub places: Vec<usize>,
    /// A message without a stamp counts as made when it arrives.
    pub arrival_is_stamp: bool,
}

/// Where a joint's measured position is found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// At this place of the observation `[O]`.
    Measured(usize),
    /// Nowhere: it is taken to be here.
    Fixed(f64),
}

/// What an [`Intake`] is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct IntakeConfig {
    /// O: numbers per observation.
    pub size: usize,
    /// To: observations that the policy looks at.
    pub steps: usize,
    /// Nanoseconds between them.
    pub period: Nanos,
    /// Oldest that a message may be when it arrives.
    pub max_age: Nanos,
    /// How far in the future a stamp may lie.
    pub clock_tolerance: Nanos,
    /// One per topic; the first one's arrival completes an observation.
    pub parts: Vec<Part>,
    /// Per joint.
    pub starts: Vec<Start>,
}

/// What the policy looks at.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Counts observations from 1; 0 is none.
    pub sequence: u64,
    /// When the newest one was made.
    pub time: Time,
    /// `[To, O]`, oldest first.
    pub values: Vec<f32>,
}

/// Takes messages in.
pub struct Intake {
    config: IntakeConfig,
    parts: Vec<PartState>,
    history: VecDeque<(Time, Vec<f32>)>,
    sequence: u64,
    accepted: u64,
    refused: [u64; Refusal::ALL.len()],
}

struct PartState {
    values: Vec<f32>,
    time: Option<Time>,
    stamp: Option<Wall>,
    sequence: Option<i64>,
    publisher: Option<[u8; 16]>,
}

/// Observations kept: enough for To policy periods when they come up to this many times faster than the policy's rate.
const OVERSAMPLING: usize = 32;

impl Window {
    /// Nothing observed yet.
    pub fn none(config: &IntakeConfig) -> Self {
        Self { sequence: 0, time: Time::default(), values: vec![0.0; config.steps * config.size] }
    }
}

impl Intake {
    /// Nothing taken in yet.
    pub fn new(config: IntakeConfig) -> Self {
        let part = |part: &Part| PartState {
            values: vec![0.0; part.places.len()],
            time: None,
            stamp: None,
            sequence: None,
            publisher: None,
        };
        let parts = config.parts.iter().map(part).collect();
        let history = VecDeque::with_capacity(config.steps * OVERSAMPLING);
        Self { config, parts, history, sequence: 0, accepted: 0, refused: [0; Refusal::ALL.len()] }
    }

    /// Takes one message of topic `part` in. `true` when it completed an observation.
    pub fn accept(
        &mut self,
        part: usize,
        origin: &Origin,
        values: &[f64],
        now: Reading,
    ) -> Result<bool, Refusal> {
        match self.check(part, origin, values, now) {
            Ok(time) => {
                let state = &mut self.parts[part];
                for (slot, value) in state.values.iter_mut().zip(values) {
                    *slot = *value as f32;
                }
                state.time = Some(time);
                state.stamp = origin.stamp.or(Some(now.wall));
                (state.sequence, state.publisher) = (origin.sequence, origin.publisher);
                self.accepted += 1;
                Ok(part == 0 && self.complete(now))
            }
            Err(refusal) => {
                self.refuse(refusal);
                Err(refusal)
            }
        }
    }

    /// Counts a message that could not even be read.
    pub fn refuse(&mut self, refusal: Refusal) {
        self.refused[Refusal::ALL.iter().position(|r| *r == refusal).unwrap_or(0)] += 1;
    }

    /// Messages taken in.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Messages refused, in the order of [`Refusal::ALL`].
    pub fn refused(&self) -> &[u64; Refusal::ALL.len()] {
        &self.refused
    }

    /// Writes what the policy looks at now.
    pub fn window(&self, out: &mut Window) {
        let Some((newest, _)) = self.history.back() else { return };
        let size = self.config.size;
        out.sequence = self.sequence;
        out.time = *newest;
        for (step, row) in out.values.chunks_mut(size).enumerate() {
            let back = (self.config.steps - 1 - step) as i64 * self.config.period;
            row.copy_from_slice(self.nearest(*newest - back));
        }
    }

    /// Where the robot is by the newest observation.
    pub fn observed(&self) -> Observed {
        let Some((time, values)) = self.history.back() else { return Observed::NONE };
        let mut measured: Joints = [0.0; MAX_JOINTS];
        for (slot, start) in measured.iter_mut().zip(&self.config.starts) {
            *slot = match *start {
                Start::Measured(place) => f64::from(values[place]),
                Start::Fixed(value) => value,
            };
        }
        Observed { sequence: self.sequence, time: *time, measured }
    }

    /// When the message was made, if it may be taken.
    fn check(&self, part: usize, origin: &Origin, values: &[f64], now: Reading) -> Result<Time, Refusal> {
        let state = &self.parts[part];
        if values.len() != state.values.len() {
            return Err(Refusal::WrongSize);
        }
        if !values.iter().all(|value| (*value as f32).is_finite()) {
            return Err(Refusal::NonFinite);
        }
        let stamp = match origin.stamp {
            Some(stamp) => stamp,
            None if self.config.parts[part].arrival_is_stamp => now.wall,
            None => return Err(Refusal::NoStamp),
        };
        if origin.publisher == state.publisher
            && let (Some(new), Some(old)) = (origin.sequence, state.sequence)
        {
            if new == old {
                return Err(Refusal::Duplicate);
            }
            if new < old {
                return Err(Refusal::OutOfOrder);
            }
        }
        let age = now.wall - stamp;
        if age > self.config.max_age {
            return Err(Refusal::TooOld);
        }
        if age < -self.config.clock_tolerance {
            return Err(Refusal::FromTheFuture);
        }
        let time = now.time_of(stamp);
        // By stamp and by monotonic time, so that neither a replayed stamp nor a clock step back gets through.
        if state.stamp.is_some_and(|last| stamp <= last) || state.time.is_some_and(|last| time <= last) {
            return Err(Refusal::OutOfOrder);
        }
        Ok(time)
    }

    /// Puts the newest parts together, if all are there and fresh.
    fn complete(&mut self, now: Reading) -> bool {
        let Some(time) = self.parts.iter().map(|part| part.time).min().flatten() else { return false };
        if now.time - time > self.config.max_age || self.history.back().is_some_and(|(last, _)| time <= *last)
        {
            return false;
        }
        let full = self.history.len() == self.history.capacity().max(1);
        let recycled = if full { self.history.pop_front() } else { None };
        let mut row = recycled.map_or_else(|| vec![0.0; self.config.size], |(_, row)| row);
        for (part, state) in self.config.parts.iter().zip(&self.parts) {
            for (place, value) in part.places.iter().zip(&state.values) {
                row[*place] = *value;
            }
        }
        self.history.push_back((time, row));
        self.sequence += 1;
        true
    }

    fn nearest(&self, wanted: Time) -> &[f32] {
        let after = self.history.partition_point(|(time, _)| *time <= wanted).min(self.history.len() - 1);
        let before = after.saturating_sub(1);
        let back = wanted - self.history[before].0;
        let near_before = back.abs() <= (self.history[after].0 - wanted).abs();
        &self.history[if near_before && back <= self.config.period { before } else { after }].1
    }
}

#[cfg(test)]
#[path = "observation_tests.rs"]
mod tests;
