//! Recorded observations, as calibration and search take them.
//!
//! The last third of a recording is held out from everything that finds schedules or fits weights, whatever is asked for,
//! so that errors on it mean the same in every report.

use std::ops::Range;
use std::path::{Path, PathBuf};

use refrain_policies::config::PolicyConfig;
use refrain_policies::coverage::Coverage;
use refrain_policies::schedule_file::CalibrationData;
use sha2::{Digest, Sha256};

use super::npz;
use super::tensors::{self, TensorFile};
use crate::record::{self, Message};

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
        let data = match path.extension().and_then(|e| e.to_str()) {
            Some("mcap") => Self::windows(&path, config)?,
            Some("npz") => npz::observations(&path, [to, o])?,
            _ => {
                TensorFile::read(&path)
                    .map_err(|e| {
                        format!("{e}; record what the robot observes and name the file with --observations")
                    })?
                    .take(tensors::observed(config), &format!("[B, {to}, {o}]"), |s| {
                        s.len() == 3 && s[1..] == [to, o] && s[0] > 0
                    })?
                    .data
            }
        };
        let bytes = std::fs::read(&path)?;
        Ok(Self {
            sha256: Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect(),
            source: path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
            size: to * o,
            data,
            config: config.clone(),
        })
    }

    /// The windows that the predictions of a recorded run were made from, raw units.
    fn windows(path: &Path, config: &PolicyConfig) -> Result<Vec<f32>, String> {
        let shown = path.display();
        if !config.cameras.is_empty() {
            return Err(format!(
                "{shown}: a recording holds no images, and this policy has cameras; use what `refrain eval --record` writes"
            ));
        }
        let expected = config.architecture.n_obs_steps * config.condition_size();
        let (_, messages) = record::read(path).map_err(|e| e.to_string())?;
        let mut data = Vec::new();
        for message in messages {
            let Message::Inference(inference) = message else { continue };
            if inference.observations.len() != expected {
                return Err(format!(
                    "{shown}: expected windows of {expected} numbers, as this policy sees, got {}; name a recording of this policy",
                    inference.observations.len()
                ));
            }
            // A run may record one that it refused for being no number.
            if inference.observations.iter().all(|v| v.is_finite()) {
                data.extend(inference.observations);
            }
        }
        if data.is_empty() {
            return Err(format!("{shown}: no predictions in it; record a run that predicts"));
        }
        Ok(data)
    }

    /// What a policy with cameras is conditioned on is normalised already.
    fn normalize(&self, observations: &mut [f32]) {
        if self.config.cameras.is_empty() {
            self.config.observation.normalizer.normalize(observations);
        }
    }

    fn count(&self) -> usize {
        self.data.len() / self.size
    }

    /// Observations that are not held out: all but the last third.
    fn open(&self) -> usize {
        (self.count() - self.count() / 3).max(1)
    }

    /// `used` observations of `among`, evenly taken, normalised.
    fn take(&self, among: Range<usize>, used: usize) -> Vec<Vec<f32>> {
        let one = |i: usize| {
            let at = among.start + i * among.len() / used;
            let mut observation = self.data[at * self.size..][..self.size].to_vec();
            self.normalize(&mut observation);
            observation
        };
        (0..used).map(one).collect()
    }

    /// At most `limit` observations that are not held out, evenly taken, normalised.
    pub(super) fn evenly(&self, limit: usize) -> Vec<Vec<f32>> {
        self.take(0..self.open(), limit.clamp(1, self.open()))
    }

    /// Observations to search on, then as many as `held_out` of the held-out third; each evenly taken.
    pub(super) fn parts(
        &self,
        searched: usize,
        held_out: usize,
    ) -> Result<Vec<Vec<f32>>, Box<dyn std::error::Error>> {
        let (count, open) = (self.count(), self.open());
        if searched == 0 || held_out == 0 || searched > open || held_out > count - open {
            return Err(format!(
                "{}: expected 1 to {open} observations to search on and 1 to {} held out of its {count}, got {searched} and {held_out}; record more or ask for fewer",
                self.source,
                count - open
            )
            .into());
        }
        let mut all = self.take(0..open, searched);
        all.extend(self.take(open..count, held_out));
        Ok(all)
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

#[cfg(all(test, feature = "pusht"))]
mod tests {
    use super::Recorded;

    fn recorded(count: usize) -> Recorded {
        let config = crate::builtin::package().unwrap().config;
        let size = config.architecture.n_obs_steps * config.condition_size();
        let data = (0..count).flat_map(|i| vec![i as f32; size]).collect();
        Recorded { sha256: String::new(), source: "x".into(), size, data, config }
    }

    #[test]
    fn held_out_observations_are_never_searched_on() {
        let r = recorded(30);
        let back = |o: &Vec<f32>| {
            let mut o = o.clone();
            r.config.observation.normalizer.unnormalize(&mut o);
            o[0].round() as usize
        };
        for (searched, held_out) in [(1, 1), (3, 10), (20, 10), (7, 2)] {
            let all: Vec<usize> = r.parts(searched, held_out).unwrap().iter().map(back).collect();
            assert!(all[..searched].iter().all(|&i| i < 20), "{all:?}");
            assert!(all[searched..].iter().all(|&i| i >= 20), "{all:?}");
            let mut sorted = all.clone();
            sorted.dedup();
            assert_eq!(sorted, all, "each once");
        }
        assert!(r.evenly(1000).iter().map(back).all(|i| i < 20));
        for (searched, held_out) in [(0, 1), (1, 0), (21, 1), (1, 11)] {
            assert!(r.parts(searched, held_out).is_err());
        }
    }
}
