//! Numbers that went with what the user moved.
//!
//! What is moved or linked keeps its number, and what lies beneath a moved directory too. Where a swap brings back
//! what stood at the old place, that is another file and needs another number: [`Moved`] remembers which. It is a
//! file in the work directory, so that the answer is the same after a remount; it is not fsynced, since a line that
//! is lost costs a number and no content.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use parking_lot::RwLock;

use crate::sys::fs::{self as sys, Open};

/// Its name in the work directory.
pub const NAME: &str = "moved";

/// See the module.
#[derive(Debug)]
pub struct Moved {
    numbers: RwLock<HashSet<u64>>,
}

impl Moved {
    /// Reads the file. Lines that cannot be read were cut off by a crash and are passed over.
    pub fn open(work: impl AsFd) -> io::Result<Moved> {
        let mut text = Vec::new();
        match sys::open_at(work, NAME.as_bytes(), Open::Read) {
            Ok(fd) => drop(File::from(fd).read_to_end(&mut text)?),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => return Err(e),
        }
        let number = |line: &[u8]| u64::from_str_radix(std::str::from_utf8(line).ok()?, 16).ok();
        let numbers = text.split(|c| *c == b'\n').filter(|l| l.len() == 16).filter_map(number).collect();
        Ok(Moved { numbers: RwLock::new(numbers) })
    }

    /// Remembers a number, before what has it is moved. The file is not kept open: a file system with one that is open
    /// for writing cannot be made read-only.
    pub fn add(&self, work: impl AsFd, number: u64) -> io::Result<()> {
        let mut numbers = self.numbers.write();
        if numbers.contains(&number) {
            return Ok(());
        }
        let work = work.as_fd();
        let mut file = match sys::open_at(work, NAME.as_bytes(), Open::Append) {
            Ok(fd) => File::from(fd),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => sys::create_at(work, NAME.as_bytes(), 0o600)?,
            Err(e) => return Err(e),
        };
        // A line of its own, also after one that was cut off.
        file.write_all(format!("\n{number:016x}").as_bytes())?;
        numbers.insert(number);
        Ok(())
    }

    /// Whether something with that number was ever moved.
    pub fn contains(&self, number: u64) -> bool {
        self.numbers.read().contains(&number)
    }

    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.numbers.read().is_empty()
    }
}
