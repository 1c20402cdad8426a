//! The greatest number of links, which pjdfstest does not try on a FUSE mount.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::common::tree::{self, Item};
use crate::common::{Disk, Program, Scratch, require_root, within};

/// What ext4 allows, and more than any test should make on a file system that allows more.
const MOST: u64 = 65_000;

/// Links `first` under new names until the file system refuses, gives back the number of names and the error.
fn link_until_refused(first: &Path, dir: &Path) -> (u64, Option<i32>) {
    fs::create_dir(dir).unwrap();
    for n in 0..MOST + 10 {
        if let Err(e) = fs::hard_link(first, dir.join(n.to_string())) {
            return (first.symlink_metadata().unwrap().nlink(), e.raw_os_error());
        }
    }
    (first.symlink_metadata().unwrap().nlink(), None)
}

#[test]
fn a_file_takes_as_many_links_as_on_ext4() {
    require_root();
    let outer = Scratch::new();
    let disk = Disk::new(&outer, "ext4", "disk", 300);
    let scratch = Scratch::at(disk.path().join("s"));
    let program = Program::new(&scratch);
    let source = tree::import(&scratch, &program, "os:1", None, |dir| {
        tree::write(dir, &[("file", Item::File(b"linked\n"))]);
    });
    let plain = link_until_refused(&source.join("file"), &scratch.join("plain"));
    assert_eq!(plain, (MOST, Some(libc::EMLINK)), "on ext4 itself");
    program.ok(&["create", "d", "os:1"]);
    let mount = program.mount("d", scratch.mnt());
    let root = mount.path().to_path_buf();
    let seen = within(std::time::Duration::from_secs(300), "linking", move || {
        let own = root.join("own");
        fs::write(&own, "own").unwrap();
        let of_own = link_until_refused(&own, &root.join("of-own"));
        let of_stack = link_until_refused(&root.join("file"), &root.join("of-stack"));
        // One that goes makes room for one.
        fs::remove_file(root.join("of-stack/5")).unwrap();
        fs::hard_link(root.join("file"), root.join("again")).unwrap();
        let refused = fs::hard_link(root.join("file"), root.join("too many")).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EMLINK));
        assert_eq!(fs::read(root.join("of-stack/64000")).unwrap(), b"linked\n");
        [of_own, of_stack]
    });
    assert_eq!(seen, [plain, plain]);
    mount.umount();
}

/// All whiteouts of a user layer are links to one, until that takes no more.
#[test]
fn more_names_can_be_hidden_than_one_whiteout_takes_links() {
    require_root();
    let outer = Scratch::new();
    let disk = Disk::new(&outer, "ext4", "disk", 300);
    let scratch = Scratch::at(disk.path().join("s"));
    let program = Program::new(&scratch);
    let names: Vec<String> = (0..40).map(|n| format!("f{n}")).collect();
    tree::import(&scratch, &program, "os:1", None, |dir| {
        for name in &names {
            tree::write(dir, &[(name, Item::File(b"hidden"))]);
        }
    });
    program.ok(&["create", "d", "os:1"]);
    let mount = program.mount("d", scratch.mnt());
    fs::remove_file(mount.join("f0")).unwrap();
    let (desktop, extra) = (scratch.store().join("desktops/d"), scratch.dir("extra"));
    let shared = desktop.join("work/#whiteout");
    let links = || shared.symlink_metadata().unwrap().nlink();
    for n in links()..MOST - 10 {
        fs::hard_link(&shared, extra.join(n.to_string())).unwrap();
    }
    assert_eq!(links(), MOST - 10);
    for name in names.iter().skip(1) {
        fs::remove_file(mount.join(name)).unwrap();
    }
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 0);
    assert_eq!(fs::read_dir(desktop.join("user")).unwrap().count(), names.len());
    assert!(links() < 100, "a second one is shared now: {}", links());
    mount.umount();
    let mount = program.mount("d", scratch.mnt());
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 0);
    mount.umount();
}
