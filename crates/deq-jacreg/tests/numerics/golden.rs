//! Numbers recorded from the original PyTorch program by double backward.

use crate::support::{device, relative, values};
use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};
use deq_core::EquilibriumCell;
use deq_jacreg::{
    Estimator, JacobianPenaltyConfig, SpectralRadiusConfig, dense_jacobian, frobenius_norm_sq,
    spectral_radius,
};
use deq_testkit::{Golden, fixture};

/// `tanh(z W^T + x U^T + b)`.
#[derive(Module, Debug)]
struct Cell {
    w: Param<Tensor<2>>,
    u: Param<Tensor<2>>,
    b: Param<Tensor<1>>,
}

impl EquilibriumCell for Cell {
    type State = Tensor<2>;
    type Context = Tensor<2>;

    fn forward(&self, z: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        let recurrent = z.matmul(self.w.val().transpose());
        let injected = x.clone().matmul(self.u.val().transpose());
        (recurrent + injected + self.b.val().unsqueeze()).tanh()
    }
}

struct Case {
    cell: Cell,
    x: Tensor<2>,
    z: Tensor<2>,
    probes: Vec<Tensor<2>>,
}

fn case(recorded: &Golden, dtype: DType) -> Case {
    let device = device();
    let load = |name: &str| recorded.tensor::<2>(name, &device).cast(dtype);
    let v: Tensor<3> = recorded.tensor("v", &device);
    let [vectors, ..] = v.dims();
    Case {
        cell: Cell {
            w: Param::from_tensor(load("W").autodiff()),
            u: Param::from_tensor(load("U").autodiff()),
            b: Param::from_tensor(recorded.tensor::<1>("b", &device).cast(dtype).autodiff()),
        },
        x: load("x"),
        z: load("z"),
        probes: (0..vectors)
            .map(|index| v.clone().narrow(0, index, 1).squeeze_dim(0).cast(dtype))
            .collect(),
    }
}

/// The value and the gradients of W, U and b.
fn differentiate(case: &Case, estimator: Estimator, probes: &[Tensor<2>]) -> (f64, [Vec<f64>; 3]) {
    let penalty = JacobianPenaltyConfig::new()
        .with_estimator(estimator)
        .build()
        .unwrap();
    let estimate = penalty
        .at_with_probes(&case.cell, &case.x, &case.z, probes)
        .unwrap();
    let value = values(estimate.value.clone().inner())[0];
    let grads = estimate.value.backward();
    let cell = &case.cell;
    let gradients = [
        values(cell.w.val().grad(&grads).unwrap()),
        values(cell.u.val().grad(&grads).unwrap()),
        values(cell.b.val().grad(&grads).unwrap()),
    ];
    (value, gradients)
}

fn assert_gradients(recorded: &Golden, group: &str, actual: &[Vec<f64>; 3], tolerance: f64) {
    for (name, actual) in ["W", "U", "b"].iter().zip(actual) {
        let error = relative(actual, recorded.values(&format!("{group}.{name}")));
        println!("{group}.{name}: relative error {error:.1e}");
        assert!(error < tolerance, "{group}.{name}: {error}");
    }
}

#[test]
fn penalty_equals_double_backward() {
    let _ = device();
    let Some(recorded) = fixture("jacobian_tanh") else {
        return;
    };
    for (dtype, exact, differenced) in [(DType::F64, 1e-8, 1e-6), (DType::F32, 1e-5, 1e-3)] {
        println!("{dtype:?}");
        let case = case(&recorded, dtype);
        let (value, gradients) = differentiate(&case, Estimator::Cotangent, &case.probes);
        assert!(relative(&[value], recorded.values("loss")) < exact);
        assert_gradients(&recorded, "grad", &gradients, differenced);

        for (index, probe) in case.probes.iter().enumerate() {
            let probe = core::slice::from_ref(probe);
            let numel = case.z.shape().num_elements() as f64;
            let (cotangent, _) = differentiate(&case, Estimator::Cotangent, probe);
            let (tangent, _) = differentiate(&case, Estimator::Tangent, probe);
            let expected = recorded.values("vJ_sq_norm")[index];
            assert!(relative(&[cotangent * numel], &[expected]) < exact);
            let expected = recorded.values("Jv_sq_norm")[index];
            let error = relative(&[tangent * numel], &[expected]);
            println!("Jv_sq_norm: relative error {error:.1e}");
            assert!(error < differenced, "{error}");
        }
    }
}

#[test]
fn both_estimators_have_the_recorded_gradient_of_the_frobenius_norm() {
    let _ = device();
    let Some(recorded) = fixture("jacobian_tanh") else {
        return;
    };
    for (dtype, tolerance) in [(DType::F64, 1e-6), (DType::F32, 1e-3)] {
        let case = case(&recorded, dtype);
        let [batch, dim] = case.z.dims();
        // Scaled unit vectors: their average is the exact norm.
        let basis: Vec<Tensor<2>> = (0..dim)
            .map(|index| {
                let zero = case.z.zeros_like();
                zero.slice_fill([0..batch, index..index + 1], (dim as f64).sqrt())
            })
            .collect();
        for estimator in [Estimator::Cotangent, Estimator::Tangent] {
            println!("{dtype:?}, {estimator:?}");
            let (value, gradients) = differentiate(&case, estimator, &basis);
            let expected = recorded.values("frobenius_sq_over_numel");
            assert!(relative(&[value], expected) < tolerance);
            assert_gradients(&recorded, "grad_frobenius", &gradients, tolerance);
        }
    }
}

#[test]
fn exact_jacobians_and_radii_equal_the_recorded() {
    let _ = device();
    let Some(recorded) = fixture("jacobian_tanh") else {
        return;
    };
    let case = case(&recorded, DType::F64);
    let jacobian = values(dense_jacobian(&case.cell, &case.x, &case.z));
    assert!(relative(&jacobian, recorded.values("jacobian")) < 1e-8);

    let numel = case.z.shape().num_elements() as f64;
    let norm = values(frobenius_norm_sq(&case.cell, &case.x, &case.z).sum() / numel);
    assert!(relative(&norm, recorded.values("frobenius_sq_over_numel")) < 1e-8);

    let config = SpectralRadiusConfig::new()
        .with_iterations(2000)
        .with_tolerance(1e-9);
    let radius = spectral_radius(&case.cell, &case.x, &case.z, &config).unwrap();
    println!("{radius:?}");
    let error = relative(&radius.per_sample, recorded.values("spectral_radius"));
    assert_eq!(radius.converged, [true, true]);
    assert!(error < 1e-6, "{error}");
}
