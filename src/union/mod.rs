//! The view: the merged file system that a mount shows.
//!
//! Knows nothing of FUSE: its methods take node numbers and names and give back plain values, and `fuse.rs`
//! translates. What is below comes from a [`lower::Stack`], what is above from a [`upper::UserLayer`].
//!
//! # Invariants
//! 1. A [`node::Node`] is an inode. Its number never changes; a path whose content differs after a swap leads
//!    to another node.
//! 2. Every request holds a [`Pin`] from before it reads anything until its answer is sent. A swap exchanges
//!    the generation and waits for the pins of the old one before it tells the kernel what differs; so an
//!    answer from the old stack is never cached after its invalidation.
//! 3. The merge is a function of (user layer, tree) alone. A swap writes nothing into the user layer.
//! 4. What is written into the user layer is complete before it has its name: it is prepared in the work
//!    directory and renamed into place, or made by one system call.
//!
//! # Lock order
//! `Node::copying` (slow: held while content is copied; a child before its ancestors) → `View::names` (short:
//! read to use a path, write to change what paths mean) → `Node::state` → the node table → what [`completion`],
//! [`partial`] and [`inherit`] say of theirs. No lock is held
//! while a notification is sent, while the mount point is touched, or during data I/O and fsync.

pub mod ahead;
pub mod attributes;
pub mod completion;
pub mod copyup;
pub mod data;
pub mod directories;
pub mod flags;
pub mod inherit;
pub mod links;
pub mod listing;
pub mod lower;
pub mod marks;
pub mod moved;
pub mod names;
pub mod node;
pub mod numbers;
pub mod partial;
pub mod pins;
pub mod plant;
pub mod resolve;
pub mod survey;
pub mod swap;
pub mod upper;
pub mod xattrs;

use std::io;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::error::Error;
use crate::store::{Digest, Store};
use lower::{Content, Objects, Stack, Tree};
use node::{Node, Nodes};
use upper::UserLayer;

/// An error number to answer a request with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fail(pub i32);

impl From<io::Error> for Fail {
    fn from(e: io::Error) -> Fail {
        Fail(e.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<Error> for Fail {
    fn from(e: Error) -> Fail {
        log::error!("{e}");
        Fail(e.errno())
    }
}

/// The result of a request.
pub type Answer<T> = Result<T, Fail>;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Thread, as this process sees it; 0 where it cannot.
    pub pid: u32,
}

impl Caller {
    /// Whether the caller is in a group, by further groups too.
    fn is_in(&self, gid: u32) -> bool {
        self.gid == gid || crate::sys::process::groups(self.pid).contains(&gid)
    }
}

/// The stack that a mount shows, between two swaps.
#[derive(Debug)]
pub struct Generation {
    /// Counts the swaps of this mount; only grows.
    pub number: u64,
    /// What the stack shows.
    pub stack: Stack,
}

/// A request's hold on its generation.
#[derive(Clone, Debug)]
pub struct Pin(pub Arc<Generation>);

/// How a view is set up.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Nothing may change.
    pub read_only: bool,
    /// Which files go past the daemon.
    pub data: Data,
    /// A file comes up without its content where only its attributes or its name change.
    pub metacopy: bool,
    /// Which files are copied up in pieces.
    pub pieces: completion::Pieces,
}

/// Which files go past the daemon (see DESIGN, "Data").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Of the stack the large and the executable ones; the user's all.
    Auto,
    /// All.
    Passthrough,
    /// None.
    Coherent,
}

/// What versions are read from.
#[derive(Debug)]
pub struct Library {
    /// The store.
    pub store: Store,
    /// Its objects.
    pub objects: Arc<Objects>,
}

/// The merged view of one stack and one user layer.
#[derive(Debug)]
pub struct View {
    pub(crate) settings: Settings,
    pub(crate) library: Option<Library>,
    pub(crate) user: Option<UserLayer>,
    pub(crate) generation: RwLock<Arc<Generation>>,
    pub(crate) pinned_trees: Mutex<std::collections::HashMap<Digest, Arc<Tree>>>,
    pub(crate) nodes: Nodes,
    pub(crate) names: RwLock<()>,
    /// Directories of the stack that were moved since the mount began; see [`View::follow_moves`].
    pub(crate) moves: std::sync::atomic::AtomicU64,
    pub(crate) handles: data::Handles,
    pub(crate) listings: listing::Listings,
    pub(crate) reading: data::Reading,
    pub(crate) ahead: ahead::Ahead,
    pub(crate) groups: links::Groups,
    pub(crate) notices: Mutex<Vec<swap::Notice>>,
    /// The generation that the kernel's caches are right for.
    pub(crate) told: std::sync::atomic::AtomicU64,
    /// The stack before the last swap, until the kernel was told of that.
    pub(crate) before: Mutex<Option<Stack>>,
    /// Files without their content that are to get it once nobody reads them past the daemon.
    pub(crate) unfinished: Mutex<Vec<Arc<Node>>>,
    /// Files that are being copied in pieces.
    pub(crate) partials: completion::Partials,
    pub(crate) passthrough: std::sync::atomic::AtomicBool,
    /// Where what is open is written down for a next daemon, and who holds files without a name for it.
    pub(crate) slots: std::sync::OnceLock<inherit::Slots>,
    pub(crate) keeper: std::sync::OnceLock<Arc<dyn inherit::Keeper>>,
    /// Another daemon served the kernel before: it may know of nodes that are not known here.
    pub(crate) inherited: std::sync::atomic::AtomicBool,
}

impl View {
    /// A view of `stack` with an optional user layer above it. A stack of plain directories needs no library.
    pub fn new(
        library: Option<Library>,
        user: Option<UserLayer>,
        stack: Stack,
        generation: u64,
        settings: Settings,
    ) -> Answer<View> {
        let root = Node::root(&stack, user.as_ref(), generation)?;
        let partials = completion::Partials::new(user.as_ref(), settings.pieces);
        Ok(View {
            settings,
            library,
            user,
            generation: RwLock::new(Arc::new(Generation { number: generation, stack })),
            pinned_trees: Mutex::default(),
            nodes: Nodes::new(root),
            names: RwLock::new(()),
            moves: std::sync::atomic::AtomicU64::new(0),
            handles: data::Handles::default(),
            listings: listing::Listings::default(),
            reading: data::Reading::default(),
            ahead: ahead::Ahead::default(),
            groups: links::Groups::default(),
            notices: Mutex::default(),
            told: std::sync::atomic::AtomicU64::new(generation),
            before: Mutex::default(),
            unfinished: Mutex::default(),
            partials,
            passthrough: std::sync::atomic::AtomicBool::new(settings.data != Data::Coherent),
            slots: std::sync::OnceLock::new(),
            keeper: std::sync::OnceLock::new(),
            inherited: std::sync::atomic::AtomicBool::new(false),
        })
    }

    /// Begins a request.
    pub fn pin(&self) -> Pin {
        Pin(self.generation.read().clone())
    }

    /// Opens a content for reading.
    pub(crate) fn open_content(&self, content: &Content) -> Answer<std::fs::File> {
        match content {
            Content::Object(digest, size) => {
                let library = self.library.as_ref().ok_or(Fail(libc::EIO))?;
                Ok(library.objects.get(digest, *size)?)
            }
            Content::File(stack, place) => Ok(stack.open_content(place)?),
        }
    }

    /// The content of a file of the stack, for somebody who reads it.
    pub(crate) fn open_to_read(&self, node: &Node) -> Answer<std::fs::File> {
        let since = std::time::Instant::now();
        let file = self.open_content(&self.content_of(node)?)?;
        let place = node.state().lower.as_ref().and_then(|lower| match &lower.entry {
            lower::Entry::Tree(tree, entry) => Some((tree.clone(), entry.at)),
            lower::Entry::Plain(..) => None,
        });
        if let (Some((tree, at)), Some(library)) = (place, &self.library) {
            self.ahead.read(&library.objects, &tree, at, since);
        }
        Ok(file)
    }

    pub(crate) fn writable(&self) -> Answer<&UserLayer> {
        match &self.user {
            Some(user) if !self.settings.read_only => Ok(user),
            _ => Err(Fail(libc::EROFS)),
        }
    }
}
