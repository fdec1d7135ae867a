//! Scoring a policy on Push-T, without the bus.
//!
//! Episode i is `PushT::new(seed + i)`; the noise of its chunks is drawn by (noise seed, seed + i, chunk), so an episode
//! comes out the same whoever runs it, with however many workers, and `demo` with that seed shows it. Each chunk's Ta
//! actions are executed one per step; the policy sees the last To observations (with a camera, the scene as it is drawn), the first one repeated at the start (as
//! the public code's `MultiStepWrapper` does). An episode ends when the goal is reached or after 300 steps; its score is
//! its largest reward.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use refrain_policies::vision::Frame;
use refrain_pusht::{MAX_STEPS, PushT};

use crate::engine::EngineError;
use crate::noise;
use crate::policy::{Policy, Prediction};
use crate::scene::{NotPushT, Scene};
use crate::threads;

/// What to score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvalOptions {
    /// Episodes.
    pub episodes: usize,
    /// Seed of the first one.
    pub seed: u64,
    /// Seed of the noise.
    pub noise_seed: u64,
    /// Episodes at a time.
    pub workers: usize,
}

/// How one episode went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EpisodeScore {
    /// Its seed.
    pub seed: u64,
    /// Largest reward, 0 to 1.
    pub score: f64,
    /// Whether the goal was reached.
    pub success: bool,
    /// Steps made.
    pub steps: usize,
    /// Chunks predicted.
    pub chunks: usize,
    /// Chunks predicted from observations outside what the schedule was found with.
    pub outside: u64,
}

/// How all went.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalReport {
    /// In the order of their seeds.
    pub episodes: Vec<EpisodeScore>,
    /// Mean score, and its standard error.
    pub score: (f64, f64),
    /// Share of successes, and its standard error.
    pub success: (f64, f64),
}

/// Why an evaluation ended early.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The policy is not one for Push-T.
    #[error(transparent)]
    Policy(#[from] NotPushT),
    /// A prediction failed.
    #[error("episode with seed {seed}: {source}")]
    Engine {
        /// The episode.
        seed: u64,
        /// Why.
        source: EngineError,
    },
}

/// Runs all episodes. Each worker makes its own policy; `progress` is called from workers as episodes end.
pub fn run(
    options: &EvalOptions,
    make_policy: impl Fn() -> Policy + Sync,
    progress: impl Fn(&EpisodeScore) + Sync,
) -> Result<EvalReport, EvalError> {
    let next = AtomicUsize::new(0);
    let workers = options.workers.clamp(1, options.episodes.max(1));
    let results = threads::in_parallel("eval", workers, |_| {
        let mut policy = make_policy();
        let mut scores = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= options.episodes {
                return Ok(scores);
            }
            match episode(&mut policy, options.seed.wrapping_add(index as u64), options.noise_seed) {
                Ok(score) => {
                    progress(&score);
                    scores.push(score);
                }
                Err(error) => {
                    // The others end after the episode that they are in.
                    next.store(options.episodes, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    });
    let mut episodes = Vec::new();
    for result in results {
        episodes.extend(result?);
    }
    episodes.sort_by_key(|episode| episode.seed.wrapping_sub(options.seed));
    let score = mean(episodes.iter().map(|episode| episode.score));
    let success = mean(episodes.iter().map(|episode| f64::from(u8::from(episode.success))));
    Ok(EvalReport { episodes, score, success })
}

/// Runs one episode.
pub fn episode(policy: &mut Policy, seed: u64, noise_seed: u64) -> Result<EpisodeScore, EvalError> {
    let scene = Scene::of(policy.config())?;
    let to = policy.config().architecture.n_obs_steps;
    policy.forget();
    let mut plane = PushT::new(seed);
    let mut window = scene.numbers(&plane).repeat(to);
    let mut seen: VecDeque<(i64, Vec<u8>)> =
        scene.pixels(&plane).into_iter().flat_map(|pixels| vec![(0, pixels); to]).collect();
    let mut noise = vec![0.0; policy.noise_len()];
    let mut prediction = Prediction::default();
    let (mut steps, mut chunks) = (0, 0);
    let outside_before = policy.outside();
    while steps < MAX_STEPS && !plane.success() {
        noise::fill(noise_seed, seed, chunks as u64, &mut noise);
        chunks += 1;
        let frames: Vec<Frame<'_>> =
            seen.iter().map(|(stamp, pixels)| Frame { stamp: *stamp, image: scene.image(pixels) }).collect();
        policy
            .predict_seeing(&window, &frames, &noise, &mut prediction)
            .map_err(|source| EvalError::Engine { seed, source })?;
        for action in prediction.action.chunks(2) {
            plane.step([f64::from(action[0]), f64::from(action[1])]);
            steps += 1;
            let numbers = scene.numbers(&plane);
            window.drain(..numbers.len());
            window.extend(numbers);
            if let Some(pixels) = scene.pixels(&plane) {
                seen.pop_front();
                seen.push_back((steps as i64, pixels));
            }
            if steps == MAX_STEPS || plane.success() {
                break;
            }
        }
    }
    let outside = policy.outside() - outside_before;
    Ok(EpisodeScore { seed, score: plane.score(), success: plane.success(), steps, chunks, outside })
}

/// Mean and its standard error (of the sample, n - 1).
fn mean(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / n;
    let squares: f64 = values.map(|value| (value - mean) * (value - mean)).sum();
    (mean, (squares / (n - 1.0) / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_errors_are_those_of_the_sample() {
        let (m, e) = mean([1.0, 2.0, 3.0, 4.0].into_iter());
        assert_eq!(m, 2.5);
        assert!((e - (5.0_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
        assert!(mean([1.0].into_iter()).1.is_nan(), "one episode has no standard error");
    }
}
