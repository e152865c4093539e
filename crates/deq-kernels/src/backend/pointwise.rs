//! What is done to every number of maps.

use burn::backend::Backend;
use burn::backend::backend_extension;
use burn::backend::tensor::FloatTensor;
#[cfg(feature = "_gpu")]
use burn::tensor::Shape;

#[backend_extension(
    Autodiff: cfg(feature = "autodiff"),
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "_gpu"),
    Fusion: cfg(feature = "_gpu")
)]
pub(crate) trait PointwiseBackend: Backend {
    /// `d` where `gate`, a constant, is above 0, else 0.
    #[fusion(meta = |d, _| d.clone())]
    fn pass_gate(d: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self>;

    #[fusion(meta = |to, _, _| to.clone())]
    fn add_upsampled(
        to: FloatTensor<Self>,
        x: FloatTensor<Self>,
        factor: usize,
    ) -> FloatTensor<Self>;

    #[fusion(meta = |x, factor| coarser(x, *factor))]
    fn sum_squares(x: FloatTensor<Self>, factor: usize) -> FloatTensor<Self>;
}

#[cfg(feature = "_gpu")]
type Spec = burn::backend::fusion::custom::TensorSpec;

#[cfg(feature = "_gpu")]
fn coarser(x: &Spec, factor: usize) -> Spec {
    let [batch, channels, height, width] = x.shape.dims();
    let shape = [batch, channels, height / factor, width / factor];
    Spec::new(Shape::new(shape), x.dtype)
}
