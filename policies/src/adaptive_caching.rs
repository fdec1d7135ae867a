//! The adaptive caching scheduler and the bubbling union of Block-wise Adaptive Caching.
//!
//! In: per block how similar its output is between every two denoising steps, and by how much it differs. Out: the
//! steps at which each block is computed. Two stages, both exact and deterministic:
//! 1. [`update_steps`]: dynamic programming finds the M update steps of one block that maximise the sum of
//!    similarities between each skipped step and the step whose output it reuses. Step 0 is always one. Of schedules
//!    with equal sums it takes the one whose last update comes first, then the one before, and so on.
//! 2. [`bubbling_union`]: the N blocks with the largest mean l1 difference also update whenever a feed-forward block
//!    at or after their own layer updates. Only steps found in stage 1 are passed on, but passing on the added ones
//!    too would change nothing: what a later block has been given, an earlier one is given as well. So the order in
//!    which the blocks are visited does not matter.
//!
//! Not here: how similarities are measured ([`crate::calibration`]) and whether cosine similarity is a good guide.
//! The authors' code differs in two things that this one leaves out: it computes every block once more at steps 99
//! and 100 whatever K is, and it makes no union for N = 1.
//!
//! Source: Block-wise Adaptive Caching for Accelerating Diffusion Policy, arXiv 2506.13456.

use crate::config::Architecture;
use crate::schedule::{Block, BlockKind, Schedule, ScheduleError};

/// What was measured of a policy's blocks over K denoising steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// Denoising steps K.
    pub steps: usize,
    /// One entry per block, in the trunk's order.
    pub blocks: Vec<BlockStatistics>,
}

/// What was measured of one block.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockStatistics {
    /// Which block.
    pub block: Block,
    /// `[K, K]`, row-major: row i, column j is the similarity of the outputs at steps i and j; larger is more alike.
    pub similarity: Vec<f64>,
    /// `[K, K]`, row-major: inner products of the outputs at steps i and j, mean over observations. Forecasts need
    /// them, the scheduler does not; may be empty.
    pub products: Vec<f64>,
    /// Mean absolute difference of the block's outputs, per element, over all pairs of steps.
    pub mean_l1_difference: f64,
}

/// Why there is no adaptive schedule.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AdaptiveCachingError {
    /// A similarity matrix is not K by K.
    #[error("similarity of block {block}: expected {steps} x {steps} numbers, got {got}; calibrate again")]
    MatrixSize {
        /// Which block.
        block: Block,
        /// Denoising steps K.
        steps: usize,
        /// Numbers found.
        got: usize,
    },
    /// A similarity is NaN or infinite.
    #[error(
        "similarity of block {block} between steps {first} and {second}: expected a finite number, got {got}; calibrate again"
    )]
    Similarity {
        /// Which block.
        block: Block,
        /// Row.
        first: usize,
        /// Column.
        second: usize,
        /// The number found.
        got: f64,
    },
    /// A mean l1 difference is NaN, infinite or negative.
    #[error(
        "mean l1 difference of block {block}: expected a finite number of at least 0, got {got}; calibrate again"
    )]
    Difference {
        /// Which block.
        block: Block,
        /// The number found.
        got: f64,
    },
    /// There is no such number of update steps.
    #[error("{got} updates per block: expected 1 to {steps}, the number of denoising steps")]
    Updates {
        /// M.
        got: usize,
        /// Denoising steps K.
        steps: usize,
    },
    /// There are not so many blocks.
    #[error("union over {got} blocks: expected 0 to {blocks}, the number of blocks")]
    Union {
        /// N.
        got: usize,
        /// Blocks measured.
        blocks: usize,
    },
    /// The measured blocks are not the policy's.
    #[error("calibrated on another policy: {0}")]
    Schedule(#[from] ScheduleError),
}

/// The schedule of Block-wise Adaptive Caching: M = `updates` steps per block, union over N = `union` blocks.
///
/// Takes O(blocks * M * K^2).
pub fn schedule(
    architecture: &Architecture,
    statistics: &Statistics,
    updates: usize,
    union: usize,
) -> Result<Schedule, AdaptiveCachingError> {
    let rows = update_table(statistics, updates, union)?;
    Ok(Schedule::from_updates(architecture, statistics.steps, rows)?)
}

/// The rising update steps of every measured block, both stages done.
pub fn update_table(
    statistics: &Statistics,
    updates: usize,
    union: usize,
) -> Result<Vec<(Block, Vec<usize>)>, AdaptiveCachingError> {
    let union_blocks = most_different(statistics, union)?;
    let mut rows = Vec::with_capacity(statistics.blocks.len());
    for block in &statistics.blocks {
        rows.push((block.block, update_steps(block, statistics.steps, updates)?));
    }
    bubbling_union(&mut rows, &union_blocks);
    Ok(rows)
}

/// The M = `updates` rising steps, 0 among them, with the largest [`similarity_sum`]. O(M K^2).
pub fn update_steps(
    block: &BlockStatistics,
    steps: usize,
    updates: usize,
) -> Result<Vec<usize>, AdaptiveCachingError> {
    if !(1..=steps).contains(&updates) {
        return Err(AdaptiveCachingError::Updates { got: updates, steps });
    }
    check_matrix(block, steps)?;
    let reused = prefix_sums(&block.similarity, steps);
    // Gain of updating at `from` and reusing that output until before `until`.
    let gain = |from: usize, until: usize| reused[from * steps + until - 1] - reused[from * steps + from];

    // best[j]: the largest sum over steps 0..j with m updates; previous[m][j]: the last of them.
    let mut best = vec![f64::NEG_INFINITY; steps + 1];
    best[0] = 0.0;
    let mut previous = vec![0_u32; (updates + 1) * (steps + 1)];
    for m in 1..=updates {
        let mut next = vec![f64::NEG_INFINITY; steps + 1];
        for until in m..=steps {
            for (from, value) in best[..until].iter().enumerate().skip(m - 1) {
                let sum = value + gain(from, until);
                if sum > next[until] {
                    next[until] = sum;
                    previous[m * (steps + 1) + until] = from as u32;
                }
            }
        }
        best = next;
    }

    let mut at = vec![0; updates];
    let mut until = steps;
    for m in (1..=updates).rev() {
        until = previous[m * (steps + 1) + until] as usize;
        at[m - 1] = until;
    }
    Ok(at)
}

/// What [`update_steps`] maximises: the sum over all skipped steps of their similarity to the update step before.
///
/// `similarity` is `[K, K]` row-major, `at` are rising steps below K, the first of them 0.
///
/// # Panics
/// If `similarity` is smaller or `at` holds larger steps.
pub fn similarity_sum(similarity: &[f64], steps: usize, at: &[usize]) -> f64 {
    let ends = at.iter().skip(1).copied().chain([steps]);
    at.iter()
        .zip(ends)
        .flat_map(|(&from, until)| &similarity[from * steps + from + 1..from * steps + until])
        .sum()
}

/// The N blocks with the largest mean l1 difference, largest first; equal ones in the trunk's order.
pub fn most_different(statistics: &Statistics, union: usize) -> Result<Vec<Block>, AdaptiveCachingError> {
    let blocks = &statistics.blocks;
    if union > blocks.len() {
        return Err(AdaptiveCachingError::Union { got: union, blocks: blocks.len() });
    }
    if let Some(b) =
        blocks.iter().find(|b| !(b.mean_l1_difference >= 0.0 && b.mean_l1_difference.is_finite()))
    {
        return Err(AdaptiveCachingError::Difference { block: b.block, got: b.mean_l1_difference });
    }
    let mut order: Vec<&BlockStatistics> = blocks.iter().collect();
    order.sort_by(|a, b| {
        b.mean_l1_difference.total_cmp(&a.mean_l1_difference).then_with(|| a.block.cmp(&b.block))
    });
    Ok(order[..union].iter().map(|b| b.block).collect())
}

/// Lets each of `blocks` also update whenever a feed-forward block at or after its own layer does.
pub fn bubbling_union(rows: &mut [(Block, Vec<usize>)], blocks: &[Block]) {
    let feed_forwards: Vec<(Block, Vec<usize>)> =
        rows.iter().filter(|(b, _)| b.kind == BlockKind::FeedForward).cloned().collect();
    for (block, at) in rows.iter_mut().filter(|(b, _)| blocks.contains(b)) {
        at.extend(feed_forwards.iter().filter(|(f, _)| f.layer >= block.layer).flat_map(|(_, steps)| steps));
        at.sort_unstable();
        at.dedup();
    }
}

fn check_matrix(block: &BlockStatistics, steps: usize) -> Result<(), AdaptiveCachingError> {
    let got = block.similarity.len();
    if Some(got) != steps.checked_mul(steps) {
        return Err(AdaptiveCachingError::MatrixSize { block: block.block, steps, got });
    }
    match block.similarity.iter().position(|s| !s.is_finite()) {
        Some(i) => Err(AdaptiveCachingError::Similarity {
            block: block.block,
            first: i / steps,
            second: i % steps,
            got: block.similarity[i],
        }),
        None => Ok(()),
    }
}

/// Running sums along each row of a `[K, K]` matrix.
fn prefix_sums(matrix: &[f64], steps: usize) -> Vec<f64> {
    let mut sums = matrix.to_vec();
    for row in sums.chunks_mut(steps) {
        let mut sum = 0.0;
        for value in row {
            sum += *value;
            *value = sum;
        }
    }
    sums
}

#[cfg(test)]
#[path = "adaptive_caching_tests.rs"]
mod tests;
