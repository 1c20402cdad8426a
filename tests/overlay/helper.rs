//! mount(8) and umount(8) with the installed helpers.
//!
//! mount(8) looks for a helper in /sbin only. Where `make install` has put one there, that is used; else the one of
//! the source is put there for the time of a test, and taken away. `$REROOT` leads both to the program under test.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{LIMIT, Layers, sh};
use crate::common::program::{Answer, run};
use crate::common::scratch::mount_type;

const NAMES: [&str; 3] = ["mount.fuse.reroot", "umount.fuse.reroot", "mount.reroot"];

struct Helpers {
    installed: Vec<PathBuf>,
    /// One at a time, also of several test programs: /sbin is one for all.
    _one: std::fs::File,
}

impl Helpers {
    fn install() -> Helpers {
        let one = std::fs::File::open("/sbin").unwrap();
        rustix::fs::flock(&one, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let mut installed = Vec::new();
        for name in NAMES {
            let to = Path::new("/sbin").join(name);
            if !to.exists() {
                let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-helpers").join(name);
                std::fs::copy(from, &to).unwrap();
                installed.push(to);
            }
        }
        Helpers { installed, _one: one }
    }

    #[track_caller]
    fn run(&self, l: &Layers, args: &[&str]) -> Answer {
        let (program, rest) = args.split_first().unwrap();
        let mut command = Command::new(program);
        command.args(rest).current_dir(l.scratch.path());
        command.env("REROOT", env!("CARGO_BIN_EXE_reroot")).env("REROOT_STORE", l.scratch.store());
        run(command.env("REROOT_TEST_SCRATCH", l.scratch.path()), LIMIT)
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        for path in &self.installed {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn findmnt(l: &Layers, what: &str) -> String {
    sh(l.scratch.path(), &format!("findmnt -n -o {what} mnt || true")).ok().out().trim().to_string()
}

/// The daemon has given up everything when `umount` returns; its process may be on its way out a moment longer.
#[track_caller]
fn ended(l: &Layers) {
    let began = std::time::Instant::now();
    while !crate::common::scratch::daemons(l.scratch.path()).is_empty() {
        assert!(began.elapsed() < LIMIT, "the daemon runs on");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn mount_and_umount_by_type_with_source_and_flags() {
    let l = Layers::new(&["echo low >f"]);
    let h = Helpers::install();
    let all = l.all();
    h.run(
        &l,
        &[
            "mount",
            "-t",
            "fuse.reroot",
            "my name",
            "mnt",
            "-o",
            &format!("{all},nodev,nosuid,noexec,noatime"),
        ],
    )
    .ok();
    assert_eq!(sh(&l.mnt(), "cat f; echo w >w; cat w").ok().out(), "low\nw\n");
    assert_eq!(findmnt(&l, "FSTYPE"), "fuse.reroot");
    assert_eq!(findmnt(&l, "SOURCE"), "my name");
    let flags = findmnt(&l, "VFS-OPTIONS");
    assert_eq!(flags, "rw,nosuid,nodev,noexec,noatime");
    h.run(&l, &["umount", "mnt"]).ok();
    assert_eq!(mount_type(&l.mnt()), None);
    // It can be taken at once: nobody holds it any more.
    let held = run(Command::new("flock").args(["-n", "w/lock", "true"]).current_dir(l.scratch.path()), LIMIT);
    held.ok();
    ended(&l);
    h.run(&l, &["mount", "-t", "fuse.reroot", "x", "mnt", "-o", &format!("ro,relatime,{all}")]).ok();
    assert!(sh(&l.mnt(), "echo x >f").err().contains("Read-only file system"));
    h.run(&l, &["umount", "mnt"]).ok();
}

#[test]
fn a_remount_changes_the_running_mount() {
    let l = Layers::new(&["echo low >f"]);
    let h = Helpers::install();
    h.run(&l, &["mount", "-t", "fuse.reroot", "x", "mnt", "-o", &format!("ro,{}", l.all())]).ok();
    let before = crate::common::scratch::daemons(l.scratch.path());
    assert!(sh(&l.mnt(), "echo x >n").err().contains("Read-only file system"));
    h.run(&l, &["mount", "-o", "remount,rw,strictatime", "mnt"]).ok();
    assert_eq!(findmnt(&l, "VFS-OPTIONS"), "rw");
    sh(&l.mnt(), "echo x >n; cat n").ok();
    h.run(&l, &["mount", "-o", "remount,ro,nodev", "mnt"]).ok();
    assert_eq!(findmnt(&l, "VFS-OPTIONS"), "ro,nodev,relatime");
    assert!(sh(&l.mnt(), "rm n").err().contains("Read-only file system"));
    h.run(&l, &["mount", "-o", "remount,rw", "mnt"]).ok();
    // While a file is open for writing it cannot become read-only, as anywhere.
    let open = std::fs::File::options().append(true).open(l.mnt().join("n")).unwrap();
    let busy = h.run(&l, &["mount", "-o", "remount,ro", "mnt"]).expect_code(32);
    assert!(busy.err().contains("in use for writing"), "{}", busy.err());
    drop(open);
    assert_eq!(crate::common::scratch::daemons(l.scratch.path()), before, "the same daemon");
    h.run(&l, &["umount", "mnt"]).ok();
}

#[test]
fn the_type_is_plain_fuse_on_request() {
    let l = Layers::new(&["echo low >f"]);
    let h = Helpers::install();
    for _ in 0..3 {
        h.run(&l, &["mount", "-t", "fuse.reroot", "x", "mnt", "-o", &format!("{},no_subtype", l.all())]).ok();
        assert_eq!(findmnt(&l, "FSTYPE"), "fuse");
        sh(&l.mnt(), "echo x >>log").ok();
        h.run(&l, &["umount", "mnt"]).ok();
    }
    assert_eq!(l.seen(&l.all(), "cat log"), "x\nx\nx\n");
}

#[test]
fn a_helper_says_what_is_wrong_with_the_status_of_mount() {
    let l = Layers::new(&[":"]);
    let h = Helpers::install();
    let wrong = h.run(&l, &["mount", "-t", "fuse.reroot", "x", "mnt", "-o", "lowerdir=none"]);
    assert!(
        wrong.code == Some(1) && wrong.err().contains("lowerdir=none"),
        "{:?} {}",
        wrong.code,
        wrong.err()
    );
    let missing = h.run(&l, &["mount", "-t", "fuse.reroot", "x", "nowhere", "-o", &l.all()]);
    assert_ne!(missing.code, Some(0));
    let not_ours = h.run(&l, &["/sbin/umount.fuse.reroot", "mnt"]).expect_code(32);
    assert!(not_ours.err().contains("mnt"), "{}", not_ours.err());
    h.run(&l, &["/sbin/mount.fuse.reroot", "x", "mnt", "-f", "-o", &l.all()]).ok();
    assert_eq!(mount_type(&l.mnt()), None, "-f mounts nothing");
}

#[test]
fn a_desktop_is_mounted_by_its_name() {
    let l = Layers::new(&["echo low >f"]);
    let source = format!("dir:{}", l.at("l0").display());
    l.program.ok(&["import", &source, "v:1"]);
    l.program.ok(&["create", "pc", "v:1"]);
    let h = Helpers::install();
    h.run(&l, &["mount", "-t", "reroot", "pc", "mnt", "-o", "ro,nodev"]).ok();
    assert!(sh(&l.mnt(), "echo x >f").err().contains("Read-only file system"));
    h.run(&l, &["mount", "-o", "remount,rw,nodev", "mnt"]).ok();
    sh(&l.mnt(), "echo x >n; rm n").ok();
    assert_eq!(sh(&l.mnt(), "cat f").ok().out(), "low\n");
    assert_eq!(findmnt(&l, "SOURCE,FSTYPE").split_whitespace().collect::<Vec<_>>(), ["pc", "fuse.reroot"]);
    h.run(&l, &["umount", "mnt"]).ok();
    ended(&l);
}
