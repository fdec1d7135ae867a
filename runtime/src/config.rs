//! `robot.toml`: which policy runs on which robot, how fast, within which limits, over which topics.
//!
//! Unknown keys are refused. [`RobotConfig::resolve`] checks the file against the policy, reports everything that is wrong
//! at once, and gives what the threads are made from ([`Robot`]). Limits are required for every joint: there is no
//! unlimited default. A commented example lies in `examples/pusht/robot.toml`.

pub mod fields;
mod mapping;
mod resolve;
pub mod vision;
mod workspace;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::vision::{CameraTopic, VisionSection};
use crate::chunk::Interpolation;
use crate::clock::Nanos;
use crate::control::{ControlConfig, Late};
use crate::join::Join;
use crate::observation::IntakeConfig;
use crate::planner::Replan;
use crate::safety;
use crate::threads::Scheduling;

pub use mapping::{
    BusSection, CommandKind, CommandWriting, Convention, JointField, MessageKind, MessageReading,
    StampChoice, Topic, TopicSection,
};
pub use workspace::WorkspaceSection;

/// The `format` this version reads.
pub const FORMAT: u32 = 1;

/// The content of `robot.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RobotConfig {
    /// File format version, [`FORMAT`].
    pub format: u32,
    /// The robot's name: the first part of the stop and reset keys unless they are given.
    pub name: String,
    /// What runs.
    pub policy: PolicySection,
    /// The control loop.
    pub control: ControlSection,
    /// When chunks are made, and what happens when they are late.
    #[serde(default)]
    pub chunk: ChunkSection,
    /// What comes in.
    pub observation: ObservationSection,
    /// Where images come from, if the policy sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision: Option<VisionSection>,
    /// What goes out.
    pub action: ActionSection,
    /// How it travels.
    #[serde(default)]
    pub bus: BusSection,
    /// What is recorded; without it, nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<RecordSection>,
    /// What can be watched; without it, nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsSection>,
}

/// `[record]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordSection {
    /// Folder of the recordings, relative to this file.
    pub folder: PathBuf,
    /// Largest file, MB.
    #[serde(default = "default_file_mb")]
    pub file_mb: u64,
    /// Files kept; the oldest are deleted.
    #[serde(default = "default_files")]
    pub files: usize,
}

/// `[metrics]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsSection {
    /// Where Prometheus text is served over HTTP, on loopback.
    #[serde(default = "default_metrics")]
    pub listen: std::net::SocketAddr,
}

/// `[policy]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicySection {
    /// The policy package's folder, relative to this file.
    pub path: PathBuf,
    /// Which engine runs it.
    #[serde(default)]
    pub engine: EngineChoice,
    /// SHA-256 of the package's content, lowercase hex; another content is refused. It is what
    /// `refrain_policies::package::Package::content_sha256` says, and what `find . -type f` in the package's folder,
    /// `sort` and `sha256sum` give; see there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Name of a schedule of the package, or `full`; `auto` is the best-scoring one whose p99 on this machine fits the
    /// chunk deadline, with the faster ones as its ladder.
    #[serde(default = "full")]
    pub schedule: String,
    /// Schedules to step down to, one after the other, before deadlines are missed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ladder: Vec<String>,
    /// Seed of the noise.
    #[serde(default)]
    pub seed: u64,
}

/// Which engine runs the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum EngineChoice {
    /// The GPU where there is one, else the CPU; falling back is reported.
    #[default]
    Auto,
    /// The GPU, or an error.
    Gpu,
    /// The CPU.
    Cpu,
}

/// `[control]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlSection {
    /// Ticks per second, 10 to 1000.
    pub rate_hz: f64,
    /// From the policy's rate to the control rate.
    pub interpolation: Interpolation,
    /// `SCHED_FIFO` priority of the control thread, 1 to 99; without it, ordinary scheduling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// The only CPU that the control thread runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<usize>,
    /// Lock the process's memory.
    #[serde(default)]
    pub lock_memory: bool,
    /// Keep processors out of deep sleep, from which they wake late.
    #[serde(default)]
    pub stay_awake: bool,
}

/// `[chunk]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkSection {
    /// A new chunk is made from the first observation this many actions after the last one's; without it, Ta. 1 is as
    /// often as observations and inference allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replan_after: Option<usize>,
    /// Instead: this many chunks per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replan_hz: Option<f64>,
    /// Instead: as fast as inference allows.
    #[serde(default)]
    pub replan_always: bool,
    /// How one chunk follows another.
    #[serde(default)]
    pub join: Join,
    /// Oldest a chunk's observation may be, in milliseconds; without it, the time of `replan_after` + 2 actions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<f64>,
    /// What happens to a chunk past its deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<Late>,
}

/// `[observation]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObservationSection {
    /// Oldest that the newest observation may be, in milliseconds; older, and the robot holds.
    pub max_age_ms: f64,
    /// How far in the future an observation's stamp may lie, in milliseconds.
    #[serde(default = "default_tolerance")]
    pub clock_tolerance_ms: f64,
    /// Where observations come from; together the topics give every element once. The first one's arrival completes
    /// an observation.
    pub topics: Vec<TopicSection>,
}

/// `[action]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionSection {
    /// A command here every tick.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_topic: Option<String>,
    /// The command's message type.
    #[serde(rename = "command_type", default)]
    pub command_kind: CommandKind,
    /// For stamped commands: the `frame_id` of their header.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command_frame: String,
    /// Nothing is commanded: what somebody else commands on `command_topic` is compared with what would have been
    /// commanded here. The daemon's own topics are then under `NAME/shadow`.
    #[serde(default)]
    pub shadow: bool,
    /// A `trajectory_msgs/JointTrajectory` here for every chunk, and one that holds when there is nothing to execute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trajectory_topic: Option<String>,
    /// Key expression of the zenoh liveliness token that the controller holds; nothing is sent while it is not there.
    /// Without it, whoever subscribes counts as the controller, a recorder too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<String>,
    /// How long a command is valid, in milliseconds.
    #[serde(default = "default_validity")]
    pub valid_ms: f64,
    /// What happens to actions outside a joint's position range.
    #[serde(default)]
    pub outside: OutsideChoice,
    /// The box that position elements together stay in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspaceSection>,
    /// Action elements that are a rotation together: six (the first two rows of its matrix) or four (quaternion x, y, z,
    /// w). They are interpolated as one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rotations: Vec<Vec<String>>,
    /// One per action element, in any order.
    pub joints: Vec<JointSection>,
}

/// What happens to actions outside a joint's position range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutsideChoice {
    /// The nearest position inside is used.
    #[default]
    Clamp,
    /// The robot holds.
    Hold,
}

/// `[[action.joints]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JointSection {
    /// The policy's action element.
    pub name: String,
    /// The robot's joint, if it is called otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joint: Option<String>,
    /// What its numbers mean.
    #[serde(default)]
    pub kind: KindChoice,
    /// Lowest and highest position, in the action's unit u; for velocity joints left out, for discrete ones the two values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<[f64; 2]>,
    /// Of discrete joints: at most the first is the low value, at least the second the high one, and between the two the
    /// value before stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thresholds: Option<[f64; 2]>,
    /// Largest speed, u/s; for discrete joints left out.
    #[serde(default)]
    pub velocity: f64,
    /// Largest acceleration, u/s^2; for discrete joints left out.
    #[serde(default)]
    pub acceleration: f64,
    /// The observation element that measures it, in the action's unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<String>,
    /// Where it starts, if nothing measures it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<f64>,
    /// For stamped commands: the message's number that it sets, by name ([`fields`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// What a joint's numbers mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KindChoice {
    /// Positions.
    #[default]
    Position,
    /// Velocities.
    Velocity,
    /// One of two values, such as a gripper's.
    Discrete,
}

/// A checked configuration: what the threads are made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Robot {
    /// The robot's name.
    pub name: String,
    /// Seed of the noise.
    pub seed: u64,
    /// Which run of that seed; 0 unless somebody counts them.
    pub episode: u64,
    /// The control loop.
    pub control: ControlConfig,
    /// What the control thread asks for.
    pub scheduling: Scheduling,
    /// Whether memory is locked.
    pub lock_memory: bool,
    /// Whether processors stay awake.
    pub stay_awake: bool,
    /// When chunks are made.
    pub replan: Replan,
    /// How one follows another.
    pub join: Join,
    /// How long a prediction may take for its chunk, and the one before it, to be in time.
    pub budget: Nanos,
    /// Nanoseconds between actions.
    pub action_period: Nanos,
    /// Checks and mapping of observations.
    pub intake: IntakeConfig,
    /// One per part of an observation.
    pub topics: Vec<Topic>,
    /// One per camera of the policy.
    pub cameras: Vec<CameraTopic>,
    /// The robot's joint of each action element.
    pub joints: Vec<String>,
    /// Where commands go.
    pub command_topic: Option<String>,
    /// How commands are written.
    pub command: CommandWriting,
    /// Whether nothing is commanded, and what others command is compared instead.
    pub shadow: bool,
    /// Where trajectories go.
    pub trajectory_topic: Option<String>,
    /// Whose liveliness token says that the controller is there; `None` when any subscriber does.
    pub controller: Option<String>,
    /// What stops.
    pub stop_topic: String,
    /// What resets.
    pub reset_topic: String,
    /// What does both.
    pub enable_service: String,
    /// Where health goes.
    pub diagnostics_topic: String,
    /// Where the mode goes.
    pub mode_topic: String,
    /// What puts an operator in charge.
    pub takeover_topic: String,
    /// What puts the policy in charge again.
    pub handback_topic: String,
    /// How it travels.
    pub bus: BusSection,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's words.
        source: std::io::Error,
    },
    /// It is not TOML, misses a key, or has one that is not known.
    #[error("robot.toml: {0}")]
    Parse(#[from] toml::de::Error),
    /// It says something that cannot be.
    #[error("robot.toml has {} problem(s):\n  {}", .0.len(), .0.join("\n  "))]
    Problems(Vec<String>),
}

impl RobotConfig {
    /// Reads a file. Paths in it become relative to its folder.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config = Self::parse(&text)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        config.policy.path = folder.join(&config.policy.path);
        if let Some(record) = &mut config.record {
            record.folder = folder.join(&record.folder);
        }
        config.bus.zenoh_file = config.bus.zenoh_file.map(|file| folder.join(file));
        Ok(config)
    }

    /// Reads a file's text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        Ok(toml::from_str(text)?)
    }
}

impl From<OutsideChoice> for safety::Outside {
    fn from(choice: OutsideChoice) -> Self {
        match choice {
            OutsideChoice::Clamp => Self::Clamp,
            OutsideChoice::Hold => Self::Hold,
        }
    }
}

fn full() -> String {
    "full".into()
}

fn default_file_mb() -> u64 {
    256
}

fn default_files() -> usize {
    8
}

fn default_metrics() -> std::net::SocketAddr {
    ([127, 0, 0, 1], 9464).into()
}

fn default_tolerance() -> f64 {
    5.0
}

fn default_validity() -> f64 {
    100.0
}

#[cfg(test)]
mod tests;
