//! A policy ready to run: package, plan and engine behind one call in the units of the demonstrations.

use refrain_policies::config::PolicyConfig;
use refrain_policies::coverage::Coverage;
use refrain_policies::vision::{Frame, Vision};

use crate::engine::{Engine, EngineError};

/// Raw observations in, raw actions out.
pub struct Policy {
    config: PolicyConfig,
    engine: Box<dyn Engine>,
    vision: Option<Vision>,
    observation: Vec<f32>,
    /// `[To, F + O]`.
    condition: Vec<f32>,
    /// `[T, 1 + A]`, normalised.
    known: Vec<f32>,
    coverage: Option<Coverage>,
    outside: u64,
}

/// What is known of a trajectory before it is denoised.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// `[T]`: whether a token's action is known.
    pub tokens: Vec<bool>,
    /// `[T, A]`, in the units of the demonstrations.
    pub actions: Vec<f32>,
}

/// One predicted chunk.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prediction {
    /// `[Ta, A]`: the actions to execute, in the units of the demonstrations.
    pub action: Vec<f32>,
    /// `[T, A]`: the whole predicted trajectory, in the units of the demonstrations.
    pub action_pred: Vec<f32>,
    /// `[T, N]`: the denoised trajectory, normalised.
    pub trajectory_norm: Vec<f32>,
}

impl Policy {
    /// Wraps an engine that was made for this policy, which sees nothing.
    pub fn new(config: PolicyConfig, engine: Box<dyn Engine>) -> Self {
        Self::seeing(config, engine, None)
    }

    /// The same with what the policy sees.
    pub fn seeing(config: PolicyConfig, engine: Box<dyn Engine>, vision: Option<Vision>) -> Self {
        let steps = config.architecture.n_obs_steps;
        let observation = vec![0.0; steps * config.observation.size()];
        let condition = Vec::with_capacity(steps * config.condition_size());
        let known = vec![0.0; config.architecture.tokens() * (1 + config.action.size())];
        Self { config, engine, vision, observation, condition, known, coverage: None, outside: 0 }
    }

    /// Sees through these cameras from now on.
    pub fn see_through(&mut self, vision: Vision) {
        self.vision = Some(vision);
    }

    /// Counts from now on what its schedule was not found with; see [`Policy::outside`].
    pub fn watch(mut self, coverage: Option<Coverage>) -> Self {
        self.coverage = coverage;
        self
    }

    /// Whether it counts them: whether its schedule says what it was found with.
    pub fn watches(&self) -> bool {
        self.coverage.is_some()
    }

    /// Predictions from observations of which a number lay outside what the schedule was found with.
    pub fn outside(&self) -> u64 {
        self.outside
    }

    /// What the policy is.
    pub fn config(&self) -> &PolicyConfig {
        &self.config
    }

    /// What runs it, in a few words.
    pub fn engine_name(&self) -> String {
        self.engine.name()
    }

    /// How often its engine had to give way to a slower one.
    pub fn fallbacks(&self) -> u64 {
        self.engine.fallbacks()
    }

    /// Numbers of noise that one prediction takes: `[K + 1, T, N]`.
    pub fn noise_len(&self) -> usize {
        let c = &self.config;
        (c.sampler.inference_steps + 1) * c.architecture.tokens() * c.denoised_size()
    }

    /// Nothing known, of this policy's size.
    pub fn unknown(&self) -> Known {
        let tokens = self.config.architecture.tokens();
        Known { tokens: vec![false; tokens], actions: vec![0.0; tokens * self.config.action.size()] }
    }

    /// Imposes known actions on the predictions that follow; an error when the engine's plan has no room for them.
    pub fn know(&mut self, known: &Known) -> Result<(), EngineError> {
        let size = self.config.action.size();
        if (known.tokens.len(), known.actions.len())
            != (self.known.len() / (1 + size), known.tokens.len() * size)
        {
            let (expected, got) = (self.known.len() / (1 + size), known.tokens.len());
            return Err(EngineError::Size { name: "known", expected, got });
        }
        let rows = self.known.chunks_mut(1 + size).zip(&known.tokens).zip(known.actions.chunks(size));
        for ((row, is_known), actions) in rows {
            row[0] = f32::from(u8::from(*is_known));
            row[1..].copy_from_slice(actions);
            self.config.action.normalizer.normalize(&mut row[1..]);
        }
        self.engine.know(&self.known)
    }

    /// Predicts one chunk from `observation` `[To, O]` in raw units and `noise` `[>= K + 1, T, N]`; allocates nothing
    /// when `out` was used before. For a policy that sees nothing.
    pub fn predict(
        &mut self,
        observation: &[f32],
        noise: &[f32],
        out: &mut Prediction,
    ) -> Result<(), EngineError> {
        self.predict_seeing(observation, &[], noise, out)
    }

    /// Forgets which images were encoded, so that their stamps may start again.
    pub fn forget(&mut self) {
        if let Some(vision) = &mut self.vision {
            vision.forget();
        }
    }

    /// The same with the images `frames` `[To, cameras]`; encoding allocates.
    pub fn predict_seeing(
        &mut self,
        observation: &[f32],
        frames: &[Frame<'_>],
        noise: &[f32],
        out: &mut Prediction,
    ) -> Result<(), EngineError> {
        let mut condition = std::mem::take(&mut self.condition);
        let looked = self.look(observation, frames, &mut condition);
        let done = looked.and_then(|()| self.denoise(&condition, noise, out));
        self.condition = condition;
        done
    }

    /// Encodes the images of one observation step `[cameras]` ahead of time.
    pub fn glance(&mut self, images: &[Frame<'_>]) {
        if let Some(vision) = &mut self.vision {
            vision.glance(images);
        }
    }

    /// Writes into `condition` what the denoiser is given `[To, F + O]`: the first half of a prediction. It is left empty
    /// on an error.
    pub fn look(
        &mut self,
        observation: &[f32],
        frames: &[Frame<'_>],
        condition: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        condition.clear();
        let (expected, got) = (self.observation.len(), observation.len());
        if got != expected {
            return Err(EngineError::Size { name: "observation", expected, got });
        }
        let c = &self.config;
        self.observation.copy_from_slice(observation);
        c.observation.normalizer.normalize(&mut self.observation);
        let Some(vision) = &mut self.vision else {
            condition.extend_from_slice(&self.observation);
            return Ok(());
        };
        condition.resize(c.architecture.n_obs_steps * c.condition_size(), 0.0);
        let looked = vision.condition(&self.observation, frames, condition);
        if looked.is_err() {
            condition.clear();
        }
        Ok(looked?)
    }

    /// Denoises one chunk for what [`Policy::look`] wrote: the second half of a prediction. Allocates nothing when `out`
    /// was used before.
    pub fn denoise(
        &mut self,
        condition: &[f32],
        noise: &[f32],
        out: &mut Prediction,
    ) -> Result<(), EngineError> {
        let c = &self.config;
        let (expected, got) = (c.architecture.n_obs_steps * c.condition_size(), condition.len());
        if got != expected {
            return Err(EngineError::Size { name: "condition", expected, got });
        }
        let (tokens, denoised, actions) = (c.architecture.tokens(), c.denoised_size(), c.action.size());
        let noise = noise.get(..self.noise_len()).ok_or(EngineError::Size {
            name: "noise",
            expected: self.noise_len(),
            got: noise.len(),
        })?;
        out.trajectory_norm.resize(tokens * denoised, 0.0);
        let outside = self.coverage.as_ref().is_some_and(|coverage| coverage.outside(condition) > 0);
        self.outside += u64::from(outside);
        self.engine.infer(condition, noise, &mut out.trajectory_norm)?;
        out.action_pred.clear();
        out.action_pred.extend(out.trajectory_norm.chunks(denoised).flat_map(|token| &token[..actions]));
        c.action.normalizer.unnormalize(&mut out.action_pred);
        let executed = c.architecture.executed();
        out.action.clear();
        out.action.extend_from_slice(&out.action_pred[executed.start * actions..executed.end * actions]);
        Ok(())
    }
}
