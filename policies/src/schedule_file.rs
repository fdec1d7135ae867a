//! Schedule files: `POLICY/schedules/NAME.toml`, a cache schedule with what it was made for and what it was worth.
//!
//! ```toml
//! format = 1
//! policy = "pusht"                   # for people; the hash below decides
//! weights_sha256 = "…64 hex digits…" # of weights.safetensors
//! timesteps = [99, 98, 97, 96]       # what the sampler below gives, noisiest first
//!
//! [method]
//! name = "adaptive_caching"          # full, uniform, by_hand, aligned, adaptive_caching or any other
//! parameters = { updates = 2, union = 3 } # whatever the method has
//!
//! [sampler]                          # the whole table of policy.toml
//! kind = "ddpm"
//! inference_steps = 4
//! # …
//!
//! [updates]                          # denoising steps at which each block is computed; every block, quoted
//! "layer0.self_attention" = [0, 2]
//! "layer0.feed_forward" = [0, 1]
//!
//! [[reuse]]                          # optional: cells whose reuse weights are not [1.0], newest output first
//! steps = [3]
//! weights = [1.5, -0.5]
//! blocks = ["layer0.feed_forward"]   # left out: every block
//!
//! [[correction]]                     # optional: constants [D] added to every token at steps without an update
//! steps = [3]
//! values = [0.125, -0.5]
//!
//! [calibration]                      # optional: the data behind the schedule
//! source = "demos.npz"
//! observations = 32
//! seed = 7
//! sha256 = "…64 hex digits…"
//! coverage = { low = [-1.0], high = [1.0] } # optional: range per observed number, normalised
//!
//! [report]                           # optional and free: action error, score, success, latency…
//! score = 0.963
//! ```
//!
//! Unknown keys are refused everywhere but in `method.parameters` and `report`. [`ScheduleFile::check`] gives the
//! schedule only for the weights and the sampler that it was made for. Not here: how a schedule is found.

mod error;
mod folder;
mod rows;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::PolicyConfig;
use crate::coverage::Coverage;
use crate::sampler::SamplerConfig;
use crate::schedule::{Block, Cell, Correction, Schedule, blocks};

pub use error::ScheduleFileError;

/// The `format` this version reads and writes.
pub const FORMAT: u32 = 1;

/// Most bytes a schedule file may have.
pub const MAX_BYTES: usize = 4 << 20;

/// The content of a schedule file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleFile {
    /// File format version, [`FORMAT`].
    pub format: u32,
    /// Name of the policy that it was made for; for people.
    pub policy: String,
    /// SHA-256 of the `weights.safetensors` that it was made for, lowercase hex.
    pub weights_sha256: String,
    /// The K training timesteps that the denoising steps stand for, noisiest first.
    pub timesteps: Vec<usize>,
    /// How the schedule was found.
    pub method: Method,
    /// The sampler that it was made for.
    pub sampler: SamplerConfig,
    /// Rising update steps per block.
    #[serde(with = "rows")]
    pub updates: Vec<(Block, Vec<usize>)>,
    /// Cells that do not simply repeat the newest cached output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reuse: Vec<ReuseWeights>,
    /// What reuse gets wrong on average, at steps without an update.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub correction: Vec<ConstantCorrection>,
    /// The data behind it, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationData>,
    /// What was measured with it; free, empty when nothing was.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub report: toml::Table,
}

/// How a schedule was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// `full`, `uniform`, `by_hand`, `aligned`, `adaptive_caching`, or whatever a published method is called.
    pub name: String,
    /// The method's own numbers, such as `updates` and `union`.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub parameters: toml::Table,
}

/// Reuse weights of some cells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReuseWeights {
    /// Denoising steps.
    pub steps: Vec<usize>,
    /// Weights of the block's last cached outputs, newest first.
    pub weights: Vec<f32>,
    /// Blocks; empty means every block.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "rows::names")]
    pub blocks: Vec<Block>,
}

/// A constant correction of some steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConstantCorrection {
    /// Denoising steps.
    pub steps: Vec<usize>,
    /// `[D]`.
    pub values: Vec<f32>,
}

/// The recorded observations that a schedule was found with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationData {
    /// File name of the observations.
    pub source: String,
    /// How many were used.
    pub observations: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// SHA-256 of the file, lowercase hex.
    pub sha256: String,
    /// Range of what was observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage: Option<Coverage>,
}

impl Method {
    /// A method without numbers of its own: `full`, `by_hand`, `aligned`.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), parameters: toml::Table::new() }
    }

    /// The same with one more number, text or list.
    pub fn with(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        self.parameters.insert(key.to_owned(), value.into());
        self
    }

    /// Block-wise Adaptive Caching with M updates per block and a union over N blocks.
    pub fn adaptive_caching(updates: u32, union: u32) -> Self {
        Self::named("adaptive_caching").with("updates", i64::from(updates)).with("union", i64::from(union))
    }
}

impl ScheduleFile {
    /// Writes down a schedule for these weights and this policy's sampler, without calibration data or report.
    pub fn new(config: &PolicyConfig, weights_sha256: &str, schedule: &Schedule, method: Method) -> Self {
        let updates = schedule.rows().iter().map(|(block, cells)| {
            let at = cells.iter().enumerate().filter(|(_, cell)| **cell == Cell::Update);
            (*block, at.map(|(step, _)| step).collect())
        });
        Self {
            format: FORMAT,
            policy: config.name.clone(),
            weights_sha256: weights_sha256.to_owned(),
            timesteps: config.sampler.inference_timesteps(),
            method,
            sampler: config.sampler.clone(),
            updates: updates.collect(),
            reuse: reuse_weights(schedule),
            correction: schedule
                .corrections()
                .iter()
                .map(|c| ConstantCorrection { steps: c.steps.clone(), values: c.values.to_vec() })
                .collect(),
            calibration: None,
            report: toml::Table::new(),
        }
    }

    /// Reads a file's text and checks what can be checked without the policy.
    pub fn parse(text: &str) -> Result<Self, ScheduleFileError> {
        #[derive(Deserialize)]
        struct Version {
            format: Option<i64>,
        }
        if text.len() > MAX_BYTES {
            return Err(ScheduleFileError::TooLarge);
        }
        let version: Version = toml::from_str(text).map_err(ScheduleFileError::syntax)?;
        match version.format {
            Some(format) if format != i64::from(FORMAT) => return Err(ScheduleFileError::Format(format)),
            _ => {}
        }
        let file: Self = toml::from_str(text).map_err(ScheduleFileError::syntax)?;
        file.check_itself()?;
        Ok(file)
    }

    /// The file's text, which [`ScheduleFile::parse`] reads back to an equal value.
    pub fn to_toml(&self) -> Result<String, ScheduleFileError> {
        self.check_itself()?;
        let text = toml::to_string(self).map_err(ScheduleFileError::syntax)?;
        if text.len() > MAX_BYTES { Err(ScheduleFileError::TooLarge) } else { Ok(text) }
    }

    /// The schedule, if it was made for these weights and this policy's sampler.
    pub fn check(&self, config: &PolicyConfig, weights_sha256: &str) -> Result<Schedule, ScheduleFileError> {
        self.check_itself()?;
        if self.weights_sha256 != weights_sha256 {
            return Err(ScheduleFileError::Weights {
                policy: config.name.clone(),
                policy_sha256: weights_sha256.to_owned(),
                made_for: self.policy.clone(),
                made_for_sha256: self.weights_sha256.clone(),
            });
        }
        self.check_sampler(&config.sampler)?;
        let coverage = self.calibration.as_ref().and_then(|c| c.coverage.as_ref());
        if let Some(problem) = coverage.and_then(|c| c.problem(config.condition_size())) {
            return Err(ScheduleFileError::Coverage(problem));
        }
        let a = &config.architecture;
        let corrections = self.correction.iter();
        let corrections =
            corrections.map(|c| Correction { steps: c.steps.clone(), values: c.values.as_slice().into() });
        let table = Schedule::new(a, self.timesteps.len(), self.cells(config)?)?;
        Ok(table.with_corrections(a, corrections.collect())?)
    }

    fn check_itself(&self) -> Result<(), ScheduleFileError> {
        if self.format != FORMAT {
            return Err(ScheduleFileError::Format(self.format.into()));
        }
        let calibrated = self.calibration.iter().map(|c| ("calibration.sha256", &c.sha256));
        for (key, got) in [("weights_sha256", &self.weights_sha256)].into_iter().chain(calibrated) {
            if got.len() != 64 || !got.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                return Err(ScheduleFileError::Hash { key, got: got.clone() });
            }
        }
        if self.calibration.as_ref().is_some_and(|c| c.observations == 0) {
            return Err(ScheduleFileError::NoObservations);
        }
        if self.method.name.is_empty() {
            return Err(ScheduleFileError::NoMethod);
        }
        let mut problems = Vec::new();
        self.sampler.problems(&mut problems);
        if !problems.is_empty() {
            return Err(ScheduleFileError::BadSampler(problems.join("; ")));
        }
        if self.timesteps != self.sampler.inference_timesteps() {
            return Err(ScheduleFileError::Timesteps(self.sampler.label()));
        }
        for (block, at) in &self.updates {
            if let Some(pair) = at.windows(2).find(|w| w[1] <= w[0]) {
                return Err(ScheduleFileError::NotRising { block: *block, step: pair[0], next: pair[1] });
            }
        }
        Ok(())
    }

    /// Accepts samplers that do the same at every step, however they are written down.
    fn check_sampler(&self, runs: &SamplerConfig) -> Result<(), ScheduleFileError> {
        let made_for = &self.sampler;
        if made_for == runs {
            return Ok(());
        }
        let mut problems = Vec::new();
        runs.problems(&mut problems);
        if !problems.is_empty() {
            return Err(ScheduleFileError::BadSampler(problems.join("; ")));
        }
        if made_for.label() != runs.label() {
            return Err(ScheduleFileError::Sampler { made_for: made_for.label(), runs: runs.label() });
        }
        if made_for.steps() == runs.steps() {
            return Ok(());
        }
        let differ = settings(made_for)?.into_iter().zip(settings(runs)?).find(|(a, b)| a != b);
        let ((key, made_for), (_, runs)) = differ.unwrap_or_default();
        Err(ScheduleFileError::SamplerSetting { label: self.sampler.label(), key, made_for, runs })
    }

    /// All rows of the table, not yet checked against each other.
    fn cells(&self, config: &PolicyConfig) -> Result<Vec<(Block, Vec<Cell>)>, ScheduleFileError> {
        use crate::schedule::ScheduleError;
        let steps = self.timesteps.len();
        let known = blocks(&config.architecture);
        let mut rows: BTreeMap<Block, Vec<Option<Cell>>> = BTreeMap::new();
        for (block, at) in &self.updates {
            if !known.contains(block) {
                return Err(ScheduleError::UnknownBlock(block.to_string()).into());
            }
            if rows.contains_key(block) {
                return Err(ScheduleError::DuplicateBlock(*block).into());
            }
            let row = rows.entry(*block).or_insert_with(|| vec![None; steps]);
            for &step in at {
                let out = ScheduleError::StepOutOfRange { block: *block, step, last: steps - 1 };
                *row.get_mut(step).ok_or(out)? = Some(Cell::Update);
            }
        }
        for reuse in &self.reuse {
            for &block in if reuse.blocks.is_empty() { &known } else { &reuse.blocks } {
                let row = rows.get_mut(&block).ok_or(ScheduleFileError::ReuseBlock(block))?;
                // Before any copy, so that a small file cannot ask for much memory.
                let cached = row.iter().filter(|cell| **cell == Some(Cell::Update)).count();
                if let (Some(&step), got) = (reuse.steps.first(), reuse.weights.len())
                    && got > cached
                {
                    return Err(ScheduleError::TooManyWeights { block, step, got, cached }.into());
                }
                for &step in &reuse.steps {
                    match row.get_mut(step) {
                        Some(cell @ None) => *cell = Some(Cell::Reuse(reuse.weights.clone())),
                        Some(Some(Cell::Update)) => {
                            return Err(ScheduleFileError::ReuseAtUpdate { block, step });
                        }
                        Some(Some(_)) => return Err(ScheduleFileError::ReuseTwice { block, step }),
                        None => return Err(ScheduleFileError::ReuseStep { block, step, last: steps - 1 }),
                    }
                }
            }
        }
        let fill = |cell: Option<Cell>| cell.unwrap_or_else(|| Cell::Reuse(vec![1.0]));
        Ok(rows.into_iter().map(|(block, row)| (block, row.into_iter().map(fill).collect())).collect())
    }
}

/// Groups the cells with weights other than `[1.0]`: per weights and step the blocks, then per weights and blocks the
/// steps.
fn reuse_weights(schedule: &Schedule) -> Vec<ReuseWeights> {
    let bits = |weights: &[f32]| weights.iter().map(|w| w.to_bits()).collect::<Vec<_>>();
    let mut by_step: BTreeMap<(usize, Vec<u32>), Vec<Block>> = BTreeMap::new();
    for (block, cells) in schedule.rows() {
        for (step, cell) in cells.iter().enumerate() {
            match cell {
                Cell::Reuse(weights) if *weights != [1.0] => {
                    by_step.entry((step, bits(weights))).or_default().push(*block);
                }
                _ => {}
            }
        }
    }
    let mut groups: Vec<ReuseWeights> = Vec::new();
    let mut index: BTreeMap<(Vec<u32>, Vec<Block>), usize> = BTreeMap::new();
    for ((step, weights), blocks) in by_step {
        let group = *index.entry((weights.clone(), blocks.clone())).or_insert_with(|| {
            let every = blocks.len() == schedule.rows().len();
            groups.push(ReuseWeights {
                steps: Vec::new(),
                weights: weights.iter().map(|&w| f32::from_bits(w)).collect(),
                blocks: if every { Vec::new() } else { blocks },
            });
            groups.len() - 1
        });
        groups[group].steps.push(step);
    }
    groups
}

/// Every setting of a sampler with its value as TOML text; the same keys for every sampler.
fn settings(sampler: &SamplerConfig) -> Result<Vec<(String, String)>, ScheduleFileError> {
    let mut table = toml::Table::try_from(sampler).map_err(ScheduleFileError::syntax)?;
    for key in ["trained_betas", "timesteps"] {
        table.entry(key).or_insert_with(|| toml::Value::Array(Vec::new()));
    }
    Ok(table.into_iter().map(|(key, value)| (key, value.to_string())).collect())
}

#[cfg(test)]
mod tests;
