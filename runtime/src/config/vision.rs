//! `[vision]` of `robot.toml`: where a policy's images come from, and how they are matched in time.

use refrain_policies::config::PolicyConfig;
use serde::{Deserialize, Serialize};

use super::{RobotConfig, StampChoice};
use crate::clock::{self, from_millis};
use crate::sight::{Lens, OutOfSync, SightConfig};

/// `[vision]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionSection {
    /// How far apart the images and the state of one observation may be, in milliseconds.
    pub tolerance_ms: f64,
    /// What happens to an image of the first camera that has no match.
    #[serde(default)]
    pub out_of_sync: OutOfSync,
    /// One per camera of the policy, in any order.
    pub cameras: Vec<CameraSection>,
}

/// `[[vision.cameras]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CameraSection {
    /// The policy's camera.
    pub name: String,
    /// The topic.
    pub topic: String,
    /// Its message type.
    #[serde(rename = "type")]
    pub kind: ImageKind,
    /// What counts as its time where neither header nor attachment says.
    #[serde(default)]
    pub stamp: StampChoice,
    /// An image without a byte above this is refused as black, 0 to 255.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub black: Option<u8>,
    /// This many equal images in a row are refused as those of a frozen camera, 2 or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_after: Option<u32>,
}

/// Message types of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageKind {
    /// Pixels: rgb8, bgr8 or mono8.
    #[serde(rename = "sensor_msgs/Image")]
    Image,
    /// JPEG or PNG.
    #[serde(rename = "sensor_msgs/CompressedImage")]
    CompressedImage,
}

/// A topic of images, in the policy's order of cameras.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CameraTopic {
    /// The topic.
    pub topic: String,
    /// Its message type.
    pub kind: ImageKind,
}

impl RobotConfig {
    /// Where images come from and how they are matched; appends what is wrong.
    pub(super) fn cameras(
        &self,
        policy: &PolicyConfig,
        found: &mut Vec<String>,
    ) -> (Vec<CameraTopic>, Option<SightConfig>) {
        let Some(section) = &self.vision else {
            if !policy.cameras.is_empty() {
                let names: Vec<&str> = policy.cameras.iter().map(|camera| &camera.name[..]).collect();
                found.push(format!("vision: is missing; the policy sees through {}", names.join(", ")));
            }
            return (Vec::new(), None);
        };
        if !(section.tolerance_ms >= 0.0 && section.tolerance_ms <= 1e6) {
            found.push(format!("vision.tolerance_ms: expected 0 or more, got {}", section.tolerance_ms));
        }
        for camera in &section.cameras {
            if !policy.cameras.iter().any(|known| known.name == camera.name) {
                let known: Vec<&str> = policy.cameras.iter().map(|camera| &camera.name[..]).collect();
                let known = if known.is_empty() { "none".into() } else { known.join(", ") };
                found.push(format!(
                    "vision.cameras: the policy has no camera {:?}; it has {known}",
                    camera.name
                ));
            }
            if camera.frozen_after.is_some_and(|images| images < 2) {
                found.push(format!("vision.cameras {:?}.frozen_after: expected 2 or more", camera.name));
            }
        }
        let (mut topics, mut lenses) = (Vec::new(), Vec::new());
        for camera in &policy.cameras {
            let mut given = section.cameras.iter().filter(|section| section.name == camera.name);
            let (Some(section), None) = (given.next(), given.next()) else {
                let [height, width] = camera.size;
                found.push(format!(
                    "vision.cameras: expected {:?} once; the policy sees images of {height} x {width} (height x width) through it",
                    camera.name
                ));
                continue;
            };
            topics.push(CameraTopic { topic: section.topic.clone(), kind: section.kind });
            lenses.push(Lens {
                name: camera.name.clone(),
                size: camera.size,
                channels: camera.channels,
                arrival_is_stamp: section.stamp == StampChoice::Arrival,
                black: section.black,
                frozen_after: section.frozen_after,
            });
        }
        let sight = SightConfig {
            steps: policy.architecture.n_obs_steps,
            period: clock::period(policy.rate_hz),
            max_age: from_millis(self.observation.max_age_ms),
            clock_tolerance: from_millis(self.observation.clock_tolerance_ms),
            tolerance: from_millis(section.tolerance_ms),
            out_of_sync: section.out_of_sync,
            lenses,
        };
        (topics, (!policy.cameras.is_empty()).then_some(sight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigError;

    const EXAMPLE: &str = include_str!("../../../examples/pusht/camera.toml");
    const POLICY: &str = include_str!("../../../policies/pusht-image/policy.toml");
    const BLIND: &str = include_str!("../../../policies/pusht-small/policy.toml");

    fn problems(text: &str, policy: &str) -> Vec<String> {
        let policy: PolicyConfig = toml::from_str(policy).unwrap();
        match RobotConfig::parse(text).unwrap().resolve(&policy) {
            Err(ConfigError::Problems(problems)) => problems,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_example_gives_the_policy_its_camera() {
        let policy: PolicyConfig = toml::from_str(POLICY).unwrap();
        let config = RobotConfig::parse(EXAMPLE).unwrap();
        let robot = config.resolve(&policy).unwrap();
        let sight = robot.intake.sight.unwrap();
        assert_eq!(
            (sight.steps, sight.tolerance, sight.out_of_sync),
            (2, from_millis(20.0), OutOfSync::Wait)
        );
        assert_eq!((&sight.lenses[0].name[..], sight.lenses[0].size), ("image", [96, 96]));
        assert_eq!(robot.cameras, [CameraTopic { topic: "pusht/image".into(), kind: ImageKind::Image }]);
        // What is recorded is read again.
        assert_eq!(RobotConfig::parse(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn mistakes_are_named_together() {
        let wrong = EXAMPLE
            .replace("name = \"image\"", "name = \"wrist\"\nfrozen_after = 1")
            .replace("tolerance_ms = 20.0", "tolerance_ms = -1.0")
            .replace("\"pusht/image\"", "\"pusht/pusher\"");
        let found = problems(&wrong, POLICY);
        for expected in [
            "vision.tolerance_ms: expected 0 or more, got -1",
            "vision.cameras: the policy has no camera \"wrist\"; it has image",
            "vision.cameras \"wrist\".frozen_after: expected 2 or more",
            "vision.cameras: expected \"image\" once; the policy sees images of 96 x 96 (height x width) through it",
            "vision.cameras: \"pusht/pusher\" stands twice",
        ] {
            assert!(found.iter().any(|problem| problem == expected), "{expected:?} is not in {found:#?}");
        }
        let (start, end) = (EXAMPLE.find("[vision]").unwrap(), EXAMPLE.find("[action]").unwrap());
        let blind = format!("{}{}", &EXAMPLE[..start], &EXAMPLE[end..]);
        let found = problems(&blind, POLICY);
        assert_eq!(found, ["vision: is missing; the policy sees through image"]);
        let found = problems(EXAMPLE, BLIND);
        assert!(
            found.contains(&"vision.cameras: the policy has no camera \"image\"; it has none".into()),
            "{found:#?}"
        );
    }
}
