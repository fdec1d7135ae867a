//! How chunks join: Push-T in virtual time, with inference that takes as long as one says.
//!
//! The control loop ticks at the robot's rate, observations come at the policy's, and a chunk is ready `delay` after the
//! observation that it was predicted from; meanwhile the old one is executed. The plane moves in steps of a tenth of a
//! second toward the command half way through each, as in the demo. A seam is the tick at which a command first comes
//! from another chunk. Its jump is how far the command moves there in one tick; its jerk is the largest third difference of
//! commands, over period cubed, that has this tick in it. The same is measured over all other ticks, for comparison.
//!
//! Pure apart from the policy: no clock, no thread, no bus.

use refrain_pusht::{MAX_STEPS, PushT, RATE_HZ};

use crate::clock::{self, Nanos, Time};
use crate::config::Robot;
use crate::control::{Command, Control, Inputs, Mode, Observed};
use crate::observation::Window;
use crate::planner::{PlanError, Planner};
use crate::policy::Policy;
use crate::safety::MAX_JOINTS;

/// Ticks that a third difference spans.
const SPAN: usize = 4;

/// Jumps and jerks of one kind of tick, in px and px/s^3.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Motion {
    /// Largest of every tick or seam.
    pub jumps: Vec<f64>,
    /// As many.
    pub jerks: Vec<f64>,
}

/// One episode.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ride {
    /// At changes of chunk.
    pub seams: Motion,
    /// At all other ticks.
    pub rest: Motion,
    /// Largest reward, 0 to 1.
    pub score: f64,
    /// Ticks that held for want of an action, after the first chunk.
    pub held: u64,
}

impl Motion {
    fn add(&mut self, jump: f64, jerk: f64) {
        self.jumps.push(jump);
        self.jerks.push(jerk);
    }

    /// Appends another's.
    pub fn extend(&mut self, other: Self) {
        self.jumps.extend(other.jumps);
        self.jerks.extend(other.jerks);
    }
}

/// Runs the episode of `robot.episode`.
pub fn ride(robot: &Robot, policy: Policy, delay: Nanos) -> Result<Ride, PlanError> {
    let mut planner = Planner::new(policy, robot)?;
    let mut control = Control::new(robot.control.clone());
    let mut plane = PushT::new(robot.episode);
    let mut window = Window::none(&robot.intake);
    let mut history = plane.observation().repeat(robot.intake.steps);
    let (mut next, mut current) = (planner.blank(), planner.blank());
    let (mut ready, mut planning) = (Time::default(), false);
    let mut commands: Vec<Command> = Vec::new();
    let step = clock::period(RATE_HZ);
    let ticks = (step / robot.control.period).max(1);
    let mut made = 0;
    while made < MAX_STEPS && !plane.success() {
        let seen = plane.observation();
        history.drain(..seen.len());
        history.extend(seen);
        window.sequence += 1;
        // Time goes on while the first chunk is awaited; the episode does not.
        let now = Time::from_nanos(window.sequence as i64 * step);
        window.time = now;
        window.values.copy_from_slice(&history);
        let mut measured = [0.0; MAX_JOINTS];
        let pusher = plane.state().pusher;
        measured[..2].copy_from_slice(&pusher);
        let observed = Observed { sequence: window.sequence, time: now, measured };
        let urgent = !control.mode().executes();
        if !planning && planner.is_due(now, urgent) {
            planner.plan(&window, (!urgent).then_some(now + delay), &mut next)?;
            (ready, planning) = (now + delay, true);
        }
        let mut target = pusher;
        for tick in 0..ticks {
            let now = now + tick * robot.control.period;
            if planning && now >= ready {
                current.copy_from(&next);
                planning = false;
            }
            let command = control.step(
                now,
                &Inputs {
                    chunk: &current,
                    observed: &observed,
                    stops: 0,
                    resets: 0,
                    operator: false,
                    controller: true,
                },
            );
            if command.mode != Mode::Warmup {
                commands.push(command);
                if tick <= ticks / 2 {
                    target = [command.values[0], command.values[1]];
                }
            }
        }
        plane.step(target);
        // The clock of the episode starts with the first command.
        made += usize::from(!commands.is_empty());
        if commands.is_empty() && window.sequence > MAX_STEPS as u64 {
            break;
        }
    }
    Ok(measure(&commands, robot.control.period, plane.score()))
}

fn measure(commands: &[Command], period: Nanos, score: f64) -> Ride {
    let mut ride = Ride { score, ..Ride::default() };
    let dt = clock::seconds(period);
    let length = |v: [f64; 2]| v[0].hypot(v[1]);
    let axis = |joint: usize, i: usize| commands[i].values[joint];
    let jump = |i: usize| length([0, 1].map(|j| axis(j, i) - axis(j, i - 1)));
    let jerk = |i: usize| {
        let third = |j: usize| axis(j, i) - 3.0 * axis(j, i - 1) + 3.0 * axis(j, i - 2) - axis(j, i - 3);
        length([third(0), third(1)]) / dt.powi(3)
    };
    ride.held = commands.iter().filter(|command| command.mode == Mode::Holding).count() as u64;
    let is_seam = |i: usize| commands[i].chunk != commands[i - 1].chunk;
    for i in SPAN..commands.len().saturating_sub(SPAN) {
        if is_seam(i) {
            ride.seams.add(jump(i), (i..i + SPAN).map(jerk).fold(0.0, f64::max));
        } else if (i - SPAN + 1..=i).all(|j| !is_seam(j)) {
            ride.rest.add(jump(i), jerk(i));
        }
    }
    ride
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use refrain_policies::plan::Plan;

    use super::*;
    use crate::builtin;
    use crate::chunk::Interpolation;
    use crate::config::RobotConfig;
    use crate::engine::cpu::CpuEngine;
    use crate::join::Join;

    /// An episode of the built-in policy.
    fn ridden(join: Join, delay_ms: i64) -> Ride {
        let package = Arc::new(builtin::package().unwrap());
        let file = builtin::schedule().unwrap();
        let schedule = file.check(&package.config, &package.weights_sha256()).unwrap();
        let compile = if join == Join::Inpaint { Plan::joining } else { Plan::compile };
        let plan = Arc::new(compile(&package.config, &schedule).unwrap());
        let mut config = RobotConfig::parse(crate::demo::ROBOT).unwrap();
        (config.control.interpolation, config.chunk.join) = (Interpolation::Linear, join);
        let robot = config.resolve(&package.config).unwrap();
        let engine = CpuEngine::new(Arc::clone(&package), plan, 1).unwrap();
        let policy = Policy::new(package.config.clone(), Box::new(engine));
        ride(&robot, policy, delay_ms * clock::MILLISECOND).unwrap()
    }

    #[test]
    fn inpainted_chunks_join_without_a_jump_and_others_do_not() {
        let mean = |jumps: &[f64]| jumps.iter().sum::<f64>() / jumps.len() as f64;
        for delay_ms in [0, 100] {
            let (switched, inpainted) = (ridden(Join::Switch, delay_ms), ridden(Join::Inpaint, delay_ms));
            let rest = mean(&inpainted.rest.jumps);
            let [jump, joined] = [&switched, &inpainted].map(|ride| mean(&ride.seams.jumps));
            println!(
                "{delay_ms} ms: switch {jump:.2}, inpaint {joined:.2}, its other ticks {rest:.2} px a tick"
            );
            assert!(inpainted.seams.jumps.len() > 5 && switched.seams.jumps.len() > 5);
            assert!(joined < 2.0 * rest, "a seam moves {joined}, any other tick {rest}");
            assert!(jump > 4.0 * joined, "switching moves {jump}, inpainting {joined}");
        }
    }

    #[test]
    fn seams_and_the_rest_are_told_apart() {
        let command = |chunk, x: f64| {
            let mut values = [0.0; MAX_JOINTS];
            values[0] = x;
            Command { chunk, values, mode: Mode::Running, ..Command::NONE }
        };
        // Still, then a jump of 3 with a new chunk, then still.
        let commands: Vec<Command> =
            (0..20).map(|i| if i < 10 { command(1, 0.0) } else { command(2, 3.0) }).collect();
        let ride = measure(&commands, clock::SECOND, 0.5);
        assert_eq!(ride.seams, Motion { jumps: vec![3.0], jerks: vec![6.0] });
        assert!(ride.rest.jumps.iter().chain(&ride.rest.jerks).all(|v| *v == 0.0));
        assert_eq!(ride.rest.jumps.len(), 20 - 2 * SPAN - SPAN);
    }
}
