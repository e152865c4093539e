//! Class folders, the layout of ImageNet.

use super::check;
use super::dataset::{Example, ImageDataset, Target, VisionTask};
use super::files::{self, Listing};
use super::fingerprint::Fingerprint;
use super::loader::Skipped;
use crate::error::DataError;
use std::path::{Path, PathBuf};

/// A folder with one folder per class, in which the image files, also those in folders further
/// down, are the examples: the layout of ImageNet. Class ids follow the sorted names of the
/// folders, as torchvision's `ImageFolder` does. Bytes of a name that are not UTF-8 and control
/// characters are escaped in the name of the class.
///
/// Files with another ending than those of [images that are read](crate::Picture::open) are
/// [left out](ImageDataset::left_out).
#[derive(Clone, Debug)]
pub struct ImageFolder {
    root: PathBuf,
    classes: Vec<String>,
    files: Vec<(PathBuf, u16)>,
    left_out: Vec<PathBuf>,
}

impl ImageFolder {
    /// Lists the images of `folder`; none is opened yet.
    ///
    /// # Errors
    ///
    /// [`DataError::NoFolder`] if there is none, [`DataError::NoImages`] if there is no class, or a
    /// class without an image, [`DataError::TooManyClasses`] above 65,536.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        files::require_folder(folder)?;
        let folders = files::folders(folder)?;
        let classes = folders.iter().map(|path| files::label(path)).collect();
        let numbered = folders.into_iter().enumerate().collect();
        Self::list(folder, classes, numbered)
    }

    /// The same with the classes of another part of the data, so that ids agree. A class may be
    /// missing here.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), and [`DataError::UnknownClassFolder`] for a class that is not among
    /// `classes`.
    pub fn open_with(folder: &Path, classes: &[String]) -> Result<Self, DataError> {
        files::require_folder(folder)?;
        let mut numbered = Vec::new();
        for path in files::folders(folder)? {
            let label = files::label(&path);
            match classes.iter().position(|class| *class == label) {
                Some(id) => numbered.push((id, path)),
                None => return Err(DataError::UnknownClassFolder { path }),
            }
        }
        Self::list(folder, classes.to_vec(), numbered)
    }

    fn list(
        root: &Path,
        classes: Vec<String>,
        folders: Vec<(usize, PathBuf)>,
    ) -> Result<Self, DataError> {
        if classes.len() > 1 << 16 {
            return Err(DataError::TooManyClasses {
                path: root.to_owned(),
                classes: classes.len(),
            });
        }
        if folders.is_empty() {
            return Err(DataError::NoImages {
                path: root.to_owned(),
                expected: "it must hold one folder per class, with image files in each",
                found: files::contents(root),
            });
        }
        // Images beside the class folders have no class.
        let loose = Listing::flat(root)?;
        let mut left_out = loose.left_out;
        left_out.extend(loose.images);
        let mut listed = Vec::new();
        for (id, path) in folders {
            let listing = Listing::deep(&path)?;
            if listing.images.is_empty() {
                return Err(DataError::NoImages {
                    found: files::contents(&path),
                    path,
                    expected: "every class folder must hold JPEG, PNG, WebP, BMP, TIFF, GIF or \
                               PNM files",
                });
            }
            let images = listing.images.into_iter();
            listed.extend(images.map(|image| (image, id as u16)));
            left_out.extend(listing.left_out);
        }
        Ok(Self {
            root: root.to_owned(),
            classes,
            files: listed,
            left_out,
        })
    }

    /// The file of example `index`.
    ///
    /// # Panics
    ///
    /// If there is no such example.
    pub fn path(&self, index: usize) -> &Path {
        &self.files[index].0
    }
}

impl ImageDataset for ImageFolder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn example(&self, index: usize) -> Result<Example, DataError> {
        let (path, class) = &self.files[index];
        Example::read(path, Target::Class(*class))
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

    fn unusable(&self) -> Result<Vec<Skipped>, DataError> {
        check::unusable(self, |index| [self.path(index)])
    }

    fn fingerprint(&self) -> Result<u64, DataError> {
        let mut fingerprint = Fingerprint::new("image folder");
        fingerprint.names(&self.classes);
        let files: Vec<&PathBuf> = self.files.iter().map(|(path, _)| path).collect();
        fingerprint.files(&self.root, &files)?;
        Ok(fingerprint.finish())
    }
}
