//! The daemon is killed: what was fsynced is there.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::program::LIMIT;
use crate::common::{self, Program, Scratch, sh, tree, within};
use crate::{Dice, fill, kill_after, no_leftovers, whole};

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
            let stray = format!("find desktops/{desktop}/work -mindepth 1 ! -name '#whiteout' ! -name moved");
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
