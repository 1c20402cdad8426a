//! Modes, owners, times' relatives: extended attributes and what statx and statfs say.

use std::fs::{self, File};
use std::path::Path;

use rustix::fs::{self as rfs, AtFlags, CWD, Mode, StatxFlags, XattrFlags};

use crate::common::desk::desk;
use crate::common::tree::{self, Item};
use crate::twins::{At, OTHER, as_user, twins};

fn fill(dir: &Path) {
    let large = vec![7; 1_200_000];
    tree::write(
        dir,
        &[
            ("file", Item::Mode(b"content", 0o666)),
            ("large", Item::Mode(&large, 0o644)),
            ("dir/x", Item::File(b"x")),
            ("link", Item::Link("file")),
            ("theirs", Item::Mode(b"theirs", 0o644)),
            ("their-dir", Item::Dir(0o755)),
        ],
    );
    crate::common::sh(
        dir,
        "mkfifo pipe; mknod null c 1 3; mknod nil c 0 0
         setfattr -n user.shipped -v yes file dir large; setfattr -n user.second -v 2 file
         setfattr -h -n trusted.shipped -v yes file link dir; chown -R 1234:1234 theirs their-dir",
    )
    .ok();
}

fn set(at: &At, path: &str, name: &str, value: &[u8], flags: XattrFlags) {
    let what = format!("set {path} {} {flags:?}", &name[..name.len().min(40)]);
    at.did(&what, rfs::lsetxattr(at.path(path), name, value, flags));
}

fn get(at: &At, path: &str, name: &str, room: usize) {
    let mut value = vec![0; room];
    let read = rfs::lgetxattr(at.path(path), name, &mut value[..]);
    let n = at.did(&format!("get {path} {} into {room}", &name[..name.len().min(40)]), read).unwrap_or(0);
    at.note("value", &value[..n.min(room)]);
}

fn remove(at: &At, path: &str, name: &str) {
    at.did(&format!("remove {path} {name}"), rfs::lremovexattr(at.path(path), name));
}

const PATHS: [&str; 8] = ["file", "large", "dir", "link", "pipe", "null", "nil", "theirs"];

#[test]
fn extended_attributes_have_ext4s_flags_families_and_errors() {
    twins(fill, |at| {
        let all = || {
            for path in PATHS {
                for name in
                    ["user.n", "trusted.n", "security.n", "system.n", "other.n", "user.", "n", "user.shipped"]
                {
                    get(at, path, name, 100);
                    set(at, path, name, b"v", XattrFlags::REPLACE);
                    set(at, path, name, b"value", XattrFlags::CREATE);
                    set(at, path, name, b"v", XattrFlags::CREATE);
                    set(at, path, name, b"", XattrFlags::REPLACE);
                    get(at, path, name, 100);
                    set(at, path, name, b"twenty-six bytes of a value", XattrFlags::empty());
                    for room in [0, 26, 27, 28] {
                        get(at, path, name, room);
                    }
                    set(at, path, name, b"both", XattrFlags::CREATE | XattrFlags::REPLACE);
                    set(at, path, name, b"unknown", XattrFlags::from_bits_retain(8));
                }
                remove(at, path, "user.n");
                remove(at, path, "user.n");
                remove(at, path, "trusted.shipped");
                remove(at, path, "security.n");
                list(at, path);
            }
        };
        at.as_other(all);
        all();
    });
}

fn list(at: &At, path: &str) {
    let mut buf = vec![0; 65536];
    match rfs::llistxattr(at.path(path), &mut buf[..]) {
        Ok(n) => {
            let mut names: Vec<_> = buf[..n].split(|c| *c == 0).map(String::from_utf8_lossy).collect();
            names.sort();
            at.note("names", names);
            for room in [1, n.saturating_sub(1), n, n + 1] {
                at.did("list", rfs::llistxattr(at.path(path), &mut buf[..room]));
            }
        }
        Err(e) => at.note("list", e),
    }
}

#[test]
fn names_of_255_bytes_and_values_of_64_kib_are_the_limit() {
    twins(fill, |at| {
        for path in ["file", "dir", "large"] {
            for len in [254, 255, 256, 300] {
                let name = format!("user.{}", "n".repeat(len - 5));
                set(at, path, &name, b"long", XattrFlags::empty());
                get(at, path, &name, 10);
                remove(at, path, &name);
            }
            for len in [2000, 65537, 100_000] {
                set(at, path, "user.big", &vec![b'v'; len], XattrFlags::empty());
                get(at, path, "user.big", 65536);
            }
            remove(at, path, "user.big");
            // As many as there is room for. How many that is differs by the room that the marks take.
            let mut count = 0;
            while count < 3000 {
                let name = format!("user.attribute-{count:04}");
                match rfs::lsetxattr(at.path(path), &*name, b"some value", XattrFlags::empty()) {
                    Ok(()) => count += 1,
                    Err(e) => {
                        at.note("full", e);
                        break;
                    }
                }
            }
            assert!(count > 20, "{count}");
            for i in 0..count {
                rfs::lremovexattr(at.path(path), &*format!("user.attribute-{i:04}")).unwrap();
            }
            list(at, path);
        }
    });
}

#[test]
fn owners_and_modes_change_as_on_ext4() {
    twins(fill, |at| {
        let chown = |path: &str, uid: Option<u32>, gid: Option<u32>| {
            let (u, g) = (uid.map(rfs::Uid::from_raw), gid.map(rfs::Gid::from_raw));
            at.did(
                &format!("chown {path} {uid:?} {gid:?}"),
                rfs::chownat(CWD, at.path(path), u, g, AtFlags::SYMLINK_NOFOLLOW),
            );
            at.look(path);
        };
        let chmod = |path: &str, mode: u32| {
            at.did(&format!("chmod {path} {mode:o}"), rfs::chmod(at.path(path), Mode::from_raw_mode(mode)));
            at.look(path);
        };
        let all = |paths: &[&str]| {
            for path in paths {
                for mode in [0o600, 0o7777, 0o2755, 0o1644, 0, 0o6711] {
                    chmod(path, mode);
                    chown(path, None, None);
                    chown(path, None, Some(OTHER));
                    chmod(path, mode);
                    chown(path, None, Some(77));
                    chmod(path, mode);
                    chown(path, Some(OTHER), None);
                    chown(path, Some(7), Some(77));
                    chown(path, Some(0), None);
                }
            }
        };
        as_user(OTHER, OTHER, &[77], || all(&["file", "dir", "pipe", "theirs", "their-dir"]));
        chown("theirs", Some(OTHER), Some(OTHER));
        all(&["file", "large", "dir", "pipe", "null", "nil", "theirs", "their-dir"]);
        chown("link", Some(3), Some(4));
        as_user(OTHER, OTHER, &[], || {
            chmod("theirs", 0o2755);
            chmod("their-dir", 0o2755);
        });
    });
}

#[test]
fn statx_says_what_it_says_on_ext4() {
    desk("", fill, |d| {
        fs::write(d.at("mine"), "mine").unwrap();
        crate::common::sh(&d.mnt, "mknod disk b 259 65536; mknod tty c 4 64; chown 70000:80000 mine").ok();
        let basic = StatxFlags::BASIC_STATS;
        for name in ["file", "large", "dir", "link", "pipe", "null", "nil", "mine", "disk", "tty"] {
            let path = d.at(name);
            let x = rfs::statx(CWD, &path, AtFlags::SYMLINK_NOFOLLOW, basic).unwrap();
            let s = rfs::lstat(&path).unwrap();
            assert_eq!(x.stx_mask & basic.bits(), basic.bits(), "{name}");
            assert_eq!(
                (
                    x.stx_ino,
                    u32::from(x.stx_mode),
                    x.stx_size as i64,
                    x.stx_uid,
                    x.stx_gid,
                    x.stx_blocks as i64
                ),
                (s.st_ino, s.st_mode, s.st_size, s.st_uid, s.st_gid, s.st_blocks),
                "{name}"
            );
            assert_eq!(rfs::makedev(x.stx_rdev_major, x.stx_rdev_minor), s.st_rdev, "{name}");
            assert_eq!(rfs::makedev(x.stx_dev_major, x.stx_dev_minor), s.st_dev, "{name}");
            assert_eq!(i64::from(x.stx_blksize), 4096);
            // A field alone, and from what the kernel remembers.
            let some = rfs::statx(
                CWD,
                &path,
                AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC,
                StatxFlags::MODE,
            )
            .unwrap();
            assert_eq!(some.stx_mode, x.stx_mode, "{name}");
            let forced =
                rfs::statx(CWD, &path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC, basic).unwrap();
            assert_eq!(
                (forced.stx_ino, forced.stx_size, forced.stx_mtime.tv_nsec),
                (x.stx_ino, x.stx_size, x.stx_mtime.tv_nsec),
                "{name}"
            );
        }
        let of = |n: &str| {
            let x = rfs::statx(CWD, d.at(n), AtFlags::empty(), basic).unwrap();
            (x.stx_rdev_major, x.stx_rdev_minor)
        };
        assert_eq!([of("disk"), of("tty"), of("null"), of("nil")], [(259, 65536), (4, 64), (1, 3), (0, 0)]);
        let root = rfs::statx(CWD, &d.mnt, AtFlags::empty(), basic).unwrap();
        assert_eq!(root.stx_ino, 1);
        // statfs(2) of any file is that of the file system.
        let (a, b) =
            (rfs::statfs(&d.mnt).unwrap(), rfs::fstatfs(File::open(d.at("dir/x")).unwrap()).unwrap());
        assert_eq!(
            (a.f_type, a.f_bsize, a.f_blocks, a.f_files, a.f_namelen),
            (b.f_type, b.f_bsize, b.f_blocks, b.f_files, b.f_namelen)
        );
        assert_eq!((a.f_type, a.f_namelen), (0x6573_5546, 255));
    });
}

#[test]
fn access_is_granted_as_the_modes_say() {
    fn modes(dir: &Path) {
        for mode in [0o700, 0o070, 0o007, 0o755, 0o644, 0o000, 0o111, 0o222] {
            for (owner, who) in [("0:0", "root"), ("1234:0", "theirs"), ("0:77", "group")] {
                let name = format!("{mode:03o}-{who}");
                tree::write(dir, &[(&name, Item::Mode(b"#!/bin/true\n", mode))]);
                crate::common::sh(dir, &format!("chown {owner} {name}; mkdir d-{name}; touch d-{name}/x; chmod {mode:o} {name} d-{name}; chown {owner} d-{name}")).ok();
            }
        }
    }
    twins(modes, |at| {
        let mut names: Vec<String> =
            fs::read_dir(at.dir()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        as_user(OTHER, OTHER, &[77], || {
            for name in &names {
                for access in [rfs::Access::READ_OK, rfs::Access::WRITE_OK, rfs::Access::EXEC_OK] {
                    let flags = AtFlags::EACCESS;
                    at.did(&format!("{name} {access:?}"), rfs::accessat(CWD, at.path(name), access, flags));
                }
                at.did(&format!("open {name}"), File::open(at.path(name)).map(drop));
                if name.starts_with("d-") {
                    at.did("stat within", fs::metadata(at.path(name).join("x")).map(drop));
                    at.did("make within", File::create(at.path(name).join("y")).map(drop));
                } else {
                    at.did("run", std::process::Command::new(at.path(name)).status().map(|s| s.code()));
                }
            }
        });
    });
}
