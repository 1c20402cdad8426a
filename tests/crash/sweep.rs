//! The daemon is killed at hundreds of random moments while programs work in the view. Afterwards every operation that
//! had returned is there, and the one that had not is there wholly or not at all.
//!
//! The model is a plain directory: each operation that succeeds in the view is repeated on it. (A killed daemon leaves
//! the host's page cache as it is, so nothing needs an fsync to be there; [`crate::power`] is about what does.)

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::common::mix::{self, Dice, Operation, difference, look};
use crate::common::tree::{self, Item};
use crate::common::{Program, Scratch, require_root, sh, within};
use crate::{no_leftovers, whole};

/// How long anything in one round may take.
const LIMIT: Duration = Duration::from_secs(120);
/// Rounds with one desktop before the next.
const EACH: u64 = 20;
/// Programs that work at once, each in a directory of its own.
const WORKERS: u64 = 2;

fn crashes() -> u64 {
    let otherwise = 500;
    std::env::var("REROOT_CRASHES").map_or(otherwise, |n| n.parse().expect("REROOT_CRASHES is a number"))
}

/// Whether an error says that there is no daemon any more.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EIO | libc::ENODEV | libc::EINTR)
    )
}

/// Works until the daemon is gone. What was in flight then; or how the view differed from the model.
fn work(
    view: &Path,
    model: &Path,
    mut dice: Dice,
    done: &mut BTreeMap<String, u64>,
) -> Result<Operation, String> {
    loop {
        let operation = Operation::random(&mut dice);
        let seen = operation.run(view);
        if seen.as_ref().is_err_and(is_end) {
            return Ok(operation);
        }
        let wanted = operation.run(model);
        let code = |r: &io::Result<usize>| r.as_ref().err().map(|e| e.raw_os_error());
        if code(&seen) != code(&wanted) {
            return Err(format!("{operation:?}: {seen:?}, and a plain directory says {wanted:?}"));
        }
        if seen.is_ok() {
            *done.entry(operation.name()).or_default() += 1;
        }
    }
}

/// One desktop, killed again and again.
fn rounds(scratch: &Scratch, program: &Program, desktop: u64, count: u64, done: &mut BTreeMap<String, u64>) {
    let name = format!("d{desktop}");
    program.ok(&["create", &name, "os:1"]);
    let models: Vec<PathBuf> = (0..WORKERS).map(|w| scratch.join(format!("model-{w}"))).collect();
    for (w, model) in models.iter().enumerate() {
        let source = scratch.join(format!("src-os-1/w{w}"));
        sh(scratch.path(), &format!("rm -rf {0}; cp -a {1} {0}", model.display(), source.display())).ok();
    }
    let mut in_flight: Vec<Operation> = Vec::new();
    for round in 0..=count {
        let seed = desktop * 1000 + round;
        let mount = program.mount(&name, scratch.mnt());
        let root = mount.path().to_path_buf();
        mount.forget();
        for (w, model) in models.iter().enumerate() {
            let view = root.join(format!("w{w}"));
            let of_model = model.clone();
            let (seen, wanted) = within(LIMIT, "looking", move || (look(&view), look(&of_model)));
            if seen == wanted {
                continue;
            }
            // Then the one that was in flight is there.
            let operation = in_flight.get(w).unwrap_or_else(|| {
                panic!("before anything was done:\n{}", difference(&seen, &wanted).join("\n"))
            });
            let result = operation.run(model);
            let with = look(model);
            assert!(
                seen == with,
                "desktop {desktop}, round {round}, in flight was {operation:?} ({result:?})\nwithout it:\n{}\nwith it:\n{}",
                difference(&seen, &wanted).join("\n"),
                difference(&seen, &with).join("\n")
            );
        }
        let stray = format!(
            "find desktops/{name}/work -mindepth 1 ! -name '#whiteout' ! -name moved ! -name 'group*'"
        );
        assert_eq!(sh(&scratch.store(), &stray).ok().out(), "", "desktop {desktop}, round {round}");
        if round == count {
            break;
        }
        let mut dice = Dice(seed);
        let workers: Vec<_> = (0..WORKERS)
            .map(|w| {
                let (view, model) = (root.join(format!("w{w}")), models[w as usize].clone());
                let dice = Dice(seed * 100 + w);
                std::thread::spawn(move || {
                    let mut done = BTreeMap::new();
                    (work(&view, &model, dice, &mut done), done)
                })
            })
            .collect();
        // Now and then a version is swapped beneath; it differs beside the workers' directories only.
        let swap = (round % 4 == 3).then(|| {
            let to = if round % 8 == 3 { "os:2" } else { "os:1" };
            let mut command = program.command(&["upgrade", &name, "--to", to]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        });
        // Any moment will do.
        std::thread::sleep(Duration::from_micros(dice.below(60_000)));
        let early = workers.iter().any(std::thread::JoinHandle::is_finished);
        assert!(scratch.kill_daemons() >= 1, "there was no daemon");
        if let Some(mut swap) = swap {
            let _ = swap.kill();
            swap.wait().unwrap();
        }
        in_flight.clear();
        for worker in workers {
            let (ended, counts) = within(LIMIT, "the worker's end", move || worker.join().unwrap());
            for (name, count) in counts {
                *done.entry(name).or_default() += count;
            }
            assert!(
                !early || ended.is_err(),
                "desktop {desktop}, round {round}: {ended:?} failed before the daemon was killed"
            );
            in_flight.push(ended.unwrap_or_else(|e| panic!("desktop {desktop}, round {round}: {e}")));
        }
    }
    program.ok(&["umount", &name]);
    whole(program);
    program.ok(&["changes", &name]);
    program.ok(&["rm", &name]);
}

#[test]
fn whatever_had_returned_when_the_daemon_was_killed_is_there() {
    require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    for (version, parent) in [("1", None), ("2", Some("os:1"))] {
        tree::import(&scratch, &program, &format!("os:{version}"), parent, |dir| {
            for w in 0..WORKERS {
                mix::stack(&dir.join(format!("w{w}")));
            }
            tree::write(dir, &[("version", Item::File(version.as_bytes())), (version, Item::Dir(0o755))]);
            mix::old(dir);
        });
    }
    let (all, mut desktop, mut done) = (crashes(), 0, BTreeMap::new());
    while desktop * EACH < all {
        rounds(&scratch, &program, desktop, EACH.min(all - desktop * EACH), &mut done);
        desktop += 1;
    }
    no_leftovers(&scratch, &program);
    println!("{all} crashes; operations that succeeded: {done:?}");
    assert!(done.len() == 15 || all < 100, "not every operation was reached: {done:?}");
}
