//! What a version shows, written as a tar archive in pax format (POSIX.1-2017, pax).
//!
//! The same version gives the same bytes each time: names in order, no time but the files' own, no name of an
//! owner. Extended attributes are `SCHILY.xattr` records, ACLs `SCHILY.acl` records beside them, as GNU tar,
//! bsdtar and container tools read them; files with holes are in GNU's sparse format 1.0.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use tar::{EntryType, Header};

use super::acl::Acl;
use super::{Exported, Stream, pax, shown};
use crate::error::{Doing, Error, Result};
use crate::layer::model::{Content, Draft, Inode, InodeId, ROOT};
use crate::store::{Progress, Store};
use crate::sys::publish::publish_with;

/// Longest name in the header itself, in bytes.
const NAME_FIELD: usize = 100;
/// Numbers from here on do not fit into seven octal digits.
const ID_FIELD: u32 = 1 << 21;
/// Sizes and times from here on do not fit into eleven octal digits.
const LONG_FIELD: u64 = 1 << 33;
/// Holes are looked for in pieces of this length, in bytes.
const PIECE: usize = 64 << 10;
/// A file is written sparse where that saves so much, in bytes.
const WORTH: u64 = 1 << 20;

/// Writes to a stream.
pub(super) fn write(
    store: &Store,
    draft: &Draft,
    stream: &Stream,
    progress: &dyn Progress,
    done: &mut Exported,
) -> Result<()> {
    let mut archive = Archive { store, draft, progress, done, first: HashMap::new() };
    let path = match stream {
        Stream::Standard => {
            let out = io::stdout().lock();
            return archive.compressed(Path::new(""), out).map_err(|e| say(e, "standard output"));
        }
        // A relative name has the present directory before it, which the publisher must be able to open.
        Stream::File(path) => std::path::absolute(path).at("finding", path)?,
    };
    let shown = path.display().to_string();
    // A pipe or a device is written to; it must not be replaced by a file.
    if path.metadata().is_ok_and(|m| !m.is_file()) {
        let out = File::options().write(true).open(&path).at("opening the destination", &path)?;
        return archive.compressed(&path, out).map_err(|e| say(e, &shown));
    }
    let target = path.canonicalize().unwrap_or_else(|_| PathBuf::from(&path));
    let mut failure = None;
    let published = publish_with(&target, |file| {
        archive.compressed(&path, file).map_err(|e| match e {
            Fault::Write(e) => e,
            Fault::Other(e) => {
                failure = Some(e);
                io::Error::other("see the other error")
            }
        })
    });
    match failure {
        Some(e) => Err(e),
        None => published.map_err(|e| say(Fault::Write(e), &shown)),
    }
}

/// Which side failed.
enum Fault {
    Write(io::Error),
    Other(Error),
}

impl From<io::Error> for Fault {
    fn from(e: io::Error) -> Fault {
        Fault::Write(e)
    }
}

impl From<Error> for Fault {
    fn from(e: Error) -> Fault {
        Fault::Other(e)
    }
}

fn say(fault: Fault, to: &str) -> Error {
    match fault {
        Fault::Other(e) => e,
        Fault::Write(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
            let words = crate::error::words(&e);
            Error::Failed(format!("writing {to}: {words}; free space there or export elsewhere"))
        }
        Fault::Write(e) => Error::Io(format!("writing {to}"), e),
    }
}

struct Archive<'a> {
    store: &'a Store,
    draft: &'a Draft,
    progress: &'a dyn Progress,
    done: &'a mut Exported,
    first: HashMap<InodeId, Vec<u8>>,
}

impl Archive<'_> {
    /// Writes all through the compression that the name asks for.
    fn compressed(&mut self, name: &Path, out: impl Write) -> std::result::Result<(), Fault> {
        let ending = name.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let mut out = BufWriter::with_capacity(1 << 20, out);
        match ending {
            "gz" | "tgz" => {
                let mut gz = flate2::write::GzEncoder::new(&mut out, flate2::Compression::default());
                self.all(&mut gz)?;
                gz.finish()?;
            }
            "zst" | "tzst" => {
                let mut zst = zstd::stream::write::Encoder::new(&mut out, 0)?;
                self.all(&mut zst)?;
                zst.finish()?;
            }
            "xz" | "txz" => {
                let mut xz = xz2::write::XzEncoder::new(&mut out, 6);
                self.all(&mut xz)?;
                xz.finish()?;
            }
            _ => self.all(&mut out)?,
        }
        Ok(out.flush()?)
    }

    fn all(&mut self, out: &mut dyn Write) -> std::result::Result<(), Fault> {
        let draft = self.draft;
        for (path, id) in draft.walk() {
            let inode = draft.get(id);
            let name = match id {
                ROOT => b"./".to_vec(),
                _ if inode.content.is_dir() => [&path, &b"/"[..]].concat(),
                _ => path,
            };
            self.member(out, name, id, inode)?;
        }
        Ok(out.write_all(&[0; 1024])?)
    }

    fn member(
        &mut self,
        out: &mut dyn Write,
        name: Vec<u8>,
        id: InodeId,
        inode: &Inode,
    ) -> std::result::Result<(), Fault> {
        let mut records = Vec::new();
        if let Some(first) = self.first.get(&id) {
            let head = Head { name: &name, link: first, kind: EntryType::Link, size: 0 };
            return Ok(head.write(out, inode, records)?);
        }
        for (key, value) in &inode.meta.xattrs {
            pax::write(&mut records, &pax::xattr_key(key), value);
            // GNU tar unpacks ACLs from words only.
            let words: &[u8] = match key.as_slice() {
                b"system.posix_acl_access" => b"SCHILY.acl.access",
                b"system.posix_acl_default" => b"SCHILY.acl.default",
                _ => continue,
            };
            if let Some(acl) = Acl::from_binary(value) {
                pax::write(&mut records, words, acl.text().as_bytes());
            }
        }
        let (kind, link) = match &inode.content {
            Content::Dir { .. } => (EntryType::Directory, &[][..]),
            Content::File { object, size } => {
                let file = self.store.open_object(object, *size)?;
                self.file(out, &name, inode, records, &file, *size)?;
                self.first.insert(id, name);
                return Ok(());
            }
            Content::Symlink(target) => (EntryType::Symlink, target.as_slice()),
            Content::Char(..) => (EntryType::Char, &[][..]),
            Content::Block(..) => (EntryType::Block, &[][..]),
            Content::Fifo => (EntryType::Fifo, &[][..]),
            Content::Socket => {
                self.done.skipped.push(format!("{}: a tar archive cannot hold sockets", shown(&name)));
                return Ok(());
            }
            Content::Whiteout => {
                return Err(Error::Damaged(format!("{}: a whiteout in a tree", shown(&name))).into());
            }
        };
        Head { name: &name, link, kind, size: 0 }.write(out, inode, records)?;
        self.first.insert(id, name);
        Ok(())
    }

    fn file(
        &mut self,
        out: &mut dyn Write,
        name: &[u8],
        inode: &Inode,
        mut records: Vec<u8>,
        file: &File,
        size: u64,
    ) -> std::result::Result<(), Fault> {
        use std::os::unix::fs::MetadataExt;
        let reading = || format!("reading the object of {}", shown(name));
        let blocks = file.metadata().doing(reading())?.blocks() * 512;
        let extents =
            if blocks + WORTH <= size { extents(file, size).doing(reading())? } else { vec![(0, size)] };
        let stored: u64 = extents.iter().map(|(_, len)| len).sum();
        if stored + WORTH <= size {
            let mut map = format!("{}\n", extents.len());
            for (start, len) in &extents {
                map.push_str(&format!("{start}\n{len}\n"));
            }
            let mut map = map.into_bytes();
            map.resize(map.len().next_multiple_of(512), 0);
            pax::write(&mut records, b"GNU.sparse.major", b"1");
            pax::write(&mut records, b"GNU.sparse.minor", b"0");
            pax::write(&mut records, b"GNU.sparse.name", name);
            pax::write(&mut records, b"GNU.sparse.realsize", size.to_string().as_bytes());
            let (dir, base) = super::split(name);
            let stand_in = [dir, if dir.is_empty() { b"" } else { b"/" }, b"GNUSparseFile.0/", base].concat();
            let whole = map.len() as u64 + stored;
            Head { name: &stand_in, link: b"", kind: EntryType::Regular, size: whole }
                .write(out, inode, records)?;
            out.write_all(&map)?;
            self.content(out, name, file, &extents, stored)?;
        } else {
            Head { name, link: b"", kind: EntryType::Regular, size }.write(out, inode, records)?;
            self.content(out, name, file, &[(0, size)], size)?;
        }
        self.done.files += 1;
        self.done.bytes += size;
        self.progress.advance(1, 0);
        Ok(())
    }

    fn content(
        &self,
        out: &mut dyn Write,
        name: &[u8],
        file: &File,
        extents: &[(u64, u64)],
        stored: u64,
    ) -> std::result::Result<(), Fault> {
        use std::os::unix::fs::FileExt;
        let mut buf = vec![0u8; 256 << 10];
        for (start, len) in extents {
            let mut at = *start;
            while at < start + len {
                let want = (start + len - at).min(buf.len() as u64) as usize;
                let part = buf.get_mut(..want).unwrap_or_default();
                file.read_exact_at(part, at).doing(format!("reading the object of {}", shown(name)))?;
                out.write_all(part)?;
                at += want as u64;
                self.progress.advance(0, want as u64);
            }
        }
        Ok(out.write_all(padding(stored))?)
    }
}

fn padding(size: u64) -> &'static [u8] {
    static ZEROS: [u8; 512] = [0; 512];
    let missing = (512 - size % 512) % 512;
    ZEROS.get(..missing as usize).unwrap_or_default()
}

/// Where a file is not zero, in pieces; told by its content, so that it does not depend on the store's disk.
fn extents(mut file: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    let mut buf = vec![0u8; PIECE];
    let mut at = 0;
    while at < size {
        let data = crate::sys::fs::seek_extent(file, at, false)?.unwrap_or(size);
        if data >= size {
            break;
        }
        // Holes of the disk are skipped, but by whole pieces only.
        at = at.max(data - data % PIECE as u64);
        let want = (size - at).min(PIECE as u64) as usize;
        io::Seek::seek(&mut file, io::SeekFrom::Start(at))?;
        let part = buf.get_mut(..want).unwrap_or_default();
        file.read_exact(part)?;
        if part.iter().any(|b| *b != 0) {
            match out.last_mut() {
                Some((start, len)) if *start + *len == at => *len += want as u64,
                _ => out.push((at, want as u64)),
            }
        }
        at += want as u64;
    }
    // Readers take the file's length from where the last piece ends.
    if out.last().is_none_or(|(start, len)| start + len < size) {
        out.push((size, 0));
    }
    Ok(out)
}

/// What a member's header says beside its inode's attributes.
struct Head<'a> {
    name: &'a [u8],
    link: &'a [u8],
    kind: EntryType,
    size: u64,
}

impl Head<'_> {
    fn write(&self, out: &mut dyn Write, inode: &Inode, mut records: Vec<u8>) -> io::Result<()> {
        let meta = &inode.meta;
        let mut header = Header::new_ustar();
        let bytes = header.as_mut_bytes();
        if !field(bytes, 0, self.name) {
            pax::write(&mut records, b"path", self.name);
        }
        if !field(bytes, 157, self.link) {
            pax::write(&mut records, b"linkpath", self.link);
        }
        header.set_entry_type(self.kind);
        header.set_mode(meta.mode);
        for (key, id) in [("uid", meta.uid), ("gid", meta.gid)] {
            let short = if id < ID_FIELD { id } else { 0 };
            if short != id {
                pax::write(&mut records, key.as_bytes(), id.to_string().as_bytes());
            }
            if key == "uid" { header.set_uid(short.into()) } else { header.set_gid(short.into()) }
        }
        let short = u64::try_from(meta.mtime.sec).ok().filter(|s| *s < LONG_FIELD);
        header.set_mtime(short.unwrap_or(0));
        if short.is_none() || meta.mtime.nsec > 0 {
            pax::write(&mut records, b"mtime", pax::time_text(meta.mtime).as_bytes());
        }
        header.set_size(if self.size < LONG_FIELD { self.size } else { 0 });
        if self.size >= LONG_FIELD {
            pax::write(&mut records, b"size", self.size.to_string().as_bytes());
        }
        let (major, minor) = match inode.content {
            Content::Char(major, minor) | Content::Block(major, minor) => (major, minor),
            _ => (0, 0),
        };
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
        header.set_cksum();
        if !records.is_empty() {
            let mut extended = Header::new_ustar();
            field(extended.as_mut_bytes(), 0, b"PaxHeaders.0/x");
            extended.set_entry_type(EntryType::XHeader);
            extended.set_mode(0o644);
            extended.set_uid(0);
            extended.set_gid(0);
            extended.set_mtime(0);
            extended.set_size(records.len() as u64);
            extended.set_cksum();
            out.write_all(extended.as_bytes())?;
            out.write_all(&records)?;
            out.write_all(padding(records.len() as u64))?;
        }
        out.write_all(header.as_bytes())
    }
}

/// Writes a name into a header as far as it fits; whether all of it did.
fn field(header: &mut [u8; 512], at: usize, value: &[u8]) -> bool {
    for (to, from) in header.iter_mut().skip(at).take(NAME_FIELD).zip(value) {
        *to = *from;
    }
    value.len() <= NAME_FIELD
}
