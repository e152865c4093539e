//! Gradients that the devices add up among themselves.
//!
//! Burn's collective is NCCL's. A device that is called and waits for another that never is waits
//! forever, and so do devices that disagree about the order of calls. There is therefore one call
//! in a step, with all gradients in a row, and it is made once every part is known to have come to
//! its end.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::distributed::{ReduceOperation, all_reduce};
use burn::tensor::{Device, Tensor};
use std::sync::Arc;

/// Takes the row of one device and returns the sum over all the devices named. Each of them calls
/// it, from a thread of its own.
pub(super) type Sum = Arc<dyn Fn(Tensor<1>, &[Device]) -> Tensor<1> + Send + Sync>;

/// How these devices add up their rows among themselves, if they can.
pub(super) fn sum_among(devices: &[Device]) -> Option<Sum> {
    can_sum(devices, has_nccl).then(|| Arc::new(by_nccl) as Sum)
}

/// Whether there are several devices, each with NCCL and none named twice.
fn can_sum<D: PartialEq>(devices: &[D], has_nccl: impl Fn(&D) -> bool) -> bool {
    let is_first = |index: usize| !devices[..index].contains(&devices[index]);
    devices.len() > 1
        && (0..devices.len()).all(|index| is_first(index) && has_nccl(&devices[index]))
}

/// Whether the device is a CUDA device of this machine, and NCCL, which is a library of its own
/// beside CUDA, was found.
#[cfg(feature = "cuda")]
fn has_nccl(device: &Device) -> bool {
    use burn::backend::{CubeDevice, DispatchDevice};
    match device.as_dispatch() {
        DispatchDevice::Cube(cuda @ CubeDevice::Cuda(_)) => cuda.client().has_device_transport(),
        _ => false,
    }
}

#[cfg(not(feature = "cuda"))]
fn has_nccl(_: &Device) -> bool {
    false
}

fn by_nccl(own: Tensor<1>, devices: &[Device]) -> Tensor<1> {
    // Resolved on every device, though one sum is used: memory must not be free before NCCL is done
    // with it.
    all_reduce(own, ReduceOperation::Sum, devices.to_vec()).resolve()
}

/// The gradients of one part, on its device.
pub(super) struct Row {
    /// Those of all trained parameters, in the order of the model. Zeros stand for none, so that
    /// all devices have rows of the same length.
    pub(super) numbers: Tensor<1>,
    /// Which parameters have one.
    pub(super) present: Vec<bool>,
}

impl Row {
    /// Of gradients that lie on `device`, whereas `model` may lie anywhere.
    ///
    /// # Panics
    ///
    /// If anything on the device has failed so far.
    pub(super) fn of<M: Module>(model: &M, grads: GradientsParams, device: &Device) -> Self {
        struct Gather<'a> {
            grads: GradientsParams,
            device: &'a Device,
            pieces: Vec<Tensor<1>>,
            present: Vec<bool>,
        }
        impl ModuleVisitor for Gather<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let value = param.val();
                if !value.is_require_grad() {
                    return;
                }
                let grad = self.grads.remove::<D>(param.id);
                self.present.push(grad.is_some());
                self.pieces.push(match grad {
                    Some(grad) => grad.flatten(0, D - 1),
                    None => {
                        let len = value.shape().num_elements();
                        Tensor::zeros([len], (self.device, value.dtype()))
                    }
                });
            }
        }
        let mut gather = Gather {
            grads,
            device,
            pieces: Vec::new(),
            present: Vec::new(),
        };
        model.visit(&mut gather);
        let numbers = Tensor::cat(gather.pieces, 0);
        // Read, since a device tells what has failed when it is read.
        let _ = numbers.clone().narrow(0, 0, 1).into_data();
        Self {
            numbers,
            present: gather.present,
        }
    }
}

/// The gradients of a model from a row of numbers, of those parameters that have one.
pub(super) fn from_row<M: Module>(
    model: &M,
    numbers: &Tensor<1>,
    present: &[bool],
) -> GradientsParams {
    struct Scatter<'a> {
        numbers: &'a Tensor<1>,
        start: usize,
        present: std::slice::Iter<'a, bool>,
        grads: GradientsParams,
    }
    impl ModuleVisitor for Scatter<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val();
            if !value.is_require_grad() {
                return;
            }
            let shape = value.shape();
            let count = shape.num_elements();
            if self.present.next() == Some(&true) {
                let grad = self.numbers.clone().narrow(0, self.start, count);
                self.grads.register::<D>(param.id, grad.reshape(shape));
            }
            self.start += count;
        }
    }
    let mut scatter = Scatter {
        numbers,
        start: 0,
        present: present.iter(),
        grads: GradientsParams::new(),
    };
    model.visit(&mut scatter);
    scatter.grads
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{Linear, LinearConfig};

    #[test]
    fn only_distinct_devices_with_nccl_add_up_among_themselves() {
        let can = |names: &[&str]| can_sum(names, |name| name.starts_with("cuda"));
        assert!(can(&["cuda:1", "cuda:0"]));
        assert!(can(&["cuda:0", "cuda:1", "cuda:2"]));
        for others in [
            &["cuda:0"][..],
            &["cuda:0", "cuda:0"],
            &["cuda:0", "cuda:1", "cuda:0"],
            &["cuda:0", "flex"],
            &["cuda:0", "cuda:1", "remote:ws://gpu1:4000"],
            &["rocm:0", "rocm:1"],
        ] {
            assert!(!can(others), "{others:?}");
        }
        assert!(sum_among(&[Device::flex(), Device::flex()]).is_none());
    }

    #[test]
    fn gradients_that_some_parts_lack_are_those_of_the_others() {
        let device = Device::flex();
        let linear = || LinearConfig::new(2, 3).init(&device.clone().autodiff());
        let first = linear();
        // The last has its weights in common with the first.
        let model: [Linear; 3] = [first.clone(), linear(), first];
        let bias = |layer: &Linear| layer.bias.as_ref().unwrap().id;
        let weight = |by: f32| Tensor::<2>::from_floats([[by, 2.0, 3.0], [4.0, 5.0, -by]], &device);
        let row = |fill: &dyn Fn(&mut GradientsParams)| {
            let mut grads = GradientsParams::new();
            fill(&mut grads);
            Row::of(&model, grads, &device)
        };
        let both = row(&|grads| {
            grads.register(model[0].weight.id, weight(1.0));
            grads.register(bias(&model[0]), Tensor::<1>::full([3], 7.0, &device));
        });
        let other = row(&|grads| {
            grads.register(model[0].weight.id, weight(0.5));
            grads.register(bias(&model[1]), Tensor::<1>::full([3], -1.0, &device));
        });
        assert_eq!(both.numbers.dims(), other.numbers.dims());
        let present: Vec<bool> = (both.present.iter().zip(&other.present))
            .map(|(one, other)| one | other)
            .collect();
        let sum = from_row(&model, &(both.numbers + other.numbers), &present);
        assert_eq!(sum.len(), 3);
        let found = sum.get::<2>(model[0].weight.id).unwrap();
        let expected = weight(1.0) + weight(0.5);
        found.into_data().assert_eq(&expected.into_data(), true);
        for (layer, value) in model.iter().zip([7.0_f32, -1.0]) {
            let found = sum.get::<1>(bias(layer)).unwrap().into_data();
            assert_eq!(found.iter::<f32>().collect::<Vec<_>>(), [value; 3]);
        }
        assert!(sum.get::<2>(model[1].weight.id).is_none());
    }

    /// On as many cards as there are, one included:
    /// `cargo test -p deq-train --features cuda --lib -- --ignored cards`.
    #[cfg(feature = "cuda")]
    #[test]
    #[ignore = "needs a CUDA device and NCCL"]
    fn cards_add_up_by_nccl() {
        let devices = crate::device::find("cuda");
        assert!(devices.iter().all(has_nccl) && !devices.is_empty());
        let sum: f32 = (0..devices.len()).map(|rank| rank as f32 + 0.5).sum();
        // The second time with what the first has set up.
        for len in [1000, 77] {
            std::thread::scope(|scope| {
                for (rank, device) in devices.iter().enumerate() {
                    let devices = &devices;
                    scope.spawn(move || {
                        let own = Tensor::<1>::full([len], rank as f32 + 0.5, device);
                        let found = by_nccl(own, devices).into_data();
                        assert_eq!(found.iter::<f32>().collect::<Vec<_>>(), vec![sum; len]);
                    });
                }
            });
        }
    }
}
