//! Refrain as a library: one chunk with every block computed, one with a cache schedule, from the same noise.
//!
//! `cargo run --release --bin predict -- policies/pusht-small ddpm100_late10`

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use refrain_policies::package::Package;
use refrain_policies::plan::Plan;
use refrain_policies::schedule::Schedule;
use refrain_policies::schedule_file::ScheduleFile;
use refrain_runtime::engine::cpu::CpuEngine;
use refrain_runtime::noise;
use refrain_runtime::policy::{Policy, Prediction};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(name)) = (arguments.next().map(PathBuf::from), arguments.next()) else {
        return Err("usage: predict POLICY SCHEDULE".into());
    };
    let package = Arc::new(Package::load(&folder)?);
    let file = ScheduleFile::load(&folder, &name)?;
    let mut config = package.config.clone();
    config.sampler = file.sampler.clone();
    let cached = file.check(&config, &package.weights_sha256())?;
    let full = Schedule::full(&config.architecture, config.sampler.inference_steps);

    // Any observation will do here: the middle of what the demonstrations had.
    let normalizer = &config.observation.normalizer;
    let middle: Vec<f32> = normalizer.offset.iter().zip(&normalizer.scale).map(|(o, s)| -o / s).collect();
    let observation = middle.repeat(config.architecture.n_obs_steps);

    for (label, schedule) in [("full", full), (name.as_str(), cached)] {
        let plan = Arc::new(Plan::compile(&config, &schedule)?);
        let engine = CpuEngine::new(Arc::clone(&package), Arc::clone(&plan), 1)?;
        let mut policy = Policy::new(config.clone(), Box::new(engine));
        let mut noise = vec![0.0; policy.noise_len()];
        noise::fill(1, 0, 0, &mut noise);
        let mut chunk = Prediction::default();
        policy.predict(&observation, &noise, &mut chunk)?;
        println!("{label}: {} block computations", plan.cost().block_computations);
        for action in chunk.action.chunks(config.action.size()) {
            println!("  {action:.1?}");
        }
    }
    Ok(())
}
