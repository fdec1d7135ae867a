//! Whether somebody is there who says so with a zenoh liveliness token.
//!
//! A token tells that a session is there, and zenoh tells when it is gone. It is no watchdog: who hangs is there.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use zenoh::Wait;
use zenoh::key_expr::keyexpr;
use zenoh::sample::SampleKind;

use super::{Bus, BusError, declaring};

/// Tells whether somebody is there, until dropped.
pub struct Presence {
    _subscriber: zenoh::pubsub::Subscriber<()>,
}

/// Whether zenoh takes it as a key expression.
pub fn is_key_expression(text: &str) -> bool {
    keyexpr::new(text).is_ok()
}

impl Bus {
    /// Calls `on_change` whenever a token that matches the key expression `tokens` comes or goes, also for those that
    /// are there now, with whether any is left; on zenoh's threads.
    pub fn presence(
        &self,
        tokens: &str,
        on_change: impl Fn(bool) + Send + Sync + 'static,
    ) -> Result<Presence, BusError> {
        let there = Mutex::new(BTreeSet::new());
        let subscriber = self
            .session
            .liveliness()
            .declare_subscriber(tokens.to_owned())
            .history(true)
            .callback(move |sample| {
                let token = sample.key_expr().to_string();
                let mut there = there.lock().unwrap_or_else(PoisonError::into_inner);
                match sample.kind() {
                    SampleKind::Put => there.insert(token),
                    SampleKind::Delete => there.remove(&token),
                };
                on_change(!there.is_empty());
            })
            .wait();
        let subscriber = subscriber.map_err(|error| declaring(tokens.to_owned(), &error))?;
        Ok(Presence { _subscriber: subscriber })
    }
}
