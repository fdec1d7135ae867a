//! What is recorded, and how it looks to ROS tools: a struct's fields are the fields of its schema, in order.

use hiroz_cdr::LittleEndian;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::chunk::Chunk;
use crate::clock::Time;
use crate::control::{self, Command};
use crate::events;
use crate::observation::Window;
use crate::safety::MAX_JOINTS;

/// Encapsulation header: CDR, little-endian, no options.
const HEADER: [u8; 4] = [0, 1, 0, 0];

/// An observation as the control loop may see it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Counts from 1.
    pub sequence: u64,
    /// When it was made.
    pub time: i64,
    /// Where the joints are.
    pub measured: Vec<f64>,
}

/// A prediction and what it was made from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Inference {
    /// Sequence number of the newest observation in the window.
    pub window: u64,
    /// When that was made.
    pub time: i64,
    /// Whether a chunk was being executed meanwhile.
    pub executing: bool,
    /// Until when; 0 if none was.
    pub committed: i64,
    /// How long it took, nanoseconds.
    pub span: i64,
    /// The plan that it ran on; 0 is the best-scoring of the ladder.
    pub rung: u32,
    /// Whether there is a chunk; everything below is empty if not.
    pub done: bool,
    /// Counts chunks from 1.
    pub chunk: u64,
    /// When it was ready.
    pub ready: i64,
    /// Nanoseconds between actions.
    pub action_period: i64,
    /// Numbers per action.
    pub joints: u32,
    /// The window, `[To, O]`.
    pub observations: Vec<f32>,
    /// For a policy with cameras, what the denoiser was given, `[To, F + O]`; empty otherwise, and if encoding failed.
    pub condition: Vec<f32>,
    /// `[steps, joints]`.
    pub actions: Vec<f64>,
}

/// A tick: what it saw, what it decided, how it went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tick {
    /// Counts from 1.
    pub sequence: u64,
    /// When it ran.
    pub time: i64,
    /// When it was due.
    pub due: i64,
    /// How long it worked, nanoseconds.
    pub work: i64,
    /// Deadlines missed after it.
    pub missed: u64,
    /// The newest chunk and observation that it saw.
    pub seen_chunk: u64,
    /// See above.
    pub seen_observation: u64,
    /// Stops and resets asked for so far.
    pub stops: u64,
    /// See above.
    pub resets: u64,
    /// Whether an operator was in charge.
    pub operator: bool,
    /// Whether somebody received the commands.
    pub controller: bool,
    /// Mode after it.
    pub mode: String,
    /// What it did.
    pub outcome: String,
    /// Whether a stop is latched.
    pub latched: bool,
    /// Whether the command is to be sent.
    pub send: bool,
    /// The chunk that the command comes from; 0 for none.
    pub chunk: u64,
    /// Index of its action.
    pub action: u32,
    /// When its observation was made.
    pub observation: i64,
    /// Until when it may be acted on.
    pub valid_until: i64,
    /// The command.
    pub values: Vec<f64>,
    /// How fast it changes.
    pub rates: Vec<f64>,
}

/// A step of the ladder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// When.
    pub time: i64,
    /// From this plan.
    pub from: u32,
    /// To this one.
    pub to: u32,
    /// Its schedule.
    pub schedule: String,
    /// Why.
    pub why: String,
}

/// A command of whoever is in charge beside the one made here, in shadow mode.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shadow {
    /// When theirs came.
    pub time: i64,
    /// The tick that ours is of.
    pub tick: u64,
    /// The command made here.
    pub ours: Vec<f64>,
    /// The command that the robot got.
    pub theirs: Vec<f64>,
}

/// Any of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// See [`Observation`].
    Observation(Observation),
    /// See [`Inference`].
    Inference(Inference),
    /// See [`Tick`].
    Tick(Tick),
    /// See [`Plan`].
    Plan(Plan),
    /// See [`Shadow`].
    Shadow(Shadow),
}

impl Message {
    /// Topic, type and schema of every kind, in the order of [`Message::kind`].
    pub(super) const KINDS: [[&'static str; 3]; 5] = [
        ["observation", "refrain/msg/Observation", "uint64 sequence\nint64 time\nfloat64[] measured\n"],
        [
            "inference",
            "refrain/msg/Inference",
            "uint64 window\nint64 time\nbool executing\nint64 committed\nint64 span\nuint32 rung\nbool done\n\
             uint64 chunk\nint64 ready\nint64 action_period\nuint32 joints\nfloat32[] observations\n\
             float32[] condition\nfloat64[] actions\n",
        ],
        [
            "tick",
            "refrain/msg/Tick",
            "uint64 sequence\nint64 time\nint64 due\nint64 work\nuint64 missed\nuint64 seen_chunk\n\
             uint64 seen_observation\nuint64 stops\nuint64 resets\nbool operator\nbool controller\nstring mode\nstring outcome\n\
             bool latched\nbool send\nuint64 chunk\nuint32 action\nint64 observation\nint64 valid_until\nfloat64[] values\n\
             float64[] rates\n",
        ],
        ["plan", "refrain/msg/Plan", "int64 time\nuint32 from\nuint32 to\nstring schedule\nstring why\n"],
        ["shadow", "refrain/msg/Shadow", "int64 time\nuint64 tick\nfloat64[] ours\nfloat64[] theirs\n"],
    ];

    /// Which of the kinds it is.
    pub(super) fn kind(&self) -> usize {
        match self {
            Self::Observation(_) => 0,
            Self::Inference(_) => 1,
            Self::Tick(_) => 2,
            Self::Plan(_) => 3,
            Self::Shadow(_) => 4,
        }
    }

    /// The moment that it is about.
    pub fn time(&self) -> Time {
        Time::from_nanos(match self {
            Self::Observation(m) => m.time,
            Self::Inference(m) => m.time,
            Self::Tick(m) => m.time,
            Self::Plan(m) => m.time,
            Self::Shadow(m) => m.time,
        })
    }

    /// As CDR.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let body = match self {
            Self::Observation(m) => bytes(m),
            Self::Inference(m) => bytes(m),
            Self::Tick(m) => bytes(m),
            Self::Plan(m) => bytes(m),
            Self::Shadow(m) => bytes(m),
        };
        out.clear();
        out.extend_from_slice(&HEADER);
        out.extend_from_slice(&body);
    }

    /// From CDR; `None` for an unknown topic or bytes that are not its message.
    pub fn decode(topic: &str, bytes: &[u8]) -> Option<Self> {
        let body = bytes.strip_prefix(&HEADER)?;
        match topic {
            "observation" => read(body).map(Self::Observation),
            "inference" => read(body).map(Self::Inference),
            "tick" => read(body).map(Self::Tick),
            "plan" => read(body).map(Self::Plan),
            "shadow" => read(body).map(Self::Shadow),
            _ => None,
        }
    }
}

fn bytes(message: &impl Serialize) -> Vec<u8> {
    // Numbers, strings and lists of numbers can always be written.
    hiroz_cdr::to_vec::<_, LittleEndian>(message, 512).unwrap_or_default()
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    hiroz_cdr::from_bytes::<T, LittleEndian>(body).ok().map(|(message, _)| message)
}

impl Observation {
    /// As observed; `joints` is how many the robot has.
    pub fn of(observed: &control::Observed, joints: usize) -> Self {
        let measured = observed.measured[..joints].to_vec();
        Self { sequence: observed.sequence, time: observed.time.nanos(), measured }
    }

    /// As the control loop sees it.
    pub fn observed(&self) -> control::Observed {
        let mut measured = [0.0; MAX_JOINTS];
        measured.iter_mut().zip(&self.measured).for_each(|(slot, value)| *slot = *value);
        control::Observed { sequence: self.sequence, time: Time::from_nanos(self.time), measured }
    }
}

impl Inference {
    /// What is known before the prediction.
    pub fn from_window(window: &Window, committed: Option<Time>, rung: usize) -> Self {
        Self {
            window: window.sequence,
            time: window.time.nanos(),
            executing: committed.is_some(),
            committed: committed.map_or(0, Time::nanos),
            rung: rung as u32,
            observations: window.values.clone(),
            ..Self::default()
        }
    }

    /// What the denoiser was given.
    pub fn with_condition(self, condition: &[f32]) -> Self {
        Self { condition: condition.to_vec(), ..self }
    }

    /// The chunk that came of it.
    pub fn with_chunk(self, chunk: &Chunk) -> Self {
        Self {
            done: true,
            chunk: chunk.sequence,
            ready: chunk.ready.nanos(),
            action_period: chunk.action_period,
            joints: chunk.joints as u32,
            actions: chunk.actions[..chunk.steps * chunk.joints].to_vec(),
            ..self
        }
    }

    /// The chunk that came of it, if one did.
    pub fn as_chunk(&self) -> Option<Chunk> {
        let joints = self.joints as usize;
        let sound =
            self.done && joints > 0 && self.actions.len().is_multiple_of(joints) && self.action_period > 0;
        sound.then(|| Chunk {
            sequence: self.chunk,
            observation: Time::from_nanos(self.time),
            ready: Time::from_nanos(self.ready),
            action_period: self.action_period,
            steps: self.actions.len() / joints,
            joints,
            actions: self.actions.clone(),
        })
    }

    /// The window that it was made from; images are not recorded.
    pub fn as_window(&self) -> Window {
        let time = Time::from_nanos(self.time);
        Window { sequence: self.window, time, values: self.observations.clone(), images: Vec::new() }
    }

    /// Until when the chunk before it was executed.
    pub fn as_committed(&self) -> Option<Time> {
        self.executing.then(|| Time::from_nanos(self.committed))
    }
}

impl Tick {
    /// As the control thread told it.
    pub fn of(tick: &events::Tick) -> Self {
        Self {
            due: tick.due.nanos(),
            work: tick.work,
            missed: tick.missed,
            seen_chunk: tick.seen.chunk,
            seen_observation: tick.seen.observation,
            stops: tick.seen.stops,
            resets: tick.seen.resets,
            operator: tick.seen.operator,
            controller: tick.seen.controller,
            ..Self::commanded(&tick.command)
        }
    }

    /// The same tick with the command that it gives now.
    pub fn again(&self, command: &Command) -> Self {
        Self {
            due: self.due,
            work: self.work,
            missed: self.missed,
            seen_chunk: self.seen_chunk,
            seen_observation: self.seen_observation,
            stops: self.stops,
            resets: self.resets,
            operator: self.operator,
            controller: self.controller,
            ..Self::commanded(command)
        }
    }

    fn commanded(command: &Command) -> Self {
        Self {
            sequence: command.sequence,
            time: command.time.nanos(),
            mode: format!("{:?}", command.mode),
            outcome: format!("{:?}", command.outcome),
            latched: command.latched,
            send: command.send,
            chunk: command.chunk,
            action: command.action as u32,
            observation: command.observation.nanos(),
            valid_until: command.valid_until.nanos(),
            values: command.values[..command.joints].to_vec(),
            rates: command.rates[..command.joints].to_vec(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_bit_by_bit() {
        let tick = Tick {
            sequence: 7,
            mode: "Running".into(),
            values: vec![0.1, f64::NAN, -0.0],
            rates: vec![f64::INFINITY],
            ..Tick::default()
        };
        let inference = Inference {
            done: true,
            joints: 2,
            action_period: 1,
            actions: vec![1.0; 4],
            ..Inference::default()
        };
        for message in [Message::Tick(tick), Message::Inference(inference), Message::Plan(Plan::default())] {
            let (mut bytes, mut again) = (Vec::new(), Vec::new());
            message.encode(&mut bytes);
            let topic = Message::KINDS[message.kind()][0];
            Message::decode(topic, &bytes).unwrap().encode(&mut again);
            assert_eq!(bytes, again);
            for cut in 0..bytes.len().min(40) {
                assert_eq!(Message::decode(topic, &bytes[..cut]), None, "cut at {cut}");
            }
        }
        assert_eq!(Message::decode("tick", &[0, 1, 0, 0, 1]), None);
        assert_eq!(Message::decode("other", &HEADER), None);
    }

    /// The layout by hand, from the ROS 2 interface definition: every number aligned to its size after the header.
    #[test]
    fn an_observation_is_laid_out_as_ros_does() {
        let mut bytes = Vec::new();
        Message::Observation(Observation { sequence: 1, time: -2, measured: vec![0.5] }).encode(&mut bytes);
        let mut expected = vec![0, 1, 0, 0];
        expected.extend(1_u64.to_le_bytes());
        expected.extend((-2_i64).to_le_bytes());
        expected.extend(1_u32.to_le_bytes());
        expected.extend([0; 4]);
        expected.extend(0.5_f64.to_le_bytes());
        assert_eq!(bytes, expected);
    }
}
