//! The view behaves as a local file system: names, links, inode numbers, attributes, permissions.

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use common::desk::{desk, over_directories};
use common::tree::{self, Item};
use rustix::fs::{self as rfs, XattrFlags};

fn raw<T>(r: rustix::io::Result<T>) -> Result<T, i32> {
    r.map_err(|e| e.raw_os_error())
}

fn get(path: &Path, name: &str) -> Result<Vec<u8>, i32> {
    let mut value = vec![0; 65536];
    let n = raw(rfs::lgetxattr(path, name, &mut value[..]))?;
    value.truncate(n);
    Ok(value)
}

fn set(path: &Path, name: &str, value: &[u8], flags: XattrFlags) -> Result<(), i32> {
    raw(rfs::lsetxattr(path, name, value, flags))
}

fn names(path: &Path) -> Vec<String> {
    let mut list = vec![0; 65536];
    let n = rfs::llistxattr(path, &mut list[..]).unwrap();
    let mut out: Vec<String> = list[..n]
        .split(|c| *c == 0)
        .filter(|n| !n.is_empty())
        .map(|n| String::from_utf8_lossy(n).into_owned())
        .collect();
    out.sort();
    out
}

#[test]
fn a_directory_of_the_stack_is_renamed_like_any_other() {
    desk("", tree::small, |d| {
        let before = tree::listing(&d.at("usr"));
        let number = fs::metadata(d.at("usr/bin/tool")).unwrap().ino();
        fs::rename(d.at("usr"), d.at("etc/moved")).unwrap();
        assert!(!d.at("usr").exists());
        tree::assert_same("moved", &before, &tree::listing(&d.at("etc/moved")));
        // Its old place is free, and what is made there shows nothing of what was there.
        fs::create_dir(d.at("usr")).unwrap();
        assert_eq!(fs::read_dir(d.at("usr")).unwrap().count(), 0);
        fs::write(d.at("etc/moved/bin/mine"), "mine").unwrap();
        d.remount();
        assert_eq!(fs::metadata(d.at("etc/moved/bin/tool")).unwrap().ino(), number);
        assert_eq!(fs::read(d.at("etc/moved/bin/mine")).unwrap(), b"mine");
        fs::remove_file(d.at("etc/moved/bin/mine")).unwrap();
        assert_eq!(fs::read_dir(d.at("usr")).unwrap().count(), 0);
        // Back again, over the empty directory.
        fs::rename(d.at("etc/moved"), d.at("usr")).unwrap();
        d.remount();
        tree::assert_same("moved back", &before, &tree::listing(&d.at("usr")));
    });
}

#[test]
fn names_change_places_whatever_they_are() {
    desk("", tree::small, |d| {
        let exchange = |a: &str, b: &str| {
            rfs::renameat_with(rfs::CWD, d.at(a), rfs::CWD, d.at(b), rfs::RenameFlags::EXCHANGE).unwrap();
        };
        let (usr, var) = (tree::listing(&d.at("usr")), tree::listing(&d.at("var")));
        exchange("usr", "var");
        exchange("etc/hostname", "root");
        d.remount();
        tree::assert_same("usr at var", &usr, &tree::listing(&d.at("var")));
        tree::assert_same("var at usr", &var, &tree::listing(&d.at("usr")));
        assert_eq!(d.sh("cat root etc/hostname/.profile"), "small\numask 022");
        let taken =
            rfs::renameat_with(rfs::CWD, d.at("usr"), rfs::CWD, d.at("var"), rfs::RenameFlags::NOREPLACE);
        assert_eq!(raw(taken), Err(libc::EEXIST));
        let inside = fs::rename(d.at("usr"), d.at("usr/log/x"));
        assert_eq!(inside.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    });
}

#[test]
fn hard_links_of_the_stack_stay_linked_across_copy_up() {
    let fill = |dir: &Path| {
        tree::write(
            dir,
            &[
                ("a/one", Item::File(b"shared")),
                ("b/two", Item::Same("a/one")),
                ("c/d/three", Item::Same("a/one")),
            ],
        );
    };
    desk("", fill, |d| {
        let number = |n: &str| fs::metadata(d.at(n)).unwrap().ino();
        let links = |n: &str| fs::metadata(d.at(n)).unwrap().nlink();
        let first = number("b/two");
        fs::write(d.at("b/two"), "written").unwrap();
        for name in ["a/one", "b/two", "c/d/three"] {
            assert_eq!(
                (fs::read(d.at(name)).unwrap(), links(name), number(name)),
                (b"written".to_vec(), 3, first)
            );
        }
        fs::hard_link(d.at("c/d/three"), d.at("four")).unwrap();
        fs::remove_file(d.at("a/one")).unwrap();
        d.remount();
        fs::write(d.at("four"), "again").unwrap();
        for name in ["four", "b/two", "c/d/three"] {
            assert_eq!(
                (fs::read(d.at(name)).unwrap(), links(name), number(name)),
                (b"again".to_vec(), 3, first)
            );
        }
    });
}

#[test]
fn removing_one_name_of_a_stack_file_lowers_the_link_count_of_the_others() {
    let fill = |dir: &Path| {
        tree::write(dir, &[("a", Item::File(b"x")), ("b", Item::Same("a")), ("c", Item::Same("a"))])
    };
    desk("", fill, |d| {
        fs::remove_file(d.at("b")).unwrap();
        assert_eq!(fs::metadata(d.at("a")).unwrap().nlink(), 2);
        d.remount();
        assert_eq!(fs::metadata(d.at("c")).unwrap().nlink(), 2);
        fs::rename(d.at("a"), d.at("c")).unwrap();
        // Both are names of one file: rename(2) does nothing.
        assert!(d.at("a").exists());
    });
}

#[test]
fn links_between_a_moved_directory_and_the_rest_stay() {
    let fill = |dir: &Path| {
        tree::write(
            dir,
            &[("a/b/x", Item::File(b"x")), ("c/x", Item::Same("a/b/x")), ("a/y", Item::Same("a/b/x"))],
        );
    };
    desk("", fill, |d| {
        fs::rename(d.at("a"), d.at("z")).unwrap();
        fs::write(d.at("c/x"), "new").unwrap();
        d.remount();
        for name in ["z/b/x", "z/y", "c/x"] {
            assert_eq!(fs::read(d.at(name)).unwrap(), b"new", "{name}");
            assert_eq!(fs::metadata(d.at(name)).unwrap().nlink(), 3, "{name}");
        }
    });
}

/// Imports what `change` makes of a copy of `v:1` as `v:2` and takes the desktop there, live.
fn upgrade(d: &common::desk::Desk, change: &str) {
    let next = d.source.with_file_name("next");
    fs::create_dir(&next).unwrap();
    common::sh(&next, &format!("cp -a {}/. .; {change}", d.source.display())).ok();
    let from = format!("dir:{}", next.display());
    d.program.ok(&["import", &from, "v:2", "--parent", "v:1"]);
    d.program.ok(&["upgrade", "d", "--to", "v:2"]);
}

#[test]
fn a_name_that_joins_a_group_after_its_copy_up_does_not_show_the_users_content() {
    if over_directories() {
        return; // Nothing is swapped there.
    }
    let fill = |dir: &Path| {
        tree::write(dir, &[("x", Item::File(b"ours")), ("y", Item::Same("x")), ("w", Item::File(b"w"))])
    };
    desk("", fill, |d| {
        fs::write(d.at("x"), "mine").unwrap();
        d.sh("chmod 600 w; mv w moved");
        let number = fs::metadata(d.at("y")).unwrap().ino();
        upgrade(d, "ln x z; ln x z2; ln w w2; ln w w3");
        for round in 0..2 {
            for (name, content, links) in [
                ("x", "mine", 2),
                ("y", "mine", 2),
                ("z", "ours", 2),
                ("z2", "ours", 2),
                ("moved", "w", 1),
                ("w2", "w", 2),
            ] {
                assert_eq!(fs::read_to_string(d.at(name)).unwrap(), content, "{name}");
                assert_eq!(fs::metadata(d.at(name)).unwrap().nlink(), links, "{name}");
            }
            for entry in fs::read_dir(&d.mnt).unwrap() {
                use std::os::unix::fs::DirEntryExt;
                let entry = entry.unwrap();
                assert_eq!(
                    entry.ino(),
                    fs::symlink_metadata(entry.path()).unwrap().ino(),
                    "{:?}",
                    entry.file_name()
                );
            }
            assert_eq!(fs::metadata(d.at("x")).unwrap().ino(), number);
            assert_ne!(fs::metadata(d.at("z")).unwrap().ino(), number);
            if round == 0 { d.drop_caches() } else { d.remount() }
        }
        fs::write(d.at("z"), "new").unwrap();
        fs::write(d.at("w2"), "W2").unwrap();
        d.remount();
        for (name, content) in
            [("x", "mine"), ("y", "mine"), ("z", "new"), ("z2", "new"), ("w3", "W2"), ("moved", "w")]
        {
            assert_eq!(fs::read_to_string(d.at(name)).unwrap(), content, "{name}");
        }
    });
}

#[test]
fn a_copy_up_after_a_swap_does_not_bring_back_names_that_are_gone() {
    if over_directories() {
        return; // Nothing is swapped there.
    }
    let fill = |dir: &Path| {
        tree::write(
            dir,
            &[
                ("a", Item::File(b"x")),
                ("b", Item::Same("a")),
                ("c", Item::Same("a")),
                ("only", Item::File(b"only")),
            ],
        )
    };
    desk("", fill, |d| {
        let (file, only) = (File::open(d.at("c")).unwrap(), File::open(d.at("only")).unwrap());
        assert_eq!(d.sh("stat -c %h a b"), "3\n3");
        upgrade(d, "rm c only");
        d.sh("chmod 600 b");
        assert_eq!(d.sh("ls"), "a\nb");
        rfs::fchmod(&only, rfs::Mode::from_raw_mode(0o600)).unwrap();
        assert_eq!(only.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(d.sh("ls; stat -c %a:%h a"), "a\nb\n600:2");
        drop((file, only));
        d.remount();
        assert_eq!(d.sh("ls; stat -c %a:%h a"), "a\nb\n600:2");
    });
}

#[test]
fn a_directory_that_a_swap_removed_is_as_after_rmdir_for_who_is_in_it() {
    if over_directories() {
        return; // Nothing is swapped there.
    }
    let fill = |dir: &Path| {
        tree::write(dir, &[("gone/in/file", Item::File(b"x")), ("stays/file", Item::File(b"y"))])
    };
    desk("", fill, |d| {
        let (outer, inner) = (File::open(d.at("gone")).unwrap(), File::open(d.at("gone/in")).unwrap());
        upgrade(d, "rm -r gone");
        for dir in [&outer, &inner] {
            assert_eq!(dir.metadata().unwrap().nlink(), 0);
            let made = rfs::mkdirat(dir, "new", rfs::Mode::from_raw_mode(0o755));
            assert_eq!(raw(made), Err(libc::ENOENT));
            let names = rfs::Dir::read_from(dir).unwrap().map(|e| e.unwrap().file_name().to_owned());
            assert_eq!(names.filter(|n| !matches!(n.to_bytes(), b"." | b"..")).count(), 0);
        }
        assert_eq!(d.sh("ls"), "stays");
        assert_eq!(fs::read_dir(&d.user).unwrap().count(), 0, "nothing was brought back");
        d.program.ok(&["rollback", "d"]);
        assert_eq!(d.sh("cat gone/in/file; mkdir gone/new; ls gone"), "xin\nnew");
    });
}

#[test]
fn inode_numbers_survive_copy_up_rename_and_remount() {
    desk("", tree::small, |d| {
        let number = |n: &str| fs::symlink_metadata(d.at(n)).unwrap().ino();
        let paths = ["etc/hostname", "etc/passwd", "etc", "etc/mtab", "usr/lib/libsmall.so.1"];
        let before: Vec<u64> = paths.iter().map(|p| number(p)).collect();
        d.sh("echo more >>etc/hostname; chmod 600 etc/passwd; touch -h etc/mtab; mkdir etc/new");
        fs::write(d.at("mine"), "mine").unwrap();
        let mine = number("mine");
        fs::rename(d.at("usr/lib/libsmall.so.1"), d.at("usr/lib/x")).unwrap();
        fs::rename(d.at("usr/lib/x"), d.at("usr/lib/libsmall.so.1")).unwrap();
        for round in 0..3 {
            let now: Vec<u64> = paths.iter().map(|p| number(p)).collect();
            assert_eq!(before, now, "round {round}");
            assert_eq!(number("mine"), mine);
            if round == 0 { d.drop_caches() } else { d.remount() }
        }
    });
}

#[test]
fn attributes_are_set_without_copying_the_content() {
    let fill = |dir: &Path| tree::write(dir, &[("big", Item::File(&[7; 3_000_000]))]);
    // Over plain directories only on request: others read the upper directory too.
    desk(if over_directories() { "metacopy=on" } else { "" }, fill, |d| {
        d.sh("chmod 640 big; chown 12:34 big; setfattr -n user.x -v y big; touch -h -d @1000000000 big");
        d.remount();
        assert_eq!(
            d.sh("stat -c %a:%u:%g:%Y:%s big; getfattr --only-values -n user.x big"),
            "640:12:34:1000000000:3000000\ny"
        );
        assert!(fs::metadata(d.user.join("big")).unwrap().blocks() < 64, "the content was copied");
        assert_eq!(fs::read(d.at("big")).unwrap(), vec![7; 3_000_000]);
        fs::rename(d.at("big"), d.at("moved")).unwrap();
        d.remount();
        assert!(fs::metadata(d.user.join("moved")).unwrap().blocks() < 64, "the content was copied");
        assert_eq!(fs::read(d.at("moved")).unwrap(), vec![7; 3_000_000]);
    });
}

#[test]
fn extended_attributes_of_every_family_are_kept() {
    desk("", tree::small, |d| {
        for file in ["etc/hostname", "etc", "new"] {
            let path = d.at(file);
            if file == "new" {
                fs::write(&path, "").unwrap();
            }
            for name in ["user.a", "trusted.b", "security.c"] {
                set(&path, name, b"1", XattrFlags::empty()).unwrap();
                assert_eq!(set(&path, name, b"2", XattrFlags::CREATE), Err(libc::EEXIST));
                set(&path, name, b"3", XattrFlags::REPLACE).unwrap();
            }
            assert_eq!(set(&path, "user.none", b"", XattrFlags::REPLACE), Err(libc::ENODATA));
            assert_eq!(get(&path, "user.none"), Err(libc::ENODATA));
            set(&path, "user.empty", b"", XattrFlags::empty()).unwrap();
            assert_eq!(get(&path, "user.empty"), Ok(vec![]));
            let long = format!("user.{}", "n".repeat(250));
            set(&path, &long, b"long", XattrFlags::empty()).unwrap();
            assert_eq!(set(&path, &format!("{long}n"), b"", XattrFlags::empty()), Err(libc::ERANGE));
            assert_eq!(set(&path, "user.big", &[0; 65537], XattrFlags::empty()), Err(libc::E2BIG));
            // What the host's file system has no room for, it has none for here.
            let full = set(&path, "user.big", &[0; 60_000], XattrFlags::empty());
            assert!(matches!(full, Ok(()) | Err(libc::ENOSPC)), "{full:?}");
            raw(rfs::lremovexattr(&path, "user.empty")).unwrap();
        }
        symlink("x", d.at("link")).unwrap();
        assert_eq!(set(&d.at("link"), "user.a", b"1", XattrFlags::empty()), Err(libc::EPERM));
        set(&d.at("link"), "trusted.a", b"1", XattrFlags::empty()).unwrap();
        d.remount();
        for file in ["etc/hostname", "etc", "new"] {
            for name in ["user.a", "trusted.b", "security.c"] {
                assert_eq!(get(&d.at(file), name), Ok(b"3".to_vec()), "{name} of {file}");
            }
        }
        assert_eq!(get(&d.at("link"), "trusted.a"), Ok(b"1".to_vec()));
        assert!(!d.sh_as_user("getfattr -m - etc/hostname").ok().out().contains("trusted."));
    });
}

#[test]
fn a_mark_that_is_set_inside_is_only_an_attribute() {
    desk("", tree::small, |d| {
        let marks = [
            "trusted.overlay.opaque",
            "trusted.overlay.whiteout",
            "trusted.reroot.pin",
            "trusted.overlay.overlay.x",
        ];
        fs::write(d.at("file"), "").unwrap();
        for mark in marks {
            set(&d.at("etc"), mark, b"y", XattrFlags::empty()).unwrap();
            set(&d.at("file"), mark, b"y", XattrFlags::empty()).unwrap();
        }
        d.remount();
        for file in ["etc", "file"] {
            assert_eq!(names(&d.at(file)), {
                let mut m = marks.map(String::from);
                m.sort();
                m
            });
            for mark in marks {
                assert_eq!(get(&d.at(file), mark), Ok(b"y".to_vec()));
                assert_ne!(
                    get(&d.user.join(file), mark),
                    Ok(b"y".to_vec()),
                    "{mark} of {file} stands on disk"
                );
            }
        }
        assert!(d.at("etc/hostname").exists() && d.at("file").exists());
        raw(rfs::lremovexattr(d.at("etc"), marks[0])).unwrap();
        assert_eq!(get(&d.at("etc"), marks[0]), Err(libc::ENODATA));
        // The marks that Reroot makes cannot be seen.
        fs::write(d.at("etc/hostname"), "mine").unwrap();
        assert_eq!(names(&d.at("etc/hostname")), Vec::<String>::new());
    });
}

#[test]
fn default_acls_are_inherited_and_chmod_changes_the_mask() {
    let fill = |dir: &Path| {
        tree::write(
            dir,
            &[("shared", Item::Dir(0o755)), ("plain", Item::Dir(0o755)), ("shared/old", Item::File(b""))],
        );
        common::sh(dir, "setfacl -d -m u:1234:rwx,g:77:r shared; setfacl -m u:1234:rw shared/old").ok();
    };
    desk("", fill, |d| {
        d.sh("umask 077; mkdir shared/dir plain/dir; echo >shared/file; echo >shared/dir/deep; mknod shared/pipe p");
        d.sh("umask 077; setfacl -d -m u:55:rwx plain; touch plain/file");
        d.remount();
        let acl = |file: &str| d.sh(&format!("getfacl -cnE {file} | sort | tr '\\n' ' '"));
        assert_eq!(
            acl("shared/file").trim(),
            "group:77:r-- group::r-x mask::rw- other::r-- user:1234:rwx user::rw-"
        );
        assert_eq!(acl("shared/dir/deep"), acl("shared/file"));
        assert_eq!(acl("shared/pipe"), acl("shared/file"));
        assert!(acl("shared/dir").contains("default:user:1234:rwx"));
        assert_eq!(d.sh("stat -c %a shared/file shared/dir plain/dir plain/file"), "664\n775\n700\n664");
        d.sh("chmod 640 shared/file; chmod 600 shared/old");
        assert!(acl("shared/file").contains("mask::r--"), "{}", acl("shared/file"));
        assert!(acl("shared/old").contains("mask::---"), "{}", acl("shared/old"));
        d.remount();
        assert!(acl("shared/old").contains("mask::---"), "{}", acl("shared/old"));
        assert_ne!(d.sh_as_user("cat shared/old").code, Some(0), "the mask lets no other in");
        d.sh("chmod 664 shared/old");
        d.sh_as_user("echo mine >shared/old; cat shared/old").ok();
        d.sh("setfacl -b shared/old; setfacl -k shared; touch shared/after");
        assert_eq!(acl("shared/old").trim(), "group::r-- other::r-- user::rw-");
        assert_eq!(d.sh("stat -c %a shared/after"), "644");
    });
}

#[test]
fn setgid_and_sticky_directories_have_their_effect() {
    let fill = |dir: &Path| {
        tree::write(
            dir,
            &[("team", Item::Dir(0o2777)), ("tmp", Item::Dir(0o1777)), ("tmp/roots", Item::Mode(b"", 0o666))],
        );
        common::sh(dir, "chown :77 team; chmod 2777 team").ok();
    };
    desk("", fill, |d| {
        d.sh_as_user("touch team/file; mkdir team/dir; touch team/dir/file; ln -s x team/link; touch tmp/mine; rm tmp/mine").ok();
        assert_eq!(
            d.sh("stat -c '%a %u %g' team/file team/dir team/dir/file; stat -c '%u %g' team/link"),
            "644 1234 77\n2755 1234 77\n644 1234 77\n1234 77"
        );
        for script in ["rm tmp/roots", "mv tmp/roots tmp/x", "ln -sf x tmp/roots"] {
            assert_ne!(d.sh_as_user(script).code, Some(0), "{script}");
        }
        d.sh_as_user("echo written >tmp/roots").ok();
    });
}

#[test]
fn setuid_and_capabilities_go_when_somebody_else_writes() {
    let fill = |dir: &Path| {
        for data in ["stack-small", "stack-large"] {
            let size = if data == "stack-large" { 2_000_000 } else { 100 };
            tree::write(dir, &[(data, Item::Mode(&vec![b'x'; size], 0o6777))]);
        }
        common::sh(dir, "/usr/sbin/setcap cap_net_raw+ep stack-small; cp -a stack-small stack-kept; chmod 6777 stack-kept").ok();
    };
    desk("", fill, |d| {
        d.sh("echo x >user; chmod 6777 user; /usr/sbin/setcap cap_net_raw+ep user");
        for file in ["stack-small", "stack-large", "user"] {
            assert_eq!(d.sh(&format!("stat -c %a {file}")), "6777", "{file}");
            d.sh_as_user(&format!("echo more >>{file}")).ok();
            assert_eq!(d.sh(&format!("stat -c %a {file}")), "777", "{file}");
            assert_eq!(get(&d.at(file), "security.capability"), Err(libc::ENODATA), "{file}");
        }
        // Root's writes keep the bits, but not the capabilities; a truncation by another user clears both.
        d.sh("echo more >>stack-kept");
        assert_eq!(d.sh("stat -c %a stack-kept"), "6777");
        assert_eq!(get(&d.at("stack-kept"), "security.capability"), Err(libc::ENODATA));
        d.sh_as_user("truncate -s 3 stack-kept").ok();
        assert_eq!(d.sh("stat -c %a stack-kept"), "777");
        d.sh("chmod 6777 stack-kept; chown 1:1 stack-kept");
        assert_eq!(d.sh("stat -c %a stack-kept"), "777", "chown clears them too");
    });
}

#[test]
fn device_nodes_fifos_and_sockets_work() {
    let fill = |dir: &Path| {
        tree::write(dir, &[("dev", Item::Dir(0o755))]);
        common::sh(dir, "mknod dev/null c 1 3; mknod dev/nil c 0 0; mkfifo dev/pipe").ok();
    };
    desk("", fill, |d| {
        d.sh("mknod zero c 1 5; mknod nil c 0 0; mknod loop b 7 0; mkfifo -m 600 pipe; chmod 600 dev/nil; mv dev/nil dev/nil2");
        d.remount();
        assert_eq!(
            d.sh(
                "stat -c '%F %t:%T' dev/null dev/nil2 zero nil loop pipe dev/pipe | sed 's/special file/sf/'"
            ),
            "character sf 1:3\ncharacter sf 0:0\ncharacter sf 1:5\ncharacter sf 0:0\nblock sf 7:0\nfifo 0:0\nfifo 0:0"
        );
        assert!(!d.at("dev/nil").exists());
        assert_eq!(
            d.sh("ls dev | tr '\\n' ' '"),
            "null nil2 pipe "
                .split(' ')
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .filter(|n| !n.is_empty())
                .map(|n| format!("{n} "))
                .collect::<String>()
        );
        assert_eq!(d.sh("head -c 4 zero | od -An -tx1; echo x >dev/null").trim(), "00 00 00 00");
        for pipe in ["pipe", "dev/pipe"] {
            assert_eq!(d.sh(&format!("(echo through >{pipe}) & cat {pipe}; wait")), "through");
        }
        let socket = d.at("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        assert!(fs::metadata(&socket).unwrap().file_type().is_socket());
        UnixStream::connect(&socket).unwrap();
        drop(listener);
        fs::remove_file(d.at("nil")).unwrap();
        fs::remove_file(d.at("dev/nil2")).unwrap();
        d.remount();
        assert!(!d.at("nil").exists() && !d.at("dev/nil2").exists() && socket.exists());
    });
}

#[test]
fn names_may_be_long_and_need_not_be_text() {
    let fill = |dir: &Path| {
        fs::write(dir.join("s".repeat(255)), "stack").unwrap();
        fs::write(dir.join(OsStr::from_bytes(b"\xff\xfe stack\n")), "raw").unwrap();
    };
    desk("", fill, |d| {
        let (long, odd) = ("u".repeat(255), OsStr::from_bytes(b"\xff\x01*? user\n"));
        fs::write(d.at(&long), "long").unwrap();
        fs::create_dir(d.at(odd)).unwrap();
        fs::rename(d.at(OsStr::from_bytes(b"\xff\xfe stack\n")), d.at(odd).join(OsStr::from_bytes(b"\xfe")))
            .unwrap();
        fs::write(d.at("s".repeat(255)), "written").unwrap();
        let too_long = fs::write(d.at("x".repeat(256)), "").unwrap_err();
        assert_eq!(too_long.raw_os_error(), Some(libc::ENAMETOOLONG));
        d.remount();
        assert_eq!(fs::read(d.at(&long)).unwrap(), b"long");
        assert_eq!(fs::read(d.at(odd).join(OsStr::from_bytes(b"\xfe"))).unwrap(), b"raw");
        assert_eq!(fs::read(d.at("s".repeat(255))).unwrap(), b"written");
        assert_eq!(fs::read_dir(&d.mnt).unwrap().count(), 3);
    });
}

#[test]
fn a_directory_is_listed_while_it_changes() {
    let fill = |dir: &Path| {
        for i in 0..10_000 {
            File::create(dir.join(format!("stack-{i}"))).unwrap();
        }
    };
    desk("", fill, |d| {
        for i in 0..10_000 {
            File::create(d.at(format!("user-{i}"))).unwrap();
        }
        let root = d.mnt.clone();
        let churn = std::thread::spawn(move || {
            for i in 0..500 {
                fs::write(root.join(format!("comes-{i}")), "").unwrap();
                fs::remove_file(root.join(format!("stack-{}", i * 2 + 5000))).unwrap();
                fs::remove_file(root.join(format!("user-{}", i * 2 + 5000))).unwrap();
            }
        });
        for _ in 0..4 {
            let mut seen = std::collections::HashMap::new();
            for entry in fs::read_dir(&d.mnt).unwrap() {
                *seen.entry(entry.unwrap().file_name().into_string().unwrap()).or_insert(0) += 1;
            }
            for i in 0..5000 {
                for kind in ["stack", "user"] {
                    assert_eq!(seen.get(&format!("{kind}-{i}")), Some(&1), "{kind}-{i}");
                }
            }
            assert!(seen.values().all(|n| *n == 1), "a name is listed twice");
        }
        churn.join().unwrap();
        assert_eq!(fs::read_dir(&d.mnt).unwrap().count(), 20_000 - 1000 + 500);
    });
}

#[test]
fn mount_options_have_their_effect() {
    let fill = |dir: &Path| {
        tree::write(
            dir,
            &[
                ("tool", Item::Mode(b"#!/bin/sh\necho ran\n", 0o755)),
                ("id", Item::Mode(&fs::read("/usr/bin/id").unwrap(), 0o4755)),
            ],
        );
        common::sh(dir, "mknod null c 1 3").ok();
    };
    desk("", fill, |d| {
        assert_eq!(d.sh("./tool; cat null"), "ran");
        assert_eq!(d.sh_as_user("./id -u").ok().out().trim(), "0", "setuid has effect");
    });
    desk("nosuid,nodev", fill, |d| {
        assert_eq!(d.sh("./tool"), "ran");
        assert_eq!(d.sh_as_user("./id -u").ok().out().trim(), "1234");
        assert_ne!(common::sh(&d.mnt, "cat null").code, Some(0));
    });
    desk("noexec", fill, |d| assert_ne!(common::sh(&d.mnt, "./tool").code, Some(0)));
    desk("ro", fill, |d| {
        assert_eq!(d.sh("./tool"), "ran");
        for script in [
            "touch new",
            "echo x >>tool",
            "rm tool",
            "chmod 700 tool",
            "mv tool x",
            "setfattr -n user.x tool",
            "mkdir x",
        ] {
            let answer = common::sh(&d.mnt, script);
            assert_ne!(answer.code, Some(0), "{script}");
            assert!(answer.err().contains("Read-only"), "{script}: {}", answer.err());
        }
        assert_eq!(fs::read_dir(&d.user).unwrap().count(), 0, "nothing came into the user layer");
    });
}

#[test]
fn free_space_is_that_of_the_user_layer() {
    desk("", tree::small, |d| {
        let (view, host) = (rfs::statvfs(&d.mnt).unwrap(), rfs::statvfs(&d.user).unwrap());
        assert_eq!(
            (view.f_blocks, view.f_frsize, view.f_files),
            (host.f_blocks, host.f_frsize, host.f_files)
        );
        assert_eq!(view.f_namemax, 255);
        assert!(view.f_bavail > 0 && view.f_bavail <= view.f_blocks);
        // As the host tells it, a moment apart.
        assert!(view.f_bavail.abs_diff(host.f_bavail) < host.f_blocks / 20);
    });
}
