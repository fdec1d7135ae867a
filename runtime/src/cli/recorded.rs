//! Recorded observations, as calibration and search take them.

use std::path::{Path, PathBuf};

use refrain_policies::config::PolicyConfig;
use refrain_policies::coverage::Coverage;
use refrain_policies::schedule_file::CalibrationData;
use sha2::{Digest, Sha256};

use super::tensors::{self, TensorFile};

/// The observations that a package brings along, for its own schedules.
const OWN: &str = "observations.safetensors";

/// A recording: `obs_raw` [B,To,O] in raw units, or `condition` [B,To,F+O] of a policy with cameras.
pub(super) struct Recorded {
    /// SHA-256 of the file, lowercase hex.
    pub(super) sha256: String,
    source: String,
    size: usize,
    data: Vec<f32>,
    config: PolicyConfig,
}

impl Recorded {
    /// Reads a file, or the package's own when none is named.
    pub(super) fn read(
        policy: &Path,
        path: Option<&Path>,
        config: &PolicyConfig,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let path: PathBuf = path.map_or_else(|| policy.join(OWN), Path::to_owned);
        let (to, o) = (config.architecture.n_obs_steps, config.condition_size());
        let all = TensorFile::read(&path)
            .map_err(|e| {
                format!("{e}; record what the robot observes and name the file with --observations")
            })?
            .take(tensors::observed(config), &format!("[B, {to}, {o}]"), |s| {
                s.len() == 3 && s[1..] == [to, o] && s[0] > 0
            })?;
        let bytes = std::fs::read(&path)?;
        Ok(Self {
            sha256: Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect(),
            source: path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
            size: to * o,
            data: all.data,
            config: config.clone(),
        })
    }

    /// What a policy with cameras is conditioned on is normalised already.
    fn normalize(&self, observations: &mut [f32]) {
        if self.config.cameras.is_empty() {
            self.config.observation.normalizer.normalize(observations);
        }
    }

    /// At most `limit` observations, evenly taken, normalised.
    pub(super) fn evenly(&self, limit: usize) -> Vec<Vec<f32>> {
        let found = self.data.len() / self.size;
        let used = limit.clamp(1, found);
        let one = |i: usize| {
            let mut observation = self.data[(i * found / used) * self.size..][..self.size].to_vec();
            self.normalize(&mut observation);
            observation
        };
        (0..used).map(one).collect()
    }

    /// Observations to search on, then later ones to hold out; together evenly taken.
    pub(super) fn parts(
        &self,
        searched: usize,
        held_out: usize,
    ) -> Result<Vec<Vec<f32>>, Box<dyn std::error::Error>> {
        let (found, wanted) = (self.data.len() / self.size, searched.saturating_add(held_out));
        if searched == 0 || held_out == 0 || wanted > found {
            return Err(format!(
                "{}: expected at least {wanted} observations ({searched} to search on, {held_out} held out, both at least 1), got {found}; record more or ask for fewer",
                self.source
            )
            .into());
        }
        Ok(self.evenly(wanted))
    }

    /// What a schedule file says of it.
    pub(super) fn data(&self, observations: usize, seed: u64) -> CalibrationData {
        let mut all = self.data.clone();
        self.normalize(&mut all);
        let coverage = Coverage::of([&all[..]], self.config.condition_size());
        CalibrationData {
            source: self.source.clone(),
            observations,
            seed,
            sha256: self.sha256.clone(),
            coverage: Some(coverage),
        }
    }
}
