//! What others wrote to find faults in file systems, run on mounts whose tree comes from a version, and an exerciser
//! of our own for what they leave out.

#[path = "../common/mod.rs"]
mod common;

mod exerciser;
mod fsx;
mod links;
mod pjdfstest;

use std::path::{Path, PathBuf};

/// A suite's program, built by `scripts/setup test` into `target/tools`.
#[track_caller]
fn tool(name: &str) -> PathBuf {
    // target/PROFILE/reroot
    let target = Path::new(env!("CARGO_BIN_EXE_reroot")).ancestors().nth(2).unwrap_or(Path::new("target"));
    let path = target.join("tools/bin").join(name);
    assert!(path.exists(), "{} is missing; scripts/setup test builds it", path.display());
    path
}

/// How often something is repeated: a number from the environment for long runs, else what fits in a change's tests.
fn times(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().map_or(otherwise, |n| {
        n.parse().unwrap_or_else(|_| panic!("{variable} is {n:?}, which is no number"))
    })
}
