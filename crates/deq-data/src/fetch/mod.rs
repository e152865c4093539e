//! Texts that can be fetched: WikiText-2 and WikiText-103.

mod archive;
mod download;

use crate::error::DataError;
use crate::files;
use crate::text::layout::{Content, Layout};
use crate::text::{Arrangement, CachePlace, CorpusReader, Level};
use std::path::{Path, PathBuf};

/// A text in a zip archive on some server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteText {
    /// What users call it.
    pub name: &'static str,
    /// The name of the archive, which follows the address of the mirror and a slash.
    pub archive: &'static str,
    /// Where the archive can be had.
    pub mirror: &'static str,
    /// The files of train, valid and test.
    pub files: [RemoteFile; 3],
    /// How many tokens train, valid and test have when they are read by words, and how many words
    /// there are, `<eos>` included. Compared where a file has no checksum.
    pub tokens: [usize; 3],
    /// See [`tokens`](Self::tokens).
    pub vocabulary: usize,
    /// What the authors ask of whoever uses the text.
    pub licence: &'static str,
}

/// A file in an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the archive; it is stored under the last part of it.
    pub path: &'static str,
    /// The SHA-256 checksum of its content in hexadecimal, if it is known.
    pub sha256: Option<&'static str>,
}

/// Where the author of WikiText keeps the archives, since the first place, a bucket of Salesforce
/// at Amazon, answers 403 to everyone.
const MIRROR: &str = "https://wikitext.smerity.com";
const LICENCE: &str = "Creative Commons Attribution-ShareAlike (Wikipedia)";
/// The beginning of the names of folders into which archives are unpacked.
const UNPACKING: &str = ".unpacking-";

impl RemoteText {
    /// WikiText-2 by words (Merity et al., 2017), 4.5 MB to fetch.
    ///
    /// The checksums are those of the files that have been published since 2016.
    pub const WIKITEXT_2: RemoteText = RemoteText {
        name: "wikitext-2",
        archive: "wikitext-2-v1.zip",
        mirror: MIRROR,
        files: [
            RemoteFile {
                path: "wikitext-2/wiki.train.tokens",
                sha256: Some("9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f"),
            },
            RemoteFile {
                path: "wikitext-2/wiki.valid.tokens",
                sha256: Some("f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"),
            },
            RemoteFile {
                path: "wikitext-2/wiki.test.tokens",
                sha256: Some("d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"),
            },
        ],
        tokens: [2_088_628, 217_646, 245_569],
        vocabulary: 33_278,
        licence: LICENCE,
    };

    /// WikiText-103 by words (Merity et al., 2017), 190 MB to fetch.
    ///
    /// No checksum of its files could be verified for this crate, so the tokens and words are
    /// counted instead and compared with the numbers that the authors give.
    pub const WIKITEXT_103: RemoteText = RemoteText {
        name: "wikitext-103",
        archive: "wikitext-103-v1.zip",
        mirror: MIRROR,
        files: [
            RemoteFile {
                path: "wikitext-103/wiki.train.tokens",
                sha256: None,
            },
            RemoteFile {
                path: "wikitext-103/wiki.valid.tokens",
                sha256: None,
            },
            RemoteFile {
                path: "wikitext-103/wiki.test.tokens",
                sha256: None,
            },
        ],
        tokens: [103_227_021, 217_646, 245_569],
        vocabulary: 267_735,
        licence: LICENCE,
    };

    /// The texts that have a name.
    pub const ALL: [&'static RemoteText; 2] = [&Self::WIKITEXT_2, &Self::WIKITEXT_103];

    /// The text of a name.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownText`] with the names there are.
    ///
    /// # Examples
    ///
    /// ```
    /// use deq_data::RemoteText;
    ///
    /// assert_eq!(RemoteText::named("wikitext-2")?.vocabulary, 33_278);
    /// assert!(RemoteText::named("wikitext-3").is_err());
    /// # Ok::<(), deq_data::DataError>(())
    /// ```
    pub fn named(name: &str) -> Result<&'static Self, DataError> {
        let found = Self::ALL.into_iter().find(|text| text.name == name);
        found.ok_or_else(|| DataError::UnknownText {
            name: name.to_owned(),
            known: Self::ALL.map(|text| text.name).join(", "),
        })
    }

    /// The address of the archive on a mirror.
    pub fn url(&self, mirror: &str) -> String {
        format!("{}/{}", mirror.trim_end_matches('/'), self.archive)
    }

    /// The names of the files in the folder of the text.
    fn file_names(&self) -> [&'static str; 3] {
        self.files.map(|file| file.name())
    }
}

impl RemoteFile {
    fn name(&self) -> &'static str {
        match self.path.rsplit_once('/') {
            Some((_, name)) => name,
            None => self.path,
        }
    }
}

/// Something that happens while a text is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FetchEvent {
    /// So many bytes of the archive are here, of so many if the server says so.
    Downloading {
        /// Bytes here.
        done: u64,
        /// Bytes in all.
        total: Option<u64>,
    },
    /// The connection was cut; the download goes on where it stopped.
    Resuming {
        /// Bytes here.
        done: u64,
    },
    /// The archive is here and its files are unpacked and checked.
    Checking,
}

/// Fetches a text into `folder`, from `mirror` or from the text's own, and returns whether it had
/// to.
///
/// The archive is downloaded beside the files, as `ARCHIVE.part`. If the connection is cut, the
/// download goes on where it stopped, a few times by itself and then whenever this is called again.
/// The files come into the folder when they have been compared with their checksums, or, where
/// there is none, with the number of tokens and words; then the archive is removed. A folder that
/// already has the files, or those of the same split under another name that
/// [`Corpus::open`](crate::Corpus::open) knows, is left alone.
///
/// # Errors
///
/// [`DataError::CannotFetch`] if the server cannot be reached or refuses, which also says what to
/// do without a network; [`DataError::BadArchive`], [`DataError::WrongChecksum`] or
/// [`DataError::WrongCounts`] if what came is not the text, in which case it is removed;
/// [`DataError::Io`].
///
/// # Examples
///
/// ```no_run
/// use deq_data::{Corpus, Level, RemoteText};
/// use std::path::Path;
///
/// let folder = Path::new("data/wikitext-2");
/// deq_data::fetch(&RemoteText::WIKITEXT_2, folder, None, &mut |_| ())?;
/// let corpus = Corpus::open(folder, Level::Word)?;
/// # Ok::<(), deq_data::DataError>(())
/// ```
pub fn fetch(
    text: &RemoteText,
    folder: &Path,
    mirror: Option<&str>,
    on_event: &mut dyn FnMut(FetchEvent),
) -> Result<bool, DataError> {
    files::remove_abandoned(folder, &[files::PARTIAL, UNPACKING]);
    let present = |name: &&str| folder.join(name).is_file();
    if text.file_names().iter().all(present) || holds_three_splits(folder) {
        return Ok(false);
    }
    std::fs::create_dir_all(folder).map_err(|error| DataError::write(folder, error))?;
    let url = text.url(mirror.unwrap_or(text.mirror));
    let part = folder.join(format!("{}.part", text.archive));
    if let Err(failure) = download::download(&url, &part, on_event) {
        return Err(match failure {
            download::Failure::Remote(reason) => DataError::CannotFetch {
                url,
                reason,
                files: text.file_names().join(", "),
                folder: folder.to_owned(),
            },
            download::Failure::Local(error) => DataError::write(&part, error),
        });
    }
    on_event(FetchEvent::Checking);
    match unpack(text, &part, folder) {
        // The archive may be right: there was no room for its files, say.
        Err(error @ DataError::Io { .. }) => Err(error),
        unpacked => {
            std::fs::remove_file(&part).map_err(|error| DataError::write(&part, error))?;
            unpacked.map(|()| true)
        }
    }
}

/// Unpacks into a hidden folder beside the files to come, compares, and moves the files to their
/// places.
fn unpack(text: &RemoteText, part: &Path, folder: &Path) -> Result<(), DataError> {
    let within = tempfile::Builder::new()
        .prefix(UNPACKING)
        .tempdir_in(folder)
        .map_err(|error| DataError::write(folder, error))?;
    for file in &text.files {
        archive::unpack(part, file, &within.path().join(file.name()))?;
    }
    if text.files.iter().any(|file| file.sha256.is_none()) {
        compare_counts(text, within.path())?;
    }
    for name in text.file_names() {
        let place: PathBuf = folder.join(name);
        std::fs::rename(within.path().join(name), &place)
            .map_err(|error| DataError::write(&place, error))?;
    }
    Ok(())
}

/// Compares the numbers of tokens and words with those that are known.
fn compare_counts(text: &RemoteText, folder: &Path) -> Result<(), DataError> {
    let reader = CorpusReader::new(folder, Level::Word).cache(CachePlace::Off);
    let corpus = reader.read()?;
    let found = [
        corpus.train.len(),
        corpus.valid.len(),
        corpus.require_test()?.len(),
        corpus.vocabulary.len(),
    ];
    let [train, valid, test] = text.tokens;
    let expected = [train, valid, test, text.vocabulary];
    match found == expected {
        true => Ok(()),
        false => Err(DataError::WrongCounts {
            name: text.name,
            expected,
            found,
        }),
    }
}

/// Whether a folder has train, valid and test, by any of their names.
fn holds_three_splits(folder: &Path) -> bool {
    let layout = Layout::find(folder).ok();
    let layout = layout.filter(|layout| layout.arrangement() == Arrangement::Splits);
    layout.is_some_and(
        |layout| matches!(&layout.content, Content::Splits(splits) if splits.len() == 3),
    )
}
