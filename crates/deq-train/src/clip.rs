//! Clipping of the whole gradient.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

/// Scales all gradients by one factor so that their joint Euclidean norm is at most `limit`.
///
/// burn-optim clips each parameter by itself, which changes the direction of the step; the original
/// code clips the whole gradient (`torch.nn.utils.clip_grad_norm_`). Reads nothing from the device.
pub(crate) fn clip_global_norm<M: Module>(
    module: &M,
    mut grads: GradientsParams,
    limit: f64,
) -> GradientsParams {
    let mut square = SquareNorm {
        grads: &grads,
        sum: None,
    };
    module.visit(&mut square);
    let Some(sum) = square.sum else {
        return grads;
    };
    // limit / max(norm, limit) is 1 for small gradients; a NaN norm stays visible as NaN.
    let factor = sum.sqrt().clamp_min(limit).recip().mul_scalar(limit);
    module.visit(&mut Scale {
        grads: &mut grads,
        factor,
    });
    grads
}

struct SquareNorm<'a> {
    grads: &'a GradientsParams,
    sum: Option<Tensor<1>>,
}

impl ModuleVisitor for SquareNorm<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            let square = grad.square().sum();
            self.sum = Some(match self.sum.take() {
                Some(sum) => sum + square,
                None => square,
            });
        }
    }
}

struct Scale<'a> {
    grads: &'a mut GradientsParams,
    factor: Tensor<1>,
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.remove::<D>(param.id) {
            let factor = self.factor.clone().reshape([1; D]);
            self.grads.register(param.id, grad * factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    fn norm(module: &Linear, grads: &GradientsParams) -> f64 {
        let mut square = SquareNorm { grads, sum: None };
        module.visit(&mut square);
        square.sum.unwrap().into_scalar::<f64>().sqrt()
    }

    #[test]
    fn only_large_gradients_shrink_and_all_by_one_factor() {
        let device = Device::flex().autodiff();
        let module = LinearConfig::new(3, 2).init(&device);
        let x = Tensor::<2>::ones([4, 3], &device);
        let gradients = || {
            let loss = module.forward(x.clone()).square().sum();
            GradientsParams::from_grads(loss.backward(), &module)
        };
        let before = gradients();
        let size = norm(&module, &before);
        let clipped = clip_global_norm(&module, gradients(), 0.5 * size);
        assert!((norm(&module, &clipped) / size - 0.5).abs() < 1e-6);
        let weight = |grads: &GradientsParams| grads.get::<2>(module.weight.id).unwrap();
        let difference = weight(&clipped) - weight(&before) * 0.5;
        assert!(difference.abs().max().into_scalar::<f64>() < 1e-6 * size);
        let same = clip_global_norm(&module, gradients(), 2.0 * size);
        assert!((norm(&module, &same) / size - 1.0).abs() < 1e-6);
    }
}
