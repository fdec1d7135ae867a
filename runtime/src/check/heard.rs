//! What a topic brings while somebody listens: whether it can be read, how often it comes, how old and how large it is.

use refrain_policies::config::Signal;

use super::{DEGREES, Finding, demonstrated, unit};
use crate::clock::{Nanos, Reading, SECOND, Time};
use crate::config::{MessageReading, Topic};
use crate::observation::{Part, Refusal};

/// A value may lie outside of the demonstrations by this share of their range.
const OUTSIDE: f64 = 0.25;
/// A policy is served badly below this share of its rate.
const SLOW: f64 = 0.95;

/// What came on one topic.
#[derive(Clone, Debug)]
pub struct Heard {
    reading: MessageReading,
    numbers: Vec<f64>,
    taken: u64,
    refused: [u64; Refusal::ALL.len()],
    without_time: u64,
    first: Option<Time>,
    last: Option<Time>,
    longest_gap: Nanos,
    oldest: Nanos,
    range: Vec<[f64; 2]>,
}

impl Heard {
    /// Nothing yet.
    pub fn new(reading: &MessageReading, size: usize) -> Self {
        Self {
            reading: reading.clone(),
            numbers: Vec::new(),
            taken: 0,
            refused: [0; Refusal::ALL.len()],
            without_time: 0,
            first: None,
            last: None,
            longest_gap: 0,
            oldest: 0,
            range: vec![[f64::INFINITY, f64::NEG_INFINITY]; size],
        }
    }

    /// A message. `attached` is when it was made by its attachment.
    pub fn take(&mut self, payload: &[u8], attached: Option<crate::clock::Wall>, now: Reading) {
        let read = self.reading.read(payload, &mut self.numbers);
        let refusal = match read {
            Ok(_) if !self.numbers.iter().all(|number| number.is_finite()) => Some(Refusal::NonFinite),
            Ok(_) => None,
            Err(refusal) => Some(refusal),
        };
        if let Some(refusal) = refusal {
            let places = Refusal::ALL.iter().position(|r| *r == refusal);
            self.refused[places.unwrap_or(0)] += 1;
            return;
        }
        self.taken += 1;
        match read.ok().flatten().or(attached) {
            Some(stamp) => self.oldest = self.oldest.max(now.wall - stamp),
            None => self.without_time += 1,
        }
        if let Some(last) = self.last {
            self.longest_gap = self.longest_gap.max(now.time - last);
        }
        self.first = self.first.or(Some(now.time));
        self.last = Some(now.time);
        for (range, number) in self.range.iter_mut().zip(&self.numbers) {
            *range = [range[0].min(*number), range[1].max(*number)];
        }
    }

    /// Messages per second, from the second on.
    pub fn rate_hz(&self) -> f64 {
        match (self.first, self.last) {
            (Some(first), Some(last)) if last > first => {
                (self.taken - 1) as f64 * SECOND as f64 / (last - first) as f64
            }
            _ => 0.0,
        }
    }

    fn wanted(&self) -> String {
        match &self.reading {
            MessageReading::Joints { names, .. } => names.join(", "),
            _ => String::new(),
        }
    }

    /// In one line.
    pub fn summary(&self) -> String {
        format!(
            "{} messages, {:.1} Hz, longest gap {:.0} ms, oldest {:.0} ms",
            self.taken,
            self.rate_hz(),
            self.longest_gap as f64 * 1e-6,
            self.oldest as f64 * 1e-6
        )
    }

    /// What does not fit. `max_age` is the oldest that an observation may be.
    pub fn findings(
        &self,
        topic: &Topic,
        part: &Part,
        observation: &Signal,
        rate_hz: f64,
        max_age: Nanos,
    ) -> Vec<Finding> {
        let key = format!("observation.topics {:?}", topic.topic);
        let mut found = Vec::new();
        for (refusal, count) in Refusal::ALL.iter().zip(self.refused).filter(|(_, count)| *count > 0) {
            let hint = match refusal {
                Refusal::WrongSize => format!("; {} numbers are mapped", part.places.len()),
                Refusal::JointMissing => format!("; wanted {}", self.wanted()),
                Refusal::Undecodable => format!("; is it {}?", self.reading.interface().ros_name()),
                _ => String::new(),
            };
            found.push(Finding::wrong(format!("{key}: {count} messages were {refusal}{hint}")));
        }
        if self.taken == 0 {
            if found.is_empty() {
                found.push(Finding::wrong(format!(
                    "{key}: nothing came; is it published, and are bus.connect and the topic right?"
                )));
            }
            return found;
        }
        if self.without_time > 0 && !part.arrival_is_stamp {
            found.push(Finding::wrong(format!(
                "{key}: {} messages say no time; set stamp = \"arrival\" or have them stamped",
                self.without_time
            )));
        }
        if self.taken > 1 && self.rate_hz() < SLOW * rate_hz {
            found.push(Finding::wrong(format!(
                "{key}: comes at {:.1} Hz, the policy looks at {rate_hz} Hz; publish it faster",
                self.rate_hz()
            )));
        }
        for (what, span) in [("a gap of", self.longest_gap), ("an age of", self.oldest)] {
            if span > max_age {
                found.push(Finding::wrong(format!(
                    "{key}: {what} {:.0} ms, and observation.max_age_ms is {:.0}",
                    span as f64 * 1e-6,
                    max_age as f64 * 1e-6
                )));
            }
        }
        for (place, [low, high]) in part.places.iter().zip(&self.range) {
            found.extend(out_of_range(&key, observation, *place, *low, *high));
        }
        found
    }
}

/// A value that no demonstration had: another unit, another order, or another robot.
fn out_of_range(key: &str, signal: &Signal, place: usize, low: f64, high: f64) -> Option<Finding> {
    let [least, most] = demonstrated(signal, place)?;
    let slack = OUTSIDE * (most - least);
    if low >= least - slack && high <= most + slack {
        return None;
    }
    let name = signal.names.get(place).map_or("?", String::as_str);
    let (far, bound) = (low.abs().max(high.abs()), least.abs().max(most.abs()));
    let near = |factor: f64| (0.5..=1.5).contains(&(far * factor / bound));
    let guess = if near(DEGREES) && bound > 10.0 {
        "radians for degrees?"
    } else if near(1.0 / DEGREES) {
        "degrees for radians?"
    } else if near(1e-3) {
        "mm for m?"
    } else {
        "another unit or order?"
    };
    Some(Finding::wrong(format!(
        "{key}: {name} was {low:.4} to {high:.4}, demonstrated were {least:.4} to {most:.4} {}; {guess}",
        unit(signal, place)
    )))
}
