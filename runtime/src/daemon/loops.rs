//! The bodies of the daemon's threads that may wait.

use std::sync::{Mutex, PoisonError};

use crate::bus::health::Health;
use crate::bus::robot::{Outlet, Signals};
use crate::chunk::Chunk;
use crate::clock::{self, Duration, Nanos, Time};
use crate::control::{Command, Mode};
use crate::events::Drain;
use crate::ladder::Step;
use crate::mailbox::{Receiver, Sender};
use crate::observation::{Counts, Window};
use crate::planner::{PlanError, Planner};
use crate::record::{self, Basin, Inference, Log, Message, Plan, Tap};
use crate::report::{ControlTally, Tally};
use crate::threads;

/// How long a thread sleeps at most before it looks whether it is to end.
const IDLE: Duration = Duration::from_millis(50);
/// Predictions by whose longest the next one is expected to be done.
const RECENT: usize = 8;
/// How often tick events are drained.
const DRAIN: Duration = Duration::from_millis(20);

/// The inference thread: predicts from the newest window when it is due.
pub(super) fn infer(
    mut planner: Planner,
    mut windows: Receiver<Window>,
    mut chunks: Sender<Chunk>,
    mut chunks_to_publish: Sender<Chunk>,
    signals: &Signals,
    tally: &Mutex<Tally>,
    tap: &Tap,
) {
    let mut chunk = planner.blank();
    let mut spans: [Nanos; RECENT] = [0; RECENT];
    while !signals.has_ended() {
        let Some(window) = windows.take() else {
            threads::park(IDLE);
            continue;
        };
        let mode = signals.mode();
        let urgent = matches!(mode, Mode::Warmup | Mode::Holding);
        if !planner.is_due(window.time, urgent) {
            planner.glance(window);
            continue;
        }
        let start = clock::now();
        // What is executed meanwhile is the old chunk.
        let committed = mode.executes().then_some(start + spans.iter().copied().max().unwrap_or(0));
        let planned = planner.plan(window, committed, &mut chunk);
        let end = clock::now();
        spans.rotate_left(1);
        spans[RECENT - 1] = end - start;
        let from = planner.rung_index();
        if planned.is_ok() {
            chunk.ready = end;
        }
        tap.put(|| {
            let inference =
                Inference { span: end - start, ..Inference::from_window(window, committed, from) }
                    .with_condition(planner.condition());
            Message::Inference(if planned.is_ok() { inference.with_chunk(&chunk) } else { inference })
        });
        let step = planner.note(end - start);
        if let Some(step) = step {
            tap.put(|| Message::Plan(plan(&planner, end, from, step)));
            let (was, name) = (from, &planner.rung().name);
            tracing::warn!(?step, from = was, to = planner.rung_index(), name, "plan");
        }
        if planned.is_ok() {
            chunks_to_publish.send(|slot| slot.copy_from(&chunk));
            chunks.send(|slot| slot.copy_from(&chunk));
        }
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.inference.record(end - start);
        tally.chunk_age.record(end - window.time);
        tally.engines_lost = planner.engines_lost();
        tally.inference_outside = planner.outside();
        tally.rung = planner.rung_index();
        match step {
            Some(Step::Up) => tally.steps_up += 1,
            Some(Step::Missed | Step::Slowing) => tally.steps_down += 1,
            None => {}
        }
        match planned {
            Ok(()) => {}
            Err(error @ PlanError::NonFinite) => {
                tally.inference_non_finite += 1;
                tracing::warn!("{error}");
            }
            Err(error) => {
                tally.inference_failed += 1;
                tracing::error!(%error, "no chunk");
            }
        }
    }
}

/// The publishing thread: sends the newest command, and trajectories of the newest chunk.
pub(super) fn publish(
    mut outlet: Outlet,
    mut commands: Receiver<Command>,
    mut chunks: Receiver<Chunk>,
    signals: &Signals,
    tally: &Mutex<Tally>,
) {
    loop {
        // Looked at first, so that what was written before the end is still sent.
        let ended = signals.has_ended();
        chunks.take();
        match commands.take() {
            Some(command) => outlet.send(command, chunks.latest(), clock::read()),
            None if ended => break,
            None => threads::park(IDLE),
        }
    }
    tally.lock().unwrap_or_else(PoisonError::into_inner).commands = outlet.counts();
}

/// A step of the ladder, for the recording.
fn plan(planner: &Planner, now: Time, from: usize, step: Step) -> Plan {
    Plan {
        time: now.nanos(),
        from: from as u32,
        to: planner.rung_index() as u32,
        schedule: planner.rung().name.clone(),
        why: format!("{step:?}"),
    }
}

/// The draining thread: takes what the others tell, to the control thread's last word, and records it.
pub(super) fn drain(
    mut events: Drain,
    mut tallies: Receiver<ControlTally>,
    tally: &Mutex<Tally>,
    basin: &Basin,
    mut log: Option<Log>,
) {
    let mut ticks = Vec::new();
    loop {
        let ended = events.is_over();
        {
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            while let Some(tick) = events.take() {
                tally.ticks.add(&tick);
                ticks.push(tick);
            }
            if let Some(told) = tallies.take() {
                tally.control = *told;
            }
            tally.recorded = log.as_ref().map_or((0, 0), Log::counts);
        }
        // What ticks saw was handed in before they saw it.
        while let Some(message) = basin.take() {
            log.iter_mut().for_each(|log| log.write(&message));
        }
        for tick in ticks.drain(..) {
            log.iter_mut().for_each(|log| log.write(&Message::Tick(record::Tick::of(&tick))));
        }
        if ended {
            break;
        }
        threads::park(DRAIN);
    }
}

/// The health thread: tells mode and health until the end, and the last mode then.
pub(super) fn health(
    mut health: Health,
    observations: impl Fn() -> Counts,
    signals: &Signals,
    tally: &Mutex<Tally>,
) {
    loop {
        let ended = signals.has_ended();
        health.tell(clock::read(), signals.mode(), || {
            tally.lock().unwrap_or_else(PoisonError::into_inner).report(observations())
        });
        if ended {
            break;
        }
        threads::park(IDLE);
    }
}
