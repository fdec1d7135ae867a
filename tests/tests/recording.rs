//! Recordings beside Foxglove's own Python packages (mcap, mcap-ros2-support): they read what was recorded, number by number.
//!
//! They come from PyPI (`tests/interop/requirements.txt`); where that cannot be reached, this skips, loudly.

use std::path::Path;
use std::process::Command;

use refrain_runtime::clock::Reading;
use refrain_runtime::record::{self, Log, Message, Place};
use refrain_tests::python::{python, scripts};
use refrain_tests::robot::Rig;
use serde_json::{Value, json};

/// Texts that stand for numbers become numbers, as serde writes them.
fn numbered(value: Value) -> Value {
    match value {
        Value::String(text) => match text.strip_prefix("f64:") {
            Some(number) => json!(number.parse::<f64>().unwrap()),
            None => Value::String(text),
        },
        Value::Array(items) => items.into_iter().map(numbered).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, numbered(value))).collect(),
        other => other,
    }
}

/// A daemon's recording, and a message of the kinds that it has none of.
fn recording(file: &Path) -> Vec<Message> {
    let log = || Log::begin(Place::File(file.to_owned()), Default::default(), Reading::simulated(0)).unwrap();
    let mut rig = Rig::recorded(|_| {}, Some(log()));
    rig.observe_until("chunks", |rig| rig.daemon.report().counts.chunks >= 2);
    rig.end();
    let (_, mut messages) = record::read(file).unwrap();
    messages.push(Message::Plan(record::Plan {
        time: 7,
        from: 0,
        to: 1,
        schedule: "late 20, größer".into(),
        why: String::new(),
    }));
    messages.push(Message::Shadow(record::Shadow {
        time: 8,
        tick: u64::MAX,
        ours: vec![0.1, f64::MIN_POSITIVE],
        theirs: vec![-1e300, f64::NAN],
    }));
    let mut again = log();
    messages.iter().for_each(|message| again.write(message));
    messages
}

#[test]
fn recordings_open_with_foxgloves_own_packages() {
    let Some(python) = python() else { return };
    let file = std::env::temp_dir().join(format!("refrain-foxglove-{}.mcap", std::process::id()));
    let messages = recording(&file);
    let output =
        Command::new(python).arg(scripts().join("recording.py")).arg(&file).output().expect("Python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::remove_file(&file).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // The reader gives them by time, which is when things happened.
    let mut theirs: Vec<Value> =
        text.lines().map(|line| numbered(serde_json::from_str(line).unwrap())).collect();
    let mut ours: Vec<Value> = messages
        .iter()
        .map(|message| {
            let (topic, fields) = match message {
                Message::Observation(m) => ("observation", json!(m)),
                Message::Inference(m) => ("inference", json!(m)),
                Message::Tick(m) => ("tick", json!(m)),
                Message::Plan(m) => ("plan", json!(m)),
                Message::Shadow(m) => ("shadow", json!(m)),
            };
            let name = format!("refrain/msg/{}{}", topic[..1].to_uppercase(), &topic[1..]);
            json!([topic, name, message.time().nanos(), fields])
        })
        .collect();
    assert!(ours.len() > 100, "{}", ours.len());
    theirs.sort_by_key(Value::to_string);
    ours.sort_by_key(Value::to_string);
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.len(), theirs.len());
}
