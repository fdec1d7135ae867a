//! Names and units of the signals of public tasks; a checkpoint has only their sizes.

use super::hybrid::Input;
use crate::config::{Normalizer, Signal};

/// Observation and action of a task, by its name and sizes; numbered names without unit where it is not known.
pub(super) fn signals(
    task: &str,
    inputs: &[Input],
    observation: Normalizer,
    action: Normalizer,
) -> (Signal, Signal) {
    let sizes = (observation.scale.len(), action.scale.len());
    match (task, sizes) {
        // Nine points of the block, then the pusher; the action is where the pusher shall go.
        ("pusht_lowdim", (20, 2)) => {
            let points = (0..9).map(|i| format!("keypoint_{i}")).chain(["pusher".to_owned()]);
            let names = points.flat_map(|p| [format!("{p}_x"), format!("{p}_y")]).collect();
            let action_names = vec!["target_x".to_owned(), "target_y".to_owned()];
            (signal(names, "px", observation), signal(action_names, "px", action))
        }
        _ => {
            let low = inputs.iter().filter(|input| input.camera.is_none());
            let names = low.flat_map(|input| numbered(&input.key, input.size)).collect();
            (signal(names, "1", observation), signal(numbered("action", sizes.1), "1", action))
        }
    }
}

/// `NAME_0`, `NAME_1` and so on.
pub(super) fn numbered(name: &str, n: usize) -> Vec<String> {
    (0..n).map(|i| format!("{name}_{i}")).collect()
}

/// A signal all of one unit.
pub(super) fn signal(names: Vec<String>, unit: &str, normalizer: Normalizer) -> Signal {
    Signal { units: vec![unit.to_owned(); names.len()], names, normalizer }
}
