//! A file of the user layer whose content is not all there yet: what block-level copy-up makes.
//!
//! Its mark names an object and a *limit*. A hole of the file below the limit stands for the object's bytes; what is
//! data is the user's, and so is everything from the limit on. The file is its own map of extents:
//!
//! ```text
//!            0                                limit        size
//!   file     |··hole··|data|·····hole·····|data|··hole··|data|
//!   shows    | object |user|    object    |user| zeroes |user|
//! ```
//!
//! # What is assumed of the disk
//! A block that was written and not synced is a hole again after a power cut, or data: never allocated and of unknown
//! content. Journaling file systems that allocate late keep that; [`suits`] knows which. A hole stays one until it is
//! written, whoever reads it; so nothing here makes unwritten extents below the limit.
//!
//! # Invariants
//! 1. Below the limit a block is written as a whole: what a write leaves of it comes from the object first.
//! 2. The limit is never above the length. The file is cut before the mark is lowered, and no file grows before its mark
//!    is: so between the two the mark's limit counts up to the length only.
//! 3. The mark goes when every hole below the limit is one of the object too and the bytes are on the disk.
//! 4. Filling is not seen: it leaves the modification time as it is. Until it has set it back, the mark `times` holds it.
//!
//! `Filling::limit` is the last lock that anybody takes; whoever reads or writes holds it while he does, and what is slow,
//! reading the object, is done before where that can be.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::marks::{Namespace, Partial, encode_times};
use crate::store::Digest;
use crate::sys::fs::{self as sys, SetTime};

/// How much is written at a time while others wait, in bytes.
const PIECE: u64 = 512 << 10;

/// The block that is brought in as a whole, at least.
const BLOCK: u64 = 4096;

/// ext2, ext3 and ext4 have one number; those of them that tell no holes are found out by [`shows_holes`].
const EXT4: u64 = 0xEF53;

/// Whether a file system is known to keep what [`self`] assumes of it, by its number (`statfs(2)`).
pub fn suits(magic: u64) -> bool {
    magic == EXT4
}

/// Whether an empty file of some length is seen to be one hole.
pub fn shows_holes(file: &File) -> io::Result<bool> {
    Ok(sys::seek_extent(file, 0, false)?.is_none() && sys::seek_extent(file, 0, true)? == Some(0))
}

/// Opens the object when it is needed.
pub type Source<'a> = dyn Fn() -> io::Result<Arc<File>> + 'a;

/// A partly copied file, shared by those who read, write and complete it.
#[derive(Debug)]
pub struct Filling {
    /// The host's inode number.
    pub host: u64,
    /// What leads to it (see [`crate::sys::handle`]).
    pub handle: Vec<u8>,
    /// The object and its length.
    pub object: (Digest, u64),
    /// How many blocks of 512 bytes the object takes, where that is known.
    pub weight: OnceLock<u64>,
    /// Why it cannot be completed just now: an error number.
    pub stuck: Mutex<Option<i32>>,
    marks: Namespace,
    block: u64,
    limit: RwLock<Limit>,
}

#[derive(Debug)]
struct Limit {
    /// Holes below stand for the object's bytes.
    now: u64,
    /// What the mark says.
    marked: u64,
}

impl Filling {
    /// Of a file that has the mark `partial`. Puts right what a crash left.
    pub fn of(file: impl AsFd, partial: &Partial, handle: Vec<u8>, marks: Namespace) -> io::Result<Filling> {
        let fd = file.as_fd();
        if let Some((atime, mtime)) = marks.times(fd)? {
            sys::set_times(fd, SetTime::To(atime), SetTime::To(mtime))?;
            marks.clear(fd, &marks.own("times"))?;
        }
        Filling::new(fd, partial, handle, marks)
    }

    fn new(fd: impl AsFd, partial: &Partial, handle: Vec<u8>, marks: Namespace) -> io::Result<Filling> {
        let stat = sys::stat(fd)?;
        Ok(Filling {
            host: stat.ino,
            handle,
            object: (partial.object, partial.size),
            weight: OnceLock::new(),
            stuck: Mutex::default(),
            marks,
            block: u64::from(stat.blksize).max(BLOCK),
            limit: RwLock::new(Limit { now: partial.limit.min(stat.size), marked: partial.limit }),
        })
    }

    /// Nothing is filled while this is held: what the file says of itself is right.
    pub fn still(&self) -> RwLockReadGuard<'_, impl Sized> {
        self.limit.read()
    }

    /// How many blocks of 512 bytes it takes or will take, of which `own` are there; not more than its length asks for.
    pub fn blocks(&self, own: u64, size: u64) -> u64 {
        let limit = self.limit().min(size);
        if limit == 0 {
            return own;
        }
        let all = limit.div_ceil(BLOCK) * (BLOCK / 512);
        let to_come = self.weight.get().map_or(all, |weight| *weight);
        own.max(all.min(own + to_come))
    }

    /// Below this, holes stand for the object's bytes; 0: no more.
    pub fn limit(&self) -> u64 {
        self.limit.read().now
    }

    /// Reads what the file shows, at most `buf.len()` bytes; how many there were.
    pub fn read(&self, file: &File, source: &Source<'_>, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        let limit = self.limit.read();
        let size = sys::stat(file)?.size;
        let end = size.min(at.saturating_add(buf.len() as u64)).max(at);
        let mut pos = at;
        while pos < end {
            let (hole, until) = extent(file, pos)?;
            let below = hole && pos < limit.now;
            let until = if below { until.min(limit.now) } else { until }.min(end);
            let piece = buf.get_mut((pos - at) as usize..(until - at) as usize).unwrap_or_default();
            if below {
                self.read_object(&*source()?, pos, piece)?;
            } else {
                file.read_exact_at(piece, pos)?;
            }
            pos = until;
        }
        Ok((end - at) as usize)
    }

    fn read_object(&self, object: &File, at: u64, buf: &mut [u8]) -> io::Result<()> {
        object.read_exact_at(buf, at).map_err(|e| {
            let words = crate::error::words(&e);
            log::error!("object {} cannot be read at {at}: {words}; run `reroot fsck --deep`", self.object.0);
            io::Error::from_raw_os_error(libc::EIO)
        })
    }

    /// Writes all of `data`.
    pub fn write(&self, file: &File, source: &Source<'_>, at: u64, data: &[u8]) -> io::Result<()> {
        self.warm(source, at, at + data.len() as u64);
        let mut limit = self.limit.write();
        self.write_whole(&mut limit, file, source, at, data)
    }

    fn write_whole(
        &self,
        limit: &mut Limit,
        file: &File,
        source: &Source<'_>,
        at: u64,
        data: &[u8],
    ) -> io::Result<()> {
        self.bring_edges(limit, file, source, at, at + data.len() as u64)?;
        self.keep_mark(limit, file)?;
        self.put(limit, file, at, data)
    }

    /// Writes to the file. Where that fails, what was a hole before is one again: on a full disk the file system may have
    /// given it blocks, of zeroes, before it found no more.
    fn put(&self, limit: &Limit, file: &File, at: u64, data: &[u8]) -> io::Result<()> {
        let end = at + data.len() as u64;
        let mut holes = Vec::new();
        let mut pos = at;
        while pos < end.min(limit.now) {
            let (hole, until) = extent(file, pos)?;
            if hole {
                holes.push((pos, until.min(end.min(limit.now))));
            }
            pos = until;
        }
        let mut done = 0;
        let failed = loop {
            let Some(rest) = data.get(done..).filter(|r| !r.is_empty()) else { return Ok(()) };
            match file.write_at(rest, at + done as u64) {
                Ok(0) => break io::ErrorKind::WriteZero.into(),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break e,
            }
        };
        let good = at + done as u64;
        for (from, to) in holes.into_iter().filter(|(_, to)| *to > good) {
            let from = from.max(good);
            let (from, to) = (from - from % self.block, to.div_ceil(self.block) * self.block);
            let punch = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
            if let Err(e) = sys::fallocate(file, punch, from, to - from) {
                let words = crate::error::words(&e);
                log::error!("a write failed and cannot be undone, {from} to {to} may show zeroes: {words}");
            }
        }
        Err(failed)
    }

    /// Reads the blocks that a change of `from..to` leaves in part, so that they are in memory when others have to wait.
    /// An error is found again later.
    fn warm(&self, source: &Source<'_>, from: u64, to: u64) {
        let limit = self.limit.read().now;
        for at in [from, to] {
            let start = at - at % self.block;
            if start != at
                && start < limit
                && let Ok(object) = source()
            {
                let mut buf = vec![0; self.block as usize];
                let _ = object.read_at(&mut buf, start);
            }
        }
    }

    /// Brings in the blocks of which a change of `from..to` leaves a part.
    fn bring_edges(
        &self,
        limit: &Limit,
        file: &File,
        source: &Source<'_>,
        from: u64,
        to: u64,
    ) -> io::Result<()> {
        for at in [from, to] {
            let start = at - at % self.block;
            if start != at && start < limit.now {
                self.bring(limit, file, source, start, start + self.block)?;
            }
        }
        Ok(())
    }

    /// Brings in what is missing of the blocks of `from..to` below the limit, but not holes of the object.
    fn bring(&self, limit: &Limit, file: &File, source: &Source<'_>, from: u64, to: u64) -> io::Result<u64> {
        // A block of which a part is written is data, and shows zeroes elsewhere.
        let end = to.div_ceil(self.block).saturating_mul(self.block).min(limit.now);
        let (mut pos, mut brought) = (from - from % self.block, 0);
        let mut buf = Vec::new();
        while pos < end {
            let (hole, until) = extent(file, pos)?;
            let until = until.min(end);
            if !hole {
                pos = until;
                continue;
            }
            let object = source()?;
            let (nothing, its_end) = extent(&object, pos)?;
            let until = until.min(its_end).min(pos + PIECE);
            if !nothing {
                buf.resize((until - pos) as usize, 0);
                self.read_object(&object, pos, &mut buf)?;
                self.put(limit, file, pos, &buf)?;
                brought += until - pos;
            }
            pos = until;
        }
        Ok(brought)
    }

    /// Makes the mark say what the limit is, before the file may grow.
    fn keep_mark(&self, limit: &mut Limit, file: impl AsFd) -> io::Result<()> {
        if limit.marked != limit.now {
            self.set_mark(file, limit.now)?;
            limit.marked = limit.now;
        }
        Ok(())
    }

    fn set_mark(&self, file: impl AsFd, limit: u64) -> io::Result<()> {
        if limit == 0 {
            return self.marks.clear(file, &self.marks.own("partial"));
        }
        let partial = Partial { object: self.object.0, size: self.object.1, limit };
        self.marks.set_own(file, "partial", &partial.encode())
    }

    /// Cuts or extends the file.
    pub fn truncate(&self, file: &File, size: u64) -> io::Result<()> {
        let mut limit = self.limit.write();
        if size > limit.now {
            self.keep_mark(&mut limit, file)?;
        }
        file.set_len(size)?;
        limit.now = limit.now.min(size);
        self.keep_mark(&mut limit, file)
    }

    /// `fallocate(2)`. What is to be a hole below the limit becomes zeroes on the disk.
    pub fn allocate(&self, file: &File, source: &Source<'_>, mode: u32, at: u64, len: u64) -> io::Result<()> {
        let end = at.checked_add(len).ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))?;
        let keeps = libc::FALLOC_FL_KEEP_SIZE as u32;
        let (punches, zeroes) = (libc::FALLOC_FL_PUNCH_HOLE as u32, libc::FALLOC_FL_ZERO_RANGE as u32);
        match mode & !keeps {
            0 => {
                let mut pos = at;
                loop {
                    // Others may come between the pieces.
                    let mut limit = self.limit.write();
                    let until = end.min(limit.now).min(pos.saturating_add(PIECE));
                    if pos >= until {
                        self.bring_edges(&limit, file, source, at, end)?;
                        self.keep_mark(&mut limit, file)?;
                        return sys::fallocate(file, mode, at, len);
                    }
                    self.bring(&limit, file, source, pos, until)?;
                    pos = until;
                }
            }
            kind if kind == punches || kind == zeroes => {
                let zero = vec![0; PIECE.min(len) as usize];
                let mut pos = at;
                loop {
                    let mut limit = self.limit.write();
                    if end >= limit.now {
                        // What is left reaches the limit: it ends before. The file system makes the blocks on both edges
                        // its own.
                        self.bring_edges(&limit, file, source, pos, end)?;
                        limit.now = limit.now.min(pos);
                        self.keep_mark(&mut limit, file)?;
                        return sys::fallocate(file, mode, pos, end - pos);
                    }
                    let n = (end - pos).min(PIECE);
                    let zero = zero.get(..n as usize).unwrap_or_default();
                    self.write_whole(&mut limit, file, source, pos, zero)?;
                    pos += n;
                    if pos == end {
                        return Ok(());
                    }
                }
            }
            _ => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        }
    }

    /// The next data or hole from `offset` on; `None`: past the end.
    pub fn seek(&self, file: &File, source: &Source<'_>, offset: u64, hole: bool) -> io::Result<Option<u64>> {
        let limit = self.limit.read();
        let size = sys::stat(file)?.size;
        // Blocks are data or holes as a whole.
        let seam = (limit.now.div_ceil(self.block) * self.block).min(size);
        let mut pos = offset;
        while pos < size {
            let (mut empty, mut until) = extent(file, pos)?;
            if empty && pos < seam {
                let (nothing, its_end) = extent(&*source()?, pos.min(limit.now - 1))?;
                (empty, until) = (nothing, until.min(if its_end < limit.now { its_end } else { seam }));
            }
            if empty == hole {
                return Ok(Some(pos));
            }
            pos = until;
        }
        // The end is a hole of no length.
        Ok((hole && offset < size).then_some(size))
    }

    /// How many bytes are still to come, holes of the object among them.
    pub fn missing(&self, file: &File) -> io::Result<u64> {
        let limit = self.limit.read().now;
        let (mut pos, mut sum) = (0, 0);
        while pos < limit {
            let (hole, until) = extent(file, pos)?;
            let until = until.min(limit);
            if hole {
                sum += until - pos;
            }
            pos = until;
        }
        Ok(sum)
    }

    /// Brings in a piece of what is missing from `at` on; where to go on, and how much was brought. `None`: there is no
    /// more above `at`.
    pub fn fill(&self, file: &File, object: &Arc<File>, at: u64) -> io::Result<Option<(u64, u64)>> {
        let end = self.limit.read().now;
        let Some(from) = self.next_missing(file, object, at, end)? else { return Ok(None) };
        let mut buf = vec![0; PIECE.min(end - from) as usize];
        self.read_object(object, from, &mut buf)?;
        let until = from + buf.len() as u64;
        let limit = self.limit.write();
        let stat = sys::stat(file)?;
        self.marks.set_own(file, "times", &encode_times((stat.atime, stat.mtime)))?;
        let source = || Ok(object.clone());
        let brought = self.bring(&limit, file, &source, from, until);
        let set = sys::set_times(file, SetTime::To(stat.atime), SetTime::To(stat.mtime));
        if set.is_ok() {
            self.marks.clear(file, &self.marks.own("times"))?;
        }
        set?;
        Ok(Some((until, brought?)))
    }

    /// The first byte from `at` on that the object has and the file does not.
    fn next_missing(&self, file: &File, object: &File, at: u64, end: u64) -> io::Result<Option<u64>> {
        let mut pos = at;
        while pos < end {
            let (hole, until) = extent(file, pos)?;
            if !hole {
                pos = until;
                continue;
            }
            let (nothing, its_end) = extent(object, pos)?;
            if !nothing {
                return Ok(Some(pos));
            }
            pos = until.min(its_end);
        }
        Ok(None)
    }

    /// Takes the mark away if nothing is missing; whether it did. What was brought in is on the disk already.
    pub fn end(&self, file: &File, object: &File) -> io::Result<bool> {
        let mut limit = self.limit.write();
        if limit.now > 0 && self.next_missing(file, object, 0, limit.now)?.is_some() {
            return Ok(false);
        }
        self.set_mark(file, 0)?;
        (limit.now, limit.marked) = (0, 0);
        Ok(true)
    }
}

/// What a partly copied file shows, from its beginning to its end. Changes nothing.
#[derive(Debug)]
pub struct Merged {
    filling: Filling,
    file: File,
    object: Arc<File>,
    at: u64,
}

impl Merged {
    /// Of an open file with its mark and the object that that names.
    pub fn new(file: File, partial: &Partial, object: Arc<File>, marks: Namespace) -> io::Result<Merged> {
        let filling = Filling::new(&file, partial, Vec::new(), marks)?;
        Ok(Merged { filling, file, object, at: 0 })
    }
}

impl io::Read for Merged {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.filling.read(&self.file, &|| Ok(self.object.clone()), self.at, buf)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// Whether a file has a hole at a place within it, and where that, or the data that is there, ends.
fn extent(file: &File, at: u64) -> io::Result<(bool, u64)> {
    match sys::seek_extent(file, at, false)? {
        None => Ok((true, u64::MAX)),
        Some(data) if data > at => Ok((true, data)),
        Some(_) => Ok((false, sys::seek_extent(file, at, true)?.unwrap_or(u64::MAX).max(at + 1))),
    }
}

#[cfg(test)]
#[path = "partial_tests.rs"]
mod tests;
