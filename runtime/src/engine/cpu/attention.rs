//! `attention`: scores, softmax and weighted values, one head at a time.

#![allow(unsafe_code, reason = "threads write disjoint heads of one arena; see `arena`")]

use std::ops::Range;

use super::arena::{Arena, Place};
use super::lanes::{Isa, LANES, Lanes, dispatch};
use super::math::exp;
use super::product::{pack, product};

/// A resolved [`refrain_policies::plan::Attention`].
pub(super) struct Attention {
    pub(super) query: Place,
    /// Keys and values per segment.
    pub(super) segments: Vec<(Place, Place)>,
    pub(super) ahead: Option<usize>,
    pub(super) output: Place,
    pub(super) heads: usize,
}

/// Where the parts of one thread's scratch begin.
struct Parts {
    /// Keys transposed, one panel of sixteen keys after the other: `[panels][depth][16]`.
    keys: *mut f32,
    /// Values in panels of sixteen columns: `[panels][keys][16]`.
    values: *mut f32,
    /// Packed rows of queries, then of probabilities: `[depth or keys][16]`.
    packed: *mut f32,
    /// Scores, then probabilities: `[16][keys]`, keys padded to whole panels.
    scores: *mut f32,
    tile: *mut f32,
}

impl Attention {
    fn keys(&self) -> usize {
        self.segments.iter().map(|(keys, _)| keys.rows).sum()
    }

    fn sizes(&self) -> [usize; 4] {
        let depth = (self.query.cols / self.heads).next_multiple_of(LANES);
        let keys = self.keys().next_multiple_of(LANES);
        [keys * depth, keys * depth, LANES * depth.max(keys), LANES * keys]
    }

    /// Scratch numbers that one thread needs.
    pub(super) fn scratch(&self) -> usize {
        self.sizes().iter().sum::<usize>() + LANES * LANES
    }

    /// Computes some heads.
    pub(super) fn run(&self, isa: Isa, arena: &Arena, heads: Range<usize>, scratch: &mut [f32]) {
        assert!(scratch.len() >= self.scratch() && heads.end <= self.heads);
        let (job, scratch) = (self, scratch.as_mut_ptr());
        // SAFETY: places lie inside the arena, heads are disjoint between threads, and the barrier between
        // operations orders this against every other access.
        dispatch!(isa, attention(job: &Attention, arena: &Arena, heads: Range<usize>, scratch: *mut f32));
    }
}

#[inline(always)]
unsafe fn attention<L: Lanes>(job: &Attention, arena: &Arena, heads: Range<usize>, scratch: *mut f32) {
    let depth = job.query.cols / job.heads;
    let keys = job.keys();
    let padded = keys.next_multiple_of(LANES);
    let [a, b, c, d] = job.sizes();
    // SAFETY: the contract of `run`; scratch was sized by `sizes`.
    unsafe {
        let parts = Parts {
            keys: scratch,
            values: scratch.add(a),
            packed: scratch.add(a + b),
            scores: scratch.add(a + b + c),
            tile: scratch.add(a + b + c + d),
        };
        for head in heads {
            gather::<L>(job, arena, head * depth, depth, &parts);
            for first in (0..job.query.rows).step_by(LANES) {
                let n = (job.query.rows - first).min(LANES);
                let query = arena.base().add(job.query.at + first * job.query.stride + head * depth);
                pack::<L>(query, job.query.stride, n, depth, None, parts.packed);
                for panel in 0..padded / LANES {
                    product::<L, f32>(
                        parts.packed,
                        parts.keys.add(panel * depth * LANES),
                        depth,
                        n,
                        parts.tile,
                    );
                    for r in 0..n {
                        let to = parts.scores.add(r * padded + panel * LANES);
                        L::store(to, L::load(parts.tile.add(r * LANES)));
                    }
                }
                for r in 0..n {
                    let seen = job.ahead.map_or(keys, |ahead| keys.min(first + r + ahead + 1));
                    softmax::<L>(parts.scores.add(r * padded), seen, padded, (depth as f32).sqrt().recip());
                }
                pack::<L>(parts.scores, padded, n, padded, None, parts.packed);
                for panel in 0..depth.div_ceil(LANES) {
                    product::<L, f32>(
                        parts.packed,
                        parts.values.add(panel * padded * LANES),
                        padded,
                        n,
                        parts.tile,
                    );
                    let column = head * depth + panel * LANES;
                    let width = (depth - panel * LANES).min(LANES);
                    for r in 0..n {
                        let to = job.output.at + (first + r) * job.output.stride + column;
                        L::store_n(arena.base().add(to), L::load(parts.tile.add(r * LANES)), width);
                    }
                }
            }
        }
    }
}

/// Brings one head's keys and values of all segments into panels; padding keys are zero.
#[inline(always)]
unsafe fn gather<L: Lanes>(job: &Attention, arena: &Arena, column: usize, depth: usize, parts: &Parts) {
    let padded = job.keys().next_multiple_of(LANES);
    let panels = depth.div_ceil(LANES);
    // SAFETY: the contract of `run`.
    unsafe {
        let mut block = [std::ptr::null::<f32>(); LANES];
        let mut key = 0;
        for (keys, values) in &job.segments {
            for s in 0..keys.rows {
                block[key % LANES] = arena.base().add(keys.at + s * keys.stride + column);
                let from = arena.base().add(values.at + s * values.stride + column);
                for panel in 0..panels {
                    let width = (depth - panel * LANES).min(LANES);
                    let to = parts.values.add((panel * padded + key) * LANES);
                    L::store(to, L::load_n(from.add(panel * LANES), width));
                }
                key += 1;
                if key.is_multiple_of(LANES) {
                    transpose_keys::<L>(&block, depth, parts.keys.add((key - LANES) * depth), parts.tile);
                    block = [std::ptr::null(); LANES];
                }
            }
        }
        if !key.is_multiple_of(LANES) {
            transpose_keys::<L>(&block, depth, parts.keys.add((key - key % LANES) * depth), parts.tile);
        }
        for key in key..padded {
            for panel in 0..panels {
                L::store(parts.values.add((panel * padded + key) * LANES), L::splat(0.0));
            }
        }
    }
}

/// Sixteen keys (null: none, zero) of `depth` numbers into one panel `[depth][16]`.
#[inline(always)]
unsafe fn transpose_keys<L: Lanes>(
    keys: &[*const f32; LANES],
    depth: usize,
    panel: *mut f32,
    tile: *mut f32,
) {
    // SAFETY: every key holds `depth` numbers, the panel `16 depth`, the tile 256.
    unsafe {
        for d in (0..depth).step_by(LANES) {
            let width = (depth - d).min(LANES);
            let mut rows = [L::splat(0.0); LANES];
            for (row, key) in rows.iter_mut().zip(keys) {
                if !key.is_null() {
                    *row = L::load_n(key.add(d), width);
                }
            }
            if width == LANES {
                L::transpose(rows, panel.add(d * LANES));
            } else {
                // A last block narrower than sixteen would write past its panel, so it goes through the tile.
                L::transpose(rows, tile);
                std::ptr::copy_nonoverlapping(tile, panel.add(d * LANES), width * LANES);
            }
        }
    }
}

/// Softmax of `scale * row[..seen]`; the rest of the `padded` row becomes zero.
#[inline(always)]
unsafe fn softmax<L: Lanes>(row: *mut f32, seen: usize, padded: usize, scale: f32) {
    // SAFETY: `row` holds `padded` numbers, a multiple of sixteen, and `1 <= seen <= padded`.
    unsafe {
        for s in seen..padded {
            *row.add(s) = f32::NEG_INFINITY;
        }
        let mut largest = L::load(row);
        for s in (LANES..padded).step_by(LANES) {
            largest = L::max(largest, L::load(row.add(s)));
        }
        let largest = L::splat(L::largest(largest) * scale);
        let mut sum = L::splat(0.0);
        for s in (0..padded).step_by(LANES) {
            let e = exp::<L>(L::sub(L::mul(L::load(row.add(s)), L::splat(scale)), largest));
            let width = seen.saturating_sub(s).min(LANES);
            L::store_n(row.add(s), e, width);
            for hidden in width..LANES {
                *row.add(s + hidden) = 0.0;
            }
            sum = L::add(sum, L::load(row.add(s)));
        }
        let scale = L::splat(1.0 / L::sum(sum));
        for s in (0..padded).step_by(LANES) {
            L::store(row.add(s), L::mul(L::load(row.add(s)), scale));
        }
    }
}
