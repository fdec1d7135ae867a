//! The safety gate: the last thing every command passes, every tick.
//!
//! The gate owns what is commanded. It starts at rest where the robot was measured and moves toward a target by at most
//! what the limits allow, so the first action is reached by a ramp and not by a jump. It checks, in this order: that there
//! is a target, the age of the observation, the age of the chunk, that every number is finite, that the target lies in
//! the workspace and in the joints' ranges. What it does not like it brakes for; it never passes it on, and it counts it by
//! name.
//!
//! Guarantees, per joint and tick, up to rounding: the command is finite; it is inside the position range and the
//! workspace; consecutive commands differ by at most `velocity * period`; consecutive velocities by at most
//! `acceleration * period`; and from any state the command can be brought to rest without leaving the range. They
//! hold because a speed is only allowed if braking from it, tick by tick, ends before the range does.
//!
//! Pure and bounded: no clock, no allocation after [`Gate::new`], one pass over the joints.

use crate::clock::{self, Nanos, Time};
use crate::control::ControlConfig;

/// Joints that one robot may have.
pub const MAX_JOINTS: usize = 64;

/// One number per joint; those past the robot's joints are 0.
pub type Joints = [f64; MAX_JOINTS];

/// What a joint's numbers mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Positions; to hold is to brake and stay.
    Position,
    /// Velocities; to hold is to ramp to 0. The position range does not apply.
    Velocity,
    /// One of two values, the ends of the position range, such as a gripper's; to hold is to keep it. Velocity and
    /// acceleration do not apply.
    Discrete {
        /// At most this is the low value.
        below: f64,
        /// At least this is the high value; between the two, the value before stands.
        above: f64,
    },
}

/// One joint's limits, in the units u of its actions and seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// What the joint's numbers mean.
    pub kind: Kind,
    /// Lowest and highest position, u; of [`Kind::Discrete`], the two values.
    pub position: [f64; 2],
    /// Largest speed, u/s (for [`Kind::Velocity`] the largest command).
    pub velocity: f64,
    /// Largest acceleration, u/s^2 (for [`Kind::Velocity`] the largest change of the command per second).
    pub acceleration: f64,
}

/// What happens to a target outside the position range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// The nearest position inside is the target.
    Clamp,
    /// The robot holds.
    Hold,
}

/// The box that some position joints together stay in, such as the x, y and z of a tool. It narrows their position
/// ranges, so that whatever holds for those holds for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Workspace {
    /// Joints, each with the box's lowest and highest position there, u.
    pub axes: Vec<(usize, [f64; 2])>,
    /// What happens to targets outside the box.
    pub outside: Outside,
}

impl Workspace {
    /// No box.
    pub const ANYWHERE: Self = Self { axes: Vec::new(), outside: Outside::Hold };

    fn has(&self, target: &[f64]) -> bool {
        self.axes.iter().all(|(joint, [low, high])| (*low..=*high).contains(&target[*joint]))
    }
}

/// What the gate is asked to pass.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Where to go, one number per joint; `None` asks to hold.
    pub target: Option<&'a [f64]>,
    /// When the newest observation was made.
    pub observation: Time,
    /// When the observation was made that the target was computed from.
    pub chunk: Time,
}

/// What the gate did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It moved toward the target, by as much as the limits allow.
    Followed,
    /// It braked or holds, for this reason.
    Held(Reason),
}

/// Why the gate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no target.
    NoTarget,
    /// The newest observation is too old.
    StaleObservation,
    /// The chunk's observation is too old.
    StaleChunk,
    /// A number of the target is NaN or infinite.
    NonFinite,
    /// The target lies outside the position range, and the robot holds then.
    Outside,
    /// The target lies outside the workspace, and the robot holds then.
    Workspace,
    /// The target has not as many numbers as the robot has joints.
    WrongSize,
}

/// How often each limit shaped a command, in joint-ticks, and each reason held it, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateCounts {
    /// Targets outside the position range.
    pub position: u64,
    /// Targets outside the workspace, in ticks, whether held or clamped.
    pub workspace: u64,
    /// Commands slowed by the velocity limit.
    pub velocity: u64,
    /// Commands slowed or stretched by the acceleration limit.
    pub acceleration: u64,
    /// Ticks held for [`Reason::StaleObservation`].
    pub stale_observation: u64,
    /// Ticks held for [`Reason::StaleChunk`].
    pub stale_chunk: u64,
    /// Ticks held for [`Reason::NonFinite`].
    pub non_finite: u64,
    /// Ticks held for [`Reason::Outside`].
    pub outside: u64,
    /// Ticks held for [`Reason::WrongSize`].
    pub wrong_size: u64,
}

/// Why the gate could not start where the robot is.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum EngageError {
    /// A number is missing, NaN or infinite.
    #[error("joint {joint}: expected a finite measured position; check the observation's mapping")]
    NotMeasured {
        /// Index of the joint.
        joint: usize,
    },
    /// The robot is outside the range, by more than one tick can mend.
    #[error(
        "joint {joint} is at {measured}, outside {low} to {high}; move the robot back into its range by hand"
    )]
    OutsideRange {
        /// Index of the joint.
        joint: usize,
        /// Where it is.
        measured: f64,
        /// Lowest position.
        low: f64,
        /// Highest position.
        high: f64,
    },
}

/// The gate, with what it commanded last.
#[derive(Clone, Debug)]
pub struct Gate {
    limits: Vec<Limits>,
    outside: Outside,
    workspace: Workspace,
    max_observation_age: Nanos,
    max_chunk_age: Nanos,
    period_s: f64,
    /// The last command, u (for velocity joints u/s).
    command: Joints,
    /// The last command's rate of change, u/s; unused for velocity joints.
    velocity: Joints,
    counts: GateCounts,
}

impl Gate {
    /// A gate at rest at 0; call [`Gate::engage`] before anything is sent.
    ///
    /// # Panics
    /// With more than [`MAX_JOINTS`] joints.
    pub fn new(
        limits: &[Limits],
        outside: Outside,
        max_observation_age: Nanos,
        max_chunk_age: Nanos,
        period: Nanos,
    ) -> Self {
        assert!(limits.len() <= MAX_JOINTS, "{} joints, at most {MAX_JOINTS}", limits.len());
        Self {
            limits: limits.to_vec(),
            outside,
            workspace: Workspace::ANYWHERE,
            max_observation_age,
            max_chunk_age,
            period_s: clock::seconds(period),
            command: [0.0; MAX_JOINTS],
            velocity: [0.0; MAX_JOINTS],
            counts: GateCounts::default(),
        }
    }

    /// The gate of a control loop.
    pub fn for_control(config: &ControlConfig) -> Self {
        Self::new(
            &config.limits,
            config.outside,
            config.max_observation_age,
            config.max_chunk_age,
            config.period,
        )
        .within(&config.workspace)
    }

    /// The same gate inside a box.
    pub fn within(mut self, workspace: &Workspace) -> Self {
        for (joint, [low, high]) in &workspace.axes {
            let position = &mut self.limits[*joint].position;
            *position = [position[0].max(*low), position[1].min(*high)];
        }
        self.workspace = workspace.clone();
        self
    }

    /// A gate with the same limits that commanded `command` last, at `rates`.
    pub fn resumed(&self, command: &Joints, rates: &Joints) -> Self {
        Self { command: *command, velocity: *rates, counts: GateCounts::default(), ..self.clone() }
    }

    /// Starts at rest where the robot is. A joint that is outside its range by no more than one tick's motion starts at
    /// the end of its range.
    pub fn engage(&mut self, measured: &[f64]) -> Result<(), EngageError> {
        let mut start = [0.0; MAX_JOINTS];
        for (joint, limits) in self.limits.iter().enumerate() {
            if limits.kind == Kind::Velocity {
                continue;
            }
            let [low, high] = limits.position;
            let measured = *measured.get(joint).ok_or(EngageError::NotMeasured { joint })?;
            if !measured.is_finite() {
                return Err(EngageError::NotMeasured { joint });
            }
            if let Kind::Discrete { .. } = limits.kind {
                start[joint] = if measured - low < high - measured { low } else { high };
                continue;
            }
            start[joint] = measured.clamp(low, high);
            let mendable = limits.velocity.min(limits.acceleration * self.period_s) * self.period_s;
            if (start[joint] - measured).abs() > mendable {
                return Err(EngageError::OutsideRange { joint, measured, low, high });
            }
        }
        self.command = start;
        self.velocity = [0.0; MAX_JOINTS];
        Ok(())
    }

    /// The robot is somebody else's: nothing of ours moves any more.
    pub fn let_go(&mut self) {
        self.velocity = [0.0; MAX_JOINTS];
        for (command, limits) in self.command.iter_mut().zip(&self.limits) {
            if limits.kind == Kind::Velocity {
                *command = 0.0;
            }
        }
    }

    /// One tick: toward the target if all is well, else braking.
    pub fn pass(&mut self, now: Time, request: &Request<'_>) -> Verdict {
        match self.judge(now, request) {
            Ok(target) => {
                self.counts.workspace += u64::from(!self.workspace.has(target));
                for (joint, target) in target.iter().enumerate() {
                    self.follow(joint, *target);
                }
                Verdict::Followed
            }
            Err(reason) => {
                self.count(reason);
                self.brake();
                Verdict::Held(reason)
            }
        }
    }

    /// What is commanded, one number per joint.
    pub fn command(&self) -> &Joints {
        &self.command
    }

    /// How fast the command changes, one number per position joint, u/s.
    pub fn rates(&self) -> &Joints {
        &self.velocity
    }

    /// Joints of this robot.
    pub fn joints(&self) -> usize {
        self.limits.len()
    }

    /// Whether nothing moves.
    pub fn at_rest(&self) -> bool {
        self.limits.iter().enumerate().all(|(joint, limits)| match limits.kind {
            Kind::Position => self.velocity[joint] == 0.0,
            Kind::Velocity => self.command[joint] == 0.0,
            Kind::Discrete { .. } => true,
        })
    }

    /// How often each check and limit spoke.
    pub fn counts(&self) -> &GateCounts {
        &self.counts
    }

    fn judge<'a>(&self, now: Time, request: &Request<'a>) -> Result<&'a [f64], Reason> {
        let target = request.target.ok_or(Reason::NoTarget)?;
        if now - request.observation > self.max_observation_age {
            return Err(Reason::StaleObservation);
        }
        if now - request.chunk > self.max_chunk_age {
            return Err(Reason::StaleChunk);
        }
        if target.len() != self.limits.len() {
            return Err(Reason::WrongSize);
        }
        if !target.iter().all(|value| value.is_finite()) {
            return Err(Reason::NonFinite);
        }
        let outside = |(value, limits): (&f64, &Limits)| {
            limits.kind == Kind::Position && !(limits.position[0]..=limits.position[1]).contains(value)
        };
        if self.workspace.outside == Outside::Hold && !self.workspace.has(target) {
            return Err(Reason::Workspace);
        }
        if self.outside == Outside::Hold && target.iter().zip(&self.limits).any(outside) {
            return Err(Reason::Outside);
        }
        Ok(target)
    }

    fn count(&mut self, reason: Reason) {
        let counts = &mut self.counts;
        match reason {
            Reason::NoTarget => {}
            Reason::StaleObservation => counts.stale_observation += 1,
            Reason::StaleChunk => counts.stale_chunk += 1,
            Reason::NonFinite => counts.non_finite += 1,
            Reason::Outside => counts.outside += 1,
            Reason::Workspace => counts.workspace += 1,
            Reason::WrongSize => counts.wrong_size += 1,
        }
    }

    fn follow(&mut self, joint: usize, target: f64) {
        let limits = self.limits[joint];
        let change = limits.acceleration * self.period_s;
        match limits.kind {
            Kind::Velocity => {
                let command = self.command[joint];
                let wanted = target.clamp(-limits.velocity, limits.velocity);
                let given = wanted.clamp(command - change, command + change);
                self.counts.velocity += u64::from(wanted != target);
                self.counts.acceleration += u64::from(given != wanted);
                self.command[joint] = given;
            }
            Kind::Discrete { below, above } => {
                if target <= below {
                    self.command[joint] = limits.position[0];
                } else if target >= above {
                    self.command[joint] = limits.position[1];
                }
            }
            Kind::Position => {
                let (at, speed) = (self.command[joint], self.velocity[joint]);
                let [low, high] = limits.position;
                let goal = target.clamp(low, high);
                let distance = goal - at;
                let fastest = stopping_speed(distance.abs(), change, self.period_s);
                let wanted = fastest.min(limits.velocity).copysign(distance);
                // Goals lie inside the range, so the speed before could be braked inside it: slowing by `change` is enough.
                let given = wanted.clamp(speed - change, speed + change);
                self.counts.position += u64::from(goal != target);
                self.counts.velocity += u64::from(fastest > limits.velocity);
                // One tick from here to the goal, and to rest there in the next.
                let direct = distance.abs() / self.period_s;
                self.counts.acceleration += u64::from(given != wanted || fastest != direct);
                self.moved(joint, given);
                if given == direct.copysign(distance) {
                    self.command[joint] = goal;
                }
            }
        }
    }

    fn brake(&mut self) {
        for joint in 0..self.limits.len() {
            let limits = self.limits[joint];
            let change = limits.acceleration * self.period_s;
            let slowed = |v: f64| if v.abs() <= change { 0.0 } else { v - change.copysign(v) };
            match limits.kind {
                Kind::Velocity => self.command[joint] = slowed(self.command[joint]),
                Kind::Position => self.moved(joint, slowed(self.velocity[joint])),
                Kind::Discrete { .. } => {}
            }
        }
    }

    fn moved(&mut self, joint: usize, velocity: f64) {
        let [low, high] = self.limits[joint].position;
        self.command[joint] = (self.command[joint] + velocity * self.period_s).clamp(low, high);
        self.velocity[joint] = velocity;
    }
}

/// The largest speed, u/s, from which braking by `change` u/s per tick, this tick's motion included, covers no more than
/// `room` u.
///
/// With R = room / (change * period) the ticks' motions, n = the whole ticks of braking, sum to
/// `(n + 1) v - n (n + 1) / 2` in units of `change * period`; solved for v on the piece where
/// n (n + 1) / 2 <= R < (n + 1)(n + 2) / 2.
fn stopping_speed(room: f64, change: f64, period_s: f64) -> f64 {
    let room = room.max(0.0);
    let in_units = room / (change * period_s);
    if in_units < 1.0 {
        return room / period_s;
    }
    let n = (((1.0 + 8.0 * in_units).sqrt() - 1.0) / 2.0).floor();
    change * (in_units / (n + 1.0) + n / 2.0)
}

#[cfg(test)]
#[path = "safety_tests.rs"]
mod tests;
