//! What training steps of every task have in common: their phase, the penalty, the gradient.

use crate::clip::clip_global_norm;
use crate::error::{TrainError, require};
use crate::records::{PenaltyRecord, Phase};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use deq_core::{Deq, DeqConfig, Equilibrium};
use deq_jacreg::{
    JacobianPenalty, JacobianPenaltyConfig, Penalty, TangentCell, WeightControllerConfig,
};
use deq_models::Depth;

/// What a recipe says about single steps.
#[derive(Debug)]
pub(crate) struct StepPlan {
    pub(crate) deq: Deq,
    /// Applications of an explicit network, in the place of the equilibrium.
    pub(crate) explicit: Option<usize>,
    pub(crate) penalty: Option<JacobianPenalty>,
    /// Its weight while pre-training, at the last state.
    pub(crate) pretrain_penalty: f64,
    pub(crate) pretrain_steps: usize,
    pub(crate) pretrain_depth: usize,
    /// The largest norm of the whole gradient, if it is bounded.
    pub(crate) clip: Option<f64>,
    pub(crate) seed: u64,
}

/// Checks a penalty and the controller of its weight.
///
/// # Errors
///
/// [`TrainError`] naming the field, or [`TrainError::ControllerWithoutPenalty`].
pub(crate) fn validate_penalty(
    penalty: Option<&JacobianPenaltyConfig>,
    controller: Option<&WeightControllerConfig>,
    deq: &DeqConfig,
) -> Result<(), TrainError> {
    if let Some(penalty) = penalty {
        penalty.validate()?;
    }
    let Some(controller) = controller else {
        return Ok(());
    };
    controller.build()?;
    // A solve cannot take longer than its budget: the weight would only ever fall.
    require(
        controller.target < deq.stop.max_steps as f64,
        "controller.target",
        controller.target,
        "below the steps that a training solve may take",
    )?;
    match penalty {
        Some(_) => Ok(()),
        None => Err(TrainError::ControllerWithoutPenalty),
    }
}

/// A penalty on its way into the loss.
pub(crate) struct Weighted {
    penalty: Penalty,
    weight: f64,
}

impl StepPlan {
    /// The phase and depth of training step `step`, counted from 0; `None` means evaluation.
    pub(crate) fn depth<'a>(&self, step: Option<usize>, deq: &'a Deq) -> (Phase, Depth<'a>) {
        match (self.explicit, step) {
            (Some(depth), _) => (Phase::Unrolled, Depth::Unrolled(depth)),
            (None, Some(step)) if step < self.pretrain_steps => {
                (Phase::Unrolled, Depth::Unrolled(self.pretrain_depth))
            }
            _ => (Phase::Equilibrium, Depth::Equilibrium(deq)),
        }
    }

    /// The penalty of a step, if it has one; its weight is that of the schedule unless a controller gives another, and while pre-training that for this phase.
    pub(crate) fn penalty<C: TangentCell>(
        &self,
        (step, phase): (usize, Phase),
        controlled: Option<f64>,
        (cell, context, equilibrium): (&C, &C::Context, &Equilibrium),
    ) -> Option<Weighted> {
        let penalty = self.penalty.as_ref()?;
        let weight = match phase {
            Phase::Equilibrium => controlled.unwrap_or_else(|| penalty.weight_at(step)),
            Phase::Unrolled if self.explicit.is_none() => self.pretrain_penalty,
            Phase::Unrolled => 0.0,
        };
        let drawn = match phase {
            Phase::Equilibrium => penalty.applies_at(self.seed, step),
            // Whatever the weight is to be at equilibria.
            Phase::Unrolled => penalty.drawn_at(self.seed, step),
        };
        if weight <= 0.0 || !drawn {
            return None;
        }
        Some(Weighted {
            weight,
            penalty: penalty
                .estimate_exact(cell, context, equilibrium.z_star.clone())
                .expect("the settings were checked and the state is f32 or f64"),
        })
    }

    /// The clipped gradient of loss and penalty.
    pub(crate) fn gradients<M: Module>(
        &self,
        module: &M,
        loss: Tensor<1>,
        penalty: Option<&Weighted>,
    ) -> GradientsParams {
        let total = match penalty {
            Some(weighted) => loss + weighted.penalty.value.clone() * weighted.weight,
            None => loss,
        };
        let grads = GradientsParams::from_grads(total.backward(), module);
        match self.clip {
            Some(limit) => clip_global_norm(module, grads, limit),
            None => grads,
        }
    }
}

impl Weighted {
    /// The numbers of the penalty.
    pub(crate) fn record(&self) -> PenaltyRecord {
        PenaltyRecord {
            value: self.penalty.value.clone().inner().into_scalar::<f64>(),
            weight: self.weight,
            nfe: self.penalty.nfe,
            products: self.penalty.products,
        }
    }
}
