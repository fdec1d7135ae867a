//! Where frames go out and come in: a serial line, UDP, or CAN (any driver, or an SLCAN adapter).
//!
//! A port carries whole frames and says when bytes were none. It knows nothing of their meaning.

pub mod can;
pub mod serial;
pub mod slcan;
pub mod udp;

pub use can::CanLine;
pub use serial::SerialLine;
pub use slcan::Slcan;
pub use udp::UdpLine;

use crate::wire;
use std::io;
use std::time::Duration;

/// Why a port no longer works. Drop it and open another.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// It could not be opened.
    #[error("cannot open {name}: {source}; check the name, the cable and the rights to it")]
    Open {
        /// The port's name.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// It stopped working.
    #[error("{name} no longer works: {source}; is the cable still plugged in?")]
    Broken {
        /// The port's name.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

/// What a port hands on: a frame, unchecked, or why bytes were none.
pub type Found<'a> = Result<&'a [u8], wire::Error>;

/// A line to a device, or to a host.
pub trait Port {
    /// Sends one frame. One that the line cannot take now is lost: the next is newer.
    ///
    /// # Errors
    /// [`PortError::Broken`].
    fn send(&mut self, frame: &[u8]) -> Result<(), PortError>;

    /// Waits for bytes for at most `timeout` and hands on what they hold.
    ///
    /// # Errors
    /// [`PortError::Broken`].
    fn receive(&mut self, timeout: Duration, hand_on: &mut dyn FnMut(Found<'_>)) -> Result<(), PortError>;
}

/// Whether an error only says that nothing can be done now.
fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
