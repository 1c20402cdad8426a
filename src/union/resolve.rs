//! From names and numbers to nodes.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::attributes::Attributes;
use super::lower::{Entry, Lower, Stack, Tree};
use super::marks::{Found, Marks, PinMark};
use super::node::{BORN, Name, Node, ROOT, State, born_generation, born_number};
use super::upper::UserLayer;
use super::{Answer, Fail, Pin, View};
use crate::layer::index;
use crate::store::Digest;
use crate::sys::fs::{self as sys, Open, Stat};

/// Bits that make another number of a path's, the first of which leads to no path of the tree.
const SPLITS: std::ops::RangeInclusive<u32> = 56..=61;

/// The number of what is left of a hard-link group below the user layer.
pub(crate) fn split_number(index: &index::Index, number: u64) -> crate::error::Result<u64> {
    for bit in SPLITS.rev() {
        let other = number ^ (1 << bit);
        if other > ROOT && index.by_number(other)?.is_none() {
            return Ok(other);
        }
    }
    Ok(number)
}

/// The path of a number, or of the number that it was made of by [`split_number`] or [`other_number`].
pub(crate) fn by_given_number(stack: &Stack, id: u64) -> crate::error::Result<Option<Lower>> {
    match by_number(stack, id)? {
        None => by_number(stack, first_number(id)),
        found => Ok(found),
    }
}

/// The path of a number, or of the number that it was made of by [`split_number`].
fn by_number(stack: &Stack, id: u64) -> crate::error::Result<Option<Lower>> {
    match stack {
        Stack::Version(tree) => Ok(tree_by_number(&tree.index, id)?.map(|entry| Lower::of(tree, entry))),
        Stack::Directories(stack) => Ok(stack.by_number(id)?.map(|place| Lower::at(stack, place))),
    }
}

fn tree_by_number(index: &index::Index, id: u64) -> crate::error::Result<Option<index::Node>> {
    if let Some(entry) = index.by_number(id)? {
        return Ok(Some(entry));
    }
    for bit in SPLITS.rev() {
        if let Some(entry) = index.by_number(id ^ (1 << bit))?
            && !entry.is_dir()
            && entry.nlink > 1
        {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

impl View {
    /// Looks a name up; the kernel is given the node. `None`: no such name.
    pub fn lookup(&self, pin: &Pin, parent: u64, name: &[u8]) -> Answer<Option<(Arc<Node>, Attributes)>> {
        let mut found = self.look_at(pin, parent, name)?;
        let now = self.pin();
        if found.as_ref().is_some_and(|(_, a)| a.nlink == 0) && now.0.number != pin.0.number {
            // A swap displaced it meanwhile. The kernel would keep a file without links at the name that it asked for.
            found = self.look_at(&now, parent, name)?;
        }
        if let Some((node, _)) = &found {
            self.nodes.remember(node, pin.0.number);
        }
        Ok(found)
    }

    fn look_at(&self, pin: &Pin, parent: u64, name: &[u8]) -> Answer<Option<(Arc<Node>, Attributes)>> {
        let dir = match (name, self.nodes.get(parent)) {
            // This is asked of what the kernel has not.
            (b".", None) => self.find_again(pin, parent)?,
            (_, Some(known)) => known,
            (_, None) => self.node(pin, parent)?,
        };
        let _names = self.names.read();
        let found = match name {
            b"." => Some(dir),
            b".." => Some(dir.place().map(|(up, _)| up).unwrap_or(dir)),
            _ => self.child(pin, &dir, name)?,
        };
        let Some(node) = found else { return Ok(None) };
        let attributes = self.attributes(pin, &node)?;
        if matches!(name, b"." | b"..") && attributes.nlink == 0 && node.state().gone {
            // A file handle of something that was removed and is not forgotten yet.
            return Err(Fail(libc::ESTALE));
        }
        Ok(Some((node, attributes)))
    }

    /// Where a symbolic link points to.
    pub fn readlink(&self, pin: &Pin, id: u64) -> Answer<Vec<u8>> {
        let node = self.node(pin, id)?;
        if node.format != libc::S_IFLNK {
            return Err(Fail(libc::EINVAL));
        }
        let _names = self.names.read();
        if node.state().owns_content() {
            let (dir, name) = self.upper_place(&node)?;
            return Ok(sys::readlink_at(&*dir, &name)?);
        }
        let lower = self.lower(pin, &node)?.ok_or(Fail(libc::ESTALE))?;
        Ok(lower.target()?)
    }

    /// The kernel forgot a node `count` times.
    pub fn forget(&self, id: u64, count: u64) {
        self.nodes.forget(id, count);
    }

    /// The node at a name in a directory. The caller holds `names`.
    pub(crate) fn child(&self, pin: &Pin, dir: &Arc<Node>, name: &[u8]) -> Answer<Option<Arc<Node>>> {
        for last in [false, true] {
            // The number is that of something of the user's. Either that was brought up just now, at this very
            // name: then it is found there; or it stands elsewhere: then this one takes another number.
            if let Some(found) = self.child_once(pin, dir, name, last)? {
                return Ok(found);
            }
        }
        Err(Fail(libc::EIO))
    }

    /// `None`: look again.
    fn child_once(
        &self,
        pin: &Pin,
        dir: &Arc<Node>,
        name: &[u8],
        renumber: bool,
    ) -> Answer<Option<Option<Arc<Node>>>> {
        if !dir.is_dir() {
            return Err(Fail(libc::ENOTDIR));
        }
        if name.len() > 255 {
            return Err(Fail(libc::ENAMETOOLONG));
        }
        let below = |v: &View| -> Answer<Option<Lower>> {
            Ok(match v.lower(pin, dir)? {
                Some(lower) => lower.child(name)?,
                None => None,
            })
        };
        let (has_upper, gone) = {
            let s = dir.state();
            (s.upper.is_some(), s.gone)
        };
        if gone {
            return Ok(Some(None));
        }
        if has_upper && let Some(user) = &self.user {
            match user.marks.probe(&*self.upper_dir(dir)?, name)? {
                Some(Found::Whiteout) => return Ok(Some(None)),
                Some(Found::Entry(stat, marks)) => {
                    if let Some(node) = self.upper_child(pin, dir, name, &stat, marks, below(self)?)? {
                        return Ok(Some(Some(node)));
                    }
                }
                None => {}
            }
        }
        Ok(match below(self)? {
            Some(lower) => self.lower_child(pin, dir, name, lower, renumber)?.map(Some),
            None => Some(None),
        })
    }

    /// The number of what follows a path of the stack: the one that it had when it was brought up, if that is one
    /// that this path may have. On another stack it is found as for a path that is not in the user layer; names
    /// that share its file on disk are not others.
    pub(crate) fn followed_number(
        &self,
        pin: &Pin,
        dir: &Arc<Node>,
        lower: &Lower,
        stat: &Stat,
        marks: &Marks,
    ) -> Answer<u64> {
        let number = lower.number();
        let split = match &lower.entry {
            Entry::Tree(tree, _) => split_number(&tree.index, number)?,
            _ => number,
        };
        match marks.number {
            Some(n) if [number, split, other_number(number), other_number(split)].contains(&n) => Ok(n),
            _ => {
                let number = self.number_beside(pin, lower, Some(stat.ino))?;
                self.number_in(pin, dir, lower, number)
            }
        }
    }

    /// The number under which `lower` is seen in `dir`, where it has this one in its tree.
    pub(crate) fn number_in(&self, pin: &Pin, dir: &Arc<Node>, lower: &Lower, number: u64) -> Answer<u64> {
        if self.user.as_ref().is_none_or(|u| u.moved.is_empty()) {
            return Ok(number);
        }
        let apart = self.stands_apart(dir, self.lower(pin, dir)?.as_ref());
        Ok(self.number_beneath(apart, lower.pinned, number))
    }

    /// Whether what a directory shows of the stack, which is `lower`, is not what has the stack's numbers: the user moved
    /// that away, and it took them along.
    pub(crate) fn stands_apart(&self, dir: &Node, lower: Option<&Lower>) -> bool {
        let (Some(user), Some(lower)) = (&self.user, lower) else { return false };
        let number = lower.number();
        dir.id != number && (dir.id == other_number(number) || !lower.pinned && user.moved.contains(number))
    }

    /// The number of something of the stack beneath a directory that stands apart or not: another one if its own went
    /// with what the user moved.
    pub(crate) fn number_beneath(&self, apart: bool, pinned: bool, number: u64) -> u64 {
        let went = |user: &UserLayer| apart || !pinned && user.moved.contains(number);
        if self.user.as_ref().is_some_and(went) { other_number(number) } else { number }
    }

    /// What is moved or linked takes its number along, and the stack's at its old place gets another where it is seen
    /// again.
    pub(crate) fn takes_number(&self, node: &Node) -> Answer<()> {
        let user = self.writable()?;
        if node.id < BORN {
            user.moved.add(&user.work, node.id)?;
            self.groups.changed();
        }
        Ok(())
    }

    /// The node of what only the stack has. `None`: something of the user's has its number.
    fn lower_child(
        &self,
        pin: &Pin,
        dir: &Arc<Node>,
        name: &[u8],
        lower: Lower,
        renumber: bool,
    ) -> Answer<Option<Arc<Node>>> {
        let number = self.lower_number(pin, &lower)?;
        let (mut id, format) = (self.number_in(pin, dir, &lower, number)?, lower.format());
        let generation = pin.0.number;
        let node = loop {
            let node = self.nodes.get_or_add(id, || {
                let state =
                    State { lower: Some(lower.clone()), lower_generation: generation, ..State::default() };
                Node::new(id, format, 0, state)
            });
            self.follow_moves(&node);
            if node.format == format
                && node.state().upper.is_none()
                && !is_elsewhere(&node, dir, name, &lower)
            {
                break node;
            }
            if !renumber {
                return Ok(None);
            }
            id = other_number(id);
        };
        {
            let mut state = node.state();
            state.shown = state.shown.max(generation);
            if state.lower.is_none() || state.lower_generation < generation {
                state.lower = Some(lower);
                state.gains = None;
                state.displaced = false;
                state.lower_generation = generation;
            }
        }
        node.add_name(dir, name);
        Ok(Some(node))
    }

    /// Whether a known node of the number that an entry of the user layer claims is another inode than that entry:
    /// the user's at another place of the disk, or the stack's at another path.
    fn is_another(
        &self,
        pin: &Pin,
        known: &Arc<Node>,
        dir: &Arc<Node>,
        name: &[u8],
        stat: &Stat,
    ) -> Answer<bool> {
        let names = {
            let state = known.state();
            if state.upper.is_some() {
                return Ok(state.host.is_some_and(|h| h != stat.ino));
            }
            if state.names.holds(dir.id, name) {
                return Ok(false);
            }
            state.names.clone()
        };
        for (parent, name) in names {
            let Some(lower) = self.below(pin, &parent, &name)? else { continue };
            let number = self.lower_number(pin, &lower)?;
            if self.number_in(pin, &parent, &lower, number)? != known.id || parent.state().gone {
                continue;
            }
            let above = match &self.user {
                Some(user) if parent.state().upper.is_some() => {
                    user.marks.probe(&*self.upper_dir(&parent)?, &name)?
                }
                _ => None,
            };
            if above.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The node of an entry of the user layer; `None` where it follows something that is not there.
    pub(crate) fn upper_child(
        &self,
        pin: &Pin,
        dir: &Arc<Node>,
        name: &[u8],
        stat: &Stat,
        marks: Marks,
        below: Option<Lower>,
    ) -> Answer<Option<Arc<Node>>> {
        let format = if marks.null_device { libc::S_IFCHR } else { stat.format() };
        let mut marks = marks;
        if marks.partial.is_some() {
            // Whoever looks at the file puts its times right first.
            marks.times = None;
        }
        let lower;
        let mut id;
        let mut generation = 0;
        if stat.is_dir() {
            lower = match &marks.pin {
                Some(PinMark::Below(_)) if marks.opaque => None,
                Some(pin_mark) => self.pinned_lower(pin, dir, name, pin_mark)?.filter(Lower::is_dir),
                None if marks.opaque => None,
                None => below.filter(Lower::is_dir),
            };
            id = marks.number.unwrap_or_else(|| born_number(stat));
        } else if marks.follows.is_some() && marks.pin.is_none() {
            // It shows nothing where the stack has nothing of its type to follow.
            match below.filter(|l| l.format() == format) {
                Some(found) => {
                    id = self.followed_number(pin, dir, &found, stat, &marks)?;
                    lower = Some(found);
                }
                None => return Ok(None),
            }
        } else {
            if marks.pin.as_ref().is_some_and(|p| !p.fits(format)) {
                log::error!("a file of the user layer has a pin that does not fit it");
                return Err(Fail(libc::EUCLEAN));
            }
            // A file of another overlay program that has its content below.
            lower = match &marks.pin {
                Some(to @ PinMark::Below(_)) => {
                    let found = self.pinned_lower(pin, dir, name, to)?.filter(|l| l.format() == format);
                    Some(found.ok_or_else(|| {
                        log::error!("a file of the user layer has no content, and none lies below");
                        Fail(libc::EIO)
                    })?)
                }
                _ => None,
            };
            id = marks.number.unwrap_or_else(|| born_number(stat));
        }
        if id < BORN
            && let Some(known) = self.nodes.get(id)
            && self.is_another(pin, &known, dir, name, stat)?
        {
            id = born_number(stat);
        }
        if id >= BORN {
            generation = born_generation(stat);
        }
        let make = || {
            let state = State {
                lower: lower.clone(),
                lower_generation: pin.0.number,
                upper: Some(marks.clone()),
                host: Some(stat.ino),
                ..State::default()
            };
            Node::new(id, format, generation, state)
        };
        let mut node = self.nodes.get_or_add(id, make);
        if node.format != format || node.generation != generation {
            // The host gave the inode number of a deleted file to this one.
            node = make();
            self.nodes.replace(&node);
        }
        {
            let mut state = node.state();
            if state.upper.is_none() {
                state.upper = Some(marks);
            }
            state.host = Some(stat.ino);
            state.shown = state.shown.max(pin.0.number);
            if lower.is_some() && (state.lower.is_none() || state.lower_generation < pin.0.number) {
                state.lower = lower;
                state.gains = None;
                state.displaced = false;
                state.lower_generation = pin.0.number;
            }
        }
        node.add_name(dir, name);
        Ok(Some(node))
    }

    /// Notes for a node whether what it shows of the stack belongs to a directory that the user moved. Moving one does
    /// not walk what is known beneath it: whoever asks looks at the directories above, up to the first that knows of all
    /// moves. The caller holds `names`, or no move is under way.
    pub(crate) fn follow_moves(&self, node: &Arc<Node>) {
        let moves = self.moves.load(Ordering::Acquire);
        if node.state().moves == moves {
            return;
        }
        let mut way = Vec::new();
        let mut at = node.clone();
        let mut pinned = loop {
            if at.state().moves == moves {
                break at.state().lower.as_ref().is_some_and(|l| l.pinned);
            }
            let parent = above_in_the_stack(&at);
            way.push(at);
            match parent {
                Some(parent) => at = parent,
                None => break false,
            }
        };
        for node in way.into_iter().rev() {
            let mut state = node.state();
            state.moves = moves;
            let own = !node.is_dir() && state.upper.as_ref().is_some_and(|m| m.pin.is_some());
            pinned = match &mut state.lower {
                Some(lower) => {
                    lower.pinned |= pinned && !own;
                    lower.pinned
                }
                None => false,
            };
        }
    }

    /// The part of a node in the stack of the request's generation.
    pub(crate) fn lower(&self, pin: &Pin, node: &Arc<Node>) -> Answer<Option<Lower>> {
        self.follow_moves(node);
        {
            let state = node.state();
            let fixed = state.lower.as_ref().is_some_and(|l| l.pinned)
                || state.upper.as_ref().is_some_and(|m| m.opaque || (m.pin.is_some() && !node.is_dir()))
                || state.gone;
            if fixed || state.lower_generation == pin.0.number {
                return Ok(state.lower.clone());
            }
        }
        let stack = &pin.0.stack;
        let (number, up) = {
            let state = node.state();
            (state.lower.as_ref().map_or(node.id, Lower::number), state.upper.is_some())
        };
        let found = if node.id == ROOT {
            Some(stack.root()?)
        } else if node.is_dir() && up {
            // In the user layer: it lies over a directory of the same path, if the stack has one.
            let (parent, name) = node.place()?;
            match self.lower(pin, &parent)? {
                Some(lower) => lower.child(&name)?.filter(Lower::is_dir),
                None => None,
            }
        } else {
            by_number(stack, number)?
        };
        let mut state = node.state();
        if state.lower_generation > pin.0.number {
            // A request of the generation before, while others have moved on: it goes on seeing its own.
            return Ok(if found.is_some() || node.is_dir() { found } else { state.lower.clone() });
        }
        if state.lower_generation < pin.0.number {
            match found {
                Some(lower) => (state.lower, state.displaced) = (Some(lower), false),
                None if node.is_dir() => {
                    // Who stands in a directory that is not there any more sees it as after rmdir(2).
                    if let Some(lower) = state.lower.take().filter(|_| state.upper.is_none()) {
                        let last = lower.attributes(node.id)?;
                        state.ghost = Some(super::attributes::Attributes { nlink: 0, ..last });
                    }
                }
                None => state.displaced = true,
            }
            state.subdirs = None;
            state.lower_generation = pin.0.number;
        }
        Ok(state.lower.clone())
    }

    /// What something that the user moved stands on. The caller holds `names`.
    fn pinned_lower(&self, pin: &Pin, dir: &Arc<Node>, name: &[u8], mark: &PinMark) -> Answer<Option<Lower>> {
        let (version, digest, path) = match mark {
            PinMark::Dir(version, digest, path) => (version, digest, path),
            PinMark::Below(to) => {
                let found = match (&pin.0.stack, to.strip_prefix(b"/")) {
                    (Stack::Directories(stack), Some(path)) => {
                        stack.find(path)?.map(|place| Lower::at(stack, place))
                    }
                    _ => self.below(pin, dir, if to.is_empty() { name } else { to })?,
                };
                return Ok(found.map(|lower| Lower { pinned: true, ..lower }));
            }
            PinMark::Object(..) => {
                log::error!("a directory of the user layer has a file's pin");
                return Err(Fail(libc::EUCLEAN));
            }
        };
        let tree = self.pinned_tree(version)?;
        let entry = tree.index.find(path)?.filter(index::Node::is_dir);
        match entry {
            Some(entry) if tree.index.dir_digest(&entry)? == *digest => {
                Ok(Some(Lower { pinned: true, ..Lower::of(&tree, entry) }))
            }
            _ => {
                log::error!("a pin names a directory that version {version} does not have");
                Err(Fail(libc::EUCLEAN))
            }
        }
    }

    /// The tree of a version that something moved stands on.
    pub(crate) fn pinned_tree(&self, version: &Digest) -> Answer<Arc<Tree>> {
        if let Stack::Version(current) = self.generation.read().stack.clone()
            && current.version == *version
        {
            return Ok(current);
        }
        if let Some(tree) = self.pinned_trees.lock().get(version) {
            return Ok(tree.clone());
        }
        let library = self.library.as_ref().ok_or(Fail(libc::EUCLEAN))?;
        let tree = Tree::open(&library.store, version)?;
        self.pinned_trees.lock().insert(*version, tree.clone());
        Ok(tree)
    }

    /// A directory of the user layer, open. The caller holds `names`, and the node has an upper part.
    pub(crate) fn upper_dir(&self, node: &Arc<Node>) -> Answer<Arc<OwnedFd>> {
        let user = self.user.as_ref().ok_or(Fail(libc::EROFS))?;
        if node.id == ROOT {
            return Ok(user.top.clone());
        }
        if let Some(fd) = node.state().kept.clone() {
            return Ok(fd);
        }
        if let Some(fd) = user.kept_dir(node.id) {
            return Ok(fd);
        }
        let (parent, name) = node.place()?;
        let fd = sys::open_at(&*self.upper_dir(&parent)?, &name, Open::DirPath)?;
        Ok(user.keep_dir(node.id, fd))
    }

    /// A descriptor (`O_PATH`) of a node's part in the user layer. The caller holds `names`.
    pub(crate) fn upper_handle(&self, node: &Arc<Node>) -> Answer<OwnedFd> {
        let (file, kept) = {
            let state = node.state();
            (state.file.clone(), state.kept.clone())
        };
        if let Some(file) = file {
            return Ok(file.try_clone()?.into());
        }
        if let Some(kept) = kept {
            return Ok(kept.try_clone()?);
        }
        if node.is_dir() {
            return Ok(self.upper_dir(node)?.try_clone()?);
        }
        let (dir, name) = self.upper_place(node)?;
        Ok(sys::open_at(&*dir, &name, Open::Path)?)
    }

    /// Where a node that is not a directory stands in the user layer. Of several names one may lead elsewhere
    /// since a swap: the one that is taken leads to the node's file. The caller holds `names`.
    pub(crate) fn upper_place(&self, node: &Arc<Node>) -> Answer<(Arc<OwnedFd>, Box<[u8]>)> {
        let (first, several, host) = {
            let state = node.state();
            (state.names.first().cloned(), state.names.len() > 1, state.host)
        };
        let leads_here = |(parent, name): Name| {
            let dir = self.upper_dir(&parent).ok()?;
            let here =
                !several || host.is_none() || sys::stat_at(&*dir, &name).is_ok_and(|s| Some(s.ino) == host);
            here.then_some((dir, name))
        };
        if let Some(found) = first.and_then(leads_here) {
            return Ok(found);
        }
        // A file may have 65,000 names: they are copied only where the first one leads elsewhere.
        let others: Vec<Name> = node.state().names.iter().skip(1).cloned().collect();
        others.into_iter().find_map(leads_here).ok_or(Fail(libc::ESTALE))
    }

    /// Whether a change may reach a node: not one whose names lead elsewhere since a swap. What the user has is
    /// never displaced, so this is about what the stack shows. The caller holds `names`, so that no swap comes
    /// between this and the change. `ESTALE` makes the kernel walk again.
    ///
    /// Once the kernel knows the swap, what changes attributes of a displaced file comes through a handle that was
    /// opened before: the file is one without a name then, and the change is its own.
    pub(crate) fn still_shown(&self, node: &Arc<Node>, content: bool) -> Answer<()> {
        let pin = self.pin();
        let names = {
            let state = node.state();
            let users = state.upper.as_ref().is_some_and(|m| m.follows.is_none() || m.pin.is_some());
            if node.is_dir() || users || state.gone || state.shown >= pin.0.number {
                return Ok(());
            }
            state.names.clone()
        };
        for (parent, name) in names {
            if self.child(&pin, &parent, &name)?.is_some_and(|c| Arc::ptr_eq(&c, node)) {
                return Ok(());
            }
        }
        let open = {
            let state = node.state();
            state.cached + state.passed > 0
        };
        // The kernel opens what is no regular file by itself: whoever holds it open is not known here.
        if content || (node.is_file() && !open) || !self.is_told(&pin) {
            return Err(Fail(libc::ESTALE));
        }
        let (last, xattrs) = (self.attributes(&pin, node)?, self.all_xattrs(&pin, node)?);
        let mut state = node.state();
        state.names.clear();
        (state.gone, state.ghost, state.upper, state.host) = (true, Some(last), None, None);
        state.ghost_xattrs = Some(xattrs);
        Ok(())
    }

    /// Whether the name of a directory leads to it. The caller holds `names`.
    pub(crate) fn dir_is_shown(&self, pin: &Pin, node: &Arc<Node>) -> Answer<bool> {
        if node.id == ROOT {
            return Ok(true);
        }
        let (parent, name) = node.place()?;
        Ok(self.child(pin, &parent, &name)?.is_some_and(|c| Arc::ptr_eq(&c, node)))
    }

    /// As [`View::still_shown`] for a directory whose attributes are about to be changed: who holds one open that a
    /// swap displaced has a directory without a name, and what stands at its place now is another. The caller holds
    /// `names`.
    pub(crate) fn dir_still_shown(&self, node: &Arc<Node>) -> Answer<()> {
        let pin = self.pin();
        let free = {
            let state = node.state();
            state.gone || state.upper.is_some()
        };
        if free || self.dir_is_shown(&pin, node)? {
            return Ok(());
        }
        if !self.is_told(&pin) {
            return Err(Fail(libc::ESTALE));
        }
        let last = self.attributes(&pin, node)?;
        let mut state = node.state();
        state.names.clear();
        (state.gone, state.ghost) = (true, Some(Attributes { nlink: 0, ..last }));
        Ok(())
    }

    /// The node of a number: a known one, or one that the kernel has and this daemon does not know.
    pub fn node(&self, pin: &Pin, id: u64) -> Answer<Arc<Node>> {
        if let Some(node) = self.nodes.get(id) {
            return Ok(node);
        }
        let node = self.find_again(pin, id)?;
        if self.inherited.load(Ordering::Relaxed) {
            // The kernel has it from an earlier daemon, and says when it forgets it.
            self.nodes.remember_inherited(&node);
        }
        Ok(node)
    }

    /// The node of a number that the kernel may have forgotten, and asks for by a file handle.
    fn find_again(&self, pin: &Pin, id: u64) -> Answer<Arc<Node>> {
        let by_path = {
            let _names = self.names.read();
            self.find_by_path(pin, id)?
        };
        let found = match by_path {
            Some(node) => Some(node),
            None => self.find_in_user_layer(pin, id)?,
        };
        found.ok_or(Fail(libc::ESTALE))
    }

    /// The node of a number that the stack has, where its path leads to it. The caller holds `names`.
    pub(crate) fn find_by_path(&self, pin: &Pin, id: u64) -> Answer<Option<Arc<Node>>> {
        if id < BORN
            && let Some(lower) = by_given_number(&pin.0.stack, id)?
        {
            for (parent, name) in lower.group()? {
                let path = crate::layer::model::join(&parent, &name);
                if let Some(node) = self.walk(pin, &path)?
                    && node.id == id
                {
                    return Ok(Some(node));
                }
            }
        }
        Ok(None)
    }

    /// The node at a path of the view. The caller holds `names`.
    pub(crate) fn walk(&self, pin: &Pin, path: &[u8]) -> Answer<Option<Arc<Node>>> {
        self.walk_from(pin, self.nodes.root().clone(), path)
    }

    /// The node at a path beneath a directory. The caller holds `names`.
    pub(crate) fn walk_from(&self, pin: &Pin, top: Arc<Node>, path: &[u8]) -> Answer<Option<Arc<Node>>> {
        let mut at = top;
        for name in path.split(|c| *c == b'/').filter(|n| !n.is_empty()) {
            if !at.is_dir() {
                return Ok(None);
            }
            match self.child(pin, &at, name)? {
                Some(node) => at = node,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// Looks for a number among what came with a directory that the user moved: it has its number in the tree of the
    /// version that the directory is pinned to, at a path that leads elsewhere or nowhere in the view.
    pub(crate) fn search_moved(&self, pin: &Pin, dir: &Arc<Node>, id: u64) -> Answer<Option<Arc<Node>>> {
        let Some(lower) = self.lower(pin, dir)?.filter(|l| l.pinned && id < BORN) else { return Ok(None) };
        let (stack, top) = match &lower.entry {
            Entry::Tree(tree, top) => (Stack::Version(tree.clone()), tree.index.path(top)?),
            Entry::Plain(stack, top) => (Stack::Directories(stack.clone()), top.path().to_vec()),
        };
        let Some(found) = by_given_number(&stack, id)? else { return Ok(None) };
        for (parent, name) in found.group()? {
            let path = [&parent[..], b"/", &name].concat();
            let beneath = path.strip_prefix(&top[..]).and_then(|rest| rest.strip_prefix(b"/"));
            if let Some(rest) = beneath
                && let Some(node) = self.walk_from(pin, dir.clone(), rest)?
                && node.id == id
            {
                return Ok(Some(node));
            }
        }
        Ok(None)
    }

    /// The path of a node in the view, without a leading slash.
    pub(crate) fn path_of(&self, node: &Arc<Node>) -> Vec<u8> {
        let mut names: Vec<Box<[u8]>> = Vec::new();
        let mut at = node.clone();
        while let Ok((parent, name)) = at.place() {
            names.push(name);
            at = parent;
        }
        names.reverse();
        names.join(&b'/')
    }
}

/// The directory through which a node belongs to the stack or to something that was moved: of several names one may lead
/// elsewhere since a swap.
fn above_in_the_stack(node: &Node) -> Option<Arc<Node>> {
    let (parents, lower) = {
        let state = node.state();
        let parents: Vec<_> = state.names.iter().map(|(parent, _)| parent.clone()).collect();
        (parents, state.lower.as_ref().map(|l| l.entry.clone()))
    };
    let is_its = |parent: &&Arc<Node>| match (&lower, &parent.state().lower) {
        (Some(Entry::Tree(tree, entry)), Some(Lower { entry: Entry::Tree(above, dir), .. })) => {
            Arc::ptr_eq(tree, above) && entry.parent == dir.at
        }
        _ => false,
    };
    parents.iter().find(is_its).or(parents.first()).cloned()
}

/// Whether a known node is what stands beneath a directory that the user moved and `lower` is not, or the other way
/// round: two files of one number, of which one is about to be changed.
fn is_elsewhere(known: &Node, dir: &Node, name: &[u8], lower: &Lower) -> bool {
    let state = known.state();
    state.lower.as_ref().is_some_and(|l| l.pinned != lower.pinned)
        && !state.names.is_empty()
        && !state.names.holds(dir.id, name)
}

/// An odd number, so that what is multiplied by it can be found again.
const ANOTHER: u64 = 0x9e37_79b9_7f4a_7c15;

/// The number of something of the stack whose own number something else has.
pub(crate) fn other_number(id: u64) -> u64 {
    (id.wrapping_mul(ANOTHER) % BORN).max(2)
}

/// The number of which [`other_number`] made this one.
fn first_number(id: u64) -> u64 {
    // Newton's iteration: each step doubles the number of bits that are right, and three are right at first.
    let mut inverse = ANOTHER;
    for _ in 0..5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(ANOTHER.wrapping_mul(inverse)));
    }
    id.wrapping_mul(inverse) % BORN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_number_leads_back_to_the_first() {
        for id in [2, 3, 77, BORN - 1, 0x1234_5678_9abc_def0 % BORN] {
            assert_ne!(other_number(id), id);
            assert_eq!(first_number(other_number(id)), id);
        }
    }
}
