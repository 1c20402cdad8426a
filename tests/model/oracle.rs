//! What a swap shows, by the rules of SEMANTICS.md: a second account of them, which knows nothing of the program.
//!
//! It notes what the user did to which path, and at a swap it turns the plain directory into what the rules give:
//! inodes stay where only metadata differ and are others where content or type differ; files that are open keep what
//! they have, since the plain directory's names are led to new inodes.

mod exchange;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{self as rfs, AtFlags, CWD, FileType, Mode};

use super::operations::{Operation, Side};
use super::snapshot::xattrs;

/// Attributes, as far as somebody set them.
#[derive(Clone, Debug, Default)]
struct Attributes {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, i64)>,
    /// Whether the access time is the user's; it is not compared, since a version keeps none.
    atime: bool,
    xattrs: BTreeMap<String, Option<Vec<u8>>>,
}

/// One path of a version.
#[derive(Clone, Debug)]
struct Entry {
    /// Type bits.
    format: u32,
    /// The first path of its hard-link group.
    first: String,
    /// Content, target or device number.
    content: Vec<u8>,
    /// All of them set.
    attributes: Attributes,
}

/// A version: its paths.
#[derive(Debug)]
pub struct Version {
    entries: BTreeMap<String, Entry>,
}

/// Attributes of a stack file that the user changed, for all names of its hard-link group.
#[derive(Debug)]
struct Follows {
    format: u32,
    set: Attributes,
    /// Which change was the last: what was split by a swap and changed since is not joined again.
    stamp: u64,
}

/// What the user has at a name.
#[derive(Debug)]
enum Above {
    /// He removed what the stack has.
    Gone,
    /// A file of his own.
    Mine,
    /// Attributes of a file of the stack.
    Follows(Rc<RefCell<Follows>>),
    /// A directory.
    Dir(Dir),
}

/// What is seen beneath a directory of the user's besides what he has in it.
#[derive(Clone, Debug)]
enum Below {
    /// What the stack has at this place.
    Merges,
    /// Nothing.
    Nothing,
    /// A directory of a version, wherever it stands now.
    Moved(usize, String),
}

#[derive(Debug)]
struct Dir {
    below: Below,
    /// The user made it: all attributes are his.
    whole: bool,
    /// The attributes that he changed.
    set: Attributes,
    children: BTreeMap<String, Above>,
}

impl Dir {
    fn new(below: Below, whole: bool) -> Dir {
        Dir { below, whole, set: Attributes::default(), children: BTreeMap::new() }
    }
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_string() } else { format!("{dir}/{name}") }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Version {
    /// Reads a version from the directory that it was imported from.
    pub fn read(source: &Path) -> Version {
        let mut entries = BTreeMap::new();
        let mut firsts: BTreeMap<u64, String> = BTreeMap::new();
        for path in paths(source) {
            let full = source.join(&path);
            let meta = fs::symlink_metadata(&full).unwrap();
            let first = firsts.entry(meta.ino()).or_insert(path.clone()).clone();
            let content = if meta.is_file() {
                fs::read(&full).unwrap()
            } else if meta.is_symlink() {
                fs::read_link(&full).unwrap().into_os_string().into_encoded_bytes()
            } else {
                meta.rdev().to_le_bytes().to_vec()
            };
            let format = meta.mode() & libc::S_IFMT;
            entries.insert(path, Entry { format, first, content, attributes: attributes(&full) });
        }
        Version { entries }
    }

    fn is_dir(&self, path: &str) -> bool {
        self.entries.get(path).is_some_and(|e| e.format == libc::S_IFDIR)
    }

    fn children<'a>(&'a self, dir: &'a str) -> impl Iterator<Item = &'a str> {
        self.entries.keys().filter(move |p| !p.is_empty() && split(p).0 == dir).map(|p| split(p).1)
    }
}

/// All paths of a tree in order, the root as the empty one.
fn paths(root: &Path) -> Vec<String> {
    let (mut out, mut todo) = (Vec::new(), vec![String::new()]);
    while let Some(path) = todo.pop() {
        let full = root.join(&path);
        if fs::symlink_metadata(&full).is_ok_and(|m| m.is_dir()) {
            for entry in fs::read_dir(&full).unwrap().flatten() {
                todo.push(join(&path, &entry.file_name().to_string_lossy()));
            }
        }
        out.push(path);
    }
    out.sort();
    out
}

fn attributes(path: &Path) -> Attributes {
    let meta = fs::symlink_metadata(path).unwrap();
    Attributes {
        mode: Some(meta.mode() & 0o7777),
        uid: Some(meta.uid()),
        gid: Some(meta.gid()),
        mtime: Some((meta.mtime(), meta.mtime_nsec())),
        atime: true,
        xattrs: xattrs(path).unwrap().into_iter().map(|(name, value)| (name, Some(value))).collect(),
    }
}

/// Gives a file attributes: those of `set` where there are any, else those of `all`.
fn write_attributes(path: &Path, all: &Attributes, set: &Attributes) {
    let meta = fs::symlink_metadata(path).unwrap();
    std::os::unix::fs::lchown(path, set.uid.or(all.uid), set.gid.or(all.gid)).unwrap();
    let mut wanted = all.xattrs.clone();
    wanted.extend(set.xattrs.clone());
    for name in xattrs(path).unwrap().into_keys() {
        if wanted.get(&name).is_none_or(Option::is_none) {
            rfs::lremovexattr(path, name.as_str()).ok();
        }
    }
    for (name, value) in &wanted {
        if let Some(value) = value {
            rfs::lsetxattr(path, name.as_str(), value, rfs::XattrFlags::empty()).unwrap();
        }
    }
    if !meta.is_symlink() {
        let mode = Mode::from_raw_mode(set.mode.or(all.mode).unwrap());
        rfs::chmodat(CWD, path, mode, AtFlags::empty()).unwrap();
    }
    set_mtime(path, set.mtime.or(all.mtime).unwrap());
}

fn set_mtime(path: &Path, (sec, nsec): (i64, i64)) {
    let time = rfs::Timespec { tv_sec: sec, tv_nsec: nsec as _ };
    let times = rfs::Timestamps { last_access: time, last_modification: time };
    rfs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Makes a file as a version has it.
fn make(path: &Path, entry: &Entry) {
    match entry.format {
        libc::S_IFREG => File::create_new(path).unwrap().write_all_at(&entry.content, 0).unwrap(),
        libc::S_IFDIR => fs::create_dir(path).unwrap(),
        libc::S_IFLNK => {
            let target = String::from_utf8(entry.content.clone()).unwrap();
            std::os::unix::fs::symlink(target, path).unwrap();
        }
        format => {
            let rdev = u64::from_le_bytes(entry.content[..8].try_into().unwrap());
            rfs::mknodat(CWD, path, FileType::from_raw_mode(format), Mode::from_raw_mode(0o600), rdev)
                .unwrap();
        }
    }
}

/// What an operation is about to change, found before it.
#[derive(Debug, Default)]
pub struct Before {
    /// The operation's names with all symbolic links before the last component resolved.
    first: Option<String>,
    second: Option<String>,
    /// The names of the inode that it changes.
    names: Vec<String>,
    /// Its attributes.
    attributes: Option<Attributes>,
    /// A move between two names of one file, which does nothing.
    nothing: bool,
    moving: Vec<Moving>,
    /// The names of the file that a move displaces.
    replaced: Vec<String>,
}

/// What a move makes the user's besides the name.
#[derive(Debug)]
struct Moving {
    path: String,
    /// Files, each under all its names.
    own: Vec<Vec<String>>,
    /// What a directory stands on from now on.
    below: Option<Below>,
}

/// What the user did in one directory tree, and on which version it stands.
#[derive(Debug)]
pub struct Oracle {
    versions: Rc<Vec<Version>>,
    /// The version that is shown.
    pub at: usize,
    top: Dir,
    root: PathBuf,
    stamps: u64,
}

impl Oracle {
    /// Makes a plain directory that shows a version which nobody changed yet.
    pub fn new(versions: Rc<Vec<Version>>, at: usize, root: &Path) -> Oracle {
        let version = &versions[at];
        for (path, entry) in &version.entries {
            if path.is_empty() {
                continue;
            }
            if entry.first == *path {
                make(&root.join(path), entry);
            } else {
                fs::hard_link(root.join(&entry.first), root.join(path)).unwrap();
            }
        }
        for (path, entry) in version.entries.iter().rev() {
            write_attributes(&root.join(path), &entry.attributes, &Attributes::default());
        }
        let top = Dir::new(Below::Merges, false);
        Oracle { versions, at, top, root: root.to_path_buf(), stamps: 0 }
    }

    /// The path of a name with the symbolic links before its last component resolved.
    fn placed(&self, name: &str) -> Option<String> {
        let (dir, last) = split(name);
        if last.is_empty() {
            return Some(String::new());
        }
        Some(join(&self.real(dir)?, last))
    }

    /// The path of a name with all symbolic links resolved.
    fn real(&self, name: &str) -> Option<String> {
        let path = self.root.join(name).canonicalize().ok()?;
        Some(path.strip_prefix(&self.root).ok()?.to_str()?.to_string())
    }

    /// All names of an inode.
    pub fn names_of(&self, inode: u64) -> Vec<String> {
        let is = |p: &String| fs::symlink_metadata(self.root.join(p)).is_ok_and(|m| m.ino() == inode);
        paths(&self.root).into_iter().filter(is).collect()
    }

    /// What the stack has at a path, whether it is seen or not, and what the user has there.
    fn spot(&self, path: &str) -> (Option<(usize, String)>, Option<&Above>) {
        let mut below = Some((self.at, String::new()));
        let mut dir = Some(&self.top);
        let mut above: Option<&Above> = None;
        let mut first = true;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            if !first {
                below = match (above, below) {
                    (Some(Above::Dir(d)), b) => match &d.below {
                        Below::Merges => b,
                        Below::Nothing => None,
                        Below::Moved(v, p) => Some((*v, p.clone())),
                    },
                    (Some(Above::Gone | Above::Mine), _) => None,
                    (Some(Above::Follows(_)) | None, b) => b,
                };
            }
            first = false;
            below = below
                .filter(|(v, p)| self.versions[*v].is_dir(p))
                .map(|(v, p)| (v, join(&p, name)))
                .filter(|(v, p)| self.versions[*v].entries.contains_key(p));
            above = dir.and_then(|d| d.children.get(name));
            dir = match above {
                Some(Above::Dir(d)) => Some(d),
                _ => None,
            };
        }
        (below, above)
    }

    fn is_below(&self, path: &str) -> bool {
        self.spot(path).0.is_some()
    }

    /// The user has this directory from now on, and those above it.
    fn dir(&mut self, path: &str) -> &mut Dir {
        let mut dir = &mut self.top;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            let child = dir.children.entry(name.into()).or_insert(Above::Gone);
            if !matches!(child, Above::Dir(_)) {
                // Nothing, or attributes of a file that is not there now.
                *child = Above::Dir(Dir::new(Below::Merges, false));
            }
            dir = match child {
                Above::Dir(d) => d,
                _ => unreachable!("it was made one"),
            };
        }
        dir
    }

    /// Something came or went in a directory.
    fn touch(&mut self, path: &str) {
        self.dir(path).set.mtime = Some((0, 0));
    }

    fn put(&mut self, path: &str, what: Option<Above>) {
        let (dir, name) = split(path);
        let dir = self.dir(dir);
        match what {
            Some(what) => drop(dir.children.insert(name.into(), what)),
            None => drop(dir.children.remove(name)),
        }
    }

    fn is_mine(&self, path: &str) -> bool {
        matches!(self.spot(path).1, Some(Above::Mine))
    }

    /// The content is the user's from now on, under all names.
    fn own(&mut self, names: &[String]) {
        for name in names {
            if !self.is_mine(name) {
                self.put(name, Some(Above::Mine));
            }
        }
    }

    /// The user changed attributes of an inode.
    fn change(&mut self, names: &[String], set: &Attributes) {
        let Some(first) = names.first() else { return };
        let meta = fs::symlink_metadata(self.root.join(first)).unwrap();
        if meta.is_dir() {
            let dir = self.dir(first);
            merge(&mut dir.set, set);
            return;
        }
        if self.is_mine(first) {
            return;
        }
        self.stamps += 1;
        let stamp = self.stamps;
        let known = names.iter().find_map(|n| match self.spot(n).1 {
            Some(Above::Follows(f)) => Some(f.clone()),
            _ => None,
        });
        let format = meta.mode() & libc::S_IFMT;
        // What is left of a file of another type is not that of this one.
        let known = known
            .filter(|f| f.borrow().format == format)
            .unwrap_or_else(|| Rc::new(RefCell::new(Follows { format, set: Attributes::default(), stamp })));
        {
            let mut follows = known.borrow_mut();
            merge(&mut follows.set, set);
            follows.stamp = stamp;
        }
        for name in names {
            self.put(name, Some(Above::Follows(known.clone())));
        }
    }

    /// To be asked before an operation is done on the plain side.
    pub fn before(&self, operation: &Operation, plain: &Side) -> Before {
        use Operation as O;
        let mut out = Before::default();
        let inode = |path: Option<&String>| {
            path.and_then(|p| fs::symlink_metadata(self.root.join(p)).ok()).map(|m| m.ino())
        };
        let mut target = None;
        match operation {
            O::Mkdir(p, _) | O::Create(p, _) | O::Symlink(_, p) => out.first = self.placed(p),
            O::Unlink(p) | O::Rmdir(p) => {
                out.first = self.placed(p);
                target = inode(out.first.as_ref());
            }
            O::Mknod(p, ..) => out.first = self.placed(p),
            O::Chown(p, ..) | O::Times(p, ..) | O::SetXattr(p, ..) | O::RemoveXattr(p, _) => {
                target = inode(self.placed(p).as_ref());
            }
            O::Chmod(p, _) | O::Write(p, ..) | O::Append(p, ..) | O::Truncate(p, _) | O::Empty(p) => {
                target = inode(self.real(p).as_ref());
            }
            O::Open(_, p, _) => target = inode(self.real(p).as_ref()),
            O::Rename(p, q, _) | O::Link(p, q) => {
                (out.first, out.second) = (self.placed(p), self.placed(q));
                target = inode(out.first.as_ref());
                out.nothing = target.is_some() && target == inode(out.second.as_ref());
                if let (O::Rename(_, _, flags), Some(p), Some(q)) = (operation, &out.first, &out.second) {
                    out.moving.push(self.moving(p));
                    if *flags == libc::RENAME_EXCHANGE {
                        out.moving.push(self.moving(q));
                    } else if let Some(inode) = inode(Some(q)) {
                        out.replaced = self.names_of(inode);
                    }
                }
            }
            O::HandleLink(slot, p) => {
                out.second = self.placed(p);
                target = plain.inode(*slot);
            }
            O::HandleChmod(slot, _)
            | O::HandleChown(slot, _)
            | O::HandleXattr(slot, ..)
            | O::HandleTimes(slot, _)
            | O::HandleMkdir(slot, _) => target = plain.inode(*slot),
            _ => {}
        }
        if let Some(inode) = target {
            out.names = self.names_of(inode);
            out.attributes = out.names.first().map(|n| attributes(&self.root.join(n)));
        }
        out
    }

    /// To be told after an operation that succeeded.
    pub fn after(&mut self, operation: &Operation, before: Before) {
        use Operation as O;
        let Before { first, second, names, attributes: was, nothing, moving, replaced } = before;
        let mut explicit = Attributes::default();
        match operation {
            O::Mkdir(..) => {
                let Some(path) = first else { return };
                let gone = matches!(self.spot(&path).1, Some(Above::Gone));
                let below = if gone { Below::Nothing } else { Below::Merges };
                self.touch(split(&path).0);
                self.put(&path, Some(Above::Dir(Dir::new(below, true))));
            }
            O::HandleMkdir(_, name) => {
                let Some(dir) = names.first() else { return };
                self.after(
                    &O::Mkdir(String::new(), 0),
                    Before { first: Some(join(dir, name)), ..Before::default() },
                );
            }
            O::Create(..) | O::Mknod(..) | O::Symlink(..) => {
                let Some(path) = first else { return };
                self.touch(split(&path).0);
                self.put(&path, Some(Above::Mine));
            }
            O::Unlink(_) | O::Rmdir(_) => {
                let Some(path) = first else { return };
                self.part(&path, &names);
                let below = self.is_below(&path);
                self.touch(split(&path).0);
                self.put(&path, below.then_some(Above::Gone));
            }
            O::Write(..) | O::Append(..) | O::Truncate(..) | O::Empty(_) => self.write(&names),
            O::Open(_, p, flags) => {
                if names.is_empty() && flags & libc::O_CREAT != 0 {
                    // It was made just now.
                    let Some(path) = self.real(p) else { return };
                    self.touch(split(&path).0);
                    self.put(&path, Some(Above::Mine));
                } else if flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0 {
                    self.write(&names);
                }
            }
            O::Link(..) | O::HandleLink(..) => {
                let Some(path) = second else { return };
                self.own(&names);
                self.touch(split(&path).0);
                self.put(&path, Some(Above::Mine));
            }
            O::Rename(_, _, flags) => {
                let (Some(p), Some(q)) = (first, second) else { return };
                if !nothing {
                    self.rename(&p, &q, *flags == libc::RENAME_EXCHANGE, moving, replaced);
                }
            }
            O::Chmod(_, mode) | O::HandleChmod(_, mode) => {
                explicit.mode = Some(*mode);
                let file = names.first().is_some_and(|n| self.root.join(n).is_file());
                if file && mode & 0o6000 != 0 {
                    self.own(&names);
                }
                self.attributes_changed(&names, was, explicit);
            }
            O::Chown(_, uid, gid) => {
                (explicit.uid, explicit.gid) = (*uid, *gid);
                self.attributes_changed(&names, was, explicit);
            }
            O::HandleChown(_, id) => {
                (explicit.uid, explicit.gid) = (Some(*id), Some(*id));
                self.attributes_changed(&names, was, explicit);
            }
            O::Times(_, a, m) => {
                (explicit.atime, explicit.mtime) = (a.is_some(), m.map(|_| (0, 0)));
                self.attributes_changed(&names, was, explicit);
            }
            O::HandleTimes(..) => {
                explicit.mtime = Some((0, 0));
                self.attributes_changed(&names, was, explicit);
            }
            O::SetXattr(_, name, ..) | O::HandleXattr(_, name, _) | O::RemoveXattr(_, name) => {
                let file = names
                    .first()
                    .and_then(|n| fs::symlink_metadata(self.root.join(n)).ok())
                    .is_some_and(|m| m.is_file());
                let acl = *name == "system.posix_acl_access";
                let removed_none = matches!(operation, O::RemoveXattr(..))
                    && was.as_ref().is_none_or(|a| !a.xattrs.contains_key(*name));
                if removed_none {
                    // Removing an ACL that is not there does nothing.
                    return;
                }
                if file && name.starts_with("security.") && !matches!(operation, O::RemoveXattr(..)) {
                    self.own(&names);
                }
                explicit.xattrs.insert((*name).to_string(), None);
                explicit.mode = acl.then_some(0);
                self.attributes_changed(&names, was, explicit);
            }
            _ => {}
        }
    }

    /// A file was opened for writing.
    fn write(&mut self, names: &[String]) {
        let file = |n: &String| {
            fs::symlink_metadata(self.root.join(n))
                .is_ok_and(|m| m.is_file() && !m.file_type().is_char_device())
        };
        if names.first().is_some_and(file) {
            self.own(names);
        }
    }

    /// Attributes were changed: those that were named, and those that changed with them.
    fn attributes_changed(&mut self, names: &[String], was: Option<Attributes>, explicit: Attributes) {
        let (Some(first), Some(was)) = (names.first(), was) else { return };
        let now = attributes(&self.root.join(first));
        let mut set = explicit;
        if now.mode != was.mode {
            set.mode = now.mode;
        }
        for name in was.xattrs.keys().chain(now.xattrs.keys()) {
            if was.xattrs.get(name) != now.xattrs.get(name) {
                set.xattrs.insert(name.clone(), None);
            }
        }
        let any = set.mode.is_some() || set.uid.is_some() || set.gid.is_some() || set.mtime.is_some();
        if any || set.atime || !set.xattrs.is_empty() {
            self.change(names, &set);
        }
    }

    fn rename(&mut self, p: &str, q: &str, exchange: bool, moving: Vec<Moving>, replaced: Vec<String>) {
        let below = self.is_below(p);
        for one in moving {
            one.own.iter().for_each(|names| self.own(names));
            if let Some(below) = one.below {
                self.dir(&one.path).below = below;
            }
        }
        self.part(q, &replaced);
        self.touch(split(p).0);
        self.touch(split(q).0);
        let (moved, other) = (self.take(p), self.take(q));
        self.put(q, moved);
        if exchange {
            self.put(p, other);
        } else {
            self.put(p, below.then_some(Above::Gone));
        }
    }

    /// A name of a file is about to go: its other names are held together from now on, on every version.
    fn part(&mut self, path: &str, names: &[String]) {
        let others: Vec<String> = names.iter().filter(|n| *n != path).cloned().collect();
        if !others.is_empty() {
            self.change(&others, &Attributes::default());
        }
    }

    fn take(&mut self, path: &str) -> Option<Above> {
        let (dir, name) = split(path);
        self.dir(dir).children.remove(name)
    }

    /// What a move of `path` makes the user's.
    fn moving(&self, path: &str) -> Moving {
        let mut out = Moving { path: path.into(), own: Vec::new(), below: None };
        let Ok(meta) = fs::symlink_metadata(self.root.join(path)) else { return out };
        if !meta.is_dir() {
            out.own.push(self.names_of(meta.ino()));
            return out;
        }
        let (below, above) = self.spot(path);
        let below = below.filter(|(v, p)| self.versions[*v].is_dir(p));
        let lower = match above {
            Some(Above::Dir(d)) if !matches!(d.below, Below::Merges) => return out,
            _ => below,
        };
        // Files beneath it that have other names in the stack are pinned with all of them.
        if let Some((version, top)) = &lower {
            let entries = &self.versions[*version].entries;
            for sub in paths(&self.root.join(path)) {
                let Some(entry) = entries.get(&join(top, &sub)) else { continue };
                let name = join(path, &sub);
                let meta = fs::symlink_metadata(self.root.join(&name)).unwrap();
                let (below, above) = self.spot(&name);
                if !meta.is_dir()
                    && entries.values().filter(|e| e.first == entry.first).count() > 1
                    && below.is_some()
                    && matches!(above, None | Some(Above::Follows(_)))
                {
                    out.own.push(self.names_of(meta.ino()));
                }
            }
        }
        out.below = Some(match lower {
            Some((version, top)) => Below::Moved(version, top),
            None => Below::Nothing,
        });
        out
    }

    /// Every path that some version has.
    pub fn paths(&self) -> BTreeSet<String> {
        self.versions.iter().flat_map(|v| v.entries.keys().cloned()).collect()
    }
}

fn merge(into: &mut Attributes, set: &Attributes) {
    into.mode = set.mode.or(into.mode);
    into.uid = set.uid.or(into.uid);
    into.gid = set.gid.or(into.gid);
    into.mtime = set.mtime.or(into.mtime);
    into.xattrs.extend(set.xattrs.clone());
}
