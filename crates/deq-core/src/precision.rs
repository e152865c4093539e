//! Maps in 16-bit floats, solved in the type of the state.

use crate::cell::{EquilibriumCell, Pullback};
use crate::context::{CellContext, TensorMap};
use crate::hook::rewrite_cotangent;
use crate::state::{State, StateLayout};
use crate::tape::Inputs;
use burn::backend::DispatchTensor;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::serde::{Deserialize, Serialize};
use burn::tensor::{DType, Tensor};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// A 16-bit type in which a map can be evaluated.
///
/// Not every device computes in it: ask `Device::supports_dtype` with its [`dtype`](Self::dtype).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "burn::serde", rename_all = "snake_case")]
pub enum Precision {
    /// bfloat16: the range of f32 with 8 significant bits.
    Bf16,
    /// IEEE half precision: 11 significant bits from 6e-5 to 65504; smaller numbers lose bits, and
    /// larger ones are infinite. Cotangents, those of all parts of a state alike, are scaled to
    /// begin at 1 within the cell, so that small losses need no scale of their own: sample by
    /// sample in backward solves, and by one factor for a batch where gradients of parameters are
    /// taken.
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
    /// Of the cotangents in f16.
    #[module(skip)]
    scale: Option<Scale>,
}

impl<C: EquilibriumCell> Lowered<C> {
    /// Rounds the parameters of a cell and its context.
    ///
    /// What a cell holds besides parameters and buffers, such as tensors that are neither, stays as
    /// it is and would meet a state of another type: a cell that is to be lowered keeps them in its
    /// context, or casts them to the type of its state.
    pub fn new(cell: &C, context: &C::Context, precision: Precision) -> (Self, C::Context) {
        let scale = (precision == Precision::F16).then(Scale::common);
        let mut down = Cast {
            to: precision.dtype(),
            scale: scale.clone(),
        };
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

    /// The scale of the cotangents of one evaluation.
    fn scale(&self, context: &C::Context) -> Option<Scale> {
        let of_all = self.scale.clone()?;
        // Where nothing but the state is tracked, cotangents of any size may come, one after the
        // other; parameters and context have one scale for all that reaches them.
        match Inputs::of(&self.cell, context).tracked().any() {
            true => Some(of_all),
            false => Some(Scale::by_row()),
        }
    }

    /// States into the cell.
    fn down(&self, scale: &Option<Scale>) -> Cast {
        Cast {
            to: self.precision.dtype(),
            scale: scale.clone(),
        }
    }
}

impl<C: EquilibriumCell> EquilibriumCell for Lowered<C> {
    type State = C::State;
    /// The rounded one.
    type Context = C::Context;

    fn forward(&self, z: C::State, context: &C::Context) -> C::State {
        let (own, scale) = (type_of(&z), self.scale(context));
        let z = z.map_tensors(&mut self.down(&scale));
        raised(self.cell.forward(z, context), own, scale)
    }

    fn pullback(&self, z: C::State, context: &C::Context) -> Option<Pullback<C::State>> {
        let (to, scaled) = (self.precision.dtype(), self.scale.is_some());
        let layout = StateLayout::of(&z);
        let product = self.cell.pullback(cast(&z, to), context)?;
        Some(Box::new(move |u: C::State| {
            let own = type_of(&u);
            if !scaled {
                return cast(&product(cast(&u, to)), own);
            }
            // All parts of a sample's state have one scale.
            let scale = Scale::by_row();
            let u = layout.unflatten(scale.divide(layout.flatten(u)));
            let rows = layout.flatten(cast(&product(cast(&u, to)), own));
            layout.unflatten(scale.multiply(rows))
        }))
    }

    fn tangent(
        &self,
        z: C::State,
        direction: C::State,
        context: &C::Context,
    ) -> Option<(C::State, C::State)> {
        let (own, scale) = (type_of(&z), self.scale(context));
        let mut down = self.down(&scale);
        let [z, direction] = [z, direction].map(|state| state.map_tensors(&mut down));
        let (fz, tangent) = self.cell.tangent(z, direction, context)?;
        Some((raised(fz, own, scale.clone()), raised(tangent, own, scale)))
    }

    fn compute_dtype(&self, _state: DType) -> DType {
        self.precision.dtype()
    }
}

/// A factor between cotangents and what f16 carries of them: the largest number of the first that
/// are not all 0. Cotangents of a mean over a batch are mostly smaller than f16 can tell apart.
#[derive(Clone, Debug)]
struct Scale {
    /// `[batch, 1]`, or `[1, 1]` for all rows alike.
    known: Arc<Mutex<Option<Tensor<2>>>>,
    by_row: bool,
}

impl Scale {
    /// For parameters, whose cotangents add up over the batch, and what enters beside them.
    fn common() -> Self {
        Self {
            known: Arc::default(),
            by_row: false,
        }
    }

    /// For states, so that no sample depends on the others of its batch.
    fn by_row() -> Self {
        Self {
            by_row: true,
            ..Self::common()
        }
    }

    /// On the way into f16.
    ///
    /// # Shapes
    ///
    /// - cotangents: `[batch, dim]`, of all parts of a state
    fn divide(&self, cotangents: Tensor<2>) -> Tensor<2> {
        let sizes = cotangents.clone().abs();
        let largest = match self.by_row {
            true => sizes.max_dim(1),
            false => sizes.max().reshape([1, 1]),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let scale = match known.take() {
            // The device chooses, so that nothing waits for it.
            Some(scale) => {
                let zero = scale.clone().equal_elem(0.0);
                let largest = largest.cast(scale.dtype());
                scale.mask_where(zero, largest)
            }
            None => largest,
        };
        let factor = factor(&scale, &cotangents);
        *known = Some(scale);
        cotangents / factor
    }

    /// On the way back.
    fn multiply<const D: usize>(&self, cotangent: Tensor<D>) -> Tensor<D> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some(scale) => {
                let factor = factor(scale, &cotangent);
                cotangent * factor
            }
            // Nothing has come.
            None => cotangent,
        }
    }
}

/// The scale as a number that can be divided by.
fn factor<const D: usize>(scale: &Tensor<2>, like: &Tensor<D>) -> Tensor<D> {
    let zero = scale.clone().equal_elem(0.0);
    let factor = scale.clone().mask_fill(zero, 1.0);
    let mut shape = [1; D];
    shape[0] = scale.dims()[0];
    factor.cast(like.dtype()).reshape(shape)
}

/// Makes float tensors of one type, and gives cotangents that leave f16 their own scale back.
#[derive(Clone)]
struct Cast {
    to: DType,
    scale: Option<Scale>,
}

impl TensorMap for Cast {
    fn float<const D: usize>(&mut self, tensor: &Tensor<D>) -> Tensor<D> {
        let tensor = tensor.clone();
        let tensor = match self.scale.clone() {
            Some(scale) if tensor.is_tracked() => {
                rewrite_cotangent(tensor, move |cotangent| scale.multiply(cotangent))
            }
            _ => tensor,
        };
        tensor.cast(self.to)
    }
}

fn cast<S: State>(state: &S, to: DType) -> S {
    state.map_tensors(&mut Cast { to, scale: None })
}

/// A state out of the cell, in its own type. The cotangents of all its parts enter by one scale.
fn raised<S: State>(state: S, own: DType, scale: Option<Scale>) -> S {
    let state = cast(&state, own);
    match scale {
        Some(scale) if state.is_autodiff() => {
            let layout = StateLayout::of(&state);
            let rows = layout.flatten(state);
            layout.unflatten(rewrite_cotangent(rows, move |cotangents| {
                scale.divide(cotangents)
            }))
        }
        _ => state,
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
