//! `refrain check`: what a robot's configuration means and what in it does not fit.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::selection::load;
use super::{Outcome, say};
use crate::bus::Bus;
use crate::bus::names::Qos;
use crate::check::arrivals::Demand;
use crate::check::heard::Heard;
use crate::check::seen::{Seen, out_of_sync};
use crate::check::urdf::Urdf;
use crate::check::{Finding, explain, findings};
use crate::clock::{self, Duration};
use crate::config::{Robot, RobotConfig};
use refrain_policies::config::PolicyConfig;
use refrain_policies::vision::Vision;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The robot's configuration; `examples/pusht/robot.toml` is a commented one.
    robot: PathBuf,
    /// The robot's URDF: joint names are checked, limits compared, and written where they are missing.
    #[arg(long, value_name = "FILE")]
    urdf: Option<PathBuf>,
    /// Listen to the observations for so long: rate, size, order, units, images. Nothing is sent.
    #[arg(long, value_name = "SECONDS")]
    listen: Option<f64>,
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let config = RobotConfig::load(&self.robot)?;
        let package = load(&config.policy.path)?;
        let policy = package.config.clone();
        let urdf = self.urdf.as_deref().map(Urdf::load).transpose()?;
        let robot = match config.resolve(&policy) {
            Ok(robot) => robot,
            Err(error) => {
                urdf.iter().for_each(|urdf| fill(&config, &policy, urdf));
                return Err(error.into());
            }
        };
        for line in explain(&robot, &policy) {
            say!("{line}");
        }
        let mut found = findings(&config, &robot, &policy, urdf.as_ref());
        found.extend(
            Vision::new(&package).err().map(|error| Finding { wrong: true, text: error.to_string() }),
        );
        if let Some(seconds) = self.listen {
            found.extend(listen(&robot, &policy, Duration::try_from_secs_f64(seconds)?)?);
        }
        for finding in &found {
            say!("{finding}");
        }
        match found.iter().filter(|finding| finding.wrong).count() {
            0 if self.listen.is_some() => say!("all fits"),
            0 => say!("all fits; --listen 5 looks at the topics too"),
            wrong => return Err(format!("{wrong} thing(s) do not fit").into()),
        }
        Ok(())
    }
}

/// Prints the sections of joints that have none.
fn fill(config: &RobotConfig, policy: &PolicyConfig, urdf: &Urdf) {
    let missing =
        policy.action.names.iter().filter(|name| config.action.joints.iter().all(|j| j.name != **name));
    let sections: Vec<String> = missing.filter_map(|name| urdf.section(name, name)).collect();
    if !sections.is_empty() {
        say!("# from the URDF, to be completed:\n{}", sections.join("\n"));
    }
}

fn listen(
    robot: &Robot,
    policy: &PolicyConfig,
    time: Duration,
) -> Result<Vec<Finding>, Box<dyn std::error::Error>> {
    let bus = Bus::open(&robot.bus)?;
    let mut topics = Vec::new();
    for (topic, part) in robot.topics.iter().zip(&robot.intake.parts) {
        let heard = Arc::new(Mutex::new(Heard::new(&topic.reading, part.places.len())));
        let ear = Arc::clone(&heard);
        let qos = if topic.latched { Qos::LATCHED } else { Qos::SENSOR };
        let subscription = bus.subscribe(&topic.topic, topic.reading.interface(), qos, move |message| {
            let attached = message.attachment.map(|attachment| attachment.source);
            held(&ear).take(&message.payload, attached, clock::read());
        })?;
        topics.push((topic, part, heard, subscription));
    }
    let mut cameras = Vec::new();
    let sight = robot.intake.sight.as_ref();
    for (topic, lens) in robot.cameras.iter().zip(sight.iter().flat_map(|sight| &sight.lenses)) {
        let seen = Arc::new(Mutex::new(Seen::new(topic, lens)));
        let eye = Arc::clone(&seen);
        let subscription =
            bus.subscribe(&topic.topic, topic.kind.interface(), Qos::SENSOR, move |message| {
                held(&eye).take(message, clock::read());
            })?;
        cameras.push((topic, lens, seen, subscription));
    }
    clock::sleep_until(clock::now() + time.as_nanos() as i64);
    let until = clock::now();
    let demand = |arrival_is_stamp| Demand {
        rate_hz: policy.rate_hz,
        max_age: robot.control.max_observation_age,
        clock_tolerance: robot.intake.clock_tolerance,
        arrival_is_stamp,
    };
    let mut found = Vec::new();
    let mut others = Vec::new();
    for (topic, part, heard, _) in &topics {
        let heard = held(heard);
        say!("heard {}: {}", topic.topic, heard.summary());
        let demand = demand(part.arrival_is_stamp);
        found.extend(heard.findings(topic, part, &policy.observation, &demand, until));
        others.push((format!("{:?}", topic.topic), heard.arrivals.clone()));
    }
    let mut lead = None;
    for (topic, lens, seen, _) in &cameras {
        let seen = held(seen);
        say!("seen  {}: {}", topic.topic, seen.summary());
        found.extend(seen.findings(&demand(lens.arrival_is_stamp), until));
        let arrivals = (format!("{:?}", lens.name), seen.arrivals.clone());
        match &lead {
            None => lead = Some(arrivals),
            Some(_) => others.push(arrivals),
        }
    }
    if let (Some((name, images)), Some(sight)) = (&lead, sight) {
        let others = others.iter().map(|(other, messages)| (other.as_str(), messages));
        found.extend(others.filter_map(|other| out_of_sync((name, images), other, sight)));
    }
    drop((topics, cameras));
    bus.close()?;
    Ok(found)
}

fn held<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
