//! What `DiffusionTransformerHybridImagePolicy` of real-stanford/diffusion_policy looks at.
//!
//! Its observation is `shape_meta.obs`: cameras (`rgb`) and low-dimensional keys, in the order of the configuration. The
//! encoder (robomimic's `ObservationEncoder`) gives F numbers for every camera and hands the others through, side by side
//! in that order; a package has the cameras first. Images are scaled by their normaliser, then cut by `crop_shape`.
//! Source: `policy/diffusion_transformer_hybrid_image_policy.py`, `model/vision/crop_randomizer.py`.

use std::cell::RefCell;

use super::config_tree::Tree;
use super::section::Section;
use super::state::State;
use crate::camera::{Camera, Channels, MAX_SIDE};
use crate::config::{MAX_SIGNAL, Normalizer};

/// The weight that takes the encoder's numbers, `[D, sum of them]`.
pub(super) const TAKES_FEATURES: &str = "cond_obs_emb.weight";

/// One key of the observation.
#[derive(Debug)]
pub(super) struct Input {
    /// Name of its normaliser.
    pub(super) key: String,
    /// Where the configuration has its size.
    pub(super) at: String,
    /// Numbers that it gives to the denoiser.
    pub(super) size: usize,
    /// What sees it, if it is an image.
    pub(super) camera: Option<Camera>,
}

/// Reads `shape_meta` and `crop_shape`: the inputs, and the action's size.
pub(super) fn inputs(
    tree: &Tree,
    policy: &Section<'_>,
    notes: &mut Vec<String>,
    problems: &RefCell<Vec<String>>,
) -> (Vec<Input>, usize) {
    let shapes = Section::new(tree, "policy.shape_meta", problems);
    shapes.ignore(&["obs", "action"]);
    let action = Section::new(tree, "policy.shape_meta.action", problems);
    let action_dim = vector(&action);
    action.finish();
    shapes.finish();

    let crop = policy.sizes("crop_shape").and_then(|sizes| match sizes[..] {
        [height, width] => Some([height, width]),
        _ => {
            policy.problem("crop_shape", &format!("expected height and width, got {sizes:?}"));
            None
        }
    });
    policy.ignore(&["obs_encoder_group_norm"]); // of the encoder, whose export has it
    let fixed = policy.flag("eval_fixed_crop").unwrap_or(false);
    let mut inputs = Vec::new();
    let keys = match tree.keys("policy.shape_meta.obs") {
        Ok(Some(keys)) => keys,
        Ok(None) => Vec::new(),
        Err(problem) => {
            problems.borrow_mut().push(format!("cfg.policy.shape_meta.obs: {problem}"));
            Vec::new()
        }
    };
    for key in &keys {
        let path = format!("policy.shape_meta.obs.{key}");
        let section = Section::new(tree, &path, problems);
        let seen = section.choice("type", &[("low_dim", false), ("rgb", true)], false);
        let camera = if seen { camera(key, crop, &section) } else { None };
        let size = if seen { 0 } else { vector(&section) };
        section.finish();
        let at = format!("cfg.{path}.shape");
        inputs.push(Input { key: (*key).to_owned(), at, size, camera });
    }
    let problem = |text: &str| problems.borrow_mut().push(format!("cfg.policy.shape_meta.obs: {text}"));
    if inputs.iter().all(|input| input.camera.is_some()) {
        problem("has no low_dim key; a policy that only sees is not supported");
    }
    if crop.is_some() && !fixed && inputs.iter().any(|input| input.camera.is_some()) {
        notes.push(
            "eval_fixed_crop is false: images are cut in the middle, not at random as in training".into(),
        );
    }
    (inputs, action_dim)
}

/// The size of a vector's `shape`.
fn vector(section: &Section<'_>) -> usize {
    match section.sizes("shape").as_deref() {
        Some([size]) if (1..=MAX_SIGNAL).contains(size) => *size,
        other => {
            section.problem("shape", &format!("expected [n] with n of 1 to {MAX_SIGNAL}, got {other:?}"));
            0
        }
    }
}

fn camera(key: &str, crop: Option<[usize; 2]>, section: &Section<'_>) -> Option<Camera> {
    let (channels, size) = match section.sizes("shape").as_deref() {
        Some([3, height, width]) => (Channels::Rgb, [*height, *width]),
        Some([1, height, width]) => (Channels::Mono, [*height, *width]),
        other => {
            let expected = "expected [3, height, width] or [1, height, width]";
            section.problem("shape", &format!("{expected}, got {other:?}"));
            return None;
        }
    };
    if let Some(side) = size.iter().find(|side| !(1..=MAX_SIDE).contains(*side)) {
        section.problem("shape", &format!("expected sides of 1 to {MAX_SIDE} pixels, got {side}"));
        return None;
    }
    Some(Camera {
        name: key.to_owned(),
        size,
        channels,
        divisor: 255.0,
        resize: None,
        antialias: true,
        crop: crop.filter(|crop| *crop != size),
        mean: Vec::new(),
        std: Vec::new(),
        encoder: format!("{key}.onnx"),
        features: 0,
    })
}

impl Input {
    /// A low-dimensional one.
    pub(super) fn low(key: &str, at: &str, size: usize) -> Self {
        Self { key: key.to_owned(), at: at.to_owned(), size, camera: None }
    }

    /// Takes over the normaliser of an image: one scale and offset for bytes divided by 255.
    pub(super) fn see(&mut self, normalizer: &Normalizer) {
        if let Some(camera) = &mut self.camera {
            let (scale, offset) = (normalizer.scale[0], normalizer.offset[0]);
            camera.mean = vec![-offset / scale; camera.channels.count()];
            camera.std = vec![1.0 / scale; camera.channels.count()];
        }
    }
}

/// Divides what the denoiser takes, beyond the low-dimensional numbers, among the cameras: robomimic has one encoder
/// configuration for all of them, so each gives as many.
pub(super) fn divide_features(inputs: &mut [Input], state: &State<'_>, problems: &RefCell<Vec<String>>) {
    let name = format!("model.{TAKES_FEATURES}");
    let cameras = inputs.iter().filter(|input| input.camera.is_some()).count();
    let low: usize = inputs.iter().map(|input| input.size).sum();
    let taken = match state.view(&name) {
        _ if cameras == 0 => return,
        Some(Ok(view)) if view.shape.len() == 2 => view.shape[1],
        _ => {
            problems.borrow_mut().push(format!("{name}: is missing, expected shape [D, features]"));
            return;
        }
    };
    let features = taken.saturating_sub(low) / cameras;
    if features == 0 || features * cameras + low != taken {
        problems.borrow_mut().push(format!(
            "{name}: expected {low} numbers and equal features of {cameras} cameras, got {taken}"
        ));
        return;
    }
    for input in inputs {
        if let Some(camera) = &mut input.camera {
            (camera.features, input.size) = (features, features);
        }
    }
}

/// Brings the columns of [`TAKES_FEATURES`] into the order of a package: cameras first.
pub(super) fn cameras_first(inputs: &[Input], values: &mut [f32]) {
    let mut first = 0;
    let ranges: Vec<_> = inputs
        .iter()
        .map(|input| {
            first += input.size;
            (input.camera.is_none(), first - input.size..first)
        })
        .collect();
    let mut order: Vec<usize> = Vec::with_capacity(first);
    for low in [false, true] {
        order.extend(ranges.iter().filter(|(is_low, _)| *is_low == low).flat_map(|(_, range)| range.clone()));
    }
    for row in values.chunks_exact_mut(first.max(1)) {
        let old = row.to_vec();
        row.iter_mut().zip(&order).for_each(|(value, &column)| *value = old[column]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_cameras_come_first() {
        let mut inputs = [Input::low("a", "", 1), Input::low("b", "", 2), Input::low("c", "", 1)];
        let camera: Camera = toml::from_str("name = 'b'\nsize = [4, 4]\nfeatures = 2").expect("a camera");
        inputs[1].camera = Some(camera);
        let mut values = [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0];
        cameras_first(&inputs, &mut values);
        assert_eq!(values, [1.0, 2.0, 0.0, 3.0, 11.0, 12.0, 10.0, 13.0]);
    }
}
