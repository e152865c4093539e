//! Fetching from a server in this process: whole, cut, refused, altered.

#![cfg(feature = "fetch")]
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use deq_data::{Corpus, FetchEvent, Level, RemoteFile, RemoteText, fetch};
use std::io::{BufRead, BufReader, Cursor, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use zip::write::SimpleFileOptions;

/// What the server does with one request.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// Sends what is asked for.
    Right,
    /// Promises what is asked for, and hangs up after so many bytes.
    CutAfter(usize),
    /// Sends everything, whatever is asked for.
    Everything,
    /// Sends another part than asked for.
    OtherPart,
    NotFound,
}

/// A server that answers one request after the other, and the last answer ever after.
struct Server {
    mirror: String,
    /// The `Range` of each request.
    ranges: Arc<Mutex<Vec<Option<usize>>>>,
}

impl Server {
    fn new(content: Vec<u8>, answers: &[Answer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mirror = format!("http://{}/texts/", listener.local_addr().unwrap());
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let (seen, answers) = (ranges.clone(), answers.to_vec());
        std::thread::spawn(move || {
            let ends = answers
                .iter()
                .chain(std::iter::repeat(answers.last().unwrap()));
            for (stream, answer) in listener.incoming().zip(ends) {
                let stream = stream.unwrap();
                let (path, range) = request(&stream);
                assert_eq!(path, "/texts/small-v1.zip");
                seen.lock().unwrap().push(range);
                // The client may have gone.
                let _ = respond(stream, &content, range, *answer);
            }
        });
        Self { mirror, ranges }
    }

    fn ranges(&self) -> Vec<Option<usize>> {
        self.ranges.lock().unwrap().clone()
    }
}

fn request(stream: &TcpStream) -> (String, Option<usize>) {
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    let first = lines.next().unwrap();
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let range = lines.take_while(|line| !line.is_empty()).find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        let from = value.strip_prefix("bytes=")?.strip_suffix('-')?;
        (name.eq_ignore_ascii_case("range")).then(|| from.parse().unwrap())
    });
    (path, range)
}

fn respond(
    mut stream: TcpStream,
    content: &[u8],
    range: Option<usize>,
    answer: Answer,
) -> std::io::Result<()> {
    let all = content.len();
    let (status, extra, body) = match (answer, range) {
        (Answer::NotFound, _) => ("404 Not Found", String::new(), &b"no"[..]),
        (Answer::Everything, _) | (_, None) => ("200 OK", String::new(), content),
        (_, Some(from)) if from >= all => (
            "416 Range Not Satisfiable",
            format!("Content-Range: bytes */{all}\r\n"),
            &b""[..],
        ),
        (answer, Some(from)) => {
            let from = match answer {
                Answer::OtherPart => from / 2,
                _ => from,
            };
            let extra = format!("Content-Range: bytes {from}-{}/{all}\r\n", all - 1);
            ("206 Partial Content", extra, &content[from..])
        }
    };
    let sent = match answer {
        Answer::CutAfter(bytes) => &body[..bytes.min(body.len())],
        _ => body,
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{extra}Connection: close\r\n\r\n"
    )?;
    stream.write_all(sent)
}

const TRAIN: &str = "a b a <unk>\n";
const VALID: &str = "a\n";
const TEST: &str = "b b\n";

/// Stored without compression, with 200 kB of padding: something to cut.
fn archive(train: &str) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, text) in [("train", train), ("valid", VALID), ("test", TEST)] {
        let path = format!("small/wiki.{name}.tokens");
        zip.start_file(path, stored).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    zip.start_file("small/padding", stored).unwrap();
    zip.write_all(&[7; 200_000]).unwrap();
    zip.finish().unwrap().into_inner()
}

/// The text, whose train has a checksum; the other files are known by their counts.
const SMALL: RemoteText = RemoteText {
    name: "small",
    archive: "small-v1.zip",
    mirror: "http://127.0.0.1:9",
    files: [
        RemoteFile {
            path: "small/wiki.train.tokens",
            // `printf 'a b a <unk>\n' | sha256sum`
            sha256: Some("813ee9e7435fcbd2a0259115559c81195830eb1dd32d7b9c9e7aab58ede4e70a"),
        },
        RemoteFile {
            path: "small/wiki.valid.tokens",
            sha256: None,
        },
        RemoteFile {
            path: "small/wiki.test.tokens",
            sha256: None,
        },
    ],
    tokens: [5, 2, 3],
    vocabulary: 4,
    licence: "none",
};

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.unwrap().file_name().to_string_lossy().into_owned()
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

const FILES: [&str; 3] = ["wiki.test.tokens", "wiki.train.tokens", "wiki.valid.tokens"];

fn quiet(_: FetchEvent) {}

#[test]
fn a_text_is_fetched_checked_and_ready_to_be_read() {
    let content = archive(TRAIN);
    let bytes = content.len() as u64;
    let server = Server::new(content, &[Answer::Right]);
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("deep/small");
    let mut events = Vec::new();
    let listen = &mut |event| events.push(event);
    assert!(fetch(&SMALL, &folder, Some(&server.mirror), listen).unwrap());
    assert_eq!(names(&folder), FILES);
    let total = Some(bytes);
    let all = FetchEvent::Downloading { done: bytes, total };
    assert_eq!(events[0], FetchEvent::Downloading { done: 0, total });
    assert_eq!(events[events.len() - 2..], [all, FetchEvent::Checking]);
    let corpus = Corpus::open(&folder, Level::Word).unwrap();
    assert_eq!(corpus.test.unwrap(), [2, 2, 0]);
    // Nothing is fetched twice.
    assert!(!fetch(&SMALL, &folder, Some("http://127.0.0.1:9"), &mut quiet).unwrap());
    assert_eq!(server.ranges(), [None]);
    // Nor beside a text that has the three splits by other names.
    for name in ["train.txt", "val.txt", "test.txt"] {
        std::fs::write(parent.path().join(name), "a\n").unwrap();
    }
    assert!(
        !fetch(
            &SMALL,
            parent.path(),
            Some("http://127.0.0.1:9"),
            &mut quiet
        )
        .unwrap()
    );
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let server = Server::new(
        archive(TRAIN),
        &[
            Answer::CutAfter(100_000),
            Answer::CutAfter(50_000),
            Answer::Right,
        ],
    );
    let folder = tempfile::tempdir().unwrap();
    let mut resumed = Vec::new();
    let listen = &mut |event| {
        if let FetchEvent::Resuming { done } = event {
            resumed.push(done);
        }
    };
    fetch(&SMALL, folder.path(), Some(&server.mirror), listen).unwrap();
    assert_eq!(resumed, [100_000, 150_000]);
    assert_eq!(server.ranges(), [None, Some(100_000), Some(150_000)]);
    assert_eq!(names(folder.path()), FILES);
}

#[test]
fn a_download_that_failed_goes_on_the_next_time() {
    let server = Server::new(
        archive(TRAIN),
        &[Answer::CutAfter(120_000), Answer::NotFound, Answer::Right],
    );
    let folder = tempfile::tempdir().unwrap();
    let again = || fetch(&SMALL, folder.path(), Some(&server.mirror), &mut quiet);
    let message = again().unwrap_err().to_string();
    assert!(message.contains("404"), "{message}");
    assert_eq!(names(folder.path()), ["small-v1.zip.part"]);
    again().unwrap();
    assert_eq!(server.ranges()[2], Some(120_000));
    assert_eq!(names(folder.path()), FILES);
}

#[test]
fn a_server_that_is_always_cut_off_says_what_is_kept() {
    let server = Server::new(
        archive(TRAIN),
        &[Answer::CutAfter(10_000), Answer::CutAfter(0)],
    );
    let folder = tempfile::tempdir().unwrap();
    let error = fetch(&SMALL, folder.path(), Some(&server.mirror), &mut quiet).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("10000 bytes are kept"), "{message}");
    assert_eq!(server.ranges(), [None, Some(10_000)]);
}

/// A folder is opened to set its time, which not every system allows.
#[cfg(unix)]
#[test]
fn what_a_killed_fetch_was_unpacking_is_removed_the_next_day() {
    let folder = tempfile::tempdir().unwrap();
    for (name, hours) in [(".unpacking-a", 25), (".unpacking-b", 1)] {
        let path = folder.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("wiki.train.tokens"), TRAIN).unwrap();
        let time = std::time::SystemTime::now() - std::time::Duration::from_secs(hours * 3600);
        let opened = std::fs::File::open(&path).unwrap();
        opened.set_modified(time).unwrap();
    }
    for name in FILES {
        std::fs::write(folder.path().join(name), TRAIN).unwrap();
    }
    assert!(!fetch(&SMALL, folder.path(), None, &mut quiet).unwrap());
    assert_eq!(names(folder.path())[..2], [".unpacking-b", FILES[0]]);
}

#[test]
fn servers_without_ranges_start_again() {
    for answer in [Answer::Everything, Answer::OtherPart] {
        let server = Server::new(archive(TRAIN), &[Answer::CutAfter(100_000), answer]);
        let folder = tempfile::tempdir().unwrap();
        fetch(&SMALL, folder.path(), Some(&server.mirror), &mut quiet).unwrap();
        assert_eq!(names(folder.path()), FILES, "{answer:?}");
        assert_eq!(server.ranges()[..2], [None, Some(100_000)]);
    }
}

#[test]
fn a_beginning_that_is_everything_or_too_much_is_noticed() {
    let content = archive(TRAIN);
    for more in [0, 10] {
        let server = Server::new(content.clone(), &[Answer::Right]);
        let folder = tempfile::tempdir().unwrap();
        let beginning = [&content[..], &vec![0; more]].concat();
        std::fs::write(folder.path().join("small-v1.zip.part"), beginning).unwrap();
        fetch(&SMALL, folder.path(), Some(&server.mirror), &mut quiet).unwrap();
        assert_eq!(names(folder.path()), FILES);
        assert_eq!(server.ranges().len(), 1 + usize::from(more > 0));
    }
}

#[test]
fn what_is_not_the_text_is_removed() {
    let refused = |content: Vec<u8>, text: &RemoteText| {
        let server = Server::new(content, &[Answer::Right]);
        let folder = tempfile::tempdir().unwrap();
        let error = fetch(text, folder.path(), Some(&server.mirror), &mut quiet).unwrap_err();
        assert!(
            names(folder.path()).is_empty(),
            "{:?}",
            names(folder.path())
        );
        error.to_string()
    };
    let message = refused(archive("a b a <unk>!\n"), &SMALL);
    assert!(
        message.contains("small/wiki.train.tokens has the SHA-256 checksum"),
        "{message}"
    );
    let other = RemoteText {
        tokens: [5, 2, 4],
        ..SMALL
    };
    let message = refused(archive(TRAIN), &other);
    assert!(
        message.contains("[5, 2, 3, 4] tokens instead of [5, 2, 4, 4]"),
        "{message}"
    );
    let message = refused(b"<html>not found</html>".to_vec(), &SMALL);
    assert!(message.contains("was no good"), "{message}");
    let mut damaged = archive(TRAIN);
    let at = damaged
        .windows(5)
        .position(|bytes| bytes == b"a b a")
        .unwrap();
    damaged[at] = b'b';
    let message = refused(damaged, &SMALL);
    assert!(message.contains("wiki.train.tokens"), "{message}");
}

#[test]
fn without_a_network_one_is_told_what_to_get_and_where_to_put_it() {
    // A port that was free a moment ago: nobody listens.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mirror = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("wt");
    let text = &RemoteText::WIKITEXT_103;
    let message = fetch(text, &place, Some(&mirror), &mut quiet)
        .unwrap_err()
        .to_string();
    for part in [
        format!("{mirror}/wikitext-103-v1.zip"),
        "wiki.train.tokens, wiki.valid.tokens, wiki.test.tokens".to_owned(),
        place.display().to_string(),
    ] {
        assert!(message.contains(&part), "{part} is missing in {message}");
    }
    assert!(names(&place).is_empty());

    let server = Server::new(Vec::new(), &[Answer::NotFound]);
    let error = fetch(&SMALL, &place, Some(&server.mirror), &mut quiet).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the server answers 404 Not Found"),
        "{error}"
    );
}

/// The files that the checksums in this crate are of, if they are there.
#[test]
fn the_checksums_of_wikitext_2_are_those_of_its_files() {
    let required = std::env::var("DEQ_REQUIRE_FIXTURES").as_deref() == Ok("1");
    let Some(data) = std::env::var_os("DEQ_DATA") else {
        assert!(
            !required,
            "DEQ_DATA is not set, but DEQ_REQUIRE_FIXTURES=1 asks for it"
        );
        eprintln!("skipped: DEQ_DATA is not set");
        return;
    };
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for split in ["train", "valid", "test"] {
        let path = Path::new(&data).join(format!("wikitext-2/{split}.txt"));
        let name = format!("wikitext-2/wiki.{split}.tokens");
        zip.start_file(name, SimpleFileOptions::default()).unwrap();
        zip.write_all(&std::fs::read(path).unwrap()).unwrap();
    }
    let content = zip.finish().unwrap().into_inner();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mirror = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let (path, _) = request(&stream);
        respond(stream, &content, None, Answer::Right).unwrap();
        path
    });
    let folder = tempfile::tempdir().unwrap();
    fetch(
        &RemoteText::WIKITEXT_2,
        folder.path(),
        Some(&mirror),
        &mut quiet,
    )
    .unwrap();
    assert_eq!(server.join().unwrap(), "/wikitext-2-v1.zip");
    assert_eq!(names(folder.path()), FILES);
}
