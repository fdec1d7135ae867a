//! Traces of the reference implementation: safetensors files with their metadata.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// How often this process did without shared data.
static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// Tensors of f32 by name, and the metadata key `meta`.
#[derive(Debug)]
pub struct Trace {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    /// What the trace says about itself; null when it says nothing.
    pub meta: Value,
}

impl Trace {
    /// Reads a file; tensors that are not f32 are left out.
    ///
    /// # Panics
    /// When the file is missing or damaged.
    pub fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors header");
        let meta = header.metadata().as_ref().and_then(|m| m.get("meta"));
        let meta = meta.map_or(Value::Null, |text| serde_json::from_str(text).expect("meta is JSON"));
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tensors = file.iter().filter(|(_, view)| view.dtype() == Dtype::F32).map(|(name, view)| {
            let numbers = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
            (name.to_owned(), (view.shape().to_vec(), numbers.collect()))
        });
        Self { tensors: tensors.collect(), meta }
    }

    /// Names that start with `prefix`.
    pub fn names(&self, prefix: &str) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).filter(|name| name.starts_with(prefix)).collect()
    }

    /// Shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(shape, _)| &shape[..])
    }

    /// Element `index` of the first dimension, flattened.
    ///
    /// # Panics
    /// When there is no such tensor or element.
    pub fn at(&self, name: &str, index: usize) -> &[f32] {
        let (shape, numbers) = self.tensors.get(name).unwrap_or_else(|| panic!("the trace has no {name}"));
        let len: usize = shape[1..].iter().product();
        &numbers[index * len..(index + 1) * len]
    }

    /// Observations in the batch.
    pub fn batch(&self) -> usize {
        self.shape("obs_norm").expect("obs_norm")[0]
    }

    /// Noise `[K + 1, T, N]` of one observation, from `[.., B, T, N]`.
    pub fn noise(&self, observation: usize, steps: usize) -> Vec<f32> {
        let rows = (0..=steps).map(|row| {
            let all = self.at("noise", row);
            let len = all.len() / self.batch();
            &all[observation * len..(observation + 1) * len]
        });
        rows.flatten().copied().collect()
    }

    /// One observation's part of `[K, B, ..]` at a step.
    pub fn step(&self, name: &str, step: usize, observation: usize) -> &[f32] {
        let all = self.at(name, step);
        let len = all.len() / self.batch();
        &all[observation * len..(observation + 1) * len]
    }
}

/// The repository's folder.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The folder of fixtures.
pub fn fixtures() -> PathBuf {
    repository().join("tests/fixtures")
}

/// A folder of the shared data; `None`, said loudly and counted, if it is not there. `REFRAIN_SHARED` names another place.
pub fn shared(folder: &str) -> Option<PathBuf> {
    let root =
        std::env::var_os("REFRAIN_SHARED").map_or_else(|| repository().join("../shared"), PathBuf::from);
    let found = root.join(folder);
    if found.is_dir() {
        return Some(found);
    }
    let skipped = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    let place = found.display();
    eprintln!("SKIPPED ({skipped} so far): no shared data at {place}; set REFRAIN_SHARED to its folder");
    None
}
