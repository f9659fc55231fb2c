//! `docs/behaviours.md` is true: each of its rows names tests of its own, and they exist, as does what
//! it says they rest on.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const ROWS: usize = 69;

/// Rows of what is not there yet: TLS (66).
const UNTESTED: [usize; 1] = [66];

/// The heading of a second table, of what makes the rows of the first one hold.
const MECHANISMS: &str = "## What makes it hold";

/// All names of the form `bNN_...` in a text.
fn names(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| row_of(word).is_some())
        .map(str::to_owned)
        .collect()
}

/// The NN of `bNN_...`.
fn row_of(name: &str) -> Option<usize> {
    let (digits, rest) = name.strip_prefix('b')?.split_once('_')?;
    (digits.len() == 2 && !rest.is_empty()).then(|| digits.parse().ok())?
}

fn names_below(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names_below(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.extend(names(&fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The catalogue; and apart, its table of mechanisms.
fn catalogue() -> (String, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/behaviours.md");
    let text = fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once(MECHANISMS).unwrap();
    let (mechanisms, behind) = rest.split_once("\n## ").unwrap();
    (format!("{before}{behind}"), mechanisms.to_owned())
}

/// The rows of the tables: a number, and the line.
fn rows(catalogue: &str) -> impl Iterator<Item = (usize, &str)> {
    catalogue.lines().filter_map(|line| {
        let number = line.strip_prefix("| ")?.split_once(' ')?.0;
        Some((number.parse().ok()?, line))
    })
}

#[test]
fn each_row_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (catalogue, _) = catalogue();
    let mut tests = BTreeSet::new();
    for folder in ["tests", "reactor", "net"] {
        names_below(&root.join(folder), &mut tests);
    }

    let mut numbers: Vec<_> = rows(&catalogue).map(|(number, _)| number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, Vec::from_iter(1..=ROWS), "each row stands there once");

    for (number, line) in rows(&catalogue) {
        let named = names(line);
        assert!(!named.is_empty() || UNTESTED.contains(&number), "row {number} names no test");
        for name in named {
            assert_eq!(row_of(&name), Some(number), "{name} stands in row {number}");
            assert!(tests.contains(&name), "row {number}: there is no test {name}");
        }
    }
}

/// All that the sources in a file or folder say.
fn text_of(path: &Path) -> String {
    if path.is_dir() {
        fs::read_dir(path).unwrap().map(|entry| text_of(&entry.unwrap().path())).collect()
    } else {
        fs::read_to_string(path).unwrap()
    }
}

#[test]
fn each_row_names_mechanisms_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (_, mechanisms) = catalogue();
    let numbers: Vec<_> = rows(&mechanisms).map(|(number, _)| number).collect();
    let tested = (1..=ROWS).filter(|number| !UNTESTED.contains(number));
    assert_eq!(numbers, Vec::from_iter(tested), "each row stands there once, in order");
    for (number, line) in rows(&mechanisms) {
        // The second column; there, every other piece stands in quotes.
        let quoted = || line.split('|').nth(2).unwrap().split('`').skip(1).step_by(2);
        let mut text = String::new();
        for file in quoted().filter(|quoted| quoted.contains('/')) {
            assert!(root.join(file).exists(), "row {number}: there is no {file}");
            text.push_str(&text_of(&root.join(file)));
        }
        let words: BTreeSet<_> = text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        let names = quoted().filter(|quoted| !quoted.contains('/') && !quoted.ends_with(".rs"));
        for name in names.flat_map(|name| name.split("::")) {
            assert!(words.contains(name), "row {number}: {name} is not in the files it names");
        }
    }
}
