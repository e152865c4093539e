//! Token ids in memory or in a mapped file.

use super::map::Map;
use std::fmt;
use std::ops::Range;
use std::slice::{ChunksExact, Iter};
use std::sync::Arc;

/// A sequence of token ids, in memory or in a token file that is mapped.
///
/// Clones share the ids. [`get`](Self::get), [`range`](Self::range) and [`iter`](Self::iter) read
/// them alike from memory and from a file.
///
/// ```
/// use deq_data::Tokens;
///
/// let tokens = Tokens::from(vec![3, 1, 4, 1, 5]);
/// assert_eq!(tokens.len(), 5);
/// assert_eq!(tokens.range(1..3).collect::<Vec<_>>(), [1, 4]);
/// assert_eq!(tokens, [3, 1, 4, 1, 5]);
/// ```
#[derive(Clone)]
pub struct Tokens(Place);

#[derive(Clone)]
enum Place {
    Memory(Arc<Vec<u32>>),
    File {
        map: Arc<Map>,
        bytes: Range<usize>,
        width: Width,
    },
}

/// Bytes of an id in a token file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    Two,
    Four,
}

impl Width {
    /// The width that holds every id of a vocabulary.
    pub(crate) fn of(vocabulary: usize) -> Self {
        match vocabulary <= 1 << 16 {
            true => Width::Two,
            false => Width::Four,
        }
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            Width::Two => 2,
            Width::Four => 4,
        }
    }
}

impl Tokens {
    /// The ids in these bytes of a map, which must be a whole number of ids and lie within it.
    pub(crate) fn mapped(map: Arc<Map>, bytes: Range<usize>, width: Width) -> Self {
        debug_assert!(bytes.end <= map.len() && bytes.len().is_multiple_of(width.bytes()));
        Self(Place::File { map, bytes, width })
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        match &self.0 {
            Place::Memory(ids) => ids.len(),
            Place::File { bytes, width, .. } => bytes.len() / width.bytes(),
        }
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the ids lie in a mapped file instead of in memory.
    pub fn is_mapped(&self) -> bool {
        matches!(self.0, Place::File { .. })
    }

    /// The id at a place, if there is one.
    pub fn get(&self, index: usize) -> Option<u32> {
        (index < self.len()).then(|| self.range(index..index + 1).next())?
    }

    /// The ids in a range, in order.
    ///
    /// # Panics
    ///
    /// If the range reaches beyond the end.
    pub fn range(&self, range: Range<usize>) -> TokenIter<'_> {
        TokenIter(match &self.0 {
            Place::Memory(ids) => Ids::Memory(ids[range].iter()),
            Place::File { map, bytes, width } => {
                let width = *width;
                let all = &map[bytes.clone()];
                let these = &all[range.start * width.bytes()..range.end * width.bytes()];
                let these = these.chunks_exact(width.bytes());
                match width {
                    Width::Two => Ids::Two(these),
                    Width::Four => Ids::Four(these),
                }
            }
        })
    }

    /// All ids in order.
    pub fn iter(&self) -> TokenIter<'_> {
        self.range(0..self.len())
    }

    /// Calls `take` with the little-endian bytes of the ids, many at a time.
    pub(crate) fn each_block(&self, width: Width, mut take: impl FnMut(&[u8])) {
        const BLOCK: usize = 1 << 14;
        let mut bytes = Vec::with_capacity(BLOCK * width.bytes());
        for start in (0..self.len()).step_by(BLOCK) {
            bytes.clear();
            for id in self.range(start..self.len().min(start + BLOCK)) {
                bytes.extend_from_slice(&id.to_le_bytes()[..width.bytes()]);
            }
            take(&bytes);
        }
    }

    /// A copy in memory.
    pub fn to_vec(&self) -> Vec<u32> {
        self.iter().collect()
    }
}

/// The ids of a [`Tokens`], in order.
#[derive(Clone, Debug)]
pub struct TokenIter<'a>(Ids<'a>);

#[derive(Clone, Debug)]
enum Ids<'a> {
    Memory(Iter<'a, u32>),
    Two(ChunksExact<'a, u8>),
    Four(ChunksExact<'a, u8>),
}

impl Iterator for TokenIter<'_> {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        match &mut self.0 {
            Ids::Memory(ids) => ids.next().copied(),
            Ids::Two(ids) => ids
                .next()
                .map(|id| u16::from_le_bytes([id[0], id[1]]).into()),
            Ids::Four(ids) => ids
                .next()
                .map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]])),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match &self.0 {
            Ids::Memory(ids) => ids.size_hint(),
            Ids::Two(ids) | Ids::Four(ids) => ids.size_hint(),
        }
    }
}

impl ExactSizeIterator for TokenIter<'_> {}

impl<'a> IntoIterator for &'a Tokens {
    type Item = u32;
    type IntoIter = TokenIter<'a>;

    fn into_iter(self) -> TokenIter<'a> {
        self.iter()
    }
}

impl From<Vec<u32>> for Tokens {
    fn from(ids: Vec<u32>) -> Self {
        Self(Place::Memory(Arc::new(ids)))
    }
}

impl From<&[u32]> for Tokens {
    fn from(ids: &[u32]) -> Self {
        ids.to_vec().into()
    }
}

impl From<&Vec<u32>> for Tokens {
    fn from(ids: &Vec<u32>) -> Self {
        ids.clone().into()
    }
}

impl<const N: usize> From<&[u32; N]> for Tokens {
    fn from(ids: &[u32; N]) -> Self {
        ids.to_vec().into()
    }
}

/// The same ids: they are not copied.
impl From<&Tokens> for Tokens {
    fn from(tokens: &Tokens) -> Self {
        tokens.clone()
    }
}

impl PartialEq for Tokens {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other)
    }
}

impl Eq for Tokens {}

impl PartialEq<[u32]> for Tokens {
    fn eq(&self, other: &[u32]) -> bool {
        self.iter().eq(other.iter().copied())
    }
}

impl PartialEq<Vec<u32>> for Tokens {
    fn eq(&self, other: &Vec<u32>) -> bool {
        *self == other[..]
    }
}

impl<const N: usize> PartialEq<[u32; N]> for Tokens {
    fn eq(&self, other: &[u32; N]) -> bool {
        *self == other[..]
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first: Vec<u32> = self.iter().take(8).collect();
        f.debug_struct("Tokens")
            .field("len", &self.len())
            .field("first", &first)
            .field("mapped", &self.is_mapped())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn mapped(bytes: &[u8], width: Width) -> Tokens {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let map = Arc::new(Map::open(file.path()).unwrap());
        let end = map.len();
        Tokens::mapped(map, width.bytes()..end, width)
    }

    #[test]
    fn memory_and_files_of_both_widths_read_the_same() {
        let ids = [7_u32, 65_535, 0, 513];
        let two: Vec<u8> = [9, 7, 65_535, 0, 513]
            .iter()
            .flat_map(|id: &u16| id.to_le_bytes())
            .collect();
        let four: Vec<u8> = [9, 7, 65_535, 0, 513]
            .iter()
            .flat_map(|id: &u32| id.to_le_bytes())
            .collect();
        for tokens in [
            Tokens::from(&ids),
            mapped(&two, Width::Two),
            mapped(&four, Width::Four),
        ] {
            assert_eq!(tokens, ids);
            assert_eq!((tokens.len(), tokens.iter().len()), (4, 4));
            assert_eq!((tokens.get(3), tokens.get(4)), (Some(513), None));
            assert_eq!(tokens.range(1..3).collect::<Vec<_>>(), [65_535, 0]);
            assert_eq!(tokens.range(4..4).next(), None);
            assert_ne!(tokens, [7, 65_535, 0, 514]);
        }
    }

    #[test]
    fn the_width_is_the_least_that_holds_every_id() {
        let widths = [256, 65_536, 65_537, 267_735].map(Width::of);
        assert_eq!(widths, [Width::Two, Width::Two, Width::Four, Width::Four]);
    }
}
