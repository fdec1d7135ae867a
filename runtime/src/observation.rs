//! Observations on their way in: checked, put together, and kept for as long as the policy looks back.
//!
//! A message is taken or refused by name ([`Refusal`]), and each refusal has a counter. Messages of several topics make
//! one observation when the first-named topic arrives; its time is that of its oldest part. The policy sees To
//! observations, one policy period apart: for each the one nearest to the wanted time; where that lies more than a period
//! back (a gap), or nothing is that old, the next newer one stands in. At the start that repeats the first observation,
//! as the public code's `MultiStepWrapper` does.
//!
//! Where there are cameras, their images decide when there is an observation ([`crate::sight`]); its numbers are those
//! nearest in time.
//!
//! Pure: time is an argument. Allocates only when made.

use std::collections::VecDeque;

use refrain_policies::preprocess::Image;

use crate::clock::{Nanos, Reading, Time, Wall};
use crate::control::Observed;
use crate::safety::{Joints, MAX_JOINTS};
use crate::sight::{Lens, Sight, SightConfig, Snapshot};

/// Why a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The bytes are not the message that the topic's type says.
    #[error("undecodable")]
    Undecodable,
    /// It has more or fewer numbers than configured.
    #[error("wrong size")]
    WrongSize,
    /// A configured joint is not in it.
    #[error("joint missing")]
    JointMissing,
    /// A number is NaN or infinite (or becomes so in single precision).
    #[error("non-finite")]
    NonFinite,
    /// It says neither when it was made nor is arrival time allowed.
    #[error("no stamp")]
    NoStamp,
    /// It has the sequence number of the one before.
    #[error("duplicate")]
    Duplicate,
    /// Its sequence number or time does not advance.
    #[error("out of order")]
    OutOfOrder,
    /// It was made too long ago.
    #[error("too old")]
    TooOld,
    /// It was made later than the clock tolerance allows.
    #[error("from the future")]
    FromTheFuture,
    /// An image in another encoding or of other channels than configured.
    #[error("wrong encoding")]
    WrongEncoding,
    /// An image whose rows are shorter than its pixels.
    #[error("wrong step")]
    WrongStep,
    /// An image with fewer bytes than its size needs.
    #[error("truncated")]
    Truncated,
    /// An image that shows nothing.
    #[error("black image")]
    Black,
    /// A camera that sends the same image again and again.
    #[error("frozen camera")]
    Frozen,
    /// An image of the first camera that other cameras or the state do not match in time.
    #[error("out of sync")]
    OutOfSync,
}

impl Refusal {
    /// All refusals, in the order of their counters.
    pub const ALL: [Self; 15] = [
        Self::Undecodable,
        Self::WrongSize,
        Self::JointMissing,
        Self::NonFinite,
        Self::NoStamp,
        Self::Duplicate,
        Self::OutOfOrder,
        Self::TooOld,
        Self::FromTheFuture,
        Self::WrongEncoding,
        Self::WrongStep,
        Self::Truncated,
        Self::Black,
        Self::Frozen,
        Self::OutOfSync,
    ];
}

/// Where a message came from and when it was made; from its header or attachment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Sequence number, per publisher.
    pub sequence: Option<i64>,
    /// The publisher.
    pub publisher: Option<[u8; 16]>,
    /// When it was made.
    pub stamp: Option<Wall>,
}

/// What one topic contributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// For each number of the message, its place in the observation `[O]`.
    pub places: Vec<usize>,
    /// A message without a stamp counts as made when it arrives.
    pub arrival_is_stamp: bool,
}

/// Where a joint's measured position is found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// At this place of the observation `[O]`.
    Measured(usize),
    /// Nowhere: it is taken to be here.
    Fixed(f64),
}

/// What an [`Intake`] is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct IntakeConfig {
    /// O: numbers per observation.
    pub size: usize,
    /// To: observations that the policy looks at.
    pub steps: usize,
    /// Nanoseconds between them.
    pub period: Nanos,
    /// Oldest that a message may be when it arrives.
    pub max_age: Nanos,
    /// How far in the future a stamp may lie.
    pub clock_tolerance: Nanos,
    /// One per topic; the first one's arrival completes an observation.
    pub parts: Vec<Part>,
    /// Per joint.
    pub starts: Vec<Start>,
    /// The cameras, if there are any; then their images decide when there is something new to look at.
    pub sight: Option<SightConfig>,
}

/// What the policy looks at.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Counts observations from 1; 0 is none.
    pub sequence: u64,
    /// When the newest one was made.
    pub time: Time,
    /// `[To, O]`, oldest first.
    pub values: Vec<f32>,
    /// `[To, cameras]`, oldest first.
    pub images: Vec<Snapshot>,
}

/// What was taken in so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages taken in, images among them.
    pub accepted: u64,
    /// Messages refused, in the order of [`Refusal::ALL`].
    pub refused: [u64; Refusal::ALL.len()],
    /// One per camera, in the policy's order.
    pub cameras: Vec<CameraCounts>,
}

/// What one camera sent so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CameraCounts {
    /// The camera's name.
    pub name: String,
    /// Images taken in.
    pub accepted: u64,
    /// Images refused.
    pub refused: u64,
    /// Images that came through shared memory.
    pub shared: u64,
}

/// Takes messages in.
pub struct Intake {
    config: IntakeConfig,
    parts: Vec<PartState>,
    history: VecDeque<(Time, Vec<f32>)>,
    sight: Option<Sight>,
    /// When the observation that is looked at was made.
    seen: Time,
    sequence: u64,
    counts: Counts,
}

struct PartState {
    values: Vec<f32>,
    stamps: Stamps,
}

/// What the messages of one topic said about themselves; the next one must be newer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stamps {
    time: Option<Time>,
    stamp: Option<Wall>,
    sequence: Option<i64>,
    publisher: Option<[u8; 16]>,
}

/// Observations kept: enough for To policy periods when they come up to this many times faster than the policy's rate.
const OVERSAMPLING: usize = 32;

impl Window {
    /// Nothing observed yet.
    pub fn none(config: &IntakeConfig) -> Self {
        let images = config.sight.as_ref().map_or(0, |sight| sight.steps * sight.lenses.len());
        Self {
            sequence: 0,
            time: Time::default(),
            values: vec![0.0; config.steps * config.size],
            images: vec![Snapshot::none(); images],
        }
    }
}

impl Intake {
    /// Nothing taken in yet.
    pub fn new(config: IntakeConfig) -> Self {
        let part =
            |part: &Part| PartState { values: vec![0.0; part.places.len()], stamps: Stamps::default() };
        let parts = config.parts.iter().map(part).collect();
        let history = VecDeque::with_capacity(config.steps * OVERSAMPLING);
        let sight = config.sight.clone().map(Sight::new);
        let camera = |lens: &Lens| CameraCounts { name: lens.name.clone(), ..CameraCounts::default() };
        let cameras = config.sight.iter().flat_map(|sight| &sight.lenses).map(camera).collect();
        let counts = Counts { cameras, ..Counts::default() };
        Self { config, parts, history, sight, seen: Time::default(), sequence: 0, counts }
    }

    /// Takes one message of topic `part` in. `true` when it completed an observation.
    pub fn accept(
        &mut self,
        part: usize,
        origin: &Origin,
        values: &[f64],
        now: Reading,
    ) -> Result<bool, Refusal> {
        match self.check(part, origin, values, now) {
            Ok(time) => {
                let state = &mut self.parts[part];
                for (slot, value) in state.values.iter_mut().zip(values) {
                    *slot = *value as f32;
                }
                state.stamps.note(origin, time, now);
                self.counts.accepted += 1;
                let completed = part == 0 && self.complete(now);
                Ok(if self.sight.is_some() { self.match_images(now) } else { completed })
            }
            Err(refusal) => {
                self.refuse(refusal);
                Err(refusal)
            }
        }
    }

    /// Takes one image of camera `camera` in. `true` when it completed an observation.
    pub fn see(
        &mut self,
        camera: usize,
        origin: &Origin,
        image: &Image<'_>,
        now: Reading,
    ) -> Result<bool, Refusal> {
        let Some(sight) = &mut self.sight else { return Ok(false) };
        match sight.accept(camera, origin, image, now) {
            Ok(left_unmatched) => {
                self.counts.accepted += 1;
                self.counts.cameras[camera].accepted += 1;
                if left_unmatched {
                    self.refuse(Refusal::OutOfSync);
                }
                Ok(self.match_images(now))
            }
            Err(refusal) => {
                self.refuse_image(camera, refusal);
                Err(refusal)
            }
        }
    }

    /// Counts an image of camera `camera` that could not even be read.
    pub fn refuse_image(&mut self, camera: usize, refusal: Refusal) {
        self.refuse(refusal);
        if let Some(counts) = self.counts.cameras.get_mut(camera) {
            counts.refused += 1;
        }
    }

    /// Counts an image of camera `camera` that came through shared memory.
    pub fn note_shared(&mut self, camera: usize) {
        if let Some(counts) = self.counts.cameras.get_mut(camera) {
            counts.shared += 1;
        }
    }

    /// Counts a message that could not even be read.
    pub fn refuse(&mut self, refusal: Refusal) {
        self.counts.refused[Refusal::ALL.iter().position(|r| *r == refusal).unwrap_or(0)] += 1;
    }

    /// What was taken in and refused so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Writes what the policy looks at now.
    pub fn window(&self, out: &mut Window) {
        let Some((newest, _)) = self.history.back() else { return };
        let size = self.config.size;
        out.sequence = self.sequence;
        if let Some(sight) = &self.sight {
            out.time = self.seen;
            let (images, values) = (&mut out.images, &mut out.values);
            sight.look(images, |step, time| {
                values[step * size..][..size].copy_from_slice(self.nearest(time));
            });
            return;
        }
        out.time = *newest;
        for (step, row) in out.values.chunks_mut(size).enumerate() {
            let back = (self.config.steps - 1 - step) as i64 * self.config.period;
            row.copy_from_slice(self.nearest(*newest - back));
        }
    }

    /// Where the robot is by the newest numbers, and when the newest observation was made.
    pub fn observed(&self) -> Observed {
        let Some((time, values)) = self.history.back() else { return Observed::NONE };
        let time = if self.sight.is_some() { &self.seen } else { time };
        let mut measured: Joints = [0.0; MAX_JOINTS];
        for (slot, start) in measured.iter_mut().zip(&self.config.starts) {
            *slot = match *start {
                Start::Measured(place) => f64::from(values[place]),
                Start::Fixed(value) => value,
            };
        }
        Observed { sequence: self.sequence, time: *time, measured }
    }

    /// When the message was made, if it may be taken.
    fn check(&self, part: usize, origin: &Origin, values: &[f64], now: Reading) -> Result<Time, Refusal> {
        let state = &self.parts[part];
        if values.len() != state.values.len() {
            return Err(Refusal::WrongSize);
        }
        if !values.iter().all(|value| (*value as f32).is_finite()) {
            return Err(Refusal::NonFinite);
        }
        let c = &self.config;
        state.stamps.check(origin, c.parts[part].arrival_is_stamp, c.max_age, c.clock_tolerance, now)
    }

    /// Whether there is something new to look at.
    fn match_images(&mut self, now: Reading) -> bool {
        let Some(mut sight) = self.sight.take() else { return false };
        let state = |time| nearest(&self.history, time, self.config.period).map(|i| self.history[i].0);
        let completed = sight.complete(state, now.time);
        self.sight = Some(sight);
        let Some((time, out_of_sync)) = completed else { return false };
        if out_of_sync > 0 {
            self.refuse(Refusal::OutOfSync);
        }
        self.seen = time;
        self.sequence += 1;
        true
    }

    /// Puts the newest parts together, if all are there and fresh.
    fn complete(&mut self, now: Reading) -> bool {
        let Some(time) = self.parts.iter().map(|part| part.stamps.time).min().flatten() else { return false };
        if now.time - time > self.config.max_age || self.history.back().is_some_and(|(last, _)| time <= *last)
        {
            return false;
        }
        let full = self.history.len() == self.history.capacity().max(1);
        let recycled = if full { self.history.pop_front() } else { None };
        let mut row = recycled.map_or_else(|| vec![0.0; self.config.size], |(_, row)| row);
        for (part, state) in self.config.parts.iter().zip(&self.parts) {
            for (place, value) in part.places.iter().zip(&state.values) {
                row[*place] = *value;
            }
        }
        self.history.push_back((time, row));
        if self.sight.is_none() {
            self.sequence += 1;
        }
        true
    }

    fn nearest(&self, wanted: Time) -> &[f32] {
        let place = nearest(&self.history, wanted, self.config.period);
        place.map_or(&[], |place| &self.history[place].1)
    }
}

impl Stamps {
    /// When the message was made, if it may be taken: it is newer than the last one, not too old and not from the future.
    pub fn check(
        &self,
        origin: &Origin,
        arrival_is_stamp: bool,
        max_age: Nanos,
        clock_tolerance: Nanos,
        now: Reading,
    ) -> Result<Time, Refusal> {
        let stamp = match origin.stamp {
            Some(stamp) => stamp,
            None if arrival_is_stamp => now.wall,
            None => return Err(Refusal::NoStamp),
        };
        if origin.publisher == self.publisher
            && let (Some(new), Some(old)) = (origin.sequence, self.sequence)
        {
            if new == old {
                return Err(Refusal::Duplicate);
            }
            if new < old {
                return Err(Refusal::OutOfOrder);
            }
        }
        let age = now.wall - stamp;
        if age > max_age {
            return Err(Refusal::TooOld);
        }
        if age < -clock_tolerance {
            return Err(Refusal::FromTheFuture);
        }
        let time = now.time_of(stamp);
        // By stamp and by monotonic time, so that neither a replayed stamp nor a clock step back gets through.
        if self.stamp.is_some_and(|last| stamp <= last) || self.time.is_some_and(|last| time <= last) {
            return Err(Refusal::OutOfOrder);
        }
        Ok(time)
    }

    /// Remembers a message that was made at `time`.
    pub fn note(&mut self, origin: &Origin, time: Time, now: Reading) {
        self.time = Some(time);
        self.stamp = origin.stamp.or(Some(now.wall));
        (self.sequence, self.publisher) = (origin.sequence, origin.publisher);
    }
}

/// Which element of a history is the nearest to the wanted time; where that lies more than `gap` back, the next newer one.
pub fn nearest<T>(history: &VecDeque<(Time, T)>, wanted: Time, gap: Nanos) -> Option<usize> {
    let after = history.partition_point(|(time, _)| *time <= wanted).min(history.len().checked_sub(1)?);
    let before = after.saturating_sub(1);
    let back = wanted - history[before].0;
    let near_before = back.abs() <= (history[after].0 - wanted).abs();
    Some(if near_before && back <= gap { before } else { after })
}

#[cfg(test)]
#[path = "observation_tests.rs"]
mod tests;
