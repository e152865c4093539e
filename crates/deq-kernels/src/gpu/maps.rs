//! Feature maps as they lie in memory.
//!
//! Convolutions on a GPU read and write maps whose channels lie next to one another, pixel by
//! pixel. What stands between two of them therefore takes maps as they lie and answers in the order
//! of its first argument, so that nothing is copied from one order to the other.

use super::like;
use burn::backend::TensorMetadata;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::{permute_nchw_to_nhwc, permute_nhwc_to_nchw};
use burn_cubecl::tensor::CubeTensor;

/// How far the next sample, channel and pixel are in memory.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Steps {
    pub(crate) sample: usize,
    pub(crate) channel: usize,
    pub(crate) pixel: usize,
}

/// Maps `[batch, channels, height, width]` whose pixels are at equal distances.
#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) tensor: CubeTensor,
    sample: usize,
    channel: usize,
    pixel: usize,
}

impl Maps {
    /// The maps as they lie, or a copy if the ends of their lines are padded.
    pub(crate) fn of(tensor: CubeTensor) -> Self {
        let pixel = pixel_step(&tensor);
        let tensor = match pixel {
            Some(_) => tensor,
            None => permute_nhwc_to_nchw(into_contiguous(permute_nchw_to_nhwc(tensor))),
        };
        let strides = tensor.meta.strides();
        let (sample, channel) = (strides[0], strides[1]);
        let pixel = pixel_step(&tensor).expect("the copy has no padding");
        Self {
            tensor,
            sample,
            channel,
            pixel,
        }
    }

    /// Memory for maps of that shape, in the same order.
    pub(crate) fn like(&self, [batch, channels, height, width]: [usize; 4]) -> Self {
        let tensor = match self.channels_last() {
            true => {
                let shape = [batch, height, width, channels];
                permute_nhwc_to_nchw(like(&self.tensor, shape))
            }
            false => like(&self.tensor, [batch, channels, height, width]),
        };
        Self::of(tensor)
    }

    /// Whether channels are nearer to each other than pixels.
    pub(crate) fn channels_last(&self) -> bool {
        self.channel < self.pixel
    }

    /// Whether the numbers of both lie at the same places.
    pub(crate) fn lies_as(&self, other: &Self) -> bool {
        let steps = |maps: &Self| [maps.sample, maps.channel, maps.pixel];
        steps(self) == steps(other)
    }

    pub(crate) fn shape(&self) -> [usize; 4] {
        self.tensor.shape().dims()
    }

    pub(crate) fn steps(&self) -> StepsLaunch {
        StepsLaunch::new(self.sample, self.channel, self.pixel)
    }
}

/// The one distance of all neighbouring pixels, if lines follow one another without a gap.
fn pixel_step(tensor: &CubeTensor) -> Option<usize> {
    let [_, _, height, width] = tensor.shape().dims();
    let strides = tensor.meta.strides();
    match (height, width) {
        (_, 1) => Some(strides[2]),
        (1, _) => Some(strides[3]),
        _ => (strides[2] == width * strides[3]).then_some(strides[3]),
    }
}

#[cfg(feature = "autodiff")]
pub(crate) use order::{OrderBackend, channels_last, transposed};

/// Of the weights of convolutions.
#[cfg(feature = "autodiff")]
mod order {
    use super::{into_contiguous, like, permute_nchw_to_nhwc, permute_nhwc_to_nchw};
    use burn::backend::ops::ModuleOps;
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
    use burn::tensor::ops::ConvOptions;
    use burn::tensor::{Shape, Tensor};
    use burn_cubecl::CubeBackend;
    use burn_cubecl::kernel::into_contiguous_aligned;
    use burn_cubecl::tensor::CubeTensor;

    #[backend_extension(Cube, Fusion)]
    pub(crate) trait OrderBackend: Backend {
        #[fusion(meta = |maps| maps.clone())]
        fn channels_last(maps: FloatTensor<Self>) -> FloatTensor<Self>;

        /// The same numbers in the order of the axes.
        #[fusion(meta = |maps| maps.clone())]
        fn in_order(maps: FloatTensor<Self>) -> FloatTensor<Self>;

        /// The transpose of a convolution to maps of that height and width, by what Burn tunes for
        /// cotangents of inputs: more kernels than for transposed convolutions, which read and
        /// write channels last.
        #[fusion(meta = |g, weight, sides, _| input_of(g, weight, *sides))]
        fn transposed(
            g: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            sides: [usize; 2],
            stride: usize,
        ) -> FloatTensor<Self>;
    }

    type Spec = burn::backend::fusion::custom::TensorSpec;

    fn input_of(g: &Spec, weight: &Spec, [height, width]: [usize; 2]) -> Spec {
        let shape = [g.shape[0], weight.shape[1], height, width];
        Spec::new(Shape::new(shape), g.dtype)
    }

    impl OrderBackend for CubeBackend {
        fn channels_last(maps: CubeTensor) -> CubeTensor {
            permute_nhwc_to_nchw(into_contiguous_aligned(permute_nchw_to_nhwc(maps)))
        }

        fn in_order(maps: CubeTensor) -> CubeTensor {
            let maps = into_contiguous(maps);
            let shape = maps.shape();
            // Contiguous maps may still lie otherwise along axes of size 1.
            CubeTensor::new_contiguous(maps.client, maps.device, shape, maps.handle, maps.dtype)
        }

        fn transposed(
            g: CubeTensor,
            weight: CubeTensor,
            [height, width]: [usize; 2],
            stride: usize,
        ) -> CubeTensor {
            let [_, input, kernel, _] = weight.shape().dims();
            let [batch, ..] = g.shape().dims::<4>();
            // Of the input the shape alone is read.
            let input = like(&g, [batch, height, width, input]);
            let options = ConvOptions::new([stride; 2], [kernel / 2; 2], [1, 1], 1);
            Self::conv2d_x_backward(permute_nhwc_to_nchw(input), weight, g, options)
        }
    }

    /// The transpose of a convolution to maps of that height and width.
    pub(crate) fn transposed(
        g: Tensor<4>,
        weight: Tensor<4>,
        sides: [usize; 2],
        stride: usize,
    ) -> Tensor<4> {
        let [g, weight] = [g, weight].map(Tensor::into_dispatch);
        Tensor::from_dispatch(Dispatch::transposed(g, weight, sides, stride))
    }

    /// The same numbers in the order that convolutions read, as they lie best on the device.
    pub(crate) fn channels_last(maps: &Tensor<4>) -> Tensor<4> {
        let maps = maps.clone().into_dispatch();
        Tensor::from_dispatch(Dispatch::channels_last(maps))
    }
}
