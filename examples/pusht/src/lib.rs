//! Push-T: a round pusher shoves a T-shaped block onto a goal.
//!
//! One [`PushT`] is one episode of the task of the Diffusion Policy paper (Chi et al. 2023), with the geometry, contact
//! law, observation and score of its public simulator (real-stanford/diffusion_policy). Lengths are
//! pixels of a 512 x 512 plane with y down, angles are radians.
//!
//! Guarantees: the same seed and targets give the same bits; a step never fails. It does not know policies, buses or clocks.

mod draw;
mod episode;
pub mod geometry;
mod physics;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::geometry::{BLOCK_COG, BLOCK_KEYPOINTS, Pose, coverage, rotate};
use crate::physics::Physics;

pub use crate::draw::render_rgb;
pub use crate::episode::Episode;

/// Longest episode, in calls of [`PushT::step`].
pub const MAX_STEPS: usize = 300;
/// Control rate: calls of [`PushT::step`] per simulated second.
pub const RATE_HZ: f64 = 10.0;
/// The goal counts as reached above this coverage, and the reward is the coverage divided by it.
pub const SUCCESS_COVERAGE: f64 = 0.95;
/// Physics ticks per control step.
const TICKS_PER_STEP: usize = 10;

/// Where everything is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    /// The pusher's centre (x, y), pixels.
    pub pusher: [f64; 2],
    /// The origin of the block's frame (x, y), pixels: the middle of the bar's outer edge, as in the public demonstrations.
    pub block: [f64; 2],
    /// The block's angle, radians, not wrapped.
    pub angle: f64,
}

impl State {
    /// The block's placement.
    pub fn block_pose(&self) -> Pose {
        Pose { position: self.block, angle: self.angle }
    }

    /// A random start, as the public simulator draws it: pusher on whole pixels in 50..450; the block upright with its
    /// frame on whole pixels in 100..400, then turned about its centre of gravity by 2 pi z - pi, z standard normal.
    pub fn random(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut whole = |low: u32, high: u32| f64::from(rng.random_range(low..high));
        let pusher = [whole(50, 450), whole(50, 450)];
        let upright = [whole(100, 400), whole(100, 400)];
        let z: f64 = StandardNormal.sample(&mut rng);
        let angle = z * std::f64::consts::TAU - std::f64::consts::PI;
        let cog = rotate(BLOCK_COG, angle);
        let block = [upright[0] + BLOCK_COG[0] - cog[0], upright[1] + BLOCK_COG[1] - cog[1]];
        Self { pusher, block, angle }
    }
}

/// What one control step gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Share of the goal that the block covers, 0 to 1.
    pub coverage: f64,
    /// `coverage / 0.95`, at most 1.
    pub reward: f64,
    /// Whether the coverage is above 0.95 now.
    pub success: bool,
}

/// One episode.
pub struct PushT {
    physics: Physics,
    score: f64,
    success: bool,
}

impl PushT {
    /// A random start ([`State::random`]).
    pub fn new(seed: u64) -> Self {
        Self::from_state(State::random(seed))
    }

    /// A given start, everything at rest. The score counts from the first step.
    pub fn from_state(state: State) -> Self {
        Self { physics: Physics::new(state.pusher, state.block_pose()), score: 0.0, success: false }
    }

    /// Where everything is now.
    pub fn state(&self) -> State {
        let block = self.physics.block();
        State { pusher: self.physics.pusher(), block: block.position, angle: block.angle }
    }

    /// The block's nine keypoints (x, y) in the order of [`BLOCK_KEYPOINTS`], then the pusher (x, y); pixels.
    pub fn observation(&self) -> [f32; 20] {
        let block = self.physics.block();
        let points = BLOCK_KEYPOINTS.map(|point| block.apply(point));
        let mut observation = [0.0; 20];
        for (slot, value) in observation.iter_mut().zip(points.iter().flatten().chain(&self.physics.pusher()))
        {
            *slot = *value as f32;
        }
        observation
    }

    /// A tenth of a second with the pusher drawn to `target` (x, y; pixels). A non-finite coordinate is replaced by where
    /// the pusher is: it holds.
    pub fn step(&mut self, target: [f64; 2]) -> Step {
        let here = self.physics.pusher();
        let target =
            std::array::from_fn(|axis| if target[axis].is_finite() { target[axis] } else { here[axis] });
        for _ in 0..TICKS_PER_STEP {
            self.physics.tick(target);
        }
        let coverage = coverage(&self.physics.block());
        let reward = (coverage / SUCCESS_COVERAGE).clamp(0.0, 1.0);
        let success = coverage > SUCCESS_COVERAGE;
        self.score = self.score.max(reward);
        self.success |= success;
        Step { coverage, reward, success }
    }

    /// The largest reward so far, 0 to 1.
    pub fn score(&self) -> f64 {
        self.score
    }

    /// Whether any step ended with more than 0.95 of the goal covered.
    pub fn success(&self) -> bool {
        self.success
    }
}
