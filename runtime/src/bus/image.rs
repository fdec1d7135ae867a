//! Camera images in CDR: `sensor_msgs/Image` (rgb8, bgr8, mono8) and `sensor_msgs/CompressedImage` (JPEG, PNG).
//!
//! Reading borrows the payload: pixels of an `Image` are looked at where they are, and only a compressed image is decoded
//! into a buffer that is kept. Sizes are compared with the camera's before anything is decoded or allocated. Nothing that
//! comes in can do more than be refused by name.

use hiroz_cdr::{CdrReader, CdrWriter, LittleEndian};
use png::{BitDepth, ColorType, Compression, Limits, Transformations};
use refrain_policies::camera::Channels;
use refrain_policies::preprocess::Image;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::cdr;
use crate::clock::Wall;
use crate::observation::Refusal;

/// How a PNG begins.
const PNG: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
/// How a JPEG begins.
const JPEG: [u8; 3] = [0xff, 0xd8, 0xff];
/// Longest name of an encoding that is repeated, characters.
const LONGEST_NAME: usize = 32;
/// Quality of written JPEGs, 1 to 100: what ROS's drivers and libjpeg start with.
const JPEG_QUALITY: u8 = 75;
/// What a PNG decoder may allocate besides the image, bytes.
const PNG_LIMIT: usize = 16 << 20;

/// A message with an image, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// Its header's stamp; 0 is none.
    pub stamp: Option<Wall>,
    /// What it holds.
    pub content: Content<'a>,
}

/// What a message holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// Pixels.
    Raw(Image<'a>),
    /// A JPEG or PNG file.
    Compressed(&'a [u8]),
}

/// What a message says that it holds, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its encoding as the message has it, or the kind of file.
    pub encoding: String,
    /// Height and width, if it says so.
    pub size: Option<[usize; 2]>,
    /// Bytes from one row to the next; 0 in a file.
    pub step: usize,
}

/// Decodes compressed images of one camera into a buffer of its own.
#[derive(Debug)]
pub struct Decoder {
    size: [usize; 2],
    channels: Channels,
    pixels: Vec<u8>,
}

/// What a `sensor_msgs/Image` says of itself, whether or not it is taken.
pub fn describe_image(bytes: &[u8]) -> Option<Described> {
    let (mut reader, _) = open(bytes).ok()?;
    let height = reader.read_u32().ok()? as usize;
    let width = reader.read_u32().ok()? as usize;
    let encoding = reader.read_str().ok()?.chars().take(LONGEST_NAME).collect();
    reader.read_u8().ok()?;
    let step = reader.read_u32().ok()? as usize;
    Some(Described { encoding, size: Some([height, width]), step })
}

/// The same of a `sensor_msgs/CompressedImage`; of the file, only its head is looked at.
pub fn describe_compressed_image(bytes: &[u8]) -> Option<Described> {
    let (mut reader, _) = open(bytes).ok()?;
    let format: String = reader.read_str().ok()?.chars().take(LONGEST_NAME).collect();
    let length = reader.read_u32().ok()? as usize;
    let file = reader.read_bytes(length).ok()?;
    let (encoding, size) = if file.starts_with(&JPEG) {
        let mut decoder = JpegDecoder::new(ZCursor::new(file));
        let info = decoder.decode_headers().ok().and_then(|()| decoder.info());
        let grey = info.as_ref().is_some_and(|info| info.components == 1);
        let size = info.map(|info| [usize::from(info.height), usize::from(info.width)]);
        (if grey { "a grey JPEG" } else { "a JPEG" }.into(), size)
    } else if file.starts_with(&PNG) {
        let mut decoder =
            png::Decoder::new_with_limits(std::io::Cursor::new(file), Limits { bytes: PNG_LIMIT });
        let info = decoder.read_header_info().ok();
        let size = info.map(|info| [info.height as usize, info.width as usize]);
        let kind = info.map_or(String::new(), |info| format!(" ({:?})", info.color_type));
        (format!("a PNG{kind}"), size)
    } else {
        (format!("neither JPEG nor PNG but {format:?}"), None)
    };
    Some(Described { encoding, size, step: 0 })
}

/// Reads a `sensor_msgs/Image`. Whether its bytes suffice is left to [`Image::check`].
pub fn read_image(bytes: &[u8]) -> Result<Received<'_>, Refusal> {
    let (mut reader, stamp) = open(bytes)?;
    let undecodable = |_| Refusal::Undecodable;
    let height = reader.read_u32().map_err(undecodable)? as usize;
    let width = reader.read_u32().map_err(undecodable)? as usize;
    let channels = match reader.read_str().map_err(undecodable)? {
        "rgb8" => Channels::Rgb,
        "bgr8" => Channels::Bgr,
        "mono8" => Channels::Mono,
        _ => return Err(Refusal::WrongEncoding),
    };
    reader.read_u8().map_err(undecodable)?;
    let step = reader.read_u32().map_err(undecodable)? as usize;
    let length = reader.read_u32().map_err(undecodable)? as usize;
    let pixels = reader.read_bytes(length).map_err(|_| Refusal::Truncated)?;
    Ok(Received { stamp, content: Content::Raw(Image { height, width, step, channels, pixels }) })
}

/// Reads a `sensor_msgs/CompressedImage`. What it holds is told by its first bytes, since publishers write all kinds of
/// formats.
pub fn read_compressed_image(bytes: &[u8]) -> Result<Received<'_>, Refusal> {
    let (mut reader, stamp) = open(bytes)?;
    reader.read_str().map_err(|_| Refusal::Undecodable)?;
    let length = reader.read_u32().map_err(|_| Refusal::Undecodable)? as usize;
    let file = reader.read_bytes(length).map_err(|_| Refusal::Truncated)?;
    Ok(Received { stamp, content: Content::Compressed(file) })
}

/// Writes a `sensor_msgs/Image`.
pub fn write_image(out: &mut Vec<u8>, stamp: Wall, image: &Image<'_>) {
    let mut writer = start(out, stamp);
    writer.write_u32(image.height as u32);
    writer.write_u32(image.width as u32);
    writer.write_string(match image.channels {
        Channels::Rgb => "rgb8",
        Channels::Bgr => "bgr8",
        Channels::Mono => "mono8",
    });
    writer.write_u8(0);
    writer.write_u32(image.step as u32);
    writer.write_sequence_length(image.pixels.len());
    out.extend_from_slice(image.pixels);
}

/// A PNG file of an RGB or mono image without gaps.
pub fn png(image: &Image<'_>) -> Result<Vec<u8>, png::EncodingError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, image.width as u32, image.height as u32);
    let mono = image.channels == Channels::Mono;
    encoder.set_color(if mono { ColorType::Grayscale } else { ColorType::Rgb });
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(Compression::Fast);
    encoder.write_header()?.write_image_data(image.pixels)?;
    Ok(file)
}

/// A JPEG file of an RGB or mono image without gaps, with the usual quality and colour at half the size.
pub fn jpeg(image: &Image<'_>) -> Result<Vec<u8>, jpeg_encoder::EncodingError> {
    let mut file = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut file, JPEG_QUALITY);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_2_2);
    let side = |pixels: usize| u16::try_from(pixels).unwrap_or(u16::MAX);
    let mono = image.channels == Channels::Mono;
    let color = if mono { jpeg_encoder::ColorType::Luma } else { jpeg_encoder::ColorType::Rgb };
    encoder.encode(image.pixels, side(image.width), side(image.height), color)?;
    Ok(file)
}

/// Writes a `sensor_msgs/CompressedImage`; `format` is `jpeg` or `png`.
pub fn write_compressed_image(out: &mut Vec<u8>, stamp: Wall, format: &str, file: &[u8]) {
    let mut writer = start(out, stamp);
    writer.write_string(format);
    writer.write_sequence_length(file.len());
    out.extend_from_slice(file);
}

impl Decoder {
    /// For images of `size` (height, width).
    pub fn new(size: [usize; 2], channels: Channels) -> Self {
        Self { size, channels, pixels: Vec::new() }
    }

    /// The message's image: its own bytes, or what was decoded from them.
    pub fn image<'a>(&'a mut self, content: Content<'a>) -> Result<Image<'a>, Refusal> {
        let file = match content {
            Content::Raw(image) => return Ok(image),
            Content::Compressed(file) => file,
        };
        let channels = if self.channels == Channels::Mono { Channels::Mono } else { Channels::Rgb };
        let [height, width] = self.size;
        self.pixels.resize(height * width * channels.count(), 0);
        if file.starts_with(&JPEG) {
            self.jpeg(file)?;
        } else if file.starts_with(&PNG) {
            self.png(file)?;
        } else {
            return Err(Refusal::WrongEncoding);
        }
        Ok(Image { height, width, step: width * channels.count(), channels, pixels: &self.pixels })
    }

    fn jpeg(&mut self, file: &[u8]) -> Result<(), Refusal> {
        let mono = self.channels == Channels::Mono;
        let wanted = if mono { ColorSpace::Luma } else { ColorSpace::RGB };
        let options = DecoderOptions::default().set_strict_mode(true).jpeg_set_out_colorspace(wanted);
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
        decoder.decode_headers().map_err(|_| Refusal::Undecodable)?;
        let info = decoder.info().ok_or(Refusal::Undecodable)?;
        if [usize::from(info.height), usize::from(info.width)] != self.size {
            return Err(Refusal::WrongSize);
        }
        if (info.components == 1) != mono {
            return Err(Refusal::WrongEncoding);
        }
        if decoder.output_buffer_size() != Some(self.pixels.len()) {
            return Err(Refusal::WrongEncoding);
        }
        decoder.decode_into(&mut self.pixels).map_err(|_| Refusal::Undecodable)
    }

    fn png(&mut self, file: &[u8]) -> Result<(), Refusal> {
        let limits = Limits { bytes: PNG_LIMIT + self.pixels.len() };
        let mut decoder = png::Decoder::new_with_limits(std::io::Cursor::new(file), limits);
        decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
        let info = decoder.read_header_info().map_err(|_| Refusal::Undecodable)?;
        if [info.height as usize, info.width as usize] != self.size {
            return Err(Refusal::WrongSize);
        }
        let mut reader = decoder.read_info().map_err(|_| Refusal::Undecodable)?;
        let expected = if self.channels == Channels::Mono { ColorType::Grayscale } else { ColorType::Rgb };
        if reader.output_color_type() != (expected, BitDepth::Eight)
            || reader.output_buffer_size() != Some(self.pixels.len())
        {
            return Err(Refusal::WrongEncoding);
        }
        reader.next_frame(&mut self.pixels).map_err(|_| Refusal::Undecodable)?;
        Ok(())
    }
}

fn start(out: &mut Vec<u8>, stamp: Wall) -> CdrWriter<'_, LittleEndian> {
    let mut writer = cdr::start(out);
    cdr::write_header(&mut writer, stamp);
    writer
}

fn open(bytes: &[u8]) -> Result<(CdrReader<'_, LittleEndian>, Option<Wall>), Refusal> {
    let mut reader = cdr::open(bytes)?;
    let stamp = cdr::read_header(&mut reader)?;
    Ok((reader, stamp))
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
