//! `refrain bench`: a policy's time on this machine, beside the floor that the machine sets.

use std::path::PathBuf;
use std::sync::Arc;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::progress::Progress;
use super::selection::{EngineArgs, FULL, SamplerArgs, Selected, load};
use super::{Outcome, say};
use crate::engine::cpu::{CpuWeights, Floor, Isa};
use crate::{clock, noise};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Policy package.
    policy: PathBuf,
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

/// Chunks before timing starts.
const WARM_UP: u32 = 3;

#[derive(Serialize)]
struct Figures {
    policy: String,
    engine: String,
    threads: usize,
    rows: Vec<Row>,
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
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let package = load(&self.policy)?;
        let isa = Isa::detect();
        let threads = self.engine.threads();
        let mut names = vec![FULL.to_owned()];
        names.extend(self.schedule.iter().filter(|n| *n != FULL).cloned());
        let mut rows = Vec::new();
        let progress = Progress::new();
        // One copy of the weights serves all schedules.
        let weights = CpuWeights::new(Arc::clone(&package));
        for (i, name) in names.iter().enumerate() {
            progress.show(format_args!("timing {name} ({} of {})", i + 1, names.len()));
            let sampler = if name == FULL { self.sampler } else { SamplerArgs::default() };
            let selected = Selected::new(&self.policy, Arc::clone(&package), sampler, name)?;
            rows.push(self.time(&selected, &weights, isa, threads)?);
        }
        drop(progress);
        let figures =
            Figures { policy: package.config.name.clone(), engine: format!("cpu, {isa:?}"), threads, rows };
        print(&figures);
        if let Some(path) = &self.json {
            std::fs::write(path, serde_json::to_string_pretty(&figures)?)?;
        }
        Ok(())
    }

    fn time(
        &self,
        selected: &Selected,
        weights: &Arc<CpuWeights>,
        isa: Isa,
        threads: usize,
    ) -> Result<Row, Box<dyn std::error::Error>> {
        let plan = selected.plan()?;
        let cost = plan.cost();
        let mut engine = self.engine.make(weights, Arc::clone(&plan))?;
        let observation = vec![0.1; plan.observation.len()];
        let mut draw = vec![0.0; plan.noise_len()];
        noise::fill(0, 0, 0, &mut draw);
        let mut trajectory = vec![0.0; plan.trajectory.len()];
        let mut times = Histogram::<u64>::new(3)?;
        for chunk in 0..WARM_UP + self.chunks.max(1) {
            let start = clock::now();
            engine.infer(&observation, &draw, &mut trajectory)?;
            if chunk >= WARM_UP {
                times.record(u64::try_from(clock::now() - start)?)?;
            }
        }
        let weight_bytes = cost.weights * weights.bytes_per_weight();
        let per_step = usize::try_from(weight_bytes)? / cost.steps_with_updates.max(1);
        let floor = Floor::measure(isa, threads, per_step).seconds(cost.flops, weight_bytes) * 1e3;
        let ms = |nanos: u64| nanos as f64 * 1e-6;
        let p50 = ms(times.value_at_quantile(0.5));
        Ok(Row {
            schedule: selected.name.clone(),
            sampler: selected.config.sampler.label(),
            block_computations: cost.block_computations,
            p50_ms: p50,
            p99_ms: ms(times.value_at_quantile(0.99)),
            min_ms: ms(times.min()),
            max_ms: ms(times.max()),
            floor_ms: floor,
            share_of_floor: floor / p50,
            gflop: cost.flops as f64 / 1e9,
            weights_mb: weight_bytes as f64 / 1e6,
        })
    }
}

fn print(figures: &Figures) {
    say!("{} on {}, {} threads, batch 1", figures.policy, figures.engine, figures.threads);
    say!(
        "{:<22} {:<8} {:>6} {:>9} {:>9} {:>9} {:>7} {:>9} {:>7} {:>8} {:>9}",
        "schedule",
        "sampler",
        "blocks",
        "p50 ms",
        "p99 ms",
        "min ms",
        "x full",
        "floor ms",
        "floor %",
        "GFLOP",
        "weights MB"
    );
    for row in &figures.rows {
        say!(
            "{:<22} {:<8} {:>6} {:>9.2} {:>9.2} {:>9.2} {:>7.3} {:>9.2} {:>7.0} {:>8.2} {:>9.1}",
            row.schedule,
            row.sampler,
            row.block_computations,
            row.p50_ms,
            row.p99_ms,
            row.min_ms,
            row.p50_ms / figures.rows[0].p50_ms,
            row.floor_ms,
            100.0 * row.share_of_floor,
            row.gflop,
            row.weights_mb
        );
    }
    say!(
        "floor: the larger of FLOPs over measured multiply-adds and weight bytes over measured read bandwidth, \
         on the same threads"
    );
    if let Some(mib) = peak_memory_mib() {
        say!("peak memory of this process: {mib:.0} MiB");
    }
}

/// Largest resident size so far, where the system tells it.
fn peak_memory_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}
