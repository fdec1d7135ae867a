//! A policy's state dict in a checkpoint: descriptions of tensors by name.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::diffusion_policy::is_derived;
use super::pickle::{Id, Pickle};
use super::tensors::{self, View};
use crate::package::{fits, shown};

/// Most tensors of a state dict.
const MAX_TENSORS: usize = 100_000;

/// The policy's state dict: descriptions of tensors by name.
pub(super) struct State<'a> {
    pickle: &'a Pickle,
    tensors: BTreeMap<&'a str, Id>,
}

impl<'a> State<'a> {
    pub(super) fn new(pickle: &'a Pickle, pairs: &[(Id, Id)], problems: &RefCell<Vec<String>>) -> Self {
        let mut tensors = BTreeMap::new();
        for &(key, value) in pairs {
            match pickle.text(key) {
                Some(name) if tensors.len() < MAX_TENSORS => drop(tensors.insert(name, value)),
                _ => {
                    problems.borrow_mut().push(format!(
                        "state_dicts: expected at most {MAX_TENSORS} tensors by name, got a key that is {}",
                        pickle.kind(key)
                    ));
                    break;
                }
            }
        }
        Self { pickle, tensors }
    }

    /// Whether there is such a tensor.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor's description, if it is there.
    pub(super) fn view(&self, name: &str) -> Option<Result<View, String>> {
        self.tensors.get(name).map(|&id| tensors::view(self.pickle, id))
    }

    /// The denoiser's tensors; everything that is missing, unknown or of another shape is a problem.
    /// `encoder`: the policy has an observation encoder, whose tensors are left to its own export.
    pub(super) fn model(
        &self,
        expected: &[(String, Vec<usize>)],
        encoder: bool,
        problems: &mut Vec<String>,
    ) -> Vec<(String, View)> {
        let mut views = Vec::new();
        for (name, shape) in expected {
            let full = format!("model.{name}");
            match self.view(&full) {
                None => problems.push(format!("{full}: is missing, expected shape {shape:?}")),
                Some(Err(problem)) => problems.push(format!("{full}: {problem}")),
                Some(Ok(view)) if !fits(name, shape, &view.shape) => {
                    problems.push(format!("{full}: expected shape {shape:?}, got {:?}", view.shape));
                }
                Some(Ok(view)) => views.push((name.clone(), view)),
            }
        }
        let known: BTreeSet<&str> = expected.iter().map(|(name, _)| &name[..]).collect();
        for &name in self.tensors.keys() {
            let ignored = match name.split_once('.') {
                None => is_derived(name),
                Some(("model", rest)) => known.contains(rest) || is_derived(rest),
                Some(("mask_generator", rest)) => is_derived(rest),
                Some(("obs_encoder", _)) => encoder,
                Some((first, _)) => first == "normalizer",
            };
            if !ignored {
                problems.push(format!("unexpected tensor {}", shown(name)));
            }
        }
        views
    }
}
