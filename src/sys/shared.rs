//! Memory that outlives the process that writes it, for as long as somebody holds its descriptor (`memfd_create(2)`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// Numbers in such memory. What is never written takes no space.
#[derive(Debug)]
pub struct Shared {
    map: memmap2::MmapRaw,
    file: OwnedFd,
}

impl Shared {
    /// New memory for that many numbers, all 0.
    pub fn new(words: usize) -> io::Result<Shared> {
        let file = memfd_create("reroot", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, (words * size_of::<AtomicU64>()) as u64)?;
        // Nobody can take pages away from under the mapping.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Shared::of(file)
    }

    /// Memory that another process made.
    pub fn of(file: OwnedFd) -> io::Result<Shared> {
        let seals = rustix::fs::fcntl_get_seals(&file)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let file = File::from(file);
        let map = memmap2::MmapOptions::new().map_raw(&file)?;
        Ok(Shared { map, file: file.into() })
    }

    /// The numbers.
    pub fn words(&self) -> &[AtomicU64] {
        let words = self.map.len() / size_of::<AtomicU64>();
        // SAFETY: the mapping is as long as that, lives as long as `self`, begins at a page and so is aligned, and is never
        // accessed other than through these atomics, here and in whatever other process maps it. The seal keeps its length.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<AtomicU64>(), words) }
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn what_one_mapping_writes_another_one_reads() {
        let a = Shared::new(1 << 20).unwrap();
        let b = Shared::of(a.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(b.words().len(), 1 << 20);
        a.words()[77].store(5, Ordering::Release);
        assert_eq!(b.words()[77].load(Ordering::Acquire), 5);
    }
}
