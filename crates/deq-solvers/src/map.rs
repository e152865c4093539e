//! The map being solved, and the counted access to it.

use burn::tensor::Tensor;

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
}

impl<F: FnMut(Tensor<2>) -> Tensor<2>> FixedPointMap for F {
    fn call(&mut self, z: Tensor<2>) -> Tensor<2> {
        self(z)
    }
}

/// A point and its image `fz = f(z)`; the residual `fz - z` costs nothing extra.
///
/// # Shapes
///
/// Both `[batch, dim]`.
#[derive(Clone, Debug)]
pub struct Iterate {
    /// The point.
    pub z: Tensor<2>,
    /// Its image under the map.
    pub fz: Tensor<2>,
}

impl Iterate {
    /// The residual `f(z) - z`, `[batch, dim]`.
    pub fn residual(&self) -> Tensor<2> {
        self.fz.clone() - self.z.clone()
    }
}
