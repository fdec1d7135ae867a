//! Which engine runs a plan: what was asked for, what there is, and what takes over when a GPU is lost.

use std::sync::Arc;
use std::time::Duration;

use refrain_policies::plan::Plan;

use super::cpu::{CpuEngine, CpuWeights, Isa, Program};
use super::gpu::{self, GpuEngine};
use super::{Engine, EngineError};
use crate::clock;
use crate::config::EngineChoice;

/// A GPU that takes this many times its first inferences' time is taken for lost ...
const PATIENCE: u32 = 20;
/// ... but not before this.
const LEAST_PATIENCE: Duration = Duration::from_millis(500);

/// What is asked of engines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineSettings {
    /// Which engine.
    pub choice: EngineChoice,
    /// Threads of the CPU engine.
    pub threads: usize,
    /// What is asked of the GPU engine.
    pub gpu: gpu::Options,
}

impl EngineSettings {
    /// The CPU engine on so many threads.
    pub fn cpu(threads: usize) -> Self {
        Self { choice: EngineChoice::Cpu, threads, gpu: gpu::Options::default() }
    }

    /// An engine for a plan. `Auto` takes the CPU where no GPU can run it, and says why as a warning; a GPU that is
    /// lost later gives way to the CPU in the middle of the inference, see [`Engine::fallbacks`].
    pub fn open(&self, weights: &Arc<CpuWeights>, plan: Arc<Plan>) -> Result<Box<dyn Engine>, EngineError> {
        let cpu = || CpuEngine::on(Program::new(weights, Arc::clone(&plan), Isa::detect())?, self.threads);
        if self.choice == EngineChoice::Cpu {
            return Ok(Box::new(cpu()?));
        }
        match self.gpu(weights, &plan) {
            Ok(gpu) => Ok(Box::new(Guarded::new(gpu, cpu()?))),
            Err(error) if self.choice == EngineChoice::Auto => {
                tracing::warn!("running on the CPU: {error}");
                Ok(Box::new(cpu()?))
            }
            Err(error) => Err(error),
        }
    }

    /// The GPU engine alone: opened, warmed up, and with a patience that suits its speed.
    pub fn gpu(&self, weights: &Arc<CpuWeights>, plan: &Arc<Plan>) -> Result<GpuEngine, EngineError> {
        let mut gpu = GpuEngine::new(weights.package(), Arc::clone(plan), &self.gpu)?;
        let (observation, noise) = (vec![0.0; plan.observation.len()], vec![0.0; plan.noise_len()]);
        let mut trajectory = vec![0.0; plan.trajectory.len()];
        let start = clock::now();
        gpu.infer(&observation, &noise, &mut trajectory)?;
        let took = Duration::from_nanos(u64::try_from(clock::now() - start).unwrap_or(0));
        gpu.set_patience((took * PATIENCE).max(LEAST_PATIENCE).min(self.gpu.patience));
        Ok(gpu)
    }
}

/// An engine with another one behind it, such as the GPU's with the CPU's.
pub struct Guarded<F, B> {
    first: Option<F>,
    behind: B,
    lost: u64,
}

impl<F: Engine, B: Engine> Guarded<F, B> {
    /// `behind` takes over when `first` fails.
    pub fn new(first: F, behind: B) -> Self {
        Self { first: Some(first), behind, lost: 0 }
    }
}

impl<F: Engine, B: Engine> Engine for Guarded<F, B> {
    fn infer(
        &mut self,
        observation: &[f32],
        noise: &[f32],
        trajectory: &mut [f32],
    ) -> Result<(), EngineError> {
        if let Some(first) = &mut self.first {
            match first.infer(observation, noise, trajectory) {
                Err(error) if !matches!(error, EngineError::Size { .. }) => {
                    tracing::warn!("running on {} from now on: {error}", self.behind.name());
                    self.lost += 1;
                    self.first = None;
                }
                outcome => return outcome,
            }
        }
        self.behind.infer(observation, noise, trajectory)
    }

    fn know(&mut self, known: &[f32]) -> Result<(), EngineError> {
        if let Some(first) = &mut self.first {
            first.know(known)?;
        }
        self.behind.know(known)
    }

    fn name(&self) -> String {
        self.first.as_ref().map_or_else(|| self.behind.name(), Engine::name)
    }

    fn fallbacks(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use refrain_policies::schedule::Schedule;

    use super::*;

    /// A GPU lost between two inferences: the second is the CPU engine's, bit for bit, and counted.
    #[test]
    fn a_lost_gpu_gives_way_to_the_cpu() {
        if GpuEngine::adapters().is_empty() {
            eprintln!("SKIPPED: no GPU adapter, nothing was lost; install mesa-vulkan-drivers");
            return;
        }
        let package = Arc::new(crate::builtin::package().expect("the built-in policy"));
        let steps = package.config.sampler.inference_steps;
        let schedule = Schedule::late_dense(&package.config.architecture, steps, 2, 1.5).expect("a schedule");
        let plan = Arc::new(Plan::compile(&package.config, &schedule).expect("a plan"));
        let weights = CpuWeights::new(Arc::clone(&package));
        let settings = EngineSettings {
            choice: EngineChoice::Gpu,
            threads: 1,
            gpu: gpu::Options { software: true, ..gpu::Options::default() },
        };
        let (observation, noise) = (vec![0.3; plan.observation.len()], vec![0.5; plan.noise_len()]);
        let run = |engine: &mut dyn Engine| {
            let mut trajectory = vec![f32::NAN; plan.trajectory.len()];
            engine.infer(&observation, &noise, &mut trajectory).expect("an inference");
            trajectory
        };
        let cpu = || CpuEngine::on(Program::new(&weights, Arc::clone(&plan), Isa::detect())?, 1);
        let expected = run(&mut cpu().expect("a CPU engine"));
        let gpu = settings.gpu(&weights, &plan).expect("a GPU engine");
        let mut guarded = Guarded::new(gpu, cpu().expect("a CPU engine"));
        run(&mut guarded);
        assert_eq!((guarded.fallbacks(), guarded.name().starts_with("gpu")), (0, true));
        guarded.first.as_ref().expect("a GPU engine").lose();
        assert_eq!(run(&mut guarded), expected);
        assert_eq!((guarded.fallbacks(), guarded.name().starts_with("gpu")), (1, false));
        run(&mut guarded);
        assert_eq!(guarded.fallbacks(), 1, "counted once");
    }
}
