//! The checkpoint's configuration as a plain tree.
//!
//! Reads omegaconf's containers and nodes as well as plain dicts, and resolves `${a.b}` (also relative, nested and
//! within text) and `${eval:...}` as the code base registers it. Other resolvers are refused by name. Bounded by
//! [`MAX_NODES`], [`MAX_DEPTH`], [`MAX_LOOKUPS`] and [`MAX_TEXT`], so that shared and cyclic references, in the pickle
//! or among the interpolations, end in an error.

use std::cell::Cell;

use super::expression;
use super::pickle::{Id, Node, Pickle};

/// Most values of a configuration, shared ones counted as often as they are reached.
const MAX_NODES: usize = 20_000;
/// Deepest nesting of containers, and of interpolations within each other.
const MAX_DEPTH: usize = 32;
/// Most interpolations and list elements that are resolved in all.
const MAX_LOOKUPS: usize = 50_000;
/// Longest text with interpolations, before and after they are resolved, bytes.
const MAX_TEXT: usize = 4096;

/// One value of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Value>),
    Map(Vec<(String, Value)>),
    /// Something that has no place in a configuration; what it is, for messages.
    Other(String),
}

/// A configuration with its interpolations.
#[derive(Debug)]
pub(super) struct Tree {
    root: Value,
    lookups: Cell<usize>,
}

impl Tree {
    /// Converts a pickled configuration.
    pub(super) fn new(pickle: &Pickle, id: Id) -> Result<Self, String> {
        Ok(Self::from_value(Converter { pickle, nodes: 0 }.value(id, 0)?))
    }

    /// Wraps a plain value.
    pub(super) fn from_value(root: Value) -> Self {
        Self { root, lookups: Cell::new(0) }
    }

    /// The value at a dotted path, resolved; `None` where there is none or it is null. Of a map only that it is one.
    pub(super) fn get(&self, path: &str) -> Result<Option<Value>, String> {
        self.value(split(path), 0).map(|value| value.filter(|v| *v != Value::Null))
    }

    /// Keys of the map at a path.
    pub(super) fn keys(&self, path: &str) -> Result<Option<Vec<&str>>, String> {
        Ok(match self.locate(split(path), 0)? {
            Some((Value::Map(items), _)) => Some(items.iter().map(|(key, _)| &key[..]).collect()),
            _ => None,
        })
    }

    fn value(&self, path: Vec<String>, depth: usize) -> Result<Option<Value>, String> {
        let Some((value, at)) = self.locate(path, depth)? else { return Ok(None) };
        Ok(Some(match value {
            Value::Text(text) if text.contains("${") => self.interpolate(text, &at, depth)?,
            Value::List(elements) => {
                self.lookups.set(self.lookups.get() + elements.len());
                let depth = self.deeper(depth)?;
                let mut list = Vec::with_capacity(elements.len());
                for (i, element) in elements.iter().enumerate() {
                    list.push(match element {
                        Value::Text(_) | Value::List(_) => {
                            let path = at.iter().cloned().chain([i.to_string()]).collect();
                            self.value(path, depth)?.unwrap_or(Value::Null)
                        }
                        scalar => scalar.clone(),
                    });
                }
                Value::List(list)
            }
            Value::Map(_) => Value::Map(Vec::new()),
            scalar => scalar.clone(),
        }))
    }

    /// Follows a path, and references on it, to a value that is not itself a reference; and the path where it lies.
    fn locate(
        &self,
        mut path: Vec<String>,
        mut depth: usize,
    ) -> Result<Option<(&Value, Vec<String>)>, String> {
        'again: loop {
            let mut value = &self.root;
            for i in 0..path.len() {
                let Some(child) = value.child(&path[i]) else { return Ok(None) };
                value = child;
                if let Value::Text(text) = value
                    && let Some(target) = reference(text)
                {
                    depth = self.deeper(depth)?;
                    let mut next = absolute(target, &path[..=i]);
                    next.extend(path.drain(i + 1..));
                    path = next;
                    continue 'again;
                }
            }
            return Ok(Some((value, path)));
        }
    }

    /// A text with its interpolations resolved; another type where it is but one interpolation. `at`: its own path.
    fn interpolate(&self, text: &str, at: &[String], depth: usize) -> Result<Value, String> {
        let depth = self.deeper(depth)?;
        bounded(text)?;
        let mut result = String::new();
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            let Some(length) = closing(&rest[start + 2..]) else {
                return Err(format!("{text:?}: an interpolation is not closed"));
            };
            let inner = &rest[start + 2..start + 2 + length];
            let value = self.resolve(inner, at, depth)?;
            let whole = start == 0 && length + 3 == text.len();
            if whole {
                return Ok(value);
            }
            result.push_str(&rest[..start]);
            result.push_str(&python_text(&value)?);
            bounded(&result)?;
            rest = &rest[start + 2 + length + 1..];
        }
        result.push_str(rest);
        bounded(&result)?;
        Ok(Value::Text(result))
    }

    /// What stands between `${` and `}`.
    fn resolve(&self, inner: &str, at: &[String], depth: usize) -> Result<Value, String> {
        let plain = |text: &str| match self.interpolate(text, at, depth)? {
            Value::Text(text) => Ok(text),
            other => python_text(&other),
        };
        match inner[..inner.find("${").unwrap_or(inner.len())].split_once(':') {
            Some(("eval", _)) => {
                let text = plain(&inner["eval:".len()..])?;
                let text = text.trim();
                let unquoted = ['\'', '"'].iter().find_map(|&q| text.strip_prefix(q)?.strip_suffix(q));
                expression::evaluate(unquoted.unwrap_or(text))
            }
            Some((resolver, _)) => Err(format!(
                "resolver {resolver:?} is not supported; resolve the configuration before saving (OmegaConf.resolve)"
            )),
            None => {
                let target = plain(inner)?;
                let path = absolute(&target, at);
                match self.value(path, depth)? {
                    Some(value) => Ok(value),
                    None => Err(format!("${{{inner}}} names nothing")),
                }
            }
        }
    }

    fn deeper(&self, depth: usize) -> Result<usize, String> {
        self.lookups.set(self.lookups.get() + 1);
        if self.lookups.get() > MAX_LOOKUPS {
            return Err(format!("expected at most {MAX_LOOKUPS} interpolations, got more"));
        }
        if depth == MAX_DEPTH {
            return Err(format!(
                "interpolations lie more than {MAX_DEPTH} deep within each other, or in a circle"
            ));
        }
        Ok(depth + 1)
    }
}

impl Value {
    fn child(&self, key: &str) -> Option<&Value> {
        match self {
            Value::Map(items) => items.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value),
            Value::List(elements) => elements.get(key.parse::<usize>().ok()?),
            _ => None,
        }
    }

    /// What a value is, for messages.
    pub(super) fn shown(&self) -> String {
        match self {
            Value::Null => "null".into(),
            Value::Bool(v) => v.to_string(),
            Value::Int(v) => v.to_string(),
            Value::Float(v) => v.to_string(),
            Value::Text(v) => crate::package::shown(v),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a table".into(),
            Value::Other(kind) => kind.clone(),
        }
    }
}

fn split(path: &str) -> Vec<String> {
    path.split(['.', '[', ']']).filter(|key| !key.is_empty()).map(str::to_owned).collect()
}

/// The target of a text that is but one reference.
fn reference(text: &str) -> Option<&str> {
    let inner = text.strip_prefix("${")?.strip_suffix('}')?;
    (!inner.contains([':', '$', '{', '}'])).then_some(inner.trim())
}

/// A reference's path: relative to the container of `at` where it starts with dots (one: the container itself).
fn absolute(target: &str, at: &[String]) -> Vec<String> {
    let target = target.trim();
    let dots = target.len() - target.trim_start_matches('.').len();
    let kept = if dots == 0 { 0 } else { at.len().saturating_sub(dots) };
    at[..kept].iter().cloned().chain(split(target)).collect()
}

/// Offset of the brace that closes the one before this text.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1;
    for (i, c) in text.char_indices() {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(i);
        }
    }
    None
}

/// A value as Python prints it.
fn python_text(value: &Value) -> Result<String, String> {
    Ok(match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Int(v) => v.to_string(),
        Value::Float(v) => format!("{v:?}"),
        Value::Text(v) => v.clone(),
        other => return Err(format!("{} cannot stand within text", other.shown())),
    })
}

fn bounded(text: &str) -> Result<(), String> {
    if text.len() <= MAX_TEXT {
        Ok(())
    } else {
        Err(format!("a text with interpolations has more than {MAX_TEXT} bytes"))
    }
}

struct Converter<'a> {
    pickle: &'a Pickle,
    nodes: usize,
}

impl Converter<'_> {
    fn value(&mut self, id: Id, depth: usize) -> Result<Value, String> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(format!("expected at most {MAX_NODES} values, got more"));
        }
        if depth > MAX_DEPTH {
            return Err(format!("values lie more than {MAX_DEPTH} deep within each other, or in a circle"));
        }
        let pickle = self.pickle;
        Ok(match pickle.get(id) {
            Node::None => Value::Null,
            Node::Bool(v) => Value::Bool(*v),
            Node::Int(v) => Value::Int(*v),
            Node::Float(v) => Value::Float(*v),
            Node::Str(v) if v.len() > MAX_TEXT => Value::Other(format!("a text of {} bytes", v.len())),
            Node::Str(v) => Value::Text(v.clone()),
            Node::List(elements) | Node::Tuple(elements) => self.list(elements, depth)?,
            Node::Object(_) => match pickle.object(id) {
                Some((module, class, object)) if module.starts_with("omegaconf.") => {
                    let pairs = object.state.and_then(|state| pickle.pairs(state)).unwrap_or(&[]);
                    let container = matches!(class, "DictConfig" | "ListConfig" | "UnionNode");
                    match pickle.item(pairs, if container { "_content" } else { "_val" }) {
                        Some(content) => self.value(content, depth + 1)?,
                        None => return Err(format!("{} holds no value", pickle.kind(id))),
                    }
                }
                _ => match pickle.pairs(id) {
                    Some(pairs) => self.map(pairs, depth)?,
                    None => Value::Other(pickle.kind(id)),
                },
            },
            Node::Dict(pairs) => self.map(pairs, depth)?,
            _ => Value::Other(pickle.kind(id)),
        })
    }

    fn list(&mut self, elements: &[Id], depth: usize) -> Result<Value, String> {
        elements.iter().map(|&id| self.value(id, depth + 1)).collect::<Result<_, _>>().map(Value::List)
    }

    fn map(&mut self, pairs: &[(Id, Id)], depth: usize) -> Result<Value, String> {
        let mut items = Vec::new();
        for &(key, value) in pairs {
            let key = match self.pickle.get(key) {
                Node::Str(key) if key.len() <= MAX_TEXT => key.clone(),
                Node::Int(key) => key.to_string(),
                _ => return Err(format!("expected a key that is a string, got {}", self.pickle.kind(key))),
            };
            items.push((key, self.value(value, depth + 1)?));
        }
        Ok(Value::Map(items))
    }
}

#[cfg(test)]
#[path = "config_tree/tests.rs"]
mod tests;
