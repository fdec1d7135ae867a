//! A robot's URDF, as far as joints go: names, types, limits.
//!
//! Positions are rad or m, speeds rad/s or m/s, as the format has it. Source: <https://wiki.ros.org/urdf/XML/joint>.

use std::path::{Path, PathBuf};

use super::{Finding, OTHER_UNIT};
use crate::safety::{Kind, Limits};

/// Limits may differ by this share from rounding.
const ROUNDING: f64 = 1e-3;

/// A URDF's joints.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Urdf {
    joints: Vec<Joint>,
}

/// A joint.
#[derive(Clone, Debug, PartialEq)]
pub struct Joint {
    /// Its name.
    pub name: String,
    /// `revolute`, `continuous`, `prismatic`, `fixed` ...
    pub kind: String,
    /// It follows another joint.
    pub mimic: bool,
    /// Lowest and highest position, if it has them.
    pub position: Option<[f64; 2]>,
    /// Largest speed, if given.
    pub velocity: Option<f64>,
}

/// Why a file is no URDF.
#[derive(Debug, thiserror::Error)]
pub enum UrdfError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's words.
        source: std::io::Error,
    },
    /// It is not XML.
    #[error("URDF: {0}")]
    Xml(#[from] roxmltree::Error),
    /// It is XML, but not a URDF.
    #[error("URDF: {0}")]
    Content(String),
}

impl Urdf {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, UrdfError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| UrdfError::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// Reads a file's text.
    pub fn parse(text: &str) -> Result<Self, UrdfError> {
        let document = roxmltree::Document::parse(text)?;
        let root = document.root_element();
        if !root.has_tag_name("robot") {
            let name = root.tag_name().name();
            return Err(UrdfError::Content(format!("expected <robot>, got <{name}>; expand xacro first")));
        }
        let joints = root.children().filter(|node| node.has_tag_name("joint"));
        Ok(Self { joints: joints.map(Joint::read).collect::<Result<_, _>>()? })
    }

    /// The joint of this name.
    pub fn joint(&self, name: &str) -> Option<&Joint> {
        self.joints.iter().find(|joint| joint.name == name)
    }

    /// The joints that can be moved, for messages.
    pub fn names(&self) -> String {
        let moving = self.joints.iter().filter(|joint| joint.kind != "fixed" && !joint.mimic);
        let names: Vec<&str> = moving.map(|joint| joint.name.as_str()).collect();
        format!("the URDF moves {}", names.join(", "))
    }

    /// What does not fit between a joint's limits in `robot.toml` and here.
    pub fn compare(&self, key: &str, name: &str, unit: &str, limits: &Limits) -> Vec<Finding> {
        let Some(joint) = self.joint(name) else {
            return vec![Finding::wrong(format!("{key}.joint: no {name:?}; {}", self.names()))];
        };
        if joint.kind == "fixed" || joint.mimic {
            let what = if joint.mimic { "follows another joint" } else { "is fixed" };
            return vec![Finding::wrong(format!("{key}.joint: {name:?} {what}; {}", self.names()))];
        }
        let mut found = Vec::new();
        let expected = if joint.kind == "prismatic" { "m" } else { "rad" };
        let per_second = format!("{expected}/s");
        let wanted = if limits.kind == Kind::Position { expected } else { per_second.as_str() };
        if !unit.is_empty() && unit != wanted {
            found.push(Finding::wrong(format!(
                "{key}: the policy's unit is {unit:?}, the URDF's {wanted:?}; convert before the robot"
            )));
        }
        if let (Kind::Position, Some([low, high])) = (limits.kind, joint.position) {
            let [lowest, highest] = limits.position;
            let slack = ROUNDING * (high - low);
            if lowest < low - slack || highest > high + slack {
                let other = (highest - lowest) > OTHER_UNIT * (high - low);
                let hint = if other { "another unit?" } else { "narrow it" };
                found.push(Finding::wrong(format!(
                    "{key}.position: [{lowest}, {highest}] is wider than the URDF's [{low}, {high}] {expected}; {hint}"
                )));
            }
        }
        let most = joint.velocity.filter(|most| limits.velocity > most * (1.0 + ROUNDING));
        if let (Kind::Position, Some(most)) = (limits.kind, most) {
            found.push(Finding::wrong(format!(
                "{key}.velocity: {} is above the URDF's {most} {expected}/s; lower it",
                limits.velocity
            )));
        }
        found
    }

    /// `[[action.joints]]` of a joint as far as the URDF knows it, to be pasted; `None` for a joint that it does not move.
    pub fn section(&self, name: &str, joint: &str) -> Option<String> {
        let found = self.joint(joint).filter(|joint| joint.kind != "fixed" && !joint.mimic)?;
        let position =
            found.position.map_or("position = [?, ?]".into(), |[l, h]| format!("position = [{l:?}, {h:?}]"));
        let velocity = found.velocity.map_or("?".into(), |velocity| format!("{velocity:?}"));
        Some(format!(
            "[[action.joints]]\nname = {name:?}\njoint = {joint:?}\n{position}\nvelocity = {velocity}\n\
             acceleration = ?   # the URDF has none\nmeasured = ?       # an observation element\n"
        ))
    }
}

impl Joint {
    fn read(node: roxmltree::Node<'_, '_>) -> Result<Self, UrdfError> {
        let name = node.attribute("name").unwrap_or_default().to_owned();
        let kind = node.attribute("type").unwrap_or_default().to_owned();
        if name.is_empty() || kind.is_empty() {
            return Err(UrdfError::Content(format!(
                "a joint needs a name and a type, got {name:?}, {kind:?}"
            )));
        }
        let limit = node.children().find(|child| child.has_tag_name("limit"));
        let number = |key: &str| -> Result<Option<f64>, UrdfError> {
            let Some(text) = limit.and_then(|limit| limit.attribute(key)) else { return Ok(None) };
            let number = text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
            let wrong =
                || UrdfError::Content(format!("joint {name:?}, limit {key}: no finite number: {text:?}"));
            number.map(Some).ok_or_else(wrong)
        };
        let bounded = matches!(kind.as_str(), "revolute" | "prismatic");
        // Absent ends are 0 by the format.
        let position = match (number("lower")?, number("upper")?) {
            (None, None) => None,
            (low, high) => Some([low.unwrap_or(0.0), high.unwrap_or(0.0)]),
        };
        Ok(Self {
            mimic: node.children().any(|child| child.has_tag_name("mimic")),
            position: position.filter(|_| bounded),
            velocity: number("velocity")?,
            name,
            kind,
        })
    }
}
