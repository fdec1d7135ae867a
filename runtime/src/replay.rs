//! A recorded run, computed again.
//!
//! Every prediction is made again from the window that it was made from, every tick decided again from what it saw, and
//! both are compared with the recording byte by byte. Spans of time are taken from the recording. On the CPU engine the
//! same package and plan give the same bytes; a GPU's predictions differ in the last bits, and how far is told.
//!
//! Not here: observations before they were put together, images before they were encoded, and how messages travelled.

use std::collections::BTreeMap;

use crate::chunk::Chunk;
use crate::config::{Robot, RobotConfig};
use crate::control::{Control, Inputs, Observed};
use crate::engine::EngineError;
use crate::ladder::Rungs;
use crate::planner::Planner;
use crate::record::{Inference, Log, Message, Tick};

/// Differences that are told one by one.
const TOLD: usize = 10;

/// Keys of a recording's metadata.
pub const ROBOT: &str = "robot_toml";
/// See above.
pub const EPISODE: &str = "episode";
/// Schedules of the ladder, separated by commas.
pub const SCHEDULES: &str = "schedules";
/// The first plan's sampler.
pub const SAMPLER: &str = "sampler";
/// Median spans of the ladder's plans at load, nanoseconds.
pub const MEDIANS: &str = "median_spans_ns";
/// What ran the first plan.
pub const ENGINE: &str = "engine";

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replayed {
    /// Predictions made again.
    pub inferences: u64,
    /// Ticks decided again.
    pub ticks: u64,
    /// Messages that came out different.
    pub differences: u64,
    /// The first of them, in words.
    pub told: Vec<String>,
    /// Largest difference of an action, in its unit.
    pub largest: f64,
    /// Messages whose inputs are missing, so that they could not be computed again.
    pub missing: u64,
}

/// What a recording says about the run.
pub fn metadata(config: &RobotConfig, episode: u64, plans: &Rungs) -> BTreeMap<String, String> {
    let join =
        |each: &dyn Fn(usize) -> String| (0..plans.rungs.len()).map(each).collect::<Vec<_>>().join(",");
    let policy = &plans.rungs[0].policy;
    BTreeMap::from([
        // A configuration that was read can be written.
        (ROBOT.into(), toml::to_string(config).unwrap_or_default()),
        (EPISODE.into(), episode.to_string()),
        (SCHEDULES.into(), join(&|i| plans.rungs[i].name.clone())),
        (SAMPLER.into(), policy.config().sampler.label()),
        (MEDIANS.into(), join(&|i| plans.rungs[i].timing.p50.to_string())),
        (ENGINE.into(), policy.engine_name()),
    ])
}

/// Computes `messages` again, in their order; what comes out also goes to `log`.
pub fn run(
    robot: &Robot,
    plans: impl Into<Rungs>,
    messages: &[Message],
    mut log: Option<Log>,
) -> Result<Replayed, EngineError> {
    let mut planner = Planner::new(plans, robot)?;
    let mut control = Control::new(robot.control.clone());
    let blank = planner.blank();
    let mut chunk = planner.blank();
    let mut chunks: BTreeMap<u64, Chunk> = BTreeMap::from([(0, blank)]);
    let mut observed: BTreeMap<u64, Observed> = BTreeMap::from([(0, Observed::NONE)]);
    let mut out = Replayed::default();
    for message in messages {
        let again = match message {
            Message::Observation(seen) => {
                observed.insert(seen.sequence, seen.observed());
                message.clone()
            }
            Message::Plan(_) | Message::Shadow(_) => message.clone(),
            Message::Inference(inference) => {
                out.inferences += 1;
                chunks.extend(inference.as_chunk().map(|chunk| (chunk.sequence, chunk)));
                Message::Inference(predict(&mut planner, &mut chunk, inference, &mut out))
            }
            Message::Tick(tick) => {
                match (chunks.get(&tick.seen_chunk), observed.get(&tick.seen_observation)) {
                    (Some(chunk), Some(observed)) if tick.sequence == out.ticks + 1 => {
                        out.ticks += 1;
                        let (stops, resets) = (tick.stops, tick.resets);
                        let (operator, controller) = (tick.operator, tick.controller);
                        let now = message.time();
                        let inputs = Inputs { chunk, observed, stops, resets, operator, controller };
                        let command = control.step(now, &inputs);
                        Message::Tick(Tick::again(tick, &command))
                    }
                    _ => {
                        out.missing += 1;
                        message.clone()
                    }
                }
            }
        };
        out.compare(message, &again);
        log.iter_mut().for_each(|log| log.write(&again));
    }
    Ok(out)
}

fn predict(planner: &mut Planner, chunk: &mut Chunk, was: &Inference, out: &mut Replayed) -> Inference {
    let (window, committed) = (was.as_window(), was.as_committed());
    let before =
        Inference { span: was.span, ..Inference::from_window(&window, committed, planner.rung_index()) };
    let planned = planner.plan_again(&window, &was.condition, committed, chunk);
    let before = before.with_condition(planner.condition());
    planner.note(was.span);
    if planned.is_err() {
        return before;
    }
    chunk.ready = crate::clock::Time::from_nanos(was.ready);
    let again = before.with_chunk(chunk);
    for (a, b) in again.actions.iter().zip(&was.actions) {
        out.largest = out.largest.max((a - b).abs());
    }
    again
}

impl Replayed {
    fn compare(&mut self, was: &Message, again: &Message) {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        was.encode(&mut a);
        again.encode(&mut b);
        if a == b {
            return;
        }
        self.differences += 1;
        if self.told.len() < TOLD {
            self.told.push(match (was, again) {
                (Message::Tick(was), Message::Tick(again)) => format!(
                    "tick {}: {} {} {:?}, recorded {} {} {:?}",
                    was.sequence, again.mode, again.outcome, again.values, was.mode, was.outcome, was.values
                ),
                (Message::Inference(was), Message::Inference(again)) => {
                    let apart = was.actions.iter().zip(&again.actions).map(|(a, b)| (a - b).abs());
                    format!("chunk {}: actions differ by {:e} at most", was.chunk, apart.fold(0.0, f64::max))
                }
                _ => "a message differs".into(),
            });
        }
    }
}
