//! What lies below: trees of versions, and the objects that hold contents.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::layer::index::{Index, Node as TreeNode};
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

/// One path of a tree, as the lower part of a node.
#[derive(Clone, Debug)]
pub struct Lower {
    /// Its tree.
    pub tree: Arc<Tree>,
    /// Its entry there.
    pub entry: TreeNode,
    /// It belongs to a directory that the user moved: a swap does not change it.
    pub pinned: bool,
}

impl Lower {
    /// The child of that name.
    pub fn child(&self, name: &[u8]) -> Result<Option<Lower>> {
        let found = self.tree.index.lookup(&self.entry, name)?;
        Ok(found.map(|entry| Lower { tree: self.tree.clone(), entry, pinned: self.pinned }))
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

    /// Opens an object for reading; its length must be what the tree says.
    pub fn get(&self, digest: &Digest, size: u64) -> io::Result<File> {
        let hex = digest.hex();
        let (fan, rest) = hex.split_at(2);
        let path = format!("{fan}/{rest}");
        let file = match sys::open_beneath(&self.top, path.as_bytes(), Open::Read) {
            Ok(fd) => File::from(fd),
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

    /// The first bytes of an object.
    pub fn head(&self, digest: &Digest, size: u64) -> io::Result<[u8; 4]> {
        use std::os::unix::fs::FileExt;
        let mut out = [0; 4];
        let _ = self.get(digest, size)?.read_at(&mut out, 0)?;
        Ok(out)
    }
}
