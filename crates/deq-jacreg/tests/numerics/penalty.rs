//! Value and gradient of the penalty.

use crate::support::{ReluCell, TanhCell, device, normal, relative, seeded, tensor, values};
use burn::module::{Module, Param};
use burn::tensor::{DType, Gradients, Tensor};
use core::slice::from_ref;
use deq_core::{EquilibriumCell, FrozenCell};
use deq_jacreg::{
    Estimator, InvalidPenalty, JacobianPenalty, JacobianPenaltyConfig, Probe, TangentCell,
    dense_jacobian, frobenius_norm_sq,
};

const BATCH: usize = 3;
const DIM: usize = 8;

fn penalty(estimator: Estimator) -> JacobianPenalty {
    JacobianPenaltyConfig::new()
        .with_estimator(estimator)
        .build()
        .unwrap()
}

struct Case {
    cell: TanhCell,
    context: Tensor<2>,
    z: Tensor<2>,
}

fn tanh_case() -> Case {
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
    let frozen = FrozenCell::new(&case.cell, &case.context);
    let norms = values(frobenius_norm_sq(&frozen, case.z.clone()));
    norms.iter().sum::<f64>() / (BATCH * DIM) as f64
}

#[test]
fn exact_norm_equals_the_dense_jacobian_and_the_closed_form() {
    let case = tanh_case();
    let frozen = FrozenCell::new(&case.cell, &case.context);
    let jacobian = dense_jacobian(&frozen, case.z.clone());
    let image = frozen.call(case.z.clone());
    let slope = (image.square().neg() + 1.0).unsqueeze_dim::<3>(2);
    let closed = slope * case.cell.weight.val().inner().unsqueeze_dim::<3>(0);
    assert!(relative(&values(jacobian.clone()), &values(closed)) < 1e-14);

    let summed = values(jacobian.square().sum_dim(2).sum_dim(1));
    let norms = values(frobenius_norm_sq(&frozen, case.z));
    assert!(relative(&norms, &summed) < 1e-14);
}

#[test]
fn estimates_average_to_the_frobenius_norm() {
    let case = tanh_case();
    let expected = exact(&case);
    let cell = case.cell.valid();
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
                    let estimate = penalty.estimate(&cell, &case.context, case.z.clone());
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
    let estimate = penalty(Estimator::Cotangent)
        .estimate_with_probes(&case.cell, &case.context, case.z.clone(), &probes)
        .unwrap();
    let value = values(estimate.value.inner())[0];
    assert!(relative(&[value], &[expected / (2 * BATCH * DIM) as f64]) < 1e-14);
    assert_eq!((estimate.nfe, estimate.products), (4, 2));
}

#[test]
fn tangent_value_is_the_norm_of_the_tangent_for_given_probes() {
    let case = tanh_case();
    let probe = normal(4, [BATCH, DIM], 1.0);
    let frozen = FrozenCell::new(&case.cell, &case.context);
    let jacobian = dense_jacobian(&frozen, case.z.clone());
    let tangent = jacobian.matmul(probe.clone().unsqueeze_dim::<3>(2));
    let expected = values(tangent.square().sum())[0] / (BATCH * DIM) as f64;
    let estimate = penalty(Estimator::Tangent)
        .estimate_with_probes(&case.cell, &case.context, case.z.clone(), &[probe])
        .unwrap();
    assert!(relative(&values(estimate.value.inner()), &[expected]) < 1e-9);
    assert_eq!((estimate.nfe, estimate.products), (2, 0));
}

/// Gradients with respect to the weight and the context.
fn gradients(estimator: Estimator, case: &Case, probes: &[Tensor<2>]) -> (Vec<f64>, Vec<f64>) {
    let context = case.context.clone().autodiff().require_grad();
    let z = case.z.clone().autodiff().require_grad();
    let estimate = penalty(estimator)
        .estimate_with_probes(&case.cell, &context, z.clone(), probes)
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
        let by_difference = penalty.estimate_with_probes(&cell, &context, z.clone(), &probes);
        let by_tangent = penalty.estimate_exact_with_probes(&cell, &context, z.clone(), &probes);
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
                Estimator::Tangent => cell.tangent(z.clone(), probe.clone(), &context),
            };
            let closed = product.square().mean();
            let estimate = penalty(estimator)
                .estimate_exact_with_probes(&cell, &context, z.clone(), from_ref(&probe))
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
            .estimate_with_probes(&cell, &context, z, &[probe])
            .unwrap();
        let grads = [
            &estimate.value.backward(),
            &closed.square().mean().backward(),
        ];
        assert_gradient(&cell.inner, grads, tolerance);
        assert_gradient(&cell.outer, grads, tolerance);
    }
}

#[test]
fn non_finite_samples_are_left_out_without_nan() {
    let case = tanh_case();
    let probe = normal(4, [BATCH, DIM], 1.0);
    let poisoned = case.z.clone().slice_fill([1..2, 0..1], f64::NAN);
    for estimator in [Estimator::Cotangent, Estimator::Tangent] {
        let estimate = penalty(estimator)
            .estimate_with_probes(
                &case.cell,
                &case.context,
                poisoned.clone(),
                from_ref(&probe),
            )
            .unwrap();
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
        let z = zero.clone();
        let estimate = penalty(estimator)
            .estimate_with_probes(&case.cell, &case.context, z, from_ref(&zero))
            .unwrap();
        assert_eq!(values(estimate.value.clone().inner()), [0.0]);
        let grads = estimate.value.backward();
        let grad = values(case.cell.weight.val().grad(&grads).unwrap());
        assert!(grad.iter().all(|entry| *entry == 0.0));
    }
}

#[test]
fn rejects_half_precision_and_missing_probes() {
    let case = tanh_case();
    let penalty = penalty(Estimator::Cotangent);
    let half = case.z.clone().cast(DType::F16);
    let error = penalty
        .estimate(&case.cell, &case.context, half)
        .unwrap_err();
    assert_eq!(
        error,
        InvalidPenalty::UnsupportedDType { dtype: DType::F16 }
    );
    assert_eq!(
        error.to_string(),
        "the penalty differentiates by differences and needs a state in f32 or f64, not F16: cast the cell's \
         parameters, context and state first"
    );
    let error = penalty
        .estimate_with_probes(&case.cell, &case.context, case.z, &[])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the penalty needs at least one probe vector"
    );
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
    let estimate = penalty.estimate(&cell, &z.zeros_like(), z.clone()).unwrap();
    assert!(relative(&values(estimate.value.inner()), &[0.25]) < 1e-14);
}

/// Gradients of two estimates with respect to the weight.
fn weight_gradient(case: &Case, value: Tensor<1>) -> Vec<f64> {
    let grads = value.backward();
    values(case.cell.weight.val().grad(&grads).unwrap())
}

#[test]
fn samples_contribute_their_own_share() {
    let case = tanh_case();
    for estimator in [Estimator::Cotangent, Estimator::Tangent] {
        let estimate = penalty(estimator)
            .estimate_exact_with_probes(&case.cell, &case.context, case.z.clone(), &basis())
            .unwrap();
        let frozen = FrozenCell::new(&case.cell, &case.context);
        let norms = values(frobenius_norm_sq(&frozen, case.z.clone()));
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
            .estimate_exact_with_probes(&case.cell, &context, z, &probes)
            .unwrap();
        let alone = weight_gradient(&case, alone.value);
        assert!(relative(&weight_gradient(&case, second), &alone) < 1e-12);
    }
}

#[test]
fn one_sided_differences_reuse_the_image_and_are_accurate_to_the_root_of_epsilon() {
    let case = tanh_case();
    let setting = JacobianPenaltyConfig::new().with_estimator(Estimator::Tangent);
    let setting = setting.with_vectors(2).build().unwrap();
    let exact = {
        let _guard = seeded(8);
        setting
            .estimate_exact(&case.cell, &case.context, case.z.clone())
            .unwrap()
    };
    let image = case.cell.forward(case.z.clone(), &case.context);
    let one_sided = {
        let _guard = seeded(8);
        setting
            .estimate_one_sided(&case.cell, &case.context, case.z.clone(), image)
            .unwrap()
    };
    assert_eq!((one_sided.nfe, one_sided.products), (2, 0));
    let error = relative(
        &values(one_sided.value.clone()),
        &values(exact.value.clone()),
    );
    assert!(error < 1e-6, "{error}");
    let actual = weight_gradient(&case, one_sided.value);
    let error = relative(&actual, &weight_gradient(&case, exact.value));
    assert!(error < 1e-6, "{error}");
}

#[test]
fn the_denoising_energy_tends_to_the_tangent_estimate_at_an_equilibrium() {
    let mut case = tanh_case();
    let frozen = FrozenCell::new(&case.cell, &case.context);
    for _ in 0..300 {
        case.z = frozen.call(case.z);
    }
    let setting = penalty(Estimator::Tangent);
    let exact = {
        let _guard = seeded(8);
        setting
            .estimate_exact(&case.cell, &case.context, case.z.clone())
            .unwrap()
    };
    let exact = values(exact.value)[0];
    let mut errors = Vec::new();
    for sigma in [1e-2, 1e-3, 1e-4] {
        let _guard = seeded(8);
        let energy = setting
            .denoising_energy(&case.cell, &case.context, case.z.clone(), sigma)
            .unwrap();
        assert_eq!((energy.nfe, energy.products), (1, 0));
        errors.push((values(energy.value)[0] - exact).abs() / exact);
    }
    // The leading error is linear in sigma.
    assert!(
        errors[1] < 0.2 * errors[0] && errors[2] < 0.2 * errors[1],
        "{errors:?}"
    );
    let wrong = setting.denoising_energy(&case.cell, &case.context, case.z, 0.0);
    assert_eq!(
        wrong.unwrap_err().to_string(),
        "sigma is 0, but must be a finite number above 0"
    );
}

#[test]
fn power_iterations_turn_the_estimate_from_the_norm_to_the_spectral_radius() {
    let mut case = tanh_case();
    // Slopes times a symmetric matrix have real eigenvalues, so that power iteration settles.
    let half = normal(1, [DIM, DIM], 0.2);
    case.cell = TanhCell::new(half.clone() + half.transpose());
    let frozen = FrozenCell::new(&case.cell, &case.context);
    let spectra = deq_jacreg::spectrum(&frozen, case.z.clone());
    let squares = spectra.iter().map(|sample| sample[0].norm().powi(2));
    let radius_sq = squares.sum::<f64>() / BATCH as f64;
    let estimate = |rounds| {
        let setting = JacobianPenaltyConfig::new().with_power_iterations(rounds);
        let setting = setting.build().unwrap();
        let _guard = seeded(8);
        let estimate = setting
            .estimate_exact(&case.cell, &case.context, case.z.clone())
            .unwrap();
        assert_eq!(estimate.products, 1 + rounds);
        (values(estimate.value)[0] - radius_sq).abs() / radius_sq
    };
    let errors = [0, 3, 10, 500].map(estimate);
    assert!(errors[0] > 0.1, "the norm is not the radius: {errors:?}");
    assert!(errors[3] < 1e-6 && errors[2] < errors[0], "{errors:?}");
}

/// Bias and variance of one probe, for one sample, over many draws: unbiased, with the variance that theory gives each distribution of probes.
#[test]
fn the_variance_of_an_estimate_is_that_of_theory() {
    const DRAWS: usize = 20_000;
    let cell = TanhCell::new(normal(1, [DIM, DIM], 0.3));
    let (context, z) = (normal(2, [1, DIM], 0.5), normal(3, [1, DIM], 0.7));
    let jacobian = values(dense_jacobian(&FrozenCell::new(&cell, &context), z.clone()));
    let entry = |i: usize, j: usize| jacobian[i * DIM + j];
    // `J J^T` for cotangents, `J^T J` for tangents.
    let gram = |estimator, i: usize, j: usize| -> f64 {
        let term = |k| match estimator {
            Estimator::Cotangent => entry(i, k) * entry(j, k),
            Estimator::Tangent => entry(k, i) * entry(k, j),
        };
        (0..DIM).map(term).sum()
    };
    let many = |x: &Tensor<2>| x.clone().repeat_dim(0, DRAWS);
    for estimator in [Estimator::Cotangent, Estimator::Tangent] {
        let squares: f64 = (0..DIM)
            .flat_map(|i| (0..DIM).map(move |j| (i, j)))
            .map(|(i, j)| gram(estimator, i, j).powi(2))
            .sum();
        let diagonal: f64 = (0..DIM).map(|i| gram(estimator, i, i).powi(2)).sum();
        let trace: f64 = (0..DIM).map(|i| gram(estimator, i, i)).sum();
        for (distribution, variance) in [
            (Probe::Gaussian, 2.0 * squares),
            (Probe::Rademacher, 2.0 * (squares - diagonal)),
        ] {
            let setting = JacobianPenaltyConfig::new()
                .with_estimator(estimator)
                .with_distribution(distribution);
            let _guard = seeded(12);
            let estimate = setting
                .build()
                .unwrap()
                .estimate_exact(&cell.valid(), &many(&context), many(&z))
                .unwrap();
            let draws: Vec<f64> = values(estimate.per_sample * DIM as f64);
            let mean = draws.iter().sum::<f64>() / DRAWS as f64;
            let found = draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / DRAWS as f64;
            println!(
                "{estimator:?}, {distribution:?}: standard deviation {:.2} of the mean",
                found.sqrt() / mean
            );
            let standard_error = (variance / DRAWS as f64).sqrt();
            assert!(
                (mean - trace).abs() < 4.0 * standard_error,
                "{mean}, {trace}"
            );
            // The fourth moments of these squares are below 15 variances squared: 4 sqrt(15 / draws) is 0.11.
            assert!((found / variance - 1.0).abs() < 0.11, "{found}, {variance}");
        }
    }
}
