//! What a pickle describes, as data.
//!
//! A pickle is a program for a small stack machine that builds Python objects and may call any
//! function of any module. Here nothing is called: a call stays a value that says what would be
//! called with what. Objects that a pickle mentions several times are one value with several
//! references, so no pickle can make more values than it has instructions, and their number is
//! limited.

use super::MAX_NAME;
use std::collections::HashMap;

/// The longest pickle that is read, in bytes.
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// The most instructions that are followed. A state dict needs about fifteen for each tensor.
const MAX_INSTRUCTIONS: usize = 2 << 20;

/// A value of a [`Pickle`].
pub(super) type Id = u32;

/// A Python object, as far as state dicts are made of it.
#[derive(Debug)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Str(&'a str),
    /// Floats, bytes, wide integers.
    Other,
    Tuple(Vec<Id>),
    /// A set too.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or a function: its module and its name.
    Global(&'a str, &'a str),
    /// What lies outside the pickle, under an identifier.
    Persistent(Id),
    /// The result of a call.
    Object(Box<Object>),
}

/// The result of a call that is not carried out.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) callable: Id,
    pub(super) arguments: Id,
    /// Set like those of a dictionary.
    pub(super) items: Vec<(Id, Id)>,
    /// Appended like those of a list.
    pub(super) elements: Vec<Id>,
    /// Its attributes.
    pub(super) state: Option<Id>,
}

/// The values that a pickle describes.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: Id,
    /// Bytes up to the end of the pickle.
    pub(super) length: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle at the start of `bytes`.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        Machine {
            bytes,
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
        .run()
    }

    pub(super) fn root(&self) -> Id {
        self.root
    }

    pub(super) fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    /// Every value, in the order in which they were made.
    pub(super) fn values(&self) -> &[Value<'a>] {
        &self.values
    }

    /// The elements of a tuple or a list.
    pub(super) fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) | Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// The text of a key, if it is not too long to be one: PyTorch writes some as text, some as
    /// numbers.
    pub(super) fn key(&self, id: Id) -> Option<String> {
        match self.get(id) {
            Value::Str(text) if text.len() <= MAX_NAME => Some((*text).to_owned()),
            Value::Int(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// A number that counts something.
    pub(super) fn count(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn run(mut self) -> Result<Pickle<'a>, String> {
        for _ in 0..MAX_INSTRUCTIONS {
            if !self.step()? {
                let root = self.pop()?;
                return Ok(Pickle {
                    values: self.values,
                    root,
                    length: self.at,
                });
            }
        }
        Err(format!(
            "its pickle has more than {MAX_INSTRUCTIONS} instructions"
        ))
    }

    /// Follows one instruction; `false` at the end.
    fn step(&mut self) -> Result<bool, String> {
        let [code] = self.take_array()?;
        match code {
            b'.' => return Ok(false),
            // Protocol and frame say nothing that is needed.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),

            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'I' | b'L' => {
                let value = self.decimal()?;
                self.push(value);
            }
            b'J' => {
                let number = i32::from_le_bytes(self.take_array()?);
                self.push(Value::Int(number.into()));
            }
            b'K' => {
                let [number] = self.take_array()?;
                self.push(Value::Int(number.into()));
            }
            b'M' => {
                let number = u16::from_le_bytes(self.take_array()?);
                self.push(Value::Int(number.into()));
            }
            0x8a | 0x8b => {
                let bytes = self.counted(if code == 0x8a { 1 } else { 4 })?;
                self.push(integer(bytes));
            }
            b'F' => {
                self.line()?;
                self.push(Value::Other);
            }
            b'G' => {
                self.take(8)?;
                self.push(Value::Other);
            }

            b'V' => {
                let text = self.line()?;
                // Escapes do not occur in names of tensors.
                self.push_text(if text.contains(&b'\\') { b"\xff" } else { text });
            }
            0x8c | b'U' => self.text(1)?,
            b'X' | b'T' => self.text(4)?,
            0x8d => self.text(8)?,
            b'S' => {
                let line = self.line()?;
                let inner = line
                    .get(1..line.len().saturating_sub(1))
                    .unwrap_or_default();
                self.push_text(inner);
            }
            b'C' => self.bytes(1)?,
            b'B' => self.bytes(4)?,
            0x8e | 0x96 => self.bytes(8)?,

            b'(' => self.marks.push(self.stack.len()),
            b')' => self.push(Value::Tuple(Vec::new())),
            b']' | 0x8f => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items));
            }
            0x85..=0x87 => {
                let count = usize::from(code - 0x84);
                let items = self.pop_many(count)?;
                self.push(Value::Tuple(items));
            }
            b'l' | 0x91 => {
                let items = self.pop_to_mark()?;
                self.push(Value::List(items));
            }
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Dict(pairs(&items)?));
            }
            b'a' => {
                let items = self.pop_many(1)?;
                self.append(&items)?;
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.set_items(&items)?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)?;
            }

            b'0' => {
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'g' => {
                let index = self.index()?;
                self.recall(index)?;
            }
            b'h' => {
                let [index] = self.take_array()?;
                self.recall(index.into())?;
            }
            b'j' => {
                let index = u32::from_le_bytes(self.take_array()?);
                self.recall(index)?;
            }
            b'p' => {
                let index = self.index()?;
                self.remember(index)?;
            }
            b'q' => {
                let [index] = self.take_array()?;
                self.remember(index.into())?;
            }
            b'r' => {
                let index = u32::from_le_bytes(self.take_array()?);
                self.remember(index)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,

            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let global = Value::Global(as_text(module)?, as_text(name)?);
                self.push(global);
            }
            0x93 => {
                let [module, name] = self.pop_array()?;
                let (Value::Str(module), Value::Str(name)) =
                    (&self.values[module as usize], &self.values[name as usize])
                else {
                    return Err(damaged("a class without a name"));
                };
                let global = Value::Global(module, name);
                self.push(global);
            }
            b'P' => {
                let line = self.line()?;
                self.push_text(line);
                let id = self.pop()?;
                self.push(Value::Persistent(id));
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id));
            }
            b'R' | 0x81 => {
                let [callable, arguments] = self.pop_array()?;
                self.push(call(callable, arguments));
            }
            0x92 => {
                let [callable, arguments, _] = self.pop_array()?;
                self.push(call(callable, arguments));
            }
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                let global = Value::Global(as_text(module)?, as_text(name)?);
                let items = self.pop_to_mark()?;
                self.instance(global, items);
            }
            b'o' => {
                let items = self.pop_to_mark()?;
                let (&class, items) = items.split_first().ok_or_else(|| damaged("no class"))?;
                self.push(Value::Tuple(items.to_vec()));
                let arguments = self.pop()?;
                self.push(call(class, arguments));
            }
            b'b' => self.build()?,
            _ => {
                return Err(format!(
                    "its pickle has an unknown instruction, {code:#04x}"
                ));
            }
        }
        Ok(true)
    }

    fn instance(&mut self, global: Value<'a>, items: Vec<Id>) {
        let class = self.values.len() as Id;
        self.values.push(global);
        self.values.push(Value::Tuple(items));
        self.push(call(class, class + 1));
    }

    /// Sets the attributes of an object.
    fn build(&mut self) -> Result<(), String> {
        let state = self.pop()?;
        let top = self.top()? as usize;
        if let Value::Object(object) = &mut self.values[top] {
            object.state = Some(state);
        }
        Ok(())
    }

    fn append(&mut self, items: &[Id]) -> Result<(), String> {
        let top = self.top()? as usize;
        match &mut self.values[top] {
            Value::List(list) => list.extend(items),
            Value::Object(object) => object.elements.extend(items),
            _ => return Err(damaged("elements for something that is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), String> {
        let items = pairs(items)?;
        let top = self.top()? as usize;
        match &mut self.values[top] {
            Value::Dict(dict) => dict.extend(items),
            Value::Object(object) => object.items.extend(items),
            _ => return Err(damaged("items for something that is no dictionary")),
        }
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
    }

    fn push_text(&mut self, bytes: &'a [u8]) {
        // Python 2 has one type for text and for bytes.
        self.push(std::str::from_utf8(bytes).map_or(Value::Other, Value::Str));
    }

    fn text(&mut self, width: usize) -> Result<(), String> {
        let bytes = self.counted(width)?;
        self.push_text(bytes);
        Ok(())
    }

    fn bytes(&mut self, width: usize) -> Result<(), String> {
        self.counted(width)?;
        self.push(Value::Other);
        Ok(())
    }

    fn top(&self) -> Result<Id, String> {
        match self.stack.last() {
            Some(&top) if self.marks.last() != Some(&self.stack.len()) => Ok(top),
            _ => Err(damaged("a value is missing")),
        }
    }

    fn pop(&mut self) -> Result<Id, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_array<const N: usize>(&mut self) -> Result<[Id; N], String> {
        let mut items = [0; N];
        for item in items.iter_mut().rev() {
            *item = self.pop()?;
        }
        Ok(items)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>, String> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        Ok(items)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self
            .marks
            .pop()
            .ok_or_else(|| damaged("a mark is missing"))?;
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, index: u32) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), String> {
        let id = self.memo.get(&index);
        self.stack
            .push(*id.ok_or_else(|| damaged("a reference to nothing"))?);
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let rest: &'a [u8] = &self.bytes[self.at..];
        let taken = rest.get(..count).ok_or_else(|| damaged("it is cut off"))?;
        self.at += count;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// Bytes behind their number, which is itself `width` bytes wide.
    fn counted(&mut self, width: usize) -> Result<&'a [u8], String> {
        let mut count = [0; 8];
        count[..width].copy_from_slice(self.take(width)?);
        let count = usize::try_from(u64::from_le_bytes(count));
        self.take(count.map_err(|_| damaged("it is cut off"))?)
    }

    fn line(&mut self) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n');
        let line = self.take(end.ok_or_else(|| damaged("it is cut off"))?)?;
        self.at += 1;
        Ok(line.strip_suffix(b"\r").unwrap_or(line))
    }

    fn index(&mut self) -> Result<u32, String> {
        let line = as_text(self.line()?)?;
        line.parse().map_err(|_| damaged("a reference to nothing"))
    }

    fn decimal(&mut self) -> Result<Value<'a>, String> {
        let line = as_text(self.line()?)?;
        Ok(match line {
            "00" => Value::Bool(false),
            "01" => Value::Bool(true),
            _ => {
                let digits = line.strip_suffix('L').unwrap_or(line);
                digits.parse().map_or(Value::Other, Value::Int)
            }
        })
    }
}

fn call<'a>(callable: Id, arguments: Id) -> Value<'a> {
    Value::Object(Box::new(Object {
        callable,
        arguments,
        items: Vec::new(),
        elements: Vec::new(),
        state: None,
    }))
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, String> {
    let (pairs, []) = items.as_chunks::<2>() else {
        return Err(damaged("a key without a value"));
    };
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}

/// A number in two's complement, least significant byte first.
fn integer<'a>(bytes: &[u8]) -> Value<'a> {
    let sign = bytes
        .last()
        .map_or(0, |byte| if byte & 0x80 == 0 { 0 } else { 0xff });
    let mut number = [sign; 8];
    match number.get_mut(..bytes.len()) {
        Some(low) => {
            low.copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(number))
        }
        None => Value::Other,
    }
}

fn as_text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| damaged("a name that is not UTF-8"))
}

fn damaged(what: &str) -> String {
    format!("its pickle is damaged: {what}")
}
