//! States of any shape as rows of `[batch, dim]`.

use crate::context::{CellContext, TensorMap};
use burn::tensor::{Bool, Int, Tensor};

/// What reaches equilibrium: a float tensor of any rank, or several.
///
/// Tensors are states, and so are tuples, arrays and `Vec`s of states. The first axis of every
/// tensor is the batch; the tensors of a state are its *parts*, and have the same batch size,
/// device and float type. A struct becomes a state by [`impl_state!`](crate::impl_state), which
/// lists its parts, or by hand: everything a state needs follows from [`CellContext::map_tensors`].
///
/// ```
/// use burn::tensor::Tensor;
/// use deq_core::{CellContext, State, TensorMap};
///
/// #[derive(Clone)]
/// struct Pyramid<const N: usize> {
///     fine: Tensor<4>,
///     coarse: [Tensor<4>; N],
/// }
///
/// impl<const N: usize> CellContext for Pyramid<N> {
///     fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
///         Self {
///             fine: self.fine.map_tensors(map),
///             coarse: self.coarse.map_tensors(map),
///         }
///     }
/// }
///
/// impl<const N: usize> State for Pyramid<N> {}
/// ```
///
/// Fields that are not float tensors keep the value that they have in the start of a solve.
pub trait State: CellContext {}

impl<const D: usize> State for Tensor<D> {}

impl<S: State> State for Vec<S> {}

impl<S: State, const N: usize> State for [S; N] {}

impl<A: State, B: State> State for (A, B) {}

impl<A: State, B: State, C: State> State for (A, B, C) {}

impl<A: State, B: State, C: State, D: State> State for (A, B, C, D) {}

/// Makes a [`State`] of a struct whose fields are states.
///
/// ```
/// use burn::tensor::Tensor;
///
/// #[derive(Clone)]
/// struct Pyramid {
///     fine: Tensor<4>,
///     coarse: Tensor<4>,
/// }
///
/// deq_core::impl_state!(Pyramid { fine, coarse });
/// ```
#[macro_export]
macro_rules! impl_state {
    ($name:ident { $($part:ident),+ $(,)? }) => {
        impl $crate::CellContext for $name {
            fn map_tensors<M: $crate::TensorMap>(&self, map: &mut M) -> Self {
                Self {
                    $($part: $crate::CellContext::map_tensors(&self.$part, map)),+
                }
            }
        }

        impl $crate::State for $name {}
    };
}

/// The shapes of the parts of a state, which take it to the rows `[batch, dim]` of the solvers and
/// back.
///
/// A row holds the parts of one sample one after the other, each row-major. Both ways are free for
/// a state of one `Tensor<2>`, a reshape for one tensor of another rank, and a copy for several.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use deq_core::StateLayout;
///
/// let device = Device::flex();
/// let fine = Tensor::<4>::ones([3, 8, 4, 4], &device);
/// let coarse = Tensor::<4>::zeros([3, 16, 2, 2], &device);
///
/// let z = (fine, coarse);
/// let layout = StateLayout::of(&z);
/// let rows = layout.flatten(z);
/// assert_eq!(rows.dims(), [3, 8 * 16 + 16 * 4]);
/// assert_eq!(layout.unflatten(rows).1.dims(), [3, 16, 2, 2]);
/// ```
#[derive(Clone, Debug)]
pub struct StateLayout<S> {
    /// A state whose tensors stand for their places only; each holds one number.
    outline: S,
    /// Of every part, the batch axis left out.
    shapes: Vec<Vec<usize>>,
}

impl<S: State> StateLayout<S> {
    /// The layout of `state`, whose values are not read.
    ///
    /// # Panics
    ///
    /// If the state has no part, or parts of different batch sizes.
    pub fn of(state: &S) -> Self {
        let mut survey = Survey::default();
        let _ = state.map_tensors(&mut survey);
        assert!(!survey.shapes.is_empty(), "a state needs at least one part");
        Self {
            outline: state.map_tensors(&mut Outline),
            shapes: survey.shapes,
        }
    }

    /// The shape of every part, without the batch axis.
    pub fn shapes(&self) -> &[Vec<usize>] {
        &self.shapes
    }

    /// The numbers per sample over all parts.
    pub fn dim(&self) -> usize {
        self.shapes.iter().map(|shape| size(shape)).sum()
    }

    /// The state as rows.
    ///
    /// # Shapes
    ///
    /// - output: `[batch, dim]`
    ///
    /// # Panics
    ///
    /// If the number of parts or the shape of one differs from the layout's; the message names the
    /// part.
    pub fn flatten(&self, state: S) -> Tensor<2> {
        self.check(&state);
        let mut rows = Rows(Vec::with_capacity(self.shapes.len()));
        let _ = state.map_tensors(&mut rows);
        let mut parts = rows.0;
        match parts.len() {
            1 => parts.swap_remove(0),
            _ => Tensor::cat(parts, 1),
        }
    }

    /// # Panics
    ///
    /// If `state` has another number of parts, or one of another shape.
    pub(crate) fn check(&self, state: &S) {
        let mut survey = Survey::default();
        let _ = state.map_tensors(&mut survey);
        assert_eq!(
            survey.shapes.len(),
            self.shapes.len(),
            "the state has another number of parts than at the start"
        );
        for (index, (now, before)) in survey.shapes.iter().zip(&self.shapes).enumerate() {
            assert_eq!(
                now, before,
                "part {index} of the state has the shape {now:?} per sample, but had {before:?} at \
                 the start: a cell must keep the shapes of its state"
            );
        }
    }

    /// Rows as a state. Their number is free.
    ///
    /// # Shapes
    ///
    /// - rows: `[batch, dim]`
    ///
    /// # Panics
    ///
    /// If the rows have another length than the layout's.
    pub fn unflatten(&self, rows: Tensor<2>) -> S {
        let [_, dim] = rows.dims();
        assert_eq!(
            dim,
            self.dim(),
            "the rows have {dim} columns instead of {}",
            self.dim()
        );
        self.outline.map_tensors(&mut Parts {
            shapes: self.shapes.iter(),
            left: Some(rows),
            start: 0,
        })
    }

    /// What `f` makes of rows.
    ///
    /// # Shapes
    ///
    /// - rows, output: `[batch, dim]`
    ///
    /// # Panics
    ///
    /// If `f` changes the shape of a part.
    pub fn apply(&self, rows: Tensor<2>, f: impl FnOnce(S) -> S) -> Tensor<2> {
        self.flatten(f(self.unflatten(rows)))
    }
}

/// Collects shapes.
#[derive(Default)]
struct Survey {
    batch: Option<usize>,
    shapes: Vec<Vec<usize>>,
}

impl TensorMap for Survey {
    fn float<const D: usize>(&mut self, part: &Tensor<D>) -> Tensor<D> {
        let dims = part.dims();
        let index = self.shapes.len();
        let batch = *self.batch.get_or_insert(dims[0]);
        assert_eq!(
            dims[0], batch,
            "part {index} of the state has a batch of {}, part 0 one of {batch}",
            dims[0]
        );
        self.shapes.push(dims[1..].to_vec());
        part.clone()
    }
}

/// Makes the outline.
struct Outline;

impl TensorMap for Outline {
    fn float<const D: usize>(&mut self, part: &Tensor<D>) -> Tensor<D> {
        Tensor::empty([1; D], &part.device().inner())
    }

    fn int<const D: usize>(&mut self, tensor: &Tensor<D, Int>) -> Tensor<D, Int> {
        tensor.clone().without_autodiff()
    }

    fn bool<const D: usize>(&mut self, tensor: &Tensor<D, Bool>) -> Tensor<D, Bool> {
        tensor.clone().without_autodiff()
    }
}

/// Collects the parts as rows.
struct Rows(Vec<Tensor<2>>);

impl TensorMap for Rows {
    fn float<const D: usize>(&mut self, part: &Tensor<D>) -> Tensor<D> {
        let dims = part.dims();
        let width = size(&dims[1..]);
        self.0.push(shaped(part.clone(), [dims[0], width]));
        part.clone()
    }
}

/// Cuts rows into parts.
struct Parts<'a> {
    shapes: std::slice::Iter<'a, Vec<usize>>,
    /// The rows, until the last part has been cut.
    left: Option<Tensor<2>>,
    start: usize,
}

impl TensorMap for Parts<'_> {
    fn float<const D: usize>(&mut self, _: &Tensor<D>) -> Tensor<D> {
        let (Some(shape), Some(rows)) = (self.shapes.next(), self.left.take()) else {
            unreachable!("the outline has the parts that the shapes were read from")
        };
        let [batch, dim] = rows.dims();
        let (start, width) = (self.start, size(shape));
        self.start += width;
        if self.shapes.len() > 0 {
            self.left = Some(rows.clone());
        }
        let part = match width == dim {
            true => rows,
            false => rows.narrow(1, start, width),
        };
        let mut full = [batch; D];
        full[1..].copy_from_slice(shape);
        shaped(part, full)
    }
}

/// A reshape, which is no operation between equal ranks: the shapes here are then equal too.
fn shaped<const A: usize, const B: usize>(tensor: Tensor<A>, shape: [usize; B]) -> Tensor<B> {
    match A == B {
        true => Tensor::from_dispatch(tensor.into_dispatch()),
        false => tensor.reshape(shape),
    }
}

fn size(shape: &[usize]) -> usize {
    shape.iter().product()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Int};

    #[test]
    fn parts_of_any_rank_survive_the_way_to_rows_and_back() {
        let device = Device::flex();
        // Not random: the generator of the device is that of all tests of the process.
        let numbers = Tensor::<1, Int>::arange(0..55, &device).float();
        let a = numbers.clone().narrow(0, 0, 30).reshape([5, 2, 3]);
        let b = numbers.clone().narrow(0, 30, 5);
        let c = numbers.narrow(0, 35, 20).reshape([5, 1, 2, 2]);
        let state = (a.clone(), vec![c.clone()], [b.clone()], b.clone());
        let layout = StateLayout::of(&state);
        assert_eq!(layout.dim(), 12);
        assert_eq!(layout.shapes(), [vec![2, 3], vec![1, 2, 2], vec![], vec![]]);
        let rows = layout.flatten(state);
        assert_eq!(rows.dims(), [5, 12]);
        let columns = rows.clone().narrow(1, 6, 4).reshape([5, 1, 2, 2]);
        assert_eq!(columns.into_data(), c.to_data());
        let back = layout.unflatten(rows.clone());
        assert_eq!(back.0.into_data(), a.into_data());
        assert_eq!(back.1[0].to_data(), c.into_data());
        assert_eq!(back.2[0].to_data(), b.to_data());
        assert_eq!(back.3.into_data(), b.into_data());
        // Other rows than those the layout was made with.
        assert_eq!(layout.unflatten(rows.narrow(0, 0, 2)).0.dims(), [2, 2, 3]);
    }

    #[test]
    #[should_panic(
        expected = "part 1 of the state has the shape [3, 2] per sample, but had [2, 3]"
    )]
    fn a_part_of_another_shape_is_named() {
        let device = Device::flex();
        let vector = || Tensor::<2>::zeros([1, 4], &device);
        let layout = StateLayout::of(&(vector(), Tensor::<3>::zeros([1, 2, 3], &device)));
        layout.flatten((vector(), Tensor::<3>::zeros([1, 3, 2], &device)));
    }

    #[test]
    #[should_panic(expected = "part 1 of the state has a batch of 2, part 0 one of 1")]
    fn parts_of_different_batches_are_refused() {
        let device = Device::flex();
        let zeros = |batch| Tensor::<2>::zeros([batch, 4], &device);
        StateLayout::of(&[zeros(1), zeros(2)]);
    }

    #[test]
    #[should_panic(expected = "another number of parts")]
    fn a_lost_part_is_noticed() {
        let part = || Tensor::<2>::zeros([1, 4], &Device::flex());
        StateLayout::of(&vec![part(), part()]).flatten(vec![part()]);
    }
}
