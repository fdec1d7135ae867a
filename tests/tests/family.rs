//! Every policy family that the importer knows, as small random policies, against traces of the reference implementation:
//! what each block adds, condition tokens, the denoiser's output at every step, trajectories and actions.

use std::fs;
use std::sync::Arc;

use refrain_policies::package::Dtype;
use refrain_policies::sampler::SamplerKind;
use refrain_policies::schedule::Schedule;
use refrain_tests::compare::Table;
use refrain_tests::engines::{self, compare_eps, compare_forward, compare_run};
use refrain_tests::trace::{self, Trace};

/// Normalised units. Measured: 4e-6 at most.
const TOLERANCE: f32 = 2e-4;

#[test]
fn every_family_follows_its_trace() {
    let mut names: Vec<String> = fs::read_dir(trace::fixtures())
        .expect("tests/fixtures")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".ckpt").map(str::to_owned))
        .collect();
    names.sort();
    assert_eq!(names.len(), 13, "{names:?}");
    for engine in engines::present() {
        for name in &names {
            let trace = Trace::read(&trace::fixtures().join(format!("{name}.safetensors")));
            let package =
                Arc::new(engines::import(&trace::fixtures().join(format!("{name}.ckpt")), Dtype::F32));
            let timesteps: Vec<u64> =
                package.config.sampler.inference_timesteps().iter().map(|t| *t as u64).collect();
            assert_eq!(trace.meta["timesteps"], serde_json::json!(timesteps), "{name}");
            let mut table = Table::default();
            compare_forward(engine, &package, &trace, TOLERANCE, &mut table);
            compare_eps(engine, &package, &trace, "", TOLERANCE, &mut table);
            let full = |steps| Schedule::full(&package.config.architecture, steps);
            compare_run(engine, &package, &full(timesteps.len()), &trace, "", TOLERANCE, &mut table);
            for run in trace.names("ddim").iter().filter_map(|name| name.strip_suffix("trajectory_norm")) {
                let steps = run.trim_start_matches("ddim").trim_end_matches('.').parse().expect("ddimN.");
                let ddim =
                    engines::with_sampler(&package, package.config.sampler.with(SamplerKind::Ddim, steps));
                compare_run(engine, &ddim, &full(steps), &trace, run, TOLERANCE, &mut table);
            }
            table.finish(&format!("{name} on {engine:?}"));
        }
    }
}
