//! What can be seen of a tree, and how two differ.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::SystemTime;

use rustix::fs as rfs;

use super::operations::{brief, facts};

/// Times before this were set by somebody and are the same everywhere; later ones are of now, another on each side.
pub const SET_TIMES: i64 = 1_600_000_000;

/// What is seen of one path.
#[derive(Clone, Debug)]
pub struct Fact {
    /// Everything that must be equal on all sides.
    pub text: String,
    /// The inode number.
    pub number: u64,
    /// When the inode was made, where that can be known: with the number it names an inode for good.
    pub born: SystemTime,
    /// Whether it is a directory.
    pub dir: bool,
}

/// A tree: paths with what is seen of them. The root is the empty path.
pub type Tree = BTreeMap<String, Fact>;

/// Numbers of one side by the inodes of another: what is one inode there is one number here, always.
pub type Numbers = HashMap<(u64, SystemTime), u64>;

/// The text of something that is not there.
const ABSENT: &str = "absent";

/// Looks at one path. `Ok(None)`: there is nothing.
pub fn look(root: &Path, name: &str) -> Result<Option<Fact>, String> {
    let path = if name.is_empty() { root.to_path_buf() } else { root.join(name) };
    let wrong = |e: &dyn std::fmt::Display| format!("{name}: {e}");
    let meta = match fs::symlink_metadata(&path) {
        // A component may be no directory any more.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {
            return Ok(None);
        }
        r => r.map_err(|e| wrong(&e))?,
    };
    let mut text = facts(&meta);
    // The kernel itself serves a FIFO, and tells a FUSE server nothing of what is written to it.
    if meta.mtime() < SET_TIMES && !meta.file_type().is_fifo() {
        text += &format!(" time {}.{:09}", meta.mtime(), meta.mtime_nsec());
    }
    for (xattr, value) in xattrs(&path).map_err(|e| wrong(&e))? {
        text += &format!(" {xattr}={:?}", brief(&value));
    }
    if meta.is_symlink() {
        text += &format!(" -> {:?}", fs::read_link(&path).map_err(|e| wrong(&e))?);
    } else if meta.is_file() {
        let bytes = fs::read(&path).map_err(|e| wrong(&e))?;
        if bytes.len() as u64 != meta.len() {
            return Err(wrong(&format!("{} bytes, and its size is {}", bytes.len(), meta.len())));
        }
        text += &format!(" holds {}", brief(&bytes));
    }
    let born = meta.created().unwrap_or(SystemTime::UNIX_EPOCH);
    Ok(Some(Fact { text, number: meta.ino(), born, dir: meta.is_dir() }))
}

/// Looks at a whole tree.
pub fn snapshot(root: &Path) -> Result<Tree, String> {
    let mut out = Tree::new();
    let mut todo = vec![(String::new(), None)];
    while let Some((name, listed)) = todo.pop() {
        let fact = look(root, &name)?.ok_or_else(|| format!("{name} is listed and is not there"))?;
        if listed.is_some_and(|(number, dir)| number != fact.number || dir != fact.dir) {
            return Err(format!("{name} is listed as {listed:x?} and is {:x} {}", fact.number, fact.dir));
        }
        if fact.dir {
            let path = if name.is_empty() { root.to_path_buf() } else { root.join(&name) };
            for entry in fs::read_dir(&path).map_err(|e| format!("{name}: {e}"))? {
                let entry = entry.map_err(|e| format!("{name}: {e}"))?;
                let child = entry.file_name().to_string_lossy().into_owned();
                let dir = entry.file_type().map_err(|e| format!("{name}: {e}"))?.is_dir();
                let full = if name.is_empty() { child } else { format!("{name}/{child}") };
                todo.push((full, Some((entry.ino(), dir))));
            }
        }
        out.insert(name, fact);
    }
    Ok(out)
}

/// All extended attributes.
pub fn xattrs(path: &Path) -> Result<BTreeMap<String, Vec<u8>>, std::io::Error> {
    let mut names = [0u8; 4096];
    let n = rfs::llistxattr(path, &mut names[..])?;
    let mut out = BTreeMap::new();
    for name in names[..n].split(|c| *c == 0).filter(|n| !n.is_empty()) {
        let mut value = [0u8; 4096];
        let n = rfs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
        out.insert(String::from_utf8_lossy(name).into_owned(), value[..n].to_vec());
    }
    Ok(out)
}

/// What differs between the plain tree and another. `numbers` holds what is known of the other's inode numbers.
pub fn differences(
    plain: &Tree,
    other: &Tree,
    numbers: &mut Numbers,
    same: impl Fn(&str, &Fact, &Fact) -> bool,
) -> Vec<String> {
    let mut out = Vec::new();
    let mut taken: HashMap<u64, (u64, SystemTime)> = HashMap::new();
    for path in plain.keys().chain(other.keys()).collect::<BTreeSet<_>>() {
        let (a, b) = (plain.get(path), other.get(path));
        let equal = match (a, b) {
            (Some(a), Some(b)) => same(path, a, b),
            _ => false,
        };
        if !equal {
            let (left, right) = (a.map_or(ABSENT, |a| &a.text), b.map_or(ABSENT, |b| &b.text));
            out.push(format!("{path:?}\n  plain: {left}\n  other: {right}"));
        }
        if let (Some(a), Some(b)) = (a, b) {
            let inode = (a.number, a.born);
            let known = *numbers.entry(inode).or_insert(b.number);
            if known != b.number {
                out.push(format!("{path:?}: its number was {known:x} and is {:x}", b.number));
            }
            if *taken.entry(b.number).or_insert(inode) != inode {
                out.push(format!("{path:?}: its number {:x} is that of another file too", b.number));
            }
        }
    }
    out
}
