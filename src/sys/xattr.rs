//! Extended attributes of any file, through an `O_PATH` descriptor if need be.
//!
//! The calls that take a descriptor refuse an `O_PATH` one (`EBADF`) before they look at anything; only then the path in
//! `/proc` is walked, which costs several times as much as the call.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{self as rfs, XattrFlags};
use rustix::io::Errno;

use super::fs::proc_path;

/// The largest value that Linux takes, in bytes.
pub const VALUE_MAX: usize = 65536;

fn get_into(fd: impl AsFd, name: &[u8], buffer: &mut [u8]) -> rustix::io::Result<usize> {
    match rfs::fgetxattr(fd.as_fd(), name, &mut *buffer) {
        Err(Errno::BADF) => rfs::getxattr(proc_path(&fd).as_c_str(), name, buffer),
        r => r,
    }
}

fn list_into(fd: impl AsFd, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    match rfs::flistxattr(fd.as_fd(), &mut *buffer) {
        Err(Errno::BADF) => rfs::listxattr(proc_path(&fd).as_c_str(), buffer),
        r => r,
    }
}

/// The value of `name`, or `None` where it is not set or not supported.
pub fn get(fd: impl AsFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut small = [0u8; 256];
    match get_into(&fd, name, &mut small) {
        Ok(n) => return Ok(Some(small.get(..n).unwrap_or_default().to_vec())),
        Err(Errno::NODATA) | Err(Errno::OPNOTSUPP) => return Ok(None),
        Err(Errno::RANGE) => {}
        Err(e) => return Err(e.into()),
    }
    let mut large = vec![0u8; VALUE_MAX];
    match get_into(&fd, name, &mut large) {
        Ok(n) => {
            large.truncate(n);
            Ok(Some(large))
        }
        Err(Errno::NODATA) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The names that are set, in the file system's order; none where xattrs are not supported.
pub fn list(fd: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let mut small = [0u8; 1024];
    // XFS lists ACLs a second time under names of its own.
    let own = |n: &[u8]| n.starts_with(b"trusted.SGI_ACL_");
    let split =
        |b: &[u8]| b.split(|c| *c == 0).filter(|n| !n.is_empty() && !own(n)).map(<[u8]>::to_vec).collect();
    match list_into(&fd, &mut small) {
        Ok(n) => return Ok(split(small.get(..n).unwrap_or_default())),
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(Errno::RANGE) => {}
        Err(e) => return Err(e.into()),
    }
    let mut large = vec![0u8; VALUE_MAX];
    let n = list_into(&fd, &mut large)?;
    Ok(split(large.get(..n).unwrap_or_default()))
}

/// How a value is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Make or replace.
    Any,
    /// `EEXIST` if it is there (`XATTR_CREATE`).
    Create,
    /// `ENODATA` if it is not (`XATTR_REPLACE`).
    Replace,
    /// One of these two errors: both were asked for.
    Both,
}

/// Sets `name` to `value`.
pub fn set(fd: impl AsFd, name: &[u8], value: &[u8], how: Set) -> io::Result<()> {
    let flags = match how {
        Set::Any => XattrFlags::empty(),
        Set::Create => XattrFlags::CREATE,
        Set::Replace => XattrFlags::REPLACE,
        Set::Both => XattrFlags::CREATE | XattrFlags::REPLACE,
    };
    match rfs::fsetxattr(fd.as_fd(), name, value, flags) {
        Err(Errno::BADF) => Ok(rfs::setxattr(proc_path(&fd).as_c_str(), name, value, flags)?),
        r => Ok(r?),
    }
}

/// Removes `name`; `ENODATA` if it is not set.
pub fn remove(fd: impl AsFd, name: &[u8]) -> io::Result<()> {
    match rfs::fremovexattr(fd.as_fd(), name) {
        Err(Errno::BADF) => Ok(rfs::removexattr(proc_path(&fd).as_c_str(), name)?),
        r => Ok(r?),
    }
}
