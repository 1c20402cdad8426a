//! fsx: random operations on one file, each read checked against what was written. It runs on a new file and on one of
//! the stack, which it cuts to nothing first; see [`crate::exerciser`] for old content.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::common::successor::replace_daemon;
use crate::common::tree::{self, Item};
use crate::common::{Disk, Program, Scratch, require_root};
use crate::{times, tool};

/// How long one run may take.
const LIMIT: Duration = Duration::from_secs(600);

/// After how many operations a version is swapped.
const BETWEEN_SWAPS: u64 = 4000;

/// How many operations one process makes. fsx leaves mappings behind, and each call that cuts a file becomes slower
/// by them.
const PIECE: u64 = 20_000;

/// One kind syncs after each write to a mapping, the others write to mappings more often.
fn settings(kind: u64) -> String {
    let (nosync, mapwrite) = if kind == 1 { (false, 1) } else { (true, 10) };
    format!("flen = 262144\nnomsyncafterwrite = {nosync}\n{SETTINGS}mapwrite = {mapwrite}\n")
}

/// (An operation without length would be a posix_fallocate(3) without one, which is refused everywhere.)
const SETTINGS: &str = "[opsize]
min = 1
max = 20000
[weights]
close_open = 1
read = 10
write = 10
mapread = 10
invalidate = 1
truncate = 4
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 1
punch_hole = 3
sendfile = 2
posix_fadvise = 1
copy_file_range = 4
";

/// A program that does not outlive a test that fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs fsx; calls `between` after each [`BETWEEN_SWAPS`] operations, while it runs on.
#[track_caller]
fn fsx(scratch: &Scratch, file: &Path, kind: u64, seed: u64, operations: u64, mut between: impl FnMut()) {
    let config = scratch.join(format!("fsx-{kind}.toml"));
    std::fs::write(&config, settings(kind)).unwrap();
    let artifacts = scratch.dir(&format!("fsx-{seed}"));
    // It says each operation (-v), by which it is paced.
    let child = Command::new(tool("fsx"))
        .arg("-v")
        .arg("-f")
        .arg(config)
        .args(["-S", &seed.to_string(), "-N", &operations.to_string(), "-P"])
        .args([&artifacts, file])
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Running(child);
    let (send, receive) = mpsc::channel();
    let outputs: [Box<dyn std::io::Read + Send>; 2] =
        [Box::new(child.0.stdout.take().unwrap()), Box::new(child.0.stderr.take().unwrap())];
    let readers = outputs.map(|output| {
        let send = send.clone();
        std::thread::spawn(move || {
            let (mut seen, mut last) = (0, std::collections::VecDeque::new());
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                seen += 1;
                if seen % BETWEEN_SWAPS == 0 {
                    let _ = send.send(());
                }
                if last.len() == 60 {
                    last.pop_front();
                }
                last.push_back(line);
            }
            Vec::from(last)
        })
    });
    drop(send);
    let began = Instant::now();
    loop {
        match receive.recv_timeout(LIMIT.saturating_sub(began.elapsed())) {
            Ok(()) => between(),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                panic!("fsx with seed {seed} on {}: not done after {LIMIT:?}", file.display())
            }
        }
    }
    let status = child.0.wait().unwrap();
    let said: Vec<String> = readers.into_iter().flat_map(|r| r.join().unwrap()).collect();
    assert!(
        status.success() && said.iter().any(|l| l.contains("A-OK")),
        "fsx with seed {seed} on {}: {status}\n{}",
        file.display(),
        said.join("\n")
    );
}

/// What happens while fsx runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    /// The desktop is swapped.
    Swaps,
    /// Its daemon is killed, and another one goes on.
    Ends,
}

/// Several seeds, each on new files and on files of the stack, with swaps between two versions that differ in them, or
/// with daemons that end.
fn seeds(options: &str, count: u64, operations: u64, meanwhile: Meanwhile) {
    require_root();
    let operations = times("REROOT_FSX_OPERATIONS", operations);
    let outer = Scratch::new();
    let disk = Disk::new(&outer, "ext4", "disk", 512);
    disk.careless();
    let scratch = Scratch::at(disk.path().join("s"));
    let program = Program::new(&scratch);
    for (version, parent) in [(1u8, None), (2, Some("os:1"))] {
        tree::import(&scratch, &program, &format!("os:{version}"), parent, |dir| {
            let old = vec![version; 300_000];
            for piece in 0..operations.div_ceil(PIECE) {
                tree::write(dir, &[(&format!("dir/stack-{piece}"), Item::File(&old))]);
            }
        });
    }
    for seed in 1..=times("REROOT_FSX_SEEDS", count) {
        program.ok(&["create", "d", "os:1"]);
        let mount = program.mount_with("d", scratch.mnt(), options);
        let (mut done, mut to) = (0, ["os:2", "os:1"]);
        for piece in 0..operations.div_ceil(PIECE) {
            let name = if piece % 2 == 0 { format!("new-{piece}") } else { format!("dir/stack-{piece}") };
            fsx(&outer, &mount.join(name), seed, seed * 1000 + piece, PIECE, || {
                match meanwhile {
                    Meanwhile::Swaps => {
                        program.ok(&["upgrade", "d", "--to", to[0]]);
                        to.reverse();
                    }
                    Meanwhile::Ends => replace_daemon(&program, "d"),
                }
                done += 1;
            });
        }
        // It says nothing of operations without effect.
        assert!(done >= operations / PIECE * (PIECE / BETWEEN_SWAPS - 1), "{done} times");
        mount.umount();
        program.ok(&["rm", "d"]);
    }
}

#[test]
fn fsx_finds_nothing_with_live_swaps() {
    seeds("", 3, 200_000, Meanwhile::Swaps);
}

#[test]
fn fsx_finds_nothing_where_the_daemon_reads_and_writes() {
    seeds("data=coherent", 1, 200_000, Meanwhile::Swaps);
}

#[test]
fn fsx_goes_on_when_the_daemon_is_killed() {
    seeds("", 1, 60_000, Meanwhile::Ends);
}

#[test]
fn fsx_goes_on_when_the_daemon_that_reads_and_writes_is_killed() {
    seeds("data=coherent", 1, 60_000, Meanwhile::Ends);
}
