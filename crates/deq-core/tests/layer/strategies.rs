//! The other strategies: exact ones against an unroll, inexact ones by their order of convergence.

use crate::support::*;
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use deq_core::solvers::{
    BroydenConfig, LinearSolverConfig, ReversibleConfig, SolveStatus, SolverConfig, StopConfig,
};
use deq_core::{
    Deq, EquilibriumCell, GradientConfig, ImplicitConfig, NeumannGradientConfig, PhantomConfig,
    Pullback, ReversibleGradientConfig, ShineConfig, UnrolledConfig, unroll,
};
use deq_testkit::{assert_close, problems, relative_error, values};
use std::sync::Arc;

fn layer(solver: SolverConfig, gradient: GradientConfig) -> Deq {
    config(solver, gradient).build().unwrap()
}

/// The mean over the five gradients of the error relative to `exact`.
fn error(actual: &[Vec<f64>; 5], exact: &[Vec<f64>; 5]) -> f64 {
    let errors = actual.iter().zip(exact).map(|(a, e)| relative_error(a, e));
    errors.sum::<f64>() / 5.0
}

#[test]
fn a_recomputed_unroll_has_the_gradient_of_the_unroll_and_stores_what_it_was_told() {
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    for steps in [1, 2, 3, 7, 20] {
        let z0 = numbers([BATCH, DIM], 7, 1.0, &device).require_grad();
        let taped = unroll(&cell, &inputs, z0.clone(), steps);
        let grads = loss(&taped.output, &device).backward();
        let start = values(&z0.grad(&grads).unwrap());
        let taped = unroll(&cell, &inputs, z0, steps);
        let expected = gradients(&cell, &inputs, loss(&taped.output, &device));
        for states in [1, 2, 3, 5, 30] {
            let gradient = UnrolledConfig::new(steps).with_stored_states(Some(states));
            let deq = layer(SolverConfig::anderson(), GradientConfig::Unrolled(gradient));
            let z0 = numbers([BATCH, DIM], 7, 1.0, &device).require_grad();
            let out = deq.forward(&cell, &inputs, z0.clone());
            assert_eq!(out.nfe, steps);
            assert_close(
                &values(&out.output),
                &values(&taped.output),
                tolerance(1e-14),
                "z",
            );
            let what = format!("{steps} steps from {states} states");
            let grads = loss(&out.output, &device).backward();
            let dz0 = values(&z0.grad(&grads).unwrap());
            assert_close(&dz0, &start, tolerance(1e-13), &what);
            let out = deq.forward(&cell, &inputs, z0);
            let actual = gradients(&cell, &inputs, loss(&out.output, &device));
            assert_gradients(&actual, &expected, 1e-13, &what);
            let pass = out.backward.get().unwrap();
            assert_eq!(pass.products, steps);
            let most = steps * (steps - 1) / 2;
            match states {
                1 => assert_eq!(pass.evaluations, most),
                30 => assert_eq!(pass.evaluations, 0),
                _ => assert!(pass.evaluations <= most),
            }
        }
    }
}

#[test]
fn the_reversible_gradient_is_that_of_the_iteration_converged_or_not() {
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let damping = 0.7;
    let reversible = || ReversibleConfig::new().with_damping(damping).into();
    for budget in [2, 6, 12] {
        let stop = tight().with_max_steps(budget);
        let deq = config(
            reversible(),
            GradientConfig::Reversible(ReversibleGradientConfig::new()),
        )
        .with_stop(stop);
        let z0 = numbers([BATCH, DIM], 7, 1.0, &device).require_grad();
        let out = deq.build().unwrap().forward(&cell, &inputs, z0.clone());
        assert_eq!(out.nfe, budget);

        let (mut y, mut z) = (z0.clone(), z0.clone());
        for _ in 0..budget / 2 {
            y = y * (1.0 - damping) + cell.forward(z.clone(), &inputs) * damping;
            z = z * (1.0 - damping) + cell.forward(y.clone(), &inputs) * damping;
        }
        assert_close(&values(&out.output), &values(&z), tolerance(1e-14), "z");
        let grads = loss(&z, &device).backward();
        let start = values(&z0.grad(&grads).unwrap());
        let grads = loss(&out.output, &device).backward();
        let actual = values(&z0.grad(&grads).unwrap());
        assert_close(&actual, &start, tolerance(1e-11), "dz0");

        let expected = {
            let (mut y, mut z) = (z0.clone(), z0.clone());
            for _ in 0..budget / 2 {
                y = y * (1.0 - damping) + cell.forward(z.clone(), &inputs) * damping;
                z = z * (1.0 - damping) + cell.forward(y.clone(), &inputs) * damping;
            }
            gradients(&cell, &inputs, loss(&z, &device))
        };
        let out = deq.build().unwrap().forward(&cell, &inputs, z0);
        let actual = gradients(&cell, &inputs, loss(&out.output, &device));
        assert_gradients(&actual, &expected, 1e-11, "reversible");
        let pass = out.backward.get().unwrap();
        assert_eq!((pass.products, pass.evaluations), (budget, 0));
        // Twelve divisions by 0.3 multiply rounding by at most 0.3^-12 = 2e6.
        let rounding = if single() { 1.0 } else { 1e-9 };
        assert!(pass.reversal_error.iter().all(|error| *error < rounding));
    }
}

#[test]
fn stored_pairs_keep_rounding_from_spoiling_a_long_way_back() {
    if single() {
        return; // The numbers below are those of f64.
    }
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    // Twenty pairs back multiply rounding by up to 100^20, four by 100^4.
    let solver = || SolverConfig::from(ReversibleConfig::new().with_damping(0.9));
    let stop = StopConfig::new().with_rel_tol(1e-30).with_max_steps(40);
    let run = |stored| {
        let gradient = ReversibleGradientConfig::new().with_stored_pairs(stored);
        let deq = config(solver(), GradientConfig::Reversible(gradient)).with_stop(stop.clone());
        let z0 = Tensor::zeros([BATCH, DIM], &device);
        let out = deq.build().unwrap().forward(&cell, &inputs, z0);
        let gradients = gradients(&cell, &inputs, loss(&out.output, &device));
        let missed = out.backward.get().unwrap().reversal_error;
        (gradients, missed.into_iter().fold(0.0, f64::max))
    };
    let (every, missed) = run(40);
    assert!(missed < 1e-12, "{missed}");
    let (some, missed) = run(8);
    assert!(missed < 1e-7, "{missed}");
    assert_gradients(&some, &every, 1e-7, "eight stored pairs");
    let (_, missed) = run(1);
    assert!(missed > 1.0, "{missed}");
}

#[test]
fn samples_of_a_reversible_solve_end_one_by_one_and_keep_their_own_gradient() {
    let device = device();
    let cell = Cell::new(true, &device);
    let stop = tight().with_abs_tol(1e-3).with_max_steps(60);
    let deq = config(
        ReversibleConfig::new().into(),
        GradientConfig::Reversible(ReversibleGradientConfig::new()),
    )
    .with_stop(stop)
    .build()
    .unwrap();
    // The second sample starts at its answer, the third far from it.
    let all = inputs(&device);
    let answer = deq.forward(&cell, &all, Tensor::zeros([BATCH, DIM], &device));
    let z0 = Tensor::cat(
        vec![
            Tensor::zeros([1, DIM], &plain_device()),
            answer.z.clone().narrow(0, 1, 1),
            Tensor::full([1, DIM], 9.0, &plain_device()),
        ],
        0,
    );
    let out = deq.forward(&cell, &all, z0.clone());
    let steps = &out.solve.as_ref().unwrap().steps;
    assert!(steps[1] < steps[0] && steps[0] < steps[2], "{steps:?}");
    let together = gradients(&cell, &all, loss(&out.output, &device));

    let mut sums = [0.0; DIM];
    for row in 0..BATCH {
        let one = Inputs {
            x: all
                .x
                .clone()
                .inner()
                .narrow(0, row, 1)
                .autodiff()
                .require_grad(),
            e: Tensor::zeros([1, DIM], &device).require_grad(),
        };
        let alone = deq.forward(&cell, &one, z0.clone().narrow(0, row, 1));
        let weight = loss_weight(&device).narrow(0, row, 1);
        let own = gradients(&cell, &one, (alone.output.square() * weight).sum());
        let row_of = |all: &[f64], width: usize| all[row * width..][..width].to_vec();
        assert_close(
            &row_of(&together[0], INPUT),
            &own[0],
            tolerance(1e-12),
            "dx",
        );
        sums.iter_mut().zip(&own[4]).for_each(|(sum, g)| *sum += g);
    }
    assert_close(&together[4], &sums, tolerance(1e-12), "db");
}

/// `f(z) = w sqrt(z) + x`, which is no number below 0.
#[derive(Module, Debug)]
struct Root {
    w: Param<Tensor<1>>,
}

impl EquilibriumCell for Root {
    type State = Tensor<2>;
    type Context = Tensor<2>;

    fn forward(&self, z: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        z.sqrt() * self.w.val().unsqueeze::<2>() + x.clone()
    }
}

#[test]
fn a_sample_whose_map_fails_on_its_way_spoils_no_gradient_of_a_reversible_solve() {
    let device = device();
    let cell = Root {
        w: Param::from_tensor(Tensor::full([1], 0.5, &device)),
    };
    let deq = config(
        ReversibleConfig::new().with_damping(0.5).into(),
        GradientConfig::Reversible(ReversibleGradientConfig::new()),
    )
    .with_stop(tight().with_max_steps(12))
    .build()
    .unwrap();
    // From 1, the second sample goes to the pair (0.05, -0.14), and no further.
    let x = Tensor::<2>::from_data([[1.0], [-1.4]], &device);
    let gradient = |rows: std::ops::Range<usize>| {
        let x = x.clone().slice([rows, 0..1]);
        let out = deq.forward(&cell, &x, x.ones_like());
        let grads = out.output.sum().backward();
        let dw = values(&cell.w.val().grad(&grads).unwrap());
        (out.solve.unwrap().status, dw[0])
    };
    let (status, together) = gradient(0..2);
    assert_eq!(status, [SolveStatus::MaxSteps, SolveStatus::NonFinite]);
    let apart = gradient(0..1).1 + gradient(1..2).1;
    let error = (together - apart).abs();
    assert!(error < tolerance(1e-12), "{together} instead of {apart}");
}

#[test]
fn phantom_and_neumann_gradients_tend_to_the_exact_one() {
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let exact = closed_form(&cell, &inputs);
    let phantom = |steps, damping| {
        let config = PhantomConfig::new().with_steps(steps).with_damping(damping);
        GradientConfig::Phantom(config)
    };
    let neumann = |terms| GradientConfig::Neumann(NeumannGradientConfig::new().with_terms(terms));
    let floor = tolerance(1e-10);
    let families: [&dyn Fn(usize) -> GradientConfig; 3] =
        [&|k| phantom(k, 1.0), &|k| phantom(k, 0.5), &neumann];
    for family in families {
        let errors: Vec<f64> = [1, 4, 16, 64]
            .map(|k| {
                let deq = layer(SolverConfig::anderson(), family(k));
                error(&gradients_of(&deq, &cell, &inputs), &exact)
            })
            .to_vec();
        assert!(errors[0] > 1e-2, "{errors:?}");
        for pair in errors.windows(2) {
            assert!(pair[1] < 0.7 * pair[0] || pair[1] < floor, "{errors:?}");
        }
        assert!(errors[3] < 1e-6_f64.max(floor), "{errors:?}");
    }
    // Undamped, a phantom gradient of k steps is the series of k - 1 products.
    let one = layer(SolverConfig::anderson(), phantom(4, 1.0));
    let other = layer(SolverConfig::anderson(), neumann(3));
    let one = gradients_of(&one, &cell, &inputs);
    assert_gradients(&one, &gradients_of(&other, &cell, &inputs), 1e-9, "same");
}

#[test]
fn the_series_has_the_length_it_was_given_and_says_how_far_it_got() {
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let series = GradientConfig::Neumann(NeumannGradientConfig::new().with_terms(3));
    let deq = layer(SolverConfig::anderson(), series);
    let out = deq.forward(&cell, &inputs, Tensor::zeros([BATCH, DIM], &device));
    let actual = gradients(&cell, &inputs, loss(&out.output, &device));
    let pass = out.backward.get().unwrap();
    assert_eq!(pass.products, 3);
    let solve = pass.solve.unwrap();
    assert_eq!(solve.reads, 1);
    assert_eq!(solve.status, [SolveStatus::MaxSteps; BATCH]);

    // g + J^T g + (J^T)^2 g + (J^T)^3 g
    let frozen = deq_core::FrozenCell::new(&cell, &inputs, &out.z);
    let g = out.output.clone().inner() * loss_weight(&plain_device()) * 2.0;
    let product = frozen.linearize(out.z.clone());
    let mut u = g.clone();
    for _ in 0..3 {
        u = product(u) + g.clone();
    }
    assert_close(&actual[1], &values(&u), tolerance(1e-13), "adjoint");
}

#[test]
fn a_recomputed_phantom_gradient_equals_the_recorded_one() {
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let of = |states| {
        let config = PhantomConfig::new()
            .with_steps(7)
            .with_stored_states(states);
        let deq = layer(SolverConfig::anderson(), GradientConfig::Phantom(config));
        gradients_of(&deq, &cell, &inputs)
    };
    assert_gradients(&of(Some(2)), &of(None), 1e-12, "phantom");
}

#[test]
fn shine_beats_one_step_refines_to_the_exact_gradient_and_falls_back() {
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let exact = closed_form(&cell, &inputs);
    let broyden = || SolverConfig::from(BroydenConfig::new().with_history(500));
    let of = |gradient| {
        let out = layer(broyden(), gradient);
        let z0 = Tensor::zeros([BATCH, DIM], &device);
        let out = out.forward(&cell, &inputs, z0);
        let gradients = gradients(&cell, &inputs, loss(&out.output, &device));
        (error(&gradients, &exact), out.backward.get())
    };
    let (one_step, _) = of(GradientConfig::OneStep);
    let trusting = ShineConfig::new().with_max_growth(100.0);
    let (shine, pass) = of(GradientConfig::Shine(trusting.clone()));
    let pass = pass.unwrap();
    assert!(shine < one_step, "{shine} against {one_step}");
    assert_eq!(pass.products, 0);
    assert_eq!(pass.refused, [false; BATCH]);

    // Refused everywhere, it is the one-step gradient.
    let strict = ShineConfig::new().with_max_growth(1e-3);
    let (fallen, pass) = of(GradientConfig::Shine(strict));
    assert!((fallen - one_step).abs() < tolerance(1e-12));
    assert_eq!(pass.unwrap().refused, [true; BATCH]);

    let solve = ImplicitConfig::new()
        .with_solver(LinearSolverConfig::gmres())
        .with_stop(tight());
    let refined = trusting.with_refine(Some(solve));
    let (refined, from_estimate) = of(GradientConfig::Shine(refined));
    assert!(refined < tolerance(1e-8), "{refined}");
    assert!(from_estimate.unwrap().solve.unwrap().all_converged());
}

#[test]
fn a_shine_that_is_not_refined_linearises_nothing() {
    #[derive(Module, Debug)]
    struct Given {
        cell: Cell,
    }
    impl EquilibriumCell for Given {
        type State = Tensor<2>;
        type Context = Inputs;
        fn forward(&self, z: Tensor<2>, inputs: &Inputs) -> Tensor<2> {
            self.cell.forward(z, inputs)
        }
        fn pullback(&self, _: Tensor<2>, _: &Inputs) -> Option<Pullback<Tensor<2>>> {
            unreachable!("no product is made")
        }
    }
    let device = device();
    let cell = Given {
        cell: Cell::new(true, &device),
    };
    let gradient = GradientConfig::Shine(ShineConfig::new());
    let deq = layer(solver_for(&gradient), gradient);
    let z0 = Tensor::zeros([BATCH, DIM], &device);
    let out = deq.forward(&cell, &inputs(&device), z0);
    let _ = loss(&out.output, &device).backward();
    assert_eq!(out.backward.get().unwrap().products, 0);
}

/// A problem of the suite as a cell.
#[derive(Module, Debug)]
struct SuiteCell {
    #[module(skip)]
    problem: Map,
}

#[derive(Clone)]
struct Map(Arc<Box<dyn Fn(Tensor<2>) -> Tensor<2> + Send + Sync>>);

impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Map")
    }
}

impl EquilibriumCell for SuiteCell {
    /// Added to `f(z)`, so that its gradient is the adjoint.
    type State = Tensor<2>;
    type Context = Tensor<2>;

    fn forward(&self, z: Tensor<2>, shift: &Tensor<2>) -> Tensor<2> {
        (self.problem.0)(z) + shift.clone()
    }
}

#[test]
fn shine_beats_one_step_on_the_suite() {
    let (mut saved, mut refusals) = (0, 0);
    for problem in problems(&plain_device()) {
        let cell = SuiteCell {
            problem: Map(Arc::new(problem.map)),
        };
        let adjoint = |gradient: GradientConfig| {
            let broyden = BroydenConfig::new().with_history(500).into();
            let deq = layer(broyden, gradient);
            let shift = problem.z0.zeros_like().autodiff().require_grad();
            let out = deq.forward(&cell, &shift, problem.z0.clone());
            assert!(out.solve.unwrap().all_converged());
            let [batch, dim] = problem.z0.dims();
            let weight = numbers([batch, dim], 5, 1.0, &device());
            let grads = (out.output * weight).sum().backward();
            (values(&shift.grad(&grads).unwrap()), out.backward.get())
        };
        let (exact, _) = adjoint(implicit(LinearSolverConfig::gmres()));
        let (shine, pass) = adjoint(GradientConfig::Shine(ShineConfig::new()));
        let (one_step, _) = adjoint(GradientConfig::OneStep);
        let shine = relative_error(&shine, &exact);
        let one_step = relative_error(&one_step, &exact);
        println!(
            "{}: error of SHINE {shine:.2}, of one step {one_step:.2}",
            problem.name
        );
        // Of an estimate that is refused, the one-step gradient is left.
        match pass.unwrap().refused.contains(&true) {
            true => assert!(shine <= one_step, "{}", problem.name),
            false => assert!(shine < 0.6 * one_step, "{}", problem.name),
        }

        let loose = ImplicitConfig::new()
            .with_solver(LinearSolverConfig::gmres())
            .with_stop(StopConfig::new());
        let (_, pass) = adjoint(GradientConfig::Implicit(loose.clone()));
        let afresh = pass.unwrap().products;
        let refined = ShineConfig::new().with_refine(Some(loose));
        let (refined, pass) = adjoint(GradientConfig::Shine(refined));
        // Tolerance 1e-3 on the preconditioned residual, whose condition is that of the shared
        // inverse.
        assert!(relative_error(&refined, &exact) < 1e-2, "{}", problem.name);
        let products = pass.unwrap().products;
        assert!(products <= afresh, "{}: {products}", problem.name);
        println!("    products refined {products}, afresh {afresh}");
        saved += afresh - products;
        refusals += usize::from(shine >= one_step);
    }
    assert!(refusals <= 1, "of five problems");
    // 51 products without the forward solve's help.
    assert!(saved >= 25, "{saved}");
}
