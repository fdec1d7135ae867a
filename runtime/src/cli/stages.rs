//! What happens to an image before the denoiser and to a command after it, timed for `refrain bench`.

use std::sync::mpsc;

use hdrhistogram::Histogram;
use refrain_policies::encoder::Encoder;
use refrain_policies::package::Package;
use refrain_policies::preprocess::{Image, Preprocess};
use serde::Serialize;

use super::{Outcome, say};
use crate::bus::image::{self, Decoder};
use crate::bus::interface::FLOAT64_MULTI_ARRAY;
use crate::bus::names::Qos;
use crate::bus::{self, Bus, BusSection, Traffic, cdr};
use crate::clock::{self, Duration, MILLISECOND, Wall};

/// Images before timing starts.
const WARM_UP: u32 = 3;

/// How long a command may be on its way.
const PATIENCE: Duration = Duration::from_secs(5);

/// One stage of one camera, on one thread.
#[derive(Serialize)]
pub(super) struct Stage {
    stage: &'static str,
    camera: String,
    p50_ms: f64,
    p99_ms: f64,
    min_ms: f64,
}

/// Times what happens to an image of each camera on `images` images: reading the message, preprocessing, encoding.
pub(super) fn time(package: &Package, images: u32) -> Result<Vec<Stage>, Box<dyn std::error::Error>> {
    let mut stages = Vec::new();
    for camera in &package.config.cameras {
        let shape = camera.input_shape();
        let onnx = package.encoders.get(&camera.encoder).ok_or("the package lacks an encoder")?;
        let mut encoder = Encoder::load(&camera.encoder, onnx, shape, camera.features)?;
        let mut preprocess = Preprocess::new(camera);
        let [height, width] = camera.size;
        let step = width * camera.channels.count();
        // Smooth with some texture, as photographs are; a compressor finds neither nothing nor everything to do.
        let shade = |i: usize| 60 + (i / step) % 90 + (i % step) / 7 % 60 + (i * i) % 11;
        let pixels: Vec<u8> = (0..height * step).map(|i| shade(i) as u8).collect();
        let image = Image { height, width, step, channels: camera.channels, pixels: &pixels };
        let mut stage = |stage, what: &mut dyn FnMut() -> Outcome| -> Outcome {
            stages.push(Stage::time(stage, &camera.name, images, what)?);
            Ok(())
        };
        let (mut raw, stamp) = (Vec::new(), Wall::from_nanos(1));
        image::write_image(&mut raw, stamp, &image);
        let mut decoder = Decoder::new(camera.size, camera.channels);
        // What was read is kept, as the daemon does.
        let mut kept = Vec::new();
        stage("read raw", &mut || {
            let received = image::read_image(&raw)?;
            kept.clear();
            kept.extend_from_slice(decoder.image(received.content)?.pixels);
            Ok(())
        })?;
        for (name, format, file) in
            [("decode JPEG", "jpeg", image::jpeg(&image)?), ("decode PNG", "png", image::png(&image)?)]
        {
            let mut message = Vec::new();
            image::write_compressed_image(&mut message, stamp, format, &file);
            stage(name, &mut || {
                let received = image::read_compressed_image(&message)?;
                kept.clear();
                kept.extend_from_slice(decoder.image(received.content)?.pixels);
                Ok(())
            })?;
        }
        let mut input = vec![0.0; shape.iter().product()];
        let mut features = vec![0.0; camera.features];
        stage("preprocess", &mut || Ok(preprocess.run(&image, &mut input)?))?;
        stage("encode", &mut || Ok(encoder.run(&input, &mut features)?))?;
    }
    if !stages.is_empty() {
        stages.push(publish(images)?);
    }
    Ok(stages)
}

/// Times a command from one session to another on this machine.
fn publish(commands: u32) -> Result<Stage, Box<dyn std::error::Error>> {
    let endpoint = bus::free_endpoint()?;
    let robot = Bus::open(&BusSection { listen: vec![endpoint.clone()], ..BusSection::default() })?;
    let client = Bus::open(&BusSection { connect: vec![endpoint], ..BusSection::default() })?;
    let (came, arrivals) = mpsc::channel();
    let subscription = client.subscribe("bench/command", &FLOAT64_MULTI_ARRAY, Qos::NEWEST, move |_| {
        // Nobody waits any more: the benchmark is over.
        let _ = came.send(());
    })?;
    let mut publisher = robot.publisher("bench/command", &FLOAT64_MULTI_ARRAY, Traffic::Control)?;
    let deadline = clock::now() + PATIENCE.as_nanos() as i64;
    while !publisher.is_matched() && clock::now() < deadline {
        clock::sleep_until(clock::now() + MILLISECOND);
    }
    let mut payload = Vec::new();
    let stage = Stage::time("publish", "command", commands, &mut || {
        cdr::write_array(&mut payload, &[0.0; 7]);
        publisher.put(&payload, clock::read().wall, None)?;
        Ok(arrivals.recv_timeout(PATIENCE)?)
    });
    drop(subscription);
    client.close()?;
    robot.close()?;
    stage
}

impl Stage {
    fn time(
        stage: &'static str,
        camera: &str,
        rounds: u32,
        what: &mut dyn FnMut() -> Outcome,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let mut times = Histogram::<u64>::new(3)?;
        for round in 0..WARM_UP + rounds.max(1) {
            let start = clock::now();
            what()?;
            if round >= WARM_UP {
                times.record(u64::try_from(clock::now() - start)?)?;
            }
        }
        let ms = |nanos: u64| nanos as f64 * 1e-6;
        Ok(Self {
            stage,
            camera: camera.to_owned(),
            p50_ms: ms(times.value_at_quantile(0.5)),
            p99_ms: ms(times.value_at_quantile(0.99)),
            min_ms: ms(times.min()),
        })
    }
}

/// Prints them, if there are any.
pub(super) fn print(stages: &[Stage]) {
    for stage in stages {
        say!(
            "{:<12} {:<16} {:>9.3} {:>9.3} {:>9.3}   (p50, p99, min ms; one thread)",
            stage.stage,
            stage.camera,
            stage.p50_ms,
            stage.p99_ms,
            stage.min_ms
        );
    }
}
