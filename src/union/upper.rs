//! The user layer on disk: its directories, its work directory, its pin ledger.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

use super::marks::{Changed, Marks, Namespace};
use super::moved::Moved;
use super::pins::Pins;
use crate::error::{Doing, Error, Result};
use crate::store::Digest;
use crate::store::desktops::Desktop;
use crate::sys::fs::{self as sys, Open, Rename};
use crate::sys::mount;

/// Directories of the user layer that are kept open.
const OPEN_DIRS: usize = 512;

/// Names in the work directory that this program makes begin so; the rest is not ours.
const TEMPORARY: &str = "#";

/// Names of notes in the work directory about hard-link groups begin so.
const GROUP: &str = "group";

/// A user layer, open for reading and writing.
#[derive(Debug)]
pub struct UserLayer {
    /// The upper directory.
    pub top: Arc<OwnedFd>,
    /// The work directory, in the same file system.
    pub work: OwnedFd,
    /// What its marks are called.
    pub marks: Namespace,
    /// Numbers that went with what the user moved.
    pub moved: Moved,
    aside: OwnedFd,
    dirs: Mutex<LruCache<u64, Arc<OwnedFd>>>,
    counter: AtomicU64,
    /// The host's inode number of the shared whiteout that this program made; 0: none.
    whiteout: AtomicU64,
    /// What keeps the objects that its marks name.
    pub pins: Pins,
    /// Directories on the mount itself: while they are open, nobody unmounts it by mistake.
    _busy: Vec<OwnedFd>,
}

/// Directories of a user layer, open: as they are, and beneath one private clone of their mount with the view's rules
/// for access times, which then hold for bytes that go past the daemon too. One clone, since nothing is moved or linked
/// between two mounts. Where there can be no clone (not root, or they lie on several mounts) they are used as they are.
struct Opened {
    dirs: Vec<OwnedFd>,
    busy: Vec<OwnedFd>,
}

impl Opened {
    /// Opens `paths` with rules for access times (`MOUNT_ATTR_*`).
    fn new(paths: &[&Path], atime: u64) -> Result<Opened> {
        let open = |path: &&Path| sys::open_dir(*path).at("opening", path);
        let plain = paths.iter().map(open).collect::<Result<Vec<_>>>()?;
        // The first two must lie on one mount. The others may be elsewhere: what is moved there can be left where it is.
        for count in (2..=paths.len()).rev() {
            let (Some(together), Some(opened)) = (paths.get(..count), plain.get(..count)) else { break };
            match beneath_clone(together, opened, atime) {
                Ok(Some(mut dirs)) => {
                    let rest = plain.get(count..).unwrap_or_default();
                    for other in rest {
                        dirs.push(other.try_clone().doing("opening the user layer")?);
                    }
                    return Ok(Opened { dirs, busy: plain });
                }
                Ok(None) => {}
                Err(e) => {
                    log::info!("access times follow the user layer's own mount: {}", crate::error::words(&e));
                    break;
                }
            }
        }
        Ok(Opened { dirs: plain, busy: Vec::new() })
    }
}

/// Opens directories beneath a clone of the mount that holds them all; `None` if there is no such mount.
fn beneath_clone(paths: &[&Path], opened: &[OwnedFd], atime: u64) -> io::Result<Option<Vec<OwnedFd>>> {
    use std::os::unix::ffi::OsStrExt;
    let real = paths.iter().map(|p| p.canonicalize()).collect::<io::Result<Vec<PathBuf>>>()?;
    let Some(first) = real.first() else { return Ok(None) };
    let Some(top) = first.ancestors().find(|a| real.iter().all(|p| p.starts_with(a))) else {
        return Ok(None);
    };
    let clone = mount::atime_clone(top, atime)?;
    let mut out = Vec::new();
    for (path, plain) in real.iter().zip(opened) {
        let Ok(rest) = path.strip_prefix(top) else { return Ok(None) };
        let Ok(dir) = sys::open_beneath(&clone, rest.as_os_str().as_bytes(), Open::Dir) else {
            return Ok(None);
        };
        let (a, b) = (sys::stat(&dir)?, sys::stat(plain)?);
        if (a.dev, a.ino) != (b.dev, b.ino) {
            // What is mounted on the way is not in the clone.
            return Ok(None);
        }
        out.push(dir);
    }
    Ok(Some(out))
}

fn three(dirs: Vec<OwnedFd>) -> Result<[OwnedFd; 3]> {
    dirs.try_into().map_err(|_| Error::Failed("the user layer's directories could not be opened".into()))
}

/// Takes a name out of a user layer that no mount has, whole, and then removes it: whoever looks after a crash sees all
/// of it or nothing. `work` is the work directory; the next mount clears what a crash left there.
pub fn discard(dir: impl AsFd, name: &[u8], work: impl AsFd) -> io::Result<()> {
    let away = format!("{TEMPORARY}discarded");
    sys::remove_all_at(&work, away.as_bytes())?;
    sys::take_at(dir, name, &work, away.as_bytes())?;
    sys::remove_all_at(work, away.as_bytes())
}

impl UserLayer {
    /// Opens a desktop's user layer; makes sure that its file system can hold the marks, and clears the work
    /// directory of what an earlier daemon left. `atime`: the rules for access times, as `MOUNT_ATTR_*`.
    pub fn open(desktop: &Desktop, atime: u64) -> Result<UserLayer> {
        let (user, work) = (desktop.user_layer()?, desktop.work_dir()?);
        let aside = desktop.dir().join("set-aside");
        let Opened { dirs, busy } = Opened::new(&[&user, &work, &aside], atime)?;
        let [top, work_fd, aside] = three(dirs)?;
        let (a, b) = (sys::stat(&top).at("reading", &user)?, sys::stat(&work_fd).at("reading", &work)?);
        if a.dev != b.dev {
            return Err(Error::Failed(format!(
                "{} and {} must lie in one file system: files are moved between them",
                user.display(),
                work.display()
            )));
        }
        let moved = Moved::open(&work_fd).at("opening the list of moved numbers in", &work)?;
        let marks = Namespace::for_process();
        let mut state = desktop.state()?;
        state.complete_pending();
        let pins = Pins::open(desktop, state.current.version, &top, marks)?;
        let layer = UserLayer {
            top: Arc::new(top),
            moved,
            work: work_fd,
            marks,
            aside,
            dirs: Mutex::new(LruCache::new(NonZeroUsize::new(OPEN_DIRS).unwrap_or(NonZeroUsize::MIN))),
            counter: AtomicU64::new(0),
            whiteout: AtomicU64::new(0),
            pins,
            _busy: busy,
        };
        layer.prepare(&user, &work)?;
        layer.begin().at("preparing the user layer", &user)?;
        Ok(layer)
    }

    /// Opens an upper directory over plain directories. The work directory is one in `work`, as for the kernel's
    /// overlayfs; beside it lies what stood in the way of something.
    pub fn over_directories(upper: &Path, work: &Path, marks: Namespace, atime: u64) -> Result<UserLayer> {
        use std::os::unix::fs::DirBuilderExt;
        let own = work.join("work");
        let aside = work.join("set-aside");
        for dir in [&own, &aside] {
            match std::fs::DirBuilder::new().mode(0o700).create(dir) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                r => r.at("making", dir)?,
            }
        }
        let Opened { dirs, busy } = Opened::new(&[upper, &own, &aside], atime)?;
        let [top, work, aside] = three(dirs)?;
        let moved = Moved::open(&work).at("opening the list of moved numbers in", &own)?;
        let layer = UserLayer {
            top: Arc::new(top),
            moved,
            work,
            marks,
            aside,
            dirs: Mutex::new(LruCache::new(NonZeroUsize::new(OPEN_DIRS).unwrap_or(NonZeroUsize::MIN))),
            counter: AtomicU64::new(0),
            whiteout: AtomicU64::new(0),
            pins: Pins::default(),
            _busy: busy,
        };
        layer.prepare(upper, &own)?;
        Ok(layer)
    }

    fn prepare(&self, user: &Path, work: &Path) -> Result<()> {
        self.finish_groups().at("finishing a copy-up in", user)?;
        self.clear_work().at("clearing the work directory", work)?;
        self.check_marks(user)
    }

    /// Notes that a hard-link group is being copied up under these paths, so that a crash in between does not
    /// split it. The note goes when all names are there.
    pub fn note_group(&self, paths: &[Vec<u8>]) -> io::Result<Vec<u8>> {
        use std::io::Write;
        let name = [GROUP.as_bytes(), &self.temporary_name()].concat();
        let mut file = sys::create_at(&self.work, &name, 0o600)?;
        for path in paths {
            file.write_all(path)?;
            file.write_all(b"\0")?;
        }
        // A note that was cut off does not end with an empty path.
        file.write_all(b"\0")?;
        Ok(name)
    }

    /// All names of the group are there, or none will be.
    pub fn end_group(&self, note: &[u8]) -> io::Result<()> {
        sys::unlink_at(&self.work, note)
    }

    /// Gives groups whose copy-up was cut off the names that are missing.
    fn finish_groups(&self) -> io::Result<()> {
        use std::io::Read;
        for (note, _) in sys::list(self.work.as_fd())? {
            if !note.starts_with(GROUP.as_bytes()) {
                continue;
            }
            let mut text = Vec::new();
            File::from(sys::open_at(&self.work, &note, Open::Read)?).read_to_end(&mut text)?;
            if let Some(paths) = text.strip_suffix(b"\0\0") {
                let paths: Vec<&[u8]> = paths.split(|c| *c == 0).collect();
                let mut found: Option<OwnedFd> = None;
                let mut missing = Vec::new();
                for path in paths {
                    let at = path.iter().rposition(|c| *c == b'/').map_or(0, |i| i + 1);
                    let (parent, name) = path.split_at(at);
                    // A directory that is not there holds none of the names.
                    let Ok(dir) = sys::open_beneath(&*self.top, parent, Open::DirPath) else { continue };
                    match sys::open_at(&dir, name, Open::Path) {
                        Ok(fd) => found = found.or(Some(fd)),
                        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => missing.push((dir, name)),
                        Err(e) => return Err(e),
                    }
                }
                if let Some(fd) = found {
                    for (dir, name) in missing {
                        sys::link_fd(&fd, &dir, name)?;
                    }
                }
            }
            self.end_group(&note)?;
        }
        Ok(())
    }

    fn clear_work(&self) -> io::Result<()> {
        for (name, _) in sys::list(self.work.as_fd())? {
            if name.starts_with(TEMPORARY.as_bytes()) {
                sys::remove_all_at(&self.work, &name)?;
            }
        }
        Ok(())
    }

    fn check_marks(&self, user: &Path) -> Result<()> {
        let cannot = |what: &str, e: io::Error| {
            Error::Failed(format!(
                "the file system of {} cannot hold a user layer: {what}: {}. Use ext4, XFS, btrfs or tmpfs, or give \
                 another place with `reroot create --user-layer DIR`",
                user.display(),
                crate::error::words(&e)
            ))
        };
        let name = self.temporary_name();
        sys::mkdir_at(&self.work, &name, 0o700).map_err(|e| match e.raw_os_error() {
            Some(libc::EROFS) => Error::Failed(format!(
                "the user layer {} is read-only; mount with -o ro, or make it writable",
                user.display()
            )),
            _ => cannot("a directory cannot be made", e),
        })?;
        let result = (|| {
            let fd = sys::open_at(&self.work, &name, Open::DirPath).map_err(|e| cannot("opening", e))?;
            self.marks.set_own(&fd, "meta", b"").map_err(|e| cannot("extended attributes", e))?;
            let mark = b"whiteout";
            sys::mknod_at(&fd, mark, libc::S_IFCHR, (0, 0)).map_err(|e| cannot("whiteouts", e))
        })();
        let _ = sys::remove_all_at(&self.work, &name);
        result
    }

    /// A user layer that nothing was written into follows the stack in the root's attributes too.
    fn begin(&self) -> io::Result<()> {
        let marks = self.marks.read(&*self.top)?;
        if marks.follows.is_none() && sys::list(self.top.as_fd())?.is_empty() {
            self.marks.set_own(&*self.top, "ino", b"1")?;
            self.marks.set_own(&*self.top, "meta", &Changed::default().encode())?;
        }
        Ok(())
    }

    /// The marks of its top directory.
    pub fn root_marks(&self) -> io::Result<Marks> {
        self.marks.read(&*self.top)
    }

    /// A name in the work directory that is not in use.
    pub fn temporary_name(&self) -> Vec<u8> {
        format!("{TEMPORARY}{}", self.counter.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }

    /// An open directory of the user layer that was kept.
    pub fn kept_dir(&self, id: u64) -> Option<Arc<OwnedFd>> {
        self.dirs.lock().get(&id).cloned()
    }

    /// Keeps a directory open.
    pub fn keep_dir(&self, id: u64, fd: OwnedFd) -> Arc<OwnedFd> {
        let fd = Arc::new(fd);
        self.dirs.lock().put(id, fd.clone());
        fd
    }

    /// The directory is not that of this node any more.
    pub fn drop_dir(&self, id: u64) {
        self.dirs.lock().pop(&id);
    }

    /// Makes a whiteout: a link to a shared one where that is possible.
    pub fn whiteout(&self, dir: impl AsFd, name: &[u8]) -> io::Result<()> {
        const SHARED: &[u8] = b"#whiteout";
        for _ in 0..2 {
            match sys::link_at(&self.work, SHARED, dir.as_fd(), name) {
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                Err(e) if e.raw_os_error() == Some(libc::EMLINK) => {
                    // Its number may be given away once its links are gone.
                    self.whiteout.store(0, Ordering::Relaxed);
                    sys::unlink_at(&self.work, SHARED)?;
                }
                r => return r,
            }
            match sys::mknod_at(&self.work, SHARED, libc::S_IFCHR, (0, 0)) {
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
                Err(e) => return Err(e),
                Ok(()) => self.whiteout.store(sys::stat_at(&self.work, SHARED)?.ino, Ordering::Relaxed),
            }
        }
        sys::mknod_at(dir, name, libc::S_IFCHR, (0, 0))
    }

    /// Whether a directory's entry of that type and inode number is a link to the shared whiteout; one that is not may
    /// be a whiteout all the same.
    pub fn is_shared_whiteout(&self, format: u32, ino: u64) -> bool {
        format == libc::S_IFCHR && ino != 0 && self.whiteout.load(Ordering::Relaxed) == ino
    }

    /// Puts a whiteout in the place of whatever stands at `name`, which is removed; both at once.
    pub fn replace_by_whiteout(&self, dir: impl AsFd, name: &[u8], is_dir: bool) -> io::Result<()> {
        let temporary = self.temporary_name();
        self.whiteout(&self.work, &temporary)?;
        let how = if is_dir { Rename::Exchange } else { Rename::Replace };
        let result = sys::rename_at(&self.work, &temporary, dir, name, how);
        if is_dir || result.is_err() {
            sys::remove_all_at(&self.work, &temporary)?;
        } else {
            // Renaming one link of a file over another of the same file does nothing.
            let _ = sys::unlink_at(&self.work, &temporary);
        }
        result
    }

    /// Removes a directory of the user layer with the marks in it.
    pub fn remove_dir(&self, dir: impl AsFd, name: &[u8]) -> io::Result<()> {
        match sys::rmdir_at(dir.as_fd(), name) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST)) => {}
            r => return r,
        }
        let temporary = self.temporary_name();
        sys::rename_at(dir, name, &self.work, &temporary, Rename::NoReplace)?;
        sys::remove_all_at(&self.work, &temporary)
    }

    /// Moves what stands in the way out of the user layer, into `set-aside/`, under a name made of its path.
    pub fn set_aside(&self, dir: impl AsFd, name: &[u8], path: &[u8]) -> io::Result<()> {
        self.displace(dir, name, path, || Ok(()))
    }

    /// As [`UserLayer::set_aside`], for something that `then` puts in its place: where that fails, it is brought back.
    pub fn displace(
        &self,
        dir: impl AsFd,
        name: &[u8],
        path: &[u8],
        then: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let mut flat: Vec<u8> = path.iter().map(|c| if *c == b'/' { b'%' } else { *c }).collect();
        flat.truncate(180);
        flat.extend_from_slice(
            format!(".{}.{}", sys::Time::now().sec, self.counter.fetch_add(1, Ordering::Relaxed)).as_bytes(),
        );
        let mut home = &self.aside;
        match sys::rename_at(dir.as_fd(), name, home, &flat, Rename::NoReplace) {
            Err(e) if e.raw_os_error() == Some(libc::EXDEV) => {
                // The user layer lies elsewhere: it stays beside it.
                flat = [b"aside-", &flat[..]].concat();
                home = &self.work;
                sys::rename_at(dir.as_fd(), name, home, &flat, Rename::NoReplace)?;
            }
            r => r?,
        }
        let result = then();
        if result.is_err() {
            // Something may stand there all the same; then it stays where it is kept.
            let _ = sys::rename_at(home, &flat, dir, name, Rename::NoReplace);
        }
        result
    }

    /// Notes that a mark is about to be made that needs a version's objects (see [`Pins`]).
    pub fn pin_version(&self, version: Option<Digest>) -> Result<()> {
        version.map_or(Ok(()), |version| self.pins.add(&version))
    }

    /// A new empty file in the work directory.
    pub fn temporary_file(&self) -> io::Result<(Vec<u8>, File)> {
        let name = self.temporary_name();
        let file = sys::create_at(&self.work, &name, 0o600)?;
        Ok((name, file))
    }

    /// Writes all of it to its disk.
    pub fn sync(&self) -> Result<()> {
        self.pins.sync()?;
        sys::sync_fs(&*self.top).doing("writing the user layer to its disk")
    }

    /// The last [`UserLayer::sync`].
    pub fn close(&self) -> Result<()> {
        self.sync()?;
        self.pins.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::desktops::Choice;

    #[test]
    fn what_stood_in_the_way_comes_back_when_nothing_takes_its_place() {
        let dir = std::env::temp_dir().join(format!("reroot-displaced-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let store = Store::open(&dir).unwrap();
        let choice = Choice { version: Digest::of(b""), tag: None };
        let desktop = store.create_desktop("d", "i", choice, None, Default::default()).unwrap();
        let user = desktop.user_layer().unwrap();
        let layer = UserLayer::open(&desktop, 0).unwrap();
        let aside = || std::fs::read_dir(desktop.dir().join("set-aside")).unwrap().count();
        std::fs::write(user.join("a"), "follower").unwrap();
        let full = || Err(io::Error::from_raw_os_error(libc::ENOSPC));
        let failed = layer.displace(&*layer.top, b"a", b"a", full).unwrap_err();
        assert_eq!(failed.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!((std::fs::read(user.join("a")).unwrap(), aside()), (b"follower".to_vec(), 0));
        layer.displace(&*layer.top, b"a", b"a", || std::fs::write(user.join("a"), "new")).unwrap();
        assert_eq!((std::fs::read(user.join("a")).unwrap(), aside()), (b"new".to_vec(), 1));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_hard_link_group_whose_copy_up_was_cut_off_is_whole_after_the_next_open() {
        let dir = std::env::temp_dir().join(format!("reroot-group-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let store = Store::open(&dir).unwrap();
        let choice = Choice { version: Digest::of(b""), tag: None };
        let desktop = store.create_desktop("d", "i", choice, None, Default::default()).unwrap();
        let user = desktop.user_layer().unwrap();
        std::fs::create_dir(user.join("sub")).unwrap();
        {
            let layer = UserLayer::open(&desktop, 0).unwrap();
            let paths = [b"a".to_vec(), b"sub/b".to_vec(), b"gone/c".to_vec()];
            layer.note_group(&paths).unwrap();
            std::fs::write(user.join("sub/b"), "content").unwrap();
            // A note that was cut off says nothing.
            std::fs::write(desktop.work_dir().unwrap().join("group#9"), "a\0x").unwrap();
        }
        UserLayer::open(&desktop, 0).unwrap();
        assert_eq!(std::fs::read(user.join("a")).unwrap(), b"content");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::metadata(user.join("a")).unwrap().nlink(), 2);
        assert_eq!(std::fs::read_dir(desktop.work_dir().unwrap()).unwrap().count(), 0);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
