//! Inode flags: immutable, append-only, and what `lsattr` shows.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use rustix::fs::{self as rfs, CWD, IFlags, Mode, RenameFlags, XattrFlags};

use crate::common::tree::{self, Item};
use crate::sys;
use crate::twins::{At, OTHER, as_user, twins};

fn fill(dir: &Path) {
    let large = vec![5; 1_200_000];
    tree::write(
        dir,
        &[
            ("file", Item::Mode(b"content", 0o666)),
            ("large", Item::Mode(&large, 0o666)),
            ("log", Item::Mode(b"line\n", 0o666)),
            ("dir/x", Item::File(b"x")),
            ("other", Item::File(b"other")),
        ],
    );
}

/// The flags that a program can set and that mean something to it; how ext4 stores a file is its own affair.
fn seen(flags: IFlags) -> IFlags {
    flags
        & (IFlags::IMMUTABLE
            | IFlags::APPEND
            | IFlags::NODUMP
            | IFlags::NOATIME
            | IFlags::SYNC
            | IFlags::DIRSYNC)
}

fn set(at: &At, name: &str, flags: IFlags) {
    let file = File::open(at.path(name)).unwrap();
    let now = rfs::ioctl_getflags(&file).unwrap();
    let mine = IFlags::IMMUTABLE
        | IFlags::APPEND
        | IFlags::NODUMP
        | IFlags::NOATIME
        | IFlags::SYNC
        | IFlags::DIRSYNC;
    let set = at.did(&format!("set {name} {flags:?}"), rfs::ioctl_setflags(&file, (now - mine) | flags));
    if name != "large" {
        // A handle on a large file of the stack stays one on that, see SEMANTICS.md.
        at.did("get", rfs::ioctl_getflags(&file).map(seen));
    }
    let again = || rfs::ioctl_getflags(File::open(at.path(name)).unwrap()).map(seen);
    // The kernel hears a moment later that the name of a large file of the stack leads to the copy.
    let began = std::time::Instant::now();
    while set.is_some() && again() != Ok(flags) && began.elapsed() < std::time::Duration::from_secs(30) {
        std::thread::yield_now();
    }
    at.did("get by another", again());
}

fn everything(at: &At, name: &str, is_root: bool) {
    at.did("write", OpenOptions::new().write(true).open(at.path(name)).map(drop));
    at.did("read and write", OpenOptions::new().read(true).write(true).open(at.path(name)).map(drop));
    at.did(
        "append",
        OpenOptions::new().append(true).open(at.path(name)).and_then(|mut f| f.write_all(b"more\n")),
    );
    at.did("empty", File::create(at.path(name)).map(drop));
    at.did("truncate", truncate(&at.path(name), 2));
    at.did("chmod", rfs::chmod(at.path(name), Mode::from_raw_mode(0o640)));
    at.did("chown", rfs::chown(at.path(name), Some(rfs::Uid::from_raw(3)), None));
    at.did("set", rfs::setxattr(at.path(name), "user.x", b"y", XattrFlags::empty()));
    at.did("remove", rfs::removexattr(at.path(name), "user.x"));
    let time = rfs::Timespec { tv_sec: 5, tv_nsec: 5 };
    let times = rfs::Timestamps { last_access: time, last_modification: time };
    at.did("times", rfs::utimensat(CWD, at.path(name), &times, rfs::AtFlags::empty()));
    if is_root {
        // fs.protected_hardlinks asks more of others.
        at.did("link", fs::hard_link(at.path(name), at.path("linked")));
    }
    at.did("rename", fs::rename(at.path(name), at.path("renamed")));
    at.did("rename over", fs::rename(at.path("other"), at.path(name)));
    at.did("exchange", rfs::renameat_with(CWD, at.path(name), CWD, at.path("dir"), RenameFlags::EXCHANGE));
    at.did("unlink", fs::remove_file(at.path(name)));
    at.did("read", fs::read(at.path(name)).map(|b| b.len()));
    at.look(name);
}

fn truncate(path: &Path, len: i64) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    sys::truncate(&std::ffi::CString::new(path.as_os_str().as_bytes())?, len)
}

#[test]
fn an_immutable_file_cannot_be_changed() {
    twins(fill, |at| {
        for name in ["file", "large"] {
            let before = OpenOptions::new().read(true).write(true).open(at.path(name)).unwrap();
            set(at, name, IFlags::IMMUTABLE);
            everything(at, name, true);
            as_user(OTHER, OTHER, &[], || everything(at, name, false));
            at.did("by an older handle, length", before.set_len(3));
            at.did("mode", rfs::fchmod(&before, Mode::from_raw_mode(0o600)));
            set(at, name, IFlags::empty());
            at.did(
                "write",
                OpenOptions::new().append(true).open(at.path(name)).and_then(|mut f| f.write_all(b"free")),
            );
        }
    });
}

#[test]
fn an_append_only_file_only_grows() {
    twins(fill, |at| {
        for name in ["log", "large"] {
            set(at, name, IFlags::APPEND);
            everything(at, name, true);
            as_user(OTHER, OTHER, &[], || everything(at, name, false));
            let grown = OpenOptions::new().append(true).open(at.path(name)).unwrap();
            at.did("shorten", grown.set_len(1));
            at.did(
                "punch",
                sys::fallocate(&grown, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, 4),
            );
            at.did("allocate", sys::fallocate(&grown, 0, 0, 8000));
            drop(grown);
            set(at, name, IFlags::empty());
            at.did(
                "write",
                OpenOptions::new().write(true).open(at.path(name)).and_then(|mut f| f.write_all(b"free")),
            );
        }
    });
}

#[test]
fn an_immutable_or_append_only_directory_keeps_its_names() {
    twins(fill, |at| {
        // What was never written cannot be written there, see tests/limits.rs.
        fs::write(at.path("dir/x"), "written").unwrap();
        for flags in [IFlags::IMMUTABLE, IFlags::APPEND] {
            set(at, "dir", flags);
            at.did("create", File::create(at.path("dir/new")).map(drop));
            at.did("mkdir", fs::create_dir(at.path("dir/newer")));
            at.did("remove", fs::remove_file(at.path("dir/x")));
            at.did("rename within", fs::rename(at.path("dir/x"), at.path("dir/y")));
            at.did("rename into", fs::rename(at.path("other"), at.path("dir/other")));
            at.did("rename out", fs::rename(at.path("dir/x"), at.path("x")));
            at.did("rename itself", fs::rename(at.path("dir"), at.path("moved")));
            at.did("remove itself", fs::remove_dir_all(at.path("dir")));
            at.did("chmod", rfs::chmod(at.path("dir"), Mode::from_raw_mode(0o700)));
            at.did("write in it", fs::write(at.path("dir/x"), "written"));
            set(at, "dir", IFlags::empty());
        }
    });
}

#[test]
fn flags_are_set_by_who_may() {
    twins(fill, |at| {
        for (name, flags) in [
            ("file", IFlags::NODUMP),
            ("dir", IFlags::NODUMP | IFlags::DIRSYNC),
            ("large", IFlags::NOATIME | IFlags::SYNC),
        ] {
            set(at, name, flags);
            as_user(OTHER, OTHER, &[], || set(at, name, IFlags::empty()));
            rfs::chown(at.path(name), Some(rfs::Uid::from_raw(OTHER)), None).unwrap();
            as_user(OTHER, OTHER, &[], || {
                set(at, name, IFlags::IMMUTABLE);
                set(at, name, IFlags::empty());
            });
        }
    });
}
