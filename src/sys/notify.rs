//! What fuser does not offer of the kernel's FUSE device: a name that is to be asked for again, without being dropped;
//! requests that are to be sent again; and the end of a registered file of which only the number is known.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};

/// `FUSE_NOTIFY_INVAL_ENTRY` (linux/fuse.h).
const INVAL_ENTRY: i32 = 3;
/// `FUSE_NOTIFY_RESEND` (since ABI 7.40).
const RESEND: i32 = 7;
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

/// What was read from the device and never answered comes again, with [`SENT_AGAIN`] in its number. To be called while
/// nobody serves a request: what is being served would come twice.
pub fn send_again(device: impl AsFd) -> io::Result<()> {
    let mut head = [0u8; 16];
    let fields: [&[u8]; 2] = [&16u32.to_ne_bytes(), &RESEND.to_ne_bytes()];
    for (to, from) in head.iter_mut().zip(fields.into_iter().flatten()) {
        *to = *from;
    }
    rustix::io::write(device, &head)?;
    Ok(())
}

/// The first protocol version of the kernel's whose [`send_again`] does something.
pub const SENDS_AGAIN: (u32, u32) = (7, 40);

/// Answers a request with an error, by its number; `false` where it was answered already.
pub fn fail(device: impl AsFd, request: u64, error: i32) -> io::Result<bool> {
    let mut head = [0u8; 16];
    let fields: [&[u8]; 3] = [&16u32.to_ne_bytes(), &(-error).to_ne_bytes(), &request.to_ne_bytes()];
    for (to, from) in head.iter_mut().zip(fields.into_iter().flatten()) {
        *to = *from;
    }
    match rustix::io::write(device, &head) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// `FUSE_UNIQUE_RESEND`: the bit of a request's number that says so.
pub const SENT_AGAIN: u64 = 1 << 63;

/// Ends the registration of a file whose bytes go past the daemon (`FUSE_DEV_IOC_BACKING_CLOSE`).
pub fn close_backing(device: impl AsFd, id: u32) -> io::Result<()> {
    /// `_IOW(229, 2, uint32_t)`.
    const CLOSE: libc::c_ulong = 0x4004_e502;
    // SAFETY: the call reads four bytes from a pointer to a live number of that size.
    let r = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), CLOSE, &raw const id) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How fuser makes a value of the number of a registered file.
pub type Wrap<R, B> = unsafe fn(&R, u32) -> B;

/// Makes fuser's value of the number of a registered file, which fuser calls unsafe since the value ends the registration
/// when it is dropped: whoever calls this gives the number away.
pub fn take_over<R, B>(wrap: Wrap<R, B>, reply: &R, id: u32) -> B {
    // SAFETY: what is at stake is who ends the registration, which is the value alone from now on; no memory depends on it,
    // and the kernel checks each number that it is given.
    unsafe { wrap(reply, id) }
}
