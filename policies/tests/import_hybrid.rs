//! Importing hybrid image checkpoints: what becomes of their configuration, and what is refused.

mod support;

use refrain_policies::camera::Channels;
use refrain_policies::config::NormalizerMode;
use refrain_policies::import::{self, ImportError, Options};
use refrain_policies::package::{Dtype, Package};
use serde_json::{Value, json};
use support::{Checkpoint, fixtures};

fn exact() -> Options {
    Options { dtype: Dtype::F32, ..Options::default() }
}

fn says(checkpoint: &Checkpoint, parts: &[&str]) {
    let error = checkpoint.import(&exact()).expect_err("a refusal").to_string();
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn cameras_and_signals_come_from_the_configuration() {
    let package = Checkpoint::hybrid().import(&exact()).unwrap();
    let config = &package.config;
    assert_eq!(config.observation.names, ["b_arm_0", "b_arm_1", "d_hand_0"]);
    assert_eq!(config.observation.normalizer.scale, [2.0; 3]);
    assert_eq!(config.observation.normalizer.mode, NormalizerMode::Limits);
    assert_eq!(config.action.size(), 2);
    let [front, wrist] = &config.cameras[..] else { panic!("{:?}", config.cameras) };
    assert_eq!((&front.name[..], front.channels, front.size), ("a_front", Channels::Rgb, [8, 9]));
    assert_eq!((&wrist.name[..], wrist.channels, wrist.crop), ("c_wrist", Channels::Mono, Some([6, 7])));
    assert_eq!((&front.mean, &front.std, front.divisor), (&vec![0.5; 3], &vec![0.5; 3], 255.0));
    assert_eq!((front.features, wrist.features), (2, 2));
    assert_eq!((&front.encoder[..], config.condition_size()), ("a_front.onnx", 7));
    // Cameras first: columns 0 and 1, 4 and 5, then the low-dimensional ones.
    let columns = package.weights.get("cond_obs_emb.weight").unwrap().to_f32();
    assert_eq!(columns[..7], [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0]);
    assert!(package.weights.iter().all(|(name, _)| !name.contains("obs_encoder")));
    assert_eq!((config.architecture.layers, config.architecture.causal, config.rate_hz), (1, true, 20.0));
}

#[test]
fn a_package_says_which_encoders_it_lacks() {
    let package = Checkpoint::hybrid().import(&exact()).unwrap();
    assert_eq!(package.missing_encoders(), ["a_front.onnx", "c_wrist.onnx"]);
    let folder = tempfile::tempdir().unwrap();
    package.save(folder.path()).unwrap();
    let error = Package::load(folder.path()).unwrap_err().to_string();
    for part in
        ["camera \"a_front\": \"a_front.onnx\" is missing", "\"c_wrist.onnx\" is missing", "train/README.md"]
    {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn encoders_are_tried_when_they_come_along() {
    let folder = fixtures().join("hybrid");
    let options = |encoders| Options { encoders: Some(encoders), ..exact() };
    let package = import::checkpoint(&folder.join("policy.ckpt"), &options(folder.clone())).unwrap();
    assert!(package.missing_encoders().is_empty());
    assert_eq!(package.config.cameras.len(), 2);
    let empty = tempfile::tempdir().unwrap();
    let import = |folder: &tempfile::TempDir| {
        let options = options(folder.path().to_owned());
        import::checkpoint(&fixtures().join("hybrid/policy.ckpt"), &options).unwrap_err().to_string()
    };
    assert!(import(&empty).contains("front_image.onnx: No such file"), "{}", import(&empty));
    std::fs::write(empty.path().join("front_image.onnx"), b"nonsense").unwrap();
    assert!(import(&empty).contains("is not a whole ONNX file"), "{}", import(&empty));
    // Another camera's encoder, with other shapes.
    std::fs::copy(fixtures().join("vision/sound.onnx"), empty.path().join("front_image.onnx")).unwrap();
    assert!(import(&empty).contains("front_image.onnx: image is f32 [1, 3, 8, 8]"), "{}", import(&empty));
}

#[test]
fn what_was_assumed_is_noted() {
    let mut checkpoint = Checkpoint::hybrid();
    checkpoint.cfg["policy"]["eval_fixed_crop"] = json!(false);
    let notes = checkpoint.import(&exact()).unwrap().config.provenance.notes;
    assert!(notes.iter().any(|note| note.contains("eval_fixed_crop")), "{notes:?}");
    checkpoint.cfg["policy"]["crop_shape"] = Value::Null;
    let package = checkpoint.import(&exact()).unwrap();
    assert_eq!(package.config.provenance.notes.len(), 0);
    assert_eq!(package.config.cameras[0].crop, None);
}

#[test]
fn what_is_wrong_is_named() {
    for (path, value, parts) in [
        ("/policy/obs_as_cond", json!(false), ["cfg.policy.obs_as_cond", "expected true"]),
        ("/policy/crop_shape", json!([6]), ["cfg.policy.crop_shape", "height and width"]),
        ("/policy/crop_shape", json!([9, 7]), ["crop", "does not fit"]),
        ("/policy/crop_shape", json!("small"), ["cfg.policy.crop_shape", "whole numbers"]),
        ("/policy/use_depth", json!(true), ["cfg.policy.use_depth", "unknown key"]),
        ("/policy/n_layer", json!(2), ["model.decoder.layers.1", "missing"]),
        ("/policy/shape_meta", Value::Null, ["cfg.policy.shape_meta", "missing"]),
        ("/task/shape_meta/action", Value::Null, ["shape_meta.action", "missing"]),
        ("/task/shape_meta/action/shape", json!([2, 3]), ["shape_meta.action.shape", "expected [n]"]),
        ("/task/shape_meta/action/shape", json!([5000]), ["shape_meta.action.shape", "4096"]),
        ("/task/shape_meta/obs", json!({}), ["shape_meta.obs", "no low_dim key"]),
        ("/task/shape_meta/obs/b_arm/shape", json!([3]), ["params_dict.b_arm.scale", "expected shape [3]"]),
        ("/task/shape_meta/obs/b_arm/shape", json!([-1]), ["obs.b_arm.shape", "whole numbers"]),
        ("/task/shape_meta/obs/b_arm/type", json!("depth"), ["\"depth\" is not supported", "low_dim, rgb"]),
        ("/task/shape_meta/obs/b_arm/horizon", json!(2), ["obs.b_arm.horizon", "unknown key"]),
        ("/task/shape_meta/obs/a_front/shape", json!([4, 8, 9]), ["obs.a_front.shape", "[3, height, width]"]),
        ("/task/shape_meta/obs/a_front/shape", json!([3, 8, 1_i64 << 40]), ["obs.a_front.shape", "pixels"]),
        ("/task/shape_meta/obs/a_front/type", json!("low_dim"), ["obs.a_front.shape", "expected [n]"]),
        (
            "/task/shape_meta/obs/e_new",
            json!({"shape": [3, 8, 9], "type": "rgb"}),
            ["e_new.scale", "missing"],
        ),
    ] {
        let mut checkpoint = Checkpoint::hybrid();
        let (parent, key) = path.rsplit_once('/').unwrap();
        let parent = checkpoint.cfg.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        if value.is_null() {
            drop(parent.remove(key))
        } else {
            drop(parent.insert(key.into(), value))
        }
        says(&checkpoint, &parts);
    }
}

#[test]
fn hostile_keys_and_tensors() {
    // A key that would lead elsewhere as a file name.
    let mut checkpoint = Checkpoint::hybrid();
    let shapes = checkpoint.cfg["task"]["shape_meta"]["obs"].as_object_mut().unwrap();
    let front = shapes.remove("a_front").unwrap();
    shapes.insert("a/..//etc".into(), front);
    for part in ["scale", "offset"] {
        let tensor = checkpoint.tensors[&format!("normalizer.params_dict.a_front.{part}")].clone();
        checkpoint.tensors.insert(format!("normalizer.params_dict.a/..//etc.{part}"), tensor);
    }
    let error = checkpoint.import(&exact()).unwrap_err();
    assert!(matches!(error, ImportError::Unsupported(_)), "{error}");

    let with = |name: &str, shape: &[usize], value: f32| {
        let mut checkpoint = Checkpoint::hybrid();
        checkpoint.tensors.insert(name.into(), (shape.to_vec(), vec![value; shape.iter().product()]));
        checkpoint
    };
    says(&with("normalizer.params_dict.a_front.scale", &[3], 2.0), &["a_front.scale", "expected shape [1]"]);
    says(&with("normalizer.params_dict.a_front.scale", &[1], 0.0), &["cameras[0]"]);
    says(&with("normalizer.params_dict.a_front.scale", &[1], f32::NAN), &["cameras[0]"]);
    says(&with("model.cond_obs_emb.weight", &[4, 6], 0.0), &["equal features of 2 cameras", "got 6"]);
    says(&with("model.cond_obs_emb.weight", &[4, 3], 0.0), &["equal features of 2 cameras", "got 3"]);
    says(&with("model.cond_obs_emb.weight", &[28], 0.0), &["model.cond_obs_emb.weight", "[D, features]"]);
    says(&with("vision_encoder.weight", &[1], 0.0), &["unexpected tensor \"vision_encoder.weight\""]);
    let mut checkpoint = Checkpoint::hybrid();
    checkpoint.tensors.remove("model.cond_obs_emb.weight");
    says(&checkpoint, &["model.cond_obs_emb.weight", "missing"]);
    // The lowdim family has no encoder.
    let mut checkpoint = Checkpoint::small();
    checkpoint.tensors.insert("obs_encoder.x".into(), (vec![1], vec![0.0]));
    says(&checkpoint, &["unexpected tensor \"obs_encoder.x\""]);
}
