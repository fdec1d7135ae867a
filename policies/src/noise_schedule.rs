//! Noise schedules: how much of the signal is left at each training timestep.
//!
//! Computed as diffusers 0.42.1 computes them, in f32 with the same order of operations where that shows.

use serde::{Deserialize, Serialize};

/// How `beta` runs over the training timesteps; names as in diffusers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Straight from `beta_start` to `beta_end`.
    Linear,
    /// The square of a straight line between the square roots.
    ScaledLinear,
    /// Squared cosine, each beta at most 0.999 (Nichol and Dhariwal, 2021).
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
    /// Logistic from -6 to 6 between `beta_start` and `beta_end`.
    Sigmoid,
    /// Laplace log-SNR distribution, each beta at most 0.999.
    Laplace,
}

const MAX_BETA: f64 = 0.999;

/// Betas of `train_steps` timesteps; `start` and `end` are ignored by the two capped schedules.
pub fn betas(schedule: BetaSchedule, train_steps: usize, start: f64, end: f64) -> Vec<f32> {
    match schedule {
        BetaSchedule::Linear => linspace(start as f32, end as f32, train_steps),
        BetaSchedule::ScaledLinear => {
            linspace(start.sqrt() as f32, end.sqrt() as f32, train_steps).into_iter().map(|b| b * b).collect()
        }
        BetaSchedule::Sigmoid => linspace(-6.0, 6.0, train_steps)
            .into_iter()
            .map(|b| 1.0 / (1.0 + (-b).exp()) * (end - start) as f32 + start as f32)
            .collect(),
        BetaSchedule::SquaredcosCapV2 => {
            from_alpha_bar(train_steps, |t| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2))
        }
        BetaSchedule::Laplace => from_alpha_bar(train_steps, |t| {
            let side = 0.5 - t;
            let log_snr = -0.5 * 1f64.copysign(side) * (1.0 - 2.0 * side.abs() + 1e-6).ln();
            let snr = log_snr.exp();
            (snr / (1.0 + snr)).sqrt()
        }),
    }
}

fn linspace(start: f32, end: f32, n: usize) -> Vec<f32> {
    if n == 1 {
        return vec![start];
    }
    let step = (end - start) / (n - 1) as f32;
    (0..n)
        .map(|i| if i < n / 2 { start + step * i as f32 } else { end - step * (n - 1 - i) as f32 })
        .collect()
}

fn from_alpha_bar(n: usize, alpha_bar: impl Fn(f64) -> f64) -> Vec<f32> {
    let at = |i: usize| alpha_bar(i as f64 / n as f64);
    (0..n).map(|i| (1.0 - at(i + 1) / at(i)).min(MAX_BETA) as f32).collect()
}

/// Running product of `1 - beta`: the share of the signal's variance that is left at each timestep.
pub fn alphas_cumprod(betas: &[f32]) -> Vec<f32> {
    let mut product = 1f64;
    betas
        .iter()
        .map(|&b| {
            product *= f64::from(1.0 - b);
            product as f32
        })
        .collect()
}

/// Betas rescaled so that nothing of the signal is left at the last timestep (Lin et al. 2024, algorithm 1).
pub fn rescale_zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let root: Vec<f32> = alphas_cumprod(betas).into_iter().map(f32::sqrt).collect();
    let (first, last) = (root[0], root[root.len() - 1]);
    let alpha_bar: Vec<f32> = root.iter().map(|r| ((r - last) * (first / (first - last))).powi(2)).collect();
    (0..alpha_bar.len())
        .map(|i| 1.0 - if i == 0 { alpha_bar[0] } else { alpha_bar[i] / alpha_bar[i - 1] })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schedule_only_loses_signal() {
        for schedule in [
            BetaSchedule::Linear,
            BetaSchedule::ScaledLinear,
            BetaSchedule::SquaredcosCapV2,
            BetaSchedule::Sigmoid,
        ] {
            let alpha_bar = alphas_cumprod(&betas(schedule, 100, 1e-4, 0.02));
            assert_eq!(alpha_bar.len(), 100);
            assert!(alpha_bar.windows(2).all(|w| w[1] < w[0] && w[1] > 0.0), "{schedule:?}");
        }
    }

    #[test]
    fn zero_terminal_snr_leaves_nothing() {
        let betas = rescale_zero_terminal_snr(&betas(BetaSchedule::Linear, 50, 1e-3, 0.1));
        assert_eq!(alphas_cumprod(&betas)[49], 0.0);
    }
}
