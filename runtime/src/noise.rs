//! The noise of a prediction, by (seed, episode, chunk): the same three give the same bits on every machine.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// Fills `out` with standard normal noise.
pub fn fill(seed: u64, episode: u64, chunk: u64, out: &mut [f32]) {
    let mut key = [0; 32];
    for (slot, part) in key.chunks_exact_mut(8).zip([seed, episode, chunk]) {
        slot.copy_from_slice(&part.to_le_bytes());
    }
    let mut rng = ChaCha8Rng::from_seed(key);
    for value in out {
        *value = StandardNormal.sample(&mut rng);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_part_matters_and_nothing_else_does() {
        let draw = |seed, episode, chunk| {
            let mut out = [0.0; 64];
            fill(seed, episode, chunk, &mut out);
            out
        };
        let first = draw(1, 2, 3);
        assert_eq!(first, draw(1, 2, 3));
        assert!([draw(0, 2, 3), draw(1, 0, 3), draw(1, 2, 0), draw(2, 1, 3)].iter().all(|d| *d != first));
        let mean = first.iter().sum::<f32>() / 64.0;
        assert!(mean.abs() < 0.5, "{mean}");
    }
}
