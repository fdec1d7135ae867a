//! Search: the schedule with the smallest action error that costs no more than is allowed.
//!
//! For each family of samplers ([`samplers::families`]: every step computed, the policy's own steps, other steps of which some are
//! quiet, the other kind), on its own:
//! 1. samplers with many steps or few, spread in several ways, each with the best of the late-dense family
//!    ([`samplers`]); the best of them leaves out whole steps and moves timesteps where that helps;
//! 2. update steps move, one at a time, by eight steps down to one;
//! 3. forecasts follow as much of their slope as serves (`tune`), each update chooses how its outputs are forecast, and
//!    whether a constant corrects them;
//! 4. the computations that matter least, block by block, are traded for one more update step, if there are evaluations left.
//!
//! The second and third repeat until nothing gets better or the evaluations are used up. Every move is judged by the action
//! error on the searched part of the observations; one that is worse on the first third of them is measured no further.
//! What is fitted best to these observations is not the best for others, so every stage that brought something is kept, and
//! observations that took no part choose among them ([`Search::choose`]). Deterministic: the same policy, observations, seed
//! and budget give the same schedule; what was measured is kept in a journal, so that a stopped search goes on where it was.

pub mod candidate;
pub mod cost;
pub mod journal;
pub mod samplers;
pub mod study;
mod tune;

use std::collections::HashSet;
use std::fmt::Arguments;

use refrain_policies::config::Architecture;
use refrain_policies::forecast::Forecast;
use refrain_policies::sampler::SamplerConfig;
use refrain_policies::schedule::{Cell, Schedule, blocks};

use candidate::{Candidate, Observed, Update};
use journal::Journal;
use samplers::Family;
use study::{Errors, Part, Study};

type Failure = Box<dyn std::error::Error>;
/// One way to make a candidate better.
type Stage<'a> = fn(&mut Search<'a>, Found) -> Result<Found, Failure>;

/// Powers of the late-dense family that are tried first; the first three with every sampler.
const POWERS: [f64; 5] = [1.5, 2.0, 3.0, 2.5, 4.0];
/// Distances that update steps move by.
const MOVES: [usize; 4] = [8, 4, 2, 1];
/// Forecasts that an update may choose.
const FORECASTS: [Forecast; 6] = [
    Forecast::Reuse,
    Forecast::AdamsBashforth,
    Forecast::Taylor { order: 1 },
    Forecast::Taylor { order: 2 },
    Forecast::Fitted { outputs: 1, ridge: 1e-3 },
    Forecast::Fitted { outputs: 2, ridge: 1e-3 },
];
/// Observations whose full runs fit forecasts and corrections.
const STATISTICS: usize = 48;
/// One in so many of the searched observations decides whether a candidate is measured on the others.
const SCREENED: usize = 3;
/// Fewer than this decide nothing.
const SCREEN: usize = 8;
/// A move must be better by this share, so that noise in the last digits starts no long walk.
const GAIN: f64 = 0.998;

/// Distances that timesteps move by.
const TIMES: [usize; 3] = [4, 2, 1];

/// A search among samplers of one family.
pub struct Search<'a> {
    /// What candidates are judged by.
    pub study: &'a Study,
    /// What was measured before.
    pub journal: &'a mut Journal,
    /// For fitted forecasts and corrections; without it they are not tried.
    pub observed: Option<Observed>,
    /// Whether a candidate may cost what it costs.
    pub allowed: &'a dyn Fn(&Candidate, &Schedule) -> Result<bool, Failure>,
    /// Evaluations left.
    pub evaluations: usize,
    /// Candidates that took one of them, by their keys in the journal.
    pub seen: HashSet<String>,
    /// Told now and then.
    pub progress: &'a dyn Fn(Arguments<'_>),
}

/// A candidate with its error.
#[derive(Clone, Debug)]
pub struct Found {
    /// The candidate.
    pub candidate: Candidate,
    /// Mean action error on the searched observations.
    pub error: f64,
    /// One by one.
    pub errors: Errors,
}

impl Search<'_> {
    /// The best of a family with a simple table of at most `updates` updates of all blocks.
    pub fn start(&mut self, family: &Family, updates: usize) -> Result<Option<Found>, Failure> {
        let mut best: Option<Found> = None;
        for sampler in &family.samplers {
            let Some(found) = self.first(sampler, updates, family.quiet, best.as_ref())? else { continue };
            (self.progress)(format_args!(
                "{} from timestep {}: action error {:.4}",
                sampler.label(),
                sampler.inference_timesteps()[0],
                found.error
            ));
            best = Some(found);
        }
        Ok(best)
    }

    /// Better and better schedules from where [`Search::start`] got to, one per stage; `retime` lets timesteps change.
    pub fn refine(&mut self, start: Found, retime: bool) -> Result<Vec<Found>, Failure> {
        let mut stages = vec![start.clone()];
        let mut best = start;
        if retime {
            best = self.retime(best)?;
            stages.push(best.clone());
        }
        // Nothing is reused where there is one step.
        if best.candidate.sampler.inference_steps > 1 {
            self.observed = Some(self.study.observed(&best.candidate.sampler, STATISTICS)?);
        }
        let steps: [Stage<'_>; 5] =
            [Self::grow, Self::move_updates, Self::tune, Self::choose_forecasts, Self::correct];
        loop {
            let before = best.error;
            for step in steps {
                best = step(self, best)?;
                stages.push(best.clone());
            }
            if best.error >= before * GAIN || self.evaluations == 0 {
                break;
            }
        }
        // One more update step needs a quiet one, and every computation is looked at.
        let quiet = best.candidate.updates.len() < best.candidate.sampler.inference_steps;
        if quiet && self.evaluations >= best.candidate.computations() {
            stages.push(self.trade(best)?);
        }
        stages.dedup_by(|later, earlier| later.candidate == earlier.candidate);
        Ok(stages)
    }

    /// The stage with the smallest error on the observations that choose, with its schedule and that error; the last stage
    /// where there are none.
    pub fn choose(&self, stages: Vec<Found>) -> Result<Option<(Found, Schedule, f64)>, Failure> {
        let mut best: Option<(Found, Schedule, f64)> = None;
        for found in stages {
            let schedule = found.candidate.schedule(&self.architecture(), self.observed.as_ref())?;
            let sampler = &found.candidate.sampler;
            let part = Part::Validation;
            let error = if self.study.range(part).is_empty() {
                found.error
            } else {
                self.study.own_error(sampler, &schedule, part)?.mean
            };
            (self.progress)(format_args!(
                "{}: action error {:.4}, {error:.4} on the observations that choose",
                sampler.label(),
                found.error
            ));
            if best.as_ref().is_none_or(|(_, _, least)| error < *least) {
                best = Some((found, schedule, error));
            }
        }
        Ok(best)
    }

    fn architecture(&self) -> Architecture {
        self.study.package().config.architecture.clone()
    }

    /// A candidate that was measured; none when it costs too much, when the evaluations are used up, or when the first
    /// observations show it to be worse than `than`.
    fn judge(&mut self, candidate: &Candidate, than: Option<&Found>) -> Result<Option<Found>, Failure> {
        let screened = self.screened();
        if let Some(than) = than.filter(|_| screened >= SCREEN) {
            let Some(first) = self.measure(candidate, screened)? else { return Ok(None) };
            if worse(&first.chunks[..screened], &than.errors.chunks) {
                return Ok(None);
            }
        }
        let all = self.study.range(Part::Searched).len();
        let Some(errors) = self.measure(candidate, all)? else { return Ok(None) };
        Ok(Some(Found { candidate: candidate.clone(), error: errors.summary().mean, errors }))
    }

    fn screened(&self) -> usize {
        self.study.range(Part::Searched).len().div_ceil(SCREENED)
    }

    /// Errors on at least the first `count` searched observations; none when it costs too much or the evaluations are used
    /// up.
    fn measure(&mut self, candidate: &Candidate, count: usize) -> Result<Option<Errors>, Failure> {
        let schedule = candidate.schedule(&self.architecture(), self.observed.as_ref())?;
        let key = journal::key(&candidate.sampler, &schedule);
        let new = !self.seen.contains(&key);
        if new && (self.evaluations == 0 || !(self.allowed)(candidate, &schedule)?) {
            return Ok(None);
        }
        // What the journal knows counts as well, so that a search that goes on ends where it would have ended.
        self.evaluations -= usize::from(new);
        self.seen.insert(key.clone());
        let mut errors = self.journal.get(&key).cloned().unwrap_or_default();
        if errors.chunks.len() < count {
            let further = errors.chunks.len()..count;
            errors.extend(&self.study.own_errors(&candidate.sampler, &schedule, further)?);
            self.journal.put(&key, &candidate.sampler.label(), &schedule, errors.clone())?;
        }
        Ok(Some(errors))
    }

    fn better(&mut self, best: &mut Found, candidate: Candidate) -> Result<bool, Failure> {
        let Some(found) = self.judge(&candidate, Some(best))? else { return Ok(false) };
        if found.error < best.error * GAIN {
            *best = found;
            (self.progress)(format_args!(
                "{}: {} block computations, action error {:.4}, {} evaluations left",
                best.candidate.sampler.label(),
                best.candidate.computations(),
                best.error,
                self.evaluations
            ));
            return Ok(true);
        }
        Ok(false)
    }

    /// The best of the late-dense family that is allowed, or every block at every step; none if that is no better than `than`.
    fn first(
        &mut self,
        sampler: &SamplerConfig,
        updates: usize,
        quiet: Option<bool>,
        than: Option<&Found>,
    ) -> Result<Option<Found>, Failure> {
        let a = self.architecture();
        let steps = sampler.inference_steps;
        let table = |count: usize, power: f64| -> Result<Candidate, Failure> {
            let late = Schedule::late_dense(&a, steps, count, power)?;
            let cells = &late.rows()[0].1;
            let at: Vec<usize> = (0..steps).filter(|&k| count == steps || cells[k] == Cell::Update).collect();
            Ok(Candidate::aligned(&a, sampler, &at, Forecast::Reuse))
        };
        // The most updates that are allowed; what more cost grows with their number.
        let (mut fits, mut too_many) = (0, updates.min(steps) + 1);
        while fits + 1 < too_many {
            let middle = fits.midpoint(too_many);
            let candidate = table(middle, POWERS[1])?;
            let fit = (self.allowed)(&candidate, &candidate.schedule(&a, None)?)?;
            *(if fit { &mut fits } else { &mut too_many }) = middle;
        }
        if quiet.is_some_and(|quiet| quiet == (fits == steps)) {
            return Ok(None);
        }
        let mut best: Option<Found> = None;
        let own = *sampler == self.study.package().config.sampler;
        let powers = match fits {
            n if n == steps => &POWERS[..1],
            _ if own => &POWERS[..],
            _ => &POWERS[..3],
        };
        for &power in powers {
            let candidate = table(fits.max(1), power)?;
            let rival = best.as_ref().or(than);
            if let Some(found) = self.judge(&candidate, rival)?
                && rival.is_none_or(|r| found.error < r.error)
            {
                best = Some(found);
            }
        }
        Ok(best)
    }

    /// Whole steps without an update are left out, and timesteps move, while that helps.
    fn retime(&mut self, mut best: Found) -> Result<Found, Failure> {
        for i in (0..best.candidate.updates.len()).rev() {
            while let Some(candidate) = thinned(&best.candidate, i) {
                if !self.better(&mut best, candidate)? {
                    break;
                }
            }
        }
        for distance in TIMES {
            for i in (0..best.candidate.updates.len()).rev() {
                for later in [true, false] {
                    while let Some(candidate) = retimed(&best.candidate, i, distance, later) {
                        if !self.better(&mut best, candidate)? {
                            break;
                        }
                    }
                }
            }
        }
        Ok(best)
    }

    /// One more update step wherever the budget has room for it.
    fn grow(&mut self, mut best: Found) -> Result<Found, Failure> {
        let count = blocks(&self.architecture()).len();
        loop {
            let more = with_one_more(&best.candidate, count);
            let mut grown = false;
            for candidate in more {
                grown |= self.better(&mut best, candidate)?;
            }
            if !grown {
                return Ok(best);
            }
        }
    }

    /// Update steps move until none gets better by moving.
    fn move_updates(&mut self, mut best: Found) -> Result<Found, Failure> {
        for distance in MOVES {
            let mut moved = true;
            while moved {
                moved = false;
                for i in (1..best.candidate.updates.len()).rev() {
                    for later in [true, false] {
                        while let Some(candidate) = shifted(&best.candidate, i, distance, later) {
                            if !self.better(&mut best, candidate)? {
                                break;
                            }
                            moved = true;
                        }
                    }
                }
            }
        }
        Ok(best)
    }

    /// Each update takes the forecast that serves best, the last ones first.
    fn choose_forecasts(&mut self, mut best: Found) -> Result<Found, Failure> {
        for i in (0..best.candidate.updates.len()).rev() {
            for forecast in FORECASTS {
                if matches!(forecast, Forecast::Fitted { .. }) && self.observed.is_none() {
                    continue;
                }
                let mut candidate = best.candidate.clone();
                candidate.updates[i].forecast = forecast;
                self.better(&mut best, candidate)?;
            }
        }
        Ok(best)
    }

    /// Each update takes a constant correction where that serves.
    fn correct(&mut self, mut best: Found) -> Result<Found, Failure> {
        if self.observed.is_none() {
            return Ok(best);
        }
        let mut all = best.candidate.clone();
        all.updates.iter_mut().for_each(|u| u.corrected = true);
        self.better(&mut best, all)?;
        for i in (0..best.candidate.updates.len()).rev() {
            let mut candidate = best.candidate.clone();
            candidate.updates[i].corrected = !candidate.updates[i].corrected;
            self.better(&mut best, candidate)?;
        }
        Ok(best)
    }

    /// Drops the computations that matter least and computes one more step instead.
    fn trade(&mut self, mut best: Found) -> Result<Found, Failure> {
        let count = blocks(&self.architecture()).len();
        let mut ranked: Vec<(f64, usize, usize)> = Vec::new();
        for i in 1..best.candidate.updates.len() {
            for block in (0..count).filter(|&b| best.candidate.updates[i].computed[b]) {
                let mut candidate = best.candidate.clone();
                candidate.updates[i].computed[block] = false;
                let screened = self.screened();
                if let Some(errors) = self.measure(&candidate, screened)? {
                    let error = errors.chunks[..screened].iter().map(|&e| f64::from(e)).sum::<f64>();
                    ranked.push((error, i, block));
                    (self.progress)(format_args!(
                        "{}: without block {block} at step {}, {} evaluations left",
                        best.candidate.sampler.label(),
                        best.candidate.updates[i].step,
                        self.evaluations
                    ));
                }
            }
        }
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let start = best.candidate.clone();
        for more in 1..=3 {
            let mut thinner = start.clone();
            for &(_, i, block) in ranked.iter().take(more * count) {
                thinner.updates[i].computed[block] = false;
            }
            thinner.updates.retain(|u| u.computed.contains(&true));
            let mut here: Option<Found> = None;
            for _ in 0..more {
                let base = here.as_ref().map_or(&thinner, |f| &f.candidate).clone();
                let mut chosen: Option<Found> = None;
                for candidate in with_one_more(&base, count) {
                    if let Some(found) = self.judge(&candidate, chosen.as_ref())?
                        && chosen.as_ref().is_none_or(|c| found.error < c.error)
                    {
                        chosen = Some(found);
                    }
                }
                if chosen.is_none() {
                    break;
                }
                here = chosen;
            }
            if let Some(found) = here
                && !self.better(&mut best, found.candidate)?
                && more > 1
            {
                break;
            }
        }
        Ok(best)
    }
}

/// Whether errors are larger than others on the same observations by more than the standard error of their mean difference.
fn worse(errors: &[f32], than: &[f32]) -> bool {
    let n = errors.len() as f64;
    let differences = || errors.iter().zip(than).map(|(a, b)| f64::from(*a) - f64::from(*b));
    let mean = differences().sum::<f64>() / n;
    let variance = differences().map(|d| (d - mean) * (d - mean)).sum::<f64>() / (n - 1.0);
    mean > (variance / n).sqrt()
}

/// The candidate with update `i` moved, if it stays between its neighbours.
fn shifted(candidate: &Candidate, i: usize, distance: usize, later: bool) -> Option<Candidate> {
    let step = candidate.updates[i].step;
    let to = if later { step + distance } else { step.checked_sub(distance)? };
    let after = candidate.updates.get(i + 1).map_or(candidate.sampler.inference_steps, |u| u.step);
    if to <= candidate.updates[i - 1].step || to >= after {
        return None;
    }
    let mut moved = candidate.clone();
    moved.updates[i].step = to;
    Some(moved)
}

/// The candidate without every second of the quiet steps that follow update `i`, if there are any.
fn thinned(candidate: &Candidate, i: usize) -> Option<Candidate> {
    let first = candidate.updates[i].step + 1;
    let after = candidate.updates.get(i + 1).map_or(candidate.sampler.inference_steps, |u| u.step);
    let left_out: Vec<usize> = (first..after).step_by(2).collect();
    if left_out.is_empty() {
        return None;
    }
    let mut thinner = candidate.clone();
    thinner.sampler = samplers::without(&candidate.sampler, &left_out)?;
    thinner.updates[i + 1..].iter_mut().for_each(|u| u.step -= left_out.len());
    Some(thinner)
}

/// The candidate with another timestep at update `i`, if it stays between its neighbours.
fn retimed(candidate: &Candidate, i: usize, distance: usize, later: bool) -> Option<Candidate> {
    let step = candidate.updates[i].step;
    let timestep = candidate.sampler.inference_timesteps()[step];
    let to = if later { timestep.checked_sub(distance)? } else { timestep + distance };
    let sampler = samplers::retimed(&candidate.sampler, step, to)?;
    Some(Candidate { sampler, ..candidate.clone() })
}

/// All blocks computed at one more step, in the middle of each gap.
fn with_one_more(candidate: &Candidate, blocks: usize) -> Vec<Candidate> {
    let steps: Vec<usize> =
        candidate.updates.iter().map(|u| u.step).chain([candidate.sampler.inference_steps]).collect();
    let middles = steps.windows(2).enumerate().filter(|(_, w)| w[1] - w[0] > 1);
    middles
        .map(|(i, w)| {
            let mut more = candidate.clone();
            let computed = vec![true; blocks];
            more.updates.insert(
                i + 1,
                Update { step: w[0].midpoint(w[1]), computed, ..candidate.updates[i].clone() },
            );
            more
        })
        .collect()
}
