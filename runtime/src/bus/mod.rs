//! The bus: zenoh, and nothing of zenoh outside of here.
//!
//! A [`Bus`] is one zenoh session. Scouting is off and it listens on loopback unless the configuration says otherwise. All
//! publishers drop rather than block, at real-time priority, express; every message carries an [`Attachment`]. Callbacks run
//! on zenoh's threads and must not block. Closing is explicit ([`Bus::close`]), since zenoh may lose what is sent
//! right before a session is dropped.

pub mod attachment;
pub mod cdr;
pub mod robot;

use std::borrow::Cow;

use serde_json::json;
use zenoh::Wait;
use zenoh::qos::{CongestionControl, Priority};

pub use crate::config::{BusSection, Convention};

use self::attachment::{Attachment, Validity};
use crate::clock::Wall;

/// Where a bus listens when nothing is configured: a free port, this machine only.
const LOOPBACK: &str = "tcp/127.0.0.1:0";

/// Why something could not be done on the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The configuration is not one.
    #[error("zenoh configuration, {what}: {reason}")]
    Config {
        /// The part.
        what: String,
        /// Zenoh's words.
        reason: String,
    },
    /// The session cannot be opened.
    #[error("zenoh session: {0}; is the endpoint free, and the peer up?")]
    Open(String),
    /// A publisher, subscriber or queryable cannot be declared.
    #[error("zenoh key {key:?}: {reason}")]
    Declare {
        /// The key.
        key: String,
        /// Zenoh's words.
        reason: String,
    },
    /// A message could not be handed over.
    #[error("zenoh put on {key:?}: {reason}")]
    Put {
        /// The key.
        key: String,
        /// Zenoh's words.
        reason: String,
    },
}

/// One zenoh session.
pub struct Bus {
    session: zenoh::Session,
    convention: Convention,
}

/// A message that came in.
pub struct Message<'a> {
    /// Payload, a CDR message with its header.
    pub payload: Cow<'a, [u8]>,
    /// What came with it; `None` too when it is not of the known layout.
    pub attachment: Option<Attachment>,
}

/// Sends on one topic.
pub struct Publisher {
    publisher: zenoh::pubsub::Publisher<'static>,
    id: [u8; 16],
    sequence: i64,
}

/// Receives until dropped.
pub struct Subscription {
    _subscriber: zenoh::pubsub::Subscriber<()>,
}

/// Answers until dropped.
pub struct Service {
    _queryable: zenoh::query::Queryable<()>,
}

/// An endpoint on a loopback port that is free now, for `listen` here and `connect` there.
pub fn free_endpoint() -> std::io::Result<String> {
    let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    Ok(format!("tcp/127.0.0.1:{port}"))
}

impl Convention {
    /// The key of a topic.
    pub fn key(self, topic: &str) -> String {
        match self {
            Self::Plain => topic.trim_matches('/').to_owned(),
        }
    }
}

impl Bus {
    /// Opens a session.
    pub fn open(section: &BusSection) -> Result<Self, BusError> {
        let failed =
            |what: &str, e: &dyn ToString| BusError::Config { what: what.into(), reason: e.to_string() };
        let mut config = match (&section.zenoh_file, &section.zenoh) {
            (Some(file), _) => {
                zenoh::Config::from_file(file).map_err(|error| failed(&file.display().to_string(), &error))?
            }
            (None, Some(inline)) => {
                zenoh::Config::from_json5(inline).map_err(|error| failed("bus.zenoh", &error))?
            }
            (None, None) => zenoh::Config::default(),
        };
        let mut set = |key: &str, value: serde_json::Value| {
            config.insert_json5(key, &value.to_string()).map_err(|error| failed(key, &error))
        };
        if section.zenoh.is_none() && section.zenoh_file.is_none() {
            set("mode", json!("peer"))?;
            set("scouting/multicast/enabled", json!(false))?;
            set("scouting/gossip/enabled", json!(false))?;
            set("listen/endpoints", json!([LOOPBACK]))?;
        }
        if !section.listen.is_empty() {
            set("listen/endpoints", json!(section.listen))?;
        }
        if !section.connect.is_empty() {
            set("connect/endpoints", json!(section.connect))?;
        }
        let session = zenoh::open(config).wait().map_err(|error| BusError::Open(error.to_string()))?;
        Ok(Self { session, convention: section.convention })
    }

    /// Starts sending on a topic.
    pub fn publisher(&self, topic: &str) -> Result<Publisher, BusError> {
        let key = self.convention.key(topic);
        let publisher = self
            .session
            .declare_publisher(key.clone())
            .congestion_control(CongestionControl::Drop)
            .priority(Priority::RealTime)
            .express(true)
            .wait()
            .map_err(|error| BusError::Declare { key, reason: error.to_string() })?;
        Ok(Publisher { publisher, id: self.session.zid().to_le_bytes(), sequence: 0 })
    }

    /// Calls `on_message` for everything on a topic, on zenoh's threads.
    pub fn subscribe(
        &self,
        topic: &str,
        on_message: impl Fn(&Message<'_>) + Send + Sync + 'static,
    ) -> Result<Subscription, BusError> {
        let key = self.convention.key(topic);
        let subscriber = self
            .session
            .declare_subscriber(key.clone())
            .callback(move |sample| {
                let attachment = sample.attachment().map(|bytes| bytes.to_bytes());
                on_message(&Message {
                    payload: sample.payload().to_bytes(),
                    attachment: attachment.and_then(|bytes| Attachment::from_bytes(&bytes)),
                });
            })
            .wait()
            .map_err(|error| BusError::Declare { key, reason: error.to_string() })?;
        Ok(Subscription { _subscriber: subscriber })
    }

    /// Offers a `std_srvs/Trigger` service that always succeeds with what `on_call` says, called on zenoh's threads.
    pub fn trigger(
        &self,
        topic: &str,
        on_call: impl Fn() -> &'static str + Send + Sync + 'static,
    ) -> Result<Service, BusError> {
        let key = self.convention.key(topic);
        let reply_key = key.clone();
        let queryable = self
            .session
            .declare_queryable(key.clone())
            .complete(true)
            .callback(move |query| {
                let mut response = Vec::new();
                cdr::write_trigger_response(&mut response, true, on_call());
                let attachment = query.attachment().map(|bytes| bytes.to_bytes().into_owned());
                let reply = query.reply(reply_key.clone(), response).attachment(attachment);
                if let Err(error) = reply.wait() {
                    tracing::warn!(%error, key = reply_key, "the reply was lost");
                }
            })
            .wait()
            .map_err(|error| BusError::Declare { key, reason: error.to_string() })?;
        Ok(Service { _queryable: queryable })
    }

    /// Calls a `std_srvs/Trigger` service and returns its response's bytes; `None` when nobody answered.
    pub fn call_trigger(&self, topic: &str) -> Result<Option<Vec<u8>>, BusError> {
        let key = self.convention.key(topic);
        let replies = self
            .session
            .get(key.clone())
            .payload(cdr::EMPTY_REQUEST)
            .wait()
            .map_err(|error| BusError::Put { key, reason: error.to_string() })?;
        let answer = replies.into_iter().find_map(|reply| reply.into_result().ok());
        Ok(answer.map(|sample| sample.payload().to_bytes().into_owned()))
    }

    /// Sends what is left and leaves.
    pub fn close(self) -> Result<(), BusError> {
        self.session.close().wait().map_err(|error| BusError::Open(error.to_string()))
    }
}

impl Publisher {
    /// Sends one message, made at `source`; commands say their validity.
    pub fn put(&mut self, payload: &[u8], source: Wall, validity: Option<Validity>) -> Result<(), BusError> {
        self.sequence += 1;
        let attachment = Attachment { sequence: self.sequence, source, publisher: self.id, validity };
        self.put_with(payload, &attachment)
    }

    /// Sends one message with this attachment.
    pub fn put_with(&mut self, payload: &[u8], attachment: &Attachment) -> Result<(), BusError> {
        self.publisher.put(payload.to_vec()).attachment(attachment.to_bytes()).wait().map_err(|error| {
            BusError::Put { key: self.publisher.key_expr().to_string(), reason: error.to_string() }
        })
    }

    /// Sends one message without attachment, as bridges do.
    pub fn put_bare(&mut self, payload: &[u8]) -> Result<(), BusError> {
        self.publisher.put(payload.to_vec()).wait().map_err(|error| BusError::Put {
            key: self.publisher.key_expr().to_string(),
            reason: error.to_string(),
        })
    }

    /// Whether somebody receives.
    pub fn is_matched(&self) -> bool {
        self.publisher.matching_status().wait().is_ok_and(|status| status.matching())
    }

    /// Who it says it is.
    pub fn id(&self) -> [u8; 16] {
        self.id
    }
}
