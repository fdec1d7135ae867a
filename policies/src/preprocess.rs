//! From a camera's bytes to the encoder's input, as torchvision does it.
//!
//! `ToTensor`, `Resize` (bilinear on float tensors, with or without anti-aliasing), `CenterCrop`, `Normalize`, in f32. Only
//! the pixels that the crop keeps are computed. Resizing has the tap positions and weights of PyTorch's
//! `upsample_bilinear2d` and `_upsample_bilinear2d_aa`, horizontal before vertical. After it was made, nothing is
//! allocated.

use crate::camera::{Camera, Channels};

/// An image as bytes, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// Pixels from top to bottom.
    pub height: usize,
    /// Pixels from left to right.
    pub width: usize,
    /// Bytes from one row to the next, at least `width` times the channels.
    pub step: usize,
    /// What the bytes of a pixel are.
    pub channels: Channels,
    /// `height` rows; the last one may end with its last pixel.
    pub pixels: &'a [u8],
}

/// Why an image is not one for this camera.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Other height or width than the policy was trained with.
    #[error("expected an image of {expected:?} (height, width), got {got:?}")]
    Size {
        /// The policy's.
        expected: [usize; 2],
        /// The image's.
        got: [usize; 2],
    },
    /// Colour where the policy sees none, or the other way round.
    #[error("expected {expected:?} channels, got {got:?}")]
    Channels {
        /// The policy's.
        expected: Channels,
        /// The image's.
        got: Channels,
    },
    /// A row is shorter than its pixels.
    #[error("expected a step of at least {expected} bytes, got {got}")]
    Step {
        /// Bytes of a row's pixels.
        expected: usize,
        /// Bytes from one row to the next.
        got: usize,
    },
    /// Fewer bytes than the rows need.
    #[error("expected at least {expected} bytes of pixels, got {got}")]
    Truncated {
        /// Bytes that the rows need.
        expected: usize,
        /// Bytes there.
        got: usize,
    },
}

impl Image<'_> {
    /// Whether the bytes are those of such an image.
    pub fn check(&self) -> Result<(), ImageError> {
        let row = self.width.saturating_mul(self.channels.count());
        if self.step < row {
            return Err(ImageError::Step { expected: row, got: self.step });
        }
        let expected = self.step.saturating_mul(self.height.saturating_sub(1)).saturating_add(row);
        if self.pixels.len() < expected {
            return Err(ImageError::Truncated { expected, got: self.pixels.len() });
        }
        Ok(())
    }
}

/// The steps for one camera, with their tables.
#[derive(Clone, Debug)]
pub struct Preprocess {
    size: [usize; 2],
    channels: Channels,
    divisor: f32,
    mean: [f32; 3],
    std: [f32; 3],
    out: [usize; 2],
    how: How,
}

#[derive(Clone, Debug)]
enum How {
    /// The crop's upper left corner.
    Cut([usize; 2]),
    Resized {
        rows: Taps,
        columns: Taps,
        /// `[rows read, out width]` of one channel, resized horizontally.
        narrowed: Vec<f32>,
    },
}

/// For each pixel of the result, which pixels of the source it is made of.
#[derive(Clone, Debug)]
struct Taps {
    first: Vec<usize>,
    weights: Vec<Vec<f32>>,
}

impl Preprocess {
    /// The camera must be free of problems.
    pub fn new(camera: &Camera) -> Self {
        let [_, _, height, width] = camera.input_shape();
        let from = camera.resize.unwrap_or(camera.size);
        let corner = [centre(from[0], height), centre(from[1], width)];
        let how = match camera.resize {
            None => How::Cut(corner),
            Some(to) => {
                let taps = |axis: usize, keep: usize| {
                    Taps::new(camera.size[axis], to[axis], camera.antialias).kept(corner[axis], keep)
                };
                let (rows, columns) = (taps(0, height), taps(1, width));
                let narrowed = vec![0.0; rows.span() * width];
                How::Resized { rows, columns, narrowed }
            }
        };
        let per_channel = |values: &[f32], missing: f32| {
            std::array::from_fn(|channel| values.get(channel).copied().unwrap_or(missing))
        };
        Self {
            size: camera.size,
            channels: camera.channels,
            divisor: camera.divisor,
            mean: per_channel(&camera.mean, 0.0),
            std: per_channel(&camera.std, 1.0),
            out: [height, width],
            how,
        }
    }

    /// Writes the encoder's input `[C, height, width]` for an image.
    ///
    /// # Panics
    /// If `out` has another size than [`Camera::input_shape`] says.
    pub fn run(&mut self, image: &Image<'_>, out: &mut [f32]) -> Result<(), ImageError> {
        let got = [image.height, image.width];
        if got != self.size {
            return Err(ImageError::Size { expected: self.size, got });
        }
        let count = self.channels.count();
        if image.channels.count() != count {
            return Err(ImageError::Channels { expected: self.channels, got: image.channels });
        }
        image.check()?;
        let [height, width] = self.out;
        assert_eq!(out.len(), count * height * width, "the encoder's input");
        let swapped = image.channels != self.channels;
        for (channel, plane) in out.chunks_exact_mut(height * width).enumerate() {
            let byte = if swapped { count - 1 - channel } else { channel };
            let (divisor, mean, std) = (self.divisor, self.mean[channel], self.std[channel]);
            let row = |y: usize| &image.pixels[y * image.step..][..image.width * count];
            match &mut self.how {
                How::Cut([top, left]) => {
                    for (y, line) in plane.chunks_exact_mut(width).enumerate() {
                        let source = &row(*top + y)[*left * count..];
                        for (value, pixel) in line.iter_mut().zip(source.chunks_exact(count)) {
                            *value = (f32::from(pixel[byte]) / divisor - mean) / std;
                        }
                    }
                }
                How::Resized { rows, columns, narrowed } => {
                    let top = rows.start();
                    for (y, line) in narrowed.chunks_exact_mut(width).enumerate() {
                        let source = row(top + y);
                        for (x, value) in line.iter_mut().enumerate() {
                            let taps = source[columns.first[x] * count..].chunks_exact(count);
                            let mixed = taps.zip(&columns.weights[x]);
                            *value =
                                mixed.map(|(pixel, weight)| f32::from(pixel[byte]) / divisor * weight).sum();
                        }
                    }
                    for (y, line) in plane.chunks_exact_mut(width).enumerate() {
                        let first = rows.first[y] - top;
                        for (x, value) in line.iter_mut().enumerate() {
                            let taps = narrowed[first * width + x..].iter().step_by(width);
                            let mixed: f32 = taps.zip(&rows.weights[y]).map(|(v, weight)| v * weight).sum();
                            *value = (mixed - mean) / std;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Where torchvision's `CenterCrop` starts: half of what is left over, rounded half to even.
fn centre(outer: usize, inner: usize) -> usize {
    let half = (outer - inner) / 2;
    half + usize::from((outer - inner) % 2 == 1 && half % 2 == 1)
}

impl Taps {
    fn new(from: usize, to: usize, antialias: bool) -> Self {
        // In single precision throughout, as PyTorch computes them for float tensors.
        let scale = from as f32 / to as f32;
        let (mut first, mut weights) = (Vec::new(), Vec::new());
        for i in 0..to {
            let (start, row) =
                if antialias { averaged(from, scale, i) } else { interpolated(from, scale, i) };
            first.push(start);
            weights.push(row);
        }
        Self { first, weights }
    }

    /// Only the `keep` results from `start` on.
    fn kept(mut self, start: usize, keep: usize) -> Self {
        self.first = self.first[start..start + keep].to_vec();
        self.weights = self.weights[start..start + keep].to_vec();
        self
    }

    /// The first pixel that is read.
    fn start(&self) -> usize {
        self.first.first().copied().unwrap_or(0)
    }

    /// Pixels from the first to the last that is read.
    fn span(&self) -> usize {
        let end = self.first.iter().zip(&self.weights).map(|(first, row)| first + row.len()).max();
        end.unwrap_or(0) - self.start()
    }
}

/// A triangle as wide as two source pixels, or as two result pixels where that is wider.
fn averaged(from: usize, scale: f32, i: usize) -> (usize, Vec<f32>) {
    let support = scale.max(1.0);
    let middle = scale * (i as f32 + 0.5);
    let first = (middle - support + 0.5).max(0.0) as usize;
    let end = ((middle + support + 0.5) as usize).min(from);
    let weight = |tap: usize| {
        let distance = (tap as f32 - middle + 0.5) / support;
        (1.0 - distance.abs()).max(0.0)
    };
    let row: Vec<f32> = (first..end).map(weight).collect();
    let sum: f32 = row.iter().sum();
    (first, row.into_iter().map(|w| w / sum).collect())
}

/// The two nearest source pixels.
fn interpolated(from: usize, scale: f32, i: usize) -> (usize, Vec<f32>) {
    let at = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
    let first = (at as usize).min(from - 1);
    let share = at - first as f32;
    if first + 1 < from { (first, vec![1.0 - share, share]) } else { (first, vec![1.0]) }
}
