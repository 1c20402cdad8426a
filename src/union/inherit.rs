//! What of a view outlives its daemon: the open files and directories, which the kernel names by numbers.
//!
//! Promise: whatever handle the kernel was given and has not released, the next daemon on the same connection serves it
//! under its number, with the same bytes. What it takes for that is written down before the kernel is given the handle,
//! without a system call, in memory that somebody else holds too; and a file that loses its last name while it is open is
//! handed to a [`Keeper`] before.
//!
//! Nothing else of a view needs to be kept: a node is found again by its number, wherever it stands.
//!
//! Lock order: [`Slots`]' lock is a leaf.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::attributes::Attributes;
use super::lower::{Lower, Stack, Tree};
use super::node::{BORN, Node, State, born_generation};
use super::resolve::by_given_number;
use super::{Answer, Fail, Pin, View};
use crate::layer::diff::Change;
use crate::sys::fs as sys;
use crate::sys::shared::Shared;

/// Words before the slots. The first ones are the slots' own, the others are for whoever holds the memory.
pub const HEAD: usize = 512;
/// Which layout the memory has, that of the holder's words too: another one has another number.
const LAYOUT: usize = 0;
const THIS_LAYOUT: u64 = 1;
/// The highest number of a file's handle that was ever given, and of a directory's.
const FILES: usize = 1;
const DIRS: usize = 2;
/// Exchanges of two names that are being carried out: the request (0: none), and what stood at the names before.
const EXCHANGES: usize = 4;
const ROWS: usize = 16;
/// In place of a request: somebody is about to write the row.
const TAKEN: u64 = u64::MAX;
/// Requests that are being served, one for each thread, where the kernel does not send them again: number and answer.
const SERVED: usize = EXCHANGES + ROWS * 3;
const SERVERS: usize = 32;
/// The first word that is not the slots'.
pub const FREE: usize = SERVED + SERVERS * 2;
/// A slot's words: the handle (0: the slot is free), the node, the request that opened it, how it is open.
const WIDTH: usize = 4;
/// So many can be open. What is opened beyond is served as well, and does not outlive its daemon.
const SLOTS: usize = 1 << 20;

/// How many words the memory has.
pub const WORDS: usize = HEAD + SLOTS * WIDTH;

const WRITES: u32 = 1;
const PASSED: u32 = 2;
const EXECUTES: u32 = 4;
const DIRECTORY: u32 = 8;

/// An open file or directory, as it is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slot {
    pub fh: u64,
    pub id: u64,
    /// The request that it was opened for.
    pub request: u64,
    pub writes: bool,
    pub passed: bool,
    pub executes: bool,
    pub directory: bool,
    /// The number of the file that is registered with the kernel for its inode.
    pub backing: Option<u32>,
}

/// What is open, in memory that outlives this process.
#[derive(Debug)]
pub struct Slots {
    memory: Shared,
    free: Mutex<Free>,
    /// Requests are noted while they are served.
    notes_requests: AtomicBool,
}

#[derive(Debug, Default)]
struct Free {
    /// Slots that were used and are free again,
    again: Vec<u32>,
    /// and the first of those that never were.
    fresh: u32,
}

/// Who holds files for the next daemon that have no name any more.
pub trait Keeper: std::fmt::Debug + Send + Sync {
    /// Holds one, by its node's number.
    fn keep(&self, id: u64, file: BorrowedFd<'_>);
    /// It is not needed any more.
    fn let_go(&self, id: u64);
}

impl Slots {
    /// The slots in such memory, with what an earlier daemon left there. `None`: another program laid it out.
    pub fn new(memory: Shared) -> Option<Slots> {
        let slots = Slots { memory, free: Mutex::default(), notes_requests: AtomicBool::new(false) };
        let layout = slots.memory.words().get(LAYOUT).filter(|_| slots.memory.words().len() >= WORDS)?;
        let before = layout.compare_exchange(0, THIS_LAYOUT, Ordering::AcqRel, Ordering::Acquire);
        if before.is_err_and(|layout| layout != THIS_LAYOUT) {
            return None;
        }
        {
            let mut free = slots.free.lock();
            // A slot is taken from the free ones that were used before, or is the first that never was: beyond a long run
            // of free ones nothing was ever used. The node's word stays when a slot is given back.
            let used = (0..SLOTS as u32).take_while(|at| slots.word(*at, 1) != 0).count() as u32;
            free.fresh = used;
            free.again = (0..used).rev().filter(|at| slots.word(*at, 0) == 0).collect();
        }
        Some(slots)
    }

    /// The numbers that are not the slots' own.
    pub fn head(&self) -> &[AtomicU64] {
        self.memory.words().get(FREE..HEAD).unwrap_or_default()
    }

    fn cell(&self, at: u32, which: usize) -> Option<&AtomicU64> {
        self.memory.words().get(HEAD + at as usize * WIDTH + which)
    }

    fn word(&self, at: u32, which: usize) -> u64 {
        self.cell(at, which).map_or(0, |w| w.load(Ordering::Acquire))
    }

    fn set(&self, at: u32, which: usize, value: u64) {
        if let Some(word) = self.cell(at, which) {
            word.store(value, Ordering::Release);
        }
    }

    fn last(&self, directory: bool) -> Option<&AtomicU64> {
        self.memory.words().get(if directory { DIRS } else { FILES })
    }

    /// Writes something open down. `None`: there is no room.
    pub(crate) fn take(&self, slot: Slot) -> Option<u32> {
        if let Some(last) = self.last(slot.directory) {
            last.fetch_max(slot.fh, Ordering::AcqRel);
        }
        let at = {
            let mut free = self.free.lock();
            match free.again.pop() {
                Some(at) => at,
                None if (free.fresh as usize) < SLOTS => {
                    let at = free.fresh;
                    free.fresh += 1;
                    // Under the lock: what was used ends where this is missing.
                    self.set(at, 1, slot.id);
                    at
                }
                None => return None,
            }
        };
        let bits = [
            (slot.writes, WRITES),
            (slot.passed, PASSED),
            (slot.executes, EXECUTES),
            (slot.directory, DIRECTORY),
        ];
        let bits: u32 = bits.iter().filter(|(is, _)| *is).map(|(_, bit)| bit).sum();
        self.set(at, 1, slot.id);
        self.set(at, 2, slot.request);
        self.set(at, 3, u64::from(bits) | u64::from(slot.backing.unwrap_or(0)) << 32);
        // Last: with this it is there.
        self.set(at, 0, slot.fh);
        Some(at)
    }

    pub(crate) fn give_back(&self, at: u32) {
        self.set(at, 0, 0);
        self.free.lock().again.push(at);
    }

    fn served(&self) -> impl Iterator<Item = &[AtomicU64]> {
        self.memory.words().get(SERVED..FREE).unwrap_or_default().chunks_exact(2)
    }

    /// The rows of exchanges.
    fn rows(&self) -> impl Iterator<Item = &[AtomicU64]> {
        self.memory.words().get(EXCHANGES..SERVED).unwrap_or_default().chunks_exact(3)
    }

    /// The row of an exchange.
    fn row(&self, request: u64) -> Option<&[AtomicU64]> {
        self.rows().find(|row| row.first().is_some_and(|r| r.load(Ordering::Acquire) == request))
    }

    /// A row for an exchange: its own, a free one, or one that was left by an exchange which was answered just before its
    /// daemon ended.
    fn row_for(&self, request: u64) -> Option<&[AtomicU64]> {
        let take = |row: &&[AtomicU64], from| {
            let taken = |r: &AtomicU64| r.compare_exchange(from, TAKEN, Ordering::AcqRel, Ordering::Acquire);
            row.first().is_some_and(|r| taken(r).is_ok())
        };
        let of = |from: u64| self.rows().find(move |row| take(row, from));
        of(request).or_else(|| of(0)).or_else(|| self.rows().next())
    }

    /// What is written down, and where.
    fn all(&self) -> Vec<(u32, Slot)> {
        let used = self.free.lock().fresh;
        let read = |at| {
            let fh = self.word(at, 0);
            let how = self.word(at, 3);
            let is = |bit: u32| how as u32 & bit != 0;
            let slot = Slot {
                fh,
                id: self.word(at, 1),
                request: self.word(at, 2),
                writes: is(WRITES),
                passed: is(PASSED),
                executes: is(EXECUTES),
                directory: is(DIRECTORY),
                backing: Some((how >> 32) as u32).filter(|id| *id != 0),
            };
            (fh != 0).then_some((at, slot))
        };
        (0..used).filter_map(read).collect()
    }
}

/// A request that is noted while it is served; its number stays, as that of one that was answered.
#[derive(Debug)]
pub struct Noted<'a>(&'a AtomicU64);

/// In a request's number: it was answered. (The kernel counts by two.)
const ANSWERED: u64 = 1;
/// So many requests before and after the last one that was noted may have been read from the kernel and not noted.
const UNNOTED: u64 = 2000;

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        self.0.fetch_or(ANSWERED, Ordering::Release);
    }
}

thread_local! {
    /// Which of the served requests is this thread's.
    static SERVER: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    };
}

/// What a daemon takes over of another's view.
#[derive(Debug, Default)]
pub struct Inheritance {
    /// Files without a name that were open, by their nodes' numbers.
    pub nameless: HashMap<u64, OwnedFd>,
    /// Versions that the mount has shown: what is open may be of one of them.
    pub versions: Vec<Arc<Tree>>,
}

impl View {
    /// From now on what is open is written down there, and files without a name are handed to `keeper`.
    pub fn leave_to_heirs(&self, slots: Slots, keeper: Arc<dyn Keeper>) {
        for (next, directory) in [(&self.handles.next, false), (&self.listings.next, true)] {
            let given = slots.last(directory).map_or(0, |w| w.load(Ordering::Acquire));
            next.fetch_max(given, Ordering::AcqRel);
        }
        let _ = self.slots.set(slots);
        let _ = self.keeper.set(keeper);
    }

    /// Writes down that a file is open, before the kernel is given the handle.
    pub fn note_open(&self, fh: u64, request: u64, backing: Option<u32>) {
        if let Some(slots) = self.slots.get() {
            self.handles.note(slots, fh, request, backing);
        }
    }

    /// The same for a directory.
    pub fn note_dir_open(&self, fh: u64, id: u64, request: u64) {
        if let Some(slots) = self.slots.get() {
            let slot = Slot { fh, id, request, directory: true, ..Slot::default() };
            if let Some(at) = slots.take(slot) {
                self.listings.note(fh, at, request);
            }
        }
    }

    /// A file is about to lose a name. If it is open and that is its last one, it is handed on first.
    pub(crate) fn hand_on(&self, node: &Node, links: u32, file: Option<impl AsFd>) {
        let (Some(keeper), Some(file)) = (self.keeper.get(), file) else { return };
        {
            let mut state = node.state();
            if !node.is_file() || links > 1 || state.cached + state.passed == 0 {
                return;
            }
            state.handed_on = true;
        }
        keeper.keep(node.id, file.as_fd());
        let closed = {
            let mut state = node.state();
            let closed = state.cached + state.passed == 0;
            state.handed_on &= !closed;
            closed
        };
        if closed {
            // The last handle went meanwhile, and what it said may have come first.
            keeper.let_go(node.id);
        }
    }

    /// Nobody has the file open any more.
    pub(crate) fn not_handed_on(&self, id: u64) {
        if let Some(keeper) = self.keeper.get() {
            keeper.let_go(id);
        }
    }

    /// Takes over what an earlier daemon had open. Says which inodes have a file registered with the kernel, and its
    /// number. To be called before the first request.
    pub fn inherit(&self, mut from: Inheritance) -> Vec<(u64, u32)> {
        self.inherited.store(true, Ordering::Relaxed);
        let Some(slots) = self.slots.get() else { return Vec::new() };
        let pin = self.pin();
        // Nobody is writing one.
        for row in slots.rows() {
            let _ = row.first().map(|r| r.compare_exchange(TAKEN, 0, Ordering::AcqRel, Ordering::Acquire));
        }
        let open = slots.all();
        // All of them: of those that were handed on one may have its name still.
        let (mut found, unsure) = self.find_all(&pin, &open.iter().map(|(_, slot)| slot.id).collect());
        let (mut backings, mut remembered) = (HashMap::new(), HashSet::new());
        for (at, slot) in open {
            if unsure.contains(&slot.id) && !from.nameless.contains_key(&slot.id) {
                // It may be there for the next daemon: its slot stays.
                log::error!("what was open as number {} cannot be found now", slot.id);
                continue;
            }
            let node = match found.get(&slot.id) {
                Some(node) => Some(Arc::clone(node)),
                None => match self.without_name(&pin, slot.id, &mut from) {
                    Ok(node) => node,
                    Err(e) => {
                        // It may be there for the next daemon: its slot stays.
                        log::error!("an open file, number {}, of the daemon before: error {}", slot.id, e.0);
                        continue;
                    }
                },
            };
            let Some(node) = node.filter(|n| n.is_dir() == slot.directory) else {
                log::warn!("what was open as number {} is not there any more", slot.id);
                slots.give_back(at);
                continue;
            };
            found.insert(slot.id, node.clone());
            if remembered.insert(slot.id) {
                // The kernel says when it forgets it; once is the least that it was given it.
                self.nodes.remember_inherited(&node);
            }
            if slot.directory {
                self.listings.inherit(slot.fh, node, at, slot.request);
                continue;
            }
            if let Some(backing) = slot.backing {
                backings.insert(slot.id, backing);
            }
            self.handles.inherit(&slot, node, at);
        }
        // Nobody had these open any more.
        from.nameless.into_keys().for_each(|id| self.not_handed_on(id));
        backings.into_iter().collect()
    }

    /// From now on requests are noted while they are served: the kernel does not send them again.
    pub fn note_requests(&self) {
        if let Some(slots) = self.slots.get() {
            slots.notes_requests.store(true, Ordering::Relaxed);
        }
    }

    /// Notes that this thread serves a request, until what this returns is dropped; and the error that the request is
    /// answered with if that never happens.
    pub fn note_request(&self, request: u64, lost: i32) -> Option<Noted<'_>> {
        let slots = self.slots.get().filter(|s| s.notes_requests.load(Ordering::Relaxed))?;
        let at = SERVER.with(|server| *server);
        let [number, answer] = slots.served().nth(at)? else { return None };
        answer.store(lost as u64, Ordering::Release);
        number.store(request, Ordering::Release);
        Some(Noted(number))
    }

    /// Requests that an earlier daemon had when it ended, and the errors to answer them with: those that it served, and then
    /// all numbers near the last one, of which it may have read one from the kernel and done nothing.
    pub fn take_requests(&self) -> Vec<(u64, i32)> {
        let Some(slots) = self.slots.get() else { return Vec::new() };
        let (mut all, mut last) = (Vec::new(), 0);
        for words in slots.served() {
            let [number, answer] = words else { continue };
            let request = number.swap(0, Ordering::AcqRel);
            last = last.max(request & !ANSWERED);
            if request != 0 && request & ANSWERED == 0 {
                all.push((request, answer.load(Ordering::Acquire) as i32));
            }
        }
        let near = (last.saturating_sub(UNNOTED * 2)..last + UNNOTED * 2).step_by(2);
        all.extend(near.filter(|_| last != 0).map(|number| (number, libc::ESTALE)));
        all
    }

    /// Handles that were opened for a request which was never answered: it comes again, and opens others.
    pub fn never_given(&self, request: u64) -> Vec<u64> {
        self.handles.opened_for(request)
    }

    /// The same for directories.
    pub fn drop_dirs_never_given(&self, request: u64) {
        for fh in self.listings.opened_for(request) {
            self.releasedir(fh);
        }
    }

    /// Two names are about to be exchanged, at which `a` and `b` stand.
    pub fn exchange_begins(&self, request: u64, a: u64, b: u64) {
        if let Some([of, first, second]) = self.slots.get().and_then(|s| s.row_for(request)) {
            first.store(a, Ordering::Release);
            second.store(b, Ordering::Release);
            of.store(request, Ordering::Release);
        }
    }

    /// It was answered.
    pub fn exchange_ends(&self, request: u64) {
        if let Some([of, ..]) = self.slots.get().and_then(|s| s.row(request)) {
            let _ = of.compare_exchange(request, 0, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// What stood at two names that were to be exchanged, before that.
    pub fn exchange_before(&self, request: u64) -> Option<(u64, u64)> {
        match self.slots.get().and_then(|s| s.row(request)) {
            Some([of, a, b]) if of.load(Ordering::Acquire) == request => {
                Some((a.load(Ordering::Acquire), b.load(Ordering::Acquire)))
            }
            _ => None,
        }
    }

    /// Finds nodes by their numbers: those of the stack by themselves, the others in one walk through the user layer. And the
    /// numbers of which it cannot be said now.
    fn find_all(&self, pin: &Pin, wanted: &HashSet<u64>) -> (HashMap<u64, Arc<Node>>, Vec<u64>) {
        let (mut found, mut left, mut unsure) = (HashMap::new(), Vec::new(), Vec::new());
        for id in wanted.iter().copied() {
            let _names = self.names.read();
            match self.find_by_path(pin, id) {
                Ok(Some(node)) => {
                    found.insert(id, node);
                }
                Ok(None) => left.push(id),
                Err(e) => {
                    log::warn!("looking for number {id}: error {}", e.0);
                    unsure.push(id);
                }
            }
        }
        let (there, more) = self.find_all_in_user_layer(pin, &left);
        found.extend(there.into_iter().map(|node| (node.id, node)));
        unsure.extend(more);
        (found, unsure)
    }

    /// The node of what was open and has no name: removed by the user, or displaced by a swap.
    fn without_name(&self, pin: &Pin, id: u64, from: &mut Inheritance) -> Answer<Option<Arc<Node>>> {
        let mut lower = None;
        if id < BORN {
            lower = by_given_number(&pin.0.stack, id)?;
            for tree in &from.versions {
                if lower.is_none() {
                    lower = by_given_number(&Stack::Version(tree.clone()), id)?;
                }
            }
        }
        let node = match (self.user.as_ref(), from.nameless.remove(&id)) {
            (Some(user), Some(fd)) => {
                let (stat, marks) = (sys::stat(&fd)?, user.marks.read(&fd)?);
                let state = State {
                    lower_generation: pin.0.number,
                    lower: lower.filter(|_| marks.follows.is_some()),
                    upper: Some(marks),
                    host: Some(stat.ino),
                    gone: true,
                    handed_on: true,
                    kept: Some(Arc::new(fd)),
                    ..State::default()
                };
                let generation = if id < BORN { 0 } else { born_generation(&stat) };
                Node::new(id, stat.format(), generation, state)
            }
            (_, None) => {
                let Some(lower) = lower else { return Ok(None) };
                self.displaced(id, lower, pin)?
            }
            (None, Some(_)) => return Ok(None),
        };
        self.nodes.replace(&node);
        Ok(Some(node))
    }

    /// A node of the stack that no name leads to.
    fn displaced(&self, id: u64, lower: Lower, pin: &Pin) -> Answer<Arc<Node>> {
        let last = lower.attributes(id)?;
        let state = State {
            ghost: Some(Attributes { nlink: 0, ..last }),
            lower_generation: pin.0.number,
            gone: true,
            ..State::default()
        };
        let format = lower.format();
        Ok(Node::new(id, format, 0, State { lower: Some(lower), ..state }))
    }

    /// What an earlier daemon gave to the kernel of the paths that a swap changes is known here too, as long as this is
    /// held. Where no daemon was before, nothing needs to be.
    pub fn know(&self, changes: &[Change]) -> Vec<Arc<Node>> {
        if !self.inherited.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let pin = self.pin();
        let mut known = Vec::new();
        for change in changes {
            let _names = self.names.read();
            match self.walk(&pin, &change.path) {
                Ok(Some(node)) => known.push(node),
                // The directory is what is told of.
                Ok(None) => {
                    let parent = change.path.iter().rposition(|c| *c == b'/').unwrap_or(0);
                    let parent = change.path.get(..parent).unwrap_or_default();
                    known.extend(self.walk(&pin, parent).unwrap_or_default());
                }
                Err(Fail(e)) => log::warn!("looking at what a swap changes: error {e}"),
            }
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(fh: u64) -> Slot {
        Slot {
            fh,
            id: fh * 10,
            request: fh * 100,
            writes: fh.is_multiple_of(2),
            passed: true,
            backing: (fh == 3).then_some(77),
            ..Slot::default()
        }
    }

    #[test]
    fn what_is_written_down_is_there_for_the_next_and_no_number_comes_twice() {
        let memory = Shared::new(WORDS).unwrap();
        let same = Shared::of(memory.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let slots = Slots::new(memory).unwrap();
        let places: Vec<u32> = (1..=5).map(|fh| slots.take(file(fh)).unwrap()).collect();
        slots.give_back(places[1]);
        slots.give_back(places[4]);
        let heir = Slots::new(same).unwrap();
        let all: Vec<Slot> = heir.all().into_iter().map(|(_, slot)| slot).collect();
        assert_eq!(all, [file(1), file(3), file(4)]);
        assert_eq!(heir.last(false).unwrap().load(Ordering::Acquire), 5);
        let more: HashSet<u32> = (6..=9).map(|fh| heir.take(file(fh)).unwrap()).collect();
        assert_eq!(more, HashSet::from([1, 4, 5, 6]));
    }

    #[test]
    fn memory_that_another_program_laid_out_is_not_read() {
        let memory = Shared::new(WORDS).unwrap();
        memory.words()[LAYOUT].store(THIS_LAYOUT + 1, Ordering::Release);
        assert!(Slots::new(memory).is_none());
        assert!(Slots::new(Shared::new(WORDS - 1).unwrap()).is_none());
    }
}
