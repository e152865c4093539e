//! Checks of hand-written products against automatic differentiation, for the tests of your own
//! cells.
//!
//! ```
//! # use burn::module::{Module, Param};
//! # use burn::tensor::{Device, Distribution, Tensor};
//! # use deq_core::{EquilibriumCell, Pullback};
//! # #[derive(Module, Debug)]
//! # struct Cell { w: Param<Tensor<2>> }
//! impl EquilibriumCell for Cell {
//!     type State = Tensor<2>;
//!     type Context = Tensor<2>;
//!     fn forward(&self, z: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
//!         (z.matmul(self.w.val()) + x.clone()).tanh()
//!     }
//!     fn pullback(&self, z: Tensor<2>, x: &Tensor<2>) -> Option<Pullback<Tensor<2>>> {
//!         let slope = self.forward(z, x).square().neg() + 1.0;
//!         let back = self.w.val().transpose();
//!         Some(Box::new(move |u| (u * slope.clone()).matmul(back.clone())))
//!     }
//! }
//! # let device = Device::flex();
//! # let normal = |shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 0.3), &device);
//! # let cell = Cell { w: Param::from_tensor(normal([4, 4])) };
//! # let (x, z, cotangent) = (normal([2, 4]), normal([2, 4]), normal([2, 4]));
//! let error = deq_core::check::pullback_error(&cell, &x, z, cotangent);
//! assert!(error.expect("the cell has a pullback") < 1e-5);
//! ```

use crate::cell::{EquilibriumCell, FrozenCell};
use crate::context::CellContext;
use crate::evaluation::{CellAt, MapAt};
use crate::random;
use crate::tape::{TapedCell, Tracked};
use burn::tensor::{Tensor, TensorData};

/// How far the cell's own [pullback](EquilibriumCell::pullback) is from automatic differentiation:
/// the norm of the difference over the norm, of the worst sample. `None` if the cell has no
/// pullback.
///
/// Rounding leaves about 1e-6 in f32 and 1e-15 in f64.
///
/// # Shapes
///
/// - z, cotangent: those of the cell's state
///
/// # Panics
///
/// If the pullback changes the shape of a part, or `cotangent` has other shapes than `z`.
pub fn pullback_error<C: EquilibriumCell>(
    cell: &C,
    context: &C::Context,
    z: C::State,
    cotangent: C::State,
) -> Option<f64> {
    let (z, cotangent) = (z.without_autodiff(), cotangent.without_autodiff());
    let frozen = FrozenCell::new(cell, context, &z);
    let layout = frozen.layout();
    let (z, cotangent) = (layout.flatten(z), layout.flatten(cotangent));
    let by_hand = layout.apply(cotangent.clone(), frozen.pullback(z.clone())?);
    let automatic = frozen.vjp(z, cotangent);
    Some(difference(&by_hand, &automatic))
}

/// How far the cell's own [tangent](EquilibriumCell::tangent) is from the transpose of automatic
/// differentiation, or its value from `forward`, or the gradient of that value by parameters and
/// context from the one of `forward`, whichever is farthest. `None` if the cell has no tangent.
///
/// Random vectors `u` test `u . (J d) = (J^T u) . d`; the result is the largest difference,
/// relative to `|u| |J d|`, over `probes` vectors and all samples. An error that is spread over all
/// entries of `J d` shows at about its own relative size; use some probes more to catch one that is
/// confined to a few.
///
/// # Shapes
///
/// - z, direction: those of the cell's state
///
/// # Panics
///
/// If the tangent changes the shape of a part, or `direction` has other shapes than `z`.
pub fn tangent_error<C: EquilibriumCell>(
    cell: &C,
    context: &C::Context,
    z: C::State,
    direction: C::State,
    probes: u64,
) -> Option<f64> {
    let (z, direction) = (z.without_autodiff(), direction.without_autodiff());
    let frozen = FrozenCell::new(cell, context, &z);
    let layout = frozen.layout();
    let flat = frozen.flat();
    let (fz, tangent) = flat
        .cell
        .tangent(z.clone(), direction.clone(), flat.context)?;
    let [fz, tangent, z, direction] = [fz, tangent, z, direction].map(|s| layout.flatten(s));
    let u = drawn(0, &z);
    let gradient = |by_tangent: bool| {
        let mut taped = TapedCell::new(&frozen, &Tracked::all(&frozen));
        taped.add(|cell, context| {
            let at = CellAt::new(cell, context, layout, z.clone());
            if by_tangent {
                let _ = at.tangent(direction.clone());
            }
            (at.value() * u.clone()).sum()
        });
        taped
    };
    let recorded = gradient(true).distance(gradient(false));
    let mut worst = larger(difference(&fz, &frozen.call(z.clone())), recorded);
    let (tangent, along) = (rows_of(&tangent), rows_of(&direction));
    for seed in 0..probes {
        let u = drawn(seed, &z);
        let product = rows_of(&frozen.vjp(z.clone(), u.clone()));
        for (row, u) in rows_of(&u).iter().enumerate() {
            let size = norm(u) * norm(&tangent[row]);
            let gap = (dot(u, &tangent[row]) - dot(&product[row], &along[row])).abs();
            worst = larger(worst, gap / size.max(f64::MIN_POSITIVE));
        }
    }
    Some(worst)
}

/// Normal numbers in the shape and type of `z`.
fn drawn(seed: u64, z: &Tensor<2>) -> Tensor<2> {
    let [batch, dim] = z.dims();
    let values = TensorData::new(random::normal(seed, batch * dim), [batch, dim]);
    Tensor::from_data(values.convert_dtype(z.dtype()), &z.device())
}

/// The largest distance of a row from the right one, relative to the length of that.
fn difference(rows: &Tensor<2>, right: &Tensor<2>) -> f64 {
    rows_of(rows)
        .iter()
        .zip(rows_of(right))
        .map(|(row, right)| {
            let difference: Vec<f64> = row.iter().zip(&right).map(|(a, b)| a - b).collect();
            norm(&difference) / norm(&right).max(f64::MIN_POSITIVE)
        })
        .fold(0.0, larger)
}

/// The larger one, or NaN: a broken product must not pass.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

fn rows_of(x: &Tensor<2>) -> Vec<Vec<f64>> {
    let [_, dim] = x.dims();
    let values: Vec<f64> = x.to_data().iter::<f64>().collect();
    values.chunks(dim.max(1)).map(<[f64]>::to_vec).collect()
}
