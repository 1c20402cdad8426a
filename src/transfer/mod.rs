//! Import and export.

use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::layer::stack::Words;
use crate::store::versions::{Manifest, VersionName};
use crate::store::{Digest, Progress, Store};

/// Where a tree comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A directory.
    Dir(PathBuf),
}

impl FromStr for Source {
    type Err = Error;
    fn from_str(text: &str) -> Result<Source> {
        match text.strip_prefix("dir:") {
            Some(path) => Ok(Source::Dir(path.into())),
            None => Err(Error::Usage(format!("{text:?} is not a source: dir:PATH"))),
        }
    }
}

/// Where a tree goes.
#[derive(Clone, Debug)]
pub enum Dest {
    /// A directory.
    Dir(PathBuf),
}

impl FromStr for Dest {
    type Err = Error;
    fn from_str(text: &str) -> Result<Dest> {
        match text.strip_prefix("dir:") {
            Some(path) => Ok(Dest::Dir(path.into())),
            None => Err(Error::Usage(format!("{text:?} is not a destination: dir:PATH"))),
        }
    }
}

/// An import to make.
#[derive(Debug)]
pub struct ImportRequest {
    /// Where the tree comes from.
    pub source: Source,
    /// What it is called.
    pub name: VersionName,
    /// The version that it is stored as a delta against.
    pub parent: Option<VersionName>,
    /// The source is a delta itself.
    pub as_delta: bool,
    /// Message and annotations.
    pub words: Words,
}

/// What an import made.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The version.
    pub version: Digest,
    /// Its manifest.
    pub manifest: Manifest,
    /// Paths in its last layer.
    pub delta_paths: u64,
    /// Bytes that the store did not have.
    pub new_bytes: u64,
    /// Files read.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// Imports a tree as a version.
pub fn import(store: &Store, request: &ImportRequest, progress: &dyn Progress) -> Result<Imported> {
    let _ = (store, request, progress);
    Err(Error::Failed("not built yet".into()))
}

/// What an export wrote.
#[derive(Clone, Debug)]
pub struct Exported {
    /// Paths.
    pub paths: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// What the destination could not hold, a sentence each.
    pub skipped: Vec<String>,
}

/// Writes a version's tree to a destination.
pub fn export(store: &Store, version: &Digest, dest: &Dest, progress: &dyn Progress) -> Result<Exported> {
    let _ = (store, version, dest, progress);
    Err(Error::Failed("not built yet".into()))
}
