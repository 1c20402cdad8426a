//! Names: making, linking, moving and removing them.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::attributes::Attributes;
use super::copyup::Depth;
use super::lower::Lower;
use super::marks::{DEFAULT_ACL, Found, Marks, PinMark};
use super::node::Node;
use super::plant::planted;
use super::upper::UserLayer;
use super::{Answer, Caller, Fail, Pin, View};
use crate::sys::fs::{self as sys, Open, Rename, Stat};
use crate::sys::xattr;

/// What a request makes.
#[derive(Clone, Copy, Debug)]
pub enum Make<'a> {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link with its target.
    Symlink(&'a [u8]),
    /// A device node, FIFO or socket: type bits and device number.
    Special(u32, (u32, u32)),
}

/// Rename flags of `renameat2(2)` that reach a FUSE server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// The new name's file is displaced.
    Yes,
    /// `EEXIST`.
    No,
    /// Both change places.
    Exchange,
}

/// What of the user layer stands at a name that nothing is seen at.
enum InTheWay {
    /// A whiteout.
    Whiteout,
    /// Something that follows what the stack does not have any more, with its path.
    Follower(Vec<u8>),
}

/// What was made: the file where it is one, and what the disk said of it before it got its owner.
struct Born {
    file: Option<File>,
    stat: Stat,
}

/// Where a new file is made before (or while) it gets its name.
enum Place {
    /// At its name.
    Direct,
    /// In the work directory.
    Work,
    /// In a directory of the work directory that has the right default ACL.
    WithAcl(Vec<u8>),
}

impl View {
    /// Makes a file. `umask` is applied unless the directory has a default ACL (acl(5), "object creation").
    #[allow(clippy::too_many_arguments)]
    pub fn make(
        &self,
        pin: &Pin,
        parent: u64,
        name: &[u8],
        what: Make<'_>,
        mode: u32,
        umask: u32,
        caller: Caller,
    ) -> Answer<(Arc<Node>, Attributes)> {
        let node = self.make_node(pin, parent, name, what, mode, umask, caller)?.0;
        let _names = self.names.read();
        let attributes = self.attributes(pin, &node)?;
        self.nodes.remember(&node, pin.0.number);
        Ok((node, attributes))
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn make_node(
        &self,
        pin: &Pin,
        parent: u64,
        name: &[u8],
        what: Make<'_>,
        mode: u32,
        umask: u32,
        caller: Caller,
    ) -> Answer<(Arc<Node>, Option<File>)> {
        let user = self.writable()?;
        let dir = self.node(pin, parent)?;
        if !dir.is_dir() {
            return Err(Fail(libc::ENOTDIR));
        }
        if name.len() > 255 {
            return Err(Fail(libc::ENAMETOOLONG));
        }
        if dir.state().gone {
            return Err(Fail(libc::ENOENT));
        }
        self.copy_up_dir(pin, &dir)?;
        let _names = self.names.read();
        if dir.state().gone {
            return Err(Fail(libc::ENOENT));
        }
        let to = self.upper_dir(&dir)?;
        let below = self.below(pin, &dir, name)?;
        let in_the_way = self.free_name(pin, &dir, &to, name, below.is_some())?;
        let in_place = in_the_way.is_none();
        let marks = Marks {
            opaque: !planted("mkdir-forgets-opaque")
                && matches!(what, Make::Dir)
                && (matches!(in_the_way, Some(InTheWay::Whiteout))
                    || below.as_ref().is_some_and(|l| l.is_dir())),
            null_device: matches!(what, Make::Special(libc::S_IFCHR, (0, 0))),
            ..Marks::default()
        };
        let owner = self.attributes(pin, &dir)?;
        let acl = self.default_acl(pin, &dir)?;
        let on_disk = dir.state().upper.as_ref().and_then(|m| m.default_acl.clone());
        let place = match acl {
            acl if acl == on_disk && in_place && !marks.opaque && !marks.null_device => Place::Direct,
            Some(acl) => Place::WithAcl(acl),
            None => Place::Work,
        };
        let has_acl =
            on_disk.is_some() && matches!(place, Place::Direct) || matches!(place, Place::WithAcl(_));
        let mode = if has_acl { mode } else { mode & !umask } & 0o7777;
        let setgid = owner.mode & libc::S_ISGID != 0;
        let gid = if setgid { owner.gid } else { caller.gid };
        let request = Birth { what, mode, uid: caller.uid, gid, setgid: setgid && matches!(what, Make::Dir) };
        let born = match place {
            Place::Direct => self.bear(&*to, name, &request, &marks)?,
            Place::Work => {
                let temporary = user.temporary_name();
                let born = self.bear(&user.work, &temporary, &request, &marks)?;
                self.move_into_place(&user.work, &temporary, &to, name, &in_the_way, &request)?;
                born
            }
            Place::WithAcl(acl) => {
                let nursery = user.temporary_name();
                sys::mkdir_at(&user.work, &nursery, 0o700)?;
                let result = (|| {
                    let fd = sys::open_at(&user.work, &nursery, Open::DirPath)?;
                    xattr::set(&fd, DEFAULT_ACL, &acl, xattr::Set::Any)?;
                    let born = self.bear(&fd, b"new", &request, &marks)?;
                    self.move_into_place(&fd, b"new", &to, name, &in_the_way, &request)?;
                    Ok::<_, Fail>(born)
                })();
                if sys::rmdir_at(&user.work, &nursery).is_err() {
                    let _ = sys::remove_all_at(&user.work, &nursery);
                }
                result?
            }
        };
        self.touched(&dir)?;
        if matches!(what, Make::Dir) {
            self.subdirs_changed(&dir, 1);
        }
        let node = if has_acl {
            // What it inherited is read from the disk.
            self.child(pin, &dir, name)?
        } else {
            self.upper_child(pin, &dir, name, &born.stat, marks, below)?
        };
        let node = node.ok_or(Fail(libc::EIO))?;
        node.state().incapable = !has_acl && matches!(what, Make::File);
        Ok((node, born.file))
    }

    /// What of the user layer stands at a name that nothing is seen at; `EEXIST` if something is. `below`: the stack
    /// has something there. The caller holds `names`.
    fn free_name(
        &self,
        pin: &Pin,
        dir: &Arc<Node>,
        to: &OwnedFd,
        name: &[u8],
        below: bool,
    ) -> Answer<Option<InTheWay>> {
        match self.writable()?.marks.probe(to, name)? {
            None if below => Err(Fail(libc::EEXIST)),
            None => Ok(None),
            Some(Found::Whiteout) => Ok(Some(InTheWay::Whiteout)),
            Some(Found::Entry(..)) if self.child(pin, dir, name)?.is_some() => Err(Fail(libc::EEXIST)),
            // It follows something that the stack does not have any more.
            Some(Found::Entry(..)) => {
                Ok(Some(InTheWay::Follower([&self.path_of(dir), &b"/"[..], name].concat())))
            }
        }
    }

    /// Makes the file itself, with its owner, mode and marks.
    fn bear(&self, dir: impl AsFd, name: &[u8], birth: &Birth<'_>, marks: &Marks) -> Answer<Born> {
        let user = self.writable()?;
        let dir = dir.as_fd();
        let mut file = None;
        match birth.what {
            Make::File => file = Some(sys::create_at(dir, name, birth.mode)?),
            Make::Special(_, _) if marks.null_device => drop(sys::create_at(dir, name, birth.mode)?),
            Make::Dir => sys::mkdir_at(dir, name, birth.mode)?,
            Make::Symlink(target) => sys::symlink_at(target, dir, name)?,
            Make::Special(format, rdev) => sys::mknod_at(dir, name, format | birth.mode, rdev)?,
        }
        let finish = || -> Answer<Stat> {
            let opened;
            let handle = match &file {
                Some(file) => file.as_fd(),
                None => {
                    opened = sys::open_at(dir, name, Open::Path)?;
                    opened.as_fd()
                }
            };
            let born = sys::stat(handle)?;
            let mut chowned = false;
            if born.uid != birth.uid || born.gid != birth.gid {
                match sys::chown(handle, Some(birth.uid), Some(birth.gid)) {
                    Err(e) if e.raw_os_error() == Some(libc::EPERM) && !crate::sys::process::is_root() => {}
                    r => r?,
                }
                chowned = true;
            }
            let bits = birth.mode & 0o6000 | if birth.setgid { libc::S_ISGID } else { 0 };
            let lost = birth.mode & 0o7000 != born.mode & 0o7000;
            if born.format() != libc::S_IFLNK && (bits != 0 && chowned || lost || birth.setgid) {
                sys::chmod(handle, born.mode & 0o777 | birth.mode & 0o7000 | bits)?;
            }
            if marks.opaque {
                user.marks.set_overlay(handle, "opaque", b"y")?;
            }
            if marks.null_device {
                user.marks.set_own(handle, "rdev", b"c")?;
            }
            Ok(born)
        };
        match finish() {
            Ok(stat) => Ok(Born { file, stat }),
            Err(e) => {
                let _ = sys::remove_all_at(dir, name);
                Err(e)
            }
        }
    }

    fn move_into_place(
        &self,
        from: impl AsFd,
        temporary: &[u8],
        to: &OwnedFd,
        name: &[u8],
        in_the_way: &Option<InTheWay>,
        birth: &Birth<'_>,
    ) -> Answer<()> {
        let user = self.writable()?;
        let from = from.as_fd();
        let rename = |how| sys::rename_at(from, temporary, to, name, how);
        // A directory cannot replace a whiteout (it is a device); they change places.
        let exchange = matches!((in_the_way, birth.what), (Some(InTheWay::Whiteout), Make::Dir));
        let moved = match in_the_way {
            Some(InTheWay::Whiteout) if exchange => rename(Rename::Exchange),
            Some(InTheWay::Whiteout) => rename(Rename::Replace),
            Some(InTheWay::Follower(path)) => user.displace(to, name, path, || rename(Rename::NoReplace)),
            None => rename(Rename::NoReplace),
        };
        if exchange || moved.is_err() {
            let _ = sys::remove_all_at(from, temporary);
        }
        Ok(moved?)
    }

    /// What the stack has at a name in a directory. The caller holds `names`.
    pub(crate) fn below(&self, pin: &Pin, dir: &Arc<Node>, name: &[u8]) -> Answer<Option<Lower>> {
        Ok(match self.lower(pin, dir)? {
            Some(lower) => lower.child(name)?,
            None => None,
        })
    }

    /// Removes a name that is not a directory's.
    pub fn unlink(&self, pin: &Pin, parent: u64, name: &[u8]) -> Answer<()> {
        self.remove(pin, parent, name, false)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, pin: &Pin, parent: u64, name: &[u8]) -> Answer<()> {
        self.remove(pin, parent, name, true)
    }

    fn remove(&self, pin: &Pin, parent: u64, name: &[u8], is_dir: bool) -> Answer<()> {
        let user = self.writable()?;
        let dir = self.node(pin, parent)?;
        for _ in 0..16 {
            let names = self.names.write();
            let node = self.child(pin, &dir, name)?.ok_or(Fail(libc::ENOENT))?;
            match (is_dir, node.is_dir()) {
                (true, false) => return Err(Fail(libc::ENOTDIR)),
                (false, true) => return Err(Fail(libc::EISDIR)),
                _ => {}
            }
            self.may_lose_names(&dir)?;
            // Before anything is brought up for a removal that cannot be.
            if is_dir && !self.is_empty_dir(pin, &node)? {
                return Err(Fail(libc::ENOTEMPTY));
            }
            if dir.state().upper.is_none() || is_lower_link(&node) {
                drop(names);
                self.prepare_removal(pin, &dir, name)?;
                continue;
            }
            if is_dir {
                // It is empty: that need not be counted for its last attributes.
                node.state().subdirs = Some((pin.0.number, 0));
            }
            let ghost = self.attributes(pin, &node)?;
            let to = self.upper_dir(&dir)?;
            let below = self.below(pin, &dir, name)?.is_some();
            let kept = self.keep(&node)?;
            self.hand_on(&node, ghost.nlink, kept.as_deref());
            let changes = self.groups.changes();
            self.take_away(user, &node, &to, name, below)?;
            self.changed_by(pin);
            if is_dir {
                user.drop_dir(node.id);
                self.subdirs_changed(&dir, -1);
            }
            self.touched(&dir)?;
            self.one_link_less(pin, &node, changes);
            self.name_removed(&node, &dir, name, ghost, kept);
            return Ok(());
        }
        Err(Fail(libc::EBUSY))
    }

    /// Whether nothing can be seen in a directory. Says no at the first name, and asks the disk about none that is a
    /// link to the shared whiteout. The caller holds `names`.
    fn is_empty_dir(&self, pin: &Pin, node: &Arc<Node>) -> Answer<bool> {
        let lower = self.lower(pin, node)?;
        let (has_upper, gone) = {
            let state = node.state();
            (state.upper.is_some(), state.gone)
        };
        if gone {
            return Ok(true);
        }
        let count = lower.as_ref().map_or(Ok(0), Lower::count)?;
        let Some(user) = self.user.as_ref().filter(|_| has_upper) else { return Ok(count == 0) };
        let mut hidden = HashSet::new();
        for (name, format, ino) in sys::list_numbered(self.upper_dir(node)?.as_fd())? {
            if format == libc::S_IFDIR {
                return Ok(false);
            }
            if !user.is_shared_whiteout(format, ino) && self.child(pin, node, &name)?.is_some() {
                return Ok(false);
            }
            hidden.insert(name);
        }
        let Some(lower) = lower.filter(|_| count > 0) else { return Ok(true) };
        Ok(count <= hidden.len() && lower.children()?.iter().all(|child| hidden.contains(&child.name)))
    }

    /// Takes a name out of the user layer and hides what is below it.
    fn take_away(&self, user: &UserLayer, node: &Node, to: &OwnedFd, name: &[u8], below: bool) -> Answer<()> {
        if below && node.state().upper.is_none() {
            if planted("unlink-without-whiteout") {
                return Ok(());
            }
            match user.whiteout(to, name) {
                // Something that follows the stack and shows nothing.
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
                r => return Ok(r?),
            }
        }
        match user.marks.probe(to, name)? {
            Some(Found::Entry(stat, _)) if below => {
                user.replace_by_whiteout(to, name, node.is_dir() || stat.is_dir())?
            }
            Some(Found::Entry(..)) if node.is_dir() => user.remove_dir(to, name)?,
            Some(Found::Entry(..)) => sys::unlink_at(to, name)?,
            Some(Found::Whiteout) | None => return Err(Fail(libc::ENOENT)),
        }
        Ok(())
    }

    /// Finds what is to be removed and brings up what that needs: the directory, for the whiteout, and a
    /// hard-link group, for its link count.
    fn prepare_removal(&self, pin: &Pin, dir: &Arc<Node>, name: &[u8]) -> Answer<Arc<Node>> {
        let node = {
            let _names = self.names.read();
            self.child(pin, dir, name)?.ok_or(Fail(libc::ENOENT))?
        };
        self.copy_up_dir(pin, dir)?;
        if is_lower_link(&node) {
            self.copy_up(pin, &node, Depth::Attributes)?;
        }
        Ok(node)
    }

    /// What is needed of a node should its last name go: handles can still change it.
    fn keep(&self, node: &Arc<Node>) -> Answer<Option<Arc<OwnedFd>>> {
        let has_upper = node.state().upper.is_some();
        if !has_upper {
            return Ok(None);
        }
        match self.upper_handle(node) {
            // Better a file that cannot be changed through old handles than one that cannot be removed.
            Err(Fail(libc::EMFILE | libc::ENFILE)) => Ok(None),
            r => Ok(Some(Arc::new(r?))),
        }
    }

    fn name_removed(
        &self,
        node: &Arc<Node>,
        dir: &Arc<Node>,
        name: &[u8],
        ghost: Attributes,
        kept: Option<Arc<OwnedFd>>,
    ) {
        if node.remove_name(dir.id, name) == 0 {
            let mut state = node.state();
            state.gone = true;
            state.ghost = Some(ghost);
            state.kept = kept;
        }
    }

    /// Gives a file a further name.
    pub fn link(&self, pin: &Pin, id: u64, parent: u64, name: &[u8]) -> Answer<(Arc<Node>, Attributes)> {
        let user = self.writable()?;
        let node = self.node(pin, id)?;
        let dir = self.node(pin, parent)?;
        if node.is_dir() {
            return Err(Fail(libc::EPERM));
        }
        if name.len() > 255 {
            return Err(Fail(libc::ENAMETOOLONG));
        }
        let nameless = {
            let (gone, kept) = {
                let state = node.state();
                (state.gone, state.kept.clone())
            };
            gone && !kept.is_some_and(|f| sys::stat(&*f).is_ok_and(|s| s.nlink > 0))
        };
        if nameless {
            return Err(Fail(libc::ENOENT));
        }
        {
            // The kernel itself links nothing that has no name: it looked before a swap, and asks again.
            let _names = self.names.read();
            self.still_shown(&node, true)?;
        }
        self.copy_up(pin, &node, Depth::Pin)?;
        self.copy_up_dir(pin, &dir)?;
        let _names = self.names.read();
        if dir.state().gone {
            return Err(Fail(libc::ENOENT));
        }
        let to = self.upper_dir(&dir)?;
        let below = self.below(pin, &dir, name)?.is_some();
        let in_the_way = self.free_name(pin, &dir, &to, name, below)?;
        self.takes_number(&node)?;
        let handle = self.upper_handle(&node)?;
        match in_the_way {
            None => sys::link_fd(&handle, &*to, name)?,
            Some(in_the_way) => {
                let temporary = user.temporary_name();
                sys::link_fd(&handle, &user.work, &temporary)?;
                let rename = |how| sys::rename_at(&user.work, &temporary, &*to, name, how);
                let moved = match in_the_way {
                    InTheWay::Whiteout => rename(Rename::Replace),
                    InTheWay::Follower(path) => {
                        user.displace(&*to, name, &path, || rename(Rename::NoReplace))
                    }
                };
                if moved.is_err() {
                    let _ = sys::unlink_at(&user.work, &temporary);
                }
                moved?;
            }
        }
        self.touched(&dir)?;
        node.add_name(&dir, name);
        let attributes = self.attributes(pin, &node)?;
        self.nodes.remember(&node, pin.0.number);
        Ok((node, attributes))
    }

    /// Moves a name.
    pub fn rename(&self, pin: &Pin, from: u64, name: &[u8], to: u64, new: &[u8], how: Replace) -> Answer<()> {
        self.writable()?;
        let (d1, d2) = (self.node(pin, from)?, self.node(pin, to)?);
        if new.len() > 255 {
            return Err(Fail(libc::ENAMETOOLONG));
        }
        for _ in 0..16 {
            if d2.state().gone {
                return Err(Fail(libc::ENOENT));
            }
            let (a, b) = {
                let _names = self.names.read();
                let a = self.child(pin, &d1, name)?.ok_or(Fail(libc::ENOENT))?;
                let b = self.child(pin, &d2, new)?;
                self.is_what_the_kernel_moves(&a, &d1, name)?;
                if let Some(b) = b.as_ref().filter(|_| how == Replace::Exchange) {
                    self.is_what_the_kernel_moves(b, &d2, new)?;
                }
                (a, b)
            };
            match (&b, how) {
                (Some(_), Replace::No) => return Err(Fail(libc::EEXIST)),
                (None, Replace::Exchange) => return Err(Fail(libc::ENOENT)),
                (Some(b), _) if b.id == a.id => return Ok(()),
                _ => {}
            }
            {
                // Before anything is brought up or pinned for a move that cannot be.
                let _names = self.names.read();
                self.may_lose_names(&d1)?;
                if b.is_some() {
                    self.may_lose_names(&d2)?;
                }
                self.may_move(pin, &a, b.as_ref(), &d1, &d2, how)?;
            }
            self.copy_up_dir(pin, &d1)?;
            self.copy_up_dir(pin, &d2)?;
            self.prepare_move(pin, &a)?;
            if let Some(b) = &b {
                if how == Replace::Exchange {
                    self.prepare_move(pin, b)?;
                } else {
                    self.prepare_removal(pin, &d2, new)?;
                }
            }
            let _names = self.names.write();
            let still = |node: &Option<Arc<Node>>, found: &Option<Arc<Node>>| {
                node.as_ref().map(|n| n.id) == found.as_ref().map(|n| n.id)
            };
            let (a2, b2) = (self.child(pin, &d1, name)?, self.child(pin, &d2, new)?);
            if !still(&Some(a.clone()), &a2) || !still(&b, &b2) || d2.state().gone {
                continue;
            }
            return self.move_name(pin, &Move { a, b, d1: &d1, name, d2: &d2, new, how });
        }
        Err(Fail(libc::EBUSY))
    }

    /// Brings up what is to be moved. A directory keeps what is below it by a pin on its version.
    fn prepare_move(&self, pin: &Pin, node: &Arc<Node>) -> Answer<()> {
        if !node.is_dir() {
            return self.copy_up(pin, node, Depth::Pin);
        }
        self.copy_up_dir(pin, node)?;
        let user = self.writable()?;
        let lower = {
            let _names = self.names.read();
            self.lower(pin, node)?
        };
        // A mark that names a path beside it holds at no other place.
        let pinned = node.state().upper.as_ref().is_some_and(|m| match &m.pin {
            Some(PinMark::Below(to)) => to.starts_with(b"/"),
            pin => pin.is_some(),
        });
        let Some(lower) = lower.filter(|_| !pinned) else { return Ok(()) };
        if planted("move-forgets-what-it-stands-on") {
            return Ok(());
        }
        self.bring_links(pin, node, &lower)?;
        let mark = lower.pin_mark()?;
        user.pin_version(lower.version())?;
        let _names = self.names.write();
        if self.pin().0.number != pin.0.number {
            // What is known of the directory and beneath it may be of the next generation by now, and the mark is not.
            return Err(Fail(libc::ESTALE));
        }
        let fd = self.upper_dir(node)?;
        user.marks.set_pin(&*fd, &mark)?;
        let mut state = node.state();
        if let Some(lower) = &mut state.lower {
            lower.pinned = true;
        }
        if let Some(marks) = &mut state.upper {
            marks.pin = Some(mark);
        }
        // What is known beneath it learns of it when somebody asks.
        state.moves = self.moves.fetch_add(1, Ordering::AcqRel) + 1;
        self.nodes.places.note_pinned(node.id);
        self.groups.changed();
        Ok(())
    }

    /// Hard-linked files of the stack beneath a directory that is about to be moved come up with all their
    /// names: beneath a pin they could not be found by the paths of their group any more.
    fn bring_links(&self, pin: &Pin, dir: &Arc<Node>, lower: &Lower) -> Answer<()> {
        if !lower.may_hold_links()? {
            return Ok(());
        }
        for child in lower.children()? {
            let is_dir = child.format == libc::S_IFDIR;
            if !is_dir && !lower.has_linked(&child)? {
                continue;
            }
            let found = {
                let _names = self.names.read();
                self.child(pin, dir, &child.name)?
            };
            let Some(node) = found else { continue };
            let below = {
                let _names = self.names.read();
                self.lower(pin, &node)?
            };
            match below {
                Some(below) if node.is_dir() && is_dir => self.bring_links(pin, &node, &below)?,
                Some(_) if !node.is_dir() => self.copy_up(pin, &node, Depth::Pin)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the types allow a move. The caller holds `names`.
    fn may_move(
        &self,
        pin: &Pin,
        a: &Arc<Node>,
        b: Option<&Arc<Node>>,
        d1: &Arc<Node>,
        d2: &Arc<Node>,
        how: Replace,
    ) -> Answer<()> {
        if a.holds(d2) {
            return Err(Fail(libc::EINVAL));
        }
        let Some(b) = b else { return Ok(()) };
        if how == Replace::Exchange {
            return if b.holds(d1) { Err(Fail(libc::EINVAL)) } else { Ok(()) };
        }
        match (a.is_dir(), b.is_dir()) {
            (true, false) => Err(Fail(libc::ENOTDIR)),
            (false, true) => Err(Fail(libc::EISDIR)),
            (true, true) if !self.is_empty_dir(pin, b)? => Err(Fail(libc::ENOTEMPTY)),
            _ => Ok(()),
        }
    }

    /// The move itself. The caller holds `names` for writing.
    fn move_name(&self, pin: &Pin, m: &Move<'_>) -> Answer<()> {
        let user = self.writable()?;
        self.may_move(pin, &m.a, m.b.as_ref(), m.d1, m.d2, m.how)?;
        let (from, to) = (self.upper_dir(m.d1)?, self.upper_dir(m.d2)?);
        let below1 = self.below(pin, m.d1, m.name)?;
        if m.how == Replace::Exchange {
            let b = m.b.as_ref().ok_or(Fail(libc::ENOENT))?;
            self.takes_number(&m.a)?;
            self.takes_number(b)?;
            self.close_below(&m.a)?;
            self.close_below(b)?;
            sys::rename_at(&*from, m.name, &*to, m.new, Rename::Exchange)?;
            self.moved(&m.a, m.d1, m.name, m.d2, m.new);
            self.moved(b, m.d2, m.new, m.d1, m.name);
            self.moved_untold(&m.a, m.d2, m.new);
            self.moved_untold(b, m.d1, m.name);
            if m.d1.id != m.d2.id && m.a.is_dir() != b.is_dir() {
                let by = if m.a.is_dir() { 1 } else { -1 };
                self.subdirs_changed(m.d2, by);
                self.subdirs_changed(m.d1, -by);
            }
            return self.touched(m.d1).and(self.touched(m.d2));
        }
        self.takes_number(&m.a)?;
        let ghost = match &m.b {
            Some(b) => {
                let (ghost, kept) = (self.attributes(pin, b)?, self.keep(b)?);
                self.hand_on(b, ghost.nlink, kept.as_deref());
                Some((ghost, kept))
            }
            None => None,
        };
        let found = user.marks.probe(&*to, m.new)?;
        let leave = if below1.is_some() { Rename::Whiteout } else { Rename::Replace };
        if m.a.is_dir() {
            self.close_below(&m.a)?;
            match found {
                Some(Found::Whiteout) => {
                    sys::rename_at(&*from, m.name, &*to, m.new, Rename::Exchange)?;
                    if below1.is_none() {
                        sys::unlink_at(&*from, m.name)?;
                    }
                }
                Some(Found::Entry(stat, _)) if stat.is_dir() => {
                    // Only marks are left in it. It is closed to what is below before they go.
                    let dir = sys::open_at(&*to, m.new, Open::Dir)?;
                    user.marks.set_overlay(&dir, "opaque", b"y")?;
                    for (name, _) in sys::list(dir.as_fd())? {
                        sys::remove_all_at(&dir, &name)?;
                    }
                    sys::rename_at(&*from, m.name, &*to, m.new, leave)?;
                }
                Some(Found::Entry(..)) => {
                    user.displace(&*to, m.new, &self.path_of(&m.a), || {
                        sys::rename_at(&*from, m.name, &*to, m.new, leave)
                    })?;
                }
                None => sys::rename_at(&*from, m.name, &*to, m.new, leave)?,
            }
        } else {
            sys::rename_at(&*from, m.name, &*to, m.new, leave)?;
        }
        self.changed_by(pin);
        if let (Some(b), Some((ghost, kept))) = (&m.b, ghost) {
            if b.is_dir() {
                user.drop_dir(b.id);
                self.subdirs_changed(m.d2, -1);
            }
            self.name_removed(b, m.d2, m.new, ghost, kept);
        }
        self.moved(&m.a, m.d1, m.name, m.d2, m.new);
        self.moved_untold(&m.a, m.d2, m.new);
        if m.a.is_dir() && m.d1.id != m.d2.id {
            self.subdirs_changed(m.d1, -1);
            self.subdirs_changed(m.d2, 1);
        }
        // Both of them, also where one fails.
        self.touched(m.d1).and(self.touched(m.d2))
    }

    /// A request has removed or moved a name. The caller holds `names` for writing.
    fn changed_by(&self, pin: &Pin) {
        if self.pin().0.number == pin.0.number {
            self.groups.changed();
        } else {
            self.groups.changed_late();
        }
    }

    /// A moved directory does not merge with what the stack has at its new place, now or after a swap: one with a pin
    /// stands on its own stack, another becomes opaque.
    fn close_below(&self, node: &Arc<Node>) -> Answer<()> {
        let user = self.writable()?;
        let needs =
            node.is_dir() && node.state().upper.as_ref().is_some_and(|m| m.pin.is_none() && !m.opaque);
        if needs {
            user.marks.set_overlay(&*self.upper_dir(node)?, "opaque", b"y")?;
            let mut state = node.state();
            state.lower = None;
            if let Some(marks) = &mut state.upper {
                marks.opaque = true;
            }
        }
        Ok(())
    }

    fn moved(&self, node: &Arc<Node>, d1: &Arc<Node>, name: &[u8], d2: &Arc<Node>, new: &[u8]) {
        if node.is_dir() {
            self.nodes.places.note_move(node);
        }
        node.remove_name(d1.id, name);
        node.add_name(d2, new);
    }
}

/// Whether it is one of several hard links of the stack that are not in the user layer.
fn is_lower_link(node: &Node) -> bool {
    let state = node.state();
    !node.is_dir() && state.upper.is_none() && state.lower.as_ref().is_some_and(Lower::is_linked)
}

/// One rename, found and prepared.
struct Move<'a> {
    a: Arc<Node>,
    b: Option<Arc<Node>>,
    d1: &'a Arc<Node>,
    name: &'a [u8],
    d2: &'a Arc<Node>,
    new: &'a [u8],
    how: Replace,
}

/// A file to be made.
struct Birth<'a> {
    what: Make<'a>,
    mode: u32,
    uid: u32,
    gid: u32,
    setgid: bool,
}
