//! Import and export: directories and tar archives to versions, and back.
//!
//! Every reader makes one thing, a `Harvest`: a draft whose objects are in the store. What becomes of it,
//! a base, a delta or a full tree from an OCI delta, is decided here once. A failed import leaves no tag, no
//! version and no temporary file; contents that were already stored for it stay until a collection, so that
//! the next attempt need not read them again.
//!
//! Nothing here knows of desktops, mounts or the command line.

mod acl;
mod directory;
mod growth;
mod hashed;
mod marks;
mod pax;
mod tape;
mod unpack;
mod write_dir;
mod write_tar;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::layer::model::{Draft, InodeId};
use crate::layer::{merge, stack};
use crate::store::versions::{Manifest, VersionName};
use crate::store::{Digest, Progress, Store};

/// Longest path that is taken in, in bytes.
const PATH_LIMIT: usize = 16 << 10;
/// Deepest path that is taken in, in components: merging goes down by recursion.
const DEPTH_LIMIT: usize = 1000;

/// Where an archive is read from or written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard input or output (`-`).
    Standard,
    /// A file.
    File(PathBuf),
}

impl Stream {
    fn named(text: &str) -> Stream {
        if text == "-" { Stream::Standard } else { Stream::File(text.into()) }
    }

    fn describe(&self, standard: &str) -> String {
        match self {
            Stream::Standard => standard.into(),
            Stream::File(path) => path.display().to_string(),
        }
    }
}

/// What an import reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `dir:PATH`: a directory.
    Dir(PathBuf),
    /// `tar:FILE`: a tar archive, plain or compressed with gzip, zstd or xz.
    Tar(Stream),
    /// `oci:DIR[:REF]`: an OCI image layout.
    Oci(String),
    /// `disk:FILE[#PARTITION]`: a disk image.
    Disk(String),
}

/// What an export writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dest {
    /// `dir:PATH`: a directory that is missing or empty.
    Dir(PathBuf),
    /// `tar:FILE`: a tar archive, compressed as its name ends (`.gz`, `.zst`, `.xz`).
    Tar(Stream),
    /// `oci:DIR[:REF]`: an OCI image layout.
    Oci(String),
    /// `disk:FILE`: a disk image.
    Disk(String),
}

fn scheme<'a>(what: &str, text: &'a str) -> Result<(&'a str, &'a str)> {
    let usage = |m: String| Err(Error::Usage(m));
    match text.split_once(':') {
        Some((kind @ ("dir" | "tar" | "oci" | "disk"), rest)) if !rest.is_empty() => Ok((kind, rest)),
        Some((kind @ ("dir" | "tar" | "oci" | "disk"), _)) => {
            usage(format!("{what} {text:?} names nothing; write a path after {kind}:"))
        }
        _ => usage(format!("{what} {text:?} does not say what it is; write dir:PATH or tar:FILE")),
    }
}

impl FromStr for Source {
    type Err = Error;
    fn from_str(text: &str) -> Result<Source> {
        Ok(match scheme("the source", text)? {
            ("dir", rest) => Source::Dir(rest.into()),
            ("tar", rest) => Source::Tar(Stream::named(rest)),
            ("oci", rest) => Source::Oci(rest.into()),
            (_, rest) => Source::Disk(rest.into()),
        })
    }
}

impl FromStr for Dest {
    type Err = Error;
    fn from_str(text: &str) -> Result<Dest> {
        Ok(match scheme("the destination", text)? {
            ("dir", rest) => Dest::Dir(rest.into()),
            ("tar", rest) => Dest::Tar(Stream::named(rest)),
            ("oci", rest) => Dest::Oci(rest.into()),
            (_, rest) => Dest::Disk(rest.into()),
        })
    }
}

/// What to import, and as what.
#[derive(Clone, Debug)]
pub struct ImportRequest {
    /// What is read.
    pub source: Source,
    /// The tag that will name the version; a tag that exists moves.
    pub name: VersionName,
    /// The version that the result is a delta on top of; without one it is a base.
    pub parent: Option<VersionName>,
    /// The source is itself a delta in OCI whiteout form; needs a parent.
    pub as_delta: bool,
    /// What is said of the version.
    pub words: stack::Words,
}

/// What an import did.
#[derive(Clone, Debug, Serialize)]
pub struct Imported {
    /// The version.
    pub version: Digest,
    /// Its manifest.
    pub manifest: Manifest,
    /// Paths in the new layer, the root and the directories on the way among them.
    pub delta_paths: u64,
    /// Bytes of content that the store did not have before.
    pub new_bytes: u64,
    /// Regular files in the source, each hard-link group counted once.
    pub files: u64,
    /// Sum of their lengths, in bytes.
    pub bytes: u64,
    /// How much of that was read; the rest was known from an earlier import.
    pub bytes_read: u64,
}

/// What an export wrote.
#[derive(Clone, Debug, Serialize)]
pub struct Exported {
    /// The version.
    pub version: Digest,
    /// Regular files, each hard-link group counted once.
    pub files: u64,
    /// Sum of their lengths, in bytes.
    pub bytes: u64,
    /// What the destination cannot hold and was left out: a path and the reason.
    pub skipped: Vec<String>,
}

/// What a reader brings home.
#[derive(Debug, Default)]
struct Harvest {
    draft: Draft,
    /// Directories that the source only implied, by a path through them.
    implied: HashSet<InodeId>,
    files: u64,
    bytes: u64,
    bytes_read: u64,
    new_bytes: u64,
}

/// Reads a source into the store and gives it a name.
///
/// # Errors
/// [`Error::Nothing`] where the source shows what the parent shows. On any error the tag stays as it was.
pub fn import(store: &Store, request: &ImportRequest, progress: &dyn Progress) -> Result<Imported> {
    let Some(tag) = request.name.tag() else {
        return Err(Error::Usage(format!("{} cannot be imported to; give a tag, IMAGE:TAG", request.name)));
    };
    if request.as_delta && request.parent.is_none() {
        return Err(Error::Usage("a delta needs the version that it changes; add --parent IMAGE:TAG".into()));
    }
    let _in_use = store.in_use()?;
    let parent = match &request.parent {
        Some(name) => {
            let digest = store.resolve(name)?;
            Some((digest, store.version(&digest)?))
        }
        None => None,
    };
    let run = || {
        let harvest = match &request.source {
            Source::Dir(path) => directory::read(store, path, progress)?,
            Source::Tar(stream) => unpack::read(store, stream, progress)?,
            Source::Oci(_) => return Err(unsupported("importing OCI layouts (oci:)")),
            Source::Disk(_) => return Err(unsupported("importing disk images (disk:)")),
        };
        publish(store, request, tag, parent.as_ref(), harvest, progress)
    };
    run().map_err(|e| full_disk(store, e))
}

fn publish(
    store: &Store,
    request: &ImportRequest,
    tag: &str,
    parent: Option<&(Digest, Manifest)>,
    harvest: Harvest,
    progress: &dyn Progress,
) -> Result<Imported> {
    progress.begin("publishing", None);
    let Harvest { draft, implied, files, bytes, bytes_read, new_bytes } = harvest;
    let full = match parent {
        Some((_, manifest)) if request.as_delta => {
            let mut full = stack::draft_of(store, manifest)?;
            let delta = marks::delta_of(draft, &implied, &full)?;
            merge::apply(&mut full, &delta);
            full
        }
        _ => draft,
    };
    let of = parent.map(|(digest, manifest)| (digest, manifest));
    let published = stack::publish_version(store, of, &full, request.words.clone())?;
    let Some((version, manifest)) = published else {
        let parent = request.parent.as_ref().map(ToString::to_string).unwrap_or_default();
        return Err(Error::Nothing(format!(
            "the source shows exactly what {parent} shows; no version was made"
        )));
    };
    let layer = manifest.stack.last().map(|top| stack::open_layer(store, top)).transpose()?;
    let delta_paths = layer.map_or(0, |l| u64::from(l.len()));
    store.write_ref(&request.name.image, tag, &version)?;
    Ok(Imported { version, manifest, delta_paths, new_bytes, files, bytes, bytes_read })
}

/// Writes what a version shows to a destination.
///
/// # Errors
/// On any error the destination is as it was before; an archive on standard output is cut off.
pub fn export(store: &Store, name: &VersionName, dest: &Dest, progress: &dyn Progress) -> Result<Exported> {
    let _in_use = store.in_use()?;
    let version = store.resolve(name)?;
    let manifest = store.version(&version)?;
    let draft = stack::draft_of(store, &manifest)?;
    progress.begin("exporting", Some(manifest.bytes));
    let mut done = Exported { version, files: 0, bytes: 0, skipped: Vec::new() };
    match dest {
        Dest::Dir(path) => write_dir::write(store, &draft, path, progress, &mut done)?,
        Dest::Tar(stream) => write_tar::write(store, &draft, stream, progress, &mut done)?,
        Dest::Oci(_) => return Err(unsupported("exporting OCI layouts (oci:)")),
        Dest::Disk(_) => return Err(unsupported("exporting disk images (disk:)")),
    }
    Ok(done)
}

fn unsupported(what: &str) -> Error {
    Error::Usage(format!("{what} is not supported by this release yet; use dir: or tar:"))
}

/// Says of a full disk whose disk it is and what helps.
fn full_disk(store: &Store, e: Error) -> Error {
    match &e {
        Error::Io(doing, cause) if matches!(cause.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
            Error::Failed(format!(
                "{doing}: {}; nothing was imported. Free space for the store {} (`reroot gc` removes what \
                 nothing needs) and import again",
                crate::error::words(cause),
                store.root().display(),
            ))
        }
        _ => e,
    }
}

/// A path inside an image, as a person reads it.
fn shown(path: &[u8]) -> String {
    if path.is_empty() {
        return "the root directory".into();
    }
    let text: String = String::from_utf8_lossy(path).chars().take(300).collect();
    format!("{text:?}")
}

/// A path of this host with a path inside an image after it.
fn beneath(root: &Path, path: &[u8]) -> String {
    use std::os::unix::ffi::OsStrExt;
    root.join(std::ffi::OsStr::from_bytes(path)).display().to_string()
}

/// Splits a path for [`crate::sys`]: the directory and the name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|c| *c == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (&[], path),
    }
}
