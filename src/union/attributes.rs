//! Attributes: what `stat` shows, and how it is changed.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::lower::Lower;
use super::marks::{Changed, Marks, PinMark};
use super::node::{Node, ROOT};
use super::plant::planted;
use super::{Answer, Caller, Fail, Pin, View};
use crate::sys::fs::{self as sys, SetTime, Stat, Time};
use crate::sys::xattr;

/// The attribute that holds a file's capabilities.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

/// The attributes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Node number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Type and permission bits.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number: major, minor.
    pub rdev: (u32, u32),
    /// Block size for I/O.
    pub blksize: u32,
}

/// What a `setattr` request changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

fn of_stat(id: u64, stat: &Stat, marks: &Marks) -> Attributes {
    let mut out = Attributes {
        ino: id,
        size: stat.size,
        blocks: stat.blocks,
        atime: stat.atime,
        mtime: stat.mtime,
        ctime: stat.ctime,
        mode: stat.mode,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.rdev,
        blksize: stat.blksize,
    };
    if marks.null_device {
        out.mode = libc::S_IFCHR | (stat.mode & 0o7777);
        (out.size, out.blocks, out.rdev) = (0, 0, (0, 0));
    }
    match marks.pin {
        // Also while it is being filled.
        Some(PinMark::Object(_, size)) => (out.size, out.blocks) = (size, blocks(size)),
        Some(PinMark::Below(_)) if stat.is_file() => out.blocks = blocks(out.size),
        _ => {}
    }
    out
}

/// Blocks of 512 bytes that so many bytes take.
pub(crate) fn blocks(size: u64) -> u64 {
    size.div_ceil(4096) * 8
}

/// What follows the stack: the user's attributes where changed, the stack's elsewhere.
fn merged(id: u64, stat: &Stat, changed: &Changed, lower: &Lower) -> Answer<Attributes> {
    let mut out = lower.attributes(id)?;
    if changed.mode {
        out.mode = lower.format() | (stat.mode & 0o7777);
    }
    if changed.uid {
        out.uid = stat.uid;
    }
    if changed.gid {
        out.gid = stat.gid;
    }
    if changed.atime {
        out.atime = stat.atime;
    }
    if changed.mtime {
        out.mtime = stat.mtime;
    }
    if *changed != Changed::default() {
        out.ctime = stat.ctime;
    }
    if !lower.is_dir() {
        out.nlink = stat.nlink;
    }
    Ok(out)
}

impl View {
    /// Attributes by number.
    pub fn getattr(&self, pin: &Pin, id: u64) -> Answer<Attributes> {
        let node = self.node(pin, id)?;
        let _names = self.names.read();
        self.attributes(pin, &node)
    }

    /// Whether the kernel may keep the attributes: not while they can change past the daemon.
    pub fn attributes_settle(&self, id: u64) -> Settled {
        match self.nodes.get(id) {
            Some(node) => node_settles(&node),
            None => Settled::Always,
        }
    }

    /// Attributes of a node. The caller holds `names`.
    pub(crate) fn attributes(&self, pin: &Pin, node: &Arc<Node>) -> Answer<Attributes> {
        let lower = self.lower(pin, node)?;
        let (upper, gone, ghost, file, kept) = {
            let s = node.state();
            (s.upper.clone(), s.gone, s.ghost, s.file.clone(), s.kept.clone())
        };
        let Some(marks) = upper else {
            if gone && let Some(mut ghost) = ghost {
                ghost.nlink = 0;
                return Ok(ghost);
            }
            return match &lower {
                Some(lower) => {
                    let mut out = lower.attributes(node.id)?;
                    let (displaced, shown) = {
                        let state = node.state();
                        (state.displaced, state.shown >= pin.0.number)
                    };
                    // What the user hides of its group may have led all names to another number at a swap.
                    let counts = node.id == lower.number() && (shown || out.nlink == 1);
                    if displaced {
                        out.nlink = 0;
                    } else if !counts && !gone && !node.is_dir() {
                        out.nlink = self.split_links(pin, node, lower)?;
                    }
                    Ok(out)
                }
                None => ghost.ok_or(Fail(libc::ESTALE)),
            };
        };
        let reachable = file.is_some() || kept.is_some() || !gone;
        let filling = match marks.partial.filter(|_| reachable) {
            Some(_) => self.filling(node, self.upper_handle(node)?)?,
            None => None,
        };
        // While a piece of it is filled, it has not the time that it shows.
        let still = filling.as_ref().map(|f| f.still());
        let mut stat = if let Some(file) = file {
            sys::stat(&*file)?
        } else if let Some(kept) = kept {
            sys::stat(&*kept)?
        } else if gone {
            let mut ghost = ghost.ok_or(Fail(libc::ESTALE))?;
            ghost.nlink = 0;
            return Ok(ghost);
        } else if node.is_dir() {
            sys::stat(&*self.upper_dir(node)?)?
        } else {
            let (dir, name) = self.upper_place(node)?;
            sys::stat_at(&*dir, &name)?
        };
        drop(still);
        // What is not copied yet takes its place too.
        if let Some(filling) = &filling {
            stat.blocks = filling.blocks(stat.blocks, stat.size);
        }
        if let Some((atime, mtime)) = marks.times {
            (stat.atime, stat.mtime) = (atime, mtime);
        }
        let mut out = match (&marks.follows, &lower) {
            (Some(changed), Some(lower)) if marks.pin.is_none() || node.is_dir() => {
                let mut out = merged(node.id, &stat, changed, lower)?;
                if node.state().displaced {
                    out.nlink = 0;
                    return Ok(out);
                }
                if !node.is_dir() && !gone && stat.nlink > 1 {
                    // A swap may have led some of the names that share the file on disk elsewhere.
                    out.nlink = match lower.links()? {
                        1 => 1,
                        // What was moved has all names of its group: see `bring_links`.
                        _ if lower.pinned => stat.nlink,
                        _ => self.split_links(pin, node, lower)?,
                    };
                }
                out
            }
            _ => of_stat(node.id, &stat, &marks),
        };
        if node.is_dir() && !gone {
            if let Some(lower) = &lower {
                out.nlink = 2 + self.count_subdirs(pin, node, lower)?;
            }
        } else if gone {
            out.nlink = if node.is_dir() { 0 } else { stat.nlink };
        }
        if planted("link-does-not-count") && !node.is_dir() && out.nlink > 1 {
            out.nlink -= 1;
        }
        Ok(out)
    }

    /// Subdirectories of a merged directory: counted once for a generation, then kept up to date.
    fn count_subdirs(&self, pin: &Pin, node: &Arc<Node>, lower: &Lower) -> Answer<u32> {
        if let Some((generation, count)) = node.state().subdirs
            && generation >= pin.0.number
        {
            return Ok(count);
        }
        let user = self.user.as_ref().ok_or(Fail(libc::EIO))?;
        let dir = self.upper_dir(node)?;
        let mut count = lower.links()?.saturating_sub(2);
        for (name, format) in sys::list(dir.as_fd())? {
            let below = lower.child(&name)?.is_some_and(|l| l.is_dir());
            let here = match format {
                libc::S_IFDIR => true,
                0 => sys::stat_at(&*dir, &name)?.is_dir(),
                _ if below => {
                    // What follows a file of the stack does not hide a directory.
                    matches!(user.marks.probe(&*dir, &name)?, Some(super::marks::Found::Entry(_, m)) if m.follows.is_some() && m.pin.is_none())
                }
                _ => false,
            };
            match (below, here) {
                (true, false) => count = count.saturating_sub(1),
                (false, true) => count += 1,
                _ => {}
            }
        }
        node.state().subdirs = Some((pin.0.number, count));
        Ok(count)
    }

    /// A directory in `node` came or went.
    pub(crate) fn subdirs_changed(&self, node: &Arc<Node>, by: i32) {
        if let Some((_, count)) = &mut node.state().subdirs {
            *count = count.saturating_add_signed(by);
        }
    }

    /// Changes attributes; gives back the new ones.
    pub fn setattr(&self, pin: &Pin, id: u64, change: &Change, caller: Caller) -> Answer<Attributes> {
        self.writable()?;
        let node = self.node(pin, id)?;
        if let Some(size) = change.size {
            self.truncate(pin, &node, size, caller)?;
        }
        let nothing = change.mode.is_none() && change.uid.is_none() && change.gid.is_none();
        let kill = nothing && change.size.is_none() && change.atime.is_none() && change.mtime.is_none();
        if kill {
            // HANDLE_KILLPRIV_V2 with passthrough: a request to clear setuid and setgid arrives without fields.
            // So does the end of clearing the capabilities alone, when root writes to a file that has them.
            let only_capability = std::mem::take(&mut node.state().capability_removed);
            self.kill_privileges(pin, &node, (caller.uid != 0 || !only_capability).then_some(caller))?;
        }
        let mut changed = Changed {
            mode: change.mode.is_some(),
            uid: change.uid.is_some(),
            gid: change.gid.is_some(),
            atime: change.atime.is_some(),
            mtime: change.mtime.is_some(),
            ..Changed::default()
        };
        if changed != Changed::default() {
            if change.mode.is_some_and(|m| m & 0o6000 != 0) && node.is_file() {
                self.copy_up(pin, &node, super::copyup::Depth::Pin)?;
            } else {
                self.copy_up(pin, &node, super::copyup::Depth::Attributes)?;
            }
            // A copy-up that goes deeper meanwhile gives the file the attributes that it found.
            let _copying = node.copying.lock();
            let _names = self.names.read();
            self.still_shown(&node, false)?;
            let before = self.attributes(pin, &node)?;
            let fd = self.upper_handle(&node)?;
            if change.uid.is_some() || change.gid.is_some() {
                sys::chown(&fd, change.uid, change.gid)?;
                if node.is_file() {
                    self.drop_capability(pin, &node, &fd)?;
                }
                let stripped = self.mode_after_chown(&node, &before, change);
                if let Some(mode) = stripped {
                    sys::chmod(&fd, mode)?;
                    changed.mode |= mode & 0o7777 != before.mode & 0o7777;
                }
            }
            if let Some(mode) = change.mode
                && node.format != libc::S_IFLNK
            {
                if self.follows(&node) {
                    self.bring_acl(pin, &node, &fd, &mut changed)?;
                }
                sys::chmod(&fd, mode)?;
            }
            if change.atime.is_some() || change.mtime.is_some() {
                let omit = SetTime::Omit;
                let filling = self.filling(&node, &fd)?;
                let still = filling.as_ref().map(|f| f.still());
                sys::set_times(&fd, change.atime.unwrap_or(omit), change.mtime.unwrap_or(omit))?;
                drop(still);
                self.note_times(&node, &fd, change)?;
            }
            self.note_changed(&node, &fd, &changed)?;
        }
        let _names = self.names.read();
        let mut now = self.attributes(pin, &node)?;
        if change.size.is_some() && planted("truncate-answers-another-size") {
            now.size += 4096;
        }
        Ok(now)
    }

    /// The mode that a file has after a change of owner, where the host's file may have another one:
    /// an executable loses setuid and setgid (chown(2)), everything else keeps its mode.
    fn mode_after_chown(&self, node: &Arc<Node>, before: &Attributes, change: &Change) -> Option<u32> {
        if change.mode.is_some() || node.format == libc::S_IFLNK {
            return None;
        }
        let mut mode = before.mode & 0o7777;
        if !node.is_dir() {
            mode &= !libc::S_ISUID;
            if mode & libc::S_IXGRP != 0 {
                mode &= !libc::S_ISGID;
            }
        }
        if node.state().upper.as_ref().and_then(|m| m.follows.as_ref()).is_some_and(|c| !c.mode) {
            // The disk's is not shown, unless it becomes the user's now.
            return (mode != before.mode & 0o7777).then_some(mode);
        }
        (self.follows(node) || node.is_dir() || mode & 0o6000 != 0).then_some(mode)
    }

    /// Clears the file's capabilities, as every write does, and setuid and setgid too if it is a write by somebody
    /// without privilege, who is named then.
    pub(crate) fn kill_privileges(&self, pin: &Pin, node: &Arc<Node>, by: Option<Caller>) -> Answer<()> {
        if node.is_dir() || node.format == libc::S_IFLNK {
            return Ok(());
        }
        let look = || -> Answer<(u32, u32, bool)> {
            let file = self.attributes(pin, node)?;
            let (now, capable) = (file.mode & 0o7777, self.xattr(pin, node, CAPABILITY)?.is_some());
            let Some(by) = by else { return Ok((now, now, capable)) };
            let mut mode = now & !libc::S_ISUID;
            // Without the group's execute bit, setgid stays for members of the file's group
            // (`setattr_should_drop_sgid` of the kernel).
            if mode & libc::S_ISGID != 0 && (mode & libc::S_IXGRP != 0 || !by.is_in(file.gid)) {
                mode &= !libc::S_ISGID;
            }
            Ok((now, mode, capable))
        };
        let (now, mode, capable) = {
            let _names = self.names.read();
            look()?
        };
        if now == mode && !capable {
            return Ok(());
        }
        self.copy_up(pin, node, super::copyup::Depth::Attributes)?;
        let _copying = node.copying.lock();
        let _names = self.names.read();
        let (now, mode, _) = look()?;
        let fd = self.upper_handle(node)?;
        if now != mode {
            sys::chmod(&fd, mode)?;
            self.note_changed(node, &fd, &Changed { mode: true, ..Changed::default() })?;
        }
        self.drop_capability(pin, node, &fd)
    }

    /// Takes a file's capabilities away, the stack's too. The caller holds `names`.
    fn drop_capability(&self, pin: &Pin, node: &Arc<Node>, fd: impl AsFd) -> Answer<()> {
        let capable = self.xattr(pin, node, CAPABILITY)?.is_some();
        let incapable = node.state().incapable;
        if !capable && (incapable || self.is_below(node, &self.lower(pin, node)?, CAPABILITY)) {
            return Ok(());
        }
        match xattr::remove(fd.as_fd(), CAPABILITY) {
            Err(e) if !matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP | libc::EPERM)) => {
                return Err(e.into());
            }
            _ => {}
        }
        if capable {
            let mut changed = Changed::default();
            changed.xattrs.insert(CAPABILITY.to_vec());
            self.note_changed(node, fd, &changed)?;
        }
        Ok(())
    }

    /// Times that are set while a file is being filled are those that it has afterwards.
    fn note_times(&self, node: &Node, fd: impl AsFd, change: &Change) -> Answer<()> {
        let user = self.writable()?;
        let mut state = node.state();
        let Some(times) = state.upper.as_mut().and_then(|m| m.times.as_mut()) else { return Ok(()) };
        let pick = |set: Option<SetTime>, was: Time| match set {
            None | Some(SetTime::Omit) => was,
            Some(SetTime::Now) => Time::now(),
            Some(SetTime::To(time)) => time,
        };
        *times = (pick(change.atime, times.0), pick(change.mtime, times.1));
        Ok(user.marks.set_own(fd, "times", &super::marks::encode_times(*times))?)
    }

    pub(crate) fn follows(&self, node: &Node) -> bool {
        node.state().upper.as_ref().is_some_and(|m| m.follows.is_some())
    }

    /// Notes which attributes of something that follows the stack are the user's from now on.
    pub(crate) fn note_changed(&self, node: &Node, fd: impl AsFd, changed: &Changed) -> Answer<()> {
        let user = self.writable()?;
        let mut state = node.state();
        let Some(follows) = state.upper.as_mut().and_then(|m| m.follows.as_mut()) else { return Ok(()) };
        let mut joined = follows.clone();
        let changed = &Changed { mode: changed.mode && !planted("chmod-is-not-noted"), ..changed.clone() };
        if joined.join(changed) {
            user.marks.set_own(fd, "meta", &joined.encode())?;
            *follows = joined;
        }
        Ok(())
    }

    /// The content of a directory was changed by the user: its modification time is the user's.
    pub(crate) fn touched(&self, node: &Arc<Node>) -> Answer<()> {
        let (marked, merged) = {
            let state = node.state();
            let marked = state.upper.as_ref().and_then(|m| m.follows.as_ref()).is_none_or(|c| c.mtime);
            (marked, state.lower.is_some())
        };
        if merged {
            self.groups.changed();
        }
        if marked {
            return Ok(());
        }
        let fd = self.upper_dir(node)?;
        self.note_changed(node, &*fd, &Changed { mtime: true, ..Changed::default() })
    }
}

/// How long attributes stay right without being asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Until we say otherwise.
    Always,
    /// For a second: a mapping may write unseen.
    Briefly,
    /// Not at all: somebody writes past the daemon.
    Never,
}

/// See [`View::attributes_settle`].
pub(crate) fn node_settles(node: &Node) -> Settled {
    let state = node.state();
    if state.passed > 0 && state.writers > 0 {
        Settled::Never
    } else if state.unseen || (state.passed > 0 && state.upper.is_some()) {
        Settled::Briefly
    } else {
        Settled::Always
    }
}

/// Whether a node is the root.
pub fn is_root(node: &Node) -> bool {
    node.id == ROOT
}
