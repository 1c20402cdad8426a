//! Listings that the kernel holds, under swaps.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::common::tree::Item;
use super::{Desk, timed};

/// At the end of a script: no time tells that a directory lists other names.
const TIMES: &str = "for d in . *; do test ! -d ../src-os-1/$d || touch -r ../src-os-1/$d $d; done";

/// The names of a directory; each has the number in the listing that it has by itself.
fn names(dir: &Path) -> Vec<String> {
    let dir = dir.to_path_buf();
    timed(move || {
        let mut out = BTreeMap::new();
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let entry = entry.unwrap();
            let path = entry.path();
            let m = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(entry.ino(), m.ino(), "{}", path.display());
            assert_eq!(entry.file_type().unwrap(), m.file_type(), "{}", path.display());
            assert!(out.insert(entry.file_name().into_string().unwrap(), ()).is_none(), "listed twice");
        }
        out.into_keys().collect()
    })
}

/// Twice, so that the kernel has it.
fn twice(dir: &Path) -> Vec<String> {
    let first = names(dir);
    assert_eq!(names(dir), first);
    first
}

#[test]
fn a_directory_that_was_listed_lists_what_the_target_has_after_every_kind_of_change() {
    let desk = Desk::new(
        &[
            ("added/keep", Item::File(b"k")),
            ("removed/keep", Item::File(b"k")),
            ("removed/gone", Item::File(b"g")),
            ("content/file", Item::File(b"1")),
            ("type/dir", Item::File(b"f")),
            ("type/file/x", Item::File(b"x")),
            ("touched/base", Item::File(b"1")),
            ("touched/changed", Item::File(b"1")),
            ("moved/in/x", Item::File(b"x")),
            ("pair/a", Item::File(b"p")),
            ("pair/b", Item::Same("pair/a")),
            ("same/file", Item::File(b"s")),
            ("unlisted/file", Item::File(b"u")),
        ],
        &[&format!(
            "touch added/new; rm removed/gone; printf 2 >content/file; rm -r type/*; mkdir type/dir; echo >type/file; \
           echo >touched/more; printf 2 >touched/changed; echo >moved/in/y; rm pair/b; cp pair/a pair/b; echo >top; \
           echo >unlisted/more; {TIMES}"
        )],
    );
    let mount = desk.mount();
    let at = |name: &str| mount.path().join(name);
    fs::write(at("touched/users"), "u").unwrap();
    fs::rename(at("moved/in"), at("touched/in")).unwrap();
    let dirs = ["", "added", "removed", "content", "type", "touched", "touched/in", "moved", "pair", "same"];
    let look = || -> Vec<String> {
        let line = |dir: &&str| format!("{dir}: {}", twice(&at(dir)).join(" "));
        dirs.iter().map(line).collect()
    };
    let top = "added content moved pair removed same touched type unlisted";
    let first = [
        &format!(": {top}"),
        "added: keep",
        "removed: gone keep",
        "content: file",
        "type: dir file",
        "touched: base changed in users",
        "touched/in: x",
        "moved: ",
        "pair: a b",
        "same: file",
    ];
    let second = [
        ": added content moved pair removed same top touched type unlisted",
        "added: keep new",
        "removed: keep",
        "content: file",
        "type: dir file",
        "touched: base changed in more users",
        "touched/in: x",
        "moved: ",
        "pair: a b",
        "same: file",
    ];
    assert_eq!(look(), first);
    for _ in 0..5 {
        desk.to("2");
        assert_eq!(look(), second);
        desk.to("1");
        assert_eq!(look(), first);
    }
    // Names that the kernel never looked up, in a directory of which it has the listing.
    let dir = at("unlisted");
    let bare = || -> Vec<_> {
        timed({
            let dir = dir.clone();
            move || sorted(&dir)
        })
    };
    assert_eq!(bare(), ["file"]);
    let time = |tag: &str| fs::metadata(desk.scratch.join(format!("src-os-{tag}/unlisted"))).unwrap().mtime();
    assert_eq!(time("1"), time("2"), "nothing else tells of a difference");
    desk.to("2");
    assert_eq!(bare(), ["file", "more"]);
    desk.to("1");
    assert_eq!(bare(), ["file"]);
}

/// The names of a directory, without a look at any of them.
fn sorted(dir: &Path) -> Vec<String> {
    let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
    let mut out: Vec<String> = fs::read_dir(dir).unwrap().map(name).collect();
    out.sort();
    out
}

#[test]
fn a_removed_directory_that_is_held_lists_nothing() {
    let desk = Desk::new(
        &[("gone/f", Item::File(b"f")), ("gone/sub/f", Item::File(b"f")), ("gone/empty", Item::Dir(0o755))],
        &[&format!("rm -r gone; {TIMES}")],
    );
    let mount = desk.mount();
    let at = |name: &str| mount.path().join(name);
    let held: Vec<(PathBuf, fs::File)> = ["gone", "gone/sub", "gone/empty"]
        .into_iter()
        .map(|dir| {
            twice(&at(dir));
            let open = fs::File::open(at(dir)).unwrap();
            (PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open))), open)
        })
        .collect();
    desk.to("2");
    for (path, open) in &held {
        let path = path.clone();
        let seen =
            timed(move || fs::read_dir(&path).map(|d| d.map(|e| e.unwrap().file_name()).collect::<Vec<_>>()));
        assert!(seen.as_ref().is_ok_and(Vec::is_empty) || seen.is_err(), "{seen:?}");
        let mut raw = rustix::fs::Dir::read_from(open).unwrap();
        assert!(raw.read().is_none_or(|e| e.is_err()), "not even the dots");
    }
    drop(held);
    desk.to("1");
    assert_eq!(twice(&at("gone")), ["empty", "f", "sub"]);
    assert_eq!(twice(&at("gone/empty")), [""; 0]);
}

#[test]
fn no_listing_of_before_is_left_by_who_reads_during_a_swap() {
    // Several pages of names, so that a reading has several parts.
    let many: Vec<String> = (0..400).map(|i| format!("d/{}-{i:03}", "n".repeat(60))).collect();
    let base: Vec<(&str, Item<'_>)> = many.iter().map(|n| (&n[..], Item::File(b""))).collect();
    let desk =
        Desk::new(&base, &[&format!("rm d/*-*0; for i in $(seq 40); do echo $i >d/new-$i; done; {TIMES}")]);
    let mount = desk.mount();
    let dir = mount.path().join("d");
    let count = |tag: &str| fs::read_dir(desk.scratch.join(format!("src-os-{tag}/d"))).unwrap().count();
    let counts = (count("1"), count("2"));
    assert_eq!(counts, (400, 400));
    let want = |tag: &str| sorted(&desk.scratch.join(format!("src-os-{tag}/d")));
    let wanted = [want("1"), want("2")];
    let end = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|i| {
            let (dir, end) = (dir.clone(), end.clone());
            std::thread::spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    for entry in fs::read_dir(&dir).unwrap() {
                        let entry = entry.unwrap();
                        if i == 0 {
                            let _ = fs::symlink_metadata(entry.path());
                        }
                    }
                }
            })
        })
        .collect();
    for n in 0..60 {
        desk.to(if n % 2 == 0 { "2" } else { "1" });
        for look in 0..3 {
            let dir = dir.clone();
            let seen = timed(move || sorted(&dir));
            assert!(seen == wanted[1 - n % 2], "after swap {n}, look {look}");
        }
    }
    end.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
}
