//! Normalisers out of a state dict: `normalizer.params_dict.FIELD.{scale, offset, input_stats.*}`.

use std::cell::RefCell;
use std::io::{Read, Seek};

use super::ImportError;
use super::state::State;
use super::tensors::Tensors;
use crate::config::{MAX_SIGNAL, Normalizer, NormalizerMode};

/// One normaliser of `size` elements, a number that the configuration has `at`; `None` where something is wrong with it.
pub(super) fn normalizer<R: Read + Seek>(
    state: &State<'_>,
    tensors: &mut Tensors<R>,
    field: &str,
    (at, size): (&str, usize),
    problems: &RefCell<Vec<String>>,
) -> Result<Option<Normalizer>, ImportError> {
    let mut read = |part: &str, optional: bool| -> Result<Option<Vec<f32>>, ImportError> {
        let name = format!("normalizer.params_dict.{field}.{part}");
        let problem = |text: String| problems.borrow_mut().push(format!("{name}: {text}"));
        match state.view(&name) {
            None if optional => {}
            None => problem("is missing; was the policy saved before set_normalizer?".into()),
            Some(Err(text)) => problem(text),
            // One parameter serves all elements.
            Some(Ok(view)) if view.shape == [size] || view.shape == [1] => {
                let values = tensors.read(&view)?;
                return Ok(Some(if values.len() == size { values } else { vec![values[0]; size] }));
            }
            Some(Ok(view)) => problem(format!("expected shape {:?}, got {:?}", [size], view.shape)),
        }
        Ok(None)
    };
    if !(1..=MAX_SIGNAL).contains(&size) {
        problems.borrow_mut().push(format!("{at}: expected 1 to {MAX_SIGNAL}, got {size}"));
        return Ok(None);
    }
    let (scale, offset) = (read("scale", false)?, read("offset", false)?);
    let mut stats = ["min", "max", "mean", "std"].map(|_| Vec::new());
    for (values, part) in stats.iter_mut().zip(["min", "max", "mean", "std"]) {
        *values = read(&format!("input_stats.{part}"), true)?.unwrap_or_default();
    }
    let (Some(scale), Some(offset)) = (scale, offset) else { return Ok(None) };
    let [min, max, mean, std] = stats;
    let mode = mode(&scale, &offset, [&min, &max, &mean, &std]);
    Ok(Some(Normalizer { mode, scale, offset, min, max }))
}

/// Normalisers of parts of one signal, side by side.
pub(super) fn joined(parts: Vec<Normalizer>) -> Normalizer {
    let same = parts.windows(2).all(|pair| pair[0].mode == pair[1].mode);
    let mode = parts.first().filter(|_| same).map_or(NormalizerMode::Manual, |part| part.mode);
    let all = |of: fn(&Normalizer) -> &Vec<f32>| -> Vec<f32> { parts.iter().flat_map(of).copied().collect() };
    let known = |of: fn(&Normalizer) -> &Vec<f32>| {
        if parts.iter().all(|part| of(part).len() == part.scale.len()) { all(of) } else { Vec::new() }
    };
    Normalizer {
        mode,
        scale: all(|z| &z.scale),
        offset: all(|z| &z.offset),
        min: known(|z| &z.min),
        max: known(|z| &z.max),
    }
}

/// How a normaliser was fitted, told from what it makes of the statistics.
fn mode(scale: &[f32], offset: &[f32], [min, max, mean, std]: [&[f32]; 4]) -> NormalizerMode {
    let n = scale.len();
    let all = |near: &dyn Fn(usize) -> bool| (0..n).all(near);
    let map = |values: &[f32], i: usize| values[i] * scale[i] + offset[i];
    let near = |a: f32, b: f32| (a - b).abs() < 1e-3;
    // Elements that never moved have scale 1 and are only shifted.
    let still = |i: usize| scale[i] == 1.0 && max[i] - min[i] < 1e-4;
    let known = |stats: [&[f32]; 2]| stats.iter().all(|s| s.len() == n);
    if known([min, max]) && all(&|i| still(i) || (near(map(min, i), -1.0) && near(map(max, i), 1.0))) {
        NormalizerMode::Limits
    } else if known([mean, std])
        && known([min, max])
        && all(&|i| near(map(mean, i), 0.0) && (still(i) || near(std[i] * scale[i], 1.0)))
    {
        NormalizerMode::Gaussian
    } else {
        NormalizerMode::Manual
    }
}
