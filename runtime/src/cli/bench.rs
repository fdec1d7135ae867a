//! `refrain bench`: a policy's time on this machine, beside the floor that the machine sets.

use std::path::PathBuf;
use std::sync::Arc;

use hdrhistogram::Histogram;
use refrain_policies::plan::Plan;
use serde::Serialize;

use super::progress::Progress;
use super::selection::{EngineArgs, FULL, SamplerArgs, Selected, load};
use super::stages::{self, Stage};
use super::{Outcome, say};
use crate::config::EngineChoice;
use crate::engine::Engine;
use crate::engine::choice::EngineSettings;
use crate::engine::cpu::{CpuWeights, Floor, Isa};
use crate::engine::gpu::{GpuEngine, KernelTime};
use crate::{clock, noise};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Policy package.
    #[arg(required = true)]
    policy: Option<PathBuf>,
    #[command(flatten)]
    sampler: SamplerArgs,
    /// Cache schedules to time, beside `full`.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    schedule: Vec<String>,
    #[command(flatten)]
    engine: EngineArgs,
    /// Timed chunks per schedule.
    #[arg(long, value_name = "N", default_value_t = 30)]
    chunks: u32,
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Chunks, and nanoseconds, that pass before timing starts: caches fill, and a GPU that was idle takes a while to reach
/// its clock.
const WARM_UP: (usize, i64) = (3, 500_000_000);

#[derive(Serialize)]
struct Figures {
    policy: String,
    engine: String,
    rows: Vec<Row>,
    stages: Vec<Stage>,
}

#[derive(Serialize)]
struct Row {
    schedule: String,
    sampler: String,
    block_computations: usize,
    p50_ms: f64,
    p99_ms: f64,
    min_ms: f64,
    max_ms: f64,
    floor_ms: f64,
    share_of_floor: f64,
    gflop: f64,
    weights_mb: f64,
    /// Processor time over wall time.
    processor_share: f64,
    /// Dispatches of a chunk; 0 on the CPU.
    dispatches: usize,
    kernels: Vec<Kernel>,
}

/// A kernel's part of one chunk.
#[derive(Serialize)]
struct Kernel {
    kernel: String,
    dispatches: usize,
    micros: f64,
}

/// Times of one engine's chunks.
struct Times {
    histogram: Histogram<u64>,
    processor_share: f64,
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        // Clap asks for it, except beside another benchmark.
        let policy = self.policy.clone().unwrap_or_default();
        let package = load(&policy)?;
        let mut names = vec![FULL.to_owned()];
        names.extend(self.schedule.iter().filter(|n| *n != FULL).cloned());
        let mut rows = Vec::new();
        let progress = Progress::new();
        // One copy of the weights serves all schedules.
        let weights = CpuWeights::new(Arc::clone(&package));
        for (i, name) in names.iter().enumerate() {
            progress.show(format_args!("timing {name} ({} of {})", i + 1, names.len()));
            let sampler = if name == FULL { self.sampler } else { SamplerArgs::default() };
            let selected = Selected::new(&policy, Arc::clone(&package), sampler, name)?;
            rows.push(self.time(&selected, &weights)?);
        }
        progress.show(format_args!("timing what comes before and after"));
        let stages = stages::time(&package, self.chunks)?;
        drop(progress);
        let (engine, rows): (Vec<String>, Vec<Row>) = rows.into_iter().unzip();
        let figures = Figures {
            policy: package.config.name.clone(),
            engine: engine.into_iter().next().unwrap_or_default(),
            rows,
            stages,
        };
        print(&figures);
        if let Some(path) = &self.json {
            std::fs::write(path, serde_json::to_string_pretty(&figures)?)?;
        }
        Ok(())
    }

    /// The engine in words, and its row.
    fn time(
        &self,
        selected: &Selected,
        weights: &Arc<CpuWeights>,
    ) -> Result<(String, Row), Box<dyn std::error::Error>> {
        let plan = selected.plan()?;
        let cost = plan.cost();
        let settings = self.engine.settings();
        let gpu = match settings.choice {
            EngineChoice::Cpu => None,
            EngineChoice::Gpu => Some(settings.gpu(weights, &plan)?),
            EngineChoice::Auto => {
                settings.gpu(weights, &plan).map_err(|e| tracing::warn!("on the CPU: {e}")).ok()
            }
        };
        let weight_bytes = cost.weights * weights.bytes_per_weight();
        let (engine, times, floor, dispatches, kernels) = if let Some(mut gpu) = gpu {
            let engine = format!("{}, waiting: {:?}", gpu.describe(), settings.gpu.wait);
            let times = self.run_chunks(&mut gpu, &plan)?;
            let (dispatches, kernels) = (gpu.dispatches(), gpu.profile()?);
            let floor = self.run_chunks(&mut GpuEngine::emptied(gpu)?, &plan)?;
            (engine, times, floor.histogram.value_at_quantile(0.5) as f64 * 1e-6, dispatches, kernels)
        } else {
            let (isa, threads) = (Isa::detect(), self.engine.threads());
            let mut cpu = EngineSettings::cpu(threads).open(weights, Arc::clone(&plan))?;
            let times = self.run_chunks(cpu.as_mut(), &plan)?;
            let per_step = usize::try_from(weight_bytes)? / cost.steps_with_updates.max(1);
            let floor = Floor::measure(isa, threads, per_step).seconds(cost.flops, weight_bytes) * 1e3;
            (format!("cpu, {isa:?}, {threads} threads"), times, floor, 0, Vec::new())
        };
        let ms = |nanos: u64| nanos as f64 * 1e-6;
        let p50 = ms(times.histogram.value_at_quantile(0.5));
        let named = |k: KernelTime| Kernel { kernel: k.kernel, dispatches: k.dispatches, micros: k.micros };
        let row = Row {
            schedule: selected.name.clone(),
            sampler: selected.config.sampler.label(),
            block_computations: cost.block_computations,
            p50_ms: p50,
            p99_ms: ms(times.histogram.value_at_quantile(0.99)),
            min_ms: ms(times.histogram.min()),
            max_ms: ms(times.histogram.max()),
            floor_ms: floor,
            share_of_floor: floor / p50,
            gflop: cost.flops as f64 / 1e9,
            weights_mb: weight_bytes as f64 / 1e6,
            processor_share: times.processor_share,
            dispatches,
            kernels: kernels.into_iter().map(named).collect(),
        };
        Ok((engine, row))
    }

    fn run_chunks(&self, engine: &mut dyn Engine, plan: &Plan) -> Result<Times, Box<dyn std::error::Error>> {
        let observation = vec![0.1; plan.observation.len()];
        let mut draw = vec![0.0; plan.noise_len()];
        noise::fill(0, 0, 0, &mut draw);
        let mut trajectory = vec![0.0; plan.trajectory.len()];
        let (start, mut done) = (clock::now(), 0);
        while done < WARM_UP.0 || clock::now() - start < WARM_UP.1 {
            engine.infer(&observation, &draw, &mut trajectory)?;
            done += 1;
        }
        let mut histogram = Histogram::<u64>::new(3)?;
        let (start, processor) = (clock::now(), clock::processor_time());
        for _ in 0..self.chunks.max(1) {
            let start = clock::now();
            engine.infer(&observation, &draw, &mut trajectory)?;
            histogram.record(u64::try_from(clock::now() - start)?)?;
        }
        let (wall, processor) = (clock::now() - start, clock::processor_time() - processor);
        Ok(Times { histogram, processor_share: processor as f64 / wall as f64 })
    }
}

fn print(figures: &Figures) {
    say!("{} on {}, batch 1", figures.policy, figures.engine);
    let on_gpu = figures.rows.iter().any(|r| r.dispatches > 0);
    let last = if on_gpu {
        format!("{:>10} {:>11}", "dispatches", "us/dispatch")
    } else {
        format!("{:>10} {:>11}", "GFLOP", "weights MB")
    };
    say!(
        "{:<22} {:<8} {:>6} {:>9} {:>9} {:>9} {:>7} {:>9} {:>7} {:>11} {last}",
        "schedule",
        "sampler",
        "blocks",
        "p50 ms",
        "p99 ms",
        "min ms",
        "x full",
        "floor ms",
        "floor %",
        "processor %"
    );
    for row in &figures.rows {
        let last = if on_gpu {
            format!("{:>10} {:>11.2}", row.dispatches, 1e3 * row.p50_ms / row.dispatches.max(1) as f64)
        } else {
            format!("{:>10.2} {:>11.1}", row.gflop, row.weights_mb)
        };
        say!(
            "{:<22} {:<8} {:>6} {:>9.2} {:>9.2} {:>9.2} {:>7.3} {:>9.2} {:>7.0} {:>11.0} {last}",
            row.schedule,
            row.sampler,
            row.block_computations,
            row.p50_ms,
            row.p99_ms,
            row.min_ms,
            row.p50_ms / figures.rows[0].p50_ms,
            row.floor_ms,
            100.0 * row.share_of_floor,
            100.0 * row.processor_share
        );
    }
    if on_gpu {
        say!("floor: upload, as many dependent dispatches that do nothing, readback");
        kernels(&figures.rows);
    } else {
        say!(
            "floor: the larger of FLOPs over measured multiply-adds and weight bytes over measured read bandwidth, \
             on the same threads"
        );
    }
    stages::print(&figures.stages);
    if let Some(mib) = peak_memory_mib() {
        say!("peak memory of this process: {mib:.0} MiB");
    }
}

/// Time by kernel, from timestamps after every dispatch.
fn kernels(rows: &[Row]) {
    for row in rows.iter().filter(|r| !r.kernels.is_empty()) {
        let total: f64 = row.kernels.iter().map(|k| k.micros).sum();
        say!("{} by kernel (a timestamp after every dispatch; {:.2} ms in all)", row.schedule, total * 1e-3);
        for k in &row.kernels {
            say!(
                "  {:<52} {:>6} dispatches {:>7.2} us each {:>5.1} %",
                k.kernel,
                k.dispatches,
                k.micros / k.dispatches as f64,
                100.0 * k.micros / total
            );
        }
    }
}

/// Largest resident size so far, where the system tells it.
fn peak_memory_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}
