//! Metrics as Prometheus text, over HTTP on loopback.
//!
//! Whoever knows the figures sets the page now and then; the server's thread hands out the newest one. It answers one
//! request at a time, reads at most a request's first bytes, and gives up on a slow reader: it can neither be made to wait
//! nor to grow.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::clock::Duration;
use crate::control::{Mode, Outcome};
use crate::events::Spans;
use crate::observation::{self, Refusal};
use crate::report::Tally;
use crate::threads;

/// Upper ends of the histograms' buckets, nanoseconds.
const BUCKETS: [u64; 22] = [
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
    60_000_000_000,
];
/// How long a client may take.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often the server looks for a client.
const POLL: Duration = Duration::from_millis(20);

/// A server with its page.
pub struct Server {
    page: Arc<Mutex<String>>,
    ended: Arc<AtomicBool>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens; `address` is one on loopback.
    pub fn start(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (page, ended) = (Arc::new(Mutex::new(String::new())), Arc::new(AtomicBool::new(false)));
        let (shown, over) = (Arc::clone(&page), Arc::clone(&ended));
        let thread = threads::spawn("metrics", move || {
            while !over.load(Ordering::Acquire) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let text = shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
                        // A client that goes away has had its answer.
                        let _ = answer(stream, &text);
                    }
                    Err(_) => threads::park(POLL),
                }
            }
        })?;
        Ok(Self { page, ended, address, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces the page.
    pub fn set(&self, text: String) {
        *self.page.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn answer(mut stream: TcpStream, page: &str) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = [0; 1024];
    let read = stream.read(&mut request)?;
    let path = request[..read].split(|b| *b == b' ').nth(1).unwrap_or_default();
    let (status, body) = match path {
        b"/metrics" | b"/" => ("200 OK", page),
        _ => ("404 Not Found", "see /metrics\n"),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// The page of a run; `observations` are the messages taken in and refused.
pub fn text(tally: &Tally, observations: &observation::Counts, schedules: &[String]) -> String {
    let mut out = String::new();
    let (counts, gate) = (&tally.control.counts, &tally.control.gate);
    for mode in [Mode::Warmup, Mode::Running, Mode::Coasting, Mode::Holding, Mode::Stopped] {
        let is = u8::from(mode == tally.ticks.mode);
        let _ = writeln!(out, "refrain_mode{{mode=\"{mode:?}\"}} {is}");
    }
    for (i, schedule) in schedules.iter().enumerate() {
        let is = u8::from(i == tally.rung);
        let _ = writeln!(out, "refrain_plan{{rung=\"{i}\",schedule=\"{schedule}\"}} {is}");
    }
    for outcome in Outcome::ALL {
        let _ = writeln!(out, "refrain_ticks_total{{outcome=\"{outcome:?}\"}} {}", counts.of(outcome));
    }
    for (refusal, count) in Refusal::ALL.iter().zip(observations.refused) {
        let _ = writeln!(out, "refrain_observations_refused_total{{why=\"{refusal:?}\"}} {count}");
    }
    for camera in &observations.cameras {
        for (name, count) in [
            ("images", camera.accepted),
            ("images_refused", camera.refused),
            ("images_shared_memory", camera.shared),
        ] {
            let _ = writeln!(out, "refrain_{name}_total{{camera=\"{}\"}} {count}", camera.name);
        }
    }
    for (limit, count) in [
        ("position", gate.position),
        ("workspace", gate.workspace),
        ("velocity", gate.velocity),
        ("acceleration", gate.acceleration),
        ("stale_observation", gate.stale_observation),
        ("stale_chunk", gate.stale_chunk),
        ("non_finite", gate.non_finite),
        ("outside", gate.outside),
        ("wrong_size", gate.wrong_size),
    ] {
        let _ = writeln!(out, "refrain_gate_total{{why=\"{limit}\"}} {count}");
    }
    for (name, count) in [
        ("observations", observations.accepted),
        ("chunks", counts.chunks),
        ("chunks_refused", counts.chunks_refused),
        ("actions_skipped", counts.actions_skipped),
        ("stops", counts.stops),
        ("resets", counts.resets),
        ("mode_changes", counts.mode_changes),
        ("deadlines_missed", tally.ticks.missed),
        ("tick_events_lost", tally.control.events_lost),
        ("inference_failed", tally.inference_failed),
        ("inference_non_finite", tally.inference_non_finite),
        ("inference_outside_calibration", tally.inference_outside),
        ("engines_lost", tally.engines_lost),
        ("plan_steps_down", tally.steps_down),
        ("plan_steps_up", tally.steps_up),
        ("recorded", tally.recorded.0),
        ("recording_lost", tally.recorded.1),
        ("shadow_compared", tally.shadow.compared),
        ("shadow_alone", tally.shadow.alone),
    ] {
        let _ = writeln!(out, "refrain_{name}_total {count}");
    }
    for (joint, apart) in tally.shadow.joints.iter().enumerate() {
        let mean = apart.sum / tally.shadow.compared as f64;
        for (what, value) in [("last", apart.last), ("mean", mean), ("largest", apart.largest)] {
            let _ = writeln!(out, "refrain_shadow_difference{{joint=\"{joint}\",what=\"{what}\"}} {value}");
        }
    }
    for (name, spans) in [
        ("tick_wake_error_seconds", &tally.ticks.wake),
        ("tick_work_seconds", &tally.ticks.work),
        ("inference_seconds", &tally.inference),
        ("chunk_age_seconds", &tally.chunk_age),
    ] {
        histogram(&mut out, name, spans);
    }
    out
}

fn histogram(out: &mut String, name: &str, spans: &Spans) {
    let _ = writeln!(out, "# TYPE refrain_{name} histogram");
    for end in BUCKETS {
        let (seconds, count) = (end as f64 / 1e9, spans.at_most(end));
        let _ = writeln!(out, "refrain_{name}_bucket{{le=\"{seconds}\"}} {count}");
    }
    let _ = writeln!(out, "refrain_{name}_bucket{{le=\"+Inf\"}} {}", spans.summary().count);
    let _ = writeln!(out, "refrain_{name}_sum {}", spans.seconds());
    let _ = writeln!(out, "refrain_{name}_count {}", spans.summary().count);
}

/// Reads the page of a server.
pub fn fetch(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(1 << 20).read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    body.ok_or_else(|| io::Error::other("not an HTTP answer"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observation::{CameraCounts, Counts};

    /// Every counter has a number of its own and must come out under its own name.
    #[test]
    fn every_counter_is_told_under_its_name() {
        let mut tally = Tally { inference_failed: 1, inference_non_finite: 2, ..Tally::default() };
        (tally.inference_outside, tally.engines_lost, tally.rung) = (3, 4, 1);
        (tally.steps_down, tally.steps_up, tally.recorded) = (5, 6, (7, 8));
        tally.control.events_lost = 9;
        (tally.ticks.missed, tally.ticks.mode) = (10, Mode::Coasting);
        let counts = &mut tally.control.counts;
        (counts.chunks, counts.chunks_refused, counts.actions_skipped) = (11, 12, 13);
        (counts.stops, counts.resets, counts.mode_changes) = (14, 15, 16);
        counts.outcomes[Outcome::NonFinite as usize] = 17;
        counts.outcomes[Outcome::OutsideWorkspace as usize] = 18;
        let gate = &mut tally.control.gate;
        (gate.position, gate.workspace, gate.velocity, gate.acceleration) = (21, 22, 23, 24);
        (gate.stale_observation, gate.stale_chunk, gate.non_finite) = (25, 26, 27);
        (gate.outside, gate.wrong_size) = (28, 29);
        (0..31).for_each(|_| tally.shadow.add(&[1.0, 2.0], &[1.5, 2.0]));
        tally.shadow.alone = 32;
        tally.ticks.wake.record(1_500);
        let mut observations = Counts { accepted: 33, ..Counts::default() };
        observations.refused[4] = 34;
        let page = text(&tally, &observations, &["good".into(), "fast".into()]);
        for line in [
            "mode{mode=\"Coasting\"} 1",
            "mode{mode=\"Running\"} 0",
            "plan{rung=\"0\",schedule=\"good\"} 0",
            "plan{rung=\"1\",schedule=\"fast\"} 1",
            "ticks_total{outcome=\"NonFinite\"} 17",
            "ticks_total{outcome=\"OutsideWorkspace\"} 18",
            "ticks_total{outcome=\"OutsideRange\"} 0",
            "observations_refused_total{why=\"NoStamp\"} 34",
            "gate_total{why=\"position\"} 21",
            "gate_total{why=\"workspace\"} 22",
            "gate_total{why=\"velocity\"} 23",
            "gate_total{why=\"acceleration\"} 24",
            "gate_total{why=\"stale_observation\"} 25",
            "gate_total{why=\"stale_chunk\"} 26",
            "gate_total{why=\"non_finite\"} 27",
            "gate_total{why=\"outside\"} 28",
            "gate_total{why=\"wrong_size\"} 29",
            "observations_total 33",
            "chunks_total 11",
            "chunks_refused_total 12",
            "actions_skipped_total 13",
            "stops_total 14",
            "resets_total 15",
            "mode_changes_total 16",
            "deadlines_missed_total 10",
            "tick_events_lost_total 9",
            "inference_failed_total 1",
            "inference_non_finite_total 2",
            "inference_outside_calibration_total 3",
            "engines_lost_total 4",
            "plan_steps_down_total 5",
            "plan_steps_up_total 6",
            "recorded_total 7",
            "recording_lost_total 8",
            "shadow_compared_total 31",
            "shadow_alone_total 32",
            "shadow_difference{joint=\"0\",what=\"last\"} 0.5",
            "shadow_difference{joint=\"0\",what=\"mean\"} 0.5",
            "shadow_difference{joint=\"1\",what=\"largest\"} 0",
            "tick_wake_error_seconds_bucket{le=\"0.000002\"} 1",
            "tick_work_seconds_count 0",
        ] {
            let line = format!("refrain_{line}");
            assert!(page.lines().any(|l| l == line), "{line:?} is not in:\n{page}");
        }
    }

    #[test]
    fn the_newest_page_is_served_and_nothing_else() {
        let server = Server::start(([127, 0, 0, 1], 0).into()).unwrap();
        let mut tally = Tally::default();
        tally.inference.record(3_000_000);
        tally.inference.record(30_000_000);
        let front = CameraCounts { name: "front".into(), accepted: 3, refused: 2, shared: 1 };
        let counts = Counts { accepted: 5, cameras: vec![front], ..Counts::default() };
        server.set(text(&tally, &counts, &["full".into()]));
        let page = fetch(server.address()).unwrap();
        for line in [
            "refrain_mode{mode=\"Warmup\"} 1",
            "refrain_plan{rung=\"0\",schedule=\"full\"} 1",
            "refrain_observations_total 5",
            "refrain_images_total{camera=\"front\"} 3",
            "refrain_images_refused_total{camera=\"front\"} 2",
            "refrain_images_shared_memory_total{camera=\"front\"} 1",
            "refrain_inference_seconds_bucket{le=\"0.002\"} 0",
            "refrain_inference_seconds_bucket{le=\"0.005\"} 1",
            "refrain_inference_seconds_bucket{le=\"+Inf\"} 2",
            "refrain_inference_seconds_count 2",
        ] {
            assert!(page.lines().any(|l| l == line), "{line:?} is not in:\n{page}");
        }
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(b"GET /etc/passwd HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        // A client that says nothing is left, and the next one is served.
        let _silent = TcpStream::connect(server.address()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(fetch(server.address()).or_else(|_| fetch(server.address())).is_ok());
    }
}
