//! The adapter itself: what it knows, and how it answers. The requests are in [`super`].

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::{FileHandle, Generation, INodeNo, Notifier, ReplyAttr, ReplyEntry, Request};

use super::again::Served;
use super::backings::Backings;
use super::servers::Servers;
use super::values::{attr, errno};
use crate::union::attributes::{Attributes, Settled};
use crate::union::listing::Listing;
use crate::union::node::Node;
use crate::union::{Answer, Pin, View};

/// How long the kernel may keep what only we can change: it is told when that changes.
pub(super) const KEEP: Duration = Duration::from_secs(24 * 3600);
/// How long it may keep what a mapping may change unseen.
pub(super) const BRIEFLY: Duration = Duration::from_secs(1);

/// What the kernel gives for a handle where it did not ask at the open. The view gives none of that number.
pub(super) const NO_HANDLE: FileHandle = FileHandle(0);

/// A view as fuser's file system.
#[derive(Debug)]
pub struct Adapter {
    pub(super) view: Arc<View>,
    pub(super) backings: Arc<Backings>,
    /// Something was changed since the last sync.
    pub(super) dirty: Arc<AtomicBool>,
    /// Wakes whoever sends the view's notices.
    pub(super) wake: Sender<()>,
    /// Tells the kernel before a request is answered; there once the session is.
    pub(super) notifier: Arc<OnceLock<Notifier>>,
    pub(super) servers: Arc<Servers>,
    pub(super) manner: Manner,
    pub(super) dirs: Dirs,
    /// The kernel opens files without asking, and keeps their pages.
    pub(super) opens_unasked: bool,
}

/// The session as its adapter sees it: there once the session is.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// Tells the kernel before a request is answered.
    pub notifier: Arc<OnceLock<Notifier>>,
    pub(super) backings: Arc<Backings>,
}

impl Line {
    /// The connection itself, once it is there.
    pub fn connect(&self, device: OwnedFd) {
        self.backings.connect(device);
    }

    /// For these inodes an earlier daemon has registered a file, with its number. To be called before the first request.
    pub fn inherit(&self, registered: Vec<(u64, u32)>) {
        self.backings.inherit(registered);
    }
}

/// What a mount's options ask of its adapter.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Ids are mapped.
    pub map_ids: bool,
    /// Each reading of a directory moves its access time.
    pub strict_times: bool,
}

/// How directories are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dirs {
    /// The kernel does not ask, and keeps listings.
    Unasked,
    /// The kernel keeps listings.
    Kept,
    /// Each reading is to be seen by the user layer.
    Read,
}

impl Adapter {
    /// An adapter for a view. `dirty` is set when something is changed; `wake` hears that there are notices.
    pub fn new(
        view: Arc<View>,
        dirty: Arc<AtomicBool>,
        wake: Sender<()>,
        line: Line,
        servers: Arc<Servers>,
        manner: Manner,
    ) -> Adapter {
        let dirs = if manner.strict_times { Dirs::Read } else { Dirs::Kept };
        Adapter {
            view,
            backings: line.backings,
            dirty,
            wake,
            notifier: line.notifier,
            servers,
            manner,
            dirs,
            opens_unasked: false,
        }
    }

    /// The kernel drops its listing of a directory. Called without a lock of the view's; the kernel waits for no
    /// request in this.
    pub(super) fn drop_listing(&self, id: u64) {
        if let Some(notifier) = self.notifier.get()
            && let Err(e) = notifier.inval_inode(INodeNo(id), 0, 0)
        {
            log::warn!("telling the kernel of a directory: {}", crate::error::words(&e));
        }
    }

    /// A request is to be made again, since names lead elsewhere: listings show that from the answer on.
    pub(super) fn again(&self) {
        for id in self.view.listed_otherwise() {
            self.drop_listing(id);
        }
        let _ = self.wake.send(());
    }

    pub(super) fn listing(
        &self,
        pin: &Pin,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
    ) -> Answer<Arc<Listing>> {
        match fh {
            NO_HANDLE => self.view.readdir_unchanging(pin, ino.0, offset),
            fh => self.view.readdir(pin, fh.0, offset),
        }
    }

    /// A directory's attributes were changed: its access time moves when it is listed next.
    pub(super) fn dir_changed(&self, pin: &Pin, id: u64) {
        if self.view.node(pin, id).is_ok_and(|node| node.is_dir()) {
            self.drop_listing(id);
        }
    }

    /// A directory that was moved to another one lists another `..`; the kernel keeps readers out until the answer.
    pub(super) fn moved(&self, pin: &Pin, parent: u64, name: &[u8]) {
        if let Ok(Some((node, _))) = self.view.item(pin, parent, name)
            && node.is_dir()
        {
            self.drop_listing(node.id);
        }
    }

    pub(super) fn serve(&self, req: &Request) -> Served<'_> {
        Served::new(self, req, false, libc::EIO)
    }

    /// For what takes long for what it does. Waiting for a disk alone does not count: whoever asked alone waits for it too,
    /// and where somebody else asks meanwhile, the others are let in after a tick.
    pub(super) fn serve_slowly(&self, req: &Request) -> Served<'_> {
        Served::new(self, req, true, libc::EIO)
    }

    /// For what the kernel asks on its way along a path: it can begin that way again.
    pub(super) fn serve_on_the_way(&self, req: &Request) -> Served<'_> {
        Served::new(self, req, false, libc::ESTALE)
    }

    pub(super) fn changing(&self) {
        self.dirty.store(true, Ordering::Relaxed);
    }

    pub(super) fn attr_ttl(&self, id: u64) -> Duration {
        match self.view.attributes_settle(id) {
            Settled::Always => KEEP,
            Settled::Briefly => BRIEFLY,
            Settled::Never => Duration::ZERO,
        }
    }

    pub(super) fn entry(&self, found: Answer<(Arc<Node>, Attributes)>, reply: ReplyEntry) {
        match found {
            Ok((node, attributes)) => reply.entry_with_ttls(
                &self.attr_ttl(node.id),
                &KEEP,
                &attr(&attributes),
                Generation(node.generation),
            ),
            Err(e) => reply.error(errno(e)),
        }
    }

    pub(super) fn attributes(&self, found: Answer<Attributes>, reply: ReplyAttr) {
        match found {
            Ok(a) => reply.attr(&self.attr_ttl(a.ino), &attr(&a)),
            Err(e) => reply.error(errno(e)),
        }
    }
}
