//! `[action.workspace]`: the box that some of the policy's actions together stay in.

use refrain_policies::config::PolicyConfig;
use serde::{Deserialize, Serialize};

use super::{ActionSection, KindChoice, OutsideChoice};
use crate::safety::Workspace;

/// `[action.workspace]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceSection {
    /// The action elements that are a position together, such as the x, y and z of a tool.
    pub elements: Vec<String>,
    /// The box's lowest corner, one number per element, in the action's unit.
    pub low: Vec<f64>,
    /// Its highest corner.
    pub high: Vec<f64>,
    /// What happens to actions outside.
    #[serde(default = "hold")]
    pub outside: OutsideChoice,
}

fn hold() -> OutsideChoice {
    OutsideChoice::Hold
}

impl ActionSection {
    pub(super) fn workspace(&self, policy: &PolicyConfig, found: &mut Vec<String>) -> Workspace {
        let Some(section) = &self.workspace else { return Workspace::ANYWHERE };
        let n = section.elements.len();
        if n == 0 || (section.low.len(), section.high.len()) != (n, n) {
            found.push(format!(
                "action.workspace: expected low and high with a number for each of its elements, got {n} elements, {} and {}",
                section.low.len(),
                section.high.len()
            ));
            return Workspace::ANYWHERE;
        }
        let mut axes: Vec<(usize, [f64; 2])> = Vec::new();
        for ((name, low), high) in section.elements.iter().zip(&section.low).zip(&section.high) {
            let key = format!("action.workspace {name:?}");
            let Some(joint) = policy.action.names.iter().position(|known| known == name) else {
                let known = policy.action.names.join(", ");
                found.push(format!("{key}: the policy moves no such element; it moves {known}"));
                continue;
            };
            if axes.iter().any(|(other, _)| *other == joint) {
                found.push(format!("{key}: stands twice"));
            }
            if !(low < high && low.is_finite() && high.is_finite()) {
                found.push(format!("{key}: expected low < high, got {low} and {high}"));
            }
            if let Some(limits) = self.joints.iter().find(|section| section.name == *name) {
                if limits.kind != KindChoice::Position {
                    found.push(format!(
                        "{key}: expected kind = \"position\"; where others lead is not known here"
                    ));
                }
                if limits.position.is_some_and(|[lowest, highest]| low.max(lowest) >= high.min(highest)) {
                    found.push(format!(
                        "{key}: {low} to {high} leaves nothing of the element's position range"
                    ));
                }
            }
            axes.push((joint, [*low, *high]));
        }
        Workspace { axes, outside: section.outside.into() }
    }
}
