//! A solve of a fixed number of steps beside as many bare evaluations of its map: the difference is the solver's own cost.

use burn::tensor::{Device, Distribution, Tensor};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use deq_core::solvers::{SolverConfig, StopConfig};
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
        for config in [
            SolverConfig::picard(),
            SolverConfig::anderson(),
            SolverConfig::broyden(),
        ] {
            let solver = config.build().expect("the defaults are valid");
            group.bench_function(BenchmarkId::new(solver.name(), &size), |bencher| {
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

criterion_group!(benches, solves);
criterion_main!(benches);
