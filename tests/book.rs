//! `docs/` is a book: each of its pages is in the summary, and what a page links is there, seen from
//! the page as from the book, which stands beside `docs/` (`book.toml`).

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
}

/// Where the links and images of a page lead, but for other sites and the page itself.
fn links(page: &str) -> Vec<String> {
    let text = fs::read_to_string(docs().join(page)).unwrap();
    let target = |rest: &str| rest.split([')', '#']).next().map(str::to_owned);
    let links = text.split("](").skip(1).filter_map(target);
    links.filter(|link| !link.is_empty() && !link.starts_with("http")).collect()
}

fn pages() -> BTreeSet<String> {
    let names = fs::read_dir(docs()).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    names.filter(|name| name.ends_with(".md") && name != "SUMMARY.md").collect()
}

#[test]
fn each_page_is_in_the_summary_once() {
    let listed = links("SUMMARY.md");
    assert_eq!(listed.iter().cloned().collect::<BTreeSet<_>>(), pages());
    assert_eq!(listed.len(), pages().len());
}

#[test]
fn what_a_page_links_is_there() {
    for page in pages() {
        for link in links(&page) {
            let target = docs().join(&link);
            assert!(target.exists(), "{page} links {link}, which is not there");
            // mdBook takes every page for one of its own, and calls it .html.
            let is_page = link.ends_with(".md");
            assert!(!is_page || pages().contains(&link), "{page} links {link}, not of the book");
        }
    }
}
