//! The denoising loop: blocks that are computed, sums that stand in for the others, quiet steps.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Builder, Condition};
use crate::plan::{Combine, Embed, Head, Modulation, Op, Probe, Probed, Quiet, Segment, View};
use crate::sampler::SamplerStep;
use crate::schedule::{BlockKind, Cell, Schedule};

/// A cached output: row of the schedule and how many updates came before.
type Cached = (usize, usize);

/// Weighted cached outputs that stand in for neighbouring reused blocks.
type Terms = Vec<(u32, Cached)>;

/// Per step, the stretches of neighbouring blocks that are reused, and how often each sum occurs.
struct Runs {
    /// Per step: first block of a run, and its terms.
    steps: Vec<HashMap<usize, (usize, Terms)>>,
    uses: HashMap<Terms, usize>,
}

impl Runs {
    fn of(schedule: &Schedule) -> Self {
        let rows = schedule.rows();
        let mut versions = vec![0usize; rows.len()];
        let mut steps = Vec::with_capacity(schedule.steps());
        let mut uses = HashMap::new();
        for k in 0..schedule.steps() {
            let mut runs: HashMap<usize, (usize, Terms)> = HashMap::new();
            let mut open: Option<usize> = None;
            for (row, (_, cells)) in rows.iter().enumerate() {
                match &cells[k] {
                    Cell::Update => {
                        versions[row] += 1;
                        open = None;
                    }
                    Cell::Reuse(weights) => {
                        let first = *open.get_or_insert(row);
                        let run = runs.entry(first).or_default();
                        run.0 += 1;
                        run.1.extend(
                            weights
                                .iter()
                                .enumerate()
                                .filter(|(_, w)| **w != 0.0)
                                .map(|(back, w)| (w.to_bits(), (row, versions[row] - 1 - back))),
                        );
                    }
                }
            }
            for (_, terms) in runs.values() {
                *uses.entry(terms.clone()).or_insert(0) += 1;
            }
            steps.push(runs);
        }
        Self { steps, uses }
    }
}

/// What every step starts from and ends in.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    pub(super) trajectory: View,
    pub(super) impose: Option<View>,
    pub(super) known: Option<View>,
}

/// Emits the denoising loop: runs of reused blocks folded, runs of quiet steps fused.
pub(super) fn denoise(
    b: &mut Builder<'_>,
    condition: Condition,
    ends: Ends,
    samplers: Vec<SamplerStep>,
    schedule: &Schedule,
) {
    let runs = Runs::of(schedule);
    let sums = HashMap::new();
    Trunk { b, condition, ends, samplers, runs, sums }.denoise(schedule);
}

struct Trunk<'a, 'b> {
    b: &'a mut Builder<'b>,
    condition: Condition,
    ends: Ends,
    samplers: Vec<SamplerStep>,
    runs: Runs,
    /// Sums that were already computed.
    sums: HashMap<Terms, View>,
}

impl Trunk<'_, '_> {
    fn denoise(mut self, schedule: &Schedule) {
        let blocks = schedule.rows().len();
        let mut cached: Vec<Vec<View>> = vec![Vec::new(); blocks];
        let mut k = 0;
        while k < self.samplers.len() {
            let leading = self.runs.steps[k].get(&0).cloned();
            let quiet = leading.as_ref().filter(|(len, _)| *len == blocks && !self.b.traced);
            if let Some((_, terms)) = quiet {
                let same = |step: &HashMap<usize, (usize, Terms)>| {
                    step.get(&0).is_some_and(|(len, t)| *len == blocks && t == terms)
                };
                let correction = schedule.correction(k).cloned();
                let last = (k..self.runs.steps.len())
                    .take_while(|&j| {
                        same(&self.runs.steps[j]) && schedule.correction(j) == correction.as_ref()
                    })
                    .count();
                let sum = self.sum(terms, &cached);
                self.quiet(k, last, sum, correction);
                k += last;
            } else {
                self.step(k, leading, schedule, &mut cached);
                k += 1;
            }
        }
    }

    fn time_rows(&self) -> usize {
        usize::from(!self.b.config.architecture.time_as_cond)
    }

    /// The sum of a run as one view; computed at its first use, `None` when all weights are zero.
    fn sum(&mut self, terms: &Terms, cached: &[Vec<View>]) -> Option<View> {
        let views = weighted(terms, cached);
        match views[..] {
            [] => None,
            [(1.0, view)] => Some(view),
            [(_, first), ..] => {
                if let Some(&sum) = self.sums.get(terms) {
                    return Some(sum);
                }
                let output = self.b.buffer(first.rows, first.cols);
                self.b.ops.push(Op::Combine(Combine { terms: views, output, accumulate: false }));
                self.sums.insert(terms.clone(), output);
                Some(output)
            }
        }
    }

    fn embed(&mut self, sum: Option<View>, correction: Option<Arc<[f32]>>, output: View) -> Embed {
        let s = self.b.shape;
        let skip = self.time_rows();
        Embed {
            trajectory: self.ends.trajectory,
            matrix: self.b.matrix("input_emb.weight", 0, s.width, s.denoised),
            bias: self.b.vector("input_emb.bias", 0, s.width),
            table: self.b.vector("pos_emb", skip * s.width, s.tokens * s.width),
            sum: sum.map(|v| v.rows(skip, s.tokens)),
            correction,
            output: output.rows(skip, s.tokens),
        }
    }

    fn head(&mut self, step: usize, input: View) -> Head {
        let s = self.b.shape;
        let input = input.rows(self.time_rows(), s.tokens);
        let model = self.b.traced.then(|| self.b.buffer(s.tokens, s.denoised));
        if let Some(view) = model {
            self.b.probes.push(Probe { what: Probed::Model, step, view });
        }
        let norm = self.condition.modulation.is_none().then(|| self.b.norm("ln_f"));
        Head {
            input,
            norm,
            matrix: self.b.matrix("head.weight", 0, s.denoised, s.width),
            bias: self.b.vector("head.bias", 0, s.denoised),
            step,
            sampler: self.samplers[step],
            trajectory: self.ends.trajectory,
            impose: self.ends.impose,
            known: self.ends.known,
            model,
        }
    }

    fn quiet(&mut self, step: usize, steps: usize, sum: Option<View>, correction: Option<Arc<[f32]>>) {
        // The tokens of a quiet step never leave the operation, so this buffer is named but never placed.
        let x = self.b.buffer(self.b.config.architecture.trunk_tokens(), self.b.shape.width);
        let embed = self.embed(sum, correction, x);
        let head = self.head(step, x);
        let samplers = self.samplers[step..step + steps].to_vec();
        self.b.ops.push(Op::Quiet(Quiet { embed, head, samplers }));
    }

    fn step(
        &mut self,
        k: usize,
        leading: Option<(usize, Terms)>,
        schedule: &Schedule,
        cached: &mut [Vec<View>],
    ) {
        let a = &self.b.config.architecture;
        let ahead = a.causal.then_some(0);
        let ahead_of_memory = (a.causal && a.obs_as_cond).then_some(1);
        let mixes = a.condition_layers > 0 && a.obs_as_cond;
        let decoder = a.has_cross_attention();
        let rows = a.trunk_tokens();
        let x = self.b.buffer(rows, self.b.shape.width);
        let sum = leading.and_then(|(_, terms)| self.sum(&terms, cached));
        if let (false, Some(tokens)) = (decoder, self.condition.time_tokens) {
            let terms = std::iter::once(tokens.rows(k, 1))
                .chain(sum.map(|v| v.rows(0, 1)))
                .map(|v| (1.0, v))
                .collect();
            self.b.ops.push(Op::Combine(Combine { terms, output: x.rows(0, 1), accumulate: false }));
        }
        let embed = self.embed(sum, schedule.correction(k).cloned(), x);
        self.b.ops.push(Op::Embed(embed));
        let memory = mixes.then(|| self.mixed_memory(k)).flatten();
        for (row, (block, cells)) in schedule.rows().iter().enumerate() {
            if cells[k] != Cell::Update {
                let run = self.runs.steps[k].get(&row).filter(|_| row > 0).cloned();
                if let Some((_, terms)) = run {
                    self.add_run(&terms, cached, x);
                }
                continue;
            }
            let output = self.b.buffer(rows, self.b.shape.width);
            let prefix = format!("{}.layers.{}", if decoder { "decoder" } else { "encoder" }, block.layer);
            match (block.kind, self.condition.modulation) {
                (_, Some(all)) => {
                    let modulation = Modulation { time: all.time.rows(k, 1), ..all };
                    self.b.dit_block(*block, modulation, x, output);
                }
                (BlockKind::SelfAttention, None) => self.b.self_attention(&prefix, x, ahead, Some(output)),
                (BlockKind::CrossAttention, None) => {
                    let segments = self.segments(block.layer, k, memory);
                    self.b.cross_attention(&prefix, x, segments, ahead_of_memory, Some(output));
                }
                (BlockKind::FeedForward, None) => {
                    let norm = if decoder { "norm3" } else { "norm2" };
                    self.b.feed_forward(&prefix, norm, x, Some(output));
                }
            }
            if self.b.traced {
                self.b.probes.push(Probe { what: Probed::Block(*block), step: k, view: output });
            }
            cached[row].push(output);
        }
        if self.samplers[k].reads_model() || self.b.traced {
            let head = self.head(k, x);
            self.b.ops.push(Op::Head(head));
        } else {
            // The stream goes nowhere, so that blocks whose outputs nobody caches are dropped with it.
            self.quiet(k, 1, None, None);
        }
    }

    /// Adds a run that follows an update: through its sum where that is used again, else term by term.
    fn add_run(&mut self, terms: &Terms, cached: &[Vec<View>], x: View) {
        let terms = if self.runs.uses.get(terms).is_some_and(|&uses| uses > 1) {
            self.sum(terms, cached).map(|sum| (1.0, sum)).into_iter().collect()
        } else {
            weighted(terms, cached)
        };
        if !terms.is_empty() {
            self.b.ops.push(Op::Combine(Combine { terms, output: x, accumulate: true }));
        }
    }

    /// Condition tokens of a step, `[S, D]`, where the timestep mixes with the observations.
    fn mixed_memory(&mut self, k: usize) -> Option<View> {
        let (time, observed) = (self.condition.time_tokens?, self.condition.observation_tokens?);
        let memory = self.b.buffer(1 + observed.rows, observed.cols);
        for (from, to) in [(time.rows(k, 1), memory.rows(0, 1)), (observed, memory.rows(1, observed.rows))] {
            self.b.ops.push(Op::Combine(Combine { terms: vec![(1.0, from)], output: to, accumulate: false }));
        }
        self.b.condition_layers(memory);
        if self.b.traced {
            self.b.probes.push(Probe { what: Probed::Memory, step: k, view: memory });
        }
        Some(memory)
    }

    fn segments(&mut self, layer: usize, k: usize, memory: Option<View>) -> Vec<Segment> {
        let width = self.b.shape.width;
        let split = |view: View| Segment { keys: view.cols(0, width), values: view.cols(width, width) };
        if let Some(memory) = memory {
            return vec![split(self.b.cross_keys(layer, memory))];
        }
        let time = self.condition.time_keys.get(layer).map(|v| v.rows(k, 1));
        time.into_iter().chain(self.condition.observation_keys.get(layer).copied()).map(split).collect()
    }
}

/// Terms as views of the cached outputs.
fn weighted(terms: &Terms, cached: &[Vec<View>]) -> Vec<(f32, View)> {
    terms.iter().map(|&(weight, (row, version))| (f32::from_bits(weight), cached[row][version])).collect()
}
