//! Weights that are bounded or reparametrised, computed once per solve.
//!
//! `f` is evaluated many times per solve with the same weights. Compute the effective weight once,
//! in the cell's [context](crate::CellContext), instead of in every evaluation; gradients flow
//! through the context to the parameters.

use burn::module::{Module, Param, RunningState};
use burn::tensor::{Distribution, Tensor};
pub use deq_kernels::{norm_except, weight_norm};

/// A weight as length times direction, one length for every slice along one axis.
///
/// ```text
/// w = direction * gain / |direction|           norms over all axes but `axis`
/// ```
///
/// Salimans and Kingma, "Weight Normalization", NeurIPS 2016. The original DEQ-Transformer and MDEQ
/// use it on the maps inside `f`.
#[derive(Module, Debug)]
pub struct WeightNorm<const D: usize> {
    /// The direction, of any length.
    pub direction: Param<Tensor<D>>,
    /// The lengths: size 1 on all axes but one.
    pub gain: Param<Tensor<D>>,
    #[module(skip)]
    axis: usize,
}

impl<const D: usize> WeightNorm<D> {
    /// Splits a weight, which keeps its value.
    ///
    /// # Panics
    ///
    /// If there is no such axis.
    pub fn new(weight: Tensor<D>, axis: usize) -> Self {
        Self {
            gain: Param::from_tensor(norm_except(weight.clone(), axis).detach()),
            direction: Param::from_tensor(weight.detach()),
            axis,
        }
    }

    /// The weight to use throughout one solve.
    pub fn weight(&self) -> Tensor<D> {
        weight_norm(self.direction.val(), self.gain.val(), self.axis)
    }
}

/// A weight whose largest singular value is kept near or below a bound.
///
/// ```text
/// w = weight * bound / max(s, bound)           s: the largest singular value of the weight as a matrix, first axis against the rest
/// ```
///
/// The singular vectors come from power iteration that goes on from one solve to the next, and
/// count as constants in the gradient. It finds `s` from below, so that the bound holds up to its
/// error, which is small while the weight changes little.
///
/// A chain of linear maps with such weights and 1-Lipschitz activations has a Lipschitz constant of
/// about the product of the bounds at most: clearly below 1, `f` contracts and every solver
/// converges. That does not hold for convolutions, of which this is not the norm: with a kernel of
/// `k x k` places the map can be `k` times as large as its weight, so that a contraction needs a
/// bound below `1 / k`.
///
/// Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018. Unlike
/// there, a weight that is within its bound is left alone.
#[derive(Module, Debug)]
pub struct SpectralNorm<const D: usize> {
    /// The weight before it is bounded.
    pub weight: Param<Tensor<D>>,
    /// The left singular vector, `[rows]`.
    left: RunningState<Tensor<1>>,
    #[module(skip)]
    bound: f64,
}

/// Rounds of power iteration per solve: one, as in the paper, since weights change little from step
/// to step.
const ROUNDS: usize = 1;
/// Rounds that find the first vector.
const FIRST_ROUNDS: usize = 50;

impl<const D: usize> SpectralNorm<D> {
    /// Bounds a weight.
    ///
    /// # Panics
    ///
    /// If `bound` is not a positive number.
    pub fn new(weight: Tensor<D>, bound: f64) -> Self {
        assert!(
            bound > 0.0 && bound.is_finite(),
            "the bound is {bound}, but must be a finite number above 0"
        );
        let matrix = as_matrix(weight.clone().inner());
        let [rows, _] = matrix.dims();
        let options = (&matrix.device(), matrix.dtype());
        let start = Tensor::<2>::random([rows, 1], Distribution::Normal(0.0, 1.0), options);
        let (left, _) = power_iteration(&matrix, start, FIRST_ROUNDS);
        Self {
            weight: Param::from_tensor(weight.detach()),
            left: RunningState::new(left.squeeze_dim(1)),
            bound,
        }
    }

    /// The weight to use throughout one solve. In training, it improves the singular vector for the
    /// next.
    pub fn weight(&self) -> Tensor<D> {
        let weight = self.weight.val();
        let matrix = as_matrix(weight.clone());
        let start = self.left.value_sync().inner().unsqueeze_dim(1);
        let (left, right) = power_iteration(&matrix.clone().inner(), start, ROUNDS);
        if weight.is_autodiff() {
            self.left.update(left.clone().squeeze_dim(1));
        }
        // Elementwise, since a GPU may round matrix products to TF32, which is no bound. An error
        // of the vectors counts by its square only.
        let largest = (matrix * left * right.transpose()).sum(); // [1]
        let factor = largest.clamp_min(self.bound).recip().mul_scalar(self.bound);
        weight * factor.reshape([1; D])
    }
}

fn as_matrix<const D: usize>(weight: Tensor<D>) -> Tensor<2> {
    let rows = weight.dims()[0];
    let columns = weight.dims().iter().skip(1).product::<usize>();
    weight.reshape([rows, columns])
}

/// Improves the left singular vector, `[rows, 1]`, and returns both, the right one as `[columns,
/// 1]`.
///
/// Where a product is 0, as of a weight of zeros or of one that the left vector is orthogonal to,
/// that vector stays, and the right one begins anew with the longest row, of which no product is 0.
fn power_iteration(
    matrix: &Tensor<2>,
    mut left: Tensor<2>,
    rounds: usize,
) -> (Tensor<2>, Tensor<2>) {
    let unit_or = |x: Tensor<2>, other: Tensor<2>| {
        let norm = x.clone().square().sum().sqrt().reshape([1, 1]);
        let is_zero = norm.clone().equal_elem(0.0).expand(x.dims());
        (x / norm).mask_where(is_zero, other)
    };
    let transposed = matrix.clone().transpose();
    let lengths = matrix.clone().square().sum_dim(1); // [rows, 1]
    let longest = matrix.clone().select(0, lengths.argmax(0).reshape([1]));
    let longest = longest.transpose(); // [columns, 1]
    let longest = unit_or(longest.clone(), longest);
    let right_of = |left: &Tensor<2>| {
        let product = transposed.clone().matmul(left.clone());
        unit_or(product, longest.clone())
    };
    let mut right = right_of(&left);
    for _ in 0..rounds {
        left = unit_or(matrix.clone().matmul(right), left);
        right = right_of(&left);
    }
    (left, right)
}
