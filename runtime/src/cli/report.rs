//! `refrain report`: is the fast policy as good as the slow one?
//!
//! Full policy, schedules, and DDIM with as many steps as give the same block computations run on the same start
//! states with the same noise. Finished rows are kept in `episodes.json`, so that a stopped run goes on.

mod page;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use hdrhistogram::Histogram;
use refrain_policies::schedule;
use refrain_policies::schedule_file::ScheduleFile;
use serde::{Deserialize, Serialize};

use super::evaluate::{self, Observed};
use super::selection::{EngineArgs, FULL, Kind, SamplerArgs, Selected, load};
use super::{Outcome, say};
use crate::engine::cpu::CpuWeights;
use crate::eval::EvalOptions;
use crate::{clock, noise};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Policy package.
    policy: PathBuf,
    /// Schedules to compare; otherwise all of the package.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    schedule: Vec<String>,
    /// Episodes per row.
    #[arg(long, default_value_t = 200)]
    episodes: usize,
    /// Seed of the first start state.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Observations on which actions and latency are compared.
    #[arg(long, default_value_t = 64)]
    observations: usize,
    #[command(flatten)]
    engine: EngineArgs,
    /// Folder of the page; otherwise `report` in the package.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Episodes with which observations are recorded.
const RECORDED_EPISODES: usize = 8;
/// Predictions before latency counts.
const WARM_UP: usize = 3;

/// Scores per row and setting, kept between runs.
type Kept = BTreeMap<String, Vec<Scored>>;

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Scored {
    score: f64,
    success: bool,
}

/// One line of the page.
struct Row {
    name: String,
    sampler: String,
    block_computations: usize,
    steps_with_updates: usize,
    episodes: Vec<Scored>,
    /// Against the full policy on the same observations and noise, executed actions, normalised units.
    error_rms: f64,
    error_worst: f64,
    /// Milliseconds over different observations.
    latency: Latency,
}

#[derive(Clone, Copy)]
struct Latency {
    p50: f64,
    p99: f64,
    min: f64,
    max: f64,
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let package = load(&self.policy)?;
        let names =
            if self.schedule.is_empty() { ScheduleFile::names(&self.policy)? } else { self.schedule.clone() };
        if names.is_empty() {
            return Err(format!(
                "{} has no schedules; make one with refrain calibrate",
                self.policy.display()
            )
            .into());
        }
        let select = |sampler, name: &str| Selected::new(&self.policy, Arc::clone(&package), sampler, name);
        let mut variants = vec![select(SamplerArgs::default(), FULL)?];
        for name in names.iter().filter(|n| *n != FULL) {
            variants.push(select(SamplerArgs::default(), name)?);
        }
        let blocks = schedule::blocks(&package.config.architecture).len();
        let mut rivals: Vec<usize> = variants[1..]
            .iter()
            .map(|v| (v.schedule.updates() + blocks / 2) / blocks)
            .filter(|&steps| steps > 0 && steps <= package.config.sampler.train_steps)
            .collect();
        rivals.sort_unstable();
        rivals.dedup();
        for steps in rivals {
            let sampler = SamplerArgs { sampler: Some(Kind::Ddim), steps: Some(steps) };
            let mut rival = select(sampler, FULL)?;
            rival.name = format!("DDIM-{steps} full");
            variants.push(rival);
        }
        let out = self.out.clone().unwrap_or_else(|| self.policy.join("report"));
        std::fs::create_dir_all(&out).map_err(|e| format!("{}: {e}", out.display()))?;
        let rows = self.measure(&variants, &out)?;
        let threads = self.engine.threads();
        page::write(&out, &package.config.name, self.episodes, self.seed, threads, &rows)?;
        self.record(&rows)?;
        for row in &rows {
            let (score, success) = (page::score(row), page::success(row));
            say!(
                "{:<22} {:>5} blocks  score {:.3} +- {:.3}  success {:.3}  p50 {:.2} ms",
                row.name,
                row.block_computations,
                score.0,
                score.1,
                success.0,
                row.latency.p50
            );
        }
        say!("page: {}", out.join("README.md").display());
        Ok(())
    }

    fn measure(&self, variants: &[Selected], out: &Path) -> Result<Vec<Row>, Box<dyn std::error::Error>> {
        let kept_at = out.join("episodes.json");
        let mut kept: Kept = match std::fs::read(&kept_at) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| format!("{}: {e}; delete it", kept_at.display()))?,
            Err(_) => Kept::new(),
        };
        let cheapest =
            variants.iter().min_by_key(|v| v.schedule.updates()).ok_or("there is nothing to compare")?;
        let observations = self.observe(cheapest)?;
        let reference = self.predict(&variants[0], &observations)?;
        let mut rows = Vec::new();
        for variant in variants {
            let plan = variant.plan()?;
            let key = format!(
                "{} {:?} {:?} {} episodes from seed {}, weights {}",
                variant.name,
                variant.config.sampler,
                variant.schedule.rows().iter().map(|(_, cells)| page::marks(cells)).collect::<String>(),
                self.episodes,
                self.seed,
                variant.package.weights_sha256()
            );
            let key = page::digest(&key);
            let (actions, latency) = self.predict(variant, &observations)?;
            if !kept.contains_key(&key) {
                let options = EvalOptions {
                    episodes: self.episodes,
                    seed: self.seed,
                    noise_seed: 0,
                    workers: self.engine.workers(),
                };
                let report = evaluate::run(variant, &options, &self.engine.worker(), None)?;
                let scored = report.episodes.iter().map(|e| Scored { score: e.score, success: e.success });
                kept.insert(key.clone(), scored.collect());
                std::fs::write(&kept_at, serde_json::to_string(&kept)?)?;
            }
            let differences = || actions.iter().zip(&reference.0).map(|(a, b)| f64::from(a - b));
            rows.push(Row {
                name: variant.name.clone(),
                sampler: variant.config.sampler.label(),
                block_computations: plan.cost().block_computations,
                steps_with_updates: plan.cost().steps_with_updates,
                episodes: kept[&key].clone(),
                error_rms: (differences().map(|d| d * d).sum::<f64>() / actions.len() as f64).sqrt(),
                error_worst: differences().map(f64::abs).fold(0.0, f64::max),
                latency,
            });
        }
        Ok(rows)
    }

    /// Normalised observations `[.., To, O]` of a few episodes, evenly taken.
    fn observe(&self, variant: &Selected) -> Result<Vec<Vec<f32>>, Box<dyn std::error::Error>> {
        let seen = Observed::default();
        // Start states of their own, so that what is compared was not what is scored.
        let seed = self.seed.wrapping_add(1 << 32);
        let options = EvalOptions { episodes: RECORDED_EPISODES, seed, noise_seed: 0, workers: 1 };
        evaluate::run(variant, &options, &self.engine.worker(), Some(Arc::clone(&seen)))?;
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let size = variant.config.architecture.n_obs_steps * variant.config.condition_size();
        let found = seen.len() / size;
        let used = self.observations.clamp(1, found);
        Ok((0..used).map(|i| seen[(i * found / used) * size..][..size].to_vec()).collect())
    }

    /// Executed actions, normalised, for every observation, and how long each took.
    fn predict(
        &self,
        variant: &Selected,
        observations: &[Vec<f32>],
    ) -> Result<(Vec<f32>, Latency), Box<dyn std::error::Error>> {
        let plan = variant.plan()?;
        let weights = CpuWeights::new(Arc::clone(&variant.package));
        let mut engine = self.engine.make(&weights, Arc::clone(&plan))?;
        let (a, moved) = (&variant.config.architecture, variant.config.action.size());
        let mut draw = vec![0.0; plan.noise_len()];
        let mut trajectory = vec![0.0; plan.trajectory.len()];
        let mut actions = Vec::new();
        let mut times = Histogram::<u64>::new(4)?;
        noise::fill(0, 0, 0, &mut draw);
        for observation in observations.iter().cycle().take(WARM_UP) {
            engine.infer(observation, &draw, &mut trajectory)?;
        }
        for (i, observation) in observations.iter().enumerate() {
            noise::fill(0, u64::MAX, i as u64, &mut draw);
            let start = clock::now();
            engine.infer(observation, &draw, &mut trajectory)?;
            times.record(u64::try_from(clock::now() - start)?)?;
            for token in trajectory
                .chunks(variant.config.denoised_size())
                .take(a.executed().end)
                .skip(a.executed().start)
            {
                actions.extend_from_slice(&token[..moved]);
            }
        }
        let ms = |nanos: u64| nanos as f64 * 1e-6;
        let latency = Latency {
            p50: ms(times.value_at_quantile(0.5)),
            p99: ms(times.value_at_quantile(0.99)),
            min: ms(times.min()),
            max: ms(times.max()),
        };
        Ok((actions, latency))
    }

    /// Writes what was measured into the schedule files.
    fn record(&self, rows: &[Row]) -> Outcome {
        for row in rows {
            let Ok(mut file) = ScheduleFile::load(&self.policy, &row.name) else { continue };
            file.report = page::table(row, &rows[0], self.seed);
            file.save(&self.policy, &row.name)?;
        }
        Ok(())
    }
}
