//! `refrain eval`: a policy's score over many episodes.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use refrain_policies::vision::Vision;

use super::progress::Progress;
use super::selection::{EngineArgs, FULL, SamplerArgs, Selected, load};
use super::tensors::{self, Array};
use super::{Outcome, say};
use crate::config::EngineChoice;
use crate::engine::choice::EngineSettings;
use crate::engine::cpu::CpuWeights;
use crate::engine::{Engine, EngineError};
use crate::eval::{self, EvalOptions, EvalReport};
use crate::policy::Policy;
use crate::{clock, threads};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The task.
    #[arg(value_enum)]
    task: Task,
    /// Policy package.
    policy: PathBuf,
    /// Episodes.
    #[arg(long, default_value_t = 100)]
    episodes: usize,
    /// Seed of the first start state.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Seed of the noise.
    #[arg(long, default_value_t = 0)]
    noise_seed: u64,
    #[command(flatten)]
    sampler: SamplerArgs,
    /// Cache schedule of the policy, or `full`.
    #[arg(long, value_name = "NAME", default_value = FULL)]
    schedule: String,
    #[command(flatten)]
    engine: EngineArgs,
    /// Also write what the policy observed, as `refrain calibrate` reads it.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Task {
    /// Push a T-shaped block to its goal.
    Pusht,
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let Task::Pusht = self.task;
        let package = load(&self.policy)?;
        let selected = Selected::new(&self.policy, package, self.sampler, &self.schedule)?;
        let options = EvalOptions {
            episodes: self.episodes,
            seed: self.seed,
            noise_seed: self.noise_seed,
            workers: self.engine.workers(),
        };
        let observed = self.record.as_ref().map(|_| Arc::default());
        let start = clock::now();
        let report = run(&selected, &options, &self.engine.worker(), observed.clone())?;
        say!(
            "{}, {}, schedule {}: {} episodes, seeds {}..{}",
            selected.config.name,
            selected.config.sampler.label(),
            selected.name,
            report.episodes.len(),
            self.seed,
            self.seed + self.episodes as u64
        );
        say!("score    {:.3} +- {:.3}", report.score.0, report.score.1);
        say!("success  {:.3} +- {:.3}", report.success.0, report.success.1);
        let chunks: usize = report.episodes.iter().map(|e| e.chunks).sum();
        say!(
            "{chunks} chunks in {:.1} s with {} workers",
            clock::seconds(clock::now() - start),
            options.workers
        );
        let outside: u64 = report.episodes.iter().map(|e| e.outside).sum();
        if outside > 0 {
            say!(
                "{outside} of {chunks} observations lie outside what the schedule was found with; search again on these"
            );
        }
        if let (Some(path), Some(observed)) = (&self.record, observed) {
            let c = &selected.config;
            let (to, size) = (c.architecture.n_obs_steps, c.condition_size());
            let mut data = observed.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if c.cameras.is_empty() {
                c.observation.normalizer.unnormalize(&mut data);
            }
            let shape = vec![data.len() / (to * size), to, size];
            say!("{} observations -> {}", shape[0], path.display());
            tensors::write(path, &[(tensors::observed(c), Array { shape, data })])?;
        }
        Ok(())
    }
}

/// Normalised observations `[.., To, O]` that engines saw.
pub(super) type Observed = Arc<Mutex<Vec<f32>>>;

/// Scores a policy on an engine of its own per worker; shows progress on stderr.
pub(super) fn run(
    selected: &Selected,
    options: &EvalOptions,
    engine: &EngineSettings,
    observed: Option<Observed>,
) -> Result<EvalReport, Box<dyn std::error::Error>> {
    let weights = CpuWeights::new(Arc::clone(&selected.package));
    let plan = selected.plan()?;
    let mut parts = Vec::new();
    for _ in 0..options.workers {
        parts.push((engine.open(&weights, Arc::clone(&plan))?, Vision::new(&selected.package)?));
    }
    let parts = Mutex::new(parts);
    let make = || {
        let part = parts.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (engine, vision) = part.expect("parts were made for every worker");
        let engine: Box<dyn Engine> = match &observed {
            Some(seen) => Box::new(Recorder { inner: engine, seen: Arc::clone(seen) }),
            None => engine,
        };
        Policy::seeing(selected.config.clone(), engine, vision).watch(selected.coverage.clone())
    };
    let done = AtomicUsize::new(0);
    let sum = Mutex::new(0.0);
    let progress = Progress::new();
    let report = eval::run(options, make, |episode| {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
        *sum += episode.score;
        progress.show(format_args!(
            "{}: episode {done} of {}, mean score {:.3}",
            selected.name,
            options.episodes,
            *sum / done as f64
        ));
    })?;
    drop(progress);
    Ok(report)
}

/// An engine that remembers what it saw.
struct Recorder {
    inner: Box<dyn Engine>,
    seen: Observed,
}

impl Engine for Recorder {
    fn infer(
        &mut self,
        observation: &[f32],
        noise: &[f32],
        trajectory: &mut [f32],
    ) -> Result<(), EngineError> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(observation);
        self.inner.infer(observation, noise, trajectory)
    }

    fn name(&self) -> String {
        self.inner.name()
    }
}

impl EngineArgs {
    /// Workers of an evaluation: the threads asked for, or all processors.
    pub(super) fn workers(&self) -> usize {
        self.threads.unwrap_or_else(threads::parallelism).max(1)
    }

    /// A worker's engine: the CPU on one thread, unless a GPU is asked for by name.
    pub(super) fn worker(&self) -> EngineSettings {
        let choice = match self.engine {
            EngineChoice::Gpu => EngineChoice::Gpu,
            EngineChoice::Auto | EngineChoice::Cpu => EngineChoice::Cpu,
        };
        EngineSettings { choice, threads: 1, ..self.settings() }
    }
}
