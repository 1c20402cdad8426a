//! The daemon is killed at hundreds of random moments while programs work in the view. Afterwards every operation that
//! had returned is there, and the one that had not is there wholly or not at all.
//!
//! The model is a plain directory: each operation that succeeds in the view is repeated on it. (A killed daemon leaves
//! the host's page cache as it is, so nothing needs an fsync to be there; [`crate::power`] is about what does.)

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{self as rfs, RenameFlags};

use crate::common::tree::{self, Item};
use crate::common::{Program, Scratch, require_root, sh, within};
use crate::{Dice, no_leftovers, whole};

/// How long anything in one round may take.
const LIMIT: Duration = Duration::from_secs(120);
/// Rounds with one desktop before the next.
const EACH: u64 = 20;
/// Programs that work at once, each in a directory of its own.
const WORKERS: u64 = 2;
/// When the stack's files were last changed.
const OLD: &str = " 1580601600.000000000 ";

fn crashes() -> u64 {
    let otherwise = 500;
    std::env::var("REROOT_CRASHES").map_or(otherwise, |n| n.parse().expect("REROOT_CRASHES is a number"))
}

/// What a worker finds in its directory: few names, so that they collide.
fn stack(dir: &Path) {
    let large = vec![b'L'; 600_000];
    for name in ["a", "b", "d/a", "d/b", "d/c", "e/a", "e/d/b"] {
        tree::write(dir, &[(name, Item::File(name.repeat(50).as_bytes()))]);
    }
    for name in ["c", "d/e/c", "e/c"] {
        tree::write(dir, &[(name, Item::File(&large))]);
    }
    tree::write(
        dir,
        &[
            ("e/b", Item::Same("a")),
            ("e/e", Item::Same("d/c")),
            ("d/d", Item::Link("a")),
            ("f/a/b", Item::Mode(b"#!/bin/sh\n", 0o755)),
            ("f/b", Item::Dir(0o700)),
        ],
    );
}

#[derive(Clone, Debug)]
enum Operation {
    Create(String),
    Write(String, u64, Vec<u8>),
    Append(String, Vec<u8>),
    Truncate(String, u64),
    Chmod(String, u32),
    Chown(String, u32),
    SetXattr(String, String),
    Link(String, String),
    Symlink(String),
    Rename(String, String),
    Exchange(String, String),
    Unlink(String),
    Mkdir(String),
    Rmdir(String),
    Fsync(String),
}

impl Operation {
    fn random(dice: &mut Dice) -> Operation {
        use Operation as O;
        let (a, b) = (path(dice), path(dice));
        match dice.below(23) {
            0..2 => O::Create(a),
            2..6 => O::Write(a, dice.below(5) * 800, vec![b'w'; 1 + dice.below(700) as usize]),
            6..8 => O::Append(a, vec![b'p'; 1 + dice.below(500) as usize]),
            8..10 => O::Truncate(a, dice.below(700_000)),
            10 => O::Chmod(a, [0o644, 0o600, 0o755, 0o4755][dice.below(4) as usize]),
            11 => O::Chown(a, dice.below(3) as u32),
            12 => O::SetXattr(a, dice.below(100).to_string()),
            13..15 => O::Link(a, b),
            15 => O::Symlink(a),
            16..19 => O::Rename(a, b),
            19 => O::Exchange(a, b),
            20 => O::Unlink(a),
            21 => [O::Mkdir(a.clone()), O::Rmdir(a)][dice.below(2) as usize].clone(),
            _ => O::Fsync(a),
        }
    }

    /// Does it beneath `root`. Each is one request to the file system that changes something, after others that only
    /// open.
    fn run(&self, root: &Path) -> io::Result<()> {
        use Operation as O;
        let at = |name: &String| root.join(name);
        let open = |name: &String, options: &mut OpenOptions| {
            // A symbolic link is no file to write to: its target would be one more name for something.
            std::os::unix::fs::OpenOptionsExt::custom_flags(options, libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(at(name))
        };
        match self {
            O::Create(p) => open(p, OpenOptions::new().write(true).create_new(true)).map(drop),
            O::Write(p, offset, bytes) => {
                open(p, OpenOptions::new().write(true))?.write_at(bytes, *offset).map(drop)
            }
            O::Append(p, bytes) => open(p, OpenOptions::new().append(true))?.write(bytes).map(drop),
            O::Truncate(p, size) => open(p, OpenOptions::new().write(true))?.set_len(*size),
            O::Chmod(p, mode) => {
                if fs::symlink_metadata(at(p))?.is_symlink() {
                    return Ok(());
                }
                fs::set_permissions(at(p), fs::Permissions::from_mode(*mode))
            }
            O::Chown(p, id) => std::os::unix::fs::lchown(at(p), Some(*id), Some(*id)),
            O::SetXattr(p, value) => {
                Ok(rfs::lsetxattr(at(p), c"trusted.test", value.as_bytes(), rfs::XattrFlags::empty())?)
            }
            O::Link(p, q) => fs::hard_link(at(p), at(q)),
            O::Symlink(p) => std::os::unix::fs::symlink("target", at(p)),
            O::Rename(p, q) => fs::rename(at(p), at(q)),
            O::Exchange(p, q) => {
                Ok(rfs::renameat_with(rfs::CWD, at(p), rfs::CWD, at(q), RenameFlags::EXCHANGE)?)
            }
            O::Unlink(p) => fs::remove_file(at(p)),
            O::Mkdir(p) => fs::create_dir(at(p)),
            O::Rmdir(p) => fs::remove_dir(at(p)),
            O::Fsync(p) => open(p, OpenOptions::new().read(true))?.sync_all(),
        }
    }
}

fn path(dice: &mut Dice) -> String {
    let name = |dice: &mut Dice| ["a", "b", "c", "d", "e", "f"][dice.below(6) as usize];
    let mut out = name(dice).to_string();
    while dice.below(2) == 0 && out.len() < 7 {
        out = format!("{out}/{}", name(dice));
    }
    out
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
        let code = |r: &io::Result<()>| r.as_ref().err().map(|e| e.raw_os_error());
        if code(&seen) != code(&wanted) {
            return Err(format!("{operation:?}: {seen:?}, and a plain directory says {wanted:?}"));
        }
        if seen.is_ok() {
            let name = format!("{operation:?}");
            *done.entry(name.split('(').next().unwrap_or_default().to_string()).or_default() += 1;
        }
    }
}

/// A tree with its attributes; of the times, only whether they are the stack's.
fn look(root: &Path) -> Vec<String> {
    let mut out = Vec::new();
    for (name, line) in tree::listing(root) {
        let path = root.join(String::from_utf8_lossy(&name).as_ref());
        let mut value = [0; 16];
        let xattr = rfs::lgetxattr(&path, c"trusted.test", &mut value).map_or(0, |n| n);
        let mut words: Vec<&str> = line.split(' ').collect();
        if let Some(time) = words.get_mut(3)
            && !OLD.contains(&format!(" {time} "))
        {
            *time = "later";
        }
        let text = String::from_utf8_lossy(&value[..xattr]).into_owned();
        out.push(format!("/{} {} {text}", String::from_utf8_lossy(&name), words.join(" ")));
    }
    out
}

fn difference(left: &[String], right: &[String]) -> Vec<String> {
    let only = |mark: char, a: &[String], b: &[String]| {
        a.iter().filter(|l| !b.contains(l)).map(|l| format!("{mark} {l}")).collect::<Vec<_>>()
    };
    [only('+', left, right), only('-', right, left)].concat()
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
        let stray = format!("find desktops/{name}/work -mindepth 1 ! -name '#whiteout' ! -name 'group*'");
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
                stack(&dir.join(format!("w{w}")));
            }
            tree::write(dir, &[("version", Item::File(version.as_bytes())), (version, Item::Dir(0o755))]);
            sh(dir, "find . -depth -exec touch -h -d '2020-02-02 00:00:00 UTC' {} +").ok();
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
