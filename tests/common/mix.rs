//! Operations on a tree of few names, each of them one request that changes something, and what a tree looks like
//! afterwards: for tests that hold a view in trouble against a plain directory on which the same was done.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{self as rfs, RenameFlags};

use super::tree::{self, Item};

/// When the files that [`old`] has treated were last changed.
const OLD: &str = "1580601600.000000000";

/// Makes everything beneath a directory look as if it had not been changed for long.
#[track_caller]
pub fn old(dir: &Path) {
    super::sh(dir, "find . -depth -exec touch -h -d '2020-02-02 00:00:00 UTC' {} +").ok();
}

/// Numbers that look random, the same for a seed.
pub struct Dice(pub u64);

impl Dice {
    /// One that is smaller than `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// A tree to begin with: few names, so that they collide.
pub fn stack(dir: &Path) {
    let large = vec![b'L'; 600_000];
    for name in ["a", "b", "d/a", "d/b", "d/c", "e/a", "e/d/b"] {
        tree::write(dir, &[(name, Item::File(name.repeat(50).as_bytes()))]);
    }
    for name in ["c", "d/e/c", "e/c"] {
        tree::write(dir, &[(name, Item::File(&large))]);
    }
    tree::write(
        dir,
        &[
            ("e/b", Item::Same("a")),
            ("e/e", Item::Same("d/c")),
            ("d/d", Item::Link("a")),
            ("f/a/b", Item::Mode(b"#!/bin/sh\n", 0o755)),
            ("f/b", Item::Dir(0o700)),
        ],
    );
}

/// Something that a program does to a tree.
#[allow(missing_docs)]
#[derive(Clone, Debug)]
pub enum Operation {
    Create(String),
    Write(String, u64, Vec<u8>),
    Append(String, Vec<u8>),
    Truncate(String, u64),
    Chmod(String, u32),
    Chown(String, u32),
    SetXattr(String, String),
    Link(String, String),
    Symlink(String),
    Rename(String, String),
    Exchange(String, String),
    Unlink(String),
    Mkdir(String),
    Rmdir(String),
    Fsync(String),
}

impl Operation {
    /// Any of them.
    pub fn random(dice: &mut Dice) -> Operation {
        use Operation as O;
        let (a, b) = (path(dice), path(dice));
        match dice.below(23) {
            0..2 => O::Create(a),
            2..6 => O::Write(a, dice.below(5) * 800, vec![b'w'; 1 + dice.below(700) as usize]),
            6..8 => O::Append(a, vec![b'p'; 1 + dice.below(500) as usize]),
            8..10 => O::Truncate(a, dice.below(700_000)),
            10 => O::Chmod(a, [0o644, 0o600, 0o755, 0o4755][dice.below(4) as usize]),
            11 => O::Chown(a, dice.below(3) as u32),
            12 => O::SetXattr(a, dice.below(100).to_string()),
            13..15 => O::Link(a, b),
            15 => O::Symlink(a),
            16..19 => O::Rename(a, b),
            19 => O::Exchange(a, b),
            20 => O::Unlink(a),
            21 => [O::Mkdir(a.clone()), O::Rmdir(a)][dice.below(2) as usize].clone(),
            _ => O::Fsync(a),
        }
    }

    /// Its name.
    pub fn name(&self) -> String {
        format!("{self:?}").split('(').next().unwrap_or_default().to_string()
    }

    /// The same for no more than `len` bytes, where it writes.
    pub fn cut(&self, len: usize) -> Operation {
        match self.clone() {
            Operation::Write(p, at, mut bytes) => {
                bytes.truncate(len);
                Operation::Write(p, at, bytes)
            }
            Operation::Append(p, mut bytes) => {
                bytes.truncate(len);
                Operation::Append(p, bytes)
            }
            other => other,
        }
    }

    /// Does it beneath `root`; how many bytes it wrote. Each is one request to the file system that changes something, after others that only
    /// open.
    pub fn run(&self, root: &Path) -> io::Result<usize> {
        use Operation as O;
        let at = |name: &String| root.join(name);
        let open = |name: &String, options: &mut OpenOptions| {
            // A symbolic link is no file to write to: its target would be one more name for something.
            std::os::unix::fs::OpenOptionsExt::custom_flags(options, libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(at(name))
        };
        let done: io::Result<()> = match self {
            O::Create(p) => open(p, OpenOptions::new().write(true).create_new(true)).map(drop),
            O::Write(p, offset, bytes) => {
                return open(p, OpenOptions::new().write(true))?.write_at(bytes, *offset);
            }
            O::Append(p, bytes) => return open(p, OpenOptions::new().append(true))?.write(bytes),
            O::Truncate(p, size) => open(p, OpenOptions::new().write(true))?.set_len(*size),
            O::Chmod(p, mode) => {
                if fs::symlink_metadata(at(p))?.is_symlink() {
                    return Ok(0);
                }
                fs::set_permissions(at(p), fs::Permissions::from_mode(*mode))
            }
            O::Chown(p, id) => std::os::unix::fs::lchown(at(p), Some(*id), Some(*id)),
            O::SetXattr(p, value) => {
                Ok(rfs::lsetxattr(at(p), c"trusted.test", value.as_bytes(), rfs::XattrFlags::empty())?)
            }
            O::Link(p, q) => fs::hard_link(at(p), at(q)),
            O::Symlink(p) => std::os::unix::fs::symlink("target", at(p)),
            O::Rename(p, q) => fs::rename(at(p), at(q)),
            O::Exchange(p, q) => {
                Ok(rfs::renameat_with(rfs::CWD, at(p), rfs::CWD, at(q), RenameFlags::EXCHANGE)?)
            }
            O::Unlink(p) => fs::remove_file(at(p)),
            O::Mkdir(p) => fs::create_dir(at(p)),
            O::Rmdir(p) => fs::remove_dir(at(p)),
            O::Fsync(p) => open(p, OpenOptions::new().read(true))?.sync_all(),
        };
        done.map(|()| 0)
    }
}

fn path(dice: &mut Dice) -> String {
    let name = |dice: &mut Dice| ["a", "b", "c", "d", "e", "f"][dice.below(6) as usize];
    let mut out = name(dice).to_string();
    while dice.below(2) == 0 && out.len() < 7 {
        out = format!("{out}/{}", name(dice));
    }
    out
}

/// A tree with its attributes; of the times, only whether they are the stack's.
pub fn look(root: &Path) -> Vec<String> {
    let mut out = Vec::new();
    for (name, line) in tree::listing(root) {
        let path = root.join(String::from_utf8_lossy(&name).as_ref());
        let mut value = [0; 16];
        let xattr = rfs::lgetxattr(&path, c"trusted.test", &mut value).map_or(0, |n| n);
        let mut words: Vec<&str> = line.split(' ').collect();
        if let Some(time) = words.get_mut(3)
            && *time != OLD
        {
            *time = "later";
        }
        let text = String::from_utf8_lossy(&value[..xattr]).into_owned();
        out.push(format!("/{} {} {text}", String::from_utf8_lossy(&name), words.join(" ")));
    }
    out
}

/// The lines that only one of two has.
pub fn difference(left: &[String], right: &[String]) -> Vec<String> {
    let only = |mark: char, a: &[String], b: &[String]| {
        a.iter().filter(|l| !b.contains(l)).map(|l| format!("{mark} {l}")).collect::<Vec<_>>()
    };
    [only('+', left, right), only('-', right, left)].concat()
}
