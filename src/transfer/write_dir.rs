//! What a version shows, written as plain files.
//!
//! Directory by directory, each opened beneath the destination's own descriptor; the attributes of directories
//! come last, from the deepest up, so that their times and modes stand. What is not wanted after an error is
//! removed again.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::{Exported, beneath, split};
use crate::error::{Doing, Error, Result};
use crate::layer::model::{Content, Draft, Inode, InodeId, join};
use crate::store::{Progress, Store};
use crate::sys::fs::{self as sys, Open, SetTime};
use crate::sys::{process, xattr};

/// Writes to the directory `path`, which is missing or empty.
pub(super) fn write(
    store: &Store,
    draft: &Draft,
    path: &Path,
    progress: &dyn Progress,
    done: &mut Exported,
) -> Result<()> {
    let made = match std::fs::create_dir(path) {
        Ok(()) => true,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
        Err(e) => return Err(e).at("making the destination", path),
    };
    let root = sys::open_dir(path).at("opening the destination", path)?;
    if !sys::list(root.as_fd()).at("listing", path)?.is_empty() {
        return Err(Error::Usage(format!(
            "the destination {} is not empty; give a directory that is missing or empty",
            path.display()
        )));
    }
    let mut writer = Writer {
        store,
        draft,
        path,
        root,
        progress,
        done,
        first: HashMap::new(),
        privileged: process::is_root(),
    };
    let result = writer.all();
    if result.is_err() {
        for (name, _) in sys::list(writer.root.as_fd()).unwrap_or_default() {
            let _ = sys::remove_all_at(&writer.root, &name);
        }
        if made {
            let _ = std::fs::remove_dir(path);
        }
    }
    result
}

struct Writer<'a> {
    store: &'a Store,
    draft: &'a Draft,
    path: &'a Path,
    root: OwnedFd,
    progress: &'a dyn Progress,
    done: &'a mut Exported,
    /// Where each inode with several names was written first.
    first: HashMap<InodeId, Vec<u8>>,
    privileged: bool,
}

impl Writer<'_> {
    fn shown(&self, path: &[u8]) -> String {
        beneath(self.path, path)
    }

    fn failed(&self, doing: &str, path: &[u8], e: io::Error) -> Error {
        let shown = self.shown(path);
        if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) {
            return Error::Failed(format!(
                "{doing} {shown}: {}; what was written is removed again. Free space there or export elsewhere",
                crate::error::words(&e)
            ));
        }
        Error::Io(format!("{doing} {shown}"), e)
    }

    fn all(&mut self) -> Result<()> {
        // What the destination would hand down to new files is not part of the version.
        for name in [&b"system.posix_acl_default"[..], b"system.posix_acl_access"] {
            if xattr::get(&self.root, name).is_ok_and(|v| v.is_some()) {
                xattr::remove(&self.root, name).map_err(|e| self.failed("clearing the ACL of", b"", e))?;
            }
        }
        let draft = self.draft;
        let paths = draft.walk();
        let dirs = || paths.iter().filter(|(_, id)| draft.get(*id).content.is_dir());
        for (path, id) in dirs() {
            let dir =
                sys::open_deep(&self.root, path, Open::Dir).map_err(|e| self.failed("opening", path, e))?;
            for (name, child) in &draft.get(*id).children {
                self.name(dir.as_fd(), &join(path, name), name, *child)?;
            }
        }
        for (path, id) in dirs().rev() {
            let dir =
                sys::open_deep(&self.root, path, Open::Dir).map_err(|e| self.failed("opening", path, e))?;
            self.attributes(dir.as_fd(), path, draft.get(*id))?;
        }
        sys::sync_fs(&self.root).map_err(|e| self.failed("writing to disk:", b"", e))
    }

    fn name(&mut self, dir: BorrowedFd<'_>, path: &[u8], name: &[u8], id: InodeId) -> Result<()> {
        let inode = self.draft.get(id);
        if let Some(first) = self.first.get(&id) {
            let (at, old) = split(first);
            let from = sys::open_deep(&self.root, at, Open::DirPath);
            let from = from.map_err(|e| self.failed("opening", at, e))?;
            return sys::link_at(from, old, dir, name).map_err(|e| self.failed("linking", path, e));
        }
        let made = match &inode.content {
            Content::Dir { .. } => {
                return sys::mkdir_at(dir, name, 0o700).map_err(|e| self.failed("making", path, e));
            }
            Content::File { object, size } => {
                let from = self.store.open_object(object, *size)?;
                let to = sys::create_at(dir, name, 0o600).map_err(|e| self.failed("making", path, e))?;
                let copied = sys::copy_sparse(&from, &to, *size, |n| {
                    self.progress.advance(0, n);
                    Ok(())
                });
                copied.map_err(|e| self.failed("writing", path, e))?;
                self.done.files += 1;
                self.done.bytes += size;
                self.progress.advance(1, 0);
                Ok(())
            }
            Content::Symlink(target) => sys::symlink_at(target, dir, name),
            Content::Char(major, minor) | Content::Block(major, minor) => {
                sys::mknod_at(dir, name, inode.content.format() | 0o600, (*major, *minor))
            }
            Content::Fifo | Content::Socket => {
                sys::mknod_at(dir, name, inode.content.format() | 0o600, (0, 0))
            }
            Content::Whiteout => {
                return Err(Error::Damaged(format!("{}: a whiteout in a tree", self.shown(path))));
            }
        };
        match made {
            Err(e) if !self.privileged && e.raw_os_error() == Some(libc::EPERM) => {
                self.skip(path, "only root can make device nodes");
                return Ok(());
            }
            r => r.map_err(|e| self.failed("making", path, e))?,
        }
        self.first.insert(id, path.to_vec());
        let fd = sys::open_at(dir, name, Open::Path).map_err(|e| self.failed("opening", path, e))?;
        self.attributes(fd.as_fd(), path, inode)
    }

    fn skip(&mut self, path: &[u8], why: &str) {
        self.done.skipped.push(format!("{}: {why}", self.shown(path)));
    }

    /// Content and owner first, since they clear setuid and capabilities; mode after xattrs, since a file that
    /// its owner may not write takes no xattr from him; times last.
    fn attributes(&mut self, fd: BorrowedFd<'_>, path: &[u8], inode: &Inode) -> Result<()> {
        let meta = &inode.meta;
        match sys::chown(fd, Some(meta.uid), Some(meta.gid)) {
            Err(e) if !self.privileged && e.raw_os_error() == Some(libc::EPERM) => {
                self.skip(path, "only root can give files to others");
            }
            r => r.map_err(|e| self.failed("setting the owner of", path, e))?,
        }
        for (name, value) in &meta.xattrs {
            let shown = String::from_utf8_lossy(name);
            match xattr::set(fd, name, value, xattr::Set::Any) {
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    self.skip(
                        path,
                        &format!("the destination's file system cannot hold the attribute {shown}"),
                    );
                }
                Err(e) if !self.privileged && e.raw_os_error() == Some(libc::EPERM) => {
                    self.skip(path, &format!("only root can set the attribute {shown}"));
                }
                r => r.map_err(|e| self.failed(&format!("setting the attribute {shown} of"), path, e))?,
            }
        }
        if !matches!(inode.content, Content::Symlink(_)) {
            sys::chmod(fd, meta.mode).map_err(|e| self.failed("setting the mode of", path, e))?;
        }
        sys::set_times(fd, SetTime::To(meta.mtime), SetTime::To(meta.mtime))
            .map_err(|e| self.failed("setting the times of", path, e))
    }
}
