//! `refrain report`: is the fast policy as good as the slow one?
//!
//! Full policy, schedules, and DDIM with as many steps as give the same block computations run on the same start
//! states with the same noise. Episodes are kept in `episodes.json` as they end, so that a stopped run goes on and a longer
//! one adds to a shorter.

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
use crate::search::journal;
use crate::search::samplers::couple;
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

/// Episodes between two writes of what is kept.
const BATCH: usize = 100;

/// Scores per row and seed, kept between runs. A row's key is its name and a digest of all that it runs.
type Kept = BTreeMap<String, BTreeMap<u64, Scored>>;

/// Score, success, chunks, and chunks from observations outside what the schedule was found with.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Scored(f64, bool, u64, u64);

/// Executed actions over all observations, and how long a prediction took.
type Predicted = (Vec<f32>, Latency);

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
        for variant in variants {
            self.score(variant, &mut kept, &kept_at)?;
        }
        let predicted = self.predict(variants, &observations)?;
        let mut rows = Vec::new();
        for (variant, (actions, latency)) in variants.iter().zip(&predicted) {
            let cost = variant.plan()?.cost();
            let differences = || actions.iter().zip(&predicted[0].0).map(|(a, b)| f64::from(a - b));
            let scored = &kept[&key(variant)];
            rows.push(Row {
                name: variant.name.clone(),
                sampler: variant.config.sampler.label(),
                block_computations: cost.block_computations,
                steps_with_updates: cost.steps_with_updates,
                episodes: self.seeds().filter_map(|seed| scored.get(&seed).copied()).collect(),
                error_rms: (differences().map(|d| d * d).sum::<f64>() / actions.len() as f64).sqrt(),
                error_worst: differences().map(f64::abs).fold(0.0, f64::max),
                latency: *latency,
            });
        }
        Ok(rows)
    }

    fn seeds(&self) -> impl Iterator<Item = u64> + use<> {
        self.seed..self.seed.saturating_add(self.episodes as u64)
    }

    /// Runs the episodes that are not kept yet.
    fn score(&self, variant: &Selected, kept: &mut Kept, kept_at: &Path) -> Outcome {
        let key = key(variant);
        loop {
            let known = kept.entry(key.clone()).or_default();
            let Some(seed) = self.seeds().find(|seed| !known.contains_key(seed)) else { return Ok(()) };
            let episodes =
                self.seeds().skip_while(|s| *s < seed).take_while(|s| !known.contains_key(s)).take(BATCH);
            let options = EvalOptions {
                episodes: episodes.count(),
                seed,
                noise_seed: 0,
                workers: self.engine.workers(),
            };
            let report = evaluate::run(variant, &options, &self.engine.worker(), None)?;
            let scored = report.episodes.iter().map(|e| {
                let score = (e.score * 1e6).round() / 1e6;
                (e.seed, Scored(score, e.success, e.chunks as u64, e.outside))
            });
            known.extend(scored);
            std::fs::write(kept_at, serde_json::to_string(kept)?)?;
        }
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

    /// Per variant: executed actions, normalised, for every observation, and how long each took. The variants take turns, so
    /// that whatever else the machine does slows all of them; coarse samplers see the noise of the first variant's.
    fn predict(
        &self,
        variants: &[Selected],
        observations: &[Vec<f32>],
    ) -> Result<Vec<Predicted>, Box<dyn std::error::Error>> {
        let mut running = Vec::new();
        for variant in variants {
            let plan = variant.plan()?;
            let weights = CpuWeights::new(Arc::clone(&variant.package));
            let engine = self.engine.make(&weights, Arc::clone(&plan))?;
            let draw = vec![0.0; plan.noise_len()];
            let trajectory = vec![0.0; plan.trajectory.len()];
            let steps = variant.config.sampler.steps();
            running.push((variant, engine, steps, draw, trajectory, Vec::new(), Histogram::<u64>::new(4)?));
        }
        let fine = variants[0].config.sampler.steps();
        let mut whole = vec![0.0; variants[0].plan()?.noise_len()];
        let warm_up = observations.iter().cycle().take(WARM_UP).map(|o| (None, o));
        let counted = observations.iter().enumerate().map(|(i, o)| (Some(i), o));
        for (counts, observation) in warm_up.chain(counted) {
            noise::fill(0, u64::MAX, counts.unwrap_or(0) as u64, &mut whole);
            for (variant, engine, steps, draw, trajectory, actions, times) in &mut running {
                noise::fill(0, u64::MAX - 1, counts.unwrap_or(0) as u64, draw);
                couple(&fine, steps, trajectory.len(), &whole, draw);
                let start = clock::now();
                engine.infer(observation, draw, trajectory)?;
                let took = clock::now() - start;
                if counts.is_none() {
                    continue;
                }
                times.record(u64::try_from(took)?)?;
                let executed = variant.config.architecture.executed();
                let tokens = trajectory.chunks(variant.config.denoised_size());
                for token in tokens.take(executed.end).skip(executed.start) {
                    actions.extend_from_slice(&token[..variant.config.action.size()]);
                }
            }
        }
        let ms = |nanos: u64| nanos as f64 * 1e-6;
        let finished = running.into_iter().map(|(_, _, _, _, _, actions, times)| {
            let latency = Latency {
                p50: ms(times.value_at_quantile(0.5)),
                p99: ms(times.value_at_quantile(0.99)),
                min: ms(times.min()),
                max: ms(times.max()),
            };
            (actions, latency)
        });
        Ok(finished.collect())
    }

    /// Writes what was measured into the schedule files.
    fn record(&self, rows: &[Row]) -> Outcome {
        for row in rows {
            let Ok(mut file) = ScheduleFile::load(&self.policy, &row.name) else { continue };
            // What its search measured stays.
            file.report.extend(page::table(row, &rows[0], self.seed));
            file.save(&self.policy, &row.name)?;
        }
        Ok(())
    }
}

/// What a row's episodes are kept under.
fn key(variant: &Selected) -> String {
    let digest = journal::key(&variant.config.sampler, &variant.schedule);
    format!("{} {digest} {}", variant.name, &variant.package.weights_sha256()[..8])
}
