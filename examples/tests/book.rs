//! The book in `docs`: every page is listed and exists, every relative link and image leads
//! somewhere, every piece of code that a page includes is there, and mdBook makes the book without
//! a warning.

use mdbook_driver::MDBook;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The targets of `[text](target)` and `![text](target)` outside of code blocks and code spans.
fn links(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            let outside = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
            prose.push_str(&outside);
            prose.push('\n');
        }
    }
    let after = prose.split("](").skip(1);
    after
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.split_whitespace().next().unwrap_or("").to_owned())
        .collect()
}

/// What GitHub and mdBook call a heading in a link: `## What it costs` is `#what-it-costs`.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let name = |heading: &str| {
        let title = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        title
            .chars()
            .filter(kept)
            .collect::<String>()
            .replace(' ', "-")
    };
    headings.map(name).collect()
}

/// Where the book and the pages of the registry find what is outside of them.
const REPOSITORY: &str = "https://github.com/deq-rs/deq/blob/main/";

/// Everything in the file `page` that leads nowhere.
fn broken(page: &Path) -> Vec<String> {
    let text = read(page);
    let folder = page.parent().expect("a page is in a folder");
    let mut broken = Vec::new();
    for link in links(&text) {
        let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
        let target = match file.strip_prefix(REPOSITORY) {
            Some(file) => root().join(file),
            None if file.contains("://") || file.starts_with("mailto:") => continue,
            None if file.is_empty() => page.to_owned(),
            None => folder.join(file),
        };
        let is_page = target.extension().is_some_and(|end| end == "md");
        if !target.exists() {
            broken.push(format!("{}: no {link}", page.display()));
        } else if !anchor.is_empty() && is_page && !anchors(&read(&target)).contains(anchor) {
            broken.push(format!("{}: no heading {link}", page.display()));
        }
    }
    broken
}

/// The pages of `SUMMARY.md`.
fn listed() -> Vec<String> {
    links(&read(&root().join("docs/src/SUMMARY.md")))
}

fn pages() -> BTreeSet<String> {
    let folder = root().join("docs/src");
    let entries = fs::read_dir(&folder).expect("docs/src");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.into_string().expect("a plain name"));
    names
        .filter(|name| name.ends_with(".md") && name != "SUMMARY.md")
        .collect()
}

#[test]
fn every_page_is_listed_once_and_exists() {
    let listed = listed();
    let names: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(names.len(), listed.len(), "a page is listed twice");
    assert_eq!(names, pages());
    assert!(listed.len() <= 14, "{} pages", listed.len());
}

#[test]
fn every_relative_link_leads_somewhere() {
    let book = pages().into_iter().map(|page| format!("docs/src/{page}"));
    let others = [
        "README",
        "ARCHITECTURE",
        "CONTRIBUTING",
        "CHANGELOG",
        "examples/README",
    ];
    let crates = fs::read_dir(root().join("crates")).expect("crates");
    let crates = crates.map(|entry| entry.expect("an entry").file_name());
    let crates = crates.map(|name| format!("crates/{}/README", name.display()));
    let others = others.map(str::to_owned).into_iter().chain(crates);
    let others = others.map(|name| format!("{name}.md"));
    let broken: Vec<String> = book
        .chain(others)
        .flat_map(|page| broken(&root().join(page)))
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// What `{{#include PATH:ANCHOR}}` names, as mdBook reads it.
fn includes(text: &str) -> Vec<(String, Option<String>)> {
    let after = text.split("{{#include ").skip(1);
    let inner = after.filter_map(|rest| rest.split_once("}}"));
    inner
        .map(|(target, _)| match target.trim().split_once(':') {
            Some((path, anchor)) => (path.to_owned(), Some(anchor.to_owned())),
            None => (target.trim().to_owned(), None),
        })
        .collect()
}

#[test]
fn every_included_piece_of_code_is_there() {
    let folder = root().join("docs/src");
    let mut included = 0;
    for page in pages() {
        for (path, anchor) in includes(&read(&folder.join(&page))) {
            let code = read(&folder.join(&path));
            if let Some(anchor) = anchor {
                let ends_with = |mark: &str| {
                    let mark = format!("{mark}: {anchor}");
                    code.lines().any(|line| line.trim_end().ends_with(&mark))
                };
                let there = ends_with("ANCHOR") && ends_with("ANCHOR_END");
                assert!(there, "{page}: {path} has no anchor {anchor}");
            }
            included += 1;
        }
    }
    assert!(included > 0, "the book includes code");
}

#[test]
fn every_example_is_in_the_index() {
    let index = read(&root().join("examples/README.md"));
    let manifest = read(&root().join("examples/Cargo.toml"));
    for name in manifest
        .lines()
        .filter_map(|line| line.strip_prefix("path = \""))
    {
        let name = name.trim_end_matches('"');
        let is_example = name != "lib.rs" && !name.starts_with("tests/");
        assert!(
            !is_example || index.contains(name),
            "no {name} in the index"
        );
    }
}

#[test]
fn mdbook_makes_it_without_a_warning() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let guard = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::WARN)
        .with_ansi(false)
        .with_writer(File::create(&log).expect("a log"))
        .set_default();
    let mut book = MDBook::load(root().join("docs")).expect("a book");
    book.config.build.build_dir = folder.path().join("book");
    book.build().expect("pages");
    drop(guard);
    assert_eq!(read(&log), "");

    // What mdBook leaves as it is where it cannot read it.
    for page in pages() {
        let html = folder.path().join("book").join(page).with_extension("html");
        assert!(!read(&html).contains("{{#"), "{}", html.display());
    }
}
