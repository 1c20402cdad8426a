//! Space: allocation, holes, lengths, the largest offsets, shared blocks.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{self as rfs, SeekFrom};

use crate::common::disk::Disk;
use crate::common::tree::{self, Item};
use crate::common::{Program, Scratch, require_root, within};
use crate::sys;
use crate::twins::{At, twins, twins_on};

const LARGE: usize = 2 << 20;

fn fill(dir: &Path) {
    let large: Vec<u8> = (0..LARGE).map(|i| (i / 4096) as u8 | 1).collect();
    tree::write(dir, &[("small", Item::Mode(&large[..50_000], 0o666)), ("large", Item::Mode(&large, 0o666))]);
}

fn update(at: &At, name: &str) -> File {
    OpenOptions::new().read(true).write(true).open(at.path(name)).unwrap()
}

/// Where data and holes are.
fn extents(at: &At, file: &File) {
    let (mut pos, mut out) = (0, Vec::new());
    let end = file.metadata().unwrap().len();
    while pos < end {
        let data = match rfs::seek(file, SeekFrom::Data(pos)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(e) => panic!("SEEK_DATA: {e}"),
        };
        let hole = rfs::seek(file, SeekFrom::Hole(data)).unwrap();
        out.push((data, hole));
        pos = hole;
    }
    at.note("data", out);
    at.did("data beyond", rfs::seek(file, SeekFrom::Data(end)));
    at.did("hole beyond", rfs::seek(file, SeekFrom::Hole(end)));
    at.did("data far beyond", rfs::seek(file, SeekFrom::Data(end + 4096)));
}

const MODES: [(&str, i32); 12] = [
    ("allocate", 0),
    ("keep size", libc::FALLOC_FL_KEEP_SIZE),
    ("punch", libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
    ("zero", libc::FALLOC_FL_ZERO_RANGE),
    ("zero, keep size", libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE),
    ("punch without keep size", libc::FALLOC_FL_PUNCH_HOLE),
    ("punch and zero", libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE),
    ("unshare", libc::FALLOC_FL_UNSHARE_RANGE),
    ("hide stale", 4),
    ("unknown", 0x1000),
    ("collapse and keep size", libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_KEEP_SIZE),
    ("insert and punch", libc::FALLOC_FL_INSERT_RANGE | libc::FALLOC_FL_PUNCH_HOLE),
];

fn allocated(at: &At) {
    for name in ["small", "large"] {
        let file = update(at, name);
        // What is not on the disk yet counts as data, wherever it is.
        file.sync_all().unwrap();
        let end = file.metadata().unwrap().len() as i64;
        for (what, mode) in MODES {
            for (from, len) in [
                (8192, 8192),
                (10_000, 3000),
                (end - 100, 5000),
                (end + 20_000, 4096),
                (0, 0),
                (-1, 5),
                (5, -1),
            ] {
                at.did(&format!("{what} {from}+{len}"), sys::fallocate(&file, mode, from, len));
                at.note("length", file.metadata().unwrap().len());
            }
            if what == "punch" || what == "zero" {
                file.sync_all().unwrap();
                extents(at, &file);
            }
        }
        let reader = File::open(at.path(name)).unwrap();
        at.did("by a reader", sys::fallocate(&reader, 0, 0, 10));
    }
    let dir = File::open(at.dir()).unwrap();
    at.did("of a directory", sys::fallocate(&dir, 0, 0, 10));
}

#[test]
fn space_is_allocated_punched_and_zeroed_as_on_ext4() {
    twins(fill, allocated);
}

#[test]
fn space_is_allocated_by_the_daemon_too() {
    twins_on("data=coherent", fill, allocated);
}

#[test]
fn holes_are_found_where_they_are() {
    fn sparse(dir: &Path) {
        // A version keeps the holes of files from 256 KiB on, see tests/limits.rs.
        for (name, unit) in [("small", 64 << 10), ("large", 512 << 10)] {
            let file = File::create(dir.join(name)).unwrap();
            for i in [1, 3, 4, 7] {
                file.write_all_at(&vec![i as u8; unit], i * unit as u64).unwrap();
            }
            file.set_len(10 * unit as u64 + 5).unwrap();
            file.sync_all().unwrap();
        }
        File::create(dir.join("all-hole")).unwrap().set_len(1 << 20).unwrap();
    }
    twins(sparse, |at| {
        for name in ["small", "large", "all-hole"] {
            extents(at, &File::open(at.path(name)).unwrap());
            let file = update(at, name);
            extents(at, &file);
            file.write_all_at(&[9; 4096], 0).unwrap();
            file.set_len(9 << 19).unwrap();
            file.sync_all().unwrap();
            extents(at, &file);
        }
    });
}

#[test]
fn lengths_are_changed_by_everybody_who_may() {
    twins(fill, |at| {
        let steps = || {
            for (name, len) in
                [("small", 10), ("large", 1 << 20), ("small", 1 << 20), ("large", 0), ("small", 0)]
            {
                at.did(name, rustix_truncate(&at.path(name), len));
                at.look(name);
            }
            at.did("a directory", rustix_truncate(at.dir(), 0));
            at.did("nothing", rustix_truncate(&at.path("absent"), 0));
            at.did("negative", rustix_truncate(&at.path("small"), -1));
            at.did("too large", rustix_truncate(&at.path("small"), i64::MAX));
        };
        at.as_other(steps);
        steps();
        let reader = File::open(at.path("small")).unwrap();
        at.did("by a reader", rfs::ftruncate(&reader, 5));
    });
}

/// `truncate(2)`, by path.
fn rustix_truncate(path: &Path, len: i64) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    sys::truncate(&std::ffi::CString::new(path.as_os_str().as_bytes())?, len)
}

#[test]
fn files_reach_beyond_four_tebibytes() {
    // As far as ext4 with 4 KiB blocks goes: 2^32 - 1 blocks.
    const FAR: u64 = 5 << 40;
    const LAST: u64 = ((1 << 32) - 1) * 4096;
    twins(fill, |at| {
        for name in ["small", "large"] {
            let file = update(at, name);
            at.did("write far away", file.write_at(b"far away", FAR));
            let mut buf = [0; 8];
            at.did("read", file.read_at(&mut buf, FAR));
            at.note("bytes", buf);
            at.did("in the hole", file.read_at(&mut buf, FAR / 2));
            at.note("bytes", buf);
            extents(at, &file);
            at.did("the last block", file.write_at(&[1; 100], LAST - 100));
            at.did("over the end", file.write_at(&[1; 200], LAST - 100));
            at.did("beyond the end", file.write_at(&[1; 10], LAST));
            at.did("length", file.set_len(LAST));
            at.did("too long", file.set_len(LAST + 1));
            at.did("allocate beyond", sys::fallocate(&file, 0, LAST as i64 - 10, 100));
            at.look(name);
            at.did("back", file.set_len(60_000));
        }
    });
}

#[test]
fn blocks_are_shared_where_the_user_layers_file_system_can() {
    require_root();
    for kind in ["xfs", "btrfs"] {
        let scratch = Scratch::new();
        let disk = Disk::new(&scratch, kind, "disk", 320);
        let program = Program::new(&scratch);
        tree::import(&scratch, &program, "v:1", None, fill);
        let layer = disk.path().join("layer");
        fs::create_dir(&layer).unwrap();
        program.ok(&["create", "d", "v:1", "--user-layer", layer.to_str().unwrap()]);
        let mount = program.mount("d", scratch.mnt());
        let at = scratch.mnt();
        within(std::time::Duration::from_secs(120), "copying", move || {
            let bytes: Vec<u8> = (0..4 << 20).map(|i| (i / 4096) as u8).collect();
            fs::write(at.join("from"), &bytes).unwrap();
            let from = File::open(at.join("from")).unwrap();
            from.sync_all().unwrap();
            let to = File::create(at.join("to")).unwrap();
            let (mut a, mut b) = (0, 0);
            while a < bytes.len() as u64 {
                let n = rfs::copy_file_range(&from, Some(&mut a), &to, Some(&mut b), 1 << 20).unwrap();
                assert!(n > 0);
            }
            to.sync_all().unwrap();
            assert!(fs::read(at.join("to")).unwrap() == bytes);
        });
        mount.umount();
        // `shared` of filefrag(8), asked of the file system below.
        let answer = crate::common::sh(&layer, "filefrag -v user/to").ok().out();
        assert!(answer.contains("shared"), "{kind}: {answer}");
        let device = fs::metadata(&layer).unwrap().dev();
        assert_ne!(device, fs::metadata(scratch.path()).unwrap().dev());
        drop(disk);
    }
}
