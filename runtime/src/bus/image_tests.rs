//! Images in CDR, against bytes from independent encoders, and hostile ones.

use proptest::prelude::{any, prop_assert, proptest};

use super::*;

/// Made by `policies/train/make_image_fixtures.py` with rosbags, Pillow and numpy.
fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/../tests/fixtures/images/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// RGB or mono bytes without gaps.
fn flat(image: &Image<'_>) -> Vec<u8> {
    let row = image.width * image.channels.count();
    let mut bytes: Vec<u8> = image.pixels.chunks(image.step).flat_map(|line| &line[..row]).copied().collect();
    if image.channels == Channels::Bgr {
        bytes.chunks_exact_mut(3).for_each(|pixel| pixel.swap(0, 2));
    }
    bytes
}

fn decoded(name: &str, channels: Channels) -> Result<Vec<u8>, Refusal> {
    let bytes = fixture(&format!("{name}.cdr"));
    let is_file = ["jpeg", "png", "gif"].iter().any(|kind| name.starts_with(kind));
    let received = if is_file { read_compressed_image(&bytes)? } else { read_image(&bytes)? };
    assert_eq!(received.stamp, Some(Wall::from_nanos(1_700_000_000_123_456_789)), "{name}");
    let mut decoder = Decoder::new([16, 24], channels);
    let image = decoder.image(received.content)?;
    image.check().expect("all of it is there");
    Ok(flat(&image))
}

#[test]
fn images_of_independent_encoders_are_read() {
    let bytes = fixture("pixels.safetensors");
    let pixels = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shown = |name: &str| pixels.tensor(name).unwrap().data().to_vec();
    for name in ["rgb8", "bgr8", "rgb8_padded", "png_rgb", "png_palette"] {
        assert_eq!(decoded(name, Channels::Rgb).unwrap(), shown(name), "{name}");
    }
    for name in ["mono8", "png_mono"] {
        assert_eq!(decoded(name, Channels::Mono).unwrap(), shown(name), "{name}");
    }
    // Decoders of JPEG may round differently.
    for (name, channels) in [
        ("jpeg_444", Channels::Rgb),
        ("jpeg_420", Channels::Bgr),
        ("jpeg_progressive", Channels::Rgb),
        ("jpeg_mono", Channels::Mono),
    ] {
        let (got, expected) = (decoded(name, channels).unwrap(), shown(name));
        assert_eq!(got.len(), expected.len(), "{name}");
        let most = got.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        println!("{name}: off by {most} of 255 at most");
        assert!(most <= 4, "{name}: off by {most}");
    }
}

#[test]
fn what_is_no_image_of_the_camera_is_named() {
    for (name, channels, why) in [
        ("depth", Channels::Rgb, Refusal::WrongEncoding),
        ("gif", Channels::Rgb, Refusal::WrongEncoding),
        ("png_alpha", Channels::Rgb, Refusal::WrongEncoding),
        ("png_mono", Channels::Rgb, Refusal::WrongEncoding),
        ("png_rgb", Channels::Mono, Refusal::WrongEncoding),
        ("jpeg_mono", Channels::Rgb, Refusal::WrongEncoding),
        ("jpeg_444", Channels::Mono, Refusal::WrongEncoding),
    ] {
        assert_eq!(decoded(name, channels), Err(why), "{name}");
    }
    for name in ["jpeg_444", "png_rgb"] {
        let bytes = fixture(&format!("{name}.cdr"));
        let content = read_compressed_image(&bytes).unwrap().content;
        assert_eq!(Decoder::new([24, 16], Channels::Rgb).image(content), Err(Refusal::WrongSize), "{name}");
        let Content::Compressed(file) = content else { panic!("{name} is compressed") };
        let cut = Content::Compressed(&file[..file.len() * 2 / 3]);
        assert_eq!(Decoder::new([16, 24], Channels::Rgb).image(cut), Err(Refusal::Undecodable), "{name}");
    }
    let bytes = fixture("rgb8.cdr");
    assert_eq!(read_image(&bytes[..bytes.len() - 1]).unwrap_err(), Refusal::Truncated);
    assert_eq!(read_image(&bytes[..20]).unwrap_err(), Refusal::Undecodable);
}

#[test]
fn what_is_written_is_what_rosbags_writes() {
    let stamp = Wall::from_nanos(1_700_000_000_123_456_789);
    for (name, channels) in [("rgb8", Channels::Rgb), ("bgr8", Channels::Bgr), ("mono8", Channels::Mono)] {
        let bytes = fixture(&format!("{name}.cdr"));
        let received = read_image(&bytes).unwrap();
        let Content::Raw(image) = received.content else { panic!("{name} is raw") };
        assert_eq!(image.channels, channels);
        let mut written = Vec::new();
        write_image(&mut written, stamp, &image);
        assert_eq!(read_image(&written).unwrap(), received, "{name}");
        // The same but for the frame's name, which Refrain leaves empty.
        assert_eq!(written[written.len() - image.pixels.len()..], bytes[bytes.len() - image.pixels.len()..]);
    }
    let bytes = fixture("png_rgb.cdr");
    let received = read_compressed_image(&bytes).unwrap();
    let Content::Compressed(file) = received.content else { panic!("a file") };
    let mut written = Vec::new();
    write_compressed_image(&mut written, stamp, "png", file);
    assert_eq!(read_compressed_image(&written).unwrap(), received);
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

    /// Whatever comes in is refused or an image of the camera's size whose bytes are there.
    #[test]
    fn hostile_messages_are_refused(
        which in 0usize..7,
        cut in any::<proptest::sample::Index>(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        cuts in any::<bool>(),
    ) {
        let name = ["rgb8", "rgb8_padded", "mono8", "jpeg_420", "jpeg_progressive", "png_rgb", "png_palette"][which];
        let mut bytes = fixture(&format!("{name}.cdr"));
        for (place, value) in &changes {
            let place = place.index(bytes.len());
            bytes[place] = *value;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        // What is said of it stays short, whatever it says of itself.
        for described in [describe_image(&bytes), describe_compressed_image(&bytes)].into_iter().flatten() {
            prop_assert!(described.encoding.len() < 300);
        }
        let mut decoder = Decoder::new([16, 24], Channels::Rgb);
        for received in [read_image(&bytes), read_compressed_image(&bytes)].into_iter().flatten() {
            if let Ok(image) = decoder.image(received.content)
                && image.check().is_ok()
            {
                prop_assert!(image.pixels.len() >= image.step * (image.height.max(1) - 1));
            }
        }
    }
}
