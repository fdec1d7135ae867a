//! Cross-attention folded into its keys and values, where they are known before the denoising loop.
//!
//! With condition tokens m, head h of width d, and query, key, value and output matrices Q, K, V, O and biases:
//! ```text
//! score_h = (Q_h x + q_h) . (K_h m + k_h) / sqrt(d) = x . (Q_h^T K_h m + Q_h^T k_h) / sqrt(d)
//!                                                       + (q_h^T K_h m + q_h . k_h) / sqrt(d)
//! out     = sum_h p_h O_h (V_h m + v_h)             = sum_h p_h (O_h V_h m + O_h v_h)
//! ```
//! and LayerNorm, x = scale (d - mean(d)) gain + bias with d = y - y[0], goes the same way:
//! ```text
//! x . key = scale (d . (gain key) - mean(d) sum(gain key)) + bias . key
//! ```
//! so one product of m gives folded keys `[H, D]`, values `[H, D]`, offsets `[H]` and slopes `[H]`, and a token then
//! needs H S dot products instead of two matrices. Three dependent dispatches per block become one. Composed matrices are made at
//! load, in f32; they are larger than the originals, but read once per inference and not once per step.

use std::collections::HashMap;

use refrain_policies::plan::{Activation, BufferId, Linear, Matrix, Op, Plan, VectorId, View};

use super::params::CROSS_KEYS;
use super::weights::Weights;
use crate::engine::EngineError;

/// Most heads times keys for which a token's dot products cost less than its products would.
const MOST_SLOTS: usize = 64;
/// Widest stream that is folded: composing at load takes `2 D^3` multiplications per layer.
const MOST_WIDTH: usize = 1024;

/// Three operations that one dispatch of `cross` replaces.
pub(super) struct Triple<'a> {
    pub(super) query: &'a Linear,
    pub(super) attention: &'a refrain_policies::plan::Attention,
    pub(super) output: &'a Linear,
}

/// Keys and values of some condition tokens that are made in folded form.
#[derive(Clone, Copy)]
pub(super) struct Fold<'a> {
    /// The product that would have made them.
    pub(super) keys: &'a Linear,
    pub(super) query: &'a Linear,
    pub(super) output: &'a Linear,
    /// Where the folded ones go in the arena.
    pub(super) at: usize,
}

/// Everything that is folded in a plan.
#[derive(Default)]
pub(super) struct Folds<'a> {
    pub(super) by_buffer: HashMap<BufferId, Fold<'a>>,
    /// Numbers of all folded keys and values.
    pub(super) len: usize,
}

/// Numbers of one folded key with its values, offsets and slopes.
pub(super) fn stride(width: usize, heads: usize) -> usize {
    2 * heads * width + 2 * heads
}

/// The three operations from `ops[0]` on, if that is what they are.
pub(super) fn triple<'a>(ops: &[&'a Op]) -> Option<Triple<'a>> {
    let [Op::Linear(query), Op::Attention(attention), Op::Linear(output), ..] = ops else { return None };
    let plain = |l: &Linear| l.activation == Activation::None && l.table.is_none();
    let joined = query.output == Some(attention.query) && output.input == attention.output;
    let shaped = plain(query)
        && plain(output)
        && query.norm.is_some()
        && output.norm.is_none()
        && query.residual.is_none()
        && query.input.cols == attention.query.cols;
    (joined && shaped).then_some(Triple { query, attention, output })
}

impl<'a> Folds<'a> {
    /// Finds what can be folded; folded keys are placed from `at` on.
    pub(super) fn of(plan: &'a Plan, at: usize) -> Self {
        let (width, heads) = (plan.shape.width, plan.shape.heads);
        let made: HashMap<BufferId, &Linear> = plan
            .load
            .iter()
            .chain(&plan.observe)
            .filter_map(|op| match op {
                Op::Linear(l) => l.output.filter(|v| is_pair(plan, l, v)).map(|v| (v.buffer, l)),
                _ => None,
            })
            .collect();
        let ops: Vec<&Op> = plan.denoise.iter().collect();
        let mut folds = Self::default();
        let mut refused: Vec<BufferId> = Vec::new();
        for i in 0..ops.len() {
            let Op::Attention(attention) = ops[i] else { continue };
            let found = i.checked_sub(1).and_then(|first| triple(&ops[first..]));
            let keys: usize = attention.segments.iter().map(|s| s.keys.rows).sum();
            let small = keys * heads <= MOST_SLOTS
                && keys <= CROSS_KEYS
                && width <= MOST_WIDTH
                && attention.query.cols == width;
            for segment in &attention.segments {
                let buffer = segment.keys.buffer;
                let beside = View { at: segment.keys.at + width, ..segment.keys };
                let pair = segment.values == beside && segment.keys.at.is_multiple_of(segment.keys.stride);
                let known = made.get(&buffer).filter(|_| small && pair);
                match (&found, known) {
                    (Some(t), Some(keys)) => {
                        let fold = Fold { keys, query: t.query, output: t.output, at: 0 };
                        let first = folds.by_buffer.entry(buffer).or_insert(fold);
                        if !same_weights(first, t) {
                            refused.push(buffer);
                        }
                    }
                    _ => refused.push(buffer),
                }
            }
        }
        // A triple is folded as a whole: one refused segment refuses the others, until nothing changes.
        loop {
            let before = refused.len();
            for op in &ops {
                if let Op::Attention(a) = op
                    && a.segments.iter().any(|s| refused.contains(&s.keys.buffer))
                {
                    let more: Vec<BufferId> =
                        a.segments.iter().map(|s| s.keys.buffer).filter(|b| !refused.contains(b)).collect();
                    refused.extend(more);
                }
            }
            if refused.len() == before {
                break;
            }
        }
        folds.by_buffer.retain(|buffer, _| !refused.contains(buffer));
        let mut buffers: Vec<BufferId> = folds.by_buffer.keys().copied().collect();
        buffers.sort_unstable();
        for buffer in buffers {
            if let Some(fold) = folds.by_buffer.get_mut(&buffer) {
                fold.at = at + folds.len;
                folds.len += fold.keys.input.rows * stride(width, heads);
            }
        }
        folds
    }

    /// The fold whose keys an attention's segment reads, and the first key's row in it.
    pub(super) fn segment(&self, keys: &View) -> Option<(&Fold<'a>, usize)> {
        self.by_buffer.get(&keys.buffer).map(|fold| (fold, keys.at / keys.stride))
    }
}

/// Whether a product makes keys and values side by side, in a buffer of their own.
fn is_pair(plan: &Plan, l: &Linear, output: &View) -> bool {
    l.norm.is_none()
        && l.activation == Activation::None
        && l.table.is_none()
        && l.residual.is_none()
        && output.at == 0
        && output.cols == 2 * plan.shape.width
        && output.stride == output.cols
        && plan.buffers[output.buffer.0].len == output.len()
        && plan.probes.iter().all(|p| p.view.buffer != output.buffer)
}

fn same_weights(fold: &Fold<'_>, t: &Triple<'_>) -> bool {
    (fold.query.matrix, fold.query.bias, fold.output.matrix)
        == (t.query.matrix, t.query.bias, t.output.matrix)
}

/// The composed matrix `[2 H D + 2 H, I]` and its bias, for one product of the condition tokens.
pub(super) fn compose(
    plan: &Plan,
    weights: &Weights<'_>,
    fold: &Fold<'_>,
) -> Result<(Vec<f32>, Vec<f32>), EngineError> {
    let (width, heads) = (plan.shape.width, plan.shape.heads);
    let depth = width / heads;
    let flat = |l: &Linear| weights.flat(&plan.matrices[l.matrix.0]);
    let bias = |l: &Linear| {
        let v = &plan.vectors[l.bias.0];
        weights.values(&v.tensor, v.first, v.len)
    };
    let (q, kv, o) = (flat(fold.query)?, flat(fold.keys)?, flat(fold.output)?);
    let (query_bias, kv_bias) = (bias(fold.query)?, bias(fold.keys)?);
    let of = |id: VectorId| {
        let v = &plan.vectors[id.0];
        weights.values(&v.tensor, v.first, v.len)
    };
    let (gain, norm_bias) = match &fold.query.norm {
        Some(norm) => (of(norm.gain)?, of(norm.bias)?),
        None => (vec![1.0; width], vec![0.0; width]),
    };
    let inputs = fold.keys.input.cols;
    let rows = stride(width, heads);
    let scale = (depth as f32).sqrt().recip();
    // The bias rides along as one more input.
    let columns = inputs + 1;
    let row_of = |r: usize| kv[r * inputs..(r + 1) * inputs].iter().copied().chain([kv_bias[r]]);
    let mut composed = vec![0.0f32; rows * columns];
    let mut add = |row: usize, factor: f32, r: usize| {
        let to = &mut composed[row * columns..(row + 1) * columns];
        to.iter_mut().zip(row_of(r)).for_each(|(t, v)| *t += factor * v);
    };
    for h in 0..heads {
        let (offset, slope) = (2 * heads * width + h, 2 * heads * width + heads + h);
        for j in h * depth..(h + 1) * depth {
            let (mut along_gain, mut along_bias) = (0.0, query_bias[j]);
            for c in 0..width {
                let key = q[j * width + c];
                along_gain += gain[c] * key;
                along_bias += norm_bias[c] * key;
                add(h * width + c, scale * gain[c] * key, j);
                add((heads + h) * width + c, o[c * width + j], width + j);
            }
            add(offset, scale * along_bias, j);
            add(slope, scale * along_gain, j);
        }
    }
    let matrix = composed.chunks(columns).flat_map(|row| &row[..inputs]).copied().collect();
    let bias = composed.chunks(columns).map(|row| row[inputs]).collect();
    Ok((matrix, bias))
}

/// What two folds must share to share a composed matrix.
pub(super) fn key(plan: &Plan, fold: &Fold<'_>) -> [Matrix; 3] {
    [fold.keys, fold.query, fold.output].map(|l| plan.matrices[l.matrix.0].clone())
}
