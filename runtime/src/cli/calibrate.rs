//! `refrain calibrate`: recorded observations to a cache schedule.

use std::path::PathBuf;
use std::sync::Arc;

use refrain_policies::adaptive_caching;
use refrain_policies::calibration::Calibration;
use refrain_policies::config::PolicyConfig;
use refrain_policies::package::Package;
use refrain_policies::plan::{Plan, Probed};
use refrain_policies::schedule::{self, Schedule};
use refrain_policies::schedule_file::{CalibrationData, Method, ScheduleFile};

use super::progress::Progress;
use super::recorded::Recorded;
use super::selection::{SamplerArgs, load};
use super::{Outcome, say};
use crate::engine::Engine;
use crate::engine::cpu::CpuEngine;
use crate::noise;

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("how").required(true))]
pub(super) struct Args {
    /// Policy package; the schedule goes into its `schedules` folder.
    policy: PathBuf,
    /// Adaptive caching: update steps per block, found on recorded observations.
    #[arg(long, value_name = "M", group = "how")]
    updates: Option<usize>,
    /// Adaptive caching: blocks that also update with the feed-forward blocks after them.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "updates")]
    union: usize,
    /// All blocks update at this many evenly spaced steps.
    #[arg(long, value_name = "M", group = "how")]
    uniform: Option<usize>,
    /// All blocks update at this many steps, the denser the later.
    #[arg(long, value_name = "M", group = "how")]
    late: Option<usize>,
    /// How much denser: 1 is even, 2 is quadratic.
    #[arg(long, default_value_t = 2.0, requires = "late")]
    power: f64,
    /// All blocks update at these steps, such as 0,21,39.
    #[arg(long, value_name = "STEPS", group = "how", value_delimiter = ',')]
    aligned: Option<Vec<usize>>,
    /// Any table: a TOML or JSON file with one list of update steps per block.
    #[arg(long, value_name = "FILE", group = "how")]
    table: Option<PathBuf>,
    /// Recorded observations: a recording of `refrain run` (.mcap), a .safetensors or .npz file with `obs_raw` [B,To,O] in raw
    /// units, or for a policy with cameras what `eval --record` writes; otherwise the package's own.
    #[arg(long, value_name = "FILE")]
    observations: Option<PathBuf>,
    /// Observations to use, evenly taken from the file.
    #[arg(long, value_name = "B", default_value_t = 16)]
    limit: usize,
    #[command(flatten)]
    sampler: SamplerArgs,
    /// Seed of the calibration noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Name of the schedule; otherwise made from sampler and method.
    #[arg(long)]
    name: Option<String>,
    /// Make it the schedule that robots run when they name none.
    #[arg(long)]
    default: bool,
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let package = load(&self.policy)?;
        let mut config = package.config.clone();
        config.sampler = self.sampler.apply(&config.sampler);
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(problems.join("; ").into());
        }
        let (a, steps) = (&config.architecture, config.sampler.inference_steps);
        let mut calibration = None;
        let (schedule, method, label) = if let Some(updates) = self.updates {
            let (statistics, data) = self.observe(&package, &config)?;
            calibration = Some(data);
            let schedule = adaptive_caching::schedule(a, &statistics, updates, self.union)?;
            let method = Method::adaptive_caching(u32::try_from(updates)?, u32::try_from(self.union)?);
            (schedule, method, format!("bac{updates}_union{}", self.union))
        } else if let Some(updates) = self.uniform {
            let method = Method::named("uniform").with("updates", i64::try_from(updates)?);
            (Schedule::uniform(a, steps, updates)?, method, format!("uniform{updates}"))
        } else if let Some(updates) = self.late {
            if !(self.power >= 1.0 && self.power.is_finite()) {
                return Err(format!("--power: expected a number of at least 1, got {}", self.power).into());
            }
            let method = Method::named("late_dense")
                .with("updates", i64::try_from(updates)?)
                .with("power", self.power);
            (Schedule::late_dense(a, steps, updates, self.power)?, method, format!("late{updates}"))
        } else if let Some(at) = &self.aligned {
            (Schedule::aligned(a, steps, at)?, Method::named("aligned"), format!("aligned{}", at.len()))
        } else {
            let path =
                self.table.as_deref().ok_or("one of --updates, --uniform, --aligned, --table is needed")?;
            let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
            (table(&text, &config)?, Method::named("by_hand"), "table".into())
        };
        let mut file = ScheduleFile::new(&config, &package.weights_sha256(), &schedule, method);
        file.calibration = calibration;
        let name = self.name.unwrap_or_else(|| format!("{}_{label}", config.sampler.label()));
        let path = file.save(&self.policy, &name)?;
        say!(
            "{}: {} of {} block computations, {} of {steps} steps with updates",
            path.display(),
            schedule.updates(),
            steps * schedule.rows().len(),
            schedule.steps_with_updates()
        );
        if self.default {
            Package::set_default_schedule(&self.policy, &name)?;
            say!("now the default schedule of {}", self.policy.display());
        }
        say!("see it: refrain plan {} --schedule {name}", self.policy.display());
        Ok(())
    }

    /// Runs the full policy on recorded observations and collects its blocks' statistics.
    fn observe(
        &self,
        package: &Arc<Package>,
        config: &PolicyConfig,
    ) -> Result<(adaptive_caching::Statistics, CalibrationData), Box<dyn std::error::Error>> {
        let a = &config.architecture;
        let recorded = Recorded::read(&self.policy, self.observations.as_deref(), config)?;
        let observations = recorded.evenly(self.limit);
        let used = observations.len();
        let steps = config.sampler.inference_steps;
        let blocks = schedule::blocks(a);
        let mut calibration = Calibration::new(blocks.clone(), steps, a.trunk_tokens() * a.width)?;
        let plan = Arc::new(Plan::traced(config, &Schedule::full(a, steps))?);
        let mut engine =
            CpuEngine::new(Arc::clone(package), Arc::clone(&plan), crate::threads::parallelism().min(4))?;
        let mut draw = vec![0.0; plan.noise_len()];
        let mut trajectory = vec![0.0; plan.trajectory.len()];
        let mut outputs = vec![0.0; steps * blocks.len() * a.trunk_tokens() * a.width];
        let progress = Progress::new();
        for (i, observation) in observations.iter().enumerate() {
            noise::fill(self.seed, 0, i as u64, &mut draw);
            engine.infer(observation, &draw, &mut trajectory)?;
            let size = a.trunk_tokens() * a.width;
            for probe in &plan.probes {
                if let Probed::Block(block) = probe.what {
                    let row =
                        blocks.iter().position(|b| *b == block).ok_or("the plan probes an unknown block")?;
                    outputs[(probe.step * blocks.len() + row) * size..][..size]
                        .copy_from_slice(&engine.probe(probe));
                }
            }
            calibration.add(observation, &outputs)?;
            progress.show(format_args!("observation {} of {used}", i + 1));
        }
        drop(progress);
        Ok((calibration.finish()?, recorded.data(used, self.seed)))
    }
}

/// A table of update steps per block, TOML or JSON.
fn table(text: &str, config: &PolicyConfig) -> Result<Schedule, Box<dyn std::error::Error>> {
    let rows: std::collections::BTreeMap<String, Vec<usize>> =
        if text.trim_start().starts_with('{') { serde_json::from_str(text)? } else { toml::from_str(text)? };
    let rows = rows
        .into_iter()
        .map(|(name, at)| Ok((name.parse()?, at)))
        .collect::<Result<Vec<_>, refrain_policies::schedule::ScheduleError>>()?;
    Ok(Schedule::from_updates(&config.architecture, config.sampler.inference_steps, rows)?)
}
