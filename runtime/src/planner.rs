//! From observations to chunks: when to predict, and what the prediction becomes.

use refrain_policies::config::PolicyConfig;

use crate::chunk::Chunk;
use crate::clock::{Nanos, Time};
use crate::config::Robot;
use crate::engine::EngineError;
use crate::noise;
use crate::observation::Window;
use crate::policy::{Policy, Prediction};

/// Makes chunks.
pub struct Planner {
    policy: Policy,
    seed: u64,
    episode: u64,
    replan_span: Nanos,
    action_period: Nanos,
    first: usize,
    steps: usize,
    planned: Option<Time>,
    sequence: u64,
    draws: u64,
    noise: Vec<f32>,
    prediction: Prediction,
}

/// Why there is no chunk.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The prediction has a NaN or an infinity.
    #[error("the policy predicted a non-finite action; the chunk is dropped")]
    NonFinite,
}

impl Planner {
    /// Predicts as often as the robot's configuration says.
    pub fn new(policy: Policy, robot: &Robot) -> Self {
        let architecture = &policy.config().architecture;
        let first = architecture.executed().start;
        let steps = architecture.tokens() - first;
        Self {
            seed: robot.seed,
            episode: robot.episode,
            replan_span: robot.replan_after as i64 * robot.action_period,
            action_period: robot.action_period,
            first,
            steps,
            planned: None,
            sequence: 0,
            draws: 0,
            noise: vec![0.0; policy.noise_len()],
            prediction: Prediction::default(),
            policy,
        }
    }

    /// A chunk that is large enough for any that this planner makes.
    pub fn blank(&self) -> Chunk {
        Chunk::none(self.steps, self.policy.config().action.size(), self.action_period)
    }

    /// What is planned with.
    pub fn policy(&self) -> &PolicyConfig {
        self.policy.config()
    }

    /// Whether an observation of this time is to be planned from; half a period of jitter is allowed for. `urgent`
    /// (nothing is being executed) takes any that is newer than the last.
    pub fn is_due(&self, observation: Time, urgent: bool) -> bool {
        self.planned.is_none_or(|last| {
            let wait = if urgent { 1 } else { self.replan_span - self.action_period / 2 };
            observation - last >= wait
        })
    }

    /// Predicts a chunk from a window. All predicted actions from the observation on are in it, so that there is
    /// something to coast on. `out.ready` is left to the caller.
    pub fn plan(&mut self, window: &Window, out: &mut Chunk) -> Result<(), PlanError> {
        self.planned = Some(window.time);
        noise::fill(self.seed, self.episode, self.draws, &mut self.noise);
        self.draws += 1;
        self.policy.predict(&window.values, &self.noise, &mut self.prediction)?;
        let joints = out.joints;
        let actions = &self.prediction.action_pred[self.first * joints..][..self.steps * joints];
        if !actions.iter().all(|action| action.is_finite()) {
            return Err(PlanError::NonFinite);
        }
        self.sequence += 1;
        for (slot, action) in out.actions.iter_mut().zip(actions) {
            *slot = f64::from(*action);
        }
        out.sequence = self.sequence;
        out.observation = window.time;
        out.action_period = self.action_period;
        out.steps = self.steps;
        Ok(())
    }
}
