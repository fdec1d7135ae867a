//! The rules of the architecture, read from the sources: one file names each outside world, crates depend on what they
//! may, files stay short.
//!
//! What it does: it looks at words, with comments, texts and test modules cut away. It is no compiler: a rename in an
//! import would pass. Test code (`tests/`, `benches/`, `*tests.rs`) is free to use clocks and threads.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use refrain_tests::trace::repository;

/// "About 500 lines" in a number.
const MAX_LINES: usize = 525;

/// Folders of the workspace's root.
const FOLDERS: [&str; 5] = ["examples", "firmware-bridge", "policies", "runtime", "tests"];

/// A word or path that only some places may name.
struct Rule {
    /// What the place would do.
    what: &'static str,
    /// Any of these in the code.
    words: &'static [&'static str],
    /// Where it counts: beginnings of paths.
    within: &'static [&'static str],
    /// Where it may stand: beginnings of paths.
    allowed: &'static [&'static str],
}

const RULES: [Rule; 7] = [
    Rule {
        what: "names wgpu",
        words: &["wgpu", "naga"],
        within: &[""],
        allowed: &["runtime/src/engine/gpu", "runtime/benches/", "runtime/tests/", "tests/"],
    },
    Rule {
        what: "names zenoh",
        words: &["zenoh::", "zenoh;", "zenoh {"],
        within: &[""],
        allowed: &[
            "runtime/src/bus",
            "runtime/tests/",
            "firmware-bridge/src/bin/",
            "firmware-bridge/tests/",
            "examples/",
            "tests/",
        ],
    },
    Rule {
        what: "reads a clock",
        words: &["Instant::now", "SystemTime", "time::Instant", "clock_gettime", "UNIX_EPOCH"],
        within: &[""],
        allowed: &["runtime/src/clock.rs", "firmware-bridge/src/clock.rs"],
    },
    Rule {
        what: "creates a thread",
        words: &["thread::spawn", "thread::scope", "thread::Builder", "spawn_scoped", "rayon::"],
        within: &[""],
        allowed: &["runtime/src/threads.rs", "examples/"],
    },
    Rule {
        what: "is not pure",
        words: &["std::time", "std::thread", "std::net", "std::process", "tokio"],
        within: &["policies/src/"],
        allowed: &[],
    },
    Rule {
        what: "depends on the project",
        words: &["refrain_runtime", "refrain_policies", "refrain_firmware_bridge"],
        within: &["examples/pusht/src/", "firmware-bridge/src/"],
        allowed: &["firmware-bridge/src/bin/"],
    },
    Rule {
        what: "imports everything",
        words: &["::*"],
        within: &[""],
        // The vendor's intrinsics: two hundred names that mean the same everywhere.
        allowed: &["runtime/src/engine/cpu/lanes_x86.rs"],
    },
];

/// What each crate's `Cargo.toml` may not name under dependencies.
const FORBIDDEN_DEPENDENCIES: [(&str, &[&str]); 3] = [
    ("policies/Cargo.toml", &["refrain-", "zenoh", "wgpu", "tokio", "rayon", "crossbeam"]),
    ("firmware-bridge/Cargo.toml", &["refrain-", "wgpu"]),
    ("examples/pusht/Cargo.toml", &["refrain-", "zenoh", "wgpu"]),
];

/// Every source file with its path from the root, `/` between folders.
fn sources(extensions: &[&str]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders: Vec<PathBuf> = FOLDERS.iter().map(|folder| repository().join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with('.') || name == "target" {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
                let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                found.insert(relative(&path), text);
            }
        }
    }
    found
}

fn relative(path: &Path) -> String {
    let path = path.strip_prefix(repository()).expect("inside the repository");
    path.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// Whether a whole file is test code.
fn is_test(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.ends_with("tests.rs")
        || path.split('/').any(|part| part == "tests" || part == "benches")
        || path.starts_with("tests/")
}

/// Code without comments, texts and what follows `#[cfg(test)] mod .. {`; lines stay where they are.
fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("r\"")
            || rest.starts_with("r#") && rest[1..].trim_start_matches('#').starts_with('"')
        {
            let hashes = rest[1..].len() - rest[1..].trim_start_matches('#').len();
            let end = format!("\"{}", "#".repeat(hashes));
            rest[hashes + 2..].find(&end).map_or(rest.len(), |at| hashes + 2 + at + end.len())
        } else if c == '"' {
            text_end(rest)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            rest[1..].find('\'').map_or(rest.len(), |at| at + 2)
        } else {
            0
        };
        if skipped > 0 {
            out.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
            rest = &rest[skipped..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    let test = out
        .find("#[cfg(test)]\nmod ")
        .filter(|at| out[*at..].lines().nth(1).is_some_and(|l| l.ends_with('{')));
    out.truncate(test.unwrap_or(out.len()));
    out
}

/// Length of a text literal that starts here.
fn text_end(rest: &str) -> usize {
    let mut escaped = false;
    for (i, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return i + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Whether the word stands in the line, not as the tail of a longer one.
fn names(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let ends_open = !word.ends_with(|c: char| c.is_alphanumeric());
        (word.starts_with(':') || !part(before)) && (ends_open || !part(after))
    })
}

fn broken(rule: &Rule, path: &str, text: &str) -> Vec<String> {
    let starts = |places: &[&str]| places.iter().any(|place| path.starts_with(place));
    if !starts(rule.within) || starts(rule.allowed) || is_test(path) {
        return Vec::new();
    }
    let lines = code(text);
    let hits = lines.lines().enumerate().filter(|(_, line)| rule.words.iter().any(|word| names(line, word)));
    hits.map(|(i, line)| format!("{path}:{} {}: {}", i + 1, rule.what, line.trim())).collect()
}

#[test]
fn one_place_names_each_outside_world() {
    let sources = sources(&["rs"]);
    for folder in FOLDERS {
        assert!(sources.keys().any(|path| path.starts_with(folder)), "no sources in {folder}");
    }
    assert!(sources.len() > 50, "only {} sources", sources.len());
    let found: Vec<String> = RULES
        .iter()
        .flat_map(|rule| sources.iter().flat_map(|(path, text)| broken(rule, path, text)))
        .collect();
    assert!(found.is_empty(), "{} places break a rule:\n{}", found.len(), found.join("\n"));
}

#[test]
fn every_rule_is_seen_failing() {
    for (path, text) in [
        ("runtime/src/engine/cpu/mod.rs", "let x = wgpu::Instance::new();"),
        ("runtime/src/daemon.rs", "use zenoh::Session;"),
        ("runtime/src/control.rs", "let now = Instant::now();"),
        ("runtime/src/engine/cpu/team.rs", "std::thread::spawn(|| ());"),
        ("policies/src/plan/build.rs", "use std::time::Duration;"),
        ("examples/pusht/src/lib.rs", "use refrain_policies::plan::Plan;"),
        ("runtime/src/bus/mod.rs", "use std::fmt::*;"),
    ] {
        let found: Vec<String> = RULES.iter().flat_map(|rule| broken(rule, path, text)).collect();
        assert_eq!(found.len(), 1, "{path}: {found:?}");
        let hidden = format!("// {text}\nlet text = \"{text}\";\n#[cfg(test)]\nmod tests {{\n{text}\n}}\n");
        assert!(RULES.iter().all(|rule| broken(rule, path, &hidden).is_empty()), "{path}");
        assert!(RULES.iter().all(|rule| broken(rule, "runtime/tests/x.rs", text).is_empty()));
    }
}

#[test]
fn crates_depend_on_what_they_may() {
    for (file, forbidden) in FORBIDDEN_DEPENDENCIES {
        let text = fs::read_to_string(repository().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let table: toml::Table = text.parse().unwrap_or_else(|e| panic!("{file}: {e}"));
        let mut tables: Vec<&toml::Value> = table.get("dependencies").into_iter().collect();
        if let Some(targets) = table.get("target").and_then(toml::Value::as_table) {
            tables.extend(targets.values().filter_map(|target| target.get("dependencies")));
        }
        assert!(!tables.is_empty(), "{file} has no dependencies");
        for name in tables.iter().filter_map(|t| t.as_table()).flat_map(toml::Table::keys) {
            // The bridge's binary may speak zenoh; the simulated microcontroller is its own.
            assert!(!forbidden.iter().any(|f| name.starts_with(f)), "{file} depends on {name}");
        }
    }
}

#[test]
fn files_stay_short() {
    let sources = sources(&["rs", "wgsl", "py"]);
    assert!(sources.len() > 50, "only {} sources", sources.len());
    let lines = |text: &str| text.lines().count();
    let long = sources.iter().filter(|(_, text)| lines(text) > MAX_LINES);
    let long: Vec<String> = long.map(|(path, text)| format!("{path}: {} lines", lines(text))).collect();
    assert!(long.is_empty(), "split these, at most {MAX_LINES} lines each:\n{}", long.join("\n"));
}

#[test]
fn the_root_holds_the_five_folders() {
    let mut found: Vec<String> = fs::read_dir(repository())
        .expect("the repository")
        .filter_map(|entry| entry.ok().filter(|e| e.path().is_dir())?.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.') && name != "target")
        .collect();
    found.sort();
    assert_eq!(found, FOLDERS);
}
