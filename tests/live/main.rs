//! A mount outlives its daemon: what is open goes on, what was asked is answered once, and the next daemon knows what the
//! one before had told the kernel. Only the daemon is killed here; `Scratch::kill_daemons` ends its supervisor too.

#![allow(unsafe_code)] // Files are mapped.

#[path = "../common/mod.rs"]
mod common;

mod changes;
mod ends;
mod open;
mod swaps;
