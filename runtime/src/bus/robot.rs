//! The daemon's side of the bus: observations, stops and resets in, commands out; in shadow mode, others' commands in.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use refrain_policies::preprocess::Image;

use super::attachment::Validity;
use super::camera::CameraReader;
use super::interface::{self, Interface};
use super::names::Qos;
use super::service::Answer;
use super::{
    Bus, BusError, Claim, Matching, Message, Presence, Publisher, Service, Shadow, Subscription, Traffic,
    cdr, parameters,
};
use crate::chunk::Chunk;
use crate::clock::{Nanos, Reading, Wall};
use crate::config::fields::Stamped;
use crate::config::{CommandWriting, MessageReading, Robot};
use crate::control::{Command, Mode};
use crate::observation::{Counts, Intake, Origin, Refusal};
use crate::record;
use crate::trajectory::{Due, Lookahead, Next};

/// Numbers of the longest stamped message.
const LONGEST_STAMPED: usize = 37;
/// A quaternion shorter than this has no direction.
const SHORTEST_TURN: f64 = 1e-6;

/// What any thread may tell any other without waiting.
#[derive(Debug, Default)]
pub struct Signals {
    stops: AtomicU64,
    resets: AtomicU64,
    operator: AtomicBool,
    /// A bit for every topic of ours that somebody receives; the first, for a controller that is known by name.
    receivers: AtomicU8,
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
    _claims: Vec<Claim>,
    _matching: Vec<Matching>,
    _presence: Option<Presence>,
    shadow: Option<Shadow>,
    command: Option<Publisher>,
    writing: CommandWriting,
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

    /// An operator takes the robot over.
    pub fn take_over(&self) {
        self.operator.store(true, Ordering::Release);
    }

    /// The operator hands it back.
    pub fn hand_back(&self) {
        self.operator.store(false, Ordering::Release);
    }

    /// Whether an operator is in charge.
    pub fn operator(&self) -> bool {
        self.operator.load(Ordering::Acquire)
    }

    /// Somebody receives the commands of our `topic`th topic, or nobody does.
    pub fn received(&self, topic: u8, yes: bool) {
        if yes {
            self.receivers.fetch_or(1 << topic, Ordering::AcqRel);
        } else {
            self.receivers.fetch_and(!(1 << topic), Ordering::AcqRel);
        }
    }

    /// Whether somebody receives commands.
    pub fn controller(&self) -> bool {
        self.receivers.load(Ordering::Acquire) != 0
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
            let qos = if topic.latched { Qos::LATCHED } else { Qos::SENSOR };
            subscriptions.push(bus.subscribe(
                &topic.topic,
                topic.reading.interface(),
                qos,
                move |message| {
                    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Err(refusal) = shared.take(part, &reading, message, clock) {
                        tracing::debug!(part, %refusal, "observation refused");
                    }
                },
            )?);
        }
        let lenses = robot.intake.sight.iter().flat_map(|sight| &sight.lenses);
        for (camera, (topic, lens)) in robot.cameras.iter().zip(lenses).enumerate() {
            let shared = Arc::clone(&shared);
            // Decoding holds up nobody but this camera.
            let reader = Mutex::new((CameraReader::new(topic.kind, lens.size, lens.channels), None));
            let name = lens.name.clone();
            subscriptions.push(bus.subscribe(
                &topic.topic,
                topic.kind.interface(),
                Qos::SENSOR,
                move |message| {
                    let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
                    let (reader, was) = &mut *reader;
                    let image = reader.read(message);
                    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    let refusal = shared.see(camera, message, image, clock).err();
                    match refusal {
                        // Once, not thirty times a second.
                        Some(refusal) if Some(refusal) != *was => {
                            tracing::warn!(camera = %name, "images are refused: {refusal}")
                        }
                        None if was.is_some() => tracing::warn!(camera = %name, "images are taken again"),
                        _ => {}
                    }
                    *was = refusal;
                },
            )?);
        }
        let mut services = parameters::serve(bus, robot)?;
        for (topic, ask, answer) in [
            (&robot.stop_topic, Signals::stop as fn(&Signals), "stop latched"),
            (&robot.reset_topic, Signals::reset, "reset asked for"),
            (&robot.takeover_topic, Signals::take_over, "the robot is yours"),
            (&robot.handback_topic, Signals::hand_back, "the policy goes on from where the robot is"),
        ] {
            let told = Arc::clone(signals);
            subscriptions.push(bus.subscribe(topic, &interface::EMPTY, Qos::DEFAULT, move |_| ask(&told))?);
            let told = Arc::clone(signals);
            services.push(bus.trigger(topic, move || {
                ask(&told);
                Answer { success: true, message: answer.into() }
            })?);
        }
        let told = Arc::clone(signals);
        services.push(bus.set_bool(&robot.enable_service, move |on| {
            if on {
                told.reset()
            } else {
                told.stop()
            };
            Answer { success: true, message: if on { "reset asked for" } else { "stop latched" }.into() }
        })?);
        Ok(Self { shared, _subscriptions: subscriptions, _services: services })
    }

    /// Messages taken in and refused.
    pub fn counts(&self) -> Counts {
        self.counter()()
    }

    /// The same, for another thread.
    pub fn counter(&self) -> impl Fn() -> Counts + Send + use<> {
        let shared = Arc::clone(&self.shared);
        move || {
            let shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.intake.counts().clone()
        }
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
        let decoded = reading.read(&message.payload, &mut self.numbers);
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

    fn see(
        &mut self,
        camera: usize,
        message: &Message<'_>,
        image: Result<(Origin, Image<'_>), Refusal>,
        clock: fn(Option<Wall>) -> Reading,
    ) -> Result<(), Refusal> {
        if message.shared {
            self.intake.note_shared(camera);
        }
        let (origin, image) = image.inspect_err(|refusal| self.intake.refuse_image(camera, *refusal))?;
        if self.intake.see(camera, &origin, &image, clock(origin.stamp))? {
            (self.on_observation)(&self.intake);
        }
        Ok(())
    }
}

impl Outlet {
    /// Declares the robot's publishers; `signals` are told whether somebody receives. In shadow mode nothing is declared,
    /// and `on_command` gets what others command, see [`Shadow`].
    pub fn open(
        bus: &Bus,
        robot: &Robot,
        signals: &Arc<Signals>,
        on_command: impl Fn(Option<record::Shadow>) + Send + Sync + 'static,
    ) -> Result<Self, BusError> {
        let shadow = robot.shadow.then(|| Shadow::open(bus, robot, on_command)).transpose()?;
        let ours = |topic: &Option<String>| topic.clone().filter(|_| shadow.is_none());
        let (command, trajectory) = (ours(&robot.command_topic), ours(&robot.trajectory_topic));
        let topics = command.iter().chain(&trajectory);
        let claims = topics.map(|topic| bus.claim(topic)).collect::<Result<_, _>>()?;
        let publisher = |topic: &Option<String>, interface: &Interface| {
            topic.as_ref().map(|topic| bus.publisher(topic, interface, Traffic::Control)).transpose()
        };
        let command = publisher(&command, robot.command.interface())?;
        let trajectory = publisher(&trajectory, &interface::JOINT_TRAJECTORY)?;
        // Nobody has to be there for what is not sent.
        signals.received(0, shadow.is_some());
        let telling = |topic: u8| {
            let told = Arc::clone(signals);
            move |yes| told.received(topic, yes)
        };
        let named = robot.controller.as_ref().filter(|_| shadow.is_none());
        let presence = named.map(|tokens| bus.presence(tokens, telling(0))).transpose()?;
        let whoever = command.iter().chain(&trajectory).zip(0..).filter(|_| presence.is_none());
        let matching = whoever.map(|(publisher, topic)| publisher.matching(telling(topic)));
        let matching = matching.collect::<Result<_, _>>()?;
        Ok(Self {
            _claims: claims,
            _matching: matching,
            _presence: presence,
            shadow,
            command,
            writing: robot.command.clone(),
            trajectory,
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
        if let Some(shadow) = &self.shadow {
            shadow.set(command);
        }
        if !command.send {
            self.due = Due::default();
            return;
        }
        let source = now.wall_of(command.time);
        let observation = now.wall_of(command.observation);
        if let Some(publisher) = &mut self.command {
            let until = now.wall_of(command.valid_until);
            if self.writing.write(&mut self.payload, source, command.values()) {
                let put = publisher.put(&self.payload, source, Some(Validity { observation, until }));
                self.count(put);
            } else {
                self.failed += 1;
            }
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

impl MessageReading {
    /// The messages' type.
    pub fn interface(&self) -> &'static Interface {
        match self {
            Self::Array { .. } => &interface::FLOAT64_MULTI_ARRAY,
            Self::Joints { .. } => &interface::JOINT_STATE,
            Self::Stamped { kind, .. } => kind.interface(),
        }
    }

    /// Reads a message's numbers into `out`, which becomes as long as they are mapped, and its header stamp, if it has
    /// one.
    pub fn read(&self, payload: &[u8], out: &mut Vec<f64>) -> Result<Option<Wall>, Refusal> {
        match self {
            Self::Array { size } => {
                out.resize(*size, 0.0);
                cdr::read_array(payload, out).map(|()| None)
            }
            Self::Joints { names, field } => {
                out.resize(names.len(), 0.0);
                cdr::read_joint_state(payload, names, *field, out)
            }
            Self::Stamped { kind, places } => {
                out.resize(places.len(), 0.0);
                cdr::read_stamped(payload, kind.total(), places, out)
            }
        }
    }
}

impl CommandWriting {
    /// The messages' type.
    pub fn interface(&self) -> &'static Interface {
        match self {
            Self::Array => &interface::FLOAT64_MULTI_ARRAY,
            Self::Stamped { kind, .. } => kind.interface(),
        }
    }

    /// How such a message is read, of as many joints.
    pub fn reading(&self, joints: usize) -> MessageReading {
        match self {
            Self::Array => MessageReading::Array { size: joints },
            Self::Stamped { kind, places, .. } => {
                MessageReading::Stamped { kind: *kind, places: places.clone() }
            }
        }
    }

    /// Writes a command `[joints]`. A pose's orientation is brought to length 1; where no joint gives it, it is the
    /// frame's. `false` when it has no direction: then nothing may be sent.
    pub fn write(&self, out: &mut Vec<u8>, stamp: Wall, values: &[f64]) -> bool {
        let Self::Stamped { kind, frame, places } = self else {
            cdr::write_array(out, values);
            return true;
        };
        let mut numbers = [0.0; LONGEST_STAMPED];
        for (place, value) in places.iter().zip(values) {
            numbers[*place] = *value;
        }
        let numbers = &mut numbers[..kind.total()];
        if *kind == Stamped::Pose {
            let turn = &mut numbers[Stamped::ORIENTATION..];
            if places.iter().all(|place| *place < Stamped::ORIENTATION) {
                turn[3] = 1.0;
            }
            let length = turn.iter().map(|part| part * part).sum::<f64>().sqrt();
            if length < SHORTEST_TURN {
                return false;
            }
            turn.iter_mut().for_each(|part| *part /= length);
        }
        cdr::write_stamped(out, stamp, frame, numbers);
        true
    }
}
