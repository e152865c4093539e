//! What stays constant during a solve.

use burn::tensor::{Bool, Int, Tensor};

/// The constant inputs of a cell during one solve: the injected input, memories, normalised
/// weights, dropout masks.
///
/// Tensors, `Option`s, `Vec`s, arrays and tuples of contexts are contexts. A struct lists its
/// tensors once:
///
/// ```
/// use burn::tensor::Tensor;
/// use deq_core::{CellContext, TensorMap};
///
/// #[derive(Clone)]
/// struct Inputs {
///     image: Tensor<4>,
///     mask: Option<Tensor<4>>,
///     temperature: f64,
/// }
///
/// impl CellContext for Inputs {
///     fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
///         Self {
///             image: self.image.map_tensors(map),
///             mask: self.mask.map_tensors(map),
///             temperature: self.temperature,
///         }
///     }
/// }
/// ```
pub trait CellContext: Clone + Send + Sync + 'static {
    /// Rebuilds the context with every tensor replaced by what `map` makes of it, always in the
    /// same order.
    ///
    /// A tensor that is left out receives no gradient, but from the strategies that leave their
    /// evaluations to the tape (phantom and unrolled without stored states), and must not live on
    /// an autodiff device.
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self;

    /// The same values on the plain device.
    ///
    /// Solves run on this copy, so that they record no tape, and the backward hook's nested
    /// graph must share no tracked tensor with the outer one.
    fn without_autodiff(&self) -> Self {
        self.map_tensors(&mut Detach)
    }

    /// Whether a float tensor of the context lives on an autodiff device.
    fn is_autodiff(&self) -> bool {
        let mut found = AnyAutodiff(false);
        let _ = self.map_tensors(&mut found);
        found.0
    }
}

/// A function of tensors of any rank, for [`CellContext::map_tensors`].
pub trait TensorMap {
    /// What takes the place of a float tensor.
    fn float<const D: usize>(&mut self, tensor: &Tensor<D>) -> Tensor<D>;

    /// What takes the place of an integer tensor. Default: itself.
    fn int<const D: usize>(&mut self, tensor: &Tensor<D, Int>) -> Tensor<D, Int> {
        tensor.clone()
    }

    /// What takes the place of a boolean tensor. Default: itself.
    fn bool<const D: usize>(&mut self, tensor: &Tensor<D, Bool>) -> Tensor<D, Bool> {
        tensor.clone()
    }

    /// Whether every tensor keeps its values and its type, so that what a context has computed from
    /// them may serve again: only what is on no tape and lets no gradient through, such as the
    /// packed copy of a weight beside the weight itself. Default: no.
    fn keeps_values(&self) -> bool {
        false
    }
}

struct Detach;

impl TensorMap for Detach {
    fn float<const D: usize>(&mut self, tensor: &Tensor<D>) -> Tensor<D> {
        tensor.clone().without_autodiff()
    }

    fn int<const D: usize>(&mut self, tensor: &Tensor<D, Int>) -> Tensor<D, Int> {
        tensor.clone().without_autodiff()
    }

    fn bool<const D: usize>(&mut self, tensor: &Tensor<D, Bool>) -> Tensor<D, Bool> {
        tensor.clone().without_autodiff()
    }

    fn keeps_values(&self) -> bool {
        true
    }
}

struct AnyAutodiff(bool);

impl TensorMap for AnyAutodiff {
    fn float<const D: usize>(&mut self, tensor: &Tensor<D>) -> Tensor<D> {
        self.0 |= tensor.is_autodiff();
        tensor.clone()
    }
}

impl CellContext for () {
    fn map_tensors<M: TensorMap>(&self, _map: &mut M) -> Self {}
}

impl<const D: usize> CellContext for Tensor<D> {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        map.float(self)
    }
}

impl<const D: usize> CellContext for Tensor<D, Int> {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        map.int(self)
    }
}

impl<const D: usize> CellContext for Tensor<D, Bool> {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        map.bool(self)
    }
}

impl<T: CellContext> CellContext for Option<T> {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        self.as_ref().map(|inner| inner.map_tensors(map))
    }
}

impl<T: CellContext> CellContext for Vec<T> {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        self.iter().map(|inner| inner.map_tensors(map)).collect()
    }
}

impl<T: CellContext, const N: usize> CellContext for [T; N] {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        self.each_ref().map(|inner| inner.map_tensors(map))
    }
}

macro_rules! tuple_context {
    ($($part:ident $index:tt),+) => {
        impl<$($part: CellContext),+> CellContext for ($($part,)+) {
            fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
                ($(self.$index.map_tensors(map),)+)
            }
        }
    };
}

tuple_context!(A 0, B 1);
tuple_context!(A 0, B 1, C 2);
tuple_context!(A 0, B 1, C 2, D 3);
