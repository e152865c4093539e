//! One batch on several devices.
//!
//! Every device has a copy of the model for its part of the batch. Since each sample is solved by
//! itself, and what is drawn for the batch is drawn at one place, the parts together are the step
//! that one device would have made, up to the order in which sums are taken. Only batch statistics
//! are those of a part, as in the original.

mod buffers;
mod collective;
mod watch;
mod whole;

use crate::clip::clip_global_norm;
use crate::devices::{Devices, DevicesError, Found, Ping};
use crate::error::{TrainError, require};
use crate::recipe::Recipe;
use crate::step::{Learner, LearnerOf, Share, StepInput, StepOutput, require_type, step_seed};
use crate::task::{BatchOf, Batches, Memory, Task, TaskModel};
use buffers::{Buffers, move_buffers};
use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::Device;
use burn::train::{InferenceStep, TrainOutput};
use collective::{Row, Sum, from_row, sum_among};
use deq_core::random::DividedDraws;
use deq_data::{catch_payload, panic_text};
use deq_jacreg::InvalidPenalty;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Instant;
use watch::{PATIENCE, PAUSE, watch};
use whole::whole;

/// As the main thread of a program, which unoptimised code may need.
const STACK: usize = 8 << 20;

type Job = Box<dyn FnOnce() + Send>;

/// The devices that divide every batch among them.
pub(crate) struct Team {
    members: Vec<Found>,
    /// One for each distinct device. What is done on a device is done by one thread, whose memory
    /// the device keeps; parts on the same device follow each other.
    lanes: Vec<Lane>,
    /// How the devices add up gradients, if they do it among themselves. Otherwise all gradients go
    /// to the first device.
    sum: Option<Sum>,
    /// Batches read so far.
    done: AtomicUsize,
    /// Whether nobody waits for the work any more.
    is_abandoned: AtomicBool,
}

/// The parts on one device.
struct Lane {
    members: Vec<usize>,
    /// None for the thread that asks.
    thread: Option<mpsc::Sender<Job>>,
}

impl Team {
    /// # Errors
    ///
    /// See [`Devices::find`].
    pub(crate) fn open(devices: &Devices) -> Result<Self, TrainError> {
        Ok(Self::of(devices.find()?))
    }

    fn of(members: Vec<Found>) -> Self {
        let mut lanes: Vec<Lane> = Vec::new();
        for (index, member) in members.iter().enumerate() {
            let of_device = |lane: &&mut Lane| members[lane.members[0]].device == member.device;
            match lanes.iter_mut().find(of_device) {
                Some(lane) => lane.members.push(index),
                None => lanes.push(Lane {
                    members: vec![index],
                    thread: None,
                }),
            }
        }
        // The thread that asks does the work of one local device.
        let is_remote = |lane: &Lane| members[lane.members[0]].ping.is_some();
        let own = lanes.iter().position(|lane| !is_remote(lane));
        for (index, lane) in lanes.iter_mut().enumerate() {
            if own != Some(index) {
                lane.thread = Some(lane_thread());
            }
        }
        let devices: Vec<Device> = members.iter().map(|member| member.device.clone()).collect();
        Self {
            members,
            lanes,
            sum: sum_among(&devices),
            done: AtomicUsize::new(0),
            is_abandoned: AtomicBool::new(false),
        }
    }

    /// The number of parts, at most.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// The device of the model, of its optimizer, and of whole batches; without autodiff.
    pub(crate) fn main(&self) -> &Device {
        &self.members[0].device
    }

    /// Requires that several devices can divide the batches of a recipe, and all compute in the
    /// type of its map. The first was asked for the type when the model was made on it.
    ///
    /// # Errors
    ///
    /// [`DevicesError::Indivisible`], [`DeviceError`](crate::DeviceError), or
    /// [`RecipeError`](crate::RecipeError) if there are more devices than samples in a batch.
    pub(crate) fn require_suitable<T: Task>(
        &self,
        recipe: &Recipe<T>,
        learner: &LearnerOf<T>,
        held_out: &dyn Batches<BatchOf<T>>,
    ) -> Result<(), TrainError> {
        if self.len() == 1 {
            return Ok(());
        }
        for member in &self.members[1..] {
            require_type(recipe.deq.precision, &member.device)?;
        }
        let batch = recipe.batch;
        let enough = "at least the number of devices";
        require(batch >= self.len(), "batch", batch as f64, enough)?;
        let first = held_out.batches(0..1, self.main()).next();
        match first {
            Some(Ok(first)) if learner.model.samples(&first).is_none() => {
                Err(DevicesError::Indivisible { task: T::NAME }.into())
            }
            // What cannot be read is told where it is needed.
            _ => Ok(()),
        }
    }

    /// The parts of a batch, if it has several.
    ///
    /// # Panics
    ///
    /// If several devices divide what cannot be divided, which is ruled out before training.
    fn parts<M: TaskModel>(&self, model: &M, batch: &M::Batch) -> Option<Vec<Range<usize>>> {
        if self.len() == 1 {
            return None;
        }
        let samples = model.samples(batch).expect("the batch can be divided");
        let parts = divide(samples, self.len());
        (parts.len() > 1).then_some(parts)
    }

    /// The memory of a batch that has so many parts.
    fn memories<M: Memory>(&self, memory: Vec<M>, parts: usize) -> Memories<M> {
        match memory.len() == parts {
            true => Memories::Parts(memory),
            false => Memories::Whole(joined(memory, self.main())),
        }
    }

    /// One training step. `memory` is that of the parts of the step before, or the whole as one.
    ///
    /// # Errors
    ///
    /// [`DevicesError::Lost`] naming a worker that is gone.
    pub(crate) fn train<M: TaskModel>(
        &self,
        learner: &Learner<M>,
        mut input: StepInput<M>,
        memory: &mut Vec<M::Memory>,
    ) -> Result<TrainOutput<StepOutput<M>>, TrainError> {
        let Some(parts) = self.parts(&learner.model, &input.batch) else {
            input.memory = joined(std::mem::take(memory), self.main());
            let mut out = learner.whole_step(input)?;
            *memory = vec![std::mem::take(&mut out.item.memory)];
            self.count()?;
            return Ok(out);
        };
        let started = Instant::now();
        let main = self.main().clone();
        main.seed(step_seed(learner.plan.seed, input.step));
        let samples = parts.last().map_or(0, |rows| rows.end);
        let draws = DividedDraws::new(samples, parts.len(), &main);
        let memories = self.memories(std::mem::take(memory), parts.len());
        // All devices take part in a sum of theirs, so each must have a part.
        let sum = self.sum.as_ref().filter(|_| parts.len() == self.len());
        let stay = sum.is_some();
        let all_weight = learner.model.loss_weight(&input.batch);
        let work = {
            let (learner, parts) = (learner.clone(), parts.clone());
            move |part: usize, device: &Device| {
                let rows = parts[part].clone();
                // A copy whose running statistics are its own.
                let replica = learner.valid().to_device(device).train();
                let batch =
                    replica
                        .model
                        .part(&input.batch, rows.clone(), &device.clone().autodiff());
                let by_samples = rows.len() as f64 / samples as f64;
                let share = Share {
                    of_loss: match all_weight > 0.0 {
                        true => replica.model.loss_weight(&batch) / all_weight,
                        // Nothing to predict: the loss is 0.
                        false => by_samples,
                    },
                    of_samples: by_samples,
                };
                let input = StepInput {
                    batch,
                    step: input.step,
                    memory: memories.of(part, rows.clone(), device),
                    penalty: input.penalty,
                };
                let before = Buffers::of(&replica);
                let out = draws.within(rows, || replica.part_of_step(input, Some(share)))?;
                Ok(PartOutput {
                    moved: before
                        .moved(&replica, by_samples)
                        .to_device(&main, &replica),
                    grads: match stay {
                        true => PartGrads::There(Box::new(Row::of(&learner, out.grads, device))),
                        false => PartGrads::Here(out.grads.to_device(&main, &replica)),
                    },
                    item: out.item,
                    share,
                })
            }
        };
        let outputs: Result<Vec<_>, InvalidPenalty> =
            self.run(parts.len(), work)?.into_iter().collect();
        let outputs = outputs?;
        self.count()?;
        let (mut grads, mut moved) = (GradientsAccumulator::new(), GradientsAccumulator::new());
        let (mut rows, mut items) = (Vec::new(), Vec::with_capacity(outputs.len()));
        for part in outputs {
            match part.grads {
                PartGrads::Here(part) => grads.accumulate(learner, part),
                PartGrads::There(row) => rows.push(*row),
            }
            moved.accumulate(learner, part.moved);
            items.push((part.item, part.share));
        }
        move_buffers(learner, moved.grads());
        let grads = match sum {
            Some(sum) => self.sum_of(rows, sum, learner)?,
            None => grads.grads(),
        };
        let grads = match learner.plan.clip {
            Some(limit) => clip_global_norm(learner, grads, limit),
            None => grads,
        };
        let (mut item, memories) = whole(items);
        *memory = memories;
        item.record.seconds = started.elapsed().as_secs_f64();
        Ok(TrainOutput { grads, item })
    }

    /// The gradients of all devices, one row of each, added up.
    fn sum_of<M: TaskModel>(
        &self,
        rows: Vec<Row>,
        sum: &Sum,
        learner: &Learner<M>,
    ) -> Result<GradientsParams, TrainError> {
        let count = rows.len();
        let mut present = vec![false; rows[0].present.len()];
        let mut numbers = Vec::with_capacity(count);
        for row in rows {
            let both = present.iter_mut().zip(row.present);
            both.for_each(|(any, own)| *any |= own);
            numbers.push(Some(row.numbers));
        }
        let devices: Vec<Device> = self.members.iter().map(|m| m.device.clone()).collect();
        let (sum, numbers) = (sum.clone(), Mutex::new(numbers));
        let sums = self.run(count, move |part, _| {
            let own = numbers.lock().expect("nothing panics meanwhile")[part].take();
            let sum = sum(own.expect("a row is added once"), &devices);
            // What is not needed is freed by the thread whose memory it is.
            (part == 0).then_some(sum)
        })?;
        let sum = sums.into_iter().next().flatten();
        Ok(from_row(
            learner,
            &sum.expect("the first device has it"),
            &present,
        ))
    }

    /// A copy of a model in evaluation mode for each device.
    pub(crate) fn replicas<M: TaskModel>(&self, learner: &Learner<M>) -> Vec<Learner<M>> {
        let members = self.members.iter();
        members
            .map(|member| learner.valid().to_device(&member.device))
            .collect()
    }

    /// One step of evaluation, by [`replicas`](Self::replicas). `memory` as in training.
    ///
    /// # Errors
    ///
    /// [`DevicesError::Lost`] naming a worker that is gone.
    pub(crate) fn infer<M: TaskModel>(
        &self,
        replicas: &[Learner<M>],
        mut input: StepInput<M>,
        memory: &mut Vec<M::Memory>,
    ) -> Result<StepOutput<M>, TrainError> {
        let model = &replicas[0].model;
        let Some(parts) = self.parts(model, &input.batch) else {
            input.memory = joined(std::mem::take(memory), self.main());
            let mut out = InferenceStep::step(&replicas[0], input);
            *memory = vec![std::mem::take(&mut out.memory)];
            self.count()?;
            return Ok(out);
        };
        let started = Instant::now();
        let samples = parts.last().map_or(0, |rows| rows.end);
        let targets = model.targets(&input.batch).max(1) as f64;
        let memories = self.memories(std::mem::take(memory), parts.len());
        let work = {
            let (replicas, parts) = (replicas.to_vec(), parts.clone());
            move |part: usize, device: &Device| {
                let rows = parts[part].clone();
                let model = &replicas[part].model;
                let batch = model.part(&input.batch, rows.clone(), device);
                let share = Share {
                    of_loss: model.targets(&batch) as f64 / targets,
                    of_samples: rows.len() as f64 / samples as f64,
                };
                let input = StepInput {
                    batch,
                    step: input.step,
                    memory: memories.of(part, rows.clone(), device),
                    penalty: None,
                };
                (InferenceStep::step(&replicas[part], input), share)
            }
        };
        let items = self.run(parts.len(), work)?;
        self.count()?;
        let (mut item, memories) = whole(items);
        *memory = memories;
        item.record.seconds = started.elapsed().as_secs_f64();
        Ok(item)
    }

    /// Does work with these devices. Where workers are among them it has a thread of its own, so
    /// that it ends when a worker hangs: what waits for an answer cannot be woken.
    ///
    /// # Errors
    ///
    /// Those of the work; [`DevicesError::Lost`] naming a worker that is gone or does not answer,
    /// [`DevicesError::BrokenOff`] if the work panics and all workers answer.
    pub(crate) fn watch<R: Send + 'static>(
        self,
        work: impl FnOnce(&Arc<Team>) -> Result<R, TrainError> + Send + 'static,
    ) -> Result<R, TrainError> {
        let watched: Vec<(String, Ping)> = self
            .members
            .iter()
            .filter_map(|member| Some((member.name.clone(), member.ping.clone()?)))
            .collect();
        let team = Arc::new(self);
        match watched.is_empty() {
            true => work(&team),
            false => {
                let progress = team.clone();
                let done = move || progress.done.load(Ordering::Relaxed);
                let abandoned = team.clone();
                let result = watch(&watched, [PAUSE, PATIENCE], done, move || work(&team));
                abandoned
                    .is_abandoned
                    .store(result.is_err(), Ordering::Relaxed);
                result
            }
        }
    }

    /// A batch was read.
    fn count(&self) -> Result<(), TrainError> {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.require_awaited()
    }

    /// Requires that somebody waits for the work. Once a worker was lost nobody does, and the run
    /// may be another's: a worker that answers after all must not move it.
    ///
    /// # Errors
    ///
    /// [`DevicesError::Lost`], which nobody sees.
    pub(crate) fn require_awaited(&self) -> Result<(), TrainError> {
        if !self.is_abandoned.load(Ordering::Relaxed) {
            return Ok(());
        }
        let names: Vec<&str> = self.members.iter().map(|m| m.name.as_str()).collect();
        Err(DevicesError::lost(names.join(" and "), "the work was given up").into())
    }

    /// Does the work for every part on its device, and returns the results in order.
    ///
    /// # Errors
    ///
    /// [`DevicesError::Lost`] if the work fails on a worker.
    ///
    /// # Panics
    ///
    /// As the work does on a local device.
    fn run<R: Send + 'static>(
        &self,
        parts: usize,
        work: impl Fn(usize, &Device) -> R + Send + Sync + 'static,
    ) -> Result<Vec<R>, TrainError> {
        let work = Arc::new(work);
        let (sender, receiver) = mpsc::channel();
        for lane in &self.lanes {
            let Some(thread) = &lane.thread else { continue };
            let (work, sender) = (work.clone(), sender.clone());
            let own: Vec<(usize, Device)> = lane
                .parts_below(parts)
                .map(|part| (part, self.members[part].device.clone()))
                .collect();
            let is_remote = self.members[lane.members[0]].ping.is_some();
            let job = move || {
                for (part, device) in own {
                    let work = || work(part, &device);
                    // Only of a worker a panic becomes an error; any other is reported here.
                    let result = match is_remote {
                        true => catch_payload(work),
                        false => catch_unwind(AssertUnwindSafe(work)),
                    };
                    let failed = result.is_err();
                    // Nobody listens where another part has failed.
                    if sender.send((part, result)).is_err() || failed {
                        return;
                    }
                }
            };
            thread
                .send(Box::new(job))
                .expect("a lane outlives its work");
        }
        let mut results: Vec<Option<R>> = (0..parts).map(|_| None).collect();
        for lane in self.lanes.iter().filter(|lane| lane.thread.is_none()) {
            for part in lane.parts_below(parts) {
                results[part] = Some(work(part, &self.members[part].device));
            }
        }
        drop(sender);
        for (part, result) in receiver {
            let member = &self.members[part];
            match (result, &member.ping) {
                (Ok(result), _) => results[part] = Some(result),
                (Err(panic), Some(_)) => {
                    let reason = panic_text(&*panic);
                    return Err(DevicesError::lost(member.name.clone(), &reason).into());
                }
                // As it was, since what it carries says whether the device has failed.
                (Err(panic), None) => resume_unwind(panic),
            }
        }
        let results = results.into_iter();
        Ok(results
            .map(|result| result.expect("every part was done"))
            .collect())
    }
}

impl Lane {
    /// Its parts of a batch that has so many.
    fn parts_below(&self, parts: usize) -> impl Iterator<Item = usize> {
        self.members
            .iter()
            .copied()
            .filter(move |part| *part < parts)
    }
}

/// A thread that does jobs until nobody can send it any.
fn lane_thread() -> mpsc::Sender<Job> {
    let (sender, receiver) = mpsc::channel::<Job>();
    let lane = thread::Builder::new().stack_size(STACK);
    let lane = lane.spawn(move || receiver.into_iter().for_each(|job| job()));
    lane.expect("the system has threads for a few devices");
    sender
}

/// So many samples in at most so many parts, none of them empty, whose sizes differ by at most one.
fn divide(samples: usize, parts: usize) -> Vec<Range<usize>> {
    let parts = parts.min(samples);
    (0..parts)
        .map(|part| samples * part / parts..samples * (part + 1) / parts)
        .collect()
}

/// The memory of a batch, as one or in the parts that its devices hold.
enum Memories<M> {
    Whole(M),
    Parts(Vec<M>),
}

impl<M: Memory> Memories<M> {
    fn of(&self, part: usize, rows: Range<usize>, device: &Device) -> M {
        match self {
            Memories::Whole(memory) => memory.part(rows, device),
            Memories::Parts(parts) => parts[part].clone(),
        }
    }
}

/// The memory of a whole batch, on `device`.
pub(crate) fn joined<M: Memory>(mut parts: Vec<M>, device: &Device) -> M {
    match parts.len() {
        0 => M::default(),
        1 => parts.remove(0),
        _ => M::joined(&parts, device),
    }
}

/// What a device made of its part.
struct PartOutput<M: TaskModel> {
    /// Added up over the parts they are the gradients of the batch.
    grads: PartGrads,
    /// How running statistics have changed, times the share of the part.
    moved: GradientsParams,
    item: StepOutput<M>,
    share: Share,
}

enum PartGrads {
    /// On the first device.
    Here(GradientsParams),
    /// On the device of the part.
    There(Box<Row>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{device_failure, is_out_of_memory};
    use crate::step::input;
    use crate::task::{BatchPlan, Opening};
    use crate::tasks::images::{ImagesBatch, ImagesTask};
    use burn::module::{ModuleVisitor, Param};
    use burn::tensor::Tensor;
    use deq_data::catch_panic;
    use std::sync::Barrier;

    #[test]
    fn parts_cover_a_batch_and_none_is_empty() {
        assert_eq!(divide(7, 3), [0..2, 2..4, 4..7]);
        assert_eq!(divide(2, 3), [0..1, 1..2]);
        assert!(divide(0, 3).is_empty());
    }

    /// The numbers of a model in order, running statistics included.
    fn numbers(model: &impl Module) -> Vec<f64> {
        struct Numbers(Vec<f64>);
        impl ModuleVisitor for Numbers {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0.extend(param.val().into_data().iter::<f64>());
            }
        }
        let mut numbers = Numbers(Vec::new());
        model.valid().visit(&mut numbers);
        numbers.0
    }

    /// The gradients of a model in order.
    fn gradients(model: &impl Module, grads: &GradientsParams) -> Vec<f64> {
        struct Numbers<'a>(&'a GradientsParams, Vec<f64>);
        impl ModuleVisitor for Numbers<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if let Some(grad) = self.0.get::<D>(param.id) {
                    self.1.extend(grad.into_data().iter::<f64>());
                }
            }
        }
        let mut numbers = Numbers(grads, Vec::new());
        model.visit(&mut numbers);
        numbers.1
    }

    fn assert_near(found: &[f64], expected: &[f64], tolerance: f64) {
        assert!(!found.is_empty() && found.len() == expected.len());
        let size = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        for (found, expected) in found.iter().zip(expected) {
            let error = (found - expected).abs();
            assert!(error <= tolerance * size, "{found} for {expected}");
        }
    }

    fn mean(a: &[f64], b: &[f64]) -> Vec<f64> {
        a.iter().zip(b).map(|(a, b)| 0.5 * (a + b)).collect()
    }

    /// A small image model, and two batches of four images for it.
    struct Mini {
        fresh: LearnerOf<ImagesTask>,
        halves: Vec<ImagesBatch>,
    }

    impl Mini {
        fn new() -> Self {
            let mut recipe = Recipe::<ImagesTask>::preset("mini").unwrap();
            recipe.penalty = None;
            recipe
                .set("task.model.classifier.backbone.dropout", "0")
                .unwrap();
            let data = recipe.task.open(&Opening::default()).unwrap();
            let tracked = Device::flex().autodiff();
            let fresh = Learner::fresh(&recipe, &tracked).unwrap();
            let plan = BatchPlan {
                batch: 4,
                seed: 1,
                workers: 0,
            };
            let batches = recipe.task.training(&data, &plan).unwrap();
            let halves = batches.batches(0..2, &tracked).map(Result::unwrap);
            Self {
                fresh,
                halves: halves.collect(),
            }
        }

        fn together(first: &ImagesBatch, second: &ImagesBatch) -> ImagesBatch {
            ImagesBatch {
                images: Tensor::cat(vec![first.images.clone(), second.images.clone()], 0),
                targets: [first.targets.clone(), second.targets.clone()].concat(),
            }
        }

        /// The loss of a step, its gradients, and all numbers of the model after it.
        fn step(&self, team: &Team, batch: ImagesBatch) -> (f64, Vec<f64>, Vec<f64>) {
            let learner = self.fresh.valid().train();
            let input = input::<ImagesTask>(batch, 0);
            let out = team.train(&learner, input, &mut Vec::new()).unwrap();
            let grads = gradients(&learner, &out.grads);
            (out.item.record.loss, grads, numbers(&learner))
        }
    }

    /// A step on two devices is the mean of a step with each half, running statistics included; and
    /// where the halves are equal, it is the step with the whole.
    #[test]
    fn batch_statistics_are_those_of_a_part_and_running_ones_their_mean() {
        let mini = Mini::new();
        let step = |devices: usize, batch: ImagesBatch| mini.step(&flexes(devices), batch);
        let halves = &mini.halves;
        let parts = [0, 1].map(|half| step(1, halves[half].clone()));
        let both = step(2, Mini::together(&halves[0], &halves[1]));
        assert!((both.0 - 0.5 * (parts[0].0 + parts[1].0)).abs() < 1e-5);
        assert_near(&both.1, &mean(&parts[0].1, &parts[1].1), 1e-4);
        assert_near(&both.2, &mean(&parts[0].2, &parts[1].2), 1e-5);
        let statistics = |numbers: &[f64]| {
            let before = numbers.iter().zip(self::numbers(&mini.fresh));
            before
                .filter(|(now, before)| (*now - before).abs() > 0.0)
                .count()
        };
        assert!(statistics(&both.2) > 100, "no statistics have moved");

        let equal = Mini::together(&halves[0], &halves[0]);
        let (one, two) = (step(1, equal.clone()), step(2, equal));
        assert!((two.0 - one.0).abs() < 1e-5);
        assert_near(&two.1, &one.1, 1e-4);
        assert_near(&two.2, &one.2, 1e-5);
    }

    fn flexes(count: usize) -> Team {
        Team::of((0..count).map(|_| found("flex", None)).collect())
    }

    /// Devices that add up among themselves, with a thread for each, and how often one has done so.
    /// In place of NCCL they meet at a barrier, so that they wait for one that does not come.
    fn summing(count: usize) -> (Team, Arc<AtomicUsize>) {
        let mut team = flexes(count);
        team.lanes = (0..count)
            .map(|index| Lane {
                members: vec![index],
                thread: (index > 0).then(lane_thread),
            })
            .collect();
        let calls = Arc::new(AtomicUsize::new(0));
        let (counted, barrier) = (calls.clone(), Barrier::new(count));
        let rows = Mutex::new(Vec::new());
        team.sum = Some(Arc::new(move |own: Tensor<1>, devices: &[Device]| {
            assert_eq!(devices.len(), count);
            counted.fetch_add(1, Ordering::Relaxed);
            rows.lock().unwrap().push(own);
            barrier.wait();
            let sum = rows.lock().unwrap().iter().cloned().reduce(Tensor::add);
            if barrier.wait().is_leader() {
                rows.lock().unwrap().clear();
            }
            // Nobody begins the next sum with this one's rows.
            barrier.wait();
            sum.unwrap()
        }));
        (team, calls)
    }

    #[test]
    fn what_devices_add_up_among_themselves_is_what_the_first_would() {
        let mini = Mini::new();
        let both = Mini::together(&mini.halves[0], &mini.halves[1]);
        let (team, calls) = summing(2);
        let expected = mini.step(&flexes(2), both.clone());
        for sums in [2, 4] {
            assert_eq!(mini.step(&team, both.clone()), expected);
            assert_eq!(calls.load(Ordering::Relaxed), sums);
        }

        // A part that fails leaves nobody waiting for its sum, and the next batch finds all there.
        let mut wrong = both.clone();
        *wrong.targets.last_mut().unwrap() = 1000;
        let failed = catch_panic(|| mini.step(&team, wrong));
        assert!(failed.is_err(), "there is no such class");
        assert_eq!(calls.load(Ordering::Relaxed), 4);
        assert_eq!(mini.step(&team, both.clone()), expected);

        // Two images are no three parts.
        let device = Device::flex().autodiff();
        let two = mini.fresh.model.part(&both, 0..2, &device);
        let (team, calls) = summing(3);
        assert_eq!(mini.step(&team, two.clone()), mini.step(&flexes(3), two));
        assert_eq!(calls.load(Ordering::Relaxed), 0);
    }

    fn found(name: &str, ping: Option<Ping>) -> Found {
        Found {
            name: name.to_owned(),
            device: Device::flex(),
            ping,
        }
    }

    #[test]
    fn what_fails_on_any_local_device_is_told_as_on_the_first() {
        let (team, _) = summing(2);
        let listed = "\n  a cause among many".repeat(20);
        let said = format!("Error while reading data: {listed}\n  out of device memory");
        let failed = catch_payload(|| {
            team.run(2, move |part, _| {
                if part == 1 {
                    resume_unwind(Box::new(said.clone()));
                }
            })
        });
        let panic = failed.unwrap_err();
        assert!(is_out_of_memory(&*panic) && device_failure(&*panic).is_some());
    }

    #[test]
    fn results_are_in_order_and_what_fails_elsewhere_is_named() {
        let here = Team::of(vec![found("a", None), found("b", None)]);
        let doubled = here.run(2, |part, _| 2 * part).unwrap();
        assert_eq!(doubled, [0, 2]);

        let ping: Ping = Arc::new(|| Ok(()));
        let there = Team::of(vec![found("far", Some(ping))]);
        assert_eq!(there.run(1, |part, _| part).unwrap(), [0]);
        let lost = there.run(1, |_, _| -> usize { panic!("it is gone") });
        let message = lost.unwrap_err().to_string();
        assert!(
            message.contains("the worker at far was lost (it is gone)"),
            "{message}"
        );
        // Its thread is there for the next work.
        assert_eq!(there.run(1, |part, _| part).unwrap(), [0]);
    }
}
