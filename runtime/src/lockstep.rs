//! The daemon in simulated time: for simulations that run faster than real time and must come out the same every time.
//!
//! Time is what the observations say. For each observation the policy predicts if it is due, while simulated time stands
//! still; then the control loop runs all ticks of that policy period, and the command that stands half way through
//! it is published. It is the same planner, control loop, gate and messages as in the daemon; only the threads are not there.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::bus::Bus;
use crate::bus::robot::{Inlet, Outlet, Signals};
use crate::clock::{self, Duration, Reading, Wall};
use crate::config::Robot;
use crate::control::{Control, Inputs, Observed};
use crate::daemon::DaemonError;
use crate::events::{self, Seen};
use crate::ladder::Rungs;
use crate::observation::Window;
use crate::planner::{PlanError, Planner};
use crate::record::{self, Inference, Log, Message, Observation};
use crate::report::{ControlTally, Report, Tally};

/// How often it looks whether it is to end.
const POLL: Duration = Duration::from_millis(20);
/// Observations that may wait; the simulation sends one at a time.
const WAITING: usize = 4;

/// Runs until `signals` end it. What is recorded holds simulated time alone, so that the same run gives the same file.
pub fn run(
    robot: &Robot,
    policy: impl Into<Rungs>,
    signals: &Arc<Signals>,
    mut log: Option<Log>,
) -> Result<Report, DaemonError> {
    let bus = Bus::open(&robot.bus)?;
    let mut planner = Planner::new(policy, robot)?;
    let mut control = Control::new(robot.control.clone());
    let mut chunk = planner.blank();
    let mut outlet = Outlet::open(&bus, robot, signals, |_| {})?;
    let mut tally = Tally::default();
    let ticks = (robot.action_period / robot.control.period).max(1);

    let (arrived, arrivals) = sync_channel::<(Window, Observed)>(WAITING);
    let blank = Mutex::new(Window::none(&robot.intake));
    let inlet = Inlet::open(&bus, robot, signals, simulated, move |intake| {
        let mut window = blank.lock().unwrap_or_else(PoisonError::into_inner);
        intake.window(&mut window);
        // A full channel means that the simulation does not wait for answers; what it sends then is not looked at.
        let _ = arrived.try_send((window.clone(), intake.observed()));
    })?;

    while !signals.has_ended() {
        let (window, observed) = match arrivals.recv_timeout(POLL) {
            Ok(arrival) => arrival,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let mut record = |message: &dyn Fn() -> Message| {
            log.iter_mut().for_each(|log| log.write(&message()));
        };
        record(&|| Message::Observation(Observation::of(&observed, robot.joints.len())));
        let urgent = !control.mode().executes();
        if planner.is_due(window.time, urgent) {
            let start = clock::now();
            let committed = (!urgent).then_some(window.time);
            let planned = planner.plan(&window, committed, &mut chunk);
            if planned.is_ok() {
                chunk.ready = window.time;
            }
            record(&|| {
                let inference = Inference::from_window(&window, committed, planner.rung_index())
                    .with_condition(planner.condition());
                Message::Inference(if planned.is_ok() { inference.with_chunk(&chunk) } else { inference })
            });
            match planned {
                Ok(()) => {}
                Err(PlanError::NonFinite) => tally.inference_non_finite += 1,
                Err(error) => {
                    tally.inference_failed += 1;
                    tracing::error!(%error, "no chunk");
                }
            }
            tally.inference.record(clock::now() - start);
            tally.chunk_age.record(0);
        }
        for tick in 0..ticks {
            let now = window.time + tick * robot.control.period;
            let start = clock::now();
            let (stops, resets, operator) = (signals.stops(), signals.resets(), signals.operator());
            // The simulation waits for every command.
            let controller = true;
            let (chunk, observed) = (&chunk, &observed);
            let command = control.step(now, &Inputs { chunk, observed, stops, resets, operator, controller });
            tally.ticks.work.record(clock::now() - start);
            record(&|| {
                let (chunk, observation) = (chunk.sequence, observed.sequence);
                let seen = Seen { chunk, observation, stops, resets, operator, controller };
                let tick = events::Tick { due: now, wake_error: 0, work: 0, missed: 0, seen, command };
                Message::Tick(record::Tick::of(&tick))
            });
            tally.ticks.mode = command.mode;
            signals.set_mode(command.mode);
            if tick == ticks / 2 {
                outlet.send(&command, chunk, Reading::simulated(now.nanos()));
            }
        }
    }
    tally.commands = outlet.counts();
    tally.control =
        ControlTally { counts: *control.counts(), gate: *control.gate_counts(), ..ControlTally::default() };
    let report = tally.report(inlet.counts());
    drop(inlet);
    bus.close()?;
    Ok(report)
}

/// It is always the moment at which the observation was made.
fn simulated(stamp: Option<Wall>) -> Reading {
    Reading::simulated(stamp.map_or(0, Wall::nanos))
}
