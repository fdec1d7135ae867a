//! `policy.toml`: what a policy is, checked.
//!
//! The file states architecture, shapes, sampler, normalisers, names, units and provenance; the weights lie beside
//! it in `weights.safetensors`. Unknown keys are refused, and [`PolicyConfig::problems`] reports everything that is
//! wrong at once. Dimension letters, used in Rust, WGSL and docs alike:
//!
//! | letter | meaning | letter | meaning |
//! | --- | --- | --- | --- |
//! | B | batch | K | denoising steps |
//! | T | tokens of the denoised trajectory | A | action size |
//! | D | width | O | observation size |
//! | H | heads | N | denoised size: A, or A + O when inpainting |
//! | S | condition tokens | To, Ta | observation steps, action steps |
//! | E | width of a DiT's embedded timestep | | |

use serde::{Deserialize, Serialize};

use crate::camera::{Camera, MAX_CAMERAS};
use crate::sampler::SamplerConfig;

/// The `format` this version reads and writes.
pub const FORMAT: u32 = 1;

/// The content of `policy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// File format version, [`FORMAT`].
    pub format: u32,
    /// Short name, used in messages and schedule files.
    pub name: String,
    /// Rate at which the policy's actions follow each other, in Hz.
    pub rate_hz: f64,
    /// Name of the schedule in `schedules/` that a robot runs when it names none; without it every block is computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_schedule: Option<String>,
    /// The denoiser's shape.
    pub architecture: Architecture,
    /// What goes in: O numbers per step.
    pub observation: Signal,
    /// What comes out: A numbers per step.
    pub action: Signal,
    /// What it sees besides; needs `obs_as_cond`. The condition of a step is the features of these cameras, then the
    /// observation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cameras: Vec<Camera>,
    /// How noise becomes a trajectory.
    pub sampler: SamplerConfig,
    /// Where the policy came from.
    #[serde(default)]
    pub provenance: Provenance,
}

/// Shape of a denoiser: `TransformerForDiffusion` (real-stanford/diffusion_policy), or a DiT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Transformer layers of the trunk.
    pub layers: usize,
    /// Attention heads H.
    pub heads: usize,
    /// Width D; the feed-forward blocks are 4 D wide.
    pub width: usize,
    /// Transformer layers of the condition encoder; 0 means the two-layer MLP with Mish.
    pub condition_layers: usize,
    /// Tokens attend only to the past, and to the observations that they had seen.
    pub causal: bool,
    /// The timestep is a condition token; otherwise it is the first trunk token and the trunk has no cross-attention.
    pub time_as_cond: bool,
    /// Observations are condition tokens; otherwise they are inpainted into the trajectory.
    pub obs_as_cond: bool,
    /// Steps of the predicted trajectory.
    pub horizon: usize,
    /// Observation steps To.
    pub n_obs_steps: usize,
    /// Executed action steps Ta.
    pub n_action_steps: usize,
    /// Only the Ta executed actions are denoised, not the whole horizon.
    #[serde(default)]
    pub pred_action_steps_only: bool,
    /// The trunk is a DiT: conditioned by adaptive LayerNorm, without condition tokens and cross-attention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dit: Option<Dit>,
}

/// What a DiT has besides (LeRobot's `multi_task_dit`): timestep and observation shift, scale and gate every block. Needs
/// `time_as_cond` and `obs_as_cond`; there is no mask and no final LayerNorm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dit {
    /// Width E of the embedded timestep.
    pub timestep_width: usize,
    /// Base of the rotary positions of queries and keys; without it, there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotary_base: Option<f64>,
}

/// One vector signal with its names, units and normaliser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signal {
    /// Name of each element.
    pub names: Vec<String>,
    /// Unit of each element, in the units of the demonstrations.
    pub units: Vec<String>,
    /// Raw units to normalised units.
    pub normalizer: Normalizer,
}

/// `normalised = raw * scale + offset`, element by element (real-stanford's `LinearNormalizer`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalizer {
    /// How the parameters were fitted; for people, not used in computing.
    pub mode: NormalizerMode,
    /// Factor per element.
    pub scale: Vec<f32>,
    /// Offset per element, normalised units.
    pub offset: Vec<f32>,
    /// Smallest raw value in the demonstrations, if known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub min: Vec<f32>,
    /// Largest raw value in the demonstrations, if known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub max: Vec<f32>,
}

/// How a normaliser was fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormalizerMode {
    /// Smallest and largest value map to -1 and 1.
    Limits,
    /// Mean and standard deviation map to 0 and 1.
    Gaussian,
    /// Chosen by hand, or unknown.
    Manual,
}

/// Where a policy came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// File name of the source.
    #[serde(default)]
    pub source: String,
    /// SHA-256 of the source, lowercase hex.
    #[serde(default)]
    pub source_sha256: String,
    /// Which weights were taken: `ema_model` or `model`.
    #[serde(default)]
    pub weights: String,
    /// Licence of the weights, as their author stated it.
    #[serde(default)]
    pub license: String,
    /// What the importer had to assume.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Architecture {
    /// T: tokens of the denoised trajectory.
    pub fn tokens(&self) -> usize {
        if self.pred_action_steps_only { self.n_action_steps } else { self.horizon }
    }

    /// Tokens of the trunk: T, and one more where the timestep is a trunk token.
    pub fn trunk_tokens(&self) -> usize {
        self.tokens() + usize::from(!self.time_as_cond)
    }

    /// Whether the trunk attends to condition tokens.
    pub fn has_cross_attention(&self) -> bool {
        self.time_as_cond && self.dit.is_none()
    }

    /// S: condition tokens (the timestep first); 0 for an encoder-only trunk.
    pub fn condition_tokens(&self) -> usize {
        usize::from(self.time_as_cond) + if self.obs_as_cond { self.n_obs_steps } else { 0 }
    }

    /// Width of a feed-forward block.
    pub fn feed_forward_width(&self) -> usize {
        4 * self.width
    }

    /// The trajectory's steps that are executed: the Ta steps from the one of the last observation on.
    pub fn executed(&self) -> std::ops::Range<usize> {
        if self.pred_action_steps_only {
            0..self.n_action_steps
        } else {
            self.n_obs_steps - 1..self.n_obs_steps - 1 + self.n_action_steps
        }
    }
}

impl Normalizer {
    /// Raw to normalised, in place; `values` is `[.., n]` with n the normaliser's size.
    pub fn normalize(&self, values: &mut [f32]) {
        for row in values.chunks_mut(self.scale.len()) {
            for ((v, s), o) in row.iter_mut().zip(&self.scale).zip(&self.offset) {
                *v = *v * s + o;
            }
        }
    }

    /// Normalised to raw, in place; `values` is `[.., n]`.
    pub fn unnormalize(&self, values: &mut [f32]) {
        for row in values.chunks_mut(self.scale.len()) {
            for ((v, s), o) in row.iter_mut().zip(&self.scale).zip(&self.offset) {
                *v = (*v - o) / s;
            }
        }
    }
}

impl Signal {
    /// Number of elements.
    pub fn size(&self) -> usize {
        self.names.len()
    }

    fn problems(&self, key: &str, found: &mut Vec<String>) {
        let n = self.names.len();
        if !(1..=MAX_SIGNAL).contains(&n) {
            found.push(format!("{key}.names: expected 1 to {MAX_SIGNAL} names, got {n}"));
        }
        for (i, name) in self.names.iter().enumerate() {
            if self.names[..i].contains(name) {
                found.push(format!("{key}.names: {name:?} stands twice"));
            }
        }
        if self.units.len() != n {
            found.push(format!("{key}.units: expected {n} units, one per name, got {}", self.units.len()));
        }
        let z = &self.normalizer;
        for (part, values, optional) in [
            ("scale", &z.scale, false),
            ("offset", &z.offset, false),
            ("min", &z.min, true),
            ("max", &z.max, true),
        ] {
            if values.len() != n && !(optional && values.is_empty()) {
                found.push(format!("{key}.normalizer.{part}: expected {n} numbers, got {}", values.len()));
            }
            if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                found.push(format!(
                    "{key}.normalizer.{part}[{i}]: expected a finite number, got {}",
                    values[i]
                ));
            }
        }
        if let Some(i) = z.scale.iter().position(|&s| s == 0.0) {
            found.push(format!("{key}.normalizer.scale[{i}]: is 0, so the element cannot be mapped back"));
        }
    }
}

/// Bounds that keep every size product far from overflow and a hostile file from asking for gigabytes.
pub(crate) const MAX_SIGNAL: usize = 4096;
const MAX_LAYERS: usize = 128;
const MAX_WIDTH: usize = 8192;
const MAX_TOKENS: usize = 1024;

impl PolicyConfig {
    /// N: numbers per denoised token.
    pub fn denoised_size(&self) -> usize {
        self.action.size() + if self.architecture.obs_as_cond { 0 } else { self.observation.size() }
    }

    /// Numbers of one observation step as the denoiser sees it: the features of all cameras, then O.
    pub fn condition_size(&self) -> usize {
        self.cameras.iter().map(|camera| camera.features).sum::<usize>() + self.observation.size()
    }

    /// Everything that is wrong with this configuration, one sentence each; empty when it is sound.
    pub fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.format != FORMAT {
            found.push(format!("format: expected {FORMAT}, got {}; import the policy again", self.format));
        }
        if self.name.is_empty() {
            found.push("name: is empty".into());
        }
        if !(self.rate_hz > 0.0 && self.rate_hz <= 10_000.0) {
            found.push(format!("rate_hz: expected more than 0 and at most 10000, got {}", self.rate_hz));
        }
        if let Some(name) = &self.default_schedule
            && !is_plain_name(name)
        {
            found.push(format!(
                "default_schedule: expected a name of letters, digits, '-', '_' and '.', got {name:?}"
            ));
        }
        self.observation.problems("observation", &mut found);
        self.action.problems("action", &mut found);
        self.architecture.problems(&mut found);
        self.camera_problems(&mut found);
        self.sampler.problems(&mut found);
        found
    }

    fn camera_problems(&self, found: &mut Vec<String>) {
        if self.cameras.len() > MAX_CAMERAS {
            found.push(format!("cameras: expected at most {MAX_CAMERAS}, got {}", self.cameras.len()));
        }
        if !self.cameras.is_empty() && !self.architecture.obs_as_cond {
            found.push("cameras: need architecture.obs_as_cond = true".into());
        }
        for (i, camera) in self.cameras.iter().enumerate() {
            camera.problems(i, found);
            if self.cameras[..i].iter().any(|other| other.name == camera.name) {
                found.push(format!("cameras: {:?} stands twice", camera.name));
            }
        }
    }
}

/// Whether a name can stand for a file without leading anywhere else.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=100).contains(&name.len()) && !name.starts_with('.') && name.chars().all(plain)
}

impl Architecture {
    /// Whether every size is within bounds, so that shapes can be derived from them.
    pub(crate) fn is_sound(&self) -> bool {
        let mut found = Vec::new();
        self.problems(&mut found);
        found.is_empty()
    }

    fn problems(&self, found: &mut Vec<String>) {
        let mut within = |name: &str, value: usize, low: usize, high: usize| {
            if !(low..=high).contains(&value) {
                found.push(format!("architecture.{name}: expected {low} to {high}, got {value}"));
            }
        };
        within("layers", self.layers, 1, MAX_LAYERS);
        within("condition_layers", self.condition_layers, 0, MAX_LAYERS);
        within("width", self.width, 4, MAX_WIDTH);
        within("heads", self.heads, 1, self.width.max(1));
        within("horizon", self.horizon, 1, MAX_TOKENS);
        within("n_obs_steps", self.n_obs_steps, 1, MAX_TOKENS);
        within("n_action_steps", self.n_action_steps, 1, MAX_TOKENS);
        if self.heads > 0 && !self.width.is_multiple_of(self.heads) {
            found.push(format!("architecture.heads: {} does not divide width {}", self.heads, self.width));
        }
        if !self.width.is_multiple_of(2) {
            found.push(format!("architecture.width: expected an even number, got {}", self.width));
        }
        if !self.pred_action_steps_only
            && self.n_obs_steps.saturating_sub(1).saturating_add(self.n_action_steps) > self.horizon
        {
            found.push(format!(
                "architecture.n_action_steps: {} steps from step {} on do not fit into horizon {}",
                self.n_action_steps,
                self.n_obs_steps.saturating_sub(1),
                self.horizon
            ));
        }
        if !self.obs_as_cond && self.n_obs_steps > self.horizon {
            found.push(format!(
                "architecture.n_obs_steps: {} inpainted observations do not fit into horizon {}",
                self.n_obs_steps, self.horizon
            ));
        }
        if self.pred_action_steps_only && !self.obs_as_cond {
            found.push("architecture.pred_action_steps_only: needs obs_as_cond = true".into());
        }
        if self.pred_action_steps_only && self.n_action_steps > self.horizon {
            found.push(format!(
                "architecture.n_action_steps: {} is more than horizon {}",
                self.n_action_steps, self.horizon
            ));
        }
        if self.obs_as_cond && !self.time_as_cond {
            found.push("architecture.obs_as_cond: needs time_as_cond = true".into());
        }
        if !self.time_as_cond && self.condition_layers > 0 {
            found
                .push("architecture.condition_layers: an encoder-only trunk has no condition encoder".into());
        }
        if let Some(dit) = &self.dit {
            self.dit_problems(dit, found);
        }
    }

    fn dit_problems(&self, dit: &Dit, found: &mut Vec<String>) {
        if !(self.time_as_cond && self.obs_as_cond) {
            found.push("architecture.dit: needs time_as_cond = true and obs_as_cond = true".into());
        }
        if self.causal || self.condition_layers > 0 {
            found.push("architecture.dit: needs causal = false and condition_layers = 0".into());
        }
        let width = dit.timestep_width;
        if !((4..=MAX_WIDTH).contains(&width) && width.is_multiple_of(2)) {
            found.push(format!(
                "architecture.dit.timestep_width: expected an even number of 4 to {MAX_WIDTH}, got {width}"
            ));
        }
        if let Some(base) = dit.rotary_base {
            if !(base >= 1.0 && base.is_finite()) {
                found.push(format!(
                    "architecture.dit.rotary_base: expected a finite number of at least 1, got {base}"
                ));
            }
            if self.heads > 0 && !(self.width / self.heads).is_multiple_of(2) {
                let width = self.width / self.heads;
                found
                    .push(format!("architecture.dit.rotary_base: needs heads of an even width, got {width}"));
            }
        }
    }
}
