//! LeRobot folders: what is in the way is said by name; and the page of what is supported.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use refrain_policies::import::{lerobot, supported};
use serde_json::{Value, json};

/// A folder as `save_pretrained` writes it, with `config.json` changed at a pointer.
fn folder(path: &str, value: Value) -> tempfile::TempDir {
    let mut config = json!({
        "type": "multi_task_dit", "n_obs_steps": 2, "horizon": 32, "n_action_steps": 24, "objective": "diffusion",
        "hidden_dim": 512, "num_layers": 6, "num_heads": 8, "use_rope": false,
        "normalization_mapping": { "VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "QUANTILES" },
        "input_features": {
            "observation.state": { "type": "STATE", "shape": [6] },
            "observation.images.top": { "type": "VISUAL", "shape": [3, 480, 640] },
        },
        "output_features": { "action": { "type": "ACTION", "shape": [6] } },
    });
    if let Some((parent, key)) = path.rsplit_once('/') {
        let parent = config.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        if value.is_null() { drop(parent.remove(key)) } else { drop(parent.insert(key.into(), value)) }
    }
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| fs::write(folder.path().join(name), content).unwrap();
    write("config.json", &config.to_string());
    write("model.safetensors", "");
    write("stats.safetensors", "");
    for name in ["policy_preprocessor.json", "policy_postprocessor.json"] {
        let steps = json!([
            { "registry_name": "to_batch_processor", "config": {} },
            { "registry_name": "normalizer_processor", "config": {}, "state_file": "stats.safetensors" },
        ]);
        write(name, &json!({ "name": name, "steps": steps }).to_string());
    }
    folder
}

fn says(folder: &Path, parts: &[&str]) {
    let error = lerobot(folder).to_string();
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn a_sound_folder_lacks_only_its_denoiser() {
    let folder = folder("", Value::Null);
    let error = lerobot(folder.path()).to_string();
    assert!(error.contains("6 DiT blocks of width 512 with 8 heads"), "{error}");
    assert_eq!(error.lines().count(), 2, "{error}");
}

#[test]
fn what_is_in_the_way_is_named() {
    for (path, value, parts) in [
        ("/type", json!("diffusion"), ["\"diffusion\"", "U-Net"]),
        ("/type", json!("act"), ["\"act\"", "nothing is denoised"]),
        ("/type", json!("pi0"), ["\"pi0\"", "--supported"]),
        ("/type", Value::Null, ["config.json", "missing field `type`"]),
        ("/objective", json!("flow_matching"), ["objective \"flow_matching\"", "expected diffusion"]),
        ("/use_rope", json!(true), ["use_rope", "expected false"]),
        ("/use_rope", json!("yes"), ["config.json", "expected a boolean"]),
        ("/horizon", json!(20), ["n_action_steps: 24 steps from step 1", "horizon 20"]),
        ("/n_action_steps", json!(u64::MAX), ["n_action_steps", "horizon 32"]),
        ("/horizon", json!(-1), ["config.json", "expected usize"]),
        ("/horizon", Value::Null, ["config.json", "missing field `horizon`"]),
        ("/normalization_mapping/STATE", json!("LOG"), ["normalization_mapping.STATE: \"LOG\"", "MIN_MAX"]),
        ("/input_features/observation.state", Value::Null, ["input_features.observation.state", "missing"]),
        ("/output_features/action", Value::Null, ["output_features.action", "missing"]),
        ("/output_features/action/shape", json!([2, 3]), ["\"action\"", "expected 1 sizes, got [2, 3]"]),
        (
            "/input_features/observation.images.top/type",
            json!("SOUND"),
            ["observation.images.top", "\"SOUND\""],
        ),
    ] {
        says(folder(path, value).path(), &parts);
    }
}

#[test]
fn files_that_are_missing_or_lead_elsewhere() {
    let folder = folder("", Value::Null);
    let write = |name: &str, content: &str| fs::write(folder.path().join(name), content).unwrap();
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    fs::remove_file(folder.path().join("policy_postprocessor.json")).unwrap();
    let step = |file: &str| {
        let step = json!({ "registry_name": "normalizer_processor", "state_file": file });
        json!({ "steps": [step, { "registry_name": "run_anything" }] }).to_string()
    };
    write("policy_preprocessor.json", &step("../../etc/passwd"));
    says(folder.path(), &["model.safetensors: is missing", "policy_postprocessor.json: No such file"]);
    says(
        folder.path(),
        &["expected a plain file name, got \"../../etc/passwd\"", "step 1: \"run_anything\""],
    );
    write("policy_preprocessor.json", &step("/etc/passwd"));
    says(folder.path(), &["expected a plain file name, got \"/etc/passwd\""]);
    write("policy_preprocessor.json", &step("nowhere.safetensors"));
    says(folder.path(), &["\"nowhere.safetensors\" is missing"]);
    write("config.json", &format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)));
    says(folder.path(), &["config.json"]);
    fs::File::create(folder.path().join("config.json")).unwrap().set_len(2 << 20).unwrap();
    says(folder.path(), &["config.json", "at most 1048576 bytes"]);
    says(Path::new("/nowhere"), &["/nowhere/config.json: No such file"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Cut and altered files are an error like any other, and never more than a page.
    #[test]
    fn damaged_folders(at: prop::sample::Index, byte: u8, cut: bool, which in 0..2usize) {
        let folder = folder("", Value::Null);
        let file = folder.path().join(["config.json", "policy_preprocessor.json"][which]);
        let mut bytes = fs::read(&file).unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        fs::write(&file, bytes).unwrap();
        prop_assert!(lerobot(folder.path()).to_string().len() < 10_000);
    }
}

#[test]
fn the_page_is_what_the_code_says() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("SUPPORTED.md");
    let committed = fs::read_to_string(&page).unwrap_or_default();
    assert!(committed == supported(), "make it again: refrain import --supported > policies/SUPPORTED.md");
}
