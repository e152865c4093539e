//! Data are recognised wherever they lie, and are others when something in them has changed.

use crate::support::*;
use deq_data::{ImageDataset, ImageSource, Picture, Shapes, VisionTask};
use std::path::Path;

fn of(kind: &str, root: &Path) -> u64 {
    let source: ImageSource = format!("{kind}:{}", root.display()).parse().unwrap();
    source.open().unwrap().fingerprint().unwrap()
}

/// What a data set is before, after a move, and after each of some changes.
fn check(kind: &str, make: impl Fn(&Path), changes: &[&dyn Fn(&Path)]) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("here");
    make(&root);
    let first = of(kind, &root);
    let moved = folder.path().join("there/and/further");
    std::fs::create_dir_all(moved.parent().unwrap()).unwrap();
    std::fs::rename(&root, &moved).unwrap();
    assert_eq!(of(kind, &moved), first, "{kind} moved");
    let mut seen = vec![first];
    for (index, change) in changes.iter().enumerate() {
        let copy = folder.path().join(format!("copy-{index}"));
        make(&copy);
        assert_eq!(of(kind, &copy), first, "{kind} copied");
        change(&copy);
        let changed = of(kind, &copy);
        assert!(!seen.contains(&changed), "{kind}, change {index}");
        seen.push(changed);
    }
}

fn rename(root: &Path, from: &str, to: &str) {
    std::fs::rename(root.join(from), root.join(to)).unwrap();
}

/// Changes one byte of a file, or makes it longer by one.
fn touch(root: &Path, name: &str, longer: bool) {
    let path = root.join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    match longer {
        true => bytes.push(0),
        false => *bytes.last_mut().unwrap() ^= 1,
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn class_folders() {
    let make = |root: &Path| {
        for name in [
            "train/a/0.png",
            "train/b/0.png",
            "train/b/1.png",
            "val/b/0.png",
        ] {
            write(&root.join(name), &colourful(5, 4).to_png());
        }
    };
    check(
        "imagefolder",
        make,
        &[
            &|root| rename(root, "train/b/1.png", "train/b/2.png"),
            &|root| rename(root, "train/b/1.png", "train/a/1.png"),
            &|root| rename(root, "train/a", "train/0"),
            &|root| touch(root, "train/a/0.png", false),
            &|root| touch(root, "train/a/0.png", true),
            &|root| touch(root, "val/b/0.png", false),
            &|root| std::fs::remove_file(root.join("train/b/1.png")).unwrap(),
        ],
    );
    // What is not read does not count.
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let before = of("imagefolder", folder.path());
    write(&folder.path().join("train/a/notes.txt"), b"new");
    assert_eq!(of("imagefolder", folder.path()), before);
}

#[test]
fn label_maps() {
    let make = |root: &Path| {
        write(&root.join("classes.txt"), b"ground\ntree\n");
        for split in ["train", "val"] {
            let image = Picture::filled(2, 1, [9; 3]).to_png();
            write(&root.join(split).join("x.png"), &image);
            let labels = png(2, 1, png::ColorType::Grayscale, &[0, 1]);
            write(&root.join(format!("{split}annot/x.png")), &labels);
        }
    };
    check(
        "segmentation",
        make,
        &[
            &|root| touch(root, "train/x.png", false),
            &|root| touch(root, "trainannot/x.png", false),
            &|root| touch(root, "valannot/x.png", true),
            &|root| write(&root.join("classes.txt"), b"ground\nbush\n"),
            &|root| write(&root.join("classes.txt"), b"0: ground\n2: tree\n"),
        ],
    );
}

#[test]
fn cifar_10_in_records_and_in_files() {
    let records = |root: &Path| {
        write(&root.join("data_batch_1.bin"), &[2; 2 * 3073]);
        write(&root.join("test_batch.bin"), &[1; 3073]);
    };
    let more = |root: &Path| write(&root.join("data_batch_2.bin"), &[2; 3073]);
    check(
        "cifar10",
        records,
        &[&|root| touch(root, "data_batch_1.bin", false), &more],
    );
    let files = |root: &Path| {
        for name in ["train/0_1.png", "train/1_2.png", "test/0_3.png"] {
            write(&root.join(name), &colourful(32, 32).to_png());
        }
    };
    check(
        "cifar10",
        files,
        &[
            &|root| rename(root, "train/1_2.png", "train/1_4.png"),
            &|root| touch(root, "test/0_3.png", false),
        ],
    );
}

#[test]
fn generated_images_are_what_they_are_made_from() {
    let of = |task, size, count, seed| {
        let shapes = Shapes::new(task, size, count, seed).unwrap();
        shapes.fingerprint().unwrap()
    };
    let (class, pixel) = (VisionTask::Classification, VisionTask::Segmentation);
    let first = of(class, 32, 100, 1);
    assert_eq!(of(class, 32, 100, 1), first);
    for other in [
        of(pixel, 32, 100, 1),
        of(class, 33, 100, 1),
        of(class, 32, 99, 1),
        of(class, 32, 100, 2),
    ] {
        assert_ne!(other, first);
    }
}
