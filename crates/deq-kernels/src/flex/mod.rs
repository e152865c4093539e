//! The numbers of tensors on Burn's CPU backend, and the operations of [`backend`](crate::backend)
//! on them.

mod norm;
mod pointwise;
mod weight_norm;

use burn::backend::tensor::FloatTensor;
use burn::backend::{BackendTensor, DispatchKindConversion, DispatchTensor, Flex, TensorMetadata};
use burn::tensor::{DType, Shape, Tensor, TensorData};

/// A tensor of f32 on Flex that nothing differentiates, its numbers in order. One that kernels are
/// called with has numbers: what there is to say of others, Burn's operations say.
#[derive(Debug)]
pub(crate) struct Host(FloatTensor<Flex>);

impl Host {
    /// `None` if the tensor is of another type, on another backend, tracked, or empty.
    pub(crate) fn of<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        primitive_of(tensor).map(Self::in_order)
    }

    /// Whether it is a tensor for [`Self::of`].
    pub(crate) fn takes<const D: usize>(tensor: &Tensor<D>) -> bool {
        primitive_of(tensor).is_some()
    }

    pub(crate) fn in_order(tensor: FloatTensor<Flex>) -> Self {
        if tensor.as_slice::<f32>().is_some() {
            return Self(tensor);
        }
        Self(tensor.to_contiguous())
    }

    fn shape(&self) -> Shape {
        self.0.shape()
    }

    /// # Panics
    ///
    /// Never: only tensors of f32 are taken, and brought into order.
    pub(crate) fn values(&self) -> &[f32] {
        self.0.as_slice().expect("the numbers are f32 and in order")
    }
}

fn primitive_of<const D: usize>(tensor: &Tensor<D>) -> Option<FloatTensor<Flex>> {
    if tensor.dtype() != DType::F32 || tensor.shape().num_elements() == 0 {
        return None;
    }
    let tensor = tensor.clone().into_dispatch();
    match <DispatchTensor as DispatchKindConversion<Flex>>::try_into_backend(tensor) {
        Ok(BackendTensor::Float(tensor)) => Some(tensor),
        _ => None,
    }
}

/// The numbers in order if they are read; else the tensor is let go.
fn in_order_if(is_read: bool, tensor: FloatTensor<Flex>) -> Option<Host> {
    is_read.then(|| Host::in_order(tensor))
}

/// Memory for a result in the shape of a tensor: that of the tensor, with its numbers, where nobody
/// else holds it; else other memory, and the tensor.
fn room(tensor: FloatTensor<Flex>) -> (FloatTensor<Flex>, Option<Host>) {
    let Host(tensor) = Host::in_order(tensor);
    if tensor.is_unique() && is_whole(&tensor) {
        return (tensor, None);
    }
    let zeros = vec![0.0; tensor.shape().num_elements()];
    (primitive(zeros, tensor.shape()), Some(Host(tensor)))
}

/// The tensor with its numbers in order and all of its memory, which may be that of others too.
fn own(tensor: FloatTensor<Flex>) -> FloatTensor<Flex> {
    match is_whole(&tensor) {
        true => tensor,
        false => tensor.to_contiguous(),
    }
}

fn is_whole(tensor: &FloatTensor<Flex>) -> bool {
    tensor.as_slice::<f32>().map(<[f32]>::len) == Some(tensor.storage::<f32>().len())
}

/// The numbers of what [`own`] and [`room`] give, to be changed: in place where nobody else holds
/// them.
fn numbers(tensor: &mut FloatTensor<Flex>) -> &mut [f32] {
    tensor.storage_mut()
}

/// A [`Host`] whose numbers may be changed, in place where nobody else holds them.
#[derive(Debug)]
pub(crate) struct HostMut<const D: usize>(FloatTensor<Flex>);

impl<const D: usize> HostMut<D> {
    /// # Panics
    ///
    /// If the tensor is not one that [`Host::of`] takes.
    pub(crate) fn of(tensor: Tensor<D>) -> Self {
        let primitive = primitive_of(&tensor);
        // So that nobody else holds the numbers.
        drop(tensor);
        Self(own(primitive.expect(
            "the tensor is f32 on the CPU backend, and untracked",
        )))
    }

    pub(crate) fn values(&mut self) -> &mut [f32] {
        numbers(&mut self.0)
    }

    pub(crate) fn tensor(self) -> Tensor<D> {
        wrap(self.0)
    }
}

pub(crate) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    wrap(primitive(values, shape))
}

/// The tensor as operations of the backend know it.
pub(crate) fn primitive(values: Vec<f32>, shape: impl Into<Shape>) -> FloatTensor<Flex> {
    FloatTensor::<Flex>::from_data(TensorData::new(values, shape.into()))
}

fn wrap<const D: usize>(tensor: FloatTensor<Flex>) -> Tensor<D> {
    Tensor::from_dispatch(
        <DispatchTensor as DispatchKindConversion<Flex>>::from_backend(BackendTensor::Float(
            tensor,
        )),
    )
}
