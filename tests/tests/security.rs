//! The secure example: peers without a certificate are refused, a viewer may watch, only the robot may drive and stop.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use refrain_runtime::bus::names::Qos;
use refrain_runtime::bus::{Bus, BusSection, Traffic, cdr, interface};
use refrain_runtime::clock::{self, MILLISECOND, SECOND};
use refrain_runtime::control::Mode;
use refrain_runtime::daemon::Daemon;
use refrain_tests::robot::{double, policy_config, robot_config};

const EXAMPLE: &str = include_str!("../../examples/secure/zenoh.json5");

/// A folder with a certificate authority and certificates of everybody, and another authority that nobody knows.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("refrain-security-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let folder = Self(folder);
        for (authority, names) in [("ca", ["daemon", "robot", "viewer"].as_slice()), ("other", &["stranger"])]
        {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, authority);
            fs::write(folder.file(authority, "pem"), params.self_signed(&key).unwrap().pem()).unwrap();
            let issuer = Issuer::new(params, key);
            for name in names {
                let key = KeyPair::generate().unwrap();
                let mut params =
                    CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
                params.distinguished_name.push(DnType::CommonName, *name);
                let certificate = params.signed_by(&key, &issuer).unwrap();
                fs::write(folder.file(name, "pem"), certificate.pem()).unwrap();
                fs::write(folder.file(name, "key"), key.serialize_pem()).unwrap();
            }
        }
        folder
    }

    fn file(&self, name: &str, end: &str) -> PathBuf {
        self.0.join(format!("{name}.{end}"))
    }

    fn path(path: &Path) -> String {
        format!("{:?}", path.to_str().unwrap())
    }

    /// The example's configuration with this folder's files.
    fn example(&self) -> String {
        let mut text = EXAMPLE.to_owned();
        for (name, end) in [("ca", "pem"), ("daemon", "pem"), ("daemon", "key")] {
            let there = format!("\"certificates/{name}.{end}\"");
            assert!(text.contains(&there), "the example does not name {there}");
            text = text.replace(&there, &Self::path(&self.file(name, end)));
        }
        text
    }

    /// A peer's configuration; without a name, one that has no certificate.
    fn peer(&self, name: Option<&str>, endpoint: &str) -> BusSection {
        let own = name.map_or(String::new(), |name| {
            format!(
                "enable_mtls: true, connect_certificate: {}, connect_private_key: {},",
                Self::path(&self.file(name, "pem")),
                Self::path(&self.file(name, "key"))
            )
        });
        let zenoh = format!(
            "{{ mode: 'peer', scouting: {{ multicast: {{ enabled: false }} }}, listen: {{ endpoints: [] }},
               transport: {{ link: {{ tls: {{ root_ca_certificate: {}, {own} }} }} }} }}",
            Self::path(&self.file("ca", "pem"))
        );
        BusSection { zenoh: Some(zenoh), connect: vec![endpoint.to_owned()], ..BusSection::default() }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn counting(bus: &Bus, topic: &str) -> (Arc<AtomicU64>, refrain_runtime::bus::Subscription) {
    let count = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&count);
    let subscription = bus.subscribe(topic, &interface::FLOAT64_MULTI_ARRAY, Qos::NEWEST, move |_| {
        told.fetch_add(1, Ordering::Relaxed);
    });
    (count, subscription.unwrap())
}

#[test]
fn only_who_is_known_may_drive_and_strangers_are_refused() {
    let folder = Folder::new();
    let mut config = robot_config();
    let port = config.bus.listen[0].rsplit(':').next().unwrap().to_owned();
    let endpoint = format!("tls/127.0.0.1:{port}");
    config.bus.listen = vec![endpoint.clone()];
    config.bus.zenoh = Some(folder.example());
    let robot = config.resolve(&policy_config()).unwrap();
    let daemon = Daemon::start(&robot, double()).unwrap();

    let known = Bus::open(&folder.peer(Some("robot"), &endpoint)).unwrap();
    let viewer = Bus::open(&folder.peer(Some("viewer"), &endpoint)).unwrap();
    // Peers keep trying to connect, so that opening may succeed; being heard is what counts.
    let strangers: Vec<Bus> = [folder.peer(None, &endpoint), folder.peer(Some("stranger"), &endpoint)]
        .iter()
        .filter_map(|section| Bus::open(section).ok())
        .collect();
    let (seen_by_viewer, _watching) = counting(&viewer, "pusht/command");
    let (observed_by_viewer, _spying) = counting(&viewer, "pusht/observation");
    let seen_by_strangers: Vec<_> = strangers.iter().map(|bus| counting(bus, "pusht/command")).collect();
    let bad: Vec<_> = strangers
        .iter()
        .chain([&viewer])
        .map(|bus| bus.publisher("pusht/stop", &interface::EMPTY, Traffic::Control).unwrap())
        .collect();

    let mut observations =
        known.publisher("pusht/observation", &interface::FLOAT64_MULTI_ARRAY, Traffic::Control).unwrap();
    let mut payload = Vec::new();
    cdr::write_array(&mut payload, &[100.0; 20]);
    let start = clock::now();
    let mut running = None;
    while clock::now() - start < 20 * SECOND {
        observations.put(&payload, clock::read().wall, None).unwrap();
        bad.iter().for_each(|publisher| publisher.put_bare(b"").unwrap());
        // Whoever speaks no TLS at all does not stop the reading either.
        if let Ok(mut stream) = TcpStream::connect(format!("127.0.0.1:{port}")) {
            let _ = stream.write_all(&[0xff; 64]);
        }
        clock::sleep_until(clock::now() + 20 * MILLISECOND);
        if daemon.signals().mode() == Mode::Running {
            let since = *running.get_or_insert(clock::now());
            if clock::now() - since > SECOND && seen_by_viewer.load(Ordering::Relaxed) > 10 {
                break;
            }
        }
    }
    let report = daemon.report();
    assert_eq!(daemon.signals().mode(), Mode::Running, "the robot is not heard: {report:#?}");
    assert_eq!(daemon.signals().stops(), 0, "somebody without the right stopped the robot");
    assert!(seen_by_viewer.load(Ordering::Relaxed) > 10, "the viewer sees no commands");
    assert_eq!(observed_by_viewer.load(Ordering::Relaxed), 0, "the viewer sees observations");
    for (seen, _) in &seen_by_strangers {
        assert_eq!(seen.load(Ordering::Relaxed), 0, "a stranger reads commands");
    }
    // Who has the right is heard.
    known.publisher("pusht/stop", &interface::EMPTY, Traffic::Control).unwrap().put_bare(b"").unwrap();
    let deadline = clock::now() + 5 * SECOND;
    while daemon.signals().stops() == 0 && clock::now() < deadline {
        observations.put(&payload, clock::read().wall, None).unwrap();
        clock::sleep_until(clock::now() + 10 * MILLISECOND);
    }
    assert_eq!(daemon.signals().stops(), 1);
    daemon.shutdown().unwrap();
}
