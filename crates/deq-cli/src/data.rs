//! `deq data`, and how the reading of a text is shown.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use deq_data::{
    Arrangement, CachePlace, CachedText, CorpusEvent, CorpusReader, Level, TextSurvey, Vocabulary,
    survey,
};
use deq_train::OnProgress;
use deq_train::tasks::text::reading_text;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Subcommand)]
pub(crate) enum DataCommand {
    /// Download WikiText-2 or WikiText-103 and check it.
    #[cfg(feature = "fetch")]
    Fetch(DataFetchArgs),
    /// Say what a text is: files, splits, tokens, vocabulary, token files.
    Info(DataInfoArgs),
    /// Read a text and its token files in full and compare them with their checksums.
    Verify {
        /// Folder of text files, or one text file.
        path: PathBuf,
    },
}

#[cfg(feature = "fetch")]
#[derive(Args)]
pub(crate) struct DataFetchArgs {
    /// wikitext-2 (4.5 MB) or wikitext-103 (190 MB).
    name: String,
    /// Address of the folder that holds the archive. Default: that of the author of WikiText.
    #[arg(long, value_name = "URL", env = "DEQ_MIRROR")]
    mirror: Option<String>,
    /// Folder for the text. Default: data/NAME.
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct DataInfoArgs {
    /// Folder of text files, or one text file.
    path: PathBuf,
    /// What a token is: byte, word or tokenizer (the tokenizer.json in the folder). Default: what
    /// training takes, which for plain text is byte.
    #[arg(long)]
    level: Option<Level>,
    /// Read the text by this tokenizer.json.
    #[arg(long, value_name = "FILE", conflicts_with = "level")]
    tokenizer: Option<PathBuf>,
    /// Keep the ids in a token file, so that training begins at once.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(what: &DataCommand) -> Result<()> {
    match what {
        #[cfg(feature = "fetch")]
        DataCommand::Fetch(args) => fetch(args),
        DataCommand::Info(args) => info(args),
        DataCommand::Verify { path } => verify(path),
    }
}

#[cfg(feature = "fetch")]
fn fetch(args: &DataFetchArgs) -> Result<()> {
    use deq_data::{FetchEvent, RemoteText};

    let text = RemoteText::named(&args.name)?;
    let folder = match &args.dir {
        Some(folder) => folder.clone(),
        None => Path::new("data").join(text.name),
    };
    let bar = bytes_bar()?;
    let mut on_event = |event: FetchEvent| match event {
        FetchEvent::Downloading { done, total } => {
            bar.set_message("downloading");
            if let Some(total) = total {
                bar.set_length(total);
            }
            bar.set_position(done);
        }
        FetchEvent::Resuming { done } => {
            bar.suspend(|| eprintln!("the connection was cut; going on after {done} bytes"));
        }
        FetchEvent::Checking => {
            bar.finish_and_clear();
            eprintln!("unpacking and checking");
        }
        _ => {}
    };
    let fetched = deq_data::fetch(text, &folder, args.mirror.as_deref(), &mut on_event)?;
    bar.finish_and_clear();
    let folder = folder.display();
    match fetched {
        true => println!(
            "{} is in {folder}; its licence: {}",
            text.name, text.licence
        ),
        false => println!("{folder} holds a text already: nothing was fetched"),
    }
    println!("train on it:  deq train lm --data {folder}");
    Ok(())
}

fn info(args: &DataInfoArgs) -> Result<()> {
    let path = &args.path;
    print_text(path, &survey(path, &CachePlace::Auto, false)?);
    let reader = match &args.tokenizer {
        Some(file) => CorpusReader::with_vocabulary(path, Vocabulary::load(file)?),
        None => {
            let level = args.level.map_or_else(|| Level::default_for(path), Ok)?;
            CorpusReader::new(path, level)
        }
    };
    let bar = bytes_bar()?;
    let listen = |event: &CorpusEvent<'_>| show(&bar, event);
    let reader = reader.on_event(&listen);
    let corpus = match args.keep {
        true => reader.cache(CachePlace::Auto).read()?,
        false => reader.read()?,
    };
    let vocabulary = &corpus.vocabulary;
    let unit = match vocabulary.level() {
        Level::Byte => "bytes",
        Level::Word => "words, with one <eos> a line",
        Level::Tokenizer => "tokens of the tokenizer",
    };
    println!("read as:      {unit}");
    let test = corpus.test.as_ref().map(|test| test.len());
    for (name, tokens) in [
        ("train:", Some(corpus.train.len())),
        ("valid:", Some(corpus.valid.len())),
        ("test:", test),
        ("vocabulary:", Some(vocabulary.len())),
    ] {
        if let Some(tokens) = tokens {
            println!("{name:<14}{:>13} tokens", grouped(tokens as u64));
        }
    }
    // Read again: this may have kept a token file.
    let cached = survey(path, &CachePlace::Auto, false)?.cached;
    print_cached(&cached);
    if args.keep && cached.is_empty() {
        println!("nothing is kept of so small a text, which is read anew as fast");
    }
    Ok(())
}

fn verify(path: &Path) -> Result<()> {
    let survey = survey(path, &CachePlace::Auto, true)?;
    print_text(path, &survey);
    print_cached(&survey.cached);
    let cached = survey.cached.iter();
    match cached.filter(|cached| cached.problem.is_some()).count() {
        0 => Ok(()),
        1 => bail!("a token file does not match: it will be written anew when the text is read"),
        many => bail!(
            "{many} token files do not match: they will be written anew when the text is read"
        ),
    }
}

fn print_text(path: &Path, survey: &TextSurvey) {
    let arrangement = match survey.arrangement {
        Arrangement::File => "one file, cut 90 / 5 / 5 at line ends",
        Arrangement::Splits => "a folder with train, valid and test",
        Arrangement::DividedFiles => {
            "a folder of files, every 20th in valid and every 20th in test"
        }
        Arrangement::JoinedFiles => "a folder of files, joined and cut 90 / 5 / 5 at line ends",
    };
    println!("text:         {}", path.display());
    println!("kind:         {arrangement}");
    println!("files:        {:>13}", grouped(survey.files as u64));
    println!("size:         {:>13} bytes", grouped(survey.bytes));
}

fn print_cached(cached: &[CachedText]) {
    if cached.is_empty() {
        println!("token files:  none");
    }
    for cached in cached {
        println!("token file:   {}", cached.file.display());
        if let (Some(level), Some([train, valid, test])) = (cached.level, cached.tokens) {
            let [train, valid, test] = [train, valid, test].map(grouped);
            println!("              {level} level, {train} / {valid} / {test} tokens");
        }
        match &cached.problem {
            None => println!("              up to date"),
            Some(problem) => println!("              CANNOT BE USED: {problem}"),
        }
    }
}

/// A number with commas between thousands.
fn grouped(number: u64) -> String {
    HumanCount(number).to_string()
}

/// A bar on standard error, drawn only on a terminal, and not before there is something to show.
fn bytes_bar() -> Result<ProgressBar> {
    let style = "{msg:>15} {wide_bar} {bytes} of {total_bytes}  {eta} left";
    let bar = ProgressBar::no_length();
    bar.set_style(ProgressStyle::with_template(style)?);
    Ok(bar)
}

/// Shows the reading of a text on standard error.
fn show(bar: &ProgressBar, event: &CorpusEvent<'_>) {
    let show = |what: &'static str, done: &u64, total: &u64| {
        bar.set_message(what);
        bar.set_length(*total);
        bar.set_position(*done);
    };
    match event {
        CorpusEvent::Counting { done, total } => show("counting words", done, total),
        CorpusEvent::Encoding { done, total } => {
            show("reading tokens", done, total);
            if done == total {
                bar.finish_and_clear();
            }
        }
        other => {
            if let Some(sentence) = reading_text(other) {
                eprintln!("{sentence}");
            }
        }
    }
}

/// Shows what training says while it reads large data.
pub(crate) fn progress() -> OnProgress {
    let line = ProgressBar::new_spinner();
    Arc::new(move |sentence| {
        line.set_message(sentence.to_owned());
        line.tick();
        if sentence.ends_with("100 %") || !sentence.ends_with('%') {
            line.finish_and_clear();
        }
        if !sentence.ends_with('%') {
            crate::print::note(sentence);
        }
    })
}
