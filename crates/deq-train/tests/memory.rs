//! exploration
#![allow(missing_docs, clippy::unwrap_used)]
use deq_data::ImageSource;
use deq_train::tasks::images::{ImagesModelConfig, ImagesTask, preset_for};
use deq_train::tasks::text::TextTask;
use deq_train::{Recipe, StepMemory, Task, step_memory};
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

fn meter() -> StepMemory {
    StepMemory {
        reset: || HEAP.reset_peak_usage(),
        current: || HEAP.current_usage(),
        peak: || HEAP.peak_usage(),
    }
}

fn measure<T: Task>(mut recipe: Recipe<T>) -> [usize; 2] {
    let with = step_memory(&recipe, "flex", &meter()).unwrap();
    recipe.penalty = None;
    [step_memory(&recipe, "flex", &meter()).unwrap(), with]
}

#[test]
fn text() {
    // batch segment d heads inner mem history fwd(anderson/broyden)
    for (b, t, d, h, inner, mem, m, f) in [
        (16, 64, 96, 4, 384, 64, 6, 4),
        (8, 64, 96, 4, 384, 64, 6, 4),
        (16, 64, 96, 4, 768, 64, 6, 4),
        (16, 64, 96, 8, 384, 64, 6, 4),
        (16, 64, 192, 4, 384, 64, 6, 4),
        (16, 64, 96, 4, 384, 192, 6, 4),
        (16, 64, 96, 4, 384, 64, 3, 4),
        (16, 64, 96, 4, 384, 64, 6, 30),
        (8, 128, 96, 4, 384, 64, 6, 4),
        (4, 64, 384, 8, 3072, 64, 6, 4),
        (16, 64, 96, 4, 384, 64, 20, 30),
    ] {
        let mut recipe = Recipe::<TextTask>::preset("tiny").unwrap();
        let model = &mut recipe.task.model;
        (model.d_model, model.n_heads, model.d_inner, model.mem_len) = (d, h, inner, mem);
        (recipe.batch, recipe.task.segment) = (b, t);
        recipe.penalty.as_mut().unwrap().schedule = Default::default();
        recipe.deq.stop.max_steps = f;
        if let deq_core::solvers::SolverConfig::Anderson(a) = &mut recipe.deq.solver {
            a.history = m;
        }
        if let deq_core::GradientConfig::Implicit(i) = &mut recipe.deq.gradient {
            i.stop.max_steps = f;
            let s = format!("{:?}", i.solver);
            if m != 6 {
                println!("{s}");
            }
            i.solver = serde_json::from_str(
                &serde_json::to_string(&i.solver)
                    .unwrap()
                    .replace("\"history\":6", &format!("\"history\":{m}")),
            )
            .unwrap();
        }
        let [plain, with] = measure(recipe);
        println!("TEXT {b} {t} {d} {h} {inner} {mem} {m} {f} {plain} {with}");
    }
}

#[test]
fn images() {
    for (b, channels, e, head, fin, size, f) in [
        (8, vec![8, 16], 2, vec![4, 8], 32, 32, 3),
        (16, vec![8, 16], 2, vec![4, 8], 32, 32, 3),
        (8, vec![8, 16], 4, vec![4, 8], 32, 32, 3),
        (8, vec![8, 16, 32], 2, vec![4, 8, 8], 32, 32, 3),
        (8, vec![16, 16], 2, vec![4, 8], 32, 32, 3),
        (8, vec![8, 16], 2, vec![8, 16], 32, 32, 3),
        (8, vec![8, 16], 2, vec![4, 8], 128, 32, 3),
        (8, vec![8, 16], 2, vec![4, 8], 32, 32, 30),
        (8, vec![8, 16, 32, 64], 5, vec![4, 4, 8, 8], 64, 32, 30),
        (8, vec![16, 16, 16], 5, vec![4, 4, 8], 64, 32, 20),
        (8, vec![8, 16, 32, 64], 5, vec![4, 4, 8, 8], 64, 32, 3),
    ] {
        let mut recipe: Recipe<ImagesTask> = preset_for("mini", &ImageSource::Shapes).unwrap();
        if let ImagesModelConfig::Classifier(c) = &mut recipe.task.model {
            c.backbone.channels = channels.clone();
            c.backbone.expansion = e;
            c.head_channels = head.clone();
            c.final_channels = fin;
            c.backbone.groups = 4;
        }
        recipe.batch = b;
        recipe.deq.stop.max_steps = f;
        if let deq_core::GradientConfig::Implicit(i) = &mut recipe.deq.gradient {
            i.stop.max_steps = f;
        }
        let [plain, with] = measure(recipe);
        println!("IMG {b} {channels:?} {e} {head:?} {fin} {size} {f} {plain} {with}");
    }
}
