//! Which ids the label maps of a data set hold.

use super::classes::{LabelMeaning, Labels};
use super::loader::Skipped;
use super::raster::LabelMap;
use crate::error::DataError;
use rayon::prelude::*;
use std::fmt::{Display, Formatter};
use std::path::{Path, PathBuf};

/// Label maps that are counted at first; all of them where there are no more.
const SAMPLED: usize = 500;

/// The ids in the label maps of a data set and their shares of the pixels, counted before training.
///
/// Up to 500 maps are all counted, of more than these a part spread evenly; but while a class has
/// not been seen, counting goes on with the others, so that a class which is said to be absent is
/// in no map.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelSurvey {
    /// The folder of the label maps.
    pub folder: PathBuf,
    /// Maps counted.
    pub counted: usize,
    /// Maps there are.
    pub maps: usize,
    /// Maps that cannot be read; they are not among those counted.
    pub unreadable: Vec<Skipped>,
    /// The names of the classes.
    pub classes: Vec<String>,
    /// The ids that occur or stand for a class, in ascending order.
    pub ids: Vec<LabelShare>,
}

/// How often an id occurs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelShare {
    /// The id as it stands in the files.
    pub id: u8,
    /// What it means.
    pub meaning: LabelMeaning,
    /// Its share of all pixels counted, from 0 to 1.
    pub share: f64,
}

/// Pixels of each id.
type Counts = [u64; 256];

impl LabelSurvey {
    /// Counts the ids of `maps`.
    pub(super) fn of(folder: &Path, labels: &Labels, maps: &[&PathBuf]) -> Result<Self, DataError> {
        let mut survey = Self {
            folder: folder.to_owned(),
            counted: 0,
            maps: maps.len(),
            unreadable: Vec::new(),
            classes: labels.classes.clone(),
            ids: Vec::new(),
        };
        let meanings = labels.meanings();
        let mut pixels = [0; 256];
        // Beginning with the evenly spread ones.
        let step = maps.len().div_ceil(SAMPLED).max(1);
        let order = (0..step).flat_map(|first| maps.iter().skip(first).step_by(step));
        let order: Vec<&Path> = order.map(|path| path.as_path()).collect();
        for some in order.chunks(maps.len().div_ceil(step).max(1)) {
            survey.add(some, &mut pixels)?;
            let absent = |(meaning, count): (&LabelMeaning, &u64)| {
                matches!(meaning, LabelMeaning::Class(_)) && *count == 0
            };
            if !meanings.iter().zip(&pixels).any(absent) {
                break;
            }
        }
        if let (0, Some(Skipped { path, reason })) = (survey.counted, survey.unreadable.first()) {
            return Err(DataError::BadImage {
                path: path.clone(),
                reason: reason.clone(),
            });
        }
        let all = pixels.iter().sum::<u64>().max(1) as f64;
        let ids = (0..=u8::MAX).zip(meanings).zip(pixels);
        let ids = ids.filter(|((_, meaning), count)| {
            *count > 0 || matches!(meaning, LabelMeaning::Class(_))
        });
        survey.ids = ids
            .map(|((id, meaning), count)| LabelShare {
                id,
                meaning: *meaning,
                share: count as f64 / all,
            })
            .collect();
        Ok(survey)
    }

    fn add(&mut self, maps: &[&Path], pixels: &mut Counts) -> Result<(), DataError> {
        let outcomes: Vec<_> = maps.par_iter().map(|path| count(path)).collect();
        for outcome in outcomes {
            match outcome {
                Ok(counts) => {
                    self.counted += 1;
                    for (sum, count) in pixels.iter_mut().zip(counts) {
                        *sum += count;
                    }
                }
                Err(error) => self.unreadable.push(Skipped::from_error(error)?),
            }
        }
        Ok(())
    }

    /// The classes that occur. If there is only one, it is everywhere, and a mean intersection over
    /// union says nothing.
    pub fn present_classes(&self) -> Vec<&str> {
        self.classes_where(|share| share > 0.0)
    }

    fn classes_where(&self, holds: impl Fn(f64) -> bool) -> Vec<&str> {
        let ids = self.ids.iter().filter(|id| holds(id.share));
        ids.filter_map(|id| self.class_of(id)).collect()
    }

    fn class_of(&self, id: &LabelShare) -> Option<&str> {
        match id.meaning {
            LabelMeaning::Class(class) => self.classes.get(usize::from(class)).map(String::as_str),
            LabelMeaning::Ignored | LabelMeaning::Unknown => None,
        }
    }

    /// Requires label maps that a model can be trained on: with every class and no unknown id.
    ///
    /// # Errors
    ///
    /// [`DataError::AbsentClasses`], or what [`require_known`](Self::require_known) says.
    pub fn require_complete(&self) -> Result<(), DataError> {
        let absent = self.classes_where(|share| share <= 0.0);
        if !absent.is_empty() {
            return Err(DataError::AbsentClasses {
                folder: self.folder.clone(),
                absent: absent.join(", "),
                found: self.to_string(),
            });
        }
        self.require_known()
    }

    /// Requires that every id is a class or declared to be none. For held-out data, which need not
    /// show every class.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownLabels`] naming the ids that are neither.
    pub fn require_known(&self) -> Result<(), DataError> {
        let unknown = self.ids.iter();
        let unknown = unknown.filter(|id| id.meaning == LabelMeaning::Unknown);
        let unknown: Vec<String> = unknown.map(|id| id.id.to_string()).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(DataError::UnknownLabels {
            folder: self.folder.clone(),
            unknown: unknown.join(", "),
            found: self.to_string(),
        })
    }
}

/// In one line: the ids with their meanings and shares, most frequent first, at most 12 of them,
/// and the maps that were counted.
impl Display for LabelSurvey {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 12;
        let mut ids: Vec<&LabelShare> = self.ids.iter().collect();
        ids.sort_by(|a, b| b.share.total_cmp(&a.share));
        for id in ids.iter().take(SHOWN) {
            let meaning = match id.meaning {
                LabelMeaning::Class(_) => self.class_of(id).unwrap_or_default(),
                LabelMeaning::Ignored => "ignored",
                LabelMeaning::Unknown => "no class",
            };
            let percent = 100.0 * id.share;
            write!(f, "{} ({meaning}) {percent:.2} %, ", id.id)?;
        }
        if ids.len() > SHOWN {
            write!(f, "{} more, ", ids.len() - SHOWN)?;
        }
        write!(f, "in {} of {} label maps", self.counted, self.maps)
    }
}

fn count(path: &Path) -> Result<Counts, DataError> {
    let map = LabelMap::open(path, &std::array::from_fn(|id| id as u8))?;
    let mut counts = [0; 256];
    for id in map.data() {
        counts[usize::from(*id)] += 1;
    }
    Ok(counts)
}
