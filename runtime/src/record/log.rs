//! MCAP files: written with bounds, read as a whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use mcap::records::{MessageHeader, Metadata};
use mcap::{WriteOptions, Writer};

use super::Message;
use crate::clock::{Nanos, Reading};

/// The metadata record.
const METADATA: &str = "refrain";
/// Key of the wall clock's offset in it.
pub const OFFSET: &str = "wall_clock_offset_ns";
/// Bytes of a chunk of messages: what a crash may lose.
const CHUNK: u64 = 256 * 1024;

/// Why a recording cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's words.
        source: std::io::Error,
    },
    /// It is not a recording.
    #[error("{}: {reason}; expected a recording of `refrain run` or `refrain demo`", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Where recordings go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Into this file, however large it grows.
    File(PathBuf),
    /// Into files of this folder that begin with the robot's name.
    Folder(PathBuf, String, Limits),
}

/// How much of the disk recordings take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A file is closed, and the next one begun, at this many bytes.
    pub file: u64,
    /// Files kept; the oldest are deleted.
    pub files: usize,
}

/// A recording that is being written.
pub struct Log {
    place: Place,
    metadata: BTreeMap<String, String>,
    offset: Nanos,
    open: Option<Open>,
    /// Files begun.
    begun: u32,
    written: u64,
    /// Of those, messages of the chunk that is not in the file yet.
    pending: u64,
    lost: u64,
    data: Vec<u8>,
}

struct Open {
    path: PathBuf,
    writer: Writer<BufWriter<File>>,
    channels: [u16; Message::KINDS.len()],
    sequence: u32,
    bytes: u64,
    /// Bytes of the chunk that is not in the file yet.
    chunk: u64,
}

impl Log {
    /// Begins; `now` is the moment that names the files and sets the wall clock's offset. An error when the first file
    /// cannot be written.
    pub fn begin(
        place: Place,
        mut metadata: BTreeMap<String, String>,
        now: Reading,
    ) -> Result<Self, RecordError> {
        let offset = now.wall.nanos() - now.time.nanos();
        metadata.insert(OFFSET.into(), offset.to_string());
        let mut log = Self {
            place,
            metadata,
            offset,
            open: None,
            begun: 0,
            written: 0,
            pending: 0,
            lost: 0,
            data: Vec::new(),
        };
        log.next()?;
        Ok(log)
    }

    /// Appends a message; the first refusal ends the recording and is said once.
    pub fn write(&mut self, message: &Message) {
        let Some(open) = &mut self.open else {
            self.lost += 1;
            return;
        };
        message.encode(&mut self.data);
        let time = u64::try_from(message.time().nanos().saturating_add(self.offset)).unwrap_or(0);
        open.sequence = open.sequence.wrapping_add(1);
        let header = MessageHeader {
            channel_id: open.channels[message.kind()],
            sequence: open.sequence,
            log_time: time,
            publish_time: time,
        };
        (self.written, self.pending) = (self.written + 1, self.pending + 1);
        let written = open.writer.write_to_known_channel(&header, &self.data);
        // Header, length and index entry of a message.
        let bytes = self.data.len() as u64 + 47;
        (open.bytes, open.chunk) = (open.bytes + bytes, open.chunk + bytes);
        let file_full = match &self.place {
            Place::Folder(_, _, limits) => open.bytes >= limits.file,
            Place::File(_) => false,
        };
        let done = match written.map_err(|error| error.to_string()) {
            Ok(()) if file_full => self.next().map_err(|error| error.to_string()),
            Ok(()) if open.chunk >= CHUNK => self.end_chunk().map_err(|error| error.to_string()),
            done => done,
        };
        if let Err(error) = done {
            self.give_up(&error);
        }
    }

    /// Messages written, and messages lost because the recording ended early.
    pub fn counts(&self) -> (u64, u64) {
        (self.written, self.lost)
    }

    /// Closes the last file.
    pub fn end(&mut self) {
        if let Some(open) = self.open.take()
            && let Err(error) = open.finish()
        {
            self.give_up(&error.to_string());
        }
    }

    fn end_chunk(&mut self) -> Result<(), mcap::McapError> {
        if let Some(open) = &mut self.open {
            open.writer.flush()?;
            open.chunk = 0;
        }
        self.pending = 0;
        Ok(())
    }

    fn give_up(&mut self, error: &str) {
        tracing::error!(error, "recording ends; the robot goes on");
        self.written -= self.pending;
        self.lost += std::mem::take(&mut self.pending);
        if let Some(open) = self.open.take() {
            // Dropping it would try to write the rest.
            std::mem::forget(open.writer);
        }
    }

    fn next(&mut self) -> Result<(), RecordError> {
        if let Some(open) = self.open.take() {
            open.finish()?;
        }
        self.pending = 0;
        let path = match &self.place {
            Place::File(path) => path.clone(),
            Place::Folder(folder, name, limits) => {
                let failed = |source| RecordError::Io { path: folder.clone(), source };
                fs::create_dir_all(folder).map_err(failed)?;
                let seconds = (self.offset / crate::clock::SECOND).max(0);
                let path = folder.join(format!("{name}-{seconds:012}-{:06}.mcap", self.begun));
                thin(folder, name, limits.files.max(1) - 1).map_err(failed)?;
                path
            }
        };
        self.begun += 1;
        self.open = Some(Open::begin(path, &self.metadata)?);
        Ok(())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.end();
    }
}

impl Open {
    fn begin(path: PathBuf, metadata: &BTreeMap<String, String>) -> Result<Self, RecordError> {
        let file = File::create(&path).map_err(|source| RecordError::Io { path: path.clone(), source })?;
        let failed = |error: mcap::McapError| RecordError::Io {
            path: path.clone(),
            source: std::io::Error::other(error.to_string()),
        };
        let options = WriteOptions::new().compression(None).chunk_size(None).profile("ros2");
        let mut writer = options.create(BufWriter::new(file)).map_err(failed)?;
        let record = Metadata { name: METADATA.into(), metadata: metadata.clone() };
        writer.write_metadata(&record).map_err(failed)?;
        let mut channels = [0; Message::KINDS.len()];
        for (channel, [topic, kind, schema]) in channels.iter_mut().zip(Message::KINDS) {
            let id = writer.add_schema(kind, "ros2msg", schema.as_bytes()).map_err(failed)?;
            *channel = writer.add_channel(id, topic, "cdr", &BTreeMap::new()).map_err(failed)?;
        }
        Ok(Self { path, writer, channels, sequence: 0, bytes: 0, chunk: 0 })
    }

    fn finish(mut self) -> Result<(), RecordError> {
        let failed = |source| RecordError::Io { path: self.path.clone(), source };
        let done = self.writer.finish().map_err(|error| std::io::Error::other(error.to_string()));
        let mut inner = self.writer.into_inner();
        done.and_then(|_| inner.flush()).map_err(failed)
    }
}

/// Deletes the oldest recordings of this robot until `keep` are left.
fn thin(folder: &Path, name: &str, keep: usize) -> std::io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let file = entry?.file_name().into_string().unwrap_or_default();
        let ours = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-')?.strip_suffix(".mcap"));
        if ours.is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit() || b == b'-')) {
            files.push(file);
        }
    }
    files.sort();
    for file in &files[..files.len().saturating_sub(keep)] {
        fs::remove_file(folder.join(file))?;
    }
    Ok(())
}

/// The messages and the metadata of a recording, also of one that was cut off.
pub fn read(path: &Path) -> Result<(BTreeMap<String, String>, Vec<Message>), RecordError> {
    let bytes = fs::read(path).map_err(|source| RecordError::Io { path: path.to_owned(), source })?;
    let failed = |reason: String| RecordError::Format { path: path.to_owned(), reason };
    let options = mcap::read::Options::IgnoreEndMagic.into();
    let mut metadata = None;
    for record in
        mcap::read::LinearReader::new_with_options(&bytes, options).map_err(|e| failed(e.to_string()))?
    {
        match record {
            Ok(mcap::records::Record::Metadata(record)) if record.name == METADATA => {
                metadata = Some(record.metadata);
                break;
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    let metadata = metadata.ok_or_else(|| failed(format!("no metadata record {METADATA:?}")))?;
    let mut messages = Vec::new();
    let stream = mcap::MessageStream::new_with_options(&bytes, options).map_err(|e| failed(e.to_string()))?;
    // A file that was cut off ends in the middle of a chunk.
    for message in stream.map_while(Result::ok) {
        let topic = &message.channel.topic;
        let decoded = Message::decode(topic, &message.data);
        messages.push(decoded.ok_or_else(|| failed(format!("an unreadable message on {topic:?}")))?);
    }
    Ok((metadata, messages))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Observation;

    fn message(sequence: u64) -> Message {
        let time = sequence as i64 * 1_000_000;
        Message::Observation(Observation { sequence, time, measured: vec![sequence as f64; 16] })
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_rotated_and_the_oldest_deleted() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("arm-notes.mcap"), "mine").unwrap();
        let limits = Limits { file: 2000, files: 3 };
        let place = Place::Folder(folder.path().to_owned(), "arm".into(), limits);
        let mut log = Log::begin(place, BTreeMap::new(), Reading::simulated(0)).unwrap();
        (1..=105).for_each(|i| log.write(&message(i)));
        assert_eq!(log.counts(), (105, 0));
        log.end();
        let names = names(folder.path());
        assert_eq!(names.len(), 3 + 1, "{names:?}");
        assert!(names.contains(&"arm-notes.mcap".into()), "{names:?}");
        let (metadata, messages) = read(&folder.path().join(&names[2])).unwrap();
        assert_eq!(metadata[OFFSET], "0");
        assert_eq!(messages, (101..=105).map(message).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_disk_ends_the_recording_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        // The second file has no room at all.
        let second = folder.path().join("arm-000000000000-000001.mcap");
        std::os::unix::fs::symlink("/dev/full", second).unwrap();
        let place = Place::Folder(folder.path().to_owned(), "arm".into(), Limits { file: 20_000, files: 3 });
        let mut log = Log::begin(place, BTreeMap::new(), Reading::simulated(0)).unwrap();
        (1..=1000).for_each(|i| log.write(&message(i)));
        let (written, lost) = log.counts();
        assert!(written > 50 && lost > 50 && written + lost == 1000, "{written} written, {lost} lost");
        log.end();
        let (_, messages) = read(&folder.path().join("arm-000000000000-000000.mcap")).unwrap();
        assert_eq!(messages.len() as u64, written);
    }

    #[test]
    fn what_is_no_recording_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.mcap");
        fs::write(&file, "not a recording").unwrap();
        assert!(matches!(read(&file), Err(RecordError::Format { .. })));
        assert!(matches!(read(Path::new("/none")), Err(RecordError::Io { .. })));
        assert!(Log::begin(Place::File("/none/x".into()), BTreeMap::new(), Reading::simulated(0)).is_err());
    }
}
