//! Kernels of adaptive LayerNorm and rotary positions: `silu`, `modulate`, `gate` and `rotate`, row by row.

#![allow(unsafe_code, reason = "threads write disjoint rows of one arena; see `arena`")]

use std::ops::Range;

use super::arena::{Arena, Place};
use super::lanes::{Isa, LANES, Lanes, dispatch};
use super::math;
use super::product::moments;

/// Epsilon of the LayerNorm that is modulated.
const EPSILON: f32 = 1e-6;

/// The parts `[1, D]` of timestep and observation, whose sum is meant.
type Modulation = [Place; 2];

/// A resolved [`refrain_policies::plan::Modulate`].
pub(super) struct Modulate {
    pub(super) input: Place,
    pub(super) shift: Modulation,
    pub(super) scale: Modulation,
    pub(super) output: Place,
}

/// A resolved [`refrain_policies::plan::Gate`].
pub(super) struct Gate {
    pub(super) input: Place,
    pub(super) gate: Modulation,
    pub(super) output: Option<Place>,
    pub(super) residual: Option<Place>,
}

/// A resolved [`refrain_policies::plan::Rotate`].
pub(super) struct Rotate {
    pub(super) tokens: Place,
    /// Half of a head's numbers.
    half: usize,
    /// Cosine and sine per row and pair, `[R, half, 2]`.
    turns: Vec<[f32; 2]>,
}

/// `output = input sigmoid(input)` for some rows.
pub(super) fn silu(isa: Isa, arena: &Arena, input: &Place, output: &Place, rows: Range<usize>) {
    assert!(rows.end <= output.rows && input.rows == output.rows && input.cols == output.cols);
    // SAFETY: places lie inside the arena and rows are disjoint between threads.
    dispatch!(isa, silu_rows(arena: &Arena, input: &Place, output: &Place, rows: Range<usize>));
}

#[inline(always)]
unsafe fn silu_rows<L: Lanes>(arena: &Arena, input: &Place, output: &Place, rows: Range<usize>) {
    // SAFETY: the contract of `silu`.
    unsafe {
        for row in rows {
            let from = arena.base().add(input.at + row * input.stride);
            let to = arena.base().add(output.at + row * output.stride);
            for c in (0..output.cols).step_by(LANES) {
                let n = (output.cols - c).min(LANES);
                L::store_n(to.add(c), math::silu::<L>(L::load_n(from.add(c), n)), n);
            }
        }
    }
}

/// Columns `c .. c + n` of a modulation.
#[inline(always)]
unsafe fn modulation<L: Lanes>(arena: &Arena, parts: &Modulation, c: usize, n: usize) -> L::V {
    // SAFETY: places lie inside the arena, `c + n` within their columns.
    unsafe {
        let [time, observation] = parts;
        L::add(
            L::load_n(arena.base().add(time.at + c), n),
            L::load_n(arena.base().add(observation.at + c), n),
        )
    }
}

impl Modulate {
    pub(super) fn run(&self, isa: Isa, arena: &Arena, rows: Range<usize>) {
        let width = self.input.cols;
        assert!(rows.end <= self.input.rows.min(self.output.rows) && self.output.cols == width);
        assert!(self.shift.iter().chain(&self.scale).all(|part| part.cols == width));
        let job = self;
        // SAFETY: places lie inside the arena and rows are disjoint between threads.
        dispatch!(isa, modulate(job: &Modulate, arena: &Arena, rows: Range<usize>));
    }
}

#[inline(always)]
unsafe fn modulate<L: Lanes>(job: &Modulate, arena: &Arena, rows: Range<usize>) {
    let width = job.input.cols;
    // SAFETY: the contract of `run`.
    unsafe {
        for row in rows {
            let from = arena.base().add(job.input.at + row * job.input.stride);
            let to = arena.base().add(job.output.at + row * job.output.stride);
            let (mean, deviation) = moments::<L>(from, width, EPSILON);
            for c in (0..width).step_by(LANES) {
                let n = (width - c).min(LANES);
                let scale = L::add(L::splat(1.0), modulation::<L>(arena, &job.scale, c, n));
                let shift = modulation::<L>(arena, &job.shift, c, n);
                let centred = L::mul(L::sub(L::load_n(from.add(c), n), L::splat(mean)), L::splat(deviation));
                L::store_n(to.add(c), L::fma(centred, scale, shift), n);
            }
        }
    }
}

impl Gate {
    pub(super) fn run(&self, isa: Isa, arena: &Arena, rows: Range<usize>) {
        let input = &self.input;
        assert!(rows.end <= input.rows && self.gate.iter().all(|part| part.cols == input.cols));
        let written = self.output.iter().chain(&self.residual);
        assert!(written.into_iter().all(|to| to.rows == input.rows && to.cols == input.cols));
        let job = self;
        // SAFETY: places lie inside the arena and rows are disjoint between threads.
        dispatch!(isa, gate(job: &Gate, arena: &Arena, rows: Range<usize>));
    }
}

#[inline(always)]
unsafe fn gate<L: Lanes>(job: &Gate, arena: &Arena, rows: Range<usize>) {
    // SAFETY: the contract of `run`.
    unsafe {
        for row in rows {
            let from = arena.base().add(job.input.at + row * job.input.stride);
            for c in (0..job.input.cols).step_by(LANES) {
                let n = (job.input.cols - c).min(LANES);
                let value = L::mul(L::load_n(from.add(c), n), modulation::<L>(arena, &job.gate, c, n));
                if let Some(to) = &job.output {
                    L::store_n(arena.base().add(to.at + row * to.stride + c), value, n);
                }
                if let Some(to) = &job.residual {
                    let p = arena.base().add(to.at + row * to.stride + c);
                    L::store_n(p, L::add(L::load_n(p, n), value), n);
                }
            }
        }
    }
}

impl Rotate {
    /// Works out the angles; `depth` is a head's numbers.
    pub(super) fn new(tokens: Place, depth: usize, base: f64) -> Self {
        let half = depth / 2;
        assert!(half > 0 && depth == 2 * half && tokens.cols.is_multiple_of(depth));
        let turn = |i: usize| {
            let angle = (i / half) as f64 * base.powf(-((i % half) as f64) / half as f64);
            [angle.cos() as f32, angle.sin() as f32]
        };
        Self { tokens, half, turns: (0..tokens.rows * half).map(turn).collect() }
    }

    pub(super) fn run(&self, arena: &Arena, rows: Range<usize>) {
        let (tokens, half) = (&self.tokens, self.half);
        assert!(rows.end <= tokens.rows);
        for row in rows {
            let turns = &self.turns[row * half..(row + 1) * half];
            for head in (0..tokens.cols).step_by(2 * half) {
                // SAFETY: the place lies inside the arena, a head has `2 half` numbers, and rows are disjoint between
                // threads.
                unsafe {
                    let first = arena.base().add(tokens.at + row * tokens.stride + head);
                    for (i, [cosine, sine]) in turns.iter().enumerate() {
                        let (a, b) = (first.add(i), first.add(half + i));
                        (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
                    }
                }
            }
        }
    }
}
