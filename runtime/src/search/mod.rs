//! Search: the schedule with the smallest action error that costs no more than is allowed.
//!
//! Per sampler, from the best member of the late-dense family on:
//! 1. update steps move, one at a time, by eight steps down to one;
//! 2. each update chooses how its outputs are forecast;
//! 3. the computations that matter least, block by block, are traded for one more update step.
//!
//! All three repeat until nothing gets better or the evaluations are used up. Every move is judged by the action error
//! on the searched part of the observations. Deterministic: the same policy, observations, seed and budget give the
//! same schedule; what was measured is kept in a journal, so that a stopped search goes on where it was.

pub mod candidate;
pub mod cost;
pub mod journal;
pub mod study;

use std::collections::HashSet;
use std::fmt::Arguments;

use refrain_policies::adaptive_caching::Statistics;
use refrain_policies::config::Architecture;
use refrain_policies::forecast::Forecast;
use refrain_policies::sampler::SamplerConfig;
use refrain_policies::schedule::{Cell, Schedule, blocks};

use candidate::{Candidate, Update};
use journal::Journal;
use study::{Part, Study};

type Failure = Box<dyn std::error::Error>;

/// Powers of the late-dense family that are tried first.
const POWERS: [f64; 6] = [1.5, 2.0, 2.5, 3.0, 4.0, 6.0];
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
/// A move must be better by this share, so that noise in the last digits starts no long walk.
const GAIN: f64 = 0.998;

/// A search for one sampler.
pub struct Search<'a> {
    /// What candidates are judged by.
    pub study: &'a Study,
    /// What was measured before.
    pub journal: &'a mut Journal,
    /// For fitted forecasts; without it they are not tried.
    pub statistics: Option<&'a Statistics>,
    /// Whether a candidate may cost what it costs.
    pub allowed: &'a dyn Fn(&Candidate) -> Result<bool, Failure>,
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
}

impl Search<'_> {
    /// The best schedule for a sampler, with at most `updates` aligned updates to begin with.
    pub fn run(&mut self, sampler: &SamplerConfig, updates: usize) -> Result<Option<Found>, Failure> {
        let Some(mut best) = self.first(sampler, updates)? else { return Ok(None) };
        loop {
            let before = best.error;
            best = self.grow(best)?;
            best = self.move_updates(best)?;
            best = self.choose_forecasts(best)?;
            best = self.trade(best)?;
            if best.error >= before * GAIN || self.evaluations == 0 {
                return Ok(Some(best));
            }
        }
    }

    fn architecture(&self) -> Architecture {
        self.study.package().config.architecture.clone()
    }

    /// Error of a candidate; none when it costs too much or the evaluations are used up.
    fn judge(&mut self, candidate: &Candidate) -> Result<Option<f64>, Failure> {
        if self.evaluations == 0 || !(self.allowed)(candidate)? {
            return Ok(None);
        }
        let schedule = candidate.schedule(&self.architecture(), self.statistics)?;
        let key = journal::key(&candidate.sampler, &schedule);
        // What the journal knows counts as well, so that a search that goes on ends where it would have ended.
        self.evaluations -= usize::from(self.seen.insert(key.clone()));
        if let Some(known) = self.journal.get(&key) {
            return Ok(Some(known.mean));
        }
        let error = self.study.own_error(&candidate.sampler, &schedule, Part::Searched)?;
        self.journal.put(&key, &candidate.sampler.label(), &schedule, error)?;
        Ok(Some(error.mean))
    }

    fn better(&mut self, best: &mut Found, candidate: Candidate) -> Result<bool, Failure> {
        let Some(error) = self.judge(&candidate)? else { return Ok(false) };
        if error < best.error * GAIN {
            *best = Found { candidate, error };
            (self.progress)(format_args!(
                "{}: {} block computations, action error {error:.4}, {} evaluations left",
                best.candidate.sampler.label(),
                best.candidate.computations(),
                self.evaluations
            ));
            return Ok(true);
        }
        Ok(false)
    }

    /// The best of the late-dense family that is allowed.
    fn first(&mut self, sampler: &SamplerConfig, updates: usize) -> Result<Option<Found>, Failure> {
        let a = self.architecture();
        for count in (1..=updates.min(sampler.inference_steps)).rev() {
            let mut best: Option<Found> = None;
            for power in POWERS {
                let schedule = Schedule::late_dense(&a, sampler.inference_steps, count, power)?;
                let row = &schedule.rows()[0].1;
                let at: Vec<usize> = (0..row.len()).filter(|&k| row[k] == Cell::Update).collect();
                let candidate = Candidate::aligned(&a, sampler, &at, Forecast::Reuse);
                if let Some(error) = self.judge(&candidate)?
                    && best.as_ref().is_none_or(|b| error < b.error)
                {
                    best = Some(Found { candidate, error });
                }
            }
            if best.is_some() {
                return Ok(best);
            }
        }
        Ok(None)
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
                if matches!(forecast, Forecast::Fitted { .. }) && self.statistics.is_none() {
                    continue;
                }
                let mut candidate = best.candidate.clone();
                candidate.updates[i].forecast = forecast;
                self.better(&mut best, candidate)?;
            }
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
                if let Some(error) = self.judge(&candidate)? {
                    ranked.push((error, i, block));
                    (self.progress)(format_args!(
                        "{}: without block {block} at step {}: action error {error:.4}, {} evaluations left",
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
                    if let Some(error) = self.judge(&candidate)?
                        && chosen.as_ref().is_none_or(|c| error < c.error)
                    {
                        chosen = Some(Found { candidate, error });
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

/// All blocks computed at one more step, in the middle of each gap.
fn with_one_more(candidate: &Candidate, blocks: usize) -> Vec<Candidate> {
    let steps: Vec<usize> =
        candidate.updates.iter().map(|u| u.step).chain([candidate.sampler.inference_steps]).collect();
    let middles = steps.windows(2).enumerate().filter(|(_, w)| w[1] - w[0] > 1);
    middles
        .map(|(i, w)| {
            let mut more = candidate.clone();
            let forecast = candidate.updates[i].forecast;
            more.updates
                .insert(i + 1, Update { step: w[0].midpoint(w[1]), computed: vec![true; blocks], forecast });
            more
        })
        .collect()
}
