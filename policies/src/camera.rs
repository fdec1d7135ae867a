//! What a policy's camera sees, and what is done to an image before the encoder: the `[[cameras]]` of `policy.toml`.
//!
//! The steps are those of torchvision, in this order: `ToTensor` (divide by `divisor`), `Resize`, `CenterCrop`,
//! `Normalize`. [`crate::preprocess`] carries them out.

use serde::{Deserialize, Serialize};

use crate::config::is_plain_name;

/// The encoder's file in a package that names no other.
pub const ENCODER_FILE: &str = "encoder.onnx";
/// Most cameras of a policy.
pub const MAX_CAMERAS: usize = 16;
/// Largest height or width of an image, pixels.
pub const MAX_SIDE: usize = 4096;
/// Most features of one image.
const MAX_FEATURES: usize = 8192;

/// One camera of a policy: what it sends, what becomes of it, who encodes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Camera {
    /// Its name in the policy's observations.
    pub name: String,
    /// Height and width of the images that come in, pixels.
    pub size: [usize; 2],
    /// Channels of the encoder's input, in this order.
    #[serde(default)]
    pub channels: Channels,
    /// What a byte is divided by.
    #[serde(default = "default_divisor")]
    pub divisor: f32,
    /// Height and width to resize to (bilinear).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<[usize; 2]>,
    /// Whether shrinking averages, as torchvision's default does.
    #[serde(default = "default_antialias")]
    pub antialias: bool,
    /// Height and width that are cut out of the middle, after resizing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<[usize; 2]>,
    /// Subtracted per channel; without it, nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mean: Vec<f32>,
    /// Divided by per channel, after the mean; without it, nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub std: Vec<f32>,
    /// The package's file that encodes it.
    #[serde(default = "default_encoder")]
    pub encoder: String,
    /// F: numbers that the encoder gives for one image.
    pub features: usize,
}

/// Order of an image's channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channels {
    /// Red, green, blue.
    #[default]
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// One channel.
    Mono,
}

impl Channels {
    /// How many there are.
    pub fn count(self) -> usize {
        match self {
            Self::Rgb | Self::Bgr => 3,
            Self::Mono => 1,
        }
    }
}

impl Camera {
    /// Shape of the encoder's input: [1, C, height, width].
    pub fn input_shape(&self) -> [usize; 4] {
        let [height, width] = self.crop.or(self.resize).unwrap_or(self.size);
        [1, self.channels.count(), height, width]
    }

    /// Everything that is wrong, one sentence each.
    pub(crate) fn problems(&self, index: usize, found: &mut Vec<String>) {
        let key = format!("cameras[{index}]");
        let mut expect = |good: bool, problem: String| {
            if !good {
                found.push(format!("{key}.{problem}"));
            }
        };
        expect(!self.name.is_empty(), "name: is empty".into());
        expect(
            is_plain_name(&self.encoder) && self.encoder.ends_with(".onnx"),
            format!("encoder: expected a file name such as {ENCODER_FILE:?}, got {:?}", self.encoder),
        );
        for (part, size) in [("size", Some(self.size)), ("resize", self.resize), ("crop", self.crop)] {
            for side in size.into_iter().flatten() {
                let good = (1..=MAX_SIDE).contains(&side);
                expect(good, format!("{part}: expected sides of 1 to {MAX_SIDE} pixels, got {side}"));
            }
        }
        let from = self.resize.unwrap_or(self.size);
        if let Some(crop) = self.crop {
            let fits = crop.iter().zip(from).all(|(inner, outer)| *inner <= outer);
            expect(fits, format!("crop: {crop:?} does not fit into {from:?}"));
        }
        let divides = |value: f32| value.is_finite() && value != 0.0;
        expect(
            divides(self.divisor),
            format!("divisor: expected a finite number other than 0, got {}", self.divisor),
        );
        let channels = self.channels.count();
        for (part, values) in [("mean", &self.mean), ("std", &self.std)] {
            expect(
                values.is_empty() || values.len() == channels,
                format!("{part}: expected {channels} numbers, one per channel, got {}", values.len()),
            );
        }
        let finite = self.mean.iter().all(|value| value.is_finite());
        expect(finite, format!("mean: expected finite numbers, got {:?}", self.mean));
        let good = self.std.iter().all(|value| divides(*value));
        expect(good, format!("std: expected finite numbers other than 0, got {:?}", self.std));
        expect(
            (1..=MAX_FEATURES).contains(&self.features),
            format!("features: expected 1 to {MAX_FEATURES}, got {}", self.features),
        );
    }
}

fn default_divisor() -> f32 {
    255.0
}

fn default_antialias() -> bool {
    true
}

fn default_encoder() -> String {
    ENCODER_FILE.into()
}
