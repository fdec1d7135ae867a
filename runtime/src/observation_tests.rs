//! Which messages are taken, and what the policy then sees.

use super::*;
use crate::clock::MILLISECOND;

const PERIOD: Nanos = 100 * MILLISECOND;

fn config(steps: usize) -> IntakeConfig {
    IntakeConfig {
        size: 2,
        steps,
        period: PERIOD,
        max_age: 200 * MILLISECOND,
        clock_tolerance: 5 * MILLISECOND,
        parts: vec![Part { places: vec![1, 0], arrival_is_stamp: false }],
        starts: vec![Start::Measured(0), Start::Fixed(7.0)],
        sight: None,
    }
}

fn at(millis: i64) -> Reading {
    Reading {
        time: Time::from_nanos(millis * MILLISECOND),
        wall: Wall::from_nanos((1_000_000 + millis) * MILLISECOND),
    }
}

fn origin(sequence: i64, millis: i64) -> Origin {
    Origin { sequence: Some(sequence), publisher: Some([1; 16]), stamp: Some(at(millis).wall) }
}

fn first(intake: &Intake, steps: usize) -> Vec<f32> {
    let mut window = Window::none(&config(steps));
    intake.window(&mut window);
    window.values.chunks(2).map(|row| row[1]).collect()
}

#[test]
fn each_refusal_has_its_name_and_counter() {
    let mut intake = Intake::new(config(1));
    assert_eq!(intake.accept(0, &origin(1, 0), &[1.0, 2.0], at(1)), Ok(true));
    let refuse = |intake: &mut Intake, origin: Origin, values: &[f64], now, why: Refusal| {
        let before = intake.counts().refused[Refusal::ALL.iter().position(|r| *r == why).unwrap()];
        assert_eq!(intake.accept(0, &origin, values, now), Err(why));
        assert_eq!(intake.counts().refused[Refusal::ALL.iter().position(|r| *r == why).unwrap()], before + 1);
    };
    let good = [1.0, 2.0];
    refuse(&mut intake, origin(2, 100), &[1.0], at(101), Refusal::WrongSize);
    refuse(&mut intake, origin(2, 100), &[1.0, 2.0, 3.0], at(101), Refusal::WrongSize);
    refuse(&mut intake, origin(2, 100), &[1.0, f64::NAN], at(101), Refusal::NonFinite);
    refuse(&mut intake, origin(2, 100), &[1.0, 1e300], at(101), Refusal::NonFinite);
    refuse(&mut intake, origin(1, 100), &good, at(101), Refusal::Duplicate);
    refuse(&mut intake, origin(0, 100), &good, at(101), Refusal::OutOfOrder);
    refuse(&mut intake, origin(2, 0), &good, at(101), Refusal::OutOfOrder);
    refuse(&mut intake, origin(2, -100), &good, at(101), Refusal::TooOld);
    refuse(&mut intake, origin(2, 107), &good, at(101), Refusal::FromTheFuture);
    refuse(&mut intake, Origin { stamp: None, ..origin(2, 0) }, &good, at(101), Refusal::NoStamp);
    assert_eq!(intake.counts().accepted, 1);
    assert_eq!(intake.accept(0, &origin(2, 106), &good, at(101)), Ok(true), "within the tolerance");
    let restarted = Origin { publisher: Some([2; 16]), ..origin(1, 200) };
    assert_eq!(intake.accept(0, &restarted, &good, at(201)), Ok(true), "a new publisher starts at 1");
}

#[test]
fn a_wall_clock_that_steps_back_is_seen() {
    let mut intake = Intake::new(config(1));
    intake.accept(0, &origin(1, 100), &[1.0, 2.0], at(100)).unwrap();
    let stepped = Reading { wall: at(50).wall, ..at(200) };
    assert_eq!(intake.accept(0, &origin(2, 50), &[1.0, 2.0], stepped), Err(Refusal::OutOfOrder));
    // Once the wall clock has passed the last stamp again, observations are taken.
    let later = Reading { wall: at(101).wall, ..at(251) };
    assert_eq!(intake.accept(0, &origin(3, 101), &[1.0, 2.0], later), Ok(true));
}

#[test]
fn a_wall_clock_that_steps_forward_is_seen() {
    let mut intake = Intake::new(config(1));
    intake.accept(0, &origin(1, 100), &[1.0, 2.0], at(100)).unwrap();
    // Made before the step, arrived after it: by its stamp it is newer, by its age it is older than the last.
    let stepped = Reading { wall: at(300).wall, ..at(200) };
    assert_eq!(intake.accept(0, &origin(2, 190), &[1.0, 2.0], stepped), Err(Refusal::OutOfOrder));
    let later = Reading { wall: at(310).wall, ..at(210) };
    assert_eq!(intake.accept(0, &origin(3, 309), &[1.0, 2.0], later), Ok(true));
}

#[test]
fn places_and_measured_joints_are_mapped() {
    let mut intake = Intake::new(config(1));
    intake.accept(0, &origin(1, 0), &[1.0, 2.0], at(3)).unwrap();
    let mut window = Window::none(&config(1));
    intake.window(&mut window);
    assert_eq!(window.values, [2.0, 1.0]);
    let observed = intake.observed();
    assert_eq!((observed.measured[0], observed.measured[1]), (2.0, 7.0));
    assert_eq!(observed.time, at(0).time);
}

#[test]
fn history_starts_with_the_first_and_looks_back_by_policy_periods() {
    let mut intake = Intake::new(config(3));
    let mut seen = Vec::new();
    for i in 0..5 {
        intake.accept(0, &origin(i + 1, i * 100), &[i as f64, 0.0], at(i * 100 + 1)).unwrap();
        seen.push(first(&intake, 3));
    }
    assert_eq!(seen[0], [0.0, 0.0, 0.0]);
    assert_eq!(seen[1], [0.0, 0.0, 1.0]);
    assert_eq!(seen[4], [2.0, 3.0, 4.0]);
}

#[test]
fn faster_observations_are_picked_by_time() {
    let mut intake = Intake::new(config(2));
    for i in 0..200 {
        intake.accept(0, &origin(i + 1, i * 10), &[i as f64, 0.0], at(i * 10)).unwrap();
    }
    let seen = first(&intake, 2);
    assert_eq!(seen, [189.0, 199.0]);
}

#[test]
fn after_a_gap_the_past_is_not_looked_at() {
    let mut intake = Intake::new(config(2));
    intake.accept(0, &origin(1, 0), &[1.0, 0.0], at(0)).unwrap();
    intake.accept(0, &origin(2, 900), &[9.0, 0.0], at(900)).unwrap();
    assert_eq!(first(&intake, 2), [9.0, 9.0]);
    let mut intake = Intake::new(config(3));
    intake.accept(0, &origin(1, 0), &[1.0, 0.0], at(0)).unwrap();
    intake.accept(0, &origin(2, 310), &[3.0, 0.0], at(310)).unwrap();
    assert_eq!(first(&intake, 3), [3.0, 3.0, 3.0], "110 ms back is more than a period");
}

#[test]
fn several_topics_make_one_observation_of_the_oldest_parts_time() {
    let parts = vec![
        Part { places: vec![0], arrival_is_stamp: false },
        Part { places: vec![1], arrival_is_stamp: true },
    ];
    let mut intake = Intake::new(IntakeConfig { parts, ..config(1) });
    assert_eq!(intake.accept(0, &origin(1, 0), &[1.0], at(0)), Ok(false), "the other part is missing");
    assert_eq!(intake.accept(1, &Origin::default(), &[5.0], at(40)), Ok(false), "only the first completes");
    assert_eq!(intake.accept(0, &origin(2, 100), &[2.0], at(100)), Ok(true));
    assert_eq!(intake.observed().time, at(40).time);
    assert_eq!(intake.accept(0, &origin(3, 300), &[2.0], at(300)), Ok(false), "the other part is too old");
}
