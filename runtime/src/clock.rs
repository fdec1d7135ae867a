//! The clocks, and arithmetic on their readings.
//!
//! [`Time`] is monotonic and drives every decision; [`Wall`] is time since the Unix epoch and appears only in what goes
//! over the bus. They are different types, so that a clock step cannot reach the control loop: a stamp from outside is
//! turned into an age at the moment it arrives ([`Reading`]), and ages are checked.
//!
//! This is the only file that reads a clock. Everything that decides takes its time as an argument.

use std::fmt;
use std::ops::{Add, Sub};

pub use std::time::Duration;

use rustix::thread::{ClockId, clock_nanosleep_absolute};
use rustix::time::{Timespec, clock_gettime};

/// A span of time in nanoseconds; negative spans are allowed.
pub type Nanos = i64;

/// Nanoseconds in a second.
pub const SECOND: Nanos = 1_000_000_000;
/// Nanoseconds in a millisecond.
pub const MILLISECOND: Nanos = 1_000_000;

/// A monotonic instant: nanoseconds since an arbitrary start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(i64);

/// A wall-clock instant: nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wall(i64);

macro_rules! instant {
    ($name:ident) => {
        impl $name {
            /// From nanoseconds since the clock's zero.
            pub const fn from_nanos(nanos: i64) -> Self {
                Self(nanos)
            }

            /// Nanoseconds since the clock's zero.
            pub const fn nanos(self) -> i64 {
                self.0
            }
        }

        impl Add<Nanos> for $name {
            type Output = Self;

            fn add(self, span: Nanos) -> Self {
                Self(self.0.saturating_add(span))
            }
        }

        impl Sub<Nanos> for $name {
            type Output = Self;

            fn sub(self, span: Nanos) -> Self {
                Self(self.0.saturating_sub(span))
            }
        }

        impl Sub for $name {
            type Output = Nanos;

            fn sub(self, earlier: Self) -> Nanos {
                self.0.saturating_sub(earlier.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}.{:09}", self.0.div_euclid(SECOND), self.0.rem_euclid(SECOND))
            }
        }
    };
}

instant!(Time);
instant!(Wall);

/// Both clocks, read together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The monotonic clock.
    pub time: Time,
    /// The wall clock.
    pub wall: Wall,
}

impl Reading {
    /// A reading of simulated time, where both clocks agree.
    pub const fn simulated(nanos: i64) -> Self {
        Self { time: Time(nanos), wall: Wall(nanos) }
    }

    /// The monotonic instant of a stamp, by its age now.
    pub fn time_of(&self, stamp: Wall) -> Time {
        self.time - (self.wall - stamp)
    }

    /// The stamp of a monotonic instant, by its age now.
    pub fn wall_of(&self, time: Time) -> Wall {
        self.wall - (self.time - time)
    }
}

/// Nanoseconds of one period at `rate_hz`, rounded.
pub fn period(rate_hz: f64) -> Nanos {
    (SECOND as f64 / rate_hz).round() as Nanos
}

/// Nanoseconds of a span given in milliseconds, rounded.
pub fn from_millis(millis: f64) -> Nanos {
    (millis * MILLISECOND as f64).round() as Nanos
}

/// A span as seconds.
pub fn seconds(span: Nanos) -> f64 {
    span as f64 / SECOND as f64
}

/// The monotonic clock now.
pub fn now() -> Time {
    Time(nanos(clock_gettime(ClockId::Monotonic)))
}

/// Both clocks now.
pub fn read() -> Reading {
    Reading { time: now(), wall: Wall(nanos(clock_gettime(ClockId::Realtime))) }
}

/// Processor time of this process so far, all threads, nanoseconds.
pub fn processor_time() -> Nanos {
    nanos(clock_gettime(ClockId::ProcessCPUTime))
}

/// Sleeps until `deadline` on the monotonic clock; returns at once when it has passed. Signals do not shorten the sleep.
pub fn sleep_until(deadline: Time) {
    let request = Timespec {
        tv_sec: deadline.0.div_euclid(SECOND),
        tv_nsec: deadline.0.rem_euclid(SECOND) as rustix::time::Nsecs,
    };
    while clock_nanosleep_absolute(ClockId::Monotonic, &request) == Err(rustix::io::Errno::INTR) {}
}

fn nanos(timespec: Timespec) -> i64 {
    timespec.tv_sec * SECOND + timespec.tv_nsec
}

/// Periods that follow each other from deadline to deadline: waking late does not move the later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticker {
    deadline: Time,
    period: Nanos,
}

impl Ticker {
    /// The first deadline is one period after `start`.
    pub fn new(start: Time, period: Nanos) -> Self {
        Self { deadline: start + period, period: period.max(1) }
    }

    /// When the next tick is due.
    pub fn deadline(&self) -> Time {
        self.deadline
    }

    /// Moves on to the next deadline after `now` and returns how many were missed altogether.
    pub fn advance(&mut self, now: Time) -> u64 {
        let missed = (now - self.deadline).max(0) / self.period;
        self.deadline = self.deadline + (missed + 1).saturating_mul(self.period);
        missed as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_do_not_drift() {
        let mut ticker = Ticker::new(Time(0), 10);
        assert_eq!(ticker.deadline(), Time(10));
        assert_eq!(ticker.advance(Time(13)), 0, "woke 3 late");
        assert_eq!(ticker.deadline(), Time(20), "the next deadline stands");
        assert_eq!(ticker.advance(Time(41)), 2, "30 and 40 were missed");
        assert_eq!(ticker.deadline(), Time(50));
    }

    #[test]
    fn a_stamp_becomes_an_age() {
        let reading = Reading { time: Time(1_000), wall: Wall(900_000) };
        assert_eq!(reading.time_of(Wall(899_990)), Time(990));
        assert_eq!(reading.wall_of(Time(990)), Wall(899_990));
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Time(i64::MIN) - Time(i64::MAX), i64::MIN);
        assert_eq!(Wall(i64::MAX) + 1, Wall(i64::MAX));
    }

    #[test]
    fn sleeping_reaches_the_deadline() {
        let deadline = now() + 2 * MILLISECOND;
        sleep_until(deadline);
        assert!(now() >= deadline);
        sleep_until(Time(0));
    }
}
