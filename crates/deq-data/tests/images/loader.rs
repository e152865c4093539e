//! Batches, whatever the number of workers.

use deq_data::{
    DataError, Example, ImageDataset, Loader, LoaderConfig, Normalization, Picture, Shapes, Target,
    Transform, VisionTask,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn images_of_different_sizes_need_a_transform() {
    #[derive(Debug)]
    struct Mixed;
    impl ImageDataset for Mixed {
        fn len(&self) -> usize {
            2
        }
        fn example(&self, index: usize) -> Result<Example, DataError> {
            let picture = Picture::filled(4 + index, 4, [1, 2, 3]);
            Ok(Example::new(picture, Target::Class(0)))
        }
        fn classes(&self) -> &[String] {
            &[]
        }
        fn task(&self) -> VisionTask {
            VisionTask::Classification
        }
        fn fingerprint(&self) -> Result<u64, DataError> {
            Ok(0)
        }
    }
    let loader = |transform| {
        let config = LoaderConfig::evaluation(2);
        Loader::new(Arc::new(Mixed), transform, Normalization::SHAPES, config).unwrap()
    };
    let error = loader(Transform::Whole).batch(0).unwrap_err();
    assert!(matches!(
        error,
        DataError::MixedSizes {
            first: (4, 4),
            other: (5, 4)
        }
    ));
    assert_eq!(
        loader(Transform::Resize {
            width: 3,
            height: 3
        })
        .batch(0)
        .unwrap()
        .len,
        2
    );
}

fn shapes_loader(task: VisionTask, workers: usize, seed: u64) -> Loader {
    let dataset = Shapes::new(task, 32, 50, 3).unwrap();
    let transform = Transform::ScaleCrop {
        width: 24,
        height: 24,
        min_scale: 0.5,
        max_scale: 2.0,
    };
    let config = LoaderConfig {
        workers,
        ..LoaderConfig::training(8, seed)
    };
    Loader::new(Arc::new(dataset), transform, Normalization::SHAPES, config).unwrap()
}

#[test]
fn batches_do_not_depend_on_the_number_of_workers() {
    for task in [VisionTask::Classification, VisionTask::Segmentation] {
        let batches = |workers, range| -> Vec<_> {
            let loader = shapes_loader(task, workers, 1);
            loader.batches(range).map(Result::unwrap).collect()
        };
        // 6 batches an epoch, so this begins in the first and ends in the third.
        let one = batches(1, 2..15);
        assert_eq!(one.len(), 13);
        assert!(one == batches(4, 2..15) && one == batches(0, 2..15));
        assert!(one.iter().zip(2..).all(|(batch, step)| batch.step == step));
        // And one that was interrupted goes on with the same ones.
        assert!(one[5..] == batches(3, 7..15));
    }
}

#[test]
fn every_epoch_has_an_order_and_crops_of_its_own() {
    let loader = shapes_loader(VisionTask::Classification, 2, 1);
    assert_eq!(loader.batches_per_epoch(), 6);
    let epoch = |loader: &Loader, epoch: usize| -> Vec<usize> {
        let batches = loader.batches(6 * epoch..6 * epoch + 6);
        batches.flat_map(|batch| batch.unwrap().indices).collect()
    };
    let (first, second) = (epoch(&loader, 0), epoch(&loader, 1));
    for order in [&first, &second] {
        let distinct: std::collections::BTreeSet<_> = order.iter().collect();
        assert_eq!(distinct.len(), 48);
    }
    assert_ne!(first, second);
    assert_ne!(
        first,
        epoch(&shapes_loader(VisionTask::Classification, 2, 2), 0)
    );
    assert_eq!(
        first,
        epoch(&shapes_loader(VisionTask::Segmentation, 2, 1), 0)
    );
}

/// Counts what is read; example 13 panics if asked to.
#[derive(Debug)]
struct Counting {
    read: Arc<AtomicUsize>,
    panics: bool,
    classes: Vec<String>,
}

impl ImageDataset for Counting {
    fn len(&self) -> usize {
        1000
    }
    fn example(&self, index: usize) -> Result<Example, DataError> {
        self.read.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics || index != 13, "as the test wants it");
        let picture = Picture::filled(2, 2, [1, 2, 3]);
        Ok(Example::new(picture, Target::Class(0)))
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn task(&self) -> VisionTask {
        VisionTask::Classification
    }
    fn fingerprint(&self) -> Result<u64, DataError> {
        Ok(0)
    }
}

fn counting(panics: bool) -> (Loader, Arc<AtomicUsize>) {
    let read = Arc::new(AtomicUsize::new(0));
    let dataset = Counting {
        read: read.clone(),
        panics,
        classes: Vec::new(),
    };
    let config = LoaderConfig {
        workers: 3,
        prefetch: 2,
        ..LoaderConfig::evaluation(10)
    };
    let loader = Loader::new(
        Arc::new(dataset),
        Transform::Whole,
        Normalization::SHAPES,
        config,
    );
    (loader.unwrap(), read)
}

#[test]
fn workers_are_ahead_by_a_bounded_number_of_batches() {
    let (loader, read) = counting(false);
    let mut batches = loader.batches(0..100);
    for taken in 1..20 {
        batches.next().unwrap().unwrap();
        // Time to run away, for workers that did not wait.
        std::thread::sleep(std::time::Duration::from_millis(3));
        assert!(read.load(Ordering::SeqCst) <= 10 * (taken + 3 + 2));
    }
    // Workers that wait for room end with the iterator.
    drop(batches);
    let after = read.load(Ordering::SeqCst);
    std::thread::sleep(std::time::Duration::from_millis(10));
    assert_eq!(read.load(Ordering::SeqCst), after);
    assert_eq!(loader.batches(0..100).count(), 100);
    assert_eq!(loader.batches(7..7).count(), 0);
}

#[test]
#[should_panic(expected = "as the test wants it")]
fn a_panic_of_a_worker_comes_through() {
    let (loader, _) = counting(true);
    loader.batches(0..100).count();
}
