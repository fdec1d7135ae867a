//! Forecasts: what stands in for a block between its updates, as weights of its last cached outputs.
//!
//! All published predictors of this kind are presets of one operation. For a block that was last computed at step u0,
//! before that at u1 and u2, and is asked for at step k = u0 + x, with outputs F0, F1, F2:
//!
//! | preset | value at step k | source |
//! | --- | --- | --- |
//! | [`Forecast::Reuse`] | F0 | Block-wise Adaptive Caching, arXiv 2506.13456 |
//! | [`Forecast::Taylor`], order 1 | F0 + x D, D = (F0 - F1) / (u0 - u1) | TaylorSeer, arXiv 2503.06923 |
//! | [`Forecast::Taylor`], order 2 | F0 + x D + x^2 / 2 (D - D') / (u0 - u1), D' = (F1 - F2) / (u1 - u2) | the same |
//! | [`Forecast::Line`] | F0 + share x D | order 1 with a share of its slope, found by action errors in `refrain search` |
//! | [`Forecast::AdamsBashforth`] | mean of the order 1 forecast until the next update | the two-step Adams-Bashforth rule with variable steps |
//! | [`Forecast::Fitted`] | the weights of F0, F1, .. that come closest in calibration | regularised least squares |
//!
//! A block with too few cached outputs takes the next lower order. [`gated`] falls back to reuse wherever a forecast
//! was worse in calibration, per block and step (the idea of confidence-gated Taylor forecasts, decided before the
//! robot runs). Errors of any table follow from inner products of outputs ([`crate::calibration`]), so nothing has to
//! be run to compare presets. A small error of features is not yet a small error of actions: see `refrain search`.

use nalgebra::{DMatrix, DVector};

use crate::adaptive_caching::Statistics;
use crate::schedule::{Block, Cell, Schedule};

/// How a block's output is forecast from its cached ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Forecast {
    /// The newest output again.
    Reuse,
    /// Finite differences, order 1 or 2; larger orders are taken as 2.
    Taylor {
        /// Order.
        order: usize,
    },
    /// A finite difference of order 1, damped.
    Line {
        /// Of the slope; 0 is reuse, 1 is order 1.
        share: f64,
    },
    /// One value for all steps up to the next update, so that quiet steps stay fused.
    AdamsBashforth,
    /// Weights by least squares, drawn to reuse.
    Fitted {
        /// Cached outputs to weigh.
        outputs: usize,
        /// Ridge, relative to the mean inner product of the outputs with themselves.
        ridge: f64,
    },
}

/// Why there are no fitted weights.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ForecastError {
    /// Statistics of another policy or sampler.
    #[error(
        "calibration has {got} for block {block}, the schedule needs {expected}; calibrate for this sampler"
    )]
    Statistics {
        /// The block.
        block: Block,
        /// Denoising steps of the schedule.
        expected: usize,
        /// What was found.
        got: String,
    },
    /// Inner products hold NaN, infinity or no information.
    #[error(
        "no weights for block {block} at step {step}: its outputs' inner products are not positive; calibrate again"
    )]
    Singular {
        /// The block.
        block: Block,
        /// The denoising step.
        step: usize,
    },
}

impl Forecast {
    /// Short name for tables and files.
    pub fn name(self) -> String {
        match self {
            Self::Reuse => "reuse".into(),
            Self::Taylor { order } => format!("taylor{order}"),
            Self::Line { share } => format!("line{share}"),
            Self::AdamsBashforth => "adams_bashforth".into(),
            Self::Fitted { outputs, .. } => format!("fitted{outputs}"),
        }
    }

    /// Weights at step `step` of the outputs cached at `at` (update steps, newest first, all before `step`); `until`
    /// is the next update. Not for [`Forecast::Fitted`], which needs calibration and is reuse here.
    fn weights(self, step: usize, until: usize, at: &[usize]) -> Vec<f32> {
        let x = (step - at[0]) as f64;
        let weights = match (self, at) {
            (Self::Taylor { order: 2.. }, [u0, u1, u2, ..]) => {
                let (near, far) = ((u0 - u1) as f64, (u1 - u2) as f64);
                let bend = x * x / 2.0 / near;
                vec![1.0 + x / near + bend / near, -x / near - bend * (1.0 / near + 1.0 / far), bend / far]
            }
            (Self::Taylor { order: 1.. }, [u0, u1, ..]) => {
                let r = x / (u0 - u1) as f64;
                vec![1.0 + r, -r]
            }
            (Self::Line { share }, [u0, u1, ..]) => {
                let r = share * x / (u0 - u1) as f64;
                vec![1.0 + r, -r]
            }
            (Self::AdamsBashforth, [u0, u1, ..]) => {
                // Steps u0 + 1 .. until - 1 are forecast; at u0 itself the output is there.
                let r = (until - u0) as f64 / 2.0 / (u0 - u1) as f64;
                vec![1.0 + r, -r]
            }
            _ => vec![1.0],
        };
        weights.into_iter().map(|w| w as f32).collect()
    }
}

/// The schedule with the same updates and reuse weights of `forecast(block, u0)` for the steps that follow an update
/// at u0. `statistics` are needed for fitted weights only; without them those are reuse.
pub fn apply(
    schedule: &Schedule,
    statistics: Option<&Statistics>,
    forecast: impl Fn(Block, usize) -> Forecast,
) -> Result<Schedule, ForecastError> {
    let steps = schedule.steps();
    let mut rows = Vec::with_capacity(schedule.rows().len());
    for (row, (block, cells)) in schedule.rows().iter().enumerate() {
        let mut at: Vec<usize> = Vec::new();
        let mut new = Vec::with_capacity(steps);
        for (step, cell) in cells.iter().enumerate() {
            if *cell == Cell::Update {
                at.insert(0, step);
                new.push(Cell::Update);
                continue;
            }
            let until = (step..steps).find(|&k| cells[k] == Cell::Update).unwrap_or(steps);
            let chosen = forecast(*block, at[0]);
            new.push(Cell::Reuse(match (chosen, statistics) {
                (Forecast::Fitted { outputs, ridge }, Some(statistics)) => {
                    let gram = Gram::of(statistics, row, *block, steps)?;
                    gram.fit(&at[..outputs.clamp(1, at.len())], step, ridge)?
                }
                _ => chosen.weights(step, until, &at),
            }));
        }
        rows.push((*block, new));
    }
    Ok(schedule.with_rows(rows))
}

/// The schedule with reuse wherever its own weights were worse in calibration.
pub fn gated(schedule: &Schedule, statistics: &Statistics) -> Result<Schedule, ForecastError> {
    let steps = schedule.steps();
    let mut rows = schedule.rows().to_vec();
    for (row, (block, cells)) in rows.iter_mut().enumerate() {
        let gram = Gram::of(statistics, row, *block, steps)?;
        let mut at: Vec<usize> = Vec::new();
        for (step, cell) in cells.iter_mut().enumerate() {
            match cell {
                Cell::Update => at.insert(0, step),
                Cell::Reuse(weights) => {
                    if gram.error(&at, step, weights) >= gram.error(&at, step, &[1.0]) {
                        *weights = vec![1.0];
                    }
                }
            }
        }
    }
    Ok(schedule.with_rows(rows))
}

/// Root of the squared error over squared size of all outputs that a schedule forecasts, by calibration; 0 when
/// nothing is reused.
pub fn feature_error(schedule: &Schedule, statistics: &Statistics) -> Result<f64, ForecastError> {
    let (mut error, mut size) = (0.0, 0.0);
    for (row, (block, cells)) in schedule.rows().iter().enumerate() {
        let gram = Gram::of(statistics, row, *block, schedule.steps())?;
        let mut at: Vec<usize> = Vec::new();
        for (step, cell) in cells.iter().enumerate() {
            match cell {
                Cell::Update => at.insert(0, step),
                Cell::Reuse(weights) => {
                    error += gram.error(&at, step, weights).max(0.0);
                    size += gram.at(step, step);
                }
            }
        }
    }
    Ok(if size > 0.0 { (error / size).sqrt() } else { 0.0 })
}

/// Inner products of one block's outputs between all pairs of steps.
struct Gram<'a> {
    block: Block,
    steps: usize,
    products: &'a [f64],
}

impl<'a> Gram<'a> {
    fn of(statistics: &'a Statistics, row: usize, block: Block, steps: usize) -> Result<Self, ForecastError> {
        let wrong = |got: String| ForecastError::Statistics { block, expected: steps, got };
        let found =
            statistics.blocks.get(row).filter(|b| b.block == block).ok_or_else(|| wrong("nothing".into()))?;
        if statistics.steps != steps || found.products.len() != steps * steps {
            return Err(wrong(format!(
                "{} inner products over {} steps",
                found.products.len(),
                statistics.steps
            )));
        }
        Ok(Self { block, steps, products: &found.products })
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.products[i * self.steps + j]
    }

    /// `|F_step - sum of weights * F_at|^2`, mean over observations.
    fn error(&self, at: &[usize], step: usize, weights: &[f32]) -> f64 {
        let terms = || at.iter().zip(weights).map(|(&u, &w)| (u, f64::from(w)));
        let own: f64 = terms()
            .flat_map(|(u, w)| terms().map(move |(v, z)| (u, v, w * z)))
            .map(|(u, v, w)| w * self.at(u, v))
            .sum();
        self.at(step, step) - 2.0 * terms().map(|(u, w)| w * self.at(u, step)).sum::<f64>() + own
    }

    /// Weights of the outputs at `at` that come closest to the one at `step`, with a ridge towards `[1, 0, ..]`.
    fn fit(&self, at: &[usize], step: usize, ridge: f64) -> Result<Vec<f32>, ForecastError> {
        let n = at.len();
        let pull = ridge * at.iter().map(|&u| self.at(u, u)).sum::<f64>() / n as f64;
        let matrix = DMatrix::from_fn(n, n, |i, j| self.at(at[i], at[j]) + if i == j { pull } else { 0.0 });
        let right = DVector::from_fn(n, |i, _| self.at(at[i], step) - self.at(at[i], at[0]));
        let singular = ForecastError::Singular { block: self.block, step };
        let change = matrix.cholesky().ok_or_else(|| singular.clone())?.solve(&right);
        let weights: Vec<f32> =
            change.iter().enumerate().map(|(i, c)| (c + if i == 0 { 1.0 } else { 0.0 }) as f32).collect();
        if weights.iter().all(|w| w.is_finite()) { Ok(weights) } else { Err(singular) }
    }
}

#[cfg(test)]
#[path = "forecast_tests.rs"]
mod tests;
