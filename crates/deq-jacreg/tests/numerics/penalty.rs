//! Value and gradient of the penalty.

use crate::support::{
    Halving, ReluCell, TanhCell, WithoutTangent, device, normal, relative, seeded, tensor, values,
};
use burn::module::{Module, Param};
use burn::tensor::{DType, Gradients, Tensor};
use core::slice::from_ref;
use deq_core::solvers::StopConfig;
use deq_core::{
    Deq, DeqConfig, EquilibriumCell, GradientConfig, ImplicitConfig, Lowered, PhantomConfig,
    Precision,
};
use deq_jacreg::{
    DenoisingConfig, Estimator, InvalidPenalty, JacobianPenalty, JacobianPenaltyConfig, Penalty,
    Probe, dense_jacobian, frobenius_norm_sq,
};

pub(crate) const BATCH: usize = 3;
pub(crate) const DIM: usize = 8;

pub(crate) fn penalty(estimator: Estimator) -> JacobianPenalty {
    JacobianPenaltyConfig::new()
        .with_estimator(estimator)
        .build()
        .unwrap()
}

pub(crate) struct Case {
    pub(crate) cell: TanhCell,
    pub(crate) context: Tensor<2>,
    pub(crate) z: Tensor<2>,
}

impl Case {
    /// The penalty by the cell's tangent.
    pub(crate) fn at(&self, penalty: &JacobianPenalty) -> Penalty {
        penalty.at(&self.cell, &self.context, &self.z).unwrap()
    }

    /// The penalty by the cell's tangent.
    fn with_probes(&self, estimator: Estimator, probes: &[Tensor<2>]) -> Penalty {
        penalty(estimator)
            .at_with_probes(&self.cell, &self.context, &self.z, probes)
            .unwrap()
    }

    /// The penalty by differences.
    fn by_differences(&self, estimator: Estimator, probes: &[Tensor<2>]) -> Penalty {
        let cell = without_tangent(&self.cell);
        penalty(estimator)
            .at_with_probes(&cell, &self.context, &self.z, probes)
            .unwrap()
    }
}

fn without_tangent<C: Module>(cell: &C) -> WithoutTangent<C> {
    WithoutTangent { cell: cell.clone() }
}

pub(crate) fn tanh_case() -> Case {
    Case {
        cell: TanhCell::new(normal(1, [DIM, DIM], 0.3)),
        context: normal(2, [BATCH, DIM], 0.5),
        z: normal(3, [BATCH, DIM], 0.7),
    }
}

/// Probes that make the estimate exact: `sqrt(dim) e_i` on every row.
fn basis() -> Vec<Tensor<2>> {
    (0..DIM)
        .map(|index| {
            let zero = Tensor::<2>::zeros([BATCH, DIM], &device());
            zero.slice_fill([0..BATCH, index..index + 1], (DIM as f64).sqrt())
        })
        .collect()
}

/// `|J|_F^2 / (batch * dim)`.
fn exact(case: &Case) -> f64 {
    let norms = values(frobenius_norm_sq(&case.cell, &case.context, &case.z));
    norms.iter().sum::<f64>() / (BATCH * DIM) as f64
}

#[test]
fn exact_norm_equals_the_dense_jacobian_and_the_closed_form() {
    let case = tanh_case();
    let jacobian = dense_jacobian(&case.cell, &case.context, &case.z);
    let fz = case.cell.valid().forward(case.z.clone(), &case.context);
    let slope = (fz.square().neg() + 1.0).unsqueeze_dim::<3>(2);
    let closed = slope * case.cell.weight.val().inner().unsqueeze_dim::<3>(0);
    assert!(relative(&values(jacobian.clone()), &values(closed)) < 1e-14);

    let summed = values(jacobian.square().sum_dim(2).sum_dim(1));
    let norms = values(frobenius_norm_sq(&case.cell, &case.context, &case.z));
    assert!(relative(&norms, &summed) < 1e-14);
}

#[test]
fn estimates_average_to_the_frobenius_norm() {
    let case = tanh_case();
    let expected = exact(&case);
    let cell = without_tangent(&case.cell.valid());
    let _guard = seeded(30);
    for estimator in [Estimator::Cotangent, Estimator::Tangent] {
        for distribution in [Probe::Gaussian, Probe::Rademacher] {
            let penalty = JacobianPenaltyConfig::new()
                .with_estimator(estimator)
                .with_distribution(distribution)
                .build()
                .unwrap();
            let draws: Vec<f64> = (0..1000)
                .map(|_| {
                    let estimate = penalty.at(&cell, &case.context, &case.z);
                    values(estimate.unwrap().value)[0]
                })
                .collect();
            let count = draws.len() as f64;
            let mean = draws.iter().sum::<f64>() / count;
            let variance = draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (count - 1.0);
            let standard_error = (variance / count).sqrt();
            assert!(
                (mean - expected).abs() < 4.0 * standard_error,
                "{estimator:?}, {distribution:?}: {mean} +- {standard_error}, exactly {expected}"
            );
        }
    }
}

#[test]
fn cotangent_value_is_exact_for_given_probes() {
    let case = tanh_case();
    let probes = [normal(4, [BATCH, DIM], 1.0), normal(5, [BATCH, DIM], 1.0)];
    let expected: f64 = probes
        .iter()
        .map(|probe| case.cell.transposed_product(&case.z, &case.context, probe))
        .map(|product| values(product.inner().square().sum())[0])
        .sum();
    for (estimate, evaluations) in [
        (case.with_probes(Estimator::Cotangent, &probes), 2),
        (case.by_differences(Estimator::Cotangent, &probes), 4),
    ] {
        let value = values(estimate.value.clone().inner())[0];
        assert!(relative(&[value], &[expected / (2 * BATCH * DIM) as f64]) < 1e-14);
        assert_eq!((estimate.nfe(), estimate.products), (0, 2));
        let _ = estimate.value.clone().backward();
        assert_eq!((estimate.nfe(), estimate.products), (evaluations, 2));
    }
}

#[test]
fn tangent_value_is_the_norm_of_the_tangent_for_given_probes() {
    let case = tanh_case();
    let probe = normal(4, [BATCH, DIM], 1.0);
    let jacobian = dense_jacobian(&case.cell, &case.context, &case.z);
    let tangent = jacobian.matmul(probe.clone().unsqueeze_dim::<3>(2));
    let expected = values(tangent.square().sum())[0] / (BATCH * DIM) as f64;
    let probes = from_ref(&probe);
    for (estimate, evaluations, tolerance) in [
        (case.with_probes(Estimator::Tangent, probes), 1, 1e-14),
        (case.by_differences(Estimator::Tangent, probes), 2, 1e-9),
    ] {
        assert_eq!((estimate.nfe(), estimate.products), (evaluations, 0));
        let _ = estimate.value.clone().backward();
        assert_eq!(estimate.nfe(), evaluations);
        assert!(relative(&values(estimate.value.inner()), &[expected]) < tolerance);
    }
}

/// Gradients by differences with respect to the weight and the context.
fn gradients(estimator: Estimator, case: &Case, probes: &[Tensor<2>]) -> (Vec<f64>, Vec<f64>) {
    let context = case.context.clone().autodiff().require_grad();
    let z = case.z.clone().autodiff().require_grad();
    let estimate = penalty(estimator)
        .at_with_probes(&without_tangent(&case.cell), &context, &z, probes)
        .unwrap();
    let grads = estimate.value.backward();
    assert!(z.grad(&grads).is_none(), "z* is a constant");
    (
        values(case.cell.weight.val().grad(&grads).unwrap()),
        values(context.grad(&grads).unwrap()),
    )
}

#[test]
fn gradients_equal_finite_differences_of_the_exact_norm() {
    let case = tanh_case();
    let step = f64::EPSILON.cbrt();
    let differentiate = |move_entry: &dyn Fn(usize, f64) -> Case, entries: usize| -> Vec<f64> {
        (0..entries)
            .map(|entry| {
                let [plus, minus] = [step, -step].map(|by| exact(&move_entry(entry, by)));
                (plus - minus) / (2.0 * step)
            })
            .collect()
    };
    let moved = |tensor: Tensor<2>, entry: usize, by: f64| -> Tensor<2> {
        let [_, columns] = tensor.dims();
        let (row, column) = (entry / columns, entry % columns);
        let index = [row..row + 1, column..column + 1];
        let entry = tensor.clone().slice(index.clone());
        tensor.slice_assign(index, entry + by)
    };
    let by_weight = |entry, by| Case {
        cell: TanhCell::new(moved(case.cell.weight.val().inner(), entry, by)),
        context: case.context.clone(),
        z: case.z.clone(),
    };
    let by_context = |entry, by| Case {
        cell: case.cell.clone(),
        context: moved(case.context.clone(), entry, by),
        z: case.z.clone(),
    };
    let weight = differentiate(&by_weight, DIM * DIM);
    let context = differentiate(&by_context, BATCH * DIM);
    for estimator in [Estimator::Cotangent, Estimator::Tangent] {
        let (weight_grad, context_grad) = gradients(estimator, &case, &basis());
        assert!(relative(&weight_grad, &weight) < 1e-5, "{estimator:?}");
        assert!(relative(&context_grad, &context) < 1e-5, "{estimator:?}");
    }
}

/// The gradients of a tensor by double backward: those of `|J^T v|^2` with `J^T v` in closed form.
fn assert_gradient(parameter: &Param<Tensor<2>>, grads: [&Gradients; 2], tolerance: f64) {
    let [actual, closed] = grads.map(|grads| values(parameter.val().grad(grads).unwrap()));
    let error = relative(&actual, &closed);
    println!("relative error of the gradient {error:.1e}");
    assert!(error < tolerance, "{error}");
}

#[test]
fn smooth_cells_have_the_gradient_of_double_backward() {
    for (dtype, exact, differenced) in [(DType::F64, 1e-12, 1e-8), (DType::F32, 1e-5, 1e-3)] {
        let case = tanh_case();
        let cell = TanhCell::new(case.cell.weight.val().inner().cast(dtype));
        let context = case.context.cast(dtype);
        let z = case.z.cast(dtype);
        let probes = [normal(6, [BATCH, DIM], 1.0).cast(dtype)];
        let closed = || {
            let product = cell.transposed_product(&z, &context, &probes[0]);
            product.square().mean().backward()
        };
        let penalty = penalty(Estimator::Cotangent);
        let by_difference = penalty.at_with_probes(&without_tangent(&cell), &context, &z, &probes);
        let by_tangent = penalty.at_with_probes(&cell, &context, &z, &probes);
        for (estimate, tolerance) in [(by_difference, differenced), (by_tangent, exact)] {
            let value = estimate.unwrap().value;
            assert_eq!(value.dtype(), dtype);
            assert_gradient(&cell.weight, [&value.backward(), &closed()], tolerance);
        }
    }
}

#[test]
fn exact_tangents_need_no_room_around_kinks() {
    let (batch, width) = (64, 32);
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
        let [inner, outer] =
            [[DIM, width], [width, DIM]].map(|dims| normal(7, dims, 0.3).cast(dtype));
        let cell = ReluCell::new(inner, outer);
        let context = normal(8, [batch, width], 0.5).cast(dtype);
        let z = normal(9, [batch, DIM], 0.7).cast(dtype);
        let probe = normal(10, [batch, DIM], 1.0).cast(dtype);
        for estimator in [Estimator::Cotangent, Estimator::Tangent] {
            let product = match estimator {
                Estimator::Cotangent => cell.transposed_product(&z, &context, &probe),
                _ => cell.tangent(z.clone(), probe.clone(), &context).unwrap().1,
            };
            let closed = product.square().mean();
            let estimate = penalty(estimator)
                .at_with_probes(&cell, &context, &z, from_ref(&probe))
                .unwrap();
            let [value, expected] = [&estimate.value, &closed].map(|v| values(v.clone().inner()));
            assert!(relative(&value, &expected) < tolerance);
            let grads = [&estimate.value.backward(), &closed.backward()];
            assert_gradient(&cell.inner, grads, tolerance);
            assert_gradient(&cell.outer, grads, tolerance);
        }
    }
}

#[test]
fn differences_of_piecewise_linear_cells_are_exact_between_kinks() {
    let width = 2 * DIM;
    for (dtype, tolerance) in [(DType::F64, 1e-8), (DType::F32, 1e-3)] {
        let [inner, outer] =
            [[DIM, width], [width, DIM]].map(|dims| normal(7, dims, 0.1).cast(dtype));
        let cell = ReluCell::new(inner, outer);
        // Offsets of +-3, against |z A| near 0.2, keep every unit away from its kink.
        let context = normal(8, [BATCH, width], 0.5).sign().cast(dtype) * 3.0;
        let z = normal(9, [BATCH, DIM], 0.7).cast(dtype);
        let probe = normal(10, [BATCH, DIM], 1.0).cast(dtype);
        let closed = cell.transposed_product(&z, &context, &probe);
        let estimate = penalty(Estimator::Cotangent)
            .at_with_probes(&without_tangent(&cell), &context, &z, &[probe])
            .unwrap();
        let grads = [
            &estimate.value.backward(),
            &closed.square().mean().backward(),
        ];
        assert_gradient(&cell.inner, grads, tolerance);
        assert_gradient(&cell.outer, grads, tolerance);
    }
}

/// The estimates of every kind, by the cell's tangent and by differences.
fn all_estimates(case: &Case, probe: &Tensor<2>) -> Vec<Penalty> {
    let estimators = [
        Estimator::Cotangent,
        Estimator::Tangent,
        Estimator::Denoising(DenoisingConfig::new(0.1)),
    ];
    estimators
        .into_iter()
        .flat_map(|estimator| {
            let probes = from_ref(probe);
            [
                case.with_probes(estimator, probes),
                case.by_differences(estimator, probes),
            ]
        })
        .collect()
}

#[test]
fn non_finite_samples_are_left_out_without_nan() {
    let mut case = tanh_case();
    let probe = normal(4, [BATCH, DIM], 1.0);
    case.z = case.z.slice_fill([1..2, 0..1], f64::NAN);
    for estimate in all_estimates(&case, &probe) {
        let finite: Vec<bool> = estimate.finite.into_data().iter::<bool>().collect();
        assert_eq!(finite, [true, false, true]);
        assert!(values(estimate.value.clone().inner())[0] > 0.0);
        let grads = estimate.value.backward();
        let grad = values(case.cell.weight.val().grad(&grads).unwrap());
        assert!(grad.iter().all(|entry| entry.is_finite()));
    }
}

#[test]
fn zero_directions_give_zero_value_and_gradient() {
    let case = tanh_case();
    let zero = case.z.zeros_like();
    for estimator in [Estimator::Cotangent, Estimator::Tangent] {
        let probes = from_ref(&zero);
        for estimate in [
            case.with_probes(estimator, probes),
            case.by_differences(estimator, probes),
        ] {
            assert_eq!(values(estimate.value.clone().inner()), [0.0]);
            let grads = estimate.value.backward();
            let grad = values(case.cell.weight.val().grad(&grads).unwrap());
            assert!(grad.iter().all(|entry| *entry == 0.0));
        }
    }
}

#[test]
fn rejects_differences_in_half_precision_and_missing_probes() {
    let case = tanh_case();
    let half = |x: &Tensor<2>| x.clone().inner().cast(DType::F16);
    let cell = TanhCell::new(half(&case.cell.weight.val()));
    let (context, z) = (half(&case.context), half(&case.z));
    let by_differences = without_tangent(&cell);
    for estimator in [Estimator::Cotangent, Estimator::Tangent] {
        let penalty = penalty(estimator);
        // The state of a lowered cell says nothing of its precision.
        let (lowered, rounded) =
            Lowered::new(&without_tangent(&case.cell), &case.context, Precision::Bf16);
        let error = penalty.at(&lowered, &rounded, &case.z).unwrap_err();
        let dtype = DType::BF16;
        assert_eq!(error, InvalidPenalty::UnsupportedDType { dtype });
        let error = penalty.at(&by_differences, &context, &z).unwrap_err();
        assert_eq!(
            error,
            InvalidPenalty::UnsupportedDType { dtype: DType::F16 }
        );
        assert_eq!(
            error.to_string(),
            "the penalty takes differences where a cell has no tangent of its own, and needs a \
             state in f32 or f64 for them, not F16: give the cell a tangent, or cast its \
             parameters, its context and the state"
        );
        let error = penalty
            .at_with_probes(&case.cell, &case.context, &case.z, &[])
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "the penalty needs at least one probe vector"
        );
    }
    // Nothing is a difference of close points in these.
    let probe = normal(4, [BATCH, DIM], 1.0);
    let probes = [half(&probe)];
    for (estimator, by_tangent) in [
        (Estimator::Cotangent, true),
        (Estimator::Tangent, true),
        (Estimator::Denoising(DenoisingConfig::new(0.5)), false),
    ] {
        let penalty = penalty(estimator);
        let estimate = match by_tangent {
            true => penalty.at_with_probes(&cell, &context, &z, &probes),
            false => penalty.at_with_probes(&by_differences, &context, &z, &probes),
        };
        let value = estimate.unwrap().value;
        assert_eq!(value.dtype(), DType::F16);
        let exact = case.with_probes(estimator, from_ref(&probe)).value;
        let error = relative(&values(value.clone().inner()), &values(exact.inner()));
        assert!(error < 1e-2, "{estimator:?}: {error}");
        let grads = value.backward();
        let grad = values(cell.weight.val().grad(&grads).unwrap());
        assert!(grad.iter().all(|entry| entry.is_finite()));
    }
}

#[test]
fn f16_states_whose_squares_it_cannot_sum_are_penalised() {
    // The products have squares of 75,000.
    let z = Tensor::<2>::zeros([1, 300_000], (&device(), DType::F16));
    let _guard = seeded(32);
    for (estimator, rounds) in [
        (Estimator::Cotangent, 0),
        (Estimator::Cotangent, 2),
        (Estimator::Tangent, 0),
        (Estimator::Denoising(DenoisingConfig::new(1.0)), 0),
    ] {
        let setting = JacobianPenaltyConfig::new()
            .with_estimator(estimator)
            .with_power_iterations(rounds)
            .with_distribution(Probe::Rademacher);
        let estimate = setting.build().unwrap().at(&Halving, &(), &z).unwrap();
        assert_eq!(estimate.value.dtype(), DType::F16);
        let finite: Vec<bool> = estimate.finite.into_data().iter::<bool>().collect();
        assert_eq!(finite, [true]);
        let error = relative(&values(estimate.value), &[0.25]);
        assert!(error < 1e-2, "{estimator:?}: {error}");
    }
}

#[test]
fn rademacher_probes_are_exact_for_a_diagonal_jacobian() {
    // |J v|^2 = sum of J_ii^2 v_i^2 has no variance when v_i^2 = 1.
    let diagonal = Tensor::<2>::eye(DIM, &device()) * tensor(vec![0.5; DIM], [1, DIM]);
    let cell = TanhCell {
        weight: Param::from_tensor(diagonal.autodiff()),
    };
    let z = Tensor::<2>::zeros([BATCH, DIM], &device());
    let penalty = JacobianPenaltyConfig::new()
        .with_distribution(Probe::Rademacher)
        .build()
        .unwrap();
    let _guard = seeded(31);
    let estimate = penalty.at(&cell, &z.zeros_like(), &z).unwrap();
    assert!(relative(&values(estimate.value.inner()), &[0.25]) < 1e-14);
}

/// The gradient of a value with respect to the weight.
fn weight_gradient(case: &Case, value: Tensor<1>) -> Vec<f64> {
    let grads = value.backward();
    values(case.cell.weight.val().grad(&grads).unwrap())
}

#[test]
fn samples_contribute_their_own_share() {
    let case = tanh_case();
    for estimator in [Estimator::Cotangent, Estimator::Tangent] {
        let estimate = case.with_probes(estimator, &basis());
        let norms = values(frobenius_norm_sq(&case.cell, &case.context, &case.z));
        let expected: Vec<f64> = norms.iter().map(|norm| norm / DIM as f64).collect();
        assert!(relative(&values(estimate.per_sample.clone()), &expected) < 1e-13);
        let mean = estimate.per_sample.clone().mean();
        assert!(relative(&values(mean), &values(estimate.value)) < 1e-14);
        // The gradient of one sample is that of the cell on this sample alone.
        let second = estimate.per_sample.narrow(0, 1, 1);
        let context = case.context.clone().narrow(0, 1, 1);
        let probes: Vec<_> = basis().iter().map(|p| p.clone().narrow(0, 1, 1)).collect();
        let z = case.z.clone().narrow(0, 1, 1);
        let alone = penalty(estimator)
            .at_with_probes(&case.cell, &context, &z, &probes)
            .unwrap();
        let alone = weight_gradient(&case, alone.value);
        assert!(relative(&weight_gradient(&case, second), &alone) < 1e-12);
    }
}

/// Of every estimate, with and without the cell's tangent, and of layers that share their
/// evaluation and such that do not.
#[test]
fn the_penalty_at_the_end_of_a_layer_is_that_at_its_equilibrium() {
    let case = tanh_case();
    let stop = || StopConfig::new().with_rel_tol(1e-12).with_max_steps(100);
    let implicit = || GradientConfig::Implicit(ImplicitConfig::new().with_stop(stop()));
    let settings = [
        (Estimator::Cotangent, 0, implicit()),
        (Estimator::Cotangent, 2, implicit()),
        (Estimator::Cotangent, 1, GradientConfig::OneStep),
        (
            Estimator::Cotangent,
            0,
            GradientConfig::Phantom(PhantomConfig::new()),
        ),
        (Estimator::Tangent, 0, implicit()),
    ];
    for (estimator, rounds, gradient) in settings {
        let config = DeqConfig::new().with_stop(stop()).with_gradient(gradient);
        let deq = config.build().unwrap();
        let setting = JacobianPenaltyConfig::new()
            .with_estimator(estimator)
            .with_power_iterations(rounds)
            .with_vectors(2);
        let penalty = setting.build().unwrap();
        the_same(&case.cell, &case, &deq, &penalty);
        the_same(&without_tangent(&case.cell), &case, &deq, &penalty);
    }
}

fn the_same<C>(cell: &C, case: &Case, deq: &Deq, penalty: &JacobianPenalty)
where
    C: EquilibriumCell<State = Tensor<2>, Context = Tensor<2>>,
{
    let solve = || deq.forward(cell, &case.context, case.z.clone());
    let of_loss = |output: &Tensor<2>| (output.clone() * case.context.clone()).sum();
    let gradient = |loss: Tensor<1>| {
        let grads = loss.backward();
        values(case.cell.weight.val().grad(&grads).unwrap())
    };
    let drawn = |estimate: &dyn Fn() -> Result<Penalty, InvalidPenalty>| {
        let _guard = seeded(5);
        estimate().unwrap()
    };

    let out = solve();
    let apart = drawn(&|| penalty.at(cell, &case.context, &out.z));
    let expected_value = values(apart.per_sample.clone().inner());
    let of_layer = gradient(of_loss(&out.output));
    let of_penalty = gradient(apart.value.clone() * 0.7);
    let expected: Vec<f64> = of_layer
        .iter()
        .zip(&of_penalty)
        .map(|(a, b)| a + b)
        .collect();

    let out = solve();
    let shared = drawn(&|| penalty.at_equilibrium(cell, &case.context, &out));
    assert_eq!(values(shared.per_sample.clone().inner()), expected_value);
    let actual = gradient(of_loss(&out.output) + shared.value.clone() * 0.7);
    assert!(relative(&actual, &expected) < 1e-12, "{penalty:?}");
    assert_eq!(shared.products, apart.products);
    assert_eq!(shared.nfe(), apart.nfe());

    // By itself, and with probes of one's own, of which there must be some.
    let out = solve();
    let probes = [normal(11, [BATCH, DIM], 1.0), normal(12, [BATCH, DIM], 1.0)];
    let given = |probes| penalty.at_equilibrium_with_probes(cell, &case.context, &out, probes);
    let shared = given(&probes).unwrap();
    let apart = penalty.at_with_probes(cell, &case.context, &out.z, &probes);
    let expected = gradient(apart.unwrap().value);
    assert!(relative(&gradient(shared.value), &expected) < 1e-12);
    assert_eq!(given(&[]).unwrap_err(), InvalidPenalty::NoProbes);
}
