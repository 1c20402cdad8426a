//! The reference model: random operations on a real mount and on a plain directory, which must not differ.
//!
//! The plain directory lies on the host's file system (ext4 on the machines that this runs on) and begins with
//! the same content. After each operation the answers are compared, after every few the whole trees, and what
//! is one file in the directory must be one inode number in the view, whatever happened to it in between.
//!
//! `REROOT_MODEL_SEQUENCES` sets how many sequences run (else as many as fit into a minute), and
//! `REROOT_MODEL_SEED` the first seed. A failure prints its seed, and the shortest list of operations that
//! still fails.

mod common;
#[path = "model/operations.rs"]
mod operations;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use common::tree::Item;
use common::{Mount, Program, Scratch};
use operations::{Chance, Operation, Side, facts};
use rustix::fs as rfs;

/// Operations in a sequence.
const LENGTH: usize = 250;
/// Operations between two comparisons of the whole trees.
const STRIDE: usize = 10;

fn base(dir: &Path) {
    common::tree::write(
        dir,
        &[
            ("a/a", Item::File(b"base a/a")),
            ("a/b", Item::Mode(&[b'x'; 10_000], 0o755)),
            ("a/c/a", Item::File(b"deep")),
            ("a/c/b", Item::Dir(0o2775)),
            ("b", Item::File(b"base b")),
            ("c", Item::Link("a/c")),
            ("d/a", Item::Same("a/b")),
            ("d/b", Item::Dir(0o755)),
            ("d/c/a", Item::Same("a/b")),
            ("d/c/b", Item::File(b"to be removed")),
        ],
    );
    common::sh(dir, "mkfifo d/d; /usr/sbin/setcap cap_net_raw+ep a/b; setfattr -n user.x -v base a/a; setfattr -n trusted.t -v base d").ok();
    settle_times(dir);
}

fn delta(dir: &Path, base: &Path) {
    common::sh(dir, &format!("cp -a {}/. .; rm d/c/b; mkdir -p d/d2; rm d/d; mkdir d/d", base.display()))
        .ok();
    common::tree::write(
        dir,
        &[
            ("a/a", Item::File(b"delta a/a, longer")),
            ("d/d/a", Item::File(b"new")),
            ("d/d2/x", Item::Link("../a")),
        ],
    );
    common::sh(
        dir,
        "mknod d/d/c c 1 3; mknod d/d/d c 0 0; setfacl -d -m u:1234:rwx d/b; setfacl -m u:77:r d/d/a",
    )
    .ok();
    settle_times(dir);
}

/// Old times, so that what is changed later can be told.
fn settle_times(dir: &Path) {
    common::sh(dir, "find . -depth -exec touch -h -d @1500000000.5 {} +").ok();
}

struct World {
    scratch: Scratch,
    program: Program,
    desktops: u32,
}

/// A plain directory and a view, side by side.
struct Pair<'a> {
    world: &'a World,
    desktop: String,
    options: &'static str,
    plain: Side,
    view: Side,
    mount: Option<Mount>,
    /// Files of the plain directory (number, time of birth) and their numbers in the view.
    numbers: HashMap<(u64, SystemTime), u64>,
}

impl World {
    fn new() -> World {
        common::require_root();
        let scratch = Scratch::new();
        let program = Program::new(&scratch);
        let old = common::tree::import(&scratch, &program, "m:1", None, base);
        common::tree::import(&scratch, &program, "m:2", Some("m:1"), |dir| delta(dir, &old));
        World { scratch, program, desktops: 0 }
    }

    fn pair(&mut self, seed: u64) -> Pair<'_> {
        // Some sequences go through the daemon alone.
        let options = if seed % 4 == 3 { "data=coherent" } else { "" };
        self.desktops += 1;
        let desktop = format!("d{}", self.desktops);
        let plain = self.scratch.dir(&format!("plain-{}", self.desktops));
        common::sh(&plain, &format!("cp -a {}/. .", self.scratch.join("src-m-2").display())).ok();
        self.program.ok(&["create", &desktop, "m:2"]);
        let mount = self.program.mount_with(&desktop, self.scratch.mnt(), options);
        Pair {
            plain: Side::new(&plain),
            view: Side::new(&self.scratch.mnt()),
            mount: Some(mount),
            numbers: HashMap::new(),
            world: self,
            desktop,
            options,
        }
    }
}

impl Pair<'_> {
    /// Does an operation on both sides; what differs.
    fn step(&mut self, operation: &Operation) -> Result<(), String> {
        match operation {
            Operation::Remount => {
                self.plain.close_all();
                self.view.close_all();
                if let Some(mount) = self.mount.take() {
                    mount.umount();
                }
                let at = self.world.scratch.mnt();
                self.mount = Some(self.world.program.mount_with(&self.desktop, at, self.options));
            }
            Operation::DropCaches => fs::write("/proc/sys/vm/drop_caches", "2").unwrap(),
            _ => {}
        }
        let (plain, view) = (self.plain.apply(operation), self.view.apply(operation));
        if plain == view {
            Ok(())
        } else {
            Err(format!("answers differ\n  plain: {plain:?}\n  view:  {view:?}"))
        }
    }

    /// Compares the trees; gives back their paths.
    fn compare(&mut self) -> Result<Vec<String>, String> {
        let plain = snapshot(&self.plain.root).map_err(|e| format!("plain: {e}"))?;
        let view = snapshot(&self.view.root).map_err(|e| format!("view: {e}"))?;
        let mut wrong = String::new();
        let absent = "absent".to_string();
        let paths: std::collections::BTreeSet<_> = plain.keys().chain(view.keys()).collect();
        for path in &paths {
            let (a, b) = (plain.get(*path), view.get(*path));
            let (left, right) = (a.map_or(&absent, |a| &a.text), b.map_or(&absent, |b| &b.text));
            if left != right {
                wrong += &format!("\n{path}\n  plain: {left}\n  view:  {right}");
            }
            if let (Some(a), Some(b)) = (a, b) {
                let known = *self.numbers.entry((a.number, a.born)).or_insert(b.number);
                if known != b.number {
                    wrong += &format!("\n{path}: its number was {known:x} and is {:x}", b.number);
                }
            }
        }
        if wrong.is_empty() { Ok(plain.into_keys().collect()) } else { Err(format!("trees differ{wrong}")) }
    }
}

struct Fact {
    text: String,
    number: u64,
    born: SystemTime,
}

fn snapshot(root: &Path) -> Result<BTreeMap<String, Fact>, String> {
    let mut out = BTreeMap::new();
    let mut todo = vec![String::new()];
    while let Some(name) = todo.pop() {
        let path = if name.is_empty() { root.to_path_buf() } else { root.join(&name) };
        let wrong = |e: &dyn std::fmt::Display| format!("{name}: {e}");
        let meta = fs::symlink_metadata(&path).map_err(|e| wrong(&e))?;
        let mut text = facts(&meta);
        // A time of now is another on each side; one that somebody set is the same.
        if meta.mtime() < 1_600_000_000 {
            text += &format!(" time {}.{:09}", meta.mtime(), meta.mtime_nsec());
        }
        for (xattr, value) in xattrs(&path).map_err(|e| wrong(&e))? {
            text += &format!(" {xattr}={value:?}");
        }
        if meta.is_symlink() {
            text += &format!(" -> {:?}", fs::read_link(&path).map_err(|e| wrong(&e))?);
        } else if meta.is_file() {
            let bytes = fs::read(&path).map_err(|e| wrong(&e))?;
            if bytes.len() as u64 != meta.len() {
                return Err(wrong(&format!("{} bytes, and its size is {}", bytes.len(), meta.len())));
            }
            text += &format!(" holds {}", brief(&bytes));
        } else if meta.is_dir() {
            for entry in fs::read_dir(&path).map_err(|e| wrong(&e))? {
                let entry = entry.map_err(|e| wrong(&e))?;
                let child = entry.file_name().to_string_lossy().into_owned();
                let full = if name.is_empty() { child } else { format!("{name}/{child}") };
                let there =
                    fs::symlink_metadata(root.join(&full)).map_err(|e| format!("{full}, listed: {e}"))?;
                let kind = entry.file_type().map_err(|e| wrong(&e))?;
                if there.ino() != entry.ino() || there.file_type() != kind {
                    return Err(format!(
                        "{full} is listed as {kind:?} {:x} and is {:?} {:x}",
                        entry.ino(),
                        there.file_type(),
                        there.ino()
                    ));
                }
                todo.push(full);
            }
        }
        let born = meta.created().unwrap_or(SystemTime::UNIX_EPOCH);
        out.insert(name, Fact { text, number: meta.ino(), born });
    }
    Ok(out)
}

/// A content with its runs of equal bytes counted.
fn brief(bytes: &[u8]) -> String {
    bytes
        .chunk_by(|a, b| a == b)
        .map(|run| match run {
            [c] => (*c as char).escape_default().to_string(),
            [c, ..] => format!("{}*{} ", (*c as char).escape_default(), run.len()),
            [] => String::new(),
        })
        .collect()
}

fn xattrs(path: &Path) -> Result<BTreeMap<String, String>, std::io::Error> {
    let mut names = vec![0u8; 65536];
    let n = rfs::llistxattr(path, &mut names[..])?;
    let mut out = BTreeMap::new();
    for name in names[..n].split(|c| *c == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0u8; 65536];
        let n = rfs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
        out.insert(
            String::from_utf8_lossy(name).into_owned(),
            String::from_utf8_lossy(&value[..n]).into_owned(),
        );
    }
    Ok(out)
}

/// Runs a sequence as its seed makes it. On failure: the operations up to it, and what was wrong.
fn explore(world: &mut World, seed: u64) -> Result<(), (Vec<Operation>, String)> {
    let mut chance = Chance::new(seed);
    let mut pair = world.pair(seed);
    let mut done = Vec::new();
    let mut known = pair.compare().map_err(|e| (Vec::new(), e))?;
    for i in 0..LENGTH {
        let operation = Operation::random(&mut chance, &known);
        done.push(operation.clone());
        if let Err(e) = pair.step(&operation) {
            return Err((done, e));
        }
        if i % STRIDE == STRIDE - 1 || i == LENGTH - 1 || matches!(operation, Operation::Remount) {
            match pair.compare() {
                Ok(paths) => known = paths,
                Err(e) => return Err((done, e)),
            }
        }
    }
    pair.view.close_all();
    Ok(())
}

/// Whether a list of operations fails, with a comparison after each if need be.
fn replay(world: &mut World, seed: u64, operations: &[Operation], every: bool) -> Option<String> {
    let mut pair = world.pair(seed);
    for operation in operations {
        if let Err(e) = pair.step(operation) {
            return Some(format!("{operation:?}: {e}"));
        }
        if every && let Err(e) = pair.compare() {
            return Some(format!("after {operation:?}: {e}"));
        }
    }
    pair.compare().err()
}

/// A shorter list of operations that still fails, and how.
fn shorten(
    world: &mut World,
    seed: u64,
    mut operations: Vec<Operation>,
    limit: Duration,
) -> (Vec<Operation>, String) {
    let began = Instant::now();
    let mut every = false;
    let mut last = replay(world, seed, &operations, false).or_else(|| {
        every = true;
        replay(world, seed, &operations, true)
    });
    let mut size = operations.len() / 2;
    while last.is_some() && size > 0 {
        let mut at = 0;
        while at < operations.len() && began.elapsed() < limit {
            let mut fewer = operations.clone();
            fewer.drain(at..(at + size).min(operations.len()));
            match replay(world, seed, &fewer, every) {
                Some(e) => (operations, last) = (fewer, Some(e)),
                None => at += size,
            }
        }
        size /= 2;
    }
    (operations, last.unwrap_or_else(|| "it does not fail again".into()))
}

#[test]
fn a_mount_cannot_be_told_from_a_plain_directory() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let sequences = number("REROOT_MODEL_SEQUENCES");
    let first = number("REROOT_MODEL_SEED").unwrap_or(1);
    let budget = Duration::from_secs(60);
    let began = Instant::now();
    let mut world = World::new();
    for seed in first.. {
        let run = seed - first;
        if sequences.map_or(run > 0 && began.elapsed() > budget, |n| run >= n) {
            println!("{run} sequences in {:?}", began.elapsed());
            break;
        }
        let (back, result) = common::within(Duration::from_secs(300), &format!("seed {seed}"), move || {
            let mut world = world;
            let result = explore(&mut world, seed);
            (world, result)
        });
        world = back;
        if let Err((operations, e)) = result {
            let (short, how) =
                common::within(Duration::from_secs(400), &format!("shortening seed {seed}"), move || {
                    let mut world = world;
                    shorten(&mut world, seed, operations, Duration::from_secs(120))
                });
            let lines: Vec<String> = short.iter().map(|o| format!("  {o:?}")).collect();
            panic!("seed {seed}: {e}\n\nThe shortest that was found: {how}\n{}", lines.join("\n"));
        }
    }
}

/// Several threads at once: no answer is one that only a fault explains, and what the mount shows then is what
/// a new mount finds on the disk.
#[test]
fn what_many_threads_did_is_what_a_new_mount_shows() {
    let seed = std::env::var("REROOT_MODEL_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or(1u64);
    common::within(Duration::from_secs(200), "the threads", move || {
        let mut world = World::new();
        for round in 0..4 {
            let mut pair = world.pair(round);
            let root = pair.view.root.clone();
            let threads: Vec<_> = (0..6)
                .map(|thread| {
                    let root = root.clone();
                    std::thread::spawn(move || {
                        let mut chance = Chance::new(seed * 1000 + round * 10 + thread);
                        let mut side = Side::new(&root);
                        for _ in 0..400 {
                            let operation = Operation::random(&mut chance, &[]);
                            if matches!(operation, Operation::Remount | Operation::DropCaches) {
                                continue;
                            }
                            if let Err(e @ (libc::EIO | libc::ESTALE | libc::EUCLEAN | libc::EBUSY)) =
                                side.apply(&operation)
                            {
                                return Some(format!("{operation:?}: error {e}"));
                            }
                        }
                        None
                    })
                })
                .collect();
            let wrong: Vec<String> = threads.into_iter().filter_map(|t| t.join().unwrap()).collect();
            assert!(wrong.is_empty(), "seed {seed}, round {round}: {wrong:?}");
            let texts = |root: &Path| -> BTreeMap<String, (String, u64)> {
                let tree = snapshot(root).unwrap_or_else(|e| panic!("seed {seed}, round {round}: {e}"));
                tree.into_iter().map(|(path, fact)| (path, (fact.text, fact.number))).collect()
            };
            let before = texts(&root);
            pair.step(&Operation::Remount).unwrap();
            let after = texts(&root);
            for path in before.keys().chain(after.keys()) {
                assert_eq!(before.get(path), after.get(path), "seed {seed}, round {round}: {path}");
            }
        }
    });
}
