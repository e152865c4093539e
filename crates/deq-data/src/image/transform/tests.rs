use super::super::random::{Stream, generator};
use super::super::raster::LabelMap;
use super::*;

/// An image of blocks, each of one colour that says its label.
fn blocks(width: usize, height: usize, side: usize) -> Example {
    let mut picture = Picture::filled(width, height, [0; 3]);
    let mut map = LabelMap::filled(width, height, [0]);
    for y in 0..height {
        for x in 0..width {
            let label = ((x / side) * 3 + (y / side) * 5) % 8;
            map.set_pixel(x, y, [label as u8]);
            picture.set_pixel(x, y, color(label as u8));
        }
    }
    Example::new(picture, Target::Map(map))
}

/// A corner of the colour cube, so that no mixture of colours is the colour of another label; never
/// black.
fn color(label: u8) -> [u8; 3] {
    [1, 2, 4].map(|bit| if label & bit == 0 { 60 } else { 200 })
}

fn transforms() -> [Transform; 8] {
    let scale_crop = |min_scale, max_scale| Transform::ScaleCrop {
        width: 60,
        height: 40,
        min_scale,
        max_scale,
    };
    [
        Transform::Whole,
        Transform::PadToMultiple { multiple: 32 },
        Transform::Resize {
            width: 31,
            height: 77,
        },
        Transform::PadCrop { size: 64, pad: 8 },
        Transform::RandomResizedCrop { size: 48 },
        Transform::CenterCrop {
            resize: 50,
            crop: 44,
        },
        scale_crop(0.5, 2.0),
        // Smaller than the rectangle, so that it must be filled.
        scale_crop(0.3, 0.4),
    ]
}

#[test]
fn labels_move_with_the_picture() {
    for transform in transforms() {
        for index in 0..40 {
            let mut rng = generator(5, Stream::Augmentation, 0, index);
            let Example {
                picture, target, ..
            } = transform.apply_with(blocks(100, 80, 20), &mut rng);
            let Target::Map(map) = target else {
                panic!("a map stays a map");
            };
            let (width, height) = (picture.width(), picture.height());
            assert_eq!((map.width(), map.height()), (width, height));
            let mut inner = 0;
            for y in 0..height {
                for x in 0..width {
                    let (pixel, [label]) = (picture.pixel(x, y), map.pixel(x, y));
                    // The border is black, and nothing else is.
                    assert_eq!(label == IGNORE_LABEL, pixel == [0; 3], "{transform:?}");
                    if (0..8).any(|label| color(label) == pixel) {
                        inner += 1;
                        assert_eq!(pixel, color(label), "{transform:?}, {x}, {y}");
                    }
                }
            }
            assert!(inner > 0);
        }
    }
}

#[test]
fn sizes_are_those_asked_for() {
    let sizes = [
        (100, 80),
        (128, 96),
        (31, 77),
        (64, 64),
        (48, 48),
        (44, 44),
        (60, 40),
        (60, 40),
    ];
    for (transform, size) in transforms().iter().zip(sizes) {
        transform.validate().unwrap();
        let mut rng = generator(1, Stream::Augmentation, 0, 0);
        let picture = transform.apply_with(blocks(100, 80, 20), &mut rng).picture;
        assert_eq!((picture.width(), picture.height()), size);
    }
}

#[test]
fn equal_numbers_give_equal_images() {
    for transform in transforms() {
        let apply = |index| {
            let mut rng = generator(1, Stream::Augmentation, 3, index);
            transform.apply_with(blocks(100, 80, 20), &mut rng)
        };
        assert_eq!(apply(4), apply(4));
        let differ = (0..20).any(|index| apply(index) != apply(4));
        assert_eq!(differ, transform.is_random());
    }
}

#[test]
fn random_windows_lie_inside_and_have_the_area_and_shape_asked_for() {
    let mut rng = generator(1, Stream::Augmentation, 0, 0);
    let (mut areas, draws) = (0.0, 4000);
    for _ in 0..draws {
        let window = random_window(300, 300, &mut rng);
        assert!(window.left + window.width <= 300 && window.top + window.height <= 300);
        let (w, h) = (window.width as f64, window.height as f64);
        let area = w * h / 90_000.0;
        // Rounding moves a side by up to half a pixel; the smallest side is about 73.
        assert!((0.078..=1.0).contains(&area), "{area}");
        assert!((0.74..=1.35).contains(&(w / h)), "{}", w / h);
        areas += area / f64::from(draws);
    }
    // Evenly drawn from 0.08 to 1, a little less since large windows of extreme shape do not fit.
    assert!((0.48..0.55).contains(&areas), "{areas}");
}

#[test]
fn extreme_images_give_the_largest_central_window() {
    let mut rng = generator(1, Stream::Augmentation, 0, 0);
    for (width, height, expected) in [
        (1000, 10, (493, 0, 13, 10)),
        (10, 1000, (0, 493, 10, 13)),
        (1000, 1, (499, 0, 1, 1)),
    ] {
        let found = (0..100)
            .map(|_| random_window(width, height, &mut rng))
            .any(|w| (w.left, w.top, w.width, w.height) == expected);
        assert!(found, "{width} x {height}");
    }
    for side in 1..6 {
        for _ in 0..100 {
            let window = random_window(side, 6 - side, &mut rng);
            assert!(window.width >= 1 && window.left + window.width <= side);
            assert!(window.height >= 1 && window.top + window.height <= 6 - side);
        }
    }
}

#[test]
fn the_center_crop_is_central() {
    let mut picture = Picture::filled(90, 60, [0; 3]);
    for y in 20..40 {
        for x in 35..55 {
            picture.set_pixel(x, y, [255; 3]);
        }
    }
    let example = Example::new(picture, Target::Class(3));
    let mut rng = generator(1, Stream::Augmentation, 0, 0);
    let whole = Transform::CenterCrop {
        resize: 60,
        crop: 20,
    };
    let center = whole.apply_with(example.clone(), &mut rng);
    assert!(center.picture.data().iter().all(|value| *value == 255));
    assert_eq!(center.target, Target::Class(3));
    let halved = Transform::CenterCrop {
        resize: 30,
        crop: 10,
    };
    let center = halved.apply_with(example, &mut rng).picture;
    assert!(center.pixel(5, 5) == [255; 3] && center.pixel(0, 0)[0] > 100);
}

#[test]
fn a_padded_crop_reaches_every_place() {
    let mut corners = std::collections::BTreeSet::new();
    for index in 0..3000 {
        let mut example = blocks(8, 8, 8);
        example.picture = Picture::filled(8, 8, [1, 1, 1]);
        example.picture.set_pixel(0, 0, [200, 0, 0]);
        example.picture.set_pixel(7, 0, [0, 200, 0]);
        let mut rng = generator(1, Stream::Augmentation, 0, index);
        let cut = Transform::PadCrop { size: 8, pad: 2 }.apply_with(example, &mut rng);
        let find = |value| {
            let mut places = (0..64).filter(|i| cut.picture.pixel(i % 8, i / 8) == value);
            places.next()
        };
        corners.insert((find([200, 0, 0]), find([0, 200, 0])));
    }
    // 5 x 5 places, flipped or not, are distinct unless the row of the marks is cut off: 3 of the 5
    // rows show it, and all others look alike.
    assert_eq!(corners.len(), 5 * 3 * 2 + 1);
}

#[test]
fn numbers_that_mean_nothing_are_refused() {
    let crop = Transform::CenterCrop {
        resize: 20,
        crop: 30,
    };
    assert_eq!(
        crop.validate().unwrap_err().to_string(),
        "crop is 30, but must be at most `resize`"
    );
    let scale = |min_scale, max_scale| Transform::ScaleCrop {
        width: 8,
        height: 8,
        min_scale,
        max_scale,
    };
    for wrong in [
        scale(0.0, 1.0),
        scale(f64::NAN, 1.0),
        scale(1.0, 0.5),
        scale(1.0, f64::INFINITY),
        Transform::RandomResizedCrop { size: 0 },
        Transform::Resize {
            width: 1,
            height: 100_000,
        },
    ] {
        assert!(wrong.validate().is_err(), "{wrong:?}");
    }
}

#[test]
fn normalisation_writes_planes() {
    let picture = Picture::new(2, 1, vec![0, 51, 255, 102, 153, 204]);
    let normalization = Normalization {
        mean: [0.2, 0.4, 0.6],
        std: [0.5, 0.25, 0.2],
    };
    let mut planes = [0.0; 6];
    normalization.write(&picture, &mut planes);
    let expected = [-0.4, 0.4, -0.8, 0.8, 2.0, 1.0];
    for (value, expected) in planes.iter().zip(expected) {
        assert!(
            (value - expected).abs() < 1e-6,
            "{value} against {expected}"
        );
    }
}
