//! `refrain soak`: the demo over and over in real time, with an eye on memory.
//!
//! Every episode opens and closes sessions, threads, engine and recording, so that whatever is not given back adds up.

use std::sync::Arc;

use super::progress::Progress;
use super::selection::{EngineArgs, Selected};
use super::{Outcome, say};
use crate::demo::{self, DemoOptions};
use crate::ladder::Rungs;
use crate::{builtin, clock};

#[derive(clap::Args)]
pub(super) struct Args {
    /// How long.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Steps of an episode: 5 s.
const STEPS: usize = 50;
/// Memory that may come and go, MiB.
const SLACK: f64 = 4.0;

/// Why it is no good.
#[derive(Debug, thiserror::Error)]
enum SoakError {
    #[error(
        "memory grew from {before:.1} to {after:.1} MiB between the second and the last third; that is a leak"
    )]
    Growth { before: f64, after: f64 },
    #[error("expected at least six episodes, got {0}; give it more minutes")]
    Short(usize),
    #[error("the system does not tell this process's memory")]
    Unknown,
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let package = Arc::new(builtin::package()?);
        let file = builtin::schedule()?;
        let folder = std::env::temp_dir().join(format!("refrain-soak-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let progress = Progress::new();
        let end = clock::now() + clock::from_millis(self.minutes * 60e3);
        let mut memory = Vec::new();
        let (mut ticks, mut missed, mut held) = (0, 0, 0);
        while clock::now() < end {
            let selected =
                Selected::with_file(Arc::clone(&package), Default::default(), builtin::SCHEDULE_NAME, &file)?;
            let options = DemoOptions {
                seed: memory.len() as u64,
                max_steps: STEPS,
                record: Some(folder.join("soak.mcap")),
                ..DemoOptions::default()
            };
            let policy = selected.policy(&self.engine)?;
            let report = demo::run(&options, Rungs::one(policy, &selected.name), |_| {})?;
            ticks += report.policy.wake.count;
            missed += report.policy.missed;
            held += report.robot.held;
            memory.push(resident_mib().ok_or(SoakError::Unknown)?);
            progress.show(format_args!("{} episodes, {:.1} MiB", memory.len(), memory[memory.len() - 1]));
        }
        drop(progress);
        std::fs::remove_dir_all(&folder)?;
        let third = memory.len() / 3;
        if third < 2 {
            return Err(SoakError::Short(memory.len()).into());
        }
        let (before, after) = (median(&memory[third..2 * third]), median(&memory[2 * third..]));
        say!(
            "{} episodes in {:.1} min: {ticks} ticks, {missed} missed, {held} steps held; memory {before:.1} MiB in the second \
             third, {after:.1} MiB in the last",
            memory.len(),
            self.minutes
        );
        if after - before <= SLACK { Ok(()) } else { Err(SoakError::Growth { before, after }.into()) }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Resident memory of this process now, where the system tells it.
fn resident_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}
