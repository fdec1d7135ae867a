//! What a search measured, one JSON line per schedule, so that a stopped search goes on where it was.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use refrain_policies::sampler::SamplerConfig;
use refrain_policies::schedule::{Cell, Schedule};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::study::Errors;

/// A file of measurements.
pub struct Journal {
    file: File,
    entries: Vec<Entry>,
    known: HashMap<String, usize>,
}

/// One measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Digest of sampler and schedule.
    pub key: String,
    /// Sampler.
    pub sampler: String,
    /// Block computations.
    pub computations: usize,
    /// Steps with an update.
    pub steps: usize,
    /// On the first of the searched observations or all of them, against the full run of the same sampler.
    pub errors: Errors,
}

/// Digest of everything that a candidate's error depends on besides the study.
pub fn key(sampler: &SamplerConfig, schedule: &Schedule) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{sampler:?}"));
    for (block, cells) in schedule.rows() {
        hash.update(block.to_string());
        for cell in cells {
            match cell {
                Cell::Update => hash.update("U"),
                Cell::Reuse(weights) => {
                    hash.update("R");
                    weights.iter().for_each(|w| hash.update(w.to_le_bytes()));
                }
            }
        }
    }
    for correction in schedule.corrections() {
        hash.update(format!("C{:?}", correction.steps));
        correction.values.iter().for_each(|v| hash.update(v.to_le_bytes()));
    }
    hash.finalize().iter().take(12).map(|b| format!("{b:02x}")).collect()
}

impl Journal {
    /// Opens a journal for a study; one of another study is begun anew. A line that was cut off is passed over.
    pub fn open(path: &Path, study: &str) -> io::Result<Self> {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut lines = text.lines();
        let same = lines.next() == Some(study);
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        if !same {
            file.set_len(0)?;
            writeln!(file, "{study}")?;
        }
        let mut journal = Self { file, entries: Vec::new(), known: HashMap::new() };
        if same {
            lines
                .filter_map(|line| serde_json::from_str(line).ok())
                .for_each(|entry| journal.remember(entry));
        }
        Ok(journal)
    }

    /// The errors under this key that were put last.
    pub fn get(&self, key: &str) -> Option<&Errors> {
        self.known.get(key).map(|&i| &self.entries[i].errors)
    }

    /// All measurements.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Adds a measurement.
    pub fn put(&mut self, key: &str, sampler: &str, schedule: &Schedule, errors: Errors) -> io::Result<()> {
        let entry = Entry {
            key: key.to_owned(),
            sampler: sampler.to_owned(),
            computations: schedule.updates(),
            steps: schedule.steps_with_updates(),
            errors,
        };
        writeln!(self.file, "{}", serde_json::to_string(&entry)?)?;
        self.remember(entry);
        Ok(())
    }

    fn remember(&mut self, entry: Entry) {
        self.known.insert(entry.key.clone(), self.entries.len());
        self.entries.push(entry);
    }
}
