//! What the sequences reached.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

use super::operations::{Operation, Side};

/// Something that the model must have come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A file that is open for reading is opened for writing.
    WriterBesideReader,
    /// A write through a handle that is older than a swap.
    WriteThroughOldHandle,
    /// A link or a rename, and a swap later.
    LinkOrRenameThenSwap,
    /// A mapping is used after its file was closed.
    MappingAfterClose,
    /// The kernel forgot, and something is opened by its file handle.
    ForgottenThenByHandle,
    /// A file is copied up while the stack is exchanged.
    CopyUpDuringSwap,
    /// A swap.
    Swap,
    /// A swap that the rules do not cover, and that was left out.
    SwapLeftOut,
    /// The view was unmounted and mounted.
    Remount,
    /// A directory was moved.
    DirectoryMoved,
    /// Two names changed places.
    Exchange,
    /// Something was made where the user had removed something.
    MadeOverWhiteout,
    /// An operation on a file without a name.
    Nameless,
    /// Overlayfs's tree was compared and did not differ.
    OverlayAgreed,
}

/// All that must be reached.
pub const WANTED: [Event; 13] = [
    Event::WriterBesideReader,
    Event::WriteThroughOldHandle,
    Event::LinkOrRenameThenSwap,
    Event::MappingAfterClose,
    Event::ForgottenThenByHandle,
    Event::CopyUpDuringSwap,
    Event::Swap,
    Event::Remount,
    Event::DirectoryMoved,
    Event::Exchange,
    Event::MadeOverWhiteout,
    Event::Nameless,
    Event::OverlayAgreed,
];

/// How often each was reached, and what of that is known of the running sequence.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    pub events: BTreeMap<Event, u64>,
    /// Why overlayfs left sequences.
    pub left: BTreeMap<&'static str, u64>,
    swaps: u64,
    linked: bool,
    /// By handle: the inode, whether it was opened for writing, and after how many swaps.
    handles: BTreeMap<usize, (u64, bool, u64)>,
    /// By mapping: the handle, until that is closed.
    mappings: BTreeMap<usize, Option<usize>>,
    /// By kept file handle: whether the kernel forgot since.
    taken: BTreeMap<usize, bool>,
    removed: BTreeSet<String>,
}

impl Coverage {
    pub fn count(&mut self, event: Event) {
        *self.events.entry(event).or_default() += 1;
    }

    pub fn add(&mut self, other: Coverage) {
        for (event, n) in other.events {
            *self.events.entry(event).or_default() += n;
        }
        for (reason, n) in other.left {
            *self.left.entry(reason).or_default() += n;
        }
    }

    pub fn overlay_left(&mut self, reason: &'static str) {
        *self.left.entry(reason).or_default() += 1;
    }

    pub fn overlay_agreed(&mut self) {
        self.count(Event::OverlayAgreed);
    }

    pub fn remounted(&mut self) {
        self.count(Event::Remount);
        self.handles.clear();
        self.mappings.clear();
        self.taken.values_mut().for_each(|t| *t = true);
    }

    pub fn forgot(&mut self) {
        self.taken.values_mut().for_each(|t| *t = true);
    }

    pub fn swapped(&mut self) {
        self.count(Event::Swap);
        self.swaps += 1;
        if std::mem::take(&mut self.linked) {
            self.count(Event::LinkOrRenameThenSwap);
        }
    }

    /// Before an operation: what it will have reached if it succeeds.
    pub fn before(&mut self, operation: &Operation, plain: &Side) -> Option<Event> {
        use Operation as O;
        let inode = |p: &String| fs::metadata(plain.root.join(p)).ok().map(|m| m.ino());
        let read_by_somebody = |p: &String| {
            let inode = inode(p)?;
            self.handles.values().any(|h| h.0 == inode && !h.1).then_some(Event::WriterBesideReader)
        };
        let nameless = |slot: &usize| {
            let there = plain.handles.get(*slot)?.as_ref()?.metadata().ok()?;
            (there.nlink() == 0).then_some(Event::Nameless)
        };
        match operation {
            O::Write(p, ..) | O::Append(p, ..) | O::Truncate(p, _) | O::Empty(p) => read_by_somebody(p),
            O::Open(_, p, flags) if flags & libc::O_ACCMODE != libc::O_RDONLY => read_by_somebody(p),
            O::WriteAt(slot, ..) if self.handles.get(slot).is_some_and(|h| h.1 && h.2 < self.swaps) => {
                Some(Event::WriteThroughOldHandle)
            }
            O::MapRead(slot, ..) | O::MapWrite(slot, ..) if self.mappings.get(slot) == Some(&None) => {
                Some(Event::MappingAfterClose)
            }
            O::OpenTaken(slot) if self.taken.get(slot) == Some(&true) => Some(Event::ForgottenThenByHandle),
            O::Rename(_, _, libc::RENAME_EXCHANGE) => Some(Event::Exchange),
            O::Rename(p, ..) if plain.root.join(p).symlink_metadata().is_ok_and(|m| m.is_dir()) => {
                Some(Event::DirectoryMoved)
            }
            O::Mkdir(p, _) | O::Create(p, _) if self.removed.contains(p) => Some(Event::MadeOverWhiteout),
            O::WriteAt(slot, ..)
            | O::ReadAt(slot, ..)
            | O::HandleChmod(slot, _)
            | O::HandleChown(slot, _)
            | O::Resize(slot, _) => nameless(slot),
            _ => None,
        }
    }

    /// After one that succeeded.
    pub fn after(&mut self, operation: &Operation, event: Option<Event>) {
        use Operation as O;
        if let Some(event) = event {
            self.count(event);
        }
        match operation {
            O::Link(..) | O::HandleLink(..) | O::Rename(..) => self.linked = true,
            O::Unlink(p) | O::Rmdir(p) => drop(self.removed.insert(p.clone())),
            O::Close(slot) => self.closed(*slot),
            O::Map(slot) => drop(self.mappings.insert(slot % 2, Some(*slot))),
            O::Unmap(slot) => drop(self.mappings.remove(slot)),
            O::Drop(slot) => drop(self.taken.remove(slot)),
            O::Take(slot, _) => drop(self.taken.insert(*slot, false)),
            _ => {}
        }
    }

    fn closed(&mut self, slot: usize) {
        self.handles.remove(&slot);
        for handle in self.mappings.values_mut() {
            if *handle == Some(slot) {
                *handle = None;
            }
        }
    }

    /// A handle was opened, or none if that failed; what was there before is closed.
    pub fn opened(&mut self, slot: usize, inode: Option<u64>, writes: bool) {
        self.closed(slot);
        if let Some(inode) = inode {
            self.handles.insert(slot, (inode, writes, self.swaps));
        }
    }
}
