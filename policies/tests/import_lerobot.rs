//! LeRobot folders: what becomes of them, what is refused by name, and the page of what is supported.
//!
//! The folders are LeRobot's own (`policies/train/make_lerobot_fixtures.py`), changed here and there.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use refrain_policies::config::NormalizerMode;
use refrain_policies::import::{Options, lerobot, supported};
use refrain_policies::package::{Dtype, Package};
use refrain_policies::sampler::{PredictionType, SamplerKind};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/lerobot").join(name)
}

fn options(folder: &Path) -> Options {
    Options { dtype: Dtype::F32, encoders: Some(folder.join("encoders")), ..Options::default() }
}

/// A copy of a folder that a test may change.
fn copy(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    fs::create_dir(copy.path().join("encoders")).unwrap();
    for part in ["", "encoders"] {
        for entry in fs::read_dir(fixture(name).join(part)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::copy(&path, copy.path().join(part).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    copy
}

/// A copy with one value of a JSON file changed; null takes it away.
fn changed(file: &str, path: &str, value: Value) -> tempfile::TempDir {
    let folder = copy("rotary_cameras");
    let place = folder.path().join(file);
    let mut json: Value = serde_json::from_slice(&fs::read(&place).unwrap()).unwrap();
    let (parent, key) = path.rsplit_once('/').unwrap();
    match json.pointer_mut(parent).unwrap() {
        Value::Object(object) if value.is_null() => drop(object.remove(key)),
        Value::Object(object) => drop(object.insert(key.into(), value)),
        Value::Array(array) if value.is_null() => drop(array.remove(key.parse().unwrap())),
        Value::Array(array) => array[key.parse::<usize>().unwrap()] = value,
        _ => panic!("{path}"),
    }
    fs::write(place, json.to_string()).unwrap();
    folder
}

fn says(folder: &Path, parts: &[&str]) {
    let error = lerobot(folder, &options(folder)).expect_err("a refusal").to_string();
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn a_folder_becomes_a_package() {
    let folder = fixture("rotary_cameras");
    let package = lerobot(&folder, &options(&folder)).unwrap();
    let (c, a) = (&package.config, &package.config.architecture);
    assert_eq!((&c.name[..], a.layers, a.heads, a.width), ("rotary_cameras", 2, 2, 16));
    let dit = a.dit.as_ref().unwrap();
    assert_eq!((dit.timestep_width, dit.rotary_base), (8, Some(10000.0)));
    // As the file has them, not by the alphabet.
    let cameras: Vec<(&str, usize)> =
        c.cameras.iter().map(|camera| (&camera.name[..], camera.features)).collect();
    assert_eq!(cameras, [("wrist", 8), ("top", 8)]);
    assert_eq!(
        (c.cameras[0].size, c.cameras[0].crop, c.cameras[0].mean.len()),
        ([18, 20], Some([16, 16]), 3)
    );
    assert_eq!(c.observation.names, ["state_0", "state_1", "state_2", "state_3"]);
    assert_eq!(c.observation.normalizer.mode, NormalizerMode::Limits);
    assert_eq!(
        (c.sampler.kind, c.sampler.inference_steps, c.sampler.train_steps),
        (SamplerKind::Ddim, 6, 50)
    );
    assert_eq!(c.rate_hz, 10.0);
    assert_eq!(c.provenance.notes[0], "task: push the block");
    // What was imported is saved and loaded again.
    let saved = tempfile::tempdir().unwrap();
    package.save(saved.path()).unwrap();
    let loaded = Package::load(saved.path()).unwrap();
    assert_eq!((&loaded.config, &loaded.weights), (&package.config, &package.weights));

    let folder = fixture("positions_state");
    let c = lerobot(&folder, &Options { rate_hz: Some(30.0), ..options(&folder) }).unwrap().config;
    assert_eq!((c.rate_hz, c.cameras.len(), c.architecture.dit.unwrap().rotary_base), (30.0, 0, None));
    assert_eq!((c.sampler.kind, c.sampler.prediction_type), (SamplerKind::Ddpm, PredictionType::Sample));
    assert_eq!(c.observation.normalizer.mode, NormalizerMode::Gaussian);
}

#[test]
fn what_never_varied_is_only_shifted() {
    for (name, normalised) in [("rotary_cameras", -1.0), ("positions_state", 0.0)] {
        let folder = fixture(name);
        let config = lerobot(&folder, &options(&folder)).unwrap().config;
        let (state, action) = (&config.observation.normalizer, &config.action.normalizer);
        let all_the_time = state.min[3];
        assert_eq!(
            (state.scale[3], state.max[3], action.min[action.max.len() - 1]),
            (1.0, all_the_time, all_the_time)
        );
        let mut values = [state.min.clone(), state.max.clone()].concat();
        state.normalize(&mut values);
        assert_eq!((values[3], values[7]), (normalised, normalised), "{name}: as LeRobot has it");
        // LeRobot's epsilon holds an action where it was, whatever the denoiser says.
        for said in [-1.5, 0.0, 1.0] {
            let mut values = vec![said; action.scale.len()];
            action.unnormalize(&mut values);
            assert!((values.last().unwrap() - all_the_time).abs() <= 1e-6, "{name}: {values:?}");
        }
    }
}

#[test]
fn what_is_in_the_way_is_named() {
    let config = |path: &str, value: Value| changed("config.json", path, value);
    for (path, value, parts) in [
        ("/type", json!("diffusion"), ["\"diffusion\"", "U-Net"]),
        ("/type", json!("act"), ["\"act\"", "nothing is denoised"]),
        ("/type", json!("pi0"), ["\"pi0\"", "--supported"]),
        ("/type", Value::Null, ["config.json", "missing field `type`"]),
        ("/objective", json!("flow_matching"), ["objective \"flow_matching\"", "expected diffusion"]),
        ("/use_rope", json!("yes"), ["config.json", "expected a boolean"]),
        ("/use_rope", json!(false), ["multihead_attn.in_proj_weight: is missing", "unexpected tensor"]),
        ("/use_positional_encoding", json!(true), ["noise_predictor.pos_embedding", "is missing"]),
        ("/beta_schedule", json!("quadratic"), ["config.json", "unknown variant `quadratic`"]),
        ("/noise_scheduler_type", json!("DPM"), ["config.json", "unknown variant `DPM`"]),
        ("/num_inference_steps", json!(80), ["sampler.inference_steps", "train_steps = 50"]),
        ("/horizon", json!(5), ["n_action_steps: 5 steps from step 1", "horizon 5"]),
        ("/n_action_steps", json!(u64::MAX), ["n_action_steps", "horizon 8"]),
        (
            "/n_obs_steps",
            json!(0),
            ["adaLN_modulation.1.weight: expected 8 of the timestep", "got 80 columns"],
        ),
        (
            "/n_obs_steps",
            json!(5),
            ["adaLN_modulation.1.weight: expected 8 of the timestep and, 5 times", "got 80"],
        ),
        ("/n_obs_steps", json!(3), ["encoder.onnx: features is f32 [1, 8]", "policy.toml says f32 [1, 2]"]),
        ("/num_heads", json!(5), ["architecture.heads", "does not divide"]),
        ("/num_heads", json!(16), ["rotary_base", "heads of an even width, got 1"]),
        ("/num_layers", json!(1), ["unexpected tensor", "transformer_blocks.1."]),
        ("/num_layers", json!(3), ["transformer_blocks.2.adaLN_modulation.1.weight: is missing", "[96, 80]"]),
        ("/num_layers", json!(1_000_000), ["architecture.layers", "expected 1 to 128"]),
        ("/timestep_embed_dim", json!(3), ["adaLN_modulation", "3 of the timestep"]),
        (
            "/hidden_dim",
            json!(32),
            ["text.safetensors: features: expected 32 finite numbers, got 16", "export it again"],
        ),
        ("/horizon", json!(-1), ["config.json", "expected usize"]),
        ("/horizon", Value::Null, ["config.json", "missing field `horizon`"]),
        ("/input_features/observation.state", Value::Null, ["input_features.observation.state", "missing"]),
        ("/output_features/action", Value::Null, ["output_features.action", "missing"]),
        (
            "/output_features/action/shape",
            json!([2, 3]),
            ["\"action\"", "expected 1 size of 1 to 4096, got [2, 3]"],
        ),
        (
            "/output_features/action/shape",
            json!([4]),
            ["expected 4 numbers each of min and max", "got (3, 3)"],
        ),
        (
            "/input_features/observation.images.top/type",
            json!("SOUND"),
            ["observation.images.top", "\"SOUND\""],
        ),
        (
            "/input_features/observation.images.top/shape",
            json!([4, 18, 20]),
            ["observation.images.top", "expected 3 channels, got 4"],
        ),
        (
            "/input_features/observation.images.top/shape",
            json!([3, 18]),
            ["observation.images.top", "expected 3 sizes, got [3, 18]"],
        ),
    ] {
        says(config(path, value).path(), &parts);
    }
}

#[test]
fn steps_and_statistics_that_are_not_known() {
    let before = |path: &str, value: Value| changed("policy_preprocessor.json", path, value);
    let stats = "policy_preprocessor_step_4_normalizer_processor.safetensors";
    for (path, value, parts) in [
        (
            "/steps/1/registry_name",
            json!("run_anything"),
            ["step 1: \"run_anything\" is not supported", "policy_preprocessor.json"],
        ),
        (
            "/steps/4/state_file",
            json!("../../etc/passwd"),
            ["step 4: state_file: expected a plain file name", "../../etc/passwd"],
        ),
        (
            "/steps/4/state_file",
            json!("/etc/passwd"),
            ["step 4: state_file: expected a plain file name", "/etc/passwd"],
        ),
        (
            "/steps/4/state_file",
            json!("nowhere.safetensors"),
            ["step 4", "nowhere.safetensors: No such file"],
        ),
        ("/steps/4/state_file", json!("config.json"), ["step 4", "\"config.json\""]),
        ("/steps/4", Value::Null, ["policy_preprocessor.json", "has no normalizer_processor"]),
        ("/steps/3", json!({ "registry_name": "unnormalizer_processor" }), ["step 3", "is not supported"]),
        (
            "/steps/4/config/norm_map/STATE",
            json!("LOG"),
            ["norm_map: \"LOG\" of observation.state", "expected IDENTITY, MEAN_STD"],
        ),
        ("/steps/4/config/norm_map/STATE", json!("QUANTILE10"), ["observation.state", "has no q10 and q90"]),
        ("/steps/4/config/eps", json!("small"), ["step 4: config", "expected f64"]),
    ] {
        says(before(path, value).path(), &parts);
    }
    let folder = copy("rotary_cameras");
    fs::write(folder.path().join(stats), b"nonsense").unwrap();
    says(folder.path(), &["step 4", stats]);
    // Without statistics or without a mode, values are left as they are.
    let identity = |folder: tempfile::TempDir| {
        let package = lerobot(folder.path(), &options(folder.path())).unwrap();
        assert_eq!(package.config.observation.normalizer.scale, [1.0; 4]);
        package.config.cameras[0].mean.len()
    };
    assert_eq!(identity(before("/steps/4/state_file", Value::Null)), 0);
    assert_eq!(identity(before("/steps/4/config/norm_map/STATE", Value::Null)), 3);
    assert_eq!(
        identity(before("/steps/4/config/normalize_observation_keys", json!(["observation.images.wrist"]))),
        3
    );
}

#[test]
fn files_that_are_missing_or_damaged() {
    let fresh = || copy("rotary_cameras");
    let write = |folder: &tempfile::TempDir, name: &str, content: &[u8]| {
        fs::write(folder.path().join(name), content).unwrap()
    };
    let folder = fresh();
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    fs::remove_file(folder.path().join("policy_postprocessor.json")).unwrap();
    fs::remove_file(folder.path().join("encoders/text.safetensors")).unwrap();
    says(
        folder.path(),
        &[
            "model.safetensors: is missing",
            "policy_postprocessor.json: No such file",
            "text.safetensors: No such file",
        ],
    );
    let without = Options { encoders: None, ..Options::default() };
    let error = lerobot(fresh().path(), &without).unwrap_err().to_string();
    assert!(error.contains("export_lerobot.py") && error.contains("--encoder ENCODERS"), "{error}");
    assert_eq!(error.lines().count(), 2, "nothing else is in the way: {error}");
    let folder = fresh();
    write(&folder, "model.safetensors", b"nonsense");
    says(folder.path(), &["model.safetensors:", "save the policy again"]);
    let folder = fresh();
    write(&folder, "encoders/encoder.onnx", b"nonsense");
    says(folder.path(), &["encoder.onnx", "is not a whole ONNX file"]);
    let folder = fresh();
    fs::remove_file(folder.path().join("encoders/encoder.onnx")).unwrap();
    says(folder.path(), &["encoder.onnx: No such file"]);
    write(&folder, "config.json", format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)).as_bytes());
    says(folder.path(), &["config.json"]);
    fs::File::create(folder.path().join("config.json")).unwrap().set_len(2 << 20).unwrap();
    says(folder.path(), &["config.json", "at most 1048576 bytes"]);
    says(Path::new("/nowhere"), &["/nowhere/config.json: No such file"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Cut and altered files are imported or an error like any other, and never more than a page.
    #[test]
    fn damaged_folders(at: prop::sample::Index, byte: u8, cut: bool, which in 0..4usize) {
        let folder = copy("positions_state");
        let files = ["config.json", "policy_preprocessor.json", "model.safetensors", "encoders/text.safetensors"];
        let file = folder.path().join(files[which]);
        let mut bytes = fs::read(&file).unwrap();
        // Most of the weights are numbers; the header is what matters.
        let at = at.index(bytes.len().min(6000));
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        fs::write(&file, bytes).unwrap();
        if let Err(error) = lerobot(folder.path(), &options(folder.path())) {
            prop_assert!(error.to_string().len() < 20_000);
        }
    }
}

#[test]
fn the_page_is_what_the_code_says() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("SUPPORTED.md");
    let committed = fs::read_to_string(&page).unwrap_or_default();
    assert!(committed == supported(), "make it again: refrain import --supported > policies/SUPPORTED.md");
}
