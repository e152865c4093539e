//! Data for deep equilibrium models: text in batches of contiguous streams, and images in batches
//! made by several threads.
//!
//! A [`Corpus`] holds its splits as token ids with their [`Vocabulary`]; a [`StreamBatcher`] cuts
//! a split into parallel streams and these into segments, so that a model can carry its memory from
//! one segment to the next. Ids are plain numbers, in memory or in a mapped file ([`Tokens`]), and
//! so are pixels: this crate knows no tensors and no device.
//!
//! ```
//! use deq_data::{Corpus, Level, StreamBatcher, unigram_perplexity};
//!
//! let corpus = Corpus::builtin(Level::Byte)?;
//! let batches = StreamBatcher::new(&corpus.train, 8, 32)?;
//! let first = batches.segment(0);
//! let second = batches.segment(1);
//! assert_eq!((first.batch, first.len), (8, 32));
//! // The last target of a segment is the first input of the next one, in every stream.
//! assert_eq!(first.targets[31], second.inputs[0]);
//!
//! let unigram = unigram_perplexity(&corpus.train, &corpus.valid, corpus.vocabulary.len());
//! assert!(unigram > 10.0 && unigram < 40.0);
//! # Ok::<(), deq_data::DataError>(())
//! ```
//!
//! # Contents
//!
//! - [`Corpus::open`]: folders of text files, among them the WikiText and Penn Treebank layouts, or
//!   a single text file, by words, by bytes or by a Hugging Face `tokenizer.json`.
//! - [`CorpusReader`]: the same with the ids kept in a token file ([`CachePlace`]), so that a
//!   corpus of 100 million tokens opens at once, and with a listener for progress; [`survey`]
//!   lists and checks the files of a text.
//! - [`Level::default_for`]: the level that suits a text; [`Corpus::fingerprint`] recognises a text
//!   again.
//! - [`Corpus::builtin`]: a small handbook on deep equilibrium models, compiled in, so that nothing
//!   needs to be fetched.
//! - [`Corpus::open_with`], [`Vocabulary::require`], [`Vocabulary::save_in`],
//!   [`Vocabulary::load_from`]: text for a model that exists, with the ids it was trained with.
//! - [`StreamBatcher`]: segments by index, in a pass, or by training step over any number of
//!   passes.
//! - [`unigram_perplexity`]: the yardstick that any language model must beat.
//!
//! And of images:
//!
//! - [`ImageSource::open`]: data sets by name; [`Cifar10`], [`ImageFolder`],
//!   [`SegmentationFolder`], and [`Shapes`], which are generated.
//! - [`LabelSurvey`]: which ids the label maps of a segmentation hold, before it is trained on;
//!   [`VisionSplits::fingerprint`]: whether images are what they were.
//! - [`Transform`], [`Normalization`]: the augmentations of CIFAR-10, ImageNet and segmentation,
//!   and what evaluation does in their place.
//! - [`Loader`]: batches by number, made by several threads ahead of time, the same whatever their
//!   number.
//!
//! [`catch_panic`] is where panics of libraries on files of users become errors.
//!
//! The book's page on this crate is
//! [Train a language model on your text](https://github.com/deq-rs/deq/blob/main/docs/src/text.md).
//!
//! # Features
//!
//! - `fetch`: `fetch` and `RemoteText`, which download WikiText-2 and WikiText-103 and compare the
//!   one with its checksums, the other with its numbers of tokens and words. Off by default, since
//!   it brings an HTTP client.
//! - `tokenizers`: reads `tokenizer.json` with the library of that name. Without it such a file is
//!   refused with a sentence that says so. It is not among the defaults of this crate because it
//!   brings some fifty crates, which take more than a minute to build; `deq-train` and `deq-cli`
//!   turn it on by default.

mod error;
#[cfg(feature = "fetch")]
mod fetch;
mod files;
mod image;
mod panics;
mod splits;
mod text;

pub use error::DataError;
#[cfg(feature = "fetch")]
pub use fetch::{FetchEvent, RemoteFile, RemoteText, fetch};
pub use files::remove_abandoned;
pub use image::{
    Batches, Cifar10, Example, IGNORE_LABEL, ImageBatch, ImageDataset, ImageFolder, ImageSource,
    LabelMap, LabelMeaning, LabelShare, LabelSurvey, Loader, LoaderConfig, Normalization, Picture,
    Raster, SegmentationFolder, Shapes, Skipped, Spread, Target, Transform, VisionSplits,
    VisionTask, Window,
};
pub use panics::{catch_panic, catch_payload, panic_is_caught, panic_text};
pub use text::{
    Arrangement, CachePlace, CacheProblem, CachedText, Corpus, CorpusEvent, CorpusFingerprint,
    CorpusReader, Level, Position, Segment, StreamBatcher, TextSurvey, TokenIter, Tokens,
    Vocabulary, survey, unigram_perplexity,
};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctest;
