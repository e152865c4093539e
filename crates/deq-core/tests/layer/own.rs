//! Solvers that are not of this library.

use crate::support::*;
use burn::tensor::Tensor;
use deq_core::solvers::{
    FixedPointSolver, Iterate, LinearMap, LinearSolve, PicardConfig, Solution, Solve, SolverConfig,
    StopRule,
};
use deq_core::{Deq, DeqError, GradientConfig, ImplicitConfig, ShineConfig};
use deq_testkit::{assert_close, values};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `z <- (z + f(z)) / 2`
#[derive(Debug)]
struct Halfway;

impl FixedPointSolver for Halfway {
    type State = ();

    fn name(&self) -> &'static str {
        "halfway"
    }

    fn init(&self, _first: &Iterate) {}

    fn step(&self, at: &Iterate, _state: &mut ()) -> Tensor<2> {
        at.z().clone() + at.residual().clone() * 0.5
    }
}

/// Plain iteration that counts its calls.
#[derive(Debug, Default)]
struct Counting(AtomicUsize);

impl LinearSolve for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn solve(&self, a: &mut dyn LinearMap, g: Tensor<2>, stop: &StopRule) -> Solution {
        self.0.fetch_add(1, Ordering::Relaxed);
        let mut map = |u: Tensor<2>| a.apply(u) + g.clone();
        let plain = PicardConfig::new().build().unwrap();
        plain.solve(&mut map, g.clone(), stop)
    }
}

fn layer(gradient: GradientConfig) -> Deq {
    config(solver_for(&gradient), gradient).build().unwrap()
}

#[test]
fn solvers_of_ones_own_find_the_equilibrium_and_its_gradient() {
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let adjoint = Arc::new(Counting::default());
    let deq = layer(implicit(SolverConfig::anderson()))
        .with_solver(Arc::new(Halfway))
        .unwrap()
        .with_adjoint_solver(adjoint.clone())
        .unwrap();
    assert_eq!(deq.solver_name(), "halfway");
    let z0 = Tensor::zeros([BATCH, DIM], &device);
    let out = deq.forward(&cell, &inputs, z0.clone());
    assert!(out.solve.as_ref().unwrap().all_converged());
    let theirs = layer(implicit(SolverConfig::anderson()));
    let expected = theirs.forward(&cell, &inputs, z0);
    assert_close(&values(&out.z), &values(&expected.z), tolerance(1e-11), "z");
    assert_ne!(out.nfe, expected.nfe);
    let actual = gradients(&cell, &inputs, loss(&out.output, &device));
    assert_gradients(&actual, &closed_form(&cell, &inputs), 1e-8, "own solvers");
    assert_eq!(adjoint.0.load(Ordering::Relaxed), 1);
}

#[test]
fn a_refined_shine_calls_the_adjoint_solver_too() {
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let adjoint = Arc::new(Counting::default());
    let refine = ImplicitConfig::new().with_stop(tight());
    let shine = ShineConfig::new().with_refine(Some(refine));
    let deq = layer(GradientConfig::Shine(shine))
        .with_adjoint_solver(adjoint.clone())
        .unwrap();
    let actual = gradients_of(&deq, &cell, &inputs);
    assert_gradients(&actual, &closed_form(&cell, &inputs), 1e-8, "refined");
    assert_eq!(adjoint.0.load(Ordering::Relaxed), 1);
}

#[test]
fn a_solver_that_the_gradient_has_no_use_for_is_refused() {
    let message = |error: DeqError| error.to_string();
    for gradient in every_gradient() {
        let deq = layer(gradient.clone());
        let forward = deq.clone().with_solver(Arc::new(Halfway));
        let expected = match &gradient {
            GradientConfig::Shine(_) => {
                "the shine gradient reuses the solve of the broyden solver, but solver is halfway"
            }
            GradientConfig::Reversible(_) => {
                "the reversible gradient reuses the solve of the reversible solver, but solver is \
                 halfway"
            }
            GradientConfig::Unrolled(_) => {
                "the unrolled gradient has no forward solve for the solver halfway"
            }
            _ => "",
        };
        assert_eq!(forward.err().map_or(String::new(), message), expected);

        let backward = deq.with_adjoint_solver(Arc::new(Counting::default()));
        let expected = match &gradient {
            GradientConfig::Implicit(_) | GradientConfig::Shine(_) => "",
            GradientConfig::OneStep => {
                "the one-step gradient has no backward solve for the solver counting"
            }
            GradientConfig::Neumann(_) => {
                "the neumann gradient has no backward solve for the solver counting"
            }
            GradientConfig::Phantom(_) => {
                "the phantom gradient has no backward solve for the solver counting"
            }
            GradientConfig::Reversible(_) => {
                "the reversible gradient has no backward solve for the solver counting"
            }
            GradientConfig::Unrolled(_) => {
                "the unrolled gradient has no backward solve for the solver counting"
            }
        };
        assert_eq!(backward.err().map_or(String::new(), message), expected);
    }
}
