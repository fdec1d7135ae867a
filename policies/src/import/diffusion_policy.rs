//! Checkpoints of real-stanford/diffusion_policy: policies with `TransformerForDiffusion`, low-dimensional and hybrid.
//!
//! Layout: `{cfg, state_dicts: {model, ema_model?, optimizer}, pickles}`. The policy's state dict has the denoiser's
//! tensors under `model.`, the normaliser's under `normalizer.params_dict.` and, where it sees, the encoder's under
//! `obs_encoder.`, which is exported apart. Sources: `policy/diffusion_transformer_{lowdim,hybrid_image}_policy.py`,
//! `model/diffusion/transformer_for_diffusion.py`, `model/common/normalizer.py`, `workspace/base_workspace.py`;
//! diffusers 0.42.1 for the schedulers' defaults.

use std::cell::RefCell;
use std::io::{Read, Seek};

use super::archive::Archive;
use super::config_tree::Tree;
use super::hybrid::{self, Input};
use super::normalizers::{joined, normalizer};
use super::pickle::Pickle;
use super::section::Section;
use super::state::State;
use super::tensors::Tensors;
use super::{DEFAULT_RATE_HZ, ImportError, Options, store, tasks};
use crate::config::{Architecture, FORMAT, PolicyConfig, Provenance};
use crate::noise_schedule::BetaSchedule;
use crate::package::{Package, Tensor, expected_tensors};
use crate::sampler::{PredictionType, SamplerConfig, SamplerKind, TimestepSpacing, VarianceType};

/// Policies, by whether they see.
pub(super) const POLICIES: [(&str, bool); 2] = [
    ("diffusion_policy.policy.diffusion_transformer_lowdim_policy.DiffusionTransformerLowdimPolicy", false),
    (
        "diffusion_policy.policy.diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy",
        true,
    ),
];
pub(super) const MODEL: &str =
    "diffusion_policy.model.diffusion.transformer_for_diffusion.TransformerForDiffusion";
pub(super) const SCHEDULERS: [(&str, SamplerKind); 6] = [
    ("diffusers.schedulers.scheduling_ddpm.DDPMScheduler", SamplerKind::Ddpm),
    ("diffusers.schedulers.scheduling_ddim.DDIMScheduler", SamplerKind::Ddim),
    ("diffusers.schedulers.DDPMScheduler", SamplerKind::Ddpm),
    ("diffusers.schedulers.DDIMScheduler", SamplerKind::Ddim),
    ("diffusers.DDPMScheduler", SamplerKind::Ddpm),
    ("diffusers.DDIMScheduler", SamplerKind::Ddim),
];
/// Keys of hydra's own that change nothing.
const HYDRA: [&str; 2] = ["_convert_", "_recursive_"];

/// Whether a tensor of the model follows from the architecture, or from nothing.
pub(super) fn is_derived(name: &str) -> bool {
    matches!(name, "mask" | "memory_mask" | "_dummy_variable")
}

/// Imports a checkpoint; name and source are for the caller to fill in.
pub(super) fn import<R: Read + Seek>(
    pickle: &Pickle,
    archive: Archive<R>,
    options: &Options,
) -> Result<Package, ImportError> {
    let refuse = |problem: String| ImportError::Unsupported(vec![problem]);
    let layout = "expected {cfg, state_dicts, pickles}, as diffusion_policy's workspaces save";
    let Some(root) = pickle.pairs(pickle.root()) else {
        return Err(refuse(format!("holds {}; {layout}", pickle.kind(pickle.root()))));
    };
    let (Some(cfg), Some(states)) = (pickle.item(root, "cfg"), pickle.item(root, "state_dicts")) else {
        return Err(refuse(format!("has no cfg or no state_dicts; {layout}")));
    };
    let tree = Tree::new(pickle, cfg).map_err(|e| refuse(format!("cfg: {e}")))?;
    let problems = RefCell::new(Vec::new());

    let mut described = describe(&tree, &problems);
    let Some(states) = pickle.pairs(states) else {
        return Err(refuse(format!("state_dicts: expected a dict, got {}", pickle.kind(states))));
    };
    let averaged = described.use_ema.unwrap_or_else(|| pickle.item(states, "ema_model").is_some());
    let which = if averaged { "ema_model" } else { "model" };
    let Some(state) = pickle.item(states, which).and_then(|id| pickle.pairs(id)) else {
        problems
            .borrow_mut()
            .push(format!("state_dicts.{which}: is missing, and training.use_ema is {averaged}"));
        return Err(ImportError::Unsupported(problems.into_inner()));
    };
    let state = State::new(pickle, state, &problems);

    let mut tensors = Tensors::new(archive);
    let mut low = Vec::new();
    for input in &mut described.inputs {
        // One scale and offset serve a whole image.
        let size = if input.camera.is_some() { 1 } else { input.size };
        let Some(fitted) = normalizer(&state, &mut tensors, &input.key, (&input.at, size), &problems)? else {
            continue;
        };
        match input.camera {
            Some(_) => input.see(&fitted),
            None => low.push(fitted),
        }
    }
    let action = (described.action_at, described.action_dim);
    let action = normalizer(&state, &mut tensors, "action", action, &problems)?;
    hybrid::divide_features(&mut described.inputs, &state, &problems);
    check_masks(&state, &described, &problems);
    let mut problems = problems.into_inner();
    let Some(action) = action.filter(|_| problems.is_empty()) else {
        return Err(ImportError::Unsupported(problems));
    };
    let (observation, action) = tasks::signals(&described.task, &described.inputs, joined(low), action);
    let mut notes = described.notes;
    let rate_hz = options.rate_hz.or(described.rate_hz).unwrap_or_else(|| {
        notes.push(format!("rate_hz: the checkpoint names none, {DEFAULT_RATE_HZ} is assumed"));
        DEFAULT_RATE_HZ
    });
    let config = PolicyConfig {
        format: FORMAT,
        name: "imported".into(),
        rate_hz,
        default_schedule: None,
        architecture: described.architecture,
        observation,
        action,
        cameras: described.inputs.iter().filter_map(|input| input.camera.clone()).collect(),
        sampler: described.sampler,
        provenance: Provenance {
            weights: which.into(),
            license: options.license.clone().unwrap_or_default(),
            notes,
            ..Provenance::default()
        },
    };
    let wrong = config.problems();
    if !wrong.is_empty() {
        return Err(ImportError::Unsupported(wrong));
    }

    // All descriptions are compared before any value is read.
    let expected = expected_tensors(&config);
    let views = state.model(&expected, described.sees, &mut problems);
    if !problems.is_empty() {
        return Err(ImportError::Unsupported(problems));
    }
    let mut weights = crate::package::Weights::default();
    for (name, mut view) in views {
        if let Some((_, shape)) = expected.iter().find(|(n, _)| *n == name) {
            view.shape.clone_from(shape); // the first rows of a position table
        }
        let mut values = tensors.read(&view)?;
        if described.sees && name == hybrid::TAKES_FEATURES {
            hybrid::cameras_first(&described.inputs, &mut values);
        }
        match store(values, options.dtype) {
            Ok(data) => drop(weights.insert(name, Tensor { shape: view.shape, data })),
            Err(problem) => problems.push(format!("{which}: model.{name}: {problem}")),
        }
    }
    if !problems.is_empty() {
        return Err(ImportError::Unsupported(problems));
    }
    Ok(Package::without_encoders(config, weights)?)
}

/// What the configuration says.
struct Described {
    task: String,
    rate_hz: Option<f64>,
    use_ema: Option<bool>,
    /// It is the hybrid policy.
    sees: bool,
    inputs: Vec<Input>,
    action_at: &'static str,
    action_dim: usize,
    architecture: Architecture,
    sampler: SamplerConfig,
    notes: Vec<String>,
}

fn describe(tree: &Tree, problems: &RefCell<Vec<String>>) -> Described {
    let top = Section::new(tree, "", problems);
    if top.size("n_latency_steps").is_some_and(|n| n != 0) {
        top.problem("n_latency_steps", "is not supported; expected 0");
    }
    if top.flag("past_action_visible") == Some(true) {
        top.problem("past_action_visible", "is not supported; expected false");
    }
    let task = top.text("task_name").or_else(|| top.text("task.name")).unwrap_or_default();
    let rate_hz = top.number("task.env_runner.fps");
    let use_ema = top.flag("training.use_ema");

    let policy = Section::new(tree, "policy", problems);
    let sees = policy.class(&POLICIES).unwrap_or(false);
    policy.ignore(&HYDRA);
    policy.ignore(if sees { &["shape_meta", "noise_scheduler"] } else { &["model", "noise_scheduler"] });
    let mut notes = Vec::new();
    let (inputs, action_at, action_dim) = if sees {
        let (inputs, action_dim) = hybrid::inputs(tree, &policy, &mut notes, problems);
        (inputs, "cfg.policy.shape_meta.action.shape", action_dim)
    } else {
        let low = Input::low("obs", "cfg.policy.obs_dim", policy.required("obs_dim"));
        (vec![low], "cfg.policy.action_dim", policy.required("action_dim"))
    };
    let obs_as_cond = policy.flag("obs_as_cond").unwrap_or(sees);
    if sees && !obs_as_cond {
        policy.problem("obs_as_cond", "false is not supported for a policy that sees; expected true");
    }
    let sampler = sampler(tree, &policy, problems);
    let mut architecture = Architecture {
        layers: 0,
        heads: 0,
        width: 0,
        condition_layers: 0,
        causal: false,
        time_as_cond: true,
        obs_as_cond,
        horizon: policy.required("horizon"),
        n_obs_steps: policy.required("n_obs_steps"),
        n_action_steps: policy.required("n_action_steps"),
        pred_action_steps_only: policy.flag("pred_action_steps_only").unwrap_or(false),
        dit: None,
    };
    if sees {
        trunk(&policy, &mut architecture, Defaults { layers: 8, heads: 4, width: 256, causal: true });
        if architecture.causal {
            expect(&policy, "horizon", architecture.horizon, architecture.tokens());
        }
    }
    policy.finish();
    if let (false, [input]) = (sees, &inputs[..]) {
        let size = action_dim + if obs_as_cond { 0 } else { input.size };
        model(tree, &mut architecture, size, input.size, problems);
    }
    Described { task, rate_hz, use_ema, sees, inputs, action_at, action_dim, architecture, sampler, notes }
}

/// What the denoiser is where the configuration does not say.
struct Defaults {
    layers: usize,
    heads: usize,
    width: usize,
    causal: bool,
}

/// The denoiser's own options.
fn trunk(section: &Section<'_>, a: &mut Architecture, defaults: Defaults) {
    section.ignore(&["p_drop_emb", "p_drop_attn"]);
    a.layers = section.size("n_layer").unwrap_or(defaults.layers);
    a.heads = section.size("n_head").unwrap_or(defaults.heads);
    a.width = section.size("n_emb").unwrap_or(defaults.width);
    a.causal = section.flag("causal_attn").unwrap_or(defaults.causal);
    a.time_as_cond = section.flag("time_as_cond").unwrap_or(true);
    // An encoder-only trunk has no condition encoder, whatever the configuration says.
    let condition_layers = section.size("n_cond_layers").unwrap_or(0);
    a.condition_layers = if a.time_as_cond { condition_layers } else { 0 };
}

fn expect(section: &Section<'_>, key: &str, got: usize, expected: usize) {
    if got != expected {
        section.problem(key, &format!("expected {expected}, got {got}"));
    }
}

/// The denoiser of a low-dimensional policy; `size` is N.
fn model(tree: &Tree, a: &mut Architecture, size: usize, obs_dim: usize, problems: &RefCell<Vec<String>>) {
    let model = Section::new(tree, "policy.model", problems);
    model.class(&[(MODEL, ())]);
    model.ignore(&HYDRA);
    model.ignore(&["obs_as_cond"]); // the model itself goes by `cond_dim`
    trunk(&model, a, Defaults { layers: 12, heads: 12, width: 768, causal: false });
    let must_be = |key: &str, got: usize, expected: usize| expect(&model, key, got, expected);
    must_be("input_dim", model.required("input_dim"), size);
    must_be("output_dim", model.required("output_dim"), size);
    must_be("cond_dim", model.size("cond_dim").unwrap_or(0), if a.obs_as_cond { obs_dim } else { 0 });
    let horizon = model.required("horizon");
    let steps = model.size("n_obs_steps").unwrap_or(horizon);
    if a.causal {
        // The masks have the model's sizes.
        must_be("horizon", horizon, a.tokens());
        if a.obs_as_cond {
            must_be("n_obs_steps", steps, a.n_obs_steps);
        }
    }
    model.finish();
}

/// The scheduler, with the arguments for its steps out of the policy's section.
fn sampler(tree: &Tree, policy: &Section<'_>, problems: &RefCell<Vec<String>>) -> SamplerConfig {
    let s = Section::new(tree, "policy.noise_scheduler", problems);
    s.ignore(&HYDRA);
    let kind = s.class(&SCHEDULERS).unwrap_or(SamplerKind::Ddpm);
    let train_steps = s.size("num_train_timesteps").unwrap_or(1000);
    let mut schedules = vec![
        ("linear", BetaSchedule::Linear),
        ("scaled_linear", BetaSchedule::ScaledLinear),
        ("squaredcos_cap_v2", BetaSchedule::SquaredcosCapV2),
    ];
    let mut variance_type = VarianceType::FixedSmall;
    let (mut set_alpha_to_one, mut eta, mut use_clipped_model_output) = (true, 0.0, false);
    match kind {
        SamplerKind::Ddpm => {
            schedules.extend([("sigmoid", BetaSchedule::Sigmoid), ("laplace", BetaSchedule::Laplace)]);
            variance_type = s.choice(
                "variance_type",
                &[
                    ("fixed_small", VarianceType::FixedSmall),
                    ("fixed_small_log", VarianceType::FixedSmallLog),
                    ("fixed_large", VarianceType::FixedLarge),
                    ("fixed_large_log", VarianceType::FixedLargeLog),
                ],
                variance_type,
            );
        }
        SamplerKind::Ddim => {
            set_alpha_to_one = s.flag("set_alpha_to_one").unwrap_or(true);
            eta = policy.number("eta").unwrap_or(0.0) as f32;
            use_clipped_model_output = policy.flag("use_clipped_model_output").unwrap_or(false);
        }
    }
    if s.flag("thresholding") == Some(true) {
        s.problem("thresholding", "dynamic thresholding is not supported; expected false");
    }
    s.ignore(&["dynamic_thresholding_ratio", "sample_max_value"]); // of thresholding alone
    let config = SamplerConfig {
        kind,
        inference_steps: policy.size("num_inference_steps").unwrap_or(train_steps),
        train_steps,
        beta_schedule: s.choice("beta_schedule", &schedules, BetaSchedule::Linear),
        beta_start: s.number("beta_start").unwrap_or(1e-4),
        beta_end: s.number("beta_end").unwrap_or(0.02),
        trained_betas: s.numbers("trained_betas").unwrap_or_default(),
        rescale_betas_zero_snr: s.flag("rescale_betas_zero_snr").unwrap_or(false),
        prediction_type: s.choice(
            "prediction_type",
            &[
                ("epsilon", PredictionType::Epsilon),
                ("sample", PredictionType::Sample),
                ("v_prediction", PredictionType::VPrediction),
            ],
            PredictionType::Epsilon,
        ),
        clip_sample: s.flag("clip_sample").unwrap_or(true),
        clip_sample_range: s.number("clip_sample_range").unwrap_or(1.0) as f32,
        timestep_spacing: s.choice(
            "timestep_spacing",
            &[
                ("leading", TimestepSpacing::Leading),
                ("linspace", TimestepSpacing::Linspace),
                ("trailing", TimestepSpacing::Trailing),
            ],
            TimestepSpacing::Leading,
        ),
        steps_offset: s.size("steps_offset").unwrap_or(0),
        timesteps: Vec::new(),
        variance_type,
        eta,
        set_alpha_to_one,
        use_clipped_model_output,
    };
    s.finish();
    config
}

/// The masks follow from the architecture; that there are any must agree with it.
fn check_masks(state: &State<'_>, described: &Described, problems: &RefCell<Vec<String>>) {
    let a = &described.architecture;
    for (name, expected) in [("model.mask", a.causal), ("model.memory_mask", a.causal && a.obs_as_cond)] {
        let got = state.has(name);
        if got != expected {
            let (got, expected) =
                (if got { "is there" } else { "is missing" }, if expected { "has" } else { "has no" });
            problems
                .borrow_mut()
                .push(format!("{name}: {got}, but a model with this configuration {expected} such mask"));
        }
    }
}
