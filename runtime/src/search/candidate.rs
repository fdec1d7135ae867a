//! A point of the search: sampler, update table and forecasts.

use refrain_policies::adaptive_caching::Statistics;
use refrain_policies::config::Architecture;
use refrain_policies::forecast::{self, Forecast, ForecastError};
use refrain_policies::sampler::SamplerConfig;
use refrain_policies::schedule::{Schedule, ScheduleError, blocks};

/// One way to run the policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Sampler.
    pub sampler: SamplerConfig,
    /// Rising, step 0 first.
    pub updates: Vec<Update>,
}

/// A denoising step at which blocks are computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Denoising step.
    pub step: usize,
    /// Per block of the trunk, whether it is computed.
    pub computed: Vec<bool>,
    /// How the blocks computed here are forecast until they are computed again.
    pub forecast: Forecast,
}

/// Why a candidate is none.
#[derive(Debug, thiserror::Error)]
pub enum CandidateError {
    /// The table.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The weights.
    #[error(transparent)]
    Forecast(#[from] ForecastError),
}

impl Candidate {
    /// All blocks at the same steps, which rise from 0.
    pub fn aligned(
        architecture: &Architecture,
        sampler: &SamplerConfig,
        at: &[usize],
        forecast: Forecast,
    ) -> Self {
        let computed = vec![true; blocks(architecture).len()];
        let updates = at.iter().map(|&step| Update { step, computed: computed.clone(), forecast }).collect();
        Self { sampler: sampler.clone(), updates }
    }

    /// Block computations.
    pub fn computations(&self) -> usize {
        self.updates.iter().flat_map(|u| &u.computed).filter(|c| **c).count()
    }

    /// The schedule that it stands for.
    pub fn schedule(
        &self,
        architecture: &Architecture,
        statistics: Option<&Statistics>,
    ) -> Result<Schedule, CandidateError> {
        let blocks = blocks(architecture);
        let rows = blocks.iter().enumerate().map(|(b, &block)| {
            (block, self.updates.iter().filter(|u| u.computed[b]).map(|u| u.step).collect())
        });
        let table = Schedule::from_updates(architecture, self.sampler.inference_steps, rows)?;
        Ok(forecast::apply(&table, statistics, |_, at| {
            self.updates.iter().find(|u| u.step == at).map_or(Forecast::Reuse, |u| u.forecast)
        })?)
    }
}
