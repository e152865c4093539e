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
const BATCH: usize = 4;
const SEGMENT: usize = 64;
const FORWARD: usize = 12;
const BACKWARD: usize = 12;
const PENALTY_WEIGHT: f64 = 1.0;

pub(crate) fn config() -> DeqTransformerLmConfig {
    DeqTransformerLmConfig::new(VOCABULARY, 128, 4, 512).with_mem_len(SEGMENT)
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

pub(crate) fn suite() -> Result<Suite, Failure> {
    let device = device();
    let mut suite = Suite::new(json!({
        "forward": FORWARD,
        "backward": BACKWARD,
        "penalty_weight": PENALTY_WEIGHT,
    }));
    let model = config().init(&device)?;
    let plain = device.clone().inner();
    let count = BATCH * SEGMENT;
    let read = |salt| integers(count, VOCABULARY as u32, salt);
    let (tokens, targets) = (read(1), read(2));
    let before = int_tensor(&read(3), [BATCH, SEGMENT], &plain);
    let valid = model.valid();
    let memory = valid
        .forward(before, &LmMemory::empty(), Depth::Unrolled(4))
        .memory;
    let z = normal([BATCH, SEGMENT, 128], 1.0, &plain);
    let probe = normal([BATCH, SEGMENT, 128], 1.0, &plain);

    suite.weights(&model)?;
    suite.integers("tokens", &tokens, &[BATCH, SEGMENT]);
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
        tokens: int_tensor(&tokens, [BATCH, SEGMENT], &device),
        targets,
        valid,
        model,
        memory,
        z,
        probe,
        deq: layer(SolverConfig::anderson(), FORWARD, BACKWARD)?,
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
    let name = format!("training step {FORWARD}/{BACKWARD}");
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
                .at_with_probes(cell, &out.context, &out.equilibrium.z, &probes)
                .expect("the state is f32");
            loss = loss + estimate.value * PENALTY_WEIGHT;
        }
        step(&self.model, loss)
    }
}
