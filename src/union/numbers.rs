//! Where the nodes of the user layer stand that are not known: of a node that the kernel has forgotten, or was given by an
//! earlier daemon, it may ask by its number alone (a server on top of the mount holds file handles for long).
//!
//! The stack's numbers are found in its tree. For the others one walk through the user layer notes all places, and from
//! then on each node that is forgotten leaves its own. What is noted says where to look, and no more: what is found there
//! is asked for its number. A number that a walk did not find is not walked for again. Where nobody asks any more, and the
//! kernel has nothing from an earlier daemon, nothing is noted.
//!
//! Lock order: `walking` (held during the walk) → `View::names` (for each name, so that nobody waits for the walk) → …;
//! `noted` is a leaf.

use std::collections::{HashMap, HashSet};
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
/// So many numbers that are nowhere are remembered.
const NOWHERE: usize = 1 << 16;

/// Places of nodes by their numbers.
#[derive(Debug, Default)]
pub struct Places {
    noted: Mutex<Noted>,
    walking: Mutex<()>,
}

#[derive(Debug, Default)]
struct Noted {
    /// How many walks there were.
    walks: u64,
    table: Option<Table>,
}

#[derive(Debug)]
struct Table {
    places: HashMap<u64, (u64, Box<[u8]>)>,
    /// Directories that the user moved, with what the stack has beneath them.
    moved: Vec<u64>,
    /// Numbers that the walk did not find, and that nobody was seen with since.
    nowhere: HashSet<u64>,
    asked: Instant,
}

impl Places {
    /// A node is not known any more: a name of it, in the directory of that number, or that it has none.
    pub fn note(&self, id: u64, place: Option<(u64, &[u8])>) {
        if let Some(table) = &mut self.noted.lock().table {
            match place {
                Some((parent, name)) => {
                    table.nowhere.remove(&id);
                    table.places.insert(id, (parent, name.into()));
                }
                None => {
                    table.places.remove(&id);
                }
            }
        }
    }

    fn note_moved(&self, id: u64) {
        if let Some(table) = &mut self.noted.lock().table {
            table.moved.push(id);
        }
    }

    fn note_nowhere(&self, id: u64) {
        if let Some(table) = &mut self.noted.lock().table {
            table.places.remove(&id);
            if table.nowhere.len() >= NOWHERE {
                table.nowhere.clear();
            }
            table.nowhere.insert(id);
        }
    }

    /// A swap, or a directory that was moved with what the stack has beneath it: what was nowhere may be somewhere.
    pub fn look_again(&self) {
        if let Some(table) = &mut self.noted.lock().table {
            table.nowhere.clear();
        }
    }

    fn is_nowhere(&self, id: u64) -> bool {
        self.noted.lock().table.as_ref().is_some_and(|table| table.nowhere.contains(&id))
    }

    fn walks(&self) -> u64 {
        self.noted.lock().walks
    }

    fn place(&self, id: u64) -> Option<(u64, Box<[u8]>)> {
        let mut noted = self.noted.lock();
        let table = noted.table.as_mut()?;
        table.asked = Instant::now();
        table.places.get(&id).cloned()
    }

    fn moved(&self) -> Vec<u64> {
        self.noted.lock().table.as_ref().map(|table| table.moved.clone()).unwrap_or_default()
    }

    /// Lets `walk` note all places, unless somebody did since there had been `seen` walks.
    fn renew(&self, seen: u64, walk: impl FnOnce()) {
        let _one = self.walking.lock();
        {
            let mut noted = self.noted.lock();
            if noted.walks != seen && noted.table.is_some() {
                return;
            }
            match &mut noted.table {
                // What was noted since the last walk is not less true for another one.
                Some(table) => table.moved.clear(),
                None => {
                    noted.table = Some(Table {
                        places: HashMap::new(),
                        moved: Vec::new(),
                        nowhere: HashSet::new(),
                        asked: Instant::now(),
                    });
                }
            }
        }
        walk();
        self.noted.lock().walks += 1;
    }

    /// Drops what nobody asks for any more.
    pub fn drop_unused(&self) {
        let mut noted = self.noted.lock();
        let old = noted.table.take_if(|table| table.asked.elapsed() > IDLE);
        drop(noted);
        drop(old);
    }
}

impl View {
    /// The node of a number that is not known, and that no path of the stack leads to.
    pub(crate) fn find_in_user_layer(&self, pin: &Pin, id: u64) -> Answer<Option<Arc<Node>>> {
        if self.user.is_none() || self.nodes.places.is_nowhere(id) {
            return Ok(None);
        }
        let seen = self.nodes.places.walks();
        if let Some(node) = self.find_noted(pin, id)? {
            return Ok(Some(node));
        }
        self.nodes.places.renew(seen, || self.note_places(pin));
        let found = self.find_noted(pin, id)?;
        if found.is_none() {
            self.nodes.places.note_nowhere(id);
        }
        Ok(found)
    }

    /// As [`View::find_in_user_layer`] for many numbers, with one walk for all: those that are found.
    pub(crate) fn find_all_in_user_layer(&self, pin: &Pin, ids: &[u64]) -> Vec<Arc<Node>> {
        if self.user.is_none() || ids.is_empty() {
            return Vec::new();
        }
        self.nodes.places.renew(self.nodes.places.walks(), || self.note_places(pin));
        let find = |id| match self.find_noted(pin, id) {
            Ok(found) => found,
            Err(Fail(e)) => {
                log::warn!("looking for number {id}: error {e}");
                None
            }
        };
        ids.iter().copied().filter_map(find).collect()
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
        for dir in self.nodes.places.moved() {
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

    /// Notes where everything of the user layer stands. What is damaged does not hide the others.
    fn note_places(&self, pin: &Pin) {
        log::info!("walking through the user layer for numbers that are not known");
        let mut todo = vec![self.nodes.root().clone()];
        while let Some(dir) = todo.pop() {
            match self.note_places_in(pin, &dir) {
                Ok(below) => todo.extend(below),
                // It was removed meanwhile, for one.
                Err(Fail(e)) => log::debug!("looking through a directory of the user layer: error {e}"),
            }
            let id = dir.id;
            drop(dir);
            self.nodes.forget(id, 0);
        }
    }

    fn note_places_in(&self, pin: &Pin, dir: &Arc<Node>) -> Answer<Vec<Arc<Node>>> {
        let mut below = Vec::new();
        let fd = {
            let _names = self.names.read();
            if dir.state().upper.is_none() {
                return Ok(below);
            }
            if self.lower(pin, dir)?.is_some_and(|lower| lower.pinned) {
                self.nodes.places.note_moved(dir.id);
            }
            self.upper_dir(dir)?
        };
        for (name, _) in sys::list(fd.as_fd())? {
            let child = {
                let _names = self.names.read();
                self.child(pin, dir, &name)
            };
            let Ok(Some(node)) = child else { continue };
            if node.is_dir() {
                below.push(node);
                continue;
            }
            // Whoever is not known otherwise is forgotten, and so noted.
            let id = node.id;
            drop(node);
            self.nodes.forget(id, 0);
        }
        Ok(below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_noted_once_somebody_asked_and_one_walk_serves_who_waits_for_it() {
        let places = Places::default();
        let place = |name: &'static [u8]| Some((1, name));
        places.note(5, place(b"a"));
        assert_eq!(places.place(5), None);
        let seen = places.walks();
        places.renew(seen, || places.note(5, place(b"a")));
        assert_eq!(places.place(5), Some((1, b"a"[..].into())));
        places.renew(seen, || unreachable!("somebody has walked since"));
        places.note(5, place(b"b"));
        assert_eq!(places.place(5), Some((1, b"b"[..].into())));
        places.drop_unused();
        assert!(places.place(5).is_some(), "somebody asked just now");
        places.note(5, None);
        assert_eq!(places.place(5), None);
    }

    #[test]
    fn what_is_nowhere_is_not_looked_for_again_until_it_is_seen() {
        let places = Places::default();
        places.renew(0, || {});
        places.note_nowhere(7);
        assert!(places.is_nowhere(7));
        places.note(7, Some((1, b"back")));
        assert!(!places.is_nowhere(7));
        places.note_nowhere(8);
        places.look_again();
        assert!(!places.is_nowhere(8));
        for id in 0..NOWHERE as u64 + 1 {
            places.note_nowhere(id);
        }
        assert!(places.noted.lock().table.as_ref().unwrap().nowhere.len() <= NOWHERE);
    }
}
