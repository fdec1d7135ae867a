//! Weights as the kernels read them: matrices packed for `linear`, and one list of vectors and tables.
//!
//! A matrix `[C, I]` is cut into tiles of `cols` outputs. With `split` lanes per output, element e of lane `l`'s eight
//! number `j` is for input `8 split j + 4 split (e / 4) + 4 l + e % 4`, and eights lie in the order
//! `[tile][j][output][lane]`. Eight f16 are 16 bytes; eight f32 are twice that. Outputs and inputs beyond the matrix
//! are zero.

use std::collections::HashMap;

use half::f16;
use refrain_policies::package::{Package, TensorData};
use refrain_policies::plan::{Matrix, Vector};

use super::Precision;
use super::kernels::THREADS;
use crate::engine::EngineError;

/// Bytes that `linear` addresses at once.
pub(super) const UNIT: usize = 16;
/// Most eights that a lane of `linear` holds at once.
const MOST_STEPS: usize = 4;

/// How a matrix is cut: a workgroup of [`THREADS`] has 2 x 2 results per thread and `split` threads per result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Outputs of a workgroup.
    pub(super) cols: usize,
    /// Lanes that share an output's inputs.
    pub(super) split: usize,
}

/// How a matrix is cut, and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Packed {
    /// Which buffer.
    pub(super) shard: usize,
    /// In units of 16 bytes.
    pub(super) at: usize,
    /// How it is cut.
    pub(super) tile: Tile,
    /// Eights per lane, a multiple of `steps`.
    pub(super) eights: usize,
    /// Eights that a lane fetches at once.
    pub(super) steps: usize,
    /// f16 or f32.
    pub(super) half: bool,
}

/// Collects all weights that a plan names.
pub(super) struct Weights<'a> {
    package: &'a Package,
    precision: Precision,
    /// Largest buffer, bytes.
    limit: usize,
    matrices: HashMap<(Matrix, Tile), Packed>,
    normed: HashMap<(Matrix, [Vector; 3]), (u32, u32)>,
    vectors: HashMap<Vector, usize>,
    /// Packed matrices, a buffer each.
    pub(super) shards: Vec<Vec<u8>>,
    /// Vectors and tables.
    pub(super) numbers: Vec<u32>,
}

impl<'a> Weights<'a> {
    pub(super) fn new(package: &'a Package, precision: Precision, limit: usize) -> Self {
        Self {
            package,
            precision,
            limit,
            matrices: HashMap::new(),
            normed: HashMap::new(),
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
    pub(super) fn matrix(&mut self, m: &Matrix, tile: Tile) -> Result<Packed, EngineError> {
        let key = (m.clone(), tile);
        if let Some(&packed) = self.matrices.get(&key) {
            return Ok(packed);
        }
        let packed = self.pack(&self.flat(m)?, m.rows, m.cols, tile, self.is_half(&m.tensor))?;
        self.matrices.insert(key, packed);
        Ok(packed)
    }

    /// What LayerNorm with gain and bias adds to a product: places of `sum(gain w)` and of `sum(norm bias w) + b`.
    pub(super) fn normed(&mut self, m: &Matrix, vectors: [&Vector; 3]) -> Result<(u32, u32), EngineError> {
        let key = (m.clone(), vectors.map(Clone::clone));
        if let Some(&found) = self.normed.get(&key) {
            return Ok(found);
        }
        let of = |v: &Vector| self.values(&v.tensor, v.first, v.len);
        let [gain, norm_bias, bias] = [of(vectors[0])?, of(vectors[1])?, of(vectors[2])?];
        let half = self.is_half(&m.tensor);
        let stored = |w: f32| f64::from(if half { f16::from_f32(w).to_f32() } else { w });
        let sum = |row: &[f32], by: &[f32]| -> f64 {
            row.iter().zip(by).map(|(&w, &v)| stored(w) * f64::from(v)).sum()
        };
        let flat = self.flat(m)?;
        let slopes: Vec<f32> = flat.chunks(m.cols).map(|row| sum(row, &gain) as f32).collect();
        let biases: Vec<f32> = flat
            .chunks(m.cols)
            .zip(&bias)
            .map(|(row, &b)| (sum(row, &norm_bias) + f64::from(b)) as f32)
            .collect();
        let found = (self.append(&slopes), self.append(&biases));
        self.normed.insert(key, found);
        Ok(found)
    }

    /// Packs a matrix `[rows, cols]` that the engine made itself.
    pub(super) fn pack(
        &mut self,
        flat: &[f32],
        rows: usize,
        depth: usize,
        tile: Tile,
        half: bool,
    ) -> Result<Packed, EngineError> {
        let Tile { cols, split } = tile;
        let eights = depth.div_ceil(8 * split);
        let steps = eights.next_power_of_two().min(MOST_STEPS);
        let eights = eights.next_multiple_of(steps);
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
                            let input = 8 * split * eight + 4 * split * (e / 4) + 4 * lane + e % 4;
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
        Ok(Packed { shard, at, tile, eights, steps, half })
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

    /// Appends a table; it starts at a multiple of four and is followed by zeros up to the next.
    pub(super) fn append_bits(&mut self, bits: impl IntoIterator<Item = u32>) -> u32 {
        let at = self.numbers.len();
        self.numbers.extend(bits);
        self.numbers.resize(self.numbers.len().next_multiple_of(4), 0);
        at as u32
    }
}

impl Tile {
    /// The tile that `attend` reads: 4 rows times 8 outputs, 32 lanes.
    pub(super) const ATTEND: Self = Self { cols: 8, split: 32 };

    /// The tile of `linear` for a matrix: about 128 workgroups, as many as a large GPU has processors, and as few bytes
    /// of inputs and weights per workgroup as that leaves.
    pub(super) fn of(rows: usize, depth: usize) -> Self {
        match rows {
            _ if depth < 64 => Self { cols: 16, split: 4 },
            0..=384 => Self { cols: 8, split: 32 },
            385..=640 => Self { cols: 8, split: 16 },
            _ => Self { cols: 16, split: 8 },
        }
    }

    /// Rows of a workgroup.
    pub(super) fn rows(self) -> usize {
        4 * THREADS / (self.cols * self.split)
    }
}
