//! The GPU engine against the CPU engine: every member of the policy family, plans of every kind, both precisions.
//!
//! Runs on whatever adapter is present, a processor in disguise included (Mesa's lavapipe in CI); with none it says
//! so and passes. Arenas are poisoned with NaN first, so that an element that nobody wrote fails.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use refrain_policies::config::Architecture;
use refrain_policies::import::{self, Options as Import};
use refrain_policies::package::{Dtype, Package};
use refrain_policies::plan::{Op, Plan, Probed};
use refrain_policies::sampler::SamplerKind;
use refrain_policies::schedule::{self, Cell, Schedule};
use refrain_runtime::engine::cpu::CpuEngine;
use refrain_runtime::engine::gpu::{GpuEngine, Options, Wait};
use refrain_runtime::engine::{Engine, EngineError};
use refrain_tests::model::{Model, Rows};
use refrain_tests::{engines, random};

/// Tolerances of the denoised trajectory, normalised units.
const WITHIN_F32: f32 = 2e-4;
const WITHIN_F16: f32 = 2e-2;

const FAMILY: &[&str] = &[
    "mlp_causal",
    "mlp_bidirectional",
    "cond_layers_causal",
    "inpaint_causal",
    "inpaint_cond_layers",
    "encoder_only",
    "encoder_only_causal",
    "action_steps_only",
    "action_steps_only_causal",
    "odd_sizes",
    "ddim_stochastic",
    "ddim_zero_snr",
    "storages",
];

/// Small numbers that look random; the same on every machine.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Roughly normal.
    fn number(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| (self.bits() >> 40) as f32 / (1u64 << 24) as f32 - 0.5).sum();
        sum * 1.7
    }

    fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.number()).collect()
    }
}

fn fixture(name: &str, dtype: Dtype) -> Package {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/{name}.ckpt"));
    let options = Import { rate_hz: Some(10.0), dtype, ..Import::default() };
    import::checkpoint(&path, &options).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn options() -> Options {
    // Software adapters on a busy machine take their time.
    let patience = Duration::from_secs(600);
    Options { software: true, poison: true, patience, ..Options::default() }
}

/// Whether an adapter is present; says so loudly if not.
fn present() -> bool {
    let found = !GpuEngine::adapters().is_empty();
    if !found {
        eprintln!("SKIPPED: no GPU adapter, nothing was compared; install mesa-vulkan-drivers");
    }
    found
}

/// Blocks that update at random; reused outputs are repeated or forecast.
fn random_schedule(package: &Package, random: &mut Random, forecast: bool) -> Schedule {
    let (a, steps) = (&package.config.architecture, package.config.sampler.inference_steps);
    let rows = schedule::blocks(a).into_iter().map(|block| {
        let mut cached = 0;
        let mut cells = Vec::with_capacity(steps);
        for _ in 0..steps {
            if cached == 0 || random.below(4) == 0 {
                cached += 1;
                cells.push(Cell::Update);
            } else if forecast && cached > 1 && random.below(2) == 0 {
                cells.push(Cell::Reuse(vec![1.5, -0.5]));
            } else {
                cells.push(Cell::Reuse(vec![1.0]));
            }
        }
        (block, cells)
    });
    Schedule::new(a, steps, rows.collect()).expect("a random schedule")
}

/// The largest difference between two engines on several inputs; NaN where either is not finite.
fn difference(package: &Package, schedule: &Schedule, options: &Options, random: &mut Random) -> f32 {
    let plan = Arc::new(Plan::compile(&package.config, schedule).expect("a plan"));
    let mut cpu = CpuEngine::new(Arc::new(package.clone()), Arc::clone(&plan), 1).expect("a CPU engine");
    let mut gpu = GpuEngine::new(package, Arc::clone(&plan), options).expect("a GPU engine");
    let mut worst = 0.0f32;
    // Twice, so that the second inference finds what the first left.
    for _ in 0..2 {
        let (observation, noise) = (random.numbers(plan.observation.len()), random.numbers(plan.noise_len()));
        let mut expected = vec![f32::NAN; plan.trajectory.len()];
        let mut got = vec![f32::NAN; plan.trajectory.len()];
        cpu.infer(&observation, &noise, &mut expected).expect("a CPU inference");
        gpu.infer(&observation, &noise, &mut got).expect("a GPU inference");
        for (e, g) in expected.iter().zip(&got) {
            let d = (e - g).abs();
            worst = if d.is_finite() { worst.max(d) } else { f32::NAN };
            if worst.is_nan() {
                return worst;
            }
        }
    }
    worst
}

/// `kinds` of plans: `full`, `uniform`, `random`, `forecast`, `ddim`.
fn family(dtype: Dtype, within: f32, options: &Options, kinds: &[&str]) {
    if !present() {
        return;
    }
    let mut random = Random(7);
    for name in FAMILY {
        let mut package = fixture(name, dtype);
        let (a, steps) = (package.config.architecture.clone(), package.config.sampler.inference_steps);
        let plans = [
            ("full", Schedule::full(&a, steps)),
            ("uniform", Schedule::uniform(&a, steps, 3).expect("a schedule")),
            ("random", random_schedule(&package, &mut random, false)),
            ("forecast", random_schedule(&package, &mut random, true)),
        ];
        for (kind, schedule) in plans.iter().filter(|(kind, _)| kinds.contains(kind)) {
            let d = difference(&package, schedule, options, &mut random);
            eprintln!("{name} {kind}: {d:.1e}");
            assert!(d <= within, "{name} {kind}: {d}");
        }
        if !kinds.contains(&"ddim") {
            continue;
        }
        package.config.sampler = package.config.sampler.with(SamplerKind::Ddim, 5.min(steps));
        let schedule = Schedule::full(&a, package.config.sampler.inference_steps);
        let d = difference(&package, &schedule, options, &mut random);
        eprintln!("{name} ddim: {d:.1e}");
        assert!(d <= within, "{name} ddim: {d}");
    }
}

#[test]
fn the_family_agrees_in_f32() {
    family(Dtype::F32, WITHIN_F32, &options(), &["full", "uniform", "random", "forecast", "ddim"]);
}

#[test]
fn the_family_agrees_in_f16() {
    family(Dtype::F16, WITHIN_F16, &options(), &["full", "random"]);
}

#[test]
fn the_family_agrees_within_downlevel_limits() {
    family(Dtype::F16, WITHIN_F16, &Options { downlevel: true, wait: Wait::Sleep, ..options() }, &["random"]);
}

/// The policies that ship: 100 steps of error to grow in, widths that fill every tile.
#[test]
fn shipped_policies_agree() {
    if !present() {
        return;
    }
    let mut random = Random(3);
    for name in ["pusht-small", "pusht"] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies").join(name);
        let package = Package::load(&root).expect("a shipped package");
        let late = [0, 21, 39, 55, 68, 79, 88, 94, 98, 99];
        let schedule = Schedule::aligned(&package.config.architecture, 100, &late).expect("a schedule");
        let d = difference(&package, &schedule, &options(), &mut random);
        eprintln!("{name} late-dense: {d:.1e}");
        assert!(d <= WITHIN_F16, "{name}: {d}");
    }
}

#[test]
fn probes_agree() {
    if !present() {
        return;
    }
    let mut random = Random(11);
    for name in ["mlp_causal", "cond_layers_causal", "encoder_only_causal", "odd_sizes"] {
        let package = fixture(name, Dtype::F32);
        let schedule = random_schedule(&package, &mut random, true);
        let plan = Arc::new(Plan::traced(&package.config, &schedule).expect("a plan"));
        let mut cpu = CpuEngine::new(Arc::new(package.clone()), Arc::clone(&plan), 1).expect("a CPU engine");
        let mut gpu = GpuEngine::new(&package, Arc::clone(&plan), &options()).expect("a GPU engine");
        let (observation, noise) = (random.numbers(plan.observation.len()), random.numbers(plan.noise_len()));
        let mut out = vec![0.0; plan.trajectory.len()];
        cpu.infer(&observation, &noise, &mut out).expect("a CPU inference");
        gpu.infer(&observation, &noise, &mut out).expect("a GPU inference");
        for probe in &plan.probes {
            let (expected, got) = (cpu.probe(probe), gpu.probe(probe).expect("a probe"));
            let scale = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
            assert_eq!(expected.len(), got.len());
            for (e, g) in expected.iter().zip(&got) {
                assert!((e - g).abs() <= WITHIN_F32 * scale, "{name} {:?} step {}", probe.what, probe.step);
            }
        }
    }
}

#[test]
fn the_same_input_gives_the_same_bits() {
    if !present() {
        return;
    }
    let mut random = Random(5);
    let package = fixture("mlp_causal", Dtype::F16);
    let schedule = random_schedule(&package, &mut random, false);
    let plan = Arc::new(Plan::compile(&package.config, &schedule).expect("a plan"));
    let (observation, noise) = (random.numbers(plan.observation.len()), random.numbers(plan.noise_len()));
    let run = |engine: &mut GpuEngine| {
        let mut out = vec![0.0; plan.trajectory.len()];
        engine.infer(&observation, &noise, &mut out).expect("an inference");
        out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    let mut first = GpuEngine::new(&package, Arc::clone(&plan), &options()).expect("an engine");
    let mut second = GpuEngine::new(&package, Arc::clone(&plan), &options()).expect("an engine");
    let a = run(&mut first);
    assert_eq!(a, run(&mut first));
    assert_eq!(a, run(&mut second));
    let through_wgpu = Options { through_wgpu: true, ..options() };
    let mut third = GpuEngine::new(&package, Arc::clone(&plan), &through_wgpu).expect("an engine");
    assert!(!third.adapter().level.direct);
    assert_eq!(a, run(&mut third), "commands recorded by wgpu and by the engine");
}

/// Quiet runs, sums and chains cost at most what the plan says, and joining saves something.
#[test]
fn operations_are_joined() {
    if !present() {
        return;
    }
    let package = fixture("mlp_causal", Dtype::F16);
    let (a, steps) = (&package.config.architecture, package.config.sampler.inference_steps);
    for schedule in [Schedule::full(a, steps), Schedule::uniform(a, steps, 3).expect("a schedule")] {
        let plan = Arc::new(Plan::compile(&package.config, &schedule).expect("a plan"));
        let gpu = GpuEngine::new(&package, Arc::clone(&plan), &options()).expect("an engine");
        let alone = plan
            .denoise
            .iter()
            .filter(|op| matches!(op, Op::Embed(_) | Op::Quiet(_) | Op::Start { .. }))
            .count();
        assert!(alone > 0 && gpu.dispatches() + alone <= plan.cost().operations + 1, "{}", gpu.describe());
    }
}

#[test]
fn errors_are_named() {
    let package = fixture("mlp_causal", Dtype::F16);
    let steps = package.config.sampler.inference_steps;
    let schedule = Schedule::full(&package.config.architecture, steps);
    let plan = Arc::new(Plan::compile(&package.config, &schedule).expect("a plan"));
    let nobody = Options { adapter: Some("no such adapter".into()), ..options() };
    let refused = GpuEngine::new(&package, Arc::clone(&plan), &nobody);
    assert!(matches!(refused, Err(EngineError::NoAdapter(text)) if text.contains("no such adapter")));
    if !present() {
        return;
    }
    let mut gpu = GpuEngine::new(&package, Arc::clone(&plan), &options()).expect("an engine");
    let noise = vec![0.0; plan.noise_len()];
    let mut out = vec![0.0; plan.trajectory.len()];
    let short = gpu.infer(&[], &noise, &mut out);
    assert!(matches!(short, Err(EngineError::Size { name: "observation", got: 0, .. })));
    // A refused inference leaves the engine usable.
    let observation = vec![0.0; plan.observation.len()];
    gpu.infer(&observation, &noise, &mut out).expect("an inference");
}

/// More heads than random shapes have: what is joined where they are few must not be joined here.
#[test]
fn many_heads_agree() {
    if !present() {
        return;
    }
    let mut random = Random(13);
    for heads in [8, 16, 32] {
        let architecture = Architecture {
            layers: 2,
            heads,
            width: 4 * heads,
            condition_layers: 0,
            causal: true,
            time_as_cond: true,
            obs_as_cond: true,
            horizon: 3,
            n_obs_steps: 2,
            n_action_steps: 2,
            pred_action_steps_only: false,
            dit: None,
        };
        let config = random::config(&architecture, 5, 3, 3, 1);
        assert_eq!(config.problems(), Vec::<String>::new());
        let package = random::package(config, Dtype::F32, 2);
        let d = difference(&package, &Schedule::full(&architecture, 3), &options(), &mut random);
        eprintln!("{heads} heads: {d:.1e}");
        assert!(d <= WITHIN_F32, "{heads} heads: {d}");
    }
}

/// Compiled pipelines are kept on disk, and a damaged file costs time, not the engine.
#[test]
fn pipelines_are_kept() {
    if !present() {
        return;
    }
    let package = fixture("mlp_causal", Dtype::F16);
    let schedule = Schedule::full(&package.config.architecture, package.config.sampler.inference_steps);
    let plan = Arc::new(Plan::compile(&package.config, &schedule).expect("a plan"));
    let folder = tempfile::tempdir().expect("a folder");
    let with_cache = Options { pipeline_cache: Some(folder.path().to_owned()), ..options() };
    let gpu = GpuEngine::new(&package, Arc::clone(&plan), &with_cache).expect("an engine");
    if !gpu.adapter().level.pipeline_cache {
        eprintln!("SKIPPED: {} keeps no pipelines", gpu.adapter().name);
        return;
    }
    let files = || -> Vec<_> {
        std::fs::read_dir(folder.path()).expect("a folder").map(|f| f.expect("a file").path()).collect()
    };
    assert_eq!(files().len(), 1, "one file per adapter");
    let mut flipped = std::fs::read(&files()[0]).expect("a file");
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for damage in [&b"not a cache"[..], &[], &flipped] {
        std::fs::write(&files()[0], damage).expect("a file");
        let mut gpu = GpuEngine::new(&package, Arc::clone(&plan), &with_cache).expect("an engine");
        let mut out = vec![f32::NAN; plan.trajectory.len()];
        gpu.infer(&vec![0.0; plan.observation.len()], &vec![0.0; plan.noise_len()], &mut out)
            .expect("an inference");
        assert!(out.iter().all(|v| v.is_finite()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// Widths, heads, tokens and layers that are multiples of nothing, against the plain definition of the model in f64:
    /// every block's output, the condition tokens, the denoiser's outputs and the trajectory.
    #[test]
    fn random_shapes_agree_with_the_definition(
        architecture in random::architectures(),
        observed in 1..30usize,
        actions in 1..8usize,
        percent in 20..100usize,
        seed in 0..u64::MAX,
    ) {
        if !present() {
            return Ok(());
        }
        let steps = 3;
        let config = random::config(&architecture, observed, actions, steps, seed);
        prop_assume!(config.problems().is_empty());
        let package = random::package(config, Dtype::F32, seed);
        let schedule = random::schedule(&architecture, steps, percent, seed);
        let plan = Arc::new(Plan::traced(&package.config, &schedule).expect("a plan"));
        let mut numbers = random::Random::new(seed);
        let (observation, noise) = (numbers.normals(plan.observation.len()), numbers.normals(plan.noise_len()));
        let reference = Model::new(&package).denoise(&schedule, &observation, &noise);
        let mut gpu = engines::gpu(&package, &plan);
        let mut out = vec![f32::NAN; plan.trajectory.len()];
        gpu.infer(&observation, &noise, &mut out).expect("an inference");
        let close = |got: &[f32], expected: &Rows, what: &str| -> Result<(), TestCaseError> {
            let expected: Vec<f64> = expected.iter().flatten().copied().collect();
            let scale = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
            prop_assert_eq!(got.len(), expected.len());
            for (g, e) in got.iter().zip(&expected) {
                prop_assert!((f64::from(*g) - e).abs() <= f64::from(WITHIN_F32) * scale, "{}: {} for {}", what, g, e);
            }
            Ok(())
        };
        for probe in &plan.probes {
            let got = gpu.probe(probe).expect("a probe");
            let step = &reference.steps[probe.step];
            let expected = match probe.what {
                Probed::Block(block) => {
                    step.blocks.iter().find(|(b, _)| *b == block).expect("a computed block").1.clone()
                }
                Probed::Model => step.model.clone(),
                Probed::TimeMemory => step.memory[..1].to_vec(),
                Probed::Memory => step.memory[step.memory.len() - probe.view.rows..].to_vec(),
            };
            close(&got, &expected, &format!("{:?} of step {}", probe.what, probe.step))?;
        }
        close(&out, &reference.trajectory, "trajectory")?;
    }
}
