//! Images with a label map each: Cityscapes, and plain folders as those of CamVid.

use super::check;
use super::classes::Labels;
use super::dataset::{COUNTED_MAPS, Example, ImageDataset, Target, VisionTask, weights_by_share};
use super::files::{self, Listing};
use super::fingerprint::Fingerprint;
use super::loader::Skipped;
use super::raster::LabelMap;
use super::survey::LabelSurvey;
use crate::error::DataError;
use std::path::{Path, PathBuf};

/// The 19 classes of Cityscapes that are evaluated: the id in the files and the name, in the order
/// of the train ids.
const CITYSCAPES: [(u8, &str); 19] = [
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

/// The folder of the images of Cityscapes.
const CITYSCAPES_IMAGES: &str = "leftImg8bit";

/// The largest id in the files of Cityscapes; all up to it that are no class are ignored.
const CITYSCAPES_LAST: u8 = 33;

/// What a pixel of each of these classes counts in the loss of HRNet, which the original of the
/// multiscale equilibrium models takes over: rare classes a little more.
const CITYSCAPES_WEIGHTS: [f32; 19] = [
    0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023, 0.9539, 0.9843,
    1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
];

/// The 11 classes of CamVid in the release with the folders `train` and `trainannot`, and an id for
/// what is none.
const CAMVID: [&str; 12] = [
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
    "ignore",
];

/// Images with label maps in files.
///
/// Pixels whose id is none of the classes are [`IGNORE_LABEL`](crate::IGNORE_LABEL).
#[derive(Clone, Debug)]
pub struct SegmentationFolder {
    /// The folders of the images and of the label maps.
    roots: (PathBuf, PathBuf),
    pairs: Vec<(PathBuf, PathBuf)>,
    left_out: Vec<PathBuf>,
    labels: Labels,
    cityscapes: bool,
}

impl SegmentationFolder {
    /// A split (`train`, `val`, `test`) of Cityscapes: `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`
    /// with `gtFine/SPLIT/CITY/*_gtFine_labelIds.png`, and the official 19 classes.
    ///
    /// # Errors
    ///
    /// [`DataError::NoFolder`], [`DataError::NoImages`], or [`DataError::MissingLabels`] naming an
    /// image without labels.
    pub fn cityscapes(root: &Path, split: &str) -> Result<Self, DataError> {
        let images = root.join(CITYSCAPES_IMAGES).join(split);
        let labels = root.join("gtFine").join(split);
        files::require_folder(&images)?;
        let (mut pairs, mut left_out) = (Vec::new(), Vec::new());
        for city in files::folders(&images)? {
            let listing = Listing::flat(&city)?;
            left_out.extend(listing.left_out);
            for image in listing.images {
                let name = image.file_name().and_then(|name| name.to_str());
                let stem = name.and_then(|name| name.strip_suffix("_leftImg8bit.png"));
                match (stem, city.file_name()) {
                    (Some(stem), Some(city)) => {
                        let map = format!("{stem}_gtFine_labelIds.png");
                        pairs.push((image, labels.join(city).join(map)));
                    }
                    _ => left_out.push(image),
                }
            }
        }
        let known = Labels::published(&CITYSCAPES, CITYSCAPES_LAST);
        let mut dataset = Self::new((images, labels), pairs, known)?;
        dataset.left_out = left_out;
        dataset.cityscapes = true;
        Ok(dataset)
    }

    /// Images in one folder, and in another one a PNG of ids of the same name for each. Ids count
    /// from 0 in the order of `names`; an id named `ignore` is no class and its pixels are ignored,
    /// as are those of all ids without a name.
    ///
    /// # Errors
    ///
    /// As [`cityscapes`](Self::cityscapes), and [`DataError::TooManyClasses`] above 255.
    pub fn plain(images: &Path, labels: &Path, names: Vec<String>) -> Result<Self, DataError> {
        Self::with_labels(images, labels, Labels::counted(names, labels)?)
    }

    fn with_labels(images: &Path, maps: &Path, labels: Labels) -> Result<Self, DataError> {
        files::require_folder(images)?;
        files::require_folder(maps)?;
        let listing = Listing::flat(images)?;
        let pairs = listing.images.into_iter().map(|image| {
            let map = maps.join(image.file_name().unwrap_or_default());
            (image, map.with_extension("png"))
        });
        let roots = (images.to_owned(), maps.to_owned());
        let mut dataset = Self::new(roots, pairs.collect(), labels)?;
        dataset.left_out = listing.left_out;
        Ok(dataset)
    }

    /// The split `SPLIT` of a folder in either layout: Cityscapes if there is a `leftImg8bit`,
    /// otherwise `SPLIT` with the images and `SPLITannot` with the labels.
    ///
    /// Of the latter, `classes.txt` says what the ids are: the names of the ids from 0 on, one a
    /// line, or lines `ID: NAME`. The name `ignore` is for an id that is no class; 255 is none
    /// unless it is named. Without `classes.txt` they are the 11 classes of CamVid, whose layout
    /// this is.
    ///
    /// # Errors
    ///
    /// As [`plain`](Self::plain), and [`DataError::Empty`], [`DataError::BlankLine`] or
    /// [`DataError::BadImage`] for a `classes.txt` that cannot be used.
    pub fn open(root: &Path, split: &str) -> Result<Self, DataError> {
        files::require_folder(root)?;
        if is_cityscapes(root) {
            return Self::cityscapes(root, split);
        }
        let list = root.join("classes.txt");
        let labels = match list.is_file() {
            true => Labels::read(&list)?,
            false => Labels::counted(CAMVID.map(str::to_owned).to_vec(), root)?,
        };
        let maps = root.join(format!("{split}annot"));
        Self::with_labels(&root.join(split), &maps, labels)
    }

    /// The same for the first of several names of a split for which there is a folder.
    pub(super) fn open_any(
        root: &Path,
        split: &'static str,
        names: impl Iterator<Item = &'static str> + Clone,
    ) -> Result<Self, DataError> {
        files::require_folder(root)?;
        let found = match is_cityscapes(root) {
            true => files::split(&root.join(CITYSCAPES_IMAGES), split, names)?,
            false => files::split(root, split, names)?,
        };
        Self::open(root, &files::label(&found))
    }

    fn new(
        roots: (PathBuf, PathBuf),
        pairs: Vec<(PathBuf, PathBuf)>,
        labels: Labels,
    ) -> Result<Self, DataError> {
        if pairs.is_empty() {
            return Err(DataError::NoImages {
                found: files::contents(&roots.0),
                path: roots.0,
                expected: "it must hold the images of a split",
            });
        }
        for (image, map) in &pairs {
            if !map.is_file() {
                return Err(DataError::MissingLabels {
                    image: image.clone(),
                    labels: map.clone(),
                });
            }
        }
        Ok(Self {
            roots,
            pairs,
            left_out: Vec::new(),
            labels,
            cityscapes: false,
        })
    }
}

fn is_cityscapes(root: &Path) -> bool {
    root.join(CITYSCAPES_IMAGES).is_dir()
}

impl ImageDataset for SegmentationFolder {
    fn len(&self) -> usize {
        self.pairs.len()
    }

    fn example(&self, index: usize) -> Result<Example, DataError> {
        let (image, labels) = &self.pairs[index];
        let map = LabelMap::open(labels, &self.labels.map())?;
        let size = (map.width(), map.height());
        let example = Example::read(image, Target::Map(map))?;
        let (width, height) = (example.picture.width(), example.picture.height());
        if (width, height) != size {
            return Err(DataError::BadImage {
                path: labels.clone(),
                reason: format!(
                    "{} x {} labels for {width} x {height} pixels",
                    size.0, size.1
                ),
            });
        }
        Ok(example)
    }

    fn classes(&self) -> &[String] {
        &self.labels.classes
    }

    /// Those of HRNet for Cityscapes. Of other folders `1 / ln(1.02 + p)` for a class that is the
    /// share `p` of the pixels (Paszke et al. 2016, "ENet", section 5.2), counted in at most 100 of
    /// the label maps.
    fn class_weights(&self) -> Vec<f32> {
        if self.cityscapes {
            return CITYSCAPES_WEIGHTS.to_vec();
        }
        let map = self.labels.map();
        let step = self.pairs.len().div_ceil(COUNTED_MAPS);
        let some = self.pairs.iter().step_by(step);
        // A loader names the maps that cannot be read.
        let maps = some.filter_map(|(_, labels)| LabelMap::open(labels, &map).ok());
        weights_by_share(self.labels.classes.len(), maps)
    }

    fn task(&self) -> VisionTask {
        VisionTask::Segmentation
    }

    fn left_out(&self) -> &[PathBuf] {
        &self.left_out
    }

    fn label_survey(&self) -> Result<Option<LabelSurvey>, DataError> {
        let maps: Vec<&PathBuf> = self.pairs.iter().map(|(_, labels)| labels).collect();
        LabelSurvey::of(&self.roots.1, &self.labels, &maps).map(Some)
    }

    fn unusable(&self) -> Result<Vec<Skipped>, DataError> {
        check::unusable(self, |index| {
            let (image, labels) = &self.pairs[index];
            [image, labels]
        })
    }

    /// Of images and label maps, and of what their ids mean.
    fn fingerprint(&self) -> Result<u64, DataError> {
        let mut fingerprint = Fingerprint::new("segmentation");
        fingerprint.names(&self.labels.classes);
        fingerprint.bytes(&self.labels.map());
        let images: Vec<&PathBuf> = self.pairs.iter().map(|(image, _)| image).collect();
        fingerprint.files(&self.roots.0, &images)?;
        let maps: Vec<&PathBuf> = self.pairs.iter().map(|(_, labels)| labels).collect();
        fingerprint.files(&self.roots.1, &maps)?;
        Ok(fingerprint.finish())
    }
}
