//! What lies below the user layer. The view asks a [`Lower`] and does not know where it comes from: from the tree
//! of a version, with the objects that hold its contents, or from plain directories.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::attributes::Attributes;
use super::directories::{Directories, Place};
use super::marks::PinMark;
use crate::error::{Error, Result};
use crate::layer::index::{self, Index, Node as TreeNode};
use crate::store::{Digest, Store};
use crate::sys::fs::{self as sys, Open};
use crate::sys::mount;

/// The tree of a version.
#[derive(Debug)]
pub struct Tree {
    /// The version.
    pub version: Digest,
    /// What it shows.
    pub index: Index,
}

impl Tree {
    /// Opens the tree of a version of the store.
    pub fn open(store: &Store, version: &Digest) -> Result<Arc<Tree>> {
        let manifest = store.version(version)?;
        let index = crate::layer::stack::open_tree(store, &manifest)?;
        Ok(Arc::new(Tree { version: *version, index }))
    }
}

/// A stack of read-only layers.
#[derive(Clone, Debug)]
pub enum Stack {
    /// That of a version.
    Version(Arc<Tree>),
    /// Plain directories.
    Directories(Arc<Directories>),
}

impl Stack {
    /// Its root.
    pub fn root(&self) -> Result<Lower> {
        match self {
            Stack::Version(tree) => Ok(Lower::of(tree, tree.index.node(index::ROOT)?)),
            Stack::Directories(stack) => Ok(Lower::at(stack, stack.root()?)),
        }
    }
}

/// One path of a stack, as the lower part of a node.
#[derive(Clone, Debug)]
pub struct Lower {
    /// Where it lies.
    pub entry: Entry,
    /// It belongs to a directory that the user moved: a swap does not change it.
    pub pinned: bool,
}

/// Where a path of a stack lies.
#[derive(Clone, Debug)]
pub enum Entry {
    /// In the tree of a version.
    Tree(Arc<Tree>, TreeNode),
    /// In plain directories.
    Plain(Arc<Directories>, Arc<Place>),
}

/// A name in a directory of a stack.
#[derive(Debug)]
pub struct Child {
    /// The name.
    pub name: Vec<u8>,
    /// Type bits.
    pub format: u32,
    /// Node number.
    pub number: u64,
    /// The path, where its number in the view depends on what the user has of its hard-link group.
    pub linked: Option<Lower>,
}

/// What holds the content of a regular file of a stack.
#[derive(Clone, Debug)]
pub enum Content {
    /// An object of the store, and its length in bytes.
    Object(Digest, u64),
    /// A file of a plain directory.
    File(Arc<Directories>, Arc<Place>),
}

impl Content {
    /// The mark of a file that stands on it.
    pub fn pin_mark(&self) -> PinMark {
        match self {
            Content::Object(digest, size) => PinMark::Object(*digest, *size),
            Content::File(_, place) => PinMark::Below([b"/", place.path()].concat()),
        }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        match self {
            Content::Object(_, size) => *size,
            Content::File(_, place) => place.size(),
        }
    }
}

impl Lower {
    /// A path of a version.
    pub fn of(tree: &Arc<Tree>, entry: TreeNode) -> Lower {
        Lower { entry: Entry::Tree(tree.clone(), entry), pinned: false }
    }

    /// A path of plain directories.
    pub fn at(stack: &Arc<Directories>, place: Arc<Place>) -> Lower {
        Lower { entry: Entry::Plain(stack.clone(), place), pinned: false }
    }

    /// The type bits (`S_IFMT`).
    pub fn format(&self) -> u32 {
        match &self.entry {
            Entry::Tree(_, entry) => entry.format(),
            Entry::Plain(_, place) => place.format(),
        }
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.format() == libc::S_IFDIR
    }

    /// Whether it is that path of a tree.
    pub fn is_at(&self, node: &TreeNode) -> bool {
        match &self.entry {
            Entry::Tree(_, entry) => entry.at == node.at,
            Entry::Plain(..) => false,
        }
    }

    /// Node number.
    pub fn number(&self) -> u64 {
        match &self.entry {
            Entry::Tree(_, entry) => entry.number,
            Entry::Plain(stack, place) => stack.number_of(place),
        }
    }

    /// Hard links; for a directory 2 + its subdirectories.
    pub fn links(&self) -> Result<u32> {
        match &self.entry {
            Entry::Tree(_, entry) => Ok(entry.nlink),
            Entry::Plain(stack, place) => stack.links_of(place),
        }
    }

    /// Whether it is one of several hard links.
    pub fn is_linked(&self) -> bool {
        match &self.entry {
            Entry::Tree(_, entry) => !entry.is_dir() && entry.nlink > 1,
            Entry::Plain(_, place) => place.is_linked(),
        }
    }

    /// Whether one of its children is one of several hard links.
    pub fn has_linked(&self, child: &Child) -> Result<bool> {
        match &self.entry {
            Entry::Tree(..) => Ok(child.linked.is_some()),
            Entry::Plain(stack, _) => stack.is_linked_number(child.number),
        }
    }

    /// Whether something beneath a directory may be one of several hard links.
    pub fn may_hold_links(&self) -> Result<bool> {
        match &self.entry {
            Entry::Tree(tree, entry) => tree.index.holds_links(entry),
            Entry::Plain(..) => Ok(true),
        }
    }

    /// The child of that name.
    pub fn child(&self, name: &[u8]) -> Result<Option<Lower>> {
        match &self.entry {
            Entry::Tree(tree, entry) => {
                let found = tree.index.lookup(entry, name)?;
                Ok(found.map(|entry| Lower { entry: Entry::Tree(tree.clone(), entry), pinned: self.pinned }))
            }
            Entry::Plain(stack, dir) => {
                let found = stack.child(dir, name)?;
                Ok(found.map(|place| Lower { pinned: self.pinned, ..Lower::at(stack, place) }))
            }
        }
    }

    /// The names in a directory.
    pub fn children(&self) -> Result<Vec<Child>> {
        match &self.entry {
            Entry::Tree(tree, dir) => {
                let index = &tree.index;
                let child = |at| {
                    let entry = index.node(at)?;
                    let linked = (!entry.is_dir() && entry.nlink > 1)
                        .then(|| Lower { entry: Entry::Tree(tree.clone(), entry), pinned: self.pinned });
                    let name = index.name(&entry)?.to_vec();
                    Ok(Child { name, format: entry.format(), number: entry.number, linked })
                };
                index.children(dir)?.map(child).collect()
            }
            Entry::Plain(stack, dir) => stack.children(dir),
        }
    }

    /// How many names a directory has.
    pub fn count(&self) -> Result<usize> {
        match &self.entry {
            Entry::Tree(tree, dir) => Ok(tree.index.children(dir)?.len()),
            Entry::Plain(stack, dir) => Ok(stack.children(dir)?.len()),
        }
    }

    /// All paths of its hard-link group in the stack, itself among them: directory and name.
    pub fn group(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        match &self.entry {
            Entry::Tree(tree, entry) => {
                let index = &tree.index;
                let place = |node: TreeNode| {
                    Ok((index.path(&index.node(node.parent)?)?, index.name(&node)?.to_vec()))
                };
                index.group(entry)?.into_iter().map(place).collect()
            }
            Entry::Plain(stack, place) => stack.group(place),
        }
    }

    /// What a directory stands on once the user has moved it.
    pub fn pin_mark(&self) -> Result<PinMark> {
        match &self.entry {
            Entry::Tree(tree, entry) => {
                Ok(PinMark::Dir(tree.version, tree.index.dir_digest(entry)?, tree.index.path(entry)?))
            }
            Entry::Plain(_, place) => Ok(PinMark::Below([b"/", place.path()].concat())),
        }
    }

    /// The version that it is of.
    pub fn version(&self) -> Option<Digest> {
        match &self.entry {
            Entry::Tree(tree, _) => Some(tree.version),
            Entry::Plain(..) => None,
        }
    }

    /// The content of a regular file.
    pub fn content(&self) -> Result<Content> {
        match &self.entry {
            Entry::Tree(tree, entry) => Ok(Content::Object(tree.index.object(entry)?, entry.size)),
            Entry::Plain(stack, place) => Ok(Content::File(stack.clone(), place.clone())),
        }
    }

    /// A symbolic link's target.
    pub fn target(&self) -> Result<Vec<u8>> {
        match &self.entry {
            Entry::Tree(tree, entry) => Ok(tree.index.target(entry)?.to_vec()),
            Entry::Plain(stack, place) => stack.target(place),
        }
    }

    /// The value of an extended attribute.
    pub fn xattr(&self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        match &self.entry {
            Entry::Tree(tree, entry) if tree.index.has_xattrs(entry) => {
                Ok(tree.index.xattr(entry, name)?.map(<[u8]>::to_vec))
            }
            Entry::Tree(..) => Ok(None),
            Entry::Plain(stack, place) => stack.xattr(place, name),
        }
    }

    /// All extended attributes with their values.
    pub fn xattrs(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        match &self.entry {
            Entry::Tree(tree, entry) => {
                let all = tree.index.xattrs(entry)?;
                Ok(all.into_iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect())
            }
            Entry::Plain(stack, place) => stack.xattrs(place),
        }
    }

    /// Attributes, shown under the number `id`. A version keeps no access times: they are the modification times.
    pub fn attributes(&self, id: u64) -> Result<Attributes> {
        match &self.entry {
            Entry::Tree(_, n) => {
                let size = if n.is_dir() { 4096 } else { n.size };
                Ok(Attributes {
                    ino: id,
                    size,
                    blocks: if n.is_file() || n.is_dir() { super::attributes::blocks(size) } else { 0 },
                    atime: n.mtime,
                    mtime: n.mtime,
                    ctime: n.mtime,
                    mode: n.mode,
                    nlink: n.nlink,
                    uid: n.uid,
                    gid: n.gid,
                    rdev: n.rdev(),
                    blksize: 4096,
                })
            }
            Entry::Plain(stack, place) => stack.attributes(place, id),
        }
    }
}

/// The store's objects, opened only beneath a private read-only clone of their mount, so that no mistake of
/// ours can write into one. Without the right to make one (not root) the directory is used as it is.
#[derive(Debug)]
pub struct Objects {
    top: OwnedFd,
    /// Whether the kernel itself refuses writes.
    pub sealed: bool,
}

impl Objects {
    /// Opens the objects of a store.
    pub fn open(store: &Store) -> Result<Objects> {
        let path = store.path("objects");
        match mount::read_only_clone(&path) {
            Ok(top) => Ok(Objects { top, sealed: true }),
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                let top = sys::open_dir(&path).map_err(|e| Error::Io("opening the objects".into(), e))?;
                Ok(Objects { top, sealed: false })
            }
            Err(e) => Err(Error::Io("making a read-only clone of the objects' mount".into(), e)),
        }
    }

    /// Opens an object that nobody asked for yet; its length is not looked at.
    pub fn peek(&self, digest: &Digest) -> io::Result<File> {
        let hex = digest.hex();
        let (fan, rest) = hex.split_at(2);
        Ok(File::from(sys::open_beneath(&self.top, format!("{fan}/{rest}").as_bytes(), Open::Read)?))
    }

    /// Opens an object for reading; its length must be what the tree says.
    pub fn get(&self, digest: &Digest, size: u64) -> io::Result<File> {
        let file = match self.peek(digest) {
            Ok(file) => file,
            Err(e) => {
                log::error!("object {digest}: {}", crate::error::words(&e));
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
        };
        let found = sys::stat(&file)?.size;
        if found != size {
            log::error!("object {digest} has {found} bytes and should have {size}; run `reroot fsck`");
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(file)
    }
}
