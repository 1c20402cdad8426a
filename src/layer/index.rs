//! The index file, read in place.
//!
//! One format holds a layer (with whiteouts and opaque marks, without numbers) and a tree (merged, with
//! node numbers, directory digests and hard-link groups). FORMAT.md describes it byte by byte.
//!
//! ```text
//! header (256 bytes) | nodes (80 bytes each) | digests (48 each) | numbers (16 each) | names | blobs
//! ```
//!
//! Invariants that the reader checks wherever it relies on them, so that a damaged file gives
//! [`Error::Damaged`] and never a crash or an endless loop:
//! 1. every offset and index lies within its section;
//! 2. a node's parent comes before it (so walking up ends);
//! 3. a directory's children are one run of nodes that comes after it (so walking down ends), and each names
//!    it as its parent (so a walk sees no node twice, and costs no more than the file is long);
//! 4. a hard-link group is a ring of nodes that agree on their number of names, none of them a directory.

use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::store::Digest;
use crate::sys::fs::Time;
use crate::sys::map::Map;

/// The first bytes of every index file.
pub const MAGIC: &[u8; 8] = b"rerootix";
/// The format's version.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER: usize = 256;
/// Bytes of a node.
pub const NODE: usize = 80;
/// Bytes of an entry of the number table.
pub const NUMBER: usize = 16;
/// Header flag: a tree (with numbers and directory digests), not a layer.
pub const FLAG_TREE: u32 = 1;
/// Node flag: an opaque directory.
pub const NODE_OPAQUE: u16 = 1;
/// Index that stands for "none".
pub const NONE: u32 = u32::MAX;

/// The root's place among the nodes.
pub const ROOT: u32 = 0;

/// An index file, mapped.
#[derive(Debug)]
pub struct Index {
    map: Map,
    flags: u32,
    stack: Digest,
    nodes: Range<usize>,
    digests: Range<usize>,
    numbers: Range<usize>,
    names: Range<usize>,
    blobs: Range<usize>,
    /// Places of directories with hard links beneath them, once somebody asked.
    above_links: OnceLock<HashSet<u32>>,
}

/// One path of an index, its fields copied out.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// Its place.
    pub at: u32,
    /// Node number (trees only).
    pub number: u64,
    /// Length of a file or a symbolic link in bytes.
    pub size: u64,
    /// Last change of the content.
    pub mtime: Time,
    /// Type and permission bits; 0 is a whiteout.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Place of the directory that holds it; the root's is itself.
    pub parent: u32,
    /// Hides what lies below (layers only).
    pub opaque: bool,
    /// Hard links; for a directory of a tree 2 + its subdirectories.
    pub nlink: u32,
    name: (u32, u16),
    first: u32,
    count: u32,
    next: u32,
    blob: (u32, u32),
    xattrs: (u32, u32),
}

impl Node {
    /// The type bits (`S_IFMT`).
    pub fn format(&self) -> u32 {
        self.mode & libc::S_IFMT
    }
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.format() == libc::S_IFDIR
    }
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.format() == libc::S_IFREG
    }
    /// Whether it is a whiteout (layers only).
    pub fn is_whiteout(&self) -> bool {
        self.format() == 0
    }
    /// Device number of a device node: major, minor.
    pub fn rdev(&self) -> (u32, u32) {
        if matches!(self.format(), libc::S_IFCHR | libc::S_IFBLK) { self.blob } else { (0, 0) }
    }
}

fn damaged(what: &str) -> Error {
    Error::Damaged(format!("damaged index: {what}; `reroot fsck` names the file"))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

impl Index {
    /// Maps an index file and checks its header.
    pub fn open(file: &File) -> Result<Index> {
        let len = file.metadata().map_err(|e| Error::Io("reading an index".into(), e))?.len();
        if len < HEADER as u64 {
            return Err(damaged("shorter than its header"));
        }
        let map = Map::of(file).map_err(|e| Error::Io("mapping an index".into(), e))?;
        Index::parse(map).ok_or_else(|| damaged("its header does not fit the file"))
    }

    fn parse(map: Map) -> Option<Index> {
        let head = map.get(..HEADER)?;
        if head.get(..8)? != MAGIC || u32_at(head, 8)? != VERSION {
            return None;
        }
        let flags = u32_at(head, 12)?;
        let stack = Digest(head.get(16..64)?.try_into().ok()?);
        let mut at = HEADER as u64;
        let mut section = |field: usize, unit: u64| -> Option<Range<usize>> {
            let len = u64_at(head, field)?.checked_mul(unit)?;
            let end = at.checked_add(len)?;
            let range = usize::try_from(at).ok()?..usize::try_from(end).ok()?;
            at = end;
            Some(range)
        };
        let nodes = section(64, NODE as u64)?;
        let digests = section(72, Digest::LEN as u64)?;
        let numbers = section(80, NUMBER as u64)?;
        let names = section(88, 1)?;
        let blobs = section(96, 1)?;
        if blobs.end != map.len() || nodes.is_empty() || nodes.len() / NODE >= NONE as usize {
            return None;
        }
        let above_links = OnceLock::new();
        Some(Index { map, flags, stack, nodes, digests, numbers, names, blobs, above_links })
    }

    /// Whether it is a tree.
    pub fn is_tree(&self) -> bool {
        self.flags & FLAG_TREE != 0
    }

    /// The digest of the stack that a tree was made of.
    pub fn stack(&self) -> Digest {
        self.stack
    }

    /// How many paths it holds, with the root.
    pub fn len(&self) -> u32 {
        (self.nodes.len() / NODE) as u32
    }

    /// An index holds at least its root.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The whole file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    fn section(&self, range: &Range<usize>) -> &[u8] {
        self.map.get(range.clone()).unwrap_or_default()
    }

    /// The node at a place.
    pub fn node(&self, at: u32) -> Result<Node> {
        self.read_node(at).ok_or_else(|| damaged("a node lies outside"))
    }

    fn read_node(&self, at: u32) -> Option<Node> {
        let start = (at as usize).checked_mul(NODE)?;
        let b = self.section(&self.nodes).get(start..start + NODE)?;
        let mode = u32_at(b, 28)?;
        let (count, next) = (u32_at(b, 56)?, u32_at(b, 60)?);
        let dir = mode & libc::S_IFMT == libc::S_IFDIR;
        Some(Node {
            at,
            number: u64_at(b, 0)?,
            size: u64_at(b, 8)?,
            mtime: Time { sec: u64_at(b, 16)? as i64, nsec: u32_at(b, 24)?.min(999_999_999) },
            mode,
            uid: u32_at(b, 32)?,
            gid: u32_at(b, 36)?,
            parent: u32_at(b, 40)?,
            name: (u32_at(b, 44)?, u16_at(b, 48)?),
            opaque: u16_at(b, 50)? & NODE_OPAQUE != 0,
            first: u32_at(b, 52)?,
            count,
            next,
            nlink: if dir { next.saturating_add(2) } else { count.max(1) },
            blob: (u32_at(b, 64)?, u32_at(b, 68)?),
            xattrs: (u32_at(b, 72)?, u32_at(b, 76)?),
        })
    }

    /// A node's name; the root's is empty.
    pub fn name(&self, node: &Node) -> Result<&[u8]> {
        let start = node.name.0 as usize;
        self.section(&self.names)
            .get(start..start + node.name.1 as usize)
            .ok_or_else(|| damaged("a name lies outside"))
    }

    /// The places of a directory's children, in order of their names.
    pub fn children(&self, dir: &Node) -> Result<Range<u32>> {
        if !dir.is_dir() {
            return Ok(0..0);
        }
        let end = dir.first.checked_add(dir.count).filter(|end| *end <= self.len());
        match end {
            Some(end) if dir.count == 0 || dir.first > dir.at => Ok(dir.first..end),
            _ => Err(damaged("a directory's children lie outside")),
        }
    }

    /// A child of a directory, at a place that [`Index::children`] gave.
    pub fn child(&self, dir: &Node, at: u32) -> Result<Node> {
        let node = self.node(at)?;
        if node.parent != dir.at || node.at == dir.at {
            return Err(damaged("a child has another parent"));
        }
        Ok(node)
    }

    /// The child of a directory with that name.
    pub fn lookup(&self, dir: &Node, name: &[u8]) -> Result<Option<Node>> {
        let mut range = self.children(dir)?;
        while range.start < range.end {
            let middle = range.start + (range.end - range.start) / 2;
            let node = self.node(middle)?;
            match self.name(&node)?.cmp(name) {
                std::cmp::Ordering::Equal => return Ok(Some(node)),
                std::cmp::Ordering::Less => range.start = middle + 1,
                std::cmp::Ordering::Greater => range.end = middle,
            }
        }
        Ok(None)
    }

    /// The node at a path (components separated by `/`); symbolic links are not followed.
    pub fn find(&self, path: &[u8]) -> Result<Option<Node>> {
        let mut at = self.node(ROOT)?;
        for name in path.split(|c| *c == b'/').filter(|n| !n.is_empty()) {
            match self.lookup(&at, name)? {
                Some(node) => at = node,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// The path of a node, without a leading slash; the root's is empty.
    pub fn path(&self, node: &Node) -> Result<Vec<u8>> {
        let mut names = Vec::new();
        let mut at = *node;
        while at.at != ROOT {
            names.push(self.name(&at)?);
            if at.parent >= at.at {
                return Err(damaged("a parent comes after its child"));
            }
            at = self.node(at.parent)?;
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    /// The node with a number: of a hard-link group its first path. Trees only.
    pub fn by_number(&self, number: u64) -> Result<Option<Node>> {
        let table = self.section(&self.numbers);
        let (mut low, mut high) = (0, table.len() / NUMBER);
        while low < high {
            let middle = low + (high - low) / 2;
            let found = u64_at(table, middle * NUMBER).ok_or_else(|| damaged("a number lies outside"))?;
            match found.cmp(&number) {
                std::cmp::Ordering::Equal => {
                    let at =
                        u32_at(table, middle * NUMBER + 8).ok_or_else(|| damaged("a number lies outside"))?;
                    let node = self.node(at)?;
                    return if node.number == number {
                        Ok(Some(node))
                    } else {
                        Err(damaged("a number leads astray"))
                    };
                }
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// All paths of the node's hard-link group, itself among them.
    pub fn group(&self, node: &Node) -> Result<Vec<Node>> {
        let mut out = vec![*node];
        if node.is_dir() || node.count <= 1 {
            return Ok(out);
        }
        let mut at = node.next;
        while at != node.at {
            if out.len() >= node.count.min(self.len()) as usize {
                return Err(damaged("a hard-link group does not close"));
            }
            let other = self.node(at)?;
            if other.is_dir() || other.count != node.count {
                return Err(damaged("a hard-link group does not agree"));
            }
            at = other.next;
            out.push(other);
        }
        Ok(out)
    }

    /// Whether one of several hard links lies beneath a directory. Trees only.
    pub fn holds_links(&self, dir: &Node) -> Result<bool> {
        if self.nodes.len() / NODE == self.numbers.len() / NUMBER {
            // Each path has a number of its own.
            return Ok(false);
        }
        let above = match self.above_links.get() {
            Some(above) => above,
            None => {
                let found = self.find_links()?;
                self.above_links.get_or_init(|| found)
            }
        };
        Ok(above.contains(&dir.at))
    }

    fn find_links(&self) -> Result<HashSet<u32>> {
        let mut above = HashSet::new();
        for at in 0..self.len() {
            let mut node = self.node(at)?;
            if node.is_dir() || node.nlink <= 1 {
                continue;
            }
            while node.at != ROOT && above.insert(node.parent) {
                if node.parent >= node.at {
                    return Err(damaged("a parent comes after its child"));
                }
                node = self.node(node.parent)?;
            }
        }
        Ok(above)
    }

    /// The first path (in byte order) of the node's hard-link group, the node itself where it is alone.
    pub fn leader(&self, node: &Node) -> Result<Node> {
        if node.is_dir() || node.count <= 1 { Ok(*node) } else { self.node(node.first) }
    }

    fn digest_at(&self, at: u32) -> Result<Digest> {
        let start = (at as usize).saturating_mul(Digest::LEN);
        self.section(&self.digests)
            .get(start..start.saturating_add(Digest::LEN))
            .and_then(|b| b.try_into().ok())
            .map(Digest)
            .ok_or_else(|| damaged("a digest lies outside"))
    }

    /// The object of a regular file.
    pub fn object(&self, node: &Node) -> Result<Digest> {
        if node.is_file() { self.digest_at(node.blob.0) } else { Err(damaged("only a file has an object")) }
    }

    /// The digest of everything beneath a directory. Trees only.
    pub fn dir_digest(&self, node: &Node) -> Result<Digest> {
        if node.is_dir() {
            self.digest_at(node.blob.0)
        } else {
            Err(damaged("only a directory has this digest"))
        }
    }

    fn blob(&self, (start, len): (u32, u32)) -> Result<&[u8]> {
        let start = start as usize;
        self.section(&self.blobs)
            .get(start..start + len as usize)
            .ok_or_else(|| damaged("a blob lies outside"))
    }

    /// A symbolic link's target.
    pub fn target(&self, node: &Node) -> Result<&[u8]> {
        self.blob(node.blob)
    }

    /// Whether a node has extended attributes.
    pub fn has_xattrs(&self, node: &Node) -> bool {
        node.xattrs.1 > 0
    }

    /// The extended attributes in order of their names.
    pub fn xattrs(&self, node: &Node) -> Result<Vec<(&[u8], &[u8])>> {
        let mut rest = self.blob(node.xattrs)?;
        let mut out = Vec::new();
        let short = || damaged("extended attributes are cut off");
        while !rest.is_empty() {
            let name = u16_at(rest, 0).ok_or_else(short)? as usize;
            let value = u32_at(rest, 2).ok_or_else(short)? as usize;
            let end = 6usize.checked_add(name).and_then(|n| n.checked_add(value)).ok_or_else(short)?;
            let body = rest.get(6..end).ok_or_else(short)?;
            out.push(body.split_at_checked(name).ok_or_else(short)?);
            rest = rest.get(end..).unwrap_or_default();
        }
        Ok(out)
    }

    /// The value of one extended attribute.
    pub fn xattr(&self, node: &Node, name: &[u8]) -> Result<Option<&[u8]>> {
        Ok(self.xattrs(node)?.into_iter().find(|(n, _)| *n == name).map(|(_, v)| v))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::encode;
    use crate::layer::model::{Content, Draft, Meta, ROOT as TOP};

    #[test]
    fn directories_above_hard_links_are_told_from_the_others() {
        let path = std::env::temp_dir().join(format!("reroot-index-links-{}", std::process::id()));
        let answers = |links: &[&[u8]]| {
            let mut draft = Draft::default();
            let dir = |draft: &mut Draft, above, name: &[u8]| {
                let id = draft.add(Meta::default(), Content::Dir { opaque: false });
                draft.link(above, name, id);
                id
            };
            let (a, b) = (dir(&mut draft, TOP, b"a"), dir(&mut draft, TOP, b"b"));
            let (deep, _) = (dir(&mut draft, a, b"deep"), dir(&mut draft, a, b"none"));
            for name in [b"1", b"2"] {
                let file = draft.add(Meta::default(), Content::File { object: Digest::of(name), size: 1 });
                for above in [deep, b] {
                    if above == deep || links.contains(&&name[..]) {
                        draft.link(above, name, file);
                    }
                }
            }
            std::fs::write(&path, encode::tree(&draft, Digest::of(b"s")).unwrap()).unwrap();
            let index = Index::open(&File::open(&path).unwrap()).unwrap();
            std::fs::remove_file(&path).unwrap();
            let holds =
                |path: &str| index.holds_links(&index.find(path.as_bytes()).unwrap().unwrap()).unwrap();
            ["", "a", "a/deep", "a/none", "b"].map(holds)
        };
        assert_eq!(answers(&[]), [false; 5]);
        assert_eq!(answers(&[b"2"]), [true, true, true, false, true]);
        assert_eq!(answers(&[b"1", b"2"]), [true, true, true, false, true]);
    }
}
