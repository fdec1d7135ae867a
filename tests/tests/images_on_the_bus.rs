//! A policy with two cameras and its robot over zenoh: images come through shared memory, reach the denoiser bit by bit,
//! and whatever is wrong with them is named, counted and survived.

use refrain_policies::camera::Channels;
use refrain_policies::preprocess::Image;
use refrain_policies::vision::{Frame, Vision};
use refrain_runtime::bus::image as file;
use refrain_runtime::clock::{self, MILLISECOND, SECOND};
use refrain_runtime::config::RobotConfig;
use refrain_runtime::control::{Mode, Outcome};
use refrain_runtime::observation::Refusal;
use refrain_runtime::record::{self, Log, Message, Place};
use refrain_runtime::replay;
use refrain_tests::cameras::{FRONT, Sighted, WRIST, image_of, package, picture, policy};

fn running(robot: &Sighted) -> bool {
    robot.daemon.signals().mode() == Mode::Running
}

fn quiet(_: &mut RobotConfig) {}

#[test]
fn images_come_through_shared_memory() {
    let mut robot = Sighted::start(quiet, None);
    robot.observe_until("running", running);
    robot.observe_until("chunks", |robot| robot.daemon.report().counts.chunks >= 3);
    let sent = [robot.front.shared(), robot.wrist.shared()];
    assert_eq!(robot.faults(), 0, "{:#?}", robot.daemon.report());
    let report = robot.end();
    println!("{:?}", report.cameras);
    for (camera, sent) in report.cameras.iter().zip(sent) {
        assert!(camera.accepted >= 3 && sent >= 3, "{camera:?}");
        assert_eq!(camera.shared, camera.accepted, "each image lay in memory of its sender");
    }
    assert_eq!([&report.cameras[0].name[..], &report.cameras[1].name[..]], ["front", "wrist"]);
}

#[test]
fn what_was_seen_is_what_was_sent_and_a_recording_is_computed_again() {
    let file = std::env::temp_dir().join(format!("refrain-images-{}.mcap", std::process::id()));
    let log = Log::begin(Place::File(file.clone()), Default::default(), clock::read()).unwrap();
    let mut robot = Sighted::start(quiet, Some(log));
    let [front, wrist] = [(FRONT, Channels::Rgb), (WRIST, Channels::Mono)];
    robot.observe_until("chunks", |robot| robot.daemon.report().counts.chunks >= 8);
    let configured = robot.robot.clone();
    robot.end();
    let (_, messages) = record::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();

    let package = package();
    let mut vision = Vision::new(&package).unwrap().unwrap();
    let size = package.config.condition_size();
    let mut features = Vec::new();
    for frame in 1..=400 {
        let pixels = [picture(front.0, front.1, frame), picture(wrist.0, wrist.1, frame)];
        let seen = |stamp| {
            [(front, &pixels[0]), (wrist, &pixels[1])]
                .map(|((size, channels), pixels)| Frame { stamp, image: image_of(size, channels, pixels) })
        };
        let mut condition = vec![0.0; 2 * size];
        let frames: Vec<Frame<'_>> = [seen(1), seen(2)].into_iter().flatten().collect();
        vision.forget();
        vision.condition(&[0.0; 4], &frames, &mut condition).unwrap();
        features.push(condition[..10].to_vec());
    }
    let mut rows = 0;
    for message in &messages {
        let Message::Inference(inference) = message else { continue };
        assert_eq!(inference.condition.len(), 2 * size);
        for row in inference.condition.chunks(size) {
            assert!(
                features.iter().any(|known| known[..] == row[..10]),
                "features of no picture that was sent"
            );
            rows += 1;
        }
    }
    assert!(rows >= 6, "{rows} rows");

    let out = replay::run(&configured, policy(false), &messages, None).unwrap();
    assert_eq!((out.differences, out.missing), (0, 0), "{out:#?}");
    assert!(out.ticks > 20 && out.inferences >= 3, "{out:#?}");
    let mut changed = messages.clone();
    let inference =
        changed.iter_mut().find_map(|m| if let Message::Inference(i) = m { Some(i) } else { None });
    inference.unwrap().condition[3] += 0.5;
    let out = replay::run(&configured, policy(false), &changed, None).unwrap();
    assert!(out.differences > 0, "another feature, another chunk");
}

#[test]
fn bad_images_are_refused_by_name_while_good_ones_go_on() {
    let mut robot = Sighted::start(quiet, None);
    robot.observe_until("running", running);
    let pixels = picture(FRONT, Channels::Rgb, 0);
    let long = vec![90; 4 * FRONT[0] * FRONT[1]];
    let good = image_of(FRONT, Channels::Rgb, &pixels);
    let mut expected = [0_u64; Refusal::ALL.len()];
    let mut bad = |robot: &mut Sighted, refusal: Refusal, publish: &dyn Fn(&mut Sighted)| {
        for _ in 0..2 {
            robot.observe(true, true, 20 * MILLISECOND);
            publish(robot);
            expected[Refusal::ALL.iter().position(|r| *r == refusal).unwrap()] += 1;
        }
    };
    let now = || clock::read().wall;
    for (refusal, image) in [
        (Refusal::Truncated, Image { pixels: &pixels[..pixels.len() - 1], ..good }),
        (Refusal::WrongSize, Image { height: FRONT[0] + 1, pixels: &long, ..good }),
        (Refusal::WrongSize, Image { height: 4096, width: 4096, step: 3 * 4096, pixels: &pixels, ..good }),
        (Refusal::WrongStep, Image { step: 3 * FRONT[1] - 1, ..good }),
        (Refusal::WrongEncoding, Image { channels: Channels::Mono, step: FRONT[1], ..good }),
        (Refusal::Black, Image { pixels: &vec![8; pixels.len()], ..good }),
    ] {
        bad(&mut robot, refusal, &|robot| robot.publish_front(&image, now()));
    }
    bad(&mut robot, Refusal::TooOld, &|robot| robot.publish_front(&good, now() - 2 * SECOND));
    bad(&mut robot, Refusal::FromTheFuture, &|robot| robot.publish_front(&good, now() + SECOND));
    bad(&mut robot, Refusal::OutOfOrder, &|robot| robot.publish_front(&good, now() - 200 * MILLISECOND));
    bad(&mut robot, Refusal::Undecodable, &|robot| robot.front.put(&[0, 1, 0, 0, 7], now()).unwrap());
    // Depth, an encoding that nobody takes.
    let mut depth = Vec::new();
    file::write_image(&mut depth, now(), &good);
    let place = depth.windows(4).position(|bytes| bytes == b"rgb8").unwrap();
    depth[place..place + 4].copy_from_slice(b"16UC");
    bad(&mut robot, Refusal::WrongEncoding, &|robot| robot.front.put(&depth, now()).unwrap());
    // A file that is no image, and half of one.
    let mut file = Vec::new();
    file::write_compressed_image(&mut file, now(), "png", b"GIF89a and so on");
    bad(&mut robot, Refusal::WrongEncoding, &|robot| robot.wrist.put(&file, now()).unwrap());
    let grey = picture(WRIST, Channels::Mono, 0);
    let png = file::png(&image_of(WRIST, Channels::Mono, &grey)).unwrap();
    let mut half = Vec::new();
    file::write_compressed_image(&mut half, now(), "png", &png[..png.len() / 2]);
    bad(&mut robot, Refusal::Undecodable, &|robot| robot.wrist.put(&half, now()).unwrap());
    // Files of another size, of another number of channels, and half a JPEG.
    let other = picture(FRONT, Channels::Mono, 0);
    let colour = picture(WRIST, Channels::Rgb, 0);
    let jpeg = file::jpeg(&image_of(WRIST, Channels::Mono, &grey)).unwrap();
    for (refusal, format, content) in [
        (Refusal::WrongSize, "png", file::png(&image_of(FRONT, Channels::Mono, &other)).unwrap()),
        (Refusal::WrongSize, "jpeg", file::jpeg(&image_of(FRONT, Channels::Mono, &other)).unwrap()),
        (Refusal::WrongEncoding, "jpeg", file::jpeg(&image_of(WRIST, Channels::Rgb, &colour)).unwrap()),
        (Refusal::Undecodable, "jpeg", jpeg[..jpeg.len() / 2].to_vec()),
    ] {
        let mut message = Vec::new();
        file::write_compressed_image(&mut message, now(), format, &content);
        bad(&mut robot, refusal, &|robot| robot.wrist.put(&message, now()).unwrap());
    }

    robot.observe_until("all were seen", |robot| robot.faults() >= expected.iter().sum());
    assert!(running(&robot), "good images kept it running");
    let report = robot.end();
    let faults = Refusal::ALL.into_iter().zip(expected).filter(|(refusal, _)| *refusal != Refusal::OutOfSync);
    for (refusal, expected) in faults {
        println!("{refusal}: {} refused", report.refused_for(refusal));
        assert_eq!(report.refused_for(refusal), expected, "{refusal}");
    }
    let [front, wrist] = &report.cameras[..] else { panic!("two cameras") };
    assert_eq!(front.refused + wrist.refused, expected.iter().sum::<u64>());
    assert_eq!(wrist.refused, 12);
    assert_eq!(report.inference_failed, 0);
    assert_eq!(report.counts.of(Outcome::StaleObservation), 0);
}

#[test]
fn a_camera_that_goes_missing_or_freezes_holds_the_robot_until_it_is_back() {
    let mut robot = Sighted::start(quiet, None);
    robot.observe_until("running", running);
    robot.publish_until("holding without the wrist", true, false, |robot| {
        robot.daemon.signals().mode() == Mode::Holding && robot.refused(Refusal::OutOfSync) >= 3
    });
    robot.observe_until("running again", running);
    let out_of_sync = robot.refused(Refusal::OutOfSync);
    robot.publish_until("holding without the front", false, true, |robot| {
        robot.daemon.signals().mode() == Mode::Holding
    });
    assert!(robot.refused(Refusal::OutOfSync) <= out_of_sync + 1, "nothing waits for a match");
    robot.observe_until("running again", running);

    let (pixels, black) = (picture(FRONT, Channels::Rgb, 7), vec![8; FRONT[0] * FRONT[1] * 3]);
    let until = |robot: &mut Sighted, mode: Mode, publish: &dyn Fn(&mut Sighted)| {
        let deadline = clock::now() + 20 * SECOND;
        while robot.daemon.signals().mode() != mode {
            publish(robot);
            clock::sleep_until(clock::now() + 25 * MILLISECOND);
            assert!(clock::now() < deadline, "never {mode:?}: {:#?}", robot.daemon.report());
        }
    };
    for (refusal, pixels) in [(Refusal::Frozen, &pixels), (Refusal::Black, &black)] {
        let image = image_of(FRONT, Channels::Rgb, pixels);
        until(&mut robot, Mode::Holding, &|robot| {
            robot.observe(false, true, 25 * MILLISECOND);
            robot.publish_front(&image, clock::read().wall);
        });
        assert!(robot.refused(refusal) >= 3, "{refusal}");
        robot.observe_until("running again", running);
    }

    robot.publish_until("holding without the wrist", true, false, |robot| {
        robot.daemon.signals().mode() == Mode::Holding
    });
    let grey = picture(WRIST, Channels::Mono, 7);
    let jpeg = file::jpeg(&image_of(WRIST, Channels::Mono, &grey)).unwrap();
    until(&mut robot, Mode::Running, &|robot| {
        let mut message = Vec::new();
        let now = clock::read().wall;
        file::write_compressed_image(&mut message, now, "jpeg", &jpeg);
        robot.wrist.put(&message, now).unwrap();
        robot.observe(true, false, 25 * MILLISECOND);
    });
    let report = robot.end();
    assert_eq!(report.inference_failed, 0);
    assert!(report.counts.of(Outcome::StaleObservation) > 0, "{report:#?}");
}
