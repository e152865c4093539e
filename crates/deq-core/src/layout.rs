//! State tensors of any shape as rows of `[batch, dim]`.

use burn::tensor::Tensor;
use std::ops::Range;

/// The shapes of the tensors that make up the state of one sample, and their places in a row of `[batch, dim]`.
///
/// Every part is stored row-major, one after the other.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use deq_core::StateLayout;
///
/// // Two feature maps of different resolution that reach equilibrium together.
/// let layout = StateLayout::new([vec![8, 4, 4], vec![16, 2, 2]]);
/// let device = Device::flex();
/// let fine = Tensor::<4>::ones([3, 8, 4, 4], &device);
/// let coarse = Tensor::<4>::zeros([3, 16, 2, 2], &device);
///
/// let z = layout.join(vec![layout.flatten(0, fine), layout.flatten(1, coarse)]);
/// assert_eq!(z.dims(), [3, layout.dim()]);
/// assert_eq!(layout.part::<4>(&z, 1).dims(), [3, 16, 2, 2]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateLayout {
    shapes: Vec<Vec<usize>>,
}

impl StateLayout {
    /// A layout of parts with these shapes, the batch axis left out.
    pub fn new(shapes: impl IntoIterator<Item = Vec<usize>>) -> Self {
        Self {
            shapes: shapes.into_iter().collect(),
        }
    }

    /// The number of parts.
    pub fn parts(&self) -> usize {
        self.shapes.len()
    }

    /// The numbers per sample over all parts.
    pub fn dim(&self) -> usize {
        self.shapes.iter().map(|shape| size(shape)).sum()
    }

    /// The columns that part `index` occupies.
    ///
    /// # Panics
    ///
    /// If there is no such part.
    pub fn columns(&self, index: usize) -> Range<usize> {
        let start = self.shapes[..index].iter().map(|shape| size(shape)).sum();
        start..start + size(&self.shapes[index])
    }

    /// Part `index` of a state in its own shape.
    ///
    /// # Shapes
    ///
    /// - z: `[batch, dim]`
    /// - output: `[batch, ...shape of the part]`
    ///
    /// # Panics
    ///
    /// If there is no such part, if its rank is not `D - 1`, or if `z` is not `[batch, dim]`.
    pub fn part<const D: usize>(&self, z: &Tensor<2>, index: usize) -> Tensor<D> {
        let [batch, dim] = z.dims();
        assert_eq!(
            dim,
            self.dim(),
            "the state must have {} columns",
            self.dim()
        );
        let shape = self.shape::<D>(index, batch);
        let columns = self.columns(index);
        let part = if columns == (0..dim) {
            z.clone()
        } else {
            z.clone().slice([0..batch, columns])
        };
        part.reshape(shape)
    }

    /// A tensor in the shape of part `index` as rows.
    ///
    /// # Shapes
    ///
    /// - part: `[batch, ...shape of the part]`
    /// - output: `[batch, numbers in the part]`
    ///
    /// # Panics
    ///
    /// If there is no such part or `part` has another shape.
    pub fn flatten<const D: usize>(&self, index: usize, part: Tensor<D>) -> Tensor<2> {
        let dims = part.dims();
        assert_eq!(
            dims,
            self.shape::<D>(index, dims[0]),
            "part {index} of the state has another shape"
        );
        part.reshape([dims[0], size(&self.shapes[index])])
    }

    /// Flattened parts, in order, as one state.
    ///
    /// # Panics
    ///
    /// If the number of parts or their sizes do not fit the layout.
    pub fn join(&self, parts: Vec<Tensor<2>>) -> Tensor<2> {
        assert_eq!(parts.len(), self.parts(), "one tensor per part is needed");
        for (index, part) in parts.iter().enumerate() {
            assert_eq!(
                part.dims()[1],
                size(&self.shapes[index]),
                "part {index} of the state has another size"
            );
        }
        Tensor::cat(parts, 1)
    }

    fn shape<const D: usize>(&self, index: usize, batch: usize) -> [usize; D] {
        let shape = &self.shapes[index];
        assert_eq!(
            shape.len() + 1,
            D,
            "part {index} of the state has rank {} with the batch axis",
            shape.len() + 1
        );
        let mut full = [batch; D];
        full[1..].copy_from_slice(shape);
        full
    }
}

fn size(shape: &[usize]) -> usize {
    shape.iter().product()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    #[test]
    fn parts_survive_joining_and_splitting() {
        let device = Device::flex();
        let layout = StateLayout::new([vec![2, 3], vec![4], vec![1, 2, 2]]);
        assert_eq!(layout.dim(), 14);
        assert_eq!(layout.columns(1), 6..10);
        let normal = Distribution::Normal(0.0, 1.0);
        let a = Tensor::<3>::random([5, 2, 3], normal, &device);
        let b = Tensor::<2>::random([5, 4], normal, &device);
        let c = Tensor::<4>::random([5, 1, 2, 2], normal, &device);
        let z = layout.join(vec![
            layout.flatten(0, a.clone()),
            layout.flatten(1, b.clone()),
            layout.flatten(2, c.clone()),
        ]);
        assert_eq!(layout.part::<3>(&z, 0).into_data(), a.into_data());
        assert_eq!(layout.part::<2>(&z, 1).into_data(), b.into_data());
        assert_eq!(layout.part::<4>(&z, 2).into_data(), c.into_data());
    }

    #[test]
    #[should_panic(expected = "part 0 of the state has another shape")]
    fn a_part_of_another_shape_is_refused() {
        let layout = StateLayout::new([vec![2, 3]]);
        layout.flatten(0, Tensor::<3>::zeros([1, 3, 2], &Device::flex()));
    }
}
