//! `refrain bench loop`: how late the control loop wakes, beside `cyclictest` of Debian's rt-tests.
//!
//! Both run at the same period and priority, in turn, while the policy predicts all the while beside them. What is compared
//! is the wake-up error: from the deadline to the first instruction after the sleep. A missed tick is, for both, a wake-up
//! error of a period or more; deadlines that pass meanwhile are skipped by both, and show as wake-ups that are not there.
//! On a virtual machine the host takes processors away, from either program: how much, in all, stands beside each.

use std::collections::BTreeMap;
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::selection::{EngineArgs, Selected};
use super::{Outcome, say};
use crate::bus::robot::Signals;
use crate::chunk::Chunk;
use crate::clock::{self, Duration, Nanos, SECOND, Time};
use crate::config::{Robot, RobotConfig};
use crate::control::{Command, Control, Observed};
use crate::daemon::control_loop::ControlLoop;
use crate::mailbox::{Sender, mailbox};
use crate::observation::Window;
use crate::planner::Planner;
use crate::report::ControlTally;
use crate::threads::{self, Scheduling, Waker};
use crate::{builtin, demo, events};

#[derive(clap::Args)]
pub(super) struct Args {
    /// How long each of the two runs, per round.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Ticks per second.
    #[arg(long, default_value_t = 1000.0)]
    rate_hz: f64,
    /// SCHED_FIFO priority; 0 is ordinary scheduling.
    #[arg(long, default_value_t = 80)]
    priority: u8,
    /// Rounds, in turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Load all processors meanwhile, with stress-ng.
    #[arg(long)]
    load: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Largest error that cyclictest's histogram tells apart, microseconds.
const WIDEST: usize = 200_000;
/// Milliseconds of one unit of `/proc/stat` (Linux's USER_HZ is 100 for every program).
const STAT_MS: u64 = 10;
/// How often events are drained.
const DRAIN: Duration = Duration::from_millis(20);

/// Wake-up errors of one run, microseconds.
struct Errors {
    p50: f64,
    p99: f64,
    p999: f64,
    worst: f64,
    missed: u64,
    count: u64,
    /// Milliseconds that the host of a virtual machine took from its processors; none where the system does not say.
    stolen_ms: Option<u64>,
}

/// Why there is nothing to compare.
#[derive(Debug, thiserror::Error)]
enum JitterError {
    #[error("cannot run {program}: {source}; apt-get install {package}")]
    Missing { program: &'static str, package: &'static str, source: std::io::Error },
    #[error("cyclictest said nothing that can be read: {0}")]
    Unreadable(String),
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let period = clock::period(self.rate_hz);
        say!(
            "{} us period, priority {}, {} s each, {}; wake-up error in us",
            period / 1000,
            self.priority,
            self.seconds,
            if self.load { "loaded with stress-ng" } else { "no load of our own" }
        );
        say!(
            "{:<7} {:<11} {:>8} {:>8} {:>8} {:>9} {:>8} {:>9} {:>9}",
            "round",
            "program",
            "p50",
            "p99",
            "p99.9",
            "worst",
            "missed",
            "wake-ups",
            "stolen ms"
        );
        let mut ratios = Vec::new();
        let (mut ours_missed, mut theirs_missed) = (0, 0);
        for round in 1..=self.rounds.max(1) {
            let ours = self.under_load(|| self.refrain(period))?;
            ours.print(round, "refrain");
            let theirs = self.under_load(|| self.cyclictest(period))?;
            theirs.print(round, "cyclictest");
            ratios.push(ours.p999 / theirs.p999.max(1.0));
            ours_missed += ours.missed;
            theirs_missed += theirs.missed;
            say!("        refrain / cyclictest at p99.9: {:.2}", ours.p999 / theirs.p999.max(1.0));
        }
        ratios.sort_by(f64::total_cmp);
        let (median, largest) = (ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
        say!(
            "refrain / cyclictest at p99.9: median {median:.2}, largest {largest:.2} (target 1.2); missed {ours_missed} and \
             {theirs_missed}"
        );
        Ok(())
    }

    fn under_load(
        &self,
        body: impl FnOnce() -> Result<Errors, Box<dyn std::error::Error>>,
    ) -> Result<Errors, Box<dyn std::error::Error>> {
        let load = if self.load { Some(self.stress()?) } else { None };
        let before = stolen_ms();
        let result = body();
        let stolen_ms = before.zip(stolen_ms()).map(|(before, after)| after.saturating_sub(before));
        if let Some(mut load) = load {
            let _ = load.kill();
            let _ = load.wait();
        }
        result.map(|errors| Errors { stolen_ms, ..errors })
    }

    fn stress(&self) -> Result<Child, JitterError> {
        let timeout = format!("{}s", self.seconds + 10);
        Process::new("stress-ng")
            .args([
                "--quiet",
                "--cpu",
                "0",
                "--io",
                "1",
                "--vm",
                "1",
                "--vm-bytes",
                "64M",
                "--timeout",
                &timeout,
            ])
            .stdout(Stdio::null())
            .spawn()
            .map_err(|source| JitterError::Missing { program: "stress-ng", package: "stress-ng", source })
    }

    /// The example's robot, and the built-in policy for it.
    fn robot(&self) -> Result<(Robot, Planner), Box<dyn std::error::Error>> {
        let package = Arc::new(builtin::package()?);
        let selected =
            Selected::with_file(package, Default::default(), builtin::SCHEDULE_NAME, &builtin::schedule()?)?;
        let mut config = RobotConfig::parse(demo::ROBOT)?;
        config.control.rate_hz = self.rate_hz;
        let robot = config.resolve(&selected.config)?;
        let planner = Planner::new(selected.policy(&self.engine)?, &robot)?;
        Ok((robot, planner))
    }

    /// The control loop, with the policy predicting beside it.
    fn refrain(&self, period: Nanos) -> Result<Errors, Box<dyn std::error::Error>> {
        let (robot, planner) = self.robot()?;
        let (chunks, chunks_in) = mailbox(&planner.blank());
        let (observed, observed_in) = mailbox(&Observed::NONE);
        let (commands, _commands_in) = mailbox(&Command::NONE);
        let (tallies, _tallies_in) = mailbox(&ControlTally::default());
        let (recorder, mut drain) = events::ring();
        let signals = Arc::new(Signals::default());
        signals.received(0, true);
        let control_loop = ControlLoop {
            control: Control::new(robot.control.clone()),
            period,
            chunks: chunks_in,
            observed: observed_in,
            commands,
            tallies,
            recorder,
            wake_publish: Waker::current(),
            signals: Arc::clone(&signals),
        };
        let inference = predict_all_the_while(planner, &robot, &signals, chunks, observed)?;
        let priority = Some(self.priority).filter(|priority| *priority > 0);
        if let Err(refusal) = threads::lock_memory() {
            tracing::warn!("{refusal}");
        }
        let _awake = threads::stay_awake().inspect_err(|refusal| tracing::warn!("{refusal}"));
        let control = threads::spawn("control", move || {
            for refusal in threads::promote(Scheduling { priority, cpu: None }) {
                tracing::warn!("{refusal}");
            }
            control_loop.run();
        })?;
        let end = clock::now() + self.seconds as i64 * SECOND;
        let mut stats = events::TickStats::default();
        loop {
            if clock::now() >= end {
                signals.end();
            }
            let over = drain.is_over();
            while let Some(tick) = drain.take() {
                stats.add(&tick);
            }
            if over {
                break;
            }
            threads::park(DRAIN);
        }
        for thread in [control, inference] {
            thread.join().map_err(|_| "a thread panicked; this is a bug")?;
        }
        let s = stats.wake.summary();
        let us = |nanos: u64| nanos as f64 / 1e3;
        Ok(Errors {
            p50: us(s.p50),
            p99: us(s.p99),
            p999: us(s.p999),
            worst: us(s.max),
            missed: s.count - stats.wake.at_most(period as u64 - 1),
            count: s.count,
            stolen_ms: None,
        })
    }

    /// cyclictest, with the policy predicting beside it as well.
    fn cyclictest(&self, period: Nanos) -> Result<Errors, Box<dyn std::error::Error>> {
        let (robot, planner) = self.robot()?;
        let (chunks, _chunks_in) = mailbox(&planner.blank());
        let (observed, _observed_in) = mailbox(&Observed::NONE);
        let signals = Arc::new(Signals::default());
        let inference = predict_all_the_while(planner, &robot, &signals, chunks, observed)?;
        let period_us = (period / 1000).to_string();
        let (seconds, widest) = (self.seconds.to_string(), WIDEST.to_string());
        let mut program = Process::new("cyclictest");
        program.args(["-q", "-m", "-t1", "-i", &period_us, "-D", &seconds, "-h", &widest]);
        if self.priority > 0 {
            program.args(["--policy=fifo", "-p", &self.priority.to_string()]);
        }
        let output = program.output().map_err(|source| JitterError::Missing {
            program: "cyclictest",
            package: "rt-tests",
            source,
        });
        signals.end();
        inference.join().map_err(|_| "a thread panicked; this is a bug")?;
        let output = output?;
        let text = String::from_utf8_lossy(&output.stdout);
        let said = || JitterError::Unreadable(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        read_histogram(&text, (period / 1000) as u64).ok_or_else(|| said().into())
    }
}

/// A thread that predicts from an observation of now, again and again, until the signals end it.
fn predict_all_the_while(
    mut planner: Planner,
    robot: &Robot,
    signals: &Arc<Signals>,
    mut chunks: Sender<Chunk>,
    mut observed: Sender<Observed>,
) -> std::io::Result<JoinHandle<()>> {
    let (told, window) = (Arc::clone(signals), Window::none(&robot.intake));
    threads::spawn("inference", move || {
        let mut chunk: Chunk = planner.blank();
        let mut sequence = 0;
        while !told.has_ended() {
            sequence += 1;
            let time: Time = clock::now();
            let measured = [256.0; crate::safety::MAX_JOINTS];
            observed.send(|slot| *slot = Observed { sequence, time, measured });
            if planner.plan(&Window { sequence, time, ..window.clone() }, None, &mut chunk).is_ok() {
                chunks.send(|slot| slot.copy_from(&chunk));
            }
        }
    })
}

/// What `cyclictest -h` printed; a wake-up error of `period_us` or more is a miss.
fn read_histogram(text: &str, period_us: u64) -> Option<Errors> {
    let mut buckets = BTreeMap::new();
    let mut worst = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# Max Latencies:") {
            worst = rest.trim().parse::<u64>().ok();
        } else if let Some((us, count)) = line.split_once([' ', '\t'])
            && let (Ok(us), Ok(count)) = (us.parse::<u64>(), count.trim().parse::<u64>())
        {
            buckets.insert(us, count);
        }
    }
    let worst = worst?;
    let overflow = text.lines().find_map(|l| l.strip_prefix("# Histogram Overflows:")?.trim().parse().ok());
    buckets.insert(WIDEST as u64, overflow.unwrap_or(0));
    let count: u64 = buckets.values().sum();
    let at = |share: f64| {
        let wanted = (count as f64 * share).ceil() as u64;
        let mut seen = 0;
        let found = buckets.iter().find(|(_, n)| {
            seen += **n;
            seen >= wanted
        });
        found.map_or(worst as f64, |(us, _)| *us as f64)
    };
    let missed = buckets.range(period_us..).map(|(_, n)| n).sum();
    (count > 0).then(|| Errors {
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        worst: worst as f64,
        missed,
        count,
        stolen_ms: None,
    })
}

impl Errors {
    fn print(&self, round: usize, program: &str) {
        say!(
            "{round:<7} {program:<11} {:>8.1} {:>8.1} {:>8.1} {:>9.1} {:>8} {:>9} {:>9}",
            self.p50,
            self.p99,
            self.p999,
            self.worst,
            self.missed,
            self.count,
            self.stolen_ms.map_or("-".into(), |ms| ms.to_string())
        );
    }
}

/// What the host took since the machine started, over all processors (`man proc_stat`).
fn stolen_ms() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().next()?.split_whitespace().nth(8)?.parse::<u64>().ok().map(|units| units * STAT_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cyclictests_histogram_is_read() {
        let text = "# /dev/cpu_dma_latency set to 0us\n# Histogram\n000000 000000\n000001 000090\n000002 000009\n\
                    001500 000001\n# Total: 000000100\n# Min Latencies: 00001\n# Avg Latencies: 00001\n\
                    # Max Latencies: 01500\n# Histogram Overflows: 00000\n# Histogram Overflow at cycle number:\n";
        let e = read_histogram(text, 1000).unwrap();
        assert_eq!((e.p50, e.p99, e.p999, e.worst, e.missed, e.count), (1.0, 2.0, 1500.0, 1500.0, 1, 100));
        assert!(read_histogram("Unable to change scheduling policy!\n", 1000).is_none());
    }
}
