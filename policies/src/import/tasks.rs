//! Names and units of the signals of public tasks; a checkpoint has only their sizes.

use crate::config::{Normalizer, Signal};

/// Observation and action of a task, by its name and sizes; numbered names without unit where it is not known.
pub(super) fn signals(task: &str, observation: Normalizer, action: Normalizer) -> (Signal, Signal) {
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
            let numbered = |name: &str, n: usize| (0..n).map(|i| format!("{name}_{i}")).collect();
            (
                signal(numbered("obs", sizes.0), "1", observation),
                signal(numbered("action", sizes.1), "1", action),
            )
        }
    }
}

fn signal(names: Vec<String>, unit: &str, normalizer: Normalizer) -> Signal {
    Signal { units: vec![unit.to_owned(); names.len()], names, normalizer }
}
