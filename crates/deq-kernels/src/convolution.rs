//! Convolutions as equilibrium models use them: no bias, padding that keeps the size but for the
//! stride.

#![cfg_attr(
    not(any(feature = "flex", feature = "_gpu", feature = "remote")),
    allow(
        unused_variables,
        reason = "without a backend the generated dispatcher has nothing to pass on"
    )
)]

#[cfg(feature = "_gpu")]
use crate::gpu;
#[cfg(feature = "flex")]
use crate::{cpu::conv, flex};
use burn::backend::autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use burn::tensor::module::conv_transpose2d;
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
#[cfg(any(feature = "flex", feature = "_gpu"))]
use std::sync::{Arc, OnceLock};

/// A convolution of a weight that stays the same for many inputs, and its transpose.
///
/// On the CPU backend it is a matrix product whose right side is read from the padded input as it
/// lies, and the weight is arranged for it once. Elsewhere, and for other types than f32, it is
/// Burn's; on a GPU with a weight whose channels are brought next to each other once, and as the
/// transpose of one whose stride is 1 the convolution of the turned kernel, for which there are
/// more and faster kernels than for transposes.
#[derive(Clone, Debug)]
pub struct Convolution {
    weight: Tensor<4>,
    kind: Kind,
    #[cfg(feature = "_gpu")]
    channels_last: Arc<ChannelsLast>,
}

/// What a convolution has beside its weight, but for what GPUs keep.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    stride: usize,
    /// Where the weight is kept as kernels of the CPU read it, if it serves more than once.
    #[cfg(feature = "flex")]
    arranged: Option<Arc<Arranged>>,
}

impl Kind {
    /// Of a weight that serves once.
    fn once(stride: usize) -> Self {
        Self {
            stride,
            #[cfg(feature = "flex")]
            arranged: None,
        }
    }

    fn often(stride: usize) -> Self {
        Self {
            #[cfg(feature = "flex")]
            arranged: Some(Arc::default()),
            ..Self::once(stride)
        }
    }
}

/// The weight, and that of the transpose, as convolutions on a GPU read them.
#[cfg(feature = "_gpu")]
#[derive(Debug, Default)]
struct ChannelsLast {
    forward: OnceLock<Option<Tensor<4>>>,
    transposed: OnceLock<Option<Tensor<4>>>,
}

#[cfg(feature = "flex")]
#[derive(Debug, Default)]
struct Arranged {
    forward: OnceLock<Arc<conv::ForwardWeight>>,
    transposed: OnceLock<Arc<conv::TransposedWeight>>,
}

impl Convolution {
    /// A convolution of that stride, padded by half the kernel.
    ///
    /// # Shapes
    ///
    /// - weight: `[output, input, kernel, kernel]`, an odd kernel
    ///
    /// # Panics
    ///
    /// If the kernel is not a square with odd sides, or the stride is 0.
    pub fn new(weight: Tensor<4>, stride: usize) -> Self {
        assert_kernel(&weight, stride);
        Self {
            weight,
            kind: Kind::often(stride),
            #[cfg(feature = "_gpu")]
            channels_last: Arc::default(),
        }
    }

    /// The same with its weight on a tape or off it, or elsewhere on it. What was arranged for the
    /// CPU stays, since recorded convolutions read it too.
    ///
    /// # Shapes
    ///
    /// - weight: that of the convolution, of the same values and type
    ///
    /// # Panics
    ///
    /// If the weight has another shape or type.
    pub fn with_same_weight(&self, weight: Tensor<4>) -> Self {
        let kind = |weight: &Tensor<4>| (weight.dims(), weight.dtype());
        assert_eq!(kind(&weight), kind(&self.weight), "it is another weight");
        Self {
            weight,
            kind: self.kind.clone(),
            #[cfg(feature = "_gpu")]
            channels_last: Arc::default(),
        }
    }

    /// `[output, input, kernel, kernel]`.
    pub fn weight(&self) -> &Tensor<4> {
        &self.weight
    }

    /// The distance of the pixels that are kept.
    pub fn stride(&self) -> usize {
        self.kind.stride
    }

    /// The convolution, which is linear and hence its own derivative.
    ///
    /// # Shapes
    ///
    /// - x: `[batch, input, height, width]`
    /// - output: `[batch, output, height / stride, width / stride]`, rounded up
    ///
    /// # Panics
    ///
    /// If the channels of `x` are not those that the weight reads.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let [_, input, ..] = self.weight.dims();
        assert_channels(&x, input);
        if self.is_nothing(&x) {
            let ([batch, _, height, width], [output, ..]) = (x.dims(), self.weight.dims());
            let [height, width] = [height, width].map(|side| side.div_ceil(self.stride()));
            return Tensor::zeros([batch, output, height, width], (&x.device(), x.dtype()));
        }
        #[cfg(feature = "flex")]
        if let Some(values) = self.on_host(&x) {
            let shape = self.shape(x.dims());
            let [height, width] = shape.output_sides();
            let sides = [shape.batch, shape.output, height, width];
            let weight = self.kind.forward(&shape, || {
                flex::Host::of(&self.weight).expect("on the host")
            });
            return flex::tensor(conv::forward(values.values(), &weight, &shape), sides);
        }
        let weight = self.weight_for(&x);
        dispatched(x, weight, self.kind.clone())
    }

    /// The maps, if they and the weight are on the CPU and nothing is recorded.
    #[cfg(feature = "flex")]
    fn on_host(&self, maps: &Tensor<4>) -> Option<flex::Host> {
        match flex::Host::takes(&self.weight) {
            true => flex::Host::of(maps),
            false => None,
        }
    }

    /// Whether there is nothing to sum over or to write, and nothing to record.
    fn is_nothing(&self, maps: &Tensor<4>) -> bool {
        let is_tracked = maps.is_autodiff() || self.weight.is_autodiff();
        maps.shape().num_elements() == 0 && !is_tracked
    }

    /// The weight as the device reads it beside such maps.
    fn weight_for(&self, maps: &Tensor<4>) -> Tensor<4> {
        #[cfg(feature = "_gpu")]
        if gpu::takes(maps) {
            let arranged = kept(&self.channels_last.forward, || {
                gpu::takes(&self.weight).then(|| gpu::maps::channels_last(&self.weight))
            });
            return arranged.as_ref().unwrap_or(&self.weight).clone();
        }
        let _ = maps;
        self.weight.clone()
    }

    /// The transpose: cotangents from the output to the input, whose sides the stride must divide.
    ///
    /// # Shapes
    ///
    /// - g: that of the output
    /// - output: that of the input
    ///
    /// # Panics
    ///
    /// If the channels of `g` are not those of the output.
    pub fn carry(&self, g: Tensor<4>) -> Tensor<4> {
        let [output, ..] = self.weight.dims();
        assert_channels(&g, output);
        if self.is_nothing(&g) {
            let ([batch, _, height, width], [_, input, ..]) = (g.dims(), self.weight.dims());
            let stride = self.stride();
            let sides = [batch, input, height * stride, width * stride];
            return Tensor::zeros(sides, (&g.device(), g.dtype()));
        }
        #[cfg(feature = "flex")]
        if let Some(values) = self.on_host(&g) {
            let [batch, _, height, width] = g.dims();
            let stride = self.stride();
            let shape = self.shape([batch, 0, height * stride, width * stride]);
            let sides = [batch, shape.input, shape.height, shape.width];
            let weight = self.kind.transposed(&shape, || {
                flex::Host::of(&self.weight).expect("on the host")
            });
            return flex::tensor(
                conv::input_gradient(values.values(), &weight, &shape),
                sides,
            );
        }
        #[cfg(feature = "_gpu")]
        if gpu::takes(&g) {
            return self.carry_on_gpu(g);
        }
        let [.., kernel] = self.weight.dims();
        // (sides - 1) * stride - 2 * padding + kernel, which lacks this to sides * stride.
        let stride = self.stride();
        let lacking = stride + 2 * (kernel / 2) - kernel;
        let options =
            ConvTransposeOptions::new([stride; 2], [kernel / 2; 2], [lacking; 2], [1, 1], 1);
        conv_transpose2d(g, self.weight.clone(), None, options)
    }

    #[cfg(feature = "_gpu")]
    fn carry_on_gpu(&self, g: Tensor<4>) -> Tensor<4> {
        let stride = self.stride();
        if stride == 1 {
            let weight = kept(&self.channels_last.transposed, || {
                let turned = self.weight.clone().flip([2, 3]).swap_dims(0, 1);
                gpu::takes(&turned).then(|| gpu::maps::channels_last(&turned))
            });
            if let Some(weight) = weight {
                return convolve(g, weight.clone(), 1);
            }
        }
        let [_, _, height, width] = g.dims();
        let sides = [height * stride, width * stride];
        let weight = self.weight_for(&g);
        gpu::maps::transposed(g, weight, sides, stride)
    }

    #[cfg(feature = "flex")]
    fn shape(&self, [batch, _, height, width]: [usize; 4]) -> conv::ConvShape {
        let [output, input, kernel, _] = self.weight.dims();
        conv::ConvShape {
            batch,
            input,
            output,
            kernel,
            stride: self.stride(),
            height,
            width,
        }
    }
}

#[cfg(feature = "flex")]
impl Kind {
    /// The arranged weight.
    fn forward(
        &self,
        shape: &conv::ConvShape,
        weight: impl FnOnce() -> flex::Host,
    ) -> Arc<conv::ForwardWeight> {
        let make = || conv::ForwardWeight::new(weight().values(), shape);
        self.kept(|arranged| &arranged.forward, make)
    }

    /// The same for the transpose.
    fn transposed(
        &self,
        shape: &conv::ConvShape,
        weight: impl FnOnce() -> flex::Host,
    ) -> Arc<conv::TransposedWeight> {
        let make = || conv::TransposedWeight::new(weight().values(), shape);
        self.kept(|arranged| &arranged.transposed, make)
    }

    fn kept<T>(
        &self,
        place: impl Fn(&Arranged) -> &OnceLock<Arc<T>>,
        make: impl FnOnce() -> T,
    ) -> Arc<T> {
        match &self.arranged {
            Some(arranged) => kept(place(arranged), || Arc::new(make())).clone(),
            None => Arc::new(make()),
        }
    }
}

/// A convolution without bias, padded by half the kernel, differentiable in both arguments.
///
/// # Shapes
///
/// - x: `[batch, input, height, width]`
/// - weight: `[output, input, kernel, kernel]`, an odd kernel
/// - output: `[batch, output, height / stride, width / stride]`, rounded up
///
/// # Panics
///
/// If the channels of `x` are not those that the weight reads, the kernel is not a square with odd
/// sides, or the stride is 0.
pub fn convolve(x: Tensor<4>, weight: Tensor<4>, stride: usize) -> Tensor<4> {
    assert_kernel(&weight, stride);
    let [_, input, ..] = weight.dims();
    assert_channels(&x, input);
    dispatched(x, weight, Kind::once(stride))
}

fn dispatched(x: Tensor<4>, weight: Tensor<4>, kind: Kind) -> Tensor<4> {
    let (x, weight) = (beside(x.clone(), &weight), beside(weight, &x));
    let out = Dispatch::convolution(x.into_dispatch(), weight.into_dispatch(), kind);
    Tensor::from_dispatch(out)
}

/// What a cell keeps, made where it is empty. Nothing waits while it is made: a thread of a pool
/// that waits takes other work, which may be that of the same cell.
#[cfg(any(feature = "flex", feature = "_gpu"))]
fn kept<T>(cell: &OnceLock<T>, make: impl FnOnce() -> T) -> &T {
    match cell.get() {
        Some(kept) => kept,
        None => {
            let made = make();
            cell.get_or_init(|| made)
        }
    }
}

#[track_caller]
fn assert_kernel(weight: &Tensor<4>, stride: usize) {
    let [_, _, height, width] = weight.dims();
    assert!(
        height == width && width % 2 == 1,
        "a kernel of {height} by {width} is not a square with odd sides"
    );
    assert!(stride > 0, "a stride of 0 goes nowhere");
}

#[track_caller]
fn assert_channels(maps: &Tensor<4>, read: usize) {
    let [_, channels, ..] = maps.dims();
    assert_eq!(
        channels, read,
        "the maps have {channels} channels, but the weight reads {read}"
    );
}

/// The tensor as a constant of the graph of the other, if that has one and it has none.
fn beside(tensor: Tensor<4>, other: &Tensor<4>) -> Tensor<4> {
    match other.gradient_checkpointing_strategy() {
        Some(strategy) if !tensor.is_autodiff() => tensor
            .autodiff()
            .with_gradient_checkpointing_strategy(strategy),
        _ => tensor,
    }
}

// `Cube` stands for every CubeCL runtime: CUDA, ROCm, Metal, Vulkan, WebGPU, CPU.
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "_gpu"),
    Remote: cfg(feature = "remote")
)]
pub(crate) trait ConvolutionBackend: Backend {
    fn convolution(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        kind: Kind,
    ) -> FloatTensor<Self>;
}

/// The cotangents of a convolution's arguments.
trait ConvolutionGradients: Backend {
    /// The weight as a convolution and the cotangent of its input read it best.
    fn arranged(weight: FloatTensor<Self>) -> FloatTensor<Self> {
        weight
    }

    fn to_input(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        g: FloatTensor<Self>,
        kind: &Kind,
    ) -> FloatTensor<Self> {
        let options = options(&weight, kind.stride);
        Self::conv2d_x_backward(x, weight, g, options)
    }

    fn to_weight(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        g: FloatTensor<Self>,
        stride: usize,
    ) -> FloatTensor<Self> {
        let options = options(&weight, stride);
        Self::conv2d_weight_backward(x, weight, g, options)
    }
}

fn options<T: TensorMetadata>(weight: &T, stride: usize) -> ConvOptions<2> {
    let kernel = weight.shape()[3];
    ConvOptions::new([stride; 2], [kernel / 2; 2], [1, 1], 1)
}

#[cfg(feature = "flex")]
mod on_flex {
    use super::{ConvolutionBackend, ConvolutionGradients, Kind, options};
    use crate::cpu::conv::{self, ConvShape};
    use crate::flex::{Host, primitive};
    use burn::backend::Flex;
    use burn::backend::ops::ModuleOps;
    use burn::backend::{TensorMetadata, tensor::FloatTensor};
    use burn::tensor::{DType, Shape};

    fn shape(x: &Shape, weight: &Shape, stride: usize) -> ConvShape {
        ConvShape {
            batch: x[0],
            input: x[1],
            output: weight[0],
            kernel: weight[3],
            stride,
            height: x[2],
            width: x[3],
        }
    }

    fn is_empty(tensor: &FloatTensor<Flex>) -> bool {
        tensor.shape().num_elements() == 0
    }

    fn zeros(shape: impl Into<Shape>) -> FloatTensor<Flex> {
        let shape = shape.into();
        primitive(vec![0.0; shape.num_elements()], shape)
    }

    impl ConvolutionBackend for Flex {
        fn convolution(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            kind: Kind,
        ) -> FloatTensor<Self> {
            if x.dtype() != DType::F32 {
                let options = options(&weight, kind.stride);
                return Self::conv2d(x, weight, None, options);
            }
            let shape = shape(&x.shape(), &weight.shape(), kind.stride);
            let [height, width] = shape.output_sides();
            let sides = [shape.batch, shape.output, height, width];
            if is_empty(&x) || is_empty(&weight) {
                return zeros(sides);
            }
            let x = Host::in_order(x);
            let weight = kind.forward(&shape, || Host::in_order(weight));
            primitive(conv::forward(x.values(), &weight, &shape), sides)
        }
    }

    impl ConvolutionGradients for Flex {
        fn to_input(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            g: FloatTensor<Self>,
            kind: &Kind,
        ) -> FloatTensor<Self> {
            if x.dtype() != DType::F32 {
                let options = options(&weight, kind.stride);
                return Self::conv2d_x_backward(x, weight, g, options);
            }
            let sides = x.shape();
            if is_empty(&g) || is_empty(&x) {
                return zeros(sides);
            }
            let shape = shape(&sides, &weight.shape(), kind.stride);
            let g = Host::in_order(g);
            let weight = kind.transposed(&shape, || Host::in_order(weight));
            primitive(conv::input_gradient(g.values(), &weight, &shape), sides)
        }

        fn to_weight(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            g: FloatTensor<Self>,
            stride: usize,
        ) -> FloatTensor<Self> {
            if x.dtype() != DType::F32 {
                let options = options(&weight, stride);
                return Self::conv2d_weight_backward(x, weight, g, options);
            }
            let sides = weight.shape();
            if is_empty(&g) || is_empty(&x) {
                return zeros(sides);
            }
            let shape = shape(&x.shape(), &sides, stride);
            let [x, g] = [x, g].map(Host::in_order);
            primitive(conv::weight_gradient(x.values(), g.values(), &shape), sides)
        }
    }
}

/// Backends that have nothing better than Burn's convolution.
#[cfg(any(feature = "_gpu", feature = "remote"))]
mod plain {
    use super::{ConvolutionBackend, ConvolutionGradients, Kind, options};
    #[cfg(feature = "_gpu")]
    use crate::gpu::maps::OrderBackend;
    use burn::backend::ops::ModuleOps;
    use burn::backend::tensor::FloatTensor;

    macro_rules! plain {
        ($backend:ty) => {
            impl ConvolutionBackend for $backend {
                fn convolution(
                    x: FloatTensor<Self>,
                    weight: FloatTensor<Self>,
                    kind: Kind,
                ) -> FloatTensor<Self> {
                    let options = options(&weight, kind.stride);
                    Self::conv2d(x, weight, None, options)
                }
            }
        };
    }

    #[cfg(feature = "_gpu")]
    plain!(burn::backend::Cube);
    #[cfg(feature = "remote")]
    plain!(burn::backend::Remote);

    #[cfg(feature = "_gpu")]
    impl ConvolutionGradients for burn::backend::Cube {
        fn arranged(weight: FloatTensor<Self>) -> FloatTensor<Self> {
            Self::channels_last(weight)
        }

        /// In the order of the axes, as the weight itself. Burn's has that of its kernel, and the
        /// fusion of Burn 0.22.1 writes over tensors in another order that it still reads.
        fn to_weight(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            g: FloatTensor<Self>,
            stride: usize,
        ) -> FloatTensor<Self> {
            let options = options(&weight, stride);
            Self::in_order(Self::conv2d_weight_backward(x, weight, g, options))
        }
    }

    #[cfg(feature = "remote")]
    impl ConvolutionGradients for burn::backend::Remote {}
}

impl<B: ConvolutionBackend + ConvolutionGradients, C: CheckpointStrategy> ConvolutionBackend
    for Autodiff<B, C>
{
    fn convolution(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        kind: Kind,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Convolve;

        impl<B: ConvolutionGradients> Backward<B, 2> for Convolve {
            type State = (FloatTensor<B>, FloatTensor<B>, Kind);

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [to_x, to_weight] = ops.parents;
                let (x, weight, kind) = ops.state;
                let g = grads.consume::<B>(&ops.node);
                if let Some(node) = to_x {
                    let g = B::to_input(x.clone(), weight.clone(), g.clone(), &kind);
                    grads.register::<B>(node.id, g);
                }
                if let Some(node) = to_weight {
                    grads.register::<B>(node.id, B::to_weight(x, weight, g, kind.stride));
                }
            }
        }

        let (x, to_x) = x.into_parts();
        let (weight, to_weight) = weight.into_parts();
        let weight = B::arranged(weight);
        let out = B::convolution(x.clone(), weight.clone(), kind.clone());
        match Convolve
            .prepare::<C>([to_x, to_weight])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish((x, weight, kind), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}
