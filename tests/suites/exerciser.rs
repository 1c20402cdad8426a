//! Random operations on files of the stack whose old content is checked from the first to the last, through handles
//! with and without `O_DIRECT` at once, against a copy in memory. What fsx leaves out: it begins with an empty file
//! and knows no direct I/O.
#![allow(unsafe_code)] // Mappings.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{self as rfs, FallocateFlags};

use crate::common::tree::{self, Item};
use crate::common::{Disk, Program, Scratch, require_root, within};
use crate::times;

const BLOCK: usize = 4096;
/// Files of the stack, small and large: those above a mebibyte are read past the daemon.
const SIZES: [usize; 6] = [0, 1, 5_000, 200_000, 1 << 20, 1_500_001];
/// Operations on one file before the next.
const EACH: u64 = 1500;
/// No file becomes longer.
const LONGEST: u64 = 2_000_000;

/// Numbers that look random, the same for a seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let first = self.next();
        (0..len).map(|i| (first + i as u64 * 7 + (i as u64 >> 9)) as u8).collect()
    }
}

/// The content of a file of the stack in a version.
fn content(version: u64, file: u64, size: usize) -> Vec<u8> {
    Dice(version * 1000 + file).bytes(size)
}

/// A piece of memory at an address that direct I/O takes.
struct Aligned(Vec<u8>);

impl Aligned {
    fn new(len: usize) -> Aligned {
        Aligned(vec![0; len + BLOCK])
    }

    fn piece(&mut self, len: usize) -> &mut [u8] {
        let at = self.0.as_ptr().align_offset(BLOCK);
        &mut self.0[at..at + len]
    }
}

/// What a file must hold, and the handles on it.
struct Exercise {
    name: String,
    model: Vec<u8>,
    buffered: File,
    direct: File,
    memory: Aligned,
    log: Vec<String>,
}

impl Exercise {
    fn open(path: &Path) -> (File, File) {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let buffered = options.open(path).unwrap();
        (buffered, options.custom_flags(libc::O_DIRECT).open(path).unwrap())
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        let from = self.log.len().saturating_sub(40);
        panic!("{}: {what}\n{}", self.name, self.log[from..].join("\n"))
    }

    #[track_caller]
    fn check(&self, what: &str, at: usize, seen: &[u8]) {
        let end = (at + seen.len()).min(self.model.len());
        let wanted = self.model.get(at..end).unwrap_or_default();
        if seen != wanted {
            let first = seen.iter().zip(wanted).position(|(a, b)| a != b);
            self.fail(&format!(
                "{what} at {at}: {} bytes instead of {}, first differing {:?}",
                seen.len(),
                wanted.len(),
                first.map(|f| (at + f, seen[f], wanted[f]))
            ));
        }
    }

    fn read_all(&mut self, file: &File, at: usize, len: usize) {
        let mut seen = vec![0; len];
        let mut got = 0;
        while got < len {
            match file.read_at(&mut seen[got..], (at + got) as u64) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(e) => self.fail(&format!("reading at {at}: {e}")),
            }
        }
        let wanted = self.model.len().saturating_sub(at).min(len);
        if got != wanted {
            self.fail(&format!("reading at {at}: {got} bytes instead of {wanted}"));
        }
        self.check("reading", at, &seen[..got]);
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if self.model.len() < at + bytes.len() {
            self.model.resize(at + bytes.len(), 0);
        }
        self.model[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn step(&mut self, dice: &mut Dice, path: &Path) {
        let size = self.model.len() as u64;
        let at = dice.below((size + 10_000).min(LONGEST)) as usize;
        let len = (dice.below(30_000) as usize).min(LONGEST as usize - at);
        // Whole blocks for direct I/O.
        let (block_at, block_len) = (at / BLOCK * BLOCK, len.div_ceil(BLOCK).max(1) * BLOCK);
        let choice = dice.below(100);
        self.log.push(format!("{choice} at {at} for {len} of {size}"));
        match choice {
            0..15 => {
                let file = self.buffered.try_clone().unwrap();
                self.read_all(&file, at, len);
            }
            15..30 => {
                let bytes = dice.bytes(len);
                self.buffered.write_all_at(&bytes, at as u64).unwrap();
                if len > 0 {
                    self.put(at, &bytes);
                }
            }
            30..45 => {
                let mut memory = std::mem::replace(&mut self.memory, Aligned::new(0));
                let piece = memory.piece(block_len);
                match self.direct.read_at(piece, block_at as u64) {
                    // What lies behind the end is not the file's.
                    Ok(n) => {
                        let wanted = self.model.len().saturating_sub(block_at).min(block_len);
                        if n != wanted {
                            self.fail(&format!(
                                "direct reading at {block_at}: {n} bytes instead of {wanted}"
                            ));
                        }
                        self.check("direct reading", block_at, &piece[..n]);
                    }
                    Err(e) => self.fail(&format!("direct reading at {block_at}: {e}")),
                }
                self.memory = memory;
            }
            45..60 => {
                let bytes = dice.bytes(block_len);
                let mut memory = std::mem::replace(&mut self.memory, Aligned::new(0));
                memory.piece(block_len).copy_from_slice(&bytes);
                let n = self.direct.write_at(memory.piece(block_len), block_at as u64);
                if !matches!(n, Ok(n) if n == block_len) {
                    self.fail(&format!("direct writing at {block_at}: {n:?} instead of {block_len}"));
                }
                self.memory = memory;
                self.put(block_at, &bytes);
            }
            60..68 if size > 0 => {
                // SAFETY: nobody cuts the file while it is mapped: this is the only one who uses it.
                let map = unsafe { memmap2::Mmap::map(&self.buffered) }.unwrap();
                let at = at.min(map.len());
                let end = (at + len).min(map.len());
                self.check("mapped reading", at, &map[at..end]);
            }
            68..76 if size > 0 => {
                // SAFETY: as above.
                let mut map = unsafe { memmap2::MmapMut::map_mut(&self.buffered) }.unwrap();
                let at = at.min(map.len());
                let end = (at + len).min(map.len());
                let bytes = dice.bytes(end - at);
                map[at..end].copy_from_slice(&bytes);
                if choice < 72 {
                    map.flush().unwrap();
                }
                drop(map);
                self.put(at, &bytes);
            }
            76..80 => {
                let to = if choice < 78 { at } else { (size as usize).saturating_sub(len) };
                self.buffered.set_len(to as u64).unwrap();
                self.model.resize(to, 0);
            }
            80..84 if len > 0 => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rfs::fallocate(&self.buffered, flags, at as u64, len as u64).unwrap();
                let end = (at + len).min(self.model.len());
                self.model.get_mut(at..end).unwrap_or_default().fill(0);
            }
            84..86 if len > 0 => {
                rfs::fallocate(&self.buffered, FallocateFlags::ZERO_RANGE, at as u64, len as u64).unwrap();
                self.put(at, &vec![0; len]);
            }
            86..89 if len > 0 => {
                rfs::fallocate(&self.buffered, FallocateFlags::empty(), at as u64, len as u64).unwrap();
                self.model.resize(self.model.len().max(at + len), 0);
            }
            89..93 => {
                let from = dice.below(size + 1) as usize;
                let len = len.min(self.model.len() - from).min(from.abs_diff(at));
                let (mut a, mut b) = (from as u64, at as u64);
                let mut left = len;
                while left > 0 {
                    match rfs::copy_file_range(
                        &self.buffered,
                        Some(&mut a),
                        &self.buffered,
                        Some(&mut b),
                        left,
                    ) {
                        Ok(n) if n > 0 => left -= n,
                        other => self.fail(&format!("copying {len} from {from} to {at}: {other:?}")),
                    }
                }
                if len > 0 {
                    let bytes = self.model[from..from + len].to_vec();
                    self.put(at, &bytes);
                }
            }
            93..95 => self.buffered.sync_all().unwrap(),
            _ => (self.buffered, self.direct) = Exercise::open(path),
        }
        let seen = self.buffered.metadata().unwrap().len();
        if seen != self.model.len() as u64 {
            self.fail(&format!("it has {seen} bytes instead of {}", self.model.len()));
        }
    }
}

/// Exercises every file of the stack, with swaps before, between and after; nothing that was written may move.
fn exercise(options: &'static str, pieces: Option<&str>) {
    require_root();
    let outer = Scratch::new();
    let disk = Disk::new(&outer, "ext4", "disk", 512);
    disk.careless();
    let scratch = Scratch::at(disk.path().join("s"));
    let mut program = Program::new(&scratch);
    if let Some(pieces) = pieces {
        program = program.with_env("REROOT_PIECES", pieces);
    }
    for version in 1..=2u64 {
        let parent = (version > 1).then_some("os:1");
        tree::import(&scratch, &program, &format!("os:{version}"), parent, |dir| {
            for (n, size) in SIZES.into_iter().enumerate() {
                let bytes = content(version, n as u64, size);
                tree::write(dir, &[(&format!("files/{n}"), Item::File(&bytes))]);
            }
        });
    }
    for seed in 1..=times("REROOT_EXERCISES", 2) {
        program.ok(&["create", "d", "os:1"]);
        let mount = program.mount_with("d", scratch.mnt(), options);
        let (root, program) = (mount.path().to_path_buf(), program.clone());
        let inner = program.clone();
        within(std::time::Duration::from_secs(400), "the exercise", move || {
            let mut dice = Dice(seed);
            let mut version = 1;
            let swap = |version: &mut u64| {
                *version = 3 - *version;
                inner.ok(&["upgrade", "d", "--to", &format!("os:{version}")]);
            };
            let mut done: Vec<(String, Vec<u8>)> = Vec::new();
            for (n, size) in SIZES.into_iter().enumerate() {
                let name = format!("files/{n}");
                let path = root.join(&name);
                if n % 2 == 1 {
                    swap(&mut version);
                }
                let old = content(version, n as u64, size);
                assert!(std::fs::read(&path).unwrap() == old, "{name} before it was written to");
                let (buffered, direct) = Exercise::open(&path);
                let memory = Aligned::new(40_000);
                let mut file = Exercise {
                    name: format!("seed {seed}, {name}"),
                    model: old,
                    buffered,
                    direct,
                    memory,
                    log: Vec::new(),
                };
                for step in 0..EACH {
                    if step % 500 == 250 {
                        file.log.push("swap".into());
                        swap(&mut version);
                    }
                    file.step(&mut dice, &path);
                }
                let all = file.buffered.try_clone().unwrap();
                file.read_all(&all, 0, LONGEST as usize + 1);
                done.push((name, file.model));
            }
            for (name, model) in &done {
                assert!(std::fs::read(root.join(name)).unwrap() == *model, "{name} at the end");
            }
        });
        mount.umount();
        program.ok(&["rm", "d"]);
    }
}

#[test]
fn direct_and_buffered_io_on_files_of_the_stack_agree_with_a_model() {
    exercise("", None);
}

#[test]
fn direct_and_buffered_io_agree_with_a_model_where_the_daemon_reads_and_writes() {
    exercise("data=coherent", None);
}

#[test]
fn direct_and_buffered_io_on_files_that_are_copied_in_pieces_agree_with_a_model() {
    // By nobody but those who write to them, and at once.
    exercise("", Some("4096:86400000"));
    exercise("", Some("4096:0"));
}

#[test]
fn the_exerciser_itself_agrees_with_the_disks_file_system() {
    require_root();
    let scratch = Scratch::new();
    let disk = Disk::new(&scratch, "ext4", "disk", 100);
    disk.careless();
    let path = disk.path().join("file");
    let old = content(1, 1, 200_000);
    std::fs::write(&path, &old).unwrap();
    let (buffered, direct) = Exercise::open(&path);
    let memory = Aligned::new(40_000);
    let mut file = Exercise { name: "ext4".into(), model: old, buffered, direct, memory, log: Vec::new() };
    let mut dice = Dice(7);
    for _ in 0..EACH {
        file.step(&mut dice, &path);
    }
}
