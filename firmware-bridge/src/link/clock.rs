//! What the device's clock shows, seen from the host.
//!
//! Four times, as in NTP: the host sends a heartbeat (t1, host), the device hears it (t2, device), sends a state (t3,
//! device) that echoes t1 and t2, and the host hears that (t4, host). Then `offset = ((t2−t1) + (t3−t4)) / 2` is wrong
//! by at most half the time on the wire, `((t4−t1) − (t3−t2)) / 2`. The estimate is the best sample so far; its error
//! grows with age by the clocks' drift, so that a fresh sample replaces an old one that was better.
//!
//! Source: RFC 5905, section 8 (the clock filter, here with one sample and ageing in place of eight).

/// An estimate of `device clock − host clock`.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    drift_ppm: u32,
    best: Option<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    offset_us: i64,
    error_us: u64,
    taken_us: u64,
}

impl Clock {
    /// Knows nothing yet. `drift_ppm` bounds how fast the two clocks part.
    pub const fn new(drift_ppm: u32) -> Self {
        Self { drift_ppm, best: None }
    }

    /// Forgets the estimate: the device was reset.
    pub fn reset(&mut self) {
        self.best = None;
    }

    /// Takes a sample of four times, µs; one that contradicts itself is ignored.
    pub fn update(&mut self, t1: u64, t2: u64, t3: u64, t4: u64) {
        let (Some(trip), Some(stay)) = (t4.checked_sub(t1), t3.checked_sub(t2)) else { return };
        // A device clock that runs fast makes the stay look longer than the trip by this much at most.
        let drifted = self.drifted(trip);
        if stay > trip.saturating_add(drifted) {
            return;
        }
        let there = difference(t2, t1);
        let back = difference(t3, t4);
        let error_us = (trip.saturating_sub(stay) / 2).saturating_add(drifted);
        let sample = Sample { offset_us: (there / 2).saturating_add(back / 2), error_us, taken_us: t4 };
        if self.error_us(t4).is_none_or(|error| error_us <= error) {
            self.best = Some(sample);
        }
    }

    /// How wrong the estimate may be at `now_us` (host clock), µs.
    pub fn error_us(&self, now_us: u64) -> Option<u64> {
        let sample = self.best?;
        let age = now_us.saturating_sub(sample.taken_us);
        Some(sample.error_us.saturating_add(self.drifted(age)))
    }

    /// A host time on the device's clock, µs; a time before the device's start is 0.
    pub fn to_device(&self, host_us: u64) -> Option<u64> {
        self.best.map(|sample| host_us.saturating_add_signed(sample.offset_us))
    }

    fn drifted(&self, span_us: u64) -> u64 {
        span_us.saturating_mul(u64::from(self.drift_ppm)) / 1_000_000
    }
}

/// `a − b`, saturating.
fn difference(a: u64, b: u64) -> i64 {
    let size = i64::try_from(a.abs_diff(b)).unwrap_or(i64::MAX);
    if a >= b { size } else { size.saturating_neg() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the delays and the drift, the true device time lies within the error that is stated.
        #[test]
        fn the_error_is_a_bound(
            offset in -1_000_000_000i64..1_000_000_000,
            drift_ppm in -200i64..=200,
            exchanges in proptest::collection::vec((0..30_000u64, 0..50_000u64, 0..30_000u64, 0..200_000u64), 1..50),
        ) {
            let device = |host: u64| {
                (2_000_000_000 + host as i64 + offset + host as i64 * drift_ppm / 1_000_000) as u64
            };
            let mut clock = Clock::new(500);
            let mut now = 1_000_000;
            for (there, stay, back, pause) in exchanges {
                let (heard, sent, got) = (now + there, now + there + stay, now + there + stay + back);
                clock.update(now, device(heard), device(sent), got);
                now = got + pause;
                let error = clock.error_us(now).unwrap();
                let estimate = clock.to_device(now).unwrap();
                // Integer division rounds each of the times.
                prop_assert!(estimate.abs_diff(device(now)) <= error + 4, "off by more than {error}");
            }
        }
    }

    #[test]
    fn nonsense_is_ignored() {
        let mut clock = Clock::new(500);
        clock.update(100, 5, 1, 200);
        clock.update(300, 5, 6, 200);
        clock.update(100, 5, 1_000_000, 200);
        assert_eq!(clock.error_us(0), None);
        clock.update(100, 1_000, 1_000, 200);
        assert_eq!(clock.to_device(150), Some(1_000));
        assert_eq!(clock.to_device(0), Some(850));
    }
}
