//! What a policy sees: from camera images and low-dimensional observations to the denoiser's condition.
//!
//! The condition of one observation step is the features of every camera, in the order of `policy.toml`, then the
//! normalised low-dimensional observation, as real-stanford's image policies have it. An image is known by its camera and
//! its stamp; one that was encoded for an earlier chunk is not encoded again. Everything runs on the caller's thread.

use std::collections::BTreeMap;

use crate::encoder::{Encoder, EncoderError};
use crate::package::Package;
use crate::preprocess::{Image, ImageError, Preprocess};

/// Images remembered per camera, for each observation step that a policy looks at.
const REMEMBERED: usize = 2;

/// One camera's image at one observation step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// When it was taken, nanoseconds; equal stamps of a camera are the same image.
    pub stamp: i64,
    /// What was taken.
    pub image: Image<'a>,
}

/// Why there is no condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VisionError {
    /// An image is not one for its camera.
    #[error("camera {camera:?}: {source}")]
    Image {
        /// The camera's name.
        camera: String,
        /// What is wrong.
        source: ImageError,
    },
    /// Encoding failed.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// There are not as many images as the policy looks at.
    #[error("expected {expected} images (steps x cameras), got {got}")]
    Frames {
        /// To times the cameras.
        expected: usize,
        /// Images there.
        got: usize,
    },
}

/// The cameras of a policy with their encoders.
pub struct Vision {
    eyes: Vec<Eye>,
    encoders: Vec<Encoder>,
    steps: usize,
    low: usize,
    encoded: u64,
}

struct Eye {
    camera: String,
    encoder: usize,
    preprocess: Preprocess,
    input: Vec<f32>,
    /// Newest last.
    remembered: Vec<(Option<i64>, Vec<f32>)>,
}

impl Vision {
    /// Loads the encoders of a package; `None` when its policy sees nothing.
    pub fn new(package: &Package) -> Result<Option<Self>, EncoderError> {
        let config = &package.config;
        if config.cameras.is_empty() {
            return Ok(None);
        }
        let steps = config.architecture.n_obs_steps;
        let (mut encoders, mut places) = (Vec::new(), BTreeMap::new());
        let mut eyes = Vec::new();
        for camera in &config.cameras {
            let shape = camera.input_shape();
            // Cameras may share a file, if not a shape.
            let key = (&camera.encoder, shape, camera.features);
            let encoder = match places.get(&key) {
                Some(place) => *place,
                None => {
                    let onnx = package.encoders.get(&camera.encoder).map_or(&[][..], |bytes| bytes);
                    encoders.push(Encoder::load(&camera.encoder, onnx, shape, camera.features)?);
                    places.insert(key, encoders.len() - 1);
                    encoders.len() - 1
                }
            };
            eyes.push(Eye {
                camera: camera.name.clone(),
                encoder,
                preprocess: Preprocess::new(camera),
                input: vec![0.0; shape.iter().product()],
                remembered: vec![(None, vec![0.0; camera.features]); REMEMBERED * steps],
            });
        }
        Ok(Some(Self { eyes, encoders, steps, low: config.observation.size(), encoded: 0 }))
    }

    /// How many cameras there are.
    pub fn cameras(&self) -> usize {
        self.eyes.len()
    }

    /// Images encoded so far.
    pub fn encoded(&self) -> u64 {
        self.encoded
    }

    /// Forgets what was encoded, so that stamps may start again.
    pub fn forget(&mut self) {
        for (stamp, _) in self.eyes.iter_mut().flat_map(|eye| &mut eye.remembered) {
            *stamp = None;
        }
    }

    /// Encodes the images of one observation step `[cameras]` ahead of time. What is wrong with one is told when it is looked
    /// at.
    pub fn glance(&mut self, images: &[Frame<'_>]) {
        for (eye, frame) in self.eyes.iter_mut().zip(images) {
            let encoder = &mut self.encoders[eye.encoder];
            let mut features = vec![0.0; encoder.features()];
            if !eye.recall(frame.stamp, &mut features)
                && eye.encode(encoder, &frame.image, &mut features).is_ok()
            {
                self.encoded += 1;
                eye.remember(frame.stamp, &features);
            }
        }
    }

    /// Writes the condition `[To, F + O]` for the normalised observations `low` `[To, O]` and the images `frames`
    /// `[To, cameras]`.
    pub fn condition(
        &mut self,
        low: &[f32],
        frames: &[Frame<'_>],
        condition: &mut [f32],
    ) -> Result<(), VisionError> {
        let expected = self.steps * self.eyes.len();
        if frames.len() != expected {
            return Err(VisionError::Frames { expected, got: frames.len() });
        }
        let rows = condition.chunks_exact_mut(condition.len() / self.steps);
        for (step, (row, images)) in rows.zip(frames.chunks_exact(self.eyes.len())).enumerate() {
            let mut rest = row;
            for (eye, frame) in self.eyes.iter_mut().zip(images) {
                let encoder = &mut self.encoders[eye.encoder];
                let features;
                (features, rest) = rest.split_at_mut(encoder.features());
                if eye.recall(frame.stamp, features) {
                    continue;
                }
                eye.encode(encoder, &frame.image, features)?;
                self.encoded += 1;
                eye.remember(frame.stamp, features);
            }
            rest.copy_from_slice(&low[step * self.low..][..self.low]);
        }
        Ok(())
    }
}

impl Eye {
    fn encode(
        &mut self,
        encoder: &mut Encoder,
        image: &Image<'_>,
        features: &mut [f32],
    ) -> Result<(), VisionError> {
        self.preprocess
            .run(image, &mut self.input)
            .map_err(|source| VisionError::Image { camera: self.camera.clone(), source })?;
        Ok(encoder.run(&self.input, features)?)
    }

    fn recall(&self, stamp: i64, features: &mut [f32]) -> bool {
        match self.remembered.iter().find(|(known, _)| *known == Some(stamp)) {
            Some((_, known)) => {
                features.copy_from_slice(known);
                true
            }
            None => false,
        }
    }

    /// In place of what was remembered longest ago.
    fn remember(&mut self, stamp: i64, features: &[f32]) {
        self.remembered.rotate_left(1);
        if let Some((slot, known)) = self.remembered.last_mut() {
            *slot = Some(stamp);
            known.copy_from_slice(features);
        }
    }
}
