//! The memory of one engine: every buffer of the plan, written by several threads in turn.

#![allow(
    unsafe_code,
    reason = "threads write disjoint parts of one allocation between barriers, which slices cannot express"
)]

use std::cell::UnsafeCell;

use refrain_policies::plan::{Plan, View};

use super::weights::Line;

/// f32 numbers on a cache line boundary, shared by the threads of one engine.
pub(super) struct Arena {
    lines: Box<[UnsafeCell<Line>]>,
    len: usize,
}

// SAFETY: plain numbers; operations write disjoint places and a barrier stands between operations.
unsafe impl Sync for Arena {}

/// A view resolved to the arena, checked to lie inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) at: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
}

impl Place {
    /// Panics when the plan placed a view outside its arena, which would be a bug of the plan.
    pub(super) fn of(plan: &Plan, view: &View) -> Self {
        let place = Self { at: plan.offset(view), rows: view.rows, cols: view.cols, stride: view.stride };
        let end = place.at + place.rows.saturating_sub(1) * place.stride + place.cols;
        assert!(place.cols <= place.stride && end <= plan.arena, "view {view:?} outside the arena");
        place
    }
}

impl Arena {
    pub(super) fn new(len: usize) -> Self {
        let zero = Line::default();
        Self { lines: (0..len.div_ceil(16)).map(|_| UnsafeCell::new(zero)).collect(), len }
    }

    /// First number; valid for `len` numbers. Reading and writing through it needs the operation's own argument why
    /// no other thread is there.
    pub(super) fn base(&self) -> *mut f32 {
        self.lines.as_ptr().cast::<f32>().cast_mut()
    }

    /// Copies a place out, while no operation runs.
    pub(super) fn read(&self, place: Place, to: &mut [f32]) {
        assert_eq!(to.len(), place.rows * place.cols);
        for (row, to) in to.chunks_exact_mut(place.cols).enumerate() {
            // SAFETY: the place lies inside the arena, and the caller's engine runs no operation now.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    self.base().add(place.at + row * place.stride),
                    to.as_mut_ptr(),
                    to.len(),
                );
            }
        }
    }

    /// Copies into a place, while no operation runs.
    pub(super) fn write(&self, place: Place, from: &[f32]) {
        assert_eq!(from.len(), place.rows * place.cols);
        for (row, from) in from.chunks_exact(place.cols).enumerate() {
            // SAFETY: the place lies inside the arena, and the caller's engine runs no operation now.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    from.as_ptr(),
                    self.base().add(place.at + row * place.stride),
                    from.len(),
                );
            }
        }
    }

    /// The numbers, for one owner while no operation runs.
    pub(super) fn numbers(&mut self) -> &mut [f32] {
        // SAFETY: `&mut self` excludes every other access; `len` numbers were allocated and initialised.
        unsafe { std::slice::from_raw_parts_mut(self.base(), self.len) }
    }
}
