//! The zip around a torch checkpoint.
//!
//! Only looked into, never unpacked: entries are found by the names that torch gives them. Bounded by
//! [`MAX_ENTRIES`], and by a budget in proportion to the file's size for everything that is read from it.

use std::io::{Read, Seek, SeekFrom};

use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::ImportError;

/// Most entries.
const MAX_ENTRIES: usize = 100_000;
/// Bytes that may be read and made of a file: this many times its size ...
const BUDGET_FACTOR: u64 = 16;
/// ... and this many more.
const BUDGET_BASE: u64 = 16 << 20;

/// An open checkpoint.
#[derive(Debug)]
pub(super) struct Archive<R> {
    zip: ZipArchive<R>,
    /// The folder in which everything lies.
    root: String,
    budget: u64,
    bytes: u64,
}

impl<R: Read + Seek> Archive<R> {
    /// Opens a checkpoint and looks at all its entries' names.
    pub(super) fn open(mut source: R) -> Result<Self, ImportError> {
        let mut start = [0; 4];
        let length = source.read(&mut start).map_err(|e| ImportError::Archive(e.to_string()))?;
        if &start[..length] != b"PK\x03\x04" {
            return Err(ImportError::Archive(if start[0] == 0x80 {
                "is not a zip archive but a bare pickle, as torch before 1.6 wrote; load and save it with a newer torch".into()
            } else {
                "is not a zip archive; expected a checkpoint that torch.save wrote".into()
            }));
        }
        let bytes = source.seek(SeekFrom::End(0)).map_err(|e| ImportError::Archive(e.to_string()))?;
        let zip = ZipArchive::new(source).map_err(|e| damaged(&e))?;
        let mut archive = Self {
            zip,
            root: String::new(),
            budget: bytes.saturating_mul(BUDGET_FACTOR) + BUDGET_BASE,
            bytes,
        };
        archive.check_names()?;
        Ok(archive)
    }

    fn check_names(&mut self) -> Result<(), ImportError> {
        let entries = self.zip.len();
        if entries > MAX_ENTRIES {
            return Err(ImportError::Archive(format!(
                "expected at most {MAX_ENTRIES} entries, got {entries}"
            )));
        }
        if self.zip.has_duplicate_names() {
            return Err(ImportError::Archive("two entries have the same name".into()));
        }
        let mut roots = Vec::new();
        for name in self.zip.file_names() {
            let name = name.map_err(|e| damaged(&e))?;
            let shown = crate::package::shown(&name);
            if name.starts_with('/')
                || name.contains(['\\', ':', '\0'])
                || name.split('/').any(|part| part == "..")
            {
                return Err(ImportError::Archive(format!("entry {shown} leads out of the archive")));
            }
            match name.split_once('/') {
                Some((root, "data.pkl")) => roots.push(root.to_owned()),
                _ if name == "data.pkl" => {
                    return Err(ImportError::Archive("entry \"data.pkl\" lies in no folder".into()));
                }
                _ => {}
            }
        }
        match <[String; 1]>::try_from(roots) {
            Ok([root]) => {
                self.root = root;
                Ok(())
            }
            Err(roots) => Err(ImportError::Archive(format!(
                "expected one entry FOLDER/data.pkl, got {}; expected a checkpoint that torch.save wrote",
                roots.len()
            ))),
        }
    }

    /// Counts bytes that are made of the file.
    pub(super) fn charge(&mut self, what: &str, bytes: u64) -> Result<(), ImportError> {
        match self.budget.checked_sub(bytes) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => Err(ImportError::Archive(format!(
                "{what} makes more than {BUDGET_FACTOR} times the file's {} bytes of it; a zip bomb?",
                self.bytes
            ))),
        }
    }

    /// An entry's content, of at most `limit` bytes; `None` if there is no such entry.
    pub(super) fn read(&mut self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, ImportError> {
        let full = format!("{}/{name}", self.root);
        let fail = |problem: String| ImportError::Archive(format!("entry {full:?}: {problem}"));
        let entry = match self.zip.by_name(&full) {
            Ok(entry) => entry,
            Err(ZipError::FileNotFound) => return Ok(None),
            Err(ZipError::InvalidPassword) => return Err(fail("is encrypted".into())),
            Err(error) => return Err(fail(error.to_string())),
        };
        if !matches!(entry.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
            return Err(fail(format!("expected stored or deflated, got {}", entry.compression())));
        }
        let size = entry.size();
        if size > limit {
            return Err(fail(format!("expected at most {limit} bytes, got {size}")));
        }
        drop(entry);
        self.charge(&format!("entry {full:?}"), size)?;
        let entry = self.zip.by_name(&full).map_err(|e| fail(e.to_string()))?;
        let mut content = Vec::new();
        entry.take(size + 1).read_to_end(&mut content).map_err(|e| fail(e.to_string()))?;
        if content.len() as u64 != size {
            return Err(fail(format!("expected {size} bytes, got {}", content.len())));
        }
        Ok(Some(content))
    }
}

fn damaged(error: &ZipError) -> ImportError {
    ImportError::Archive(format!("is truncated or damaged: {error}"))
}
