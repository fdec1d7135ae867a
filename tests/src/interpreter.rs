//! Executes a plan operation by operation in f64, with a memory that knows who wrote what.
//!
//! Every cell of the arena starts poisoned: NaN, and owned by no buffer. A read must find the cell owned by the buffer
//! that it names, so two live buffers that share memory, a value that was never written and a value left over from an
//! earlier inference are all found, whatever the numbers are. It shares no code with an engine.

use refrain_policies::package::Package;
use refrain_policies::plan::{
    Activation, Attention, BufferId, Combine, Embed, Gate, Head, LayerNorm, Linear, Matrix, Modulate,
    Modulation, Op, Plan, Rotate, Vector, View,
};
use refrain_policies::sampler::SamplerStep;

/// A plan with its weights and memory.
#[derive(Debug)]
pub struct Interpreter<'a> {
    plan: &'a Plan,
    matrices: Vec<Vec<f64>>,
    vectors: Vec<Vec<f64>>,
    arena: Vec<f64>,
    owner: Vec<Option<BufferId>>,
    loading: bool,
    /// Cells that load wrote and no inference has touched.
    loaded: Vec<bool>,
}

impl<'a> Interpreter<'a> {
    /// Poisons the memory and runs the plan's load-time operations.
    ///
    /// # Panics
    /// When the plan names a weight that the package does not have, or reads what was not written.
    pub fn new(package: &Package, plan: &'a Plan) -> Self {
        let part = |name: &str, first: usize, len: usize| -> Vec<f64> {
            let tensor = package.weights.get(name).unwrap_or_else(|| panic!("the plan names {name}"));
            tensor.to_f32()[first..first + len].iter().map(|v| f64::from(*v)).collect()
        };
        let matrix = |m: &Matrix| part(&m.tensor, m.first * m.cols, m.rows * m.cols);
        let mut interpreter = Self {
            plan,
            matrices: plan.matrices.iter().map(matrix).collect(),
            vectors: plan.vectors.iter().map(|v: &Vector| part(&v.tensor, v.first, v.len)).collect(),
            arena: vec![f64::NAN; plan.arena],
            owner: vec![None; plan.arena],
            loading: true,
            loaded: vec![false; plan.arena],
        };
        plan.load.iter().for_each(|op| interpreter.run(op, &[]));
        interpreter.loading = false;
        interpreter
    }

    /// One inference; what the last one left behind is poisoned first. Gives the trajectory `[T, N]`.
    pub fn infer(&mut self, observation: &[f32], noise: &[f32]) -> Vec<f64> {
        assert_eq!(noise.len(), self.plan.noise_len());
        for i in 0..self.arena.len() {
            if !self.loaded[i] {
                (self.arena[i], self.owner[i]) = (f64::NAN, None);
            }
        }
        let noise: Vec<f64> = noise.iter().map(|v| f64::from(*v)).collect();
        let observation: Vec<f64> = observation.iter().map(|v| f64::from(*v)).collect();
        self.write(&self.plan.observation, &observation);
        for op in self.plan.observe.iter().chain(&self.plan.denoise) {
            self.run(op, &noise);
        }
        self.read(&self.plan.trajectory)
    }

    /// A view's numbers, row-major.
    pub fn read(&self, view: &View) -> Vec<f64> {
        let mut numbers = Vec::with_capacity(view.len());
        for at in self.cells(view) {
            assert_eq!(self.owner[at], Some(view.buffer), "{view:?} is read where another buffer lies");
            numbers.push(self.arena[at]);
        }
        numbers
    }

    fn write(&mut self, view: &View, numbers: &[f64]) {
        assert_eq!(view.len(), numbers.len());
        for (at, number) in self.cells(view).zip(numbers) {
            (self.arena[at], self.owner[at]) = (*number, Some(view.buffer));
            self.loaded[at] = self.loading;
        }
    }

    fn cells(&self, view: &View) -> impl Iterator<Item = usize> + use<> {
        let buffer = self.plan.buffers[view.buffer.0];
        assert!(
            view.cols <= view.stride && view.at + (view.rows - 1) * view.stride + view.cols <= buffer.len
        );
        let (at, cols, stride) = (buffer.at + view.at, view.cols, view.stride);
        (0..view.rows).flat_map(move |row| (0..cols).map(move |c| at + row * stride + c))
    }

    fn run(&mut self, op: &Op, noise: &[f64]) {
        match op {
            Op::Timesteps { timesteps, table, output } => {
                let table = table.map_or_else(|| vec![0.0; output.cols], |t| self.vectors[t.0].clone());
                let rows = timesteps.iter().flat_map(|t| embedding(*t, &table)).collect::<Vec<_>>();
                self.write(output, &rows);
            }
            Op::Start { trajectory, impose, .. } => {
                self.write(trajectory, &noise[..trajectory.len()]);
                self.impose(trajectory, impose.as_ref());
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
                self.head(h, &x, &h.sampler, h.step, noise);
            }
            Op::Quiet(q) => {
                for (i, sampler) in q.samplers.iter().enumerate() {
                    let x = self.embed(&q.embed);
                    self.head(&q.head, &x, sampler, q.head.step + i, noise);
                }
            }
        }
    }

    fn impose(&mut self, trajectory: &View, observation: Option<&View>) {
        let Some(observation) = observation else { return };
        let numbers = self.read(observation);
        let columns = trajectory.rows(0, observation.rows).cols(self.plan.shape.actions, observation.cols);
        self.write(&columns, &numbers);
    }

    fn norm(&self, norm: &LayerNorm, x: &mut [f64]) {
        let (gain, bias) = (&self.vectors[norm.gain.0], &self.vectors[norm.bias.0]);
        for row in x.chunks_mut(gain.len()) {
            let n = row.len() as f64;
            let mean = row.iter().sum::<f64>() / n;
            let deviation = (row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n + 1e-5).sqrt();
            for (v, (g, b)) in row.iter_mut().zip(gain.iter().zip(bias)) {
                *v = (*v - mean) / deviation * g + b;
            }
        }
    }

    /// `x matrix^T + bias`.
    fn product(&self, x: &[f64], matrix: usize, bias: usize) -> Vec<f64> {
        let (Matrix { rows, cols, .. }, weights) = (&self.plan.matrices[matrix], &self.matrices[matrix]);
        let mut out = Vec::new();
        for x in x.chunks(*cols) {
            for c in 0..*rows {
                let sum: f64 = (0..*cols).map(|i| x[i] * weights[c * cols + i]).fold(0.0, |sum, v| sum + v);
                out.push(sum + self.vectors[bias][c]);
            }
        }
        out
    }

    fn linear(&mut self, l: &Linear) {
        let mut x = self.read(&l.input);
        if let Some(norm) = &l.norm {
            self.norm(norm, &mut x);
        }
        let mut values = self.product(&x, l.matrix.0, l.bias.0);
        for v in &mut values {
            *v *= match l.activation {
                Activation::None => 1.0,
                Activation::Gelu => 0.5 * (1.0 + libm::erf(*v / 2f64.sqrt())),
                Activation::GeluTanh => {
                    let z = (2.0 / std::f64::consts::PI).sqrt() * (*v + 0.044_715 * v.powi(3));
                    0.5 * (1.0 + z.tanh())
                }
                Activation::Mish => v.exp().ln_1p().tanh(),
            };
        }
        if let Some(table) = l.table {
            assert_eq!(self.vectors[table.0].len(), values.len());
            values.iter_mut().zip(&self.vectors[table.0]).for_each(|(v, t)| *v += t);
        }
        if let Some(output) = &l.output {
            self.write(output, &values);
        }
        if let Some(residual) = &l.residual {
            let sum: Vec<f64> = self.read(residual).iter().zip(&values).map(|(x, v)| x + v).collect();
            self.write(residual, &sum);
        }
    }

    fn modulation(&self, m: &Modulation) -> Vec<f64> {
        self.read(&m.time).iter().zip(self.read(&m.observation)).map(|(t, o)| t + o).collect()
    }

    fn modulate(&mut self, m: &Modulate) {
        let (shift, scale) = (self.modulation(&m.shift), self.modulation(&m.scale));
        let mut x = self.read(&m.input);
        for row in x.chunks_mut(shift.len()) {
            let n = row.len() as f64;
            let mean = row.iter().sum::<f64>() / n;
            let deviation = (row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n + 1e-6).sqrt();
            for (v, (scale, shift)) in row.iter_mut().zip(scale.iter().zip(&shift)) {
                *v = (*v - mean) / deviation * (1.0 + scale) + shift;
            }
        }
        self.write(&m.output, &x);
    }

    fn gate(&mut self, g: &Gate) {
        let gate = self.modulation(&g.gate);
        let branch = self.read(&g.input);
        let values: Vec<f64> = branch.iter().zip(gate.iter().cycle()).map(|(v, gate)| v * gate).collect();
        if let Some(output) = &g.output {
            self.write(output, &values);
        }
        if let Some(residual) = &g.residual {
            let sum: Vec<f64> = self.read(residual).iter().zip(&values).map(|(x, v)| x + v).collect();
            self.write(residual, &sum);
        }
    }

    fn rotate(&mut self, r: &Rotate) {
        let (before, half) = (self.read(&r.tokens), r.depth / 2);
        let after: Vec<f64> = (0..before.len())
            .map(|at| {
                let (row, c) = (at / r.tokens.cols, at % r.depth);
                let angle = row as f64 * r.base.powf(-2.0 * (c % half) as f64 / r.depth as f64);
                let turned = if c < half { -before[at + half] } else { before[at - half] };
                before[at] * angle.cos() + turned * angle.sin()
            })
            .collect();
        self.write(&r.tokens, &after);
    }

    fn attention(&mut self, a: &Attention) {
        let (query, width) = (self.read(&a.query), a.query.cols);
        let gather = |part: fn(&refrain_policies::plan::Segment) -> View| -> Vec<f64> {
            a.segments.iter().flat_map(|segment| self.read(&part(segment))).collect()
        };
        let (keys, values) = (gather(|s| s.keys), gather(|s| s.values));
        let depth = width / self.plan.shape.heads;
        let mut out = vec![0.0; query.len()];
        for r in 0..a.query.rows {
            for head in 0..self.plan.shape.heads {
                let at = head * depth;
                let all = keys.len() / width;
                let seen = a.ahead.map_or(all, |ahead| all.min(r + ahead + 1));
                let dot = |s: usize| {
                    (0..depth).fold(0.0, |sum, c| sum + query[r * width + at + c] * keys[s * width + at + c])
                };
                let scores: Vec<f64> = (0..seen).map(|s| dot(s) / (depth as f64).sqrt()).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let shares: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let total: f64 = shares.iter().sum();
                for c in at..at + depth {
                    out[r * width + c] =
                        (0..seen).fold(0.0, |sum, s| sum + shares[s] / total * values[s * width + c]);
                }
            }
        }
        self.write(&a.output, &out);
    }

    fn combine(&mut self, c: &Combine) {
        let mut sum = if c.accumulate { self.read(&c.output) } else { vec![0.0; c.output.len()] };
        for (weight, view) in &c.terms {
            assert_eq!((view.rows, view.cols), (c.output.rows, c.output.cols));
            sum.iter_mut().zip(self.read(view)).for_each(|(sum, v)| *sum += f64::from(*weight) * v);
        }
        self.write(&c.output, &sum);
    }

    fn embed(&self, e: &Embed) -> Vec<f64> {
        let mut x = self.product(&self.read(&e.trajectory), e.matrix.0, e.bias.0);
        x.iter_mut().zip(&self.vectors[e.table.0]).for_each(|(x, position)| *x += position);
        if let Some(sum) = &e.sum {
            x.iter_mut().zip(self.read(sum)).for_each(|(x, sum)| *x += sum);
        }
        if let Some(correction) = &e.correction {
            x.iter_mut().zip(correction.iter().cycle()).for_each(|(x, c)| *x += f64::from(*c));
        }
        x
    }

    fn head(&mut self, h: &Head, input: &[f64], sampler: &SamplerStep, step: usize, noise: &[f64]) {
        let mut x = input.to_vec();
        if let Some(norm) = &h.norm {
            self.norm(norm, &mut x);
        }
        let model = self.product(&x, h.matrix.0, h.bias.0);
        if let Some(view) = &h.model {
            self.write(view, &model);
        }
        let len = h.trajectory.len();
        let fresh = &noise[(1 + step) * len..(2 + step) * len];
        let mut trajectory = self.read(&h.trajectory);
        for (x, (model, fresh)) in trajectory.iter_mut().zip(model.iter().zip(fresh)) {
            let [a, b, clip] = [sampler.x0_from_x, sampler.x0_from_model, sampler.clip].map(f64::from);
            let x0 = (a * *x + b * model).clamp(-clip, clip);
            let [a, b, c, d] =
                [sampler.from_x0, sampler.from_x, sampler.from_model, sampler.from_noise].map(f64::from);
            *x = a * x0 + b * *x + c * model + d * fresh;
        }
        self.write(&h.trajectory, &trajectory);
        self.impose(&h.trajectory, h.impose.as_ref());
    }
}

/// Sines in the first half, cosines in the second, plus a table.
fn embedding(timestep: usize, table: &[f64]) -> Vec<f64> {
    let half = table.len() / 2;
    let angle = |i: usize| timestep as f64 * (-(10_000f64.ln()) * i as f64 / (half as f64 - 1.0)).exp();
    let wave = |i: usize| if i < half { angle(i).sin() } else { angle(i - half).cos() };
    table.iter().enumerate().map(|(i, position)| wave(i) + position).collect()
}
