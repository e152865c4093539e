//! Recipes to start from.

use crate::presets::Preset;

/// The presets of the folder `presets/text`, by name.
macro_rules! presets {
    ($($name:literal),* $(,)?) => {
        [$(Preset {
            name: $name,
            json: include_str!(concat!("../../../presets/text/", $name, ".json")),
        }),*]
    };
}

/// Small ones first. `wt103` is the original model, from the scripts of the repository; `jr` adds
/// the Jacobian penalty, `preln` has layer norms before the sublayers, and `paper` what is printed
/// instead of the scripts' values.
pub(super) static PRESETS: [Preset; 10] = presets![
    "tiny",
    "wt2",
    "wt103",
    "wt103-preln",
    "wt103-jr",
    "wt103-jr-preln",
    "wt103-paper",
    "wt103-preln-paper",
    "wt103-jr-paper",
    "wt103-jr-preln-paper",
];
