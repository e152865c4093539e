//! The DEQ-Transformer: cell, equilibrium, memory, likelihoods, penalty, gradients of every
//! parameter.

use crate::Check;
use crate::model::{Checks, Precision, recorded_weights, state_dict};
use burn::tensor::{Device, Int, Tensor, TensorData};
use deq_core::EquilibriumCell;
use deq_jacreg::JacobianPenaltyConfig;
use deq_models::{Depth, DeqTransformerLm, DeqTransformerLmConfig, LmMemory, LmOutput};
use deq_testkit::{Golden, values};

/// Kind `deq_transformer`.
pub(crate) fn language_model(case: &Golden, precision: &Precision) -> Vec<Check> {
    let mut checks = Checks::new(precision);
    let config = config(case);
    let described = DeqTransformerLmConfig::from_state_dict(&state_dict(case), &config);
    // Everything but the flags that shapes cannot show is found again.
    let same = f64::from(u8::from(described.as_ref().ok() != Some(&config)));
    checks.push("configuration", &[same], &[0.0], 0.0);

    for segment in 0..2 {
        evaluate(case, segment, &config, &mut checks);
        train(case, segment, &config, &mut checks);
    }
    checks.list
}

fn config(case: &Golden) -> DeqTransformerLmConfig {
    let config = &case.info["config"];
    let number = |name: &str| config[name].as_u64().unwrap_or(0) as usize;
    let flag = |name: &str| config[name].as_bool().unwrap_or(false);
    let cutoffs = config["cutoffs"].as_array().into_iter().flatten();
    let (d_embed, d_model, local) = (number("d_embed"), number("d_model"), number("local_size"));
    DeqTransformerLmConfig::new(
        number("n_token"),
        d_model,
        number("n_head"),
        number("d_inner"),
    )
    .with_mem_len(number("mem_len"))
    .with_local_size((local > 0).then_some(local))
    .with_pre_norm(flag("pre_lnorm"))
    .with_weight_norm(flag("wnorm"))
    .with_cutoffs(
        cutoffs
            .filter_map(|c| c.as_u64())
            .map(|c| c as usize)
            .collect(),
    )
    .with_div_val(number("div_val"))
    .with_d_embed((d_embed != d_model).then_some(d_embed))
    .with_tie_weights(flag("tie_weights"))
}

fn model(case: &Golden, config: &DeqTransformerLmConfig, device: &Device) -> DeqTransformerLm {
    let model = config
        .init(device)
        .unwrap_or_else(|error| panic!("{error}"));
    recorded_weights(model, case)
}

/// The segment's tokens and targets, batch-major.
fn segment(case: &Golden, index: usize, device: &Device) -> (Tensor<2, Int>, Vec<i32>) {
    let (shape, data) = case
        .get("data")
        .unwrap_or_else(|| panic!("{} has no data", case.name));
    let (time, batch) = (shape[1], shape[2]);
    let pick = |values: &[f64]| -> Vec<i32> {
        (0..batch * time)
            .map(|k| values[(index * time + k % time) * batch + k / time] as i32)
            .collect()
    };
    let tokens = TensorData::new(pick(data), [batch, time]);
    (
        Tensor::from_data(tokens, device),
        pick(case.values("target")),
    )
}

/// The memory recorded after the first segment, `[time, batch, channels]` there.
fn memory(case: &Golden, index: usize, device: &Device) -> LmMemory {
    if index == 0 {
        return LmMemory::empty();
    }
    let read = |name: &str| case.tensor::<3>(name, device).swap_dims(0, 1);
    LmMemory::new(vec![read("seg0.eval.mem_z"), read("seg0.eval.mem_u")])
}

/// Recorded `[batch, channels, time]` as the state `[batch, time, channels]`.
fn state(case: &Golden, name: &str, device: &Device) -> Tensor<3> {
    case.tensor::<3>(name, device).swap_dims(1, 2)
}

fn evaluate(case: &Golden, index: usize, config: &DeqTransformerLmConfig, checks: &mut Checks) {
    let device = checks.precision.device.clone();
    let model = model(case, config, &device);
    let memory = memory(case, index, &device);
    let name = |quantity: &str| format!("seg{index}.{quantity}");
    let recorded = |quantity: &str| case.values(&format!("seg{index}.{quantity}"));
    let (tokens, targets) = segment(case, index, &device);

    let embedded = model.embedding.forward(tokens.clone());
    checks.direct(name("embedding"), &embedded, recorded("embedding"));
    let injection = model.injection.forward(embedded).swap_dims(1, 2);
    let all = case.tensor::<3>(&name("injection"), &device);
    let ([_, _, keys], [_, _, time]) = (all.dims(), injection.dims());
    let new = all.narrow(2, keys - time, time);
    checks.direct(name("injection"), &injection, &values(&new));

    let out = model.forward(tokens, &memory, Depth::Equilibrium(&checks.precision.deq()));
    let f = |z| model.cell.forward(z, &out.context);
    let expected = values(&state(case, &name("cell.out"), &device));
    let z = state(case, &name("cell.z"), &device);
    checks.direct(name("cell.out"), &f(z), &expected);
    let z_star = state(case, &name("z_star"), &device);
    checks.direct(name("f(z_star)"), &f(z_star.clone()), &values(&z_star));
    checks.solved(name("z_star"), &out.equilibrium.output, &values(&z_star));

    let [batch, time, _] = out.hidden.dims();
    let nll = model.nll(out.hidden, &targets).reshape([batch, time]);
    let nll = nll.swap_dims(0, 1);
    checks.solved(name("nll_in_order"), &nll, recorded("eval.nll_in_order"));
    let tolerance = checks.precision.solved;
    let sorted = by_cluster(&values(&nll), case, index, &config.cutoffs);
    checks.push(name("nll"), &sorted, recorded("eval.nll"), tolerance);

    let kept = |index: usize| out.memory.tensors()[index].clone().swap_dims(0, 1);
    checks.solved(name("mem_z"), &kept(0), recorded("eval.mem_z"));
    checks.direct(name("mem_u"), &kept(1), recorded("eval.mem_u"));
}

/// Likelihoods `[time, batch]` in the original's order: cluster after cluster, each in order of
/// time and stream.
fn by_cluster(nll: &[f64], case: &Golden, index: usize, cutoffs: &[usize]) -> Vec<f64> {
    let targets = &case.values("target")[index * nll.len()..(index + 1) * nll.len()];
    let cluster = |target: f64| cutoffs.iter().filter(|&&cut| cut as f64 <= target).count();
    let mut order: Vec<usize> = (0..nll.len()).collect();
    order.sort_by_key(|&k| cluster(targets[k]));
    order.into_iter().map(|k| nll[k]).collect()
}

fn train(case: &Golden, index: usize, config: &DeqTransformerLmConfig, checks: &mut Checks) {
    let plain = checks.precision.device.clone();
    let device = plain.clone().autodiff();
    let model = model(case, config, &device);
    let memory = memory(case, index, &device);
    let (tokens, targets) = segment(case, index, &device);
    let run = |depth| model.forward(tokens.clone(), &memory, depth);
    let loss = |out: &LmOutput| model.nll(out.hidden.clone(), &targets).mean();
    let depth = case.info["config"]["pretrain_depth"].as_u64().unwrap_or(2) as usize;
    let deq = checks.precision.deq();
    for (mode, out) in [
        ("unrolled", run(Depth::Unrolled(depth))),
        ("implicit", run(Depth::Equilibrium(&deq))),
    ] {
        let name = format!("seg{index}.{mode}.loss");
        let loss = loss(&out);
        checks.solved(&name, &loss, case.values(&name));
        checks.gradients(case, &model, &format!("seg{index}.{mode}.grad"), loss);
    }

    // The penalty with the recorded vector, by the cell's own tangent.
    let z_star = state(case, &format!("seg{index}.z_star"), &plain);
    let v = case.tensor::<4>(&format!("seg{index}.implicit.jac_v"), &plain);
    let v = v.squeeze_dim::<3>(0).swap_dims(1, 2);
    let out = run(Depth::Equilibrium(&deq));
    let penalty = JacobianPenaltyConfig::new()
        .build()
        .and_then(|penalty| penalty.at_with_probes(&model.cell, &out.context, &z_star, &[v]))
        .unwrap_or_else(|error| panic!("the default settings: {error}"));
    let name = format!("seg{index}.implicit.jac_loss");
    checks.solved(&name, &penalty.value, case.values(&name));
    let prefix = format!("seg{index}.implicit.grad_jac");
    checks.gradients(case, &model, &prefix, penalty.value);
}
