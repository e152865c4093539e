//! Text to ids on all threads.

use super::level::Level;
use super::pieces::{PIECE, pieces};
use super::source::Source;
use super::vocabulary::Vocabulary;
use crate::error::DataError;
use rayon::prelude::*;

/// The ids of a split, on all threads of the current pool. `done` is told how many bytes have been read, piece by piece.
///
/// A tokenizer reads one piece at a time, so its tokens do not cross from one to the next. Where the pieces are depends on the text alone, so the ids
/// are the same for any number of threads. Words do not cross the ends of pieces anyway.
pub(crate) fn encode(
    vocabulary: &Vocabulary,
    source: &Source,
    done: &(dyn Fn(usize) + Sync),
) -> Result<Vec<u32>, DataError> {
    if vocabulary.level() == Level::Byte {
        done(source.bytes.len());
        return Ok(source.bytes.iter().map(|&byte| byte.into()).collect());
    }
    let text = source.text()?;
    let parts: Vec<Result<Vec<u32>, DataError>> = pieces(text, PIECE)
        .into_par_iter()
        .map(|piece| {
            let ids = vocabulary.encode(piece);
            done(piece.len());
            ids
        })
        .collect();
    // The first error in the order of the text, not of time.
    let parts = parts.into_iter().collect::<Result<Vec<_>, _>>();
    let parts = parts.map_err(|error| match error {
        DataError::UnknownToken { word } => DataError::UnknownWord {
            path: source.path.clone(),
            word,
        },
        other => other,
    })?;
    let mut ids = Vec::with_capacity(parts.iter().map(Vec::len).sum::<usize>() + 1);
    parts.iter().for_each(|part| ids.extend(part));
    // A last line without a line feed is a line all the same, as Python reads it.
    if vocabulary.level() == Level::Word && !text.ends_with('\n') {
        let end = Vocabulary::END_OF_LINE;
        ids.push(vocabulary.id(end).ok_or_else(|| DataError::UnknownWord {
            path: source.path.clone(),
            word: end.to_owned(),
        })?);
    }
    Ok(ids)
}
