//! Calls that no library here wraps in safe Rust.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn done(r: libc::c_long) -> io::Result<libc::c_long> {
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}

/// A shared mapping of a file, for reading and writing.
pub fn map(file: &File, len: usize) -> io::Result<memmap2::MmapRaw> {
    memmap2::MmapOptions::new().len(len).map_raw(file)
}

/// Writes into a mapping.
pub fn store(map: &memmap2::MmapRaw, at: usize, bytes: &[u8]) {
    assert!(at + bytes.len() <= map.len());
    // SAFETY: the range lies in the mapping, and no reference to its bytes exists; the file is not shortened meanwhile.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), map.as_mut_ptr().add(at), bytes.len()) }
}

/// Reads from a mapping.
pub fn load(map: &memmap2::MmapRaw, at: usize, len: usize) -> Vec<u8> {
    assert!(at + len <= map.len());
    let mut out = vec![0; len];
    // SAFETY: as in `store`.
    unsafe { std::ptr::copy_nonoverlapping(map.as_ptr().add(at), out.as_mut_ptr(), len) }
    out
}

/// A file handle as `name_to_handle_at(2)` gives it.
#[repr(C)]
#[derive(Clone)]
pub struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; 128],
}

/// The handle of a path; a symbolic link's own.
pub fn handle_of(path: &Path) -> io::Result<Handle> {
    let mut handle = Handle { bytes: 128, kind: 0, data: [0; 128] };
    let mut mount = 0i32;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the structure has room for as many bytes as it says, and all pointers are live.
    done(unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            name.as_ptr(),
            &raw mut handle,
            &raw mut mount,
            0,
        )
    })?;
    Ok(handle)
}

/// Opens what a handle stands for.
pub fn open_handle(mount: &File, handle: &Handle, flags: i32) -> io::Result<File> {
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: the handle is one that the kernel filled in.
    let fd = done(unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), std::ptr::from_ref(handle), flags)
    })?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { File::from_raw_fd(fd as i32) })
}

/// From now on this thread has a umask (and a working directory) of its own.
pub fn own_umask(mask: u32) {
    // SAFETY: descriptors and memory stay shared; only the umask, root and working directory become the thread's own.
    unsafe {
        done(libc::unshare(libc::CLONE_FS).into()).expect("a umask of the thread's own");
        libc::umask(mask);
    }
}

/// Sets or asks a lock of an open file description (`F_OFD_*`); for a question, the type that would stand in the way.
pub fn ofd_lock(file: impl AsFd, command: i32, kind: i32, start: i64, len: i64) -> io::Result<i32> {
    // SAFETY: a flock structure of zeros is valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    (lock.l_start, lock.l_len) = (start, len);
    // SAFETY: the commands that are passed here take a pointer to a live flock structure.
    let r = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, &raw mut lock) };
    done(r.into())?;
    Ok(i32::from(lock.l_type))
}

/// `linkat(2)` with `AT_EMPTY_PATH`: a name for an open file.
pub fn name_open_file(file: impl AsFd, new: &Path) -> io::Result<()> {
    let name = std::ffi::CString::new(new.as_os_str().as_bytes())?;
    // SAFETY: both strings end with NUL and live.
    let r = unsafe {
        libc::linkat(
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            name.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    done(r.into()).map(drop)
}

/// `fallocate(2)` with any mode bits.
pub fn fallocate(file: &File, mode: i32, at: i64, len: i64) -> io::Result<()> {
    // SAFETY: takes numbers only.
    done(unsafe { libc::fallocate(file.as_raw_fd(), mode, at, len) }.into()).map(drop)
}

/// An open directory stream with its positions.
pub struct Stream(*mut libc::DIR);

impl Stream {
    /// Opens a directory.
    pub fn open(path: &Path) -> io::Result<Stream> {
        let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: the string ends with NUL and lives.
        let stream = unsafe { libc::opendir(name.as_ptr()) };
        if stream.is_null() { Err(io::Error::last_os_error()) } else { Ok(Stream(stream)) }
    }

    /// The next name and the position after it.
    pub fn next(&mut self) -> io::Result<Option<(Vec<u8>, i64)>> {
        // SAFETY: the stream is open; the entry is copied before the next call.
        unsafe {
            *libc::__errno_location() = 0;
            let entry = libc::readdir64(self.0);
            if entry.is_null() {
                let e = io::Error::last_os_error();
                return if e.raw_os_error() == Some(0) { Ok(None) } else { Err(e) };
            }
            let name = std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_bytes().to_vec();
            Ok(Some((name, libc::telldir(self.0))))
        }
    }

    /// Goes back to a position.
    pub fn seek(&mut self, at: i64) {
        // SAFETY: the stream is open, and the position one that it gave.
        unsafe { libc::seekdir(self.0, at) }
    }

    /// To the begin, as if opened anew.
    pub fn rewind(&mut self) {
        // SAFETY: the stream is open.
        unsafe { libc::rewinddir(self.0) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, closed once.
        unsafe { libc::closedir(self.0) };
    }
}

/// `truncate(2)`.
pub fn truncate(path: &std::ffi::CStr, len: i64) -> io::Result<()> {
    // SAFETY: the string ends with NUL and lives.
    done(unsafe { libc::truncate(path.as_ptr(), len) }.into()).map(drop)
}
