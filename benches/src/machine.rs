//! On what, when and of which version something was measured.

use std::process::{Command, Stdio};

use crate::contestants::workspace;

/// What can be found out of it.
pub(crate) fn facts() -> Vec<(String, String)> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut models = cpuinfo.lines().filter_map(|line| {
        let (name, model) = line.split_once(':')?;
        (name.trim() == "model name").then(|| model.trim().to_owned())
    });
    let cpu = models.next().map(|model| format!("{} x {model}", models.count() + 1));
    [
        ("measured", said_by("date", &["-u", "+%F %H:%M UTC"])),
        ("commit", said_by("git", &["rev-parse", "--short", "HEAD"])),
        ("CPU", cpu),
        ("system", said_by("uname", &["-sr"])),
        ("compiler", said_by("rustc", &["--version"])),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
    .collect()
}

fn said_by(program: &str, words: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(words)
        .current_dir(workspace())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success()).then(|| text.trim().to_owned())
}
