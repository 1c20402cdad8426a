//! A tar archive, read as a tree.
//!
//! The archive comes as one stream, maybe from a pipe; its compression is told by its first bytes. Small
//! contents are gathered and hashed on all cores, large ones as they stream by.

use std::fs::File;
use std::io::{self, BufReader, Chain, Cursor, Read};
use std::path::Path;

use rayon::prelude::*;

use super::growth::Growth;
use super::tape::{Fault, Member, Tape};
use super::{Harvest, Stream, pax, shown};
use crate::error::{Doing, Error, Result};
use crate::layer::model::{Content, InodeId, Meta};
use crate::store::objects::Intake;
use crate::store::{Digest, Progress, Store};

/// Contents up to this length are gathered, in bytes.
const SMALL: u64 = 1 << 20;
/// So much is gathered before it is hashed.
const GATHERED: u64 = 32 << 20;
/// Longest target of a symbolic link, in bytes (`PATH_MAX` less the NUL).
const TARGET_LIMIT: usize = 4095;

/// Reads an archive.
pub(super) fn read(store: &Store, stream: &Stream, progress: &dyn Progress) -> Result<Harvest> {
    let archive = stream.describe("standard input");
    match stream {
        Stream::Standard => {
            progress.begin("reading the archive", None);
            read_from(store, io::stdin().lock(), &archive, progress)
        }
        Stream::File(path) => {
            let file = open(path)?;
            progress.begin("reading the archive", None);
            read_from(store, file, &archive, progress)
        }
    }
}

fn open(path: &Path) -> Result<File> {
    let file = File::open(path).at("opening the archive", path)?;
    if file.metadata().at("reading", path)?.is_dir() {
        return Err(Error::Usage(format!(
            "{} is a directory, not an archive; use dir:{}",
            path.display(),
            path.display()
        )));
    }
    Ok(file)
}

/// Reads an archive from any stream; `archive` is what messages call it.
pub(super) fn read_from(
    store: &Store,
    stream: impl Read,
    archive: &str,
    progress: &dyn Progress,
) -> Result<Harvest> {
    let plain = decompress(stream, archive)?;
    let intake = Intake::begin(store)?;
    let mut unpack = Unpack {
        archive,
        intake: &intake,
        progress,
        growth: Growth::new(),
        gathered: Vec::new(),
        gathered_bytes: 0,
        files: 0,
        bytes: 0,
    };
    let mut tape = Tape::new(BufReader::with_capacity(1 << 20, plain));
    while let Some(member) = tape.next().map_err(|f| unpack.fault(None, f))? {
        unpack.member(&mut tape, &member)?;
    }
    tape.finish().map_err(|f| unpack.fault(None, f))?;
    unpack.hash_gathered()?;
    let Unpack { growth, files, bytes, .. } = unpack;
    let new_bytes = intake.new_bytes();
    intake.finish()?;
    let Growth { draft, implied } = growth;
    Ok(Harvest { draft, implied, files, bytes, bytes_read: bytes, new_bytes })
}

/// Looks at the first bytes and undoes the compression that they tell of.
fn decompress<'a>(mut stream: impl Read + 'a, archive: &str) -> Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::new();
    (&mut stream).take(6).read_to_end(&mut magic).at("reading the archive", archive)?;
    let whole: Chain<Cursor<Vec<u8>>, _> = Cursor::new(magic.clone()).chain(stream);
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::stream::read::Decoder::new(whole).at("reading the archive", archive)?;
            // The longest window that `zstd --long` makes.
            decoder.window_log_max(31).at("reading the archive", archive)?;
            Box::new(decoder)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(xz2::read::XzDecoder::new_multi_decoder(whole)),
        [b'B', b'Z', b'h', ..] => {
            return Err(Error::Failed(format!(
                "{archive} is compressed with bzip2; compress it with gzip, zstd or xz"
            )));
        }
        [] => return Err(Error::Failed(format!("{archive} is empty; it is not a tar archive"))),
        _ => Box::new(whole),
    })
}

struct Unpack<'a> {
    archive: &'a str,
    intake: &'a Intake<'a>,
    progress: &'a dyn Progress,
    growth: Growth,
    gathered: Vec<(InodeId, Vec<u8>)>,
    gathered_bytes: u64,
    files: u64,
    bytes: u64,
}

impl Unpack<'_> {
    fn refused(&self, member: &Member, why: impl std::fmt::Display) -> Error {
        Error::Failed(format!(
            "{}: the member {} was refused: {why}; nothing was imported",
            self.archive,
            shown(&member.path)
        ))
    }

    fn fault(&self, member: Option<&Member>, fault: Fault) -> Error {
        let at = member.map(|m| format!(" in the member {}", shown(&m.path))).unwrap_or_default();
        let archive = self.archive;
        match fault {
            Fault::Read(e) if e.kind() == io::ErrorKind::UnexpectedEof => Error::Failed(format!(
                "{archive} is cut off{at}: it ends before its end mark; get the whole archive and import again"
            )),
            Fault::Read(e) if e.raw_os_error().is_some() => {
                Error::Io(format!("reading the archive {archive}{at}"), e)
            }
            Fault::Read(e) => Error::Failed(format!(
                "{archive} is damaged{at} ({}); get the archive again",
                crate::error::words(&e)
            )),
            Fault::Bad(why) => Error::Failed(format!("{archive} cannot be imported: {why}")),
        }
    }

    fn member(&mut self, tape: &mut Tape<impl Read>, member: &Member) -> Result<()> {
        let mut meta = Meta {
            mode: member.mode,
            uid: member.uid,
            gid: member.gid,
            mtime: member.mtime,
            ..Meta::default()
        };
        let bits =
            pax::attributes(&member.records, &mut meta.xattrs).map_err(|why| self.refused(member, why))?;
        if let Some(bits) = bits {
            meta.mode = meta.mode & 0o7000 | bits;
        }
        let content = match member.kind {
            0 | b'0' | b'7' => return self.file(tape, member, meta),
            b'1' => {
                if member.size > 0 {
                    return Err(self.refused(member, "it is a hard link with a content of its own"));
                }
                let linked = self.growth.hard_link(&member.path, &member.link);
                return linked.map_err(|why| self.refused(member, why));
            }
            b'2' => {
                let impossible =
                    member.link.is_empty() || member.link.len() > TARGET_LIMIT || member.link.contains(&0);
                if impossible {
                    let why = format!("a symbolic link's target has 1 to {TARGET_LIMIT} bytes and no NUL");
                    return Err(self.refused(member, why));
                }
                Content::Symlink(member.link.clone())
            }
            b'3' => Content::Char(member.rdev.0, member.rdev.1),
            b'4' => Content::Block(member.rdev.0, member.rdev.1),
            b'5' | b'D' => Content::Dir { opaque: false },
            b'6' => Content::Fifo,
            b'M' => return Err(self.refused(member, "it is a part of an archive of several volumes")),
            other => {
                let why = format!("its type {:?} is not known", char::from(other));
                return Err(self.refused(member, why));
            }
        };
        self.growth.put(&member.path, meta, content).map_err(|why| self.refused(member, why))?;
        Ok(())
    }

    fn file(&mut self, tape: &mut Tape<impl Read>, member: &Member, meta: Meta) -> Result<()> {
        let unknown = Content::File { object: Digest([0; Digest::LEN]), size: member.size };
        let id = self.growth.put(&member.path, meta, unknown).map_err(|why| self.refused(member, why))?;
        self.files += 1;
        self.bytes += member.size;
        if member.size <= SMALL {
            let mut bytes = Vec::with_capacity(member.size as usize);
            let read = tape.content(member).read_to_end(&mut bytes);
            read.map_err(|e| self.fault(Some(member), e.into()))?;
            self.gathered_bytes += member.size;
            self.gathered.push((id, bytes));
            if self.gathered_bytes >= GATHERED || self.gathered.len() >= 16384 {
                self.hash_gathered()?;
            }
            return Ok(());
        }
        let added = self.intake.add_reader(tape.content(member), &|n| self.progress.advance(0, n))?;
        let (digest, _) = added.map_err(|e| self.fault(Some(member), e.into()))?;
        self.set(id, digest);
        self.progress.advance(1, 0);
        Ok(())
    }

    fn hash_gathered(&mut self) -> Result<()> {
        let gathered = std::mem::take(&mut self.gathered);
        self.gathered_bytes = 0;
        let (intake, progress) = (self.intake, self.progress);
        let digests = gathered
            .par_iter()
            .map(|(id, bytes)| {
                let added = intake.add_reader(bytes.as_slice(), &|_| {})?;
                progress.advance(1, bytes.len() as u64);
                Ok((*id, added.doing("reading memory")?.0))
            })
            .collect::<Result<Vec<_>>>()?;
        for (id, digest) in digests {
            self.set(id, digest);
        }
        Ok(())
    }

    fn set(&mut self, id: InodeId, digest: Digest) {
        if let Content::File { object, .. } = &mut self.growth.draft.get_mut(id).content {
            *object = digest;
        }
    }
}
