//! The kernel's overlayfs and Reroot take turns on the very same directories, and show the same.

use std::path::Path;

use super::Layers;
use crate::common::changes::{self, CHANGES, Seen, assert_same, look};
use crate::common::sh;

/// What the kernel must be told to follow all marks.
const FOLLOW: &str = "redirect_dir=on,metacopy=on";

/// Compares the views without an upper directory and with an empty one.
#[track_caller]
fn agree(scripts: &[&str]) {
    let l = Layers::new(scripts);
    let theirs = l.kernel(&format!("{},{FOLLOW}", l.lowerdir()), look);
    let ours = l.mounted(&l.lowerdir(), look);
    assert_same("read-only", &theirs, &ours);
    let theirs = l.kernel(&format!("{},{FOLLOW}", l.all()), look);
    let ours = l.mounted(&l.all(), look);
    assert_same("with an upper directory", &theirs, &ours);
    assert!(theirs.listing.len() > 1, "nothing to compare");
}

#[test]
fn whiteouts_opaque_directories_and_files_over_directories() {
    agree(&[
        "mkdir a opq over; echo 0 >a/0; mknod a/gone c 0 0; mknod whole c 0 0; echo file >dir
         setfattr -n trusted.overlay.opaque -v y opq; echo new >opq/new; echo x >over/x; chmod 700 a; chown 5:6 a",
        "mkdir a opq dir mid; echo 1 >a/1; echo 1 >a/gone; echo 1 >opq/1; echo in >dir/in; echo file >over; mknod mid/m c 0 0
         mkdir whole; echo w >whole/w",
        "mkdir -p a whole/deep dir over opq mid; echo 2 >a/2; echo 2 >a/gone; echo 2 >opq/2; echo y >over/y; echo m >mid/m
         echo z >mid/z; echo in2 >dir/in2; echo v >whole/v",
    ]);
}

#[test]
fn a_file_between_two_directories_hides_the_lower_one() {
    agree(&[
        "mkdir d; echo top >d/top",
        "echo file >d; echo f >g",
        "mkdir d; echo hidden >d/hidden; mkdir g",
    ]);
}

#[test]
fn redirects_absolute_relative_and_through_several_layers() {
    agree(&[
        "mkdir new rel far; setfattr -n trusted.overlay.redirect -v /old new; setfattr -n trusted.overlay.redirect -v was rel
         mknod old c 0 0; mknod was c 0 0; echo 0 >new/0
         mkdir far/er; setfattr -n trusted.overlay.redirect -v /x/y far/er; echo far >far/er/0
         mkdir last; setfattr -n trusted.overlay.redirect -v /nowhere/at/all last; echo l >last/l",
        "mkdir old was; setfattr -n trusted.overlay.redirect -v /older old; echo 1 >old/1; echo 1 >was/1; mkdir -p x/y; echo 1 >x/y/1
         mkdir mv; setfattr -n trusted.overlay.redirect -v /x mv; mknod older c 0 0",
        "mkdir -p older was x/y old; echo 2 >older/2; echo 2 >was/2; echo 2 >x/y/2; echo no >old/no; mkdir last; echo no >last/no",
    ]);
}

#[test]
fn files_whose_content_lies_in_a_lower_layer() {
    agree(&[
        "truncate -s 5 meta; chmod 600 meta; chown 3:4 meta; setfattr -n trusted.overlay.metacopy meta; setfattr -n user.own -v 1 meta
         truncate -s 6 moved; setfattr -n trusted.overlay.metacopy moved; setfattr -n trusted.overlay.redirect -v /d/data moved
         truncate -s 5 near; setfattr -n trusted.overlay.metacopy near; setfattr -n trusted.overlay.redirect -v meta near",
        "truncate -s 5 meta; chmod 640 meta; setfattr -n trusted.overlay.metacopy meta",
        "echo data >meta; mkdir d; echo moved >d/data; setfattr -n user.own -v below meta",
    ]);
}

#[test]
fn whiteouts_that_are_empty_files_with_an_attribute() {
    agree(&[
        "mkdir d; setfattr -n trusted.overlay.opaque -v x d; touch d/gone d/here; setfattr -n trusted.overlay.whiteout d/gone
         mkdir e; touch e/not; echo f >e/f",
        "mkdir d e; echo 1 >d/gone; echo 1 >d/here; echo 1 >d/other; echo 1 >e/not",
    ]);
}

#[test]
fn links_devices_attributes_and_escaped_marks() {
    agree(&[
        "echo one >one; ln one two; mkdir d; ln one d/three; mknod null c 1 3; mknod disk b 8 0; mkfifo pipe; ln -s one sym
         setfattr -n user.a -v b one; setfattr -h -n trusted.t -v u sym; setfacl -m u:7:r d; setfacl -d -m u:8:rx d
         setfattr -n trusted.overlay.overlay.opaque -v y d; chmod 4755 one; chmod 1777 d",
        "echo other >other; ln other two; mkdir d; setfattr -n user.hidden -v below d; echo four >d/four; ln d/four d/five",
    ]);
}

/// Applies `script` through one, looks, and looks through the other.
#[track_caller]
fn turn(l: &Layers, script: &'static str, by_kernel: bool) -> Seen {
    let act = move |mnt: &Path| {
        sh(mnt, script).ok();
        look(mnt)
    };
    let kernel = format!("{},{FOLLOW}", l.all());
    let (who, first, second) = if by_kernel {
        ("what the kernel wrote", l.kernel(&kernel, act), l.mounted(&l.all(), look))
    } else {
        ("what Reroot wrote", l.mounted(&l.all(), act), l.kernel(&kernel, look))
    };
    assert_same(who, &first, &second);
    first
}

/// The base of all changes, spread over two layers that merge in each directory.
fn spread() -> Layers {
    let l = Layers::new(&["mkdir -p usr/share/data var; echo top >usr/share/data/top; echo v >var/top", ":"]);
    changes::base(&l.at("l1"));
    l
}

#[test]
fn what_reroot_writes_the_kernel_shows_the_same() {
    let l = spread();
    turn(&l, CHANGES, false);
}

#[test]
fn what_the_kernel_writes_reroot_shows_the_same() {
    let l = spread();
    turn(&l, CHANGES, true);
}

const MORE: &str = "
    echo kernel >>usr/share/moved/deep/x; mv usr/share/moved usr/share/again; rm -r home/alice/docs
    mv home/alice/old/swap usr/share/back; mkdir home/alice/docs; echo d >home/alice/docs/d; chmod 640 etc/shadow
    rm usr/share/data/two; ln home/alice/sub/y home/alice/yy; mv usr/lib usr/lib2; chown -R 9:9 usr/lib2; mv opt/app2 opt/app/in
    mv usr/share/back usr/share/again/in; touch -d '2005-05-05' usr/share/again usr/lib2 opt/app";

#[test]
fn they_take_turns_on_one_upper_directory() {
    let l = spread();
    turn(&l, CHANGES, true);
    let before = turn(&l, MORE, false);
    let after = turn(&l, "echo last >last; mv usr/lib2 usr/lib; rm -r usr/share/again; rm etc/shadow", true);
    assert!(before.listing.len() > after.listing.len());
    turn(&l, "mkdir usr/share/again; echo a >usr/share/again/a; mv usr/lib last2; chmod -R go-w .", false);
}

#[test]
fn files_that_came_up_without_their_content_are_the_kernels_too() {
    let l = spread();
    let list = format!("{},metacopy=on", l.all());
    let script = "chmod 600 usr/share/data/big; mv usr/share/data/plain usr/p; chown 9:9 usr/p; mv usr/share/data usr/data
                  chmod 640 usr/data/attr; ln usr/data/big usr/big";
    let ours = l.mounted(&list, move |mnt| {
        sh(mnt, script).ok();
        look(mnt)
    });
    let blocks = sh(&l.at("u"), "stat -c %b usr/data/big").ok().out();
    // Its attributes may take a block of their own.
    assert!(blocks.trim().parse::<u64>().unwrap() < 64, "the content was copied: {blocks}");
    let theirs = l.kernel(&format!("{},{FOLLOW}", l.all()), look);
    assert_same("metacopy", &ours, &theirs);
    assert_same("after mounting again", &ours, &l.mounted(&l.all(), look));
    // Writing completes them.
    let ours = l.mounted(&l.all(), |mnt| {
        sh(mnt, "echo more >>usr/data/big; echo more >>usr/p").ok();
        look(mnt)
    });
    assert_same("completed", &ours, &l.kernel(&format!("{},{FOLLOW}", l.all()), look));
}

#[test]
fn marks_of_ordinary_users_are_read_and_written_on_request() {
    let l = Layers::new(&[
        "mkdir d; setfattr -n user.overlay.opaque -v y d; echo 0 >d/0; mkdir t; setfattr -n trusted.overlay.opaque -v y t",
        "mkdir d t; echo 1 >d/1; echo 1 >t/1; echo f >f",
    ]);
    let list = format!("{},userxattr", l.all());
    let theirs = l.kernel(&format!("{},userxattr", l.lowerdir()), look);
    assert_same("userxattr", &theirs, &l.mounted(&format!("{},userxattr", l.lowerdir()), look));
    assert_eq!(l.seen(&list, "rm -r d; mkdir d; ls d t; rm f"), "t:\n1\n".replace("t:", "d:\n\nt:"));
    let marks = sh(&l.at("u"), "getfattr -m - -d d; stat -c %F f").ok().out();
    assert!(marks.contains("user.overlay.opaque=\"y\"") && !marks.contains("trusted."), "{marks}");
}

#[test]
fn an_upper_directory_is_a_layer_of_the_next_mount() {
    let mut l = spread();
    turn(&l, CHANGES, false);
    let rounds = [
        (MORE, "echo again >again; chmod 700 usr; mv usr/share usr/s"),
        (
            "mv usr/s/again usr/moved; rm -r home; mkdir home; echo h >home/h",
            "chmod 755 usr home; mv usr/s usr/t; mv usr/t/data usr/moved/data; rm -r usr/moved/in; echo x >>etc/passwd",
        ),
    ];
    for (i, (first, second)) in rounds.into_iter().enumerate() {
        // What was written becomes the topmost layer, and something new is written over it.
        let name = format!("was{i}");
        std::fs::rename(l.at("u"), l.at(&name)).unwrap();
        l.lower.insert(0, name);
        l.scratch.dir("u");
        sh(l.scratch.path(), "rm -rf w; mkdir w").ok();
        assert_same(
            "before anything is written",
            &l.kernel(&format!("{},{FOLLOW}", l.lowerdir()), look),
            &l.mounted(&l.lowerdir(), look),
        );
        turn(&l, first, i == 1);
        turn(&l, second, i == 0);
    }
}
