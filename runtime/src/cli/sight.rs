//! `refrain bench sight`: from an image published to the first action that it led to, over zenoh, with the daemon between.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use hdrhistogram::Histogram;
use refrain_pusht::{PushT, RATE_HZ};

use super::progress::Progress;
use super::selection::{EngineArgs, SamplerArgs, Selected, load};
use super::stages;
use super::statistics::timing;
use super::{Outcome, say};
use crate::bus::camera::ImagePublisher;
use crate::bus::interface::FLOAT64_MULTI_ARRAY;
use crate::bus::names::Qos;
use crate::bus::{self, Bus, BusSection, Traffic, cdr, image};
use crate::clock::{self, MILLISECOND, Nanos, SECOND, Time, Wall};
use crate::config::RobotConfig;
use crate::config::vision::ImageKind;
use crate::daemon::Daemon;
use crate::demo;
use crate::ladder::Rungs;
use crate::scene::Scene;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Policy package that sees Push-T, such as policies/pusht-image.
    policy: PathBuf,
    /// Cache schedule, or `full`; otherwise the package's default.
    #[arg(long, value_name = "NAME")]
    schedule: Option<String>,
    /// Send PNG instead of pixels.
    #[arg(long)]
    png: bool,
    #[command(flatten)]
    engine: EngineArgs,
    /// Chunks to time.
    #[arg(long, value_name = "N", default_value_t = 30)]
    chunks: usize,
}

/// Chunks before timing starts.
const WARM_UP: usize = 3;
/// Stamps travel to the daemon's clock and back; that much may be lost.
const ROUNDING: Nanos = MILLISECOND;
/// How long it waits for what does not come.
const PATIENCE: Nanos = 30 * SECOND;

/// Images sent and commands received.
#[derive(Default)]
struct Log {
    /// Stamp, and when it was handed to zenoh.
    sent: Vec<(Wall, Time)>,
    /// First command of each observation: the observation's time, and when the command came.
    answered: Vec<(Wall, Time)>,
}

impl Log {
    /// From each image that led to a chunk to the first command of that chunk, in order.
    fn spans(&self) -> Vec<Nanos> {
        let sent = |stamp: Wall| self.sent.iter().find(|(is, _)| (*is - stamp).abs() <= ROUNDING);
        self.answered.iter().filter_map(|(stamp, came)| Some(*came - sent(*stamp)?.1)).collect()
    }
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let package = load(&self.policy)?;
        let schedule = self.schedule.clone().or_else(|| package.config.default_schedule.clone());
        let name = schedule.as_deref().unwrap_or("full");
        let selected = Selected::new(&self.policy, package, SamplerArgs::default(), name)?;
        let scene = Scene::of(&selected.config)?;
        let mut config = RobotConfig::parse(demo::CAMERA)?;
        config.bus.listen = vec![bus::free_endpoint()?];
        if let (Some(vision), true) = (&mut config.vision, self.png) {
            vision.cameras.iter_mut().for_each(|camera| camera.kind = ImageKind::CompressedImage);
        }
        let robot = config.resolve(&selected.config)?;
        let topic = robot.cameras.first().ok_or("the policy has no camera; give it one that sees")?;
        let policy = selected.policy(&self.engine)?;
        let engine_name = policy.engine_name();
        let daemon = Daemon::start(&robot, Rungs::one(policy, &selected.name))?;

        let section = BusSection { connect: robot.bus.listen.clone(), ..BusSection::default() };
        let client = Bus::open(&section)?;
        let log = Arc::new(Mutex::new(Log::default()));
        let told = Arc::clone(&log);
        let commands = robot.command_topic.as_deref().unwrap_or_default();
        let subscription = client.subscribe(commands, &FLOAT64_MULTI_ARRAY, Qos::NEWEST, move |message| {
            let came = clock::now();
            let Some(validity) = message.attachment.and_then(|attachment| attachment.validity) else {
                return;
            };
            let mut log = told.lock().unwrap_or_else(PoisonError::into_inner);
            let stamp = validity.observation;
            if log.answered.last().is_none_or(|(last, _)| stamp - *last > ROUNDING) {
                log.answered.push((stamp, came));
            }
        })?;
        let mut numbers = client.publisher(&robot.topics[0].topic, &FLOAT64_MULTI_ARRAY, Traffic::Control)?;
        let largest = selected.config.cameras.iter().map(|c| 4 * c.size[0] * c.size[1]).max().unwrap_or(0);
        let mut camera = ImagePublisher::open(&client, &topic.topic, topic.kind, largest + 4096)?;
        let deadline = clock::now() + PATIENCE;
        while !(numbers.is_matched() && camera.is_matched()) {
            if clock::now() > deadline {
                return Err("the daemon does not listen".into());
            }
            clock::sleep_until(clock::now() + MILLISECOND);
        }

        let progress = Progress::new();
        let mut plane = PushT::new(0);
        let (mut payload, mut due, mut steps) = (Vec::new(), clock::now(), 0);
        let spans = loop {
            clock::sleep_until(due);
            due = due + clock::period(RATE_HZ);
            // In circles, so that no image is like the one before.
            steps += 1;
            let turn = f64::from(steps) * 0.2;
            plane.step([256.0 + 150.0 * turn.cos(), 256.0 + 150.0 * turn.sin()]);
            let pixels = scene.pixels(&plane).unwrap_or_default();
            let stamp = clock::read().wall;
            let sent = clock::now();
            cdr::write_array(
                &mut payload,
                &scene.numbers(&plane).iter().map(|n| f64::from(*n)).collect::<Vec<_>>(),
            );
            numbers.put(&payload, stamp, None)?;
            match topic.kind {
                ImageKind::Image => image::write_image(&mut payload, stamp, &scene.image(&pixels)),
                ImageKind::CompressedImage => {
                    let file = image::png(&scene.image(&pixels))?;
                    image::write_compressed_image(&mut payload, stamp, "png", &file);
                }
            }
            camera.put(&payload, stamp)?;
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.sent.push((stamp, sent));
            let spans = log.spans();
            progress.show(format_args!("{} of {} chunks", spans.len(), WARM_UP + self.chunks));
            if spans.len() >= WARM_UP + self.chunks {
                break spans;
            }
            if due > deadline + (WARM_UP + self.chunks) as i64 * SECOND {
                return Err(format!("only {} chunks came", spans.len()).into());
            }
        };
        drop((progress, subscription));
        let report = daemon.shutdown()?;
        client.close()?;
        let mut times = Histogram::<u64>::new(3)?;
        for span in &spans[WARM_UP..] {
            times.record(u64::try_from(*span)?)?;
        }
        let ms = |nanos: u64| nanos as f64 * 1e-6;
        say!(
            "{}, schedule {}, on {engine_name}; images encoded on one thread",
            selected.config.name,
            selected.name
        );
        say!(
            "image published to action received: p50 {:.1} ms, p90 {:.1} ms, fastest {:.1} ms, slowest {:.1} ms over {} chunks",
            ms(times.value_at_quantile(0.5)),
            ms(times.value_at_quantile(0.9)),
            ms(times.min()),
            ms(times.max()),
            times.len()
        );
        timing(&report, true);
        stages::print(&stages::time(&selected.package, 50)?);
        Ok(())
    }
}
