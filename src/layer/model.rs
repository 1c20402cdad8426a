//! A tree of paths in memory, as it is built, merged and compared before it is written.
//!
//! A [`Draft`] holds inodes in an arena; a directory's children name inodes by their place in it. Two names
//! of one inode are hard links. The same structure holds a full tree and a delta: in a delta there may be
//! [`Content::Whiteout`] and opaque directories.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::store::Digest;
use crate::sys::fs::Time;

/// Place of an inode in its draft.
pub type InodeId = usize;

/// How many directories may lie within each other. Merging and comparing go down by recursion, on threads with
/// small stacks; a path of more components than this could hardly be named in one call (`PATH_MAX`).
pub const DEPTH_MAX: usize = 1024;

/// The root's place.
pub const ROOT: InodeId = 0;

/// What every inode has, whatever its type.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission bits with setuid, setgid and sticky; no type bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Time,
    /// Extended attributes in the kernel's raw form, POSIX ACLs among them, sorted by name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A directory; `opaque` only in a delta: it hides what lies below.
    Dir {
        /// Nothing of lower layers is seen in it.
        opaque: bool,
    },
    /// A regular file.
    File {
        /// Its bytes, by digest.
        object: Digest,
        /// Its length in bytes.
        size: u64,
    },
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// A character device: major, minor.
    Char(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// Only in a delta: the path is not there.
    Whiteout,
}

impl Content {
    /// The type bits (`S_IFMT`), 0 for a whiteout.
    pub fn format(&self) -> u32 {
        match self {
            Content::Dir { .. } => libc::S_IFDIR,
            Content::File { .. } => libc::S_IFREG,
            Content::Symlink(_) => libc::S_IFLNK,
            Content::Char(..) => libc::S_IFCHR,
            Content::Block(..) => libc::S_IFBLK,
            Content::Fifo => libc::S_IFIFO,
            Content::Socket => libc::S_IFSOCK,
            Content::Whiteout => 0,
        }
    }
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self, Content::Dir { .. })
    }
}

/// One inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Attributes.
    pub meta: Meta,
    /// Type and content.
    pub content: Content,
    /// A directory's names; empty for everything else.
    pub children: BTreeMap<Vec<u8>, InodeId>,
}

/// A tree of paths, full or delta.
#[derive(Clone, Debug)]
pub struct Draft {
    inodes: Vec<Inode>,
}

impl Default for Draft {
    fn default() -> Self {
        Draft::new(Meta { mode: 0o755, ..Meta::default() })
    }
}

impl Draft {
    /// An empty root directory.
    pub fn new(root: Meta) -> Draft {
        let root = Inode { meta: root, content: Content::Dir { opaque: false }, children: BTreeMap::new() };
        Draft { inodes: vec![root] }
    }

    /// The inode at a place that this draft gave out.
    #[allow(clippy::indexing_slicing)] // Places are made by `add` of the same draft only, and never removed.
    pub fn get(&self, id: InodeId) -> &Inode {
        &self.inodes[id]
    }

    /// As [`Draft::get`], to change it.
    #[allow(clippy::indexing_slicing)] // As above.
    pub fn get_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id]
    }

    /// A new inode that has no name yet.
    pub fn add(&mut self, meta: Meta, content: Content) -> InodeId {
        self.inodes.push(Inode { meta, content, children: BTreeMap::new() });
        self.inodes.len() - 1
    }

    /// Gives an inode a name in a directory; gives back what stood there.
    pub fn link(&mut self, dir: InodeId, name: &[u8], id: InodeId) -> Option<InodeId> {
        self.get_mut(dir).children.insert(name.to_vec(), id)
    }

    /// The inode at a path (components separated by `/`), without following symbolic links.
    pub fn find(&self, path: &[u8]) -> Option<InodeId> {
        path.split(|c| *c == b'/')
            .filter(|n| !n.is_empty())
            .try_fold(ROOT, |at, name| self.get(at).children.get(name).copied())
    }

    /// Every path with its inode in order of names, parents before children; the root (an empty path) first.
    pub fn walk(&self) -> Vec<(Vec<u8>, InodeId)> {
        let mut out = Vec::new();
        let mut todo = vec![(Vec::new(), ROOT)];
        while let Some((path, id)) = todo.pop() {
            for (name, child) in self.get(id).children.iter().rev() {
                todo.push((join(&path, name), *child));
            }
            out.push((path, id));
        }
        out
    }

    /// Refuses a tree that is deeper than [`DEPTH_MAX`]. To be asked of whatever comes from outside before it
    /// is merged or compared.
    pub fn check_depth(&self) -> Result<()> {
        let mut level = vec![ROOT];
        for _ in 0..=DEPTH_MAX {
            let below = level.iter().flat_map(|id| self.get(*id).children.values());
            level = below.copied().filter(|id| self.get(*id).content.is_dir()).collect();
            if level.is_empty() {
                return Ok(());
            }
        }
        Err(Error::Failed(format!("more than {DEPTH_MAX} directories lie within each other")))
    }

    /// For every inode its paths, sorted; inodes without a name have none.
    pub fn paths(&self) -> Vec<Vec<Vec<u8>>> {
        let mut out = vec![Vec::new(); self.inodes.len()];
        for (path, id) in self.walk() {
            if let Some(paths) = out.get_mut(id) {
                paths.push(path);
            }
        }
        for paths in &mut out {
            paths.sort();
        }
        out
    }
}

/// A path with one more component.
pub fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len() + 1 + name.len());
    out.extend_from_slice(path);
    if !path.is_empty() {
        out.push(b'/');
    }
    out.extend_from_slice(name);
    out
}
