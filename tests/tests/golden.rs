//! Both Push-T policies against the golden traces: every block, every output of the denoiser, every trajectory.
//!
//! The checkpoints are imported here in f32; the packages that ship hold f16. Skipped, loudly, where the shared data are
//! not there. `cargo test --release -p refrain-tests --test golden -- --nocapture` shows what is measured.

use std::fs;
use std::sync::Arc;

use refrain_policies::package::{Dtype, Package};
use refrain_policies::sampler::SamplerKind;
use refrain_policies::schedule::Schedule;
use refrain_tests::compare::Table;
use refrain_tests::engines::{self, Present, compare_eps, compare_forward, compare_run};
use refrain_tests::trace::{self, Trace};

/// f32 weights, normalised units. Measured: 6e-6 at most, in the model's outputs.
const F32: f32 = 2e-4;
/// f16 weights, normalised units. Measured: 2.5e-3 at most in the model's outputs, 2.2e-4 in trajectories.
const F16: f32 = 2e-2;

/// Everything that a golden file holds of the whole policy.
fn compare(engine: Present, package: Package, trace: &Trace, tolerance: f32, title: &str) {
    let mut table = Table::default();
    compare_forward(engine, &package, trace, tolerance, &mut table);
    let runs: Vec<&str> =
        trace.names("dd").iter().filter_map(|name| name.strip_suffix("trajectory_norm")).collect();
    assert!(runs.len() >= 8, "{runs:?}");
    for run in runs {
        let (kind, steps) = run.trim_end_matches('.').split_at(4);
        let kind = if kind == "ddpm" { SamplerKind::Ddpm } else { SamplerKind::Ddim };
        let steps = steps.parse().expect("a number of steps");
        // The small policy's long runs are compared on every engine.
        if engine.slow() && steps > 20 && package.config.architecture.layers > 4 {
            eprintln!("LEFT OUT: {title}, {run}trajectory_norm on a GPU that is a processor in disguise");
            continue;
        }
        let package = engines::with_sampler(&package, package.config.sampler.with(kind, steps));
        let timesteps: Vec<u64> =
            package.config.sampler.inference_timesteps().iter().map(|t| *t as u64).collect();
        let golden = &trace.meta[format!("{run}timesteps")];
        assert!(*golden == serde_json::json!(timesteps), "{run}timesteps: {golden} in {}", trace.meta);
        compare_eps(engine, &package, trace, run, tolerance, &mut table);
        let full = Schedule::full(&package.config.architecture, steps);
        compare_run(engine, &package, &full, trace, run, tolerance, &mut table);
    }
    table.finish(&format!("{title} on {engine:?}"));
}

fn golden(name: &str, shipped: &str) {
    let (Some(golden), Some(pusht)) = (trace::shared("golden"), trace::shared("pusht")) else { return };
    let trace = Trace::read(&golden.join(format!("{name}.safetensors")));
    for engine in engines::present() {
        let imported = engines::import(&pusht.join(format!("{name}.ckpt")), Dtype::F32);
        compare(engine, imported, &trace, F32, &format!("{name}, f32"));
        let shipped = Package::load(&trace::repository().join("policies").join(shipped)).expect("a package");
        compare(engine, shipped, &trace, F16, &format!("{name}, f16"));
    }
}

#[test]
fn the_base_policy_follows_its_trace() {
    golden("pusht_lowdim_dpt", "pusht");
}

#[test]
fn the_small_policy_follows_its_trace() {
    golden("pusht_lowdim_dpt_small", "pusht-small");
}

#[test]
fn cached_trajectories_follow_their_trace() {
    let (Some(golden), Some(pusht)) = (trace::shared("golden"), trace::shared("pusht")) else { return };
    let trace = Trace::read(&golden.join("pusht_lowdim_dpt.safetensors"));
    let json = fs::read_to_string(golden.join("bac_schedules_pusht.json")).expect("schedules");
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let package = Arc::new(engines::import(&pusht.join("pusht_lowdim_dpt.ckpt"), Dtype::F32));
    for engine in engines::present() {
        let mut table = Table::default();
        for name in ["updates10_union3", "updates20_union5"] {
            let updates =
                json["schedules"][name].as_object().expect("blocks").iter().map(|(block, steps)| {
                    let steps =
                        steps.as_array().expect("steps").iter().map(|s| s.as_u64().expect("a step") as usize);
                    (block.parse().expect("a block"), steps.collect())
                });
            let schedule =
                Schedule::from_updates(&package.config.architecture, 100, updates).expect("a schedule");
            assert!(schedule.updates() < 24 * 60, "{name} computes nearly everything");
            compare_run(engine, &package, &schedule, &trace, &format!("bac_{name}."), F32, &mut table);
        }
        table.finish(&format!("Block-wise Adaptive Caching, f32, on {engine:?}"));
    }
}
