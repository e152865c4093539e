//! Solvers on `tanh(z W + x)`, and as many bare evaluations of that map.

use crate::suite::{Failure, Outcome, Suite, device, exactly, normal};
use burn::tensor::Tensor;
use deq_core::solvers::SolverConfig;
use serde_json::json;

const WIDTH: usize = 512;
const STEPS: usize = 30;
const BATCHES: [usize; 3] = [1, 64, 1024];

pub(crate) fn suite() -> Result<Suite, Failure> {
    let device = device().inner();
    let mut suite = Suite::new(json!({ "steps": STEPS, "batches": BATCHES }));
    // A spectral radius near 1 before the tanh: contracting, but not within a few steps.
    let w = normal([WIDTH, WIDTH], 1.0 / (WIDTH as f64).sqrt(), &device);
    suite.input("w", &w);
    for batch in BATCHES {
        let x = normal([batch, WIDTH], 1.0, &device);
        suite.input(&format!("x{batch}"), &x);
        let map = {
            let (w, x) = (w.clone(), x.clone());
            move |z: Tensor<2>| (z.matmul(w.clone()) + x.clone()).tanh()
        };
        let (bare, start) = (map.clone(), x.zeros_like());
        suite.operation(format!("{STEPS} maps, batch {batch}"), move || {
            Outcome::output((0..STEPS).fold(start.clone(), |z, _| bare(z)))
        });
        for (name, config) in [
            ("Anderson", SolverConfig::anderson()),
            ("Broyden", SolverConfig::broyden()),
        ] {
            let solver = config.build()?;
            let stop = exactly(STEPS).build()?;
            let (map, start) = (map.clone(), x.zeros_like());
            suite.operation(format!("{name}, batch {batch}"), move || {
                let mut f = |z: Tensor<2>| map(z);
                let solution = solver.solve(&mut f, start.clone(), &stop);
                assert_eq!(solution.stats.nfe, STEPS, "the solve ended early");
                Outcome::output(solution.fz)
            });
        }
    }
    Ok(suite)
}
