//! A commit: what the user layer changed becomes the next version, exactly, and nothing else does.

mod common;

use std::collections::BTreeMap;

use common::changes::{CHANGES, assert_same, base, look};
use common::tree;
use common::{Program, Scratch, sh};

/// `os:1` and a desktop on it, `builder`.
fn builder(scratch: &Scratch) -> Program {
    common::require_root();
    let program = Program::new(scratch);
    tree::import(scratch, &program, "os:1", None, base);
    program.ok(&["create", "builder", "os:1"]);
    program
}

/// The lines of `diff` or `changes` as path and letter.
fn letters(text: &str) -> BTreeMap<String, String> {
    let line =
        |l: &str| l.split_once(' ').map(|(a, b)| (b.trim_start_matches('/').to_string(), a.to_string()));
    text.lines().filter_map(line).collect()
}

#[test]
fn a_new_desktop_on_the_committed_version_shows_what_the_old_one_showed() {
    let scratch = Scratch::new();
    let program = builder(&scratch);
    let mount = program.mount("builder", scratch.mnt());
    mount.sh(CHANGES);
    let worked = look(mount.path());
    mount.umount();
    let changed = letters(&program.ok(&["changes", "builder"]).out());
    let made = program.json(&["commit", "builder", "os:2", "-m", "second"]);
    assert!(made["paths"].as_u64().is_some_and(|n| n > 20), "{made}");
    assert_eq!((made["image"].as_str(), made["tag"].as_str()), (Some("os"), Some("2")), "{made}");
    assert_eq!(letters(&program.ok(&["diff", "os:1", "os:2"]).out()), changed, "diff says what changes said");

    program.ok(&["create", "fresh", "os:2"]);
    let fresh = program.mount("fresh", scratch.mnt());
    assert_same("a new desktop on the new version", &worked, &look(fresh.path()));
    // The old desktop still runs on the old version, and shows the same.
    let old = program.mount("builder", scratch.dir("mnt2"));
    assert_same("the old desktop after the commit", &worked, &look(old.path()));
    old.umount();
    fresh.umount();
    assert_eq!(program.json(&["status", "builder"])["tag"], "1");
    // What was rewritten to disk as one layer is the same too, and one in the archive.
    program.ok(&["squash", "os:2", "flat"]);
    let flat = program.inspect("os:flat", scratch.mnt());
    assert_same("squashed", &worked, &look(flat.path()));
    flat.umount();
    program.ok(&["fsck", "--deep"]);
}

#[test]
fn a_second_commit_holds_only_what_came_after_the_first() {
    let scratch = Scratch::new();
    let program = builder(&scratch);
    let mount = program.mount("builder", scratch.mnt());
    mount.sh(CHANGES);
    mount.umount();
    program.ok(&["commit", "builder", "os:2", "--reset"]);
    let mount = program.mount("builder", scratch.mnt());
    // On top of moved directories, opaque ones and hard links of the first delta.
    mount.sh(
        "mv usr/share/moved usr/share/tree; rm usr/share/data/three; echo z >>usr/share/data/two
         rm -r var/cache; mkdir var/cache; mv opt/app2 opt/app3; rm home/alice/second; touch home/alice/sub/new",
    );
    let worked = look(mount.path());
    mount.umount();
    let made = program.json(&["commit", "builder", "os:3"]);
    program.ok(&["create", "fresh", "os:3"]);
    let fresh = program.mount("fresh", scratch.mnt());
    assert_same("the third version", &worked, &look(fresh.path()));
    fresh.umount();
    let diff = letters(&program.ok(&["diff", "os:2", "os:3"]).out());
    assert!(!diff.contains_key("etc/hostname") && !diff.contains_key("usr/lib/libsmall.so.1"), "{diff:?}");
    assert!(
        diff.contains_key("usr/share/tree/deep/x") && diff.contains_key("opt/app3/lib/1"),
        "{diff:?} {made}"
    );
    program.ok(&["fsck", "--deep"]);
}

#[test]
fn a_reset_empties_the_user_layer_and_changes_nothing_in_the_view() {
    let scratch = Scratch::new();
    let program = builder(&scratch);
    let user = scratch.store().join("desktops/builder/user");
    let mount = program.mount("builder", scratch.mnt());
    mount.sh(CHANGES);
    let worked = look(mount.path());
    let refused = program.run(&["commit", "builder", "os:2", "--reset"]).expect_code(1);
    assert!(refused.err().contains("umount"), "{}", refused.err());
    assert!(!program.ok(&["images"]).out().contains("os:2"), "nothing was committed");
    mount.umount();
    let made = program.json(&["commit", "builder", "os:2", "--reset"]);
    assert!(made["reset"].as_u64().is_some_and(|n| n > 0), "{made}");
    assert_eq!(std::fs::read_dir(&user).unwrap().count(), 0, "the user layer is empty");
    let status = program.json(&["status", "builder"]);
    assert_eq!(
        (status["tag"].as_str(), status["version"].as_str()),
        (Some("2"), made["version"].as_str()),
        "{status}"
    );
    assert_eq!(status["previous"]["tag"], "1", "{status}");
    assert_eq!(program.ok(&["changes", "builder"]).out(), "");
    let mount = program.mount("builder", scratch.mnt());
    assert_same("after the reset", &worked, &look(mount.path()));
    // A rollback takes the whole change back, since it is the version's now.
    program.ok(&["rollback", "builder"]);
    assert_same("os:1", &look(&scratch.join("src-os-1")), &look(mount.path()));
    program.ok(&["upgrade", "builder", "--to", "os:2"]);
    assert_same("os:2 again", &worked, &look(mount.path()));
    mount.umount();
    program.run(&["commit", "builder", "os:3"]).expect_code(3);
    program.ok(&["fsck", "--deep"]);
}

#[test]
fn only_what_the_patterns_take_is_committed() {
    let scratch = Scratch::new();
    let program = builder(&scratch);
    let mount = program.mount("builder", scratch.mnt());
    mount.sh(CHANGES);
    let worked = look(mount.path());
    mount.umount();
    program.ok(&[
        "commit",
        "builder",
        "os:2",
        "--only",
        "etc/**",
        "--only",
        "/usr/share/d*/*",
        "--only",
        "home/alice/docs",
    ]);
    let diff = letters(&program.ok(&["diff", "os:1", "os:2"]).out());
    let all = letters(&program.ok(&["changes", "builder"]).out());
    let taken =
        |p: &str| p.starts_with("etc/") || p.starts_with("usr/share/d") || p.starts_with("home/alice/docs");
    for (path, letter) in &diff {
        let way = path == "home" || path == "home/alice";
        assert!(way || taken(path), "{letter} {path} was not to be taken");
        assert!(way || all.get(path) == Some(letter), "{letter} {path} {:?}", all.get(path));
    }
    for (path, letter) in &all {
        let below =
            path.starts_with("etc/") || path.matches('/').count() == 3 && path.starts_with("usr/share/data/");
        assert!(!below || diff.get(path) == Some(letter), "{letter} {path} was to be taken: {diff:?}");
    }
    assert_eq!(diff.get("home/alice/docs/new").map(String::as_str), Some("A"), "{diff:?}");

    // With --reset what was taken goes out of the user layer, the rest stays, and the view stays as it was.
    program.ok(&["commit", "builder", "os:3", "--only", "etc", "--only", "usr/share/moved", "--reset"]);
    let user = scratch.store().join("desktops/builder/user");
    assert!(!user.join("etc/hostname").exists() && user.join("home/alice/docs/new").exists());
    let mount = program.mount("builder", scratch.mnt());
    assert_same("after a part was committed and reset", &worked, &look(mount.path()));
    mount.umount();
    let rest = letters(&program.ok(&["changes", "builder"]).out());
    assert!(!rest.keys().any(|p| p.starts_with("etc/")), "{rest:?}");
    program.run(&["commit", "builder", "os:4", "--only", "nothing/like/*"]).expect_code(3);
    program.run(&["commit", "builder", "os:4", "--only", "/"]).expect_code(2);
    program.ok(&["fsck", "--deep"]);
}

#[test]
fn a_mounted_desktop_is_committed_as_it_is_at_that_moment() {
    let scratch = Scratch::new();
    let program = builder(&scratch);
    let mount = program.mount("builder", scratch.mnt());
    mount.sh(CHANGES);
    // Open for writing, not closed, not synced.
    let held = common::within(common::program::LIMIT, "writing", {
        let path = mount.join("home/held");
        move || {
            use std::io::Write;
            let mut file = std::fs::File::create(path).unwrap();
            file.write_all(b"written and not closed\n").unwrap();
            file
        }
    });
    let worked = look(mount.path());
    program.ok(&["commit", "builder", "os:2"]);
    drop(held);
    assert_same("the mounted desktop", &worked, &look(mount.path()));
    let other = program.inspect("os:2", scratch.dir("mnt2"));
    assert_same("the committed version", &worked, &look(other.path()));
    other.umount();
    mount.sh("echo still writable >home/after");
    mount.umount();
    program.ok(&["fsck", "--deep"]);
}

#[test]
fn nothing_to_commit_ends_with_3_and_makes_nothing() {
    let scratch = Scratch::new();
    let program = builder(&scratch);
    let before = sh(&scratch.store(), "find versions layers trees refs objects | sort").ok().out();
    program.run(&["commit", "builder", "os:2"]).expect_code(3);
    let mount = program.mount("builder", scratch.mnt());
    mount.sh("touch home/x; rm home/x; mkdir home/d; rmdir home/d; mv etc/passwd etc/p; mv etc/p etc/passwd");
    // Their directories were touched; those times are put back, so that nothing differs.
    mount.sh("touch -d '2020-02-02 02:02:02.123456789' home etc");
    mount.umount();
    let answer = program.run(&["--json", "commit", "builder", "os:2"]).expect_code(3);
    assert_eq!(answer.json()["error"]["kind"], "nothing", "{}", answer.out());
    assert_eq!(sh(&scratch.store(), "find versions layers trees refs objects | sort").ok().out(), before);
    program.run(&["commit", "nobody", "os:2"]).expect_code(1);
    program.run(&["commit", "builder", "os@sha384:0123456789ab"]).expect_code(2);
}
