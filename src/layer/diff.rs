//! The difference of two trees. Directories with equal digests are not entered, so that it costs what
//! differs and not what exists.

use super::index::{Index, Node, ROOT};
use super::model::join;
use crate::error::Result;

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Only in the second tree.
    Added,
    /// The content differs (and perhaps the attributes).
    Content,
    /// Only attributes differ, or the hard-link group.
    Metadata,
    /// Only in the first tree.
    Removed,
    /// The type differs.
    Type,
}

impl Kind {
    /// The letter that people see.
    pub fn letter(self) -> char {
        match self {
            Kind::Added => 'A',
            Kind::Content => 'M',
            Kind::Metadata => 'm',
            Kind::Removed => 'D',
            Kind::Type => 'T',
        }
    }
}

/// One path that differs.
#[derive(Clone, Debug)]
pub struct Change {
    /// The path, without a leading slash; empty for the root.
    pub path: Vec<u8>,
    /// How it differs.
    pub kind: Kind,
    /// What stands there in the first tree.
    pub old: Option<Node>,
    /// What stands there in the second tree.
    pub new: Option<Node>,
}

/// Every path that differs between two trees, parents before children, in order of names.
pub fn diff(old: &Index, new: &Index) -> Result<Vec<Change>> {
    let mut out = Vec::new();
    let (a, b) = (old.node(ROOT)?, new.node(ROOT)?);
    if !same_attributes(old, &a, new, &b)? {
        out.push(Change { path: Vec::new(), kind: Kind::Metadata, old: Some(a), new: Some(b) });
    }
    dirs(old, &a, new, &b, b"", &mut out)?;
    Ok(out)
}

fn dirs(old: &Index, a: &Node, new: &Index, b: &Node, path: &[u8], out: &mut Vec<Change>) -> Result<()> {
    if old.dir_digest(a)? == new.dir_digest(b)? {
        return Ok(());
    }
    let (mut left, mut right) = (old.children(a)?, new.children(b)?);
    loop {
        let l = if left.is_empty() { None } else { Some(old.child(a, left.start)?) };
        let r = if right.is_empty() { None } else { Some(new.child(b, right.start)?) };
        let order = match (&l, &r) {
            (None, None) => return Ok(()),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(l), Some(r)) => old.name(l)?.cmp(new.name(r)?),
        };
        match (order, l, r) {
            (std::cmp::Ordering::Less, Some(l), _) => {
                left.start += 1;
                all(old, &l, path, Kind::Removed, out)?;
            }
            (std::cmp::Ordering::Greater, _, Some(r)) => {
                right.start += 1;
                all(new, &r, path, Kind::Added, out)?;
            }
            (std::cmp::Ordering::Equal, Some(l), Some(r)) => {
                left.start += 1;
                right.start += 1;
                both(old, &l, new, &r, &join(path, old.name(&l)?), out)?;
            }
            _ => return Ok(()),
        }
    }
}

fn both(old: &Index, l: &Node, new: &Index, r: &Node, path: &[u8], out: &mut Vec<Change>) -> Result<()> {
    let push = |kind, out: &mut Vec<Change>| {
        out.push(Change { path: path.to_vec(), kind, old: Some(*l), new: Some(*r) });
    };
    if l.format() != r.format() {
        push(Kind::Type, out);
        if l.is_dir() {
            for at in old.children(l)? {
                all(old, &old.child(l, at)?, path, Kind::Removed, out)?;
            }
        }
        if r.is_dir() {
            for at in new.children(r)? {
                all(new, &new.child(r, at)?, path, Kind::Added, out)?;
            }
        }
        return Ok(());
    }
    if l.is_dir() {
        if !same_attributes(old, l, new, r)? {
            push(Kind::Metadata, out);
        }
        return dirs(old, l, new, r, path, out);
    }
    let same_content = match l.format() {
        libc::S_IFREG => old.object(l)? == new.object(r)?,
        libc::S_IFLNK => old.target(l)? == new.target(r)?,
        _ => l.rdev() == r.rdev(),
    };
    if !same_content {
        push(Kind::Content, out);
    } else if l.number != r.number || l.nlink != r.nlink || !same_attributes(old, l, new, r)? {
        push(Kind::Metadata, out);
    }
    Ok(())
}

fn same_attributes(old: &Index, l: &Node, new: &Index, r: &Node) -> Result<bool> {
    Ok(l.mode == r.mode
        && l.uid == r.uid
        && l.gid == r.gid
        && l.mtime == r.mtime
        && old.xattrs(l)? == new.xattrs(r)?)
}

/// A path and everything beneath it, as added or removed.
fn all(index: &Index, node: &Node, parent: &[u8], kind: Kind, out: &mut Vec<Change>) -> Result<()> {
    let path = join(parent, index.name(node)?);
    let side = |is: bool| if is { Some(*node) } else { None };
    let change = Change { path, kind, old: side(kind == Kind::Removed), new: side(kind == Kind::Added) };
    let path = change.path.clone();
    out.push(change);
    for at in index.children(node)? {
        all(index, &index.child(node, at)?, &path, kind, out)?;
    }
    Ok(())
}
