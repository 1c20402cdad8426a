//! Open files: flags of open(2), removed files, handles that are found again, execution.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{self as rfs, AtFlags, Mode, OFlags};
use rustix::io::{pread, pwrite};

use crate::agent::Agent;
use crate::common::desk::{Desk, desk};
use crate::common::tree::{self, Item};
use crate::sys;
use crate::twins::twins;

fn fill(dir: &Path) {
    let large: Vec<u8> = (0..2 << 20).map(|i| (i / 4096) as u8).collect();
    tree::write(
        dir,
        &[
            ("file", Item::Mode(b"content of the file", 0o666)),
            ("large", Item::Mode(&large, 0o666)),
            ("closed", Item::Mode(b"closed", 0o600)),
            ("unreadable", Item::Mode(b"unreadable", 0o222)),
            ("read-only", Item::Mode(b"read only", 0o444)),
            ("dir/x", Item::File(b"x")),
            ("shut/x", Item::File(b"x")),
            ("link", Item::Link("file")),
        ],
    );
    crate::common::sh(dir, "mkfifo -m 666 pipe; mknod -m 666 null c 1 3; chmod 700 shut; chmod 777 .").ok();
}

const FLAGS: [(&str, OFlags); 16] = [
    ("r", OFlags::RDONLY),
    ("w", OFlags::WRONLY),
    ("rw", OFlags::RDWR),
    ("append", OFlags::WRONLY.union(OFlags::APPEND)),
    ("trunc", OFlags::WRONLY.union(OFlags::TRUNC)),
    ("r+trunc", OFlags::RDONLY.union(OFlags::TRUNC)),
    ("creat", OFlags::RDWR.union(OFlags::CREATE)),
    ("excl", OFlags::RDWR.union(OFlags::CREATE).union(OFlags::EXCL)),
    ("directory", OFlags::RDONLY.union(OFlags::DIRECTORY)),
    ("w+directory", OFlags::RDWR.union(OFlags::DIRECTORY)),
    ("nofollow", OFlags::RDONLY.union(OFlags::NOFOLLOW)),
    ("path", OFlags::PATH),
    ("path+nofollow", OFlags::PATH.union(OFlags::NOFOLLOW)),
    ("direct", OFlags::RDONLY.union(OFlags::DIRECT)),
    ("noatime", OFlags::RDONLY.union(OFlags::NOATIME)),
    ("sync", OFlags::RDWR.union(OFlags::SYNC)),
];

#[test]
fn files_are_opened_as_the_flags_say() {
    twins(fill, |at| {
        let all = || {
            for (what, flags) in FLAGS {
                for name in [
                    "file",
                    "large",
                    "closed",
                    "unreadable",
                    "read-only",
                    "dir",
                    "shut/x",
                    "link",
                    "null",
                    "absent",
                ] {
                    let name = if name == "absent" { format!("absent-{what}") } else { name.into() };
                    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    let opened = rfs::open(at.path(&name), flags, Mode::from_raw_mode(0o640));
                    if let Some(fd) = at.got(&format!("{what} {name}"), opened) {
                        let mut buf = [0; 4];
                        if !flags.contains(OFlags::DIRECT) && name != "dir" {
                            at.did("read", pread(&fd, &mut buf[..], 0));
                        }
                        at.did("write", pwrite(&fd, b"W", 1));
                        at.did("truncate", rfs::ftruncate(&fd, 5));
                        at.did("stat", rfs::fstat(&fd).map(|s| if name == "dir" { 0 } else { s.st_size }));
                        at.did("chmod", rfs::fchmod(&fd, Mode::from_raw_mode(0o666)));
                        at.did("getxattr", rfs::fgetxattr(&fd, "user.x", &mut buf[..]));
                    }
                }
            }
        };
        at.as_other(all);
        all();
    });
}

#[test]
fn a_file_without_a_name_is_a_file_like_others() {
    twins(fill, |at| {
        for name in ["file", "large"] {
            let mut file = OpenOptions::new().read(true).write(true).open(at.path(name)).unwrap();
            let reader = File::open(at.path(name)).unwrap();
            fs::remove_file(at.path(name)).unwrap();
            at.did("write", file.write_all(b"written"));
            at.did("shorten", file.set_len(100));
            at.did("extend", file.set_len(5000));
            at.did("at the end", file.seek(SeekFrom::End(0)));
            at.did("append", file.write_all(b"tail"));
            let mut buf = vec![0; 6000];
            let n = at.did("read", reader.read_at(&mut buf, 0)).unwrap_or(0);
            at.note("bytes", &buf[..n]);
            at.did("allocate", sys::fallocate(&file, 0, 0, 10_000));
            at.did("chmod", rfs::fchmod(&file, Mode::from_raw_mode(0o600)));
            at.did("chown", rfs::fchown(&file, Some(rfs::Uid::from_raw(5)), None));
            at.did("set", rfs::fsetxattr(&file, "user.x", b"y", rfs::XattrFlags::empty()));
            let mut value = [0; 8];
            at.did("get", rfs::fgetxattr(&file, "user.x", &mut value[..]));
            at.did("list", rfs::flistxattr(&file, &mut buf[..]));
            let m = file.metadata().unwrap();
            at.note("stat", (m.mode(), m.uid(), m.len(), m.nlink()));
            at.did("sync", file.sync_all());
            // The name is free for another file.
            at.did("again", fs::write(at.path(name), "another"));
            at.note("stat", reader.metadata().unwrap().len());
        }
        let dir = File::open(at.path("dir")).unwrap();
        fs::remove_file(at.path("dir/x")).unwrap();
        fs::remove_dir(at.path("dir")).unwrap();
        at.did("mkdir", rfs::mkdirat(&dir, "new", Mode::from_raw_mode(0o755)));
        at.did(
            "create",
            rfs::openat(&dir, "new", OFlags::CREATE | OFlags::RDWR, Mode::from_raw_mode(0o644)).map(drop),
        );
        at.did("look", rfs::statat(&dir, "x", AtFlags::empty()).map(|s| s.st_mode));
        at.note("links", dir.metadata().unwrap().nlink());
        at.did("chmod", rfs::fchmod(&dir, Mode::from_raw_mode(0o700)));
        at.note("mode", dir.metadata().unwrap().mode());
    });
}

#[test]
fn appends_of_four_processes_lose_no_record() {
    desk("", fill, |d| {
        fs::write(d.at("mine"), "").unwrap();
        rfs::chmod(d.at("mine"), Mode::from_raw_mode(0o666)).unwrap();
        for name in ["mine", "file", "large"] {
            const EACH: usize = 400;
            let before = fs::metadata(d.at(name)).unwrap().len();
            let path = d.at(name).display().to_string();
            std::thread::scope(|scope| {
                for i in 0..4 {
                    let path = &path;
                    scope.spawn(move || {
                        let mut agent = Agent::start();
                        assert_eq!(agent.ask(&format!("append {path} {EACH} process-{i}")), "ok");
                    });
                }
            });
            let bytes = fs::read(d.at(name)).unwrap();
            let tail = String::from_utf8(bytes[before as usize..].to_vec()).unwrap();
            let mut lines: Vec<&str> = tail.lines().collect();
            assert_eq!(lines.len(), 4 * EACH, "{name}");
            lines.sort_unstable();
            let mut want: Vec<String> =
                (0..4).flat_map(|i| (0..EACH).map(move |n| format!("process-{i} {n}"))).collect();
            want.sort_unstable();
            assert!(lines == want, "{name}: records were lost or torn");
        }
    });
}

/// Numbers and contents by handle, for paths that stay.
fn by_handle(d: &Desk, kept: &[(&str, sys::Handle, u64)]) {
    let root = File::open(&d.mnt).unwrap();
    for (path, handle, number) in kept {
        let file = sys::open_handle(&root, handle, libc::O_RDONLY).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(file.metadata().unwrap().ino(), *number, "{path}");
        if file.metadata().unwrap().is_file() {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            (&file).read_to_end(&mut a).unwrap();
            File::open(d.at(path)).unwrap().read_to_end(&mut b).unwrap();
            assert!(a == b, "{path}");
        }
    }
}

#[test]
fn file_handles_last_beyond_forgetting_remounts_and_swaps() {
    desk("", fill, |d| {
        d.sh("mkdir -p mine/deep; echo user >mine/deep/file; echo changed >>file; chmod 640 closed; mv dir mine/dir; ln large mine/l");
        let paths =
            ["mine/deep/file", "file", "closed", "large", "mine/dir", "mine/dir/x", "mine", "shut", "shut/x"];
        let kept: Vec<_> = paths
            .iter()
            .map(|p| (*p, sys::handle_of(&d.at(p)).unwrap(), fs::metadata(d.at(p)).unwrap().ino()))
            .collect();
        d.drop_caches();
        by_handle(d, &kept);
        d.remount();
        by_handle(d, &kept);
        d.remount();
        d.drop_caches();
        if crate::common::desk::over_directories() {
            return; // Nothing is swapped there.
        }
        let next = d.source.with_file_name("next");
        fs::create_dir(&next).unwrap();
        crate::common::sh(
            &next,
            &format!(
                "cp -a {}/. .; echo more >>read-only; rm unreadable; echo other >extra",
                d.source.display()
            ),
        )
        .ok();
        let changed: Vec<_> =
            ["read-only", "unreadable"].iter().map(|p| sys::handle_of(&d.at(p)).unwrap()).collect();
        d.program.ok(&["import", &format!("dir:{}", next.display()), "v:2", "--parent", "v:1"]);
        d.program.ok(&["upgrade", "d", "--to", "v:2"]);
        d.drop_caches();
        by_handle(d, &kept);
        let root = File::open(&d.mnt).unwrap();
        for handle in &changed {
            let gone = sys::open_handle(&root, handle, libc::O_RDONLY).map(drop).unwrap_err();
            assert_eq!(
                gone.raw_os_error(),
                Some(libc::ESTALE),
                "what a swap displaced is not found any more"
            );
        }
        // What is written by a handle is written to the file.
        let (_, handle, _) = &kept[3];
        let mut file = sys::open_handle(&root, handle, libc::O_RDWR).unwrap();
        file.write_all(b"by handle").unwrap();
        let mut head = [0; 9];
        File::open(d.at("mine/l")).unwrap().read_exact(&mut head).unwrap();
        assert_eq!(&head, b"by handle");
    });
}

#[test]
fn a_handle_of_a_removed_file_is_stale() {
    twins(fill, |at| {
        let root = File::open(at.dir()).unwrap();
        for name in ["file", "large", "dir/x"] {
            let handle = sys::handle_of(&at.path(name)).unwrap();
            let (first, second) = (at.path(name), at.path(format!("{}-moved", name.replace('/', "-"))));
            fs::rename(&first, &second).unwrap();
            let found = sys::open_handle(&root, &handle, libc::O_RDONLY).map(|f| f.metadata().unwrap().len());
            at.did("moved", found);
            let open = File::open(&second).unwrap();
            fs::remove_file(&second).unwrap();
            at.did("open and removed", sys::open_handle(&root, &handle, libc::O_RDONLY).map(drop));
            drop(open);
            fs::write(&first, "another").unwrap();
            // A process that was started meanwhile has the open file a moment longer.
            let began = std::time::Instant::now();
            let gone = loop {
                let found = sys::open_handle(&root, &handle, libc::O_RDONLY).map(drop);
                if found.is_err() || began.elapsed() > std::time::Duration::from_secs(30) {
                    break found;
                }
                std::thread::yield_now();
            };
            at.did("replaced", gone);
        }
    });
}
