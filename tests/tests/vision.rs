//! Policies that see, from images to actions, against PyTorch: a small random one with two cameras, and the shipped one on
//! frames of its own simulator.

use std::sync::Arc;

use refrain_policies::camera::Channels;
use refrain_policies::import::{self, Options};
use refrain_policies::package::{Dtype, Package};
use refrain_policies::plan::Plan;
use refrain_policies::preprocess::{Image, Preprocess};
use refrain_policies::sampler::SamplerKind;
use refrain_policies::schedule::Schedule;
use refrain_policies::vision::{Frame, Vision};
use refrain_runtime::policy::{Policy, Prediction};
use refrain_tests::compare::{Table, worst};
use refrain_tests::engines;
use refrain_tests::trace::{Trace, repository};
use safetensors::SafeTensors;

/// The bounds: features relative to the largest, actions in normalised units.
const FEATURES: f32 = 1e-3;
const ACTIONS: f32 = 1e-2;
/// What a policy in single precision keeps. Measured: 4e-6 at most.
const EXACT: f32 = 2e-4;

fn image<'a>(file: &SafeTensors<'a>, name: &str, index: usize, camera: [usize; 2]) -> Image<'a> {
    let view = file.tensor(name).expect(name);
    let [height, width] = camera;
    let step = view.shape().last().expect("channels") * width;
    let channels = if step == width { Channels::Mono } else { Channels::Rgb };
    Image { height, width, step, channels, pixels: &view.data()[index * height * step..][..height * step] }
}

#[test]
fn a_policy_with_two_cameras_acts_as_in_pytorch() {
    let folder = repository().join("tests/fixtures/vision/policy");
    let package = Arc::new(Package::load(&folder).expect("the package"));
    let path = folder.join("trace.safetensors");
    let trace = Trace::read(&path);
    let bytes = std::fs::read(&path).expect("the trace");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let steps = package.config.sampler.inference_steps;
    let plan = Plan::compile(&package.config, &Schedule::full(&package.config.architecture, steps));
    let plan = Arc::new(plan.expect("a plan"));
    let mut table = Table::default();
    for engine in engines::present() {
        let vision = Vision::new(&package).expect("encoders");
        let mut policy = Policy::seeing(package.config.clone(), engine.engine(&package, &plan), vision);
        let frames: Vec<Frame<'_>> = [("front.0", 0), ("wrist.0", 0), ("front.1", 1), ("wrist.1", 1)]
            .iter()
            .map(|(name, stamp)| {
                let size = package.config.cameras[usize::from(name.starts_with("wrist"))].size;
                Frame { stamp: *stamp, image: image(&file, name, 0, size) }
            })
            .collect();
        let mut out = Prediction::default();
        let noise: Vec<f32> = (0..=steps).flat_map(|row| trace.at("noise", row).to_vec()).collect();
        policy.predict_seeing(trace.at("obs_raw", 0), &frames, &noise, &mut out).expect("a prediction");
        let name = |what| format!("{what} on {engine:?}");
        table.add(&name("trajectory_norm"), EXACT, &out.trajectory_norm, trace.at("trajectory_norm", 0));
        let scaled = |v: &[f32]| v.iter().map(|x| x * 0.004).collect::<Vec<f32>>();
        table.add(&name("action"), EXACT, &scaled(&out.action), &scaled(trace.at("action", 0)));
    }
    table.finish("two cameras");
}

#[test]
fn the_shipped_policy_sees_and_acts_as_in_pytorch() {
    let package = Package::load(&repository().join("policies/pusht-image")).expect("the package");
    let path = repository().join("tests/fixtures/vision/pusht_image.safetensors");
    let trace = Trace::read(&path);
    let bytes = std::fs::read(&path).expect("the trace");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let config = &package.config;
    let camera = &config.cameras[0];
    let frame = |index| Frame { stamp: index as i64, image: image(&file, "frames", index, camera.size) };

    let mut input = vec![f32::NAN; camera.input_shape().iter().product()];
    Preprocess::new(camera).run(&frame(0).image, &mut input).expect("an image");
    let golden: Vec<f32> = (0..3).flat_map(|channel| trace.at("input_0", channel).to_vec()).collect();
    let off = worst(&input, &golden);
    println!("input: off by {off:.1e}");
    assert!(off <= 1e-6, "preprocessing is off by {off}");

    let mut vision = Vision::new(&package).expect("the encoder").expect("a camera");
    let mut condition = vec![f32::NAN; 2 * config.condition_size()];
    let mut table = Table::default();
    for index in [0, 2] {
        let frames = [frame(index), frame(index + 1)];
        vision.condition(&[0.0; 4], &frames, &mut condition).expect("a condition");
        for (row, got) in condition.chunks(config.condition_size()).enumerate() {
            let golden = trace.at("features", index + row);
            let largest = golden.iter().fold(0.0f32, |a, b| a.max(b.abs()));
            let scaled = |v: &[f32]| v.iter().map(|x| x / largest).collect::<Vec<f32>>();
            table.add("features, relative", FEATURES, &scaled(&got[..camera.features]), &scaled(golden));
        }
    }

    let sampler = config.sampler.with(SamplerKind::Ddim, 10);
    let package = engines::with_sampler(&package, sampler);
    let plan = Plan::compile(&package.config, &Schedule::full(&package.config.architecture, 10));
    let plan = Arc::new(plan.expect("a plan"));
    let pushers: Vec<f32> = (2..4).flat_map(|index| trace.at("pushers", index).to_vec()).collect();
    let mut noise = trace.at("noise", 0).to_vec();
    noise.resize(plan.noise_len(), 0.0); // DDIM draws none
    for engine in engines::present() {
        let vision = Vision::new(&package).expect("the encoder");
        let mut policy = Policy::seeing(package.config.clone(), engine.engine(&package, &plan), vision);
        let mut out = Prediction::default();
        policy.predict_seeing(&pushers, &[frame(2), frame(3)], &noise, &mut out).expect("a prediction");
        let name = |what| format!("{what} on {engine:?}");
        table.add(&name("trajectory, normalised"), ACTIONS, &out.trajectory_norm, trace.at("trajectory", 0));
        let scale = package.config.action.normalizer.scale[0];
        let scaled = |v: &[f32]| v.iter().map(|x| x * scale).collect::<Vec<f32>>();
        table.add(
            &name("actions, normalised"),
            ACTIONS,
            &scaled(&out.action),
            &scaled(trace.at("actions", 0)),
        );
    }
    table.finish("the shipped image policy");
}

#[test]
fn an_imported_hybrid_checkpoint_sees_and_acts_as_in_pytorch() {
    let folder = repository().join("tests/fixtures/hybrid");
    let options = Options { dtype: Dtype::F32, encoders: Some(folder.clone()), ..Options::default() };
    let package = import::checkpoint(&folder.join("policy.ckpt"), &options).expect("the checkpoint");
    let saved = tempfile::tempdir().expect("a temporary folder");
    package.save(saved.path()).expect("a package");
    let package = Arc::new(Package::load(saved.path()).expect("the package"));
    let path = folder.join("trace.safetensors");
    let trace = Trace::read(&path);
    let bytes = std::fs::read(&path).expect("the trace");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let steps = package.config.sampler.inference_steps;
    let plan = Plan::compile(&package.config, &Schedule::full(&package.config.architecture, steps));
    let plan = Arc::new(plan.expect("a plan"));
    let frames: Vec<Frame<'_>> = (0..2)
        .flat_map(|step| package.config.cameras.iter().map(move |camera| (step, camera)))
        .map(|(step, camera)| Frame {
            stamp: step as i64,
            image: image(&file, &camera.name, step, camera.size),
        })
        .collect();
    let noise: Vec<f32> = (0..=steps).flat_map(|row| trace.at("noise", row).to_vec()).collect();
    let scale = package.config.action.normalizer.scale.clone();
    let scaled = |v: &[f32]| v.iter().zip(scale.iter().cycle()).map(|(x, s)| x * s).collect::<Vec<f32>>();
    let mut table = Table::default();
    for engine in engines::present() {
        let vision = Vision::new(&package).expect("encoders");
        let mut policy = Policy::seeing(package.config.clone(), engine.engine(&package, &plan), vision);
        let mut out = Prediction::default();
        policy.predict_seeing(trace.at("obs_raw", 0), &frames, &noise, &mut out).expect("a prediction");
        let name = |what| format!("{what} on {engine:?}");
        table.add(&name("trajectory_norm"), EXACT, &out.trajectory_norm, trace.at("trajectory_norm", 0));
        table.add(&name("action"), EXACT, &scaled(&out.action), &scaled(trace.at("action", 0)));
    }
    table.finish("an imported hybrid policy");
}
