//! Cameras on the bus: images from zenoh into the intake, and images out through shared memory.
//!
//! Images go out at background priority and are dropped rather than waited for. The payload is put into shared memory
//! where there is some, so that a peer on this machine reads it where it is; elsewhere zenoh sends the bytes. A received
//! payload is borrowed, looked at and copied once, by the intake.

use refrain_policies::camera::Channels;
use refrain_policies::preprocess::Image;
use zenoh::Wait;
use zenoh::shm::{GarbageCollect, PosixShmProviderBackend, ShmProvider, ShmProviderBuilder};

use super::attachment::Attachment;
use super::image::{self, Decoder, Received};
use super::interface::{COMPRESSED_IMAGE, IMAGE, Interface};
use super::{Bus, BusError, Message, Publisher, Traffic};
use crate::clock::Wall;
use crate::config::vision::ImageKind;
use crate::observation::{Origin, Refusal};

/// Images that may be on their way at a time.
const FRAMES: usize = 8;

/// Sends images.
pub struct ImagePublisher {
    publisher: Publisher,
    memory: Option<ShmProvider<PosixShmProviderBackend>>,
    sequence: i64,
    shared: u64,
}

/// Reads one camera's messages.
#[derive(Debug)]
pub struct CameraReader {
    kind: ImageKind,
    decoder: Decoder,
}

impl ImageKind {
    /// The messages' type.
    pub fn interface(self) -> &'static Interface {
        match self {
            Self::Image => &IMAGE,
            Self::CompressedImage => &COMPRESSED_IMAGE,
        }
    }
}

impl ImagePublisher {
    /// Starts sending; `largest` is the largest message, bytes.
    pub fn open(bus: &Bus, topic: &str, kind: ImageKind, largest: usize) -> Result<Self, BusError> {
        let publisher = bus.publisher(topic, kind.interface(), Traffic::Images)?;
        let memory = match ShmProviderBuilder::default_backend(FRAMES * largest.max(1)).wait() {
            Ok(memory) => Some(memory),
            Err(error) => {
                tracing::warn!(%error, topic, "no shared memory: images are copied through the socket");
                None
            }
        };
        Ok(Self { publisher, memory, sequence: 0, shared: 0 })
    }

    /// Sends one message, made at `source`.
    pub fn put(&mut self, payload: &[u8], source: Wall) -> Result<(), BusError> {
        self.sequence += 1;
        let attachment =
            Attachment { sequence: self.sequence, source, publisher: self.publisher.id(), validity: None };
        let buffer = self
            .memory
            .as_ref()
            .and_then(|memory| memory.alloc(payload.len()).with_policy::<GarbageCollect>().wait().ok());
        match buffer {
            Some(mut buffer) => {
                buffer.copy_from_slice(payload);
                self.shared += 1;
                self.publisher.put_buffer(buffer.into(), &attachment)
            }
            None => self.publisher.put_with(payload, &attachment),
        }
    }

    /// Messages that went through shared memory.
    pub fn shared(&self) -> u64 {
        self.shared
    }

    /// Whether somebody receives.
    pub fn is_matched(&self) -> bool {
        self.publisher.is_matched()
    }
}

impl CameraReader {
    /// For images of this size (height, width).
    pub fn new(kind: ImageKind, size: [usize; 2], channels: Channels) -> Self {
        Self { kind, decoder: Decoder::new(size, channels) }
    }

    /// A message's image, and where it came from.
    pub fn read<'a>(&'a mut self, message: &'a Message<'_>) -> Result<(Origin, Image<'a>), Refusal> {
        let Received { stamp, content } = match self.kind {
            ImageKind::Image => image::read_image(&message.payload)?,
            ImageKind::CompressedImage => image::read_compressed_image(&message.payload)?,
        };
        let attachment = message.attachment;
        let origin = Origin {
            sequence: attachment.map(|a| a.sequence),
            publisher: attachment.map(|a| a.publisher),
            stamp: stamp.or(attachment.map(|a| a.source)),
        };
        Ok((origin, self.decoder.image(content)?))
    }
}
