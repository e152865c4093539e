//! The DEQ-Transformer against its own derivatives, in f64. Its numbers are checked against
//! recorded ones by deq-parity.

use crate::support::{Distances, assert_near_in_16_bits, trained_in_16_bits, trained_numbers};
use burn::module::Module;
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use deq_core::{CellContext, EquilibriumCell, FrozenCell, Lowered, Precision, check};
use deq_models::{
    Depth, DeqTransformerLm, DeqTransformerLmConfig, LmMemory, LmOutput, TransformerXlLm,
};
use deq_testkit::{assert_close, f64_device, relative_error, values};

/// A model with everything switched on, its context after one segment, and a point.
fn example(pre_norm: bool, device: &Device) -> (DeqTransformerLm, LmOutput, Tensor<3>) {
    let model = DeqTransformerLmConfig::new(40, 12, 3, 20)
        .with_mem_len(5)
        .with_pre_norm(pre_norm)
        .with_dropout(0.2)
        .with_attention_dropout(0.1)
        .with_cutoffs(vec![10, 25])
        .with_init_std(0.3)
        .init(device)
        .unwrap();
    let tokens = |shift: i64| {
        let tokens: Vec<i64> = (0..14).map(|k| (7 * k + shift) % 40).collect();
        Tensor::<2, Int>::from_data(TensorData::new(tokens, [2, 7]), device)
    };
    let first = model.forward(tokens(1), &LmMemory::empty(), Depth::Unrolled(2));
    let out = model.forward(tokens(5), &first.memory, Depth::Unrolled(2));
    let normal = Distribution::Normal(0.0, 1.0);
    let z = Tensor::random([2, 7, 12], normal, &device.clone().inner());
    (model, out, z)
}

#[test]
fn tangent_and_pullback_are_the_derivative_and_its_adjoint() {
    let device = f64_device().autodiff();
    for pre_norm in [false, true] {
        let (model, out, z) = example(pre_norm, &device);
        let normal = Distribution::Normal(0.0, 1.0);
        let d = z.random_like(normal);
        let u = z.random_like(normal);
        let tangent = model.cell.tangent(z.clone(), d.clone(), &out.context);
        let (_, tangent) = tangent.unwrap();

        let (cell, context) = (model.cell.valid(), out.context.without_autodiff());
        let h = f64::EPSILON.cbrt();
        let above = cell.forward(z.clone() + d.clone() * h, &context);
        let below = cell.forward(z.clone() - d.clone() * h, &context);
        let difference = (above - below) * (0.5 / h);
        // Central differences in f64 leave about ten digits.
        assert_close(&values(&tangent), &values(&difference), 1e-8, "tangent");

        let error = check::pullback_error(&model.cell, &out.context, z.clone(), u.clone());
        assert!(error.unwrap() < 1e-12);
        let error = check::tangent_error(&model.cell, &out.context, z, d, 3);
        assert!(error.unwrap() < 1e-12);
    }
}

#[test]
fn a_map_in_16_bits_is_differentiated_and_trained() {
    let device = f64_device().autodiff();
    let draw = |precision, pre_norm| {
        let (model, out, z) = example(pre_norm, &device);
        let (cell, context) = Lowered::new(&model.cell, &out.context, precision);
        let exact = values(&model.cell.forward(z.clone(), &out.context));
        let fz = values(&cell.forward(z.clone(), &context));
        let u = z.random_like(Distribution::Normal(0.0, 1.0));
        let pullback = check::pullback_error(&cell, &context, z.clone(), u.clone()).unwrap();
        let tangent = check::tangent_error(&cell, &context, z, u, 3).unwrap();

        let model = DeqTransformerLmConfig::new(40, 12, 3, 20)
            .with_init_std(0.3)
            .init(&device)
            .unwrap();
        let tokens = Tensor::<2, Int>::from_data([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], &device);
        let targets: Vec<i32> = (11..21).collect();
        let [of_loss, of_gradient] = trained_in_16_bits(precision, |deq| {
            let depth = Depth::Equilibrium(deq);
            let out = model.forward(tokens.clone(), &LmMemory::empty(), depth);
            let loss = model.nll(out.hidden, &targets).mean();
            let grads = loss.backward();
            let weight = model.cell.feed_forward.inner.weight.val();
            (values(&loss), values(&weight.grad(&grads).unwrap()))
        });
        Distances {
            values: [relative_error(&fz, &exact), of_loss],
            derivatives: [pullback, tangent, of_gradient],
        }
    };
    for precision in [Precision::Bf16, Precision::F16] {
        for pre_norm in [false, true] {
            assert_near_in_16_bits(precision, || draw(precision, pre_norm));
        }
    }
}

#[test]
fn dropout_masks_are_drawn_once_per_solve_and_only_in_training() {
    let device = f64_device().autodiff();
    let (model, out, z) = example(false, &device);
    let once = values(&model.cell.forward(z.clone(), &out.context));
    assert_eq!(once, values(&model.cell.forward(z.clone(), &out.context)));
    let frozen = FrozenCell::new(&model.cell, &out.context, &z);
    // Without a tape Burn may order sums differently, which moves the last digits.
    let untracked = values(&frozen.call(frozen.layout().flatten(z.clone())));
    assert_close(&untracked, &once, 1e-13, "the same masks without a tape");

    let (_, other, _) = example(false, &device);
    assert_ne!(once, values(&model.cell.forward(z.clone(), &other.context)));
    let plain = model.valid();
    let tokens = Tensor::<2, Int>::from_data([[1, 2, 3]], &f64_device());
    let run = || plain.forward(tokens.clone(), &LmMemory::empty(), Depth::Unrolled(2));
    assert_eq!(values(&run().hidden), values(&run().hidden));
    let _ = out.context.without_autodiff();
}

#[test]
fn a_position_does_not_see_the_future_nor_other_streams() {
    let device = f64_device();
    let model = DeqTransformerLmConfig::new(20, 8, 2, 16)
        .init(&device)
        .unwrap();
    // What no application of the cell lets through, its equilibrium does not either; and this holds
    // for every draw of the weights.
    let run = |tokens: [[i64; 5]; 2]| {
        let tokens = Tensor::<2, Int>::from_data(tokens, &device);
        let out = model.forward(tokens, &LmMemory::empty(), Depth::Unrolled(6));
        values(&out.hidden)
    };
    let base = run([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]);
    let changed = run([[1, 2, 3, 4, 19], [6, 7, 8, 9, 10]]);
    let width = 8;
    let before = 4 * width;
    assert!(relative_error(&changed[..before], &base[..before]) < 1e-13);
    assert!(relative_error(&changed[before..5 * width], &base[before..5 * width]) > 1e-3);
    assert_eq!(changed[5 * width..], base[5 * width..]);
}

#[test]
fn configurations_that_describe_no_model_are_rejected() {
    let base = || DeqTransformerLmConfig::new(30, 12, 3, 20);
    let message = |config: DeqTransformerLmConfig| config.validate().unwrap_err().to_string();
    assert_eq!(
        message(DeqTransformerLmConfig::new(30, 12, 5, 20)),
        "model.d_model is 12, which model.n_heads = 5 does not divide"
    );
    assert_eq!(
        message(base().with_dropout(1.0)),
        "model.dropout is 1, but must be at least 0 and below 1"
    );
    assert_eq!(
        message(base().with_cutoffs(vec![5, 10]).with_div_val(4)),
        "model.div_val is 4, but must be at least 1, and leave vectors of the rarest tokens at least 1 wide"
    );
    assert_eq!(
        message(base().with_cutoffs(vec![20, 10])),
        "model.cutoffs are [20, 10], but must increase strictly from above 0 to below the vocabulary size 30"
    );
    assert_eq!(
        message(DeqTransformerLmConfig::new(0, 12, 3, 20)),
        "model.vocab_size is 0, but must be at least 1"
    );
}

#[test]
fn parameters_are_counted_from_shapes() {
    let device = f64_device().autodiff();
    let base = || DeqTransformerLmConfig::new(40, 12, 3, 20);
    let clusters = || base().with_cutoffs(vec![10, 25]);
    for config in [
        base(),
        base().with_weight_norm(false).with_d_embed(Some(6)),
        clusters().with_tie_weights(false),
        clusters().with_div_val(2),
        clusters().with_div_val(2).with_tie_projections(false),
    ] {
        let model = config.init(&device).unwrap();
        assert_eq!(config.parameters(), trained_numbers(&model), "{config:?}");
    }
}

#[test]
fn an_explicit_network_reads_two_segments_as_it_reads_one() {
    let device = f64_device();
    for pre_norm in [false, true] {
        let config = DeqTransformerLmConfig::new(20, 8, 2, 16)
            .with_mem_len(6)
            .with_init_std(0.3)
            .with_pre_norm(pre_norm);
        let model = config.init_explicit(3, &device).unwrap();
        let tokens = Tensor::<2, Int>::from_data(
            [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14]],
            &device,
        );
        let whole = model.forward(tokens.clone(), &LmMemory::empty());
        let first = model.forward(tokens.clone().narrow(1, 0, 4), &LmMemory::empty());
        let second = model.forward(tokens.narrow(1, 4, 3), &first.memory);
        // Causal, with a memory that reaches back to the beginning: layer by layer the same keys
        // and values.
        let parts = Tensor::cat(vec![first.hidden, second.hidden], 1);
        assert_close(
            &values(&parts),
            &values(&whole.hidden),
            1e-13,
            "hidden states",
        );
        assert_eq!(second.memory.tensors().len(), 3);
        assert_eq!(second.memory.len(), 6);
    }
}

#[test]
fn an_explicit_network_trains_every_layer() {
    let device = f64_device().autodiff();
    let config = DeqTransformerLmConfig::new(20, 8, 2, 16)
        .with_dropout(0.1)
        .with_init_std(0.3);
    let model = config.init_explicit(2, &device).unwrap();
    let tokens = Tensor::<2, Int>::from_data([[1, 2, 3, 4]], &device);
    let out = model.forward(tokens, &LmMemory::empty());
    let grads = model.nll(out.hidden, &[2, 3, 4, 5]).mean().backward();
    for layer in &model.layers {
        let gradient = layer.attention.qkv.weight.val().grad(&grads).unwrap();
        assert!(values(&gradient).iter().any(|value| value.abs() > 0.0));
    }
    assert!(config.init_explicit(0, &device).is_err());
}

#[test]
fn an_explicit_network_has_dropout_where_its_own_device_trains() {
    let (plain, device) = (f64_device(), f64_device().autodiff());
    let config = DeqTransformerLmConfig::new(20, 8, 2, 16)
        .with_dropout(0.5)
        .with_init_std(0.3);
    let model = config.init_explicit(2, &device).unwrap();
    let run = |model: &TransformerXlLm, device: &Device| {
        let tokens = Tensor::<2, Int>::from_data([[1, 2, 3, 4]], device);
        values(&model.forward(tokens, &LmMemory::empty()).hidden)
    };
    assert_ne!(run(&model, &plain), run(&model, &plain));
    let model = model.valid();
    assert_eq!(run(&model, &device), run(&model, &device));
}

/// The vector of a token of a vocabulary of 40 in three tables.
fn embedded(token: i64) -> Tensor<3> {
    let device = f64_device();
    let model = DeqTransformerLmConfig::new(40, 12, 3, 20)
        .with_cutoffs(vec![10, 25])
        .with_div_val(2)
        .init(&device)
        .unwrap();
    let tokens = Tensor::<2, Int>::from_data([[token]], &device);
    model.embedding.forward(tokens)
}

#[test]
#[should_panic(expected = "index 15 out of bounds for dimension of size 15")]
fn a_token_behind_the_vocabulary_has_no_vector() {
    embedded(40);
}

#[test]
#[should_panic(expected = "index -1 out of bounds for dimension of size 10")]
fn a_token_before_the_vocabulary_has_no_vector() {
    embedded(-1);
}
