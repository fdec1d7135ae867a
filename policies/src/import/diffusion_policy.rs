//! Checkpoints of real-stanford/diffusion_policy: `DiffusionTransformerLowdimPolicy` with `TransformerForDiffusion`.
//!
//! Layout: `{cfg, state_dicts: {model, ema_model?, optimizer}, pickles}`. The policy's state dict has the denoiser's
//! tensors under `model.` and the normaliser's under `normalizer.params_dict.`. Sources:
//! `policy/diffusion_transformer_lowdim_policy.py`, `model/diffusion/transformer_for_diffusion.py`,
//! `model/common/normalizer.py`, `workspace/base_workspace.py`; diffusers 0.42.1 for the schedulers' defaults.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek};

use super::archive::Archive;
use super::config_tree::Tree;
use super::pickle::{Id, Pickle};
use super::section::Section;
use super::tensors::{self, Tensors, View};
use super::{ImportError, Options, store, tasks};
use crate::config::{Architecture, FORMAT, Normalizer, NormalizerMode, PolicyConfig, Provenance};
use crate::noise_schedule::BetaSchedule;
use crate::package::{Package, Tensor, expected_tensors, fits, shown};
use crate::sampler::{PredictionType, SamplerConfig, SamplerKind, TimestepSpacing, VarianceType};

const POLICY: &str =
    "diffusion_policy.policy.diffusion_transformer_lowdim_policy.DiffusionTransformerLowdimPolicy";
const MODEL: &str = "diffusion_policy.model.diffusion.transformer_for_diffusion.TransformerForDiffusion";
const SCHEDULERS: [(&str, SamplerKind); 6] = [
    ("diffusers.schedulers.scheduling_ddpm.DDPMScheduler", SamplerKind::Ddpm),
    ("diffusers.schedulers.scheduling_ddim.DDIMScheduler", SamplerKind::Ddim),
    ("diffusers.schedulers.DDPMScheduler", SamplerKind::Ddpm),
    ("diffusers.schedulers.DDIMScheduler", SamplerKind::Ddim),
    ("diffusers.DDPMScheduler", SamplerKind::Ddpm),
    ("diffusers.DDIMScheduler", SamplerKind::Ddim),
];
/// Keys of hydra's own that change nothing.
const HYDRA: [&str; 2] = ["_convert_", "_recursive_"];
/// Where the checkpoint names no rate.
const DEFAULT_RATE_HZ: f64 = 10.0;
/// Most tensors of a state dict.
const MAX_TENSORS: usize = 100_000;

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

    let described = describe(&tree, &problems);
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
    let observation = normalizer(&state, &mut tensors, "obs", described.obs_dim, &problems)?;
    let action = normalizer(&state, &mut tensors, "action", described.action_dim, &problems)?;
    check_masks(&state, &described, &problems);
    let mut problems = problems.into_inner();
    let (Some(observation), Some(action)) = (observation, action) else {
        return Err(ImportError::Unsupported(problems));
    };
    if !problems.is_empty() {
        return Err(ImportError::Unsupported(problems));
    }
    let (observation, action) = tasks::signals(&described.task, observation, action);
    let mut notes = Vec::new();
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
        cameras: Vec::new(),
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
    let views = state.model(&expected, &mut problems);
    if !problems.is_empty() {
        return Err(ImportError::Unsupported(problems));
    }
    let mut weights = crate::package::Weights::default();
    for (name, mut view) in views {
        if let Some((_, shape)) = expected.iter().find(|(n, _)| *n == name) {
            view.shape.clone_from(shape); // the first rows of a position table
        }
        match store(tensors.read(&view)?, options.dtype) {
            Ok(data) => drop(weights.insert(name, Tensor { shape: view.shape, data })),
            Err(problem) => problems.push(format!("{which}: model.{name}: {problem}")),
        }
    }
    if !problems.is_empty() {
        return Err(ImportError::Unsupported(problems));
    }
    Ok(Package::new(config, weights)?)
}

/// What the configuration says.
struct Described {
    task: String,
    rate_hz: Option<f64>,
    use_ema: Option<bool>,
    obs_dim: usize,
    action_dim: usize,
    architecture: Architecture,
    sampler: SamplerConfig,
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
    policy.class(&[(POLICY, ())]);
    policy.ignore(&HYDRA);
    policy.ignore(&["model", "noise_scheduler"]);
    let (obs_dim, action_dim) = (policy.required("obs_dim"), policy.required("action_dim"));
    let obs_as_cond = policy.flag("obs_as_cond").unwrap_or(false);
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
    };
    policy.finish();
    let size = action_dim + if obs_as_cond { 0 } else { obs_dim };
    model(tree, &mut architecture, size, obs_dim, problems);
    Described { task, rate_hz, use_ema, obs_dim, action_dim, architecture, sampler }
}

/// The denoiser; `size` is N.
fn model(tree: &Tree, a: &mut Architecture, size: usize, obs_dim: usize, problems: &RefCell<Vec<String>>) {
    let model = Section::new(tree, "policy.model", problems);
    model.class(&[(MODEL, ())]);
    model.ignore(&HYDRA);
    // The model itself ignores `obs_as_cond` and goes by `cond_dim`.
    model.ignore(&["p_drop_emb", "p_drop_attn", "obs_as_cond"]);
    a.layers = model.size("n_layer").unwrap_or(12);
    a.heads = model.size("n_head").unwrap_or(12);
    a.width = model.size("n_emb").unwrap_or(768);
    a.causal = model.flag("causal_attn").unwrap_or(false);
    a.time_as_cond = model.flag("time_as_cond").unwrap_or(true);
    // An encoder-only trunk has no condition encoder, whatever the configuration says.
    let condition_layers = model.size("n_cond_layers").unwrap_or(0);
    a.condition_layers = if a.time_as_cond { condition_layers } else { 0 };
    let must_be = |key: &str, got: usize, expected: usize| {
        if got != expected {
            model.problem(key, &format!("expected {expected}, got {got}"));
        }
    };
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

/// The policy's state dict: descriptions of tensors by name.
struct State<'a> {
    pickle: &'a Pickle,
    tensors: BTreeMap<&'a str, Id>,
}

impl<'a> State<'a> {
    fn new(pickle: &'a Pickle, pairs: &[(Id, Id)], problems: &RefCell<Vec<String>>) -> Self {
        let mut tensors = BTreeMap::new();
        for &(key, value) in pairs {
            match pickle.text(key) {
                Some(name) if tensors.len() < MAX_TENSORS => drop(tensors.insert(name, value)),
                _ => {
                    problems.borrow_mut().push(format!(
                        "state_dicts: expected at most {MAX_TENSORS} tensors by name, got a key that is {}",
                        pickle.kind(key)
                    ));
                    break;
                }
            }
        }
        Self { pickle, tensors }
    }

    fn view(&self, name: &str) -> Option<Result<View, String>> {
        self.tensors.get(name).map(|&id| tensors::view(self.pickle, id))
    }

    /// The denoiser's tensors; everything that is missing, unknown or of another shape is a problem.
    fn model(&self, expected: &[(String, Vec<usize>)], problems: &mut Vec<String>) -> Vec<(String, View)> {
        let mut views = Vec::new();
        for (name, shape) in expected {
            let full = format!("model.{name}");
            match self.view(&full) {
                None => problems.push(format!("{full}: is missing, expected shape {shape:?}")),
                Some(Err(problem)) => problems.push(format!("{full}: {problem}")),
                Some(Ok(view)) if !fits(name, shape, &view.shape) => {
                    problems.push(format!("{full}: expected shape {shape:?}, got {:?}", view.shape));
                }
                Some(Ok(view)) => views.push((name.clone(), view)),
            }
        }
        let known: BTreeSet<&str> = expected.iter().map(|(name, _)| &name[..]).collect();
        for &name in self.tensors.keys() {
            let ignored = match name.split_once('.') {
                None => is_derived(name),
                Some(("model", rest)) => known.contains(rest) || is_derived(rest),
                Some(("mask_generator", rest)) => is_derived(rest),
                Some((first, _)) => first == "normalizer",
            };
            if !ignored {
                problems.push(format!("unexpected tensor {}", shown(name)));
            }
        }
        views
    }
}

/// The masks follow from the architecture; that there are any must agree with it.
fn check_masks(state: &State<'_>, described: &Described, problems: &RefCell<Vec<String>>) {
    let a = &described.architecture;
    for (name, expected) in [("model.mask", a.causal), ("model.memory_mask", a.causal && a.obs_as_cond)] {
        let got = state.tensors.contains_key(name);
        if got != expected {
            let (got, expected) =
                (if got { "is there" } else { "is missing" }, if expected { "has" } else { "has no" });
            problems
                .borrow_mut()
                .push(format!("{name}: {got}, but a model with this configuration {expected} such mask"));
        }
    }
}

/// One normaliser of `size` elements; `None` where something is wrong with it.
fn normalizer<R: Read + Seek>(
    state: &State<'_>,
    tensors: &mut Tensors<R>,
    field: &str,
    size: usize,
    problems: &RefCell<Vec<String>>,
) -> Result<Option<Normalizer>, ImportError> {
    let mut read = |part: &str, optional: bool| -> Result<Option<Vec<f32>>, ImportError> {
        let name = format!("normalizer.params_dict.{field}.{part}");
        let problem = |text: String| problems.borrow_mut().push(format!("{name}: {text}"));
        match state.view(&name) {
            None if optional => {}
            None => problem("is missing; was the policy saved before set_normalizer?".into()),
            Some(Err(text)) => problem(text),
            // One parameter serves all elements.
            Some(Ok(view)) if view.shape == [size] || view.shape == [1] => {
                let values = tensors.read(&view)?;
                return Ok(Some(if values.len() == size { values } else { vec![values[0]; size] }));
            }
            Some(Ok(view)) => problem(format!("expected shape {:?}, got {:?}", [size], view.shape)),
        }
        Ok(None)
    };
    if !(1..=4096).contains(&size) {
        problems.borrow_mut().push(format!("cfg.policy.{field}_dim: expected 1 to 4096, got {size}"));
        return Ok(None);
    }
    let (scale, offset) = (read("scale", false)?, read("offset", false)?);
    let mut stats = ["min", "max", "mean", "std"].map(|_| Vec::new());
    for (values, part) in stats.iter_mut().zip(["min", "max", "mean", "std"]) {
        *values = read(&format!("input_stats.{part}"), true)?.unwrap_or_default();
    }
    let (Some(scale), Some(offset)) = (scale, offset) else { return Ok(None) };
    let [min, max, mean, std] = stats;
    let mode = mode(&scale, &offset, [&min, &max, &mean, &std]);
    Ok(Some(Normalizer { mode, scale, offset, min, max }))
}

/// How a normaliser was fitted, told from what it makes of the statistics.
fn mode(scale: &[f32], offset: &[f32], [min, max, mean, std]: [&[f32]; 4]) -> NormalizerMode {
    let n = scale.len();
    let all = |near: &dyn Fn(usize) -> bool| (0..n).all(near);
    let map = |values: &[f32], i: usize| values[i] * scale[i] + offset[i];
    let near = |a: f32, b: f32| (a - b).abs() < 1e-3;
    // Elements that never moved have scale 1 and are only shifted.
    let still = |i: usize| scale[i] == 1.0 && max[i] - min[i] < 1e-4;
    let known = |stats: [&[f32]; 2]| stats.iter().all(|s| s.len() == n);
    if known([min, max]) && all(&|i| still(i) || (near(map(min, i), -1.0) && near(map(max, i), 1.0))) {
        NormalizerMode::Limits
    } else if known([mean, std])
        && known([min, max])
        && all(&|i| near(map(mean, i), 0.0) && (still(i) || near(std[i] * scale[i], 1.0)))
    {
        NormalizerMode::Gaussian
    } else {
        NormalizerMode::Manual
    }
}
