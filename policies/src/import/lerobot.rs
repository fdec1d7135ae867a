//! LeRobot checkpoint folders of `multi_task_dit`: `config.json`, `model.safetensors`, `policy_preprocessor.json`,
//! `policy_postprocessor.json` and the files that these name.
//!
//! The denoiser's weights, the sampler and the normalisers are read here. The encoders of images, and the features of the
//! text that says what to do, are exported where the policy was trained, by `policies/train/export_lerobot.py`; a package
//! does one task. Nothing is executed, and only plain names inside the folder are opened. Everything that is wrong is said at
//! once. Source: huggingface/lerobot 0.6.1, `policies/multi_task_dit`, `processor/{pipeline,normalize_processor}.py`.

mod features;
mod processors;
mod weights;

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::tasks::{numbered, signal};
use super::{DEFAULT_RATE_HZ, ImportError, Options, encoders, read};
use crate::camera::{Camera, Channels, ENCODER_FILE};
use crate::config::{Architecture, Dit, FORMAT, PolicyConfig, Provenance};
use crate::noise_schedule::BetaSchedule;
use crate::package::{EncoderFiles, Package, shown};
use crate::sampler::{PredictionType, SamplerConfig, SamplerKind, TimestepSpacing, VarianceType};
use features::Features;
use processors::Normalization;
use weights::Source;

/// Largest JSON file that is read, bytes.
const MAX_JSON: u64 = 1 << 20;
const CONFIG: &str = "config.json";
/// The policy whose denoiser is a transformer.
const DIT: &str = "multi_task_dit";
const STATE: &str = "observation.state";
const ACTION: &str = "action";

/// What is read, for people.
pub(super) const READ: [(&str, &str); 5] = [
    (
        "policy",
        "`multi_task_dit` (0.6.1) with `objective: diffusion`: DiT blocks, rotary or learned positions; on the CPU engine",
    ),
    ("noise scheduler", "`DDIM`, `DDPM`"),
    (
        "normalisers",
        "`policy_preprocessor.json`, `policy_postprocessor.json` and their files: `IDENTITY`, `MEAN_STD`, `MIN_MAX`, `QUANTILES`, `QUANTILE10`; what never varied is only shifted, to what LeRobot makes of it",
    ),
    ("cameras", "resized and cut; their encoders by `policies/train/export_lerobot.py` and `--encoder`"),
    ("text", "one task per package: its features, also by `export_lerobot.py`, become a part of the weights"),
];

/// What is refused and why, for people.
pub(super) const REFUSED: [(&str, &str); 8] = [
    ("`multi_task_dit` with `objective: flow_matching`", "no such sampler"),
    ("`multi_task_dit` without `observation.state`", "a package has at least one low-dimensional number"),
    ("`multi_task_dit` on the GPU engine", "no such kernels yet; `--engine auto` takes the CPU and says so"),
    ("steps of a processor that are not known", "they might change what the policy computes"),
    ("any tensor of the denoiser that is missing, unknown or of another shape", "it is another denoiser"),
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
    objective: String,
    noise_scheduler_type: Scheduler,
    num_train_timesteps: usize,
    num_inference_steps: Option<usize>,
    beta_schedule: BetaSchedule,
    beta_start: f64,
    beta_end: f64,
    prediction_type: PredictionType,
    clip_sample: bool,
    clip_sample_range: f32,
    hidden_dim: usize,
    num_layers: usize,
    num_heads: usize,
    timestep_embed_dim: usize,
    use_positional_encoding: bool,
    use_rope: bool,
    rope_base: f64,
    use_separate_rgb_encoder_per_camera: bool,
    image_resize_shape: Option<[usize; 2]>,
    image_crop_shape: Option<[usize; 2]>,
    input_features: Features,
    output_features: Features,
    license: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
enum Scheduler {
    #[serde(rename = "DDPM")]
    Ddpm,
    #[serde(rename = "DDIM")]
    Ddim,
}

/// Imports a LeRobot folder. `options.encoders` is the folder that `export_lerobot.py` wrote, and is needed.
pub fn lerobot(folder: &Path, options: &Options) -> Result<Package, ImportError> {
    let kind = json::<Kind>(folder, CONFIG)?.r#type;
    if kind != DIT {
        let reason = match &kind[..] {
            "diffusion" => "the denoiser is a U-Net; expected a transformer",
            "act" | "vqbet" | "tdmpc" => "nothing is denoised; expected a Diffusion Policy",
            _ => "is not supported; `refrain import --supported` lists what is",
        };
        return Err(ImportError::Unsupported(vec![format!("{CONFIG}: type {}: {reason}", shown(&kind))]));
    }
    let c: Config = json(folder, CONFIG)?;
    let mut problems = Vec::new();
    if c.objective != "diffusion" {
        let got = shown(&c.objective);
        problems.push(format!("{CONFIG}: objective {got} is not supported; expected diffusion"));
    }
    let state = features::vector(&c.input_features, "input_features", STATE, &mut problems);
    let action = features::vector(&c.output_features, "output_features", ACTION, &mut problems);
    let before =
        Normalization::read(folder, "policy_preprocessor.json", "normalizer_processor", &mut problems);
    let after =
        Normalization::read(folder, "policy_postprocessor.json", "unnormalizer_processor", &mut problems);
    let mut cameras = cameras(&c, before.as_ref(), &mut problems);
    let text = options.encoders.as_deref().map(|encoders| weights::text(encoders, c.hidden_dim)).transpose();
    let text = text.unwrap_or_else(|problem| {
        problems.push(problem);
        None
    });
    if options.encoders.is_none() {
        problems.push(format!(
            "the features of the task's text are missing: where the policy was trained, run `python policies/train/export_lerobot.py {} ENCODERS --task TEXT`, then import with --encoder ENCODERS",
            folder.display()
        ));
    }
    let bytes = weights::bytes(folder, &mut problems)?;
    let source = bytes.as_deref().and_then(|bytes| Source::new(bytes, &mut problems));
    let (Some(before), Some(after), Some(text), Some(source), Some(state), Some(action), true) =
        (before, after, text, source, state, action, problems.is_empty())
    else {
        return Err(ImportError::Unsupported(problems));
    };

    let mut notes = vec![format!("task: {}", text.task)];
    let rate_hz = options.rate_hz.unwrap_or_else(|| {
        notes.push(format!("rate_hz: the checkpoint names none, {DEFAULT_RATE_HZ} is assumed"));
        DEFAULT_RATE_HZ
    });
    let observation = before.normalizer(STATE, &state, false, &mut problems);
    let commanded = after.normalizer(ACTION, &action, true, &mut problems);
    match source.features(&c, state.size(), cameras.len()) {
        Ok(features) => cameras.iter_mut().for_each(|camera| camera.features = features),
        Err(problem) => problems.push(problem),
    }
    let (Some(observation), Some(commanded), true) = (observation, commanded, problems.is_empty()) else {
        return Err(ImportError::Unsupported(problems));
    };
    let config = PolicyConfig {
        format: FORMAT,
        name: options.name.clone().unwrap_or_else(|| name(folder)),
        rate_hz,
        default_schedule: None,
        architecture: architecture(&c),
        observation: signal(numbered("state", state.size()), "1", observation),
        action: signal(numbered(ACTION, action.size()), "1", commanded),
        cameras,
        sampler: sampler(&c),
        provenance: Provenance {
            source: name(folder),
            source_sha256: source.sha256(),
            weights: "model".into(),
            license: options.license.clone().or(c.license.clone()).unwrap_or_default(),
            notes,
        },
    };
    let wrong = config.problems();
    if !wrong.is_empty() {
        return Err(ImportError::Unsupported(wrong));
    }
    let weights = source.weights(&config, c.use_positional_encoding, &text, options.dtype)?;
    let files = match &options.encoders {
        Some(folder) => encoders(&config, folder)?,
        None => EncoderFiles::new(),
    };
    Ok(Package::with_encoders(config, weights, files)?)
}

/// The folder's own name.
fn name(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    whole.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn json<T: DeserializeOwned>(folder: &Path, file: &str) -> Result<T, ImportError> {
    let content = read(&folder.join(file), MAX_JSON)?;
    let wrong = |error| ImportError::Unsupported(vec![format!("{file}: {error}; save the policy again")]);
    serde_json::from_slice(&content).map_err(wrong)
}

fn architecture(c: &Config) -> Architecture {
    Architecture {
        layers: c.num_layers,
        heads: c.num_heads,
        width: c.hidden_dim,
        condition_layers: 0,
        causal: false,
        time_as_cond: true,
        obs_as_cond: true,
        horizon: c.horizon,
        n_obs_steps: c.n_obs_steps,
        n_action_steps: c.n_action_steps,
        pred_action_steps_only: false,
        dit: Some(Dit {
            timestep_width: c.timestep_embed_dim,
            rotary_base: c.use_rope.then_some(c.rope_base),
        }),
    }
}

/// What LeRobot does not set is diffusers' default.
fn sampler(c: &Config) -> SamplerConfig {
    SamplerConfig {
        kind: match c.noise_scheduler_type {
            Scheduler::Ddpm => SamplerKind::Ddpm,
            Scheduler::Ddim => SamplerKind::Ddim,
        },
        inference_steps: c.num_inference_steps.unwrap_or(c.num_train_timesteps),
        train_steps: c.num_train_timesteps,
        beta_schedule: c.beta_schedule,
        beta_start: c.beta_start,
        beta_end: c.beta_end,
        trained_betas: Vec::new(),
        rescale_betas_zero_snr: false,
        prediction_type: c.prediction_type,
        clip_sample: c.clip_sample,
        clip_sample_range: c.clip_sample_range,
        timestep_spacing: TimestepSpacing::Leading,
        steps_offset: 0,
        timesteps: Vec::new(),
        variance_type: VarianceType::FixedSmall,
        eta: 0.0,
        set_alpha_to_one: true,
        use_clipped_model_output: false,
    }
}

/// The cameras in LeRobot's order; how many features they have is not known yet.
///
/// LeRobot normalises before it resizes and cuts; since that is one factor and offset per channel, the order does not matter.
/// It does not cut what is smaller than the cut.
fn cameras(c: &Config, normalization: Option<&Normalization>, problems: &mut Vec<String>) -> Vec<Camera> {
    let mut cameras = Vec::new();
    for (key, feature) in c.input_features.of("VISUAL") {
        let &[channels, height, width] = &feature.shape[..] else {
            let shape = &feature.shape;
            problems.push(format!("{CONFIG}: feature {}: expected 3 sizes, got {shape:?}", shown(key)));
            continue;
        };
        if channels != 3 {
            problems.push(format!("{CONFIG}: feature {}: expected 3 channels, got {channels}", shown(key)));
            continue;
        }
        let short = key.strip_prefix("observation.").unwrap_or(key);
        let short = short.strip_prefix("images.").unwrap_or(short);
        let from = c.image_resize_shape.unwrap_or([height, width]);
        let normalizer = normalization.and_then(|n| n.normalizer(key, feature, false, problems));
        let (mut mean, mut std) = (Vec::new(), Vec::new());
        if let Some(n) = normalizer.filter(|n| n.scale != [1.0; 3] || n.offset != [0.0; 3]) {
            mean = n.scale.iter().zip(&n.offset).map(|(scale, offset)| -offset / scale).collect();
            std = n.scale.iter().map(|scale| 1.0 / scale).collect();
        }
        cameras.push(Camera {
            name: short.to_owned(),
            size: [height, width],
            channels: Channels::Rgb,
            divisor: 255.0,
            resize: c.image_resize_shape,
            antialias: true,
            crop: c.image_crop_shape.filter(|crop| crop[0] <= from[0] && crop[1] <= from[1]),
            mean,
            std,
            encoder: if c.use_separate_rgb_encoder_per_camera {
                format!("{short}.onnx")
            } else {
                ENCODER_FILE.to_owned()
            },
            features: 0,
        });
    }
    cameras
}
