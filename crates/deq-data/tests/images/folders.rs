//! Class folders and CIFAR-10.

use crate::support::*;
use deq_data::{
    Cifar10, DataError, Example, ImageDataset, ImageFolder, ImageSource, Loader, LoaderConfig,
    Normalization, Picture, SegmentationFolder, Spread, Target, Transform,
};
use jpeg_encoder::ColorType;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    assert_eq!(
        batch.skipped[0].reason,
        "cut short: the end of its pixels is missing"
    );
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
        error.starts_with("none of the 3 images of a batch can be used; the first is"),
        "{error}"
    );
    // Held-out files are measured one by one where their sizes differ; those that are broken are
    // left out.
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
    let Example {
        picture, target, ..
    } = train.example(1).unwrap();
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
fn cifar_images_carry_their_label_in_the_name() {
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

fn class_folder(root: &Path, split: &str) {
    write(&root.join(split).join("a/0.png"), &colourful(2, 2).to_png());
    write(&root.join(split).join("b/0.png"), &colourful(2, 2).to_png());
}

#[test]
fn the_held_out_part_has_many_names() {
    for name in ["valid", "validation", "val", "dev", "test"] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        class_folder(root, "train");
        class_folder(root, name);
        let splits = ImageSource::ImageFolder(root.to_owned()).open().unwrap();
        assert_eq!(splits.test.len(), 2, "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    class_folder(root, "train");
    class_folder(root, "testing");
    let source = ImageSource::ImageFolder(root.to_owned());
    let error = source.open().unwrap_err().to_string();
    let expected = "has no folder of held-out images: it must be called valid, validation, val, \
                    dev, test, but there is testing, train";
    assert!(error.ends_with(expected), "{error}");
    // Where there is more than one, that which is meant for the time of training.
    class_folder(root, "val");
    write(&root.join("test/a/0.png"), b"");
    assert_eq!(source.open().unwrap().test.len(), 2);
    let flat = ImageSource::ImageFolder(root.join("train"));
    let error = flat.open().unwrap_err().to_string();
    let expected = "no folder of training images: it must be called train, but there is a, b";
    assert!(error.ends_with(expected), "{error}");
    let cifar = tempfile::tempdir().unwrap();
    write(
        &cifar.path().join("val/0_3.png"),
        &colourful(32, 32).to_png(),
    );
    assert_eq!(Cifar10::test(cifar.path()).unwrap().len(), 1);
}

#[test]
fn what_is_not_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    class_folder(root, ".");
    let left_out = [
        "README",
        "loose.png",
        "a/0.heic",
        "a/0.JPG2",
        "a/more/list.txt",
        "b/x",
    ];
    for name in left_out {
        write(&root.join(name), b"something");
    }
    write(&root.join("a/more/1.WebP"), b"");
    write(&root.join("a/.hidden"), b"");
    let dataset = ImageFolder::open(root).unwrap();
    assert_eq!(dataset.len(), 3);
    let mut found = dataset.left_out().to_vec();
    found.sort();
    let mut expected: Vec<PathBuf> = left_out.iter().map(|name| root.join(name)).collect();
    expected.sort();
    assert_eq!(found, expected);
    let spread = Spread::new(Arc::new(dataset));
    assert_eq!(spread.left_out().len(), left_out.len());
    // A class of nothing else is refused with what is there.
    write(&root.join("c/0.heic"), b"");
    let error = ImageFolder::open(root).unwrap_err().to_string();
    assert!(
        error.ends_with("or PNM files, but there is 0.heic"),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn a_link_to_a_folder_is_a_class_but_not_followed_further_down() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    class_folder(root, "train");
    symlink(root.join("train/a"), root.join("train/c")).unwrap();
    symlink(root.join("train"), root.join("train/b/round")).unwrap();
    symlink(root.join("nowhere"), root.join("train/b/broken.png")).unwrap();
    let dataset = ImageFolder::open(&root.join("train")).unwrap();
    assert_eq!((dataset.len(), dataset.classes().len()), (3, 3));
    let left_out = ["train/b/broken.png", "train/b/round"].map(|name| root.join(name));
    assert_eq!(dataset.left_out(), left_out);
}

// Other systems do not have such names.
#[cfg(target_os = "linux")]
#[test]
fn a_class_whose_name_is_not_utf_8_keeps_its_images() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    for split in ["train", "val"] {
        for class in [&b"caf\xe9"[..], b"caf\xea", b"tea"] {
            let class = folder.path().join(split).join(OsStr::from_bytes(class));
            write(&class.join("0.png"), &colourful(2, 2).to_png());
        }
    }
    let source = ImageSource::ImageFolder(folder.path().to_owned());
    let splits = source.open().unwrap();
    assert_eq!(splits.train.classes(), ["caf\\xe9", "caf\\xea", "tea"]);
    for part in [splits.train, splits.test] {
        let targets = (0..3).map(|index| part.example(index).unwrap().target);
        assert!(targets.eq([0, 1, 2].map(Target::Class)));
    }
}

#[test]
fn the_official_archive_may_be_given_as_it_unpacks() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("cifar-10-batches-bin");
    write(&place.join("data_batch_1.bin"), &[0; 2 * 3073]);
    write(&place.join("test_batch.bin"), &[1; 3073]);
    let source: ImageSource = format!("cifar10:{}", folder.path().display())
        .parse()
        .unwrap();
    let splits = source.open().unwrap();
    assert_eq!((splits.train.len(), splits.test.len()), (2, 1));
}

#[test]
fn more_records_than_fit_into_memory_are_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.bin");
    // A hole, which takes no space.
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(3073 * 1_000_001).unwrap();
    let error = Cifar10::train(folder.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("there are more than 1000000 images"),
        "{error}"
    );
}

#[test]
fn files_that_cannot_be_used_are_found_at_a_quick_look() {
    let folder = tempfile::tempdir().unwrap();
    class_folders(folder.path());
    let found = ImageFolder::open(folder.path())
        .unwrap()
        .unusable()
        .unwrap();
    let names: Vec<_> = found
        .iter()
        .map(|file| file.path.file_name().unwrap())
        .collect();
    assert_eq!(
        names,
        ["3-cut.jpg", "4-empty.jpg", "5-text.jpg", "6-text.png"]
    );
    assert!(
        found.iter().all(|file| !file.reason.is_empty()),
        "{found:?}"
    );

    // Of many, those that are not read in full are known by their beginning.
    let folder = tempfile::tempdir().unwrap();
    let image = |index: usize| folder.path().join(format!("a/{index:03}.jpg"));
    let whole = detailed_jpeg();
    (0..520).for_each(|index| write(&image(index), &whole));
    write(&image(3), &whole[..whole.len() / 2]);
    write(&image(4), &whole[..whole.len() / 2]);
    write(&image(6), &whole[..10]);
    write(&image(7), b"no image");
    let found = ImageFolder::open(folder.path())
        .unwrap()
        .unusable()
        .unwrap();
    let paths: Vec<_> = found.into_iter().map(|file| file.path).collect();
    assert_eq!(paths, [3, 6, 7].map(image));
}

#[test]
fn label_maps_that_cannot_be_used_are_found_at_a_quick_look() {
    let folder = tempfile::tempdir().unwrap();
    let ids = png(1, 1, png::ColorType::Grayscale, &[0]);
    for name in ["a", "b", "c"] {
        let picture = Picture::filled(1, 1, [9; 3]).to_png();
        write(&folder.path().join(format!("train/{name}.png")), &picture);
        write(&folder.path().join(format!("trainannot/{name}.png")), &ids);
    }
    write(&folder.path().join("trainannot/b.png"), b"no map");
    write(&folder.path().join("train/c.png"), &ids[..20]);
    let dataset = SegmentationFolder::open(folder.path(), "train").unwrap();
    let found = dataset.unusable().unwrap();
    let paths: Vec<_> = found.into_iter().map(|file| file.path).collect();
    assert_eq!(
        paths,
        ["trainannot/b.png", "train/c.png"].map(|name| folder.path().join(name))
    );
}
