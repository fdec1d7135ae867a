//! The policy package: a folder with `policy.toml`, `weights.safetensors`, the encoders of its cameras and `schedules/`.
//!
//! Loading checks every name, shape, dtype and value against the configuration, and reports all problems at once.
//! Nothing in the files names a path: only the two fixed file names and plain names of encoders are opened. An encoder is
//! read here and understood by [`crate::vision`]. Weights are read as a stream into
//! their final place, so that loading holds them once. What lies in `schedules/` is not read here.

mod names;
mod reader;
mod weights;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::config::{PolicyConfig, is_plain_name};

pub use names::expected_tensors;
pub(crate) use names::{fits, shown};
pub use weights::{Dtype, Tensor, TensorData, Weights};

/// File with the configuration.
pub const POLICY_FILE: &str = "policy.toml";
/// File with the weights.
pub const WEIGHTS_FILE: &str = "weights.safetensors";
/// Largest `policy.toml` that is read, bytes.
pub const MAX_POLICY_BYTES: u64 = 4 << 20;
/// Largest `weights.safetensors` that is read, bytes.
pub const MAX_WEIGHTS_BYTES: u64 = 4 << 30;
/// Largest encoder that is read, bytes.
pub const MAX_ENCODER_BYTES: u64 = 1 << 30;

/// How encoders are exported.
const EXPORT: &str = "policies/train/README.md says how";

/// Content of encoder files by name.
pub type EncoderFiles = BTreeMap<String, Arc<[u8]>>;

/// A loaded, checked policy.
#[derive(Clone, Debug)]
pub struct Package {
    /// What the policy is.
    pub config: PolicyConfig,
    /// Its weights by name: exactly [`expected_tensors`], all values finite.
    pub weights: Weights,
    /// The files that its cameras name, as they are.
    pub encoders: EncoderFiles,
    weights_sha256: String,
}

/// Why a package cannot be loaded or saved.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// A file cannot be read.
    #[error("{}: {source}; expected a policy package, a folder with {POLICY_FILE} and {WEIGHTS_FILE}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is larger than any that is read.
    #[error("{file}: expected at most {limit} bytes, got {bytes}")]
    TooLarge {
        /// File name.
        file: String,
        /// Its size.
        bytes: u64,
        /// The largest size.
        limit: u64,
    },
    /// `policy.toml` is not TOML, or not of this form: wrong type, unknown or missing key.
    #[error("{POLICY_FILE}: {0}")]
    Policy(String),
    /// `weights.safetensors` is not a whole safetensors file.
    #[error("{WEIGHTS_FILE}: {0}; export or import the policy again")]
    Weights(String),
    /// The files are of the right form, but what they say is wrong.
    #[error("the policy package has {} problem{}:{}", .0.len(), if .0.len() == 1 { "" } else { "s" }, listed(.0))]
    Problems(Vec<String>),
}

/// Problems one per line, at most 50.
pub(crate) fn listed(problems: &[String]) -> String {
    const MOST: usize = 50;
    let mut text = String::new();
    for problem in problems.iter().take(MOST) {
        let _ = write!(text, "\n  - {problem}");
    }
    if problems.len() > MOST {
        let _ = write!(text, "\n  - and {} more", problems.len() - MOST);
    }
    text
}

impl Package {
    /// Checks a configuration and weights that were made in memory; position tables longer than needed are cut.
    pub fn new(config: PolicyConfig, weights: Weights) -> Result<Self, PackageError> {
        Self::with_encoders(config, weights, EncoderFiles::new())
    }

    /// The same for a policy that sees.
    pub fn with_encoders(
        config: PolicyConfig,
        weights: Weights,
        encoders: EncoderFiles,
    ) -> Result<Self, PackageError> {
        let mut problems = Vec::new();
        encoder_problems(&config, &encoders, &mut problems);
        Self::checked(config, weights, encoders, problems)
    }

    /// The same while its encoders are still to come: it can be saved, not loaded; see [`Self::missing_encoders`].
    pub fn without_encoders(config: PolicyConfig, weights: Weights) -> Result<Self, PackageError> {
        Self::checked(config, weights, EncoderFiles::new(), Vec::new())
    }

    /// Files that cameras name and that are not here, each once.
    pub fn missing_encoders(&self) -> Vec<&str> {
        let mut missing: Vec<&str> = self.config.cameras.iter().map(|camera| &camera.encoder[..]).collect();
        missing.sort_unstable();
        missing.dedup();
        missing.retain(|file| !self.encoders.contains_key(*file));
        missing
    }

    fn checked(
        config: PolicyConfig,
        mut weights: Weights,
        encoders: EncoderFiles,
        mut problems: Vec<String>,
    ) -> Result<Self, PackageError> {
        problems.extend(config.problems());
        if config.architecture.is_sound() {
            let expected = expected_tensors(&config);
            weights.trim(&expected);
            names::check(&expected, weights.iter().map(|(name, t)| (name, &t.shape[..])), &mut problems);
        }
        weights.problems(&mut problems);
        if !problems.is_empty() {
            return Err(PackageError::Problems(problems));
        }
        let weights_sha256 = hex(Sha256::digest(weights.to_safetensors()?));
        Ok(Self { config, weights, encoders, weights_sha256 })
    }

    /// Reads a package folder.
    pub fn load(dir: &Path) -> Result<Self, PackageError> {
        let (mut policy, bytes) = open(dir, POLICY_FILE, MAX_POLICY_BYTES)?;
        let mut text = String::with_capacity(bytes as usize);
        let read = |source| PackageError::Read { path: dir.join(POLICY_FILE), source };
        policy.by_ref().take(MAX_POLICY_BYTES).read_to_string(&mut text).map_err(read)?;
        let config = parse_policy(&text)?;
        let mut encoders = EncoderFiles::new();
        // A name that is not plain is a problem of the configuration, and never opened.
        for file in config.cameras.iter().map(|c| &c.encoder).filter(|file| is_plain_name(file)) {
            // One that is missing is a problem of the package, reported with all others.
            if !encoders.contains_key(file) && dir.join(file).exists() {
                let (mut encoder, bytes) = open(dir, file, MAX_ENCODER_BYTES)?;
                let mut content = Vec::with_capacity(bytes as usize);
                let read = |source| PackageError::Read { path: dir.join(file), source };
                encoder.by_ref().take(MAX_ENCODER_BYTES).read_to_end(&mut content).map_err(read)?;
                encoders.insert(file.clone(), content.into());
            }
        }
        let (mut weights, bytes) = open(dir, WEIGHTS_FILE, MAX_WEIGHTS_BYTES)?;
        Self::read(config, &mut weights, bytes, encoders)
    }

    /// Reads a package without encoders from the content of its two files.
    pub fn from_bytes(policy_toml: &str, weights: &[u8]) -> Result<Self, PackageError> {
        within(POLICY_FILE, policy_toml.len() as u64, MAX_POLICY_BYTES)?;
        within(WEIGHTS_FILE, weights.len() as u64, MAX_WEIGHTS_BYTES)?;
        let config = parse_policy(policy_toml)?;
        Self::read(config, &mut { weights }, weights.len() as u64, EncoderFiles::new())
    }

    fn read(
        config: PolicyConfig,
        weights: &mut dyn Read,
        bytes: u64,
        encoders: EncoderFiles,
    ) -> Result<Self, PackageError> {
        let mut problems = config.problems();
        encoder_problems(&config, &encoders, &mut problems);
        let expected = config.architecture.is_sound().then(|| expected_tensors(&config));
        let (weights, weights_sha256) = reader::read(weights, bytes, expected.as_deref(), &mut problems)?;
        if !problems.is_empty() {
            return Err(PackageError::Problems(problems));
        }
        Ok(Self { config, weights, encoders, weights_sha256 })
    }

    /// Writes `policy.toml`, `weights.safetensors` and the encoders into `dir`, which is made if need be; `schedules/` is left as
    /// it is. Each file is replaced as a whole or not at all.
    pub fn save(&self, dir: &Path) -> Result<(), PackageError> {
        let policy = toml::to_string(&self.config).map_err(|e| PackageError::Policy(e.to_string()))?;
        fs::create_dir_all(dir).map_err(|source| PackageError::Write { path: dir.to_owned(), source })?;
        replace(dir, WEIGHTS_FILE, &self.weights.to_safetensors()?)?;
        for (file, content) in &self.encoders {
            replace(dir, file, content)?;
        }
        replace(dir, POLICY_FILE, policy.as_bytes())
    }

    /// Makes a schedule of the package in `dir` the one that robots run when they name none.
    pub fn set_default_schedule(dir: &Path, name: &str) -> Result<(), PackageError> {
        let path = dir.join(POLICY_FILE);
        let text = fs::read_to_string(&path).map_err(|source| PackageError::Read { path, source })?;
        let config = PolicyConfig { default_schedule: Some(name.to_owned()), ..parse_policy(&text)? };
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(PackageError::Problems(problems));
        }
        let policy = toml::to_string(&config).map_err(|e| PackageError::Policy(e.to_string()))?;
        replace(dir, POLICY_FILE, policy.as_bytes())
    }

    /// SHA-256 of what a package folder holds, lowercase hex: of the lines `HASH  ./PATH` of its `.toml`, `.safetensors`
    /// and `.onnx` files, hidden ones left out, sorted by path. In the folder, this says the same:
    /// `find . -type f ! -path '*/.*' '(' -name '*.toml' -o -name '*.safetensors' -o -name '*.onnx' ')' | LC_ALL=C sort |
    /// xargs sha256sum | sha256sum`.
    pub fn content_sha256(dir: &Path) -> Result<String, PackageError> {
        let mut files = Vec::new();
        content(dir, ".", 0, &mut files)?;
        files.sort();
        let mut lines = Sha256::new();
        for file in files {
            let path = dir.join(&file);
            let read = |source| PackageError::Read { path: path.clone(), source };
            let mut hash = Sha256::new();
            io::copy(&mut File::open(&path).map_err(read)?, &mut hash).map_err(read)?;
            lines.update(format!("{}  {file}\n", hex(hash.finalize())));
        }
        Ok(hex(lines.finalize()))
    }

    /// SHA-256 of the weights file this package was read from (or would be saved to), lowercase hex. With encoders, of
    /// that text and, for each of them, its name and the SHA-256 of its content.
    pub fn weights_sha256(&self) -> String {
        if self.encoders.is_empty() {
            return self.weights_sha256.clone();
        }
        let mut all = Sha256::new_with_prefix(&self.weights_sha256);
        for (file, content) in &self.encoders {
            all.update(format!("\n{file} {}", hex(Sha256::digest(content))));
        }
        hex(all.finalize())
    }
}

/// Paths of the files that make up a package, from `./` on.
fn content(dir: &Path, at: &str, depth: usize, files: &mut Vec<String>) -> Result<(), PackageError> {
    const DEEPEST: usize = 8;
    let folder = dir.join(at);
    let read = |source| PackageError::Read { path: folder.clone(), source };
    for entry in fs::read_dir(&folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        let kind = entry.file_type().map_err(read)?;
        let Some(name) = entry.file_name().to_str().filter(|name| !name.starts_with('.')).map(str::to_owned)
        else {
            continue;
        };
        let path = format!("{at}/{name}");
        if kind.is_dir() && depth < DEEPEST {
            content(dir, &path, depth + 1, files)?;
        } else if kind.is_file() && [".toml", ".safetensors", ".onnx"].iter().any(|end| name.ends_with(end)) {
            files.push(path);
        }
    }
    Ok(())
}

/// The content of a `policy.toml`; form only, see [`PolicyConfig::problems`].
pub(crate) fn parse_policy(text: &str) -> Result<PolicyConfig, PackageError> {
    toml::from_str(text).map_err(|e| PackageError::Policy(e.to_string().trim_end().to_owned()))
}

pub(crate) fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Every camera's encoder is there.
fn encoder_problems(config: &PolicyConfig, encoders: &EncoderFiles, problems: &mut Vec<String>) {
    for camera in &config.cameras {
        if !encoders.contains_key(&camera.encoder) {
            problems.push(format!(
                "camera {:?}: {:?} is missing; export it where the policy was trained, {EXPORT}",
                camera.name, camera.encoder
            ));
        }
    }
}

fn within(file: &str, bytes: u64, limit: u64) -> Result<(), PackageError> {
    if bytes <= limit { Ok(()) } else { Err(PackageError::TooLarge { file: file.into(), bytes, limit }) }
}

fn open(dir: &Path, file: &str, limit: u64) -> Result<(File, u64), PackageError> {
    let path = dir.join(file);
    let opened = File::open(&path).and_then(|f| f.metadata().map(|m| (f, m)));
    let (opened, metadata) = opened.map_err(|source| PackageError::Read { path: path.clone(), source })?;
    if !metadata.is_file() {
        let source = io::Error::other("is not a file");
        return Err(PackageError::Read { path, source });
    }
    within(file, metadata.len(), limit)?;
    Ok((opened, metadata.len()))
}

fn replace(dir: &Path, file: &str, content: &[u8]) -> Result<(), PackageError> {
    let (path, half_written) = (dir.join(file), dir.join(format!(".{file}.part")));
    fs::write(&half_written, content)
        .and_then(|()| fs::rename(&half_written, &path))
        .map_err(|source| PackageError::Write { path, source })
}
