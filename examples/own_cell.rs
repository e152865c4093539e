//! A cell with Jacobian products of its own, and the checks that they are right.
//!
//! Neither is needed: without them everything is differentiated automatically. A pullback saves the
//! evaluation of `f` that automatic differentiation repeats for every product of the backward
//! solve; a tangent lets the Jacobian penalty of deq-jacreg be exact where `f` has kinks.
//!
//! `cargo run --release -p deq-examples --example own_cell`

use burn::module::{Module, Param};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Distribution, Tensor};
use deq_core::{DeqConfig, DeqError, EquilibriumCell, Pullback, check};

/// `f(z) = relu(z W + x) / 2` at every position of `[batch, time, width]`.
#[derive(Module, Debug)]
struct Cell {
    w: Param<Tensor<2>>,
}

impl Cell {
    fn inner(&self, z: Tensor<3>, x: &Tensor<3>) -> Tensor<3> {
        z.matmul(self.w.val().unsqueeze()) + x.clone()
    }
}

// ANCHOR: cell
impl EquilibriumCell for Cell {
    type State = Tensor<3>;
    type Context = Tensor<3>;

    fn forward(&self, z: Tensor<3>, x: &Tensor<3>) -> Tensor<3> {
        relu(self.inner(z, x)) * 0.5
    }

    /// Backward: first the ReLU, of which one evaluation remembers where it is off, then the
    /// matrix.
    fn pullback(&self, z: Tensor<3>, x: &Tensor<3>) -> Option<Pullback<Tensor<3>>> {
        let off = self.inner(z, x).lower_equal_elem(0.0);
        let back = self.w.val().transpose().unsqueeze::<3>();
        Some(Box::new(move |u| {
            (u * 0.5).mask_fill(off.clone(), 0.0).matmul(back.clone())
        }))
    }

    /// The value, and forward first the matrix, then the ReLU.
    fn tangent(
        &self,
        z: Tensor<3>,
        direction: Tensor<3>,
        x: &Tensor<3>,
    ) -> Option<(Tensor<3>, Tensor<3>)> {
        let inner = self.inner(z, x);
        let off = inner.clone().lower_equal_elem(0.0);
        let along = direction.matmul(self.w.val().unsqueeze());
        Some((relu(inner) * 0.5, along.mask_fill(off, 0.0) * 0.5))
    }
}
// ANCHOR_END: cell

fn main() -> Result<(), DeqError> {
    let device = Device::flex().autodiff();
    device.seed(3);
    let normal = |scale| Distribution::Normal(0.0, scale);
    let cell = Cell {
        w: Param::from_tensor(Tensor::random([8, 8], normal(0.3), &device)),
    };
    let state = || Tensor::<3>::random([4, 5, 8], normal(1.0), &device);
    let x = state();

    // ANCHOR: checks
    // Put these two into the tests of your cell. In f32 rounding leaves some 1e-6.
    let pullback = check::pullback_error(&cell, &x, state(), state());
    let pullback = pullback.expect("the cell has a pullback");
    let tangent = check::tangent_error(&cell, &x, state(), state(), 3);
    let tangent = tangent.expect("the cell has a tangent");
    println!("pullback off by {pullback:.0e}, tangent by {tangent:.0e}");
    assert!(pullback < 1e-5 && tangent < 1e-5);
    // ANCHOR_END: checks

    let deq = DeqConfig::new().build()?;
    let out = deq.forward(&cell, &x, x.zeros_like());
    let grads = out.output.square().sum().backward();
    let adjoint = out.backward.solve().expect("an adjoint was solved");
    let gradient = cell.w.val().grad(&grads).expect("W is trained");
    println!(
        "gradient of W up to {:.3}, by {} products of the cell's own",
        gradient.abs().max().into_scalar::<f32>(),
        adjoint.nfe
    );
    assert!(adjoint.all_converged());
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn its_products_are_right() -> Result<(), deq_core::DeqError> {
        super::main()
    }
}
