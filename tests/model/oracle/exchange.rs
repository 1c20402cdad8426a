//! The swap itself: the plain directory becomes what the rules give, from what the oracle noted before.

use super::*;

impl Oracle {
    /// Whether the rules say what a swap to a version gives. They do not where names that the target links were
    /// touched one by one on a version that does not link them.
    pub fn can_swap(&self, to: usize) -> bool {
        let mut groups: BTreeMap<&str, Vec<Option<u64>>> = BTreeMap::new();
        for (path, entry) in &self.versions[to].entries {
            if let Some(above) = self.shown(to, path, entry) {
                groups.entry(&entry.first).or_default().push(above.map(|f| f.borrow().stamp));
            }
        }
        groups.values().all(|stamps| stamps.windows(2).all(|w| w[0] == w[1]))
    }

    /// Whether a path of a version that is no directory would be shown, and with whose attributes.
    fn shown(&self, to: usize, path: &str, entry: &Entry) -> Option<Option<Rc<RefCell<Follows>>>> {
        if entry.format == libc::S_IFDIR {
            return None;
        }
        let mut dir = Some(&self.top);
        let (parents, name) = split(path);
        let mut at = String::new();
        for part in parents.split('/').filter(|n| !n.is_empty()) {
            at = join(&at, part);
            dir = match dir.and_then(|d| d.children.get(part)) {
                Some(Above::Dir(d)) if matches!(d.below, Below::Merges) => Some(d),
                None => None,
                Some(Above::Follows(_)) if self.versions[to].is_dir(&at) => None,
                Some(_) => return None,
            };
        }
        match dir.and_then(|d| d.children.get(name)) {
            None => Some(None),
            Some(Above::Follows(f)) if f.borrow().format == entry.format => Some(Some(f.clone())),
            Some(Above::Follows(_)) => Some(None),
            Some(_) => None,
        }
    }

    /// Turns the plain directory into what is shown on another version. Gives back files that keep their inode here
    /// and may have another number in the view: those that the target links with other names.
    pub fn swap(&mut self, to: usize) -> Vec<PathBuf> {
        let versions = self.versions.clone();
        let (old, new) = (&versions[self.at], &versions[to]);
        // What the user set, before the files that show it may go.
        for (path, entry) in &old.entries {
            if let Some(Some(follows)) = self.shown(self.at, path, entry) {
                let now = attributes(&self.root.join(path));
                let mut follows = follows.borrow_mut();
                let set = &mut follows.set;
                set.mode = set.mode.and(now.mode);
                set.uid = set.uid.and(now.uid);
                set.gid = set.gid.and(now.gid);
                set.mtime = set.mtime.and(now.mtime);
                for (name, value) in &mut set.xattrs {
                    *value = now.xattrs.get(name).cloned().flatten();
                }
            }
        }
        let times: BTreeMap<String, (i64, i64)> = paths(&self.root)
            .into_iter()
            .filter_map(|p| {
                let meta = fs::symlink_metadata(self.root.join(&p)).ok()?;
                meta.is_dir().then(|| (p, (meta.mtime(), meta.mtime_nsec())))
            })
            .collect();
        // What goes, and what becomes another inode.
        let mut shown: BTreeMap<String, Option<Rc<RefCell<Follows>>>> = BTreeMap::new();
        for (path, entry) in &new.entries {
            if let Some(above) = self.shown(to, path, entry) {
                shown.insert(path.clone(), above);
            }
        }
        self.clear(Some(&self.top), "", old, new);
        // What comes.
        self.fill(Some(&self.top), "", new);
        let mut kept: BTreeMap<&str, String> = BTreeMap::new();
        for path in shown.keys() {
            if self.root.join(path).symlink_metadata().is_ok() {
                kept.entry(&new.entries[path].first).or_insert(path.clone());
            }
        }
        for path in shown.keys() {
            let (entry, full) = (&new.entries[path], self.root.join(path));
            let here = full.symlink_metadata().ok().map(|m| m.ino());
            match kept.get(&*entry.first) {
                Some(other) => {
                    let inode = self.root.join(other).symlink_metadata().unwrap().ino();
                    if here != Some(inode) {
                        if here.is_some() {
                            fs::remove_file(&full).unwrap();
                        }
                        fs::hard_link(self.root.join(other), &full).unwrap();
                    }
                }
                None => {
                    make(&full, entry);
                    kept.insert(&entry.first, path.clone());
                }
            }
        }
        // What a swap split is split in these notes too.
        let mut copies: BTreeMap<(usize, &str), Rc<RefCell<Follows>>> = BTreeMap::new();
        for (path, follows) in &shown {
            let entry = &new.entries[path];
            let none = Attributes::default();
            match follows {
                Some(follows) => {
                    let key = (Rc::as_ptr(follows) as usize, entry.first.as_str());
                    let copy = copies.entry(key).or_insert_with(|| {
                        let f = follows.borrow();
                        Rc::new(RefCell::new(Follows {
                            format: f.format,
                            set: f.set.clone(),
                            stamp: f.stamp,
                        }))
                    });
                    write_attributes(&self.root.join(path), &entry.attributes, &copy.borrow().set);
                    let copy = copy.clone();
                    self.put(path, Some(Above::Follows(copy)));
                }
                None => write_attributes(&self.root.join(path), &entry.attributes, &none),
            }
        }
        self.finish_dirs(Some(&self.top), "", new, &times);
        self.at = to;
        let group = |v: &'_ Version, e: &Entry| -> Vec<String> {
            v.entries.iter().filter(|(_, o)| o.first == e.first).map(|(p, _)| p.clone()).collect()
        };
        let regrouped =
            |p: &&String| old.entries.get(*p).is_none_or(|e| group(old, e) != group(new, &new.entries[*p]));
        shown.keys().filter(regrouped).map(|p| self.root.join(p)).collect()
    }

    /// Removes what the target does not show, and what is another inode there.
    fn clear(&self, layer: Option<&Dir>, dir: &str, old: &Version, new: &Version) {
        let children: BTreeSet<String> = fs::read_dir(self.root.join(dir))
            .unwrap()
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        for name in children {
            let path = join(dir, &name);
            match layer.and_then(|l| l.children.get(&name)) {
                Some(Above::Mine | Above::Gone) => {}
                Some(Above::Dir(d)) => {
                    if matches!(d.below, Below::Merges) {
                        self.clear(Some(d), &path, old, new);
                    }
                }
                Some(Above::Follows(_)) | None => {
                    let full = self.root.join(&path);
                    let (was, is) = (old.entries.get(&path), new.entries.get(&path));
                    let dir_still = was.is_some_and(|e| e.format == libc::S_IFDIR) && new.is_dir(&path);
                    let same = match (was, is) {
                        (Some(a), Some(b)) => {
                            a.format == b.format && a.content == b.content && a.first == b.first
                        }
                        _ => false,
                    };
                    if dir_still {
                        self.clear(None, &path, old, new);
                    } else if full.symlink_metadata().unwrap().is_dir() {
                        fs::remove_dir_all(full).unwrap();
                    } else if !same {
                        fs::remove_file(full).unwrap();
                    }
                }
            }
        }
    }

    /// Makes the directories that come.
    fn fill(&self, layer: Option<&Dir>, dir: &str, new: &Version) {
        if !new.is_dir(dir) {
            return;
        }
        for name in new.children(dir) {
            let path = join(dir, name);
            if !new.is_dir(&path) {
                continue;
            }
            match layer.and_then(|l| l.children.get(name)) {
                Some(Above::Mine | Above::Gone) => {}
                Some(Above::Dir(d)) => {
                    if matches!(d.below, Below::Merges) {
                        self.fill(Some(d), &path, new);
                    }
                }
                Some(Above::Follows(_)) | None => {
                    let full = self.root.join(&path);
                    if full.symlink_metadata().is_err() {
                        make(&full, &new.entries[&path]);
                    }
                    self.fill(None, &path, new);
                }
            }
        }
    }

    /// Gives the directories that merge their attributes, the deepest first.
    fn finish_dirs(
        &self,
        layer: Option<&Dir>,
        dir: &str,
        new: &Version,
        times: &BTreeMap<String, (i64, i64)>,
    ) {
        let full = self.root.join(dir);
        for entry in fs::read_dir(&full).unwrap().flatten() {
            if !entry.file_type().unwrap().is_dir() {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            match layer.and_then(|l| l.children.get(&name)) {
                Some(Above::Dir(d)) if matches!(d.below, Below::Merges) => {
                    self.finish_dirs(Some(d), &join(dir, &name), new, times);
                }
                Some(Above::Dir(_)) => {}
                _ => self.finish_dirs(None, &join(dir, &name), new, times),
            }
        }
        let was = times.get(dir).copied();
        match new.entries.get(dir).filter(|e| e.format == libc::S_IFDIR) {
            Some(entry) if !layer.is_some_and(|l| l.whole) => {
                let mut set = Attributes::default();
                if let Some(layer) = layer {
                    let now = attributes(&full);
                    set.mode = layer.set.mode.and(now.mode);
                    set.uid = layer.set.uid.and(now.uid);
                    set.gid = layer.set.gid.and(now.gid);
                    set.mtime = layer.set.mtime.and(was);
                    for name in layer.set.xattrs.keys() {
                        set.xattrs.insert(name.clone(), now.xattrs.get(name).cloned().flatten());
                    }
                }
                write_attributes(&full, &entry.attributes, &set);
            }
            _ => {
                if let Some(was) = was {
                    set_mtime(&full, was);
                }
            }
        }
    }

    /// Whether a path is a file of the stack with one name, which the user did not write to, and which another
    /// version has with another content or not at all.
    pub fn is_to_be_copied_up(&self, path: &str, to: usize) -> bool {
        let alone = |v: &Version, e: &Entry| v.entries.values().filter(|o| o.first == e.first).count() == 1;
        let (now, then) = (&self.versions[self.at], &self.versions[to]);
        let Some(entry) = now.entries.get(path) else { return false };
        let differs = match then.entries.get(path) {
            Some(other) => {
                other.format == libc::S_IFREG && other.content != entry.content && alone(then, other)
            }
            None => true,
        };
        entry.format == libc::S_IFREG
            && alone(now, entry)
            && differs
            && self.shown(self.at, path, entry).is_some()
            && self.root.join(path).is_file()
    }
}
