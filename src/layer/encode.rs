//! A draft written as an index file, and an index read back as a draft.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::index::{FLAG_TREE, HEADER, Index, MAGIC, NODE_OPAQUE, NONE, Node, VERSION};
use super::model::{Content, Draft, InodeId, Meta, ROOT, join};
use crate::error::{Error, Result};
use crate::store::{Digest, Hasher};

/// Node numbers of a stack lie in 2 … 2^62 - 1; the root is 1; the user layer's begin at 2^62.
pub const NUMBER_LIMIT: u64 = 1 << 62;

/// One name as it is laid out: parents before children, children of one directory side by side.
struct Row<'a> {
    id: InodeId,
    name: &'a [u8],
    parent: u32,
    first: u32,
    count: u32,
    next: u32,
    number: u64,
}

/// A layer's index file.
pub fn layer(draft: &Draft) -> Result<Vec<u8>> {
    encode(draft, None)
}

/// The tree of a stack, with numbers, directory digests and hard-link groups.
pub fn tree(draft: &Draft, stack: Digest) -> Result<Vec<u8>> {
    encode(draft, Some(stack))
}

fn lay_out(draft: &Draft) -> Result<Vec<Row<'_>>> {
    let mut rows = vec![Row { id: ROOT, name: b"", parent: 0, first: 0, count: 0, next: 0, number: 0 }];
    let mut queue = VecDeque::from([0u32]);
    let mut first_row: HashMap<InodeId, Vec<u32>> = HashMap::new();
    while let Some(at) = queue.pop_front() {
        let first = rows.len() as u32;
        let Some(id) = rows.get(at as usize).map(|r| r.id) else { break };
        let mut subdirs = 0;
        for (name, child) in &draft.get(id).children {
            let place = rows.len() as u32;
            let inode = draft.get(*child);
            if inode.content.is_dir() {
                queue.push_back(place);
                subdirs += 1;
            } else {
                first_row.entry(*child).or_default().push(place);
            }
            rows.push(Row { id: *child, name, parent: at, first: place, count: 1, next: place, number: 0 });
        }
        if rows.len() as u64 >= u64::from(NONE) {
            return Err(Error::Failed("too many paths: an index holds fewer than 2^32".into()));
        }
        let end = rows.len() as u32;
        if let Some(row) = rows.get_mut(at as usize) {
            (row.first, row.count, row.next) = (first, end - first, subdirs);
        }
    }
    // Close the rings of hard-link groups.
    for places in first_row.into_values().filter(|p| p.len() > 1) {
        for (i, place) in places.iter().enumerate() {
            let next = places.get(i + 1).or(places.first()).copied().unwrap_or(*place);
            if let Some(row) = rows.get_mut(*place as usize) {
                (row.count, row.next) = (places.len() as u32, next);
            }
        }
    }
    Ok(rows)
}

/// Gives every inode its number: a hash over its first path and what it is (DESIGN: "Node ids").
fn number(draft: &Draft, rows: &mut [Row<'_>]) {
    let mut paths: Vec<Vec<u8>> = Vec::with_capacity(rows.len());
    let mut leaders: HashMap<InodeId, usize> = HashMap::new();
    for (i, row) in rows.iter().enumerate() {
        let parent = paths.get(row.parent as usize).cloned().unwrap_or_default();
        paths.push(if i == 0 { parent } else { join(&parent, row.name) });
        if row.count > 1 && !draft.get(row.id).content.is_dir() {
            let best = leaders.entry(row.id).or_insert(i);
            if paths.get(i) < paths.get(*best) {
                *best = i;
            }
        }
    }
    let mut taken: HashSet<u64> = HashSet::from([1]);
    let mut order: Vec<usize> = (1..rows.len()).collect();
    order.sort_by(|a, b| paths.get(*a).cmp(&paths.get(*b)));
    if let Some(root) = rows.get_mut(0) {
        root.number = 1;
    }
    let mut of_group: HashMap<InodeId, u64> = HashMap::new();
    for i in order {
        let Some(row) = rows.get_mut(i) else { continue };
        let inode = draft.get(row.id);
        let grouped = !inode.content.is_dir() && row.count > 1;
        if grouped && let Some(leader) = leaders.get(&row.id) {
            row.first = *leader as u32;
        }
        if grouped && let Some(number) = of_group.get(&row.id) {
            row.number = *number;
            continue;
        }
        let mut hasher = Hasher::new();
        hasher.update(&inode.content.format().to_le_bytes());
        hasher.update(paths.get(i).map(Vec::as_slice).unwrap_or_default());
        hasher.update(&[0]);
        match &inode.content {
            Content::File { object, .. } => hasher.update(&object.0),
            Content::Symlink(target) => hasher.update(target),
            Content::Char(a, b) | Content::Block(a, b) => {
                hasher.update(&a.to_le_bytes());
                hasher.update(&b.to_le_bytes());
            }
            Content::Dir { .. } | Content::Fifo | Content::Socket | Content::Whiteout => {}
        }
        let mut salt = 0u32;
        row.number = loop {
            let mut salted = hasher.clone();
            if salt > 0 {
                salted.update(&salt.to_le_bytes());
            }
            let bytes = salted.finish().0;
            let candidate = bytes.iter().take(8).fold(0u64, |n, b| n << 8 | u64::from(*b)) % NUMBER_LIMIT;
            if candidate > 1 && taken.insert(candidate) {
                break candidate;
            }
            salt += 1;
        };
        if grouped {
            of_group.insert(row.id, row.number);
        }
    }
}

fn xattr_blob(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for (name, value) in xattrs {
        let (n, v) = (u16::try_from(name.len()), u32::try_from(value.len()));
        let (Ok(n), Ok(v)) = (n, v) else {
            return Err(Error::Failed("an extended attribute is too large".into()));
        };
        out.extend_from_slice(&n.to_le_bytes());
        out.extend_from_slice(&v.to_le_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(value);
    }
    Ok(out)
}

/// The digest of what a directory holds: over each child's name, attributes and content (for a directory its
/// own digest), so that equal digests mean equal subtrees.
fn dir_digests(draft: &Draft, rows: &[Row<'_>]) -> HashMap<usize, Digest> {
    let mut out: HashMap<usize, Digest> = HashMap::new();
    for (i, row) in rows.iter().enumerate().rev() {
        if !draft.get(row.id).content.is_dir() {
            continue;
        }
        let mut hasher = Hasher::new();
        let (start, end) = (row.first as usize, (row.first + row.count) as usize);
        for (c, child) in rows.get(start..end).unwrap_or_default().iter().enumerate() {
            let c = start + c;
            let inode = draft.get(child.id);
            let m = &inode.meta;
            hasher.update(&(child.name.len() as u32).to_le_bytes());
            hasher.update(child.name);
            for word in [inode.content.format() | m.mode, m.uid, m.gid, m.mtime.nsec] {
                hasher.update(&word.to_le_bytes());
            }
            hasher.update(&m.mtime.sec.to_le_bytes());
            // The number tells content and hard-link group; sizes follow from the content.
            hasher.update(&child.number.to_le_bytes());
            hasher.update(&child.count.to_le_bytes());
            let xattrs = xattr_blob(&m.xattrs).unwrap_or_default();
            hasher.update(&(xattrs.len() as u32).to_le_bytes());
            hasher.update(&xattrs);
            match &inode.content {
                Content::File { object, .. } => hasher.update(&object.0),
                Content::Dir { .. } => hasher.update(&out.get(&c).map_or([0; Digest::LEN], |d| d.0)),
                Content::Symlink(target) => hasher.update(target),
                _ => {}
            }
        }
        out.insert(i, hasher.finish());
    }
    out
}

fn encode(draft: &Draft, stack: Option<Digest>) -> Result<Vec<u8>> {
    let mut rows = lay_out(draft)?;
    let mut dirs = HashMap::new();
    if stack.is_some() {
        number(draft, &mut rows);
        dirs = dir_digests(draft, &rows);
    }
    let (mut nodes, mut digests, mut names, mut blobs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut numbers: Vec<(u64, u32)> = Vec::new();
    let mut known_xattrs: HashMap<Vec<u8>, (u32, u32)> = HashMap::new();
    let too_large = || Error::Failed("the index's names or attributes exceed 4 GiB".into());
    for (i, row) in rows.iter().enumerate() {
        let inode = draft.get(row.id);
        let m = &inode.meta;
        let name_at = u32::try_from(names.len()).map_err(|_| too_large())?;
        let name_len = u16::try_from(row.name.len()).map_err(|_| too_large())?;
        names.extend_from_slice(row.name);
        let mut flags = 0u16;
        let mut size = 0u64;
        let mut blob = (0u32, 0u32);
        let digest_at = |digests: &mut Vec<u8>, digest: &Digest| {
            digests.extend_from_slice(&digest.0);
            (digests.len() / Digest::LEN - 1) as u32
        };
        match &inode.content {
            Content::Dir { opaque } => {
                flags |= if *opaque { NODE_OPAQUE } else { 0 };
                if let Some(digest) = dirs.get(&i) {
                    blob.0 = digest_at(&mut digests, digest);
                }
            }
            Content::File { object, size: len } => {
                size = *len;
                blob.0 = digest_at(&mut digests, object);
            }
            Content::Symlink(target) => {
                size = target.len() as u64;
                blob = (u32::try_from(blobs.len()).map_err(|_| too_large())?, target.len() as u32);
                blobs.extend_from_slice(target);
            }
            Content::Char(a, b) | Content::Block(a, b) => blob = (*a, *b),
            Content::Fifo | Content::Socket | Content::Whiteout => {}
        }
        let xattrs = xattr_blob(&m.xattrs)?;
        let xattr_at = match known_xattrs.get(&xattrs) {
            _ if xattrs.is_empty() => (0, 0),
            Some(at) => *at,
            None => {
                let at = (u32::try_from(blobs.len()).map_err(|_| too_large())?, xattrs.len() as u32);
                blobs.extend_from_slice(&xattrs);
                known_xattrs.insert(xattrs, at);
                at
            }
        };
        let is_dir = inode.content.is_dir();
        if stack.is_some() && (is_dir || row.count <= 1 || row.first as usize == i) {
            numbers.push((row.number, i as u32));
        }
        nodes.extend_from_slice(&row.number.to_le_bytes());
        nodes.extend_from_slice(&size.to_le_bytes());
        nodes.extend_from_slice(&m.mtime.sec.to_le_bytes());
        for word in
            [m.mtime.nsec, inode.content.format() | (m.mode & 0o7777), m.uid, m.gid, row.parent, name_at]
        {
            nodes.extend_from_slice(&word.to_le_bytes());
        }
        nodes.extend_from_slice(&name_len.to_le_bytes());
        nodes.extend_from_slice(&flags.to_le_bytes());
        for word in [row.first, row.count, row.next, blob.0, blob.1, xattr_at.0, xattr_at.1] {
            nodes.extend_from_slice(&word.to_le_bytes());
        }
    }
    numbers.sort_unstable();
    let mut out = Vec::with_capacity(HEADER + nodes.len() + digests.len() + names.len() + blobs.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(if stack.is_some() { FLAG_TREE } else { 0 }).to_le_bytes());
    out.extend_from_slice(&stack.map_or([0; Digest::LEN], |d| d.0));
    let counts = [rows.len(), digests.len() / Digest::LEN, numbers.len(), names.len(), blobs.len()];
    for count in counts {
        out.extend_from_slice(&(count as u64).to_le_bytes());
    }
    out.resize(HEADER, 0);
    out.extend_from_slice(&nodes);
    out.extend_from_slice(&digests);
    for (number, at) in numbers {
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&u64::from(at).to_le_bytes());
    }
    out.extend_from_slice(&names);
    out.extend_from_slice(&blobs);
    Ok(out)
}

/// The attributes of a node.
pub fn meta_of(index: &Index, node: &Node) -> Result<Meta> {
    let xattrs = index.xattrs(node)?.into_iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
    Ok(Meta { mode: node.mode & 0o7777, uid: node.uid, gid: node.gid, mtime: node.mtime, xattrs })
}

/// Type and content of a node.
pub fn content_of(index: &Index, node: &Node) -> Result<Content> {
    Ok(match node.format() {
        0 => Content::Whiteout,
        libc::S_IFDIR => Content::Dir { opaque: node.opaque },
        libc::S_IFREG => Content::File { object: index.object(node)?, size: node.size },
        libc::S_IFLNK => Content::Symlink(index.target(node)?.to_vec()),
        libc::S_IFCHR => Content::Char(node.rdev().0, node.rdev().1),
        libc::S_IFBLK => Content::Block(node.rdev().0, node.rdev().1),
        libc::S_IFIFO => Content::Fifo,
        libc::S_IFSOCK => Content::Socket,
        other => return Err(Error::Damaged(format!("damaged index: unknown file type {other:o}"))),
    })
}

/// An index read into memory.
pub fn decode(index: &Index) -> Result<Draft> {
    let root = index.node(super::index::ROOT)?;
    let mut draft = Draft::new(meta_of(index, &root)?);
    let mut groups: HashMap<u32, InodeId> = HashMap::new();
    let mut todo = vec![(root, ROOT)];
    while let Some((dir, to)) = todo.pop() {
        for at in index.children(&dir)? {
            let node = index.child(&dir, at)?;
            let name = index.name(&node)?;
            if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
                return Err(Error::Damaged("damaged index: an impossible name".into()));
            }
            let known = groups.get(&at).copied();
            let id = match known {
                Some(id) => id,
                None => draft.add(meta_of(index, &node)?, content_of(index, &node)?),
            };
            if node.is_dir() {
                todo.push((node, id));
            } else if known.is_none() && node.nlink > 1 {
                for other in index.group(&node)? {
                    groups.insert(other.at, id);
                }
            }
            draft.link(to, name, id);
        }
    }
    draft.check_depth()?;
    Ok(draft)
}
