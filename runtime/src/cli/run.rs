//! `refrain run`: the daemon.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sd_notify::NotifyState;

use super::rungs;
use super::selection::{EngineArgs, GpuArgs, load};
use super::statistics::timing;
use super::{Outcome, say};
use crate::clock::{self, Duration};
use crate::config::RobotConfig;
use crate::control::Mode;
use crate::daemon::Daemon;
use crate::ladder::Rungs;
use crate::metrics::Server;
use crate::record::{Limits, Log, Place, RecordError};
use crate::replay;
use crate::threads;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The robot's configuration; `examples/pusht/robot.toml` is a commented one.
    robot: PathBuf,
    /// Threads of the CPU engine; otherwise one per processor, at most four.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    #[command(flatten)]
    gpu: GpuArgs,
}

/// How often mode and end are looked at.
const POLL: Duration = Duration::from_millis(100);

impl Args {
    pub(super) fn run(self) -> Outcome {
        let config = RobotConfig::load(&self.robot)?;
        let folder = &config.policy.path;
        let package = load(folder)?;
        rungs::check_pin(&config.policy)?;
        let robot = config.resolve(&package.config)?;
        let engine = EngineArgs { engine: config.policy.engine, threads: self.threads, gpu: self.gpu };
        let plans = rungs::prepare(&config.policy, &package, &engine, &robot)?;
        let engine_name = plans.rungs[0].policy.engine_name();
        let (sampler, schedule) =
            (plans.rungs[0].policy.config().sampler.label(), plans.rungs[0].name.clone());
        let schedules: Vec<String> = plans.rungs.iter().map(|rung| rung.name.clone()).collect();
        let log = recording(&config, &plans)?;
        let server = config.metrics.as_ref().map(|metrics| Server::start(metrics.listen)).transpose()?;
        let end = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&end);
        ctrlc::set_handler(move || asked.store(true, Ordering::Relaxed))?;
        let daemon = Daemon::recorded(&robot, plans, log)?;
        say!(
            "{}: {} with {sampler}, schedule {schedule}, on {engine_name}; stop it with Ctrl-C",
            robot.name,
            package.config.name,
        );
        // Outside systemd, nobody is told.
        let tell = |state| drop(sd_notify::notify(&[state]));
        tell(NotifyState::Ready);
        let (mut mode, mut ticks) = (Mode::Warmup, 0);
        while !end.load(Ordering::Relaxed) {
            let now = daemon.signals().mode();
            if now != mode {
                say!("{mode:?} -> {now:?}");
                mode = now;
            }
            // The watchdog watches the control loop, not this one.
            let now = daemon.ticks();
            if now != ticks {
                tell(NotifyState::Watchdog);
                ticks = now;
            }
            if let Some(server) = &server {
                server.set(daemon.metrics(&schedules));
            }
            threads::park(POLL);
        }
        tell(NotifyState::Stopping);
        say!("stopping: braking, then holding");
        timing(&daemon.shutdown()?, true);
        Ok(())
    }
}

/// The recording that the configuration asks for.
fn recording(config: &RobotConfig, plans: &Rungs) -> Result<Option<Log>, RecordError> {
    let Some(record) = &config.record else { return Ok(None) };
    let limits = Limits { file: record.file_mb * 1_000_000, files: record.files };
    let place = Place::Folder(record.folder.clone(), config.name.replace('/', "-"), limits);
    Log::begin(place, replay::metadata(config, 0, plans), clock::read()).map(Some)
}
