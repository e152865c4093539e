//! Programs that show the crates in use; run one with `cargo run --release -p deq-examples
//! --example NAME`. `README.md` beside them says what each is about.

use burn::tensor::{Device, Int, Tensor, TensorData};
use deq_data::{ImageDataset, Shapes, Target, VisionTask};
use flate2::read::GzDecoder;
use std::error::Error;
use std::io::Read;
use std::path::Path;

const SIDE: usize = 28;

/// The code of the README of the workspace, compiled and run by `cargo test`.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

/// The bytes of an IDX file behind its header of `header` bytes, of which there must be `length`.
/// The file is `path`, or `path.gz`, compressed.
///
/// # Errors
///
/// If neither can be read or the length is another.
pub fn idx(path: &Path, header: usize, length: usize) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut bytes = Vec::new();
    let packed = path.with_added_extension("gz");
    let open = |path: &Path| std::fs::File::open(path);
    let read = match open(path) {
        Ok(mut file) => file.read_to_end(&mut bytes),
        Err(_) => open(&packed).and_then(|file| GzDecoder::new(file).read_to_end(&mut bytes)),
    };
    read.map_err(|e| format!("{} or {}: {e}", path.display(), packed.display()))?;
    if bytes.len() != header + length {
        let (found, wanted) = (bytes.len(), header + length);
        return Err(format!("{} holds {found} bytes, not {wanted}", path.display()).into());
    }
    Ok(bytes.split_off(header))
}

/// Gray images of 28 x 28 pixels and their classes.
pub struct GrayImages {
    pixels: Vec<u8>,
    labels: Vec<u8>,
}

impl GrayImages {
    /// `count` images of MNIST: `part` is `train` or `t10k`.
    ///
    /// # Errors
    ///
    /// As [`idx`].
    pub fn mnist(folder: &Path, part: &str, count: usize) -> Result<Self, Box<dyn Error>> {
        let file = |name: &str| folder.join(format!("{part}-{name}-ubyte"));
        Ok(Self {
            pixels: idx(&file("images-idx3"), 16, count * SIDE * SIDE)?,
            labels: idx(&file("labels-idx1"), 8, count)?,
        })
    }

    /// Generated shapes of eight classes.
    ///
    /// # Errors
    ///
    /// As [`Shapes::new`].
    pub fn shapes(count: usize, seed: u64) -> Result<Self, Box<dyn Error>> {
        let shapes = Shapes::new(VisionTask::Classification, SIDE, count, seed)?;
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for index in 0..count {
            let example = shapes.example(index)?;
            let gray = |rgb: &[u8]| (rgb.iter().map(|&c| u32::from(c)).sum::<u32>() / 3) as u8;
            pixels.extend(example.picture.data().chunks(3).map(gray));
            if let Target::Class(class) = example.target {
                labels.push(class as u8);
            }
        }
        Ok(Self { pixels, labels })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.labels.len()
    }

    /// Images between 0 and 1, `[batch, 1, 28, 28]`, and their classes, `[batch]`.
    pub fn batch(&self, places: &[usize], device: &Device) -> (Tensor<4>, Tensor<1, Int>) {
        let size = SIDE * SIDE;
        let image = |&at: &usize| &self.pixels[at * size..(at + 1) * size];
        let pixels = places.iter().flat_map(image).map(|&p| f32::from(p) / 255.0);
        let pixels = TensorData::new(pixels.collect::<Vec<f32>>(), [places.len(), 1, SIDE, SIDE]);
        let labels: Vec<i32> = places
            .iter()
            .map(|&at| i32::from(self.labels[at]))
            .collect();
        let labels = Tensor::from_data(labels.as_slice(), device);
        (Tensor::from_data(pixels, device), labels)
    }
}
