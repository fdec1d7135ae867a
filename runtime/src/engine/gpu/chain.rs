//! `start`, `head`, `quiet` and `embed` joined, with the sums of cached outputs that the last two add: what treats every
//! token alone and stands side by side is one dispatch.

use refrain_policies::plan::{self, Op, VectorId, View};
use refrain_policies::sampler::SamplerStep;

use super::kernels::Kernel;
use super::params::{self, NONE};
use super::program::{Dispatch, Lower, Place};
use crate::engine::EngineError;

/// Observation and known actions of a start, and the share of a clean trajectory in it.
#[derive(Clone, Copy)]
struct Start {
    impose: Option<View>,
    known: Option<View>,
    signal: f32,
}

/// Neighbouring operations on single tokens, in the order in which `tokens.wgsl` does them.
#[derive(Clone, Copy, Default)]
pub(super) struct Chain<'a> {
    start: Option<Start>,
    head: Option<&'a plan::Head>,
    quiet_sum: Option<&'a plan::Combine>,
    quiet: Option<&'a plan::Quiet>,
    embed_sum: Option<&'a plan::Combine>,
    embed: Option<&'a plan::Embed>,
}

/// The sum that the next operation adds to its embedding, where only tokens of the trajectory have one.
pub(super) fn summed<'a>(ops: &[&'a Op]) -> Option<&'a plan::Combine> {
    let [Op::Combine(c), next, ..] = ops else { return None };
    let embed = match next {
        Op::Quiet(q) => &q.embed,
        Op::Embed(e) => e,
        _ => return None,
    };
    (!c.accumulate && embed.sum == Some(c.output)).then_some(c)
}

impl<'a> Lower<'a, '_> {
    /// As many operations as one dispatch of `tokens` takes; none where the first is a sum that it cannot take.
    pub(super) fn chain(&self, ops: &[&'a Op]) -> (Chain<'a>, usize) {
        let mut chain = Chain::default();
        let mut used = 0;
        while used < ops.len() {
            let sum = summed(&ops[used..]);
            let later = chain.head.is_some() || chain.quiet.is_some();
            let fits = match ops[used + usize::from(sum.is_some())] {
                Op::Start { impose, known, signal, .. } if used == 0 => {
                    chain.start = Some(Start { impose: *impose, known: *known, signal: *signal });
                    true
                }
                Op::Head(h) if !later && chain.embed.is_none() => {
                    chain.head = Some(h);
                    true
                }
                Op::Quiet(q)
                    if chain.quiet.is_none()
                        && chain.embed.is_none()
                        && alike(chain.head, &q.head)
                        && sum.is_none_or(|c| self.written_apart(&chain, c)) =>
                {
                    (chain.quiet, chain.quiet_sum) = (Some(q), sum);
                    true
                }
                Op::Embed(e) if chain.embed.is_none() && self.keeps_apart(&chain, sum, e) => {
                    (chain.embed, chain.embed_sum) = (Some(e), sum);
                    true
                }
                _ => false,
            };
            if !fits {
                break;
            }
            used += 1 + usize::from(sum.is_some());
        }
        (chain, used)
    }

    /// What other tokens may still read while one token is done with a chain.
    fn read(&self, chain: &Chain<'_>) -> Vec<Place> {
        let quiet = chain.quiet;
        let views = [
            chain.head.map(|h| h.input),
            chain.head.and_then(|h| h.model),
            quiet.and_then(|q| q.embed.sum),
            Some(self.plan.trajectory),
        ];
        let sums = [chain.quiet_sum, chain.embed_sum].into_iter().flatten();
        let terms = sums.flat_map(|c| c.terms.iter().map(|(_, t)| *t));
        views.into_iter().flatten().chain(terms).map(|v| self.place(&v)).collect()
    }

    /// Whether a sum may be computed in the same dispatch: it must not be written where another token is still read.
    fn written_apart(&self, chain: &Chain<'_>, c: &plan::Combine) -> bool {
        let output = self.place(&c.output);
        let apart = |read: &Place| !output.disturbs(read);
        self.read(chain).iter().all(apart) && c.terms.iter().all(|(_, t)| apart(&self.place(t)))
    }

    /// Whether embedding, with its sum, may follow in the same dispatch.
    fn keeps_apart(&self, chain: &Chain<'_>, sum: Option<&'a plan::Combine>, e: &plan::Embed) -> bool {
        let output = self.place(&e.output);
        let same_embedding = chain.quiet.is_none_or(|q| {
            let of = |e: &plan::Embed| (e.matrix, e.bias, e.table, e.correction.clone());
            of(&q.embed) == of(e)
        });
        let whole = Chain { embed_sum: sum, ..*chain };
        same_embedding
            && sum.is_none_or(|c| self.written_apart(chain, c))
            && self.read(&whole).iter().all(|read| !output.disturbs(read))
            && e.sum.is_none_or(|v| !output.disturbs(&self.place(&v)))
    }

    /// Coefficients of all denoising steps, eight numbers each.
    fn samplers(&mut self) -> u32 {
        if let Some(at) = self.samplers {
            return at;
        }
        let mut table = vec![0.0; 8 * self.plan.shape.steps];
        let mut set = |step: usize, s: &SamplerStep| {
            // An infinite bound would need infinite literals in some shading languages.
            let clip = s.clip.min(f32::MAX);
            let row = [
                s.x0_from_x,
                s.x0_from_model,
                clip,
                s.from_x0,
                s.from_x,
                s.from_model,
                s.from_noise,
                s.signal,
            ];
            table[8 * step..8 * step + 8].copy_from_slice(&row);
        };
        for op in &self.plan.denoise {
            match op {
                Op::Head(h) => set(h.step, &h.sampler),
                Op::Quiet(q) => q.samplers.iter().enumerate().for_each(|(i, s)| set(q.head.step + i, s)),
                _ => {}
            }
        }
        *self.samplers.insert(self.weights.append(&table))
    }

    /// Embedding transposed `[N, D]`, and positions with bias `[T, D]`.
    fn embedding(&mut self, e: &plan::Embed) -> Result<(u32, u32), EngineError> {
        let key = (e.matrix, e.bias, e.table);
        let found = self.embeds.get(&key).copied();
        if let (Some(found), None) = (found, &e.correction) {
            return Ok(found);
        }
        let m = &self.plan.matrices[e.matrix.0];
        let flat = self.weights.flat(m)?;
        let transposed: Vec<f32> =
            (0..m.rows * m.cols).map(|i| flat[i % m.rows * m.cols + i / m.rows]).collect();
        let (bias, table) = (&self.plan.vectors[e.bias.0], &self.plan.vectors[e.table.0]);
        let mut bias = self.weights.values(&bias.tensor, bias.first, bias.len)?;
        for (bias, correction) in bias.iter_mut().zip(e.correction.iter().flat_map(|c| c.iter())) {
            *bias += correction;
        }
        let mut table = self.weights.values(&table.tensor, table.first, table.len)?;
        table.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i % bias.len()]);
        let matrix_at = found.map_or_else(|| self.weights.append(&transposed), |found| found.0);
        let made = (matrix_at, self.weights.append(&table));
        if e.correction.is_none() {
            self.embeds.insert(key, made);
        }
        Ok(made)
    }

    /// Gain times matrix `[N, D]`, and per number the two sums that stand for mean and bias `[N, 2]`.
    fn head(&mut self, h: &plan::Head) -> Result<(u32, u32), EngineError> {
        let norm = h.norm.ok_or(EngineError::DitOnGpu)?;
        let key = (h.matrix, norm.gain, h.bias);
        if let Some(&found) = self.heads.get(&key) {
            return Ok(found);
        }
        let m = &self.plan.matrices[h.matrix.0];
        let mut flat = self.weights.flat(m)?;
        let vector = |id: VectorId| {
            let v = &self.plan.vectors[id.0];
            self.weights.values(&v.tensor, v.first, v.len)
        };
        let (gain, bias, offset) = (vector(norm.gain)?, vector(norm.bias)?, vector(h.bias)?);
        let mut sums = Vec::with_capacity(2 * m.rows);
        for (row, offset) in flat.chunks_mut(m.cols).zip(offset) {
            let shift: f64 = row.iter().zip(&bias).map(|(w, b)| f64::from(*w) * f64::from(*b)).sum();
            row.iter_mut().zip(&gain).for_each(|(w, g)| *w *= g);
            let mass: f64 = row.iter().map(|w| f64::from(*w)).sum();
            sums.extend([mass as f32, (shift + f64::from(offset)) as f32]);
        }
        let made = (self.weights.append(&flat), self.weights.append(&sums));
        self.heads.insert(key, made);
        Ok(made)
    }

    pub(super) fn tokens(&mut self, chain: &Chain<'_>) -> Result<Dispatch, EngineError> {
        let shape = self.plan.shape;
        let head = chain.head.or(chain.quiet.map(|q| &q.head));
        let embed = chain.embed.or(chain.quiet.map(|q| &q.embed));
        let trajectory = self.place(&self.plan.trajectory);
        let (embed_at, table_at) = embed.map(|e| self.embedding(e)).transpose()?.unwrap_or((NONE, NONE));
        let (head_at, offset_at) = head.map(|h| self.head(h)).transpose()?.unwrap_or((NONE, NONE));
        let impose =
            chain.start.and_then(|s| s.impose).or(head.and_then(|h| h.impose)).map(|v| self.place(&v));
        let known = chain.start.and_then(|s| s.known).or(head.and_then(|h| h.known)).map(|v| self.place(&v));
        let step = head.map_or(0, |h| h.step);
        let (input_at, input_stride) = self.optional(chain.head.map(|h| &h.input));
        let (model_at, model_stride) = self.optional(chain.head.and_then(|h| h.model.as_ref()));
        let (quiet_sum_at, quiet_sum_stride) = self.optional(chain.quiet.and_then(|q| q.embed.sum.as_ref()));
        let (output_at, output_stride) = self.optional(chain.embed.map(|e| &e.output));
        let (sum_at, sum_stride) = self.optional(chain.embed.and_then(|e| e.sum.as_ref()));
        let (quiet_terms_at, quiet_terms) = chain.quiet_sum.map_or((0, 0), |c| self.terms(&c.terms));
        let (terms_at, terms) = chain.embed_sum.map_or((0, 0), |c| self.terms(&c.terms));
        let params = params::Tokens {
            trajectory_at: trajectory.at as u32,
            trajectory_stride: trajectory.stride as u32,
            noise_at: self.upload_at as u32,
            tokens: shape.tokens as u32,
            start: u32::from(chain.start.is_some()),
            input_at,
            input_stride,
            quiet: chain.quiet.map_or(0, |q| q.samplers.len() as u32),
            quiet_sum_at,
            quiet_sum_stride,
            quiet_terms_at,
            quiet_terms,
            output_at,
            output_stride,
            sum_at,
            sum_stride,
            terms_at,
            terms,
            embed_at,
            table_at,
            head_at,
            offset_at,
            sampler_at: if head.is_some() { self.samplers() + 8 * step as u32 } else { NONE },
            step: step as u32,
            impose_at: impose.map_or(NONE, |p| p.at as u32),
            impose_stride: impose.map_or(0, |p| p.stride as u32),
            impose_rows: impose.map_or(0, |p| p.rows as u32),
            impose_columns: impose.map_or(0, |p| p.cols as u32),
            impose_first: shape.actions as u32,
            known_at: known.map_or(NONE, |p| p.at as u32),
            known_stride: known.map_or(0, |p| p.stride as u32),
            start_signal: chain.start.map_or(0.0, |s| s.signal),
            model_at,
            model_stride,
        };
        Ok(Dispatch {
            kernel: Kernel::Tokens { numbers: shape.denoised, width: shape.width },
            shard: 0,
            params: self.table.add(&params),
            groups: [shape.tokens as u32, 1],
        })
    }
}

/// Whether a quiet run continues a head's steps with the same weights.
fn alike(head: Option<&plan::Head>, next: &plan::Head) -> bool {
    head.is_none_or(|h| {
        (h.matrix, h.bias, h.norm) == (next.matrix, next.bias, next.norm) && h.step + 1 == next.step
    })
}
