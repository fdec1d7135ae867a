//! From configuration and schedule to operations.

mod dit;
mod trunk;

use std::collections::HashMap;

use super::{
    Activation, Attention, Buffer, BufferId, LayerNorm, Linear, Matrix, MatrixId, Modulation, Op, Plan,
    PlanError, Probe, Probed, Segment, Shape, Vector, VectorId, View, place,
};
use crate::config::PolicyConfig;
use crate::sampler::SamplerStep;
use crate::schedule::{self, Schedule};

/// What a plan has besides the computation.
#[derive(Clone, Copy, Default)]
pub(super) struct Options {
    /// Probes.
    pub(super) traced: bool,
    /// Room for known actions.
    pub(super) known: bool,
}

pub(super) fn compile(
    config: &PolicyConfig,
    schedule: &Schedule,
    options: Options,
) -> Result<Plan, PlanError> {
    let a = &config.architecture;
    let samplers = config.sampler.steps();
    if schedule.steps() != samplers.len() {
        return Err(PlanError::Steps { expected: samplers.len(), got: schedule.steps() });
    }
    let blocks = schedule::blocks(a).len();
    if schedule.rows().len() != blocks {
        return Err(PlanError::Blocks { expected: blocks, got: schedule.rows().len() });
    }
    let shape = Shape {
        steps: samplers.len(),
        tokens: a.tokens(),
        width: a.width,
        heads: a.heads,
        denoised: config.denoised_size(),
        actions: config.action.size(),
        n_obs_steps: a.n_obs_steps,
        observed: config.condition_size(),
    };
    let mut b = Builder {
        config,
        shape,
        traced: options.traced,
        ops: Vec::new(),
        matrices: Vec::new(),
        vectors: Vec::new(),
        matrix_ids: HashMap::new(),
        vector_ids: HashMap::new(),
        buffers: Vec::new(),
        probes: Vec::new(),
    };
    let observation = b.buffer(shape.n_obs_steps, shape.observed);
    let trajectory = b.buffer(shape.tokens, shape.denoised);
    let impose = (!a.obs_as_cond).then_some(observation);
    let known = options.known.then(|| b.buffer(shape.tokens, 1 + shape.actions));

    let (condition, load) = if let Some(dit) = &a.dit {
        let time = b.modulation_of_time(dit, &samplers);
        let load = std::mem::take(&mut b.ops);
        let observation = b.modulation_of_observation(observation);
        (Condition { modulation: Some(Modulation { time, observation }), ..Condition::default() }, load)
    } else {
        let mut condition = b.condition_of_time(&samplers);
        let load = std::mem::take(&mut b.ops);
        b.condition_of_observation(&mut condition, observation);
        (condition, load)
    };
    let observe = std::mem::take(&mut b.ops);
    b.ops.push(Op::Start { trajectory, impose, known, signal: config.sampler.start_signal() });
    trunk::denoise(&mut b, condition, trunk::Ends { trajectory, impose, known }, samplers, schedule);
    let denoise = std::mem::take(&mut b.ops);
    let Builder { matrices, vectors, buffers, probes, .. } = b;
    let mut plan = Plan {
        shape,
        schedule: schedule.clone(),
        matrices,
        vectors,
        buffers,
        arena: 0,
        load,
        observe,
        denoise,
        observation,
        trajectory,
        known,
        probes,
    };
    place::drop_dead(&mut plan);
    place::place(&mut plan);
    Ok(plan)
}

/// Collects operations of the phase at hand, and everything they name.
struct Builder<'a> {
    config: &'a PolicyConfig,
    shape: Shape,
    traced: bool,
    ops: Vec<Op>,
    matrices: Vec<Matrix>,
    vectors: Vec<Vector>,
    matrix_ids: HashMap<Matrix, MatrixId>,
    vector_ids: HashMap<Vector, VectorId>,
    buffers: Vec<Buffer>,
    probes: Vec<Probe>,
}

/// What cross-attention and trunk need of the condition tokens.
#[derive(Default)]
struct Condition {
    /// Embedded timesteps with their position, `[K, D]`.
    time_tokens: Option<View>,
    /// Keys and values of the timestep, one `[K, 2 D]` per layer; where tokens do not mix.
    time_keys: Vec<View>,
    /// Keys and values of the observations, one `[To, 2 D]` per layer; where tokens do not mix.
    observation_keys: Vec<View>,
    /// Embedded observations with their positions, `[To, D]`; where tokens mix.
    observation_tokens: Option<View>,
    /// What shifts, scales and gates the blocks of a DiT: `time` has a row per step, `[K, 6 D layers]`.
    modulation: Option<Modulation>,
}

impl Builder<'_> {
    fn buffer(&mut self, rows: usize, cols: usize) -> View {
        let buffer = BufferId(self.buffers.len());
        self.buffers.push(Buffer { at: 0, len: rows * cols });
        View { buffer, at: 0, rows, cols, stride: cols }
    }

    fn matrix(&mut self, tensor: impl Into<String>, first: usize, rows: usize, cols: usize) -> MatrixId {
        let matrix = Matrix { tensor: tensor.into(), first, rows, cols };
        *self.matrix_ids.entry(matrix.clone()).or_insert_with(|| {
            self.matrices.push(matrix);
            MatrixId(self.matrices.len() - 1)
        })
    }

    fn vector(&mut self, tensor: impl Into<String>, first: usize, len: usize) -> VectorId {
        let vector = Vector { tensor: tensor.into(), first, len };
        *self.vector_ids.entry(vector.clone()).or_insert_with(|| {
            self.vectors.push(vector);
            VectorId(self.vectors.len() - 1)
        })
    }

    fn norm(&mut self, prefix: &str) -> LayerNorm {
        let width = self.shape.width;
        LayerNorm {
            gain: self.vector(format!("{prefix}.weight"), 0, width),
            bias: self.vector(format!("{prefix}.bias"), 0, width),
        }
    }

    /// A product with rows `first .. first + rows` of a weight and the same part of its bias.
    fn linear(&mut self, input: View, weight: &str, bias: &str, first: usize, rows: usize) -> Linear {
        Linear {
            input,
            norm: None,
            matrix: self.matrix(weight, first, rows, input.cols),
            bias: self.vector(bias, first, rows),
            activation: Activation::None,
            table: None,
            output: None,
            residual: None,
        }
    }

    /// A product of a whole layer `prefix.weight`, `prefix.bias`.
    fn layer(&mut self, input: View, prefix: &str, rows: usize) -> Linear {
        self.linear(input, &format!("{prefix}.weight"), &format!("{prefix}.bias"), 0, rows)
    }

    /// Emits a product into a fresh buffer.
    fn emit(&mut self, linear: Linear) -> View {
        let output = self.buffer(linear.input.rows, self.matrices[linear.matrix.0].rows);
        self.ops.push(Op::Linear(Linear { output: Some(output), ..linear }));
        output
    }

    /// The two-layer perceptron of the condition encoder.
    fn condition_mlp(&mut self, tokens: View) -> View {
        let (width, hidden) = (self.shape.width, 4 * self.shape.width);
        let first = Linear { activation: Activation::Mish, ..self.layer(tokens, "encoder.0", hidden) };
        let hidden = self.emit(first);
        let second = self.layer(hidden, "encoder.2", width);
        self.emit(second)
    }

    /// The transformer layers of the condition encoder, in place.
    fn condition_layers(&mut self, tokens: View) {
        for i in 0..self.config.architecture.condition_layers {
            let prefix = format!("encoder.layers.{i}");
            self.self_attention(&prefix, tokens, None, None);
            self.feed_forward(&prefix, "norm2", tokens, None);
        }
    }

    /// Keys and values of condition tokens for a layer's cross-attention, `[tokens, 2 D]`.
    fn cross_keys(&mut self, layer: usize, memory: View) -> View {
        let width = self.shape.width;
        let prefix = format!("decoder.layers.{layer}.multihead_attn");
        let keys = self.linear(
            memory,
            &format!("{prefix}.in_proj_weight"),
            &format!("{prefix}.in_proj_bias"),
            width,
            2 * width,
        );
        self.emit(keys)
    }

    /// Emits what depends on the timestep alone.
    fn condition_of_time(&mut self, samplers: &[SamplerStep]) -> Condition {
        let a = &self.config.architecture;
        let width = self.shape.width;
        let tokens = self.buffer(samplers.len(), width);
        let position = if a.time_as_cond { "cond_pos_emb" } else { "pos_emb" };
        let table = Some(self.vector(position, 0, width));
        let timesteps = samplers.iter().map(|s| s.timestep).collect();
        self.ops.push(Op::Timesteps { timesteps, table, output: tokens });
        let mut condition = Condition { time_tokens: Some(tokens), ..Condition::default() };
        let mixes = a.condition_layers > 0 && a.obs_as_cond;
        if a.time_as_cond && !mixes {
            let memory = if a.condition_layers == 0 {
                self.condition_mlp(tokens)
            } else {
                (0..samplers.len()).for_each(|k| self.condition_layers(tokens.rows(k, 1)));
                tokens
            };
            condition.time_keys = (0..a.layers).map(|layer| self.cross_keys(layer, memory)).collect();
            if self.traced {
                for step in 0..samplers.len() {
                    self.probes.push(Probe { what: Probed::TimeMemory, step, view: memory.rows(step, 1) });
                }
            }
        }
        condition
    }

    /// Emits what depends on the observation alone.
    fn condition_of_observation(&mut self, condition: &mut Condition, observation: View) {
        let a = &self.config.architecture;
        if !a.obs_as_cond {
            return;
        }
        let width = self.shape.width;
        let table = Some(self.vector("cond_pos_emb", width, a.n_obs_steps * width));
        let embedded = Linear { table, ..self.layer(observation, "cond_obs_emb", width) };
        let tokens = self.emit(embedded);
        if a.condition_layers > 0 {
            condition.observation_tokens = Some(tokens);
            return;
        }
        let memory = self.condition_mlp(tokens);
        condition.observation_keys = (0..a.layers).map(|layer| self.cross_keys(layer, memory)).collect();
        if self.traced {
            self.probes.push(Probe { what: Probed::Memory, step: 0, view: memory });
        }
    }

    /// `x += attention(norm1(x))`, the branch also into `output`.
    fn self_attention(&mut self, prefix: &str, x: View, ahead: Option<usize>, output: Option<View>) {
        let width = self.shape.width;
        let norm = Some(self.norm(&format!("{prefix}.norm1")));
        let attention = format!("{prefix}.self_attn");
        let qkv = Linear {
            norm,
            ..self.linear(
                x,
                &format!("{attention}.in_proj_weight"),
                &format!("{attention}.in_proj_bias"),
                0,
                3 * width,
            )
        };
        let qkv = self.emit(qkv);
        let segments = vec![Segment { keys: qkv.cols(width, width), values: qkv.cols(2 * width, width) }];
        self.attend(&attention, qkv.cols(0, width), segments, ahead, x, output);
    }

    /// `x += attention(norm2(x), condition)`, the branch also into `output`.
    fn cross_attention(
        &mut self,
        prefix: &str,
        x: View,
        segments: Vec<Segment>,
        ahead: Option<usize>,
        output: Option<View>,
    ) {
        let width = self.shape.width;
        let norm = Some(self.norm(&format!("{prefix}.norm2")));
        let attention = format!("{prefix}.multihead_attn");
        let query = Linear {
            norm,
            ..self.linear(
                x,
                &format!("{attention}.in_proj_weight"),
                &format!("{attention}.in_proj_bias"),
                0,
                width,
            )
        };
        let query = self.emit(query);
        self.attend(&attention, query, segments, ahead, x, output);
    }

    fn attend(
        &mut self,
        prefix: &str,
        query: View,
        segments: Vec<Segment>,
        ahead: Option<usize>,
        x: View,
        output: Option<View>,
    ) {
        let attended = self.buffer(query.rows, query.cols);
        self.ops.push(Op::Attention(Attention { query, segments, ahead, output: attended }));
        let width = self.shape.width;
        let projected = Linear {
            output,
            residual: Some(x),
            ..self.layer(attended, &format!("{prefix}.out_proj"), width)
        };
        self.ops.push(Op::Linear(projected));
    }

    /// `x += feed_forward(norm(x))`, the branch also into `output`.
    fn feed_forward(&mut self, prefix: &str, norm: &str, x: View, output: Option<View>) {
        let width = self.shape.width;
        let norm = Some(self.norm(&format!("{prefix}.{norm}")));
        let first = Linear {
            norm,
            activation: Activation::Gelu,
            ..self.layer(x, &format!("{prefix}.linear1"), 4 * width)
        };
        let hidden = self.emit(first);
        let second =
            Linear { output, residual: Some(x), ..self.layer(hidden, &format!("{prefix}.linear2"), width) };
        self.ops.push(Op::Linear(second));
    }
}
