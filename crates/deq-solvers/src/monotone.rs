//! Operator splitting for monotone equilibrium layers.

use crate::dense::{identity, solve_positive_definite};
use crate::error::{InvalidConfig, require};
use crate::map::Iterate;
use crate::monitor::Monitor;
use crate::solution::Solution;
use crate::stop::StopRule;
use burn::config::Config;
use burn::tensor::{Tensor, activation::relu};

/// The layer `f(z) = relu(W z + b)` of a monotone equilibrium network, where `I - W` is strongly
/// monotone: its symmetric part is at least `m I` with `m > 0`.
///
/// The equilibrium then exists and is unique (Winston and Kolter, "Monotone operator equilibrium
/// networks", NeurIPS 2020, arXiv 2006.08591, Theorem 1), also where `f` expands and plain
/// iteration runs away.
#[derive(Clone, Debug)]
pub struct MonotoneLayer {
    /// `W^T`, so that rows of states multiply from the left.
    transposed: Tensor<2>,
    bias: Tensor<2>,
}

impl MonotoneLayer {
    /// # Shapes
    ///
    /// f32 or f64, since the splittings work in the type of the layer.
    ///
    /// - weight: `W`, `[dim, dim]`
    /// - bias: `b`, everything that does not depend on `z`, `[batch, dim]`
    ///
    /// # Panics
    ///
    /// If the shapes do not fit.
    pub fn new(weight: Tensor<2>, bias: Tensor<2>) -> Self {
        let [_, dim] = bias.dims();
        assert_eq!(weight.dims(), [dim, dim], "the weight must be [dim, dim]");
        Self {
            transposed: weight.transpose(),
            bias,
        }
    }

    /// `W z + b`, `[batch, dim]`.
    pub fn affine(&self, z: &Tensor<2>) -> Tensor<2> {
        z.clone().matmul(self.transposed.clone()) + self.bias.clone()
    }

    /// `f(z) = relu(W z + b)`, `[batch, dim]`.
    pub fn call(&self, z: &Tensor<2>) -> Tensor<2> {
        relu(self.affine(z))
    }

    /// `((I + step (I - W))^-1)^T`, `[dim, dim]`.
    fn resolvent(&self, step: f64) -> Tensor<2> {
        let matrix: Tensor<3> = self.transposed.clone().unsqueeze_dim(0);
        let [_, dim, _] = matrix.dims();
        let eye = identity(dim, &matrix);
        let matrix = eye.clone().mul_scalar(1.0 + step) - matrix.mul_scalar(step);
        solve_positive_definite(matrix, eye).squeeze_dim::<2>(0)
    }
}

/// Which splitting [`Splitting`] uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplittingMethod {
    /// Explicit in `W`.
    ForwardBackward,
    /// Implicit in `W`.
    PeacemanRachford,
}

/// Configuration of [`Splitting`].
#[derive(Config, Debug, PartialEq)]
pub struct SplittingConfig {
    /// The method.
    pub method: SplittingMethod,
    /// The step `alpha`, dimensionless. Peaceman-Rachford converges for every positive one, and 1
    /// is a good first choice. Forward-backward converges for `alpha < 2 m / L^2` with
    /// `L = |I - W|`. Default 1.
    #[config(default = 1.0)]
    pub step: f64,
}

impl SplittingConfig {
    /// Forward-backward splitting with a step.
    pub fn forward_backward(step: f64) -> Self {
        Self::new(SplittingMethod::ForwardBackward).with_step(step)
    }

    /// Peaceman-Rachford splitting with its default step.
    pub fn peaceman_rachford() -> Self {
        Self::new(SplittingMethod::PeacemanRachford)
    }

    /// Checks the fields.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] if `step` is not positive and finite.
    pub fn build(&self) -> Result<Splitting, InvalidConfig> {
        require(
            self.step.is_finite() && self.step > 0.0,
            "splitting.step",
            self.step,
            "a finite number above 0",
        )?;
        Ok(Splitting {
            config: self.clone(),
        })
    }
}

/// Operator splitting for `0 in (I - W) z - b + N(z)`, where the ReLU is the resolvent of the
/// normal cone `N`.
///
/// ```text
/// forward-backward     z <- relu((1 - alpha) z + alpha (W z + b))
/// Peaceman-Rachford    x  = (I + alpha (I - W))^-1 (2 z - u + alpha b)
///                      u <- 2 x - 2 z + u
///                      z <- relu(u)
/// ```
///
/// Use them where convergence must be certain: with a monotone layer they cannot diverge, whatever
/// the spectral radius of `f`. Peaceman-Rachford needs far fewer steps and one factorisation per
/// set of weights; forward-backward needs no factorisation. On any other layer use Anderson.
///
/// Every step is tested by the residual `f(z) - z` of the layer itself, in the norm of every other
/// solver, not by the size of its own move.
///
/// Cost per step: forward-backward one product with `W`, which also serves the test;
/// Peaceman-Rachford one with the inverse and one with `W` for the test, and `dim^3` once per
/// solve. Memory: three states, and for Peaceman-Rachford two `[dim, dim]` matrices.
///
/// # References
///
/// Winston and Kolter, "Monotone operator equilibrium networks", NeurIPS 2020, arXiv 2006.08591,
/// Algorithms 1 and 2.
///
/// # Differences from the reference code
///
/// `locuslab/monotone_op_net` tests the relative move of the iterate, over the whole batch.
#[derive(Clone, Debug)]
pub struct Splitting {
    config: SplittingConfig,
}

impl Splitting {
    /// The name used in reports, in lower case.
    pub fn name(&self) -> &'static str {
        match self.config.method {
            SplittingMethod::ForwardBackward => "forward-backward",
            SplittingMethod::PeacemanRachford => "peaceman-rachford",
        }
    }

    /// Solves `z = f(z)` for every row from `z0`; one evaluation of `f` per step.
    ///
    /// # Shapes
    ///
    /// - z0: `[batch, dim]`
    pub fn solve(&self, layer: &MonotoneLayer, z0: Tensor<2>, stop: &StopRule) -> Solution {
        let alpha = self.config.step;
        let [batch, _] = z0.dims();
        let mut monitor = Monitor::new(stop, &z0);
        let resolvent = match self.config.method {
            SplittingMethod::ForwardBackward => None,
            SplittingMethod::PeacemanRachford => Some(layer.resolvent(alpha)),
        };
        let mut z = z0;
        let mut dual = z.clone();
        loop {
            let affine = layer.affine(&z);
            let at = Iterate::new(z, relu(affine.clone()));
            let open = monitor.observe(&at, batch);
            // Nobody follows a splitting step by step.
            drop(monitor.take_reports());
            if !open {
                return monitor.finish();
            }
            let z_now = at.z();
            let next = match &resolvent {
                None => {
                    let kept = z_now.clone().mul_scalar(1.0 - alpha);
                    relu(kept + affine.mul_scalar(alpha))
                }
                Some(resolvent) => {
                    let reflected = z_now.clone().mul_scalar(2.0) - dual;
                    let x = (reflected.clone() + layer.bias.clone().mul_scalar(alpha))
                        .matmul(resolvent.clone());
                    dual = x.mul_scalar(2.0) - reflected;
                    relu(dual.clone())
                }
            };
            z = monitor.freeze(next);
        }
    }
}
