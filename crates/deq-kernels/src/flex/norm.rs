//! Norms on the CPU.

use super::{Host, in_order_if, numbers, primitive, room};
use crate::backend::norm::{Carried, CarryRules, NormBackend, NormRules, Normed};
#[cfg(feature = "autodiff")]
use crate::backend::norm::{Moved, NormGradientsBackend};
use crate::cpu::norm::{Carry, Direction, Normalization, Rows};
#[cfg(feature = "autodiff")]
use crate::cpu::norm::{Tangent, affine_gradients};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::Shape;

/// The rows of maps in groups.
fn rows<'a>(maps: &Shape, groups: usize, scale: Option<&'a Host>) -> Rows<'a> {
    let [_, channels, height, width] = maps.dims();
    Rows {
        size: channels / groups * height * width,
        plane: height * width,
        scale: scale.map(Host::values),
        shift: None,
        cycle: groups,
    }
}

impl NormBackend for Flex {
    fn normalize(
        parts: Normed<Self>,
        groups: usize,
        epsilon: f32,
        rules: NormRules,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let shape = parts.x.shape();
        // What stands in for another part holds it no longer when that is asked for its place.
        let before = in_order_if(rules.before, parts.before);
        let after = in_order_if(rules.after, parts.after);
        let scale = in_order_if(rules.affine, parts.scale);
        let shift = in_order_if(rules.affine, parts.shift);
        let (mut result, x) = room(parts.x);
        let norm = Normalization {
            x: x.as_ref().map(Host::values),
            before: before.as_ref().map(Host::values),
            after: after.as_ref().map(Host::values),
            rows: Rows {
                shift: shift.as_ref().map(Host::values),
                ..rows(&shape, groups, scale.as_ref())
            },
            epsilon,
            relu: rules.relu,
        };
        let deviations = |inverse| primitive(inverse, [shape[0], groups, 1]);
        if !rules.apart {
            let inverse = norm.run(numbers(&mut result), None);
            return (result, primitive(vec![0.0], [1; 4]), deviations(inverse));
        }
        let mut value = vec![0.0; shape.num_elements()];
        let inverse = norm.run(numbers(&mut result), Some(&mut value));
        (primitive(value, shape.clone()), result, deviations(inverse))
    }

    fn carry_norm(parts: Carried<Self>, rules: CarryRules) -> FloatTensor<Self> {
        let scale = in_order_if(rules.affine, parts.scale);
        let gate = in_order_if(rules.gated, parts.gate);
        let normed = Host::in_order(parts.normed);
        let inverse_deviation = Host::in_order(parts.inverse_deviation);
        let [_, groups, _] = inverse_deviation.shape().dims();
        let shape = parts.d.shape();
        let (mut result, d) = room(parts.d);
        let carry = Carry {
            d: d.as_ref().map(Host::values),
            normed: normed.values(),
            inverse_deviations: inverse_deviation.values(),
            gate: gate.as_ref().map(Host::values),
            rows: rows(&shape, groups, scale.as_ref()),
            direction: match rules.transposed {
                true => Direction::Transposed,
                false => Direction::Forward,
            },
        };
        carry.run(numbers(&mut result));
        result
    }
}

/// A point and a direction, their numbers in order.
#[cfg(feature = "autodiff")]
struct Move {
    x: Host,
    d: Host,
    scale: Option<Host>,
    gate: Option<Host>,
    shape: Shape,
    groups: usize,
    epsilon: f32,
}

#[cfg(feature = "autodiff")]
impl Move {
    fn of(parts: Moved<Flex>, groups: usize, epsilon: f32, rules: CarryRules) -> Self {
        Self {
            shape: parts.x.shape(),
            x: Host::in_order(parts.x),
            d: Host::in_order(parts.d),
            scale: in_order_if(rules.affine, parts.scale),
            gate: in_order_if(rules.gated, parts.gate),
            groups,
            epsilon,
        }
    }

    fn tangent(&self) -> Tangent<'_> {
        Tangent {
            x: self.x.values(),
            d: self.d.values(),
            gate: self.gate.as_ref().map(Host::values),
            rows: rows(&self.shape, self.groups, self.scale.as_ref()),
            epsilon: self.epsilon,
        }
    }
}

#[cfg(feature = "autodiff")]
impl NormGradientsBackend for Flex {
    fn norm_tangent(
        parts: Moved<Self>,
        groups: usize,
        epsilon: f32,
        rules: CarryRules,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let moved = Move::of(parts, groups, epsilon, rules);
        let count = moved.shape.num_elements();
        let mut result = vec![0.0; count];
        // Nobody asks for it where nothing is scaled.
        let mut apart = vec![0.0; if rules.affine { count } else { 1 }];
        let beside = rules.affine.then_some(apart.as_mut_slice());
        moved.tangent().run(&mut result, beside);
        let apart = match rules.affine {
            true => primitive(apart, moved.shape.clone()),
            false => primitive(apart, [1; 4]),
        };
        (primitive(result, moved.shape), apart)
    }

    fn carry_norm_tangent(
        parts: Moved<Self>,
        h: FloatTensor<Self>,
        groups: usize,
        epsilon: f32,
        rules: CarryRules,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let moved = Move::of(parts, groups, epsilon, rules);
        let mut to_x = vec![0.0; moved.shape.num_elements()];
        let (mut to_d, h) = room(h);
        let h = h.as_ref().map(Host::values);
        moved.tangent().carry(h, &mut to_x, numbers(&mut to_d));
        (primitive(to_x, moved.shape), to_d)
    }

    fn affine_gradients(
        g: FloatTensor<Self>,
        normed: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        gated: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [batch, channels, height, width] = g.shape().dims();
        let [g, normed] = [g, normed].map(Host::in_order);
        let gate = in_order_if(gated, gate);
        let (to_scale, to_shift) = affine_gradients(
            g.values(),
            normed.values(),
            gate.as_ref().map(Host::values),
            [batch, channels, height * width],
        );
        let by_channel = |sums| primitive(sums, [1, channels, 1, 1]);
        (by_channel(to_scale), by_channel(to_shift))
    }
}
