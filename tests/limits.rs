//! What FUSE, or fuser, does not carry today. A test here that fails is good news: the limit is gone, and its line
//! in SEMANTICS.md can go too.

mod common;

use std::fs::{self, File};
use std::path::Path;

use common::desk::desk;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

fn a_file(base: &Path) {
    fs::write(base.join("file"), "content").expect("file");
}

#[test]
fn files_without_a_name_cannot_be_made() {
    desk("", a_file, |d| {
        let made = rustix::fs::open(d.at(""), OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR);
        assert_eq!(made.err(), Some(rustix::io::Errno::OPNOTSUPP));
    });
}

#[test]
fn birth_times_are_not_carried() {
    desk("", a_file, |d| {
        let fd = File::open(d.at("file")).expect("file");
        let all = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let found = rustix::fs::statx(&fd, "", AtFlags::EMPTY_PATH, all).expect("statx");
        assert_eq!(found.stx_mask & StatxFlags::BTIME.bits(), 0);
    });
}

#[test]
fn blocks_are_shared_by_copy_file_range_and_not_by_ficlone() {
    desk("", a_file, |d| {
        let to = File::create(d.at("copy")).expect("file");
        let from = File::open(d.at("file")).expect("file");
        assert!(rustix::fs::ioctl_ficlone(&to, &from).is_err());
    });
}

#[test]
fn a_file_of_the_stack_in_an_immutable_directory_cannot_be_written() {
    let fill = |base: &Path| {
        fs::create_dir(base.join("dir")).expect("directory");
        fs::write(base.join("dir/file"), "content").expect("file");
    };
    desk("", fill, |d| {
        d.sh("chattr +i dir");
        // On ext4 it can: the flag is about the names. Here the copy of the file would be a new name on the disk.
        let written = fs::write(d.at("dir/file"), "mine");
        d.sh("chattr -i dir");
        assert_eq!(written.expect_err("written").raw_os_error(), Some(libc::EPERM));
        fs::write(d.at("dir/file"), "mine").expect("written without the flag");
    });
}

#[test]
fn inode_flags_are_on_or_off_and_have_no_project() {
    desk("", a_file, |d| {
        let refused = common::sh(&d.mnt, "chattr -p 5 file || chattr +P .");
        assert_ne!(refused.code, Some(0), "{}", refused.err());
    });
}

#[test]
fn holes_of_small_files_of_the_stack_are_data() {
    let sparse = |base: &Path| {
        for (name, len) in [("small", 200 << 10), ("large", 1 << 20)] {
            let file = File::create(base.join(name)).expect("file");
            file.set_len(len).expect("length");
        }
    };
    desk("", sparse, |d| {
        let hole = |name: &str| {
            let file = File::open(d.at(name)).expect("file");
            rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).expect("seek")
        };
        assert_eq!((hole("small"), hole("large")), (200 << 10, 0));
    });
}

#[test]
fn a_whiteout_cannot_be_left_by_a_rename() {
    desk("", a_file, |d| {
        let (from, to) = (d.at("file"), d.at("moved"));
        let flags = rustix::fs::RenameFlags::WHITEOUT;
        let moved = rustix::fs::renameat_with(rustix::fs::CWD, &from, rustix::fs::CWD, &to, flags);
        assert_eq!(moved.err(), Some(rustix::io::Errno::INVAL));
    });
}

#[test]
fn a_stack_keeps_no_access_times_and_no_blocks() {
    use std::os::unix::fs::MetadataExt;
    let sparse = |base: &Path| {
        let file = File::create(base.join("sparse")).expect("file");
        file.set_len(1 << 20).expect("length");
    };
    desk("", sparse, |d| {
        let found = fs::metadata(d.at("sparse")).expect("stat");
        assert_eq!(found.atime(), found.mtime());
        assert_eq!(found.blocks() * 512, 1 << 20);
    });
}
