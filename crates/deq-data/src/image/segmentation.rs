//! Pictures with a label map each: Cityscapes, and plain folders as those of CamVid.

use super::dataset::{COUNTED_MAPS, Example, ImageDataset, Target, VisionTask, weights_by_share};
use super::files;
use super::raster::{IGNORE_LABEL, LabelMap, Picture};
use crate::error::DataError;
use std::path::{Path, PathBuf};

/// The 19 classes of Cityscapes that are evaluated: the id in the files and the name, in the order of the train ids.
const CITYSCAPES: [(usize, &str); 19] = [
    (7, "road"),
    (8, "sidewalk"),
    (11, "building"),
    (12, "wall"),
    (13, "fence"),
    (17, "pole"),
    (19, "traffic light"),
    (20, "traffic sign"),
    (21, "vegetation"),
    (22, "terrain"),
    (23, "sky"),
    (24, "person"),
    (25, "rider"),
    (26, "car"),
    (27, "truck"),
    (28, "bus"),
    (31, "train"),
    (32, "motorcycle"),
    (33, "bicycle"),
];

/// What a pixel of each of these classes counts in the loss of HRNet, which the original of the multiscale equilibrium models takes over: rare classes a little more.
const CITYSCAPES_WEIGHTS: [f32; 19] = [
    0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023, 0.9539, 0.9843,
    1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
];

/// What names an id that is no class.
const IGNORED_NAME: &str = "ignore";

/// The 11 classes of CamVid in the release with the folders `train` and `trainannot`.
const CAMVID: [&str; 11] = [
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
];

/// Pictures with label maps in files.
///
/// Pixels whose id is none of the classes are [`IGNORE_LABEL`].
#[derive(Clone, Debug)]
pub struct SegmentationFolder {
    pairs: Vec<(PathBuf, PathBuf)>,
    classes: Vec<String>,
    cityscapes: bool,
    map: Box<[u8; 256]>,
}

impl SegmentationFolder {
    /// A split (`train`, `val`, `test`) of Cityscapes: `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` with `gtFine/SPLIT/CITY/*_gtFine_labelIds.png`, and the
    /// official 19 classes.
    ///
    /// # Errors
    ///
    /// [`DataError::NoFolder`], [`DataError::NoImages`], or [`DataError::MissingLabels`] naming a picture without labels.
    pub fn cityscapes(root: &Path, split: &str) -> Result<Self, DataError> {
        let pictures = root.join("leftImg8bit").join(split);
        let labels = root.join("gtFine").join(split);
        require_folder(&pictures)?;
        let mut pairs = Vec::new();
        for city in files::folders(&pictures)? {
            for picture in files::with_ending(&city, &["png"])? {
                let name = files::name(&picture);
                let Some(stem) = name.strip_suffix("_leftImg8bit.png") else {
                    continue;
                };
                let map = format!("{stem}_gtFine_labelIds.png");
                pairs.push((picture, labels.join(files::name(&city)).join(map)));
            }
        }
        let mut map = [IGNORE_LABEL; 256];
        for (class, (id, _)) in CITYSCAPES.iter().enumerate() {
            map[*id] = class as u8;
        }
        let classes = CITYSCAPES.map(|(_, name)| name.to_owned()).to_vec();
        Ok(Self {
            cityscapes: true,
            ..Self::new(&pictures, pairs, classes, map)?
        })
    }

    /// Pictures (PNG or JPEG) in one folder, and in another one a PNG of ids of the same name for each. Ids count from 0 in the order of `names`; an id named
    /// `ignore` is no class, its pixels are ignored, and so are those of all ids without a name.
    ///
    /// # Errors
    ///
    /// As [`cityscapes`](Self::cityscapes), and [`DataError::TooManyClasses`] above 255.
    pub fn plain(pictures: &Path, labels: &Path, names: Vec<String>) -> Result<Self, DataError> {
        require_folder(pictures)?;
        require_folder(labels)?;
        // An id is a byte, and one of them stands for no class.
        if names.len() > usize::from(IGNORE_LABEL) {
            return Err(DataError::TooManyClasses {
                path: labels.to_owned(),
                classes: names.len(),
            });
        }
        let pairs = files::with_ending(pictures, &["png", "jpg", "jpeg"])?;
        let pairs = pairs.into_iter().map(|picture| {
            let map = labels.join(files::name(&picture)).with_extension("png");
            (picture, map)
        });
        let mut map = [IGNORE_LABEL; 256];
        let mut classes = Vec::with_capacity(names.len());
        for (id, name) in names.into_iter().enumerate() {
            if name != IGNORED_NAME {
                map[id] = classes.len() as u8;
                classes.push(name);
            }
        }
        Self::new(pictures, pairs.collect(), classes, map)
    }

    /// The split `SPLIT` of a folder in either layout: Cityscapes if there is a `leftImg8bit`, otherwise `SPLIT` with the pictures and `SPLITannot` with the
    /// labels. Of the latter, `classes.txt` names the ids from 0 on, one a line, with `ignore` for one that is no class; without it they are the 11 classes of CamVid, whose layout
    /// this is.
    ///
    /// # Errors
    ///
    /// As [`plain`](Self::plain), and [`DataError::Empty`] or [`DataError::BlankLine`] for a `classes.txt` that lacks a name.
    pub fn open(root: &Path, split: &str) -> Result<Self, DataError> {
        require_folder(root)?;
        if root.join("leftImg8bit").is_dir() {
            return Self::cityscapes(root, split);
        }
        let names = root.join("classes.txt");
        let classes = if names.is_file() {
            let text = std::fs::read_to_string(&names)
                .map_err(|source| DataError::read(&names, source))?;
            let classes: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
            if classes.is_empty() {
                return Err(DataError::Empty { path: names });
            }
            if let Some(blank) = classes.iter().position(String::is_empty) {
                return Err(DataError::BlankLine {
                    path: names,
                    line: blank + 1,
                });
            }
            classes
        } else {
            CAMVID.map(str::to_owned).to_vec()
        };
        Self::plain(
            &root.join(split),
            &root.join(format!("{split}annot")),
            classes,
        )
    }

    fn new(
        folder: &Path,
        pairs: Vec<(PathBuf, PathBuf)>,
        classes: Vec<String>,
        map: [u8; 256],
    ) -> Result<Self, DataError> {
        if pairs.is_empty() {
            return Err(DataError::NoImages {
                path: folder.to_owned(),
                expected: "it must hold the pictures of a split",
            });
        }
        for (picture, labels) in &pairs {
            if !labels.is_file() {
                return Err(DataError::MissingLabels {
                    picture: picture.clone(),
                    labels: labels.clone(),
                });
            }
        }
        Ok(Self {
            pairs,
            classes,
            cityscapes: false,
            map: Box::new(map),
        })
    }
}

fn require_folder(path: &Path) -> Result<(), DataError> {
    if path.is_dir() {
        return Ok(());
    }
    Err(DataError::NoFolder {
        path: path.to_owned(),
    })
}

impl ImageDataset for SegmentationFolder {
    fn len(&self) -> usize {
        self.pairs.len()
    }

    fn example(&self, index: usize) -> Result<Example, DataError> {
        let (picture_path, labels_path) = &self.pairs[index];
        let picture = Picture::open(picture_path)?;
        let labels = LabelMap::open(labels_path, &self.map)?;
        let size = (picture.width(), picture.height());
        let labels_size = (labels.width(), labels.height());
        if size != labels_size {
            return Err(DataError::BadImage {
                path: labels_path.clone(),
                reason: format!(
                    "{} x {} labels for {} x {} pixels",
                    labels_size.0, labels_size.1, size.0, size.1
                ),
            });
        }
        Ok(Example {
            picture,
            target: Target::Map(labels),
        })
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Those of HRNet for Cityscapes. Of other folders `1 / ln(1.02 + p)` for a class that is the share `p` of the pixels (Paszke et al. 2016, "ENet", section 5.2),
    /// counted in at most 100 of the label maps.
    fn class_weights(&self) -> Vec<f32> {
        if self.cityscapes {
            return CITYSCAPES_WEIGHTS.to_vec();
        }
        let step = self.pairs.len().div_ceil(COUNTED_MAPS);
        let some = self.pairs.iter().step_by(step);
        // A loader names the maps that cannot be read.
        let maps = some.filter_map(|(_, labels)| LabelMap::open(labels, &self.map).ok());
        weights_by_share(self.classes.len(), maps)
    }

    fn task(&self) -> VisionTask {
        VisionTask::Segmentation
    }
}
