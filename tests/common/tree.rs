//! Small trees to make images of, and trees written down to compare them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{Program, Scratch};

/// What to put at a path.
#[derive(Clone, Debug)]
pub enum Item<'a> {
    /// A regular file of mode 0644 with these bytes.
    File(&'a [u8]),
    /// A regular file of this mode.
    Mode(&'a [u8], u32),
    /// A directory of this mode.
    Dir(u32),
    /// A symbolic link.
    Link(&'a str),
    /// Another name of a path of the same tree that comes before.
    Same(&'a str),
}

/// Writes a tree; directories on the way are made. Paths are relative to `dir`.
pub fn write(dir: &Path, items: &[(&str, Item<'_>)]) {
    fs::create_dir_all(dir).unwrap();
    for (name, item) in items {
        let path = dir.join(name);
        let context = |e: std::io::Error| -> ! { panic!("{}: {e}", path.display()) };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).unwrap_or_else(|e| context(e));
        }
        let set_mode = |mode: u32| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap_or_else(|e| context(e));
        };
        match item {
            Item::File(bytes) => {
                fs::write(&path, bytes).unwrap_or_else(|e| context(e));
                set_mode(0o644);
            }
            Item::Mode(bytes, mode) => {
                fs::write(&path, bytes).unwrap_or_else(|e| context(e));
                set_mode(*mode);
            }
            Item::Dir(mode) => {
                fs::create_dir_all(&path).unwrap_or_else(|e| context(e));
                set_mode(*mode);
            }
            Item::Link(target) => std::os::unix::fs::symlink(target, &path).unwrap_or_else(|e| context(e)),
            Item::Same(first) => fs::hard_link(dir.join(first), &path).unwrap_or_else(|e| context(e)),
        }
    }
}

/// A small root in the manner of a distribution: 20 or so paths of every kind that needs no privilege.
pub fn small(dir: &Path) {
    write(
        dir,
        &[
            ("etc/hostname", Item::File(b"small\n")),
            ("etc/passwd", Item::File(b"root:x:0:0::/root:/bin/sh\n")),
            ("etc/shadow", Item::Mode(b"root:*:::::::\n", 0o600)),
            ("etc/mtab", Item::Link("/proc/self/mounts")),
            ("usr/bin/tool", Item::Mode(b"#!/bin/sh\necho tool 1\n", 0o755)),
            ("usr/bin/alias", Item::Same("usr/bin/tool")),
            ("usr/bin/su", Item::Mode(b"#!/bin/sh\n", 0o4755)),
            ("usr/lib/libsmall.so.1", Item::File(b"library 1\n")),
            ("usr/lib/libsmall.so", Item::Link("libsmall.so.1")),
            ("usr/share/doc/small/README", Item::File(b"read me\n")),
            ("usr/share/empty", Item::Dir(0o755)),
            ("bin", Item::Link("usr/bin")),
            ("var/log/messages", Item::File(b"")),
            ("tmp", Item::Dir(0o1777)),
            ("home", Item::Dir(0o755)),
            ("root/.profile", Item::File(b"umask 022\n")),
        ],
    );
}

/// Writes a tree into a new directory of `scratch` and imports it: a base without `parent`, else its next
/// version.
#[track_caller]
pub fn import(
    scratch: &Scratch,
    program: &Program,
    version: &str,
    parent: Option<&str>,
    fill: impl FnOnce(&Path),
) -> PathBuf {
    let dir = scratch.dir(&format!("src-{}", version.replace([':', '/'], "-")));
    fill(&dir);
    let source = format!("dir:{}", dir.display());
    let mut args = vec!["import", &source, version];
    if let Some(parent) = parent {
        args.extend(["--parent", parent]);
    }
    program.ok(&args);
    dir
}

/// One path of a tree as a line: type, mode, owner, size or device, time of change, and content.
pub type Listing = BTreeMap<Vec<u8>, String>;

/// Writes a tree down: everything a user can see of it but inode numbers and the times of directories.
/// Hard links show as the first name of their group. Does not enter other mounts.
pub fn listing(root: &Path) -> Listing {
    let mut out = Listing::new();
    let mut first_names: BTreeMap<(u64, u64), String> = BTreeMap::new();
    let device = fs::symlink_metadata(root).unwrap_or_else(|e| panic!("{}: {e}", root.display())).dev();
    let mut todo = vec![Vec::new()];
    while let Some(name) = todo.pop() {
        let path = if name.is_empty() { root.to_path_buf() } else { root.join(OsStr::from_bytes(&name)) };
        let meta = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let kind = meta.file_type();
        let head = format!("{:06o} {}:{}", meta.mode(), meta.uid(), meta.gid());
        let line = if kind.is_dir() {
            if meta.dev() == device {
                let mut names: Vec<Vec<u8>> = fs::read_dir(&path)
                    .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
                    .map(|e| {
                        e.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
                            .file_name()
                            .as_bytes()
                            .to_vec()
                    })
                    .collect();
                names.sort();
                // The last pushed is the first visited, so that first names are those of the lowest path.
                for child in names.into_iter().rev() {
                    todo.push(if name.is_empty() { child } else { [&name[..], b"/", &child].concat() });
                }
            }
            head
        } else {
            let what = if kind.is_symlink() {
                format!("-> {:?}", fs::read_link(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
            } else if kind.is_file() {
                let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                assert_eq!(bytes.len() as u64, meta.len(), "{}: size and content differ", path.display());
                if bytes.len() <= 64 {
                    format!("{:?}", String::from_utf8_lossy(&bytes))
                } else {
                    digest(&bytes)
                }
            } else if kind.is_char_device() || kind.is_block_device() {
                format!("device {:x}", meta.rdev())
            } else {
                "special".into()
            };
            let group = if meta.nlink() > 1 {
                let lossy = String::from_utf8_lossy(&name).into_owned();
                let first = first_names.entry((meta.dev(), meta.ino())).or_insert(lossy);
                format!(" links {} of {first}", meta.nlink())
            } else {
                String::new()
            };
            format!("{head} {} {}.{:09} {what}{group}", meta.len(), meta.mtime(), meta.mtime_nsec())
        };
        out.insert(name, line);
    }
    out
}

fn digest(bytes: &[u8]) -> String {
    // FNV-1a with 64 bits: enough to tell two contents of a test apart.
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    format!("{} bytes {hash:016x}", bytes.len())
}

/// Panics with the lines that differ unless two listings are equal.
#[track_caller]
pub fn assert_same(what: &str, left: &Listing, right: &Listing) {
    let mut lines = Vec::new();
    let names: std::collections::BTreeSet<&Vec<u8>> = left.keys().chain(right.keys()).collect();
    for name in names {
        let (l, r) = (left.get(name), right.get(name));
        if l != r {
            let absent = "absent".to_string();
            lines.push(format!(
                "/{}\n  left:  {}\n  right: {}",
                String::from_utf8_lossy(name),
                l.unwrap_or(&absent),
                r.unwrap_or(&absent)
            ));
        }
    }
    assert!(lines.is_empty(), "{what}: {} paths differ\n{}", lines.len(), lines.join("\n"));
}
