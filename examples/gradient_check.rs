//! Are my Jacobian products right, and is the gradient of the whole layer?
//!
//! Two cells compute the same function. One has a mistake in its pullback, which no forward pass
//! shows; the check finds it, and so do finite differences of the loss.
//!
//! `cargo run --release -p deq-examples --example gradient_check`

use burn::module::{Module, Param};
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use deq_core::solvers::StopConfig;
use deq_core::{
    DeqConfig, EquilibriumCell, GradientConfig, ImplicitConfig, NeumannGradientConfig, Pullback,
    check,
};
use std::error::Error;

/// `f(z) = tanh(z W + x)`.
#[derive(Module, Debug)]
struct Cell {
    w: Param<Tensor<2>>,
    #[module(skip)]
    mistaken: bool,
}

impl EquilibriumCell for Cell {
    type State = Tensor<2>;
    type Context = Tensor<2>;

    fn forward(&self, z: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        (z.matmul(self.w.val()) + x.clone()).tanh()
    }

    fn pullback(&self, z: Tensor<2>, x: &Tensor<2>) -> Option<Pullback<Tensor<2>>> {
        let f = self.forward(z, x);
        let slope = match self.mistaken {
            true => f.neg() + 1.0, // forgets the square
            false => f.square().neg() + 1.0,
        };
        let back = self.w.val().transpose();
        Some(Box::new(move |u| (u * slope.clone()).matmul(back.clone())))
    }
}

/// The loss at the equilibrium of `x`, and its gradient with respect to `x` along `direction`.
fn derivative(
    cell: &Cell,
    x: &Tensor<2>,
    direction: &Tensor<2>,
    gradient: GradientConfig,
) -> Result<(f64, f64), Box<dyn Error>> {
    let stop = StopConfig::new().with_rel_tol(1e-12).with_max_steps(100);
    let config = DeqConfig::new().with_stop(stop).with_gradient(gradient);
    let x = x.clone().without_autodiff().autodiff().require_grad();
    let out = config.build()?.forward(cell, &x, x.zeros_like());
    let loss = out.output.square().sum();
    let value = loss.clone().into_scalar::<f64>();
    let gradient = x.grad(&loss.backward()).ok_or("x has a gradient")?;
    let along = (gradient * direction.clone()).sum();
    Ok((value, along.into_scalar::<f64>()))
}

fn main() -> Result<(), Box<dyn Error>> {
    // In f64 differences have ten digits. To be set before the first tensor is made.
    let mut device = Device::flex();
    device.configure(FloatDType::F64)?;
    device.seed(5);
    let random =
        |shape, scale| Tensor::<2>::random(shape, Distribution::Normal(0.0, scale), &device);
    let w = Param::from_tensor(random([8, 8], 0.2));
    let (x, z, direction) = (
        random([4, 8], 1.0),
        random([4, 8], 1.0),
        random([4, 8], 1.0),
    );
    let cell = |mistaken| Cell {
        w: w.clone(),
        mistaken,
    };

    // ANCHOR: products
    for mistaken in [false, true] {
        let error = check::pullback_error(&cell(mistaken), &x, z.clone(), direction.clone());
        let error = error.ok_or("the cell has a pullback")?;
        println!("mistaken: {mistaken:5}  pullback off by {error:.0e}");
        assert_eq!(error > 1e-10, mistaken);
    }
    // ANCHOR_END: products

    // ANCHOR: layer
    let implicit = || {
        let stop = StopConfig::new().with_rel_tol(1e-12).with_max_steps(100);
        GradientConfig::Implicit(ImplicitConfig::new().with_stop(stop))
    };
    let h = 1e-5;
    let loss_at = |step: f64| {
        let x = x.clone() + direction.clone() * step;
        derivative(&cell(false), &x, &direction, implicit()).map(|(loss, _)| loss)
    };
    let expected = (loss_at(h)? - loss_at(-h)?) / (2.0 * h);
    for (name, gradient, mistaken) in [
        ("implicit", implicit(), false),
        ("implicit, mistaken pullback", implicit(), true),
        (
            "Neumann, 5 terms",
            GradientConfig::Neumann(NeumannGradientConfig::new()),
            false,
        ),
        ("one step", GradientConfig::OneStep, false),
    ] {
        let (_, along) = derivative(&cell(mistaken), &x, &direction, gradient)?;
        let error = ((along - expected) / expected).abs();
        println!("{name:28} off by {error:.0e}");
        assert_eq!(error < 1e-8, name == "implicit");
    }
    // ANCHOR_END: layer
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_mistake_is_found() -> Result<(), Box<dyn std::error::Error>> {
        super::main()
    }
}
