//! Weights in the order in which the kernels read them.
//!
//! A matrix `[C, I]` is packed into panels of sixteen outputs: panel p, input i, output 16 p + c lie at
//! `(p * I + i) * 16 + c`, zero-filled beyond C. f16 weights stay f16.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use refrain_policies::package::{Package, TensorData};
use refrain_policies::plan::{Matrix, Vector};

use super::lanes::LANES;
use crate::engine::EngineError;

/// A packed matrix.
pub(super) struct Packed {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) data: PackedData,
}

/// Panels in the precision of the package.
pub(super) enum PackedData {
    F16(Vec<HalfLine>),
    F32(Vec<Line>),
}

/// Sixteen f16 numbers, aligned for a vector load.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(super) struct HalfLine([u16; LANES]);

/// Sixteen f32 numbers, aligned for a vector load.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Line([f32; LANES]);

/// All weights of one package, packed when first asked for and shared by every engine on it.
pub struct CpuWeights {
    package: Arc<Package>,
    packed: Mutex<HashMap<Matrix, Arc<Packed>>>,
}

impl CpuWeights {
    /// Nothing is packed yet.
    pub fn new(package: Arc<Package>) -> Arc<Self> {
        Arc::new(Self { package, packed: Mutex::default() })
    }

    /// The package they come from.
    pub fn package(&self) -> &Arc<Package> {
        &self.package
    }

    /// Bytes that one weight of the large matrices takes: 2 for an f16 package, else 4.
    pub fn bytes_per_weight(&self) -> u64 {
        match self.package.weights.get("head.weight").map(|t| &t.data) {
            Some(TensorData::F16(_)) => 2,
            _ => 4,
        }
    }

    fn tensor(&self, name: &str, first: usize, len: usize) -> Result<&TensorData, EngineError> {
        let missing = || EngineError::Weight { name: name.to_owned(), expected: first + len };
        let tensor = self.package.weights.get(name).ok_or_else(missing)?;
        let size = match &tensor.data {
            TensorData::F16(v) => v.len(),
            TensorData::F32(v) => v.len(),
        };
        if size < first + len { Err(missing()) } else { Ok(&tensor.data) }
    }

    pub(super) fn matrix(&self, matrix: &Matrix) -> Result<Arc<Packed>, EngineError> {
        let mut packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = packed.get(matrix) {
            return Ok(Arc::clone(found));
        }
        let (rows, cols) = (matrix.rows, matrix.cols);
        let at = matrix.first * cols;
        let data = match self.tensor(&matrix.tensor, at, rows * cols)? {
            TensorData::F16(v) => PackedData::F16(
                panels(rows, cols, |i| v[at + i].to_bits(), 0).into_iter().map(HalfLine).collect(),
            ),
            TensorData::F32(v) => {
                PackedData::F32(panels(rows, cols, |i| v[at + i], 0.0).into_iter().map(Line).collect())
            }
        };
        let made = Arc::new(Packed { rows, cols, data });
        packed.insert(matrix.clone(), Arc::clone(&made));
        Ok(made)
    }

    /// A matrix as f32, transposed: `[cols, rows]`.
    pub(super) fn transposed(&self, matrix: &Matrix) -> Result<Vec<f32>, EngineError> {
        let flat = self.flat(matrix)?;
        let (rows, cols) = (matrix.rows, matrix.cols);
        Ok((0..rows * cols).map(|i| flat[i % rows * cols + i / rows]).collect())
    }

    /// A matrix as f32, row-major.
    pub(super) fn flat(&self, m: &Matrix) -> Result<Vec<f32>, EngineError> {
        let (first, len) = (m.first * m.cols, m.rows * m.cols);
        self.vector(&Vector { tensor: m.tensor.clone(), first, len })
    }

    /// A vector as f32.
    pub(super) fn vector(&self, v: &Vector) -> Result<Vec<f32>, EngineError> {
        let range = v.first..v.first + v.len;
        Ok(match self.tensor(&v.tensor, v.first, v.len)? {
            TensorData::F16(data) => data[range].iter().map(|x| x.to_f32()).collect(),
            TensorData::F32(data) => data[range].to_vec(),
        })
    }
}

fn panels<T: Copy>(rows: usize, cols: usize, at: impl Fn(usize) -> T, zero: T) -> Vec<[T; LANES]> {
    let mut out = Vec::with_capacity(rows.div_ceil(LANES) * cols);
    for first in (0..rows).step_by(LANES) {
        for i in 0..cols {
            out.push(std::array::from_fn(
                |c| if first + c < rows { at((first + c) * cols + i) } else { zero },
            ));
        }
    }
    out
}

impl Packed {
    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }
}
