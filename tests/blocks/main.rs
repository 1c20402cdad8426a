//! Block-level copy-up: the first write to a large file of the stack copies nothing, and nobody sees that the rest comes
//! later, whatever happens in between.

#[path = "../common/mod.rs"]
mod common;

mod ends;
mod killed;
mod sectors;
mod shown;

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use common::tree::{self, Item};
use common::{Program, Scratch};

/// How long something may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Large enough to be copied in pieces without being asked to, in bytes.
const LARGE: usize = 12 << 20;

/// Numbers that look random, the same for a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n.max(1)
    }
}

/// Bytes that differ from place to place.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice(seed);
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        out.extend_from_slice(&(dice.below(u64::MAX) | 1).to_ne_bytes());
    }
    out.truncate(len);
    out
}

/// A version `os:1` with one large file, `large`, and others; a desktop `d` on it. Gives back what `large` holds.
fn begin() -> (Scratch, Program, Vec<u8>) {
    common::require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    let content = bytes(1, LARGE);
    tree::import(&scratch, &program, "os:1", None, |dir| {
        tree::write(dir, &[("large", Item::File(&content)), ("dir/other", Item::File(b"other\n"))]);
        common::sh(dir, "touch -d '2020-02-02 02:02:02.123456789' large").ok();
    });
    program.ok(&["create", "d", "os:1"]);
    (scratch, program, content)
}

/// Another version, whose large file differs from that of `os:1`, and whose small file from that of any other.
fn upgraded(scratch: &Scratch, program: &Program, version: &str, parent: &str) {
    let newer = bytes(2, LARGE);
    tree::import(scratch, program, version, Some(parent), |dir| {
        tree::write(dir, &[("large", Item::File(&newer)), ("dir/other", Item::File(version.as_bytes()))]);
    });
}

/// The daemon completes nothing by itself.
fn waiting(program: &Program) -> Program {
    program.clone().with_env("REROOT_PIECES", "65536:86400000")
}

/// The daemon begins to complete at once.
fn eager(program: &Program) -> Program {
    program.clone().with_env("REROOT_PIECES", "65536:0")
}

/// How many files are still to be copied, and how many bytes of them.
#[track_caller]
fn missing(program: &Program) -> (u64, Option<u64>) {
    let status = program.json(&["status", "d"]);
    (status["copying"]["files"].as_u64().unwrap(), status["copying"]["bytes"].as_u64())
}

/// Waits until something is so.
#[track_caller]
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < LIMIT, "{what}: still not so");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until everything is copied.
#[track_caller]
fn until_complete(program: &Program) {
    until("everything is copied", || missing(program).0 == 0);
}

fn update(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}
