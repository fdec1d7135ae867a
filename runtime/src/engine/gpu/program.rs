//! A plan resolved for the GPU: operations joined to dispatches, places checked, parameters laid out.
//!
//! What is joined: a sum of cached outputs that follows a product into the product; start, head, quiet steps, embedding
//! and the sums it adds that follow each other into one dispatch. Joining never changes what is computed, only the number of
//! dispatches. No device is needed here, so that tests can count.

use std::collections::HashMap;

use bytemuck::Zeroable;
use refrain_policies::plan::{self, Activation, MatrixId, Op, Plan, VectorId, View};

use super::chain;
use super::fold::{self, Folds, Triple};
use super::kernels::{Kernel, THREADS};
use super::params::{self, CROSS_KEYS, NONE, SEGMENTS, Table};
use super::weights::{Packed, Tile, Weights};
use crate::engine::EngineError;

/// Most keys, most heads and widest stream for which `attend` fits into the least workgroup memory, and its shares into one
/// per thread.
const MOST_KEYS: usize = 16;
const MOST_HEADS: usize = 8;
/// [`Tile::ATTEND`]'s inputs of one step.
const MOST_ATTENDED: usize = 8 * Tile::ATTEND.split;

/// One dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dispatch {
    pub(super) kernel: Kernel,
    /// Which buffer of matrices it reads.
    pub(super) shard: usize,
    /// Offset in the table of parameters, bytes.
    pub(super) params: u32,
    pub(super) groups: [u32; 2],
}

/// What an engine encodes.
pub(super) struct Program {
    /// Numbers written at load, and where.
    pub(super) constants: Vec<(usize, Vec<f32>)>,
    /// Once, at load.
    pub(super) load: Vec<Dispatch>,
    /// For every inference.
    pub(super) infer: Vec<Dispatch>,
    /// Does nothing, for measuring what a dispatch costs.
    pub(super) idle: Dispatch,
    /// Parameters of all dispatches.
    pub(super) table: Table,
    /// Numbers in the arena, the upload included.
    pub(super) arena: usize,
    /// Where the upload starts: the noise, then the observation, then known actions.
    pub(super) upload_at: usize,
    /// Numbers of the upload.
    pub(super) upload: usize,
    /// Where the trajectory lies.
    pub(super) trajectory: Place,
}

/// A view resolved to the arena, checked to lie inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) at: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
}

impl Place {
    fn end(&self) -> usize {
        self.at + self.rows.saturating_sub(1) * self.stride + self.cols
    }

    /// Whether a workgroup that writes its row of one may disturb another that reads its row of the other.
    pub(super) fn disturbs(&self, other: &Self) -> bool {
        let same = self.at == other.at && self.stride == other.stride && self.cols <= self.stride;
        self.overlaps(other) && !same
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.at < other.end() && other.at < self.end()
    }
}

impl Program {
    /// Resolves a plan; `weights` collects what the dispatches read.
    pub(super) fn new(plan: &Plan, weights: &mut Weights<'_>, alignment: usize) -> Result<Self, EngineError> {
        let mut lower = Lower::new(plan, weights, alignment);
        let load = lower.list(&plan.load)?;
        let mut infer = lower.list(&plan.observe)?;
        infer.extend(lower.list(&plan.denoise)?);
        let idle = lower.idle();
        Ok(Self {
            load,
            infer,
            idle,
            arena: lower.upload_at + lower.upload,
            upload_at: lower.upload_at,
            upload: lower.upload,
            trajectory: lower.place(&plan.trajectory),
            constants: lower.constants,
            table: lower.table,
        })
    }
}

/// Turns operations into dispatches.
pub(super) struct Lower<'a, 'b> {
    pub(super) plan: &'a Plan,
    pub(super) weights: &'a mut Weights<'b>,
    pub(super) table: Table,
    constants: Vec<(usize, Vec<f32>)>,
    pub(super) upload_at: usize,
    upload: usize,
    folds: Folds<'a>,
    /// Composed matrices and their biases.
    composed: HashMap<[plan::Matrix; 3], (Packed, u32)>,
    pub(super) samplers: Option<u32>,
    pub(super) embeds: HashMap<(MatrixId, VectorId, VectorId), (u32, u32)>,
    pub(super) heads: HashMap<(MatrixId, VectorId, VectorId), (u32, u32)>,
}

impl<'a, 'b> Lower<'a, 'b> {
    fn new(plan: &'a Plan, weights: &'a mut Weights<'b>, alignment: usize) -> Self {
        // Observation and known actions move next to the noise, so that one copy brings all.
        let folds = Folds::of(plan, plan.arena);
        let upload_at = (plan.arena + folds.len).next_multiple_of(4);
        let known = plan.known.map_or(0, |known| known.len());
        let upload = (plan.noise_len() + plan.observation.len() + known).next_multiple_of(4);
        Self {
            plan,
            weights,
            table: Table::new(alignment),
            constants: Vec::new(),
            upload_at,
            upload,
            folds,
            composed: HashMap::new(),
            samplers: None,
            embeds: HashMap::new(),
            heads: HashMap::new(),
        }
    }

    /// Panics when the plan placed a view outside its arena, which would be a bug of the plan.
    pub(super) fn place(&self, view: &View) -> Place {
        let buffer = &self.plan.buffers[view.buffer.0];
        let inputs = self.upload_at + self.plan.noise_len();
        let (at, limit) = if view.buffer == self.plan.observation.buffer {
            (inputs + view.at, inputs + self.plan.observation.len())
        } else if self.plan.known.is_some_and(|known| known.buffer == view.buffer) {
            (inputs + self.plan.observation.len() + view.at, self.upload_at + self.upload)
        } else {
            (self.plan.offset(view), (buffer.at + buffer.len).min(self.plan.arena))
        };
        let place = Place { at, rows: view.rows, cols: view.cols, stride: view.stride };
        assert!(place.cols <= place.stride && place.end() <= limit, "view {view:?} outside its buffer");
        place
    }

    fn list(&mut self, ops: &'a [Op]) -> Result<Vec<Dispatch>, EngineError> {
        let ops = self.reordered(ops);
        let mut out = Vec::new();
        let mut i = 0;
        while i < ops.len() {
            if let Some(triple) = self.folded(&ops[i..]) {
                let sum = ops.get(i + 3).and_then(|op| self.follows(triple.output, op));
                out.push(self.cross(&triple, sum)?);
                i += 3 + usize::from(sum.is_some());
                continue;
            }
            if let Some((dispatch, used)) = self.attend(&ops[i..])? {
                out.push(dispatch);
                i += used;
                continue;
            }
            let (chain, used) = self.chain(&ops[i..]);
            if used > 0 {
                out.push(self.tokens(&chain)?);
                i += used;
                continue;
            }
            let (dispatch, used) = match ops[i] {
                Op::Timesteps { timesteps, table, output } => {
                    self.timesteps(timesteps, table.ok_or(EngineError::DitOnGpu)?, output)?;
                    (None, 1)
                }
                Op::Linear(l) => {
                    let sum = ops.get(i + 1).and_then(|op| self.follows(l, op));
                    (Some(self.linear(l, sum)?), 1 + usize::from(sum.is_some()))
                }
                Op::Silu { .. } | Op::Modulate(_) | Op::Gate(_) | Op::Rotate(_) => {
                    return Err(EngineError::DitOnGpu);
                }
                Op::Attention(a) => (Some(self.attention(a)), 1),
                Op::Combine(c) => (Some(self.combine(c)), 1),
                Op::Start { .. } | Op::Embed(_) | Op::Head(_) | Op::Quiet(_) => {
                    unreachable!("an operation on tokens is a chain by itself")
                }
            };
            out.extend(dispatch);
            i += used;
        }
        Ok(out)
    }

    /// Moves sums in front of operations on single tokens that they have nothing to do with, so that these meet.
    fn reordered(&self, ops: &'a [Op]) -> Vec<&'a Op> {
        let mut ops: Vec<&Op> = ops.iter().collect();
        for i in 1..ops.len() {
            if let Op::Combine(c) = ops[i]
                && !c.accumulate
                && chain::summed(&ops[i..]).is_none()
                && self.independent(c, ops[i - 1])
            {
                ops.swap(i - 1, i);
            }
        }
        ops
    }

    fn independent(&self, c: &plan::Combine, before: &Op) -> bool {
        let (reads, writes): (Vec<View>, Vec<View>) = match before {
            Op::Head(h) => (
                [h.input, h.trajectory].into_iter().chain(h.impose).chain(h.known).collect(),
                std::iter::once(h.trajectory).chain(h.model).collect(),
            ),
            Op::Start { trajectory, impose, known, .. } => {
                (impose.iter().chain(known).copied().collect(), vec![*trajectory])
            }
            _ => return false,
        };
        let output = self.place(&c.output);
        let apart = |v: &View| !self.place(v).overlaps(&output);
        reads.iter().chain(&writes).all(apart)
            && c.terms.iter().all(|(_, t)| writes.iter().all(|w| !self.place(w).overlaps(&self.place(t))))
    }

    /// The sum that can be added where a product is added to the stream.
    fn follows(&self, l: &plan::Linear, next: &'a Op) -> Option<&'a plan::Combine> {
        let (Op::Combine(c), Some(residual)) = (next, l.residual) else { return None };
        let written: Vec<Place> = [l.output, l.residual].iter().flatten().map(|v| self.place(v)).collect();
        let apart = |t: &View| written.iter().all(|w| !w.overlaps(&self.place(t)));
        (c.accumulate && c.output == residual && c.terms.iter().all(|(_, t)| apart(t))).then_some(c)
    }

    fn timesteps(&mut self, timesteps: &[usize], table: VectorId, output: &View) -> Result<(), EngineError> {
        let v = &self.plan.vectors[table.0];
        let table = self.weights.values(&v.tensor, v.first, v.len)?;
        let place = self.place(output);
        assert!(timesteps.len() <= place.rows && table.len() == place.cols);
        for (row, &t) in timesteps.iter().enumerate() {
            self.constants.push((place.at + row * place.stride, crate::engine::cpu::sinusoid(t, &table)));
        }
        Ok(())
    }

    fn vector(&mut self, id: VectorId) -> Result<u32, EngineError> {
        self.weights.vector(&self.plan.vectors[id.0])
    }

    pub(super) fn terms(&mut self, terms: &[(f32, View)]) -> (u32, u32) {
        let bits: Vec<u32> = terms
            .iter()
            .flat_map(|(weight, view)| {
                let place = self.place(view);
                [place.at as u32, place.stride as u32, weight.to_bits(), 0]
            })
            .collect();
        (self.weights.append_bits(bits), terms.len() as u32)
    }

    /// Cross-attention that `cross` does in one dispatch.
    fn folded(&self, ops: &[&'a Op]) -> Option<Triple<'a>> {
        let triple = fold::triple(ops)?;
        triple.attention.segments.iter().all(|s| self.folds.segment(&s.keys).is_some()).then_some(triple)
    }

    /// The product that makes folded keys and values instead of those that the plan names.
    fn composed(&mut self, fold: &fold::Fold<'_>) -> Result<(Packed, u32), EngineError> {
        let key = fold::key(self.plan, fold);
        if let Some(&found) = self.composed.get(&key) {
            return Ok(found);
        }
        let (matrix, bias) = fold::compose(self.plan, self.weights, fold)?;
        let (rows, depth) = (bias.len(), fold.keys.input.cols);
        let packed = self.weights.pack(&matrix, rows, depth, Tile::of(rows, depth), false)?;
        let made = (packed, self.weights.append(&bias));
        self.composed.insert(key, made);
        Ok(made)
    }

    fn cross(&mut self, t: &Triple<'_>, sum: Option<&plan::Combine>) -> Result<Dispatch, EngineError> {
        let shape = self.plan.shape;
        let input = self.place(&t.query.input);
        let stride = fold::stride(shape.width, shape.heads);
        let mut places = [[0; 4]; CROSS_KEYS / 4];
        let mut keys = 0;
        for segment in &t.attention.segments {
            let Some((fold, first)) = self.folds.segment(&segment.keys) else { continue };
            for row in first..first + segment.keys.rows {
                places[keys / 4][keys % 4] = (fold.at + row * stride) as u32;
                keys += 1;
            }
        }
        let (output_at, output_stride) = self.optional(t.output.output.as_ref());
        let (residual_at, residual_stride) = self.optional(t.output.residual.as_ref());
        let (terms_at, terms) = sum.map_or((0, 0), |c| self.terms(&c.terms));
        let params = params::Cross {
            input_at: input.at as u32,
            input_stride: input.stride as u32,
            ahead: t.attention.ahead.map_or(NONE, |ahead| ahead as u32),
            bias_at: self.vector(t.output.bias)?,
            output_at,
            output_stride,
            residual_at,
            residual_stride,
            terms_at,
            terms,
            padding0: 0,
            padding1: 0,
            places,
        };
        Ok(Dispatch {
            kernel: Kernel::Cross { heads: shape.heads, keys, width: shape.width },
            shard: 0,
            params: self.table.add(&params),
            groups: [input.rows as u32, 1],
        })
    }

    fn linear(&mut self, l: &plan::Linear, sum: Option<&plan::Combine>) -> Result<Dispatch, EngineError> {
        let input = self.place(&l.input);
        let fold = l.output.and_then(|v| self.folds.by_buffer.get(&v.buffer).copied());
        let (mut gain_at, mut slope_at) = (NONE, NONE);
        let (packed, bias_at, rows, folded_at) = match fold {
            Some(fold) => {
                let (packed, bias_at) = self.composed(&fold)?;
                (packed, bias_at, fold::stride(self.plan.shape.width, self.plan.shape.heads), Some(fold.at))
            }
            None => {
                let matrix = &self.plan.matrices[l.matrix.0];
                assert_eq!(input.cols, matrix.cols, "product with another depth");
                let mut bias_at = self.vector(l.bias)?;
                if let Some(norm) = &l.norm {
                    let of = |id: VectorId| &self.plan.vectors[id.0];
                    gain_at = self.vector(norm.gain)?;
                    (slope_at, bias_at) =
                        self.weights.normed(matrix, [of(norm.gain), of(norm.bias), of(l.bias)])?;
                }
                (self.weights.matrix(matrix, Tile::of(matrix.rows, matrix.cols))?, bias_at, matrix.rows, None)
            }
        };
        let (output_at, output_stride) = match folded_at {
            Some(at) => (at as u32, rows as u32),
            None => self.optional(l.output.as_ref()),
        };
        let (residual_at, residual_stride) = self.optional(l.residual.as_ref());
        let (terms_at, terms) = sum.map_or((0, 0), |c| self.terms(&c.terms));
        let params = params::Linear {
            input_at: input.at as u32,
            input_stride: input.stride as u32,
            rows: input.rows as u32,
            depth: input.cols as u32,
            columns: rows as u32,
            matrix_at: packed.at as u32,
            eights: packed.eights as u32,
            bias_at,
            gain_at,
            slope_at,
            table_at: l.table.map(|t| self.vector(t)).transpose()?.unwrap_or(NONE),
            output_at,
            output_stride,
            residual_at,
            residual_stride,
            terms_at,
            terms,
        };
        Ok(Dispatch {
            kernel: Kernel::Linear {
                tile: packed.tile,
                steps: packed.steps,
                vector: [input.at, input.stride, input.cols].iter().all(|n| n.is_multiple_of(4)),
                half: packed.half,
                norm: l.norm.is_some(),
                activation: match l.activation {
                    Activation::None => 0,
                    Activation::Gelu => 1,
                    Activation::Mish => 2,
                    Activation::GeluTanh => return Err(EngineError::DitOnGpu),
                },
            },
            shard: packed.shard,
            params: self.table.add(&params),
            groups: [rows.div_ceil(packed.tile.cols) as u32, input.rows.div_ceil(packed.tile.rows()) as u32],
        })
    }

    /// Place and stride, or NONE.
    pub(super) fn optional(&self, view: Option<&View>) -> (u32, u32) {
        view.map_or((NONE, 0), |v| {
            let place = self.place(v);
            (place.at as u32, place.stride as u32)
        })
    }

    /// Attention over one segment and the product that follows, where `attend` takes them.
    fn attend(&mut self, ops: &[&'a Op]) -> Result<Option<(Dispatch, usize)>, EngineError> {
        let [Op::Attention(a), Op::Linear(l), ..] = ops else { return Ok(None) };
        let [segment] = a.segments.as_slice() else { return Ok(None) };
        let (query, keys, values) =
            (self.place(&a.query), self.place(&segment.keys), self.place(&segment.values));
        let matrix = &self.plan.matrices[l.matrix.0];
        let plain = l.input == a.output
            && l.norm.is_none()
            && l.table.is_none()
            && l.activation == Activation::None
            && l.output.is_none_or(|v| !self.folds.by_buffer.contains_key(&v.buffer));
        let (heads, depth) = (self.plan.shape.heads, query.cols / self.plan.shape.heads);
        let fours = [query.at, query.stride, keys.at, keys.stride, depth].iter().all(|n| n.is_multiple_of(4));
        let fits = keys.rows <= MOST_KEYS && heads <= MOST_HEADS && query.cols <= MOST_ATTENDED;
        // Other workgroups still read what one of them writes.
        let written = || [l.output, l.residual].into_iter().flatten();
        let apart =
            written().all(|v| [&query, &keys, &values].iter().all(|read| !self.place(&v).overlaps(read)));
        let unseen = self.plan.probes.iter().all(|p| p.view.buffer != a.output.buffer);
        if !(plain && fours && fits && apart && unseen) {
            return Ok(None);
        }
        let sum = ops.get(2).and_then(|op| self.follows(l, op));
        let packed = self.weights.matrix(matrix, Tile::ATTEND)?;
        let (output_at, output_stride) = self.optional(l.output.as_ref());
        let (residual_at, residual_stride) = self.optional(l.residual.as_ref());
        let (terms_at, terms) = sum.map_or((0, 0), |c| self.terms(&c.terms));
        let params = params::Attend {
            query_at: query.at as u32,
            query_stride: query.stride as u32,
            keys_at: keys.at as u32,
            keys_stride: keys.stride as u32,
            values_at: values.at as u32,
            values_stride: values.stride as u32,
            rows: query.rows as u32,
            ahead: a.ahead.map_or(NONE, |ahead| ahead as u32),
            columns: matrix.rows as u32,
            matrix_at: packed.at as u32,
            bias_at: self.vector(l.bias)?,
            output_at,
            output_stride,
            residual_at,
            residual_stride,
            terms_at,
            terms,
        };
        let dispatch = Dispatch {
            kernel: Kernel::Attend { heads, keys: keys.rows, depth, half: packed.half },
            shard: packed.shard,
            params: self.table.add(&params),
            groups: [matrix.rows.div_ceil(Tile::ATTEND.cols) as u32, query.rows.div_ceil(4) as u32],
        };
        Ok(Some((dispatch, 2 + usize::from(sum.is_some()))))
    }

    fn attention(&mut self, a: &plan::Attention) -> Dispatch {
        assert!((1..=SEGMENTS).contains(&a.segments.len()), "attention over {} segments", a.segments.len());
        let (query, output) = (self.place(&a.query), self.place(&a.output));
        let heads = self.plan.shape.heads;
        let mut places = [[0; 4]; SEGMENTS];
        let mut lengths = [0; SEGMENTS];
        for (i, segment) in a.segments.iter().enumerate() {
            let (keys, values) = (self.place(&segment.keys), self.place(&segment.values));
            places[i] = [keys.at as u32, keys.stride as u32, values.at as u32, values.stride as u32];
            lengths[i] = keys.rows as u32;
        }
        let keys: u32 = lengths.iter().sum();
        let params = params::Attention {
            query_at: query.at as u32,
            query_stride: query.stride as u32,
            output_at: output.at as u32,
            output_stride: output.stride as u32,
            depth: (query.cols / heads) as u32,
            keys,
            ahead: a.ahead.map_or(NONE, |ahead| ahead as u32),
            segments: a.segments.len() as u32,
            places,
            lengths,
        };
        Dispatch {
            kernel: Kernel::Attention { keys: (keys as usize).next_power_of_two().max(16) },
            shard: 0,
            params: self.table.add(&params),
            groups: [query.rows as u32, heads as u32],
        }
    }

    /// A sum over no elements.
    fn idle(&mut self) -> Dispatch {
        let params = self.table.add(&params::Combine::zeroed());
        Dispatch { kernel: Kernel::Combine, shard: 0, params, groups: [1, 1] }
    }

    fn combine(&mut self, c: &plan::Combine) -> Dispatch {
        let output = self.place(&c.output);
        let (terms_at, terms) = self.terms(&c.terms);
        let params = params::Combine {
            output_at: output.at as u32,
            output_stride: output.stride as u32,
            rows: output.rows as u32,
            columns: output.cols as u32,
            terms_at,
            terms,
            accumulate: u32::from(c.accumulate),
        };
        let groups = [(output.rows * output.cols).div_ceil(THREADS) as u32, 1];
        Dispatch { kernel: Kernel::Combine, shard: 0, params: self.table.add(&params), groups }
    }
}
