//! Names: rename in all its forms, long names and long paths, what stands in the way of what.

use std::fs::{self, File};
use std::path::Path;

use rustix::fs::{self as rfs, AtFlags, CWD, Mode, OFlags, RenameFlags};

use crate::common::desk::desk;
use crate::common::tree::{self, Item};
use crate::twins::{At, twins};

fn kinds(dir: &Path) {
    tree::write(
        dir,
        &[
            ("file", Item::File(b"file")),
            ("other", Item::File(b"other")),
            ("same", Item::Same("other")),
            ("empty", Item::Dir(0o755)),
            ("empty2", Item::Dir(0o750)),
            ("full/in/deep", Item::File(b"deep")),
            ("full/x", Item::File(b"x")),
            ("link", Item::Link("file")),
            ("dangling", Item::Link("nowhere")),
        ],
    );
    crate::common::sh(dir, "mkfifo pipe; mknod null c 1 3; mknod nil c 0 0").ok();
}

const NAMES: [&str; 12] = [
    "file", "other", "same", "empty", "empty2", "full", "full/in", "link", "dangling", "pipe", "nil",
    "absent",
];

fn rename(at: &At, from: &str, to: &str, flags: RenameFlags) {
    let result = rfs::renameat_with(CWD, at.path(from), CWD, at.path(to), flags);
    at.did(&format!("{from} -> {to} {flags:?}"), result);
}

#[test]
fn every_kind_is_renamed_over_every_kind() {
    twins(
        |dir| {
            for from in NAMES {
                for to in NAMES {
                    let name = format!("{from}-{to}").replace('/', "_");
                    fs::create_dir(dir.join(&name)).unwrap();
                    kinds(&dir.join(&name));
                }
            }
        },
        |at| {
            for from in NAMES {
                for to in NAMES {
                    let dir = format!("{from}-{to}").replace('/', "_");
                    let (from, to) = (format!("{dir}/{from}"), format!("{dir}/{to}"));
                    rename(at, &from, &to, RenameFlags::NOREPLACE);
                    rename(at, &from, &to, RenameFlags::EXCHANGE);
                    rename(at, &from, &to, RenameFlags::empty());
                    rename(at, &to, &from, RenameFlags::EXCHANGE);
                    at.look(&from);
                    at.look(&to);
                }
            }
        },
    );
}

#[test]
fn a_rename_refuses_what_ext4_refuses() {
    twins(kinds, |at| {
        let all = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        rename(at, "file", "other", all);
        rename(at, "file", "other", RenameFlags::EXCHANGE | RenameFlags::WHITEOUT);
        rename(at, "file", "new", RenameFlags::from_bits_retain(8));
        for (from, to) in [
            ("full", "full/in/new"),
            ("full", "full"),
            ("full/in", "full"),
            ("file", "file/x"),
            ("file/x", "y"),
            ("absent/x", "y"),
            ("file", "absent/y"),
            (".", "y"),
            ("full/.", "y"),
            ("full/in/..", "y"),
            ("file", ""),
            ("file/", "y"),
            ("file", "y/"),
            ("empty", "y/"),
            ("link/", "z"),
        ] {
            for flags in [RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE] {
                rename(at, from, to, flags);
            }
        }
        rename(at, "file", &"n".repeat(256), RenameFlags::empty());
        rename(at, "y", &"n".repeat(255), RenameFlags::empty());
    });
}

#[test]
fn sticky_and_closed_directories_bind_other_users() {
    twins(
        |dir| {
            for (name, mode) in [("open", 0o777), ("sticky", 0o1777), ("closed", 0o755), ("blind", 0o733)] {
                tree::write(dir, &[(name, Item::Dir(mode))]);
                for owner in ["roots", "theirs"] {
                    tree::write(
                        &dir.join(name),
                        &[(owner, Item::Mode(b"x", 0o666)), (&format!("{owner}-dir"), Item::Dir(0o777))],
                    );
                }
                crate::common::sh(&dir.join(name), "chown 1234:1234 theirs theirs-dir; ln -s x link").ok();
            }
        },
        |at| {
            at.as_other(|| {
                for dir in ["open", "sticky", "closed", "blind"] {
                    for name in ["roots", "theirs", "roots-dir", "theirs-dir"] {
                        let from = format!("{dir}/{name}");
                        rename(at, &from, &format!("{dir}/new-{name}"), RenameFlags::empty());
                        rename(at, &format!("{dir}/new-{name}"), &from, RenameFlags::NOREPLACE);
                        rename(at, &format!("{dir}/roots"), &from, RenameFlags::EXCHANGE);
                        at.did(
                            &format!("link {from}"),
                            fs::hard_link(at.path(&from), at.path(format!("{dir}/l-{name}"))),
                        );
                        at.did(&format!("unlink {from}"), fs::remove_file(at.path(&from)));
                        at.did(&format!("rmdir {from}"), fs::remove_dir(at.path(&from)));
                    }
                    at.did("mkdir", fs::create_dir(at.path(format!("{dir}/made"))));
                    at.did("touch", File::create(at.path(format!("{dir}/touched"))).map(drop));
                    at.did("list", fs::read_dir(at.path(dir)).map(|d| d.count()));
                }
            });
        },
    );
}

#[test]
fn paths_of_4096_bytes_and_deeper_are_reached() {
    desk("", tree::small, |d| {
        // 4,095 bytes and the NUL are the most that one call takes.
        let name = "d".repeat(250);
        let base = d.mnt.as_os_str().len();
        let mut path = d.mnt.clone();
        while path.as_os_str().len() + 251 < 4095 - 255 {
            path.push(&name);
            fs::create_dir(&path).unwrap();
        }
        let left = 4095 - path.as_os_str().len() - 1;
        let last = path.join("e".repeat(left.min(255)));
        fs::write(&last, "deep").unwrap();
        let longest = last.as_os_str().len();
        assert!(longest > 4095 - 255 && longest <= 4095 && base < 500);
        assert_eq!(fs::read(&last).unwrap(), b"deep");
        let too_long = fs::read(format!("{}{}", d.mnt.display(), "/.".repeat(2048))).unwrap_err();
        assert_eq!(too_long.raw_os_error(), Some(libc::ENAMETOOLONG));
        // Beyond, one step at a time.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = rfs::open(&path, flags, Mode::empty()).unwrap();
        for _ in 0..40 {
            rfs::mkdirat(&at, &*name, Mode::from_raw_mode(0o755)).unwrap();
            at = rfs::openat(&at, &*name, flags, Mode::empty()).unwrap();
        }
        let file =
            rfs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o644)).unwrap();
        rustix::io::write(&file, b"deeper").unwrap();
        drop((at, file));
        d.drop_caches();
        d.remount();
        assert_eq!(fs::read(&last).unwrap(), b"deep");
        let mut at = rfs::open(&path, flags, Mode::empty()).unwrap();
        for _ in 0..40 {
            at = rfs::openat(&at, &*name, flags, Mode::empty()).unwrap();
        }
        assert_eq!(rfs::statat(&at, "file", AtFlags::empty()).unwrap().st_size, 6);
        drop(at);
        // What is deep can be moved as a whole, and removed.
        let top = d.at(&name);
        fs::rename(&top, d.at("usr/moved")).unwrap();
        d.sh("rm -r usr/moved");
    });
}

/// Names on disk beneath a directory, at any depth.
fn entries(dir: &Path) -> usize {
    fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| 1 + if e.file_type().unwrap().is_dir() { entries(&e.path()) } else { 0 })
        .sum()
}

#[test]
fn a_directory_of_the_stack_is_renamed_at_the_same_cost_whatever_it_holds() {
    let fill = |dir: &Path| {
        for (name, count) in [("one", 1), ("many", 2000)] {
            for i in 0..count {
                let at = dir.join(format!("{name}/sub-{}", i % 50));
                fs::create_dir_all(&at).unwrap();
                fs::write(at.join(format!("file-{i}")), "content").unwrap();
            }
        }
    };
    desk("", fill, |d| {
        fs::rename(d.at("one"), d.at("one-moved")).unwrap();
        let after_one = entries(&d.user);
        fs::rename(d.at("many"), d.at("many-moved")).unwrap();
        let after_many = entries(&d.user);
        assert_eq!(after_many - after_one, after_one, "entries that were written into the user layer");
        assert_eq!(after_one, 2, "the new name, and a whiteout at the old one");
        assert_eq!(d.sh("ls; find many-moved -type f | wc -l"), "many-moved\none-moved\n2000");
    });
}

#[test]
fn a_swap_beneath_a_renamed_directory_leaves_it_as_it_was_moved() {
    let fill = |dir: &Path| {
        tree::write(
            dir,
            &[
                ("dir/same", Item::File(b"same")),
                ("dir/old", Item::File(b"old")),
                ("dir/sub/x", Item::File(b"x")),
            ],
        );
    };
    desk("", fill, |d| {
        d.sh("mv dir moved; echo mine >moved/sub/mine; rm moved/same");
        let before = tree::listing(&d.at("moved"));
        let open = File::open(d.at("moved/old")).unwrap();
        if crate::common::desk::over_directories() {
            return; // Nothing is swapped there.
        }
        let next = d.source.with_file_name("next");
        fs::create_dir(&next).unwrap();
        crate::common::sh(
            &next,
            &format!("cp -a {}/. .; echo new >dir/old; rm -r dir/sub; echo n >dir/new", d.source.display()),
        )
        .ok();
        d.program.ok(&["import", &format!("dir:{}", next.display()), "v:2", "--parent", "v:1"]);
        d.program.ok(&["upgrade", "d", "--to", "v:2"]);
        for _ in 0..2 {
            tree::assert_same("the moved directory", &before, &tree::listing(&d.at("moved")));
            assert!(!d.at("dir").exists(), "the old name stays free");
            d.drop_caches();
        }
        assert_eq!(std::io::read_to_string(&open).unwrap(), "old");
        drop(open);
        d.remount();
        tree::assert_same("the moved directory after a remount", &before, &tree::listing(&d.at("moved")));
        d.program.ok(&["rollback", "d"]);
        tree::assert_same("the moved directory after a rollback", &before, &tree::listing(&d.at("moved")));
    });
}
