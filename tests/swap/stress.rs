//! Many swaps under programs that read and write all the time.
//!
//! Every path of the image has, for each version, one right content (or none). A reader notes the swaps that may
//! have been under way while it looked, and what it saw must be what one of those versions shows; any other result,
//! and any error, fails. What the writers write is theirs: it must be there afterwards, at once and at the end.
//!
//! `REROOT_SWAPS` says how many swaps are made.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::actors::{attributes, listed, reader, types_and_links, writer};
use super::common::{self, Program, Scratch, tree};

/// Swaps that are made unless the environment says otherwise: a minute or two of them.
const SWAPS: usize = 1000;
pub const VERSIONS: u64 = 3;
/// Paths of each kind.
pub const MANY: u64 = 40;
const WRITERS: u64 = 4;
/// Paths of each kind for each writer.
pub const POOL: u64 = 60;
const BIG: usize = 1_200_000;

/// What version `v` has at a path; `None` where it has nothing there. Paths are `KIND/NUMBER` or beneath.
pub fn content(path: &str, v: u64) -> Option<Vec<u8>> {
    let mut parts = path.rsplit('/');
    let mut n: u64 = parts.find_map(|p| p.parse().ok()).unwrap_or(0);
    n += path.len() as u64;
    if path.contains("some/") && (n + v).is_multiple_of(3)
        || path.contains("part/") && (n + v).is_multiple_of(2)
    {
        return None;
    }
    if path.starts_with("big") {
        return Some(vec![b'0' + v as u8; BIG]);
    }
    if path.starts_with("same/") || path.starts_with("mode/") {
        return Some(format!("{path}\n").into_bytes());
    }
    Some(format!("{path} of version {v}\n").repeat(1 + (n + v) as usize % 40).into_bytes())
}

pub fn mode(v: u64) -> u32 {
    [0o644, 0o600, 0o755][v as usize % 3]
}

fn paths() -> Vec<String> {
    let mut out: Vec<String> = vec!["big".into()];
    for n in 0..MANY {
        out.extend(["same", "mode", "changing", "some"].map(|k| format!("{k}/{n}")));
        out.extend([format!("part/{n}/f"), format!("part/{n}/sub/g")]);
    }
    for w in 0..WRITERS {
        for n in 0..POOL {
            out.extend(["append", "chmod", "rename", "link", "unlink"].map(|k| format!("w{w}/{k}/{n}")));
            out.extend([
                format!("w{w}/dirs/{n}/f"),
                format!("w{w}/dirs/{n}/sub/g"),
                format!("w{w}/part/{n}/f"),
            ]);
        }
    }
    out
}

fn fill(dir: &Path, v: u64) {
    for path in paths() {
        let Some(bytes) = content(&path, v) else { continue };
        let at = dir.join(&path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(&at, bytes).unwrap();
        let bits = if path.starts_with("mode/") { mode(v) } else { 0o644 };
        fs::set_permissions(&at, fs::Permissions::from_mode(bits)).unwrap();
    }
    for n in 0..MANY {
        let at = dir.join(format!("type/{n}"));
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        match (n + v) % 3 {
            0 => fs::write(&at, "file").unwrap(),
            1 => {
                fs::create_dir(&at).unwrap();
                fs::write(at.join("in"), "in").unwrap();
            }
            _ => std::os::unix::fs::symlink("../same/0", &at).unwrap(),
        }
        fs::create_dir_all(dir.join("links")).unwrap();
        fs::write(dir.join(format!("links/{n}a")), format!("links {n}")).unwrap();
        if (n + v).is_multiple_of(2) {
            fs::hard_link(dir.join(format!("links/{n}a")), dir.join(format!("links/{n}b"))).unwrap();
        } else {
            fs::write(dir.join(format!("links/{n}b")), format!("links {n} b")).unwrap();
        }
    }
    fs::create_dir_all(dir.join("fixed/mnt")).unwrap();
}

/// What a path must show at the end, on version `v`.
#[derive(Clone, Debug)]
pub enum Want {
    Bytes(Vec<u8>),
    /// The version's content with this mode.
    Follows(u32),
    Gone,
}

pub struct World {
    top: PathBuf,
    /// The versions that swaps went to, the last perhaps on its way.
    history: Mutex<Vec<u64>>,
    /// How many of these are done.
    done: AtomicUsize,
    stop: AtomicBool,
    failures: Mutex<Vec<String>>,
    wanted: Mutex<BTreeMap<String, Want>>,
    pub reads: AtomicU64,
    writes: AtomicU64,
}

impl World {
    /// Does something, and says which versions may have been seen meanwhile.
    pub fn during<T>(&self, act: impl FnOnce() -> T) -> (T, Vec<u64>) {
        let from = self.done.load(Ordering::SeqCst) - 1;
        let result = act();
        let mut versions = self.history.lock().unwrap()[from..].to_vec();
        versions.sort_unstable();
        versions.dedup();
        (result, versions)
    }

    /// Does something, and says how many swaps there were meanwhile, also in part.
    pub fn overtaken<T>(&self, act: impl FnOnce() -> T) -> (T, usize) {
        let done = self.done.load(Ordering::SeqCst);
        let result = act();
        (result, self.history.lock().unwrap().len() - done)
    }

    pub fn fail(&self, text: String) {
        let mut failures = self.failures.lock().unwrap();
        failures.push(format!("swap {}: {text}", self.done.load(Ordering::SeqCst)));
        if failures.len() > 40 {
            self.stop.store(true, Ordering::SeqCst);
        }
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    pub fn join(&self, path: &str) -> PathBuf {
        self.top.join(path)
    }

    /// Checks bytes, or that nothing is there, against what the versions show. Which version it is, if one.
    pub fn judge(&self, what: &str, path: &str, seen: &io::Result<Vec<u8>>, versions: &[u64]) -> Option<u64> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let found = versions.iter().find(|v| match (content(path, **v), seen) {
            (Some(want), Ok(bytes)) => want == *bytes,
            (None, Err(e)) => e.kind() == io::ErrorKind::NotFound,
            _ => false,
        });
        if found.is_none() {
            let all: Vec<u64> =
                (1..=VERSIONS).filter(|v| content(path, *v) == seen.as_ref().ok().cloned()).collect();
            let seen = match seen {
                Ok(bytes) => format!(
                    "{} bytes, {:?}",
                    bytes.len(),
                    String::from_utf8_lossy(&bytes[..bytes.len().min(40)])
                ),
                Err(e) => format!("{e}"),
            };
            self.fail(format!("{what} {path}: {seen} (as in versions {all:?}, allowed are {versions:?})"));
        }
        found.copied()
    }

    pub fn want(&self, path: &str, want: Want) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.wanted.lock().unwrap().insert(path.into(), want);
    }

    /// Does something for a writer that must succeed.
    pub fn must<T>(&self, what: &str, result: io::Result<T>) -> Option<T> {
        result.map_err(|e| self.fail(format!("{what}: {e}"))).ok()
    }
}

/// A cheap source of numbers that look random.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Everything that the writers wrote, and everything else as version `v` has it.
fn compare(world: &World, v: u64) {
    let wanted = world.wanted.lock().unwrap().clone();
    for (path, want) in &wanted {
        let seen = fs::read(world.join(path));
        let right = match want {
            Want::Bytes(bytes) => seen.as_ref().is_ok_and(|s| s == bytes),
            Want::Follows(bits) => {
                let mode = fs::metadata(world.join(path)).map(|m| m.mode() & 0o777);
                seen.as_ref().ok() == content(path, v).as_ref() && mode.is_ok_and(|m| m == *bits)
            }
            Want::Gone => seen.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound),
        };
        if !right {
            let seen = seen.map(|b| String::from_utf8_lossy(&b[..b.len().min(40)]).into_owned());
            world.fail(format!(
                "at the end {path} is {seen:?} and not {}",
                &format!("{want:?}")[..40.min(format!("{want:?}").len())]
            ));
        }
    }
    for path in paths() {
        if !wanted.contains_key(&path) && !path.contains("/dirs/") {
            world.judge("at the end", &path, &fs::read(world.join(&path)), &[v]);
        }
    }
    for n in 0..MANY {
        attributes(world, n);
        listed(world, n);
        types_and_links(world, n);
    }
}

#[test]
fn swaps_under_readers_and_writers_show_one_version_or_the_next_and_lose_nothing() {
    common::require_root();
    let swaps = std::env::var("REROOT_SWAPS").ok().and_then(|s| s.parse().ok()).unwrap_or(SWAPS);
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    tree::import(&scratch, &program, "os:1", None, |dir| fill(dir, 1));
    tree::import(&scratch, &program, "os:2", Some("os:1"), |dir| fill(dir, 2));
    tree::import(&scratch, &program, "os:3", Some("os:2"), |dir| fill(dir, 3));
    program.ok(&["create", "pc", "os:1"]);
    let mount = program.mount("pc", scratch.mnt());
    let world = Arc::new(World {
        top: mount.path().to_path_buf(),
        history: Mutex::new(vec![1]),
        done: AtomicUsize::new(1),
        stop: AtomicBool::new(false),
        failures: Mutex::default(),
        wanted: Mutex::default(),
        reads: AtomicU64::new(0),
        writes: AtomicU64::new(0),
    });
    common::sh(mount.path(), "mkdir -p user/0 user/1 user/2 user/3; printf before >user/before; mount -t tmpfs tmpfs fixed/mnt; printf in >fixed/mnt/in").ok();
    world.want("user/before", Want::Bytes(b"before".to_vec()));
    world.want("fixed/mnt/in", Want::Bytes(b"in".to_vec()));

    let mut threads = Vec::new();
    for w in 0..WRITERS {
        let world = world.clone();
        let pause = Duration::from_millis((swaps as u64 * 25 / POOL).min(2000));
        threads.push(std::thread::spawn(move || writer(&world, w, pause)));
    }
    for seed in 0..3 {
        let world = world.clone();
        threads.push(std::thread::spawn(move || reader(&world, seed + 1)));
    }

    let begin = Instant::now();
    let (mut pauses, mut totals, mut told) = (Vec::new(), Vec::new(), 0);
    let mut dice = Dice(4711);
    let mut at = 1;
    for _ in 0..swaps {
        if world.stopped() {
            break;
        }
        at = (at + dice.below(VERSIONS - 1)) % VERSIONS + 1;
        world.history.lock().unwrap().push(at);
        let report = program.swap(&["upgrade", "pc", "--to", &format!("os:{at}")]);
        world.done.fetch_add(1, Ordering::SeqCst);
        pauses.push(report["pause_us"].as_u64().unwrap());
        totals.push(report["total_ms"].as_f64().unwrap());
        told += report["invalidated"].as_u64().unwrap();
    }
    let took = begin.elapsed();
    world.stop.store(true, Ordering::SeqCst);
    common::within(Duration::from_secs(60), "the readers and writers", move || {
        threads.into_iter().for_each(|t| t.join().unwrap());
    });
    world.want("user/after", Want::Bytes(b"after".to_vec()));
    fs::write(mount.join("user/after"), "after").unwrap();
    let done = totals.len();
    pauses.sort_unstable();
    totals.sort_by(f64::total_cmp);
    eprintln!(
        "{done} swaps in {:.1} s; pause median {} µs, longest {} µs; whole swap median {:.1} ms, longest {:.1} ms; \
         {} notices a swap; {} looks, {} changes",
        took.as_secs_f64(),
        pauses[done / 2],
        pauses[done - 1],
        totals[done / 2],
        totals[done - 1],
        told / done as u64,
        world.reads.load(Ordering::Relaxed),
        world.writes.load(Ordering::Relaxed),
    );
    let report = |when: &str| {
        let failures = world.failures.lock().unwrap();
        let log = fs::read_to_string(scratch.store().join("desktops/pc/daemon.log")).unwrap_or_default();
        let log: Vec<&str> = log.lines().filter(|l| !l.contains("INFO")).take(20).collect();
        assert!(
            failures.is_empty(),
            "{when}: {} failures\n{}\nlog:\n{}",
            failures.len(),
            failures.join("\n"),
            log.join("\n")
        );
    };
    report("while swapping");
    let again = world.clone();
    common::within(Duration::from_secs(120), "comparing", move || compare(&again, at));
    report("after the last swap");

    common::sh(mount.path(), "umount fixed/mnt").ok();
    world.wanted.lock().unwrap().remove("fixed/mnt/in");
    mount.umount();
    program.ok(&["fsck", "--deep"]);
    let mount = program.mount("pc", scratch.mnt());
    let again = world.clone();
    common::within(Duration::from_secs(120), "comparing", move || compare(&again, at));
    report("after a remount");
    mount.umount();
}
