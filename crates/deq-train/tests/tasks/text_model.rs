//! Models of text carry their memory.

use burn::tensor::Device;
use deq_core::{Depth, Deq};
use deq_data::Segment;
use deq_models::LmMemory;
use deq_train::tasks::text::{TextBatch, TextTask};
use deq_train::{Network, Recipe, Task, TaskModel};

fn batch(index: usize, starts_stream: bool, device: &Device) -> TextBatch {
    let tokens: Vec<i32> = (0..8).map(|k| k * (1 + index as i32) % 256).collect();
    let segment = Segment {
        inputs: tokens.clone(),
        targets: tokens,
        batch: 2,
        len: 4,
        index,
        starts_stream,
    };
    TextBatch::new(segment, device)
}

/// Both kinds of models read the second segment in the light of the first, unless streams begin
/// there.
#[test]
fn the_memory_applies_within_a_stream() {
    let device = Device::flex();
    let recipe = Recipe::<TextTask>::preset("tiny").unwrap();
    let mut task = recipe.task;
    task.model.vocab_size = 256;
    let deq: Deq = recipe.deq.build().unwrap();
    for network in [Network::Equilibrium, Network::Layers { depth: 2 }] {
        device.seed(1);
        let model = task.init(network, &device).unwrap();
        let depth = Depth::Equilibrium(&deq);
        let loss = |first: usize, starts_stream| {
            let before = model.read(&batch(first, true, &device), &LmMemory::empty(), depth);
            let batch = batch(2, starts_stream, &device);
            let out = model.read(&batch, &before.memory, depth);
            assert_eq!(model.targets(&batch), 8);
            assert_eq!(out.solved.is_some(), model.cell().is_some());
            model.loss(&out.output, &batch).into_scalar::<f64>()
        };
        let forgotten = loss(0, true);
        assert!((forgotten - loss(1, true)).abs() < 1e-12, "{network:?}");
        let remembered = loss(0, false);
        assert!((remembered - forgotten).abs() > 1e-6, "{network:?}");
        assert!((remembered - loss(1, false)).abs() > 1e-6, "{network:?}");
    }
}
