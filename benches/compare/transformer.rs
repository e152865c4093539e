//! The DEQ-Transformer: its cell, its penalty, its training step.

use crate::suite::{Failure, Outcome, Suite, device, int_tensor, integers, layer, normal, step};
use burn::module::Module;
use burn::tensor::{Int, Tensor};
use deq_core::solvers::SolverConfig;
use deq_core::{Deq, EquilibriumCell, FrozenCell};
use deq_jacreg::{JacobianPenalty, JacobianPenaltyConfig};
use deq_models::{
    Depth, DeqTransformerLm, DeqTransformerLmConfig, DropoutRates, LmMemory, TransformerContext,
};
use serde_json::json;
use std::rc::Rc;

pub(crate) const VOCABULARY: usize = 10_000;
const FORWARD: usize = 12;
const PENALTY_WEIGHT: f64 = 1.0;

/// A model and what it reads.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    vocabulary: usize,
    width: usize,
    heads: usize,
    inner: usize,
    batch: usize,
    segment: usize,
    memory: usize,
    cutoffs: &'static [usize],
    div_val: usize,
    backward: usize,
}

/// What a CPU can do.
pub(crate) const SMALL: Size = Size {
    vocabulary: VOCABULARY,
    width: 128,
    heads: 4,
    inner: 512,
    batch: 4,
    segment: 64,
    memory: 64,
    cutoffs: &[],
    div_val: 1,
    backward: 12,
};

/// The original's model of WikiText-103, its batch on one of four cards, and the budget of the
/// paper with the penalty.
pub(crate) const WIKITEXT_103: Size = Size {
    vocabulary: 267_735,
    width: 700,
    heads: 10,
    inner: 48_000,
    batch: 14,
    segment: 150,
    memory: 300,
    cutoffs: &[20_000, 40_000, 200_000],
    div_val: 4,
    backward: 13,
};

impl Size {
    pub(crate) fn config(&self) -> DeqTransformerLmConfig {
        DeqTransformerLmConfig::new(self.vocabulary, self.width, self.heads, self.inner)
            .with_mem_len(self.memory)
            .with_cutoffs(self.cutoffs.to_vec())
            .with_div_val(self.div_val)
    }
}

/// A model with what a segment needs.
struct Bench {
    model: DeqTransformerLm,
    valid: DeqTransformerLm,
    /// On the training device.
    tokens: Tensor<2, Int>,
    targets: Vec<i32>,
    memory: LmMemory,
    /// Where cell, product and penalty are taken, `[batch, time, d_model]`.
    z: Tensor<3>,
    probe: Tensor<3>,
    deq: Deq,
    penalty: JacobianPenalty,
}

pub(crate) fn suite(size: Size) -> Result<Suite, Failure> {
    let Size {
        batch,
        segment,
        width,
        backward,
        ..
    } = size;
    let device = device();
    let mut suite = Suite::new(json!({
        "forward": FORWARD,
        "backward": backward,
        "penalty_weight": PENALTY_WEIGHT,
        "cutoffs": size.cutoffs,
    }));
    let model = size.config().init(&device)?;
    let plain = device.clone().inner();
    let count = batch * segment;
    // Small numbers are frequent words.
    let read = |count: usize, salt| {
        let all = integers(count, size.vocabulary as u32, salt).into_iter();
        let word = |(k, word): (usize, i32)| match (size.cutoffs.first(), k % 4) {
            (Some(&first), 1..) => word % first as i32,
            _ => word,
        };
        all.enumerate().map(word).collect::<Vec<i32>>()
    };
    let (tokens, targets) = (read(count, 1), read(count, 2));
    let before = read(batch * size.memory, 3);
    let before = int_tensor(&before, [batch, size.memory], &plain);
    let valid = model.valid();
    let memory = valid
        .forward(before, &LmMemory::empty(), Depth::Unrolled(4))
        .memory;
    let z = normal([batch, segment, width], 1.0, &plain);
    let probe = normal([batch, segment, width], 1.0, &plain);

    suite.weights(&model)?;
    suite.integers("tokens", &tokens, &[batch, segment]);
    suite.integers("targets", &targets, &[count]);
    for (name, tensor) in ["memory_z", "memory_injection"]
        .iter()
        .zip(memory.tensors())
    {
        suite.input(name, tensor);
    }
    suite.input("z", &z);
    suite.input("probe", &probe);

    let bench = Rc::new(Bench {
        tokens: int_tensor(&tokens, [batch, segment], &device),
        targets,
        valid,
        model,
        memory,
        z,
        probe,
        deq: layer(SolverConfig::anderson(), FORWARD, backward)?,
        penalty: JacobianPenaltyConfig::new().build()?,
    });
    let context = bench.context(&bench.valid);
    let b = bench.clone();
    let at = context.clone();
    suite.operation("f", move || {
        Outcome::output(b.valid.cell.forward(b.z.clone(), &at))
    });
    let b = bench.clone();
    suite.operation("vector-Jacobian product, with its evaluation", move || {
        let frozen = FrozenCell::new(&b.valid.cell, &context, &b.z);
        let rows = |state: &Tensor<3>| frozen.layout().flatten(state.clone());
        let product = frozen.linearize(rows(&b.z))(rows(&b.probe));
        Outcome::output(frozen.layout().unflatten(product))
    });
    let b = bench.clone();
    suite.operation("penalty, with its gradient", move || b.penalised());
    let b = bench.clone();
    suite.operation(format!("forward {FORWARD}"), move || b.forward());
    let b = bench.clone();
    let name = format!("training step {FORWARD}/{backward}");
    suite.operation(&name, move || b.step(false));
    suite.operation(format!("{name}, penalty"), move || bench.step(true));
    Ok(suite)
}

impl Bench {
    fn context(&self, model: &DeqTransformerLm) -> TransformerContext {
        let tokens = match model.injection.weight.device().is_autodiff() {
            true => self.tokens.clone(),
            false => self.tokens.clone().inner(),
        };
        let injection = model.injection.forward(model.embedding.forward(tokens));
        let [z, past] = self.memory.tensors() else {
            panic!("a DEQ remembers equilibria and injections");
        };
        let injections = Tensor::cat(vec![past.clone(), injection], 1);
        let none = DropoutRates::default();
        model.cell.context(injections, Some(z.clone()), none)
    }

    fn penalised(&self) -> Outcome {
        let context = self.context(&self.model);
        let probes = [self.probe.clone()];
        let estimate = self
            .penalty
            .at_with_probes(&self.model.cell, &context, &self.z, &probes)
            .expect("the state is f32");
        step(&self.model, estimate.value)
    }

    fn forward(&self) -> Outcome {
        let tokens = self.tokens.clone().inner();
        let depth = Depth::Equilibrium(&self.deq);
        Outcome::output(self.valid.forward(tokens, &self.memory, depth).hidden)
    }

    fn step(&self, penalised: bool) -> Outcome {
        let depth = Depth::Equilibrium(&self.deq);
        let out = self.model.forward(self.tokens.clone(), &self.memory, depth);
        let mut loss = self.model.nll(out.hidden, &self.targets).mean();
        if penalised {
            let (cell, probes) = (&self.model.cell, [self.probe.clone()]);
            let estimate = self
                .penalty
                .at_equilibrium_with_probes(cell, &out.context, &out.equilibrium, &probes)
                .expect("the state is f32");
            loss = loss + estimate.value * PENALTY_WEIGHT;
        }
        step(&self.model, loss)
    }
}
