//! The drawing against the frames of the image demonstrations.

use std::fs::File;
use std::io::Read;

use refrain_pusht::render_rgb;

use crate::files;

const SIZE: usize = 96;
const FRAME: usize = SIZE * SIZE * 3;
/// Frames per stored chunk.
const CHUNK: usize = 257;

/// The one blosc flavour of the file: version 2, zstd, no shuffle, one stream per block.
/// Layout: 16 bytes of header, the offset of each block, then per block its compressed size and a zstd frame.
fn blosc(chunk: &[u8]) -> Vec<u8> {
    let word = |at: usize| u32::from_le_bytes(chunk[at..at + 4].try_into().expect("4 bytes")) as usize;
    let (flags, total, block) = (chunk[2], word(4), word(8));
    assert_eq!(flags & 0b111, 0, "expected neither shuffled nor stored data");
    assert_eq!(flags >> 5, 4, "expected zstd");
    let mut data = Vec::with_capacity(total);
    for i in 0..total.div_ceil(block) {
        let at = word(16 + 4 * i);
        let (size, length) = (word(at), block.min(total - i * block));
        let bytes = &chunk[at + 4..at + 4 + size];
        if size == length {
            data.extend_from_slice(bytes);
        } else {
            let mut decoder = ruzstd::decoding::StreamingDecoder::new(bytes).expect("a zstd frame");
            decoder.read_to_end(&mut data).expect("a whole zstd frame");
        }
    }
    assert_eq!(data.len(), total);
    data
}

#[test]
fn the_drawing_is_what_the_camera_saw() {
    let Some(path) = files::path("pusht_images_96px.zarr.zip") else { return };
    let Some(demonstrations) = files::demonstrations() else { return };
    let states: Vec<_> = demonstrations.iter().flat_map(|d| &d.states).collect();
    let mut archive = zip::ZipArchive::new(File::open(path).expect("the images")).expect("a zip archive");
    let (mut frames, mut worst, mut sum, mut off) = (0, 0.0f64, 0.0, 0usize);
    for chunk in (0..states.len() / CHUNK).step_by(9) {
        let name = format!("img/{chunk}.0.0.0");
        let images = blosc(&files::member(&mut archive, &name).expect("a chunk"));
        for within in (0..CHUNK).step_by(16) {
            let seen = &images[within * FRAME..(within + 1) * FRAME];
            let drawn = render_rgb(states[chunk * CHUNK + within], SIZE);
            let total: u64 = seen.iter().zip(&drawn).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            off += seen.iter().zip(&drawn).filter(|(a, b)| a.abs_diff(**b) > 24).count();
            let mean = total as f64 / FRAME as f64;
            frames += 1;
            sum += mean;
            worst = worst.max(mean);
        }
    }
    let share = off as f64 / (frames * FRAME) as f64;
    let mean = sum / frames as f64;
    println!(
        "{frames} frames: off by {mean:.3} of 255 on average, {worst:.3} in the worst, {share:.5} of the values by over 24"
    );
    // What remains: single pixels of outlines, and the red contact points of the source's debug drawing.
    assert!(frames > 150 && mean <= 0.2 && worst <= 0.4 && share <= 0.003);
}
