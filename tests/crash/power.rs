//! The disk is gone from one moment to the next, as at a power cut: what was fsynced is there afterwards, and nothing is
//! half there.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{Disk, Program, Scratch, require_root, sh, tree, within};
use crate::{Dice, fill, whole};

const LIMIT: Duration = Duration::from_secs(120);

/// What a worker knows to be on the disk.
#[derive(Debug, Default)]
struct Known {
    made: Vec<u64>,
    renamed: Vec<u64>,
    appended: Vec<u64>,
    /// The number in a small file of the stack that is written over again and again.
    number: u64,
    /// The one that was being written in its place.
    trying: u64,
    /// The power is being cut. What is acknowledged from now on need not be true: the kernel's way of doing this ends
    /// the journal's last transaction without writing it, and an fsync that waits for it just then may succeed.
    cut: bool,
}

/// Notes something that an fsync has acknowledged, unless the power is being cut.
fn note(known: &Mutex<Known>, what: impl FnOnce(&mut Known)) -> io::Result<()> {
    let mut known = known.lock().unwrap();
    if known.cut {
        return Err(io::ErrorKind::NotConnected.into());
    }
    what(&mut known);
    Ok(())
}

fn made(n: u64) -> Vec<u8> {
    format!("{n}\n").repeat(200 + n as usize % 700).into_bytes()
}

fn work(root: &Path, from: u64, known: &Mutex<Known>) -> io::Result<()> {
    let home = File::open(root.join("home"))?;
    for n in from.. {
        let path = root.join(format!("home/f{n}"));
        let mut file = File::create(&path)?;
        file.write_all(&made(n))?;
        file.sync_all()?;
        note(known, |k| k.made.push(n))?;
        if n % 3 == 0 {
            std::fs::rename(&path, root.join(format!("home/r{n}")))?;
            home.sync_all()?;
            note(known, |k| k.renamed.push(n))?;
        }
        if n % 4 == 0 {
            let big = (n / 4) % 12;
            let path = root.join(format!("usr/lib/big/{big}"));
            if path.metadata()?.len() == 700_000 {
                let file = File::options().write(true).open(&path)?;
                file.write_all_at(b"appended", 700_000)?;
                file.sync_data()?;
                note(known, |k| k.appended.push(big))?;
            }
        }
        let file = File::options().write(true).open(root.join("etc/hostname"))?;
        note(known, |k| k.trying = n)?;
        file.write_all_at(format!("{n:06}\n").as_bytes(), 0)?;
        file.sync_all()?;
        note(known, |k| k.number = n)?;
        // These are not synced: they may be there or not.
        let many = root.join(format!("usr/share/many/{}", n % 150));
        std::fs::set_permissions(&many, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        std::fs::write(root.join(format!("var/log/{n}")), made(n))?;
        let big = root.join(format!("usr/lib/big/{}", (n + 5) % 12));
        File::options().append(true).open(&big)?.write_all(b"")?;
    }
    Ok(())
}

fn check(root: &Path, known: &Known) {
    for n in &known.made {
        let name = |c: char| root.join(format!("home/{c}{n}"));
        let (old, new) = (std::fs::read(name('f')), std::fs::read(name('r')));
        assert!(!known.renamed.contains(n) || new.is_ok(), "home/r{n} was renamed and synced: {new:?}");
        let (first, second) = (old.as_ref().map(Vec::len), new.as_ref().map(Vec::len));
        assert!(
            first.is_ok() != second.is_ok(),
            "home/f{n} or home/r{n}, not both: {first:?} {second:?}; {:?}",
            known.made.last()
        );
        assert!(old.or(new).unwrap() == made(*n), "home/f{n} is not what was synced");
    }
    for big in 0..12u64 {
        let bytes = std::fs::read(root.join(format!("usr/lib/big/{big}"))).unwrap();
        let (content, rest) = bytes.split_at_checked(700_000).expect("no large file is shorter");
        let expected = if big % 2 == 0 { 1 } else { 0 } + big as u8;
        assert!(content.iter().all(|b| *b == expected), "usr/lib/big/{big} is half copied up");
        let was_synced = known.appended.contains(&big);
        assert!(
            rest == b"appended" || !was_synced && (rest.is_empty() || rest.iter().all(|b| *b == 0)),
            "usr/lib/big/{big}: {rest:?}"
        );
    }
    for i in 0..150 {
        let text = std::fs::read_to_string(root.join(format!("usr/share/many/{i}"))).unwrap();
        assert_eq!(text, format!("file {i} of {}\n", u8::from(i % 3 == 0)));
    }
    if known.number > 0 {
        let text = std::fs::read_to_string(root.join("etc/hostname")).unwrap();
        let number: u64 = text.trim().parse().unwrap_or_else(|e| panic!("etc/hostname: {text:?}: {e}"));
        assert!([known.number, known.trying].contains(&number), "{number}, synced was {}", known.number);
    }
}

#[test]
fn what_was_fsynced_survives_a_power_cut() {
    require_root();
    let outer = Scratch::new();
    let disk = Disk::new(&outer, "ext4", "disk", 512);
    let scratch = Scratch::at(disk.path().join("s"));
    let program = Program::new(&scratch);
    tree::import(&scratch, &program, "os:1", None, |dir| fill(dir, 1));
    let cuts = std::env::var("REROOT_POWER_CUTS").map_or(30, |n| n.parse().expect("a number"));
    let known = Arc::new(Mutex::new(Known::default()));
    let mut dice = Dice(11);
    for round in 0..cuts {
        let name = format!("d{}", round / 10);
        if round % 10 == 0 {
            program.ok(&["create", &name, "os:1"]);
            sh(scratch.path(), "sync -f .").ok();
            *known.lock().unwrap() = Known::default();
        }
        let mount = program.mount(&name, scratch.mnt());
        let root = mount.path().to_path_buf();
        mount.forget();
        let told = known.clone();
        let from = 1 + round * 10_000;
        let worker = std::thread::spawn(move || work(&root, from, &told));
        // Any moment will do.
        std::thread::sleep(Duration::from_micros(dice.below(250_000)));
        assert!(!worker.is_finished(), "{:?}", worker.join());
        known.lock().unwrap().cut = true;
        disk.cut();
        assert_eq!(scratch.kill_daemons(), 1);
        let ended = within(LIMIT, "the worker's end", move || worker.join().unwrap());
        assert!(ended.is_err(), "a dead mount answers with errors");
        // The power is back.
        known.lock().unwrap().cut = false;
        sh(outer.path(), &format!("umount -i -l {}", scratch.mnt().display())).ok();
        disk.again();
        whole(&program);
        let mount = program.mount(&name, scratch.mnt());
        let (root, known) = (mount.path().to_path_buf(), known.clone());
        within(LIMIT, "reading back", move || check(&root, &known.lock().unwrap()));
        mount.umount();
        program.ok(&["changes", &name]);
    }
    program.ok(&["gc"]);
}
