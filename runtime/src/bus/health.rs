//! What people and their tools see of a run: the mode as it changes, and health once a second.
//!
//! The mode is a latched `std_msgs/String`: who comes late still gets it. Health is a `diagnostic_msgs/DiagnosticArray` as
//! `rqt_robot_monitor` and diagnostic aggregators read it, three statuses: control, policy, observations.

use super::cdr::{self, Level, Status};
use super::interface;
use super::{Bus, BusError, Publisher, Traffic};
use crate::clock::{Nanos, Reading, SECOND, Time};
use crate::config::Robot;
use crate::control::Mode;
use crate::events::Summary;
use crate::observation::Refusal;
use crate::report::Report;

/// Time between two health messages.
const PERIOD: Nanos = SECOND;

/// Tells mode and health.
pub struct Health {
    mode_topic: Publisher,
    diagnostics: Publisher,
    name: String,
    told: Option<Mode>,
    due: Option<Time>,
    before: Report,
    payload: Vec<u8>,
}

impl Health {
    /// Declares the publishers.
    pub fn open(bus: &Bus, robot: &Robot) -> Result<Self, BusError> {
        Ok(Self {
            mode_topic: bus.publisher(&robot.mode_topic, &interface::STRING, Traffic::Latched)?,
            diagnostics: bus.publisher(
                &robot.diagnostics_topic,
                &interface::DIAGNOSTIC_ARRAY,
                Traffic::Telemetry,
            )?,
            name: robot.name.clone(),
            told: None,
            due: None,
            before: Report::default(),
            payload: Vec::new(),
        })
    }

    /// Sends what is to be sent now; to be called several times a second.
    pub fn tell(&mut self, now: Reading, mode: Mode, report: impl FnOnce() -> Report) {
        if self.told != Some(mode) {
            self.told = Some(mode);
            cdr::write_text(&mut self.payload, word(mode));
            let put = self.mode_topic.put(&self.payload, now.wall, None);
            warn(put);
        }
        if self.due.is_none_or(|due| now.time >= due) {
            self.due = Some(now.time + PERIOD);
            let report = report();
            let statuses = statuses(&self.name, mode, &report, &self.before);
            self.before = report;
            cdr::write_diagnostics(&mut self.payload, now.wall, &statuses);
            let put = self.diagnostics.put(&self.payload, now.wall, None);
            warn(put);
        }
    }
}

fn warn(put: Result<(), BusError>) {
    if let Err(error) = put {
        tracing::warn!(%error, "health was not told");
    }
}

/// A mode in one word.
fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::Warmup => "warmup",
        Mode::Running => "running",
        Mode::Coasting => "coasting",
        Mode::Holding => "holding",
        Mode::Stopped => "stopped",
    }
}

/// The three statuses; what is wrong is judged by what happened since `before`.
fn statuses(name: &str, mode: Mode, report: &Report, before: &Report) -> Vec<Status> {
    let status = |part: &str, (level, message): (Level, String), values| Status {
        level,
        name: format!("{name}: {part}"),
        message,
        hardware_id: name.to_owned(),
        values,
    };
    let late = report.missed - before.missed;
    let unsent = report.commands_failed - before.commands_failed;
    let control = match mode {
        Mode::Holding | Mode::Stopped => (Level::Error, word(mode).to_owned()),
        Mode::Warmup | Mode::Coasting => (Level::Warn, word(mode).to_owned()),
        Mode::Running if unsent > 0 => (Level::Warn, format!("running, {unsent} commands not sent")),
        Mode::Running if late > 0 => (Level::Warn, format!("running, {late} deadlines missed")),
        Mode::Running => (Level::Ok, "running".into()),
    };
    let failed = report.inference_failed + report.inference_non_finite
        - before.inference_failed
        - before.inference_non_finite;
    let outside = report.inference_outside - before.inference_outside;
    let policy = match (failed, outside) {
        (0, 0) => (Level::Ok, "predicting".into()),
        (0, outside) => {
            (Level::Warn, format!("{outside} observations unlike what the schedule was found with"))
        }
        (failed, _) => (Level::Error, format!("{failed} predictions failed")),
    };
    let refused = report.refused.iter().sum::<u64>() - before.refused.iter().sum::<u64>();
    let taken = report.observations - before.observations;
    let silent = report.cameras.iter().zip(&before.cameras).find(|(is, was)| is.accepted == was.accepted);
    let observations = match (taken, refused, silent) {
        (0, _, _) => (Level::Error, "no observation taken".into()),
        (_, _, Some((camera, _))) => (Level::Error, format!("no image taken from {}", camera.name)),
        (_, 0, _) => (Level::Ok, "observing".into()),
        (_, refused, _) => (Level::Warn, format!("{refused} messages refused")),
    };
    let images =
        report.cameras.iter().map(|camera| number(&format!("images of {}", camera.name), camera.accepted));
    let refusals =
        Refusal::ALL.iter().zip(report.refused).map(|(why, count)| number(&why.to_string(), count));
    vec![
        status(
            "control",
            control,
            [
                number("commands", report.commands),
                number("commands not sent", report.commands_failed),
                number("deadlines missed", report.missed),
                number("stops", report.counts.stops),
                number("resets", report.counts.resets),
            ]
            .into_iter()
            .chain(times("wake-up", report.wake))
            .collect(),
        ),
        status(
            "policy",
            policy,
            [
                number("chunks", report.counts.chunks),
                number("failed", report.inference_failed),
                number("non-finite", report.inference_non_finite),
                number("outside calibration", report.inference_outside),
            ]
            .into_iter()
            .chain(times("prediction", report.inference))
            .chain(times("observation to chunk", report.chunk_age))
            .collect(),
        ),
        status(
            "observations",
            observations,
            [number("taken", report.observations)].into_iter().chain(images).chain(refusals).collect(),
        ),
    ]
}

fn number(name: &str, value: u64) -> (String, String) {
    (name.to_owned(), value.to_string())
}

fn times(name: &str, summary: Summary) -> [(String, String); 2] {
    let millis = |nanos: u64| format!("{:.3}", nanos as f64 * 1e-6);
    [(format!("{name} p50 ms"), millis(summary.p50)), (format!("{name} p99 ms"), millis(summary.p99))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observation::CameraCounts;

    fn levels(mode: Mode, report: &Report, before: &Report) -> Vec<(Level, String)> {
        statuses("arm", mode, report, before).into_iter().map(|s| (s.level, s.message)).collect()
    }

    #[test]
    fn what_is_wrong_is_said_while_it_happens() {
        let before = Report { observations: 10, ..Report::default() };
        let good = Report { observations: 60, ..before.clone() };
        let said = levels(Mode::Running, &good, &before);
        assert!(said.iter().all(|(level, _)| *level == Level::Ok), "{said:?}");
        let mut bad = Report { inference_failed: 1, inference_non_finite: 2, missed: 4, ..good.clone() };
        bad.refused[3] = 7;
        let said = levels(Mode::Running, &bad, &before);
        assert_eq!(
            said,
            [
                (Level::Warn, "running, 4 deadlines missed".to_owned()),
                (Level::Error, "3 predictions failed".to_owned()),
                (Level::Warn, "7 messages refused".to_owned()),
            ]
        );
        let unlike = Report { inference_outside: 3, ..good.clone() };
        assert_eq!(levels(Mode::Running, &unlike, &before)[1].0, Level::Warn);
        let camera =
            |accepted| vec![CameraCounts { name: "wrist".into(), accepted, ..CameraCounts::default() }];
        let (blind, saw) = (Report { cameras: camera(9), ..good }, Report { cameras: camera(9), ..before });
        let said = levels(Mode::Running, &blind, &saw);
        assert_eq!(said[2], (Level::Error, "no image taken from wrist".to_owned()));
        let said = levels(Mode::Stopped, &bad, &bad);
        assert_eq!(said[0], (Level::Error, "stopped".to_owned()));
        assert_eq!(said[1], (Level::Ok, "predicting".to_owned()), "it is over");
        assert_eq!(said[2], (Level::Error, "no observation taken".to_owned()));
    }
}
