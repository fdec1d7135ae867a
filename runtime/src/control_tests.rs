//! The mode machine in virtual time: scenarios by hand, then random ones.

use proptest::prelude::*;

use super::*;
use crate::chunk::Interpolation;
use crate::clock::{MILLISECOND, SECOND};
use crate::safety::Kind;

const PERIOD: Nanos = 10 * MILLISECOND;
const ACTION: Nanos = 100 * MILLISECOND;
const STEPS: usize = 15;
/// Of the second joint.
const BOX: [f64; 2] = [-0.95, 0.9];

fn config(late: Late) -> ControlConfig {
    ControlConfig {
        period: PERIOD,
        path: Interpolation::Linear.into(),
        chunk_deadline: SECOND,
        late,
        max_chunk_age: STEPS as i64 * ACTION,
        max_observation_age: 250 * MILLISECOND,
        command_validity: 100 * MILLISECOND,
        outside: Outside::Clamp,
        limits: vec![
            Limits { kind: Kind::Position, position: [-1.0, 1.0], velocity: 2.0, acceleration: 20.0 };
            2
        ],
        workspace: Workspace { axes: vec![(1, BOX)], outside: Outside::Clamp },
    }
}

/// A loop with the world around it, in virtual time.
struct World {
    control: Control,
    now: Time,
    chunk: Chunk,
    observed: Observed,
    stops: u64,
    resets: u64,
    operator: bool,
    controller: bool,
}

impl World {
    fn new(late: Late) -> Self {
        Self {
            control: Control::new(config(late)),
            now: Time::from_nanos(SECOND),
            chunk: Chunk::none(STEPS, 2, ACTION),
            observed: Observed::NONE,
            stops: 0,
            resets: 0,
            operator: false,
            controller: true,
        }
    }

    fn observe(&mut self, age: Nanos) {
        self.observed.sequence += 1;
        self.observed.time = self.now - age;
        // A robot that follows its commands, once it was ever commanded.
        if self.control.mode() != Mode::Warmup {
            self.observed.measured = *self.control.gate().command();
        }
    }

    fn plan(&mut self, observation: Time, target: f64) {
        self.chunk.sequence += 1;
        self.chunk.observation = observation;
        self.chunk.ready = self.now;
        self.chunk.steps = STEPS;
        self.chunk.actions.fill(target);
    }

    fn tick(&mut self) -> Command {
        self.now = self.now + PERIOD;
        self.control.step(
            self.now,
            &Inputs {
                chunk: &self.chunk,
                observed: &self.observed,
                stops: self.stops,
                resets: self.resets,
                operator: self.operator,
                controller: self.controller,
            },
        )
    }

    /// Ticks with an observation each, and a new chunk every `every` ticks.
    fn run(&mut self, ticks: usize, every: usize, target: f64) -> Command {
        let mut command = Command::NONE;
        for tick in 0..ticks {
            self.observe(0);
            if tick % every == 0 {
                self.plan(self.observed.time, target);
            }
            command = self.tick();
        }
        command
    }
}

#[test]
fn warmup_sends_nothing_until_a_chunk_comes() {
    let mut world = World::new(Late::Continue);
    let command = world.tick();
    assert_eq!((command.mode, command.outcome, command.send), (Mode::Warmup, Outcome::NoObservation, false));
    world.observe(0);
    let command = world.tick();
    assert_eq!((command.mode, command.outcome, command.send), (Mode::Warmup, Outcome::NoChunk, false));
    let command = world.run(1, 1, 0.5);
    assert_eq!((command.mode, command.outcome, command.send), (Mode::Running, Outcome::Followed, true));
    assert_eq!(command.valid_until - command.time, 100 * MILLISECOND);
    assert_eq!(command.observation, world.chunk.observation);
}

#[test]
fn the_first_action_is_reached_by_a_ramp_from_where_the_robot_is() {
    let mut world = World::new(Late::Continue);
    world.observed.measured = [-0.8; MAX_JOINTS];
    let first = world.run(1, 1, 0.9).values()[0];
    assert!((-0.8..-0.797).contains(&first), "{first}");
    assert_eq!(world.run(200, 40, 0.9).values()[0], 0.9);
}

#[test]
fn a_robot_outside_its_range_is_left_alone() {
    let mut world = World::new(Late::Continue);
    world.observed.measured = [1.5; MAX_JOINTS];
    let command = world.run(5, 2, 0.0);
    assert_eq!((command.mode, command.outcome, command.send), (Mode::Warmup, Outcome::StartRefused, false));
    world.observed.measured = [0.9; MAX_JOINTS];
    assert_eq!(world.run(1, 1, 0.0).mode, Mode::Running);
}

#[test]
fn a_late_chunk_is_continued_then_the_robot_holds_until_a_newer_one() {
    let mut world = World::new(Late::Continue);
    world.run(2, 1, 0.5);
    let mut modes = vec![];
    for _ in 0..200 {
        world.observe(0);
        modes.push(world.tick().mode);
    }
    // The chunk's observation was made one tick before it was taken up.
    assert_eq!(modes.iter().filter(|m| **m == Mode::Running).count(), 99);
    assert_eq!(modes.iter().filter(|m| **m == Mode::Coasting).count(), 49);
    assert_eq!(modes[148..], [Mode::Holding; 52]);
    assert_eq!(world.control.counts().of(Outcome::ChunkEnded), 52);
    assert_eq!(world.run(1, 1, 0.5).mode, Mode::Running);
}

#[test]
fn late_chunks_hold_or_stop_where_configured() {
    let mut world = World::new(Late::Hold);
    world.run(2, 1, 0.5);
    for _ in 0..100 {
        world.observe(0);
        world.tick();
    }
    assert_eq!(world.control.mode(), Mode::Holding);
    assert_eq!(world.control.counts().of(Outcome::ChunkLate), 1);
    assert_eq!(world.run(1, 1, 0.5).mode, Mode::Running);

    let mut world = World::new(Late::Stop);
    world.run(2, 1, 0.5);
    for _ in 0..130 {
        world.observe(0);
        world.tick();
    }
    assert_eq!(world.control.mode(), Mode::Stopped);
    assert_eq!(world.run(50, 1, 0.5).mode, Mode::Stopped, "latched");
    assert_eq!(world.control.counts().stops, 1);
}

#[test]
fn what_inference_delay_made_stale_is_skipped_and_counted() {
    let mut world = World::new(Late::Continue);
    world.observe(0);
    let seen = world.observed.time;
    for _ in 0..35 {
        world.observe(0);
        world.tick();
    }
    world.plan(seen, 0.0);
    for (step, row) in world.chunk.actions.chunks_mut(2).enumerate() {
        row.fill(step as f64 / 100.0);
    }
    let command = world.tick();
    assert_eq!((command.action, world.control.counts().actions_skipped), (3, 3));
}

#[test]
fn an_observation_that_stops_holds_and_old_plans_are_not_resumed() {
    let mut world = World::new(Late::Continue);
    world.run(30, 20, 0.9);
    let last_seen = world.observed.time;
    let mut held_at = None;
    for _ in 0..60 {
        let command = world.tick();
        if command.mode == Mode::Holding && held_at.is_none() {
            held_at = Some(command.time - last_seen);
        }
    }
    assert_eq!(held_at, Some(260 * MILLISECOND), "one tick past the largest age");
    world.plan(last_seen, 0.9);
    world.observe(0);
    let command = world.tick();
    assert_eq!((command.mode, command.outcome), (Mode::Holding, Outcome::AwaitingChunk));
    assert_eq!(world.control.counts().chunks_refused, 1);
    assert_eq!(world.run(1, 1, 0.9).mode, Mode::Running);
}

#[test]
fn a_non_finite_action_holds_until_a_newer_chunk() {
    let mut world = World::new(Late::Continue);
    world.run(10, 10, 0.5);
    world.observe(0);
    world.plan(world.observed.time, f64::NAN);
    assert_eq!(world.tick().outcome, Outcome::NonFinite);
    assert_eq!(world.tick().outcome, Outcome::AwaitingChunk);
    assert_eq!(world.run(1, 1, 0.5).mode, Mode::Running);
}

#[test]
fn a_stop_brakes_latches_and_is_undone_by_a_reset_only() {
    let mut world = World::new(Late::Continue);
    world.run(30, 30, 0.9);
    world.stops += 1;
    world.resets += 1;
    let command = world.run(1, 1, 0.9);
    assert_eq!(
        (command.mode, command.outcome, command.latched),
        (Mode::Holding, Outcome::Braking, true),
        "a stop wins over a reset in the same tick"
    );
    world.resets += 1;
    world.run(1, 1, 0.9);
    assert_eq!(world.control.counts().resets_ignored, 1, "a reset while braking is ignored");
    let stopped = world.run(30, 1, 0.9);
    assert_eq!((stopped.mode, stopped.send), (Mode::Stopped, true), "the hold is sent");
    assert_eq!(world.run(100, 1, 0.9).values(), stopped.values());
    world.resets += 1;
    let command = world.tick();
    assert_eq!((command.mode, command.outcome), (Mode::Warmup, Outcome::NoObservation));
    assert_eq!(world.run(1, 1, 0.9).mode, Mode::Warmup, "what was seen at the reset's own time is before it");
    assert_eq!(world.run(1, 1, 0.9).mode, Mode::Running, "from what is seen after the reset");
    assert_eq!((world.control.counts().stops, world.control.counts().resets), (1, 1));
}

#[test]
fn an_operator_takes_over_and_hands_back_without_a_jump() {
    let mut world = World::new(Late::Continue);
    world.run(50, 20, 0.9);
    world.operator = true;
    let command = world.run(1, 1, 0.9);
    assert_eq!((command.mode, command.outcome, command.send), (Mode::Warmup, Outcome::TakenOver, false));
    // The operator moves the robot; chunks go on coming.
    for _ in 0..30 {
        world.observe(0);
        world.observed.measured = [-0.5; MAX_JOINTS];
        world.plan(world.observed.time, 0.9);
        assert!(!world.tick().send);
    }
    world.operator = false;
    assert_eq!(
        world.tick().outcome,
        Outcome::NoObservation,
        "what was seen before the hand-back does not count"
    );
    world.observe(0);
    world.observed.measured = [-0.5; MAX_JOINTS];
    world.plan(world.observed.time, 0.9);
    let command = world.tick();
    assert_eq!((command.mode, command.send), (Mode::Running, true));
    // From rest: one tick at the largest acceleration, 20 u/s^2 for 10 ms.
    assert!((-0.5..=-0.5 + 20.0 * 1e-4 + 1e-12).contains(&command.values()[0]), "{:?}", command.values());
    // A stop reaches also a robot that an operator has.
    world.operator = true;
    world.stops += 1;
    world.run(10, 1, 0.9);
    assert_eq!(world.control.mode(), Mode::Stopped);
}

#[test]
fn a_controller_that_is_gone_gets_nothing_and_comes_back_without_a_jump() {
    let mut world = World::new(Late::Continue);
    world.run(50, 20, 0.9);
    world.controller = false;
    let command = world.run(1, 1, 0.9);
    assert_eq!((command.mode, command.outcome, command.send), (Mode::Warmup, Outcome::NoController, false));
    assert!(!world.run(30, 1, 0.9).send);
    world.controller = true;
    assert_eq!(world.tick().outcome, Outcome::NoObservation, "what was seen before does not count");
    world.observe(0);
    world.observed.measured = [-0.5; MAX_JOINTS];
    world.plan(world.observed.time, 0.9);
    let command = world.tick();
    assert_eq!((command.mode, command.send), (Mode::Running, true));
    assert!((-0.5..=-0.5 + 20.0 * 1e-4 + 1e-12).contains(&command.values()[0]), "{:?}", command.values());
    // It is gone for good: a stop still latches.
    world.controller = false;
    world.stops += 1;
    world.run(10, 1, 0.9);
    assert_eq!(world.control.mode(), Mode::Stopped);
}

#[test]
fn actions_outside_the_workspace_hold_where_configured() {
    let mut world = World::new(Late::Continue);
    world.control = Control::new(ControlConfig {
        workspace: Workspace { axes: vec![(0, [-0.5, 0.5])], outside: Outside::Hold },
        ..config(Late::Continue)
    });
    world.run(10, 10, 0.4);
    world.observe(0);
    world.plan(world.observed.time, 0.6);
    let command = world.tick();
    assert_eq!((command.mode, command.outcome), (Mode::Holding, Outcome::OutsideWorkspace));
    assert_eq!(world.run(1, 1, 0.4).mode, Mode::Running);
}

#[test]
fn the_same_events_give_the_same_commands() {
    let run = || {
        let mut world = World::new(Late::Continue);
        (0..300).map(|i| world.run(1, 1, (i as f64).sin())).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Ticks(u8),
    Observe { age_ms: u16 },
    Plan { age_ms: u16, target: f64 },
    Spoil { value: f64 },
    Stop,
    Reset,
    Operator { in_charge: bool },
    Controller { there: bool },
    Jump { millis: u16 },
}

fn any_event() -> impl Strategy<Value = Event> {
    let odd = prop_oneof![Just(f64::NAN), Just(f64::NEG_INFINITY), Just(1e308), Just(5.0)];
    prop_oneof![
        6 => (1_u8..40).prop_map(Event::Ticks),
        6 => (0_u16..400).prop_map(|age_ms| Event::Observe { age_ms }),
        6 => ((0_u16..2000), -1.5..1.5).prop_map(|(age_ms, target)| Event::Plan { age_ms, target }),
        1 => odd.prop_map(|value| Event::Spoil { value }),
        1 => Just(Event::Stop),
        2 => Just(Event::Reset),
        1 => any::<bool>().prop_map(|in_charge| Event::Operator { in_charge }),
        1 => prop::bool::weighted(0.8).prop_map(|there| Event::Controller { there }),
        1 => (0_u16..3000).prop_map(|millis| Event::Jump { millis }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_events_break_an_invariant(
        events in prop::collection::vec(any_event(), 1..120),
        late in prop_oneof![Just(Late::Continue), Just(Late::Hold), Just(Late::Stop)],
    ) {
        let mut world = World::new(late);
        // What whoever receives the commands sees: the last one sent, its speed, and the stop that stands.
        let mut last: Option<(Command, [f64; 2])> = None;
        let mut stop_asked = false;
        let dt = clock_seconds(PERIOD);
        for event in events {
            let ticks = match event {
                Event::Ticks(n) => n,
                Event::Observe { age_ms } => {
                    world.observe(i64::from(age_ms) * MILLISECOND);
                    0
                }
                Event::Plan { age_ms, target } => {
                    world.plan(world.now - i64::from(age_ms) * MILLISECOND, target);
                    0
                }
                Event::Spoil { value } => {
                    world.chunk.sequence += 1;
                    world.chunk.actions[0] = value;
                    world.chunk.actions[STEPS] = value;
                    0
                }
                Event::Stop => {
                    world.stops += 1;
                    stop_asked = true;
                    1
                }
                Event::Reset => {
                    world.resets += 1;
                    1
                }
                Event::Operator { in_charge } => {
                    world.operator = in_charge;
                    1
                }
                Event::Controller { there } => {
                    world.controller = there;
                    1
                }
                Event::Jump { millis } => {
                    world.now = world.now + i64::from(millis) * MILLISECOND;
                    0
                }
            };
            for _ in 0..ticks {
                let before = world.control.mode();
                let command = world.tick();
                prop_assert!(command.values().iter().all(|v| v.is_finite()));
                if stop_asked {
                    let stopped = command.latched || command.mode == Mode::Warmup;
                    prop_assert!(stopped, "a stop does not stand: {:?}", command);
                    stop_asked = command.latched;
                }
                if command.latched {
                    let resting = matches!(command.mode, Mode::Holding | Mode::Stopped);
                    prop_assert!(resting, "latched in {:?}", command.mode);
                }
                prop_assert!(!(world.operator && command.send), "two are in charge: {:?}", command);
                prop_assert!(world.controller || !command.send, "to nobody: {:?}", command);
                if command.mode == Mode::Warmup || world.operator || !world.controller {
                    prop_assert!(!command.send);
                    last = None;
                    continue;
                }
                let taken_over = last.is_none();
                // It is taken over at rest, where it was measured.
                let start = if command.send { world.observed.measured } else { command.values };
                let (from, speed) = last.map_or((start, [0.0; 2]), |(command, v)| (command.values, v));
                let mut now_speed = [0.0; 2];
                for joint in 0..2 {
                    let l = world.control.config.limits[joint];
                    let q = command.values()[joint];
                    let v = (q - from[joint]) / dt;
                    let a = (v - speed[joint]) / dt;
                    prop_assert!((l.position[0]..=l.position[1]).contains(&q), "position {q}");
                    let [low, high] = if joint == 1 { BOX } else { l.position };
                    prop_assert!((low..=high).contains(&q), "workspace {q}");
                    prop_assert!(v.abs() <= l.velocity + 1e-9, "velocity {v}");
                    prop_assert!(a.abs() <= l.acceleration + 1e-7, "acceleration {a}");
                    now_speed[joint] = v;
                }
                if command.mode == Mode::Stopped && before == Mode::Stopped && !taken_over {
                    prop_assert_eq!(command.values, from, "motion in Stopped");
                }
                if command.mode == Mode::Stopped && !taken_over {
                    prop_assert!(now_speed == [0.0; 2], "motion in Stopped: {now_speed:?}");
                }
                last = Some((command, now_speed));
            }
        }
        let counts = world.control.counts();
        prop_assert_eq!(counts.outcomes.iter().sum::<u64>(), world.control.sequence, "an answer for every tick");
    }
}

fn clock_seconds(span: Nanos) -> f64 {
    crate::clock::seconds(span)
}
