//! Twenty-four hours in virtual time: intake, planner and control loop, a clock that drifts and steps, and something that
//! goes wrong every few minutes. Whatever happened, the robot is running again soon after.

use refrain_runtime::clock::{MILLISECOND, Nanos, Reading, SECOND, Time, Wall};
use refrain_runtime::control::{Control, Inputs, Mode, Outcome};
use refrain_runtime::observation::{Intake, Origin, Window};
use refrain_runtime::planner::Planner;
use refrain_tests::robot::{double, policy_config, robot_config};

const DAY: Nanos = 24 * 3600 * SECOND;
/// Observations and control ticks per virtual second.
const TICK: Nanos = 10 * MILLISECOND;
const OBSERVE: Nanos = 100 * MILLISECOND;
/// Something happens every so often.
const TROUBLE: Nanos = 5 * 60 * SECOND;
/// And is over, recovery included, after this.
const RECOVERY: Nanos = 20 * SECOND;

#[test]
fn a_day_goes_by() {
    let robot = robot_config().resolve(&policy_config()).unwrap();
    let mut planner = Planner::new(double(), &robot).unwrap();
    let mut control = Control::new(robot.control.clone());
    let mut intake = Intake::new(robot.intake.clone());
    let mut window = Window::none(&robot.intake);
    let mut chunk = planner.blank();
    let (mut stops, mut resets, mut operator) = (0, 0, false);
    // The robot's wall clock runs 20 ppm fast and is set now and then.
    let mut offset: Nanos = 0;
    let (mut sequence, mut ticks, mut sent) = (0_i64, 0_u64, 0_u64);
    let mut last = (Time::from_nanos(i64::MIN), 0);
    let mut values = [100.0; 20];
    let mut at: Nanos = 0;
    while at < DAY {
        let (trouble, since) = (at / TROUBLE % 8, at % TROUBLE);
        let bad = since < 2 * SECOND;
        let first = since == 0;
        match trouble {
            1 if first => stops += 1,
            1 if since == 5 * SECOND => resets += 1,
            2 => operator = bad,
            3 if first => offset += 3600 * SECOND,
            // Stamps that do not advance are refused, for as long as the step back was.
            4 if first => offset -= 5 * SECOND,
            _ => {}
        }
        let time = Time::from_nanos(at);
        let drift = at / 50_000;
        let now = Reading { time, wall: Wall::from_nanos(at + offset + drift) };
        if at % OBSERVE == 0 && !(trouble == 5 && bad) {
            sequence += 1;
            values[0] = if trouble == 6 && bad { f64::NAN } else { 100.0 };
            // Their stamps are of the same, stepping clock.
            let origin = Origin { sequence: Some(sequence), publisher: Some([1; 16]), stamp: Some(now.wall) };
            if intake.accept(0, &origin, &values, now) == Ok(true) {
                intake.window(&mut window);
                let urgent = !control.mode().executes();
                // While trouble 7 lasts, inference is stuck.
                if planner.is_due(window.time, urgent) && !(trouble == 7 && bad) {
                    planner.plan(&window, (!urgent).then_some(window.time), &mut chunk).unwrap();
                    chunk.ready = time;
                }
            }
        }
        let observed = intake.observed();
        let command = control.step(
            time,
            &Inputs { chunk: &chunk, observed: &observed, stops, resets, operator, controller: true },
        );
        ticks += 1;
        sent += u64::from(command.send);
        assert_eq!(command.sequence, ticks);
        assert!(
            command.time > last.0 && command.values().iter().all(|v| (0.0..=512.0).contains(v)),
            "{command:?}"
        );
        last = (command.time, command.sequence);
        if since > RECOVERY {
            assert_eq!(
                command.mode,
                Mode::Running,
                "trouble {trouble}, {} s later: {command:?}",
                since / SECOND
            );
        }
        at += TICK;
    }
    let counts = control.counts();
    assert_eq!(ticks, (DAY / TICK) as u64);
    assert_eq!(counts.outcomes.iter().sum::<u64>(), ticks, "an answer for every tick");
    let troubles = (DAY / TROUBLE / 8) as u64;
    assert_eq!((counts.stops, counts.resets), (troubles, troubles));
    for outcome in [
        Outcome::Followed,
        Outcome::StaleObservation,
        Outcome::TakenOver,
        Outcome::Stopped,
        Outcome::ChunkEnded,
    ] {
        println!("{outcome:?}: {} ticks", counts.of(outcome));
    }
    println!("{ticks} ticks, {sent} commands, {} chunks; {counts:?}", counts.chunks);
    assert!(counts.of(Outcome::TakenOver) >= troubles * 190 && counts.of(Outcome::StaleObservation) > 0);
}
