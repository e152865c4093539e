//! Group normalisation with its Jacobian in both directions.

#[cfg(feature = "_kernel")]
use crate::backend::{
    Way,
    norm::{Carried, CarryRules, NormBackend, NormRules, Normed},
    way,
};
#[cfg(all(feature = "_kernel", feature = "autodiff"))]
use crate::backend::{norm::Moved, tracked::TrackedBackend};
use crate::gate::Gate;
use crate::half::half;
#[cfg(feature = "_kernel")]
use burn::backend::Dispatch;
use burn::tensor::activation::relu;
use burn::tensor::{DType, Tensor};

/// A group norm (Wu and He 2018): every group of channels of every sample is brought to mean 0 and
/// variance 1, then every channel is scaled and shifted.
///
/// 16-bit floats are brought to f32 for it and back, since the derivative of a small deviation
/// leaves the range of f16.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    /// The channels of one group follow one another.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f64,
    /// Scale and shift, `[1, channels, 1, 1]`.
    pub affine: Option<(Tensor<4>, Tensor<4>)>,
}

impl GroupNorm {
    /// # Shapes
    ///
    /// - x, output: `[batch, channels, height, width]`
    ///
    /// # Panics
    ///
    /// If the groups do not divide the channels, or scale and shift are of other channels.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        self.run(x, Around::default(), false).value
    }

    /// The ReLU of the normalised maps.
    ///
    /// Shapes and panics as of [`apply`](Self::apply).
    pub fn apply_relu(&self, x: Tensor<4>) -> Tensor<4> {
        self.run(x, Around::relu(), false).value
    }

    /// `to + norm(x)`
    ///
    /// Shapes and panics as of [`apply`](Self::apply); `to` has the shape of `x`.
    pub fn add_to(&self, to: Tensor<4>, x: Tensor<4>) -> Tensor<4> {
        let around = Around {
            after: Some(to),
            ..Around::default()
        };
        self.run(x, around, false).value
    }

    /// `relu(norm(x + before) + after)`
    ///
    /// Shapes and panics as of [`apply`](Self::apply); `before` and `after` have the shape of `x`.
    pub fn apply_residual(
        &self,
        x: Tensor<4>,
        before: Option<Tensor<4>>,
        after: Tensor<4>,
    ) -> Tensor<4> {
        self.run(x, Around::residual(before, after), false).value
    }

    /// [`apply`](Self::apply), and what differentiates it.
    pub fn linearize(&self, x: Tensor<4>) -> (Tensor<4>, NormJacobian) {
        let applied = self.run(x, Around::default(), true);
        (applied.value, kept(applied.jacobian))
    }

    /// [`apply_relu`](Self::apply_relu), and what differentiates it.
    pub fn linearize_relu(&self, x: Tensor<4>) -> (Tensor<4>, NormJacobian) {
        let applied = self.run(x, Around::relu(), true);
        let jacobian = NormJacobian {
            gate: applied.gate,
            ..kept(applied.jacobian)
        };
        (applied.value, jacobian)
    }

    /// [`apply_residual`](Self::apply_residual), and what differentiates it: the Jacobian of the
    /// norm, and the derivative of the ReLU.
    pub fn linearize_residual(
        &self,
        x: Tensor<4>,
        before: Option<Tensor<4>>,
        after: Tensor<4>,
    ) -> (Tensor<4>, NormJacobian, Gate) {
        let applied = self.run(x, Around::residual(before, after), true);
        (applied.value, kept(applied.jacobian), kept(applied.gate))
    }

    fn run(&self, x: Tensor<4>, around: Around, keep: bool) -> Applied {
        let ([_, channels, ..], groups) = (x.dims(), self.groups);
        assert!(
            groups > 0 && channels.is_multiple_of(groups),
            "{groups} groups do not divide {channels} channels"
        );
        for column in self.affine.iter().flat_map(|(scale, shift)| [scale, shift]) {
            assert_eq!(
                column.dims(),
                [1, channels, 1, 1],
                "scale and shift of a norm have a number for each channel"
            );
        }
        for added in [&around.before, &around.after].into_iter().flatten() {
            assert_eq!(
                added.dims(),
                x.dims(),
                "what is added around a norm has the shape of the maps"
            );
        }
        #[cfg(feature = "_kernel")]
        if let Some(way) = self.way(&x, &around) {
            return self.by_kernel(way, x, around, keep);
        }
        let x = match around.before {
            Some(before) => x + before,
            None => x,
        };
        let at_once = around.relu && around.after.is_none() && !keep;
        let (value, jacobian) = self.alone(x, at_once, keep);
        let value = match around.after {
            Some(after) => value + after,
            None => value,
        };
        let (value, gate) = match (around.relu && !at_once, keep) {
            (false, _) => (value, None),
            (true, false) => (relu(value), None),
            (true, true) => {
                let (value, gate) = Gate::at(value);
                (value, Some(gate))
            }
        };
        Applied {
            value,
            jacobian,
            gate,
        }
    }

    /// The norm, and the ReLU if it is asked for, of maps that no kernel takes as they are.
    fn alone(&self, x: Tensor<4>, is_gated: bool, keep: bool) -> (Tensor<4>, Option<NormJacobian>) {
        if let Some(own) = half(&x) {
            let around = Around {
                relu: is_gated,
                ..Around::default()
            };
            let applied = self.wide().run(x.cast(DType::F32), around, keep);
            return (applied.value.cast(own), applied.jacobian);
        }
        let (value, jacobian) = self.generic(x);
        let value = if is_gated { relu(value) } else { value };
        (value, keep.then_some(jacobian))
    }

    /// The same for f32.
    fn wide(&self) -> Self {
        let wide = |x: &Tensor<4>| x.clone().cast(DType::F32);
        let affine = self.affine.as_ref();
        Self {
            affine: affine.map(|(scale, shift)| (wide(scale), wide(shift))),
            ..self.clone()
        }
    }

    /// In Burn's operations, which every backend has and which are differentiated as they are.
    fn generic(&self, x: Tensor<4>) -> (Tensor<4>, NormJacobian) {
        let (normed, inverse_deviation) = normalized(x, self.groups, self.epsilon);
        let value = match &self.affine {
            Some((scale, shift)) => normed.clone() * scale.clone() + shift.clone(),
            None => normed.clone(),
        };
        let point = Point::Normed {
            normed,
            inverse_deviation,
        };
        (value, self.jacobian(point))
    }

    fn jacobian(&self, point: Point) -> NormJacobian {
        NormJacobian {
            point,
            scale: self.affine.as_ref().map(|(scale, _)| scale.clone()),
            gate: None,
        }
    }

    /// How a kernel takes these, if one does.
    #[cfg(feature = "_kernel")]
    fn way(&self, x: &Tensor<4>, around: &Around) -> Option<Way> {
        let mut all = vec![x];
        all.extend(around.before.iter().chain(&around.after));
        all.extend(self.affine.iter().flat_map(|(scale, shift)| [scale, shift]));
        way(&all)
    }

    /// By a kernel, which is recorded if one of the tensors is tracked.
    #[cfg(feature = "_kernel")]
    fn by_kernel(&self, way: Way, x: Tensor<4>, around: Around, keep: bool) -> Applied {
        let is_plain = matches!(way, Way::Plain);
        let Around {
            before,
            after,
            relu,
        } = around;
        let (x, before) = match before {
            // A recorded Jacobian begins with the sum.
            Some(before) if keep && !is_plain => (x + before, None),
            before => (x, before),
        };
        let rules = NormRules {
            before: before.is_some(),
            after: after.is_some(),
            affine: self.affine.is_some(),
            relu,
            // Else the value is what is kept, here or for the backward pass.
            apart: (keep || !is_plain) && (self.affine.is_some() || after.is_some() || relu),
        };
        #[cfg(feature = "autodiff")]
        let maps = (keep && !is_plain).then(|| Point::Maps {
            x: x.clone(),
            groups: self.groups,
            epsilon: self.epsilon,
        });
        // A constant in place of what there is not.
        let nothing = match x.is_autodiff() {
            true => x.clone().inner(),
            false => x.clone(),
        };
        let or_nothing =
            |maps: Option<Tensor<4>>| maps.unwrap_or_else(|| nothing.clone()).into_dispatch();
        let (scale, shift) = self.affine.clone().unzip();
        let parts = Normed {
            before: or_nothing(before),
            after: or_nothing(after),
            scale: or_nothing(scale),
            shift: or_nothing(shift),
            x: x.into_dispatch(),
        };
        // So that a kernel may write to the place of the maps.
        drop(nothing);
        let (groups, epsilon) = (self.groups, self.epsilon as f32);
        let (value, point) = match way {
            Way::Plain => {
                let (value, normed, inverse_deviation) =
                    Dispatch::normalize(parts, groups, epsilon, rules);
                let value = Tensor::<4>::from_dispatch(value);
                let point = keep.then(|| Point::Normed {
                    normed: match rules.apart {
                        true => Tensor::from_dispatch(normed),
                        false => value.clone(),
                    },
                    inverse_deviation: Tensor::from_dispatch(inverse_deviation),
                });
                (value, point)
            }
            #[cfg(feature = "autodiff")]
            Way::Tracked => {
                let value = Dispatch::tracked_norm(parts, groups, epsilon, rules);
                (Tensor::from_dispatch(value), maps)
            }
        };
        let gate = (keep && relu).then(|| Gate::of_value(value.clone()));
        Applied {
            value,
            jacobian: point.map(|point| self.jacobian(point)),
            gate,
        }
    }
}

/// What is done around a norm.
#[derive(Debug, Default)]
struct Around {
    before: Option<Tensor<4>>,
    after: Option<Tensor<4>>,
    relu: bool,
}

impl Around {
    fn relu() -> Self {
        Self {
            relu: true,
            ..Self::default()
        }
    }

    fn residual(before: Option<Tensor<4>>, after: Tensor<4>) -> Self {
        Self {
            before,
            after: Some(after),
            relu: true,
        }
    }
}

/// A norm with what is around it, and of what it is asked to keep the parts there are.
struct Applied {
    value: Tensor<4>,
    jacobian: Option<NormJacobian>,
    gate: Option<Gate>,
}

fn kept<T>(part: Option<T>) -> T {
    part.expect("a norm keeps what it is asked to keep")
}

/// The Jacobian of a group norm at a point, of the ReLU behind it as well if there is one.
///
/// That of the normalisation, `(I - 11^T / n - x x^T / n) / deviation` per group with the
/// normalised `x`, is symmetric.
#[derive(Clone, Debug)]
pub struct NormJacobian {
    point: Point,
    scale: Option<Tensor<4>>,
    gate: Option<Gate>,
}

#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "few are held, each beside maps of far more numbers"
)]
enum Point {
    Normed {
        /// `[batch, channels, height, width]`
        normed: Tensor<4>,
        /// `[batch, groups, 1]`
        inverse_deviation: Tensor<3>,
    },
    /// Tracked maps, from which kernels begin, so that one of them differentiates all.
    #[cfg(all(feature = "_kernel", feature = "autodiff"))]
    Maps {
        x: Tensor<4>,
        groups: usize,
        epsilon: f64,
    },
}

impl NormJacobian {
    /// How the value moves when the maps move by `d`.
    ///
    /// # Shapes
    ///
    /// - d, output: `[batch, channels, height, width]`
    ///
    /// # Panics
    ///
    /// If the shape is not that of the maps.
    pub fn tangent(&self, d: Tensor<4>) -> Tensor<4> {
        self.assert_shape(&d);
        if let Some(own) = half(&d) {
            let out = self.ungated().tangent(d.cast(DType::F32));
            return self.gated(out.cast(own));
        }
        #[cfg(feature = "_kernel")]
        if self.has_kernel(&d) {
            return self.by_kernel(d, false);
        }
        self.gated(self.scaled(self.normalization(d)))
    }

    /// The transpose: cotangents from the value to the maps.
    ///
    /// # Shapes
    ///
    /// - g, output: `[batch, channels, height, width]`
    ///
    /// # Panics
    ///
    /// If the shape is not that of the maps.
    pub fn carry(&self, g: Tensor<4>) -> Tensor<4> {
        self.assert_shape(&g);
        if let Some(own) = half(&g) {
            let g = self.gated(g).cast(DType::F32);
            return self.ungated().carry(g).cast(own);
        }
        #[cfg(feature = "_kernel")]
        if matches!(self.point, Point::Normed { .. }) && self.has_kernel(&g) {
            return self.by_kernel(g, true);
        }
        let g = self.gated(g);
        self.normalization(self.scaled(g))
    }

    fn gated(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.gate {
            Some(gate) => gate.pass(x),
            None => x,
        }
    }

    fn ungated(&self) -> Self {
        Self {
            gate: None,
            ..self.clone()
        }
    }

    #[track_caller]
    fn assert_shape(&self, maps: &Tensor<4>) {
        let shape = match &self.point {
            Point::Normed { normed, .. } => normed.dims(),
            #[cfg(all(feature = "_kernel", feature = "autodiff"))]
            Point::Maps { x, .. } => x.dims(),
        };
        assert_eq!(maps.dims(), shape, "the shape of the maps at a norm");
    }

    fn scaled(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.scale {
            Some(scale) => x * scale.clone(),
            None => x,
        }
    }

    /// The normalised maps, and the inverse deviations.
    fn normed(&self) -> (Tensor<4>, Tensor<3>) {
        match &self.point {
            Point::Normed {
                normed,
                inverse_deviation,
            } => (normed.clone(), inverse_deviation.clone()),
            #[cfg(all(feature = "_kernel", feature = "autodiff"))]
            Point::Maps { x, groups, epsilon } => normalized(x.clone(), *groups, *epsilon),
        }
    }

    fn normalization(&self, d: Tensor<4>) -> Tensor<4> {
        let shape = d.dims();
        let (normed, inverse_deviation) = self.normed();
        let [_, groups, _] = inverse_deviation.dims();
        let rows = by_group(shape, groups);
        let [d, normed] = [d, normed].map(|maps| maps.reshape(rows));
        let along = (normed.clone() * d.clone()).mean_dim(2);
        let centered = d.clone() - d.mean_dim(2);
        let carried = (centered - normed * along) * inverse_deviation;
        carried.reshape(shape)
    }

    /// Whether a kernel takes a product with `d`; of tracked maps, one that is not transposed.
    #[cfg(feature = "_kernel")]
    fn has_kernel(&self, d: &Tensor<4>) -> bool {
        let gate = self.gate.as_ref().map(Gate::constant);
        let mut all = vec![d];
        all.extend(self.scale.iter().chain(&gate));
        match &self.point {
            Point::Normed { normed, .. } => {
                all.push(normed);
                matches!(way(&all), Some(Way::Plain))
            }
            #[cfg(feature = "autodiff")]
            Point::Maps { x, .. } => {
                all.push(x);
                way(&all).is_some()
            }
        }
    }

    #[cfg(feature = "_kernel")]
    fn by_kernel(&self, d: Tensor<4>, transposed: bool) -> Tensor<4> {
        let gate = self.gate.as_ref().map(Gate::constant);
        let rules = CarryRules {
            transposed,
            affine: self.scale.is_some(),
            gated: gate.is_some(),
        };
        // Where there is neither, anything.
        let or_nothing = |maps: Option<&Tensor<4>>, nothing: &Tensor<4>| {
            maps.unwrap_or(nothing).clone().into_dispatch()
        };
        match &self.point {
            Point::Normed {
                normed,
                inverse_deviation,
            } => {
                let parts = Carried {
                    d: d.into_dispatch(),
                    scale: or_nothing(self.scale.as_ref(), normed),
                    gate: or_nothing(gate.as_ref(), normed),
                    normed: normed.clone().into_dispatch(),
                    inverse_deviation: inverse_deviation.clone().into_dispatch(),
                };
                Tensor::from_dispatch(Dispatch::carry_norm(parts, rules))
            }
            #[cfg(feature = "autodiff")]
            Point::Maps { x, groups, epsilon } => {
                let constant = x.clone().inner();
                let parts = Moved {
                    x: x.clone().into_dispatch(),
                    d: d.into_dispatch(),
                    scale: or_nothing(self.scale.as_ref(), &constant),
                    gate: or_nothing(gate.as_ref(), &constant),
                };
                let moved = Dispatch::tracked_norm_tangent(parts, *groups, *epsilon as f32, rules);
                Tensor::from_dispatch(moved)
            }
        }
    }
}

/// Samples, groups, and the numbers of each, of maps of that shape.
fn by_group([batch, channels, height, width]: [usize; 4], groups: usize) -> [usize; 3] {
    [batch, groups, channels / groups * height * width]
}

/// The normalised maps, and the inverse deviations, `[batch, groups, 1]`, in Burn's operations.
fn normalized(x: Tensor<4>, groups: usize, epsilon: f64) -> (Tensor<4>, Tensor<3>) {
    let shape = x.dims();
    let x = x.reshape(by_group(shape, groups));
    let centered = x.clone() - x.mean_dim(2);
    let variance = centered.clone().square().mean_dim(2);
    let inverse_deviation = variance.add_scalar(epsilon).sqrt().recip();
    let normed = (centered * inverse_deviation.clone()).reshape(shape);
    (normed, inverse_deviation)
}
