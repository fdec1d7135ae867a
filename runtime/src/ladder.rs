//! The ladder: prepared plans from the best-scoring to the fastest, and when to step between them.
//!
//! At load each plan is timed on this machine ([`time`]), and the best-scoring one whose p99 fits the inference budget is
//! where the ladder starts ([`fit`]). At run time every prediction's span is noted ([`Ladder::note`]):
//!
//! * down, at once, when a span is over the budget;
//! * down when the line through the last [`WINDOW`] spans reaches the budget within as many predictions again: a
//!   processor that gets hot slows down before deadlines are missed;
//! * up when, for a patience of predictions, the plan above would have stayed under [`ROOM`] of the budget, by its time
//!   at load relative to this one's. Falling back from there doubles the patience.
//!
//! Guarantees: the same spans give the same steps; nothing is random.

use refrain_policies::config::PolicyConfig;
use refrain_policies::preprocess::Image;
use refrain_policies::vision::{Frame, Vision};

use crate::clock::{self, Nanos};
use crate::engine::EngineError;
use crate::policy::{Policy, Prediction};

/// Spans that a trend is taken from.
pub const WINDOW: usize = 32;
/// Share of the budget that the plan above may need.
pub const ROOM: f64 = 0.7;
/// Predictions before the first step up.
const PATIENCE: u32 = 100;
/// Predictions at most before a step up.
const LONGEST_PATIENCE: u32 = 6400;
/// Predictions before timing starts, and timed ones.
const WARM_UP: usize = 3;
const TIMED: usize = 40;
/// Timing ends after this, whatever was timed.
const ENOUGH: Nanos = 3 * clock::SECOND;

/// A plan that is ready to run.
pub struct Rung {
    /// The schedule's name.
    pub name: String,
    /// What runs it.
    pub policy: Policy,
    /// How long it took at load; 0 when nobody looked.
    pub timing: Timing,
}

/// What an inference thread is given.
pub struct Rungs {
    /// The best-scoring first.
    pub rungs: Vec<Rung>,
}

impl Rungs {
    /// One plan, called by its schedule's name.
    pub fn one(policy: Policy, name: &str) -> Self {
        let rung = Rung { name: name.to_owned(), policy, timing: Timing::default() };
        Self { rungs: vec![rung] }
    }
}

impl From<Policy> for Rungs {
    fn from(policy: Policy) -> Self {
        Self::one(policy, "")
    }
}

/// Spans of predictions, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Median.
    pub p50: Nanos,
    /// 99 of 100 are at most this; the longest, where fewer were timed.
    pub p99: Nanos,
}

/// A step of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// To the next faster plan: a span was over the budget.
    Missed,
    /// To the next faster plan: spans grow toward the budget.
    Slowing,
    /// To the next better plan.
    Up,
}

/// Which rung runs.
#[derive(Clone, Debug)]
pub struct Ladder {
    /// Median spans at load.
    medians: Vec<Nanos>,
    at: usize,
    budget: Nanos,
    spans: [Nanos; WINDOW],
    /// Spans noted on this rung.
    noted: u32,
    /// Spans in a row that would have left room on the rung above.
    calm: u32,
    patience: u32,
    /// Whether this rung was reached by a step up.
    climbed: bool,
}

/// Times the denoising of `policy` on this machine, warm-up left out.
pub fn time(policy: &mut Policy) -> Result<Timing, EngineError> {
    let c = policy.config();
    let condition = vec![0.1; c.architecture.n_obs_steps * c.condition_size()];
    let noise = vec![0.5; policy.noise_len()];
    let mut out = Prediction::default();
    timed(|_| policy.denoise(&condition, &noise, &mut out))
}

/// Times the encoding of the images of one prediction, none of which was encoded before.
pub fn time_sight(vision: &mut Vision, config: &PolicyConfig) -> Result<Timing, EngineError> {
    let steps = config.architecture.n_obs_steps;
    let sizes = config.cameras.iter().map(|camera| (camera.size, camera.channels));
    let pixels: Vec<Vec<u8>> =
        sizes.map(|([height, width], channels)| vec![128; height * width * channels.count()]).collect();
    let (low, mut condition) =
        (vec![0.1; steps * config.observation.size()], vec![0.0; steps * config.condition_size()]);
    let mut frames = Vec::with_capacity(steps * pixels.len());
    let timing = timed(|round| {
        frames.clear();
        for step in 0..steps {
            frames.extend(config.cameras.iter().zip(&pixels).map(|(camera, pixels)| {
                let [height, width] = camera.size;
                let (channels, step_bytes) = (camera.channels, width * camera.channels.count());
                let image = Image { height, width, step: step_bytes, channels, pixels };
                Frame { stamp: (round * steps + step) as i64, image }
            }));
        }
        Ok(vision.condition(&low, &frames, &mut condition)?)
    });
    vision.forget();
    timing
}

fn timed(mut run: impl FnMut(usize) -> Result<(), EngineError>) -> Result<Timing, EngineError> {
    let mut spans = Vec::with_capacity(TIMED);
    let begin = clock::now();
    for round in 0..WARM_UP + TIMED {
        let start = clock::now();
        run(round)?;
        let end = clock::now();
        if round >= WARM_UP {
            spans.push(end - start);
        }
        if end - begin > ENOUGH && !spans.is_empty() {
            break;
        }
    }
    spans.sort_unstable();
    let at = |share: f64| spans[((spans.len() as f64 * share).ceil() as usize).clamp(1, spans.len()) - 1];
    Ok(Timing { p50: at(0.5), p99: at(0.99) })
}

/// The first whose p99 fits the budget; if none does, the fastest.
pub fn fit(timings: &[Timing], budget: Nanos) -> usize {
    let fastest = (0..timings.len()).min_by_key(|i| timings[*i].p99).unwrap_or(0);
    timings.iter().position(|timing| timing.p99 <= budget).unwrap_or(fastest)
}

impl Ladder {
    /// Starts on the first rung; `medians` are nanoseconds, `budget` what one prediction may take.
    pub fn new(medians: Vec<Nanos>, budget: Nanos) -> Self {
        Self {
            medians,
            at: 0,
            budget,
            spans: [0; WINDOW],
            noted: 0,
            calm: 0,
            patience: PATIENCE,
            climbed: false,
        }
    }

    /// The rung to run.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Notes how long a prediction took, and steps.
    pub fn note(&mut self, span: Nanos) -> Option<Step> {
        self.spans.rotate_left(1);
        self.spans[WINDOW - 1] = span;
        self.noted += 1;
        let down = if span > self.budget {
            Some(Step::Missed)
        } else if self.noted as usize >= WINDOW && self.trend() > self.budget as f64 {
            Some(Step::Slowing)
        } else {
            None
        };
        if let Some(step) = down {
            if self.at + 1 == self.medians.len() {
                return None;
            }
            if self.climbed {
                self.patience = (2 * self.patience).min(LONGEST_PATIENCE);
            }
            self.step_to(self.at + 1, false);
            return Some(step);
        }
        let above = self.at.checked_sub(1).map(|above| self.medians[above] as f64)?;
        let ratio = above / self.medians[self.at].max(1) as f64;
        let room = span as f64 * ratio <= ROOM * self.budget as f64;
        self.calm = if room { self.calm + 1 } else { 0 };
        if self.calm < self.patience {
            return None;
        }
        self.step_to(self.at - 1, true);
        Some(Step::Up)
    }

    fn step_to(&mut self, rung: usize, climbed: bool) {
        (self.at, self.climbed) = (rung, climbed);
        (self.noted, self.calm) = (0, 0);
    }

    /// Where the line through the window's spans leads within another window.
    fn trend(&self) -> f64 {
        let n = WINDOW as f64;
        let middle = (n - 1.0) / 2.0;
        let mean = self.spans.iter().sum::<Nanos>() as f64 / n;
        let (mut over, mut under) = (0.0, 0.0);
        for (i, span) in self.spans.iter().enumerate() {
            let x = i as f64 - middle;
            over += x * (*span as f64 - mean);
            under += x * x;
        }
        // A line through noise alone leads nowhere near: only what grew by a fifth over the window counts.
        let growth = over / under * n;
        if growth < mean / 5.0 { mean } else { mean + 1.5 * growth }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Nanos = 100;

    fn ladder() -> Ladder {
        Ladder::new(vec![50, 20, 10], BUDGET)
    }

    fn noted(ladder: &mut Ladder, spans: impl IntoIterator<Item = Nanos>) -> Vec<(usize, Step)> {
        spans.into_iter().enumerate().filter_map(|(i, span)| Some((i, ladder.note(span)?))).collect()
    }

    #[test]
    fn the_best_that_fits_is_chosen_else_the_fastest() {
        let timing = |p99| Timing { p50: 1, p99 };
        assert_eq!(fit(&[timing(120), timing(90), timing(10)], BUDGET), 1);
        assert_eq!(fit(&[timing(130), timing(110), timing(120)], BUDGET), 1);
    }

    #[test]
    fn a_missed_deadline_steps_down_at_once_and_calm_steps_up_again() {
        let mut ladder = ladder();
        assert_eq!(noted(&mut ladder, [50, 101]), [(1, Step::Missed)]);
        // 20 here is 50 above: under 70.
        assert_eq!(noted(&mut ladder, [20; 100]), [(99, Step::Up)]);
        assert_eq!(noted(&mut ladder, [101]), [(0, Step::Missed)]);
        assert_eq!(noted(&mut ladder, [20; 200]), [(199, Step::Up)], "patience has doubled");
        assert_eq!(noted(&mut ladder, [50; 1000]), [], "there is nothing above");
        let mut busy = self::ladder();
        assert_eq!(noted(&mut busy, [101]), [(0, Step::Missed)]);
        assert_eq!(noted(&mut busy, [29; 1000]), [], "29 here is 72 above: no room");
        assert_eq!(noted(&mut ladder, [101; 3]), [(0, Step::Missed), (1, Step::Missed)], "nothing below");
        assert_eq!(noted(&mut ladder, [20; 99]), []);
        assert_eq!(ladder.at(), 2);
    }

    #[test]
    fn growing_spans_step_down_before_the_deadline_is_missed() {
        let mut ladder = ladder();
        let steps = noted(&mut ladder, (0..200).map(|i| 40 + i / 2).take_while(|span| *span <= BUDGET));
        assert!(matches!(steps[..], [(_, Step::Slowing), ..]), "{steps:?}");
        assert!(40 + steps[0].0 / 2 < 90, "late: {steps:?}");
        // Noise around a level is no trend.
        let mut ladder = self::ladder();
        let noise = (0..5000_i64).map(|i| 45 + (i * 7919) % 31 - 15);
        assert_eq!(noted(&mut ladder, noise), []);
    }

    #[test]
    fn the_same_spans_give_the_same_steps() {
        let spans = || (0..3000_i64).map(|i| 20 + (i * i * 31) % 97);
        assert_eq!(noted(&mut ladder(), spans()), noted(&mut ladder(), spans()));
    }
}
