//! Maps in 16-bit floats, solved in the type of the state.

use crate::cell::{EquilibriumCell, Pullback};
use crate::context::{CellContext, TensorMap};
use burn::backend::DispatchTensor;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::serde::{Deserialize, Serialize};
use burn::tensor::{DType, Tensor};
use std::collections::VecDeque;

/// A 16-bit type in which a map can be evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "burn::serde", rename_all = "snake_case")]
pub enum Precision {
    /// bfloat16: the range of f32 with 8 significant bits.
    Bf16,
    /// IEEE half precision: 11 significant bits between 6e-8 and 65504, full precision above 6e-5
    /// only. Larger numbers overflow; smaller cotangents vanish, so that losses may have to be
    /// scaled.
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
}

impl<C: EquilibriumCell> Lowered<C> {
    /// Rounds the parameters of a cell and its context.
    ///
    /// What a cell holds besides parameters and buffers, such as tensors that are neither, stays as
    /// it is and would meet a state of another type: a cell that is to be lowered keeps them in its
    /// context, or casts them to the type of its state.
    pub fn new(cell: &C, context: &C::Context, precision: Precision) -> (Self, C::Context) {
        let mut cast = Cast(precision.dtype());
        let mut parameters = Parameters {
            cast,
            tensors: VecDeque::new(),
        };
        cell.visit(&mut parameters);
        let lowered = Self {
            // Of a plain clone, the buffers would be the cell's own.
            cell: cell.valid().map(&mut parameters),
            precision,
        };
        (lowered, context.map_tensors(&mut cast))
    }

    /// What it is evaluated in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    fn down(&self, z: C::State) -> C::State {
        z.map_tensors(&mut Cast(self.precision.dtype()))
    }
}

impl<C: EquilibriumCell> EquilibriumCell for Lowered<C> {
    type State = C::State;
    /// The rounded one.
    type Context = C::Context;

    fn forward(&self, z: C::State, context: &C::Context) -> C::State {
        let mut up = Cast::back_to(&z);
        let fz = self.cell.forward(self.down(z), context);
        fz.map_tensors(&mut up)
    }

    fn pullback(&self, z: C::State, context: &C::Context) -> Option<Pullback<C::State>> {
        let product = self.cell.pullback(self.down(z), context)?;
        let down = Cast(self.precision.dtype());
        Some(Box::new(move |u: C::State| {
            let (mut down, mut up) = (down, Cast::back_to(&u));
            product(u.map_tensors(&mut down)).map_tensors(&mut up)
        }))
    }

    fn tangent(
        &self,
        z: C::State,
        direction: C::State,
        context: &C::Context,
    ) -> Option<C::State> {
        let mut up = Cast::back_to(&z);
        let (z, direction) = (self.down(z), self.down(direction));
        let tangent = self.cell.tangent(z, direction, context)?;
        Some(tangent.map_tensors(&mut up))
    }
}

/// Makes float tensors of one type.
#[derive(Clone, Copy)]
struct Cast(DType);

impl Cast {
    /// To the type that all parts of a state have.
    fn back_to<S: CellContext>(state: &S) -> Self {
        let mut found = Found(None);
        let _ = state.map_tensors(&mut found);
        Self(found.0.expect("a state has at least one part"))
    }
}

impl TensorMap for Cast {
    fn float<const D: usize>(&mut self, tensor: &Tensor<D>) -> Tensor<D> {
        tensor.clone().cast(self.0)
    }
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
    cast: Cast,
    tensors: VecDeque<DispatchTensor>,
}

impl ModuleVisitor for Parameters {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = self.cast.float(&param.val());
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
