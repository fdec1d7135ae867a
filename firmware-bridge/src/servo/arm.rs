//! The reference controller on a servo bus, as a port: what a microcontroller does, done on the host.

use super::bus::{BusError, ServoBus};
use super::calibration::{Calibration, ServoJoint};
use crate::clock::{Clock, random_session};
use crate::link::{AfterFault, Device};
use crate::port::{Found, Port, PortError};
use crate::wire::MAX_FRAME;
use std::time::Duration;

/// Ticks in a row without a reading after which positions are unknown: a sensor fault.
const MISSES: u32 = 10;

/// An arm on a servo bus.
pub struct Arm {
    bus: ServoBus,
    joints: Vec<ServoJoint>,
    device: Device,
    clock: Clock,
    tick_us: u64,
    due_us: u64,
    limp: bool,
    torque: bool,
    measured: Vec<f32>,
    missed: u32,
    /// Readings and writings that failed since the start.
    pub failures: u64,
}

impl Arm {
    /// Takes the arm over as it stands, without torque until it is armed. `None` when the calibration is not sound.
    pub fn new(bus: ServoBus, calibration: &Calibration) -> Option<Self> {
        let config = calibration.device();
        let clock = Clock::start();
        Some(Self {
            bus,
            joints: calibration.joints.clone(),
            device: Device::new(config, random_session())?,
            tick_us: u64::from(config.tick_us),
            due_us: clock.now_us(),
            clock,
            limp: config.after_fault == AfterFault::Limp,
            torque: false,
            measured: vec![f32::NAN; calibration.joints.len()],
            missed: 0,
            failures: 0,
        })
    }

    /// The controller.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn tick(&mut self, now_us: u64) {
        match self.bus.read() {
            Ok(readings) => {
                self.missed = 0;
                let rows = self.measured.iter_mut().zip(&self.joints).zip(&readings);
                for (number, ((measured, joint), reading)) in (0u8..).zip(rows) {
                    *measured = joint.radians(reading.ticks);
                    if reading.error != 0 {
                        self.device.trip_driver(now_us, number);
                    }
                }
            }
            Err(_) => {
                self.failures += 1;
                self.missed = self.missed.saturating_add(1);
                if self.missed >= MISSES {
                    self.measured.fill(f32::NAN);
                }
            }
        }
        let output = self.device.tick(now_us, &self.measured);
        if let Err(_unsent) = self.tell(output.torque, &output.setpoint) {
            self.failures += 1;
        }
    }

    /// Goals before torque: what holds then holds where the setpoint is.
    fn tell(&mut self, torque: bool, setpoint: &[f32]) -> Result<(), BusError> {
        if torque {
            let goals: Vec<i32> =
                self.joints.iter().zip(setpoint).map(|(joint, radians)| joint.ticks(*radians)).collect();
            self.bus.write_goals(&goals)?;
        }
        // Off is said at every tick: nobody acknowledges it, and a servo may have been plugged in since.
        if torque != self.torque || !torque {
            self.bus.write_torque(torque)?;
            self.torque = torque;
        }
        Ok(())
    }
}

impl Port for Arm {
    fn send(&mut self, frame: &[u8]) -> Result<(), PortError> {
        self.device.receive(self.clock.now_us(), frame);
        Ok(())
    }

    fn receive(&mut self, timeout: Duration, hand_on: &mut dyn FnMut(Found<'_>)) -> Result<(), PortError> {
        let end_us = self.clock.now_us().saturating_add(timeout.as_micros() as u64);
        let mut frame = [0; MAX_FRAME];
        loop {
            let now_us = self.clock.now_us();
            if now_us >= self.due_us {
                self.due_us = self.due_us.saturating_add(self.tick_us).max(now_us);
                self.tick(now_us);
            }
            while let Some(len) = self.device.poll_transmit(self.clock.now_us(), &mut frame) {
                hand_on(Ok(&frame[..len]));
            }
            let now_us = self.clock.now_us();
            if now_us >= end_us {
                return Ok(());
            }
            let wait_us = self.due_us.min(end_us).saturating_sub(now_us);
            std::thread::sleep(Duration::from_micros(wait_us));
        }
    }
}

impl Drop for Arm {
    fn drop(&mut self) {
        // Otherwise the servos hold their last goal: an arm without torque falls.
        if self.limp {
            let _ = self.bus.write_torque(false);
        }
    }
}
