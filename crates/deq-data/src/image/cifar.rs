//! CIFAR-10.

use super::dataset::{Example, ImageDataset, Target, VisionTask};
use super::files;
use super::raster::Picture;
use crate::error::DataError;
use std::path::{Path, PathBuf};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
/// A label and three planes.
const RECORD: usize = 1 + 3 * PLANE;
/// The names in `batches.meta.txt`.
const CLASSES: [&str; 10] = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
];

/// CIFAR-10, in memory from the official binary files, or picture by picture from a folder.
///
/// A folder may hold
///
/// - the official `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, or any `*.bin` of whole records whose names begin with `train` or
///   `test`: a byte with the label, then 1,024 bytes each of red, green and blue;
/// - or folders `train` and `test` of pictures named `INDEX_LABEL.jpg` (or `.png`), as in `00000_6.jpg`.
#[derive(Clone, Debug)]
pub struct Cifar10 {
    images: Images,
    classes: Vec<String>,
}

#[derive(Clone, Debug)]
enum Images {
    Records(Vec<u8>),
    Files(Vec<(PathBuf, u16)>),
}

impl Cifar10 {
    /// The training images of a folder.
    ///
    /// # Errors
    ///
    /// [`DataError`] if the folder holds none, or a file is not in the layout, each named with what would be right.
    pub fn train(folder: &Path) -> Result<Self, DataError> {
        Self::open(folder, "train", &["data_batch", "train"])
    }

    /// The test images of a folder.
    ///
    /// # Errors
    ///
    /// As [`train`](Self::train).
    pub fn test(folder: &Path) -> Result<Self, DataError> {
        Self::open(folder, "test", &["test"])
    }

    /// The images of binary files, in order.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] if one cannot be read, [`DataError::NotCifar`] if one is empty or not made of whole records, [`DataError::LabelOutOfRange`] for a label that
    /// is not below 10, [`DataError::NoImages`] without a file.
    pub fn from_files(paths: &[PathBuf]) -> Result<Self, DataError> {
        let mut records = Vec::new();
        for path in paths {
            let bytes = std::fs::read(path).map_err(|source| DataError::read(path, source))?;
            if bytes.is_empty() || bytes.len() % RECORD != 0 {
                return Err(DataError::NotCifar {
                    path: path.clone(),
                    bytes: bytes.len(),
                });
            }
            for record in bytes.chunks_exact(RECORD) {
                require_class(path, usize::from(record[0]))?;
            }
            records.extend(bytes);
        }
        if records.is_empty() {
            return Err(DataError::NoImages {
                path: PathBuf::new(),
                expected: "a list of CIFAR-10 files must not be empty",
            });
        }
        Ok(Self::new(Images::Records(records)))
    }

    fn open(folder: &Path, split: &str, prefixes: &[&str]) -> Result<Self, DataError> {
        if !folder.is_dir() {
            return Err(DataError::NoFolder {
                path: folder.to_owned(),
            });
        }
        let mut binary = files::with_ending(folder, &["bin"])?;
        binary.retain(|path| {
            let name = files::name(path);
            prefixes.iter().any(|prefix| name.starts_with(prefix))
        });
        if !binary.is_empty() {
            return Self::from_files(&binary);
        }
        let pictures = folder.join(split);
        let mut labelled = Vec::new();
        if pictures.is_dir() {
            for path in files::with_ending(&pictures, &["jpg", "jpeg", "png"])? {
                let label = label_in_name(&path)
                    .ok_or_else(|| DataError::NoLabelInName { path: path.clone() })?;
                require_class(&path, label)?;
                labelled.push((path, label as u16));
            }
        }
        if labelled.is_empty() {
            return Err(DataError::NoImages {
                path: folder.to_owned(),
                expected: "CIFAR-10 is data_batch_1.bin to data_batch_5.bin and test_batch.bin, or folders train and test with pictures named INDEX_LABEL.jpg",
            });
        }
        Ok(Self::new(Images::Files(labelled)))
    }

    fn new(images: Images) -> Self {
        Self {
            images,
            classes: CLASSES.map(str::to_owned).to_vec(),
        }
    }
}

fn require_class(path: &Path, label: usize) -> Result<(), DataError> {
    if label < CLASSES.len() {
        return Ok(());
    }
    Err(DataError::LabelOutOfRange {
        path: path.to_owned(),
        label,
        classes: CLASSES.len(),
    })
}

/// 6 of `00000_6.jpg`.
fn label_in_name(path: &Path) -> Option<usize> {
    let (_, label) = path.file_stem()?.to_str()?.rsplit_once('_')?;
    label.parse().ok()
}

impl ImageDataset for Cifar10 {
    fn len(&self) -> usize {
        match &self.images {
            Images::Records(records) => records.len() / RECORD,
            Images::Files(files) => files.len(),
        }
    }

    fn example(&self, index: usize) -> Result<Example, DataError> {
        let (picture, class) = match &self.images {
            Images::Records(records) => {
                let record = &records[index * RECORD..(index + 1) * RECORD];
                let (label, planes) = (record[0], &record[1..]);
                let pixels = (0..PLANE).flat_map(|i| [0, 1, 2].map(|c| planes[c * PLANE + i]));
                let pixels = pixels.collect();
                (Picture::new(SIDE, SIDE, pixels), u16::from(label))
            }
            Images::Files(files) => {
                let (path, label) = &files[index];
                (Picture::open(path)?, *label)
            }
        };
        Ok(Example {
            picture,
            target: Target::Class(class),
        })
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn task(&self) -> VisionTask {
        VisionTask::Classification
    }
}
