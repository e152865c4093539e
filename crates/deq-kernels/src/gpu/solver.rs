//! The steps of solvers, one cube of units for every sample.
//!
//! Every unit works on the same entries of a vector from beginning to end, so that only sums and
//! the small system pass between units. Sums are taken in an order that the shapes alone decide.

use super::{MOST_CUBES, UNITS, largest, like, own, sum};
use crate::solver::AndersonRules;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, ExtensionType, TensorMetadata, backend_extension};
use burn::tensor::{Shape, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

/// The longest window of Anderson's method: every entry of its system has a unit of its own.
pub(crate) const MOST_POINTS: usize = 15;

/// The most terms of Broyden's method, whose inner products share 12 of the 16 KiB of memory that
/// WebGPU grants a cube.
pub(crate) const MOST_TERMS: usize = 1_000;

#[derive(Debug, ExtensionType)]
#[extension_type(fusion)]
pub(crate) struct Window<B: Backend> {
    pub(crate) residuals: FloatTensor<B>,
    pub(crate) points: FloatTensor<B>,
    pub(crate) products: FloatTensor<B>,
    pub(crate) sizes: FloatTensor<B>,
    pub(crate) valid: FloatTensor<B>,
}

/// The points before and now, and their residuals.
#[derive(Debug, ExtensionType)]
#[extension_type(fusion)]
pub(crate) struct Move<B: Backend> {
    pub(crate) z0: FloatTensor<B>,
    pub(crate) z: FloatTensor<B>,
    pub(crate) g0: FloatTensor<B>,
    pub(crate) g: FloatTensor<B>,
}

#[derive(Debug, ExtensionType)]
#[extension_type(fusion)]
pub(crate) struct Terms<B: Backend> {
    pub(crate) u: FloatTensor<B>,
    pub(crate) v: FloatTensor<B>,
}

#[backend_extension(Cube, Fusion)]
pub(crate) trait SolverBackend: Backend {
    /// `fz - z`, and the sums of the squares of its rows and of those of `fz`, `[batch, 1]` each.
    #[fusion(meta = |z, _| (z.clone(), column(z), column(z)))]
    fn residual_and_squares(
        z: FloatTensor<Self>,
        fz: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// The window with the new entry, and the next point.
    #[fusion(meta = |window, fz, _, _| (window.clone(), fz.clone()))]
    fn anderson_step(
        #[extension_type] window: Window<Self>,
        fz: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        rules: AndersonRules,
    ) -> (Window<Self>, FloatTensor<Self>);

    /// The terms with the new one behind the first `used`, and the next point.
    #[fusion(meta = |terms, at, _, _| (terms.clone(), at.z.clone()))]
    fn broyden_step(
        #[extension_type] terms: Terms<Self>,
        #[extension_type] at: Move<Self>,
        used: usize,
        good: bool,
    ) -> (Terms<Self>, FloatTensor<Self>);
}

/// Whether there is a cube for every sample of a batch like this one, and a number of 32 bits for
/// every entry of so many vectors of each.
pub(crate) fn fits(like: &Tensor<2>, vectors: usize) -> bool {
    let [batch, dim] = like.dims();
    let entries = batch.saturating_mul(dim).saturating_mul(vectors);
    batch <= MOST_CUBES && entries <= u32::MAX as usize
}

type Spec = burn::backend::fusion::custom::TensorSpec;

fn column(rows: &Spec) -> Spec {
    Spec::new(Shape::new([rows.shape[0], 1]), rows.dtype)
}

impl SolverBackend for CubeBackend {
    fn residual_and_squares(z: CubeTensor, fz: CubeTensor) -> (CubeTensor, CubeTensor, CubeTensor) {
        let [z, fz] = [z, fz].map(into_contiguous);
        let [batch, dim] = z.shape().dims();
        let residual = like(&z, [batch, dim]);
        let squares = [0, 1].map(|_| like(&z, [batch, 1]));
        residual_kernel::launch(
            &z.client.clone(),
            CubeCount::Static(batch as u32, 1, 1),
            CubeDim::new_1d(UNITS),
            z.into_buffer_arg(),
            fz.into_buffer_arg(),
            residual.clone().into_buffer_arg(),
            squares[0].clone().into_buffer_arg(),
            squares[1].clone().into_buffer_arg(),
            dim,
        );
        let [of_residual, of_fz] = squares;
        (residual, of_residual, of_fz)
    }

    fn anderson_step(
        window: Window<Self>,
        fz: CubeTensor,
        residual: CubeTensor,
        rules: AndersonRules,
    ) -> (Window<Self>, CubeTensor) {
        let [fz, residual] = [fz, residual].map(into_contiguous);
        let window = Window::<Self> {
            residuals: own(window.residuals),
            points: own(window.points),
            products: own(window.products),
            sizes: own(window.sizes),
            valid: own(window.valid),
        };
        let [batch, slots, dim] = window.points.shape().dims();
        let [_, m, _] = window.products.shape().dims::<3>();
        let next = like(&fz, [batch, dim]);
        anderson_kernel::launch(
            &fz.client.clone(),
            CubeCount::Static(batch as u32, 1, 1),
            CubeDim::new_1d(UNITS),
            fz.into_buffer_arg(),
            residual.into_buffer_arg(),
            window.residuals.clone().into_buffer_arg(),
            window.points.clone().into_buffer_arg(),
            window.products.clone().into_buffer_arg(),
            window.sizes.clone().into_buffer_arg(),
            window.valid.clone().into_buffer_arg(),
            next.clone().into_buffer_arg(),
            rules.slot,
            rules.used,
            slots,
            dim,
            1.0 - rules.mixing as f32,
            rules.regularization as f32,
            rules.max_weight as f32,
            rules.relative,
            m,
        );
        (window, next)
    }

    fn broyden_step(
        terms: Terms<Self>,
        at: Move<Self>,
        used: usize,
        good: bool,
    ) -> (Terms<Self>, CubeTensor) {
        let [z0, z, g0, g] = [at.z0, at.z, at.g0, at.g].map(into_contiguous);
        let [u, v] = [terms.u, terms.v].map(own);
        let [batch, slots, dim] = u.shape().dims();
        let next = like(&z, [batch, dim]);
        broyden_kernel::launch(
            &z.client.clone(),
            CubeCount::Static(batch as u32, 1, 1),
            CubeDim::new_1d(UNITS),
            z0.into_buffer_arg(),
            z.into_buffer_arg(),
            g0.into_buffer_arg(),
            g.into_buffer_arg(),
            u.clone().into_buffer_arg(),
            v.clone().into_buffer_arg(),
            next.clone().into_buffer_arg(),
            used,
            dim,
            good,
            slots,
        );
        (Terms { u, v }, next)
    }
}

#[cube(launch)]
fn residual_kernel(
    z: &[f32],
    fz: &[f32],
    residual: &mut [f32],
    of_residual: &mut [f32],
    of_fz: &mut [f32],
    dim: usize,
) {
    let row = CUBE_POS_X as usize;
    let mut scratch = Shared::new_slice(UNITS as usize);
    let mut residual_square = 0.0f32;
    let mut fz_square = 0.0f32;
    let mut j = UNIT_POS as usize;
    while j < dim {
        let value = fz[row * dim + j];
        let difference = value - z[row * dim + j];
        residual[row * dim + j] = difference;
        residual_square += difference * difference;
        fz_square += value * value;
        j += CUBE_DIM as usize;
    }
    let residual_square = sum(residual_square, &mut scratch);
    let fz_square = sum(fz_square, &mut scratch);
    if UNIT_POS == 0 {
        of_residual[row] = residual_square;
        of_fz[row] = fz_square;
    }
}

#[cube(launch)]
fn anderson_kernel(
    fz: &[f32],            // [batch, dim]
    residual: &[f32],      // [batch, dim]
    residuals: &mut [f32], // [batch, slots, dim]
    points: &mut [f32],    // [batch, slots, dim]
    products: &mut [f32],  // [batch, m, m]
    sizes: &mut [f32],     // [batch, m]
    valid: &mut [f32],     // [batch, m]
    next: &mut [f32],      // [batch, dim]
    slot: usize,
    used: usize,
    slots: usize,
    dim: usize,
    held_back: f32,
    regularization: f32,
    max_weight: f32,
    #[comptime] relative: bool,
    #[comptime] m: usize,
) {
    let row = CUBE_POS_X as usize;
    let unit = UNIT_POS as usize;
    let width = m + 1;
    let mut scratch = Shared::new_slice(UNITS as usize);
    let mut with_new = Shared::<[f32]>::new_slice(m);
    let mut system = Shared::<[f32]>::new_slice(m * (m + 1));
    let mut of_directions = Shared::<[f32]>::new_slice(m);
    let mut of_residuals = Shared::<[f32]>::new_slice(m);

    // The smallest number that can be divided by.
    let mut size = f32::new(1.1754944e-38);
    let mut j = unit;
    while j < dim {
        size = max(size, residual[row * dim + j].abs());
        j += CUBE_DIM as usize;
    }
    let size = largest(size, &mut scratch);

    let newest = (row * slots + slot) * dim;
    let mut j = unit;
    while j < dim {
        let g = residual[row * dim + j];
        residuals[newest + j] = g / size;
        points[newest + j] = fz[row * dim + j] - held_back * g;
        j += CUBE_DIM as usize;
    }
    for i in 0..used {
        let other = (row * slots + i) * dim;
        let mut product = 0.0f32;
        let mut j = unit;
        while j < dim {
            product += residuals[other + j] * residuals[newest + j];
            j += CUBE_DIM as usize;
        }
        let product = sum(product, &mut scratch);
        if UNIT_POS == 0 {
            with_new[i] = product;
        }
    }
    if unit >= used && unit < m {
        with_new[unit] = 0.0f32;
    }
    sync_cube();

    // One entry of the system `[G | 1]` for every unit.
    let line = unit / width;
    let place = unit % width;
    let is_entry = unit < m * width;
    let is_right_side = place == m;
    if is_entry && !is_right_side {
        let at = (row * m + line) * m + place;
        let mut product = products[at];
        if line == slot {
            product = with_new[place];
        } else if place == slot {
            product = with_new[line];
        }
        products[at] = product;
        system[unit] = product;
    }
    sync_cube();

    // Scaled to a unit diagonal, the system does not notice that residuals shrink by orders of
    // magnitude. Slots that a sample must not use get a zero row and a zero right side.
    if unit < m {
        let at = row * m + unit;
        let mut is_valid = valid[at];
        let mut size_of = sizes[at];
        if unit == slot {
            is_valid = 1.0f32;
            size_of = size;
        }
        valid[at] = is_valid;
        sizes[at] = size_of;
        // The largest entry of a direction is 1.
        let square = max(system[unit * width + unit], 1.0f32);
        let inverse = is_valid / square.sqrt();
        of_directions[unit] = inverse;
        of_residuals[unit] = inverse / size_of;
    }
    sync_cube();
    let mut most = 0.0f32;
    for i in 0..m {
        most = max(most, of_residuals[i]);
    }
    if is_entry {
        if is_right_side {
            system[unit] = of_residuals[line] / most;
        } else {
            let mut entry = system[unit] * of_directions[line] * of_directions[place];
            if line == place {
                if comptime!(relative) {
                    entry += regularization;
                } else {
                    // Never 0 for an unused slot, and a finite number for a residual of 0.
                    let inverse = min(of_residuals[line], 1e18f32);
                    entry += inverse * inverse * regularization;
                    if inverse == 0.0f32 {
                        entry += 1.0f32;
                    }
                }
            }
            system[unit] = entry;
        }
    }
    sync_cube();

    // Gauss-Jordan elimination; the matrix is positive definite.
    for i in 0..m {
        let mut entry = 0.0f32;
        if is_entry {
            let quotient = system[i * width + place] / system[i * width + i];
            entry = quotient;
            if line != i {
                entry = system[unit] - system[line * width + i] * quotient;
            }
        }
        sync_cube();
        if is_entry {
            system[unit] = entry;
        }
        sync_cube();
    }

    let mut total = 0.0f32;
    for i in 0..m {
        total += system[i * width + m] * (of_residuals[i] / most);
    }
    let mut absolute = 0.0f32;
    for i in 0..m {
        let weight = system[i * width + m] * (of_residuals[i] / most) / total;
        absolute += weight.abs();
    }
    // False for a NaN.
    let is_trusted = absolute <= max_weight;
    if unit < m {
        let mut weight = 0.0f32;
        if unit == slot {
            weight = 1.0f32;
        }
        if is_trusted {
            weight = system[unit * width + m] * (of_residuals[unit] / most) / total;
        } else {
            valid[row * m + unit] = weight;
        }
        with_new[unit] = weight;
    }
    sync_cube();
    let mut j = unit;
    while j < dim {
        let mut point = 0.0f32;
        for i in 0..used {
            point += with_new[i] * points[(row * slots + i) * dim + j];
        }
        next[row * dim + j] = point;
        j += CUBE_DIM as usize;
    }
}

#[cube(launch)]
fn broyden_kernel(
    z0: &[f32],       // [batch, dim]
    z: &[f32],        // [batch, dim]
    g0: &[f32],       // [batch, dim]
    g: &[f32],        // [batch, dim]
    u: &mut [f32],    // [batch, slots, dim]
    v: &mut [f32],    // [batch, slots, dim]
    next: &mut [f32], // [batch, dim]
    used: usize,
    dim: usize,
    #[comptime] good: bool,
    #[comptime] slots: usize,
) {
    let row = CUBE_POS_X as usize;
    let unit = UNIT_POS as usize;
    let start = row * dim;
    let newest = (row * slots + used) * dim;
    let mut scratch = Shared::new_slice(UNITS as usize);
    let mut with_dz = Shared::<[f32]>::new_slice(slots);
    let mut with_dg = Shared::<[f32]>::new_slice(slots);
    let mut with_g = Shared::<[f32]>::new_slice(slots);

    // The terms depend on the direction of the move and not on its length, and products of
    // directions keep within the range of the type.
    let mut length = f32::new(1.1754944e-38);
    let mut j = unit;
    while j < dim {
        length = max(length, (z[start + j] - z0[start + j]).abs());
        j += CUBE_DIM as usize;
    }
    let length = largest(length, &mut scratch);

    // The new slot holds `dz` and `dg` until both terms are known.
    let mut j = unit;
    while j < dim {
        u[newest + j] = (z[start + j] - z0[start + j]) / length;
        v[newest + j] = (g[start + j] - g0[start + j]) / length;
        j += CUBE_DIM as usize;
    }
    for i in 0..used {
        let term = (row * slots + i) * dim;
        let mut u_dz = 0.0f32;
        let mut v_dg = 0.0f32;
        let mut v_g = 0.0f32;
        let mut j = unit;
        while j < dim {
            let v_i = v[term + j];
            if comptime!(good) {
                u_dz += u[term + j] * u[newest + j];
            }
            v_dg += v_i * v[newest + j];
            v_g += v_i * g[start + j];
            j += CUBE_DIM as usize;
        }
        let u_dz = sum(u_dz, &mut scratch);
        let v_dg = sum(v_dg, &mut scratch);
        let v_g = sum(v_g, &mut scratch);
        if UNIT_POS == 0 {
            with_dz[i] = u_dz;
            with_dg[i] = v_dg;
            with_g[i] = v_g;
        }
    }
    sync_cube();

    // The numerator of the new u, the new v, and B g with the old terms.
    let mut denominator = 0.0f32;
    let mut v_square = 0.0f32;
    let mut dg_square = 0.0f32;
    let mut new_v_g = 0.0f32;
    let mut j = unit;
    while j < dim {
        let dz = u[newest + j];
        let dg = v[newest + j];
        let mut new_u = dz + dg;
        let mut new_v = dg;
        if comptime!(good) {
            new_v = -dz;
        }
        let mut product = -g[start + j];
        for i in 0..used {
            let u_i = u[(row * slots + i) * dim + j];
            if comptime!(good) {
                new_v += with_dz[i] * v[(row * slots + i) * dim + j];
            }
            new_u -= with_dg[i] * u_i;
            product += with_g[i] * u_i;
        }
        u[newest + j] = new_u;
        v[newest + j] = new_v;
        next[start + j] = product;
        denominator += new_v * dg;
        v_square += new_v * new_v;
        dg_square += dg * dg;
        new_v_g += new_v * g[start + j];
        j += CUBE_DIM as usize;
    }
    let denominator = sum(denominator, &mut scratch);
    let v_square = sum(v_square, &mut scratch);
    let dg_square = sum(dg_square, &mut scratch);
    let new_v_g = sum(new_v_g, &mut scratch);

    // False for a NaN anywhere.
    let vanishing = f32::new(1.1920929e-7) * (v_square * dg_square).sqrt();
    let size = denominator.abs();
    let is_usable = size > vanishing && size <= f32::new(3.4028235e38);
    let mut j = unit;
    while j < dim {
        let mut new_u = 0.0f32;
        let mut product = next[start + j];
        // Not by a factor of zero, since the rest may have overflowed.
        if is_usable {
            new_u = u[newest + j] / denominator;
            product += new_u * new_v_g;
        } else {
            v[newest + j] = 0.0f32;
        }
        u[newest + j] = new_u;
        next[start + j] = z[start + j] - product;
        j += CUBE_DIM as usize;
    }
}
