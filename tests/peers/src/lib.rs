//! What the peers share: messages, and patience.

pub mod messages;

use std::time::{Duration, Instant};

/// Longest that a peer waits for something.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until it is so.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if is_so() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(format!("never: {what}"))
}
