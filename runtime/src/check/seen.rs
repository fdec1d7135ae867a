//! What a camera's topic brings while somebody listens: whether its images can be read and are the policy's, when they
//! come, and whether anything is to be seen on them.

use super::Finding;
use super::arrivals::{Arrivals, Demand, SLOW};
use super::heard::NOTHING;
use crate::bus::Message;
use crate::bus::camera::CameraReader;
use crate::bus::image::{self, Described};
use crate::clock::{Nanos, Reading, SECOND, Time};
use crate::config::vision::{CameraTopic, ImageKind};
use crate::observation::Refusal;
use crate::sight::{Lens, OutOfSync, SightConfig, is_dark};

/// An image without a byte above this shows nothing: the noise of a covered sensor.
const DARK: u8 = 8;

/// What came on one camera's topic.
#[derive(Debug)]
pub struct Seen {
    /// When the images came that are the policy's.
    pub arrivals: Arrivals,
    lens: Lens,
    kind: ImageKind,
    reader: CameraReader,
    /// For each refusal, how often, and what the last such message said of itself.
    refused: [(u64, Option<Described>); Refusal::ALL.len()],
    /// Of refused messages, those that are images of the other type.
    other_kind: u64,
    shared: u64,
    dark: u64,
    last: Vec<u8>,
    equal: u32,
    most_equal: u32,
}

impl ImageKind {
    fn other(self) -> Self {
        match self {
            Self::Image => Self::CompressedImage,
            Self::CompressedImage => Self::Image,
        }
    }

    /// What a message of this type says of itself.
    fn describe(self, bytes: &[u8]) -> Option<Described> {
        match self {
            Self::Image => image::describe_image(bytes),
            Self::CompressedImage => image::describe_compressed_image(bytes),
        }
    }

    fn reads(self, bytes: &[u8]) -> bool {
        match self {
            Self::Image => image::read_image(bytes).is_ok(),
            Self::CompressedImage => self.describe(bytes).is_some_and(|it| it.size.is_some()),
        }
    }
}

impl Seen {
    /// Nothing yet.
    pub fn new(topic: &CameraTopic, lens: &Lens) -> Self {
        Self {
            arrivals: Arrivals::default(),
            lens: lens.clone(),
            kind: topic.kind,
            reader: CameraReader::new(topic.kind, lens.size, lens.channels),
            refused: std::array::from_fn(|_| (0, None)),
            other_kind: 0,
            shared: 0,
            dark: 0,
            last: Vec::new(),
            equal: 0,
            most_equal: 0,
        }
    }

    /// A message.
    pub fn take(&mut self, message: &Message<'_>, now: Reading) {
        self.shared += u64::from(message.shared);
        let image = self.reader.read(message).and_then(|(origin, image)| {
            self.lens.check(&image)?;
            Ok((origin, image))
        });
        match image {
            Ok((origin, image)) => {
                self.arrivals.note(origin.stamp, now);
                self.dark += u64::from(is_dark(&image, DARK));
                let row = image.width * image.channels.count();
                let lines = || image.pixels.chunks(image.step).take(image.height).map(|line| &line[..row]);
                let same = !self.last.is_empty() && self.last.chunks(row).eq(lines());
                self.equal = if same { self.equal + 1 } else { 1 };
                self.most_equal = self.most_equal.max(self.equal);
                if !same {
                    self.last.clear();
                    lines().for_each(|line| self.last.extend_from_slice(line));
                }
                if self.lens.is_frozen(self.equal) {
                    self.refuse(Refusal::Frozen, None);
                }
            }
            Err(refusal) => {
                let described = self.kind.describe(&message.payload);
                let unreadable = matches!(refusal, Refusal::Undecodable | Refusal::WrongEncoding);
                if unreadable && self.kind.other().reads(&message.payload) {
                    self.other_kind += 1;
                } else {
                    self.refuse(refusal, described);
                }
            }
        }
    }

    fn refuse(&mut self, refusal: Refusal, described: Option<Described>) {
        let place = Refusal::ALL.iter().position(|r| *r == refusal).unwrap_or(0);
        let (count, last) = &mut self.refused[place];
        *count += 1;
        *last = described;
    }

    /// In one line.
    pub fn summary(&self) -> String {
        let taken = self.arrivals.taken();
        format!("{taken} images, {} messages through shared memory, {}", self.shared, self.arrivals.summary())
    }

    /// What does not fit by the time `until`.
    pub fn findings(&self, demand: &Demand, until: Time) -> Vec<Finding> {
        let key = format!("vision.cameras {:?}", self.lens.name);
        let mut found = Vec::new();
        if self.other_kind > 0 {
            found.push(Finding::wrong(format!(
                "{key}: {} messages were {}; set type to it",
                self.other_kind,
                self.kind.other().interface().ros_name()
            )));
        }
        for (refusal, (count, described)) in Refusal::ALL.iter().zip(&self.refused) {
            if *count > 0 {
                found.push(Finding::wrong(format!(
                    "{key}: {count} {}",
                    self.words(*refusal, described.as_ref())
                )));
            }
        }
        if self.arrivals.taken() == 0 {
            if found.is_empty() {
                found.push(Finding::wrong(format!("{key}: {NOTHING}")));
            }
            return found;
        }
        found.extend(self.arrivals.findings(&key, demand, until));
        let taken = self.arrivals.taken() as u64;
        if self.dark > 0 {
            let text = format!(
                "{key}: {} of {taken} images were black, no byte above {DARK}; is the lens covered, or the light off?",
                self.dark
            );
            found.push(if self.dark == taken { Finding::wrong(text) } else { Finding::odd(text) });
        }
        if self.lens.frozen_after.is_none() && taken > 2 && u64::from(self.most_equal) == taken {
            found.push(Finding::odd(format!(
                "{key}: all {taken} images were the same, byte by byte; frozen? A real camera has noise, a simulator at \
                 rest has not"
            )));
        }
        found
    }

    /// What is wrong with images that were refused so.
    fn words(&self, refusal: Refusal, described: Option<&Described>) -> String {
        let [height, width] = self.lens.size;
        let row = width * self.lens.channels.count();
        let wanted = encodings(self.kind, &self.lens);
        let said = |what: &dyn Fn(&Described) -> Option<String>| {
            described.and_then(what).unwrap_or_else(|| "of another kind".into())
        };
        match refusal {
            Refusal::WrongSize => {
                let got = said(&|it| it.size.map(|[height, width]| format!("{height} x {width}")));
                format!(
                    "images were {got} (height x width), the policy saw {height} x {width}; have the camera send that size"
                )
            }
            Refusal::WrongEncoding => {
                format!("images were {}, the policy takes {wanted}", said(&|it| Some(it.encoding.clone())))
            }
            Refusal::WrongStep => {
                let got = said(&|it| Some(format!("{} bytes", it.step)));
                format!("images had rows of {got}, {width} pixels need {row}")
            }
            Refusal::Truncated => "images ended before their last row".into(),
            Refusal::Undecodable => {
                format!("messages could not be read; are they {}?", self.kind.interface().ros_name())
            }
            Refusal::Black => {
                format!("images were black, no byte above {}", self.lens.black.unwrap_or(DARK))
            }
            Refusal::Frozen => format!(
                "images were the same as the ones before, {} or more in a row; is the camera frozen?",
                self.lens.frozen_after.unwrap_or(2)
            ),
            other => format!("images were {other}"),
        }
    }
}

/// What a camera may send, in words.
pub(super) fn encodings(kind: ImageKind, lens: &Lens) -> &'static str {
    match (kind, lens.channels.count()) {
        (ImageKind::Image, 1) => "mono8",
        (ImageKind::Image, _) => "rgb8 or bgr8",
        (ImageKind::CompressedImage, 1) => "grey JPEG or PNG of 8 bits",
        (ImageKind::CompressedImage, _) => "colour JPEG or PNG of 8 bits",
    }
}

/// Whether enough images of the first camera, `lead`, find something of `other` in time; both with their names.
pub fn out_of_sync(
    (lead, images): (&str, &Arrivals),
    (other, messages): (&str, &Arrivals),
    sight: &SightConfig,
) -> Option<Finding> {
    let meeting = images.meeting(messages, sight.tolerance)?;
    let alone = meeting.images - meeting.matched;
    let matched_hz = images.rate_hz() * meeting.matched as f64 / meeting.images as f64;
    if alone == 0 || matched_hz >= SLOW * SECOND as f64 / sight.period as f64 {
        return None;
    }
    let ms = |span: Nanos| span as f64 * 1e-6;
    let text = format!(
        "vision.tolerance_ms: {alone} of {} images of {lead} had nothing of {other} within {:.0} ms, but {:.0} ms away \
         at the median; trigger them together, or allow more",
        meeting.images,
        ms(sight.tolerance),
        ms(meeting.apart)
    );
    Some(if sight.out_of_sync == OutOfSync::Wait { Finding::wrong(text) } else { Finding::odd(text) })
}

#[cfg(test)]
#[path = "seen_tests.rs"]
mod tests;
