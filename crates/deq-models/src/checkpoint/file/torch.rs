//! The tensors that a pickle of PyTorch describes, by their path through dictionaries, lists and
//! modules.

use super::pickle::{Id, Object, Pickle, Value};
use super::{BOOL, ElementType, MAX_NAME, MAX_RANK, Storage, Stored, View, check_rank};
use crate::checkpoint::printable;
use burn::tensor::DType;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The deepest nesting that is followed.
const MAX_DEPTH: usize = 100;

/// The most values that are visited. Values may be shared, so paths may be many more than values.
const MAX_VISITS: usize = 4 << 20;

/// The most bytes that the names of all tensors may have together.
const MAX_NAMES: usize = 64 << 20;

/// What identifiers outside the pickle stand for.
pub(super) enum Leaves<'k> {
    /// Storages, by their keys.
    Storages(&'k HashMap<String, usize>),
    /// Whole tensors, by their keys.
    Tensors(&'k HashMap<String, Stored>),
}

/// A storage as a pickle mentions it: `('storage', type, key, location, elements, view)`.
pub(super) struct Mention {
    pub(super) key: String,
    /// Not of an untyped storage.
    pub(super) element: Option<ElementType>,
    pub(super) elements: usize,
    /// Where a view begins, in files of before PyTorch 0.4.
    offset: usize,
}

impl Mention {
    pub(super) fn read(pickle: &Pickle<'_>, identifier: Id) -> Option<Self> {
        let fields = pickle.sequence(identifier)?;
        let [tag, class, key, _, elements, view @ ..] = fields else {
            return None;
        };
        if !matches!(pickle.get(*tag), Value::Str("storage")) {
            return None;
        }
        let class = match pickle.get(*class) {
            Value::Global(_, name) | Value::Str(name) => *name,
            _ => return None,
        };
        let view = view.first().and_then(|view| pickle.sequence(*view));
        let offset = match view {
            Some([_, offset, _]) => pickle.count(*offset)?,
            _ => 0,
        };
        Some(Self {
            key: pickle.key(*key)?,
            element: (class != "UntypedStorage").then(|| storage_element(class)),
            elements: pickle.count(*elements)?,
            offset,
        })
    }

    /// Bytes of one element, if the type is known.
    pub(super) fn element_size(&self) -> Option<usize> {
        match &self.element {
            None => Some(1),
            Some(ElementType::Known(dtype)) => Some(dtype.size()),
            // Two numbers each, or a byte: files of before PyTorch 1.6 need the size to find what
            // comes after.
            Some(ElementType::Unknown(name)) => match name.as_str() {
                "complex128" => Some(16),
                "complex64" => Some(8),
                "qint32" => Some(4),
                "qint8" | "quint8" => Some(1),
                _ => None,
            },
        }
    }
}

/// The tensors below the root of a pickle.
pub(super) fn tensors(
    pickle: &Pickle<'_>,
    leaves: &Leaves<'_>,
    storages: &[Storage],
) -> Result<BTreeMap<String, Stored>, String> {
    let mut walk = Walk {
        pickle,
        leaves,
        storages,
        found: BTreeMap::new(),
        path: Vec::new(),
        open: Vec::new(),
        visits: 0,
        names: 0,
    };
    walk.visit(pickle.root())?;
    match walk.found.is_empty() {
        true => Err(format!(
            "it holds {}, but no tensors",
            described(pickle, pickle.root())
        )),
        false => Ok(walk.found),
    }
}

/// What a value is, for messages.
pub(super) fn described(pickle: &Pickle<'_>, id: Id) -> String {
    match pickle.get(id) {
        Value::None => "None".to_owned(),
        Value::Bool(_) | Value::Int(_) | Value::Other => "a number or bytes".to_owned(),
        Value::Str(_) => "a text".to_owned(),
        Value::Tuple(_) => "a tuple".to_owned(),
        Value::List(_) => "a list".to_owned(),
        Value::Dict(_) => "a dictionary".to_owned(),
        Value::Global(module, name) => {
            format!("the name {}", printable(&format!("{module}.{name}")))
        }
        Value::Persistent(_) => "a reference".to_owned(),
        Value::Object(object) => match pickle.get(object.callable) {
            Value::Global(module, name) => {
                format!("an object of {}", printable(&format!("{module}.{name}")))
            }
            _ => "an object".to_owned(),
        },
    }
}

const NESTED: &str = "its dictionaries are nested beyond all measure";

struct Walk<'p, 'a> {
    pickle: &'p Pickle<'a>,
    leaves: &'p Leaves<'p>,
    storages: &'p [Storage],
    found: BTreeMap<String, Stored>,
    path: Vec<String>,
    /// The values that the path leads through: an object may contain itself.
    open: Vec<Id>,
    visits: usize,
    names: usize,
}

impl<'p, 'a> Walk<'p, 'a> {
    fn visit(&mut self, id: Id) -> Result<(), String> {
        self.charge(1)?;
        if self.open.len() > MAX_DEPTH {
            return Err(NESTED.to_owned());
        }
        if self.open.contains(&id) {
            return Ok(());
        }
        self.open.push(id);
        match self.pickle.get(id) {
            Value::Dict(items) => self.items(items)?,
            Value::List(elements) | Value::Tuple(elements) => self.elements(elements)?,
            Value::Object(object) => self.object(object)?,
            Value::Persistent(identifier) => {
                if let Leaves::Tensors(tensors) = self.leaves {
                    let key = self.pickle.key(*identifier);
                    let tensor = key.and_then(|key| tensors.get(&key));
                    let tensor = tensor.ok_or("it refers to a tensor that is not there")?;
                    self.add(tensor.clone())?;
                }
            }
            _ => {}
        }
        self.open.pop();
        Ok(())
    }

    /// Counts values that are looked at.
    fn charge(&mut self, values: usize) -> Result<(), String> {
        self.visits += values;
        match self.visits > MAX_VISITS {
            true => Err(NESTED.to_owned()),
            false => Ok(()),
        }
    }

    fn items(&mut self, items: &[(Id, Id)]) -> Result<(), String> {
        self.charge(items.len())?;
        for &(key, value) in items {
            // Dictionaries by other objects hold the state of optimisers, which nothing here reads.
            if let Some(key) = self.pickle.key(key) {
                self.named(key, value)?;
            }
        }
        Ok(())
    }

    fn elements(&mut self, elements: &'p [Id]) -> Result<(), String> {
        self.charge(elements.len())?;
        for (position, &element) in elements.iter().enumerate() {
            // Numbers, of which there may be many, need no path.
            if matches!(self.pickle.get(element), Value::Int(_) | Value::Other) {
                continue;
            }
            self.named(position.to_string(), element)?;
        }
        Ok(())
    }

    fn named(&mut self, name: String, value: Id) -> Result<(), String> {
        self.path.push(name);
        self.visit(value)?;
        self.path.pop();
        Ok(())
    }

    fn add(&mut self, tensor: Stored) -> Result<(), String> {
        let name = self.path.join(".");
        self.names += name.len();
        if name.len() > MAX_NAME || self.names > MAX_NAMES {
            return Err(format!(
                "the name {} is longer than {MAX_NAME} bytes, \
                 or all names are longer than {MAX_NAMES}",
                printable(&name)
            ));
        }
        // What comes last counts, as in Python's dictionaries.
        self.found.insert(name, tensor);
        Ok(())
    }

    fn object(&mut self, object: &'p Object) -> Result<(), String> {
        let arguments = self.pickle.sequence(object.arguments).unwrap_or_default();
        let global = match self.pickle.get(object.callable) {
            Value::Global(module, name) => (*module, *name),
            _ => ("", ""),
        };
        match (global, arguments) {
            (
                ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"),
                [data, ..],
            ) => {
                return self.visit(*data);
            }
            // A subclass of tensors: the call that makes the plain tensor, and its arguments.
            (("torch._tensor", "_rebuild_from_type_v2"), [function, _, inner, ..]) => {
                let inner = self.pickle.sequence(*inner).unwrap_or_default();
                if let Value::Global(_, name) = self.pickle.get(*function) {
                    return self.tensor(name, inner);
                }
            }
            ((_, "set" | "frozenset"), [elements]) => {
                self.elements(self.pickle.sequence(*elements).unwrap_or_default())?;
            }
            ((module, name), _) if module.starts_with("torch") && name.starts_with("_rebuild") => {
                return self.tensor(name, arguments);
            }
            _ => {}
        }
        self.items(&self.entries_of(object))?;
        self.elements(&object.elements)?;
        match object.state {
            Some(state) => self.state(state),
            None => Ok(()),
        }
    }

    /// The attributes of an object. Those of a module are read as its state dict would name them.
    fn state(&mut self, state: Id) -> Result<(), String> {
        let pickle = self.pickle;
        self.charge(self.entries(state).len())?;
        let attribute = |name: &str| {
            let Value::Dict(items) = pickle.get(state) else {
                return None;
            };
            let mut found = items.iter().rev();
            let found =
                found.find(|(key, _)| matches!(pickle.get(*key), Value::Str(k) if *k == name));
            found.map(|(_, value)| *value)
        };
        let tables = ["_parameters", "_buffers", "_modules"].map(attribute);
        let [Some(parameters), Some(buffers), Some(modules)] = tables else {
            return self.visit(state);
        };
        // Buffers that a module makes anew are not in its state dict.
        let transient = match attribute("_non_persistent_buffers_set") {
            Some(set) => self.texts(set)?,
            None => HashSet::new(),
        };
        self.items(&self.entries(parameters))?;
        let buffers = self.entries(buffers);
        self.charge(buffers.len())?;
        for &(key, value) in buffers.iter() {
            match pickle.key(key) {
                Some(key) if !transient.contains(&key) => self.named(key, value)?,
                _ => {}
            }
        }
        self.items(&self.entries(modules))
    }

    /// The entries of a dictionary, ordered or not.
    fn entries(&self, id: Id) -> Cow<'p, [(Id, Id)]> {
        match self.pickle.get(id) {
            Value::Dict(items) => items.into(),
            Value::Object(object) => self.entries_of(object),
            _ => Cow::default(),
        }
    }

    /// The entries that an object was given; Python 2 makes an ordered dictionary from a list of
    /// them.
    fn entries_of(&self, object: &'p Object) -> Cow<'p, [(Id, Id)]> {
        let arguments = self.pickle.sequence(object.arguments).unwrap_or_default();
        let (Value::Global("collections", "OrderedDict"), [pairs]) =
            (self.pickle.get(object.callable), arguments)
        else {
            return (&object.items).into();
        };
        let pairs = self.pickle.sequence(*pairs).unwrap_or_default().iter();
        let pairs = pairs.filter_map(|&pair| match self.pickle.sequence(pair) {
            Some([key, value]) => Some((*key, *value)),
            _ => None,
        });
        pairs.chain(object.items.iter().copied()).collect()
    }

    /// The texts of a set, in whichever way the pickle makes one.
    fn texts(&mut self, id: Id) -> Result<HashSet<String>, String> {
        let elements = match self.pickle.get(id) {
            Value::Object(object) => {
                let arguments = self.pickle.sequence(object.arguments).unwrap_or_default();
                arguments
                    .first()
                    .and_then(|list| self.pickle.sequence(*list))
            }
            _ => self.pickle.sequence(id),
        };
        let elements = elements.unwrap_or_default();
        self.charge(elements.len())?;
        let texts = elements.iter().filter_map(|&text| self.pickle.key(text));
        Ok(texts.collect())
    }

    /// A call of one of PyTorch's functions that make tensors.
    fn tensor(&mut self, function: &str, arguments: &[Id]) -> Result<(), String> {
        let stored = self.stored(function, arguments).map_err(|reason| {
            let name = self.path.join(".");
            format!("{}: {reason}", printable(&name))
        })?;
        self.add(stored)
    }

    fn stored(&self, function: &str, arguments: &[Id]) -> Result<Stored, String> {
        let pickle = self.pickle;
        let (typed, least) = match function {
            "_rebuild_tensor" => (None, 4),
            "_rebuild_tensor_v2" => (None, 6),
            "_rebuild_tensor_v3" => (arguments.get(6), 7),
            // Sparse, quantised, nested, without numbers.
            _ => {
                let name = function.trim_start_matches("_rebuild_");
                return Ok(Stored::unknown(name, Vec::new()));
            }
        };
        if arguments.len() < least {
            return Err(format!("{function} lacks arguments"));
        }
        let [storage, offset, shape, strides, ..] = arguments else {
            return Err(format!("{function} lacks arguments"));
        };
        let numbers = |id: Id| -> Option<Vec<usize>> {
            let numbers = pickle.sequence(id)?;
            let numbers = numbers.get(..numbers.len().min(MAX_RANK + 1))?;
            numbers.iter().map(|&number| pickle.count(number)).collect()
        };
        let (Some(offset), Some(shape), Some(strides)) =
            (pickle.count(*offset), numbers(*shape), numbers(*strides))
        else {
            return Err("its shape is not made of numbers from 0 on".to_owned());
        };
        check_rank(&shape)?;
        let Value::Persistent(identifier) = pickle.get(*storage) else {
            return Err("its numbers are not stored in the file as torch.save does".to_owned());
        };
        let mention = Mention::read(pickle, *identifier);
        let mention = mention.ok_or("its storage is not described as PyTorch does")?;
        let element = match typed.map(|&class| pickle.get(class)) {
            Some(Value::Global(_, name)) => torch_element(name),
            _ => match mention.element {
                Some(element) => element,
                None => return Err("the type of its numbers is not said".to_owned()),
            },
        };
        let ElementType::Known(dtype) = element else {
            return Ok(Stored {
                shape,
                element,
                view: None,
            });
        };
        // A flag here means that the numbers are stored with the other sign, or conjugated.
        let flags = arguments.get(least).map(|&flags| self.entries(flags));
        if !flags.unwrap_or_default().is_empty() {
            return Ok(Stored::unknown("view with the other sign", shape));
        }
        let Leaves::Storages(keys) = self.leaves else {
            return Err("its numbers are not stored in the file as torch.save does".to_owned());
        };
        let storage = keys
            .get(&mention.key)
            .copied()
            .ok_or_else(|| format!("its storage {} is not in the file", printable(&mention.key)))?;
        let offset = offset.checked_add(mention.offset);
        let view = View {
            storage,
            offset: offset.ok_or("its numbers lie beyond all bounds")?,
            strides,
        };
        Stored::new(shape, dtype, view, self.storages)
    }
}

/// The element type of a class of storages.
fn storage_element(class: &str) -> ElementType {
    ElementType::Known(match class {
        "DoubleStorage" => DType::F64,
        "FloatStorage" => DType::F32,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ShortStorage" => DType::I16,
        "CharStorage" => DType::I8,
        "ByteStorage" => DType::U8,
        "BoolStorage" => BOOL,
        _ => {
            return ElementType::Unknown(match class {
                "ComplexFloatStorage" => "complex64".to_owned(),
                "ComplexDoubleStorage" => "complex128".to_owned(),
                "QInt8Storage" => "qint8".to_owned(),
                "QUInt8Storage" => "quint8".to_owned(),
                "QInt32Storage" => "qint32".to_owned(),
                other => other.to_owned(),
            });
        }
    })
}

/// The element type that PyTorch calls `torch.NAME`.
fn torch_element(name: &str) -> ElementType {
    ElementType::Known(match name {
        "float64" | "double" => DType::F64,
        "float32" | "float" => DType::F32,
        "float16" | "half" => DType::F16,
        "bfloat16" => DType::BF16,
        "int64" | "long" => DType::I64,
        "int32" | "int" => DType::I32,
        "int16" | "short" => DType::I16,
        "int8" => DType::I8,
        "uint64" => DType::U64,
        "uint32" => DType::U32,
        "uint16" => DType::U16,
        "uint8" => DType::U8,
        "bool" => BOOL,
        other => return ElementType::Unknown(other.to_owned()),
    })
}

/// The element type of a storage by its class, for files that keep it apart.
pub(super) fn class_element(pickle: &Pickle<'_>, class: Id) -> Option<ElementType> {
    match pickle.get(class) {
        Value::Global(_, name) => Some(storage_element(name)),
        _ => None,
    }
}
