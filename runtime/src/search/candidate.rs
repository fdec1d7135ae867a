//! A point of the search: sampler, update table, forecasts and constant corrections.

use refrain_policies::adaptive_caching::Statistics;
use refrain_policies::config::Architecture;
use refrain_policies::correction::{self, Means};
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
    /// Whether the steps without an update that follow have a constant correction.
    pub corrected: bool,
}

/// What a sampler's full run showed of the blocks: what forecasts and corrections are fitted by.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Inner products of outputs.
    pub statistics: Statistics,
    /// Mean outputs.
    pub means: Means,
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
        let updates = at
            .iter()
            .map(|&step| Update { step, computed: computed.clone(), forecast, corrected: false })
            .collect();
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
        observed: Option<&Observed>,
    ) -> Result<Schedule, CandidateError> {
        let blocks = blocks(architecture);
        let rows = blocks.iter().enumerate().map(|(b, &block)| {
            (block, self.updates.iter().filter(|u| u.computed[b]).map(|u| u.step).collect())
        });
        let table = Schedule::from_updates(architecture, self.sampler.inference_steps, rows)?;
        let update = |at: usize| self.updates.iter().find(|u| u.step == at);
        let statistics = observed.map(|o| &o.statistics);
        let table =
            forecast::apply(&table, statistics, |_, at| update(at).map_or(Forecast::Reuse, |u| u.forecast))?;
        let Some(observed) = observed else { return Ok(table) };
        let corrections =
            correction::fit(&table, &observed.means, |at| update(at).is_some_and(|u| u.corrected));
        Ok(table.with_corrections(architecture, corrections)?.rounded())
    }
}
