//! The daemon and a robot over zenoh on loopback: refusals, stops, takeover, trajectories, shadow mode. Faults have a table of
//! their own (`faults.rs`).
//!
//! Times are bounds for a machine under load, not measurements; `cargo test -- --nocapture` prints what was measured.

use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use refrain_policies::coverage::Coverage;
use refrain_runtime::bus::names::Qos;
use refrain_runtime::bus::service::Answer;
use refrain_runtime::bus::{self, Bus, BusSection, Convention, Traffic, cdr, interface};
use refrain_runtime::clock::{self, MILLISECOND, SECOND};
use refrain_runtime::control::{Command, Mode, Outcome};
use refrain_runtime::daemon::Daemon;
use refrain_runtime::ladder::{Rung, Rungs, Timing};
use refrain_runtime::observation::Refusal;
use refrain_runtime::policy::Policy;
use refrain_runtime::record::{self, Limits, Log, Message, Place};
use refrain_tests::robot::{Received, Rig, double, policy_config, robot_config, validity};

/// Where [`while_the_disk_fills`] records.
const FOLDER: &str = "REFRAIN_TEST_RECORDING";
/// What a loaded machine may add.
const SLACK: i64 = 400 * MILLISECOND;

fn millis(span: i64) -> f64 {
    span as f64 / MILLISECOND as f64
}

/// Sequence numbers and times advance, everything is finite and inside the limits.
fn assert_sound(received: &[Received]) {
    assert!(!received.is_empty(), "the robot received nothing");
    for pair in received.windows(2) {
        assert!(pair[1].attachment.sequence > pair[0].attachment.sequence);
        assert!(pair[1].attachment.source > pair[0].attachment.source);
    }
    for command in received {
        assert!(command.values.iter().all(|v| (0.0..=512.0).contains(v)), "{command:?}");
        let validity = validity(command);
        assert!(validity.observation <= command.attachment.source, "{command:?}");
        assert_eq!(validity.until - command.attachment.source, 100 * MILLISECOND);
    }
}

fn assert_still(received: &[Received]) {
    assert!(received.len() > 5, "the hold is sent: {}", received.len());
    assert!(received.windows(2).all(|pair| pair[0].values == pair[1].values), "motion in a hold");
}

#[test]
fn bad_observations_are_refused_by_name_while_good_ones_go_on() {
    let mut rig = Rig::start(|_| {});
    rig.observe_until("running", |rig| rig.mode() == Mode::Running);
    let good = Rig::numbers();
    let mut expected = [0_u64; Refusal::ALL.len()];
    let mut bad = |rig: &mut Rig, refusal: Refusal, publish: &dyn Fn(&mut Rig, i64)| {
        for _ in 0..3 {
            rig.observe(10 * MILLISECOND);
            // The next good one has the sequence number after the last good one.
            let last = rig.sequence();
            publish(rig, last);
            expected[Refusal::ALL.iter().position(|r| *r == refusal).unwrap()] += 1;
        }
    };
    bad(&mut rig, Refusal::TooOld, &|rig, last| rig.publish(&good, last + 1, SECOND));
    bad(&mut rig, Refusal::FromTheFuture, &|rig, last| rig.publish(&good, last + 1, -SECOND));
    bad(&mut rig, Refusal::OutOfOrder, &|rig, last| rig.publish(&good, last - 1, 0));
    bad(&mut rig, Refusal::OutOfOrder, &|rig, last| rig.publish(&good, last + 1, 200 * MILLISECOND));
    bad(&mut rig, Refusal::Duplicate, &|rig, last| rig.publish(&good, last, 0));
    bad(&mut rig, Refusal::NonFinite, &|rig, last| {
        let mut values = good;
        values[7] = f64::NAN;
        rig.publish(&values, last + 1, 0);
    });
    bad(&mut rig, Refusal::WrongSize, &|rig, last| rig.publish(&good[..19], last + 1, 0));
    bad(&mut rig, Refusal::WrongSize, &|rig, last| rig.publish(&[0.0; 21], last + 1, 0));
    bad(&mut rig, Refusal::Undecodable, &|rig, last| {
        rig.publish_bytes(&[0, 1, 0, 0, 7], last + 1, clock::read().wall);
    });
    bad(&mut rig, Refusal::NoStamp, &|rig, _| {
        let mut payload = Vec::new();
        cdr::write_array(&mut payload, &good);
        rig.observations.put_bare(&payload).unwrap();
    });
    rig.observe_until("all were seen", |rig| {
        rig.daemon.report().refused.iter().sum::<u64>() >= expected.iter().sum()
    });
    let (report, received) = rig.end();
    for (refusal, expected) in Refusal::ALL.into_iter().zip(expected) {
        println!("{refusal}: {} refused", report.refused_for(refusal));
        assert_eq!(report.refused_for(refusal), expected, "{refusal}");
    }
    assert_eq!(report.counts.of(Outcome::StaleObservation), 0, "good observations kept it running");
    assert_sound(&received);
}

#[test]
fn what_slow_inference_made_stale_is_skipped() {
    let mut rig = Rig::start(|_| {});
    rig.engine.delay_ms.store(250, Ordering::Relaxed);
    rig.observe_until("stale actions", |rig| rig.daemon.report().counts.actions_skipped >= 2);
    assert_sound(&rig.end().1);
}

#[test]
fn a_stop_over_the_bus_latches_until_a_reset() {
    let mut rig = Rig::start(|_| {});
    rig.observe_until("running", |rig| rig.mode() == Mode::Running);
    rig.bus.publisher("pusht/stop", &interface::EMPTY, Traffic::Control).unwrap().put_bare(b"").unwrap();
    let stopped = rig.observe_until("stopped", |rig| rig.mode() == Mode::Stopped);
    assert!(stopped <= SLACK, "{} ms", millis(stopped));
    let from = clock::now() + 50 * MILLISECOND;
    let mut more = 0;
    rig.observe_until("ten more observations", |_| {
        more += 1;
        more > 10
    });
    assert_eq!(rig.mode(), Mode::Stopped);
    assert_still(&rig.since(from));

    let reply = rig.bus.call_trigger("/pusht/reset").unwrap().expect("a reply");
    assert_eq!(reply, Answer { success: true, message: "reset asked for".into() });
    rig.observe_until("running again", |rig| rig.mode() == Mode::Running);
    let reply = rig.bus.call_trigger("pusht/stop").unwrap().expect("a reply");
    assert!(reply.success);
    let asked = rig.observe_until("stopped by the service", |rig| rig.mode() == Mode::Stopped);
    println!("stop: {:.1} ms after the put, {:.1} ms after the call", millis(stopped), millis(asked));
    let (report, received) = rig.end();
    assert_eq!((report.counts.stops, report.counts.resets), (2, 1), "leaving finds it stopped");
    assert_sound(&received);
}

#[test]
fn a_robot_out_of_range_gets_no_command() {
    let mut rig = Rig::start(|config| {
        for joint in &mut config.action.joints {
            (joint.position, joint.velocity) = (Some([200.0, 300.0]), 1.0);
        }
    });
    rig.observe_until("refused", |rig| rig.daemon.report().counts.of(Outcome::StartRefused) > 20);
    let (report, received) = rig.end();
    assert_eq!(received, []);
    assert_eq!(report.commands, 0);
}

#[test]
fn a_chunk_is_one_trajectory_and_a_stop_is_a_hold() {
    let mut rig = Rig::start(|config| {
        config.action.trajectory_topic = Some("arm_controller/joint_trajectory".into());
        config.control.interpolation = refrain_runtime::chunk::Interpolation::Linear;
        for joint in &mut config.action.joints {
            (joint.velocity, joint.acceleration) = (200.0, 2000.0);
        }
    });
    let got = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let keep = std::sync::Arc::clone(&got);
    let _trajectories = rig
        .bus
        .subscribe(
            "arm_controller/joint_trajectory",
            &interface::JOINT_TRAJECTORY,
            Qos::NEWEST,
            move |message| {
                keep.lock().unwrap().push((
                    clock::now(),
                    message.payload.to_vec(),
                    message.attachment.unwrap(),
                ));
            },
        )
        .unwrap();
    rig.observe_until("running", |rig| rig.mode() == Mode::Running);
    rig.observe_until("two chunks", |rig| rig.daemon.report().counts.chunks >= 2);
    rig.daemon.signals().stop();
    rig.observe_until("stopped", |rig| rig.mode() == Mode::Stopped);
    let (report, _) = rig.end();
    let got = got.lock().unwrap();
    assert!(got.len() as u64 >= report.counts.chunks, "{} trajectories", got.len());
    for (_, payload, attachment) in got.iter() {
        assert!(attachment.validity.unwrap().until > attachment.source);
        let stamp = i64::from(i32::from_le_bytes(*payload[4..].first_chunk().unwrap())) * SECOND
            + i64::from(u32::from_le_bytes(*payload[8..].first_chunk().unwrap()));
        assert_eq!(stamp, attachment.source.nanos(), "header stamp and attachment agree");
        assert_eq!(&payload[20..24], 2_u32.to_le_bytes(), "two joints");
    }
}

#[test]
fn zenohs_own_configuration_is_passed_through() {
    let section = |text: &str| bus::BusSection { zenoh: Some(text.into()), ..Default::default() };
    let refused = Bus::open(&section("{ mode: 'admiral' }")).err().expect("no such mode");
    assert!(matches!(refused, bus::BusError::Config { .. }), "{refused}");
    let good = "{ mode: 'peer', scouting: { multicast: { enabled: false } }, listen: { endpoints: [] } }";
    Bus::open(&section(good)).unwrap().close().unwrap();
}

#[test]
fn a_robot_is_free_when_its_daemon_is_gone() {
    let rig = Rig::start(|_| {});
    let robot = rig.robot.clone();
    rig.end();
    Daemon::start(&robot, double()).expect("the robot is free").shutdown().unwrap();
}

#[test]
fn a_shadow_commands_nothing_and_tells_how_far_it_is_from_who_does() {
    let mut rig = Rig::start(|_| {});
    let file = std::env::temp_dir().join(format!("refrain-shadow-{}.mcap", process::id()));
    let log = Log::begin(Place::File(file.clone()), Default::default(), clock::read()).unwrap();
    let mut config = robot_config();
    config.action.shadow = true;
    // The same policy; what tells the two apart is how far the first joint may go here.
    config.action.joints[0].position = Some([0.0, 150.0]);
    config.bus.listen = Vec::new();
    config.bus.connect = vec![rig.robot.bus.listen[0].clone(), rig.endpoint.clone()];
    let robot = config.resolve(&policy_config()).unwrap();
    let shadow = Daemon::recorded(&robot, double(), Some(log)).expect("a shadow is no second commander");
    rig.observe_until("both running", |rig| {
        rig.mode() == Mode::Running && shadow.signals().mode() == Mode::Running
    });
    rig.observe_until("pairs, and some far apart", |_| {
        let told = shadow.report().shadow;
        told.compared > 100 && told.joints[0].largest > 100.0
    });
    let metrics = shadow.metrics(&[]);
    assert!(metrics.contains("refrain_shadow_difference{joint=\"1\",what=\"largest\"}"), "{metrics}");
    let told = shadow.shutdown().unwrap();
    assert_eq!((told.commands, told.commands_failed), (0, 0), "nothing is commanded");
    let (report, received) = rig.end();
    assert_eq!(report.counts.stops, 1, "the shadow's end stops nobody but itself");
    let sender = received[0].attachment.publisher;
    assert!(received.iter().all(|command| command.attachment.publisher == sender), "one commander");
    assert_sound(&received);

    let (_, messages) = record::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let pairs: Vec<_> = messages
        .iter()
        .filter_map(|m| if let Message::Shadow(pair) = m { Some(pair) } else { None })
        .collect();
    assert_eq!(pairs.len() as u64, told.shadow.compared);
    let apart = |pair: &&record::Shadow| (pair.ours[0] - pair.theirs[0]).abs();
    let (sum, largest) = pairs.iter().map(apart).fold((0.0, 0.0), |(s, l): (f64, f64), d| (s + d, l.max(d)));
    let joint = told.shadow.joints[0];
    assert!(
        (joint.sum - sum).abs() < 1e-6 && joint.largest == largest,
        "{joint:?}, recorded {sum} {largest}"
    );
    for pair in &pairs {
        assert!(pair.ours[0] <= 150.0, "not ours: {pair:?}");
        assert!(received.iter().any(|command| command.values == pair.theirs), "never sent: {pair:?}");
    }
    println!("shadow: {} pairs, mean {:.2}, largest {:.2}", pairs.len(), sum / pairs.len() as f64, largest);
}

#[test]
fn a_full_disk_ends_the_recording_and_the_robot_goes_on() {
    let folder = std::env::temp_dir().join(format!("refrain-full-{}", process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let now = clock::read();
    // The second file has no room at all.
    let second = format!("arm-{:012}-000001.mcap", (now.wall.nanos() - now.time.nanos()) / SECOND);
    std::os::unix::fs::symlink("/dev/full", folder.join(second)).unwrap();
    let place = Place::Folder(folder.clone(), "arm".into(), Limits { file: 30_000, files: 3 });
    let log = Log::begin(place, Default::default(), now).unwrap();
    let mut rig = Rig::recorded(|_| {}, Some(log));
    rig.observe_until("the recording ended", |rig| rig.daemon.report().recorded.1 > 0);
    let (from, chunks) = (clock::now(), rig.daemon.report().counts.chunks);
    rig.observe_until("commands and a chunk", |rig| {
        rig.since(from).len() > 60 && rig.daemon.report().counts.chunks > chunks
    });
    assert_eq!(rig.mode(), Mode::Running);
    let (report, received) = rig.end();
    std::fs::remove_dir_all(&folder).unwrap();
    let (written, lost) = report.recorded;
    assert!(written > 50 && lost > 50, "{written} written, {lost} lost");
    assert_sound(&received);
}

/// The limit on a file's size stands for the disk's: what goes beyond is written in part, then refused. It holds for a whole
/// process, hence a process.
#[test]
fn a_disk_that_becomes_full_in_the_middle_of_a_file_ends_the_recording_and_nothing_else() {
    let folder = std::env::temp_dir().join(format!("refrain-fills-{}", process::id()));
    let output = process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 700; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "while_the_disk_fills", "--ignored", "--nocapture"])
        .env(FOLDER, &folder)
        .output()
        .expect("a shell");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
    print!("{said}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
#[ignore = "needs a disk that fills; the test above makes one"]
fn while_the_disk_fills() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).expect("a folder"));
    let place = Place::Folder(folder.clone(), "arm".into(), Limits { file: 1 << 30, files: 3 });
    let log = Log::begin(place, Default::default(), clock::read()).unwrap();
    let mut rig = Rig::recorded(|config| config.control.rate_hz = 1000.0, Some(log));
    rig.observe_until("the recording ended", |rig| rig.daemon.report().recorded.1 > 0);
    let (from, chunks) = (clock::now(), rig.daemon.report().counts.chunks);
    rig.observe_until("commands and a chunk", |rig| {
        rig.since(from).len() > 60 && rig.daemon.report().counts.chunks > chunks
    });
    assert_eq!(rig.mode(), Mode::Running);
    let metrics = rig.daemon.metrics(&[]);
    let (report, received) = rig.end();
    assert_sound(&received);
    let (written, lost) = report.recorded;
    assert!(!metrics.contains("refrain_recording_lost_total 0"), "{metrics}");
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    let (_, messages) = record::read(&files[0]).unwrap();
    assert_eq!((files.len(), messages.len() as u64), (1, written), "what counts as written can be read");
    assert!(written > 500 && lost > 50, "{written} written, {lost} lost");
    println!("{written} messages written, {lost} lost");
}

#[test]
fn a_controller_that_is_named_is_not_mistaken_for_a_recorder() {
    const ROBOT: &str = "@ros2_lv/0/*/*/*/MS/*/*/robot/**";
    let mut rig = Rig::start(|config| {
        config.bus.convention = Convention::RmwZenoh;
        config.action.controller = Some(ROBOT.into());
    });
    rig.observe_until("running", |rig| rig.mode() == Mode::Running);
    let alone = |rig: &mut Rig| {
        rig.ignore();
        let before = rig.daemon.report().counts.of(Outcome::NoController);
        rig.observe_until("nobody is in charge", |rig| {
            rig.mode() == Mode::Warmup && rig.daemon.report().counts.of(Outcome::NoController) > before + 20
        });
    };
    alone(&mut rig);
    let section = BusSection {
        node: Some("recorder".into()),
        connect: vec![rig.robot.bus.listen[0].clone(), rig.endpoint.clone()],
        listen: Vec::new(),
        ..rig.robot.bus.clone()
    };
    let recorder = Bus::open(&section).unwrap();
    let topic = rig.robot.command_topic.clone().unwrap();
    let heard = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&heard);
    let listening = recorder.subscribe(&topic, &interface::FLOAT64_MULTI_ARRAY, Qos::NEWEST, move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let ticks = rig.daemon.ticks();
    rig.observe_until("half a second", |rig| rig.daemon.ticks() > ticks + 50);
    assert_eq!((rig.mode(), heard.load(Ordering::Relaxed)), (Mode::Warmup, 0), "the recorder is commanded");
    rig.listen();
    rig.observe_until("the recorder hears too", |_| heard.load(Ordering::Relaxed) > 0);

    // Who comes later is told who is there already.
    let there = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&there);
    let _presence = recorder.presence(ROBOT, move |yes| told.store(1 + u64::from(yes), Ordering::Relaxed));
    rig.observe_until("the robot is there", |_| there.load(Ordering::Relaxed) == 2);
    alone(&mut rig);
    rig.observe_until("the robot is gone", |_| there.load(Ordering::Relaxed) == 1);
    rig.listen();
    rig.observe_until("running again", |rig| rig.mode() == Mode::Running);
    drop(listening);
    assert_sound(&rig.end().1);
}

#[test]
fn a_shadow_compares_only_what_is_valid_and_can_be_read() {
    let mut config = robot_config();
    config.action.shadow = true;
    let robot = config.resolve(&policy_config()).unwrap();
    let bus = Bus::open(&robot.bus).unwrap();
    let (sender, pairs) = std::sync::mpsc::channel();
    let shadow = bus::Shadow::open(&bus, &robot, move |pair| sender.send(pair).unwrap()).unwrap();
    let other =
        Bus::open(&BusSection { connect: robot.bus.listen.clone(), ..BusSection::default() }).unwrap();
    let theirs = other.publisher("pusht/command", &interface::FLOAT64_MULTI_ARRAY, Traffic::Control).unwrap();
    while !theirs.is_matched() {
        clock::sleep_until(clock::now() + MILLISECOND);
    }
    let said = |values: &[f64]| {
        let mut payload = Vec::new();
        cdr::write_array(&mut payload, values);
        theirs.put_bare(&payload).unwrap();
        pairs.recv_timeout(std::time::Duration::from_secs(20)).expect("a command")
    };
    assert_eq!(said(&[1.0, 2.0]), None, "nothing is commanded here yet");
    let valid_until = clock::now() + 60 * SECOND;
    let mut ours = Command { send: true, joints: 2, valid_until, ..Command::NONE };
    ours.values[..2].copy_from_slice(&[3.0, 4.0]);
    shadow.set(&ours);
    let pair = said(&[1.0, 2.0]).expect("a pair");
    assert_eq!((pair.ours, pair.theirs), (vec![3.0, 4.0], vec![1.0, 2.0]));
    assert_eq!(said(&[1.0, f64::NAN]), None);
    assert_eq!(said(&[1.0]), None);
    shadow.set(&Command { valid_until: clock::now(), ..ours });
    clock::sleep_until(clock::now() + MILLISECOND);
    assert_eq!(said(&[1.0, 2.0]), None, "what was commanded here is over");
}

#[test]
fn what_the_schedule_was_not_found_with_is_counted() {
    let size = policy_config().observation.size();
    let normal = |raw: f32| {
        let mut values = vec![raw; size];
        policy_config().observation.normalizer.normalize(&mut values);
        values
    };
    let coverage = Coverage { low: normal(50.0), high: normal(150.0) };
    let mut rig = Rig::running(
        |_| {},
        None,
        |engine| Policy::new(policy_config(), Box::new(engine)).watch(Some(coverage)),
    );
    rig.observe_until("predictions", |rig| rig.daemon.report().inference.count >= 2);
    assert_eq!(rig.daemon.report().inference_outside, 0, "(100, 100) is inside");
    let mut far = Rig::numbers();
    far[3] = 400.0;
    let mut sequence = rig.sequence();
    rig.wait_until("predictions outside", |rig| {
        sequence += 1;
        rig.publish(&far, sequence, 0);
        clock::sleep_until(clock::now() + 20 * MILLISECOND);
        rig.daemon.report().inference_outside > 0
    });
    assert!(rig.daemon.metrics(&[]).contains("refrain_inference_outside_calibration_total 1"));
    rig.end();
}

#[test]
fn a_slow_plan_gives_way_to_a_faster_one_and_comes_back_when_there_is_room() {
    let file = std::env::temp_dir().join(format!("refrain-ladder-{}.mcap", process::id()));
    let log = Log::begin(Place::File(file.clone()), Default::default(), clock::read()).unwrap();
    // Chunks in time take half of the deadline: 500 ms.
    let mut rig = Rig::running(
        |config| config.chunk.replan_always = true,
        Some(log),
        |engine| {
            let timing = Timing { p50: 2 * MILLISECOND, p99: 2 * MILLISECOND };
            let rung = |name: &str, policy| Rung { name: name.into(), policy, timing };
            let good = Policy::new(policy_config(), Box::new(engine));
            Rungs { rungs: vec![rung("good", good), rung("fast", double())] }
        },
    );
    rig.observe_until("running", |rig| rig.mode() == Mode::Running);
    rig.engine.delay_ms.store(700, Ordering::Relaxed);
    rig.observe_until("the faster plan", |rig| rig.daemon.report().rung == 1);
    rig.engine.delay_ms.store(0, Ordering::Relaxed);
    let names = ["good", "fast"].map(String::from);
    let metrics = rig.daemon.metrics(&names);
    assert!(metrics.contains("refrain_plan{rung=\"1\",schedule=\"fast\"} 1"), "{metrics}");
    rig.observe_until("the better plan again", |rig| rig.daemon.report().rung == 0);
    rig.observe_until("a prediction by it", |rig| rig.daemon.report().steps_up == 1);
    let (report, received) = rig.end();
    assert_sound(&received);
    assert_eq!((report.steps_down, report.steps_up), (1, 1), "{report:#?}");
    let (_, messages) = record::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let mut ran: Vec<(u32, bool)> = Vec::new();
    let mut steps = Vec::new();
    for message in messages {
        match message {
            Message::Inference(inference) => ran.push((inference.rung, inference.span > 500 * MILLISECOND)),
            Message::Plan(plan) => steps.push((plan.from, plan.to, plan.schedule, plan.why)),
            _ => {}
        }
    }
    let step = |from, to, name: &str, why: &str| (from, to, name.to_owned(), why.to_owned());
    assert_eq!(steps, [step(0, 1, "fast", "Missed"), step(1, 0, "good", "Up")]);
    let slow = ran.iter().position(|(_, slow)| *slow).expect("a slow prediction");
    assert_eq!((ran[slow].0, ran[slow + 1]), (0, (1, false)), "the next one runs the faster plan");
    assert!(ran[slow + 1..].iter().filter(|(rung, _)| *rung == 1).count() >= 100, "patience");
}

#[test]
fn an_operator_takes_over_and_hands_back_over_the_bus() {
    let mut rig = Rig::start(|_| {});
    rig.observe_until("running", |rig| rig.mode() == Mode::Running);
    let reply = rig.bus.call_trigger("pusht/takeover").unwrap().expect("a reply");
    assert!(reply.success);
    rig.observe_until("taken over", |rig| rig.mode() == Mode::Warmup);
    let from = clock::now() + 50 * MILLISECOND;
    let mut more = 0;
    rig.observe_until("ten more observations", |_| {
        more += 1;
        more > 10
    });
    assert_eq!(rig.since(from), [], "commands while an operator is in charge");
    let publisher = rig.bus.publisher("pusht/handback", &interface::EMPTY, Traffic::Control).unwrap();
    publisher.put_bare(b"").unwrap();
    let back = rig.observe_until("running again", |rig| rig.mode() == Mode::Running);
    println!("hand-back: running after {:.1} ms", millis(back));
    let (report, received) = rig.end();
    assert!(report.counts.of(Outcome::TakenOver) > 10, "{report:#?}");
    assert_sound(&received);
}
