//! A mount's life, and everything that needs to know what a user layer holds.
//!
//! The functions here are what the command line calls. Each works out whether the desktop is mounted; if it
//! is, the running daemon is asked through its control socket, so that there is one writer of a user layer.

mod control;
mod estate;
mod held;
mod layers;
mod life;
pub mod options;
pub mod overlay;
mod session;
mod shown;
mod supervisor;
mod swap;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::store::Digest;
use crate::store::desktops::Choice;

pub use crate::union::swap::{Case, Conflict};
pub use control::runtime_dir;
pub use layers::{changes, commit, missing, settle, user_layer_bytes};
pub use life::{detach_lazily, mount, remount, serve, supervise, unmount, unmount_path};
pub use options::MountOptions;
pub use swap::swap;

/// What a mount shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Subject {
    /// A desktop, by name.
    Desktop(String),
    /// A version as plain files, read-only.
    Version {
        /// The version.
        version: Digest,
        /// How people name it.
        name: String,
    },
    /// Plain directories.
    Directories(Layers),
}

/// Plain directories to mount, by absolute paths without symbolic links.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layers {
    /// Read-only; the topmost first.
    pub lower: Vec<PathBuf>,
    /// Where changes are written, and where they are prepared, in the same file system. Nothing can be changed where
    /// there is none.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Marks are called `user.overlay.` and not `trusted.overlay.`.
    pub user_xattr: bool,
    /// Files come up without their content where only their attributes or names change. Who reads the upper directory
    /// must know that, as for the kernel's overlayfs.
    pub metacopy: bool,
    /// The `.wh.` names of OCI layers are whiteouts.
    pub oci_whiteouts: bool,
}

/// One mount to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountRequest {
    /// The store's directory.
    pub store: PathBuf,
    /// What it shows.
    pub subject: Subject,
    /// Where it is attached.
    pub mountpoint: PathBuf,
    /// Options.
    pub options: MountOptions,
}

/// Which way a swap goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// To a newer version: the image's `latest` where no target is given.
    Upgrade,
    /// Back: the version before the last swap where no target is given.
    Rollback,
}

/// A swap to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SwapRequest {
    /// Which way.
    pub direction: Direction,
    /// The target; the direction's default where not given.
    pub to: Option<Choice>,
    /// Only say what would happen.
    pub dry_run: bool,
    /// Refuse (exit 4) where there are conflicts.
    pub strict: bool,
}

/// What a swap did, or would do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SwapReport {
    /// The desktop.
    pub desktop: String,
    /// The version before.
    pub from: Choice,
    /// The version after.
    pub to: Choice,
    /// The desktop's generation after it.
    pub generation: u64,
    /// Whether a running mount was swapped (else the next mount shows it).
    pub live: bool,
    /// Nothing was changed.
    pub dry_run: bool,
    /// Paths that differ between the two versions.
    pub paths_differing: u64,
    /// Notifications sent to the kernel.
    pub invalidated: u64,
    /// How long no request could begin, in microseconds.
    pub pause_us: u64,
    /// The whole swap, in milliseconds.
    pub total_ms: f64,
    /// Where the user layer hides what the target ships.
    pub conflicts: Vec<Conflict>,
}

/// One path of the user layer against its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserChange {
    /// The path in the view, its bytes as they are.
    #[serde(skip)]
    pub raw: Vec<u8>,
    /// The path as text, where it is not UTF-8 with replacement characters.
    pub path: String,
    /// As in a difference of versions: A, M, m, D, T.
    pub letter: char,
}

/// What is still to be copied of files that were copied up in pieces.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Missing {
    /// Files.
    pub files: u64,
    /// Bytes, where a daemon knows them.
    pub bytes: Option<u64>,
    /// Why the daemon cannot go on just now.
    pub stuck: Option<String>,
}

/// What `settle` did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Settled {
    /// Files whose content was copied into the user layer.
    pub files_completed: u64,
    /// Bytes copied.
    pub bytes_copied: u64,
    /// Entries set aside since nothing in the version lies below them.
    pub set_aside: u64,
}

/// A commit to make.
#[derive(Clone, Debug, Default)]
pub struct CommitRequest {
    /// Take only paths that match one of these patterns; everything where empty.
    pub only: Vec<String>,
    /// The version's message.
    pub message: String,
    /// Clear from the user layer what was taken, and move the desktop onto the new version.
    pub reset: bool,
}

/// What a commit made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Committed {
    /// The new version.
    pub version: Digest,
    /// Paths of the new delta: added, changed, removed.
    pub paths: u64,
    /// Bytes of content that were read.
    #[serde(default)]
    pub bytes: u64,
    /// Bytes that the store did not have.
    pub new_bytes: u64,
    /// Entries cleared from the user layer.
    pub reset: u64,
}
