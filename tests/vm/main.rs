//! A virtual machine whose root is a desktop: a real QEMU, a real kernel and a real Debian, upgraded and taken back with
//! its user's files kept.
//!
//! The Debian is made by `scripts/setup test`. Where nothing is said of it a guest runs `/sbin/quick-init`, which does what
//! the words in `do=` on the kernel's command line say; that is user space after two seconds and not after ten.

#[path = "../common/mod.rs"]
mod common;

mod beside;
mod boot;
mod ends;
mod guest;
mod handles;
mod libvirt;
#[path = "../../benches/guests/machine.rs"]
mod machine;
mod many;
mod story;
mod units;
mod words;
