//! Camera images on their way in: checked, matched with each other and with the state by time, and kept for as long as the
//! policy looks back.
//!
//! An image is taken or refused by name ([`Refusal`]). The first camera leads: one of its images makes an observation
//! once every other camera and the state have something within the tolerance of its time. One that the next image of the
//! first camera finds unmatched is counted as out of sync and left ([`OutOfSync::Wait`]), or was used at once with what was
//! nearest and counted ([`OutOfSync::Nearest`]).
//!
//! Pure: time is an argument. Buffers of images are used again once nobody holds them.

use std::collections::VecDeque;
use std::sync::Arc;

use refrain_policies::camera::Channels;
use refrain_policies::preprocess::{Image, ImageError};
use serde::{Deserialize, Serialize};

use crate::clock::{Nanos, Reading, Time};
use crate::observation::{Origin, Refusal, Stamps, nearest};

/// Images kept per camera at most, for each observation step.
const OVERSAMPLING: usize = 8;

/// What happens to an image of the first camera that has no match in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutOfSync {
    /// It waits for its match, until the next image comes.
    #[default]
    Wait,
    /// It goes with what is nearest.
    Nearest,
}

/// One camera's images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lens {
    /// The camera's name.
    pub name: String,
    /// Height and width, pixels.
    pub size: [usize; 2],
    /// One channel, or three in any order.
    pub channels: Channels,
    /// An image without a stamp counts as taken when it arrives.
    pub arrival_is_stamp: bool,
    /// An image whose brightest byte is not above this is refused.
    pub black: Option<u8>,
    /// This many equal images in a row mean that the camera is frozen.
    pub frozen_after: Option<u32>,
}

/// What a [`Sight`] is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SightConfig {
    /// To: observations that the policy looks at.
    pub steps: usize,
    /// Nanoseconds between them.
    pub period: Nanos,
    /// Oldest that an image may be when it arrives.
    pub max_age: Nanos,
    /// How far in the future a stamp may lie.
    pub clock_tolerance: Nanos,
    /// How far apart images and state of one observation may be.
    pub tolerance: Nanos,
    /// What happens when they are further apart.
    pub out_of_sync: OutOfSync,
    /// In the policy's order.
    pub lenses: Vec<Lens>,
}

/// An image that was taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    size: [usize; 2],
    channels: Channels,
    bytes: Vec<u8>,
}

/// An image with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// When it was taken.
    pub time: Time,
    /// What was taken.
    pub pixels: Arc<Pixels>,
}

/// Takes images in.
pub struct Sight {
    config: SightConfig,
    lenses: Vec<LensState>,
    /// The first camera's image that the last observation was made of.
    completed: Option<Time>,
}

struct LensState {
    stamps: Stamps,
    history: VecDeque<(Time, Arc<Pixels>)>,
    /// How often the newest image came in a row.
    equal: u32,
    spare: Option<Arc<Pixels>>,
}

impl Lens {
    /// Whether an image is one of this camera's, whole, and not black.
    pub fn check(&self, image: &Image<'_>) -> Result<(), Refusal> {
        if [image.height, image.width] != self.size {
            return Err(Refusal::WrongSize);
        }
        if image.channels.count() != self.channels.count() {
            return Err(Refusal::WrongEncoding);
        }
        image.check().map_err(|error| match error {
            ImageError::Step { .. } => Refusal::WrongStep,
            _ => Refusal::Truncated,
        })?;
        match self.black {
            Some(limit) if is_dark(image, limit) => Err(Refusal::Black),
            _ => Ok(()),
        }
    }

    /// Whether so many equal images in a row are those of a frozen camera.
    pub fn is_frozen(&self, equal: u32) -> bool {
        self.frozen_after.is_some_and(|most| equal >= most.max(2))
    }
}

/// Whether no byte of a whole image is above `limit`.
pub fn is_dark(image: &Image<'_>, limit: u8) -> bool {
    let row = image.width * image.channels.count();
    let mut lines = image.pixels.chunks(image.step).take(image.height);
    lines.all(|line| line[..row].iter().all(|byte| *byte <= limit))
}

impl Pixels {
    /// As bytes without gaps.
    pub fn image(&self) -> Image<'_> {
        let [height, width] = self.size;
        let step = width * self.channels.count();
        Image { height, width, step, channels: self.channels, pixels: &self.bytes }
    }

    fn copy(&mut self, image: &Image<'_>) {
        self.size = [image.height, image.width];
        self.channels = image.channels;
        self.bytes.clear();
        let row = image.width * image.channels.count();
        for line in image.pixels.chunks(image.step).take(image.height) {
            self.bytes.extend_from_slice(&line[..row]);
        }
    }

    fn equals(&self, image: &Image<'_>) -> bool {
        let row = image.width * image.channels.count();
        let lines = image.pixels.chunks(image.step).take(image.height);
        self.channels == image.channels
            && self.size == [image.height, image.width]
            && self.bytes.chunks(row).zip(lines).all(|(a, b)| *a == b[..row])
    }
}

impl Snapshot {
    /// No image.
    pub fn none() -> Self {
        let pixels = Pixels { size: [0, 0], channels: Channels::Mono, bytes: Vec::new() };
        Self { time: Time::default(), pixels: Arc::new(pixels) }
    }
}

impl Sight {
    /// Nothing seen yet.
    pub fn new(config: SightConfig) -> Self {
        let lens = |_: &Lens| LensState {
            stamps: Stamps::default(),
            history: VecDeque::with_capacity(config.steps * OVERSAMPLING + 1),
            equal: 0,
            spare: None,
        };
        let lenses = config.lenses.iter().map(lens).collect();
        Self { config, lenses, completed: None }
    }

    /// How many cameras there are.
    pub fn cameras(&self) -> usize {
        self.lenses.len()
    }

    /// Takes one image in. `true` when it left the one before unmatched.
    pub fn accept(
        &mut self,
        camera: usize,
        origin: &Origin,
        image: &Image<'_>,
        now: Reading,
    ) -> Result<bool, Refusal> {
        let (lens, state) = (&self.config.lenses[camera], &mut self.lenses[camera]);
        lens.check(image)?;
        let c = &self.config;
        let time = state.stamps.check(origin, lens.arrival_is_stamp, c.max_age, c.clock_tolerance, now)?;
        if lens.frozen_after.is_some() {
            let same = state.history.back().is_some_and(|(_, last)| last.equals(image));
            state.equal = if same { state.equal.saturating_add(1) } else { 1 };
            if lens.is_frozen(state.equal) {
                state.stamps.note(origin, time, now);
                return Err(Refusal::Frozen);
            }
        }
        state.stamps.note(origin, time, now);
        let last = state.history.back().map(|(time, _)| *time);
        let oldest = time - c.steps as i64 * c.period;
        state.push(time, image, oldest, c.steps * OVERSAMPLING);
        Ok(camera == 0 && last.is_some() && last != self.completed)
    }

    /// The time of the observation that can be made now and could not before: that of its oldest part. `state` gives the
    /// time of the state that is nearest to a time. The second number is 1 if the parts are out of sync.
    pub fn complete(&mut self, state: impl Fn(Time) -> Option<Time>, now: Time) -> Option<(Time, u64)> {
        let lead = self.lenses.first()?.history.back()?.0;
        if self.completed == Some(lead) {
            return None;
        }
        let mut oldest = lead.min(state(lead)?);
        let mut apart = (lead - state(lead)?).abs();
        for lens in &self.lenses[1..] {
            let time = lens.at(lead, self.config.period)?.0;
            oldest = oldest.min(time);
            apart = apart.max((lead - time).abs());
        }
        let in_sync = apart <= self.config.tolerance;
        let usable = in_sync || self.config.out_of_sync == OutOfSync::Nearest;
        if !usable || now - oldest > self.config.max_age {
            return None;
        }
        self.completed = Some(lead);
        Some((oldest, u64::from(!in_sync)))
    }

    /// Writes the images of the last observation `[To, cameras]`, oldest first, and calls `state` with each step's time.
    pub fn look(&self, out: &mut [Snapshot], mut state: impl FnMut(usize, Time)) {
        let (Some(lead), Some(first)) = (self.completed, self.lenses.first()) else { return };
        for (step, row) in out.chunks_mut(self.lenses.len()).enumerate() {
            let wanted = lead - (self.config.steps - 1 - step) as i64 * self.config.period;
            let Some(time) = first.at(wanted, self.config.period).map(|(time, _)| *time) else { return };
            for (slot, lens) in row.iter_mut().zip(&self.lenses) {
                if let Some((time, pixels)) = lens.at(time, self.config.period) {
                    *slot = Snapshot { time: *time, pixels: Arc::clone(pixels) };
                }
            }
            state(step, time);
        }
    }
}

impl LensState {
    fn at(&self, wanted: Time, period: Nanos) -> Option<&(Time, Arc<Pixels>)> {
        self.history.get(nearest(&self.history, wanted, period)?)
    }

    fn push(&mut self, time: Time, image: &Image<'_>, oldest: Time, most: usize) {
        // One image before `oldest` stays, since it may be the nearest to it.
        while self.history.len() >= most || self.history.get(1).is_some_and(|(second, _)| *second <= oldest) {
            self.spare = self.history.pop_front().map(|(_, pixels)| pixels);
        }
        let mut pixels = self.spare.take().unwrap_or_else(|| Snapshot::none().pixels);
        match Arc::get_mut(&mut pixels) {
            Some(free) => free.copy(image),
            None => {
                let mut fresh = Pixels { size: [0, 0], channels: image.channels, bytes: Vec::new() };
                fresh.copy(image);
                pixels = Arc::new(fresh);
            }
        }
        self.history.push_back((time, pixels));
    }
}

#[cfg(test)]
#[path = "sight_tests.rs"]
mod tests;
