//! Class folders, the layout of ImageNet.

use super::dataset::{Example, ImageDataset, Target, VisionTask};
use super::files;
use super::raster::Picture;
use crate::error::DataError;
use std::path::{Path, PathBuf};

/// A folder with one folder per class, in which the JPEG and PNG files are the pictures: the layout of ImageNet. Class ids follow the sorted names of
/// the folders, as torchvision's `ImageFolder` does.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    classes: Vec<String>,
    files: Vec<(PathBuf, u16)>,
}

impl ImageFolder {
    /// Lists the pictures of `folder`; none is opened yet.
    ///
    /// # Errors
    ///
    /// [`DataError::NoFolder`] if there is none, [`DataError::NoImages`] if there is no class, or a class without a picture,
    /// [`DataError::TooManyClasses`] above 65,536.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        if !folder.is_dir() {
            return Err(DataError::NoFolder {
                path: folder.to_owned(),
            });
        }
        let folders = files::folders(folder)?;
        let classes: Vec<String> = folders.iter().map(|path| files::name(path)).collect();
        Self::list(folder, classes)
    }

    /// The same with the classes of another part of the data, so that ids agree. A class may be missing here.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), and [`DataError::UnknownClassFolder`] for a class that is not among `classes`.
    pub fn open_with(folder: &Path, classes: &[String]) -> Result<Self, DataError> {
        if !folder.is_dir() {
            return Err(DataError::NoFolder {
                path: folder.to_owned(),
            });
        }
        for path in files::folders(folder)? {
            if !classes.contains(&files::name(&path)) {
                return Err(DataError::UnknownClassFolder { path });
            }
        }
        Self::list(folder, classes.to_vec())
    }

    fn list(folder: &Path, classes: Vec<String>) -> Result<Self, DataError> {
        if classes.len() > 1 << 16 {
            return Err(DataError::TooManyClasses {
                path: folder.to_owned(),
                classes: classes.len(),
            });
        }
        let mut listed = Vec::new();
        for (id, class) in classes.iter().enumerate() {
            let path = folder.join(class);
            if !path.is_dir() {
                continue;
            }
            let pictures = files::with_ending(&path, &["jpg", "jpeg", "png"])?;
            if pictures.is_empty() {
                return Err(DataError::NoImages {
                    path,
                    expected: "every class folder must hold JPEG or PNG files",
                });
            }
            listed.extend(pictures.into_iter().map(|picture| (picture, id as u16)));
        }
        if listed.is_empty() {
            return Err(DataError::NoImages {
                path: folder.to_owned(),
                expected: "it must hold one folder per class, with JPEG or PNG files in each",
            });
        }
        Ok(Self {
            classes,
            files: listed,
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
        Ok(Example {
            picture: Picture::open(path)?,
            target: Target::Class(*class),
        })
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn task(&self) -> VisionTask {
        VisionTask::Classification
    }
}
