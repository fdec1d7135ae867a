//! Constant corrections: what a schedule's reuse gets wrong on average, as one vector per run of quiet steps.
//!
//! A block's output drifts from step to step, and a part of that drift is the same for every observation and token. At
//! a step without an update only the sum of all blocks' outputs matters, so that part is one vector `[D]`: the mean of
//! what was computed less the mean of what stands in. It is the least-squares constant, and enters a plan as an addition
//! to the bias of the embedding, so that it costs nothing. The idea is the error rectification of ERTACache (arXiv
//! 2508.21091), which corrects a whole model's cached output in this way. [`Means`] collects what is needed over full runs.
//!
//! Not here: corrections at steps that compute some blocks, and whether actions get better; `refrain search` decides.

use std::ops::Range;

use crate::schedule::{Block, Cell, Correction, Schedule};

/// Mean output of every block at every step, over observations and tokens.
#[derive(Clone, Debug)]
pub struct Means {
    blocks: Vec<Block>,
    steps: usize,
    width: usize,
    /// `[blocks, K, D]`, sums over [`Means::rows`].
    sums: Vec<f64>,
    /// Tokens seen per block and step.
    rows: Vec<u64>,
}

impl Means {
    /// Nothing seen yet.
    pub fn new(blocks: Vec<Block>, steps: usize, width: usize) -> Self {
        let count = blocks.len() * steps;
        Self { blocks, steps, width, sums: vec![0.0; count * width], rows: vec![0; count] }
    }

    /// Adds the output `[tokens, D]` of the block in row `row` of the trunk at step `step`.
    pub fn add(&mut self, row: usize, step: usize, output: &[f32]) {
        let at = row * self.steps + step;
        let sums = &mut self.sums[at * self.width..][..self.width];
        for token in output.chunks_exact(self.width) {
            sums.iter_mut().zip(token).for_each(|(sum, value)| *sum += f64::from(*value));
            self.rows[at] += 1;
        }
    }

    fn of(&self, row: usize, step: usize) -> impl Iterator<Item = f64> + '_ {
        let at = row * self.steps + step;
        let rows = self.rows[at].max(1) as f64;
        self.sums[at * self.width..][..self.width].iter().map(move |sum| sum / rows)
    }
}

/// One correction per run of quiet steps that follows an update step for which `corrects` says so. None where means of
/// another policy or sampler are given.
pub fn fit(schedule: &Schedule, means: &Means, corrects: impl Fn(usize) -> bool) -> Vec<Correction> {
    let same = schedule.rows().iter().map(|(block, _)| block).eq(&means.blocks);
    if !same || schedule.steps() != means.steps {
        return Vec::new();
    }
    let mut corrections = Vec::new();
    let mut step = 0;
    while step < schedule.steps() {
        let first = step;
        step += 1;
        let quiet = (step..schedule.steps()).take_while(|&k| schedule.is_quiet(k)).count();
        if quiet > 0 && !schedule.is_quiet(first) && corrects(first) {
            corrections.push(mean_error(schedule, means, step..step + quiet));
        }
        step += quiet;
    }
    corrections
}

/// Mean over the steps of what the blocks would have added less what stands in for it.
fn mean_error(schedule: &Schedule, means: &Means, steps: Range<usize>) -> Correction {
    let mut error = vec![0.0; means.width];
    for (row, (_, cells)) in schedule.rows().iter().enumerate() {
        let mut updates = Vec::new();
        for (step, cell) in cells.iter().enumerate().take(steps.end) {
            match cell {
                Cell::Update => updates.insert(0, step),
                Cell::Reuse(weights) if steps.contains(&step) => {
                    error.iter_mut().zip(means.of(row, step)).for_each(|(e, computed)| *e += computed);
                    for (&weight, &update) in weights.iter().zip(&updates) {
                        let cached = means.of(row, update);
                        error.iter_mut().zip(cached).for_each(|(e, c)| *e -= f64::from(weight) * c);
                    }
                }
                Cell::Reuse(_) => {}
            }
        }
    }
    let values = error.iter().map(|e| (e / steps.len() as f64) as f32).collect();
    Correction { steps: steps.collect(), values }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Architecture;
    use crate::forecast::{self, Forecast};

    const STEPS: usize = 6;

    fn architecture() -> Architecture {
        Architecture {
            layers: 1,
            heads: 1,
            width: 2,
            condition_layers: 0,
            causal: true,
            time_as_cond: true,
            obs_as_cond: true,
            horizon: 3,
            n_obs_steps: 1,
            n_action_steps: 1,
            pred_action_steps_only: false,
            dit: None,
        }
    }

    /// Block b's output at step k is `b + k^2` and `-k` on average over two tokens.
    fn means(blocks: &[Block]) -> Means {
        let mut means = Means::new(blocks.to_vec(), STEPS, 2);
        for row in 0..blocks.len() {
            for k in 0..STEPS {
                let (mean, spread) = ((row + k * k) as f32, 3.0);
                means.add(row, k, &[mean - spread, -(k as f32), mean + spread, -(k as f32)]);
            }
        }
        means
    }

    #[test]
    fn a_correction_is_the_mean_error_of_its_run() {
        let a = architecture();
        let table = Schedule::aligned(&a, STEPS, &[0, 1, 4]).unwrap();
        let blocks: Vec<Block> = table.rows().iter().map(|(block, _)| *block).collect();
        let found = fit(&table, &means(&blocks), |_| true);
        // Steps 2 and 3 reuse step 1: (4 - 1 + 9 - 1) / 2 and -(1 + 2) / 2 for each of three blocks; step 5 reuses step 4.
        let expected = [(vec![2, 3], [16.5, -4.5]), (vec![5], [27.0, -3.0])];
        assert_eq!(found.len(), 2);
        for (got, (steps, values)) in found.iter().zip(expected) {
            assert_eq!(got.steps, steps);
            assert_eq!(got.values[..], values);
        }
        assert!(table.clone().with_corrections(&a, found).is_ok());
        // A linear forecast leaves the second number without error.
        let linear = forecast::apply(&table, None, |_, _| Forecast::Taylor { order: 1 }).unwrap();
        let found = fit(&linear, &means(&blocks), |at| at == 1);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].values[0] > 0.0 && found[0].values[1].abs() < 1e-5, "{found:?}");
    }

    #[test]
    fn means_of_something_else_correct_nothing() {
        let table = Schedule::aligned(&architecture(), STEPS, &[0, 3]).unwrap();
        let blocks: Vec<Block> = table.rows().iter().map(|(block, _)| *block).collect();
        assert!(fit(&table, &means(&blocks[1..]), |_| true).is_empty());
        assert!(fit(&table, &Means::new(blocks, STEPS + 1, 2), |_| true).is_empty());
    }
}
