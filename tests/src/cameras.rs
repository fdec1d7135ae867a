//! A robot with two cameras on the bus: it publishes numbers and images as it is told, well or badly.

use std::path::PathBuf;
use std::sync::Arc;

use refrain_policies::camera::Channels;
use refrain_policies::package::Package;
use refrain_policies::plan::Plan;
use refrain_policies::preprocess::Image;
use refrain_policies::schedule::Schedule;
use refrain_policies::vision::Vision;
use refrain_runtime::bus::camera::ImagePublisher;
use refrain_runtime::bus::interface::FLOAT64_MULTI_ARRAY;
use refrain_runtime::bus::names::Qos;
use refrain_runtime::bus::{self, Bus, BusSection, Publisher, Subscription, Traffic, cdr, image};
use refrain_runtime::clock::{self, MILLISECOND, Nanos, Wall};
use refrain_runtime::config::vision::ImageKind;
use refrain_runtime::config::{Robot, RobotConfig};
use refrain_runtime::daemon::Daemon;
use refrain_runtime::engine::cpu::CpuEngine;
use refrain_runtime::observation::Refusal;
use refrain_runtime::policy::Policy;
use refrain_runtime::record::Log;

use crate::robot::PATIENCE;
use crate::trace::repository;

/// Height and width of the cameras' images.
pub const FRONT: [usize; 2] = [20, 24];
/// See above.
pub const WRIST: [usize; 2] = [18, 18];

/// The policy of `tests/fixtures/vision`: front in colour, wrist in grey, two numbers.
const ROBOT: &str = r#"
format = 1
name = "arm"
policy = { path = "vision", engine = "cpu" }
control = { rate_hz = 100.0, interpolation = "linear" }
chunk = { replan_after = 1, deadline_ms = 1000.0 }
observation = { max_age_ms = 500.0, topics = [{ topic = "arm/numbers", type = "std_msgs/Float64MultiArray" }] }

[vision]
tolerance_ms = 30.0
[[vision.cameras]]
name = "wrist"
topic = "arm/wrist"
type = "sensor_msgs/CompressedImage"
[[vision.cameras]]
name = "front"
topic = "arm/front"
type = "sensor_msgs/Image"
black = 8
frozen_after = 3

[action]
command_topic = "arm/command"
joints = [
  { name = "action0", position = [-100.0, 600.0], velocity = 2e4, acceleration = 4e6, start = 0.0 },
  { name = "action1", position = [-100.0, 600.0], velocity = 2e4, acceleration = 4e6, start = 0.0 },
]
"#;

/// A daemon and the robot with cameras that it runs.
pub struct Sighted {
    /// The daemon.
    pub daemon: Daemon,
    /// Its configuration.
    pub robot: Robot,
    /// The policy's numbers.
    pub numbers: Publisher,
    /// Colour images.
    pub front: ImagePublisher,
    /// Grey images, as PNG.
    pub wrist: ImagePublisher,
    /// Without somebody who receives commands the daemon sends none.
    _commands: Subscription,
    bus: Bus,
    frames: u32,
}

/// The package.
pub fn package() -> Arc<Package> {
    let folder: PathBuf = repository().join("tests/fixtures/vision/policy");
    Arc::new(Package::load(&folder).expect("the package"))
}

/// A policy on one CPU thread; one that computes a recording again needs no eyes.
pub fn policy(sees: bool) -> Policy {
    let package = package();
    let schedule = Schedule::full(&package.config.architecture, package.config.sampler.inference_steps);
    let plan = Arc::new(Plan::compile(&package.config, &schedule).expect("a plan"));
    let engine = Box::new(CpuEngine::new(Arc::clone(&package), plan, 1).expect("an engine"));
    let vision = if sees { Vision::new(&package).expect("encoders") } else { None };
    Policy::seeing(package.config.clone(), engine, vision)
}

/// A picture of `size` that differs from every other `frame`; RGB or grey.
pub fn picture(size: [usize; 2], channels: Channels, frame: u32) -> Vec<u8> {
    let bytes = size[0] * size[1] * channels.count();
    (0..bytes).map(|i| 20 + ((i * 7 + frame as usize * 31) % 200) as u8).collect()
}

/// These bytes as an image without gaps.
pub fn image_of(size: [usize; 2], channels: Channels, pixels: &[u8]) -> Image<'_> {
    let [height, width] = size;
    Image { height, width, step: width * channels.count(), channels, pixels }
}

impl Sighted {
    /// Starts both; `change` edits the configuration first.
    pub fn start(change: impl FnOnce(&mut RobotConfig), log: Option<Log>) -> Self {
        let mut config = RobotConfig::parse(ROBOT).expect("a configuration");
        config.bus.listen = vec![bus::free_endpoint().expect("a free port")];
        change(&mut config);
        let robot = config.resolve(&package().config).expect("a sound configuration");
        let daemon = Daemon::recorded(&robot, policy(true), log).expect("a daemon");
        let section = BusSection { connect: robot.bus.listen.clone(), ..BusSection::default() };
        let bus = Bus::open(&section).expect("a session");
        let numbers =
            bus.publisher("arm/numbers", &FLOAT64_MULTI_ARRAY, Traffic::Control).expect("a publisher");
        let commands =
            bus.subscribe("arm/command", &FLOAT64_MULTI_ARRAY, Qos::NEWEST, |_| {}).expect("a subscription");
        let camera = |topic, kind| ImagePublisher::open(&bus, topic, kind, 8192).expect("a publisher");
        let front = camera("arm/front", ImageKind::Image);
        let wrist = camera("arm/wrist", ImageKind::CompressedImage);
        let deadline = clock::now() + PATIENCE;
        while !(numbers.is_matched() && front.is_matched() && wrist.is_matched()) {
            assert!(clock::now() < deadline, "the daemon does not listen");
            clock::sleep_until(clock::now() + MILLISECOND);
        }
        Self { daemon, robot, numbers, front, wrist, _commands: commands, bus, frames: 0 }
    }

    /// Publishes numbers and, from the cameras that work, an image each, and waits `period`.
    pub fn observe(&mut self, front: bool, wrist: bool, period: Nanos) {
        let now = clock::read().wall;
        let mut payload = Vec::new();
        cdr::write_array(&mut payload, &[1000.0, 3.0]);
        self.numbers.put(&payload, now, None).expect("a put");
        self.frames += 1;
        if wrist {
            let pixels = picture(WRIST, Channels::Mono, self.frames);
            let file = image::png(&image_of(WRIST, Channels::Mono, &pixels)).expect("a PNG");
            image::write_compressed_image(&mut payload, now, "png", &file);
            self.wrist.put(&payload, now).expect("a put");
        }
        if front {
            let pixels = picture(FRONT, Channels::Rgb, self.frames);
            self.publish_front(&image_of(FRONT, Channels::Rgb, &pixels), now);
        }
        clock::sleep_until(clock::now() + period);
    }

    /// Publishes an image of the front camera.
    pub fn publish_front(&mut self, image: &Image<'_>, stamp: Wall) {
        let mut payload = Vec::new();
        image::write_image(&mut payload, stamp, image);
        self.front.put(&payload, stamp).expect("a put");
    }

    /// Publishes everything at 20 Hz until `done` says so.
    pub fn observe_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        self.publish_until(what, true, true, done);
    }

    /// Publishes at 20 Hz, images from the cameras that work, until `done` says so.
    pub fn publish_until(&mut self, what: &str, front: bool, wrist: bool, done: impl Fn(&Self) -> bool) {
        let deadline = clock::now() + PATIENCE;
        while !done(self) {
            self.observe(front, wrist, 50 * MILLISECOND);
            assert!(clock::now() < deadline, "never: {what}; {:#?}", self.daemon.report());
        }
    }

    /// Messages refused so far, but for images without a match: a machine under load may be late with one.
    pub fn faults(&self) -> u64 {
        let report = self.daemon.report();
        report.refused.iter().sum::<u64>() - report.refused_for(Refusal::OutOfSync)
    }

    /// Messages refused for this reason so far.
    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.daemon.report().refused_for(refusal)
    }

    /// Ends both.
    pub fn end(self) -> refrain_runtime::report::Report {
        let report = self.daemon.shutdown().expect("a clean end");
        self.bus.close().expect("a clean end");
        report
    }
}
