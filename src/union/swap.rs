//! The swap: another stack under a live view.
//!
//! [`View::exchange`] is the swap itself: one pointer. Before it, [`conflicts`] holds the difference against the
//! user layer; after it, when no request of the old generation is left, [`View::notices`] says what the kernel
//! must be told. Nothing here writes into the user layer.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::lower::{Stack, Tree};
use super::marks::{Found, Namespace, PinMark};
use super::node::Node;
use super::plant::planted;
use super::resolve::{other_number, split_number};
use super::{Answer, Fail, Generation, Pin, View};
use crate::error::{Doing, Result};
use crate::layer::diff::{Change, Kind};
use crate::layer::index::Node as TreeNode;
use crate::store::{Digest, Store};
use crate::sys::fs::{self as sys, Open};

/// Something that the kernel must be told.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Notice {
    /// A name in a directory leads elsewhere, or nowhere, or somewhere now: it is dropped with what is below.
    Entry(u64, Vec<u8>),
    /// The same for a name that is not a directory's: it is enough that it is looked up again.
    Expire(u64, Vec<u8>),
    /// A directory lists other names, and its attributes differ. It follows a notice of a name in the directory: for
    /// that the kernel waits until whoever is reading the directory has noted down what it was answered.
    Inode(u64),
    /// Only attributes differ.
    Attributes(u64),
}

/// A name that is in no directory, for a notice where none is to be told of.
const NO_NAME: &[u8] = b"\xff\xfe\xff";

/// Where the user layer and a swap meet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The path in the view.
    pub path: String,
    /// Which case it is (see [`Case`]).
    pub case: Case,
    /// One sentence for a person.
    pub explanation: String,
}

/// The ways in which a user layer hides what a target ships.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// The user's file stands over one that the target changed.
    ShadowsChanged,
    /// A whiteout hides a path that the target newly ships.
    HidesNew,
    /// An opaque or moved directory hides what the target newly ships.
    OpaqueHidesNew,
    /// The user's copy is what the target ships too.
    EqualToTarget,
    /// The user's file stands where the target has a directory.
    FileOverDirectory,
    /// The user's directory stands where the target has a file.
    DirectoryOverFile,
    /// A directory that the user moved comes from a path that the target does not have.
    RenamedSourceGone,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Case::ShadowsChanged => "shadows-changed",
            Case::HidesNew => "hides-new",
            Case::OpaqueHidesNew => "opaque-hides-new",
            Case::EqualToTarget => "equal-to-target",
            Case::FileOverDirectory => "file-over-directory",
            Case::DirectoryOverFile => "directory-over-file",
            Case::RenamedSourceGone => "renamed-source-gone",
        })
    }
}

impl Case {
    fn explanation(self) -> &'static str {
        match self {
            Case::ShadowsChanged => "the user's file hides the target's new content",
            Case::HidesNew => "the user deleted this path; what the target ships here stays hidden",
            Case::OpaqueHidesNew => {
                "a directory that the user replaced or moved hides what the target ships here"
            }
            Case::EqualToTarget => "the user's copy is equal to what the target ships",
            Case::FileOverDirectory => "the user's file stands where the target has a directory",
            Case::DirectoryOverFile => "the user's directory stands where the target has a file",
            Case::RenamedSourceGone => {
                "the user moved this directory; the target does not have it, the moved one stays"
            }
        }
    }
}

/// What a user layer has at a path of the stack, seen from a swap.
enum Spot {
    /// A directory that merges with the stack's.
    Merged(OwnedFd),
    /// Nothing: the stack is seen.
    Untouched,
    /// A whiteout or a file of the user's.
    Hidden,
    /// A directory that hides what lies below it.
    Opaque,
}

struct Above<'a> {
    marks: Namespace,
    top: &'a OwnedFd,
    spots: HashMap<Vec<u8>, Arc<Spot>>,
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|c| *c == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (b"", path),
    }
}

impl Above<'_> {
    fn spot(&mut self, path: &[u8]) -> Result<Arc<Spot>> {
        if let Some(spot) = self.spots.get(path) {
            return Ok(spot.clone());
        }
        let doing = "reading the user layer";
        let spot = if path.is_empty() {
            let marks = self.marks.read(self.top).doing(doing)?;
            if marks.opaque { Spot::Opaque } else { Spot::Merged(self.top.try_clone().doing(doing)?) }
        } else {
            let (parent, name) = split(path);
            match &*self.spot(parent)? {
                Spot::Untouched => Spot::Untouched,
                Spot::Hidden => Spot::Hidden,
                Spot::Opaque => Spot::Opaque,
                Spot::Merged(dir) => match self.marks.probe(dir, name).doing(doing)? {
                    None => Spot::Untouched,
                    Some(Found::Whiteout) => Spot::Hidden,
                    Some(Found::Entry(stat, marks)) if stat.is_dir() => {
                        if marks.opaque || marks.pin.is_some() {
                            Spot::Opaque
                        } else {
                            Spot::Merged(sys::open_at(dir, name, Open::DirPath).doing(doing)?)
                        }
                    }
                    Some(Found::Entry(_, marks)) if marks.follows.is_some() && marks.pin.is_none() => {
                        Spot::Untouched
                    }
                    Some(Found::Entry(..)) => Spot::Hidden,
                },
            }
        };
        let spot = Arc::new(spot);
        self.spots.insert(path.to_vec(), spot.clone());
        Ok(spot)
    }
}

/// Holds the difference of two versions against a user layer. Of what one directory hides, the topmost path
/// is named.
pub fn conflicts(store: &Store, user: &Path, changes: &[Change], target: &Tree) -> Result<Vec<Conflict>> {
    let top = sys::open_dir(user).at("opening the user layer", user)?;
    let marks = Namespace::for_process();
    let mut above = Above { marks, top: &top, spots: HashMap::new() };
    let mut out = Vec::new();
    let mut covered: HashSet<Vec<u8>> = HashSet::new();
    let mut moved: Option<BTreeSet<Vec<u8>>> = None;
    for change in changes.iter().filter(|c| !c.path.is_empty()) {
        let (parent, name) = split(&change.path);
        if covered.contains(parent) {
            covered.insert(change.path.clone());
            continue;
        }
        let case = match &*above.spot(parent)? {
            Spot::Untouched => None,
            Spot::Hidden => (change.kind == Kind::Added).then_some(Case::HidesNew),
            Spot::Opaque => matches!(change.kind, Kind::Added | Kind::Content | Kind::Type)
                .then_some(Case::OpaqueHidesNew),
            Spot::Merged(dir) => {
                let found = marks.probe(dir, name).doing("reading the user layer")?;
                if change.kind == Kind::Removed
                    && change.old.is_some_and(|n| n.is_dir())
                    && matches!(found, Some(Found::Whiteout))
                {
                    if moved.is_none() {
                        let top = top.try_clone().doing("reading the user layer")?;
                        moved = Some(moved_sources(marks, top).doing("reading the user layer")?);
                    }
                    moved
                        .as_ref()
                        .is_some_and(|m| m.contains(&change.path))
                        .then_some(Case::RenamedSourceGone)
                } else {
                    judge(store, change, dir, name, found, target)?
                }
            }
        };
        if let Some(case) = case {
            covered.insert(change.path.clone());
            out.push(Conflict {
                path: String::from_utf8_lossy(&change.path).into_owned(),
                case,
                explanation: case.explanation().into(),
            });
        }
    }
    Ok(out)
}

fn judge(
    store: &Store,
    change: &Change,
    dir: &OwnedFd,
    name: &[u8],
    found: Option<Found>,
    target: &Tree,
) -> Result<Option<Case>> {
    let Some(new) = &change.new else { return Ok(None) };
    Ok(match found {
        None => None,
        Some(Found::Whiteout) => (change.kind == Kind::Added).then_some(Case::HidesNew),
        Some(Found::Entry(stat, _)) if stat.is_dir() => (!new.is_dir()).then_some(Case::DirectoryOverFile),
        Some(Found::Entry(_, marks)) if marks.follows.is_some() && marks.pin.is_none() => None,
        Some(Found::Entry(..)) if new.is_dir() => Some(Case::FileOverDirectory),
        Some(Found::Entry(stat, marks)) => {
            if change.kind == Kind::Metadata {
                None
            } else if new.is_file() && stat.is_file() && stat.size == new.size {
                let digest = match marks.pin {
                    Some(PinMark::Object(digest, _)) => digest,
                    _ => {
                        let file = sys::open_at(dir, name, Open::Read).doing("reading the user layer")?;
                        super::survey::digest_of(store, &file)?
                    }
                };
                let equal = digest == target.index.object(new)?;
                Some(if equal { Case::EqualToTarget } else { Case::ShadowsChanged })
            } else {
                Some(Case::ShadowsChanged)
            }
        }
    })
}

/// The paths in the stack that moved directories come from.
fn moved_sources(marks: Namespace, top: OwnedFd) -> std::io::Result<BTreeSet<Vec<u8>>> {
    let mut out = BTreeSet::new();
    sys::walk(top, &mut |dir, name, format| {
        if format == libc::S_IFDIR {
            let fd = sys::open_at(dir, name, Open::DirPath)?;
            if let Some(PinMark::Dir(_, _, path)) = marks.read(&fd)?.pin {
                out.insert(path);
            }
        }
        Ok(())
    })?;
    Ok(out)
}

/// The first mount that stands on or beneath a path that a swap would remove or turn into something else. What the
/// user layer has there is not touched by a swap. `mounts` are paths in the view, without a leading slash.
pub fn blocking_mount(user: &Path, changes: &[Change], mounts: &[Vec<u8>]) -> Result<Option<Vec<u8>>> {
    if mounts.is_empty() {
        return Ok(None);
    }
    let other_inode = |c: &&Change| match (&c.old, &c.new) {
        (Some(a), Some(b)) => a.number != b.number,
        _ => c.kind == Kind::Removed,
    };
    let changed: HashSet<&[u8]> = changes.iter().filter(other_inode).map(|c| &c.path[..]).collect();
    let top = sys::open_dir(user).at("opening the user layer", user)?;
    let mut above = Above { marks: Namespace::for_process(), top: &top, spots: HashMap::new() };
    for mount in mounts {
        let mut at: &[u8] = mount;
        while !at.is_empty() {
            if changed.contains(at) && matches!(*above.spot(at)?, Spot::Untouched) {
                return Ok(Some(mount.clone()));
            }
            at = split(at).0;
        }
    }
    Ok(None)
}

/// Whether a mount stands on a path or beneath it.
fn carries_mount(path: &[u8], mounts: &[Vec<u8>]) -> bool {
    mounts.iter().any(|m| m.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/")))
}

impl View {
    /// Puts another stack under the view. Requests that begin from now on see it; gives back the old
    /// generation, on which running requests still hold.
    pub fn exchange(&self, tree: Arc<Tree>) -> Arc<Generation> {
        // No change is between its last look at the stack and its place in the user layer.
        let _names = self.names.write();
        self.nodes.places.look_again();
        let mut current = self.generation.write();
        let number = current.number + 1;
        *self.before.lock() = Some(current.stack.clone());
        std::mem::replace(&mut *current, Arc::new(Generation { number, stack: Stack::Version(tree) }))
    }

    /// Another version is about to be noted as what the desktop runs on: see [`super::pins`].
    pub fn leave_current(&self) -> Result<()> {
        self.user.as_ref().map_or(Ok(()), |user| user.pins.leave_current())
    }

    /// The desktop runs on this version, on the disk too.
    pub fn enter(&self, current: Digest) {
        if let Some(user) = &self.user {
            user.pins.enter(current);
        }
    }

    /// Whether no request of an exchanged generation is left.
    pub fn drained(old: &Arc<Generation>) -> bool {
        Arc::strong_count(old) == 1
    }

    /// What the kernel may know wrong after an exchange. Names that carry a mount are left alone: dropping one would
    /// detach the mount, and [`blocking_mount`] made sure that they lead to what they led to.
    pub fn notices(
        &self,
        changes: &[Change],
        old: &Tree,
        new: &Tree,
        mounts: &[Vec<u8>],
    ) -> Result<Vec<Notice>> {
        let mut out = Vec::new();
        // Directories that list other names, and whether there is a notice of a name in each.
        let (mut dirs, mut unnamed) = (BTreeMap::<u64, bool>::new(), Vec::new());
        // Directories of the user layer may have other numbers than those of the stack at their paths: what the
        // user made, and what the user moved.
        let mut ups: HashMap<Vec<u8>, u64> = HashMap::new();
        {
            let _names = self.names.read();
            for node in self.nodes.all() {
                let up = {
                    let state = node.state();
                    state.upper.is_some() && !state.gone
                };
                if node.is_dir() && up {
                    ups.insert(self.path_of(&node), node.id);
                }
            }
        }
        let node_of = |number: u64| {
            let below = |id| {
                self.nodes.get(id).filter(|n| {
                    self.follow_moves(n);
                    let state = n.state();
                    state.upper.is_none() && !state.lower.as_ref().is_some_and(|l| l.pinned)
                })
            };
            below(number).or_else(|| below(other_number(number)))
        };
        for change in changes {
            let side = match (&change.old, &change.new) {
                (Some(node), _) => (node, &old.index),
                (None, Some(node)) => (node, &new.index),
                (None, None) => continue,
            };
            if change.path.is_empty() {
                out.push(Notice::Attributes(super::node::ROOT));
                continue;
            }
            let (path, name) = split(&change.path);
            let number = side.1.node(side.0.parent)?.number;
            let parent = match (ups.get(path), node_of(number)) {
                (Some(id), _) => *id,
                (None, Some(node)) => node.id,
                _ => continue,
            };
            // The numbers under which the kernel may know what was there.
            let ids = match &change.old {
                Some(n) => {
                    let split = split_number(&old.index, n.number)?;
                    vec![n.number, split, other_number(n.number), other_number(split)]
                }
                None => Vec::new(),
            };
            let ids: Vec<u64> = ids.into_iter().filter(|id| self.nodes.get(*id).is_some()).collect();
            let known = change.old.is_none() || !ids.is_empty();
            let same_number = match (&change.old, &change.new) {
                (Some(a), Some(b)) => a.number == b.number,
                _ => false,
            };
            if change.kind == Kind::Metadata && same_number {
                out.extend(ids.iter().map(|id| Notice::Attributes(*id)));
                // Which number a name of a hard-link group has depends on what the user has of the group.
                let linked = |n: &Option<TreeNode>| n.as_ref().is_some_and(|n| !n.is_dir() && n.nlink > 1);
                if !linked(&change.old) && !linked(&change.new) {
                    continue;
                }
            }
            // Who holds a displaced file open sees that it has no name. The kernel opens by itself what is no regular file.
            if !same_number {
                let held = |id: &&u64| {
                    self.nodes.get(**id).is_some_and(|n| {
                        let state = n.state();
                        !n.is_file() || state.cached + state.passed > 0
                    })
                };
                let notice =
                    if planted("swap-loses-what-is-open") { Notice::Inode } else { Notice::Attributes };
                unnamed.extend(ids.iter().filter(held).map(|id| notice(*id)));
            }
            if change.old.is_none() && planted("swap-keeps-what-was-not-there") {
                continue;
            }
            let named = dirs.entry(parent).or_default();
            if known && !carries_mount(&change.path, mounts) {
                // A directory must be dropped, so that working directories in it learn that it is gone. And what was
                // given lately: who asked for it may not have noted the answer yet, and with it a new lifetime.
                let drop = change.old.as_ref().is_some_and(TreeNode::is_dir)
                    || ids.iter().any(|id| self.nodes.given_lately(*id));
                let name = name.to_vec();
                out.push(if drop { Notice::Entry(parent, name) } else { Notice::Expire(parent, name) });
                *named = true;
            }
            if change.old.as_ref().is_some_and(TreeNode::is_dir) && !same_number {
                // It lists nothing any more.
                for id in ids {
                    dirs.entry(id).or_default();
                }
            }
        }
        for (dir, named) in dirs {
            if !named {
                out.push(Notice::Expire(dir, NO_NAME.to_vec()));
            }
            out.push(Notice::Inode(dir));
        }
        // Last: while a name still leads to what has none, the kernel would find nothing to link there.
        out.append(&mut unnamed);
        Ok(out)
    }

    /// The kernel was told everything that differs in a generation.
    pub fn told(&self, generation: u64) {
        let _names = self.names.write();
        self.told.fetch_max(generation, Ordering::Relaxed);
        if self.generation.read().number == generation {
            *self.before.lock() = None;
        }
    }

    pub(crate) fn is_told(&self, now: &Pin) -> bool {
        self.told.load(Ordering::Relaxed) >= now.0.number
    }

    /// The kernel carries out a move with what it holds at the old name. Until it was told of a swap that may be what
    /// was there before: `ESTALE` makes it ask, and move what it is given then. The caller holds `names`.
    pub(crate) fn is_what_the_kernel_moves(
        &self,
        node: &Arc<Node>,
        dir: &Arc<Node>,
        name: &[u8],
    ) -> Answer<()> {
        let now = self.pin();
        if self.is_told(&now) || self.nodes.given_in(node.id, now.0.number) {
            return Ok(());
        }
        let Some(stack) = self.before.lock().clone() else { return Ok(()) };
        let before = Pin(Arc::new(Generation { number: now.0.number.saturating_sub(1), stack }));
        match self.child(&before, dir, name)? {
            Some(was) if was.id == node.id => Ok(()),
            _ => Err(Fail(libc::ESTALE)),
        }
    }

    /// What the kernel holds beneath a directory that was moved before it was told of a swap is asked for again. The
    /// caller holds `names`.
    pub(crate) fn moved_untold(&self, node: &Arc<Node>, dir: &Arc<Node>, name: &[u8]) {
        if self.is_told(&self.pin()) {
            return;
        }
        let mut out = vec![Notice::Entry(dir.id, name.to_vec())];
        if node.is_dir() {
            for other in self.nodes.beneath(node) {
                if other.id != node.id {
                    let names = other.state().names.clone();
                    out.extend(names.into_iter().map(|(p, n)| Notice::Entry(p.id, n.into_vec())));
                }
            }
        }
        self.notices.lock().extend(out);
    }

    /// Every name and every attribute that the kernel may know.
    pub fn every_notice(&self, mounts: &[Vec<u8>]) -> Vec<Notice> {
        let _names = self.names.read();
        let mut out = Vec::new();
        for node in self.nodes.all() {
            let names = node.state().names.clone();
            if !carries_mount(&self.path_of(&node), mounts) {
                out.extend(names.into_iter().map(|(parent, name)| Notice::Entry(parent.id, name.into_vec())));
            }
            if node.is_dir() {
                out.extend([Notice::Expire(node.id, NO_NAME.to_vec()), Notice::Inode(node.id)]);
            } else {
                out.push(Notice::Attributes(node.id));
            }
        }
        out
    }

    /// Directories that list other names, of which the kernel was not told yet.
    pub fn listed_otherwise(&self) -> Vec<u64> {
        let dir = |notice: &Notice| if let Notice::Inode(id) = notice { Some(*id) } else { None };
        self.notices.lock().iter().filter_map(dir).collect()
    }

    /// Takes what has to be told to the kernel besides swaps.
    pub fn take_notices(&self) -> Vec<Notice> {
        std::mem::take(&mut *self.notices.lock())
    }
}
