//! Why a schedule file is refused.

use std::path::PathBuf;

use super::{FORMAT, MAX_BYTES};
use crate::schedule::{Block, ScheduleError};

/// Why a schedule file cannot be read, written or used.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleFileError {
    /// A name that could leave the folder.
    #[error("schedule name {0:?}: expected 1 to 64 letters, digits, `_` or `-`")]
    Name(String),
    /// There is no such file.
    #[error(
        "no schedule {name:?} in {folder}; there are: {known}; `refrain calibrate` makes one", folder = folder.display()
    )]
    NotFound {
        /// The name asked for.
        name: String,
        /// Where schedules lie.
        folder: PathBuf,
        /// Names that exist.
        known: String,
    },
    /// The system refuses to read or write.
    #[error("schedule file {path}: {source}", path = path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Larger than any schedule needs to be.
    #[error("schedule file: expected at most {MAX_BYTES} bytes; is this a schedule?")]
    TooLarge,
    /// Not TOML, or not these keys.
    #[error("schedule file: {0}")]
    Syntax(String),
    /// Another version.
    #[error("schedule file: expected format {FORMAT}, got {0}; make it again with this version of refrain")]
    Format(i64),
    /// Not a SHA-256.
    #[error("schedule file: {key}: expected 64 lowercase hex digits, got {got:?}")]
    Hash {
        /// Which key.
        key: &'static str,
        /// The text found.
        got: String,
    },
    /// Calibrated on nothing.
    #[error("schedule file: calibration.observations: expected at least 1, got 0")]
    NoObservations,
    /// Ranges of what was observed that are none, or not for this policy.
    #[error("schedule file: calibration.{0}; search or calibrate again")]
    Coverage(String),
    /// A nameless method.
    #[error("schedule file: method.name: is empty; if the schedule was made by hand, say `by_hand`")]
    NoMethod,
    /// The sampler table is unsound.
    #[error("schedule file: {0}")]
    BadSampler(String),
    /// The list and the sampler contradict each other.
    #[error("schedule file: timesteps are not those of its [sampler], {0}; make the schedule again")]
    Timesteps(String),
    /// Update steps out of order or repeated.
    #[error("schedule file: updates of {block}: expected rising steps, got {step} before {next}")]
    NotRising {
        /// Which block.
        block: Block,
        /// The step found first.
        step: usize,
        /// The step found after it.
        next: usize,
    },
    /// Made for other weights.
    #[error(
        "schedule was made for policy {made_for:?} with weights {made_for_sha256}, but policy {policy:?} has weights {policy_sha256}; calibrate again for these weights"
    )]
    Weights {
        /// The policy at hand.
        policy: String,
        /// Its weights.
        policy_sha256: String,
        /// The schedule's policy.
        made_for: String,
        /// The schedule's weights.
        made_for_sha256: String,
    },
    /// Made for another sampler.
    #[error(
        "schedule was made for sampler {made_for}, but the policy runs {runs}; run it with {made_for}, or calibrate again for {runs}"
    )]
    Sampler {
        /// The schedule's sampler and steps.
        made_for: String,
        /// The policy's.
        runs: String,
    },
    /// Made for the same sampler set up differently.
    #[error(
        "schedule was made for sampler {label} with {key} = {made_for}, but the policy has {key} = {runs}; set it back, or calibrate again"
    )]
    SamplerSetting {
        /// Sampler and steps.
        label: String,
        /// The first setting that differs.
        key: String,
        /// The schedule's value.
        made_for: String,
        /// The policy's value.
        runs: String,
    },
    /// Reuse weights for a block without update steps.
    #[error("schedule file: reuse names block {0}, which has no update steps in [updates]")]
    ReuseBlock(Block),
    /// Reuse weights beyond the last step.
    #[error("schedule file: reuse of {block} at step {step}, expected 1 to {last}")]
    ReuseStep {
        /// Which block.
        block: Block,
        /// The step found.
        step: usize,
        /// The last denoising step.
        last: usize,
    },
    /// Reuse weights where nothing is reused.
    #[error("schedule file: reuse of {block} at step {step}, which is an update step; remove one of the two")]
    ReuseAtUpdate {
        /// Which block.
        block: Block,
        /// The step found.
        step: usize,
    },
    /// Two reuse weights for one cell.
    #[error("schedule file: two reuse entries for {block} at step {step}; remove one")]
    ReuseTwice {
        /// Which block.
        block: Block,
        /// The step found.
        step: usize,
    },
    /// The table is no schedule for this policy.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
}

impl ScheduleFileError {
    pub(super) fn syntax(error: impl std::fmt::Display) -> Self {
        Self::Syntax(error.to_string())
    }
}
