//! The daemon: a policy runs a robot.
//!
//! ```text
//! zenoh threads --window--> inference --chunk--> control (real time) --command--> publish --> zenoh
//!       \------observed----------------------->/      \------tick events--------> drain
//! ```
//!
//! Every arrow between our threads is a single-slot mailbox, except the tick events' ring. The control thread touches
//! neither the engine, zenoh, a file, a lock, the allocator nor the logger; it wakes the publishing thread with one
//! futex call. Leaving brakes the robot and sends the hold before the threads end.

pub mod control_loop;
mod loops;

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::bus::health::Health;
use crate::bus::robot::{Inlet, Outlet, Signals};
use crate::bus::{Bus, BusError};
use crate::clock::{self, Duration, Nanos};
use crate::config::{ConfigError, Robot};
use crate::control::{Command, Control, Mode, Observed};
use crate::engine::EngineError;
use crate::events;
use crate::ladder::Rungs;
use crate::mailbox::mailbox;
use crate::metrics;
use crate::observation::Window;
use crate::planner::Planner;
use crate::record::{self, Log, Message, Observation};
use crate::report::{ControlTally, Report, Tally};
use crate::threads::{self, Waker};

use self::control_loop::ControlLoop;

/// How often leaving looks whether the robot is at rest.
const POLL: Duration = Duration::from_millis(5);
/// How long leaving waits for the robot to come to rest, nanoseconds.
const BRAKING: Nanos = 5 * clock::SECOND;

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The bus failed.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The engine cannot do what the configuration asks for.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
    /// A thread panicked.
    #[error("the {0} thread panicked; this is a bug")]
    Panicked(&'static str),
}

/// A running daemon.
pub struct Daemon {
    bus: Bus,
    inlet: Inlet,
    signals: Arc<Signals>,
    tally: Arc<Mutex<Tally>>,
    control: JoinHandle<()>,
    inference: JoinHandle<()>,
    publish: JoinHandle<()>,
    drain: JoinHandle<()>,
    health: JoinHandle<()>,
    _awake: Option<File>,
    /// Dropped last, or when starting fails half way.
    _leash: Leash,
}

/// Ends the threads when it is dropped.
struct Leash(Arc<Signals>);

impl Drop for Leash {
    fn drop(&mut self) {
        self.0.stop();
        self.0.end();
    }
}

impl Daemon {
    /// Opens the bus and starts the threads. The robot stays untouched until the first chunk.
    pub fn start(robot: &Robot, plans: impl Into<Rungs>) -> Result<Self, DaemonError> {
        Self::recorded(robot, plans, None)
    }

    /// The same with a recording.
    pub fn recorded(robot: &Robot, plans: impl Into<Rungs>, log: Option<Log>) -> Result<Self, DaemonError> {
        let bus = Bus::open(&robot.bus)?;
        let signals = Arc::new(Signals::default());
        let leash = Leash(Arc::clone(&signals));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let planner = Planner::new(plans, robot)?;

        let (mut windows, windows_in) = mailbox(&Window::none(&robot.intake));
        let (mut observed, observed_in) = mailbox(&Observed::NONE);
        let (chunks, chunks_in) = mailbox(&planner.blank());
        let (chunks_to_publish, chunks_to_publish_in) = mailbox(&planner.blank());
        let (commands, commands_in) = mailbox(&Command::NONE);
        let (tallies, tallies_in) = mailbox(&ControlTally::default());
        let (recorder, events) = events::ring();
        let (tap, basin) = record::tap(log.is_some());

        let outlet = {
            let (tally, tap) = (Arc::clone(&tally), tap.clone());
            Outlet::open(&bus, robot, &signals, move |pair| {
                let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                match pair {
                    Some(pair) => {
                        tally.shadow.add(&pair.ours, &pair.theirs);
                        tap.put(|| Message::Shadow(pair));
                    }
                    None => tally.shadow.alone += 1,
                }
            })?
        };
        let publish = {
            let (signals, tally) = (Arc::clone(&signals), Arc::clone(&tally));
            threads::spawn("publish", move || {
                loops::publish(outlet, commands_in, chunks_to_publish_in, &signals, &tally)
            })?
        };
        let inference = {
            let (signals, tally, tap) = (Arc::clone(&signals), Arc::clone(&tally), tap.clone());
            threads::spawn("inference", move || {
                loops::infer(planner, windows_in, chunks, chunks_to_publish, &signals, &tally, &tap)
            })?
        };
        let drain = {
            let tally = Arc::clone(&tally);
            threads::spawn("drain", move || loops::drain(events, tallies_in, &tally, &basin, log))?
        };
        let wake_inference = Waker::of(&inference);
        let joints = robot.joints.len();
        let inlet = Inlet::open(
            &bus,
            robot,
            &signals,
            |_| clock::read(),
            move |intake| {
                let seen = intake.observed();
                tap.put(|| Message::Observation(Observation::of(&seen, joints)));
                observed.send(|slot| *slot = seen);
                windows.send(|slot| intake.window(slot));
                wake_inference.wake();
            },
        )?;
        let health = {
            let (signals, tally) = (Arc::clone(&signals), Arc::clone(&tally));
            let (health, observations) = (Health::open(&bus, robot)?, inlet.counter());
            threads::spawn("health", move || loops::health(health, observations, &signals, &tally))?
        };
        if robot.lock_memory
            && let Err(refusal) = threads::lock_memory()
        {
            tracing::warn!("{refusal}");
        }
        let awake = robot
            .stay_awake
            .then(threads::stay_awake)
            .and_then(|kept| kept.inspect_err(|refusal| tracing::warn!("{refusal}")).ok());
        let control = {
            let loop_ = ControlLoop {
                control: Control::new(robot.control.clone()),
                period: robot.control.period,
                chunks: chunks_in,
                observed: observed_in,
                commands,
                tallies,
                recorder,
                wake_publish: Waker::of(&publish),
                signals: Arc::clone(&signals),
            };
            let scheduling = robot.scheduling;
            threads::spawn("control", move || {
                for refusal in threads::promote(scheduling) {
                    tracing::warn!("{refusal}");
                }
                loop_.run();
            })?
        };
        Ok(Self {
            bus,
            inlet,
            signals,
            tally,
            control,
            inference,
            publish,
            drain,
            health,
            _awake: awake,
            _leash: leash,
        })
    }

    /// Stops, resets and the mode.
    pub fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// What it did so far.
    pub fn report(&self) -> Report {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).report(self.inlet.counts())
    }

    /// Ticks so far.
    pub fn ticks(&self) -> u64 {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).ticks.wake.summary().count
    }

    /// The same as Prometheus text; `schedules` are those of the ladder.
    pub fn metrics(&self, schedules: &[String]) -> String {
        let observations = self.inlet.counts();
        metrics::text(&self.tally.lock().unwrap_or_else(PoisonError::into_inner), &observations, schedules)
    }

    /// Brakes, sends the hold, ends the threads and closes the bus.
    pub fn shutdown(self) -> Result<Report, DaemonError> {
        self.signals.stop();
        let deadline = clock::now() + BRAKING;
        while self.signals.mode() != Mode::Stopped && clock::now() < deadline {
            threads::park(POLL);
        }
        self.signals.end();
        for thread in [&self.inference, &self.publish] {
            Waker::of(thread).wake();
        }
        self.control.join().map_err(|_| DaemonError::Panicked("control"))?;
        self.inference.join().map_err(|_| DaemonError::Panicked("inference"))?;
        self.publish.join().map_err(|_| DaemonError::Panicked("publish"))?;
        self.drain.join().map_err(|_| DaemonError::Panicked("drain"))?;
        self.health.join().map_err(|_| DaemonError::Panicked("health"))?;
        let report = self.tally.lock().unwrap_or_else(PoisonError::into_inner).report(self.inlet.counts());
        drop(self.inlet);
        self.bus.close()?;
        Ok(report)
    }
}
