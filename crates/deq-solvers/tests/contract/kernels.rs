//! Steps that have a kernel, on the CPU or a GPU, take the same iterates as Burn's operations.

use burn::tensor::{DType, Device, Distribution, Tensor};
use deq_solvers::{
    AndersonConfig, BroydenConfig, BroydenUpdate, Ridge, SolverConfig, StopConfig, TraceLevel,
};

/// The CPU, or what `DEQ_TEST_DEVICE` names.
fn device() -> Device {
    deq_testkit::test_device!()
}

#[test]
fn a_map_with_autodiff_may_be_solved_from_a_plain_start() {
    let device = device();
    let scale = Tensor::<2>::full([1, 2], 0.5, (&device, DType::F32)).autodiff();
    let solvers: [SolverConfig; 2] = [AndersonConfig::new().into(), BroydenConfig::new().into()];
    for config in solvers {
        let stop = StopConfig::new().build().expect("valid");
        let z0 = Tensor::<2>::zeros([3, 2], (&device, DType::F32));
        let mut map = |z: Tensor<2>| (z * scale.clone()).cos();
        let solver = config.build().expect("valid");
        let solution = solver.solve(&mut map, z0, &stop);
        assert!(solution.stats.all_converged(), "{config}");
    }
}

/// A kernel is taken for plain tensors only; on an autodiff device the same solve goes by Burn's
/// operations. Both are f32 and sum in different orders, which the history amplifies by its
/// condition: 1e-3 of the size of the iterate within ten steps of a contraction by 0.7.
#[test]
fn kernels_take_the_steps_of_the_generic_code() {
    let device = device();
    device.seed(3);
    let f32_on = || (&device, DType::F32);
    let anderson = AndersonConfig::new().with_history(4);
    let broyden = BroydenConfig::new();
    let solvers: [SolverConfig; 7] = [
        anderson.clone().into(),
        anderson.clone().with_mixing(0.6).into(),
        anderson.with_ridge(Ridge::Absolute).into(),
        AndersonConfig::new().with_history(12).into(),
        broyden.clone().into(),
        broyden.clone().with_update(BroydenUpdate::Bad).into(),
        // Restarts twice.
        broyden.with_history(3).into(),
    ];
    // Samples side by side, one that is divided into blocks on the CPU, and some that a GPU divides
    // into parts.
    for [batch, dim] in [[5, 7], [1, 10_000], [2, 20_000]] {
        let scale = Tensor::<2>::random([1, dim], Distribution::Uniform(-0.7, 0.7), f32_on());
        let x = Tensor::<2>::random([batch, dim], Distribution::Normal(0.0, 1.0), f32_on());
        for config in &solvers {
            let solver = config.build().expect("valid");
            let stop = StopConfig::new()
                .with_rel_tol(1e-30)
                .with_max_steps(10)
                .with_trace(TraceLevel::Iterates);
            let stop = stop.build().expect("valid");
            let solve = |x: Tensor<2>, scale: Tensor<2>| {
                let z0 = x.zeros_like();
                let mut map =
                    |z: Tensor<2>| (z.clone().roll(&[1], &[1]) * scale.clone() + x.clone()).tanh();
                let solution = solver.solve(&mut map, z0, &stop);
                let trace = solution.trace.expect("asked for");
                let points = trace.iterates.into_iter();
                let points = points.map(|(z, _)| z.into_data().iter::<f32>().collect());
                // With the norms of every step in front.
                let norms = trace.steps.into_iter().map(|step| step.abs);
                let norms = norms.map(|norms| norms.into_iter().map(|x| x as f32).collect());
                norms.zip(points).collect::<Vec<(Vec<f32>, Vec<f32>)>>()
            };
            let ours = solve(x.clone(), scale.clone());
            let theirs = solve(x.clone().autodiff(), scale.clone().autodiff());
            assert_eq!(ours.len(), theirs.len());
            for (step, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                for (a, b) in [(&ours.0, &theirs.0), (&ours.1, &theirs.1)] {
                    let largest = b.iter().fold(1.0_f32, |most, x| most.max(x.abs()));
                    assert_eq!(a.len(), b.len());
                    for (a, b) in a.iter().zip(b) {
                        assert!(
                            (a - b).abs() < 1e-3 * largest,
                            "{config:?}, {batch} x {dim}, step {step}: {a} instead of {b}"
                        );
                    }
                }
            }
        }
    }
}
