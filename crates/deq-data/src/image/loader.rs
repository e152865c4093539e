//! Batches of images, made by several threads ahead of time, and the same whatever their number.

use super::dataset::{Example, ImageDataset, Target};
use super::random::permutation;
use super::transform::{Normalization, Transform};
use crate::error::DataError;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// How a [`Loader`] cuts a data set into batches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderConfig {
    /// Images in a batch.
    pub batch: usize,
    /// The seed of order and augmentation.
    pub seed: u64,
    /// Whether every epoch has an order of its own. If so, a shorter batch at its end is left out;
    /// without, it is the last one.
    pub shuffle: bool,
    /// Threads that make batches; 0 makes each when it is asked for, on the thread that asks.
    pub workers: usize,
    /// Batches that may wait to be taken, besides the one that each worker makes.
    pub prefetch: usize,
}

impl LoaderConfig {
    /// Shuffled batches by two workers with two batches waiting.
    ///
    /// torchvision's users choose workers by the cores there are; two keep up with a CPU that
    /// trains beside them.
    pub fn training(batch: usize, seed: u64) -> Self {
        Self {
            batch,
            seed,
            shuffle: true,
            workers: 2,
            prefetch: 2,
        }
    }

    /// All examples in their order, by one worker.
    pub fn evaluation(batch: usize) -> Self {
        Self {
            batch,
            seed: 0,
            shuffle: false,
            workers: 1,
            prefetch: 2,
        }
    }
}

/// A batch of images as plain numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageBatch {
    /// The number of the batch since the start of training.
    pub step: usize,
    /// Normalised images, `[len, 3, height, width]`.
    pub pixels: Vec<f32>,
    /// Classes, `[len]`, or the class of every pixel, `[len, height, width]`, with
    /// [`IGNORE_LABEL`](crate::IGNORE_LABEL) where there is none.
    pub targets: Vec<i32>,
    /// Images in this batch.
    pub len: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Which examples of the data set these are.
    pub indices: Vec<usize>,
    /// Files that belong here but cannot be used.
    pub skipped: Vec<Skipped>,
    /// Files that were read although they are cut short: all pixels are there, the end is not.
    pub cut_short: Vec<PathBuf>,
}

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// Batches by number, over any number of epochs.
///
/// Batch `step` depends on the data set, the configuration and `step` alone. So a run that was
/// interrupted goes on with the batches that it would have had, and the number of workers changes
/// the speed only.
///
/// A file that cannot be used makes its batch shorter and is named in it; without shuffling a batch
/// may even be empty.
///
/// ```
/// use deq_data::{ImageSource, Loader, LoaderConfig, Transform};
///
/// let data = ImageSource::Shapes.open()?;
/// let transform = Transform::PadCrop { size: 32, pad: 4 };
/// let config = LoaderConfig::training(16, 1);
/// let loader = Loader::new(data.train, transform, data.normalization, config)?;
/// for batch in loader.batches(600..603) {
///     let batch = batch?;
///     assert_eq!(batch.pixels.len(), 16 * 3 * 32 * 32);
///     assert_eq!(batch, loader.batch(batch.step)?);
/// }
/// # Ok::<(), deq_data::DataError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Loader {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dataset: Arc<dyn ImageDataset>,
    transform: Transform,
    normalization: Normalization,
    config: LoaderConfig,
    /// The orders of the last epochs asked for. Two, since workers may be ahead by one.
    orders: Mutex<VecDeque<(usize, Arc<Vec<u32>>)>>,
}

impl Loader {
    /// Batches of `dataset`.
    ///
    /// # Errors
    ///
    /// [`DataError::OutOfRange`] if the batch is 0, or larger than the data set where batches are
    /// full, or a size of the transform means nothing.
    pub fn new(
        dataset: Arc<dyn ImageDataset>,
        transform: Transform,
        normalization: Normalization,
        config: LoaderConfig,
    ) -> Result<Self, DataError> {
        transform.validate()?;
        let out_of_range = |requirement| DataError::OutOfRange {
            field: "batch",
            value: config.batch as f64,
            requirement,
        };
        if config.batch == 0 {
            return Err(out_of_range("at least 1"));
        }
        if config.shuffle && config.batch > dataset.len() {
            return Err(out_of_range("at most the number of training images"));
        }
        Ok(Self {
            inner: Arc::new(Inner {
                dataset,
                transform,
                normalization,
                config,
                orders: Mutex::default(),
            }),
        })
    }

    /// The data set.
    pub fn dataset(&self) -> &Arc<dyn ImageDataset> {
        &self.inner.dataset
    }

    /// Batches in one pass over the data.
    pub fn batches_per_epoch(&self) -> usize {
        let Inner {
            dataset, config, ..
        } = &*self.inner;
        match config.shuffle {
            true => dataset.len() / config.batch,
            false => dataset.len().div_ceil(config.batch),
        }
    }

    /// Makes batch `step`, counted from 0 over all epochs, on this thread.
    ///
    /// # Errors
    ///
    /// [`DataError::NothingReadable`] if the batches are shuffled and not one image of this one can
    /// be used (without shuffling it is then empty), [`DataError::MixedSizes`] if the transform
    /// leaves images of different sizes.
    pub fn batch(&self, step: usize) -> Result<ImageBatch, DataError> {
        let epoch = step / self.batches_per_epoch();
        let first = step % self.batches_per_epoch() * self.inner.config.batch;
        let end = (first + self.inner.config.batch).min(self.inner.dataset.len());
        let mut assembly = Assembly::new(step, end - first);
        match self.inner.order(epoch) {
            Some(order) => {
                for index in &order[first..end] {
                    assembly.add(&self.inner, epoch, *index as usize)?;
                }
            }
            None => {
                for index in first..end {
                    assembly.add(&self.inner, epoch, index)?;
                }
            }
        }
        assembly.finish(self.inner.config.shuffle)
    }

    /// The batches of `steps` in their order, made ahead by the workers. Memory holds at most
    /// `workers + prefetch` of them, besides those taken.
    pub fn batches(&self, steps: Range<usize>) -> Batches {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                next: steps.start,
                wanted: steps.start,
                end: steps.end.max(steps.start),
                ready: BTreeMap::new(),
            }),
            changed: Condvar::new(),
        });
        let config = &self.inner.config;
        let window = config.workers + config.prefetch;
        let workers = (0..config.workers.min(steps.len()))
            .map(|_| {
                let (loader, shared) = (self.clone(), shared.clone());
                std::thread::spawn(move || shared.work(&loader, window))
            })
            .collect();
        Batches {
            loader: self.clone(),
            shared,
            workers,
        }
    }
}

impl Inner {
    /// The order of an epoch; `None` for that of the data set.
    fn order(&self, epoch: usize) -> Option<Arc<Vec<u32>>> {
        if !self.config.shuffle {
            return None;
        }
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = orders.iter().find(|(of, _)| *of == epoch) {
            return Some(order.clone());
        }
        let order = permutation(self.config.seed, epoch as u64, self.dataset.len());
        let order = Arc::new(order);
        orders.push_back((epoch, order.clone()));
        if orders.len() > 2 {
            orders.pop_front();
        }
        Some(order)
    }
}

/// A batch in the making.
struct Assembly {
    batch: ImageBatch,
    most: usize,
}

impl Assembly {
    fn new(step: usize, most: usize) -> Self {
        Self {
            batch: ImageBatch {
                step,
                pixels: Vec::new(),
                targets: Vec::new(),
                len: 0,
                height: 0,
                width: 0,
                indices: Vec::with_capacity(most),
                skipped: Vec::new(),
                cut_short: Vec::new(),
            },
            most,
        }
    }

    fn add(&mut self, inner: &Inner, epoch: usize, index: usize) -> Result<(), DataError> {
        let example = match inner.dataset.example(index) {
            Ok(example) => example,
            Err(error) => {
                self.batch.skipped.push(Skipped::from_error(error)?);
                return Ok(());
            }
        };
        let seed = inner.config.seed;
        let Example {
            picture,
            target,
            cut_short,
        } = inner.transform.apply(example, seed, epoch, index);
        let batch = &mut self.batch;
        let (width, height) = (picture.width(), picture.height());
        let values = 3 * width * height;
        if batch.len == 0 {
            (batch.width, batch.height) = (width, height);
            // Asked for once: a batch is by far the largest thing here.
            let all = self.most.saturating_mul(values);
            let asked = batch.pixels.try_reserve_exact(all);
            asked.map_err(|_| DataError::OutOfRange {
                field: "batch",
                value: self.most as f64,
                requirement: "so small that its images fit into memory",
            })?;
        } else if (batch.width, batch.height) != (width, height) {
            return Err(DataError::MixedSizes {
                first: (batch.width, batch.height),
                other: (width, height),
            });
        }
        let start = batch.pixels.len();
        batch.pixels.resize(start + values, 0.0);
        inner
            .normalization
            .write(&picture, &mut batch.pixels[start..]);
        match target {
            Target::Class(class) => batch.targets.push(i32::from(class)),
            Target::Map(map) => batch
                .targets
                .extend(map.data().iter().map(|id| i32::from(*id))),
        }
        batch.len += 1;
        batch.indices.push(index);
        batch.cut_short.extend(cut_short);
        Ok(())
    }

    fn finish(self, trains: bool) -> Result<ImageBatch, DataError> {
        // A held-out file that is broken is no reason to stop, a whole batch to train on is.
        if self.batch.len > 0 || !trains {
            return Ok(self.batch);
        }
        let count = self.batch.skipped.len();
        match self.batch.skipped.into_iter().next() {
            Some(Skipped { path, reason }) => Err(DataError::NothingReadable {
                count,
                path,
                reason,
            }),
            None => Err(DataError::NoImages {
                path: PathBuf::new(),
                expected: "a data set must have an example",
                found: "nothing".to_owned(),
            }),
        }
    }
}

impl Skipped {
    /// A file that is damaged or gone is no reason to stop; anything else is.
    pub(super) fn from_error(error: DataError) -> Result<Self, DataError> {
        match error {
            DataError::BadImage { path, reason } => Ok(Self { path, reason }),
            DataError::Io { path, source, .. } => Ok(Self {
                path,
                reason: source.to_string(),
            }),
            other => Err(other),
        }
    }
}

/// Batches in order; see [`Loader::batches`].
#[derive(Debug)]
pub struct Batches {
    loader: Loader,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// The next batch that a worker begins.
    next: usize,
    /// The next batch that is handed out.
    wanted: usize,
    end: usize,
    ready: BTreeMap<usize, Outcome>,
}

/// What became of a batch; on the outside, the panic of a worker.
type Outcome = std::thread::Result<Result<ImageBatch, DataError>>;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, loader: &Loader, window: usize) {
        loop {
            let mut state = self.lock();
            while state.next < state.end && state.next >= state.wanted + window {
                state = self.wait(state);
            }
            if state.next >= state.end {
                return;
            }
            let step = state.next;
            state.next += 1;
            drop(state);
            let outcome = catch_unwind(AssertUnwindSafe(|| loader.batch(step)));
            self.lock().ready.insert(step, outcome);
            self.changed.notify_all();
        }
    }
}

impl Iterator for Batches {
    type Item = Result<ImageBatch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut state = self.shared.lock();
        let step = state.wanted;
        if step >= state.end {
            return None;
        }
        if self.workers.is_empty() {
            state.wanted += 1;
            drop(state);
            return Some(self.loader.batch(step));
        }
        let outcome = loop {
            if let Some(outcome) = state.ready.remove(&step) {
                break outcome;
            }
            state = self.shared.wait(state);
        };
        state.wanted += 1;
        drop(state);
        self.shared.changed.notify_all();
        match outcome {
            Ok(batch) => Some(batch),
            Err(panic) => resume_unwind(panic),
        }
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.end = state.wanted;
        drop(state);
        self.shared.changed.notify_all();
        for worker in self.workers.drain(..) {
            // A worker cannot panic outside of a batch, whose panic it has handed over.
            let _ = worker.join();
        }
    }
}
