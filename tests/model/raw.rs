//! Mappings and file handles: system calls that the standard library does not have.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The first page of a file, mapped shared.
#[derive(Debug)]
pub struct Mapping {
    address: *mut libc::c_void,
}

// SAFETY: the mapping belongs to this value alone, and is only reached through system calls.
unsafe impl Send for Mapping {}

const PAGE: usize = 4096;

impl Mapping {
    /// Maps the first page, writable where the handle is.
    pub fn new(file: &File, writable: bool) -> io::Result<Mapping> {
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping at a place of the kernel's choice; nothing else is touched.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), PAGE, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Mapping { address }) }
    }

    /// Reads through the mapping. It is the kernel that touches the page, by way of a pipe, so that one beyond the
    /// end of the file is an error and no signal.
    pub fn read(&self, at: usize, len: usize) -> io::Result<Vec<u8>> {
        let (mut out, into) = pipe()?;
        // SAFETY: within the mapping, which lives as long as `self`.
        let n = unsafe { libc::write(into.as_raw_fd(), self.address.add(at).cast_const(), len) };
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut bytes = vec![0; n as usize];
        out.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes through the mapping, in the same way.
    pub fn write(&self, at: usize, bytes: &[u8]) -> io::Result<()> {
        let (out, mut into) = pipe()?;
        into.write_all(bytes)?;
        // SAFETY: within the mapping, which lives as long as `self`; one that is read-only gives EFAULT.
        let n = unsafe { libc::read(out.as_raw_fd(), self.address.add(at), bytes.len()) };
        if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Brings what was written to the file.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the mapping lives as long as `self`.
        let r = unsafe { libc::msync(self.address, PAGE, libc::MS_SYNC) };
        if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` and unmapped only here.
        unsafe { libc::munmap(self.address, PAGE) };
    }
}

fn pipe() -> io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two descriptors, which become owned at once.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])))
    }
}

/// A file handle, as servers on top of a file system keep them.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; 128],
}

impl Handle {
    /// `name_to_handle_at(2)`; a symbolic link is not followed.
    pub fn of(path: &Path) -> io::Result<Handle> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut handle = Handle { bytes: 128, kind: 0, data: [0; 128] };
        let mut mount = 0i32;
        // SAFETY: `handle` is laid out as `struct file_handle` with room for 128 bytes.
        let r = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                libc::AT_FDCWD,
                path.as_ptr(),
                &raw mut handle,
                &raw mut mount,
                0,
            )
        };
        if r < 0 { Err(io::Error::last_os_error()) } else { Ok(handle) }
    }

    /// `open_by_handle_at(2)`; `mount` is any file of the file system.
    pub fn open(&self, mount: &File, flags: i32) -> io::Result<File> {
        // SAFETY: as above; the descriptor becomes owned at once.
        unsafe {
            let fd = libc::syscall(
                libc::SYS_open_by_handle_at,
                mount.as_raw_fd(),
                &raw const *self,
                flags | libc::O_CLOEXEC,
            );
            if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(File::from_raw_fd(fd as i32)) }
        }
    }
}
