//! Inodes of the view, as far as somebody knows them.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard, RwLock};

use super::attributes::Attributes;
use super::lower::{Lower, Stack};
use super::marks::Marks;
use super::numbers::Places as NumberPlaces;
use super::upper::UserLayer;
use super::{Answer, Fail};
use crate::sys::fs::Stat;

/// The root's number.
pub const ROOT: u64 = 1;
/// Numbers of what was born in the user layer: this and the host's inode number.
pub const BORN: u64 = crate::layer::encode::NUMBER_LIMIT;

/// A number that nothing ever has: no host's inode number is 0.
pub const UNKNOWN: u64 = BORN;

/// The number of something that was born in the user layer.
pub fn born_number(stat: &Stat) -> u64 {
    BORN + (stat.ino & (BORN - 1))
}

/// A value that differs when the host gives an inode number to another file: made of its birth time.
pub fn born_generation(stat: &Stat) -> u64 {
    (stat.btime.sec as u64) << 30 | u64::from(stat.btime.nsec)
}

/// An inode of the view.
#[derive(Debug)]
pub struct Node {
    /// Its number, also `st_ino`.
    pub id: u64,
    /// Type bits (`S_IFMT`).
    pub format: u32,
    /// Tells two files apart that had the same number at different times.
    pub generation: u64,
    /// Held while its content is copied up.
    pub copying: Mutex<()>,
    state: Mutex<State>,
}

/// A name: the directory and the name in it.
pub type Name = (Arc<Node>, Box<[u8]>);

/// From so many on, names are found by an index.
const MANY: usize = 32;

/// The names of one node, each once. The order says nothing but that one is the first.
#[derive(Clone, Debug, Default)]
pub struct Names {
    list: Vec<Name>,
    /// Their places in `list`, by directory and name, where there are many.
    places: Option<Places>,
}

type Places = HashMap<u64, HashMap<Box<[u8]>, usize>>;

impl std::ops::Deref for Names {
    type Target = [Name];

    fn deref(&self) -> &[Name] {
        &self.list
    }
}

impl<'a> IntoIterator for &'a Names {
    type Item = &'a Name;
    type IntoIter = std::slice::Iter<'a, Name>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.iter()
    }
}

impl IntoIterator for Names {
    type Item = Name;
    type IntoIter = std::vec::IntoIter<Name>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

impl Names {
    fn place(&self, parent: u64, name: &[u8]) -> Option<usize> {
        match &self.places {
            Some(places) => places.get(&parent)?.get(name).copied(),
            None => self.list.iter().position(|(p, n)| p.id == parent && **n == *name),
        }
    }

    fn note(&mut self, place: usize) {
        if let (Some(places), Some((parent, name))) = (&mut self.places, self.list.get(place)) {
            places.entry(parent.id).or_default().insert(name.clone(), place);
        }
    }

    /// Whether it is one of them.
    pub fn holds(&self, parent: u64, name: &[u8]) -> bool {
        self.place(parent, name).is_some()
    }

    /// Adds one, unless it is there.
    pub fn add(&mut self, parent: &Arc<Node>, name: &[u8]) {
        if self.holds(parent.id, name) {
            return;
        }
        self.list.push((parent.clone(), name.into()));
        if self.places.is_some() {
            self.note(self.list.len() - 1);
        } else if self.list.len() >= MANY {
            self.places = Some(HashMap::new());
            (0..self.list.len()).for_each(|place| self.note(place));
        }
    }

    /// Removes one.
    pub fn remove(&mut self, parent: u64, name: &[u8]) {
        let Some(place) = self.place(parent, name) else { return };
        self.list.swap_remove(place);
        if let Some(names) = self.places.as_mut().and_then(|places| places.get_mut(&parent)) {
            names.remove(name);
        }
        // The last one stands there now.
        self.note(place);
    }

    /// Removes all.
    pub fn clear(&mut self) {
        *self = Names::default();
    }

    /// Removes one of them, any.
    pub fn pop(&mut self) -> Option<Name> {
        let (parent, name) = self.list.last()?.clone();
        self.remove(parent.id, &name);
        Some((parent, name))
    }
}

/// What is known of a node and may change.
#[derive(Debug, Default)]
pub struct State {
    /// Where it stands: directory and name; several for hard links that were looked up.
    pub names: Names,
    /// Its part in the stack.
    pub lower: Option<Lower>,
    /// A swap took it out of the stack: `lower` is what open handles of a file keep.
    pub displaced: bool,
    /// The generation that `lower` is right for.
    pub lower_generation: u64,
    /// So many moves of directories `lower.pinned` knows of.
    pub moves: u64,
    /// The last generation in which one of its names was seen to lead here.
    pub shown: u64,
    /// Its part in the user layer.
    pub upper: Option<Marks>,
    /// The host's inode number of that part, where it is known.
    pub host: Option<u64>,
    /// No name leads here any more.
    pub gone: bool,
    /// The last attributes of a node that is gone.
    pub ghost: Option<Attributes>,
    /// The last extended attributes of a file that a swap took from the user layer's part, which its name keeps.
    pub ghost_xattrs: Option<Vec<(Vec<u8>, Vec<u8>)>>,
    /// The user layer's part of a node that is gone, which cannot be reached by a name any more.
    pub kept: Option<Arc<OwnedFd>>,
    /// Somebody holds it for the next daemon, since it has no name and is open.
    pub handed_on: bool,
    /// The user's file while it is open.
    pub file: Option<Arc<File>>,
    /// Whether the stack's file gains by being read past the daemon, once that was looked up.
    pub gains: Option<bool>,
    /// The stack's object while it is read through the daemon.
    pub object: Option<Arc<File>>,
    /// Open handles whose bytes go through the daemon and the kernel's page cache.
    pub cached: u32,
    /// Open handles whose bytes go past the daemon.
    pub passed: u32,
    /// Open handles that may write.
    pub writers: u32,
    /// Open handles of running programs.
    pub executing: u32,
    /// Was open for writing past the daemon: its attributes may change unseen.
    pub unseen: bool,
    /// Its capabilities were removed, and nothing was asked for since.
    pub capability_removed: bool,
    /// It was made as a plain file, and nobody has given it capabilities: they need not be looked for, as the kernel
    /// asks at each first write.
    pub incapable: bool,
    /// How many paths show it where the user layer has others of its group, with the generation and the count of
    /// changes when they were counted.
    pub links: Option<((u64, u64), u32)>,
    /// Subdirectories of a merged directory, and the generation in which they were counted.
    pub subdirs: Option<(u64, u32)>,
}

impl State {
    /// The content lies in the user's file (not in an object).
    pub fn owns_content(&self) -> bool {
        self.upper.as_ref().is_some_and(|m| m.follows.is_none() && m.pin.is_none())
    }
}

impl State {
    /// The node is not known any more.
    fn note_place(&self, id: u64, places: &NumberPlaces) {
        match self.names.last() {
            Some((parent, name)) => places.note(id, parent.id, name),
            None => places.note_none(id, self.ghost.as_ref().map_or(0, |last| last.nlink)),
        }
    }
}

impl Node {
    /// A node without names.
    pub fn new(id: u64, format: u32, generation: u64, state: State) -> Arc<Node> {
        Arc::new(Node { id, format, generation, copying: Mutex::new(()), state: Mutex::new(state) })
    }

    /// The root of a view.
    pub fn root(stack: &Stack, user: Option<&UserLayer>, generation: u64) -> Answer<Arc<Node>> {
        let upper = match user {
            Some(user) => Some(user.root_marks()?),
            None => None,
        };
        let opaque = upper.as_ref().is_some_and(|m| m.opaque);
        let lower = if opaque { None } else { Some(stack.root()?) };
        let state = State { lower, lower_generation: generation, upper, ..State::default() };
        Ok(Node::new(ROOT, libc::S_IFDIR, 0, state))
    }

    /// What may change.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.format == libc::S_IFDIR
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.format == libc::S_IFREG
    }

    /// Its first name.
    pub fn place(&self) -> Answer<(Arc<Node>, Box<[u8]>)> {
        self.state().names.first().cloned().ok_or(Fail(libc::ESTALE))
    }

    /// Adds a name.
    pub fn add_name(&self, parent: &Arc<Node>, name: &[u8]) {
        let mut state = self.state();
        state.gone = false;
        state.kept = None;
        if self.is_dir() {
            let known = state.names.first().is_some_and(|(p, n)| p.id == parent.id && **n == *name);
            if !known {
                state.names.clear();
                state.names.add(parent, name);
            }
        } else {
            state.names.add(parent, name);
        }
    }

    /// Removes a name; how many known ones are left.
    pub fn remove_name(&self, parent: u64, name: &[u8]) -> usize {
        let mut state = self.state();
        state.names.remove(parent, name);
        state.names.len()
    }

    /// Whether `other` is this directory or lies beneath it.
    pub fn holds(&self, other: &Arc<Node>) -> bool {
        let mut at = other.clone();
        loop {
            if at.id == self.id {
                return true;
            }
            match at.place() {
                Ok((parent, _)) => at = parent,
                Err(_) => return false,
            }
        }
    }
}

#[derive(Debug)]
struct Known {
    node: Arc<Node>,
    /// How often the kernel was given this node and has not forgotten it.
    lookups: u64,
    /// When it was given last, and in which generation.
    given: Instant,
    generation: u64,
}

impl Known {
    fn new(node: Arc<Node>) -> Known {
        Known { node, lookups: 0, given: Instant::now(), generation: 0 }
    }
}

/// The nodes that the kernel, an open handle or a known child needs.
#[derive(Debug)]
pub struct Nodes {
    root: Arc<Node>,
    known: Mutex<HashMap<u64, Known>>,
    /// Held while what the kernel forgot is closed: removed files give their space back then.
    closing: RwLock<()>,
    /// Where those stand that were known.
    pub places: NumberPlaces,
}

impl Nodes {
    /// A table that holds the root.
    pub fn new(root: Arc<Node>) -> Nodes {
        Nodes { root, known: Mutex::default(), closing: RwLock::new(()), places: NumberPlaces::default() }
    }

    /// The root.
    pub fn root(&self) -> &Arc<Node> {
        &self.root
    }

    /// A known node.
    pub fn get(&self, id: u64) -> Option<Arc<Node>> {
        if id == ROOT {
            return Some(self.root.clone());
        }
        self.known.lock().get(&id).map(|k| k.node.clone())
    }

    /// The known node of that number, or the one that `make` makes.
    pub fn get_or_add(&self, id: u64, make: impl FnOnce() -> Arc<Node>) -> Arc<Node> {
        if id == ROOT {
            return self.root.clone();
        }
        self.known.lock().entry(id).or_insert_with(|| Known::new(make())).node.clone()
    }

    /// Puts a node in the place of another with the same number, which was deleted and whose number the host
    /// gave away again.
    pub fn replace(&self, node: &Arc<Node>) {
        // The kernel's forgets of the old one count down the same number.
        let mut known = self.known.lock();
        let lookups = known.get(&node.id).map_or(0, |k| k.lookups);
        let old = known.insert(node.id, Known { lookups, ..Known::new(node.clone()) });
        drop(known);
        drop(old);
    }

    /// Whether the kernel was given the node so lately that it may still be about to note down the answer.
    pub fn given_lately(&self, id: u64) -> bool {
        const NOTING: Duration = Duration::from_secs(1);
        self.known.lock().get(&id).is_some_and(|k| k.given.elapsed() < NOTING)
    }

    /// Whether the kernel was given the node in that generation.
    pub fn given_in(&self, id: u64, generation: u64) -> bool {
        self.known.lock().get(&id).is_some_and(|k| k.generation >= generation)
    }

    /// The kernel was given the node once more.
    pub fn remember(&self, node: &Arc<Node>, generation: u64) {
        if node.id != ROOT {
            let mut known = self.known.lock();
            let entry = known.entry(node.id).or_insert_with(|| Known::new(node.clone()));
            entry.lookups += 1;
            entry.given = Instant::now();
            entry.generation = entry.generation.max(generation);
        }
    }

    /// The kernel was given the node by somebody else, once at least, and says when it forgets it.
    pub fn remember_inherited(&self, node: &Arc<Node>) {
        if node.id != ROOT {
            let mut known = self.known.lock();
            let entry = known.entry(node.id).or_insert_with(|| Known::new(node.clone()));
            entry.lookups = entry.lookups.max(1);
        }
    }

    /// The kernel forgot the node `count` times.
    pub fn forget(&self, id: u64, count: u64) {
        let _closing = self.closing.read();
        // What is dropped is dropped outside the lock: a node holds its parents.
        let mut dropped = Vec::new();
        let mut known = self.known.lock();
        if let Some(entry) = known.get_mut(&id) {
            entry.lookups = entry.lookups.saturating_sub(count);
        }
        let mut next = Some(id);
        while let Some(id) = next.take() {
            let free = known.get(&id).is_some_and(|k| k.lookups == 0 && Arc::strong_count(&k.node) == 1);
            if free && let Some(entry) = known.remove(&id) {
                entry.node.state().note_place(id, &self.places);
                next = entry.node.state().names.pop().map(|(parent, _)| parent.id);
                dropped.push(entry.node);
            }
        }
        drop(known);
    }

    /// Waits until what the kernel has forgotten is closed. Who makes a file after he removed another finds the space
    /// that it took, as on a local file system, where unlink(2) itself gives it back.
    pub fn wait_for_closing(&self) {
        drop(self.closing.write());
    }

    /// Drops nodes that nobody needs: those that a request held when the kernel forgot them.
    pub fn sweep(&self) {
        loop {
            let mut dropped = Vec::new();
            let mut known = self.known.lock();
            known.retain(|_, k| {
                let keep = k.lookups > 0 || Arc::strong_count(&k.node) > 1;
                if !keep {
                    k.node.state().note_place(k.node.id, &self.places);
                    dropped.push(k.node.clone());
                }
                keep
            });
            drop(known);
            if dropped.is_empty() {
                return;
            }
        }
    }

    /// How many nodes are known.
    pub fn len(&self) -> usize {
        self.known.lock().len() + 1
    }

    /// Never: the root is always known.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// A directory and every known node beneath it, each looked at once.
    pub fn beneath(&self, dir: &Arc<Node>) -> Vec<Arc<Node>> {
        // Of directories: whether they are it or beneath it.
        let mut within = HashMap::from([(dir.id, true), (ROOT, dir.id == ROOT)]);
        let mut way = Vec::new();
        let mut is_beneath = |node: &Arc<Node>| {
            let mut at = node.clone();
            let found = loop {
                if let Some(found) = within.get(&at.id) {
                    break *found;
                }
                if at.is_dir() {
                    way.push(at.id);
                }
                match at.place() {
                    Ok((parent, _)) => at = parent,
                    Err(_) => break false,
                }
            };
            within.extend(way.drain(..).map(|id| (id, found)));
            found
        };
        self.all().into_iter().filter(|node| is_beneath(node)).collect()
    }

    /// Every known node.
    pub fn all(&self) -> Vec<Arc<Node>> {
        let mut out: Vec<_> = self.known.lock().values().map(|k| k.node.clone()).collect();
        out.push(self.root.clone());
        out
    }
}
