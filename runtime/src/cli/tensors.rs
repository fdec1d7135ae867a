//! Reading and writing tensors in safetensors files, with bounds and names in every error: numbers as f32, images as bytes.

use std::collections::BTreeMap;
use std::path::Path;

use refrain_policies::config::PolicyConfig;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Largest input file, bytes.
const MAX_BYTES: u64 = 1 << 30;

/// A row-major f32 tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Array {
    pub(super) shape: Vec<usize>,
    pub(super) data: Vec<f32>,
}

/// Why a tensor file is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum TensorError {
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
    #[error("{path}: expected at most {MAX_BYTES} bytes, got {bytes}")]
    TooLarge { path: String, bytes: u64 },
    #[error("{path}: not a whole safetensors file: {source}")]
    Format { path: String, source: safetensors::SafeTensorError },
    #[error("{path}: tensor {name}: expected F32, got {dtype:?}")]
    Dtype { path: String, name: String, dtype: Dtype },
    #[error("{path}: expected tensor {name}; it has {found}")]
    Missing { path: String, name: &'static str, found: String },
    #[error("{path}: expected images {name} U8 {expected}; there are none")]
    NoImages { path: String, name: String, expected: String },
    #[error("{path}: tensor {name}: expected shape {expected}, got {got:?}")]
    Shape { path: String, name: String, expected: String, got: Vec<usize> },
    #[error("{path}: tensor {name}[{index}] is {value}; expected finite numbers")]
    NotFinite { path: String, name: &'static str, index: usize, value: f32 },
}

/// The tensors of a file.
pub(super) struct TensorFile {
    path: String,
    tensors: BTreeMap<String, Array>,
    bytes: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
}

/// The tensor of what engines observed, as `eval --record` writes it and `calibrate` reads it: raw observations
/// [B,To,O], or, where the policy has cameras, the denoiser's condition [B,To,F+O].
pub(super) fn observed(config: &PolicyConfig) -> &'static str {
    if config.cameras.is_empty() { "obs_raw" } else { "condition" }
}

impl TensorFile {
    pub(super) fn read(path: &Path) -> Result<Self, TensorError> {
        let shown = path.display().to_string();
        let io = |source| TensorError::Io { path: shown.clone(), source };
        let bytes = std::fs::metadata(path).map_err(io)?.len();
        if bytes > MAX_BYTES {
            return Err(TensorError::TooLarge { path: shown, bytes });
        }
        let bytes = std::fs::read(path).map_err(io)?;
        let format = |source| TensorError::Format { path: shown.clone(), source };
        let content = bytes;
        let file = SafeTensors::deserialize(&content).map_err(format)?;
        let mut tensors = BTreeMap::new();
        let mut bytes = BTreeMap::new();
        for (name, view) in file.tensors() {
            if view.dtype() == Dtype::F32 {
                let data = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                tensors.insert(name, Array { shape: view.shape().to_vec(), data: data.collect() });
            } else if view.dtype() == Dtype::U8 {
                bytes.insert(name, (view.shape().to_vec(), view.data().to_vec()));
            } else if ["obs_raw", "noise"].contains(&name.as_str()) {
                return Err(TensorError::Dtype { path: shown, name, dtype: view.dtype() });
            }
        }
        Ok(Self { path: shown, tensors, bytes })
    }

    /// A tensor whose shape `fits`; `expected` says in words what that is.
    pub(super) fn take(
        &mut self,
        name: &'static str,
        expected: &str,
        fits: impl Fn(&[usize]) -> bool,
    ) -> Result<Array, TensorError> {
        let path = self.path.clone();
        let Some(array) = self.tensors.remove(name) else {
            let found = self.tensors.keys().cloned().collect::<Vec<_>>().join(", ");
            let found = if found.is_empty() { "no F32 tensors".into() } else { found };
            return Err(TensorError::Missing { path, name, found });
        };
        if !fits(&array.shape) {
            return Err(TensorError::Shape {
                path,
                name: name.into(),
                expected: expected.into(),
                got: array.shape,
            });
        }
        if let Some(index) = array.data.iter().position(|v| !v.is_finite()) {
            return Err(TensorError::NotFinite { path, name, index, value: array.data[index] });
        }
        Ok(array)
    }

    /// Images of exactly this shape.
    pub(super) fn take_images(&mut self, name: &str, shape: &[usize]) -> Result<Vec<u8>, TensorError> {
        let (path, name, expected) = (self.path.clone(), name.to_owned(), format!("{shape:?}"));
        match self.bytes.remove(&name) {
            None => Err(TensorError::NoImages { path, name, expected }),
            Some((got, _)) if got != shape => Err(TensorError::Shape { path, name, expected, got }),
            Some((_, bytes)) => Ok(bytes),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

/// Writes tensors to a file.
pub(super) fn write(path: &Path, tensors: &[(&str, Array)]) -> Result<(), TensorError> {
    let shown = path.display().to_string();
    let bytes: Vec<(&str, &[usize], Vec<u8>)> = tensors
        .iter()
        .map(|(name, a)| (*name, a.shape.as_slice(), a.data.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let format = |source| TensorError::Format { path: shown.clone(), source };
    let views = bytes
        .iter()
        .map(|(name, shape, data)| Ok((*name, TensorView::new(Dtype::F32, shape.to_vec(), data)?)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(format)?;
    let whole = safetensors::serialize(views, None).map_err(format)?;
    std::fs::write(path, whole).map_err(|source| TensorError::Io { path: shown.clone(), source })
}
