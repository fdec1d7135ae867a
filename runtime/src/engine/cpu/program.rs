//! A plan resolved for the CPU: places checked, weights packed, load-time operations done.

use std::ops::Range;
use std::sync::Arc;

use refrain_policies::plan::{self, Op, Plan, VectorId};

use super::arena::{Arena, Place};
use super::attention::Attention;
use super::lanes::{Isa, LANES};
use super::linear::{Linear, Norm};
use super::modulation::{self, Gate, Modulate, Rotate};
use super::tokens::{self, Combine, Embed, Head, Impose, Known};
use super::weights::CpuWeights;
use crate::engine::EngineError;

/// What the threads of an engine execute.
pub struct Program {
    pub(super) isa: Isa,
    pub(super) plan: Arc<Plan>,
    /// Once per inference, in order.
    kernels: Vec<Kernel>,
    /// What the arena holds after load.
    loaded: Vec<f32>,
    /// Scratch numbers that one thread needs.
    pub(super) scratch: usize,
}

/// The kernel table of the CPU: one row per operation of the plan, the same names as the plan's.
enum Kernel {
    Timesteps { rows: Vec<Vec<f32>>, output: Place },
    Start { trajectory: Place, impose: Option<Impose>, known: Option<Known>, signal: f32 },
    Linear(Linear),
    Silu { input: Place, output: Place },
    Modulate(Modulate),
    Gate(Gate),
    Rotate(Rotate),
    Attention(Attention),
    Combine(Combine),
    Embed(Embed),
    Head(Head),
    Quiet(Embed, Head),
}

impl Program {
    /// Packs the plan's weights and runs its load-time operations.
    pub fn new(weights: &CpuWeights, plan: Arc<Plan>, isa: Isa) -> Result<Arc<Self>, EngineError> {
        let resolver = Resolver { weights, plan: &plan };
        let load = plan.load.iter().map(|op| resolver.kernel(op)).collect::<Result<Vec<_>, _>>()?;
        let kernels = plan
            .observe
            .iter()
            .chain(&plan.denoise)
            .map(|op| resolver.kernel(op))
            .collect::<Result<Vec<_>, _>>()?;
        let scratch = load.iter().chain(&kernels).map(Kernel::scratch).max().unwrap_or(0);
        let mut arena = Arena::new(plan.arena);
        let mut buffer = vec![0.0; scratch];
        for kernel in &load {
            kernel.run(isa, &arena, 0..kernel.units(), &[], &mut buffer);
        }
        let loaded = arena.numbers().to_vec();
        Ok(Arc::new(Self { isa, plan, kernels, loaded, scratch }))
    }

    /// An arena as it is after load.
    pub(super) fn arena(&self) -> Arena {
        let mut arena = Arena::new(self.plan.arena);
        arena.numbers().copy_from_slice(&self.loaded);
        arena
    }

    /// Runs thread `thread` of `threads` through one inference; `barrier` is called between operations.
    pub(super) fn run(
        &self,
        arena: &Arena,
        noise: &[f32],
        thread: usize,
        threads: usize,
        scratch: &mut [f32],
        barrier: impl Fn(),
    ) {
        for kernel in &self.kernels {
            let units = kernel.units();
            let share = units * thread / threads..units * (thread + 1) / threads;
            kernel.run(self.isa, arena, share, noise, scratch);
            barrier();
        }
    }
}

impl Kernel {
    /// Independent parts that threads can share.
    fn units(&self) -> usize {
        match self {
            Self::Timesteps { .. } => 1,
            Self::Start { trajectory, .. } => trajectory.rows,
            Self::Linear(l) => l.matrix.panels(),
            Self::Silu { output, .. } => output.rows,
            Self::Modulate(m) => m.input.rows,
            Self::Gate(g) => g.input.rows,
            Self::Rotate(r) => r.tokens.rows,
            Self::Attention(a) => a.heads,
            Self::Combine(c) => c.output.rows,
            Self::Embed(e) => e.trajectory.rows,
            Self::Head(h) | Self::Quiet(_, h) => h.trajectory.rows,
        }
    }

    fn scratch(&self) -> usize {
        match self {
            Self::Linear(l) => l.scratch(),
            Self::Attention(a) => a.scratch(),
            Self::Quiet(_, h) => tokens::quiet_scratch(h.width),
            _ => 0,
        }
    }

    fn run(&self, isa: Isa, arena: &Arena, units: Range<usize>, noise: &[f32], scratch: &mut [f32]) {
        if units.is_empty() {
            return;
        }
        match self {
            Self::Timesteps { rows, output } => tokens::timesteps(arena, rows, output),
            Self::Start { trajectory, impose, known, signal } => {
                let known = known.as_ref().map(|known| (known, *signal));
                tokens::start(arena, trajectory, impose.as_ref(), known, noise, units)
            }
            Self::Linear(l) => l.run(isa, arena, units, scratch),
            Self::Silu { input, output } => modulation::silu(isa, arena, input, output, units),
            Self::Modulate(m) => m.run(isa, arena, units),
            Self::Gate(g) => g.run(isa, arena, units),
            Self::Rotate(r) => r.run(arena, units),
            Self::Attention(a) => a.run(isa, arena, units, scratch),
            Self::Combine(c) => c.run(isa, arena, units),
            Self::Embed(e) => e.run(isa, arena, units),
            Self::Head(h) => h.run(isa, arena, units, noise),
            Self::Quiet(e, h) => tokens::quiet(isa, e, h, arena, units, noise, scratch),
        }
    }
}

struct Resolver<'a> {
    weights: &'a CpuWeights,
    plan: &'a Plan,
}

impl Resolver<'_> {
    fn place(&self, view: &plan::View) -> Place {
        Place::of(self.plan, view)
    }

    fn vector(&self, id: VectorId) -> Result<Arc<[f32]>, EngineError> {
        Ok(self.weights.vector(&self.plan.vectors[id.0])?.into())
    }

    fn norm(&self, norm: &plan::LayerNorm) -> Result<Norm, EngineError> {
        Ok(Norm { gain: self.vector(norm.gain)?, bias: self.vector(norm.bias)? })
    }

    fn modulation(&self, m: &plan::Modulation) -> [Place; 2] {
        [self.place(&m.time), self.place(&m.observation)]
    }

    fn impose(&self, view: &plan::View) -> Impose {
        Impose { observation: self.place(view), column: self.plan.shape.actions }
    }

    fn kernel(&self, op: &Op) -> Result<Kernel, EngineError> {
        Ok(match op {
            Op::Timesteps { timesteps, table, output } => {
                let table = table.map_or_else(|| Ok(vec![0.0; output.cols].into()), |id| self.vector(id))?;
                let rows = timesteps.iter().map(|&t| tokens::sinusoid(t, &table)).collect();
                Kernel::Timesteps { rows, output: self.place(output) }
            }
            Op::Start { trajectory, impose, known, signal } => Kernel::Start {
                trajectory: self.place(trajectory),
                impose: impose.as_ref().map(|v| self.impose(v)),
                known: known.as_ref().map(|v| Known(self.place(v))),
                signal: *signal,
            },
            Op::Linear(l) => Kernel::Linear(self.linear(l)?),
            Op::Silu { input, output } => {
                Kernel::Silu { input: self.place(input), output: self.place(output) }
            }
            Op::Modulate(m) => Kernel::Modulate(Modulate {
                input: self.place(&m.input),
                shift: self.modulation(&m.shift),
                scale: self.modulation(&m.scale),
                output: self.place(&m.output),
            }),
            Op::Gate(g) => Kernel::Gate(Gate {
                input: self.place(&g.input),
                gate: self.modulation(&g.gate),
                output: g.output.as_ref().map(|v| self.place(v)),
                residual: g.residual.as_ref().map(|v| self.place(v)),
            }),
            Op::Rotate(r) => Kernel::Rotate(Rotate::new(self.place(&r.tokens), r.depth, r.base)),
            Op::Attention(a) => Kernel::Attention(Attention {
                query: self.place(&a.query),
                segments: a.segments.iter().map(|s| (self.place(&s.keys), self.place(&s.values))).collect(),
                ahead: a.ahead,
                output: self.place(&a.output),
                heads: self.plan.shape.heads,
            }),
            Op::Combine(c) => Kernel::Combine(Combine {
                terms: c.terms.iter().map(|(weight, view)| (*weight, self.place(view))).collect(),
                output: self.place(&c.output),
                accumulate: c.accumulate,
            }),
            Op::Embed(e) => Kernel::Embed(self.embed(e, true)?),
            Op::Head(h) => Kernel::Head(self.head(h, vec![h.sampler], true)?),
            Op::Quiet(q) => {
                Kernel::Quiet(self.embed(&q.embed, false)?, self.head(&q.head, q.samplers.clone(), false)?)
            }
        })
    }

    fn linear(&self, l: &plan::Linear) -> Result<Linear, EngineError> {
        let matrix = self.weights.matrix(&self.plan.matrices[l.matrix.0])?;
        let mut bias = self.weights.vector(&self.plan.vectors[l.bias.0])?;
        bias.resize(matrix.panels() * LANES, 0.0);
        Ok(Linear {
            input: self.place(&l.input),
            norm: l.norm.as_ref().map(|norm| self.norm(norm)).transpose()?,
            matrix,
            bias: bias.into(),
            activation: l.activation,
            table: l.table.map(|t| self.vector(t)).transpose()?,
            output: l.output.as_ref().map(|v| self.place(v)),
            residual: l.residual.as_ref().map(|v| self.place(v)),
        })
    }

    fn embed(&self, e: &plan::Embed, placed: bool) -> Result<Embed, EngineError> {
        let mut bias = self.weights.vector(&self.plan.vectors[e.bias.0])?;
        for (bias, correction) in bias.iter_mut().zip(e.correction.iter().flat_map(|c| c.iter())) {
            *bias += correction;
        }
        let table = self.vector(e.table)?.iter().enumerate().map(|(i, p)| p + bias[i % bias.len()]).collect();
        Ok(Embed {
            trajectory: self.place(&e.trajectory),
            matrix: self.weights.transposed(&self.plan.matrices[e.matrix.0])?.into(),
            table,
            sum: e.sum.as_ref().map(|v| self.place(v)),
            output: placed.then(|| self.place(&e.output)),
            width: e.output.cols,
        })
    }

    fn head(
        &self,
        h: &plan::Head,
        samplers: Vec<refrain_policies::sampler::SamplerStep>,
        placed: bool,
    ) -> Result<Head, EngineError> {
        Ok(Head {
            input: placed.then(|| self.place(&h.input)),
            norm: h.norm.as_ref().map(|norm| self.norm(norm)).transpose()?,
            matrix: self.weights.flat(&self.plan.matrices[h.matrix.0])?.into(),
            offset: self.vector(h.bias)?,
            step: h.step,
            samplers,
            trajectory: self.place(&h.trajectory),
            impose: h.impose.as_ref().map(|v| self.impose(v)),
            known: h.known.as_ref().map(|v| Known(self.place(v))),
            model: h.model.as_ref().map(|v| self.place(v)),
            width: h.input.cols,
        })
    }
}
