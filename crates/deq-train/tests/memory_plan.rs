//! The memory of training steps as predicted against what they use. A binary of its own, since it
//! counts every allocation of the process.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use deq_train::tasks::images::ImagesTask;
use deq_train::tasks::text::TextTask;
use deq_train::{MemoryPlan, Opening, Recipe, StepMemory, Task, step_memory, without_tolerance};
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const METER: StepMemory = StepMemory {
    reset: || HEAP.reset_peak_usage(),
    current: || HEAP.current_usage(),
    peak: || HEAP.peak_usage(),
};

const BROYDEN: &str = r#"{"FixedPoint": {"Broyden": {"history": 30, "update": "good",
    "when_full": "restart", "line_search": null}}}"#;
const FORWARD: &str = r#"{"Broyden": {"history": 30, "update": "good", "when_full": "restart",
    "line_search": null}}"#;
const PENALTY: &str = r#"{"weight": 1.0, "frequency": 1.0, "vectors": 2}"#;
const TIED: (&str, &str) = ("network", r#"{"weight_tied": {"depth": 3}}"#);
const PLAIN: (&str, &str) = ("penalty", "null");

/// Requires the plan of a step, whose solves use up their budgets, to be within a tenth of what the
/// step takes.
fn compare<T: Task>(preset: &str, changes: &[(&str, &str)]) {
    let mut recipe = Recipe::<T>::preset(preset).unwrap();
    for (field, value) in changes {
        recipe.set(field, value).unwrap();
    }
    recipe.deq = without_tolerance(recipe.deq);
    // Steps behind these are measured.
    recipe.pretrain_steps = 0;
    let measured = step_memory(&recipe, "flex", &METER).unwrap();
    // The plan reads what the data determine, such as the vocabulary.
    recipe.task.open(&Opening::default()).unwrap();
    let plan = MemoryPlan::new(&recipe, recipe.batch, true).unwrap();
    let most = plan.largest();
    let ratio = most.bytes as f64 / measured as f64;
    println!(
        "{preset} {changes:?}: {:.1} MB ({}), {:.1} MB measured, {ratio:.3}",
        most.bytes as f64 / 1e6,
        most.name,
        measured as f64 / 1e6
    );
    assert!((ratio - 1.0).abs() < 0.1, "{preset} {changes:?}: {plan:?}");
}

/// One test, since threads would count each other's memory.
#[test]
fn a_step_takes_what_is_predicted_within_a_tenth() {
    let text = compare::<TextTask>;
    let streams = |count| ("batch", count);
    text("tiny", &[streams("8")]);
    text("tiny", &[streams("8"), PLAIN, ("deq.solver", FORWARD)]);
    text("tiny", &[streams("4"), PLAIN, TIED]);
    let wide = ("task.model.d_inner", "1500");
    let solver = ("deq.gradient.Implicit.solver", BROYDEN);
    text("tiny", &[streams("4"), PLAIN, wide, solver]);
    text("tiny", &[streams("4"), ("penalty", PENALTY), wide]);
    let short = [("task.segment", "32"), ("task.model.mem_len", "16")];
    let pre_norm = ("task.model.pre_norm", "true");
    text("tiny", &[streams("8"), PLAIN, short[0], short[1], pre_norm]);
    let words = ("task.level", "\"word\"");
    text("tiny", &[streams("8"), PLAIN, words]);
    let adaptive = [
        ("task.model.cutoffs", "[500, 2000]"),
        ("task.model.div_val", "4"),
    ];
    text(
        "tiny",
        &[streams("8"), PLAIN, words, adaptive[0], adaptive[1], TIED],
    );

    let images = compare::<ImagesTask>;
    images("mini", &[("batch", "16"), PLAIN]);
    images("mini", &[("batch", "8"), ("penalty", PENALTY)]);
    images("mini", &[("batch", "8"), PLAIN, TIED]);
    images("mini", &[("batch", "8"), PLAIN, solver]);
    let branches = [
        ("batch", "4"),
        ("task.model.classifier.backbone.channels", "[16, 32, 64]"),
        ("task.model.classifier.head_channels", "[4, 8, 16]"),
    ];
    images("mini", &branches);
    images("mini", &[branches.as_slice(), &[PLAIN]].concat());
    images("mini-shapes-segmentation", &[("batch", "4")]);
    images("mini-shapes-segmentation", &[("batch", "4"), PLAIN]);
    images("mini-shapes-segmentation", &[("batch", "2"), PLAIN, TIED]);
}

/// Steps of the presets of the original at the smallest batches, which take minutes: `DEQ_DATA` is
/// a folder with `imagenette-subset` and `camvid`.
#[test]
#[ignore = "takes minutes, 2 GB and photographs"]
fn a_step_of_a_large_model_takes_what_is_predicted_within_a_tenth() {
    let steps = |forward, backward| {
        [
            ("deq.stop.max_steps", forward),
            ("deq.gradient.Implicit.stop.max_steps", backward),
        ]
    };
    let text = |preset: &str, steps: [(&str, &str); 2], changes: &[(&str, &str)]| {
        compare::<TextTask>(preset, &[&[("batch", "1")], &steps[..], changes].concat());
    };
    text("wt103", steps("4", "4"), &[]);
    text(
        "wt103-jr",
        steps("3", "3"),
        &[("task.model.mem_len", "150")],
    );
    let data = std::env::var("DEQ_DATA").unwrap();
    let photographs = format!("\"imagefolder:{data}/imagenette-subset\"");
    let streets = format!("\"segmentation:{data}/camvid\"");
    let images = |preset: &str, data: &str, batch: &str, steps: [(&str, &str); 2]| {
        let data = [("task.data", data), ("batch", batch)];
        compare::<ImagesTask>(preset, &[data, steps].concat());
    };
    images("imagenet-small", &photographs, "2", steps("12", "8"));
    images("imagenet-small-jr", &photographs, "1", steps("4", "4"));
    images("imagenet-large", &photographs, "1", steps("4", "4"));
    images("cityscapes-small", &streets, "1", steps("6", "6"));
}
