//! The robot computer's end: arming, heartbeats, the device's clock, chunks into frames.
//!
//! ```text
//!   Searching ── a state ──▶ Syncing ── the clock is known well enough ──▶ Disarmed ── arm, confirmed ──▶ Armed
//!       ▲                                                                     ▲  │                          │
//!       │ no state for the timeout, from anywhere                             │  └──── Faulted ◀── a fault ─┤
//!       │                                                                     └────────── stop, reset ──────┘
//! ```
//!
//! [`Host::arm`] makes one request, for the epoch that the device is in. It is repeated with every heartbeat until the
//! device's epoch changes, and never made again by itself: after a fault or a reset somebody must ask anew.
//!
//! What it does not do: limit motion (the device does, and the runtime before), or read a port.

use super::clock::Clock;
use super::skipped;
use crate::wire::{
    CommandRepr, Error, FaultRepr, FaultView, Header, HeartbeatRepr, Kind, MAX_VALUES, Mode, Request,
    StateRepr, StateView, header,
};
use core::fmt;

/// How a host is set up. All times in µs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// Joints of the robot; the device must have as many.
    pub joints: u8,
    /// Time between heartbeats: at most a third of the device's deadman time.
    pub heartbeat_period_us: u64,
    /// A device that sends no state for longer than this is gone.
    pub state_timeout_us: u64,
    /// Chunks are sent only while the device's clock is known to this.
    pub max_clock_error_us: u64,
    /// How fast the clocks may part, parts per million.
    pub clock_drift_ppm: u32,
}

/// Where the link stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// No device is heard.
    Searching,
    /// A device is heard; its clock is not known well enough.
    Syncing,
    /// The device can be armed.
    Disarmed,
    /// The device obeys this host.
    Armed,
    /// A fault is latched; the device can be armed again.
    Faulted,
}

/// One action chunk, in the host's time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chunk<'a> {
    /// The chunk's number.
    pub id: u32,
    /// When the observation was taken, µs.
    pub observation_us: u64,
    /// When point 0 is due, µs.
    pub start_us: u64,
    /// From when on the device holds, µs.
    pub valid_until_us: u64,
    /// Time between points, µs, not 0.
    pub step_us: u32,
    /// Positions `[point][joint]`, rad.
    pub values: &'a [f32],
}

/// Why a chunk was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// The link is not [`Link::Armed`] but this.
    NotArmed(Link),
    /// Its validity is over.
    Expired,
    /// It cannot be a frame.
    Wire(Error),
}

impl fmt::Display for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotArmed(link) => {
                write!(f, "chunk not sent: link expected Armed, got {link:?}; arm the device")
            }
            Self::Expired => f.write_str("chunk not sent: its validity is over; the policy is too slow"),
            Self::Wire(error) => write!(f, "chunk not sent: {error}"),
        }
    }
}

impl core::error::Error for Unsent {}

/// What a received frame told.
#[expect(clippy::large_enum_variant, reason = "there is no heap to box the state on")]
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// The device's state.
    State(StateRepr),
    /// A fault latched.
    Fault(FaultRepr),
}

/// What the host counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames dropped for framing, CRC or contents, or from a device with another number of joints.
    pub bad: u32,
    /// Gaps in the device's sequence.
    pub lost: u32,
    /// Duplicates and frames that were overtaken.
    pub old: u32,
    /// Times that the device started anew.
    pub resets: u32,
}

/// The host's end of the link.
#[derive(Clone, Debug)]
pub struct Host {
    config: HostConfig,
    session: u32,
    sequence: u32,
    pending: Option<Pending>,
    heartbeat_due_us: u64,
    clock: Clock,
    device: Option<Device>,
    counters: Counters,
}

/// A request that the device has not answered yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    request: Request,
    epoch: u32,
    since_us: u64,
}

/// What is known of the device.
#[derive(Clone, Copy, Debug)]
struct Device {
    session: u32,
    sequence: u32,
    epoch: u32,
    mode: Mode,
    obeys: u32,
    heard_us: u64,
}

impl Host {
    /// Starts, hearing nothing. `session` must differ from one start to the next; 0 is taken as 1.
    pub fn new(config: HostConfig, session: u32) -> Self {
        Self {
            config,
            session: session.max(1),
            sequence: 0,
            pending: None,
            heartbeat_due_us: 0,
            clock: Clock::new(config.clock_drift_ppm),
            device: None,
            counters: Counters::default(),
        }
    }

    /// Where the link stands.
    pub fn link(&self, now_us: u64) -> Link {
        let Some(device) = self.heard(now_us) else { return Link::Searching };
        if self.clock.error_us(now_us).is_none_or(|error| error > self.config.max_clock_error_us) {
            return Link::Syncing;
        }
        match device.mode {
            Mode::Faulted => Link::Faulted,
            mode if mode.is_armed() && device.obeys == self.session => Link::Armed,
            _ => Link::Disarmed,
        }
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The session of the device last heard.
    pub fn device_session(&self) -> Option<u32> {
        self.device.map(|device| device.session)
    }

    /// The estimate of the device's clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Asks the device, once and for its present epoch, to arm. Gives whether it can be asked: the link must be
    /// [`Link::Disarmed`] or [`Link::Faulted`].
    pub fn arm(&mut self, now_us: u64) -> bool {
        let link = self.link(now_us);
        let (true, Some(device)) = (matches!(link, Link::Disarmed | Link::Faulted), self.device) else {
            return false;
        };
        self.pending = Some(Pending { request: Request::Arm, epoch: device.epoch, since_us: now_us });
        self.heartbeat_due_us = now_us;
        true
    }

    /// Asks the device to stop, with every heartbeat until it says, having heard one, that it is not armed.
    pub fn stop(&mut self, now_us: u64) {
        let epoch = self.device.map_or(0, |device| device.epoch);
        self.pending = Some(Pending { request: Request::Stop, epoch, since_us: now_us });
        self.heartbeat_due_us = now_us;
    }

    /// Takes what a [`Deframer`](crate::wire::framing::Deframer) found: a frame, or bytes that are none.
    pub fn receive_framed(&mut self, now_us: u64, found: Result<&[u8], Error>) -> Option<Event> {
        match found {
            Ok(frame) => self.receive(now_us, frame),
            Err(_) => self.count_bad(),
        }
    }

    /// Takes one frame, checked here.
    pub fn receive(&mut self, now_us: u64, frame: &[u8]) -> Option<Event> {
        match header::kind(frame) {
            Ok(Kind::State) => match StateView::new_checked(frame) {
                Ok(view) => self.state(now_us, StateRepr::parse(&view)),
                Err(_) => self.count_bad(),
            },
            Ok(Kind::Fault) => match FaultView::new_checked(frame) {
                Ok(view) => {
                    let fault = FaultRepr::parse(&view);
                    self.follow(now_us, fault.header)?;
                    Some(Event::Fault(fault))
                }
                Err(_) => self.count_bad(),
            },
            Ok(Kind::Command | Kind::Heartbeat) | Err(_) => self.count_bad(),
        }
    }

    /// The heartbeat, when one is due, written into `buffer`; gives its length. Call until it gives `None`.
    pub fn poll_transmit(&mut self, now_us: u64, buffer: &mut [u8]) -> Option<usize> {
        if now_us < self.heartbeat_due_us {
            return None;
        }
        // From the previous deadline, so that the period does not drift; from now when that is long past.
        self.heartbeat_due_us = self.heartbeat_due_us.saturating_add(self.config.heartbeat_period_us);
        if self.heartbeat_due_us <= now_us {
            self.heartbeat_due_us = now_us.saturating_add(self.config.heartbeat_period_us);
        }
        let (request, epoch) = match self.pending {
            Some(pending) => (pending.request, pending.epoch),
            None => (Request::None, self.device.map_or(0, |device| device.epoch)),
        };
        let header = self.next_header(now_us, epoch);
        HeartbeatRepr { header, request }.emit(buffer).ok()
    }

    /// Writes a chunk as a command into `buffer`, in the device's time; gives its length.
    ///
    /// # Errors
    /// The device does not obey this host, the chunk is out of date, or it cannot be a frame. Nothing was written.
    pub fn command(&mut self, now_us: u64, chunk: &Chunk<'_>, buffer: &mut [u8]) -> Result<usize, Unsent> {
        let link = self.link(now_us);
        let (Link::Armed, Some(device)) = (link, self.device) else { return Err(Unsent::NotArmed(link)) };
        if chunk.valid_until_us <= now_us {
            return Err(Unsent::Expired);
        }
        let joints = usize::from(self.config.joints);
        let count = chunk.values.len();
        let points = count.checked_div(joints).and_then(|points| u16::try_from(points).ok()).unwrap_or(0);
        if count.checked_rem(joints) != Some(0) {
            return Err(Unsent::Wire(Error::Joints(self.config.joints)));
        }
        let mut values = [0.0; MAX_VALUES];
        if count > MAX_VALUES {
            return Err(Unsent::Wire(Error::Points(points)));
        }
        for (slot, value) in values.iter_mut().zip(chunk.values) {
            *slot = *value;
        }
        let device_time = |host_us| self.clock.to_device(host_us).unwrap_or(0);
        let (observation_us, start_us) = (device_time(chunk.observation_us), device_time(chunk.start_us));
        let valid_until_us = device_time(chunk.valid_until_us);
        let (chunk, step_us) = (chunk.id, chunk.step_us);
        let header = self.next_header(now_us, device.epoch);
        CommandRepr { header, chunk, points, observation_us, start_us, valid_until_us, step_us, values }
            .emit(buffer)
            .map_err(Unsent::Wire)
    }

    fn heard(&self, now_us: u64) -> Option<Device> {
        self.device.filter(|device| now_us.saturating_sub(device.heard_us) <= self.config.state_timeout_us)
    }

    fn count_bad(&mut self) -> Option<Event> {
        self.counters.bad = self.counters.bad.saturating_add(1);
        None
    }

    fn next_header(&mut self, now_us: u64, epoch: u32) -> Header {
        self.sequence = self.sequence.wrapping_add(1);
        let Self { session, sequence, .. } = *self;
        Header { joints: self.config.joints, sequence, session, epoch, time_us: now_us }
    }

    /// Checks that a frame comes from the device known, after the last one; notes a new device or a reset.
    fn follow(&mut self, now_us: u64, header: Header) -> Option<()> {
        if header.joints != self.config.joints {
            self.count_bad();
            return None;
        }
        let (mode, obeys) = match self.device {
            Some(device) if device.session == header.session => {
                let Some(lost) = skipped(device.sequence, header.sequence) else {
                    self.counters.old = self.counters.old.saturating_add(1);
                    return None;
                };
                self.counters.lost = self.counters.lost.saturating_add(lost);
                (device.mode, device.obeys)
            }
            Some(_) => {
                self.counters.resets = self.counters.resets.saturating_add(1);
                self.clock.reset();
                self.pending = None;
                (Mode::Disarmed, 0)
            }
            None => (Mode::Disarmed, 0),
        };
        let Header { session, sequence, epoch, .. } = header;
        if self.pending.is_some_and(|pending| pending.request == Request::Arm && pending.epoch != epoch) {
            self.pending = None;
        }
        self.device = Some(Device { session, sequence, epoch, mode, obeys, heard_us: now_us });
        Some(())
    }

    fn state(&mut self, now_us: u64, state: StateRepr) -> Option<Event> {
        self.follow(now_us, state.header)?;
        if let Some(device) = &mut self.device {
            device.mode = state.mode;
            device.obeys = state.host_session;
        }
        let answers =
            |pending: Pending| state.echo_session == self.session && state.echo_us >= pending.since_us;
        let stopped = |pending: Pending| pending.request == Request::Stop && answers(pending);
        if !state.mode.is_armed() && self.pending.is_some_and(stopped) {
            self.pending = None;
        }
        if state.echo_session == self.session {
            self.clock.update(state.echo_us, state.echo_received_us, state.header.time_us, now_us);
        }
        Some(Event::State(state))
    }
}
