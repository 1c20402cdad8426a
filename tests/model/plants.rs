//! The model must find faults: here are some that it must.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::common::{self, Program, program};
use super::trial::World;
use super::{BATCH, run};

/// Each fault of `union/plant.rs`, and the first seed that found it: its batch is tried first, which is quick. It only
/// has to be put right where operations are drawn otherwise; until then the search from the first seed on finds another.
const FAULTS: [(&str, u64); 13] = [
    ("unlink-without-whiteout", 0),
    ("mkdir-forgets-opaque", 12),
    ("link-does-not-count", 0),
    ("move-forgets-what-it-stands-on", 0),
    ("truncate-answers-another-size", 194),
    ("chmod-is-not-noted", 0),
    ("copy-up-loses-xattrs", 0),
    ("copy-up-drops-setgid", 0),
    ("copy-up-changes-the-number", 0),
    ("copy-up-breaks-links", 82),
    ("swap-loses-what-is-open", 630),
    ("readdir-shows-whiteouts", 54),
    ("swap-keeps-what-was-not-there", 0),
];

/// How many sequences may pass before one finds the fault.
const SEQUENCES: u64 = 100 * BATCH;

/// Builds the program with the faults, beside the one that the tests run.
fn build() -> PathBuf {
    let usual = Path::new(env!("CARGO_BIN_EXE_reroot"));
    let profile = usual.parent().expect("the program lies in a directory of its profile");
    let target = profile.parent().expect("profiles lie in the target directory");
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    cargo
        .args(["build", "--quiet", "--offline", "--bin", "reroot-planted", "--features", "planted-faults"])
        .arg("--target-dir")
        .arg(target)
        .arg("--manifest-path")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    program::run(&mut cargo, Duration::from_secs(900)).ok();
    profile.join("reroot-planted")
}

/// Every fault is found, and the same sequences pass where none is planted.
#[test]
fn each_planted_fault_is_found() {
    let exe = build();
    let limit = Duration::from_secs(1500);
    let texts = common::within(limit, "looking for the planted faults", move || {
        let mut world = World::new(|p| p.with_exe(exe));
        let whole: Program = world.program.clone();
        let only = std::env::var("REROOT_MODEL_PLANT").ok();
        let mut wrong = Vec::new();
        let mut batches = std::collections::BTreeSet::new();
        for (fault, first) in FAULTS.iter().filter(|(f, _)| only.as_deref().is_none_or(|o| o == *f)) {
            world.program = whole.clone().with_env("REROOT_PLANT", fault);
            let mut outcome = run(&world, first / BATCH * BATCH, BATCH, 1);
            if outcome.failures.is_empty() {
                outcome = run(&world, 0, SEQUENCES, 1);
            }
            match outcome.failures.first() {
                Some(failure) => {
                    println!("{fault}: found by seed {} after {} sequences", failure.seed, outcome.run);
                    batches.insert(failure.seed / BATCH);
                }
                None => wrong.push(format!("{fault} was not found in {} sequences", outcome.run)),
            }
        }
        world.program = whole;
        for batch in batches {
            if let Some(failure) = run(&world, batch * BATCH, BATCH, 1).failures.first() {
                wrong
                    .push(format!("no fault is planted, and seed {} fails: {}", failure.seed, failure.wrong));
            }
        }
        wrong
    });
    assert!(texts.is_empty(), "{}", texts.join("\n"));
}
