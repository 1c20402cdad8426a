//! What is seen of a partly copied file: what is seen of any other.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs as rfs;

use crate::common::tree::{self, Item};
use crate::common::{Disk, Program, Scratch, require_root, sh, within};
use crate::{LARGE, LIMIT, begin, eager, missing, until_complete, update, upgraded, waiting};

#[test]
fn the_first_write_to_a_large_file_copies_nothing() {
    let (scratch, program, mut content) = begin();
    let on_disk = scratch.store().join("desktops/d/user/large");
    let mount = waiting(&program).mount("d", scratch.mnt());
    let path = mount.join("large");
    let before = fs::metadata(&path).unwrap();
    let shown = path.clone();
    let content = within(LIMIT, "writing", move || {
        let file = update(&shown);
        file.write_all_at(b"written", 5_000_000).unwrap();
        content[5_000_000..5_000_007].copy_from_slice(b"written");
        assert!(fs::read(&shown).unwrap() == content);
        let now = file.metadata().unwrap();
        assert_eq!((now.ino(), now.len(), now.blocks()), (before.ino(), before.len(), before.blocks()));
        content
    });
    let taken = fs::metadata(&on_disk).unwrap();
    assert_eq!(taken.len(), LARGE as u64);
    assert!(taken.blocks() * 512 <= 64 << 10, "{} blocks", taken.blocks());
    let (files, bytes) = missing(&program);
    assert_eq!(files, 1);
    assert!(bytes.is_some_and(|n| n > LARGE as u64 - (64 << 10) && n < LARGE as u64), "{bytes:?}");
    mount.umount();
    assert_eq!(missing(&program), (1, None));

    // The next daemon goes on with it.
    let mount = program.mount("d", scratch.mnt());
    until_complete(&program);
    assert!(fs::read(&on_disk).unwrap() == content, "what is on the disk is what is shown");
    let marks = rustix_marks(&on_disk);
    assert!(!marks.contains("partial") && !marks.contains("times"), "{marks}");
    let path = mount.join("large");
    within(LIMIT, "reading", move || assert!(fs::read(path).unwrap() == content));
    mount.umount();
    let left = "ls -A desktops/d/work | grep -v '^#whiteout$' || true";
    assert_eq!(sh(&scratch.store(), left).ok().out(), "");
}

fn rustix_marks(path: &std::path::Path) -> String {
    let mut names = vec![0; 4096];
    let n = rfs::listxattr(path, &mut names[..]).unwrap();
    String::from_utf8_lossy(&names[..n]).into_owned()
}

#[test]
fn times_and_attributes_stay_while_a_file_is_completed() {
    let (scratch, program, _) = begin();
    let mount = eager(&program).mount("d", scratch.mnt());
    let path = mount.join("large");
    let other = program.clone();
    within(LIMIT, "looking", move || {
        let file = update(&path);
        file.write_all_at(b"x", 77).unwrap();
        let written = file.metadata().unwrap();
        let same = |a: &fs::Metadata, b: &fs::Metadata| {
            assert_eq!((a.mtime(), a.mtime_nsec()), (b.mtime(), b.mtime_nsec()), "the time of the write");
        };
        while missing(&other).0 > 0 {
            same(&fs::metadata(&path).unwrap(), &written);
        }
        same(&fs::metadata(&path).unwrap(), &written);
        drop(file);
    });
    mount.umount();

    // Set in the middle, they are what was set.
    program.ok(&["create", "e", "os:1"]);
    let mount = eager(&program).mount("e", scratch.mnt());
    let began = "exec 3<>large; printf y >&3; touch -d '2011-11-11 11:11:11.111' large; chmod 4751 large
        chown 7:8 large; chmod 4751 large; setfattr -n user.a -v b large; setcap cap_net_raw+ep large";
    mount.sh(began);
    let look = "stat -c '%y %a %u %g' large; getfattr --only-values -n user.a large; getcap large";
    let first = mount.sh(look);
    assert!(first.contains("2011-11-11 11:11:11.111") && first.contains(" 4751 7 8"), "{first}");
    assert!(first.contains("cap_net_raw"), "{first}");
    crate::until("it is complete", || {
        program.json(&["status", "e"])["copying"]["files"] == serde_json::json!(0)
    });
    assert_eq!(mount.sh(look), first);
    mount.umount();
    let mount = program.mount("e", scratch.mnt());
    assert_eq!(mount.sh(look), first);
    mount.umount();
}

#[test]
fn a_partly_copied_file_is_moved_linked_and_removed_like_any_other() {
    let (scratch, program, mut content) = begin();
    let mount = waiting(&program).mount("d", scratch.mnt());
    let root = mount.path().to_path_buf();
    content[..4].copy_from_slice(b"mine");
    let expected = content.clone();
    within(LIMIT, "moving", move || {
        let file = update(&root.join("large"));
        file.write_all_at(b"mine", 0).unwrap();
        fs::rename(root.join("large"), root.join("dir/moved")).unwrap();
        fs::hard_link(root.join("dir/moved"), root.join("second")).unwrap();
        assert!(fs::read(root.join("second")).unwrap() == expected);
        assert_eq!(file.metadata().unwrap().nlink(), 2);
        fs::remove_file(root.join("dir/moved")).unwrap();
        assert!(fs::read(root.join("second")).unwrap() == expected);
    });
    mount.umount();
    let mount = eager(&program).mount("d", scratch.mnt());
    until_complete(&program);
    let root = mount.path().to_path_buf();
    within(LIMIT, "reading", move || {
        assert!(fs::read(root.join("second")).unwrap() == content);
        assert!(!root.join("large").exists());
    });
    mount.umount();

    // Without a name it is read through what is open, and goes with it.
    program.ok(&["create", "e", "os:1"]);
    let mount = waiting(&program).mount("e", scratch.mnt());
    let path = mount.join("large");
    within(LIMIT, "removing", move || {
        let file = update(&path);
        file.write_all_at(b"gone", 100_000).unwrap();
        fs::remove_file(&path).unwrap();
        file.write_all_at(b"still", 200_001).unwrap();
        let mut expected = crate::bytes(1, LARGE);
        expected[100_000..100_004].copy_from_slice(b"gone");
        expected[200_001..200_006].copy_from_slice(b"still");
        let mut seen = vec![0; LARGE];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == expected);
    });
    mount.umount();
    let mount = eager(&program).mount("e", scratch.mnt());
    crate::until("it is forgotten", || {
        sh(&scratch.store(), "ls -A desktops/e/work | grep partial || true").ok().out().is_empty()
    });
    mount.umount();
}

#[test]
fn what_is_a_hole_of_the_stacks_file_stays_one_and_what_is_punched_is_data_on_the_disk() {
    require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    const LEN: u64 = 40 << 20;
    tree::import(&scratch, &program, "os:1", None, |dir| {
        tree::write(dir, &[("sparse", Item::File(b""))]);
        let file = File::options().write(true).open(dir.join("sparse")).unwrap();
        file.write_all_at(&[b's'; 1 << 20], 10 << 20).unwrap();
        file.set_len(LEN).unwrap();
    });
    program.ok(&["create", "d", "os:1"]);
    let extents = |file: &File| {
        let (mut at, mut out) = (0, Vec::new());
        while let Ok(data) = rfs::seek(file, rfs::SeekFrom::Data(at)) {
            at = rfs::seek(file, rfs::SeekFrom::Hole(data)).unwrap();
            out.push((data, at));
        }
        out
    };
    let mount = waiting(&program).mount("d", scratch.mnt());
    let path = mount.join("sparse");
    let now = [(0, 4096), (10 << 20, 11 << 20)];
    within(LIMIT, "looking for holes", move || {
        let file = update(&path);
        assert_eq!(extents(&file), [(10 << 20, 11 << 20)]);
        file.write_all_at(b"a", 1).unwrap();
        assert_eq!(extents(&file), now);
        let punch = rfs::FallocateFlags::PUNCH_HOLE | rfs::FallocateFlags::KEEP_SIZE;
        rfs::fallocate(&file, punch, (10 << 20) + 8192, 8192).unwrap();
        let mut seen = [1; 8192 * 3];
        file.read_exact_at(&mut seen, (10 << 20) + 4096).unwrap();
        assert!(seen[..4096].iter().chain(&seen[12288..]).all(|b| *b == b's'));
        assert!(seen[4096..12288].iter().all(|b| *b == 0));
        assert_eq!(extents(&file), now, "it was written over with zeroes");
    });
    mount.umount();
    let mount = eager(&program).mount("d", scratch.mnt());
    until_complete(&program);
    let path = mount.join("sparse");
    within(LIMIT, "looking for holes", move || {
        let file = File::open(&path).unwrap();
        assert_eq!(extents(&file), now);
        assert!(file.metadata().unwrap().blocks() < 3000);
    });
    mount.umount();
}

#[test]
fn a_swap_leaves_a_partly_copied_file_as_it_is_and_a_collection_what_it_needs() {
    let (scratch, program, mut content) = begin();
    upgraded(&scratch, &program, "os:2", "os:1");
    let mount = waiting(&program).mount("d", scratch.mnt());
    let path = mount.join("large");
    content[9_000_000..9_000_004].copy_from_slice(b"mine");
    let file = update(&path);
    file.write_all_at(b"mine", 9_000_000).unwrap();
    let report = program.swap(&["upgrade", "d", "--to", "os:2"]);
    assert_eq!(report["conflicts"][0]["case"], "shadows-changed", "{report}");
    program.ok(&["untag", "os:1"]);
    program.ok(&["gc"]);
    drop(file);
    mount.umount();
    // Nothing but the pin keeps the object of the first version now: the desktop has moved on twice.
    upgraded(&scratch, &program, "os:3", "os:2");
    program.ok(&["upgrade", "d", "--to", "os:3"]);
    program.ok(&["gc"]);
    let mount = eager(&program).mount("d", scratch.mnt());
    let expected = content.clone();
    let shown = mount.join("large");
    within(LIMIT, "reading", move || assert!(fs::read(shown).unwrap() == expected));
    until_complete(&program);
    let shown = mount.join("large");
    within(LIMIT, "reading", move || assert!(fs::read(shown).unwrap() == content));
    mount.umount();
}

#[test]
fn one_that_was_only_opened_is_equal_to_what_it_came_from() {
    let (scratch, program, _) = begin();
    let mount = waiting(&program).mount("d", scratch.mnt());
    mount.sh("exec 3<>large");
    mount.umount();
    assert_eq!(missing(&program).0, 1);
    assert_eq!(program.json(&["changes", "d"]), serde_json::json!([]));
}

#[test]
fn what_was_changed_or_moved_before_the_first_write_is_copied_in_pieces_too() {
    let (scratch, program, mut content) = begin();
    upgraded(&scratch, &program, "os:2", "os:1");
    let mount = waiting(&program).mount("d", scratch.mnt());
    mount.sh("chmod 640 large; mv large dir/moved; touch -d '2011-11-11 11:11:11.111' dir/moved");
    program.ok(&["upgrade", "d", "--to", "os:2"]);
    let path = mount.join("dir/moved");
    content[777..781].copy_from_slice(b"mine");
    let expected = content.clone();
    let look = "stat -c '%y %a %h' dir/moved";
    mount.sh("exec 3<>dir/moved");
    assert_eq!(missing(&program).0, 1);
    assert!(
        mount.sh(look).ends_with(" 640 1") && mount.sh(look).contains("11:11:11.111"),
        "{}",
        mount.sh(look)
    );
    within(LIMIT, "writing", move || {
        let file = update(&path);
        file.write_all_at(b"mine", 777).unwrap();
        assert!(fs::read(&path).unwrap() == expected);
    });
    mount.umount();
    let on_disk = scratch.store().join("desktops/d/user/dir/moved");
    assert!(
        rustix_marks(&on_disk).contains("reroot.partial") && !rustix_marks(&on_disk).contains("reroot.pin")
    );
    let mount = eager(&program).mount("d", scratch.mnt());
    until_complete(&program);
    assert!(fs::read(&on_disk).unwrap() == content);
    mount.umount();
}

#[test]
fn where_the_file_system_shares_blocks_nothing_is_left_to_copy() {
    require_root();
    for (kind, mib) in [("xfs", 320), ("btrfs", 256)] {
        let outer = Scratch::new();
        let disk = Disk::new(&outer, kind, "disk", mib);
        let scratch = Scratch::at(disk.path().join("s"));
        let program = Program::new(&scratch);
        let content: Vec<u8> =
            (0..32u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        tree::import(&scratch, &program, "os:1", None, |dir| {
            tree::write(dir, &[("large", Item::File(&content))]);
        });
        program.ok(&["create", "d", "os:1"]);
        let mount = program.mount("d", scratch.mnt());
        sh(scratch.path(), "sync -f .").ok();
        let used = || {
            let now = rfs::statvfs(scratch.path()).unwrap();
            (now.f_blocks - now.f_bfree) * now.f_frsize
        };
        let before = used();
        let path = mount.join("large");
        within(LIMIT, "writing", move || {
            let file = update(&path);
            file.write_all_at(b"written", 5_000_000).unwrap();
            file.sync_all().unwrap();
        });
        assert_eq!(missing(&program).0, 0, "{kind}");
        sh(scratch.path(), "sync -f .").ok();
        let more = used().saturating_sub(before);
        assert!(more < 8 << 20, "{kind}: {more} bytes for a few");
        let mut shown = content.clone();
        shown[5_000_000..5_000_007].copy_from_slice(b"written");
        assert!(fs::read(scratch.store().join("desktops/d/user/large")).unwrap() == shown, "{kind}");
        mount.umount();
    }
}
