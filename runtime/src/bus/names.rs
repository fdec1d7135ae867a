//! The two conventions: how a topic becomes a zenoh key, and what tells others of it.
//!
//! [`Plain`]: the topic is the key, as zenoh-bridge-ros2dds has it. Nothing else.
//!
//! [`RmwZenoh`]: the keys and liveliness tokens of rmw_zenoh, which make this process a node of a ROS 2 graph:
//!
//! ```text
//! key     <domain>/<topic>/<type>/RIHS01_<hash>
//! node    @ros2_lv/<domain>/<session>/0/0/NN/%/%/<node>
//! others  @ros2_lv/<domain>/<session>/0/<id>/<MP|MS|SS|SC>/%/%/<node>/<%topic>/<type>/RIHS01_<hash>/<qos>
//! ```
//!
//! [`RELEASES`] says which ROS releases that covers, and what differs.
//!
//! Names are absolute and lie in the root namespace. Why these lines are ours: hiroz-protocol 0.2.1 writes the same
//! strings, but compiles only with its feature `std`, and so with all of zenoh's default features (50 more crates, RSA among
//! them), and knows nothing of Lyrical's backends. It is in the tests instead, inside hiroz, which must read our tokens.
//!
//! Source: ros2/rmw_zenoh, `docs/design.md` and `rmw_zenoh_cpp/src/detail/liveliness_utils.cpp`; keys and tokens that
//! other implementations wrote stand in the tests.

use std::fmt;

use super::interface::Interface;

/// Where messages with unbounded bytes go from Lyrical on.
const BULK_SUFFIX: &str = "_buf_cpu";
/// What a subscription's token then ends in.
const BULK_BACKEND: &str = "/backends:cpu:";

/// A release of ROS 2, and how it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// Its name.
    pub name: &'static str,
    /// Its version of rmw_zenoh.
    pub rmw_zenoh: &'static str,
    /// `bus.convention`; `None` where it cannot be reached.
    pub convention: Option<&'static str>,
    /// What differs.
    pub note: &'static str,
}

/// What is covered. From the sources of rmw_zenoh; no release of ROS itself was run beside Refrain.
pub const RELEASES: [Release; 5] = [
    Release {
        name: "Humble",
        rmw_zenoh: "0.1",
        convention: Some("plain"),
        note: "no type hashes, so other keys: through zenoh-bridge-ros2dds",
    },
    Release {
        name: "Jazzy, up to 0.2.3",
        rmw_zenoh: "0.2.3",
        convention: None,
        note: "another attachment: update rmw_zenoh",
    },
    Release { name: "Jazzy", rmw_zenoh: "from 0.2.4", convention: Some("rmw_zenoh"), note: "" },
    Release { name: "Kilted", rmw_zenoh: "0.6", convention: Some("rmw_zenoh"), note: "" },
    Release {
        name: "Lyrical, Rolling",
        rmw_zenoh: "from 0.10.5, 0.12",
        convention: Some("rmw_zenoh"),
        note: "images go to `<key>/_buf_cpu`, and only for a subscription whose token ends in `/backends:cpu:`; ours does, \
               and older releases read over it",
    },
];

/// What an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sends messages.
    Publisher,
    /// Receives messages.
    Subscription,
    /// Answers calls.
    Server,
    /// Calls.
    Client,
}

/// The part of a ROS quality of service that is not the same for all of our endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qos {
    /// Reliable; else best effort.
    pub reliable: bool,
    /// Who comes late gets the last message; else volatile.
    pub latched: bool,
    /// Messages kept.
    pub depth: usize,
}

/// A topic or service of ours.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    /// What it does.
    pub role: Role,
    /// The topic, with or without a leading `/`.
    pub topic: &'a str,
    /// Its type.
    pub interface: &'a Interface,
    /// How.
    pub qos: Qos,
    /// Its number in the session, from 1.
    pub id: u32,
}

/// A convention.
pub trait Names: Send + Sync {
    /// The key of a topic or service.
    fn key(&self, topic: &str, interface: &Interface) -> String;

    /// Keys on which a subscription must listen besides.
    fn more_keys(&self, topic: &str, interface: &Interface) -> Vec<String>;

    /// The token that says that the node is there.
    fn node_token(&self) -> Option<String>;

    /// The token that says that an endpoint is there.
    fn token(&self, endpoint: &Endpoint<'_>) -> Option<String>;
}

/// The topic is the key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

/// A node of a ROS 2 graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RmwZenoh {
    /// `ROS_DOMAIN_ID`.
    pub domain: u32,
    /// The zenoh session's identifier, lowercase hexadecimal without leading zeros.
    pub session: String,
    /// The node's name.
    pub node: String,
}

impl Names for Plain {
    fn key(&self, topic: &str, _: &Interface) -> String {
        bare(topic).to_owned()
    }

    fn more_keys(&self, _: &str, _: &Interface) -> Vec<String> {
        Vec::new()
    }

    fn node_token(&self) -> Option<String> {
        None
    }

    fn token(&self, _: &Endpoint<'_>) -> Option<String> {
        None
    }
}

impl Names for RmwZenoh {
    fn key(&self, topic: &str, interface: &Interface) -> String {
        format!("{}/{}/{}", self.domain, bare(topic), type_and_hash(interface))
    }

    fn more_keys(&self, topic: &str, interface: &Interface) -> Vec<String> {
        let bulk = || format!("{}/{BULK_SUFFIX}", self.key(topic, interface));
        interface.bulky.then(bulk).into_iter().collect()
    }

    fn node_token(&self) -> Option<String> {
        let Self { domain, session, node } = self;
        Some(format!("@ros2_lv/{domain}/{session}/0/0/NN/%/%/{node}"))
    }

    fn token(&self, endpoint: &Endpoint<'_>) -> Option<String> {
        let Self { domain, session, node } = self;
        let Endpoint { role, topic, interface, qos, id } = endpoint;
        let topic = bare(topic).replace('/', "%");
        let kind = type_and_hash(interface);
        let bulk = *role == Role::Subscription && interface.bulky && !qos.latched;
        let backend = if bulk { BULK_BACKEND } else { "" };
        Some(format!("@ros2_lv/{domain}/{session}/0/{id}/{role}/%/%/{node}/%{topic}/{kind}/{qos}{backend}"))
    }
}

impl Qos {
    /// For commands: reliable, and only the newest counts.
    pub const NEWEST: Self = Self { reliable: true, latched: false, depth: 1 };
    /// ROS's default, for what a person reads; also for services.
    pub const DEFAULT: Self = Self { reliable: true, latched: false, depth: 10 };
    /// For measurements: best effort.
    pub const SENSOR: Self = Self { reliable: false, latched: false, depth: 5 };
    /// The last message stands for who comes late.
    pub const LATCHED: Self = Self { reliable: true, latched: true, depth: 1 };
}

/// What equals rmw_zenoh's default is left empty: reliable, volatile, keep last 42, no deadline, lifespan or lease.
impl fmt::Display for Qos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reliability = if self.reliable { "" } else { "2" };
        let durability = if self.latched { "1" } else { "" };
        write!(f, "{reliability}:{durability}:,{}:,:,:,,", self.depth)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Publisher => "MP",
            Self::Subscription => "MS",
            Self::Server => "SS",
            Self::Client => "SC",
        })
    }
}

/// Whether ROS takes it as the name of a node, or as one part of a topic's.
pub fn is_ros_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn bare(topic: &str) -> &str {
    topic.trim_matches('/')
}

fn type_and_hash(interface: &Interface) -> String {
    format!("{}/RIHS01_{}", interface.dds_name(), interface.hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::attachment::publisher_of;
    use crate::bus::interface;

    fn node(domain: u32, session: &str, node: &str) -> RmwZenoh {
        RmwZenoh { domain, session: session.into(), node: node.into() }
    }

    /// The talker of rmw_zenoh's `docs/design.md`, and the identifier that its messages carry there.
    #[test]
    fn the_design_documents_talker() {
        let names = node(2, "8b20917502ee955ac4476e0266340d5c", "talker");
        let qos = Qos { depth: 7, ..Qos::DEFAULT };
        let endpoint =
            Endpoint { role: Role::Publisher, topic: "/chatter", interface: &interface::STRING, qos, id: 10 };
        let token = names.token(&endpoint).unwrap();
        assert_eq!(
            token,
            "@ros2_lv/2/8b20917502ee955ac4476e0266340d5c/0/10/MP/%/%/talker/%chatter/std_msgs::msg::dds_::String_/\
             RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18/::,7:,:,:,,"
        );
        let hex: String = publisher_of(&token).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "ac170f31eadcd9ff0cd86d7a17907d1c");
    }

    #[test]
    fn keys_and_tokens_seen_between_other_implementations() {
        let names = node(0, "2c1f5af766b72b6d67dbbbea85a068d4", "raw_policy");
        assert_eq!(
            names.node_token().unwrap(),
            "@ros2_lv/0/2c1f5af766b72b6d67dbbbea85a068d4/0/0/NN/%/%/raw_policy"
        );
        let hash = "RIHS01_179b33eba59d676f6d967ac71fe35e7ca2f64b2f3928f4a018cec115e213796e";
        let topic = "/arm_controller/joint_trajectory";
        assert_eq!(
            names.key(topic, &interface::JOINT_TRAJECTORY),
            format!("0/arm_controller/joint_trajectory/trajectory_msgs::msg::dds_::JointTrajectory_/{hash}")
        );
        let endpoint = Endpoint {
            role: Role::Publisher,
            topic,
            interface: &interface::JOINT_TRAJECTORY,
            qos: Qos::NEWEST,
            id: 1,
        };
        assert_eq!(
            names.token(&endpoint).unwrap(),
            format!(
                "@ros2_lv/0/2c1f5af766b72b6d67dbbbea85a068d4/0/1/MP/%/%/raw_policy/%arm_controller%joint_trajectory/\
                 trajectory_msgs::msg::dds_::JointTrajectory_/{hash}/::,1:,:,:,,"
            )
        );
    }

    #[test]
    fn qualities_of_service_as_rmw_zenoh_writes_them() {
        let written = [Qos::NEWEST, Qos::DEFAULT, Qos::SENSOR, Qos::LATCHED].map(|qos| qos.to_string());
        assert_eq!(written, ["::,1:,:,:,,", "::,10:,:,:,,", "2::,5:,:,:,,", ":1:,1:,:,:,,"]);
    }

    #[test]
    fn images_are_listened_to_where_lyrical_sends_them() {
        let names = node(0, "1", "n");
        let key = names.key("camera", &interface::IMAGE);
        assert_eq!(names.more_keys("camera", &interface::IMAGE), [format!("{key}/_buf_cpu")]);
        assert!(names.more_keys("joint_states", &interface::JOINT_STATE).is_empty());
        let token = |role, interface| {
            let endpoint = Endpoint { role, topic: "camera", interface, qos: Qos::SENSOR, id: 3 };
            names.token(&endpoint).unwrap()
        };
        let images = token(Role::Subscription, &interface::IMAGE);
        assert!(images.ends_with("/2::,5:,:,:,,/backends:cpu:"), "{images}");
        assert!(token(Role::Subscription, &interface::IMU).ends_with("/2::,5:,:,:,,"));
    }

    #[test]
    fn plain_topics_are_keys() {
        assert_eq!(Plain.key("/joint_states/", &interface::JOINT_STATE), "joint_states");
        assert_eq!(Plain.node_token(), None);
    }

    #[test]
    fn the_architecture_page_has_the_table_of_releases() {
        let page = include_str!("../../../ARCHITECTURE.md");
        for Release { name, rmw_zenoh, convention, note } in RELEASES {
            let convention = convention.map_or("not spoken".into(), |name| format!("`{name}`"));
            let row = format!("| {name} | {rmw_zenoh} | {convention} | {note} |");
            assert!(page.contains(&row), "ARCHITECTURE.md has no row\n{row}");
        }
    }

    #[test]
    fn names_of_ros() {
        assert!(["pusht", "_a1"].into_iter().all(is_ros_name));
        assert!(["", "1a", "push-t", "a/b", "ä"].into_iter().all(|name| !is_ros_name(name)));
    }
}
