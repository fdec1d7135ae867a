//! `refrain forecasts`: every published forecast on one update table, side by side.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use refrain_policies::forecast::{self, Forecast, ForecastError};
use refrain_policies::plan::Plan;
use refrain_policies::schedule::Schedule;

use super::progress::Progress;
use super::recorded::Recorded;
use super::selection::{SamplerArgs, Selected, load};
use super::{Outcome, say};
use crate::search::study::{Part, Study};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Policy package; its `observations.safetensors` are used unless others are named.
    policy: PathBuf,
    /// Schedules whose update steps are taken; their own weights are left out.
    #[arg(long, value_name = "NAME", value_delimiter = ',', required = true)]
    schedule: Vec<String>,
    /// Safetensors file with recorded observations.
    #[arg(long, value_name = "FILE")]
    observations: Option<PathBuf>,
    /// Observations that weights are fitted and gates are set on.
    #[arg(long, value_name = "B", default_value_t = 16)]
    fitted: usize,
    /// Later observations that errors are measured on.
    #[arg(long, value_name = "B", default_value_t = 32)]
    held_out: usize,
    /// Threads; otherwise one per processor, at most four.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// The page.
    #[arg(long, value_name = "FILE", default_value = "forecasts.md")]
    out: PathBuf,
}

/// What is compared: forecast, gate, where it comes from.
const PRESETS: [(Forecast, bool, &str); 10] = [
    (Forecast::Reuse, false, "Block-wise Adaptive Caching, arXiv 2506.13456"),
    (Forecast::Taylor { order: 1 }, false, "TaylorSeer, arXiv 2503.06923"),
    (Forecast::Taylor { order: 2 }, false, "TaylorSeer"),
    (
        Forecast::Taylor { order: 1 },
        true,
        "TaylorSeer, reuse where calibration says so (confidence-gated Taylor)",
    ),
    (Forecast::Taylor { order: 2 }, true, "the same"),
    (Forecast::AdamsBashforth, false, "two-step Adams-Bashforth rule"),
    (Forecast::AdamsBashforth, true, "the same, gated"),
    (Forecast::Fitted { outputs: 1, ridge: 1e-3 }, false, "least squares with ridge"),
    (Forecast::Fitted { outputs: 2, ridge: 1e-3 }, false, "least squares with ridge"),
    (Forecast::Fitted { outputs: 3, ridge: 1e-3 }, false, "least squares with ridge"),
];

impl Args {
    pub(super) fn run(self) -> Outcome {
        let package = load(&self.policy)?;
        let recorded = Recorded::read(&self.policy, self.observations.as_deref(), &package.config)?;
        let observations = recorded.parts(self.fitted, self.held_out)?;
        let threads = self.threads.unwrap_or_else(|| crate::threads::parallelism().min(4)).max(1);
        let study = Study::new(Arc::clone(&package), observations, self.held_out, 0, threads);
        let progress = Progress::new();
        let mut page = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(page, "# {}: forecasts on the same update steps\n", package.config.name);
        let _ = writeln!(
            page,
            "Weights and gates from {} observations, errors on {} later ones. *Feature error* is that of all forecast block \
             outputs, relative, in calibration. *Action error* is against the full run of the same sampler with the same \
             noise, executed actions, normalised units: mean over chunks, and root mean square.\n",
            self.fitted, self.held_out
        );
        let _ = writeln!(
            page,
            "| updates of | forecast | source | feature error | action error | RMS | worst | operations |"
        );
        let _ = writeln!(page, "| --- | --- | --- | --- | --- | --- | --- | --- |");
        for name in &self.schedule {
            let selected = Selected::new(&self.policy, Arc::clone(&package), SamplerArgs::default(), name)?;
            let sampler = &selected.config.sampler;
            progress.show(format_args!("{name}: collecting statistics"));
            let statistics = study.statistics(sampler, self.fitted)?;
            let mut tables: Vec<(String, &str, Schedule)> = PRESETS
                .iter()
                .map(|&(forecast, gate, source)| {
                    let schedule = forecast::apply(&selected.schedule, Some(&statistics), |_, _| forecast)?;
                    Ok(if gate {
                        (
                            format!("{}, gated", forecast.name()),
                            source,
                            forecast::gated(&schedule, &statistics)?,
                        )
                    } else {
                        (forecast.name(), source, schedule)
                    })
                })
                .collect::<Result<_, ForecastError>>()?;
            tables.push((
                "as in the file".into(),
                "`refrain search`, or whatever made it",
                selected.schedule.clone(),
            ));
            for (forecast, source, schedule) in tables {
                progress.show(format_args!("{name}: {forecast}"));
                let error = study.own_error(sampler, &schedule, Part::HeldOut)?;
                let features = forecast::feature_error(&schedule, &statistics)?;
                let operations = Plan::compile(&selected.config, &schedule)?.cost().operations;
                let _ = writeln!(
                    page,
                    "| {name} | {forecast} | {source} | {features:.3} | {:.4} | {:.4} | {:.3} | {operations} |",
                    error.mean, error.rms, error.worst
                );
            }
        }
        let _ = writeln!(page, "\nMade by `refrain forecasts`; run it again to check.");
        drop(progress);
        say!("{}", page.trim_end());
        std::fs::write(&self.out, page).map_err(|e| format!("{}: {e}", self.out.display()))?;
        Ok(())
    }
}
