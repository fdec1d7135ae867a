//! Makes small checkpoints, sound and broken, as torch would write them.
#![allow(dead_code, reason = "every test file uses another part of it")]

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::path::PathBuf;

use refrain_policies::config::{Architecture, Normalizer, NormalizerMode, PolicyConfig, Provenance, Signal};
use refrain_policies::import::{ImportError, Options, checkpoint_from};
use refrain_policies::noise_schedule::BetaSchedule;
use refrain_policies::package::{Package, Tensor, TensorData, Weights, expected_tensors};
use refrain_policies::sampler::{PredictionType, SamplerConfig, SamplerKind, TimestepSpacing, VarianceType};
use serde_json::{Value, json};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A value to pickle.
#[derive(Clone, Debug)]
pub(crate) enum Py {
    Json(Value),
    Int(i64),
    Tuple(Vec<Py>),
    Dict(Vec<(String, Py)>),
    Global(&'static str, &'static str),
    Call(&'static str, &'static str, Vec<Py>),
    Storage(Box<Py>),
    /// Operations as they are.
    Raw(Vec<u8>),
}

impl Py {
    pub(crate) fn text(text: &str) -> Self {
        Self::Json(text.into())
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Py::Json(value) => write_json(value, out),
            Py::Int(value) => {
                out.extend([0x8a, 8]);
                out.extend(value.to_le_bytes());
            }
            Py::Tuple(elements) => {
                out.push(b'(');
                elements.iter().for_each(|e| e.write(out));
                out.push(b't');
            }
            Py::Dict(items) => {
                out.extend(b"}(");
                for (key, value) in items {
                    write_json(&json!(key), out);
                    value.write(out);
                }
                out.push(b'u');
            }
            Py::Global(module, name) => out.extend(format!("c{module}\n{name}\n").bytes()),
            Py::Call(module, name, args) => {
                Py::Global(module, name).write(out);
                Py::Tuple(args.clone()).write(out);
                out.push(b'R');
            }
            Py::Storage(id) => {
                id.write(out);
                out.push(b'Q');
            }
            Py::Raw(bytes) => out.extend(bytes),
        }
    }
}

fn write_json(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(b'N'),
        Value::Bool(true) => out.push(0x88),
        Value::Bool(false) => out.push(0x89),
        Value::Number(n) => match n.as_i64() {
            Some(n) => Py::Int(n).write(out),
            None => {
                out.push(b'G');
                out.extend(n.as_f64().unwrap().to_be_bytes());
            }
        },
        Value::String(text) => {
            out.push(b'X');
            out.extend((text.len() as u32).to_le_bytes());
            out.extend(text.bytes());
        }
        Value::Array(elements) => {
            out.extend(b"](");
            elements.iter().for_each(|e| write_json(e, out));
            out.push(b'e');
        }
        Value::Object(items) => {
            let items = items.iter().map(|(key, value)| (key.clone(), Py::Json(value.clone()))).collect();
            Py::Dict(items).write(out);
        }
    }
}

/// A pickle of protocol 2.
pub(crate) fn pickle(value: &Py) -> Vec<u8> {
    let mut out = b"\x80\x02".to_vec();
    value.write(&mut out);
    out.push(b'.');
    out
}

/// A zip archive of entries.
pub(crate) fn zip(entries: &[(String, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in entries {
        zip.start_file(name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A checkpoint to be written; change what shall be wrong with it.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) cfg: Value,
    /// Shape and values of the tensors in `state_dicts.model`.
    pub(crate) tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    /// Tensors that are described by hand.
    pub(crate) described: BTreeMap<String, Py>,
    /// Further entries of the archive, or other content for existing ones.
    pub(crate) entries: BTreeMap<String, Vec<u8>>,
    pub(crate) method: CompressionMethod,
}

impl Checkpoint {
    pub(crate) fn small() -> Self {
        let config = small_config();
        let mut tensors = BTreeMap::new();
        let mut seed = 0u32;
        let mut values = |n: usize| -> Vec<f32> {
            (0..n)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (seed >> 8) as f32 / (1 << 24) as f32 - 0.5
                })
                .collect()
        };
        for (name, shape) in expected_tensors(&config) {
            let n = shape.iter().product();
            tensors.insert(format!("model.{name}"), (shape, values(n)));
        }
        tensors.insert("model.mask".into(), (vec![4, 4], vec![0.0; 16]));
        tensors.insert("model.memory_mask".into(), (vec![4, 3], vec![0.0; 12]));
        tensors.insert("_dummy_variable".into(), (vec![0], vec![]));
        for (field, size) in [("obs", 3), ("action", 2)] {
            for (part, value) in
                [("scale", 2.0), ("offset", 0.0), ("input_stats.min", -0.5), ("input_stats.max", 0.5)]
            {
                let name = format!("normalizer.params_dict.{field}.{part}");
                tensors.insert(name, (vec![size], vec![value; size]));
            }
        }
        Self {
            cfg: small_cfg(),
            tensors,
            described: BTreeMap::new(),
            entries: BTreeMap::new(),
            method: CompressionMethod::Stored,
        }
    }

    /// The same policy as a hybrid one: two cameras of two features each stand before and between its three
    /// low-dimensional numbers.
    pub(crate) fn hybrid() -> Self {
        let mut checkpoint = Self::small();
        let policy = checkpoint.cfg["policy"].as_object_mut().unwrap();
        let model = policy.remove("model").unwrap();
        policy.retain(|key, _| !matches!(&key[..], "obs_dim" | "action_dim"));
        for key in ["n_layer", "n_head", "n_emb", "p_drop_emb", "p_drop_attn", "n_cond_layers"] {
            policy.insert(key.into(), model[key].clone());
        }
        policy.insert(
            "_target_".into(),
            json!("diffusion_policy.policy.diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy"),
        );
        policy.insert("crop_shape".into(), json!([6, 7]));
        policy.insert("eval_fixed_crop".into(), json!(true));
        policy.insert("shape_meta".into(), json!("${task.shape_meta}"));
        // Keys of a json object come sorted.
        checkpoint.cfg["task"]["shape_meta"] = json!({
            "obs": {
                "a_front": { "shape": [3, 8, 9], "type": "rgb" }, "b_arm": { "shape": [2] },
                "c_wrist": { "shape": [1, 8, 9], "type": "rgb" }, "d_hand": { "shape": [1], "type": "low_dim" },
            },
            "action": { "shape": [2] },
        });
        let tensors = &mut checkpoint.tensors;
        let obs = |part: &str| format!("normalizer.params_dict.obs.{part}");
        for (part, value) in
            [("scale", 2.0), ("offset", 0.0), ("input_stats.min", -0.5), ("input_stats.max", 0.5)]
        {
            tensors.remove(&obs(part));
            for (key, size) in [("b_arm", 2), ("d_hand", 1)] {
                tensors
                    .insert(format!("normalizer.params_dict.{key}.{part}"), (vec![size], vec![value; size]));
            }
        }
        for key in ["a_front", "c_wrist"] {
            for (part, value) in [("scale", 2.0), ("offset", -1.0)] {
                tensors.insert(format!("normalizer.params_dict.{key}.{part}"), (vec![1], vec![value]));
            }
            tensors.insert(format!("obs_encoder.obs_nets.{key}.weight"), (vec![1], vec![0.0]));
        }
        // [4, 7], every value its column.
        let columns = (0..28).map(|i| (i % 7) as f32).collect();
        tensors.insert("model.cond_obs_emb.weight".into(), (vec![4, 7], columns));
        checkpoint
    }

    /// The archive's entries; every tensor has its own storage.
    pub(crate) fn to_entries(&self) -> Vec<(String, Vec<u8>)> {
        let mut entries = BTreeMap::from([("byteorder".to_owned(), b"little".to_vec())]);
        let mut state = Vec::new();
        for (i, (name, (shape, values))) in self.tensors.iter().enumerate() {
            if !self.described.contains_key(name) {
                state.push((
                    name.clone(),
                    tensor(&format!("{i}"), "FloatStorage", shape, None, 0, values.len()),
                ));
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                entries.insert(format!("data/{i}"), bytes);
            }
        }
        state.extend(self.described.iter().map(|(name, tensor)| (name.clone(), tensor.clone())));
        let root = Py::Dict(vec![
            ("cfg".into(), Py::Json(self.cfg.clone())),
            ("state_dicts".into(), Py::Dict(vec![("model".into(), Py::Dict(state))])),
            ("pickles".into(), Py::Dict(Vec::new())),
        ]);
        entries.insert("data.pkl".into(), pickle(&root));
        entries.extend(self.entries.clone());
        entries.into_iter().map(|(name, content)| (format!("archive/{name}"), content)).collect()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        zip(&self.to_entries(), self.method)
    }

    pub(crate) fn import(&self, options: &Options) -> Result<Package, ImportError> {
        import(&self.bytes(), options)
    }
}

pub(crate) fn import(bytes: &[u8], options: &Options) -> Result<Package, ImportError> {
    checkpoint_from(Cursor::new(bytes), "small.ckpt", options)
}

/// The description of a tensor; contiguous without strides.
pub(crate) fn tensor(
    key: &str,
    storage: &'static str,
    shape: &[usize],
    strides: Option<&[i64]>,
    offset: i64,
    elements: usize,
) -> Py {
    let sizes = Py::Tuple(shape.iter().map(|&n| Py::Int(n as i64)).collect());
    let contiguous: Vec<i64> =
        (0..shape.len()).map(|i| shape[i + 1..].iter().product::<usize>() as i64).collect();
    let strides = Py::Tuple(strides.unwrap_or(&contiguous).iter().map(|&n| Py::Int(n)).collect());
    let storage = Py::Storage(Box::new(Py::Tuple(vec![
        Py::text("storage"),
        Py::Global("torch", storage),
        Py::text(key),
        Py::text("cpu"),
        Py::Int(elements as i64),
    ])));
    let rest = vec![Py::Json(false.into()), Py::Call("collections", "OrderedDict", vec![])];
    Py::Call(
        "torch._utils",
        "_rebuild_tensor_v2",
        [vec![storage, Py::Int(offset), sizes, strides], rest].concat(),
    )
}

fn small_cfg() -> Value {
    json!({
        "task_name": "small", "n_latency_steps": 0, "past_action_visible": false,
        "policy": {
            "_target_": "diffusion_policy.policy.diffusion_transformer_lowdim_policy.DiffusionTransformerLowdimPolicy",
            "model": {
                "_target_": "diffusion_policy.model.diffusion.transformer_for_diffusion.TransformerForDiffusion",
                "input_dim": 2, "output_dim": 2, "horizon": 4, "n_obs_steps": 2, "cond_dim": 3, "n_layer": 1,
                "n_head": 2, "n_emb": 4, "p_drop_emb": 0.0, "p_drop_attn": 0.3, "causal_attn": true,
                "time_as_cond": true, "obs_as_cond": true, "n_cond_layers": 0,
            },
            "noise_scheduler": {
                "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
                "num_train_timesteps": 10, "beta_start": 0.0001, "beta_end": 0.02,
                "beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_small", "clip_sample": true,
                "prediction_type": "epsilon",
            },
            "horizon": 4, "obs_dim": 3, "action_dim": 2, "n_action_steps": 2, "n_obs_steps": 2,
            "num_inference_steps": 5, "obs_as_cond": true, "pred_action_steps_only": false,
        },
        "training": { "use_ema": false },
        "task": { "env_runner": { "fps": 20 } },
    })
}

/// What [`Checkpoint::small`] is imported as, but for its provenance.
pub(crate) fn small_config() -> PolicyConfig {
    let signal = |name: &str, n: usize| Signal {
        names: (0..n).map(|i| format!("{name}_{i}")).collect(),
        units: vec!["1".into(); n],
        normalizer: Normalizer {
            mode: NormalizerMode::Limits,
            scale: vec![2.0; n],
            offset: vec![0.0; n],
            min: vec![-0.5; n],
            max: vec![0.5; n],
        },
    };
    PolicyConfig {
        format: 1,
        name: "small".into(),
        rate_hz: 20.0,
        default_schedule: None,
        architecture: Architecture {
            layers: 1,
            heads: 2,
            width: 4,
            condition_layers: 0,
            causal: true,
            time_as_cond: true,
            obs_as_cond: true,
            horizon: 4,
            n_obs_steps: 2,
            n_action_steps: 2,
            pred_action_steps_only: false,
            dit: None,
        },
        observation: signal("obs", 3),
        action: signal("action", 2),
        cameras: Vec::new(),
        sampler: SamplerConfig {
            kind: SamplerKind::Ddpm,
            inference_steps: 5,
            train_steps: 10,
            beta_schedule: BetaSchedule::SquaredcosCapV2,
            beta_start: 0.0001,
            beta_end: 0.02,
            trained_betas: vec![],
            rescale_betas_zero_snr: false,
            prediction_type: PredictionType::Epsilon,
            clip_sample: true,
            clip_sample_range: 1.0,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
            timesteps: vec![],
            variance_type: VarianceType::FixedSmall,
            eta: 0.0,
            set_alpha_to_one: true,
            use_clipped_model_output: false,
        },
        provenance: Provenance::default(),
    }
}

/// A small policy's package, of ones.
pub(crate) fn small_weights(config: &PolicyConfig) -> Weights {
    expected_tensors(config)
        .into_iter()
        .map(|(name, shape)| {
            let data = TensorData::F32(vec![1.0; shape.iter().product()]);
            (name, Tensor { shape, data })
        })
        .collect()
}

/// The folder with shared data; `None`, said loudly, if it is not there.
pub(crate) fn shared() -> Option<PathBuf> {
    let default = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let folder = std::env::var_os("REFRAIN_SHARED").map_or_else(default, PathBuf::from);
    if folder.join("pusht").is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED: no shared data at {}; set REFRAIN_SHARED to its folder", folder.display());
    None
}

/// The folder of fixtures.
pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// Peak and current memory of this process, bytes; `None` where the system does not tell.
pub(crate) fn memory() -> Option<(usize, usize)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| -> Option<usize> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().trim_end_matches("kB").trim().parse::<usize>().ok()? * 1024)
    };
    Some((field("VmHWM:")?, field("VmRSS:")?))
}
