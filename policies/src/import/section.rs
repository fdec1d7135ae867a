//! One table of a checkpoint's configuration, read key by key; everything that is wrong is collected.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::config_tree::{Tree, Value};

/// A table.
#[derive(Debug)]
pub(super) struct Section<'a> {
    tree: &'a Tree,
    path: &'a str,
    asked: RefCell<BTreeSet<String>>,
    problems: &'a RefCell<Vec<String>>,
}

impl<'a> Section<'a> {
    /// The table at a dotted path; the empty path is the whole configuration.
    pub(super) fn new(tree: &'a Tree, path: &'a str, problems: &'a RefCell<Vec<String>>) -> Self {
        Self { tree, path, asked: RefCell::default(), problems }
    }

    /// Notes that something is wrong.
    pub(super) fn problem(&self, key: &str, problem: &str) {
        self.problems.borrow_mut().push(format!("cfg.{}: {problem}", self.path_of(key)));
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// A value, if it is there and not null.
    pub(super) fn value(&self, key: &str) -> Option<Value> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.tree.get(&self.path_of(key)).unwrap_or_else(|problem| {
            self.problem(key, &problem);
            None
        })
    }

    fn parsed<T>(&self, key: &str, expected: &str, parse: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        let value = self.value(key)?;
        let parsed = parse(&value);
        if parsed.is_none() {
            self.problem(key, &format!("expected {expected}, got {}", value.shown()));
        }
        parsed
    }

    /// A whole number that is not negative.
    pub(super) fn size(&self, key: &str) -> Option<usize> {
        self.parsed(key, "a whole number", |value| match value {
            Value::Int(v) => usize::try_from(*v).ok(),
            _ => None,
        })
    }

    /// Whole numbers that are not negative.
    pub(super) fn sizes(&self, key: &str) -> Option<Vec<usize>> {
        self.parsed(key, "a list of whole numbers", |value| match value {
            Value::List(elements) => elements
                .iter()
                .map(|element| match *element {
                    Value::Int(v) => usize::try_from(v).ok(),
                    _ => None,
                })
                .collect(),
            _ => None,
        })
    }

    /// A number that must be there.
    pub(super) fn required(&self, key: &str) -> usize {
        let before = self.problems.borrow().len();
        self.size(key).unwrap_or_else(|| {
            if self.problems.borrow().len() == before {
                self.problem(key, "is missing, expected a whole number");
            }
            0
        })
    }

    /// A finite number.
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        self.parsed(key, "a finite number", |value| match *value {
            Value::Int(v) => Some(v as f64),
            Value::Float(v) => Some(v).filter(|v| v.is_finite()),
            _ => None,
        })
    }

    /// Numbers.
    pub(super) fn numbers(&self, key: &str) -> Option<Vec<f32>> {
        self.parsed(key, "a list of numbers", |value| match value {
            Value::List(elements) => elements
                .iter()
                .map(|element| match *element {
                    Value::Int(v) => Some(v as f32),
                    Value::Float(v) => Some(v as f32),
                    _ => None,
                })
                .collect(),
            _ => None,
        })
    }

    /// A switch.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.parsed(key, "true or false", |value| match value {
            Value::Bool(v) => Some(*v),
            _ => None,
        })
    }

    /// A text.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        self.parsed(key, "a text", |value| match value {
            Value::Text(v) => Some(v.clone()),
            _ => None,
        })
    }

    /// One of a few named values.
    pub(super) fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)], default: T) -> T {
        let Some(text) = self.text(key) else { return default };
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => *value,
            None => {
                let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
                let shown = crate::package::shown(&text);
                self.problem(key, &format!("{shown} is not supported; expected {}", names.join(", ")));
                default
            }
        }
    }

    /// The class that the table makes an object of; `None` if it is none of these.
    pub(super) fn class<T: Copy>(&self, classes: &[(&str, T)]) -> Option<T> {
        let expected = || classes.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" or ");
        let Some(target) = self.text("_target_") else {
            self.problem("_target_", &format!("is missing, expected {}", expected()));
            return None;
        };
        let found = classes.iter().find(|(name, _)| *name == target).map(|(_, value)| *value);
        if found.is_none() {
            let shown = crate::package::shown(&target);
            self.problem("_target_", &format!("{shown} is not supported; expected {}", expected()));
        }
        found
    }

    /// Keys that matter in training only.
    pub(super) fn ignore(&self, keys: &[&str]) {
        self.asked.borrow_mut().extend(keys.iter().map(|key| (*key).to_owned()));
    }

    /// Notes every key that nobody asked for: it might change what the policy computes.
    pub(super) fn finish(self) {
        match self.tree.keys(self.path) {
            Ok(Some(keys)) => {
                let asked = self.asked.take();
                for key in keys.into_iter().filter(|key| !asked.contains(*key)) {
                    self.problem(key, "is not supported: unknown key");
                }
            }
            Ok(None) => {
                self.problems.borrow_mut().push(format!("cfg.{}: is missing, expected a table", self.path))
            }
            Err(problem) => self.problems.borrow_mut().push(format!("cfg.{}: {problem}", self.path)),
        }
    }
}
