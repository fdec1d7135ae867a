//! Whether what a policy sees in use looks like what its schedule was found with.
//!
//! A schedule's action error was measured on recorded observations. Where the robot later sees something else, nobody
//! knows that error. [`Coverage`] is the cheap check: per element the range over the recording, widened a little. It
//! is stored in the schedule file; [`Coverage::outside`] allocates nothing and costs two comparisons per element, so
//! a daemon can run it on every observation and count. Not here: correlations between elements. An observation inside
//! all ranges may still be unlike any that was recorded.

use serde::{Deserialize, Serialize};

/// What a range is widened by on either side, as a share of its width.
const MARGIN: f32 = 0.1;

/// Range per element of the observation, normalised units.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coverage {
    /// Smallest, one per element O.
    pub low: Vec<f32>,
    /// Largest, one per element O.
    pub high: Vec<f32>,
}

impl Coverage {
    /// Over normalised observations `[To, O]`; the To steps of each count alike.
    pub fn of<'a>(observations: impl IntoIterator<Item = &'a [f32]>, size: usize) -> Self {
        let mut coverage = Self { low: vec![f32::INFINITY; size], high: vec![f32::NEG_INFINITY; size] };
        for step in observations.into_iter().flat_map(|o| o.chunks_exact(size.max(1))) {
            for ((low, high), value) in coverage.low.iter_mut().zip(&mut coverage.high).zip(step) {
                *low = low.min(*value);
                *high = high.max(*value);
            }
        }
        coverage
    }

    /// What is wrong with ranges from a file, for observations of `size` elements.
    pub fn problem(&self, size: usize) -> Option<String> {
        if (self.low.len(), self.high.len()) != (size, size) {
            let got = self.low.len().max(self.high.len());
            return Some(format!("coverage: expected low and high with {size} numbers each, got {got}"));
        }
        let sound = |i: &usize| {
            self.low[*i].is_finite() && self.high[*i].is_finite() && self.low[*i] <= self.high[*i]
        };
        let bad = (0..size).find(|i| !sound(i))?;
        Some(format!(
            "coverage: element {bad}: expected finite numbers, low at most high, got {} and {}",
            self.low[bad], self.high[bad]
        ))
    }

    /// How many numbers of a normalised observation `[To, O]` lie outside; NaN does.
    pub fn outside(&self, observation: &[f32]) -> usize {
        let ranges = self.low.iter().zip(&self.high);
        let outside = |((low, high), value): ((&f32, &f32), &f32)| {
            let margin = MARGIN * (high - low);
            !(low - margin..=high + margin).contains(value)
        };
        observation
            .chunks(self.low.len().max(1))
            .map(|step| ranges.clone().zip(step).filter(|v| outside(*v)).count())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coverage() -> Coverage {
        let recorded: [&[f32]; 2] = [&[0.0, -1.0, 1.0, 1.0], &[0.5, 0.0, 0.2, 0.4]];
        Coverage::of(recorded, 2)
    }

    #[test]
    fn ranges_are_those_of_all_steps() {
        assert_eq!(coverage(), Coverage { low: vec![0.0, -1.0], high: vec![1.0, 1.0] });
        assert_eq!(coverage().problem(2), None);
    }

    #[test]
    fn outside_is_counted_beyond_the_margin() {
        let c = coverage();
        assert_eq!(c.outside(&[0.0, -1.0, 1.0, 1.0]), 0);
        assert_eq!(c.outside(&[-0.09, -1.19, 1.09, 1.19]), 0);
        assert_eq!(c.outside(&[-0.11, 0.0, 0.5, 1.21]), 2);
        assert_eq!(c.outside(&[f32::NAN, f32::INFINITY, 0.5, 0.0]), 2);
    }

    #[test]
    fn bad_ranges_are_named() {
        assert!(coverage().problem(3).unwrap().contains("3 numbers"));
        let nan = Coverage { low: vec![0.0, f32::NAN], high: vec![1.0, 1.0] };
        assert!(nan.problem(2).unwrap().contains("element 1"));
        let empty = Coverage::of(std::iter::empty(), 2);
        assert!(empty.problem(2).is_some(), "nothing recorded covers nothing");
    }
}
