//! Hard links and symbolic links.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{self as rfs, AtFlags, CWD, Mode, OFlags};

use crate::common::desk::desk;
use crate::common::tree::{self, Item};
use crate::sys;
use crate::twins::twins;

fn fill(dir: &Path) {
    tree::write(
        dir,
        &[
            ("file", Item::Mode(b"content", 0o666)),
            ("pair", Item::File(b"pair")),
            ("dir/pair", Item::Same("pair")),
            ("private", Item::Mode(b"private", 0o600)),
            ("suid", Item::Mode(b"suid", 0o4755)),
            ("dir/x", Item::File(b"x")),
            ("link", Item::Link("file")),
            ("theirs", Item::Mode(b"theirs", 0o600)),
        ],
    );
    crate::common::sh(
        dir,
        "mkfifo pipe; mknod null c 1 3; mknod nil c 0 0; chown 1234:1234 theirs; chmod 777 .",
    )
    .ok();
}

#[test]
fn open_files_get_names() {
    twins(fill, |at| {
        for name in ["file", "pair", "pipe", "null", "nil", "dir", "link"] {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let Some(fd) = at.got(name, rfs::open(at.path(name), flags, Mode::empty())) else { continue };
            at.did("by descriptor", sys::name_open_file(&fd, &at.path(format!("{name}-1"))));
            let proc = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let follow = AtFlags::SYMLINK_FOLLOW;
            at.did("by /proc", rfs::linkat(CWD, &*proc, CWD, at.path(format!("{name}-2")), follow));
            at.look(name);
        }
        // Open for reading and for writing, and written through afterwards.
        for name in ["file", "pair"] {
            let reader = File::open(at.path(name)).unwrap();
            let mut writer = OpenOptions::new().append(true).open(at.path(name)).unwrap();
            at.did("reader", sys::name_open_file(&reader, &at.path(format!("{name}-3"))));
            at.did("writer", sys::name_open_file(&writer, &at.path(format!("{name}-4"))));
            at.did("write", writer.write_all(b" more"));
            at.did("taken", sys::name_open_file(&reader, &at.path("link")));
        }
        // A file without a name cannot get one again.
        let file = File::open(at.path("private")).unwrap();
        fs::remove_file(at.path("private")).unwrap();
        at.did("removed", sys::name_open_file(&file, &at.path("again")));
        at.note("links", file.metadata().unwrap().nlink());
    });
}

#[test]
fn links_count_and_stay_linked() {
    twins(fill, |at| {
        let link = |from: &str, to: &str| {
            at.did(&format!("{from} = {to}"), fs::hard_link(at.path(from), at.path(to)))
        };
        link("pair", "dir/third");
        at.look("dir/pair");
        link("pair", "dir/third");
        link("dir", "dir2");
        link("absent", "x");
        link("link", "link2");
        link("pipe", "pipe2");
        link("nil", "nil2");
        link("null", "dir/null2");
        at.look("nil");
        at.did("chmod by one name", rfs::chmod(at.path("dir/third"), Mode::from_raw_mode(0o640)));
        at.did("write by another", fs::write(at.path("dir/pair"), "written"));
        for name in ["pair", "dir/pair", "dir/third"] {
            at.look(name);
            at.did(name, fs::read(at.path(name)));
        }
        at.did("remove", fs::remove_file(at.path("pair")));
        at.look("dir/third");
        at.did("rename over", fs::rename(at.path("file"), at.path("dir/pair")));
        at.look("dir/third");
        at.look("dir/pair");
        at.did("rename to itself", fs::rename(at.path("dir/third"), at.path("dir/third")));
        link("dir/third", "back");
        at.did("rename between names of one file", fs::rename(at.path("back"), at.path("dir/third")));
        at.look("back");
    });
}

#[test]
fn link_counts_of_open_files_go_down_to_nothing() {
    twins(fill, |at| {
        for name in ["file", "pair", "suid"] {
            let file = OpenOptions::new().read(true).write(true).open(at.path(name)).unwrap();
            fs::hard_link(at.path(name), at.path("l1")).unwrap();
            fs::hard_link(at.path("l1"), at.path("l2")).unwrap();
            for gone in ["l1", name, "l2"] {
                at.note("links", file.metadata().unwrap().nlink());
                fs::remove_file(at.path(gone)).unwrap();
            }
            at.note("links", file.metadata().unwrap().nlink());
            at.did("write", (&file).write_all(b"still"));
            at.did("length", file.set_len(2));
            at.note("bytes", file.metadata().unwrap().len());
        }
    });
}

#[test]
fn other_users_link_what_they_may() {
    twins(fill, |at| {
        // fs.protected_hardlinks decides about some of these; it is the same for both places.
        at.as_other(|| {
            for name in ["file", "pair", "private", "suid", "theirs", "link", "pipe"] {
                at.did(name, fs::hard_link(at.path(name), at.path(format!("{name}-theirs"))));
                at.did(
                    "in a closed directory",
                    fs::hard_link(at.path(name), at.path(format!("dir/{name}-l"))),
                );
            }
            at.did("symlink", symlink("anything", at.path("their-symlink")));
            at.did("closed", symlink("anything", at.path("dir/their-symlink")));
        });
        at.look("their-symlink");
    });
}

#[test]
fn symbolic_links_hold_up_to_4095_bytes() {
    fn long(dir: &Path) {
        for n in [1, 59, 60, 255, 4094, 4095] {
            symlink("t".repeat(n), dir.join(format!("l{n}"))).unwrap();
        }
        symlink("loop", dir.join("loop")).unwrap();
        symlink("l1", dir.join("chain")).unwrap();
        fs::create_dir(dir.join("dir")).unwrap();
        symlink("dir", dir.join("to-dir")).unwrap();
    }
    twins(long, |at| {
        for n in [1, 60, 4095, 4096] {
            at.did("make", symlink("m".repeat(n), at.path(format!("m{n}"))));
        }
        at.did("empty", symlink("", at.path("m0")));
        for name in ["l1", "l4095", "m4095", "loop"] {
            at.did("read", fs::read_link(at.path(name)).map(|t| t.as_os_str().len()));
            at.note("length", fs::symlink_metadata(at.path(name)).unwrap().len());
            at.did("through", File::open(at.path(name)).map(drop));
            let nofollow = OFlags::NOFOLLOW | OFlags::RDONLY;
            at.did("not followed", rfs::open(at.path(name), nofollow, Mode::empty()).map(drop));
            at.did("made through", File::create(at.path(name)).map(drop));
        }
        at.did("mkdir over", fs::create_dir(at.path("to-dir")));
        at.did("rmdir", fs::remove_dir(at.path("to-dir")));
        at.did("with slash", fs::remove_dir(at.path("to-dir/")));
        at.did("beneath", fs::write(at.path("to-dir/file"), "through"));
        at.did(
            "chmod",
            rfs::chmodat(CWD, at.path("chain"), Mode::from_raw_mode(0o600), AtFlags::SYMLINK_NOFOLLOW),
        );
        let user = Some(rfs::Uid::from_raw(7));
        at.did("chown", rfs::chownat(CWD, at.path("chain"), user, None, AtFlags::SYMLINK_NOFOLLOW));
        at.look("chain");
    });
}

#[test]
fn a_group_of_the_stack_is_whole_after_copy_up_remount_and_swap() {
    let fill = |dir: &Path| {
        tree::write(
            dir,
            &[
                ("a", Item::File(b"one")),
                ("b", Item::Same("a")),
                ("d/c", Item::Same("a")),
                ("other", Item::File(b"o")),
            ],
        );
    };
    desk("", fill, |d| {
        let look = |want: u64| {
            let of = |n: &str| fs::metadata(d.at(n)).unwrap();
            for name in ["a", "b", "d/c"] {
                assert_eq!((of(name).nlink(), of(name).ino()), (want, of("a").ino()), "{name}");
                assert_eq!(fs::read(d.at(name)).unwrap(), fs::read(d.at("a")).unwrap());
            }
        };
        look(3);
        fs::hard_link(d.at("b"), d.at("mine")).unwrap();
        look(4);
        fs::write(d.at("d/c"), "written").unwrap();
        look(4);
        d.remount();
        look(4);
        if crate::common::desk::over_directories() {
            return; // Nothing is swapped there.
        }
        let next = d.source.with_file_name("next");
        fs::create_dir(&next).unwrap();
        crate::common::sh(&next, &format!("cp -a {}/. .; echo new >other; echo two >a", d.source.display()))
            .ok();
        d.program.ok(&["import", &format!("dir:{}", next.display()), "v:2", "--parent", "v:1"]);
        d.program.ok(&["upgrade", "d", "--to", "v:2"]);
        look(4);
        assert_eq!(fs::read(d.at("mine")).unwrap(), b"written");
        assert_eq!(d.sh("cat other"), "new");
        fs::remove_file(d.at("mine")).unwrap();
        look(3);
        d.program.ok(&["rollback", "d"]);
        look(3);
    });
}

#[test]
fn a_name_that_the_users_file_hides_is_no_link_of_the_group() {
    let fill = |dir: &Path| tree::write(dir, &[("file", Item::File(b"content"))]);
    desk("", fill, |d| {
        fs::write(d.at("second"), "mine").unwrap();
        if crate::common::desk::over_directories() {
            return; // Nothing is swapped there.
        }
        let next = d.source.with_file_name("next");
        fs::create_dir(&next).unwrap();
        crate::common::sh(&next, &format!("cp -a {}/. .; ln file second; ln file third", d.source.display()))
            .ok();
        d.program.ok(&["import", &format!("dir:{}", next.display()), "v:2", "--parent", "v:1"]);
        d.program.ok(&["upgrade", "d", "--to", "v:2"]);
        for _ in 0..2 {
            assert_eq!(fs::read(d.at("second")).unwrap(), b"mine");
            for name in ["file", "third"] {
                assert_eq!(fs::metadata(d.at(name)).unwrap().nlink(), 2, "{name}");
            }
            assert_eq!(fs::metadata(d.at("second")).unwrap().nlink(), 1);
            d.remount();
        }
    });
}
