//! `weights.safetensors`, read as a stream: checked before anything is allocated, hashed on the way, every tensor
//! straight into its place.

use std::collections::BTreeMap;
use std::io::{self, Read};

use half::f16;
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::{Digest, Sha256};

use super::names::{self, shown};
use super::weights::not_finite;
use super::{PackageError, Tensor, TensorData, Weights, hex};

/// Largest header, bytes; the largest architecture needs less than half of it.
const MAX_HEADER_BYTES: u64 = 4 << 20;
/// Values are converted in pieces of this many bytes.
const PIECE: usize = 64 << 10;

/// Reads a file of `bytes` bytes; gives the expected tensors and the file's SHA-256, and appends what is wrong.
/// Without expected tensors (the architecture is wrong) only form and values are checked.
///
/// Memory: the tensors, the header and one piece. No tensor is larger than its part of the file.
pub(super) fn read(
    source: &mut dyn Read,
    bytes: u64,
    expected: Option<&[(String, Vec<usize>)]>,
    problems: &mut Vec<String>,
) -> Result<(Weights, String), PackageError> {
    let mut source = Hashed { source, hash: Sha256::new() };
    let metadata = header(&mut source, bytes)?;
    let infos = metadata.tensors();
    if let Some(expected) = expected {
        names::check(expected, infos.iter().map(|(name, info)| (&name[..], &info.shape[..])), problems);
    }
    let shapes: Option<BTreeMap<&str, &[usize]>> =
        expected.map(|e| e.iter().map(|(name, shape)| (&name[..], &shape[..])).collect());
    let mut weights = Weights::default();
    for name in metadata.offset_keys() {
        let info = infos[&name];
        let shape = match &shapes {
            None => Some(&info.shape[..]),
            Some(shapes) => shapes.get(&name[..]).copied().filter(|s| names::fits(&name, s, &info.shape)),
        };
        let tensor = tensor(&mut source, &name, info, shape, problems).map_err(truncated)?;
        if let Some(tensor) = tensor.filter(|_| shapes.is_some()) {
            weights.insert(name, tensor);
        }
    }
    problems.sort_by_key(|p| p.starts_with("weights: unexpected"));
    Ok((weights, hex(source.hash.finalize())))
}

fn header(source: &mut impl Read, bytes: u64) -> Result<Metadata, PackageError> {
    let damaged = |problem: String| PackageError::Weights(problem);
    let mut length = [0; 8];
    source.read_exact(&mut length).map_err(truncated)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(damaged(format!("expected a header of at most {MAX_HEADER_BYTES} bytes, got {length}")));
    }
    if length > bytes.saturating_sub(8) {
        return Err(damaged(format!("is truncated: {length} bytes of header in a file of {bytes}")));
    }
    let mut text = vec![0; length as usize];
    source.read_exact(&mut text).map_err(truncated)?;
    let metadata: Metadata =
        serde_json::from_slice(&text).map_err(|e| damaged(format!("the header is damaged: {e}")))?;
    let (expected, got) = (metadata.data_len() as u64, bytes.saturating_sub(8 + length));
    if expected != got {
        return Err(damaged(format!("expected {expected} bytes of values, got {got}")));
    }
    Ok(metadata)
}

/// Reads past one tensor; gives its values if `shape`, the wanted part of it, is given and the dtype is known.
fn tensor(
    source: &mut impl Read,
    name: &str,
    info: &TensorInfo,
    shape: Option<&[usize]>,
    problems: &mut Vec<String>,
) -> io::Result<Option<Tensor>> {
    let bytes = info.data_offsets.1 - info.data_offsets.0;
    let half = match info.dtype {
        safetensors::Dtype::F16 => true,
        safetensors::Dtype::F32 => false,
        other => {
            problems.push(format!("weights: {}: expected dtype F16 or F32, got {other}", shown(name)));
            skip(source, bytes)?;
            return Ok(None);
        }
    };
    let Some(shape) = shape else {
        skip(source, bytes)?;
        return Ok(None);
    };
    let count = shape.iter().product::<usize>();
    let wanted = count * if half { 2 } else { 4 };
    let data = if half {
        let mut values = Vec::with_capacity(count);
        let value = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]);
        pieces(source, wanted, |piece| values.extend(piece.chunks_exact(2).map(value)))?;
        TensorData::F16(values)
    } else {
        let mut values = Vec::with_capacity(count);
        let value = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        pieces(source, wanted, |piece| values.extend(piece.chunks_exact(4).map(value)))?;
        TensorData::F32(values)
    };
    skip(source, bytes - wanted)?;
    if let Some((index, value)) = data.first_not_finite() {
        problems.push(not_finite(&shown(name), index, value));
    }
    Ok(Some(Tensor { shape: shape.to_vec(), data }))
}

fn skip(source: &mut impl Read, bytes: usize) -> io::Result<()> {
    pieces(source, bytes, |_| ())
}

/// Hands on `bytes` bytes in pieces, all but the last of [`PIECE`] bytes.
fn pieces(source: &mut impl Read, mut bytes: usize, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; bytes.min(PIECE)];
    while bytes > 0 {
        let piece = &mut buffer[..bytes.min(PIECE)];
        source.read_exact(piece)?;
        each(piece);
        bytes -= piece.len();
    }
    Ok(())
}

fn truncated(error: io::Error) -> PackageError {
    PackageError::Weights(if error.kind() == io::ErrorKind::UnexpectedEof {
        "is truncated".into()
    } else {
        error.to_string()
    })
}

/// Hashes what passes.
struct Hashed<'a> {
    source: &'a mut dyn Read,
    hash: Sha256,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(buffer)?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}
