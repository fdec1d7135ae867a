//! The bus: zenoh, and nothing of zenoh outside of here.
//!
//! A [`Bus`] is one zenoh session and speaks one convention ([`names`]): plain keys, or those of rmw_zenoh, where it is a
//! node of a ROS 2 graph. Scouting is off and it listens on loopback unless the configuration says otherwise. All
//! publishers drop rather than block; every message carries an [`Attachment`](attachment::Attachment). Callbacks run on
//! zenoh's threads and must not block. Closing is explicit ([`Bus::close`]), since zenoh may lose what is sent right
//! before a session is dropped.

pub mod attachment;
pub mod camera;
pub mod cdr;
mod claim;
pub mod health;
pub mod image;
pub mod interface;
mod latched;
pub mod names;
pub mod parameters;
pub mod presence;
pub mod robot;
pub mod service;
mod shadow;
pub mod topic;

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;
use zenoh::Wait;
use zenoh::liveliness::LivelinessToken;

pub use self::claim::Claim;
pub use crate::config::{BusSection, Convention};
pub use presence::Presence;
pub use service::Service;
pub use shadow::Shadow;
pub use topic::{Matching, Message, Publisher, Subscription, Traffic};

use self::interface::Interface;
use self::names::{Endpoint, Names, Plain, Qos, RmwZenoh, Role};

/// Where a bus listens when nothing is configured: a free port, this machine only.
const LOOPBACK: &str = "tcp/127.0.0.1:0";

/// Where rmw_zenoh's router is when nothing is configured.
const ROUTER: &str = "tcp/localhost:7447";
/// A node's name when the configuration gives none.
const NODE: &str = "refrain";

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
    /// Another daemon commands this robot.
    #[error("{topic:?} is commanded by the zenoh session {who} already; stop that one first")]
    Claimed {
        /// The topic.
        topic: String,
        /// The other session.
        who: String,
    },
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
    names: Box<dyn Names>,
    endpoints: AtomicU32,
    _node: Option<LivelinessToken>,
}

/// An endpoint that others may know of: dropping it tells them that it is gone.
struct Announced {
    key: String,
    /// Who its messages say that they are from.
    id: [u8; 16],
    _token: Option<LivelinessToken>,
}

/// An endpoint on a loopback port that is free now, for `listen` here and `connect` there.
pub fn free_endpoint() -> std::io::Result<String> {
    let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    Ok(format!("tcp/127.0.0.1:{port}"))
}

impl Bus {
    /// Opens a session.
    pub fn open(section: &BusSection) -> Result<Self, BusError> {
        let session =
            zenoh::open(configuration(section)?).wait().map_err(|error| BusError::Open(error.to_string()))?;
        let names: Box<dyn Names> = match section.convention {
            Convention::Plain => Box::new(Plain),
            Convention::RmwZenoh => Box::new(RmwZenoh {
                domain: section.domain,
                session: session.zid().to_string(),
                node: section.node.clone().unwrap_or(NODE.into()),
            }),
        };
        let node = names.node_token().map(|token| announce(&session, token)).transpose()?;
        Ok(Self { session, names, endpoints: AtomicU32::new(1), _node: node })
    }

    /// Sends what is left and leaves.
    pub fn close(self) -> Result<(), BusError> {
        self.session.close().wait().map_err(|error| BusError::Open(error.to_string()))
    }

    /// Tells the graph of an endpoint.
    fn announce(
        &self,
        role: Role,
        topic: &str,
        interface: &Interface,
        qos: Qos,
    ) -> Result<Announced, BusError> {
        let id = self.endpoints.fetch_add(1, Ordering::Relaxed);
        let token = self.names.token(&Endpoint { role, topic, interface, qos, id });
        Ok(Announced {
            key: self.names.key(topic, interface),
            id: token.as_deref().map_or(self.session.zid().to_le_bytes(), attachment::publisher_of),
            _token: token.map(|token| announce(&self.session, token)).transpose()?,
        })
    }
}

fn announce(session: &zenoh::Session, token: String) -> Result<LivelinessToken, BusError> {
    let declared = session.liveliness().declare_token(token.clone()).wait();
    declared.map_err(|error| declaring(token, &error))
}

fn declaring(key: String, error: &dyn ToString) -> BusError {
    BusError::Declare { key, reason: error.to_string() }
}

fn configuration(section: &BusSection) -> Result<zenoh::Config, BusError> {
    let failed = |what: &str, e: &dyn ToString| BusError::Config { what: what.into(), reason: e.to_string() };
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
    let ros = section.convention == Convention::RmwZenoh;
    if section.zenoh.is_none() && section.zenoh_file.is_none() {
        set("mode", json!("peer"))?;
        set("scouting/multicast/enabled", json!(false))?;
        set("scouting/gossip/enabled", json!(ros))?;
        set("listen/endpoints", json!([LOOPBACK]))?;
        if ros && section.connect.is_empty() && section.listen.is_empty() {
            set("connect/endpoints", json!([ROUTER]))?;
        }
    }
    if !section.listen.is_empty() {
        set("listen/endpoints", json!(section.listen))?;
    }
    if !section.connect.is_empty() {
        set("connect/endpoints", json!(section.connect))?;
    }
    Ok(config)
}
