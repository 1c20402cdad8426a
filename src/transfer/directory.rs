//! A directory, read as a tree.
//!
//! Two passes: the first goes through all directories and notes names and attributes, the second reads the
//! contents on all cores, in batches, each brought to the disk while the next is read. Everything is opened beneath the source's own descriptor, and no symbolic link is
//! followed. Mounts beneath the source are read like any other directory.
//!
//! A source that changes meanwhile is an error: each file's `statx` must be the same at the walk, before and
//! after its content is read, and at the end, and so must each directory's.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};

use rayon::prelude::*;

use super::hashed::Hashed;
use super::{DEPTH_LIMIT, Harvest, PATH_LIMIT, beneath};
use crate::error::{Doing, Error, Result};
use crate::layer::model::{Content, Draft, InodeId, Meta, ROOT, join};
use crate::store::objects::{Intake, sync_names};
use crate::store::{Digest, Progress, Store};
use crate::sys::fs::{self as sys, Open, Stat, Time};
use crate::sys::xattr;

/// So much is stored at once and can be found again by a later import if this one ends early.
const BATCH_BYTES: u64 = 256 << 20;
/// As [`BATCH_BYTES`], in files.
const BATCH_FILES: usize = 8192;

/// A path and what it was like when it was met.
struct Met {
    path: Vec<u8>,
    id: InodeId,
    stat: Stat,
}

struct Walk<'a> {
    source: &'a Path,
    root: OwnedFd,
    draft: Draft,
    dirs: Vec<Met>,
    files: Vec<Met>,
    linked: HashMap<((u32, u32), u64), InodeId>,
}

/// Reads the directory at `path`.
pub(super) fn read(store: &Store, path: &Path, progress: &dyn Progress) -> Result<Harvest> {
    let source = path.canonicalize().at("finding the source", path)?;
    if store.root().starts_with(&source) {
        return Err(Error::Usage(format!(
            "the source {} holds the store {}; import a directory without it",
            source.display(),
            store.root().display()
        )));
    }
    progress.begin("looking through the source", None);
    let root = match sys::open_dir(source.as_path()) {
        Err(e) if e.raw_os_error() == Some(libc::ENOTDIR) => {
            return Err(Error::Usage(format!(
                "the source {} is not a directory; use tar:FILE for an archive",
                path.display()
            )));
        }
        r => r.at("opening the source", path)?,
    };
    let mut walk = Walk {
        source: &source,
        root,
        draft: Draft::default(),
        dirs: Vec::new(),
        files: Vec::new(),
        linked: HashMap::new(),
    };
    walk.directories()?;
    let harvest = walk.contents(store, progress)?;
    Ok(harvest)
}

impl Walk<'_> {
    fn shown(&self, path: &[u8]) -> String {
        beneath(self.source, path)
    }

    fn changed(&self, path: &[u8]) -> Error {
        Error::Failed(format!(
            "{} changed while it was read; import from a snapshot or stop what writes there",
            self.shown(path)
        ))
    }

    /// Says what failed; a name that has gone or become something else is a change.
    fn failed(&self, doing: &str, path: &[u8], e: io::Error) -> Error {
        match e.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ESTALE) => self.changed(path),
            _ => Error::Io(format!("{doing} {}", self.shown(path)), e),
        }
    }

    /// The first pass.
    fn directories(&mut self) -> Result<()> {
        let stat = sys::stat(&self.root).at("reading", self.source)?;
        let meta = self.meta(self.root.as_fd(), &stat, b"")?;
        self.draft.get_mut(ROOT).meta = meta;
        let mut todo = vec![Met { path: Vec::new(), id: ROOT, stat }];
        while let Some(dir) = todo.pop() {
            let deep = dir.path.split(|c| *c == b'/').count();
            if deep >= DEPTH_LIMIT || dir.path.len() + 256 > PATH_LIMIT {
                return Err(Error::Failed(format!(
                    "{} lies too deep: a path has at most {DEPTH_LIMIT} components and {PATH_LIMIT} bytes",
                    self.shown(&dir.path)
                )));
            }
            let fd = sys::open_deep(&self.root, &dir.path, Open::Dir)
                .map_err(|e| self.failed("opening", &dir.path, e))?;
            let mut names = sys::list(fd.as_fd()).map_err(|e| self.failed("listing", &dir.path, e))?;
            names.sort();
            for (name, _) in names {
                if let Some(below) = self.name(fd.as_fd(), &dir, &name)? {
                    todo.push(below);
                }
            }
            let after = sys::stat(&fd).map_err(|e| self.failed("reading", &dir.path, e))?;
            if !same(&dir.stat, &after) {
                return Err(self.changed(&dir.path));
            }
            self.dirs.push(dir);
        }
        Ok(())
    }

    /// Takes one name in; gives back a directory, to be gone through later.
    fn name(&mut self, fd: BorrowedFd<'_>, dir: &Met, name: &[u8]) -> Result<Option<Met>> {
        let path = join(&dir.path, name);
        let child = sys::open_at(fd, name, Open::Path).map_err(|e| self.failed("opening", &path, e))?;
        let stat = sys::stat(&child).map_err(|e| self.failed("reading", &path, e))?;
        let linked = (!stat.is_dir() && stat.nlink > 1).then_some((stat.dev, stat.ino));
        if let Some(id) = linked.and_then(|key| self.linked.get(&key)) {
            self.draft.link(dir.id, name, *id);
            return Ok(None);
        }
        let meta = self.meta(child.as_fd(), &stat, &path)?;
        let content = match stat.format() {
            libc::S_IFDIR => Content::Dir { opaque: false },
            libc::S_IFREG => Content::File { object: Digest([0; Digest::LEN]), size: stat.size },
            libc::S_IFLNK => {
                let target = sys::readlink_at(fd, name).map_err(|e| self.failed("reading", &path, e))?;
                Content::Symlink(target)
            }
            libc::S_IFCHR => Content::Char(stat.rdev.0, stat.rdev.1),
            libc::S_IFBLK => Content::Block(stat.rdev.0, stat.rdev.1),
            libc::S_IFIFO => Content::Fifo,
            libc::S_IFSOCK => Content::Socket,
            other => {
                let shown = self.shown(&path);
                return Err(Error::Failed(format!(
                    "{shown} has the unknown file type {other:o}; leave it out"
                )));
            }
        };
        let id = self.draft.add(meta, content);
        self.draft.link(dir.id, name, id);
        if let Some(key) = linked {
            self.linked.insert(key, id);
        }
        if stat.is_dir() {
            return Ok(Some(Met { path, id, stat }));
        }
        if stat.is_file() {
            self.files.push(Met { path, id, stat });
            return Ok(None);
        }
        let after = sys::stat_at(fd, name).map_err(|e| self.failed("reading", &path, e))?;
        if same(&stat, &after) { Ok(None) } else { Err(self.changed(&path)) }
    }

    fn meta(&self, fd: BorrowedFd<'_>, stat: &Stat, path: &[u8]) -> Result<Meta> {
        let mut meta = Meta {
            mode: stat.mode & 0o7777,
            uid: stat.uid,
            gid: stat.gid,
            mtime: stat.mtime,
            ..Meta::default()
        };
        let failed = |e| self.failed("reading the extended attributes of", path, e);
        for name in xattr::list(fd).map_err(failed)? {
            if let Some(value) = xattr::get(fd, &name).map_err(failed)? {
                meta.xattrs.insert(name, value);
            }
        }
        Ok(meta)
    }

    /// The second pass.
    fn contents(mut self, store: &Store, progress: &dyn Progress) -> Result<Harvest> {
        let notes = Hashed::open(store, self.source);
        let mut harvest = Harvest {
            files: self.files.len() as u64,
            bytes: self.files.iter().fold(0u64, |n, f| n.saturating_add(f.stat.size)),
            ..Harvest::default()
        };
        progress.begin("reading the source", Some(harvest.bytes));
        let read = AtomicU64::new(0);
        let digest_of = |intake: &Intake<'_>, met: &Met| -> Result<Digest> {
            let digest = match notes.get(store, &met.stat) {
                Some(digest) => {
                    progress.advance(0, met.stat.size);
                    digest
                }
                None => {
                    let began = Time::now();
                    let digest = self.content(intake, met, progress)?;
                    read.fetch_add(met.stat.size, Ordering::Relaxed);
                    notes.note(&met.stat, digest, began);
                    digest
                }
            };
            progress.advance(1, 0);
            Ok(digest)
        };
        let mut rest = &self.files[..];
        let mut found: Vec<(InodeId, Digest)> = Vec::with_capacity(rest.len());
        thread::scope(|scope| -> Result<()> {
            // While one batch is brought to the disk, the next is read and hashed.
            let mut before: Option<ScopedJoinHandle<'_, Result<()>>> = None;
            while !rest.is_empty() {
                let (batch, others) = rest.split_at(batch_length(rest));
                rest = others;
                let intake = Intake::begin(store)?;
                let digests = batch
                    .par_iter()
                    .map(|met| Ok((met.id, digest_of(&intake, met)?)))
                    .collect::<Result<Vec<_>>>()?;
                harvest.new_bytes += intake.new_bytes();
                found.extend(digests);
                if let Some(before) = before.take() {
                    joined(before)?;
                    notes.save(true)?;
                }
                before = Some(scope.spawn(move || intake.give_names()));
            }
            if let Some(before) = before {
                progress.begin("writing to the disk", None);
                joined(before)?;
            }
            Ok(())
        })?;
        notes.save(false)?;
        harvest.bytes_read = read.into_inner();
        sync_names(store)?;
        self.check_unchanged()?;
        for (id, digest) in found {
            if let Content::File { object, .. } = &mut self.draft.get_mut(id).content {
                *object = digest;
            }
        }
        harvest.draft = self.draft;
        Ok(harvest)
    }

    fn content(&self, intake: &Intake<'_>, met: &Met, progress: &dyn Progress) -> Result<Digest> {
        let failed = |e| self.failed("reading", &met.path, e);
        let file = File::from(sys::open_deep(&self.root, &met.path, Open::Read).map_err(failed)?);
        if !same(&met.stat, &sys::stat(&file).map_err(failed)?) {
            return Err(self.changed(&met.path));
        }
        let added = intake.add_file(&file, met.stat.size, &|n| progress.advance(0, n))?;
        let (digest, size) = match added {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(self.changed(&met.path)),
            r => r.map_err(failed)?,
        };
        if size != met.stat.size || !same(&met.stat, &sys::stat(&file).map_err(failed)?) {
            return Err(self.changed(&met.path));
        }
        Ok(digest)
    }

    /// Looks at everything once more.
    fn check_unchanged(&self) -> Result<()> {
        self.dirs.par_iter().chain(self.files.par_iter()).try_for_each(|met| {
            let failed = |e| self.failed("reading", &met.path, e);
            let fd = sys::open_deep(&self.root, &met.path, Open::Path).map_err(failed)?;
            let now = sys::stat(&fd).map_err(failed)?;
            if same(&met.stat, &now) { Ok(()) } else { Err(self.changed(&met.path)) }
        })
    }
}

fn joined(naming: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    naming.join().unwrap_or_else(|_| Err(Error::Failed("a thread ended early; import again".into())))
}

fn batch_length(files: &[Met]) -> usize {
    let mut bytes = 0u64;
    let fits = |f: &&Met| {
        let room = bytes < BATCH_BYTES;
        bytes = bytes.saturating_add(f.stat.size);
        room
    };
    files.iter().take(BATCH_FILES).take_while(fits).count()
}

/// Whether nothing happened to a file between two looks. Every change of content, attributes or names moves
/// the inode's change time.
fn same(a: &Stat, b: &Stat) -> bool {
    let facts = |s: &Stat| (s.dev, s.ino, s.mode, s.mtime, s.ctime);
    facts(a) == facts(b) && (a.is_dir() || a.size == b.size)
}
