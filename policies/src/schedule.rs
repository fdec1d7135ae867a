//! Cache schedules: at which denoising steps each block is computed, and what stands in for it at the others.
//!
//! A schedule is a table of blocks by denoising steps. It is fixed at load, so the plan compiled from it runs the
//! same operations for every input. Where schedules come from does not matter here: full, uniform, by hand, by the
//! adaptive caching scheduler, or any table of a published method.

use std::fmt;
use std::sync::Arc;

use crate::config::Architecture;

/// What a block does inside its layer, in the order of execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockKind {
    /// Tokens attend to each other.
    SelfAttention,
    /// Tokens attend to the condition tokens.
    CrossAttention,
    /// Two-layer perceptron with GELU.
    FeedForward,
}

/// One residual branch of the trunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// Layer, from 0.
    pub layer: usize,
    /// Branch within the layer.
    pub kind: BlockKind,
}

/// What happens to one block at one denoising step.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// The block is computed and its output cached.
    Update,
    /// The block's output is a weighted sum of its last cached outputs, newest first; `[1.0]` repeats the newest.
    Reuse(Vec<f32>),
}

/// A constant that makes up for what reuse gets wrong on average, added to every token at steps without an update; see
/// [`crate::correction`].
#[derive(Clone, Debug, PartialEq)]
pub struct Correction {
    /// Denoising steps, rising; no block is computed at any of them.
    pub steps: Vec<usize>,
    /// `[D]`.
    pub values: Arc<[f32]>,
}

/// A checked table of blocks (in the trunk's order) by denoising steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    steps: usize,
    rows: Vec<(Block, Vec<Cell>)>,
    corrections: Vec<Correction>,
}

/// Why a table is no schedule for a trunk.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScheduleError {
    /// A block of the trunk has no row.
    #[error("schedule has no row for block {0}; every block of the policy needs one")]
    MissingBlock(Block),
    /// A row names a block that the trunk does not have.
    #[error("schedule names block {0:?}, which this policy does not have")]
    UnknownBlock(String),
    /// A block stands twice.
    #[error("schedule has two rows for block {0}")]
    DuplicateBlock(Block),
    /// A row is not as long as there are denoising steps.
    #[error("schedule row {block} has {got} steps, expected {expected}")]
    Length {
        /// The row.
        block: Block,
        /// Denoising steps K.
        expected: usize,
        /// Cells found.
        got: usize,
    },
    /// An update step is not a denoising step.
    #[error("schedule row {block} updates at step {step}, expected 0 to {last}")]
    StepOutOfRange {
        /// The row.
        block: Block,
        /// The step found.
        step: usize,
        /// The last denoising step.
        last: usize,
    },
    /// Nothing is cached yet at step 0.
    #[error("schedule row {0} does not update at step 0, where nothing is cached yet; add step 0")]
    NoFirstUpdate(Block),
    /// A weighted sum reaches further back than there are cached outputs.
    #[error(
        "schedule row {block}, step {step}: {got} reuse weights, but only {cached} outputs are cached by then"
    )]
    TooManyWeights {
        /// The row.
        block: Block,
        /// The denoising step.
        step: usize,
        /// Weights found.
        got: usize,
        /// Updates before that step.
        cached: usize,
    },
    /// A constant correction where a block is computed, where there is another one, or beyond the last step.
    #[error(
        "schedule corrects step {step}: expected one correction per step, at steps below {steps} at which no block is computed"
    )]
    CorrectedStep {
        /// The step found.
        step: usize,
        /// Denoising steps K.
        steps: usize,
    },
    /// A constant correction of the wrong width, or not finite.
    #[error("schedule corrects step {step} with {got} numbers, expected {expected} finite ones")]
    CorrectionValues {
        /// Its first step.
        step: usize,
        /// Width D.
        expected: usize,
        /// Numbers found.
        got: usize,
    },
    /// A weight is missing, NaN or infinite.
    #[error("schedule row {block}, step {step}: expected at least one finite reuse weight")]
    BadWeights {
        /// The row.
        block: Block,
        /// The denoising step.
        step: usize,
    },
}

impl BlockKind {
    /// The name used in files: `self_attention`, `cross_attention`, `feed_forward`.
    pub fn name(self) -> &'static str {
        match self {
            Self::SelfAttention => "self_attention",
            Self::CrossAttention => "cross_attention",
            Self::FeedForward => "feed_forward",
        }
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer{}.{}", self.layer, self.kind.name())
    }
}

impl std::str::FromStr for Block {
    type Err = ScheduleError;

    fn from_str(name: &str) -> Result<Self, ScheduleError> {
        let unknown = || ScheduleError::UnknownBlock(name.to_owned());
        let (layer, kind) = name.strip_prefix("layer").and_then(|n| n.split_once('.')).ok_or_else(unknown)?;
        let kind = [BlockKind::SelfAttention, BlockKind::CrossAttention, BlockKind::FeedForward]
            .into_iter()
            .find(|k| k.name() == kind)
            .ok_or_else(unknown)?;
        Ok(Self { layer: layer.parse().map_err(|_| unknown())?, kind })
    }
}

/// The blocks of a trunk, in order of execution. An encoder-only trunk and a DiT have no cross-attention.
pub fn blocks(architecture: &Architecture) -> Vec<Block> {
    let kinds: &[BlockKind] = if architecture.has_cross_attention() {
        &[BlockKind::SelfAttention, BlockKind::CrossAttention, BlockKind::FeedForward]
    } else {
        &[BlockKind::SelfAttention, BlockKind::FeedForward]
    };
    (0..architecture.layers).flat_map(|layer| kinds.iter().map(move |&kind| Block { layer, kind })).collect()
}

impl Schedule {
    /// Checks a table against a trunk; rows may come in any order.
    pub fn new(
        architecture: &Architecture,
        steps: usize,
        mut rows: Vec<(Block, Vec<Cell>)>,
    ) -> Result<Self, ScheduleError> {
        let order = blocks(architecture);
        rows.sort_by_key(|(block, _)| *block);
        if let Some(w) = rows.windows(2).find(|w| w[0].0 == w[1].0) {
            return Err(ScheduleError::DuplicateBlock(w[0].0));
        }
        if let Some((block, _)) = rows.iter().find(|(block, _)| !order.contains(block)) {
            return Err(ScheduleError::UnknownBlock(block.to_string()));
        }
        if let Some(&block) = order.iter().find(|block| rows.iter().all(|(b, _)| b != *block)) {
            return Err(ScheduleError::MissingBlock(block));
        }
        for (block, cells) in &rows {
            check_row(*block, cells, steps)?;
        }
        Ok(Self { steps, rows, corrections: Vec::new() })
    }

    /// Every block is computed at every step.
    pub fn full(architecture: &Architecture, steps: usize) -> Self {
        let rows = blocks(architecture).into_iter().map(|b| (b, vec![Cell::Update; steps])).collect();
        Self { steps, rows, corrections: Vec::new() }
    }

    /// Update steps per block; every other step repeats the newest cached output.
    pub fn from_updates(
        architecture: &Architecture,
        steps: usize,
        updates: impl IntoIterator<Item = (Block, Vec<usize>)>,
    ) -> Result<Self, ScheduleError> {
        let row = |(block, at): (Block, Vec<usize>)| {
            let mut cells = vec![Cell::Reuse(vec![1.0]); steps];
            for step in at {
                let last = steps.saturating_sub(1);
                *cells.get_mut(step).ok_or(ScheduleError::StepOutOfRange { block, step, last })? =
                    Cell::Update;
            }
            Ok((block, cells))
        };
        let rows = updates.into_iter().map(row).collect::<Result<Vec<_>, _>>()?;
        Self::new(architecture, steps, rows)
    }

    /// All blocks update at the same steps.
    pub fn aligned(
        architecture: &Architecture,
        steps: usize,
        updates: &[usize],
    ) -> Result<Self, ScheduleError> {
        Self::from_updates(
            architecture,
            steps,
            blocks(architecture).into_iter().map(|b| (b, updates.to_vec())),
        )
    }

    /// All blocks update at `updates` evenly spaced steps, from step 0 on.
    pub fn uniform(architecture: &Architecture, steps: usize, updates: usize) -> Result<Self, ScheduleError> {
        let at: Vec<usize> = (0..updates.min(steps)).map(|i| i * steps / updates.min(steps)).collect();
        Self::aligned(architecture, steps, &at)
    }

    /// All blocks update at `updates` steps from step 0 to the last, the denser the later: with equal distances in
    /// `(steps left)^(1 / power)`. An error made late stays in the action; one made early is denoised away.
    pub fn late_dense(
        architecture: &Architecture,
        steps: usize,
        updates: usize,
        power: f64,
    ) -> Result<Self, ScheduleError> {
        let (updates, last) = (updates.clamp(1, steps), (steps - 1) as f64);
        let left = |i: usize| (1.0 - i as f64 / (updates - 1).max(1) as f64).powf(power);
        let at: Vec<usize> = (0..updates).map(|i| (last * (1.0 - left(i))).round() as usize).collect();
        Self::aligned(architecture, steps, &at)
    }

    /// The same updates with other reuse weights, which the caller has checked, and without corrections.
    pub(crate) fn with_rows(&self, rows: Vec<(Block, Vec<Cell>)>) -> Self {
        debug_assert!(rows.iter().all(|(block, cells)| check_row(*block, cells, self.steps).is_ok()));
        Self { steps: self.steps, rows, corrections: Vec::new() }
    }

    /// The same table with constant corrections in place of those that it has.
    pub fn with_corrections(
        self,
        architecture: &Architecture,
        corrections: Vec<Correction>,
    ) -> Result<Self, ScheduleError> {
        let mut free: Vec<bool> = (0..self.steps).map(|step| self.is_quiet(step)).collect();
        for correction in &corrections {
            for &step in &correction.steps {
                if !free.get_mut(step).is_some_and(std::mem::take) {
                    return Err(ScheduleError::CorrectedStep { step, steps: self.steps });
                }
            }
            let (expected, got) = (architecture.width, correction.values.len());
            if got != expected || !correction.values.iter().all(|v| v.is_finite()) {
                let step = correction.steps.first().copied().unwrap_or(0);
                return Err(ScheduleError::CorrectionValues { step, expected, got });
            }
        }
        Ok(Self { corrections, ..self })
    }

    /// With weights and corrections of four decimals: finer ones say more of the calibration's noise than of the policy,
    /// and make long files.
    pub fn rounded(mut self) -> Self {
        let round = |v: f32| (v * 1e4).round() / 1e4;
        for cell in self.rows.iter_mut().flat_map(|(_, cells)| cells) {
            if let Cell::Reuse(weights) = cell {
                weights.iter_mut().for_each(|w| *w = round(*w));
            }
        }
        for correction in &mut self.corrections {
            correction.values = correction.values.iter().map(|v| round(*v)).collect();
        }
        self
    }

    /// Constant corrections.
    pub fn corrections(&self) -> &[Correction] {
        &self.corrections
    }

    /// The constant correction of a step, if it has one.
    pub fn correction(&self, step: usize) -> Option<&Arc<[f32]>> {
        self.corrections.iter().find(|c| c.steps.contains(&step)).map(|c| &c.values)
    }

    /// Whether no block is computed at a step.
    pub fn is_quiet(&self, step: usize) -> bool {
        self.rows.iter().all(|(_, cells)| cells[step] != Cell::Update)
    }

    /// Denoising steps K.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Rows in the trunk's order.
    pub fn rows(&self) -> &[(Block, Vec<Cell>)] {
        &self.rows
    }

    /// Block computations over all steps.
    pub fn updates(&self) -> usize {
        self.rows.iter().flat_map(|(_, cells)| cells).filter(|c| **c == Cell::Update).count()
    }

    /// Steps at which at least one block is computed.
    pub fn steps_with_updates(&self) -> usize {
        (0..self.steps).filter(|&step| !self.is_quiet(step)).count()
    }
}

fn check_row(block: Block, cells: &[Cell], steps: usize) -> Result<(), ScheduleError> {
    if cells.len() != steps {
        return Err(ScheduleError::Length { block, expected: steps, got: cells.len() });
    }
    let mut cached = 0;
    for (step, cell) in cells.iter().enumerate() {
        match cell {
            Cell::Update => cached += 1,
            Cell::Reuse(_) if cached == 0 => return Err(ScheduleError::NoFirstUpdate(block)),
            Cell::Reuse(weights) if weights.len() > cached => {
                return Err(ScheduleError::TooManyWeights { block, step, got: weights.len(), cached });
            }
            Cell::Reuse(weights) if weights.is_empty() || weights.iter().any(|w| !w.is_finite()) => {
                return Err(ScheduleError::BadWeights { block, step });
            }
            Cell::Reuse(_) => {}
        }
    }
    Ok(())
}
