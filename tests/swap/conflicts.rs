//! Where the user layer and a swap meet: each case of the report, and what the view shows afterwards.

use super::common::{self, tree, tree::Item};
use super::{Desk, cases, ino, timed};

#[test]
fn each_case_is_reported_and_the_users_side_stays() {
    let desk = Desk::new(
        &[
            ("d/shadow", Item::File(b"1")),
            ("d/equal", Item::File(b"1")),
            ("d/untouched", Item::File(b"1")),
            ("opaque/f", Item::File(b"1")),
            ("moved/f", Item::File(b"1")),
            ("gone/f", Item::File(b"1")),
            ("turns", Item::File(b"1")),
            ("dir/f", Item::File(b"1")),
        ],
        &["printf 2 >d/shadow; printf 2 >d/equal; printf 2 >d/untouched; printf 2 >d/new; printf 2 >d/fresh
           printf 2 >opaque/new; printf 2 >opaque/f; printf 2 >moved/new; rm -r gone; rm turns; mkdir turns; printf 2 >turns/in
           rm -r dir; printf 2 >dir; mkdir -p made; printf 2 >made/in; printf 2 >blocked; mkdir over; printf 2 >over/in"],
    );
    let mount = desk.mount();
    mount.sh("printf mine >d/shadow; printf 2 >d/equal; printf mine >d/new; rm d/new
              rm -r opaque; mkdir opaque; printf mine >opaque/own; mv moved elsewhere; mv gone kept
              printf mine >turns; printf mine >dir/own; mkdir made; printf mine >made/own; mkdir blocked; printf mine >over");
    let report = desk.program.swap(&["upgrade", "pc", "--to", "os:2", "--dry-run"]);
    let live = desk.to("2");
    assert_eq!(cases(&report), cases(&live), "a dry run says what the swap says");
    assert_eq!(
        cases(&live),
        [
            "blocked directory-over-file",
            "d/equal equal-to-target",
            "d/shadow shadows-changed",
            "dir directory-over-file",
            "gone renamed-source-gone",
            "moved/new hides-new",
            "opaque/f opaque-hides-new",
            "opaque/new opaque-hides-new",
            "over file-over-directory",
            "turns file-over-directory",
        ]
    );
    for conflict in live["conflicts"].as_array().unwrap() {
        assert!(conflict["explanation"].as_str().unwrap().len() > 20, "{conflict}");
    }
    let after = "mine2222mine1mine1mine2minemine";
    let look = "cat d/shadow d/equal d/untouched d/new d/fresh opaque/own elsewhere/f dir/own kept/f made/own made/in over turns;
        ls opaque blocked elsewhere kept | tr '\\n' ' '; ls -d moved gone 2>/dev/null || true";
    let names = "blocked:  elsewhere: f  kept: f  opaque: own ";
    // `d/new` was made and deleted on a version without it: nothing stands in the way of the target's.
    assert_eq!(mount.sh(look), format!("{after}{names}"));
    let before = tree::listing(mount.path());
    mount.umount();
    let mount = desk.mount();
    tree::assert_same("the same after a remount", &before, &tree::listing(mount.path()));
    desk.to("1");
    assert_eq!(
        mount
            .sh("cat d/shadow d/equal d/untouched dir/f dir/own turns; ls -d moved gone 2>/dev/null || true"),
        "mine211minemine"
    );
    mount.umount();
    desk.program.ok(&["fsck", "--deep"]);
}

#[test]
fn a_whiteout_hides_what_the_target_newly_ships_there() {
    let desk = Desk::new(
        &[("d/f", Item::File(b"1")), ("d/g", Item::File(b"1")), ("e/sub/f", Item::File(b"1"))],
        &["rm d/f e/sub/f; rmdir e/sub", "printf 3 >d/f; mkdir e/sub; printf 3 >e/sub/f; printf 3 >e/new"],
    );
    let mount = desk.mount();
    mount.sh("rm d/f; rm -r e");
    assert_eq!(cases(&desk.to("2")), Vec::<String>::new());
    assert_eq!(cases(&desk.to("3")), ["d/f hides-new", "e/new hides-new", "e/sub hides-new"]);
    assert_eq!(mount.sh("ls; ls d"), "d\ng");
    assert_eq!(cases(&desk.to("1")), Vec::<String>::new());
    assert_eq!(mount.sh("ls; ls d"), "d\ng");
}

#[test]
fn attributes_that_the_user_changed_stay_and_everything_else_follows_the_target() {
    let desk = Desk::new(
        &[
            ("mode", Item::File(b"1")),
            ("owner", Item::File(b"1")),
            ("times", Item::File(b"1")),
            ("attr", Item::File(b"1")),
            ("dir/f", Item::File(b"1")),
            ("link", Item::Link("one")),
        ],
        &["for f in mode owner times attr; do printf two >$f; chmod 755 $f; touch -d 2020-02-02 $f; setfattr -n user.s -v s $f; done
           chmod 711 dir; printf 2 >dir/g; chown 7:8 dir"],
    );
    let mount = desk.mount();
    mount.sh("chmod 600 mode; chown 5:6 owner; touch -h -d 2010-10-10 times; setfattr -n user.mine -v m attr; chmod 750 dir; chown -h 3:4 link");
    let user_layer_bytes = desk.program.json(&["status", "pc"])["user_layer_bytes"].as_u64().unwrap();
    assert!(user_layer_bytes < 100_000, "no content was copied: {user_layer_bytes}");
    for round in 0..2 {
        assert_eq!(cases(&desk.to("2")), Vec::<String>::new());
        let seen = mount.sh(
            "for f in mode owner times attr; do cat $f; stat -c ' %a %u:%g %s %y' $f | cut -d. -f1; done
             getfattr --absolute-names --only-values -n user.s mode; getfattr --absolute-names --only-values -n user.mine attr; getfattr --absolute-names --only-values -n user.s attr
             echo; stat -c '%a %u:%g' dir link; ls dir",
        );
        let want = "two 600 0:0 3 2020-02-02 00:00:00\ntwo 755 5:6 3 2020-02-02 00:00:00\ntwo 755 0:0 3 2010-10-10 00:00:00\n\
                    two 755 0:0 3 2020-02-02 00:00:00\nsms\n750 7:8\n777 3:4\nf\ng";
        assert_eq!(seen, want, "round {round}");
        desk.to("1");
        let seen = mount.sh("for f in mode owner times attr; do cat $f; stat -c ' %a %u:%g %s' $f; done; stat -c '%a %u:%g' dir");
        assert_eq!(seen, "1 600 0:0 1\n1 644 5:6 1\n1 644 0:0 1\n1 644 0:0 1\n750 0:0");
    }
}

#[test]
fn setuid_and_security_attributes_pin_the_content() {
    let desk = Desk::new(
        &[
            ("suid", Item::Mode(b"one", 0o755)),
            ("caps", Item::Mode(b"one", 0o755)),
            ("sgid", Item::Mode(b"one", 0o755)),
        ],
        &["printf two >suid; printf two >caps; printf two >sgid"],
    );
    let mount = desk.mount();
    mount.sh("chmod u+s suid; chmod g+s sgid; setfattr -n security.probe -v x caps");
    assert_eq!(
        cases(&desk.to("2")),
        ["caps shadows-changed", "sgid shadows-changed", "suid shadows-changed"]
    );
    assert_eq!(mount.sh("cat suid caps sgid; stat -c %a suid sgid"), "oneoneone4755\n2755");
    mount.umount();
    let mount = desk.mount();
    assert_eq!(mount.sh("cat suid caps sgid; stat -c %a suid sgid"), "oneoneone4755\n2755");
}

#[test]
fn what_the_user_moved_or_linked_keeps_its_content() {
    let desk = Desk::new(
        &[
            ("f", Item::File(b"one")),
            ("g", Item::File(b"one")),
            ("d/sub/x", Item::File(b"one")),
            ("d/y", Item::File(b"one")),
            ("d/link", Item::Link("y")),
        ],
        &[
            "printf two >f; printf two >g; printf two >d/sub/x; rm d/y d/link; printf two >d/new",
            "rm -r f g d",
        ],
    );
    let mount = desk.mount();
    mount.sh("mv f moved; ln g second; mv d m; printf mine >m/own; chmod 600 m/sub/x");
    let look = "cat moved g second m/sub/x m/y m/own; stat -c %h g; stat -c %a m/sub/x; readlink m/link; ls m | tr '\\n' ' '; ls f d 2>/dev/null || true";
    let want = "oneoneoneoneonemine2\n600\ny\nlink own sub y ";
    assert_eq!(mount.sh(look), want);
    let numbers = || ["moved", "g", "second", "m", "m/sub/x", "m/y"].map(|n| ino(&mount.join(n)));
    let before = numbers();
    for tag in ["2", "3", "1", "3", "2", "1"] {
        desk.to(tag);
        assert_eq!(mount.sh(look), want, "on {tag}");
        assert_eq!(numbers(), before, "on {tag}");
    }
    // Pinned is not frozen: it can be written.
    desk.to("2");
    mount.sh(
        "printf more >>moved; printf more >>m/y; printf more >>second; mkdir m/sub/z; mv m/sub/x m/sub/z/x",
    );
    let look = "cat moved g second m/y m/sub/z/x; stat -c %h g";
    let want = "onemoreonemoreonemoreonemoreone2";
    assert_eq!(mount.sh(look), want);
    mount.umount();
    // The versions themselves may go: the ledger of pins keeps what is needed.
    let mount = desk.mount();
    desk.to("3");
    for tag in ["1", "2"] {
        desk.program.ok(&["untag", &format!("os:{tag}")]);
    }
    desk.program.ok(&["gc"]);
    assert_eq!(mount.sh(look), want);
}

#[test]
fn a_hard_link_group_that_an_upgrade_splits_leaves_the_other_names_to_the_target() {
    let desk = Desk::new(
        &[
            ("a", Item::File(b"one")),
            ("b", Item::Same("a")),
            ("c", Item::Same("a")),
            ("p", Item::File(b"pone")),
            ("q", Item::Same("p")),
            ("x", Item::File(b"x")),
            ("y", Item::File(b"y")),
        ],
        &["rm b; printf two >b; rm q; printf qtwo >q; rm y; ln x y"],
    );
    let mount = desk.mount();
    // One group only has changed attributes; of the other nothing was touched.
    mount.sh("chmod 600 a; stat -c %h a b c p >/dev/null");
    assert_eq!(mount.sh("stat -c '%h %a' a b c"), "3 600\n3 600\n3 600");
    desk.to("2");
    assert_eq!(mount.sh("cat a b c p q x y"), "onetwoonepone qtwoxx".replace(' ', ""));
    assert_eq!(ino(&mount.join("a")), ino(&mount.join("c")));
    assert_ne!(ino(&mount.join("a")), ino(&mount.join("b")));
    // A write to one of what is split does not reach the other.
    mount.sh("printf more >>a; printf more >>p; printf more >>x");
    let want = "onemoretwoonemorepmoreqtwoxmorexmore".replace("pmore", "ponemore");
    assert_eq!(mount.sh("cat a b c p q x y"), want);
    assert_eq!(mount.sh("stat -c %h a c p q x y"), "2\n2\n1\n1\n2\n2");
    let before = tree::listing(mount.path());
    mount.umount();
    let mount = desk.mount();
    tree::assert_same("after a remount", &before, &tree::listing(mount.path()));
    desk.to("1");
    assert_eq!(mount.sh("cat a c p x y; cat b q"), "onemoreonemoreponemorexmorexmoreonepone");
    mount.sh("printf b >b; printf q >>q");
    assert_eq!(mount.sh("cat a c p; cat b q"), "onemoreonemoreponemorebponeq");
}

#[test]
fn what_the_user_has_in_a_directory_that_the_target_removes_stays() {
    let desk = Desk::new(
        &[("d/sub/f", Item::File(b"1")), ("d/g", Item::File(b"1")), ("d/mode", Item::File(b"1"))],
        &["rm -r d"],
    );
    let mount = desk.mount();
    mount.sh("printf mine >d/sub/own; chmod 700 d; chmod 600 d/mode");
    desk.to("2");
    assert_eq!(
        mount.sh("find . | sort; cat d/sub/own; stat -c %a d"),
        ".\n./d\n./d/sub\n./d/sub/own\nmine700"
    );
    mount.sh("printf more >>d/sub/own; mkdir d/made");
    desk.to("1");
    // The attribute that was changed waited for its file.
    assert_eq!(
        mount.sh("cat d/sub/own d/sub/f d/g d/mode; stat -c %a d/mode d; ls d"),
        "minemore111600\n700\ng\nmade\nmode\nsub"
    );
}

#[test]
fn a_directory_that_the_user_made_merges_with_one_that_the_target_ships() {
    let desk = Desk::new(
        &[("keep", Item::File(b"k"))],
        &["mkdir -p d/sub; printf t >d/file; printf t >d/sub/deep; printf t >d/both; chmod 711 d"],
    );
    let mount = desk.mount();
    mount.sh("mkdir d d/sub; printf mine >d/own; printf mine >d/both; for n in file sub/deep; do ! test -e d/$n; done");
    let number = ino(&mount.join("d"));
    for round in 0..3 {
        assert_eq!(cases(&desk.to("2")), ["d/both shadows-changed"], "round {round}");
        assert_eq!(
            mount.sh("cat d/own d/file d/sub/deep d/both; ls d; stat -c %h d"),
            "minettmineboth\nfile\nown\nsub\n3"
        );
        assert_eq!(ino(&mount.join("d")), number);
        desk.to("1");
        assert_eq!(
            mount.sh("cat d/own d/both; ls d; for n in file sub/deep; do ! test -e d/$n; done"),
            "minemineboth\nown\nsub"
        );
    }
    desk.to("2");
    mount.sh("rm d/file; printf more >>d/sub/deep");
    mount.umount();
    let mount = desk.mount();
    assert_eq!(mount.sh("ls d; cat d/sub/deep"), "both\nown\nsub\ntmore");
}

#[test]
fn what_the_user_moved_where_the_stack_had_lost_it_does_not_meet_its_old_self_after_a_rollback() {
    let desk = Desk::new(
        &[("d/f", Item::File(b"one")), ("f", Item::File(b"one")), ("keep", Item::File(b"k"))],
        &["rm -r d f"],
    );
    for remount in [false, true] {
        let mut mount = desk.mount();
        mount.sh("printf mine >d/own; printf mine >f");
        desk.to("2");
        mount.sh("mv d e; mv f g; printf mine2 >>e/own");
        desk.to("1");
        if remount {
            mount.umount();
            mount = desk.mount();
        }
        // The stack's are back at their names, and the user's are where they were moved to.
        assert_eq!(
            mount.sh("ls; ls d e; cat d/f f e/own g"),
            "d\ne\nf\ng\nkeep\nd:\nf\n\ne:\nown\noneoneminemine2mine"
        );
        let number = |n: &str| ino(&mount.join(n));
        assert_ne!(number("d"), number("e"));
        assert_ne!(number("f"), number("g"));
        mount.sh("printf x >>f; printf x >d/new");
        assert_eq!(mount.sh("cat f g; ls d e"), "onexmined:\nf\nnew\n\ne:\nown");
        desk.to("2");
        assert_eq!(mount.sh("cat f g; ls d e"), "onexmined:\nnew\n\ne:\nown");
        desk.to("1");
        assert_eq!(mount.sh("cat f g; ls d e; rm -r d e f g; ls"), "onexmined:\nf\nnew\n\ne:\nown\nkeep");
        mount.umount();
        desk.program.ok(&["rm", "pc"]);
        desk.program.ok(&["create", "pc", "os:1"]);
    }
}

#[test]
fn a_change_through_an_old_handle_never_reaches_the_new_file() {
    let desk = Desk::new(
        &[("f", Item::File(b"one")), ("g", Item::File(b"one")), ("h", Item::File(b"one"))],
        &["printf two >f; printf two >g; rm h"],
    );
    let mount = desk.mount();
    mount.sh("chmod 640 g");
    let point = mount.path().to_path_buf();
    let held = timed(move || ["f", "g", "h"].map(|n| std::fs::File::open(point.join(n)).unwrap()));
    desk.to("2");
    timed(move || {
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::PermissionsExt;
        for file in &held {
            let _ = file.set_permissions(PermissionsExt::from_mode(0o777));
            let _ =
                std::fs::OpenOptions::new().append(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        }
        drop(held);
    });
    assert_eq!(mount.sh("cat f g; stat -c %a f g; ls"), "twotwo644\n640\nf\ng");
    mount.sh("printf more >>f; printf more >>g");
    assert_eq!(mount.sh("cat f g"), "twomoretwomore");
    common::within(common::program::LIMIT, "umount", move || mount.umount());
}

/// The user's directory and the stack's, which is back at its old place, are two, whoever is looked at first.
#[test]
fn beneath_what_the_user_moved_nothing_is_shared_with_what_a_rollback_brings_back() {
    let desk = Desk::new(
        &[
            ("opt/foo/data/f", Item::File(b"one")),
            ("opt/foo/data/sub/deep", Item::File(b"one")),
            ("opt/keep", Item::File(b"k")),
            ("srv/keep", Item::File(b"k")),
        ],
        &["rm -r opt/foo"],
    );
    for (remount, first) in [(false, "opt"), (true, "opt"), (true, "srv")] {
        let mut mount = desk.mount();
        mount.sh("mv opt/foo/data srv/data; cat srv/data/f srv/data/sub/deep");
        let number = |mount: &common::Mount, n: &str| ino(&mount.join(n));
        let before = number(&mount, "srv/data/f");
        desk.to("2");
        // With the directory goes the mark that something was moved away from it.
        mount.sh("rmdir opt/foo");
        desk.to("1");
        if remount {
            mount.umount();
            mount = desk.mount();
        }
        mount.sh(&format!("find {first} -ls"));
        assert_eq!(
            mount.sh("cat opt/foo/data/f opt/foo/data/sub/deep srv/data/f srv/data/sub/deep"),
            "oneoneoneone"
        );
        assert_eq!(number(&mount, "srv/data/f"), before);
        for name in ["data", "data/f", "data/sub", "data/sub/deep"] {
            let (theirs, own) =
                (number(&mount, &format!("opt/foo/{name}")), number(&mount, &format!("srv/{name}")));
            assert_ne!(theirs, own, "{name}");
        }
        let numbers = mount.sh("stat -c %i opt/foo/data opt/foo/data/f opt/foo/data/sub/deep");
        assert_eq!(mount.sh("stat -c %h srv/data/f opt/foo/data/f"), "1\n1");
        mount.sh(
            "printf hers >srv/data/f; chmod 600 opt/foo/data/sub/deep; printf theirs >opt/foo/data/sub/deep",
        );
        let all = "cat opt/foo/data/f opt/foo/data/sub/deep srv/data/f srv/data/sub/deep; stat -c %a srv/data/sub/deep";
        assert_eq!(mount.sh(all), "onetheirshersone644");
        assert_eq!(mount.sh("stat -c %i opt/foo/data opt/foo/data/f opt/foo/data/sub/deep"), numbers);
        // Moved away as well, they stay two.
        mount.sh("mv opt/foo/data srv/second; printf more >>srv/second/f");
        assert_eq!(mount.sh("cat srv/second/f srv/data/f"), "onemorehers");
        assert_eq!(mount.sh("stat -c %i srv/second srv/second/f srv/second/sub/deep"), numbers);
        mount.umount();
        let mount = desk.mount();
        assert_eq!(
            mount.sh("stat -c %i srv/second srv/second/f srv/second/sub/deep; cat srv/data/f"),
            format!("{numbers}\nhers")
        );
        mount.umount();
        desk.program.ok(&["rm", "pc"]);
        desk.program.ok(&["create", "pc", "os:1"]);
    }
}

#[test]
fn what_was_removed_twice_is_forgotten_where_the_version_has_nothing_there() {
    let desk = Desk::new(&[("f", Item::File(b"one")), ("g", Item::File(b"one"))], &["rm f"]);
    let mount = desk.mount();
    mount.sh("rm f g");
    for (version, shown) in [("2", ""), ("1", "")] {
        desk.to(version);
        assert_eq!(mount.sh("ls"), shown);
    }
    desk.to("2");
    // The second version has `g` and not `f`.
    mount.sh("echo own >f; rm f; echo own >g; rm g");
    desk.to("1");
    assert_eq!(mount.sh("ls; cat f"), "f\none");
}
