//! Random policies, schedules and inputs, from a seed.

use std::collections::BTreeMap;

use proptest::prelude::{Strategy, any};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use refrain_policies::config::{Architecture, Dit, PolicyConfig};
use refrain_policies::package::{Dtype, Package, Tensor, TensorData, expected_tensors};
use refrain_policies::schedule::{Block, Cell, Correction, Schedule, blocks};

/// A reproducible source of numbers.
#[derive(Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number of the standard normal distribution.
    pub fn normal(&mut self) -> f32 {
        StandardNormal.sample(&mut self.0)
    }

    /// Normal numbers.
    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }

    /// A whole number in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.0.next_u64() % n as u64) as usize
    }

    /// Happens in `percent` of 100 cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// A configuration for an architecture, its sampler drawn from the seed.
pub fn config(
    architecture: &Architecture,
    observed: usize,
    actions: usize,
    steps: usize,
    seed: u64,
) -> PolicyConfig {
    let mut random = Random::new(seed);
    let signal = |name: &str, n: usize| {
        let texts = |text: &str| (0..n).map(|i| format!("\"{text}{i}\"")).collect::<Vec<_>>().join(", ");
        let numbers = |v: &str| vec![v; n].join(", ");
        format!(
            "[{name}]\nnames = [{}]\nunits = [{}]\n[{name}.normalizer]\nmode = \"manual\"\nscale = [{}]\noffset = [{}]\n",
            texts(name),
            texts("unit"),
            numbers("0.5"),
            numbers("0.25")
        )
    };
    let mut pick = |of: &[&str]| of[random.below(of.len())].to_owned();
    let kind = pick(&["ddpm", "ddim"]);
    let prediction = pick(&["epsilon", "sample", "v_prediction"]);
    let eta = if kind == "ddim" { pick(&["0.0", "0.6"]) } else { "0.0".into() };
    let clip = pick(&["true", "false"]);
    let text = format!(
        "format = 1\nname = \"random\"\nrate_hz = 10.0\n{}{}[sampler]\nkind = \"{kind}\"\ninference_steps = {steps}\n\
         train_steps = {}\nbeta_schedule = \"linear\"\nbeta_start = 0.001\nbeta_end = 0.1\n\
         prediction_type = \"{prediction}\"\nclip_sample = {clip}\nclip_sample_range = 1.5\n\
         variance_type = \"fixed_small\"\neta = {eta}\n{}",
        signal("observation", observed),
        signal("action", actions),
        3 * steps,
        toml::to_string(&BTreeMap::from([("architecture", architecture)])).expect("a table"),
    );
    toml::from_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// A policy with random weights whose products keep the size of their inputs.
pub fn package(config: PolicyConfig, dtype: Dtype, seed: u64) -> Package {
    let mut random = Random::new(seed);
    let tensors = expected_tensors(&config).into_iter().map(|(name, shape)| {
        let inputs = if shape.len() == 2 { shape[1] } else { 4 };
        let around = if name.contains("norm") && name.ends_with("weight") || name == "ln_f.weight" {
            1.0
        } else {
            0.0
        };
        let count = shape.iter().product();
        let numbers = random.normals(count).into_iter().map(|v| around + v / (inputs as f32).sqrt());
        let data = match dtype {
            Dtype::F32 => TensorData::F32(numbers.collect()),
            Dtype::F16 => TensorData::F16(numbers.map(half::f16::from_f32).collect()),
        };
        (name, Tensor { shape, data })
    });
    Package::new(config, tensors.collect()).unwrap_or_else(|e| panic!("{e}"))
}

/// A schedule in which `percent` of the cells are updates, and some reuse cells have several weights, zeros among them.
pub fn schedule(architecture: &Architecture, steps: usize, percent: usize, seed: u64) -> Schedule {
    let mut random = Random::new(seed);
    let rows = blocks(architecture).into_iter().map(|block| {
        let mut cached = 0;
        let mut cell = |step: usize| {
            if step == 0 || random.chance(percent) {
                cached += 1;
                return Cell::Update;
            }
            if random.chance(70) {
                return Cell::Reuse(vec![1.0]);
            }
            let n = 1 + random.below(cached.min(3));
            Cell::Reuse(
                (0..n).map(|_| if random.chance(25) { 0.0 } else { random.normal() / n as f32 }).collect(),
            )
        };
        (block, (0..steps).map(&mut cell).collect())
    });
    let rows: Vec<(Block, Vec<Cell>)> = rows.collect();
    let table = Schedule::new(architecture, steps, rows).unwrap_or_else(|e| panic!("{e}"));
    // Neighbouring quiet steps with one correction, with another, and with none.
    let mut corrections: Vec<Correction> = Vec::new();
    for step in (0..steps).filter(|&step| table.is_quiet(step)) {
        match corrections.last_mut() {
            Some(last) if random.chance(40) => last.steps.push(step),
            _ if random.chance(50) => {
                let values = (0..architecture.width).map(|_| random.normal()).collect();
                corrections.push(Correction { steps: vec![step], values });
            }
            _ => {}
        }
    }
    table.with_corrections(architecture, corrections).unwrap_or_else(|e| panic!("{e}"))
}

/// Architectures of every kind that the importer knows, with sizes that are multiples of nothing.
pub fn architectures() -> impl Strategy<Value = Architecture> {
    let sizes = (1..4usize, 1..4usize, 1..6usize, 0..3usize, 2..9usize, 1..9usize, 1..9usize);
    (sizes, any::<[bool; 3]>(), any::<bool>()).prop_map(|(sizes, kind, causal)| {
        let (layers, heads, depth, condition_layers, horizon, observed, executed) = sizes;
        let [time_as_cond, obs_as_cond, chunk_only] = kind;
        let obs_as_cond = obs_as_cond && time_as_cond;
        let depth = if heads * depth % 2 == 0 { depth } else { depth + 1 };
        let width = heads * depth;
        let pred_action_steps_only = chunk_only && obs_as_cond;
        let n_obs_steps = observed.min(horizon);
        let room = if pred_action_steps_only { horizon } else { horizon - n_obs_steps + 1 };
        Architecture {
            layers,
            heads,
            width: if width < 4 { width * 2 } else { width },
            condition_layers: if time_as_cond { condition_layers } else { 0 },
            causal,
            time_as_cond,
            obs_as_cond,
            horizon,
            n_obs_steps,
            n_action_steps: executed.min(room),
            pred_action_steps_only,
            dit: None,
        }
    })
}

/// DiTs, with sizes that are multiples of nothing, with rotary positions and without.
pub fn dits() -> impl Strategy<Value = Architecture> {
    (architectures(), 2..7usize, any::<bool>()).prop_map(|(architecture, half, rotary)| {
        // Rotary positions need heads of an even width.
        let width = 2 * architecture.width;
        let base = 3.0 + half as f64;
        Architecture {
            width,
            condition_layers: 0,
            causal: false,
            time_as_cond: true,
            obs_as_cond: true,
            dit: Some(Dit { timestep_width: 2 * half, rotary_base: rotary.then_some(base) }),
            ..architecture
        }
    })
}
