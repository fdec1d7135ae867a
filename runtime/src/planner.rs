//! From observations to chunks: when to predict, and what the prediction becomes.

use refrain_policies::config::PolicyConfig;
use refrain_policies::vision::Frame;

use crate::chunk::Chunk;
use crate::clock::{Nanos, Time};
use crate::config::Robot;
use crate::engine::EngineError;
use crate::join::Joiner;
use crate::ladder::{Ladder, Rung, Rungs, Step};
use crate::noise;
use crate::observation::Window;
use crate::policy::{Known, Prediction};
use crate::sight::Snapshot;

/// When a chunk is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replan {
    /// From the first observation this many actions after the last chunk's; half an action of jitter is allowed for.
    After(usize),
    /// At a fixed rate: from the first observation after each multiple of this span since the last one that was on time.
    Every(Nanos),
    /// From the newest observation as soon as the last prediction is done.
    Always,
}

/// Makes chunks.
pub struct Planner {
    rungs: Vec<Rung>,
    ladder: Ladder,
    seed: u64,
    episode: u64,
    replan: Replan,
    action_period: Nanos,
    first: usize,
    steps: usize,
    planned: Option<Time>,
    /// When the next one is due at a fixed rate.
    next: Time,
    sequence: u64,
    draws: u64,
    noise: Vec<f32>,
    /// `[To, F + O]`: what the denoiser is given.
    condition: Vec<f32>,
    joiner: Joiner,
    known: Known,
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
    /// Predicts as often as the robot's configuration says. An error when chunks are to be inpainted and a plan was not
    /// compiled for it.
    ///
    /// # Panics
    /// Without any rung.
    pub fn new(plans: impl Into<Rungs>, robot: &Robot) -> Result<Self, EngineError> {
        let Rungs { mut rungs } = plans.into();
        let policy = &rungs[0].policy;
        let architecture = &policy.config().architecture;
        let first = architecture.executed().start;
        let steps = architecture.tokens() - first;
        let blank = Chunk::none(steps, policy.config().action.size(), robot.action_period);
        let joiner = Joiner::new(robot.join, &robot.control.path, &blank);
        let known = policy.unknown();
        let mut noise = 0;
        for rung in &mut rungs {
            noise = noise.max(rung.policy.noise_len());
            if joiner.inpaints() {
                rung.policy.know(&known)?;
            }
        }
        Ok(Self {
            ladder: Ladder::new(rungs.iter().map(|rung| rung.timing.p50).collect(), robot.budget),
            seed: robot.seed,
            episode: robot.episode,
            replan: robot.replan,
            action_period: robot.action_period,
            first,
            steps,
            planned: None,
            next: Time::default(),
            sequence: 0,
            draws: 0,
            noise: vec![0.0; noise],
            condition: Vec::new(),
            joiner,
            known,
            prediction: Prediction::default(),
            rungs,
        })
    }

    /// A chunk that is large enough for any that this planner makes.
    pub fn blank(&self) -> Chunk {
        Chunk::none(self.steps, self.policy().action.size(), self.action_period)
    }

    /// What is planned with.
    pub fn policy(&self) -> &PolicyConfig {
        self.rung().policy.config()
    }

    /// The plan that runs.
    pub fn rung(&self) -> &Rung {
        &self.rungs[self.ladder.at()]
    }

    /// Its place on the ladder; 0 is the best-scoring.
    pub fn rung_index(&self) -> usize {
        self.ladder.at()
    }

    /// How often an engine had to give way to a slower one.
    pub fn engines_lost(&self) -> u64 {
        self.rungs.iter().map(|rung| rung.policy.fallbacks()).sum()
    }

    /// Predictions from observations outside what their schedule was found with.
    pub fn outside(&self) -> u64 {
        self.rungs.iter().map(|rung| rung.policy.outside()).sum()
    }

    /// Notes how long a prediction took; the next one may run another plan.
    pub fn note(&mut self, span: Nanos) -> Option<Step> {
        self.ladder.note(span)
    }

    /// Whether an observation of this time is to be planned from. `urgent` (nothing is being executed) takes any that is
    /// newer than the last.
    pub fn is_due(&self, observation: Time, urgent: bool) -> bool {
        let Some(last) = self.planned else { return true };
        match self.replan {
            _ if urgent => observation > last,
            Replan::After(actions) => {
                observation - last >= actions as i64 * self.action_period - self.action_period / 2
            }
            Replan::Every(_) => observation >= self.next,
            Replan::Always => observation > last,
        }
    }

    /// What the last prediction of a policy with cameras was made from, `[To, F + O]`; empty otherwise, and if encoding
    /// failed.
    pub fn condition(&self) -> &[f32] {
        if self.policy().cameras.is_empty() { &[] } else { &self.condition }
    }

    /// Encodes the newest images of a window that is not predicted from, if the next prediction will look at them again.
    pub fn glance(&mut self, window: &Window) {
        let cameras = self.policy().cameras.len();
        if cameras > 0 && self.is_due(window.time + self.action_period, false) {
            let newest = &window.images[window.images.len().saturating_sub(cameras)..];
            let frames: Vec<Frame<'_>> = newest.iter().map(frame).collect();
            self.rungs[0].policy.glance(&frames);
        }
    }

    /// Predicts a chunk from a window. All predicted actions from the observation on are in it, so that there is
    /// something to coast on. The chunk before is executed until `committed`, when this one is expected to be ready;
    /// `None` if nothing is being executed. `out.ready` is left to the caller.
    pub fn plan(
        &mut self,
        window: &Window,
        committed: Option<Time>,
        out: &mut Chunk,
    ) -> Result<(), PlanError> {
        let frames: Vec<Frame<'_>> = window.images.iter().map(frame).collect();
        // The ladder's first policy looks for all of them.
        let looked = self.rungs[0].policy.look(&window.values, &frames, &mut self.condition);
        self.predict(window.time, looked.map_err(PlanError::from), committed, out)
    }

    /// The same from a recording: where there are cameras, from what the encoders had made of their images.
    pub fn plan_again(
        &mut self,
        window: &Window,
        condition: &[f32],
        committed: Option<Time>,
        out: &mut Chunk,
    ) -> Result<(), PlanError> {
        if self.policy().cameras.is_empty() {
            return self.plan(window, committed, out);
        }
        self.condition.clear();
        self.condition.extend_from_slice(condition);
        self.predict(window.time, Ok(()), committed, out)
    }

    /// Predicts from the condition, if there is one.
    fn predict(
        &mut self,
        time: Time,
        looked: Result<(), PlanError>,
        committed: Option<Time>,
        out: &mut Chunk,
    ) -> Result<(), PlanError> {
        self.planned = Some(time);
        if let Replan::Every(span) = self.replan {
            // From due time to due time, unless a whole span was missed.
            let on_time = committed.is_some() && time - self.next < span;
            self.next = if on_time { self.next } else { time } + span;
        }
        noise::fill(self.seed, self.episode, self.draws, &mut self.noise);
        self.draws += 1;
        if committed.is_none() {
            self.joiner.forget();
        }
        if self.joiner.inpaints() {
            self.joiner.known(time, self.first, committed.unwrap_or(time), &mut self.known);
        }
        looked?;
        let policy = &mut self.rungs[self.ladder.at()].policy;
        if self.joiner.inpaints() {
            policy.know(&self.known)?;
        }
        policy.denoise(&self.condition, &self.noise, &mut self.prediction)?;
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
        out.observation = time;
        out.action_period = self.action_period;
        out.steps = self.steps;
        self.joiner.join(out);
        Ok(())
    }
}

fn frame(seen: &Snapshot) -> Frame<'_> {
    Frame { stamp: seen.time.nanos(), image: seen.pixels.image() }
}
