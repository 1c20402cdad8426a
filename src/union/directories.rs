//! Plain directories as a stack of layers, read on demand as they are.
//!
//! The merge is that of the kernel's overlayfs (Documentation/filesystems/overlayfs.rst): directories of one name
//! merge down to one that is opaque, anything else hides what lies below. Honoured are whiteouts (a character device
//! 0:0; in a directory that is marked `opaque` = `x` also an empty file marked `whiteout`), `opaque` = `y`,
//! `redirect` and `metacopy`, and where asked for the `.wh.` names of OCI layers.
//!
//! Every path is opened beneath a private read-only clone of its layer's mount: no symbolic link and no `..` leads out,
//! nothing that is mounted later is entered, and the kernel refuses every write.
//!
//! Node numbers are made of the layer, counted from below, and the inode number there. They stay over remounts, no two
//! files share one, and hard links within a layer are one inode. They lead back to a path by an index of the layer,
//! which is made when the first number is asked for that nobody remembers. While a view is mounted its layers must
//! not be changed by others.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use super::attributes::Attributes;
use super::lower::Child;
use super::marks::Namespace;
use crate::error::{Error, Result};
use crate::layer::model::join;
use crate::sys::fs::{self as sys, Open, Stat};
use crate::sys::{mount, xattr};

/// As many as the kernel's overlayfs takes, and as the numbers have room for.
pub const LAYERS_MAX: usize = 500;
/// Bits of a node number that hold the inode number; the layer is above them.
const INODE_BITS: u32 = 52;
/// OCI's whiteouts begin so.
const OCI: &[u8] = b".wh.";
/// OCI's mark that a directory is opaque.
const OCI_OPAQUE: &[u8] = b".wh..wh..opq";

type Links = HashMap<u64, Vec<Box<[u8]>>>;

#[derive(Debug)]
struct Layer {
    top: OwnedFd,
    dev: (u32, u32),
    /// The paths of each inode that has several.
    links: OnceLock<Links>,
    /// One path of every inode.
    paths: OnceLock<HashMap<u64, Box<[u8]>>>,
}

/// A stack of directories.
#[derive(Debug)]
pub struct Directories {
    /// The topmost first.
    layers: Vec<Layer>,
    marks: Namespace,
    oci: bool,
    /// Whether the kernel itself refuses writes.
    pub sealed: bool,
}

/// A path in one layer.
#[derive(Clone, Debug)]
struct Part {
    layer: usize,
    path: Arc<[u8]>,
    /// Empty files in it may be whiteouts.
    file_whiteouts: bool,
}

/// One path of the merged stack.
#[derive(Debug)]
pub struct Place {
    /// Its path in the merged stack, without a leading slash.
    path: Arc<[u8]>,
    /// Where it lies: a directory in all layers that it merges, anything else in one.
    parts: Box<[Part]>,
    /// Where the content lies of a file that has only its attributes at its first part, and the blocks that it takes.
    data: Option<(Part, u64)>,
    stat: Stat,
    null_device: bool,
    subdirs: OnceLock<u32>,
}

/// What a layer holds at a path.
enum Found {
    Whiteout,
    Entry(Box<(OwnedFd, Stat)>),
}

/// The marks of a layer's entry.
#[derive(Default)]
struct LowerMarks {
    opaque: bool,
    file_whiteouts: bool,
    redirect: Option<Vec<u8>>,
    metacopy: bool,
    null_device: bool,
}

fn failed(e: io::Error) -> Error {
    Error::Io("reading a layer".into(), e)
}

/// A mark in a layer that makes no sense: an error for its path.
fn damaged(path: &[u8], what: &str) -> io::Error {
    log::error!("{} in a lower directory has {what}", String::from_utf8_lossy(path));
    io::Error::from_raw_os_error(libc::EUCLEAN)
}

/// Whether a redirect names a path within the layers: `/` and components, or one name beside it.
pub fn is_redirect(value: &[u8]) -> bool {
    let name = |n: &[u8]| !n.is_empty() && n != b"." && n != b".." && n.len() <= 255 && !n.contains(&0);
    match value.strip_prefix(b"/") {
        Some(path) => path.split(|c| *c == b'/').all(name),
        None => name(value) && !value.contains(&b'/'),
    }
}

impl Directories {
    /// Opens the layers, the topmost first. Without the right to make mount clones (not root) they are used as they
    /// are.
    pub fn open(lower: &[PathBuf], marks: Namespace, oci: bool) -> Result<Directories> {
        let mut sealed = true;
        let mut layers = Vec::new();
        for path in lower {
            let top = match mount::read_only_clone(path) {
                Ok(top) => top,
                Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                    sealed = false;
                    sys::open_dir(path).map_err(|e| Error::Io(format!("opening {}", path.display()), e))?
                }
                Err(e) => {
                    let doing = format!("making a read-only clone of the mount of {}", path.display());
                    return Err(Error::Io(doing, e));
                }
            };
            let dev = sys::stat(&top).map_err(failed)?.dev;
            layers.push(Layer { top, dev, links: OnceLock::new(), paths: OnceLock::new() });
        }
        if layers.is_empty() || layers.len() > LAYERS_MAX {
            return Err(Error::Usage(format!(
                "there must be 1 to {LAYERS_MAX} lower directories, and there are {}",
                layers.len()
            )));
        }
        Ok(Directories { layers, marks, oci, sealed })
    }

    /// Space of the file system that the topmost layer is in.
    pub fn space(&self) -> io::Result<sys::Space> {
        let layer = self.layers.first().ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))?;
        sys::space(&layer.top)
    }

    fn layer(&self, part: &Part) -> io::Result<&Layer> {
        self.layers.get(part.layer).ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))
    }

    /// The number of an inode of a layer. What lies in another file system, or has a very large inode number, is
    /// mixed into the bits that there are.
    fn number(&self, layer: usize, dev: (u32, u32), ino: u64) -> u64 {
        let from_below = (self.layers.len() - layer) as u64;
        let room = (1u64 << INODE_BITS) - 1;
        let same = self.layers.get(layer).is_some_and(|l| l.dev == dev);
        let low = if same && ino <= room {
            ino
        } else {
            let dev = u64::from(dev.0) << 32 | u64::from(dev.1);
            (ino ^ dev.rotate_left(20)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - INODE_BITS)
        };
        from_below << INODE_BITS | low
    }

    /// The layer and the inode of a number.
    fn inode_of(&self, number: u64) -> Option<(usize, u64)> {
        let layer = self.layers.len().checked_sub(usize::try_from(number >> INODE_BITS).ok()?)?;
        (layer < self.layers.len()).then_some((layer, number & ((1 << INODE_BITS) - 1)))
    }

    fn open_part(&self, part: &Part, how: Open) -> io::Result<OwnedFd> {
        sys::open_deep(&self.layer(part)?.top, &part.path, how)
    }

    fn marks_of(&self, fd: &OwnedFd, path: &[u8]) -> io::Result<LowerMarks> {
        let mut out = LowerMarks::default();
        for name in xattr::list(fd)? {
            if name == self.marks.overlay("opaque") {
                let value = xattr::get(fd, &name)?;
                out.opaque = value.as_deref() == Some(b"y");
                out.file_whiteouts = value.as_deref() == Some(b"x");
            } else if name == self.marks.overlay("metacopy") {
                out.metacopy = true;
            } else if name == self.marks.overlay("redirect") {
                let value = xattr::get(fd, &name)?.unwrap_or_default();
                if !is_redirect(&value) {
                    return Err(damaged(path, "a redirect that names no path"));
                }
                out.redirect = Some(value);
            } else if name == self.marks.own("rdev") {
                out.null_device = true;
            }
        }
        Ok(out)
    }

    /// What a layer holds at a name in a directory of it.
    fn probe(&self, dir: &Part, path: &[u8]) -> io::Result<Option<Found>> {
        let fd = match sys::open_deep(&self.layer(dir)?.top, path, Open::Path) {
            Ok(fd) => fd,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(None),
            Err(e) => return Err(e),
        };
        let stat = sys::stat(&fd)?;
        if stat.is_whiteout() || dir.file_whiteouts && self.is_file_whiteout(&fd, &stat)? {
            return Ok(Some(Found::Whiteout));
        }
        Ok(Some(Found::Entry(Box::new((fd, stat)))))
    }

    fn is_file_whiteout(&self, fd: &OwnedFd, stat: &Stat) -> io::Result<bool> {
        Ok(stat.is_file() && stat.size == 0 && xattr::get(fd, &self.marks.overlay("whiteout"))?.is_some())
    }

    /// Whether a name is there in a directory of a layer: for OCI's marks.
    fn has(&self, dir: &Part, name: &[u8]) -> io::Result<bool> {
        match sys::open_deep(&self.layer(dir)?.top, &join(&dir.path, name), Open::Path) {
            Ok(_) => Ok(true),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG)) => {
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// The root of the stack.
    pub fn root(&self) -> Result<Arc<Place>> {
        self.root_below(0).map_err(failed).map(Arc::new)
    }

    /// The root as the layers from `first` on show it.
    fn root_below(&self, first: usize) -> io::Result<Place> {
        let path: Arc<[u8]> = Arc::from(&b""[..]);
        let mut parts = Vec::new();
        let mut top = None;
        for (layer, found) in self.layers.iter().enumerate().skip(first) {
            let marks = self.marks_of(&found.top, b"/")?;
            let part = Part { layer, path: path.clone(), file_whiteouts: marks.file_whiteouts };
            if top.is_none() {
                top = Some(sys::stat(&found.top)?);
            }
            let opaque = marks.opaque || self.oci && self.has(&part, OCI_OPAQUE)?;
            parts.push(part);
            if opaque {
                break;
            }
        }
        let stat = top.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        Ok(Place {
            path,
            parts: parts.into(),
            data: None,
            stat,
            null_device: false,
            subdirs: OnceLock::new(),
        })
    }

    /// What the layers from `first` on show at a path.
    fn find_below(&self, first: usize, path: &[u8]) -> io::Result<Option<Place>> {
        if first >= self.layers.len() {
            return Ok(None);
        }
        let mut at = self.root_below(first)?;
        for name in path.split(|c| *c == b'/').filter(|n| !n.is_empty()) {
            match self.look(&at, name)? {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// What is shown at a path.
    pub fn find(&self, path: &[u8]) -> Result<Option<Arc<Place>>> {
        Ok(self.find_below(0, path).map_err(failed)?.map(Arc::new))
    }

    /// The child of a directory.
    pub fn child(&self, dir: &Place, name: &[u8]) -> Result<Option<Arc<Place>>> {
        Ok(self.look(dir, name).map_err(failed)?.map(Arc::new))
    }

    fn look(&self, dir: &Place, name: &[u8]) -> io::Result<Option<Place>> {
        if !dir.stat.is_dir() || self.oci && name.starts_with(OCI) {
            return Ok(None);
        }
        let shown: Arc<[u8]> = join(&dir.path, name).into();
        let mut name = name.to_vec();
        // What is shown, once its first part is found; more parts or its data may follow.
        let mut place: Option<Place> = None;
        let mut parts: Vec<Part> = Vec::new();
        for at in &dir.parts {
            let path: Arc<[u8]> = match join(&at.path, &name) {
                path if *path == *shown => shown.clone(),
                path => path.into(),
            };
            let redirect = match self.probe(at, &path)? {
                None => None,
                Some(Found::Whiteout) => break,
                Some(Found::Entry(entry)) => {
                    let (fd, stat) = *entry;
                    let marks = if stat.is_dir() || stat.is_file() {
                        self.marks_of(&fd, &path)?
                    } else {
                        LowerMarks::default()
                    };
                    let part = Part { layer: at.layer, path, file_whiteouts: marks.file_whiteouts };
                    if stat.is_dir() {
                        if place.as_ref().is_some_and(|p| !p.stat.is_dir()) {
                            break;
                        }
                        let opaque = marks.opaque || self.oci && self.has(&part, OCI_OPAQUE)?;
                        parts.push(part);
                        place.get_or_insert_with(|| Place::new(&shown, stat));
                        if opaque {
                            break;
                        }
                        marks.redirect
                    } else if let Some(place) = &mut place {
                        // A directory hides it; a file without content has it here.
                        if place.stat.is_dir() || !stat.is_file() {
                            break;
                        }
                        if !marks.metacopy {
                            place.data = Some((part, stat.blocks));
                            break;
                        }
                        marks.redirect
                    } else {
                        parts.push(part);
                        let new = place.insert(Place::new(&shown, stat));
                        new.null_device = marks.null_device && stat.is_file();
                        if !(stat.is_file() && marks.metacopy) {
                            return Ok(place.map(|p| p.with(parts)));
                        }
                        marks.redirect
                    }
                }
            };
            match redirect {
                Some(to) if to.starts_with(b"/") => {
                    if let Some(below) = self.find_below(at.layer + 1, &to)? {
                        match &mut place {
                            Some(p) if p.stat.is_dir() && below.stat.is_dir() => parts.extend(below.parts),
                            Some(p) if p.stat.is_file() && below.stat.is_file() => {
                                let own = below.parts.into_iter().next();
                                p.data = below.data.or(own.map(|part| (part, below.stat.blocks)));
                            }
                            _ => {}
                        }
                    }
                    break;
                }
                Some(to) => name = to,
                None => {}
            }
            if self.oci && self.has(at, &[OCI, &name].concat())? {
                break;
            }
        }
        match place {
            Some(p) if !p.stat.is_dir() && p.data.is_none() => {
                log::error!(
                    "{}: a file without content, and no layer holds it",
                    String::from_utf8_lossy(&p.path)
                );
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
            Some(p) => Ok(Some(p.with(parts))),
            None => Ok(None),
        }
    }

    /// The names in a directory, sorted.
    pub fn children(&self, dir: &Place) -> Result<Vec<Child>> {
        self.list(dir).map_err(failed)
    }

    fn list(&self, dir: &Place) -> io::Result<Vec<Child>> {
        let mut out: BTreeMap<Vec<u8>, Option<(u32, u64)>> = BTreeMap::new();
        for part in &dir.parts {
            let fd = self.open_part(part, Open::Dir)?;
            let mut hidden = Vec::new();
            for (name, format, ino) in sys::list_numbered(fd.as_fd())? {
                if self.oci && name.starts_with(OCI) {
                    hidden.extend(name.strip_prefix(OCI).map(<[u8]>::to_vec));
                    continue;
                }
                if out.contains_key(&name) {
                    continue;
                }
                let doubtful =
                    matches!(format, 0 | libc::S_IFCHR) || part.file_whiteouts && format == libc::S_IFREG;
                let mut entry = Some((format, self.number(part.layer, self.layer(part)?.dev, ino)));
                if doubtful {
                    match self.probe(part, &join(&part.path, &name))? {
                        Some(Found::Entry(found)) => {
                            entry =
                                Some((found.1.format(), self.number(part.layer, found.1.dev, found.1.ino)));
                        }
                        _ => entry = None,
                    }
                }
                out.insert(name, entry);
            }
            for name in hidden {
                out.entry(name).or_insert(None);
            }
        }
        let child = |(name, found): (Vec<u8>, Option<(u32, u64)>)| {
            let (format, number) = found?;
            Some(Child { name, format, number, linked: None })
        };
        Ok(out.into_iter().filter_map(child).collect())
    }

    /// Node number of a path.
    pub fn number_of(&self, place: &Place) -> u64 {
        let layer = place.parts.first().map_or(0, |p| p.layer);
        self.number(layer, place.stat.dev, place.stat.ino)
    }

    /// What is shown under a node number.
    pub fn by_number(&self, number: u64) -> Result<Option<Arc<Place>>> {
        let Some((layer, ino)) = self.inode_of(number) else { return Ok(None) };
        let found = || -> io::Result<Option<Place>> {
            let Some(l) = self.layers.get(layer) else { return Ok(None) };
            let paths = match l.paths.get() {
                Some(paths) => paths,
                None => {
                    let mut paths = HashMap::new();
                    walk(&l.top, &mut |path, _, _, ino| {
                        paths.entry(ino).or_insert_with(|| Box::from(path));
                        Ok(())
                    })?;
                    l.paths.get_or_init(|| paths)
                }
            };
            match paths.get(&ino) {
                Some(path) => Ok(self.find_below(0, path)?.filter(|p| self.number_of(p) == number)),
                None => Ok(None),
            }
        };
        Ok(found().map_err(failed)?.map(Arc::new))
    }

    fn links(&self, layer: usize) -> io::Result<&Links> {
        let layer = self.layers.get(layer).ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))?;
        if let Some(links) = layer.links.get() {
            return Ok(links);
        }
        let mut links = Links::new();
        walk(&layer.top, &mut |path, dir, name, _| {
            let stat = sys::stat_at(dir, name)?;
            if !stat.is_dir() && stat.nlink > 1 {
                links.entry(stat.ino).or_default().push(Box::from(path));
            }
            Ok(())
        })?;
        Ok(layer.links.get_or_init(|| links))
    }

    /// The paths of a hard-link group within its layer: directory and name. The path itself is among them.
    pub fn group(&self, place: &Place) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let split = |path: &[u8]| match path.iter().rposition(|c| *c == b'/') {
            Some(at) => {
                let (dir, name) = path.split_at(at);
                (dir.to_vec(), name.get(1..).unwrap_or_default().to_vec())
            }
            None => (Vec::new(), path.to_vec()),
        };
        let mut out = vec![split(&place.path)];
        if place.is_linked()
            && let Some(part) = place.parts.first()
        {
            let links = self.links(part.layer).map_err(failed)?;
            let others = links.get(&place.stat.ino).map(Vec::as_slice).unwrap_or_default();
            out.extend(others.iter().filter(|p| ***p != *place.path).map(|p| split(p)));
        }
        Ok(out)
    }

    /// Whether a number of a listing is that of a hard-link group.
    pub fn is_linked_number(&self, number: u64) -> Result<bool> {
        let Some((layer, ino)) = self.inode_of(number) else { return Ok(false) };
        Ok(self.links(layer).map_err(failed)?.contains_key(&ino))
    }

    fn handle(&self, place: &Place, how: Open) -> io::Result<OwnedFd> {
        let part = place.parts.first().ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))?;
        self.open_part(part, how)
    }

    /// A symbolic link's target.
    pub fn target(&self, place: &Place) -> Result<Vec<u8>> {
        let read = || sys::readlink_at(self.handle(place, Open::Path)?, b"");
        read().map_err(failed)
    }

    /// The value of an extended attribute.
    pub fn xattr(&self, place: &Place, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let read = || xattr::get(self.handle(place, Open::Path)?, &self.marks.escape(name));
        read().map_err(failed)
    }

    /// All extended attributes but the marks, with their values.
    pub fn xattrs(&self, place: &Place) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let read = || -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
            let fd = self.handle(place, Open::Path)?;
            let mut out = Vec::new();
            for on_disk in xattr::list(&fd)? {
                if let Some(name) = self.marks.unescape(&on_disk)
                    && let Some(value) = xattr::get(&fd, &on_disk)?
                {
                    out.push((name, value));
                }
            }
            Ok(out)
        };
        read().map_err(failed)
    }

    /// Opens the content of a regular file for reading.
    pub fn open_content(&self, place: &Place) -> io::Result<File> {
        let part = place.data.as_ref().map(|(part, _)| part).or(place.parts.first());
        let part = part.ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))?;
        Ok(File::from(self.open_part(part, Open::Read)?))
    }

    /// Hard links; of a directory 2 + its subdirectories.
    pub fn links_of(&self, place: &Place) -> Result<u32> {
        let exact = place.parts.len() == 1 && place.stat.nlink > 1;
        if !place.stat.is_dir() || exact {
            return Ok(place.stat.nlink);
        }
        if let Some(count) = place.subdirs.get() {
            return Ok(2 + count);
        }
        let count = self.children(place)?.iter().filter(|c| c.format == libc::S_IFDIR).count() as u32;
        Ok(2 + place.subdirs.get_or_init(|| count))
    }

    /// Attributes, shown under the number `id`.
    pub fn attributes(&self, place: &Place, id: u64) -> Result<Attributes> {
        let s = &place.stat;
        let mut out = Attributes {
            ino: id,
            size: s.size,
            blocks: place.data.as_ref().map_or(s.blocks, |(_, blocks)| *blocks),
            atime: s.atime,
            mtime: s.mtime,
            ctime: s.ctime,
            mode: s.mode,
            nlink: self.links_of(place)?,
            uid: s.uid,
            gid: s.gid,
            rdev: s.rdev,
            blksize: s.blksize,
        };
        if place.null_device {
            out.mode = libc::S_IFCHR | (s.mode & 0o7777);
            (out.size, out.blocks, out.rdev) = (0, 0, (0, 0));
        }
        Ok(out)
    }
}

impl Place {
    fn new(path: &Arc<[u8]>, stat: Stat) -> Place {
        Place {
            path: path.clone(),
            parts: Box::default(),
            data: None,
            stat,
            null_device: false,
            subdirs: OnceLock::new(),
        }
    }

    fn with(mut self, parts: Vec<Part>) -> Place {
        self.parts = parts.into();
        self
    }

    /// Its path in the merged stack.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.stat.size
    }

    /// The type bits.
    pub fn format(&self) -> u32 {
        if self.null_device { libc::S_IFCHR } else { self.stat.format() }
    }

    /// Whether it is one of several hard links.
    pub fn is_linked(&self) -> bool {
        !self.stat.is_dir() && self.stat.nlink > 1
    }
}

/// Is shown a path, its directory, its name there and its inode number.
type Visit<'a> = dyn FnMut(&[u8], &OwnedFd, &[u8], u64) -> io::Result<()> + 'a;

/// Shows `visit` every path of a layer.
fn walk(top: &OwnedFd, visit: &mut Visit<'_>) -> io::Result<()> {
    let mut todo: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(dir) = todo.pop() {
        let fd = sys::open_deep(top, &dir, Open::Dir)?;
        for (name, format, ino) in sys::list_numbered(fd.as_fd())? {
            let path = join(&dir, &name);
            visit(&path, &fd, &name, ino)?;
            let format = if format == 0 { sys::stat_at(&fd, &name)?.format() } else { format };
            if format == libc::S_IFDIR {
                todo.push(path);
            }
        }
    }
    Ok(())
}
