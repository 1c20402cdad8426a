//! Mappings, direct I/O, and bytes that go from file to file inside the kernel.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs as rfs;

use crate::common::desk::desk;
use crate::common::tree::{self, Item};
use crate::sys;
use crate::twins::{twins, twins_on};

const LEN: usize = 3 << 20;

fn fill(dir: &Path) {
    let large: Vec<u8> = (0..LEN).map(|i| (i / 512) as u8).collect();
    tree::write(
        dir,
        &[
            ("small", Item::Mode(&large[..20_000], 0o666)),
            ("large", Item::Mode(&large, 0o666)),
            ("empty", Item::File(b"")),
        ],
    );
}

fn update(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn mapped(at: &crate::twins::At) {
    for name in ["small", "large"] {
        let file = update(&at.path(name));
        let reader = File::open(at.path(name)).unwrap();
        let len = file.metadata().unwrap().len() as usize;
        let map = sys::map(&file, len).unwrap();
        let mut buf = [0; 16];
        let mut read = |file: &File, from: u64| {
            file.read_exact_at(&mut buf, from).unwrap();
            buf
        };
        sys::store(&map, 100, b"by mapping");
        at.note("by read", read(&file, 100));
        file.write_all_at(b"by write", 5000).unwrap();
        at.note("by mapping", sys::load(&map, 5000, 16));
        let other = sys::map(&update(&at.path(name)), len).unwrap();
        sys::store(&map, 9000, b"between mappings");
        at.note("another mapping", sys::load(&other, 9000, 16));
        // The mapping outlives its descriptor, and what it writes then arrives too.
        drop(file);
        sys::store(&map, 12_000, b"after the close");
        at.did("msync", map.flush());
        at.note("by a new open", read(&File::open(at.path(name)).unwrap(), 12_000));
        sys::store(&map, 13_000, b"without msync");
        drop((map, other));
        at.note("after the unmap", read(&File::open(at.path(name)).unwrap(), 13_000));
        // A reader of before sees it where the kernel lets it: on ext4 always, in the view see SEMANTICS.md.
        if name == "small" {
            at.note("by a reader", read(&reader, 12_000));
        }
    }
}

#[test]
fn what_a_mapping_writes_is_read_also_after_the_close() {
    twins(fill, mapped);
}

#[test]
fn what_a_mapping_writes_is_read_also_through_the_page_cache() {
    twins_on("data=coherent", fill, mapped);
}

#[test]
fn a_mapping_shows_the_length_in_stat_and_the_times_move() {
    desk("", fill, |d| {
        for name in ["small", "large"] {
            d.sh(&format!("touch -d @1000000000 {name}"));
            let file = update(&d.at(name));
            let map = sys::map(&file, 4096).unwrap();
            drop(file);
            sys::store(&map, 0, b"written");
            map.flush().unwrap();
            drop(map);
            // The attributes of a file that a mapping wrote settle within a second.
            let began = std::time::Instant::now();
            while d.sh(&format!("stat -c %Y {name}")) == "1000000000" {
                assert!(began.elapsed() < std::time::Duration::from_secs(60), "{name}: the time never moved");
            }
        }
    });
}

/// A buffer for direct I/O: its bytes from `at` on are aligned to 4,096.
fn aligned(len: usize) -> (Vec<u8>, usize) {
    let buf = vec![0u8; len + 4096];
    let at = buf.as_ptr().align_offset(4096);
    (buf, at)
}

fn direct(at: &crate::twins::At) {
    for name in ["small", "large", "empty"] {
        let opened =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(at.path(name));
        let Some(file) = at.got(name, opened) else { continue };
        let (mut buf, from) = aligned(8192);
        let block = &mut buf[from..from + 4096];
        at.did("read", file.read_at(block, 4096));
        at.note("bytes", &block[..32]);
        at.did("read the end", file.read_at(block, 16384));
        at.did("read beyond", file.read_at(block, 8 << 20));
        block.fill(b'd');
        at.did("write", file.write_at(block, 8192));
        let mut seen = [0; 8];
        at.did("seen by others", File::open(at.path(name)).unwrap().read_at(&mut seen, 8192));
        at.note("bytes", seen);
        update(&at.path(name)).write_all_at(b"buffered", 4096).unwrap();
        at.did("read what was written otherwise", file.read_at(block, 4096));
        at.note("bytes", &block[..8]);
        at.did("extend", file.write_at(block, 4 << 20));
        at.did("length", file.metadata().map(|m| m.len()));
        at.did("sync", file.sync_all());
    }
}

#[test]
fn direct_io_and_buffered_io_see_each_other() {
    twins(fill, direct);
}

#[test]
fn direct_io_works_through_the_daemon_too() {
    twins_on("data=coherent", fill, direct);
}

#[test]
fn bytes_go_from_file_to_file_inside_the_kernel() {
    twins(fill, |at| {
        for name in ["small", "large"] {
            let from = File::open(at.path(name)).unwrap();
            let to = update(&at.path("empty"));
            // sendfile(2)
            let mut offset = 4000;
            at.did("sendfile", rfs::sendfile(&to, &from, Some(&mut offset), 6000));
            at.note("offset", offset);
            // splice(2), through a pipe, both ways
            let (out, input) = rustix::pipe::pipe().unwrap();
            let flags = rustix::pipe::SpliceFlags::empty();
            let (mut a, mut b) = (512, 100_000);
            at.did("splice in", rustix::pipe::splice(&from, Some(&mut a), &input, None, 4096, flags));
            at.did("splice out", rustix::pipe::splice(&out, None, &to, Some(&mut b), 4096, flags));
            // copy_file_range(2) onto itself and between files
            let both = update(&at.path(name));
            let (mut a, mut b) = (0, 10_000);
            at.did("range", rfs::copy_file_range(&both, Some(&mut a), &both, Some(&mut b), 5000));
            let (mut a, mut b) = (0, 100);
            at.did("overlapping", rfs::copy_file_range(&both, Some(&mut a), &both, Some(&mut b), 5000));
            let (mut a, mut b) = (100, 200_000);
            at.did("to another", rfs::copy_file_range(&both, Some(&mut a), &to, Some(&mut b), 7000));
            let (mut a, mut b) = (1 << 30, 0);
            at.did("beyond", rfs::copy_file_range(&both, Some(&mut a), &to, Some(&mut b), 7000));
            let (mut a, mut b) = (0, 0);
            at.did("from one for writing", {
                let writer = OpenOptions::new().write(true).open(at.path(name)).unwrap();
                rfs::copy_file_range(&writer, Some(&mut a), &to, Some(&mut b), 10)
            });
            at.did("to one for reading", rfs::copy_file_range(&to, Some(&mut a), &from, Some(&mut b), 10));
            let append = OpenOptions::new().append(true).open(at.path("empty")).unwrap();
            at.did(
                "to one for appending",
                rfs::copy_file_range(&both, Some(&mut a), &append, Some(&mut b), 10),
            );
        }
    });
}

#[test]
fn advice_and_readahead_are_taken() {
    twins(fill, |at| {
        for name in ["small", "large"] {
            let file = update(&at.path(name));
            for advice in [
                rfs::Advice::Sequential,
                rfs::Advice::Random,
                rfs::Advice::WillNeed,
                rfs::Advice::NoReuse,
                rfs::Advice::DontNeed,
                rfs::Advice::Normal,
            ] {
                at.did(&format!("{advice:?}"), rfs::fadvise(&file, 0, None, advice));
            }
            (&file).write_all(b"after the advice").unwrap();
            file.sync_all().unwrap();
            at.did("drop", rfs::fadvise(&file, 0, None, rfs::Advice::DontNeed));
            let mut bytes = Vec::new();
            File::open(at.path(name)).unwrap().read_to_end(&mut bytes).unwrap();
            at.note("bytes", &bytes[..20]);
        }
    });
}

#[test]
fn old_mappings_of_a_file_that_is_replaced_keep_their_bytes() {
    twins(fill, |at| {
        for name in ["small", "large"] {
            let map = sys::map(&update(&at.path(name)), 4096).unwrap();
            fs::write(at.path("new"), "new").unwrap();
            fs::rename(at.path("new"), at.path(name)).unwrap();
            at.note("mapped", sys::load(&map, 0, 16));
            sys::store(&map, 0, b"into nothing");
            at.did("msync", map.flush());
            at.note("mapped", sys::load(&map, 0, 16));
            at.did("by name", fs::read(at.path(name)));
        }
    });
}
