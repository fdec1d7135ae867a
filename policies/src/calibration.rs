//! Calibration: what the adaptive caching scheduler needs to know, collected over observations.
//!
//! For every observation the full policy runs once, its noise drawn anew, and the outputs of all blocks at all
//! denoising steps go in. Per block, and as means over observations, come out
//! - the cosine similarity of the block's output, all tokens and channels as one vector, between every two steps;
//! - the mean absolute difference per element, over all pairs of steps,
//! - the inner product of the block's output between every two steps, which forecasts are fitted by.
//!
//! Sums are f64. Memory is that of the K x K matrices whatever the number of observations. Not here: running the
//! policy, reading observations, drawing noise.
//!
//! Source: arXiv 2506.13456 and its public code, which takes one demonstration observation. These definitions, on the
//! first observation of the first demonstration, give the recorded matrices of `shared/golden` within 1e-5 and their
//! mean l1 differences within 1e-6 of their size; similarities taken token by token are 0.007 off on average.

use crate::adaptive_caching::{BlockStatistics, Statistics};
use crate::schedule::Block;

/// Most denoising steps that can be calibrated; the matrices grow with the square.
pub const MAX_STEPS: usize = 2048;

/// Sums over the observations seen so far.
#[derive(Clone, Debug)]
pub struct Calibration {
    blocks: Vec<Block>,
    steps: usize,
    features: usize,
    observations: usize,
    first_observation: Vec<f32>,
    observations_differ: bool,
    /// Per block the pairs (i, j), i < j, row by row.
    similarity: Vec<Vec<f64>>,
    /// Per block all pairs (i, j), i <= j, row by row.
    products: Vec<Vec<f64>>,
    /// Per block, over all pairs.
    difference: Vec<f64>,
}

/// Why nothing can be calibrated.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CalibrationError {
    /// Caching needs a step to reuse something at.
    #[error("calibration over {0} denoising steps: expected 2 to {MAX_STEPS}")]
    Steps(usize),
    /// A policy without blocks, or blocks without output.
    #[error(
        "calibration of {blocks} blocks with {features} output elements each: expected at least one of each"
    )]
    Empty {
        /// Blocks.
        blocks: usize,
        /// Output elements per block.
        features: usize,
    },
    /// Nothing was added.
    #[error("calibration saw no observation; record at least one, better some dozens from several episodes")]
    NoObservations,
    /// The same observation again and again.
    #[error(
        "all {0} calibration observations are the same; record them while the robot works, or check the recording"
    )]
    ConstantObservations(usize),
    /// Observations of different sizes.
    #[error("calibration observation {index} has {got} numbers, expected {expected} as the first one")]
    ObservationSize {
        /// Which, from 0.
        index: usize,
        /// Size of the first one.
        expected: usize,
        /// Size found.
        got: usize,
    },
    /// An observation holds NaN or infinity.
    #[error("calibration observation {index}, element {element}: expected a finite number, got {got}")]
    Observation {
        /// Which, from 0.
        index: usize,
        /// Where in it.
        element: usize,
        /// The number found.
        got: f32,
    },
    /// Not the outputs of all blocks at all steps.
    #[error("calibration observation {index}: expected {expected} block output elements, got {got}")]
    OutputSize {
        /// Which observation, from 0.
        index: usize,
        /// K * blocks * features.
        expected: usize,
        /// Elements found.
        got: usize,
    },
    /// A block's output holds NaN or infinity.
    #[error(
        "calibration observation {index}: block {block} gives {got} at step {step}; check weights and normaliser"
    )]
    Output {
        /// Which observation, from 0.
        index: usize,
        /// Which block.
        block: Block,
        /// Denoising step.
        step: usize,
        /// The number found.
        got: f32,
    },
    /// A block adds nothing, so its similarity to anything is undefined.
    #[error(
        "calibration observation {index}: block {block} gives only zeros at step {step}, which has no cosine similarity; check the weights, or write its schedule by hand"
    )]
    ZeroNorm {
        /// Which observation, from 0.
        index: usize,
        /// Which block.
        block: Block,
        /// Denoising step.
        step: usize,
    },
}

impl Calibration {
    /// For `blocks` with `features` = T * D output elements each (T trunk tokens), over K = `steps` denoising steps.
    pub fn new(blocks: Vec<Block>, steps: usize, features: usize) -> Result<Self, CalibrationError> {
        if !(2..=MAX_STEPS).contains(&steps) {
            return Err(CalibrationError::Steps(steps));
        }
        if blocks.is_empty() || features == 0 {
            return Err(CalibrationError::Empty { blocks: blocks.len(), features });
        }
        let pairs = steps * (steps - 1) / 2;
        Ok(Self {
            similarity: vec![vec![0.0; pairs]; blocks.len()],
            products: vec![vec![0.0; pairs + steps]; blocks.len()],
            difference: vec![0.0; blocks.len()],
            blocks,
            steps,
            features,
            observations: 0,
            first_observation: Vec::new(),
            observations_differ: false,
        })
    }

    /// Observations added so far.
    pub fn observations(&self) -> usize {
        self.observations
    }

    /// Adds one full run: what the policy saw, `[To, O]`, and what its blocks gave, `[K, blocks, T * D]`.
    ///
    /// After an error nothing of this run has been added. O(K^2 * blocks * T * D).
    pub fn add(&mut self, observation: &[f32], outputs: &[f32]) -> Result<(), CalibrationError> {
        let norms = self.checked_norms(observation, outputs)?;
        let (count, features) = (self.blocks.len(), self.features);
        for b in 0..count {
            let output = |step: usize| &outputs[(step * count + b) * features..][..features];
            let mut sums = self.similarity[b].iter_mut();
            let mut products = self.products[b].iter_mut();
            for i in 0..self.steps {
                let own = norms[i * count + b];
                products.by_ref().take(1).for_each(|product| *product += own * own);
                for ((j, sum), product) in (i + 1..self.steps).zip(&mut sums).zip(&mut products) {
                    let (dot, l1) = dot_and_difference(output(i), output(j));
                    *product += dot;
                    *sum += dot / (norms[i * count + b] * norms[j * count + b]);
                    self.difference[b] += l1 / features as f64;
                }
            }
        }
        if self.observations == 0 {
            self.first_observation = observation.to_vec();
        }
        self.observations_differ |= self.first_observation != observation;
        self.observations += 1;
        Ok(())
    }

    /// Means over all observations.
    pub fn finish(self) -> Result<Statistics, CalibrationError> {
        match self.observations {
            0 => return Err(CalibrationError::NoObservations),
            n if n > 1 && !self.observations_differ => return Err(CalibrationError::ConstantObservations(n)),
            _ => {}
        }
        let (n, k) = (self.observations as f64, self.steps);
        let pairs = (k * (k - 1) / 2) as f64;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (b, &block) in self.blocks.iter().enumerate() {
            let (mut similarity, mut products) = (vec![1.0; k * k], vec![0.0; k * k]);
            let all_pairs = (0..k).flat_map(|i| (i + 1..k).map(move |j| (i, j)));
            for ((i, j), sum) in all_pairs.zip(&self.similarity[b]) {
                (similarity[i * k + j], similarity[j * k + i]) = (sum / n, sum / n);
            }
            let with_own = (0..k).flat_map(|i| (i..k).map(move |j| (i, j)));
            for ((i, j), sum) in with_own.zip(&self.products[b]) {
                (products[i * k + j], products[j * k + i]) = (sum / n, sum / n);
            }
            let mean_l1_difference = self.difference[b] / (n * pairs);
            blocks.push(BlockStatistics { block, similarity, products, mean_l1_difference });
        }
        Ok(Statistics { steps: k, blocks })
    }

    /// The l2 norm of every output, `[K, blocks]`, once all numbers are known to be sound.
    fn checked_norms(&self, observation: &[f32], outputs: &[f32]) -> Result<Vec<f64>, CalibrationError> {
        let index = self.observations;
        let expected = self.first_observation.len();
        if index > 0 && observation.len() != expected {
            return Err(CalibrationError::ObservationSize { index, expected, got: observation.len() });
        }
        if let Some(element) = observation.iter().position(|v| !v.is_finite()) {
            return Err(CalibrationError::Observation { index, element, got: observation[element] });
        }
        let expected = self.steps * self.blocks.len() * self.features;
        if outputs.len() != expected {
            return Err(CalibrationError::OutputSize { index, expected, got: outputs.len() });
        }
        let mut norms = Vec::with_capacity(self.steps * self.blocks.len());
        for (row, output) in outputs.chunks_exact(self.features).enumerate() {
            let (step, block) = (row / self.blocks.len(), self.blocks[row % self.blocks.len()]);
            if let Some(&got) = output.iter().find(|v| !v.is_finite()) {
                return Err(CalibrationError::Output { index, block, step, got });
            }
            let norm = dot_and_difference(output, output).0.sqrt();
            if norm == 0.0 {
                return Err(CalibrationError::ZeroNorm { index, block, step });
            }
            norms.push(norm);
        }
        Ok(norms)
    }
}

/// Sum of products and sum of absolute differences, f64, in four interleaved partial sums.
fn dot_and_difference(a: &[f32], b: &[f32]) -> (f64, f64) {
    const LANES: usize = 4;
    let (mut dot, mut l1) = ([0.0; LANES], [0.0; LANES]);
    let mut add = |a: &[f32], b: &[f32]| {
        for (lane, (&x, &y)) in a.iter().zip(b).enumerate() {
            let (x, y) = (f64::from(x), f64::from(y));
            dot[lane] += x * y;
            l1[lane] += (x - y).abs();
        }
    };
    let (mut left, mut right) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (x, y) in (&mut left).zip(&mut right) {
        add(x, y);
    }
    add(left.remainder(), right.remainder());
    (dot.iter().sum(), l1.iter().sum())
}

#[cfg(test)]
#[path = "calibration_tests.rs"]
mod tests;
