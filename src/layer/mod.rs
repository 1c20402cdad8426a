//! Layers and trees: what a stack of layers shows, as one index.
//!
//! - [`model`]: a tree of paths in memory;
//! - [`merge`]: a delta onto a tree, the delta between two trees (pure);
//! - [`encode`] and [`index`]: the one file format that layers and trees share, written and read in place;
//! - [`diff`]: the difference of two trees, skipping what is equal;
//! - [`stack`]: layers and trees in the store;
//! - [`check`] and [`reach`]: whether all of it is whole, and what of it is needed.
//!
//! Nothing here knows of FUSE, mounts or user layers.

pub mod check;
pub mod diff;
pub mod encode;
pub mod index;
pub mod merge;
pub mod model;
pub mod reach;
pub mod stack;

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
pub(crate) mod sample;
