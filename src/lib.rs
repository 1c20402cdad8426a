//! Reroot presents layered system images as one copy-on-write root, and swaps the layers under a live mount.
//!
//! ARCHITECTURE.md is the map of this crate; `tests/layering.rs` holds the table of who may import whom.

#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::expect_used)
)]

pub mod boot;
pub mod cli;
pub mod daemon;
pub mod error;
pub mod fuse;
pub mod layer;
pub mod store;
pub mod sys;
pub mod transfer;
pub mod union;
pub mod vm;
