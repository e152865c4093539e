//! Samples of everything that is parsed, damaged at random: an error or an answer, never a panic.

use crate::support::*;
use deq_data::{Cifar10, DataError, ImageDataset, LabelMap, Picture, SegmentationFolder};
use deq_testkit::fuzz;
use image::ImageFormat;
use std::path::Path;

/// Reads whole samples, and then damaged ones.
fn attack<T>(
    target: &str,
    (name, samples): (&str, &[Vec<u8>]),
    read: impl Fn(&Path) -> Result<T, DataError>,
) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    for sample in samples {
        write(&path, sample);
        read(&path).unwrap();
    }
    let mut refused = 0;
    fuzz(target, samples, 400 * samples.len() as u64, |bytes| {
        write(&path, bytes);
        if let Err(error) = read(&path) {
            refused += 1;
            let text = error.to_string();
            assert!(
                text.len() < 1000 && !text.contains(char::is_control),
                "{text:?}"
            );
        }
    });
    assert!(refused > 0, "no damage to {target} was noticed");
}

#[test]
fn images() {
    let picture = colourful(19, 11);
    let mut samples = [
        ImageFormat::Png,
        ImageFormat::WebP,
        ImageFormat::Bmp,
        ImageFormat::Tiff,
        ImageFormat::Gif,
        ImageFormat::Pnm,
    ]
    .map(|format| encoded(&picture, format))
    .to_vec();
    for (progressive, restart) in [(false, None), (true, Some(3))] {
        samples.push(encoded_jpeg(progressive, restart));
    }
    attack("images", ("image", &samples), Picture::open);
}

#[test]
fn label_maps() {
    let map = std::array::from_fn(|id| id as u8);
    let ids: Vec<u8> = (0..120).collect();
    let samples = [png::ColorType::Grayscale, png::ColorType::Indexed];
    let samples = samples.map(|kind| png(12, 10, kind, &ids));
    attack("label maps", ("map.png", &samples), |path| {
        LabelMap::open(path, &map)
    });
}

#[test]
fn lists_of_classes() {
    let images = tempfile::tempdir().unwrap();
    write(
        &images.path().join("train/x.png"),
        &Picture::filled(1, 1, [9; 3]).to_png(),
    );
    let labels = png(1, 1, png::ColorType::Grayscale, &[0]);
    write(&images.path().join("trainannot/x.png"), &labels);
    let read = |path: &Path| {
        std::fs::copy(path, images.path().join("classes.txt")).unwrap();
        SegmentationFolder::open(images.path(), "train")?.example(0)
    };
    let samples = [
        "\u{feff}0: gr\u{fc}n\r\n1: ignore\r\n9: sky",
        "road\rsky\rtree\rignore\r",
    ];
    let samples = samples.map(|sample| sample.as_bytes().to_vec());
    attack("lists of classes", ("list", &samples), read);
}

#[test]
fn records() {
    let sample = [[3; 3073], [9; 3073]].concat();
    attack("records of CIFAR-10", ("train.bin", &[sample]), |path| {
        let dataset = Cifar10::from_files(&[path.to_owned()])?;
        dataset.example(dataset.len() - 1)
    });
}
