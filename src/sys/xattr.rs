//! Extended attributes of any file, through an `O_PATH` descriptor if need be.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{self as rfs, XattrFlags};

use super::fs::proc_path;

/// The largest value that Linux takes, in bytes.
pub const VALUE_MAX: usize = 65536;

/// The value of `name`, or `None` where it is not set or not supported.
pub fn get(fd: impl AsFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let path = proc_path(&fd);
    let mut small = [0u8; 256];
    match rfs::getxattr(path.as_c_str(), name, &mut small[..]) {
        Ok(n) => return Ok(Some(small.get(..n).unwrap_or_default().to_vec())),
        Err(rustix::io::Errno::NODATA) | Err(rustix::io::Errno::OPNOTSUPP) => return Ok(None),
        Err(rustix::io::Errno::RANGE) => {}
        Err(e) => return Err(e.into()),
    }
    let mut large = vec![0u8; VALUE_MAX];
    match rfs::getxattr(path.as_c_str(), name, &mut large[..]) {
        Ok(n) => {
            large.truncate(n);
            Ok(Some(large))
        }
        Err(rustix::io::Errno::NODATA) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The names that are set, in the file system's order; none where xattrs are not supported.
pub fn list(fd: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let path = proc_path(&fd);
    let mut small = [0u8; 1024];
    // XFS lists ACLs a second time under names of its own.
    let own = |n: &[u8]| n.starts_with(b"trusted.SGI_ACL_");
    let split =
        |b: &[u8]| b.split(|c| *c == 0).filter(|n| !n.is_empty() && !own(n)).map(<[u8]>::to_vec).collect();
    match rfs::listxattr(path.as_c_str(), &mut small[..]) {
        Ok(n) => return Ok(split(small.get(..n).unwrap_or_default())),
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(rustix::io::Errno::RANGE) => {}
        Err(e) => return Err(e.into()),
    }
    let mut large = vec![0u8; VALUE_MAX];
    let n = rfs::listxattr(path.as_c_str(), &mut large[..])?;
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
    Ok(rfs::setxattr(proc_path(&fd).as_c_str(), name, value, flags)?)
}

/// Removes `name`; `ENODATA` if it is not set.
pub fn remove(fd: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(rfs::removexattr(proc_path(&fd).as_c_str(), name)?)
}
