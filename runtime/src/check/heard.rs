//! What a topic of numbers brings while somebody listens: whether it can be read, when it comes, and how large it is.

use refrain_policies::config::Signal;

use super::arrivals::{Arrivals, Demand};
use super::{DEGREES, Finding, demonstrated, unit};
use crate::clock::{Reading, Time, Wall};
use crate::config::{MessageReading, Topic};
use crate::observation::{Part, Refusal};

/// A value may lie outside of the demonstrations by this share of their range.
const OUTSIDE: f64 = 0.25;
/// What varied by less in the demonstrations never moved there, as real-stanford's normaliser has it.
const STILL: f64 = 1e-4;

/// What is said of a silent topic.
pub(super) const NOTHING: &str =
    "nothing came; is it published, and are bus.connect, the topic and its type right?";

/// What came on one topic.
#[derive(Clone, Debug)]
pub struct Heard {
    /// When it came.
    pub arrivals: Arrivals,
    reading: MessageReading,
    numbers: Vec<f64>,
    refused: [u64; Refusal::ALL.len()],
    range: Vec<[f64; 2]>,
}

impl Heard {
    /// Nothing yet.
    pub fn new(reading: &MessageReading, size: usize) -> Self {
        Self {
            arrivals: Arrivals::default(),
            reading: reading.clone(),
            numbers: Vec::new(),
            refused: [0; Refusal::ALL.len()],
            range: vec![[f64::INFINITY, f64::NEG_INFINITY]; size],
        }
    }

    /// A message. `attached` is when it was made by its attachment.
    pub fn take(&mut self, payload: &[u8], attached: Option<Wall>, now: Reading) {
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
        self.arrivals.note(read.ok().flatten().or(attached), now);
        for (range, number) in self.range.iter_mut().zip(&self.numbers) {
            *range = [range[0].min(*number), range[1].max(*number)];
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
        format!("{} messages, {}", self.arrivals.taken(), self.arrivals.summary())
    }

    /// What does not fit by the time `until`.
    pub fn findings(
        &self,
        topic: &Topic,
        part: &Part,
        observation: &Signal,
        demand: &Demand,
        until: Time,
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
        if self.arrivals.taken() == 0 {
            if found.is_empty() {
                found.push(Finding::wrong(format!("{key}: {NOTHING}")));
            }
            return found;
        }
        found.extend(self.arrivals.findings(&key, demand, until));
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
    if most - least < STILL {
        return Some(Finding::odd(format!(
            "{key}: {name} was {low:.4} to {high:.4}; in the demonstrations it never moved from {least:.4} {}",
            unit(signal, place)
        )));
    }
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
