//! What a run did, in numbers.

use crate::control::{Counts, Mode};
use crate::events::{Spans, Summary, TickStats};
use crate::observation::{self, CameraCounts, Refusal};
use crate::safety::GateCounts;
use crate::shadow::Differences;

/// What a run did so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// What the control loop counted.
    pub counts: Counts,
    /// What the gate counted.
    pub gate: GateCounts,
    /// The mode of the last tick.
    pub mode: Mode,
    /// How late ticks woke, nanoseconds.
    pub wake: Summary,
    /// How long ticks worked, nanoseconds.
    pub work: Summary,
    /// Deadlines missed.
    pub missed: u64,
    /// Tick events lost.
    pub events_lost: u64,
    /// How long predictions took, nanoseconds.
    pub inference: Summary,
    /// From the observation to the chunk made of it, nanoseconds.
    pub chunk_age: Summary,
    /// Predictions that failed.
    pub inference_failed: u64,
    /// Predictions that were not finite.
    pub inference_non_finite: u64,
    /// Predictions from observations outside what their schedule was found with.
    pub inference_outside: u64,
    /// Engines that failed and were replaced by the fallback.
    pub engines_lost: u64,
    /// The plan that ran last; 0 is the best-scoring of the ladder.
    pub rung: usize,
    /// Steps to a faster plan.
    pub steps_down: u64,
    /// Steps to a better plan.
    pub steps_up: u64,
    /// Messages recorded, and messages lost since the recording ended early.
    pub recorded: (u64, u64),
    /// In shadow mode, how far apart commands were.
    pub shadow: Differences,
    /// Observation messages taken in.
    pub observations: u64,
    /// Observation messages refused, in the order of [`Refusal::ALL`].
    pub refused: [u64; Refusal::ALL.len()],
    /// What each camera sent, in the policy's order.
    pub cameras: Vec<CameraCounts>,
    /// Commands sent.
    pub commands: u64,
    /// Commands that could not be sent.
    pub commands_failed: u64,
    /// Commands that a newer one replaced before they were sent.
    pub commands_superseded: u64,
}

/// What the control thread tells besides commands.
#[derive(Clone, Copy, Debug, Default)]
pub struct ControlTally {
    /// What the control loop counted.
    pub counts: Counts,
    /// What the gate counted.
    pub gate: GateCounts,
    /// Tick events lost.
    pub events_lost: u64,
    /// Commands that a newer one replaced before they were sent.
    pub superseded: u64,
}

/// Where threads that may wait gather what they know.
#[derive(Default)]
pub struct Tally {
    /// What the control thread told last.
    pub control: ControlTally,
    /// What the ticks were like.
    pub ticks: TickStats,
    /// How long predictions took.
    pub inference: Spans,
    /// From the observation to the chunk made of it.
    pub chunk_age: Spans,
    /// Predictions that failed.
    pub inference_failed: u64,
    /// Predictions that were not finite.
    pub inference_non_finite: u64,
    /// Predictions from observations outside what their schedule was found with.
    pub inference_outside: u64,
    /// Engines that failed and were replaced by the fallback.
    pub engines_lost: u64,
    /// The plan that ran last.
    pub rung: usize,
    /// Steps to a faster plan.
    pub steps_down: u64,
    /// Steps to a better plan.
    pub steps_up: u64,
    /// Messages recorded, and messages lost since the recording ended early.
    pub recorded: (u64, u64),
    /// In shadow mode, how far apart commands were.
    pub shadow: Differences,
    /// Commands sent, and commands that could not be.
    pub commands: (u64, u64),
}

impl Tally {
    /// All in one with the messages taken in and refused.
    pub fn report(&self, observations: observation::Counts) -> Report {
        Report {
            counts: self.control.counts,
            gate: self.control.gate,
            mode: self.ticks.mode,
            wake: self.ticks.wake.summary(),
            work: self.ticks.work.summary(),
            missed: self.ticks.missed,
            events_lost: self.control.events_lost,
            inference: self.inference.summary(),
            chunk_age: self.chunk_age.summary(),
            inference_failed: self.inference_failed,
            inference_non_finite: self.inference_non_finite,
            recorded: self.recorded,
            inference_outside: self.inference_outside,
            engines_lost: self.engines_lost,
            shadow: self.shadow.clone(),
            rung: self.rung,
            steps_down: self.steps_down,
            steps_up: self.steps_up,
            observations: observations.accepted,
            refused: observations.refused,
            cameras: observations.cameras,
            commands: self.commands.0,
            commands_failed: self.commands.1,
            commands_superseded: self.control.superseded,
        }
    }
}

impl Report {
    /// Observation messages refused for this reason.
    pub fn refused_for(&self, refusal: Refusal) -> u64 {
        Refusal::ALL.iter().zip(self.refused).find(|(r, _)| **r == refusal).map_or(0, |(_, n)| n)
    }
}
