//! The action chunk: what inference hands to control, and what it says at a time.
//!
//! Actions are timed by their observation: action n stands for the period from `observation + n * action period` on. What
//! inference delay made stale is therefore skipped by itself and can never be replayed.

use crate::clock::{Nanos, Time};
use crate::pose::Rotation;
use crate::safety::{Joints, MAX_JOINTS};

/// How the policy's rate becomes the control rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Each action stands for its whole period.
    Hold,
    /// Straight from action n at its time to action n + 1 at its time.
    Linear,
    /// Smoothly through the actions, with the slope at each that its neighbours give (Catmull and Rom, 1974). It may swing
    /// past an action by an eighth of the steps beside it.
    Cubic,
}

/// How actions become one motion.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    /// Number by number.
    pub interpolation: Interpolation,
    /// These numbers together, along the shortest way, unless actions are held.
    pub rotations: Vec<Rotation>,
}

impl From<Interpolation> for Path {
    fn from(interpolation: Interpolation) -> Self {
        Self { interpolation, rotations: Vec::new() }
    }
}

/// One predicted chunk; buffers are made once, at their largest.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// Counts chunks from 1; 0 is no chunk.
    pub sequence: u64,
    /// When the newest observation was made that it was computed from.
    pub observation: Time,
    /// When inference was done.
    pub ready: Time,
    /// Nanoseconds between actions.
    pub action_period: Nanos,
    /// Actions that follow each other, from the observation's time on.
    pub steps: usize,
    /// Joints per action.
    pub joints: usize,
    /// `[steps, joints]`, in the units of the demonstrations; may be longer than that.
    pub actions: Vec<f64>,
}

impl Chunk {
    /// No chunk yet, with room for `steps` actions of `joints` numbers.
    pub fn none(steps: usize, joints: usize, action_period: Nanos) -> Self {
        Self {
            sequence: 0,
            observation: Time::default(),
            ready: Time::default(),
            action_period,
            steps: 0,
            joints,
            actions: vec![0.0; steps * joints],
        }
    }

    /// Becomes `other` without allocating, if it has room.
    pub fn copy_from(&mut self, other: &Self) {
        let actions = std::mem::take(&mut self.actions);
        *self = Self { actions, ..*other };
        self.actions.clear();
        self.actions.extend_from_slice(&other.actions);
    }

    /// Index of the action whose period holds `now`; before the observation, the first.
    pub fn index(&self, now: Time) -> usize {
        usize::try_from((now - self.observation).max(0) / self.action_period).unwrap_or(usize::MAX)
    }

    /// Where to be at `now`, and the action's index; `None` when its last action is over. The last action is kept for its
    /// whole period.
    pub fn at(&self, now: Time, path: &Path) -> Option<(usize, Joints)> {
        let index = self.index(now);
        if index >= self.steps {
            return None;
        }
        let row = |i: usize| &self.actions[i * self.joints..(i + 1) * self.joints];
        let mut target = [0.0; MAX_JOINTS];
        let out = &mut target[..self.joints];
        out.copy_from_slice(row(index));
        if path.interpolation == Interpolation::Hold || index + 1 == self.steps {
            return Some((index, target));
        }
        let (from, to) = (row(index), row(index + 1));
        let into = (now - self.observation).max(0) % self.action_period;
        let share = into as f64 / self.action_period as f64;
        if path.interpolation == Interpolation::Linear {
            for (value, next) in out.iter_mut().zip(to) {
                *value += share * (next - *value);
            }
        } else {
            let (before, after) = (row(index.saturating_sub(1)), row((index + 2).min(self.steps - 1)));
            for (joint, value) in out.iter_mut().enumerate() {
                *value = cubic([before[joint], from[joint], to[joint], after[joint]], share);
            }
        }
        for rotation in &path.rotations {
            rotation.between(from, to, share, out);
        }
        Some((index, target))
    }
}

/// Between the second and the third of four points that follow each other.
fn cubic([before, from, to, after]: [f64; 4], share: f64) -> f64 {
    let (leaving, arriving) = ((to - before) / 2.0, (after - from) / 2.0);
    let (s, way) = (share, to - from);
    from + s * (leaving + s * (3.0 * way - 2.0 * leaving - arriving + s * (leaving + arriving - 2.0 * way)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk() -> Chunk {
        Chunk {
            sequence: 1,
            observation: Time::from_nanos(1_000),
            steps: 3,
            actions: vec![1.0, 10.0, 2.0, 20.0, 4.0, 40.0],
            ..Chunk::none(3, 2, 100)
        }
    }

    fn said(at: i64, interpolation: Interpolation) -> Option<(usize, f64, f64)> {
        let (index, target) = chunk().at(Time::from_nanos(at), &interpolation.into())?;
        Some((index, target[0], target[1]))
    }

    #[test]
    fn actions_are_timed_by_the_observation() {
        assert_eq!(said(900, Interpolation::Hold), Some((0, 1.0, 10.0)));
        assert_eq!(said(1_000, Interpolation::Hold), Some((0, 1.0, 10.0)));
        assert_eq!(said(1_099, Interpolation::Hold), Some((0, 1.0, 10.0)));
        assert_eq!(said(1_100, Interpolation::Hold), Some((1, 2.0, 20.0)));
        assert_eq!(said(1_299, Interpolation::Hold), Some((2, 4.0, 40.0)));
        assert_eq!(said(1_300, Interpolation::Hold), None);
        assert_eq!(said(i64::MAX, Interpolation::Hold), None);
    }

    #[test]
    fn linear_interpolation_joins_the_actions() {
        assert_eq!(said(1_000, Interpolation::Linear), Some((0, 1.0, 10.0)));
        assert_eq!(said(1_125, Interpolation::Linear), Some((1, 2.5, 25.0)));
        assert_eq!(said(1_250, Interpolation::Linear), Some((2, 4.0, 40.0)));
        assert_eq!(said(1_300, Interpolation::Linear), None);
    }

    /// Actions 1, 2, 4: half way from the first to the second, by the public formula
    /// 0.5 (2 p1 + (p2 - p0) t + (2 p0 - 5 p1 + 4 p2 - p3) t^2 + (3 p1 - p0 - 3 p2 + p3) t^3) with p0 = p1 at the start.
    #[test]
    fn cubic_interpolation_is_catmull_and_roms() {
        assert_eq!(said(1_000, Interpolation::Cubic), Some((0, 1.0, 10.0)));
        assert_eq!(said(1_050, Interpolation::Cubic), Some((0, 1.375, 13.75)));
        assert_eq!(said(1_100, Interpolation::Cubic), Some((1, 2.0, 20.0)));
        assert_eq!(said(1_150, Interpolation::Cubic), Some((1, 3.0625, 30.625)));
        assert_eq!(said(1_250, Interpolation::Cubic), Some((2, 4.0, 40.0)));
    }

    #[test]
    fn rotations_take_the_shortest_way() {
        let half = std::f64::consts::FRAC_1_SQRT_2;
        let rotations = vec![Rotation::Quaternion([0, 1, 2, 3])];
        let chunk = Chunk {
            sequence: 1,
            steps: 2,
            actions: vec![0.0, 0.0, 0.0, 1.0, 0.0, 0.0, -half, -half],
            ..Chunk::none(2, 4, 100)
        };
        let path = Path { interpolation: Interpolation::Linear, rotations };
        let (_, at) = chunk.at(Time::from_nanos(50), &path).unwrap();
        let quarter = std::f64::consts::PI / 8.0;
        assert!(
            (at[2] - quarter.sin()).abs() < 1e-12 && (at[3] - quarter.cos()).abs() < 1e-12,
            "{:?}",
            &at[..4]
        );
    }
}
