//! Pre- and postprocessors of LeRobot: their steps, and the normalisers among them.
//!
//! Source: `processor/normalize_processor.py`, whose formulas and epsilons these are.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use serde::Deserialize;

use super::features::Feature;
use super::json;
use crate::config::{Normalizer, NormalizerMode, is_plain_name};
use crate::import::{read, tensors};
use crate::package::shown;

/// Largest file of statistics that is read, bytes.
const MAX_STATE: u64 = 16 << 20;
/// What varied by less than this share of itself never varied: single precision does not know better.
const STILL: f64 = f32::EPSILON as f64;
/// Steps that change no value, or that a package has.
const STEPS: [&str; 5] = [
    "rename_observations_processor",
    "to_batch_processor",
    "device_processor",
    "tokenizer_processor",
    "multi_task_dit_tokenizer_processor",
];

#[derive(Deserialize)]
struct Processor {
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    #[serde(default)]
    registry_name: String,
    #[serde(default)]
    config: serde_json::Value,
    state_file: Option<String>,
}

#[derive(Deserialize)]
struct Settings {
    eps: f64,
    norm_map: BTreeMap<String, String>,
    features: BTreeMap<String, Feature>,
    #[serde(default)]
    normalize_observation_keys: Option<Vec<String>>,
}

/// The one step of a processor that normalises, or the other way round.
pub(super) struct Normalization {
    file: &'static str,
    settings: Settings,
    /// `FEATURE.STATISTIC` to numbers.
    statistics: BTreeMap<String, Vec<f32>>,
}

impl Normalization {
    /// Reads a processor and looks at all of its steps; `None` if there is a problem with the one that is wanted.
    pub(super) fn read(
        folder: &Path,
        file: &'static str,
        wanted: &str,
        problems: &mut Vec<String>,
    ) -> Option<Self> {
        let processor: Processor = match json(folder, file) {
            Ok(processor) => processor,
            Err(error) => {
                problems.push(error.to_string());
                return None;
            }
        };
        let mut found = Vec::new();
        for (i, step) in processor.steps.iter().enumerate() {
            let is_it = step.registry_name == wanted;
            let problem = if !is_it && !STEPS.contains(&&step.registry_name[..]) {
                Some(format!("{} is not supported", shown(&step.registry_name)))
            } else if let Some(name) = step.state_file.as_ref().filter(|name| !is_plain_name(name)) {
                Some(format!("state_file: expected a plain file name, got {}", shown(name)))
            } else if is_it {
                one(folder, file, step).map(|step| found.push(step)).err()
            } else {
                None
            };
            problems.extend(problem.map(|problem| format!("{file}: step {i}: {problem}")));
        }
        if found.len() > 1 {
            problems.push(format!("{file}: expected one {wanted}, got {}", found.len()));
        }
        if found.is_empty() && problems.is_empty() {
            problems.push(format!("{file}: has no {wanted}"));
        }
        found.pop()
    }

    /// Factors and offsets of a feature, one per element of its first dimension; `inverse`: as the postprocessor has them.
    pub(super) fn normalizer(
        &self,
        key: &str,
        feature: &Feature,
        inverse: bool,
        problems: &mut Vec<String>,
    ) -> Option<Normalizer> {
        let size = feature.size();
        let named = |statistic: &str| self.statistics.get(&format!("{key}.{statistic}"));
        let known = self.settings.features.get(key);
        let left_out = self
            .settings
            .normalize_observation_keys
            .as_ref()
            .is_some_and(|keys| !inverse && !keys.iter().any(|k| k == key));
        let begins = format!("{key}.");
        let mode = match known {
            Some(known) if !left_out && self.statistics.keys().any(|name| name.starts_with(&begins)) => {
                self.settings.norm_map.get(&known.r#type).map_or("IDENTITY", |mode| &mode[..])
            }
            _ => "IDENTITY",
        };
        let (fitted, names) = match mode {
            "IDENTITY" => (NormalizerMode::Manual, None),
            "MEAN_STD" => (NormalizerMode::Gaussian, Some(["mean", "std"])),
            "MIN_MAX" => (NormalizerMode::Limits, Some(["min", "max"])),
            "QUANTILES" => (NormalizerMode::Manual, Some(["q01", "q99"])),
            "QUANTILE10" => (NormalizerMode::Manual, Some(["q10", "q90"])),
            other => {
                problems.push(format!(
                    "{}: norm_map: {} of {key} is not supported; expected IDENTITY, MEAN_STD, MIN_MAX, QUANTILES or QUANTILE10",
                    self.file,
                    shown(other)
                ));
                return None;
            }
        };
        let (mut scale, mut offset) = (vec![1.0; size], vec![0.0; size]);
        if let Some([first, second]) = names {
            let (Some(a), Some(b)) = (named(first), named(second)) else {
                problems.push(format!("{}: {key}: has no {first} and {second}", self.file));
                return None;
            };
            if a.len() != size || b.len() != size {
                let got = (a.len(), b.len());
                problems.push(format!(
                    "{}: {key}: expected {size} numbers each of {first} and {second}, got {got:?}",
                    self.file
                ));
                return None;
            }
            for (i, (a, b)) in a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b))).enumerate() {
                let (factor, shift) = self.affine(mode == "MEAN_STD", a, b, inverse);
                (scale[i], offset[i]) = (factor as f32, shift as f32);
            }
        }
        let limit =
            |statistic: &str| named(statistic).filter(|v| v.len() == size).cloned().unwrap_or_default();
        Some(Normalizer { mode: fitted, scale, offset, min: limit("min"), max: limit("max") })
    }

    /// Raw to normalised as `scale` and `offset`. Where nothing varied, LeRobot divides by its epsilon: what an observation was
    /// all the time becomes 0 or -1, and an action goes where it was all the time. A factor of 1e8 loses every digit beside
    /// an offset, so such an observation is only shifted, to the same 0 or -1.
    fn affine(&self, gaussian: bool, a: f64, b: f64, inverse: bool) -> (f64, f64) {
        let eps = self.settings.eps;
        let (spread, low) = if gaussian { (b, 0.0) } else { (b - a, -1.0) };
        if !inverse && spread.abs() <= a.abs() * STILL {
            return (1.0, low - a);
        }
        if gaussian {
            let deviation = if !inverse {
                b + eps
            } else if b == 0.0 {
                eps
            } else {
                b
            };
            (1.0 / deviation, -a / deviation)
        } else {
            let range = if a == b { eps } else { b - a };
            (2.0 / range, -2.0 * a / range - 1.0)
        }
    }
}

fn one(folder: &Path, file: &'static str, step: &Step) -> Result<Normalization, String> {
    let settings: Settings =
        Settings::deserialize(&step.config).map_err(|error| format!("config: {error}"))?;
    let mut statistics = BTreeMap::new();
    if let Some(name) = &step.state_file {
        let bytes = read(&folder.join(name), MAX_STATE).map_err(|error| error.to_string())?;
        let named = |error: String| format!("{}: {error}", shown(name));
        let found = SafeTensors::deserialize(&bytes).map_err(|error| named(error.to_string()))?;
        for (key, view) in found.iter() {
            statistics.insert(key.to_owned(), tensors::from_safetensors(&view).map_err(named)?);
        }
    }
    Ok(Normalization { file, settings, statistics })
}
