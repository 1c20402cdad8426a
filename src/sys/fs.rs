//! Files, by descriptor and name.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{self as rfs, AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};

/// Seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Seconds; negative before 1970.
    pub sec: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nsec: u32,
}

impl Time {
    /// The present.
    pub fn now() -> Time {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Time { sec: t.tv_sec, nsec: t.tv_nsec as u32 }
    }
}

/// What `statx(2)` says of a file.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Device that holds the file.
    pub dev: (u32, u32),
    /// Inode number on that device.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node: major, minor.
    pub rdev: (u32, u32),
    /// Length in bytes.
    pub size: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred block size for I/O, in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Birth, zero where the file system does not keep it.
    pub btime: Time,
    /// Nobody may change it (`FS_IMMUTABLE_FL`).
    pub immutable: bool,
    /// Nobody may but write at its end (`FS_APPEND_FL`).
    pub append_only: bool,
}

impl Stat {
    /// The type bits (`S_IFMT`) of the mode.
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
    /// Whether it is the overlay format's whiteout: a character device 0:0.
    pub fn is_whiteout(&self) -> bool {
        self.format() == libc::S_IFCHR && self.rdev == (0, 0)
    }
}

fn stat_of(s: rfs::Statx) -> Stat {
    let time = |t: rfs::StatxTimestamp| Time { sec: t.tv_sec, nsec: t.tv_nsec };
    Stat {
        dev: (s.stx_dev_major, s.stx_dev_minor),
        ino: s.stx_ino,
        mode: u32::from(s.stx_mode),
        nlink: s.stx_nlink,
        uid: s.stx_uid,
        gid: s.stx_gid,
        rdev: (s.stx_rdev_major, s.stx_rdev_minor),
        size: s.stx_size,
        blocks: s.stx_blocks,
        blksize: s.stx_blksize,
        atime: time(s.stx_atime),
        mtime: time(s.stx_mtime),
        ctime: time(s.stx_ctime),
        btime: time(s.stx_btime),
        immutable: s.stx_attributes.contains(rfs::StatxAttributes::IMMUTABLE),
        append_only: s.stx_attributes.contains(rfs::StatxAttributes::APPEND),
    }
}

/// Attributes of `name` in `dir`; a symbolic link is not followed.
pub fn stat_at(dir: impl AsFd, name: &[u8]) -> io::Result<Stat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    Ok(stat_of(rfs::statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?))
}

/// Attributes of an open file (also one opened with `O_PATH`).
pub fn stat(fd: impl AsFd) -> io::Result<Stat> {
    Ok(stat_of(rfs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?))
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// To name it only (`O_PATH`), whatever its type; a symbolic link itself.
    Path,
    /// A directory, for reading and as the base of other calls.
    Dir,
    /// A directory, as the base of other calls only (`O_PATH`).
    DirPath,
    /// A regular file for reading.
    Read,
    /// A regular file for reading and writing.
    ReadWrite,
    /// A regular file for reading, and for writing at its end.
    Append,
}

impl Open {
    fn flags(self) -> OFlags {
        let base = OFlags::CLOEXEC | OFlags::NOFOLLOW;
        base | match self {
            Open::Path => OFlags::PATH,
            Open::Dir => OFlags::RDONLY | OFlags::DIRECTORY,
            Open::DirPath => OFlags::PATH | OFlags::DIRECTORY,
            Open::Read => OFlags::RDONLY | OFlags::NONBLOCK,
            Open::ReadWrite => OFlags::RDWR | OFlags::NONBLOCK,
            Open::Append => OFlags::RDWR | OFlags::APPEND | OFlags::NONBLOCK,
        }
    }
}

/// Opens the path `path` beneath `dir`. No component may be a symbolic link, and none may lead out
/// (`openat2(2)` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`). An empty path is `dir` itself.
pub fn open_beneath(dir: impl AsFd, path: &[u8], how: Open) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rfs::openat2(dir.as_fd(), path, how.flags(), Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN) | Err(rustix::io::Errno::INTR) => continue,
            r => return Ok(r?),
        }
    }
}

/// Opens one name in `dir`; never follows a symbolic link.
pub fn open_at(dir: impl AsFd, name: &[u8], how: Open) -> io::Result<OwnedFd> {
    loop {
        match rfs::openat(dir.as_fd(), name, how.flags(), Mode::empty()) {
            Err(rustix::io::Errno::INTR) => continue,
            r => return Ok(r?),
        }
    }
}

/// Opens again, with other rights, what a descriptor (also an `O_PATH` one) stands for.
pub fn reopen(fd: impl AsFd, how: Open) -> io::Result<OwnedFd> {
    let flags = how.flags() - OFlags::NOFOLLOW;
    Ok(rfs::open(proc_path(&fd).as_c_str(), flags, Mode::empty())?)
}

/// Opens a directory by an ordinary path, following symbolic links.
pub fn open_dir(path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    Ok(rfs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The path in `/proc` that leads to what a descriptor stands for; for calls that take no descriptor.
pub fn proc_path(fd: impl AsFd) -> std::ffi::CString {
    let text = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    // A decimal number holds no NUL, so the fallback is never taken.
    std::ffi::CString::new(text).unwrap_or_default()
}

/// Where in the name space a descriptor's file stands now, as the kernel says it.
pub fn path_of(fd: impl AsFd) -> io::Result<Vec<u8>> {
    Ok(rfs::readlink(proc_path(&fd).as_c_str(), Vec::new())?.into_bytes())
}

/// Makes a regular file that must not exist yet, open for reading and writing.
pub fn create_at(dir: impl AsFd, name: &[u8], mode: u32) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(File::from(rfs::openat(dir, name, flags, Mode::from_raw_mode(mode & 0o7777))?))
}

/// Makes a directory.
pub fn mkdir_at(dir: impl AsFd, name: &[u8], mode: u32) -> io::Result<()> {
    Ok(rfs::mkdirat(dir, name, Mode::from_raw_mode(mode & 0o7777))?)
}

/// Makes a device node, FIFO, socket or (with `S_IFREG`) an empty file. `mode` holds the type bits.
pub fn mknod_at(dir: impl AsFd, name: &[u8], mode: u32, rdev: (u32, u32)) -> io::Result<()> {
    let kind = rfs::FileType::from_raw_mode(mode);
    Ok(rfs::mknodat(dir, name, kind, Mode::from_raw_mode(mode & 0o7777), rfs::makedev(rdev.0, rdev.1))?)
}

/// Makes a symbolic link with the given target.
pub fn symlink_at(target: &[u8], dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(rfs::symlinkat(target, dir, name)?)
}

/// Where a symbolic link points to.
pub fn readlink_at(dir: impl AsFd, name: &[u8]) -> io::Result<Vec<u8>> {
    Ok(rfs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// Gives a file a further name in another directory of the same file system.
pub fn link_at(from: impl AsFd, name: &[u8], to: impl AsFd, new: &[u8]) -> io::Result<()> {
    Ok(rfs::linkat(from, name, to, new, AtFlags::empty())?)
}

/// Gives an open file (also an `O_PATH` one) a name.
pub fn link_fd(fd: impl AsFd, to: impl AsFd, new: &[u8]) -> io::Result<()> {
    Ok(rfs::linkat(rfs::CWD, proc_path(&fd).as_c_str(), to, new, AtFlags::SYMLINK_FOLLOW)?)
}

/// What a rename does when the new name exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rename {
    /// The new name's file is displaced.
    Replace,
    /// `EEXIST`.
    NoReplace,
    /// Both change places.
    Exchange,
    /// As `Replace`, and a whiteout (a character device 0:0) is left at the old name.
    Whiteout,
}

/// Renames, as `renameat2(2)`.
pub fn rename_at(from: impl AsFd, name: &[u8], to: impl AsFd, new: &[u8], how: Rename) -> io::Result<()> {
    let flags = match how {
        Rename::Replace => return Ok(rfs::renameat(from, name, to, new)?),
        Rename::NoReplace => rfs::RenameFlags::NOREPLACE,
        Rename::Exchange => rfs::RenameFlags::EXCHANGE,
        Rename::Whiteout => rfs::RenameFlags::WHITEOUT,
    };
    Ok(rfs::renameat_with(from, name, to, new, flags)?)
}

/// Removes a name that is not a directory's.
pub fn unlink_at(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(rfs::unlinkat(dir, name, AtFlags::empty())?)
}

/// Removes an empty directory.
pub fn rmdir_at(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(rfs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

/// Removes whatever stands at `name`, with everything beneath, however deep; nothing there is fine.
pub fn remove_all_at(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    let remove = |dir: BorrowedFd<'_>, name: &[u8]| match rfs::unlinkat(dir, name, AtFlags::empty()) {
        Err(rustix::io::Errno::PERM) => {
            // Immutable or append-only, the file or the directory that it is in.
            unlock(open_at(dir, name, Open::Read));
            unlock(open_at(dir, b".", Open::Dir));
            rfs::unlinkat(dir, name, AtFlags::empty())
        }
        r => r,
    };
    let remove = |dir: BorrowedFd<'_>, name: &[u8]| match remove(dir, name) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(true),
        Err(rustix::io::Errno::ISDIR) => Ok(false),
        Err(e) => Err(io::Error::from(e)),
    };
    if remove(dir.as_fd(), name)? {
        return Ok(());
    }
    unlock(open_at(dir.as_fd(), name, Open::Dir));
    let top = open_at(dir.as_fd(), name, Open::Dir)?;
    let mut counter = 0u64;
    loop {
        // Directories two levels down are moved up, so that neither the stack nor descriptors grow with the depth.
        let mut left = false;
        for (child, _) in list(top.as_fd())? {
            if remove(top.as_fd(), &child)? {
                continue;
            }
            left = true;
            let sub = open_at(&top, &child, Open::Dir)?;
            unlock(sub.try_clone());
            for (inner, _) in list(sub.as_fd())? {
                if remove(sub.as_fd(), &inner)? || rmdir_at(&sub, &inner).is_ok() {
                    continue;
                }
                loop {
                    let up = format!(".removing-{counter}");
                    counter += 1;
                    match rename_at(&sub, &inner, &top, up.as_bytes(), Rename::NoReplace) {
                        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => continue,
                        r => break r?,
                    }
                }
            }
            rmdir_at(&top, &child)?;
        }
        if !left {
            break;
        }
    }
    rmdir_at(dir, name)
}

/// Takes the flags away that keep something from being removed.
/// [`rename_at`] that replaces, of what may be immutable or append-only, or stand in what is.
pub fn take_at(from: impl AsFd, name: &[u8], to: impl AsFd, new: &[u8]) -> io::Result<()> {
    match rename_at(&from, name, &to, new, Rename::Replace) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
            unlock(open_at(&from, name, Open::Read));
            unlock(open_at(&from, b".", Open::Dir));
            rename_at(&from, name, &to, new, Rename::Replace)
        }
        r => r,
    }
}

fn unlock(file: io::Result<OwnedFd>) {
    let Ok(file) = file else { return };
    if let Ok(flags) = get_flags(&file)
        && flags & (FLAG_IMMUTABLE | FLAG_APPEND) != 0
    {
        let _ = set_flags(&file, flags & !(FLAG_IMMUTABLE | FLAG_APPEND));
    }
}

/// [`remove_all_at`] by an ordinary path.
pub fn remove_tree(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    remove_all_at(open_dir(parent)?, name.as_bytes())
}

/// Is shown an entry: its directory, name and type bits.
pub type Visit<'a> = dyn FnMut(&OwnedFd, &[u8], u32) -> io::Result<()> + 'a;

/// Shows `visit` every entry beneath a directory, however deep, in no order.
/// What vanishes meanwhile is passed over.
pub fn walk(top: OwnedFd, visit: &mut Visit<'_>) -> io::Result<()> {
    use std::rc::Rc;
    let mut todo: Vec<(Rc<OwnedFd>, Vec<u8>)> = vec![(Rc::new(top), b".".to_vec())];
    while let Some((parent, name)) = todo.pop() {
        let dir = match open_at(&*parent, &name, Open::Dir) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => continue,
            r => Rc::new(r?),
        };
        drop(parent);
        for (child, format) in list(dir.as_fd())? {
            let format = match format {
                0 => stat_at(&*dir, &child)?.format(),
                known => known,
            };
            visit(&dir, &child, format)?;
            if format == libc::S_IFDIR {
                todo.push((dir.clone(), child));
            }
        }
    }
    Ok(())
}

/// Bytes that a directory and everything beneath it take on disk; each file once, whatever number of names it has.
pub fn disk_usage(top: OwnedFd) -> io::Result<u64> {
    let mut total = stat(&top)?.blocks * 512;
    let mut links = std::collections::HashSet::new();
    walk(top, &mut |dir, name, _| {
        match stat_at(dir, name) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => return Err(e),
            Ok(s) if !s.is_dir() && s.nlink > 1 && !links.insert((s.dev, s.ino)) => {}
            Ok(s) => total += s.blocks * 512,
        }
        Ok(())
    })?;
    Ok(total)
}

/// The names in a directory with their type bits (0 where unknown), without `.` and `..`, unsorted.
pub fn list(dir: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, u32)>> {
    Ok(list_numbered(dir)?.into_iter().map(|(name, format, _)| (name, format)).collect())
}

/// As [`list`], with each entry's inode number.
pub fn list_numbered(dir: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, u32, u64)>> {
    let own = rfs::openat(dir, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut found = Vec::new();
    for entry in rfs::Dir::new(own)? {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if name != c"." && name != c".." {
            let format = match entry.file_type() {
                rfs::FileType::Unknown => 0,
                kind => kind.as_raw_mode() & libc::S_IFMT,
            };
            found.push((name.to_bytes().to_vec(), format, entry.ino()));
        }
    }
    Ok(found)
}

/// Sets permission bits of what a descriptor (also an `O_PATH` one) stands for.
pub fn chmod(fd: impl AsFd, mode: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode & 0o7777);
    match rfs::fchmod(fd.as_fd(), mode) {
        Err(rustix::io::Errno::BADF) => Ok(rfs::chmod(proc_path(&fd).as_c_str(), mode)?),
        r => Ok(r?),
    }
}

/// Sets owner and group where given; works on any type, with an `O_PATH` descriptor too.
pub fn chown(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let uid = uid.map(rfs::Uid::from_raw);
    let gid = gid.map(rfs::Gid::from_raw);
    Ok(rfs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)?)
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// Leave it.
    Omit,
    /// The present.
    Now,
    /// This time.
    To(Time),
}

/// Sets access and modification time; works on any type, with an `O_PATH` descriptor too.
pub fn set_times(fd: impl AsFd, atime: SetTime, mtime: SetTime) -> io::Result<()> {
    let spec = |t| match t {
        SetTime::Omit => rfs::Timespec { tv_sec: 0, tv_nsec: rfs::UTIME_OMIT },
        SetTime::Now => rfs::Timespec { tv_sec: 0, tv_nsec: rfs::UTIME_NOW },
        SetTime::To(t) => rfs::Timespec { tv_sec: t.sec, tv_nsec: i64::from(t.nsec) },
    };
    let times = rfs::Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
    // An empty path with O_PATH descriptors is refused by utimensat before Linux 6.?; /proc works everywhere,
    // and for a symbolic link the magic link leads to the link itself.
    Ok(rfs::utimensat(rfs::CWD, proc_path(&fd).as_c_str(), &times, AtFlags::empty())?)
}

/// Copies `len` bytes within the kernel, sharing blocks where the file system can. Returns what was copied.
pub fn copy_range(from: impl AsFd, from_at: u64, to: impl AsFd, to_at: u64, len: usize) -> io::Result<usize> {
    let (mut a, mut b) = (from_at, to_at);
    Ok(rfs::copy_file_range(from, Some(&mut a), to, Some(&mut b), len)?)
}

/// Makes `to` share all blocks of `from` (`FICLONE`), where the file system can.
pub fn clone_file(to: impl AsFd, from: impl AsFd) -> io::Result<()> {
    Ok(rfs::ioctl_ficlone(to, from)?)
}

/// Asks the kernel to bring the first `length` bytes of a file into memory (`posix_fadvise(2)`, `WILLNEED`); does not wait.
pub fn will_need(fd: impl AsFd, length: u64) -> io::Result<()> {
    Ok(rfs::fadvise(fd, 0, NonZeroU64::new(length), rfs::Advice::WillNeed)?)
}

/// `lseek(2)` for data or holes. `None`: past the end (`ENXIO`).
pub fn seek_extent(fd: impl AsFd, offset: u64, hole: bool) -> io::Result<Option<u64>> {
    let to = if hole { rfs::SeekFrom::Hole(offset) } else { rfs::SeekFrom::Data(offset) };
    match rfs::seek(fd, to) {
        Ok(at) => Ok(Some(at)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Copies the whole content of `from` into the empty file `to`, keeping holes. `each` is told how many
/// bytes were copied after each piece and may stop it with an error.
pub fn copy_sparse(
    from: &File,
    to: &File,
    size: u64,
    mut each: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    if size > 0 && clone_file(to, from).is_ok() {
        return to.set_len(size);
    }
    to.set_len(size)?;
    let mut at = 0;
    while at < size {
        let Some(data) = seek_extent(from, at, false)? else { break };
        let end = seek_extent(from, data, true)?.unwrap_or(size).min(size);
        let mut pos = data;
        while pos < end {
            let want = (end - pos).min(8 << 20) as usize;
            let n = match copy_range(from, pos, to, pos, want) {
                Ok(n) => n,
                Err(e) if matches!(e.raw_os_error(), Some(libc::EXDEV | libc::EINVAL | libc::EOPNOTSUPP)) => {
                    copy_by_hand(from, to, pos, want)?
                }
                Err(e) => return Err(e),
            };
            if n == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
            }
            pos += n as u64;
            each(n as u64)?;
        }
        at = end;
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, at: u64, want: usize) -> io::Result<usize> {
    use std::os::unix::fs::FileExt;
    let mut buf = vec![0; want.min(1 << 20)];
    let n = from.read_at(&mut buf, at)?;
    to.write_all_at(buf.get(..n).unwrap_or_default(), at)?;
    Ok(n)
}

/// `fallocate(2)` with the raw mode bits.
pub fn fallocate(fd: impl AsFd, mode: u32, offset: u64, len: u64) -> io::Result<()> {
    let mode =
        rfs::FallocateFlags::from_bits(mode).ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP))?;
    Ok(rfs::fallocate(fd, mode, offset, len)?)
}

/// Whether a descriptor was opened for reading alone.
pub fn only_reads(fd: impl AsFd) -> bool {
    rfs::fcntl_getfl(fd).is_ok_and(|f| f & OFlags::RWMODE == OFlags::RDONLY)
}

/// Writes everything of the file system that holds `fd` to its disk.
pub fn sync_fs(fd: impl AsFd) -> io::Result<()> {
    Ok(rfs::syncfs(fd)?)
}

/// Writes one file (or directory) to its disk; with `data` only what is needed to read its content again.
pub fn sync(fd: impl AsFd, data: bool) -> io::Result<()> {
    if data { Ok(rfs::fdatasync(fd)?) } else { Ok(rfs::fsync(fd)?) }
}

/// Space and inodes of a file system, as `statfs(2)`.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// Total blocks.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Blocks free to ordinary users.
    pub bavail: u64,
    /// Total inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Block size in bytes.
    pub bsize: u32,
    /// Longest name in bytes.
    pub namelen: u32,
    /// Fragment size in bytes.
    pub frsize: u32,
    /// The file system's magic number.
    pub magic: u64,
}

/// Space of the file system that holds `fd`.
pub fn space(fd: impl AsFd) -> io::Result<Space> {
    let s = rfs::fstatfs(fd)?;
    Ok(Space {
        blocks: s.f_blocks,
        bfree: s.f_bfree,
        bavail: s.f_bavail,
        files: s.f_files,
        ffree: s.f_ffree,
        bsize: s.f_bsize as u32,
        namelen: s.f_namelen as u32,
        frsize: s.f_frsize as u32,
        magic: s.f_type as u64,
    })
}

/// Every change is written to the disk at once (`FS_SYNC_FL`).
pub const FLAG_SYNC: u32 = rfs::IFlags::SYNC.bits();
/// Nobody may change it (`FS_IMMUTABLE_FL`).
pub const FLAG_IMMUTABLE: u32 = rfs::IFlags::IMMUTABLE.bits();
/// Nobody may but write at its end (`FS_APPEND_FL`).
pub const FLAG_APPEND: u32 = rfs::IFlags::APPEND.bits();
/// Backups leave it out (`FS_NODUMP_FL`).
pub const FLAG_NODUMP: u32 = rfs::IFlags::NODUMP.bits();
/// Its access time stays (`FS_NOATIME_FL`).
pub const FLAG_NOATIME: u32 = rfs::IFlags::NOATIME.bits();
/// Every change of a directory's names is written to the disk at once (`FS_DIRSYNC_FL`).
pub const FLAG_DIRSYNC: u32 = rfs::IFlags::DIRSYNC.bits();

/// Whether nothing can be changed on the mount that holds `fd`.
pub fn is_read_only(fd: impl AsFd) -> io::Result<bool> {
    Ok(rfs::fstatvfs(fd)?.f_flag.contains(rfs::StatVfsMountFlags::RDONLY))
}

/// Inode flags (`FS_IOC_GETFLAGS`).
pub fn get_flags(fd: impl AsFd) -> io::Result<u32> {
    Ok(rfs::ioctl_getflags(fd)?.bits())
}

/// Sets inode flags (`FS_IOC_SETFLAGS`).
pub fn set_flags(fd: impl AsFd, flags: u32) -> io::Result<()> {
    Ok(rfs::ioctl_setflags(fd, rfs::IFlags::from_bits_retain(flags))?)
}

/// As [`open_beneath`], for paths that may be longer than one system call takes.
pub fn open_deep(dir: impl AsFd, path: &[u8], how: Open) -> io::Result<OwnedFd> {
    const AT_ONCE: usize = 4000;
    let mut base: Option<OwnedFd> = None;
    let mut rest = path;
    while let Some(head) = rest.get(..AT_ONCE).filter(|_| rest.len() > AT_ONCE) {
        let Some(cut) = head.iter().rposition(|c| *c == b'/') else { break };
        let (first, second) = rest.split_at(cut);
        let next = match &base {
            Some(at) => open_beneath(at, first, Open::DirPath)?,
            None => open_beneath(dir.as_fd(), first, Open::DirPath)?,
        };
        base = Some(next);
        rest = second.get(1..).unwrap_or_default();
    }
    match &base {
        Some(at) => open_beneath(at, rest, how),
        None => open_beneath(dir, rest, how),
    }
}
