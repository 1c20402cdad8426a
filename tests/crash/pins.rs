//! What the user moved keeps its content when the daemon is killed, or the power cut, before the ledger of pins is on
//! the disk: whatever becomes of the version that it came from.

use std::path::PathBuf;

use crate::common::tree::{self, Item};
use crate::common::{Disk, Program, Scratch, require_root, sh};
use crate::whole;

/// Three versions of an image; the last has nothing of what the first has.
fn import(scratch: &Scratch, program: &Program) {
    tree::import(scratch, program, "os:1", None, |dir| {
        tree::write(
            dir,
            &[
                ("from/a", Item::File(b"a of one")),
                ("from/sub/b", Item::File(b"b of one")),
                ("alone", Item::File(b"alone of one")),
                ("other/x", Item::File(b"x")),
            ],
        )
    });
    for (tag, parent, script) in [
        ("os:2", "os:1", "mkdir -p from/sub other; echo two >from/a; echo two >alone; printf x >other/x"),
        ("os:3", "os:2", "mkdir other; printf y >other/x"),
    ] {
        tree::import(scratch, program, tag, Some(parent), |dir| drop(sh(dir, script).ok()));
    }
}

fn ledger(scratch: &Scratch) -> PathBuf {
    scratch.store().join("desktops/pc/pins")
}

/// Nothing but the ledger names the first version any more, and what was moved is there.
#[track_caller]
fn holds(what: &str, scratch: &Scratch, program: &Program) {
    for tag in ["os:1", "os:c"] {
        let _ = program.run(&["untag", tag]);
    }
    program.ok(&["gc"]);
    whole(program);
    let mount = program.mount("pc", scratch.mnt());
    let look =
        "cat to/a to/sub/b was; ls to | tr '\\n' ' '; cat other/x; ls -d from alone 2>&1 | grep -c cannot";
    assert_eq!(mount.sh(look), "a of oneb of onealone of onea sub y2", "{what}");
    mount.umount();
}

#[test]
fn what_was_moved_before_the_daemon_was_killed_outlives_the_version_that_it_came_from() {
    require_root();
    for way in ["at rest", "live", "committed", "kept"] {
        for lost in [false, true] {
            let what = format!("{way}, the line of the ledger is lost: {lost}");
            let scratch = Scratch::new();
            let program = Program::new(&scratch);
            import(&scratch, &program);
            program.ok(&["create", "pc", "os:1"]);
            let mount = program.mount("pc", scratch.mnt());
            mount.sh("mv from to; mv alone was");
            mount.forget();
            assert_eq!(scratch.kill_daemons(), 1, "{what}");
            if lost {
                // As a power cut may leave it: the marks are on the disk, and the line is not.
                std::fs::write(ledger(&scratch), "").unwrap();
            }
            match way {
                "at rest" => {
                    // A collection meanwhile takes nothing.
                    program.ok(&["untag", "os:1"]);
                    program.ok(&["gc"]);
                    program.ok(&["upgrade", "pc", "--to", "os:2"]);
                    program.ok(&["upgrade", "pc", "--to", "os:3"]);
                }
                "live" => {
                    let mount = program.mount("pc", scratch.mnt());
                    program.ok(&["upgrade", "pc", "--to", "os:2"]);
                    program.ok(&["upgrade", "pc", "--to", "os:3"]);
                    mount.umount();
                }
                "committed" => {
                    let mount = program.mount("pc", scratch.mnt());
                    mount.sh("echo new >other/new");
                    mount.forget();
                    assert_eq!(scratch.kill_daemons(), 1, "{what}");
                    if lost {
                        std::fs::write(ledger(&scratch), "").unwrap();
                    }
                    program.ok(&["umount", "pc"]);
                    program.ok(&["commit", "pc", "os:c", "--only", "other/new", "--reset"]);
                    program.ok(&["upgrade", "pc", "--to", "os:2"]);
                    program.ok(&["upgrade", "pc", "--to", "os:3"]);
                }
                _ => {
                    program.ok(&["umount", "pc"]);
                    program.ok(&["rm", "pc", "--keep-user-layer"]);
                    program.ok(&["untag", "os:1"]);
                    program.ok(&["gc"]);
                    program.ok(&["create", "pc", "os:3"]);
                }
            }
            holds(&what, &scratch, &program);
        }
    }
}

#[test]
fn a_daemon_that_is_killed_keeps_no_version_that_the_user_layer_does_not_need() {
    require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    import(&scratch, &program);
    program.ok(&["create", "pc", "os:1"]);
    let mount = program.mount("pc", scratch.mnt());
    mount.sh("echo mine >from/a; rm alone; chmod 700 from/sub; mv other/x other/y; rm other/y");
    mount.forget();
    assert_eq!(scratch.kill_daemons(), 1);
    // The file that was moved was pinned, and is gone.
    std::fs::write(ledger(&scratch), "").unwrap();
    program.ok(&["upgrade", "pc", "--to", "os:2"]);
    program.ok(&["upgrade", "pc", "--to", "os:3"]);
    program.ok(&["untag", "os:1"]);
    assert_eq!(program.json(&["gc"])["versions"], 1);
    whole(&program);
    // Nor is anything left that makes the next swap look again.
    assert!(!ledger(&scratch).with_file_name("pins-open").exists());
}

#[test]
fn what_was_moved_before_the_power_was_cut_outlives_the_version_that_it_came_from() {
    require_root();
    for way in ["moved and synced", "moved and swapped", "moved and unmounted"] {
        let outer = Scratch::new();
        let disk = Disk::new(&outer, "ext4", "disk", 128);
        let scratch = Scratch::at(disk.path().join("s"));
        let program = Program::new(&scratch);
        import(&scratch, &program);
        program.ok(&["create", "pc", "os:1"]);
        sh(scratch.path(), "sync -f .").ok();
        let mount = program.mount("pc", scratch.mnt());
        // The journal takes the moves along with what is synced; what was written into the ledger it does not.
        mount.sh("mv from to; mv alone was; echo mine >mine; sync mine");
        match way {
            "moved and swapped" => drop(program.ok(&["upgrade", "pc", "--to", "os:2"])),
            "moved and unmounted" => drop(program.ok(&["umount", "pc"])),
            _ => {}
        }
        mount.forget();
        disk.cut();
        scratch.kill_daemons();
        if way != "moved and unmounted" {
            sh(outer.path(), &format!("umount -i -l {}", scratch.mnt().display())).ok();
        }
        disk.again();
        whole(&program);
        if way != "moved and swapped" {
            program.ok(&["upgrade", "pc", "--to", "os:2"]);
        }
        program.ok(&["upgrade", "pc", "--to", "os:3"]);
        holds(way, &scratch, &program);
    }
}
