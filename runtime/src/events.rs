//! What the real-time thread tells, and what becomes of it.
//!
//! A tick writes one fixed-size [`Tick`] into a lock-free ring of a fixed length; another thread drains it into
//! histograms and logs mode changes. A full ring loses the event and counts it: the tick never waits for room.
//!
//! One slot of the queue always stays free. Its push spins only when it meets a slot that a descheduled reader has claimed
//! and not yet left, which is the slot after the last; by never going that far, the tick never spins.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use hdrhistogram::Histogram;

use crate::clock::{Nanos, Time};
use crate::control::{Command, Mode};

/// Ticks that the ring holds: two seconds at 1 kHz.
const CAPACITY: usize = 2048;
/// Longest span that a histogram tells apart, nanoseconds.
const LONGEST: u64 = 60_000_000_000;

/// What one tick did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tick {
    /// When it was due.
    pub due: Time,
    /// How much later it woke.
    pub wake_error: Nanos,
    /// How long it worked.
    pub work: Nanos,
    /// Deadlines missed after it.
    pub missed: u64,
    /// What it saw.
    pub seen: Seen,
    /// What it decided.
    pub command: Command,
}

/// What a tick saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The newest chunk; 0 for none.
    pub chunk: u64,
    /// The newest observation; 0 for none.
    pub observation: u64,
    /// Stops asked for so far.
    pub stops: u64,
    /// Resets asked for so far.
    pub resets: u64,
    /// Whether an operator was in charge.
    pub operator: bool,
    /// Whether somebody received the commands.
    pub controller: bool,
}

/// The real-time side.
pub struct Recorder {
    ring: Arc<ArrayQueue<Tick>>,
    lost: u64,
}

/// The other side.
pub struct Drain {
    ring: Arc<ArrayQueue<Tick>>,
}

/// A ring.
pub fn ring() -> (Recorder, Drain) {
    let ring = Arc::new(ArrayQueue::new(CAPACITY + 1));
    (Recorder { ring: Arc::clone(&ring), lost: 0 }, Drain { ring })
}

impl Recorder {
    /// Writes an event; loses and counts it when the ring is full.
    pub fn record(&mut self, tick: Tick) {
        let written = self.ring.len() < CAPACITY && self.ring.push(tick).is_ok();
        self.lost += u64::from(!written);
    }

    /// Events lost.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

impl Drain {
    /// The oldest event.
    pub fn take(&mut self) -> Option<Tick> {
        self.ring.pop()
    }

    /// Whether the recorder is gone: what is in the ring now is the last.
    pub fn is_over(&self) -> bool {
        Arc::strong_count(&self.ring) == 1
    }
}

/// Spans of time, nanoseconds.
#[derive(Clone, Debug)]
pub struct Spans(Histogram<u64>);

/// A histogram in five numbers, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many spans.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 99 of 100 are at most this.
    pub p99: u64,
    /// 999 of 1000 are at most this.
    pub p999: u64,
    /// The longest.
    pub max: u64,
}

impl Default for Spans {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds are in order"))
    }
}

impl Spans {
    /// Adds a span; negative ones count as 0.
    pub fn record(&mut self, span: Nanos) {
        self.0.saturating_record(span.max(0) as u64);
    }

    /// How many are at most this long, nanoseconds.
    pub fn at_most(&self, span: u64) -> u64 {
        self.0.count_between(0, span)
    }

    /// All of them together, seconds.
    pub fn seconds(&self) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.mean() * self.0.len() as f64 / 1e9 }
    }

    /// In five numbers.
    pub fn summary(&self) -> Summary {
        Summary {
            count: self.0.len(),
            p50: self.0.value_at_quantile(0.5),
            p99: self.0.value_at_quantile(0.99),
            p999: self.0.value_at_quantile(0.999),
            max: self.0.max(),
        }
    }
}

/// What the ticks were like.
#[derive(Clone, Debug, Default)]
pub struct TickStats {
    /// Wake-up errors.
    pub wake: Spans,
    /// Working times.
    pub work: Spans,
    /// Deadlines missed.
    pub missed: u64,
    /// Mode of the last tick.
    pub mode: Mode,
}

impl TickStats {
    /// Adds a tick and logs a change of mode.
    pub fn add(&mut self, tick: &Tick) {
        self.wake.record(tick.wake_error);
        self.work.record(tick.work);
        self.missed += tick.missed;
        let (mode, why) = (tick.command.mode, tick.command.outcome);
        if mode != self.mode {
            tracing::info!(from = ?self.mode, to = ?mode, ?why, at = %tick.due, "mode");
            self.mode = mode;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_loses_and_counts() {
        let (mut recorder, mut drain) = ring();
        let tick = Tick {
            due: Time::default(),
            wake_error: 5_000,
            work: 700,
            missed: 1,
            seen: Seen::default(),
            command: Command { mode: Mode::Running, ..Command::NONE },
        };
        for _ in 0..CAPACITY + 3 {
            recorder.record(tick);
        }
        assert_eq!(recorder.lost(), 3);
        let mut stats = TickStats::default();
        while let Some(tick) = drain.take() {
            stats.add(&tick);
        }
        let wake = stats.wake.summary();
        assert_eq!((wake.count, stats.missed, stats.mode), (CAPACITY as u64, CAPACITY as u64, Mode::Running));
        assert!((4_990..=5_010).contains(&wake.p50), "{wake:?}");
    }
}
