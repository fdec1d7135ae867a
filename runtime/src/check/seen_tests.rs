//! Cameras as people set them up: each mistake is found by name, before and while images come; a sound one has none.

use std::borrow::Cow;

use refrain_policies::camera::Channels;
use refrain_policies::config::PolicyConfig;
use refrain_policies::preprocess::Image;

use super::super::{explain, findings};
use super::*;
use crate::bus::attachment::Attachment;
use crate::bus::image::{jpeg, png, write_compressed_image, write_image};
use crate::clock::{MILLISECOND, Wall};
use crate::config::{Robot, RobotConfig};

const EXAMPLE: &str = include_str!("../../../examples/pusht/camera.toml");
const POLICY: &str = include_str!("../../../policies/pusht-image/policy.toml");

fn policy() -> PolicyConfig {
    toml::from_str(POLICY).unwrap()
}

fn resolved(text: &str) -> (RobotConfig, Robot) {
    let config = RobotConfig::parse(text).unwrap();
    let robot = config.resolve(&policy()).unwrap();
    (config, robot)
}

/// One camera's topic, heard at ten images a second on a clock of our own.
struct Ear {
    seen: Seen,
    demand: Demand,
    millis: i64,
}

impl Ear {
    fn new(text: &str) -> Self {
        let (_, robot) = resolved(text);
        let sight = robot.intake.sight.unwrap();
        let lens = &sight.lenses[0];
        let demand = Demand {
            rate_hz: policy().rate_hz,
            max_age: sight.max_age,
            clock_tolerance: sight.clock_tolerance,
            arrival_is_stamp: lens.arrival_is_stamp,
        };
        Self { seen: Seen::new(&robot.cameras[0], lens), demand, millis: 0 }
    }

    fn example() -> Self {
        Self::new(EXAMPLE)
    }

    fn compressed() -> Self {
        Self::new(&EXAMPLE.replace("\"sensor_msgs/Image\"", "\"sensor_msgs/CompressedImage\""))
    }

    fn now(&self) -> Reading {
        Reading::simulated((1_000_000 + self.millis) * MILLISECOND)
    }

    /// The next message; `write` gets the stamp of an image made `age` milliseconds ago.
    fn hear(&mut self, age: i64, write: impl FnOnce(&mut Vec<u8>, Wall)) {
        let mut payload = Vec::new();
        write(&mut payload, self.now().wall - age * MILLISECOND);
        let message = Message { payload: Cow::Owned(payload), attachment: None::<Attachment>, shared: false };
        self.seen.take(&message, self.now());
        self.millis += 100;
    }

    fn hear_image(&mut self, image: &Image<'_>) {
        self.hear(1, |payload, stamp| write_image(payload, stamp, image));
    }

    fn said(&self) -> Vec<String> {
        self.seen.findings(&self.demand, self.now().time).iter().map(ToString::to_string).collect()
    }
}

fn picture(height: usize, width: usize, channels: Channels, frame: usize) -> Vec<u8> {
    (0..height * width * channels.count()).map(|i| (30 + (i * 7 + frame * 31) % 200) as u8).collect()
}

fn image(height: usize, width: usize, channels: Channels, pixels: &[u8]) -> Image<'_> {
    Image { height, width, step: width * channels.count(), channels, pixels }
}

fn rgb(pixels: &[u8]) -> Image<'_> {
    image(96, 96, Channels::Rgb, pixels)
}

#[test]
fn a_camera_is_explained() {
    let (config, robot) = resolved(EXAMPLE);
    let lines = explain(&robot, &policy());
    let at = lines.iter().position(|line| line.starts_with("in   pusht/image")).unwrap();
    assert_eq!(
        lines[at..at + 5],
        [
            "in   pusht/image  sensor_msgs/msg/Image",
            "       rgb8 or bgr8, 96 x 96 (height x width) -> camera image",
            "       / 255, middle 88 x 88 cut out, - [0.5, 0.5, 0.5], / [0.5, 0.5, 0.5], rgb -> 64 features by encoder.onnx",
            "       at 10 Hz or more, not older than 350 ms, stamped by header or attachment; through shared memory from a \
             zenoh peer on this machine",
            "       never refused as black, never as frozen, leads: an image is looked at once everything else is within \
             20 ms, or left and counted",
        ]
    );
    assert_eq!(findings(&config, &robot, &policy(), None), []);

    let mut policy = policy();
    policy.cameras.push(policy.cameras[0].clone());
    (policy.cameras[1].name, policy.cameras[1].channels) = ("wrist".into(), Channels::Mono);
    (policy.cameras[1].resize, policy.cameras[1].crop) = (Some([48, 64]), None);
    (policy.cameras[1].mean, policy.cameras[1].std) = (Vec::new(), Vec::new());
    let text = EXAMPLE.replace("\"wait\"", "\"nearest\"").replace(
        "[action]\n",
        "[[vision.cameras]]\nname = \"wrist\"\ntopic = \"wrist\"\ntype = \"sensor_msgs/CompressedImage\"\n\
         stamp = \"arrival\"\nblack = 8\nfrozen_after = 30\n[action]\n",
    );
    let config = RobotConfig::parse(&text).unwrap();
    let robot = config.resolve(&policy).unwrap();
    let said = explain(&robot, &policy).join("\n");
    for line in [
        "in   wrist  sensor_msgs/msg/CompressedImage",
        "       grey JPEG or PNG of 8 bits, 96 x 96 (height x width) -> camera wrist",
        "       / 255, resized to 48 x 64 (averaged), mono -> 64 features by encoder.onnx",
        "stamped by header, attachment or arrival; ",
        "leads: an image goes with what is nearest, and is counted if that is not within 20 ms",
        "       refused as black without a byte above 8, as frozen from 30 equal ones in a row on, goes with the first \
         camera's images within 20 ms",
    ] {
        assert!(said.contains(line), "{line:?} is not in\n{said}");
    }
}

#[test]
fn what_cannot_work_is_found_before_any_image_comes() {
    let (config, robot) = resolved(
        &EXAMPLE
            .replace("# black = 8 ", "black = 255\n#")
            .replace("tolerance_ms = 20.0", "tolerance_ms = 100.0"),
    );
    let found: Vec<String> =
        findings(&config, &robot, &policy(), None).iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "wrong: vision.cameras \"image\".black: no byte is above 255; every image would be refused",
            "look:  vision.tolerance_ms: 100 ms is no less than the 100 ms between two observations; images of different \
             ones will go together",
        ]
    );
    let wrong = EXAMPLE.replace("\"sensor_msgs/Image\"", "\"sensor_msgs/PointCloud2\"");
    let error = RobotConfig::parse(&wrong).unwrap_err().to_string();
    let part = "unknown variant `sensor_msgs/PointCloud2`, expected `sensor_msgs/Image` or `sensor_msgs/CompressedImage`";
    assert!(error.contains(part), "{error}");
}

#[test]
fn a_sound_camera_has_no_findings() {
    let mut ear = Ear::example();
    for frame in 0..30 {
        let pixels = picture(96, 96, Channels::Rgb, frame);
        let channels = if frame % 2 == 0 { Channels::Rgb } else { Channels::Bgr };
        ear.hear_image(&image(96, 96, channels, &pixels));
    }
    assert_eq!(ear.said(), [""; 0]);
    let summary = ear.seen.summary();
    assert_eq!(
        summary,
        "30 images, 0 messages through shared memory, 10.0 Hz, longest gap 100 ms, oldest 1 ms"
    );

    let mut ear = Ear::compressed();
    for frame in 0..30 {
        let pixels = picture(96, 96, Channels::Rgb, frame);
        let (format, file) = match frame % 2 {
            0 => ("png", png(&rgb(&pixels)).unwrap()),
            _ => ("jpeg", jpeg(&rgb(&pixels)).unwrap()),
        };
        ear.hear(1, |payload, stamp| write_compressed_image(payload, stamp, format, &file));
    }
    assert_eq!(ear.said(), [""; 0]);
}

#[test]
fn each_wrong_image_is_named_with_what_to_do() {
    let pixels = picture(120, 160, Channels::Rgb, 1);
    let good = rgb(&pixels[..96 * 96 * 3]);
    let named = "vision.cameras \"image\"";
    for (image, text) in [
        (
            image(120, 160, Channels::Rgb, &pixels),
            "images were 120 x 160 (height x width), the policy saw 96 x 96; have the camera send that size",
        ),
        (
            image(96, 96, Channels::Mono, &pixels[..96 * 96]),
            "images were mono8, the policy takes rgb8 or bgr8",
        ),
        (Image { step: 200, ..good }, "images had rows of 200 bytes, 96 pixels need 288"),
        (Image { pixels: &good.pixels[..2764], ..good }, "images ended before their last row"),
    ] {
        let mut ear = Ear::example();
        (0..3).for_each(|_| ear.hear_image(&image));
        assert_eq!(ear.said(), [format!("wrong: {named}: 3 {text}")]);
    }

    let mut ear = Ear::example();
    assert_eq!(
        ear.said(),
        [format!(
            "wrong: {named}: nothing came; is it published, and are bus.connect, the topic and its type right?"
        )]
    );
    ear.hear(1, |payload, _| payload.extend_from_slice(&[0, 1, 0, 0, 7]));
    assert_eq!(
        ear.said(),
        [format!("wrong: {named}: 1 messages could not be read; are they sensor_msgs/msg/Image?")]
    );
    // Depth, as a driver calls it.
    let mut ear = Ear::example();
    ear.hear(1, |payload, stamp| {
        write_image(payload, stamp, &good);
        let place = payload.windows(4).position(|bytes| bytes == b"rgb8").unwrap();
        payload[place..place + 4].copy_from_slice(b"16UC");
    });
    assert_eq!(ear.said(), [format!("wrong: {named}: 1 images were 16UC, the policy takes rgb8 or bgr8")]);
}

#[test]
fn files_and_pixels_that_are_mixed_up_are_told_apart() {
    let pixels = picture(96, 96, Channels::Rgb, 1);
    let file = jpeg(&rgb(&pixels)).unwrap();
    let mut ear = Ear::example();
    ear.hear(1, |payload, stamp| write_compressed_image(payload, stamp, "jpeg", &file));
    let named = "vision.cameras \"image\"";
    assert_eq!(
        ear.said(),
        [format!("wrong: {named}: 1 messages were sensor_msgs/msg/CompressedImage; set type to it")]
    );
    let mut ear = Ear::compressed();
    ear.hear_image(&rgb(&pixels));
    assert_eq!(
        ear.said(),
        [format!("wrong: {named}: 1 messages were sensor_msgs/msg/Image; set type to it")]
    );

    let large = picture(120, 160, Channels::Rgb, 1);
    let grey = picture(96, 96, Channels::Mono, 1);
    let takes = "the policy takes colour JPEG or PNG of 8 bits";
    for (file, text) in [
        (
            jpeg(&image(120, 160, Channels::Rgb, &large)).unwrap(),
            "images were 120 x 160 (height x width), the policy saw 96 x 96; have the camera send that size"
                .to_owned(),
        ),
        (
            png(&image(120, 160, Channels::Rgb, &large)).unwrap(),
            "images were 120 x 160 (height x width), the policy saw 96 x 96; have the camera send that size"
                .to_owned(),
        ),
        (jpeg(&image(96, 96, Channels::Mono, &grey)).unwrap(), format!("images were a grey JPEG, {takes}")),
        (
            png(&image(96, 96, Channels::Mono, &grey)).unwrap(),
            format!("images were a PNG (Grayscale), {takes}"),
        ),
        (b"GIF89a".to_vec(), format!("images were neither JPEG nor PNG but \"any\", {takes}")),
        (
            file[..file.len() / 2].to_vec(),
            "messages could not be read; are they sensor_msgs/msg/CompressedImage?".into(),
        ),
    ] {
        let mut ear = Ear::compressed();
        ear.hear(1, |payload, stamp| write_compressed_image(payload, stamp, "any", &file));
        assert_eq!(ear.said(), [format!("wrong: {named}: 1 {text}")]);
    }
}

#[test]
fn black_and_frozen_cameras_are_found_whether_or_not_they_are_refused() {
    let named = "vision.cameras \"image\"";
    let (black, pixels) = ([8; 96 * 96 * 3], picture(96, 96, Channels::Rgb, 1));
    let mut ear = Ear::example();
    (0..5).for_each(|frame| ear.hear_image(&rgb(&vec![frame; black.len()])));
    let dark = "images were black, no byte above 8";
    assert_eq!(
        ear.said(),
        [format!("wrong: {named}: 5 of 5 {dark}; is the lens covered, or the light off?")]
    );
    ear.hear_image(&rgb(&pixels));
    assert_eq!(
        ear.said(),
        [format!("look:  {named}: 5 of 6 {dark}; is the lens covered, or the light off?")]
    );
    let mut ear = Ear::new(&EXAMPLE.replace("# black = 8 ", "black = 9\n#"));
    ear.hear_image(&rgb(&black));
    assert_eq!(ear.said(), [format!("wrong: {named}: 1 images were black, no byte above 9")]);

    let mut ear = Ear::example();
    (0..5).for_each(|_| ear.hear_image(&rgb(&pixels)));
    assert_eq!(
        ear.said(),
        [format!(
            "look:  {named}: all 5 images were the same, byte by byte; frozen? A real camera has noise, a simulator at rest \
             has not"
        )]
    );
    ear.hear_image(&rgb(&picture(96, 96, Channels::Rgb, 2)));
    assert_eq!(ear.said(), [""; 0]);
    let mut ear = Ear::new(&EXAMPLE.replace("# frozen_after = 30 ", "frozen_after = 3\n#"));
    for frame in [1, 1, 2, 2, 2, 2] {
        ear.hear_image(&rgb(&picture(96, 96, Channels::Rgb, frame)));
    }
    assert_eq!(
        ear.said(),
        [format!(
            "wrong: {named}: 2 images were the same as the ones before, 3 or more in a row; is the camera frozen?"
        )]
    );
}

#[test]
fn times_that_do_not_fit_are_found() {
    let named = "vision.cameras \"image\"";
    let sent = |ages: &[i64], gap: i64| {
        let mut ear = Ear::example();
        for (frame, age) in ages.iter().enumerate() {
            let pixels = picture(96, 96, Channels::Rgb, frame);
            ear.hear(*age, |payload, stamp| write_image(payload, stamp, &rgb(&pixels)));
            ear.millis += gap;
        }
        ear
    };
    assert_eq!(sent(&[1; 20], 0).said(), [""; 0]);
    assert_eq!(
        sent(&[1; 20], 100).said(),
        [format!("wrong: {named}: comes at 5.0 Hz, the policy looks at 10 Hz; publish it faster")]
    );
    assert_eq!(
        sent(&[400; 20], 0).said(),
        [format!("wrong: {named}: an age of 400 ms, and observation.max_age_ms is 350")]
    );
    assert_eq!(
        sent(&[-80; 20], 0).said(),
        [format!(
            "wrong: {named}: made 80 ms in the future, and observation.clock_tolerance_ms is 5; set both clocks by the same \
             server"
        )]
    );
    assert_eq!(
        sent(&[1, 1, 101, 1, 150, 1], 0).said(),
        [format!("wrong: {named}: 2 of 6 stamps are not later than the one before; do two publish on it?")]
    );
    let mut stopped = sent(&[1; 20], 0);
    stopped.millis += 900;
    assert_eq!(
        stopped.said(),
        [format!("wrong: {named}: a gap of 1000 ms, and observation.max_age_ms is 350")]
    );
    let mut ear = Ear::example();
    let pixels = picture(96, 96, Channels::Rgb, 1);
    ear.hear(1, |payload, _| write_image(payload, Wall::from_nanos(0), &rgb(&pixels)));
    assert_eq!(
        ear.said(),
        [format!("wrong: {named}: 1 messages say no time; set stamp = \"arrival\" or have them stamped")]
    );
}

#[test]
fn images_without_a_match_are_found_with_their_distance() {
    let (_, robot) = resolved(EXAMPLE);
    let mut sight = robot.intake.sight.unwrap();
    let stamped = |period: i64, shift: i64| {
        let mut arrivals = Arrivals::default();
        for message in 0..2000 / period {
            let now = Reading::simulated((message * period + shift) * MILLISECOND);
            arrivals.note(Some(now.wall), now);
        }
        arrivals
    };
    let said = |images: &Arrivals, messages: &Arrivals, sight: &SightConfig| {
        out_of_sync(("\"front\"", images), ("\"wrist\"", messages), sight).map(|finding| finding.to_string())
    };
    let front = stamped(100, 0);
    assert_eq!(said(&front, &stamped(100, 20), &sight), None, "as far apart as they may be");
    assert_eq!(said(&front, &Arrivals::default(), &sight), None, "that nothing came is said elsewhere");
    let text = "vision.tolerance_ms: 19 of 19 images of \"front\" had nothing of \"wrist\" within 20 ms, but 40 ms away at the \
                median; trigger them together, or allow more";
    assert_eq!(said(&front, &stamped(100, 40), &sight).unwrap(), format!("wrong: {text}"));
    // Three images in four are alone, and there are still as many as the policy looks at.
    assert_eq!(said(&stamped(25, 0), &stamped(100, 0), &SightConfig { tolerance: 0, ..sight.clone() }), None);
    sight.out_of_sync = OutOfSync::Nearest;
    assert_eq!(said(&front, &stamped(100, 40), &sight).unwrap(), format!("look:  {text}"));
}
