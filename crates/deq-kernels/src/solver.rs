//! The vector work of fixed-point solvers: inner products with a history, combinations of it, whole
//! steps of Anderson's and Broyden's methods.

use crate::device::on_host;
#[cfg(feature = "_gpu")]
use crate::gpu::{
    solver::{self as gpu, SolverBackend},
    takes,
};
#[cfg(feature = "flex")]
use crate::{cpu::solver, flex::Host};
#[cfg(feature = "_gpu")]
use burn::backend::Dispatch;
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
    product(vectors.clone(), x)
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
    if !on_host(&vectors.device()) {
        let sum = (vectors.clone() * weights.clone()).sum_dim(1);
        return sum.squeeze_dim::<2>(1);
    }
    let sum = vectors.clone().swap_dims(1, 2).matmul(weights.clone());
    sum.squeeze_dim::<2>(2)
}

/// The products of matrices with a column of their own, in the type of the tensors on every device.
///
/// A product of matrices on a GPU may round what it multiplies to TF32, 11 bits, which is what
/// models can bear and what a solver near its tolerance cannot.
///
/// # Shapes
///
/// - matrices: `[batch, n, k]`
/// - columns: `[batch, k, 1]`
/// - output: `[batch, n, 1]`
pub fn product(matrices: Tensor<3>, columns: Tensor<3>) -> Tensor<3> {
    if on_host(&matrices.device()) {
        return matrices.matmul(columns);
    }
    let [batch, k, _] = columns.dims();
    (matrices * columns.reshape([batch, 1, k])).sum_dim(2)
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

/// `fz - z`, and where the device takes them in the same pass the sums of the squares of its rows
/// and of those of `fz`, `[batch, 1]` each.
///
/// # Shapes
///
/// - z, fz: `[batch, dim]`
///
/// # Panics
///
/// If they differ in shape.
pub fn residual(z: &Tensor<2>, fz: &Tensor<2>) -> (Tensor<2>, Option<[Tensor<2>; 2]>) {
    assert_eq!(
        z.dims(),
        fz.dims(),
        "a point and its value are of one shape"
    );
    #[cfg(feature = "_gpu")]
    if takes(z) && takes(fz) && gpu::fits(z, 1) {
        let [z, fz] = [z, fz].map(|x| x.clone().into_dispatch());
        let (residual, of_residual, of_fz) = Dispatch::residual_and_squares(z, fz);
        let squares = [of_residual, of_fz].map(Tensor::from_dispatch);
        return (Tensor::from_dispatch(residual), Some(squares));
    }
    (fz.clone() - z.clone(), None)
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
    /// Whether there is a kernel for tensors like this one, and so many terms: on the CPU backend
    /// or a GPU, f32 that nothing differentiates.
    pub fn is_supported(like: &Tensor<2>, terms: usize) -> bool {
        #[cfg(feature = "_gpu")]
        if takes(like) {
            return terms <= gpu::MOST_TERMS && gpu::fits(like, terms);
        }
        let _ = terms;
        on_flex(like)
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
        #[cfg(feature = "_gpu")]
        if takes(self.z[0]) {
            let [u, v] = terms.map(Tensor::into_dispatch);
            let [z0, z] = self.z.map(|x| x.clone().into_dispatch());
            let [g0, g] = self.residual.map(|x| x.clone().into_dispatch());
            let at = gpu::Move { z0, z, g0, g };
            let terms = gpu::Terms { u, v };
            let (terms, next) = Dispatch::broyden_step(terms, at, self.used, self.good);
            let terms = [terms.u, terms.v].map(Tensor::from_dispatch);
            return (terms, Tensor::from_dispatch(next));
        }
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
    /// Whether there is a kernel for tensors like this one, and a window of so many points: on the
    /// CPU backend or a GPU, f32 that nothing differentiates.
    pub fn is_supported(like: &Tensor<2>, points: usize) -> bool {
        #[cfg(feature = "_gpu")]
        if takes(like) {
            return points <= gpu::MOST_POINTS && gpu::fits(like, points);
        }
        let _ = points;
        on_flex(like)
    }

    /// Takes the point into the window, in place where nobody else holds the memory, and returns
    /// the window with the next point, `[batch, dim]`.
    ///
    /// # Panics
    ///
    /// If [`is_supported`](Self::is_supported) says no.
    pub fn run(self, window: AndersonWindow) -> (AndersonWindow, Tensor<2>) {
        #[cfg(feature = "_gpu")]
        if takes(self.z) {
            let rules = AndersonRules {
                slot: self.slot,
                used: self.used,
                mixing: self.mixing,
                regularization: self.regularization,
                relative: self.relative,
                max_weight: self.max_weight,
            };
            let window = gpu::Window {
                residuals: window.residuals.into_dispatch(),
                points: window.points.into_dispatch(),
                products: window.products.into_dispatch(),
                sizes: window.sizes.into_dispatch(),
                valid: window.valid.into_dispatch(),
            };
            let [fz, residual] = [self.fz, self.residual].map(|x| x.clone().into_dispatch());
            let (window, next) = Dispatch::anderson_step(window, fz, residual, rules);
            let window = AndersonWindow {
                residuals: Tensor::from_dispatch(window.residuals),
                points: Tensor::from_dispatch(window.points),
                products: Tensor::from_dispatch(window.products),
                sizes: Tensor::from_dispatch(window.sizes),
                valid: Tensor::from_dispatch(window.valid),
            };
            return (window, Tensor::from_dispatch(next));
        }
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

/// What a kernel for a GPU goes by.
#[cfg(feature = "_gpu")]
#[derive(Clone, Debug)]
pub(crate) struct AndersonRules {
    pub(crate) slot: usize,
    pub(crate) used: usize,
    pub(crate) mixing: f64,
    pub(crate) regularization: f64,
    pub(crate) relative: bool,
    pub(crate) max_weight: f64,
}

fn on_flex(like: &Tensor<2>) -> bool {
    #[cfg(feature = "flex")]
    return Host::takes(like);
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
