//! The image loader: JPEG files decoded, resized, cut and normalised by two workers.

use crate::suite::{Failure, Outcome, Suite, integers};
use burn::tensor::TensorData;
use deq_data::{ImageFolder, Loader, LoaderConfig, Normalization, Transform};
use jpeg_encoder::{ColorType, Encoder};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

const FILES: usize = 128;
const CLASSES: usize = 2;
const BATCH: usize = 32;
const WORKERS: usize = 2;
/// Columns and rows, of the order of ImageNet's photographs.
const SIZE: (u16, u16) = (500, 375);
const RESIZE: usize = 256;
const CROP: usize = 224;

/// One pass over the files with the transform of ImageNet's evaluation.
pub(crate) fn suite(folder: &Path) -> Result<Suite, Failure> {
    let root = folder.join("images");
    for number in 0..FILES {
        let class = root.join(format!("class{}", number % CLASSES));
        std::fs::create_dir_all(&class)?;
        let encoder = Encoder::new_file(class.join(format!("{number:04}.jpg")), 90)?;
        encoder.encode(&picture(number), SIZE.0, SIZE.1, ColorType::Rgb)?;
    }
    let config = LoaderConfig {
        batch: BATCH,
        seed: 0,
        shuffle: false,
        workers: WORKERS,
        prefetch: 2,
    };
    let transform = Transform::CenterCrop {
        resize: RESIZE,
        crop: CROP,
    };
    let data = Arc::new(ImageFolder::open(&root)?);
    let loader = Loader::new(data, transform, Normalization::IMAGENET, config)?;
    let mut suite = Suite::new(json!({
        "root": root,
        "batch": BATCH,
        "workers": WORKERS,
        "resize": RESIZE,
        "crop": CROP,
    }));
    // A file without tensors is none.
    suite.integers("files", &[FILES as i32], &[1]);
    let name = format!("{FILES} JPEG files of {} x {}", SIZE.0, SIZE.1);
    suite.operation(name, move || {
        let batches = loader.batches(0..loader.batches_per_epoch());
        let batches = batches.map(|batch| batch.expect("the files were written just now"));
        let batches: Vec<_> = batches.collect();
        Outcome::new(move || {
            let first = &batches[0];
            let shape = [first.len, 3, first.height, first.width];
            let pixels = TensorData::new(first.pixels.clone(), shape);
            vec![("output".to_owned(), pixels)]
        })
    });
    Ok(suite)
}

/// Smooth waves with some noise, three bytes a pixel: as compressible as a photograph.
fn picture(number: usize) -> Vec<u8> {
    let (width, height) = (usize::from(SIZE.0), usize::from(SIZE.1));
    let noise = integers(width * height, 24, number as u32 * 7919);
    let phase = number as f64;
    let mut pixels = Vec::with_capacity(3 * width * height);
    for (at, noise) in noise.into_iter().enumerate() {
        let (x, y) = ((at % width) as f64, (at / width) as f64);
        for colour in 0..3 {
            let slow = 0.013 * (1.0 + f64::from(colour));
            let wave = (x * slow + phase).sin() + (y * slow * 1.7 - phase).cos();
            pixels.push((128.0 + 48.0 * wave + f64::from(noise - 12)) as u8);
        }
    }
    pixels
}
