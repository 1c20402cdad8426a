//! The marks of a user layer: what its files say besides being files.
//!
//! The format is that of the kernel's overlayfs (Documentation/filesystems/overlayfs.rst): a character device
//! 0:0 is a whiteout, `trusted.overlay.opaque` = `y` an opaque directory, `trusted.overlay.metacopy` a file
//! without content of its own. Reroot's own facts are in `trusted.reroot.*`:
//!
//! | name | on | value |
//! |---|---|---|
//! | `ino` | what came from a stack, but for a file that follows it and is no hard link there | its node number, hexadecimal |
//! | `meta` | what follows the stack | which attributes the user changed (below) |
//! | `pin` | what the user moved | `object DIGEST SIZE`, or `dir VERSION DIGEST PATH` |
//! | `origin` | copied-up files | `DIGEST PATH` |
//! | `partial` | a file whose content is being copied | `DIGEST SIZE LIMIT` (see [`super::partial`]) |
//! | `times` | a file that is being filled | its access and modification times: `SEC.NSEC SEC.NSEC` |
//! | `rdev` | a character device 0:0 that a user made, kept as an empty file | `c` |
//!
//! `meta` is a list of words separated by NUL: `mode`, `uid`, `gid`, `atime`, `mtime`, and `x` followed by the
//! name of an extended attribute that the user set (it is there) or removed (it is not).
//!
//! Where the daemon is not root, `user.` stands for `trusted.`. Names like these that a user sets inside the
//! view are escaped (`trusted.overlay.overlay.…`), so nobody inside makes a mark. Marks are input: one that
//! cannot be read is an error for its path, never a guess.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;

use super::directories::is_redirect;
use crate::store::Digest;
use crate::sys::fs::{self as sys, Open, Stat, Time};
use crate::sys::xattr;

/// Which attributes of something that follows the stack are the user's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Permission bits.
    pub mode: bool,
    /// Owner.
    pub uid: bool,
    /// Group.
    pub gid: bool,
    /// Access time.
    pub atime: bool,
    /// Modification time.
    pub mtime: bool,
    /// Extended attributes, by their name in the view.
    pub xattrs: BTreeSet<Vec<u8>>,
}

impl Changed {
    /// Everything but extended attributes.
    pub fn basics() -> Changed {
        Changed { mode: true, uid: true, gid: true, atime: true, mtime: true, xattrs: BTreeSet::new() }
    }

    /// The mark's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut words: Vec<&[u8]> = Vec::new();
        for (is, word) in [
            (self.mode, &b"mode"[..]),
            (self.uid, b"uid"),
            (self.gid, b"gid"),
            (self.atime, b"atime"),
            (self.mtime, b"mtime"),
        ] {
            if is {
                words.push(word);
            }
        }
        let mut out = words.join(&0);
        for name in &self.xattrs {
            if !out.is_empty() {
                out.push(0);
            }
            out.push(b'x');
            out.extend_from_slice(name);
        }
        out
    }

    /// Reads the mark's value.
    pub fn decode(value: &[u8]) -> Option<Changed> {
        let mut out = Changed::default();
        for word in value.split(|c| *c == 0).filter(|w| !w.is_empty()) {
            match word {
                b"mode" => out.mode = true,
                b"uid" => out.uid = true,
                b"gid" => out.gid = true,
                b"atime" => out.atime = true,
                b"mtime" => out.mtime = true,
                [b'x', name @ ..] if !name.is_empty() => {
                    out.xattrs.insert(name.to_vec());
                }
                _ => return None,
            }
        }
        Some(out)
    }

    /// Adds what `other` holds; whether that was more.
    pub fn join(&mut self, other: &Changed) -> bool {
        let before = self.clone();
        self.mode |= other.mode;
        self.uid |= other.uid;
        self.gid |= other.gid;
        self.atime |= other.atime;
        self.mtime |= other.mtime;
        self.xattrs.extend(other.xattrs.iter().cloned());
        *self != before
    }
}

/// What something that the user moved stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinMark {
    /// A file's content.
    Object(Digest, u64),
    /// A directory of a version: the version, the directory's digest there, its path there.
    Dir(Digest, Digest, Vec<u8>),
    /// Over plain directories, in the format of overlayfs (`redirect`): a path from their root that begins with `/`,
    /// or a name in the same directory of theirs. Empty: its own name.
    Below(Vec<u8>),
}

impl PinMark {
    /// Whether something of that type can stand on it.
    pub fn fits(&self, format: u32) -> bool {
        match self {
            PinMark::Object(..) => format == libc::S_IFREG,
            PinMark::Dir(..) => format == libc::S_IFDIR,
            PinMark::Below(_) => matches!(format, libc::S_IFDIR | libc::S_IFREG),
        }
    }

    /// The mark's value.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            PinMark::Object(digest, size) => format!("object {digest} {size}").into_bytes(),
            PinMark::Dir(version, digest, path) => {
                let mut out = format!("dir {version} {digest} ").into_bytes();
                out.extend_from_slice(path);
                out
            }
            PinMark::Below(to) => to.clone(),
        }
    }

    /// Reads the mark's value.
    pub fn decode(value: &[u8]) -> Option<PinMark> {
        let mut words = value.splitn(4, |c| *c == b' ');
        let kind = words.next()?;
        let digest = |w: Option<&[u8]>| std::str::from_utf8(w?).ok()?.parse::<Digest>().ok();
        let first = digest(words.next())?;
        match kind {
            b"object" => {
                let size = std::str::from_utf8(words.next()?)
                    .ok()?
                    .parse()
                    .ok()
                    .filter(|n| *n <= i64::MAX as u64)?;
                words.next().is_none().then_some(PinMark::Object(first, size))
            }
            b"dir" => Some(PinMark::Dir(first, digest(words.next())?, words.next()?.to_vec())),
            _ => None,
        }
    }
}

/// What a file's content is being copied from, of which its holes below `limit` are still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// The object.
    pub object: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Where it ends to count: above this, holes are holes.
    pub limit: u64,
}

impl Partial {
    /// The mark's value.
    pub fn encode(&self) -> Vec<u8> {
        format!("{} {} {}", self.object, self.size, self.limit).into_bytes()
    }

    /// Reads the mark's value.
    pub fn decode(value: &[u8]) -> Option<Partial> {
        let mut words = std::str::from_utf8(value).ok()?.split(' ');
        let object = words.next()?.parse().ok()?;
        let mut number = || words.next()?.parse::<u64>().ok();
        let (size, limit) = (number()?, number()?);
        (words.next().is_none() && limit <= size && size <= i64::MAX as u64).then_some(Partial {
            object,
            size,
            limit,
        })
    }
}

/// The marks of one entry of the user layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The node number that it had in the stack.
    pub number: Option<u64>,
    /// It follows the stack in everything but these.
    pub follows: Option<Changed>,
    /// What it stands on, moved by the user.
    pub pin: Option<PinMark>,
    /// Nothing below is seen in it.
    pub opaque: bool,
    /// It stands for a character device 0:0.
    pub null_device: bool,
    /// It has no content of its own.
    pub metacopy: bool,
    /// Its access and modification times, while it is being filled: those of the file on disk are of the filling.
    pub times: Option<(Time, Time)>,
    /// Its content is not all there yet.
    pub partial: Option<Partial>,
    /// The default ACL that it has on disk.
    pub default_acl: Option<Vec<u8>>,
}

/// What the user layer holds at a name.
#[allow(clippy::large_enum_variant)] // Looked at and dropped; never kept.
#[derive(Clone, Debug)]
pub enum Found {
    /// The mark that nothing is there.
    Whiteout,
    /// A file or directory.
    Entry(Stat, Marks),
}

/// The names of the marks, for root or for an ordinary user.
#[derive(Clone, Copy, Debug)]
pub struct Namespace {
    prefix: &'static str,
    /// Plain directories lie below: `redirect` and `metacopy` of the overlay format say what something stands on.
    plain: bool,
}

/// A default ACL's attribute.
pub const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// An access ACL's attribute.
pub const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

impl Namespace {
    /// `trusted.` for root, `user.` for others.
    pub fn for_process() -> Namespace {
        Namespace { prefix: if crate::sys::process::is_root() { "trusted." } else { "user." }, plain: false }
    }

    /// Over plain directories; for ordinary users, and on request (overlayfs's `userxattr`), it is `user.`.
    pub fn over_directories(user_xattr: bool) -> Namespace {
        let prefix = if user_xattr || !crate::sys::process::is_root() { "user." } else { "trusted." };
        Namespace { prefix, plain: true }
    }

    /// What is brought up without a change goes on following the stack, swaps and all; over plain directories it is
    /// complete.
    pub fn follow(&self) -> Option<Changed> {
        (!self.plain).then(Changed::default)
    }

    /// The full name of one of Reroot's marks.
    pub fn own(&self, name: &str) -> Vec<u8> {
        format!("{}reroot.{name}", self.prefix).into_bytes()
    }

    /// The full name of one of the overlay format's marks.
    pub fn overlay(&self, name: &str) -> Vec<u8> {
        format!("{}overlay.{name}", self.prefix).into_bytes()
    }

    /// How an attribute that the view shows as `name` is called on disk.
    pub fn escape(&self, name: &[u8]) -> Vec<u8> {
        for family in ["overlay.", "reroot."] {
            if let Some(rest) =
                name.strip_prefix(self.prefix.as_bytes()).and_then(|n| n.strip_prefix(family.as_bytes()))
            {
                return [self.prefix.as_bytes(), family.as_bytes(), family.as_bytes(), rest].concat();
            }
        }
        name.to_vec()
    }

    /// How an attribute that is called `name` on disk is shown; `None` for a mark.
    pub fn unescape(&self, name: &[u8]) -> Option<Vec<u8>> {
        for family in ["overlay.", "reroot."] {
            if let Some(rest) =
                name.strip_prefix(self.prefix.as_bytes()).and_then(|n| n.strip_prefix(family.as_bytes()))
            {
                let inner = rest.strip_prefix(family.as_bytes())?;
                return Some([self.prefix.as_bytes(), family.as_bytes(), inner].concat());
            }
        }
        Some(name.to_vec())
    }

    /// Looks at `name` in a directory of the user layer.
    pub fn probe(&self, dir: impl AsFd, name: &[u8]) -> io::Result<Option<Found>> {
        let stat = match sys::stat_at(dir.as_fd(), name) {
            Ok(stat) => stat,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(e) => return Err(e),
        };
        if stat.is_whiteout() {
            return Ok(Some(Found::Whiteout));
        }
        let fd = match sys::open_at(dir, name, Open::Path) {
            Ok(fd) => fd,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(e) => return Err(e),
        };
        let stat = sys::stat(&fd)?;
        if stat.is_file() && stat.size == 0 && xattr::get(&fd, &self.overlay("whiteout"))?.is_some() {
            return Ok(Some(Found::Whiteout));
        }
        let mut marks = self.read(&fd)?;
        if self.plain && !stat.is_dir() && !marks.metacopy {
            // Only a file without content stands on another.
            marks.pin = None;
        }
        Ok(Some(Found::Entry(stat, marks)))
    }

    /// Reads the marks of an open file.
    pub fn read(&self, fd: impl AsFd) -> io::Result<Marks> {
        let mut out = Marks::default();
        let mut redirect = None;
        for name in xattr::list(fd.as_fd())? {
            let value = || Ok::<_, io::Error>(xattr::get(fd.as_fd(), &name)?.unwrap_or_default());
            if name == DEFAULT_ACL {
                out.default_acl = Some(value()?);
                continue;
            }
            let Some(rest) = name.strip_prefix(self.prefix.as_bytes()) else { continue };
            match rest {
                b"overlay.opaque" => out.opaque = value()? == b"y",
                b"overlay.metacopy" => out.metacopy = true,
                b"overlay.redirect" if self.plain => {
                    let to = value()?;
                    redirect = Some(Some(to).filter(|t| is_redirect(t)).ok_or_else(|| damaged("redirect"))?);
                }
                b"reroot.rdev" => out.null_device = true,
                b"reroot.ino" => {
                    let number =
                        std::str::from_utf8(&value()?).ok().and_then(|t| u64::from_str_radix(t, 16).ok());
                    let fits = number.filter(|n| (1..crate::layer::encode::NUMBER_LIMIT).contains(n));
                    out.number = Some(fits.ok_or_else(|| damaged("ino"))?);
                }
                // Over plain directories others change attributes too: what is on disk is what is shown.
                b"reroot.meta" if !self.plain => {
                    out.follows = Some(Changed::decode(&value()?).ok_or_else(|| damaged("meta"))?)
                }
                // These two come and go while a file is being copied: one that was listed may be gone already.
                b"reroot.partial" if !self.plain => out.partial = self.partial(fd.as_fd())?,
                b"reroot.times" => out.times = self.times(fd.as_fd())?,
                b"reroot.pin" => out.pin = Some(PinMark::decode(&value()?).ok_or_else(|| damaged("pin"))?),
                _ => {}
            }
        }
        if self.plain {
            let on_its_own_name = out.metacopy.then(Vec::new);
            out.pin = redirect.or(on_its_own_name).map(PinMark::Below);
        }
        if out.pin.is_some() || out.follows.is_some() {
            // It was about to become a file that is being copied, and is as before.
            out.partial = None;
        } else if out.partial.is_none() {
            // The filling was done, and only this mark was not taken away any more: the file has its own times.
            out.times = None;
        }
        Ok(out)
    }

    /// The mark of a file whose content is being copied.
    pub fn partial(&self, fd: impl AsFd) -> io::Result<Option<Partial>> {
        let Some(value) = xattr::get(fd, &self.own("partial"))? else { return Ok(None) };
        Partial::decode(&value).ok_or_else(|| damaged("partial")).map(Some)
    }

    /// The times that a file has which is being filled.
    pub fn times(&self, fd: impl AsFd) -> io::Result<Option<(Time, Time)>> {
        let Some(value) = xattr::get(fd, &self.own("times"))? else { return Ok(None) };
        decode_times(&value).ok_or_else(|| damaged("times")).map(Some)
    }

    /// Sets the mark that says what something stands on.
    pub fn set_pin(&self, fd: impl AsFd, mark: &PinMark) -> io::Result<()> {
        match mark {
            PinMark::Below(to) if to.is_empty() => Ok(()),
            PinMark::Below(_) => self.set_overlay(fd, "redirect", &mark.encode()),
            _ => self.set_own(fd, "pin", &mark.encode()),
        }
    }

    /// Removes it.
    pub fn clear_pin(&self, fd: impl AsFd) -> io::Result<()> {
        if self.plain {
            self.clear(fd.as_fd(), &self.overlay("redirect"))?;
        }
        self.clear(fd, &self.own("pin"))
    }

    /// Sets a mark of Reroot's own.
    pub fn set_own(&self, fd: impl AsFd, name: &str, value: &[u8]) -> io::Result<()> {
        xattr::set(fd, &self.own(name), value, xattr::Set::Any)
    }

    /// Sets a mark of the overlay format.
    pub fn set_overlay(&self, fd: impl AsFd, name: &str, value: &[u8]) -> io::Result<()> {
        xattr::set(fd, &self.overlay(name), value, xattr::Set::Any)
    }

    /// Removes a mark; one that is not there is fine.
    pub fn clear(&self, fd: impl AsFd, full_name: &[u8]) -> io::Result<()> {
        match xattr::remove(fd, full_name) {
            Err(e) if e.raw_os_error() == Some(libc::ENODATA) => Ok(()),
            r => r,
        }
    }
}

/// The value of the mark `times`.
pub fn encode_times((atime, mtime): (Time, Time)) -> Vec<u8> {
    format!("{}.{} {}.{}", atime.sec, atime.nsec, mtime.sec, mtime.nsec).into_bytes()
}

fn decode_times(value: &[u8]) -> Option<(Time, Time)> {
    let time = |text: &str| {
        let (sec, nsec) = text.split_once('.')?;
        Some(Time { sec: sec.parse().ok()?, nsec: nsec.parse().ok().filter(|n| *n < 1_000_000_000)? })
    };
    let (atime, mtime) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    Some((time(atime)?, time(mtime)?))
}

fn damaged(mark: &str) -> io::Error {
    log::error!("a mark of the user layer ({mark}) cannot be read");
    io::Error::from_raw_os_error(libc::EUCLEAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_read_back_as_they_were_written() {
        let mut changed = Changed { mode: true, mtime: true, ..Changed::default() };
        changed.xattrs.insert(b"user.x".to_vec());
        for c in [Changed::default(), Changed::basics(), changed] {
            assert_eq!(Changed::decode(&c.encode()), Some(c));
        }
        let d = Digest::of(b"x");
        for pin in
            [PinMark::Object(d, 7), PinMark::Dir(d, d, b"a b/c".to_vec()), PinMark::Dir(d, d, Vec::new())]
        {
            assert_eq!(PinMark::decode(&pin.encode()), Some(pin));
        }
        let partial = Partial { object: d, size: 9, limit: 7 };
        assert_eq!(Partial::decode(&partial.encode()), Some(partial));
        for bad in ["", "x 1 1", "7 9", "7 8 9", "9 10", "-1 0", "9 7 ", "9223372036854775808 1"] {
            assert_eq!(Partial::decode(format!("{d} {bad}").as_bytes()), None, "{bad}");
        }
        let times = (Time { sec: -5, nsec: 999_999_999 }, Time { sec: 7, nsec: 1 });
        assert_eq!(decode_times(&encode_times(times)), Some(times));
        assert_eq!(decode_times(b"1.2 3.1000000000"), None);
        assert_eq!(PinMark::decode(b"object x 1"), None);
        assert_eq!(PinMark::decode(format!("object {d} {}", u64::MAX).as_bytes()), None);
        assert_eq!(Changed::decode(b"mood"), None);
    }

    #[test]
    fn a_name_set_inside_never_is_a_mark() {
        let ns = Namespace { prefix: "trusted.", plain: false };
        for name in
            ["trusted.overlay.opaque", "trusted.overlay.overlay.opaque", "trusted.reroot.pin", "user.x"]
        {
            let on_disk = ns.escape(name.as_bytes());
            assert_eq!(ns.unescape(&on_disk).as_deref(), Some(name.as_bytes()));
            assert!(name == "user.x" || on_disk != name.as_bytes());
        }
        assert_eq!(ns.unescape(b"trusted.overlay.opaque"), None);
        assert_eq!(ns.unescape(b"trusted.reroot.ino"), None);
    }
}
