//! Broken and hostile checkpoints: each has its named error, and none costs much.

mod support;

use std::io::Cursor;
use std::time::{Duration, Instant};

use refrain_policies::import::{self, ImportError, Options, PickleError, checkpoint_from};
use refrain_policies::package::{Dtype, PackageError};
use serde_json::{Value, json};
use support::{Checkpoint, Py, import, memory, pickle, tensor, zip as archive};
use zip::CompressionMethod;

fn error(checkpoint: &Checkpoint) -> ImportError {
    checkpoint.import(&Options::default()).expect_err("must be refused")
}

/// The error's text, which must contain every part.
fn says(error: &ImportError, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    assert!(text.len() < 10_000, "a message of {} bytes", text.len());
}

fn with_pickle(bytes: Vec<u8>) -> ImportError {
    let mut checkpoint = Checkpoint::small();
    checkpoint.entries.insert("data.pkl".into(), bytes);
    error(&checkpoint)
}

#[test]
fn truncated_at_any_length() {
    let bytes = Checkpoint::small().bytes();
    for length in (0..bytes.len()).step_by(97) {
        let error = import(&bytes[..length], &Options::default()).expect_err("truncated");
        assert!(matches!(error, ImportError::Archive(_)), "{length}: {error}");
    }
}

#[test]
fn other_files() {
    says(&import(b"", &Options::default()).unwrap_err(), &["not a zip archive"]);
    says(&import(b"\x80\x02}q\x00.", &Options::default()).unwrap_err(), &["torch before 1.6"]);
    says(
        &import(b"PK\x03\x04 and nothing else", &Options::default()).unwrap_err(),
        &["truncated or damaged"],
    );
    let missing = import::checkpoint("no/such.ckpt".as_ref(), &Options::default()).unwrap_err();
    assert!(matches!(missing, ImportError::Read { .. }), "{missing}");
    let folder = import::checkpoint(".".as_ref(), &Options::default()).unwrap_err();
    assert!(matches!(folder, ImportError::Read { .. }), "{folder}");
}

#[test]
fn names_that_lead_out_of_the_archive() {
    for name in ["../evil", "archive/../../evil", "/etc/passwd", "C:\\evil", "archive\\..\\evil"] {
        let mut entries = Checkpoint::small().to_entries();
        entries.push((name.into(), b"x".to_vec()));
        let error = import(&archive(&entries, CompressionMethod::Stored), &Options::default()).unwrap_err();
        says(&error, &["leads out of the archive"]);
    }
    // A storage's key is no path either.
    let mut checkpoint = Checkpoint::small();
    let evil = tensor("../../secret", "FloatStorage", &[2], None, 0, 2);
    checkpoint.described.insert("model.head.bias".into(), evil);
    says(&error(&checkpoint), &["model.head.bias", "damaged"]);
}

#[test]
fn archives_of_another_shape() {
    let plain = |entries: &[(&str, &[u8])]| {
        let entries: Vec<_> = entries.iter().map(|(n, c)| ((*n).to_owned(), c.to_vec())).collect();
        import(&archive(&entries, CompressionMethod::Stored), &Options::default()).unwrap_err()
    };
    says(&plain(&[("readme.txt", b"x")]), &["FOLDER/data.pkl, got 0"]);
    says(&plain(&[("data.pkl", b"N.")]), &["lies in no folder"]);
    says(&plain(&[("a/data.pkl", b"N."), ("b/data.pkl", b"N.")]), &["got 2"]);
    let mut big = Checkpoint::small();
    big.entries.insert("byteorder".into(), b"big".to_vec());
    says(&error(&big), &["byte order \"big\""]);
}

#[test]
fn damaged_content_is_noticed() {
    let mut bytes = Checkpoint::small().bytes();
    let at = bytes.windows(9).position(|w| w == b"cond_dimX" || w.starts_with(b"cond_dim")).unwrap();
    bytes[at] ^= 1;
    says(&import(&bytes, &Options::default()).unwrap_err(), &["archive/data.pkl", "checksum"]);
}

/// Seconds and bytes that `run` costs must be small.
fn cheap(run: impl FnOnce()) {
    let before = memory();
    let start = Instant::now();
    run();
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    if let (Some((_, before)), Some((peak, _))) = (before, memory()) {
        assert!(peak.saturating_sub(before) < 512 << 20, "{} bytes", peak - before);
    }
}

#[test]
fn zip_bombs() {
    cheap(|| {
        let mut checkpoint = Checkpoint::small();
        checkpoint.method = CompressionMethod::Deflated;
        checkpoint.entries.insert("data.pkl".into(), vec![b'N'; 40 << 20]);
        says(&error(&checkpoint), &["archive/data.pkl", "at most 16777216 bytes"]);
    });
    cheap(|| {
        // A storage of 80 MB out of 80 kB.
        let mut checkpoint = Checkpoint::small();
        checkpoint.method = CompressionMethod::Deflated;
        checkpoint.entries.insert("data/bomb".into(), vec![0; 80 << 20]);
        let bomb = tensor("bomb", "FloatStorage", &[2], None, 0, 20 << 20);
        checkpoint.described.insert("model.head.bias".into(), bomb);
        says(&error(&checkpoint), &["archive/data/bomb", "zip bomb"]);
    });
    cheap(|| {
        // The archive's directory says more than there is.
        let mut bytes = Checkpoint::small().bytes();
        let central = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
        bytes[central + 20..central + 28].copy_from_slice(&[0xf0; 8]);
        assert!(matches!(import(&bytes, &Options::default()), Err(ImportError::Archive(_))));
    });
}

#[test]
fn hostile_pickles() {
    let refused = |bytes: Vec<u8>| match with_pickle(bytes) {
        ImportError::Pickle(error) => error,
        other => panic!("{other}"),
    };
    assert!(matches!(refused(vec![]), PickleError::Truncated { .. }));
    assert!(matches!(
        refused(b"\x80\x02\xf0.".to_vec()),
        PickleError::UnknownOpcode { opcode: 0xf0, offset: 2 }
    ));
    assert!(matches!(refused(b"\x82\x01.".to_vec()), PickleError::Refused { name: "EXT1", .. }));
    cheap(|| assert!(matches!(refused(b"(".repeat(1 << 20)), PickleError::TooMany { .. })));
    cheap(|| assert!(matches!(refused(b"]0".repeat(4 << 20)), PickleError::TooMany { .. })));
    cheap(|| {
        // A million lists within each other, without a mark: fine to read, refused as a configuration.
        let nested = Py::Raw([b"]".repeat(300_000), b"a".repeat(299_999)].concat());
        let root = Py::Dict(vec![("cfg".into(), nested), ("state_dicts".into(), Py::Dict(vec![]))]);
        says(&with_pickle(pickle(&root)), &["cfg", "32 deep"]);
    });
    cheap(|| {
        // Billion laughs as a configuration.
        let mut laughs = b"(K\x01q\0".to_vec();
        for level in 1..=30u8 {
            laughs.push(b'(');
            laughs.extend([b'h', level - 1].repeat(10));
            laughs.extend([b'l', b'q', level]);
        }
        laughs.push(b'l');
        let root = Py::Dict(vec![("cfg".into(), Py::Raw(laughs)), ("state_dicts".into(), Py::Dict(vec![]))]);
        says(&with_pickle(pickle(&root)), &["cfg", "20000 values"]);
    });
    // Nothing is called: a call in place of a tensor, of the configuration, of the whole.
    let call = || Py::Call("os", "system", vec![Py::text("true")]);
    let mut checkpoint = Checkpoint::small();
    checkpoint.described.insert("model.head.bias".into(), call());
    says(&error(&checkpoint), &["model.head.bias", "os.system"]);
    says(&with_pickle(pickle(&call())), &["os.system", "expected {cfg, state_dicts, pickles}"]);
    let root = Py::Dict(vec![("cfg".into(), call()), ("state_dicts".into(), Py::Dict(vec![]))]);
    says(&with_pickle(pickle(&root)), &["cfg."]);
    says(&with_pickle(b"}.".to_vec()), &["no cfg or no state_dicts"]);
}

#[test]
fn hostile_tensors() {
    let with = |tensor: Py| {
        let mut checkpoint = Checkpoint::small();
        checkpoint.entries.insert("data/x".into(), vec![0; 32]);
        checkpoint.described.insert("model.head.bias".into(), tensor);
        error(&checkpoint)
    };
    let float = "FloatStorage";
    for (hostile, part) in [
        (tensor("x", float, &[1 << 40, 1 << 40], None, 0, 8), "does not fit"),
        (tensor("x", float, &[1 << 30], None, 0, 1 << 30), "expected shape [2]"),
        (tensor("x", float, &[2], Some(&[1 << 60]), 0, 8), "does not fit"),
        (tensor("x", float, &[2], Some(&[-1]), 1, 8), "damaged"),
        (tensor("x", float, &[2], None, 7, 8), "does not fit"),
        (tensor("x", float, &[2], None, i64::MAX, 8), "does not fit"),
        (tensor("x", float, &[2], None, -1, 8), "damaged"),
        (tensor("x", float, &[2], Some(&[0]), 0, 1), "does not fit"),
        (tensor("x", float, &[1; 20], None, 0, 8), "damaged"),
        (tensor("x", float, &[2], None, 0, 9), "9 values of 4 bytes"),
        (tensor("x", float, &[2], None, 0, usize::MAX >> 1), "values of 4 bytes"),
        (tensor("nowhere", float, &[2], None, 0, 2), "is missing"),
        (tensor("x", "LongStorage", &[2], None, 0, 2), "torch.LongStorage"),
        (tensor("x", "QInt8Storage", &[2], None, 0, 2), "torch.QInt8Storage"),
        (Py::Call("torch._utils", "_rebuild_tensor_v2", vec![]), "damaged"),
        (Py::Call("torch._utils", "_rebuild_qtensor", vec![]), "_rebuild_qtensor"),
        (Py::Call("torch._utils", "_rebuild_parameter", vec![Py::Int(1)]), "a parameter"),
        (Py::Int(3), "an integer"),
    ] {
        says(&with(hostile), &[part]);
    }
    let parameter = Py::Call(
        "torch._utils",
        "_rebuild_parameter",
        vec![tensor("x", float, &[2], None, 3, 8), Py::Int(1)],
    );
    let mut checkpoint = Checkpoint::small();
    checkpoint.entries.insert("data/x".into(), vec![0; 32]);
    checkpoint.described.insert("model.head.bias".into(), parameter);
    let package = checkpoint.import(&Options::default()).unwrap();
    assert_eq!(package.weights.get("head.bias").unwrap().to_f32(), [0.0; 2]);
}

#[test]
fn values_that_cannot_be_stored() {
    let with = |value: f32, dtype: Dtype| {
        let mut checkpoint = Checkpoint::small();
        checkpoint.tensors.get_mut("model.head.bias").unwrap().1[1] = value;
        checkpoint.import(&Options { dtype, ..Options::default() })
    };
    for value in [f32::NAN, f32::INFINITY] {
        says(&with(value, Dtype::F32).unwrap_err(), &["model.head.bias", "expected finite", "index 1"]);
    }
    says(&with(70000.0, Dtype::F16).unwrap_err(), &["model.head.bias", "70000", "65504", "--dtype f32"]);
    assert!(with(70000.0, Dtype::F32).is_ok());
    assert!(with(65504.0, Dtype::F16).is_ok());
    // A normaliser that cannot be inverted.
    let mut checkpoint = Checkpoint::small();
    checkpoint.tensors.get_mut("normalizer.params_dict.action.scale").unwrap().1[0] = 0.0;
    says(&error(&checkpoint), &["action.normalizer.scale[0]"]);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let at = |cfg: &mut Value, path: &str, value: Value| {
        let (parent, key) = path.rsplit_once('/').unwrap();
        let parent = cfg.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        if value.is_null() { drop(parent.remove(key)) } else { drop(parent.insert(key.into(), value)) }
    };
    for (path, value, parts) in [
        ("/n_latency_steps", json!(1), ["cfg.n_latency_steps", "expected 0"]),
        ("/past_action_visible", json!(true), ["cfg.past_action_visible", "expected false"]),
        (
            "/policy/_target_",
            json!("diffusion_policy.policy.diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy"),
            ["DiffusionUnetLowdimPolicy", "DiffusionTransformerLowdimPolicy"],
        ),
        ("/policy/_target_", Value::Null, ["cfg.policy._target_", "missing"]),
        ("/policy/predict_epsilon", json!(true), ["cfg.policy.predict_epsilon", "unknown key"]),
        ("/policy/eta", json!(0.5), ["cfg.policy.eta", "unknown key"]),
        ("/policy/horizon", json!("${nowhere}"), ["cfg.policy.horizon", "missing"]),
        ("/policy/horizon", json!("${env:HOME}"), ["cfg.policy.horizon", "resolver \"env\""]),
        ("/policy/horizon", json!(-4), ["cfg.policy.horizon", "got -4"]),
        ("/policy/horizon", json!(1e9), ["cfg.policy.horizon", "a whole number"]),
        ("/policy/horizon", Value::Null, ["cfg.policy.horizon", "missing"]),
        ("/policy/obs_dim", json!(0), ["obs_dim", "1 to 4096"]),
        ("/policy/obs_dim", json!(1i64 << 40), ["obs_dim", "1 to 4096"]),
        ("/policy/obs_as_cond", json!(false), ["cfg.policy.model.cond_dim", "expected 0, got 3"]),
        ("/policy/num_inference_steps", json!(11), ["sampler.inference_steps", "got 11"]),
        ("/policy/model", Value::Null, ["cfg.policy.model", "missing"]),
        (
            "/policy/model/_target_",
            json!("my.Transformer"),
            ["\"my.Transformer\" is not supported", "TransformerForDiffusion"],
        ),
        ("/policy/model/use_rope", json!(true), ["cfg.policy.model.use_rope", "unknown key"]),
        ("/policy/model/input_dim", json!(3), ["cfg.policy.model.input_dim", "expected 2, got 3"]),
        ("/policy/model/cond_dim", json!(0), ["cfg.policy.model.cond_dim", "expected 3, got 0"]),
        ("/policy/model/horizon", json!(8), ["cfg.policy.model.horizon", "expected 4, got 8"]),
        ("/policy/model/n_obs_steps", json!(3), ["cfg.policy.model.n_obs_steps", "expected 2, got 3"]),
        ("/policy/model/time_as_cond", json!(false), ["architecture.obs_as_cond", "time_as_cond"]),
        ("/policy/model/n_layer", json!(1_000_000), ["architecture.layers", "1 to 128"]),
        ("/policy/model/n_layer", json!(2), ["model.decoder.layers.1.linear1.weight", "missing"]),
        ("/policy/model/n_emb", json!(8), ["expected shape [24, 8]", "got [12, 4]"]),
        ("/policy/model/n_head", json!(3), ["architecture.heads", "does not divide"]),
        (
            "/policy/model/n_cond_layers",
            json!(1),
            ["model.encoder.layers.0.norm1.weight", "unexpected tensor \"model.encoder.0.weight\""],
        ),
        ("/policy/model/causal_attn", json!(false), ["model.mask", "model.memory_mask"]),
        ("/policy/noise_scheduler", Value::Null, ["cfg.policy.noise_scheduler", "missing"]),
        (
            "/policy/noise_scheduler/_target_",
            json!("diffusers.schedulers.scheduling_dpmsolver_multistep.DPMSolverMultistepScheduler"),
            ["DPMSolverMultistepScheduler", "DDIMScheduler"],
        ),
        (
            "/policy/noise_scheduler/variance_type",
            json!("learned"),
            ["\"learned\" is not supported", "fixed_small"],
        ),
        (
            "/policy/noise_scheduler/variance_type",
            json!("learned_range"),
            ["\"learned_range\"", "not supported"],
        ),
        (
            "/policy/noise_scheduler/thresholding",
            json!(true),
            ["noise_scheduler.thresholding", "not supported"],
        ),
        (
            "/policy/noise_scheduler/beta_schedule",
            json!("cosine"),
            ["\"cosine\" is not supported", "laplace"],
        ),
        (
            "/policy/noise_scheduler/prediction_type",
            json!("flow"),
            ["\"flow\" is not supported", "v_prediction"],
        ),
        ("/policy/noise_scheduler/timestep_spacing", json!("karras"), ["\"karras\"", "leading"]),
        ("/policy/noise_scheduler/trained_betas", json!(["x"]), ["trained_betas", "a list of numbers"]),
        ("/policy/noise_scheduler/surprise", json!(1), ["noise_scheduler.surprise", "unknown key"]),
        ("/policy/noise_scheduler/beta_end", json!(2.0), ["sampler.beta_end", "got 2"]),
        ("/training/use_ema", json!(true), ["state_dicts.ema_model", "missing"]),
    ] {
        let mut checkpoint = Checkpoint::small();
        at(&mut checkpoint.cfg, path, value);
        says(&error(&checkpoint), &parts);
    }
    let mut ddim = Checkpoint::small();
    ddim.cfg["policy"]["noise_scheduler"]["_target_"] = json!("diffusers.DDIMScheduler");
    ddim.cfg["policy"]["noise_scheduler"]["beta_schedule"] = json!("sigmoid");
    says(&error(&ddim), &["\"sigmoid\" is not supported", "noise_scheduler.variance_type: is not supported"]);
}

#[test]
fn all_problems_are_reported_at_once() {
    let mut checkpoint = Checkpoint::small();
    checkpoint.cfg["n_latency_steps"] = json!(2);
    checkpoint.cfg["policy"]["model"]["use_rope"] = json!(true);
    checkpoint.cfg["policy"]["noise_scheduler"]["variance_type"] = json!("learned");
    checkpoint.tensors.remove("normalizer.params_dict.obs.scale");
    says(
        &error(&checkpoint),
        &["n_latency_steps", "use_rope", "learned", "params_dict.obs.scale: is missing"],
    );
    let mut checkpoint = Checkpoint::small();
    checkpoint.tensors.insert("model.lora.weight".into(), (vec![1], vec![0.0]));
    checkpoint.tensors.insert("obs_encoder.weight".into(), (vec![1], vec![0.0]));
    checkpoint.tensors.remove("model.head.bias");
    says(
        &error(&checkpoint),
        &["\"model.lora.weight\"", "\"obs_encoder.weight\"", "model.head.bias: is missing"],
    );
    assert!(matches!(error(&checkpoint), ImportError::Unsupported(problems) if problems.len() == 3));
}

#[test]
fn sources_that_fail_are_named() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the disk is on fire"))
        }
    }
    impl std::io::Seek for Broken {
        fn seek(&mut self, _: std::io::SeekFrom) -> std::io::Result<u64> {
            Ok(0)
        }
    }
    says(&checkpoint_from(Broken, "x", &Options::default()).unwrap_err(), &["on fire"]);
    let package: ImportError = PackageError::Problems(vec!["one".into()]).into();
    says(&package, &["has 1 problem:", "one"]);
    let bytes = Checkpoint::small().bytes();
    assert!(checkpoint_from(Cursor::new(bytes), "x.ckpt", &Options::default()).is_ok());
}
