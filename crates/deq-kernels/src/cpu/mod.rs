//! Kernels for the CPU, on slices of `f32`.
//!
//! Every kernel is dispatched once at run time to the widest vectors that the processor has, and
//! divides its work over the threads of rayon's pool.

#![cfg_attr(
    not(feature = "autodiff"),
    allow(
        dead_code,
        reason = "convolutions and cross entropies are left out without it"
    )
)]

pub(crate) mod attention;
pub(crate) mod conv;
mod gemm;
pub(crate) mod linear;
pub(crate) mod norm;
pub(crate) mod pointwise;
mod reduce;
pub(crate) mod softmax;
pub(crate) mod solver;
mod winograd;

use pulp::WithSimd;

/// Runs `op` with vectors of AVX2, or the widest that a processor without them has.
fn dispatch<Op: WithSimd>(op: Op) -> Op::Output {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return pulp::Simd::vectorize(simd, op);
    }
    pulp::Arch::new().dispatch(op)
}

/// Numbers below which threads cost more than they save.
const PARALLEL: usize = 1 << 15;

/// Rows that one task takes, so that it is worth a thread.
fn rows_per_task(size: usize) -> usize {
    (PARALLEL / 2 / size.max(1)).max(1)
}
