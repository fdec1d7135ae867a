//! The plan: one policy, one sampler and one cache schedule, compiled to a flat list of operations.
//!
//! [`Plan::compile`] is pure. It hoists what depends on the timestep alone to load time and what depends on the
//! observation alone to once per inference, folds neighbouring reused blocks into one addition, fuses runs of quiet
//! steps, drops what nobody reads and places every buffer in one arena. Engines execute the three lists in order
//! and decide nothing: [`Plan::load`] once, then [`Plan::observe`] and [`Plan::denoise`] for every inference.
//!
//! Not here: how fast an operation runs, on how many threads, or in which precision weights are stored.
//! Source of the caching rule: Block-wise Adaptive Caching, arXiv 2506.13456.

mod build;
mod cost;
mod place;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::config::PolicyConfig;
use crate::sampler::SamplerStep;
use crate::schedule::{Block, Schedule};

pub use cost::Cost;

/// A compiled policy.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Shapes that all operations share.
    pub shape: Shape,
    /// The cache schedule that was compiled.
    pub schedule: Schedule,
    /// Matrices that operations name by index.
    pub matrices: Vec<Matrix>,
    /// Vectors and small tables that operations name by index.
    pub vectors: Vec<Vector>,
    /// Buffers that views name by index, placed in the arena.
    pub buffers: Vec<Buffer>,
    /// Size of the arena, in f32.
    pub arena: usize,
    /// Run once, when an engine is made.
    pub load: Vec<Op>,
    /// Run first for every inference: what depends on the observation.
    pub observe: Vec<Op>,
    /// Run next for every inference: the denoising loop.
    pub denoise: Vec<Op>,
    /// Where the normalised observation goes, `[To, O]`.
    pub observation: View,
    /// Where the trajectory starts and ends up, `[T, N]`.
    pub trajectory: View,
    /// Where known actions go, `[T, 1 + A]`, if compiled with [`Plan::joining`]: a token whose first number is not 0 has
    /// the normalised actions that follow it.
    pub known: Option<View>,
    /// Values kept for inspection; empty unless compiled with [`Plan::traced`].
    pub probes: Vec<Probe>,
}

/// Shapes in the letters of [`crate::config`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Denoising steps K.
    pub steps: usize,
    /// Tokens of the trajectory T.
    pub tokens: usize,
    /// Width D.
    pub width: usize,
    /// Heads H.
    pub heads: usize,
    /// Denoised numbers per token N.
    pub denoised: usize,
    /// Actions per token A.
    pub actions: usize,
    /// Observation steps To.
    pub n_obs_steps: usize,
    /// Observation numbers per step O.
    pub observed: usize,
}

/// Index into [`Plan::matrices`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MatrixId(pub usize);

/// Index into [`Plan::vectors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VectorId(pub usize);

/// Index into [`Plan::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub usize);

/// Rows `first .. first + rows` of a weight tensor `[.., cols]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Matrix {
    /// State-dict name.
    pub tensor: String,
    /// First row.
    pub first: usize,
    /// Output size.
    pub rows: usize,
    /// Input size.
    pub cols: usize,
}

/// Elements `first .. first + len` of a weight tensor, flattened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Vector {
    /// State-dict name.
    pub tensor: String,
    /// First element.
    pub first: usize,
    /// Number of elements.
    pub len: usize,
}

/// A region of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Offset in the arena, in f32.
    pub at: usize,
    /// Size, in f32.
    pub len: usize,
}

/// A row-major matrix inside a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The buffer.
    pub buffer: BufferId,
    /// Offset of the first element in the buffer.
    pub at: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

/// What happens to a product before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// `0.5 v (1 + erf(v / sqrt 2))`.
    Gelu,
    /// `0.5 v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3)))`.
    GeluTanh,
    /// `v tanh(ln(1 + e^v))`.
    Mish,
}

/// LayerNorm over the columns, with epsilon 1e-5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerNorm {
    /// Gain, one per column.
    pub gain: VectorId,
    /// Bias, one per column.
    pub bias: VectorId,
}

/// `value = activation(norm(input) matrix^T + bias) + table`, then `output = value` and `residual += value`.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// `[R, I]`.
    pub input: View,
    /// Applied to the input first.
    pub norm: Option<LayerNorm>,
    /// `[C, I]`.
    pub matrix: MatrixId,
    /// `[C]`.
    pub bias: VectorId,
    /// Applied to the product.
    pub activation: Activation,
    /// `[R, C]`, added last.
    pub table: Option<VectorId>,
    /// `[R, C]`, overwritten.
    pub output: Option<View>,
    /// `[R, C]`, added to.
    pub residual: Option<View>,
}

/// A row that is the sum of what depends on the timestep and what depends on the observation, `[1, D]` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modulation {
    /// The timestep's part.
    pub time: View,
    /// The observation's part.
    pub observation: View,
}

/// `output = norm(input) (1 + scale) + shift`: adaptive LayerNorm with epsilon 1e-6 (Peebles and Xie, 2023).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modulate {
    /// `[R, D]`.
    pub input: View,
    /// Added to every row.
    pub shift: Modulation,
    /// Multiplied with every row, after 1 is added.
    pub scale: Modulation,
    /// `[R, D]`, overwritten.
    pub output: View,
}

/// `value = input gate`, then `output = value` and `residual += value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// `[R, D]`.
    pub input: View,
    /// Multiplied with every row.
    pub gate: Modulation,
    /// `[R, D]`, overwritten.
    pub output: Option<View>,
    /// `[R, D]`, added to.
    pub residual: Option<View>,
}

/// Rotary positions (Su et al., 2021): in each head of depth d, numbers i and i + d/2 of row r turn by the angle
/// `r base^(-2 i / d)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotate {
    /// `[R, n D]`: heads side by side, changed in place.
    pub tokens: View,
    /// Numbers of a head, even.
    pub depth: usize,
    /// Base of the frequencies.
    pub base: f64,
}

/// Keys and values of some tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// `[S, D]`.
    pub keys: View,
    /// `[S, D]`.
    pub values: View,
}

/// Multi-head attention, heads side by side in the columns, scores divided by the root of a head's width.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// `[R, D]`.
    pub query: View,
    /// Attended tokens, one segment after the other.
    pub segments: Vec<Segment>,
    /// Token s is seen by token r if `s <= r + ahead`; `None` means that all are seen.
    pub ahead: Option<usize>,
    /// `[R, D]`, overwritten.
    pub output: View,
}

/// `output = sum of weight * view`, or `output += ..`.
#[derive(Clone, Debug, PartialEq)]
pub struct Combine {
    /// Terms, added from the first on.
    pub terms: Vec<(f32, View)>,
    /// Same shape as every term.
    pub output: View,
    /// Add to the output instead of overwriting it.
    pub accumulate: bool,
}

/// `output = trajectory matrix^T + bias + correction + table`, then `+ sum`.
#[derive(Clone, Debug, PartialEq)]
pub struct Embed {
    /// `[T, N]`.
    pub trajectory: View,
    /// `[D, N]`.
    pub matrix: MatrixId,
    /// `[D]`.
    pub bias: VectorId,
    /// `[T, D]`, the positions.
    pub table: VectorId,
    /// `[T, D]`, cached outputs of the blocks that follow.
    pub sum: Option<View>,
    /// `[D]`, added to the bias: what the sum gets wrong on average.
    pub correction: Option<Arc<[f32]>>,
    /// `[T, D]`, overwritten.
    pub output: View,
}

/// `model = norm(input) matrix^T + bias`, then the sampler's step on the trajectory.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// `[T, D]`; the stream ends here, so an engine may leave anything in it.
    pub input: View,
    /// The final LayerNorm, where there is one.
    pub norm: Option<LayerNorm>,
    /// `[N, D]`.
    pub matrix: MatrixId,
    /// `[N]`.
    pub bias: VectorId,
    /// Denoising step k; it draws row 1 + k of the noise.
    pub step: usize,
    /// The sampler's coefficients at this step.
    pub sampler: SamplerStep,
    /// `[T, N]`, updated in place, then imposed on.
    pub trajectory: View,
    /// The observation `[To, O]` imposed on columns A.. of the first To tokens, when inpainting.
    pub impose: Option<View>,
    /// Actions `[T, 1 + A]` imposed at the noise level of the step's result, with row 0 of the noise; see [`Plan::known`].
    pub known: Option<View>,
    /// `[T, N]`: the denoiser's output, kept when traced.
    pub model: Option<View>,
}

/// A run of steps in which no block is computed: embed, add `sum`, norm, head and sampler, token by token.
#[derive(Clone, Debug, PartialEq)]
pub struct Quiet {
    /// As in every step; `output` is not written.
    pub embed: Embed,
    /// As in the first step; the trajectory is updated once per step.
    pub head: Head,
    /// Sampler coefficients of denoising steps `head.step ..`.
    pub samplers: Vec<SamplerStep>,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Row i of the output is the sinusoidal embedding of `timesteps[i]`, plus the table (one row) if any.
    Timesteps {
        /// Training timesteps.
        timesteps: Vec<usize>,
        /// `[D]`, added to every row.
        table: Option<VectorId>,
        /// `[K, D]`.
        output: View,
    },
    /// Row 0 of the noise becomes the trajectory; observation and known actions are imposed as in [`Head`].
    Start {
        /// `[T, N]`.
        trajectory: View,
        /// As in [`Head`].
        impose: Option<View>,
        /// As in [`Head`].
        known: Option<View>,
        /// Share of a clean trajectory at the first timestep.
        signal: f32,
    },
    /// Matrix product with what surrounds it.
    Linear(Linear),
    /// `output = input sigmoid(input)`.
    Silu {
        /// `[R, C]`.
        input: View,
        /// `[R, C]`, overwritten.
        output: View,
    },
    /// Adaptive LayerNorm.
    Modulate(Modulate),
    /// Gated branch.
    Gate(Gate),
    /// Rotary positions.
    Rotate(Rotate),
    /// Attention.
    Attention(Attention),
    /// Weighted sum; a single term of weight 1 that overwrites is a copy.
    Combine(Combine),
    /// Trajectory to tokens.
    Embed(Embed),
    /// Tokens to trajectory.
    Head(Head),
    /// Fused quiet steps.
    Quiet(Quiet),
}

/// A value kept for inspection.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// Which value.
    pub what: Probed,
    /// Denoising step; 0 for values that belong to no step.
    pub step: usize,
    /// Where it lies after an inference.
    pub view: View,
}

/// What a probe holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    /// What a block adds to the stream, `[trunk tokens, D]`.
    Block(Block),
    /// Condition tokens of the observations, `[To, D]`, or of all tokens `[S, D]` where tokens mix.
    Memory,
    /// Condition token of the timestep, `[1, D]`.
    TimeMemory,
    /// The denoiser's output, `[T, N]`.
    Model,
}

/// Why a schedule cannot be compiled for a policy.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The schedule is for another number of steps.
    #[error("schedule has {got} denoising steps, the sampler has {expected}; calibrate for this sampler")]
    Steps {
        /// The sampler's K.
        expected: usize,
        /// The schedule's K.
        got: usize,
    },
    /// The schedule is for another trunk.
    #[error("schedule has {got} blocks, the policy has {expected}")]
    Blocks {
        /// The policy's blocks.
        expected: usize,
        /// The schedule's rows.
        got: usize,
    },
}

impl Plan {
    /// Compiles a checked configuration (its sampler included) and a schedule.
    pub fn compile(config: &PolicyConfig, schedule: &Schedule) -> Result<Self, PlanError> {
        build::compile(config, schedule, build::Options::default())
    }

    /// The same with room for known actions: those of a token stay, noised to the level of each step with row 0 of the
    /// noise, and the others are denoised to join them. With none known, it is the same computation.
    pub fn joining(config: &PolicyConfig, schedule: &Schedule) -> Result<Self, PlanError> {
        build::compile(config, schedule, build::Options { known: true, ..build::Options::default() })
    }

    /// The same computation, keeping every block's output, the condition tokens and the denoiser's outputs.
    pub fn traced(config: &PolicyConfig, schedule: &Schedule) -> Result<Self, PlanError> {
        build::compile(config, schedule, build::Options { traced: true, ..build::Options::default() })
    }

    /// All operations in order of execution.
    pub fn ops(&self) -> impl Iterator<Item = &Op> {
        self.load.iter().chain(&self.observe).chain(&self.denoise)
    }

    /// Position of a view's first element in the arena.
    pub fn offset(&self, view: &View) -> usize {
        self.buffers[view.buffer.0].at + view.at
    }

    /// Numbers of noise for one inference: `[K + 1, T, N]`.
    pub fn noise_len(&self) -> usize {
        (self.shape.steps + 1) * self.shape.tokens * self.shape.denoised
    }
}

impl View {
    /// Rows `first .. first + rows` of this view.
    pub fn rows(self, first: usize, rows: usize) -> Self {
        debug_assert!(first + rows <= self.rows);
        Self { at: self.at + first * self.stride, rows, ..self }
    }

    /// Columns `first .. first + cols` of this view.
    pub fn cols(self, first: usize, cols: usize) -> Self {
        debug_assert!(first + cols <= self.cols);
        Self { at: self.at + first, cols, ..self }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
