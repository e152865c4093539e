//! Text by the DEQ-Transformer, token by token.

use crate::suite::{Failure, Outcome, Suite, device, int_tensor, integers, layer};
use crate::transformer::{SMALL, VOCABULARY};
use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use deq_core::solvers::SolverConfig;
use deq_models::{Depth, LmMemory};
use serde_json::json;

const TOKENS: usize = 256;
const STEPS: usize = 12;

/// Each token is a segment of one position, solved for from the equilibrium of the one before, and
/// the most likely token is drawn. What is read next is given, so that a draw that hangs on
/// rounding does not part the two sides.
pub(crate) fn suite() -> Result<Suite, Failure> {
    let device = device();
    let mut suite = Suite::new(json!({ "steps": STEPS, "memory": SMALL.config().mem_len }));
    let model = SMALL.config().init(&device)?.valid();
    let given = integers(TOKENS, VOCABULARY as u32, 7);
    suite.weights(&model)?;
    suite.integers("tokens", &given, &[TOKENS]);
    let deq = layer(SolverConfig::anderson(), STEPS, STEPS)?;
    let plain = device.inner();
    suite.operation(
        format!("{TOKENS} tokens, {STEPS} evaluations each"),
        move || {
            let mut memory = LmMemory::empty();
            let mut start: Option<Tensor<3>> = None;
            let mut drawn = Vec::with_capacity(TOKENS);
            let mut last = Vec::new();
            for &token in &given {
                let tokens = int_tensor(&[token], [1, 1], &plain);
                let depth = Depth::Equilibrium(&deq);
                let out = model.forward_from(tokens, &memory, depth, start.take());
                memory = out.memory;
                start = Some(out.equilibrium.z);
                last = model.log_probs(out.hidden).into_data().iter().collect();
                drawn.push(likeliest(&last));
            }
            Outcome::new(move || {
                // The draws are work and not result: equals may be told apart by rounding.
                assert_eq!(drawn.len(), TOKENS);
                vec![("output".to_owned(), TensorData::new(last, [VOCABULARY]))]
            })
        },
    );
    Ok(suite)
}

fn likeliest(log_probs: &[f32]) -> usize {
    let all = log_probs.iter().enumerate();
    let best = all.max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(token, _)| token)
}
