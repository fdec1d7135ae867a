//! What a policy observes of Push-T: the keypoints and the pusher, or a camera's image and the pusher.

use refrain_policies::camera::Channels;
use refrain_policies::config::PolicyConfig;
use refrain_policies::preprocess::Image;
use refrain_pusht::{PushT, render_rgb};

/// What is observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// Nine keypoints and the pusher, (x, y) each.
    Keypoints,
    /// A square image of this many pixels a side, and the pusher.
    Camera(usize),
}

/// The policy is not one for Push-T.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the policy observes {observed} numbers and {cameras} cameras and moves {moved}; Push-T has 20 numbers, or 2 and \
     one square camera, and moves 2"
)]
pub struct NotPushT {
    observed: usize,
    cameras: usize,
    moved: usize,
}

impl Scene {
    /// What this policy observes.
    pub fn of(policy: &PolicyConfig) -> Result<Self, NotPushT> {
        let (observed, moved) = (policy.observation.size(), policy.action.size());
        match (observed, &policy.cameras[..], moved) {
            (20, [], 2) => Ok(Self::Keypoints),
            (2, [camera], 2) if camera.size[0] == camera.size[1] => Ok(Self::Camera(camera.size[0])),
            (_, cameras, _) => Err(NotPushT { observed, cameras: cameras.len(), moved }),
        }
    }

    /// The numbers, in pixels.
    pub fn numbers(self, plane: &PushT) -> Vec<f32> {
        match self {
            Self::Keypoints => plane.observation().to_vec(),
            Self::Camera(_) => plane.state().pusher.map(|coordinate| coordinate as f32).to_vec(),
        }
    }

    /// The camera's pixels, if there is one; see [`Self::image`].
    pub fn pixels(self, plane: &PushT) -> Option<Vec<u8>> {
        match self {
            Self::Keypoints => None,
            Self::Camera(size) => Some(render_rgb(&plane.state(), size)),
        }
    }

    /// These pixels as an image.
    pub fn image(self, pixels: &[u8]) -> Image<'_> {
        let size = match self {
            Self::Keypoints => 0,
            Self::Camera(size) => size,
        };
        Image { height: size, width: size, step: 3 * size, channels: Channels::Rgb, pixels }
    }
}
