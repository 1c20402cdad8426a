//! How results, notes and errors are said: to a person, to a script, as JSON.
//!
//! Results go to standard output, everything else to standard error. A reader that has gone away (`EPIPE`) is
//! no failure: what the command did, it did.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::args::Global;
use super::progress::Bars;
use super::table::Table;
use crate::error::{Doing, Error, Result};

/// Where a command says what it has to say.
pub struct Ui {
    json: bool,
    quiet: bool,
    verbose: bool,
    /// Standard output is a terminal.
    terminal: bool,
    /// Standard error is a terminal.
    error_terminal: bool,
    colours: bool,
    answered: AtomicBool,
}

impl Ui {
    pub fn new(global: &Global) -> Ui {
        Ui {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose > 0,
            terminal: io::stdout().is_terminal(),
            error_terminal: io::stderr().is_terminal(),
            // https://no-color.org: any value but the empty one.
            colours: std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
            answered: AtomicBool::new(false),
        }
    }

    /// Says the result; a command does so once. Only the form that is asked for is made.
    pub fn answer(&self, value: impl FnOnce() -> Value, text: impl FnOnce(&mut Text)) -> Result<()> {
        self.answered.store(true, Ordering::Relaxed);
        let bytes = if self.json {
            json_line(&value())
        } else {
            let mut out = Text::new(self.terminal, self.terminal && self.colours);
            text(&mut out);
            out.bytes
        };
        write_out(&bytes)
    }

    /// Says on standard error what is worth knowing; not with `-q`.
    pub fn note(&self, message: impl std::fmt::Display) {
        if !self.quiet {
            let _ =
                writeln!(io::stderr(), "reroot: {}", printable(&message.to_string(), self.error_terminal));
        }
    }

    /// As [`Ui::note`], only with `-v`.
    pub fn detail(&self, message: impl std::fmt::Display) {
        if self.verbose {
            self.note(message);
        }
    }

    /// Says what ended the command: on standard error, and as the one JSON document if there was none yet.
    pub fn error(&self, e: &Error) {
        if self.json && !self.answered.swap(true, Ordering::Relaxed) {
            let _ = write_out(&json_line(&json!({ "error": error_json(e) })));
            return;
        }
        let (on, off) =
            if self.error_terminal && self.colours { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        let text = printable(&e.to_string(), self.error_terminal);
        let _ = writeln!(io::stderr(), "{on}reroot:{off} {text}");
    }

    /// Whether the result is one JSON document, so that nothing else may go to standard output.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// What shows long work.
    pub fn progress(&self) -> Bars {
        Bars::new(self.error_terminal && !self.quiet && !self.json)
    }

    /// Ends the program's output.
    pub fn finish(&self, status: u8) -> u8 {
        let _ = io::stderr().flush();
        match io::stdout().flush() {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe && status == 0 => 1,
            _ => status,
        }
    }
}

/// `{"kind", "message", "exit"}`.
pub fn error_json(e: &Error) -> Value {
    json!({ "kind": e.kind(), "message": e.to_string(), "exit": e.exit_status() })
}

fn json_line(value: &Value) -> Vec<u8> {
    let mut out = serde_json::to_vec_pretty(value).unwrap_or_default();
    out.push(b'\n');
    out
}

fn write_out(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        r => r.doing("writing the result to standard output"),
    }
}

/// A result as people read it.
pub struct Text {
    bytes: Vec<u8>,
    terminal: bool,
    colours: bool,
}

/// What a colour means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hue {
    /// Good or new.
    Green,
    /// Changed, or worth a look.
    Yellow,
    /// Gone or bad.
    Red,
    /// A heading.
    Bold,
}

impl Text {
    fn new(terminal: bool, colours: bool) -> Text {
        Text { bytes: Vec::new(), terminal, colours }
    }

    /// A line of text.
    pub fn line(&mut self, text: impl std::fmt::Display) {
        let text = printable(&text.to_string(), self.terminal);
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(b'\n');
    }

    /// A line that begins with a word in a colour.
    pub fn marked(&mut self, hue: Hue, word: &str, rest: impl std::fmt::Display) {
        self.word(hue, word);
        self.line(rest);
    }

    /// A line that ends with a path: its raw bytes, or on a terminal without what could steer it.
    pub fn path_line(&mut self, hue: Option<Hue>, before: &str, path: &[u8]) {
        match hue {
            Some(hue) => self.word(hue, before),
            None => self.bytes.extend_from_slice(before.as_bytes()),
        }
        if self.terminal {
            self.bytes.extend_from_slice(shown_path(path).as_bytes());
        } else {
            self.bytes.extend_from_slice(path);
        }
        self.bytes.push(b'\n');
    }

    /// Rows: aligned under headings on a terminal; elsewhere separated by tabs, without headings.
    pub fn table(&mut self, table: &Table) {
        let rows = if self.terminal { table.aligned() } else { table.plain() };
        for (i, row) in rows.iter().enumerate() {
            if self.terminal && i == 0 {
                self.word(Hue::Bold, row);
                self.bytes.push(b'\n');
            } else {
                self.line(row);
            }
        }
    }

    fn word(&mut self, hue: Hue, word: &str) {
        let code = match hue {
            Hue::Green => "32",
            Hue::Yellow => "33",
            Hue::Red => "31",
            Hue::Bold => "1",
        };
        let text = if self.colours { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_string() };
        self.bytes.extend_from_slice(text.as_bytes());
    }
}

/// Text without control characters other than the line's end, where it goes to a terminal.
fn printable(text: &str, terminal: bool) -> String {
    if !terminal {
        return text.to_string();
    }
    let keep = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().map(|c| if keep(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

/// A path without anything that a terminal would act on: control characters and bytes that are no UTF-8 are
/// written as `\xNN`.
pub fn shown_path(path: &[u8]) -> String {
    let mut out = String::new();
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c.is_control() => {
                    let mut buf = [0; 4];
                    for b in c.encode_utf8(&mut buf).bytes() {
                        out.push_str(&format!("\\x{b:02x}"));
                    }
                }
                c => out.push(c),
            }
        }
        for b in chunk.invalid() {
            out.push_str(&format!("\\x{b:02x}"));
        }
    }
    out
}

/// A JSON object with `path`, and `path_hex` where the path is no UTF-8, so that nothing is lost.
pub fn path_json(path: &[u8]) -> serde_json::Map<String, Value> {
    let mut out = serde_json::Map::new();
    out.insert("path".into(), Value::String(String::from_utf8_lossy(path).into_owned()));
    if std::str::from_utf8(path).is_err() {
        let hex: String = path.iter().map(|b| format!("{b:02x}")).collect();
        out.insert("path_hex".into(), Value::String(hex));
    }
    out
}

/// Writes what the program logs to standard error: warnings, with `-v` more.
pub fn begin_log(global: &Global) {
    struct ToStandardError;
    impl log::Log for ToStandardError {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            let _ = writeln!(io::stderr(), "reroot: {}", record.args());
        }
        fn flush(&self) {}
    }
    let level = match (global.quiet, global.verbose) {
        (true, _) => log::LevelFilter::Error,
        (_, 0) => log::LevelFilter::Warn,
        (_, 1) => log::LevelFilter::Info,
        _ => log::LevelFilter::Trace,
    };
    // Somebody has set one already: theirs stays.
    if log::set_logger(&ToStandardError).is_ok() {
        log::set_max_level(level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_as_json_has_kind_message_and_exit() {
        let e = error_json(&Error::Refused("no".into()));
        assert_eq!(e, json!({ "kind": "refused", "message": "no", "exit": 4 }));
    }

    #[test]
    fn a_path_cannot_steer_a_terminal_and_is_raw_elsewhere() {
        let path = b"a\x1b[2J\xff\xc3\xa9\n";
        assert_eq!(shown_path(path), "a\\x1b[2J\\xffé\\x0a");
        let mut text = Text::new(false, false);
        text.path_line(Some(Hue::Red), "D ", path);
        assert_eq!(text.bytes, [b"D ", &path[..], b"\n"].concat());
        let json = path_json(path);
        assert_eq!(json["path_hex"], "611b5b324affc3a90a");
        assert!(!path_json(b"plain").contains_key("path_hex"));
    }

    #[test]
    fn colours_are_written_only_where_they_are_wanted() {
        let mut text = Text::new(true, true);
        text.marked(Hue::Green, "A", " x\x07");
        assert_eq!(text.bytes, b"\x1b[32mA\x1b[0m x\\u{7}\n");
    }
}
