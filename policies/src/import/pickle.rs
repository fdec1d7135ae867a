//! Pickles as inert data: a machine that builds values and executes nothing.
//!
//! Reads protocols 0 to 5 as far as torch, dill and omegaconf write them. A call in the pickle becomes an [`Object`]
//! that names what would have been called and with what; nothing is looked up, imported or run. Values lie in an
//! arena and refer to each other by [`Id`], so shared and cyclic references cost nothing. Memory is bounded by
//! [`MAX_BYTES`], [`MAX_NODES`], [`MAX_STACK`] and [`MAX_MARKS`]; there is no recursion, and time is linear in the
//! pickle's length.
//!
//! Source: CPython's `pickletools.py` for the opcodes.

mod machine;
mod opcode;

pub(super) use machine::read;

/// Largest pickle, bytes.
pub(super) const MAX_BYTES: u64 = 16 << 20;
/// Most values.
pub(super) const MAX_NODES: usize = 1 << 20;
/// Most values on the stack.
pub(super) const MAX_STACK: usize = 1 << 20;
/// Most open marks: how deep collections may be nested while they are written.
pub(super) const MAX_MARKS: usize = 1000;

/// A value's place in its [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id(u32);

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits; its value is not kept.
    BigInt,
    Float(f64),
    Str(String),
    Bytes(Vec<u8>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// A set or a frozen set.
    Set(Vec<Id>),
    /// Pairs in the order of writing; a key may stand twice, the last one counts.
    Dict(Vec<(Id, Id)>),
    /// Something by its name; module and name are texts.
    Global {
        module: Id,
        name: Id,
    },
    Object(Box<Object>),
    /// A reference to something beside the pickle, such as a tensor's storage.
    Persistent(Id),
}

/// What a call would have made.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Object {
    /// What would have been called; usually a [`Node::Global`].
    pub(super) callable: Id,
    /// The arguments; a [`Node::Tuple`].
    pub(super) args: Id,
    /// The state that was set afterwards.
    pub(super) state: Option<Id>,
    /// Items that were set afterwards.
    pub(super) items: Vec<(Id, Id)>,
    /// Elements that were appended afterwards.
    pub(super) elements: Vec<Id>,
}

/// All values of one pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    nodes: Vec<Node>,
    root: Id,
}

/// Why a pickle cannot be read; offsets count bytes from its start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// It ends within an operation.
    #[error("is truncated at byte {offset}")]
    Truncated {
        /// Where it ends.
        offset: usize,
    },
    /// Not an operation of any known protocol.
    #[error("unknown opcode 0x{opcode:02x} at byte {offset}")]
    UnknownOpcode {
        /// The byte.
        opcode: u8,
        /// Where it stands.
        offset: usize,
    },
    /// An operation that no checkpoint needs.
    #[error("opcode {name} at byte {offset} is not supported: no checkpoint needs it")]
    Refused {
        /// Name as in CPython's `pickletools`.
        name: &'static str,
        /// Where it stands.
        offset: usize,
    },
    /// An operation that does not fit what came before it.
    #[error("opcode {name} at byte {offset}: {problem}")]
    Invalid {
        /// Name as in CPython's `pickletools`.
        name: &'static str,
        /// Where it stands.
        offset: usize,
        /// What does not fit.
        problem: &'static str,
    },
    /// More of something than is read.
    #[error("expected at most {limit} {what}, got more at byte {offset}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The most.
        limit: usize,
        /// Where the limit is passed.
        offset: usize,
    },
}

impl Pickle {
    /// What the pickle is of.
    pub(super) fn root(&self) -> Id {
        self.root
    }

    /// The value at a place.
    pub(super) fn get(&self, id: Id) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// A text.
    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Node::Str(text) => Some(text),
            _ => None,
        }
    }

    /// An integer that is not negative.
    pub(super) fn size(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            &Node::Int(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// Elements of a tuple.
    pub(super) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Node::Tuple(elements) => Some(elements),
            _ => None,
        }
    }

    /// An object with the module and name of what would have made it.
    pub(super) fn object(&self, id: Id) -> Option<(&str, &str, &Object)> {
        let Node::Object(object) = self.get(id) else { return None };
        let (module, name) = self.global(object.callable)?;
        Some((module, name, object))
    }

    /// Module and name of something by its name.
    pub(super) fn global(&self, id: Id) -> Option<(&str, &str)> {
        match *self.get(id) {
            Node::Global { module, name } => Some((self.text(module)?, self.text(name)?)),
            _ => None,
        }
    }

    /// Pairs of a dict, an `OrderedDict` or a `defaultdict`.
    pub(super) fn pairs(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Node::Dict(pairs) => Some(pairs),
            Node::Object(_) => match self.object(id)? {
                ("collections", "OrderedDict" | "defaultdict", object) => Some(&object.items),
                _ => None,
            },
            _ => None,
        }
    }

    /// The last value of a text key among pairs.
    pub(super) fn item(&self, pairs: &[(Id, Id)], key: &str) -> Option<Id> {
        pairs.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|(_, v)| *v)
    }

    /// What a value is, for messages.
    pub(super) fn kind(&self, id: Id) -> String {
        match self.get(id) {
            Node::None => "None".into(),
            Node::Bool(_) => "a bool".into(),
            Node::Int(_) | Node::BigInt => "an integer".into(),
            Node::Float(_) => "a float".into(),
            Node::Str(_) => "a string".into(),
            Node::Bytes(_) => "bytes".into(),
            Node::Tuple(_) => "a tuple".into(),
            Node::List(_) => "a list".into(),
            Node::Set(_) => "a set".into(),
            Node::Dict(_) => "a dict".into(),
            Node::Global { .. } => match self.global(id) {
                Some((module, name)) => format!("{module:.60}.{name:.60}"),
                None => "a name".into(),
            },
            Node::Object(_) => match self.object(id) {
                Some((module, name, _)) => format!("an object of {module:.60}.{name:.60}"),
                None => "an object".into(),
            },
            Node::Persistent(_) => "a storage".into(),
        }
    }
}

#[cfg(test)]
#[path = "pickle/tests.rs"]
mod tests;
