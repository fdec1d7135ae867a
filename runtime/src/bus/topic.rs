//! Publishers and subscriptions.

use std::borrow::Cow;
use std::sync::Arc;

use zenoh::Wait;
use zenoh::bytes::ZBytes;
use zenoh::qos::{CongestionControl, Priority};
use zenoh::sample::Sample;
use zenoh::time::Timestamp;

use super::attachment::{Attachment, Validity};
use super::interface::Interface;
use super::latched::{Asking, Memory};
use super::names::{Qos, Role};
use super::{Announced, Bus, BusError, declaring};
use crate::clock::Wall;

/// What is sent on a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Commands and measurements: real-time priority, express.
    Control,
    /// What a person reads: background priority.
    Telemetry,
    /// Camera images: background priority.
    Images,
    /// The same, and who comes late gets the last message.
    Latched,
}

/// A message that came in.
pub struct Message<'a> {
    /// Payload, a CDR message with its header.
    pub payload: Cow<'a, [u8]>,
    /// What came with it; `None` too when it is not of the known layout.
    pub attachment: Option<Attachment>,
    /// Whether the payload lies in memory that is shared with its sender.
    pub shared: bool,
}

/// Sends on one topic.
pub struct Publisher {
    publisher: zenoh::pubsub::Publisher<'static>,
    memory: Option<Memory>,
    session: zenoh::Session,
    announced: Announced,
    sequence: i64,
}

/// Tells whether somebody receives, until dropped.
pub struct Matching {
    _listener: zenoh::matching::MatchingListener<()>,
}

/// Receives until dropped.
pub struct Subscription {
    _subscribers: Vec<zenoh::pubsub::Subscriber<()>>,
    _asking: Option<Asking>,
    _announced: Announced,
}

impl Traffic {
    fn qos(self) -> Qos {
        match self {
            Self::Control => Qos::NEWEST,
            Self::Telemetry => Qos::DEFAULT,
            Self::Images => Qos::SENSOR,
            Self::Latched => Qos::LATCHED,
        }
    }
}

impl Bus {
    /// Starts sending on a topic.
    pub fn publisher(
        &self,
        topic: &str,
        interface: &Interface,
        traffic: Traffic,
    ) -> Result<Publisher, BusError> {
        let qos = traffic.qos();
        let urgent = traffic == Traffic::Control;
        let key = self.names.key(topic, interface);
        let publisher = self
            .session
            .declare_publisher(key.clone())
            .congestion_control(CongestionControl::Drop)
            .priority(if urgent { Priority::RealTime } else { Priority::Background })
            .express(urgent)
            .wait()
            .map_err(|error| declaring(key.clone(), &error))?;
        let memory = qos.latched.then(|| Memory::open(&self.session, &key)).transpose()?;
        let announced = self.announce(Role::Publisher, topic, interface, qos)?;
        Ok(Publisher { publisher, memory, session: self.session.clone(), announced, sequence: 0 })
    }

    /// Calls `on_message` for everything on a topic, on zenoh's threads. `qos` says what the graph is told, and a latched
    /// one asks for what was sent before.
    pub fn subscribe(
        &self,
        topic: &str,
        interface: &Interface,
        qos: Qos,
        on_message: impl Fn(&Message<'_>) + Send + Sync + 'static,
    ) -> Result<Subscription, BusError> {
        let on_message = Arc::new(on_message);
        let key = self.names.key(topic, interface);
        let mut subscribers = Vec::new();
        for key in self.names.more_keys(topic, interface).into_iter().chain([key.clone()]) {
            let on_message = Arc::clone(&on_message);
            let declared = self
                .session
                .declare_subscriber(key.clone())
                .callback(move |sample| hand_on(&sample, &*on_message))
                .wait();
            subscribers.push(declared.map_err(|error| declaring(key, &error))?);
        }
        let ask = || Asking::open(&self.session, &key, move |sample| hand_on(sample, &*on_message));
        let asking = qos.latched.then(ask).transpose()?;
        // Last, so that whoever sends once it sees the token is heard.
        let announced = self.announce(Role::Subscription, topic, interface, qos)?;
        Ok(Subscription { _subscribers: subscribers, _asking: asking, _announced: announced })
    }
}

fn hand_on(sample: &Sample, on_message: &impl Fn(&Message<'_>)) {
    let attachment = sample.attachment().map(|bytes| bytes.to_bytes());
    on_message(&Message {
        payload: sample.payload().to_bytes(),
        attachment: attachment.and_then(|bytes| Attachment::from_bytes(&bytes)),
        shared: sample.payload().as_shm().is_some(),
    });
}

impl Publisher {
    /// Sends one message, made at `source`; commands say their validity.
    pub fn put(&mut self, payload: &[u8], source: Wall, validity: Option<Validity>) -> Result<(), BusError> {
        self.sequence += 1;
        let attachment = Attachment { sequence: self.sequence, source, publisher: self.id(), validity };
        self.put_with(payload, &attachment)
    }

    /// Sends one message with this attachment.
    pub fn put_with(&self, payload: &[u8], attachment: &Attachment) -> Result<(), BusError> {
        self.hand_over(payload, Some(attachment.to_bytes()))
    }

    /// Sends one message that lies in a buffer of zenoh's; not for latched topics.
    pub(super) fn put_buffer(&self, payload: ZBytes, attachment: &Attachment) -> Result<(), BusError> {
        self.send(payload, Some(attachment.to_bytes()), self.session.new_timestamp())
    }

    /// Sends one message without attachment, as bridges do.
    pub fn put_bare(&self, payload: &[u8]) -> Result<(), BusError> {
        self.hand_over(payload, None)
    }

    /// Whether somebody receives.
    pub fn is_matched(&self) -> bool {
        self.publisher.matching_status().wait().is_ok_and(|status| status.matching())
    }

    /// Calls `on_change` when the first receiver comes and when the last one goes, and now if there is one; on zenoh's
    /// threads.
    pub fn matching(&self, on_change: impl Fn(bool) + Send + Sync + 'static) -> Result<Matching, BusError> {
        let listener =
            self.publisher.matching_listener().callback(move |status| on_change(status.matching()));
        let listener = listener.wait().map_err(|error| declaring(self.announced.key.clone(), &error))?;
        Ok(Matching { _listener: listener })
    }

    /// Who it says it is.
    pub fn id(&self) -> [u8; 16] {
        self.announced.id
    }

    fn hand_over(&self, payload: &[u8], attachment: Option<Vec<u8>>) -> Result<(), BusError> {
        let time = self.session.new_timestamp();
        if let Some(memory) = &self.memory {
            memory.keep(payload, attachment.clone(), time);
        }
        self.send(payload.to_vec().into(), attachment, time)
    }

    fn send(&self, payload: ZBytes, attachment: Option<Vec<u8>>, time: Timestamp) -> Result<(), BusError> {
        let put = self.publisher.put(payload).attachment(attachment).timestamp(time).wait();
        put.map_err(|error| BusError::Put { key: self.announced.key.clone(), reason: error.to_string() })
    }
}
