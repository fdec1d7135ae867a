//! The bridge's zenoh side: trajectories in, joint states out, and the wire's frames for a device that speaks zenoh.

use crate::messages::{self, Chunk};
use refrain_firmware_bridge::clock::wall_ns;
use refrain_firmware_bridge::port::{Found, Port, PortError};
use refrain_firmware_bridge::wire::{MAX_JOINTS, StateRepr};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use zenoh::Wait;
use zenoh::liveliness::LivelinessToken;
use zenoh::pubsub::{Publisher, Subscriber};
use zenoh::qos::{CongestionControl, Priority};

/// Frames that wait to be read: more than a device sends in a second.
const WAITING: usize = 256;

/// A zenoh session that listens to nobody but whom it is told.
pub(crate) struct Session(zenoh::Session);

/// Trajectories in, states out.
pub(crate) struct Topics {
    joints: Vec<String>,
    newest: Arc<Mutex<Option<Chunk>>>,
    states: Option<Publisher<'static>>,
    publisher: [u8; 16],
    sequence: i64,
    payload: Vec<u8>,
    _trajectories: Option<Subscriber<()>>,
    /// `refrain-bridge/<key>`: whoever sends trajectories knows that this is no recorder.
    _there: Option<LivelinessToken>,
}

/// Frames on two keys, one frame a message: `<key>/command` to the device, `<key>/state` from it.
pub(crate) struct ZenohLine {
    key: String,
    commands: Publisher<'static>,
    states: Receiver<Vec<u8>>,
    _subscriber: Subscriber<()>,
}

impl Session {
    /// Connects to `connect` and listens on `listen`; nothing is scouted.
    pub(crate) fn open(connect: &[String], listen: &[String]) -> zenoh::Result<Self> {
        let mut config = zenoh::Config::default();
        config.insert_json5("mode", "\"peer\"")?;
        config.insert_json5("scouting/multicast/enabled", "false")?;
        config.insert_json5("connect/endpoints", &format!("{connect:?}"))?;
        config.insert_json5("listen/endpoints", &format!("{listen:?}"))?;
        Ok(Self(zenoh::open(config).wait()?))
    }

    fn publisher(&self, key: &str) -> zenoh::Result<Publisher<'static>> {
        self.0
            .declare_publisher(key.to_owned())
            .congestion_control(CongestionControl::Drop)
            .priority(Priority::RealTime)
            .express(true)
            .wait()
    }

    /// Listens to trajectories on one key, publishes joint states on another.
    pub(crate) fn topics(
        &self,
        trajectories: Option<&str>,
        states: Option<&str>,
        joints: Vec<String>,
    ) -> zenoh::Result<Topics> {
        let newest = Arc::new(Mutex::new(None));
        let subscribe = |key: &str| {
            let (newest, joints) = (Arc::clone(&newest), joints.clone());
            self.0
                .declare_subscriber(key.to_owned())
                .callback(move |sample| {
                    let attachment = sample.attachment().map(|bytes| bytes.to_bytes());
                    let read = messages::read_trajectory(
                        &sample.payload().to_bytes(),
                        attachment.as_deref(),
                        &joints,
                        wall_ns(),
                    );
                    match read {
                        Ok(chunk) => *newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(chunk),
                        Err(reason) => eprintln!("trajectory refused: {reason}"),
                    }
                })
                .wait()
        };
        let there = |key: &str| self.0.liveliness().declare_token(format!("refrain-bridge/{key}")).wait();
        Ok(Topics {
            _trajectories: trajectories.map(subscribe).transpose()?,
            _there: trajectories.map(there).transpose()?,
            states: states.map(|key| self.publisher(key)).transpose()?,
            publisher: self.0.zid().to_le_bytes(),
            newest,
            joints,
            sequence: 0,
            payload: Vec::new(),
        })
    }

    /// A line to a device that speaks zenoh.
    pub(crate) fn line(&self, key: &str) -> zenoh::Result<ZenohLine> {
        let (sender, states) = sync_channel(WAITING);
        let subscriber = self
            .0
            .declare_subscriber(format!("{key}/state"))
            .callback(move |sample| {
                // A full queue loses the frame: the next is newer.
                let _ = sender.try_send(sample.payload().to_bytes().into_owned());
            })
            .wait()?;
        let commands = self.publisher(&format!("{key}/command"))?;
        Ok(ZenohLine { key: key.to_owned(), commands, states, _subscriber: subscriber })
    }
}

impl Topics {
    /// The newest trajectory since the last call.
    pub(crate) fn take(&self) -> Option<Chunk> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Publishes what the device measured.
    pub(crate) fn publish(&mut self, state: &StateRepr) -> zenoh::Result<()> {
        let Some(states) = &self.states else { return Ok(()) };
        let count = self.joints.len().min(MAX_JOINTS);
        let now = wall_ns();
        self.sequence += 1;
        messages::write_joint_state(
            &mut self.payload,
            now,
            &self.joints,
            &state.position[..count],
            &state.velocity[..count],
        );
        let attachment = messages::attachment(self.sequence, now, self.publisher);
        states.put(self.payload.clone()).attachment(attachment).wait()
    }
}

impl Port for ZenohLine {
    fn send(&mut self, frame: &[u8]) -> Result<(), PortError> {
        self.commands.put(frame.to_vec()).wait().map_err(|error| self.broken(&error))
    }

    fn receive(&mut self, timeout: Duration, hand_on: &mut dyn FnMut(Found<'_>)) -> Result<(), PortError> {
        match self.states.recv_timeout(timeout) {
            Ok(frame) => hand_on(Ok(&frame)),
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => return Err(self.broken(&"the session is closed")),
        }
        // What came with it waits no longer than it must.
        self.states.try_iter().for_each(|frame| hand_on(Ok(&frame)));
        Ok(())
    }
}

impl ZenohLine {
    fn broken(&self, reason: &dyn ToString) -> PortError {
        PortError::Broken {
            name: format!("zenoh {}", self.key),
            source: io::Error::other(reason.to_string()),
        }
    }
}
