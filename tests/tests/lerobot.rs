//! LeRobot's `multi_task_dit` against LeRobot itself: images and state to condition, every output of the denoiser, whole runs
//! with its sampler, and a run with caches.
//!
//! The checkpoints and traces are `policies/train/make_lerobot_fixtures.py`'s. The GPU engine does not run these policies yet,
//! and says so.

use std::path::PathBuf;
use std::sync::Arc;

use refrain_policies::camera::Channels;
use refrain_policies::import::{self, Options};
use refrain_policies::package::{Dtype, Package};
use refrain_policies::plan::Plan;
use refrain_policies::preprocess::Image;
use refrain_policies::schedule::Schedule;
use refrain_policies::vision::{Frame, Vision};
use refrain_runtime::config::EngineChoice;
use refrain_runtime::engine::Engine;
use refrain_runtime::engine::choice::EngineSettings;
use refrain_runtime::engine::cpu::{CpuEngine, CpuWeights};
use refrain_runtime::engine::gpu::{self, GpuEngine};
use refrain_tests::compare::Table;
use refrain_tests::engines::{Present, compare_eps};
use refrain_tests::trace::{self, Trace};
use safetensors::SafeTensors;

/// Normalised units, f32 weights.
const TOLERANCE: f32 = 2e-4;
/// The same, f16 weights.
const HALF: f32 = 2e-2;

fn folder(name: &str) -> PathBuf {
    trace::fixtures().join("lerobot").join(name)
}

fn imported(name: &str, dtype: Dtype) -> (Arc<Package>, Trace) {
    let folder = folder(name);
    let options = Options { dtype, encoders: Some(folder.join("encoders")), ..Options::default() };
    let package = import::lerobot(&folder, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
    (Arc::new(package), Trace::read(&folder.join("trace.safetensors")))
}

/// The trajectory of one observation, and the executed actions in the demonstrations' units.
fn run(package: &Arc<Package>, schedule: &Schedule, trace: &Trace, b: usize) -> (Vec<f32>, Vec<f32>) {
    let (c, steps) = (&package.config, schedule.steps());
    let plan = Arc::new(Plan::compile(c, schedule).expect("a plan"));
    let mut engine = CpuEngine::new(Arc::clone(package), Arc::clone(&plan), 2).expect("a CPU engine");
    let mut trajectory = vec![f32::NAN; plan.trajectory.len()];
    engine.infer(trace.at("obs_norm", b), &trace.noise(b, steps), &mut trajectory).expect("an inference");
    let (size, executed) = (c.action.size(), c.architecture.executed());
    let mut actions = trajectory[executed.start * size..executed.end * size].to_vec();
    c.action.normalizer.unnormalize(&mut actions);
    (trajectory, actions)
}

#[test]
fn policies_follow_their_trace() {
    for name in ["rotary_cameras", "positions_state"] {
        let (package, trace) = imported(name, Dtype::F32);
        let a = &package.config.architecture;
        let timesteps = package.config.sampler.inference_timesteps();
        assert_eq!(trace.meta["timesteps"], serde_json::json!(timesteps), "{name}");
        let mut table = Table::default();
        compare_eps(Present::Cpu(2), &package, &trace, "", TOLERANCE, &mut table);
        let full = Schedule::full(a, timesteps.len());
        let updates = trace.meta["cached"].as_object().expect("blocks").iter().map(|(block, steps)| {
            let steps = steps.as_array().expect("steps").iter().map(|s| s.as_u64().expect("a step") as usize);
            (block.parse().expect("a block"), steps.collect())
        });
        let cached = Schedule::from_updates(a, timesteps.len(), updates).expect("a schedule");
        assert_eq!((full.updates(), cached.updates(), cached.steps_with_updates()), (24, 9, 3));
        for b in 0..trace.batch() {
            let (trajectory, actions) = run(&package, &full, &trace, b);
            table.add("trajectory", TOLERANCE, &trajectory, trace.at("trajectory_norm", b));
            table.add("action", TOLERANCE, &actions, trace.at("action", b));
            let (trajectory, _) = run(&package, &cached, &trace, b);
            table.add("cached trajectory", TOLERANCE, &trajectory, trace.at("cached.trajectory_norm", b));
            // Caching is seen in the result, so the comparison says something.
            let moved = refrain_tests::compare::worst(&trajectory, trace.at("trajectory_norm", b));
            assert!(moved > 100.0 * TOLERANCE, "{name}: caching moves the trajectory by {moved} only");
            let mut state = trace.at("obs_raw", b).to_vec();
            package.config.observation.normalizer.normalize(&mut state);
            let (all, low) = (package.config.condition_size(), package.config.observation.size());
            let golden = trace.at("obs_norm", b).chunks(all).flat_map(|row| row[all - low..].to_vec());
            table.add("state", 1e-5, &state, &golden.collect::<Vec<f32>>());
        }
        table.finish(name);
    }
}

#[test]
fn weights_in_half_precision_give_nearly_the_same() {
    for name in ["rotary_cameras", "positions_state"] {
        let (package, trace) = imported(name, Dtype::F16);
        let full = Schedule::full(&package.config.architecture, package.config.sampler.inference_steps);
        let mut table = Table::default();
        compare_eps(Present::Cpu(2), &package, &trace, "", HALF, &mut table);
        for b in 0..trace.batch() {
            let (trajectory, _) = run(&package, &full, &trace, b);
            table.add("trajectory, f16", HALF, &trajectory, trace.at("trajectory_norm", b));
            let moved = refrain_tests::compare::worst(&trajectory, trace.at("trajectory_norm", b));
            assert!(moved > 1e-6, "{name}: these weights are not in half precision");
        }
        table.finish(name);
    }
}

#[test]
fn what_the_cameras_see_is_encoded_as_lerobot_does() {
    let (package, trace) = imported("rotary_cameras", Dtype::F32);
    let c = &package.config;
    let (steps, cameras, [height, width]) = (c.architecture.n_obs_steps, c.cameras.len(), c.cameras[0].size);
    let bytes = std::fs::read(folder("rotary_cameras").join("trace.safetensors")).expect("the trace");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let images = file.tensor("images").expect("images");
    assert_eq!(images.shape(), [trace.batch(), steps, cameras, height, width, 3]);
    let mut vision = Vision::new(&package).expect("encoders").expect("cameras");
    let mut table = Table::default();
    let size = height * width * 3;
    for (b, pixels) in images.data().chunks(steps * cameras * size).enumerate() {
        let frame = |(i, pixels)| {
            let image = Image { height, width, step: width * 3, channels: Channels::Rgb, pixels };
            Frame { stamp: (b * steps * cameras + i) as i64, image }
        };
        let frames: Vec<Frame<'_>> = pixels.chunks(size).enumerate().map(frame).collect();
        let mut low = trace.at("obs_raw", b).to_vec();
        c.observation.normalizer.normalize(&mut low);
        let mut condition = vec![f32::NAN; steps * c.condition_size()];
        vision.condition(&low, &frames, &mut condition).expect("a condition");
        table.add("condition", TOLERANCE, &condition, trace.at("obs_norm", b));
    }
    table.finish("cameras");
}

#[test]
fn the_gpu_engine_says_that_it_does_not_run_them() {
    if GpuEngine::adapters().is_empty() {
        eprintln!("SKIPPED: no GPU adapter, nothing refused; install mesa-vulkan-drivers");
        return;
    }
    let (package, _) = imported("positions_state", Dtype::F32);
    let full = Schedule::full(&package.config.architecture, package.config.sampler.inference_steps);
    let plan = Arc::new(Plan::compile(&package.config, &full).expect("a plan"));
    let weights = CpuWeights::new(Arc::clone(&package));
    let gpu = gpu::Options { software: true, ..gpu::Options::default() };
    let open =
        |choice| EngineSettings { choice, threads: 1, gpu: gpu.clone() }.open(&weights, Arc::clone(&plan));
    let refused = open(EngineChoice::Gpu).err().expect("a refusal").to_string();
    assert_eq!(refused, "the GPU engine does not run DiT denoisers yet: use --engine cpu");
    assert!(open(EngineChoice::Auto).expect("the CPU").name().starts_with("CPU"));
}
