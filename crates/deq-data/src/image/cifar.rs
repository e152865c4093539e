//! CIFAR-10.

use super::check;
use super::dataset::{Example, ImageDataset, Target, VisionTask};
use super::files::{self, Listing};
use super::fingerprint::Fingerprint;
use super::loader::Skipped;
use super::raster::Picture;
use crate::error::DataError;
use crate::splits::aliases;
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

/// The most images read from binary files, 20 times those of CIFAR-10: they are kept in memory.
const MOST_RECORDS: u64 = 1_000_000;
/// The folder in the official archive.
const ARCHIVE_FOLDER: &str = "cifar-10-batches-bin";

/// CIFAR-10, in memory from the official binary files, or image by image from a folder.
///
/// A folder may hold
///
/// - the official `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, here or in
///   `cifar-10-batches-bin`, or any `*.bin` of whole records whose names begin with `train` or
///   `test`: a byte with the label, then 1,024 bytes each of red, green and blue;
/// - or folders `train` and `test` of images named `INDEX_LABEL.jpg` (or `.png` and so on), as in
///   `00000_6.jpg`. For `test`, the other names of a held-out part do as well: `valid`,
///   `validation`, `val`, `dev`.
#[derive(Clone, Debug)]
pub struct Cifar10 {
    images: Images,
    left_out: Vec<PathBuf>,
    classes: Vec<String>,
}

#[derive(Clone, Debug)]
enum Images {
    Records(Vec<u8>),
    Files {
        root: PathBuf,
        labelled: Vec<(PathBuf, u16)>,
    },
}

impl Cifar10 {
    /// The training images of a folder.
    ///
    /// # Errors
    ///
    /// [`DataError`] if the folder holds none, or a file is not in the layout, each named with what
    /// would be right.
    pub fn train(folder: &Path) -> Result<Self, DataError> {
        Self::open(folder, &["data_batch", "train"], aliases("train").iter())
    }

    /// The test images of a folder.
    ///
    /// # Errors
    ///
    /// As [`train`](Self::train).
    pub fn test(folder: &Path) -> Result<Self, DataError> {
        let folders = aliases("test").iter().chain(aliases("valid"));
        Self::open(folder, &["test"], folders)
    }

    /// The images of binary files, in order.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] if one cannot be read, [`DataError::NotCifar`] if one is empty or not made
    /// of whole records, [`DataError::LabelOutOfRange`] for a label that is not below 10,
    /// [`DataError::NoImages`] without a file, [`DataError::BadImage`] for more than a million
    /// images.
    pub fn from_files(paths: &[PathBuf]) -> Result<Self, DataError> {
        let mut records = Vec::new();
        for path in paths {
            let size = std::fs::metadata(path).map_err(|source| DataError::read(path, source))?;
            let total = size.len().saturating_add(records.len() as u64);
            if total > MOST_RECORDS * RECORD as u64 {
                return Err(DataError::BadImage {
                    path: path.clone(),
                    reason: format!("with it there are more than {MOST_RECORDS} images"),
                });
            }
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
                found: "nothing".to_owned(),
            });
        }
        Ok(Self::new(Images::Records(records), Vec::new()))
    }

    fn open(
        folder: &Path,
        prefixes: &[&str],
        folders: impl Iterator<Item = &'static &'static str>,
    ) -> Result<Self, DataError> {
        files::require_folder(folder)?;
        let archive = folder.join(ARCHIVE_FOLDER);
        let place = if archive.is_dir() { &archive } else { folder };
        let mut binary = files::with_ending(place, &["bin"])?;
        binary.retain(|path| {
            let name = files::label(path);
            prefixes.iter().any(|prefix| name.starts_with(prefix))
        });
        if !binary.is_empty() {
            return Self::from_files(&binary);
        }
        let mut parts = folders.map(|name| folder.join(name));
        let Some(part) = parts.find(|path| path.is_dir()) else {
            return Err(nothing(folder));
        };
        let listing = Listing::flat(&part)?;
        let mut labelled = Vec::new();
        for path in listing.images {
            let label = label_in_name(&path)
                .ok_or_else(|| DataError::NoLabelInName { path: path.clone() })?;
            require_class(&path, label)?;
            labelled.push((path, label as u16));
        }
        if labelled.is_empty() {
            return Err(nothing(&part));
        }
        let root = part;
        Ok(Self::new(
            Images::Files { root, labelled },
            listing.left_out,
        ))
    }

    fn new(images: Images, left_out: Vec<PathBuf>) -> Self {
        Self {
            images,
            left_out,
            classes: CLASSES.map(str::to_owned).to_vec(),
        }
    }
}

fn nothing(folder: &Path) -> DataError {
    DataError::NoImages {
        path: folder.to_owned(),
        expected: "CIFAR-10 is data_batch_1.bin to data_batch_5.bin and test_batch.bin, or folders \
                   train and test with images named INDEX_LABEL.jpg",
        found: files::contents(folder),
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
            Images::Files { labelled, .. } => labelled.len(),
        }
    }

    fn example(&self, index: usize) -> Result<Example, DataError> {
        match &self.images {
            Images::Records(records) => {
                let record = &records[index * RECORD..(index + 1) * RECORD];
                let (label, planes) = (record[0], &record[1..]);
                let pixels = (0..PLANE).flat_map(|i| [0, 1, 2].map(|c| planes[c * PLANE + i]));
                let picture = Picture::new(SIDE, SIDE, pixels.collect());
                Ok(Example::new(picture, Target::Class(u16::from(label))))
            }
            Images::Files { labelled, .. } => {
                let (path, label) = &labelled[index];
                Example::read(path, Target::Class(*label))
            }
        }
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn task(&self) -> VisionTask {
        VisionTask::Classification
    }

    fn left_out(&self) -> &[PathBuf] {
        &self.left_out
    }

    /// Of binary files all bytes, whatever the files are called.
    fn unusable(&self) -> Result<Vec<Skipped>, DataError> {
        match &self.images {
            Images::Records(_) => Ok(Vec::new()),
            Images::Files { labelled, .. } => check::unusable(self, |index| [&*labelled[index].0]),
        }
    }

    fn fingerprint(&self) -> Result<u64, DataError> {
        let mut fingerprint = Fingerprint::new("CIFAR-10");
        fingerprint.names(&self.classes);
        match &self.images {
            Images::Records(records) => fingerprint.bytes(records),
            Images::Files { root, labelled } => {
                let files: Vec<&PathBuf> = labelled.iter().map(|(path, _)| path).collect();
                fingerprint.files(root, &files)?;
            }
        }
        Ok(fingerprint.finish())
    }
}
