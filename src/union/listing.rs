//! Directory listings.
//!
//! A handle lists what was there when it began at offset 0; offsets are places in that list, so that they
//! stay valid while entries come and go.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::attributes::Attributes;
use super::marks::Found;
use super::node::{Node, UNKNOWN, born_number};
use super::plant::planted;
use super::{Answer, Fail, Pin, View};
use crate::sys::fs as sys;

/// One name of a listing.
#[derive(Clone, Debug)]
pub struct Item {
    /// The name.
    pub name: Vec<u8>,
    /// Type bits.
    pub format: u32,
    /// Node number.
    pub id: u64,
}

#[derive(Debug)]
struct DirHandle {
    node: Arc<Node>,
    items: Mutex<Option<Arc<Vec<Item>>>>,
}

/// Open directories.
#[derive(Debug, Default)]
pub struct DirHandles {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<DirHandle>>>,
}

impl View {
    /// Opens a directory for listing.
    pub fn opendir(&self, pin: &Pin, id: u64) -> Answer<u64> {
        let node = self.node(pin, id)?;
        let fh = self.dir_handles.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.dir_handles.open.write().insert(fh, Arc::new(DirHandle { node, items: Mutex::default() }));
        Ok(fh)
    }

    /// Closes it.
    pub fn releasedir(&self, fh: u64) {
        let dropped = self.dir_handles.open.write().remove(&fh);
        drop(dropped);
    }

    /// The listing of an open directory; `.` and `..` come first. At offset 0 it is made anew.
    pub fn readdir(&self, pin: &Pin, fh: u64, offset: u64) -> Answer<Arc<Vec<Item>>> {
        let handle = self.dir_handles.open.read().get(&fh).cloned().ok_or(Fail(libc::EBADF))?;
        let mut items = handle.items.lock();
        if let Some(items) = items.as_ref().filter(|_| offset > 0) {
            return Ok(items.clone());
        }
        let _names = self.names.read();
        let node = &handle.node;
        let removed = self.lower(pin, node)?.is_none() && {
            let state = node.state();
            state.gone || state.upper.is_none()
        };
        if removed {
            // By a swap; of what the user removes the kernel knows it. The C library takes it for an empty listing.
            return Err(Fail(libc::ENOENT));
        }
        let up = node.place().map(|(p, _)| p.id).unwrap_or(node.id);
        let mut out = vec![
            Item { name: b".".to_vec(), format: libc::S_IFDIR, id: node.id },
            Item { name: b"..".to_vec(), format: libc::S_IFDIR, id: up },
        ];
        out.extend(self.list(pin, node)?);
        let out = Arc::new(out);
        *items = Some(out.clone());
        Ok(out)
    }

    /// The directory of an open handle.
    pub fn dir_of(&self, fh: u64) -> Answer<u64> {
        self.dir_handles.open.read().get(&fh).map(|h| h.node.id).ok_or(Fail(libc::EBADF))
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
            for child in lower.children()? {
                let number = match &child.linked {
                    Some(path) => self.lower_number(pin, path)?,
                    None => child.number,
                };
                let id = self.number_in(pin, node, lower, number)?;
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

    /// Whether nothing can be seen in a directory. The caller holds `names`.
    pub(crate) fn is_empty_dir(&self, pin: &Pin, node: &Arc<Node>) -> Answer<bool> {
        Ok(self.list(pin, node)?.is_empty())
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
