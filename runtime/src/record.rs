//! The recording: what every stage saw and decided, as MCAP that Foxglove opens and `refrain replay` computes again.
//!
//! | topic | type | one for every |
//! | --- | --- | --- |
//! | `observation` | `refrain/Observation` | observation that was put together |
//! | `inference` | `refrain/Inference` | prediction, with what it was made from |
//! | `tick` | `refrain/Tick` | tick, with what it saw |
//! | `plan` | `refrain/Plan` | step of the ladder |
//! | `shadow` | `refrain/Shadow` | command of whoever is in charge, in shadow mode |
//!
//! Images are not recorded: what the encoders made of them is, as a part of `inference`, and prediction starts from there.
//!
//! Messages are ROS 2 CDR, schemas `ros2msg`; times are nanoseconds of the monotonic clock, and a message's log time is
//! that plus the wall clock's offset at the start. The metadata record `refrain` holds the robot's configuration.
//!
//! Recording is bounded: files are closed at a size and the oldest are deleted. Whatever the file system refuses ends the
//! recording, is said once and counted; nothing here ever makes a loop wait.

mod log;
mod messages;

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

pub use self::log::{Limits, Log, OFFSET, Place, RecordError, read};
pub use self::messages::{Inference, Message, Observation, Plan, Shadow, Tick};

/// Messages that may wait for the draining thread.
const WAITING: usize = 1024;

/// Where threads that may not wait hand their messages in.
#[derive(Clone)]
pub struct Tap(Option<SyncSender<Message>>);

/// Where the draining thread takes them.
pub struct Basin(Option<Receiver<Message>>);

/// A tap; `wanted` is whether anything is recorded.
pub fn tap(wanted: bool) -> (Tap, Basin) {
    if !wanted {
        return (Tap(None), Basin(None));
    }
    let (sender, receiver) = sync_channel(WAITING);
    (Tap(Some(sender)), Basin(Some(receiver)))
}

impl Tap {
    /// Hands a message in, if anything is recorded. A full basin loses it; the gap in sequence numbers shows.
    pub fn put(&self, message: impl FnOnce() -> Message) {
        if let Some(sender) = &self.0 {
            let _ = sender.try_send(message());
        }
    }
}

impl Basin {
    /// The oldest message.
    pub fn take(&self) -> Option<Message> {
        self.0.as_ref()?.try_recv().ok()
    }
}
