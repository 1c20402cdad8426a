//! Directory listings.
//!
//! A place in a listing is made of the name that stands there, so that it means the same in every listing of a
//! directory, whatever came and went in between: the kernel may keep one and share it between all who read the
//! directory, each at a place of its own. Places of two generations differ, so that it never joins the beginning of
//! a listing from before a swap to the rest of one from after it.
//!
//! A handle goes on with the listing that it began with. Where nothing ever changes there are no handles.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hasher};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};

use super::attributes::Attributes;
use super::marks::Found;
use super::node::{Node, UNKNOWN, born_number};
use super::plant::planted;
use super::{Answer, Fail, Pin, View};
use crate::sys::fs as sys;

/// One name of a directory.
#[derive(Clone, Debug)]
pub struct Item {
    /// The name.
    pub name: Vec<u8>,
    /// Type bits.
    pub format: u32,
    /// Node number.
    pub id: u64,
}

/// The names of a directory in the order of their places; `.` and `..` come first.
#[derive(Debug)]
pub struct Listing {
    items: Vec<(u64, Item)>,
}

/// A place fits in what a 32-bit program has for it: two bits tell generations apart, the others are the name's.
/// Above those is room for names that share a place.
const NAME_BITS: u32 = 29;
const PLACES: u64 = (1 << NAME_BITS) - (1 << 19);

impl Listing {
    /// `tag`: the bits of the generation.
    fn new(tag: u64, node: u64, up: u64, names: Vec<Item>) -> Listing {
        let place = |name: &[u8]| tag << NAME_BITS | place(name);
        let mut items: Vec<(u64, Item)> = names.into_iter().map(|i| (place(&i.name), i)).collect();
        // Names that share a place follow each other in the order of their bytes.
        items.sort_unstable_by(|(a, i), (b, j)| (a, &i.name).cmp(&(b, &j.name)));
        let dot = |name: &[u8], id| Item { name: name.to_vec(), format: libc::S_IFDIR, id };
        let dots = [(1, dot(b".", node)), (2, dot(b"..", up))];
        let mut last = 0;
        let items = dots.into_iter().chain(items).map(|(place, item)| {
            last = place.max(last + 1);
            (last, item)
        });
        Listing { items: items.collect() }
    }

    /// What comes after a place, each with its own; 0 is before everything.
    pub fn after(&self, place: u64) -> &[(u64, Item)] {
        self.items.get(self.items.partition_point(|(p, _)| *p <= place)..).unwrap_or_default()
    }
}

fn place(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    3 + hasher.finish() % (PLACES - 3)
}

#[derive(Debug)]
struct DirHandle {
    node: Arc<Node>,
    listing: Mutex<Option<Arc<Listing>>>,
    /// Where it is written down for the next daemon (see [`super::inherit`]), and the request that opened it.
    slot: OnceLock<(u32, u64)>,
}

/// Open directories, and listings that somebody reads without a handle.
#[derive(Debug)]
pub struct Listings {
    pub(crate) next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<DirHandle>>>,
    kept: Mutex<LruCache<u64, Arc<Listing>>>,
}

/// How many listings are kept without a handle. What is dropped is made again.
const KEPT: NonZeroUsize = NonZeroUsize::new(16).unwrap();

impl Default for Listings {
    fn default() -> Listings {
        Listings { next: AtomicU64::new(0), open: RwLock::default(), kept: Mutex::new(LruCache::new(KEPT)) }
    }
}

impl DirHandle {
    fn new(node: Arc<Node>) -> DirHandle {
        DirHandle { node, listing: Mutex::default(), slot: OnceLock::new() }
    }
}

impl Listings {
    /// An open directory is written down there.
    pub(crate) fn note(&self, fh: u64, slot: u32, request: u64) {
        if let Some(handle) = self.open.read().get(&fh) {
            let _ = handle.slot.set((slot, request));
        }
    }

    /// A directory that an earlier daemon opened.
    pub(crate) fn inherit(&self, fh: u64, node: Arc<Node>, slot: u32, request: u64) {
        let handle = DirHandle::new(node);
        let _ = handle.slot.set((slot, request));
        self.open.write().insert(fh, Arc::new(handle));
    }

    /// What was opened for a request.
    pub(crate) fn opened_for(&self, request: u64) -> Vec<u64> {
        let open = self.open.read();
        let of = |h: &DirHandle| h.slot.get().is_some_and(|(_, r)| *r == request);
        open.iter().filter(|(_, h)| of(h)).map(|(fh, _)| *fh).collect()
    }
}

impl View {
    /// Opens a directory for listing.
    pub fn opendir(&self, pin: &Pin, id: u64) -> Answer<u64> {
        let node = self.node(pin, id)?;
        let fh = self.listings.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.listings.open.write().insert(fh, Arc::new(DirHandle::new(node)));
        Ok(fh)
    }

    /// Closes it.
    pub fn releasedir(&self, fh: u64) {
        let dropped = self.listings.open.write().remove(&fh);
        if let (Some(slots), Some((at, _))) = (self.slots.get(), dropped.as_ref().and_then(|h| h.slot.get()))
        {
            slots.give_back(*at);
        }
        drop(dropped);
    }

    /// The listing of an open directory, of which somebody has read as far as a place. From the beginning it is made
    /// anew.
    pub fn readdir(&self, pin: &Pin, fh: u64, from: u64) -> Answer<Arc<Listing>> {
        let handle = self.listings.open.read().get(&fh).cloned().ok_or(Fail(libc::EBADF))?;
        let mut listing = handle.listing.lock();
        if let Some(listing) = listing.as_ref().filter(|_| from > 0) {
            return Ok(listing.clone());
        }
        let made = self.make_listing(pin, &handle.node, from)?;
        *listing = Some(made.clone());
        Ok(made)
    }

    /// The listing of a directory that nobody opened, in a view that never changes.
    pub fn readdir_unchanging(&self, pin: &Pin, id: u64, from: u64) -> Answer<Arc<Listing>> {
        let kept = self.listings.kept.lock().get(&id).cloned();
        let listing = match kept {
            Some(listing) => listing,
            None => self.make_listing(pin, &self.node(pin, id)?, from)?,
        };
        let mut kept = self.listings.kept.lock();
        // Whoever reaches the end needs it no more.
        let dropped = if listing.after(from).is_empty() {
            kept.pop(&id)
        } else {
            kept.push(id, listing.clone()).map(|(_, old)| old)
        };
        drop(kept);
        drop(dropped);
        Ok(listing)
    }

    fn make_listing(&self, pin: &Pin, node: &Arc<Node>, from: u64) -> Answer<Arc<Listing>> {
        if !node.is_dir() {
            return Err(Fail(libc::ENOTDIR));
        }
        let _names = self.names.read();
        let removed = self.lower(pin, node)?.is_none() && {
            let state = node.state();
            state.gone || state.upper.is_none()
        };
        if removed {
            // By a swap; of what the user removes the kernel knows it. The C library takes it for an empty listing.
            return Err(Fail(libc::ENOENT));
        }
        let up = node.place().map(|(p, _)| p.id).unwrap_or(node.id);
        // Who goes on with what the kernel had goes on with the places of that.
        let tag = if from > 2 { from >> NAME_BITS } else { pin.0.number % 4 };
        Ok(Arc::new(Listing::new(tag, node.id, up, self.list(pin, node)?)))
    }

    /// The names in a directory. The caller holds `names`.
    pub(crate) fn list(&self, pin: &Pin, node: &Arc<Node>) -> Answer<Vec<Item>> {
        let lower = self.lower(pin, node)?;
        let (has_upper, gone) = {
            let s = node.state();
            (s.upper.is_some(), s.gone)
        };
        if gone {
            return Ok(Vec::new());
        }
        let mut below: Vec<Item> = Vec::new();
        if let Some(lower) = &lower {
            let apart = self.stands_apart(node, Some(lower));
            for child in lower.children()? {
                let number = match &child.linked {
                    Some(path) => self.lower_number(pin, path)?,
                    None => child.number,
                };
                let id = self.number_beneath(apart, lower.pinned, number);
                below.push(Item { name: child.name, format: child.format, id });
            }
        }
        let Some(user) = self.user.as_ref().filter(|_| has_upper) else { return Ok(below) };
        let dir = self.upper_dir(node)?;
        let above = sys::list(dir.as_fd())?;
        if above.is_empty() {
            return Ok(below);
        }
        let mut merged: BTreeMap<Vec<u8>, Item> = below.into_iter().map(|i| (i.name.clone(), i)).collect();
        for (name, format) in above {
            let found = match user.marks.probe(&*dir, &name) {
                Err(e) if e.raw_os_error() == Some(libc::EUCLEAN) => {
                    // The name is listed; whoever looks at it hears what is wrong.
                    merged.insert(name.clone(), Item { name, format, id: UNKNOWN });
                    continue;
                }
                r => r?,
            };
            match found {
                None => {}
                Some(Found::Whiteout) if planted("readdir-shows-whiteouts") => {}
                Some(Found::Whiteout) => {
                    merged.remove(&name);
                }
                Some(Found::Entry(stat, marks)) => {
                    let format = if marks.null_device { libc::S_IFCHR } else { stat.format() };
                    if !stat.is_dir() && marks.follows.is_some() && marks.pin.is_none() {
                        // It shows what it follows, or nothing.
                        let child = lower.as_ref().map(|l| l.child(&name)).transpose()?.flatten();
                        if let (Some(item), Some(child)) = (merged.get_mut(&name), child)
                            && child.format() == format
                        {
                            item.id = self.followed_number(pin, node, &child, &stat, &marks)?;
                        }
                        continue;
                    }
                    let id = marks.number.unwrap_or_else(|| born_number(&stat));
                    merged.insert(name.clone(), Item { name, format, id });
                }
            }
        }
        Ok(merged.into_values().collect())
    }

    /// A name of a listing with its attributes, for `readdirplus`. The kernel is given the node only when
    /// [`View::listed`] is called. `None`: it is gone meanwhile.
    pub fn item(&self, pin: &Pin, dir: u64, name: &[u8]) -> Answer<Option<(Arc<Node>, Attributes)>> {
        let dir = self.node(pin, dir)?;
        let _names = self.names.read();
        match self.child(pin, &dir, name)? {
            Some(node) => {
                let attributes = self.attributes(pin, &node)?;
                Ok(Some((node, attributes)))
            }
            None => Ok(None),
        }
    }

    /// The kernel was given a node in a listing.
    pub fn listed(&self, pin: &Pin, node: &Arc<Node>) {
        self.nodes.remember(node, pin.0.number);
    }
}
