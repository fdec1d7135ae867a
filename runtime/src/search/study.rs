//! What a schedule is worth: the error of its executed actions against the full policy, on recorded observations
//! with the same noise.
//!
//! One part of the observations is searched on, a second chooses among what was found, a third is held out for the
//! report. A candidate with fewer steps sees the noise that the full run saw, put together ([`samplers::couple`]). DDPM and DDIM share the start alone and differ
//! in every single action however good they are, so a candidate is searched by its distance to the full run of its own
//! kind: the policy's sampler, or DDIM at every training step.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use refrain_policies::calibration::Calibration;
use refrain_policies::config::PolicyConfig;
use refrain_policies::correction::Means;
use refrain_policies::package::Package;
use refrain_policies::plan::{Plan, Probed};
use refrain_policies::sampler::SamplerConfig;
use refrain_policies::schedule::{self, Schedule};

use super::candidate::Observed;
use super::samplers;
use crate::engine::Engine;
use crate::engine::cpu::{CpuEngine, CpuWeights, Isa, Program};
use crate::{noise, threads};

type Failure = Box<dyn std::error::Error>;

/// Observations, noise, and what the full policy does with them.
pub struct Study {
    package: Arc<Package>,
    weights: Arc<CpuWeights>,
    /// `[To, O]`, normalised.
    observations: Vec<Vec<f32>>,
    /// How many of them are in each part, in the order of [`Part`].
    parts: [usize; 3],
    seed: u64,
    threads: usize,
    /// Trajectories of full runs, by sampler.
    full: Mutex<HashMap<String, Arc<Vec<Vec<f32>>>>>,
}

/// Errors of executed actions, normalised units.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Errors {
    /// Root mean square over a chunk, per observation.
    pub chunks: Vec<f32>,
    /// Largest of all numbers.
    pub worst: f32,
}

/// What [`Errors`] come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActionError {
    /// Mean over observations of the root mean square over a chunk: what is searched by, since one observation on
    /// which the policy takes another of several good ways does not drown the others.
    pub mean: f64,
    /// Root mean square over everything.
    pub rms: f64,
    /// Largest.
    pub worst: f64,
}

/// Which observations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Those that are searched on.
    Searched,
    /// Those that choose among what was found.
    Validation,
    /// Those that only the report sees.
    HeldOut,
}

impl Errors {
    /// Mean, root mean square, largest.
    pub fn summary(&self) -> ActionError {
        let n = self.chunks.len().max(1) as f64;
        let sum = |of: fn(f64) -> f64| self.chunks.iter().map(|&e| of(f64::from(e))).sum::<f64>() / n;
        ActionError { mean: sum(|e| e), rms: sum(|e| e * e).sqrt(), worst: self.worst.into() }
    }

    /// Adds those of further observations.
    pub fn extend(&mut self, further: &Self) {
        self.chunks.extend_from_slice(&further.chunks);
        self.worst = self.worst.max(further.worst);
    }
}

impl Study {
    /// Over normalised observations, those of each [`Part`] behind those of the one before.
    pub fn new(package: Arc<Package>, parts: [Vec<Vec<f32>>; 3], seed: u64, threads: usize) -> Self {
        let weights = CpuWeights::new(Arc::clone(&package));
        let sizes = parts.each_ref().map(Vec::len);
        let observations = parts.into_iter().flatten().collect();
        Self { package, weights, observations, parts: sizes, seed, threads, full: Mutex::default() }
    }

    /// The policy's configuration with another sampler.
    pub fn config(&self, sampler: &SamplerConfig) -> PolicyConfig {
        PolicyConfig { sampler: sampler.clone(), ..self.package.config.clone() }
    }

    /// What is studied.
    pub fn package(&self) -> &Arc<Package> {
        &self.package
    }

    /// Which of all observations are those of a part.
    pub fn range(&self, part: Part) -> Range<usize> {
        let [searched, validation, held_out] = self.parts;
        match part {
            Part::Searched => 0..searched,
            Part::Validation => searched..searched + validation,
            Part::HeldOut => searched + validation..searched + validation + held_out,
        }
    }

    /// Error against the full run of the candidate's own sampler.
    pub fn own_error(
        &self,
        sampler: &SamplerConfig,
        schedule: &Schedule,
        part: Part,
    ) -> Result<ActionError, Failure> {
        Ok(self.own_errors(sampler, schedule, self.range(part))?.summary())
    }

    /// The same for some of all observations, one by one.
    pub fn own_errors(
        &self,
        sampler: &SamplerConfig,
        schedule: &Schedule,
        range: Range<usize>,
    ) -> Result<Errors, Failure> {
        self.errors(sampler, schedule, &self.full_of(sampler), range)
    }

    /// The sampler whose full run candidates of this kind are compared with.
    fn full_of(&self, sampler: &SamplerConfig) -> SamplerConfig {
        let own = &self.package.config.sampler;
        if sampler.kind == own.kind { own.clone() } else { finest(&own.with(sampler.kind, own.train_steps)) }
    }

    /// Error against the full policy.
    pub fn policy_error(
        &self,
        sampler: &SamplerConfig,
        schedule: &Schedule,
        part: Part,
    ) -> Result<ActionError, Failure> {
        let range = self.range(part);
        Ok(self.errors(sampler, schedule, &self.package.config.sampler, range)?.summary())
    }

    fn errors(
        &self,
        sampler: &SamplerConfig,
        schedule: &Schedule,
        reference: &SamplerConfig,
        range: Range<usize>,
    ) -> Result<Errors, Failure> {
        let mut errors = Errors::default();
        for differences in self.differences(sampler, schedule, reference, range)? {
            let squares = differences.iter().map(|d| f64::from(*d).powi(2)).sum::<f64>();
            let rms = (squares / differences.len() as f64).sqrt();
            errors.chunks.push(rms.min(f64::from(f32::MAX)) as f32);
            errors.worst = differences.iter().fold(errors.worst, |worst, d| worst.max(d.abs()));
        }
        Ok(errors)
    }

    /// Executed actions less those of the full run of the candidate's own sampler, per observation; finite.
    pub fn own_differences(
        &self,
        sampler: &SamplerConfig,
        schedule: &Schedule,
        range: Range<usize>,
    ) -> Result<Vec<Vec<f32>>, Failure> {
        self.differences(sampler, schedule, &self.full_of(sampler), range)
    }

    fn differences(
        &self,
        sampler: &SamplerConfig,
        schedule: &Schedule,
        reference: &SamplerConfig,
        range: Range<usize>,
    ) -> Result<Vec<Vec<f32>>, Failure> {
        let key = format!("{reference:?}");
        let found = self.full.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let full = match found {
            Some(full) => full,
            None => {
                let config = self.config(reference);
                let schedule = Schedule::full(&config.architecture, reference.inference_steps);
                let full = Arc::new(self.run(reference, &schedule, 0..self.observations.len())?);
                self.full.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::clone(&full));
                full
            }
        };
        let got = self.run(sampler, schedule, range.clone())?;
        let c = &self.package.config;
        let (n, moved, executed) = (c.denoised_size(), c.action.size(), c.architecture.executed());
        let differences = |(a, b): (&Vec<f32>, &Vec<f32>)| -> Vec<f32> {
            let moved = executed.clone().flat_map(|t| t * n..t * n + moved);
            moved.map(|i| a[i] - b[i]).map(|d| if d.is_finite() { d } else { f32::MAX }).collect()
        };
        Ok(got.iter().zip(&full[range]).map(differences).collect())
    }

    /// What all blocks do over at most `most` of the searched observations, evenly taken, in a sampler's full run.
    pub fn observed(&self, sampler: &SamplerConfig, most: usize) -> Result<Observed, Failure> {
        let config = self.config(sampler);
        let a = &config.architecture;
        let (steps, blocks) = (sampler.inference_steps, schedule::blocks(a));
        let size = a.trunk_tokens() * a.width;
        let plan = Arc::new(Plan::traced(&config, &Schedule::full(a, steps))?);
        let program = Program::new(&self.weights, Arc::clone(&plan), Isa::detect())?;
        let mut engine = CpuEngine::on(program, self.threads)?;
        let mut calibration = Calibration::new(blocks.clone(), steps, size)?;
        let mut means = Means::new(blocks.clone(), steps, a.width);
        let skip = (a.trunk_tokens() - a.tokens()) * a.width;
        let (mut draw, mut trajectory) = (vec![0.0; plan.noise_len()], vec![0.0; plan.trajectory.len()]);
        let mut outputs = vec![0.0; steps * blocks.len() * size];
        let searched = self.range(Part::Searched).len();
        let used = most.min(searched);
        for i in (0..used).map(|i| i * searched / used) {
            let observation = &self.observations[i];
            noise::fill(self.seed, u64::MAX, i as u64, &mut draw);
            engine.infer(observation, &draw, &mut trajectory)?;
            for probe in &plan.probes {
                if let Probed::Block(block) = probe.what {
                    let row =
                        blocks.iter().position(|b| *b == block).ok_or("the plan probes an unknown block")?;
                    let output = engine.probe(probe);
                    means.add(row, probe.step, &output[skip..]);
                    outputs[(probe.step * blocks.len() + row) * size..][..size].copy_from_slice(&output);
                }
            }
            calibration.add(observation, &outputs)?;
        }
        Ok(Observed { statistics: calibration.finish()?, means })
    }

    /// Trajectories for some observations, in parallel, one engine per thread.
    fn run(
        &self,
        sampler: &SamplerConfig,
        schedule: &Schedule,
        range: Range<usize>,
    ) -> Result<Vec<Vec<f32>>, Failure> {
        let plan = Arc::new(Plan::compile(&self.config(sampler), schedule)?);
        let program = Program::new(&self.weights, Arc::clone(&plan), Isa::detect())?;
        let workers = self.threads.clamp(1, range.len().max(1));
        let (fine, coarse) = (self.full_of(sampler).steps(), sampler.steps());
        let row = plan.trajectory.len();
        let parts = threads::in_parallel("search", workers, |worker| {
            let mut engine = CpuEngine::on(Arc::clone(&program), 1)?;
            let mut draw = vec![0.0; plan.noise_len()];
            let mut whole = vec![0.0; (fine.len() + 1) * row];
            let share = range.len() * worker / workers..range.len() * (worker + 1) / workers;
            share
                .map(|i| {
                    let mut trajectory = vec![0.0; plan.trajectory.len()];
                    let i = range.start + i;
                    noise::fill(self.seed, u64::MAX, i as u64, &mut whole);
                    noise::fill(self.seed, u64::MAX - 1, i as u64, &mut draw);
                    samplers::couple(&fine, &coarse, row, &whole, &mut draw);
                    engine.infer(&self.observations[i], &draw, &mut trajectory)?;
                    Ok(trajectory)
                })
                .collect::<Result<Vec<_>, crate::engine::EngineError>>()
        });
        let mut all = Vec::with_capacity(range.len());
        for part in parts {
            all.extend(part?);
        }
        Ok(all)
    }
}

/// The same kind of sampler at every training step.
fn finest(sampler: &SamplerConfig) -> SamplerConfig {
    SamplerConfig { steps_offset: 0, ..sampler.with(sampler.kind, sampler.train_steps) }
}
