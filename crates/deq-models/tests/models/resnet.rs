//! ResNets beside what torchvision publishes.

use crate::support::{Disturb, trained_numbers};
use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use deq_models::checkpoint::{OriginalNames, StateDict, load, state_dict};
use deq_models::{MdeqClassifierConfig, ResNet, ResNetConfig};
use deq_testkit::{f64_device, values};
use std::collections::BTreeSet;

#[test]
fn they_have_as_many_parameters_as_torchvisions() {
    for (config, count) in [
        (ResNetConfig::resnet18(1000), 11_689_512),
        (ResNetConfig::resnet50(1000), 25_557_032),
        (ResNetConfig::resnet101(1000), 44_549_160),
    ] {
        assert_eq!(config.parameters(), count);
        let narrow = config.with_width(4).with_small_images(true);
        let model = narrow.init(&f64_device().autodiff()).unwrap();
        assert_eq!(narrow.parameters(), trained_numbers(&model));
    }
}

#[test]
fn the_width_matches_the_parameters_of_another_model() {
    for model in [
        MdeqClassifierConfig::cifar10_tiny(),
        MdeqClassifierConfig::cifar10_large(),
        MdeqClassifierConfig::imagenet_small(),
    ] {
        let target = model.parameters();
        let config = ResNetConfig::resnet18(model.num_classes).with_parameters_near(target);
        let away = config.parameters().abs_diff(target);
        for other in [config.width - 1, config.width + 1] {
            let config = config.clone().with_width(other);
            assert!(away <= config.parameters().abs_diff(target));
        }
        // A channel more or less of the narrowest, of width 7, is a quarter of its parameters.
        assert!((away as f64) < 0.125 * target as f64, "{away} of {target}");
    }
}

fn narrow(config: ResNetConfig) -> ResNet {
    let model = config.with_width(4).init(&f64_device()).unwrap();
    model.map(&mut Disturb)
}

#[test]
fn names_are_torchvisions_and_cover_every_tensor() {
    let names = |model: &ResNet| -> BTreeSet<String> {
        let tensors = model.original_tensors().into_iter();
        tensors.map(|tensor| tensor.name).collect()
    };
    let small = names(&narrow(ResNetConfig::resnet18(10)));
    // 20 convolutions with batch norms of 5 tensors, and the last layer.
    assert_eq!(small.len(), 20 * 6 + 2);
    for name in [
        "conv1.weight",
        "bn1.num_batches_tracked",
        "layer1.0.conv2.weight",
        "layer2.0.downsample.1.running_var",
        "layer4.1.bn2.bias",
        "fc.weight",
    ] {
        assert!(small.contains(name), "{name}");
    }
    assert!(
        !small
            .iter()
            .any(|name| name.starts_with("layer1.0.downsample"))
    );
    let deep = names(&narrow(ResNetConfig::resnet50(10)));
    assert_eq!(deep.len(), 53 * 6 + 2);
    for name in ["layer1.0.downsample.0.weight", "layer3.5.conv3.weight"] {
        assert!(deep.contains(name), "{name}");
    }
}

#[test]
fn every_tensor_survives_a_state_dict() {
    let device = f64_device();
    for config in [
        ResNetConfig::resnet18(3),
        ResNetConfig::resnet50(3).with_small_images(true),
    ] {
        let model = narrow(config.clone());
        let dict = StateDict::from_tensors(state_dict(&model).unwrap());
        let (copy, report) = load(narrow(config), &dict).unwrap();
        assert!(report.is_complete() && report.unused.is_empty(), "{report}");
        let x = Tensor::<4>::ones([2, 3, 32, 32], &device);
        let logits = model.forward(x.clone());
        assert_eq!(logits.dims(), [2, 3]);
        assert_eq!(values(&logits), values(&copy.forward(x)));
    }
}

#[test]
fn networks_that_are_none_are_rejected() {
    let message = |config: ResNetConfig| config.validate().unwrap_err().to_string();
    let base = || ResNetConfig::resnet18(10);
    assert_eq!(
        message(base().with_width(0)),
        "model.width is 0, but must be from 1 to 65536"
    );
    let mut config = base();
    config.stages = vec![2, 0];
    assert_eq!(
        message(config.clone()),
        "model.stages is 0, but must be from 1 to 256 blocks in each of at most 8 stages"
    );
    config.stages = vec![1; 9];
    assert_eq!(
        message(config),
        "model.stages is 9, but must be from 1 to 256 blocks in each of at most 8 stages"
    );
}

#[test]
fn names_and_shapes_say_what_a_network_is() {
    for config in [
        ResNetConfig::resnet18(7).with_width(4),
        ResNetConfig::resnet50(3)
            .with_width(2)
            .with_small_images(true),
    ] {
        let model = config.init(&f64_device()).unwrap();
        let file = StateDict::from_tensors(state_dict(&model).unwrap());
        assert_eq!(ResNetConfig::from_state_dict(&file).unwrap(), config);
    }
    let other = StateDict::from_tensors([("x".to_owned(), TensorData::from([1.0]))]);
    let message = ResNetConfig::from_state_dict(&other)
        .unwrap_err()
        .to_string();
    assert_eq!(
        message,
        "the checkpoint is not that of a ResNet: there is no conv1.weight"
    );
}
