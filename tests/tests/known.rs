//! Known actions (chunks that join) against runs of the reference denoiser with diffusers' `add_noise`: every family,
//! DDPM and DDIM, with and without quiet steps.

use std::sync::Arc;

use refrain_policies::package::{Dtype, Package};
use refrain_policies::plan::Plan;
use refrain_policies::sampler::SamplerKind;
use refrain_policies::schedule::Schedule;
use refrain_runtime::engine::EngineError;
use refrain_tests::compare::Table;
use refrain_tests::engines::{self, Present};
use refrain_tests::trace::{self, Trace};

/// Normalised units.
const TOLERANCE: f32 = 2e-4;

/// `[T, 1 + A]` of one observation.
fn known(trace: &Trace, name: &str, b: usize) -> Vec<f32> {
    let (mask, actions) = (trace.at(&format!("{name}.mask"), b), trace.at(&format!("{name}.known"), b));
    let size = actions.len() / mask.len();
    mask.iter()
        .zip(actions.chunks(size))
        .flat_map(|(m, row)| std::iter::once(m).chain(row))
        .copied()
        .collect()
}

fn compare(engine: Present, package: &Arc<Package>, name: &str, run: &str, table: &mut Table) {
    let golden = Trace::read(&trace::fixtures().join("known.safetensors"));
    let inputs = Trace::read(&trace::fixtures().join(format!("{name}.safetensors")));
    let steps = package.config.sampler.inference_steps;
    let plan = Plan::joining(&package.config, &Schedule::full(&package.config.architecture, steps));
    let plan = Arc::new(plan.expect("a plan"));
    let mut engine = engine.engine(package, &plan);
    let mut trajectory = vec![0.0; plan.trajectory.len()];
    for b in 0..inputs.batch() {
        engine.know(&known(&golden, name, b)).expect("room");
        let noise = inputs.noise(b, steps);
        // Twice: what is known must outlive an inference.
        for _ in 0..2 {
            engine.infer(inputs.at("obs_norm", b), &noise, &mut trajectory).expect("an inference");
        }
        table.add(name, TOLERANCE, &trajectory, golden.at(&format!("{name}.{run}trajectory_norm"), b));
    }
}

#[test]
fn known_actions_are_imposed_as_diffusers_noises_them() {
    let golden = Trace::read(&trace::fixtures().join("known.safetensors"));
    let names: Vec<&str> = golden.names("").iter().filter_map(|n| n.strip_suffix(".mask")).collect();
    assert_eq!(names.len(), 9);
    for engine in engines::present() {
        let mut table = Table::default();
        for name in &names {
            let path = trace::fixtures().join(format!("{name}.ckpt"));
            let package = Arc::new(engines::import(&path, Dtype::F32));
            compare(engine, &package, name, "", &mut table);
            let prefix = format!("{name}.ddim");
            for run in golden.names(&prefix) {
                let steps = run[prefix.len()..].split('.').next().expect("ddimN.").parse().expect("a number");
                let ddim =
                    engines::with_sampler(&package, package.config.sampler.with(SamplerKind::Ddim, steps));
                compare(engine, &ddim, name, &format!("ddim{steps}."), &mut table);
            }
        }
        table.finish(&format!("known actions on {engine:?}"));
    }
}

#[test]
fn known_actions_stay_through_quiet_steps_and_nothing_known_changes_nothing() {
    let package = Arc::new(engines::import(&trace::fixtures().join("mlp_causal.ckpt"), Dtype::F32));
    let inputs = Trace::read(&trace::fixtures().join("mlp_causal.safetensors"));
    let golden = Trace::read(&trace::fixtures().join("known.safetensors"));
    let steps = package.config.sampler.inference_steps;
    let schedule = Schedule::aligned(&package.config.architecture, steps, &[0, 4, 7]).expect("a schedule");
    for engine in engines::present() {
        let plain = Arc::new(Plan::compile(&package.config, &schedule).expect("a plan"));
        let joining = Arc::new(Plan::joining(&package.config, &schedule).expect("a plan"));
        let (mut plain, mut joining) = (engine.engine(&package, &plain), engine.engine(&package, &joining));
        let known = known(&golden, "mlp_causal", 0);
        let (noise, observation) = (inputs.noise(0, steps), inputs.at("obs_norm", 0));
        let (mut without, mut with) = (vec![0.0; 16], vec![0.0; 16]);
        plain.infer(observation, &noise, &mut without).expect("an inference");
        joining.infer(observation, &noise, &mut with).expect("an inference");
        assert_eq!(without, with, "nothing is known yet");
        joining.know(&known).expect("room");
        joining.infer(observation, &noise, &mut with).expect("an inference");
        for (token, known) in known.chunks(3).enumerate().filter(|(_, known)| known[0] != 0.0) {
            assert_eq!(with[2 * token..2 * token + 2], known[1..], "token {token}");
        }
        assert_ne!(with[6..], without[6..], "the others do not look at what is known");
        assert!(matches!(plain.know(&known), Err(EngineError::NothingKnown)));
        assert!(matches!(joining.know(&known[1..]), Err(EngineError::Size { .. })));
    }
}
