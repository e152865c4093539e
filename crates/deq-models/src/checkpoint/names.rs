//! Which tensor of the original program is which parameter here.

use burn::tensor::TensorData;

/// How a tensor of the original lies beside ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The same shape, the same order.
    Same,
    /// A matrix: `[output, input]` there, followed by so many axes of size 1 if it is a convolution
    /// of width 1; `[input, output]` here.
    Matrix {
        /// Axes of size 1 behind the matrix.
        trailing: usize,
    },
    /// Lengths of weight-normalised rows: `[output, 1, ...]` with so many further axes of size 1
    /// there; `[1, output]` here.
    Gains {
        /// Axes of size 1 behind the first.
        trailing: usize,
    },
}

impl Layout {
    /// The original's shape of a tensor of shape `ours`.
    pub fn original_shape(&self, ours: &[usize]) -> Vec<usize> {
        match *self {
            Layout::Same => ours.to_vec(),
            Layout::Matrix { trailing } => {
                let mut shape: Vec<usize> = ours.iter().rev().copied().collect();
                shape.resize(ours.len() + trailing, 1);
                shape
            }
            Layout::Gains { trailing } => {
                let mut shape = vec![ours.iter().product()];
                shape.resize(1 + trailing, 1);
                shape
            }
        }
    }

    /// Our tensor as the original has it.
    pub fn to_original(&self, ours: TensorData) -> TensorData {
        let shape = self.original_shape(ours.shape());
        reshaped(self.reordered(ours), shape)
    }

    /// The original's tensor as ours, of shape `shape`.
    ///
    /// # Panics
    ///
    /// If the number of elements differs.
    pub fn to_ours(&self, original: TensorData, shape: &[usize]) -> TensorData {
        let original = match self {
            // Axes of size 1 say nothing about the order.
            Layout::Matrix { .. } => reshaped(original, shape.iter().rev().copied().collect()),
            _ => original,
        };
        reshaped(self.reordered(original), shape.to_vec())
    }

    /// A transposed matrix, or the data as they are.
    fn reordered(&self, data: TensorData) -> TensorData {
        let (Layout::Matrix { .. }, [rows, columns]) = (self, data.shape().as_slice()) else {
            return data;
        };
        let (rows, columns) = (*rows, *columns);
        let size = data.dtype().size();
        let bytes = data.as_bytes();
        let mut turned = Vec::with_capacity(bytes.len());
        for column in 0..columns {
            for row in 0..rows {
                let at = (row * columns + column) * size;
                turned.extend_from_slice(&bytes[at..at + size]);
            }
        }
        TensorData::from_bytes_vec(turned, vec![columns, rows], data.dtype())
    }
}

fn reshaped(data: TensorData, shape: Vec<usize>) -> TensorData {
    let dtype = data.dtype();
    TensorData::from_bytes(data.into_bytes(), shape, dtype)
}

/// Where the numbers of a tensor of the original come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A parameter of the module.
    Parameter {
        /// Its path in the module, such as `cell.attention.qkv.weight`.
        path: String,
        /// How it lies there.
        layout: Layout,
    },
    /// A constant that we compute where it is needed.
    Constant(Vec<f64>),
}

/// A tensor in a state dict of the original program.
#[derive(Clone, Debug, PartialEq)]
pub struct OriginalTensor {
    /// Its name there.
    pub name: String,
    /// What it is here.
    pub source: Source,
}

impl OriginalTensor {
    /// The parameter at `path`, under one of its names.
    pub fn parameter(name: impl Into<String>, path: impl Into<String>, layout: Layout) -> Self {
        Self {
            name: name.into(),
            source: Source::Parameter {
                path: path.into(),
                layout,
            },
        }
    }
}

/// A model that knows the names of the original program.
pub trait OriginalNames {
    /// Every tensor of the original's state dict, in its order. A parameter that the original
    /// stores under several names is listed with each of them.
    fn original_tensors(&self) -> Vec<OriginalTensor>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix() -> TensorData {
        TensorData::new(vec![1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])
    }

    #[test]
    fn a_matrix_is_transposed_and_comes_back() {
        let layout = Layout::Matrix { trailing: 1 };
        let there = layout.to_original(matrix());
        assert_eq!(there.shape().as_slice(), [3, 2, 1]);
        assert_eq!(
            there.iter::<f32>().collect::<Vec<_>>(),
            [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]
        );
        assert_eq!(layout.to_ours(there, &[2, 3]), matrix());
    }

    #[test]
    fn gains_and_equal_tensors_keep_their_order() {
        let gains = TensorData::new(vec![1.0_f64, 2.0, 3.0], [1, 3]);
        let layout = Layout::Gains { trailing: 2 };
        let there = layout.to_original(gains.clone());
        assert_eq!(there.shape().as_slice(), [3, 1, 1]);
        assert_eq!(layout.to_ours(there, &[1, 3]), gains);
        assert_eq!(Layout::Same.to_original(matrix()), matrix());
    }
}
