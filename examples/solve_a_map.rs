//! Solvers alone, on a map of your own: evaluations, statuses and residuals of every step, as JSON.
//!
//! `cargo run --release -p deq-examples --example solve_a_map`

use burn::tensor::{Device, Distribution, Tensor};
// ANCHOR: names
use deq_core::solvers::{SolverConfig, StopConfig, TraceLevel};
// ANCHOR_END: names
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::flex();
    device.seed(2);
    let (batch, dim) = (4, 32);
    let w = Tensor::<2>::random([dim, dim], Distribution::Normal(0.0, 0.15), &device);
    let x = Tensor::<2>::random([batch, dim], Distribution::Normal(0.0, 0.3), &device);

    // ANCHOR: solve
    let mut map = |z: Tensor<2>| (z.matmul(w.clone()) + x.clone()).tanh();
    let stop = StopConfig::new()
        .with_rel_tol(1e-4)
        .with_max_steps(200)
        .with_trace(TraceLevel::Residuals)
        .build()?;
    for config in [
        SolverConfig::picard(),
        SolverConfig::anderson(),
        SolverConfig::broyden(),
    ] {
        let solver = config.build()?;
        let solution = solver.solve(&mut map, Tensor::zeros([batch, dim], &device), &stop);
        let trace = solution.trace.as_ref().map(|trace| trace.mean_rel());
        println!(
            "{}: {} evaluations, {:?}",
            solver.name(),
            solution.stats.nfe,
            solution.stats.status_counts()
        );
        let record = serde_json::json!({
            "solver": config, "stats": solution.stats, "mean_rel_residual": trace,
        });
        println!("{record}");
        solution.into_result()?; // an error that says what to try, unless all converged
    }
    // ANCHOR_END: solve
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_solver_converges() -> Result<(), Box<dyn std::error::Error>> {
        super::main()
    }
}
