//! Tensors in memory.

use std::borrow::Cow;
use std::collections::BTreeMap;

use half::f16;

use super::PackageError;
use super::names::{POSITION_TABLES, fits, shown};

/// Tensors by name, f16 or f32, row-major.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    tensors: BTreeMap<String, Tensor>,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Size per dimension.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub data: TensorData,
}

/// Values as they are stored.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// Half precision.
    F16(Vec<f16>),
    /// Single precision.
    F32(Vec<f32>),
}

/// How values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// Half precision.
    #[default]
    F16,
    /// Single precision.
    F32,
}

impl Dtype {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

impl Weights {
    /// A tensor by its state-dict name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Adds a tensor; gives back one of the same name that it replaces.
    pub fn insert(&mut self, name: String, tensor: Tensor) -> Option<Tensor> {
        self.tensors.insert(name, tensor)
    }

    /// Takes a tensor out, for whoever stores it in another layout.
    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.tensors.remove(name)
    }

    /// Names and tensors, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (&name[..], tensor))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Bytes of all values as they are stored.
    pub fn bytes(&self) -> usize {
        self.tensors.values().map(|t| t.data.len() * t.data.dtype().size()).sum()
    }

    /// Cuts position tables to the expected rows.
    pub(super) fn trim(&mut self, expected: &[(String, Vec<usize>)]) {
        for (name, shape) in expected.iter().filter(|(name, _)| POSITION_TABLES.contains(&&name[..])) {
            if let Some(tensor) = self.tensors.get_mut(name)
                && fits(name, shape, &tensor.shape)
                && tensor.shape.iter().product::<usize>() == tensor.data.len()
            {
                tensor.data.truncate(shape.iter().product());
                tensor.shape.clone_from(shape);
            }
        }
    }

    /// Appends every tensor whose values do not fill its shape or are not finite.
    pub(super) fn problems(&self, problems: &mut Vec<String>) {
        for (name, tensor) in self.iter() {
            let name = shown(name);
            let size = tensor.shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s));
            if size != Some(tensor.data.len()) {
                let (got, shape) = (tensor.data.len(), &tensor.shape);
                problems.push(format!("weights: {name}: expected values for shape {shape:?}, got {got}"));
            }
            if let Some((index, value)) = tensor.data.first_not_finite() {
                problems.push(not_finite(&name, index, value));
            }
        }
    }

    /// The content of a safetensors file, without metadata: the same tensors give the same bytes.
    pub(super) fn to_safetensors(&self) -> Result<Vec<u8>, PackageError> {
        safetensors::serialize(self.tensors.iter(), None).map_err(|e| PackageError::Weights(e.to_string()))
    }
}

impl FromIterator<(String, Tensor)> for Weights {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Self {
        Self { tensors: tensors.into_iter().collect() }
    }
}

pub(super) fn not_finite(name: &str, index: usize, value: f32) -> String {
    format!(
        "weights: {name}: expected finite values, got {value} at index {index}; the training diverged or the file is damaged"
    )
}

impl Tensor {
    /// Values as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            TensorData::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
            TensorData::F32(v) => v.clone(),
        }
    }
}

impl TensorData {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::F16(v) => v.len(),
            Self::F32(v) => v.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How the values are stored.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::F16(_) => Dtype::F16,
            Self::F32(_) => Dtype::F32,
        }
    }

    fn truncate(&mut self, len: usize) {
        match self {
            Self::F16(v) => v.truncate(len),
            Self::F32(v) => v.truncate(len),
        }
    }

    pub(super) fn first_not_finite(&self) -> Option<(usize, f32)> {
        match self {
            Self::F16(v) => v.iter().position(|x| !x.is_finite()).map(|i| (i, v[i].to_f32())),
            Self::F32(v) => v.iter().position(|x| !x.is_finite()).map(|i| (i, v[i])),
        }
    }
}

impl safetensors::View for &Tensor {
    fn dtype(&self) -> safetensors::Dtype {
        match self.data {
            TensorData::F16(_) => safetensors::Dtype::F16,
            TensorData::F32(_) => safetensors::Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.data {
            TensorData::F16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            TensorData::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    fn data_len(&self) -> usize {
        self.data.len() * self.data.dtype().size()
    }
}
