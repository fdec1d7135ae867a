//! Importing real and generated checkpoints.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::f16;
use refrain_policies::config::NormalizerMode;
use refrain_policies::import::{self, ImportError, Options};
use refrain_policies::noise_schedule::BetaSchedule;
use refrain_policies::package::{Dtype, Package, TensorData};
use refrain_policies::sampler::{PredictionType, SamplerKind, TimestepSpacing, VarianceType};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use support::{Checkpoint, fixtures, shared, small_config, tensor};

fn exact() -> Options {
    Options { dtype: Dtype::F32, ..Options::default() }
}

fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(fixtures())
        .unwrap_or_else(|e| panic!("{}: {e}", fixtures().display()))
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            (path.extension()? == "ckpt").then(|| path.file_stem().unwrap().to_str().unwrap().to_owned())
        })
        .collect();
    names.sort();
    assert!(names.len() >= 13, "found only {names:?}");
    names
}

fn fixture(name: &str) -> Package {
    let path = fixtures().join(format!("{name}.ckpt"));
    import::checkpoint(&path, &exact()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A trace's metadata and its tensors as f32.
fn trace(name: &str) -> (Value, BTreeMap<String, Vec<f32>>) {
    let bytes = fs::read(fixtures().join(format!("{name}.safetensors"))).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let meta = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["meta"]).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values =
        |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let tensors = file.iter().map(|(name, view)| (name.to_owned(), values(view.data()))).collect();
    (meta, tensors)
}

#[test]
fn every_fixture_becomes_what_its_trace_says() {
    for name in names() {
        let config = fixture(&name).config;
        let (meta, _) = trace(&name);
        let policy = &meta["policy"];
        let (model, a) = (&policy["model"], &config.architecture);
        let time_as_cond = model["time_as_cond"].as_bool().unwrap();
        let condition_layers = if time_as_cond { model["n_cond_layers"].clone() } else { json!(0) };
        let size = |n: usize| json!(n);
        for (key, got, expected) in [
            ("layers", size(a.layers), &model["n_layer"]),
            ("heads", size(a.heads), &model["n_head"]),
            ("width", size(a.width), &model["n_emb"]),
            ("condition_layers", size(a.condition_layers), &condition_layers),
            ("causal", json!(a.causal), &model["causal_attn"]),
            ("time_as_cond", json!(a.time_as_cond), &model["time_as_cond"]),
            ("obs_as_cond", json!(a.obs_as_cond), &policy["obs_as_cond"]),
            ("horizon", size(a.horizon), &policy["horizon"]),
            ("n_obs_steps", size(a.n_obs_steps), &policy["n_obs_steps"]),
            ("n_action_steps", size(a.n_action_steps), &policy["n_action_steps"]),
            ("pred_action_steps_only", json!(a.pred_action_steps_only), &policy["pred_action_steps_only"]),
            ("observation", size(config.observation.size()), &policy["obs_dim"]),
            ("action", size(config.action.size()), &policy["action_dim"]),
            ("denoised", size(config.denoised_size()), &model["input_dim"]),
            ("inference_steps", size(config.sampler.inference_steps), &policy["num_inference_steps"]),
            ("timesteps", json!(config.sampler.inference_timesteps()), &meta["timesteps"]),
        ] {
            assert_eq!(got, *expected, "{name}: {key}");
        }
        let scheduler = &policy["noise_scheduler"];
        let s = serde_json::to_value(&config.sampler).unwrap();
        assert_eq!(s["kind"], meta["sampler"], "{name}");
        for key in [
            "beta_schedule",
            "prediction_type",
            "variance_type",
            "timestep_spacing",
            "clip_sample",
            "set_alpha_to_one",
        ] {
            if let Some(expected) = scheduler.get(key) {
                assert_eq!(s[key], *expected, "{name}: {key}");
            }
        }
        let kwargs = meta["step_kwargs"].as_object().unwrap();
        for key in ["eta", "use_clipped_model_output"] {
            let expected =
                kwargs.get(key).cloned().unwrap_or(if key == "eta" { json!(0.0) } else { json!(false) });
            let near = |a: &Value, b: &Value| match (a.as_f64(), b.as_f64()) {
                (Some(a), Some(b)) => (a - b).abs() < 1e-6,
                _ => a == b,
            };
            assert!(near(&s[key], &expected), "{name}: {key}: {} is not {expected}", s[key]);
        }
        let mode = match meta["normalizer"].as_str().unwrap() {
            "gaussian" => NormalizerMode::Gaussian,
            _ => NormalizerMode::Limits,
        };
        assert_eq!(config.observation.normalizer.mode, mode, "{name}");
        let ema = if meta["use_ema"] == true { "ema_model" } else { "model" };
        assert_eq!(config.provenance.weights, ema, "{name}");
        assert_eq!(config.name, name);
        assert_eq!(config.provenance.source, format!("{name}.ckpt"));
        assert_eq!(config.provenance.source_sha256.len(), 64);
        assert!(config.provenance.notes[0].contains("rate_hz"), "{name}");
    }
}

#[test]
fn normalisers_do_what_their_traces_did() {
    for name in names() {
        let config = fixture(&name).config;
        let (_, trace) = trace(&name);
        let mut values = trace["obs_raw"].clone();
        config.observation.normalizer.normalize(&mut values);
        let worst = |a: &[f32], b: &[f32]| {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f32::max)
        };
        let difference = worst(&values, &trace["obs_norm"]);
        assert!(!(difference > 1e-5 || difference.is_nan()), "{name}: {difference}");

        let n = config.action.size();
        let size = config.denoised_size();
        let mut actions: Vec<f32> =
            trace["trajectory_norm"].chunks(size).flat_map(|row| row[..n].to_vec()).collect();
        config.action.normalizer.unnormalize(&mut actions);
        let difference = worst(&actions, &trace["action_pred"]);
        assert!(!(difference > 1e-5 || difference.is_nan()), "{name}: {difference}");
        // The comparison can fail.
        actions[0] += 0.1;
        assert!(worst(&actions, &trace["action_pred"]) > 1e-5, "{name}");
    }
}

#[test]
fn odd_storages_give_the_values_they_mean() {
    let package = fixture("storages");
    assert!(package.weights.iter().all(|(_, t)| t.to_f32().iter().all(|v| v.is_finite())));
    // Views into one storage: gain around 1, bias around 0.
    let mean = |name: &str| {
        let values = package.weights.get(name).unwrap().to_f32();
        values.iter().sum::<f32>() / values.len() as f32
    };
    assert!((mean("ln_f.weight") - 1.0).abs() < 0.5, "{}", mean("ln_f.weight"));
    assert!(mean("ln_f.bias").abs() < 0.5, "{}", mean("ln_f.bias"));
    assert_eq!(package.config.observation.normalizer.scale, [1.0; 5], "one parameter serves all elements");
}

#[test]
fn views_give_exactly_the_values_they_mean() {
    let mut checkpoint = Checkpoint::small();
    let stored = |entries: &mut BTreeMap<String, Vec<u8>>, key: &str, bytes: Vec<Vec<u8>>| {
        entries.insert(format!("data/{key}"), bytes.concat());
    };
    let numbers = || (0..20).map(|i| i as f32 - 7.25);
    let entries = &mut checkpoint.entries;
    stored(entries, "f32", numbers().map(|v| v.to_le_bytes().to_vec()).collect());
    stored(entries, "f64", numbers().map(|v| f64::from(v).to_le_bytes().to_vec()).collect());
    stored(entries, "f16", numbers().map(|v| f16::from_f32(v).to_le_bytes().to_vec()).collect());
    stored(entries, "bf16", numbers().map(|v| half::bf16::from_f32(v).to_le_bytes().to_vec()).collect());
    let kinds = [
        ("f32", "FloatStorage"),
        ("f64", "DoubleStorage"),
        ("f16", "HalfStorage"),
        ("bf16", "BFloat16Storage"),
    ];
    for (key, storage) in kinds {
        for (strides, offset) in
            [([4, 1], 0), ([4, 1], 3), ([1, 2], 0), ([1, 2], 5), ([5, 2], 1), ([0, 1], 2)]
        {
            // head.weight is [2, 4].
            let at = |i: usize| offset + i / 4 * strides[0] + i % 4 * strides[1];
            let expected: Vec<f32> = (0..8).map(|i| at(i) as f32 - 7.25).collect();
            let signed = strides.map(|s| s as i64);
            let view = tensor(key, storage, &[2, 4], Some(&signed), offset as i64, 20);
            checkpoint.described.insert("model.head.weight".into(), view);
            let package = checkpoint.import(&exact()).unwrap();
            let got = package.weights.get("head.weight").unwrap().to_f32();
            assert_eq!(got, expected, "{storage} {strides:?} {offset}");
        }
    }
}

#[test]
fn the_shipped_packages_are_what_the_checkpoints_give() {
    let Some(shared) = shared() else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (checkpoint, name) in [("pusht_lowdim_dpt", "pusht"), ("pusht_lowdim_dpt_small", "pusht-small")] {
        let options = Options {
            name: Some(name.into()),
            license: Some("MIT OR Apache-2.0".into()),
            ..Options::default()
        };
        let path = shared.join(format!("pusht/{checkpoint}.ckpt"));
        let mut imported = import::checkpoint(&path, &options).unwrap();
        let shipped = Package::load(&folder.join(name)).unwrap();
        // Chosen after the import, out of the package's schedules.
        imported.config.default_schedule.clone_from(&shipped.config.default_schedule);
        assert_eq!(imported.config, shipped.config);
        assert_eq!(imported.weights_sha256(), shipped.weights_sha256());
        assert!(imported.weights == shipped.weights, "{name}: other weights");
        assert_eq!(imported.config.rate_hz, 10.0);
        assert_eq!(imported.config.provenance.weights, "ema_model");
    }
}

#[test]
fn a_small_checkpoint_gives_its_configuration_and_values() {
    let checkpoint = Checkpoint::small();
    let package = checkpoint.import(&exact()).unwrap();
    let mut expected = small_config();
    expected.provenance = package.config.provenance.clone();
    assert_eq!(package.config, expected);
    for (name, tensor) in package.weights.iter() {
        let (shape, values) = &checkpoint.tensors[&format!("model.{name}")];
        assert_eq!((&tensor.shape, &tensor.to_f32()), (shape, values), "{name}");
    }
    let half = checkpoint.import(&Options::default()).unwrap();
    for (name, tensor) in half.weights.iter() {
        let expected: Vec<f16> =
            package.weights.get(name).unwrap().to_f32().iter().map(|&v| f16::from_f32(v)).collect();
        assert_eq!(tensor.data, TensorData::F16(expected), "{name}");
    }
    // Deflated as well.
    let deflated = Checkpoint { method: zip::CompressionMethod::Deflated, ..checkpoint };
    assert!(deflated.import(&exact()).unwrap().weights == package.weights);
}

#[test]
fn the_users_options_win() {
    let options =
        Options { name: Some("mine".into()), rate_hz: Some(7.5), license: Some("MIT".into()), ..exact() };
    let config = Checkpoint::small().import(&options).unwrap().config;
    assert_eq!((&config.name[..], config.rate_hz, &config.provenance.license[..]), ("mine", 7.5, "MIT"));
    let bad = Checkpoint::small().import(&Options { rate_hz: Some(f64::NAN), ..exact() }).unwrap_err();
    assert!(bad.to_string().contains("rate_hz"), "{bad}");
    let bad = Checkpoint::small().import(&Options { name: Some(String::new()), ..exact() }).unwrap_err();
    assert!(bad.to_string().contains("name: is empty"), "{bad}");
}

#[test]
fn every_scheduler_option_is_taken_over() {
    let with = |changes: Value| {
        let mut checkpoint = Checkpoint::small();
        let scheduler = checkpoint.cfg["policy"]["noise_scheduler"].as_object_mut().unwrap();
        for (key, value) in changes.as_object().unwrap() {
            if value.is_null() {
                drop(scheduler.remove(key))
            } else {
                drop(scheduler.insert(key.clone(), value.clone()))
            }
        }
        checkpoint.import(&exact()).unwrap_or_else(|e| panic!("{changes}: {e}")).config.sampler
    };
    for (name, expected) in [
        ("linear", BetaSchedule::Linear),
        ("scaled_linear", BetaSchedule::ScaledLinear),
        ("squaredcos_cap_v2", BetaSchedule::SquaredcosCapV2),
        ("sigmoid", BetaSchedule::Sigmoid),
        ("laplace", BetaSchedule::Laplace),
    ] {
        assert_eq!(with(json!({"beta_schedule": name})).beta_schedule, expected);
    }
    for (name, expected) in [
        ("fixed_small", VarianceType::FixedSmall),
        ("fixed_small_log", VarianceType::FixedSmallLog),
        ("fixed_large", VarianceType::FixedLarge),
        ("fixed_large_log", VarianceType::FixedLargeLog),
    ] {
        assert_eq!(with(json!({"variance_type": name})).variance_type, expected);
    }
    assert_eq!(with(json!({"prediction_type": "sample"})).prediction_type, PredictionType::Sample);
    assert_eq!(with(json!({"prediction_type": "v_prediction"})).prediction_type, PredictionType::VPrediction);
    assert_eq!(with(json!({"timestep_spacing": "trailing"})).timestep_spacing, TimestepSpacing::Trailing);
    assert_eq!(with(json!({"steps_offset": 1})).steps_offset, 1);
    assert_eq!(with(json!({"clip_sample_range": 2})).clip_sample_range, 2.0);
    assert!(!with(json!({"clip_sample": false, "thresholding": false, "sample_max_value": 1.0})).clip_sample);
    assert_eq!(with(json!({"trained_betas": vec![0.1; 10]})).trained_betas, [0.1; 10]);
    // diffusers' own defaults.
    let bare = with(json!({
        "beta_start": null, "beta_end": null, "beta_schedule": null, "variance_type": null,
        "clip_sample": null, "prediction_type": null, "num_train_timesteps": null,
    }));
    assert_eq!((bare.train_steps, bare.beta_start, bare.beta_end), (1000, 1e-4, 0.02));
    assert_eq!(bare.beta_schedule, BetaSchedule::Linear);
    assert!(bare.clip_sample);
    let ddim = with(json!({
        "_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler", "variance_type": null,
        "set_alpha_to_one": false,
    }));
    assert_eq!((ddim.kind, ddim.set_alpha_to_one, ddim.eta), (SamplerKind::Ddim, false, 0.0));
}

#[test]
fn plain_weights_with_their_policy_toml() {
    let dir = tempfile::tempdir().unwrap();
    let package = Checkpoint::small().import(&exact()).unwrap();
    package.save(dir.path()).unwrap();
    let toml: PathBuf = dir.path().join("policy.toml");
    let weights = dir.path().join("exported.safetensors");
    let stored = fs::read(dir.path().join("weights.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&stored).unwrap();
    let mask = [0u8; 64];
    let mask = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![4, 4], &mask).unwrap();
    let views = file.iter().map(|(name, view)| (format!("model.{name}"), view));
    let views = views.chain([("model.mask".to_owned(), mask)]);
    safetensors::serialize_to_file(views, None, &weights).unwrap();
    let again = import::safetensors(&toml, &weights, &exact()).unwrap();
    assert_eq!(again.config, package.config);
    assert!(again.weights == package.weights);
    let renamed = Options { name: Some("half".into()), ..Options::default() };
    let half = import::safetensors(&toml, &weights, &renamed).unwrap();
    assert_eq!((&half.config.name[..], half.weights.bytes()), ("half", package.weights.bytes() / 2));

    let missing = import::safetensors(&toml, &dir.path().join("none"), &exact());
    assert!(matches!(missing, Err(ImportError::Read { .. })));
    fs::write(&weights, b"not safetensors").unwrap();
    assert!(matches!(import::safetensors(&toml, &weights, &exact()), Err(ImportError::Package(_))));
    fs::write(&toml, b"\xff").unwrap();
    assert!(matches!(import::safetensors(&toml, &weights, &exact()), Err(ImportError::Package(_))));
}
