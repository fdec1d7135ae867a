//! Refrain beside implementations that we did not write: rosbags for messages, zenoh's Python package as router and robot.
//!
//! They come from PyPI (`tests/interop/requirements.txt`); where that cannot be reached, these tests skip, loudly.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use refrain_runtime::bus::cdr::{self, Level, Point, Status};
use refrain_runtime::bus::{self, interface};
use refrain_runtime::clock::Wall;
use refrain_runtime::config::JointField;
use refrain_runtime::control::Mode;
use refrain_tests::process::Running;
use refrain_tests::python::{python, scripts};
use refrain_tests::robot::{Rig, graph_config, joints};
use refrain_tests::trace::repository;
use serde_json::{Value, json};

/// Messages each way.
const MESSAGES: usize = 600;

fn bits(value: f64) -> Value {
    json!(format!("{:016x}", value.to_bits()))
}

fn all_bits(values: &[f64]) -> Value {
    values.iter().map(|value| bits(*value)).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

/// Numbers anywhere in a part of a message, in its order.
fn numbers(tree: &Value) -> Vec<&str> {
    match tree {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        Value::String(text) => vec![text],
        _ => Vec::new(),
    }
}

fn texts(tree: &Value) -> Vec<String> {
    tree.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// A header's stamp as reading gives it.
fn stamp(header: &Value) -> Option<Wall> {
    let nanos = header[0][0].as_i64().unwrap() * 1_000_000_000 + header[0][1].as_i64().unwrap();
    (nanos != 0).then_some(Wall::from_nanos(nanos))
}

#[test]
fn type_hashes_are_those_that_rosbags_computes() {
    let Some(python) = python() else { return };
    let mut child = Command::new(python)
        .arg(scripts().join("hashes.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python starts");
    let names: Vec<String> = interface::ALL.iter().map(|interface| interface.ros_name()).collect();
    child.stdin.take().unwrap().write_all(names.join("\n").as_bytes()).expect("Python listens");
    let output = child.wait_with_output().expect("Python ends");
    let computed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(computed.lines().count(), names.len());
    for (ours, theirs) in interface::ALL.iter().zip(computed.lines()) {
        assert_eq!(format!("RIHS01_{}", ours.hash), theirs, "{}", ours.ros_name());
    }
}

#[test]
fn what_rosbags_writes_is_read() {
    let Some(python) = python() else { return };
    let output = Command::new(python)
        .arg(scripts().join("cdr.py"))
        .args(["write", "7", &MESSAGES.to_string()])
        .output()
        .expect("Python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    assert_eq!(lines.lines().count(), MESSAGES);
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let (kind, bytes, tree) = (line[0].as_str().unwrap(), bytes(line[1].as_str().unwrap()), &line[2]);
        let stamped = |total: usize| {
            let mut read = vec![0.0; total];
            let places: Vec<_> = (0..total).collect();
            let time = cdr::read_stamped(&bytes, total, &places, &mut read).expect(kind);
            assert_eq!(time, stamp(&tree[0]), "{line}");
            let expected: Value = tree.as_array().unwrap()[1..].iter().flat_map(numbers).collect();
            assert_eq!(all_bits(&read), expected, "{line}");
            assert!(cdr::read_stamped(&bytes[..bytes.len() - 1], total, &places, &mut read).is_err());
        };
        match kind {
            "std_msgs/msg/Float64MultiArray" => {
                let expected = &tree[1];
                let mut read = vec![0.0; expected.as_array().unwrap().len()];
                cdr::read_array(&bytes, &mut read).expect(kind);
                assert_eq!(all_bits(&read), *expected);
                read.push(0.0);
                assert!(cdr::read_array(&bytes, &mut read).is_err());
            }
            "sensor_msgs/msg/JointState" => {
                let mut names = texts(&tree[1]);
                let mut expected = tree[2].as_array().unwrap().clone();
                names.reverse();
                expected.reverse();
                let mut read = vec![0.0; names.len()];
                let time =
                    cdr::read_joint_state(&bytes, &names, JointField::Position, &mut read).expect(kind);
                assert_eq!((time, all_bits(&read)), (stamp(&tree[0]), Value::Array(expected)));
            }
            "sensor_msgs/msg/Imu" => stamped(37),
            "geometry_msgs/msg/PoseStamped" => stamped(7),
            "geometry_msgs/msg/TwistStamped" => stamped(6),
            "std_msgs/msg/String" => assert_eq!(cdr::read_text(&bytes).unwrap(), tree[0].as_str().unwrap()),
            other => panic!("{other} is not read here"),
        }
    }
}

/// Anything that a message may hold.
fn anything() -> impl Strategy<Value = (Vec<f64>, Vec<String>, i64)> {
    let number = prop_oneof![any::<f64>().prop_filter("a number", |n| n.is_finite()), Just(0.0), Just(-0.0)];
    let text = prop_oneof![Just(String::new()), "[a-z_]{1,9}", "[a-zäöü ]{1,40}"];
    let stamp = 0..i64::from(i32::MAX) * 1_000_000_000;
    (proptest::collection::vec(number, 7), proptest::collection::vec(text, 2..6), stamp)
}

/// A message that we write, and what it is.
fn written(which: usize, numbers: &[f64], texts: &[String], nanos: i64) -> (&'static str, Vec<u8>, Value) {
    let mut out = Vec::new();
    let stamp = Wall::from_nanos(nanos);
    let time = |nanos: i64| json!([nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000)]);
    let header = |frame: &str| json!([time(nanos), frame]);
    match which % 7 {
        0 => {
            cdr::write_array(&mut out, &numbers[..nanos as usize % 7]);
            let tree = json!([[[], 0], all_bits(&numbers[..nanos as usize % 7])]);
            ("std_msgs/msg/Float64MultiArray", out, tree)
        }
        1 => {
            let joints = &texts[..2];
            let point = |at: usize, time_from_start: i64| Point {
                positions: numbers[at..at + 2].to_vec(),
                time_from_start,
            };
            let points = [point(0, 1), point(2, 50_000_000), point(4, 2_000_000_000)];
            cdr::write_trajectory(&mut out, stamp, joints, &points);
            let point = |p: &Point| json!([all_bits(&p.positions), [], [], [], time(p.time_from_start)]);
            let points: Vec<_> = points.iter().map(point).collect();
            ("trajectory_msgs/msg/JointTrajectory", out, json!([header(""), joints, points]))
        }
        2 => {
            cdr::write_stamped(&mut out, stamp, &texts[0], numbers);
            let tree = json!([header(&texts[0]), [all_bits(&numbers[..3]), all_bits(&numbers[3..])]]);
            ("geometry_msgs/msg/PoseStamped", out, tree)
        }
        3 => {
            cdr::write_stamped(&mut out, stamp, &texts[0], &numbers[..6]);
            let tree = json!([header(&texts[0]), [all_bits(&numbers[..3]), all_bits(&numbers[3..6])]]);
            ("geometry_msgs/msg/TwistStamped", out, tree)
        }
        4 => {
            cdr::write_text(&mut out, &texts[0]);
            ("std_msgs/msg/String", out, json!([texts[0]]))
        }
        5 => {
            let joints = &texts[..2];
            cdr::write_joint_state(&mut out, stamp, joints, &numbers[..2]);
            ("sensor_msgs/msg/JointState", out, json!([header(""), joints, all_bits(&numbers[..2]), [], []]))
        }
        _ => {
            let status = |level, count: usize| Status {
                level,
                name: texts[0].clone(),
                message: texts[1].clone(),
                hardware_id: texts[0].clone(),
                values: vec![(texts[1].clone(), texts[0].clone()); count],
            };
            let statuses = [status(Level::Warn, 0), status(Level::Error, 3)];
            cdr::write_diagnostics(&mut out, stamp, &statuses);
            let tree = |s: &Status| json!([s.level as u8, s.name, s.message, s.hardware_id, s.values]);
            let statuses: Vec<_> = statuses.iter().map(tree).collect();
            ("diagnostic_msgs/msg/DiagnosticArray", out, json!([header(""), statuses]))
        }
    }
}

#[test]
fn what_we_write_rosbags_reads_and_writes_alike() {
    let Some(python) = python() else { return };
    let mut runner = TestRunner::deterministic();
    let messages: Vec<_> = (0..MESSAGES)
        .map(|which| {
            let (numbers, texts, nanos) = anything().new_tree(&mut runner).unwrap().current();
            written(which, &numbers, &texts, nanos)
        })
        .collect();
    let mut child = Command::new(python)
        .arg(scripts().join("cdr.py"))
        .arg("check")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python starts");
    let mut input = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    for (kind, bytes, tree) in &messages {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(input, "{kind} {hex}").expect("Python listens");
        input.flush().unwrap();
        let answer = answers.next().unwrap_or_else(|| panic!("{kind} was refused: {hex}")).unwrap();
        assert_eq!(&serde_json::from_str::<Value>(&answer).unwrap(), tree, "{kind} {hex}");
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_ros_graph_sees_us_reads_our_actions_and_stops_us() {
    let Some(python) = python() else { return };
    let endpoint = bus::free_endpoint().unwrap();
    let mut router = Command::new(&python)
        .arg(scripts().join("router.py"))
        .arg(&endpoint)
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)
        .expect("a router");
    let mut ready = String::new();
    BufReader::new(router.0.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert_eq!(ready.trim(), "ready");

    let joints = joints();
    let daemon = Rig::daemon(&graph_config(&endpoint, 7));
    let output = Command::new(&python)
        .arg(scripts().join("graph.py"))
        .args([endpoint.as_str(), "7", "pusht"])
        .args(&joints)
        .output()
        .expect("Python starts");
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(daemon.signals().mode(), Mode::Stopped);
    let report = daemon.shutdown().expect("a clean end");
    assert_eq!((report.counts.stops, report.counts.resets), (2, 1));
    assert_eq!(report.refused.iter().sum::<u64>(), 0, "{report:?}");
}

#[test]
fn the_example_clients_read_commands_and_stop_the_robot() {
    let Some(python) = python() else { return };
    let mut rig = Rig::start(|_| {});
    let endpoint = rig.robot.bus.listen[0].clone();
    let client = |name: &str, topic: &str| {
        let mut command = Command::new(&python);
        command.arg(repository().join("examples/clients").join(name)).args([endpoint.as_str(), topic]);
        command
    };
    let mut watch = client("watch.py", "pusht/command")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)
        .expect("Python starts");
    let said = BufReader::new(watch.0.stdout.take().unwrap());
    let lines = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&lines);
    std::thread::spawn(move || {
        said.lines().map_while(Result::ok).for_each(|line| keep.lock().unwrap().push(line))
    });
    // `7: (256.0, 256.0) from 3 ms ago, ok`
    let fresh = |line: &&String| line.contains(") from ") && line.ends_with(" ms ago, ok");
    rig.observe_until("ten fresh commands", |_| lines.lock().unwrap().iter().filter(fresh).count() >= 10);
    println!("{}", lines.lock().unwrap().last().unwrap());

    let output = client("stop.py", "pusht/stop").output().expect("Python starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "stop latched");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    rig.observe_until("stopped", |rig| rig.mode() == Mode::Stopped);
}
