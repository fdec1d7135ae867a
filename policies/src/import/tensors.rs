//! Tensors of a torch checkpoint: views into storages that lie beside the pickle.
//!
//! A view's shape is compared with the expected one before anything is read, and it may not reach beyond its storage
//! or repeat elements of it. Source: `torch/_utils.py` (`_rebuild_tensor_v2`) and `torch/serialization.py`.

use std::io::{Read, Seek};

use half::{bf16, f16};

use super::ImportError;
use super::archive::Archive;
use super::pickle::{Id, Node, Pickle};

/// Most dimensions.
const MAX_RANK: usize = 8;

/// Types of storages whose values can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    F16,
    Bf16,
    F32,
    F64,
}

impl Element {
    fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// A tensor as the pickle describes it.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) shape: Vec<usize>,
    strides: Vec<usize>,
    offset: usize,
    element: Element,
    storage: String,
    /// Elements of the storage.
    elements: usize,
}

/// Reads a tensor's description.
pub(super) fn view(pickle: &Pickle, id: Id) -> Result<View, String> {
    let (args, what) = match pickle.object(id) {
        Some(("torch._utils", "_rebuild_tensor_v2", object)) => (pickle.tuple(object.args), "tensor"),
        Some(("torch._utils", "_rebuild_parameter", object)) => {
            let data = pickle.tuple(object.args).and_then(|args| args.first().copied());
            // A parameter of a parameter does not exist, so this goes down one level at most.
            return match data.map(|data| (data, pickle.object(data))) {
                Some((data, Some(("torch._utils", "_rebuild_tensor_v2", _)))) => view(pickle, data),
                _ => Err("expected a parameter of a tensor".into()),
            };
        }
        _ => return Err(format!("expected a dense torch tensor, got {}", pickle.kind(id))),
    };
    let broken = || format!("the description of the {what} is damaged");
    let args = args.filter(|args| args.len() >= 4).ok_or_else(broken)?;
    let offset = pickle.size(args[1]).ok_or_else(broken)?;
    let sizes = |id: Id| -> Option<Vec<usize>> {
        pickle.tuple(id)?.iter().map(|&n| pickle.size(n)).collect::<Option<_>>()
    };
    let (shape, strides) = (sizes(args[2]).ok_or_else(broken)?, sizes(args[3]).ok_or_else(broken)?);
    if shape.len() != strides.len() || shape.len() > MAX_RANK {
        return Err(broken());
    }
    let Node::Persistent(storage) = pickle.get(args[0]) else { return Err(broken()) };
    let storage = pickle.tuple(*storage).filter(|parts| parts.len() == 5).ok_or_else(broken)?;
    let [tag, class, key, _location, elements] = storage else { return Err(broken()) };
    if pickle.text(*tag) != Some("storage") {
        return Err(broken());
    }
    let element = match pickle.global(*class) {
        Some((_, "HalfStorage")) => Element::F16,
        Some((_, "BFloat16Storage")) => Element::Bf16,
        Some((_, "FloatStorage")) => Element::F32,
        Some((_, "DoubleStorage")) => Element::F64,
        _ => {
            return Err(format!(
                "expected values in FloatStorage, HalfStorage, BFloat16Storage or DoubleStorage, got {}",
                pickle.kind(*class)
            ));
        }
    };
    let key = pickle
        .text(*key)
        .filter(|k| k.len() <= 64 && k.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
    let key = key.ok_or_else(broken)?.to_owned();
    let elements = pickle.size(*elements).ok_or_else(broken)?;
    let view = View { shape, strides, offset, element, storage: key, elements };
    view.check()?;
    Ok(view)
}

impl View {
    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    fn check(&self) -> Result<(), String> {
        let count = self.shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s));
        let last = self.shape.iter().zip(&self.strides).try_fold(self.offset, |at, (&n, &stride)| {
            at.checked_add(n.saturating_sub(1).checked_mul(stride)?)
        });
        let inside = match (count, last) {
            (Some(0), _) => true,
            (Some(count), Some(last)) => last < self.elements && count <= self.elements,
            _ => false,
        };
        if inside {
            Ok(())
        } else {
            Err(format!(
                "shape {:?} with strides {:?} at offset {} does not fit into a storage of {} values",
                self.shape, self.strides, self.offset, self.elements
            ))
        }
    }

    fn is_contiguous(&self) -> bool {
        let mut stride = 1;
        for (&n, &s) in self.shape.iter().zip(&self.strides).rev() {
            if n != 1 && s != stride {
                return false;
            }
            stride *= n;
        }
        true
    }
}

/// Reads tensors out of an archive; the last storage is kept for a neighbour in it.
#[derive(Debug)]
pub(super) struct Tensors<R> {
    archive: Archive<R>,
    last: Option<(String, Vec<u8>)>,
}

impl<R: Read + Seek> Tensors<R> {
    pub(super) fn new(archive: Archive<R>) -> Self {
        Self { archive, last: None }
    }

    /// A tensor's values, row-major; the conversion from f64 rounds.
    pub(super) fn read(&mut self, view: &View) -> Result<Vec<f32>, ImportError> {
        let name = format!("data/{}", view.storage);
        self.archive.charge(&name, view.len() as u64 * 4)?;
        if self.last.as_ref().is_none_or(|(key, _)| *key != view.storage) {
            self.last = None;
            let Some(bytes) = self.archive.read(&name, u64::MAX - 1)? else {
                return Err(ImportError::Archive(format!("entry {name:?} is missing")));
            };
            self.last = Some((view.storage.clone(), bytes));
        }
        let bytes = self.last.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        let size = view.element.size();
        if view.elements.checked_mul(size).is_none_or(|needed| needed > bytes.len()) {
            return Err(ImportError::Archive(format!(
                "entry {name:?}: expected {} values of {size} bytes, got {} bytes",
                view.elements,
                bytes.len()
            )));
        }
        if view.len() == 0 {
            return Ok(Vec::new());
        }
        let mut values = Vec::with_capacity(view.len());
        if view.is_contiguous() {
            let bytes = &bytes[view.offset * size..(view.offset + view.len()) * size];
            values.extend(bytes.chunks_exact(size).map(|b| value(view.element, b)));
        } else {
            let mut index = [0; MAX_RANK];
            let index = &mut index[..view.shape.len()];
            for _ in 0..view.len() {
                let at = view.offset + index.iter().zip(&view.strides).map(|(i, s)| i * s).sum::<usize>();
                values.push(value(view.element, &bytes[at * size..(at + 1) * size]));
                for (i, &n) in index.iter_mut().zip(&view.shape).rev() {
                    *i += 1;
                    if *i < n {
                        break;
                    }
                    *i = 0;
                }
            }
        }
        Ok(values)
    }
}

fn value(element: Element, b: &[u8]) -> f32 {
    match element {
        Element::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
        Element::Bf16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        Element::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        Element::F64 => f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32,
    }
}

/// Values of a tensor in a safetensors file.
pub(super) fn from_safetensors(view: &safetensors::tensor::TensorView<'_>) -> Result<Vec<f32>, String> {
    let element = match view.dtype() {
        safetensors::Dtype::F16 => Element::F16,
        safetensors::Dtype::BF16 => Element::Bf16,
        safetensors::Dtype::F32 => Element::F32,
        safetensors::Dtype::F64 => Element::F64,
        other => return Err(format!("expected dtype F16, BF16, F32 or F64, got {other}")),
    };
    Ok(view.data().chunks_exact(element.size()).map(|b| value(element, b)).collect())
}
