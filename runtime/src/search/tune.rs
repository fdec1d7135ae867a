//! Tuning: how much of its slope each forecast follows, all of them at once.
//!
//! A line through a block's last two outputs overshoots where updates are far apart, and repeating the last output stays
//! behind. Between the two, [`Forecast::Line`] follows a share of the slope, one share per update step. The shares that
//! give the smallest action errors are found by Gauss-Newton: one run per share shows what it does to every executed
//! action, and weighted least squares says how far to go. Chunks weigh by the inverse of their error, so that the sum of errors falls, not
//! that of their squares (iteratively reweighted least squares). Whether a step is taken, [`Search`] judges as any other move.

use nalgebra::{DMatrix, DVector};
use refrain_policies::forecast::Forecast;

use super::candidate::Candidate;
use super::study::Part;
use super::{Failure, Found, Search};

/// What a share changes by to see what it does.
const NUDGE: f64 = 0.2;
/// Steps at most.
const ROUNDS: usize = 3;
/// Ridge, relative to each share's own effect.
const RIDGE: f64 = 0.05;
/// Shares stay within this much of reuse.
const MOST: f64 = 2.0;
/// Chunks with less than this share of the mean error weigh no more than those with it.
const FLOOR: f64 = 0.3;

impl Search<'_> {
    /// Each update that is followed by quiet steps follows the share of the slope that serves best.
    pub(super) fn tune(&mut self, mut best: Found) -> Result<Found, Failure> {
        for _ in 0..ROUNDS {
            let free = free(&best.candidate);
            let lines = with_shares(&best.candidate, &free, &shares(&best.candidate, &free));
            let Some(here) = self.differences(&lines)? else { return Ok(best) };
            let mut effects = Vec::with_capacity(free.len());
            for i in 0..free.len() {
                let mut nudged = shares(&lines, &free);
                nudged[i] += NUDGE;
                let Some(there) = self.differences(&with_shares(&lines, &free, &nudged))? else {
                    return Ok(best);
                };
                let effect = |(a, b): (&Vec<f32>, &Vec<f32>)| -> Vec<f64> {
                    a.iter().zip(b).map(|(a, b)| f64::from(a - b) / NUDGE).collect()
                };
                effects.push(there.iter().zip(&here).map(effect).collect::<Vec<_>>());
            }
            let Some(change) = least(&here, &effects) else { return Ok(best) };
            let mut moved = false;
            for part in [1.0, 0.5] {
                let to: Vec<f64> = shares(&lines, &free)
                    .iter()
                    .zip(&change)
                    .map(|(s, c)| ((s + part * c).clamp(-MOST, MOST) * 1e3).round() / 1e3)
                    .collect();
                if self.better(&mut best, with_shares(&lines, &free, &to))? {
                    moved = true;
                    break;
                }
            }
            if !moved {
                break;
            }
        }
        Ok(best)
    }

    /// Executed actions less the full run's, per searched observation; none when the evaluations are used up.
    fn differences(&mut self, candidate: &Candidate) -> Result<Option<Vec<Vec<f32>>>, Failure> {
        if self.evaluations == 0 {
            return Ok(None);
        }
        self.evaluations -= 1;
        let schedule = candidate.schedule(&self.architecture(), self.observed.as_ref())?;
        let searched = self.study.range(Part::Searched);
        Ok(Some(self.study.own_differences(&candidate.sampler, &schedule, searched)?))
    }
}

/// Updates whose outputs stand in for later ones and that have one before them.
fn free(candidate: &Candidate) -> Vec<usize> {
    let steps = candidate.sampler.inference_steps;
    let after = |i: usize| candidate.updates.get(i + 1).map_or(steps, |u| u.step);
    (1..candidate.updates.len()).filter(|&i| after(i) - candidate.updates[i].step > 1).collect()
}

/// The share that a forecast comes closest to.
fn shares(candidate: &Candidate, free: &[usize]) -> Vec<f64> {
    let share = |forecast| match forecast {
        Forecast::Line { share } => share,
        Forecast::Taylor { .. } => 1.0,
        Forecast::Reuse | Forecast::AdamsBashforth | Forecast::Fitted { .. } => 0.0,
    };
    free.iter().map(|&i| share(candidate.updates[i].forecast)).collect()
}

fn with_shares(candidate: &Candidate, free: &[usize], shares: &[f64]) -> Candidate {
    let mut candidate = candidate.clone();
    for (&i, &share) in free.iter().zip(shares) {
        candidate.updates[i].forecast = if share == 0.0 { Forecast::Reuse } else { Forecast::Line { share } };
    }
    candidate
}

/// The change of shares after which the weighted squares of `here + effects * change` are least.
fn least(here: &[Vec<f32>], effects: &[Vec<Vec<f64>>]) -> Option<Vec<f64>> {
    let n = effects.len();
    let norm = |chunk: &[f32]| chunk.iter().map(|d| f64::from(*d).powi(2)).sum::<f64>().sqrt();
    let mean = here.iter().map(|chunk| norm(chunk)).sum::<f64>() / here.len() as f64;
    let (mut normal, mut right) = (DMatrix::<f64>::zeros(n, n), DVector::<f64>::zeros(n));
    for (o, chunk) in here.iter().enumerate() {
        let weight = 1.0 / norm(chunk).max(FLOOR * mean);
        for i in 0..n {
            let with = |j: usize| effects[i][o].iter().zip(&effects[j][o]).map(|(a, b)| a * b).sum::<f64>();
            (0..n).for_each(|j| normal[(i, j)] += weight * with(j));
            let error = chunk.iter().zip(&effects[i][o]).map(|(d, e)| f64::from(*d) * e).sum::<f64>();
            right[i] -= weight * error;
        }
    }
    for i in 0..n {
        normal[(i, i)] = normal[(i, i)] * (1.0 + RIDGE) + f64::MIN_POSITIVE;
    }
    let change: DVector<f64> = normal.cholesky()?.solve(&right);
    change.iter().all(|c| c.is_finite()).then(|| change.iter().copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_squares_find_the_change_that_undoes_an_error() {
        // Two chunks of two numbers; what is wrong is twice the first effect less half of the second.
        let effects = vec![vec![vec![1.0, 0.5], vec![-0.3, 0.1]], vec![vec![0.2, -1.0], vec![0.4, 0.9]]];
        let here: Vec<Vec<f32>> = (0..2)
            .map(|o| (0..2).map(|i| (-2.0 * effects[0][o][i] + 0.5 * effects[1][o][i]) as f32).collect())
            .collect();
        let change = least(&here, &effects).unwrap();
        assert!((change[0] - 2.0).abs() < 0.2 && (change[1] + 0.5).abs() < 0.2, "{change:?}");
        let left = |change: &[f64]| -> f64 {
            let rest = |o: usize, i: usize| {
                f64::from(here[o][i]) + change[0] * effects[0][o][i] + change[1] * effects[1][o][i]
            };
            (0..4).map(|k| rest(k / 2, k % 2).powi(2)).sum()
        };
        assert!(left(&change) < 0.01 * left(&[0.0, 0.0]), "{}", left(&change));
    }

    #[test]
    fn what_has_no_effect_stays() {
        let effects = vec![vec![vec![0.0, 0.0]], vec![vec![1.0, 0.0]]];
        let change = least(&[vec![1.0, 0.0]], &effects).unwrap();
        assert!(change[0] == 0.0 && change[1] < -0.9, "{change:?}");
    }
}
