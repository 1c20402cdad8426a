//! Operations on a directory tree, made at random and done alike on any root.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::raw::{Handle, Mapping};
use rustix::fs::{self as rfs, AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, XattrFlags};

/// A source of numbers that one seed determines (xorshift64*).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// How many handles a side may hold, and how many mappings, and how many kept file handles.
pub const HANDLES: usize = 4;
const MAPPINGS: usize = 2;
const TAKEN: usize = 2;
/// How many versions there are to swap between.
pub const VERSIONS: usize = 3;

/// What a sequence may hold besides the operations of the file API.
#[derive(Clone, Copy, Debug)]
pub struct Kinds {
    pub remount: bool,
    pub drop_caches: bool,
    pub swap: bool,
}

type Name = String;

/// One operation; paths are relative to the root.
#[derive(Clone, Debug)]
pub enum Operation {
    Mkdir(Name, u32),
    Rmdir(Name),
    Create(Name, u32),
    Write(Name, u64, u8, usize),
    Append(Name, u8, usize),
    Truncate(Name, u64),
    Empty(Name),
    Unlink(Name),
    Rename(Name, Name, u32),
    Link(Name, Name),
    Symlink(Name, Name),
    Chmod(Name, u32),
    Chown(Name, Option<u32>, Option<u32>),
    Times(Name, Option<i64>, Option<i64>),
    SetXattr(Name, &'static str, Vec<u8>, u32),
    RemoveXattr(Name, &'static str),
    Mknod(Name, u32, u32, u32),
    Open(usize, Name, i32),
    Close(usize),
    Stat(usize),
    ReadAt(usize, u64, usize),
    WriteAt(usize, u64, u8, usize),
    Resize(usize, u64),
    Allocate(usize, u32, u64, u64),
    CopyRange(usize, u64, usize, u64, usize),
    HandleChmod(usize, u32),
    HandleChown(usize, u32),
    HandleXattr(usize, &'static str, Vec<u8>),
    HandleTimes(usize, i64),
    HandleMkdir(usize, Name),
    HandleLink(usize, Name),
    HandleList(usize),
    List(Name),
    StatPath(Name),
    Readlink(Name),
    /// Maps the first page of an open file; the mapping outlives the handle.
    Map(usize),
    Unmap(usize),
    MapRead(usize, usize, usize),
    MapWrite(usize, usize, u8, usize),
    /// Keeps a file handle, as a server on top of the file system does.
    Take(usize, Name),
    /// Opens what was kept, by its handle.
    OpenTaken(usize),
    /// Keeps it no longer.
    Drop(usize),
    /// Unmounts and mounts the view; all handles are closed before.
    Remount,
    /// The kernel forgets what it can.
    DropCaches,
    /// The desktop goes to another version.
    Swap(usize),
    /// The same, while a file is opened for writing and appended to.
    SwapDuring(usize, Name, u8),
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const XATTRS: [&str; 6] =
    ["user.x", "user.y", "trusted.t", "trusted.overlay.opaque", "security.s", "trusted.reroot.pin"];
/// `cap_net_raw+ep`, as `linux/capability.h` lays it out (revision 2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const ACL: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// An ACL with a named user, as the kernel encodes it (acl(5); `linux/posix_acl_xattr.h`).
fn acl(user: u16, mask: u16) -> Vec<u8> {
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (1u16, 7u16, u32::MAX),
        (2, user, 1234),
        (4, 5, u32::MAX),
        (0x10, mask, u32::MAX),
        (0x20, 4, u32::MAX),
    ] {
        out.extend(tag.to_le_bytes());
        out.extend(perm.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    out
}

impl Operation {
    /// The paths that it names.
    pub fn names(&self) -> Vec<&str> {
        use Operation as O;
        match self {
            O::Mkdir(p, _)
            | O::Rmdir(p)
            | O::Create(p, _)
            | O::Write(p, ..)
            | O::Append(p, ..)
            | O::Truncate(p, _)
            | O::Empty(p)
            | O::Unlink(p)
            | O::Symlink(_, p)
            | O::Chmod(p, _)
            | O::Chown(p, ..)
            | O::Times(p, ..)
            | O::SetXattr(p, ..)
            | O::RemoveXattr(p, _)
            | O::Mknod(p, ..)
            | O::Open(_, p, _)
            | O::HandleLink(_, p) => vec![p],
            O::Rename(p, q, _) | O::Link(p, q) => vec![p, q],
            _ => Vec::new(),
        }
    }

    /// One on a handle that is open, to see what became of it.
    pub fn on_open(chance: &mut Chance, slot: usize) -> Operation {
        use Operation as O;
        let at = chance.pick(&[0u64, 1, 100, 4095]);
        let byte = b'a' + chance.below(26) as u8;
        match chance.below(10) {
            0..=2 => O::ReadAt(slot, at, 100),
            3..=5 => O::WriteAt(slot, at, byte, 3),
            6 => O::Stat(slot),
            7 => O::HandleChmod(slot, chance.pick(&[0o600, 0o640, 0o755])),
            8 => O::Resize(slot, chance.pick(&[0, 7, 6000])),
            _ => O::HandleXattr(slot, "user.y", vec![byte; 3]),
        }
    }

    /// One that makes the last one matter, where chance wants it: what is open or mapped meets a swap, a close, a change.
    pub fn follows(chance: &mut Chance, last: &Operation, kinds: Kinds) -> Option<Operation> {
        use Operation as O;
        let byte = b'a' + chance.below(26) as u8;
        match last {
            O::Open(..) if kinds.swap && chance.below(3) == 0 => Some(O::Swap(chance.below(VERSIONS))),
            O::Open(slot, ..) if chance.below(12) == 0 => Some(O::Map(*slot)),
            O::Map(slot) if chance.below(2) == 0 => Some(O::Close(*slot)),
            O::Map(slot) | O::Close(slot) if chance.below(4) == 0 => {
                Some(O::MapWrite(slot % MAPPINGS, chance.pick(&[0, 3]), byte, chance.pick(&[1, 50])))
            }
            O::Rmdir(path) | O::Unlink(path) if chance.below(8) == 0 => {
                let made = [O::Mkdir(path.clone(), 0o755), O::Create(path.clone(), 0o640)];
                Some(made[chance.below(2)].clone())
            }
            O::Close(slot) if chance.below(3) == 0 => Some(O::MapRead(slot % MAPPINGS, 0, 50)),
            _ => None,
        }
    }

    /// A random one. `known` are paths that existed a short while ago.
    pub fn random(chance: &mut Chance, known: &[String], kinds: Kinds) -> Operation {
        use Operation as O;
        let path = |c: &mut Chance| -> String {
            if !known.is_empty() && c.below(10) < 7 {
                return known[c.below(known.len())].clone();
            }
            let depth = c.pick(&[1, 1, 2, 2, 3]);
            (0..depth).map(|_| c.pick(&NAMES)).collect::<Vec<_>>().join("/")
        };
        let byte = |c: &mut Chance| b'a' + c.below(26) as u8;
        let mode =
            |c: &mut Chance| c.pick(&[0o644, 0o600, 0o755, 0o700, 0o4755, 0o2755, 0o1777, 0o640, 0o2775]);
        let value = |c: &mut Chance| {
            let length = c.pick(&[0, 1, 5, 40, 300]);
            vec![byte(c); length]
        };
        let offset = |c: &mut Chance| c.pick(&[0u64, 1, 5, 100, 4095, 4096, 10_000]);
        let length = |c: &mut Chance| c.pick(&[1usize, 3, 100, 4096, 9000]);
        let slot = chance.below(HANDLES);
        let c = chance;
        // The root of the view is a mount point, which can neither be removed nor moved.
        let inner = |c: &mut Chance| Some(path(c)).filter(|p| !p.is_empty()).unwrap_or_else(|| "a".into());
        if kinds.swap && c.below(9) == 0 {
            let to = c.below(VERSIONS);
            return if c.below(8) == 0 { O::SwapDuring(to, inner(c), byte(c)) } else { O::Swap(to) };
        }
        if kinds.remount && c.below(50) == 0 {
            return O::Remount;
        }
        if kinds.drop_caches {
            match c.below(16) {
                0 => return O::DropCaches,
                1..=2 => return O::Take(c.below(TAKEN), path(c)),
                3..=4 => return O::OpenTaken(c.below(TAKEN)),
                _ => {}
            }
        }
        // Every fourth is on something that may be open.
        let which = if c.below(4) == 0 { 71 + c.below(40) } else { c.below(111) };
        match which {
            0..=6 => O::Mkdir(path(c), mode(c)),
            7..=10 => O::Rmdir(inner(c)),
            11..=15 => O::Create(path(c), mode(c)),
            16..=19 => O::Write(path(c), offset(c), byte(c), length(c)),
            20..=21 => O::Append(path(c), byte(c), length(c)),
            22..=23 => O::Truncate(path(c), c.pick(&[0, 1, 5000])),
            24 => O::Empty(path(c)),
            25..=31 => O::Unlink(inner(c)),
            32..=43 => O::Rename(inner(c), inner(c), c.pick(&[0, 0, 0, 1, 2, 2])),
            44..=49 => O::Link(inner(c), inner(c)),
            50..=51 => O::Symlink((c.pick(&["a", "b/c", "a/b", "d", "nothing"])).to_string(), path(c)),
            52..=54 => O::Chmod(path(c), mode(c)),
            55..=57 => {
                let mut id = || c.pick(&[None, Some(0), Some(1234), Some(77)]);
                // Of none at all a FUSE server cannot tell what it is: see SEMANTICS.md.
                let (uid, gid) = match (id(), id()) {
                    (None, None) => (Some(0), None),
                    some => some,
                };
                O::Chown(path(c), uid, gid)
            }
            58..=59 => {
                let mut time = || c.pick(&[None, Some(1_000_000_000), Some(1_234_567_890), Some(-5)]);
                let (a, m) = (time(), time());
                O::Times(path(c), a, m)
            }
            60..=63 => O::SetXattr(path(c), c.pick(&XATTRS), value(c), c.pick(&[0, 0, 1, 2])),
            64 => O::SetXattr(path(c), ACL, acl(c.pick(&[0, 6, 7]), c.pick(&[0, 4, 7])), 0),
            65 => O::SetXattr(path(c), DEFAULT, acl(c.pick(&[0, 6, 7]), c.pick(&[0, 4, 7])), 0),
            66 => O::RemoveXattr(path(c), c.pick(&[ACL, DEFAULT])),
            67 if c.below(2) == 0 => O::SetXattr(path(c), "security.capability", CAPABILITY.to_vec(), 0),
            67 => O::RemoveXattr(path(c), c.pick(&XATTRS)),
            68..=70 => {
                let (kind, major, minor) = c.pick(&[
                    (libc::S_IFCHR, 0, 0),
                    (libc::S_IFCHR, 1, 3),
                    (libc::S_IFIFO, 0, 0),
                    (libc::S_IFSOCK, 0, 0),
                    // A number that no driver has: it is opened and written to.
                    (libc::S_IFBLK, 60, 0),
                ]);
                O::Mknod(path(c), kind | 0o640, major, minor)
            }
            71..=78 => O::Open(
                slot,
                path(c),
                c.pick(&[
                    libc::O_RDONLY,
                    libc::O_RDONLY,
                    libc::O_RDWR,
                    libc::O_RDWR,
                    libc::O_RDWR | libc::O_APPEND,
                    libc::O_RDWR | libc::O_TRUNC,
                    libc::O_RDWR | libc::O_CREAT,
                    libc::O_RDWR | libc::O_CREAT | libc::O_EXCL,
                    libc::O_RDONLY | libc::O_DIRECTORY,
                    libc::O_RDONLY | libc::O_DIRECTORY,
                ]),
            ),
            79 => O::Close(slot),
            80..=81 => O::Stat(slot),
            82..=83 => O::ReadAt(slot, offset(c), length(c)),
            84..=86 => O::WriteAt(slot, offset(c), byte(c), length(c)),
            87 => O::Resize(slot, c.pick(&[0, 7, 6000])),
            88 => O::Allocate(slot, c.pick(&[0, 1, 3, 16]), offset(c), length(c) as u64),
            89 => O::CopyRange(slot, offset(c), c.below(HANDLES), offset(c), length(c)),
            90 => O::HandleChmod(slot, mode(c)),
            91 => O::HandleChown(slot, c.pick(&[0, 77, 1234])),
            92 => O::HandleXattr(slot, c.pick(&XATTRS), value(c)),
            93 => O::HandleTimes(slot, 1_111_111_111),
            94 => O::HandleMkdir(slot, (c.pick(&NAMES)).to_string()),
            95 => O::HandleLink(slot, inner(c)),
            96 => O::HandleList(slot),
            97 => O::List(path(c)),
            98..=100 => O::StatPath(path(c)),
            101 => O::Readlink(path(c)),
            102..=103 => O::Map(slot),
            104 => O::Unmap(slot % MAPPINGS),
            105..=106 => O::MapRead(slot % MAPPINGS, c.pick(&[0, 1, 100]), c.pick(&[1, 50])),
            107..=108 => O::MapWrite(slot % MAPPINGS, c.pick(&[0, 3, 90]), byte(c), c.pick(&[1, 50])),
            109 => O::Take(slot % TAKEN, path(c)),
            _ => O::OpenTaken(slot % TAKEN),
        }
    }
}

/// A tree that operations are done on, with its open handles.
#[derive(Debug)]
pub struct Side {
    pub root: PathBuf,
    pub handles: Vec<Option<File>>,
    /// With the inodes that they are of.
    mappings: Vec<Option<(Mapping, u64)>>,
    taken: Vec<Option<Handle>>,
}

/// What is compared of an answer: a few words, or the error's number.
pub type Outcome = Result<String, i32>;

fn errno(e: io::Error) -> i32 {
    e.raw_os_error().unwrap_or(-1)
}

/// What two file systems must agree on about a file.
pub fn facts(m: &std::fs::Metadata) -> String {
    let size = if m.is_dir() { 0 } else { m.size() };
    format!(
        "{:o} links {} owner {}:{} size {size} device {:x}",
        m.mode(),
        m.nlink(),
        m.uid(),
        m.gid(),
        m.rdev()
    )
}

impl Side {
    pub fn new(root: &Path) -> Side {
        Side {
            root: root.to_path_buf(),
            handles: (0..HANDLES).map(|_| None).collect(),
            mappings: (0..MAPPINGS).map(|_| None).collect(),
            taken: (0..TAKEN).map(|_| None).collect(),
        }
    }

    pub fn close_all(&mut self) {
        self.handles.iter_mut().for_each(|h| *h = None);
        self.mappings.iter_mut().for_each(|h| *h = None);
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn handle(&self, slot: usize) -> Result<&File, i32> {
        // Closed alike on both sides.
        self.handles[slot].as_ref().ok_or(-9)
    }

    /// The inodes of open files and mappings.
    pub fn open_inodes(&self) -> Vec<u64> {
        let handles = (0..HANDLES).filter_map(|slot| self.inode(slot));
        handles.chain(self.mappings.iter().flatten().map(|(_, inode)| *inode)).collect()
    }

    /// Which handles, mappings and kept file handles are of these inodes, or of none any more.
    pub fn slots_of(&self, inodes: &HashSet<u64>) -> Vec<Operation> {
        let mut out = Vec::new();
        for slot in 0..HANDLES {
            if self.inode(slot).is_some_and(|i| inodes.contains(&i)) {
                out.push(Operation::Close(slot));
            }
        }
        for (slot, mapping) in self.mappings.iter().enumerate() {
            if mapping.as_ref().is_some_and(|(_, i)| inodes.contains(i)) {
                out.push(Operation::Unmap(slot));
            }
        }
        let mount = File::open(&self.root).ok();
        for (slot, taken) in self.taken.iter().enumerate() {
            if let (Some(taken), Some(mount)) = (taken, &mount) {
                let there = taken.open(mount, libc::O_PATH).and_then(|f| f.metadata());
                if there.is_ok_and(|m| m.nlink() > 0) {
                    continue;
                }
                out.push(Operation::Drop(slot));
            }
        }
        out
    }

    /// The inode that a handle stands for.
    pub fn inode(&self, slot: usize) -> Option<u64> {
        self.handles[slot].as_ref()?.metadata().ok().map(|m| m.ino())
    }

    /// Does it, and says what came of it.
    pub fn apply(&mut self, operation: &Operation) -> Outcome {
        self.answer(operation)
    }

    fn answer(&mut self, operation: &Operation) -> Outcome {
        use Operation as O;
        let done = |r: rustix::io::Result<()>| r.map(|()| String::new()).map_err(|e| e.raw_os_error());
        let std_done = |r: io::Result<()>| r.map(|()| String::new()).map_err(errno);
        let options = |flags: i32| {
            let mut o = OpenOptions::new();
            match flags & libc::O_ACCMODE {
                libc::O_RDONLY => o.read(true),
                _ => o.read(true).write(true),
            };
            // Never waits for the other end of a FIFO.
            o.custom_flags(flags & !libc::O_ACCMODE | libc::O_NONBLOCK | libc::O_NOCTTY).mode(0o666);
            o
        };
        match operation {
            O::Mkdir(p, mode) => done(rfs::mkdir(self.at(p), Mode::from_raw_mode(*mode))),
            O::Rmdir(p) => done(rfs::rmdir(self.at(p))),
            O::Create(p, mode) => std_done(
                OpenOptions::new().write(true).create_new(true).mode(*mode).open(self.at(p)).map(drop),
            ),
            O::Write(p, at, byte, n) => std_done(
                options(libc::O_RDWR).open(self.at(p)).and_then(|f| f.write_all_at(&vec![*byte; *n], *at)),
            ),
            O::Append(p, byte, n) => std_done(
                options(libc::O_RDWR | libc::O_APPEND)
                    .open(self.at(p))
                    .and_then(|mut f| io::Write::write_all(&mut f, &vec![*byte; *n])),
            ),
            O::Truncate(p, n) => std_done(rustix_truncate(&self.at(p), *n)),
            O::Empty(p) => std_done(options(libc::O_RDWR | libc::O_TRUNC).open(self.at(p)).map(drop)),
            O::Unlink(p) => done(rfs::unlink(self.at(p))),
            O::Rename(p, q, flags) => done(rfs::renameat_with(
                CWD,
                self.at(p),
                CWD,
                self.at(q),
                RenameFlags::from_bits_retain(*flags),
            )),
            O::Link(p, q) => done(rfs::linkat(CWD, self.at(p), CWD, self.at(q), AtFlags::empty())),
            O::Symlink(target, p) => done(rfs::symlink(target.as_str(), self.at(p))),
            O::Chmod(p, mode) => {
                std_done(std::fs::set_permissions(self.at(p), std::fs::Permissions::from_mode(*mode)))
            }
            O::Chown(p, uid, gid) => std_done(std::os::unix::fs::lchown(self.at(p), *uid, *gid)),
            O::Times(p, a, m) => {
                done(rfs::utimensat(CWD, self.at(p), &times(*a, *m), AtFlags::SYMLINK_NOFOLLOW))
            }
            O::SetXattr(p, name, value, flags) => {
                done(rfs::lsetxattr(self.at(p), *name, value, XattrFlags::from_bits_retain(*flags)))
            }
            O::RemoveXattr(p, name) => done(rfs::lremovexattr(self.at(p), *name)),
            O::Mknod(p, mode, major, minor) => done(rfs::mknodat(
                CWD,
                self.at(p),
                FileType::from_raw_mode(*mode),
                Mode::from_raw_mode(*mode & 0o7777),
                rfs::makedev(*major, *minor),
            )),
            O::Open(slot, p, flags) => {
                self.handles[*slot] = None;
                let file = options(*flags).open(self.at(p)).map_err(errno)?;
                self.handles[*slot] = Some(file);
                Ok(String::new())
            }
            O::Close(slot) => {
                self.handles[*slot] = None;
                Ok(String::new())
            }
            O::Stat(slot) => Ok(facts(&self.handle(*slot)?.metadata().map_err(errno)?)),
            O::ReadAt(slot, at, n) => {
                let mut buffer = vec![0; *n];
                let n = self.handle(*slot)?.read_at(&mut buffer, *at).map_err(errno)?;
                Ok(format!("{n} {:?}", String::from_utf8_lossy(&buffer[..n])))
            }
            O::WriteAt(slot, at, byte, n) => {
                std_done(self.handle(*slot)?.write_all_at(&vec![*byte; *n], *at))
            }
            O::Resize(slot, n) => std_done(self.handle(*slot)?.set_len(*n)),
            O::Allocate(slot, mode, at, n) => {
                done(rfs::fallocate(self.handle(*slot)?, FallocateFlags::from_bits_retain(*mode), *at, *n))
            }
            O::CopyRange(from, at, to, to_at, n) => {
                let (mut a, mut b) = (*at, *to_at);
                rfs::copy_file_range(self.handle(*from)?, Some(&mut a), self.handle(*to)?, Some(&mut b), *n)
                    .map(|n| n.to_string())
                    .map_err(|e| e.raw_os_error())
            }
            O::HandleChmod(slot, mode) => done(rfs::fchmod(self.handle(*slot)?, Mode::from_raw_mode(*mode))),
            O::HandleChown(slot, uid) => {
                std_done(std::os::unix::fs::fchown(self.handle(*slot)?, Some(*uid), Some(*uid)))
            }
            O::HandleXattr(slot, name, value) => {
                done(rfs::fsetxattr(self.handle(*slot)?, *name, value, XattrFlags::empty()))
            }
            O::HandleTimes(slot, m) => done(rfs::futimens(self.handle(*slot)?, &times(None, Some(*m)))),
            O::HandleMkdir(slot, name) => {
                done(rfs::mkdirat(self.handle(*slot)?, name.as_str(), Mode::from_raw_mode(0o755)))
            }
            O::HandleLink(slot, p) => {
                done(rfs::linkat(self.handle(*slot)?, "", CWD, self.at(p), AtFlags::EMPTY_PATH))
            }
            O::HandleList(slot) => list(self.handle(*slot)?),
            O::List(p) => list(&options(libc::O_DIRECTORY).open(self.at(p)).map_err(errno)?),
            O::StatPath(p) => Ok(facts(&std::fs::symlink_metadata(self.at(p)).map_err(errno)?)),
            O::Readlink(p) => std::fs::read_link(self.at(p)).map(|t| t.display().to_string()).map_err(errno),
            O::Map(slot) => {
                self.mappings[*slot % MAPPINGS] = None;
                let file = self.handle(*slot)?;
                let mode = rfs::fcntl_getfl(file).map_err(|e| e.raw_os_error())?;
                let mapping = Mapping::new(file, mode.contains(rfs::OFlags::RDWR)).map_err(errno)?;
                let inode = file.metadata().map_err(errno)?.ino();
                self.mappings[*slot % MAPPINGS] = Some((mapping, inode));
                Ok(String::new())
            }
            O::Unmap(slot) => {
                self.mappings[*slot] = None;
                Ok(String::new())
            }
            O::MapRead(slot, at, n) => {
                let bytes = self.mappings[*slot].as_ref().ok_or(-9)?.0.read(*at, *n).map_err(errno)?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            O::MapWrite(slot, at, byte, n) => {
                let (mapping, _) = self.mappings[*slot].as_ref().ok_or(-9)?;
                std_done(mapping.write(*at, &vec![*byte; *n]).and_then(|()| mapping.sync()))
            }
            O::Take(slot, p) => {
                self.taken[*slot] = None;
                self.taken[*slot] = Some(Handle::of(&self.at(p)).map_err(errno)?);
                Ok(String::new())
            }
            O::Drop(slot) => {
                self.taken[*slot] = None;
                Ok(String::new())
            }
            O::OpenTaken(slot) => {
                let handle = self.taken[*slot].as_ref().ok_or(-9)?;
                let mount = File::open(&self.root).map_err(errno)?;
                let there = handle.open(&mount, libc::O_PATH).map_err(errno)?;
                let meta = there.metadata().map_err(errno)?;
                if meta.nlink() == 0 {
                    // How long a file without a name can be had by its handle is left to the file system.
                    return Err(libc::ESTALE);
                }
                let mut text = facts(&meta);
                if meta.is_file() {
                    let file = handle.open(&mount, libc::O_RDONLY).map_err(errno)?;
                    let mut bytes = vec![0; meta.len() as usize + 1];
                    let n = file.read_at(&mut bytes, 0).map_err(errno)?;
                    text += &format!(" holds {}", brief(&bytes[..n]));
                }
                Ok(text)
            }
            O::Remount | O::DropCaches | O::Swap(_) | O::SwapDuring(..) => Ok(String::new()),
        }
    }
}

/// A content with its runs of equal bytes counted.
pub fn brief(bytes: &[u8]) -> String {
    bytes
        .chunk_by(|a, b| a == b)
        .map(|run| match run {
            [c] => (*c as char).escape_default().to_string(),
            [c, ..] => format!("{}*{} ", (*c as char).escape_default(), run.len()),
            [] => String::new(),
        })
        .collect()
}

fn rustix_truncate(path: &Path, n: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    file.set_len(n)
}

fn times(a: Option<i64>, m: Option<i64>) -> rfs::Timestamps {
    let one = |t: Option<i64>| match t {
        Some(t) => rfs::Timespec { tv_sec: t, tv_nsec: 123_456_789 },
        None => rfs::Timespec { tv_sec: 0, tv_nsec: rfs::UTIME_OMIT },
    };
    rfs::Timestamps { last_access: one(a), last_modification: one(m) }
}

fn list(dir: &File) -> Outcome {
    let mut names = Vec::new();
    for entry in rfs::Dir::read_from(dir).map_err(|e| e.raw_os_error())? {
        let entry = entry.map_err(|e| e.raw_os_error())?;
        names.push(format!("{} {:?}", entry.file_name().to_string_lossy(), entry.file_type()));
    }
    names.sort();
    Ok(names.join(", "))
}
