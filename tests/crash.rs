//! kill -9 at any moment of an import, a mount, a commit, a swap or a collection: the store opens again and is
//! whole, and what was fsynced in a mount is there.

mod common;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::program::LIMIT;
use common::tree::{self, Item};
use common::{Program, Scratch, sh, within};

/// Numbers that look random, the same in every run; the moments at which something is killed still differ.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    /// A moment within the time that something takes, or a little later.
    fn moment(&mut self, takes: Duration) -> Duration {
        Duration::from_micros(self.below(takes.as_micros() as u64 * 11 / 10 + 1000))
    }
}

/// A base and a second tree: small files, and some large enough that their copying can be cut off.
fn fill(dir: &Path, version: u8) {
    tree::small(dir);
    for i in 0..150 {
        let text = format!("file {i} of {}\n", if i % 3 == 0 { version } else { 0 });
        tree::write(dir, &[(&format!("usr/share/many/{i}"), Item::File(text.as_bytes()))]);
    }
    for i in 0..12 {
        let bytes = vec![if i % 2 == 0 { version } else { 0 } + i; 700_000];
        tree::write(dir, &[(&format!("usr/lib/big/{i}"), Item::File(&bytes))]);
    }
    sh(dir, "find . -depth -exec touch -h -d '2020-02-02' {} +").ok();
}

/// Starts a command, kills it after a while unless it ended before.
fn kill_after(program: &Program, args: &[&str], after: Duration) {
    let mut child = program
        .command(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(after);
    let _ = child.kill();
    child.wait().unwrap();
}

/// How long a command takes when nobody kills it.
fn takes(program: &Program, args: &[&str]) -> Duration {
    let began = Instant::now();
    program.ok(args);
    began.elapsed()
}

/// The store opens, is whole, and lists what it has.
#[track_caller]
fn whole(program: &Program) {
    program.ok(&["fsck", "--deep"]);
    program.json(&["images"]);
    program.json(&["desktops"]);
}

/// Nothing that a killed program was making is left after a collection.
#[track_caller]
fn no_leftovers(scratch: &Scratch, program: &Program) {
    program.ok(&["gc"]);
    let found = "find . -path '*/user' -prune -o \\( -name '.tmp-*' -o -name '.intake*' \\) -print";
    assert_eq!(sh(&scratch.store(), found).ok().out(), "");
}

fn objects(scratch: &Scratch) -> String {
    sh(&scratch.store(), "find objects layers trees versions -type f | sort").ok().out()
}

#[test]
fn a_killed_import_harms_nothing_and_completes_when_it_is_run_again() {
    common::require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    tree::import(&scratch, &program, "os:1", None, |dir| fill(dir, 1));
    let second = scratch.dir("second");
    fill(&second, 2);
    let source = format!("dir:{}", second.display());
    let import = ["import", &source, "os:2", "--parent", "os:1"];
    let before = objects(&scratch);
    let time = takes(&program, &import);
    program.ok(&["untag", "os:2"]);
    program.ok(&["gc"]);
    let mut dice = Dice(1);
    for round in 0..30 {
        kill_after(&program, &import, dice.moment(time));
        whole(&program);
        if round % 5 == 4 {
            program.ok(&import);
            let mount = program.inspect("os:2", scratch.mnt());
            tree::assert_same("os:2", &tree::listing(&second), &tree::listing(mount.path()));
            mount.umount();
        }
        if program.run(&["show", "os:2"]).code == Some(0) {
            program.ok(&["untag", "os:2"]);
        }
        if round % 2 == 0 {
            no_leftovers(&scratch, &program);
            assert_eq!(objects(&scratch), before, "a collection brings back what was there before");
        }
    }
}

/// What a worker in a mount knows to be on disk.
#[derive(Clone, Debug, Default)]
struct Acknowledged {
    /// New files, with the number that is their content.
    made: Vec<u64>,
    /// Renamed ones.
    renamed: Vec<u64>,
    /// Large files of the stack that were added to.
    appended: Vec<u64>,
}

const APPENDIX: &[u8] = b"added by the user\n";

/// Works in a mount until it dies, and notes what was fsynced.
fn work(root: &Path, from: u64, seen: &Mutex<Acknowledged>) -> std::io::Result<()> {
    for n in from.. {
        let path = root.join(format!("home/f{n}"));
        let mut file = File::create(&path)?;
        file.write_all(format!("{n}\n").repeat(100).as_bytes())?;
        file.sync_all()?;
        seen.lock().unwrap().made.push(n);
        if n % 3 == 0 {
            std::fs::rename(&path, root.join(format!("home/r{n}")))?;
            File::open(root.join("home"))?.sync_all()?;
            seen.lock().unwrap().renamed.push(n);
        }
        let big = (n / 2) % 12;
        let path = root.join(format!("usr/lib/big/{big}"));
        if n % 2 == 0 && path.metadata()?.len() == 700_000 {
            let file = File::options().write(true).open(&path)?;
            file.write_all_at(APPENDIX, 700_000)?;
            file.sync_all()?;
            seen.lock().unwrap().appended.push(big);
        }
        let many = root.join(format!("usr/share/many/{}", n % 150));
        std::fs::set_permissions(&many, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let _ = std::fs::rename(root.join("usr/share/doc"), root.join("usr/share/doc2"));
        let _ = std::fs::rename(root.join("usr/share/doc2"), root.join("usr/share/doc"));
    }
    Ok(())
}

fn check(root: &Path, known: &Acknowledged) {
    for n in &known.made {
        let name = |c: char| root.join(format!("home/{c}{n}"));
        let old = std::fs::read_to_string(name('f'));
        let new = std::fs::read_to_string(name('r'));
        assert!(!known.renamed.contains(n) || new.is_ok(), "home/r{n} was renamed and fsynced: {new:?}");
        assert!(old.is_ok() != new.is_ok(), "home/f{n} or home/r{n}, not both: {old:?} {new:?}");
        assert_eq!(old.or(new).unwrap(), format!("{n}\n").repeat(100), "home/f{n}");
    }
    for big in 0..12u64 {
        let bytes = std::fs::read(root.join(format!("usr/lib/big/{big}"))).unwrap();
        let (content, rest) = bytes.split_at(700_000);
        let expected = if big % 2 == 0 { 1 } else { 0 } + big as u8;
        assert!(content.iter().all(|b| *b == expected), "usr/lib/big/{big} is half copied up");
        assert!(rest.is_empty() || rest == APPENDIX, "usr/lib/big/{big}: {rest:?}");
        assert!(rest == APPENDIX || !known.appended.contains(&big), "usr/lib/big/{big} was fsynced");
    }
    for i in 0..150 {
        let text = std::fs::read_to_string(root.join(format!("usr/share/many/{i}"))).unwrap();
        assert_eq!(text, format!("file {i} of {}\n", u8::from(i % 3 == 0)));
    }
    let doc = [root.join("usr/share/doc"), root.join("usr/share/doc2")];
    assert_eq!(doc.iter().filter(|d| d.join("small/README").exists()).count(), 1, "a directory on its way");
}

#[test]
fn what_was_fsynced_before_the_daemon_was_killed_is_there_afterwards() {
    common::require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    tree::import(&scratch, &program, "os:1", None, |dir| fill(dir, 1));
    let mut dice = Dice(2);
    let mut next = 0;
    for desktop in ["a", "b", "c"] {
        program.ok(&["create", desktop, "os:1"]);
        let seen = Arc::new(Mutex::new(Acknowledged::default()));
        for round in 0..9 {
            if round == 8 {
                // Killed while it mounts.
                kill_mount(&scratch, &program, desktop, dice.moment(Duration::from_millis(60)));
                whole(&program);
                continue;
            }
            let mount = program.mount(desktop, scratch.mnt());
            let root = mount.path().to_path_buf();
            mount.forget();
            let (told, from) = (seen.clone(), next);
            let worker = std::thread::spawn(move || work(&root, from, &told));
            std::thread::sleep(Duration::from_millis(5 + dice.below(250)));
            assert_eq!(scratch.kill_daemons(), 1);
            let ended = within(LIMIT, "the worker's end", move || worker.join().unwrap());
            assert!(ended.is_err(), "a dead mount answers with errors");
            next = seen.lock().unwrap().made.last().map_or(next, |n| n + 2).max(next);
            whole(&program);

            let mount = program.mount(desktop, scratch.mnt());
            let (root, known) = (mount.path().to_path_buf(), seen.lock().unwrap().clone());
            within(LIMIT, "reading back", move || check(&root, &known));
            mount.umount();
            let stray = format!("find desktops/{desktop}/work -mindepth 1 ! -name '#whiteout'");
            assert_eq!(sh(&scratch.store(), &stray).ok().out(), "");
            program.ok(&["changes", desktop]);
        }
        program.ok(&["settle", desktop]);
        let mount = program.mount(desktop, scratch.mnt());
        let (root, known) = (mount.path().to_path_buf(), seen.lock().unwrap().clone());
        within(LIMIT, "reading back", move || check(&root, &known));
        mount.umount();
    }
    no_leftovers(&scratch, &program);
}

/// Begins to mount and kills both the command and the daemon on the way.
fn kill_mount(scratch: &Scratch, program: &Program, desktop: &str, after: Duration) {
    let point = scratch.mnt();
    kill_after(program, &["mount", desktop, point.to_str().unwrap()], after);
    scratch.kill_daemons();
    // A mount may be there or not; neither stands in the way of the next.
    program.mount(desktop, &point).umount();
}

#[test]
fn a_killed_commit_leaves_the_view_as_it_was() {
    common::require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    tree::import(&scratch, &program, "os:1", None, |dir| fill(dir, 1));
    program.ok(&["create", "alice", "os:1"]);
    let mut dice = Dice(3);
    let mut time = Duration::from_millis(100);
    for round in 0..18 {
        let mount = program.mount("alice", scratch.mnt());
        mount.sh(&format!(
            "for i in 1 2 3 4 5; do head -c 300000 /dev/zero | tr '\\0' {} >home/$i-{round}; done
             for i in {round} 1{round} 2{round}; do echo {round} >>usr/share/many/$i; done; rm -f usr/share/many/3{round}
             rm -rf var/log; mkdir -p var/log; echo {round} >var/log/new
             [ -d usr/lib/big ] && mv usr/lib/big usr/lib/big2 || mv usr/lib/big2 usr/lib/big",
            (b'a' + round as u8) as char
        ));
        let worked = tree::listing(mount.path());
        mount.umount();
        let tag = format!("os:c{round}");
        let reset = round % 2 == 0;
        let mut args = vec!["commit", "alice", tag.as_str()];
        if reset {
            args.push("--reset");
        }
        if round == 0 {
            time = takes(&program, &args);
        } else {
            kill_after(&program, &args, dice.moment(time));
        }
        whole(&program);
        let mount = program.mount("alice", scratch.mnt());
        tree::assert_same("after the commit", &worked, &tree::listing(mount.path()));
        mount.umount();
        if program.run(&["show", &tag]).code == Some(0) {
            let mount = program.inspect(&tag, scratch.mnt());
            tree::assert_same("the version", &worked, &tree::listing(mount.path()));
            mount.umount();
        }
    }
    no_leftovers(&scratch, &program);
    whole(&program);
}

#[test]
fn a_killed_settle_leaves_the_view_as_it_was() {
    common::require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    tree::import(&scratch, &program, "os:1", None, |dir| fill(dir, 1));
    let mut dice = Dice(6);
    let mut time = Duration::from_millis(100);
    for round in 0..10 {
        let desktop = format!("d{round}");
        program.ok(&["create", &desktop, "os:1"]);
        let mount = program.mount(&desktop, scratch.mnt());
        mount.sh(
            "mv usr moved; rm moved/share/many/1 moved/bin/alias; mkdir usr; mv moved/share/many usr/many
             chmod 700 moved/lib/big/1 moved/lib; mv moved/lib/big/2 home/two; ln moved/lib/big/3 home/three
             rm -r var; mkdir var; chmod 600 etc/passwd; mv etc/hostname etc/h; ln moved/bin/tool home/tool",
        );
        let worked = tree::listing(mount.path());
        mount.umount();
        for again in 0..3 {
            if (round, again) == (0, 0) {
                time = takes(&program, &["settle", &desktop]);
            } else {
                kill_after(&program, &["settle", &desktop], dice.moment(time));
            }
            let mount = program.mount(&desktop, scratch.mnt());
            tree::assert_same("after settling was cut off", &worked, &tree::listing(mount.path()));
            mount.umount();
        }
        program.ok(&["settle", &desktop]);
        let mount = program.mount(&desktop, scratch.mnt());
        tree::assert_same("settled", &worked, &tree::listing(mount.path()));
        mount.umount();
        whole(&program);
        program.ok(&["rm", &desktop]);
    }
    no_leftovers(&scratch, &program);
}

#[test]
fn a_full_disk_under_the_store_ends_an_import_and_leaves_the_store_whole() {
    common::require_root();
    let outer = Scratch::new();
    let disk = common::Disk::new(&outer, "ext4", "disk", 32);
    let scratch = Scratch::at(disk.path().join("s"));
    let program = Program::new(&scratch);
    tree::import(&scratch, &program, "os:1", None, tree::small);
    let big = outer.dir("big");
    for i in 0..40u8 {
        tree::write(&big, &[(&format!("big/{i}"), Item::File(&vec![i + 1; 1 << 20]))]);
    }
    let source = format!("dir:{}", big.display());
    for _ in 0..2 {
        let answer = program.run(&["import", &source, "os:2", "--parent", "os:1"]).expect_code(1);
        assert!(answer.err().contains("No space left on device"), "{}", answer.err());
        assert_eq!(sh(&scratch.store(), "find objects -name '.intake*'").ok().out(), "");
        whole(&program);
        program.run(&["show", "os:2"]).expect_code(1);
    }
    tree::import(&scratch, &program, "os:3", Some("os:1"), |dir| {
        tree::small(dir);
        tree::write(dir, &[("etc/hostname", Item::File(b"there is room again\n"))]);
    });
    whole(&program);
}

#[test]
fn a_killed_swap_comes_up_on_one_version_or_the_other() {
    common::require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    let sources: Vec<PathBuf> = vec![
        tree::import(&scratch, &program, "os:1", None, |dir| fill(dir, 1)),
        tree::import(&scratch, &program, "os:2", Some("os:1"), |dir| fill(dir, 2)),
    ];
    program.ok(&["create", "alice", "os:1"]);
    let mount = program.mount("alice", scratch.mnt());
    mount.sh("echo mine >home/mine; chmod 600 usr/share/many/0");
    let time = takes(&program, &["upgrade", "alice", "--to", "os:2"]);
    mount.umount();
    let mut expected: Vec<tree::Listing> = Vec::new();
    for tag in ["1", "2"] {
        program.run(&["upgrade", "alice", "--to", &format!("os:{tag}")]);
        let mount = program.mount("alice", scratch.mnt());
        expected.push(tree::listing(mount.path()));
        mount.umount();
    }
    let other = tree::listing(&sources[1]);
    assert_eq!(expected[1].get(&b"usr/share/many/3"[..]), other.get(&b"usr/share/many/3"[..]));
    let mut dice = Dice(4);
    for round in 0..24 {
        let mount = program.mount("alice", scratch.mnt());
        // The kernel knows the names that differ.
        mount.sh("ls -lR usr >/dev/null");
        mount.forget();
        let status = program.json(&["status", "alice"]);
        let to = if status["tag"] == "1" { "os:2" } else { "os:1" };
        let mut child = program
            .command(&["upgrade", "alice", "--to", to])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(dice.moment(time));
        if round % 4 == 3 {
            // The command alone: the daemon goes on with what it was asked.
            let _ = child.kill();
            child.wait().unwrap();
            program.ok(&["umount", "alice"]);
        } else {
            scratch.kill_daemons();
            let _ = child.kill();
            child.wait().unwrap();
        }
        whole(&program);
        let mount = program.mount("alice", scratch.mnt());
        let status = program.json(&["status", "alice"]);
        assert!(status["pending"].is_null(), "{status}");
        let at = if status["tag"] == "1" { 0 } else { 1 };
        tree::assert_same(&format!("{}", status["tag"]), &expected[at], &tree::listing(mount.path()));
        mount.umount();
    }
    no_leftovers(&scratch, &program);
}

#[test]
fn a_killed_collection_takes_nothing_that_is_needed() {
    common::require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    let source = tree::import(&scratch, &program, "os:1", None, |dir| fill(dir, 1));
    program.ok(&["create", "alice", "os:1"]);
    program.ok(&["untag", "os:1"]);
    program.ok(&["gc"]);
    let before = objects(&scratch);
    let mut dice = Dice(5);
    let mut time = Duration::ZERO;
    for round in 0..18u8 {
        let extra = scratch.dir(&format!("extra-{round}"));
        fill(&extra, 10 + round);
        program.ok(&["import", &format!("dir:{}", extra.display()), "os:extra"]);
        program.ok(&["untag", "os:extra"]);
        if round == 0 {
            time = takes(&program, &["gc"]);
        } else {
            kill_after(&program, &["gc"], dice.moment(time));
        }
        whole(&program);
        if round % 6 == 5 {
            no_leftovers(&scratch, &program);
            assert_eq!(objects(&scratch), before, "what a killed collection left, the next one takes");
        }
    }
    let mount = program.mount("alice", scratch.mnt());
    tree::assert_same("the desktop", &tree::listing(&source), &tree::listing(mount.path()));
    mount.umount();
}

#[test]
fn a_collection_beside_imports_and_mounts_takes_nothing_that_is_needed() {
    common::require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    let source = tree::import(&scratch, &program, "os:1", None, |dir| fill(dir, 1));
    program.ok(&["create", "alice", "os:1"]);
    program.ok(&["untag", "os:1"]);
    let stop = Arc::new(AtomicBool::new(false));
    let collector = {
        let (program, stop) = (program.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut done = 0;
            while !stop.load(Ordering::Relaxed) {
                // In use all the time it may give up (1); it never does harm.
                let answer = program.run(&["gc"]);
                assert!(matches!(answer.code, Some(0 | 1)), "{}", answer.err());
                done += u32::from(answer.code == Some(0));
            }
            done
        })
    };
    let importer = {
        let (program, scratch_path) = (program.clone(), scratch.path().to_path_buf());
        std::thread::spawn(move || {
            for round in 0..8u8 {
                let dir = scratch_path.join(format!("import-{round}"));
                std::fs::create_dir(&dir).unwrap();
                fill(&dir, 20 + round);
                program.ok(&["import", &format!("dir:{}", dir.display()), &format!("new:{round}")]);
            }
        })
    };
    let expected = tree::listing(&source);
    for round in 0..8 {
        let mount = program.mount("alice", scratch.mnt());
        mount.sh(&format!(
            "echo {round} >>home/log; mv usr/lib/big usr/lib/moved; mv usr/lib/moved usr/lib/big"
        ));
        let mut seen = tree::listing(mount.path());
        assert_eq!(seen.remove(&b"home/log"[..]).is_some(), !expected.contains_key(&b"home/log"[..]));
        tree::assert_same("alice", &expected, &seen);
        mount.umount();
    }
    within(LIMIT * 2, "the imports", move || importer.join().unwrap());
    stop.store(true, Ordering::Relaxed);
    let collected = within(LIMIT, "the collections", move || collector.join().unwrap());
    assert!(collected > 0, "no collection came through");
    whole(&program);
    for round in 0..8 {
        let mount = program.inspect(&format!("new:{round}"), scratch.mnt());
        let from = tree::listing(&scratch.join(format!("import-{round}")));
        tree::assert_same("imported beside collections", &from, &tree::listing(mount.path()));
        mount.umount();
        program.ok(&["untag", &format!("new:{round}")]);
    }
    // The desktop and its pins are the last that need anything.
    program.ok(&["rm", "alice"]);
    program.ok(&["gc"]);
    assert_eq!(objects(&scratch), "", "nothing names anything any more");
}
