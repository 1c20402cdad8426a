//! Times: what sets them, to what, and what a read does to them under each mount option.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{self as rfs, AtFlags, CWD, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use crate::common::desk::{Desk, desk};
use crate::common::disk::Disk;
use crate::common::tree::{self, Item};
use crate::common::{Program, Scratch, require_root, within};
use crate::twins::{At, OTHER, as_user, twins};

fn fill(dir: &Path) {
    let large = vec![3; 1_200_000];
    tree::write(
        dir,
        &[
            ("file", Item::Mode(b"content", 0o666)),
            ("large", Item::Mode(&large, 0o666)),
            ("dir/x", Item::File(b"x")),
            ("link", Item::Link("file")),
            ("theirs", Item::File(b"theirs")),
            ("read-only", Item::Mode(b"read only", 0o444)),
        ],
    );
    crate::common::sh(dir, "mkfifo pipe; mknod null c 1 3; mknod nil c 0 0; chown 1234:1234 theirs").ok();
}

/// Seconds and nanoseconds of access and modification.
fn times(path: &Path) -> [(i64, i64); 2] {
    let m = fs::symlink_metadata(path).unwrap();
    [(m.atime(), m.atime_nsec()), (m.mtime(), m.mtime_nsec())]
}

#[test]
fn times_are_set_to_the_nanosecond_and_left_where_asked() {
    twins(fill, |at| {
        let set = |name: &str, a: (i64, i64), m: (i64, i64)| {
            let spec = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
            let times = Timestamps { last_access: spec(a), last_modification: spec(m) };
            let what = format!("{name} {a:?} {m:?}");
            at.did(&what, rfs::utimensat(CWD, at.path(name), &times, AtFlags::SYMLINK_NOFOLLOW)).is_some()
        };
        let now = || Timespec { ..rustix::time::clock_gettime(rustix::time::ClockId::Realtime) }.tv_sec;
        for name in ["file", "large", "dir", "link", "pipe", "null", "nil"] {
            for (a, m) in [
                ((1, 1), (2, 2)),
                ((1_000_000_000, 123_456_789), (1_500_000_000, 987_654_321)),
                ((0, UTIME_OMIT), (7, 999_999_999)),
                ((8, 5), (0, UTIME_OMIT)),
                ((0, UTIME_OMIT), (0, UTIME_OMIT)),
                ((-1, 1), (-2, 999_999_999)),
                ((1 << 33, 0), (1 << 32, 1)),
                ((5, 1_000_000_000), (5, 0)),
                ((5, -1), (5, 0)),
            ] {
                set(name, a, m);
                at.note("times", times(&at.path(name)));
            }
            let before = now();
            for (a, m) in
                [((0, UTIME_NOW), (9, 9)), ((9, 9), (0, UTIME_NOW)), ((0, UTIME_NOW), (0, UTIME_NOW))]
            {
                set(name, a, m);
                let found = times(&at.path(name))
                    .map(|(sec, nsec)| if sec >= before - 1 { None } else { Some((sec, nsec)) });
                at.note("times, where they are not of now", found);
            }
        }
        as_user(OTHER, OTHER, &[], || {
            for name in ["file", "theirs", "read-only", "dir", "large"] {
                set(name, (5, 5), (6, 6));
                set(name, (0, UTIME_NOW), (0, UTIME_NOW));
                set(name, (0, UTIME_NOW), (0, UTIME_OMIT));
                set(name, (0, UTIME_OMIT), (0, UTIME_OMIT));
            }
        });
    });
}

/// Which of the times of a path move by a step: access, modification, change.
fn moves(at: &At, what: &str, names: &[&str], step: impl FnOnce()) {
    const OLD: Timespec = Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
    let mut before = Vec::new();
    for name in names {
        let both = Timestamps { last_access: OLD, last_modification: OLD };
        rfs::utimensat(CWD, at.path(name), &both, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        before.push(fs::symlink_metadata(at.path(name)).unwrap());
    }
    // The clock of file times moves with the timer only.
    let at_least = |m: &fs::Metadata| (m.ctime(), m.ctime_nsec());
    let newest = before.iter().map(at_least).max().unwrap_or_default();
    let probe = at.path("..").join(format!("probe-{}", std::process::id()));
    loop {
        fs::write(&probe, "").unwrap();
        if at_least(&fs::metadata(&probe).unwrap()) > newest {
            break;
        }
    }
    fs::remove_file(&probe).unwrap();
    step();
    for (name, before) in names.iter().zip(before) {
        let Ok(after) = fs::symlink_metadata(at.path(name)) else {
            at.note(&format!("{what}: {name}"), "gone");
            continue;
        };
        let changed = (
            (before.mtime(), before.mtime_nsec()) != (after.mtime(), after.mtime_nsec()),
            at_least(&before) != at_least(&after),
        );
        at.note(&format!("{what}: {name}: modification, change"), changed);
    }
}

#[test]
fn every_change_moves_the_times_that_it_moves_on_ext4() {
    twins(fill, |at| {
        for name in ["file", "large"] {
            moves(at, "append", &[name], || {
                OpenOptions::new().append(true).open(at.path(name)).unwrap().write_all(b"more").unwrap();
            });
            let open = || OpenOptions::new().read(true).write(true).open(at.path(name)).unwrap();
            moves(at, "open for writing", &[name], || drop(open()));
            moves(at, "write nothing", &[name], || assert_eq!(open().write_at(b"", 0).unwrap(), 0));
            moves(at, "shorten", &[name], || open().set_len(1000).unwrap());
            moves(at, "the same length", &[name], || open().set_len(1000).unwrap());
            moves(at, "allocate", &[name], || crate::sys::fallocate(&open(), 0, 0, 9000).unwrap());
            moves(at, "allocate nothing new", &[name], || {
                crate::sys::fallocate(&open(), libc::FALLOC_FL_KEEP_SIZE, 0, 9000).unwrap()
            });
            moves(at, "punch", &[name], || {
                crate::sys::fallocate(
                    &open(),
                    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                    0,
                    4096,
                )
                .unwrap()
            });
            moves(at, "empty", &[name], || drop(File::create(at.path(name)).unwrap()));
            moves(at, "empty again", &[name], || drop(File::create(at.path(name)).unwrap()));
            moves(at, "chmod", &[name], || rfs::chmod(at.path(name), Mode::from_raw_mode(0o666)).unwrap());
            moves(at, "chown to the same", &[name], || {
                rfs::chown(at.path(name), Some(rfs::Uid::from_raw(0)), None).unwrap()
            });
            moves(at, "attribute", &[name], || {
                rfs::setxattr(at.path(name), "user.x", b"y", rfs::XattrFlags::empty()).unwrap()
            });
            moves(at, "link", &[name, ".", "dir"], || {
                fs::hard_link(at.path(name), at.path("dir/hard")).unwrap()
            });
            moves(at, "unlink a link", &[name, ".", "dir"], || fs::remove_file(at.path("dir/hard")).unwrap());
            moves(at, "rename", &[".", "dir"], || fs::rename(at.path(name), at.path("dir/moved")).unwrap());
            moves(at, "rename back", &["dir/moved", ".", "dir"], || {
                fs::rename(at.path("dir/moved"), at.path(name)).unwrap()
            });
        }
        moves(at, "create", &[".", "dir"], || drop(File::create(at.path("dir/new")).unwrap()));
        moves(at, "open what is there", &[".", "dir", "dir/new"], || {
            drop(File::create_new(at.path("dir/new")).unwrap_err())
        });
        moves(at, "mkdir", &[".", "dir"], || fs::create_dir(at.path("dir/sub")).unwrap());
        moves(at, "rename a directory", &[".", "dir"], || {
            fs::rename(at.path("dir/sub"), at.path("sub")).unwrap()
        });
        moves(at, "rename over", &["dir", "dir/x", "dir/new"], || {
            fs::rename(at.path("dir/new"), at.path("dir/x")).unwrap()
        });
        moves(at, "rmdir", &[".", "dir"], || fs::remove_dir(at.path("sub")).unwrap());
        moves(at, "unlink", &[".", "dir"], || fs::remove_file(at.path("dir/x")).unwrap());
        moves(at, "read", &["file", "dir", "link"], || {
            fs::read(at.path("file")).unwrap();
            fs::read_dir(at.path("dir")).unwrap().for_each(drop);
            fs::read_link(at.path("link")).unwrap();
        });
        moves(at, "write in a directory's file", &["dir", "."], || {
            fs::write(at.path("dir/again"), "x").unwrap()
        });
        moves(at, "refused", &["dir", "."], || drop(fs::remove_dir(at.path("dir")).unwrap_err()));
    });
}

/// Until the clock that files take their times from has moved on.
fn next_tick(dir: &Path) {
    let probe = dir.join("clock");
    let now = || {
        fs::write(&probe, "").unwrap();
        let m = fs::metadata(&probe).unwrap();
        (m.mtime(), m.mtime_nsec())
    };
    let first = now();
    while now() == first {}
    fs::remove_file(&probe).unwrap();
}

/// Whether a first and a second read move the access times of a user's file, directory and symbolic link. `clock` is a
/// directory elsewhere on the same machine.
fn reads(dir: &Path, clock: &Path) -> Vec<(&'static str, [bool; 2])> {
    let old = Timespec { tv_sec: 1_700_000_000, tv_nsec: 0 };
    let mut out = Vec::new();
    for name in ["mine", "mine-large", "minedir", "minelink"] {
        let path = dir.join(name);
        let times = Timestamps { last_access: old, last_modification: old };
        rfs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        let read = || {
            let atime = || {
                let m = fs::symlink_metadata(&path).unwrap();
                (m.atime(), m.atime_nsec())
            };
            let before = atime();
            // A time that is that of the last change counts as older than it.
            next_tick(clock);
            match name {
                "minedir" => fs::read_dir(&path).unwrap().for_each(drop),
                "minelink" => drop(fs::read_link(&path).unwrap()),
                _ => {
                    let mut buf = [0; 100];
                    File::open(&path).unwrap().read_exact(&mut buf).unwrap();
                }
            }
            atime() != before
        };
        out.push((name, [read(), read()]));
    }
    out
}

/// What [`reads`] says under a mount option. What a symbolic link holds is remembered by the kernel: no second read
/// arrives, see SEMANTICS.md.
fn wanted(option: &str, name: &str) -> [bool; 2] {
    match option {
        "noatime" => [false, false],
        "strictatime" => [true, name != "minelink"],
        "nodiratime" if name == "minedir" => [false, false],
        _ => [true, false],
    }
}

fn mine(dir: &Path) {
    fs::write(dir.join("mine"), [1; 5000]).unwrap();
    fs::write(dir.join("mine-large"), vec![1; 2_000_000]).unwrap();
    fs::create_dir(dir.join("minedir")).unwrap();
    std::os::unix::fs::symlink("mine", dir.join("minelink")).unwrap();
}

fn atimes(d: &Desk, option: &str) {
    mine(&d.mnt);
    for (name, moved) in reads(&d.mnt, d.source.parent().unwrap()) {
        assert_eq!(moved, wanted(option, name), "{option}: {name}");
    }
}

#[test]
fn a_listing_that_the_kernel_has_moves_no_access_time() {
    desk("", fill, |d| {
        let dir = d.at("minedir");
        fs::create_dir(&dir).unwrap();
        let clock = d.source.parent().unwrap();
        let moved = |dir: &Path| {
            let atime = || {
                let m = fs::metadata(dir).unwrap();
                (m.atime(), m.atime_nsec())
            };
            let before = atime();
            next_tick(clock);
            fs::read_dir(dir).unwrap().for_each(drop);
            atime() != before
        };
        assert!(moved(&dir));
        assert!(!moved(&dir));
        // What changes the directory or its attributes makes the kernel ask again, as ext4 moves the time again.
        fs::write(dir.join("x"), "").unwrap();
        assert!(moved(&dir));
        next_tick(clock);
        fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        assert!(moved(&dir));
        next_tick(clock);
        rfs::setxattr(&dir, "user.x", b"x", rfs::XattrFlags::empty()).unwrap();
        assert!(moved(&dir));
        // Another name does not, where it would on ext4.
        next_tick(clock);
        fs::rename(&dir, d.at("renamed")).unwrap();
        assert!(!moved(&d.at("renamed")));
    });
}

#[test]
fn reads_move_access_times_by_the_options_of_the_view() {
    for option in ["", "relatime", "noatime", "strictatime", "nodiratime"] {
        desk(option, fill, move |d| atimes(d, option));
    }
}

#[test]
fn reads_move_access_times_by_the_options_of_the_view_and_not_by_those_of_the_disk_below() {
    require_root();
    for (disk_option, option) in
        [("noatime", "relatime"), ("noatime", "strictatime"), ("strictatime", "noatime"), ("strictatime", "")]
    {
        let scratch = Scratch::new();
        let disk = Disk::new(&scratch, "ext4", "disk", 64);
        crate::common::sh(scratch.path(), &format!("mount -o remount,{disk_option} disk")).ok();
        let program = Program::new(&scratch);
        tree::import(&scratch, &program, "v:1", None, fill);
        let layer = disk.path().join("layer");
        fs::create_dir(&layer).unwrap();
        program.ok(&["create", "d", "v:1", "--user-layer", layer.to_str().unwrap()]);
        let mount = program.mount_with("d", scratch.mnt(), option);
        let (desk, clock) = (scratch.mnt(), scratch.path().to_path_buf());
        within(std::time::Duration::from_secs(120), "reading", move || {
            mine(&desk);
            for (name, moved) in reads(&desk, &clock) {
                assert_eq!(moved, wanted(option, name), "{option} over {disk_option}: {name}");
            }
        });
        mount.umount();
        drop(disk);
    }
}
