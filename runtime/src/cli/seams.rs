//! `refrain bench seams`: how chunks join, per mode and added inference delay.

use std::path::PathBuf;
use std::sync::Arc;

use super::progress::Progress;
use super::selection::{EngineArgs, FULL, SamplerArgs, Selected, load};
use super::{Outcome, say};
use crate::chunk::Interpolation;
use crate::clock::MILLISECOND;
use crate::config::RobotConfig;
use crate::demo;
use crate::join::Join;
use crate::seams::{self, Motion};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Policy package for Push-T.
    policy: PathBuf,
    #[command(flatten)]
    sampler: SamplerArgs,
    /// Cache schedule of the policy, or `full`; otherwise the package's default.
    #[arg(long, value_name = "NAME")]
    schedule: Option<String>,
    #[command(flatten)]
    engine: EngineArgs,
    /// Episodes per row.
    #[arg(long, value_name = "N", default_value_t = 20)]
    episodes: u64,
    /// Added inference delays, milliseconds.
    #[arg(long, value_name = "MS", value_delimiter = ',', default_values_t = [0, 50, 100, 200])]
    delays: Vec<i64>,
    /// Actions from one chunk's observation to the next one's.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [8])]
    replan: Vec<usize>,
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let package = load(&self.policy)?;
        let schedule = self
            .schedule
            .clone()
            .or_else(|| self.sampler.default_schedule(&package))
            .unwrap_or_else(|| FULL.into());
        let mut selected = Selected::new(&self.policy, Arc::clone(&package), self.sampler, &schedule)?;
        say!(
            "{}, {}, schedule {}; {} episodes a row; linear interpolation; jumps in px per tick, jerks in 1e6 px/s^3",
            selected.config.name,
            selected.config.sampler.label(),
            selected.name,
            self.episodes
        );
        say!(
            "{:<10} {:>6} {:>6} {:>7} {:>10} {:>9} {:>10} {:>9} {:>10} {:>9} {:>6}",
            "join",
            "replan",
            "delay",
            "score",
            "seam jump",
            "largest",
            "seam jerk",
            "largest",
            "rest jump",
            "largest",
            "held"
        );
        let progress = Progress::new();
        for replan in &self.replan {
            for delay in &self.delays {
                for join in [Join::Switch, Join::Ensemble { decay: 0.01 }, Join::Inpaint] {
                    selected.joining = join == Join::Inpaint;
                    let (mut seams, mut rest) = (Motion::default(), Motion::default());
                    let (mut scores, mut held) = (Vec::new(), 0);
                    for episode in 0..self.episodes {
                        progress.show(format_args!("{join:?}, {delay} ms, episode {episode}"));
                        let mut config = RobotConfig::parse(demo::ROBOT)?;
                        config.control.interpolation = Interpolation::Linear;
                        config.chunk.replan_after = Some(*replan);
                        config.chunk.join = join;
                        let mut robot = config.resolve(&selected.config)?;
                        robot.episode = episode;
                        let ride = seams::ride(&robot, selected.policy(&self.engine)?, delay * MILLISECOND)?;
                        seams.extend(ride.seams);
                        rest.extend(ride.rest);
                        scores.push(ride.score);
                        held += ride.held;
                    }
                    let name = match join {
                        Join::Switch => "switch",
                        Join::Ensemble { .. } => "ensemble",
                        Join::Inpaint => "inpaint",
                    };
                    say!(
                        "{name:<10} {replan:>6} {delay:>6} {:>7.3} {:>10.2} {:>9.1} {:>10.2} {:>9.1} {:>10.2} {:>9.1} {held:>6}",
                        mean(&scores),
                        mean(&seams.jumps),
                        largest(&seams.jumps),
                        mean(&seams.jerks) / 1e6,
                        largest(&seams.jerks) / 1e6,
                        mean(&rest.jumps),
                        largest(&rest.jumps),
                    );
                }
            }
        }
        Ok(())
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}
