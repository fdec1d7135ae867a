//! Fast kernels against plain ones, on every instruction set that this processor has and on one and two threads.
//!
//! A case is a plan of one operation over an arena that the test fills: inputs with random numbers, outputs with NaN,
//! and a guard number everywhere else. Afterwards the whole arena is compared with the plain definition's, so that an
//! element that was not written fails, and one that was written beside its view too.

mod plain;

use std::sync::Arc;

use half::f16;
use proptest::prelude::*;
use refrain_policies::config::{Architecture, PolicyConfig};
use refrain_policies::package::{Package, Tensor, TensorData, expected_tensors};
use refrain_policies::plan::{
    Activation, Attention, Buffer, BufferId, Combine, Embed, Gate, Head, LayerNorm, Linear, Matrix, MatrixId,
    Modulate, Modulation, Op, Plan, Quiet, Rotate, Segment, Shape, Vector, VectorId, View,
};
use refrain_policies::sampler::SamplerStep;
use refrain_policies::schedule::Schedule;

use super::arena::Place;
use super::{CpuEngine, CpuWeights, Isa, Program};
use plain::Plain;

/// Difference allowed, relative to the larger of 1 and the value: f32 sums of up to 70 products against f64, in
/// rows that LayerNorm may stretch because they are nearly constant.
const TOLERANCE: f64 = 2e-5;

/// Stands where no view lies.
const GUARD: f32 = 7.25;

/// A small sound package to which the test adds its weights.
fn package() -> Package {
    let text = "format = 1\nname = \"kernel\"\nrate_hz = 1.0\n\
        [architecture]\nlayers = 1\nheads = 1\nwidth = 4\ncondition_layers = 0\ncausal = false\ntime_as_cond = true\n\
        obs_as_cond = true\nhorizon = 1\nn_obs_steps = 1\nn_action_steps = 1\n\
        [observation]\nnames = [\"o\"]\nunits = [\"\"]\n\
        normalizer = { mode = \"manual\", scale = [1.0], offset = [0.0] }\n\
        [action]\nnames = [\"a\"]\nunits = [\"\"]\n\
        normalizer = { mode = \"manual\", scale = [1.0], offset = [0.0] }\n\
        [sampler]\nkind = \"ddpm\"\ninference_steps = 1\ntrain_steps = 1\nbeta_schedule = \"linear\"\n\
        beta_start = 0.1\nbeta_end = 0.1\nprediction_type = \"epsilon\"\nclip_sample = true\n\
        clip_sample_range = 1.0\nvariance_type = \"fixed_small\"\n";
    let config: PolicyConfig = toml::from_str(text).expect("a configuration");
    let tensors = expected_tensors(&config).into_iter().map(|(name, shape)| {
        let data = TensorData::F32(vec![0.0; shape.iter().product()]);
        (name, Tensor { shape, data })
    });
    let tensors = tensors.collect();
    Package::new(config, tensors).expect("a package")
}

/// One operation's surroundings, made piece by piece.
struct Case {
    package: Package,
    plan: Plan,
    arena: Vec<f32>,
    half: bool,
    seed: u64,
    tolerance: f64,
    /// May hold anything afterwards.
    lost: Option<View>,
}

impl Case {
    fn new(seed: u64, half: bool, heads: usize, actions: usize) -> Self {
        let package = package();
        let architecture: &Architecture = &package.config.architecture;
        let none = View { buffer: BufferId(0), at: 0, rows: 1, cols: 1, stride: 1 };
        let plan = Plan {
            shape: Shape {
                steps: 1,
                tokens: 1,
                width: 1,
                heads,
                denoised: 1,
                actions,
                n_obs_steps: 1,
                observed: 1,
            },
            schedule: Schedule::full(architecture, 1),
            matrices: Vec::new(),
            vectors: Vec::new(),
            buffers: vec![Buffer { at: 0, len: 1 }],
            arena: 0,
            load: Vec::new(),
            observe: Vec::new(),
            denoise: Vec::new(),
            observation: none,
            trajectory: none,
            known: None,
            probes: Vec::new(),
        };
        Self { package, plan, arena: vec![GUARD], half, seed, tolerance: TOLERANCE, lost: None }
    }

    /// A number in -2 .. 2 (splitmix64).
    fn number(&mut self) -> f32 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 22) as f32 - 2.0
    }

    fn below(&mut self, n: usize) -> usize {
        ((self.number() + 2.0) / 4.0 * n as f32) as usize
    }

    fn view(&mut self, rows: usize, cols: usize, mut fill: impl FnMut(&mut Self) -> f32) -> View {
        let stride = cols + [0, 0, 1, 5][self.below(4)];
        let at = self.arena.len() + self.below(20);
        let len = rows * stride;
        self.arena.resize(at + len + 3, GUARD);
        for i in 0..rows * cols {
            self.arena[at + i / cols * stride + i % cols] = fill(self);
        }
        self.plan.buffers.push(Buffer { at, len });
        View { buffer: BufferId(self.plan.buffers.len() - 1), at: 0, rows, cols, stride }
    }

    fn input(&mut self, rows: usize, cols: usize) -> View {
        self.view(rows, cols, Self::number)
    }

    /// Known actions: some tokens' first number is 0.
    fn known(&mut self, tokens: usize, actions: usize) -> View {
        let view = self.input(tokens, 1 + actions);
        for row in 0..tokens {
            let at = self.plan.offset(&view) + row * view.stride;
            self.arena[at] = self.below(2) as f32;
        }
        view
    }

    fn output(&mut self, rows: usize, cols: usize) -> View {
        self.view(rows, cols, |_| f32::NAN)
    }

    fn tensor(&mut self, len: usize, scale: f32) -> String {
        let name = format!("kernel.{}", self.package.weights.len());
        let numbers: Vec<f32> = (0..len).map(|_| scale * self.number()).collect();
        let data = if self.half {
            TensorData::F16(numbers.into_iter().map(f16::from_f32).collect())
        } else {
            TensorData::F32(numbers)
        };
        self.package.weights.insert(name.clone(), Tensor { shape: vec![len], data });
        name
    }

    /// Rows of a larger tensor, as the parts of an attention's projection are.
    fn matrix(&mut self, rows: usize, cols: usize) -> MatrixId {
        let first = self.below(4);
        let tensor = self.tensor((first + rows) * cols, (cols as f32).sqrt().recip());
        self.plan.matrices.push(Matrix { tensor, first, rows, cols });
        MatrixId(self.plan.matrices.len() - 1)
    }

    fn vector(&mut self, len: usize) -> VectorId {
        let first = self.below(9);
        let tensor = self.tensor(first + len, 1.0);
        self.plan.vectors.push(Vector { tensor, first, len });
        VectorId(self.plan.vectors.len() - 1)
    }

    fn norm(&mut self, width: usize) -> LayerNorm {
        LayerNorm { gain: self.vector(width), bias: self.vector(width) }
    }

    /// Parts of wider rows, as those of a block are.
    fn modulation(&mut self, width: usize) -> Modulation {
        let mut part = || self.input(1, 3 * width).cols(width, width);
        Modulation { time: part(), observation: part() }
    }

    fn sampler(&mut self) -> SamplerStep {
        SamplerStep {
            timestep: 0,
            x0_from_x: self.number() / 2.0,
            x0_from_model: self.number() / 2.0,
            clip: if self.below(2) == 0 { 1.5 } else { f32::INFINITY },
            from_x0: self.number() / 2.0,
            from_x: self.number() / 2.0,
            from_model: self.number() / 2.0,
            from_noise: self.number(),
            signal: (self.number() + 2.0) / 4.0,
        }
    }

    /// Runs the operation and compares; then again with one number of `poison` NaN, which must not vanish.
    fn check(mut self, op: Op, poison: View) -> Result<(), TestCaseError> {
        self.plan.denoise = vec![op];
        self.compare(false)?;
        let (row, column) = (self.below(poison.rows), self.below(poison.cols));
        let at = self.plan.offset(&poison) + row * poison.stride + column;
        self.arena[at] = f32::NAN;
        self.compare(true)
    }

    fn compare(&mut self, poisoned: bool) -> Result<(), TestCaseError> {
        self.plan.arena = self.arena.len();
        let noise: Vec<f32> = (0..4096).map(|_| self.number()).collect();
        let mut expected = Plain {
            plan: &self.plan,
            package: &self.package,
            arena: self.arena.iter().map(|v| f64::from(*v)).collect(),
            noise: noise.iter().map(|v| f64::from(*v)).collect(),
        };
        expected.run(&self.plan.denoise[0]);
        let expected = expected.arena;
        let lost: Vec<usize> = self.lost.map_or_else(Vec::new, |view| {
            let at = self.plan.offset(&view);
            (0..view.len()).map(|i| at + i / view.cols * view.stride + i % view.cols).collect()
        });
        let plan = Arc::new(self.plan.clone());
        let weights = CpuWeights::new(Arc::new(self.package.clone()));
        let whole = Place { at: 0, rows: 1, cols: plan.arena, stride: plan.arena };
        for isa in Isa::available() {
            let program = Program::new(&weights, Arc::clone(&plan), isa).expect("a program");
            for threads in [1, 2] {
                let mut engine = CpuEngine::on(Arc::clone(&program), threads).expect("an engine");
                engine.team.arena().write(whole, &self.arena);
                engine.team.run(&noise);
                let got = engine.read(whole);
                for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    let difference = (f64::from(*got) - expected).abs();
                    // NaN may reach further than by definition, not less far: a hidden token weighs 0, and 0 NaN is NaN.
                    let written = f64::from(self.arena[i]).to_bits() != expected.to_bits();
                    let agree = difference <= self.tolerance * expected.abs().max(1.0)
                        || (got.is_nan() && (poisoned && written || expected.is_nan()))
                        || lost.contains(&i);
                    prop_assert!(
                        agree,
                        "{isa:?}, {threads} threads, number {i}: got {got}, expected {expected}"
                    );
                }
            }
        }
        Ok(())
    }
}

const CASES: u32 = 60;

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]

    #[test]
    fn linear_is_its_definition(
        (rows, depth, columns) in (1..41usize, 1..71usize, 1..71usize),
        (half, norm, table, output, residual) in any::<(bool, bool, bool, bool, bool)>(),
        activation in prop::sample::select(vec![
            Activation::None, Activation::Gelu, Activation::GeluTanh, Activation::Mish,
        ]),
        seed in any::<u64>(),
    ) {
        let mut case = Case::new(seed, half, 1, 1);
        let input = case.input(rows, depth);
        let linear = Linear {
            input,
            norm: norm.then(|| case.norm(depth)),
            matrix: case.matrix(columns, depth),
            bias: case.vector(columns),
            activation,
            table: table.then(|| case.vector(rows * columns)),
            output: (output || !residual).then(|| case.output(rows, columns)),
            residual: residual.then(|| case.input(rows, columns)),
        };
        case.check(Op::Linear(linear), input)?;
    }

    #[test]
    fn attention_is_its_definition(
        (rows, heads, depth) in (1..41usize, 1..5usize, 1..20usize),
        segments in prop::collection::vec(1..20usize, 1..4),
        ahead in prop::option::of(0..3usize),
        seed in any::<u64>(),
    ) {
        let mut case = Case::new(seed, false, heads, 1);
        let width = heads * depth;
        let query = case.input(rows, width);
        let mut made = Vec::new();
        for tokens in segments {
            // Side by side, as a projection leaves them.
            let both = case.input(tokens, 2 * width);
            made.push(Segment { keys: both.cols(0, width), values: both.cols(width, width) });
        }
        let poison = if case.below(2) == 0 { query } else { made[0].values };
        let output = case.output(rows, width);
        case.check(Op::Attention(Attention { query, segments: made, ahead, output }), poison)?;
    }

    #[test]
    fn silu_modulate_gate_and_rotate_are_their_definitions(
        (rows, width, heads, half) in (1..41usize, 1..71usize, 1..5usize, 1..20usize),
        (output, residual) in any::<(bool, bool)>(),
        seed in any::<u64>(),
    ) {
        for which in 0..4 {
            let mut case = Case::new(seed, false, 1, 1);
            let input = case.input(rows, width);
            match which {
                0 => {
                    let output = case.output(rows, width);
                    case.check(Op::Silu { input, output }, input)?;
                }
                1 => {
                    let (shift, scale) = (case.modulation(width), case.modulation(width));
                    let output = case.output(rows, width);
                    case.check(Op::Modulate(Modulate { input, shift, scale, output }), input)?;
                }
                2 => {
                    let gate = case.modulation(width);
                    let output = (output || !residual).then(|| case.output(rows, width));
                    let residual = residual.then(|| case.input(rows, width));
                    case.check(Op::Gate(Gate { input, gate, output, residual }), gate.time)?;
                }
                _ => {
                    // Queries and keys beside values that stay as they are.
                    let depth = 2 * half;
                    let tokens = case.input(rows, 3 * heads * depth).cols(0, 2 * heads * depth);
                    case.check(Op::Rotate(Rotate { tokens, depth, base: 100.0 }), tokens)?;
                }
            }
        }
    }

    #[test]
    fn combine_is_its_definition(
        (rows, columns, terms) in (1..41usize, 1..71usize, 1..9usize),
        accumulate in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut case = Case::new(seed, false, 1, 1);
        let output = if accumulate { case.input(rows, columns) } else { case.output(rows, columns) };
        let terms: Vec<(f32, View)> = (0..terms).map(|_| (case.number(), case.input(rows, columns))).collect();
        let poison = terms[0].1;
        case.check(Op::Combine(Combine { terms, output, accumulate }), poison)?;
    }

    #[test]
    fn start_embed_head_and_quiet_are_their_definitions(
        (tokens, width, actions, observed) in (1..24usize, 2..71usize, 1..6usize, 1..6usize),
        (half, inpaint, joins, sum, model, norm) in any::<(bool, bool, bool, bool, bool, bool)>(),
        (step, quiet_steps) in (0..3usize, 1..6usize),
        seed in any::<u64>(),
    ) {
        for which in 0..4 {
            let mut case = Case::new(seed, half, 1, actions);
            // A step of the sampler cancels terms, and up to five follow each other.
            case.tolerance = 2e-4;
            let denoised = actions + if inpaint { observed } else { 0 };
            let steps = 1 + case.below(tokens);
            let impose = inpaint.then(|| case.input(steps, observed));
            let known = joins.then(|| case.known(tokens, actions));
            let trajectory = if which == 0 { case.output(tokens, denoised) } else { case.input(tokens, denoised) };
            let embed = Embed {
                trajectory,
                matrix: case.matrix(width, denoised),
                bias: case.vector(width),
                table: case.vector(tokens * width),
                sum: sum.then(|| case.input(tokens, width)),
                correction: None,
                output: case.output(tokens, width),
            };
            let head = Head {
                input: embed.output,
                norm: norm.then(|| case.norm(width)),
                matrix: case.matrix(denoised, width),
                bias: case.vector(denoised),
                step,
                sampler: case.sampler(),
                trajectory,
                impose,
                known,
                model: (model && which == 2).then(|| case.output(tokens, denoised)),
            };
            match which {
                0 => {
                    let poison = impose.unwrap_or(embed.output);
                    let signal = case.sampler().signal;
                    case.check(Op::Start { trajectory, impose, known, signal }, poison)?;
                }
                1 => case.check(Op::Embed(embed), trajectory)?,
                2 => {
                    let input = case.input(tokens, width);
                    case.lost = Some(input);
                    case.check(Op::Head(Head { input, ..head }), input)?;
                }
                _ => {
                    let samplers = (0..quiet_steps).map(|_| case.sampler()).collect();
                    // The output of a quiet run's embedding is named but never placed.
                    case.check(Op::Quiet(Quiet { embed, head, samplers }), trajectory)?;
                }
            }
        }
    }

    #[test]
    fn timesteps_are_their_definition(
        timesteps in prop::collection::vec(0..1000usize, 1..9),
        half_width in 2..40usize,
        seed in any::<u64>(),
    ) {
        let mut case = Case::new(seed, false, 1, 1);
        let table = (seed % 2 == 0).then(|| case.vector(2 * half_width));
        let output = case.output(timesteps.len(), 2 * half_width);
        // The reference multiplies f32 frequencies with the timestep, and so does the kernel: an angle of 1000 is known to
        // 1e-4.
        case.tolerance = 3e-4;
        case.plan.denoise = vec![Op::Timesteps { timesteps, table, output }];
        case.compare(false)?;
    }
}

#[test]
fn every_instruction_set_is_tested() {
    let isas = Isa::available();
    assert_eq!(isas.first(), Some(&Isa::detect()));
    assert_eq!(isas.last(), Some(&Isa::Portable));
}
