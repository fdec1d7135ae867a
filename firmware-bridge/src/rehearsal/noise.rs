//! A line that loses, corrupts, repeats, reorders and delays frames, from a seed.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// What a line does to frames. All probabilities 0 to 1; the default does nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NoiseConfig {
    /// Probability that a frame is lost.
    pub drop: f64,
    /// Probability that a byte is replaced by another.
    pub corrupt: f64,
    /// Probability that a frame comes twice.
    pub duplicate: f64,
    /// Probability that a frame comes up to [`LATEST_US`] late, behind others.
    pub reorder: f64,
    /// Delay of every frame, µs.
    pub delay_us: u64,
    /// Time that a byte takes on the line, ns: 10 bits at the baud rate.
    pub byte_ns: u64,
}

/// How late a reordered frame comes at most, µs.
pub const LATEST_US: u64 = 60_000;

/// A line in one direction. Carries frames as they are on the wire, with their delimiters.
#[derive(Clone, Debug)]
pub struct Noise {
    config: NoiseConfig,
    rng: ChaCha8Rng,
    busy_until_us: u64,
    count: u64,
    under_way: BTreeMap<(u64, u64), Vec<u8>>,
}

impl Noise {
    /// A line with nothing on it.
    pub fn new(config: NoiseConfig, seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Self { config, rng, busy_until_us: 0, count: 0, under_way: BTreeMap::new() }
    }

    /// Changes what happens to the frames sent from now on.
    pub fn configure(&mut self, config: NoiseConfig) {
        self.config = config;
    }

    /// Loses everything under way.
    pub fn clear(&mut self) {
        self.under_way.clear();
    }

    /// Puts a frame on the line.
    pub fn send(&mut self, now_us: u64, mut line: Vec<u8>) {
        let config = self.config;
        self.busy_until_us =
            self.busy_until_us.max(now_us) + (line.len() as u64 * config.byte_ns).div_ceil(1000);
        if self.rng.random_bool(config.drop) {
            return;
        }
        let mut arrival_us = self.busy_until_us + config.delay_us;
        if self.rng.random_bool(config.duplicate) {
            let again_us = arrival_us + self.rng.random_range(0..LATEST_US);
            self.put(again_us, line.clone());
        }
        for byte in &mut line {
            if self.rng.random_bool(config.corrupt) {
                *byte ^= self.rng.random_range(1..=255u8);
            }
        }
        if self.rng.random_bool(config.reorder) {
            arrival_us += self.rng.random_range(0..LATEST_US);
        }
        self.put(arrival_us, line);
    }

    /// The bytes of the next frame that has arrived.
    pub fn receive(&mut self, now_us: u64) -> Option<Vec<u8>> {
        let first = self.under_way.first_entry()?;
        (first.key().0 <= now_us).then(|| first.remove())
    }

    fn put(&mut self, arrival_us: u64, line: Vec<u8>) {
        self.count += 1;
        self.under_way.insert((arrival_us, self.count), line);
    }
}
