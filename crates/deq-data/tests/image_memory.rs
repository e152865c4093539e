//! A header can ask for any size; the limits are checked before memory is taken. One test, so that
//! nothing else in this process takes memory meanwhile.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use deq_data::{LabelMap, Picture};
use image::ImageFormat;
use jpeg_encoder::{ColorType, Encoder};
use peak_alloc::PeakAlloc;
use std::io::Cursor;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// A PNG that says it is larger than it is.
fn png(width: u32, height: u32, color: png::ColorType, depth: png::BitDepth) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(color);
    encoder.set_depth(depth);
    let mut writer = encoder.write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, &[0x78, 1]).unwrap();
    drop(writer);
    bytes
}

/// A small file whose bytes `find`, behind which its size stands, are followed by `size`.
fn resized(format: ImageFormat, find: &[u8], size: &[u8]) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let image = image::RgbImage::from_pixel(9, 9, image::Rgb([1, 2, 3]));
    image.write_to(&mut bytes, format).unwrap();
    let mut bytes = bytes.into_inner();
    let place = bytes.windows(find.len()).position(|part| part == find);
    let place = place.expect("the header has this form") + find.len();
    bytes[place..place + size.len()].copy_from_slice(size);
    bytes
}

fn jpeg() -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = Encoder::new(&mut bytes, 90);
    encoder.encode(&[7; 3 * 64], 8, 8, ColorType::Rgb).unwrap();
    let frame = bytes
        .windows(2)
        .position(|pair| pair == [0xff, 0xc0])
        .unwrap();
    bytes[frame + 5..frame + 9].fill(0xff);
    bytes
}

#[test]
fn sizes_are_checked_before_memory_is_taken() {
    let (rgba, gray) = (png::ColorType::Rgba, png::ColorType::Grayscale);
    let (eight, sixteen) = (png::BitDepth::Eight, png::BitDepth::Sixteen);
    let large = 60_000_u32.to_le_bytes();
    let images = [
        ("wide", png(16_385, 1, gray, eight)),
        ("tall", png(1, 2_000_000_000, gray, eight)),
        ("square", png(16_384, 16_384, rgba, sixteen)),
        ("jpeg", jpeg()),
        ("gif", resized(ImageFormat::Gif, b"GIF89a", &[0xff; 4])),
        ("pnm", b"P6\n100000 100000\n255\nabc".to_vec()),
        (
            "webp",
            resized(ImageFormat::WebP, &[0x2f], &[0xff, 0xff, 0xff, 0x0f]),
        ),
        // The size of the first header, behind which width and height stand.
        ("bmp", resized(ImageFormat::Bmp, &[9, 0, 0, 0], &large)),
        // The tag of the width, of one 32-bit number.
        (
            "tiff",
            resized(ImageFormat::Tiff, &[0, 1, 4, 0, 1, 0, 0, 0], &large),
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    for (name, bytes) in images {
        std::fs::write(&path, bytes).unwrap();
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage_as_mb();
        let error = Picture::open(&path).unwrap_err().to_string();
        let taken = MEMORY.peak_usage_as_mb() - before;
        assert!(taken < 16.0, "{name} took {taken} MB");
        let limits = "pixels: sides from 1 to 16384 and at most 67108864 pixels are read";
        assert!(error.contains(limits), "{name}: {error}");
    }
    let map = [0; 256];
    for bytes in [
        png(16_385, 1, gray, eight),
        png(16_384, 16_384, gray, eight),
    ] {
        std::fs::write(&path, bytes).unwrap();
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage_as_mb();
        let error = LabelMap::open(&path, &map).unwrap_err().to_string();
        assert!(MEMORY.peak_usage_as_mb() - before < 16.0);
        assert!(
            error.contains("at most 67108864 pixels are read"),
            "{error}"
        );
    }
    // A file that is itself too large: a hole, which takes no space.
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    MEMORY.reset_peak_usage();
    let error = Picture::open(&path).unwrap_err().to_string();
    assert!(MEMORY.peak_usage_as_mb() < 16.0);
    assert!(error.contains("larger than the 603979776 bytes"), "{error}");
}
