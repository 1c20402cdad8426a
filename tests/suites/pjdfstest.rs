//! pjdfstest: what POSIX says of system calls on files, 398 cases. What passes on ext4 passes on Reroot.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::program::run;
use crate::common::tree::{self, Item};
use crate::common::{Disk, Program, Scratch, require_root, sh};
use crate::tool;

/// How long one run of the suite may take; it takes a few seconds.
const LIMIT: Duration = Duration::from_secs(300);

/// The cases of the suite when this was written; a version with fewer is not the suite that is meant.
const CASES: usize = 398;

/// A case's name to `ok`, `skipped` or `FAILED` with what it said.
type Results = BTreeMap<String, String>;

/// Runs the suite in a directory. With `remount`, the cases of a file system that becomes read-only; without it, all
/// others.
#[track_caller]
fn suite(scratch: &Scratch, dir: &Path, remount: bool) -> Results {
    // Users that every Debian has. Birth times are a feature of other systems' stat(2), for which the suite has no
    // cases on Linux; it is named so that a version that has them runs them.
    let settings = format!(
        "[features]\nposix_fallocate = {{}}\nrename_ctime = {{}}\nstat_st_birthtime = {{}}\nutime_now = {{}}\n\
         utimensat = {{}}\n[settings]\nnaptime = 0.02\nallow_remount = {remount}\n\
         [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n"
    );
    let file = scratch.join(format!("pjdfstest-{remount}.toml"));
    std::fs::write(&file, settings).unwrap();
    // The suite calls `mount -o remount,…`. Without a helper the kernel itself is asked.
    let bin = scratch.dir("bin");
    tree::write(
        &bin,
        &[("mount", Item::Mode(b"#!/bin/sh\nPATH=${PATH#*:}\nexec mount --internal-only \"$@\"\n", 0o755))],
    );
    let path = format!("{}:{}:/usr/sbin:/sbin", bin.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(tool("pjdfstest"));
    command.arg("-c").arg(&file).arg("-p").arg(dir).arg("-s").arg(scratch.path());
    command.env("PATH", path).env("NO_COLOR", "1");
    if remount {
        command.arg("erofs");
    }
    let answer = run(&mut command, LIMIT);
    let mut results = Results::new();
    let text = answer.out();
    let mut last = String::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(name), Some(result @ ("ok" | "skipped" | "FAILED")), None) if name.contains("::") => {
                last = name.to_string();
                results.insert(last.clone(), result.to_string());
            }
            _ => {
                if let Some(result) = results.get_mut(&last).filter(|r| r.starts_with("FAILED")) {
                    *result += &format!("\n    {}", line.trim());
                }
            }
        }
    }
    let total = if remount { 1 } else { CASES };
    assert!(results.len() >= total, "only {} cases ran\n{text}{}", results.len(), answer.err());
    results
}

/// The cases that ended in another way than expected.
fn differing(results: &Results, expected: impl Fn(&str) -> &'static str) -> Vec<String> {
    let wrong = results.iter().filter(|(name, result)| **result != expected(name));
    wrong.map(|(name, result)| format!("{name}: {result}")).collect()
}

/// Without a remount, everything passes but what needs one.
fn plain(name: &str) -> &'static str {
    if name.contains("::erofs_") { "skipped" } else { "ok" }
}

/// As [`plain`], but for the case of the greatest number of links, which the suite skips where pathconf(3) knows
/// none; glibc knows it of ext4 only. See [`crate::links`].
fn on_fuse(name: &str) -> &'static str {
    if name == "link::link_count_max" { "skipped" } else { plain(name) }
}

/// A desktop on a disk of ext4, on the second of three versions. The directory `work` has names of the stack in it.
fn with_desktop(options: &str, test: impl FnOnce(&Scratch, &Program, &Path)) {
    require_root();
    let outer = Scratch::new();
    let disk = Disk::new(&outer, "ext4", "disk", 512);
    let scratch = Scratch::at(disk.path().join("s"));
    let program = Program::new(&scratch);
    for version in 1..=3u8 {
        let parent = (version > 1).then(|| format!("os:{}", version - 1));
        tree::import(&scratch, &program, &format!("os:{version}"), parent.as_deref(), |dir| {
            tree::small(dir);
            let text = [b'0' + version; 200];
            for n in 0..20 {
                tree::write(dir, &[(&format!("work/stack-{n}"), Item::File(&text))]);
            }
            tree::write(dir, &[(&format!("work/only-{version}/file"), Item::File(&text))]);
            sh(dir, "chmod 755 work").ok();
        });
    }
    program.ok(&["create", "d", "os:2"]);
    let mount = program.mount_with("d", scratch.mnt(), options);
    let work = mount.join("work");
    test(&outer, &program, &work);
    mount.umount();
}

#[test]
fn pjdfstest_passes_as_on_ext4() {
    require_root();
    let scratch = Scratch::new();
    let disk = Disk::new(&scratch, "ext4", "ext4", 300);
    let ext4 = suite(&scratch, disk.path(), false);
    assert_eq!(differing(&ext4, plain), Vec::<String>::new(), "on ext4");
    for options in ["", "data=coherent", "data=passthrough"] {
        with_desktop(options, |scratch, _, work| {
            let seen = suite(scratch, work, false);
            assert_eq!(differing(&seen, on_fuse), Vec::<String>::new(), "on Reroot with {options:?}");
            assert!(seen.keys().eq(ext4.keys()), "other cases ran on ext4");
        });
    }
}

#[test]
fn pjdfstest_passes_on_a_file_system_that_becomes_read_only() {
    require_root();
    let scratch = Scratch::new();
    let disk = Disk::new(&scratch, "ext4", "ext4", 300);
    let ext4 = suite(&scratch, disk.path(), true);
    assert_eq!(differing(&ext4, |_| "ok"), Vec::<String>::new(), "on ext4");
    with_desktop("", |scratch, _, work| {
        let seen = suite(scratch, work, true);
        assert_eq!(differing(&seen, |_| "ok"), Vec::<String>::new(), "on Reroot");
        assert!(seen.keys().eq(ext4.keys()), "other cases ran on ext4");
    });
}

#[test]
fn pjdfstest_passes_while_the_version_is_swapped_beneath_it() {
    with_desktop("", |scratch, program, work| {
        let swaps = std::thread::scope(|scope| {
            let running = scope.spawn(|| suite(scratch, work, false));
            let mut swaps = 0;
            while !running.is_finished() {
                let to = ["os:3", "os:1", "os:2"][swaps % 3];
                program.swap(&["upgrade", "d", "--to", to]);
                swaps += 1;
            }
            let seen = running.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause));
            assert_eq!(differing(&seen, on_fuse), Vec::<String>::new());
            swaps
        });
        assert!(swaps >= 2, "{swaps} swaps");
    });
}
