//! A policy ready to run: package, plan and engine behind one call in the units of the demonstrations.

use refrain_policies::config::PolicyConfig;
use refrain_policies::coverage::Coverage;

use crate::engine::{Engine, EngineError};

/// Raw observations in, raw actions out.
pub struct Policy {
    config: PolicyConfig,
    engine: Box<dyn Engine>,
    observation: Vec<f32>,
    coverage: Option<Coverage>,
    outside: u64,
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
    /// Wraps an engine that was made for this policy.
    pub fn new(config: PolicyConfig, engine: Box<dyn Engine>) -> Self {
        let observation = vec![0.0; config.architecture.n_obs_steps * config.observation.size()];
        Self { config, engine, observation, coverage: None, outside: 0 }
    }

    /// Counts from now on what its schedule was not found with; see [`Policy::outside`].
    pub fn watch(mut self, coverage: Option<Coverage>) -> Self {
        self.coverage = coverage;
        self
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

    /// Predicts one chunk from `observation` `[To, O]` in raw units and `noise` `[>= K + 1, T, N]`; allocates nothing
    /// when `out` was used before.
    pub fn predict(
        &mut self,
        observation: &[f32],
        noise: &[f32],
        out: &mut Prediction,
    ) -> Result<(), EngineError> {
        let c = &self.config;
        if observation.len() != self.observation.len() {
            return Err(EngineError::Size {
                name: "observation",
                expected: self.observation.len(),
                got: observation.len(),
            });
        }
        let (tokens, denoised, actions) = (c.architecture.tokens(), c.denoised_size(), c.action.size());
        let noise = noise.get(..self.noise_len()).ok_or(EngineError::Size {
            name: "noise",
            expected: self.noise_len(),
            got: noise.len(),
        })?;
        self.observation.copy_from_slice(observation);
        c.observation.normalizer.normalize(&mut self.observation);
        let outside = self.coverage.as_ref().is_some_and(|coverage| coverage.outside(&self.observation) > 0);
        self.outside += u64::from(outside);
        out.trajectory_norm.resize(tokens * denoised, 0.0);
        self.engine.infer(&self.observation, noise, &mut out.trajectory_norm)?;
        out.action_pred.clear();
        out.action_pred.extend(out.trajectory_norm.chunks(denoised).flat_map(|token| &token[..actions]));
        c.action.normalizer.unnormalize(&mut out.action_pred);
        let executed = c.architecture.executed();
        out.action.clear();
        out.action.extend_from_slice(&out.action_pred[executed.start * actions..executed.end * actions]);
        Ok(())
    }
}
