//! A solver that the library does not have, in both solves of a layer.
//!
//! Plain iteration moves by the residual `r = f(z) - z`. This one moves by a multiple of it, chosen
//! anew in every step and for every sample so that it fits the last one best (Barzilai and Borwein
//! 1988; for equations without a symmetric Jacobian La Cruz, Martínez and Raydan 2006):
//!
//! ```text
//! z <- z + a r      with      a = -(dz . dz) / (dz . dr),     dz, dr: what z and r changed by
//! ```
//!
//! `cargo run --release -p deq-examples --example own_solver`

use burn::module::{Module, Param};
use burn::tensor::{Device, Distribution, Tensor};
use deq_core::solvers::{
    FixedPointSolver, Iterate, LinearMap, LinearSolve, PicardConfig, Solution, Solve, SolverConfig,
    StopConfig, StopRule,
};
use deq_core::{Deq, DeqConfig, DeqError, EquilibriumCell, GradientConfig, ImplicitConfig};
use std::sync::Arc;

/// The settings of the solver; it has none.
#[derive(Debug)]
struct BarzilaiBorwein;

/// What it remembers: the last point and its residual.
struct Last {
    z: Tensor<2>,
    residual: Tensor<2>,
}

// The loop that evaluates `f`, tests every sample and stops is the library's; a solver only says
// where to go next.
// ANCHOR: solver
impl FixedPointSolver for BarzilaiBorwein {
    type State = Option<Last>;

    fn name(&self) -> &'static str {
        "barzilai-borwein"
    }

    fn init(&self, _first: &Iterate) -> Option<Last> {
        None
    }

    fn step(&self, at: &Iterate, last: &mut Option<Last>) -> Tensor<2> {
        let (z, residual) = (at.z().clone(), at.residual().clone());
        let now = Last {
            z: z.clone(),
            residual: residual.clone(),
        };
        let Some(last) = last.replace(now) else {
            return z + residual;
        };
        let dz = z.clone() - last.z;
        let dr = residual.clone() - last.residual;
        let along = (dz.clone() * dr).sum_dim(1);
        let length = -dz.square().sum_dim(1) / along.clone();
        // Where nothing has changed there is nothing to fit, and the step is the plain one.
        let plain = along.equal_elem(0.0);
        z + residual * length.mask_fill(plain, 1.0)
    }
}

// The adjoint `u = J^T u + g` is a fixed-point problem too.
impl LinearSolve for BarzilaiBorwein {
    fn name(&self) -> &'static str {
        FixedPointSolver::name(self)
    }

    fn solve(&self, a: &mut dyn LinearMap, g: Tensor<2>, stop: &StopRule) -> Solution {
        let mut map = |u: Tensor<2>| a.apply(u) + g.clone();
        Solve::solve(self, &mut map, g.clone(), stop)
    }
}
// ANCHOR_END: solver

/// `f(z) = tanh(z (W + W^T) + x)`, whose Jacobian has real eigenvalues, as Barzilai and Borwein
/// like.
#[derive(Module, Debug)]
struct Cell {
    w: Param<Tensor<2>>,
}

impl EquilibriumCell for Cell {
    type State = Tensor<2>;
    type Context = Tensor<2>;

    fn forward(&self, z: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        let w = self.w.val();
        (z.matmul(w.clone() + w.transpose()) + x.clone()).tanh()
    }
}

fn main() -> Result<(), DeqError> {
    let device = Device::flex().autodiff();
    device.seed(1);
    let width = 32;
    let normal = |shape, scale| Tensor::random(shape, Distribution::Normal(0.0, scale), &device);
    let cell = Cell {
        w: Param::from_tensor(normal([width, width], 0.06)),
    };
    let x = normal([16, width], 0.1);

    // The configuration says everything else: when to stop, and which gradient.
    let config = |solver: SolverConfig| {
        let stop = StopConfig::new().with_rel_tol(1e-6).with_max_steps(200);
        let adjoint = ImplicitConfig::new()
            .with_solver(solver.clone().into())
            .with_stop(stop.clone());
        DeqConfig::new()
            .with_solver(solver)
            .with_stop(stop)
            .with_gradient(GradientConfig::Implicit(adjoint))
    };
    // ANCHOR: layer
    let own = config(SolverConfig::picard())
        .build()?
        .with_solver(Arc::new(BarzilaiBorwein))?
        .with_adjoint_solver(Arc::new(BarzilaiBorwein))?;
    // ANCHOR_END: layer
    let plain = config(PicardConfig::new().into()).build()?;

    let run = |deq: &Deq| {
        let z0 = Tensor::zeros([16, width], &device);
        let out = deq.forward(&cell, &x, z0);
        let grads = out.output.square().sum().backward();
        let forward = out.solve.expect("an equilibrium was solved for");
        let backward = out.backward.solve().expect("so was its adjoint");
        assert!(forward.all_converged() && backward.all_converged());
        println!(
            "{:18} {:3} evaluations forward, {:3} products backward",
            deq.solver_name(),
            forward.nfe,
            backward.nfe
        );
        let gradient = cell.w.val().grad(&grads);
        (forward.nfe, gradient.expect("the weight is trained"))
    };
    let (few, gradient) = run(&own);
    let (many, expected) = run(&plain);
    assert!(few < many, "{few} evaluations, {many} by plain iteration");
    let error = (gradient - expected.clone()).abs().max() / expected.abs().max();
    assert!(error.into_scalar::<f32>() < 1e-4, "another gradient");
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_finds_the_same_gradient_in_fewer_evaluations() -> Result<(), deq_core::DeqError> {
        super::main()
    }
}
