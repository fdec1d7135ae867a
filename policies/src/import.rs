//! Importers: from other formats to a [`Package`]. Nothing from a file is ever executed.
//!
//! [`checkpoint`] reads `.ckpt` files of real-stanford/diffusion_policy; [`safetensors`](fn@safetensors) reads a
//! `policy.toml` beside plain weights; [`lerobot`](fn@lerobot) reads a checkpoint folder of LeRobot. What is not supported is
//! refused by name, all of it at once, and listed by [`supported`](fn@supported).

mod archive;
mod config_tree;
mod diffusion_policy;
mod expression;
mod hybrid;
mod lerobot;
mod normalizers;
mod pickle;
mod section;
mod state;
mod supported;
mod tasks;
mod tensors;

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::f16;
use sha2::{Digest, Sha256};

use crate::config::{PolicyConfig, is_plain_name};
use crate::encoder::{Encoder, EncoderError};
use crate::package::{
    Dtype, EncoderFiles, MAX_ENCODER_BYTES, MAX_POLICY_BYTES, Package, PackageError, TensorData, hex, listed,
    parse_policy,
};

pub use lerobot::lerobot;
pub use pickle::PickleError;
pub use supported::page as supported;

/// Where a checkpoint names no rate.
const DEFAULT_RATE_HZ: f64 = 10.0;

/// What the user decides; everything else comes from the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// The policy's name; otherwise the file's name without extension.
    pub name: Option<String>,
    /// The rate at which actions follow each other, Hz; otherwise what the checkpoint's environment has.
    pub rate_hz: Option<f64>,
    /// How weights are stored.
    pub dtype: Dtype,
    /// Licence of the weights, as their author stated it.
    pub license: Option<String>,
    /// Folder with the encoders of a policy that sees; without it, the package lacks them.
    pub encoders: Option<PathBuf>,
}

/// Why something cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file around the checkpoint is damaged, hostile or of another format.
    #[error("the checkpoint {0}")]
    Archive(String),
    /// The pickle in the checkpoint is damaged, hostile or of another kind.
    #[error("the checkpoint's data.pkl {0}")]
    Pickle(#[from] PickleError),
    /// The checkpoint has another layout, lacks something, or asks for something that is not supported.
    #[error("the checkpoint cannot be imported:{}", listed(.0))]
    Unsupported(Vec<String>),
    /// What was imported makes no sound policy.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// An encoder that was to come along is not one for the policy's cameras.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
}

/// Imports a `.ckpt` file of real-stanford/diffusion_policy's transformer policies.
///
/// EMA weights are taken where the checkpoint's training used them. The weights are stored as `options.dtype` says;
/// values that do not fit are an error. The encoders of a policy that sees are taken from `options.encoders`; without
/// it the package has none and can be saved but not loaded, see [`Package::missing_encoders`].
pub fn checkpoint(path: &Path, options: &Options) -> Result<Package, ImportError> {
    let fail = |source| ImportError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(fail)?;
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(fail(io::Error::other("is not a file; expected a .ckpt file")));
    }
    let source = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    checkpoint_from(BufReader::new(file), &source, options)
}

/// As [`checkpoint`], from anything that can be read; `source` is its file name.
pub fn checkpoint_from(
    mut reader: impl Read + Seek,
    source: &str,
    options: &Options,
) -> Result<Package, ImportError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    let fail = |source| ImportError::Read { path: PathBuf::new(), source };
    loop {
        match reader.read(&mut buffer).map_err(fail)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    reader.seek(SeekFrom::Start(0)).map_err(fail)?;
    drop(buffer);
    let mut archive = archive::Archive::open(reader)?;
    if let Some(order) = archive.read("byteorder", 64)?
        && order != b"little"
    {
        let order = String::from_utf8_lossy(&order).into_owned();
        return Err(ImportError::Archive(format!(
            "was written on a machine of byte order {order:?}; expected little"
        )));
    }
    let Some(pickle) = archive.read("data.pkl", pickle::MAX_BYTES)? else {
        return Err(ImportError::Archive("has no data.pkl".into()));
    };
    let pickle = pickle::read(&pickle)?;
    let mut package = diffusion_policy::import(&pickle, archive, options)?;
    let stem = Path::new(source).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    package.config.name = options.name.clone().or(stem).unwrap_or_default();
    package.config.provenance.source = source.to_owned();
    package.config.provenance.source_sha256 = hex(hash.finalize());
    let problems = package.config.problems();
    if !problems.is_empty() {
        return Err(PackageError::Problems(problems).into());
    }
    if let Some(folder) = &options.encoders {
        package.encoders = encoders(&package.config, folder)?;
    }
    Ok(package)
}

/// Reads every camera's encoder out of a folder, and sees that it runs.
fn encoders(config: &PolicyConfig, folder: &Path) -> Result<EncoderFiles, ImportError> {
    let mut files = EncoderFiles::new();
    for camera in config.cameras.iter().filter(|camera| is_plain_name(&camera.encoder)) {
        let content = read(&folder.join(&camera.encoder), MAX_ENCODER_BYTES)?;
        Encoder::load(&camera.encoder, &content, camera.input_shape(), camera.features)?;
        files.insert(camera.encoder.clone(), content.into());
    }
    Ok(files)
}

/// A file's content, if it is not larger than `limit` bytes.
fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ImportError> {
    let fail = |source| ImportError::Read { path: path.to_owned(), source };
    let mut content = Vec::new();
    let file = File::open(path).map_err(fail)?;
    file.take(limit + 1).read_to_end(&mut content).map_err(fail)?;
    if content.len() as u64 > limit {
        return Err(fail(io::Error::other(format!("expected at most {limit} bytes, got more"))));
    }
    Ok(content)
}

/// Imports plain weights: a safetensors file with the state-dict names of the model (a prefix `model.` is dropped, as
/// are masks and dummies), and the `policy.toml` that describes them.
///
/// Values may be f16, bf16, f32 or f64. Name, rate and licence of `options` replace those of `policy.toml`.
pub fn safetensors(policy_toml: &Path, weights: &Path, options: &Options) -> Result<Package, ImportError> {
    let text = String::from_utf8(read(policy_toml, MAX_POLICY_BYTES)?)
        .map_err(|e| PackageError::Policy(e.to_string()))?;
    let mut config = parse_policy(&text)?;
    if let Some(name) = &options.name {
        config.name.clone_from(name);
    }
    if let Some(rate_hz) = options.rate_hz {
        config.rate_hz = rate_hz;
    }
    if let Some(license) = &options.license {
        config.provenance.license.clone_from(license);
    }
    let bytes = read(weights, crate::package::MAX_WEIGHTS_BYTES)?;
    let file =
        ::safetensors::SafeTensors::deserialize(&bytes).map_err(|e| PackageError::Weights(e.to_string()))?;
    if config.provenance.source_sha256.is_empty() {
        config.provenance.source =
            weights.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        config.provenance.source_sha256 = hex(Sha256::digest(&bytes));
    }
    let mut problems = Vec::new();
    let mut tensors = Vec::new();
    for (name, view) in file.iter() {
        let short = name.strip_prefix("model.").unwrap_or(name);
        if diffusion_policy::is_derived(short) {
            continue;
        }
        match tensors::from_safetensors(&view).and_then(|values| store(values, options.dtype)) {
            Ok(data) => {
                tensors
                    .push((short.to_owned(), crate::package::Tensor { shape: view.shape().to_vec(), data }));
            }
            Err(problem) => problems.push(format!("{}: {problem}", crate::package::shown(name))),
        }
    }
    if !problems.is_empty() {
        return Err(ImportError::Unsupported(problems));
    }
    Ok(Package::new(config, tensors.into_iter().collect())?)
}

/// Values as they are to be stored.
fn store(values: Vec<f32>, dtype: Dtype) -> Result<TensorData, String> {
    if let Some(i) = values.iter().position(|v| !v.is_finite()) {
        return Err(format!(
            "expected finite values, got {} at index {i}; the training diverged or the file is damaged",
            values[i]
        ));
    }
    match dtype {
        Dtype::F32 => Ok(TensorData::F32(values)),
        Dtype::F16 => {
            let halves: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
            match halves.iter().position(|v| !v.is_finite()) {
                None => Ok(TensorData::F16(halves)),
                Some(i) => Err(format!(
                    "{} at index {i} is beyond f16's largest value 65504; import with --dtype f32",
                    values[i]
                )),
            }
        }
    }
}
