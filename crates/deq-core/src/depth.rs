//! How often a cell is applied.

use crate::cell::EquilibriumCell;
use crate::deq::Deq;
use crate::equilibrium::{Equilibrium, unroll};

/// How deep a model is that is built around a cell.
///
/// ```
/// # use burn::module::{Module, Param};
/// # use burn::tensor::{Device, Tensor};
/// # use deq_core::{Depth, DeqConfig, EquilibriumCell};
/// # #[derive(Module, Debug)]
/// # struct Cell { w: Param<Tensor<2>> }
/// # impl EquilibriumCell for Cell {
/// #     type State = Tensor<2>;
/// #     type Context = Tensor<2>;
/// #     fn forward(&self, z: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
/// #         (z.matmul(self.w.val()) + x.clone()).tanh()
/// #     }
/// # }
/// # let device = Device::flex();
/// # let cell = Cell { w: Param::from_tensor(Tensor::full([4, 4], 0.1, &device)) };
/// # let x = Tensor::<2>::ones([2, 4], &device);
/// let deq = DeqConfig::new().build()?;
/// // The same model as its first few steps, for pre-training, and at its equilibrium.
/// let steps = Depth::Unrolled(3).reach(&cell, &x, x.zeros_like());
/// let equilibrium = Depth::Equilibrium(&deq).reach(&cell, &x, x.zeros_like());
/// assert_eq!(steps.nfe, 3);
/// assert!(steps.solve.is_none() && equilibrium.solve.is_some());
/// # Ok::<(), deq_core::DeqError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub enum Depth<'a> {
    /// Infinitely: the equilibrium found by a layer.
    Equilibrium(&'a Deq),
    /// This many applications of the cell: pre-training, or a weight-tied explicit network.
    Unrolled(usize),
}

impl Depth<'_> {
    /// Goes from `z0` to where this depth ends.
    ///
    /// # Panics
    ///
    /// As [`Deq::forward`] and [`unroll`].
    pub fn reach<C: EquilibriumCell>(
        self,
        cell: &C,
        context: &C::Context,
        z0: C::State,
    ) -> Equilibrium<C::State> {
        match self {
            Depth::Equilibrium(deq) => deq.forward(cell, context, z0),
            Depth::Unrolled(steps) => unroll(cell, context, z0, steps),
        }
    }
}
