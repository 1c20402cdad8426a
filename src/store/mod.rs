//! The store: a directory that holds everything but the views.
//!
//! ```text
//! STORE/
//!   format                     layout version and feature flags
//!   lock                       shared: somebody adds or resolves; exclusive: a collection
//!   objects/ab/cdef…           file contents, mode 0444, written once   ([`objects`])
//!   layers/<hex>               one layer's index
//!   trees/<hex>                the merged tree of a stack; derived
//!   versions/<hex>.json        manifests                                ([`versions`])
//!   refs/<image>/<tag>         names of versions                        ([`versions`])
//!   desktops/<name>/           policy, state, pins, user layer          ([`desktops`])
//!   mounts/<id>.json, .lock    what is mounted now                      ([`mounts`])
//!   cache/                     what was hashed once; can be deleted
//! ```
//!
//! Lock order: `lock` before a desktop's `lock` before a mount's. A running mount does not hold `lock`; it is
//! kept safe from a collection by its entry in `mounts/`, which names the versions it reads.
//!
//! Assumed of the disk: a rename within a directory is atomic, and what was fsynced stays.

pub mod audit;
pub mod collect;
pub mod desktops;
mod digest;
pub mod mounts;
pub mod objects;
pub mod progress;
pub mod versions;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use digest::{Digest, Hasher};
pub use progress::Progress;

use crate::error::{Doing, Error, Result};
use crate::sys::lock::{self, Lock, Share};
use crate::sys::publish::publish;

/// The layout that this program writes.
const LAYOUT: u32 = 1;

/// `format`: what a program must understand to use the store.
#[derive(Debug, Serialize, Deserialize)]
struct Format {
    layout: u32,
    /// Features that an older program may ignore.
    compatible: Vec<String>,
    /// Features that an older program may ignore when it only reads.
    read_only_compatible: Vec<String>,
    /// Features without which the store cannot be understood.
    incompatible: Vec<String>,
}

/// An open store.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store at `root`, making it if the directory is missing or empty.
    pub fn open(root: &Path) -> Result<Store> {
        match fs::create_dir_all(root) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::Usage(format!("the store {} is not a directory", root.display())));
            }
            r => r.at("making the store", root)?,
        }
        let root = root.canonicalize().at("finding the store", root)?;
        let store = Store { root };
        let format = store.path("format");
        match fs::read(&format) {
            Ok(bytes) => store.check_format(&bytes)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => store.make()?,
            Err(e) => return Err(e).at("reading", format),
        }
        Ok(store)
    }

    /// A directory that only lists mounts (see [`mounts`]): of those that show nothing of a store.
    pub fn mounts_only(root: &Path) -> Result<Store> {
        let mounts = root.join("mounts");
        fs::create_dir_all(&mounts).at("making", &mounts)?;
        Ok(Store { root: root.canonicalize().at("finding", root)? })
    }

    fn make(&self) -> Result<()> {
        let first = fs::read_dir(&self.root).at("reading", &self.root)?.flatten().find(|e| {
            let name = e.file_name();
            let name = name.to_string_lossy();
            // What another process that makes the same store just now may have made, and a disk's own folder.
            !(name.starts_with(".tmp-") || name == "lost+found" || name == "lock" || PARTS.contains(&&*name))
        });
        if let Some(entry) = first {
            let message = format!(
                "{} is neither a store nor empty (it holds {:?}); give an empty or new directory with --store",
                self.root.display(),
                entry.file_name()
            );
            return Err(Error::Usage(message));
        }
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&self.root, fs::Permissions::from_mode(0o700))
            .at("closing to others", &self.root)?;
        for part in PARTS {
            fs::create_dir_all(self.path(part)).at("making", self.path(part))?;
        }
        let format = Format {
            layout: LAYOUT,
            compatible: Vec::new(),
            read_only_compatible: Vec::new(),
            incompatible: Vec::new(),
        };
        publish(&self.path("format"), &to_json(&format)).at("writing", self.path("format"))
    }

    fn check_format(&self, bytes: &[u8]) -> Result<()> {
        let path = self.path("format");
        let format: Format = serde_json::from_slice(bytes)
            .map_err(|e| Error::Damaged(format!("{} cannot be read: {e}", path.display())))?;
        if format.layout != LAYOUT
            || !format.incompatible.is_empty()
            || !format.read_only_compatible.is_empty()
        {
            let words = [&format.incompatible[..], &format.read_only_compatible[..]].concat().join(", ");
            return Err(Error::Failed(format!(
                "the store {} needs a newer reroot (layout {}{}{words}); nothing was touched",
                self.root.display(),
                format.layout,
                if words.is_empty() { "" } else { ", features " },
            )));
        }
        Ok(())
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path in the store.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// Held while something is added that nothing refers to yet, or while a version is resolved: no
    /// collection runs meanwhile. Waits for a running collection.
    pub fn in_use(&self) -> Result<Lock> {
        lock::wait(&self.path("lock"), Share::Shared).at("locking", self.path("lock"))
    }

    /// Held by a collection. `None` while somebody adds to the store.
    pub fn collecting(&self) -> Result<Option<Lock>> {
        lock::attempt(&self.path("lock"), Share::Exclusive).at("locking", self.path("lock"))
    }

    /// Where an object lies.
    pub fn object_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let (fan, rest) = hex.split_at(2);
        self.root.join("objects").join(fan).join(rest)
    }

    /// Where a layer's index lies.
    pub fn layer_path(&self, digest: &Digest) -> PathBuf {
        self.path("layers").join(digest.hex())
    }

    /// Where the tree of a stack lies.
    pub fn tree_path(&self, stack: &Digest) -> PathBuf {
        self.path("trees").join(stack.hex())
    }
}

/// The directories of a store.
const PARTS: [&str; 10] =
    ["objects", "layers", "trees", "versions", "refs", "desktops", "mounts", "trust", "audit", "cache"];

/// JSON as it is written to disk: readable, with a final newline.
pub(crate) fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut out = serde_json::to_vec_pretty(value).unwrap_or_default();
    out.push(b'\n');
    out
}

/// Whether a name may stand for an image, a tag or a desktop: letters, digits, `.`, `_`, `-`; at most 128;
/// not beginning with `.` or `-`.
pub fn valid_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-'))
}

/// [`valid_name`], with the message for a person.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    if valid_name(name) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{name:?} cannot name {what}: use letters, digits, '.', '_' and '-' (at most 128, not first '.' or '-')"
    )))
}

/// Now, in RFC 3339, to the second.
pub fn now_text() -> String {
    humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string()
}
