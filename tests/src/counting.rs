//! An allocator that counts its calls, on every thread. A test makes it the global one:
//!
//! ```ignore
//! #[global_allocator]
//! static ALLOCATOR: Counting = Counting;
//! ```

#![allow(unsafe_code, reason = "an allocator can only be written with unsafe code")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts calls and passes them on.
#[derive(Debug)]
pub struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator with the arguments as they came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        CALLS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Calls of the allocator, on any thread, while `work` runs.
pub fn calls(work: impl FnOnce()) -> usize {
    let before = CALLS.load(Ordering::SeqCst);
    work();
    CALLS.load(Ordering::SeqCst) - before
}

/// Fails when calls are not counted, because the allocator is not the global one.
pub fn assert_counting() {
    assert!(calls(|| drop(std::hint::black_box(vec![1u8; 100]))) >= 2, "the allocator does not count");
}
