//! The group of tensors in a file that are the weights of one model.

use super::printable;
use super::state_dict::StateDict;
use crate::error::ModelError;
use burn::tensor::TensorData;
use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

/// Parts of names that say how a module was wrapped: for several devices, compiled, sharded, or so
/// that what it computes is computed twice.
const WRAPPERS: [&str; 4] = [
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
];

/// Names of PyTorch's newer weight normalisation, and the older ones.
const WEIGHT_NORM: [(&str, &str); 2] = [
    ("parametrizations.weight.original0", "weight_g"),
    ("parametrizations.weight.original1", "weight_v"),
];

/// What averages of weights are called.
const AVERAGES: [&str; 5] = ["ema", "swa", "averaged", "average", "shadow"];

/// The longest name that is looked at as one of a model, in parts.
const MAX_PARTS: usize = 32;

/// Which weights are taken from a file that holds several sets for the same model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WeightsChoice {
    /// Those that were trained, unless there are only averages. The default, since it is what the
    /// original programs evaluate.
    #[default]
    Trained,
    /// The running average of the weights: what stands under a name with `ema`, `swa`, `average` or
    /// `shadow`.
    Ema,
    /// What stands under this name, such as `model_state_dict`.
    Named(String),
}

/// `trained`, `ema`, or else a name.
impl FromStr for WeightsChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "trained" => Self::Trained,
            "ema" => Self::Ema,
            name => Self::Named(name.to_owned()),
        })
    }
}

impl fmt::Display for WeightsChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trained => f.write_str("trained"),
            Self::Ema => f.write_str("ema"),
            Self::Named(name) => f.write_str(&printable(name)),
        }
    }
}

impl WeightsChoice {
    fn allows(&self, prefix: &str) -> bool {
        match self {
            Self::Trained => true,
            Self::Ema => is_average(prefix),
            Self::Named(name) => {
                let prefix = prefix.trim_end_matches('.');
                prefix == name || prefix.split('.').any(|part| part == name)
            }
        }
    }
}

fn is_average(prefix: &str) -> bool {
    let prefix = prefix.to_ascii_lowercase();
    let mut words = prefix.split(['.', '_', '-']);
    words.any(|word| AVERAGES.contains(&word))
}

/// A name without the parts of wrappers, and with the older names of weight normalisation.
pub(super) fn canonical(name: &str) -> String {
    let mut short = name
        .split('.')
        .filter(|part| !WRAPPERS.contains(part))
        .collect::<Vec<_>>()
        .join(".");
    for (newer, older) in WEIGHT_NORM {
        if let Some(layer) = short.strip_suffix(newer)
            && (layer.is_empty() || layer.ends_with('.'))
        {
            short = format!("{layer}{older}");
        }
    }
    short
}

/// The tensors of a file that stand under one prefix, by their names without it.
pub(crate) struct Group<'f> {
    file: &'f StateDict,
    /// The prefix without the point at its end; empty if there is none.
    pub(crate) prefix: String,
    /// Prefixes of other groups that fit as well.
    pub(crate) others: Vec<String>,
}

impl<'f> Group<'f> {
    /// The group that has most of the names `wanted`, as far as the choice of weights allows.
    ///
    /// # Errors
    ///
    /// [`ModelError::NoSuchWeights`] if other weights were asked for than there are.
    pub(crate) fn find<'n>(
        file: &'f StateDict,
        wanted: impl IntoIterator<Item = &'n str>,
    ) -> Result<Self, ModelError> {
        let wanted: HashSet<&str> = wanted.into_iter().collect();
        let mut hits: BTreeMap<&str, usize> = BTreeMap::new();
        for name in file.canonical().keys() {
            let starts = name.match_indices('.').map(|(at, _)| at + 1);
            for start in [0].into_iter().chain(starts).take(MAX_PARTS) {
                let (prefix, rest) = name.split_at(start);
                if wanted.contains(rest) {
                    *hits.entry(prefix).or_default() += 1;
                }
            }
        }
        // Anything else has a few names in common by chance.
        let most = hits.values().max().copied().unwrap_or(0);
        hits.retain(|_, &mut count| 2 * count >= most);
        let label = |prefix: &str| prefix.trim_end_matches('.').to_owned();
        let found: Vec<&str> = hits.keys().copied().collect();
        hits.retain(|prefix, _| file.choice().allows(prefix));
        let best = hits.iter().min_by_key(|&(&prefix, &count)| {
            (is_average(prefix), std::cmp::Reverse(count), prefix.len())
        });
        let prefix = match best {
            Some((&prefix, _)) => prefix,
            None if *file.choice() == WeightsChoice::Trained => "",
            None => {
                return Err(ModelError::NoSuchWeights {
                    choice: file.choice().to_string(),
                    found: found
                        .into_iter()
                        .map(|prefix| printable(&label(prefix)))
                        .collect(),
                });
            }
        };
        let others = found.into_iter().filter(|&other| other != prefix);
        Ok(Self {
            file,
            prefix: label(prefix),
            others: others.map(label).collect(),
        })
    }

    /// What the file calls a tensor of the group.
    pub(crate) fn name(&self, name: &str) -> Option<&'f str> {
        let canonical = self.file.canonical();
        let name = match self.prefix.is_empty() {
            true => canonical.get(name),
            false => canonical.get(&format!("{}.{name}", self.prefix)),
        };
        name.map(String::as_str)
    }

    pub(crate) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.file.shape(self.name(name)?)
    }

    /// The shape of a tensor that must be there, of some axes of 1 to below `most`.
    pub(crate) fn usual_shape(&self, name: &str, most: usize) -> Result<Vec<usize>, String> {
        let shape = self
            .shape(name)
            .ok_or_else(|| format!("there is no {name}"))?;
        let usual = !shape.is_empty() && shape.iter().all(|axis| (1..most).contains(axis));
        match usual {
            true => Ok(shape),
            false => Err(format!("{name} is {shape:?}, which no model has")),
        }
    }

    pub(crate) fn read(&self, name: &str) -> Result<Option<TensorData>, ModelError> {
        match self.name(name) {
            Some(name) => self.file.read(name),
            None => Ok(None),
        }
    }

    /// Whether the file may hold the weights of a model with so many parameters. A model that is
    /// many times larger than the file would take memory for nothing.
    pub(crate) fn may_fill(&self, parameters: usize) -> bool {
        parameters / 2 <= self.file.numbers().saturating_add(1 << 20)
    }
}
