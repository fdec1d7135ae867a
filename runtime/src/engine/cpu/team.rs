//! Threads that walk through one program together, with a spinning barrier between operations.
//!
//! Thread 0 is the caller's; the others sleep between inferences. A barrier spins for a moment and then yields, so
//! that an overloaded machine still makes progress. Nothing is allocated after the team was made.

#![allow(unsafe_code, reason = "the caller lends its noise to the other threads for one inference")]

use std::cell::UnsafeCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crossbeam::utils::CachePadded;

use super::arena::Arena;
use super::program::Program;

/// Spins before a waiting thread starts to yield; an operation's share takes far fewer.
const SPINS: u32 = 20_000;

pub(super) struct Team {
    shared: Arc<Shared>,
    scratch: Vec<f32>,
    helpers: Vec<JoinHandle<()>>,
}

struct Shared {
    program: Arc<Program>,
    arena: Arena,
    threads: usize,
    /// Lent by the caller from before `generation` moves on until the last barrier of that inference.
    noise: UnsafeCell<(*const f32, usize)>,
    generation: AtomicUsize,
    stop: AtomicBool,
    arrived: CachePadded<AtomicUsize>,
    passed: CachePadded<AtomicUsize>,
}

// SAFETY: `noise` is written by the caller only while the helpers wait for the next generation (acquire/release on
// `generation` and on the last barrier order both); everything else is Sync by itself.
unsafe impl Sync for Shared {}
// SAFETY: the pointer is only followed as said above.
unsafe impl Send for Shared {}

impl Team {
    pub(super) fn new(program: Arc<Program>, threads: usize) -> io::Result<Self> {
        let arena = program.arena();
        let scratch = vec![0.0; program.scratch];
        let shared = Arc::new(Shared {
            program,
            arena,
            threads,
            noise: UnsafeCell::new((std::ptr::null(), 0)),
            generation: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            arrived: CachePadded::default(),
            passed: CachePadded::default(),
        });
        let mut team = Self { shared, scratch, helpers: Vec::new() };
        for thread in 1..threads {
            let shared = Arc::clone(&team.shared);
            team.helpers
                .push(crate::threads::spawn(&format!("refrain-cpu-{thread}"), move || shared.help(thread))?);
        }
        Ok(team)
    }

    pub(super) fn program(&self) -> &Program {
        &self.shared.program
    }

    pub(super) fn threads(&self) -> usize {
        self.shared.threads
    }

    /// The arena; no inference runs while the caller looks.
    pub(super) fn arena(&mut self) -> &Arena {
        &self.shared.arena
    }

    /// One inference on all threads.
    pub(super) fn run(&mut self, noise: &[f32]) {
        // SAFETY: the helpers wait for the next generation and do not look at `noise` before it.
        unsafe { *self.shared.noise.get() = (noise.as_ptr(), noise.len()) };
        self.shared.generation.fetch_add(1, Ordering::Release);
        for helper in &self.helpers {
            helper.thread().unpark();
        }
        self.shared.walk(0, noise, &mut self.scratch);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.generation.fetch_add(1, Ordering::Release);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper that panicked has already printed why.
            let _ = helper.join();
        }
    }
}

impl Shared {
    fn help(&self, thread: usize) {
        let mut scratch = vec![0.0; self.program.scratch];
        let mut seen = 0;
        loop {
            while self.generation.load(Ordering::Acquire) == seen {
                std::thread::park();
            }
            seen += 1;
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            // SAFETY: `run` wrote the slice before it moved the generation on, and it returns only after the last
            // barrier, which this thread takes part in.
            let noise = unsafe {
                let (at, len) = *self.noise.get();
                std::slice::from_raw_parts(at, len)
            };
            self.walk(thread, noise, &mut scratch);
        }
    }

    fn walk(&self, thread: usize, noise: &[f32], scratch: &mut [f32]) {
        self.program.run(&self.arena, noise, thread, self.threads, scratch, || self.barrier());
    }

    fn barrier(&self) {
        if self.threads == 1 {
            return;
        }
        let passed = self.passed.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.arrived.store(0, Ordering::Relaxed);
            self.passed.store(passed.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut spins = 0;
        while self.passed.load(Ordering::Acquire) == passed {
            if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}
