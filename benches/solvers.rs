//! A solve of a fixed number of steps beside as many bare evaluations of its map: the difference is
//! the solver's own cost.

use burn::tensor::{Device, Distribution, Tensor};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use deq_core::solvers::{
    AndersonConfig, AndersonType, BroydenConfig, BroydenUpdate, LinearSolverConfig, SolverConfig,
    StopConfig,
};
use std::hint::black_box;

const STEPS: usize = 12;

fn solves(criterion: &mut Criterion) {
    let device = Device::flex();
    let mut group = criterion.benchmark_group("12 steps");
    for (batch, width) in [(1, 512), (16, 512), (16, 2048)] {
        let normal = Distribution::Normal(0.0, 0.5 / f64::from(width).sqrt());
        let w = Tensor::<2>::random([width as usize, width as usize], normal, &device);
        let x = Tensor::<2>::ones([batch, width as usize], &device);
        let map = |z: Tensor<2>| (z.matmul(w.clone()) + x.clone()).tanh();
        let size = format!("batch {batch}, width {width}");
        group.bench_function(BenchmarkId::new("bare map", &size), |bencher| {
            bencher.iter(|| {
                let mut z = x.zeros_like();
                for _ in 0..STEPS {
                    z = map(z);
                }
                black_box(z.into_data())
            });
        });
        let stop = StopConfig::new()
            .with_max_steps(STEPS)
            .with_rel_tol(1e-30)
            .build()
            .expect("the rule is valid");
        let anderson = |history| AndersonConfig::new().with_history(history);
        let type_i = anderson(6).with_kind(AndersonType::TypeI);
        let bad = BroydenConfig::new().with_update(BroydenUpdate::Bad);
        for (name, config) in [
            ("picard", SolverConfig::picard()),
            ("anderson(3)", anderson(3).into()),
            ("anderson(6)", anderson(6).into()),
            ("anderson(12)", anderson(12).into()),
            ("anderson(6) type I", type_i.into()),
            ("broyden", SolverConfig::broyden()),
            ("broyden bad", bad.into()),
            ("reversible", SolverConfig::reversible()),
        ] {
            let solver = config.build().expect("the values are valid");
            group.bench_function(BenchmarkId::new(name, &size), |bencher| {
                bencher.iter(|| {
                    let mut map = |z: Tensor<2>| map(z);
                    let solution = solver.solve(&mut map, x.zeros_like(), &stop);
                    black_box(solution.z.into_data())
                });
            });
        }
    }
    group.finish();
}

/// Linear systems of the size of a backward solve, to a relative residual of 1e-4.
fn linear(criterion: &mut Criterion) {
    let device = Device::flex();
    let mut group = criterion.benchmark_group("linear, batch 16, width 512");
    let normal = Distribution::Normal(0.0, 0.8 / 512.0_f64.sqrt());
    let w = Tensor::<2>::random([512, 512], normal, &device);
    let g = Tensor::<2>::random([16, 512], Distribution::Normal(0.0, 1.0), &device);
    let stop = StopConfig::new().with_rel_tol(1e-4).with_max_steps(100);
    let stop = stop.build().expect("the rule is valid");
    for config in [
        LinearSolverConfig::gmres(),
        LinearSolverConfig::bicgstab(),
        LinearSolverConfig::neumann(),
        SolverConfig::anderson().into(),
        SolverConfig::broyden().into(),
    ] {
        let solver = config.build().expect("the defaults are valid");
        group.bench_function(solver.name(), |bencher| {
            bencher.iter(|| {
                let mut product = |u: Tensor<2>| u.matmul(w.clone());
                let solution = solver.solve(&mut product, g.clone(), &stop);
                black_box(solution.z.into_data())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, solves, linear);
criterion_main!(benches);
