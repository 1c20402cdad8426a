//! The reference model: random operations on a real mount, on a plain directory and on the kernel's overlayfs, which
//! must not differ.
//!
//! The plain directory lies on the host's file system (ext4 on the machines that this runs on) and begins with the
//! same content. After each operation the answers are compared and what the operation names, after every few the whole
//! trees: types, modes, owners, sizes, contents, link counts, extended attributes; and what is one inode in the
//! directory must be one inode number in the view, whatever happened to it in between. Where a sequence swaps versions,
//! `oracle` says what the plain directory shows then, and overlayfs has no part in it any more.
//!
//! `REROOT_MODEL_SEQUENCES` sets how many sequences run, `REROOT_MODEL_FIRST` the first seed. `REROOT_MODEL_SEED` runs
//! the sequence of one seed alone. A failure prints its seed, and the shortest list of operations that still fails;
//! with `REROOT_MODEL_FAILURES` the run goes on until that many have failed. `REROOT_MODEL_PLANT` names the one planted
//! fault that is looked for.

#[path = "../common/mod.rs"]
mod common;
mod coverage;
mod operations;
mod oracle;
mod overlay;
mod plants;
mod raw;
mod snapshot;
mod trial;

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use coverage::{Coverage, WANTED};
use operations::{Chance, Kinds, Operation, Side};
use oracle::Version;
use trial::{SLOTS, Station, Trial, World};

/// Sequences that run where nothing else is said.
const SEQUENCES: u64 = ALL;
/// So many reach everything that is counted.
const ALL: u64 = 10_000;
/// Operations in a sequence.
const LENGTH: usize = 25;
/// Operations between two comparisons of the whole trees.
const STRIDE: usize = 7;
/// Threads, each with a desktop of its own.
const WORKERS: usize = 3;

const BATCH: u64 = SLOTS as u64;

/// A sequence that failed.
#[derive(Debug)]
struct Failure {
    seed: u64,
    wrong: String,
    operations: Vec<Operation>,
}

/// What a seed's sequence holds.
fn kinds(seed: u64) -> Kinds {
    let mut chance = Chance::new(seed ^ 0x5eed);
    Kinds { swap: chance.below(5) < 2, remount: chance.below(4) == 0, drop_caches: chance.below(30) == 0 }
}

/// Runs a sequence as its seed makes it. On failure: the operations up to it, and what was wrong.
fn explore(station: &mut Station<'_>, seed: u64) -> Result<Coverage, (Vec<Operation>, String)> {
    let mut chance = Chance::new(seed);
    let kinds = kinds(seed);
    let mut trial = station.trial((seed % BATCH) as usize, !kinds.swap);
    let mut done = Vec::new();
    let mut known: Vec<String> = trial.compare().map_err(|e| (Vec::new(), e))?;
    for i in 0..LENGTH {
        let open = trial.open_slots();
        // What is open matters most just after something happened beneath it.
        let often =
            if matches!(done.last(), Some(Operation::Swap(_) | Operation::Unlink(_))) { 2 } else { 10 };
        let follows = done.last().and_then(|last| Operation::follows(&mut chance, last, kinds));
        let operation = if let Some(operation) = follows {
            operation
        } else if !open.is_empty() && chance.below(often) == 0 {
            let slot = chance.pick(&open);
            Operation::on_open(&mut chance, slot)
        } else {
            Operation::random(&mut chance, &known, kinds)
        };
        done.push(operation.clone());
        if let Err(e) = trial.step(&operation) {
            return Err((done, e));
        }
        if i % STRIDE == STRIDE - 1 || i == LENGTH - 1 || matches!(operation, Operation::Remount) {
            match trial.compare() {
                Ok(paths) => known = paths,
                Err(e) => return Err((done, e)),
            }
        }
    }
    Ok(trial.end())
}

/// The same; a side in which something has gone that the model relies on is a failure as well.
fn explored(station: &mut Station<'_>, seed: u64) -> Result<Coverage, (Vec<Operation>, String)> {
    let doing = std::panic::AssertUnwindSafe(|| explore(station, seed));
    std::panic::catch_unwind(doing).unwrap_or_else(|_| {
        // The operations are those that the seed makes, as far as they can be made without the trees.
        Err((Vec::new(), "the model itself could not go on; see the panic above".into()))
    })
}

/// Whether a list of operations fails, with a comparison of the whole trees after each.
fn replay(station: &mut Station<'_>, seed: u64, slot: usize, operations: &[Operation]) -> Option<String> {
    let mut trial: Trial<'_, '_> = station.trial(slot, !kinds(seed).swap);
    let mut wrong = None;
    for operation in operations {
        let step = trial.step(operation).and_then(|()| trial.compare().map(drop));
        if let Err(e) = step {
            wrong = Some(format!("{operation:?}: {e}"));
            break;
        }
    }
    trial.end();
    wrong
}

/// Stations for one seed's batch, one after another, with directories that were not used yet.
struct Fresh<'w> {
    world: &'w World,
    versions: Rc<Vec<Version>>,
    batch: u64,
    name: String,
    made: u64,
    station: Option<(Station<'w>, usize)>,
}

impl<'w> Fresh<'w> {
    fn replay(&mut self, seed: u64, operations: &[Operation]) -> Option<String> {
        if self.station.as_ref().is_none_or(|(_, slot)| *slot == SLOTS) {
            if let Some((station, _)) = self.station.take() {
                station.end();
            }
            self.made += 1;
            let name = format!("{}-{}", self.name, self.made);
            self.station = Some((Station::new(self.world, &self.versions, self.batch, &name), 0));
        }
        let (station, slot) = self.station.as_mut()?;
        *slot += 1;
        replay(station, seed, *slot - 1, operations)
    }
}

/// A shorter list of operations that still fails, and how.
fn shorten(world: &World, failure: &Failure, limit: Duration) -> (Vec<Operation>, String) {
    let began = Instant::now();
    let (seed, mut operations) = (failure.seed, failure.operations.clone());
    let batch = seed / BATCH;
    let name = format!("short{seed}");
    let mut fresh = Fresh { world, versions: world.versions(), batch, name, made: 0, station: None };
    let mut last = fresh.replay(seed, &operations);
    let mut size = operations.len() / 2;
    while last.is_some() && size > 0 {
        let mut at = 0;
        while at < operations.len() && began.elapsed() < limit {
            let mut fewer = operations.clone();
            fewer.drain(at..(at + size).min(operations.len()));
            match fresh.replay(seed, &fewer) {
                Some(e) => (operations, last) = (fewer, Some(e)),
                None => at += size,
            }
        }
        size /= 2;
    }
    if let Some((station, _)) = fresh.station.take() {
        station.end();
    }
    (operations, last.unwrap_or_else(|| "alone it does not fail: it takes the sequences before it".into()))
}

/// What many sequences came to.
#[derive(Debug, Default)]
struct Outcome {
    coverage: Coverage,
    run: u64,
    /// By seed, the lowest first.
    failures: Vec<Failure>,
}

/// Runs the sequences of `count` seeds from `first` on, until `enough` failed.
fn run(world: &World, first: u64, count: u64, enough: usize) -> Outcome {
    let (next, failed) = (AtomicU64::new(first / BATCH), AtomicUsize::new(0));
    let (send, receive) = mpsc::channel();
    let mut out = Outcome::default();
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (send, next, failed) = (send.clone(), &next, &failed);
            scope.spawn(move || {
                let versions = world.versions();
                loop {
                    let batch = next.fetch_add(1, Ordering::Relaxed);
                    let seeds = (batch * BATCH).max(first)..((batch + 1) * BATCH).min(first + count);
                    if seeds.is_empty() || failed.load(Ordering::Relaxed) >= enough {
                        return;
                    }
                    let name = |n: usize| format!("w{worker}b{batch}n{n}");
                    let mut station = Station::new(world, &versions, batch, &name(0));
                    let mut sum = Outcome::default();
                    for seed in seeds {
                        sum.run += 1;
                        match explored(&mut station, seed) {
                            Ok(coverage) => sum.coverage.add(coverage),
                            Err((operations, wrong)) => {
                                sum.failures.push(Failure { seed, wrong, operations });
                                if failed.fetch_add(1, Ordering::Relaxed) + 1 >= enough {
                                    break;
                                }
                                station.end();
                                station = Station::new(world, &versions, batch, &name(sum.failures.len()));
                            }
                        }
                    }
                    station.end();
                    let _ = send.send(sum);
                }
            });
        }
        drop(send);
        for sum in receive {
            out.run += sum.run;
            out.coverage.add(sum.coverage);
            out.failures.extend(sum.failures);
        }
    });
    out.failures.sort_by_key(|f| f.seed);
    out
}

fn report(world: &World, failure: &Failure) -> String {
    let (short, how) = shorten(world, failure, Duration::from_secs(120));
    let lines: Vec<String> = short.iter().map(|o| format!("  {o:?}")).collect();
    format!(
        "seed {} (version {}): {}\n\nThe shortest that was found: {how}\n{}\n\nREROOT_MODEL_SEED={} runs it again.",
        failure.seed,
        failure.seed / BATCH % 3 + 1,
        failure.wrong,
        lines.join("\n"),
        failure.seed
    )
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok())
}

#[test]
fn a_mount_cannot_be_told_from_a_plain_directory() {
    let one = number("REROOT_MODEL_SEED");
    let count = one.map_or(number("REROOT_MODEL_SEQUENCES").unwrap_or(SEQUENCES), |_| 1);
    let first = one.or(number("REROOT_MODEL_FIRST")).unwrap_or(0);
    // Generous: a thousand sequences take half a minute.
    let limit = Duration::from_secs(600 + count / 2);
    let text = common::within(limit, "the sequences", move || {
        let began = Instant::now();
        let world = World::new(|p| p);
        let outcome = run(&world, first, count, number("REROOT_MODEL_FAILURES").unwrap_or(1) as usize);
        println!("{} sequences from seed {first} on in {:?}", outcome.run, began.elapsed());
        for (event, n) in &outcome.coverage.events {
            println!("{n:>8}  {event:?}");
        }
        for (reason, n) in &outcome.coverage.left {
            println!("{n:>8}  overlayfs differed: {reason}");
        }
        if !outcome.failures.is_empty() {
            let texts: Vec<String> = outcome.failures.iter().map(|f| report(&world, f)).collect();
            return Some(texts.join("\n\n"));
        }
        let missing: Vec<_> = WANTED.iter().filter(|e| !outcome.coverage.events.contains_key(e)).collect();
        (count >= ALL && !missing.is_empty()).then(|| format!("never reached: {missing:?}"))
    });
    assert!(text.is_none(), "{}", text.unwrap_or_default());
}

/// Several threads at once: no answer is one that only a fault explains, and what the mount shows then is what
/// a new mount finds on the disk.
#[test]
fn what_many_threads_did_is_what_a_new_mount_shows() {
    let seed = number("REROOT_MODEL_SEED").unwrap_or(1);
    common::within(Duration::from_secs(300), "the threads", move || {
        let world = World::new(|p| p);
        let kinds = Kinds { remount: false, drop_caches: false, swap: false };
        for round in 0..4u64 {
            let name = format!("threads{round}");
            world.program.ok(&["create", &name, "m:2"]);
            let point = world.scratch.dir(&format!("mnt-{name}"));
            let options = if round == 3 { "data=coherent" } else { "" };
            let mount = world.program.mount_with(&name, &point, options);
            let root = point.join("s0");
            let threads: Vec<_> = (0..6)
                .map(|thread| {
                    let root = root.clone();
                    std::thread::spawn(move || {
                        let mut chance = Chance::new(seed * 1000 + round * 10 + thread);
                        let mut side = Side::new(&root);
                        for _ in 0..400 {
                            let operation = Operation::random(&mut chance, &[], kinds);
                            if matches!(operation, Operation::OpenTaken(_)) {
                                // A handle of what another thread removed may be stale.
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
                let tree =
                    snapshot::snapshot(root).unwrap_or_else(|e| panic!("seed {seed}, round {round}: {e}"));
                tree.into_iter().map(|(path, fact)| (path, (fact.text, fact.number))).collect()
            };
            let before = texts(&root);
            mount.umount();
            let mount = world.program.mount_with(&name, &point, options);
            let after = texts(&root);
            for path in before.keys().chain(after.keys()) {
                assert_eq!(before.get(path), after.get(path), "seed {seed}, round {round}: {path}");
            }
            mount.umount();
        }
    });
}
