//! Arguments that choose what runs: policy, sampler, schedule, engine.

use std::path::Path;
use std::sync::Arc;

use refrain_policies::config::PolicyConfig;
use refrain_policies::package::Package;
use refrain_policies::plan::Plan;
use refrain_policies::sampler::{SamplerConfig, SamplerKind};
use refrain_policies::schedule::Schedule;
use refrain_policies::schedule_file::ScheduleFile;

use crate::config::EngineChoice;
use crate::engine::cpu::{CpuEngine, CpuWeights, Isa, Program};
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
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct EngineArgs {
    /// Engine.
    #[arg(long, value_enum, default_value_t = EngineName::Auto)]
    pub(super) engine: EngineName,
    /// Threads of the CPU engine; otherwise one per processor, at most four.
    #[arg(long, value_name = "N")]
    pub(super) threads: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum EngineName {
    Auto,
    Gpu,
    Cpu,
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

impl From<EngineName> for EngineChoice {
    fn from(name: EngineName) -> Self {
        match name {
            EngineName::Auto => Self::Auto,
            EngineName::Gpu => Self::Gpu,
            EngineName::Cpu => Self::Cpu,
        }
    }
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
            return Ok(Self { package, config, schedule, name: FULL.into() });
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
        Ok(Self { package, config, schedule, name: name.into() })
    }

    /// The compiled plan.
    pub(super) fn plan(&self) -> Result<Arc<Plan>, Box<dyn std::error::Error>> {
        Ok(Arc::new(Plan::compile(&self.config, &self.schedule)?))
    }

    /// A policy on an engine of its own.
    pub(super) fn policy(&self, engine: EngineArgs) -> Result<Policy, Box<dyn std::error::Error>> {
        let engine = engine.make(&CpuWeights::new(Arc::clone(&self.package)), self.plan()?)?;
        Ok(Policy::new(self.config.clone(), engine))
    }
}

impl EngineArgs {
    /// Threads asked for, or what suits this machine.
    pub(super) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| crate::threads::parallelism().min(4)).max(1)
    }

    /// An error when a GPU is asked for.
    pub(super) fn cpu_only(&self) -> Result<(), EngineError> {
        if self.engine == EngineName::Gpu { Err(EngineError::NoGpu) } else { Ok(()) }
    }

    /// The engine asked for; falling back to the CPU is said on stderr.
    pub(super) fn make(
        &self,
        weights: &Arc<CpuWeights>,
        plan: Arc<Plan>,
    ) -> Result<Box<dyn Engine>, EngineError> {
        self.cpu_only()?;
        Ok(Box::new(CpuEngine::on(Program::new(weights, plan, Isa::detect())?, self.threads())?))
    }
}

/// Loads a package.
pub(super) fn load(policy: &Path) -> Result<Arc<Package>, Box<dyn std::error::Error>> {
    Ok(Arc::new(Package::load(policy)?))
}
