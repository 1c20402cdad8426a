//! How a partly copied file is completed, and what happens where it cannot be.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::common::{Disk, Program, Scratch, require_root, sh, within};
use crate::{LARGE, LIMIT, begin, bytes, eager, missing, until, until_complete, update, waiting};

#[test]
fn settling_and_committing_take_the_whole_file() {
    let (scratch, program, mut content) = begin();
    let mount = waiting(&program).mount("d", scratch.mnt());
    content[100..103].copy_from_slice(b"abc");
    let path = mount.join("large");
    let file = update(&path);
    file.write_all_at(b"abc", 100).unwrap();
    drop(file);
    mount.umount();
    assert_eq!(missing(&program).0, 1);
    let commit = |tag: &str| {
        program.ok(&["commit", "d", tag]);
        let inspected = program.inspect(tag, scratch.mnt());
        let (path, content) = (inspected.join("large"), content.clone());
        within(LIMIT, "reading", move || assert!(fs::read(path).unwrap() == content));
        inspected.umount();
    };
    commit("os:at-rest");
    assert_eq!(missing(&program).0, 1, "nobody completed it for that");
    let letters = program.json(&["changes", "d"]);
    assert_eq!((letters[0]["path"].as_str(), letters[0]["letter"].as_str()), (Some("large"), Some("M")));

    // Mounted, it is completed first.
    let mount = waiting(&program).mount("d", scratch.mnt());
    program.ok(&["commit", "d", "os:mounted"]);
    assert_eq!(missing(&program).0, 0);
    mount.umount();
    let inspected = program.inspect("os:mounted", scratch.mnt());
    let (path, expected) = (inspected.join("large"), content.clone());
    within(LIMIT, "reading", move || assert!(fs::read(path).unwrap() == expected));
    inspected.umount();

    // And settling.
    program.ok(&["create", "e", "os:1"]);
    let mount = waiting(&program).mount("e", scratch.mnt());
    update(&mount.join("large")).write_all_at(b"abc", 100).unwrap();
    mount.umount();
    let settled = program.json(&["settle", "e"]);
    assert_eq!(settled["files_completed"], 1, "{settled}");
    let layer = scratch.store().join("desktops/e");
    assert!(fs::read(layer.join("user/large")).unwrap() == content);
    assert_eq!(fs::read_to_string(layer.join("pins")).unwrap(), "");
    assert_eq!(
        sh(&layer, "ls -A work | grep partial || true; getfattr -m partial user/large").ok().out(),
        ""
    );
}

#[test]
fn a_full_disk_holds_the_copying_up_and_loses_nothing() {
    let (scratch, program, mut content) = begin();
    let disk = Disk::new(&scratch, "ext4", "small", 64);
    program.ok(&["rm", "d"]);
    let layer = disk.path().join("layer");
    fs::create_dir(&layer).unwrap();
    program.ok(&["create", "d", "os:1", "--user-layer", layer.to_str().unwrap()]);
    // Room for a part of it.
    let filler = disk.path().join("filler");
    let space = rustix::fs::statvfs(disk.path()).unwrap();
    let all = File::create(&filler).unwrap();
    let len = space.f_bavail * space.f_frsize - (10 << 20);
    rustix::fs::fallocate(&all, rustix::fs::FallocateFlags::empty(), 0, len).unwrap();
    drop(all);
    let mount = eager(&program).mount("d", scratch.mnt());
    let path = mount.join("large");
    content[11_000_000..11_000_004].copy_from_slice(b"kept");
    let file = update(&path);
    file.write_all_at(b"kept", 11_000_000).unwrap();
    file.sync_all().unwrap();
    until("the disk is full", || {
        let status = program.json(&["status", "d"]);
        status["copying"]["stuck"].as_str().is_some_and(|s| s.contains("No space"))
    });
    assert!(program.ok(&["status", "d"]).out().contains("held up"));
    let (expected, shown) = (content.clone(), path.clone());
    within(LIMIT, "reading", move || assert!(fs::read(shown).unwrap() == expected));
    // Now there is next to none.
    let second = disk.path().join("second");
    let all = File::create(&second).unwrap();
    let mut len = rustix::fs::statvfs(disk.path()).unwrap().f_bfree * space.f_frsize;
    while rustix::fs::fallocate(&all, rustix::fs::FallocateFlags::empty(), 0, len).is_err() {
        len -= 256 << 10;
    }
    all.set_len(len - (1 << 20)).unwrap();
    // A write into what is not there yet has no room either, and changes nothing.
    assert!(file.write_all_at(&vec![b'x'; 8 << 20], 0).is_err());
    let mut end = [0; 4];
    file.read_exact_at(&mut end, 11_000_000).unwrap();
    assert_eq!(&end, b"kept");
    let seen = fs::read(&path).unwrap();
    let old = bytes(1, LARGE);
    for (at, (now, was)) in seen.chunks(4096).zip(old.chunks(4096)).enumerate() {
        let new = now.iter().all(|b| *b == b'x');
        assert!(new || now == was || at == 11_000_000 / 4096, "block {at}");
    }
    fs::remove_file(&filler).unwrap();
    fs::remove_file(&second).unwrap();
    until_complete(&program);
    let seen_after = fs::read(&path).unwrap();
    assert!(seen_after == seen);
    drop(file);
    mount.umount();
}

#[test]
fn where_the_object_is_missing_nothing_shows_zeroes() {
    let (scratch, program, _) = begin();
    let mount = waiting(&program).mount("d", scratch.mnt());
    update(&mount.join("large")).write_all_at(&[b'm'; 8192], 1 << 20).unwrap();
    mount.umount();
    let find = "find objects -type f -size +10M";
    let object = sh(&scratch.store(), find).ok().out().trim().to_string();
    fs::rename(scratch.store().join(&object), scratch.join("kept")).unwrap();
    let mount = eager(&program).mount("d", scratch.mnt());
    let path = mount.join("large");
    within(LIMIT, "reading", move || {
        let file = File::open(&path).unwrap();
        let mut buf = [0; 4096];
        let e = file.read_at(&mut buf, 0).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EIO));
        // What is the user's is there.
        let direct = File::options();
        let file = std::os::unix::fs::OpenOptionsExt::custom_flags(direct.clone().read(true), libc::O_DIRECT)
            .open(&path)
            .unwrap();
        let mut memory = vec![0u8; 3 * 4096];
        let at = memory.as_ptr().align_offset(4096);
        file.read_exact_at(&mut memory[at..at + 8192], 1 << 20).unwrap();
        assert!(memory[at..at + 8192].iter().all(|b| *b == b'm'));
    });
    until("it is said", || program.json(&["status", "d"])["copying"]["stuck"].is_string());
    fs::rename(scratch.join("kept"), scratch.store().join(&object)).unwrap();
    until_complete(&program);
    mount.umount();
}

#[test]
fn a_damaged_mark_of_a_partly_copied_file_fails_its_own_path() {
    let (scratch, program, content) = begin();
    let mount = waiting(&program).mount("d", scratch.mnt());
    update(&mount.join("large"));
    mount.umount();
    let user = scratch.store().join("desktops/d/user");
    let mark = sh(&user, "getfattr --only-values -n trusted.reroot.partial large").ok().out();
    let too_far = mark.rsplit_once(' ').unwrap().0.to_string() + " 99999999999";
    for bad in ["nonsense", "", too_far.as_str()] {
        sh(&user, &format!("setfattr -n trusted.reroot.partial -v '{bad}' large")).ok();
        let mount = eager(&program).mount("d", scratch.mnt());
        let root = mount.path().to_path_buf();
        within(LIMIT, "reading", move || {
            let e = File::open(root.join("large")).unwrap_err();
            assert_eq!(e.raw_os_error(), Some(libc::EUCLEAN));
            assert_eq!(fs::read(root.join("dir/other")).unwrap(), b"other\n");
        });
        mount.umount();
    }
    sh(&user, &format!("setfattr -n trusted.reroot.partial -v '{mark}' large")).ok();
    let mount = program.mount("d", scratch.mnt());
    let path = mount.join("large");
    within(LIMIT, "reading", move || assert!(fs::read(path).unwrap() == content));
    mount.umount();
}

#[test]
fn an_immutable_file_is_complete_first() {
    let (scratch, program, content) = begin();
    let mount = waiting(&program).mount("d", scratch.mnt());
    mount.sh("exec 3<>large; chattr +a large");
    assert_eq!(missing(&program).0, 0);
    mount.sh("printf end >>large; chattr -a large");
    let path = mount.join("large");
    within(LIMIT, "reading", move || {
        assert!(fs::read(path).unwrap() == [&content[..], b"end"].concat());
    });
    mount.umount();
}

#[test]
fn over_plain_directories_a_large_file_is_copied_whole() {
    require_root();
    let scratch = Scratch::new();
    let program = waiting(&Program::new(&scratch));
    let (lower, upper, work) = (scratch.dir("lower"), scratch.dir("upper"), scratch.dir("work"));
    let mut content = bytes(3, LARGE);
    fs::write(lower.join("large"), &content).unwrap();
    let list =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let point = scratch.mnt();
    program.ok(&["overlay", "-o", &list, point.to_str().unwrap()]);
    let path = point.join("large");
    within(LIMIT, "writing", move || update(&path).write_all_at(b"mine", 10).unwrap());
    content[10..14].copy_from_slice(b"mine");
    assert!(fs::read(upper.join("large")).unwrap() == content);
    program.umount(&point);
}

#[test]
fn a_copy_of_a_user_layer_does_not_lead_to_the_files_of_the_first() {
    let (scratch, program, content) = begin();
    let home = scratch.join("copy");
    program.ok(&["create", "e", "os:1", "--user-layer", home.to_str().unwrap()]);
    let mount = waiting(&program).mount("d", scratch.mnt());
    update(&mount.join("large")).write_all_at(b"mine", 0).unwrap();
    mount.umount();
    sh(
        &scratch.store(),
        &format!("cp -a desktops/d/user desktops/d/work {}/; cp desktops/d/pins desktops/e/", home.display()),
    )
    .ok();
    let mount = eager(&program).mount("e", scratch.mnt());
    let status = |name: &str| program.json(&["status", name])["copying"]["files"].clone();
    assert_eq!(status("e"), 0, "the entries are another's");
    let path = mount.join("large");
    let expected = [b"mine", &content[4..]].concat();
    within(LIMIT, "reading", move || assert!(fs::read(path).unwrap() == expected));
    until("the copy is complete", || {
        sh(&home, "getfattr -m partial user/large 2>&1").ok().out().is_empty() && status("e") == 0
    });
    mount.umount();
    assert_eq!(status("d"), 1, "the first is as it was");
}
