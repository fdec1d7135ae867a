//! Robots with cameras on the command line: what is checked before anything moves.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use refrain_policies::camera::Channels;
use refrain_policies::preprocess::Image;
use refrain_runtime::bus::camera::ImagePublisher;
use refrain_runtime::bus::interface::FLOAT64_MULTI_ARRAY;
use refrain_runtime::bus::{self, Bus, BusSection, Traffic, cdr, image};
use refrain_runtime::clock::{self, MILLISECOND};
use refrain_runtime::config::vision::ImageKind;

use super::{FIXTURES, fails, path, refrain, succeeds};

/// What `check --listen` says of this robot while somebody publishes numbers and images of `height` x `width`.
fn listened(robot: &Path, bus: &Bus, [height, width]: [usize; 2]) -> Output {
    let mut numbers =
        bus.publisher("pusht/pusher", &FLOAT64_MULTI_ARRAY, Traffic::Control).expect("a publisher");
    let mut camera = ImagePublisher::open(bus, "pusht/image", ImageKind::Image, 65536).expect("a publisher");
    let mut check = Command::new(env!("CARGO_BIN_EXE_refrain"))
        .args(["check", path(robot), "--listen", "2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut payload = Vec::new();
    for frame in 0.. {
        if check.try_wait().expect("a child").is_some() {
            break;
        }
        let stamp = clock::read().wall;
        cdr::write_array(&mut payload, &[256.0, f64::from(frame)]);
        numbers.put(&payload, stamp, None).expect("a put");
        let pixels: Vec<u8> = (0..height * width * 3).map(|i| (i + frame as usize * 31) as u8).collect();
        let image = Image { height, width, step: 3 * width, channels: Channels::Rgb, pixels: &pixels };
        image::write_image(&mut payload, stamp, &image);
        camera.put(&payload, stamp).expect("a put");
        clock::sleep_until(clock::now() + 25 * MILLISECOND);
    }
    check.wait_with_output().expect("an end")
}

#[test]
fn check_knows_cameras_and_looks_at_what_they_send() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/pusht/camera.toml");
    let said = succeeds(&["check", example]);
    for words in
        ["in   pusht/image  sensor_msgs/msg/Image", "96 x 96 (height x width) -> camera image", "all fits"]
    {
        assert!(said.contains(words), "{words:?} is not in\n{said}");
    }
    let seeing = concat!(env!("CARGO_MANIFEST_DIR"), "/../policies/pusht-image");
    let endpoint = bus::free_endpoint().expect("a free port");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let robot = folder.path().join("robot.toml");
    let text = std::fs::read_to_string(example).expect("the example");
    let text = text
        .replace("../../policies/pusht-image", seeing)
        .replace("max_age_ms = 350.0", "max_age_ms = 5000.0")
        .replace("listen = [\"tcp/127.0.0.1:7447\"]", &format!("connect = [{endpoint:?}]"));
    assert!(text.contains(&endpoint) && text.contains("5000.0"), "the example has changed");
    std::fs::write(&robot, &text).expect("a writable folder");
    let bus = Bus::open(&BusSection { listen: vec![endpoint], ..BusSection::default() }).expect("a session");
    let output = listened(&robot, &bus, [96, 96]);
    let said = super::text(&output.stdout);
    assert!(output.status.success() && said.ends_with("all fits\n"), "{output:?}");
    let seen = said.lines().find(|line| line.starts_with("seen  pusht/image: ")).expect("what was seen");
    assert!(!seen.contains(" 0 images") && !seen.contains(" 0 messages through shared memory"), "{seen}");
    let output = listened(&robot, &bus, [120, 160]);
    let said = super::text(&output.stdout);
    let text =
        "images were 120 x 160 (height x width), the policy saw 96 x 96; have the camera send that size";
    assert!(!output.status.success() && said.contains(text), "{output:?}");
    bus.close().expect("a clean end");
}

#[test]
fn an_encoder_that_cannot_run_is_named_before_anything_moves() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let policy = folder.path().join("policy");
    std::fs::create_dir(&policy).expect("a writable folder");
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/pusht-image");
    for entry in std::fs::read_dir(package).expect("the package") {
        let file = entry.expect("an entry").path();
        if file.is_file() {
            std::fs::copy(&file, policy.join(file.file_name().expect("a name"))).expect("a writable folder");
        }
    }
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/pusht/camera.toml");
    let text = std::fs::read_to_string(example).expect("the example");
    let text = text.replace("../../policies/pusht-image", "policy").replace("ddpm100_late20", "full");
    let robot = folder.path().join("robot.toml");
    std::fs::write(&robot, text.replace("127.0.0.1:7447", "127.0.0.1:0")).expect("a writable folder");
    for (encoder, words) in [
        ("wrong_input_name", "encoder.onnx: expected one input called \"image\", got [\"pixels\"]"),
        ("dynamic", "encoder.onnx: image has the shape [\"batch\", 3, 8, 8]; expected [1, 3, 88, 88]"),
    ] {
        let wrong = Path::new(FIXTURES).join(format!("vision/{encoder}.onnx"));
        std::fs::copy(wrong, policy.join("encoder.onnx")).expect("a writable folder");
        let output = refrain(&["check", path(&robot)]);
        let said = super::text(&output.stdout);
        assert!(!output.status.success() && said.contains(&format!("wrong: {words}")), "{output:?}");
        fails(&["run", path(&robot)], &[words]);
    }
}

/// Every stage of every camera is timed, whatever comes: pixels, JPEG or PNG.
#[test]
fn bench_times_each_stage_of_a_lerobot_policy_that_sees() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (package, json) = (folder.path().join("policy"), folder.path().join("bench.json"));
    let source = format!("{FIXTURES}/lerobot/rotary_cameras");
    succeeds(&["import", &source, path(&package), "--encoder", &format!("{source}/encoders")]);
    let args = [
        "bench",
        path(&package),
        "--engine",
        "cpu",
        "--threads",
        "1",
        "--chunks",
        "2",
        "--json",
        path(&json),
    ];
    let printed = succeeds(&args);
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&json).expect("a file")).expect("JSON");
    let stages = json["stages"].as_array().expect("stages");
    let timed = |stage: &serde_json::Value| {
        let text = |key: &str| stage[key].as_str().expect("a name").to_owned();
        assert!(stage["p50_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{stage}");
        assert!(printed.contains(&text("stage")), "{printed}");
        (text("stage"), text("camera"))
    };
    let timed: Vec<(String, String)> = stages.iter().map(timed).collect();
    let each = ["read raw", "decode JPEG", "decode PNG", "preprocess", "encode"];
    let cameras =
        ["wrist", "top"].iter().flat_map(|camera| each.map(|stage| (stage.into(), (*camera).into())));
    let expected: Vec<(String, String)> = cameras.chain([("publish".into(), "command".into())]).collect();
    assert_eq!(timed, expected);
    assert!(json["rows"][0]["p50_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{json}");
}
