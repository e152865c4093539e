//! Maps in 16-bit floats, solved in the type of the state.

use crate::cell::{EquilibriumCell, Pullback};
use crate::context::{CellContext, TensorMap};
use crate::hook::rewrite_cotangent;
use crate::tape::Inputs;
use burn::backend::DispatchTensor;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::serde::{Deserialize, Serialize};
use burn::tensor::{DType, Tensor};
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

/// A 16-bit type in which a map can be evaluated.
///
/// Not every device computes in it: ask `Device::supports_dtype` with its [`dtype`](Self::dtype).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "burn::serde", rename_all = "snake_case")]
pub enum Precision {
    /// bfloat16: the range of f32 with 8 significant bits.
    Bf16,
    /// IEEE half precision: 11 significant bits from 6e-5 to 65504; smaller numbers lose bits, and
    /// larger ones are infinite. Cotangents are scaled to begin at 1 within the cell, so that small
    /// losses need no scale of their own.
    F16,
}

impl Precision {
    /// Its name, as in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
        }
    }

    /// The type of the tensors.
    pub fn dtype(self) -> DType {
        match self {
            Precision::Bf16 => DType::BF16,
            Precision::F16 => DType::F16,
        }
    }

    /// The largest relative error of a rounded number, `2^-8` or `2^-11`. About here the residual
    /// of a solve stops falling.
    pub fn rounding(self) -> f64 {
        match self {
            Precision::Bf16 => 2.0_f64.powi(-8),
            Precision::F16 => 2.0_f64.powi(-11),
        }
    }
}

/// A cell that is evaluated in 16-bit floats, whatever the type of its state.
///
/// Parameters and context are rounded once, when it is made; states and cotangents on the way in,
/// and come back in the type in which they were given. Rounding is differentiable: gradients reach
/// the parameters and the context that were rounded, in their own type.
///
/// [`DeqConfig::precision`](crate::DeqConfig::precision) makes one for every solve. Make one
/// yourself for other uses of the cell, such as the Jacobian penalty.
///
/// ```
/// # use burn::module::{Module, Param};
/// # use burn::tensor::{DType, Device, Tensor};
/// # use deq_core::{EquilibriumCell, Lowered, Precision};
/// # #[derive(Module, Debug)]
/// # struct Cell { w: Param<Tensor<2>> }
/// # impl EquilibriumCell for Cell {
/// #     type State = Tensor<2>;
/// #     type Context = Tensor<2>;
/// #     fn forward(&self, z: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
/// #         assert_eq!(z.dtype(), DType::BF16);
/// #         (z.matmul(self.w.val()) + x.clone()).tanh()
/// #     }
/// # }
/// # let device = Device::flex();
/// # let cell = Cell { w: Param::from_tensor(Tensor::full([4, 4], 0.1, &device)) };
/// # let x = Tensor::<2>::ones([2, 4], &device);
/// let (lowered, rounded) = Lowered::new(&cell, &x, Precision::Bf16);
/// assert_eq!(rounded.dtype(), DType::BF16);
/// assert_eq!(lowered.forward(x.zeros_like(), &rounded).dtype(), DType::F32);
/// ```
#[derive(Module, Debug)]
pub struct Lowered<C: EquilibriumCell> {
    cell: C,
    #[module(skip)]
    precision: Precision,
    /// Of the cotangents in 16 bits.
    #[module(skip)]
    scale: Scale,
}

impl<C: EquilibriumCell> Lowered<C> {
    /// Rounds the parameters of a cell and its context.
    ///
    /// What a cell holds besides parameters and buffers, such as tensors that are neither, stays as
    /// it is and would meet a state of another type: a cell that is to be lowered keeps them in its
    /// context, or casts them to the type of its state.
    pub fn new(cell: &C, context: &C::Context, precision: Precision) -> (Self, C::Context) {
        let scale = Scale::default();
        let mut down = Cast::down(precision, &scale);
        let mut parameters = Parameters {
            down: down.clone(),
            tensors: VecDeque::new(),
        };
        cell.visit(&mut parameters);
        let lowered = Self {
            // Of a plain clone, the buffers would be the cell's own.
            cell: cell.valid().map(&mut parameters),
            precision,
            scale,
        };
        (lowered, context.map_tensors(&mut down))
    }

    /// What it is evaluated in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The casts of a state into the cell and back to its own type.
    fn casts(&self, z: &C::State, context: &C::Context) -> [Cast; 2] {
        // Where nothing but the state is tracked, cotangents of any size may come, one after the
        // other; parameters and context have one scale for all that reaches them.
        let of_state = self.precision == Precision::Bf16
            || !Inputs::of(&self.cell, context).tracked().contains(&true);
        let scale = match of_state {
            true => Scale::default(),
            false => self.scale.clone(),
        };
        let up = Cast::up(self.precision, type_of(z), &scale);
        [Cast::down(self.precision, &scale), up]
    }
}

impl<C: EquilibriumCell> EquilibriumCell for Lowered<C> {
    type State = C::State;
    /// The rounded one.
    type Context = C::Context;

    fn forward(&self, z: C::State, context: &C::Context) -> C::State {
        let [mut down, mut up] = self.casts(&z, context);
        let fz = self.cell.forward(z.map_tensors(&mut down), context);
        fz.map_tensors(&mut up)
    }

    fn pullback(&self, z: C::State, context: &C::Context) -> Option<Pullback<C::State>> {
        let precision = self.precision;
        let mut down = Cast::plain(precision.dtype());
        let product = self.cell.pullback(z.map_tensors(&mut down), context)?;
        Some(Box::new(move |u: C::State| {
            let mut up = Cast::plain(type_of(&u));
            let scale = Scale::default();
            let [mut divide, mut multiply] =
                [Step::Divide, Step::Multiply].map(|step| Rescale(scale.clone(), step));
            let u = match precision {
                Precision::Bf16 => u,
                Precision::F16 => u.map_tensors(&mut divide),
            };
            let product = product(u.map_tensors(&mut down.clone())).map_tensors(&mut up);
            match precision {
                Precision::Bf16 => product,
                Precision::F16 => product.map_tensors(&mut multiply),
            }
        }))
    }

    fn tangent(&self, z: C::State, direction: C::State, context: &C::Context) -> Option<C::State> {
        let [mut down, mut up] = self.casts(&z, context);
        let [z, direction] = [z, direction].map(|state| state.map_tensors(&mut down));
        let tangent = self.cell.tangent(z, direction, context)?;
        Some(tangent.map_tensors(&mut up))
    }
}

/// A factor between cotangents and what f16 carries of them: the largest number of the first that
/// comes. Cotangents of a mean over a batch are mostly smaller than f16 can tell apart.
#[derive(Clone, Debug, Default)]
struct Scale(Arc<OnceLock<Tensor<1>>>);

/// What is done with a [`Scale`].
#[derive(Clone, Copy)]
enum Step {
    /// On the way into 16 bits.
    Divide,
    /// On the way back.
    Multiply,
}

impl Scale {
    fn apply<const D: usize>(&self, step: Step, x: Tensor<D>) -> Tensor<D> {
        let own = x.dtype();
        match (step, self.0.get()) {
            (Step::Divide, _) => {
                let scale = self.0.get_or_init(|| {
                    let largest = x.clone().abs().max();
                    let zero = largest.clone().equal_elem(0.0);
                    largest.mask_fill(zero, 1.0)
                });
                x / scale.clone().cast(own).reshape([1; D])
            }
            (Step::Multiply, Some(scale)) => x * scale.clone().cast(own).reshape([1; D]),
            // Nothing has come.
            (Step::Multiply, None) => x,
        }
    }
}

/// Applies a scale.
struct Rescale(Scale, Step);

impl TensorMap for Rescale {
    fn float<const D: usize>(&mut self, tensor: &Tensor<D>) -> Tensor<D> {
        self.0.apply(self.1, tensor.clone())
    }
}

/// Makes float tensors of one type, and applies a scale to their cotangents on the wide side.
#[derive(Clone)]
struct Cast {
    to: DType,
    cotangents: Option<(Scale, Step)>,
}

impl Cast {
    fn plain(to: DType) -> Self {
        let cotangents = None;
        Self { to, cotangents }
    }

    /// To 16 bits.
    fn down(precision: Precision, scale: &Scale) -> Self {
        Self {
            to: precision.dtype(),
            cotangents: (precision == Precision::F16).then(|| (scale.clone(), Step::Multiply)),
        }
    }

    /// From 16 bits.
    fn up(precision: Precision, to: DType, scale: &Scale) -> Self {
        Self {
            to,
            cotangents: (precision == Precision::F16).then(|| (scale.clone(), Step::Divide)),
        }
    }
}

impl TensorMap for Cast {
    fn float<const D: usize>(&mut self, tensor: &Tensor<D>) -> Tensor<D> {
        let tensor = tensor.clone();
        match self.cotangents.clone() {
            Some((scale, step)) if tensor.is_tracked() => {
                let rescale = move |cotangent| scale.apply(step, cotangent);
                match step {
                    Step::Divide => rewrite_cotangent(tensor.cast(self.to), rescale),
                    Step::Multiply => rewrite_cotangent(tensor, rescale).cast(self.to),
                }
            }
            _ => tensor.cast(self.to),
        }
    }
}

/// The type that all parts of a state have.
fn type_of<S: CellContext>(state: &S) -> DType {
    let mut found = Found(None);
    let _ = state.map_tensors(&mut found);
    found.0.expect("a state has at least one part")
}

struct Found(Option<DType>);

impl TensorMap for Found {
    fn float<const D: usize>(&mut self, tensor: &Tensor<D>) -> Tensor<D> {
        self.0.get_or_insert(tensor.dtype());
        tensor.clone()
    }
}

/// Casts the parameters of the cell it visits, and puts them into the copy it maps.
struct Parameters {
    down: Cast,
    tensors: VecDeque<DispatchTensor>,
}

impl ModuleVisitor for Parameters {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = self.down.float(&param.val());
        self.tensors.push_back(tensor.into_dispatch());
    }
}

impl ModuleMapper for Parameters {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let tensor = self.tensors.pop_front();
        let tensor = tensor.expect("a module is mapped in the order in which it is visited");
        let (id, _, mapper) = param.consume();
        Param::from_mapped_value(id, Tensor::from_dispatch(tensor), mapper)
    }
}
