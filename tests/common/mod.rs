//! What whole-program tests share: a place to work that cleans up after itself, the program with a time limit,
//! mounts that end with their guard, small trees, and disks of other file systems.
//!
//! No test may hang. The program runs under a time limit; what a test itself reads or writes through a mount
//! goes through [`within`] or [`sh`], which give up after a while.
#![allow(dead_code)] // Each test program uses a part of this.

pub mod changes;
pub mod desk;
pub mod disk;
pub mod mix;
pub mod program;
pub mod scratch;
pub mod successor;
pub mod tree;

#[allow(unused_imports)]
pub use disk::Disk;
#[allow(unused_imports)]
pub use program::{Answer, Mount, Program, sh, within};
#[allow(unused_imports)]
pub use scratch::Scratch;

/// Whole-program tests mount file systems; without root they could only pass by not testing.
pub fn require_root() {
    assert!(program::is_root(), "whole-program tests need root; run `make test` as root");
}
