//! The life of an image and of a desktop on it, command by command, on a real mount.

mod common;

use std::fs;
use std::path::Path;

use common::tree::{self, Item};
use common::{Program, Scratch};

/// Two versions: `os:1`, and `os:2` in which one path of every kind of change differs.
fn two_versions(scratch: &Scratch) -> Program {
    common::require_root();
    let program = Program::new(scratch);
    tree::import(scratch, &program, "os:1", None, tree::small);
    tree::import(scratch, &program, "os:2", Some("os:1"), second);
    program
}

fn second(dir: &Path) {
    let old = dir.with_file_name("src-os-1");
    common::sh(dir, &format!("cp -a {}/. .", old.display())).ok();
    tree::write(
        dir,
        &[
            ("usr/lib/libsmall.so.1", Item::File(b"library 2, longer\n")),
            ("usr/lib/libnew.so.1", Item::File(b"new\n")),
            ("etc/shadow", Item::Mode(b"root:*:::::::\n", 0o640)),
        ],
    );
    fs::remove_file(dir.join("usr/share/doc/small/README")).unwrap();
    fs::remove_dir(dir.join("usr/share/empty")).unwrap();
    std::os::unix::fs::symlink("doc", dir.join("usr/share/empty")).unwrap();
}

#[test]
fn a_version_shows_exactly_what_was_imported() {
    let scratch = Scratch::new();
    let program = two_versions(&scratch);
    for tag in ["1", "2"] {
        let source = tree::listing(&scratch.join(format!("src-os-{tag}")));
        let mount = program.inspect(&format!("os:{tag}"), scratch.mnt());
        tree::assert_same(&format!("os:{tag} inspected"), &source, &tree::listing(mount.path()));
        assert_ne!(common::sh(mount.path(), "touch etc/hostname").code, Some(0), "inspect is read-only");
        mount.umount();
        let out = scratch.join(format!("out-{tag}"));
        program.ok(&["export", &format!("os:{tag}"), &format!("dir:{}", out.display())]);
        tree::assert_same(&format!("os:{tag} exported"), &source, &tree::listing(&out));
    }
    program.ok(&["fsck", "--deep"]);
}

#[test]
fn a_difference_names_each_path_with_its_letter() {
    let scratch = Scratch::new();
    let program = two_versions(&scratch);
    let lines = program.ok(&["diff", "os:1", "os:2"]).out();
    let letter = |path: &str| {
        let line = lines.lines().find(|l| l.trim_end().ends_with(path));
        line.and_then(|l| l.trim_start().chars().next()).unwrap_or('-')
    };
    for (path, expected) in [
        ("usr/lib/libsmall.so.1", 'M'),
        ("usr/lib/libnew.so.1", 'A'),
        ("etc/shadow", 'm'),
        ("usr/share/doc/small/README", 'D'),
        ("usr/share/empty", 'T'),
        ("usr/bin/tool", '-'),
    ] {
        assert_eq!(letter(path), expected, "{path}\n{lines}");
    }
}

#[test]
fn a_live_rollback_takes_the_stack_back_and_keeps_what_the_user_wrote() {
    let scratch = Scratch::new();
    let program = two_versions(&scratch);
    program.ok(&["create", "alice", "os:1"]);
    let mount = program.mount("alice", scratch.mnt());
    let before = tree::listing(mount.path());
    tree::assert_same("a fresh desktop", &tree::listing(&scratch.join("src-os-1")), &before);

    mount.sh("mkdir -p home/alice/a/b; echo mine >home/alice/a/b/c; ln home/alice/a/b/c home/alice/link;
         echo edited >>etc/hostname; rm etc/passwd; chmod 700 root; mv usr/bin/su usr/bin/su.old");
    let worked = tree::listing(mount.path());
    // A handle and a working directory that live through both swaps.
    let held = common::within(common::program::LIMIT, "open", {
        let path = mount.join("usr/lib/libsmall.so.1");
        move || fs::File::open(path).unwrap()
    });

    let up = program.swap(&["upgrade", "alice", "--to", "os:2"]);
    assert_eq!((up["live"].as_bool(), up["generation"].as_u64()), (Some(true), Some(1)), "{up}");
    assert_eq!(mount.sh("cat usr/lib/libsmall.so.1 usr/lib/libnew.so.1"), "library 2, longer\nnew");
    assert_eq!(mount.sh("readlink usr/share/empty; stat -c %a etc/shadow"), "doc\n640");
    assert_eq!(
        mount.sh("ls usr/share/doc/small etc | tr '\\n' ' '"),
        "etc: hostname mtab shadow  usr/share/doc/small: "
    );
    assert_eq!(mount.sh("cat home/alice/link etc/hostname"), "mine\nsmall\nedited");
    let old = common::within(common::program::LIMIT, "read", move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut &held, &mut text).unwrap();
        text
    });
    assert_eq!(old, "library 1\n", "an open file keeps its content");

    let back = program.swap(&["rollback", "alice"]);
    assert_eq!((back["live"].as_bool(), back["generation"].as_u64()), (Some(true), Some(2)), "{back}");
    tree::assert_same("after the rollback", &worked, &tree::listing(mount.path()));
    mount.umount();

    let mount = program.mount("alice", scratch.mnt());
    tree::assert_same("after a remount", &worked, &tree::listing(mount.path()));
    mount.umount();
    let status = program.json(&["status", "alice"]);
    assert_eq!(status["tag"], "1", "{status}");
    assert_eq!(status["mounted"], false, "{status}");
}

#[test]
fn a_swap_of_an_unmounted_desktop_shows_at_the_next_mount() {
    let scratch = Scratch::new();
    let program = two_versions(&scratch);
    program.ok(&["create", "alice", "os:1"]);
    let up = program.swap(&["upgrade", "alice", "--to", "os:2"]);
    assert_eq!(up["live"], false, "{up}");
    let mount = program.mount("alice", scratch.mnt());
    tree::assert_same("os:2", &tree::listing(&scratch.join("src-os-2")), &tree::listing(mount.path()));
    mount.umount();
    program.run(&["upgrade", "alice", "--to", "os:2"]).expect_code(3);
}

#[test]
fn a_commit_makes_what_was_changed_the_next_version() {
    let scratch = Scratch::new();
    let program = two_versions(&scratch);
    program.ok(&["create", "builder", "os:2"]);
    let mount = program.mount("builder", scratch.mnt());
    mount.sh("echo tool 3 >usr/bin/tool; rm -r home; mkdir home; touch home/new; mv usr/lib usr/lib64; chmod 600 etc/hostname");
    let worked = tree::listing(mount.path());
    mount.umount();
    program.ok(&["commit", "builder", "os:3", "-m", "third"]);
    let mount = program.inspect("os:3", scratch.mnt());
    tree::assert_same("os:3", &worked, &tree::listing(mount.path()));
    mount.umount();
    let status = program.json(&["status", "builder"]);
    assert_eq!(status["tag"], "2", "a commit does not move the desktop: {status}");
    program.ok(&["commit", "builder", "os:4", "--reset"]);
    assert_eq!(program.json(&["status", "builder"])["tag"], "4");
    assert_eq!(program.ok(&["changes", "builder"]).out().trim(), "", "nothing is left to change");
    let mount = program.mount("builder", scratch.mnt());
    tree::assert_same("after the reset", &worked, &tree::listing(mount.path()));
    mount.umount();
}

#[test]
fn a_settled_user_layer_mounts_with_the_kernels_overlayfs() {
    let scratch = Scratch::new();
    let program = two_versions(&scratch);
    let layer = scratch.join("layer");
    program.ok(&["create", "alice", "os:1", "--user-layer", layer.to_str().unwrap()]);
    let mount = program.mount("alice", scratch.mnt());
    mount.sh("echo x >>etc/hostname; rm -r var; mkdir var; echo y >var/z; rm etc/mtab; chmod 640 etc/passwd;
         mv usr/share usr/share2; touch home/f; ln home/f home/g");
    let worked = tree::listing(mount.path());
    mount.umount();
    program.ok(&["settle", "alice"]);
    let lower = scratch.join("lower");
    program.ok(&["export", "os:1", &format!("dir:{}", lower.display())]);
    let point = scratch.dir("overlay");
    let work = scratch.dir("overlay-work");
    let options = format!(
        "lowerdir={},upperdir={}/user,workdir={},redirect_dir=on,metacopy=on",
        lower.display(),
        layer.display(),
        work.display()
    );
    common::sh(scratch.path(), &format!("mount -t overlay -o {options} overlay {}", point.display())).ok();
    let seen = tree::listing(&point);
    common::disk::unmount(&point);
    tree::assert_same("Reroot's view and the kernel's", &worked, &seen);
}

#[test]
fn what_nothing_needs_is_collected_and_nothing_else() {
    let scratch = Scratch::new();
    let program = two_versions(&scratch);
    program.ok(&["create", "alice", "os:2"]);
    program.ok(&["untag", "os:2"]);
    program.ok(&["gc"]);
    program.ok(&["fsck", "--deep"]);
    let mount = program.mount("alice", scratch.mnt());
    tree::assert_same(
        "a desktop's version",
        &tree::listing(&scratch.join("src-os-2")),
        &tree::listing(mount.path()),
    );
    mount.umount();
    program.ok(&["rm", "alice"]);
    program.ok(&["gc"]);
    let unwanted = reroot::store::Digest::of(b"library 2, longer\n").hex();
    let object = scratch.store().join("objects").join(&unwanted[..2]).join(&unwanted[2..]);
    assert!(!object.exists(), "only os:2 had it");
    program.ok(&["fsck", "--deep", "os:1"]);
}
