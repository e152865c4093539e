//! Real corpora and images, in the folder that `DEQ_DATA` names.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use deq_data::{
    Cifar10, Corpus, IGNORE_LABEL, ImageDataset, ImageSource, Level, Loader, LoaderConfig,
    Normalization, StreamBatcher, Target, Tokens, Transform, Vocabulary, unigram_perplexity,
};
use std::path::PathBuf;
use std::sync::Arc;

/// The folder `name`, or nothing where `DEQ_DATA` is not set and `DEQ_REQUIRE_FIXTURES=1` does not
/// ask for it.
fn folder(name: &str) -> Option<PathBuf> {
    let required = std::env::var("DEQ_REQUIRE_FIXTURES").as_deref() == Ok("1");
    match std::env::var_os("DEQ_DATA") {
        Some(data) => {
            let folder = PathBuf::from(data).join(name);
            assert!(folder.exists(), "there is no {}", folder.display());
            Some(folder)
        }
        None if required => panic!("DEQ_DATA is not set, but DEQ_REQUIRE_FIXTURES=1 asks for it"),
        None => {
            eprintln!("skipped: DEQ_DATA is not set");
            None
        }
    }
}

#[test]
fn wikitext_2_has_the_official_counts_and_vocabulary() {
    let Some(folder) = folder("wikitext-2") else {
        return;
    };
    let corpus = Corpus::open(&folder, Level::Word).unwrap();
    let counts = [&corpus.train, &corpus.valid, corpus.require_test().unwrap()].map(Tokens::len);
    assert_eq!(counts, [2_088_628, 217_646, 245_569]);
    assert_eq!(corpus.vocabulary.len(), 33_278);

    // The file lists the words of train in the order of their appearance.
    let listed = Vocabulary::load(&folder.join("vocab.txt")).unwrap();
    let text = std::fs::read_to_string(folder.join("train.txt")).unwrap();
    assert_eq!(Vocabulary::by_appearance(text.split_whitespace()), listed);

    // With the file or without it, ids follow the frequency.
    let spread = tempfile::tempdir().unwrap();
    for split in ["train.txt", "valid.txt", "test.txt"] {
        std::fs::copy(folder.join(split), spread.path().join(split)).unwrap();
    }
    let without_file = Corpus::open(spread.path(), Level::Word).unwrap();
    assert_eq!(without_file.vocabulary, corpus.vocabulary);
    // The same hash of what Python's `Counter.most_common` makes of train, with `<eos>` first.
    assert_eq!(corpus.vocabulary.fingerprint(), 0xbcf8_ca86_b7cb_90b9);

    // The ids of the file can be kept; the text is the same.
    let kept = Corpus::open_with(&folder, listed).unwrap();
    assert_ne!(kept.valid, corpus.valid);
    let text = |corpus: &Corpus| corpus.vocabulary.decode(&corpus.valid.to_vec()).unwrap();
    assert_eq!(text(&kept), text(&corpus));
    assert!(
        kept.vocabulary
            .require(corpus.vocabulary.fingerprint())
            .is_err()
    );

    let unigram =
        |corpus: &Corpus| unigram_perplexity(&corpus.train, &corpus.valid, corpus.vocabulary.len());
    assert!((unigram(&kept) - unigram(&corpus)).abs() < 1e-6);

    // One stream predicts every token but the first.
    let batches = StreamBatcher::new(&corpus.valid, 1, 64).unwrap();
    let targets: usize = batches.iter().map(|segment| segment.targets.len()).sum();
    assert_eq!(targets, 217_645);
    // Ten streams of 21,764 tokens; the remaining 6 are trimmed, the last segment is shorter but
    // counts.
    let batches = StreamBatcher::new(&corpus.valid, 10, 150).unwrap();
    assert_eq!(batches.num_targets(), 10 * 21_763);
    let last = batches.iter().last().unwrap();
    assert_eq!((last.index, last.len), (145, 21_763 - 145 * 150));
}

#[test]
fn a_single_file_is_divided_by_bytes() {
    let Some(folder) = folder("tinyshakespeare") else {
        return;
    };
    let corpus = Corpus::open(&folder.join("input.txt"), Level::Byte).unwrap();
    let counts = [&corpus.train, &corpus.valid, corpus.require_test().unwrap()].map(Tokens::len);
    assert_eq!(counts.iter().sum::<usize>(), 1_115_394);
    let share = counts[0] as f64 / 1_115_394.0;
    assert!((0.9..0.901).contains(&share), "{share}");
}

fn whole(dataset: impl ImageDataset + 'static, transform: Transform, batch: usize) -> Loader {
    let config = LoaderConfig::evaluation(batch);
    Loader::new(Arc::new(dataset), transform, Normalization::CIFAR10, config).unwrap()
}

#[test]
fn cifar_10_has_the_statistics_that_it_is_normalised_with() {
    let Some(folder) = folder("cifar10") else {
        return;
    };
    let train = Cifar10::train(&folder).unwrap();
    let test = Cifar10::test(&folder).unwrap();
    assert_eq!((train.len(), test.len()), (5000, 2000));
    let labels = std::fs::read(folder.join("train_labels.u8")).unwrap();
    for (index, label) in labels.iter().enumerate().take(5000) {
        let target = train.example(index).unwrap().target;
        assert_eq!(target, Target::Class(u16::from(*label)));
    }
    let loader = whole(train, Transform::Whole, 500);
    // The mean of all pixels, and the mean of the deviations of single images.
    let (mut mean, mut deviation) = ([0.0; 3], [0.0; 3]);
    for batch in loader.batches(0..10) {
        let batch = batch.unwrap();
        for (i, plane) in batch.pixels.chunks_exact(32 * 32).enumerate() {
            let moment = |power| {
                let values = plane.iter().map(|value| f64::from(*value).powi(power));
                values.sum::<f64>() / 1024.0
            };
            mean[i % 3] += moment(1) / 5000.0;
            deviation[i % 3] += (moment(2) - moment(1).powi(2)).sqrt() / 5000.0;
        }
    }
    for channel in 0..3 {
        // A tenth of the images: their means spread by about 0.5, so the mean of 5,000 by 0.007;
        // three times that. Their deviations spread by less.
        assert!(mean[channel].abs() < 0.02, "{mean:?}");
        assert!((deviation[channel] - 1.0).abs() < 0.02, "{deviation:?}");
    }
}

#[test]
fn imagenette_is_read_whole() {
    let Some(folder) = folder("imagenette-subset") else {
        return;
    };
    let splits = ImageSource::ImageFolder(folder).open().unwrap();
    assert_eq!((splits.train.len(), splits.test.len()), (600, 200));
    assert_eq!(splits.train.classes()[0], "n01440764");
    let transform = Transform::CenterCrop {
        resize: 64,
        crop: 56,
    };
    let config = LoaderConfig::evaluation(50);
    let loader = Loader::new(splits.test, transform, splits.normalization, config).unwrap();
    let mut counts = [0; 10];
    for batch in loader.batches(0..loader.batches_per_epoch()) {
        let batch = batch.unwrap();
        assert_eq!((batch.len, batch.skipped.len()), (50, 0));
        assert!(batch.cut_short.is_empty());
        batch
            .targets
            .iter()
            .for_each(|class| counts[*class as usize] += 1);
    }
    assert_eq!(counts, [20; 10]);
}

#[test]
fn camvid_is_segmented_into_its_11_classes() {
    let Some(folder) = folder("camvid") else {
        return;
    };
    let splits = ImageSource::Segmentation(folder).open().unwrap();
    assert_eq!((splits.train.len(), splits.test.len()), (36, 12));
    let survey = splits.train.label_survey().unwrap().unwrap();
    survey.require_complete().unwrap();
    assert_eq!((survey.counted, survey.present_classes().len()), (36, 11));
    let loader = Loader::new(
        splits.train,
        Transform::Whole,
        splits.normalization,
        LoaderConfig::evaluation(12),
    );
    let loader = loader.unwrap();
    let mut counts = [0_usize; 256];
    for batch in loader.batches(0..3) {
        let batch = batch.unwrap();
        assert_eq!(
            (batch.width, batch.height, batch.skipped.len()),
            (480, 360, 0)
        );
        batch
            .targets
            .iter()
            .for_each(|id| counts[*id as usize] += 1);
    }
    let seen: Vec<usize> = (0..256).filter(|id| counts[*id] > 0).collect();
    let expected: Vec<usize> = (0..11).chain([usize::from(IGNORE_LABEL)]).collect();
    assert_eq!(seen, expected);
    // Street scenes are mostly building and road.
    assert!(counts[1].min(counts[3]) > counts[2].max(counts[10]));
}
