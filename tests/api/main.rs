//! Linux's file API, operation by operation: what a mount does is what ext4 does.
//!
//! Most tests here are [`twins::twins`]: the same steps on a plain directory of the host's file system and on a view,
//! on files that come from the stack and on files that were born in the user layer, and everything that the steps
//! said and everything that can be seen afterwards must be equal. A difference that is meant is a line in
//! SEMANTICS.md, and its test holds both sides of it.

#[path = "../common/mod.rs"]
mod common;

mod agent;
mod sys;
mod twins;

mod acl;
mod attributes;
mod directories;
mod durable;
mod flags;
mod handles;
mod ids;
mod links;
mod locks;
mod memory;
mod names;
mod notify;
mod privileges;
mod processes;
mod space;
mod times;
