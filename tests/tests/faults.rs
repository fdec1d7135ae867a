//! The fault table: what goes wrong between a robot and its daemon over a real zenoh session, how it is known, what the
//! robot received meanwhile, and how it went on. The decisions must be those of `tests/faults.md`, word by word.
//!
//! Decisions are taken from the recording, tick by tick; what the robot received is what came out of its own session. Times
//! are bounds for a machine under load; `cargo test -- --nocapture` prints what was measured.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use refrain_policies::plan::Plan;
use refrain_runtime::builtin;
use refrain_runtime::bus::{self, Bus, BusError, BusSection};
use refrain_runtime::clock::{self, MILLISECOND, Nanos, SECOND, Time};
use refrain_runtime::config::RobotConfig;
use refrain_runtime::control::{Mode, Outcome};
use refrain_runtime::daemon::{Daemon, DaemonError};
use refrain_runtime::engine::choice::Guarded;
use refrain_runtime::engine::cpu::CpuEngine;
use refrain_runtime::observation::Refusal;
use refrain_runtime::policy::Policy;
use refrain_runtime::record::{self, Log, Message, Place, Tick};
use refrain_runtime::report::Report;
use refrain_runtime::threads;
use refrain_tests::robot::{Double, Received, Rig, double, policy_config, robot_config, validity};
use refrain_tests::trace::repository;

/// Faults at a time.
const AT_A_TIME: usize = 3;
/// The example's oldest observation.
const MAX_AGE: Nanos = 350 * MILLISECOND;
/// And its chunks' deadline.
const DEADLINE: Nanos = SECOND;
/// And the end of their actions.
const LAST_ACTION: Nanos = 1500 * MILLISECOND;
/// How long observations are bad.
const BAD: Nanos = 700 * MILLISECOND;
/// How long the engine stays bad after that shows: long enough to hear what the robot gets meanwhile.
const LINGER: Nanos = 400 * MILLISECOND;
/// What a loaded machine may add to a time.
const SLACK: Nanos = 500 * MILLISECOND;

/// A fault: what is brought about, and what is expected beside the table.
struct Fault {
    name: &'static str,
    /// How it is known, as the table says.
    sign: &'static str,
    /// How often that was counted.
    count: fn(&Report) -> u64,
    /// Brings it about and ends it; gives the moment at which it ended.
    bring: fn(&mut Stage) -> Time,
    /// From the fault to the first other decision, at most.
    detected: Nanos,
    /// From its end to running again, at most.
    recovered: Nanos,
}

/// Where it happens: a rig, and a router between robot and daemon for the fault that needs one.
struct Stage {
    rig: Rig,
    router: Option<(Bus, String)>,
}

fn router(endpoint: &str) -> Bus {
    let zenoh = Some("{ mode: 'router', scouting: { multicast: { enabled: false } } }".to_owned());
    let section = BusSection { zenoh, listen: vec![endpoint.to_owned()], ..BusSection::default() };
    Bus::open(&section).expect("a router")
}

fn refused(report: &Report, refusal: Refusal) -> u64 {
    report.refused_for(refusal)
}

/// Sends only what `bad` makes, as often as good observations come.
fn only(stage: &mut Stage, bad: impl Fn(&mut Rig)) -> Time {
    let end = clock::now() + BAD;
    while clock::now() < end {
        bad(&mut stage.rig);
        clock::sleep_until(clock::now() + 20 * MILLISECOND);
    }
    clock::now()
}

/// Goes on well, for as long as the engine does not.
fn until(rig: &mut Rig, mode: Mode) -> Time {
    rig.observe_until("the fault's mode", |rig| rig.mode() == mode);
    rig.observe_until("a while", {
        let end = clock::now() + LINGER;
        move |_| clock::now() > end
    });
    clock::now()
}

fn bad(
    name: &'static str,
    sign: &'static str,
    count: fn(&Report) -> u64,
    bring: fn(&mut Stage) -> Time,
) -> Fault {
    Fault { name, sign, count, bring, detected: MAX_AGE + SLACK, recovered: SLACK }
}

fn slow(
    name: &'static str,
    sign: &'static str,
    count: fn(&Report) -> u64,
    bring: fn(&mut Stage) -> Time,
) -> Fault {
    Fault { name, sign, count, bring, detected: LAST_ACTION + SLACK, recovered: 2 * SECOND }
}

fn faults() -> Vec<Fault> {
    vec![
        bad(
            "observations stop",
            "StaleObservation",
            |r| r.counts.of(Outcome::StaleObservation),
            |stage| only(stage, |_| {}),
        ),
        bad(
            "observations come late",
            "TooOld",
            |r| refused(r, Refusal::TooOld),
            |stage| only(stage, |rig| rig.publish(&Rig::numbers(), rig.sequence() + 1, 3 * SECOND)),
        ),
        bad(
            "observations come out of order",
            "OutOfOrder",
            |r| refused(r, Refusal::OutOfOrder),
            |stage| only(stage, |rig| rig.publish(&Rig::numbers(), rig.sequence() - 1, 0)),
        ),
        bad(
            "observations come twice",
            "Duplicate",
            |r| refused(r, Refusal::Duplicate),
            |stage| only(stage, |rig| rig.publish(&Rig::numbers(), rig.sequence(), 0)),
        ),
        bad(
            "observations have a NaN",
            "NonFinite",
            |r| refused(r, Refusal::NonFinite),
            |stage| {
                only(stage, |rig| {
                    let mut values = Rig::numbers();
                    values[7] = f64::NAN;
                    rig.publish(&values, rig.sequence() + 1, 0);
                })
            },
        ),
        bad(
            "observations have the wrong shape",
            "WrongSize",
            |r| refused(r, Refusal::WrongSize),
            |stage| only(stage, |rig| rig.publish(&Rig::numbers()[..19], rig.sequence() + 1, 0)),
        ),
        bad(
            "the robot's clock is set an hour ahead",
            "FromTheFuture",
            |r| refused(r, Refusal::FromTheFuture),
            |stage| only(stage, |rig| rig.publish(&Rig::numbers(), rig.sequence() + 1, -3600 * SECOND)),
        ),
        bad(
            "the robot's clock is set an hour back",
            "TooOld",
            |r| refused(r, Refusal::TooOld),
            |stage| only(stage, |rig| rig.publish(&Rig::numbers(), rig.sequence() + 1, 3600 * SECOND)),
        ),
        slow(
            "inference is slower than the deadline",
            "FollowedLate",
            |r| r.counts.of(Outcome::FollowedLate),
            |stage| {
                let rig = &mut stage.rig;
                rig.engine.delay_ms.store(1800, Ordering::Relaxed);
                until(rig, Mode::Coasting);
                let end = until(rig, Mode::Holding);
                rig.engine.delay_ms.store(0, Ordering::Relaxed);
                end
            },
        ),
        slow(
            "the engine fails, with none behind it",
            "inference_failed",
            |r| r.inference_failed,
            |stage| {
                let rig = &mut stage.rig;
                rig.engine.fails.store(true, Ordering::Relaxed);
                let end = until(rig, Mode::Holding);
                rig.engine.fails.store(false, Ordering::Relaxed);
                end
            },
        ),
        slow(
            "predictions are NaN",
            "inference_non_finite",
            |r| r.inference_non_finite,
            |stage| {
                let rig = &mut stage.rig;
                rig.engine.nan.store(true, Ordering::Relaxed);
                let end = until(rig, Mode::Holding);
                rig.engine.nan.store(false, Ordering::Relaxed);
                end
            },
        ),
        Fault {
            name: "the engine is lost, the CPU's is behind it",
            sign: "engines_lost",
            count: |r| r.engines_lost,
            bring: |stage| {
                let rig = &mut stage.rig;
                rig.engine.fails.store(true, Ordering::Relaxed);
                rig.observe_until("the other engine", |rig| rig.daemon.report().engines_lost > 0);
                clock::now()
            },
            detected: SECOND,
            recovered: SLACK,
        },
        Fault {
            name: "the robot's zenoh session is closed and opened again",
            sign: "NoController",
            count: |r| r.counts.of(Outcome::NoController),
            bring: |stage| {
                let rig = &mut stage.rig;
                rig.reopen(BAD);
                clock::now()
            },
            detected: SLACK,
            recovered: SLACK,
        },
        Fault {
            name: "the router between them is closed and opened again",
            sign: "NoController",
            count: |r| r.counts.of(Outcome::NoController),
            bring: |stage| {
                let (closed, endpoint) = stage.router.take().expect("a router");
                closed.close().expect("closed");
                clock::sleep_until(clock::now() + BAD);
                stage.router = Some((router(&endpoint), endpoint));
                clock::now()
            },
            detected: SLACK,
            // Zenoh tries again every one to four seconds.
            recovered: 15 * SECOND,
        },
        Fault {
            name: "the controller is gone",
            sign: "NoController",
            count: |r| r.counts.of(Outcome::NoController),
            bring: |stage| {
                let rig = &mut stage.rig;
                rig.ignore();
                let end = clock::now() + BAD;
                rig.observe_until("a while", |_| clock::now() > end);
                rig.listen();
                clock::now()
            },
            detected: SLACK,
            recovered: SLACK,
        },
        Fault {
            name: "a second daemon commands the same robot",
            sign: "Claimed, to the second",
            count: |_| 1,
            bring: |stage| {
                let rig = &mut stage.rig;
                let mut config = robot_config();
                config.bus.connect = rig.robot.bus.listen.clone();
                let robot = config.resolve(&policy_config()).unwrap();
                let refused = Daemon::start(&robot, double()).err().expect("two daemons command one robot");
                assert!(matches!(refused, DaemonError::Bus(BusError::Claimed { .. })), "{refused}");
                clock::now()
            },
            detected: SECOND,
            recovered: SLACK,
        },
    ]
}

/// The engine of the shipped policy, behind the double.
fn guarded(double: Double) -> Policy {
    let package = Arc::new(builtin::package().expect("the built-in policy"));
    let file = builtin::schedule().expect("its schedule");
    let config = policy_config();
    let mut sampled = package.config.clone();
    sampled.sampler = file.sampler.clone();
    let schedule = file.check(&sampled, &package.weights_sha256()).expect("its own schedule");
    let plan = Arc::new(Plan::compile(&sampled, &schedule).expect("a plan"));
    let cpu = CpuEngine::new(package, plan, 1).expect("a CPU engine");
    Policy::new(config, Box::new(Guarded::new(double, cpu)))
}

fn configure(config: &mut RobotConfig, fault: &Fault, endpoint: &Option<String>) {
    if let Some(endpoint) = endpoint {
        config.bus.listen = Vec::new();
        config.bus.connect = vec![endpoint.clone()];
    }
    // Only where it is about that, a loaded machine must not be taken for a robot that is not seen.
    if fault.detected != MAX_AGE + SLACK {
        config.observation.max_age_ms = 5000.0;
    }
}

/// Brings a fault about and gives its line of the table.
fn play(fault: &Fault, folder: &Path) -> String {
    let name = fault.name;
    let file = folder.join(format!("{name}.mcap"));
    let log = Log::begin(Place::File(file.clone()), Default::default(), clock::read()).expect("a recording");
    let endpoint = name.starts_with("the router").then(|| bus::free_endpoint().expect("a free port"));
    let router = endpoint.clone().map(|endpoint| (router(&endpoint), endpoint));
    let change = |config: &mut RobotConfig| configure(config, fault, &endpoint);
    let rig = if name.contains("behind it") && fault.sign == "engines_lost" {
        Rig::running(change, Some(log), guarded)
    } else {
        Rig::recorded(change, Some(log))
    };
    let mut stage = Stage { rig, router };
    stage.rig.observe_until("running", |rig| rig.mode() == Mode::Running);
    stage.rig.observe_until("some motion", |rig| rig.received().len() > 20);
    let begin = clock::now();
    let end = (fault.bring)(&mut stage);
    let rig = &mut stage.rig;
    rig.observe_until("running again", |rig| rig.mode() == Mode::Running && rig.since(end).len() > 5);
    let again = clock::now();
    let counted = (fault.count)(&rig.daemon.report());
    let max_age = rig.robot.control.max_observation_age;
    let (_, received) = stage.rig.end();

    let (_, messages) = record::read(&file).expect("a recording");
    let ticks: Vec<Tick> = messages
        .into_iter()
        .filter_map(|m| if let Message::Tick(tick) = m { Some(tick) } else { None })
        .collect();
    let from = ticks.partition_point(|tick| tick.time < begin.nanos());
    let to = ticks.partition_point(|tick| tick.time <= again.nanos());
    let during = &ticks[from - 1..to];
    let bad = during.iter().position(|tick| tick.mode != "Running");
    let safe = during.iter().position(|tick| tick.mode == "Holding" || tick.mode == "Warmup");
    let back = during.iter().rposition(|tick| tick.mode != "Running");
    let at = |i: usize| Time::from_nanos(during[i].time);

    assert!(counted > 0, "{name}: {} was not counted", fault.sign);
    sound(name, &received);
    let mut told = format!("{name}: {} {counted} times", fault.sign);
    if let (Some(bad), Some(back)) = (bad, back) {
        let detected = at(bad) - begin;
        assert!(detected <= fault.detected, "{name}: detected after {} ms", detected / MILLISECOND);
        let recovered = at(back) - end;
        assert!(recovered <= fault.recovered, "{name}: recovered after {} ms", recovered / MILLISECOND);
        let _ = write!(
            told,
            ", after {} ms; running {} ms after its end",
            detected / MILLISECOND,
            recovered / MILLISECOND
        );
    }
    println!("{told}");
    let heard = match (safe, back) {
        (Some(safe), Some(back)) => {
            // What was sent before may still arrive for a moment.
            let (from, to) = (at(safe) + 100 * MILLISECOND, at(back));
            heard(received.iter().filter(|command| command.at > from && command.at < to))
        }
        _ => "motion, all the while",
    };
    format!("| {name} | {} | {} | {heard} | {} |", fault.sign, when(during, bad, max_age), story(during))
}

/// When the first decision fell that was another one.
fn when(ticks: &[Tick], bad: Option<usize>, max_age: Nanos) -> &'static str {
    let Some(bad) = bad else { return "-" };
    let (tick, before) = (&ticks[bad], &ticks[bad - 1]);
    match tick.outcome.as_str() {
        "StaleObservation" => {
            let age = tick.time - tick.observation;
            let first = age > max_age && before.time - tick.observation <= max_age;
            if first { "at the first tick that finds the newest one older than 350 ms" } else { "late" }
        }
        "FollowedLate" => {
            let age = tick.time - tick.observation;
            let first = age > DEADLINE && before.time - tick.observation <= DEADLINE;
            if first { "at the first tick past the chunk's deadline of 1000 ms" } else { "late" }
        }
        _ => "at the first tick after zenoh tells",
    }
}

/// The modes, each with why it was entered.
fn story(ticks: &[Tick]) -> String {
    let mut story = vec!["Running".to_owned()];
    for pair in ticks.windows(2).filter(|pair| pair[0].mode != pair[1].mode) {
        let tick = &pair[1];
        story.push(if tick.mode == "Running" {
            "Running".into()
        } else {
            format!("{} ({})", tick.mode, tick.outcome)
        });
    }
    story.join(", ")
}

fn heard<'a>(commands: impl Iterator<Item = &'a Received>) -> &'static str {
    let commands: Vec<_> = commands.collect();
    match commands.first() {
        None => "nothing",
        Some(first) if commands.iter().all(|command| command.values == first.values) => {
            "one position, every tick"
        }
        Some(_) => "motion",
    }
}

/// Whatever happened: sequence numbers and times advance, numbers are finite and inside the limits.
fn sound(name: &str, received: &[Received]) {
    for pair in received.windows(2) {
        assert!(pair[1].attachment.sequence > pair[0].attachment.sequence, "{name}: {pair:?}");
        assert!(pair[1].attachment.source > pair[0].attachment.source, "{name}: {pair:?}");
    }
    for command in received {
        assert!(command.values.iter().all(|v| (0.0..=512.0).contains(v)), "{name}: {command:?}");
        assert_eq!(validity(command).until - command.attachment.source, 100 * MILLISECOND, "{name}");
    }
}

#[test]
fn every_fault_is_answered_as_the_table_says() {
    let folder = std::env::temp_dir().join(format!("refrain-faults-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let faults = faults();
    let mut rows: Vec<(usize, String)> = threads::in_parallel("fault", AT_A_TIME, |worker| {
        let own = faults.iter().enumerate().skip(worker).step_by(AT_A_TIME);
        own.map(|(i, fault)| (i, play(fault, &folder))).collect::<Vec<_>>()
    })
    .concat();
    rows.sort();
    std::fs::remove_dir_all(&folder).unwrap();
    let told: Vec<&str> = rows.iter().map(|(_, row)| row.as_str()).collect();
    let table = std::fs::read_to_string(repository().join("tests/faults.md")).expect("the table");
    let written: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(2).collect();
    assert_eq!(told, written, "the table now reads:\n{}\n", told.join("\n"));
}
