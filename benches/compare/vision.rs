//! MDEQ and residual networks.

use crate::suite::{Failure, Outcome, Suite, device, int_tensor, integers, layer, normal, step};
use burn::module::{Module, Param};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use deq_core::Deq;
use deq_core::solvers::SolverConfig;
use deq_jacreg::{JacobianPenalty, JacobianPenaltyConfig};
use deq_models::{Depth, MdeqClassifier, MdeqClassifierConfig, ResNet, ResNetConfig};
use serde_json::json;
use std::rc::Rc;
use std::slice::from_ref;

const PENALTY_WEIGHT: f64 = 1.0;

/// Batch, side and classes of images.
#[derive(Clone, Copy)]
struct Pictures {
    batch: usize,
    side: usize,
    classes: usize,
}

const fn cifar(batch: usize) -> Pictures {
    Pictures {
        batch,
        side: 32,
        classes: 10,
    }
}

const fn imagenet_pictures(batch: usize) -> Pictures {
    Pictures {
        batch,
        side: 224,
        classes: 1000,
    }
}

pub(crate) fn cifar_tiny() -> Result<Suite, Failure> {
    mdeq(MdeqClassifierConfig::cifar10_tiny(), cifar(8), [8, 7])
}

/// The preset for the penalty, whose budget is 8/7.
pub(crate) fn cifar_large(batch: usize) -> Result<Suite, Failure> {
    let config = MdeqClassifierConfig::cifar10_large_jr();
    mdeq(config, cifar(batch), [8, 7])
}

pub(crate) fn imagenet(batch: usize) -> Result<Suite, Failure> {
    let config = MdeqClassifierConfig::imagenet_small_jr();
    mdeq(config, imagenet_pictures(batch), [14, 14])
}

pub(crate) fn resnet18() -> Result<Suite, Failure> {
    let pictures = cifar(8);
    let config = ResNetConfig::resnet18(pictures.classes).with_small_images(true);
    resnet(config, pictures)
}

pub(crate) fn resnet101(batch: usize) -> Result<Suite, Failure> {
    let pictures = imagenet_pictures(batch);
    resnet(ResNetConfig::resnet101(pictures.classes), pictures)
}

/// Images and their classes on the training device.
struct Batch {
    images: Tensor<4>,
    targets: Tensor<2, Int>,
}

impl Batch {
    fn new(pictures: Pictures, suite: &mut Suite, device: &Device) -> Self {
        let Pictures {
            batch,
            side,
            classes,
        } = pictures;
        let images = normal([batch, 3, side, side], 1.0, device);
        let targets = integers(batch, classes as u32, 5);
        suite.input("images", &images);
        suite.integers("targets", &targets, &[batch]);
        Self {
            images,
            targets: int_tensor(&targets, [batch, 1], device),
        }
    }

    /// The mean cross-entropy.
    fn loss(&self, logits: Tensor<2>) -> Tensor<1> {
        let log_probs = log_softmax(logits, 1);
        log_probs.gather(1, self.targets.clone()).mean().neg()
    }
}

struct Mdeq {
    model: MdeqClassifier,
    batch: Batch,
    deq: Deq,
    penalty: JacobianPenalty,
    /// A map per branch.
    probe: Vec<Tensor<4>>,
}

/// Without dropout, whose draws differ from side to side.
fn mdeq(
    mut config: MdeqClassifierConfig,
    pictures: Pictures,
    [forward, backward]: [usize; 2],
) -> Result<Suite, Failure> {
    config.backbone.dropout = 0.0;
    let device = device();
    let backbone = &config.backbone;
    let mut suite = Suite::new(json!({
        "channels": backbone.channels,
        "groups": backbone.groups,
        "downsample_times": backbone.downsample_times,
        "forward": forward,
        "backward": backward,
        "penalty_weight": PENALTY_WEIGHT,
    }));
    let model = tamed(config.init(&device)?);
    let batch = Batch::new(pictures, &mut suite, &device);
    let finest = pictures.side >> backbone.downsample_times;
    let probe: Vec<_> = backbone
        .channels
        .iter()
        .enumerate()
        .map(|(level, &channels)| {
            let side = finest >> level;
            normal(
                [pictures.batch, channels, side, side],
                1.0,
                &device.clone().inner(),
            )
        })
        .collect();
    suite.weights(&model)?;
    for (level, map) in probe.iter().enumerate() {
        suite.input(&format!("probe{level}"), map);
    }
    let bench = Rc::new(Mdeq {
        model,
        batch,
        deq: layer(SolverConfig::broyden(), forward, backward)?,
        penalty: JacobianPenaltyConfig::new().build()?,
        probe,
    });
    let b = bench.clone();
    suite.operation(format!("forward {forward}"), move || {
        let depth = Depth::Equilibrium(&b.deq);
        let images = b.batch.images.clone().inner();
        Outcome::output(b.model.valid().forward(images, depth).logits)
    });
    let b = bench.clone();
    let name = format!("training step {forward}/{backward}");
    suite.operation(&name, move || b.step(false));
    suite.operation(format!("{name}, penalty"), move || bench.step(true));
    Ok(suite)
}

/// Weights as they are drawn make a map that a solve of a few steps carries anywhere: two programs
/// that round differently end at different points. Here the channels of a group differ much by
/// themselves, and what a block adds to that is small, so that the map contracts.
fn tamed(mut model: MdeqClassifier) -> MdeqClassifier {
    let branches = model.backbone.cell.branches.iter_mut();
    for block in branches.flat_map(|branch| &mut branch.blocks) {
        let channels = block.norm2.num_channels;
        if let (Some(scale), Some(shift)) = (&mut block.norm2.gamma, &mut block.norm2.beta) {
            let device = scale.val().device();
            let levels: Vec<f32> = (0..channels).map(|c| 2.0 + 6.0 * (c % 3) as f32).collect();
            let levels = TensorData::new(levels, [channels]);
            *scale = Param::from_tensor(Tensor::full([channels], 0.3, &device));
            *shift = Param::from_tensor(Tensor::from_data(levels, &device));
        }
    }
    model
}

/// For the same reason, what a block adds to its input is small.
fn calmed(mut model: ResNet) -> ResNet {
    for block in model.stages.iter_mut().flatten() {
        if let Some(last) = block.layers.last_mut() {
            let scale = last.norm.gamma.val();
            let small = Tensor::full(scale.shape(), 0.25, &scale.device());
            last.norm.gamma = Param::from_tensor(small);
        }
    }
    model
}

impl Mdeq {
    fn step(&self, penalised: bool) -> Outcome {
        let depth = Depth::Equilibrium(&self.deq);
        let out = self.model.forward(self.batch.images.clone(), depth);
        let mut loss = self.batch.loss(out.logits);
        if penalised {
            let (cell, probe) = (&self.model.backbone.cell, from_ref(&self.probe));
            let estimate = self
                .penalty
                .at_equilibrium_with_probes(cell, &out.context, &out.equilibrium, probe)
                .expect("the state is f32");
            loss = loss + estimate.value * PENALTY_WEIGHT;
        }
        step(&self.model, loss)
    }
}

fn resnet(config: ResNetConfig, pictures: Pictures) -> Result<Suite, Failure> {
    let device = device();
    let mut suite = Suite::new(json!({ "small_images": config.small_images }));
    let model = Rc::new(calmed(config.init(&device)?));
    let batch = Rc::new(Batch::new(pictures, &mut suite, &device));
    suite.weights(&*model)?;
    let (m, b) = (model.clone(), batch.clone());
    suite.operation("forward", move || {
        Outcome::output(m.valid().forward(b.images.clone().inner()))
    });
    suite.operation("training step", move || {
        let loss = batch.loss(model.forward(batch.images.clone()));
        step(&*model, loss)
    });
    Ok(suite)
}
