//! A mount's life, and everything that needs to know what a user layer holds.
//!
//! The functions here are what the command line calls. Each works out whether the desktop is mounted; if it
//! is, the running daemon is asked through its control socket, so that there is one writer of a user layer.

pub mod options;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::store::desktops::{Choice, Desktop};
use crate::store::mounts::MountEntry;
use crate::store::{Digest, Progress, Store};

pub use options::MountOptions;

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

/// Mounts. With `foreground` it returns when the mount has ended; without, when the view answers, with the
/// daemon in the background.
pub fn mount(request: &MountRequest, foreground: bool) -> Result<MountEntry> {
    let _ = (request, foreground);
    Err(Error::Failed("not built yet".into()))
}

/// Unmounts a desktop by name, or whatever of ours is attached at a path. Waits until the daemon has ended.
pub fn unmount(store: &Store, target: &str) -> Result<MountEntry> {
    let _ = (store, target);
    Err(Error::Failed("not built yet".into()))
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

/// Where the user layer and a swap meet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The path in the view.
    pub path: String,
    /// The case: `shadows-changed`, `hides-new`, `opaque-hides-new`, `equal-to-target`, `file-over-directory`,
    /// `directory-over-file`, `renamed-source-gone`.
    pub case: String,
    /// One sentence for a person.
    pub explanation: String,
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

/// Swaps a desktop's stack, live if it is mounted. [`Error::Nothing`] if it is on the target already.
pub fn swap(store: &Store, desktop: &Desktop, request: &SwapRequest) -> Result<SwapReport> {
    let _ = (store, desktop, request);
    Err(Error::Failed("not built yet".into()))
}

/// One path of the user layer against its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserChange {
    /// The path in the view, raw bytes shown lossily.
    pub path: String,
    /// As in a difference of versions: A, M, m, D, T.
    pub letter: char,
}

/// What the user layer holds against its version, sorted by path.
pub fn changes(store: &Store, desktop: &Desktop) -> Result<Vec<UserChange>> {
    let _ = (store, desktop);
    Err(Error::Failed("not built yet".into()))
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

/// Completes what is lazy in the user layer. The desktop must not be mounted.
pub fn settle(store: &Store, desktop: &Desktop, progress: &dyn Progress) -> Result<Settled> {
    let _ = (store, desktop, progress);
    Err(Error::Failed("not built yet".into()))
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
    /// Bytes that the store did not have.
    pub new_bytes: u64,
    /// Entries cleared from the user layer.
    pub reset: u64,
}

/// Makes what the user layer changed the next delta, named `image:tag`.
pub fn commit(
    store: &Store,
    desktop: &Desktop,
    image: &str,
    tag: &str,
    request: &CommitRequest,
    progress: &dyn Progress,
) -> Result<Committed> {
    let _ = (store, desktop, image, tag, request, progress);
    Err(Error::Failed("not built yet".into()))
}

/// Bytes that the user layer takes on disk.
pub fn user_layer_bytes(dir: &Path) -> Result<u64> {
    let _ = dir;
    Err(Error::Failed("not built yet".into()))
}

/// The background daemon of one mount, started by [`mount`] as a process of its own.
pub fn serve() -> Result<()> {
    Err(Error::Failed("not built yet".into()))
}
