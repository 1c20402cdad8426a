//! Copy-up: from the stack into the user layer, at the first change.
//!
//! What a change needs decides how deep it goes ([`Depth`]). Everything is prepared in the work directory and
//! renamed into place; a file that is there already without its content is filled in place, and the removal of
//! one mark makes the content its own. So a crash leaves the file as it was or as it will be.
//!
//! All names of a hard-link group that can be seen are copied up together, as hard links.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attributes::Attributes;
use super::lower::{Content, Entry, Lower};
use super::marks::{Changed, Marks, Partial, PinMark};
use super::node::{BORN, Name, Names, Node};
use super::plant::planted;
use super::swap::Notice;
use super::{Answer, Fail, Pin, View};
use crate::store::Digest;
use crate::sys::fs::{self as sys, Open, Rename, SetTime};
use crate::sys::xattr;

/// How much of a file comes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// A place for the user's attributes; everything else goes on following the stack.
    Attributes,
    /// Attributes and a pin on the content: a swap does not change it any more.
    Pin,
    /// The content too.
    Content,
    /// The content is about to be cut to nothing: none is copied.
    Empty,
}

/// How long a writer waits for readers' releases that are on their way, before the file gets another number.
const RELEASES: Duration = Duration::from_millis(10);

impl View {
    /// Makes sure that a node is in the user layer, to the depth that is needed.
    /// `ESTALE`: the name leads to another node now; the kernel walks again.
    pub(crate) fn copy_up(&self, pin: &Pin, node: &Arc<Node>, depth: Depth) -> Answer<()> {
        self.writable()?;
        if node.is_dir() {
            {
                let _names = self.names.read();
                self.dir_still_shown(node)?;
            }
            return self.copy_up_dir(pin, node);
        }
        self.copy_up_file(pin, node, depth, false)
    }

    /// [`View::copy_up`] for what is not a directory. With `waits` it gives up where the file is read past the daemon.
    fn copy_up_file(&self, pin: &Pin, node: &Arc<Node>, wanted: Depth, waits: bool) -> Answer<()> {
        // Only regular files have content that is worth leaving below.
        let leaves = match wanted {
            Depth::Attributes => {
                self.settings.metacopy && (node.is_file() || self.writable()?.marks.follow().is_some())
            }
            Depth::Pin => self.settings.metacopy && node.is_file(),
            Depth::Empty => node.is_file(),
            Depth::Content => false,
        };
        let mut depth = if leaves { wanted } else { Depth::Content };
        let copying = node.copying.lock();
        {
            let _names = self.names.read();
            self.still_shown(node, matches!(wanted, Depth::Content | Depth::Empty))?;
        }
        if self.is_up(node, depth) && !(depth == Depth::Attributes && self.is_shared(pin, node)?) {
            return Ok(());
        }
        let mut fresh = matches!(depth, Depth::Content | Depth::Empty) && self.read_past_us(node);
        if fresh && waits {
            return Err(Fail(libc::EBUSY));
        }
        if fresh && depth != wanted && node.is_file() {
            // With its content the file would get another number. What is asked for needs none yet: it follows when the
            // readers are done.
            (depth, fresh) = (wanted, false);
            if self.is_up(node, depth) {
                return Ok(());
            }
            self.unfinished.lock().push(node.clone());
        }
        let has_upper = node.state().upper.is_some();
        let fresh = if has_upper {
            self.deepen(pin, node, depth, fresh, waits)?
        } else {
            self.bring(pin, node, depth, fresh)?
        };
        drop(copying);
        if fresh { Err(Fail(libc::ESTALE)) } else { Ok(()) }
    }

    /// Gives files their content that came up without it while they were read past the daemon, unless they still are.
    pub fn finish(&self) {
        let files = std::mem::take(&mut *self.unfinished.lock());
        for node in files {
            let (gone, open) = {
                let state = node.state();
                (state.gone, state.passed > 0)
            };
            let result = if open {
                Err(Fail(libc::EBUSY))
            } else if gone {
                Ok(())
            } else {
                self.copy_up_file(&self.pin(), &node, Depth::Content, true)
            };
            match result {
                Ok(()) => {}
                Err(Fail(libc::EBUSY)) => self.unfinished.lock().push(node),
                Err(e) => log::error!("a file of the user layer stays without its content: error {}", e.0),
            }
        }
    }

    fn is_up(&self, node: &Node, depth: Depth) -> bool {
        match &node.state().upper {
            None => false,
            Some(marks) => match depth {
                Depth::Attributes => true,
                // What stands on its own name does so at that name only.
                Depth::Pin => {
                    marks.follows.is_none()
                        && !matches!(&marks.pin, Some(PinMark::Below(to)) if !to.starts_with(b"/"))
                }
                Depth::Content | Depth::Empty => marks.follows.is_none() && marks.pin.is_none(),
            },
        }
    }

    /// Whether a file that follows the stack shares its inode on disk with names that a swap has led elsewhere:
    /// attributes that are changed under one of them are not those of the others.
    fn is_shared(&self, pin: &Pin, node: &Arc<Node>) -> Answer<bool> {
        let follows = {
            let state = node.state();
            !state.gone && state.upper.as_ref().is_some_and(|m| m.follows.is_some() && m.pin.is_none())
        };
        if !follows {
            return Ok(false);
        }
        let _names = self.names.read();
        let on_disk = sys::stat(self.upper_handle(node)?)?.nlink;
        Ok(on_disk > 1 && on_disk > self.attributes(pin, node)?.nlink)
    }

    /// Whether handles read the stack's object past the daemon: then the inode cannot change its backing.
    fn read_past_us(&self, node: &Node) -> bool {
        let begin = Instant::now();
        while node.state().passed > 0 {
            if begin.elapsed() > RELEASES {
                return true;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        false
    }

    /// What a node without content of its own shows.
    pub(crate) fn content_of(&self, node: &Node) -> Answer<Content> {
        let state = node.state();
        if let Some(PinMark::Object(digest, size)) = state.upper.as_ref().and_then(|m| m.pin.as_ref()) {
            return Ok(Content::Object(*digest, *size));
        }
        let lower = state.lower.as_ref().ok_or(Fail(libc::ESTALE))?;
        Ok(lower.content()?)
    }

    /// Brings up what is only below; whether the names lead to another node now.
    fn bring(&self, pin: &Pin, node: &Arc<Node>, depth: Depth, fresh: bool) -> Answer<bool> {
        let user = self.writable()?;
        let (attributes, xattrs, names, version) = {
            let _names = self.names.read();
            let attributes = self.attributes(pin, node)?;
            let xattrs = self.all_xattrs(pin, node)?;
            let version = node.state().lower.as_ref().and_then(Lower::version);
            (attributes, xattrs, self.names_to_copy(node)?, version)
        };
        for (parent, _) in &names {
            self.copy_up_dir(pin, parent)?;
        }
        let temporary = user.temporary_name();
        let placed = self.prepare(&temporary, node, depth, fresh, &attributes, &xattrs, version).and_then(
            |(file, marks)| self.place_prepared(pin, node, &temporary, file, &names, &marks, fresh),
        );
        if placed.is_err() {
            let _ = sys::unlink_at(&user.work, &temporary);
        }
        placed
    }

    /// Goes on with a file that follows the stack and shares its inode on disk with names that a swap has
    /// led elsewhere: they keep the old inode, and this one gets another.
    fn split(&self, pin: &Pin, node: &Arc<Node>, depth: Depth, fresh: bool, names: &[Name]) -> Answer<bool> {
        let user = self.writable()?;
        let (left, attributes, xattrs, version) = {
            let _names = self.names.read();
            let left = self.upper_handle(node)?;
            let version = node.state().lower.as_ref().and_then(Lower::version);
            (left, self.attributes(pin, node)?, self.all_xattrs(pin, node)?, version)
        };
        let changed = node.state().upper.as_ref().and_then(|m| m.follows.clone());
        let temporary = user.temporary_name();
        let placed = (|| {
            let (file, mut marks) =
                self.prepare(&temporary, node, depth, fresh, &attributes, &xattrs, version)?;
            if let (Some(follows), Some(changed)) = (&mut marks.follows, changed) {
                // What the user has changed of it stays his.
                let handle = sys::open_at(&user.work, &temporary, Open::Path)?;
                self.write_attributes(node, &handle, &attributes, &xattrs)?;
                user.marks.set_own(&handle, "meta", &changed.encode())?;
                *follows = changed;
            }
            self.place_prepared(pin, node, &temporary, file, names, &marks, fresh)
        })();
        match placed {
            // Where the number went with these names, what is left finds its own on each stack.
            Ok(_) if user.marks.read(&left)?.number == Some(node.id) => {
                user.marks.clear(&left, &user.marks.own("ino"))?;
            }
            Ok(_) => {}
            Err(_) => {
                let _ = sys::unlink_at(&user.work, &temporary);
            }
        }
        placed
    }

    /// Makes the file in the work directory, complete with attributes and marks. Where it fails, or what follows does, the
    /// caller takes it away again: a full disk would stay full.
    #[allow(clippy::too_many_arguments)]
    fn prepare(
        &self,
        temporary: &[u8],
        node: &Arc<Node>,
        depth: Depth,
        fresh: bool,
        attributes: &Attributes,
        xattrs: &[(Vec<u8>, Vec<u8>)],
        version: Option<Digest>,
    ) -> Answer<(Option<File>, Marks)> {
        let user = self.writable()?;
        let mut marks = Marks { number: (!fresh).then_some(node.id), ..Marks::default() };
        if planted("copy-up-changes-the-number") {
            marks.number = None;
        }
        let mut open = None;
        match node.format {
            libc::S_IFREG => {
                let content = self.content_of(node)?;
                let size = content.size();
                let file = sys::create_at(&user.work, temporary, 0o600)?;
                match depth {
                    Depth::Attributes => {
                        file.set_len(size)?;
                        marks.follows = user.marks.follow();
                        marks.metacopy = true;
                        if marks.follows.is_none() {
                            marks.pin = Some(PinMark::Below(Vec::new()));
                        }
                    }
                    Depth::Pin => {
                        file.set_len(size)?;
                        marks.pin = Some(content.pin_mark());
                        marks.metacopy = true;
                    }
                    Depth::Content => marks.partial = self.bring_content(&content, &file, xattrs)?,
                    Depth::Empty => {}
                }
                if marks.pin.is_some() || marks.partial.is_some() {
                    user.pin_version(version)?;
                }
                if marks.pin.is_none() && marks.follows.is_none() {
                    self.note_origin(node, &file, &content)?;
                }
                open = Some(file);
            }
            libc::S_IFLNK => {
                let target = {
                    let state = node.state();
                    let lower = state.lower.as_ref().ok_or(Fail(libc::ESTALE))?;
                    lower.target()?
                };
                sys::symlink_at(&target, &user.work, temporary)?;
            }
            libc::S_IFCHR if attributes.rdev == (0, 0) => {
                open = Some(sys::create_at(&user.work, temporary, 0o600)?);
                marks.null_device = true;
            }
            format => sys::mknod_at(&user.work, temporary, format | 0o600, attributes.rdev)?,
        }
        if depth == Depth::Attributes {
            marks.follows = user.marks.follow();
        }
        if let Some(follows) = &mut marks.follows {
            let state = node.state();
            if let Some(lower) = state.lower.as_ref().filter(|_| state.gone) {
                // What has no name follows nothing any more.
                let names = lower.xattrs()?.into_iter().chain(xattrs.iter().cloned()).map(|(name, _)| name);
                *follows = Changed { xattrs: names.collect(), ..Changed::basics() };
            }
        }
        let opened;
        let handle = match &open {
            Some(file) => file.as_fd(),
            None => {
                opened = sys::open_at(&user.work, temporary, Open::Path)?;
                opened.as_fd()
            }
        };
        if marks.follows == Some(Changed::default()) {
            // Nothing of it is shown until something is changed, and then that is written. Nor does it need a note of
            // its number, where that is the stack's at its place: so its marks have room in the inode, and it takes no
            // block of the disk.
            if is_found_by_its_place(node) {
                marks.number = None;
            }
        } else {
            self.write_attributes(node, handle, attributes, xattrs)?;
        }
        self.write_marks(handle, &marks)?;
        Ok((open, marks))
    }

    /// Brings the content into an empty file: all of it, or none yet of what is copied in pieces from now on.
    fn bring_content(
        &self,
        content: &Content,
        to: &File,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Answer<Option<Partial>> {
        let (object, size) = (self.open_content(content)?, content.size());
        // Filling a file takes its capabilities away for a moment, and a crash for ever.
        let capable = xattrs.iter().any(|(name, _)| name == super::attributes::CAPABILITY);
        if self.in_pieces(content) && !capable {
            if sys::clone_file(to, &object).is_ok() {
                to.set_len(size)?;
                sys::sync(to, true)?;
                return Ok(None);
            }
            if let Some(partial) = self.begin_pieces(to, content, &object)? {
                return Ok(Some(partial));
            }
        }
        sys::copy_sparse(&object, to, size, |_| Ok(()))?;
        sys::sync(to, true)?;
        Ok(None)
    }

    /// Notes where a copied-up file was copied from.
    fn note_origin(&self, node: &Arc<Node>, fd: impl AsFd, content: &Content) -> Answer<()> {
        match content {
            Content::Object(digest, _) => {
                let origin = [format!("{digest} ").as_bytes(), &self.path_of(node)].concat();
                Ok(self.writable()?.marks.set_own(fd, "origin", &origin)?)
            }
            Content::File(..) => Ok(()),
        }
    }

    fn write_marks(&self, fd: BorrowedFd<'_>, marks: &Marks) -> Answer<()> {
        let user = self.writable()?;
        if let Some(number) = marks.number {
            user.marks.set_own(fd, "ino", format!("{number:x}").as_bytes())?;
        }
        if let Some(changed) = &marks.follows {
            user.marks.set_own(fd, "meta", &changed.encode())?;
        }
        if let Some(pin) = &marks.pin {
            user.marks.set_pin(fd, pin)?;
        }
        if let Some(partial) = &marks.partial {
            user.marks.set_own(fd, "partial", &partial.encode())?;
        }
        if marks.null_device {
            user.marks.set_own(fd, "rdev", b"c")?;
        }
        if marks.metacopy {
            user.marks.set_overlay(fd, "metacopy", b"")?;
        }
        Ok(())
    }

    /// Gives a file on disk all attributes that the view shows.
    pub(crate) fn write_attributes(
        &self,
        node: &Node,
        fd: impl AsFd,
        attributes: &Attributes,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Answer<()> {
        let user = self.writable()?;
        let root = crate::sys::process::is_root();
        match sys::chown(fd.as_fd(), Some(attributes.uid), Some(attributes.gid)) {
            Err(e) if !root && e.raw_os_error() == Some(libc::EPERM) => {}
            r => r?,
        }
        for (name, value) in xattrs.iter().filter(|_| !planted("copy-up-loses-xattrs")) {
            match xattr::set(fd.as_fd(), &user.marks.escape(name), value, xattr::Set::Any) {
                Err(e) if !root && e.raw_os_error() == Some(libc::EPERM) => {}
                r => r?,
            }
        }
        if node.format != libc::S_IFLNK {
            let lost = if planted("copy-up-drops-setgid") { libc::S_ISGID } else { 0 };
            sys::chmod(fd.as_fd(), attributes.mode & !lost)?;
        }
        sys::set_times(fd, SetTime::To(attributes.atime), SetTime::To(attributes.mtime))?;
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn place_prepared(
        &self,
        pin: &Pin,
        node: &Arc<Node>,
        temporary: &[u8],
        file: Option<File>,
        names: &[Name],
        marks: &Marks,
        fresh: bool,
    ) -> Answer<bool> {
        let user = self.writable()?;
        let mut marks = marks.clone();
        let owns = marks.follows.is_none() && marks.pin.is_none();
        // Nobody sees a part of a hard-link group, and nobody opens the file while its content changes hands.
        let (_read, _write) = if names.len() > 1 || owns {
            (None, Some(self.names.write()))
        } else {
            (Some(self.names.read()), None)
        };
        let (gone, passed) = {
            let state = node.state();
            (state.gone, state.passed > 0)
        };
        // A swap may have led names elsewhere while the content was copied.
        let names = if gone { Names::default() } else { self.names_that_lead_to(node, names)? };
        if !gone && names.is_empty() {
            return Err(Fail(libc::ESTALE));
        }
        let host = sys::stat_at(&user.work, temporary)?.ino;
        let fresh = fresh || (owns && passed);
        if fresh && marks.number.take().is_some() {
            let handle = sys::open_at(&user.work, temporary, Open::Path)?;
            user.marks.clear(&handle, &user.marks.own("ino"))?;
        }
        let before = if fresh { Some(self.attributes(pin, node)?) } else { None };
        let mut left = names.len();
        let mut kept = None;
        if gone {
            // Changed through a handle after its last name went: a file without a name.
            kept = Some(Arc::new(sys::open_at(&user.work, temporary, Open::Path)?));
            sys::unlink_at(&user.work, temporary)?;
        }
        let note = if left > 1 {
            let path = |(parent, name): &Name| crate::layer::model::join(&self.path_of(parent), name);
            Some(user.note_group(&names.iter().map(path).collect::<Vec<_>>())?)
        } else {
            None
        };
        let mut consumed = gone;
        let placed = names.iter().try_for_each(|(parent, name)| {
            left -= 1;
            let dir = self.upper_dir(parent)?;
            self.keeping_times(parent, || {
                let placed = if left == 0 {
                    sys::rename_at(&user.work, temporary, &*dir, name, Rename::NoReplace)
                } else {
                    sys::link_at(&user.work, temporary, &*dir, name)
                };
                match placed {
                    Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
                    r => {
                        consumed |= left == 0;
                        return Ok(r?);
                    }
                }
                // What stands there follows the stack, as this did: see `split`.
                let second = user.temporary_name();
                sys::link_at(&user.work, temporary, &user.work, &second)?;
                Ok(sys::rename_at(&user.work, &second, &*dir, name, Rename::Replace)?)
            })
        });
        if node.state().lower.as_ref().is_some_and(Lower::is_linked) {
            self.groups.changed();
        }
        placed?;
        if !consumed {
            let _ = sys::unlink_at(&user.work, temporary);
        }
        if let Some(note) = note {
            user.end_group(&note)?;
        }
        if fresh {
            self.leave_behind(node, &names, before);
            return Ok(true);
        }
        let mut state = node.state();
        state.upper = Some(marks);
        state.host = Some(host);
        let known = std::mem::take(&mut state.names);
        names.iter().filter(|(p, n)| known.holds(p.id, n)).for_each(|(p, n)| state.names.add(p, n));
        state.kept = kept;
        let open = state.cached + state.passed > 0;
        if (gone || open) && state.owns_content() {
            state.file = file.map(Arc::new);
        }
        if state.owns_content() {
            state.object = None;
        }
        Ok(false)
    }

    /// The node's names lead to another one from now on; handles that are open keep it.
    fn leave_behind(&self, node: &Arc<Node>, names: &[Name], ghost: Option<Attributes>) {
        {
            let mut state = node.state();
            state.names.clear();
            state.gone = true;
            state.ghost = ghost;
        }
        // The kernel walks again at the name that was opened; at the others it must be told.
        for (parent, name) in names {
            let notices = [Notice::Entry(parent.id, name.to_vec()), Notice::Inode(parent.id)];
            self.notices.lock().extend(notices);
        }
    }

    /// Goes deeper with a file that is in the user layer without its content.
    fn deepen(&self, pin: &Pin, node: &Arc<Node>, depth: Depth, fresh: bool, waits: bool) -> Answer<bool> {
        let user = self.writable()?;
        let (handle, attributes, xattrs) = {
            let _names = self.names.read();
            (self.upper_handle(node)?, self.attributes(pin, node)?, self.all_xattrs(pin, node)?)
        };
        let version = node.state().lower.as_ref().and_then(Lower::version);
        let mut marks = node.state().upper.clone().ok_or(Fail(libc::EIO))?;
        let follows = marks.follows.is_some() && marks.pin.is_none();
        if follows && !node.state().gone {
            let names = {
                let _names = self.names.read();
                self.names_to_copy(node)?
            };
            let shared = u64::from(sys::stat(&handle)?.nlink) > names.len() as u64;
            if shared || self.is_made_otherwise(node, &handle)? {
                return self.split(pin, node, depth, fresh, &names);
            }
        }
        let mut file = None;
        if node.is_file() {
            let content = self.content_of(node)?;
            match depth {
                Depth::Attributes => return Ok(false),
                Depth::Pin => {
                    user.pin_version(version)?;
                    marks.pin = Some(content.pin_mark());
                }
                Depth::Content | Depth::Empty => {
                    let to = File::from(sys::reopen(&handle, Open::ReadWrite)?);
                    // Filling changes the file's times; these are shown until it is done, also after a crash.
                    let times = (attributes.atime, attributes.mtime);
                    user.marks.set_own(&handle, "times", &super::marks::encode_times(times))?;
                    if let Some(marks) = &mut node.state().upper {
                        marks.times = Some(times);
                    }
                    to.set_len(0)?;
                    if depth == Depth::Content
                        && let Some(partial) = self.bring_content(&content, &to, &xattrs)?
                    {
                        user.pin_version(version)?;
                        // It says nothing until the file stops following, or its pin goes.
                        user.marks.set_own(&handle, "partial", &partial.encode())?;
                        marks.partial = Some(partial);
                    }
                    self.note_origin(node, &handle, &content)?;
                    marks.pin = None;
                    marks.metacopy = false;
                    file = Some(to);
                }
            }
        }
        // Nobody opens the file while its content changes hands.
        let _names = self.names.write();
        self.still_shown(node, true)?;
        let read = file.is_some() && node.state().passed > 0;
        if read && waits {
            return Err(Fail(libc::EBUSY));
        }
        let fresh = fresh || read;
        if marks.follows.is_some() {
            self.write_attributes(node, &handle, &attributes, &xattrs)?;
        } else {
            let (atime, mtime) = (SetTime::To(attributes.atime), SetTime::To(attributes.mtime));
            sys::set_times(&handle, atime, mtime)?;
            // Writing the content took the capabilities away.
            if let Some((name, value)) = xattrs.iter().find(|(n, _)| n == super::attributes::CAPABILITY) {
                xattr::set(&handle, name, value, xattr::Set::Any)?;
            }
        }
        let number = (!fresh && node.id < BORN).then_some(node.id);
        if marks.number != number {
            // A swap may have given what follows the stack another number since it was brought up.
            match number {
                Some(id) => user.marks.set_own(&handle, "ino", format!("{id:x}").as_bytes())?,
                None => user.marks.clear(&handle, &user.marks.own("ino"))?,
            }
            marks.number = number;
        }
        if !marks.metacopy {
            user.marks.clear(&handle, &user.marks.overlay("metacopy"))?;
        }
        // The pin is made before the file stops following, and the content is whole before the pin goes.
        if let Some(mark) = &marks.pin {
            user.marks.set_pin(&handle, mark)?;
        }
        user.marks.clear(&handle, &user.marks.own("meta"))?;
        marks.follows = None;
        if marks.pin.is_none() {
            user.marks.clear_pin(&handle)?;
        }
        marks.times = None;
        user.marks.clear(&handle, &user.marks.own("times"))?;
        if fresh {
            let names = node.state().names.clone();
            self.leave_behind(node, &names, Some(attributes));
            return Ok(true);
        }
        let mut state = node.state();
        state.upper = Some(marks);
        if state.owns_content() {
            state.object = None;
            if state.cached + state.passed > 0 || state.gone {
                state.file = file.map(Arc::new);
            }
        }
        Ok(false)
    }

    /// Whether what follows the stack was made for another target or device than the stack has there since a swap. That
    /// cannot be changed: it needs another inode on disk. `handle` is the present one.
    pub(crate) fn is_made_otherwise(&self, node: &Node, handle: impl AsFd) -> Answer<bool> {
        if !matches!(node.format, libc::S_IFLNK | libc::S_IFCHR | libc::S_IFBLK) {
            return Ok(false);
        }
        let lower = node.state().lower.clone().ok_or(Fail(libc::ESTALE))?;
        if node.format == libc::S_IFLNK {
            return Ok(sys::readlink_at(handle, b"")? != lower.target()?);
        }
        Ok(sys::stat(handle)?.rdev != lower.attributes(node.id)?.rdev)
    }

    /// The names under which a file of the stack is seen: all of its hard-link group that still show it.
    /// The caller holds `names`.
    fn names_to_copy(&self, node: &Arc<Node>) -> Answer<Names> {
        let pin = &self.pin();
        let (names, gone) = {
            let state = node.state();
            (state.names.clone(), state.gone)
        };
        if gone {
            return Ok(Names::default());
        }
        let mut out = self.names_that_lead_to(node, &names)?;
        let Some(lower) = self.lower(pin, node)? else { return Ok(out) };
        if lower.is_linked() && !planted("copy-up-breaks-links") {
            let moved = if lower.pinned { moved_above(node) } else { None };
            for (parent, name) in lower.group()? {
                let dir = match &moved {
                    None => self.walk(pin, &parent)?,
                    Some((top, was)) => match beneath(&parent, was) {
                        Some(rest) => self.walk_from(pin, top.clone(), rest)?,
                        None => None,
                    },
                };
                let Some(dir) = dir.filter(|d| d.is_dir()) else { continue };
                if out.holds(dir.id, &name) {
                    continue;
                }
                if self.child(pin, &dir, &name)?.is_some_and(|c| c.id == node.id) {
                    out.add(&dir, &name);
                }
            }
        }
        if out.is_empty() { Err(Fail(libc::ESTALE)) } else { Ok(out) }
    }

    /// Those of a node's names that lead to it in the present generation. The caller holds `names`.
    fn names_that_lead_to(&self, node: &Arc<Node>, names: &[Name]) -> Answer<Names> {
        let pin = self.pin();
        let mut out = Names::default();
        for (parent, name) in names {
            if self.child(&pin, parent, name)?.is_some_and(|c| Arc::ptr_eq(&c, node)) {
                out.add(parent, name);
            }
        }
        Ok(out)
    }

    /// Makes sure that a directory is in the user layer, with the directories above it.
    pub(crate) fn copy_up_dir(&self, pin: &Pin, node: &Arc<Node>) -> Answer<()> {
        let user = self.writable()?;
        let is_up = |n: &Arc<Node>| n.state().upper.is_some();
        if is_up(node) {
            return Ok(());
        }
        let parent = {
            let _names = self.names.read();
            let gone = node.state().gone;
            if !gone && !self.dir_is_shown(&self.pin(), node)? {
                // A swap removed it while somebody stands in it: as after rmdir(2).
                return Err(Fail(libc::ENOENT));
            }
            if gone { None } else { Some(node.place()?.0) }
        };
        if let Some(parent) = parent {
            self.copy_up_dir(pin, &parent)?;
        }
        let _copying = node.copying.lock();
        if is_up(node) {
            return Ok(());
        }
        let (attributes, xattrs) = {
            let _names = self.names.read();
            if !node.state().gone && self.lower(pin, node)?.is_none() {
                // A swap removed it while somebody stands in it: as after rmdir(2).
                return Err(Fail(libc::ENOENT));
            }
            (self.attributes(pin, node)?, self.all_xattrs(pin, node)?)
        };
        let temporary = user.temporary_name();
        sys::mkdir_at(&user.work, &temporary, 0o700)?;
        let result = (|| {
            let handle = sys::open_at(&user.work, &temporary, Open::DirPath)?;
            self.write_attributes(node, &handle, &attributes, &xattrs)?;
            let mut marks = Marks { number: Some(node.id), follows: user.marks.follow(), ..Marks::default() };
            self.write_marks(handle.as_fd(), &marks)?;
            marks.default_acl =
                xattrs.iter().find(|(n, _)| n == super::marks::DEFAULT_ACL).map(|(_, v)| v.clone());
            let _names = self.names.read();
            if node.state().gone {
                // Changed through a handle after its name went: a directory without a name.
                sys::rmdir_at(&user.work, &temporary)?;
                let mut state = node.state();
                state.kept = Some(Arc::new(handle));
                state.upper = Some(marks);
                return Ok(());
            }
            if !self.dir_is_shown(&self.pin(), node)? {
                // A swap took it meanwhile: what stands at its place now is not to be set aside for it.
                return Err(Fail(libc::ENOENT));
            }
            let (parent, name) = node.place()?;
            let dir = self.upper_dir(&parent)?;
            self.keeping_times(&parent, || {
                let place = || sys::rename_at(&user.work, &temporary, &*dir, &name, Rename::NoReplace);
                match place() {
                    // Something that follows the stack, but the stack has a directory there now.
                    Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                        Ok(user.displace(&*dir, &name, &self.path_of(node), place)?)
                    }
                    r => Ok(r?),
                }
            })?;
            let host = sys::stat(&handle)?.ino;
            user.keep_dir(node.id, handle);
            let mut state = node.state();
            state.upper = Some(marks);
            state.host = Some(host);
            Ok(())
        })();
        if result.is_err() {
            // It is empty, and this needs no descriptor, of which there may be none left.
            let _ = sys::rmdir_at(&user.work, &temporary);
        }
        result
    }

    /// Does something in a directory of the user layer that the user does not see: its times stay.
    pub(crate) fn keeping_times(&self, dir: &Arc<Node>, work: impl FnOnce() -> Answer<()>) -> Answer<()> {
        let fd = self.upper_dir(dir)?;
        let before = sys::stat(&*fd)?;
        let result = work();
        sys::set_times(&*fd, SetTime::To(before.atime), SetTime::To(before.mtime))?;
        result
    }
}

/// Whether the stack gives what follows it at its place the number that the node has, whatever else the user does.
fn is_found_by_its_place(node: &Node) -> bool {
    let state = node.state();
    state
        .lower
        .as_ref()
        .is_some_and(|l| matches!(l.entry, Entry::Tree(..)) && !l.is_linked() && l.number() == node.id)
}

/// The moved directory in which a node lies, with its path in the version that it stands on.
fn moved_above(node: &Node) -> Option<(Arc<Node>, Vec<u8>)> {
    let mut at = node.place().ok()?.0;
    loop {
        let pin = at.state().upper.as_ref().and_then(|m| m.pin.clone());
        match pin {
            Some(PinMark::Dir(_, _, path)) => return Some((at, path)),
            Some(PinMark::Below(to)) if to.starts_with(b"/") => return Some((at, to.get(1..)?.to_vec())),
            _ => {}
        }
        at = at.place().ok()?.0;
    }
}

/// The part of `path` beneath the directory `top`.
fn beneath<'a>(path: &'a [u8], top: &[u8]) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(top)?;
    if rest.is_empty() || top.is_empty() { Some(rest) } else { rest.strip_prefix(b"/") }
}
