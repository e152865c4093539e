//! MDEQ against its own derivatives, shapes and counts. The recorded models are checked in
//! deq-parity.

use crate::support::{
    Distances, Disturb, assert_near_in_16_bits, trained_in_16_bits, trained_numbers,
};
use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use deq_core::{EquilibriumCell, Lowered, Precision, StateLayout, check};
use deq_kernels::cross_entropy;
use deq_models::checkpoint::{StateDict, load, state_dict};
use deq_models::{
    Depth, MdeqClassifier, MdeqClassifierConfig, MdeqConfig, MdeqOutput, MdeqSegmenterConfig,
};
use deq_testkit::{assert_close, f64_device, relative_error, values};

fn images(batch: usize, side: usize, device: &Device) -> Tensor<4> {
    let count = batch * 3 * side * side;
    let pixels: Vec<f64> = (0..count).map(|k| (k as f64 * 0.37).sin()).collect();
    Tensor::from_data(TensorData::new(pixels, [batch, 3, side, side]), device)
}

/// Three branches, of which one is odd in size and none has the width of another.
fn backbone() -> MdeqConfig {
    MdeqConfig::new(vec![4, 8, 12])
        .with_groups(4)
        .with_downsample_times(1)
        .with_expansion(2)
}

fn random_like(state: &[Tensor<4>]) -> Vec<Tensor<4>> {
    let maps = state.iter();
    maps.map(|map| map.random_like(Distribution::Normal(0.0, 1.0)))
        .collect()
}

fn all_values(state: &[Tensor<4>]) -> Vec<f64> {
    state.iter().flat_map(values).collect()
}

fn classifier(backbone: MdeqConfig, device: &Device) -> MdeqClassifier {
    let config = MdeqClassifierConfig::new(5, backbone, vec![1, 2, 4], 6);
    config.init(device).unwrap().map(&mut Disturb)
}

#[test]
fn tangent_and_pullback_are_the_derivative_and_its_adjoint() {
    let device = f64_device().autodiff();
    let variants = [
        backbone().with_dropout(0.3).with_blocks(2),
        backbone()
            .with_weight_norm(false)
            .with_post_fusion_affine(false),
        backbone()
            .with_block_affine(false)
            .with_fusion_affine(false),
    ];
    for config in variants {
        let model = classifier(config, &device);
        let out = model.forward(images(2, 24, &device), Depth::Unrolled(1));
        let (cell, context) = (&model.backbone.cell, &out.context);
        let normal = || random_like(&out.equilibrium.z);
        let z = normal();
        let pullback = check::pullback_error(cell, context, z.clone(), normal()).unwrap();
        assert!(pullback < 1e-12, "{pullback}");
        let tangent = check::tangent_error(cell, context, z, normal(), 3).unwrap();
        assert!(tangent < 1e-12, "{tangent}");
    }
}

#[test]
fn a_map_in_16_bits_is_differentiated_and_trained() {
    let device = f64_device().autodiff();
    let draw = |precision| {
        let model = classifier(backbone().with_dropout(0.3), &device);
        let out = model.forward(images(2, 24, &device), Depth::Unrolled(1));
        let (cell, context) = Lowered::new(&model.backbone.cell, &out.context, precision);
        let normal = || random_like(&out.equilibrium.z);
        let z = normal();
        let exact = all_values(&model.backbone.cell.forward(z.clone(), &out.context));
        let fz = all_values(&cell.forward(z.clone(), &context));
        let pullback = check::pullback_error(&cell, &context, z.clone(), normal()).unwrap();
        let tangent = check::tangent_error(&cell, &context, z, normal(), 3).unwrap();

        let model = classifier(backbone(), &device);
        let [of_loss, of_gradient] = trained_in_16_bits(precision, |deq| {
            let out = model.forward(images(2, 24, &device), Depth::Equilibrium(deq));
            let loss = cross_entropy(out.logits, &[1, 3]).mean();
            let grads = loss.backward();
            let weight = model.backbone.cell.branches[0].blocks[0].conv1.weight.val();
            (values(&loss), values(&weight.grad(&grads).unwrap()))
        });
        Distances {
            values: [relative_error(&fz, &exact), of_loss],
            derivatives: [pullback, tangent, of_gradient],
        }
    };
    for precision in [Precision::Bf16, Precision::F16] {
        assert_near_in_16_bits(precision, || draw(precision));
    }
}

#[test]
fn the_tangent_records_what_the_cell_reads() {
    let device = f64_device().autodiff();
    let model = classifier(backbone(), &device);
    let out = model.forward(images(1, 8, &device), Depth::Unrolled(1));
    let z = out.equilibrium.z.clone();
    let d = random_like(&z);
    let (_, tangent) = model.backbone.cell.tangent(z, d, &out.context).unwrap();
    let squares = tangent.into_iter().map(|map| map.square().sum());
    let grads = squares.reduce(|a, b| a + b).unwrap().backward();
    let block = &model.backbone.cell.branches[2].blocks[0];
    assert!(
        block
            .conv1
            .gain
            .as_ref()
            .unwrap()
            .val()
            .grad(&grads)
            .is_some()
    );
    assert!(
        model
            .backbone
            .stem
            .conv1
            .conv
            .weight
            .val()
            .grad(&grads)
            .is_some()
    );
}

#[test]
fn the_state_holds_the_branches_from_fine_to_coarse() {
    let device = f64_device();
    let model = classifier(backbone(), &device);
    let out = model.forward(images(2, 24, &device), Depth::Unrolled(2));
    let maps = out.equilibrium.z;
    let dims: Vec<_> = maps.iter().map(Tensor::dims).collect();
    assert_eq!(dims, [[2, 4, 12, 12], [2, 8, 6, 6], [2, 12, 3, 3]]);
    let rows = StateLayout::of(&maps).flatten(maps.clone());
    let state = values(&rows.narrow(0, 0, 1));
    assert_eq!(state[..4 * 144], values(&maps[0].clone().narrow(0, 0, 1)));
    assert_eq!(
        state[4 * 144 + 8 * 36..],
        values(&maps[2].clone().narrow(0, 0, 1))
    );
}

#[test]
fn images_of_a_batch_do_not_see_one_another_in_evaluation() {
    let device = f64_device();
    let model = classifier(backbone(), &device);
    let both = images(2, 16, &device);
    let run = |x| values(&model.forward(x, Depth::Unrolled(3)).logits);
    let together = run(both.clone());
    let alone = run(both.narrow(0, 1, 1));
    assert_close(&together[5..], &alone, 1e-12, "the second image");
}

#[test]
fn dropout_masks_are_drawn_once_per_solve_and_only_in_training() {
    let device = f64_device().autodiff();
    let model = classifier(backbone().with_dropout(0.4), &device);
    let run = || model.forward(images(2, 16, &device), Depth::Unrolled(1));
    let (out, other) = (run(), run());
    let cell = &model.backbone.cell;
    let z = out.equilibrium.z.clone();
    let fz = |out: &MdeqOutput<2>| all_values(&cell.forward(z.clone(), &out.context));
    assert_eq!(fz(&out), fz(&out));
    assert_ne!(fz(&out), fz(&other));

    let plain = model.valid();
    let run = || plain.forward(images(2, 16, &f64_device()), Depth::Unrolled(2));
    assert_eq!(values(&run().logits), values(&run().logits));
}

#[test]
fn training_moves_running_statistics_and_evaluation_uses_them() {
    let device = f64_device().autodiff();
    let config =
        MdeqClassifierConfig::new(5, backbone(), vec![1, 2, 4], 6).with_batch_norm_momentum(1.0);
    let model = config.init(&device).unwrap().map(&mut Disturb);
    let x = images(4, 16, &device);
    let training = model.forward(x.clone(), Depth::Unrolled(2));
    // With momentum 1 the running statistics are those of the batch, so evaluation repeats the
    // training step.
    let evaluation = model.valid().forward(x.inner(), Depth::Unrolled(2));
    let (a, b) = (values(&training.logits), values(&evaluation.logits));
    assert_close(&a, &b, 1e-10, "logits");
}

#[test]
#[should_panic(expected = "the images are 15 by 15, but their sides must be multiples of 8")]
fn images_that_cannot_be_halved_are_refused() {
    let device = f64_device();
    // The stem rounds up, to 8 by 8.
    classifier(backbone(), &device).forward(images(1, 15, &device), Depth::Unrolled(1));
}

#[test]
fn every_tensor_survives_a_state_dict() {
    let device = f64_device();
    let model = classifier(backbone(), &device);
    let dict = StateDict::from_tensors(state_dict(&model).unwrap());
    let (copy, report) = load(classifier(backbone(), &device), &dict).unwrap();
    assert!(report.is_complete() && report.unused.is_empty(), "{report}");
    let run = |model: &MdeqClassifier| {
        let out = model.forward(images(2, 16, &device), Depth::Unrolled(2));
        values(&out.logits)
    };
    assert_eq!(run(&model), run(&copy));
}

#[test]
fn a_segmenter_starts_from_a_classifier() {
    let device = f64_device();
    let classifier = classifier(backbone(), &device);
    let segmenter = MdeqSegmenterConfig::new(7, backbone())
        .init(&device)
        .unwrap();
    let (segmenter, report) = segmenter.with_weights_of(&classifier).unwrap();
    assert!(report.mismatched.is_empty(), "{report}");
    assert!(
        report
            .missing
            .iter()
            .all(|name| name.starts_with("last_layer."))
    );
    assert_eq!(report.missing.len(), 8);
    let heads = [
        "incre_modules.",
        "downsamp_modules.",
        "final_layer.",
        "classifier.",
    ];
    let of_head = |name: &String| heads.iter().any(|head| name.starts_with(head));
    assert!(report.unused.iter().all(of_head), "{:?}", report.unused);

    let x = images(2, 16, &device);
    let there = classifier.forward(x.clone(), Depth::Unrolled(2));
    let here = segmenter.forward(x.clone(), Depth::Unrolled(2));
    assert_eq!(
        all_values(&there.equilibrium.z),
        all_values(&here.equilibrium.z)
    );
    assert_eq!(here.logits.dims(), [2, 7, 8, 8]);

    // Another expansion: the blocks do not fit, everything around them does.
    let wider = MdeqSegmenterConfig::new(7, backbone().with_expansion(3));
    let (_, report) = wider
        .init(&device)
        .unwrap()
        .with_weights_of(&classifier)
        .unwrap();
    let of_block = |name: &str| name.starts_with("fullstage.branches.");
    assert!(report.mismatched.iter().all(|wrong| of_block(&wrong.name)));
    assert!(!report.mismatched.is_empty());
    assert!(report.loaded.iter().any(|name| name == "stage0.0.weight"));
}

#[test]
fn parameters_are_counted_from_shapes() {
    let device = f64_device().autodiff();
    let variants = [
        backbone(),
        backbone().with_blocks(2).with_weight_norm(false),
        backbone().with_block_affine(false),
        backbone()
            .with_fusion_affine(false)
            .with_post_fusion_affine(false),
        backbone().with_downsample_times(0),
    ];
    for backbone in variants {
        let config = MdeqClassifierConfig::new(5, backbone.clone(), vec![1, 2, 4], 6);
        let model = config.init(&device).unwrap();
        assert_eq!(config.parameters(), trained_numbers(&model));
        let config = MdeqSegmenterConfig::new(5, backbone).with_final_kernel(3);
        assert_eq!(
            config.parameters(),
            trained_numbers(&config.init(&device).unwrap())
        );
    }
    // Two branches without halving have no 1x1 convolution in the stem.
    let tiny = MdeqClassifierConfig::cifar10_tiny();
    assert_eq!(
        tiny.parameters(),
        trained_numbers(&tiny.init(&device).unwrap())
    );
}

/// The counts of the repository's configurations, to the digit, and within an eighth of the rounded
/// ones that are given for these models elsewhere.
#[test]
fn presets_have_the_sizes_of_the_original() {
    let classifiers = [
        (MdeqClassifierConfig::cifar10_tiny(), 158_890, 170e3),
        (MdeqClassifierConfig::cifar10_large(), 11_097_438, 10e6),
        (MdeqClassifierConfig::cifar10_large_jr(), 11_097_438, 10e6),
        (MdeqClassifierConfig::imagenet_small(), 16_808_936, 18e6),
        (MdeqClassifierConfig::imagenet_small_jr(), 18_613_496, 17e6),
        (MdeqClassifierConfig::imagenet_large(), 67_063_624, 63e6),
        (MdeqClassifierConfig::imagenet_large_jr(), 67_061_224, 62e6),
        (MdeqClassifierConfig::imagenet_xl(), 90_463_280, 81e6),
    ];
    let segmenters = [
        (MdeqSegmenterConfig::cityscapes_small(), 8_968_467, 8e6),
        (MdeqSegmenterConfig::cityscapes_large(), 55_955_859, 53e6),
        (MdeqSegmenterConfig::cityscapes_xl(), 79_551_755, 71e6),
    ];
    let classifiers = classifiers.map(|(config, count, given)| {
        config.validate().unwrap();
        (config.parameters(), count, given)
    });
    let segmenters = segmenters.map(|(config, count, given)| {
        config.validate().unwrap();
        (config.parameters(), count, given)
    });
    for (found, count, given) in classifiers.into_iter().chain(segmenters) {
        assert_eq!(found, count);
        let ratio = found as f64 / given;
        assert!(
            (ratio - 1.0).abs() < 0.125,
            "{found} parameters, given are {given}"
        );
    }
    let mini = MdeqClassifierConfig::mini(10);
    mini.validate().unwrap();
    MdeqSegmenterConfig::mini(10, 1).validate().unwrap();
    assert_eq!(mini.parameters(), 41_386);
}

#[test]
fn configurations_that_describe_no_model_are_rejected() {
    let message = |backbone: MdeqConfig| backbone.validate().unwrap_err().to_string();
    assert_eq!(
        message(MdeqConfig::new(vec![8])),
        "model.channels is 1, but must be a list of 2 to 16 branches"
    );
    assert_eq!(
        message(MdeqConfig::new(vec![8, 12])),
        "model.channels of branch 1 are 12, but must be a multiple of model.groups = 8 above 0"
    );
    assert_eq!(
        message(backbone().with_groups(3)),
        "model.groups is 3, but must be an even number above 0"
    );
    assert_eq!(
        message(backbone().with_downsample_times(3)),
        "model.downsample_times is 3, but must be 0, 1 or 2"
    );
    assert_eq!(
        message(backbone().with_dropout(1.0)),
        "model.dropout is 1, but must be at least 0 and below 1"
    );
    let config = MdeqClassifierConfig::new(5, backbone(), vec![1, 2], 6);
    assert_eq!(
        config.validate().unwrap_err().to_string(),
        "model.head_channels has 2 entries, but must have one for each of the 3 branches"
    );
    let config = MdeqSegmenterConfig::new(5, backbone()).with_final_kernel(2);
    assert_eq!(
        config.validate().unwrap_err().to_string(),
        "model.final_kernel is 2, but must be 1 or 3"
    );
}

#[test]
fn names_and_shapes_say_what_a_model_is() {
    let device = f64_device();
    let wide = MdeqConfig::new(vec![4, 8, 12])
        .with_groups(2)
        .with_downsample_times(2)
        .with_expansion(3)
        .with_blocks(2)
        .with_dropout(0.1);
    let bare = MdeqConfig {
        weight_norm: false,
        block_affine: false,
        fusion_affine: false,
        post_fusion_affine: false,
        ..wide.clone()
    };
    for backbone in [wide, bare] {
        // Neither groups nor halvings of the stem nor dropout are in a file.
        let rest = MdeqConfig::new(vec![2, 2])
            .with_groups(backbone.groups)
            .with_downsample_times(backbone.downsample_times)
            .with_dropout(backbone.dropout);
        let config = MdeqClassifierConfig::new(7, backbone.clone(), vec![2, 3, 4], 9);
        let file = StateDict::from_tensors(state_dict(&config.init(&device).unwrap()).unwrap());
        let other = MdeqClassifierConfig::new(1, rest.clone(), vec![1, 1], 1);
        let found = MdeqClassifierConfig::from_state_dict(&file, &other).unwrap();
        assert_eq!(found, config);
        let message =
            MdeqSegmenterConfig::from_state_dict(&file, &MdeqSegmenterConfig::new(1, rest.clone()))
                .unwrap_err()
                .to_string();
        assert_eq!(
            message,
            "the checkpoint is not that of an MDEQ: there is no last_layer.3.weight"
        );

        let config = MdeqSegmenterConfig::new(5, backbone).with_final_kernel(3);
        let file = StateDict::from_tensors(state_dict(&config.init(&device).unwrap()).unwrap());
        let other = MdeqSegmenterConfig::new(1, rest);
        let found = MdeqSegmenterConfig::from_state_dict(&file, &other).unwrap();
        assert_eq!(found, config);
    }
}
