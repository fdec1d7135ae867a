//! What happens to an image before the denoiser, timed for `refrain bench`.

use hdrhistogram::Histogram;
use refrain_policies::encoder::Encoder;
use refrain_policies::package::Package;
use refrain_policies::preprocess::{Image, Preprocess};
use serde::Serialize;

use super::say;
use crate::clock;

/// Images before timing starts.
const WARM_UP: u32 = 3;

/// One stage of one camera, on one thread.
#[derive(Serialize)]
pub(super) struct Stage {
    stage: &'static str,
    camera: String,
    p50_ms: f64,
    p99_ms: f64,
    min_ms: f64,
}

/// Times each camera's preprocessing and encoder on `images` images.
pub(super) fn time(package: &Package, images: u32) -> Result<Vec<Stage>, Box<dyn std::error::Error>> {
    let mut stages = Vec::new();
    for camera in &package.config.cameras {
        let shape = camera.input_shape();
        let onnx = package.encoders.get(&camera.encoder).ok_or("the package lacks an encoder")?;
        let mut encoder = Encoder::load(&camera.encoder, onnx, shape, camera.features)?;
        let mut preprocess = Preprocess::new(camera);
        let [height, width] = camera.size;
        let step = width * camera.channels.count();
        let pixels: Vec<u8> = (0..height * step).map(|i| (i * 7 % 251) as u8).collect();
        let image = Image { height, width, step, channels: camera.channels, pixels: &pixels };
        let mut input = vec![0.0; shape.iter().product()];
        let mut features = vec![0.0; camera.features];
        let mut times = [Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?];
        for round in 0..WARM_UP + images.max(1) {
            let start = clock::now();
            preprocess.run(&image, &mut input)?;
            let ready = clock::now();
            encoder.run(&input, &mut features)?;
            if round >= WARM_UP {
                times[0].record(u64::try_from(ready - start)?)?;
                times[1].record(u64::try_from(clock::now() - ready)?)?;
            }
        }
        let ms = |nanos: u64| nanos as f64 * 1e-6;
        for (stage, times) in ["preprocess", "encode"].into_iter().zip(&times) {
            stages.push(Stage {
                stage,
                camera: camera.name.clone(),
                p50_ms: ms(times.value_at_quantile(0.5)),
                p99_ms: ms(times.value_at_quantile(0.99)),
                min_ms: ms(times.min()),
            });
        }
    }
    Ok(stages)
}

/// Prints them, if there are any.
pub(super) fn print(stages: &[Stage]) {
    for stage in stages {
        say!(
            "{:<10} {:<18} {:>9.2} {:>9.2} {:>9.2}   (p50, p99, min ms; one image, one thread)",
            stage.stage,
            stage.camera,
            stage.p50_ms,
            stage.p99_ms,
            stage.min_ms
        );
    }
}
