//! What this processor could do at best: the floor that a plan's time is compared with.

#![allow(unsafe_code, reason = "vector instructions; see `lanes`")]

use std::hint::black_box;

use super::lanes::{Isa, LANES, Lanes, dispatch};
use crate::{clock, threads};

/// Measured limits of some threads together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floor {
    /// Floating-point operations per second of independent multiply-adds on registers.
    pub flops: f64,
    /// Bytes per second when reading a working set of the given size again and again.
    pub bandwidth: f64,
}

/// Rounds per timing, and timings of which the best counts.
const ROUNDS: u32 = 200_000;
const TRIES: usize = 5;

impl Floor {
    /// Measures on `threads` threads for about a tenth of a second each; `bytes` is the working set read.
    pub fn measure(isa: Isa, threads: usize, bytes: usize) -> Self {
        let flops = threads::in_parallel("refrain-floor", threads, |_| best(|| multiply_add(isa)));
        let share = (bytes / threads).max(4096);
        let bandwidth = threads::in_parallel("refrain-floor", threads, |_| {
            let numbers = vec![1u64; share / 8];
            best(|| {
                let mut rounds = 0u32;
                let start = clock::now();
                loop {
                    black_box(read(black_box(&numbers)));
                    rounds += 1;
                    let seconds = clock::seconds(clock::now() - start);
                    if seconds > 0.02 {
                        return f64::from(rounds) * (numbers.len() * 8) as f64 / seconds;
                    }
                }
            })
        });
        Self { flops: flops.iter().sum(), bandwidth: bandwidth.iter().sum() }
    }

    /// Seconds below which `flops` operations on `bytes` bytes of weights cannot be done.
    pub fn seconds(&self, flops: u64, bytes: u64) -> f64 {
        (flops as f64 / self.flops).max(bytes as f64 / self.bandwidth)
    }
}

fn best(measure: impl Fn() -> f64) -> f64 {
    (0..TRIES).map(|_| measure()).fold(0.0, f64::max)
}

fn read(numbers: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    for chunk in numbers.chunks_exact(32) {
        for (sum, n) in sums.iter_mut().zip(chunk) {
            *sum ^= n;
        }
    }
    sums.iter().fold(0, |a, b| a ^ b)
}

/// FLOPs per second of one thread.
fn multiply_add(isa: Isa) -> f64 {
    let mut out = [0f32; LANES];
    let p = out.as_mut_ptr();
    let start = clock::now();
    // SAFETY: `p` holds sixteen numbers.
    dispatch!(isa, chains(p: *mut f32));
    let seconds = clock::seconds(clock::now() - start);
    black_box(out);
    f64::from(ROUNDS) * (CHAINS * LANES * 2) as f64 / seconds
}

/// Independent sums: enough to hide the latency, few enough for the registers of AVX-512 and AVX2 alike.
const CHAINS: usize = 12;

#[inline(always)]
unsafe fn chains<L: Lanes>(p: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe {
        let (a, b) = (L::splat(0.999), L::splat(1e-3));
        let mut sums = [L::splat(0.5); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = L::fma(*sum, a, b);
            }
        }
        let mut total = L::splat(0.0);
        for sum in sums {
            total = L::add(total, sum);
        }
        L::store(p, total);
    }
}
