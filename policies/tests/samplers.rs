//! Every run of `tests/fixtures/samplers.*` against the sampler's coefficient table.
//!
//! The fixtures are runs of the diffusers schedulers in f32; see `tests/fixtures/README.md`. A run is compared step by
//! step: each step starts from the fixture's own sample where the one before is stored, so that what is measured is the
//! coefficients and not their amplification, and the whole run is followed beside it.

mod support;

use std::fs;
use std::path::PathBuf;

use refrain_policies::noise_schedule::BetaSchedule;
use refrain_policies::sampler::{PredictionType, SamplerConfig, SamplerKind, TimestepSpacing, VarianceType};
use safetensors::SafeTensors;
use serde_json::Value;

/// Largest difference of one step, relative to the larger of 1 and the sample.
///
/// Measured: 2.5e-7 at most, two roundings of f32; the rest is room for another processor's square root of a logarithm.
const STEP: f32 = 1e-6;
/// Largest difference at the end of a run, the same way: every step's own plus what later steps make of it. Measured:
/// 1e-6 at most.
const RUN: f32 = 4e-6;

struct Fixtures {
    json: Value,
    bytes: Vec<u8>,
}

impl Fixtures {
    fn read() -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let json = fs::read_to_string(folder.join("samplers.json")).expect("tests/fixtures/samplers.json");
        let bytes =
            fs::read(folder.join("samplers.safetensors")).expect("tests/fixtures/samplers.safetensors");
        Self { json: serde_json::from_str(&json).expect("samplers.json is JSON"), bytes }
    }

    fn cases(&self, group: &str) -> Vec<(&str, &Value)> {
        let cases = self.json[group].as_object().expect(group);
        cases.iter().map(|(name, case)| (name.as_str(), case)).collect()
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).expect("samplers.safetensors")
    }
}

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(view.dtype(), safetensors::Dtype::F32, "{name}");
    view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn integers(tensors: &SafeTensors<'_>, name: &str) -> Vec<usize> {
    let view = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(view.dtype(), safetensors::Dtype::I64, "{name}");
    let numbers = view.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b));
    numbers.map(|v| usize::try_from(v).expect("a timestep is not negative")).collect()
}

fn one_of<T: Copy>(value: &Value, choices: &[(&str, T)], default: &str) -> T {
    let name = value.as_str().unwrap_or(default);
    choices.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("{name} is no known choice")).1
}

/// Arguments of a diffusers scheduler as the sampler's table; what is left out has diffusers' default.
fn config(case: &Value) -> SamplerConfig {
    let (c, step) = (&case["config"], &case["step_kwargs"]);
    let number = |key: &str, default: f64| c[key].as_f64().unwrap_or(default);
    let size = |key: &str, default: u64| c[key].as_u64().unwrap_or(default) as usize;
    let flag = |value: &Value, default: bool| value.as_bool().unwrap_or(default);
    let ddim = c["_target_"].as_str().expect("_target_").ends_with("DDIMScheduler");
    SamplerConfig {
        kind: if ddim { SamplerKind::Ddim } else { SamplerKind::Ddpm },
        inference_steps: case["steps"].as_u64().expect("steps") as usize,
        train_steps: size("num_train_timesteps", 1000),
        beta_schedule: one_of(
            &c["beta_schedule"],
            &[
                ("linear", BetaSchedule::Linear),
                ("scaled_linear", BetaSchedule::ScaledLinear),
                ("squaredcos_cap_v2", BetaSchedule::SquaredcosCapV2),
                ("sigmoid", BetaSchedule::Sigmoid),
                ("laplace", BetaSchedule::Laplace),
            ],
            "linear",
        ),
        beta_start: number("beta_start", 1e-4),
        beta_end: number("beta_end", 0.02),
        trained_betas: c["trained_betas"].as_array().map_or_else(Vec::new, |betas| {
            betas.iter().map(|b| b.as_f64().expect("a number") as f32).collect()
        }),
        rescale_betas_zero_snr: flag(&c["rescale_betas_zero_snr"], false),
        prediction_type: one_of(
            &c["prediction_type"],
            &[
                ("epsilon", PredictionType::Epsilon),
                ("sample", PredictionType::Sample),
                ("v_prediction", PredictionType::VPrediction),
            ],
            "epsilon",
        ),
        clip_sample: flag(&c["clip_sample"], true),
        clip_sample_range: number("clip_sample_range", 1.0) as f32,
        timestep_spacing: one_of(
            &c["timestep_spacing"],
            &[
                ("leading", TimestepSpacing::Leading),
                ("linspace", TimestepSpacing::Linspace),
                ("trailing", TimestepSpacing::Trailing),
            ],
            "leading",
        ),
        steps_offset: size("steps_offset", 0),
        timesteps: Vec::new(),
        variance_type: one_of(
            &c["variance_type"],
            &[
                ("fixed_small", VarianceType::FixedSmall),
                ("fixed_small_log", VarianceType::FixedSmallLog),
                ("fixed_large", VarianceType::FixedLarge),
                ("fixed_large_log", VarianceType::FixedLargeLog),
            ],
            "fixed_small",
        ),
        eta: step["eta"].as_f64().unwrap_or(0.0) as f32,
        set_alpha_to_one: flag(&c["set_alpha_to_one"], true),
        use_clipped_model_output: flag(&step["use_clipped_model_output"], false),
    }
}

/// Differences of one run, relative to the larger of 1 and the fixture's number.
struct Run {
    step: f32,
    end: f32,
    compared: usize,
}

fn run(config: &SamplerConfig, tensors: &SafeTensors<'_>, name: &str) -> Run {
    let (noise, outputs) = (floats(tensors, "noise"), floats(tensors, "model_outputs"));
    let samples = floats(tensors, &format!("{name}.samples"));
    let steps = config.steps();
    let row = noise.len() / 101;
    let stored: Vec<usize> = match steps.len() {
        k if k * row == samples.len() => (0..k).collect(),
        k => vec![0, 1, k - 2, k - 1],
    };
    assert_eq!(samples.len(), stored.len() * row, "{name}: samples of steps {stored:?}");
    let sample = |k: usize| stored.iter().position(|&s| s == k).map(|i| &samples[i * row..(i + 1) * row]);
    let mut x = noise[..row].to_vec();
    let mut found = Run { step: 0.0, end: 0.0, compared: 0 };
    for (k, step) in steps.iter().enumerate() {
        let at = |values: &[f32], k: usize, i: usize| values[k * row + i];
        let before = if k == 0 { Some(&noise[..row]) } else { sample(k - 1) };
        for (i, x) in x.iter_mut().enumerate() {
            let (model, fresh) = (at(&outputs, k, i), at(&noise, k + 1, i));
            *x = step.apply(*x, model, fresh);
            let Some(golden) = sample(k).map(|s| s[i]) else { continue };
            let relative = |value: f32| (value - golden).abs() / golden.abs().max(1.0);
            let alone = before.map(|b| relative(step.apply(b[i], model, fresh)));
            // NaN must not hide behind `max`.
            for (worst, value) in [(&mut found.step, alone), (&mut found.end, Some(relative(*x)))] {
                if let Some(value) = value
                    && !(value <= *worst || worst.is_nan())
                {
                    *worst = value;
                }
            }
            found.compared += 1;
        }
    }
    found
}

#[test]
fn every_run_of_diffusers_is_reproduced() {
    let fixtures = Fixtures::read();
    let tensors = fixtures.tensors();
    let cases = fixtures.cases("cases");
    assert_eq!(cases.len(), 100);
    let mut failed = Vec::new();
    for (name, case) in cases {
        let config = config(case);
        if config.inference_timesteps() != integers(&tensors, &format!("{name}.timesteps")) {
            failed.push(format!("{name}: timesteps {:?}", config.inference_timesteps()));
            continue;
        }
        let found = run(&config, &tensors, name);
        println!("{name:44} step {:9.2e}  run {:9.2e}", found.step, found.end);
        assert!(found.compared > 0);
        if !(found.step <= STEP && found.end <= RUN) {
            failed.push(format!("{name}: step {:e}, run {:e}", found.step, found.end));
        }
    }
    assert!(failed.is_empty(), "{} of 100 runs differ:\n{}", failed.len(), failed.join("\n"));
}

/// What the whole table says about a sampler, the policy around it being sound.
fn problems(sampler: &SamplerConfig) -> Vec<String> {
    let mut config = support::small_config();
    config.sampler = sampler.clone();
    config.problems()
}

#[test]
fn samplers_that_run_are_accepted() {
    let fixtures = Fixtures::read();
    for (name, case) in fixtures.cases("cases") {
        assert_eq!(problems(&config(case)), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn where_diffusers_gives_nan_refrain_is_finite_or_refuses() {
    let fixtures = Fixtures::read();
    let cases = fixtures.cases("not_finite");
    assert_eq!(cases.len(), 2);
    for (name, case) in cases {
        let sampler = config(case);
        if sampler.variance_type == VarianceType::FixedLargeLog {
            // The root of beta, as the name says and as the documentation of the type says.
            let large = SamplerConfig { variance_type: VarianceType::FixedLarge, ..sampler.clone() };
            assert_eq!(sampler.steps(), large.steps(), "{name}");
            assert!(sampler.steps().iter().all(|s| s.from_noise.is_finite()), "{name}");
        } else {
            let found = problems(&sampler);
            assert!(
                found.len() == 1
                    && found[0].contains("rescale_betas_zero_snr")
                    && found[0].contains("clip_sample"),
                "{name}: {found:?}"
            );
        }
    }
}

#[test]
fn thresholding_is_refused_by_name() {
    let fixtures = Fixtures::read();
    let cases = fixtures.cases("unsupported");
    assert_eq!(cases.len(), 2);
    for (name, case) in cases {
        let mut table = toml::Table::try_from(config(case)).expect("a sampler is a table");
        assert!(table.clone().try_into::<SamplerConfig>().is_ok(), "{name}");
        table.insert(
            "thresholding".into(),
            case["config"]["thresholding"].as_bool().expect("a switch").into(),
        );
        let refused = table.try_into::<SamplerConfig>().expect_err("an unknown key").to_string();
        assert!(refused.contains("thresholding"), "{name}: {refused}");
    }
}
