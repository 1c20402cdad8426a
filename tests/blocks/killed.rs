//! The daemon is killed at any moment between the mark, the data, an fsync and the completion of a file, under a writer, a
//! mapped reader and swaps: each sector holds what was acknowledged, or what was written since.
#![allow(unsafe_code)] // Mappings.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::tree::{self, Item};
use crate::common::{Disk, Program, Scratch, require_root, sh, within};
use crate::sectors::{Account, Holds, SECTOR, read, written};
use crate::{Dice, LIMIT, eager, until_complete};

/// Files that are written to, and their length in sectors: no whole number of blocks.
const FILES: u64 = 16;
const SECTORS: u64 = 2411;
/// After so many crashes another desktop begins anew.
const EACH: u64 = 5;
/// Where the mapped reader looks.
const READS: &str = "REROOT_TEST_READS";

#[derive(Debug)]
struct Known {
    accounts: Vec<Account>,
    /// Files that were removed; `true`: the removal is on the disk.
    removed: Vec<Option<bool>>,
    /// The power is being cut: see `tests/crash/power.rs`.
    cut: bool,
}

impl Known {
    fn new() -> Known {
        let accounts = (0..FILES).map(|file| Account::new(file, SECTORS)).collect();
        Known { accounts, removed: vec![None; FILES as usize], cut: false }
    }
}

/// Files of which the number is a multiple of this are cut and punched.
fn has_zeroes(file: u64) -> bool {
    file.is_multiple_of(3)
}

/// Those of another multiple are moved between two names.
fn names(root: &Path, file: u64) -> [PathBuf; 2] {
    [root.join(format!("a/{file}")), root.join(format!("b/{file}"))]
}

fn open(root: &Path, file: u64) -> io::Result<File> {
    let [a, b] = names(root, file);
    let open = |path: &PathBuf| File::options().read(true).write(true).open(path);
    match open(&a) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => open(&b),
        r => r,
    }
}

/// Works until the mount dies.
fn work(root: &Path, seed: u64, known: &Mutex<Known>) -> io::Result<()> {
    let mut dice = Dice(seed);
    for operation in seed * 1_000_000 + 1.. {
        let number = dice.below(FILES);
        let note = |act: &dyn Fn(&mut Account)| act(&mut known.lock().unwrap().accounts[number as usize]);
        if known.lock().unwrap().removed[number as usize].is_some() {
            continue;
        }
        let file = open(root, number)?;
        let length = known.lock().unwrap().accounts[number as usize].lengths.last().copied().unwrap();
        for _ in 0..1 + dice.below(4) {
            let from = dice.below(length.max(1)).min(length);
            let to = (from + 1 + dice.below(40)).min(length);
            let (at, len) = (from * SECTOR as u64, (to - from) * SECTOR as u64);
            match dice.below(10) {
                0 if has_zeroes(number) && len > 0 => {
                    note(&|a| a.will_hold(from, to, Holds::Zeroes));
                    let punch =
                        rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                    rustix::fs::fallocate(&file, punch, at, len)?;
                }
                1 if has_zeroes(number) => {
                    note(&|a| {
                        a.will_hold(from, SECTORS, Holds::Zeroes);
                        a.lengths.push(from);
                    });
                    file.set_len(at)?;
                    note(&|a| a.lengths.push(length));
                    file.set_len(length * SECTOR as u64)?;
                }
                2 if !has_zeroes(number) => {
                    let [a, b] = names(root, number);
                    let (from, to) = if a.exists() { (a, b) } else { (b, a) };
                    fs::rename(from, to)?;
                }
                _ => {
                    note(&|a| a.will_hold(from, to, Holds::Written(operation)));
                    let bytes: Vec<u8> = (from..to).flat_map(|s| written(operation, number, s)).collect();
                    file.write_all_at(&bytes, at)?;
                }
            }
        }
        if dice.below(3) == 0 {
            file.sync_all()?;
            let mut known = known.lock().unwrap();
            if known.cut {
                return Err(io::ErrorKind::NotConnected.into());
            }
            known.accounts[number as usize].synced();
        }
        if dice.below(150) == 0 && number % 5 == 4 {
            known.lock().unwrap().removed[number as usize] = Some(false);
            let [a, b] = names(root, number);
            fs::remove_file(&a).or_else(|_| fs::remove_file(&b))?;
            for dir in ["a", "b"] {
                File::open(root.join(dir))?.sync_all()?;
            }
            let mut known = known.lock().unwrap();
            if !known.cut {
                known.removed[number as usize] = Some(true);
            }
        }
    }
    Ok(())
}

/// What is there is what may be there.
fn check(root: &Path, known: &mut Known) {
    for file in 0..FILES {
        let [a, b] = names(root, file);
        let there: Vec<_> = [a, b].into_iter().filter(|p| p.exists()).collect();
        match (known.removed[file as usize], &there[..]) {
            (Some(_), []) => {}
            (None | Some(false), [path]) => {
                known.removed[file as usize] = None;
                known.accounts[file as usize].check(&fs::read(path).unwrap());
            }
            (removed, there) => panic!("file {file}: removed {removed:?}, there are {there:?}"),
        }
    }
}

/// A process that reads through mappings. A mapping of a dead mount ends its process, so this is another one.
struct Reader(Child);

impl Reader {
    fn start(root: &Path) -> Reader {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::maps", "--nocapture", "--test-threads=1"])
            .env(READS, root)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Reader(child)
    }

    /// Ends it; what it found wrong.
    fn end(mut self) -> String {
        let _ = self.0.kill();
        let mut said = String::new();
        let _ = io::Read::read_to_string(self.0.stdout.as_mut().unwrap(), &mut said);
        let _ = self.0.wait();
        said.lines().filter(|l| l.contains("WRONG")).map(|l| format!("{l}\n")).collect()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The reader's process; as a test it does nothing.
#[test]
fn maps() {
    let Some(root) = std::env::var_os(READS).map(PathBuf::from) else { return };
    let mut dice = Dice(std::process::id().into());
    loop {
        let number = dice.below(FILES);
        let Ok(file) = open(&root, number) else { continue };
        // SAFETY: it is only read, and whoever cuts the file ends this process at most.
        let Ok(map) = (unsafe { memmap2::Mmap::map(&file) }) else { continue };
        for _ in 0..50 {
            let sector = dice.below(map.len() as u64 / SECTOR as u64);
            let Some(bytes) = map.get(sector as usize * SECTOR..(sector as usize + 1) * SECTOR) else {
                break;
            };
            let mut tries = 0;
            let wrong = loop {
                match read(bytes, number, sector) {
                    Some(Holds::Written(_)) => break None,
                    Some(Holds::Zeroes) if has_zeroes(number) => break None,
                    // It is being written just now.
                    found if tries == 2000 => break Some(found),
                    _ => tries += 1,
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            if let Some(found) = wrong {
                println!("WRONG file {number}, sector {sector}: {found:?}");
            }
        }
    }
}

fn stack(scratch: &Scratch, program: &Program) {
    for version in ["1", "2"] {
        let parent = (version == "2").then_some("os:1");
        tree::import(scratch, program, &format!("os:{version}"), parent, |dir| {
            fs::create_dir_all(dir.join("a")).unwrap();
            fs::create_dir_all(dir.join("b")).unwrap();
            for file in 0..FILES {
                let bytes: Vec<u8> = (0..SECTORS).flat_map(|s| written(0, file, s)).collect();
                tree::write(dir, &[(&format!("a/{file}"), Item::File(&bytes))]);
            }
            tree::write(dir, &[("other", Item::File(version.as_bytes()))]);
            sh(dir, "find . -depth -exec touch -h -d 2020-02-02 {} +").ok();
        });
    }
}

fn crashes(otherwise: u64) -> u64 {
    std::env::var("REROOT_CRASHES").map_or(otherwise, |n| n.parse().expect("a number"))
}

/// Crashes a mount again and again; `crash` does it and makes everything ready for the next mount.
fn crash_again(scratch: &Scratch, program: &Program, count: u64, mut crash: impl FnMut(&Mutex<Known>)) {
    let program = &eager(program);
    let known = Arc::new(Mutex::new(Known::new()));
    let mut dice = Dice(count);
    for round in 0..count {
        if round % EACH == 0 {
            if round > 0 {
                program.ok(&["rm", "d"]);
            }
            program.ok(&["create", "d", "os:1"]);
            sh(scratch.path(), "sync -f .").ok();
            *known.lock().unwrap() = Known::new();
        }
        let mount = program.mount("d", scratch.mnt());
        let root = mount.path().to_path_buf();
        mount.forget();
        let (told, at) = (known.clone(), root.clone());
        let worker = std::thread::spawn(move || work(&at, round + 1, &told));
        let reader = Reader::start(&root);
        if round % 4 == 1 {
            let to = if program.json(&["status", "d"])["tag"] == "1" { "os:2" } else { "os:1" };
            program.ok(&["upgrade", "d", "--to", to]);
        }
        // Any moment will do.
        std::thread::sleep(Duration::from_micros(dice.below(150_000)));
        crash(&known);
        let ended = within(LIMIT, "the worker's end", move || worker.join());
        let ended = ended.unwrap_or_else(|e| std::panic::resume_unwind(e));
        assert!(ended.is_err(), "a dead mount answers with errors");
        assert_eq!(reader.end(), "", "what the reader of mappings saw in round {round}");
        known.lock().unwrap().cut = false;

        let mount = program.mount("d", scratch.mnt());
        let (root, told) = (mount.path().to_path_buf(), known.clone());
        within(LIMIT, "reading back", move || check(&root, &mut told.lock().unwrap()));
        if round % EACH == EACH - 1 {
            until_complete(program);
            let (root, told) = (mount.path().to_path_buf(), known.clone());
            within(LIMIT, "reading back", move || check(&root, &mut told.lock().unwrap()));
        }
        mount.umount();
    }
    program.ok(&["fsck", "--deep"]);
}

#[test]
fn a_killed_daemon_loses_no_block_and_shows_none_that_was_not_copied_as_zeroes() {
    require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    stack(&scratch, &program);
    crash_again(&scratch, &program, crashes(200), |_| {
        assert_eq!(scratch.kill_daemons(), 1);
    });
}

#[test]
fn a_power_cut_loses_no_synced_block_and_shows_none_that_was_not_copied_as_zeroes() {
    require_root();
    let outer = Scratch::new();
    let disk = Disk::new(&outer, "ext4", "disk", 512);
    let scratch = Scratch::at(disk.path().join("s"));
    let program = Program::new(&scratch);
    stack(&scratch, &program);
    let cuts = std::env::var("REROOT_POWER_CUTS").map_or(30, |n| n.parse().expect("a number"));
    crash_again(&scratch, &program, cuts, |known| {
        known.lock().unwrap().cut = true;
        disk.cut();
        assert_eq!(scratch.kill_daemons(), 1);
        sh(outer.path(), &format!("umount -i -l {}", scratch.mnt().display())).ok();
        disk.again();
    });
}
