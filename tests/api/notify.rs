//! inotify: what happens through a mount is told as ext4 tells it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::mem::MaybeUninit;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{self as rfs, CWD, Mode, RenameFlags, XattrFlags};

use crate::common::tree::{self, Item};
use crate::twins::twins;

fn fill(dir: &Path) {
    let large = vec![1; 1_200_000];
    tree::write(
        dir,
        &[
            ("file", Item::File(b"content")),
            ("large", Item::File(&large)),
            ("other", Item::File(b"other")),
            ("dir/x", Item::File(b"x")),
            ("dir/y", Item::File(b"y")),
            ("empty", Item::Dir(0o755)),
        ],
    );
}

/// All events that are there: the kernel makes them before the call that causes them returns.
fn events(queue: &std::os::fd::OwnedFd) -> Vec<(i32, ReadFlags, Option<String>)> {
    let mut buf = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(queue, &mut buf);
    let mut out = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => {
                let name = event.file_name().map(|n| n.to_string_lossy().into_owned());
                out.push((event.wd(), event.events(), name));
            }
            Err(rustix::io::Errno::AGAIN) => return out,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn changes_through_the_mount_are_told() {
    twins(fill, |at| {
        let queue = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        // Closing is left out: a process that another test starts meanwhile may have a copy of a descriptor.
        let all = WatchFlags::ACCESS
            | WatchFlags::ATTRIB
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MODIFY
            | WatchFlags::MOVE
            | WatchFlags::MOVE_SELF
            | WatchFlags::OPEN;
        for name in ["", "file", "large", "dir", "dir/x"] {
            at.did("watch", inotify::add_watch(&queue, at.path(name), all));
        }
        let told = |what: &str| at.note(what, events(&queue));
        for name in ["file", "large"] {
            fs::read(at.path(name)).unwrap();
            told("read");
            let mut file = OpenOptions::new().append(true).open(at.path(name)).unwrap();
            file.write_all(b"more").unwrap();
            told("append");
            file.set_len(3).unwrap();
            told("shorten");
            rfs::chmod(at.path(name), Mode::from_raw_mode(0o600)).unwrap();
            rfs::chown(at.path(name), Some(rfs::Uid::from_raw(3)), None).unwrap();
            rfs::setxattr(at.path(name), "user.x", b"y", XattrFlags::empty()).unwrap();
            told("attributes");
            crate::sys::fallocate(&file, 0, 0, 100).unwrap();
            told("allocate");
            drop(file);
            events(&queue);
        }
        File::create(at.path("new")).unwrap();
        fs::create_dir(at.path("newdir")).unwrap();
        std::os::unix::fs::symlink("x", at.path("link")).unwrap();
        told("made");
        fs::hard_link(at.path("file"), at.path("dir/hard")).unwrap();
        told("linked");
        fs::rename(at.path("new"), at.path("dir/new")).unwrap();
        told("moved");
        fs::rename(at.path("other"), at.path("dir/x")).unwrap();
        told("moved over one that is watched");
        rfs::renameat_with(CWD, at.path("file"), CWD, at.path("dir/y"), RenameFlags::EXCHANGE).unwrap();
        told("exchanged");
        fs::rename(at.path("dir"), at.path("empty")).unwrap();
        told("a directory moved");
        fs::remove_file(at.path("empty/new")).unwrap();
        fs::remove_dir(at.path("newdir")).unwrap();
        told("removed");
        fs::read_dir(at.path("empty")).unwrap().for_each(drop);
        told("listed");
    });
}
