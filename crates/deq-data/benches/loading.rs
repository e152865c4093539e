//! Images a second that a [`Loader`] makes, as a table: `cargo bench -p deq-data`.
//!
//! Generated shapes always; class folders with ImageNet's training crops, CIFAR-10 with its own,
//! and CamVid, if `DEQ_DATA` names the folder that holds `imagenette-subset`, `cifar10` and
//! `camvid`. One pass warms up, so that files come from the cache of the operating system; then the
//! median of five passes of about equal work.

use deq_data::{ImageSource, Loader, LoaderConfig, Transform};
use std::path::Path;
use std::time::Instant;

fn main() {
    let crop = |size| Transform::RandomResizedCrop { size };
    let padded = || Transform::PadCrop { size: 32, pad: 4 };
    let mut cases = vec![("shapes, pad-4 crop", ImageSource::Shapes, padded(), 80)];
    if let Some(folder) = std::env::var_os("DEQ_DATA") {
        let place = |name| Path::new(&folder).join(name);
        let scaled = Transform::ScaleCrop {
            width: 320,
            height: 240,
            min_scale: 0.5,
            max_scale: 2.0,
        };
        cases.extend([
            (
                "cifar10, pad-4 crop",
                ImageSource::Cifar10(place("cifar10")),
                padded(),
                4000,
            ),
            (
                "imagenette, 224 random resized crop",
                ImageSource::ImageFolder(place("imagenette-subset")),
                crop(224),
                36,
            ),
            (
                "camvid, 320x240 scaled crop",
                ImageSource::Segmentation(place("camvid")),
                scaled,
                12,
            ),
        ]);
    }
    // `cargo bench -p deq-data -- cifar` measures what has this in its name.
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    cases.retain(|(name, ..)| wanted.as_ref().is_none_or(|part| name.contains(part)));
    println!(
        "{:38} {:>7} {:>12} {:>20}",
        "", "workers", "images/s", "images/CPU second"
    );
    for (name, source, transform, batches) in cases {
        let data = source.open().expect("the data set is there");
        for workers in [1, 2] {
            let config = LoaderConfig {
                workers,
                ..LoaderConfig::training(32, 1)
            };
            let loader = Loader::new(
                data.train.clone(),
                transform.clone(),
                data.normalization,
                config,
            )
            .expect("the configuration is valid");
            let passes: Vec<[f64; 2]> = (0..6)
                .map(|pass| rates(&loader, pass * batches, batches))
                .skip(1)
                .collect();
            let median = |which: usize| {
                let mut values: Vec<f64> = passes.iter().map(|pass| pass[which]).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            };
            println!(
                "{name:38} {workers:7} {:12.0} {:20.0}",
                median(0),
                median(1)
            );
        }
    }
}

/// Images a second of time, and of work on all cores together, which does not change if something
/// else runs beside it.
fn rates(loader: &Loader, first: usize, batches: usize) -> [f64; 2] {
    let (start, work) = (Instant::now(), cpu_seconds());
    let images: usize = loader
        .batches(first..first + batches)
        .map(|batch| batch.expect("the images are sound").len)
        .sum();
    let per = |seconds: f64| images as f64 / seconds;
    [
        per(start.elapsed().as_secs_f64()),
        per(cpu_seconds() - work),
    ]
}

/// The CPU time of this process, which Linux counts in hundredths of a second; NaN elsewhere.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program, in parentheses, may hold spaces.
    let (_, fields) = stat.rsplit_once(") ").unwrap_or_default();
    let ticks = |field: usize| {
        fields
            .split(' ')
            .nth(field)
            .and_then(|n| n.parse::<f64>().ok())
    };
    match (ticks(11), ticks(12)) {
        (Some(user), Some(system)) => (user + system) / 100.0,
        _ => f64::NAN,
    }
}
