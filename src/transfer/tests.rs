//! Import and export against plain directories and the system's own `tar`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::store::progress::Silent;
use crate::sys::fs as sys;
use crate::sys::xattr;

/// A directory that goes with its test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("reroot-transfer-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }
    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
    fn store(&self) -> Store {
        Store::open(&self.at("store")).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn request(source: &str, name: &str) -> ImportRequest {
    ImportRequest {
        source: source.parse().unwrap(),
        name: name.parse().unwrap(),
        parent: None,
        as_delta: false,
        words: stack::Words::default(),
    }
}

fn from_dir(store: &Store, dir: &Path, name: &str) -> Result<Imported> {
    import(store, &request(&format!("dir:{}", dir.display()), name), &Silent)
}

fn from_tar(store: &Store, file: &Path, name: &str) -> Result<Imported> {
    import(store, &request(&format!("tar:{}", file.display()), name), &Silent)
}

fn to(store: &Store, name: &str, dest: &str) -> Result<Exported> {
    export(store, &name.parse().unwrap(), &dest.parse().unwrap(), &Silent)
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    let (dir, name_in) = (sys::open_dir(path.parent().unwrap()).unwrap(), path.file_name().unwrap());
    let fd = sys::open_at(&dir, name_in.as_bytes(), sys::Open::Path).unwrap();
    xattr::set(&fd, name.as_bytes(), value, xattr::Set::Any).unwrap();
}

/// Everything a person or program could see of a tree: one line of facts a path.
fn seen(root: &Path, sparse: bool) -> BTreeMap<Vec<u8>, String> {
    fn go(
        dir: &Path,
        path: &[u8],
        sparse: bool,
        out: &mut BTreeMap<Vec<u8>, String>,
        inodes: &mut BTreeMap<u64, Vec<u8>>,
    ) {
        let parent = sys::open_dir(dir.parent().unwrap()).unwrap();
        let fd = sys::open_at(&parent, dir.file_name().unwrap().as_bytes(), sys::Open::Path).unwrap();
        let s = sys::stat(&fd).unwrap();
        let mut names = xattr::list(&fd).unwrap();
        names.sort();
        let xattrs: Vec<_> =
            names.iter().map(|n| (n.escape_ascii().to_string(), xattr::get(&fd, n).unwrap())).collect();
        let mut facts = format!("{:o} {}:{} {:?} {xattrs:?}", s.mode, s.uid, s.gid, s.mtime);
        if !s.is_dir() {
            let first = inodes.entry(s.ino).or_insert_with(|| path.to_vec());
            facts += &format!(" {} links, first {} rdev {:?}", s.nlink, first.escape_ascii(), s.rdev);
        }
        if s.is_file() {
            facts += &format!(" {} {}", s.size, Digest::of(&fs::read(dir).unwrap()));
            if sparse {
                facts += if s.blocks * 512 < s.size { " sparse" } else { " full" };
            }
        }
        if s.format() == libc::S_IFLNK {
            facts += &format!(" {:?}", fs::read_link(dir).unwrap());
        }
        out.insert(path.to_vec(), facts);
        if s.is_dir() {
            let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
            entries.sort();
            for e in entries {
                let below = crate::layer::model::join(path, e.file_name().unwrap().as_bytes());
                go(&e, &below, sparse, out, inodes);
            }
        }
    }
    let mut out = BTreeMap::new();
    go(root, b"", sparse, &mut out, &mut BTreeMap::new());
    out
}

const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 6, 0, 0x31, 0xd4, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255,
    16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
];

/// A tree with everything that a file system can hold.
fn rich(root: &Path) {
    fs::create_dir(root).unwrap();
    let at = |n: &str| root.join(n);
    fs::create_dir_all(at("etc/deep/er")).unwrap();
    fs::write(at("etc/empty"), b"").unwrap();
    fs::write(at("etc/passwd"), b"root:x:0:0\n").unwrap();
    fs::write(at("suid"), b"\x7fELF").unwrap();
    fs::write(at("caps"), b"capable").unwrap();
    fs::write(at("big"), vec![7u8; 1_300_000]).unwrap();
    fs::hard_link(at("big"), at("etc/deep/big too")).unwrap();
    symlink("big", at("link")).unwrap();
    symlink("x".repeat(300), at("long link")).unwrap();
    let dir = sys::open_dir(root).unwrap();
    fs::hard_link(at("link"), at("link too")).unwrap();
    sys::mknod_at(&dir, b"null", libc::S_IFCHR | 0o666, (1, 3)).unwrap();
    sys::mknod_at(&dir, b"zero-zero", libc::S_IFCHR | 0o600, (0, 0)).unwrap();
    sys::mknod_at(&dir, b"disk", libc::S_IFBLK | 0o660, (259, 70000)).unwrap();
    sys::mknod_at(&dir, b"fifo", libc::S_IFIFO | 0o640, (0, 0)).unwrap();
    sys::mknod_at(&dir, b"socket", libc::S_IFSOCK | 0o755, (0, 0)).unwrap();
    sys::mknod_at(&dir, &[b'n', 0xff, b'\n', b'='], libc::S_IFREG | 0o644, (0, 0)).unwrap();
    fs::write(at(&"n".repeat(255)), b"long").unwrap();
    fs::write(at(".wh.literal"), b"no mark").unwrap();
    let holes = File::create(at("holes")).unwrap();
    holes.write_all_at(b"middle", 20 << 20).unwrap();
    holes.set_len(40 << 20).unwrap();
    File::create(at("all hole")).unwrap().set_len(9 << 20).unwrap();
    let own = |n: &str, uid, gid| std::os::unix::fs::lchown(at(n), Some(uid), Some(gid)).unwrap();
    own("etc/passwd", 1000, 4_000_000_000);
    own("suid", 5, 5);
    own("link", 9, 9);
    for (n, mode) in [("suid", 0o6755), ("etc/deep", 0o3771), ("etc/passwd", 0o400), ("etc", 0o555)] {
        fs::set_permissions(at(n), fs::Permissions::from_mode(mode)).unwrap();
    }
    // CAP_DAC_OVERRIDE and CAP_FOWNER: a value that holds a newline.
    set_xattr(
        &at("caps"),
        "security.capability",
        &[1, 0, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    set_xattr(&at("caps"), "user.a=b%", b"x\n12 size=99\n");
    set_xattr(&at("etc/passwd"), "user.large", &[b'v'; 2000]);
    set_xattr(&at("link"), "trusted.on-link", b"1");
    set_xattr(&at("etc/deep"), "trusted.overlay.opaque", b"y");
    set_xattr(&at("etc/deep"), "system.posix_acl_default", ACL);
    set_xattr(&at("etc/empty"), "system.posix_acl_access", ACL);
    let times = [
        ("etc/passwd", -2, 500_000_000),
        ("link", 1 << 33, 9),
        ("null", 5, 0),
        ("etc/deep", 7, 123_456_789),
        ("etc", 8, 1),
    ];
    for (n, sec, nsec) in times {
        let (up, name) = split(n.as_bytes());
        let up = sys::open_deep(&dir, up, sys::Open::DirPath).unwrap();
        let fd = sys::open_at(&up, name, sys::Open::Path).unwrap();
        let t = sys::SetTime::To(crate::sys::fs::Time { sec, nsec });
        sys::set_times(&fd, t, t).unwrap();
    }
}

fn assert_same(a: &BTreeMap<Vec<u8>, String>, b: &BTreeMap<Vec<u8>, String>) {
    for (path, facts) in a {
        assert_eq!(Some(facts), b.get(path), "{}", path.escape_ascii());
    }
    assert_eq!(a.len(), b.len());
}

/// Nothing is left of a failed import: no tag, no version, no file on its way.
fn assert_as_before(store: &Store) {
    assert!(store.refs().unwrap().is_empty());
    assert!(store.versions().unwrap().is_empty());
    for dir in ["objects", "layers", "trees", "cache", "versions"] {
        for e in fs::read_dir(store.path(dir)).unwrap().flatten() {
            assert!(!e.file_name().to_string_lossy().starts_with('.'), "{e:?}");
        }
    }
}

#[test]
fn a_directory_comes_back_exactly() {
    let scratch = Scratch::new("dir");
    let store = scratch.store();
    rich(&scratch.at("source"));
    let done = from_dir(&store, &scratch.at("source"), "i:1").unwrap();
    assert_eq!(done.delta_paths, done.manifest.paths);
    assert_eq!(done.bytes, done.manifest.bytes);
    let back = to(&store, "i:1", &format!("dir:{}", scratch.at("back").display())).unwrap();
    assert!(back.skipped.is_empty(), "{:?}", back.skipped);
    assert_eq!((back.files, back.bytes), (done.files, done.bytes));
    assert_same(&seen(&scratch.at("source"), true), &seen(&scratch.at("back"), true));
    let again = to(&store, "i:1", &format!("dir:{}", scratch.at("back").display()));
    assert!(matches!(again, Err(Error::Usage(_))));
    let mut same = request(&format!("dir:{}", scratch.at("back").display()), "i:2");
    same.parent = Some("i:1".parse().unwrap());
    assert!(matches!(import(&store, &same, &Silent), Err(Error::Nothing(_))));
}

#[test]
fn an_archive_comes_back_exactly_whatever_its_compression() {
    let scratch = Scratch::new("tar");
    let store = scratch.store();
    rich(&scratch.at("source"));
    fs::remove_file(scratch.at("source/socket")).unwrap();
    from_dir(&store, &scratch.at("source"), "i:1").unwrap();
    let source = seen(&scratch.at("source"), true);
    for ending in ["tar", "tar.gz", "tar.zst", "tar.xz"] {
        let file = scratch.at(&format!("a.{ending}"));
        to(&store, "i:1", &format!("tar:{}", file.display())).unwrap();
        let first = fs::read(&file).unwrap();
        assert!(first.len() < 3 << 20, "holes are written out: {}", first.len());
        to(&store, "i:1", &format!("tar:{}", file.display())).unwrap();
        assert_eq!(first, fs::read(&file).unwrap(), "not deterministic");
        let disguised = scratch.at("no-ending");
        fs::rename(&file, &disguised).unwrap();
        from_tar(&store, &disguised, "i:2").unwrap();
        assert_eq!(
            store.resolve(&"i:1".parse().unwrap()).map(|v| store.version(&v).unwrap().stack).unwrap(),
            store.resolve(&"i:2".parse().unwrap()).map(|v| store.version(&v).unwrap().stack).unwrap()
        );
        let back = scratch.at(&format!("back-{ending}"));
        to(&store, "i:2", &format!("dir:{}", back.display())).unwrap();
        assert_same(&source, &seen(&back, true));
    }
}

#[test]
fn the_systems_tar_and_ours_read_each_other() {
    let scratch = Scratch::new("gnu");
    let store = scratch.store();
    let (source, file) = (scratch.at("source"), scratch.at("a.tar"));
    rich(&source);
    fs::remove_file(source.join("socket")).unwrap();
    let expected = seen(&source, true);
    let tar = |args: &[&str]| {
        let done = Command::new("tar").args(args).output();
        done.map(|o| assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr))).is_ok()
    };
    let (source_text, file_text) = (source.to_str().unwrap(), file.to_str().unwrap());
    let common = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"];
    let run = |args: &[&str]| tar(&[&common[..], args].concat());
    for (version, sparse) in [("0.0", true), ("0.1", true), ("1.0", true), ("1.0", false)] {
        let option = format!("--sparse-version={version}");
        let mut args = vec!["--format=pax", "-cf", file_text, "-C", source_text];
        if sparse {
            args.extend(["--sparse", &option]);
        }
        args.push(".");
        if !run(&args) {
            return;
        }
        from_tar(&store, &file, "i:1").unwrap();
        let back = scratch.at(&format!("back{version}{sparse}"));
        to(&store, "i:1", &format!("dir:{}", back.display())).unwrap();
        assert_same(&expected, &seen(&back, true));
    }
    // With names of this host's accounts in it, an ACL cannot be taken; as an attribute it can.
    set_xattr(&source.join("etc/empty"), "system.posix_acl_access", &{
        let mut acl = ACL.to_vec();
        acl[16..20].copy_from_slice(&1u32.to_le_bytes());
        acl
    });
    assert!(run(&["--format=pax", "-cf", file_text, "-C", source_text, "."]));
    let e = from_tar(&store, &file, "i:names").unwrap_err().to_string();
    assert!(e.contains("daemon") && e.contains("etc/empty"), "{e}");
    let plain = ["--xattrs", "--xattrs-include=*", "--format=pax", "-cf", file_text, "-C", source_text, "."];
    assert!(tar(&plain));
    from_tar(&store, &file, "i:attributes").unwrap();
    let back = scratch.at("back-attributes");
    to(&store, "i:attributes", &format!("dir:{}", back.display())).unwrap();
    let expected = seen(&source, true);
    assert_same(&expected, &seen(&back, true));
    // GNU's own format has neither attributes nor nanoseconds; names and contents must be right.
    assert!(tar(&["--numeric-owner", "--format=gnu", "--sparse", "-cf", file_text, "-C", source_text, "."]));
    from_tar(&store, &file, "i:gnu").unwrap();
    let back = scratch.at("back-gnu");
    to(&store, "i:gnu", &format!("dir:{}", back.display())).unwrap();
    for name in ["holes", "all hole", "big", "etc/passwd", &"n".repeat(255)] {
        assert_eq!(fs::read(source.join(name)).unwrap(), fs::read(back.join(name)).unwrap(), "{name}");
    }
    assert_eq!(
        fs::read_link(back.join("long link")).unwrap(),
        fs::read_link(source.join("long link")).unwrap()
    );
    // The other way round.
    from_dir(&store, &source, "i:2").unwrap();
    to(&store, "i:2", &format!("tar:{file_text}")).unwrap();
    let unpacked = scratch.at("unpacked");
    fs::create_dir(&unpacked).unwrap();
    assert!(run(&["-xpf", file_text, "-C", unpacked.to_str().unwrap()]));
    assert_same(&expected, &seen(&unpacked, true));
}

#[test]
fn a_version_with_a_parent_stores_only_what_differs() {
    let scratch = Scratch::new("parent");
    let store = scratch.store();
    let source = scratch.at("source");
    rich(&source);
    from_dir(&store, &source, "i:1").unwrap();
    fs::write(source.join("suid"), b"new content").unwrap();
    fs::remove_file(source.join("fifo")).unwrap();
    let mut next = request(&format!("dir:{}", source.display()), "i:2");
    next.parent = Some("i:1".parse().unwrap());
    let done = import(&store, &next, &Silent).unwrap();
    // The root, the changed file, the whiteout.
    assert_eq!(done.delta_paths, 3);
    assert_eq!(done.new_bytes, 11);
    assert_eq!(done.manifest.stack.len(), 2);
    let back = scratch.at("back");
    to(&store, "i:2", &format!("dir:{}", back.display())).unwrap();
    assert_same(&seen(&source, true), &seen(&back, true));
    let old = scratch.at("old");
    to(&store, "i:1", &format!("dir:{}", old.display())).unwrap();
    assert!(old.join("fifo").exists() && !back.join("fifo").exists());
}

#[test]
fn what_was_hashed_once_is_not_hashed_again() {
    let scratch = Scratch::new("once");
    let store = scratch.store();
    let source = scratch.at("source");
    fs::create_dir(&source).unwrap();
    for i in 0..20 {
        fs::write(source.join(i.to_string()), format!("content {i}")).unwrap();
    }
    // An inode that changed just now is not trusted.
    let first = from_dir(&store, &source, "i:1").unwrap();
    assert_eq!(first.bytes_read, first.bytes);
    std::thread::sleep(std::time::Duration::from_millis(3100));
    assert_eq!(from_dir(&store, &source, "i:2").unwrap().bytes_read, first.bytes);
    let third = from_dir(&store, &source, "i:3").unwrap();
    assert_eq!((third.bytes_read, third.bytes), (0, first.bytes));
    assert_eq!(third.manifest.stack, first.manifest.stack);
    // A changed file is read again, alone; so is one whose object has gone.
    fs::write(source.join("3"), "CONTENT 3").unwrap();
    fs::remove_file(store.object_path(&Digest::of(b"content 12"))).unwrap();
    let fourth = from_dir(&store, &source, "i:4").unwrap();
    assert_eq!(fourth.bytes_read, 9 + 10);
    for entry in fs::read_dir(store.path("cache")).unwrap().flatten() {
        fs::write(entry.path(), b"reroot hashed 1\ngarbage \xff\n1 2 3").unwrap();
    }
    assert_eq!(from_dir(&store, &source, "i:5").unwrap().bytes_read, first.bytes);
}

/// Changes a file as soon as the first content was read.
struct Meddler(PathBuf, std::sync::Once);

impl Progress for Meddler {
    fn begin(&self, what: &str, _: Option<u64>) {
        if what == "reading the source" {
            self.1.call_once(|| fs::write(&self.0, b"other").unwrap());
        }
    }
    fn advance(&self, _: u64, _: u64) {}
}

#[test]
fn a_source_that_changes_while_it_is_read_is_refused() {
    let scratch = Scratch::new("changes");
    let store = scratch.store();
    let source = scratch.at("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("sub/file"), b"same").unwrap();
    for victim in ["sub/file", "sub/new"] {
        let meddler = Meddler(source.join(victim), std::sync::Once::new());
        let what = request(&format!("dir:{}", source.display()), "i:1");
        let e = import(&store, &what, &meddler).unwrap_err();
        assert!(matches!(&e, Error::Failed(m) if m.contains("sub") && m.contains("changed while")), "{e}");
        assert_as_before(&store);
    }
    let e = from_dir(&store, &scratch.0, "i:1").unwrap_err();
    assert!(matches!(e, Error::Usage(_)), "{e}");
}

/// A member of an archive: path, type, link, content.
type Row<'a> = (&'a [u8], u8, &'a [u8], &'a [u8]);

/// A small archive by hand.
fn archive(members: &[Row]) -> Vec<u8> {
    let mut out = Vec::new();
    for (path, kind, link, content) in members {
        let mut records = Vec::new();
        pax::write(&mut records, b"path", path);
        if !link.is_empty() {
            pax::write(&mut records, b"linkpath", link);
        }
        for (kind, content) in [(b'x', records.as_slice()), (*kind, content)] {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::new(kind));
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1);
            header.set_size(content.len() as u64);
            header.set_cksum();
            out.extend_from_slice(header.as_bytes());
            out.extend_from_slice(content);
            out.resize(out.len().next_multiple_of(512), 0);
        }
    }
    out.extend_from_slice(&[0; 1024]);
    out
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let scratch = Scratch::new("hostile");
    let store = scratch.store();
    let file = scratch.at("a.tar");
    let long = [b'n'; 256];
    let target = [b't'; 4096];
    let deep = b"d/".repeat(1001);
    let cases: [(&str, &[Row]); 17] = [
        ("parent", &[(b"a/../../etc/passwd", b'0', b"", b"x")]),
        ("parent at the end", &[(b"a/..", b'5', b"", b"")]),
        ("absolute", &[(b"/etc/passwd", b'0', b"", b"x")]),
        ("through a link", &[(b"l", b'2', b"/etc", b""), (b"l/passwd", b'0', b"", b"x")]),
        ("through a file", &[(b"f", b'0', b"", b""), (b"f/passwd", b'0', b"", b"x")]),
        ("hard link out", &[(b"h", b'1', b"../etc/passwd", b"")]),
        ("hard link absolute", &[(b"h", b'1', b"/etc/passwd", b"")]),
        ("hard link to nothing", &[(b"h", b'1', b"later", b""), (b"later", b'0', b"", b"")]),
        ("hard link to a directory", &[(b"d", b'5', b"", b""), (b"h", b'1', b"d", b"")]),
        ("NUL", &[(b"a\0b", b'0', b"", b"")]),
        ("NUL in a target", &[(b"a", b'2', b"x\0y", b"")]),
        ("long name", &[(&long, b'0', b"", b"")]),
        ("long target", &[(b"l", b'2', &target, b"")]),
        ("empty target", &[(b"l", b'2', b"", b"")]),
        ("deep", &[(&deep, b'5', b"", b"")]),
        ("root is a file", &[(b"./", b'0', b"", b"x")]),
        ("unknown type", &[(b"q", b'Q', b"", b"")]),
    ];
    for (what, members) in cases {
        fs::write(&file, archive(members)).unwrap();
        let e = from_tar(&store, &file, "i:1").expect_err(what);
        let last = members.last().unwrap();
        let first = shown(members[0].0);
        assert!(e.to_string().contains("a.tar"), "{what}: {e}");
        assert!(e.to_string().contains(&shown(last.0)) || e.to_string().contains(&first), "{what}: {e}");
        assert_as_before(&store);
        assert_eq!(fs::read_dir(store.path("objects")).unwrap().count(), 0, "{what}");
    }
    for garbage in [
        &b""[..],
        b"x",
        &[7u8; 5000],
        b"\x1f\x8bgarbage",
        b"\xfd7zXZ\0garbage",
        b"\x28\xb5\x2f\xfdgarbage",
        b"BZh9",
    ] {
        fs::write(&file, garbage).unwrap();
        let e = from_tar(&store, &file, "i:1").unwrap_err();
        assert!(e.to_string().contains("a.tar"), "{e}");
        assert_as_before(&store);
    }
}

#[test]
fn an_archive_that_is_cut_off_anywhere_is_refused() {
    let scratch = Scratch::new("cut");
    let store = scratch.store();
    let content: Vec<u8> = (0..1500u32).map(|i| (i.wrapping_mul(2654435761) >> 13) as u8).collect();
    let whole = archive(&[(b"d", b'5', b"", b""), (b"d/a", b'0', b"", &content), (b"d/b", b'0', b"", b"b")]);
    let file = scratch.at("a.tar");
    fs::write(&file, &whole).unwrap();
    from_tar(&store, &file, "whole:1").unwrap();
    store.remove_ref("whole", "1").unwrap();
    let before = store.versions().unwrap();
    let compressed = [
        whole.clone(),
        {
            let mut e = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            e.write_all(&whole).unwrap();
            e.finish().unwrap()
        },
        {
            let mut e = zstd::stream::write::Encoder::new(Vec::new(), 0).unwrap();
            e.include_checksum(true).unwrap();
            e.write_all(&whole).unwrap();
            e.finish().unwrap()
        },
        {
            let mut e = xz2::write::XzEncoder::new(Vec::new(), 6);
            e.write_all(&whole).unwrap();
            e.finish().unwrap()
        },
    ];
    for (way, bytes) in compressed.iter().enumerate() {
        // Plain, the second block of the end mark may be missing.
        let end = if way == 0 { whole.len() - 1024 + 511 } else { bytes.len() - 1 };
        for length in (1..=end)
            .rev()
            .step_by(if way == 0 { 256 } else { 37 })
            .chain([1024, 1536].into_iter().filter(|n| *n <= end))
        {
            fs::write(&file, &bytes[..length]).unwrap();
            let e = from_tar(&store, &file, "i:1").expect_err(&format!("way {way}, {length} bytes"));
            assert!(e.to_string().contains("a.tar"), "{e}");
            assert!(store.refs().unwrap().is_empty());
            assert_eq!(store.versions().unwrap(), before);
        }
    }
    let mut flipped = compressed[1].clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    fs::write(&file, flipped).unwrap();
    from_tar(&store, &file, "i:1").unwrap_err();
}

#[test]
fn no_header_makes_the_reader_panic() {
    use std::io::Read;
    let sparse: &[(&[u8], &[u8])] = &[
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.realsize", b"9000"),
        (b"mtime", b"-1.5"),
        (b"size", b"1024"),
    ];
    let mut records = Vec::new();
    for (key, value) in sparse {
        pax::write(&mut records, key, value);
    }
    let mut content = b"2\n0\n500\n8000\n12\n".to_vec();
    content.resize(1024, 0);
    let whole =
        archive(&[(b"a", b'0', b"", b"abc"), (b"", b'x', b"", &records), (b"s", b'S', b"", &content)]);
    let mut state = 88172645463325252u64;
    let mut random = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n as u64) as usize
    };
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random(4) {
            let at = random(bytes.len());
            bytes[at] = [0, b'0', b'7', b'9', 0x80, 0xff, b'\n', b'1', b'S', b'x', b'L', b'g'][random(12)];
        }
        for block in bytes.chunks_mut(512) {
            let mut header = tar::Header::new_old();
            header.as_mut_bytes().copy_from_slice(block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
        let mut tape = tape::Tape::new(&bytes[..]);
        while let Ok(Some(member)) = tape.next() {
            let _ = pax::attributes(&member.records, &mut BTreeMap::new());
            let _ = tape.content(&member).take(1 << 16).read_to_end(&mut Vec::new());
        }
    }
}

#[test]
fn later_members_replace_earlier_ones_and_missing_directories_are_made() {
    let scratch = Scratch::new("replace");
    let store = scratch.store();
    let file = scratch.at("a.tar");
    let members: [Row; 7] = [
        (b"./a/b/c", b'0', b"", b"old"),
        (b"a/b", b'5', b"", b""),
        (b"a/b/c", b'0', b"", b"new"),
        (b"a/b//h", b'1', b"./a/b/c", b""),
        (b"x", b'2', b"/nowhere", b""),
        (b"x", b'5', b"", b""),
        (b"x/y", b'0', b"", b"y"),
    ];
    fs::write(&file, archive(&members)).unwrap();
    from_tar(&store, &file, "i:1").unwrap();
    let back = scratch.at("back");
    to(&store, "i:1", &format!("dir:{}", back.display())).unwrap();
    assert_eq!(fs::read(back.join("a/b/c")).unwrap(), b"new");
    assert_eq!(fs::read(back.join("a/b/h")).unwrap(), b"new");
    assert_eq!(fs::read(back.join("x/y")).unwrap(), b"y");
    let mode = |n: &str| fs::metadata(back.join(n)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("a"), mode("a/b")), (0o755, 0o644));
}

#[test]
fn an_oci_delta_hides_what_it_marks_and_keeps_the_rest() {
    let scratch = Scratch::new("oci");
    let store = scratch.store();
    let base = scratch.at("base");
    for n in ["keep/a", "gone/b", "opaque/old", "replaced/old"] {
        fs::create_dir_all(base.join(n).parent().unwrap()).unwrap();
        fs::write(base.join(n), n).unwrap();
    }
    fs::set_permissions(base.join("keep"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(&base, fs::Permissions::from_mode(0o711)).unwrap();
    from_dir(&store, &base, "i:1").unwrap();
    let file = scratch.at("a.tar");
    let members: [Row; 7] = [
        (b"keep/new", b'0', b"", b"new"),
        (b".wh.gone", b'0', b"", b""),
        (b"opaque/new", b'0', b"", b"new"),
        (b"opaque/.wh..wh..opq", b'0', b"", b""),
        (b"replaced/new", b'0', b"", b"new"),
        (b".wh.replaced", b'0', b"", b""),
        (b"keep/.wh..wh.plnk", b'0', b"", b""),
    ];
    fs::write(&file, archive(&members)).unwrap();
    let mut delta = request(&format!("tar:{}", file.display()), "i:2");
    delta.as_delta = true;
    assert!(matches!(import(&store, &delta, &Silent), Err(Error::Usage(_))));
    delta.parent = Some("i:1".parse().unwrap());
    import(&store, &delta, &Silent).unwrap();
    let back = scratch.at("back");
    to(&store, "i:2", &format!("dir:{}", back.display())).unwrap();
    let names: Vec<String> =
        seen(&back, false).keys().map(|k| String::from_utf8(k.clone()).unwrap()).collect();
    let expected = ["", "keep", "keep/a", "keep/new", "opaque", "opaque/new", "replaced", "replaced/new"];
    assert_eq!(names, expected);
    // What the delta only goes through keeps its attributes.
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&back), mode(&back.join("keep"))), (0o711, 0o700));
    // Without --as-delta the names mean nothing.
    from_tar(&store, &file, "i:3").unwrap();
    to(&store, "i:3", &format!("dir:{}", scratch.at("plain").display())).unwrap();
    assert!(scratch.at("plain/.wh.gone").exists());
    fs::write(&file, archive(&[(b".wh...", b'0', b"", b"")])).unwrap();
    assert!(import(&store, &delta, &Silent).unwrap_err().to_string().contains(".wh..."));
}

#[test]
fn paths_longer_than_a_system_call_takes_come_back() {
    let scratch = Scratch::new("deep");
    let store = scratch.store();
    let source = scratch.at("source");
    fs::create_dir(&source).unwrap();
    let mut dir = sys::open_dir(source.as_path()).unwrap();
    for i in 0..30 {
        let name = [b'a' + i % 26; 255];
        sys::mkdir_at(&dir, &name, 0o755).unwrap();
        dir = sys::open_at(&dir, &name, sys::Open::Dir).unwrap();
    }
    sys::create_at(&dir, b"file", 0o644).unwrap().write_all(b"deep").unwrap();
    from_dir(&store, &source, "i:1").unwrap();
    let file = scratch.at("a.tar");
    to(&store, "i:1", &format!("tar:{}", file.display())).unwrap();
    to(&store, "i:1", &format!("dir:{}", scratch.at("back").display())).unwrap();
    for source in [format!("tar:{}", file.display()), format!("dir:{}", scratch.at("back").display())] {
        let mut same = request(&source, "i:2");
        same.parent = Some("i:1".parse().unwrap());
        assert!(matches!(import(&store, &same, &Silent), Err(Error::Nothing(_))));
    }
}

#[test]
fn an_archive_skips_sockets_and_says_so() {
    let scratch = Scratch::new("socket");
    let store = scratch.store();
    rich(&scratch.at("source"));
    from_dir(&store, &scratch.at("source"), "i:1").unwrap();
    let done = to(&store, "i:1", &format!("tar:{}", scratch.at("a.tar").display())).unwrap();
    assert_eq!(done.skipped.len(), 1);
    assert!(done.skipped[0].contains("socket"));
}

/// A small file system that goes with its test.
struct Tiny(PathBuf);

impl Tiny {
    fn new(at: PathBuf, option: &str) -> Tiny {
        fs::create_dir(&at).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", option, "tmpfs"]).arg(&at).status();
        assert!(done.unwrap().success(), "run the tests as root");
        Tiny(at)
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = crate::sys::mount::unmount(&self.0, true);
    }
}

#[test]
fn a_full_disk_is_named_and_leaves_the_store_as_it_was() {
    let scratch = Scratch::new("full");
    let source = scratch.at("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("large"), vec![1u8; 6 << 20]).unwrap();
    for i in 0..600 {
        fs::write(source.join(format!("f{i}")), format!("{i}").repeat(3000)).unwrap();
    }
    let roomy = scratch.store();
    from_dir(&roomy, &source, "i:1").unwrap();
    let file = scratch.at("a.tar");
    to(&roomy, "i:1", &format!("tar:{}", file.display())).unwrap();
    for (i, option) in ["size=4m", "size=40m,nr_inodes=200"].iter().enumerate() {
        let tiny = Tiny::new(scratch.at(&format!("tiny{i}")), option);
        let store = Store::open(&tiny.0.join("store")).unwrap();
        for way in 0..2 {
            let e = if way == 0 { from_dir(&store, &source, "i:1") } else { from_tar(&store, &file, "i:1") };
            let e = e.unwrap_err();
            let said = e.to_string();
            assert!(said.contains("No space left") && said.contains("tiny") && said.contains("gc"), "{said}");
            assert_as_before(&store);
            assert_eq!(fs::read_dir(store.path("objects")).unwrap().count(), 0);
        }
        fs::remove_dir_all(tiny.0.join("store")).unwrap();
        let e = to(&roomy, "i:1", &format!("dir:{}", tiny.0.join("out").display())).unwrap_err();
        assert!(e.to_string().contains("No space left"), "{e}");
        if i == 0 {
            let e = to(&roomy, "i:1", &format!("tar:{}", tiny.0.join("out.tar").display())).unwrap_err();
            assert!(e.to_string().contains("No space left"), "{e}");
        }
        assert_eq!(fs::read_dir(&tiny.0).unwrap().count(), 0);
    }
}

#[test]
fn sources_and_destinations_are_read_strictly() {
    assert_eq!("tar:-".parse::<Source>().unwrap(), Source::Tar(Stream::Standard));
    assert_eq!("dir:/a:b".parse::<Source>().unwrap(), Source::Dir("/a:b".into()));
    for text in ["", "dir:", "/plain/path", "zip:x"] {
        assert!(matches!(text.parse::<Source>(), Err(Error::Usage(_))), "{text}");
        assert!(matches!(text.parse::<Dest>(), Err(Error::Usage(_))), "{text}");
    }
    let scratch = Scratch::new("strict");
    let store = scratch.store();
    for text in ["oci:x", "disk:x.qcow2#1"] {
        assert!(matches!(import(&store, &request(text, "i:1"), &Silent), Err(Error::Usage(_))));
    }
    let by_digest = request("dir:/tmp", "i@sha384:0123456789ab");
    assert!(matches!(import(&store, &by_digest, &Silent), Err(Error::Usage(_))));
    assert!(from_dir(&store, &scratch.at("missing"), "i:1").unwrap_err().to_string().contains("missing"));
}
