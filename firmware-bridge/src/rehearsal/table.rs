//! The fault table: each fault in many seeded runs, the worst of each kept.
//!
//! A run starts host and device, arms, lets the arm move for a second and a random bit, and brings the fault. Safe is
//! any mode but Ramping and Running: nothing moves on command any more. Time to safe state counts from the fault, or
//! from the last frame that the device still heard after it; standstill counts from the same. Recovery counts from the
//! fault's end to motion on command; somebody asks to arm as soon as the link says that it can be asked.

use super::noise::NoiseConfig;
use super::world::{DEADMAN_US, QUIET, TICK_US, VALIDITY_US, World};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fmt;

/// Runs of a fault in the table that the README shows and the tests make anew.
pub const RUNS: u32 = 20;
/// The first run's seed in that table.
pub const SEED: u64 = 1;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Both directions are cut, bytes under way are lost; plugged in again after 1 s.
    CablePulled,
    /// Each byte is corrupted with a probability of 1 %, for 5 s.
    Corruption1,
    /// Each byte is corrupted with a probability of 20 %, for 2 s.
    Corruption20,
    /// A frame in five comes twice and a frame in five comes late, for 5 s.
    DuplicatedReordered,
    /// The host does nothing for 1 s, then goes on.
    HostStalled,
    /// The host is gone; a new one starts after 1 s.
    HostKilled,
    /// The device starts anew, booting for 100 ms.
    DeviceReset,
    /// The device's clock is 200 ppm fast or slow, for 60 s.
    ClockDrift,
    /// Chunks come from observations 600 ms old, for 1 s.
    StaleChunk,
    /// Frames to the device come 1 s late, for 3 s: buffered somewhere, all sound, all old.
    LateFrames,
}

impl Scenario {
    /// All, in the table's order.
    pub const ALL: [Self; 10] = [
        Self::CablePulled,
        Self::Corruption1,
        Self::Corruption20,
        Self::DuplicatedReordered,
        Self::HostStalled,
        Self::HostKilled,
        Self::DeviceReset,
        Self::ClockDrift,
        Self::StaleChunk,
        Self::LateFrames,
    ];

    /// The name in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CablePulled => "cable pulled",
            Self::Corruption1 => "1 % of bytes corrupted",
            Self::Corruption20 => "20 % of bytes corrupted",
            Self::DuplicatedReordered => "duplicated, reordered",
            Self::HostStalled => "host stalled",
            Self::HostKilled => "host killed",
            Self::DeviceReset => "device reset in motion",
            Self::ClockDrift => "clock drift 200 ppm",
            Self::StaleChunk => "stale chunk",
            Self::LateFrames => "frames 1 s late",
        }
    }

    /// Whether the fault must lead to a safe state; the others may be ridden out.
    pub const fn must_stop(self) -> bool {
        !matches!(self, Self::Corruption1 | Self::DuplicatedReordered | Self::ClockDrift)
    }
}

/// The worst of a scenario's runs. Times in µs.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The fault.
    pub scenario: Scenario,
    /// Runs.
    pub runs: u32,
    /// Runs in which the device reached a safe state.
    pub stopped: u32,
    /// Runs in which it moved on command again.
    pub recovered: u32,
    /// Longest time to the safe state.
    pub safe_us: u64,
    /// Longest time to standstill.
    pub stand_us: u64,
    /// Longest motion on command while nothing was heard.
    pub unheard_us: u64,
    /// Longest time from the fault's end to motion on command.
    pub recovery_us: u64,
    /// Largest setpoint step, as a fraction of the limit.
    pub step: f32,
    /// Largest change of speed, as a fraction of the limit.
    pub speed_change: f32,
    /// Share of the fault's time in motion on command.
    pub moving: f64,
    /// Largest error of the host's estimate of the device's clock.
    pub clock_error_us: u64,
    /// Largest error beyond the stated bound.
    pub clock_excess_us: u64,
    /// Frames that the device dropped as bad, all runs.
    pub bad: u64,
    /// Sound frames that it refused, all runs.
    pub refused: u64,
}

impl Row {
    /// The targets that the row misses: safe state within deadman time and a tick, no step over the limit, and
    /// recovery in every run. Empty when it meets all.
    pub fn misses(&self) -> Vec<String> {
        let mut misses = Vec::new();
        let mut check = |met: bool, text: String| {
            if !met {
                misses.push(format!("{}: {text}", self.scenario.name()));
            }
        };
        let limit_us = DEADMAN_US + TICK_US;
        check(self.safe_us <= limit_us, format!("safe after {} µs, expected {limit_us}", self.safe_us));
        check(
            self.unheard_us <= limit_us,
            format!("moved unheard {} µs, expected {limit_us}", self.unheard_us),
        );
        check(self.step <= 1.0, format!("step of {} of the limit", self.step));
        check(self.speed_change <= 1.0, format!("speed change of {} of the limit", self.speed_change));
        check(
            !self.scenario.must_stop() || self.stopped == self.runs,
            format!("stopped in {} runs", self.stopped),
        );
        check(self.recovered == self.runs, format!("recovered in {} of {} runs", self.recovered, self.runs));
        check(
            self.clock_excess_us == 0,
            format!("clock wrong by {} µs more than stated", self.clock_excess_us),
        );
        misses
    }
}

/// Runs a scenario `runs` times from `seed`.
pub fn rehearse(scenario: Scenario, runs: u32, seed: u64) -> Row {
    let mut row = Row {
        scenario,
        runs,
        stopped: 0,
        recovered: 0,
        safe_us: 0,
        stand_us: 0,
        unheard_us: 0,
        recovery_us: 0,
        step: 0.0,
        speed_change: 0.0,
        moving: 0.0,
        clock_error_us: 0,
        clock_excess_us: 0,
        bad: 0,
        refused: 0,
    };
    for run in 0..runs {
        rehearse_once(&mut row, seed.wrapping_add(u64::from(run)));
    }
    row.moving /= f64::from(runs);
    row
}

fn rehearse_once(row: &mut Row, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let drift_ppm = match row.scenario {
        Scenario::ClockDrift => [200, -200][usize::from(rng.random::<bool>())],
        _ => rng.random_range(-50..=50),
    };
    let mut world = World::new(seed, drift_ppm);
    world.run_until(2_000_000, World::moves).expect("host and device get to motion on a quiet line");
    let lead_us = 1_000_000 + rng.random_range(0..100) * TICK_US;
    world.run_until(lead_us, |_| false);

    let fault_us = world.now_us;
    let end_us = fault_us + begin(row.scenario, &mut world);
    let (mut safe_us, mut stood) = (None, false);
    let (mut steps, mut moving) = (0u32, 0u32);
    while world.now_us < end_us || (row.scenario.must_stop() && !stood && world.now_us < end_us + 5_000_000) {
        if row.scenario == Scenario::DeviceReset && world.now_us >= end_us {
            break;
        }
        world.step();
        steps += 1;
        moving += u32::from(world.moves());
        // A host that is heard with nothing good to say is no excuse: then the fault itself counts.
        let heard_us = if row.scenario == Scenario::StaleChunk { 0 } else { world.heard_us() };
        let since_us = world.now_us - fault_us.max(heard_us.min(world.now_us));
        if safe_us.is_none() && !world.moves() && row.scenario.must_stop() {
            safe_us = Some(since_us);
            row.safe_us = row.safe_us.max(since_us);
            row.stopped += 1;
        }
        if safe_us.is_some() && !stood && world.stands() {
            stood = true;
            row.stand_us = row.stand_us.max(since_us);
        }
    }
    row.moving += f64::from(moving) / f64::from(steps.max(1));
    end(row.scenario, &mut world);
    if let Some(device) = &world.device {
        row.bad += u64::from(device.counters().bad);
        row.refused += u64::from(device.counters().refused);
    }
    if let Some(us) = world.run_until(5_000_000, World::moves) {
        row.recovered += 1;
        row.recovery_us = row.recovery_us.max(us);
    }
    world.run_until(1_000_000, |_| false);
    row.unheard_us = row.unheard_us.max(world.worst.unheard_us);
    row.step = row.step.max(world.worst.step);
    row.speed_change = row.speed_change.max(world.worst.speed_change);
    row.clock_error_us = row.clock_error_us.max(world.worst.clock_error_us);
    row.clock_excess_us = row.clock_excess_us.max(world.worst.clock_excess_us);
}

/// Brings the fault; gives how long it lasts, µs.
fn begin(scenario: Scenario, world: &mut World) -> u64 {
    let both = |world: &mut World, noise: NoiseConfig| {
        world.down.configure(noise);
        world.up.configure(noise);
    };
    match scenario {
        Scenario::CablePulled => {
            both(world, NoiseConfig { drop: 1.0, ..QUIET });
            world.down.clear();
            world.up.clear();
            1_000_000
        }
        Scenario::Corruption1 => {
            both(world, NoiseConfig { corrupt: 0.01, ..QUIET });
            5_000_000
        }
        Scenario::Corruption20 => {
            both(world, NoiseConfig { corrupt: 0.2, ..QUIET });
            2_000_000
        }
        Scenario::DuplicatedReordered => {
            both(world, NoiseConfig { duplicate: 0.2, reorder: 0.2, ..QUIET });
            5_000_000
        }
        Scenario::HostStalled => {
            world.stalled = true;
            1_000_000
        }
        Scenario::HostKilled => {
            world.host = None;
            1_000_000
        }
        Scenario::DeviceReset => {
            world.device = None;
            100_000
        }
        Scenario::ClockDrift => 60_000_000,
        Scenario::StaleChunk => {
            world.observation_age_us = 600_000;
            1_000_000
        }
        Scenario::LateFrames => {
            world.down.configure(NoiseConfig { delay_us: 1_000_000, ..QUIET });
            3_000_000
        }
    }
}

/// Takes the fault away.
fn end(scenario: Scenario, world: &mut World) {
    world.down.configure(QUIET);
    world.up.configure(QUIET);
    match scenario {
        Scenario::HostStalled => world.stalled = false,
        Scenario::HostKilled => world.start_host(),
        Scenario::DeviceReset => world.start_device(),
        Scenario::StaleChunk => world.observation_age_us = 40_000,
        _ => (),
    }
}

/// The head of the printed table.
pub fn print_head() -> String {
    format!(
        "deadman {} ms, validity {} ms, tick {} ms; times in ms, worst of all runs\n\
         {:<24} {:>7} {:>7} {:>8} {:>8} {:>7} {:>7} {:>7} {:>9} {:>7} {:>8}",
        DEADMAN_US / 1000,
        VALIDITY_US / 1000,
        TICK_US / 1000,
        "fault",
        "safe",
        "stands",
        "unheard",
        "recovers",
        "step %",
        "accel %",
        "moving%",
        "clock µs",
        "bad",
        "refused"
    )
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: u64| format!("{:.0}", us as f64 / 1000.0);
        let if_stopped = |us: u64| if self.stopped > 0 { ms(us) } else { "-".into() };
        write!(
            f,
            "{:<24} {:>7} {:>7} {:>8} {:>8} {:>7.2} {:>7.2} {:>7.1} {:>9} {:>7} {:>8}",
            self.scenario.name(),
            if_stopped(self.safe_us),
            if_stopped(self.stand_us),
            ms(self.unheard_us),
            ms(self.recovery_us),
            self.step * 100.0,
            self.speed_change * 100.0,
            self.moving * 100.0,
            self.clock_error_us,
            self.bad,
            self.refused
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The README's table is this one, byte by byte.
    #[test]
    fn every_fault_meets_its_targets() {
        let mut table = print_head();
        for scenario in Scenario::ALL {
            let row = rehearse(scenario, RUNS, SEED);
            assert_eq!(row.misses(), Vec::<String>::new());
            table += &format!("\n{row}");
        }
        println!("{table}");
        let page = include_str!("../../README.md");
        for line in table.lines() {
            assert!(page.contains(&format!("    {line}\n")), "README.md does not have\n{line}");
        }
    }
}
