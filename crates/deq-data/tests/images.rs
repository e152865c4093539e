//! Files of every kind, broken ones among them, and loaders over them.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use deq_data::{
    Cifar10, DataError, Example, IGNORE_LABEL, ImageDataset, ImageFolder, ImageSource, LabelMap,
    Loader, LoaderConfig, Normalization, Picture, SegmentationFolder, Shapes, Target, Transform,
    VisionTask,
};
use jpeg_encoder::{ColorType, Encoder};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const SIDE: usize = 48;

/// A JPEG of one colour.
fn jpeg(color: &[u8], kind: ColorType) -> Vec<u8> {
    let mut bytes = Vec::new();
    let data = color.repeat(SIDE * SIDE);
    let encoder = Encoder::new(&mut bytes, 95);
    encoder
        .encode(&data, SIDE as u16, SIDE as u16, kind)
        .unwrap();
    bytes
}

/// A JPEG with so much detail that it cannot be short.
fn detailed_jpeg() -> Vec<u8> {
    let shapes = Shapes::new(VisionTask::Classification, SIDE, 1, 0).unwrap();
    let picture = shapes.example(0).unwrap().picture;
    let mut bytes = Vec::new();
    let encoder = Encoder::new(&mut bytes, 95);
    encoder
        .encode(picture.data(), SIDE as u16, SIDE as u16, ColorType::Rgb)
        .unwrap();
    bytes
}

fn png(width: u32, height: u32, kind: png::ColorType, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(kind);
    encoder.set_depth(png::BitDepth::Eight);
    if kind == png::ColorType::Indexed {
        let palette: Vec<u8> = (0..256).flat_map(|i| [255 - i as u8, 7, 9]).collect();
        encoder.set_palette(palette);
    }
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(data).unwrap();
    drop(writer);
    bytes
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn close(found: [u8; 3], expected: [u8; 3]) -> bool {
    found.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 6)
}

#[test]
fn every_colour_space_becomes_rgb() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("picture.jpg");
    for (bytes, expected) in [
        (jpeg(&[200, 40, 90], ColorType::Rgb), [200, 40, 90]),
        (jpeg(&[120], ColorType::Luma), [120, 120, 120]),
        // Full cyan takes all red, half magenta half of the green.
        (jpeg(&[255, 128, 0, 0], ColorType::Cmyk), [0, 127, 255]),
        (jpeg(&[0, 0, 0, 255], ColorType::Cmyk), [0, 0, 0]),
        (
            jpeg(&[255, 128, 0, 0], ColorType::CmykAsYcck),
            [0, 127, 255],
        ),
    ] {
        write(&path, &bytes);
        let picture = Picture::open(&path).unwrap();
        assert_eq!((picture.width(), picture.height()), (SIDE, SIDE));
        let found = picture.pixel(SIDE / 2, SIDE / 2);
        assert!(close(found, expected), "{found:?}, not {expected:?}");
    }
    // What a file is, its bytes say, not its name.
    write(&path, &png(1, 1, png::ColorType::Rgba, &[1, 2, 3, 0]));
    assert_eq!(Picture::open(&path).unwrap().pixel(0, 0), [1, 2, 3]);
    write(&path, &png(1, 1, png::ColorType::Indexed, &[5]));
    assert_eq!(Picture::open(&path).unwrap().pixel(0, 0), [250, 7, 9]);
}

#[test]
fn no_damage_is_a_panic_or_goes_unnoticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.jpg");
    let whole = detailed_jpeg();
    let png = Picture::filled(9, 9, [1, 2, 3]).to_png();
    let mut cases: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"no picture at all".to_vec(),
        b"GIF89a".to_vec(),
        vec![0xff, 0xd8],
        vec![0xff, 0xd8, 0xff, 0xd9],
        png[..png.len() - 20].to_vec(),
    ];
    cases.extend((1..40).map(|part| whole[..whole.len() * part / 40].to_vec()));
    cases.push(whole[..whole.len() - 2].to_vec());
    for bytes in cases {
        write(&path, &bytes);
        let error = Picture::open(&path).unwrap_err();
        assert!(
            matches!(&error, DataError::BadImage { path: named, .. } if *named == path),
            "{error}"
        );
        assert!(error.to_string().contains("broken.jpg cannot be used"));
    }
    // Damage in the middle may still give a picture, but no panic.
    for place in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x5a;
        write(&path, &bytes);
        let _ = Picture::open(&path);
    }
}

/// Two classes of three pictures each; in the second one, four broken ones besides.
fn class_folders(root: &Path) {
    for (name, kind, color) in [
        ("a/0.jpg", ColorType::Rgb, &[10, 10, 10][..]),
        ("a/1.JPEG", ColorType::Luma, &[60]),
        ("a/2.jpg", ColorType::Cmyk, &[0, 0, 0, 0]),
        ("b/0.jpg", ColorType::Rgb, &[90, 10, 10]),
        ("b/1.jpg", ColorType::Rgb, &[120, 10, 10]),
        ("b/2.jpg", ColorType::Rgb, &[150, 10, 10]),
    ] {
        write(&root.join(name), &jpeg(color, kind));
    }
    let whole = detailed_jpeg();
    write(&root.join("b/3-cut.jpg"), &whole[..whole.len() / 2]);
    write(&root.join("b/4-empty.jpg"), b"");
    write(&root.join("b/5-text.jpg"), b"this is text");
    write(&root.join("b/6-text.png"), b"so is this");
    write(&root.join("b/notes.txt"), b"no picture by its name");
    write(&root.join("b/._0.jpg"), b"hidden");
}

fn eval_loader(dataset: impl ImageDataset + 'static, batch: usize) -> Loader {
    let transform = Transform::CenterCrop {
        resize: 32,
        crop: 32,
    };
    let config = LoaderConfig::evaluation(batch);
    Loader::new(
        Arc::new(dataset),
        transform,
        Normalization::IMAGENET,
        config,
    )
    .unwrap()
}

#[test]
fn broken_files_are_named_counted_and_left_out() {
    let folder = tempfile::tempdir().unwrap();
    class_folders(folder.path());
    let dataset = ImageFolder::open(folder.path()).unwrap();
    assert_eq!(
        (dataset.len(), dataset.classes()),
        (10, &["a".to_owned(), "b".to_owned()][..])
    );
    let loader = eval_loader(dataset, 6);
    let batches: Vec<_> = loader.batches(0..2).map(Result::unwrap).collect();
    assert_eq!((batches[0].len, batches[0].skipped.len()), (6, 0));
    assert_eq!(batches[0].targets, [0, 0, 0, 1, 1, 1]);
    // All four at the end are broken.
    assert_eq!((batches[1].len, batches[1].skipped.len()), (0, 4));
    let all = eval_loader(ImageFolder::open(folder.path()).unwrap(), 10);
    let batch = all.batch(0).unwrap();
    assert_eq!((batch.len, batch.indices), (6, vec![0, 1, 2, 3, 4, 5]));
    assert_eq!(batch.pixels.len(), 6 * 3 * 32 * 32);
    let skipped: Vec<String> = batch
        .skipped
        .iter()
        .map(|file| {
            file.path
                .file_name()
                .unwrap()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    assert_eq!(
        skipped,
        ["3-cut.jpg", "4-empty.jpg", "5-text.jpg", "6-text.png"]
    );
    assert_eq!(batch.skipped[0].reason, "cut short: it has no end marker");
}

#[test]
fn a_batch_to_train_on_without_a_usable_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["0.jpg", "1.jpg", "2.jpg"] {
        write(&folder.path().join("a").join(name), b"no picture");
    }
    let dataset = || ImageFolder::open(folder.path()).unwrap();
    let normalization = Normalization::IMAGENET;
    let transform = Transform::RandomResizedCrop { size: 8 };
    let config = LoaderConfig::training(3, 1);
    let loader = Loader::new(Arc::new(dataset()), transform, normalization, config).unwrap();
    let error = loader.batch(0).unwrap_err().to_string();
    assert!(
        error.starts_with("none of the 3 pictures of a batch can be used; the first is"),
        "{error}"
    );
    // Held-out files are measured one by one where their sizes differ; those that are broken are left out.
    let held_out = eval_loader(dataset(), 1);
    for batch in held_out.batches(0..3) {
        let batch = batch.unwrap();
        assert_eq!((batch.len, batch.skipped.len()), (0, 1));
    }
}

#[test]
fn folders_that_do_not_fit_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    class_folders(&root.join("train"));
    write(&root.join("val/b/0.jpg"), &detailed_jpeg());
    let splits = ImageSource::ImageFolder(root.to_owned()).open().unwrap();
    // A class may be missing in val, and the ids are still those of train.
    assert_eq!(splits.test.example(0).unwrap().target, Target::Class(1));
    write(&root.join("val/c/0.jpg"), &detailed_jpeg());
    let error = ImageSource::ImageFolder(root.to_owned())
        .open()
        .unwrap_err();
    assert!(matches!(error, DataError::UnknownClassFolder { path } if path.ends_with("val/c")));
    for missing in ["imagefolder:", "cifar10:", "segmentation:"] {
        let source: ImageSource = format!("{missing}{}/nowhere", root.display())
            .parse()
            .unwrap();
        assert!(
            matches!(source.open().unwrap_err(), DataError::NoFolder { .. }),
            "{missing}"
        );
    }
    let nothing: ImageSource = format!("cifar10:{}", root.display()).parse().unwrap();
    let error = nothing.open().unwrap_err().to_string();
    assert!(
        error.contains("no label in its name") || error.contains("CIFAR-10 is"),
        "{error}"
    );
}

#[test]
fn sources_are_their_names() {
    for name in [
        "shapes",
        "shapes-segmentation",
        "cifar10:some/where",
        "imagefolder:/a:b",
        "segmentation:x",
    ] {
        assert_eq!(name.parse::<ImageSource>().unwrap().to_string(), name);
    }
    for wrong in ["", "shape", "shapes:x", "cifar10", "cifar10:", "mnist:x"] {
        assert!(wrong.parse::<ImageSource>().is_err(), "{wrong:?}");
    }
}

#[test]
fn cifar_records_are_read_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mut records = Vec::new();
    for label in [3_u8, 9] {
        records.push(label);
        for plane in 0..3_u8 {
            records.extend((0..1024).map(|i| (i % 32) as u8 + 50 * plane + label));
        }
    }
    write(&root.join("data_batch_1.bin"), &records);
    write(&root.join("test_batch.bin"), &records[..3073]);
    let train = Cifar10::train(root).unwrap();
    assert_eq!((train.len(), Cifar10::test(root).unwrap().len()), (2, 1));
    let Example { picture, target } = train.example(1).unwrap();
    assert_eq!(target, Target::Class(9));
    assert_eq!(picture.pixel(7, 20), [16, 66, 116]);
    write(&root.join("data_batch_2.bin"), &records[..3000]);
    let error = Cifar10::train(root).unwrap_err().to_string();
    assert!(error.contains("data_batch_2.bin has 3000 bytes"), "{error}");
    records[0] = 10;
    write(&root.join("data_batch_2.bin"), &records);
    let error = Cifar10::train(root).unwrap_err();
    assert!(matches!(
        error,
        DataError::LabelOutOfRange { label: 10, .. }
    ));
}

#[test]
fn cifar_pictures_carry_their_label_in_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for part in ["train", "test"] {
        write(
            &root.join(part).join("00000_6.jpg"),
            &jpeg(&[9, 9, 9], ColorType::Rgb),
        );
        write(
            &root.join(part).join("00001_2.jpg"),
            &jpeg(&[9, 9, 9], ColorType::Rgb),
        );
    }
    let train = Cifar10::train(root).unwrap();
    assert_eq!(train.example(0).unwrap().target, Target::Class(6));
    assert_eq!(train.classes()[6], "frog");
    write(&root.join("test/cat.jpg"), b"");
    assert!(matches!(
        Cifar10::test(root).unwrap_err(),
        DataError::NoLabelInName { .. }
    ));
}

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
    let map = |dataset: &SegmentationFolder| match dataset.example(0).unwrap().target {
        Target::Map(map) => map.data().to_vec(),
        Target::Class(_) => panic!("a segmentation has maps"),
    };
    let camvid = SegmentationFolder::open(root, "train").unwrap();
    assert_eq!(
        (camvid.classes().len(), map(&camvid)),
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
        (named.classes(), map(&named)),
        (&["ground".to_owned()][..], vec![IGNORE_LABEL; 2])
    );
    write(&root.join("classes.txt"), b"ignore\nground\n");
    let named = SegmentationFolder::open(root, "train").unwrap();
    assert_eq!(
        (named.classes(), map(&named)),
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

#[test]
fn pictures_of_different_sizes_need_a_transform() {
    #[derive(Debug)]
    struct Mixed;
    impl ImageDataset for Mixed {
        fn len(&self) -> usize {
            2
        }
        fn example(&self, index: usize) -> Result<Example, DataError> {
            Ok(Example {
                picture: Picture::filled(4 + index, 4, [1, 2, 3]),
                target: Target::Class(0),
            })
        }
        fn classes(&self) -> &[String] {
            &[]
        }
        fn task(&self) -> VisionTask {
            VisionTask::Classification
        }
    }
    let loader = |transform| {
        let config = LoaderConfig::evaluation(2);
        Loader::new(Arc::new(Mixed), transform, Normalization::SHAPES, config).unwrap()
    };
    let error = loader(Transform::Whole).batch(0).unwrap_err();
    assert!(matches!(
        error,
        DataError::MixedSizes {
            first: (4, 4),
            other: (5, 4)
        }
    ));
    assert_eq!(
        loader(Transform::Resize {
            width: 3,
            height: 3
        })
        .batch(0)
        .unwrap()
        .len,
        2
    );
}

fn shapes_loader(task: VisionTask, workers: usize, seed: u64) -> Loader {
    let dataset = Shapes::new(task, 32, 50, 3).unwrap();
    let transform = Transform::ScaleCrop {
        width: 24,
        height: 24,
        min_scale: 0.5,
        max_scale: 2.0,
    };
    let config = LoaderConfig {
        workers,
        ..LoaderConfig::training(8, seed)
    };
    Loader::new(Arc::new(dataset), transform, Normalization::SHAPES, config).unwrap()
}

#[test]
fn batches_do_not_depend_on_the_number_of_workers() {
    for task in [VisionTask::Classification, VisionTask::Segmentation] {
        let batches = |workers, range| -> Vec<_> {
            let loader = shapes_loader(task, workers, 1);
            loader.batches(range).map(Result::unwrap).collect()
        };
        // 6 batches an epoch, so this begins in the first and ends in the third.
        let one = batches(1, 2..15);
        assert_eq!(one.len(), 13);
        assert!(one == batches(4, 2..15) && one == batches(0, 2..15));
        assert!(one.iter().zip(2..).all(|(batch, step)| batch.step == step));
        // And one that was interrupted goes on with the same ones.
        assert!(one[5..] == batches(3, 7..15));
    }
}

#[test]
fn every_epoch_has_an_order_and_crops_of_its_own() {
    let loader = shapes_loader(VisionTask::Classification, 2, 1);
    assert_eq!(loader.batches_per_epoch(), 6);
    let epoch = |loader: &Loader, epoch: usize| -> Vec<usize> {
        let batches = loader.batches(6 * epoch..6 * epoch + 6);
        batches.flat_map(|batch| batch.unwrap().indices).collect()
    };
    let (first, second) = (epoch(&loader, 0), epoch(&loader, 1));
    for order in [&first, &second] {
        let distinct: std::collections::BTreeSet<_> = order.iter().collect();
        assert_eq!(distinct.len(), 48);
    }
    assert_ne!(first, second);
    assert_ne!(
        first,
        epoch(&shapes_loader(VisionTask::Classification, 2, 2), 0)
    );
    assert_eq!(
        first,
        epoch(&shapes_loader(VisionTask::Segmentation, 2, 1), 0)
    );
}

/// Counts what is read; example 13 panics if asked to.
#[derive(Debug)]
struct Counting {
    read: Arc<AtomicUsize>,
    panics: bool,
    classes: Vec<String>,
}

impl ImageDataset for Counting {
    fn len(&self) -> usize {
        1000
    }
    fn example(&self, index: usize) -> Result<Example, DataError> {
        self.read.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics || index != 13, "as the test wants it");
        Ok(Example {
            picture: Picture::filled(2, 2, [1, 2, 3]),
            target: Target::Class(0),
        })
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn task(&self) -> VisionTask {
        VisionTask::Classification
    }
}

fn counting(panics: bool) -> (Loader, Arc<AtomicUsize>) {
    let read = Arc::new(AtomicUsize::new(0));
    let dataset = Counting {
        read: read.clone(),
        panics,
        classes: Vec::new(),
    };
    let config = LoaderConfig {
        workers: 3,
        prefetch: 2,
        ..LoaderConfig::evaluation(10)
    };
    let loader = Loader::new(
        Arc::new(dataset),
        Transform::Whole,
        Normalization::SHAPES,
        config,
    );
    (loader.unwrap(), read)
}

#[test]
fn workers_are_ahead_by_a_bounded_number_of_batches() {
    let (loader, read) = counting(false);
    let mut batches = loader.batches(0..100);
    for taken in 1..20 {
        batches.next().unwrap().unwrap();
        // Time to run away, for workers that did not wait.
        std::thread::sleep(std::time::Duration::from_millis(3));
        assert!(read.load(Ordering::SeqCst) <= 10 * (taken + 3 + 2));
    }
    // Workers that wait for room end with the iterator.
    drop(batches);
    let after = read.load(Ordering::SeqCst);
    std::thread::sleep(std::time::Duration::from_millis(10));
    assert_eq!(read.load(Ordering::SeqCst), after);
    assert_eq!(loader.batches(0..100).count(), 100);
    assert_eq!(loader.batches(7..7).count(), 0);
}

#[test]
#[should_panic(expected = "as the test wants it")]
fn a_panic_of_a_worker_comes_through() {
    let (loader, _) = counting(true);
    loader.batches(0..100).count();
}

#[test]
fn shapes_depend_on_seed_and_index_alone() {
    let make = |task, seed| Shapes::new(task, 32, 80, seed).unwrap();
    for task in [VisionTask::Classification, VisionTask::Segmentation] {
        let shapes = make(task, 1);
        assert_eq!(
            shapes.example(41).unwrap(),
            make(task, 1).example(41).unwrap()
        );
        assert_ne!(
            shapes.example(41).unwrap(),
            make(task, 2).example(41).unwrap()
        );
        assert_ne!(shapes.example(41).unwrap(), shapes.example(49).unwrap());
    }
    let classes = make(VisionTask::Classification, 1);
    let mut counts = [0; 8];
    for index in 0..80 {
        let Target::Class(class) = classes.example(index).unwrap().target else {
            panic!("a class");
        };
        counts[usize::from(class)] += 1;
    }
    assert_eq!(counts, [10; 8]);
    assert!(Shapes::new(VisionTask::Classification, 8, 1, 0).is_err());
    assert!(Shapes::new(VisionTask::Classification, 32, 0, 0).is_err());
}

#[test]
fn shapes_to_segment_stand_out_where_their_labels_say() {
    let shapes = Shapes::new(VisionTask::Segmentation, 48, 60, 1).unwrap();
    let weights = shapes.class_weights();
    assert!(weights[1..].iter().all(|weight| *weight > 3.0 * weights[0]));
    let mut seen = std::collections::BTreeSet::new();
    for index in 0..60 {
        let Example { picture, target } = shapes.example(index).unwrap();
        let Target::Map(map) = target else {
            panic!("a map");
        };
        // Where the label changes between neighbours, the colour mostly jumps by more than the noise of twice 20 allows.
        let (mut edges, mut jumps) = (0, 0);
        for y in 0..48 {
            for x in 0..46 {
                let labels = (map.pixel(x, y), map.pixel(x + 2, y));
                seen.insert(labels.0[0]);
                if labels.0 != labels.1 && (labels.0 == [0] || labels.1 == [0]) {
                    let (a, b) = (picture.pixel(x, y), picture.pixel(x + 2, y));
                    let largest = (0..3).map(|c| a[c].abs_diff(b[c])).max().unwrap();
                    edges += 1;
                    jumps += usize::from(largest > 20);
                }
            }
        }
        assert!(
            edges > 0 && jumps * 10 >= edges * 9,
            "{index}: {jumps} of {edges}"
        );
    }
    assert_eq!(seen.len(), 9);
}

#[test]
fn a_saved_picture_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("picture.png");
    let shapes = Shapes::new(VisionTask::Classification, 32, 1, 0).unwrap();
    let picture = shapes.example(0).unwrap().picture;
    picture.save_png(&path).unwrap();
    assert_eq!(Picture::open(&path).unwrap(), picture);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let nowhere = folder.path().join("no/folder.png");
    assert!(matches!(
        picture.save_png(&nowhere).unwrap_err(),
        DataError::Io { .. }
    ));
}
