//! `refrain doctor`: what this machine offers, what is chosen and why, and a self-test of every engine.

use std::sync::Arc;

use hdrhistogram::Histogram;
use refrain_policies::plan::Plan;

use super::progress::Progress;
use super::{Outcome, say};
use crate::engine::choice::EngineSettings;
use crate::engine::cpu::{CpuWeights, Isa};
use crate::engine::gpu::{AdapterSummary, GpuEngine, Options};
use crate::engine::{Engine, EngineError};
use crate::{builtin, clock, noise, threads};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Seconds that each engine's self-test runs.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    seconds: f64,
}

/// Largest difference to the CPU engine that passes, normalised units; the built-in policy's weights are f16.
const WITHIN: f32 = 2e-2;

/// A self-test's outcome.
struct Checked {
    /// Largest difference to the CPU engine on one thread.
    difference: f32,
    p50_ms: f64,
    p99_ms: f64,
}

/// What the self-test runs: the built-in policy and its default schedule.
struct Subject {
    weights: Arc<CpuWeights>,
    plan: Arc<Plan>,
    observation: Vec<f32>,
    noise: Vec<f32>,
    /// The CPU engine's answer.
    expected: Vec<f32>,
    seconds: f64,
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let adapters = GpuEngine::adapters();
        say!("refrain {}", env!("CARGO_PKG_VERSION"));
        say!("processor: {} threads, {:?}", threads::parallelism(), Isa::detect());
        for adapter in &adapters {
            say!("adapter:   {adapter}");
        }
        let chosen = adapters.iter().find(|a| !a.software());
        say!("{}", advice(&adapters, chosen));
        let subject = Subject::new(self.seconds)?;
        let progress = Progress::new();
        let mut failed = Vec::new();
        let mut report = |name: String, outcome: Result<Checked, EngineError>| match outcome {
            Ok(checked) => {
                // Written so that NaN fails.
                let passed = checked.difference <= WITHIN;
                say!(
                    "{:<52} p50 {:>8.2} ms  p99 {:>8.2} ms  difference {:.1e}  {}",
                    name,
                    checked.p50_ms,
                    checked.p99_ms,
                    checked.difference,
                    if passed { "passed" } else { "FAILED" }
                );
                if !passed {
                    failed.push(name);
                }
            }
            Err(error) => {
                say!("{name:<52} FAILED: {error}");
                failed.push(name);
            }
        };
        let cpus = threads::parallelism().min(4);
        progress.show(format_args!("testing the CPU engine"));
        report(format!("cpu, {cpus} threads"), subject.cpu(cpus).and_then(|mut e| subject.check(e.as_mut())));
        for adapter in &adapters {
            progress.show(format_args!("testing {}", adapter.name));
            let engine = subject.gpu(adapter);
            report(
                format!("gpu, {} ({})", adapter.name, adapter.backend),
                engine.and_then(|mut e| subject.check(&mut e)),
            );
        }
        drop(progress);
        if failed.is_empty() {
            return Ok(());
        }
        Err(format!("self-test failed on {}; use --engine cpu until it passes", failed.join(" and ")).into())
    }
}

/// What `--engine auto` takes here, and what to do for a GPU.
fn advice(adapters: &[AdapterSummary], chosen: Option<&AdapterSummary>) -> String {
    match (chosen, adapters.is_empty()) {
        (Some(adapter), _) => format!("--engine auto takes the GPU {}", adapter.name),
        (None, false) => "--engine auto takes the CPU: the only adapter is a processor in disguise. For a GPU, install \
                          its Vulkan driver (mesa-vulkan-drivers for Intel, AMD and Raspberry Pi, the vendor's for NVIDIA)"
            .to_owned(),
        (None, true) => "--engine auto takes the CPU: no Vulkan, Metal or DX12 adapter was found. For a GPU, install \
                         libvulkan1 and its Vulkan driver (mesa-vulkan-drivers for Intel, AMD and Raspberry Pi, the \
                         vendor's for NVIDIA)"
            .to_owned(),
    }
}

impl Subject {
    fn new(seconds: f64) -> Result<Self, Box<dyn std::error::Error>> {
        let package = Arc::new(builtin::package()?);
        let file = builtin::schedule()?;
        let mut config = package.config.clone();
        config.sampler = file.sampler.clone();
        let schedule = file.check(&config, &package.weights_sha256())?;
        let plan = Arc::new(Plan::compile(&config, &schedule)?);
        let mut noise = vec![0.0; plan.noise_len()];
        noise::fill(0, 0, 0, &mut noise);
        let observation: Vec<f32> = (0..plan.observation.len()).map(|i| 0.1 * (i % 7) as f32 - 0.3).collect();
        let mut subject = Self {
            weights: CpuWeights::new(package),
            expected: vec![0.0; plan.trajectory.len()],
            plan,
            observation,
            noise,
            seconds,
        };
        let mut cpu = subject.cpu(1)?;
        cpu.infer(&subject.observation, &subject.noise, &mut subject.expected)?;
        Ok(subject)
    }

    fn cpu(&self, threads: usize) -> Result<Box<dyn Engine>, EngineError> {
        EngineSettings::cpu(threads).open(&self.weights, Arc::clone(&self.plan))
    }

    fn gpu(&self, adapter: &AdapterSummary) -> Result<GpuEngine, EngineError> {
        let options = Options { adapter: Some(adapter.name.clone()), ..Options::default() };
        GpuEngine::new(self.weights.package(), Arc::clone(&self.plan), &options)
    }

    /// Runs an engine for the seconds asked for, at least twice; the first inference is not timed.
    fn check(&self, engine: &mut dyn Engine) -> Result<Checked, EngineError> {
        let mut trajectory = vec![f32::NAN; self.expected.len()];
        engine.infer(&self.observation, &self.noise, &mut trajectory)?;
        // A span of up to an hour in nanoseconds, to three digits.
        let mut times = Histogram::<u64>::new_with_bounds(1, 3_600_000_000_000, 3).unwrap_or_else(|e| {
            unreachable!("constant bounds of a histogram: {e}");
        });
        let start = clock::now();
        loop {
            let begin = clock::now();
            engine.infer(&self.observation, &self.noise, &mut trajectory)?;
            times.saturating_record(u64::try_from(clock::now() - begin).unwrap_or(0));
            if clock::seconds(clock::now() - start) >= self.seconds {
                break;
            }
        }
        let differences = trajectory.iter().zip(&self.expected).map(|(a, b)| (a - b).abs());
        let worst = differences.fold(0.0, |w: f32, d| if d <= w || w.is_nan() { w } else { d });
        let ms = |q| times.value_at_quantile(q) as f64 * 1e-6;
        Ok(Checked { difference: worst, p50_ms: ms(0.5), p99_ms: ms(0.99) })
    }
}
