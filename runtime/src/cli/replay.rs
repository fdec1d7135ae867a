//! `refrain replay`: a recorded run, computed again and compared byte by byte.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use refrain_policies::package::Package;

use super::rungs::Plans;
use super::selection::{EngineArgs, SamplerArgs, load};
use super::{Outcome, say};
use crate::clock::Reading;
use crate::config::RobotConfig;
use crate::engine::cpu::CpuWeights;
use crate::join::Join;
use crate::ladder::{Rung, Rungs, Timing};
use crate::record::{self, Log, Place};
use crate::replay;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Recordings of one run, the first one first.
    #[arg(required = true)]
    log: Vec<PathBuf>,
    /// The policy package; otherwise the one that the robot's configuration names or, failing that, the one inside this
    /// program.
    #[arg(long)]
    policy: Option<PathBuf>,
    /// Write what comes out as a recording.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Why there is nothing to compute again.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error("the recording does not say its {0}; it is of another version")]
    Metadata(&'static str),
    #[error("{differences} messages of {all} came out different; the first:\n  {told}")]
    Different { differences: u64, all: usize, told: String },
    #[error(
        "{0} ticks could not be computed again: the recording begins in the middle or has gaps; give all files of the run"
    )]
    Missing(u64),
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let mut messages = Vec::new();
        let mut told: Option<BTreeMap<String, String>> = None;
        for path in &self.log {
            let (metadata, read) = record::read(path)?;
            told.get_or_insert(metadata);
            messages.extend(read);
        }
        let told = told.unwrap_or_default();
        let say_of = |key: &'static str| told.get(key).ok_or(ReplayError::Metadata(key));
        let config = RobotConfig::parse(say_of(replay::ROBOT)?)?;
        let folder = self.policy.clone().or_else(|| Some(config.policy.path.clone()).filter(|p| p.is_dir()));
        let package = self.package(folder.as_ref())?;
        let mut robot = config.resolve(&package.config)?;
        robot.episode = say_of(replay::EPISODE)?.parse()?;
        let weights = CpuWeights::new(Arc::clone(&package));
        let plans = Plans {
            folder: folder.as_deref(),
            package: &package,
            weights: &weights,
            joining: robot.join == Join::Inpaint,
        };
        let sampler = SamplerArgs::parse_label(say_of(replay::SAMPLER)?).unwrap_or_default();
        let mut rungs = Vec::new();
        for (name, p50) in say_of(replay::SCHEDULES)?.split(',').zip(say_of(replay::MEDIANS)?.split(',')) {
            let policy = plans.policy(name, sampler, &self.engine)?;
            let timing = Timing { p50: p50.parse()?, p99: 0 };
            rungs.push(Rung { name: name.to_owned(), policy, timing });
        }
        let engine = rungs.first().map(|rung| rung.policy.engine_name()).unwrap_or_default();
        let offset = told.get(record::OFFSET).and_then(|text| text.parse().ok()).unwrap_or(0);
        let now = Reading { wall: crate::clock::Wall::from_nanos(offset), ..Reading::simulated(0) };
        let log = self.output.map(|path| Log::begin(Place::File(path), told.clone(), now)).transpose()?;
        let all = messages.len();
        let out = replay::run(&robot, Rungs { rungs }, &messages, log)?;
        say!(
            "{} predictions and {} ticks computed again on {engine}; recorded on {}",
            out.inferences,
            out.ticks,
            say_of(replay::ENGINE)?
        );
        if out.differences > 0 {
            say!("largest difference of an action: {:e}", out.largest);
            let told = out.told.join("\n  ");
            return Err(ReplayError::Different { differences: out.differences, all, told }.into());
        }
        if out.missing > 0 {
            return Err(ReplayError::Missing(out.missing).into());
        }
        say!("the same, byte for byte");
        Ok(())
    }

    fn package(&self, folder: Option<&PathBuf>) -> Result<Arc<Package>, Box<dyn std::error::Error>> {
        match folder {
            Some(folder) => load(folder),
            #[cfg(feature = "pusht")]
            None => Ok(Arc::new(crate::builtin::package()?)),
            #[cfg(not(feature = "pusht"))]
            None => Err("the recording's policy is not where it was; give --policy".into()),
        }
    }
}
