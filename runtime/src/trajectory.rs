//! A chunk as a trajectory: for controllers that interpolate themselves.
//!
//! The gate runs ahead in virtual time, from what is commanded now, toward the chunk's actions; what it commands at the
//! time of each action is that action's point. So a trajectory keeps the same limits as the commands tick by tick. The
//! control loop's own gate is not touched.

use crate::bus::cdr::Point;
use crate::chunk::{Chunk, Interpolation, Path};
use crate::clock::{Nanos, Time};
use crate::control::{Command, ControlConfig};
use crate::safety::{Gate, Request};

/// Longest braking that is looked ahead, in action periods.
const LONGEST_HOLD: usize = 100;

/// Looks ahead.
pub struct Lookahead {
    gate: Gate,
    path: Path,
    period: Nanos,
    action_period: Nanos,
}

impl Lookahead {
    /// For a robot's limits.
    pub fn new(control: &ControlConfig, action_period: Nanos) -> Self {
        // The controller interpolates linearly itself.
        let path = Path { interpolation: Interpolation::Linear, ..control.path.clone() };
        Self { gate: Gate::for_control(control), path, period: control.period, action_period }
    }

    /// The chunk's actions from the first one after `command` on, in time from the command.
    pub fn follow(&self, command: &Command, chunk: &Chunk) -> Vec<Point> {
        let mut gate = self.gate.resumed(&command.values, &command.rates);
        let mut now = command.time;
        let mut points = Vec::new();
        for step in chunk.index(now) + 1..chunk.steps {
            let time = chunk.observation + step as i64 * chunk.action_period;
            while now + self.period <= time {
                now = now + self.period;
                let Some((_, target)) = chunk.at(now, &self.path) else { break };
                let target = Some(&target[..chunk.joints]);
                gate.pass(now, &Request { target, observation: now, chunk: now });
            }
            points.push(point(&gate, time - command.time));
        }
        points
    }

    /// Braking from `command` to rest; one point at least.
    pub fn hold(&self, command: &Command) -> Vec<Point> {
        let mut gate = self.gate.resumed(&command.values, &command.rates);
        let mut points = Vec::new();
        let (mut now, mut next) = (command.time, command.time + self.action_period);
        while points.len() < LONGEST_HOLD {
            while now + self.period <= next {
                now = now + self.period;
                gate.pass(now, &Request { target: None, observation: now, chunk: now });
            }
            points.push(point(&gate, next - command.time));
            if gate.at_rest() {
                break;
            }
            next = next + self.action_period;
        }
        points
    }
}

/// Whether `command` begins something that a trajectory must be sent for.
#[derive(Debug, Default)]
pub struct Due {
    chunk: u64,
    next_hold: Time,
}

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The command's chunk.
    Chunk,
    /// A hold; it is sent again every action period, since a message may be lost.
    Hold,
    /// Nothing.
    Nothing,
}

impl Due {
    /// What to send for this command, when the newest chunk known here is `newest`. A command may be ahead of its chunk;
    /// its trajectory is then sent with a later command.
    pub fn look(&mut self, command: &Command, newest: u64, action_period: Nanos) -> Next {
        if !command.send {
            *self = Self::default();
            return Next::Nothing;
        }
        if command.chunk != 0 {
            self.next_hold = command.time;
            if command.chunk == self.chunk || command.chunk != newest {
                return Next::Nothing;
            }
            self.chunk = command.chunk;
            return Next::Chunk;
        }
        self.chunk = 0;
        if command.time < self.next_hold {
            return Next::Nothing;
        }
        self.next_hold = command.time + action_period;
        Next::Hold
    }
}

fn point(gate: &Gate, time_from_start: Nanos) -> Point {
    Point { positions: gate.command()[..gate.joints()].to_vec(), time_from_start }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MILLISECOND;
    use crate::control::Late;
    use crate::safety::{Kind, Limits, Outside, Workspace};

    const ACTION: Nanos = 100 * MILLISECOND;

    fn lookahead(velocity: f64, acceleration: f64) -> Lookahead {
        let limits = Limits { kind: Kind::Position, position: [-10.0, 10.0], velocity, acceleration };
        let control = ControlConfig {
            period: 10 * MILLISECOND,
            path: Interpolation::Linear.into(),
            chunk_deadline: 1,
            late: Late::Continue,
            max_chunk_age: 1,
            max_observation_age: 1,
            command_validity: 1,
            outside: Outside::Clamp,
            limits: vec![limits],
            workspace: Workspace::ANYWHERE,
        };
        Lookahead::new(&control, ACTION)
    }

    fn command(value: f64, rate: f64) -> Command {
        let mut command =
            Command { send: true, joints: 1, time: Time::from_nanos(130 * MILLISECOND), ..Command::NONE };
        (command.values[0], command.rates[0]) = (value, rate);
        command
    }

    fn chunk() -> Chunk {
        Chunk { sequence: 1, steps: 4, actions: vec![0.0, 1.0, 2.0, 3.0], ..Chunk::none(4, 1, ACTION) }
    }

    #[test]
    fn points_are_the_actions_still_to_come_at_their_times() {
        let points = lookahead(1e6, 1e9).follow(&command(1.3, 10.0), &chunk());
        let times: Vec<_> = points.iter().map(|p| p.time_from_start / MILLISECOND).collect();
        assert_eq!(times, [70, 170], "action 1 has begun; 2 and 3 come at 200 and 300 ms");
        assert!((points[0].positions[0] - 2.0).abs() < 1e-9, "{points:?}");
        assert!((points[1].positions[0] - 3.0).abs() < 1e-9, "{points:?}");
    }

    #[test]
    fn limits_hold_in_a_trajectory() {
        let points = lookahead(5.0, 100.0).follow(&command(0.0, 0.0), &chunk());
        assert!(points[0].positions[0] <= 0.07 * 5.0, "{points:?}");
        assert!(points[1].positions[0] - points[0].positions[0] <= 0.5 + 1e-9, "{points:?}");
    }

    #[test]
    fn a_hold_brakes_and_has_one_point_at_least() {
        let ahead = lookahead(5.0, 10.0);
        assert_eq!(ahead.hold(&command(1.0, 0.0)), [Point { positions: vec![1.0], time_from_start: ACTION }]);
        let braking = ahead.hold(&command(1.0, 5.0));
        assert!((5..=6).contains(&braking.len()), "5 u/s at 10 u/s^2 take 0.5 s: {braking:?}");
        let way = braking[4].positions[0] - 1.0;
        assert!((way - 1.225).abs() < 1e-9, "{way}");
    }

    #[test]
    fn chunks_are_sent_once_and_holds_again_and_again() {
        let mut due = Due::default();
        let mut newest = 1;
        let mut look = |chunk, millis: i64, send| {
            let time = Time::from_nanos(millis * MILLISECOND);
            newest = newest.max(if millis == 15 { 1 } else { chunk });
            due.look(&Command { chunk, time, send, ..Command::NONE }, newest, ACTION)
        };
        assert_eq!(look(1, 0, true), Next::Chunk);
        assert_eq!(look(1, 10, true), Next::Nothing);
        assert_eq!(look(2, 15, true), Next::Nothing, "chunk 2 is not known here yet");
        assert_eq!(look(2, 20, true), Next::Chunk);
        assert_eq!(look(0, 30, true), Next::Hold);
        assert_eq!(look(0, 40, true), Next::Nothing);
        assert_eq!(look(0, 130, true), Next::Hold);
        assert_eq!(look(2, 140, true), Next::Chunk, "taken up again");
        assert_eq!(look(0, 150, false), Next::Nothing);
    }
}
