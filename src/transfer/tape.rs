//! The members of a tar archive, one after the other: ustar, pax, GNU and old formats.
//!
//! The `tar` crate reads the header blocks; the order of blocks, pax records and sparse maps are read here,
//! because a pax value may hold newlines and a member that ends early must be an error. An archive ends with
//! a block of zeros: without it nobody could tell a whole archive from one that was cut off between members.

use std::io::{self, Read};

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::pax::{self, Records};
use crate::sys::fs::Time;

const BLOCK: usize = 512;
/// The most that names and records of one member may take, in bytes.
const HEADERS_MAX: u64 = 32 << 20;
/// The most that records for all members may take, in bytes.
const GLOBAL_MAX: usize = 64 << 10;

/// One member's header.
#[derive(Debug)]
pub(super) struct Member {
    /// Its path as it stands in the archive.
    pub path: Vec<u8>,
    /// Target of a symbolic or hard link.
    pub link: Vec<u8>,
    /// The type flag.
    pub kind: u8,
    /// Length of its content in bytes, holes included.
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    pub rdev: (u32, u32),
    /// Its pax records, after those that hold for the whole archive.
    pub records: Records,
    extents: Map,
}

/// What is wrong with an archive.
#[derive(Debug)]
pub(super) enum Fault {
    /// It could not be read.
    Read(io::Error),
    /// It is not what an archive is.
    Bad(String),
}

impl From<io::Error> for Fault {
    fn from(e: io::Error) -> Fault {
        Fault::Read(e)
    }
}

impl From<String> for Fault {
    fn from(m: String) -> Fault {
        Fault::Bad(m)
    }
}

/// Where a sparse file has content: start and length, in bytes.
type Map = Vec<(u64, u64)>;

type Result<T> = std::result::Result<T, Fault>;

fn bad<T>(message: impl Into<String>) -> Result<T> {
    Err(Fault::Bad(message.into()))
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut off")
}

/// An archive that is being read.
pub(super) struct Tape<R> {
    reader: R,
    /// Bytes of the current member that were not read yet.
    left: u64,
    /// Bytes after them up to the next block.
    pad: u64,
    first: bool,
    global: Records,
}

impl<R: Read> Tape<R> {
    pub(super) fn new(reader: R) -> Tape<R> {
        Tape { reader, left: 0, pad: 0, first: true, global: Vec::new() }
    }

    /// The next member; `None` at the end mark.
    pub(super) fn next(&mut self) -> Result<Option<Member>> {
        self.skip()?;
        let (mut name, mut link, mut records) = (None, None, None);
        let mut total = 0u64;
        loop {
            let Some(header) = self.header()? else {
                if name.is_some() || link.is_some() || records.is_some() {
                    return bad("it ends after an extended header");
                }
                return Ok(None);
            };
            let kind = header.entry_type().as_byte();
            if !matches!(kind, b'x' | b'X' | b'g' | b'L' | b'K' | b'V') {
                return self.member(&header, name, link, records.unwrap_or_default()).map(Some);
            }
            let size = size_of(&header)?;
            self.begin(size);
            total = total.saturating_add(size);
            if total > HEADERS_MAX {
                return bad("a member's extended headers are too long");
            }
            let mut bytes = Vec::new();
            (&mut *self).take(size).read_to_end(&mut bytes)?;
            self.skip()?;
            match kind {
                b'x' | b'X' => records = Some(pax::parse(&bytes)?),
                b'g' => self.take_global(pax::parse(&bytes)?)?,
                b'L' => name = Some(until_nul(&bytes)),
                b'K' => link = Some(until_nul(&bytes)),
                _ => {}
            }
        }
    }

    /// Records that hold for all members from here on; what can be true of one member only is refused.
    fn take_global(&mut self, records: Records) -> Result<()> {
        for (key, value) in records {
            let single = matches!(key.as_slice(), b"path" | b"linkpath" | b"size");
            if single || key.starts_with(b"GNU.sparse.") {
                return bad(format!("it gives all members the same {}", super::shown(&key)));
            }
            self.global.retain(|(k, _)| *k != key);
            self.global.push((key, value));
        }
        let length: usize = self.global.iter().map(|(k, v)| k.len() + v.len()).sum();
        if length > GLOBAL_MAX { bad("its global header is too long") } else { Ok(()) }
    }

    /// The content of the member that [`Tape::next`] gave last.
    pub(super) fn content(&mut self, member: &Member) -> Content<'_, R> {
        Content { tape: self, extents: member.extents.clone(), current: 0, at: 0, size: member.size }
    }

    /// Reads what follows the end mark, so that a compressed stream is checked to its end.
    pub(super) fn finish(mut self) -> Result<()> {
        io::copy(&mut self.reader, &mut io::sink())?;
        Ok(())
    }

    fn begin(&mut self, stored: u64) {
        self.left = stored;
        self.pad = (BLOCK as u64 - stored % BLOCK as u64) % BLOCK as u64;
    }

    fn skip(&mut self) -> Result<()> {
        let rest = self.left + self.pad;
        let skipped = io::copy(&mut (&mut self.reader).take(rest), &mut io::sink())?;
        (self.left, self.pad) = (0, 0);
        if skipped < rest { Err(cut_off().into()) } else { Ok(()) }
    }

    fn block(&mut self, block: &mut [u8]) -> Result<()> {
        self.reader.read_exact(block).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => cut_off().into(),
            _ => Fault::Read(e),
        })
    }

    fn header(&mut self) -> Result<Option<Header>> {
        let mut header = Header::new_old();
        self.block(header.as_mut_bytes())?;
        let bytes = header.as_bytes();
        if bytes.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        // The checksum's own field counts as blanks; old writers summed signed bytes.
        let summed =
            || bytes.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { b' ' } else { *b });
        let unsigned: i64 = summed().map(i64::from).sum();
        let signed: i64 = summed().map(|b| i64::from(b as i8)).sum();
        if !header.cksum().is_ok_and(|sum| [unsigned, signed].contains(&i64::from(sum))) {
            let first = self.first;
            return bad(if first {
                "it is not a tar archive, plain or compressed with gzip, zstd or xz"
            } else {
                "a header in it is damaged"
            });
        }
        self.first = false;
        Ok(Some(header))
    }

    fn member(
        &mut self,
        header: &Header,
        name: Option<Vec<u8>>,
        link: Option<Vec<u8>>,
        own: Records,
    ) -> Result<Member> {
        let mut records = self.global.clone();
        records.extend(own);
        // An empty value takes an earlier one back.
        let last = |key: &str| {
            let found = records.iter().rev().find(|(k, _)| k == key.as_bytes());
            found.map(|(_, v)| v.as_slice()).filter(|v| !v.is_empty())
        };
        let path = last("GNU.sparse.name")
            .or(last("path"))
            .map(<[u8]>::to_vec)
            .or(name)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = last("linkpath").map(<[u8]>::to_vec).or(link);
        let link = link.or(header.link_name_bytes().map(|l| l.into_owned())).unwrap_or_default();
        let field = |what: &str| format!("{}: its {what} cannot be read", super::shown(&path));
        let id = |key: &str, in_header: io::Result<u64>| {
            let value = match last(key) {
                Some(text) => pax::number(text),
                None => in_header.ok(),
            };
            value.and_then(|v| u32::try_from(v).ok()).ok_or_else(|| field(key))
        };
        let mtime = match last("mtime") {
            Some(text) => pax::time(text).ok_or_else(|| field("time"))?,
            None => Time { sec: header.mtime().map_err(|_| field("time"))? as i64, nsec: 0 },
        };
        let mut kind = header.entry_type().as_byte();
        // Before ustar, a directory was a file whose name ends with a slash.
        if kind == 0 && path.ends_with(b"/") {
            kind = b'5';
        }
        let device = |v: io::Result<Option<u32>>| v.ok().flatten().ok_or_else(|| field("device number"));
        let rdev = match kind {
            b'3' | b'4' => (device(header.device_major())?, device(header.device_minor())?),
            _ => (0, 0),
        };
        let stored = match last("size") {
            Some(text) => pax::number(text).ok_or_else(|| field("size"))?,
            None => size_of(header)?,
        };
        let (uid, gid) = (id("uid", header.uid())?, id("gid", header.gid())?);
        let mode = header.mode().map_err(|_| field("mode"))? & 0o7777;
        if last("SCHILY.realsize").is_some() {
            return bad(format!(
                "{}: sparse files of star are not read; write it with GNU tar",
                super::shown(&path)
            ));
        }
        let declared = last("GNU.sparse.realsize").or(last("GNU.sparse.size")).map(pax::number);
        let major = last("GNU.sparse.major").map(<[u8]>::to_vec);
        let map = last("GNU.sparse.map").map(<[u8]>::to_vec);
        let sparse = kind == b'S' || declared.is_some();
        let damaged = || Fault::Bad(format!("{}: its sparse map is damaged", super::shown(&path)));
        let (extents, size) = if sparse {
            let (extents, size) = if kind == b'S' {
                self.old_gnu_map(header, stored).map_err(|e| e.unwrap_or_else(damaged))?
            } else {
                self.begin(stored);
                let size = declared.flatten().ok_or_else(damaged)?;
                let numbers = match (major.as_deref(), map) {
                    (Some(b"1"), _) => self.map_in_content()?,
                    (None | Some(b"0"), Some(map)) => map.split(|c| *c == b',').map(pax::number).collect(),
                    (None | Some(b"0"), None) => records
                        .iter()
                        .filter(|(k, _)| k == b"GNU.sparse.offset" || k == b"GNU.sparse.numbytes")
                        .map(|(_, v)| pax::number(v))
                        .collect(),
                    _ => None,
                };
                (pairs(&numbers.ok_or_else(damaged)?).ok_or_else(damaged)?, size)
            };
            if !fits(&extents, size, self.left) {
                return Err(damaged());
            }
            kind = b'0';
            (extents, size)
        } else {
            self.begin(stored);
            (vec![(0, stored)], stored)
        };
        if size > i64::MAX as u64 {
            return bad(format!("{}: its size is impossible", super::shown(&path)));
        }
        Ok(Member { path, link, kind, size, mode, uid, gid, mtime, rdev, records, extents })
    }

    /// The map of GNU's own format: in the header and the blocks after it.
    fn old_gnu_map(
        &mut self,
        header: &Header,
        stored: u64,
    ) -> std::result::Result<(Map, u64), Option<Fault>> {
        let mut extents = Vec::new();
        let mut add = |entries: &[GnuSparseHeader]| {
            for entry in entries.iter().filter(|e| !e.is_empty()) {
                extents.push((entry.offset().ok()?, entry.length().ok()?));
            }
            Some(())
        };
        let gnu = header.as_gnu().ok_or(None)?;
        add(&gnu.sparse).ok_or(None)?;
        let mut more = gnu.is_extended();
        while more {
            let mut next = GnuExtSparseHeader::new();
            self.block(next.as_mut_bytes()).map_err(Some)?;
            add(&next.sparse).ok_or(None)?;
            more = next.is_extended();
        }
        self.begin(stored);
        Ok((extents, gnu.real_size().map_err(|_| None)?))
    }

    /// The map of GNU's pax format 1.0: decimal lines before the content, filled up to a block.
    fn map_in_content(&mut self) -> Result<Option<Vec<u64>>> {
        let mut numbers = Vec::new();
        let mut want = None;
        let mut line = Vec::new();
        while want.is_none_or(|w| (numbers.len() as u64) < w) {
            let mut block = [0u8; BLOCK];
            if self.left < BLOCK as u64 {
                return Ok(None);
            }
            self.block(&mut block)?;
            self.left -= BLOCK as u64;
            for c in block {
                if want.is_some_and(|w| numbers.len() as u64 >= w) {
                    break;
                }
                if c != b'\n' {
                    line.push(c);
                    continue;
                }
                let Some(number) = pax::number(&line) else { return Ok(None) };
                line.clear();
                match want {
                    None => want = Some(number.saturating_mul(2)),
                    Some(_) => numbers.push(number),
                }
            }
            if line.len() > 20 {
                return Ok(None);
            }
        }
        Ok(Some(numbers))
    }
}

impl<R: Read> Read for Tape<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let n = self.reader.read(buf.get_mut(..want).unwrap_or_default())?;
        if n == 0 {
            return Err(cut_off());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// A member's content, with zeros where its holes are.
pub(super) struct Content<'a, R> {
    tape: &'a mut Tape<R>,
    extents: Map,
    current: usize,
    at: u64,
    size: u64,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.extents.get(self.current).is_some_and(|(start, len)| self.at >= start + len) {
            self.current += 1;
        }
        let (start, end) = self
            .extents
            .get(self.current)
            .map_or((self.size, self.size), |(start, len)| (*start, start + len));
        let limit = if self.at < start { start } else { end } - self.at;
        let want = buf.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        let part = buf.get_mut(..want).unwrap_or_default();
        let n = if self.at < start {
            part.fill(0);
            part.len()
        } else {
            self.tape.read(part)?
        };
        self.at += n as u64;
        Ok(n)
    }
}

fn size_of(header: &Header) -> Result<u64> {
    header.entry_size().or_else(|_| bad("a size in it cannot be read"))
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec()
}

fn pairs(numbers: &[u64]) -> Option<Map> {
    numbers.chunks(2).map(|p| if let [a, b] = p { Some((*a, *b)) } else { None }).collect()
}

/// Whether extents are in order, lie within the file and hold exactly what is stored.
fn fits(extents: &[(u64, u64)], size: u64, stored: u64) -> bool {
    let mut at = 0u64;
    let mut sum = 0u64;
    for (start, len) in extents {
        let Some(end) = start.checked_add(*len) else { return false };
        if *start < at || end > size {
            return false;
        }
        at = end;
        sum += len;
    }
    sum == stored
}
