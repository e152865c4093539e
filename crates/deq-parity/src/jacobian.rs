//! The Jacobian penalty, its gradients by double backward, dense Jacobians and their spectral
//! radii.

use crate::Check;
use crate::gradient::{Cell, Inputs};
use burn::tensor::Tensor;
use deq_jacreg::{
    Estimator, JacobianPenaltyConfig, Penalty, dense_jacobian, frobenius_norm_sq, spectrum,
};
use deq_testkit::{Golden, f64_device, relative_error, values};

/// No solve is involved, and the cell's own tangent has no difference error.
const TOLERANCE: f64 = 1e-8;

/// Kind `jacobian`.
pub(crate) fn tanh(case: &Golden) -> Vec<Check> {
    let device = f64_device().autodiff();
    let cell = Cell::recorded(case, &device);
    let z = case.tensor::<2>("z", &f64_device());
    let inputs = Inputs {
        x: case.tensor("x", &device),
        e: z.zeros_like(),
    };
    let estimate = |estimator, probes: &[Tensor<2>]| -> Penalty {
        JacobianPenaltyConfig::new()
            .with_estimator(estimator)
            .build()
            .and_then(|penalty| penalty.at_with_probes(&cell, &inputs, &z, probes))
            .unwrap_or_else(|error| panic!("the default settings: {error}"))
    };
    let mut checks = Vec::new();
    let mut check = |quantity: String, actual: &[f64], recorded: &[f64]| {
        let error = relative_error(actual, recorded);
        checks.push(Check::new(quantity, error, TOLERANCE));
    };

    let vectors = case.tensor::<3>("v", &f64_device());
    let [count, batch, dim] = vectors.dims();
    let probes: Vec<Tensor<2>> = (0..count)
        .map(|index| vectors.clone().narrow(0, index, 1).squeeze_dim(0))
        .collect();
    // Scaled unit vectors, whose mean is the exact norm.
    let basis: Vec<Tensor<2>> = (0..dim)
        .map(|index| {
            let root = (dim as f64).sqrt();
            z.zeros_like()
                .slice_fill([0..batch, index..index + 1], root)
        })
        .collect();
    let penalties = [
        ("cotangent", "grad", "loss", Estimator::Cotangent, &probes),
        (
            "cotangent",
            "grad_frobenius",
            "frobenius_sq_over_numel",
            Estimator::Cotangent,
            &basis,
        ),
        (
            "tangent",
            "grad_frobenius",
            "frobenius_sq_over_numel",
            Estimator::Tangent,
            &basis,
        ),
    ];
    for (name, group, value, estimator, probes) in penalties {
        let penalty = estimate(estimator, probes);
        let recorded = case.values(value);
        check(format!("{name} {value}"), &values(&penalty.value), recorded);
        let grads = penalty.value.backward();
        let gradients = [
            ("W", cell.w.val().grad(&grads).map(|g| values(&g))),
            ("U", cell.u.val().grad(&grads).map(|g| values(&g))),
            ("b", cell.b.val().grad(&grads).map(|g| values(&g))),
        ];
        for (parameter, gradient) in gradients {
            let recorded = case.values(&format!("{group}.{parameter}"));
            let actual = gradient.unwrap_or_else(|| vec![0.0; recorded.len()]);
            check(format!("{name} {group}.{parameter}"), &actual, recorded);
        }
    }
    for (name, estimator) in [
        ("vJ_sq_norm", Estimator::Cotangent),
        ("Jv_sq_norm", Estimator::Tangent),
    ] {
        let numbers = (batch * dim) as f64;
        let each = probes.iter().map(|probe| {
            let penalty = estimate(estimator, std::slice::from_ref(probe));
            values(&penalty.value)[0] * numbers
        });
        check(
            name.to_owned(),
            &each.collect::<Vec<f64>>(),
            case.values(name),
        );
    }

    let dense = values(&dense_jacobian(&cell, &inputs, &z));
    check("jacobian".to_owned(), &dense, case.values("jacobian"));
    let norm = frobenius_norm_sq(&cell, &inputs, &z).sum() * (1.0 / (batch * dim) as f64);
    let recorded = case.values("frobenius_sq_over_numel");
    check("exact norm".to_owned(), &values(&norm), recorded);
    let radii: Vec<f64> = spectrum(&cell, &inputs, &z)
        .iter()
        .map(|values| values.first().map_or(f64::NAN, |first| first.norm()))
        .collect();
    check(
        "spectral radius".to_owned(),
        &radii,
        case.values("spectral_radius"),
    );
    checks
}
