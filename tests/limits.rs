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

/// Makes `v:2` of `v:1` with a script, and takes the desktop there, live.
fn upgrade(d: &common::desk::Desk, change: &str) {
    let next = d.source.with_file_name("next");
    fs::create_dir(&next).expect("directory");
    common::sh(&next, &format!("cp -a {}/. .; {change}", d.source.display())).ok();
    d.program.ok(&["import", &format!("dir:{}", next.display()), "v:2", "--parent", "v:1"]);
    d.program.ok(&["upgrade", "d", "--to", "v:2"]);
}

#[test]
fn a_file_that_a_swap_displaced_is_one_without_a_name() {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    desk("", a_file, |d| {
        let old = File::open(d.at("file")).expect("file");
        upgrade(d, "echo new >file");
        let again = File::options().write(true).open(format!("/proc/self/fd/{}", old.as_raw_fd()));
        assert_eq!(again.map(drop).expect_err("opened").raw_os_error(), Some(libc::ESTALE));
        rustix::fs::fchmod(&old, Mode::from_raw_mode(0o600)).expect("chmod");
        assert_eq!(old.metadata().expect("stat").mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(d.at("file")).expect("stat").mode() & 0o777, 0o644);
        assert_eq!(std::io::read_to_string(&old).expect("read"), "content");
    });
}

#[test]
fn watchers_do_not_hear_of_a_swap() {
    use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
    desk("", a_file, |d| {
        let queue = inotify::init(CreateFlags::NONBLOCK).expect("inotify");
        let changes = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB;
        inotify::add_watch(&queue, &d.mnt, changes).expect("watch");
        upgrade(d, "echo new >file; echo another >added");
        assert_eq!(d.sh("cat file added"), "new\nanother");
        let mut buf = [std::mem::MaybeUninit::uninit(); 1024];
        let heard = inotify::Reader::new(&queue, &mut buf).next().map(|e| format!("{e:?}"));
        assert_eq!(heard.expect_err("heard"), rustix::io::Errno::AGAIN);
    });
}

#[test]
fn directories_of_the_stack_have_4096_bytes() {
    let many = |base: &Path| {
        for i in 0..500 {
            fs::write(base.join(format!("{}-{i}", "n".repeat(200))), "").expect("file");
        }
    };
    desk("", many, |d| {
        assert_eq!(fs::metadata(&d.mnt).expect("stat").len(), 4096);
        assert!(fs::metadata(&d.source).expect("stat").len() > 4096);
    });
}

#[test]
fn ranges_cannot_be_cut_out_or_put_in() {
    desk("", a_file, |d| {
        let file = File::create(d.at("mine")).expect("file");
        file.set_len(1 << 20).expect("length");
        use rustix::fs::FallocateFlags;
        for mode in
            [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE, FallocateFlags::UNSHARE_RANGE]
        {
            let done = rustix::fs::fallocate(&file, mode, 4096, 4096);
            assert_eq!(done, Err(rustix::io::Errno::OPNOTSUPP), "{mode:?}");
        }
    });
}

#[test]
fn statx_does_not_show_inode_flags() {
    desk("", a_file, |d| {
        d.sh("echo x >mine; chattr +i mine");
        let found =
            rustix::fs::statx(rustix::fs::CWD, d.at("mine"), AtFlags::empty(), StatxFlags::BASIC_STATS);
        d.sh("chattr -i mine");
        let attributes = found.expect("statx").stx_attributes;
        assert!(!attributes.contains(rustix::fs::StatxAttributes::IMMUTABLE));
    });
}

#[test]
fn an_attribute_that_is_named_like_a_mark_has_a_shorter_name() {
    desk("", a_file, |d| {
        let set = |len: usize| {
            let name = format!("trusted.overlay.{}", "n".repeat(len - "trusted.overlay.".len()));
            rustix::fs::setxattr(d.at("file"), name, b"x", rustix::fs::XattrFlags::empty())
        };
        assert_eq!((set(247), set(248)), (Ok(()), Err(rustix::io::Errno::RANGE)));
    });
}

/// A file of the user's with capabilities and setuid.
const CAPABLE: &str =
    "PATH=$PATH:/usr/sbin:/sbin; echo content >mine; chmod 4755 mine; setcap cap_net_raw+ep mine";

#[test]
fn a_change_of_owner_to_nobody_else_by_root_keeps_setuid_beside_capabilities() {
    use std::os::unix::fs::MetadataExt;
    desk("", a_file, |d| {
        d.sh(CAPABLE);
        rustix::fs::chown(d.at("mine"), None, None).expect("chown");
        assert_eq!(fs::metadata(d.at("mine")).expect("stat").mode() & 0o7777, 0o4755);
        // As on ext4 without them, and with another owner.
        d.sh("chmod 4755 file; chown 1:1 mine");
        rustix::fs::chown(d.at("file"), None, None).expect("chown");
        for name in ["mine", "file"] {
            assert_eq!(fs::metadata(d.at(name)).expect("stat").mode() & 0o7777, 0o755, "{name}");
        }
    });
}

#[test]
fn reads_from_the_page_cache_and_of_links_that_the_kernel_remembers_move_no_access_time() {
    use std::os::unix::fs::MetadataExt;
    desk("strictatime,data=coherent", a_file, |d| {
        d.sh("echo content >mine; ln -s mine link");
        let atime = |name: &str| {
            let m = fs::symlink_metadata(d.at(name)).expect("stat");
            (m.atime(), m.atime_nsec())
        };
        let read = || (fs::read(d.at("mine")).expect("read"), fs::read_link(d.at("link")).expect("link"));
        read();
        let before = (atime("mine"), atime("link"));
        // Until the clock of file times has moved.
        let newest = || fs::metadata(d.at("clock")).expect("stat").mtime_nsec();
        fs::write(d.at("clock"), "").expect("clock");
        let first = newest();
        while newest() == first {
            fs::write(d.at("clock"), "x").expect("clock");
        }
        read();
        assert_eq!((atime("mine"), atime("link")), before);
    });
}

#[test]
fn a_remount_leaves_the_rule_for_access_times_of_what_is_read_past_the_daemon() {
    use std::os::unix::fs::MetadataExt;
    desk("noatime", a_file, |d| {
        d.sh("echo content >mine; touch -d @1000000000 mine");
        common::sh(d.mnt.parent().expect("parent"), "mount -i -o remount,strictatime mnt").ok();
        fs::read(d.at("mine")).expect("read");
        assert_eq!(fs::metadata(d.at("mine")).expect("stat").atime(), 1_000_000_000);
    });
}

#[test]
fn times_of_a_pipe_stay_when_it_is_written_to() {
    desk("", a_file, |d| {
        let through =
            "mkfifo pipe; touch -d @1000000000 pipe; (echo x >pipe) & cat pipe; wait; stat -c %Y pipe";
        assert_eq!(d.sh(through), "x\n1000000000");
        let plain = common::sh(d.source.parent().expect("parent"), through).ok().out();
        assert_ne!(plain.trim_end(), "x\n1000000000", "on the file system below they move");
    });
}
