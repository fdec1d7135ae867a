//! What a policy sees, against torchvision and PyTorch (`policies/train/make_vision_fixtures.py`), and what is wrong with
//! files, each by name.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::{any, prop_assert, proptest};
use refrain_policies::camera::{Camera, Channels};
use refrain_policies::encoder::{Encoder, EncoderError};
use refrain_policies::package::Package;
use refrain_policies::preprocess::{Image, ImageError, Preprocess};
use refrain_policies::vision::{Frame, Vision, VisionError};
use safetensors::SafeTensors;

/// Preprocessed values are of order 1. Measured: 6e-7 at most.
const PREPROCESS_TOLERANCE: f32 = 2e-6;
/// Relative to the largest feature. Measured: 2e-7.
const FEATURE_TOLERANCE: f32 = 1e-5;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/vision")
}

fn read(file: &str) -> Vec<u8> {
    fs::read(fixtures().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = file.tensor(name).unwrap();
    assert_eq!(view.dtype(), safetensors::Dtype::F32, "{name}");
    view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Bytes [H, W, C].
fn image<'a>(file: &SafeTensors<'a>, name: &str) -> Image<'a> {
    let view = file.tensor(name).unwrap();
    let [height, width, channels] = *view.shape() else { panic!("{name}: {:?}", view.shape()) };
    let channels = if channels == 1 { Channels::Mono } else { Channels::Rgb };
    Image { height, width, step: width * channels.count(), channels, pixels: view.data() }
}

fn difference(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn images_become_what_torchvision_makes_of_them() {
    let bytes = read("preprocess.safetensors");
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let cameras = &header.metadata().as_ref().unwrap()["cameras"];
    let cameras: Vec<Camera> = serde_json::from_str(cameras).unwrap();
    assert_eq!(cameras.len(), 13);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for camera in cameras {
        let source = image(&file, &format!("{}.image", camera.name));
        let expected = floats(&file, &format!("{}.input", camera.name));
        let mut got = vec![f32::NAN; camera.input_shape().iter().product()];
        Preprocess::new(&camera).run(&source, &mut got).unwrap();
        let difference = difference(&got, &expected);
        println!("{}: {difference:.1e}", camera.name);
        assert!(difference <= PREPROCESS_TOLERANCE, "{}: off by {difference}", camera.name);

        // The same image with padded rows, and with its channels the other way round.
        let count = source.channels.count();
        let row = source.width * count;
        let padded: Vec<u8> = source.pixels.chunks(row).flat_map(|r| [r, &[7; 5]].concat()).collect();
        let wide = Image { step: row + 5, pixels: &padded[..padded.len() - 5], ..source };
        let mut again = got.clone();
        again.fill(f32::NAN);
        Preprocess::new(&camera).run(&wide, &mut again).unwrap();
        assert_eq!(got, again, "{}", camera.name);
        if count == 3 {
            let swapped: Vec<u8> = source.pixels.chunks(3).flat_map(|p| [p[2], p[1], p[0]]).collect();
            let swapped = Image { channels: Channels::Bgr, pixels: &swapped, ..source };
            Preprocess::new(&camera).run(&swapped, &mut again).unwrap();
            assert_eq!(got, again, "{}", camera.name);
        }
    }
}

fn vision() -> (Package, Vision) {
    let package = Package::load(&fixtures().join("policy")).unwrap();
    let vision = Vision::new(&package).unwrap().expect("it has cameras");
    (package, vision)
}

#[test]
fn the_condition_is_that_of_pytorch() {
    let (package, mut vision) = vision();
    let bytes = read("policy/trace.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let frames = [("front.0", 0), ("wrist.0", 0), ("front.1", 100), ("wrist.1", 100)]
        .map(|(name, stamp)| Frame { stamp, image: image(&file, name) });
    let mut low = floats(&file, "obs_raw");
    package.config.observation.normalizer.normalize(&mut low);
    let expected = floats(&file, "condition");
    let mut condition = vec![f32::NAN; expected.len()];
    vision.condition(&low, &frames, &mut condition).unwrap();
    let largest = expected.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    let off = difference(&condition, &expected);
    println!("condition off by {off:.1e} of {largest:.2}");
    assert!(off <= FEATURE_TOLERANCE * largest, "off by {off} of {largest}");
    assert_eq!(vision.encoded(), 4);
}

#[test]
fn what_was_encoded_is_not_encoded_again() {
    let (package, mut vision) = vision();
    let size = package.config.condition_size();
    let front = [[1; 20 * 24 * 3], [2; 20 * 24 * 3], [3; 20 * 24 * 3]];
    let wrist = [[1; 18 * 18], [2; 18 * 18], [3; 18 * 18]];
    let frame = |step: usize| {
        let stamp = step as i64 * 100;
        let rgb = Image { height: 20, width: 24, step: 72, channels: Channels::Rgb, pixels: &front[step] };
        let mono = Image { height: 18, width: 18, step: 18, channels: Channels::Mono, pixels: &wrist[step] };
        [Frame { stamp, image: rgb }, Frame { stamp, image: mono }]
    };
    let low = [0.0; 4];
    let mut seen = |steps: [usize; 2]| {
        let mut condition = vec![0.0; 2 * size];
        vision.condition(&low, &steps.map(frame).concat(), &mut condition).unwrap();
        (condition, vision.encoded())
    };
    let (first, encoded) = seen([0, 1]);
    assert_eq!(encoded, 4);
    assert_ne!(first[..size], first[size..], "different images, different features");
    let (second, encoded) = seen([1, 2]);
    assert_eq!(encoded, 6, "only the new step's two images");
    assert_eq!(first[size..], second[..size], "and the old features are in their place");
    assert_eq!(seen([0, 0]).1, 6, "two chunks back is remembered too");
    let (again, encoded) = seen([1, 1]);
    assert_eq!((&again[..size], encoded), (&again[size..], 6));
    vision.forget();
    let mut condition = vec![0.0; 2 * size];
    vision.condition(&low, &[frame(1), frame(1)].concat(), &mut condition).unwrap();
    assert_eq!((condition, vision.encoded()), (again, 8));
}

#[test]
fn each_wrong_encoder_is_named() {
    let load = |file: &str, shape, features| Encoder::load(file, &read(file), shape, features).map(|_| ());
    let shape = [1, 3, 8, 8];
    load("sound.onnx", shape, 4).unwrap();
    for (file, message) in [
        ("wrong_input_name.onnx", r#"expected one input called "image", got ["pixels"]"#),
        ("wrong_output_name.onnx", r#"expected one output called "features", got ["embedding"]"#),
        ("two_outputs.onnx", r#"expected one output called "features", got ["features", "#),
        ("dynamic.onnx", "expected [1, 3, 8, 8]: export with static shapes"),
        ("unsupported.onnx", "unsupported operators: Unique, AcmeFancyNorm"),
        ("external.onnx", "lies in another file"),
        ("lying.onnx", "features is f32 [1, 5]; policy.toml says f32 [1, 4]"),
        ("dangling.onnx", "cannot be made to run"),
        ("not_finite.onnx", "cannot be made to run: feature 1 is NaN"),
    ] {
        let error = load(file, shape, 4).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{file}: ")) && error.contains(message), "{file}: {error}");
    }
    let error = load("lying.onnx", shape, 5).unwrap_err();
    assert!(matches!(error, EncoderError::Graph { .. }), "{error}");
    let error = load("sound.onnx", [1, 3, 8, 9], 4).unwrap_err().to_string();
    assert!(error.contains("image is f32 [1, 3, 8, 8]; policy.toml says f32 [1, 3, 8, 9]"), "{error}");
    let error = load("sound.onnx", shape, 3).unwrap_err().to_string();
    assert!(error.contains("features is f32 [1, 4]; policy.toml says f32 [1, 3]"), "{error}");
    let error = Encoder::load("e.onnx", b"not onnx at all", shape, 4).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("is not a whole ONNX file"), "{error}");
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// A damaged file is refused or runs; it never takes the process down.
    #[test]
    fn damaged_encoders_are_refused(cut in any::<proptest::sample::Index>(), byte in any::<u8>(), cuts in any::<bool>()) {
        let mut bytes = read("sound.onnx");
        let at = cut.index(bytes.len());
        if cuts { bytes.truncate(at) } else { bytes[at] = byte };
        if let Ok(mut encoder) = Encoder::load("e.onnx", &bytes, [1, 3, 8, 8], 4) {
            prop_assert!(encoder.run(&[0.5; 192], &mut [0.0; 4]).is_ok() || !cuts);
        }
    }

    #[test]
    fn hostile_images_are_refused(height in any::<usize>(), width in any::<usize>(), step in any::<usize>(), bytes in 0usize..2000) {
        let pixels = vec![0; bytes];
        for (height, width) in [(height, width), (8, 8), (8, width), (height, 8)] {
            let image = Image { height, width, step, channels: Channels::Rgb, pixels: &pixels };
            let camera: Camera = toml::from_str("name = 'c'\nsize = [8, 8]\nfeatures = 1").unwrap();
            let ok = Preprocess::new(&camera).run(&image, &mut [0.0; 192]).is_ok();
            prop_assert!(!ok || (height == 8 && width == 8 && step >= 24 && bytes >= 7 * step + 24));
        }
    }
}

#[test]
fn each_wrong_image_is_named() {
    let camera: Camera = toml::from_str("name = 'c'\nsize = [8, 6]\nfeatures = 1").unwrap();
    let mut preprocess = Preprocess::new(&camera);
    let pixels = [9; 8 * 18];
    let good = Image { height: 8, width: 6, step: 18, channels: Channels::Rgb, pixels: &pixels };
    let mut error = |image: Image<'_>| preprocess.run(&image, &mut [0.0; 144]).unwrap_err();
    assert_eq!(
        error(Image { height: 6, width: 8, ..good }),
        ImageError::Size { expected: [8, 6], got: [6, 8] }
    );
    let channels = ImageError::Channels { expected: Channels::Rgb, got: Channels::Mono };
    assert_eq!(error(Image { channels: Channels::Mono, step: 6, ..good }), channels);
    assert_eq!(error(Image { step: 17, ..good }), ImageError::Step { expected: 18, got: 17 });
    let truncated = ImageError::Truncated { expected: 144, got: 143 };
    assert_eq!(error(Image { pixels: &pixels[1..], ..good }), truncated);
}

#[test]
fn too_few_images_are_an_error_and_a_wrong_one_names_its_camera() {
    let (package, mut vision) = vision();
    let mut condition = vec![0.0; 2 * package.config.condition_size()];
    let error = vision.condition(&[0.0; 4], &[], &mut condition).unwrap_err();
    assert_eq!(error, VisionError::Frames { expected: 4, got: 0 });
    let image = Image { height: 1, width: 1, step: 3, channels: Channels::Rgb, pixels: &[0; 3] };
    let error = vision.condition(&[0.0; 4], &[Frame { stamp: 0, image }; 4], &mut condition).unwrap_err();
    assert_eq!(
        error.to_string(),
        "camera \"front\": expected an image of [20, 24] (height, width), got [1, 1]"
    );
}

#[test]
fn packages_keep_their_encoders_and_their_hash_knows_them() {
    let package = Package::load(&fixtures().join("policy")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    package.save(dir.path()).unwrap();
    let again = Package::load(dir.path()).unwrap();
    assert_eq!((&again.config, &again.encoders), (&package.config, &package.encoders));
    assert_eq!(again.weights_sha256(), package.weights_sha256());

    let mut other = read("policy/wrist.onnx");
    *other.last_mut().unwrap() ^= 1;
    fs::write(dir.path().join("wrist.onnx"), &other).unwrap();
    assert_ne!(Package::load(dir.path()).unwrap().weights_sha256(), package.weights_sha256());
    fs::remove_file(dir.path().join("wrist.onnx")).unwrap();
    let error = Package::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("camera \"wrist\": \"wrist.onnx\" is missing"), "{error}");
    let error = Package::new(package.config.clone(), package.weights.clone()).unwrap_err().to_string();
    assert!(error.contains("camera \"front\": \"front.onnx\" is missing"), "{error}");
}

#[test]
fn wrong_cameras_are_reported_together() {
    let dir = tempfile::tempdir().unwrap();
    let text = String::from_utf8(read("policy/policy.toml")).unwrap();
    for (from, to) in [
        ("encoder = \"front.onnx\"", "encoder = \"../front.onnx\""),
        ("size = [20, 24]", "size = [20, 0]"),
        ("crop = [16, 16]", "crop = [16, 99]"),
        ("mean = [0.5, 0.5, 0.5]", "mean = [0.5]"),
        ("std = [0.5, 0.5, 0.5]", "std = [0.5, 0.0, 0.5]\ndivisor = 0.0"),
        ("name = \"wrist\"", "name = \"front\""),
        ("obs_as_cond = true", "obs_as_cond = false"),
    ] {
        assert!(text.contains(from), "{from}");
        let wrong = text.replacen(from, to, 1);
        fs::write(dir.path().join("policy.toml"), &wrong).unwrap();
        for file in ["weights.safetensors", "front.onnx", "wrist.onnx"] {
            fs::write(dir.path().join(file), read(&format!("policy/{file}"))).unwrap();
        }
        let error = Package::load(dir.path()).unwrap_err().to_string();
        let key =
            if from.starts_with("name") || from.starts_with("obs") { "cameras:" } else { "cameras[0]." };
        assert!(error.contains(key), "{to}: {error}");
    }
}
