//! File contents, stored once under their digest.
//!
//! An [`Intake`] takes contents in: each is written to a file of its own beneath `objects/.intake-…/` while it
//! is hashed. An intake that ends without [`Intake::finish`] leaves nothing but its directory, which the next one or a
//! collection removes.
//!
//! # Why an object is whole after a power cut
//! 1. All contents of an intake are brought to the disk by one `syncfs`, and only then is one of them given its final
//!    name. So an object that has its name has its bytes, and one that exists need not be looked into again.
//! 2. The names are brought to the disk by a `syncfs` before anything refers to them: layer, version and tag are
//!    written, each with its own fsync, after [`Intake::finish`] has returned. In between an object is one that
//!    nothing needs.
//! 3. An object that was there already may be of somebody who has not come to 2. yet, or was killed before: so 2. is done also
//!    where nothing was new.
//! 4. Where contents come in several intakes, one `syncfs` is enough for the names of all ([`Intake::give_names`],
//!    [`sync_names`]). What is noted of the contents meanwhile is a hint, and whoever uses it looks whether the object
//!    is there.
//!
//! A `syncfs` that fails ends the intake with an error: no name is given. No file has an fsync of its own: it is one
//! flush of the disk for an intake, whatever the number of files.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{Digest, Hasher, Store};
use crate::error::{Doing, Error, Result};
use crate::sys::lock::{self, Lock, Share};
use crate::sys::{fs as sys, publish};

/// Contents on their way into the store.
#[derive(Debug)]
pub struct Intake<'a> {
    store: &'a Store,
    dir: PathBuf,
    _lock: Lock,
    next: AtomicU64,
    pending: Mutex<HashMap<Digest, PathBuf>>,
    new_bytes: AtomicU64,
}

/// Pieces in which contents are read, in bytes.
const PIECE: usize = 256 << 10;

impl<'a> Intake<'a> {
    /// Begins. The caller holds [`Store::in_use`] until what refers to the objects is published.
    pub fn begin(store: &'a Store) -> Result<Intake<'a>> {
        let objects = store.path("objects");
        remove_abandoned(&objects)?;
        let dir = objects.join(format!(".intake{}", publish::temporary_name()));
        let lock_path = lock_of(&dir);
        let lock = lock::wait(&lock_path, Share::Exclusive).at("locking", &lock_path)?;
        fs::create_dir(&dir).at("making", &dir)?;
        Ok(Intake {
            store,
            dir,
            _lock: lock,
            next: AtomicU64::new(0),
            pending: Mutex::default(),
            new_bytes: AtomicU64::new(0),
        })
    }

    /// Whether an object is in the store or in this intake.
    pub fn has(&self, digest: &Digest) -> bool {
        self.pending.lock().contains_key(digest) || self.store.object_path(digest).exists()
    }

    /// Bytes that this intake added and the store did not have.
    pub fn new_bytes(&self) -> u64 {
        self.new_bytes.load(Ordering::Relaxed)
    }

    fn temporary(&self) -> Result<(PathBuf, File)> {
        let path = self.dir.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.at("writing into the store:", &path)?;
        Ok((path, file))
    }

    fn keep(&self, digest: Digest, size: u64, path: PathBuf) -> Result<()> {
        let exists = match self.store.object_path(&digest).metadata() {
            Ok(m) if m.len() == size => true,
            // An object of another length than its content's is damaged; the good copy takes its place.
            Ok(_) | Err(_) => false,
        };
        if exists || self.pending.lock().contains_key(&digest) {
            return fs::remove_file(&path).at("removing", path);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).at("writing into the store:", &path)?;
        self.new_bytes.fetch_add(size, Ordering::Relaxed);
        self.pending.lock().insert(digest, path);
        Ok(())
    }

    /// Takes in all that `reader` gives. `each` hears of every piece's length. An error of `reader` comes
    /// back as the inner result, so that the caller can say what was being read.
    pub fn add_reader(&self, mut reader: impl Read, each: &dyn Fn(u64)) -> Result<io::Result<(Digest, u64)>> {
        let mut buf = vec![0u8; PIECE];
        let mut hasher = Hasher::new();
        let mut size = 0u64;
        let mut filled = 0;
        // A small content is written at the end, if at all.
        let mut out: Option<(PathBuf, File)> = None;
        loop {
            let n = match reader.read(buf.get_mut(filled..).unwrap_or_default()) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Ok(Err(e)),
            };
            filled += n;
            if n > 0 && filled < buf.len() {
                continue;
            }
            let piece = buf.get(..filled).unwrap_or_default();
            hasher.update(piece);
            size += filled as u64;
            each(filled as u64);
            if n > 0 || out.is_some() {
                let (path, file) = match &mut out {
                    Some(o) => o,
                    None => out.insert(self.temporary()?),
                };
                write_sparse(file, piece, size - filled as u64).at("writing into the store:", &*path)?;
                filled = 0;
                if n > 0 {
                    continue;
                }
            }
            break;
        }
        let digest = hasher.finish();
        let path = match out {
            Some((path, file)) => {
                file.set_len(size).at("writing into the store:", &path)?;
                path
            }
            None if self.has(&digest) => return Ok(Ok((digest, size))),
            None => {
                let (path, mut file) = self.temporary()?;
                file.write_all(buf.get(..filled).unwrap_or_default()).at("writing into the store:", &path)?;
                path
            }
        };
        self.keep(digest, size, path)?;
        Ok(Ok((digest, size)))
    }

    /// Takes in a regular file of `size` bytes, keeping its holes, sharing its blocks where the file system
    /// can. Fails with `UnexpectedEof` inside if it has become shorter.
    pub fn add_file(&self, file: &File, size: u64, each: &dyn Fn(u64)) -> Result<io::Result<(Digest, u64)>> {
        if size < PIECE as u64 {
            return self.add_reader(file, each);
        }
        let (path, out) = self.temporary()?;
        let shared = sys::clone_file(&out, file).is_ok();
        let hashed = copy_and_hash(if shared { &out } else { file }, (!shared).then_some(&out), size, each);
        let digest = match hashed {
            Ok(digest) => digest,
            Err(CopyError::Read(e)) => return Ok(Err(e)),
            Err(CopyError::Write(e)) => return Err(e).at("writing into the store:", &path),
        };
        self.keep(digest, size, path)?;
        Ok(Ok((digest, size)))
    }

    /// Writes everything to disk and gives the objects their names, which are on the disk as well.
    pub fn finish(self) -> Result<()> {
        let store = self.store;
        self.give_names()?;
        sync_names(store)
    }

    /// Writes the contents to disk and gives the objects their names, which are on the disk after [`sync_names`].
    pub fn give_names(self) -> Result<()> {
        let pending = std::mem::take(&mut *self.pending.lock());
        if !pending.is_empty() {
            sync_names(self.store)?;
            for (digest, path) in &pending {
                let to = self.store.object_path(digest);
                match fs::rename(path, &to) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {
                        if let Some(fan) = to.parent() {
                            fs::create_dir_all(fan).at("making", fan)?;
                        }
                        fs::rename(path, &to).at("naming the object", &to)?;
                    }
                    r => r.at("naming the object", &to)?,
                }
            }
        }
        Ok(())
    }
}

/// Brings all objects to the disk with their names: before anything that refers to one.
pub fn sync_names(store: &Store) -> Result<()> {
    let objects = store.path("objects");
    let top = sys::open_dir(&objects).at("opening", &objects)?;
    sys::sync_fs(&top).at("writing to disk:", &objects)
}

impl Drop for Intake<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
        let _ = fs::remove_file(lock_of(&self.dir));
    }
}

/// Removes what intakes left behind that ended without [`Intake::finish`]: those whose lock nobody holds.
pub fn remove_abandoned(objects: &Path) -> Result<()> {
    for entry in fs::read_dir(objects).at("reading", objects)?.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with(".intake") || name.ends_with(".lock") {
            continue;
        }
        let lock_path = lock_of(&path);
        if let Ok(Some(_held)) = lock::attempt(&lock_path, Share::Exclusive) {
            // Its owner may be removing it just now, on its way out.
            for removed in [fs::remove_dir_all(&path), fs::remove_file(&lock_path)] {
                match removed {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    r => r.at("removing", &path)?,
                }
            }
        }
    }
    Ok(())
}

/// The lock of an intake's directory: its whole name and `.lock` (the name itself has dots).
fn lock_of(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

fn copy_and_hash(
    from: &File,
    to: Option<&File>,
    size: u64,
    each: &dyn Fn(u64),
) -> std::result::Result<Digest, CopyError> {
    let mut hasher = Hasher::new();
    let mut buf = vec![0u8; PIECE];
    let zeros = vec![0u8; PIECE];
    let mut at = 0u64;
    if let Some(to) = to {
        to.set_len(size).map_err(CopyError::Write)?;
    }
    while at < size {
        let data = sys::seek_extent(from, at, false).map_err(CopyError::Read)?.unwrap_or(size).min(size);
        while at < data {
            let n = (data - at).min(PIECE as u64);
            hasher.update(zeros.get(..n as usize).unwrap_or_default());
            each(n);
            at += n;
        }
        if at >= size {
            break;
        }
        let end =
            sys::seek_extent(from, at, true).map_err(CopyError::Read)?.unwrap_or(size).min(size).max(at + 1);
        while at < end {
            let want = (end - at).min(PIECE as u64) as usize;
            let piece = buf.get_mut(..want).unwrap_or_default();
            from.read_exact_at(piece, at).map_err(CopyError::Read)?;
            hasher.update(piece);
            if let Some(to) = to {
                to.write_all_at(piece, at).map_err(CopyError::Write)?;
            }
            each(want as u64);
            at += want as u64;
        }
    }
    Ok(hasher.finish())
}

/// Writes a piece, leaving whole blocks of zeros as holes; the caller sets the final length.
fn write_sparse(file: &File, piece: &[u8], at: u64) -> io::Result<()> {
    const BLOCK: usize = 4096;
    let mut offset = at;
    for block in piece.chunks(16 * BLOCK) {
        if block.iter().any(|b| *b != 0) {
            file.write_all_at(block, offset)?;
        }
        offset += block.len() as u64;
    }
    Ok(())
}

impl Store {
    /// Opens an object for reading; its length must be what its layer says.
    pub fn open_object(&self, digest: &Digest, size: u64) -> Result<File> {
        let path = self.object_path(digest);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Damaged(format!(
                    "object {digest} is missing; `reroot fsck` lists what needs it"
                )));
            }
            r => r.at("opening the object", &path)?,
        };
        let len = file.metadata().at("reading", &path)?.len();
        if len != size {
            return Err(Error::Damaged(format!("object {digest} has {len} bytes and should have {size}")));
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("reroot-objects-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn a_content_is_stored_once_whatever_way_it_comes_in() {
        let dir = scratch("once");
        let store = Store::open(&dir).unwrap();
        let big: Vec<u8> = (0..1_500_000u32).flat_map(|i| (i % 251).to_le_bytes()).collect();
        for content in [&b""[..], b"small", &big[..PIECE], &big] {
            let source = dir.with_extension("source");
            fs::write(&source, content).unwrap();
            for _ in 0..2 {
                let intake = Intake::begin(&store).unwrap();
                let (a, n) = intake.add_reader(content, &|_| {}).unwrap().unwrap();
                let file = File::open(&source).unwrap();
                let (b, _) = intake.add_file(&file, content.len() as u64, &|_| {}).unwrap().unwrap();
                assert_eq!((a, b, n), (Digest::of(content), a, content.len() as u64));
                intake.finish().unwrap();
                assert_eq!(fs::read(store.object_path(&a)).unwrap(), content);
            }
            fs::remove_file(source).unwrap();
        }
        let left: Vec<_> = fs::read_dir(store.path("objects")).unwrap().flatten().collect();
        assert!(left.iter().all(|e| e.file_name().len() == 2), "{left:?}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn holes_stay_holes() {
        use std::os::unix::fs::MetadataExt;
        let dir = scratch("holes");
        let store = Store::open(&dir).unwrap();
        let source = dir.with_extension("source");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&source).unwrap();
        file.write_all_at(b"end", 32 << 20).unwrap();
        let size = file.metadata().unwrap().len();
        for way in 0..2 {
            let intake = Intake::begin(&store).unwrap();
            let added = if way == 0 {
                intake.add_file(&file, size, &|_| {})
            } else {
                intake.add_reader(File::open(&source).unwrap(), &|_| {})
            };
            let (digest, _) = added.unwrap().unwrap();
            intake.finish().unwrap();
            let meta = fs::metadata(store.object_path(&digest)).unwrap();
            assert_eq!(meta.len(), size);
            assert!(meta.blocks() < 1024, "{} blocks", meta.blocks());
            fs::remove_file(store.object_path(&digest)).unwrap();
        }
        fs::remove_file(source).unwrap();
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn two_intakes_at_once_leave_each_other_alone() {
        let dir = scratch("two");
        let store = Store::open(&dir).unwrap();
        let a = Intake::begin(&store).unwrap();
        let (one, _) = a.add_reader(&b"one"[..], &|_| {}).unwrap().unwrap();
        let b = Intake::begin(&store).unwrap();
        let (two, _) = b.add_reader(&b"two"[..], &|_| {}).unwrap().unwrap();
        b.finish().unwrap();
        let c = Intake::begin(&store).unwrap();
        a.finish().unwrap();
        drop(c);
        assert!(store.object_path(&one).exists() && store.object_path(&two).exists());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn an_intake_that_is_given_up_leaves_no_object() {
        let dir = scratch("given-up");
        let store = Store::open(&dir).unwrap();
        let intake = Intake::begin(&store).unwrap();
        let (digest, _) = intake.add_reader(&b"x"[..], &|_| {}).unwrap().unwrap();
        drop(intake);
        assert!(!store.object_path(&digest).exists());
        assert_eq!(fs::read_dir(store.path("objects")).unwrap().count(), 0);
        fs::remove_dir_all(dir).unwrap();
    }
}
