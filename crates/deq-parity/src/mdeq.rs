//! MDEQ: injection, cell, equilibrium, logits, penalty, gradients of every parameter.

use crate::Check;
use crate::model::{Checks, Precision, recorded_weights};
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData, activation::log_softmax};
use deq_core::solvers::{BroydenConfig, FixedPointMap, Scope, Solve, StopConfig, TraceLevel};
use deq_core::{EquilibriumCell, StateLayout};
use deq_jacreg::JacobianPenaltyConfig;
use deq_models::checkpoint::OriginalNames;
use deq_models::{
    Depth, Mdeq, MdeqClassifier, MdeqClassifierConfig, MdeqConfig, MdeqOutput, MdeqSegmenter,
    MdeqSegmenterConfig,
};
use deq_testkit::Golden;

/// Kind `mdeq_classification`.
pub(crate) fn classification(case: &Golden, precision: &Precision) -> Vec<Check> {
    run(case, precision, &|device| {
        let stage = &case.info["config"]["EXTRA"]["FULL_STAGE"];
        let config = MdeqClassifierConfig::new(
            number(&case.info["config"]["NUM_CLASSES"]),
            backbone(case),
            numbers(&stage["HEAD_CHANNELS"]),
            number(&stage["FINAL_CHANSIZE"]),
        );
        config
            .init(device)
            .unwrap_or_else(|error| panic!("{error}"))
    })
}

/// Kind `mdeq_segmentation`.
pub(crate) fn segmentation(case: &Golden, precision: &Precision) -> Vec<Check> {
    run(case, precision, &|device| {
        let config = &case.info["config"];
        MdeqSegmenterConfig::new(number(&config["NUM_CLASSES"]), backbone(case))
            .with_final_kernel(number(&config["EXTRA"]["FINAL_CONV_KERNEL"]))
            .init(device)
            .unwrap_or_else(|error| panic!("{error}"))
    })
}

fn backbone(case: &Golden) -> MdeqConfig {
    let config = &case.info["config"];
    let flag = |name: &str| config[name].as_bool().unwrap_or(false);
    MdeqConfig::new(numbers(&config["EXTRA"]["FULL_STAGE"]["NUM_CHANNELS"]))
        .with_groups(number(&config["NUM_GROUPS"]))
        .with_downsample_times(number(&config["DOWNSAMPLE_TIMES"]))
        .with_expansion(number(&config["EXPANSION_FACTOR"]))
        .with_weight_norm(flag("WNORM"))
        .with_block_affine(flag("BLOCK_GN_AFFINE"))
        .with_fusion_affine(flag("FUSE_GN_AFFINE"))
        .with_post_fusion_affine(flag("POST_GN_AFFINE"))
}

fn number(value: &serde_json::Value) -> usize {
    value.as_u64().unwrap_or(0) as usize
}

fn numbers(value: &serde_json::Value) -> Vec<usize> {
    value.as_array().into_iter().flatten().map(number).collect()
}

/// What classifier and segmenter have in common; `D` is the rank of the logits.
trait Model<const D: usize>: Module + OriginalNames {
    fn backbone(&self) -> &Mdeq;
    fn forward(&self, images: Tensor<4>, depth: Depth<'_>) -> MdeqOutput<D>;
    /// One row of scores per target.
    fn rows(logits: Tensor<D>) -> Tensor<2>;
}

impl Model<2> for MdeqClassifier {
    fn backbone(&self) -> &Mdeq {
        &self.backbone
    }

    fn forward(&self, images: Tensor<4>, depth: Depth<'_>) -> MdeqOutput<2> {
        self.forward(images, depth)
    }

    fn rows(logits: Tensor<2>) -> Tensor<2> {
        logits
    }
}

impl Model<4> for MdeqSegmenter {
    fn backbone(&self) -> &Mdeq {
        &self.backbone
    }

    fn forward(&self, images: Tensor<4>, depth: Depth<'_>) -> MdeqOutput<4> {
        self.forward(images, depth)
    }

    fn rows(logits: Tensor<4>) -> Tensor<2> {
        let [batch, classes, height, width] = logits.dims();
        let last = logits.permute([0, 2, 3, 1]);
        last.reshape([batch * height * width, classes])
    }
}

fn run<const D: usize, M: Model<D>>(
    case: &Golden,
    precision: &Precision,
    init: &dyn Fn(&Device) -> M,
) -> Vec<Check> {
    let mut checks = Checks::new(precision);
    let plain = precision.device.clone();
    evaluate(case, &recorded_weights(init(&plain), case), &mut checks);
    // A step of training moves running statistics, so every step has a model of its own.
    let device = plain.autodiff();
    train(case, &|| recorded_weights(init(&device), case), &mut checks);
    checks.list
}

fn evaluate<const D: usize, M: Model<D>>(case: &Golden, model: &M, checks: &mut Checks) {
    let device = checks.precision.device.clone();
    let images = case.tensor::<4>("image", &device);
    let injection = model.backbone().stem.forward(images.clone());
    checks.direct("eval.injection", &injection, case.values("eval.injection"));
    let deq = checks.precision.deq();
    let out = model.forward(images, Depth::Equilibrium(&deq));
    let layout = StateLayout::of(&out.equilibrium.z);
    let cell = |name: &str| {
        let z = case.tensor::<2>(name, &device);
        layout.apply(z, |z| model.backbone().cell.forward(z, &out.context))
    };
    checks.direct("cell.out", &cell("cell.z"), case.values("cell.out"));
    if checks.precision.is_double() {
        let z0 = layout.flatten(out.equilibrium.z.clone()).zeros_like();
        let mut f = |z| layout.apply(z, |z| model.backbone().cell.forward(z, &out.context));
        broyden_trace(case, &mut f, z0, checks);
    }
    checks.direct("f(z_star)", &cell("z_star"), case.values("z_star"));
    let z_star = layout.flatten(out.equilibrium.output);
    checks.solved("z_star", &z_star, case.values("z_star"));
    checks.solved("eval.output", &out.logits, case.values("eval.output"));
}

/// The residuals of the original's Broyden, norms over the whole batch, as long as they do not
/// depend on rounding: in f64.
fn broyden_trace(case: &Golden, f: &mut dyn FixedPointMap, z0: Tensor<2>, checks: &mut Checks) {
    let recorded = case.values("broyden18.rel_trace");
    let stop = StopConfig::new()
        .with_max_steps(recorded.len())
        .with_rel_tol(1e-3)
        .with_rel_floor(1e-9)
        .with_divergence(1e30)
        .with_scope(Scope::Batch)
        .with_trace(TraceLevel::Residuals);
    let solver = BroydenConfig::new().with_history(recorded.len()).build();
    let (solver, stop) = solver
        .and_then(|solver| Ok((solver, stop.build()?)))
        .unwrap_or_else(|error| panic!("constant settings: {error}"));
    let solution = solver.solve(f, z0, &stop);
    // The recording leaves the start out, and repeats the lowest residual behind the end of the
    // solve.
    let steps = solution.trace.iter().flat_map(|trace| &trace.steps).skip(1);
    let ours: Vec<f64> = steps.filter_map(|step| step.rel.first().copied()).collect();
    let count = ours.len().min(recorded.len());
    checks.push(
        format!("broyden18.rel_trace, {count} steps"),
        &ours,
        &recorded[..count],
        checks.precision.solved,
    );
}

fn train<const D: usize, M: Model<D>>(case: &Golden, init: &dyn Fn() -> M, checks: &mut Checks) {
    let plain = checks.precision.device.clone();
    let device = plain.clone().autodiff();
    let images = case.tensor::<4>("image", &device);
    let targets = case.values("target");
    let layers = number(&case.info["pretrain_layers"]);
    let deq = checks.precision.deq();
    for (mode, depth) in [
        ("unrolled", Depth::Unrolled(layers)),
        ("implicit", Depth::Equilibrium(&deq)),
    ] {
        let model = init();
        let out = model.forward(images.clone(), depth);
        let name = format!("{mode}.train_output");
        checks.solved(&name, &out.logits, case.values(&name));
        let loss = cross_entropy(M::rows(out.logits), targets);
        let name = format!("{mode}.loss");
        checks.solved(&name, &loss, case.values(&name));
        checks.gradients(case, &model, &format!("{mode}.grad"), loss);
    }

    // The penalty with the recorded vectors, by the cell's own tangent.
    let model = init();
    let out = model.forward(images, Depth::Equilibrium(&deq));
    let vectors = case.tensor::<3>("implicit.jac_v", &plain);
    let (cell, z) = (&model.backbone().cell, &out.equilibrium.z);
    let layout = StateLayout::of(z);
    let probes: Vec<Vec<Tensor<4>>> = (0..vectors.dims()[0])
        .map(|index| layout.unflatten(vectors.clone().narrow(0, index, 1).squeeze_dim(0)))
        .collect();
    let penalty = JacobianPenaltyConfig::new()
        .build()
        .and_then(|penalty| penalty.at_with_probes(cell, &out.context, z, &probes))
        .unwrap_or_else(|error| panic!("the default settings: {error}"));
    let recorded = case.values("implicit.jac_loss");
    checks.solved("implicit.jac_loss", &penalty.value, recorded);
    checks.gradients(case, &model, "implicit.grad_jac", penalty.value);
}

/// The mean over all rows.
fn cross_entropy(rows: Tensor<2>, targets: &[f64]) -> Tensor<1> {
    let targets: Vec<i64> = targets.iter().map(|&target| target as i64).collect();
    let columns = TensorData::new(targets.clone(), [targets.len(), 1]);
    let columns = Tensor::<2, Int>::from_data(columns, &rows.device());
    log_softmax(rows, 1).gather(1, columns).mean().neg()
}
