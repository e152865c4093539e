//! How long a text takes to read, with one thread and with all, and to open again from its token
//! file.
//!
//! ```text
//! cargo run --release -p deq-data --example token_files --features tokenizers -- PATH byte|word|TOKENIZER.json
//! ```

use deq_data::{CachePlace, Corpus, CorpusReader, DataError, Level, Tokens, Vocabulary};
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, how] = &arguments[..] else {
        return Err(
            "give the path of a text, and byte, word or the path of a tokenizer.json".into(),
        );
    };
    let path = Path::new(path);
    let reader = || -> Result<CorpusReader<'static>, DataError> {
        Ok(match how.ends_with(".json") {
            true => CorpusReader::with_vocabulary(path, Vocabulary::load(Path::new(how))?),
            false => CorpusReader::new(path, how.parse::<Level>()?),
        })
    };
    let all = std::thread::available_parallelism()?.get();
    for threads in [1, all] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()?;
        let (corpus, seconds) = timed(|| pool.install(|| reader()?.read()))?;
        let tokens = tokens(&corpus);
        println!(
            "{threads} threads: {tokens} tokens in {seconds:.2} s, {:.2} million a second",
            tokens as f64 / seconds / 1e6
        );
    }
    let folder = tempfile::tempdir()?;
    let place = || CachePlace::In(folder.path().to_owned());
    let (_, seconds) = timed(|| reader()?.cache(place()).read())?;
    println!("read and keep in a token file: {seconds:.2} s");
    let file = deq_data::survey(path, &place(), false)?
        .cached
        .remove(0)
        .file;
    println!(
        "token file: {:.1} MB",
        std::fs::metadata(&file)?.len() as f64 / 1e6
    );
    let (_, seconds) = timed(|| reader()?.cache(place()).read())?;
    println!("open it, checksum compared: {seconds:.4} s");
    let (corpus, seconds) = timed(|| reader()?.cache(place()).check(false).read())?;
    println!("open it, header only: {seconds:.4} s");
    let (_, seconds) =
        timed(|| Ok::<_, DataError>(corpus.train.iter().map(u64::from).sum::<u64>()))?;
    println!("read all ids of train: {seconds:.4} s");
    Ok(())
}

fn tokens(corpus: &Corpus) -> usize {
    let test = corpus.test.as_ref().map_or(0, Tokens::len);
    corpus.train.len() + corpus.valid.len() + test
}

fn timed<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<(T, f64), E> {
    let started = Instant::now();
    let value = work()?;
    Ok((value, started.elapsed().as_secs_f64()))
}
