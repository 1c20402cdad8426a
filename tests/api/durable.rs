//! What is synced is on the disk: a copy of the disk, made with the daemon killed and nothing unmounted, has it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use crate::common::disk::Disk;
use crate::common::tree::{self, Item};
use crate::common::{Program, Scratch, require_root, within};

const LIMIT: std::time::Duration = std::time::Duration::from_secs(120);

fn fill(dir: &Path) {
    let large = vec![9; 1_500_000];
    tree::write(
        dir,
        &[
            ("small", Item::File(b"old")),
            ("large", Item::File(&large)),
            ("dir/x", Item::File(b"old")),
            ("attributes", Item::File(b"old")),
            ("away", Item::File(b"away")),
        ],
    );
}

/// Does something in a view whose store and user layer are on a disk of their own, kills the daemon, and cuts the power:
/// gives back the mounted copy of the disk as it was at that moment.
#[track_caller]
fn cut(options: &str, act: impl FnOnce(&Path) + Send + 'static, look: impl FnOnce(&Path)) {
    require_root();
    let scratch = Scratch::new();
    let disk = Disk::new(&scratch, "ext4", "disk", 96);
    // Nothing is written back for other reasons than that somebody asks for it.
    crate::common::sh(scratch.path(), "mount -o remount,commit=3600 disk").ok();
    let inner = Scratch::at(disk.path().join("s"));
    let program = Program::new(&inner);
    tree::import(&inner, &program, "v:1", None, fill);
    program.ok(&["create", "d", "v:1"]);
    crate::common::sh(scratch.path(), "sync -f disk").ok();
    program.mount_with("d", inner.mnt(), options).forget();
    let mnt = inner.mnt();
    within(LIMIT, "writing", move || act(&mnt));
    assert_eq!(inner.kill_daemons(), 1);
    // The image as it is now; what the file system above it still holds in memory is lost.
    let (image, copy) = (scratch.join("disk.img"), scratch.join("copy.img"));
    let status = Command::new("cp").args(["--sparse=always", "--"]).arg(&image).arg(&copy).status().unwrap();
    assert!(status.success());
    drop(inner);
    drop(disk);
    let point = scratch.dir("copy");
    let mounted = Command::new("mount").args(["-o", "loop"]).arg(&copy).arg(&point).status().unwrap();
    assert!(mounted.success(), "the journal of the copy is not whole");
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(&point.join("s"))));
    crate::common::disk::unmount(&point);
    if let Err(cause) = result {
        std::panic::resume_unwind(cause);
    }
}

/// Mounts the desktop of a copy and looks at it.
#[track_caller]
fn mounted(copy: &Path, look: impl FnOnce(&Path) + Send + 'static) {
    let store = copy.join("store");
    let reroot = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reroot"));
        command.arg("--store").arg(&store).args(args).env("REROOT_TEST_SCRATCH", copy);
        crate::common::program::run(&mut command, LIMIT)
    };
    let mnt = copy.join("mnt");
    reroot(&["mount", "d", mnt.to_str().unwrap()]).ok();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe({
        let mnt = mnt.clone();
        move || within(LIMIT, "looking", move || look(&mnt))
    }));
    let began = std::time::Instant::now();
    loop {
        let answer = reroot(&["umount", "d"]);
        if answer.code == Some(0) || began.elapsed() > LIMIT {
            break;
        }
    }
    if let Err(cause) = result {
        std::panic::resume_unwind(cause);
    }
}

fn synced(options: &'static str) {
    cut(
        options,
        |mnt| {
            let sync_dir = |name: &str| File::open(mnt.join(name)).unwrap().sync_all().unwrap();
            fs::create_dir(mnt.join("made")).unwrap();
            // fsync, fdatasync, O_SYNC and O_DSYNC: of new files, of files of the stack, small and large.
            for (name, how) in [
                ("new-fsync", "fsync"),
                ("small", "fsync"),
                ("new-fdatasync", "fdatasync"),
                ("large", "fdatasync"),
            ] {
                let mut file = OpenOptions::new().append(true).create(true).open(mnt.join(name)).unwrap();
                file.write_all(how.as_bytes()).unwrap();
                if how == "fsync" { file.sync_all().unwrap() } else { file.sync_data().unwrap() }
            }
            for (name, flag) in
                [("new-o_sync", libc::O_SYNC), ("new-o_dsync", libc::O_DSYNC), ("dir/x", libc::O_SYNC)]
            {
                let mut file = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .custom_flags(flag)
                    .open(mnt.join(name))
                    .unwrap();
                file.write_all(b"by the flag").unwrap();
            }
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(mnt.join("made/mapped"))
                .unwrap();
            file.set_len(8192).unwrap();
            let map = crate::sys::map(&file, 8192).unwrap();
            crate::sys::store(&map, 4096, b"mapped");
            map.flush().unwrap();
            drop((map, file));
            let file = File::open(mnt.join("attributes")).unwrap();
            rustix::fs::chmod(mnt.join("attributes"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
            file.sync_all().unwrap();
            fs::rename(mnt.join("away"), mnt.join("made/moved")).unwrap();
            sync_dir("made");
            sync_dir("");
            // Last, so that nothing else brings it there.
            let mut file = OpenOptions::new().append(true).open(mnt.join("new-fsync")).unwrap();
            file.write_all(b", last").unwrap();
            file.sync_data().unwrap();
        },
        |copy| {
            mounted(copy, |mnt| {
                let read = |name: &str| fs::read(mnt.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(read("new-fsync"), b"fsync, last");
                assert_eq!(read("small"), b"oldfsync");
                assert_eq!(read("new-fdatasync"), b"fdatasync");
                assert_eq!(&read("large")[1_500_000..], b"fdatasync");
                for name in ["new-o_sync", "new-o_dsync"] {
                    assert_eq!(read(name), b"by the flag", "{name}");
                }
                assert_eq!(read("dir/x"), b"oldby the flag");
                assert_eq!(&read("made/mapped")[4096..4102], b"mapped");
                assert_eq!(read("made/moved"), b"away");
                assert!(!mnt.join("away").exists());
                use std::os::unix::fs::MetadataExt;
                assert_eq!(fs::metadata(mnt.join("attributes")).unwrap().mode() & 0o777, 0o600);
            })
        },
    );
}

#[test]
fn what_was_synced_is_on_the_disk_when_the_power_is_cut() {
    synced("");
}

#[test]
fn what_was_synced_through_the_daemon_is_on_the_disk_when_the_power_is_cut() {
    synced("data=coherent");
}

#[test]
fn each_way_to_sync_brings_a_file_there_by_itself() {
    for (options, how) in
        [("", 0), ("", 1), ("", 2), ("data=coherent", 0), ("data=coherent", 1), ("data=coherent", 2)]
    {
        cut(
            options,
            move |mnt| {
                let flag = if how == 2 { libc::O_SYNC } else { 0 };
                let mut file = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .custom_flags(flag)
                    .open(mnt.join("alone"))
                    .unwrap();
                file.write_all(b"alone on the disk").unwrap();
                match how {
                    0 => file.sync_all().unwrap(),
                    1 => file.sync_data().unwrap(),
                    _ => {}
                }
            },
            |copy| {
                let found = fs::read(copy.join("store/desktops/d/user/alone")).unwrap_or_default();
                assert_eq!(String::from_utf8_lossy(&found), "alone on the disk", "{options} {how}");
            },
        );
    }
}

#[test]
fn a_disk_that_is_cut_lacks_what_nobody_synced() {
    // That the tests above can fail: several times, since the daemon syncs by itself every few seconds.
    let found = (0..6).any(|_| {
        let lacks = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let seen = lacks.clone();
        cut(
            "",
            |mnt| fs::write(mnt.join("unsynced"), "in memory").unwrap(),
            move |copy| {
                let bytes = fs::read(copy.join("store/desktops/d/user/unsynced")).unwrap_or_default();
                seen.store(bytes != b"in memory", std::sync::atomic::Ordering::Relaxed);
            },
        );
        lacks.load(std::sync::atomic::Ordering::Relaxed)
    });
    assert!(found, "everything is on the disk at once: the cut cuts nothing");
}
