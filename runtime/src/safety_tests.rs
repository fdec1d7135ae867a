//! The gate under hand-made and random targets.

use proptest::prelude::*;

use super::*;

const PERIOD: Nanos = 10 * clock::MILLISECOND;
const DT: f64 = 0.01;

fn limits(position: [f64; 2], velocity: f64, acceleration: f64) -> Limits {
    Limits { kind: Kind::Position, position, velocity, acceleration }
}

fn gate(limits: &[Limits]) -> Gate {
    Gate::new(limits, Outside::Clamp, clock::SECOND, clock::SECOND, PERIOD)
}

fn to(target: &[f64]) -> Request<'_> {
    Request { target: Some(target), observation: Time::default(), chunk: Time::default() }
}

const HOLD: Request<'static> =
    Request { target: None, observation: Time::from_nanos(0), chunk: Time::from_nanos(0) };

/// The gate's own state is not asked: commands are differenced as a robot would.
struct Watch {
    limits: Vec<Limits>,
    workspace: Workspace,
    last: Vec<f64>,
    velocity: Vec<f64>,
}

impl Watch {
    fn new(gate: &Gate) -> Self {
        let last = gate.command()[..gate.joints()].to_vec();
        let workspace = Workspace::ANYWHERE;
        Self { limits: gate.limits.clone(), workspace, velocity: vec![0.0; last.len()], last }
    }

    fn check(&mut self, command: &Joints) -> Result<(), String> {
        for (joint, l) in self.limits.iter().enumerate() {
            let (q, last) = (command[joint], self.last[joint]);
            let v = (q - last) / DT;
            let a = (v - self.velocity[joint]) / DT;
            // Rounding: of the differences, and of every tick of a braking, whose end is cut off where the range ends.
            let noise = 1024.0 * f64::EPSILON * q.abs().max(last.abs()).max(1.0);
            let fine = q.is_finite()
                && (l.position[0]..=l.position[1]).contains(&q)
                && v.abs() <= l.velocity * (1.0 + 1e-12) + noise / DT
                && a.abs() <= l.acceleration * (1.0 + 1e-12) + noise / (DT * DT);
            if !fine {
                return Err(format!("joint {joint}: q {q}, v {v}, a {a} against {l:?}"));
            }
            (self.last[joint], self.velocity[joint]) = (q, v);
        }
        if !self.workspace.has(command) {
            return Err(format!("{:?} is outside {:?}", &command[..self.last.len()], self.workspace));
        }
        Ok(())
    }
}

#[test]
fn stopping_speed_is_the_largest_that_stops_in_time() {
    for room in [0.0, 1e-6, 0.004, 0.01, 0.3, 7.7, 100.0] {
        let change = 0.5;
        let run = |mut v: f64| {
            let mut way = 0.0;
            while v > 0.0 {
                way += v * DT;
                v -= change;
            }
            way
        };
        let v = stopping_speed(room, change, DT);
        assert!(run(v) <= room * (1.0 + 1e-9), "{room}: {} is too far", run(v));
        assert!(room == 0.0 || run(v * 1.001) > room, "{room}: could have been faster");
    }
}

#[test]
fn a_far_target_is_reached_by_a_ramp_and_kept() {
    let mut gate = gate(&[limits([-1.0, 1.0], 0.5, 2.0)]);
    gate.engage(&[-0.9]).unwrap();
    let mut watch = Watch::new(&gate);
    for _ in 0..600 {
        assert_eq!(gate.pass(Time::default(), &to(&[0.9])), Verdict::Followed);
        watch.check(gate.command()).unwrap();
    }
    assert_eq!(gate.command()[0], 0.9);
    assert!(gate.at_rest());
    assert!(gate.counts().velocity > 0 && gate.counts().acceleration > 0);
}

#[test]
fn wide_limits_pass_the_target_unchanged() {
    let mut gate = gate(&[limits([0.0, 512.0], 1e6, 1e9)]);
    gate.engage(&[100.0]).unwrap();
    for target in [400.0, 3.25, 511.0, 511.0, 0.0] {
        gate.pass(Time::default(), &to(&[target]));
        assert_eq!(gate.command()[0], target, "exactly");
    }
    assert_eq!(gate.counts(), &GateCounts::default());
}

#[test]
fn every_reason_brakes_and_is_counted() {
    let late = Time::from_nanos(2 * clock::SECOND);
    let mut gate = gate(&[limits([-1.0, 1.0], 0.5, 2.0)]);
    gate.outside = Outside::Hold;
    let held = |gate: &mut Gate, now, request: Request<'_>, reason| {
        gate.engage(&[0.0]).unwrap();
        for _ in 0..20 {
            gate.pass(Time::default(), &to(&[0.9]));
        }
        let before = gate.command()[0];
        assert_eq!(gate.pass(now, &request), Verdict::Held(reason));
        assert!(gate.command()[0] > before, "braking takes its time");
        for _ in 0..100 {
            gate.pass(now, &request);
        }
        assert!(gate.at_rest(), "{reason:?}");
    };
    held(&mut gate, Time::default(), HOLD, Reason::NoTarget);
    held(&mut gate, Time::default(), to(&[f64::NAN]), Reason::NonFinite);
    held(&mut gate, Time::default(), to(&[f64::INFINITY]), Reason::NonFinite);
    held(&mut gate, Time::default(), to(&[0.0, 0.0]), Reason::WrongSize);
    held(&mut gate, Time::default(), to(&[1.5]), Reason::Outside);
    held(&mut gate, late, Request { chunk: late, ..to(&[0.0]) }, Reason::StaleObservation);
    held(&mut gate, late, Request { observation: late, ..to(&[0.0]) }, Reason::StaleChunk);
    let c = gate.counts();
    assert_eq!((c.non_finite, c.wrong_size, c.outside), (202, 101, 101));
    assert_eq!((c.stale_observation, c.stale_chunk), (101, 101));
}

#[test]
fn a_robot_outside_its_range_is_not_taken_over() {
    let mut gate = gate(&[limits([-1.0, 1.0], 0.5, 2.0)]);
    assert!(matches!(gate.engage(&[1.1]), Err(EngageError::OutsideRange { joint: 0, .. })));
    assert!(matches!(gate.engage(&[f64::NAN]), Err(EngageError::NotMeasured { joint: 0 })));
    assert!(matches!(gate.engage(&[]), Err(EngageError::NotMeasured { joint: 0 })));
    gate.engage(&[1.0001]).unwrap();
    assert_eq!(gate.command()[0], 1.0);
}

#[test]
fn a_velocity_joint_ramps_to_zero() {
    let mut gate = gate(&[Limits { kind: Kind::Velocity, ..limits([0.0, 0.0], 1.0, 10.0) }]);
    gate.engage(&[]).unwrap();
    for _ in 0..20 {
        gate.pass(Time::default(), &to(&[5.0]));
    }
    assert_eq!(gate.command()[0], 1.0);
    for tick in 1..=10 {
        gate.pass(Time::default(), &HOLD);
        assert!((gate.command()[0] - (1.0 - 0.1 * f64::from(tick))).abs() < 1e-12);
    }
    gate.pass(Time::default(), &HOLD);
    assert!(gate.at_rest());
}

/// Three axes, of which the second and the third have a box.
fn boxed(outside: Outside) -> (Gate, Workspace) {
    let workspace = Workspace { axes: vec![(1, [-0.5, 0.25]), (2, [0.0, 9.0])], outside };
    (gate(&[limits([-1.0, 1.0], 5.0, 50.0); 3]).within(&workspace), workspace)
}

#[test]
fn outside_the_workspace_targets_are_clamped_or_the_robot_holds() {
    let (mut gate, _) = boxed(Outside::Clamp);
    gate.engage(&[0.0, 0.0, 0.5]).unwrap();
    for _ in 0..100 {
        assert_eq!(gate.pass(Time::default(), &to(&[0.9, 0.9, -0.9])), Verdict::Followed);
    }
    assert_eq!(gate.command()[..3], [0.9, 0.25, 0.0]);
    assert_eq!(gate.counts().workspace, 100);

    let (mut gate, _) = boxed(Outside::Hold);
    assert!(matches!(gate.engage(&[0.0, 0.4, 0.5]), Err(EngageError::OutsideRange { joint: 1, .. })));
    gate.engage(&[0.0, 0.2, 0.5]).unwrap();
    for target in [[0.0, 0.26, 0.5], [0.0, 0.2, -0.01]] {
        assert_eq!(gate.pass(Time::default(), &to(&target)), Verdict::Held(Reason::Workspace));
    }
    assert_eq!(gate.pass(Time::default(), &to(&[0.9, 0.25, 0.0])), Verdict::Followed);
    assert_eq!((gate.counts().workspace, gate.counts().outside), (2, 0));
}

fn any_target() -> impl Strategy<Value = f64> {
    prop_oneof![
        8 => -3.0..3.0,
        1 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
        1 => Just(-1e300),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_target_breaks_a_limit(
        targets in prop::collection::vec((any_target(), 1_usize..30, prop::bool::weighted(0.1)), 1..60),
        start in -1.0..1.0,
        velocity in 0.01..50.0,
        acceleration in 0.01..5000.0,
    ) {
        let mut gate = gate(&[limits([-1.0, 1.0], velocity, acceleration)]);
        gate.engage(&[start]).unwrap();
        let mut watch = Watch::new(&gate);
        for (target, ticks, hold) in targets {
            let target = [target];
            for _ in 0..ticks {
                gate.pass(Time::default(), &if hold { HOLD } else { to(&target) });
                watch.check(gate.command()).map_err(TestCaseError::fail)?;
            }
        }
        // However it moves, it comes to rest within velocity / acceleration.
        for _ in 0..(velocity / (acceleration * DT)).ceil() as usize {
            gate.pass(Time::default(), &HOLD);
            watch.check(gate.command()).map_err(TestCaseError::fail)?;
        }
        prop_assert!(gate.at_rest());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn no_target_leaves_the_workspace(
        targets in prop::collection::vec(([any_target(), any_target(), any_target()], 1_usize..30), 1..40),
        start in [-1.0..1.0, -0.5..0.25, 0.0..1.0],
        outside in prop_oneof![Just(Outside::Clamp), Just(Outside::Hold)],
    ) {
        let (mut gate, workspace) = boxed(outside);
        gate.engage(&start).unwrap();
        let mut watch = Watch { workspace, ..Watch::new(&gate) };
        for (target, ticks) in targets {
            for _ in 0..ticks {
                gate.pass(Time::default(), &to(&target));
                watch.check(gate.command()).map_err(TestCaseError::fail)?;
            }
        }
    }
}

#[test]
fn a_gripper_has_two_values_and_keeps_one_between_its_thresholds() {
    let kind = Kind::Discrete { below: 0.3, above: 0.7 };
    let mut gate = gate(&[Limits { kind, position: [0.0, 0.08], velocity: 0.0, acceleration: 0.0 }]);
    gate.engage(&[0.05]).unwrap();
    let mut said = |target: f64| {
        gate.pass(Time::default(), &to(&[target]));
        gate.command()[0]
    };
    let targets = [0.5, 0.31, 0.3, 0.5, 0.69, 0.7, 0.31, -1.0, 9.0];
    assert_eq!(targets.map(&mut said), [0.08, 0.08, 0.0, 0.0, 0.0, 0.08, 0.08, 0.0, 0.08]);
    assert_eq!(gate.pass(Time::default(), &HOLD), Verdict::Held(Reason::NoTarget));
    assert!(gate.at_rest() && gate.command()[0] == 0.08, "to hold is to keep");
    assert_eq!(gate.pass(Time::default(), &to(&[f64::NAN])), Verdict::Held(Reason::NonFinite));
    assert_eq!(gate.command()[0], 0.08);
}

/// Hundreds of ticks of braking, each rounded, overshoot the end of the range by some of them, which is cut off there.
#[test]
fn a_long_braking_ends_at_the_end_of_the_range() {
    let mut gate = gate(&[limits([-1.0, 1.0], 50.0, 0.06)]);
    gate.engage(&[-0.9]).unwrap();
    let mut watch = Watch::new(&gate);
    for (target, ticks) in [(3.0, 600), (-3.0, 900), (3.0, 2000)] {
        for _ in 0..ticks {
            gate.pass(Time::default(), &to(&[target]));
            watch.check(gate.command()).unwrap();
        }
    }
    assert!(gate.at_rest() && gate.command()[0] == 1.0, "{:?}", gate.command()[0]);
}
