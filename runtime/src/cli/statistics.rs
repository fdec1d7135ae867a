//! A run's figures, as a person next to the robot reads them.

use super::say;
use crate::observation;
use crate::report::Report;

/// Latency, control rate and counters of a run.
pub(super) fn timing(report: &Report, real_time: bool) {
    let ms = |nanos: u64| nanos as f64 * 1e-6;
    let (i, w, k) = (&report.inference, &report.wake, &report.work);
    say!(
        "chunk latency   p50 {:.2} ms, p99 {:.2} ms, worst {:.2} ms over {} chunks",
        ms(i.p50),
        ms(i.p99),
        ms(i.max),
        i.count
    );
    if real_time {
        say!(
            "control loop    {} ticks, {} missed; woke late by p50 {:.3} ms, p99 {:.3} ms, worst {:.3} ms; worked p99 {:.3} ms",
            w.count,
            report.missed,
            ms(w.p50),
            ms(w.p99),
            ms(w.max),
            ms(k.p99)
        );
    } else {
        say!("control loop    {} ticks in simulated time, worked p99 {:.3} ms", k.count, ms(k.p99));
    }
    say!(
        "commands        {} sent, {} failed; {} observations",
        report.commands,
        report.commands_failed,
        report.observations
    );
    if report.engines_lost + report.steps_down + report.steps_up > 0 {
        say!(
            "plans           {} steps to a faster one, {} to a better one, {} engines lost",
            report.steps_down,
            report.steps_up,
            report.engines_lost
        );
    }
    if report.inference_outside > 0 {
        say!(
            "calibration     {} predictions from observations outside what their schedule was found with",
            report.inference_outside
        );
    }
    if report.shadow.compared + report.shadow.alone > 0 {
        let (shadow, n) = (&report.shadow, report.shadow.compared as f64);
        let each = shadow.joints.iter().map(|j| format!("{:.4} ({:.4})", j.sum / n, j.largest));
        say!(
            "shadow          {} commands of others compared, {} not; mean difference (largest) per joint {}",
            shadow.compared,
            shadow.alone,
            each.collect::<Vec<_>>().join(", ")
        );
    }
    for camera in &report.cameras {
        say!(
            "images of {:<10} {} taken, {} through shared memory, {} refused",
            camera.name,
            camera.accepted,
            camera.shared,
            camera.refused
        );
    }
    for (refusal, count) in observation::Refusal::ALL.iter().zip(report.refused).filter(|(_, n)| *n > 0) {
        say!("observations refused as {refusal:?}: {count}");
    }
}
