//! The simulation's side of the demo: a peer on the bus that behaves as a robot.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use refrain_pusht::{Episode, PushT, RATE_HZ};

use super::{DemoError, DemoOptions, Progress};
use crate::bus::attachment::Attachment;
use crate::bus::camera::ImagePublisher;
use crate::bus::image;
use crate::bus::interface::FLOAT64_MULTI_ARRAY;
use crate::bus::names::Qos;
use crate::bus::robot::Signals;
use crate::bus::{Bus, BusError, BusSection, Message, Publisher, Subscription, Traffic, cdr};
use crate::clock::{self, Duration, Nanos, Ticker, Time, Wall};
use crate::config::Robot;
use crate::config::vision::ImageKind;
use crate::scene::Scene;
use crate::threads;

/// How long it waits for a command before it gives up.
const PATIENCE: Nanos = 60 * clock::SECOND;
/// How often it looks whether somebody receives its observations.
const POLL: Duration = Duration::from_millis(5);

/// What the robot's side counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RobotCounts {
    /// Commands taken.
    pub commands: u64,
    /// Commands refused: unreadable, non-finite, out of order or without validity.
    pub refused: u64,
    /// Steps for which no valid command was there, and the pusher held.
    pub held: u64,
}

/// The peer.
pub(super) struct Simulator {
    bus: Bus,
    observations: Publisher,
    camera: Option<(ImageKind, ImagePublisher)>,
    scene: Scene,
    _commands: Subscription,
    inbox: Arc<Inbox>,
    plane: PushT,
    episode: Episode,
    held: u64,
    payload: Vec<u8>,
    period: Nanos,
}

#[derive(Default)]
struct Inbox {
    state: Mutex<Received>,
    arrived: Condvar,
}

#[derive(Default)]
struct Received {
    newest: Option<Command>,
    taken: u64,
    refused: u64,
}

#[derive(Clone, Copy)]
struct Command {
    sequence: i64,
    source: Wall,
    until: Wall,
    target: [f64; 2],
}

/// Bytes that a message with an RGB image of `side` x `side` pixels has at most.
fn largest(side: usize) -> usize {
    4 * side * side + 4096
}

impl Simulator {
    /// Connects to the policy's side and waits until it listens to observations.
    pub(super) fn open(
        robot: &Robot,
        endpoint: &str,
        scene: Scene,
        options: &DemoOptions,
    ) -> Result<Self, DemoError> {
        let section = BusSection { connect: vec![endpoint.to_owned()], ..BusSection::default() };
        let bus = Bus::open(&section)?;
        let inbox = Arc::new(Inbox::default());
        let receiver = Arc::clone(&inbox);
        let commands = robot.command_topic.as_deref().unwrap_or_default();
        let subscription = bus
            .subscribe(commands, &FLOAT64_MULTI_ARRAY, Qos::NEWEST, move |message| receiver.take(message))?;
        let observations = bus.publisher(&robot.topics[0].topic, &FLOAT64_MULTI_ARRAY, Traffic::Control)?;
        let camera = match (robot.cameras.first(), scene) {
            (Some(topic), Scene::Camera(side)) => {
                let publisher = ImagePublisher::open(&bus, &topic.topic, topic.kind, largest(side))?;
                Some((topic.kind, publisher))
            }
            _ => None,
        };
        let deadline = clock::now() + PATIENCE;
        while !(observations.is_matched() && camera.as_ref().is_none_or(|(_, camera)| camera.is_matched())) {
            if clock::now() > deadline {
                return Err(DemoError::NoCommand { seconds: PATIENCE / clock::SECOND });
            }
            threads::park(POLL);
        }
        let plane = PushT::new(options.seed);
        Ok(Self {
            bus,
            observations,
            camera,
            scene,
            _commands: subscription,
            inbox,
            episode: Episode::start(&plane),
            plane,
            held: 0,
            payload: Vec::new(),
            period: clock::period(RATE_HZ),
        })
    }

    /// Runs the episode in real time. The clock of the episode starts with the first command.
    pub(super) fn run_real_time(
        &mut self,
        options: &DemoOptions,
        signals: &Signals,
        progress: &mut impl FnMut(&Progress),
    ) -> Result<(), DemoError> {
        let start = clock::now();
        let mut ticker = Ticker::new(start, self.period);
        while self.episode.steps.len() < options.max_steps {
            let due = ticker.deadline();
            clock::sleep_until(due);
            self.observe(clock::read().wall)?;
            clock::sleep_until(due + self.period / 2);
            ticker.advance(clock::now());
            let Some(command) = self.inbox.newest() else {
                if clock::now() - start > PATIENCE {
                    return Err(DemoError::NoCommand { seconds: PATIENCE / clock::SECOND });
                }
                continue;
            };
            let valid = clock::read().wall <= command.until;
            if self.step(valid.then_some(command.target), signals, progress) {
                break;
            }
        }
        Ok(())
    }

    /// Runs the episode in simulated time, at most `speed` times as fast as real time.
    pub(super) fn run_simulated(
        &mut self,
        options: &DemoOptions,
        signals: &Signals,
        progress: &mut impl FnMut(&Progress),
    ) -> Result<(), DemoError> {
        let pace = (self.period as f64 / options.speed) as Nanos;
        let start = clock::now();
        for step in 0..options.max_steps as i64 {
            clock::sleep_until(start + step * pace);
            let now = Wall::from_nanos((step + 1) * self.period);
            self.observe(now)?;
            let command = self.inbox.wait(now + self.period / 2, clock::now() + PATIENCE)?;
            let valid = now + self.period / 2 <= command.until;
            if self.step(valid.then_some(command.target), signals, progress) {
                break;
            }
        }
        Ok(())
    }

    /// Leaves the bus.
    pub(super) fn close(self) -> Result<(Episode, RobotCounts), BusError> {
        let received = self.inbox.state.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = RobotCounts { commands: received.taken, refused: received.refused, held: self.held };
        drop(received);
        self.bus.close()?;
        Ok((self.episode, counts))
    }

    fn observe(&mut self, now: Wall) -> Result<(), DemoError> {
        let numbers: Vec<f64> = self.scene.numbers(&self.plane).into_iter().map(f64::from).collect();
        cdr::write_array(&mut self.payload, &numbers);
        self.observations.put(&self.payload, now, None)?;
        if let (Some((kind, camera)), Some(pixels)) = (&mut self.camera, self.scene.pixels(&self.plane)) {
            let image = self.scene.image(&pixels);
            match kind {
                ImageKind::Image => image::write_image(&mut self.payload, now, &image),
                ImageKind::CompressedImage => {
                    image::write_compressed_image(&mut self.payload, now, "png", &image::png(&image)?);
                }
            }
            camera.put(&self.payload, now)?;
        }
        Ok(())
    }

    /// Moves the plane on; `true` when the goal is reached.
    fn step(
        &mut self,
        target: Option<[f64; 2]>,
        signals: &Signals,
        progress: &mut impl FnMut(&Progress),
    ) -> bool {
        self.held += u64::from(target.is_none());
        let target = target.unwrap_or(self.plane.state().pusher);
        let step = self.plane.step(target);
        self.episode.push(target, step, &self.plane);
        progress(&Progress {
            step: self.episode.steps.len(),
            coverage: step.coverage,
            score: self.plane.score(),
            mode: signals.mode(),
        });
        step.success
    }
}

impl Inbox {
    fn take(&self, message: &Message<'_>) {
        let mut target = [0.0; 2];
        let decoded = cdr::read_array(&message.payload, &mut target).is_ok();
        let finite = target.iter().all(|value| value.is_finite());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let advances = |a: &Attachment| state.newest.is_none_or(|last| a.sequence > last.sequence);
        match message.attachment.filter(|a| decoded && finite && advances(a)) {
            Some(Attachment { sequence, source, validity: Some(validity), .. }) => {
                state.newest = Some(Command { sequence, source, until: validity.until, target });
                state.taken += 1;
                self.arrived.notify_all();
            }
            _ => state.refused += 1,
        }
    }

    fn newest(&self) -> Option<Command> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).newest
    }

    /// The command that was made at `source` or later.
    fn wait(&self, source: Wall, deadline: Time) -> Result<Command, DemoError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(command) = state.newest.filter(|command| command.source >= source) {
                return Ok(command);
            }
            let left = deadline - clock::now();
            if left <= 0 {
                return Err(DemoError::NoCommand { seconds: PATIENCE / clock::SECOND });
            }
            let wait = Duration::from_nanos(left as u64);
            state = self.arrived.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
