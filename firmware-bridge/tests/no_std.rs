//! `wire` and `link` build for a microcontroller, and their machine code calls no panic function.

use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "thumbv7em-none-eabihf";

fn target_is_installed() -> bool {
    let output = Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).output();
    output.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}

/// Builds the crate without `std` and gives the library's path.
fn build(target: Option<&str>) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no_std");
    let mut command = Command::new(env!("CARGO"));
    command
        .args([
            "build",
            "--release",
            "--no-default-features",
            "--lib",
            "--config",
            "profile.release.debug=false",
        ])
        .arg("--manifest-path")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&folder);
    if let Some(target) = target {
        command.args(["--target", target]);
    }
    let output = command.output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let folder = target.map_or(folder.clone(), |target| folder.join(target));
    folder.join("release/librefrain_firmware_bridge.rlib")
}

#[test]
fn wire_and_link_build_without_std_and_cannot_panic() {
    // With the target's core library alone, anything of std or alloc would fail to build.
    let target = target_is_installed().then_some(TARGET);
    if target.is_none() {
        eprintln!("SKIPPED: {TARGET} is not installed; built for this host without `std` instead");
    }
    let library = build(target);
    let Ok(output) = Command::new("nm").arg("--undefined-only").arg(&library).output() else {
        eprintln!("SKIPPED: no `nm`, the library was not searched for calls to panic functions");
        return;
    };
    let symbols = String::from_utf8_lossy(&output.stdout);
    assert!(symbols.contains("try_encode"), "nm sees the calls into the COBS crate:\n{symbols}");
    let panics: Vec<&str> =
        symbols.lines().filter(|line| line.contains("panic") || line.contains("_fail")).collect();
    assert!(panics.is_empty(), "calls that can panic: {panics:#?}");
}
