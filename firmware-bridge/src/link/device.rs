//! The microcontroller's end: from frames to motor setpoints.
//!
//! ```text
//!                  arm (names the current epoch)
//!   Disarmed ───────────────────────────────────▶ Holding ◀──────────────┐
//!   (boot)  ◀──── stop (any session, any epoch) ── │  any armed mode     │ the chunk's validity is over
//!                                                  │ a valid chunk       │
//!                                                  ▼                     │
//!                                               Ramping ─────────────────┤
//!                                                  │ ramp time over      │
//!                                                  ▼                     │
//!                                               Running ─────────────────┘
//!
//!   armed ── deadman; torque on ── following error, sensor; any mode ── driver ──▶ Faulted
//!   Faulted ── arm (names the new epoch) ──▶ Holding
//! ```
//!
//! | mode | setpoint | torque |
//! | --- | --- | --- |
//! | Disarmed | as measured after boot; brakes and stands after a stop | off after boot, else kept |
//! | Holding | brakes and stands | on |
//! | Ramping, Running | follows the chunk on the device's clock | on |
//! | Faulted | brakes and stands; after a following error goes back to where the joint was | on, or off when configured |
//!
//! Guarantees, whatever arrives: with torque on, no setpoint moves by more than `velocity · tick` in a tick nor changes
//! its speed by more than `acceleration · tick`, and none leaves its range ([`super::motion`]). An armed device that
//! hears nothing for the deadman time is Faulted at the next tick. A fault latches. Every function is bounded: by the
//! frame's length in [`Device::receive`], by joints in [`Device::tick`].
//!
//! What it does not do: read a bus, keep time, or know why a driver complains ([`Device::trip_driver`]).

use super::fault::Fault;
use super::motion::{Goal, Joint};
use super::setup::{AfterFault, DeviceConfig};
use super::skipped;
use super::trajectory::Trajectory;
use crate::wire::state::Refusal;
use crate::wire::{
    Cause, CommandView, Error, Header, HeartbeatView, Kind, MAX_JOINTS, Mode, Request, StateRepr, header,
};

/// What the motors are told in a tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Output {
    /// Whether they hold their setpoint; otherwise they are limp.
    pub torque: bool,
    /// rad; zero after the last joint.
    pub setpoint: [f32; MAX_JOINTS],
    /// Of the setpoint, rad/s.
    pub velocity: [f32; MAX_JOINTS],
}

/// What the device counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames dropped for framing, CRC or contents.
    pub bad: u32,
    /// Gaps in the host's sequence.
    pub lost: u32,
    /// Sound frames refused.
    pub refused: u32,
    /// Commands accepted.
    pub commands: u32,
    /// Faults latched.
    pub faults: u32,
    /// Ticks that came more than half a tick late.
    pub late_ticks: u32,
}

/// The last heartbeat heard, for the host's estimate of this clock.
#[derive(Clone, Copy, Debug, Default)]
struct Echo {
    session: u32,
    sent_us: u64,
    received_us: u64,
}

/// The reference controller.
#[derive(Clone, Debug)]
pub struct Device {
    config: DeviceConfig,
    session: u32,
    sequence: u32,
    epoch: u32,
    mode: Mode,
    fault: Option<Fault>,
    fault_unsent: bool,
    state_due_us: u64,
    host_session: u32,
    host_sequence: u32,
    heard_us: u64,
    echo: Echo,
    chunk: u32,
    valid_until_us: u64,
    ramp_from_us: u64,
    trajectory: Trajectory,
    ticked_us: Option<u64>,
    torque: bool,
    /// Whether the motors had torque in the last tick: if not, the next setpoint starts from what is measured.
    had_torque: bool,
    joints: [Joint; MAX_JOINTS],
    measured: [f32; MAX_JOINTS],
    measured_ok: bool,
    /// Where the joints were at a following error: there the setpoint goes back to.
    relief: [f32; MAX_JOINTS],
    refusal: Option<Refusal>,
    counters: Counters,
}

impl Device {
    /// Boots, disarmed and without torque. `boot` must differ from one start to the next (a counter that survives a
    /// reset, a random number): it tells the host of the reset, and it is the first epoch, so that nothing sent before
    /// the reset counts after it. `None` when the configuration is not [sound](DeviceConfig::is_sound).
    pub fn new(config: DeviceConfig, boot: u32) -> Option<Self> {
        config.is_sound().then(|| Self {
            config,
            session: boot.max(1),
            sequence: 0,
            epoch: boot,
            mode: Mode::Disarmed,
            fault: None,
            fault_unsent: false,
            state_due_us: 0,
            host_session: 0,
            host_sequence: 0,
            heard_us: 0,
            echo: Echo::default(),
            chunk: 0,
            valid_until_us: 0,
            ramp_from_us: 0,
            trajectory: Trajectory::new(),
            ticked_us: None,
            torque: false,
            had_torque: false,
            joints: [Joint::default(); MAX_JOINTS],
            measured: [0.0; MAX_JOINTS],
            measured_ok: false,
            relief: [0.0; MAX_JOINTS],
            refusal: None,
            counters: Counters::default(),
        })
    }

    /// What the device does.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The cause of the latched fault.
    pub fn fault(&self) -> Option<Cause> {
        self.fault.map(|fault| fault.cause)
    }

    /// The epoch that a request to arm must name.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// When the host that armed was last heard, µs; meaningful while armed.
    pub fn heard_us(&self) -> u64 {
        self.heard_us
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Why the last refused frame was refused.
    pub fn refusal(&self) -> Option<Refusal> {
        self.refusal
    }

    /// Takes what a [`Deframer`](crate::wire::framing::Deframer) found: a frame, or bytes that are none.
    pub fn receive_framed(&mut self, now_us: u64, found: Result<&[u8], Error>) {
        match found {
            Ok(frame) => self.receive(now_us, frame),
            Err(_) => self.count_bad(),
        }
    }

    /// Takes one frame, checked here.
    pub fn receive(&mut self, now_us: u64, frame: &[u8]) {
        let result = match header::kind(frame) {
            Ok(Kind::Command) => CommandView::new_checked(frame).map(|view| self.command(now_us, &view)),
            Ok(Kind::Heartbeat) => {
                HeartbeatView::new_checked(frame).map(|view| self.heartbeat(now_us, &view))
            }
            Ok(Kind::State | Kind::Fault) => Ok(Err(Refusal::Direction)),
            Err(error) => Err(error),
        };
        match result {
            Ok(Ok(())) => (),
            Ok(Err(refusal)) => {
                self.refusal = Some(refusal);
                self.counters.refused = self.counters.refused.saturating_add(1);
            }
            Err(_) => self.count_bad(),
        }
    }

    /// One control tick: `measured` are the joints' positions, rad. Gives what to tell the motors.
    ///
    /// A call less than half a tick after the one before changes nothing; a late one moves the setpoint by one tick.
    pub fn tick(&mut self, now_us: u64, measured: &[f32]) -> Output {
        let tick_us = u64::from(self.config.tick_us);
        if let Some(last) = self.ticked_us {
            let passed = now_us.saturating_sub(last);
            if passed < tick_us / 2 {
                return self.output();
            }
            if passed > tick_us.saturating_add(tick_us / 2) {
                self.counters.late_ticks = self.counters.late_ticks.saturating_add(1);
            }
        }
        self.ticked_us = Some(now_us);
        self.measure(now_us, measured);
        self.watch(now_us);
        self.advance_mode(now_us);
        self.advance_joints(now_us);
        self.had_torque = self.torque;
        self.output()
    }

    /// Latches a fault that the motor driver reported.
    pub fn trip_driver(&mut self, now_us: u64, joint: u8) {
        self.trip(now_us, Fault::driver(now_us, joint));
    }

    /// The next frame to send, written into `buffer`; gives its length. Call until it gives `None`.
    pub fn poll_transmit(&mut self, now_us: u64, buffer: &mut [u8]) -> Option<usize> {
        if self.fault_unsent
            && let Some(fault) = self.fault
        {
            self.fault_unsent = false;
            let header = self.next_header(now_us);
            return fault.emit(header, self.counters.faults, buffer).ok();
        }
        if now_us < self.state_due_us {
            return None;
        }
        // From the previous deadline, so that the period does not drift; from now when that is long past.
        let period = u64::from(self.config.state_period_us);
        self.state_due_us = self.state_due_us.saturating_add(period);
        if self.state_due_us <= now_us {
            self.state_due_us = now_us.saturating_add(period);
        }
        self.state(now_us).emit(buffer).ok()
    }

    fn count_bad(&mut self) {
        self.counters.bad = self.counters.bad.saturating_add(1);
    }

    fn state(&mut self, now_us: u64) -> StateRepr {
        let output = self.output();
        StateRepr {
            header: self.next_header(now_us),
            mode: self.mode,
            fault: self.fault(),
            refusal: self.refusal,
            torque: self.torque,
            host_sequence: self.host_sequence,
            chunk: self.chunk,
            bad_frames: self.counters.bad,
            lost_frames: self.counters.lost,
            refused_frames: self.counters.refused,
            echo_us: self.echo.sent_us,
            echo_received_us: self.echo.received_us,
            host_session: self.host_session,
            echo_session: self.echo.session,
            position: self.measured,
            velocity: output.velocity,
            setpoint: output.setpoint,
        }
    }

    fn next_header(&mut self, now_us: u64) -> Header {
        self.sequence = self.sequence.wrapping_add(1);
        let Self { sequence, session, epoch, .. } = *self;
        Header { joints: self.config.joints, sequence, session, epoch, time_us: now_us }
    }

    fn heartbeat<T: AsRef<[u8]>>(&mut self, now_us: u64, view: &HeartbeatView<T>) -> Result<(), Refusal> {
        let header = view.header();
        self.echo = Echo { session: header.session, sent_us: header.time_us, received_us: now_us };
        if view.request() == Request::Stop {
            if self.mode.is_armed() {
                self.enter(Mode::Disarmed);
                self.host_session = 0;
                self.state_due_us = now_us;
            }
            return Ok(());
        }
        if header.joints != self.config.joints {
            return Err(Refusal::Joints);
        }
        let armed = self.mode.is_armed();
        match view.request() {
            Request::Arm if header.epoch != self.epoch => {
                // The host repeats its request until it has seen the answer: that is still a sign of life.
                if armed { self.follow(now_us, header) } else { Err(Refusal::Epoch) }
            }
            Request::Arm if armed || !self.measured_ok => Err(Refusal::Arm),
            Request::Arm => {
                self.arm(now_us, header);
                Ok(())
            }
            _ if armed => self.follow(now_us, header),
            _ => Ok(()),
        }
    }

    fn arm(&mut self, now_us: u64, header: Header) {
        self.host_session = header.session;
        self.host_sequence = header.sequence;
        self.heard_us = now_us;
        self.fault = None;
        self.fault_unsent = false;
        self.valid_until_us = 0;
        self.state_due_us = now_us;
        self.torque = true;
        self.enter(Mode::Holding);
    }

    /// Checks that a frame comes from the host that armed, and after the last one; feeds the deadman.
    fn follow(&mut self, now_us: u64, header: Header) -> Result<(), Refusal> {
        if header.session != self.host_session {
            return Err(Refusal::Session);
        }
        let lost = skipped(self.host_sequence, header.sequence).ok_or(Refusal::Sequence)?;
        self.counters.lost = self.counters.lost.saturating_add(lost);
        self.host_sequence = header.sequence;
        self.heard_us = now_us;
        Ok(())
    }

    fn command<T: AsRef<[u8]>>(&mut self, now_us: u64, view: &CommandView<T>) -> Result<(), Refusal> {
        let header = view.header();
        if !self.mode.is_armed() {
            return Err(Refusal::NotArmed);
        }
        if header.joints != self.config.joints {
            return Err(Refusal::Joints);
        }
        self.follow(now_us, header)?;
        if header.epoch != self.epoch {
            return Err(Refusal::Epoch);
        }
        let left = view.valid_until_us().saturating_sub(now_us);
        if left == 0 {
            return Err(Refusal::Expired);
        }
        if left > self.config.max_validity_us {
            return Err(Refusal::Validity);
        }
        if view.observation_us() > now_us.saturating_add(self.config.clock_slack_us) {
            return Err(Refusal::ObservationFuture);
        }
        if now_us.saturating_sub(view.observation_us()) > self.config.max_observation_age_us {
            return Err(Refusal::ObservationOld);
        }
        let setpoint = self.output().setpoint;
        self.trajectory.load(now_us, setpoint, view, &self.config.limits);
        self.chunk = view.chunk();
        self.valid_until_us = view.valid_until_us();
        self.counters.commands = self.counters.commands.saturating_add(1);
        if self.mode == Mode::Holding {
            self.ramp_from_us = now_us;
            self.mode = Mode::Ramping;
        }
        Ok(())
    }

    /// Changes between disarmed, armed and faulted: what was meant for before no longer counts.
    fn enter(&mut self, mode: Mode) {
        self.mode = mode;
        self.epoch = self.epoch.wrapping_add(1);
    }

    fn trip(&mut self, now_us: u64, fault: Fault) {
        if self.mode == Mode::Faulted {
            return;
        }
        self.enter(Mode::Faulted);
        self.host_session = 0;
        self.fault = Some(fault);
        self.fault_unsent = true;
        self.state_due_us = now_us;
        self.relief = self.measured;
        self.counters.faults = self.counters.faults.saturating_add(1);
        if self.config.after_fault == AfterFault::Limp {
            self.torque = false;
        }
    }

    /// Takes the measured positions; one that is not finite keeps its last value and is a fault if torque is on.
    fn measure(&mut self, now_us: u64, measured: &[f32]) {
        let count = usize::from(self.config.joints);
        let readings = measured.iter().copied().chain(core::iter::repeat(f32::NAN)).take(count);
        let mut broken = None;
        for (joint, (slot, reading)) in (0u8..).zip(self.measured.iter_mut().zip(readings)) {
            if reading.is_finite() {
                *slot = reading;
            } else {
                broken = broken.or(Some(joint));
            }
        }
        self.measured_ok = broken.is_none();
        if !self.had_torque {
            self.stand_as_measured();
        }
        if let (Some(joint), true) = (broken, self.torque) {
            self.trip(now_us, Fault::sensor(now_us, joint));
        }
    }

    fn stand_as_measured(&mut self) {
        for (joint, measured) in self.joints.iter_mut().zip(&self.measured) {
            *joint = Joint { position: *measured, velocity: 0.0 };
        }
    }

    /// Looks for the deadman and for following errors.
    fn watch(&mut self, now_us: u64) {
        let silent = now_us.saturating_sub(self.heard_us);
        if self.mode.is_armed() && silent > self.config.deadman_us {
            self.trip(now_us, Fault::deadman(now_us, silent, self.config.deadman_us));
        }
        if !self.torque {
            return;
        }
        let count = usize::from(self.config.joints);
        let rows = self.joints.iter().zip(&self.measured).zip(&self.config.limits).take(count);
        let mut worst = None;
        for (joint, ((setpoint, measured), limits)) in (0u8..).zip(rows) {
            let (value, limit) = ((setpoint.position - measured).abs(), limits.following_error);
            if value > limit && worst.is_none() {
                worst = Some(Fault::following(now_us, joint, value, limit));
            }
        }
        if let Some(fault) = worst {
            self.trip(now_us, fault);
        }
    }

    fn advance_mode(&mut self, now_us: u64) {
        if matches!(self.mode, Mode::Ramping | Mode::Running) && now_us >= self.valid_until_us {
            self.mode = Mode::Holding;
        }
        if self.mode == Mode::Ramping && now_us.saturating_sub(self.ramp_from_us) >= self.config.ramp_us {
            self.mode = Mode::Running;
        }
    }

    fn advance_joints(&mut self, now_us: u64) {
        let count = usize::from(self.config.joints);
        if !self.torque {
            self.stand_as_measured();
            return;
        }
        let tick_us = u64::from(self.config.tick_us);
        let tick_s = self.config.tick_us as f32 * 1e-6;
        let here = self.trajectory.locate(now_us);
        let before = self.trajectory.locate(now_us.saturating_sub(tick_us));
        let relieving = self.mode == Mode::Faulted && self.fault() == Some(Cause::FollowingError);
        let speed = if self.mode == Mode::Ramping {
            now_us.saturating_sub(self.ramp_from_us) as f32 / self.config.ramp_us.max(1) as f32
        } else {
            1.0
        };
        let rows = self.joints.iter_mut().zip(&self.config.limits).zip(&self.relief).take(count);
        for (index, ((joint, limits), relief)) in rows.enumerate() {
            let goal = match self.mode {
                Mode::Ramping | Mode::Running => {
                    let position = self.trajectory.position(here, index);
                    let velocity = (position - self.trajectory.position(before, index)) / tick_s;
                    Goal::Track { position, velocity }
                }
                _ if relieving => Goal::Track { position: *relief, velocity: 0.0 },
                _ => Goal::Stop,
            };
            joint.advance(goal, limits, speed, tick_s);
        }
    }

    fn output(&self) -> Output {
        let mut output =
            Output { torque: self.torque, setpoint: [0.0; MAX_JOINTS], velocity: [0.0; MAX_JOINTS] };
        let rows = output.setpoint.iter_mut().zip(output.velocity.iter_mut()).zip(&self.joints);
        for ((setpoint, velocity), joint) in rows {
            (*setpoint, *velocity) = (joint.position, joint.velocity);
        }
        output
    }
}
