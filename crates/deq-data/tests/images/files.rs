//! Formats, what is wrong with files, and what is not.

use crate::support::*;
use deq_data::{DataError, ImageDataset, ImageFolder, Picture, Shapes, VisionTask};
use image::ImageFormat;
use jpeg_encoder::ColorType;
use std::path::PathBuf;

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
    for bytes in cases {
        write(&path, &bytes);
        let error = Picture::open(&path).unwrap_err();
        assert!(
            matches!(&error, DataError::BadImage { path: named, .. } if *named == path),
            "{error}"
        );
        assert!(error.to_string().contains("broken.jpg cannot be used"));
    }
    // Damage in the middle may still give an image, but no panic.
    for place in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x5a;
        write(&path, &bytes);
        let _ = Picture::open(&path);
    }
}

#[test]
fn a_saved_image_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("picture.png");
    let shapes = Shapes::new(VisionTask::Classification, 32, 1, 0).unwrap();
    let picture = shapes.example(0).unwrap().picture;
    // Two processes may save it at the same time, so that no name is taken for granted.
    let other = folder.path().join("picture.png.partial");
    std::fs::write(&other, b"other").unwrap();
    picture.save_png(&path).unwrap();
    assert_eq!(Picture::open(&path).unwrap(), picture);
    assert_eq!(std::fs::read(&other).unwrap(), b"other");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    let nowhere = folder.path().join("no/folder.png");
    assert!(matches!(
        picture.save_png(&nowhere).unwrap_err(),
        DataError::Io { .. }
    ));
}

#[test]
fn formats_that_lose_nothing_are_read_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let picture = colourful(13, 9);
    for (format, name) in [
        (ImageFormat::Png, "image.png"),
        (ImageFormat::WebP, "image.webp"),
        (ImageFormat::Bmp, "image.BMP"),
        (ImageFormat::Tiff, "image.tif"),
        (ImageFormat::Gif, "image.gif"),
        (ImageFormat::Pnm, "image.ppm"),
    ] {
        let path = folder.path().join("class").join(name);
        write(&path, &encoded(&picture, format));
        assert_eq!(Picture::open(&path).unwrap(), picture, "{name}");
    }
    let dataset = ImageFolder::open(folder.path()).unwrap();
    assert_eq!((dataset.len(), dataset.left_out().len()), (6, 0));
    let path = folder.path().join("image.jpg");
    write(&path, b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B");
    let error = Picture::open(&path).unwrap_err().to_string();
    assert!(error.contains("it is Avif, not JPEG, PNG"), "{error}");
}

/// JPEGs in one scan, in several, with restart markers and in gray.
fn jpegs() -> Vec<Vec<u8>> {
    let gray = jpeg(&[90], ColorType::Luma);
    let all = [
        (false, None),
        (true, None),
        (false, Some(2)),
        (true, Some(2)),
    ];
    let colours = all.map(|(progressive, restart)| encoded_jpeg(progressive, restart));
    colours.into_iter().chain([gray]).collect()
}

/// The image of a file and whether it is counted as cut short.
fn read(bytes: &[u8]) -> Result<(Picture, bool), DataError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("class/0.jpg");
    write(&path, bytes);
    let example = ImageFolder::open(folder.path()).unwrap().example(0)?;
    assert!(
        example
            .cut_short
            .as_ref()
            .is_none_or(|named| *named == path)
    );
    assert_eq!(Picture::open(&path).unwrap(), example.picture);
    Ok((example.picture, example.cut_short.is_some()))
}

#[test]
fn what_follows_the_end_of_a_jpeg_does_not_matter() {
    for whole in jpegs() {
        let (picture, cut_short) = read(&whole).unwrap();
        assert!(!cut_short);
        for trailer in [
            &b"\0\0\0\x18ftypmp42 a film"[..],
            // A scan that does not end, and one that does.
            &[1, 2, 0xff, 0xda, 0, 3, 9, 9],
            &[0xff, 0xda, 0, 3, 9, 0xff, 0xd9, 0xff, 0xda],
            &[0; 100],
            &whole[..whole.len() / 2],
        ] {
            let found = read(&[&whole[..], trailer].concat()).unwrap();
            assert_eq!(found, (picture.clone(), false));
        }
    }
}

#[test]
fn a_jpeg_that_lacks_only_its_end_marker_is_read_and_counted() {
    for whole in jpegs() {
        let (picture, _) = read(&whole).unwrap();
        let without = &whole[..whole.len() - 2];
        for bytes in [
            without.to_vec(),
            whole[..whole.len() - 1].to_vec(),
            [without, &[0; 50]].concat(),
        ] {
            assert_eq!(read(&bytes).unwrap(), (picture.clone(), true));
        }
    }
}

#[test]
fn a_jpeg_that_lacks_pixels_is_refused() {
    for whole in [encoded_jpeg(false, None), encoded_jpeg(true, None)] {
        for lost in [20, whole.len() / 20, whole.len() / 10, whole.len() / 4] {
            let cut = &whole[..whole.len() - lost];
            let error = read(cut).unwrap_err().to_string();
            assert!(error.contains("cut short: "), "{lost}: {error}");
            // The zeros may also be taken for a segment without a length.
            let error = read(&[cut, &[0; 5000]].concat()).unwrap_err();
            assert!(matches!(error, DataError::BadImage { .. }));
        }
    }
}

#[test]
fn batches_count_files_that_are_cut_short() {
    let folder = tempfile::tempdir().unwrap();
    class_folders(folder.path());
    let whole = detailed_jpeg();
    let path = folder.path().join("b/7.jpg");
    write(&path, &whole[..whole.len() - 2]);
    let loader = eval_loader(ImageFolder::open(folder.path()).unwrap(), 11);
    let batch = loader.batch(0).unwrap();
    assert_eq!((batch.len, batch.skipped.len()), (7, 4));
    assert_eq!(batch.cut_short, [path]);
}
