//! The steps of solvers.
//!
//! A small sample has one cube of units, and a step is one launch. A large one is divided into
//! parts with a cube each, and the step into launches wherever a sum or a maximum over the sample
//! is needed: few samples would not fill a card. Sums are taken in an order that the length of a
//! sample alone decides.

use super::{MOST_CUBES, MOST_NUMBERS, UNITS, largest, like, own, sum, sum_three};
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

/// The longest sample that has one cube.
const WHOLE: usize = 16_384;

/// What a cube has of a longer one.
const PART: usize = 4_096;

/// The cubes of a batch, and the entries of a sample that each of them has.
struct Parts {
    batch: usize,
    count: usize,
    length: usize,
}

impl Parts {
    fn of([batch, dim]: [usize; 2]) -> Self {
        let (count, length) = match dim <= WHOLE {
            true => (1, dim),
            false => (dim.div_ceil(PART), PART),
        };
        Self {
            batch,
            count,
            length,
        }
    }

    fn cubes(&self) -> CubeCount {
        CubeCount::Static(self.count as u32, self.batch as u32, 1)
    }

    /// A cube for each sample.
    fn samples(&self) -> CubeCount {
        CubeCount::Static(1, self.batch as u32, 1)
    }
}

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
    batch <= MOST_CUBES && entries <= MOST_NUMBERS
}

type Spec = burn::backend::fusion::custom::TensorSpec;

fn column(rows: &Spec) -> Spec {
    Spec::new(Shape::new([rows.shape[0], 1]), rows.dtype)
}

impl SolverBackend for CubeBackend {
    fn residual_and_squares(z: CubeTensor, fz: CubeTensor) -> (CubeTensor, CubeTensor, CubeTensor) {
        let [z, fz] = [z, fz].map(into_contiguous);
        let [batch, dim] = z.shape().dims();
        let parts = Parts::of([batch, dim]);
        let client = z.client.clone();
        let units = CubeDim::new_1d(UNITS);
        let residual = like(&z, [batch, dim]);
        let squares = [0, 1].map(|_| like(&residual, [batch, parts.count]));
        residual_kernel::launch(
            &client,
            parts.cubes(),
            units,
            z.into_buffer_arg(),
            fz.into_buffer_arg(),
            residual.clone().into_buffer_arg(),
            squares[0].clone().into_buffer_arg(),
            squares[1].clone().into_buffer_arg(),
            dim,
            parts.length,
        );
        if parts.count == 1 {
            let [of_residual, of_fz] = squares;
            return (residual, of_residual, of_fz);
        }
        let [of_residual, of_fz] = [0, 1].map(|_| like(&residual, [batch, 1]));
        let [residual_squares, fz_squares] = squares;
        totals_kernel::launch(
            &client,
            parts.samples(),
            units,
            residual_squares.into_buffer_arg(),
            fz_squares.into_buffer_arg(),
            of_residual.clone().into_buffer_arg(),
            of_fz.clone().into_buffer_arg(),
            parts.count,
        );
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
        let parts = Parts::of([batch, dim]);
        let client = fz.client.clone();
        let units = CubeDim::new_1d(UNITS);
        let next = like(&fz, [batch, dim]);
        let held_back = 1.0 - rules.mixing as f32;
        if parts.count == 1 {
            anderson_kernel::launch(
                &client,
                parts.cubes(),
                units,
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
                held_back,
                rules.regularization as f32,
                rules.max_weight as f32,
                rules.relative,
                m,
            );
            return (window, next);
        }
        let sizes = largest_differences(&parts, &residual, None);
        let products = like(&fz, [batch, parts.count, m]);
        anderson_enter_kernel::launch(
            &client,
            parts.cubes(),
            units,
            fz.into_buffer_arg(),
            residual.into_buffer_arg(),
            sizes.clone().into_buffer_arg(),
            window.residuals.clone().into_buffer_arg(),
            window.points.clone().into_buffer_arg(),
            products.clone().into_buffer_arg(),
            rules.slot,
            rules.used,
            slots,
            dim,
            parts.length,
            held_back,
            m,
        );
        let weights = like(&next, [batch, m]);
        anderson_weights_kernel::launch(
            &client,
            parts.samples(),
            units,
            sizes.into_buffer_arg(),
            products.into_buffer_arg(),
            window.products.clone().into_buffer_arg(),
            window.sizes.clone().into_buffer_arg(),
            window.valid.clone().into_buffer_arg(),
            weights.clone().into_buffer_arg(),
            rules.slot,
            parts.count,
            rules.regularization as f32,
            rules.max_weight as f32,
            rules.relative,
            m,
        );
        anderson_point_kernel::launch(
            &client,
            parts.cubes(),
            units,
            weights.into_buffer_arg(),
            window.points.clone().into_buffer_arg(),
            next.clone().into_buffer_arg(),
            rules.used,
            slots,
            dim,
            parts.length,
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
        let parts = Parts::of([batch, dim]);
        let client = z.client.clone();
        let units = CubeDim::new_1d(UNITS);
        let next = like(&z, [batch, dim]);
        if parts.count == 1 {
            broyden_kernel::launch(
                &client,
                parts.cubes(),
                units,
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
            return (Terms { u, v }, next);
        }
        let lengths = largest_differences(&parts, &z, Some(&z0));
        let products = like(&z, [batch, parts.count, 3 * used.max(1)]);
        broyden_products_kernel::launch(
            &client,
            parts.cubes(),
            units,
            z0.into_buffer_arg(),
            z.clone().into_buffer_arg(),
            g0.into_buffer_arg(),
            g.clone().into_buffer_arg(),
            lengths.into_buffer_arg(),
            u.clone().into_buffer_arg(),
            v.clone().into_buffer_arg(),
            products.clone().into_buffer_arg(),
            used,
            slots,
            dim,
            parts.length,
            good,
        );
        let sums = like(&z, [batch, parts.count, 4]);
        broyden_term_kernel::launch(
            &client,
            parts.cubes(),
            units,
            g.into_buffer_arg(),
            products.into_buffer_arg(),
            u.clone().into_buffer_arg(),
            v.clone().into_buffer_arg(),
            next.clone().into_buffer_arg(),
            sums.clone().into_buffer_arg(),
            used,
            dim,
            parts.length,
            good,
            slots,
        );
        broyden_point_kernel::launch(
            &client,
            parts.cubes(),
            units,
            z.into_buffer_arg(),
            sums.into_buffer_arg(),
            u.clone().into_buffer_arg(),
            v.clone().into_buffer_arg(),
            next.clone().into_buffer_arg(),
            used,
            slots,
            dim,
            parts.length,
        );
        (Terms { u, v }, next)
    }
}

/// The largest entry by size of every part of `z`, or of its difference from `z0`,
/// `[batch, parts]`.
fn largest_differences(parts: &Parts, z: &CubeTensor, z0: Option<&CubeTensor>) -> CubeTensor {
    let [batch, dim] = z.shape().dims();
    let out = like(z, [batch, parts.count]);
    largest_kernel::launch(
        &z.client.clone(),
        parts.cubes(),
        CubeDim::new_1d(UNITS),
        z.clone().into_buffer_arg(),
        z0.unwrap_or(z).clone().into_buffer_arg(),
        out.clone().into_buffer_arg(),
        dim,
        parts.length,
        z0.is_some(),
    );
    out
}

/// The entries of one sample that a unit has: from `first` on, every one in as many as units.
#[derive(CubeType, Clone, Copy)]
struct Own {
    row: usize,
    first: usize,
    end: usize,
}

/// Those of this unit in this cube's part.
#[cube]
fn own_entries(dim: usize, length: usize) -> Own {
    let start = CUBE_POS_X as usize * length;
    Own {
        row: CUBE_POS_Y as usize,
        first: start + UNIT_POS as usize,
        end: min(start + length, dim),
    }
}

/// The number of this cube among those of all samples.
#[cube]
fn cube_number() -> usize {
    CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize
}

/// The smallest number that can be divided by.
const SMALLEST: f32 = 1.1754944e-38;

/// The largest of so many numbers of the parts of a sample.
#[cube]
fn largest_part(parts: &[f32], row: usize, count: usize, scratch: &mut Shared<[f32]>) -> f32 {
    let mut most = f32::new(SMALLEST);
    let mut part = UNIT_POS as usize;
    while part < count {
        most = max(most, parts[row * count + part]);
        part += CUBE_DIM as usize;
    }
    largest(most, scratch)
}

#[cube(launch)]
fn largest_kernel(
    z: &[f32],       // [batch, dim]
    z0: &[f32],      // [batch, dim]
    out: &mut [f32], // [batch, parts]
    dim: usize,
    length: usize,
    #[comptime] of_difference: bool,
) {
    let mut scratch = Shared::new_slice(UNITS as usize);
    let own = own_entries(dim, length);
    let most = match comptime!(of_difference) {
        true => largest_difference(z, z0, dim, &own, &mut scratch),
        false => largest_entry(z, dim, &own, &mut scratch),
    };
    if UNIT_POS == 0 {
        out[cube_number()] = most;
    }
}

#[cube]
fn largest_entry(x: &[f32], dim: usize, own: &Own, scratch: &mut Shared<[f32]>) -> f32 {
    let mut most = f32::new(SMALLEST);
    let mut j = own.first;
    while j < own.end {
        most = max(most, x[own.row * dim + j].abs());
        j += CUBE_DIM as usize;
    }
    largest(most, scratch)
}

#[cube]
fn largest_difference(
    x: &[f32],
    y: &[f32],
    dim: usize,
    own: &Own,
    scratch: &mut Shared<[f32]>,
) -> f32 {
    let mut most = f32::new(SMALLEST);
    let mut j = own.first;
    while j < own.end {
        most = max(most, (x[own.row * dim + j] - y[own.row * dim + j]).abs());
        j += CUBE_DIM as usize;
    }
    largest(most, scratch)
}

/// The sums of the squares of the parts of every sample.
#[cube(launch)]
fn totals_kernel(
    residual_squares: &[f32], // [batch, parts]
    fz_squares: &[f32],       // [batch, parts]
    of_residual: &mut [f32],  // [batch]
    of_fz: &mut [f32],        // [batch]
    count: usize,
) {
    let row = CUBE_POS_Y as usize;
    let mut scratch = Shared::new_slice(UNITS as usize);
    let mut residual_square = 0.0f32;
    let mut fz_square = 0.0f32;
    let mut part = UNIT_POS as usize;
    while part < count {
        residual_square += residual_squares[row * count + part];
        fz_square += fz_squares[row * count + part];
        part += CUBE_DIM as usize;
    }
    let residual_square = sum(residual_square, &mut scratch);
    let fz_square = sum(fz_square, &mut scratch);
    if UNIT_POS == 0 {
        of_residual[row] = residual_square;
        of_fz[row] = fz_square;
    }
}

#[cube(launch)]
fn residual_kernel(
    z: &[f32],               // [batch, dim]
    fz: &[f32],              // [batch, dim]
    residual: &mut [f32],    // [batch, dim]
    of_residual: &mut [f32], // [batch, parts]
    of_fz: &mut [f32],       // [batch, parts]
    dim: usize,
    length: usize,
) {
    let own = own_entries(dim, length);
    let mut scratch = Shared::new_slice(UNITS as usize);
    let mut residual_square = 0.0f32;
    let mut fz_square = 0.0f32;
    let mut j = own.first;
    while j < own.end {
        let value = fz[own.row * dim + j];
        let difference = value - z[own.row * dim + j];
        residual[own.row * dim + j] = difference;
        residual_square += difference * difference;
        fz_square += value * value;
        j += CUBE_DIM as usize;
    }
    let residual_square = sum(residual_square, &mut scratch);
    let fz_square = sum(fz_square, &mut scratch);
    if UNIT_POS == 0 {
        of_residual[cube_number()] = residual_square;
        of_fz[cube_number()] = fz_square;
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
    let own = own_entries(dim, dim);
    let mut scratch = Shared::new_slice(UNITS as usize);
    let mut shares = Shared::<[f32]>::new_slice(m);
    let size = largest_entry(residual, dim, &own, &mut scratch);
    enter(
        fz, residual, residuals, points, slot, slots, dim, size, held_back, &own,
    );
    for i in 0..used {
        let product = product_with_newest(&*residuals, i, slot, slots, dim, &own, &mut scratch);
        if UNIT_POS == 0 {
            shares[i] = product;
        }
    }
    weigh(
        &mut shares,
        products,
        sizes,
        valid,
        size,
        slot,
        used,
        regularization,
        max_weight,
        relative,
        m,
    );
    combine(&shares, &*points, next, used, slots, dim, &own);
}

/// Writes the new residual and point of every sample, and what the parts of the residual add to
/// its products with those in use.
#[cube(launch)]
fn anderson_enter_kernel(
    fz: &[f32],            // [batch, dim]
    residual: &[f32],      // [batch, dim]
    largest_of: &[f32],    // [batch, parts]
    residuals: &mut [f32], // [batch, slots, dim]
    points: &mut [f32],    // [batch, slots, dim]
    products: &mut [f32],  // [batch, parts, m]
    slot: usize,
    used: usize,
    slots: usize,
    dim: usize,
    length: usize,
    held_back: f32,
    #[comptime] m: usize,
) {
    let own = own_entries(dim, length);
    let mut scratch = Shared::new_slice(UNITS as usize);
    let size = largest_part(largest_of, own.row, CUBE_COUNT_X as usize, &mut scratch);
    enter(
        fz, residual, residuals, points, slot, slots, dim, size, held_back, &own,
    );
    for i in 0..used {
        let product = product_with_newest(&*residuals, i, slot, slots, dim, &own, &mut scratch);
        if UNIT_POS == 0 {
            products[cube_number() * m + i] = product;
        }
    }
    let unit = UNIT_POS as usize;
    if unit >= used && unit < m {
        products[cube_number() * m + unit] = 0.0f32;
    }
}

#[cube(launch)]
fn anderson_weights_kernel(
    largest_of: &[f32],   // [batch, parts]
    with_new: &[f32],     // [batch, parts, m]
    products: &mut [f32], // [batch, m, m]
    sizes: &mut [f32],    // [batch, m]
    valid: &mut [f32],    // [batch, m]
    weights: &mut [f32],  // [batch, m]
    slot: usize,
    parts: usize,
    regularization: f32,
    max_weight: f32,
    #[comptime] relative: bool,
    #[comptime] m: usize,
) {
    let row = CUBE_POS_Y as usize;
    let unit = UNIT_POS as usize;
    let mut scratch = Shared::new_slice(UNITS as usize);
    let mut shares = Shared::<[f32]>::new_slice(m);
    let size = largest_part(largest_of, row, parts, &mut scratch);
    if unit < m {
        let mut product = 0.0f32;
        for part in 0..parts {
            product += with_new[(row * parts + part) * m + unit];
        }
        shares[unit] = product;
    }
    weigh(
        &mut shares,
        products,
        sizes,
        valid,
        size,
        slot,
        m,
        regularization,
        max_weight,
        relative,
        m,
    );
    if unit < m {
        weights[row * m + unit] = shares[unit];
    }
}

#[cube(launch)]
fn anderson_point_kernel(
    weights: &[f32],  // [batch, m]
    points: &[f32],   // [batch, slots, dim]
    next: &mut [f32], // [batch, dim]
    used: usize,
    slots: usize,
    dim: usize,
    length: usize,
    #[comptime] m: usize,
) {
    let own = own_entries(dim, length);
    let mut shares = Shared::<[f32]>::new_slice(m);
    let unit = UNIT_POS as usize;
    if unit < m {
        shares[unit] = weights[own.row * m + unit];
    }
    sync_cube();
    combine(&shares, points, next, used, slots, dim, &own);
}

/// Writes the new entries of the window.
#[cube]
fn enter(
    fz: &[f32],
    residual: &[f32],
    residuals: &mut [f32],
    points: &mut [f32],
    slot: usize,
    slots: usize,
    dim: usize,
    size: f32,
    held_back: f32,
    own: &Own,
) {
    let newest = (own.row * slots + slot) * dim;
    let mut j = own.first;
    while j < own.end {
        let g = residual[own.row * dim + j];
        residuals[newest + j] = g / size;
        points[newest + j] = fz[own.row * dim + j] - held_back * g;
        j += CUBE_DIM as usize;
    }
}

#[cube]
fn product_with_newest(
    residuals: &[f32],
    i: usize,
    slot: usize,
    slots: usize,
    dim: usize,
    own: &Own,
    scratch: &mut Shared<[f32]>,
) -> f32 {
    let newest = (own.row * slots + slot) * dim;
    let other = (own.row * slots + i) * dim;
    let mut product = 0.0f32;
    let mut j = own.first;
    while j < own.end {
        product += residuals[other + j] * residuals[newest + j];
        j += CUBE_DIM as usize;
    }
    sum(product, scratch)
}

/// From the products of the newest residual with the first `used`, which one unit or as many as
/// there are have written, to the weights of the points.
#[cube]
fn weigh(
    shares: &mut Shared<[f32]>,
    products: &mut [f32],
    sizes: &mut [f32],
    valid: &mut [f32],
    size: f32,
    slot: usize,
    used: usize,
    regularization: f32,
    max_weight: f32,
    #[comptime] relative: bool,
    #[comptime] m: usize,
) {
    let row = CUBE_POS_Y as usize;
    let unit = UNIT_POS as usize;
    let width = m + 1;
    let mut system = Shared::<[f32]>::new_slice(m * (m + 1));
    let mut of_directions = Shared::<[f32]>::new_slice(m);
    let mut of_residuals = Shared::<[f32]>::new_slice(m);
    if unit >= used && unit < m {
        shares[unit] = 0.0f32;
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
            product = shares[place];
        } else if place == slot {
            product = shares[line];
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
        shares[unit] = weight;
    }
    sync_cube();
}

/// The weighted sum of the points in use.
#[cube]
fn combine(
    shares: &Shared<[f32]>,
    points: &[f32],
    next: &mut [f32],
    used: usize,
    slots: usize,
    dim: usize,
    own: &Own,
) {
    let mut j = own.first;
    while j < own.end {
        let mut point = 0.0f32;
        for i in 0..used {
            point += shares[i] * points[(own.row * slots + i) * dim + j];
        }
        next[own.row * dim + j] = point;
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
    let own = own_entries(dim, dim);
    let newest = (own.row * slots + used) * dim;
    let mut scratch = Shared::new_slice(3 * UNITS as usize);
    let mut products = Shared::<[f32]>::new_slice(3 * slots);
    let length = largest_difference(z, z0, dim, &own, &mut scratch);
    move_to(z0, z, g0, g, u, v, newest, dim, length, &own);
    for i in 0..used {
        let term = (own.row * slots + i) * dim;
        let found = products_with(&*u, &*v, g, term, newest, dim, &own, &mut scratch, good);
        if UNIT_POS == 0 {
            products[3 * i] = found.0;
            products[3 * i + 1] = found.1;
            products[3 * i + 2] = found.2;
        }
    }
    sync_cube();
    let sums = new_term(
        g,
        u,
        v,
        next,
        &products,
        used,
        slots,
        dim,
        &own,
        &mut scratch,
        good,
    );
    next_point(z, u, v, next, sums, newest, dim, &own);
}

/// Writes the differences into the new slot, and what their parts add to the products with the
/// terms in use.
#[cube(launch)]
fn broyden_products_kernel(
    z0: &[f32],           // [batch, dim]
    z: &[f32],            // [batch, dim]
    g0: &[f32],           // [batch, dim]
    g: &[f32],            // [batch, dim]
    lengths: &[f32],      // [batch, parts]
    u: &mut [f32],        // [batch, slots, dim]
    v: &mut [f32],        // [batch, slots, dim]
    products: &mut [f32], // [batch, parts, used, 3]
    used: usize,
    slots: usize,
    dim: usize,
    length: usize,
    #[comptime] good: bool,
) {
    let own = own_entries(dim, length);
    let newest = (own.row * slots + used) * dim;
    let mut scratch = Shared::new_slice(3 * UNITS as usize);
    let moved = largest_part(lengths, own.row, CUBE_COUNT_X as usize, &mut scratch);
    move_to(z0, z, g0, g, u, v, newest, dim, moved, &own);
    for i in 0..used {
        let term = (own.row * slots + i) * dim;
        let found = products_with(&*u, &*v, g, term, newest, dim, &own, &mut scratch, good);
        if UNIT_POS == 0 {
            let at = (cube_number() * used + i) * 3;
            products[at] = found.0;
            products[at + 1] = found.1;
            products[at + 2] = found.2;
        }
    }
}

/// Writes the new term but for its denominator, and what the parts add to that.
#[cube(launch)]
fn broyden_term_kernel(
    g: &[f32],        // [batch, dim]
    of_parts: &[f32], // [batch, parts, used, 3]
    u: &mut [f32],    // [batch, slots, dim]
    v: &mut [f32],    // [batch, slots, dim]
    next: &mut [f32], // [batch, dim]
    sums: &mut [f32], // [batch, parts, 4]
    used: usize,
    dim: usize,
    length: usize,
    #[comptime] good: bool,
    #[comptime] slots: usize,
) {
    let own = own_entries(dim, length);
    let parts = CUBE_COUNT_X as usize;
    let mut scratch = Shared::new_slice(3 * UNITS as usize);
    let mut products = Shared::<[f32]>::new_slice(3 * slots);
    let mut i = UNIT_POS as usize;
    while i < 3 * used {
        let mut product = 0.0f32;
        for part in 0..parts {
            product += of_parts[(own.row * parts + part) * 3 * used + i];
        }
        products[i] = product;
        i += CUBE_DIM as usize;
    }
    sync_cube();
    let found = new_term(
        g,
        u,
        v,
        next,
        &products,
        used,
        slots,
        dim,
        &own,
        &mut scratch,
        good,
    );
    if UNIT_POS == 0 {
        let at = cube_number() * 4;
        sums[at] = found.denominator;
        sums[at + 1] = found.v_square;
        sums[at + 2] = found.dg_square;
        sums[at + 3] = found.v_g;
    }
}

#[cube(launch)]
fn broyden_point_kernel(
    z: &[f32],        // [batch, dim]
    sums: &[f32],     // [batch, parts, 4]
    u: &mut [f32],    // [batch, slots, dim]
    v: &mut [f32],    // [batch, slots, dim]
    next: &mut [f32], // [batch, dim]
    used: usize,
    slots: usize,
    dim: usize,
    length: usize,
) {
    let own = own_entries(dim, length);
    let parts = CUBE_COUNT_X as usize;
    let mut totals = Shared::<[f32]>::new_slice(4usize);
    let unit = UNIT_POS as usize;
    if unit < 4 {
        let mut total = 0.0f32;
        for part in 0..parts {
            total += sums[(own.row * parts + part) * 4 + unit];
        }
        totals[unit] = total;
    }
    sync_cube();
    let sums = TermSums {
        denominator: totals[0],
        v_square: totals[1],
        dg_square: totals[2],
        v_g: totals[3],
    };
    next_point(
        z,
        u,
        v,
        next,
        sums,
        (own.row * slots + used) * dim,
        dim,
        &own,
    );
}

/// Writes the differences of points and residuals into the new slot, where they stay until both
/// parts of the term are known. The terms depend on the direction of the move and not on its
/// length, and products of directions keep within the range of the type.
#[cube]
fn move_to(
    z0: &[f32],
    z: &[f32],
    g0: &[f32],
    g: &[f32],
    u: &mut [f32],
    v: &mut [f32],
    newest: usize,
    dim: usize,
    length: f32,
    own: &Own,
) {
    let mut j = own.first;
    while j < own.end {
        let at = own.row * dim + j;
        u[newest + j] = (z[at] - z0[at]) / length;
        v[newest + j] = (g[at] - g0[at]) / length;
        j += CUBE_DIM as usize;
    }
}

/// `u_i . dz`, `v_i . dg`, `v_i . g`
#[cube]
fn products_with(
    u: &[f32],
    v: &[f32],
    g: &[f32],
    term: usize,
    newest: usize,
    dim: usize,
    own: &Own,
    scratch: &mut Shared<[f32]>,
    #[comptime] good: bool,
) -> (f32, f32, f32) {
    let mut u_dz = 0.0f32;
    let mut v_dg = 0.0f32;
    let mut v_g = 0.0f32;
    let mut j = own.first;
    while j < own.end {
        let v_i = v[term + j];
        if comptime!(good) {
            u_dz += u[term + j] * u[newest + j];
        }
        v_dg += v_i * v[newest + j];
        v_g += v_i * g[own.row * dim + j];
        j += CUBE_DIM as usize;
    }
    sum_three(u_dz, v_dg, v_g, scratch)
}

/// Of a new term: `v . dg`, the squares of `v` and `dg`, and `v . g`.
#[derive(CubeType, Clone, Copy)]
struct TermSums {
    denominator: f32,
    v_square: f32,
    dg_square: f32,
    v_g: f32,
}

/// Writes the numerator of the new u, the new v, and `B g` with the old terms.
#[cube]
fn new_term(
    g: &[f32],
    u: &mut [f32],
    v: &mut [f32],
    next: &mut [f32],
    products: &Shared<[f32]>,
    used: usize,
    slots: usize,
    dim: usize,
    own: &Own,
    scratch: &mut Shared<[f32]>,
    #[comptime] good: bool,
) -> TermSums {
    let newest = (own.row * slots + used) * dim;
    let mut denominator = 0.0f32;
    let mut v_square = 0.0f32;
    let mut dg_square = 0.0f32;
    let mut v_g = 0.0f32;
    let mut j = own.first;
    while j < own.end {
        let at = own.row * dim + j;
        let dz = u[newest + j];
        let dg = v[newest + j];
        let mut new_u = dz + dg;
        let mut new_v = dg;
        if comptime!(good) {
            new_v = -dz;
        }
        let mut product = -g[at];
        for i in 0..used {
            let u_i = u[(own.row * slots + i) * dim + j];
            if comptime!(good) {
                new_v += products[3 * i] * v[(own.row * slots + i) * dim + j];
            }
            new_u -= products[3 * i + 1] * u_i;
            product += products[3 * i + 2] * u_i;
        }
        u[newest + j] = new_u;
        v[newest + j] = new_v;
        next[at] = product;
        denominator += new_v * dg;
        v_square += new_v * new_v;
        dg_square += dg * dg;
        v_g += new_v * g[at];
        j += CUBE_DIM as usize;
    }
    let sums = sum_three(denominator, v_square, dg_square, scratch);
    TermSums {
        denominator: sums.0,
        v_square: sums.1,
        dg_square: sums.2,
        v_g: sum(v_g, scratch),
    }
}

/// Divides the new u by its denominator, unless that vanishes, and writes the next point.
#[cube]
fn next_point(
    z: &[f32],
    u: &mut [f32],
    v: &mut [f32],
    next: &mut [f32],
    sums: TermSums,
    newest: usize,
    dim: usize,
    own: &Own,
) {
    // False for a NaN anywhere.
    let vanishing = f32::new(1.1920929e-7) * (sums.v_square * sums.dg_square).sqrt();
    let size = sums.denominator.abs();
    let is_usable = size > vanishing && size <= f32::new(3.4028235e38);
    let mut j = own.first;
    while j < own.end {
        let at = own.row * dim + j;
        let mut new_u = 0.0f32;
        let mut product = next[at];
        // Not by a factor of zero, since the rest may have overflowed.
        if is_usable {
            new_u = u[newest + j] / sums.denominator;
            product += new_u * sums.v_g;
        } else {
            v[newest + j] = 0.0f32;
        }
        u[newest + j] = new_u;
        next[at] = z[at] - product;
        j += CUBE_DIM as usize;
    }
}
