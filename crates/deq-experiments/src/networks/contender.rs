//! What is compared, and how each network differs from the recipe.

use super::{NetworkComparison, explicit};
use deq_core::{GradientConfig, PhantomConfig};
use deq_jacreg::WeightSchedule;
use deq_train::{Network, Recipe, Task};
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

/// A network of a comparison.
///
/// As text it is `layers`, `weight-tied`, `deq`, or `deq-jr` for the DEQ with its penalty. A DEQ
/// may be followed by what makes its training cheaper, in any order, as in
/// `deq-jr+one-step+short`: `+one-step` or `+phantom` gradients, `+short` solves, `+unrolled`
/// steps.
///
/// ```
/// use deq_experiments::networks::Contender;
///
/// let contender: Contender = "deq-jr+short+one-step".parse()?;
/// assert_eq!(contender.to_string(), "deq-jr+one-step+short");
/// # Ok::<(), deq_experiments::networks::UnknownContender>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Contender {
    /// Layers with weights of their own: [`NetworkComparison::layers`].
    Layers,
    /// The cell applied [`NetworkComparison::tied_depth`] times.
    WeightTied,
    /// The equilibrium of the cell.
    Deq(Equilibrium),
}

/// How a DEQ is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Equilibrium {
    /// With the recipe's penalty.
    pub penalty: bool,
    /// By another gradient than the recipe's.
    pub gradient: Option<Gradient>,
    /// With training solves of half the length to ten times the tolerance, where a controller of
    /// the penalty then holds them. Held-out solves keep theirs.
    pub short_solves: bool,
    /// Unrolled for the first half of the steps, to the recipe's `pretrain_depth`.
    pub half_unrolled: bool,
}

/// A gradient without a backward solve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gradient {
    /// That of the last application of the cell.
    OneStep,
    /// That of five further applications, undamped: the penalty keeps the cell a contraction, so
    /// that it is nearly exact.
    Phantom,
}

impl Contender {
    /// The DEQ without its penalty.
    pub const DEQ: Self = Self::Deq(Equilibrium {
        penalty: false,
        gradient: None,
        short_solves: false,
        half_unrolled: false,
    });
    /// The DEQ with its penalty.
    pub const DEQ_JR: Self = Self::Deq(Equilibrium {
        penalty: true,
        gradient: None,
        short_solves: false,
        half_unrolled: false,
    });
    /// The networks whose comparison tells most: the DEQ with its penalty and without it, and both
    /// explicit networks.
    pub const DEFAULT: [Self; 4] = [Self::DEQ_JR, Self::DEQ, Self::WeightTied, Self::Layers];

    pub(super) fn is_deq(&self) -> bool {
        matches!(self, Self::Deq(_))
    }

    pub(super) fn has_penalty(&self) -> bool {
        matches!(self, Self::Deq(Equilibrium { penalty: true, .. }))
    }

    /// How it is trained, with the steps still to be chosen.
    pub(super) fn recipe<T: Task>(self, options: &NetworkComparison<T>) -> Recipe<T> {
        match self {
            Self::Layers => {
                let layers = options
                    .layers
                    .as_ref()
                    .expect("layers that are compared are given");
                layers.recipe.clone()
            }
            Self::WeightTied => {
                let depth = options.tied_depth;
                explicit(&options.recipe, Network::WeightTied { depth })
            }
            Self::Deq(equilibrium) => equilibrium.recipe(options.recipe.clone()),
        }
    }
}

impl Equilibrium {
    fn recipe<T: Task>(self, mut recipe: Recipe<T>) -> Recipe<T> {
        if !self.penalty {
            recipe.penalty = None;
        }
        match self.gradient {
            None => {}
            Some(Gradient::OneStep) => recipe.deq.gradient = GradientConfig::OneStep,
            Some(Gradient::Phantom) => {
                let undamped = PhantomConfig::new().with_damping(1.0);
                recipe.deq.gradient = GradientConfig::Phantom(undamped);
            }
        }
        if self.short_solves {
            shorten_solves(&mut recipe);
        }
        if self.half_unrolled {
            recipe.set_pretrain_steps(recipe.steps / 2);
        }
        recipe
    }
}

fn shorten_solves<T: Task>(recipe: &mut Recipe<T>) {
    let stop = &mut recipe.deq.stop;
    recipe.deq.eval_stop.get_or_insert_with(|| stop.clone());
    *stop = stop.limited_to(stop.max_steps.div_ceil(2));
    stop.rel_tol *= 10.0;
    stop.abs_tol *= 10.0;
    if let Some(penalty) = &mut recipe.penalty
        && let WeightSchedule::Controlled(controller) = &mut penalty.schedule
    {
        controller.target /= 2.0;
    }
}

const ONE_STEP: &str = "one-step";
const PHANTOM: &str = "phantom";
const SHORT: &str = "short";
const UNROLLED: &str = "unrolled";

impl Display for Contender {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let equilibrium = match self {
            Self::Layers => return f.write_str("layers"),
            Self::WeightTied => return f.write_str("weight-tied"),
            Self::Deq(equilibrium) => equilibrium,
        };
        f.write_str(if equilibrium.penalty { "deq-jr" } else { "deq" })?;
        let gradient = equilibrium.gradient.map(|gradient| match gradient {
            Gradient::OneStep => ONE_STEP,
            Gradient::Phantom => PHANTOM,
        });
        let parts = [
            gradient,
            equilibrium.short_solves.then_some(SHORT),
            equilibrium.half_unrolled.then_some(UNROLLED),
        ];
        let mut parts = parts.into_iter().flatten();
        parts.try_for_each(|part| write!(f, "+{part}"))
    }
}

/// A text that names no [`Contender`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no network {0:?}; there are layers, weight-tied, deq and deq-jr, the last two with \
     any of +one-step or +phantom, +short and +unrolled"
)]
pub struct UnknownContender(String);

impl FromStr for Contender {
    type Err = UnknownContender;

    fn from_str(text: &str) -> Result<Self, UnknownContender> {
        let unknown = || UnknownContender(text.to_owned());
        let mut parts = text.split('+');
        let mut equilibrium = match parts.next() {
            Some("layers") if text == "layers" => return Ok(Self::Layers),
            Some("weight-tied") if text == "weight-tied" => return Ok(Self::WeightTied),
            Some("deq") => Equilibrium::default(),
            Some("deq-jr") => Equilibrium {
                penalty: true,
                ..Equilibrium::default()
            },
            _ => return Err(unknown()),
        };
        for part in parts {
            match (part, equilibrium.gradient) {
                (ONE_STEP, None) => equilibrium.gradient = Some(Gradient::OneStep),
                (PHANTOM, None) => equilibrium.gradient = Some(Gradient::Phantom),
                (SHORT, _) => equilibrium.short_solves = true,
                (UNROLLED, _) => equilibrium.half_unrolled = true,
                _ => return Err(unknown()),
            }
        }
        Ok(Self::Deq(equilibrium))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contender_is_read_as_it_is_written() {
        for text in [
            "layers",
            "weight-tied",
            "deq",
            "deq-jr",
            "deq+phantom",
            "deq-jr+one-step+short+unrolled",
        ] {
            let contender: Contender = text.parse().unwrap();
            assert_eq!(contender.to_string(), text);
        }
        assert_eq!("deq".parse(), Ok(Contender::DEQ));
        assert_eq!("deq-jr".parse(), Ok(Contender::DEQ_JR));
    }

    #[test]
    fn what_names_no_network_is_refused() {
        for text in [
            "",
            "deq+",
            "layers+short",
            "weight-tied+short",
            "deq+one-step+phantom",
            "resnet",
        ] {
            let error = text.parse::<Contender>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
            assert!(error.contains("weight-tied, deq and deq-jr"), "{error}");
        }
    }
}
