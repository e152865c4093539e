//! Files as PyTorch and safetensors write them, byte by byte, so that they can also be wrong.

use burn::tensor::{DType, TensorData};
use std::io::{Cursor, Write};
use std::path::PathBuf;
use tempfile::TempDir;
use zip::CompressionMethod;
use zip::write::SimpleFileOptions;

pub(super) const ORDERED_DICT: &[u8] = b"ccollections\nOrderedDict\n)R";

/// A file of these bytes, in a folder that lives as long as the result.
pub(super) fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pth");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// A pickle of protocol 2 that is being written, and the storages that it mentions.
#[derive(Clone, Default)]
pub(super) struct Torch {
    pub(super) pickle: Vec<u8>,
    /// The class and the bytes of each.
    pub(super) storages: Vec<(&'static str, Vec<u8>)>,
}

/// How a tensor lies in a storage.
pub(super) struct View<'v> {
    pub(super) storage: usize,
    pub(super) elements: usize,
    pub(super) offset: usize,
    pub(super) shape: &'v [usize],
    pub(super) strides: &'v [usize],
}

impl Torch {
    pub(super) fn new() -> Self {
        Self {
            pickle: vec![0x80, 2],
            storages: Vec::new(),
        }
    }

    /// A state dict and nothing else.
    pub(super) fn state_dict(tensors: &[(String, TensorData)]) -> Self {
        let mut torch = Self::new();
        torch.dict(|torch| torch.entries(tensors));
        torch
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.pickle.extend(bytes);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.pickle.push(b'X');
        self.pickle.extend((text.len() as u32).to_le_bytes());
        self.pickle.extend(text.as_bytes());
    }

    pub(super) fn int(&mut self, value: usize) {
        self.pickle.extend([0x8a, 8]);
        self.pickle.extend((value as i64).to_le_bytes());
    }

    pub(super) fn ints(&mut self, values: &[usize]) {
        self.pickle.push(b'(');
        values.iter().for_each(|&value| self.int(value));
        self.pickle.push(b't');
    }

    /// An ordered dictionary with what `items` writes, key and value in turn.
    pub(super) fn dict(&mut self, items: impl FnOnce(&mut Self)) {
        self.raw(ORDERED_DICT);
        self.pickle.push(b'(');
        items(self);
        self.pickle.push(b'u');
    }

    pub(super) fn entries(&mut self, tensors: &[(String, TensorData)]) {
        for (name, data) in tensors {
            self.text(name);
            self.tensor(data);
        }
    }

    pub(super) fn tensor(&mut self, data: &TensorData) {
        let class = match data.dtype() {
            DType::F64 => "DoubleStorage",
            DType::F32 => "FloatStorage",
            DType::F16 => "HalfStorage",
            DType::I64 => "LongStorage",
            other => panic!("no class for {other:?}"),
        };
        let shape = data.shape().to_vec();
        let strides: Vec<usize> = (0..shape.len())
            .map(|axis| shape[axis + 1..].iter().product())
            .collect();
        let storage = self.storages.len();
        self.storages.push((class, data.as_bytes().to_vec()));
        self.view(&View {
            storage,
            elements: data.num_elements(),
            offset: 0,
            shape: &shape,
            strides: &strides,
        });
    }

    /// `torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, False, OrderedDict())`.
    pub(super) fn view(&mut self, view: &View<'_>) {
        self.raw(b"ctorch._utils\n_rebuild_tensor_v2\n(");
        self.reference(view);
        self.raw(b"\x89");
        self.raw(ORDERED_DICT);
        self.raw(b"tR");
    }

    /// The first four arguments of the functions that make tensors.
    pub(super) fn reference(&mut self, view: &View<'_>) {
        self.raw(b"(");
        self.text("storage");
        let class = self.storages[view.storage].0;
        self.raw(format!("ctorch\n{class}\n").as_bytes());
        self.text(&view.storage.to_string());
        self.text("cpu");
        self.int(view.elements);
        self.raw(b"tQ");
        self.int(view.offset);
        self.ints(view.shape);
        self.ints(view.strides);
    }

    /// As `torch.save` writes it: a zip archive with the pickle and a member for each storage.
    pub(super) fn zip(mut self, compression: CompressionMethod) -> Vec<u8> {
        self.pickle.push(b'.');
        let mut members = vec![("data.pkl".to_owned(), self.pickle)];
        members.push(("byteorder".to_owned(), b"little".to_vec()));
        members.push(("version".to_owned(), b"3\n".to_vec()));
        let storages = self.storages.into_iter().enumerate();
        members.extend(storages.map(|(key, (_, bytes))| (format!("data/{key}"), bytes)));
        archive(&members, compression)
    }

    /// As `torch.save` wrote it before PyTorch 1.6: pickles, then storages.
    pub(super) fn legacy(mut self) -> Vec<u8> {
        let mut out = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
        out.extend(b"\x80\x02}(X\x0d\0\0\0little_endian\x88u.");
        self.pickle.push(b'.');
        out.extend(&self.pickle);
        let mut keys = Self::new();
        keys.raw(b"](");
        (0..self.storages.len()).for_each(|key| keys.text(&key.to_string()));
        keys.raw(b"e.");
        out.extend(keys.pickle);
        for (class, bytes) in self.storages {
            let size = match class {
                "DoubleStorage" | "LongStorage" => 8,
                "HalfStorage" => 2,
                _ => 4,
            };
            out.extend((bytes.len() as u64 / size).to_le_bytes());
            out.extend(bytes);
        }
        out
    }
}

pub(super) fn archive(members: &[(String, Vec<u8>)], compression: CompressionMethod) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(compression);
    for (name, bytes) in members {
        archive
            .start_file(format!("archive/{name}"), options)
            .unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// As PyTorch wrote it before 0.1.10: a tar archive of pickles and numbers in turn.
pub(super) fn tar(tensors: &[(String, TensorData)]) -> Vec<u8> {
    let pickle = |write: &dyn Fn(&mut Torch)| {
        let mut torch = Torch::new();
        write(&mut torch);
        torch.raw(b".");
        torch.pickle
    };
    let mut storages = pickle(&|torch| torch.int(tensors.len()));
    let mut described = storages.clone();
    for (key, (_, data)) in tensors.iter().enumerate() {
        storages.extend(pickle(&|torch| {
            torch.raw(b"(");
            torch.int(100 + key);
            torch.text("cpu");
            torch.raw(b"ctorch\nDoubleStorage\nt");
        }));
        storages.extend((data.num_elements() as u64).to_le_bytes());
        storages.extend(data.as_bytes());
        described.extend(pickle(&|torch| {
            torch.raw(b"(");
            torch.int(key);
            torch.int(100 + key);
            torch.raw(b"ctorch\nDoubleTensor\nt");
        }));
        let shape = data.shape().to_vec();
        // Four bytes of rank, and four that mean nothing.
        described.extend((shape.len() as u32).to_le_bytes());
        described.extend([0xaa; 4]);
        let strides = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product());
        for number in shape.iter().copied().chain(strides).chain([0]) {
            described.extend((number as u64).to_le_bytes());
        }
    }
    storages.extend(pickle(&|torch| torch.raw(b"]")));
    let objects = pickle(&|torch| {
        torch.dict(|torch| {
            for (key, (name, _)) in tensors.iter().enumerate() {
                torch.text(name);
                torch.int(key);
                torch.raw(b"Q");
            }
        });
    });
    let system = pickle(&|torch| {
        torch.raw(b"}(");
        torch.text("little_endian");
        torch.raw(b"\x88u");
    });
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("sys_info", system),
        ("storages", storages),
        ("tensors", described),
        ("pickle", objects),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        archive.append_data(&mut header, name, &*bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

/// Safetensors with this header.
pub(super) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(data);
    out
}
