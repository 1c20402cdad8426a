//! Contents: opening, reading, writing.

use std::collections::HashMap;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};

use super::attributes::{Attributes, CAPABILITY};
use super::copyup::Depth;
use super::inherit::{Slot, Slots};
use super::lower::Stack;
use super::names::Make;
use super::node::Node;
use super::plant::planted;
use super::{Answer, Caller, Data, Fail, Pin, View};
use crate::sys::fs::{self as sys, Open, Space};
use crate::sys::xattr;

/// Files of the stack from this size on are read past the daemon, in bytes.
const LARGE: u64 = 1 << 20;

#[derive(Debug)]
struct Handle {
    node: Arc<Node>,
    writes: bool,
    passed: bool,
    executes: bool,
    /// Where it is written down for the next daemon (see [`super::inherit`]), and the request that opened it.
    slot: OnceLock<(u32, u64)>,
}

/// Opened to be executed (`__FMODE_EXEC`), which the kernel passes on with the flags of `open(2)`.
const EXEC: i32 = 0x20;

/// What a handle is for.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    writes: bool,
    executes: bool,
}

fn read_full(file: &File, offset: u64, buf: &mut [u8]) -> Answer<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(done)
}

/// Open files.
#[derive(Debug, Default)]
pub struct Handles {
    pub(crate) next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<Handle>>>,
}

impl Handles {
    /// Writes an open file down.
    pub(crate) fn note(&self, slots: &Slots, fh: u64, request: u64, backing: Option<u32>) {
        let Some(handle) = self.open.read().get(&fh).cloned() else { return };
        let Handle { writes, passed, executes, .. } = *handle;
        let (id, directory) = (handle.node.id, false);
        let slot = Slot { fh, id, request, writes, passed, executes, directory, backing };
        if let Some(at) = slots.take(slot) {
            let _ = handle.slot.set((at, request));
        }
    }

    /// A file that an earlier daemon opened.
    pub(crate) fn inherit(&self, from: &Slot, node: Arc<Node>, at: u32) {
        let Slot { writes, passed, executes, .. } = *from;
        {
            let mut state = node.state();
            if passed {
                state.passed += 1;
            } else {
                state.cached += 1;
            }
            // A mapping may have written unseen, of whatever handle.
            state.unseen |= state.owns_content();
            state.writers += u32::from(writes);
            state.executing += u32::from(executes);
        }
        let handle = Handle { node, writes, passed, executes, slot: OnceLock::new() };
        let _ = handle.slot.set((at, from.request));
        self.open.write().insert(from.fh, Arc::new(handle));
    }

    /// What was opened for a request.
    pub(crate) fn opened_for(&self, request: u64) -> Vec<u64> {
        let open = self.open.read();
        let of = |h: &Handle| h.slot.get().is_some_and(|(_, r)| *r == request);
        open.iter().filter(|(_, h)| of(h)).map(|(fh, _)| *fh).collect()
    }
}

/// How the bytes of an open file travel.
#[derive(Debug)]
pub enum Way {
    /// Through the daemon and the kernel's page cache; whether pages that are there may stay.
    Cached {
        /// Pages of earlier opens are right.
        keep: bool,
    },
    /// Past the daemon: [`View::backing`] gives the file to register, unless the inode has one registered.
    Passed,
}

/// A file that was opened.
#[derive(Debug)]
pub struct Opened {
    /// Its handle.
    pub fh: u64,
    /// Its node.
    pub id: u64,
    /// How its bytes travel.
    pub way: Way,
}

/// Objects of a version that is only looked into, open while somebody reads them; there are no handles for that.
#[derive(Debug)]
pub struct Reading(Mutex<LruCache<u64, Arc<File>>>);

/// How many of them are kept open.
const READING: NonZeroUsize = NonZeroUsize::new(256).unwrap();

impl Default for Reading {
    fn default() -> Reading {
        Reading(Mutex::new(LruCache::new(READING)))
    }
}

impl View {
    /// Whether nothing in the view ever changes, neither by a user nor by a swap: a version that is looked into.
    pub fn never_changes(&self) -> bool {
        self.settings.read_only
            && self.user.is_none()
            && matches!(self.generation.read().stack, Stack::Version(_))
    }

    /// The content of a file of a view that never changes.
    fn unchanging(&self, id: u64) -> Answer<Arc<File>> {
        if let Some(file) = self.reading.0.lock().get(&id) {
            return Ok(file.clone());
        }
        let node = self.node(&self.pin(), id)?;
        if !node.is_file() || !self.never_changes() {
            return Err(Fail(libc::EBADF));
        }
        let file = Arc::new(self.open_to_read(&node)?);
        let dropped = self.reading.0.lock().push(id, file.clone());
        drop(dropped);
        Ok(file)
    }

    /// Reads at most `buf.len()` bytes of a file that nobody opened; how many there were.
    pub fn read_unchanging(&self, id: u64, offset: u64, buf: &mut [u8]) -> Answer<usize> {
        read_full(&*self.unchanging(id)?, offset, buf)
    }

    /// The next data or hole from `offset` on, in a file that nobody opened.
    pub fn lseek_unchanging(&self, id: u64, offset: u64, hole: bool) -> Answer<u64> {
        sys::seek_extent(&*self.unchanging(id)?, offset, hole)?.ok_or(Fail(libc::ENXIO))
    }

    /// Opens a file. `flags` are those of `open(2)`.
    pub fn open(&self, pin: &Pin, id: u64, flags: i32, caller: Caller) -> Answer<Opened> {
        let node = self.node(pin, id)?;
        if !node.is_file() {
            return Err(Fail(if node.is_dir() { libc::EISDIR } else { libc::ENXIO }));
        }
        let truncates = flags & libc::O_TRUNC != 0;
        if truncates && flags & libc::O_ACCMODE == libc::O_RDONLY && node.state().executing > 0 {
            // Here the kernel looks for running programs only after the answer.
            return Err(Fail(libc::ETXTBSY));
        }
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY || truncates;
        if writes {
            self.writable()?;
            // Decided at open: a handle opened for writing owns its copy.
            self.copy_up(pin, &node, if truncates { Depth::Empty } else { Depth::Content })?;
            {
                let _names = self.names.read();
                self.may_write(&node, flags)?;
            }
            if truncates {
                self.truncate(pin, &node, 0, caller)?;
            }
        }
        self.open_node(&node, Use { writes, executes: flags & EXEC != 0 }, None)
    }

    /// Makes a regular file and opens it.
    #[allow(clippy::too_many_arguments)]
    pub fn create(
        &self,
        pin: &Pin,
        parent: u64,
        name: &[u8],
        mode: u32,
        umask: u32,
        caller: Caller,
    ) -> Answer<(Arc<Node>, Attributes, Opened)> {
        self.nodes.wait_for_closing();
        let (node, file) = self.make_node(pin, parent, name, Make::File, mode, umask, caller)?;
        let opened = self.open_node(&node, Use { writes: true, executes: false }, file)?;
        let attributes = {
            let _names = self.names.read();
            self.attributes(pin, &node)?
        };
        self.nodes.remember(&node, pin.0.number);
        Ok((node, attributes, opened))
    }

    fn open_node(&self, node: &Arc<Node>, purpose: Use, made: Option<File>) -> Answer<Opened> {
        let Use { writes, executes } = purpose;
        let _names = self.names.read();
        let may_pass = self.passthrough.load(Ordering::Relaxed) && self.settings.data != Data::Coherent;
        let (owns, open) = {
            let state = node.state();
            (state.owns_content(), state.file.clone())
        };
        if owns && writes && open.as_ref().is_some_and(|f| sys::only_reads(&**f)) {
            // Somebody reads it since the disk was read-only; all handles of an inode share one file.
            return Err(Fail(libc::EROFS));
        }
        let file = match (owns, open, made) {
            (false, ..) => None,
            (true, Some(open), _) => Some(open),
            (true, None, Some(made)) => Some(Arc::new(made)),
            (true, None, None) => Some(Arc::new(self.open_upper(node, writes)?)),
        };
        let mut state = node.state();
        // All open handles of an inode travel the same way: the kernel does not mix them.
        let passed = if state.passed > 0 {
            true
        } else if state.cached > 0 || !may_pass || state.upper.as_ref().is_some_and(|m| m.partial.is_some()) {
            // What is not all there yet has no file whose bytes could be passed.
            false
        } else if owns {
            true
        } else if let Some(gains) = state.gains {
            gains
        } else {
            drop(state);
            let gains = self.gains(node)?;
            state = node.state();
            state.gains = Some(gains);
            state.passed > 0 || (state.cached == 0 && gains)
        };
        let way = if passed { Way::Passed } else { Way::Cached { keep: !state.unseen } };
        if passed {
            state.passed += 1;
            state.unseen |= writes;
        } else {
            state.cached += 1;
        }
        state.writers += u32::from(writes);
        state.executing += u32::from(executes);
        // Only together with the count: whoever closes the last handle takes the file away.
        if state.file.is_none() {
            state.file = file;
        }
        // Without a name already, opened by a descriptor of another kind.
        let nameless = state.kept.clone().filter(|_| state.gone && !state.handed_on);
        drop(state);
        if nameless.is_some() {
            self.hand_on(node, 0, nameless.as_deref());
        }
        let fh = self.handles.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.handles.open.write().insert(
            fh,
            Arc::new(Handle { node: node.clone(), writes, passed, executes, slot: OnceLock::new() }),
        );
        Ok(Opened { fh, id: node.id, way })
    }

    fn open_upper(&self, node: &Arc<Node>, writes: bool) -> Answer<File> {
        let handle = self.upper_handle(node)?;
        let how = if self.settings.read_only { Open::Read } else { Open::ReadWrite };
        match sys::reopen(&handle, how) {
            // Append-only, or immutable: then it can only be read.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
                let file =
                    sys::reopen(&handle, Open::Append).or_else(|_| sys::reopen(&handle, Open::Read))?;
                Ok(File::from(file))
            }
            // The disk became read-only beneath: what is there can be read.
            Err(e) if !writes && e.raw_os_error() == Some(libc::EROFS) => {
                Ok(File::from(sys::reopen(&handle, Open::Read)?))
            }
            r => Ok(File::from(r?)),
        }
    }

    /// Whether a file of the stack gains by being read past the daemon: a large one, or one that is mapped to
    /// be executed (ELF).
    fn gains(&self, node: &Node) -> Answer<bool> {
        if self.settings.data == Data::Passthrough {
            return Ok(true);
        }
        let content = self.content_of(node)?;
        if content.size() >= LARGE {
            return Ok(true);
        }
        let mut head = [0; 4];
        if content.size() >= 4096 {
            let _ = self.open_to_read(node)?.read_at(&mut head, 0)?;
        }
        Ok(&head == b"\x7fELF")
    }

    /// The file to register with the kernel for a handle whose bytes go past the daemon.
    pub fn backing(&self, fh: u64) -> Answer<OwnedFd> {
        let node = self.handle(fh)?.node.clone();
        let file = {
            let state = node.state();
            state.file.clone().filter(|_| state.owns_content())
        };
        if let Some(file) = file {
            return Ok(OwnedFd::from(file.try_clone()?));
        }
        Ok(OwnedFd::from(self.open_content(&self.content_of(&node)?)?))
    }

    /// The kernel cannot pass this file's bytes: from now on they go through the daemon, for all files.
    pub fn passthrough_failed(&self, fh: u64) -> Answer<bool> {
        self.passthrough.store(false, Ordering::Relaxed);
        let handle = self.handle(fh)?;
        let mut state = handle.node.state();
        state.passed = state.passed.saturating_sub(1);
        state.cached += 1;
        let keep = !state.unseen;
        drop(state);
        let other = Handle {
            node: handle.node.clone(),
            writes: handle.writes,
            passed: false,
            executes: handle.executes,
            slot: OnceLock::new(),
        };
        self.handles.open.write().insert(fh, Arc::new(other));
        Ok(keep)
    }

    /// Forgets nodes that nobody needs.
    pub fn sweep(&self) {
        self.nodes.sweep();
        self.drop_places();
    }

    /// How many nodes are in memory.
    pub fn known_nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Whether some handle may write.
    pub fn is_being_written(&self) -> bool {
        self.handles.open.read().values().any(|h| h.writes)
    }

    /// The kernel does not offer passthrough.
    pub fn no_passthrough(&self) {
        self.passthrough.store(false, Ordering::Relaxed);
    }

    /// Whether an inode has open handles whose bytes go past the daemon.
    pub fn is_passing(&self, id: u64) -> bool {
        self.nodes.get(id).is_some_and(|n| n.state().passed > 0)
    }

    /// The node of an open file.
    pub(crate) fn file_of(&self, fh: u64) -> Answer<Arc<Node>> {
        Ok(self.handle(fh)?.node.clone())
    }

    fn handle(&self, fh: u64) -> Answer<Arc<Handle>> {
        self.handles.open.read().get(&fh).cloned().ok_or(Fail(libc::EBADF))
    }

    /// Closes a handle; whether it was the last that went past the daemon.
    pub fn release(&self, fh: u64) -> Answer<Option<u64>> {
        let Some(handle) = self.handles.open.write().remove(&fh) else { return Err(Fail(libc::EBADF)) };
        if let (Some(slots), Some((at, _))) = (self.slots.get(), handle.slot.get()) {
            slots.give_back(*at);
        }
        let mut state = handle.node.state();
        state.writers = state.writers.saturating_sub(u32::from(handle.writes));
        state.executing = state.executing.saturating_sub(u32::from(handle.executes));
        let last = if handle.passed {
            state.passed = state.passed.saturating_sub(1);
            state.passed == 0
        } else {
            state.cached = state.cached.saturating_sub(1);
            false
        };
        if state.passed + state.cached == 0 {
            // Dropped after the lock: closing may write.
            let dropped = (state.file.take(), state.object.take());
            let handed_on = std::mem::take(&mut state.handed_on);
            drop(state);
            drop(dropped);
            if handed_on {
                self.not_handed_on(handle.node.id);
            }
        }
        Ok(last.then_some(handle.node.id))
    }

    /// The file that an open node's bytes are in.
    fn content(&self, node: &Arc<Node>) -> Answer<Arc<File>> {
        {
            let state = node.state();
            if state.owns_content()
                && let Some(file) = &state.file
            {
                return Ok(file.clone());
            }
            if let Some(object) = state.object.as_ref().filter(|_| !state.owns_content()) {
                return Ok(object.clone());
            }
        }
        if node.state().owns_content() {
            let _names = self.names.read();
            let file = Arc::new(self.open_upper(node, false)?);
            node.state().file = Some(file.clone());
            return Ok(file);
        }
        let object = Arc::new(self.open_to_read(node)?);
        node.state().object = Some(object.clone());
        Ok(object)
    }

    /// Reads at most `buf.len()` bytes; how many there were.
    pub fn read(&self, fh: u64, offset: u64, buf: &mut [u8]) -> Answer<usize> {
        let handle = self.handle(fh)?;
        if planted("swap-loses-what-is-open") && handle.node.state().shown < self.pin().0.number {
            return Ok(0);
        }
        let file = self.content(&handle.node)?;
        if let Some(filling) = self.filling(&handle.node, &*file)? {
            return Ok(filling.read(&file, &|| self.object_of(&handle.node, &filling), offset, buf)?);
        }
        read_full(&file, offset, buf)
    }

    /// Writes all of `data`. `kill`: who has no right to leave setuid and setgid where they are.
    /// `mapped`: the pages of a mapping are brought down, which takes no capabilities away, as a write does.
    pub fn write(
        &self,
        pin: &Pin,
        fh: u64,
        offset: u64,
        data: &[u8],
        kill: Option<Caller>,
        mapped: bool,
    ) -> Answer<()> {
        let handle = self.handle(fh)?;
        if !handle.writes {
            return Err(Fail(libc::EBADF));
        }
        if kill.is_some() {
            self.kill_privileges(pin, &handle.node, kill)?;
        }
        let file = self.content(&handle.node)?;
        let capability = if mapped { xattr::get(&*file, CAPABILITY)? } else { None };
        match self.filling(&handle.node, &*file)? {
            Some(f) => f.write(&file, &|| self.object_of(&handle.node, &f), offset, data)?,
            None => file.write_all_at(data, offset)?,
        }
        if let Some(value) = capability {
            xattr::set(&*file, CAPABILITY, &value, xattr::Set::Any)?;
        }
        Ok(())
    }

    /// Cuts or extends a file.
    pub(crate) fn truncate(&self, pin: &Pin, node: &Arc<Node>, size: u64, caller: Caller) -> Answer<()> {
        if !node.is_file() {
            return Err(Fail(if node.is_dir() { libc::EISDIR } else { libc::EINVAL }));
        }
        self.copy_up(pin, node, if size == 0 { Depth::Empty } else { Depth::Content })?;
        {
            let _names = self.names.read();
            self.may_write(node, 0)?;
        }
        let open = node.state().file.clone();
        let file = match open {
            Some(file) => file,
            None => {
                let _names = self.names.read();
                Arc::new(File::from(sys::reopen(self.upper_handle(node)?, Open::ReadWrite)?))
            }
        };
        match self.filling(node, &*file)? {
            Some(filling) => {
                filling.truncate(&file, size)?;
                if filling.limit() == 0
                    && let Some(marks) = &mut node.state().upper
                {
                    // Nothing of the object shows any more: the next open may pass.
                    marks.partial = None;
                }
            }
            None => file.set_len(size)?,
        }
        if caller.uid != 0 {
            self.kill_privileges(pin, node, Some(caller))?;
        }
        Ok(())
    }

    /// Writes a file to its disk.
    pub fn fsync(&self, fh: u64, data: bool) -> Answer<()> {
        let handle = self.handle(fh)?;
        let file = {
            let state = handle.node.state();
            state.file.clone().filter(|_| state.owns_content())
        };
        match file {
            Some(file) => Ok(sys::sync(&*file, data)?),
            // What it has in the user layer are attributes; the directory's file system keeps them.
            None if handle.node.state().upper.is_some() => self.sync_attributes(&handle.node),
            None => Ok(()),
        }
    }

    fn sync_attributes(&self, node: &Arc<Node>) -> Answer<()> {
        let handle = {
            let _names = self.names.read();
            self.upper_handle(node)?
        };
        Ok(sys::sync(sys::reopen(&handle, Open::Read)?, false)?)
    }

    /// Writes a directory's names to the disk.
    pub fn fsyncdir(&self, pin: &Pin, id: u64) -> Answer<()> {
        let node = self.node(pin, id)?;
        let fd = {
            let _names = self.names.read();
            if node.state().upper.is_none() || node.state().gone {
                return Ok(());
            }
            sys::reopen(&*self.upper_dir(&node)?, Open::Dir)?
        };
        Ok(sys::sync(fd, false)?)
    }

    /// `fallocate(2)`.
    pub fn fallocate(
        &self,
        pin: &Pin,
        fh: u64,
        mode: u32,
        offset: u64,
        len: u64,
        caller: Caller,
    ) -> Answer<()> {
        let handle = self.handle(fh)?;
        if !handle.writes {
            return Err(Fail(libc::EBADF));
        }
        let file = self.content(&handle.node)?;
        match self.filling(&handle.node, &*file)? {
            Some(f) => f.allocate(&file, &|| self.object_of(&handle.node, &f), mode, offset, len)?,
            None => sys::fallocate(&*file, mode, offset, len)?,
        }
        if caller.uid != 0 {
            self.kill_privileges(pin, &handle.node, Some(caller))?;
        }
        Ok(())
    }

    /// The next data or hole from `offset` on.
    pub fn lseek(&self, fh: u64, offset: u64, hole: bool) -> Answer<u64> {
        let handle = self.handle(fh)?;
        let file = self.content(&handle.node)?;
        let found = match self.filling(&handle.node, &*file)? {
            Some(f) => f.seek(&file, &|| self.object_of(&handle.node, &f), offset, hole)?,
            None => sys::seek_extent(&*file, offset, hole)?,
        };
        found.ok_or(Fail(libc::ENXIO))
    }

    /// Copies within the host's file system, sharing blocks where it can.
    pub fn copy_range(&self, from: u64, from_at: u64, to: u64, to_at: u64, len: u64) -> Answer<usize> {
        let (a, b) = (self.handle(from)?, self.handle(to)?);
        if !b.writes {
            return Err(Fail(libc::EBADF));
        }
        let (source, target) = (self.content(&a.node)?, self.content(&b.node)?);
        let filling = self.filling(&a.node, &*source)?;
        if filling.is_some() || self.filling(&b.node, &*target)?.is_some() {
            return self.copy_by_hand(from, from_at, to, to_at, len);
        }
        Ok(sys::copy_range(&*source, from_at, &*target, to_at, len.min(1 << 30) as usize)?)
    }

    /// Copies from or to a file whose content is not all there yet. Not all of much: whoever asked goes on.
    fn copy_by_hand(&self, from: u64, from_at: u64, to: u64, to_at: u64, len: u64) -> Answer<usize> {
        const MOST: u64 = 8 << 20;
        let pin = self.pin();
        let mut buf = vec![0; len.min(1 << 20) as usize];
        let mut done = 0;
        while done < len.min(MOST) {
            let want = (len.min(MOST) - done).min(buf.len() as u64) as usize;
            let piece = buf.get_mut(..want).unwrap_or_default();
            let copied = self.read(from, from_at + done, piece).and_then(|n| {
                self.write(&pin, to, to_at + done, piece.get(..n).unwrap_or_default(), None, false)?;
                Ok(n)
            });
            match copied {
                Ok(0) => break,
                Ok(n) => done += n as u64,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done as usize)
    }

    /// Space of the file system that the user layer is in; of what lies below for a mount without one.
    pub fn statfs(&self) -> Answer<Space> {
        match &self.user {
            Some(user) => Ok(sys::space(&*user.top)?),
            None => match (&self.library, &self.generation.read().stack) {
                (_, Stack::Directories(stack)) => Ok(stack.space()?),
                (Some(library), _) => Ok(sys::space(sys::open_dir(library.store.root())?)?),
                (None, _) => Err(Fail(libc::EIO)),
            },
        }
    }

    /// Writes everything of the user layer to its disk.
    pub fn sync(&self) -> Answer<()> {
        match &self.user {
            Some(user) => Ok(user.sync()?),
            None => Ok(()),
        }
    }

    /// The last [`View::sync`], when nothing changes any more.
    pub fn close(&self) -> Answer<()> {
        match &self.user {
            Some(user) => Ok(user.close()?),
            None => Ok(()),
        }
    }
}
