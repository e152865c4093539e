//! Small files made by the tests.

use deq_data::{
    ImageDataset, Loader, LoaderConfig, Normalization, Picture, Shapes, Transform, VisionTask,
};
use image::ImageFormat;
use jpeg_encoder::{ColorType, Encoder};
use std::path::Path;
use std::sync::Arc;

pub(crate) const SIDE: usize = 48;

/// A JPEG of one colour.
pub(crate) fn jpeg(color: &[u8], kind: ColorType) -> Vec<u8> {
    let mut bytes = Vec::new();
    let data = color.repeat(SIDE * SIDE);
    let encoder = Encoder::new(&mut bytes, 95);
    encoder
        .encode(&data, SIDE as u16, SIDE as u16, kind)
        .unwrap();
    bytes
}

/// A JPEG with so much detail that it cannot be short.
pub(crate) fn detailed_jpeg() -> Vec<u8> {
    let shapes = Shapes::new(VisionTask::Classification, SIDE, 1, 0).unwrap();
    let picture = shapes.example(0).unwrap().picture;
    let mut bytes = Vec::new();
    let encoder = Encoder::new(&mut bytes, 95);
    encoder
        .encode(picture.data(), SIDE as u16, SIDE as u16, ColorType::Rgb)
        .unwrap();
    bytes
}

pub(crate) fn png(width: u32, height: u32, kind: png::ColorType, data: &[u8]) -> Vec<u8> {
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

pub(crate) fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Two classes of three images each; in the second one, four broken ones besides.
pub(crate) fn class_folders(root: &Path) {
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

pub(crate) fn eval_loader(dataset: impl ImageDataset + 'static, batch: usize) -> Loader {
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

/// A detailed image as a JPEG, in one scan or progressive, with restart markers or without.
pub(crate) fn encoded_jpeg(progressive: bool, restart: Option<u16>) -> Vec<u8> {
    let shapes = Shapes::new(VisionTask::Classification, SIDE, 1, 0).unwrap();
    let picture = shapes.example(0).unwrap().picture;
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 90);
    encoder.set_progressive(progressive);
    if let Some(interval) = restart {
        encoder.set_restart_interval(interval);
    }
    encoder
        .encode(picture.data(), SIDE as u16, SIDE as u16, ColorType::Rgb)
        .unwrap();
    bytes
}

/// An image in one of the formats that lose nothing.
pub(crate) fn encoded(picture: &Picture, format: ImageFormat) -> Vec<u8> {
    let (width, height) = (picture.width() as u32, picture.height() as u32);
    let buffer = image::RgbImage::from_raw(width, height, picture.data().to_vec()).unwrap();
    let mut bytes = std::io::Cursor::new(Vec::new());
    buffer.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A few colours, so that a palette holds them all.
pub(crate) fn colourful(width: usize, height: usize) -> Picture {
    let colour = |i: usize| [(i % 7 * 30) as u8, (i % 3 * 100) as u8, (i % 5 * 50) as u8];
    let pixels = (0..width * height).flat_map(colour).collect();
    Picture::new(width, height, pixels)
}
