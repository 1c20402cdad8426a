//! Mounts of plain directories, in the option syntax of the kernel's overlayfs and of `fuse-overlayfs`.
//!
//! Such a mount belongs to no store. It is listed in a directory that lives as long as the machine runs, and while it
//! can be written it holds a lock in its work directory, so that no other takes the same upper directory.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::options::parse_ranges;
use super::{Layers, MountOptions, MountRequest, Subject, control};
use crate::error::{Doing, Error, Result};
use crate::store::Store;
use crate::sys::fs as sys;
use crate::sys::lock::{self, Lock, Share};
use crate::union::directories::LAYERS_MAX;

/// How long a mount waits for one of the same work directory that is on its way out.
const ENDING: Duration = Duration::from_secs(20);
/// How long one that let go of its work directory may take to let go of the rest.
const LETTING_GO: Duration = Duration::from_secs(2);

/// Where mounts of plain directories are listed.
pub fn registry() -> Result<Store> {
    Store::mounts_only(&control::runtime_dir()?.join("overlay"))
}

/// Where a mount is listed: in its store, or in [`registry`].
pub fn home(request: &MountRequest) -> Result<Store> {
    match &request.subject {
        Subject::Directories(_) => registry(),
        _ => Store::open(&request.store),
    }
}

/// What `-o` says of a mount of plain directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayOptions {
    /// The directories.
    pub layers: Layers,
    /// What is said of every mount.
    pub mount: MountOptions,
    /// The running mount is to be changed (`remount`).
    pub remount: bool,
    /// Options that were passed over, and why, for whoever gave them.
    pub warnings: Vec<String>,
}

/// Splits at a character that no backslash escapes.
fn split(text: &str, at: char) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == at {
            out.push(String::new());
        } else if let Some(last) = out.last_mut() {
            last.push(c);
            if c == '\\' {
                last.extend(chars.next());
            }
        }
    }
    out
}

/// Takes the backslashes away that escape a character.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    out
}

/// Ranges as `fuse-overlayfs` takes them: triples of first on disk, first in the view and how many, all joined with `:`.
fn triples(word: &str, text: &str) -> Result<Vec<(u32, u32, u32)>> {
    let numbers: Vec<&str> = text.split(':').filter(|n| !n.is_empty()).collect();
    let ranges: Vec<String> = numbers.chunks(3).map(|c| c.join(":")).collect();
    parse_ranges(word, &ranges.join("+"))
}

impl OverlayOptions {
    /// Reads a list as it stands after `-o`; later words win, `lowerdir+=` adds. Relative paths begin in the working
    /// directory. Whether the directories can be used together is said by [`check`].
    pub fn parse(list: &str) -> Result<OverlayOptions> {
        let mut out = OverlayOptions {
            layers: Layers::default(),
            mount: MountOptions::default(),
            remount: false,
            warnings: Vec::new(),
        };
        let (mut upper, mut work) = (None, None);
        for word in split(list, ',').iter().filter(|w| !w.is_empty()) {
            match word.split_once('=') {
                Some(("lowerdir", dirs)) => {
                    out.layers.lower = split(dirs, ':').iter().map(|d| PathBuf::from(unescape(d))).collect();
                }
                Some(("lowerdir+", dir)) => out.layers.lower.push(PathBuf::from(unescape(dir))),
                Some(("upperdir", dir)) => upper = Some(PathBuf::from(unescape(dir))),
                Some(("workdir", dir)) => work = Some(PathBuf::from(unescape(dir))),
                Some(("uidmapping", ranges)) => out.mount.uid_map = triples(word, ranges)?,
                Some(("gidmapping", ranges)) => out.mount.gid_map = triples(word, ranges)?,
                _ => out.word(word)?,
            }
        }
        out.layers.upper = match (upper, work) {
            (Some(upper), Some(work)) => Some((upper, work)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(Error::Usage(
                    "upperdir= needs workdir=, an empty directory in the same file system".into(),
                ));
            }
            (None, Some(_)) => {
                out.warnings.push("workdir= is passed over: without upperdir= nothing can be changed".into());
                None
            }
        };
        if out.layers.lower.is_empty() && !out.remount {
            return Err(Error::Usage(
                "lowerdir= is missing: give one directory or several, joined with ':'".into(),
            ));
        }
        Ok(out)
    }

    fn word(&mut self, word: &str) -> Result<()> {
        let refuse = |why: &str| Err(Error::Usage(format!("the option {word:?} cannot be kept: {why}")));
        match word {
            "remount" => self.remount = true,
            "userxattr" => self.layers.user_xattr = true,
            "metacopy=on" => self.layers.metacopy = true,
            "metacopy=off" => self.layers.metacopy = false,
            "oci_whiteouts" => self.layers.oci_whiteouts = true,
            // What is done in any case.
            "redirect_dir=on"
            | "redirect_dir=follow"
            | "index=on"
            | "xino=on"
            | "xino=auto"
            | "noxattrs=0"
            | "xattr_permissions=0"
            | "async"
            | "dev"
            | "suid"
            | "exec"
            | "silent"
            | "loud" => {}
            _ if word.starts_with("squash_to_") => {
                return refuse("owners are shown as they are, or mapped by uidmapping=");
            }
            _ if word.starts_with("xattr_permissions=") => {
                return refuse("modes and owners are those of the files");
            }
            _ if word.starts_with("context=") || word.ends_with("context=") => {
                return refuse("security labels are those of the files");
            }
            "noxattrs" | "noxattrs=1" => return refuse("extended attributes are always carried"),
            // What the mount table shows of a FUSE mount and `mount -o remount` repeats.
            _ if ["user_id=", "group_id=", "rootmode=", "fd=", "max_read="]
                .iter()
                .any(|o| word.starts_with(o)) => {}
            "sync" | "dirsync" | "fsync=1" => {
                let why = "what was written is on disk after fsync(2), and every 5 seconds";
                self.warnings.push(format!("{word} is passed over: {why}"));
            }
            _ => {
                // What changes nothing that a program sees but the time that things take.
                const PASSED_OVER: [&str; 22] = [
                    "volatile",
                    "noacl",
                    "static_nlink",
                    "threaded",
                    "timeout",
                    "clone_fd",
                    "fsync",
                    "redirect_dir",
                    "index",
                    "xino",
                    "nfs_export",
                    "verity",
                    "uuid",
                    "max_idle_threads",
                    "max_threads",
                    "plugins",
                    "debug",
                    "big_writes",
                    "allow_root",
                    "lazytime",
                    "nolazytime",
                    "subtype",
                ];
                let name = word.split('=').next().unwrap_or_default();
                if PASSED_OVER.contains(&name) {
                    self.warnings.push(format!("{word} is passed over: it changes nothing here"));
                } else {
                    self.mount.set(word)?;
                }
            }
        }
        Ok(())
    }
}

/// A directory as it is found: absolute, without symbolic links.
fn real(what: &str, path: &Path) -> Result<PathBuf> {
    let wrong = |why: String| Error::Usage(format!("{what}={}: {why}", path.display()));
    let found = path.canonicalize().map_err(|e| wrong(crate::error::words(&e)))?;
    if !found.is_dir() {
        return Err(wrong("not a directory".into()));
    }
    if found.to_str().is_none() {
        return Err(wrong("the path is not UTF-8".into()));
    }
    Ok(found)
}

fn within(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// Finds the directories and refuses those that cannot be used together: what is written in one must not be seen in
/// another.
pub fn check(layers: &Layers) -> Result<Layers> {
    let lower = layers.lower.iter().map(|p| real("lowerdir", p)).collect::<Result<Vec<_>>>()?;
    if lower.len() > LAYERS_MAX {
        return Err(Error::Usage(format!(
            "there are {} lower directories, and {LAYERS_MAX} is the most",
            lower.len()
        )));
    }
    for (i, a) in lower.iter().enumerate() {
        for b in lower.iter().skip(i + 1) {
            if a == b {
                return Err(Error::Usage(format!("lowerdir: {} is given twice", a.display())));
            }
            if within(a, b) {
                return Err(Error::Usage(format!(
                    "lowerdir: {} and {} lie within each other",
                    a.display(),
                    b.display()
                )));
            }
        }
    }
    let upper = match &layers.upper {
        None => None,
        Some((upper, work)) => {
            let (upper, work) = (real("upperdir", upper)?, real("workdir", work)?);
            let mut pairs = vec![("upperdir", &upper, "workdir", &work)];
            pairs.extend(lower.iter().map(|l| ("upperdir", &upper, "lowerdir", l)));
            pairs.extend(lower.iter().map(|l| ("workdir", &work, "lowerdir", l)));
            for (a, one, b, other) in pairs {
                if within(one, other) {
                    let how = if one == other { "are the same directory" } else { "lie within each other" };
                    return Err(Error::Usage(format!(
                        "{a}={} and {b}={} {how}",
                        one.display(),
                        other.display()
                    )));
                }
            }
            let device = |path: &Path| -> Result<(u32, u32)> {
                let fd = sys::open_dir(path).at("opening", path)?;
                Ok(sys::stat(fd).at("reading", path)?.dev)
            };
            if device(&upper)? != device(&work)? {
                return Err(Error::Usage(format!(
                    "upperdir={} and workdir={} must lie in one file system: files are moved between them",
                    upper.display(),
                    work.display()
                )));
            }
            Some((upper, work))
        }
    };
    Ok(Layers { lower, upper, ..layers.clone() })
}

/// Whether nothing can be changed in a directory, since it is mounted so.
pub fn is_read_only(dir: &Path) -> Result<bool> {
    sys::is_read_only(sys::open_dir(dir).at("opening", dir)?).at("reading", dir)
}

/// Holds the work directory for one mount. One that was just unmounted still brings its writes to the disk: it is
/// waited for.
pub fn claim_work(work: &Path) -> Result<Lock> {
    let path = work.join("lock");
    let began = Instant::now();
    loop {
        match lock::attempt(&path, Share::Exclusive) {
            Ok(Some(lock)) => return Ok(lock),
            Ok(None) if began.elapsed() < ENDING && !holder_is_mounted(work) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(None) => {
                return Err(Error::Failed(format!(
                    "workdir={} is in use by another mount; unmount that first, or give another upperdir and workdir",
                    work.display()
                )));
            }
            Err(e) => return Err(e).at("locking", &path),
        }
    }
}

/// Holds the directory of a user layer itself, whatever it is named and whoever mounts it: two views of one would not
/// see each other's changes. A daemon that is just ending still holds it for a moment.
pub fn claim_upper(dir: &Path, what: &str) -> Result<Lock> {
    let began = Instant::now();
    loop {
        match lock::attempt_dir(dir, Share::Exclusive).at("locking", dir)? {
            Some(lock) => return Ok(lock),
            None if began.elapsed() < LETTING_GO => std::thread::sleep(Duration::from_millis(5)),
            None => {
                return Err(Error::Failed(format!(
                    "{what}: {} is in use by another mount; unmount that first, or take another directory",
                    dir.display()
                )));
            }
        }
    }
}

/// Whether a mount that is there says that it has this work directory.
fn holder_is_mounted(work: &Path) -> bool {
    let holder = std::fs::read_to_string(work.join("mounted-at")).unwrap_or_default();
    let table = crate::sys::mount::table().unwrap_or_default();
    table.iter().any(|l| l.point.as_os_str() == holder.as_str() && l.fstype.starts_with("fuse"))
}

/// Notes where the mount that holds a work directory stands.
pub fn note_mount_point(work: &Path, point: &Path) -> Result<()> {
    let path = work.join("mounted-at");
    let mut file = std::fs::File::options();
    let file = file.write(true).create(true).truncate(true).mode(0o600).open(&path);
    file.and_then(|mut f| f.write_all(point.as_os_str().as_bytes())).at("writing", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_overlayfs_writes_them() {
        let o =
            OverlayOptions::parse(r"rw,lowerdir=/a\:b:c\,d:e\\f,upperdir=/u\,p,workdir=/w,volatile,noatime")
                .unwrap();
        assert_eq!(o.layers.lower, [Path::new("/a:b"), Path::new("c,d"), Path::new(r"e\f")]);
        assert_eq!(o.layers.upper, Some(("/u,p".into(), "/w".into())));
        assert!(o.mount.noatime && o.warnings.len() == 1);
        let o = OverlayOptions::parse("lowerdir+=/a,lowerdir+=/b:c,uidmapping=:0:1000:1:1:2000:5,fsname=x")
            .unwrap();
        assert_eq!(o.layers.lower, [Path::new("/a"), Path::new("/b:c")]);
        assert_eq!(o.mount.uid_map, [(0, 1000, 1), (1, 2000, 5)]);
        assert_eq!(o.mount.source.as_deref(), Some("x"));
        for wrong in [
            "",
            "upperdir=/u,lowerdir=/l",
            "lowerdir=/l,squash_to_root",
            "lowerdir=/l,bogus",
            "lowerdir=/l,uidmapping=1:2",
        ] {
            assert!(OverlayOptions::parse(wrong).is_err(), "{wrong}");
        }
        assert!(OverlayOptions::parse("remount,ro").unwrap().remount);
    }
}
