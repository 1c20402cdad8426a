//! A command that changes a user layer or what it stands on is killed: the view is the old one or the new one.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::common::{self, Program, Scratch, tree};
use crate::{Dice, fill, kill_after, no_leftovers, takes, whole};

#[test]
fn a_killed_commit_leaves_the_view_as_it_was() {
    common::require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    tree::import(&scratch, &program, "os:1", None, |dir| fill(dir, 1));
    program.ok(&["create", "alice", "os:1"]);
    let mut dice = Dice(3);
    let mut time = Duration::from_millis(100);
    for round in 0..18 {
        let mount = program.mount("alice", scratch.mnt());
        mount.sh(&format!(
            "for i in 1 2 3 4 5; do head -c 300000 /dev/zero | tr '\\0' {} >home/$i-{round}; done
             for i in {round} 1{round} 2{round}; do echo {round} >>usr/share/many/$i; done; rm -f usr/share/many/3{round}
             rm -rf var/log; mkdir -p var/log; echo {round} >var/log/new
             [ -d usr/lib/big ] && mv usr/lib/big usr/lib/big2 || mv usr/lib/big2 usr/lib/big",
            (b'a' + round as u8) as char
        ));
        let worked = tree::listing(mount.path());
        mount.umount();
        let tag = format!("os:c{round}");
        let reset = round % 2 == 0;
        let mut args = vec!["commit", "alice", tag.as_str()];
        if reset {
            args.push("--reset");
        }
        if round == 0 {
            time = takes(&program, &args);
        } else {
            kill_after(&program, &args, dice.moment(time));
        }
        whole(&program);
        let mount = program.mount("alice", scratch.mnt());
        tree::assert_same("after the commit", &worked, &tree::listing(mount.path()));
        mount.umount();
        if program.run(&["show", &tag]).code == Some(0) {
            let mount = program.inspect(&tag, scratch.mnt());
            tree::assert_same("the version", &worked, &tree::listing(mount.path()));
            mount.umount();
        }
    }
    no_leftovers(&scratch, &program);
    whole(&program);
}

#[test]
fn a_killed_settle_leaves_the_view_as_it_was() {
    common::require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    tree::import(&scratch, &program, "os:1", None, |dir| fill(dir, 1));
    let mut dice = Dice(6);
    let mut time = Duration::from_millis(100);
    for round in 0..10 {
        let desktop = format!("d{round}");
        program.ok(&["create", &desktop, "os:1"]);
        let mount = program.mount(&desktop, scratch.mnt());
        mount.sh(
            "mv usr moved; rm moved/share/many/1 moved/bin/alias; mkdir usr; mv moved/share/many usr/many
             chmod 700 moved/lib/big/1 moved/lib; mv moved/lib/big/2 home/two; ln moved/lib/big/3 home/three
             rm -r var; mkdir var; chmod 600 etc/passwd; mv etc/hostname etc/h; ln moved/bin/tool home/tool",
        );
        let worked = tree::listing(mount.path());
        mount.umount();
        for again in 0..3 {
            if (round, again) == (0, 0) {
                time = takes(&program, &["settle", &desktop]);
            } else {
                kill_after(&program, &["settle", &desktop], dice.moment(time));
            }
            let mount = program.mount(&desktop, scratch.mnt());
            tree::assert_same("after settling was cut off", &worked, &tree::listing(mount.path()));
            mount.umount();
        }
        program.ok(&["settle", &desktop]);
        let mount = program.mount(&desktop, scratch.mnt());
        tree::assert_same("settled", &worked, &tree::listing(mount.path()));
        mount.umount();
        whole(&program);
        program.ok(&["rm", &desktop]);
    }
    no_leftovers(&scratch, &program);
}

#[test]
fn a_killed_swap_comes_up_on_one_version_or_the_other() {
    common::require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    let sources: Vec<PathBuf> = vec![
        tree::import(&scratch, &program, "os:1", None, |dir| fill(dir, 1)),
        tree::import(&scratch, &program, "os:2", Some("os:1"), |dir| fill(dir, 2)),
    ];
    program.ok(&["create", "alice", "os:1"]);
    let mount = program.mount("alice", scratch.mnt());
    mount.sh("echo mine >home/mine; chmod 600 usr/share/many/0");
    let time = takes(&program, &["upgrade", "alice", "--to", "os:2"]);
    mount.umount();
    let mut expected: Vec<tree::Listing> = Vec::new();
    for tag in ["1", "2"] {
        program.run(&["upgrade", "alice", "--to", &format!("os:{tag}")]);
        let mount = program.mount("alice", scratch.mnt());
        expected.push(tree::listing(mount.path()));
        mount.umount();
    }
    let other = tree::listing(&sources[1]);
    assert_eq!(expected[1].get(&b"usr/share/many/3"[..]), other.get(&b"usr/share/many/3"[..]));
    let mut dice = Dice(4);
    for round in 0..24 {
        let mount = program.mount("alice", scratch.mnt());
        // The kernel knows the names that differ.
        mount.sh("ls -lR usr >/dev/null");
        mount.forget();
        let status = program.json(&["status", "alice"]);
        let to = if status["tag"] == "1" { "os:2" } else { "os:1" };
        let mut child = program
            .command(&["upgrade", "alice", "--to", to])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(dice.moment(time));
        if round % 4 == 3 {
            // The command alone: the daemon goes on with what it was asked.
            let _ = child.kill();
            child.wait().unwrap();
            program.ok(&["umount", "alice"]);
        } else {
            scratch.kill_daemons();
            let _ = child.kill();
            child.wait().unwrap();
        }
        whole(&program);
        let mount = program.mount("alice", scratch.mnt());
        let status = program.json(&["status", "alice"]);
        assert!(status["pending"].is_null(), "{status}");
        let at = if status["tag"] == "1" { 0 } else { 1 };
        tree::assert_same(&format!("{}", status["tag"]), &expected[at], &tree::listing(mount.path()));
        mount.umount();
    }
    no_leftovers(&scratch, &program);
}
