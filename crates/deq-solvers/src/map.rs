//! The map being solved, and a point with its value `f(z)`.

use burn::tensor::{Int, Tensor};
use deq_kernels::{residual, row_squares};

/// A map `f` on a batch of states whose fixed points are wanted.
///
/// Implemented for every `FnMut(Tensor<2>) -> Tensor<2>`.
pub trait FixedPointMap {
    /// Evaluates `f` on every row.
    ///
    /// # Shapes
    ///
    /// - z: `[batch, dim]`
    /// - output: `[batch, dim]`; row `i` may depend on row `i` of `z` only
    fn call(&mut self, z: Tensor<2>) -> Tensor<2>;

    /// Access to `f` on some of the rows, for maps that can do without the others. Default `None`.
    ///
    /// A solve then evaluates the samples that have not ended, and no others, so that a hard sample
    /// costs only itself.
    fn by_rows(&mut self) -> Option<&mut dyn RowMap> {
        None
    }
}

impl<F: FnMut(Tensor<2>) -> Tensor<2>> FixedPointMap for F {
    fn call(&mut self, z: Tensor<2>) -> Tensor<2> {
        self(z)
    }
}

/// A map that can be evaluated on some rows of its batch.
pub trait RowMap {
    /// Evaluates `f` on the samples `rows`.
    ///
    /// # Shapes
    ///
    /// - z: `[rows, dim]`, the states of those samples
    /// - rows: `[rows]`, their places in the batch, for whatever else `f` reads per sample
    /// - output: `[rows, dim]`
    fn call_rows(&mut self, z: Tensor<2>, rows: &Tensor<1, Int>) -> Tensor<2>;
}

/// Makes a [`FixedPointMap`] that can be evaluated by rows from a closure of the states and, if
/// only some are wanted, the rows.
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use deq_solvers::{AndersonConfig, ByRows, Solve, StopConfig};
///
/// // z = cos(s z), with a scale of its own for every sample.
/// let scale = Tensor::<2>::from_data([[0.1], [0.9]], &Device::flex());
/// let mut map = ByRows(|z: Tensor<2>, rows: Option<&Tensor<1, Int>>| {
///     let scale = match rows {
///         Some(rows) => scale.clone().select(0, rows.clone()),
///         None => scale.clone(),
///     };
///     (z * scale).cos()
/// });
/// let z0 = Tensor::zeros([2, 3], &Device::flex());
/// let solution = AndersonConfig::new().build()?.solve(&mut map, z0, &StopConfig::new().build()?);
/// assert!(solution.stats.evaluated_rows < 2 * solution.stats.nfe);
/// # Ok::<(), deq_solvers::InvalidConfig>(())
/// ```
pub struct ByRows<F>(pub F);

impl<F> FixedPointMap for ByRows<F>
where
    F: FnMut(Tensor<2>, Option<&Tensor<1, Int>>) -> Tensor<2>,
{
    fn call(&mut self, z: Tensor<2>) -> Tensor<2> {
        (self.0)(z, None)
    }

    fn by_rows(&mut self) -> Option<&mut dyn RowMap> {
        Some(self)
    }
}

impl<F> RowMap for ByRows<F>
where
    F: FnMut(Tensor<2>, Option<&Tensor<1, Int>>) -> Tensor<2>,
{
    fn call_rows(&mut self, z: Tensor<2>, rows: &Tensor<1, Int>) -> Tensor<2> {
        (self.0)(z, Some(rows))
    }
}

/// A point `z`, `f(z)` and the residual `f(z) - z`.
///
/// # Shapes
///
/// All `[batch, dim]`.
#[derive(Clone, Debug)]
pub struct Iterate {
    z: Tensor<2>,
    fz: Tensor<2>,
    residual: Tensor<2>,
    /// The squares of the rows of residual and `fz`, where they cost nothing more.
    squares: Option<[Tensor<2>; 2]>,
}

impl Iterate {
    /// A point `z` with `fz = f(z)`.
    pub fn new(z: Tensor<2>, fz: Tensor<2>) -> Self {
        let (residual, squares) = residual(&z, &fz);
        Self {
            z,
            fz,
            residual,
            squares,
        }
    }

    /// A point `z` whose residual `f(z) - z` is known by other means than an evaluation.
    pub fn with_residual(z: Tensor<2>, residual: Tensor<2>) -> Self {
        let fz = z.clone() + residual.clone();
        Self {
            z,
            fz,
            residual,
            squares: None,
        }
    }

    /// The point.
    pub fn z(&self) -> &Tensor<2> {
        &self.z
    }

    /// `f(z)`.
    pub fn fz(&self) -> &Tensor<2> {
        &self.fz
    }

    /// The residual `f(z) - z`.
    pub fn residual(&self) -> &Tensor<2> {
        &self.residual
    }

    /// The sums of the squares of the rows of the residual and of `f(z)`, `[batch, 1]` each.
    pub(crate) fn squares(&self) -> [Tensor<2>; 2] {
        let take = || [&self.residual, &self.fz].map(row_squares);
        self.squares.clone().unwrap_or_else(take)
    }
}
