//! Layers and trees: what a stack of layers shows, as one index.
//!
//! - [`model`]: a tree of paths in memory;
//! - [`merge`]: a delta onto a tree, the delta between two trees (pure);
//! - [`encode`] and [`index`]: the one file format that layers and trees share, written and read in place;
//! - [`diff`]: the difference of two trees, skipping what is equal;
//! - [`stack`]: layers and trees in the store.
//!
//! Nothing here knows of FUSE, mounts or user layers.

pub mod diff;
pub mod encode;
pub mod index;
pub mod merge;
pub mod model;
pub mod stack;
