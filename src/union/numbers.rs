//! Where the nodes of the user layer stand that are not known: of a node that the kernel has forgotten, or was given by an
//! earlier daemon, it may ask by its number alone (a server on top of the mount holds file handles for long).
//!
//! The stack's numbers are found in its tree. For the others one walk through the user layer notes all places, and from
//! then on each node that is forgotten leaves its own: what is not noted then is nowhere. What is noted says where to look,
//! and no more: what is found there is asked for its number. Where nobody asks any more, and the kernel has nothing from an
//! earlier daemon, nothing is noted.
//!
//! Names change during a walk. A file keeps its row or is noted anew by who knows it; a directory that is moved meanwhile is
//! walked through once more, since its old and new place may both have been the wrong one of two to stand at.
//!
//! Lock order: `walking` (held during the walk) → `View::names` (for each name, so that nobody waits for the walk) → …;
//! `noted` is a leaf.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::node::{BORN, Node};
use super::{Answer, Fail, Pin, View};
use crate::sys::fs as sys;

/// What nobody asked for so long is not needed any more.
const IDLE: Duration = Duration::from_secs(60);
/// So many directories that are moved during a walk are walked through once more.
const MOVED: usize = 10_000;

/// Places of nodes by their numbers.
#[derive(Debug, Default)]
pub struct Places {
    noted: Mutex<Option<Table>>,
    walking: Mutex<()>,
}

#[derive(Debug)]
struct Table {
    places: HashMap<u64, (u64, Box<[u8]>)>,
    /// Directories that the user moved, with what the stack has beneath them.
    pinned: Vec<u64>,
    /// What is neither known nor noted is nowhere.
    whole: bool,
    /// What was moved since a walk began.
    moved: Option<Vec<Arc<Node>>>,
    asked: Instant,
}

impl Places {
    /// A node is not known any more: a name of it, in the directory of that number.
    pub fn note(&self, id: u64, parent: u64, name: &[u8]) {
        if let Some(table) = &mut *self.noted.lock() {
            table.places.insert(id, (parent, name.into()));
        }
    }

    /// A node is not known any more, and has no name; or none that was known, of `links`.
    pub fn note_none(&self, id: u64, links: u32) {
        if let Some(table) = &mut *self.noted.lock() {
            table.places.remove(&id);
            table.whole &= links < 2;
        }
    }

    /// A directory shows what the stack has elsewhere from now on.
    pub fn note_pinned(&self, id: u64) {
        if let Some(table) = &mut *self.noted.lock()
            && !table.pinned.contains(&id)
        {
            table.pinned.push(id);
        }
    }

    /// A directory was moved. The caller holds `names` for writing.
    pub fn note_move(&self, dir: &Arc<Node>) {
        if let Some(Table { moved: Some(moved), whole, .. }) = &mut *self.noted.lock() {
            if moved.len() < MOVED {
                moved.push(dir.clone());
            } else {
                *whole = false;
            }
        }
    }

    /// Something else changed than names: what was nowhere may be somewhere.
    pub fn look_again(&self) {
        if let Some(table) = &mut *self.noted.lock() {
            table.whole = false;
        }
    }

    fn is_whole(&self) -> bool {
        self.noted.lock().as_ref().is_some_and(|table| table.whole)
    }

    fn place(&self, id: u64) -> Option<(u64, Box<[u8]>)> {
        let mut noted = self.noted.lock();
        let table = noted.as_mut()?;
        table.asked = Instant::now();
        table.places.get(&id).cloned()
    }

    fn pinned(&self) -> Vec<u64> {
        self.noted.lock().as_ref().map(|table| table.pinned.clone()).unwrap_or_default()
    }

    /// Lets `walk` note all places, unless they are noted. It is given what has been moved since the walk began, one after
    /// the other, and says whether it saw everything.
    fn renew(&self, walk: impl FnOnce(&mut dyn FnMut() -> Option<Arc<Node>>) -> bool) {
        let _one = self.walking.lock();
        {
            let mut noted = self.noted.lock();
            let table = noted.get_or_insert_with(|| Table {
                places: HashMap::new(),
                pinned: Vec::new(),
                whole: false,
                moved: None,
                asked: Instant::now(),
            });
            if table.whole {
                return;
            }
            // Whatever says otherwise until the end of the walk is right.
            table.whole = true;
            table.moved = Some(Vec::new());
        }
        let saw_all = walk(&mut || {
            let mut noted = self.noted.lock();
            noted.as_mut().and_then(|table| table.moved.as_mut()?.pop())
        });
        let mut noted = self.noted.lock();
        if let Some(table) = &mut *noted {
            let moved = table.moved.take();
            table.whole &= saw_all && moved.is_none_or(|moved| moved.is_empty());
            table.asked = Instant::now();
        }
    }

    /// Drops what nobody asks for any more.
    pub fn drop_unused(&self) {
        let Some(_none) = self.walking.try_lock() else { return };
        let mut noted = self.noted.lock();
        let old = noted.take_if(|table| table.asked.elapsed() > IDLE);
        drop(noted);
        drop(old);
    }
}

/// Whether an error says that something could not be looked at now, and not what is wrong with it.
fn passes(Fail(error): Fail) -> bool {
    matches!(error, libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EINTR | libc::EAGAIN)
}

impl View {
    /// The node of a number that is not known, and that no path of the stack leads to.
    pub(crate) fn find_in_user_layer(&self, pin: &Pin, id: u64) -> Answer<Option<Arc<Node>>> {
        if self.user.is_none() {
            return Ok(None);
        }
        // Asked before it is looked for: what is noted in between is found.
        let whole = self.nodes.places.is_whole();
        let found = self.find_noted(pin, id)?;
        if found.is_some() || whole {
            return Ok(found);
        }
        self.nodes.places.renew(|moved| self.note_places(pin, moved));
        self.find_noted(pin, id)
    }

    /// As [`View::find_in_user_layer`] for many numbers, with one walk for all: those that are found, and those of which it
    /// cannot be said now.
    pub(crate) fn find_all_in_user_layer(&self, pin: &Pin, ids: &[u64]) -> (Vec<Arc<Node>>, Vec<u64>) {
        let (mut found, mut unsure) = (Vec::new(), Vec::new());
        if self.user.is_none() || ids.is_empty() {
            return (found, unsure);
        }
        self.nodes.places.renew(|moved| self.note_places(pin, moved));
        let whole = self.nodes.places.is_whole();
        for id in ids.iter().copied() {
            match self.find_noted(pin, id) {
                Ok(Some(node)) => found.push(node),
                Ok(None) if whole => {}
                Ok(None) => unsure.push(id),
                Err(Fail(e)) => {
                    log::warn!("looking for number {id}: error {e}");
                    unsure.push(id);
                }
            }
        }
        (found, unsure)
    }

    /// Lets go of places that nobody needs.
    pub(crate) fn drop_places(&self) {
        // The kernel may ask for what it has from an earlier daemon at any time.
        if !self.inherited.load(Ordering::Relaxed) {
            self.nodes.places.drop_unused();
        }
    }

    /// The node of a number, where its place is noted.
    fn find_noted(&self, pin: &Pin, id: u64) -> Answer<Option<Arc<Node>>> {
        let _names = self.names.read();
        let found = self.at_its_place(pin, id)?.filter(|node| node.id == id);
        if found.is_some() || id >= BORN {
            return Ok(found);
        }
        for dir in self.nodes.places.pinned() {
            if let Some(dir) = self.at_its_place(pin, dir)?
                && let Some(node) = self.search_moved(pin, &dir, id)?
            {
                return Ok(Some(node));
            }
        }
        Ok(None)
    }

    /// What stands where a number was noted. The caller holds `names`.
    fn at_its_place(&self, pin: &Pin, id: u64) -> Answer<Option<Arc<Node>>> {
        /// More directories than a path can lead through in one call, and a bound where two were moved into each other's
        /// noted places.
        const DEEP: usize = 4096;
        let (mut way, mut at) = (Vec::new(), id);
        let mut node = loop {
            if let Some(known) = self.nodes.get(at) {
                break known;
            }
            match self.nodes.places.place(at) {
                Some((parent, name)) if way.len() < DEEP => {
                    way.push(name);
                    at = parent;
                }
                _ => return Ok(None),
            }
        };
        for name in way.iter().rev() {
            if !node.is_dir() {
                return Ok(None);
            }
            match self.child(pin, &node, name)? {
                Some(child) => node = child,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// Notes where everything of the user layer stands, and whether it saw all of that. What is damaged does not hide the
    /// others.
    fn note_places(&self, pin: &Pin, moved: &mut dyn FnMut() -> Option<Arc<Node>>) -> bool {
        log::info!("walking through the user layer for numbers that are not known");
        let (mut todo, mut saw_all, mut again) = (vec![self.nodes.root().clone()], true, 0);
        while let Some(dir) = todo.pop().or_else(|| {
            again += 1;
            moved().filter(|_| again <= MOVED)
        }) {
            match self.note_places_in(pin, &dir) {
                Ok((below, all)) => {
                    todo.extend(below);
                    saw_all &= all;
                }
                // It was removed meanwhile, for one.
                Err(e) => {
                    log::debug!("looking through a directory of the user layer: error {}", e.0);
                    saw_all &= !passes(e);
                }
            }
            let id = dir.id;
            drop(dir);
            self.nodes.forget(id, 0);
        }
        saw_all && again <= MOVED
    }

    /// Its directories, and whether all of it could be looked at.
    fn note_places_in(&self, pin: &Pin, dir: &Arc<Node>) -> Answer<(Vec<Arc<Node>>, bool)> {
        let (mut below, mut saw_all) = (Vec::new(), true);
        let fd = {
            let _names = self.names.read();
            if dir.state().upper.is_none() {
                return Ok((below, saw_all));
            }
            if self.lower(pin, dir)?.is_some_and(|lower| lower.pinned) {
                self.nodes.places.note_pinned(dir.id);
            }
            self.upper_dir(dir)?
        };
        for (name, _) in sys::list(fd.as_fd())? {
            let child = {
                let _names = self.names.read();
                self.child(pin, dir, &name)
            };
            let node = match child {
                Ok(Some(node)) => node,
                Ok(None) => continue,
                Err(e) => {
                    saw_all &= !passes(e);
                    continue;
                }
            };
            if node.is_dir() {
                below.push(node);
                continue;
            }
            // Whoever is not known otherwise is forgotten, and so noted.
            let id = node.id;
            drop(node);
            self.nodes.forget(id, 0);
        }
        Ok((below, saw_all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::union::node::State;

    #[test]
    fn places_are_noted_once_somebody_asked_and_one_walk_serves_all() {
        let places = Places::default();
        places.note(5, 1, b"a");
        assert_eq!(places.place(5), None);
        places.renew(|_| {
            places.note(5, 1, b"a");
            true
        });
        assert_eq!(places.place(5), Some((1, b"a"[..].into())));
        places.renew(|_| unreachable!("somebody has walked"));
        places.note(5, 2, b"b");
        assert_eq!(places.place(5), Some((2, b"b"[..].into())));
        places.drop_unused();
        assert!(places.place(5).is_some(), "somebody asked just now");
        places.note_none(5, 1);
        assert_eq!((places.place(5), places.is_whole()), (None, true));
        // Another name of it may be there.
        places.note_none(5, 2);
        assert!(!places.is_whole());
    }

    #[test]
    fn a_walk_that_missed_something_is_not_the_last_one() {
        let places = Places::default();
        places.renew(|_| false);
        assert!(!places.is_whole());
        let dir = || Node::new(9, libc::S_IFDIR, 0, State::default());
        places.renew(|moved| {
            assert!(moved().is_none());
            places.note_move(&dir());
            assert_eq!(moved().map(|dir| dir.id), Some(9));
            true
        });
        assert!(places.is_whole());
        places.look_again();
        places.renew(|_| {
            places.note_move(&dir());
            true
        });
        assert!(!places.is_whole(), "nobody has looked through it");
        places.renew(|_| {
            places.look_again();
            places.drop_unused();
            true
        });
        assert!(!places.is_whole() && places.noted.lock().is_some());
    }
}
