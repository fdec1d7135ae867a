//! `refrain demo`: a policy pushes the T over the bus.

use std::path::PathBuf;
use std::sync::Arc;

use super::progress::Progress;
use super::selection::{EngineArgs, SamplerArgs, Selected, load};
use super::statistics::timing;
use super::{Outcome, say};
use crate::builtin;
use crate::demo::{self, DemoOptions, DemoReport};
use crate::ladder::Rungs;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Policy package; otherwise the small one inside this program.
    #[arg(long)]
    policy: Option<PathBuf>,
    /// Cache schedule, or `full`; otherwise the package's default.
    #[arg(long, value_name = "NAME")]
    schedule: Option<String>,
    #[command(flatten)]
    sampler: SamplerArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Seed of the start state and of the noise.
    #[arg(long, default_value_t = 29)]
    seed: u64,
    /// Times real time, at least 1; `inf` goes as fast as it can.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Animated picture of the episode to write.
    #[arg(long, value_name = "FILE", default_value = "demo.svg")]
    picture: PathBuf,
    /// Record what the policy's side saw and decided, for `refrain replay` and Foxglove.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let selected = self.select()?;
        let policy = selected.policy(&self.engine)?;
        say!(
            "{}: {}, schedule {} ({} block computations), {} on {} threads",
            selected.config.name,
            selected.config.sampler.label(),
            selected.name,
            selected.schedule.updates(),
            policy.engine_name(),
            self.engine.threads()
        );
        let options = DemoOptions {
            seed: self.seed,
            speed: self.speed,
            picture: Some(self.picture),
            record: self.record,
            ..DemoOptions::default()
        };
        let progress = Progress::new();
        let report = demo::run(&options, Rungs::one(policy, &selected.name), |p| {
            let bar = "#".repeat((p.score * 30.0) as usize);
            progress.show(format_args!(
                "step {:>3} of {}  goal covered {:>5.1} %  score {:.3} [{bar:<30}] {:?}",
                p.step,
                options.max_steps,
                100.0 * p.coverage,
                p.score,
                p.mode
            ));
        })?;
        drop(progress);
        print(&report, self.speed);
        Ok(())
    }

    fn select(&self) -> Result<Selected, Box<dyn std::error::Error>> {
        if let Some(folder) = &self.policy {
            let package = load(folder)?;
            let schedule = self.schedule.clone().or_else(|| self.sampler.default_schedule(&package));
            return Selected::new(folder, package, self.sampler, schedule.as_deref().unwrap_or("full"));
        }
        let package = Arc::new(builtin::package()?);
        let schedule = self.schedule.clone().or_else(|| self.sampler.default_schedule(&package));
        match schedule.as_deref() {
            Some(name) if name == builtin::SCHEDULE_NAME => {
                Selected::with_file(package, self.sampler, name, &builtin::schedule()?)
            }
            // The built-in policy has no folder, hence no further schedules.
            other => Selected::new(std::path::Path::new(""), package, self.sampler, other.unwrap_or("full")),
        }
    }
}

fn print(report: &DemoReport, speed: f64) {
    let outcome = if report.success { "goal reached" } else { "goal not reached" };
    say!("score {:.3}, {outcome} in {} steps, {:.1} s", report.score, report.steps, report.elapsed_s);
    timing(&report.policy, speed == 1.0);
    if let Some(picture) = &report.picture {
        say!("picture: {} (open it in a browser)", picture.display());
    }
}
