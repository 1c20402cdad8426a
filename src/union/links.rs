//! Hard-link groups of the stack, some paths of which the user layer may hold or hide.
//!
//! The number under which a path of a group is seen depends on all the others, and a group may have 65,000 paths: which
//! of them the user layer has is looked up once for all, and looked up again when something was changed that may have to
//! do with it.
//!
//! Lock order: `seen` is a leaf.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

use super::lower::{Entry, Lower, Tree};
use super::marks::Found;
use super::node::Node;
use super::resolve::split_number;
use super::upper::UserLayer;
use super::{Answer, Pin, View};
use crate::layer::index;

/// Of so many groups it is known which paths the user layer has.
const KEPT: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// Groups of no more paths are looked at each time.
const FEW: u32 = 4;

/// What is known of groups.
#[derive(Debug)]
pub struct Groups {
    /// Counts the changes after which the user layer may have another path of a group.
    changes: AtomicU64,
    /// By the group's number in the tree.
    seen: Mutex<LruCache<u64, Arc<Seen>>>,
    /// Counts the paths that were looked at.
    looks: AtomicU64,
}

impl Default for Groups {
    fn default() -> Groups {
        Groups { changes: AtomicU64::new(0), seen: Mutex::new(LruCache::new(KEPT)), looks: AtomicU64::new(0) }
    }
}

impl Groups {
    /// The user layer was changed where the stack has something.
    pub fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// A request of an earlier generation has removed or moved something: it has left no whiteout for what only the
    /// present one has, so that what was held in that may be seen again.
    pub fn changed_late(&self) {
        self.changed();
        let dropped = std::mem::replace(&mut *self.seen.lock(), LruCache::new(KEPT));
        drop(dropped);
    }

    /// How many changes there were, before somebody looks.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }
}

/// Which paths of a group are not seen where the stack has them.
#[derive(Debug, Default)]
struct Seen {
    generation: u64,
    changes: u64,
    /// Their places in the tree. With the host's inode number of what stands there in the user layer; none
    /// where that hides the path, or a directory above it.
    held: HashMap<u32, Option<u64>>,
    /// How many of them are the same file of the host.
    same: HashMap<u64, usize>,
}

impl Seen {
    fn hold(&mut self, place: u32, host: Option<u64>) {
        self.held.insert(place, host);
        if let Some(host) = host {
            *self.same.entry(host).or_default() += 1;
        }
    }

    /// Whether it holds for another path than `place`; those where `host` stands are not others.
    fn others(&self, place: u32, host: Option<u64>) -> bool {
        let here = self.held.get(&place).copied();
        let same = host.and_then(|host| self.same.get(&host)).copied().unwrap_or(0);
        let counted = here.is_some_and(|h| h.is_none() || h != host);
        self.held.len() - same > usize::from(counted)
    }
}

/// A directory of the stack, as a group's path lies in it.
enum Home {
    /// It is hidden, or what stands at its path is another.
    Elsewhere,
    /// The user layer has nothing in it.
    Untouched,
    /// Not its descriptor: a group may lie in more directories than may be open.
    Touched(Arc<Node>),
}

impl View {
    /// The number under which a path of the stack is seen that the user layer does not hold.
    ///
    /// It is the tree's, unless the path belongs to a hard-link group of which the user layer holds or hides
    /// another path: then what has the number is the user's (copied up on a stack where the group was
    /// another), and the rest of the group is an inode of its own.
    pub(crate) fn lower_number(&self, pin: &Pin, lower: &Lower) -> Answer<u64> {
        self.number_beside(pin, lower, None)
    }

    /// As [`View::lower_number`]; paths at which the file `host` of the host stands are not others.
    pub(crate) fn number_beside(&self, pin: &Pin, lower: &Lower, host: Option<u64>) -> Answer<u64> {
        let Entry::Tree(tree, entry) = &lower.entry else { return Ok(lower.number()) };
        let Some(user) = self.user.as_ref().filter(|_| !entry.is_dir() && entry.nlink > 1 && !lower.pinned)
        else {
            return Ok(entry.number);
        };
        let others = if entry.nlink <= FEW {
            self.look_at_group(pin, user, tree, entry)?.others(entry.at, host)
        } else {
            self.others_are_held(pin, user, tree, entry, host)?
        };
        Ok(if others { split_number(&tree.index, entry.number)? } else { entry.number })
    }

    fn others_are_held(
        &self,
        pin: &Pin,
        user: &UserLayer,
        tree: &Arc<Tree>,
        entry: &index::Node,
        host: Option<u64>,
    ) -> Answer<bool> {
        let known = self.groups.seen.lock().get(&entry.number).cloned();
        if let Some(seen) = known.filter(|s| s.generation == pin.0.number) {
            let held = seen.others(entry.at, host);
            // What is not seen in a generation any more comes back in another at the earliest (or see `changed_late`).
            if seen.changes == self.groups.changes() || held && host.is_none() {
                return Ok(held);
            }
        }
        let seen = Arc::new(self.look_at_group(pin, user, tree, entry)?);
        let held = seen.others(entry.at, host);
        let dropped = self.groups.seen.lock().push(entry.number, seen);
        drop(dropped);
        Ok(held)
    }

    fn look_at_group(&self, pin: &Pin, user: &UserLayer, tree: &Tree, entry: &index::Node) -> Answer<Seen> {
        let index = &tree.index;
        let mut seen = Seen { generation: pin.0.number, changes: self.groups.changes(), ..Seen::default() };
        let mut homes = HashMap::new();
        let group = index.group(entry)?;
        self.groups.looks.fetch_add(group.len() as u64, Ordering::Relaxed);
        for path in group {
            let home = match homes.get(&path.parent) {
                Some(home) => home,
                None => {
                    let home = self.home(pin, &index.node(path.parent)?, index)?;
                    homes.entry(path.parent).or_insert(home)
                }
            };
            match home {
                Home::Untouched => {}
                Home::Elsewhere => seen.hold(path.at, None),
                Home::Touched(dir) => match user.marks.probe(&*self.upper_dir(dir)?, index.name(&path)?) {
                    Ok(None) => {}
                    Ok(Some(Found::Entry(stat, _))) => seen.hold(path.at, Some(stat.ino)),
                    Ok(Some(Found::Whiteout)) => seen.hold(path.at, None),
                    // Something stands there, whatever it is. Whoever looks at it hears what is wrong.
                    Err(e) if e.raw_os_error() == Some(libc::EUCLEAN) => seen.hold(path.at, None),
                    Err(e) => return Err(e.into()),
                },
            }
        }
        Ok(seen)
    }

    fn home(&self, pin: &Pin, dir: &index::Node, index: &index::Index) -> Answer<Home> {
        let Some(node) = self.walk(pin, &index.path(dir)?)?.filter(|d| d.is_dir()) else {
            return Ok(Home::Elsewhere);
        };
        if !self.lower(pin, &node)?.is_some_and(|l| !l.pinned && l.is_at(dir)) {
            return Ok(Home::Elsewhere);
        }
        let touched = node.state().upper.is_some();
        Ok(if touched { Home::Touched(node) } else { Home::Untouched })
    }

    /// How many paths of the stack show a node that the user layer does not hold.
    pub(crate) fn split_links(&self, pin: &Pin, node: &Node, lower: &Lower) -> Answer<u32> {
        if let Entry::Plain(..) = &lower.entry {
            return Ok(lower.links()?);
        }
        let now = (pin.0.number, self.groups.changes());
        if let Some((_, links)) = node.state().links.filter(|(when, _)| *when == now) {
            return Ok(links);
        }
        let mut links = 0;
        let group = lower.group()?;
        self.groups.looks.fetch_add(group.len() as u64, Ordering::Relaxed);
        for (parent, name) in group {
            let path = crate::layer::model::join(&parent, &name);
            links += u32::from(self.walk(pin, &path)?.is_some_and(|n| n.id == node.id));
        }
        node.state().links = Some((now, links));
        Ok(links)
    }

    /// One of the names of a node is gone, and nothing else was changed since there were `before` changes. The caller
    /// holds `names` for writing.
    pub(crate) fn one_link_less(&self, pin: &Pin, node: &Node, before: u64) {
        let mut state = node.state();
        if let Some((when, links)) = &mut state.links
            && *when == (pin.0.number, before)
        {
            *when = (pin.0.number, self.groups.changes());
            *links = links.saturating_sub(1);
        }
    }

    /// How many paths of hard-link groups were looked at so far.
    pub fn looks_at_groups(&self) -> u64 {
        self.groups.looks.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
