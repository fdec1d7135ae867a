//! How one chunk follows another.
//!
//! | mode | what the new chunk is |
//! | --- | --- |
//! | `switch` | what was predicted |
//! | `ensemble` | at every action's time, the weighted mean of all chunks that reach so far (Zhao et al. 2023, ACT) |
//! | `inpaint` | predicted with the actions that the old chunk is committed to until this one is ready as known (and, where actions are interpolated, the one that is on the way then, so that the motion goes on from where it is): they are imposed, noised, at every denoising step, and the rest of the trajectory is denoised to join them |
//!
//! Pure; allocates only when made. Times that fall between two actions of an older chunk are interpolated linearly.

use std::collections::VecDeque;

use crate::chunk::{Chunk, Interpolation, Path};
use crate::clock::Time;
use crate::policy::Known;
use crate::pose::Mean;
use crate::safety::MAX_JOINTS;

/// The modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "mode")]
pub enum Join {
    /// The newest chunk as it is.
    #[default]
    Switch,
    /// The mean of all chunks, the i-th oldest with weight `exp(-decay i)`.
    Ensemble {
        /// 0 weighs all alike; below 0 the newest counts most.
        #[serde(default = "default_decay")]
        decay: f64,
    },
    /// The newest chunk, denoised to follow what is committed.
    Inpaint,
}

/// As in ACT.
fn default_decay() -> f64 {
    0.01
}

/// Joins chunks.
#[derive(Debug)]
pub struct Joiner {
    join: Join,
    path: Path,
    /// Whether the robot is between two actions, on the way to the second.
    interpolated: bool,
    /// Older chunks, the oldest first: predictions of an ensemble, else the last one handed out.
    past: VecDeque<Chunk>,
    spare: Vec<Chunk>,
}

impl Joiner {
    /// For chunks as large as `blank`.
    pub fn new(join: Join, executed: &Path, blank: &Chunk) -> Self {
        // More than these never reach as far as the newest observation.
        let kept =
            if let Join::Ensemble { .. } = join { blank.actions.len() / blank.joints.max(1) } else { 1 };
        let path = Path { interpolation: Interpolation::Linear, ..executed.clone() };
        let interpolated = executed.interpolation != Interpolation::Hold;
        Self {
            join,
            path,
            interpolated,
            past: VecDeque::with_capacity(kept),
            spare: vec![blank.clone(); kept],
        }
    }

    /// Whether predictions are made with known actions.
    pub fn inpaints(&self) -> bool {
        self.join == Join::Inpaint
    }

    /// What came before is not being executed.
    pub fn forget(&mut self) {
        self.spare.extend(self.past.drain(..));
    }

    /// Which actions of a trajectory are known, of those that the last chunk has: those before `committed` and, when
    /// interpolated, the one after. Token i of the trajectory
    /// stands for `observation + (i - first) * action period`.
    pub fn known(&self, observation: Time, first: usize, committed: Time, out: &mut Known) {
        out.tokens.fill(false);
        let Some(last) = self.past.back() else { return };
        let size = last.joints;
        let end = if self.interpolated { committed + last.action_period } else { committed };
        for (token, row) in out.actions.chunks_mut(size).enumerate() {
            let time = observation + (token as i64 - first as i64) * last.action_period;
            if time >= end || time < last.observation {
                continue;
            }
            if let Some((_, action)) = last.at(time, &self.path) {
                out.tokens[token] = true;
                row.iter_mut().zip(action).for_each(|(slot, value)| *slot = value as f32);
            }
        }
    }

    /// Makes the predicted `chunk` the one to execute.
    pub fn join(&mut self, chunk: &mut Chunk) {
        if let Join::Ensemble { decay } = self.join {
            while self.past.front().is_some_and(|old| old.index(chunk.observation) >= old.steps) {
                self.spare.extend(self.past.pop_front());
            }
            self.keep(chunk);
            self.average(decay, chunk);
        } else {
            self.keep(chunk);
        }
    }

    fn keep(&mut self, chunk: &Chunk) {
        let slot = self.spare.pop().or_else(|| self.past.pop_front());
        if let Some(mut slot) = slot {
            slot.copy_from(chunk);
            self.past.push_back(slot);
        }
    }

    fn average(&self, decay: f64, out: &mut Chunk) {
        for step in 0..out.steps {
            let time = out.observation + step as i64 * out.action_period;
            let mut sum = [0.0; MAX_JOINTS];
            let mut total = 0.0;
            let said = || self.past.iter().filter_map(|chunk| chunk.at(time, &self.path));
            let weight = |i: usize| (-decay * i as f64).exp();
            for (i, (_, action)) in said().enumerate() {
                total += weight(i);
                sum.iter_mut().zip(action).for_each(|(sum, value)| *sum += weight(i) * value);
            }
            sum.iter_mut().for_each(|sum| *sum /= total);
            for rotation in &self.path.rotations {
                let mut mean = Mean::default();
                said().enumerate().for_each(|(i, (_, action))| mean.add(rotation, weight(i), &action));
                mean.write(rotation, &mut sum);
            }
            out.actions[step * out.joints..(step + 1) * out.joints].copy_from_slice(&sum[..out.joints]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: i64 = 100;

    /// Three actions of one joint.
    fn chunk(at: i64, actions: [f64; 3]) -> Chunk {
        Chunk {
            sequence: 1,
            observation: Time::from_nanos(at),
            steps: 3,
            actions: actions.to_vec(),
            ..Chunk::none(3, 1, PERIOD)
        }
    }

    fn joined(joiner: &mut Joiner, at: i64, actions: [f64; 3]) -> Vec<f64> {
        let mut new = chunk(at, actions);
        joiner.join(&mut new);
        new.actions
    }

    fn close(got: &[f64], expected: [f64; 3]) {
        assert!(
            got.iter().zip(expected).all(|(g, e)| (g - e).abs() < 1e-12),
            "{got:?}, expected {expected:?}"
        );
    }

    #[test]
    fn a_switch_takes_what_was_predicted() {
        let mut joiner = Joiner::new(Join::Switch, &Interpolation::Hold.into(), &chunk(0, [0.0; 3]));
        joined(&mut joiner, 0, [1.0, 2.0, 3.0]);
        assert_eq!(joined(&mut joiner, 100, [9.0, 8.0, 7.0]), [9.0, 8.0, 7.0]);
    }

    #[test]
    fn an_ensemble_weighs_the_oldest_most() {
        let decay = 2f64.ln();
        let mut joiner =
            Joiner::new(Join::Ensemble { decay }, &Interpolation::Hold.into(), &chunk(0, [0.0; 3]));
        close(&joined(&mut joiner, 0, [1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]);
        // At 100: 2 and 5 with weights 1 and 1/2; at 200: 3 and 6; at 300 only the new one.
        close(&joined(&mut joiner, 100, [5.0, 6.0, 7.0]), [3.0, 4.0, 7.0]);
        // At 200: 3, 6, 10 with 1, 1/2, 1/4 (predictions, not means, are averaged); at 300: 7, 11 with 1, 1/2.
        close(&joined(&mut joiner, 200, [10.0, 11.0, 12.0]), [8.5 / 1.75, 12.5 / 1.5, 12.0]);
        joiner.forget();
        close(&joined(&mut joiner, 200, [1.0, 1.0, 1.0]), [1.0, 1.0, 1.0]);
    }

    #[test]
    fn what_is_committed_is_known() {
        let mut joiner = Joiner::new(Join::Inpaint, &Interpolation::Hold.into(), &chunk(0, [0.0; 3]));
        let mut known = Known { tokens: vec![true; 4], actions: vec![0.0; 4] };
        joiner.known(Time::from_nanos(50), 1, Time::from_nanos(1000), &mut known);
        assert_eq!(known.tokens, [false; 4], "nothing came before");
        joined(&mut joiner, 0, [1.0, 2.0, 4.0]);
        // Tokens at -50, 50, 150 and 250; committed until 200.
        joiner.known(Time::from_nanos(50), 1, Time::from_nanos(200), &mut known);
        assert_eq!(known.tokens, [false, true, true, false]);
        assert_eq!(known.actions[1..3], [1.5, 3.0]);
        // At 200 a robot that moves from action to action is on the way to the one at 250.
        let mut joiner = Joiner::new(Join::Inpaint, &Interpolation::Cubic.into(), &chunk(0, [0.0; 3]));
        joined(&mut joiner, 0, [1.0, 2.0, 4.0]);
        joiner.known(Time::from_nanos(50), 1, Time::from_nanos(200), &mut known);
        assert_eq!(known.tokens, [false, true, true, true]);
        assert_eq!(known.actions[1..], [1.5, 3.0, 4.0]);
    }
}
