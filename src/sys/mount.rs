//! Mounting: FUSE, private read-only clones, and what is mounted where.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount as rm;

/// What `mount_setattr(2)` changes: bits of `MOUNT_ATTR_*`, and the user name space of an id-mapped mount.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

fn set_attributes(mount: impl AsFd, set: u64, propagation: u64, userns: Option<&OwnedFd>) -> io::Result<()> {
    // The atime modes exclude each other: setting one asks for the others to be cleared.
    let clear = if set & libc::MOUNT_ATTR__ATIME != 0 { libc::MOUNT_ATTR__ATIME } else { 0 };
    change_attributes(mount, set, clear, propagation, userns)
}

fn change_attributes(
    mount: impl AsFd,
    set: u64,
    clear: u64,
    propagation: u64,
    userns: Option<&OwnedFd>,
) -> io::Result<()> {
    let userns_fd = userns.map_or(0, |fd| fd.as_raw_fd() as u64);
    let attr = MountAttr { set, clear, propagation, userns_fd };
    // SAFETY: the pointer leads to a live structure of exactly the size that is passed; the empty path with
    // AT_EMPTY_PATH names the descriptor itself.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A private clone of the mount that holds `path`, read-only and without atime, whatever the mount itself
/// is: a descriptor of the same directory beneath which the kernel refuses every write
/// (`open_tree(2)` with `OPEN_TREE_CLONE`, `mount_setattr(2)`). Needs `CAP_SYS_ADMIN`.
pub fn read_only_clone(path: &Path) -> io::Result<OwnedFd> {
    let tree =
        rm::open_tree(CWD, path, rm::OpenTreeFlags::OPEN_TREE_CLONE | rm::OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    // Private: what is mounted beneath the path later, this program's own mount for one, does not appear in the clone.
    set_attributes(&tree, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOATIME, libc::MS_PRIVATE, None)?;
    Ok(tree)
}

/// A private clone of the mount that holds `path` under which access times move by the rules in `attributes`
/// (`MOUNT_ATTR_NOATIME`, `_STRICTATIME`, `_NODIRATIME`; without one, relatime), whatever those of the mount itself
/// are. Nothing that is mounted beneath `path` is in it. Needs `CAP_SYS_ADMIN`.
pub fn atime_clone(path: &Path, attributes: u64) -> io::Result<OwnedFd> {
    let rules = libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_NODIRATIME;
    let tree =
        rm::open_tree(CWD, path, rm::OpenTreeFlags::OPEN_TREE_CLONE | rm::OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    change_attributes(&tree, attributes & rules, rules, libc::MS_PRIVATE, None)?;
    Ok(tree)
}

/// How a FUSE file system is mounted by root.
#[derive(Clone, Debug, Default)]
pub struct FuseMount {
    /// The source as it stands in the mount table.
    pub source: String,
    /// The subtype: the mount table shows `fuse.SUBTYPE`; without one, plain `fuse`.
    pub subtype: Option<String>,
    /// Others than the mounter may use it.
    pub allow_other: bool,
    /// The kernel checks permission bits.
    pub default_permissions: bool,
    /// `MOUNT_ATTR_*` of the mount.
    pub attributes: u64,
    /// The whole file system is read-only.
    pub read_only: bool,
}

/// Makes a FUSE mount for who is not root, through the set-uid program `fusermount3`, and attaches it: the connection to
/// the kernel, which has not greeted yet. The error's text is that program's where it says something.
pub fn fuse_by_fusermount(point: &Path, options: &str) -> io::Result<OwnedFd> {
    let (ours, theirs) = super::pass::pair()?;
    // It sends the descriptor over the socket whose number the variable names.
    fusermount(
        Command::new("fusermount3")
            .args(["-o", options, "--"])
            .arg(point)
            .env("_FUSE_COMMFD", "0")
            .stdin(theirs),
    )?;
    match super::pass::receive(&ours)? {
        Some((_, Some(device))) => Ok(device),
        _ => Err(io::Error::other("fusermount3 gave no connection to the kernel")),
    }
}

/// Unmounts a FUSE mount as who is not root; `lazy` detaches what is in use.
pub fn unmount_by_fusermount(point: &Path, lazy: bool) -> io::Result<()> {
    fusermount(Command::new("fusermount3").args([if lazy { "-uz" } else { "-u" }, "--"]).arg(point))
}

fn fusermount(command: &mut Command) -> io::Result<()> {
    let done = command.output()?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().to_string();
    Err(io::Error::other(if said.is_empty() { format!("fusermount3: {}", done.status) } else { said }))
}

/// Whether a FUSE device has a request that nobody took yet. Does not wait.
pub fn has_request(device: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(device, PollFlags::IN)];
    // An error is as good as a request: reading tells it.
    poll(&mut fds, Some(&Timespec::default())).map_or(true, |n| n > 0)
}

/// Whether the kernel has ended a FUSE connection: what it was for is unmounted.
pub fn has_ended(device: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(device, PollFlags::empty())];
    let found = poll(&mut fds, Some(&Timespec::default()));
    found.is_ok_and(|n| n > 0) && fds.iter().any(|fd| fd.revents().contains(PollFlags::ERR))
}

/// A FUSE file system that exists but is not attached anywhere yet.
#[derive(Debug)]
pub struct Detached(OwnedFd);

/// Makes the file system and its mount without attaching it (`fsopen(2)`, `fsmount(2)`); gives the
/// connection to the kernel, and the mount.
pub fn fuse_detached(how: &FuseMount) -> io::Result<(OwnedFd, Detached)> {
    let device = rustix::fs::open(c"/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let context = rm::fsopen(c"fuse", rm::FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &str| rm::fsconfig_set_string(&context, key, value);
    set("source", &how.source)?;
    if let Some(subtype) = &how.subtype {
        set("subtype", subtype)?;
    }
    set("fd", &device.as_raw_fd().to_string())?;
    set("rootmode", "40000")?;
    set("user_id", &super::process::uid().to_string())?;
    set("group_id", &super::process::gid().to_string())?;
    if how.allow_other {
        rm::fsconfig_set_flag(&context, "allow_other")?;
    }
    if how.default_permissions {
        rm::fsconfig_set_flag(&context, "default_permissions")?;
    }
    if how.read_only {
        rm::fsconfig_set_flag(&context, "ro")?;
    }
    rm::fsconfig_create(&context)?;
    let attributes = rm::MountAttrFlags::from_bits_retain(how.attributes as u32);
    let mount = rm::fsmount(&context, rm::FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    Ok((device, Detached(mount)))
}

impl Detached {
    /// Maps owners by a user name space (`MOUNT_ATTR_IDMAP`); must come before [`Detached::attach`].
    pub fn map_ids(&self, userns: &OwnedFd) -> io::Result<()> {
        set_attributes(&self.0, libc::MOUNT_ATTR_IDMAP, 0, Some(userns))
    }

    /// Attaches the mount to a directory.
    pub fn attach(self, to: &Path) -> io::Result<()> {
        let flags = rm::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(rm::move_mount(&self.0, c"", CWD, to, flags)?)
    }
}

/// A line of the mount table (`proc(5)`, mountinfo).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountLine {
    /// Device number of the file system.
    pub dev: (u32, u32),
    /// Where it is attached.
    pub point: PathBuf,
    /// Type, with the subtype after a dot.
    pub fstype: String,
    /// Source as given at mount.
    pub source: String,
}

/// Whether paths are those of the first process.
static AS_THE_FIRST: AtomicBool = AtomicBool::new(false);

/// From now on [`table`] has the mounts as the machine's first process sees them: for one whose own root directory is
/// another, which sees none but those beneath that.
pub fn see_as_the_first_process() {
    AS_THE_FIRST.store(true, Ordering::Relaxed);
}

/// What is mounted in this process's name space, in mount order.
pub fn table() -> io::Result<Vec<MountLine>> {
    let whose = if AS_THE_FIRST.load(Ordering::Relaxed) { "1" } else { "self" };
    let text = std::fs::read_to_string(format!("/proc/{whose}/mountinfo"))?;
    Ok(text.lines().filter_map(parse_line).collect())
}

/// The device number of what is mounted at a place, topmost.
pub fn device_at(point: &Path) -> Option<(u32, u32)> {
    table().ok()?.into_iter().rev().find(|line| line.point == point).map(|line| line.dev)
}

/// Whether the file system of that device number is mounted at a place, be it beneath others.
pub fn is_at(point: &Path, dev: (u32, u32)) -> bool {
    table().is_ok_and(|table| table.iter().any(|line| line.point == point && line.dev == dev))
}

/// What is mounted at and beneath `point` does not go on to other places, and can be moved.
pub fn make_private(point: &Path) -> io::Result<()> {
    let flags = rm::MountPropagationFlags::PRIVATE | rm::MountPropagationFlags::REC;
    Ok(rm::mount_change(point, flags)?)
}

/// Moves a mount, with what is mounted beneath it, to another place.
pub fn relocate(from: &Path, to: &Path) -> io::Result<()> {
    Ok(rm::mount_move(from, to)?)
}

/// Mounts a directory, without what is mounted beneath it, at a second place.
pub fn bind(from: &Path, to: &Path) -> io::Result<()> {
    Ok(rm::mount_bind(from, to)?)
}

/// Mounts a `/proc`.
pub fn process_table(point: &Path) -> io::Result<()> {
    let flags = rm::MountFlags::NOSUID | rm::MountFlags::NODEV | rm::MountFlags::NOEXEC;
    Ok(rm::mount("proc", point, "proc", flags, None)?)
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&c, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match (c, octal) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                out.push(c);
                rest = tail;
            }
        }
    }
    out
}

fn parse_line(line: &str) -> Option<MountLine> {
    use std::os::unix::ffi::OsStringExt;
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ').skip(2);
    let (major, minor) = fields.next()?.split_once(':')?;
    let point = fields.nth(1)?;
    let mut kind = right.split(' ');
    Some(MountLine {
        dev: (major.parse().ok()?, minor.parse().ok()?),
        point: PathBuf::from(std::ffi::OsString::from_vec(unescape(point))),
        fstype: kind.next()?.to_string(),
        source: String::from_utf8_lossy(&unescape(kind.next()?)).into_owned(),
    })
}

/// Detaches the mount at `point`: at once if `lazy`, else only when nothing uses it (`EBUSY`).
/// A symbolic link at the end of `point` is not followed.
pub fn unmount(point: &Path, lazy: bool) -> io::Result<()> {
    let mut flags = rm::UnmountFlags::NOFOLLOW;
    if lazy {
        flags |= rm::UnmountFlags::DETACH;
    }
    Ok(rm::unmount(point, flags)?)
}

/// Sets the flags of a mount and of its file system to `MOUNT_ATTR_*` (`mount(2)` with `MS_REMOUNT`).
pub fn remount(point: &Path, attributes: u64) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let mut flags = libc::MS_REMOUNT;
    for (attribute, flag) in [
        (libc::MOUNT_ATTR_RDONLY, libc::MS_RDONLY),
        (libc::MOUNT_ATTR_NOSUID, libc::MS_NOSUID),
        (libc::MOUNT_ATTR_NODEV, libc::MS_NODEV),
        (libc::MOUNT_ATTR_NOEXEC, libc::MS_NOEXEC),
        (libc::MOUNT_ATTR_NOATIME, libc::MS_NOATIME),
        (libc::MOUNT_ATTR_STRICTATIME, libc::MS_STRICTATIME),
        (libc::MOUNT_ATTR_NODIRATIME, libc::MS_NODIRATIME),
    ] {
        if attributes & attribute != 0 {
            flags |= flag;
        }
    }
    if attributes & libc::MOUNT_ATTR__ATIME == 0 {
        flags |= libc::MS_RELATIME;
    }
    let point = CString::new(point.as_os_str().as_bytes())?;
    // SAFETY: the path is a NUL-terminated string that lives through the call; a remount takes no source, and FUSE
    // takes no data.
    let r =
        unsafe { libc::mount(std::ptr::null(), point.as_ptr(), std::ptr::null(), flags, std::ptr::null()) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether nobody serves the FUSE mount at `point` any more. Asked with `statfs(2)`, which the kernel never answers
/// from what it remembers, as it does `stat(2)`.
pub fn is_dead(point: &Path) -> bool {
    use rustix::io::Errno;
    matches!(rustix::fs::statfs(point), Err(Errno::NOTCONN | Errno::CONNABORTED))
}

/// A user name space that maps ids of the file system to ids of the view: for id-mapped mounts.
/// Each range is (first id on disk, first id in the view, how many).
pub fn user_namespace(uids: &[(u32, u32, u32)], gids: &[(u32, u32, u32)]) -> io::Result<OwnedFd> {
    let mut child = std::process::Command::new("/proc/self/exe")
        .arg("hold-user-namespace")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let result = (|| {
        use std::io::Read;
        let mut ready = [0u8; 1];
        let out = child.stdout.as_mut().ok_or_else(|| io::Error::other("no pipe"))?;
        out.read_exact(&mut ready)?;
        let pid = child.id();
        let text = |ranges: &[(u32, u32, u32)]| {
            ranges.iter().map(|(a, b, n)| format!("{a} {b} {n}\n")).collect::<String>()
        };
        std::fs::write(format!("/proc/{pid}/uid_map"), text(uids))?;
        std::fs::write(format!("/proc/{pid}/gid_map"), text(gids))?;
        let path = CString::new(format!("/proc/{pid}/ns/user")).unwrap_or_default();
        Ok(rustix::fs::open(path.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    })();
    drop(child.stdin.take());
    let _ = child.wait();
    result
}

/// The other side of [`user_namespace`]: enters a new user name space, says so on standard output, and
/// waits until standard input ends.
pub fn hold_user_namespace() -> io::Result<()> {
    use std::io::{Read, Write};
    // SAFETY: unshare of the user name space changes nothing that Rust relies on; the process is
    // single-threaded here and does nothing else afterwards.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER) } != 0 {
        return Err(io::Error::last_os_error());
    }
    io::stdout().write_all(b"1")?;
    io::stdout().flush()?;
    let _ = io::stdin().read(&mut [0u8; 1]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_table_line_is_read_with_its_escapes() {
        let line =
            "36 35 98:0 /mnt1 /mnt\\040two rw,noatime master:1 - fuse.reroot src\\134x rw,errors=continue";
        let read = parse_line(line).unwrap();
        assert_eq!(read.dev, (98, 0));
        assert_eq!(read.point, PathBuf::from("/mnt two"));
        assert_eq!(read.fstype, "fuse.reroot");
        assert_eq!(read.source, "src\\x");
    }
}
