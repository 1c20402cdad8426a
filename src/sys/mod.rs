//! Every system call and every line of `unsafe`.
//!
//! The rest of the program works with descriptors and byte-string names; nothing outside this folder names
//! `libc` functions or `rustix`. Paths inside a layer are opened beneath a descriptor ([`fs::open_beneath`]),
//! so that neither a symbolic link nor `..` leads out of it.
#![allow(unsafe_code)]

pub mod fs;
pub mod handle;
pub mod inode_flags;
pub mod lock;
pub mod map;
pub mod mount;
pub mod notify;
pub mod pass;
pub mod process;
pub mod publish;
pub mod service;
pub mod shared;
pub mod xattr;
