//! Recorded observations, as calibration and search take them.
//!
//! The last third of a recording is held out from everything that finds schedules or fits weights, whatever is asked for,
//! so that errors on it mean the same in every report. A search keeps the last quarter of the rest to choose among what it found.

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

/// Observations to search on, to choose with and held out where nothing else is asked for.
const USUAL: [usize; 3] = [150, 75, 75];

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

    /// Where each part lies: what is searched on, what chooses among what was found, what is held out.
    fn ranges(&self, validation: bool) -> [Range<usize>; 3] {
        let open = self.open();
        let searched = if validation { open - open / 4 } else { open };
        [0..searched, searched..open, open..self.count()]
    }

    /// Observations to search on, to choose with and held out, each evenly taken from its part of the recording. A number that
    /// is not asked for is the usual one, or what there is.
    pub(super) fn parts(&self, asked: [Option<usize>; 3]) -> Result<[Vec<Vec<f32>>; 3], String> {
        let ranges = self.ranges(asked[1] != Some(0));
        let sizes = ranges.each_ref().map(|range| range.len());
        let wrong = (0..3).any(|i| asked[i].is_some_and(|n| n > sizes[i] || (n == 0 && i != 1)));
        if wrong || sizes[2] == 0 {
            return Err(format!(
                "{}: expected 1 to {} observations to search on, at most {} to choose with and 1 to {} held out of its {}, got {}; record more or ask for fewer",
                self.source,
                sizes[0],
                sizes[1],
                sizes[2],
                self.count(),
                asked.iter().flatten().map(usize::to_string).collect::<Vec<_>>().join(", ")
            ));
        }
        let used = |i: usize| asked[i].unwrap_or(USUAL[i]).min(sizes[i]);
        Ok([0, 1, 2].map(|i| self.take(ranges[i].clone(), used(i))))
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
        for asked in [[1, 1, 1], [3, 0, 10], [20, 0, 10], [15, 5, 10], [7, 2, 2]] {
            let parts = r.parts(asked.map(Some)).unwrap();
            assert_eq!(parts.each_ref().map(Vec::len), asked);
            let [searched, validation, held_out] =
                parts.map(|part| part.iter().map(back).collect::<Vec<_>>());
            let from = if asked[1] == 0 { 20 } else { 15 };
            assert!(searched.iter().all(|&i| i < from), "{searched:?}");
            assert!(validation.iter().all(|i| (15..20).contains(i)), "{validation:?}");
            assert!(held_out.iter().all(|&i| i >= 20), "{held_out:?}");
            for part in [searched, validation, held_out] {
                assert!(part.windows(2).all(|w| w[0] < w[1]), "each once: {part:?}");
            }
        }
        assert!(r.evenly(1000).iter().map(back).all(|i| i < 20));
        assert_eq!(r.parts([None; 3]).unwrap().map(|part| part.len()), [15, 5, 10], "as many as there are");
        for asked in [[0, 1, 1], [1, 1, 0], [16, 1, 1], [21, 0, 1], [1, 6, 1], [1, 1, 11]] {
            assert!(r.parts(asked.map(Some)).is_err(), "{asked:?}");
        }
        assert!(recorded(2).parts([None; 3]).is_err(), "nothing to hold out");
    }
}
