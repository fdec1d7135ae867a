//! One joint's setpoint: follows a goal and never breaks a limit.
//!
//! [`Joint::advance`] is one control tick of fixed length. Whatever the goal: the setpoint moves by at most
//! `velocity · tick`, its velocity changes by at most `acceleration · tick`, and it stays between the position limits
//! because its speed is never more than it can brake away before the limit. A setpoint that begins outside the limits
//! (a joint pushed there by hand) moves only inwards.
//!
//! The speed towards a goal at distance `d` is the largest from which constant braking, tick by tick, still ends on
//! the goal. With `u = deceleration · tick²` and `k` whole ticks of braking after this one:
//! `k = ⌊(√(1 + 8d/u) − 1) / 2⌋`, `v = (d + u·k(k+1)/2) / ((k+1)·tick)`.

/// Fraction of the acceleration planned for braking, so that rounding never asks for more than all of it.
const BRAKING: f32 = 0.95;
/// Fraction of the acceleration used at all, so that rounding stays inside the limit.
const ACCELERATING: f32 = 0.999;

/// What a joint may do. All required, all finite: there is no unlimited default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JointLimits {
    /// Lowest position, rad.
    pub position_min: f32,
    /// Highest position, rad.
    pub position_max: f32,
    /// Highest speed, rad/s.
    pub velocity: f32,
    /// Highest acceleration, rad/s².
    pub acceleration: f32,
    /// Farthest the measured position may be from the setpoint, rad.
    pub following_error: f32,
}

impl JointLimits {
    /// Whether all limits are finite, the range is not empty and the rest is positive.
    pub fn is_sound(&self) -> bool {
        let positive = |value: f32| value.is_finite() && value > 0.0;
        self.position_min.is_finite()
            && self.position_max.is_finite()
            && self.position_min < self.position_max
            && positive(self.velocity)
            && positive(self.acceleration)
            && positive(self.following_error)
    }

    /// `position` moved between the position limits.
    pub fn clamp(&self, position: f32) -> f32 {
        position.max(self.position_min).min(self.position_max)
    }
}

/// Where a joint's setpoint shall go in a tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// Stand still, as soon as the acceleration allows.
    Stop,
    /// Be at `position` (rad) at the end of this tick, moving at `velocity` (rad/s).
    Track {
        /// rad.
        position: f32,
        /// rad/s.
        velocity: f32,
    },
}

/// A joint's setpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Joint {
    /// rad.
    pub position: f32,
    /// rad/s.
    pub velocity: f32,
}

impl Joint {
    /// Moves the setpoint by one tick of `tick_s` seconds, at no more than `speed` (0 to 1) of the speed limit.
    pub fn advance(&mut self, goal: Goal, limits: &JointLimits, speed: f32, tick_s: f32) {
        // A position of this size is rounded by up to this much; the step must stay in the limit after rounding.
        let rounding = self.position.abs() * f32::EPSILON / tick_s;
        let top = (limits.velocity - rounding).max(0.0);
        let deceleration = BRAKING * limits.acceleration;
        let wanted = match goal {
            Goal::Stop => 0.0,
            Goal::Track { position, velocity } => {
                let distance = limits.clamp(position) - self.position - velocity * tick_s;
                velocity + fastest(distance.abs(), deceleration, tick_s).copysign(distance)
            }
        };
        let cruise = top * speed;
        let wanted = wanted.max(-cruise).min(cruise);
        let up = fastest((limits.position_max - self.position).max(0.0), deceleration, tick_s);
        let down = fastest((self.position - limits.position_min).max(0.0), deceleration, tick_s);
        let wanted = wanted.max(-down).min(up);
        let change = ACCELERATING * limits.acceleration * tick_s;
        let velocity = wanted.max(self.velocity - change).min(self.velocity + change).max(-top).min(top);
        let lowest = limits.position_min.min(self.position);
        let highest = limits.position_max.max(self.position);
        self.position = (self.position + velocity * tick_s).max(lowest).min(highest);
        self.velocity = velocity;
    }
}

/// The largest speed from which braking by `deceleration` ends within `distance` ≥ 0, this tick's travel included.
fn fastest(distance: f32, deceleration: f32, tick_s: f32) -> f32 {
    let unit = deceleration * tick_s * tick_s;
    let ticks = ((libm::sqrtf(1.0 + 8.0 * distance / unit) - 1.0) * 0.5) as u32 as f32;
    (distance + unit * ticks * (ticks + 1.0) * 0.5) / ((ticks + 1.0) * tick_s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TICK_S: f32 = 0.001;
    const LIMITS: JointLimits = JointLimits {
        position_min: -1.5,
        position_max: 2.0,
        velocity: 2.0,
        acceleration: 20.0,
        following_error: 0.2,
    };

    #[test]
    fn tracks_a_feasible_path_exactly_and_lands_without_overshoot() {
        let mut joint = Joint::default();
        let mut farthest = 0.0f32;
        for tick in 1..3000 {
            let time = tick as f32 * TICK_S;
            let (position, velocity) = (0.2 * (1.0 - (2.0 * time).cos()), 0.4 * (2.0 * time).sin());
            joint.advance(Goal::Track { position, velocity }, &LIMITS, 1.0, TICK_S);
            farthest = farthest.max((joint.position - position).abs());
        }
        assert!(farthest < 1e-3, "{farthest}");
        let mut joint = Joint::default();
        let mut ticks = 0;
        while (joint.position, joint.velocity) != (1.0, 0.0) && ticks < 2000 {
            joint.advance(Goal::Track { position: 1.0, velocity: 0.0 }, &LIMITS, 1.0, TICK_S);
            assert!(joint.position <= 1.0);
            ticks += 1;
        }
        // 1 rad at 2 rad/s with 0.1 s to reach it and a little more to brake: 0.6 s is the shortest.
        assert!((600..620).contains(&ticks), "{ticks}");
    }

    #[test]
    fn a_joint_outside_its_limits_moves_inwards_without_a_step() {
        let mut joint = Joint { position: 2.5, velocity: 0.0 };
        for _ in 0..2000 {
            let before = joint;
            joint.advance(Goal::Track { position: 9.0, velocity: 5.0 }, &LIMITS, 1.0, TICK_S);
            assert!(joint.position <= before.position && before.position - joint.position <= 2.0 * TICK_S);
        }
        joint.advance(Goal::Stop, &LIMITS, 1.0, TICK_S);
        let mut joint = Joint { position: 2.5, velocity: 0.0 };
        for _ in 0..2000 {
            joint.advance(Goal::Track { position: 1.0, velocity: 0.0 }, &LIMITS, 1.0, TICK_S);
        }
        assert!((joint.position - 1.0).abs() < 1e-6);
    }

    fn goals() -> impl Strategy<Value = Goal> {
        let wild = prop_oneof![-3.0f32..3.0, -1e30f32..1e30, Just(f32::MAX), Just(0.0)];
        prop_oneof![
            1 => Just(Goal::Stop),
            4 => (wild.clone(), wild).prop_map(|(position, velocity)| Goal::Track { position, velocity }),
        ]
    }

    proptest! {
        #[test]
        fn no_goal_breaks_a_limit(
            goals in proptest::collection::vec((goals(), 1..400u32, 0.0f32..=1.0), 1..20),
            tick_us in prop_oneof![Just(1000.0f32), Just(500.0), Just(10_000.0)],
            acceleration in 1.0f32..200.0,
        ) {
            let tick_s = tick_us * 1e-6;
            let limits = JointLimits { acceleration, ..LIMITS };
            let mut joint = Joint::default();
            for (goal, ticks, speed) in goals {
                for _ in 0..ticks {
                    let before = joint;
                    joint.advance(goal, &limits, speed, tick_s);
                    prop_assert!((joint.position - before.position).abs() <= limits.velocity * tick_s);
                    prop_assert!((joint.velocity - before.velocity).abs() <= acceleration * tick_s);
                    prop_assert!((limits.position_min..=limits.position_max).contains(&joint.position));
                    // The position moved by what the velocity says: it was not cut off at the limit.
                    let moved = (joint.position - before.position) / tick_s;
                    prop_assert!((moved - joint.velocity).abs() <= 4.0 * f32::EPSILON * 2.0 / tick_s);
                }
            }
        }
    }
}
