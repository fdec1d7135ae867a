//! The demo: Push-T over the bus.
//!
//! Simulation and policy are two zenoh sessions on a free loopback port. The simulation publishes observations and obeys
//! commands as a robot would: it checks order, numbers and validity, and holds when no valid command is there. The plane
//! moves in steps of a tenth of a second, so one command stands for a whole step: the one in force half way through it.
//! At `speed` 1 the daemon runs in real time with all its threads; faster, time is simulated ([`crate::lockstep`]), and
//! the same seed gives the same episode.

mod simulator;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use refrain_policies::config::PolicyConfig;
use refrain_pusht::MAX_STEPS;

use crate::bus::robot::Signals;
use crate::bus::{self, BusError, BusSection};
use crate::clock::{self, Reading};
use crate::config::{ConfigError, Robot, RobotConfig};
use crate::control::Mode;
use crate::daemon::{Daemon, DaemonError};
use crate::ladder::Rungs;
use crate::lockstep;
use crate::record::{Log, Place, RecordError};
use crate::replay;
use crate::report::Report;
use crate::scene::{NotPushT, Scene};
use crate::threads;

pub use self::simulator::RobotCounts;
use self::simulator::Simulator;

/// The robot that the demo runs: the example's file, without its endpoint.
pub(crate) const ROBOT: &str = include_str!("../../examples/pusht/robot.toml");
/// The same seen through a camera.
pub(crate) const CAMERA: &str = include_str!("../../examples/pusht/camera.toml");

/// What to show.
#[derive(Clone, Debug, PartialEq)]
pub struct DemoOptions {
    /// Seed of the episode and, with it, of the noise.
    pub seed: u64,
    /// Times real time, at least 1; infinite is as fast as it goes.
    pub speed: f64,
    /// Steps at most.
    pub max_steps: usize,
    /// Where the episode's picture goes.
    pub picture: Option<PathBuf>,
    /// Where the policy's side is recorded.
    pub record: Option<PathBuf>,
}

/// How far the episode is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Steps made.
    pub step: usize,
    /// Share of the goal that is covered.
    pub coverage: f64,
    /// Largest reward so far.
    pub score: f64,
    /// What the control loop is doing.
    pub mode: Mode,
}

/// How it went.
#[derive(Clone, Debug, PartialEq)]
pub struct DemoReport {
    /// Steps made.
    pub steps: usize,
    /// Largest reward, 0 to 1.
    pub score: f64,
    /// Whether the goal was reached.
    pub success: bool,
    /// How long it took, seconds.
    pub elapsed_s: f64,
    /// What the policy's side did.
    pub policy: Report,
    /// What the robot's side did.
    pub robot: RobotCounts,
    /// The picture that was written.
    pub picture: Option<PathBuf>,
}

/// Why there was no demo.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The policy is not one for Push-T.
    #[error(transparent)]
    Policy(#[from] NotPushT),
    /// An image could not be compressed.
    #[error("PNG: {0}")]
    Png(#[from] png::EncodingError),
    /// The speed is no speed.
    #[error("speed: expected 1 (real time) or more, got {0}")]
    Speed(f64),
    /// The robot's configuration does not fit the policy.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The simulation's side of the bus failed.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The policy's side failed.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// It cannot be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Nobody answered.
    #[error("no command came within {seconds} s of an observation")]
    NoCommand {
        /// How long was waited.
        seconds: i64,
    },
    /// No free port, no thread, or no picture.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The operating system's words.
        source: io::Error,
    },
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self { seed: 0, speed: 1.0, max_steps: MAX_STEPS, picture: None, record: None }
    }
}

/// Runs one episode.
pub fn run(
    options: &DemoOptions,
    policy: impl Into<Rungs>,
    mut progress: impl FnMut(&Progress),
) -> Result<DemoReport, DemoError> {
    if options.speed.is_nan() || options.speed < 1.0 {
        return Err(DemoError::Speed(options.speed));
    }
    let endpoint =
        bus::free_endpoint().map_err(|source| DemoError::Io { what: "loopback".into(), source })?;
    let plans: Rungs = policy.into();
    let (config, robot) = robot(plans.rungs[0].policy.config(), &endpoint, options.seed)?;
    let scene = Scene::of(plans.rungs[0].policy.config())?;
    let start = clock::now();
    // The endpoint is another one every time.
    let told = RobotConfig { bus: BusSection::default(), ..config };
    let log = options.record.as_ref().map(|path| {
        let now = if options.speed > 1.0 { Reading::simulated(0) } else { clock::read() };
        Log::begin(Place::File(path.clone()), replay::metadata(&told, robot.episode, &plans), now)
    });
    let log = log.transpose()?;
    let (simulator, report) = if options.speed > 1.0 {
        let signals = Arc::new(Signals::default());
        let told = Arc::clone(&signals);
        let config = robot.clone();
        let side = threads::spawn("policy", move || lockstep::run(&config, plans, &told, log))
            .map_err(|source| DemoError::Io { what: "thread".into(), source })?;
        let ran = Simulator::open(&robot, &endpoint, scene, options).and_then(|mut simulator| {
            simulator.run_simulated(options, &signals, &mut progress)?;
            Ok(simulator)
        });
        signals.end();
        let report = side.join().map_err(|_| DaemonError::Panicked("policy"))?;
        // What went wrong on the policy's side explains why the simulation waited in vain.
        let report = report?;
        (ran?, report)
    } else {
        let daemon = Daemon::recorded(&robot, plans, log)?;
        let ran = Simulator::open(&robot, &endpoint, scene, options).and_then(|mut simulator| {
            simulator.run_real_time(options, daemon.signals(), &mut progress)?;
            Ok(simulator)
        });
        let report = daemon.shutdown()?;
        (ran?, report)
    };
    let elapsed_s = clock::seconds(clock::now() - start);
    let (episode, counts) = simulator.close()?;
    if let Some(path) = &options.picture {
        let caption = format!("{} · seed {} · score {:.3}", robot.name, options.seed, episode.score());
        episode
            .write_svg(path, &caption)
            .map_err(|source| DemoError::Io { what: path.display().to_string(), source })?;
    }
    Ok(DemoReport {
        steps: episode.steps.len(),
        score: episode.score(),
        success: episode.success(),
        elapsed_s,
        policy: report,
        robot: counts,
        picture: options.picture.clone(),
    })
}

/// The example's robot for this policy, listening on `endpoint`.
fn robot(policy: &PolicyConfig, endpoint: &str, seed: u64) -> Result<(RobotConfig, Robot), DemoError> {
    let mut config = RobotConfig::parse(match Scene::of(policy)? {
        Scene::Keypoints => ROBOT,
        Scene::Camera(_) => CAMERA,
    })?;
    config.bus.listen = vec![endpoint.to_owned()];
    let mut robot = config.resolve(policy)?;
    robot.episode = seed;
    Ok((config, robot))
}
