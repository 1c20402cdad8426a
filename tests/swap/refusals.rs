//! What is refused, and that nothing has changed then.

use super::common::{self, tree::Item};
use super::{Desk, cases, timed};

/// The desktop is on its first version, in its state and in its view.
#[track_caller]
fn unchanged(desk: &Desk, mount: &common::Mount) {
    let state = desk.state();
    assert_eq!(state["current"]["tag"], "1", "{state}");
    assert_eq!(state["generation"].as_u64(), Some(0), "{state}");
    assert!(state["pending"].is_null(), "{state}");
    common::tree::assert_same("the view", &desk.source("1"), &common::tree::listing(mount.path()));
}

/// Something mounted in a view, until the end.
struct Bound(std::path::PathBuf);

impl Bound {
    fn tmpfs(at: std::path::PathBuf) -> Bound {
        common::sh(std::path::Path::new("/"), &format!("mount -t tmpfs tmpfs {}", at.display())).ok();
        Bound(at)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = std::process::Command::new("timeout").args(["20", "umount", "-l"]).arg(&self.0).status();
    }
}

#[test]
fn a_swap_that_takes_a_directory_with_a_mount_beneath_it_is_refused_by_name() {
    let desk = Desk::new(
        &[
            ("gone/deep/f", Item::File(b"f")),
            ("turned/deep/f", Item::File(b"f")),
            ("stays/f", Item::File(b"f")),
            ("file", Item::File(b"f")),
        ],
        &[
            "rm -r gone; echo g >stays/g",
            "mkdir -p gone/deep; echo f >gone/deep/f; rm -r turned; echo t >turned; rm stays/g",
            "rm turned; mkdir -p turned/deep; echo f >turned/deep/f; echo other >file",
        ],
    );
    let mount = desk.mount();
    for (at, tag) in [("gone", "2"), ("gone/deep", "2"), ("turned", "3"), ("turned/deep", "3")] {
        let bound = Bound::tmpfs(mount.join(at));
        common::sh(&mount.join(at), "echo mine >inside").ok();
        for dry in [&["--dry-run"][..], &[]] {
            let target = format!("os:{tag}");
            let args = [&["upgrade", "pc", "--to", &target][..], dry].concat();
            let answer = desk.program.run(&args).expect_code(4);
            assert!(answer.err().contains(&format!("{}/{at}", mount.path().display())), "{}", answer.err());
        }
        assert_eq!(mount.sh(&format!("cat {at}/inside")), "mine");
        drop(bound);
        unchanged(&desk, &mount);
    }
    let other = desk.scratch.join("other");
    std::fs::write(&other, "bound").unwrap();
    let file = mount.join("file");
    common::sh(desk.scratch.path(), &format!("mount --bind other {}", file.display())).ok();
    let bound = Bound(file);
    desk.program.run(&["upgrade", "pc", "--to", "os:4"]).expect_code(4);
    assert_eq!(mount.sh("cat file"), "bound");
    drop(bound);
    unchanged(&desk, &mount);
}

#[test]
fn a_mount_beneath_a_directory_that_stays_outlives_every_swap() {
    let desk = Desk::new(
        &[("stays/here/f", Item::File(b"f")), ("stays/x", Item::File(b"1"))],
        &[
            "chmod 700 stays stays/here; echo 2 >stays/x; mkdir -p data/sub; echo d >data/d; mkdir -p own/deep; echo o >own/o",
        ],
    );
    let mount = desk.mount();
    // Two that the user makes, where the target ships directories too; and one in a stack's directory.
    mount.sh("mkdir -p data own/deep stays/user");
    let bounds: Vec<Bound> = ["data", "own/deep", "stays/here", "stays/user"]
        .iter()
        .map(|at| {
            let bound = Bound::tmpfs(mount.join(at));
            common::sh(&mount.join(at), "echo mine >inside").ok();
            bound
        })
        .collect();
    for round in 0..4 {
        desk.to(if round % 2 == 0 { "2" } else { "1" });
        let seen =
            mount.sh("cat data/inside own/deep/inside stays/here/inside stays/user/inside stays/x; ls own");
        let want = if round % 2 == 0 { "2\ndeep\no" } else { "1\ndeep" };
        let x = if round % 2 == 0 { want.to_string() } else { "1deep".into() };
        let got = seen.replace("mine\n", "");
        assert!(got == want || got == x, "round {round}: {got}");
        assert_eq!(seen.matches("mine").count(), 4, "a mount was lost: {seen}");
    }
    drop(bounds);
}

#[test]
fn a_dry_run_says_what_would_happen_and_changes_nothing() {
    let desk =
        Desk::new(&[("a", Item::File(b"1")), ("b", Item::File(b"1"))], &["echo 2 >a; echo 2 >b; echo 2 >c"]);
    let mount = desk.mount();
    mount.sh("echo mine >a");
    let before = common::tree::listing(mount.path());
    let report = desk.program.swap(&["upgrade", "pc", "--to", "os:2", "--dry-run"]);
    assert_eq!(cases(&report), ["a shadows-changed"]);
    assert_eq!((report["live"].as_bool(), report["dry_run"].as_bool()), (Some(true), Some(true)), "{report}");
    assert_eq!(report["paths_differing"].as_u64(), Some(4), "{report}");
    let text = desk.program.ok(&["upgrade", "pc", "--to", "os:2", "--dry-run"]).out();
    assert!(text.contains("shadows-changed") && text.contains("nothing was changed"), "{text}");
    assert_eq!(desk.state()["generation"].as_u64(), Some(0));
    common::tree::assert_same("the view", &before, &common::tree::listing(mount.path()));
    mount.umount();
    let report = desk.program.swap(&["upgrade", "pc", "--to", "os:2", "--dry-run"]);
    assert_eq!((cases(&report), report["live"].as_bool()), (vec!["a shadows-changed".into()], Some(false)));
    assert_eq!(desk.state()["current"]["tag"], "1");
}

#[test]
fn strict_refuses_conflicts_and_only_those() {
    let desk = Desk::new(
        &[("a", Item::File(b"1")), ("b", Item::File(b"1"))],
        &["echo 2 >a; printf same >b", "echo 3 >a"],
    );
    let mount = desk.mount();
    mount.sh("printf same >b");
    // The user's copy equals the target's: nothing is hidden.
    desk.program.ok(&["upgrade", "pc", "--to", "os:2", "--strict"]);
    desk.to("1");
    mount.sh("echo mine >a");
    let generation = desk.state()["generation"].clone();
    let answer = desk.program.run(&["upgrade", "pc", "--to", "os:2", "--strict"]).expect_code(4);
    assert!(answer.err().contains('a'), "{}", answer.err());
    assert_eq!(desk.state()["generation"], generation);
    assert_eq!(mount.sh("cat a; cat b"), "mine\nsame");
    desk.to("2");
    assert_eq!(mount.sh("cat a"), "mine", "without --strict the user's file wins");
}

#[test]
fn an_object_of_the_target_that_is_missing_or_cut_off_stops_the_swap_before_anything_changed() {
    let desk = Desk::new(
        &[("a", Item::File(b"1")), ("b", Item::File(b"1"))],
        &["printf 'second, whole' >a; chmod 600 b"],
    );
    let object = desk.object(b"second, whole");
    let kept = desk.scratch.join("kept");
    std::fs::rename(&object, &kept).unwrap();
    for live in [false, true] {
        let mount = live.then(|| desk.mount());
        for how in ["missing", "damaged"] {
            if how == "damaged" {
                std::fs::write(&object, "second").unwrap();
            }
            let answer = desk.program.run(&["upgrade", "pc", "--to", "os:2"]).expect_code(5);
            assert!(answer.err().contains(how) && answer.err().contains('a'), "{}", answer.err());
            let _ = std::fs::remove_file(&object);
        }
        match mount {
            Some(mount) => unchanged(&desk, &mount),
            None => assert_eq!(desk.state()["current"]["tag"], "1"),
        }
    }
    std::fs::rename(&kept, &object).unwrap();
    assert_eq!(desk.to("2")["generation"].as_u64(), Some(1));
}

#[test]
fn a_damaged_tree_is_built_again_and_a_damaged_layer_is_refused() {
    let desk = Desk::new(&[("a", Item::File(b"1"))], &["echo 2 >a; echo n >n"]);
    let mount = desk.mount();
    let version: reroot::store::Digest = desk.program.json(&["show", "os:2"])["version"]
        .as_str()
        .or(desk.program.json(&["show", "os:2"])["digest"].as_str())
        .unwrap()
        .parse()
        .unwrap();
    let store = reroot::store::Store::open(&desk.scratch.store()).unwrap();
    let manifest = store.version(&version).unwrap();
    let tree = store.tree_path(&manifest.stack_digest());
    let layer = store.path("layers").join(manifest.stack.last().unwrap().hex());
    let (whole_tree, whole_layer) = (std::fs::read(&tree).unwrap(), std::fs::read(&layer).unwrap());
    let replace = |path: &std::path::Path, bytes: &[u8]| {
        let _ = std::fs::remove_file(path);
        std::fs::write(path, bytes).unwrap();
    };
    let spoiled = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 0x55;
        bytes
    };
    // A tree is derived: whatever happened to it, the view is right or the swap is refused, and never wrong.
    for damage in [whole_tree[..whole_tree.len() / 2].to_vec(), Vec::new(), spoiled(&whole_tree, 0)] {
        replace(&tree, &damage);
        desk.to("2");
        common::tree::assert_same("os:2", &desk.source("2"), &common::tree::listing(mount.path()));
        desk.to("1");
    }
    let generation = desk.state()["generation"].clone();
    for damage in
        [whole_layer[..whole_layer.len() / 2].to_vec(), spoiled(&whole_layer, whole_layer.len() / 2)]
    {
        std::fs::remove_file(&tree).unwrap();
        replace(&layer, &damage);
        let answer = desk.program.run(&["upgrade", "pc", "--to", "os:2"]).expect_code(5);
        assert!(!answer.err().is_empty());
        assert_eq!(desk.state()["generation"], generation);
        assert!(desk.state()["pending"].is_null());
        common::tree::assert_same("os:1", &desk.source("1"), &common::tree::listing(mount.path()));
        replace(&tree, &whole_tree);
    }
    replace(&layer, &whole_layer);
    desk.to("2");
    assert_eq!(
        timed({
            let path = mount.join("a");
            move || std::fs::read_to_string(path).unwrap()
        }),
        "2\n"
    );
}
