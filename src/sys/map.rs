//! A file mapped for reading.

use std::fs::File;
use std::io;
use std::ops::Deref;

/// The bytes of a whole file, mapped. Meant for files that are written once and published by rename: one
/// that somebody truncates under the map ends the process (`SIGBUS`), which no bounds check can prevent.
#[derive(Debug)]
pub struct Map(memmap2::Mmap);

impl Map {
    /// Maps the whole of `file`.
    pub fn of(file: &File) -> io::Result<Map> {
        // SAFETY: the mapping is private and read-only. Files mapped here are written once and never changed
        // in place (the store's rule), so the bytes do not change under the borrow.
        let map = unsafe { memmap2::MmapOptions::new().map(file)? };
        Ok(Map(map))
    }
}

impl Deref for Map {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
