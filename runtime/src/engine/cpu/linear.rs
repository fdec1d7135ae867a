//! `linear`: LayerNorm, matrix product, bias, activation, table and residual in one pass over the weights.

#![allow(unsafe_code, reason = "threads write disjoint columns of one arena; see `arena`")]

use std::ops::Range;
use std::sync::Arc;

use refrain_policies::plan::Activation;

use super::arena::{Arena, Place};
use super::lanes::{Isa, LANES, Lanes, dispatch};
use super::math::activate;
use super::product::{Weight, pack, product};
use super::weights::{Packed, PackedData};

/// LayerNorm's parameters, `[I]` each.
pub(super) struct Norm {
    pub(super) gain: Arc<[f32]>,
    pub(super) bias: Arc<[f32]>,
}

/// A resolved [`refrain_policies::plan::Linear`].
pub(super) struct Linear {
    pub(super) input: Place,
    pub(super) norm: Option<Norm>,
    pub(super) matrix: Arc<Packed>,
    /// `[C]`, padded with zeros to whole panels.
    pub(super) bias: Arc<[f32]>,
    pub(super) activation: Activation,
    /// `[R, C]`.
    pub(super) table: Option<Arc<[f32]>>,
    pub(super) output: Option<Place>,
    pub(super) residual: Option<Place>,
}

impl Linear {
    /// Scratch numbers that one thread needs.
    pub(super) fn scratch(&self) -> usize {
        LANES * self.input.cols.next_multiple_of(LANES) + LANES * LANES
    }

    /// Computes some panels of the output.
    pub(super) fn run(&self, isa: Isa, arena: &Arena, panels: Range<usize>, scratch: &mut [f32]) {
        assert!(scratch.len() >= self.scratch() && panels.end <= self.matrix.panels());
        assert!(self.input.cols == self.matrix.cols && self.bias.len() == self.matrix.panels() * LANES);
        let (job, scratch) = (self, scratch.as_mut_ptr());
        // SAFETY: places lie inside the arena, panels are disjoint between threads, and the barrier between
        // operations orders this against every other access.
        dispatch!(isa, linear(job: &Linear, arena: &Arena, panels: Range<usize>, scratch: *mut f32));
    }
}

#[inline(always)]
unsafe fn linear<L: Lanes>(job: &Linear, arena: &Arena, panels: Range<usize>, scratch: *mut f32) {
    // SAFETY: the contract of `run`.
    unsafe {
        match &job.matrix.data {
            PackedData::F16(lines) => {
                with_weights::<L, u16>(job, arena, panels, scratch, lines.as_ptr().cast())
            }
            PackedData::F32(lines) => {
                with_weights::<L, f32>(job, arena, panels, scratch, lines.as_ptr().cast())
            }
        }
    }
}

#[inline(always)]
unsafe fn with_weights<L: Lanes, W: Weight>(
    job: &Linear,
    arena: &Arena,
    panels: Range<usize>,
    scratch: *mut f32,
    weights: *const W,
) {
    let depth = job.input.cols;
    let columns = job.matrix.rows;
    // SAFETY: the contract of `run`: scratch holds the packed rows and one tile.
    unsafe {
        let packed = scratch;
        let tile = scratch.add(LANES * depth.next_multiple_of(LANES));
        for first in (0..job.input.rows).step_by(LANES) {
            let n = (job.input.rows - first).min(LANES);
            let input = arena.base().add(job.input.at + first * job.input.stride);
            let norm = job.norm.as_ref().map(|norm| (norm.gain.as_ptr(), norm.bias.as_ptr()));
            pack::<L>(input, job.input.stride, n, depth, norm, packed);
            for panel in panels.clone() {
                product::<L, W>(packed, weights.add(panel * depth * LANES), depth, n, tile);
                let column = panel * LANES;
                let width = (columns - column).min(LANES);
                let bias = L::load(job.bias.as_ptr().add(column));
                for r in 0..n {
                    let row = first + r;
                    let mut value = L::add(L::load(tile.add(r * LANES)), bias);
                    value = activate::<L>(job.activation, value);
                    if let Some(table) = &job.table {
                        value = L::add(value, L::load_n(table.as_ptr().add(row * columns + column), width));
                    }
                    if let Some(to) = &job.output {
                        L::store_n(arena.base().add(to.at + row * to.stride + column), value, width);
                    }
                    if let Some(to) = &job.residual {
                        let p = arena.base().add(to.at + row * to.stride + column);
                        L::store_n(p, L::add(L::load_n(p, width), value), width);
                    }
                }
            }
        }
    }
}
