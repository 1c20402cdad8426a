//! What was hashed once: the digests of a source directory's files by what `statx` says of them.
//!
//! One text file a source, `cache/hashed-<digest of the source's path>`: a heading, then a line a file. It is a
//! hint only. An entry is used where device, inode number, length and both times are the same and the object is
//! in the store with that length. A file whose inode changed less than two seconds before it was read is not
//! noted: a change within the clock's grain could not be told. What is damaged or missing is hashed again.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::error::{Doing, Result};
use crate::store::{Digest, Store};
use crate::sys::fs::{Stat, Time};
use crate::sys::publish::publish_with;

const HEADING: &str = "reroot hashed 1";

/// What must be the same for a file to count as unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    dev: (u32, u32),
    ino: u64,
    size: u64,
    mtime: Time,
    ctime: Time,
}

impl Key {
    fn of(stat: &Stat) -> Key {
        Key { dev: stat.dev, ino: stat.ino, size: stat.size, mtime: stat.mtime, ctime: stat.ctime }
    }
}

/// The notes on one source.
#[derive(Debug)]
pub(super) struct Hashed {
    path: PathBuf,
    known: Mutex<HashMap<Key, Digest>>,
    seen: Mutex<HashMap<Key, Digest>>,
}

impl Hashed {
    /// Reads the notes on the source at the canonical path `source`.
    pub(super) fn open(store: &Store, source: &Path) -> Hashed {
        let name = Digest::of(source.as_os_str().as_encoded_bytes()).hex();
        let path = store.path("cache").join(format!("hashed-{name}"));
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut lines = text.lines();
        let fits = lines.next() == Some(HEADING);
        let known = lines.take_while(|_| fits).filter_map(read_line).collect();
        Hashed { path, known: Mutex::new(known), seen: Mutex::default() }
    }

    /// The digest of a file that was hashed before and whose object is there.
    pub(super) fn get(&self, store: &Store, stat: &Stat) -> Option<Digest> {
        let key = Key::of(stat);
        let digest = *self.known.lock().get(&key)?;
        let object = fs::metadata(store.object_path(&digest)).ok()?;
        if object.len() != stat.size {
            return None;
        }
        self.seen.lock().insert(key, digest);
        Some(digest)
    }

    /// Notes the digest of a file that was read from `began` on.
    pub(super) fn note(&self, stat: &Stat, digest: Digest, began: Time) {
        if stat.ctime.sec.max(stat.mtime.sec) + 2 < began.sec {
            self.seen.lock().insert(Key::of(stat), digest);
        }
    }

    /// Writes the notes: with `all`, also those of files that were not met (yet).
    pub(super) fn save(&self, all: bool) -> Result<()> {
        let mut lines: HashMap<Key, Digest> = if all { self.known.lock().clone() } else { HashMap::new() };
        lines.extend(self.seen.lock().iter().map(|(k, d)| (*k, *d)));
        publish_with(&self.path, |file| {
            use std::io::Write;
            let mut out = std::io::BufWriter::new(file);
            writeln!(out, "{HEADING}")?;
            for (k, d) in &lines {
                let (m, c) = (k.mtime, k.ctime);
                write!(out, "{} {} {} {} ", k.dev.0, k.dev.1, k.ino, k.size)?;
                writeln!(out, "{} {} {} {} {}", m.sec, m.nsec, c.sec, c.nsec, d.hex())?;
            }
            out.flush()
        })
        .at("writing", &self.path)
    }
}

fn read_line(line: &str) -> Option<(Key, Digest)> {
    let mut words = line.split(' ');
    let key = Key {
        dev: (words.next()?.parse().ok()?, words.next()?.parse().ok()?),
        ino: words.next()?.parse().ok()?,
        size: words.next()?.parse().ok()?,
        mtime: Time { sec: words.next()?.parse().ok()?, nsec: words.next()?.parse().ok()? },
        ctime: Time { sec: words.next()?.parse().ok()?, nsec: words.next()?.parse().ok()? },
    };
    Some((key, Digest::from_hex(words.next()?)?))
}
