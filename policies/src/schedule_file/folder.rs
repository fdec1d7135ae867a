//! A policy's `schedules/` folder: one TOML file per schedule, asked for by name.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::{MAX_BYTES, ScheduleFile, ScheduleFileError};

const FOLDER: &str = "schedules";
const MAX_NAME: usize = 64;

impl ScheduleFile {
    /// Where the schedule of this name lies in a policy package; refuses names that are more than a plain file name.
    pub fn path(package: &Path, name: &str) -> Result<PathBuf, ScheduleFileError> {
        if is_name(name) {
            Ok(package.join(FOLDER).join(format!("{name}.toml")))
        } else {
            Err(ScheduleFileError::Name(name.to_owned()))
        }
    }

    /// Names of the schedules in a policy package, sorted; none if there is no folder. Other files are passed over.
    pub fn names(package: &Path) -> Result<Vec<String>, ScheduleFileError> {
        let folder = package.join(FOLDER);
        let failed = |source| ScheduleFileError::Io { path: folder.clone(), source };
        let entries = match fs::read_dir(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.map_err(failed)?.file_name();
            let name = file.to_str().and_then(|f| f.strip_suffix(".toml")).filter(|n| is_name(n));
            names.extend(name.map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// Reads a schedule of a policy package by name; [`ScheduleFile::check`] comes next.
    pub fn load(package: &Path, name: &str) -> Result<Self, ScheduleFileError> {
        let path = Self::path(package, name)?;
        let text = match read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let names = Self::names(package)?;
                let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                let folder = package.join(FOLDER);
                return Err(ScheduleFileError::NotFound { name: name.to_owned(), folder, known });
            }
            Err(source) => return Err(ScheduleFileError::Io { path, source }),
            Ok(None) => return Err(ScheduleFileError::TooLarge),
            Ok(Some(text)) => text,
        };
        Self::parse(&text)
    }

    /// Writes it into a policy package under this name, replacing what was there as a whole; returns the path.
    pub fn save(&self, package: &Path, name: &str) -> Result<PathBuf, ScheduleFileError> {
        let path = Self::path(package, name)?;
        let text = self.to_toml()?;
        let part = path.with_extension("toml.part");
        let write = || {
            fs::create_dir_all(package.join(FOLDER))?;
            let mut file = File::create(&part)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&part, &path)
        };
        match write() {
            Ok(()) => Ok(path),
            Err(source) => Err(ScheduleFileError::Io { path, source }),
        }
    }
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// The text of a plain file; none if it is too large.
fn read(path: &Path) -> io::Result<Option<String>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a plain file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_BYTES {
        return Ok(None);
    }
    String::from_utf8(bytes).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}
