//! The user layer on disk: plain overlayfs format once it is settled, on each file system that can hold it;
//! marks that nobody inside can forge; marks that somebody damaged, which fail their own path and no other.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::changes::{CHANGES, Seen, assert_same, base, look};
use common::tree;
use common::{Disk, Program, Scratch, sh};

/// Mounts a user layer with the kernel's overlayfs, looks, and unmounts it.
fn look_with_overlayfs(scratch: &Scratch, lower: &Path, user: &Path) -> Seen {
    let (point, work) = (scratch.dir("overlay"), scratch.dir("overlay-work"));
    let script = format!(
        "mount -t overlay -o lowerdir={},upperdir={},workdir={},redirect_dir=on,metacopy=on overlay {}",
        lower.display(),
        user.display(),
        work.display(),
        point.display()
    );
    sh(scratch.path(), &script).ok();
    let seen = look(&point);
    common::disk::unmount(&point);
    seen
}

/// Settles, and looks with both: the kernel over the exported version, and Reroot.
fn settled_shows(scratch: &Scratch, program: &Program, version: &str, worked: &Seen) {
    let user = scratch.store().join("desktops/alice/user");
    program.ok(&["settle", "alice"]);
    let lower = scratch.join("lower");
    program.ok(&["export", version, &format!("dir:{}", lower.display())]);
    let seen = look_with_overlayfs(scratch, &lower, &user);
    assert_same("Reroot's view and the kernel's", worked, &seen);
    let mount = program.mount("alice", scratch.mnt());
    assert_same("Reroot's view after settling", worked, &look(mount.path()));
    mount.umount();
}

fn settled_equals_overlayfs(scratch: &Scratch) {
    let program = Program::new(scratch);
    tree::import(scratch, &program, "os:1", None, base);
    program.ok(&["create", "alice", "os:1"]);
    let user = scratch.store().join("desktops/alice/user");
    let mount = program.mount("alice", scratch.mnt());
    assert_same("a fresh desktop", &look(&scratch.join("src-os-1")), &look(mount.path()));
    mount.sh(CHANGES);
    let worked = look(mount.path());
    mount.umount();
    let mount = program.mount("alice", scratch.mnt());
    assert_same("after a remount", &worked, &look(mount.path()));
    mount.umount();

    settled_shows(scratch, &program, "os:1", &worked);
    let again = program.json(&["settle", "alice"]);
    assert_eq!(
        (again["files_completed"].as_u64(), again["set_aside"].as_u64()),
        (Some(0), Some(0)),
        "{again}"
    );
    let pins = std::fs::read_to_string(user.with_file_name("pins")).unwrap_or_default();
    assert_eq!(pins.trim(), "", "a settled layer stands on no other version");
    program.ok(&["fsck", "--deep"]);
}

#[test]
fn a_settled_user_layer_shows_the_same_with_the_kernels_overlayfs() {
    common::require_root();
    settled_equals_overlayfs(&Scratch::new());
}

#[test]
fn a_settled_user_layer_shows_the_same_with_the_kernels_overlayfs_on_xfs() {
    common::require_root();
    let outer = Scratch::new();
    let disk = Disk::new(&outer, "xfs", "disk", 320);
    settled_equals_overlayfs(&Scratch::at(disk.path().join("s")));
}

#[test]
fn a_settled_user_layer_shows_the_same_with_the_kernels_overlayfs_on_btrfs() {
    common::require_root();
    let outer = Scratch::new();
    let disk = Disk::new(&outer, "btrfs", "disk", 256);
    settled_equals_overlayfs(&Scratch::at(disk.path().join("s")));
}

#[test]
fn what_follows_the_stack_is_settled_and_moved_as_the_present_version_has_it() {
    common::require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    let first =
        "printf one >file; printf long-enough >shorter; printf one >linked; ln linked second; ln -s one link
                 ln -s one moved; mknod device c 1 3; mknod moving c 1 3";
    let second = "printf longer-than-it-was >file; printf s >shorter; printf longer >linked; ln linked second
                  ln -s two link; ln -s two moved; mknod device c 1 5; mknod moving c 1 5";
    for (tag, parent, script) in [("os:1", None, first), ("os:2", Some("os:1"), second)] {
        tree::import(&scratch, &program, tag, parent, |dir| drop(sh(dir, script).ok()));
    }
    program.ok(&["create", "alice", "os:1"]);
    let mount = program.mount("alice", scratch.mnt());
    mount.sh("chmod 600 file shorter linked; chown -h 7:7 link moved device moving");
    program.ok(&["upgrade", "alice", "--to", "os:2"]);
    mount.sh("mv moved away; mv moving far");
    let shown = mount
        .sh("readlink link away; stat -c '%t:%T %u' device far link away; cat file shorter linked second");
    assert_eq!(shown, "two\ntwo\n1:5 7\n1:5 7\n0:0 7\n0:0 7\nlonger-than-it-wasslongerlonger");
    let worked = look(mount.path());
    mount.umount();
    let mount = program.mount("alice", scratch.mnt());
    assert_same("after a remount", &worked, &look(mount.path()));
    mount.umount();
    settled_shows(&scratch, &program, "os:2", &worked);
}

#[test]
fn attributes_that_look_like_marks_have_no_effect_and_read_back() {
    common::require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    tree::import(&scratch, &program, "os:1", None, base);
    program.ok(&["create", "alice", "os:1"]);
    let mount = program.mount("alice", scratch.mnt());
    // Each on something of the stack and on something new.
    mount.sh("mkdir home/d home/e; touch home/d/f home/w; echo x >home/x; mkdir -p home/up/in");
    let forge = "
        for p in usr/share/data home/d; do
          setfattr -n trusted.overlay.opaque -v y $p; setfattr -n trusted.overlay.redirect -v /etc $p
          setfattr -n trusted.reroot.pin -v 'dir x y z' $p; setfattr -n trusted.reroot.ino -v 7 $p
        done
        for p in usr/share/swap/a home/w; do
          truncate -s 0 $p; setfattr -n trusted.overlay.whiteout -v y $p
          setfattr -n trusted.reroot.rdev -v c $p; setfattr -n trusted.reroot.meta -v mode $p
        done
        for p in etc/passwd home/x; do
          setfattr -n trusted.overlay.metacopy -v '' $p; setfattr -n trusted.reroot.pin -v 'object a 1' $p
          setfattr -n trusted.overlay.overlay.opaque -v y $p; setfattr -n trusted.reroot.reroot.x -v deep $p
        done";
    let before = tree::listing(mount.path());
    mount.sh(forge);
    let read =
        "getfattr -h -d -m trusted -e text usr/share/data home/d usr/share/swap/a home/w etc/passwd home/x";
    let values = mount.sh(read);
    for name in [
        "overlay.opaque",
        "overlay.redirect",
        "overlay.whiteout",
        "overlay.metacopy",
        "reroot.pin",
        "reroot.ino",
        "reroot.rdev",
        "reroot.meta",
        "overlay.overlay.opaque",
        "reroot.reroot.x",
    ] {
        let line = format!("trusted.{name}=");
        assert_eq!(values.lines().filter(|l| l.starts_with(&line)).count() % 2, 0, "{name}: {values}");
        assert!(values.contains(&line), "{name}: {values}");
    }
    let same = |what: &str, at: &Path| {
        let mut now = tree::listing(at);
        let mut expected = before.clone();
        for listing in [&mut now, &mut expected] {
            listing.remove(&b"usr/share/swap/a"[..].to_vec());
            listing.remove(&b"home/w"[..].to_vec());
        }
        tree::assert_same(what, &expected, &now);
    };
    same("after forging", mount.path());
    assert_eq!(
        mount.sh("stat -c '%F %s' usr/share/swap/a home/w"),
        "regular empty file 0\nregular empty file 0"
    );
    mount.umount();
    let mount = program.mount("alice", scratch.mnt());
    same("after forging and a remount", mount.path());
    assert_eq!(mount.sh(read), values);
    mount.sh("setfattr -x trusted.overlay.opaque home/d; setfattr -x trusted.reroot.pin usr/share/data");
    assert!(!mount.sh("getfattr -d -m trusted home/d").contains("opaque"));
    // They are content like any other: a commit takes them, and an export gives them back.
    mount.umount();
    program.ok(&["commit", "alice", "os:2"]);
    let mount = program.inspect("os:2", scratch.mnt());
    let passwd = mount.sh("getfattr -d -m trusted etc/passwd");
    assert!(passwd.contains("trusted.overlay.metacopy") && passwd.contains("trusted.reroot.pin"), "{passwd}");
    mount.umount();
    program.ok(&["fsck", "--deep"]);
}

/// A desktop with one file or directory for each kind of mark, unmounted.
fn marked(scratch: &Scratch) -> (Program, PathBuf) {
    let program = Program::new(scratch);
    tree::import(scratch, &program, "os:1", None, base);
    program.ok(&["create", "alice", "os:1"]);
    let mount = program.mount("alice", scratch.mnt());
    mount.sh(
        "echo own >>etc/hostname; chmod 600 etc/passwd etc/shadow; mv usr/share/data/file usr/share/data/pinned
         mv usr/share/tree usr/share/moved; mkdir home/new; touch home/new/f",
    );
    mount.umount();
    (program, scratch.store().join("desktops/alice/user"))
}

#[test]
fn a_damaged_mark_fails_its_own_path_and_no_other() {
    common::require_root();
    let scratch = Scratch::new();
    let (program, user) = marked(&scratch);
    let none = "0".repeat(96);
    let version = program.json(&["status", "alice"])["version"].as_str().unwrap().to_string();
    // Where, which mark, what it is made to say, and the path in the view that must fail.
    let cases = [
        ("etc/hostname", "ino", "garbage".to_string()),
        ("etc/hostname", "ino", "0".into()),
        ("etc/hostname", "ino", "ffffffffffffffff".into()),
        ("etc/passwd", "meta", "mood".into()),
        ("etc/passwd", "meta", "x".into()),
        ("usr/share/data/pinned", "pin", "garbage".into()),
        ("usr/share/data/pinned", "pin", format!("object sha384:{none}")),
        ("usr/share/data/pinned", "pin", format!("object sha384:{none} 14")),
        ("usr/share/data/pinned", "pin", format!("dir {version} sha384:{none} usr")),
        ("usr/share/moved", "pin", format!("object sha384:{none} 14")),
        ("usr/share/moved", "pin", format!("dir sha384:{none} sha384:{none} usr/share/tree")),
        ("usr/share/moved", "pin", format!("dir {version} sha384:{none} usr/share/tree")),
        ("usr/share/moved", "pin", format!("dir {version} sha384:{none} ../../etc")),
        ("usr/share/moved", "pin", format!("dir {version} sha384:{none} /etc/../usr/share/tree")),
        ("home/new", "pin", format!("dir {version} sha384:{none} etc/hostname")),
        ("etc/hostname", "pin", format!("object sha384:{none} 18446744073709551615")),
    ];
    for (path, mark, value) in cases {
        let on_disk = user.join(path);
        let name = format!("trusted.reroot.{mark}");
        let old = sh(
            &scratch.mnt(),
            &format!("getfattr -n {name} -e hex {} 2>/dev/null || true", on_disk.display()),
        );
        let old = old.out().lines().find_map(|l| Some(l.split_once("=")?.1.to_string()));
        sh(&scratch.mnt(), &format!("setfattr -n {name} -v '{value}' {}", on_disk.display())).ok();
        let what = format!("{path}: {mark} = {value}");

        let mount = program.mount("alice", scratch.mnt());
        let script = format!("if [ -d {path} ]; then ls {path}; else cat {path} && stat {path}; fi");
        let failed = sh(mount.path(), &script);
        assert_ne!(failed.code, Some(0), "{what}: {}", failed.out());
        let words = failed.err();
        assert!(
            words.contains("Structure needs cleaning") || words.contains("Input/output error"),
            "{what}: {words}"
        );
        // Its directory can be listed, and what lies beside it is right.
        let (parent, last) = path.rsplit_once('/').unwrap();
        assert!(mount.sh(&format!("ls {parent} 2>/dev/null || true")).lines().any(|l| l == last), "{what}");
        mount.sh("cat usr/share/data/one usr/bin/tool etc/mtab >/dev/null; stat etc/shadow home >/dev/null; echo ok >etc/new; rm etc/new");
        mount.umount();

        // What reads the layer as a whole says so and ends with an error, or passes the path over rightly.
        for command in [&["changes", "alice"][..], &["commit", "alice", "os:broken"]] {
            let answer = program.run(command);
            assert!(answer.code.is_some_and(|c| c <= 5), "{what}: {command:?} {}", answer.err());
            assert!(!answer.err().contains("panicked"), "{what}: {}", answer.err());
        }
        let settled = program.run(&["settle", "alice"]);
        assert!(matches!(settled.code, Some(1 | 5)), "{what}: settle {:?} {}", settled.code, settled.err());
        assert!(settled.err().contains(path), "{what}: the error names the path: {}", settled.err());

        let restore = match old {
            Some(hex) => format!("setfattr -n {name} -v {hex} {}", on_disk.display()),
            None => format!("setfattr -x {name} {}", on_disk.display()),
        };
        sh(&scratch.mnt(), &restore).ok();
    }
    let mount = program.mount("alice", scratch.mnt());
    assert_eq!(
        mount.sh("cat etc/hostname usr/share/data/pinned usr/share/moved/deep/x"),
        "small\nown\nto be renamed\nx"
    );
    mount.umount();
    // Whatever was committed meanwhile is whole.
    program.ok(&["fsck", "--deep"]);
}

#[test]
fn a_mark_of_a_filling_that_is_done_says_nothing() {
    common::require_root();
    let scratch = Scratch::new();
    let (program, user) = marked(&scratch);
    // As a crash leaves it between the last two marks of a filling.
    sh(&user, "setfattr -n trusted.reroot.times -v '1.0 1.0' etc/hostname").ok();
    let on_disk = fs::metadata(user.join("etc/hostname")).unwrap().mtime();
    let mount = program.mount("alice", scratch.mnt());
    assert_eq!(fs::metadata(mount.join("etc/hostname")).unwrap().mtime(), on_disk);
    fs::write(mount.join("etc/hostname"), "later").unwrap();
    assert!(fs::metadata(mount.join("etc/hostname")).unwrap().mtime() >= on_disk);
    mount.umount();
}
