//! A user layer read as a whole: what it changes, what a commit takes, what `settle` completes.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::copyup::Depth;
use super::lower::Tree;
use super::marks::{Changed, Found, Marks, Namespace, PinMark};
use super::node::Node;
use super::partial::Merged;
use super::{Answer, Fail, Pin, View};
use crate::error::{Doing, Error, Result};
use crate::layer::encode;
use crate::layer::index::{Index, Node as TreeNode};
use crate::layer::model::{Content, DEPTH_MAX, Draft, InodeId, Meta, ROOT, join};
use crate::store::{Digest, Store};
use crate::sys::fs::{self as sys, Open, Stat};
use crate::sys::xattr;

/// Gives the digest of a file that the user owns: by reading it, or not at all.
pub type ContentOf<'a> = dyn FnMut(&[u8], &OwnedFd, &Stat) -> Result<Digest> + 'a;

/// Lays a user layer over a version's tree: the result shows what the view shows.
pub fn lay_over(
    store: &Store,
    tree: &Tree,
    user: &std::path::Path,
    content: &mut ContentOf<'_>,
) -> Result<Draft> {
    let mut draft = encode::decode(&tree.index)?;
    let top = sys::open_dir(user).at("opening the user layer", user)?;
    let marks = Namespace::for_process();
    let mut own = marks.read(&top).at("reading", user)?;
    if own.follows.is_none() && sys::list(top.as_fd()).at("reading", user)?.is_empty() {
        // Never mounted: the first mount marks it so.
        own.follows = Some(Changed::default());
    }
    let mut work = Laying { store, marks, draft: &mut draft, content, links: HashMap::new() };
    let stat = sys::stat(&top).at("reading", user)?;
    work.attributes(ROOT, &top, &stat, &own, true)?;
    if own.opaque {
        work.draft.get_mut(ROOT).children.clear();
    }
    work.dir(&top, ROOT, b"")?;
    Ok(draft)
}

struct Laying<'a, 'b> {
    store: &'a Store,
    marks: Namespace,
    draft: &'a mut Draft,
    content: &'a mut ContentOf<'b>,
    /// Host inode, and for what follows the stack the inode followed, to the inode made for it.
    links: HashMap<(u64, Option<InodeId>), InodeId>,
}

impl Laying<'_, '_> {
    fn dir(&mut self, fd: &OwnedFd, to: InodeId, path: &[u8]) -> Result<()> {
        // Before it is gone into: the result could not be a version.
        if path.split(|c| *c == b'/').count() > DEPTH_MAX {
            return Err(Error::Failed(format!("more than {DEPTH_MAX} directories lie within each other")));
        }
        let shown = String::from_utf8_lossy(path).into_owned();
        let mut names = sys::list(fd.as_fd()).at("listing", &shown)?;
        names.sort();
        for (name, _) in names {
            let below = self.draft.get(to).children.get(&name).copied();
            let path = join(path, &name);
            let shown = String::from_utf8_lossy(&path).into_owned();
            match self.marks.probe(fd, &name).map_err(|e| unreadable(&shown, e))? {
                None => {}
                Some(Found::Whiteout) => {
                    self.draft.get_mut(to).children.remove(&name);
                }
                Some(Found::Entry(stat, marks)) if stat.is_dir() => {
                    let sub = sys::open_at(fd, &name, Open::DirPath).at("opening", &shown)?;
                    let merged = below.filter(|b| self.draft.get(*b).content.is_dir());
                    let (id, has_lower) = match (&marks.pin, merged) {
                        (Some(pin), _) => (self.pinned_dir(pin, &shown)?, true),
                        (None, Some(id)) if !marks.opaque => (id, true),
                        _ => (self.draft.add(Meta::default(), Content::Dir { opaque: false }), false),
                    };
                    self.attributes(id, &sub, &stat, &marks, has_lower)?;
                    self.draft.link(to, &name, id);
                    self.dir(&sub, id, &path)?;
                }
                Some(Found::Entry(stat, marks)) => {
                    if let Some(id) = self.file(fd, &name, &path, &stat, &marks, below)? {
                        self.draft.link(to, &name, id);
                    }
                }
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
        marks: &Marks,
        below: Option<InodeId>,
    ) -> Result<Option<InodeId>> {
        let shown = String::from_utf8_lossy(path).into_owned();
        let format = if marks.null_device { libc::S_IFCHR } else { stat.format() };
        let follows = marks.follows.is_some() && marks.pin.is_none();
        let followed = below.filter(|b| follows && self.draft.get(*b).content.format() == format);
        if follows && followed.is_none() {
            return Ok(None);
        }
        let key = (stat.ino, followed);
        if let Some(id) = self.links.get(&key) {
            return Ok(Some(*id));
        }
        let handle = sys::open_at(dir, name, Open::Path).at("opening", &shown)?;
        let id = if let Some(below) = followed {
            let inode = self.draft.get(below).clone();
            self.draft.add(inode.meta, inode.content)
        } else {
            let content = match (format, &marks.pin) {
                (libc::S_IFREG, Some(PinMark::Object(object, size))) => {
                    let there =
                        std::fs::metadata(self.store.object_path(object)).is_ok_and(|m| m.len() == *size);
                    if !there {
                        return Err(damaged(
                            &shown,
                            &format!("a pin on {object}, which the store does not hold"),
                        ));
                    }
                    Content::File { object: *object, size: *size }
                }
                (_, Some(_)) => return Err(damaged(&shown, "a pin that does not fit it")),
                (libc::S_IFREG, _) => {
                    Content::File { object: (self.content)(path, &handle, stat)?, size: stat.size }
                }
                (libc::S_IFLNK, _) => Content::Symlink(sys::readlink_at(dir, name).at("reading", &shown)?),
                (libc::S_IFCHR, _) if marks.null_device => Content::Char(0, 0),
                (libc::S_IFCHR, _) => Content::Char(stat.rdev.0, stat.rdev.1),
                (libc::S_IFBLK, _) => Content::Block(stat.rdev.0, stat.rdev.1),
                (libc::S_IFIFO, _) => Content::Fifo,
                _ => Content::Socket,
            };
            self.draft.add(Meta::default(), content)
        };
        self.attributes(id, &handle, stat, marks, followed.is_some())?;
        if stat.nlink > 1 {
            self.links.insert(key, id);
        }
        Ok(Some(id))
    }

    /// Gives an inode the attributes that the view shows.
    fn attributes(
        &mut self,
        id: InodeId,
        fd: &OwnedFd,
        stat: &Stat,
        marks: &Marks,
        has_lower: bool,
    ) -> Result<()> {
        let all = Changed::basics();
        let changed = match &marks.follows {
            Some(changed) if has_lower => changed,
            _ => &all,
        };
        let whole = !has_lower || marks.follows.is_none();
        let mut on_disk = BTreeMap::new();
        for name in xattr::list(fd).doing("reading extended attributes")? {
            let Some(shown) = self.marks.unescape(&name) else { continue };
            if (whole || changed.xattrs.contains(&shown))
                && let Some(value) = xattr::get(fd, &name).doing("reading extended attributes")?
            {
                on_disk.insert(shown, value);
            }
        }
        let meta = &mut self.draft.get_mut(id).meta;
        if changed.mode {
            meta.mode = stat.mode & 0o7777;
        }
        if changed.uid {
            meta.uid = stat.uid;
        }
        if changed.gid {
            meta.gid = stat.gid;
        }
        if changed.mtime {
            meta.mtime = marks.times.map_or(stat.mtime, |(_, mtime)| mtime);
        }
        if whole {
            meta.xattrs = on_disk;
        } else {
            meta.xattrs.retain(|name, _| !changed.xattrs.contains(name));
            meta.xattrs.extend(on_disk);
        }
        Ok(())
    }

    /// A directory of another version, with everything beneath it.
    fn pinned_dir(&mut self, pin: &PinMark, shown: &str) -> Result<InodeId> {
        let gone = || damaged(shown, "a pin on a directory that its version does not have");
        let PinMark::Dir(version, digest, path) = pin else {
            return Err(damaged(shown, "a pin that does not fit it"));
        };
        let tree = Tree::open(self.store, version).map_err(|e| damaged(shown, &format!("a pin, but {e}")))?;
        let node = tree.index.find(path)?.filter(TreeNode::is_dir).ok_or_else(gone)?;
        if tree.index.dir_digest(&node)? != *digest {
            return Err(gone());
        }
        let id = self.draft.add(encode::meta_of(&tree.index, &node)?, Content::Dir { opaque: false });
        let mut groups = HashMap::new();
        copy_subtree(&tree.index, &node, self.draft, id, &mut groups)?;
        Ok(id)
    }
}

/// The error for a path of the user layer whose marks make no sense.
fn damaged(shown: &str, what: &str) -> Error {
    Error::Damaged(format!("{shown} in the user layer has {what}"))
}

fn unreadable(shown: &str, e: std::io::Error) -> Error {
    match e.raw_os_error() {
        Some(libc::EUCLEAN) => {
            damaged(shown, "a mark that cannot be read (`getfattr -d -m reroot` shows them)")
        }
        _ => Error::Io(format!("reading {shown}"), e),
    }
}

fn copy_subtree(
    index: &Index,
    dir: &TreeNode,
    draft: &mut Draft,
    to: InodeId,
    groups: &mut HashMap<u64, InodeId>,
) -> Result<()> {
    for at in index.children(dir)? {
        let node = index.node(at)?;
        let known = groups.get(&node.number).copied();
        let id = match known {
            Some(id) => id,
            None => draft.add(encode::meta_of(index, &node)?, encode::content_of(index, &node)?),
        };
        if node.is_dir() {
            copy_subtree(index, &node, draft, id, groups)?;
        } else {
            groups.insert(node.number, id);
        }
        draft.link(to, index.name(&node)?, id);
    }
    Ok(())
}

/// The paths at which two drafts differ, with the letters of a difference of versions.
pub fn letters(old: &Draft, new: &Draft) -> Vec<(Vec<u8>, char)> {
    let before: BTreeMap<Vec<u8>, InodeId> = old.walk().into_iter().collect();
    let after: BTreeMap<Vec<u8>, InodeId> = new.walk().into_iter().collect();
    let (old_paths, new_paths) = (old.paths(), new.paths());
    let mut out = BTreeMap::new();
    for (path, id) in &after {
        let b = new.get(*id);
        let letter = match before.get(path) {
            None => 'A',
            Some(was) => {
                let a = old.get(*was);
                let grouped = !b.content.is_dir() && old_paths.get(*was) != new_paths.get(*id);
                if a.content.format() != b.content.format() {
                    'T'
                } else if a.content != b.content {
                    'M'
                } else if a.meta != b.meta || grouped {
                    'm'
                } else {
                    continue;
                }
            }
        };
        out.insert(path.clone(), letter);
    }
    for path in before.keys().filter(|p| !after.contains_key(*p)) {
        out.insert(path.clone(), 'D');
    }
    out.into_iter().collect()
}

/// What settling did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settling {
    /// Files whose content was copied.
    pub files: u64,
    /// Bytes copied.
    pub bytes: u64,
    /// Entries set aside.
    pub aside: u64,
}

impl View {
    /// Completes what is lazy: moved files and directories get their content, what follows the stack gets the
    /// attributes that it shows. Afterwards the user layer is plain overlayfs format over this version.
    /// When it fails, `at` is the path that it failed at.
    pub fn settle(&self, at: &mut Vec<u8>, each: &dyn Fn(u64)) -> Answer<Settling> {
        let pin = self.pin();
        let mut out = Settling::default();
        let root = self.nodes.root().clone();
        self.settle_dir(&pin, &root, at, &mut out, each)?;
        Ok(out)
    }

    fn settle_dir(
        &self,
        pin: &Pin,
        dir: &Arc<Node>,
        at: &mut Vec<u8>,
        out: &mut Settling,
        each: &dyn Fn(u64),
    ) -> Answer<()> {
        let user = self.writable()?;
        let fd = self.upper_dir(dir)?;
        let path = at.clone();
        let pinned = dir.state().upper.as_ref().is_some_and(|m| m.pin.is_some());
        if pinned {
            // Everything in it comes up, then it hides what is below instead of standing on a version.
            for item in self.list(pin, dir)? {
                *at = join(&path, &item.name);
                let node = self.child(pin, dir, &item.name)?.ok_or(Fail(libc::EIO))?;
                self.copy_up(pin, &node, Depth::Attributes)?;
                if node.is_dir() {
                    self.pin_for_settling(pin, &node)?;
                } else {
                    self.complete(pin, &node, out, each)?;
                }
            }
        }
        for (name, _) in sys::list(fd.as_fd())? {
            let path = join(&path, &name);
            at.clone_from(&path);
            let Some(Found::Entry(_, marks)) = user.marks.probe(&*fd, &name)? else { continue };
            let Some(node) = self.child(pin, dir, &name)? else {
                self.keeping_times(dir, || Ok(user.set_aside(&*fd, &name, &path)?))?;
                out.aside += 1;
                continue;
            };
            if node.state().upper.is_none() {
                self.keeping_times(dir, || Ok(user.set_aside(&*fd, &name, &path)?))?;
                out.aside += 1;
            } else if node.is_dir() {
                self.settle_dir(pin, &node, at, out, each)?;
            } else if marks.pin.is_some() {
                self.complete(pin, &node, out, each)?;
            } else if marks.follows.is_some() {
                self.write_shown(pin, &node)?;
            } else if marks.partial.is_some() {
                let handle = self.upper_handle(&node)?;
                let bytes = self.filling(&node, &handle)?.map_or(0, |f| f.limit());
                self.complete_node(&node, &handle)?;
                out.files += 1;
                out.bytes += bytes;
                each(bytes);
            }
        }
        *at = path;
        self.write_shown(pin, dir)?;
        if pinned {
            user.marks.set_overlay(&*fd, "opaque", b"y")?;
            user.marks.clear(&*fd, &user.marks.own("meta"))?;
            user.marks.clear(&*fd, &user.marks.own("pin"))?;
        }
        if pinned || self.lower(pin, dir)?.is_none() {
            // The kernel's overlayfs lists whiteouts where it has nothing to merge. Last: until the directory is
            // opaque they hide what it stands on.
            self.keeping_times(dir, || {
                for (name, _) in sys::list(fd.as_fd())? {
                    if let Some(Found::Whiteout) = user.marks.probe(&*fd, &name)? {
                        sys::unlink_at(&*fd, &name)?;
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// A directory within a moved one is settled as a moved one too.
    fn pin_for_settling(&self, pin: &Pin, node: &Arc<Node>) -> Answer<()> {
        let user = self.writable()?;
        let Some(lower) = self.lower(pin, node)? else { return Ok(()) };
        let mark = lower.pin_mark()?;
        user.pin_version(lower.version())?;
        user.marks.set_pin(&*self.upper_dir(node)?, &mark)?;
        if let Some(marks) = &mut node.state().upper {
            marks.pin = Some(mark);
        }
        Ok(())
    }

    fn complete(&self, pin: &Pin, node: &Arc<Node>, out: &mut Settling, each: &dyn Fn(u64)) -> Answer<()> {
        let bytes =
            if node.is_file() && !node.state().owns_content() { self.content_of(node)?.size() } else { 0 };
        let was = node.state().owns_content();
        self.copy_up(pin, node, Depth::Content)?;
        if !was {
            out.files += 1;
            out.bytes += bytes;
            each(bytes);
        }
        Ok(())
    }

    /// Writes to disk the attributes that are shown.
    fn write_shown(&self, pin: &Pin, node: &Arc<Node>) -> Answer<()> {
        if !self.follows(node) {
            return Ok(());
        }
        let attributes = self.attributes(pin, node)?;
        let xattrs = self.all_xattrs(pin, node)?;
        let handle = self.upper_handle(node)?;
        let user = self.writable()?;
        if self.is_made_otherwise(node, &handle)? {
            return self.copy_up(pin, node, Depth::Content);
        }
        // A swap may have led it to a content of another length since it was brought up.
        if node.is_file() && sys::stat(&handle)?.size != attributes.size {
            File::from(sys::reopen(&handle, Open::ReadWrite)?)
                .set_len(attributes.size)
                .map_err(Fail::from)?;
        }
        for on_disk in xattr::list(&handle)? {
            if let Some(name) = user.marks.unescape(&on_disk)
                && !xattrs.iter().any(|(n, _)| *n == name)
            {
                user.marks.clear(&handle, &on_disk)?;
            }
        }
        self.write_attributes(node, &handle, &attributes, &xattrs)
    }
}

/// Reads a user's file for [`lay_over`]: opens what an `O_PATH` descriptor stands for.
pub fn open_for_reading(handle: &OwnedFd) -> std::io::Result<File> {
    Ok(File::from(sys::reopen(handle, Open::Read)?))
}

/// As [`open_for_reading`], for a file whose content is not all there yet: it reads what the view shows.
pub fn open_partial(store: &Store, handle: &OwnedFd) -> Result<Option<Merged>> {
    let doing = "reading the user layer";
    let marks = Namespace::for_process();
    let Some(partial) = marks.partial(handle).doing(doing)? else { return Ok(None) };
    let object = Arc::new(store.open_object(&partial.object, partial.size)?);
    Ok(Some(Merged::new(open_for_reading(handle).doing(doing)?, &partial, object, marks).doing(doing)?))
}

/// The digest of what a user's file shows.
pub fn digest_of(store: &Store, handle: &OwnedFd) -> Result<Digest> {
    let doing = "reading the user layer";
    let digest = match open_partial(store, handle)? {
        Some(merged) => Digest::of_reader(merged),
        None => Digest::of_reader(open_for_reading(handle).doing(doing)?),
    };
    Ok(digest.doing(doing)?.0)
}
