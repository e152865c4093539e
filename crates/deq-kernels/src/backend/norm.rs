//! Normalisation in groups, its Jacobian, and what differentiates both.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, ExtensionType, backend_extension};
#[cfg(feature = "_gpu")]
use burn::tensor::Shape;

/// Maps, and what is added before and after the norm; where nothing is, any of the others.
#[derive(Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "_gpu"))]
pub(crate) struct Normed<B: Backend> {
    pub(crate) x: FloatTensor<B>,
    pub(crate) before: FloatTensor<B>,
    pub(crate) after: FloatTensor<B>,
    pub(crate) scale: FloatTensor<B>,
    pub(crate) shift: FloatTensor<B>,
}

/// What an application of a norm reads and writes.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) struct NormRules {
    pub(crate) before: bool,
    pub(crate) after: bool,
    pub(crate) affine: bool,
    pub(crate) relu: bool,
    /// Whether the normalised maps are written beside the value.
    pub(crate) apart: bool,
}

/// Maps, the normalised ones of the point, and what they are scaled and gated by; where they are
/// not, any of the others.
#[derive(Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "_gpu"))]
pub(crate) struct Carried<B: Backend> {
    pub(crate) d: FloatTensor<B>,
    pub(crate) normed: FloatTensor<B>,
    pub(crate) inverse_deviation: FloatTensor<B>,
    pub(crate) scale: FloatTensor<B>,
    /// Open where above 0.
    pub(crate) gate: FloatTensor<B>,
}

/// What a product with the Jacobian reads.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) struct CarryRules {
    pub(crate) transposed: bool,
    pub(crate) affine: bool,
    pub(crate) gated: bool,
}

#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "_gpu"),
    Fusion: cfg(feature = "_gpu")
)]
pub(crate) trait NormBackend: Backend {
    /// The value, the normalised maps (one number if they are not apart), and the inverse
    /// deviations `[batch, groups, 1]`.
    #[fusion(meta = |parts, groups, _, rules| normed_specs(&parts.x, *groups, *rules))]
    fn normalize(
        #[extension_type] parts: Normed<Self>,
        groups: usize,
        epsilon: f32,
        rules: NormRules,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |parts, _| parts.d.clone())]
    fn carry_norm(#[extension_type] parts: Carried<Self>, rules: CarryRules) -> FloatTensor<Self>;
}

/// A point, a direction, and what the product is scaled and gated by; where it is not, any of the
/// others.
#[cfg(feature = "autodiff")]
#[derive(Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "_gpu"))]
pub(crate) struct Moved<B: Backend> {
    pub(crate) x: FloatTensor<B>,
    pub(crate) d: FloatTensor<B>,
    pub(crate) scale: FloatTensor<B>,
    /// Open where above 0.
    pub(crate) gate: FloatTensor<B>,
}

#[cfg(feature = "autodiff")]
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "_gpu"),
    Fusion: cfg(feature = "_gpu")
)]
pub(crate) trait NormGradientsBackend: Backend {
    /// The product `J(x) d` with the Jacobian of the normalisation, `(d - mean(d) - n mean(n d)) /
    /// s` with the normalised `n` and the deviation `s`, then scaled and gated, and the same before
    /// it is; of that one number may do where nothing is scaled, since nobody reads it.
    #[fusion(meta = |parts, _, _, _| (parts.x.clone(), parts.x.clone()))]
    fn norm_tangent(
        #[extension_type] parts: Moved<Self>,
        groups: usize,
        epsilon: f32,
        rules: CarryRules,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The cotangents of `x` and `d` for that of the first output of
    /// [`norm_tangent`](Self::norm_tangent), `h`.
    ///
    /// With `g`, which is `h` behind gate and scale, `G = g - mean(g) - n mean(n g)`, `D` likewise
    /// of `d`, `c = mean(n d)`, `e = mean(n g)` and `q = mean(g D)`: that of `d` is `G / s`, since
    /// the Jacobian is symmetric, and that of `x` is `-(c G + e D + q n) / s^2`. Since the mean of
    /// `n^2` lacks `epsilon / s^2` to 1, `q = mean(G D) + c e epsilon / s^2`.
    #[fusion(meta = |parts, _, _, _, _| (parts.x.clone(), parts.x.clone()))]
    fn carry_norm_tangent(
        #[extension_type] parts: Moved<Self>,
        h: FloatTensor<Self>,
        groups: usize,
        epsilon: f32,
        rules: CarryRules,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The sums over samples and pixels of `g * normed` and of `g`, `[1, channels, 1, 1]`, where
    /// the gate is open if there is one.
    #[fusion(meta = |g, _, _, _| (per_channel(g), per_channel(g)))]
    fn affine_gradients(
        g: FloatTensor<Self>,
        normed: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        gated: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

#[cfg(feature = "_gpu")]
type Spec = burn::backend::fusion::custom::TensorSpec;

#[cfg(feature = "_gpu")]
fn normed_specs(x: &Spec, groups: usize, rules: NormRules) -> (Spec, Spec, Spec) {
    let normed = match rules.apart {
        true => x.clone(),
        false => Spec::new(Shape::new([1, 1, 1, 1]), x.dtype),
    };
    let deviations = Spec::new(Shape::new([x.shape[0], groups, 1]), x.dtype);
    (x.clone(), normed, deviations)
}

#[cfg(all(feature = "_gpu", feature = "autodiff"))]
fn per_channel(maps: &Spec) -> Spec {
    Spec::new(Shape::new([1, maps.shape[1], 1, 1]), maps.dtype)
}
