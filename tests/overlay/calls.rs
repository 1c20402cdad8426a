//! How it is called: options, their syntax, and what is refused.

use std::os::unix::fs::MetadataExt;

use super::{Layers, sh};
use crate::common::scratch::mount_type;

const TWO: [&str; 2] = ["echo top >f; mkdir d; echo a >d/a", "echo bottom >f; mkdir d; echo b >d/b"];

#[test]
fn layers_are_merged_the_topmost_first_and_changes_go_into_the_upper_directory() {
    let l = Layers::new(&TWO);
    assert_eq!(
        l.seen(&l.all(), "cat f d/a d/b; echo new >n; rm f; ls -A . d"),
        "top\na\nb\n.:\nd\nn\n\nd:\na\nb\n"
    );
    assert_eq!(sh(&l.at("u"), "cat n; stat -c %F f").ok().out(), "new\ncharacter special file\n");
    assert_eq!(sh(&l.at("l0"), "cat f").ok().out(), "top\n");
    assert_eq!(l.seen(&l.all(), "ls -A"), "d\nn\n", "after mounting again");
}

#[test]
fn without_an_upper_directory_nothing_can_be_changed() {
    let l = Layers::new(&TWO);
    let out = l.seen(&l.lowerdir(), "cat f; if echo x >n; then echo written; fi 2>&1; rm -f f 2>&1 || true");
    assert!(out.starts_with("top\n") && out.matches("Read-only file system").count() == 2, "{out}");
}

#[test]
fn paths_may_be_relative_and_hold_the_separators_when_escaped() {
    let mut l = Layers::new(&TWO);
    std::fs::rename(l.at("l0"), l.at(r"odd:one,with\all")).unwrap();
    l.lower[0] = r"odd\:one\,with\\all".into();
    let relative = format!("lowerdir={}:l1,upperdir=u,workdir=w", l.lower[0]);
    assert_eq!(l.seen(&relative, "cat f d/b"), "top\nb\n");
    assert_eq!(l.seen(r"lowerdir+=odd:one\,with\\all,lowerdir+=l1", "cat f d/b"), "top\nb\n");
    // A symbolic link stands for the directory, as in podman's storage.
    std::os::unix::fs::symlink("l1", l.at("link")).unwrap();
    assert_eq!(l.seen("lowerdir=link", "cat f"), "bottom\n");
}

#[test]
fn options_of_fuse_overlayfs_and_of_podman_are_taken() {
    let l = Layers::new(&TWO);
    let list = format!(
        "{},volatile,noacl,static_nlink,timeout=1,redirect_dir=on,metacopy=off,fsname=pod,nodev",
        l.all()
    );
    let answer = l.overlay(&list).ok();
    assert!(answer.err().contains("volatile is passed over"), "{}", answer.err());
    assert_eq!(answer.out(), "");
    let line = sh(l.scratch.path(), "findmnt -n -o SOURCE,FSTYPE,OPTIONS mnt").ok().out();
    assert!(line.starts_with("pod") && line.contains("fuse.reroot") && line.contains("nodev"), "{line}");
    l.program.umount(&l.mnt());
    let version = l.program.ok(&["overlay", "--version"]).out();
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
}

#[test]
fn owners_are_mapped_as_fuse_overlayfs_maps_them() {
    let l = Layers::new(&["touch r one; chown 1:1 one"]);
    let mapped = format!("{},uidmapping=0:1000:1:1:2000:5,gidmapping=:0:1000:1:1:2000:5", l.all());
    assert_eq!(l.seen(&mapped, "stat -c %u:%g r one"), "1000:1000\n2000:2000\n");
}

#[test]
fn what_cannot_be_used_together_is_refused_in_words() {
    let l = Layers::new(&["mkdir sub", ":"]);
    sh(l.scratch.path(), "mkdir -p u/in w/in; touch file").ok();
    for (options, code, words) in [
        ("upperdir=u,workdir=w", 2, "lowerdir= is missing"),
        ("lowerdir=l0,upperdir=u", 2, "needs workdir="),
        ("lowerdir=l0:l0", 2, "given twice"),
        ("lowerdir=l0:l0/sub", 2, "lie within each other"),
        ("lowerdir=l0,upperdir=l0,workdir=w", 2, "are the same directory"),
        ("lowerdir=l0,upperdir=l0/sub,workdir=w", 2, "lie within each other"),
        ("lowerdir=l0,upperdir=u,workdir=u", 2, "are the same directory"),
        ("lowerdir=l0,upperdir=u,workdir=u/in", 2, "lie within each other"),
        ("lowerdir=l0,upperdir=u,workdir=l0/sub", 2, "lie within each other"),
        ("lowerdir=u/in,upperdir=u,workdir=w", 2, "lie within each other"),
        ("lowerdir=l0,upperdir=u,workdir=/proc", 2, "one file system"),
        ("lowerdir=none", 2, "No such file or directory"),
        ("lowerdir=file", 2, "not a directory"),
        ("lowerdir=l0:", 2, "No such file or directory"),
        ("lowerdir=l0,squash_to_root", 2, "cannot be kept"),
        ("lowerdir=l0,xattr_permissions=2", 2, "cannot be kept"),
        ("lowerdir=l0,nonsense", 2, "unknown mount option"),
        ("lowerdir=l0,uidmapping=1:2", 2, "ranges"),
    ] {
        let answer = l.overlay(options).expect_code(code);
        assert!(answer.err().contains(words), "{options}: {}", answer.err());
        assert_eq!(mount_type(&l.mnt()), None, "{options}");
    }
}

#[test]
fn an_upper_directory_that_is_in_use_is_refused() {
    let l = Layers::new(&TWO);
    l.overlay(&l.all()).ok();
    let second = l.scratch.dir("second");
    let answer = l.program.run(&["overlay", "-o", &l.all(), &second.display().to_string()]).expect_code(1);
    assert!(answer.err().contains("in use by another mount"), "{}", answer.err());
    // Another work directory does not make it another upper directory.
    let work = l.scratch.dir("second-work");
    let options = format!("{},upperdir={},workdir={}", l.lowerdir(), l.at("u").display(), work.display());
    let answer = l.program.run(&["overlay", "-o", &options, &second.display().to_string()]).expect_code(1);
    assert!(answer.err().contains("in use by another mount"), "{}", answer.err());
    l.program.umount(&l.mnt());
    // And when its daemon was killed it is free again.
    l.overlay(&l.all()).ok();
    l.scratch.kill_daemons();
    l.overlay(&l.all()).ok();
    assert_eq!(sh(&l.mnt(), "cat f").ok().out(), "top\n");
    l.program.umount(&l.mnt());
}

#[test]
fn a_mount_right_after_an_unmount_waits_for_the_one_that_ends() {
    let l = Layers::new(&TWO);
    for round in 0..5 {
        l.overlay(&l.all()).ok();
        sh(&l.mnt(), &format!("echo {round} >>log")).ok();
        // Not through the program, which would wait for the daemon.
        crate::common::disk::unmount(&l.mnt());
    }
    assert_eq!(l.seen(&l.all(), "cat log"), "0\n1\n2\n3\n4\n");
}

#[test]
fn whiteouts_of_oci_layers_are_read_on_request_only() {
    let l = Layers::new(&[
        "touch .wh.gone kept; mkdir opq; touch opq/.wh..wh..opq opq/new; mkdir d; touch d/.wh.x",
        "touch gone stays; mkdir opq d; touch opq/old d/x d/y",
    ]);
    let list = "find . -mindepth 1 | sort | tr '\\n' ' '";
    assert_eq!(
        l.seen(&format!("{},oci_whiteouts", l.lowerdir()), list),
        "./d ./d/y ./kept ./opq ./opq/new ./stays "
    );
    let all = l.seen(&l.lowerdir(), list);
    assert!(all.contains("./.wh.gone ") && all.contains("./opq/old "), "{all}");
}

#[test]
fn a_file_that_is_being_read_keeps_its_number_and_is_whole_in_the_upper_directory_afterwards() {
    let l = Layers::new(&["head -c 3000000 /dev/zero >big; head -c 3000000 /dev/zero >gone"]);
    let upper = l.at("u");
    l.mounted(&l.all(), move |mnt| {
        let open = |name: &str| std::fs::File::open(mnt.join(name)).unwrap();
        let ino = |name: &str| std::fs::metadata(mnt.join(name)).unwrap().ino();
        let blocks = |name: &str| std::fs::metadata(upper.join(name)).unwrap().blocks();
        let (reader, gone, before) = (open("big"), open("gone"), ino("big"));
        sh(mnt, "chmod 600 big gone; mv big moved; chmod 640 moved; rm gone").ok();
        assert_eq!((ino("moved"), reader.metadata().unwrap().mode() & 0o777), (before, 0o640));
        assert!(blocks("moved") < 100, "a copy would have another number");
        drop((reader, gone));
        let began = std::time::Instant::now();
        while blocks("moved") < 5000 {
            assert!(began.elapsed() < super::LIMIT, "its content did not follow");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(ino("moved"), before);
    });
    // So it is a file for everybody, without what `metacopy` asks of its readers.
    let look = "stat -c %a:%s moved; cmp moved ../l0/big; getfattr -m overlay -d moved";
    assert_eq!(sh(&l.at("u"), look).ok().out(), "640:3000000\n");
}

#[test]
fn an_upper_directory_that_cannot_be_written_is_shown_read_only_on_request() {
    let l = Layers::new(&TWO);
    l.seen(&l.all(), "echo new >n; rm f; mv d e");
    sh(l.scratch.path(), "mkdir both; mv u w both; mount --bind both both; mount -o remount,bind,ro both")
        .ok();
    let all = format!("{},upperdir=both/u,workdir=both/w", l.lowerdir());
    let wrong = l.overlay(&all).expect_code(1);
    assert!(wrong.err().contains("Read-only file system"), "{}", wrong.err());
    let out = l.seen(&format!("{all},ro"), "cat n e/a e/b; ls -A; if echo x >n; then echo written; fi 2>&1");
    assert!(out.starts_with("new\na\nb\ne\nn\n") && out.contains("Read-only file system"), "{out}");
    crate::common::disk::unmount(&l.at("both"));
}
