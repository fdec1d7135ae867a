//! What goes in and out of a LeRobot policy: named features, in the order of the file.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::CONFIG;
use crate::config::MAX_SIGNAL;
use crate::package::shown;

/// Features by name. Their order counts: it is that of the cameras in the condition.
pub(super) struct Features(Vec<(String, Feature)>);

/// One of them.
#[derive(Clone, Deserialize)]
pub(super) struct Feature {
    /// `STATE`, `VISUAL`, `ACTION` and others.
    pub(super) r#type: String,
    pub(super) shape: Vec<usize>,
}

impl Feature {
    /// Numbers of one that has one size.
    pub(super) fn size(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }
}

impl Features {
    /// Those of a type.
    pub(super) fn of(&self, kind: &str) -> impl Iterator<Item = (&str, &Feature)> {
        self.0
            .iter()
            .filter(move |(_, feature)| feature.r#type == kind)
            .map(|(key, feature)| (&key[..], feature))
    }
}

impl<'de> Deserialize<'de> for Features {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Features;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("features by name")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Features, M::Error> {
                let mut features = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    features.push(entry);
                }
                Ok(Features(features))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// The one vector that a package has of these features; types that nobody knows are problems.
pub(super) fn vector(
    features: &Features,
    of: &str,
    key: &str,
    problems: &mut Vec<String>,
) -> Option<Feature> {
    for (key, feature) in &features.0 {
        if !["STATE", "VISUAL", "ENV", "ACTION"].contains(&&feature.r#type[..]) {
            let kind = shown(&feature.r#type);
            problems.push(format!("{CONFIG}: feature {}: type {kind} is not supported", shown(key)));
        }
    }
    let Some((_, feature)) = features.0.iter().find(|(name, _)| name == key) else {
        problems.push(format!("{CONFIG}: {of}.{key}: is missing"));
        return None;
    };
    if !matches!(feature.shape[..], [1..=MAX_SIGNAL]) {
        let shape = &feature.shape;
        problems
            .push(format!("{CONFIG}: feature {key:?}: expected 1 size of 1 to {MAX_SIGNAL}, got {shape:?}"));
        return None;
    }
    Some(feature.clone())
}
