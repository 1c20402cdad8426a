//! A command that changes the store is killed: the store opens again and is whole.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::program::LIMIT;
use crate::common::tree::{self, Item};
use crate::common::{self, Program, Scratch, sh, within};
use crate::{Dice, fill, kill_after, no_leftovers, objects, takes, whole};

#[test]
fn a_killed_import_harms_nothing_and_completes_when_it_is_run_again() {
    common::require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    tree::import(&scratch, &program, "os:1", None, |dir| fill(dir, 1));
    let second = scratch.dir("second");
    fill(&second, 2);
    let source = format!("dir:{}", second.display());
    let import = ["import", &source, "os:2", "--parent", "os:1"];
    let before = objects(&scratch);
    let time = takes(&program, &import);
    program.ok(&["untag", "os:2"]);
    program.ok(&["gc"]);
    let mut dice = Dice(1);
    for round in 0..30 {
        kill_after(&program, &import, dice.moment(time));
        whole(&program);
        if round % 5 == 4 {
            program.ok(&import);
            let mount = program.inspect("os:2", scratch.mnt());
            tree::assert_same("os:2", &tree::listing(&second), &tree::listing(mount.path()));
            mount.umount();
        }
        if program.run(&["show", "os:2"]).code == Some(0) {
            program.ok(&["untag", "os:2"]);
        }
        if round % 2 == 0 {
            no_leftovers(&scratch, &program);
            assert_eq!(objects(&scratch), before, "a collection brings back what was there before");
        }
    }
}

#[test]
fn what_an_import_has_published_survives_a_power_cut_and_one_that_is_cut_off_harms_nothing() {
    common::require_root();
    let outer = Scratch::new();
    let disk = common::Disk::new(&outer, "ext4", "disk", 256);
    let scratch = Scratch::at(disk.path().join("s"));
    let program = Program::new(&scratch);
    tree::import(&scratch, &program, "os:1", None, |dir| fill(dir, 1));
    let second = outer.dir("second");
    fill(&second, 2);
    let source = format!("dir:{}", second.display());
    let import = ["import", &source, "os:2", "--parent", "os:1"];
    let time = takes(&program, &import);
    let mut dice = Dice(3);
    for round in 0..10 {
        if program.run(&["show", "os:2"]).code == Some(0) {
            program.ok(&["untag", "os:2"]);
        }
        program.ok(&["gc"]);
        sh(scratch.path(), "sync -f .").ok();
        // What it took in has names by now that are in memory only; the next one finds it there.
        kill_after(&program, &import, dice.moment(time));
        let done = round % 3 != 2;
        if done {
            program.ok(&import);
        }
        disk.cut();
        disk.again();
        whole(&program);
        if done {
            let mount = program.inspect("os:2", scratch.mnt());
            tree::assert_same("os:2", &tree::listing(&second), &tree::listing(mount.path()));
            mount.umount();
        }
    }
}

#[test]
fn a_full_disk_under_the_store_ends_an_import_and_leaves_the_store_whole() {
    common::require_root();
    let outer = Scratch::new();
    let disk = common::Disk::new(&outer, "ext4", "disk", 32);
    let scratch = Scratch::at(disk.path().join("s"));
    let program = Program::new(&scratch);
    tree::import(&scratch, &program, "os:1", None, tree::small);
    let big = outer.dir("big");
    for i in 0..40u8 {
        tree::write(&big, &[(&format!("big/{i}"), Item::File(&vec![i + 1; 1 << 20]))]);
    }
    let source = format!("dir:{}", big.display());
    for _ in 0..2 {
        let answer = program.run(&["import", &source, "os:2", "--parent", "os:1"]).expect_code(1);
        assert!(answer.err().contains("No space left on device"), "{}", answer.err());
        assert_eq!(sh(&scratch.store(), "find objects -name '.intake*'").ok().out(), "");
        whole(&program);
        program.run(&["show", "os:2"]).expect_code(1);
    }
    tree::import(&scratch, &program, "os:3", Some("os:1"), |dir| {
        tree::small(dir);
        tree::write(dir, &[("etc/hostname", Item::File(b"there is room again\n"))]);
    });
    whole(&program);
}

/// A store whose one version only the desktop `alice` still needs, and the tree that it was made of.
fn only_a_desktop_needs_it(scratch: &Scratch) -> (Program, PathBuf) {
    common::require_root();
    let program = Program::new(scratch);
    let source = tree::import(scratch, &program, "os:1", None, |dir| fill(dir, 1));
    program.ok(&["create", "alice", "os:1"]);
    program.ok(&["untag", "os:1"]);
    (program, source)
}

#[test]
fn a_killed_collection_takes_nothing_that_is_needed() {
    let scratch = Scratch::new();
    let (program, source) = only_a_desktop_needs_it(&scratch);
    program.ok(&["gc"]);
    let before = objects(&scratch);
    let mut dice = Dice(5);
    let mut time = Duration::ZERO;
    for round in 0..18u8 {
        let extra = scratch.dir(&format!("extra-{round}"));
        fill(&extra, 10 + round);
        program.ok(&["import", &format!("dir:{}", extra.display()), "os:extra"]);
        program.ok(&["untag", "os:extra"]);
        if round == 0 {
            time = takes(&program, &["gc"]);
        } else {
            kill_after(&program, &["gc"], dice.moment(time));
        }
        whole(&program);
        if round % 6 == 5 {
            no_leftovers(&scratch, &program);
            assert_eq!(objects(&scratch), before, "what a killed collection left, the next one takes");
        }
    }
    let mount = program.mount("alice", scratch.mnt());
    tree::assert_same("the desktop", &tree::listing(&source), &tree::listing(mount.path()));
    mount.umount();
}

#[test]
fn a_collection_beside_imports_and_mounts_takes_nothing_that_is_needed() {
    let scratch = Scratch::new();
    let (program, source) = only_a_desktop_needs_it(&scratch);
    let stop = Arc::new(AtomicBool::new(false));
    let collector = {
        let (program, stop) = (program.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut done = 0;
            while !stop.load(Ordering::Relaxed) {
                // In use all the time it may give up (1); it never does harm.
                let answer = program.run(&["gc"]);
                assert!(matches!(answer.code, Some(0 | 1)), "{}", answer.err());
                done += u32::from(answer.code == Some(0));
            }
            done
        })
    };
    let importer = {
        let (program, scratch_path) = (program.clone(), scratch.path().to_path_buf());
        std::thread::spawn(move || {
            for round in 0..8u8 {
                let dir = scratch_path.join(format!("import-{round}"));
                std::fs::create_dir(&dir).unwrap();
                fill(&dir, 20 + round);
                program.ok(&["import", &format!("dir:{}", dir.display()), &format!("new:{round}")]);
            }
        })
    };
    let expected = tree::listing(&source);
    for round in 0..8 {
        let mount = program.mount("alice", scratch.mnt());
        mount.sh(&format!(
            "echo {round} >>home/log; mv usr/lib/big usr/lib/moved; mv usr/lib/moved usr/lib/big"
        ));
        let mut seen = tree::listing(mount.path());
        assert_eq!(seen.remove(&b"home/log"[..]).is_some(), !expected.contains_key(&b"home/log"[..]));
        tree::assert_same("alice", &expected, &seen);
        mount.umount();
    }
    within(LIMIT * 2, "the imports", move || importer.join().unwrap());
    stop.store(true, Ordering::Relaxed);
    let collected = within(LIMIT, "the collections", move || collector.join().unwrap());
    assert!(collected > 0, "no collection came through");
    whole(&program);
    for round in 0..8 {
        let mount = program.inspect(&format!("new:{round}"), scratch.mnt());
        let from = tree::listing(&scratch.join(format!("import-{round}")));
        tree::assert_same("imported beside collections", &from, &tree::listing(mount.path()));
        mount.umount();
        program.ok(&["untag", &format!("new:{round}")]);
    }
    // The desktop and its pins are the last that need anything.
    program.ok(&["rm", "alice"]);
    program.ok(&["gc"]);
    assert_eq!(objects(&scratch), "", "nothing names anything any more");
}
