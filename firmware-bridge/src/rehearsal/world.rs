//! Host, line, device and motors in one virtual time, one device tick a step.
//!
//! The host sends a heartbeat every 20 ms and a chunk of 8 points, 20 ms apart, every 50 ms. The path is a sine in each
//! of six joints. The line is a serial one at 921,600 baud. The motors follow their setpoint with a lag of 20 ms.

use super::noise::{Noise, NoiseConfig};
use crate::link::{AfterFault, Chunk, Device, DeviceConfig, Host, HostConfig, JointLimits, Link};
use crate::wire::framing::{Deframer, MAX_ENCODED, encode};
use crate::wire::{MAX_FRAME, MAX_JOINTS, Mode};

/// Joints of the simulated arm.
pub const JOINTS: usize = 6;
/// The device's control period, µs.
pub const TICK_US: u64 = 1_000;
/// The device's deadman time, µs.
pub const DEADMAN_US: u64 = 200_000;
/// Time from sending a chunk to the end of its validity, µs.
pub const VALIDITY_US: u64 = 150_000;
/// Limits of every joint.
pub const LIMITS: JointLimits = JointLimits {
    position_min: -1.2,
    position_max: 1.2,
    velocity: 2.0,
    acceleration: 20.0,
    following_error: 0.3,
};

const CHUNK_PERIOD_US: u64 = 50_000;
const POINTS: usize = 8;
const POINT_US: u32 = 20_000;
const MOTOR_LAG_S: f32 = 0.02;
/// A byte at 921,600 baud, 10 bits.
const BYTE_NS: u64 = 10_851;

/// The line without faults.
pub const QUIET: NoiseConfig =
    NoiseConfig { drop: 0.0, corrupt: 0.0, duplicate: 0.0, reorder: 0.0, delay_us: 0, byte_ns: BYTE_NS };

/// The simulated device's configuration.
pub fn device_config() -> DeviceConfig {
    DeviceConfig {
        joints: JOINTS as u8,
        limits: [LIMITS; MAX_JOINTS],
        tick_us: TICK_US as u32,
        state_period_us: 20_000,
        deadman_us: DEADMAN_US,
        max_validity_us: 500_000,
        max_observation_age_us: 300_000,
        clock_slack_us: 20_000,
        ramp_us: 300_000,
        after_fault: AfterFault::Hold,
    }
}

/// The host's configuration that goes with [`device_config`].
pub fn host_config() -> HostConfig {
    HostConfig {
        joints: JOINTS as u8,
        heartbeat_period_us: 20_000,
        state_timeout_us: 200_000,
        max_clock_error_us: 20_000,
        clock_drift_ppm: 500,
    }
}

/// The worst seen since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Worst {
    /// Largest change of a setpoint in a tick with torque, as a fraction of `velocity · tick`.
    pub step: f32,
    /// Largest change of a setpoint's velocity in a tick with torque, as a fraction of `acceleration · tick`.
    pub speed_change: f32,
    /// Longest motion on command while nothing was heard from the host, µs.
    pub unheard_us: u64,
    /// Largest error of the host's estimate of the device's clock, µs.
    pub clock_error_us: u64,
    /// Largest error beyond the bound that the estimate states, µs. 0 when the bound always held.
    pub clock_excess_us: u64,
}

/// Everything, at one time.
pub struct World {
    /// True time, and the host's clock, µs.
    pub now_us: u64,
    /// The device, unless it is booting.
    pub device: Option<Device>,
    /// The host, unless it was killed.
    pub host: Option<Host>,
    /// The host does nothing.
    pub stalled: bool,
    /// Somebody asks to arm whenever the device can be armed.
    pub operator: bool,
    /// How old the observations of the chunks are, µs.
    pub observation_age_us: u64,
    /// To the device.
    pub down: Noise,
    /// To the host.
    pub up: Noise,
    /// The worst so far.
    pub worst: Worst,
    /// Measured positions.
    pub measured: [f32; JOINTS],
    drift_ppm: i64,
    clock_zero_us: u64,
    boots: u32,
    sessions: u32,
    chunks: u32,
    chunk_due_us: u64,
    told: Option<[(f32, f32); JOINTS]>,
    device_ear: Deframer,
    host_ear: Deframer,
}

impl World {
    /// Host and device just started. The device's clock drifts by `drift_ppm`.
    pub fn new(seed: u64, drift_ppm: i64) -> Self {
        let mut world = Self {
            now_us: 10_000_000,
            device: None,
            host: None,
            stalled: false,
            operator: true,
            observation_age_us: 40_000,
            down: Noise::new(QUIET, seed),
            up: Noise::new(QUIET, seed ^ 0xFFFF_0000),
            worst: Worst::default(),
            measured: [0.1; JOINTS],
            drift_ppm,
            clock_zero_us: 0,
            boots: 0,
            sessions: 0,
            chunks: 0,
            chunk_due_us: 0,
            told: None,
            device_ear: Deframer::new(),
            host_ear: Deframer::new(),
        };
        world.start_device();
        world.start_host();
        world
    }

    /// The device boots: its clock starts at 0, it knows nothing.
    pub fn start_device(&mut self) {
        self.boots += 1;
        self.clock_zero_us = self.now_us;
        self.device_ear = Deframer::new();
        self.device = Device::new(device_config(), self.boot());
    }

    fn boot(&self) -> u32 {
        self.boots * 1_000_003
    }

    /// A new host process.
    pub fn start_host(&mut self) {
        self.sessions += 1;
        self.host_ear = Deframer::new();
        self.host = Some(Host::new(host_config(), self.sessions * 7_919));
    }

    /// The device's mode; `Disarmed` while it boots.
    pub fn mode(&self) -> Mode {
        self.device.as_ref().map_or(Mode::Disarmed, Device::mode)
    }

    /// Whether the device moves on command: not in a safe state.
    pub fn moves(&self) -> bool {
        matches!(self.mode(), Mode::Ramping | Mode::Running)
    }

    /// Whether every setpoint stands still, or the motors are limp.
    pub fn stands(&self) -> bool {
        self.told.is_none_or(|joints| joints.iter().all(|(_, velocity)| *velocity == 0.0))
    }

    /// True time at which the device last heard its host.
    pub fn heard_us(&self) -> u64 {
        self.device.as_ref().map_or(0, |device| self.clock_zero_us + device.heard_us())
    }

    /// The device's clock.
    pub fn device_us(&self) -> u64 {
        let since = (self.now_us - self.clock_zero_us) as i64;
        (since + since * self.drift_ppm / 1_000_000) as u64
    }

    /// The chunk that a policy would send now, as (observation, start, valid until) and positions.
    pub fn path(&self, now_us: u64) -> [f32; POINTS * JOINTS] {
        let mut values = [0.0; POINTS * JOINTS];
        for (index, value) in values.iter_mut().enumerate() {
            let time_s = (now_us + (index / JOINTS) as u64 * u64::from(POINT_US)) as f64 * 1e-6;
            let joint = (index % JOINTS) as f64;
            *value =
                (0.6 * (2.0 * std::f64::consts::PI * (0.3 + 0.05 * joint) * time_s + joint).sin()) as f32;
        }
        values
    }

    /// Goes on by one device tick.
    pub fn step(&mut self) {
        self.now_us += TICK_US;
        self.step_host();
        self.step_device();
        self.judge_clock();
    }

    /// Goes on until `done`, or for `limit_us` at most; gives the time it took, or `None` at the limit.
    pub fn run_until(&mut self, limit_us: u64, done: impl Fn(&Self) -> bool) -> Option<u64> {
        let start_us = self.now_us;
        while !done(self) {
            if self.now_us - start_us >= limit_us {
                return None;
            }
            self.step();
        }
        Some(self.now_us - start_us)
    }

    fn step_host(&mut self) {
        if self.stalled {
            return;
        }
        let (now_us, values) = (self.now_us, self.path(self.now_us));
        let Some(host) = &mut self.host else {
            while self.up.receive(now_us).is_some() {}
            return;
        };
        while let Some(line) = self.up.receive(now_us) {
            for byte in line {
                if let Some(found) = self.host_ear.push(byte) {
                    host.receive_framed(now_us, found);
                }
            }
        }
        if self.operator && matches!(host.link(now_us), Link::Disarmed | Link::Faulted) {
            host.arm(now_us);
        }
        let mut buffer = [0; MAX_FRAME];
        while let Some(len) = host.poll_transmit(now_us, &mut buffer) {
            self.down.send(now_us, line_of(&buffer[..len]));
        }
        if now_us >= self.chunk_due_us {
            self.chunk_due_us = now_us + CHUNK_PERIOD_US;
            self.chunks += 1;
            let chunk = Chunk {
                id: self.chunks,
                observation_us: now_us - self.observation_age_us,
                start_us: now_us,
                valid_until_us: now_us + VALIDITY_US,
                step_us: POINT_US,
                values: &values,
            };
            if let Ok(len) = host.command(now_us, &chunk, &mut buffer) {
                self.down.send(now_us, line_of(&buffer[..len]));
            }
        }
    }

    fn step_device(&mut self) {
        let (now_us, device_us) = (self.now_us, self.device_us());
        let Some(device) = &mut self.device else {
            // Without a program the line is not read and the motors are limp.
            while self.down.receive(now_us).is_some() {}
            self.told = None;
            return;
        };
        while let Some(line) = self.down.receive(now_us) {
            for byte in line {
                if let Some(found) = self.device_ear.push(byte) {
                    device.receive_framed(device_us, found);
                }
            }
        }
        let output = device.tick(device_us, &self.measured);
        let mut buffer = [0; MAX_FRAME];
        while let Some(len) = device.poll_transmit(device_us, &mut buffer) {
            self.up.send(now_us, line_of(&buffer[..len]));
        }
        let silent_us = device_us - device.heard_us();
        if self.moves() {
            self.worst.unheard_us = self.worst.unheard_us.max(silent_us);
        }
        let tick_s = TICK_US as f32 * 1e-6;
        let mut told = [(0.0, 0.0); JOINTS];
        for (joint, told) in told.iter_mut().enumerate() {
            *told = (output.setpoint[joint], output.velocity[joint]);
            if output.torque {
                // What the motor sees when torque comes is the distance from where it is.
                let (position, velocity) =
                    self.told.map_or((self.measured[joint], 0.0), |before| before[joint]);
                let step = (told.0 - position).abs() / (LIMITS.velocity * tick_s);
                let change = (told.1 - velocity).abs() / (LIMITS.acceleration * tick_s);
                self.worst.step = self.worst.step.max(step);
                self.worst.speed_change = self.worst.speed_change.max(change);
                self.measured[joint] += (told.0 - self.measured[joint]) * tick_s / MOTOR_LAG_S;
            }
        }
        self.told = output.torque.then_some(told);
    }

    fn judge_clock(&mut self) {
        let (Some(host), Some(_)) = (&self.host, &self.device) else { return };
        let now_us = self.now_us;
        // Until it hears the new device, the host's estimate is of the one before a reset.
        let known = host.device_session() == Some(self.boot());
        if !known || host.link(now_us) != Link::Armed {
            return;
        }
        if let (Some(bound), Some(estimate)) = (host.clock().error_us(now_us), host.clock().to_device(now_us))
        {
            let error_us = estimate.abs_diff(self.device_us());
            self.worst.clock_error_us = self.worst.clock_error_us.max(error_us);
            self.worst.clock_excess_us = self.worst.clock_excess_us.max(error_us.saturating_sub(bound));
        }
    }
}

fn line_of(frame: &[u8]) -> Vec<u8> {
    let mut line = [0; MAX_ENCODED];
    let len = encode(frame, &mut line).expect("the line takes any frame");
    line[..len].to_vec()
}
