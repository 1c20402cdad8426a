//! Directories: listing while entries come and go, positions, large ones, link counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{DirEntryExt, FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs as rfs;

use crate::common::desk::desk;
use crate::common::tree::{self, Item};
use crate::sys::Stream;
use crate::twins::twins;

const MANY: usize = 100_000;
/// As many of them are made in the view.
const USERS: usize = 8_000;

/// Every name from the stream's place on, `.` and `..` left out.
fn rest(stream: &mut Stream) -> Vec<String> {
    let mut out = Vec::new();
    while let Some((name, _)) = stream.next().unwrap() {
        if name != b"." && name != b".." {
            out.push(String::from_utf8(name).unwrap());
        }
    }
    out
}

#[test]
fn a_directory_of_100_000_entries_keeps_its_positions_while_entries_come_and_go() {
    let fill = |dir: &Path| {
        fs::create_dir(dir.join("big")).unwrap();
        for i in 0..MANY - USERS {
            File::create(dir.join(format!("big/stack-{i}"))).unwrap();
        }
    };
    desk("", fill, |d| {
        for i in 0..USERS {
            File::create(d.at(format!("big/user-{i}"))).unwrap();
        }
        let mut stream = Stream::open(&d.at("big")).unwrap();
        let mut places = Vec::new();
        let mut order = Vec::new();
        while let Some((name, after)) = stream.next().unwrap() {
            order.push(name);
            places.push(after);
        }
        assert_eq!(order.len(), MANY + 2, "with . and ..");
        assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), MANY + 2, "no name is listed twice");
        // Entries go before and behind every place, and new ones come.
        let mut gone = BTreeSet::new();
        for i in (0..USERS).step_by(97) {
            for kind in ["stack", "user"] {
                let name = format!("{kind}-{i}");
                fs::remove_file(d.at("big").join(&name)).unwrap();
                gone.insert(name.into_bytes());
            }
            fs::write(d.at(format!("big/new-{i}")), "").unwrap();
        }
        for at in [0, 1000, 50_001, MANY - 3, MANY] {
            stream.seek(places[at]);
            let mut want =
                order[at + 1..].iter().filter(|n| !gone.contains(*n) && !matches!(&n[..], b"." | b".."));
            // What was there all the time comes exactly once, in the order of before; what came or went may come.
            let seen: Vec<Vec<u8>> = rest(&mut stream).into_iter().map(String::into_bytes).collect();
            let stayed: Vec<&Vec<u8>> =
                seen.iter().filter(|n| !gone.contains(*n) && !n.starts_with(b"new-")).collect();
            assert!(stayed.iter().all(|n| Some(*n) == want.next()), "from place {at}");
            assert_eq!(want.next(), None, "from place {at}");
        }
        stream.rewind();
        let now: BTreeSet<String> = rest(&mut stream).into_iter().collect();
        let news = USERS.div_ceil(97);
        assert_eq!(now.len(), MANY - gone.len() + news);
        assert!(gone.iter().all(|n| !now.contains(std::str::from_utf8(n).unwrap())));
        drop(stream);
        d.remount();
        assert_eq!(fs::read_dir(d.at("big")).unwrap().count(), now.len());
    });
}

#[test]
fn a_position_of_one_handle_holds_while_everything_before_it_is_removed() {
    fn fill(dir: &Path) {
        for i in 0..300 {
            fs::write(dir.join(format!("entry-{i:03}")), "x").unwrap();
        }
    }
    // What `rm -r` of many programs does: read some, remove them, read on.
    twins(fill, |at| {
        let mut stream = Stream::open(at.dir()).unwrap();
        let (mut seen, mut removed) = (BTreeSet::new(), 0);
        while let Some((name, _)) = stream.next().unwrap() {
            let name = String::from_utf8(name).unwrap();
            if name.starts_with("entry-") {
                fs::remove_file(at.path(&name)).unwrap();
                removed += 1;
                assert!(seen.insert(name));
            }
        }
        at.note("removed", removed);
        stream.rewind();
        at.note("left", rest(&mut stream));
    });
}

#[test]
fn types_and_numbers_of_a_listing_are_those_of_stat() {
    fn fill(dir: &Path) {
        tree::write(
            dir,
            &[
                ("file", Item::File(b"x")),
                ("pair", Item::Same("file")),
                ("dir/sub/deep", Item::File(b"x")),
                ("link", Item::Link("file")),
                ("moved/x", Item::File(b"x")),
            ],
        );
        crate::common::sh(dir, "mkfifo pipe; mknod null c 1 3; mknod nil c 0 0; mknod disk b 8 0").ok();
    }
    twins(fill, |at| {
        fs::write(at.path("file"), "copied up").unwrap();
        fs::rename(at.path("moved"), at.path("dir/moved")).unwrap();
        fs::create_dir(at.path("dir/made")).unwrap();
        rfs::chmod(at.path("pipe"), rfs::Mode::from_raw_mode(0o600)).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at.path("s")).unwrap();
        for dir in ["", "dir", "dir/moved", "dir/sub"] {
            let mut seen = Vec::new();
            for entry in fs::read_dir(at.path(dir)).unwrap() {
                let entry = entry.unwrap();
                let (kind, m) = (entry.file_type().unwrap(), fs::symlink_metadata(entry.path()).unwrap());
                assert_eq!(entry.ino(), m.ino(), "{:?}", entry.path());
                assert_eq!(kind, m.file_type(), "{:?}", entry.path());
                seen.push((
                    entry.file_name(),
                    kind.is_dir(),
                    kind.is_fifo(),
                    kind.is_char_device(),
                    kind.is_socket(),
                ));
            }
            seen.sort();
            at.note(dir, seen);
            // `.` and `..` come first and have their directories' numbers.
            let mut stream = Stream::open(&at.path(dir)).unwrap();
            let mut dots = BTreeSet::new();
            while let Some((name, _)) = stream.next().unwrap() {
                if name.starts_with(b".") {
                    dots.insert(name);
                }
            }
            at.note("dots", dots);
        }
    });
}

#[test]
fn link_counts_of_directories_count_their_subdirectories() {
    fn fill(dir: &Path) {
        tree::write(
            dir,
            &[
                ("a/b/c", Item::Dir(0o755)),
                ("a/d", Item::Dir(0o755)),
                ("a/file", Item::File(b"")),
                ("e", Item::Dir(0o755)),
            ],
        );
    }
    twins(fill, |at| {
        let look = || {
            for name in [".", "a", "a/b", "e", "a/new"] {
                at.note(name, fs::metadata(at.path(name)).map(|m| m.nlink()).ok());
            }
        };
        look();
        fs::create_dir(at.path("a/new")).unwrap();
        look();
        fs::rename(at.path("a/b"), at.path("e/b")).unwrap();
        look();
        fs::rename(at.path("a/new"), at.path("a/d")).unwrap();
        look();
        rfs::renameat_with(rfs::CWD, at.path("a/file"), rfs::CWD, at.path("e/b"), rfs::RenameFlags::EXCHANGE)
            .unwrap();
        look();
        fs::remove_dir_all(at.path("a")).unwrap();
        look();
        fs::create_dir(at.path("a")).unwrap();
        look();
    });
}

#[test]
fn what_removing_refuses_and_allows() {
    fn fill(dir: &Path) {
        tree::write(
            dir,
            &[
                ("full/x", Item::File(b"x")),
                ("empty", Item::Dir(0o755)),
                ("file", Item::File(b"x")),
                ("link", Item::Link("empty")),
            ],
        );
    }
    twins(fill, |at| {
        for name in [
            "full", "file", "file/x", "absent", ".", "full/..", "link", "link/", "empty/.", "empty",
            "full/x", "full",
        ] {
            at.did(&format!("rmdir {name}"), rfs::unlinkat(rfs::CWD, at.path(name), rfs::AtFlags::REMOVEDIR));
            at.did(&format!("unlink {name}"), rfs::unlinkat(rfs::CWD, at.path(name), rfs::AtFlags::empty()));
            at.did(&format!("mkdir {name}"), rfs::mkdir(at.path(name), rfs::Mode::from_raw_mode(0o755)));
        }
        at.did("mkdir with a slash", rfs::mkdir(at.path("new/"), rfs::Mode::from_raw_mode(0o755)));
        at.did("creat with a slash", File::create(at.path("newer/")).map(drop));
    });
}

/// The names of a directory with their numbers and types, as one listing gives them; each name once.
fn listed(dir: &Path) -> BTreeMap<Vec<u8>, (u64, rfs::FileType)> {
    let flags = rfs::OFlags::DIRECTORY | rfs::OFlags::RDONLY;
    let fd = rfs::open(dir, flags, rfs::Mode::empty()).unwrap();
    let mut out = BTreeMap::new();
    for entry in rfs::Dir::read_from(fd).unwrap() {
        let entry = entry.unwrap();
        let before = out.insert(entry.file_name().to_bytes().to_vec(), (entry.ino(), entry.file_type()));
        assert_eq!(before, None, "{:?} is listed twice in {}", entry.file_name(), dir.display());
    }
    out
}

#[test]
fn a_listing_that_was_read_before_follows_every_change() {
    fn fill(dir: &Path) {
        tree::write(
            dir,
            &[
                ("a/one", Item::File(b"1")),
                ("a/two", Item::File(b"2")),
                ("a/pair", Item::File(b"p")),
                ("b/pair", Item::Same("a/pair")),
                ("b/three", Item::File(b"3")),
                ("a/sub/x", Item::File(b"x")),
                ("a/sub/below/y", Item::File(b"y")),
                ("b/other/z", Item::File(b"z")),
                ("b/empty", Item::Dir(0o755)),
            ],
        );
    }
    twins(fill, |at| {
        // Twice: the second listing may be the kernel's.
        let look = |what: &str| {
            for _ in 0..2 {
                let mut names = Vec::new();
                for dir in [".", "a", "b", "a/sub", "b/sub", "a/sub/below", "b/sub/below", "b/other", "a/new"]
                {
                    let dir = at.path(dir);
                    if !dir.is_dir() {
                        continue;
                    }
                    for (name, (ino, kind)) in listed(&dir) {
                        let path = dir.join(std::str::from_utf8(&name).unwrap());
                        if dir == at.path(".") && name == b".." {
                            continue;
                        }
                        let m = fs::symlink_metadata(&path).unwrap();
                        assert_eq!(ino, m.ino(), "the number of {} after {what}", path.display());
                        assert_eq!(kind, rfs::FileType::from_raw_mode(m.mode()), "{}", path.display());
                        names.push(path.strip_prefix(at.dir()).unwrap().to_path_buf());
                    }
                }
                at.note(what, names);
            }
        };
        let path = |name: &str| at.path(name);
        look("nothing");
        fs::write(path("a/created"), "n").unwrap();
        look("creat");
        fs::create_dir(path("a/new")).unwrap();
        look("mkdir");
        std::os::unix::fs::symlink("one", path("a/symlink")).unwrap();
        look("symlink");
        rfs::mknodat(rfs::CWD, path("a/pipe"), rfs::FileType::Fifo, rfs::Mode::from_raw_mode(0o600), 0)
            .unwrap();
        look("mknod");
        fs::hard_link(path("a/one"), path("b/linked")).unwrap();
        look("link");
        fs::remove_file(path("a/two")).unwrap();
        look("unlink");
        fs::write(path("a/two"), "again").unwrap();
        look("creat of a name that was removed");
        fs::remove_dir(path("b/empty")).unwrap();
        look("rmdir");
        fs::write(path("b/three"), "copied up").unwrap();
        look("write");
        rfs::chmod(path("b/pair"), rfs::Mode::from_raw_mode(0o600)).unwrap();
        look("chmod");
        fs::remove_file(path("a/pair")).unwrap();
        look("unlink of a hard link");
        fs::rename(path("a/created"), path("a/renamed")).unwrap();
        look("rename");
        fs::rename(path("a/renamed"), path("b/three")).unwrap();
        look("rename over a file of another directory");
        fs::rename(path("a/sub"), path("b/sub")).unwrap();
        look("rename of a directory");
        rfs::renameat_with(rfs::CWD, path("b/sub"), rfs::CWD, path("a/one"), rfs::RenameFlags::EXCHANGE)
            .unwrap();
        look("exchange of a directory and a file");
        rfs::renameat_with(rfs::CWD, path("a/one"), rfs::CWD, path("b/other"), rfs::RenameFlags::EXCHANGE)
            .unwrap();
        look("exchange of two directories");
        fs::remove_dir_all(path("b/other")).unwrap();
        look("rm -r");
        fs::create_dir(path("b/other")).unwrap();
        look("mkdir of a name that was removed");
    });
}

#[test]
fn a_listing_shows_the_number_that_a_file_has_after_it_was_opened_for_writing_under_its_readers() {
    let fill = |dir: &Path| {
        fs::create_dir(dir.join("d")).unwrap();
        fs::write(dir.join("d/large"), vec![b'x'; 2 << 20]).unwrap();
        fs::hard_link(dir.join("d/large"), dir.join("same")).unwrap();
    };
    desk("", fill, |d| {
        let number = |name: &str| fs::symlink_metadata(d.at(name)).unwrap().ino();
        let in_listings = || (listed(&d.at("d"))[&b"large"[..]].0, listed(&d.at(""))[&b"same"[..]].0);
        let before = number("d/large");
        assert_eq!(in_listings(), (before, before));
        assert_eq!(in_listings(), (before, before));
        let mut reader = File::open(d.at("d/large")).unwrap();
        std::io::Read::read_exact(&mut reader, &mut [0; 10]).unwrap();
        let writer = fs::OpenOptions::new().write(true).open(d.at("d/large")).unwrap();
        let now = number("d/large");
        assert_eq!(writer.metadata().unwrap().ino(), now);
        assert_eq!(in_listings(), (now, now));
        assert_eq!(number("same"), now);
        drop((reader, writer));
        assert_eq!(in_listings(), (now, now));
    });
}

#[test]
fn readers_of_one_directory_each_go_on_from_where_they_are() {
    fn fill(dir: &Path) {
        for i in 0..3000 {
            fs::write(dir.join(format!("entry-{i:04}")), "").unwrap();
        }
    }
    twins(fill, |at| {
        let mut readers: Vec<_> = (0..8).map(|_| Stream::open(at.dir()).unwrap()).collect();
        let mut seen: Vec<BTreeSet<Vec<u8>>> = vec![BTreeSet::new(); readers.len()];
        let mut removed = BTreeSet::new();
        // Each is at another place when names go and come, and another one begins anew and reads everything.
        for round in 0..30 {
            for (i, (reader, seen)) in readers.iter_mut().zip(&mut seen).enumerate() {
                for _ in 0..(40 + 17 * i) {
                    if let Some((name, _)) = reader.next().unwrap() {
                        assert!(seen.insert(name.clone()), "reader {i} meets {name:?} twice");
                    }
                }
            }
            for i in (round..3000).step_by(97) {
                let name = format!("entry-{i:04}");
                fs::remove_file(at.path(&name)).unwrap();
                removed.insert(name.into_bytes());
            }
            fs::write(at.path(format!("new-{round}")), "").unwrap();
            let now = listed(at.dir());
            assert!(now.contains_key(format!("new-{round}").as_bytes()));
            assert!(removed.iter().all(|n| !now.contains_key(n)));
        }
        for (mut reader, mut seen) in readers.into_iter().zip(seen) {
            while let Some((name, _)) = reader.next().unwrap() {
                assert!(seen.insert(name));
            }
            for i in 0..3000 {
                let name = format!("entry-{i:04}").into_bytes();
                assert!(removed.contains(&name) || seen.contains(&name), "{name:?} was there all the time");
            }
        }
        at.note("left", listed(at.dir()).into_keys().collect::<Vec<_>>());
    });
}
