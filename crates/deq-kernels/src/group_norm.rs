//! Group normalisation with its Jacobian in both directions.

#[cfg(feature = "flex")]
use crate::cpu::norm::{Direction, Rows, carry, normalize};
#[cfg(feature = "flex")]
use crate::flex::{Host, tensor};
use crate::gate::Gate;
#[cfg(feature = "_gpu")]
use crate::gpu::{
    self,
    norm::{Carried, CarryRules, NormBackend, NormRules, Normed},
};
#[cfg(all(feature = "_gpu", feature = "autodiff"))]
use crate::gpu::{norm_gradients::Moved, tracked::TrackedBackend};
use crate::half::half;
#[cfg(feature = "_gpu")]
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
    /// If the groups do not divide the channels.
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
        for added in [&around.before, &around.after].into_iter().flatten() {
            assert_eq!(
                added.dims(),
                x.dims(),
                "what is added around a norm has the shape of the maps"
            );
        }
        #[cfg(feature = "_gpu")]
        if let Some(applied) = self.on_gpu(&x, &around, keep) {
            return applied;
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

    /// The norm, and the ReLU if it is asked for, of maps that no kernel for GPUs takes as they
    /// are.
    fn alone(&self, x: Tensor<4>, is_gated: bool, keep: bool) -> (Tensor<4>, Option<NormJacobian>) {
        if let Some(own) = half(&x) {
            let around = Around {
                relu: is_gated,
                ..Around::default()
            };
            let applied = self.wide().run(x.cast(DType::F32), around, keep);
            return (applied.value.cast(own), applied.jacobian);
        }
        #[cfg(feature = "flex")]
        if let Some(result) = self.on_flex(&x, is_gated, keep) {
            return result;
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

    /// By a kernel, which is recorded if one of the tensors is tracked.
    #[cfg(feature = "_gpu")]
    fn on_gpu(&self, x: &Tensor<4>, around: &Around, keep: bool) -> Option<Applied> {
        let mut all = vec![x];
        all.extend(around.before.iter().chain(&around.after));
        all.extend(self.affine.iter().flat_map(|(scale, shift)| [scale, shift]));
        let way = gpu::way(&all)?;
        let is_plain = matches!(way, gpu::Way::Plain);
        let rules = NormRules {
            before: around.before.is_some(),
            after: around.after.is_some(),
            affine: self.affine.is_some(),
            relu: around.relu,
            // Else the value is what is kept, here or for the backward pass.
            apart: (keep || !is_plain)
                && (self.affine.is_some() || around.after.is_some() || around.relu),
        };
        // A constant in place of what there is not.
        let nothing = if x.is_autodiff() {
            x.clone().inner()
        } else {
            x.clone()
        };
        let or_nothing =
            |maps: Option<&Tensor<4>>| maps.unwrap_or(&nothing).clone().into_dispatch();
        let affine = self.affine.as_ref();
        let parts = Normed {
            x: x.clone().into_dispatch(),
            before: or_nothing(around.before.as_ref()),
            after: or_nothing(around.after.as_ref()),
            scale: or_nothing(affine.map(|(scale, _)| scale)),
            shift: or_nothing(affine.map(|(_, shift)| shift)),
        };
        let (groups, epsilon) = (self.groups, self.epsilon as f32);
        let (value, point) = match way {
            gpu::Way::Plain => {
                let (value, normed, inverse_deviation) =
                    Dispatch::normalize(parts, groups, epsilon, rules);
                let value = Tensor::<4>::from_dispatch(value);
                let point = Point::Normed {
                    normed: match rules.apart {
                        true => Tensor::from_dispatch(normed),
                        false => value.clone(),
                    },
                    inverse_deviation: Tensor::from_dispatch(inverse_deviation),
                };
                (value, keep.then_some(point))
            }
            #[cfg(feature = "autodiff")]
            gpu::Way::Tracked => {
                let value = Dispatch::tracked_norm(parts, groups, epsilon, rules);
                let point = || Point::Maps {
                    x: match &around.before {
                        Some(before) => x.clone() + before.clone(),
                        None => x.clone(),
                    },
                    groups,
                    epsilon: self.epsilon,
                };
                (Tensor::from_dispatch(value), keep.then(point))
            }
        };
        let gate = (keep && around.relu).then(|| Gate::of_value(value.clone()));
        Some(Applied {
            value,
            jacobian: point.map(|point| self.jacobian(point)),
            gate,
        })
    }

    #[cfg(feature = "flex")]
    fn on_flex(
        &self,
        x: &Tensor<4>,
        relu: bool,
        keep: bool,
    ) -> Option<(Tensor<4>, Option<NormJacobian>)> {
        let shape = x.dims();
        let [batch, _, height, width] = shape;
        let values = Host::of(x)?;
        let affine = match &self.affine {
            Some((scale, shift)) => Some((Host::of(scale)?, Host::of(shift)?)),
            None => None,
        };
        let affine = affine.as_ref();
        let [.., size] = by_group(shape, self.groups);
        let rows = Rows {
            size,
            plane: height * width,
            scale: affine.map(|(scale, _)| scale.values()),
            shift: affine.map(|(_, shift)| shift.values()),
            cycle: self.groups,
        };
        // Without scale and shift, the value is what is kept.
        let apart = keep && affine.is_some();
        let result = normalize(values.values(), rows, self.epsilon as f32, relu, apart);
        let value = tensor(result.value, shape);
        let jacobian = keep.then(|| {
            self.jacobian(Point::Normed {
                normed: match apart {
                    true => tensor(result.normed, shape),
                    false => value.clone(),
                },
                inverse_deviation: tensor(result.inverse_deviations, [batch, self.groups, 1]),
            })
        });
        Some((value, jacobian))
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
    /// Tracked maps on a GPU, from which kernels begin, so that one of them differentiates all.
    #[cfg(all(feature = "_gpu", feature = "autodiff"))]
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
        #[cfg(feature = "_gpu")]
        if let Some(out) = self.on_gpu(&d, self.gate.as_ref(), false) {
            return out;
        }
        let out = self.norm_tangent(d);
        match &self.gate {
            Some(gate) => gate.pass(out),
            None => out,
        }
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
        #[cfg(feature = "_gpu")]
        if let Some(out) = self.on_gpu(&g, self.gate.as_ref(), true) {
            return out;
        }
        self.norm_carry(match &self.gate {
            Some(gate) => gate.pass(g),
            None => g,
        })
    }

    #[track_caller]
    fn assert_shape(&self, maps: &Tensor<4>) {
        let shape = match &self.point {
            Point::Normed { normed, .. } => normed.dims(),
            #[cfg(all(feature = "_gpu", feature = "autodiff"))]
            Point::Maps { x, .. } => x.dims(),
        };
        assert_eq!(maps.dims(), shape, "the shape of the maps at a norm");
    }

    fn norm_tangent(&self, d: Tensor<4>) -> Tensor<4> {
        if let Some(own) = half(&d) {
            return self.norm_tangent(d.cast(DType::F32)).cast(own);
        }
        #[cfg(feature = "_gpu")]
        if let Some(out) = self.on_gpu(&d, None, false) {
            return out;
        }
        #[cfg(feature = "flex")]
        if let Some(out) = self.on_flex(&d, Direction::Forward) {
            return out;
        }
        self.scaled(self.normalization(d))
    }

    fn norm_carry(&self, g: Tensor<4>) -> Tensor<4> {
        if let Some(own) = half(&g) {
            return self.norm_carry(g.cast(DType::F32)).cast(own);
        }
        #[cfg(feature = "_gpu")]
        if let Some(out) = self.on_gpu(&g, None, true) {
            return out;
        }
        #[cfg(feature = "flex")]
        if let Some(out) = self.on_flex(&g, Direction::Transposed) {
            return out;
        }
        self.normalization(self.scaled(g))
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
            #[cfg(all(feature = "_gpu", feature = "autodiff"))]
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

    #[cfg(feature = "_gpu")]
    fn on_gpu(&self, d: &Tensor<4>, gate: Option<&Gate>, transposed: bool) -> Option<Tensor<4>> {
        let gate = gate.map(Gate::constant);
        let rules = CarryRules {
            transposed,
            affine: self.scale.is_some(),
            gated: gate.is_some(),
        };
        let mut all = vec![d];
        all.extend(self.scale.iter().chain(&gate));
        match &self.point {
            Point::Normed {
                normed,
                inverse_deviation,
            } => {
                all.push(normed);
                let Some(gpu::Way::Plain) = gpu::way(&all) else {
                    return None;
                };
                let or_d = |maps: Option<&Tensor<4>>| maps.unwrap_or(d).clone().into_dispatch();
                let parts = Carried {
                    d: d.clone().into_dispatch(),
                    normed: normed.clone().into_dispatch(),
                    inverse_deviation: inverse_deviation.clone().into_dispatch(),
                    scale: or_d(self.scale.as_ref()),
                    gate: or_d(gate.as_ref()),
                };
                Some(Tensor::from_dispatch(Dispatch::carry_norm(parts, rules)))
            }
            #[cfg(feature = "autodiff")]
            Point::Maps { x, groups, epsilon } if !transposed => {
                all.push(x);
                gpu::way(&all)?;
                let nothing = x.clone().inner();
                let or_nothing =
                    |maps: Option<&Tensor<4>>| maps.unwrap_or(&nothing).clone().into_dispatch();
                let parts = Moved {
                    x: x.clone().into_dispatch(),
                    d: d.clone().into_dispatch(),
                    scale: or_nothing(self.scale.as_ref()),
                    gate: or_nothing(gate.as_ref()),
                };
                let moved = Dispatch::tracked_norm_tangent(parts, *groups, *epsilon as f32, rules);
                Some(Tensor::from_dispatch(moved))
            }
            #[cfg(feature = "autodiff")]
            Point::Maps { .. } => None,
        }
    }

    #[cfg(feature = "flex")]
    fn on_flex(&self, d: &Tensor<4>, direction: Direction) -> Option<Tensor<4>> {
        let shape = d.dims();
        // Maps on a GPU are none of Flex.
        #[cfg_attr(
            not(all(feature = "_gpu", feature = "autodiff")),
            expect(irrefutable_let_patterns, reason = "there are no others then")
        )]
        let Point::Normed {
            normed,
            inverse_deviation,
        } = &self.point
        else {
            return None;
        };
        let [_, groups, _] = inverse_deviation.dims();
        let [.., size] = by_group(shape, groups);
        let [d, normed, inverse] = [
            Host::of(d)?,
            Host::of(normed)?,
            Host::of(inverse_deviation)?,
        ];
        let scale = match &self.scale {
            Some(scale) => Some(Host::of(scale)?),
            None => None,
        };
        let rows = Rows {
            size,
            plane: shape[2] * shape[3],
            scale: scale.as_ref().map(Host::values),
            shift: None,
            cycle: groups,
        };
        let out = carry(
            d.values(),
            normed.values(),
            inverse.values(),
            rows,
            direction,
        );
        Some(tensor(out, shape))
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
