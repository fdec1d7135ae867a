//! The machine: one pass over the opcodes.

use std::collections::HashMap;

use super::{Id, MAX_BYTES, MAX_MARKS, MAX_NODES, MAX_STACK, Node, Object, Pickle, PickleError, opcode};

/// Reads one pickle. Bytes after its end are ignored, as Python does.
pub(in crate::import) fn read(bytes: &[u8]) -> Result<Pickle, PickleError> {
    let mut machine = Machine::new(bytes);
    if bytes.len() as u64 > MAX_BYTES {
        return Err(machine.too_many("bytes", MAX_BYTES as usize));
    }
    loop {
        if let Some(root) = machine.step()? {
            return Ok(Pickle { nodes: machine.nodes, root });
        }
    }
}

/// Values that cannot change are made once.
const NONE: Id = Id(0);
const FALSE: Id = Id(1);
const TRUE: Id = Id(2);
const EMPTY_TUPLE: Id = Id(3);

struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    /// Where the operation under way began, and its name.
    offset: usize,
    name: &'static str,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Stack heights at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

type Step<T = ()> = Result<T, PickleError>;

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let nodes = vec![Node::None, Node::Bool(false), Node::Bool(true), Node::Tuple(Vec::new())];
        Self {
            bytes,
            position: 0,
            offset: 0,
            name: "PROTO",
            nodes,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
    }

    /// One operation; the pickle's value at its end.
    fn step(&mut self) -> Step<Option<Id>> {
        self.offset = self.position;
        let code = self.take(1)?[0];
        let Some(name) = opcode::name(code) else {
            return Err(PickleError::UnknownOpcode { opcode: code, offset: self.offset });
        };
        self.name = name;
        match code {
            b'.' => {
                let root = self.pop()?;
                return if self.stack.is_empty() && self.marks.is_empty() {
                    Ok(Some(root))
                } else {
                    Err(self.invalid("values are left on the stack"))
                };
            }
            0x80 => {
                if self.take(1)?[0] > 5 {
                    return Err(self.invalid("the protocol is newer than 5"));
                }
            }
            0x95 => {
                self.take(8)?; // a frame's length; reading goes on across frames
            }
            b'(' => {
                if self.marks.len() == MAX_MARKS {
                    return Err(self.too_many("collections within each other", MAX_MARKS));
                }
                self.marks.push(self.stack.len());
            }
            b'0' => {
                // On an open mark, POP takes the mark away.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push_id(top)?;
            }
            b'p' | b'q' | b'r' | 0x94 | b'g' | b'h' | b'j' => self.memo(code)?,
            b'N' => self.push_id(NONE)?,
            0x88 => self.push_id(TRUE)?,
            0x89 => self.push_id(FALSE)?,
            b'I' | b'J' | b'K' | b'L' | b'M' | b'F' | b'G' | 0x8a | 0x8b => self.number(code)?,
            b'V' | b'X' | 0x8c | 0x8d | b'S' | b'T' | b'U' | b'B' | b'C' | 0x8e | 0x96 => {
                self.string(code)?;
            }
            b'}' | b']' | b')' | b'd' | b'l' | b't' | 0x85..=0x87 | 0x8f | 0x91 => self.collection(code)?,
            b'a' | b'e' | b's' | b'u' | 0x90 => self.add(code)?,
            b'c' | 0x93 | b'R' | 0x81 | 0x92 | b'i' | b'o' | b'b' | b'P' | b'Q' => self.object(code)?,
            _ => return Err(PickleError::Refused { name, offset: self.offset }),
        }
        Ok(None)
    }

    fn memo(&mut self, code: u8) -> Step {
        let key = match code {
            b'p' | b'g' => match self.line()?.parse() {
                Ok(key) => key,
                Err(_) => return Err(self.invalid("expected a decimal number")),
            },
            b'q' | b'h' => u32::from(self.take(1)?[0]),
            b'r' | b'j' => self.u32()?,
            _ => self.memo.len() as u32,
        };
        if matches!(code, b'g' | b'h' | b'j') {
            match self.memo.get(&key) {
                Some(&id) => self.push_id(id),
                None => Err(self.invalid("nothing was stored under this number")),
            }
        } else {
            let top = self.top()?;
            if self.memo.len() == MAX_STACK && !self.memo.contains_key(&key) {
                return Err(self.too_many("stored values", MAX_STACK));
            }
            self.memo.insert(key, top);
            Ok(())
        }
    }

    fn number(&mut self, code: u8) -> Step {
        let node = match code {
            b'J' => Node::Int(i64::from(self.u32()?.cast_signed())),
            b'K' => Node::Int(i64::from(self.take(1)?[0])),
            b'M' => {
                let b = self.take(2)?;
                Node::Int(i64::from(u16::from_le_bytes([b[0], b[1]])))
            }
            b'G' => {
                let b = self.take(8)?;
                Node::Float(f64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
            }
            b'F' => match self.line()?.parse() {
                Ok(value) => Node::Float(value),
                Err(_) => return Err(self.invalid("expected a number")),
            },
            b'I' | b'L' => match self.line()? {
                "00" => Node::Bool(false),
                "01" => Node::Bool(true),
                text => match text.strip_suffix('L').unwrap_or(text).parse() {
                    Ok(value) => Node::Int(value),
                    Err(e)
                        if matches!(
                            e.kind(),
                            std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow
                        ) =>
                    {
                        Node::BigInt
                    }
                    Err(_) => return Err(self.invalid("expected an integer")),
                },
            },
            _ => {
                let length = if code == 0x8a { usize::from(self.take(1)?[0]) } else { self.u32()? as usize };
                let bytes = self.take(length)?;
                if length > 8 {
                    Node::BigInt
                } else {
                    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
                    let mut all = [if negative { 0xff } else { 0 }; 8];
                    all[..length].copy_from_slice(bytes);
                    Node::Int(i64::from_le_bytes(all))
                }
            }
        };
        self.push(node)
    }

    fn string(&mut self, code: u8) -> Step {
        let bytes = match code {
            b'V' | b'S' => {
                let text = self.line()?;
                let quoted = |q: char| text.strip_prefix(q).and_then(|t| t.strip_suffix(q));
                let inner = if code == b'V' { Some(text) } else { quoted('\'').or_else(|| quoted('"')) };
                match inner.filter(|t| !t.contains('\\')) {
                    Some(text) => text.as_bytes(),
                    None => return Err(self.invalid("text with escapes is not supported")),
                }
            }
            b'C' | b'U' | 0x8c => {
                let length = usize::from(self.take(1)?[0]);
                self.take(length)?
            }
            b'X' | b'T' | b'B' => {
                let length = self.u32()? as usize;
                self.take(length)?
            }
            _ => {
                let b = self.take(8)?;
                let length = u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
                self.take(usize::try_from(length).unwrap_or(usize::MAX))?
            }
        };
        let node = match (code, std::str::from_utf8(bytes)) {
            (b'B' | b'C' | 0x8e | 0x96, _) => Node::Bytes(bytes.to_vec()),
            (_, Ok(text)) => Node::Str(text.to_owned()),
            (b'S' | b'T' | b'U', Err(_)) => Node::Bytes(bytes.to_vec()),
            // Python allows lone surrogates in texts; nothing that is looked at holds any.
            (_, Err(_)) => Node::Str(String::from_utf8_lossy(bytes).into_owned()),
        };
        self.push(node)
    }

    fn collection(&mut self, code: u8) -> Step {
        let node = match code {
            b'}' => Node::Dict(Vec::new()),
            b']' => Node::List(Vec::new()),
            b')' => return self.push_id(EMPTY_TUPLE),
            0x8f => Node::Set(Vec::new()),
            b'd' => {
                let flat = self.pop_mark()?;
                Node::Dict(self.pairs(&flat)?)
            }
            b'l' => Node::List(self.pop_mark()?),
            b't' => Node::Tuple(self.pop_mark()?),
            0x91 => Node::Set(self.pop_mark()?),
            _ => {
                let count = usize::from(code - 0x84);
                let from = self.stack.len().checked_sub(count).filter(|&n| n >= self.floor());
                match from {
                    Some(from) => Node::Tuple(self.stack.split_off(from)),
                    None => return Err(self.invalid("the stack holds too few values")),
                }
            }
        };
        self.push(node)
    }

    /// Adds elements or items to the collection or object below them.
    fn add(&mut self, code: u8) -> Step {
        let values = match code {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_mark()?,
        };
        let target = self.top()?;
        if matches!(code, b's' | b'u') {
            let pairs = self.pairs(&values)?;
            match &mut self.nodes[target.0 as usize] {
                Node::Dict(items) => items.extend(pairs),
                Node::Object(object) => object.items.extend(pairs),
                _ => return Err(self.invalid("expected a dict or an object to set items of")),
            }
        } else {
            match &mut self.nodes[target.0 as usize] {
                Node::List(elements) if code != 0x90 => elements.extend(values),
                Node::Set(elements) if code == 0x90 => elements.extend(values),
                Node::Object(object) => object.elements.extend(values),
                _ => return Err(self.invalid("expected a collection or an object to append to")),
            }
        }
        Ok(())
    }

    fn object(&mut self, code: u8) -> Step {
        let node = match code {
            b'c' => self.global()?,
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |id: Id| matches!(self.nodes[id.0 as usize], Node::Str(_));
                if !text(module) || !text(name) {
                    return Err(self.invalid("expected module and name as strings"));
                }
                Node::Global { module, name }
            }
            b'P' => {
                let text = self.line()?.to_owned();
                self.push(Node::Str(text))?;
                Node::Persistent(self.pop()?)
            }
            b'Q' => Node::Persistent(self.pop()?),
            b'b' => return self.build(),
            b'i' => {
                let args = self.pop_mark()?;
                let class = self.global()?;
                self.push(class)?;
                self.push(Node::Tuple(args))?;
                self.call()?
            }
            b'o' => {
                let mut args = self.pop_mark()?;
                if args.is_empty() {
                    return Err(self.invalid("expected a class"));
                }
                let class = args.remove(0);
                self.push_id(class)?;
                self.push(Node::Tuple(args))?;
                self.call()?
            }
            0x92 => {
                // Keyword arguments follow the others as one more argument.
                let (keywords, args) = (self.pop()?, self.pop()?);
                let Node::Tuple(args) = &self.nodes[args.0 as usize] else {
                    return Err(self.invalid("expected a tuple of arguments"));
                };
                if args.len() > 16 {
                    return Err(self.invalid("expected at most 16 arguments"));
                }
                let args = args.iter().copied().chain([keywords]).collect();
                self.push(Node::Tuple(args))?;
                self.call()?
            }
            _ => self.call()?,
        };
        self.push(node)
    }

    /// Module and name on two lines.
    fn global(&mut self) -> Step<Node> {
        for _ in 0..2 {
            let text = self.line()?.to_owned();
            self.push(Node::Str(text))?;
        }
        let (name, module) = (self.pop()?, self.pop()?);
        Ok(Node::Global { module, name })
    }

    fn call(&mut self) -> Step<Node> {
        let (args, callable) = (self.pop()?, self.pop()?);
        if !matches!(self.nodes[args.0 as usize], Node::Tuple(_)) {
            return Err(self.invalid("expected a tuple of arguments"));
        }
        let object = Object { callable, args, state: None, items: Vec::new(), elements: Vec::new() };
        Ok(Node::Object(Box::new(object)))
    }

    fn build(&mut self) -> Step {
        let state = self.pop()?;
        let target = self.top()?;
        match &mut self.nodes[target.0 as usize] {
            Node::Object(object) => object.state = Some(state),
            _ => return Err(self.invalid("expected an object to set the state of")),
        }
        Ok(())
    }

    fn pairs(&self, flat: &[Id]) -> Step<Vec<(Id, Id)>> {
        if !flat.len().is_multiple_of(2) {
            return Err(self.invalid("a key has no value"));
        }
        Ok(flat.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    /// Stack height below which the operation under way may not reach.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Step<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => Err(self.invalid("the stack holds too few values")),
        }
    }

    fn pop(&mut self) -> Step<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => Err(self.invalid("no mark is open")),
        }
    }

    fn push(&mut self, node: Node) -> Step {
        if self.nodes.len() == MAX_NODES {
            return Err(self.too_many("values", MAX_NODES));
        }
        let id = Id(self.nodes.len() as u32);
        self.nodes.push(node);
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Step {
        if self.stack.len() == MAX_STACK {
            return Err(self.too_many("values on the stack", MAX_STACK));
        }
        self.stack.push(id);
        Ok(())
    }

    fn take(&mut self, count: usize) -> Step<&'a [u8]> {
        let rest = &self.bytes[self.position..];
        match rest.get(..count) {
            Some(taken) => {
                self.position += count;
                Ok(taken)
            }
            None => Err(PickleError::Truncated { offset: self.bytes.len() }),
        }
    }

    fn u32(&mut self) -> Step<u32> {
        let b = self.take(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// Text up to the next line break.
    fn line(&mut self) -> Step<&'a str> {
        let rest = &self.bytes[self.position..];
        let Some(length) = rest.iter().position(|&b| b == b'\n') else {
            return Err(PickleError::Truncated { offset: self.bytes.len() });
        };
        self.position += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| self.invalid("expected UTF-8"))
    }

    fn invalid(&self, problem: &'static str) -> PickleError {
        PickleError::Invalid { name: self.name, offset: self.offset, problem }
    }

    fn too_many(&self, what: &'static str, limit: usize) -> PickleError {
        PickleError::TooMany { what, limit, offset: self.offset }
    }
}
