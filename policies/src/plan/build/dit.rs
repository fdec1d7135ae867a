//! The blocks of a DiT: modulated, not cross-attending.
//!
//! Adaptive LayerNorm is `modulation = W silu([timestep | observation]) + b`. The product splits into what the timestep adds,
//! computed once at load for all steps, and what the observation adds, computed once per inference; a block adds the two.
//! What a block adds to the stream, and what is cached of it, is its gated branch. Source: LeRobot's
//! `policies/multi_task_dit/modeling_multi_task_dit.py`; Peebles and Xie, arXiv 2212.09748.

use super::Builder;
use crate::config::Dit;
use crate::plan::{Activation, Attention, Gate, Linear, Modulate, Modulation, Op, Rotate, Segment, View};
use crate::sampler::SamplerStep;
use crate::schedule::{Block, BlockKind};

impl Builder<'_> {
    /// What the timesteps add to every layer's modulation, `[K, 6 D layers]`.
    pub(super) fn modulation_of_time(&mut self, dit: &Dit, samplers: &[SamplerStep]) -> View {
        let width = dit.timestep_width;
        let embedded = self.buffer(samplers.len(), width);
        let timesteps = samplers.iter().map(|s| s.timestep).collect();
        self.ops.push(Op::Timesteps { timesteps, table: None, output: embedded });
        let gelu = |linear| Linear { activation: Activation::Gelu, ..linear };
        let hidden = gelu(self.layer(embedded, "time_emb.0", 2 * width));
        let hidden = self.emit(hidden);
        let token = gelu(self.layer(hidden, "time_emb.2", width));
        let token = self.emit(token);
        self.modulation(token, "modulation.time")
    }

    /// What the observation adds to every layer's modulation, `[1, 6 D layers]`.
    pub(super) fn modulation_of_observation(&mut self, observation: View) -> View {
        let all = observation.len();
        self.modulation(View { rows: 1, cols: all, stride: all, ..observation }, "modulation.observation")
    }

    fn modulation(&mut self, input: View, prefix: &str) -> View {
        let output = self.buffer(input.rows, input.cols);
        self.ops.push(Op::Silu { input, output });
        let a = &self.config.architecture;
        let product = self.layer(output, prefix, 6 * a.width * a.layers);
        self.emit(product)
    }

    /// `x += gate branch(norm(x) (1 + scale) + shift)`, the gated branch also into `output`.
    pub(super) fn dit_block(&mut self, block: Block, modulation: Modulation, x: View, output: View) {
        let width = self.shape.width;
        let attends = block.kind == BlockKind::SelfAttention;
        let first = 6 * block.layer + if attends { 0 } else { 3 };
        let part = |i: usize| Modulation {
            time: modulation.time.cols((first + i) * width, width),
            observation: modulation.observation.cols((first + i) * width, width),
        };
        let input = self.buffer(x.rows, width);
        self.ops.push(Op::Modulate(Modulate { input: x, shift: part(0), scale: part(1), output: input }));
        let prefix = format!("encoder.layers.{}", block.layer);
        let branch =
            if attends { self.dit_attention(&prefix, input) } else { self.dit_feed_forward(&prefix, input) };
        self.ops.push(Op::Gate(Gate {
            input: branch,
            gate: part(2),
            output: Some(output),
            residual: Some(x),
        }));
    }

    fn dit_attention(&mut self, prefix: &str, input: View) -> View {
        let (width, heads) = (self.shape.width, self.shape.heads);
        let prefix = format!("{prefix}.self_attn");
        let (weight, bias) = (format!("{prefix}.in_proj_weight"), format!("{prefix}.in_proj_bias"));
        let product = self.linear(input, &weight, &bias, 0, 3 * width);
        let qkv = self.emit(product);
        if let Some(base) = self.config.architecture.dit.as_ref().and_then(|dit| dit.rotary_base) {
            // Queries and keys lie side by side, and so do their heads.
            let tokens = qkv.cols(0, 2 * width);
            self.ops.push(Op::Rotate(Rotate { tokens, depth: width / heads, base }));
        }
        let output = self.buffer(input.rows, width);
        self.ops.push(Op::Attention(Attention {
            query: qkv.cols(0, width),
            segments: vec![Segment { keys: qkv.cols(width, width), values: qkv.cols(2 * width, width) }],
            ahead: None,
            output,
        }));
        let projected = self.layer(output, &format!("{prefix}.out_proj"), width);
        self.emit(projected)
    }

    fn dit_feed_forward(&mut self, prefix: &str, input: View) -> View {
        let width = self.shape.width;
        let hidden = self.layer(input, &format!("{prefix}.linear1"), 4 * width);
        let hidden = self.emit(Linear { activation: Activation::GeluTanh, ..hidden });
        let output = self.layer(hidden, &format!("{prefix}.linear2"), width);
        self.emit(output)
    }
}
