//! `refrain search`: the best schedule that fits a deadline or a budget.

use std::collections::HashSet;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use refrain_policies::config::PolicyConfig;
use refrain_policies::package::Package;
use refrain_policies::plan::Plan;
use refrain_policies::sampler::SamplerConfig;
use refrain_policies::schedule::{self, Schedule};
use refrain_policies::schedule_file::{Method, ScheduleFile};

#[cfg(feature = "pusht")]
use super::evaluate;
use super::progress::Progress;
use super::recorded::Recorded;
#[cfg(feature = "pusht")]
use super::selection::Selected;
use super::selection::{EngineArgs, load};
use super::{Outcome, say};
use crate::clock;
use crate::engine::cpu::CpuWeights;
#[cfg(feature = "pusht")]
use crate::eval::EvalOptions;
use crate::noise;
use crate::search::candidate::Candidate;
use crate::search::cost::{self, Counts, KINDS, Prices};
use crate::search::journal::Journal;
use crate::search::samplers;
use crate::search::study::{Part, Study};
use crate::search::{Found, Search};

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("limit").required(true))]
pub(super) struct Args {
    /// Policy package; the schedule goes into its `schedules` folder.
    policy: PathBuf,
    /// Longest time of one inference on this machine, such as 5ms.
    #[arg(long, value_name = "TIME", group = "limit")]
    deadline: Option<Milliseconds>,
    /// Most block computations of one inference.
    #[arg(long, value_name = "N", group = "limit")]
    budget: Option<usize>,
    /// Recorded observations: a recording of `refrain run` (.mcap), or a .safetensors or .npz file with `obs_raw` [B,To,O];
    /// otherwise the package's own.
    #[arg(long, value_name = "FILE")]
    observations: Option<PathBuf>,
    /// Observations to search on, evenly taken from the first half of the file; otherwise 150, or what there is.
    #[arg(long, value_name = "B")]
    searched: Option<usize>,
    /// Observations that choose among what the search found, evenly taken from what lies before the last third of the file;
    /// otherwise 75, or what there is. 0: nothing chooses, and there is more to search on.
    #[arg(long, value_name = "B")]
    validation: Option<usize>,
    /// Observations held out for the report, evenly taken from the last third of the file; otherwise 75, or what there is.
    #[arg(long, value_name = "B")]
    held_out: Option<usize>,
    /// Schedules to measure at most.
    #[arg(long, value_name = "N", default_value_t = 600)]
    evaluations: usize,
    /// Episodes of Push-T that the best schedule of each family of samplers is scored on; 0 ranks them by action error.
    #[cfg(feature = "pusht")]
    #[arg(long, value_name = "N", default_value_t = 0)]
    episodes: usize,
    /// Only samplers of the policy's own kind.
    #[arg(long)]
    own_sampler: bool,
    /// Seed of the noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    engine: EngineArgs,
    /// Name of the schedule; otherwise made from the limit. With the sampler's name behind it for all but the best.
    #[arg(long)]
    name: Option<String>,
    /// What was measured is kept here, so that a stopped search goes on; otherwise beside the schedules.
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
}

/// A time such as `5ms`, `0.5s`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Milliseconds(f64);

impl FromStr for Milliseconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected a time such as 5ms or 0.1s, got {text:?}");
        let (number, factor) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
            (Some(number), _) => (number, 1.0),
            (None, Some(number)) => (number, 1e3),
            _ => return Err(wrong()),
        };
        let value = number.trim().parse::<f64>().map_err(|_| wrong())? * factor;
        if value > 0.0 && value.is_finite() { Ok(Self(value)) } else { Err(wrong()) }
    }
}

/// Rounds in which probe plans are timed; the fastest counts.
const ROUNDS: usize = 9;
/// Medians this much over the fastest round mean that the machine does something else.
const NOISY: f64 = 0.25;

/// Seed of the first start state that finalists are scored on; no report scores there.
#[cfg(feature = "pusht")]
const SCORED: u64 = 1 << 33;

/// Weight of success beside score: over the same episodes its standard error is about four times as large.
#[cfg(feature = "pusht")]
const SUCCESS: f64 = 0.25;

/// The best of a family of samplers.
struct Finalist {
    /// Smaller is better.
    rank: f64,
    found: Found,
    schedule: Schedule,
    /// Score and success in simulation.
    played: Option<(f64, f64)>,
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let package = load(&self.policy)?;
        let config = package.config.clone();
        let recorded = Recorded::read(&self.policy, self.observations.as_deref(), &config)?;
        let parts = recorded.parts([self.searched, self.validation, self.held_out])?;
        let sizes = parts.each_ref().map(Vec::len);
        let study = Study::new(Arc::clone(&package), parts, self.seed, self.engine.threads());
        let progress = Progress::new();
        let prices = self.prices(&package, &config, &progress)?;
        say!(
            "prices on this machine, {} plans timed; the fit is off by {:.0} % on average, {:.0} % at worst:",
            prices.plans,
            100.0 * prices.mean,
            100.0 * prices.worst
        );
        for (kind, price) in KINDS.iter().zip(prices.milliseconds) {
            say!("  {kind:<18} {:>9.2} us", 1e3 * price);
        }
        let cost =
            |sampler: &SamplerConfig, schedule: &Schedule| -> Result<f64, Box<dyn std::error::Error>> {
                Ok(prices.of(&Counts::of(&Plan::compile(&study.config(sampler), schedule)?)))
            };
        let allowed = |c: &Candidate, schedule: &Schedule| match (self.budget, self.deadline) {
            (Some(budget), _) => Ok(c.computations() <= budget),
            (None, Some(deadline)) => Ok(cost(&c.sampler, schedule)? <= deadline.0),
            (None, None) => Ok(true),
        };
        let blocks = schedule::blocks(&config.architecture).len();
        let most = self.budget.map_or(config.sampler.train_steps, |budget| budget / blocks);
        let families = samplers::families(&config.sampler, most, self.own_sampler);
        let name = self.name.clone().unwrap_or_else(|| match (self.budget, self.deadline) {
            (Some(budget), _) => format!("search{budget}"),
            (None, deadline) => {
                format!("search_{}us", deadline.map_or(0.0, |d| d.0 * 1e3).round())
            }
        });
        let path = self.journal.clone().unwrap_or_else(|| self.policy.join("schedules").join("search.jsonl"));
        let about = format!(
            "search 3: weights {}, observations {} {sizes:?}, seed {}",
            package.weights_sha256(),
            recorded.sha256,
            self.seed
        );
        let mut journal = Journal::open(&path, &about).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut best: Vec<Finalist> = Vec::new();
        let (mut left, mut families_left) = (self.evaluations, families.len());
        for family in families {
            // What one does not use is there for those that follow.
            let share = left / families_left;
            families_left -= 1;
            let mut search = Search {
                study: &study,
                journal: &mut journal,
                observed: None,
                allowed: &allowed,
                evaluations: share,
                seen: HashSet::new(),
                progress: &|line| progress.show(line),
            };
            let Some(start) = search.start(&family, most)? else { continue };
            let stages = search.refine(start, family.retimed)?;
            left -= share - search.evaluations;
            let Some((found, schedule, _)) = search.choose(stages)? else { continue };
            let part = if sizes[1] > 0 { Part::Validation } else { Part::Searched };
            let error = study.policy_error(&found.candidate.sampler, &schedule, part)?;
            best.push(Finalist { rank: error.mean, found, schedule, played: None });
        }
        drop(progress);
        #[cfg(feature = "pusht")]
        self.score(&package, &study, &mut best)?;
        best.sort_by(|a, b| a.rank.total_cmp(&b.rank));
        if best.is_empty() {
            return Err(
                "nothing fits: even one update of all blocks costs more; allow more time or computations"
                    .into(),
            );
        }
        let mut names = HashSet::new();
        for (i, finalist) in best.iter().enumerate() {
            let Finalist { found, schedule, .. } = finalist;
            let sampler = &found.candidate.sampler;
            let mut name = if i == 0 { name.clone() } else { format!("{name}_{}", sampler.label()) };
            while !names.insert(name.clone()) {
                name.push('b');
            }
            let mut file = ScheduleFile::new(
                &study.config(sampler),
                &package.weights_sha256(),
                schedule,
                self.method(found)?,
            );
            file.calibration = Some(recorded.data(sizes[0] + sizes[1], self.seed));
            let ms = cost(sampler, schedule)?;
            self.report(&study, finalist, ms, &mut file)?;
            let path = file.save(&self.policy, &name)?;
            say!(
                "{}: {} block computations, {ms:.2} ms by the prices; action error against the full policy {:.4}, \
                 against full {} {:.4} (held-out observations)",
                path.display(),
                schedule.updates(),
                study.policy_error(sampler, schedule, Part::HeldOut)?.mean,
                sampler.label(),
                study.own_error(sampler, schedule, Part::HeldOut)?.mean
            );
        }
        say!(
            "two samplers differ in every action: let a score decide, refrain report {}",
            self.policy.display()
        );
        Ok(())
    }

    /// Plays episodes with all that was found and ranks it by score and success instead of error.
    #[cfg(feature = "pusht")]
    fn score(&self, package: &Arc<Package>, study: &Study, best: &mut [Finalist]) -> Outcome {
        if self.episodes == 0 {
            return Ok(());
        }
        for finalist in best {
            let sampler = &finalist.found.candidate.sampler;
            let selected = Selected {
                package: Arc::clone(package),
                config: study.config(sampler),
                schedule: finalist.schedule.clone(),
                name: sampler.label(),
                joining: false,
                coverage: None,
            };
            let options = EvalOptions {
                episodes: self.episodes,
                seed: SCORED,
                noise_seed: self.seed,
                workers: self.engine.workers(),
            };
            let report = evaluate::run(&selected, &options, &self.engine.worker(), None)?;
            let ((score, spread), (success, doubt)) = (report.score, report.success);
            say!("{}: score {score:.3} +- {spread:.3}, success {success:.3} +- {doubt:.3}", sampler.label());
            finalist.rank = -(score + SUCCESS * success);
            finalist.played = Some((score, success));
        }
        Ok(())
    }

    fn method(&self, found: &Found) -> Result<Method, Box<dyn std::error::Error>> {
        let forecasts: Vec<toml::Value> = found
            .candidate
            .updates
            .iter()
            .map(|u| {
                let corrected = if u.corrected { " corrected" } else { "" };
                format!("{} {}{corrected}", u.step, u.forecast.name()).into()
            })
            .collect();
        let mut method = Method::named("search").with("forecasts", forecasts);
        if let Some(budget) = self.budget {
            method = method.with("budget", i64::try_from(budget)?);
        }
        if let Some(deadline) = self.deadline {
            method = method.with("deadline_ms", deadline.0);
        }
        Ok(method.with("evaluations", i64::try_from(self.evaluations)?))
    }

    fn report(&self, study: &Study, finalist: &Finalist, ms: f64, file: &mut ScheduleFile) -> Outcome {
        let Finalist { found, schedule, .. } = finalist;
        let rounded = |value: f64| (value * 1e5).round() / 1e5;
        let sampler = &found.candidate.sampler;
        let mut put = |key: &str, value: f64| file.report.insert(key.into(), rounded(value).into());
        for (part, label) in [(Part::Searched, "searched"), (Part::HeldOut, "held_out")] {
            let (own, policy) =
                (study.own_error(sampler, schedule, part)?, study.policy_error(sampler, schedule, part)?);
            put(&format!("{label}_error_own_sampler"), own.mean);
            put(&format!("{label}_error_own_sampler_worst"), own.worst);
            put(&format!("{label}_error_policy"), policy.mean);
            put(&format!("{label}_error_policy_rms"), policy.rms);
        }
        put("predicted_ms", ms);
        if let Some((score, success)) = finalist.played {
            put("search_score", score);
            put("search_success", success);
        }
        Ok(())
    }

    /// Times the probe plans on the chosen engine, in turns, and fits prices to their fastest rounds: what else the
    /// machine does makes a round slower, never faster.
    fn prices(
        &self,
        package: &Arc<Package>,
        config: &PolicyConfig,
        progress: &Progress,
    ) -> Result<Prices, Box<dyn std::error::Error>> {
        let weights = CpuWeights::new(Arc::clone(package));
        let mut engines = Vec::new();
        for (config, schedule) in cost::probes(config)? {
            let plan = Arc::new(Plan::compile(&config, &schedule)?);
            engines.push((
                Counts::of(&plan),
                self.engine.make(&weights, Arc::clone(&plan))?,
                plan,
                Vec::new(),
            ));
        }
        for round in 0..ROUNDS {
            progress.show(format_args!("timing plans, round {} of {ROUNDS}", round + 1));
            for (_, engine, plan, times) in &mut engines {
                let mut draw = vec![0.0; plan.noise_len()];
                let mut trajectory = vec![0.0; plan.trajectory.len()];
                noise::fill(self.seed, 0, round as u64, &mut draw);
                let observation = vec![0.0; plan.observation.len()];
                let start = clock::now();
                engine.infer(&observation, &draw, &mut trajectory)?;
                times.push((clock::now() - start) as f64 * 1e-6);
            }
        }
        let mut noise = 0.0f64;
        let timed: Vec<(Counts, f64)> = engines
            .into_iter()
            .map(|(counts, _, _, mut times)| {
                times.sort_by(f64::total_cmp);
                noise = noise.max(times[times.len() / 2] / times[0] - 1.0);
                (counts, times[0])
            })
            .collect();
        let prices = Prices::fit(&timed)
            .ok_or("the timed plans give no finite prices; time again on a quiet machine")?;
        if noise > NOISY {
            say!(
                "the machine is busy: medians lie up to {:.0} % over the fastest round; prices may be off",
                100.0 * noise
            );
        }
        Ok(prices)
    }
}
