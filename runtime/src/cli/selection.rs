//! Arguments that choose what runs: policy, sampler, schedule, engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use refrain_policies::config::PolicyConfig;
use refrain_policies::coverage::Coverage;
use refrain_policies::package::Package;
use refrain_policies::plan::Plan;
use refrain_policies::sampler::{SamplerConfig, SamplerKind};
use refrain_policies::schedule::Schedule;
use refrain_policies::schedule_file::ScheduleFile;
use refrain_policies::vision::Vision;

use crate::config::EngineChoice;
use crate::engine::choice::EngineSettings;
use crate::engine::cpu::CpuWeights;
use crate::engine::gpu::{self, Wait};
use crate::engine::{Engine, EngineError};
use crate::policy::Policy;

/// The name that stands for no caching.
pub(super) const FULL: &str = "full";

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    Ddpm,
    Ddim,
}

/// Sampler arguments.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(super) struct SamplerArgs {
    /// Sampler; otherwise what the schedule or the policy says.
    #[arg(long)]
    pub(super) sampler: Option<Kind>,
    /// Denoising steps; otherwise what the schedule or the policy says.
    #[arg(long, value_name = "N")]
    pub(super) steps: Option<usize>,
}

/// Engine arguments.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct EngineArgs {
    /// Engine; `auto` takes the GPU where there is one and says so when there is none.
    #[arg(long, value_enum, default_value_t = EngineChoice::Auto)]
    pub(super) engine: EngineChoice,
    /// Threads of the CPU engine; otherwise one per processor, at most four.
    #[arg(long, value_name = "N")]
    pub(super) threads: Option<usize>,
    #[command(flatten)]
    pub(super) gpu: GpuArgs,
}

/// Arguments of the GPU engine.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct GpuArgs {
    /// Part of the GPU adapter's name, as `refrain doctor` lists it; otherwise the fastest one.
    #[arg(long, value_name = "NAME")]
    pub(super) adapter: Option<String>,
    /// How to wait for the GPU: `spin` for latency, `sleep` for power.
    #[arg(long, value_enum, default_value_t)]
    pub(super) wait: Wait,
}

/// Why a selection makes no sense.
#[derive(Debug, thiserror::Error)]
pub(super) enum SelectionError {
    #[error("{}", problems.join("; "))]
    Sampler { problems: Vec<String> },
    #[error("the policy has no schedule {name:?}; expected {FULL}{}", list(known))]
    Unknown { name: String, known: Vec<String> },
    #[error(
        "schedule {name:?} is for {expected}, but the arguments ask for {got}; \
         leave out --sampler and --steps, or calibrate for {got}"
    )]
    OtherSampler { name: String, expected: String, got: String },
}

fn list(names: &[String]) -> String {
    names.iter().map(|n| format!(", {n}")).collect()
}

impl SamplerArgs {
    /// The policy's sampler with what the arguments change.
    pub(super) fn apply(&self, sampler: &SamplerConfig) -> SamplerConfig {
        let kind = match self.sampler {
            Some(Kind::Ddpm) => SamplerKind::Ddpm,
            Some(Kind::Ddim) => SamplerKind::Ddim,
            None => sampler.kind,
        };
        let steps = self.steps.unwrap_or(sampler.inference_steps);
        if kind == sampler.kind && steps == sampler.inference_steps {
            sampler.clone()
        } else {
            sampler.with(kind, steps)
        }
    }

    /// The package's default schedule, unless the arguments choose another sampler.
    pub(super) fn default_schedule(&self, package: &Package) -> Option<String> {
        package.config.default_schedule.clone().filter(|_| !self.given())
    }

    /// What [`SamplerConfig::label`] says.
    pub(super) fn parse_label(label: &str) -> Option<Self> {
        let (kind, steps) = label.split_at_checked(4)?;
        let sampler = Some(match kind {
            "ddpm" => Kind::Ddpm,
            "ddim" => Kind::Ddim,
            _ => return None,
        });
        Some(Self { sampler, steps: Some(steps.parse().ok()?) })
    }

    fn given(&self) -> bool {
        self.sampler.is_some() || self.steps.is_some()
    }
}

/// A policy with the sampler and the schedule that it runs.
#[derive(Clone)]
pub(super) struct Selected {
    pub(super) package: Arc<Package>,
    /// The package's configuration with the chosen sampler.
    pub(super) config: PolicyConfig,
    pub(super) schedule: Schedule,
    /// [`FULL`] or the schedule's name.
    pub(super) name: String,
    /// Whether chunks are inpainted.
    pub(super) joining: bool,
    /// What the schedule was found with, if its file says so.
    pub(super) coverage: Option<Coverage>,
}

impl Selected {
    /// Applies the arguments; `schedule` is a name in the package's folder, or [`FULL`].
    pub(super) fn new(
        folder: &Path,
        package: Arc<Package>,
        sampler: SamplerArgs,
        schedule: &str,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let mut config = package.config.clone();
        if schedule == FULL {
            config.sampler = sampler.apply(&config.sampler);
            let problems = config.problems();
            if !problems.is_empty() {
                return Err(SelectionError::Sampler { problems }.into());
            }
            let schedule = Schedule::full(&config.architecture, config.sampler.inference_steps);
            return Ok(Self { package, config, schedule, name: FULL.into(), joining: false, coverage: None });
        }
        let known = ScheduleFile::names(folder)?;
        if !known.iter().any(|name| name == schedule) {
            return Err(SelectionError::Unknown { name: schedule.into(), known }.into());
        }
        let file = ScheduleFile::load(folder, schedule)?;
        Self::with_file(package, sampler, schedule, &file)
    }

    /// Applies a schedule file; its own sampler stands unless the arguments name the same one.
    pub(super) fn with_file(
        package: Arc<Package>,
        sampler: SamplerArgs,
        name: &str,
        file: &ScheduleFile,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let mut config = package.config.clone();
        if sampler.given() {
            let asked = sampler.apply(&config.sampler);
            if (asked.kind, asked.inference_steps) != (file.sampler.kind, file.sampler.inference_steps) {
                let (expected, got) = (file.sampler.label(), asked.label());
                return Err(SelectionError::OtherSampler { name: name.into(), expected, got }.into());
            }
        }
        config.sampler = file.sampler.clone();
        let schedule = file.check(&config, &package.weights_sha256())?;
        let coverage = file.calibration.as_ref().and_then(|c| c.coverage.clone());
        Ok(Self { package, config, schedule, name: name.into(), joining: false, coverage })
    }

    /// The compiled plan.
    pub(super) fn plan(&self) -> Result<Arc<Plan>, Box<dyn std::error::Error>> {
        let compile = if self.joining { Plan::joining } else { Plan::compile };
        Ok(Arc::new(compile(&self.config, &self.schedule)?))
    }

    /// A policy on an engine of its own.
    pub(super) fn policy(&self, engine: &EngineArgs) -> Result<Policy, Box<dyn std::error::Error>> {
        let engine = engine.make(&CpuWeights::new(Arc::clone(&self.package)), self.plan()?)?;
        Ok(Policy::seeing(self.config.clone(), engine, Vision::new(&self.package)?))
    }
}

impl EngineArgs {
    /// Threads asked for, or what suits this machine.
    pub(super) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| crate::threads::parallelism().min(4)).max(1)
    }

    /// What is asked of engines.
    pub(super) fn settings(&self) -> EngineSettings {
        let gpu = gpu::Options {
            adapter: self.gpu.adapter.clone(),
            wait: self.gpu.wait,
            pipeline_cache: cache_folder(),
            ..gpu::Options::default()
        };
        EngineSettings { choice: self.engine, threads: self.threads(), gpu }
    }

    /// The engine asked for.
    pub(super) fn make(
        &self,
        weights: &Arc<CpuWeights>,
        plan: Arc<Plan>,
    ) -> Result<Box<dyn Engine>, EngineError> {
        self.settings().open(weights, plan)
    }
}

/// Where compiled pipelines are kept: `refrain` in the user's cache folder.
fn cache_folder() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))?;
    Some(cache.join("refrain"))
}

/// Loads a package.
pub(super) fn load(policy: &Path) -> Result<Arc<Package>, Box<dyn std::error::Error>> {
    Ok(Arc::new(Package::load(policy)?))
}
