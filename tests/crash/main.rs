//! kill -9 at any moment of an import, a mount, a commit, a swap or a collection: the store opens again and is
//! whole, and what was fsynced in a mount is there.

#[path = "../common/mod.rs"]
mod common;

mod fsynced;
mod pins;
mod power;
mod store;
mod sweep;
mod user_layer;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::tree::{self, Item};
use common::{Program, Scratch, sh};

/// Numbers that look random, the same in every run; the moments at which something is killed still differ.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    /// A moment within the time that something takes, or a little later.
    fn moment(&mut self, takes: Duration) -> Duration {
        Duration::from_micros(self.below(takes.as_micros() as u64 * 11 / 10 + 1000))
    }
}

/// A base and a second tree: small files, and some large enough that their copying can be cut off.
fn fill(dir: &Path, version: u8) {
    tree::small(dir);
    for i in 0..150 {
        let text = format!("file {i} of {}\n", if i % 3 == 0 { version } else { 0 });
        tree::write(dir, &[(&format!("usr/share/many/{i}"), Item::File(text.as_bytes()))]);
    }
    for i in 0..12 {
        let bytes = vec![if i % 2 == 0 { version } else { 0 } + i; 700_000];
        tree::write(dir, &[(&format!("usr/lib/big/{i}"), Item::File(&bytes))]);
    }
    sh(dir, "find . -depth -exec touch -h -d '2020-02-02' {} +").ok();
}

/// Starts a command, kills it after a while unless it ended before.
fn kill_after(program: &Program, args: &[&str], after: Duration) {
    let mut child = program
        .command(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(after);
    let _ = child.kill();
    child.wait().unwrap();
}

/// How long a command takes when nobody kills it.
fn takes(program: &Program, args: &[&str]) -> Duration {
    let began = Instant::now();
    program.ok(args);
    began.elapsed()
}

/// The store opens, is whole, and lists what it has.
#[track_caller]
fn whole(program: &Program) {
    program.ok(&["fsck", "--deep"]);
    program.json(&["images"]);
    program.json(&["desktops"]);
}

/// Nothing that a killed program was making is left after a collection.
#[track_caller]
fn no_leftovers(scratch: &Scratch, program: &Program) {
    program.ok(&["gc"]);
    let found = "find . -path '*/user' -prune -o \\( -name '.tmp-*' -o -name '.intake*' \\) -print";
    assert_eq!(sh(&scratch.store(), found).ok().out(), "");
}

fn objects(scratch: &Scratch) -> String {
    sh(&scratch.store(), "find objects layers trees versions -type f | sort").ok().out()
}
