//! Plans against the plain definition of the model: no engine runs here.
//!
//! A compiled plan is executed by an interpreter on poisoned memory and compared with the plain denoising loop with
//! explicit caches, both in f64, so that the tolerance is far below anything that a wrong operation could hide in.

use proptest::prelude::*;
use refrain_policies::package::{Dtype, Package};
use refrain_policies::plan::{Op, Plan, Probed};
use refrain_policies::schedule::Schedule;
use refrain_policies::schedule_file::{Method, ScheduleFile};
use refrain_tests::interpreter::Interpreter;
use refrain_tests::model::{Denoised, Model, Rows};
use refrain_tests::random::{self, Random};

/// Largest difference of two f64 computations of the same thing, relative to the larger of 1 and the value; a sampler
/// step that is not clipped divides by a small signal.
const TOLERANCE: f64 = 1e-8;

fn worst(got: &[f64], expected: &Rows) -> f64 {
    let expected: Vec<f64> = expected.iter().flatten().copied().collect();
    assert_eq!(got.len(), expected.len());
    let differences = got.iter().zip(&expected).map(|(g, e)| (g - e).abs() / e.abs().max(1.0));
    differences.fold(0.0, |worst, d| if d <= worst || worst.is_nan() { worst } else { d })
}

/// Observation and noise.
fn input(package: &Package, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let (c, mut random) = (&package.config, Random::new(seed));
    let observation = random.normals(c.architecture.n_obs_steps * c.observation.size());
    let noise = (c.sampler.inference_steps + 1) * c.architecture.tokens() * c.denoised_size();
    (observation, random.normals(noise))
}

fn close(plan: &Plan, package: &Package, reference: &Denoised, seed: u64) -> Result<(), TestCaseError> {
    let (observation, noise) = input(package, seed);
    let mut interpreter = Interpreter::new(package, plan);
    let first = interpreter.infer(&observation, &noise);
    let found = worst(&first, &reference.trajectory);
    prop_assert!(found <= TOLERANCE, "trajectory differs by {found:e}");
    let again = interpreter.infer(&observation, &noise);
    prop_assert_eq!(bits(&first), bits(&again), "a second inference differs");
    for probe in &plan.probes {
        let (got, step) = (interpreter.read(&probe.view), &reference.steps[probe.step]);
        let expected = match probe.what {
            Probed::Block(block) => {
                step.blocks.iter().find(|(b, _)| *b == block).expect("a computed block").1.clone()
            }
            Probed::Model => step.model.clone(),
            Probed::TimeMemory => step.memory[..1].to_vec(),
            Probed::Memory => step.memory[step.memory.len() - probe.view.rows..].to_vec(),
        };
        let found = worst(&got, &expected);
        prop_assert!(found <= TOLERANCE, "{:?} of step {} differs by {found:e}", probe.what, probe.step);
    }
    Ok(())
}

fn bits(numbers: &[f64]) -> Vec<u64> {
    numbers.iter().map(|v| v.to_bits()).collect()
}

/// Blocks whose computation is in the plan, counted by the product that ends them.
fn computed(plan: &Plan) -> usize {
    let ends = |op: &&Op| match op {
        Op::Linear(l) => {
            let name = &plan.matrices[l.matrix.0].tensor;
            let trunk = name.starts_with("decoder.")
                || !plan.matrices.iter().any(|m| m.tensor.starts_with("decoder."));
            trunk && (name.ends_with("out_proj.weight") || name.ends_with("linear2.weight"))
        }
        _ => false,
    };
    plan.denoise.iter().filter(ends).count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_computes_what_the_plain_loop_with_caches_computes(
        architecture in prop_oneof![3 => random::architectures(), 1 => random::dits()],
        observed in 1..5usize,
        actions in 1..5usize,
        steps in 1..9usize,
        percent in 0..70usize,
        seed in any::<u64>(),
    ) {
        let config = random::config(&architecture, observed, actions, steps, seed);
        prop_assert_eq!(config.problems(), Vec::<String>::new());
        let package = random::package(config, Dtype::F32, seed);
        let schedule = random::schedule(&architecture, steps, percent, seed);
        let (observation, noise) = input(&package, seed);
        let reference = Model::new(&package).denoise(&schedule, &observation, &noise);
        let plan = Plan::compile(&package.config, &schedule).expect("a plan");
        prop_assert!(plan.probes.is_empty());
        prop_assert_eq!(computed(&plan), schedule.updates());
        prop_assert_eq!(plan.cost().block_computations, schedule.updates());
        close(&plan, &package, &reference, seed)?;
        let traced = Plan::traced(&package.config, &schedule).expect("a plan");
        let blocks = traced.probes.iter().filter(|p| matches!(p.what, Probed::Block(_))).count();
        prop_assert_eq!(blocks, schedule.updates());
        close(&traced, &package, &reference, seed)?;
    }

    #[test]
    fn a_plan_without_caching_is_the_plain_loop_bit_for_bit(
        architecture in prop_oneof![3 => random::architectures(), 1 => random::dits()],
        steps in 1..6usize,
        seed in any::<u64>(),
    ) {
        let package = random::package(random::config(&architecture, 3, 2, steps, seed), Dtype::F32, seed);
        let full = Schedule::full(&architecture, steps);
        let (observation, noise) = input(&package, seed);
        let reference = Model::new(&package).denoise(&full, &observation, &noise);
        let reference: Vec<f64> = reference.trajectory.into_iter().flatten().collect();
        let plan = Plan::compile(&package.config, &full).expect("a plan");
        let got = Interpreter::new(&package, &plan).infer(&observation, &noise);
        prop_assert_eq!(bits(&got), bits(&reference));
        // However the same schedule is written down, the operations are the same.
        let every: Vec<usize> = (0..steps).collect();
        let aligned = Schedule::aligned(&architecture, steps, &every).expect("a schedule");
        let file = ScheduleFile::new(&package.config, &package.weights_sha256(), &full, Method::named("full"));
        let file = ScheduleFile::parse(&file.to_toml().expect("text")).expect("a schedule file");
        let filed = file.check(&package.config, &package.weights_sha256()).expect("a schedule");
        for same in [aligned, filed] {
            let same = Plan::compile(&package.config, &same).expect("a plan");
            prop_assert!(same.ops().eq(plan.ops()), "the operations differ");
            prop_assert_eq!((&same.buffers, same.arena), (&plan.buffers, plan.arena));
        }
    }
}
