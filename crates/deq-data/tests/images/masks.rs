//! Label maps and what their ids mean.

use crate::support::*;
use deq_data::{
    DataError, IGNORE_LABEL, ImageDataset, ImageSource, LabelMap, LabelMeaning, LabelSurvey,
    Picture, SegmentationFolder, Spread, Target,
};
use std::path::Path;
use std::sync::Arc;

#[test]
fn label_maps_are_numbers_not_colours() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("labels.png");
    let map = std::array::from_fn(|id| if id < 9 { id as u8 } else { IGNORE_LABEL });
    for kind in [png::ColorType::Grayscale, png::ColorType::Indexed] {
        write(&path, &png(2, 2, kind, &[0, 8, 9, 200]));
        let labels = LabelMap::open(&path, &map).unwrap();
        assert_eq!(labels.data(), [0, 8, IGNORE_LABEL, IGNORE_LABEL]);
    }
    let whole = png(2, 2, png::ColorType::Grayscale, &[0, 8, 9, 200]);
    for bytes in [
        png(1, 1, png::ColorType::Rgb, &[1, 2, 3]),
        whole[..whole.len() - 20].to_vec(),
        detailed_jpeg(),
        Vec::new(),
    ] {
        write(&path, &bytes);
        let error = LabelMap::open(&path, &map).unwrap_err();
        assert!(matches!(error, DataError::BadImage { .. }), "{error}");
    }
}

#[test]
fn cityscapes_uses_the_19_classes() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let place = |kind: &str, ending: &str| {
        root.join(format!("{kind}/val/bonn/bonn_000000_000019_{ending}.png"))
    };
    let picture = Picture::filled(3, 1, [5, 6, 7]);
    write(&place("leftImg8bit", "leftImg8bit"), &picture.to_png());
    let source = SegmentationFolder::open(root, "val");
    assert!(matches!(
        source.unwrap_err(),
        DataError::MissingLabels { .. }
    ));
    let ids = png(3, 1, png::ColorType::Grayscale, &[7, 33, 1]);
    write(&place("gtFine", "gtFine_labelIds"), &ids);
    let dataset = SegmentationFolder::open(root, "val").unwrap();
    assert_eq!((dataset.len(), dataset.classes().len()), (1, 19));
    let Target::Map(map) = dataset.example(0).unwrap().target else {
        panic!("a segmentation has maps");
    };
    assert_eq!(map.data(), [0, 18, IGNORE_LABEL]);
    assert_eq!(
        (&*dataset.classes()[0], &*dataset.classes()[18]),
        ("road", "bicycle")
    );
    let weights = dataset.class_weights();
    assert_eq!((weights.len(), weights[0]), (19, 0.8373));
}

#[test]
fn small_palettes_pack_several_labels_into_a_byte() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    write(
        &root.join("train/x.png"),
        &Picture::filled(5, 2, [5, 6, 7]).to_png(),
    );
    let mut packed = Vec::new();
    let mut encoder = png::Encoder::new(&mut packed, 5, 2);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Two);
    encoder.set_palette((0..12).collect::<Vec<u8>>());
    let mut writer = encoder.write_header().unwrap();
    // Every row begins with a new byte.
    let rows = [0b00_01_10_11, 0b01_000000, 0b11_11_00_00, 0b10_000000];
    writer.write_image_data(&rows).unwrap();
    drop(writer);
    write(&root.join("trainannot/x.png"), &packed);
    let dataset = SegmentationFolder::open(root, "train").unwrap();
    let Target::Map(map) = dataset.example(0).unwrap().target else {
        panic!("a segmentation has maps");
    };
    assert_eq!(map.data(), [0, 1, 2, 3, 1, 3, 3, 0, 0, 2]);
}

fn map_of(dataset: &SegmentationFolder) -> Vec<u8> {
    match dataset.example(0).unwrap().target {
        Target::Map(map) => map.data().to_vec(),
        Target::Class(_) => panic!("a segmentation has maps"),
    }
}

#[test]
fn plain_folders_take_their_classes_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    write(
        &root.join("train/x.png"),
        &Picture::filled(2, 1, [5, 6, 7]).to_png(),
    );
    write(
        &root.join("trainannot/x.png"),
        &png(2, 1, png::ColorType::Grayscale, &[1, 11]),
    );
    let camvid = SegmentationFolder::open(root, "train").unwrap();
    assert_eq!(
        (camvid.classes().len(), map_of(&camvid)),
        (11, vec![1, IGNORE_LABEL])
    );
    // All labelled pixels are of class 1.
    let weights = camvid.class_weights();
    let expected = |share: f32| 1.0 / (1.02 + share).ln();
    assert_eq!(weights.len(), 11);
    assert!((weights[0] - expected(0.0)).abs() < 1e-3 && (weights[1] - expected(1.0)).abs() < 1e-6);
    write(&root.join("classes.txt"), b"ground\n");
    let named = SegmentationFolder::open(root, "train").unwrap();
    assert_eq!(
        (named.classes(), map_of(&named)),
        (&["ground".to_owned()][..], vec![IGNORE_LABEL; 2])
    );
    write(&root.join("classes.txt"), b"ignore\nground\n");
    let named = SegmentationFolder::open(root, "train").unwrap();
    assert_eq!(
        (named.classes(), map_of(&named)),
        (&["ground".to_owned()][..], vec![0, IGNORE_LABEL])
    );
    write(&root.join("classes.txt"), b"ground\n\nsky\n");
    let blank = SegmentationFolder::open(root, "train").unwrap_err();
    assert!(matches!(blank, DataError::BlankLine { line: 2, .. }));
    write(&root.join("classes.txt"), b"a\nb\n");
    write(
        &root.join("trainannot/x.png"),
        &png(1, 1, png::ColorType::Grayscale, &[1]),
    );
    let error = SegmentationFolder::open(root, "train")
        .unwrap()
        .example(0)
        .unwrap_err();
    assert!(
        error.to_string().ends_with("1 x 1 labels for 2 x 1 pixels"),
        "{error}"
    );
}

/// A data set whose label maps are these, one row each.
fn masked(root: &Path, split: &str, masks: &[&[u8]]) {
    for (index, ids) in masks.iter().enumerate() {
        let width = ids.len();
        let image = root.join(split).join(format!("{index:04}.png"));
        write(&image, &Picture::filled(width, 1, [9; 3]).to_png());
        let labels = root.join(format!("{split}annot/{index:04}.png"));
        write(
            &labels,
            &png(width as u32, 1, png::ColorType::Grayscale, ids),
        );
    }
}

fn surveyed(root: &Path, split: &str) -> LabelSurvey {
    let dataset = SegmentationFolder::open(root, split).unwrap();
    let survey = dataset.label_survey().unwrap().unwrap();
    let spread = Spread::new(Arc::new(dataset));
    assert_eq!(spread.label_survey().unwrap().unwrap(), survey);
    survey
}

#[test]
fn masks_of_0_and_255_for_two_classes_are_refused_with_their_shares() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    write(&root.join("classes.txt"), b"ground\ntree\n");
    masked(root, "train", &[&[0, 0, 255, 255], &[0, 255, 0, 0]]);
    let survey = surveyed(root, "train");
    assert_eq!((survey.counted, survey.maps), (2, 2));
    assert_eq!(survey.present_classes(), ["ground"]);
    let found: Vec<_> = survey
        .ids
        .iter()
        .map(|id| (id.id, id.share, id.meaning))
        .collect();
    let expected = [
        (0, 5.0 / 8.0, LabelMeaning::Class(0)),
        (1, 0.0, LabelMeaning::Class(1)),
        (255, 3.0 / 8.0, LabelMeaning::Ignored),
    ];
    assert_eq!(found, expected);
    let error = survey.require_complete().unwrap_err();
    assert!(matches!(&error, DataError::AbsentClasses { absent, .. } if absent == "tree"));
    let error = error.to_string();
    let expected = "of these classes: tree. There are the ids 0 (ground) 62.50 %, 255 (ignored) \
                    37.50 %, 1 (tree) 0.00 %, in 2 of 2 label maps: ";
    assert!(error.contains(expected), "{error}");
    // As held-out data they show one class, which is no mistake.
    survey.require_known().unwrap();
    // What the message asks for mends it.
    write(&root.join("classes.txt"), b"0: ground\n255: tree\n");
    let survey = surveyed(root, "train");
    assert_eq!(survey.present_classes(), ["ground", "tree"]);
    survey.require_complete().unwrap();
}

#[test]
fn ids_that_nobody_declared_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    write(&root.join("classes.txt"), b"ground\nignore\ntree\n");
    masked(root, "train", &[&[0, 1, 2, 255], &[0, 7, 2, 9]]);
    let survey = surveyed(root, "train");
    for error in [survey.require_complete(), survey.require_known()] {
        let error = error.unwrap_err();
        assert!(matches!(&error, DataError::UnknownLabels { unknown, .. } if unknown == "7, 9"));
        assert!(
            error.to_string().contains("7 (no class) 12.50 %"),
            "{error}"
        );
    }
    masked(root, "train", &[&[0, 1, 2, 255], &[0, 1, 2, 1]]);
    surveyed(root, "train").require_complete().unwrap();
}

#[test]
fn a_broken_mask_is_named_in_the_survey() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    write(&root.join("classes.txt"), b"ground\n");
    masked(root, "train", &[&[0], &[0]]);
    let path = root.join("trainannot/0001.png");
    write(&path, b"no image");
    let survey = surveyed(root, "train");
    assert_eq!((survey.counted, survey.maps), (1, 2));
    assert_eq!(survey.unreadable[0].path, path);
    write(&root.join("trainannot/0000.png"), b"");
    let dataset = SegmentationFolder::open(root, "train").unwrap();
    let error = dataset.label_survey().unwrap_err();
    assert!(matches!(error, DataError::BadImage { path, .. } if path.ends_with("0000.png")));
}

#[test]
fn of_many_masks_a_sample_is_counted_until_every_class_has_been_seen() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    write(&root.join("classes.txt"), b"ground\ntree\n");
    let mut masks: Vec<&[u8]> = vec![&[0, 1]; 1001];
    masked(root, "train", &masks);
    // In steps of 3.
    assert_eq!(surveyed(root, "train").counted, 334);
    // The rare class is in one map that the first sample passes over.
    masks.fill(&[0, 0]);
    masks[1] = &[0, 1];
    masked(root, "train", &masks);
    let survey = surveyed(root, "train");
    assert_eq!((survey.counted, survey.maps), (668, 1001));
    survey.require_complete().unwrap();
    // If it is in none, all have been counted.
    masks[1] = &[0, 0];
    masked(root, "train", &masks);
    let survey = surveyed(root, "train");
    assert_eq!(survey.counted, 1001);
    assert!(survey.require_complete().is_err());
}

#[test]
fn known_ids_of_published_data_are_no_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    // CamVid: 11 is what is no class.
    masked(root, "train", &[&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]);
    surveyed(root, "train").require_complete().unwrap();
    masked(root, "train", &[&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12]]);
    assert!(surveyed(root, "train").require_complete().is_err());
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let ids: Vec<u8> = (0..34).collect();
    let image = root.join("leftImg8bit/train/bonn/x_leftImg8bit.png");
    write(&image, &Picture::filled(34, 1, [9; 3]).to_png());
    let labels = root.join("gtFine/train/bonn/x_gtFine_labelIds.png");
    write(&labels, &png(34, 1, png::ColorType::Grayscale, &ids));
    let survey = surveyed(root, "train");
    survey.require_complete().unwrap();
    assert_eq!(survey.present_classes().len(), 19);
}

#[test]
fn the_held_out_part_has_many_names() {
    for name in ["valid", "validation", "val", "dev", "test"] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        masked(root, "train", &[&[0]]);
        masked(root, name, &[&[0], &[1]]);
        let splits = ImageSource::Segmentation(root.to_owned()).open().unwrap();
        assert_eq!((splits.train.len(), splits.test.len()), (1, 2), "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    masked(folder.path(), "train", &[&[0]]);
    let source = ImageSource::Segmentation(folder.path().to_owned());
    let error = source.open().unwrap_err();
    assert!(matches!(
        &error,
        DataError::MissingImageSplit {
            split: "held-out",
            ..
        }
    ));
    let expected = "called valid, validation, val, dev, test, but there is train, trainannot";
    assert!(error.to_string().ends_with(expected), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn images_whose_name_is_not_utf_8_keep_their_labels() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let name = OsStr::from_bytes(b"caf\xe9.png");
    write(
        &root.join("train").join(name),
        &Picture::filled(1, 1, [9; 3]).to_png(),
    );
    let labels = png(1, 1, png::ColorType::Grayscale, &[3]);
    write(&root.join("trainannot").join(name), &labels);
    let dataset = SegmentationFolder::open(root, "train").unwrap();
    assert_eq!(map_of(&dataset), [3]);
}
