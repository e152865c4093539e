//! Generated images.

use deq_data::{Example, ImageDataset, Shapes, Target, VisionTask};

#[test]
fn shapes_depend_on_seed_and_index_alone() {
    let make = |task, seed| Shapes::new(task, 32, 80, seed).unwrap();
    for task in [VisionTask::Classification, VisionTask::Segmentation] {
        let shapes = make(task, 1);
        assert_eq!(
            shapes.example(41).unwrap(),
            make(task, 1).example(41).unwrap()
        );
        assert_ne!(
            shapes.example(41).unwrap(),
            make(task, 2).example(41).unwrap()
        );
        assert_ne!(shapes.example(41).unwrap(), shapes.example(49).unwrap());
    }
    let classes = make(VisionTask::Classification, 1);
    let mut counts = [0; 8];
    for index in 0..80 {
        let Target::Class(class) = classes.example(index).unwrap().target else {
            panic!("a class");
        };
        counts[usize::from(class)] += 1;
    }
    assert_eq!(counts, [10; 8]);
    assert!(Shapes::new(VisionTask::Classification, 8, 1, 0).is_err());
    assert!(Shapes::new(VisionTask::Classification, 32, 0, 0).is_err());
}

#[test]
fn shapes_to_segment_stand_out_where_their_labels_say() {
    let shapes = Shapes::new(VisionTask::Segmentation, 48, 60, 1).unwrap();
    let weights = shapes.class_weights();
    assert!(weights[1..].iter().all(|weight| *weight > 3.0 * weights[0]));
    let mut seen = std::collections::BTreeSet::new();
    for index in 0..60 {
        let Example {
            picture, target, ..
        } = shapes.example(index).unwrap();
        let Target::Map(map) = target else {
            panic!("a map");
        };
        // Where the label changes between neighbours, the colour mostly jumps by more than the
        // noise of twice 20 allows.
        let (mut edges, mut jumps) = (0, 0);
        for y in 0..48 {
            for x in 0..46 {
                let labels = (map.pixel(x, y), map.pixel(x + 2, y));
                seen.insert(labels.0[0]);
                if labels.0 != labels.1 && (labels.0 == [0] || labels.1 == [0]) {
                    let (a, b) = (picture.pixel(x, y), picture.pixel(x + 2, y));
                    let largest = (0..3).map(|c| a[c].abs_diff(b[c])).max().unwrap();
                    edges += 1;
                    jumps += usize::from(largest > 20);
                }
            }
        }
        assert!(
            edges > 0 && jumps * 10 >= edges * 9,
            "{index}: {jumps} of {edges}"
        );
    }
    assert_eq!(seen.len(), 9);
}
