//! The daemon and a robot over zenoh on loopback: whatever goes wrong is named, counted, and answered by a hold.
//!
//! Times are bounds for a machine under load, not measurements; `cargo test -- --nocapture` prints what was measured.

use std::sync::atomic::Ordering;

use refrain_runtime::bus::names::Qos;
use refrain_runtime::bus::service::Answer;
use refrain_runtime::bus::{self, Traffic, cdr, interface};
use refrain_runtime::clock::{self, MILLISECOND, SECOND};
use refrain_runtime::control::{Mode, Outcome};
use refrain_runtime::daemon::{Daemon, DaemonError};
use refrain_runtime::observation::Refusal;
use refrain_tests::robot::{Received, Rig, double, policy_config, robot_config, validity};

/// The example's oldest observation, and its commands' validity.
const MAX_AGE: i64 = 350 * MILLISECOND;
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
fn an_observation_that_stops_is_detected_and_recovered_from() {
    let mut rig = Rig::start(|_| {});
    rig.observe_until("running", |rig| rig.mode() == Mode::Running);
    rig.observe_until("some motion", |rig| rig.received().len() > 20);
    let detected = rig.wait_until("holding", |rig| rig.mode() == Mode::Holding);
    assert!(detected <= MAX_AGE + SLACK, "{} ms", millis(detected));
    let held = clock::now() + 50 * MILLISECOND;
    clock::sleep_until(held + 200 * MILLISECOND);
    assert_still(&rig.since(held));
    let recovered = rig.observe_until("running again", |rig| rig.mode() == Mode::Running);
    println!(
        "observation stops: held after {:.1} ms, running {:.1} ms after it came back",
        millis(detected),
        millis(recovered)
    );
    let (report, received) = rig.end();
    assert!(report.counts.of(Outcome::StaleObservation) > 10, "{report:#?}");
    assert_eq!(report.mode, Mode::Stopped, "leaving stops");
    assert_sound(&received);
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
fn slow_and_failing_inference_coasts_holds_and_recovers() {
    let mut rig = Rig::start(|_| {});
    rig.observe_until("running", |rig| rig.mode() == Mode::Running);
    rig.engine.delay_ms.store(2500, Ordering::Relaxed);
    rig.observe_until("coasting", |rig| rig.mode() == Mode::Coasting);
    rig.observe_until("holding", |rig| rig.mode() == Mode::Holding);
    let held = clock::now() + 50 * MILLISECOND;
    rig.engine.delay_ms.store(0, Ordering::Relaxed);
    rig.observe_until("running again", |rig| rig.mode() == Mode::Running);
    assert!(rig.since(held).iter().all(|command| command.values == rig.since(held)[0].values));

    rig.engine.fails.store(true, Ordering::Relaxed);
    rig.observe_until("holding without an engine", |rig| rig.mode() == Mode::Holding);
    rig.engine.fails.store(false, Ordering::Relaxed);
    rig.engine.nan.store(true, Ordering::Relaxed);
    rig.observe_until("non-finite predictions", |rig| rig.daemon.report().inference_non_finite > 0);
    assert_eq!(rig.mode(), Mode::Holding);
    rig.engine.nan.store(false, Ordering::Relaxed);
    let recovered = rig.observe_until("running at last", |rig| rig.mode() == Mode::Running);
    println!("engine back: running after {:.1} ms", millis(recovered));
    rig.engine.delay_ms.store(250, Ordering::Relaxed);
    rig.observe_until("stale actions", |rig| rig.daemon.report().counts.actions_skipped >= 2);
    let (report, received) = rig.end();
    assert!(report.inference_failed > 0 && report.inference_non_finite > 0, "{report:#?}");
    assert!(report.counts.of(Outcome::FollowedLate) > 0 && report.counts.of(Outcome::ChunkEnded) > 0);
    assert_sound(&received);
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
    let refused = bus::Bus::open(&section("{ mode: 'admiral' }")).err().expect("no such mode");
    assert!(matches!(refused, bus::BusError::Config { .. }), "{refused}");
    let good = "{ mode: 'peer', scouting: { multicast: { enabled: false } }, listen: { endpoints: [] } }";
    bus::Bus::open(&section(good)).unwrap().close().unwrap();
}

#[test]
fn a_second_daemon_is_refused_until_the_first_is_gone() {
    let rig = Rig::start(|_| {});
    let mut config = robot_config();
    config.bus.connect = rig.robot.bus.listen.clone();
    let robot = config.resolve(&policy_config()).unwrap();
    let refused = Daemon::start(&robot, double()).err().expect("two daemons command one robot");
    assert!(matches!(refused, DaemonError::Bus(bus::BusError::Claimed { .. })), "{refused}");
    println!("second daemon: {refused}");
    assert_eq!(rig.mode(), Mode::Warmup, "the first does not notice");
    rig.end();
    Daemon::start(&robot, double()).expect("the robot is free").shutdown().unwrap();
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
