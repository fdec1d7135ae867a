//! What `[vision]` means, in words, and what in it cannot work: before any image came.

use refrain_policies::camera::Camera;
use refrain_policies::config::PolicyConfig;

use super::Finding;
use super::seen::encodings;
use crate::clock::Nanos;
use crate::config::{Robot, RobotConfig, StampChoice};
use crate::sight::{Lens, OutOfSync, SightConfig};

/// Each camera: its messages, what is done to its images, and when they are taken.
pub(super) fn explain(robot: &Robot, policy: &PolicyConfig) -> Vec<String> {
    let Some(sight) = &robot.intake.sight else { return Vec::new() };
    let mut lines = Vec::new();
    for (i, ((topic, lens), camera)) in
        robot.cameras.iter().zip(&sight.lenses).zip(&policy.cameras).enumerate()
    {
        let [height, width] = camera.size;
        let encodings = encodings(topic.kind, lens);
        lines.push(format!("in   {}  {}", topic.topic, topic.kind.interface().ros_name()));
        lines.push(format!(
            "       {encodings}, {height} x {width} (height x width) -> camera {}",
            camera.name
        ));
        lines.push(format!("       {} -> {} features by {}", steps(camera), camera.features, camera.encoder));
        lines.push(format!(
            "       at {} Hz or more, not older than {}, stamped by {}; through shared memory from a zenoh peer on this \
             machine",
            policy.rate_hz,
            ms(sight.max_age),
            if lens.arrival_is_stamp { "header, attachment or arrival" } else { "header or attachment" }
        ));
        lines.push(format!("       {}, {}", refused(lens), matched(sight, i == 0)));
    }
    lines
}

/// What is done to an image before the encoder, in order.
fn steps(camera: &Camera) -> String {
    let mut steps = vec![format!("/ {}", camera.divisor)];
    if let Some([height, width]) = camera.resize {
        let how = if camera.antialias { "averaged" } else { "interpolated" };
        steps.push(format!("resized to {height} x {width} ({how})"));
    }
    if let Some([height, width]) = camera.crop {
        steps.push(format!("middle {height} x {width} cut out"));
    }
    for (sign, values) in [("-", &camera.mean), ("/", &camera.std)] {
        if !values.is_empty() {
            steps.push(format!("{sign} {values:?}"));
        }
    }
    steps.push(format!("{:?}", camera.channels).to_lowercase());
    steps.join(", ")
}

fn refused(lens: &Lens) -> String {
    let black = match lens.black {
        Some(limit) => format!("refused as black without a byte above {limit}"),
        None => "never refused as black".into(),
    };
    let frozen = match lens.frozen_after {
        Some(images) => format!("as frozen from {images} equal ones in a row on"),
        None => "never as frozen".into(),
    };
    format!("{black}, {frozen}")
}

fn matched(sight: &SightConfig, leads: bool) -> String {
    let tolerance = ms(sight.tolerance);
    match (leads, sight.out_of_sync) {
        (false, _) => format!("goes with the first camera's images within {tolerance}"),
        (true, OutOfSync::Wait) => {
            format!(
                "leads: an image is looked at once everything else is within {tolerance}, or left and counted"
            )
        }
        (true, OutOfSync::Nearest) => {
            format!(
                "leads: an image goes with what is nearest, and is counted if that is not within {tolerance}"
            )
        }
    }
}

fn ms(span: Nanos) -> String {
    format!("{} ms", span as f64 * 1e-6)
}

/// What cannot work, or hardly.
pub(super) fn findings(config: &RobotConfig, policy: &PolicyConfig) -> Vec<Finding> {
    let Some(section) = &config.vision else { return Vec::new() };
    let mut found = Vec::new();
    for camera in &section.cameras {
        let key = format!("vision.cameras {:?}", camera.name);
        if camera.black == Some(u8::MAX) {
            found.push(Finding::wrong(format!(
                "{key}.black: no byte is above 255; every image would be refused"
            )));
        }
        if camera.stamp == StampChoice::Arrival && section.cameras.len() > 1 {
            found.push(Finding::odd(format!(
                "{key}.stamp: images without a stamp are matched by when they arrive, and cameras take their time; have \
                 them stamped"
            )));
        }
    }
    let period = 1e3 / policy.rate_hz;
    if section.tolerance_ms >= period {
        found.push(Finding::odd(format!(
            "vision.tolerance_ms: {} ms is no less than the {period} ms between two observations; images of different \
             ones will go together",
            section.tolerance_ms
        )));
    }
    found
}
