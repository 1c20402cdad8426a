//! A damaged store: each kind of damage is found and named, what it touches is refused or fails by itself, the
//! rest works, and nothing ever panics.

mod common;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::scratch::mounts_beneath;
use common::tree::{self, Item};
use common::{Program, Scratch, sh};
use reroot::store::Digest;

const LARGE: usize = 2 << 20;

/// `os:1`, `os:2` on top of it, desktops `alice` on 1 and `bob` on 2.
fn healthy(scratch: &Scratch) -> Program {
    common::require_root();
    let program = Program::new(scratch);
    let large = vec![b'L'; LARGE];
    tree::import(scratch, &program, "os:1", None, |dir| {
        tree::small(dir);
        tree::write(dir, &[("usr/lib/large", Item::File(&large))]);
    });
    tree::import(scratch, &program, "os:2", Some("os:1"), |dir| {
        tree::small(dir);
        tree::write(dir, &[("usr/lib/large", Item::File(&large)), ("etc/hostname", Item::File(b"second\n"))]);
    });
    program.ok(&["create", "alice", "os:1"]);
    program.ok(&["create", "bob", "os:2"]);
    program.ok(&["fsck", "--deep"]);
    program
}

fn object(scratch: &Scratch, content: &[u8]) -> PathBuf {
    let hex = Digest::of(content).hex();
    scratch.store().join("objects").join(&hex[..2]).join(&hex[2..])
}

/// Ways to damage a file.
#[derive(Clone, Copy, Debug)]
enum Harm {
    /// One bit at a place, in thousandths of the length.
    Flip(u64),
    /// Cut to so many thousandths.
    Cut(u64),
    Remove,
    /// Longer by a byte.
    Grow,
}

fn harm(path: &Path, how: Harm) {
    let bytes = std::fs::read(path).unwrap();
    let len = bytes.len() as u64;
    let file = || std::fs::File::options().write(true).open(path).unwrap();
    match how {
        Harm::Flip(at) => {
            let at = (len * at / 1000).min(len - 1);
            file().write_all_at(&[bytes[at as usize] ^ 0x10], at).unwrap();
        }
        Harm::Cut(to) => file().set_len(len * to / 1000).unwrap(),
        Harm::Remove => std::fs::remove_file(path).unwrap(),
        Harm::Grow => file().write_all_at(b"x", len).unwrap(),
    }
}

/// Does something with a damaged file in place, then puts the file back.
fn with_harm(path: &Path, how: Harm, act: impl FnOnce()) {
    let (bytes, permissions) = (std::fs::read(path).unwrap(), std::fs::metadata(path).unwrap().permissions());
    harm(path, how);
    act();
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, permissions).unwrap();
}

/// Runs what looks at a store; none may panic, whatever it finds.
#[track_caller]
fn never_panics(program: &Program, what: &str) {
    for args in [
        &["images"][..],
        &["desktops"],
        &["show", "os:1", "--files"],
        &["show", "os:2"],
        &["log", "os"],
        &["diff", "os:1", "os:2"],
        &["status", "alice"],
        &["changes", "alice"],
        &["df"],
        &["gc", "--dry-run"],
        &["upgrade", "alice", "--to", "os:2", "--dry-run"],
        &["commit", "alice", "os:9"],
        &["export", "os:2", "tar:/dev/null"],
        &["fsck"],
        &["fsck", "--deep", "os:2"],
        &["settle", "bob"],
    ] {
        let answer = program.run(args);
        assert!(answer.code.is_some_and(|c| c <= 5), "{what}: {args:?}: {:?} {}", answer.code, answer.err());
        assert!(!answer.err().contains("panicked"), "{what}: {args:?}: {}", answer.err());
    }
}

/// `fsck` ends with 5 and names the file.
#[track_caller]
fn found(program: &Program, scratch: &Scratch, path: &Path, deep: bool, what: &str) {
    let args = if deep { &["--json", "fsck", "--deep"][..] } else { &["--json", "fsck"] };
    let answer = program.run(args).expect_code(5);
    let report = answer.json();
    let name = path.strip_prefix(scratch.store()).unwrap().display().to_string();
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    let finding = findings.iter().find(|f| f["path"] == name.as_str());
    let finding = finding.unwrap_or_else(|| panic!("{what}: fsck does not name {name}: {report}"));
    assert_eq!(finding["severity"], "damaged", "{what}: {finding}");
    assert!(finding["needed_by"].as_array().is_some_and(|a| !a.is_empty()), "{what}: {finding}");
}

#[test]
fn a_damaged_object_is_found_and_fails_its_file_only() {
    let scratch = Scratch::new();
    let program = healthy(&scratch);
    let small = object(&scratch, b"library 1\n");
    let large = object(&scratch, &vec![b'L'; LARGE]);
    for (path, name) in [(&small, "usr/lib/libsmall.so.1"), (&large, "usr/lib/large")] {
        for how in [Harm::Cut(500), Harm::Cut(0), Harm::Remove, Harm::Grow, Harm::Flip(400)] {
            let what = format!("{name} {how:?}");
            with_harm(path, how, || {
                let flipped = matches!(how, Harm::Flip(_));
                found(&program, &scratch, path, flipped, &what);
                never_panics(&program, &what);
                let answer = program.run(&["mount", "alice", scratch.mnt().to_str().unwrap()]);
                if answer.code != Some(0) {
                    assert!(matches!(answer.code, Some(1 | 5)), "{what}: {}", answer.err());
                    return;
                }
                let read = sh(&scratch.mnt(), &format!("cat {name} >/dev/null"));
                if !flipped {
                    assert!(
                        read.err().contains("Input/output error"),
                        "{what}: {:?} {}",
                        read.code,
                        read.err()
                    );
                    let write = sh(&scratch.mnt(), &format!("echo x >>{name}"));
                    assert!(write.err().contains("Input/output error"), "{what}: {}", write.err());
                }
                sh(&scratch.mnt(), "cat etc/hostname usr/bin/tool >/dev/null; echo x >home/x; rm home/x")
                    .ok();
                program.ok(&["umount", "alice"]);
                if !flipped {
                    // No new version or file is made of it.
                    program
                        .run(&["export", "os:1", &format!("dir:{}", scratch.join("out").display())])
                        .expect_code(5);
                    sh(scratch.path(), "rm -rf out out.*").ok();
                }
            });
            program.ok(&["fsck", "--deep"]);
        }
    }
    // Importing the same content again mends a truncated one.
    harm(&large, Harm::Cut(300));
    program.run(&["fsck"]).expect_code(5);
    program.ok(&["import", &format!("dir:{}", scratch.join("src-os-1").display()), "os:again"]);
    program.ok(&["fsck", "--deep"]);
}

#[test]
fn a_damaged_layer_or_manifest_is_found_and_never_mounted() {
    let scratch = Scratch::new();
    let program = healthy(&scratch);
    let version = |tag: &str| program.json(&["show", &format!("os:{tag}")]);
    let hex = |v: &serde_json::Value| v.as_str().unwrap().trim_start_matches("sha384:").to_string();
    let first = version("1");
    let manifest = scratch.store().join("versions").join(format!("{}.json", hex(&first["version"])));
    let text = std::fs::read_to_string(&manifest).unwrap();
    let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
    let layer = scratch.store().join("layers").join(hex(&parsed["stack"][0]));
    let mut harms: Vec<Harm> = (0..20).map(|i| Harm::Flip(i * 50)).collect();
    harms.extend([Harm::Cut(0), Harm::Cut(500), Harm::Cut(999), Harm::Remove, Harm::Grow]);
    for (path, kind) in [(&layer, "layer"), (&manifest, "manifest")] {
        for how in &harms {
            let what = format!("{kind} {how:?}");
            with_harm(path, *how, || {
                // Without its tree a version is what its layers say.
                sh(&scratch.store(), "rm -f trees/*").ok();
                found(&program, &scratch, path, false, &what);
                let answer = program.run(&["mount", "alice", scratch.mnt().to_str().unwrap()]);
                assert!(matches!(answer.code, Some(1 | 5)), "{what}: {:?} {}", answer.code, answer.err());
                assert!(mounts_beneath(&scratch.mnt()).is_empty(), "{what}");
                let gc = program.run(&["gc"]);
                assert_eq!(
                    gc.code,
                    Some(5),
                    "{what}: a collection does not know what is needed: {}",
                    gc.err()
                );
                if matches!(how, Harm::Cut(_) | Harm::Flip(500)) {
                    never_panics(&program, &what);
                }
            });
        }
        program.ok(&["fsck", "--deep"]);
    }
    let mount = program.mount("alice", scratch.mnt());
    assert_eq!(mount.sh("cat etc/hostname"), "small");
    mount.umount();
}

#[test]
fn a_damaged_tree_is_built_again_or_gives_errors() {
    let scratch = Scratch::new();
    let program = healthy(&scratch);
    let expected = tree::listing(&scratch.join("src-os-1"));
    let trees = sh(&scratch.store(), "ls trees").ok().out();
    assert_eq!(trees.lines().count(), 2);
    // The tree of os:1 is the one that a mount of it needs.
    for name in trees.lines() {
        let path = scratch.store().join("trees").join(name);
        let mut harms: Vec<Harm> = (0..40).map(|i| Harm::Flip(i * 25 + 3)).collect();
        harms.extend([Harm::Cut(0), Harm::Cut(10), Harm::Cut(500), Harm::Cut(999), Harm::Remove, Harm::Grow]);
        for how in harms {
            let what = format!("tree {how:?}");
            with_harm(&path, how, || {
                let answer = program.run(&["mount", "alice", scratch.mnt().to_str().unwrap()]);
                assert!(!answer.err().contains("panicked"), "{what}: {}", answer.err());
                if answer.code == Some(0) {
                    // Whatever it shows, it goes on answering.
                    let _ = sh(
                        &scratch.mnt(),
                        "find . -ls >/dev/null 2>&1; cat etc/* usr/lib/* >/dev/null 2>&1; true",
                    );
                    assert_eq!(
                        program.json(&["status", "alice"])["mounted"],
                        true,
                        "{what}: the daemon lives"
                    );
                    program.ok(&["umount", "alice"]);
                }
                let checked = program.run(&["fsck"]);
                assert!(
                    matches!(checked.code, Some(0)),
                    "{what}: a tree can be built again: {}",
                    checked.out()
                );
                let mount = program.mount("alice", scratch.mnt());
                tree::assert_same(&what, &expected, &tree::listing(mount.path()));
                mount.umount();
            });
        }
        let log = std::fs::read_to_string(scratch.store().join("desktops/alice/daemon.log")).unwrap();
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[test]
fn a_damaged_tag_or_state_is_named_and_hides_nothing_else() {
    let scratch = Scratch::new();
    let program = healthy(&scratch);
    let tag = scratch.store().join("refs/os/1");
    let state = scratch.store().join("desktops/alice/state.json");
    for path in [&tag, &state] {
        for how in [Harm::Cut(0), Harm::Cut(500), Harm::Flip(0), Harm::Flip(200), Harm::Flip(500)] {
            let what = format!("{} {how:?}", path.display());
            let text = std::fs::read_to_string(path).unwrap();
            with_harm(path, how, || {
                let damaged = program.run(&["fsck"]);
                // A flipped bit may give another digest: then that version is what is missing.
                assert_eq!(damaged.code, Some(5), "{what}: {}", damaged.out());
                never_panics(&program, &what);
                // Nothing is collected while it is not known what is needed.
                assert_eq!(program.run(&["gc"]).code, Some(5), "{what}");
                if path == &state {
                    let listed = program.run(&["--json", "desktops"]);
                    let names: Vec<_> =
                        listed.json().as_array().unwrap().iter().map(|d| d["name"].clone()).collect();
                    assert_eq!(names, ["alice", "bob"], "{what}");
                    let answer = program.run(&["mount", "alice", scratch.mnt().to_str().unwrap()]);
                    assert!(matches!(answer.code, Some(1 | 5)), "{what}: {}", answer.err());
                }
                let bob = program.mount("bob", scratch.mnt());
                assert_eq!(bob.sh("cat etc/hostname"), "second", "{what}");
                bob.umount();
            });
            assert_eq!(std::fs::read_to_string(path).unwrap(), text);
            program.ok(&["fsck", "--deep"]);
        }
    }
    // The store's own description.
    let format = scratch.store().join("format");
    for how in [Harm::Cut(0), Harm::Cut(300), Harm::Flip(0)] {
        with_harm(&format, how, || {
            let answer = program.run(&["images"]);
            assert!(matches!(answer.code, Some(1 | 5)), "{how:?}: {:?} {}", answer.code, answer.err());
            assert!(answer.err().contains("format"), "{}", answer.err());
        });
    }
    // A ledger of pins that cannot be read stops a collection; a last line that was cut off does not.
    let pins = scratch.store().join("desktops/bob/pins");
    std::fs::write(&pins, "sha384:0123").unwrap();
    program.ok(&["gc"]);
    std::fs::write(&pins, "garbage\n").unwrap();
    assert_eq!(program.run(&["gc"]).code, Some(5));
    program.run(&["fsck"]).expect_code(5);
    std::fs::remove_file(&pins).unwrap();
    program.ok(&["fsck", "--deep"]);
}
