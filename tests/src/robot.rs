//! A robot on the bus for tests: it publishes observations as it is told, well or badly, and keeps what it receives.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use refrain_policies::config::PolicyConfig;
use refrain_runtime::bus::attachment::{Attachment, Validity};
use refrain_runtime::bus::interface::FLOAT64_MULTI_ARRAY;
use refrain_runtime::bus::names::Qos;
use refrain_runtime::bus::{self, Bus, BusSection, Convention, Publisher, Subscription, Traffic, cdr};
use refrain_runtime::chunk::Interpolation;
use refrain_runtime::clock::{self, MILLISECOND, Nanos, Time, Wall};
use refrain_runtime::config::{MessageKind, Robot, RobotConfig};
use refrain_runtime::control::Mode;
use refrain_runtime::daemon::Daemon;
use refrain_runtime::engine::{Engine, EngineError};
use refrain_runtime::ladder::Rungs;
use refrain_runtime::policy::Policy;
use refrain_runtime::record::Log;
use refrain_runtime::report::Report;

/// The robot's configuration: the example's, on a free port.
const ROBOT: &str = include_str!("../../examples/pusht/robot.toml");
const POLICY: &str = include_str!("../../policies/pusht-small/policy.toml");

/// Longest that a test waits for something.
pub const PATIENCE: Nanos = 20 * clock::SECOND;

/// What an engine double does, changed while it runs.
#[derive(Debug, Default)]
pub struct Doing {
    /// Milliseconds that a prediction takes.
    pub delay_ms: AtomicU64,
    /// Predictions fail.
    pub fails: AtomicBool,
    /// Predictions are NaN.
    pub nan: AtomicBool,
}

/// An engine double: the actions go from near the low end of their range to near the high end.
pub struct Double(pub Arc<Doing>);

impl Engine for Double {
    fn name(&self) -> String {
        "double".into()
    }

    fn infer(&mut self, _: &[f32], _: &[f32], trajectory: &mut [f32]) -> Result<(), EngineError> {
        let delay = self.0.delay_ms.load(Ordering::Relaxed) as i64 * MILLISECOND;
        clock::sleep_until(clock::now() + delay);
        if self.0.fails.load(Ordering::Relaxed) {
            return Err(EngineError::Lost("the double fails".into()));
        }
        let (nan, last) = (self.0.nan.load(Ordering::Relaxed), trajectory.len() - 1);
        for (i, value) in trajectory.iter_mut().enumerate() {
            *value = if nan { f32::NAN } else { 1.6 * i as f32 / last as f32 - 0.8 };
        }
        Ok(())
    }
}

/// A command as the robot got it.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    /// When it came.
    pub at: Time,
    /// What came with it.
    pub attachment: Attachment,
    /// Its numbers.
    pub values: Vec<f64>,
}

/// A daemon and the robot that it runs, on a loopback port of their own.
pub struct Rig {
    /// The daemon.
    pub daemon: Daemon,
    /// What its engine does.
    pub engine: Arc<Doing>,
    /// The robot's end of the bus.
    pub bus: Bus,
    /// Its observations.
    pub observations: Publisher,
    /// Where its end listens, for a third party.
    pub endpoint: String,
    /// The daemon's configuration.
    pub robot: Robot,
    received: Arc<Mutex<Vec<Received>>>,
    sequence: i64,
    commands: Option<Subscription>,
}

/// The policy that rigs run: its shape is Push-T's.
pub fn policy_config() -> PolicyConfig {
    toml::from_str(POLICY).expect("the shipped policy's configuration")
}

/// A policy on an engine double that does what it should.
pub fn double() -> Policy {
    Policy::new(policy_config(), Box::new(Double(Arc::default())))
}

/// The example's configuration on a free port.
pub fn robot_config() -> RobotConfig {
    let mut config = RobotConfig::parse(ROBOT).expect("the example");
    config.bus.listen = vec![bus::free_endpoint().expect("a free port")];
    config
}

/// The joints of [`graph_config`]'s robot; the last two are commanded.
pub fn joints() -> Vec<String> {
    (0..20).map(|joint| format!("joint_{joint}")).collect()
}

/// The example's configuration as a node of a ROS 2 graph behind this router: joint states in, trajectories and commands
/// out.
pub fn graph_config(router: &str, domain: u32) -> RobotConfig {
    let (joints, mut config) = (joints(), robot_config());
    config.bus.convention = Convention::RmwZenoh;
    config.bus.domain = domain;
    config.bus.listen.clear();
    config.bus.connect = vec![router.into()];
    config.control.interpolation = Interpolation::Linear;
    config.observation.topics[0].topic = "/joint_states".into();
    config.observation.topics[0].kind = MessageKind::JointState;
    config.observation.topics[0].joints.clone_from(&joints);
    config.action.command_topic = Some("/arm_controller/commands".into());
    config.action.trajectory_topic = Some("/arm_controller/joint_trajectory".into());
    for (joint, name) in config.action.joints.iter_mut().zip(&joints[18..]) {
        (joint.velocity, joint.acceleration, joint.joint) = (200.0, 2000.0, Some(name.clone()));
    }
    config
}

impl Rig {
    /// Starts both; `change` edits the configuration first.
    pub fn start(change: impl FnOnce(&mut RobotConfig)) -> Self {
        Self::recorded(change, None)
    }

    /// The same with a recording.
    pub fn recorded(change: impl FnOnce(&mut RobotConfig), log: Option<Log>) -> Self {
        Self::running(change, log, |engine| Policy::new(policy_config(), Box::new(engine)))
    }

    /// The same with a policy that is made around the engine double.
    pub fn running<P: Into<Rungs>>(
        change: impl FnOnce(&mut RobotConfig),
        log: Option<Log>,
        policy: impl FnOnce(Double) -> P,
    ) -> Self {
        let mut config = robot_config();
        change(&mut config);
        let robot = config.resolve(&policy_config()).expect("a sound configuration");
        let engine = Arc::new(Doing::default());
        let daemon = Daemon::recorded(&robot, policy(Double(Arc::clone(&engine))), log).expect("a daemon");
        let received = Arc::default();
        let endpoint = bus::free_endpoint().expect("a free port");
        let (bus, observations) = Self::side(&robot, &endpoint);
        let mut rig = Self {
            daemon,
            engine,
            bus,
            observations,
            endpoint,
            robot,
            received,
            sequence: 0,
            commands: None,
        };
        rig.listen();
        rig.wait_for_daemon();
        rig
    }

    /// The robot's session: a peer of the daemon, or where the daemon connects to a router, the router's client.
    fn side(robot: &Robot, endpoint: &str) -> (Bus, Publisher) {
        let routed = !robot.bus.connect.is_empty();
        let client = "{ mode: 'client', scouting: { multicast: { enabled: false } } }";
        let section = BusSection {
            zenoh: routed.then(|| client.to_owned()),
            connect: if routed { robot.bus.connect.clone() } else { robot.bus.listen.clone() },
            listen: if routed { Vec::new() } else { vec![endpoint.to_owned()] },
            convention: robot.bus.convention,
            domain: robot.bus.domain,
            node: Some("robot".into()),
            ..BusSection::default()
        };
        let bus = Bus::open(&section).expect("a session");
        let topic = &robot.topics[0].topic;
        let observations = bus.publisher(topic, &FLOAT64_MULTI_ARRAY, Traffic::Control).expect("a publisher");
        (bus, observations)
    }

    fn wait_for_daemon(&self) {
        let deadline = clock::now() + PATIENCE;
        while !self.observations.is_matched() {
            assert!(clock::now() < deadline, "the daemon does not listen");
            clock::sleep_until(clock::now() + MILLISECOND);
        }
    }

    /// Listens for commands.
    pub fn listen(&mut self) {
        let keep = Arc::clone(&self.received);
        let topic = self.robot.command_topic.clone().expect("a topic");
        let commands = self.bus.subscribe(&topic, &FLOAT64_MULTI_ARRAY, Qos::NEWEST, move |message| {
            let mut values = vec![0.0; 2];
            cdr::read_array(&message.payload, &mut values).expect("a readable command");
            let attachment = message.attachment.expect("an attachment");
            keep.lock().expect("the list").push(Received { at: clock::now(), attachment, values });
        });
        self.commands = Some(commands.expect("a subscription"));
    }

    /// Listens no more.
    pub fn ignore(&mut self) {
        self.commands = None;
    }

    /// Closes the robot's session and opens another one after `pause`.
    pub fn reopen(&mut self, pause: Nanos) {
        self.commands = None;
        let nobody = Bus::open(&BusSection::default()).expect("a session");
        self.observations =
            nobody.publisher("nothing", &FLOAT64_MULTI_ARRAY, Traffic::Control).expect("a publisher");
        std::mem::replace(&mut self.bus, nobody).close().expect("closed");
        clock::sleep_until(clock::now() + pause);
        (self.bus, self.observations) = Self::side(&self.robot, &self.endpoint);
        self.listen();
        self.wait_for_daemon();
    }

    /// A daemon alone; somebody else is the robot.
    pub fn daemon(config: &RobotConfig) -> Daemon {
        let robot = config.resolve(&policy_config()).expect("a sound configuration");
        Daemon::start(&robot, double()).expect("a daemon")
    }

    /// A good observation's numbers: the pusher stands at (100, 100).
    pub fn numbers() -> [f64; 20] {
        [100.0; 20]
    }

    /// Publishes numbers with a sequence number and a stamp that is `age` old.
    pub fn publish(&self, values: &[f64], sequence: i64, age: Nanos) {
        let mut payload = Vec::new();
        cdr::write_array(&mut payload, values);
        self.publish_bytes(&payload, sequence, clock::read().wall - age);
    }

    /// Publishes bytes.
    pub fn publish_bytes(&self, payload: &[u8], sequence: i64, stamp: Wall) {
        let publisher = self.observations.id();
        let attachment = Attachment { sequence, source: stamp, publisher, validity: None };
        self.observations.put_with(payload, &attachment).expect("a put");
    }

    /// Publishes a good observation and waits `period`.
    pub fn observe(&mut self, period: Nanos) {
        self.sequence += 1;
        self.publish(&Self::numbers(), self.sequence, 0);
        clock::sleep_until(clock::now() + period);
    }

    /// The sequence number of the last good observation.
    pub fn sequence(&self) -> i64 {
        self.sequence
    }

    /// Publishes good observations at 50 Hz until `done` says so, and returns how long it took.
    pub fn observe_until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) -> Nanos {
        let start = clock::now();
        while !done(self) {
            self.observe(20 * MILLISECOND);
            assert!(clock::now() - start < PATIENCE, "never: {what}; {:#?}", self.daemon.report());
        }
        clock::now() - start
    }

    /// Waits without observations until `done` says so, and returns how long it took.
    pub fn wait_until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) -> Nanos {
        let start = clock::now();
        while !done(self) {
            clock::sleep_until(clock::now() + MILLISECOND);
            assert!(clock::now() - start < PATIENCE, "never: {what}; {:#?}", self.daemon.report());
        }
        clock::now() - start
    }

    /// The daemon's mode.
    pub fn mode(&self) -> Mode {
        self.daemon.signals().mode()
    }

    /// What the robot received so far.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().expect("the list").clone()
    }

    /// What came since `from`.
    pub fn since(&self, from: Time) -> Vec<Received> {
        self.received().into_iter().filter(|command| command.at >= from).collect()
    }

    /// Ends both.
    pub fn end(self) -> (Report, Vec<Received>) {
        let report = self.daemon.shutdown().expect("a clean end");
        // What was sent last is still on its way.
        clock::sleep_until(clock::now() + 50 * MILLISECOND);
        let received = self.received.lock().expect("the list").clone();
        (report, received)
    }
}

/// Until when a command is valid.
pub fn validity(command: &Received) -> Validity {
    command.attachment.validity.expect("commands say their validity")
}
