//! LeRobot checkpoint folders: `config.json`, `model.safetensors`, `policy_preprocessor.json`, `policy_postprocessor.json` and the
//! files that these name.
//!
//! No policy of LeRobot can be run yet, so this reads what a folder is and says everything that stands in the way of it, by
//! name. Nothing is executed, and only plain names inside the folder are looked at. Source: huggingface/lerobot,
//! `policies/multi_task_dit`, `processor/{pipeline,normalize_processor}.py`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{ImportError, read};
use crate::config::is_plain_name;
use crate::package::shown;

/// Largest JSON file that is read, bytes.
const MAX_JSON: u64 = 1 << 20;
/// The policy whose denoiser is a transformer.
const DIT: &str = "multi_task_dit";
const WEIGHTS: &str = "model.safetensors";
/// Steps of a processor that change no value, or that a package has.
const STEPS: [&str; 7] = [
    "rename_observations_processor",
    "to_batch_processor",
    "device_processor",
    "normalizer_processor",
    "unnormalizer_processor",
    "tokenizer_processor",
    "multi_task_dit_tokenizer_processor",
];
/// Ways to normalise that are one factor and offset per number.
const NORMALIZATIONS: [&str; 5] = ["IDENTITY", "MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10"];

/// What is read, for people.
pub(super) const READ: [(&str, &str); 2] = [
    (
        "`config.json`",
        "the policy's type; of `multi_task_dit` also sizes, objective, rotary positions, normalisation and features",
    ),
    ("`policy_preprocessor.json`, `policy_postprocessor.json`", "their steps and the files that these name"),
];

/// What is refused and why, for people.
pub(super) const REFUSED: [(&str, &str); 7] = [
    (
        "`multi_task_dit`",
        "its DiT blocks (adaptive LayerNorm, gates) are not operations of the plan yet; everything else that is in the way is listed with it",
    ),
    ("`multi_task_dit` with `objective: flow_matching`", "no such sampler"),
    ("`multi_task_dit` with `use_rope`", "no rotary positions"),
    ("`multi_task_dit` without `observation.state`", "a package has at least one low-dimensional number"),
    ("`diffusion`", "the denoiser is a U-Net"),
    ("`act`, `vqbet`, `tdmpc`", "nothing is denoised"),
    (
        "`pi0`, `pi05`, `pi0_fast`, `smolvla` and other types",
        "the denoiser is part of a language model, or not known",
    ),
];

#[derive(Deserialize)]
struct Kind {
    r#type: String,
}

/// What of the configuration matters; training's options are left alone.
#[derive(Deserialize)]
struct Config {
    n_obs_steps: usize,
    horizon: usize,
    n_action_steps: usize,
    hidden_dim: usize,
    num_layers: usize,
    num_heads: usize,
    #[serde(default = "diffusion")]
    objective: String,
    #[serde(default = "yes")]
    use_rope: bool,
    #[serde(default)]
    normalization_mapping: BTreeMap<String, String>,
    input_features: BTreeMap<String, Feature>,
    output_features: BTreeMap<String, Feature>,
}

#[derive(Deserialize)]
struct Feature {
    r#type: String,
    shape: Vec<usize>,
}

#[derive(Deserialize)]
struct Processor {
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    #[serde(default)]
    registry_name: String,
    state_file: Option<String>,
}

fn diffusion() -> String {
    "diffusion".into()
}

fn yes() -> bool {
    true
}

/// Everything that stands in the way of importing a LeRobot folder.
pub fn lerobot(folder: &Path) -> ImportError {
    let mut problems = Vec::new();
    match json::<Kind>(folder, "config.json") {
        Err(error) => return error,
        Ok(kind) if kind.r#type == DIT => match json::<Config>(folder, "config.json") {
            Err(error) => return error,
            Ok(config) => dit(&config, &mut problems),
        },
        Ok(kind) => {
            let reason = match &kind.r#type[..] {
                "diffusion" => "the denoiser is a U-Net; expected a transformer",
                "act" | "vqbet" | "tdmpc" => "nothing is denoised; expected a Diffusion Policy",
                _ => "is not supported; `refrain import --supported` lists what is",
            };
            problems.push(format!("config.json: type {}: {reason}", shown(&kind.r#type)));
            return ImportError::Unsupported(problems);
        }
    }
    if !folder.join(WEIGHTS).is_file() {
        problems
            .push(format!("{WEIGHTS}: is missing; expected the whole folder that save_pretrained writes"));
    }
    for file in ["policy_preprocessor.json", "policy_postprocessor.json"] {
        match json::<Processor>(folder, file) {
            Ok(processor) => steps(folder, file, &processor, &mut problems),
            Err(error) => problems.push(error.to_string()),
        }
    }
    ImportError::Unsupported(problems)
}

fn json<T: DeserializeOwned>(folder: &Path, file: &str) -> Result<T, ImportError> {
    let content = read(&folder.join(file), MAX_JSON)?;
    let wrong = |error| ImportError::Unsupported(vec![format!("{file}: {error}; save the policy again")]);
    serde_json::from_slice(&content).map_err(wrong)
}

fn dit(c: &Config, problems: &mut Vec<String>) {
    problems.push(format!(
        "config.json: type {DIT:?}: {} DiT blocks of width {} with {} heads; adaptive LayerNorm is not supported by the plan yet",
        c.num_layers, c.hidden_dim, c.num_heads
    ));
    if c.objective != "diffusion" {
        problems.push(format!(
            "config.json: objective {} is not supported; expected diffusion",
            shown(&c.objective)
        ));
    }
    if c.use_rope {
        problems.push("config.json: use_rope: rotary positions are not supported; expected false".into());
    }
    if c.n_obs_steps.saturating_sub(1).saturating_add(c.n_action_steps) > c.horizon {
        problems.push(format!(
            "config.json: n_action_steps: {} steps from step {} on do not fit into horizon {}",
            c.n_action_steps,
            c.n_obs_steps.saturating_sub(1),
            c.horizon
        ));
    }
    for (kind, mode) in &c.normalization_mapping {
        if !NORMALIZATIONS.contains(&&mode[..]) {
            problems.push(format!(
                "config.json: normalization_mapping.{kind}: {} is not supported; expected {}",
                shown(mode),
                NORMALIZATIONS.join(", ")
            ));
        }
    }
    for (key, feature) in c.input_features.iter().chain(&c.output_features) {
        let rank = match &feature.r#type[..] {
            "VISUAL" => 3,
            "STATE" | "ENV" | "ACTION" => 1,
            other => {
                problems.push(format!(
                    "config.json: feature {}: type {} is not supported",
                    shown(key),
                    shown(other)
                ));
                continue;
            }
        };
        if feature.shape.len() != rank || feature.shape.contains(&0) {
            let shape = &feature.shape;
            problems
                .push(format!("config.json: feature {}: expected {rank} sizes, got {shape:?}", shown(key)));
        }
    }
    for (features, of, key) in [
        (&c.input_features, "input_features", "observation.state"),
        (&c.output_features, "output_features", "action"),
    ] {
        if !features.contains_key(key) {
            problems.push(format!("config.json: {of}.{key}: is missing"));
        }
    }
}

fn steps(folder: &Path, file: &str, processor: &Processor, problems: &mut Vec<String>) {
    for (i, step) in processor.steps.iter().enumerate() {
        if !STEPS.contains(&&step.registry_name[..]) {
            problems.push(format!("{file}: step {i}: {} is not supported", shown(&step.registry_name)));
        }
        match &step.state_file {
            Some(name) if !is_plain_name(name) => {
                problems.push(format!(
                    "{file}: step {i}: state_file: expected a plain file name, got {}",
                    shown(name)
                ));
            }
            Some(name) if !folder.join(name).is_file() => {
                problems.push(format!("{file}: step {i}: {} is missing", shown(name)));
            }
            _ => {}
        }
    }
}
