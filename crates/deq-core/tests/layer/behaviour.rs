//! What the layer does around its gradients: configuration, evaluation, budgets, starts, states on
//! the way, threads.

use crate::support::*;
use burn::module::{Module, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Tensor, TensorData};
use deq_core::dropout::DropoutMask;
use deq_core::solvers::{BroydenConfig, SolveStatus, SolverConfig, StopConfig};
use deq_core::{
    CellContext, DeqConfig, EquilibriumCell, GradientConfig, ImplicitConfig, NeumannGradientConfig,
    PhantomConfig, ReversibleGradientConfig, ShineConfig, TensorMap, UnrolledConfig, check, unroll,
};
use deq_testkit::{assert_close, relative_error, values};

#[test]
fn misconfigured_layers_say_which_solve_is_wrong() {
    let message = |config: DeqConfig| config.build().unwrap_err().to_string();
    assert_eq!(
        message(DeqConfig::new().with_stop(StopConfig::new().with_max_steps(0))),
        "the forward solve is misconfigured: stop.max_steps is 0, but must be at least 1"
    );
    let stop = StopConfig::new().with_check_every(Some(0));
    let gradient = GradientConfig::Implicit(ImplicitConfig::new().with_stop(stop));
    assert_eq!(
        message(DeqConfig::new().with_gradient(gradient)),
        "the backward solve is misconfigured: stop.check_every is 0, but must be at least 1"
    );
    let gradient = GradientConfig::Unrolled(UnrolledConfig::new(0));
    assert_eq!(
        message(DeqConfig::new().with_gradient(gradient)),
        "unrolled.steps is 0, but must be at least 1"
    );
    let states = UnrolledConfig::new(3).with_stored_states(Some(0));
    assert_eq!(
        message(DeqConfig::new().with_gradient(GradientConfig::Unrolled(states))),
        "unrolled.stored_states is 0, but must be at least 1, since the start must be stored"
    );
    let phantom = PhantomConfig::new().with_damping(0.0);
    assert_eq!(
        message(DeqConfig::new().with_gradient(GradientConfig::Phantom(phantom))),
        "phantom.damping is 0, but must be above 0 and at most 1"
    );
    let series = NeumannGradientConfig::new().with_terms(0);
    assert_eq!(
        message(DeqConfig::new().with_gradient(GradientConfig::Neumann(series))),
        "neumann.terms is 0, but must be at least 1"
    );
    let shine = GradientConfig::Shine(ShineConfig::new());
    assert_eq!(
        message(DeqConfig::new().with_gradient(shine.clone())),
        "the shine gradient reuses the solve of the broyden solver, but solver is anderson"
    );
    let short = BroydenConfig::new().with_history(29).into();
    assert_eq!(
        message(DeqConfig::new().with_solver(short).with_gradient(shine)),
        "broyden.history is 29, but must be at least stop.max_steps, since shine reads what a full \
         history forgets"
    );
    assert_eq!(
        message(
            DeqConfig::new()
                .with_gradient(GradientConfig::Reversible(ReversibleGradientConfig::new()))
        ),
        "the reversible gradient reuses the solve of the reversible solver, but solver is anderson"
    );
    let keep = StopConfig::new().with_keep(vec![2]);
    let unrolled = GradientConfig::Unrolled(UnrolledConfig::new(3));
    assert_eq!(
        message(DeqConfig::new().with_stop(keep).with_gradient(unrolled)),
        "stop.keep names solver steps for losses on the way, which the unrolled gradient does not have"
    );
    assert_eq!(
        message(DeqConfig::new().with_budget_jitter(30)),
        "budget_jitter is 30, but must be below stop.max_steps"
    );
}

#[test]
fn every_strategy_can_be_read_from_a_file() {
    for gradient in every_gradient() {
        let config = config(solver_for(&gradient), gradient);
        let json = serde_json::to_string(&config).unwrap();
        let back: DeqConfig = serde_json::from_str(&json).unwrap();
        assert_eq!(back, config);
        back.build().unwrap();
    }
}

#[test]
fn evaluation_records_nothing_and_follows_its_own_stop_rule() {
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let deq = config(SolverConfig::anderson(), implicit(SolverConfig::anderson()))
        .with_eval_stop(Some(tight().with_max_steps(3)))
        .build()
        .unwrap();
    let plain = Tensor::zeros([BATCH, DIM], &plain_device());
    let out = deq.forward(&cell.valid(), &inputs.without_autodiff(), plain.clone());
    assert!(!out.output.is_tracked());
    assert_eq!(out.nfe, 3);
    // Parameters on the autodiff device make it training, whatever the start is.
    let out = deq.forward(&cell, &inputs, plain);
    assert!(out.output.is_tracked());
    assert_eq!(out.nfe, out.solve.unwrap().nfe + 1);
}

#[test]
fn the_jittered_budget_is_uniform_repeatable_and_for_training_only() {
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let stop = tight().with_abs_tol(1e-30).with_max_steps(6);
    let deq = config(SolverConfig::picard(), GradientConfig::OneStep)
        .with_stop(stop)
        .with_budget_jitter(2)
        .build()
        .unwrap();
    let budget = |seed, step| {
        let z0 = Tensor::zeros([BATCH, DIM], &device);
        let out = deq.at_step(seed, step).forward(&cell, &inputs, z0);
        out.solve.unwrap().nfe
    };
    let mut counts = [0; 7];
    (0..200).for_each(|step| counts[budget(5, step)] += 1);
    assert_eq!(counts.iter().sum::<usize>(), 200);
    // Three values with mean 67 and standard deviation 6.7.
    assert!(
        counts[4..].iter().all(|count| (40..94).contains(count)),
        "{counts:?}"
    );
    assert_eq!(budget(5, 17), budget(5, 17));
    let plain = Tensor::zeros([BATCH, DIM], &plain_device());
    let step = (0..).find(|step| budget(5, *step) != 6).unwrap();
    let out = deq
        .at_step(5, step)
        .forward(&cell.valid(), &inputs.without_autodiff(), plain);
    assert_eq!(out.nfe, 6);
    // A budget below the jitter is still one step.
    let short = deq.with_max_steps(1);
    for step in 0..20 {
        let z0 = Tensor::zeros([BATCH, DIM], &device);
        let out = short.at_step(5, step).forward(&cell, &inputs, z0);
        assert_eq!(out.solve.unwrap().nfe, 1);
    }
}

#[test]
fn a_previous_solution_is_a_start_that_saves_evaluations() {
    let device = plain_device();
    let cell = Cell::new(true, &device);
    let mut inputs = inputs(&self::device()).without_autodiff();
    let deq = config(SolverConfig::anderson(), GradientConfig::OneStep)
        .with_stop(tight().with_abs_tol(1e-4))
        .build()
        .unwrap();
    let zeros = Tensor::zeros([BATCH, DIM], &device);
    let first = deq.forward(&cell, &inputs, zeros.clone());
    inputs.x = inputs.x * 1.01;
    let cold = deq.forward(&cell, &inputs, zeros);
    let warm = deq.forward(&cell, &inputs, first.z);
    assert!(warm.nfe < cold.nfe, "{} against {}", warm.nfe, cold.nfe);
}

#[test]
fn states_on_the_way_carry_the_gradient_of_one_step() {
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let deq = config(SolverConfig::picard(), implicit(SolverConfig::anderson()))
        .with_stop(tight().with_keep(vec![0, 2]))
        .build()
        .unwrap();
    let zeros = || Tensor::<2>::zeros([BATCH, DIM], &device);
    let out = deq.forward(&cell, &inputs, zeros());
    assert_eq!(out.corrections.len(), 2);
    assert_eq!(out.nfe, out.solve.as_ref().unwrap().nfe + 3);
    let correction = &out.corrections[1];
    assert_eq!((correction.step, correction.reached), (2, true));
    let three = unroll(&cell, &inputs, zeros(), 3);
    assert_close(
        &values(&correction.fz),
        &values(&three.output),
        tolerance(1e-14),
        "z_2",
    );

    let third = |correction: Tensor<2>| loss(&correction, &device) * 0.3;
    let actual = gradients(
        &cell,
        &inputs,
        loss(&out.output, &device) + third(correction.fz.clone()),
    );
    let two = unroll(&cell, &inputs, zeros(), 2).z;
    let step = cell.forward(two, &inputs);
    let again = deq.forward(&cell, &inputs, zeros());
    let expected = gradients(&cell, &inputs, loss(&again.output, &device) + third(step));
    assert_gradients(&actual, &expected, 1e-12, "with a correction");

    let plain = Tensor::zeros([BATCH, DIM], &plain_device());
    let out = deq.forward(&cell.valid(), &inputs.without_autodiff(), plain);
    assert_eq!(out.corrections.len(), 2);
    assert!(!out.corrections[1].fz.is_tracked());
}

/// Two tensors of different shapes that reach equilibrium together: a `[2, 3]` picture and a vector
/// of 4 numbers, each reading the other.
#[derive(Module, Debug)]
struct Coupled {
    down: Param<Tensor<2>>,
    up: Param<Tensor<2>>,
}

#[derive(Clone)]
struct CoupledContext {
    picture: Tensor<3>,
    mask: DropoutMask<2>,
}

impl CellContext for CoupledContext {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        Self {
            picture: self.picture.map_tensors(map),
            mask: self.mask.map_tensors(map),
        }
    }
}

impl EquilibriumCell for Coupled {
    type State = (Tensor<3>, Tensor<2>);
    type Context = CoupledContext;

    fn forward(&self, z: Self::State, context: &CoupledContext) -> Self::State {
        let (picture, vector) = z;
        let [batch, _, _] = picture.dims();
        let flat = picture.reshape([batch, 6]);
        let vector_next = context.mask.apply(flat.matmul(self.down.val()).tanh());
        let back = vector.matmul(self.up.val()).reshape([batch, 2, 3]);
        let picture_next = (back + context.picture.clone()).tanh();
        (picture_next, vector_next)
    }
}

#[test]
fn every_strategy_handles_several_tensors_and_a_dropout_mask_held_through_the_solve() {
    let device = device();
    let cell = Coupled {
        down: Param::from_tensor(numbers([6, 4], 1, 0.3, &device)),
        up: Param::from_tensor(numbers([4, 6], 2, 0.3, &device)),
    };
    device.seed(3);
    let mask = DropoutMask::draw([2, 4], 0.5, &device);
    let gradients = |gradient: GradientConfig| {
        let deq = config(solver_for(&gradient), gradient).build().unwrap();
        let picture = numbers([2, 6], 4, 1.0, &device).reshape([2, 2, 3]).detach();
        let context = CoupledContext {
            picture: picture.require_grad(),
            mask: mask.clone(),
        };
        let z0 = (
            Tensor::zeros([2, 2, 3], &device),
            Tensor::zeros([2, 4], &device),
        );
        let (picture, vector) = deq.forward(&cell, &context, z0).output;
        let squares = picture.square().sum() + vector.clone().square().sum();
        let grads = (squares + vector.sum()).backward();
        [
            values(&cell.down.val().grad(&grads).unwrap()),
            values(&cell.up.val().grad(&grads).unwrap()),
            values(&context.picture.grad(&grads).unwrap()),
        ]
    };
    let expected = gradients(GradientConfig::Unrolled(UnrolledConfig::new(120)));
    for gradient in every_gradient() {
        let exact = !matches!(gradient, GradientConfig::OneStep);
        let actual = gradients(gradient.clone());
        for (actual, expected) in actual.iter().zip(&expected) {
            let error = relative_error(actual, expected);
            let bound = if exact { tolerance(1e-6) } else { 1.0 };
            assert!(error < bound, "{gradient}: {error}");
        }
    }
}

#[test]
fn a_context_of_many_parts_passes_every_tensor_once() {
    struct Count(usize);
    impl TensorMap for Count {
        fn float<const D: usize>(&mut self, tensor: &Tensor<D>) -> Tensor<D> {
            self.0 += 1;
            tensor.clone() * 2.0
        }
    }
    let device = plain_device();
    let one = Tensor::<1>::ones([2], &device);
    let context = (
        vec![one.clone(), one.clone()],
        Some(one.clone()),
        [(one.clone(), None::<Tensor<2>>)],
    );
    let mut count = Count(0);
    let doubled = context.map_tensors(&mut count);
    assert_eq!(count.0, 4);
    assert_eq!(values(&doubled.2[0].0), [2.0, 2.0]);
}

#[test]
fn gradients_accumulate_over_batches() {
    let device = device();
    let cell = Cell::new(true, &device);
    for gradient in every_gradient() {
        let deq = config(solver_for(&gradient), gradient.clone())
            .build()
            .unwrap();
        let run = |rows: std::ops::Range<usize>| {
            let size = rows.len();
            let x = numbers([BATCH, INPUT], 4, 1.0, &device).slice([rows.clone(), 0..INPUT]);
            let e = Tensor::zeros([size, DIM], &device);
            let out = deq.forward(&cell, &Inputs { x, e }, Tensor::zeros([size, DIM], &device));
            let weight = loss_weight(&device).slice([rows, 0..DIM]);
            GradientsParams::from_grads((out.output.square() * weight).sum().backward(), &cell)
        };
        let whole = run(0..BATCH);
        let mut accumulator = GradientsAccumulator::new();
        accumulator.accumulate(&cell, run(0..1));
        accumulator.accumulate(&cell, run(1..BATCH));
        let sum = accumulator.grads();
        let of = |grads: &GradientsParams| values(&grads.get::<2>(cell.w.id).unwrap());
        assert_close(
            &of(&sum),
            &of(&whole),
            tolerance(1e-8),
            &format!("{gradient}"),
        );
    }
}

#[test]
fn a_cell_goes_to_evaluation_and_back() {
    let device = device();
    let mut cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    for gradient in every_gradient() {
        let deq = config(solver_for(&gradient), gradient).build().unwrap();
        let before = gradients_of(&deq, &cell, &inputs);
        let plain = Tensor::zeros([BATCH, DIM], &plain_device());
        let out = deq.forward(&cell.valid(), &inputs.without_autodiff(), plain);
        assert!(!out.output.is_tracked());
        cell = cell.valid().train();
        let after = gradients_of(&deq, &cell, &inputs);
        assert_gradients(&after, &before, 1e-14, "back in training");
    }
}

#[test]
fn two_threads_train_two_models_at_once() {
    let device = device();
    let first = Cell::new(true, &device);
    let mut second = Cell::new(true, &device);
    second.w = Param::from_tensor(numbers([DIM, DIM], 13, 0.3, &device));
    let all = |cell: &Cell| -> Vec<[Vec<f64>; 5]> {
        let layers = every_gradient()
            .into_iter()
            .map(|gradient| config(solver_for(&gradient), gradient).build().unwrap());
        layers
            .map(|deq| gradients_of(&deq, cell, &inputs(&device)))
            .collect()
    };
    let alone = [all(&first), all(&second)];
    let together = std::thread::scope(|scope| {
        [&first, &second]
            .map(|cell| scope.spawn(move || (0..5).map(|_| all(cell)).collect::<Vec<_>>()))
            .map(|thread| thread.join().unwrap())
    });
    for (rounds, expected) in together.iter().zip(&alone) {
        for round in rounds {
            for (actual, expected) in round.iter().zip(expected) {
                assert_gradients(actual, expected, 1e-14, "beside another thread");
            }
        }
    }
}

#[test]
fn gradients_are_the_same_with_gradient_checkpointing() {
    let of = |device: &Device| -> Vec<[Vec<f64>; 5]> {
        let cell = Cell::new(true, device);
        let inputs = inputs(device);
        every_gradient()
            .into_iter()
            .map(|gradient| {
                let deq = config(solver_for(&gradient), gradient).build().unwrap();
                gradients_of(&deq, &cell, &inputs)
            })
            .collect()
    };
    let kept = of(&device());
    let checkpointed = of(&device().gradient_checkpointing());
    for (actual, expected) in checkpointed.iter().zip(&kept) {
        assert_gradients(actual, expected, 1e-14, "checkpointed");
    }
}

#[test]
fn a_wrong_pullback_is_found_and_a_right_one_passes() {
    let device = plain_device();
    let mut cell = Cell::new(true, &device);
    let context = inputs(&self::device()).without_autodiff();
    let z = numbers([BATCH, DIM], 8, 1.0, &device);
    let u = numbers([BATCH, DIM], 9, 1.0, &device);
    let error = |cell: &Cell| check::pullback_error(cell, &context, z.clone(), u.clone());
    assert_eq!(error(&cell), None);
    cell.by_hand = true;
    assert!(error(&cell).unwrap() < if single() { 1e-5 } else { 1e-14 });
    // The hand-written slope is that of tanh, which this map no longer has.
    cell.tanh = false;
    assert!(error(&cell).unwrap() > 1e-2);
}

#[test]
fn a_sample_that_spoils_its_start_shows_in_the_output_of_training() {
    let device = device();
    let cell = Cell::new(true, &device);
    let sound = inputs(&device);
    let mut spoiled = vec![0.0; BATCH * DIM];
    spoiled[DIM + 2] = f64::NAN;
    let e = TensorData::new(spoiled, [BATCH, DIM]);
    let e = Tensor::<2>::from_data(e.convert_dtype(sound.x.dtype()), &device).require_grad();
    let inputs = Inputs { x: sound.x, e };
    for gradient in [
        implicit(SolverConfig::anderson()),
        GradientConfig::OneStep,
        GradientConfig::Reversible(ReversibleGradientConfig::new()),
    ] {
        let solver = solver_for(&gradient);
        let deq = config(solver, gradient.clone()).build().unwrap();
        let start = Tensor::<2>::zeros([BATCH, DIM], &device);
        let out = deq.forward(&cell, &inputs, start.clone());
        let rows: Vec<bool> = (values(&out.output).chunks(DIM))
            .map(|row| row.iter().all(|entry| entry.is_finite()))
            .collect();
        let mut expected = vec![true; BATCH];
        expected[1] = false;
        assert_eq!(rows, expected, "{gradient:?}");
        assert!(loss(&out.output, &device).into_scalar::<f64>().is_nan());

        // Held out, the start stands for the answer, and the outcome of the solve says so.
        let context = inputs.without_autodiff();
        let out = deq.forward(&cell.valid(), &context, start.inner());
        assert!(values(&out.output).iter().all(|entry| entry.is_finite()));
        assert_eq!(out.solve.unwrap().status[1], SolveStatus::NonFinite);
    }
}

#[test]
fn a_solve_reports_no_more_steps_than_the_longest() {
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    for (gradient, longest) in [
        (implicit(SolverConfig::anderson()), 9),
        (
            GradientConfig::Reversible(ReversibleGradientConfig::new()),
            4,
        ),
    ] {
        let endless = StopConfig::new().with_rel_tol(1e-30).with_max_steps(9);
        let config = config(solver_for(&gradient), gradient).with_stop(endless);
        assert_eq!(config.longest_solve(), longest);
        let start = Tensor::<2>::zeros([BATCH, DIM], &device);
        let out = config.build().unwrap().forward(&cell, &inputs, start);
        assert_eq!(out.solve.unwrap().steps, [longest; BATCH]);
    }
}
