//! The DEQ-Transformer against numbers recorded from the original program, and against its own derivatives, in f64.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use burn::module::{Module, Param};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use deq_core::solvers::{SolverConfig, StopConfig};
use deq_core::{
    CellContext, Deq, DeqConfig, EquilibriumCell, FrozenCell, GradientConfig, ImplicitConfig, check,
};
use deq_jacreg::{JacobianPenaltyConfig, TangentCell};
use deq_models::{
    Depth, DeqTransformerLm, DeqTransformerLmConfig, LmMemory, LmOutput, NormedLinear,
};
use deq_testkit::{Golden, assert_close, f64_device, fixtures_of_kind, relative_error, values};

/// Where no solve is involved.
const DIRECT: f64 = 1e-8;
/// Behind a solve.
const SOLVED: f64 = 1e-6;

fn tight() -> Deq {
    let stop = StopConfig::new().with_rel_tol(1e-12).with_max_steps(400);
    DeqConfig::new()
        .with_solver(SolverConfig::broyden())
        .with_stop(stop.clone())
        .with_gradient(GradientConfig::Implicit(
            ImplicitConfig::new()
                .with_solver(SolverConfig::broyden().into())
                .with_stop(stop),
        ))
        .build()
        .unwrap()
}

fn config(golden: &Golden) -> DeqTransformerLmConfig {
    let config = &golden.info["config"];
    let number = |name: &str| config[name].as_u64().unwrap() as usize;
    let local = number("local_size");
    DeqTransformerLmConfig::new(
        number("n_token"),
        number("d_model"),
        number("n_head"),
        number("d_inner"),
    )
    .with_mem_len(number("mem_len"))
    .with_local_size((local > 0).then_some(local))
    .with_pre_norm(config["pre_lnorm"].as_bool().unwrap())
    .with_weight_norm(config["wnorm"].as_bool().unwrap())
}

/// Weights under the original's names; convolutions of width 1 are `[output, input, 1]` there.
struct Names<'a> {
    golden: &'a Golden,
    prefix: String,
}

impl Names<'_> {
    /// A recorded `[output, input]` matrix, transposed, row-major.
    fn matrix(&self, name: &str) -> Option<Vec<f64>> {
        let (shape, values) = self.golden.get(&format!("{}{name}", self.prefix))?;
        let (rows, columns) = (shape[0], shape[1]);
        Some(
            (0..rows * columns)
                .map(|k| values[(k % rows) * columns + k / rows])
                .collect(),
        )
    }

    fn vector(&self, name: &str) -> Option<Vec<f64>> {
        Some(
            self.golden
                .get(&format!("{}{name}", self.prefix))?
                .1
                .to_vec(),
        )
    }
}

/// Calls `visit(original name, recorded values, parameter values)` for every parameter that was recorded under `prefix`.
fn visit<F: FnMut(&str, Vec<f64>, &mut dyn Slot)>(
    model: &mut DeqTransformerLm,
    names: &Names<'_>,
    mut visit: F,
) {
    let mut linear = |layer: &mut NormedLinear, name: &str| {
        let weight = match layer.gain {
            Some(_) => format!("{name}.weight_v"),
            None => format!("{name}.weight"),
        };
        if let Some(recorded) = names.matrix(&weight) {
            visit(&weight, recorded, &mut layer.weight);
        }
        if let Some(gain) = &mut layer.gain {
            let name = format!("{name}.weight_g");
            if let Some(recorded) = names.vector(&name) {
                visit(&name, recorded, gain);
            }
        }
        if let Some(bias) = &mut layer.bias {
            let name = format!("{name}.bias");
            if let Some(recorded) = names.vector(&name) {
                visit(&name, recorded, bias);
            }
        }
    };
    let cell = &mut model.cell;
    linear(&mut cell.attention.qkv, "func.dec_attn.qkv_net");
    linear(&mut cell.attention.position, "func.dec_attn.r_net");
    linear(&mut cell.attention.output, "func.dec_attn.o_net");
    linear(&mut cell.feed_forward.inner, "func.pos_ff.ff1_net");
    linear(&mut cell.feed_forward.outer, "func.pos_ff.ff2_net");
    let mut plain = |slot: &mut dyn Slot, name: &str| {
        if let Some(recorded) = names.vector(name) {
            visit(name, recorded, slot);
        }
    };
    plain(&mut cell.attention.content_bias, "func.dec_attn.r_w_bias");
    plain(&mut cell.attention.position_bias, "func.dec_attn.r_r_bias");
    plain(&mut model.embedding, "word_emb.emb_layers.0.weight");
    plain(&mut model.output.bias, "crit.out_layers.0.bias");
    if let Some(bias) = &mut model.injection.bias {
        plain(bias, "inject_conv.bias");
    }
    if let Some(recorded) = names.matrix("inject_conv.weight") {
        visit("inject_conv.weight", recorded, &mut model.injection.weight);
    }
}

/// A parameter of any rank.
trait Slot {
    fn load(&mut self, values: Vec<f64>);
    fn gradient(&self, grads: &burn::tensor::Gradients) -> Vec<f64>;
}

impl<const D: usize> Slot for Param<Tensor<D>> {
    fn load(&mut self, values: Vec<f64>) {
        let old = self.val();
        let data = TensorData::new(values, old.shape());
        *self = Param::from_tensor(Tensor::from_data(data, &old.device()));
    }

    fn gradient(&self, grads: &burn::tensor::Gradients) -> Vec<f64> {
        let gradient = self.val().grad(grads);
        gradient.map_or_else(|| values(&self.val().zeros_like()), |g| values(&g))
    }
}

fn load(golden: &Golden, device: &Device) -> DeqTransformerLm {
    let mut model = config(golden).init(device).unwrap();
    let names = Names {
        golden,
        prefix: "param.".to_owned(),
    };
    let mut loaded = 0;
    visit(&mut model, &names, |_, recorded, slot| {
        slot.load(recorded);
        loaded += 1;
    });
    let tied = golden.names().filter(|name| {
        name.starts_with("param.")
            && !name.contains("inv_freq")
            && !name.contains("out_layers.0.weight")
    });
    assert_eq!(loaded, tied.count(), "every recorded parameter is loaded");
    model
}

/// The segment's tokens and targets, batch-major.
fn segment(golden: &Golden, index: usize, device: &Device) -> (Tensor<2, Int>, Vec<i32>) {
    let (shape, data) = golden.get("data").unwrap();
    let (time, batch) = (shape[1], shape[2]);
    let pick = |values: &[f64]| -> Vec<i32> {
        (0..batch * time)
            .map(|k| values[(index * time + k % time) * batch + k / time] as i32)
            .collect()
    };
    let tokens = TensorData::new(pick(data), [batch, time]);
    (
        Tensor::from_data(tokens, device),
        pick(golden.values("target")),
    )
}

/// Recorded `[time, batch, channels]` as `[batch, time, channels]`.
fn memory(golden: &Golden, device: &Device) -> LmMemory {
    let read = |name: &str| golden.tensor::<3>(name, device).swap_dims(0, 1);
    LmMemory::new(read("seg0.eval.mem_z"), read("seg0.eval.mem_u"))
}

/// Recorded `[batch, channels, time]` as the flattened state `[batch, time * channels]`.
fn state(golden: &Golden, name: &str, device: &Device) -> Tensor<2> {
    let z = golden.tensor::<3>(name, device).swap_dims(1, 2);
    let [batch, time, channels] = z.dims();
    z.reshape([batch, time * channels])
}

/// Cases that this model covers; a projected adaptive embedding is not built yet.
fn cases() -> Vec<Golden> {
    let (covered, rest): (Vec<_>, Vec<_>) = fixtures_of_kind("deq_transformer")
        .into_iter()
        .partition(|golden| golden.info["config"]["div_val"] == 1);
    for golden in rest {
        eprintln!(
            "not covered: {} (projected adaptive embedding)",
            golden.name
        );
    }
    covered
}

/// Runs both segments of a case, the second with the memory recorded after the first.
fn for_segments(
    device: &Device,
    mut check: impl FnMut(&Golden, usize, &DeqTransformerLm, &LmMemory),
) {
    for golden in cases() {
        let model = load(&golden, device);
        check(&golden, 0, &model, &LmMemory::empty());
        check(&golden, 1, &model, &memory(&golden, device));
    }
}

#[test]
fn evaluation_reproduces_the_recorded_cell_equilibrium_likelihood_and_memory() {
    let device = f64_device();
    for_segments(&device, |golden, index, model, memory| {
        let what = |name: &str| format!("{} seg{index}.{name}", golden.name);
        let recorded = |name: &str| golden.values(&format!("seg{index}.{name}"));
        let (tokens, targets) = segment(golden, index, &device);
        let out = model.forward(tokens, memory, Depth::Equilibrium(&tight()));
        assert!(out.equilibrium.solve.as_ref().unwrap().all_converged());

        let z = state(golden, &format!("seg{index}.cell.z"), &device);
        let image = model.cell.forward(z, &out.context);
        let expected = state(golden, &format!("seg{index}.cell.out"), &device);
        assert_close(
            &values(&image),
            &values(&expected),
            DIRECT,
            &what("cell.out"),
        );

        let expected = state(golden, &format!("seg{index}.z_star"), &device);
        let image = model.cell.forward(expected.clone(), &out.context);
        assert_close(
            &values(&image),
            &values(&expected),
            DIRECT,
            &what("f(z_star)"),
        );
        assert_close(
            &values(&out.equilibrium.z),
            &values(&expected),
            SOLVED,
            &what("z_star"),
        );
        let [batch, time, _] = out.hidden.dims();
        let nll = model.nll(out.hidden, &targets).reshape([batch, time]);
        let nll = values(&nll.swap_dims(0, 1));
        assert_close(&nll, recorded("eval.nll_in_order"), SOLVED, &what("nll"));
        let (z, injection) = out.memory.state().unwrap().clone();
        assert_close(
            &values(&z.swap_dims(0, 1)),
            recorded("eval.mem_z"),
            SOLVED,
            &what("mem_z"),
        );
        assert_close(
            &values(&injection.swap_dims(0, 1)),
            recorded("eval.mem_u"),
            DIRECT,
            &what("mem_u"),
        );
    });
}

fn assert_gradients(
    golden: &Golden,
    model: &DeqTransformerLm,
    prefix: &str,
    loss: Tensor<1>,
    tolerance: f64,
) {
    let grads = loss.backward();
    let names = Names {
        golden,
        prefix: format!("{prefix}."),
    };
    let mut compared = 0;
    visit(&mut model.clone(), &names, |name, recorded, slot| {
        let actual = slot.gradient(&grads);
        let what = format!("{} {prefix}.{name}", golden.name);
        assert_close(&actual, &recorded, tolerance, &what);
        compared += 1;
    });
    let total = golden
        .names()
        .filter(|name| name.starts_with(&format!("{prefix}.")))
        .count();
    assert_eq!(compared, total, "{}: every recorded gradient", golden.name);
}

#[test]
fn training_reproduces_every_recorded_gradient() {
    let device = f64_device().autodiff();
    for_segments(&device, |golden, index, model, memory| {
        let (tokens, targets) = segment(golden, index, &device);
        let run = |depth| model.forward(tokens.clone(), memory, depth);
        let loss = |out: &LmOutput| model.nll(out.hidden.clone(), &targets).mean();
        let check = |name: &str, loss: Tensor<1>, tolerance| {
            let recorded = golden.values(&format!("seg{index}.{name}.loss"));
            assert_close(&values(&loss), recorded, tolerance, name);
            assert_gradients(
                golden,
                model,
                &format!("seg{index}.{name}.grad"),
                loss,
                tolerance,
            );
        };
        check("unrolled", loss(&run(Depth::Unrolled(2))), SOLVED);
        let deq = tight();
        let out = run(Depth::Equilibrium(&deq));
        check("implicit", loss(&out), SOLVED);

        // The penalty with the recorded vector, by the cell's own tangent.
        let z_star = state(golden, &format!("seg{index}.z_star"), &f64_device());
        let name = format!("seg{index}.implicit.jac_v");
        let v = golden.tensor::<4>(&name, &f64_device()).squeeze_dim::<3>(0);
        let v = v.swap_dims(1, 2).reshape(z_star.dims());
        let out = run(Depth::Equilibrium(&deq));
        let penalty = JacobianPenaltyConfig::new().build().unwrap();
        let penalty = penalty
            .estimate_exact_with_probes(&model.cell, &out.context, z_star, &[v])
            .unwrap();
        let recorded = golden.values(&format!("seg{index}.implicit.jac_loss"));
        assert_close(&values(&penalty.value), recorded, SOLVED, "penalty");
        let prefix = format!("seg{index}.implicit.grad_jac");
        assert_gradients(golden, model, &prefix, penalty.value, SOLVED);
    });
}

/// A model with everything switched on, its context after one segment, and a point.
fn example(pre_norm: bool, device: &Device) -> (DeqTransformerLm, LmOutput, Tensor<2>) {
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
    let z = Tensor::random([2, 7 * 12], normal, &device.clone().inner());
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

        let frozen = FrozenCell::new(&model.cell, &out.context);
        let h = f64::EPSILON.cbrt();
        let above = frozen.call(z.clone() + d.clone() * h);
        let below = frozen.call(z.clone() - d.clone() * h);
        let difference = (above - below) * (0.5 / h);
        // Central differences in f64 leave about ten digits.
        assert_close(&values(&tangent), &values(&difference), 1e-8, "tangent");

        let error = check::pullback_error(&frozen, z.clone(), u.clone());
        assert!(error.unwrap() < 1e-12);
        assert!(check::tangent_error(&frozen, z.clone(), d.clone(), 3) < 1e-12);
    }
}

#[test]
fn dropout_masks_are_drawn_once_per_solve_and_only_in_training() {
    let device = f64_device().autodiff();
    let (model, out, z) = example(false, &device);
    let once = values(&model.cell.forward(z.clone(), &out.context));
    assert_eq!(once, values(&model.cell.forward(z.clone(), &out.context)));
    let frozen = FrozenCell::new(&model.cell, &out.context);
    // Without a tape Burn may order sums differently, which moves the last digits.
    let untracked = values(&frozen.call(z.clone()));
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
    // What no application of the cell lets through, its equilibrium does not either; and this holds for every draw of the weights.
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
        message(base().with_cutoffs(vec![20, 10])),
        "model.cutoffs are [20, 10], but must increase strictly from above 0 to below the vocabulary size 30"
    );
    assert_eq!(
        message(DeqTransformerLmConfig::new(0, 12, 3, 20)),
        "model.vocab_size is 0, but must be at least 1"
    );
}
