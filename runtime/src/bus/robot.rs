//! The daemon's side of the bus: observations, stops and resets in, commands out.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::attachment::Validity;
use super::{Bus, BusError, Message, Publisher, Service, Subscription, cdr};
use crate::chunk::Chunk;
use crate::clock::{Nanos, Reading, Wall};
use crate::config::{MessageReading, Robot};
use crate::control::{Command, Mode};
use crate::observation::{Intake, Origin, Refusal};
use crate::trajectory::{Due, Lookahead, Next};

/// What any thread may tell any other without waiting.
#[derive(Debug, Default)]
pub struct Signals {
    stops: AtomicU64,
    resets: AtomicU64,
    mode: AtomicU8,
    ended: AtomicBool,
}

/// Takes observations in until dropped.
pub struct Inlet {
    shared: Arc<Mutex<Shared>>,
    _subscriptions: Vec<Subscription>,
    _services: Vec<Service>,
}

/// Sends commands.
pub struct Outlet {
    command: Option<Publisher>,
    trajectory: Option<Publisher>,
    joints: Vec<String>,
    action_period: Nanos,
    lookahead: Lookahead,
    due: Due,
    payload: Vec<u8>,
    sent: u64,
    failed: u64,
}

struct Shared {
    intake: Intake,
    numbers: Vec<f64>,
    on_observation: Box<dyn FnMut(&Intake) + Send>,
}

impl Signals {
    /// Asks for a stop.
    pub fn stop(&self) {
        self.stops.fetch_add(1, Ordering::Release);
    }

    /// Asks for a reset.
    pub fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Release);
    }

    /// Stops asked for so far.
    pub fn stops(&self) -> u64 {
        self.stops.load(Ordering::Acquire)
    }

    /// Resets asked for so far.
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Acquire)
    }

    /// Tells the mode after a tick.
    pub fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Release);
    }

    /// The mode after the last tick.
    pub fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Acquire) {
            1 => Mode::Running,
            2 => Mode::Coasting,
            3 => Mode::Holding,
            4 => Mode::Stopped,
            _ => Mode::Warmup,
        }
    }

    /// Tells every thread to end.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Whether threads are to end.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

impl Inlet {
    /// Subscribes to the robot's topics. `clock` says what time it is when a message with this stamp arrives;
    /// `on_observation` is called on zenoh's threads, one call at a time.
    pub fn open(
        bus: &Bus,
        robot: &Robot,
        signals: &Arc<Signals>,
        clock: fn(Option<Wall>) -> Reading,
        on_observation: impl FnMut(&Intake) + Send + 'static,
    ) -> Result<Self, BusError> {
        let shared = Arc::new(Mutex::new(Shared {
            intake: Intake::new(robot.intake.clone()),
            numbers: Vec::new(),
            on_observation: Box::new(on_observation),
        }));
        let mut subscriptions = Vec::new();
        for (part, topic) in robot.topics.iter().enumerate() {
            let (shared, reading) = (Arc::clone(&shared), topic.reading.clone());
            subscriptions.push(bus.subscribe(&topic.topic, move |message| {
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(refusal) = shared.take(part, &reading, message, clock) {
                    tracing::debug!(part, %refusal, "observation refused");
                }
            })?);
        }
        let mut services = Vec::new();
        for (topic, ask, answer) in [
            (&robot.stop_topic, Signals::stop as fn(&Signals), "stop latched"),
            (&robot.reset_topic, Signals::reset, "reset asked for"),
        ] {
            let told = Arc::clone(signals);
            subscriptions.push(bus.subscribe(topic, move |_| ask(&told))?);
            let told = Arc::clone(signals);
            services.push(bus.trigger(topic, move || {
                ask(&told);
                answer
            })?);
        }
        Ok(Self { shared, _subscriptions: subscriptions, _services: services })
    }

    /// Messages taken in, and messages refused in the order of [`Refusal::ALL`].
    pub fn counts(&self) -> (u64, [u64; Refusal::ALL.len()]) {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        (shared.intake.accepted(), *shared.intake.refused())
    }
}

impl Shared {
    fn take(
        &mut self,
        part: usize,
        reading: &MessageReading,
        message: &Message<'_>,
        clock: fn(Option<Wall>) -> Reading,
    ) -> Result<(), Refusal> {
        let decoded = match reading {
            MessageReading::Array { size } => {
                self.numbers.resize(*size, 0.0);
                cdr::read_array(&message.payload, &mut self.numbers).map(|()| None)
            }
            MessageReading::Joints { names, field } => {
                self.numbers.resize(names.len(), 0.0);
                cdr::read_joint_state(&message.payload, names, *field, &mut self.numbers)
            }
        };
        let header_stamp = decoded.inspect_err(|refusal| self.intake.refuse(*refusal))?;
        let attachment = message.attachment;
        let origin = Origin {
            sequence: attachment.map(|a| a.sequence),
            publisher: attachment.map(|a| a.publisher),
            stamp: header_stamp.or(attachment.map(|a| a.source)),
        };
        if self.intake.accept(part, &origin, &self.numbers, clock(origin.stamp))? {
            (self.on_observation)(&self.intake);
        }
        Ok(())
    }
}

impl Outlet {
    /// Declares the robot's publishers.
    pub fn open(bus: &Bus, robot: &Robot) -> Result<Self, BusError> {
        let publisher = |topic: &Option<String>| topic.as_ref().map(|topic| bus.publisher(topic)).transpose();
        Ok(Self {
            command: publisher(&robot.command_topic)?,
            trajectory: publisher(&robot.trajectory_topic)?,
            joints: robot.joints.clone(),
            action_period: robot.action_period,
            lookahead: Lookahead::new(&robot.control, robot.action_period),
            due: Due::default(),
            payload: Vec::new(),
            sent: 0,
            failed: 0,
        })
    }

    /// Sends a command, if it is to be sent, and a trajectory where one is due. `chunk` is the newest.
    pub fn send(&mut self, command: &Command, chunk: &Chunk, now: Reading) {
        if !command.send {
            self.due = Due::default();
            return;
        }
        let source = now.wall_of(command.time);
        let observation = now.wall_of(command.observation);
        if let Some(publisher) = &mut self.command {
            cdr::write_array(&mut self.payload, command.values());
            let until = now.wall_of(command.valid_until);
            let put = publisher.put(&self.payload, source, Some(Validity { observation, until }));
            self.count(put);
        }
        if self.trajectory.is_some() {
            self.send_trajectory(command, chunk, source, observation);
        }
    }

    /// Messages sent, and messages that could not be.
    pub fn counts(&self) -> (u64, u64) {
        (self.sent, self.failed)
    }

    fn send_trajectory(&mut self, command: &Command, chunk: &Chunk, source: Wall, observation: Wall) {
        let points = match self.due.look(command, chunk.sequence, self.action_period) {
            Next::Chunk => self.lookahead.follow(command, chunk),
            Next::Hold => self.lookahead.hold(command),
            Next::Nothing => return,
        };
        let Some(last) = points.last() else { return };
        let until = source + last.time_from_start;
        cdr::write_trajectory(&mut self.payload, source, &self.joints, &points);
        if let Some(publisher) = &mut self.trajectory {
            let put = publisher.put(&self.payload, source, Some(Validity { observation, until }));
            self.count(put);
        }
    }

    fn count(&mut self, put: Result<(), BusError>) {
        match put {
            Ok(()) => self.sent += 1,
            Err(error) => {
                self.failed += 1;
                tracing::warn!(%error, "a message was not sent");
            }
        }
    }
}
