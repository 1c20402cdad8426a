//! FORMAT.md is what the program writes: a reader made from that page alone reads an index file, computes the numbers
//! and digests again, and finds every path.

use std::collections::BTreeMap;

use reroot::layer::encode;
use reroot::layer::model::{Content, Draft, Meta, ROOT};
use reroot::store::Digest;
use reroot::sys::fs::Time;
use sha2::{Digest as _, Sha384};

const S_IFMT: u32 = 0o170000;
const S_IFDIR: u32 = 0o040000;
const S_IFREG: u32 = 0o100000;
const S_IFLNK: u32 = 0o120000;
const S_IFCHR: u32 = 0o020000;
const S_IFBLK: u32 = 0o060000;

/// An index file, read by the page.
struct Page<'a> {
    bytes: &'a [u8],
    counts: [usize; 5],
}

#[derive(Clone, Debug)]
struct Row {
    number: u64,
    size: u64,
    sec: i64,
    nsec: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    parent: u32,
    name: Vec<u8>,
    flags: u16,
    first: u32,
    count: u32,
    next: u32,
    blob: (u32, u32),
    xattrs: Vec<u8>,
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(b[at..at + 2].try_into().unwrap())
}
fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}
fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
}

impl<'a> Page<'a> {
    fn read(bytes: &'a [u8]) -> Page<'a> {
        assert_eq!(&bytes[..8], b"rerootix");
        assert_eq!(u32_at(bytes, 8), 1);
        assert!(bytes[104..256].iter().all(|b| *b == 0));
        let counts = [64, 72, 80, 88, 96].map(|at| u64_at(bytes, at) as usize);
        let page = Page { bytes, counts };
        assert_eq!(page.start(5), bytes.len(), "the file ends with its last section");
        page
    }

    /// Where a section begins: nodes, digests, numbers, names, blobs, end.
    fn start(&self, section: usize) -> usize {
        256 + self
            .counts
            .iter()
            .zip([80, 48, 16, 1, 1])
            .take(section)
            .map(|(n, unit)| n * unit)
            .sum::<usize>()
    }

    fn cut(&self, section: usize, at: u32, len: u32) -> &'a [u8] {
        let start = self.start(section) + at as usize;
        assert!(start + len as usize <= self.start(section + 1));
        &self.bytes[start..start + len as usize]
    }

    fn digest(&self, at: u32) -> [u8; 48] {
        assert!((at as usize) < self.counts[1]);
        self.cut(1, at * 48, 48).try_into().unwrap()
    }

    fn rows(&self) -> Vec<Row> {
        (0..self.counts[0])
            .map(|i| {
                let b = &self.bytes[256 + i * 80..][..80];
                Row {
                    number: u64_at(b, 0),
                    size: u64_at(b, 8),
                    sec: u64_at(b, 16) as i64,
                    nsec: u32_at(b, 24),
                    mode: u32_at(b, 28),
                    uid: u32_at(b, 32),
                    gid: u32_at(b, 36),
                    parent: u32_at(b, 40),
                    name: self.cut(3, u32_at(b, 44), u16_at(b, 48).into()).to_vec(),
                    flags: u16_at(b, 50),
                    first: u32_at(b, 52),
                    count: u32_at(b, 56),
                    next: u32_at(b, 60),
                    blob: (u32_at(b, 64), u32_at(b, 68)),
                    xattrs: self.cut(4, u32_at(b, 72), u32_at(b, 76)).to_vec(),
                }
            })
            .collect()
    }

    fn path(rows: &[Row], mut at: usize) -> Vec<u8> {
        let mut names = Vec::new();
        while at != 0 {
            names.push(rows[at].name.clone());
            assert!((rows[at].parent as usize) < at, "a parent comes before its child");
            at = rows[at].parent as usize;
        }
        names.reverse();
        names.join(&b'/')
    }
}

/// A tree with every type, hard links within and across directories, and names that sort unlike their paths.
fn draft() -> Draft {
    let meta = |mode: u32, n: i64| Meta {
        mode,
        uid: 7 + n as u32,
        gid: 9,
        mtime: Time { sec: n - 5, nsec: 123_456_789 },
        xattrs: BTreeMap::new(),
    };
    let mut out = Draft::new(meta(0o755, 0));
    let dir = |out: &mut Draft, parent, name: &[u8], n| {
        let id = out.add(meta(0o750, n), Content::Dir { opaque: false });
        out.link(parent, name, id);
        id
    };
    let a = dir(&mut out, ROOT, b"a", 1);
    let ab = dir(&mut out, a, b"b", 2);
    dir(&mut out, ROOT, b"empty", 3);
    let object = |text: &[u8]| Content::File { object: Digest::of(text), size: text.len() as u64 };
    let group = out.add(meta(0o4755, 4), object(b"shared"));
    for (parent, name) in [(ab, &b"z"[..]), (ROOT, b"a.first"), (a, b"\xff not utf-8")] {
        out.link(parent, name, group);
    }
    let mut with_xattrs = meta(0o644, 6);
    with_xattrs.xattrs.insert(b"user.one".to_vec(), b"1".to_vec());
    with_xattrs.xattrs.insert(b"user.empty".to_vec(), Vec::new());
    for (name, attributes, content) in [
        (&b"file"[..], with_xattrs.clone(), object(b"alone")),
        (b"link", meta(0o777, 7), Content::Symlink(b"../target".to_vec())),
        (b"null", meta(0o666, 8), Content::Char(1, 3)),
        (b"disk", with_xattrs, Content::Block(259, 70_000)),
        (b"pipe", meta(0o600, 9), Content::Fifo),
        (b"sock", meta(0o600, 10), Content::Socket),
    ] {
        let id = out.add(attributes, content);
        out.link(ab, name, id);
    }
    out
}

#[test]
fn a_reader_made_from_the_page_alone_reads_a_tree() {
    let draft = draft();
    let stack = Digest::of(b"the stack");
    let bytes = encode::tree(&draft, stack).unwrap();
    let page = Page::read(&bytes);
    assert_eq!(u32_at(&bytes, 12), 1);
    assert_eq!(bytes[16..64], stack.0);
    let rows = page.rows();
    let paths: Vec<Vec<u8>> = (0..rows.len()).map(|i| Page::path(&rows, i)).collect();

    let mut expected: Vec<Vec<u8>> = draft.walk().into_iter().map(|(p, _)| p).collect();
    let mut found = paths.clone();
    expected.sort();
    found.sort();
    assert_eq!(found, expected, "every path is there once");

    // Children, groups, contents.
    for (i, row) in rows.iter().enumerate() {
        let inode = draft.get(draft.find(&paths[i]).unwrap());
        let m = &inode.meta;
        assert_eq!((row.mode & 0o7777, row.uid, row.gid), (m.mode, m.uid, m.gid));
        assert_eq!((row.sec, row.nsec, row.flags), (m.mtime.sec, m.mtime.nsec, 0));
        let mut xattrs = Vec::new();
        for (name, value) in &m.xattrs {
            xattrs.extend_from_slice(&(name.len() as u16).to_le_bytes());
            xattrs.extend_from_slice(&(value.len() as u32).to_le_bytes());
            xattrs.extend_from_slice(name);
            xattrs.extend_from_slice(value);
        }
        assert_eq!(row.xattrs, xattrs);
        if row.mode & S_IFMT == S_IFDIR {
            let children: Vec<usize> = (row.first as usize..(row.first + row.count) as usize).collect();
            assert!(children.iter().all(|c| *c > i && rows[*c].parent as usize == i));
            assert!(children.windows(2).all(|w| rows[w[0]].name < rows[w[1]].name), "sorted by bytes");
            assert_eq!(children.len(), inode.children.len());
            let subdirs = children.iter().filter(|c| rows[**c].mode & S_IFMT == S_IFDIR).count();
            assert_eq!(row.next as usize, subdirs);
        } else {
            let mut ring = vec![i];
            while rows[ring[ring.len() - 1]].next as usize != i {
                ring.push(rows[ring[ring.len() - 1]].next as usize);
                assert!(ring.len() <= rows.len());
            }
            assert_eq!(ring.len(), row.count as usize);
            let leader = ring.iter().min_by_key(|at| &paths[**at]).unwrap();
            assert_eq!(row.first as usize, *leader);
        }
        match &inode.content {
            Content::File { object, size } => {
                assert_eq!((row.mode & S_IFMT, row.size), (S_IFREG, *size));
                assert_eq!(page.digest(row.blob.0), object.0);
            }
            Content::Symlink(target) => {
                assert_eq!((row.mode & S_IFMT, row.size), (S_IFLNK, target.len() as u64));
                assert_eq!(page.cut(4, row.blob.0, row.blob.1), target);
            }
            Content::Char(a, b) | Content::Block(a, b) => assert_eq!(row.blob, (*a, *b)),
            _ => {}
        }
    }

    // Numbers: computed again in byte order of paths.
    let mut order: Vec<usize> = (1..rows.len()).collect();
    order.sort_by(|a, b| paths[*a].cmp(&paths[*b]));
    let mut taken = std::collections::BTreeSet::from([1u64]);
    let mut table = vec![(1u64, 0u64)];
    assert_eq!(rows[0].number, 1);
    for i in order {
        let row = &rows[i];
        let is_dir = row.mode & S_IFMT == S_IFDIR;
        if !is_dir && row.first as usize != i {
            assert_eq!(row.number, rows[row.first as usize].number, "a group has one number");
            continue;
        }
        let mut input = (row.mode & S_IFMT).to_le_bytes().to_vec();
        input.extend_from_slice(&paths[i]);
        input.push(0);
        match row.mode & S_IFMT {
            S_IFREG => input.extend_from_slice(&page.digest(row.blob.0)),
            S_IFLNK => input.extend_from_slice(page.cut(4, row.blob.0, row.blob.1)),
            S_IFCHR | S_IFBLK => {
                input.extend_from_slice(&row.blob.0.to_le_bytes());
                input.extend_from_slice(&row.blob.1.to_le_bytes());
            }
            _ => {}
        }
        let number = u64::from_be_bytes(Sha384::digest(&input)[..8].try_into().unwrap()) % (1 << 62);
        assert_eq!(row.number, number, "{}", String::from_utf8_lossy(&paths[i]));
        assert!(taken.insert(number));
        table.push((number, i as u64));
    }
    table.sort_unstable();
    let start = page.start(2);
    let written: Vec<(u64, u64)> = (0..page.counts[2])
        .map(|i| (u64_at(&bytes, start + i * 16), u64_at(&bytes, start + i * 16 + 8)))
        .collect();
    assert_eq!(written, table);

    // Directory digests: computed again, children before their directories.
    for (i, row) in rows.iter().enumerate().rev().filter(|(_, r)| r.mode & S_IFMT == S_IFDIR) {
        let mut input = Vec::new();
        for child in &rows[row.first as usize..(row.first + row.count) as usize] {
            input.extend_from_slice(&(child.name.len() as u32).to_le_bytes());
            input.extend_from_slice(&child.name);
            for word in [child.mode, child.uid, child.gid, child.nsec] {
                input.extend_from_slice(&word.to_le_bytes());
            }
            input.extend_from_slice(&child.sec.to_le_bytes());
            input.extend_from_slice(&child.number.to_le_bytes());
            input.extend_from_slice(&child.count.to_le_bytes());
            input.extend_from_slice(&(child.xattrs.len() as u32).to_le_bytes());
            input.extend_from_slice(&child.xattrs);
            match child.mode & S_IFMT {
                S_IFREG | S_IFDIR => input.extend_from_slice(&page.digest(child.blob.0)),
                S_IFLNK => input.extend_from_slice(page.cut(4, child.blob.0, child.blob.1)),
                _ => {}
            }
        }
        assert_eq!(page.digest(row.blob.0)[..], Sha384::digest(&input)[..], "of {:?}", paths[i]);
    }
}

#[test]
fn a_reader_made_from_the_page_alone_reads_a_layer() {
    let mut draft = draft();
    let meta = Meta { mode: 0o755, ..Meta::default() };
    let opaque = draft.add(meta, Content::Dir { opaque: true });
    draft.link(ROOT, b"opaque", opaque);
    let gone = draft.add(Meta::default(), Content::Whiteout);
    draft.link(opaque, b"gone", gone);
    let bytes = encode::layer(&draft).unwrap();
    let page = Page::read(&bytes);
    assert_eq!((u32_at(&bytes, 12), page.counts[2]), (0, 0));
    assert!(bytes[16..64].iter().all(|b| *b == 0));
    let rows = page.rows();
    assert!(rows.iter().all(|r| r.number == 0));
    for (i, row) in rows.iter().enumerate() {
        let path = Page::path(&rows, i);
        assert_eq!(row.flags, u16::from(path == b"opaque"));
        assert_eq!(row.mode & S_IFMT == 0, path == b"opaque/gone");
        match row.mode & S_IFMT {
            S_IFDIR => assert_eq!(row.blob, (0, 0)),
            _ => assert_eq!(row.first as usize, i, "a layer names no leader"),
        }
    }
}
