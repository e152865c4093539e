//! Running statistics of the copies of a model.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

/// The numbers of a model that no gradient moves, such as running statistics.
pub(super) struct Buffers(GradientsParams);

impl Buffers {
    pub(super) fn of<M: Module>(model: &M) -> Self {
        struct Find(GradientsParams);
        impl ModuleVisitor for Find {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let value = param.val();
                if !value.is_require_grad() {
                    self.0.register(param.id, value.inner());
                }
            }
        }
        let mut find = Find(GradientsParams::new());
        model.visit(&mut find);
        Self(find.0)
    }

    /// By how much they have changed in the model, times `share`.
    pub(super) fn moved<M: Module>(self, model: &M, share: f64) -> GradientsParams {
        struct Compare(GradientsParams, f64);
        impl ModuleVisitor for Compare {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if let Some(before) = self.0.remove::<D>(param.id) {
                    let moved = (param.val() - before) * self.1;
                    self.0.register(param.id, moved);
                }
            }
        }
        let mut compare = Compare(self.0, share);
        // Running statistics take in their last update now.
        model.valid().visit(&mut compare);
        compare.0
    }
}

/// Moves running statistics, which all copies of a model on the same device share.
pub(super) fn move_buffers<M: Module>(model: &M, by: GradientsParams) {
    struct Move(GradientsParams);
    impl ModuleMapper for Move {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            match self.0.remove::<D>(param.id) {
                Some(by) => param.map(|value| match value.is_autodiff() {
                    true => value + Tensor::from_inner(by),
                    false => value + by,
                }),
                None => param,
            }
        }
    }
    if !by.is_empty() {
        drop(model.clone().map(&mut Move(by)));
    }
}
