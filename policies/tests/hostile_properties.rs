//! Random damage to checkpoints and packages: never a panic, and bounded in time and memory.

mod support;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use refrain_policies::import::Options;
use refrain_policies::package::{Dtype, Package};
use support::{Checkpoint, import, memory, small_config, small_weights, zip as archive};
use zip::CompressionMethod;

/// Most time for one damaged input of a few kilobytes.
const MOST_TIME: Duration = Duration::from_secs(5);
/// Most memory that this process may ever have had, bytes.
const MOST_MEMORY: usize = 400 << 20;

/// One change to bytes; positions and lengths are shares of what there is.
#[derive(Clone, Debug)]
enum Damage {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index, usize),
    Insert(prop::sample::Index, Vec<u8>),
    Copy(prop::sample::Index, prop::sample::Index, usize),
    Number(prop::sample::Index, u64),
    Truncate(prop::sample::Index),
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let at = any::<prop::sample::Index>;
    let large =
        prop_oneof![Just(u64::MAX), Just(1 << 62), Just(1 << 40), Just(0x7fff_ffff), Just(0), any::<u64>()];
    let damage = prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(i, v)| Damage::Set(i, v)),
        4 => (at(), 0..8u8).prop_map(|(i, v)| Damage::Flip(i, v)),
        1 => (at(), 0..200usize).prop_map(|(i, n)| Damage::Cut(i, n)),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(i, v)| Damage::Insert(i, v)),
        2 => (at(), at(), 1..200usize).prop_map(|(i, j, n)| Damage::Copy(i, j, n)),
        2 => (at(), large).prop_map(|(i, v)| Damage::Number(i, v)),
        1 => at().prop_map(Damage::Truncate),
    ];
    prop::collection::vec(damage, 1..6)
}

fn damaged(bytes: &[u8], damages: &[Damage]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for damage in damages {
        if bytes.is_empty() {
            break;
        }
        let size = bytes.len();
        match damage {
            Damage::Set(i, value) => bytes[i.index(size)] = *value,
            Damage::Flip(i, bit) => bytes[i.index(size)] ^= 1 << bit,
            Damage::Cut(i, n) => drop(bytes.drain(i.index(size)..(i.index(size) + n).min(size))),
            Damage::Insert(i, values) => drop(bytes.splice(i.index(size)..i.index(size), values.clone())),
            Damage::Copy(i, j, n) => {
                let piece = bytes[i.index(size)..(i.index(size) + n).min(size)].to_vec();
                drop(bytes.splice(j.index(size)..j.index(size), piece));
            }
            Damage::Number(i, value) => {
                let at = i.index(size);
                let n = (size - at).min(8);
                bytes[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
            }
            Damage::Truncate(i) => bytes.truncate(i.index(size)),
        }
    }
    bytes
}

/// Runs something that may fail but not cost much; gives whether it succeeded.
fn bounded<T, E: std::fmt::Display>(run: impl FnOnce() -> Result<T, E>) -> bool {
    let start = Instant::now();
    let result = run();
    assert!(start.elapsed() < MOST_TIME, "{:?}", start.elapsed());
    if let Some((peak, _)) = memory() {
        assert!(peak < MOST_MEMORY, "{peak} bytes");
    }
    if let Err(error) = &result {
        assert!(error.to_string().len() < 100_000);
    }
    result.is_ok()
}

/// Names and contents of an archive.
type Entries = Vec<(String, Vec<u8>)>;

fn checkpoint() -> &'static (Vec<u8>, Entries) {
    static CHECKPOINT: OnceLock<(Vec<u8>, Entries)> = OnceLock::new();
    CHECKPOINT.get_or_init(|| {
        let checkpoint = Checkpoint::small();
        (checkpoint.bytes(), checkpoint.to_entries())
    })
}

/// The same for a policy that sees.
fn hybrid() -> &'static Entries {
    static CHECKPOINT: OnceLock<Entries> = OnceLock::new();
    CHECKPOINT.get_or_init(|| Checkpoint::hybrid().to_entries())
}

fn package() -> &'static (String, Vec<u8>) {
    static PACKAGE: OnceLock<(String, Vec<u8>)> = OnceLock::new();
    PACKAGE.get_or_init(|| {
        let config = small_config();
        let policy = toml::to_string(&config).unwrap();
        let weights = small_weights(&config);
        let views = weights.iter().map(|(name, tensor)| (name.to_owned(), tensor));
        (policy, safetensors::serialize(views, None).unwrap())
    })
}

#[test]
fn undamaged_is_sound() {
    let options = Options { dtype: Dtype::F32, ..Options::default() };
    assert!(bounded(|| import(&checkpoint().0, &options)));
    assert!(bounded(|| import(&archive(&checkpoint().1, CompressionMethod::Deflated), &options)));
    assert!(bounded(|| Package::from_bytes(&package().0, &package().1)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_archives(damages in damages()) {
        bounded(|| import(&damaged(&checkpoint().0, &damages), &Options::default()));
    }

    /// The pickle is damaged before it goes into a sound archive, so that no checksum stops it.
    #[test]
    fn damaged_pickles(damages in damages(), deflate: bool) {
        let mut entries = checkpoint().1.clone();
        for (name, content) in &mut entries {
            if name.ends_with("data.pkl") {
                *content = damaged(content, &damages);
            }
        }
        let method = if deflate { CompressionMethod::Deflated } else { CompressionMethod::Stored };
        bounded(|| import(&archive(&entries, method), &Options::default()));
    }

    #[test]
    fn damaged_hybrid_pickles(damages in damages()) {
        let mut entries = hybrid().clone();
        for (name, content) in &mut entries {
            if name.ends_with("data.pkl") {
                *content = damaged(content, &damages);
            }
        }
        bounded(|| import(&archive(&entries, CompressionMethod::Stored), &Options::default()));
    }

    #[test]
    fn damaged_storages(damages in damages(), which: prop::sample::Index) {
        let mut entries = checkpoint().1.clone();
        let i = which.index(entries.len());
        entries[i].1 = damaged(&entries[i].1, &damages);
        bounded(|| import(&archive(&entries, CompressionMethod::Stored), &Options::default()));
    }

    #[test]
    fn damaged_policies(damages in damages()) {
        let policy = String::from_utf8_lossy(&damaged(package().0.as_bytes(), &damages)).into_owned();
        bounded(|| Package::from_bytes(&policy, &package().1));
    }

    #[test]
    fn damaged_weights(damages in damages()) {
        bounded(|| Package::from_bytes(&package().0, &damaged(&package().1, &damages)));
    }

    /// Numbers in the policy are replaced one by one by extreme ones.
    #[test]
    fn extreme_policies(which: prop::sample::Index, value in prop::sample::select(
        &["0", "-1", "9223372036854775807", "4294967296", "1e308", "-0.0", "nan", "inf", "1e-308", "[]", "[1]", "\"\"", "true"][..]
    )) {
        let (policy, weights) = package();
        let lines: Vec<&str> = policy.lines().collect();
        let keyed: Vec<usize> = (0..lines.len()).filter(|&i| lines[i].contains(" = ")).collect();
        let line = keyed[which.index(keyed.len())];
        let key = lines[line].split(" = ").next().unwrap();
        let new = format!("{key} = {value}");
        let mut changed = lines.clone();
        changed[line] = &new;
        bounded(|| Package::from_bytes(&changed.join("\n"), weights));
    }
}
