//! The buffered chunk, and where it says a joint shall be at a time.
//!
//! Positions are linear between points. Before point 0 is due they go linearly from where the setpoint was when the
//! chunk came to point 0; after the last point they stay at it. One chunk is kept: the newest wins.

use super::motion::JointLimits;
use crate::wire::{CommandView, MAX_JOINTS, MAX_VALUES};

/// A chunk, limited to the joints' ranges when loaded.
#[derive(Clone, Debug)]
pub struct Trajectory {
    joints: usize,
    points: usize,
    loaded_us: u64,
    start_us: u64,
    step_us: u64,
    origin: [f32; MAX_JOINTS],
    values: [f32; MAX_VALUES],
}

/// A place on the path: `fraction` of the way from one row of positions to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// Index of the first value of the row before, or the origin.
    from: Option<usize>,
    /// Index of the first value of the row after.
    to: usize,
    /// 0 to 1.
    fraction: f32,
}

impl Default for Trajectory {
    fn default() -> Self {
        Self::new()
    }
}

impl Trajectory {
    /// Holds nothing; every position is 0 until a chunk is loaded.
    pub const fn new() -> Self {
        Self {
            joints: 0,
            points: 1,
            loaded_us: 0,
            start_us: 0,
            step_us: 1,
            origin: [0.0; MAX_JOINTS],
            values: [0.0; MAX_VALUES],
        }
    }

    /// Replaces the chunk. `origin` are the setpoints at `now_us`.
    pub fn load<T: AsRef<[u8]>>(
        &mut self,
        now_us: u64,
        origin: [f32; MAX_JOINTS],
        command: &CommandView<T>,
        limits: &[JointLimits; MAX_JOINTS],
    ) {
        self.joints = command.header().joint_count();
        self.points = usize::from(command.points());
        self.loaded_us = now_us;
        self.start_us = command.start_us();
        self.step_us = u64::from(command.step_us());
        self.origin = origin;
        let used = self.joints.saturating_mul(self.points);
        let limits = limits.iter().take(self.joints).cycle();
        for ((index, value), limit) in self.values.iter_mut().take(used).enumerate().zip(limits) {
            *value = limit.clamp(command.value(index));
        }
    }

    /// The place on the path at `at_us`, device clock.
    pub fn locate(&self, at_us: u64) -> Place {
        let last = self.points.saturating_sub(1).saturating_mul(self.joints);
        if at_us < self.start_us {
            let whole = self.start_us.saturating_sub(self.loaded_us);
            let done = at_us.saturating_sub(self.loaded_us);
            return Place { from: None, to: 0, fraction: ratio(done, whole) };
        }
        let since = at_us.saturating_sub(self.start_us);
        let (index, rest) = match (since.checked_div(self.step_us), since.checked_rem(self.step_us)) {
            (Some(index), Some(rest)) => (usize::try_from(index).unwrap_or(usize::MAX), rest),
            _ => (usize::MAX, 0),
        };
        let from = index.saturating_mul(self.joints).min(last);
        let to = from.saturating_add(self.joints).min(last);
        Place { from: Some(from), to, fraction: ratio(rest, self.step_us) }
    }

    /// Where `joint` shall be at a place, rad.
    pub fn position(&self, place: Place, joint: usize) -> f32 {
        let value = |row: usize| self.values.get(row.saturating_add(joint)).copied().unwrap_or(0.0);
        let from = match place.from {
            Some(row) => value(row),
            None => self.origin.get(joint).copied().unwrap_or(0.0),
        };
        from + (value(place.to) - from) * place.fraction
    }
}

/// `part / whole` between 0 and 1; 1 when `whole` is 0.
fn ratio(part: u64, whole: u64) -> f32 {
    if part >= whole { 1.0 } else { part as f32 / whole as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::example;

    const LIMITS: JointLimits = JointLimits {
        position_min: -2.0,
        position_max: 1.0,
        velocity: 1.0,
        acceleration: 1.0,
        following_error: 1.0,
    };

    /// The worked example: (0.5, -1.0) at 1.000 s, (0.25, 1.5 limited to 1.0) at 1.020 s.
    #[test]
    fn is_linear_between_points_and_stays_at_the_last() {
        let view = CommandView::new_checked(example::COMMAND_BYTES).unwrap();
        let mut origin = [0.0; MAX_JOINTS];
        origin[0] = 0.1;
        let mut trajectory = Trajectory::new();
        trajectory.load(990_000, origin, &view, &[LIMITS; MAX_JOINTS]);
        let at = |us| {
            let place = trajectory.locate(us);
            (trajectory.position(place, 0), trajectory.position(place, 1))
        };
        assert_eq!(at(0), (0.1, 0.0));
        assert_eq!(at(990_000), (0.1, 0.0));
        assert_eq!(at(995_000), (0.3, -0.5));
        assert_eq!(at(1_000_000), (0.5, -1.0));
        assert_eq!(at(1_010_000), (0.375, 0.0));
        assert_eq!(at(1_020_000), (0.25, 1.0));
        assert_eq!(at(1_030_000), (0.25, 1.0));
        assert_eq!(at(u64::MAX), (0.25, 1.0));
    }
}
