//! What can go wrong, kept apart by what the caller must do about it.
//!
//! A message says what happened, to which path or version, and what to do next. The kinds map one to one
//! to the exit statuses of the command line.

use std::fmt::Display;
use std::io;
use std::path::Path;

/// The result of everything that talks to a person in the end.
pub type Result<T> = std::result::Result<T, Error>;

/// An error that ends a command.
#[derive(Debug)]
pub enum Error {
    /// The system refused something: what was being done, and its reason. Exit status 1.
    Io(String, io::Error),
    /// It could not be done, and nothing changed. Exit status 1.
    Failed(String),
    /// The request itself is wrong. Exit status 2.
    Usage(String),
    /// There is nothing to do. Exit status 3.
    Nothing(String),
    /// Policy or trust forbids it. Exit status 4.
    Refused(String),
    /// Content that does not match its digest or its format. Exit status 5.
    Damaged(String),
}

impl Error {
    /// The exit status that a command ends with.
    pub fn exit_status(&self) -> u8 {
        match self {
            Error::Io(..) | Error::Failed(_) => 1,
            Error::Usage(_) => 2,
            Error::Nothing(_) => 3,
            Error::Refused(_) => 4,
            Error::Damaged(_) => 5,
        }
    }

    /// One word for the kind, as it appears in JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Io(..) => "io",
            Error::Failed(_) => "failed",
            Error::Usage(_) => "usage",
            Error::Nothing(_) => "nothing",
            Error::Refused(_) => "refused",
            Error::Damaged(_) => "damaged",
        }
    }

    /// An error that another process told of, by its [`Error::kind`] and its message.
    pub fn of_kind(kind: &str, message: String) -> Error {
        match kind {
            "usage" => Error::Usage(message),
            "nothing" => Error::Nothing(message),
            "refused" => Error::Refused(message),
            "damaged" => Error::Damaged(message),
            _ => Error::Failed(message),
        }
    }

    /// The error number to answer a file-system request with.
    pub fn errno(&self) -> i32 {
        match self {
            Error::Io(_, e) => e.raw_os_error().unwrap_or(libc::EIO),
            Error::Failed(_) | Error::Damaged(_) => libc::EIO,
            Error::Usage(_) => libc::EINVAL,
            Error::Nothing(_) => libc::ENOENT,
            Error::Refused(_) => libc::EPERM,
        }
    }
}

/// The system's words for an error, without its number.
pub fn words(e: &io::Error) -> String {
    let text = e.to_string();
    match text.find(" (os error ") {
        Some(at) => text[..at].to_string(),
        None => text,
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Io(doing, e) => write!(f, "{doing}: {}", words(e)),
            Error::Failed(m)
            | Error::Usage(m)
            | Error::Nothing(m)
            | Error::Refused(m)
            | Error::Damaged(m) => f.write_str(m),
        }
    }
}

impl std::error::Error for Error {}

/// Adds to a system error what was being done.
pub trait Doing<T> {
    /// `doing` is a present participle with its object: "reading the manifest".
    fn doing(self, doing: impl Display) -> Result<T>;
    /// As [`Doing::doing`], with a path after it.
    fn at(self, doing: &str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, doing: impl Display) -> Result<T> {
        self.map_err(|e| Error::Io(doing.to_string(), e.into()))
    }
    fn at(self, doing: &str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::Io(format!("{doing} {}", path.as_ref().display()), e.into()))
    }
}
