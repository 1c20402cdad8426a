//! The audit log: one line of JSON for each change of what a desktop shows.
//!
//! `audit/log` only grows. A line is written with one call in append mode, so that lines of several
//! processes do not mix.

use std::fs::File;
use std::io::Write;

use serde::Serialize;

use super::{Store, now_text};

/// Adds a line. One that cannot be written is reported and does not undo what was done.
pub fn append(store: &Store, what: &str, facts: &impl Serialize) {
    #[derive(Serialize)]
    struct Line<'a, T> {
        time: String,
        uid: u32,
        what: &'a str,
        facts: &'a T,
    }
    let line = Line { time: now_text(), uid: crate::sys::process::uid(), what, facts };
    let mut text = serde_json::to_vec(&line).unwrap_or_default();
    text.push(b'\n');
    let path = store.path("audit/log");
    let written = File::options().append(true).create(true).open(&path).and_then(|mut f| f.write_all(&text));
    if let Err(e) = written {
        log::error!("{} could not be written: {}", path.display(), crate::error::words(&e));
    }
}
