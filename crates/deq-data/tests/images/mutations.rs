//! Samples of everything that is parsed, damaged at random: an error or an answer, never a panic.

use crate::support::*;
use deq_data::{Cifar10, DataError, ImageDataset, LabelMap, Picture, SegmentationFolder};
use image::ImageFormat;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use std::path::Path;

const ROUNDS: usize = 400;

/// One to four bytes changed, or a part removed, repeated or made random.
fn mutated(bytes: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..bytes.len().max(1)).min(bytes.len());
        let end = (at + rng.random_range(1..=16)).min(bytes.len());
        match rng.random_range(0..6) {
            0..=2 if at < bytes.len() => {
                let special = [0, 1, 0x7f, 0x80, 0xff, rng.random()];
                bytes[at] = special[rng.random_range(0..special.len())];
            }
            3 => drop(bytes.drain(at..end)),
            4 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// Reads a file, damaged in many ways.
fn attack<T>(sample: &[u8], name: &str, read: impl Fn(&Path) -> Result<T, DataError>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    write(&path, sample);
    read(&path).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(sample.len() as u64);
    let mut refused = 0;
    for _ in 0..ROUNDS {
        write(&path, &mutated(sample, &mut rng));
        if let Err(error) = read(&path) {
            refused += 1;
            let text = error.to_string();
            assert!(
                text.len() < 1000 && !text.contains(char::is_control),
                "{text:?}"
            );
        }
    }
    assert!(refused > 0, "no damage to {name} was noticed");
}

#[test]
fn images() {
    let picture = colourful(19, 11);
    for format in [
        ImageFormat::Png,
        ImageFormat::WebP,
        ImageFormat::Bmp,
        ImageFormat::Tiff,
        ImageFormat::Gif,
        ImageFormat::Pnm,
    ] {
        let name = format!("{format:?}");
        attack(&encoded(&picture, format), &name, Picture::open);
    }
    for (progressive, restart) in [(false, None), (true, Some(3))] {
        attack(&encoded_jpeg(progressive, restart), "jpeg", Picture::open);
    }
}

#[test]
fn label_maps() {
    let map = std::array::from_fn(|id| id as u8);
    for kind in [png::ColorType::Grayscale, png::ColorType::Indexed] {
        let ids: Vec<u8> = (0..120).collect();
        attack(&png(12, 10, kind, &ids), "map.png", |path| {
            LabelMap::open(path, &map)
        });
    }
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
    attack(
        "\u{feff}0: gr\u{fc}n\r\n1: ignore\r\n9: sky".as_bytes(),
        "list",
        read,
    );
    attack(b"road\rsky\rtree\rignore\r", "list", read);
}

#[test]
fn records() {
    let sample = [[3; 3073], [9; 3073]].concat();
    attack(&sample, "train.bin", |path| {
        let dataset = Cifar10::from_files(&[path.to_owned()])?;
        dataset.example(dataset.len() - 1)
    });
}
