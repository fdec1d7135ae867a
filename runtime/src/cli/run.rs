//! `refrain run`: the daemon.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::rungs;
use super::selection::{EngineArgs, GpuArgs, load};
use super::statistics::timing;
use super::{Outcome, say};
use crate::clock::Duration;
use crate::config::RobotConfig;
use crate::control::Mode;
use crate::daemon::Daemon;
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
        let end = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&end);
        ctrlc::set_handler(move || asked.store(true, Ordering::Relaxed))?;
        let daemon = Daemon::start(&robot, plans)?;
        say!(
            "{}: {} with {sampler}, schedule {schedule}, on {engine_name}; stop it with Ctrl-C",
            robot.name,
            package.config.name,
        );
        let mut mode = Mode::Warmup;
        while !end.load(Ordering::Relaxed) {
            let now = daemon.signals().mode();
            if now != mode {
                say!("{mode:?} -> {now:?}");
                mode = now;
            }
            threads::park(POLL);
        }
        say!("stopping: braking, then holding");
        timing(&daemon.shutdown()?, true);
        Ok(())
    }
}
