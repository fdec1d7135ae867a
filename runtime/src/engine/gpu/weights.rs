//! Weights as the kernels read them: matrices packed for `linear`, and one list of vectors and tables.
//!
//! A matrix `[C, I]` is cut into tiles of `cols` outputs. With `split` lanes per output, lane `l`'s eight number `j`
//! holds inputs `8 split j + split e + l`, e = 0..8, and eights lie in the order `[tile][j][output][lane]`. Eight f16
//! are 16 bytes; eight f32 are twice that. Outputs and inputs beyond the matrix are zero.

use std::collections::HashMap;

use half::f16;
use refrain_policies::package::{Package, TensorData};
use refrain_policies::plan::{Matrix, Vector};

use super::Precision;
use crate::engine::EngineError;

/// Bytes that `linear` addresses at once.
pub(super) const UNIT: usize = 16;

/// How a matrix is cut, and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Packed {
    /// Which buffer.
    pub(super) shard: usize,
    /// In units of 16 bytes.
    pub(super) at: usize,
    /// Outputs of a tile.
    pub(super) cols: usize,
    /// Eights per lane.
    pub(super) eights: usize,
    /// f16 or f32.
    pub(super) half: bool,
}

/// Collects all weights that a plan names.
pub(super) struct Weights<'a> {
    package: &'a Package,
    precision: Precision,
    /// Largest buffer, bytes.
    limit: usize,
    /// Fewest outputs of a tile that workgroup memory allows.
    least_cols: usize,
    matrices: HashMap<Matrix, Packed>,
    vectors: HashMap<Vector, usize>,
    /// Packed matrices, a buffer each.
    pub(super) shards: Vec<Vec<u8>>,
    /// Vectors and tables.
    pub(super) numbers: Vec<u32>,
}

impl<'a> Weights<'a> {
    pub(super) fn new(package: &'a Package, precision: Precision, limit: usize, least_cols: usize) -> Self {
        Self {
            package,
            precision,
            limit,
            least_cols,
            matrices: HashMap::new(),
            vectors: HashMap::new(),
            shards: vec![Vec::new()],
            numbers: Vec::new(),
        }
    }

    fn tensor(&self, name: &str, first: usize, len: usize) -> Result<&'a TensorData, EngineError> {
        let missing = || EngineError::Weight { name: name.to_owned(), expected: first + len };
        let tensor = self.package.weights.get(name).ok_or_else(missing)?;
        let size = match &tensor.data {
            TensorData::F16(v) => v.len(),
            TensorData::F32(v) => v.len(),
        };
        if size < first + len { Err(missing()) } else { Ok(&tensor.data) }
    }

    fn is_half(&self, name: &str) -> bool {
        match self.precision {
            Precision::F16 => true,
            Precision::F32 => false,
            Precision::Stored => {
                matches!(self.package.weights.get(name).map(|t| &t.data), Some(TensorData::F16(_)))
            }
        }
    }

    /// Elements of a tensor as f32.
    pub(super) fn values(&self, name: &str, first: usize, len: usize) -> Result<Vec<f32>, EngineError> {
        let range = first..first + len;
        Ok(match self.tensor(name, first, len)? {
            TensorData::F16(v) => v[range].iter().map(|x| x.to_f32()).collect(),
            TensorData::F32(v) => v[range].to_vec(),
        })
    }

    /// A matrix row-major, as f32.
    pub(super) fn flat(&self, m: &Matrix) -> Result<Vec<f32>, EngineError> {
        self.values(&m.tensor, m.first * m.cols, m.rows * m.cols)
    }

    /// Place of a packed matrix.
    pub(super) fn matrix(&mut self, m: &Matrix) -> Result<Packed, EngineError> {
        if let Some(&packed) = self.matrices.get(m) {
            return Ok(packed);
        }
        let packed = self.pack(&self.flat(m)?, m.rows, m.cols, self.is_half(&m.tensor))?;
        self.matrices.insert(m.clone(), packed);
        Ok(packed)
    }

    /// Packs a matrix `[rows, cols]` that the engine made itself.
    pub(super) fn pack(
        &mut self,
        flat: &[f32],
        rows: usize,
        depth: usize,
        half: bool,
    ) -> Result<Packed, EngineError> {
        let cols = tile_cols(rows, depth).max(self.least_cols);
        let split = split(cols);
        let eights = depth.div_ceil(8 * split);
        let bytes = rows.div_ceil(cols) * eights * cols * split * if half { UNIT } else { 2 * UNIT };
        if bytes > self.limit {
            return Err(EngineError::TooLarge { what: "a weight matrix", bytes, limit: self.limit });
        }
        let mut shard = self.shards.len() - 1;
        if self.shards[shard].len() + bytes > self.limit {
            self.shards.push(Vec::new());
            shard += 1;
        }
        let to = &mut self.shards[shard];
        let at = to.len() / UNIT;
        to.reserve(bytes);
        for first in (0..rows).step_by(cols) {
            for eight in 0..eights {
                for row in first..first + cols {
                    for lane in 0..split {
                        for e in 0..8 {
                            let input = 8 * split * eight + split * e + lane;
                            let inside = row < rows && input < depth;
                            let v = if inside { flat[row * depth + input] } else { 0.0 };
                            if half {
                                to.extend_from_slice(&f16::from_f32(v).to_le_bytes());
                            } else {
                                to.extend_from_slice(&v.to_le_bytes());
                            }
                        }
                    }
                }
            }
        }
        Ok(Packed { shard, at, cols, eights, half })
    }

    /// Place of a vector.
    pub(super) fn vector(&mut self, v: &Vector) -> Result<u32, EngineError> {
        if let Some(&at) = self.vectors.get(v) {
            return Ok(at as u32);
        }
        let values = self.values(&v.tensor, v.first, v.len)?;
        let at = self.append(&values);
        self.vectors.insert(v.clone(), at as usize);
        Ok(at)
    }

    /// Appends numbers.
    pub(super) fn append(&mut self, values: &[f32]) -> u32 {
        self.append_bits(values.iter().map(|v| v.to_bits()))
    }

    /// Appends a table.
    pub(super) fn append_bits(&mut self, bits: impl IntoIterator<Item = u32>) -> u32 {
        let at = self.numbers.len();
        self.numbers.extend(bits);
        at as u32
    }
}

/// Outputs of a tile: narrow outputs get small tiles, so that more workgroups share the work, and more lanes share
/// an output's inputs. 128 workgroups are about as many as a large GPU has processors.
pub(super) fn tile_cols(rows: usize, depth: usize) -> usize {
    match rows {
        _ if depth < 128 => 8,
        0..=384 => 2,
        385..=640 => 4,
        _ => 8,
    }
}

/// Lanes that share an output's inputs.
pub(super) fn split(cols: usize) -> usize {
    64 / cols
}
