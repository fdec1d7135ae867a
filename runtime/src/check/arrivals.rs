//! When the messages of one topic came and when they were made: how often, with which gaps, how old, and how far from
//! those of another topic. Pure.

use super::Finding;
use crate::clock::{Nanos, Reading, SECOND, Time, Wall};

/// A policy is served badly below this share of its rate.
pub(super) const SLOW: f64 = 0.95;

/// What a topic must keep to.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// How often the policy looks.
    pub rate_hz: f64,
    /// Oldest that a message may be when it arrives.
    pub max_age: Nanos,
    /// How far in the future a stamp may lie.
    pub clock_tolerance: Nanos,
    /// A message without a stamp counts as made when it arrives.
    pub arrival_is_stamp: bool,
}

/// The messages of one topic, in the order in which they came.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    undated: u64,
    backwards: u64,
    first: Option<Time>,
    last: Option<Time>,
    longest_gap: Nanos,
    oldest: Nanos,
    furthest_ahead: Nanos,
    made: Vec<Time>,
}

/// How images of a leading camera find messages of another topic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Meeting {
    /// Images while the other topic was heard.
    pub images: usize,
    /// Those with something within the tolerance.
    pub matched: usize,
    /// The median distance of the others, nanoseconds.
    pub apart: Nanos,
}

impl Arrivals {
    /// A message that came `now` and says that it was made at `stamp`.
    pub fn note(&mut self, stamp: Option<Wall>, now: Reading) {
        match stamp {
            Some(stamp) => {
                self.oldest = self.oldest.max(now.wall - stamp);
                self.furthest_ahead = self.furthest_ahead.max(stamp - now.wall);
            }
            None => self.undated += 1,
        }
        let made = stamp.map_or(now.time, |stamp| now.time_of(stamp));
        self.backwards += u64::from(self.made.last().is_some_and(|last| made <= *last));
        self.made.push(made);
        if let Some(last) = self.last {
            self.longest_gap = self.longest_gap.max(now.time - last);
        }
        self.first = self.first.or(Some(now.time));
        self.last = Some(now.time);
    }

    /// How many there were.
    pub fn taken(&self) -> usize {
        self.made.len()
    }

    /// Messages per second, from the second on.
    pub fn rate_hz(&self) -> f64 {
        match (self.first, self.last) {
            (Some(first), Some(last)) if last > first => {
                (self.taken() - 1) as f64 * SECOND as f64 / (last - first) as f64
            }
            _ => 0.0,
        }
    }

    /// In a few words.
    pub fn summary(&self) -> String {
        format!(
            "{:.1} Hz, longest gap {:.0} ms, oldest {:.0} ms",
            self.rate_hz(),
            self.longest_gap as f64 * 1e-6,
            self.oldest as f64 * 1e-6
        )
    }

    /// What does not fit by the time `until`; nothing if nothing came.
    pub fn findings(&self, key: &str, demand: &Demand, until: Time) -> Vec<Finding> {
        let Some(last) = self.last else { return Vec::new() };
        let mut found = Vec::new();
        if self.undated > 0 && !demand.arrival_is_stamp {
            found.push(Finding::wrong(format!(
                "{key}: {} messages say no time; set stamp = \"arrival\" or have them stamped",
                self.undated
            )));
        }
        if self.taken() > 1 && self.rate_hz() < SLOW * demand.rate_hz {
            found.push(Finding::wrong(format!(
                "{key}: comes at {:.1} Hz, the policy looks at {} Hz; publish it faster",
                self.rate_hz(),
                demand.rate_hz
            )));
        }
        let gap = self.longest_gap.max(until - last);
        for (what, span) in [("a gap of", gap), ("an age of", self.oldest)] {
            if span > demand.max_age {
                found.push(Finding::wrong(format!(
                    "{key}: {what} {:.0} ms, and observation.max_age_ms is {:.0}",
                    span as f64 * 1e-6,
                    demand.max_age as f64 * 1e-6
                )));
            }
        }
        if self.furthest_ahead > demand.clock_tolerance {
            found.push(Finding::wrong(format!(
                "{key}: made {:.0} ms in the future, and observation.clock_tolerance_ms is {:.0}; set both clocks by \
                 the same server",
                self.furthest_ahead as f64 * 1e-6,
                demand.clock_tolerance as f64 * 1e-6
            )));
        }
        if self.backwards > 0 {
            found.push(Finding::wrong(format!(
                "{key}: {} of {} stamps are not later than the one before; do two publish on it?",
                self.backwards,
                self.taken()
            )));
        }
        found
    }

    /// How these find messages of `other`, for as long as that was heard; `None` if that was never.
    pub fn meeting(&self, other: &Self, tolerance: Nanos) -> Option<Meeting> {
        let mut made = other.made.clone();
        made.sort_unstable();
        let (first, last) = (*made.first()?, *made.last()?);
        let heard = self.made.iter().filter(|time| **time + tolerance >= first && **time - tolerance <= last);
        let mut distances: Vec<Nanos> = heard
            .map(|time| {
                let after = made.partition_point(|other| other < time);
                let near = made[after.saturating_sub(1)..].iter().take(2);
                near.map(|other| (*other - *time).abs()).min().unwrap_or(Nanos::MAX)
            })
            .collect();
        let images = distances.len();
        distances.retain(|distance| *distance > tolerance);
        distances.sort_unstable();
        let apart = distances.get(distances.len() / 2).copied().unwrap_or(0);
        (images > 0).then_some(Meeting { images, matched: images - distances.len(), apart })
    }
}
