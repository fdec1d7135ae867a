//! `refrain forecasts`: every published forecast on one update table, side by side.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use refrain_policies::config::Architecture;
use refrain_policies::correction;
use refrain_policies::forecast::{self, Forecast};
use refrain_policies::plan::Plan;
use refrain_policies::schedule::Schedule;

#[cfg(feature = "pusht")]
use super::evaluate;
use super::progress::Progress;
use super::recorded::Recorded;
use super::selection::{SamplerArgs, Selected, load};
use super::{Outcome, say};
#[cfg(feature = "pusht")]
use crate::engine::choice::EngineSettings;
#[cfg(feature = "pusht")]
use crate::eval::EvalOptions;
use crate::search::candidate::{CandidateError, Observed};
use crate::search::study::{Part, Study};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Policy package; its `observations.safetensors` are used unless others are named.
    policy: PathBuf,
    /// Schedules whose update steps are taken; their own weights are left out.
    #[arg(long, value_name = "NAME", value_delimiter = ',', required = true)]
    schedule: Vec<String>,
    /// Recorded observations: .mcap, .safetensors or .npz.
    #[arg(long, value_name = "FILE")]
    observations: Option<PathBuf>,
    /// Observations that weights are fitted and gates are set on.
    #[arg(long, value_name = "B", default_value_t = 16)]
    fitted: usize,
    /// Later observations that errors are measured on.
    #[arg(long, value_name = "B", default_value_t = 32)]
    held_out: usize,
    #[cfg(feature = "pusht")]
    /// Episodes of Push-T that each row is scored on; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 0)]
    episodes: usize,
    /// Threads; otherwise one per processor, at most four.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// The page.
    #[arg(long, value_name = "FILE", default_value = "forecasts.md")]
    out: PathBuf,
}

/// What is compared.
struct Preset {
    forecast: Forecast,
    gated: bool,
    corrected: bool,
    what: &'static str,
    source: &'static str,
}

const fn preset(forecast: Forecast, what: &'static str, source: &'static str) -> Preset {
    Preset { forecast, gated: false, corrected: false, what, source }
}

const RIDGE: f64 = 1e-3;
const PRESETS: [Preset; 12] = [
    preset(Forecast::Reuse, "the last output", "Block-wise Adaptive Caching, arXiv 2506.13456"),
    Preset {
        corrected: true,
        ..preset(
            Forecast::Reuse,
            "the last output and a constant",
            "ERTACache's rectification, arXiv 2508.21091",
        )
    },
    preset(Forecast::Taylor { order: 1 }, "a line through two", "TaylorSeer, arXiv 2503.06923"),
    preset(Forecast::Taylor { order: 2 }, "a parabola through three", "TaylorSeer"),
    Preset {
        gated: true,
        ..preset(
            Forecast::Taylor { order: 1 },
            "a line where calibration gains by it",
            "confidence-gated Taylor",
        )
    },
    Preset {
        gated: true,
        ..preset(
            Forecast::Taylor { order: 2 },
            "a parabola where calibration gains by it",
            "confidence-gated Taylor",
        )
    },
    preset(
        Forecast::AdamsBashforth,
        "the line's mean until the next update",
        "two-step Adams-Bashforth rule",
    ),
    Preset {
        gated: true,
        ..preset(Forecast::AdamsBashforth, "that where calibration gains by it", "the same")
    },
    preset(
        Forecast::Fitted { outputs: 1, ridge: RIDGE },
        "the last output, weighed",
        "least squares with ridge",
    ),
    preset(Forecast::Fitted { outputs: 2, ridge: RIDGE }, "two outputs, weighed", "least squares with ridge"),
    preset(
        Forecast::Fitted { outputs: 3, ridge: RIDGE },
        "three outputs, weighed",
        "least squares with ridge",
    ),
    Preset {
        corrected: true,
        ..preset(
            Forecast::Fitted { outputs: 2, ridge: RIDGE },
            "two outputs, weighed, and a constant",
            "least squares with ridge",
        )
    },
];

impl Preset {
    fn name(&self) -> String {
        let gated = if self.gated { ", gated" } else { "" };
        let corrected = if self.corrected { ", corrected" } else { "" };
        format!("{}{gated}{corrected}", self.forecast.name())
    }

    /// The schedule with its updates and this preset's weights.
    fn apply(
        &self,
        schedule: &Schedule,
        architecture: &Architecture,
        observed: &Observed,
    ) -> Result<Schedule, CandidateError> {
        let mut made = forecast::apply(schedule, Some(&observed.statistics), |_, _| self.forecast)?;
        if self.gated {
            made = forecast::gated(&made, &observed.statistics)?;
        }
        let corrections = correction::fit(&made, &observed.means, |_| self.corrected);
        Ok(made.with_corrections(architecture, corrections)?)
    }
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let package = load(&self.policy)?;
        let recorded = Recorded::read(&self.policy, self.observations.as_deref(), &package.config)?;
        let parts = recorded.parts([Some(self.fitted), Some(0), Some(self.held_out)])?;
        let threads = self.threads.unwrap_or_else(|| crate::threads::parallelism().min(4)).max(1);
        let study = Study::new(Arc::clone(&package), parts, 0, threads);
        let progress = Progress::new();
        let mut page = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(page, "# {}: forecasts on the same update steps\n", package.config.name);
        let _ = writeln!(
            page,
            "Weights, gates and constants from {} observations, errors on {} of the held-out last third of the recording. \
             *Feature error* is that of all forecast block outputs, relative, in calibration, before constants. *Action \
             error* is against the full run of the same sampler with the same noise, executed actions, normalised units: mean over \
             chunks, and root mean square.{}\n",
            self.fitted,
            self.held_out,
            match self.episodes() {
                0 => String::new(),
                n => format!(" Scores: Push-T, {n} episodes, seeds from 0, +- standard error."),
            }
        );
        let (head, line) =
            if self.episodes() > 0 { (" score | success |", " --- | --- |") } else { ("", "") };
        let _ = writeln!(
            page,
            "| updates of | forecast | what it is | source | feature error | action error | RMS | worst | operations |{head}"
        );
        let _ = writeln!(page, "| --- | --- | --- | --- | --- | --- | --- | --- | --- |{line}");
        for name in &self.schedule {
            let selected = Selected::new(&self.policy, Arc::clone(&package), SamplerArgs::default(), name)?;
            let sampler = &selected.config.sampler;
            progress.show(format_args!("{name}: collecting statistics"));
            let observed = study.observed(sampler, self.fitted)?;
            let mut tables = Vec::new();
            for preset in &PRESETS {
                let schedule = preset.apply(&selected.schedule, &selected.config.architecture, &observed)?;
                tables.push((preset.name(), preset.what, preset.source, schedule));
            }
            let own = selected.schedule.clone();
            tables.push(("as in the file".into(), "whatever its method found", "`refrain search`", own));
            for (forecast, what, source, schedule) in tables {
                progress.show(format_args!("{name}: {forecast}"));
                let error = study.own_error(sampler, &schedule, Part::HeldOut)?;
                let features = forecast::feature_error(&schedule, &observed.statistics)?;
                let operations = Plan::compile(&selected.config, &schedule)?.cost().operations;
                let _ = write!(
                    page,
                    "| {name} | {forecast} | {what} | {source} | {features:.3} | {:.4} | {:.4} | {:.3} | {operations} |",
                    error.mean, error.rms, error.worst
                );
                let _ = writeln!(page, "{}", self.scores(&Selected { schedule, ..selected.clone() })?);
                std::fs::write(&self.out, &page).map_err(|e| format!("{}: {e}", self.out.display()))?;
            }
        }
        let _ = writeln!(page, "\nMade by `refrain forecasts`; run it again to check.");
        drop(progress);
        say!("{}", page.trim_end());
        std::fs::write(&self.out, page).map_err(|e| format!("{}: {e}", self.out.display()))?;
        Ok(())
    }

    #[cfg(feature = "pusht")]
    fn episodes(&self) -> usize {
        self.episodes
    }

    #[cfg(not(feature = "pusht"))]
    fn episodes(&self) -> usize {
        0
    }

    /// The last two columns, if asked for.
    #[cfg(feature = "pusht")]
    fn scores(&self, selected: &Selected) -> Result<String, Box<dyn std::error::Error>> {
        if self.episodes == 0 {
            return Ok(String::new());
        }
        let workers = self.threads.unwrap_or_else(crate::threads::parallelism).max(1);
        let options = EvalOptions { episodes: self.episodes, seed: 0, noise_seed: 0, workers };
        let report = evaluate::run(selected, &options, &EngineSettings::cpu(1), None)?;
        let ((score, spread), (success, doubt)) = (report.score, report.success);
        Ok(format!(" {score:.3} +- {spread:.3} | {success:.3} +- {doubt:.3} |"))
    }

    #[cfg(not(feature = "pusht"))]
    fn scores(&self, _: &Selected) -> Result<String, Box<dyn std::error::Error>> {
        Ok(String::new())
    }
}
