//! What can be wrong with data, each in one sentence that says what would be right.

use std::path::{Path, PathBuf};

/// Data cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The path does not exist.
    #[error(
        "there is no {path}: give a folder with train.txt, valid.txt and perhaps test.txt, \
         a folder of \
         .txt files, or one text file"
    )]
    NotFound {
        /// The path given.
        path: PathBuf,
    },
    /// A split of a corpus folder is missing.
    #[error(
        "{folder} has no {split} split: it must hold one of {accepted}, or a sub-folder {split} with .txt files"
    )]
    MissingSplit {
        /// The folder.
        folder: PathBuf,
        /// `train`, `valid` or `test`.
        split: &'static str,
        /// The file names looked for, separated by commas.
        accepted: String,
    },
    /// A folder that should hold text holds none.
    #[error("{folder} holds no .txt file: a split needs at least one")]
    NoText {
        /// The folder.
        folder: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds no token.
    #[error("{path} is empty: a split needs at least one token")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A folder of images does not exist.
    #[error("there is no folder {path}: give the folder that holds the data set")]
    NoFolder {
        /// The path given.
        path: PathBuf,
    },
    /// A part of a folder of images is missing.
    #[error(
        "{folder} has no folder of {split} images: it must be called {accepted}, \
         but there is {found}"
    )]
    MissingImageSplit {
        /// The folder.
        folder: PathBuf,
        /// `training` or `held-out`.
        split: &'static str,
        /// The names looked for, separated by commas.
        accepted: String,
        /// What the folder holds.
        found: String,
    },
    /// A folder holds no image where some are expected.
    #[error("no image in {path}: {expected}, but there is {found}")]
    NoImages {
        /// The folder.
        path: PathBuf,
        /// What would be right.
        expected: &'static str,
        /// What the folder holds.
        found: String,
    },
    /// An image, a label map or a list of classes is damaged or in a form that is not read.
    #[error("{path} cannot be used: {reason}")]
    BadImage {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Not one image of a batch can be used.
    #[error("none of the {count} images of a batch can be used; the first is {path}: {reason}")]
    NothingReadable {
        /// The images of the batch.
        count: usize,
        /// The first file.
        path: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
    /// Images of a batch have different sizes.
    #[error(
        "images of {} x {} and {} x {} pixels cannot share a batch: choose a transform that gives \
         one size", first.0, first.1, other.0, other.1
    )]
    MixedSizes {
        /// Width and height of the first.
        first: (usize, usize),
        /// Those of another.
        other: (usize, usize),
    },
    /// A binary file is not in the layout of CIFAR-10.
    #[error(
        "{path} has {bytes} bytes, but CIFAR-10 files are whole records of 3073, a label and \
         3 x 1024 colours: fetch it again"
    )]
    NotCifar {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: usize,
    },
    /// A label is no class.
    #[error("{path} holds the label {label}, but labels are below {classes}")]
    LabelOutOfRange {
        /// The file.
        path: PathBuf,
        /// The label.
        label: usize,
        /// The number of classes.
        classes: usize,
    },
    /// The name of an image has no label.
    #[error("{path} has no label in its name, which must be INDEX_LABEL.jpg, as in 00000_6.jpg")]
    NoLabelInName {
        /// The file.
        path: PathBuf,
    },
    /// A class folder has no counterpart in the training part.
    #[error("{path} is no class of the training images: remove it, or add it there")]
    UnknownClassFolder {
        /// The folder.
        path: PathBuf,
    },
    /// There are more classes than ids.
    #[error("{path} has {classes} classes, more than there are ids")]
    TooManyClasses {
        /// The folder.
        path: PathBuf,
        /// The classes.
        classes: usize,
    },
    /// An image has no label map.
    #[error("{image} has no label map: there is no {labels}")]
    MissingLabels {
        /// The image.
        image: PathBuf,
        /// Where its labels should be.
        labels: PathBuf,
    },
    /// Classes occur in no label map.
    #[error(
        "no label map in {folder} has a pixel of these classes: {absent}. \
         There are the ids {found}: \
         correct the maps, or say in classes.txt what each id is, in lines ID: NAME"
    )]
    AbsentClasses {
        /// The folder of the label maps.
        folder: PathBuf,
        /// The classes, separated by commas.
        absent: String,
        /// The ids there are, with their shares.
        found: String,
    },
    /// Label maps hold ids that are neither a class nor declared to be none.
    #[error(
        "the label maps in {folder} hold ids that are no class: {unknown}. There are the ids \
         {found}: correct the maps, or say in classes.txt what each id is, in lines ID: NAME, with \
         the name ignore for what is no class"
    )]
    UnknownLabels {
        /// The folder of the label maps.
        folder: PathBuf,
        /// The ids, separated by commas.
        unknown: String,
        /// The ids there are, with their shares.
        found: String,
    },
    /// There is no such source of images.
    #[error(
        "there is no data set {name:?}: choose shapes, shapes-segmentation, cifar10:PATH, \
         imagefolder:PATH or segmentation:PATH"
    )]
    UnknownImageSource {
        /// The name given.
        name: String,
    },
    /// A number lies outside its range.
    #[error("{field} is {value}, but must be {requirement}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// The value given.
        value: f64,
        /// What would be right.
        requirement: &'static str,
    },
    /// A single file is too small to be cut into three splits.
    #[error(
        "{path} has {bytes} bytes, too few to cut into train, valid and test: \
         give a longer text, or a \
         folder with train.txt and valid.txt"
    )]
    TooSmallToDivide {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: usize,
    },
    /// A text file is in another encoding.
    #[error("{path} is UTF-16 text: convert it to UTF-8")]
    Utf16 {
        /// The file.
        path: PathBuf,
    },
    /// A file is larger than any of its kind.
    #[error("{path} has more than {most} bytes: it is not a vocabulary or tokenizer")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes that are read.
        most: u64,
    },
    /// A text has no test split where one is needed.
    #[error("the text has no test split: add test.txt, or use the valid split")]
    NoTest,
    /// A split is not what it was.
    #[error(
        "the {split} split has fingerprint {found:016x} instead of {expected:016x}: its text has \
         changed; bring back the text that was used before, or start anew with this one"
    )]
    OtherText {
        /// `train`, `valid` or `test`.
        split: &'static str,
        /// The fingerprint that it had.
        expected: u64,
        /// The fingerprint that it has.
        found: u64,
    },
    /// A word-level file is not text.
    #[error("{path} is not UTF-8 text (byte {position}): convert it, or read it at the byte level")]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where the text stops being valid.
        position: usize,
    },
    /// A word of a corpus is not in the vocabulary, and the vocabulary has no `<unk>`.
    #[error(
        "{path} holds {word:?}, which the vocabulary lacks, and there is no <unk> for it: use a \
         vocabulary with <unk>, or the words of this text"
    )]
    UnknownWord {
        /// The file.
        path: PathBuf,
        /// The word.
        word: String,
    },
    /// A word of a text that comes from no file is not in the vocabulary, and the vocabulary has no
    /// `<unk>`.
    #[error("the vocabulary has neither {word:?} nor <unk>: use words of the training text")]
    UnknownToken {
        /// The word.
        word: String,
    },
    /// An id lies outside the vocabulary.
    #[error("there is no token {id}: the ids of this vocabulary are below {len}")]
    UnknownId {
        /// The id given.
        id: u32,
        /// The size of the vocabulary.
        len: usize,
    },
    /// A token is there twice, so that its id is ambiguous.
    #[error("the vocabulary lists {token:?} as token {first} and as token {second}: keep one")]
    DuplicateToken {
        /// The token.
        token: String,
        /// Its first id.
        first: usize,
        /// Its second id.
        second: usize,
    },
    /// A line of a vocabulary file holds a token that an earlier one holds.
    #[error("{path} repeats {token:?} in line {line}: every token must have one line")]
    DuplicateLine {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The token.
        token: String,
    },
    /// A line of a vocabulary file is empty.
    #[error("{path} has nothing in line {line}: every line must hold one token")]
    BlankLine {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// A vocabulary has no token for the end of a line.
    #[error("{path} has no <eos>, which ends every line of a word-level text: add it")]
    NoEndOfLine {
        /// The file.
        path: PathBuf,
    },
    /// A text is to be read by a tokenizer, but there is none.
    #[error(
        "{path} has no tokenizer.json: put one into the folder, or name the file of the tokenizer"
    )]
    NoTokenizer {
        /// The folder or file of the text.
        path: PathBuf,
    },
    /// A `tokenizer.json` cannot be used.
    #[error(
        "{path} is not a tokenizer: {reason}; give a tokenizer.json as the tokenizers library of Hugging Face writes it"
    )]
    BrokenTokenizer {
        /// The file.
        path: PathBuf,
        /// What the library says.
        reason: String,
    },
    /// This program was built without tokenizers.
    #[error(
        "{path} needs the tokenizers library, which is not compiled in: build with `--features tokenizers`"
    )]
    TokenizersNotCompiled {
        /// The file.
        path: PathBuf,
    },
    /// A tokenizer failed on a text or on ids.
    #[error("the tokenizer cannot {action} this text: {reason}")]
    Tokenizer {
        /// `read` or `write`.
        action: &'static str,
        /// What the library says.
        reason: String,
    },
    /// A folder holds no vocabulary.
    #[error(
        "{folder} holds neither vocab.txt nor tokenizer.json: give a folder that a vocabulary was saved in"
    )]
    NoVocabulary {
        /// The folder.
        folder: PathBuf,
    },
    /// The vocabulary is not the one that a model was trained with.
    #[error(
        "the vocabulary has fingerprint {found:016x}, but the model was trained with {expected:016x}: read the same data at the same level, or with the vocabulary saved beside the model"
    )]
    OtherVocabulary {
        /// The fingerprint of the model's vocabulary.
        expected: u64,
        /// The fingerprint of this one.
        found: u64,
    },
    /// There is no text of this name to fetch.
    #[error("there is no text {name:?} to fetch: choose one of {known}")]
    UnknownText {
        /// The name given.
        name: String,
        /// The names there are, separated by commas.
        known: String,
    },
    /// A text cannot be fetched.
    #[error(
        "cannot fetch {url}: {reason}. Without a network, get this archive elsewhere and put {files} from it into {folder}"
    )]
    CannotFetch {
        /// The address.
        url: String,
        /// What the network or the server says.
        reason: String,
        /// The files needed, separated by commas.
        files: String,
        /// Where they belong.
        folder: PathBuf,
    },
    /// An archive cannot be unpacked.
    #[error(
        "{path} was no good and has been removed ({reason}): fetch it again, or from another mirror"
    )]
    BadArchive {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file that was fetched is not the right one.
    #[error(
        "{file} has the SHA-256 checksum {found} instead of {expected} and has been removed: fetch it again, or from another mirror"
    )]
    WrongChecksum {
        /// The file in the archive.
        file: &'static str,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A text that was fetched has other numbers of tokens than it should.
    #[error(
        "what was fetched is not {name} and has been removed: train, valid, test and vocabulary have {found:?} tokens instead of {expected:?}; \
         fetch it from another mirror"
    )]
    WrongCounts {
        /// The text.
        name: &'static str,
        /// Tokens of train, valid, test and the vocabulary.
        expected: [usize; 4],
        /// What there is.
        found: [usize; 4],
    },
    /// There are not enough tokens for one prediction in every stream.
    #[error(
        "{tokens} tokens are too few for {batch} streams: each needs at least 2, so reduce the batch to {most} or less"
    )]
    TooFewTokens {
        /// The tokens there are.
        tokens: usize,
        /// The streams asked for.
        batch: usize,
        /// The most streams possible.
        most: usize,
    },
    /// There are not enough tokens for one stream.
    #[error(
        "{tokens} tokens are too few: a stream needs at least 2, one to read and one to predict"
    )]
    NothingToPredict {
        /// The tokens there are.
        tokens: usize,
    },
    /// There is no such level.
    #[error("there is no level {name:?}: choose byte, word or tokenizer")]
    UnknownLevel {
        /// The name given.
        name: String,
    },
}

/// A text from outside as it can be printed: cut where it is long, with its control characters
/// escaped.
pub(crate) fn excerpt(text: &str) -> String {
    const MOST: usize = 200;
    let mut excerpt = String::new();
    for character in text.chars().take(MOST) {
        match character.is_control() {
            true => excerpt.extend(character.escape_default()),
            false => excerpt.push(character),
        }
    }
    if text.chars().nth(MOST).is_some() {
        excerpt.push_str("...");
    }
    excerpt
}

impl DataError {
    pub(crate) fn read(path: &Path, source: std::io::Error) -> Self {
        DataError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn write(path: &Path, source: std::io::Error) -> Self {
        DataError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        }
    }
}
