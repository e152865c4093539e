//! The vector work of fixed-point solvers: inner products with a history, combinations of it, whole
//! steps of Anderson's and Broyden's methods.

#[cfg(feature = "flex")]
use crate::{cpu::solver, flex::Host};
use burn::tensor::Tensor;

/// The inner products of the first `used` vectors of every sample with its row of `x`; 0 for the
/// slots behind them.
///
/// # Shapes
///
/// - vectors: `[batch, slots, dim]`, zero behind the first `used`
/// - x: `[batch, dim]`
/// - output: `[batch, slots, 1]`
pub fn dots(vectors: &Tensor<3>, used: usize, x: &Tensor<2>) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if let (Some(values), Some(row)) = (Host::of(vectors), Host::of(x)) {
        let [batch, slots, dim] = vectors.dims();
        let out = solver::dots(values.values(), row.values(), [slots, dim], used);
        return crate::flex::tensor(out, [batch, slots, 1]);
    }
    let _ = used;
    let x: Tensor<3> = x.clone().unsqueeze_dim(2);
    vectors.clone().matmul(x)
}

/// `sum_i weights_i vectors_i` over the first `used` vectors of every sample.
///
/// # Shapes
///
/// - vectors: `[batch, slots, dim]`, zero behind the first `used`
/// - weights: `[batch, slots, 1]`
/// - output: `[batch, dim]`
pub fn combine(vectors: &Tensor<3>, used: usize, weights: &Tensor<3>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if let (Some(values), Some(weights)) = (Host::of(vectors), Host::of(weights)) {
        let [batch, slots, dim] = vectors.dims();
        let out = solver::combine(values.values(), weights.values(), [slots, dim], used);
        return crate::flex::tensor(out, [batch, dim]);
    }
    let _ = used;
    let sum = vectors.clone().swap_dims(1, 2).matmul(weights.clone());
    sum.squeeze_dim::<2>(2)
}

/// The sum of the squares of every row.
///
/// # Shapes
///
/// - x: `[batch, dim]`
/// - output: `[batch, 1]`
pub fn row_squares(x: &Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if let Some(values) = Host::of(x) {
        let [batch, dim] = x.dims();
        return crate::flex::tensor(solver::squares(values.values(), dim), [batch, 1]);
    }
    x.clone().square().sum_dim(1)
}

/// A step of Broyden's method, for every sample at once.
///
/// With `B = -I + sum_i u_i v_i^T` and the differences `dz`, `dg` of the points and their
/// residuals, the new term is `v = B^T dz` (good) or `dg` (bad), `u = (dz - B dg) / (v . dg)`, or
/// zero where that denominator vanishes beside `|v| |dg|`; the next point is `z - B g`.
#[derive(Debug)]
pub struct BroydenStep<'a> {
    /// The points before and now, `[batch, dim]` each.
    pub z: [&'a Tensor<2>; 2],
    /// Their residuals `f(z) - z`.
    pub residual: [&'a Tensor<2>; 2],
    /// The terms in use; the new one goes behind them.
    pub used: usize,
    /// Whether the update is the good one.
    pub good: bool,
}

impl BroydenStep<'_> {
    /// Whether there is a kernel for tensors like this one: on the CPU backend, f32 that nothing
    /// differentiates.
    pub fn is_supported(like: &Tensor<2>) -> bool {
        supported(like)
    }

    /// Writes the new term behind those in use, in place where nobody else holds the memory, and
    /// returns the terms with the next point.
    ///
    /// # Shapes
    ///
    /// - u, v: `[batch, slots, dim]` with a slot free
    /// - next point: `[batch, dim]`
    ///
    /// # Panics
    ///
    /// If [`is_supported`](Self::is_supported) says no.
    pub fn run(self, terms: [Tensor<3>; 2]) -> ([Tensor<3>; 2], Tensor<2>) {
        #[cfg(feature = "flex")]
        {
            let [batch, slots, dim] = terms[0].dims();
            let [z0, z] = self.z.map(host);
            let [g0, g] = self.residual.map(host);
            let [mut u, mut v] = terms.map(crate::flex::HostMut::of);
            let step = solver::BroydenStep {
                z: [z0.values(), z.values()],
                residual: [g0.values(), g.values()],
                u: u.values(),
                v: v.values(),
                slots,
                used: self.used,
                dim,
                good: self.good,
            };
            let next = step.run();
            let next = crate::flex::tensor(next, [batch, dim]);
            ([u.tensor(), v.tensor()], next)
        }
        #[cfg(not(feature = "flex"))]
        {
            let _ = terms;
            unreachable!("without a kernel nothing is supported")
        }
    }
}

/// The window of Anderson's method of type II.
#[derive(Debug)]
pub struct AndersonWindow {
    /// Residuals, each divided by its size, `[batch, slots, dim]`.
    pub residuals: Tensor<3>,
    /// Points with their mixed residual, `[batch, slots, dim]`.
    pub points: Tensor<3>,
    /// Inner products of the divided residuals, `[batch, m, m]`.
    pub products: Tensor<3>,
    /// The sizes of the residuals, `[batch, m, 1]`.
    pub sizes: Tensor<3>,
    /// 1 for the slots that a sample may use, else 0, `[batch, m, 1]`.
    pub valid: Tensor<3>,
}

/// A step of Anderson's method of type II, for every sample at once.
#[derive(Debug)]
pub struct AndersonStep<'a> {
    /// `[batch, dim]`
    pub z: &'a Tensor<2>,
    /// `f(z)`
    pub fz: &'a Tensor<2>,
    /// `f(z) - z`
    pub residual: &'a Tensor<2>,
    /// Where the new entry goes.
    pub slot: usize,
    /// Slots in use, the new one included.
    pub used: usize,
    /// Weight of `f(z)` against `z`.
    pub mixing: f64,
    /// Tikhonov term.
    pub regularization: f64,
    /// Whether that is relative to the squared residuals, else in the units of the state squared.
    pub relative: bool,
    /// The largest sum of absolute weights that is trusted; beyond it, a plain step and a fresh
    /// window.
    pub max_weight: f64,
}

impl AndersonStep<'_> {
    /// Whether there is a kernel for tensors like this one: on the CPU backend, f32 that nothing
    /// differentiates.
    pub fn is_supported(like: &Tensor<2>) -> bool {
        supported(like)
    }

    /// Takes the point into the window, in place where nobody else holds the memory, and returns
    /// the window with the next point, `[batch, dim]`.
    ///
    /// # Panics
    ///
    /// If [`is_supported`](Self::is_supported) says no.
    pub fn run(self, window: AndersonWindow) -> (AndersonWindow, Tensor<2>) {
        #[cfg(feature = "flex")]
        {
            use crate::flex::HostMut;
            let [batch, slots, dim] = window.points.dims();
            let [_, m, _] = window.products.dims();
            let [z, fz, residual] = [self.z, self.fz, self.residual].map(host);
            let mut residuals = HostMut::of(window.residuals);
            let mut points = HostMut::of(window.points);
            let mut products = HostMut::of(window.products);
            let mut sizes = HostMut::of(window.sizes);
            let mut valid = HostMut::of(window.valid);
            let step = solver::AndersonStep {
                z: z.values(),
                fz: fz.values(),
                residual: residual.values(),
                residuals: residuals.values(),
                points: points.values(),
                products: products.values(),
                sizes: sizes.values(),
                valid: valid.values(),
                slot: self.slot,
                used: self.used,
                slots,
                m,
                dim,
                rules: solver::AndersonRules {
                    mixing: self.mixing as f32,
                    regularization: self.regularization,
                    relative: self.relative,
                    max_weight: self.max_weight,
                },
            };
            let next = crate::flex::tensor(step.run(), [batch, dim]);
            let window = AndersonWindow {
                residuals: residuals.tensor(),
                points: points.tensor(),
                products: products.tensor(),
                sizes: sizes.tensor(),
                valid: valid.tensor(),
            };
            (window, next)
        }
        #[cfg(not(feature = "flex"))]
        {
            let _ = window;
            unreachable!("without a kernel nothing is supported")
        }
    }
}

fn supported(like: &Tensor<2>) -> bool {
    #[cfg(feature = "flex")]
    return Host::of(like).is_some();
    #[cfg(not(feature = "flex"))]
    {
        let _ = like;
        false
    }
}

#[cfg(feature = "flex")]
fn host(tensor: &Tensor<2>) -> Host {
    Host::of(tensor).expect("all tensors of a solve are of one type, on one device, and untracked")
}
