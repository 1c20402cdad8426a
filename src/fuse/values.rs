//! One value at a time between fuser's types and the view's: errors, times, device numbers, attributes.

use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileType, INodeNo, ReplyEmpty, ReplyXattr, Request, TimeOrNow};

use crate::sys::fs::{SetTime, Time};
use crate::sys::notify::SENT_AGAIN;
use crate::union::attributes::Attributes;
use crate::union::{Answer, Caller, Fail};

pub(super) fn errno(e: Fail) -> Errno {
    Errno::from_i32(e.0)
}

pub(super) fn empty(result: Answer<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    }
}

/// The number of a request when it was sent first.
pub(super) fn first(req: &Request) -> u64 {
    req.unique().0 & !SENT_AGAIN
}

/// Whether an earlier daemon was asked this already, and did not answer.
pub(super) fn is_again(req: &Request) -> bool {
    req.unique().0 & SENT_AGAIN != 0
}

pub(super) fn caller(req: &Request) -> Caller {
    // An id-mapped mount says who asks only where something is made. Whether it is root can be seen elsewhere.
    let hidden = req.uid() == u32::MAX && crate::sys::process::is_roots(req.pid());
    Caller { uid: if hidden { 0 } else { req.uid() }, gid: req.gid(), pid: req.pid() }
}

pub(super) fn kind(format: u32) -> FileType {
    match format {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

pub(super) fn system_time(t: Time) -> SystemTime {
    let whole = Duration::from_secs(t.sec.unsigned_abs());
    let base = if t.sec >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    };
    base.unwrap_or(SystemTime::UNIX_EPOCH) + Duration::from_nanos(u64::from(t.nsec))
}

/// A time of a request. fuser 0.18 makes of the kernel's (seconds, nanoseconds) before 1970 a time that is
/// `-seconds + nanoseconds` before it, where the nanoseconds count forwards: taken apart the same way, it is
/// right again.
pub(super) fn time(t: SystemTime) -> Time {
    match t.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(d) => Time { sec: d.as_secs() as i64, nsec: d.subsec_nanos() },
        Err(e) => Time { sec: -(e.duration().as_secs() as i64), nsec: e.duration().subsec_nanos() },
    }
}

pub(super) fn set_time(t: TimeOrNow) -> SetTime {
    match t {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => SetTime::To(time(t)),
    }
}

/// The kernel's 32-bit form of a device number (`new_encode_dev`).
pub(super) fn encode_rdev((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

pub(super) fn decode_rdev(rdev: u32) -> (u32, u32) {
    ((rdev & 0xf_ff00) >> 8, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00))
}

pub(super) fn attr(a: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(a.ino),
        size: a.size,
        blocks: a.blocks,
        atime: system_time(a.atime),
        mtime: system_time(a.mtime),
        ctime: system_time(a.ctime),
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(a.mode & libc::S_IFMT),
        perm: (a.mode & 0o7777) as u16,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: encode_rdev(a.rdev),
        blksize: a.blksize,
        flags: 0,
    }
}

/// The answer that a name is not there, which the kernel may keep.
pub(super) fn nothing() -> FileAttr {
    let none = Attributes {
        ino: 0,
        size: 0,
        blocks: 0,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        mode: libc::S_IFREG,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: (0, 0),
        blksize: 0,
    };
    attr(&none)
}

pub(super) fn answer_xattr(value: Answer<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match value {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(errno(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_device_numbers_survive_the_translation() {
        for t in [(0, 0), (1, 999_999_999), (i64::from(u32::MAX), 5)] {
            let t = Time { sec: t.0, nsec: t.1 };
            assert_eq!(time(system_time(t)), t);
        }
        let before = |sec: u64, nsec| SystemTime::UNIX_EPOCH - Duration::new(sec, nsec);
        assert_eq!(system_time(Time { sec: -2, nsec: 999_999_999 }), before(1, 1));
        // As fuser 0.18 reads a request's time of -2 s and 999,999,999 ns.
        assert_eq!(time(before(2, 999_999_999)), Time { sec: -2, nsec: 999_999_999 });
        for rdev in [(0, 0), (1, 3), (8, 255), (259, 65_536), (4095, 1_048_575)] {
            assert_eq!(decode_rdev(encode_rdev(rdev)), rdev);
        }
    }
}
