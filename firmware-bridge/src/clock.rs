//! The host's clocks. The only file here that reads one.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A monotonic clock in µs. Starts at one second, so that times shortly before its start can be named.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self::start()
    }
}

impl Clock {
    /// Starts a clock.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Now, µs.
    pub fn now_us(&self) -> u64 {
        let since = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        since.saturating_add(1_000_000)
    }
}

/// A number that differs from one process to the next, not 0: a session, or a simulated device's boot.
pub fn random_session() -> u32 {
    (RandomState::new().build_hasher().finish() as u32).max(1)
}

/// The wall clock, ns since the Unix epoch: what messages on a bus are stamped with.
pub fn wall_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
