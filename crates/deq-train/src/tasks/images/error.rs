//! What can be wrong with images, or with a model of them.

use std::path::PathBuf;

/// An error of the task `images`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "messages say what the fields are")]
pub enum ImagesError {
    /// A preset is for another kind of data.
    #[error("the preset {preset} does not fit the data {data}: choose {fitting}, which does")]
    PresetForOtherTask {
        preset: String,
        data: String,
        fitting: &'static str,
    },
    /// Whole images are to be classified by a model of pixels, or the other way around.
    #[error(
        "the model does not fit the data {data}: a classifier takes images with a class each, \
         a segmenter takes label maps"
    )]
    ModelForOtherTask { data: String },
    /// Images of a size that the model cannot take.
    #[error(
        "{field} makes images with a side of {side} pixels, \
         but the model needs multiples of {multiple}"
    )]
    SideMultiple {
        /// The transform.
        field: &'static str,
        side: usize,
        multiple: usize,
    },
    /// Pixels that are to be classified are moved.
    #[error(
        "task.eval_transform moves pixels, but a segmentation is measured where they are: \
         set it to whole or pad_to_multiple"
    )]
    MovedPixels,
    /// The weights of the loss are not one per class.
    #[error("{given} class weights for {classes} classes: give one for each, or none")]
    ClassWeights { given: usize, classes: usize },
    /// The data have other classes than those that a run was trained on.
    #[error(
        "the classes of the data are not those of the run {path}: give the data it was trained on"
    )]
    OtherClasses { path: PathBuf },
    /// The data have another number of classes than an imported model.
    #[error(
        "the model in {path} knows {expected} classes, but the data have {found}: \
         give data with the classes it was trained on"
    )]
    NumberOfClasses {
        path: PathBuf,
        expected: usize,
        found: usize,
    },
    /// Not one held-out image can be used.
    #[error(
        "none of the {files} held-out images can be used, so that nothing could be measured; \
         the first is {path}: {reason}"
    )]
    NothingHeldOut {
        files: usize,
        path: PathBuf,
        reason: String,
    },
    /// A checkpoint holds a ResNet of another depth.
    #[error("the checkpoint is of a ResNet-{found}, not of a ResNet-{expected}: set network to it")]
    OtherDepth { expected: usize, found: usize },
    /// Overlays were asked for from a model that makes none.
    #[error(
        "the run {path} classifies whole images and makes no overlays: \
         leave out the folder for them"
    )]
    NoOverlays { path: PathBuf },
    /// Two overlays would be written to one file.
    #[error(
        "the overlays of {first} and {second} would have the same name: \
         predict them one by one, or into different folders"
    )]
    SameOverlay { first: PathBuf, second: PathBuf },
}
