//! The engines that are compared with the traces, each made from a package and a plan.

use std::path::Path;
use std::sync::Arc;

use refrain_policies::import::{self, Options};
use refrain_policies::package::{Dtype, Package};
use refrain_policies::plan::{Plan, Probe, Probed};
use refrain_policies::sampler::{SamplerConfig, SamplerKind};
use refrain_policies::schedule::Schedule;
use refrain_runtime::engine::Engine;
use refrain_runtime::engine::cpu::CpuEngine;
use refrain_runtime::engine::gpu::{self, GpuEngine};
use refrain_runtime::policy::{Policy, Prediction};

use crate::compare::Table;
use crate::trace::Trace;

/// An engine that is present on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Present {
    /// The CPU engine on so many threads.
    Cpu(usize),
    /// The GPU engine, on a processor in disguise if there is nothing else (Mesa's lavapipe in CI).
    Gpu,
}

/// Every engine that is present, each once; says loudly when there is no GPU.
pub fn present() -> Vec<Present> {
    let mut engines = vec![Present::Cpu(2)];
    if GpuEngine::adapters().is_empty() {
        eprintln!("SKIPPED: no GPU adapter, the GPU engine was not compared; install mesa-vulkan-drivers");
    } else {
        engines.push(Present::Gpu);
    }
    engines
}

/// A GPU engine on whatever adapter there is, its memory poisoned, so that reading what was never written shows.
///
/// # Panics
/// When it cannot be made.
pub fn gpu(package: &Package, plan: &Arc<Plan>) -> GpuEngine {
    // Software adapters on a busy machine take their time.
    let patience = std::time::Duration::from_secs(600);
    let options = gpu::Options { software: true, poison: true, patience, ..gpu::Options::default() };
    GpuEngine::new(package, Arc::clone(plan), &options).expect("a GPU engine")
}

impl Present {
    /// An engine for a plan.
    pub fn engine(self, package: &Arc<Package>, plan: &Arc<Plan>) -> Box<dyn Engine> {
        match self {
            Self::Cpu(threads) => Box::new(
                CpuEngine::new(Arc::clone(package), Arc::clone(plan), threads).expect("a CPU engine"),
            ),
            Self::Gpu => Box::new(gpu(package, plan)),
        }
    }

    /// A processor in disguise, which takes minutes for a hundred steps of a large policy.
    pub fn slow(self) -> bool {
        self == Self::Gpu && GpuEngine::adapters().iter().all(|adapter| adapter.software())
    }

    /// How many of a trace's observations are compared: software adapters are slow.
    fn observations(self, trace: &Trace) -> usize {
        match self {
            Self::Cpu(_) => trace.batch(),
            Self::Gpu => trace.batch().min(1),
        }
    }

    /// Runs a traced plan and gives every probed value.
    pub fn probes(
        self,
        package: &Arc<Package>,
        plan: &Arc<Plan>,
        observation: &[f32],
        noise: &[f32],
    ) -> Vec<(Probe, Vec<f32>)> {
        let mut trajectory = vec![0.0; plan.trajectory.len()];
        match self {
            Self::Cpu(threads) => {
                let mut engine =
                    CpuEngine::new(Arc::clone(package), Arc::clone(plan), threads).expect("a CPU engine");
                engine.infer(observation, noise, &mut trajectory).expect("an inference");
                plan.probes.iter().map(|probe| (probe.clone(), engine.probe(probe))).collect()
            }
            Self::Gpu => {
                let mut engine = gpu(package, plan);
                engine.infer(observation, noise, &mut trajectory).expect("an inference");
                let mut value = |probe: &Probe| engine.probe(probe).expect("a probed value");
                plan.probes.iter().map(|probe| (probe.clone(), value(probe))).collect()
            }
        }
    }
}

/// Imports a checkpoint.
///
/// # Panics
/// When it cannot be imported.
pub fn import(path: &Path, dtype: Dtype) -> Package {
    let options = Options { dtype, rate_hz: Some(10.0), ..Options::default() };
    import::checkpoint(path, &options).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The same weights with another sampler.
pub fn with_sampler(package: &Package, sampler: SamplerConfig) -> Arc<Package> {
    let mut package = package.clone();
    package.config.sampler = sampler;
    assert_eq!(package.config.problems(), Vec::<String>::new());
    Arc::new(package)
}

/// Runs a whole policy for every observation of a trace and compares trajectory and, where there, the actions.
///
/// `run` is the prefix of the tensors: nothing, or such as `ddim10.`.
pub fn compare_run(
    engine: Present,
    package: &Arc<Package>,
    schedule: &Schedule,
    trace: &Trace,
    run: &str,
    tolerance: f32,
    table: &mut Table,
) {
    let plan = Arc::new(Plan::compile(&package.config, schedule).expect("a plan"));
    let mut policy = Policy::new(package.config.clone(), engine.engine(package, &plan));
    let mut out = Prediction::default();
    // Actions are compared in normalised units: pixels would make any tolerance look tight or loose.
    let scale = &package.config.action.normalizer.scale;
    let normalised = |actions: &[f32]| -> Vec<f32> {
        actions.chunks(scale.len()).flat_map(|a| a.iter().zip(scale).map(|(v, s)| v * s)).collect()
    };
    for b in 0..engine.observations(trace) {
        let noise = trace.noise(b, plan.shape.steps);
        policy.predict(trace.at("obs_raw", b), &noise, &mut out).expect("a prediction");
        let golden = trace.at(&format!("{run}trajectory_norm"), b);
        table.add(&format!("{run}trajectory_norm"), tolerance, &out.trajectory_norm, golden);
        for (name, got) in [("action", &out.action), ("action_pred", &out.action_pred)] {
            let name = format!("{run}{name}");
            let Some(shape) = trace.shape(&name) else { continue };
            // A trace's `action` is the executed part or, in the golden data, the whole trajectory.
            let whole = shape[1] * shape[2] == out.action_pred.len();
            let got = if whole { &out.action_pred } else { got };
            table.add(&name, tolerance, &normalised(got), &normalised(trace.at(&name, b)));
        }
    }
}

/// Runs one denoising step at every traced timestep and compares what every block added, the condition tokens and the
/// denoiser's output.
///
/// The trace's network saw `noise[0]` as it is. A plan imposes the observation when inpainting, so there the
/// observation given is what already stands in those places of `noise[0]`, and imposing it changes nothing.
pub fn compare_forward(engine: Present, package: &Package, trace: &Trace, tolerance: f32, table: &mut Table) {
    let a = package.config.architecture.clone();
    let timesteps: Vec<usize> = trace
        .names("forward.t")
        .iter()
        .filter_map(|name| name.strip_suffix(".eps")?.strip_prefix("forward.t")?.parse().ok())
        .collect();
    assert!(!timesteps.is_empty(), "the trace has no forward pass");
    for t in timesteps {
        let sampler = SamplerConfig {
            timesteps: vec![t],
            clip_sample: true,
            ..package.config.sampler.with(SamplerKind::Ddpm, 1)
        };
        let package = with_sampler(package, sampler);
        let plan = Arc::new(Plan::traced(&package.config, &Schedule::full(&a, 1)).expect("a plan"));
        let mut compared = 0;
        for b in 0..engine.observations(trace) {
            let noise = trace.noise(b, 1);
            let observation = if a.obs_as_cond {
                trace.at("obs_norm", b).to_vec()
            } else {
                let (size, actions) = (package.config.denoised_size(), package.config.action.size());
                noise.chunks(size).take(a.n_obs_steps).flat_map(|token| token[actions..].to_vec()).collect()
            };
            for (probe, got) in engine.probes(&package, &plan, &observation, &noise) {
                let of_memory = |rows: std::ops::Range<usize>| {
                    let width = a.width;
                    trace.at(&format!("forward.t{t}.memory"), b)[rows.start * width..rows.end * width]
                        .to_vec()
                };
                let (name, expected) = match probe.what {
                    Probed::Block(block) => {
                        (format!("{block}"), trace.at(&format!("forward.t{t}.{block}"), b).to_vec())
                    }
                    Probed::Model => ("eps".into(), trace.at(&format!("forward.t{t}.eps"), b).to_vec()),
                    Probed::TimeMemory => ("memory".into(), of_memory(0..1)),
                    Probed::Memory => {
                        let tokens = a.condition_tokens();
                        ("memory".into(), of_memory(tokens - probe.view.rows..tokens))
                    }
                };
                table.add(&format!("forward.t{t}.{name}"), tolerance, &got, &expected);
                compared += got.len();
            }
        }
        // Every number of the trace's pass was compared.
        let prefix = format!("forward.t{t}.");
        let traced = |name: &&str| trace.shape(name).map_or(0, |s| s.iter().product::<usize>());
        let all: usize = trace.names(&prefix).iter().map(traced).sum();
        let expected = all / trace.batch() * engine.observations(trace);
        assert_eq!(compared, expected, "forward.t{t}: numbers compared");
    }
}

/// Compares the denoiser's output at every step that the trace kept, as `PREFIXeps` `[steps, B, T, N]`.
pub fn compare_eps(
    engine: Present,
    package: &Arc<Package>,
    trace: &Trace,
    run: &str,
    tolerance: f32,
    table: &mut Table,
) {
    let name = format!("{run}eps");
    let Some(shape) = trace.shape(&name) else { return };
    let (kept, steps) = (shape[0], package.config.sampler.inference_steps);
    let at: Vec<usize> = if kept == steps { (0..steps).collect() } else { vec![0, steps / 2, steps - 1] };
    assert_eq!(at.len(), kept, "{name}");
    let full = Schedule::full(&package.config.architecture, steps);
    let plan = Arc::new(Plan::traced(&package.config, &full).expect("a plan"));
    for b in 0..engine.observations(trace) {
        let noise = trace.noise(b, steps);
        let probes = engine.probes(package, &plan, trace.at("obs_norm", b), &noise);
        for (i, step) in at.iter().enumerate() {
            let is_it = |(probe, _): &&(Probe, Vec<f32>)| probe.what == Probed::Model && probe.step == *step;
            let (_, got) = probes.iter().find(is_it).expect("every step is probed");
            table.add(&name, tolerance, got, trace.step(&name, i, b));
        }
    }
}
