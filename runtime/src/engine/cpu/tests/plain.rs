//! The definition of every kernel: plain loops in f64 over one arena.

use refrain_policies::package::Package;
use refrain_policies::plan::{
    Activation, Attention, Combine, Embed, Gate, Head, LayerNorm, Linear, MatrixId, Modulate, Modulation, Op,
    Plan, Rotate, VectorId, View,
};
use refrain_policies::sampler::SamplerStep;

/// Everything an operation reads and writes.
pub(super) struct Plain<'a> {
    pub(super) plan: &'a Plan,
    pub(super) package: &'a Package,
    pub(super) arena: Vec<f64>,
    pub(super) noise: Vec<f64>,
}

impl Plain<'_> {
    pub(super) fn run(&mut self, op: &Op) {
        match op {
            Op::Timesteps { timesteps, table, output } => {
                let table = table.map_or_else(|| vec![0.0; output.cols], |table| self.vector(table));
                let half = output.cols / 2;
                let mut rows = Vec::new();
                for t in timesteps {
                    for (i, position) in table.iter().enumerate() {
                        let step = (i % half) as f64 / (half as f64 - 1.0);
                        let angle = *t as f64 * (-(10_000f64.ln()) * step).exp();
                        rows.push(position + if i < half { angle.sin() } else { angle.cos() });
                    }
                }
                self.write(output, &rows);
            }
            Op::Start { trajectory, impose, known, signal } => {
                let noise = self.noise[..trajectory.len()].to_vec();
                self.write(trajectory, &noise);
                self.impose(trajectory, impose.as_ref());
                self.known(trajectory, known.as_ref(), *signal);
            }
            Op::Linear(l) => self.linear(l),
            Op::Silu { input, output } => {
                let values: Vec<f64> = self.read(input).iter().map(|v| v / (1.0 + (-v).exp())).collect();
                self.write(output, &values);
            }
            Op::Modulate(m) => self.modulate(m),
            Op::Gate(g) => self.gate(g),
            Op::Rotate(r) => self.rotate(r),
            Op::Attention(a) => self.attention(a),
            Op::Combine(c) => self.combine(c),
            Op::Embed(e) => {
                let x = self.embed(e);
                self.write(&e.output, &x);
            }
            Op::Head(h) => {
                let x = self.read(&h.input);
                self.head(h, x, &h.sampler, h.step);
            }
            Op::Quiet(q) => {
                for (i, sampler) in q.samplers.iter().enumerate() {
                    let x = self.embed(&q.embed);
                    self.head(&q.head, x, sampler, q.head.step + i);
                }
            }
        }
    }

    fn read(&self, view: &View) -> Vec<f64> {
        let at = self.plan.offset(view);
        (0..view.rows).flat_map(|r| self.arena[at + r * view.stride..][..view.cols].to_vec()).collect()
    }

    fn write(&mut self, view: &View, values: &[f64]) {
        assert_eq!(values.len(), view.len());
        let at = self.plan.offset(view);
        for (r, row) in values.chunks(view.cols).enumerate() {
            self.arena[at + r * view.stride..][..view.cols].copy_from_slice(row);
        }
    }

    fn weights(&self, name: &str, first: usize, len: usize) -> Vec<f64> {
        let tensor = self.package.weights.get(name).expect("the test made this weight");
        tensor.to_f32()[first..first + len].iter().map(|v| f64::from(*v)).collect()
    }

    fn vector(&self, id: VectorId) -> Vec<f64> {
        let v = &self.plan.vectors[id.0];
        self.weights(&v.tensor, v.first, v.len)
    }

    /// `x matrix^T + bias`.
    fn product(&self, x: &[f64], matrix: MatrixId, bias: VectorId) -> Vec<f64> {
        let m = &self.plan.matrices[matrix.0];
        let (weights, bias) = (self.weights(&m.tensor, m.first * m.cols, m.rows * m.cols), self.vector(bias));
        let mut out = Vec::new();
        for x in x.chunks(m.cols) {
            for (row, bias) in weights.chunks(m.cols).zip(&bias) {
                out.push(x.iter().zip(row).map(|(x, w)| x * w).sum::<f64>() + bias);
            }
        }
        out
    }

    fn norm(&self, x: &mut [f64], norm: &LayerNorm) {
        let (gain, bias) = (self.vector(norm.gain), self.vector(norm.bias));
        for row in x.chunks_mut(gain.len()) {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / row.len() as f64;
            for ((v, g), b) in row.iter_mut().zip(&gain).zip(&bias) {
                *v = (*v - mean) / (variance + 1e-5).sqrt() * g + b;
            }
        }
    }

    fn linear(&mut self, l: &Linear) {
        let mut x = self.read(&l.input);
        if let Some(norm) = &l.norm {
            self.norm(&mut x, norm);
        }
        let mut value = self.product(&x, l.matrix, l.bias);
        for v in &mut value {
            *v = match l.activation {
                Activation::None => *v,
                Activation::Gelu => *v * normal_below(*v),
                Activation::GeluTanh => {
                    0.5 * *v
                        * (1.0 + (std::f64::consts::FRAC_2_PI.sqrt() * (*v + 0.044_715 * v.powi(3))).tanh())
                }
                Activation::Mish => *v * v.exp().ln_1p().tanh(),
            };
        }
        if let Some(table) = l.table {
            value.iter_mut().zip(self.vector(table)).for_each(|(v, t)| *v += t);
        }
        if let Some(output) = &l.output {
            self.write(output, &value);
        }
        if let Some(residual) = &l.residual {
            let sum: Vec<f64> = self.read(residual).iter().zip(&value).map(|(x, v)| x + v).collect();
            self.write(residual, &sum);
        }
    }

    fn modulation(&self, m: &Modulation) -> Vec<f64> {
        self.read(&m.time).iter().zip(self.read(&m.observation)).map(|(t, o)| t + o).collect()
    }

    fn modulate(&mut self, m: &Modulate) {
        let (mut x, shift, scale) =
            (self.read(&m.input), self.modulation(&m.shift), self.modulation(&m.scale));
        for row in x.chunks_mut(m.input.cols) {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / row.len() as f64;
            for ((v, scale), shift) in row.iter_mut().zip(&scale).zip(&shift) {
                *v = (*v - mean) / (variance + 1e-6).sqrt() * (1.0 + scale) + shift;
            }
        }
        self.write(&m.output, &x);
    }

    fn gate(&mut self, g: &Gate) {
        let gate = self.modulation(&g.gate);
        let value: Vec<f64> =
            self.read(&g.input).iter().zip(gate.iter().cycle()).map(|(v, gate)| v * gate).collect();
        if let Some(output) = &g.output {
            self.write(output, &value);
        }
        if let Some(residual) = &g.residual {
            let sum: Vec<f64> = self.read(residual).iter().zip(&value).map(|(x, v)| x + v).collect();
            self.write(residual, &sum);
        }
    }

    /// As complex numbers: first half of a head the real parts, second half the imaginary ones.
    fn rotate(&mut self, r: &Rotate) {
        let (mut x, half) = (self.read(&r.tokens), r.depth / 2);
        for (row, numbers) in x.chunks_mut(r.tokens.cols).enumerate() {
            for head in numbers.chunks_mut(r.depth) {
                for i in 0..half {
                    let angle = row as f64 / r.base.powf(2.0 * i as f64 / r.depth as f64);
                    let (real, imaginary) = (head[i], head[half + i]);
                    head[i] = real * angle.cos() - imaginary * angle.sin();
                    head[half + i] = real * angle.sin() + imaginary * angle.cos();
                }
            }
        }
        self.write(&r.tokens, &x);
    }

    fn attention(&mut self, a: &Attention) {
        let width = a.query.cols;
        let depth = width / self.plan.shape.heads;
        let query = self.read(&a.query);
        let keys: Vec<f64> = a.segments.iter().flat_map(|s| self.read(&s.keys)).collect();
        let values: Vec<f64> = a.segments.iter().flat_map(|s| self.read(&s.values)).collect();
        let mut out = Vec::new();
        for (r, query) in query.chunks(width).enumerate() {
            for c in 0..width {
                let head = c - c % depth..c - c % depth + depth;
                let seen = a.ahead.map_or(usize::MAX, |ahead| r + ahead + 1);
                let scores = keys.chunks(width).take(seen).map(|key| {
                    let dot: f64 =
                        query[head.clone()].iter().zip(&key[head.clone()]).map(|(q, k)| q * k).sum();
                    (dot / (depth as f64).sqrt()).exp()
                });
                let scores: Vec<f64> = scores.collect();
                let weighted = scores.iter().zip(values.chunks(width)).map(|(s, value)| s * value[c]);
                out.push(weighted.sum::<f64>() / scores.iter().sum::<f64>());
            }
        }
        self.write(&a.output, &out);
    }

    fn combine(&mut self, c: &Combine) {
        let mut sum = if c.accumulate { self.read(&c.output) } else { vec![0.0; c.output.len()] };
        for (weight, view) in &c.terms {
            sum.iter_mut().zip(self.read(view)).for_each(|(sum, v)| *sum += f64::from(*weight) * v);
        }
        self.write(&c.output, &sum);
    }

    fn embed(&self, e: &Embed) -> Vec<f64> {
        let mut x = self.product(&self.read(&e.trajectory), e.matrix, e.bias);
        x.iter_mut().zip(self.vector(e.table)).for_each(|(x, position)| *x += position);
        if let Some(sum) = &e.sum {
            x.iter_mut().zip(self.read(sum)).for_each(|(x, sum)| *x += sum);
        }
        x
    }

    fn head(&mut self, h: &Head, mut x: Vec<f64>, s: &SamplerStep, step: usize) {
        if let Some(norm) = &h.norm {
            self.norm(&mut x, norm);
        }
        let model = self.product(&x, h.matrix, h.bias);
        if let Some(view) = &h.model {
            self.write(view, &model);
        }
        let mut trajectory = self.read(&h.trajectory);
        let noise = &self.noise[(1 + step) * trajectory.len()..];
        for ((x, model), noise) in trajectory.iter_mut().zip(&model).zip(noise) {
            let clip = f64::from(s.clip);
            let x0 = (f64::from(s.x0_from_x) * *x + f64::from(s.x0_from_model) * model).clamp(-clip, clip);
            *x = f64::from(s.from_x0) * x0
                + f64::from(s.from_x) * *x
                + f64::from(s.from_model) * model
                + f64::from(s.from_noise) * noise;
        }
        self.write(&h.trajectory, &trajectory);
        self.impose(&h.trajectory, h.impose.as_ref());
        self.known(&h.trajectory, h.known.as_ref(), s.signal);
    }

    fn known(&mut self, trajectory: &View, known: Option<&View>, signal: f32) {
        let Some(known) = known else { return };
        let (values, signal) = (self.read(known), f64::from(signal));
        let mut numbers = self.read(trajectory);
        for (row, values) in values.chunks(known.cols).enumerate().filter(|(_, v)| v[0] != 0.0) {
            for (i, clean) in values[1..].iter().enumerate() {
                let at = row * trajectory.cols + i;
                numbers[at] = signal * clean + (1.0 - signal * signal).sqrt() * self.noise[at];
            }
        }
        self.write(trajectory, &numbers);
    }

    fn impose(&mut self, trajectory: &View, observation: Option<&View>) {
        if let Some(observation) = observation {
            let values = self.read(observation);
            let to = trajectory.rows(0, observation.rows).cols(self.plan.shape.actions, observation.cols);
            self.write(&to, &values);
        }
    }
}

/// The normal distribution's share below `x`, by Simpson's rule on the density from 0.
fn normal_below(x: f64) -> f64 {
    const HALVES: usize = 400;
    let end = x.clamp(-9.0, 9.0);
    let step = end / HALVES as f64;
    let density = |i: usize| (-0.5 * (i as f64 * step).powi(2)).exp();
    let inner: f64 = (1..HALVES).map(|i| density(i) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    0.5 + (density(0) + inner + density(HALVES)) * step / 3.0 / (2.0 * std::f64::consts::PI).sqrt()
}
