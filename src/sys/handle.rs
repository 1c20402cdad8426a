//! File handles: what leads to a file whatever its name is, as long as it is there (`name_to_handle_at(2)`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// The longest handle, in bytes (`MAX_HANDLE_SZ`).
const LONGEST: usize = 128;

/// The kernel's `struct file_handle`, with room for the longest one.
#[repr(C)]
struct Raw {
    bytes: u32,
    kind: i32,
    handle: [u8; LONGEST],
}

/// The handle of an open file: four bytes of its type, then what its file system says.
pub fn of(fd: impl AsFd) -> io::Result<Vec<u8>> {
    let mut raw = Raw { bytes: LONGEST as u32, kind: 0, handle: [0; LONGEST] };
    let mut mount = 0i32;
    // SAFETY: the descriptor is open, the path is empty and ends with NUL, and `raw` has the room that it says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            std::ptr::from_mut(&mut raw),
            std::ptr::from_mut(&mut mount),
            libc::AT_EMPTY_PATH,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut out = raw.kind.to_ne_bytes().to_vec();
    out.extend_from_slice(raw.handle.get(..raw.bytes as usize).unwrap_or_default());
    Ok(out)
}

/// Opens the file of a handle, for reading and writing. `near` is any open file of its file system. `ESTALE`: it is not
/// there any more. Needs `CAP_DAC_READ_SEARCH`.
pub fn open(near: impl AsFd, handle: &[u8]) -> io::Result<OwnedFd> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let (kind, rest) = handle.split_first_chunk::<4>().ok_or_else(invalid)?;
    let mut raw = Raw { bytes: rest.len() as u32, kind: i32::from_ne_bytes(*kind), handle: [0; LONGEST] };
    raw.handle.get_mut(..rest.len()).ok_or_else(invalid)?.copy_from_slice(rest);
    // SAFETY: the descriptor is open, and `raw` holds as many bytes as it says.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            near.as_fd().as_raw_fd(),
            std::ptr::from_mut(&mut raw),
            libc::O_RDWR | libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NONBLOCK,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
