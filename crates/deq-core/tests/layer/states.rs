//! One problem in states of many shapes.

use crate::support::*;
use burn::module::Module;
use burn::tensor::{Bool, Tensor};
use deq_core::solvers::SolverConfig;
use deq_core::{
    CellContext, EquilibriumCell, FrozenCell, GradientConfig, Pullback, State, check, impl_state,
    unroll,
};
use deq_testkit::{assert_close, values};

#[derive(Clone)]
struct Pair {
    first: Tensor<4>,
    rest: (Tensor<1>, [Tensor<2>; 1]),
}

impl_state!(Pair { first, rest });

/// The cell of these tests on a state that holds its `DIM = 5` columns in another form.
trait Shaped: EquilibriumCell<Context = Inputs> {
    fn new(cell: Cell) -> Self;
    fn cell(&self) -> &Cell;
    fn split(rows: Tensor<2>) -> Self::State;
    fn join(state: Self::State) -> Tensor<2>;
}

macro_rules! shaped {
    ($name:ident, $state:ty, $split:expr, $join:expr) => {
        #[derive(Module, Debug)]
        struct $name {
            cell: Cell,
        }

        impl Shaped for $name {
            fn new(cell: Cell) -> Self {
                Self { cell }
            }
            fn cell(&self) -> &Cell {
                &self.cell
            }
            fn split(rows: Tensor<2>) -> $state {
                let split: fn(Tensor<2>, usize, usize) -> Tensor<2> =
                    |rows, start, width| rows.narrow(1, start, width);
                $split(rows, split)
            }
            fn join(state: $state) -> Tensor<2> {
                Tensor::cat($join(state), 1)
            }
        }

        impl EquilibriumCell for $name {
            type State = $state;
            type Context = Inputs;
            fn forward(&self, z: $state, inputs: &Inputs) -> $state {
                Self::split(self.cell.forward(Self::join(z), inputs))
            }
            fn pullback(&self, z: $state, inputs: &Inputs) -> Option<Pullback<$state>> {
                let product = self.cell.pullback(Self::join(z), inputs)?;
                Some(Box::new(move |u| Self::split(product(Self::join(u)))))
            }

            fn tangent(
                &self,
                z: $state,
                direction: $state,
                inputs: &Inputs,
            ) -> Option<($state, $state)> {
                let y = self.cell.linear(Self::join(z), inputs).tanh();
                let along = Self::join(direction).matmul(self.cell.w.val());
                let along = (y.clone().square().neg() + 1.0) * along;
                Some((Self::split(y + inputs.e.clone()), Self::split(along)))
            }
        }
    };
}

type Cut = fn(Tensor<2>, usize, usize) -> Tensor<2>;

shaped!(
    Flat,
    Tensor<2>,
    |rows: Tensor<2>, _: Cut| rows,
    |rows: Tensor<2>| vec![rows]
);
shaped!(
    Image,
    Tensor<4>,
    |rows: Tensor<2>, _: Cut| {
        let [batch, _] = rows.dims();
        rows.reshape([batch, 1, DIM, 1])
    },
    |image: Tensor<4>| {
        let [batch, ..] = image.dims();
        vec![image.reshape([batch, DIM])]
    }
);
shaped!(
    Tuple,
    (Tensor<3>, Tensor<2>, Tensor<1>),
    |rows: Tensor<2>, cut: Cut| (
        cut(rows.clone(), 0, 2).unsqueeze_dim(1),
        cut(rows.clone(), 2, 2),
        cut(rows, 4, 1).squeeze_dim(1),
    ),
    |(a, b, c): (Tensor<3>, Tensor<2>, Tensor<1>)| vec![a.squeeze_dim(1), b, c.unsqueeze_dim(1)]
);
shaped!(
    Array,
    [Tensor<2>; 2],
    |rows: Tensor<2>, cut: Cut| [cut(rows.clone(), 0, 3), cut(rows, 3, 2)],
    |parts: [Tensor<2>; 2]| parts.to_vec()
);
shaped!(
    List,
    Vec<Tensor<3>>,
    |rows: Tensor<2>, cut: Cut| vec![
        cut(rows.clone(), 0, 1).unsqueeze_dim(2),
        cut(rows, 1, 4).unsqueeze_dim(2),
    ],
    |parts: Vec<Tensor<3>>| -> Vec<Tensor<2>> {
        parts.into_iter().map(|part| part.squeeze_dim(2)).collect()
    }
);
shaped!(
    Struct,
    Pair,
    |rows: Tensor<2>, cut: Cut| {
        let [batch, _] = rows.dims();
        Pair {
            first: cut(rows.clone(), 0, 2).reshape([batch, 2, 1, 1]),
            rest: (cut(rows.clone(), 2, 1).squeeze_dim(1), [cut(rows, 3, 2)]),
        }
    },
    |Pair {
         first,
         rest: (one, [two]),
     }: Pair| {
        let [batch, ..] = first.dims();
        vec![first.reshape([batch, 2]), one.unsqueeze_dim(1), two]
    }
);

/// Everything that a layer computes, by name.
fn outcome<C: Shaped>(gradient: GradientConfig, by_hand: bool) -> Vec<(&'static str, Vec<f64>)> {
    let device = device();
    let mut cell = Cell::new(true, &device);
    cell.by_hand = by_hand;
    let cell = C::new(cell);
    let inputs = inputs(&device);
    let mut stop = tight();
    if !matches!(
        gradient,
        GradientConfig::Reversible(_) | GradientConfig::Unrolled(_)
    ) {
        stop = stop.with_keep(vec![1]);
    }
    let deq = config(solver_for(&gradient), gradient).with_stop(stop);
    let z0 = numbers([BATCH, DIM], 7, 1.0, &device).require_grad();
    let out = deq
        .build()
        .unwrap()
        .forward(&cell, &inputs, C::split(z0.clone()));
    let mut found = vec![
        ("nfe", vec![out.nfe as f64]),
        ("output", values(&C::join(out.output.clone()))),
        ("z", values(&C::join(out.z))),
    ];
    let mut total = loss(&C::join(out.output), &device);
    if let Some(evaluation) = &out.evaluation {
        let direction = numbers([BATCH, DIM], 9, 1.0, &plain_device());
        found.push(("J^T u", values(&evaluation.vjp(direction.clone()))));
        let value = Tensor::zeros([BATCH], &plain_device());
        let term = evaluation.recorded(value, move |at| {
            let tangent = at.tangent(direction.clone()).expect("the cell has one");
            tangent.square().sum_dim(1).squeeze_dim(1)
        });
        total = total + term.sum();
    }
    for correction in out.corrections {
        let fz = C::join(correction.fz);
        found.push(("correction", values(&fz)));
        total = total + loss(&fz, &device) * 0.3;
    }
    let mut grads = total.backward();
    if let Some(start) = z0.grad_remove(&mut grads) {
        found.push(("dz0", values(&start)));
    }
    let of = |tensor: &Tensor<2>| values(&tensor.grad(&grads).unwrap());
    let inner = cell.cell();
    found.extend([
        ("dx", of(&inputs.x)),
        ("de", of(&inputs.e)),
        ("dW", of(&inner.w.val())),
        ("dU", of(&inner.u.val())),
        ("db", values(&inner.b.val().grad(&grads).unwrap())),
    ]);
    if let Some(pass) = out.backward.get() {
        found.push(("products", vec![pass.products as f64]));
    }
    found
}

fn compare<C: Shaped>() {
    for gradient in every_gradient() {
        for by_hand in [false, true] {
            let expected = outcome::<Flat>(gradient.clone(), by_hand);
            let actual = outcome::<C>(gradient.clone(), by_hand);
            assert_eq!(actual.len(), expected.len(), "{gradient}");
            for ((name, actual), (same, expected)) in actual.iter().zip(&expected) {
                assert_eq!(name, same);
                // The same operations on the same numbers, but for the order of sums of gradients.
                let what = format!("{} of {}, {gradient}", name, std::any::type_name::<C>());
                assert_close(actual, expected, tolerance(1e-13), &what);
            }
        }
    }
}

#[test]
fn a_tensor_of_any_rank_has_the_equilibrium_and_gradients_of_its_rows() {
    compare::<Image>();
}

#[test]
fn so_has_a_tuple() {
    compare::<Tuple>();
}

#[test]
fn so_has_an_array() {
    compare::<Array>();
}

#[test]
fn so_has_a_list() {
    compare::<List>();
}

#[test]
fn so_has_a_struct() {
    compare::<Struct>();
}

#[test]
fn products_and_checks_take_states() {
    fn of<C: Shaped>() -> [Vec<f64>; 2] {
        let device = plain_device();
        let mut cell = Cell::new(true, &device);
        cell.by_hand = true;
        let cell = C::new(cell);
        let context = inputs(&self::device());
        let z = numbers([BATCH, DIM], 8, 1.0, &device);
        let u = numbers([BATCH, DIM], 9, 1.0, &device);
        let frozen = FrozenCell::new(&cell, &context, &C::split(z.clone()));
        let shared = C::join(frozen.layout().unflatten(z.clone()));
        assert_eq!(values(&shared), values(&z), "parts lie in order");
        let (z_state, u_state) = (C::split(z.clone()), C::split(u.clone()));
        let error = check::pullback_error(&cell, &context, z_state.clone(), u_state.clone());
        assert!(error.unwrap() < tolerance(1e-13));
        let error = check::tangent_error(&cell, &context, z_state, u_state, 3);
        assert!(error.expect("the cell has a tangent") < tolerance(1e-13));
        [
            values(&frozen.linearize(z.clone())(u.clone())),
            values(&frozen.vjp(z, u)),
        ]
    }
    let [by_hand, automatic] = of::<Flat>();
    for other in [of::<Image>(), of::<Tuple>(), of::<List>(), of::<Struct>()] {
        assert_close(&other[0], &by_hand, tolerance(1e-14), "linearize");
        assert_close(&other[1], &automatic, tolerance(1e-14), "vjp");
    }
}

/// Turns its second part on its side.
#[derive(Module, Debug)]
struct Turning {}

impl EquilibriumCell for Turning {
    type State = (Tensor<2>, Tensor<3>);
    type Context = ();

    fn forward(&self, (a, b): Self::State, (): &()) -> Self::State {
        (a, b.swap_dims(1, 2))
    }
}

fn turned() -> (Tensor<2>, Tensor<3>) {
    let device = plain_device();
    (
        Tensor::zeros([BATCH, 1], &device),
        Tensor::zeros([BATCH, 2, 3], &device),
    )
}

#[test]
#[should_panic(expected = "part 1 of the state has the shape [3, 2] per sample, but had [2, 3]")]
fn a_solve_names_the_part_whose_shape_the_cell_changed() {
    let deq = deq_core::DeqConfig::new().build().unwrap();
    deq.forward(&Turning {}, &(), turned());
}

#[test]
#[should_panic(expected = "part 1 of the state has the shape [3, 2] per sample, but had [2, 3]")]
fn so_does_an_unroll() {
    unroll(&Turning {}, &(), turned(), 2);
}

#[test]
fn a_part_that_reads_no_parameter_may_stand_beside_one_that_does() {
    #[derive(Module, Debug)]
    struct Lagging {
        cell: Cell,
    }
    impl EquilibriumCell for Lagging {
        type State = [Tensor<2>; 2];
        type Context = Inputs;
        fn forward(&self, [z, last]: [Tensor<2>; 2], inputs: &Inputs) -> [Tensor<2>; 2] {
            [self.cell.forward(last * 0.5 + z.clone() * 0.5, inputs), z]
        }
    }
    fn is_state<S: State>(state: S) -> S {
        state
    }
    let device = device();
    let cell = Lagging {
        cell: Cell::new(true, &device),
    };
    // At the equilibrium both parts are the equilibrium of the cell alone.
    let inputs = inputs(&device);
    for gradient in every_gradient() {
        let deq = config(solver_for(&gradient), gradient.clone())
            .build()
            .unwrap();
        let zeros = Tensor::zeros([BATCH, DIM], &plain_device());
        let out = deq.forward(&cell, &inputs, is_state([zeros.clone(), zeros]));
        let actual = gradients(&cell.cell, &inputs, loss(&out.output[0], &device));
        if !matches!(gradient, GradientConfig::OneStep) {
            let expected = closed_form(&cell.cell, &inputs);
            assert_gradients(&actual, &expected, 1e-5, &gradient.to_string());
        }
    }
}

/// A state with a mask beside its numbers, which `f` applies.
#[derive(Clone, Debug)]
struct Masked {
    z: Tensor<2>,
    off: Tensor<2, Bool>,
}

deq_core::impl_state!(Masked { z, off });

#[derive(Module, Debug)]
struct MaskedCell {
    cell: Cell,
}

impl EquilibriumCell for MaskedCell {
    type State = Masked;
    type Context = Inputs;

    fn forward(&self, state: Masked, inputs: &Inputs) -> Masked {
        let z = self.cell.forward(state.z, inputs);
        let z = z.mask_fill(state.off.clone(), 0.0);
        Masked { z, ..state }
    }
}

#[test]
fn what_a_state_carries_beside_its_numbers_stays_off_the_tape() {
    for device in [device(), plain_device().autodiff().gradient_checkpointing()] {
        let cell = MaskedCell {
            cell: Cell::new(true, &device),
        };
        let inputs = inputs(&device);
        let off = numbers([BATCH, DIM], 6, 1.0, &device).lower_elem(0.0);
        let z = Tensor::zeros([BATCH, DIM], &device);
        let deq = config(SolverConfig::anderson(), implicit(SolverConfig::anderson()));
        let out = deq.build().unwrap();
        let out = out.forward(
            &cell,
            &inputs,
            Masked {
                z,
                off: off.clone(),
            },
        );
        assert!(!out.z.is_autodiff() && !out.z.off.is_autodiff());
        let masked = values(&out.output.z.clone().mask_fill(off.bool_not(), 0.0));
        assert!(masked.iter().all(|&entry| entry == 0.0));
        let grads = out.output.z.square().sum().backward();
        assert!(
            values(&cell.cell.w.val().grad(&grads).unwrap())
                .iter()
                .any(|&entry| entry != 0.0)
        );
    }
}
