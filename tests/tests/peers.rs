//! Refrain beside complete implementations that we did not write: in a ROS 2 graph with hiroz and ros2-client around a real
//! zenohd, and behind zenohd's plugin to DDS with a DDS node that has no zenoh in it.
//!
//! They are a workspace of their own (`tests/peers`), since they bring all of zenoh's default features:
//!
//! `cargo build --locked --manifest-path tests/peers/Cargo.toml --target-dir target/peers --features dds
//! -p refrain-peers -p zenohd -p zenoh-plugin-ros2dds` (cmake and libclang for the plugin; leave `dds` and it out without)
//!
//! `.ci/run` builds them; where they are not built, the tests skip, loudly.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use refrain_runtime::bus::{self, Convention};
use refrain_runtime::clock;
use refrain_runtime::control::Mode;
use refrain_runtime::daemon::Daemon;
use refrain_tests::process::Running;
use refrain_tests::robot::{Rig, graph_config, joints};

const DOMAIN: u32 = 9;
const PATIENCE: Duration = Duration::from_secs(60);

/// A peer's program, if it was built.
fn peer(name: &str) -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?;
    let path = target.join("peers/debug").join(name);
    if !path.exists() {
        println!("SKIPPED: no {}; the head of tests/peers.rs says how to build it", path.display());
        return None;
    }
    Some(path)
}

/// zenohd on a free port, once it answers.
fn router(zenohd: &Path, arguments: &[&str]) -> (Running, String) {
    let endpoint = bus::free_endpoint().expect("a free port");
    let router = Command::new(zenohd)
        .args(["--listen", &endpoint, "--no-multicast-scouting"])
        .args(arguments)
        .envs([("ROS_DISTRO", "jazzy"), ("CYCLONEDDS_URI", CYCLONE)])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map(Running)
        .expect("zenohd starts");
    let (address, start) = (endpoint.trim_start_matches("tcp/"), Instant::now());
    while TcpStream::connect(address).is_err() {
        assert!(start.elapsed() < PATIENCE, "zenohd does not listen on {endpoint}");
        std::thread::sleep(Duration::from_millis(20));
    }
    (router, endpoint)
}

#[test]
fn complete_nodes_behind_zenohd_see_us_read_our_actions_and_stop_us() {
    let (Some(zenohd), Some(hiroz), Some(ros2)) = (peer("zenohd"), peer("hiroz_peer"), peer("ros2_peer"))
    else {
        return;
    };
    let (_router, endpoint) = router(&zenohd, &[]);
    let daemon = Rig::daemon(&graph_config(&endpoint, DOMAIN));
    let arguments = |command: &mut Command| {
        command.args([&endpoint, &DOMAIN.to_string(), "pusht"]).args(joints());
    };

    // hiroz feeds the robot from here on.
    let mut command = Command::new(hiroz);
    arguments(&mut command);
    let mut hiroz = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map(Running).expect("hiroz");
    let mut said = BufReader::new(hiroz.0.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let heard: Vec<String> = said.by_ref().take(2).inspect(|line| println!("hiroz: {line}")).collect();
    assert_eq!(heard.first().map(String::as_str), Some("reading"));
    assert!(heard.last().is_some_and(|line| line.starts_with("parameters: ")), "{heard:?}");
    assert_eq!(daemon.signals().mode(), Mode::Running);

    let mut command = Command::new(ros2);
    arguments(&mut command);
    let output = command.output().expect("ros2-client");
    println!("ros2-client: {}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    writeln!(hiroz.0.stdin.take().expect("piped"), "stop").expect("hiroz listens");
    assert_eq!(said.next().as_deref(), Some("stopped"));
    assert!(hiroz.0.wait().expect("hiroz ends").success());
    stops(&daemon);
    let report = daemon.shutdown().expect("a clean end");
    assert_eq!(report.counts.stops, 1);
    assert_eq!(report.refused.iter().sum::<u64>(), 0, "{report:?}");
}

/// A stop is latched when it is answered, and obeyed in the next tick.
fn stops(daemon: &Daemon) {
    let deadline = clock::now() + clock::SECOND;
    while daemon.signals().mode() != Mode::Stopped {
        assert!(clock::now() < deadline, "{:?} a second after the stop", daemon.signals().mode());
        clock::sleep_until(clock::now() + clock::MILLISECOND);
    }
}

/// Says that the test runs in a network namespace of its own.
const NAMESPACE: &str = "REFRAIN_NAMESPACE";
/// A pair of interfaces: DDS does not discover over loopback.
const INTERFACES: &str = "ip link set lo up && ip link add dds0 type veth peer name dds1 && \
                          ip addr add 10.99.0.1/24 dev dds0 && ip link set dds0 up && ip link set dds1 up";
const CYCLONE: &str = "<CycloneDDS><Domain><General><Interfaces><NetworkInterface name=\"dds0\"/></Interfaces>\
                       </General></Domain></CycloneDDS>";

#[test]
fn a_dds_node_behind_zenohds_plugin_reads_our_actions_and_stops_us() {
    if std::env::var_os(NAMESPACE).is_none() {
        let inside = |script: &str| {
            let this = std::env::current_exe().expect("this program");
            let name = "a_dds_node_behind_zenohds_plugin_reads_our_actions_and_stops_us";
            Command::new("unshare")
                .args(["--map-root-user", "--net", "sh", "-c", script])
                .arg(this)
                .args(["--exact", name, "--nocapture"])
                .env(NAMESPACE, "1")
                .status()
        };
        if !inside(INTERFACES).is_ok_and(|status| status.success()) {
            println!("SKIPPED: no network namespace with a veth pair can be made here (unshare, ip)");
            return;
        }
        let status = inside(&format!("{INTERFACES} && exec \"$0\" \"$@\"")).expect("the test itself");
        assert!(status.success(), "in its network namespace");
        return;
    }

    let (Some(zenohd), Some(plugin), Some(dds)) =
        (peer("zenohd"), peer("libzenoh_plugin_ros2dds.so"), peer("dds_peer"))
    else {
        return;
    };
    let plugin = format!("ros2dds:{}", plugin.display());
    let (_router, endpoint) = router(&zenohd, &["--plugin", &plugin, "--cfg", "plugins/ros2dds:{}"]);
    let mut config = graph_config(&endpoint, 0);
    config.bus.convention = Convention::Plain;
    let daemon = Rig::daemon(&config);
    let output = Command::new(dds).arg("pusht").args(joints()).output().expect("the DDS node");
    println!("ros2-client on DDS: {}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    stops(&daemon);
    let report = daemon.shutdown().expect("a clean end");
    assert!(report.counts.stops >= 1);
    assert_eq!(report.refused.iter().sum::<u64>(), 0, "{report:?}");
}
