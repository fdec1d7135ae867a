//! Python for tests of interoperability: an environment with the packages of `tests/interop/requirements.txt`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::trace::repository;

/// The folder of the scripts.
pub fn scripts() -> PathBuf {
    repository().join("tests/interop")
}

/// The environment's Python, made on the first call; `None`, said loudly, where it cannot be made.
pub fn python() -> Option<PathBuf> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON.get_or_init(environment).clone()
}

fn environment() -> Option<PathBuf> {
    let wanted = fs::read_to_string(scripts().join("requirements.txt")).expect("the list of packages");
    let folder = target().join("interop-python");
    let (python, stamp) = (folder.join("bin/python"), folder.join("installed.txt"));
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Some(python);
    }
    let venv = run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
    let install = venv.and_then(|()| {
        run(Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(scripts().join("requirements.txt")))
    });
    match install {
        Ok(()) => {
            fs::write(stamp, wanted).expect("a note of what is installed");
            Some(python)
        }
        Err(reason) => {
            eprintln!(
                "SKIPPED: no Python with zenoh and rosbags ({reason}); interoperability was not tested"
            );
            None
        }
    }
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or(repository().join("target"), PathBuf::from)
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("failed").to_owned()),
    }
}
