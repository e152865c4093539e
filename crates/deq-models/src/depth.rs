//! How often the cell is applied.

use deq_core::{Deq, Equilibrium, EquilibriumCell, unroll};

/// How deep a model is.
#[derive(Clone, Copy, Debug)]
pub enum Depth<'a> {
    /// Infinitely: the equilibrium found by a layer.
    Equilibrium(&'a Deq),
    /// This many applications of the cell: pre-training, or a weight-tied explicit network.
    Unrolled(usize),
}

impl Depth<'_> {
    /// Goes from `z0` to where this depth ends.
    pub(crate) fn reach<C: EquilibriumCell>(
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
