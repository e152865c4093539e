//! The relatives of the penalty, states of several parts, and the variance of an estimate.

use crate::penalty::{BATCH, Case, DIM, penalty, tanh_case};
use crate::support::{TanhCell, WithoutTangent, normal, relative, seeded, values};
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use deq_core::EquilibriumCell;
use deq_jacreg::{
    ArnoldiConfig, DenoisingConfig, Estimator, JacobianPenaltyConfig, Probe, SpectralRadiusConfig,
    arnoldi, dense_jacobian, frobenius_norm_sq, spectral_radius, spectrum,
};

#[test]
fn the_denoising_energy_tends_to_the_tangent_estimate_at_an_equilibrium() {
    let mut case = tanh_case();
    let cell = case.cell.valid();
    for _ in 0..300 {
        case.z = cell.forward(case.z, &case.context);
    }
    let exact = {
        let _guard = seeded(8);
        case.at(&penalty(Estimator::Tangent))
    };
    let exact = values(exact.value)[0];
    let mut errors = Vec::new();
    for sigma in [1e-2, 1e-3, 1e-4] {
        let _guard = seeded(8);
        let energy = case.at(&penalty(Estimator::Denoising(DenoisingConfig::new(sigma))));
        assert_eq!((energy.nfe(), energy.products), (1, 0));
        errors.push((values(energy.value)[0] - exact).abs() / exact);
    }
    // The leading error is linear in sigma.
    assert!(
        errors[1] < 0.2 * errors[0] && errors[2] < 0.2 * errors[1],
        "{errors:?}"
    );
}

#[test]
fn power_iterations_turn_the_estimate_from_the_norm_to_the_spectral_radius() {
    let mut case = tanh_case();
    // Slopes times a symmetric matrix have real eigenvalues, so that power iteration settles.
    let half = normal(1, [DIM, DIM], 0.2);
    case.cell = TanhCell::new(half.clone() + half.transpose());
    let spectra = spectrum(&case.cell, &case.context, &case.z);
    let squares = spectra.iter().map(|sample| sample[0].norm().powi(2));
    let radius_sq = squares.sum::<f64>() / BATCH as f64;
    let estimate = |rounds| {
        let setting = JacobianPenaltyConfig::new().with_power_iterations(rounds);
        let setting = setting.build().unwrap();
        let _guard = seeded(8);
        let estimate = case.at(&setting);
        assert_eq!(estimate.products, 1 + rounds);
        (values(estimate.value)[0] - radius_sq).abs() / radius_sq
    };
    let errors = [0, 3, 10, 500].map(estimate);
    assert!(errors[0] > 0.1, "the norm is not the radius: {errors:?}");
    assert!(errors[3] < 1e-6 && errors[2] < errors[0], "{errors:?}");
}

/// Bias and variance of one probe, for one sample, over many draws: unbiased, with the variance
/// that theory gives each distribution of probes.
#[test]
fn the_variance_of_an_estimate_is_that_of_theory() {
    const DRAWS: usize = 20_000;
    let cell = TanhCell::new(normal(1, [DIM, DIM], 0.3));
    let (context, z) = (normal(2, [1, DIM], 0.5), normal(3, [1, DIM], 0.7));
    let jacobian = values(dense_jacobian(&cell, &context, &z));
    let entry = |i: usize, j: usize| jacobian[i * DIM + j];
    // `J J^T` for cotangents, `J^T J` for tangents.
    let gram = |estimator, i: usize, j: usize| -> f64 {
        let term = |k| match estimator {
            Estimator::Cotangent => entry(i, k) * entry(j, k),
            _ => entry(k, i) * entry(k, j),
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
                .at(&cell.valid(), &many(&context), &many(&z))
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
            // The fourth moments of these squares are below 15 variances squared: 4 sqrt(15 /
            // draws) is 0.11.
            assert!((found / variance - 1.0).abs() < 0.11, "{found}, {variance}");
        }
    }
}

/// A `TanhCell` whose state comes in two parts, of the first two coordinates and of the others.
#[derive(Module, Debug)]
struct Halves {
    whole: TanhCell,
}

type Parts = (Tensor<2>, Tensor<3>);

fn cut(z: Tensor<2>) -> Parts {
    let [batch, dim] = z.dims();
    let rest = z.clone().narrow(1, 2, dim - 2);
    (z.narrow(1, 0, 2), rest.reshape([batch, 2, (dim - 2) / 2]))
}

fn whole((first, rest): Parts) -> Tensor<2> {
    Tensor::cat(vec![first, rest.flatten(1, 2)], 1)
}

impl EquilibriumCell for Halves {
    type State = Parts;
    type Context = Tensor<2>;

    fn forward(&self, z: Parts, context: &Tensor<2>) -> Parts {
        cut(self.whole.forward(whole(z), context))
    }

    fn tangent(&self, z: Parts, direction: Parts, context: &Tensor<2>) -> Option<(Parts, Parts)> {
        let (fz, tangent) = self.whole.tangent(whole(z), whole(direction), context)?;
        Some((cut(fz), cut(tangent)))
    }
}

/// Value and gradient of a penalty with given probes.
fn differentiate<C: EquilibriumCell<Context = Tensor<2>>>(
    cell: &C,
    weight: &Param<Tensor<2>>,
    (context, z, probe): (&Tensor<2>, C::State, C::State),
    estimator: Estimator,
) -> (Vec<f64>, Vec<f64>) {
    let estimate = penalty(estimator).at_with_probes(cell, context, &z, &[probe]);
    let estimate = estimate.unwrap();
    let value = values(estimate.value.clone().inner());
    let grads = estimate.value.backward();
    (value, values(weight.val().grad(&grads).unwrap()))
}

#[test]
fn a_state_of_several_parts_is_as_good_as_one_row() {
    let Case { cell, context, z } = tanh_case();
    let weight = &cell.weight;
    let parts = Halves {
        whole: cell.clone(),
    };
    let probe = normal(4, [BATCH, DIM], 1.0);
    for estimator in [
        Estimator::Cotangent,
        Estimator::Tangent,
        Estimator::Denoising(DenoisingConfig::new(0.1)),
    ] {
        let inputs = || (&context, z.clone(), probe.clone());
        let cut = || (&context, cut(z.clone()), cut(probe.clone()));
        let expected = differentiate(&cell, weight, inputs(), estimator);
        let actual = differentiate(&parts, weight, cut(), estimator);
        assert!(relative(&actual.0, &expected.0) < 1e-14, "{estimator:?}");
        assert!(relative(&actual.1, &expected.1) < 1e-13, "{estimator:?}");
        let by_differences = WithoutTangent {
            cell: parts.clone(),
        };
        let actual = differentiate(&by_differences, weight, cut(), estimator);
        assert!(relative(&actual.0, &expected.0) < 1e-8, "{estimator:?}");
        assert!(relative(&actual.1, &expected.1) < 1e-8, "{estimator:?}");
    }
    // Drawn probes do not depend on how the numbers are arranged.
    let drawn = |value: &dyn Fn() -> Tensor<1>| {
        let _guard = seeded(3);
        values(value().inner())
    };
    let setting = JacobianPenaltyConfig::new()
        .with_vectors(2)
        .with_power_iterations(1);
    let setting = setting.build().unwrap();
    let expected = drawn(&|| setting.at(&cell, &context, &z).unwrap().value);
    let actual = drawn(&|| setting.at(&parts, &context, &cut(z.clone())).unwrap().value);
    assert!(relative(&actual, &expected) < 1e-14);
}

#[test]
fn spectra_of_a_state_of_several_parts_are_those_of_one_row() {
    let Case { cell, context, z } = tanh_case();
    let parts = Halves {
        whole: cell.clone(),
    };
    let state = cut(z.clone());
    let dense = |jacobian| values::<3>(jacobian);
    let expected = dense(dense_jacobian(&cell, &context, &z));
    assert!(relative(&dense(dense_jacobian(&parts, &context, &state)), &expected) < 1e-14);
    let norm = values(frobenius_norm_sq(&cell, &context, &z));
    let actual = values(frobenius_norm_sq(&parts, &context, &state));
    assert!(relative(&actual, &norm) < 1e-14);
    let moduli = |found: Vec<Vec<deq_jacreg::Complex<f64>>>| -> Vec<f64> {
        found.iter().flatten().map(|value| value.norm()).collect()
    };
    let expected = moduli(spectrum(&cell, &context, &z));
    assert!(relative(&moduli(spectrum(&parts, &context, &state)), &expected) < 1e-10);
    let config = SpectralRadiusConfig::new();
    let radius = spectral_radius(&parts, &context, &state, &config).unwrap();
    let flat = spectral_radius(&cell, &context, &z, &config).unwrap();
    assert!(relative(&radius.per_sample, &flat.per_sample) < 1e-10);
    let config = ArnoldiConfig::new();
    let found = arnoldi(&parts, &context, &state, &config).unwrap();
    let flat = arnoldi(&cell, &context, &z, &config).unwrap();
    assert!(relative(&found.radius(), &flat.radius()) < 1e-10);
}
