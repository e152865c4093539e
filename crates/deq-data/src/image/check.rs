//! Which files of a data set cannot be used, before they are needed.

use super::dataset::ImageDataset;
use super::decode;
use super::loader::Skipped;
use crate::error::DataError;
use rayon::prelude::*;
use std::path::Path;

/// Examples that are read in full.
const WHOLE: usize = 256;

/// The examples that cannot be used: up to 256 are read in full; of more, 256 spread evenly, and
/// the first bytes of the files of the others, which `files` names.
pub(super) fn unusable<'a, const N: usize>(
    dataset: &dyn ImageDataset,
    files: impl Fn(usize) -> [&'a Path; N] + Sync,
) -> Result<Vec<Skipped>, DataError> {
    let step = dataset.len().div_ceil(WHOLE).max(1);
    let check = |index: usize| {
        let result = match index.is_multiple_of(step) {
            true => dataset.example(index).map(drop),
            false => files(index).into_iter().try_for_each(decode::check_header),
        };
        result.err().map(Skipped::from_error).transpose()
    };
    let found: Result<Vec<_>, DataError> = (0..dataset.len()).into_par_iter().map(check).collect();
    Ok(found?.into_iter().flatten().collect())
}
