//! Partly copied files as the view knows them: who they are, and how they are completed in the background.
//!
//! Each has an entry in the work directory, of which the name is made of its file handle, so that it is found again
//! after a crash and under whatever name. The entry is there before the file has its name and goes after its mark; one
//! that leads to nothing, or to a file that is whole, is removed. A file without an entry (its user layer was copied
//! elsewhere) is known again once somebody opens it.
//!
//! Lock order: `Partials::working` (slow: one piece of work at a time) → `Partials::known` → [`Filling`]'s own.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::lower::Content;
use super::marks::Partial;
use super::node::Node;
use super::partial::{self, Filling};
use super::swap::Notice;
use super::upper::UserLayer;
use super::{Answer, Fail, View};
use crate::sys::fs as sys;
use crate::sys::handle;

/// Which files are copied in pieces, and when.
#[derive(Clone, Copy, Debug)]
pub struct Pieces {
    /// Those of this size and more, in bytes.
    pub from: u64,
    /// How long each is left alone at first: what is written over as a whole need not be copied.
    pub grace: Duration,
}

impl Default for Pieces {
    fn default() -> Pieces {
        Pieces { from: 4 << 20, grace: Duration::from_secs(1) }
    }
}

/// Names of entries in the work directory begin so.
const ENTRY: &str = "partial#";

/// How long a file is left alone that could not be completed.
const AGAIN: Duration = Duration::from_secs(5);

/// How much is brought in before it is waited for the disk, in bytes.
const AT_ONCE: u64 = 16 << 20;

/// The partly copied files of a view.
#[derive(Debug)]
pub struct Partials {
    pieces: Pieces,
    /// The inode number of the work directory.
    home: u64,
    /// By the host's inode number.
    known: Mutex<HashMap<u64, Known>>,
    working: Mutex<Option<Work>>,
}

#[derive(Clone, Debug)]
struct Known {
    filling: Arc<Filling>,
    /// Not before.
    due: Instant,
}

/// How much of the disk is left to others, in bytes: nobody waits for the completion of a file.
const SPARE: u64 = 8 << 20;

/// The file that is being completed.
#[derive(Debug)]
struct Work {
    filling: Arc<Filling>,
    file: File,
    object: Arc<File>,
    at: u64,
    /// Brought in and not waited for.
    unsynced: u64,
}

/// What is still to be copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Files.
    pub files: u64,
    /// Bytes, of the holes in them.
    pub bytes: u64,
    /// Why one of them cannot be completed just now: an error number.
    pub stuck: Option<i32>,
}

impl Partials {
    /// For a user layer: files are copied in pieces where its file system suits that.
    pub fn new(user: Option<&UserLayer>, pieces: Pieces) -> Partials {
        let suits = user.is_some_and(|user| {
            let magic = sys::space(&user.work).map_or(0, |space| space.magic);
            // What is found again by its handle must be opened by it.
            let opens = || handle::of(&user.work).is_ok_and(|h| handle_opens(user, &h));
            partial::suits(magic) && opens()
        });
        let from = if suits { pieces.from } else { u64::MAX };
        let home = user.and_then(|user| sys::stat(&user.work).ok()).map_or(0, |stat| stat.ino);
        Partials {
            pieces: Pieces { from, ..pieces },
            home,
            known: Mutex::default(),
            working: Mutex::default(),
        }
    }

    /// The known one of that inode number of the host.
    pub fn get(&self, host: u64) -> Option<Arc<Filling>> {
        self.known.lock().get(&host).map(|k| k.filling.clone())
    }
}

/// Whether this process may open files by their handles: a directory refuses to be written, and that is all.
fn handle_opens(user: &UserLayer, of: &[u8]) -> bool {
    matches!(handle::open(&user.work, of), Err(e) if e.raw_os_error() == Some(libc::EISDIR))
}

/// The name of a file's entry in the work directory `home`, an inode number: one that was copied with its directory leads
/// to a file that is somebody else's.
fn entry_of(home: u64, of: &[u8]) -> Vec<u8> {
    let hex: String = of.iter().map(|b| format!("{b:02x}")).collect();
    format!("{ENTRY}{home:x}.{hex}").into_bytes()
}

/// The handle in the name of an entry; `None` where it is none, or not of this work directory.
fn handle_of(home: u64, entry: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(entry).ok()?;
    let (owner, hex) = text.strip_prefix(ENTRY)?.split_once('.')?;
    if u64::from_str_radix(owner, 16).ok()? != home {
        return None;
    }
    let digits = hex.as_bytes().chunks(2);
    digits.map(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok()).collect()
}

/// How many entries a work directory has that is not in use.
pub fn entries(work: &std::path::Path) -> io::Result<u64> {
    let dir = sys::open_dir(work)?;
    let home = sys::stat(&dir)?.ino;
    let names = sys::list(dir.as_fd())?;
    Ok(names.iter().filter(|(name, _)| handle_of(home, name).is_some()).count() as u64)
}

impl View {
    /// Whether a file of the stack that comes up is copied in pieces.
    pub(crate) fn in_pieces(&self, content: &Content) -> bool {
        matches!(content, Content::Object(..)) && content.size() >= self.partials.pieces.from
    }

    /// Makes the empty `file` stand for an object of which nothing is copied yet, as far as its mark goes, which the
    /// caller sets. `None`: its file system does not show holes after all.
    pub(crate) fn begin_pieces(
        &self,
        file: &File,
        content: &Content,
        from: &File,
    ) -> Answer<Option<Partial>> {
        let Content::Object(object, size) = content else { return Ok(None) };
        let user = self.writable()?;
        file.set_len(*size)?;
        if !partial::shows_holes(file)? {
            return Ok(None);
        }
        let partial = Partial { object: *object, size: *size, limit: *size };
        let of = handle::of(file)?;
        match sys::mknod_at(&user.work, &entry_of(self.partials.home, &of), libc::S_IFREG | 0o600, (0, 0)) {
            Err(e) if e.raw_os_error() != Some(libc::EEXIST) => return Err(e.into()),
            _ => {}
        }
        let filling = Arc::new(Filling::of(file, &partial, of, user.marks)?);
        let _ = filling.weight.set(sys::stat(from)?.blocks);
        // It may have the inode number of one that was removed.
        let known = Known { filling: filling.clone(), due: Instant::now() + self.partials.pieces.grace };
        self.partials.known.lock().insert(filling.host, known);
        Ok(Some(partial))
    }

    /// The state of a file of the user layer whose content is not all there yet. `open` is any descriptor of it.
    pub(crate) fn filling(&self, node: &Node, open: impl AsFd) -> Answer<Option<Arc<Filling>>> {
        if node.state().upper.as_ref().is_none_or(|m| m.partial.is_none()) {
            return Ok(None);
        }
        let found = self.filling_of(open.as_fd())?;
        if found.is_none()
            && let Some(marks) = &mut node.state().upper
        {
            marks.partial = None;
        }
        Ok(found)
    }

    fn filling_of(&self, open: impl AsFd) -> Answer<Option<Arc<Filling>>> {
        let user = self.user.as_ref().ok_or(Fail(libc::EIO))?;
        let host = sys::stat(open.as_fd())?.ino;
        let mut known = self.partials.known.lock();
        if let Some(known) = known.get(&host) {
            return Ok(Some(known.filling.clone()));
        }
        let Some(mark) = user.marks.partial(open.as_fd())? else { return Ok(None) };
        let of = handle::of(open.as_fd())?;
        let filling = Arc::new(Filling::of(open, &mark, of, user.marks)?);
        // One that is missing is found out when it is read.
        let _ = self.open_object(&filling);
        known.insert(
            host,
            Known { filling: filling.clone(), due: Instant::now() + self.partials.pieces.grace },
        );
        Ok(Some(filling))
    }

    /// The object that a partly copied file is copied from, open.
    pub(crate) fn object_of(&self, node: &Node, filling: &Filling) -> io::Result<Arc<File>> {
        if let Some(object) = node.state().object.clone() {
            return Ok(object);
        }
        let object = self.open_object(filling)?;
        let mut state = node.state();
        if state.cached + state.passed > 0 {
            state.object = Some(object.clone());
        }
        Ok(object)
    }

    fn open_object(&self, filling: &Filling) -> io::Result<Arc<File>> {
        let (digest, size) = filling.object;
        let library = self.library.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))?;
        let object = library.objects.get(&digest, size)?;
        if filling.weight.get().is_none() {
            let _ = filling.weight.set(sys::stat(&object)?.blocks);
        }
        Ok(Arc::new(object))
    }

    /// Finds the files again that an earlier daemon did not complete.
    pub fn recall(&self) -> Answer<()> {
        let user = self.writable()?;
        for (name, _) in sys::list(user.work.as_fd())? {
            if !name.starts_with(ENTRY.as_bytes()) {
                continue;
            }
            let of = handle_of(self.partials.home, &name);
            match of.map_or(Ok(false), |of| self.recall_one(&of)) {
                Ok(true) => {}
                Ok(false) => sys::unlink_at(&user.work, &name)?,
                // The others are found all the same.
                Err(e) => log::error!("a partly copied file cannot be completed: error {}", e.0),
            }
        }
        Ok(())
    }

    /// Whether a handle leads to a partly copied file.
    fn recall_one(&self, of: &[u8]) -> Answer<bool> {
        let user = self.writable()?;
        let file = match handle::open(&user.work, of) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ESTALE | libc::EINVAL)) => return Ok(false),
            r => r?,
        };
        let is = sys::stat(&file)?.nlink > 0 && user.marks.read(&file)?.partial.is_some();
        Ok(is && self.filling_of(&file)?.is_some())
    }

    /// What is still to be copied.
    pub fn missing(&self) -> Missing {
        let all: Vec<_> = self.partials.known.lock().values().map(|k| k.filling.clone()).collect();
        let mut out = Missing::default();
        for filling in all {
            let Some(file) = self.open_partial(&filling).ok().flatten() else { continue };
            out.files += 1;
            out.bytes += filling.missing(&file).unwrap_or(0);
            out.stuck = out.stuck.or(*filling.stuck.lock());
        }
        out
    }

    /// Opens a partly copied file; `None` if it is not there any more.
    fn open_partial(&self, filling: &Filling) -> io::Result<Option<File>> {
        let Some(user) = &self.user else { return Ok(None) };
        match handle::open(&user.work, &filling.handle) {
            Ok(fd) => Ok(Some(File::from(fd)).filter(|f| sys::stat(f).is_ok_and(|s| s.nlink > 0))),
            Err(e) if e.raw_os_error() == Some(libc::ESTALE) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Does a piece of the work that is left; whether there was any. With `now`, also of files that are to be left alone
    /// for a while.
    pub fn complete_some(&self, now: bool) -> bool {
        let mut working = self.partials.working.lock();
        if working.is_none() {
            let Some(filling) = self.next_partial(now) else { return false };
            match self.begin_work(&filling) {
                Ok(Some(work)) => *working = Some(work),
                Ok(None) => self.forget_partial(&filling),
                Err(e) => self.put_off(&filling, &e),
            }
        }
        let Some(mut work) = working.take() else { return true };
        match self.work_on(&mut work) {
            Ok(true) => *working = Some(work),
            Ok(false) => self.forget_partial(&work.filling),
            Err(e) => self.put_off(&work.filling, &e),
        }
        true
    }

    /// Completes every file; an error if one cannot be.
    pub fn complete_all(&self) -> Answer<()> {
        for known in self.partials.known.lock().values() {
            *known.filling.stuck.lock() = None;
        }
        loop {
            let worked = self.complete_some(true);
            let known: Vec<_> = self.partials.known.lock().values().cloned().collect();
            let open = known.iter().filter(|k| self.open_partial(&k.filling).is_ok_and(|f| f.is_some()));
            let stuck: Vec<_> = open.map(|k| *k.filling.stuck.lock()).collect();
            match stuck.iter().find_map(|s| *s) {
                Some(errno) if stuck.iter().all(Option::is_some) => return Err(Fail(errno)),
                _ if stuck.is_empty() || !worked => return Ok(()),
                _ => {}
            }
        }
    }

    /// Completes one file at once.
    pub(crate) fn complete_node(&self, node: &Node, open: impl AsFd) -> Answer<()> {
        let Some(filling) = self.filling(node, open)? else { return Ok(()) };
        // The piece that is being worked on is done before.
        let mut working = self.partials.working.lock();
        working.take_if(|w| Arc::ptr_eq(&w.filling, &filling));
        let Some(mut work) = self.begin_work(&filling)? else { return Ok(()) };
        while self.work_on(&mut work)? {}
        self.forget_partial(&filling);
        Ok(())
    }

    fn next_partial(&self, now: bool) -> Option<Arc<Filling>> {
        let known = self.partials.known.lock();
        let due = |k: &&Known| k.due <= Instant::now() || (now && k.filling.stuck.lock().is_none());
        known.values().filter(due).min_by_key(|k| k.due).map(|k| k.filling.clone())
    }

    /// Opens what is needed. `None`: the file is gone.
    fn begin_work(&self, filling: &Arc<Filling>) -> io::Result<Option<Work>> {
        let Some(file) = self.open_partial(filling)? else { return Ok(None) };
        let object = self.open_object(filling)?;
        Ok(Some(Work { filling: filling.clone(), file, object, at: 0, unsynced: 0 }))
    }

    /// A piece of the work on one file; whether there is more.
    fn work_on(&self, work: &mut Work) -> io::Result<bool> {
        if sys::stat(&work.file)?.nlink == 0 {
            return Ok(false);
        }
        let space = sys::space(&work.file)?;
        if space.bavail.saturating_mul(u64::from(space.frsize)) < SPARE {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        if let Some((next, brought)) = work.filling.fill(&work.file, &work.object, work.at)? {
            work.at = next;
            work.unsynced += brought;
            if work.unsynced >= AT_ONCE {
                work.unsynced = 0;
                sys::sync(&work.file, true)?;
            }
            return Ok(true);
        }
        sys::sync(&work.file, true)?;
        if !work.filling.end(&work.file, &work.object)? {
            work.at = 0;
            return Ok(true);
        }
        self.completed(work.filling.host);
        Ok(false)
    }

    /// Nodes of a file that is whole now: the next open, once all are closed, goes past the daemon.
    fn completed(&self, host: u64) {
        for node in self.nodes.all() {
            let mut state = node.state();
            if state.host == Some(host)
                && let Some(marks) = state.upper.as_mut().filter(|m| m.partial.is_some())
            {
                marks.partial = None;
                drop(state);
                self.notices.lock().push(Notice::Attributes(node.id));
            }
        }
    }

    /// Nothing is to be done for a file any more: it is whole, or it is gone. One that is open without a name stays known
    /// while it is.
    fn forget_partial(&self, filling: &Arc<Filling>) {
        let open = filling.limit() > 0
            && self.user.as_ref().is_some_and(|user| handle::open(&user.work, &filling.handle).is_ok());
        let mut known = self.partials.known.lock();
        if open {
            if let Some(known) = known.get_mut(&filling.host).filter(|k| Arc::ptr_eq(&k.filling, filling)) {
                known.due = Instant::now() + AGAIN;
            }
        } else if known.get(&filling.host).is_some_and(|k| Arc::ptr_eq(&k.filling, filling)) {
            known.remove(&filling.host);
        }
        drop(known);
        if let Some(user) = &self.user {
            // One that is not there is as good.
            let _ = sys::unlink_at(&user.work, &entry_of(self.partials.home, &filling.handle));
        }
    }

    fn put_off(&self, filling: &Arc<Filling>, e: &io::Error) {
        let errno = e.raw_os_error().unwrap_or(libc::EIO);
        let before = filling.stuck.lock().replace(errno);
        if before != Some(errno) {
            log::error!(
                "copying object {} into the user layer: {}; it is tried again",
                filling.object.0,
                crate::error::words(e)
            );
        }
        if let Some(known) = self.partials.known.lock().get_mut(&filling.host) {
            known.due = Instant::now() + AGAIN;
        }
    }
}
