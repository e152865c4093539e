//! Text to ids on all threads.

use super::level::Level;
use super::lines::ends_with_line;
use super::pieces::{PIECE, pieces};
use super::source::Source;
use super::vocabulary::Vocabulary;
use crate::error::DataError;
use rayon::prelude::*;

/// The ids of a split, on all threads of the current pool, and how many of its words became
/// `<unk>`. `done` is called with the bytes of every piece that has been read.
///
/// A tokenizer reads one piece at a time, so its tokens do not cross from one to the next. Where
/// the pieces are depends on the text alone, so the ids are the same for any number of threads.
/// Words do not cross the ends of pieces anyway.
pub(crate) fn encode(
    vocabulary: &Vocabulary,
    source: &Source,
    done: &(dyn Fn(usize) + Sync),
) -> Result<(Vec<u32>, u64), DataError> {
    if vocabulary.level() == Level::Byte {
        done(source.bytes.len());
        let ids = source.bytes.iter().map(|&byte| byte.into()).collect();
        return Ok((ids, 0));
    }
    let text = source.text()?;
    let parts: Vec<Result<(Vec<u32>, u64), DataError>> = pieces(text, PIECE)
        .into_par_iter()
        .map(|piece| {
            let ids = vocabulary.encode_counted(piece);
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
    let len = parts.iter().map(|(ids, _)| ids.len()).sum::<usize>();
    let unknown = parts.iter().map(|(_, unknown)| unknown).sum();
    let mut ids = Vec::with_capacity(len + 1);
    parts.iter().for_each(|(part, _)| ids.extend(part));
    // A last line without its end is a line all the same, as Python reads it.
    if vocabulary.level() == Level::Word && !ends_with_line(text) {
        let end = Vocabulary::END_OF_LINE;
        ids.push(vocabulary.id(end).ok_or_else(|| DataError::UnknownWord {
            path: source.path.clone(),
            word: end.to_owned(),
        })?);
    }
    match ids.is_empty() {
        true => Err(DataError::Empty {
            path: source.path.clone(),
        }),
        false => Ok((ids, unknown)),
    }
}
