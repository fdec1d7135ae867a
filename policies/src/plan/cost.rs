//! What a plan costs: block computations, operations, FLOPs and bytes, counted from its operations.

use super::{Op, Plan, View};
use crate::schedule::BlockKind;

/// Costs of one inference; load is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Operations that an engine executes one after the other.
    pub operations: usize,
    /// Blocks computed.
    pub block_computations: usize,
    /// Denoising steps in which at least one block is computed.
    pub steps_with_updates: usize,
    /// Floating-point operations; a multiplication and its addition are two.
    pub flops: u64,
    /// Weights read by products, in numbers.
    pub weights: u64,
    /// Numbers read and written in the arena.
    pub arena_traffic: u64,
}

impl Plan {
    /// Costs of one inference.
    pub fn cost(&self) -> Cost {
        let mut cost = Cost {
            block_computations: self.denoise.iter().filter(|op| self.ends_block(op)).count(),
            steps_with_updates: self.schedule.steps_with_updates(),
            ..Cost::default()
        };
        for op in self.observe.iter().chain(&self.denoise) {
            let (flops, weights) = self.op_cost(op);
            let (reads, writes) = super::place::touched(op);
            cost.operations += 1;
            cost.flops += flops;
            cost.weights += weights;
            cost.arena_traffic += reads.iter().chain(&writes).map(|v| v.len() as u64).sum::<u64>();
        }
        cost
    }

    /// Whether an operation is the product that ends a block of the trunk.
    fn ends_block(&self, op: &Op) -> bool {
        let Op::Linear(l) = op else { return false };
        let tensor = &self.matrices[l.matrix.0].tensor;
        let decoder = self.schedule.rows().iter().any(|(block, _)| block.kind == BlockKind::CrossAttention);
        tensor.starts_with(if decoder { "decoder." } else { "encoder." })
            && (tensor.ends_with(".out_proj.weight") || tensor.ends_with(".linear2.weight"))
    }

    /// Floating-point operations and weights of one operation.
    pub fn op_cost(&self, op: &Op) -> (u64, u64) {
        let product = |view: &View, id: super::MatrixId| {
            let m = &self.matrices[id.0];
            (2 * (view.rows * m.rows * m.cols) as u64, (m.rows * m.cols) as u64)
        };
        match op {
            Op::Timesteps { .. } | Op::Start { .. } => (0, 0),
            Op::Linear(l) => product(&l.input, l.matrix),
            Op::Silu { output, .. } => (4 * output.len() as u64, 0),
            Op::Modulate(m) => (9 * m.output.len() as u64, 0),
            Op::Gate(g) => (2 * g.input.len() as u64, 0),
            Op::Rotate(r) => (3 * r.tokens.len() as u64, 0),
            Op::Attention(a) => {
                let keys: usize = a.segments.iter().map(|s| s.keys.rows).sum();
                (4 * (a.query.len() * keys) as u64, 0)
            }
            Op::Combine(c) => (2 * (c.terms.len() * c.output.len()) as u64, 0),
            Op::Embed(e) => product(&e.trajectory, e.matrix),
            Op::Head(h) => product(&h.input, h.matrix),
            Op::Quiet(q) => {
                let (embed, head) =
                    (product(&q.embed.trajectory, q.embed.matrix), product(&q.head.input, q.head.matrix));
                (q.samplers.len() as u64 * (embed.0 + head.0), embed.1 + head.1)
            }
        }
    }
}
