//! Samplers: DDPM and DDIM as tables of coefficients that are known at load.
//!
//! Every step of either sampler is the same two lines, so an engine needs one operation for both:
//! ```text
//! x0 = clamp(x0_from_x * x + x0_from_model * model, -clip, clip)
//! x  = from_x0 * x0 + from_x * x + from_model * model + from_noise * noise
//! ```
//! The coefficients follow diffusers 0.42.1 (`DDPMScheduler`, `DDIMScheduler`). Not here: learned variances, dynamic
//! thresholding and stateful multistep samplers; importers refuse them by name.

use serde::{Deserialize, Serialize};

use crate::noise_schedule::{self, BetaSchedule};

/// Which sampler; names as in the papers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerKind {
    /// Ancestral sampling (Ho et al. 2020).
    Ddpm,
    /// Implicit sampling (Song et al. 2021).
    Ddim,
}

/// What the denoiser predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The clean trajectory.
    Sample,
    /// The velocity (Salimans and Ho, 2022).
    VPrediction,
}

/// Variance of the noise that DDPM adds; names as in diffusers. Standard deviations for timestep t > 0:
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// Square root of the posterior variance.
    FixedSmall,
    /// The same through logarithm and exponential, as diffusers has it.
    FixedSmallLog,
    /// Square root of beta.
    FixedLarge,
    /// Square root of beta, which is what the name means; diffusers takes the root of a negative logarithm and
    /// gives NaN.
    FixedLargeLog,
}

/// How inference timesteps are spread over training timesteps; names as in diffusers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// From the first to the last training timestep, evenly.
    Linspace,
    /// Multiples of the stride from 0 on.
    #[default]
    Leading,
    /// Multiples of the stride back from the last.
    Trailing,
}

/// The `[sampler]` table of `policy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerConfig {
    /// DDPM or DDIM.
    pub kind: SamplerKind,
    /// Denoising steps K.
    pub inference_steps: usize,
    /// Timesteps that the denoiser was trained on.
    pub train_steps: usize,
    /// Shape of the noise schedule.
    pub beta_schedule: BetaSchedule,
    /// First beta, where the schedule uses it.
    pub beta_start: f64,
    /// Last beta, where the schedule uses it.
    pub beta_end: f64,
    /// Betas given one by one; they replace the schedule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trained_betas: Vec<f32>,
    /// Rescale the betas to leave no signal at the last timestep.
    #[serde(default)]
    pub rescale_betas_zero_snr: bool,
    /// What the denoiser predicts.
    pub prediction_type: PredictionType,
    /// Clip the predicted clean trajectory.
    pub clip_sample: bool,
    /// Clip to plus and minus this, normalised units.
    pub clip_sample_range: f32,
    /// How inference timesteps are spread.
    #[serde(default)]
    pub timestep_spacing: TimestepSpacing,
    /// Added to `leading` timesteps.
    #[serde(default)]
    pub steps_offset: usize,
    /// Inference timesteps given one by one, falling; they replace spacing and offset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timesteps: Vec<usize>,
    /// Noise that DDPM adds.
    pub variance_type: VarianceType,
    /// Noise that DDIM adds: 0 none, 1 as much as DDPM.
    #[serde(default)]
    pub eta: f32,
    /// DDIM's last step aims at no noise at all, otherwise at that of timestep 0.
    #[serde(default = "yes")]
    pub set_alpha_to_one: bool,
    /// DDIM derives the noise anew from the clipped trajectory.
    #[serde(default)]
    pub use_clipped_model_output: bool,
}

fn yes() -> bool {
    true
}

/// One denoising step of a sampler; see the module's two lines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerStep {
    /// Training timestep t that the denoiser is asked about.
    pub timestep: usize,
    /// Weight of the noisy trajectory in the predicted clean one.
    pub x0_from_x: f32,
    /// Weight of the denoiser's output in the predicted clean trajectory.
    pub x0_from_model: f32,
    /// Bound of the predicted clean trajectory; infinite when it is not clipped.
    pub clip: f32,
    /// Weight of the predicted clean trajectory.
    pub from_x0: f32,
    /// Weight of the noisy trajectory.
    pub from_x: f32,
    /// Weight of the denoiser's output.
    pub from_model: f32,
    /// Weight of fresh noise; 0 where none is drawn.
    pub from_noise: f32,
    /// Share of a clean trajectory in what this step leads to; the noise's share is `sqrt(1 - signal^2)`. 1 after the
    /// last step.
    pub signal: f32,
}

/// Stands for one divided by zero where the result is clipped; finite, so that equal terms cancel.
const LARGE: f32 = 1e30;

/// Most training timesteps a configuration may name.
const MAX_TRAIN_STEPS: usize = 100_000;

impl SamplerConfig {
    /// The same noise schedule sampled another way.
    pub fn with(&self, kind: SamplerKind, inference_steps: usize) -> Self {
        Self { kind, inference_steps, timesteps: Vec::new(), ..self.clone() }
    }

    /// Short name with the number of steps, such as `ddpm100`.
    pub fn label(&self) -> String {
        let kind = match self.kind {
            SamplerKind::Ddpm => "ddpm",
            SamplerKind::Ddim => "ddim",
        };
        format!("{kind}{}", self.inference_steps)
    }

    /// Appends what is wrong with this table, one sentence each.
    pub(crate) fn problems(&self, found: &mut Vec<String>) {
        let train = self.train_steps;
        if !(1..=MAX_TRAIN_STEPS).contains(&train) {
            found.push(format!("sampler.train_steps: expected 1 to {MAX_TRAIN_STEPS}, got {train}"));
            return;
        }
        if !(1..=train).contains(&self.inference_steps) {
            found.push(format!(
                "sampler.inference_steps: expected 1 to train_steps = {train}, got {}",
                self.inference_steps
            ));
            return;
        }
        for (key, beta) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
            if !(beta > 0.0 && beta < 1.0) {
                found.push(format!("sampler.{key}: expected more than 0 and less than 1, got {beta}"));
            }
        }
        if !self.trained_betas.is_empty() {
            if self.trained_betas.len() != train {
                found.push(format!(
                    "sampler.trained_betas: expected {train} numbers, got {}",
                    self.trained_betas.len()
                ));
            }
            if let Some(i) = self.trained_betas.iter().position(|b| !(*b > 0.0 && *b < 1.0)) {
                found.push(format!(
                    "sampler.trained_betas[{i}]: expected more than 0 and less than 1, got {}",
                    self.trained_betas[i]
                ));
            }
        }
        if !(self.clip_sample_range > 0.0 && self.clip_sample_range.is_finite()) {
            found.push(format!(
                "sampler.clip_sample_range: expected a finite number above 0, got {}",
                self.clip_sample_range
            ));
        }
        if !(0.0..=1.0).contains(&self.eta) {
            found.push(format!("sampler.eta: expected 0 to 1, got {}", self.eta));
        }
        let timesteps = self.inference_timesteps();
        if self.rescale_betas_zero_snr
            && self.prediction_type == PredictionType::Epsilon
            && !self.clip_sample
            && timesteps.contains(&(train - 1))
        {
            found.push(format!(
                "sampler.rescale_betas_zero_snr: prediction_type epsilon divides by zero at timestep {}; expected clip_sample = true, or prediction_type sample or v_prediction",
                train - 1
            ));
        }
        if timesteps.len() != self.inference_steps {
            found.push(format!(
                "sampler.timesteps: expected inference_steps = {} timesteps, got {}",
                self.inference_steps,
                timesteps.len()
            ));
        }
        if let Some(t) = timesteps.iter().find(|&&t| t >= train) {
            found.push(format!("sampler: timestep {t} is beyond train_steps = {train}; lower steps_offset"));
        }
        if timesteps.windows(2).any(|w| w[1] >= w[0]) {
            found.push("sampler.timesteps: expected falling timesteps".into());
        }
        if found.is_empty()
            && let Some(step) = self.steps().iter().find(|step| !step.is_finite())
        {
            found.push(format!(
                "sampler: the step at timestep {} divides by zero; expected betas that a f32 can tell from 0 and 1",
                step.timestep
            ));
        }
    }

    /// The K training timesteps, noisiest first.
    pub fn inference_timesteps(&self) -> Vec<usize> {
        if !self.timesteps.is_empty() {
            return self.timesteps.clone();
        }
        let (train, steps) = (self.train_steps, self.inference_steps);
        match self.timestep_spacing {
            TimestepSpacing::Leading => {
                let stride = train / steps;
                (0..steps).rev().map(|k| k * stride + self.steps_offset).collect()
            }
            TimestepSpacing::Linspace => {
                let stride = if steps > 1 { (train - 1) as f64 / (steps - 1) as f64 } else { 0.0 };
                (0..steps).rev().map(|k| (k as f64 * stride).round_ties_even() as usize).collect()
            }
            TimestepSpacing::Trailing => {
                let stride = train as f64 / steps as f64;
                (0..steps)
                    .map(|k| {
                        ((train as f64 - k as f64 * stride).round_ties_even() as usize).saturating_sub(1)
                    })
                    .collect()
            }
        }
    }

    fn alphas_cumprod(&self) -> Vec<f32> {
        let mut betas = if self.trained_betas.is_empty() {
            noise_schedule::betas(self.beta_schedule, self.train_steps, self.beta_start, self.beta_end)
        } else {
            self.trained_betas.clone()
        };
        if self.rescale_betas_zero_snr {
            betas = noise_schedule::rescale_zero_terminal_snr(&betas);
        }
        noise_schedule::alphas_cumprod(&betas)
    }

    /// Coefficients of all K steps, noisiest first. The configuration must be free of problems.
    pub fn steps(&self) -> Vec<SamplerStep> {
        let alpha_bar = self.alphas_cumprod();
        let timesteps = self.inference_timesteps();
        (0..timesteps.len())
            .map(|k| {
                let t = timesteps[k];
                let step = match self.kind {
                    SamplerKind::Ddpm => self.ddpm_step(&alpha_bar, t, timesteps.get(k + 1).copied()),
                    SamplerKind::Ddim => self.ddim_step(&alpha_bar, t, self.ddim_previous(&timesteps, k)),
                };
                SamplerStep { signal: timesteps.get(k + 1).map_or(1.0, |&t| alpha_bar[t].sqrt()), ..step }
            })
            .collect()
    }

    /// Share of a clean trajectory in what the first step starts from; see [`SamplerStep::signal`].
    pub fn start_signal(&self) -> f32 {
        self.inference_timesteps().first().map_or(1.0, |&t| self.alphas_cumprod()[t].sqrt())
    }

    /// DDIM steps back by the stride whatever the spacing, as diffusers does; by the list where one is given.
    fn ddim_previous(&self, timesteps: &[usize], k: usize) -> Option<usize> {
        if self.timesteps.is_empty() {
            timesteps[k].checked_sub(self.train_steps / self.inference_steps)
        } else {
            timesteps.get(k + 1).copied()
        }
    }

    /// Predicted clean trajectory, then everything else 0.
    fn clean(&self, alpha_bar: f32, timestep: usize) -> SamplerStep {
        let (signal, noise) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
        let (x0_from_x, x0_from_model) = match self.prediction_type {
            // Nothing of the signal is left: diffusers divides by zero and clips, so only the sign counts.
            PredictionType::Epsilon if signal == 0.0 => (LARGE, -LARGE),
            PredictionType::Epsilon => (1.0 / signal, -noise / signal),
            PredictionType::Sample => (0.0, 1.0),
            PredictionType::VPrediction => (signal, -noise),
        };
        let clip = if self.clip_sample { self.clip_sample_range } else { f32::INFINITY };
        SamplerStep {
            timestep,
            x0_from_x,
            x0_from_model,
            clip,
            from_x0: 0.0,
            from_x: 0.0,
            from_model: 0.0,
            from_noise: 0.0,
            signal: 1.0,
        }
    }

    fn ddpm_step(&self, alpha_bar: &[f32], t: usize, previous: Option<usize>) -> SamplerStep {
        let now = alpha_bar[t];
        let next = previous.map_or(1.0, |p| alpha_bar[p]);
        let alpha = now / next;
        let beta = 1.0 - alpha;
        let posterior = ((1.0 - next) / (1.0 - now) * beta).max(1e-20);
        let deviation = match self.variance_type {
            VarianceType::FixedSmall => posterior.sqrt(),
            VarianceType::FixedSmallLog => (0.5 * posterior.ln()).exp(),
            VarianceType::FixedLarge | VarianceType::FixedLargeLog => beta.sqrt(),
        };
        SamplerStep {
            from_x0: next.sqrt() * beta / (1.0 - now),
            from_x: alpha.sqrt() * (1.0 - next) / (1.0 - now),
            from_noise: if t > 0 { deviation } else { 0.0 },
            ..self.clean(now, t)
        }
    }

    fn ddim_step(&self, alpha_bar: &[f32], t: usize, previous: Option<usize>) -> SamplerStep {
        let now = alpha_bar[t];
        let last = if self.set_alpha_to_one { 1.0 } else { alpha_bar[0] };
        let next = previous.map_or(last, |p| alpha_bar[p]);
        let variance = (1.0 - next) / (1.0 - now) * (1.0 - now / next);
        let deviation = self.eta * variance.sqrt();
        let direction = (1.0 - next - deviation * deviation).sqrt();
        let (signal, noise) = (now.sqrt(), (1.0 - now).sqrt());
        // The predicted noise as a sum over clipped x0, x and the denoiser's output.
        let (noise_from_x0, noise_from_x, noise_from_model) = match self.prediction_type {
            _ if self.use_clipped_model_output => (-signal / noise, 1.0 / noise, 0.0),
            PredictionType::Epsilon => (0.0, 0.0, 1.0),
            PredictionType::Sample => (0.0, 1.0 / noise, -signal / noise),
            PredictionType::VPrediction => (0.0, noise, signal),
        };
        SamplerStep {
            from_x0: next.sqrt() + direction * noise_from_x0,
            from_x: direction * noise_from_x,
            from_model: direction * noise_from_model,
            from_noise: deviation,
            ..self.clean(now, t)
        }
    }
}

impl SamplerStep {
    fn is_finite(&self) -> bool {
        let s = self;
        [s.x0_from_x, s.x0_from_model, s.from_x0, s.from_x, s.from_model, s.from_noise]
            .iter()
            .all(|v| v.is_finite())
            && s.clip > 0.0
    }

    /// Whether the denoiser's output has any weight in this step.
    pub fn reads_model(&self) -> bool {
        self.from_model != 0.0 || (self.from_x0 != 0.0 && self.x0_from_model != 0.0)
    }

    /// A known clean value at the noise level that this step leads to.
    #[inline(always)]
    pub fn noised(signal: f32, clean: f32, noise: f32) -> f32 {
        signal * clean + (1.0 - signal * signal).max(0.0).sqrt() * noise
    }

    /// One element's next value.
    #[inline(always)]
    pub fn apply(&self, x: f32, model: f32, noise: f32) -> f32 {
        let x0 = (self.x0_from_x * x + self.x0_from_model * model).clamp(-self.clip, self.clip);
        self.from_x0 * x0 + self.from_x * x + self.from_model * model + self.from_noise * noise
    }
}
