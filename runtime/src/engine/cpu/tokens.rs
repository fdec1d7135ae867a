//! Kernels that treat every token alone: `start`, `embed`, `head`, `quiet` and `combine`.

#![allow(unsafe_code, reason = "threads write disjoint rows of one arena; see `arena`")]

use std::ops::Range;
use std::sync::Arc;

use refrain_policies::sampler::SamplerStep;

use super::arena::{Arena, Place};
use super::lanes::{Isa, LANES, Lanes, dispatch};
use super::linear::Norm;
use super::product::{EPSILON, moments};

/// The observation that is written over part of the trajectory, when inpainting.
#[derive(Clone, Copy)]
pub(super) struct Impose {
    /// `[To, O]`.
    pub(super) observation: Place,
    /// First overwritten column A.
    pub(super) column: usize,
}

/// Known actions `[T, 1 + A]`; see [`refrain_policies::plan::Plan::known`].
#[derive(Clone, Copy)]
pub(super) struct Known(pub(super) Place);

/// A resolved [`refrain_policies::plan::Embed`].
pub(super) struct Embed {
    pub(super) trajectory: Place,
    /// `[N, D]`.
    pub(super) matrix: Arc<[f32]>,
    /// `[T, D]`: bias and positions in one.
    pub(super) table: Arc<[f32]>,
    pub(super) sum: Option<Place>,
    /// `[T, D]`; of a quiet run, not in the arena.
    pub(super) output: Option<Place>,
    pub(super) width: usize,
}

/// A resolved [`refrain_policies::plan::Head`].
pub(super) struct Head {
    /// `[T, D]`; of a quiet run, not in the arena.
    pub(super) input: Option<Place>,
    pub(super) norm: Option<Norm>,
    /// `[N, D]`.
    pub(super) matrix: Arc<[f32]>,
    /// `[N]`.
    pub(super) offset: Arc<[f32]>,
    pub(super) step: usize,
    pub(super) samplers: Vec<SamplerStep>,
    pub(super) trajectory: Place,
    pub(super) impose: Option<Impose>,
    pub(super) known: Option<Known>,
    pub(super) model: Option<Place>,
    pub(super) width: usize,
}

/// A resolved [`refrain_policies::plan::Combine`].
pub(super) struct Combine {
    pub(super) terms: Vec<(f32, Place)>,
    pub(super) output: Place,
    pub(super) accumulate: bool,
}

impl Impose {
    /// Writes one token's part.
    ///
    /// # Safety
    /// The caller's thread alone touches this row of the trajectory.
    unsafe fn row(&self, arena: &Arena, row: usize, trajectory: *mut f32) {
        if row < self.observation.rows {
            // SAFETY: both places lie inside the arena and do not overlap.
            unsafe {
                let from = arena.base().add(self.observation.at + row * self.observation.stride);
                std::ptr::copy_nonoverlapping(from, trajectory.add(self.column), self.observation.cols);
            }
        }
    }
}

impl Known {
    /// Writes one token's part, if it is known; `noise` is the token's part of row 0.
    ///
    /// # Safety
    /// The caller's thread alone touches this row of the trajectory; `noise` holds as many numbers.
    unsafe fn row(&self, arena: &Arena, row: usize, trajectory: *mut f32, signal: f32, noise: *const f32) {
        // SAFETY: both places lie inside the arena and do not overlap; the trajectory has A columns or more.
        unsafe {
            let from = arena.base().add(self.0.at + row * self.0.stride);
            if *from != 0.0 {
                for i in 0..self.0.cols - 1 {
                    *trajectory.add(i) = SamplerStep::noised(signal, *from.add(1 + i), *noise.add(i));
                }
            }
        }
    }
}

/// Row 0 of the noise becomes the trajectory.
pub(super) fn start(
    arena: &Arena,
    trajectory: &Place,
    impose: Option<&Impose>,
    known: Option<(&Known, f32)>,
    noise: &[f32],
    rows: Range<usize>,
) {
    for row in rows {
        let from = &noise[row * trajectory.cols..(row + 1) * trajectory.cols];
        // SAFETY: places lie inside the arena; rows are disjoint between threads.
        unsafe {
            let to = arena.base().add(trajectory.at + row * trajectory.stride);
            std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len());
            if let Some(impose) = impose {
                impose.row(arena, row, to);
            }
            if let Some((known, signal)) = known {
                known.row(arena, row, to, signal, from.as_ptr());
            }
        }
    }
}

impl Combine {
    pub(super) fn run(&self, isa: Isa, arena: &Arena, rows: Range<usize>) {
        assert!(rows.end <= self.output.rows);
        let job = self;
        // SAFETY: places lie inside the arena and rows are disjoint between threads.
        dispatch!(isa, combine(job: &Combine, arena: &Arena, rows: Range<usize>));
    }
}

#[inline(always)]
unsafe fn combine<L: Lanes>(job: &Combine, arena: &Arena, rows: Range<usize>) {
    // SAFETY: the contract of `run`.
    unsafe {
        for row in rows {
            let out = arena.base().add(job.output.at + row * job.output.stride);
            for c in (0..job.output.cols).step_by(LANES) {
                let width = (job.output.cols - c).min(LANES);
                let mut value = if job.accumulate { L::load_n(out.add(c), width) } else { L::splat(0.0) };
                for (weight, term) in &job.terms {
                    let from = arena.base().add(term.at + row * term.stride + c);
                    value = L::fma(L::splat(*weight), L::load_n(from, width), value);
                }
                L::store_n(out.add(c), value, width);
            }
        }
    }
}

impl Embed {
    pub(super) fn run(&self, isa: Isa, arena: &Arena, rows: Range<usize>) {
        let Some(output) = self.output else { return };
        assert!(rows.end <= output.rows);
        for row in rows {
            let job = self;
            // SAFETY: the place lies inside the arena; rows are disjoint between threads.
            let to = unsafe { arena.base().add(output.at + row * output.stride) };
            // SAFETY: as above.
            dispatch!(isa, embed_row(job: &Embed, arena: &Arena, row: usize, to: *mut f32));
        }
    }
}

/// One token: positions, sum and the trajectory's numbers through the embedding.
#[inline(always)]
unsafe fn embed_row<L: Lanes>(job: &Embed, arena: &Arena, row: usize, to: *mut f32) {
    let width = job.width;
    // SAFETY: places lie inside the arena; `to` holds `width` numbers of this thread's.
    unsafe {
        let x = arena.base().add(job.trajectory.at + row * job.trajectory.stride);
        for c in (0..width).step_by(LANES) {
            let n = (width - c).min(LANES);
            let mut value = L::load_n(job.table.as_ptr().add(row * width + c), n);
            for i in 0..job.trajectory.cols {
                let w = L::load_n(job.matrix.as_ptr().add(i * width + c), n);
                value = L::fma(L::splat(*x.add(i)), w, value);
            }
            if let Some(sum) = &job.sum {
                value = L::add(value, L::load_n(arena.base().add(sum.at + row * sum.stride + c), n));
            }
            L::store_n(to.add(c), value, n);
        }
    }
}

impl Head {
    /// `noise` is `[K + 1, T, N]`.
    pub(super) fn run(&self, isa: Isa, arena: &Arena, rows: Range<usize>, noise: &[f32]) {
        let Some(input) = self.input else { return };
        self.check(rows.end, noise);
        let (job, noise) = (self, noise.as_ptr());
        for row in rows {
            // SAFETY: the place lies inside the arena; rows are disjoint between threads.
            let x = unsafe { arena.base().add(input.at + row * input.stride) };
            let index = 0;
            // SAFETY: as above; `check` bounds the noise.
            dispatch!(isa, head_row(job: &Head, arena: &Arena, row: usize, x: *mut f32, index: usize, noise: *const f32));
        }
    }

    fn check(&self, rows: usize, noise: &[f32]) {
        let t = &self.trajectory;
        assert!(rows <= t.rows && noise.len() >= (self.step + self.samplers.len() + 1) * t.rows * t.cols);
    }
}

/// One token: final norm, head and sampler step `index`; the normalised token replaces `x`.
#[inline(always)]
unsafe fn head_row<L: Lanes>(
    job: &Head,
    arena: &Arena,
    row: usize,
    x: *mut f32,
    index: usize,
    noise: *const f32,
) {
    let width = job.width;
    let t = &job.trajectory;
    // SAFETY: places lie inside the arena; `x` holds `width` numbers of this thread's; noise was checked.
    unsafe {
        if let Some(norm) = &job.norm {
            let (mean, scale) = moments::<L>(x, width, EPSILON);
            for c in (0..width).step_by(LANES) {
                let n = (width - c).min(LANES);
                let centred = L::mul(L::sub(L::load_n(x.add(c), n), L::splat(mean)), L::splat(scale));
                let gain = L::load_n(norm.gain.as_ptr().add(c), n);
                L::store_n(x.add(c), L::fma(centred, gain, L::load_n(norm.bias.as_ptr().add(c), n)), n);
            }
        }
        let sampler = &job.samplers[index];
        let trajectory = arena.base().add(t.at + row * t.stride);
        let first = noise.add(row * t.cols);
        let noise = noise.add(((job.step + index + 1) * t.rows + row) * t.cols);
        for i in 0..t.cols {
            let mut sum = L::splat(0.0);
            for c in (0..width).step_by(LANES) {
                let n = (width - c).min(LANES);
                sum =
                    L::fma(L::load_n(x.add(c), n), L::load_n(job.matrix.as_ptr().add(i * width + c), n), sum);
            }
            let model = L::sum(sum) + job.offset[i];
            if let Some(place) = &job.model {
                *arena.base().add(place.at + row * place.stride + i) = model;
            }
            *trajectory.add(i) = sampler.apply(*trajectory.add(i), model, *noise.add(i));
        }
        if let Some(impose) = &job.impose {
            impose.row(arena, row, trajectory);
        }
        if let Some(known) = &job.known {
            known.row(arena, row, trajectory, sampler.signal, first);
        }
    }
}

/// Scratch numbers that one thread needs for a quiet run.
pub(super) fn quiet_scratch(width: usize) -> usize {
    width.next_multiple_of(LANES)
}

/// All steps of a quiet run for some tokens.
pub(super) fn quiet(
    isa: Isa,
    embed: &Embed,
    head: &Head,
    arena: &Arena,
    rows: Range<usize>,
    noise: &[f32],
    scratch: &mut [f32],
) {
    head.check(rows.end, noise);
    assert!(scratch.len() >= quiet_scratch(head.width));
    let (noise, x) = (noise.as_ptr(), scratch.as_mut_ptr());
    // SAFETY: places lie inside the arena; rows are disjoint between threads; noise and scratch were checked.
    dispatch!(isa, quiet_rows(embed: &Embed, head: &Head, arena: &Arena, rows: Range<usize>, x: *mut f32, noise: *const f32));
}

#[inline(always)]
unsafe fn quiet_rows<L: Lanes>(
    embed: &Embed,
    head: &Head,
    arena: &Arena,
    rows: Range<usize>,
    x: *mut f32,
    noise: *const f32,
) {
    for row in rows {
        for index in 0..head.samplers.len() {
            // SAFETY: the contract of `quiet`.
            unsafe {
                embed_row::<L>(embed, arena, row, x);
                head_row::<L>(head, arena, row, x, index, noise);
            }
        }
    }
}

/// Sinusoidal embedding of a timestep plus a table row (or zeros), `[D]`: sines in the first half, cosines in the second, with
/// frequencies `10000^(-i / (D/2 - 1))` (real-stanford's `SinusoidalPosEmb`).
pub(in crate::engine) fn sinusoid(timestep: usize, table: &[f32]) -> Vec<f32> {
    let half = table.len() / 2;
    let rate = -(10_000f64.ln() / (half as f64 - 1.0)) as f32;
    let angle = |i: usize| timestep as f32 * (i as f32 * rate).exp();
    let wave = |i: usize| if i < half { angle(i).sin() } else { angle(i - half).cos() };
    table.iter().enumerate().map(|(i, position)| wave(i) + position).collect()
}

/// Writes the embedded timesteps, one per row.
pub(super) fn timesteps(arena: &Arena, rows: &[Vec<f32>], output: &Place) {
    assert!(rows.len() <= output.rows);
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(row.len(), output.cols);
        // SAFETY: the place lies inside the arena; one thread does all rows.
        unsafe {
            std::ptr::copy_nonoverlapping(
                row.as_ptr(),
                arena.base().add(output.at + i * output.stride),
                row.len(),
            );
        }
    }
}
