//! A notification that fuser does not offer: a name that is to be asked for again, without being dropped.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;

/// `FUSE_NOTIFY_INVAL_ENTRY` (linux/fuse.h).
const INVAL_ENTRY: i32 = 3;
/// `FUSE_EXPIRE_ONLY` (since ABI 7.38): the entry's lifetime ends; nothing is dropped.
const EXPIRE_ONLY: u32 = 1;

/// Ends the lifetime of a name in a directory: the kernel looks it up when it is used next. Compared with an
/// invalidation the inode stays, and so do mounts on the name. A name that the kernel does not know is fine.
pub fn expire_entry(device: impl AsFd, parent: u64, name: &[u8]) -> io::Result<()> {
    let too_long = || io::Error::from_raw_os_error(libc::ENAMETOOLONG);
    let namelen = u32::try_from(name.len()).map_err(|_| too_long())?;
    let total = 16 + 16 + namelen + 1;
    let mut head = [0u8; 32];
    let fields: [&[u8]; 6] = [
        &total.to_ne_bytes(),
        &INVAL_ENTRY.to_ne_bytes(),
        &0u64.to_ne_bytes(),
        &parent.to_ne_bytes(),
        &namelen.to_ne_bytes(),
        &EXPIRE_ONLY.to_ne_bytes(),
    ];
    for (to, from) in head.iter_mut().zip(fields.into_iter().flatten()) {
        *to = *from;
    }
    match rustix::io::writev(device, &[IoSlice::new(&head), IoSlice::new(name), IoSlice::new(b"\0")]) {
        Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
