//! Reroot presents layered system images as one copy-on-write root, and swaps the layers under a live mount.
//!
//! ARCHITECTURE.md is the map of this crate; `tests/layering.rs` holds the table of who may import whom.

pub mod cli;
pub mod daemon;
pub mod error;
pub mod fuse;
pub mod layer;
pub mod store;
pub mod sys;
pub mod transfer;
pub mod union;
