//! The plain definition of the model: the denoising loop as the papers and the reference implementation write it.
//!
//! Everything in f64, nothing hoisted, nothing folded, one step after the other, with a list of cached outputs per block.
//! It shares no code with the plan, the interpreter or an engine. Sources: `TransformerForDiffusion` of
//! real-stanford/diffusion_policy and LeRobot's `multi_task_dit` for the models, arXiv 2506.13456 for the caches.

use std::collections::HashMap;

use refrain_policies::config::PolicyConfig;
use refrain_policies::package::Package;
use refrain_policies::sampler::SamplerStep;
use refrain_policies::schedule::{Block, BlockKind, Cell, Schedule};

/// Rows of numbers.
pub type Rows = Vec<Vec<f64>>;

/// A policy's configuration and weights.
#[derive(Debug)]
pub struct Model<'a> {
    config: &'a PolicyConfig,
    weights: HashMap<&'a str, Vec<f64>>,
}

/// What one denoising step computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Condition tokens `[S, D]`; none in an encoder-only trunk.
    pub memory: Rows,
    /// What every computed block added, `[trunk tokens, D]`.
    pub blocks: Vec<(Block, Rows)>,
    /// The denoiser's output `[T, N]`.
    pub model: Rows,
}

/// One inference.
#[derive(Clone, Debug, PartialEq)]
pub struct Denoised {
    /// The trajectory `[T, N]`, normalised.
    pub trajectory: Rows,
    /// Its steps.
    pub steps: Vec<Step>,
}

impl<'a> Model<'a> {
    /// Takes a package's weights as f64.
    pub fn new(package: &'a Package) -> Self {
        let numbers = |t: &refrain_policies::package::Tensor| t.to_f32().into_iter().map(f64::from).collect();
        let weights = package.weights.iter().map(|(name, tensor)| (name, numbers(tensor))).collect();
        Self { config: &package.config, weights }
    }

    /// The whole loop. `observation` is `[To, O]` normalised, `noise` `[K + 1, T, N]`.
    pub fn denoise(&self, schedule: &Schedule, observation: &[f32], noise: &[f32]) -> Denoised {
        let a = &self.config.architecture;
        let (tokens, denoised) = (a.tokens(), self.config.denoised_size());
        let observation = rows(observation, self.config.observation.size());
        let noise =
            |row: usize| rows(&noise[row * tokens * denoised..(row + 1) * tokens * denoised], denoised);
        let mut caches: HashMap<Block, Vec<Rows>> = HashMap::new();
        let mut x = noise(0);
        let mut steps = Vec::new();
        for (k, sampler) in self.config.sampler.steps().iter().enumerate() {
            self.inpaint(&mut x, &observation);
            let step = self.network(&x, sampler.timestep, &observation, schedule, k, &mut caches);
            let fresh = noise(k + 1);
            for (row, (model, fresh)) in x.iter_mut().zip(step.model.iter().zip(&fresh)) {
                for (x, (model, fresh)) in row.iter_mut().zip(model.iter().zip(fresh)) {
                    *x = sample(sampler, *x, *model, *fresh);
                }
            }
            steps.push(step);
        }
        self.inpaint(&mut x, &observation);
        Denoised { trajectory: x, steps }
    }

    fn inpaint(&self, x: &mut Rows, observation: &Rows) {
        if !self.config.architecture.obs_as_cond {
            let actions = self.config.action.size();
            for (row, observed) in x.iter_mut().zip(observation) {
                row[actions..].copy_from_slice(observed);
            }
        }
    }

    /// One call of the network, in which cached blocks are replaced.
    fn network(
        &self,
        trajectory: &Rows,
        timestep: usize,
        observation: &Rows,
        schedule: &Schedule,
        k: usize,
        caches: &mut HashMap<Block, Vec<Rows>>,
    ) -> Step {
        let a = &self.config.architecture;
        let mut x = self.linear(trajectory, "input_emb");
        if !a.time_as_cond {
            x.insert(0, sinusoid(timestep, a.width));
        }
        let x_positions = self.positions("pos_emb", x.len());
        add(&mut x, &x_positions);
        let memory =
            if a.time_as_cond && a.dit.is_none() { self.memory(timestep, observation) } else { Vec::new() };
        let stack = if a.time_as_cond && a.dit.is_none() { "decoder" } else { "encoder" };
        let modulation = a.dit.as_ref().map(|dit| self.modulation(dit.timestep_width, timestep, observation));
        let mut blocks = Vec::new();
        for (block, cells) in schedule.rows() {
            let cache = caches.entry(*block).or_default();
            let branch = match &cells[k] {
                Cell::Update => {
                    let prefix = format!("{stack}.layers.{}", block.layer);
                    let output = match &modulation {
                        Some(modulation) => self.dit_block(&prefix, *block, &x, modulation),
                        None => self.block(&prefix, block.kind, &x, &memory),
                    };
                    cache.push(output.clone());
                    blocks.push((*block, output.clone()));
                    output
                }
                Cell::Reuse(weights) => {
                    let mut sum = vec![vec![0.0; a.width]; x.len()];
                    for (weight, cached) in weights.iter().zip(cache.iter().rev()) {
                        for (sum, cached) in sum.iter_mut().flatten().zip(cached.iter().flatten()) {
                            *sum += f64::from(*weight) * cached;
                        }
                    }
                    sum
                }
            };
            add(&mut x, &branch);
        }
        if !a.time_as_cond {
            x.remove(0);
        }
        for (x, correction) in x
            .iter_mut()
            .flat_map(|row| row.iter_mut().zip(schedule.correction(k).into_iter().flat_map(|c| c.iter())))
        {
            *x += f64::from(*correction);
        }
        let model = match a.dit {
            Some(_) => self.linear(&x, "head"),
            None => self.linear(&self.norm(&x, "ln_f"), "head"),
        };
        Step { memory, blocks, model }
    }

    /// Timestep and observations to condition tokens.
    fn memory(&self, timestep: usize, observation: &Rows) -> Rows {
        let a = &self.config.architecture;
        let mut tokens = vec![sinusoid(timestep, a.width)];
        if a.obs_as_cond {
            tokens.extend(self.linear(observation, "cond_obs_emb"));
        }
        let positions = self.positions("cond_pos_emb", tokens.len());
        add(&mut tokens, &positions);
        if a.condition_layers == 0 {
            let mut hidden = self.linear(&tokens, "encoder.0");
            hidden.iter_mut().flatten().for_each(|v| *v *= v.exp().ln_1p().tanh());
            return self.linear(&hidden, "encoder.2");
        }
        for i in 0..a.condition_layers {
            let prefix = format!("encoder.layers.{i}");
            let attended = self.self_attention(&prefix, &tokens, None);
            add(&mut tokens, &attended);
            let fed = self.feed_forward(&prefix, "norm2", &tokens);
            add(&mut tokens, &fed);
        }
        tokens
    }

    fn block(&self, prefix: &str, kind: BlockKind, x: &Rows, memory: &Rows) -> Rows {
        let a = &self.config.architecture;
        match kind {
            BlockKind::SelfAttention => self.self_attention(prefix, x, a.causal.then_some(0)),
            BlockKind::CrossAttention => {
                let ahead = (a.causal && a.obs_as_cond).then_some(1);
                let queries = self.norm(x, &format!("{prefix}.norm2"));
                self.attention(&format!("{prefix}.multihead_attn"), &queries, memory, ahead)
            }
            BlockKind::FeedForward => {
                self.feed_forward(prefix, if a.time_as_cond { "norm3" } else { "norm2" }, x)
            }
        }
    }

    /// Shifts, scales and gates of all layers, `[6 D layers]`.
    fn modulation(&self, width: usize, timestep: usize, observation: &Rows) -> Vec<f64> {
        let silu = |x: &Rows| -> Rows {
            x.iter().map(|row| row.iter().map(|v| v / (1.0 + (-v).exp())).collect()).collect()
        };
        let mut token = vec![sinusoid(timestep, width)];
        for layer in ["time_emb.0", "time_emb.2"] {
            token = self.linear(&token, layer);
            token.iter_mut().flatten().for_each(|v| *v *= 0.5 * (1.0 + libm::erf(*v / 2f64.sqrt())));
        }
        let mut sum = self.linear(&silu(&token), "modulation.time");
        let observed = vec![observation.iter().flatten().copied().collect()];
        add(&mut sum, &self.linear(&silu(&observed), "modulation.observation"));
        sum.remove(0)
    }

    fn dit_block(&self, prefix: &str, block: Block, x: &Rows, modulation: &[f64]) -> Rows {
        let width = self.config.architecture.width;
        let first = 6 * block.layer + if block.kind == BlockKind::SelfAttention { 0 } else { 3 };
        let part = |i: usize| &modulation[(first + i) * width..][..width];
        let (shift, scale, gate) = (part(0), part(1), part(2));
        let modulated = |row: &Vec<f64>| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let deviation = (variance + 1e-6).sqrt();
            let parts = row.iter().zip(scale.iter().zip(shift));
            parts.map(|(v, (scale, shift))| (v - mean) / deviation * (1.0 + scale) + shift).collect()
        };
        let input: Rows = x.iter().map(modulated).collect();
        let mut branch = if block.kind == BlockKind::SelfAttention {
            self.attention(&format!("{prefix}.self_attn"), &input, &input, None)
        } else {
            let mut hidden = self.linear(&input, &format!("{prefix}.linear1"));
            for v in hidden.iter_mut().flatten() {
                let z = (2.0 / std::f64::consts::PI).sqrt() * (*v + 0.044_715 * v.powi(3));
                *v *= 0.5 * (1.0 + z.tanh());
            }
            self.linear(&hidden, &format!("{prefix}.linear2"))
        };
        branch.iter_mut().for_each(|row| row.iter_mut().zip(gate).for_each(|(v, gate)| *v *= gate));
        branch
    }

    /// Rotary positions: the first half of a head's numbers are real parts, the second half imaginary ones.
    fn rotate(&self, x: &mut Rows, base: f64) {
        let depth = self.config.architecture.width / self.config.architecture.heads;
        for (position, row) in x.iter_mut().enumerate() {
            for head in row.chunks_mut(depth) {
                let (real, imaginary) = head.split_at_mut(depth / 2);
                for (i, (real, imaginary)) in real.iter_mut().zip(imaginary).enumerate() {
                    let angle = position as f64 * base.powf(-2.0 * i as f64 / depth as f64);
                    let before = (*real, *imaginary);
                    *real = before.0 * angle.cos() - before.1 * angle.sin();
                    *imaginary = before.1 * angle.cos() + before.0 * angle.sin();
                }
            }
        }
    }

    fn self_attention(&self, prefix: &str, x: &Rows, ahead: Option<usize>) -> Rows {
        let x = self.norm(x, &format!("{prefix}.norm1"));
        self.attention(&format!("{prefix}.self_attn"), &x, &x, ahead)
    }

    fn feed_forward(&self, prefix: &str, norm: &str, x: &Rows) -> Rows {
        let mut hidden =
            self.linear(&self.norm(x, &format!("{prefix}.{norm}")), &format!("{prefix}.linear1"));
        for v in hidden.iter_mut().flatten() {
            *v *= 0.5 * (1.0 + libm::erf(*v / 2f64.sqrt()));
        }
        self.linear(&hidden, &format!("{prefix}.linear2"))
    }

    /// `nn.MultiheadAttention`; token s is seen by token r if `s <= r + ahead`.
    fn attention(&self, prefix: &str, from: &Rows, to: &Rows, ahead: Option<usize>) -> Rows {
        let (width, heads) = (self.config.architecture.width, self.config.architecture.heads);
        let (weight, bias) = (
            &self.weights[&*format!("{prefix}.in_proj_weight")],
            &self.weights[&*format!("{prefix}.in_proj_bias")],
        );
        let part = |x: &Rows, i: usize| {
            product(x, &weight[i * width * width..][..width * width], &bias[i * width..][..width])
        };
        let (mut query, mut key, value) = (part(from, 0), part(to, 1), part(to, 2));
        if let Some(base) = self.config.architecture.dit.as_ref().and_then(|dit| dit.rotary_base) {
            self.rotate(&mut query, base);
            self.rotate(&mut key, base);
        }
        let depth = width / heads;
        let mut attended = vec![vec![0.0; width]; from.len()];
        for (r, out) in attended.iter_mut().enumerate() {
            let seen = ahead.map_or(to.len(), |ahead| to.len().min(r + ahead + 1));
            for head in 0..heads {
                let columns = head * depth..(head + 1) * depth;
                let score = |s: usize| {
                    let products = query[r][columns.clone()].iter().zip(&key[s][columns.clone()]);
                    products.fold(0.0, |sum, (q, k)| sum + q * k) / (depth as f64).sqrt()
                };
                let scores: Vec<f64> = (0..seen).map(score).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let shares: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f64 = shares.iter().sum();
                for c in columns {
                    out[c] = (0..seen).fold(0.0, |sum, s| sum + shares[s] / total * value[s][c]);
                }
            }
        }
        self.linear(&attended, &format!("{prefix}.out_proj"))
    }

    fn linear(&self, x: &Rows, prefix: &str) -> Rows {
        product(x, &self.weights[&*format!("{prefix}.weight")], &self.weights[&*format!("{prefix}.bias")])
    }

    fn norm(&self, x: &Rows, prefix: &str) -> Rows {
        let (gain, bias) =
            (&self.weights[&*format!("{prefix}.weight")], &self.weights[&*format!("{prefix}.bias")]);
        let row = |row: &Vec<f64>| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let deviation = (variance + 1e-5).sqrt();
            row.iter().zip(gain.iter().zip(bias)).map(|(v, (g, b))| (v - mean) / deviation * g + b).collect()
        };
        x.iter().map(row).collect()
    }

    fn positions(&self, table: &str, n: usize) -> Rows {
        let width = self.config.architecture.width;
        self.weights[table][..n * width].chunks(width).map(<[f64]>::to_vec).collect()
    }
}

/// The sampler's step in f64.
fn sample(step: &SamplerStep, x: f64, model: f64, noise: f64) -> f64 {
    let clip = f64::from(step.clip);
    let x0 = (f64::from(step.x0_from_x) * x + f64::from(step.x0_from_model) * model).clamp(-clip, clip);
    f64::from(step.from_x0) * x0
        + f64::from(step.from_x) * x
        + f64::from(step.from_model) * model
        + f64::from(step.from_noise) * noise
}

/// Sines in the first half, cosines in the second.
fn sinusoid(timestep: usize, width: usize) -> Vec<f64> {
    let half = width / 2;
    let angle = |i: usize| timestep as f64 * (-(10_000f64.ln()) * i as f64 / (half as f64 - 1.0)).exp();
    (0..half).map(|i| angle(i).sin()).chain((0..half).map(|i| angle(i).cos())).collect()
}

/// `x weight^T + bias`.
fn product(x: &Rows, weight: &[f64], bias: &[f64]) -> Rows {
    let output = |row: &Vec<f64>| {
        let column = |(weights, bias): (&[f64], &f64)| {
            row.iter().zip(weights).fold(0.0, |sum, (x, w)| sum + x * w) + bias
        };
        weight.chunks(row.len()).zip(bias).map(column).collect()
    };
    x.iter().map(output).collect()
}

fn add(x: &mut Rows, more: &Rows) {
    assert_eq!(x.len(), more.len());
    x.iter_mut().flatten().zip(more.iter().flatten()).for_each(|(x, more)| *x += more);
}

fn rows(numbers: &[f32], size: usize) -> Rows {
    numbers.chunks(size).map(|row| row.iter().map(|v| f64::from(*v)).collect()).collect()
}
