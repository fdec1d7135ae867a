//! What a tick did, by name, and how often.

/// What a tick did, by name; each has a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// No observation has come yet.
    #[default]
    NoObservation,
    /// The robot cannot be taken over where it is.
    StartRefused,
    /// An operator is in charge of the robot.
    TakenOver,
    /// Nobody receives commands: the robot's controller is not there, or is gone.
    NoController,
    /// No chunk has come yet.
    NoChunk,
    /// A chunk within its deadline was followed.
    Followed,
    /// A chunk past its deadline was followed.
    FollowedLate,
    /// The chunk's last action is over.
    ChunkEnded,
    /// The chunk is past its deadline, and late chunks are not executed.
    ChunkLate,
    /// The newest observation is too old.
    StaleObservation,
    /// The newest observation is fresh again, but no chunk has been made from it yet.
    AwaitingChunk,
    /// The chunk's actions have too old an observation.
    StaleChunk,
    /// The action is NaN or infinite.
    NonFinite,
    /// The action lies outside the position range, and the robot holds then.
    OutsideRange,
    /// The action lies outside the workspace, and the robot holds then.
    OutsideWorkspace,
    /// The action has the wrong size.
    WrongSize,
    /// A stop is latched, and the robot brakes.
    Braking,
    /// A stop is latched, and the robot is at rest.
    Stopped,
}

/// How often each thing happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ticks per outcome, indexed by `outcome as usize`.
    pub outcomes: [u64; Outcome::ALL.len()],
    /// Chunks that were taken up.
    pub chunks: u64,
    /// Chunks that were refused: older than what they would replace, or than the hold before them.
    pub chunks_refused: u64,
    /// Actions skipped because inference took longer than their time.
    pub actions_skipped: u64,
    /// Stops latched.
    pub stops: u64,
    /// Resets that unlatched a stop.
    pub resets: u64,
    /// Resets that came while nothing was stopped or the robot still braked.
    pub resets_ignored: u64,
    /// Mode changes.
    pub mode_changes: u64,
}

impl Outcome {
    /// All outcomes, in the order of their counters.
    pub const ALL: [Self; 18] = [
        Self::NoObservation,
        Self::StartRefused,
        Self::TakenOver,
        Self::NoController,
        Self::NoChunk,
        Self::Followed,
        Self::FollowedLate,
        Self::ChunkEnded,
        Self::ChunkLate,
        Self::StaleObservation,
        Self::AwaitingChunk,
        Self::StaleChunk,
        Self::NonFinite,
        Self::OutsideRange,
        Self::OutsideWorkspace,
        Self::WrongSize,
        Self::Braking,
        Self::Stopped,
    ];
}

impl Counts {
    /// Ticks that had this outcome.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }
}
