//! Which plans a robot runs: the schedule that its configuration names and its ladder, or with `auto` the best-scoring
//! one that is in time on this machine.

use std::path::Path;
use std::sync::Arc;

use refrain_policies::package::Package;
use refrain_policies::schedule_file::ScheduleFile;
use refrain_policies::vision::Vision;

use super::say;
use super::selection::{EngineArgs, FULL, SamplerArgs, Selected};
use crate::clock::{MILLISECOND, Nanos};
use crate::config::{PolicySection, Robot};
use crate::engine::cpu::CpuWeights;
use crate::join::Join;
use crate::ladder::{self, Rung, Rungs, Timing};
use crate::policy::Policy;

/// The schedule that is chosen here.
const AUTO: &str = "auto";

/// Why the package is not the robot's.
#[derive(Debug, thiserror::Error)]
#[error("policy.sha256: expected {expected}, got {got}; the package was changed, or pin the new content")]
struct OtherContent {
    expected: String,
    got: String,
}

/// Refuses a package whose content is not what the robot's configuration pins.
pub(super) fn check_pin(section: &PolicySection) -> Result<(), Box<dyn std::error::Error>> {
    let Some(expected) = &section.sha256 else { return Ok(()) };
    let got = Package::content_sha256(&section.path)?;
    if &got == expected { Ok(()) } else { Err(OtherContent { expected: expected.clone(), got }.into()) }
}

/// Makes the engines, times them and says what was chosen.
pub(super) fn prepare(
    section: &PolicySection,
    package: &Arc<Package>,
    engine: &EngineArgs,
    robot: &Robot,
) -> Result<Rungs, Box<dyn std::error::Error>> {
    let auto = section.schedule == AUTO;
    let names = if auto { ranked(section)? } else { named(section) };
    let weights = CpuWeights::new(Arc::clone(package));
    let joining = robot.join == Join::Inpaint;
    let plans = Plans { folder: Some(&section.path), package, weights: &weights, joining };
    let sampler = SamplerArgs::default();
    let mut rungs = Vec::new();
    for name in &names {
        let mut policy = plans.policy(name, sampler, engine)?;
        if name != FULL && !policy.watches() {
            say!(
                "{name}: its file does not say what it was found with; observations are not compared with that"
            );
        }
        let timing = if names.len() > 1 { ladder::time(&mut policy)? } else { Timing::default() };
        rungs.push(Rung { name: name.clone(), policy, timing });
    }
    let mut vision = Vision::new(package)?;
    if let (Some(vision), true) = (&mut vision, names.len() > 1) {
        let sight = ladder::time_sight(vision, &package.config)?;
        for Rung { timing, .. } in &mut rungs {
            *timing = Timing { p50: timing.p50 + sight.p50, p99: timing.p99 + sight.p99 };
        }
    }
    if auto {
        let timings: Vec<Timing> = rungs.iter().map(|rung| rung.timing).collect();
        let chosen = ladder::fit(&timings, robot.budget);
        for (i, rung) in rungs.iter().enumerate().take(chosen + 1) {
            let fits = if rung.timing.p99 <= robot.budget { "fits" } else { "does not fit" };
            let what = if i == chosen { "chosen: " } else { "" };
            say!(
                "{what}{}: p50 {:.1} ms, p99 {:.1} ms {fits} the {:.1} ms that a prediction may take",
                rung.name,
                millis(rung.timing.p50),
                millis(rung.timing.p99),
                millis(robot.budget)
            );
        }
        rungs.drain(..chosen);
    }
    // What is not faster than the plan before it is no help.
    let mut fastest = Nanos::MAX;
    rungs.retain(|rung| {
        let keep = rung.timing.p50 < fastest;
        fastest = fastest.min(rung.timing.p50);
        keep
    });
    // The first one looks for all of them.
    if let (Some(vision), Some(first)) = (vision, rungs.first_mut()) {
        first.policy.see_through(vision);
    }
    if rungs.len() > 1 {
        let names: Vec<&str> = rungs.iter().map(|rung| rung.name.as_str()).collect();
        say!("ladder: {}", names.join(", "));
    }
    Ok(Rungs { rungs })
}

/// What plans are made from.
pub(super) struct Plans<'a> {
    /// The package's folder; without one, the package inside this program.
    pub(super) folder: Option<&'a Path>,
    pub(super) package: &'a Arc<Package>,
    pub(super) weights: &'a Arc<CpuWeights>,
    /// Whether chunks are inpainted.
    pub(super) joining: bool,
}

impl Plans<'_> {
    /// A policy that runs this schedule; `sampler` only counts where no schedule says.
    pub(super) fn policy(
        &self,
        schedule: &str,
        sampler: SamplerArgs,
        engine: &EngineArgs,
    ) -> Result<Policy, Box<dyn std::error::Error>> {
        let package = Arc::clone(self.package);
        let sampler = if schedule == FULL { sampler } else { SamplerArgs::default() };
        let mut selected = match self.folder {
            Some(folder) => Selected::new(folder, package, sampler, schedule)?,
            #[cfg(feature = "pusht")]
            None if schedule != FULL => {
                Selected::with_file(package, sampler, schedule, &crate::builtin::schedule()?)?
            }
            None => Selected::new(Path::new(""), package, sampler, schedule)?,
        };
        selected.joining = self.joining;
        let engine = engine.make(self.weights, selected.plan()?)?;
        Ok(Policy::new(selected.config.clone(), engine).watch(selected.coverage.clone()))
    }
}

/// The configuration's schedule and its ladder.
fn named(section: &PolicySection) -> Vec<String> {
    std::iter::once(&section.schedule).chain(&section.ladder).cloned().collect()
}

/// The full policy, then the package's schedules by the score that their files state, then those that state none.
fn ranked(section: &PolicySection) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let mut scored = Vec::new();
    for name in ScheduleFile::names(&section.path)? {
        let file = ScheduleFile::load(&section.path, &name)?;
        let score = file.report.get("score").and_then(toml::Value::as_float).unwrap_or(f64::NEG_INFINITY);
        scored.push((score, name));
    }
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    Ok(std::iter::once(FULL.to_owned()).chain(scored.into_iter().map(|(_, name)| name)).collect())
}

fn millis(span: Nanos) -> f64 {
    span as f64 / MILLISECOND as f64
}
