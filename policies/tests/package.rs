//! Loading and saving policy packages, sound and broken.

mod support;

use std::fs;
use std::path::Path;

use half::f16;
use refrain_policies::config::{Dit, PolicyConfig};
use refrain_policies::package::{Package, PackageError, Tensor, TensorData, Weights, expected_tensors};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use sha2::{Digest, Sha256};
use support::{small_config, small_weights};

fn small() -> Package {
    let config = small_config();
    Package::new(config.clone(), small_weights(&config)).unwrap()
}

/// Text and bytes of the two files.
fn files(package: &Package) -> (String, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    package.save(dir.path()).unwrap();
    let weights = fs::read(dir.path().join("weights.safetensors")).unwrap();
    (fs::read_to_string(dir.path().join("policy.toml")).unwrap(), weights)
}

fn error(policy: &str, weights: &[u8]) -> PackageError {
    Package::from_bytes(policy, weights).expect_err("must be refused")
}

fn problems(config: PolicyConfig, weights: Weights) -> Vec<String> {
    match Package::new(config, weights).expect_err("must be refused") {
        PackageError::Problems(problems) => problems,
        other => panic!("{other}"),
    }
}

#[test]
fn what_is_saved_is_what_is_loaded() {
    let package = small();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a/b");
    package.save(&out).unwrap();
    fs::create_dir(out.join("schedules")).unwrap();
    package.save(&out).unwrap();
    let mut names: Vec<_> = fs::read_dir(&out).unwrap().map(|f| f.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["policy.toml", "schedules", "weights.safetensors"], "and nothing half-written");
    let loaded = Package::load(&out).unwrap();
    assert_eq!(loaded.config, package.config);
    assert_eq!(loaded.weights, package.weights);
    assert_eq!(loaded.weights_sha256(), package.weights_sha256());
    let bytes = fs::read(out.join("weights.safetensors")).unwrap();
    let expected: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(loaded.weights_sha256(), expected);
    let policy = fs::read_to_string(out.join("policy.toml")).unwrap();
    assert_eq!(Package::from_bytes(&policy, &bytes).unwrap().weights, package.weights);

    // The comparison can fail.
    let mut other = small_weights(&package.config);
    let mut head = other.remove("head.bias").unwrap();
    head.data = TensorData::F32(vec![1.0, 1.5]);
    other.insert("head.bias".into(), head);
    let other = Package::new(package.config.clone(), other).unwrap();
    assert_ne!(other.weights, package.weights);
    assert_ne!(other.weights_sha256(), package.weights_sha256());
}

#[test]
fn half_precision_stays_half() {
    let config = small_config();
    let mut weights = small_weights(&config);
    let half = Tensor { shape: vec![2], data: TensorData::F16(vec![f16::from_f32(0.1), f16::MIN]) };
    weights.insert("head.bias".into(), half.clone());
    let (policy, bytes) = files(&Package::new(config, weights).unwrap());
    let loaded = Package::from_bytes(&policy, &bytes).unwrap();
    assert_eq!(loaded.weights.get("head.bias"), Some(&half));
}

#[test]
fn the_shipped_packages_load() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, tensors, bytes) in [("pusht", 158, 17_930_244), ("pusht-small", 86, 2_392_068)] {
        let package = Package::load(&folder.join(name)).unwrap();
        assert_eq!(package.config.name, name);
        assert_eq!((package.weights.len(), package.weights.bytes()), (tensors, bytes));
        assert_eq!(package.config.observation.names[18], "pusher_x");
    }
}

#[test]
fn shapes_of_every_variant() {
    let shapes = |change: &dyn Fn(&mut PolicyConfig)| {
        let mut config = small_config();
        change(&mut config);
        assert_eq!(config.problems(), [""; 0]);
        expected_tensors(&config)
    };
    let of = |list: &[(String, Vec<usize>)], name: &str| {
        list.iter().find(|(n, _)| n == name).map(|(_, shape)| shape.clone())
    };
    let decoder = shapes(&|_| {});
    assert_eq!(decoder.len(), 6 + 4 + 18 + 4);
    assert_eq!(of(&decoder, "cond_pos_emb"), Some(vec![1, 3, 4]));
    assert_eq!(of(&decoder, "decoder.layers.0.multihead_attn.in_proj_weight"), Some(vec![12, 4]));
    let layers = shapes(&|c| c.architecture.condition_layers = 2);
    assert_eq!(of(&layers, "encoder.layers.1.linear1.weight"), Some(vec![16, 4]));
    assert_eq!(of(&layers, "encoder.0.weight"), None);
    let inpainted = shapes(&|c| c.architecture.obs_as_cond = false);
    assert_eq!(of(&inpainted, "input_emb.weight"), Some(vec![4, 5]));
    assert_eq!(of(&inpainted, "cond_pos_emb"), Some(vec![1, 1, 4]));
    let encoder = shapes(&|c| {
        c.architecture.obs_as_cond = false;
        c.architecture.time_as_cond = false;
    });
    assert_eq!(of(&encoder, "pos_emb"), Some(vec![1, 5, 4]));
    assert_eq!(of(&encoder, "cond_pos_emb"), None);
    assert_eq!(of(&encoder, "encoder.layers.0.norm2.weight"), Some(vec![4]));
    let dit = shapes(&|c| {
        c.architecture.causal = false;
        c.architecture.dit = Some(Dit { timestep_width: 6, rotary_base: None });
    });
    assert_eq!(dit.len(), 3 + 8 + 8 + 2);
    assert_eq!(of(&dit, "modulation.time.weight"), Some(vec![24, 6]));
    // Two steps of three numbers.
    assert_eq!(of(&dit, "modulation.observation.weight"), Some(vec![24, 6]));
    assert_eq!(of(&dit, "encoder.layers.0.linear1.weight"), Some(vec![16, 4]));
    assert_eq!(of(&dit, "ln_f.weight"), None);
}

#[test]
fn a_dit_that_cannot_be_is_named() {
    let mut config = small_config();
    config.architecture.causal = true;
    config.architecture.condition_layers = 2;
    config.architecture.obs_as_cond = false;
    config.architecture.heads = 4;
    config.architecture.dit = Some(Dit { timestep_width: 3, rotary_base: Some(f64::NAN) });
    let problems = config.problems().join("\n");
    for part in [
        "architecture.dit: needs time_as_cond = true and obs_as_cond = true",
        "architecture.dit: needs causal = false and condition_layers = 0",
        "architecture.dit.timestep_width: expected an even number of 4 to 8192, got 3",
        "architecture.dit.rotary_base: expected a finite number of at least 1, got NaN",
        "architecture.dit.rotary_base: needs heads of an even width, got 1",
    ] {
        assert!(problems.contains(part), "{part:?} is not in: {problems}");
    }
}

#[test]
fn spare_rows_of_position_tables_are_cut() {
    let config = small_config();
    let mut weights = small_weights(&config);
    let values: Vec<f32> = (0..28).map(|i| i as f32).collect();
    weights.insert("pos_emb".into(), Tensor { shape: vec![1, 7, 4], data: TensorData::F32(values.clone()) });
    let package = Package::new(config, weights.clone()).unwrap();
    let cut = Tensor { shape: vec![1, 4, 4], data: TensorData::F32(values[..16].to_vec()) };
    assert_eq!(package.weights.get("pos_emb"), Some(&cut));

    // The same from a file that has them.
    let views = weights.iter().map(|(name, t)| (name.to_owned(), t));
    let bytes = safetensors::serialize(views, None).unwrap();
    let loaded = Package::from_bytes(&files(&package).0, &bytes).unwrap();
    assert_eq!(loaded.weights, package.weights);

    let few = Tensor { shape: vec![1, 3, 4], data: TensorData::F32(vec![0.0; 12]) };
    weights.insert("pos_emb".into(), few);
    assert!(problems(small_config(), weights)[0].contains("expected shape [1, 4, 4], got [1, 3, 4]"));
}

#[test]
fn everything_wrong_is_reported_at_once() {
    let mut config = small_config();
    config.rate_hz = -1.0;
    config.action.units.pop();
    let mut weights = small_weights(&small_config());
    weights.remove("ln_f.bias");
    weights.insert("surprise".into(), Tensor { shape: vec![1], data: TensorData::F32(vec![0.0]) });
    weights.insert("head.bias".into(), Tensor { shape: vec![2], data: TensorData::F32(vec![0.0, f32::NAN]) });
    weights.insert("head.weight".into(), Tensor { shape: vec![4, 2], data: TensorData::F32(vec![0.0; 8]) });
    let expected = [
        "rate_hz",
        "action.units",
        "unexpected tensor \"surprise\"",
        "head.weight: expected shape [2, 4], got [4, 2]",
        "ln_f.bias: is missing",
        "\"head.bias\": expected finite values, got NaN at index 1",
    ];
    let found = problems(config.clone(), weights.clone());
    assert_eq!(found.len(), expected.len(), "{found:#?}");

    // From files as well.
    let policy = toml::to_string(&config).unwrap();
    let bytes = safetensors::serialize(weights.iter().map(|(n, t)| (n.to_owned(), t)), None).unwrap();
    let PackageError::Problems(read) = error(&policy, &bytes) else { panic!("not problems") };
    for part in expected {
        assert!(found.iter().any(|p| p.contains(part)), "{part}: {found:#?}");
        assert!(read.iter().any(|p| p.contains(part)), "{part}: {read:#?}");
    }
    assert_eq!(read.len(), expected.len(), "{read:#?}");
}

#[test]
fn values_must_fill_their_shape() {
    let mut weights = small_weights(&small_config());
    weights.insert("head.bias".into(), Tensor { shape: vec![2], data: TensorData::F32(vec![0.0]) });
    assert!(problems(small_config(), weights)[0].contains("values for shape [2], got 1"));
}

#[test]
fn policy_toml_must_be_of_this_form() {
    let (policy, weights) = files(&small());
    for (from, to, part) in [
        ("[architecture]", "[architecture]\nwings = 2", "unknown field `wings`"),
        ("rate_hz = 20.0", "", "missing field `rate_hz`"),
        ("layers = 1", "layers = -1", "invalid value"),
        ("kind = \"ddpm\"", "kind = \"euler\"", "unknown variant `euler`"),
        ("rate_hz", "default_schedule = \"../../x\"\nrate_hz", "default_schedule: expected a name"),
        ("rate_hz", "default_schedule = \".\"\nrate_hz", "default_schedule: expected a name"),
        ("format = 1", "format = 2", "format: expected 1, got 2"),
        ("layers = 1", "layers = 9000000000000000000", "architecture.layers: expected 1 to 128"),
        ("width = 4", "width = 0", "architecture.width"),
        ("heads = 2", "heads = 3", "does not divide"),
        ("horizon = 4", "horizon = 100000", "architecture.horizon"),
        ("train_steps = 10", "train_steps = 9000000000000000000", "sampler.train_steps"),
        ("scale = [2.0, 2.0]", "scale = [2.0, nan]", "action.normalizer.scale[1]"),
        ("scale = [2.0, 2.0]", "scale = [0.0, 2.0]", "cannot be mapped back"),
        ("format", "\"", "policy.toml"),
    ] {
        let broken = policy.replacen(from, to, 1);
        assert_ne!(broken, policy, "{from}");
        let error = error(&broken, &weights).to_string();
        assert!(error.contains(part), "{to}: {error}");
    }
    let long = format!("{policy}\n#{}", "x".repeat(5 << 20));
    assert!(matches!(error(&long, &weights), PackageError::TooLarge { file, .. } if file == "policy.toml"));
}

#[test]
fn damaged_weights_are_named() {
    let (policy, weights) = files(&small());
    for length in [0, 7, 8, 100, weights.len() - 1] {
        assert!(matches!(error(&policy, &weights[..length]), PackageError::Weights(_)), "{length}");
    }
    let longer = [&weights[..], &[0]].concat();
    let text = error(&policy, &longer).to_string();
    assert!(text.contains("bytes of values"), "{text}");
    for header_length in [u64::MAX, 5 << 20, weights.len() as u64] {
        let broken = [&header_length.to_le_bytes()[..], &weights[8..]].concat();
        assert!(matches!(error(&policy, &broken), PackageError::Weights(_)), "{header_length}");
    }
    let with_header =
        |header: &str| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    for header in [
        "",
        "{",
        "[]",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,4294967296],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F99\",\"shape\":[1],\"data_offsets\":[0,4]}}",
    ] {
        assert!(matches!(error(&policy, &with_header(header)), PackageError::Weights(_)), "{header}");
    }
    let deep = with_header(&"[".repeat(100_000));
    assert!(matches!(error(&policy, &deep), PackageError::Weights(_)));
    // Sound, but of one unknown tensor.
    let one = with_header("{\"../../etc/passwd\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}");
    let PackageError::Problems(found) = error(&policy, &one) else { panic!("not problems") };
    assert!(found.iter().any(|p| p.contains("unexpected tensor \"../../etc/passwd\"")), "{found:#?}");
    let text = PackageError::Problems(vec!["x".into(); 1000]).to_string();
    assert!(text.contains("and 950 more") && text.lines().count() == 52, "{text}");
}

#[test]
fn other_dtypes_are_refused() {
    let (policy, weights) = files(&small());
    let file = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let zeros = vec![0u8; 16];
    let views = file.iter().map(|(name, view)| {
        if name == "head.bias" {
            (name, TensorView::new(Dtype::F64, vec![2], &zeros).unwrap())
        } else {
            (name, view)
        }
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    let text = error(&policy, &bytes).to_string();
    assert!(text.contains("\"head.bias\": expected dtype F16 or F32, got F64"), "{text}");
}

#[test]
fn folders_without_a_package_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = Package::load(dir.path()).unwrap_err().to_string();
    assert!(text.contains("policy.toml") && text.contains("expected a policy package"), "{text}");
    small().save(dir.path()).unwrap();
    fs::remove_file(dir.path().join("weights.safetensors")).unwrap();
    fs::create_dir(dir.path().join("weights.safetensors")).unwrap();
    let text = Package::load(dir.path()).unwrap_err().to_string();
    assert!(text.contains("weights.safetensors") && text.contains("is not a file"), "{text}");
    let in_the_way = dir.path().join("policy.toml");
    assert!(matches!(small().save(&in_the_way), Err(PackageError::Write { .. })));
    // A file larger than the limit is refused by its size alone; this one takes no space on disk.
    fs::remove_dir(dir.path().join("weights.safetensors")).unwrap();
    let sparse = fs::File::create(dir.path().join("weights.safetensors")).unwrap();
    sparse.set_len((4 << 30) + 1).unwrap();
    assert!(matches!(Package::load(dir.path()), Err(PackageError::TooLarge { .. })));
}
