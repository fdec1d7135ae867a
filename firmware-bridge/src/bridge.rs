//! Chunks in, states out: a [`Host`] on a [`Port`]. Whoever subscribes to actions (zenoh, a file, a test) calls
//! [`Bridge::poll`] with the newest chunk and takes what the device says.

use crate::clock::{Clock, random_session};
use crate::link::host::{Counters, Event, Unsent};
use crate::link::{Chunk, Host, HostConfig, Link};
use crate::port::{Port, PortError};
use crate::wire::MAX_FRAME;
use std::time::Duration;

/// A host on a port.
pub struct Bridge<P: Port> {
    port: P,
    host: Host,
    clock: Clock,
}

impl<P: Port> Bridge<P> {
    /// A new session on `port`.
    pub fn new(port: P, config: HostConfig) -> Self {
        Self { port, host: Host::new(config, random_session()), clock: Clock::start() }
    }

    /// Takes another port in place of one that broke; the session goes on.
    pub fn replace_port(&mut self, port: P) {
        self.port = port;
    }

    /// Now on the bridge's clock, in which chunks state their times, µs.
    pub fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    /// Where the link stands.
    pub fn link(&self) -> Link {
        self.host.link(self.clock.now_us())
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.host.counters()
    }

    /// Asks the device, once, to arm; gives whether it can be asked. See [`Host::arm`].
    pub fn arm(&mut self) -> bool {
        self.host.arm(self.clock.now_us())
    }

    /// Asks the device to stop until it has.
    pub fn stop(&mut self) {
        self.host.stop(self.clock.now_us());
    }

    /// Sends `chunk`, if there is one, and what else is due; then waits for at most `timeout` and hands on what the
    /// device says. Gives what became of the chunk. Call it at least as often as heartbeats are due.
    ///
    /// # Errors
    /// The port no longer works.
    pub fn poll(
        &mut self,
        chunk: Option<&Chunk<'_>>,
        timeout: Duration,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Result<(), Unsent>, PortError> {
        let mut buffer = [0; MAX_FRAME];
        let mut sent = Ok(());
        if let Some(chunk) = chunk {
            match self.host.command(self.clock.now_us(), chunk, &mut buffer) {
                Ok(len) => self.port.send(&buffer[..len])?,
                Err(unsent) => sent = Err(unsent),
            }
        }
        while let Some(len) = self.host.poll_transmit(self.clock.now_us(), &mut buffer) {
            self.port.send(&buffer[..len])?;
        }
        let (host, clock) = (&mut self.host, self.clock);
        self.port.receive(timeout, &mut |found| {
            if let Some(event) = host.receive_framed(clock.now_us(), found) {
                on_event(event);
            }
        })?;
        Ok(sent)
    }
}
