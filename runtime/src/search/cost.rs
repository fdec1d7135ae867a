//! What a plan costs on this machine, told from its operations.
//!
//! A plan is counted ([`Counts`]): blocks by kind, steps with updates, quiet operations and steps, sums and their
//! terms. A dozen plans that mix these differently are timed once, and the price of each kind is fitted by
//! non-negative least squares on relative errors. On the GPU the same counts stand for dispatches. Prices hold for
//! one policy on one engine on one machine.

use nalgebra::{DMatrix, DVector};
use refrain_policies::config::PolicyConfig;
use refrain_policies::forecast::{self, Forecast};
use refrain_policies::plan::{Op, Plan};
use refrain_policies::sampler::SamplerKind;
use refrain_policies::schedule::{BlockKind, Schedule, ScheduleError, blocks};
use serde::{Deserialize, Serialize};

/// Kinds that are counted.
pub const KINDS: [&str; 9] = [
    "inference",
    "self_attention",
    "cross_attention",
    "feed_forward",
    "step with updates",
    "quiet operation",
    "quiet step",
    "sum",
    "term of a sum",
];

/// How often each of [`KINDS`] occurs in one inference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts(pub [usize; KINDS.len()]);

/// Price of each of [`KINDS`], milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Prices {
    /// Per kind.
    pub milliseconds: [f64; KINDS.len()],
    /// Mean relative error on the timed plans.
    pub mean: f64,
    /// Largest relative error on the timed plans.
    pub worst: f64,
    /// Plans timed.
    pub plans: usize,
}

impl Counts {
    /// Of a plan, once per inference; load is not counted.
    pub fn of(plan: &Plan) -> Self {
        let mut counts = [0; KINDS.len()];
        counts[0] = 1;
        for op in &plan.denoise {
            match op {
                Op::Linear(l) => {
                    let tensor = &plan.matrices[l.matrix.0].tensor;
                    let ends =
                        ["self_attn.out_proj.weight", "multihead_attn.out_proj.weight", "linear2.weight"];
                    if let Some(kind) = ends.iter().position(|end| tensor.ends_with(end)) {
                        counts[1 + kind] += 1;
                    }
                }
                Op::Embed(_) => counts[4] += 1,
                Op::Quiet(quiet) => {
                    counts[5] += 1;
                    counts[6] += quiet.samplers.len();
                }
                Op::Combine(combine) => {
                    counts[7] += 1;
                    counts[8] += combine.terms.len();
                }
                // These come with a block or a step that is counted.
                Op::Timesteps { .. } | Op::Start { .. } | Op::Attention(_) | Op::Head(_) => {}
                Op::Silu { .. } | Op::Modulate(_) | Op::Gate(_) | Op::Rotate(_) => {}
            }
        }
        Self(counts)
    }
}

impl Prices {
    /// Fits prices to timed plans (milliseconds).
    pub fn fit(timed: &[(Counts, f64)]) -> Option<Self> {
        let mut used: Vec<usize> =
            (0..KINDS.len()).filter(|&kind| timed.iter().any(|(counts, _)| counts.0[kind] > 0)).collect();
        let mut milliseconds = [0.0; KINDS.len()];
        while !used.is_empty() {
            // Columns are scaled to one, so that the ridge, which decides between kinds that always come together,
            // treats them alike.
            let entry = |row: usize, kind: usize| timed[row].0.0[kind] as f64 / timed[row].1;
            let scale: Vec<f64> = used
                .iter()
                .map(|&kind| (0..timed.len()).map(|row| entry(row, kind).powi(2)).sum::<f64>().sqrt())
                .collect();
            let a = DMatrix::from_fn(timed.len(), used.len(), |row, i| entry(row, used[i]) / scale[i]);
            let ones = DVector::from_element(timed.len(), 1.0);
            let normal = a.tr_mul(&a) + DMatrix::from_diagonal_element(used.len(), used.len(), 1e-6);
            let solved = normal.cholesky()?.solve(&a.tr_mul(&ones));
            let lowest = solved.imin();
            if solved[lowest] < 0.0 {
                used.remove(lowest);
                continue;
            }
            used.iter()
                .zip(solved.iter())
                .zip(&scale)
                .for_each(|((&kind, s), scale)| milliseconds[kind] = s / scale);
            break;
        }
        let mut prices = Self { milliseconds, mean: 0.0, worst: 0.0, plans: timed.len() };
        let errors = timed.iter().map(|(c, ms)| (prices.of(c) / ms - 1.0).abs());
        (prices.mean, prices.worst) =
            (errors.clone().sum::<f64>() / timed.len() as f64, errors.fold(0.0, f64::max));
        prices.milliseconds.iter().all(|p| p.is_finite()).then_some(prices)
    }

    /// Milliseconds of one inference.
    pub fn of(&self, counts: &Counts) -> f64 {
        counts.0.iter().zip(self.milliseconds).map(|(&n, price)| n as f64 * price).sum()
    }
}

/// Plans to time: every kind is many in one of them and few in another.
pub fn probes(config: &PolicyConfig) -> Result<Vec<(PolicyConfig, Schedule)>, ScheduleError> {
    let a = &config.architecture;
    let steps = config.sampler.inference_steps;
    let many = (steps / 5).max(1);
    let late = Schedule::late_dense(a, steps, (steps / 10).max(2), 2.0)?;
    let with = |forecast| forecast::apply(&late, None, |_, _| forecast).unwrap_or_else(|_| late.clone());
    let mut schedules = vec![
        Schedule::uniform(a, steps, 1)?,
        Schedule::uniform(a, steps, (steps / 20).max(1))?,
        Schedule::uniform(a, steps, many)?,
        late.clone(),
        with(Forecast::Taylor { order: 1 }),
        with(Forecast::Taylor { order: 2 }),
        with(Forecast::AdamsBashforth),
    ];
    for kind in [BlockKind::SelfAttention, BlockKind::CrossAttention, BlockKind::FeedForward] {
        let often: Vec<usize> = (0..many).map(|i| i * steps / many).collect();
        let rows = blocks(a).into_iter().map(|b| (b, if b.kind == kind { often.clone() } else { vec![0] }));
        schedules.push(Schedule::from_updates(a, steps, rows)?);
    }
    let mut probes: Vec<(PolicyConfig, Schedule)> =
        schedules.into_iter().map(|s| (config.clone(), s)).collect();
    for steps in [(steps / 20).max(1), (steps / 10).max(1)] {
        let mut config = config.clone();
        config.sampler = config.sampler.with(SamplerKind::Ddim, steps);
        let full = Schedule::full(a, steps);
        probes.push((config, full));
    }
    Ok(probes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_found_again_and_none_is_negative() {
        let prices = [0.2, 0.05, 0.04, 0.09, 0.01, 0.002, 0.0003, 0.004, 0.0002];
        let mut state = 1_u32;
        let mut next = |most: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % most
        };
        let timed: Vec<(Counts, f64)> = (0..14)
            .map(|_| {
                let mut counts = Counts::default();
                counts.0.iter_mut().for_each(|c| *c = next(200) as usize);
                counts.0[0] = 1;
                let ms = counts.0.iter().zip(prices).map(|(&c, p)| c as f64 * p).sum();
                (counts, ms)
            })
            .collect();
        let found = Prices::fit(&timed).unwrap();
        assert!(found.worst < 1e-2, "{found:?}");
        for (got, expected) in found.milliseconds.iter().zip(prices).skip(1).take(3) {
            assert!((got - expected).abs() <= 0.01 * expected, "{found:?}");
        }
        // Noise that would drive a price below zero.
        let noisy: Vec<_> =
            timed.iter().enumerate().map(|(i, (c, ms))| (*c, ms * (1.0 + 0.2 * (i % 2) as f64))).collect();
        let found = Prices::fit(&noisy).unwrap();
        assert!(found.milliseconds.iter().all(|p| *p >= 0.0), "{found:?}");
    }
}
