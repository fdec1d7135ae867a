//! The policy package: a folder with `policy.toml`, `weights.safetensors` and `schedules/`.

use crate::config::PolicyConfig;
use std::collections::BTreeMap;

/// A loaded, checked policy.
#[derive(Clone, Debug)]
pub struct Package {
    /// What the policy is.
    pub config: PolicyConfig,
    /// Its weights by name.
    pub weights: Weights,
}

/// Tensors by name, f16 or f32, row-major.
#[derive(Clone, Debug, Default)]
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
    F16(Vec<half::f16>),
    /// Single precision.
    F32(Vec<f32>),
}

impl Weights {
    /// A tensor by its state-dict name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }
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
