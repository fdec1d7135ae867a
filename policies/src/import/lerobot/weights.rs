//! From `model.safetensors` to a package's weights.
//!
//! LeRobot conditions a block by `W silu([timestep | per step: state, cameras, text]) + b`. The text is the same in every
//! inference, so what it adds goes into the bias; the columns of cameras and state change places; what the timestep and what
//! the observation adds become two products. Layers lie one below the other.

use std::collections::BTreeSet;
use std::path::Path;

use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

use super::{Config, DIT};
use crate::config::PolicyConfig;
use crate::import::{ImportError, read, store, tensors};
use crate::package::{Dtype, MAX_WEIGHTS_BYTES, Tensor, Weights, expected_tensors, hex, shown};

const FILE: &str = "model.safetensors";
/// What `export_lerobot.py` writes of the text.
const TEXT: &str = "text.safetensors";
/// Largest file of text features, bytes.
const MAX_TEXT: u64 = 1 << 20;
/// The denoiser's tensors.
const DENOISER: &str = "noise_predictor.";
/// Tensors of what `export_lerobot.py` exports.
const ENCODERS: &str = "observation_encoder.";

/// What the policy is told to do.
pub(super) struct Text {
    pub(super) task: String,
    /// `[D]`.
    features: Vec<f32>,
}

/// The content of the file, and its tensors.
pub(super) struct Source<'a> {
    bytes: &'a [u8],
    tensors: SafeTensors<'a>,
}

/// The file's content; `None` if there is no such file.
pub(super) fn bytes(folder: &Path, problems: &mut Vec<String>) -> Result<Option<Vec<u8>>, ImportError> {
    let path = folder.join(FILE);
    if !path.is_file() {
        problems.push(format!("{FILE}: is missing; expected the whole folder that save_pretrained writes"));
        return Ok(None);
    }
    read(&path, MAX_WEIGHTS_BYTES).map(Some)
}

/// Reads the text's features out of the folder of encoders.
pub(super) fn text(folder: &Path, width: usize) -> Result<Text, String> {
    let bytes = read(&folder.join(TEXT), MAX_TEXT).map_err(|error| error.to_string())?;
    let wrong = |error: String| format!("{TEXT}: {error}; export it again");
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| wrong(error.to_string()))?;
    let task =
        header.metadata().as_ref().and_then(|metadata| metadata.get("task")).map_or("not named", |t| t);
    let file = SafeTensors::deserialize(&bytes).map_err(|error| wrong(error.to_string()))?;
    let features = file.tensor("features").map_err(|error| wrong(error.to_string()))?;
    let features = tensors::from_safetensors(&features).map_err(wrong)?;
    if features.len() != width || features.iter().any(|v| !v.is_finite()) {
        return Err(wrong(format!("features: expected {width} finite numbers, got {}", features.len())));
    }
    Ok(Text { task: task.chars().take(200).collect(), features })
}

impl<'a> Source<'a> {
    pub(super) fn new(bytes: &'a [u8], problems: &mut Vec<String>) -> Option<Self> {
        match SafeTensors::deserialize(bytes) {
            Ok(tensors) => Some(Self { bytes, tensors }),
            Err(error) => {
                problems.push(format!("{FILE}: {error}; save the policy again"));
                None
            }
        }
    }

    pub(super) fn sha256(&self) -> String {
        hex(Sha256::digest(self.bytes))
    }

    /// How many features each camera has: what the blocks take beyond timestep, state and text, divided among them.
    pub(super) fn features(&self, c: &Config, state: usize, cameras: usize) -> Result<usize, String> {
        let name = modulation(0, "weight");
        let shape = self.tensors.tensor(&name).map(|view| view.shape().to_vec());
        let &[_, taken] =
            &shape.map_err(|_| format!("{name}: is missing; expected the denoiser of {DIT}"))?[..]
        else {
            return Err(format!("{name}: expected two sizes"));
        };
        let divided = || {
            let steps = taken.checked_sub(c.timestep_embed_dim)?;
            let step = steps.checked_div(c.n_obs_steps).filter(|step| step * c.n_obs_steps == steps)?;
            let left = step.checked_sub(state)?.checked_sub(c.hidden_dim)?;
            match cameras {
                0 => (left == 0).then_some(0),
                _ => Some(left / cameras).filter(|features| *features > 0 && features * cameras == left),
            }
        };
        divided().ok_or_else(|| {
            format!(
                "{name}: expected {} of the timestep and, {} times, {state} of the state, {} of the text and equal features of {cameras} cameras, got {taken} columns",
                c.timestep_embed_dim, c.n_obs_steps, c.hidden_dim
            )
        })
    }

    /// The package's weights; the configuration must be free of problems.
    pub(super) fn weights(
        &self,
        config: &PolicyConfig,
        positions: bool,
        text: &Text,
        dtype: Dtype,
    ) -> Result<Weights, ImportError> {
        let mut reader = Reader { source: self, taken: BTreeSet::new(), problems: Vec::new() };
        let modulation = reader.modulation(config, text);
        let mut weights = Weights::default();
        for (name, shape) in expected_tensors(config) {
            let values = match name.strip_prefix("modulation.") {
                Some(part) => modulation.part(part),
                None if name == "pos_emb" && !positions => vec![0.0; shape.iter().product()],
                None => reader.tensor(&source_name(&name, config), &shape),
            };
            match store(values, dtype) {
                Ok(data) => drop(weights.insert(name, Tensor { shape, data })),
                Err(problem) => reader.problems.push(format!("{FILE}: {name}: {problem}")),
            }
        }
        for name in self.tensors.names() {
            if !name.starts_with(ENCODERS) && !reader.taken.contains(name) {
                reader.problems.push(format!("{FILE}: unexpected tensor {}", shown(name)));
            }
        }
        if reader.problems.is_empty() { Ok(weights) } else { Err(ImportError::Unsupported(reader.problems)) }
    }
}

fn modulation(layer: usize, part: &str) -> String {
    format!("{DENOISER}transformer_blocks.{layer}.adaLN_modulation.1.{part}")
}

/// LeRobot's name of a tensor of the package.
fn source_name(name: &str, config: &PolicyConfig) -> String {
    let rotary = config.architecture.dit.as_ref().is_some_and(|dit| dit.rotary_base.is_some());
    let [attention, together] = if rotary { ["attn", "qkv_proj."] } else { ["multihead_attn", "in_proj_"] };
    let name = name.replace("encoder.layers.", "transformer_blocks.");
    let names = [
        ("input_emb.", "input_proj."),
        ("head.", "output_proj."),
        ("time_emb.0.", "time_mlp.1."),
        ("time_emb.2.", "time_mlp.3."),
        ("linear1.", "mlp.0."),
        ("linear2.", "mlp.2."),
        ("self_attn", attention),
        ("in_proj_", together),
    ];
    let name = names.iter().fold(name, |name, (ours, theirs)| name.replace(ours, theirs));
    format!("{DENOISER}{}", if name == "pos_emb" { "pos_embedding".to_owned() } else { name })
}

/// Adaptive LayerNorm of all layers.
#[derive(Default)]
struct Modulation {
    time: Vec<f32>,
    observation: Vec<f32>,
    bias: Vec<f32>,
}

impl Modulation {
    fn part(&self, part: &str) -> Vec<f32> {
        match part {
            "time.weight" => self.time.clone(),
            "observation.weight" => self.observation.clone(),
            "observation.bias" => self.bias.clone(),
            // LeRobot has one bias for both, and it stands with the observation's.
            _ => vec![0.0; self.bias.len()],
        }
    }
}

/// Takes tensors out, and notes which and what is wrong.
struct Reader<'a> {
    source: &'a Source<'a>,
    taken: BTreeSet<String>,
    problems: Vec<String>,
}

impl Reader<'_> {
    /// Values of a tensor; zeros where there is a problem.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Vec<f32> {
        self.taken.insert(name.to_owned());
        let values = match self.source.tensors.tensor(name) {
            Err(_) => Err(format!("is missing, expected shape {shape:?}")),
            Ok(view) if view.shape() != shape => {
                Err(format!("expected shape {shape:?}, got {:?}", view.shape()))
            }
            Ok(view) => tensors::from_safetensors(&view),
        };
        values.unwrap_or_else(|problem| {
            self.problems.push(format!("{FILE}: {name}: {problem}"));
            // A shape that is not in the file may be any size.
            Vec::new()
        })
    }

    fn modulation(&mut self, config: &PolicyConfig, text: &Text) -> Modulation {
        let a = &config.architecture;
        let time = a.dit.as_ref().map_or(0, |dit| dit.timestep_width);
        let (state, cameras) =
            (config.observation.size(), config.condition_size() - config.observation.size());
        let step = state + cameras + text.features.len();
        let (rows, columns) = (6 * a.width, time + a.n_obs_steps * step);
        let silu: Vec<f64> =
            text.features.iter().map(|v| f64::from(*v)).map(|v| v / (1.0 + (-v).exp())).collect();
        let mut all = Modulation::default();
        for layer in 0..a.layers {
            let weight = self.tensor(&modulation(layer, "weight"), &[rows, columns]);
            let bias = self.tensor(&modulation(layer, "bias"), &[rows]);
            for (row, bias) in weight.chunks_exact(columns).zip(bias) {
                let (of_time, of_steps) = row.split_at(time);
                all.time.extend(of_time);
                let mut bias = f64::from(bias);
                for of_step in of_steps.chunks_exact(step) {
                    let (of_state, rest) = of_step.split_at(state);
                    let (of_cameras, of_text) = rest.split_at(cameras);
                    all.observation.extend(of_cameras);
                    all.observation.extend(of_state);
                    bias += of_text.iter().zip(&silu).map(|(w, v)| f64::from(*w) * v).sum::<f64>();
                }
                all.bias.push(bias as f32);
            }
        }
        all
    }
}
