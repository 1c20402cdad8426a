//! Bad weather: the disk under the user layer is full, has no inodes left, becomes read-only or fails; the daemon has no
//! descriptors left. The error reaches the caller, nothing is half done, the daemon lives, and when the weather clears
//! the view is right.
//!
//! The model is a plain directory on which everything that succeeds in the view is repeated.

#[path = "../common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::mix::{self, Dice, Operation, difference, look};
use common::program::run;
use common::tree::{self, Item};
use common::{Disk, Program, Scratch, require_root, sh, within};

/// How long a piece of a test may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A desktop whose user layer lies on a small disk, and its model elsewhere.
struct Place {
    program: Program,
    scratch: Scratch,
    model: PathBuf,
    // In the order in which they go.
    disk: Disk,
    _outer: Scratch,
}

impl Place {
    /// With the store on the same disk or not.
    fn new(whole_store: bool) -> Place {
        require_root();
        let outer = Scratch::new();
        let disk = Disk::new(&outer, "ext4", "disk", 64);
        let on = if whole_store { disk.path() } else { outer.path() };
        let scratch = Scratch::at(on.join("s"));
        let program = Program::new(&scratch);
        for (version, parent) in [("1", None), ("2", Some("os:1"))] {
            tree::import(&outer, &program, &format!("os:{version}"), parent, |dir| {
                mix::stack(&dir.join("w"));
                tree::write(dir, &[("version", Item::File(version.as_bytes()))]);
                mix::old(dir);
            });
        }
        if whole_store {
            program.ok(&["create", "d", "os:1"]);
        } else {
            let home = disk.path().join("layer");
            program.ok(&["create", "d", "os:1", "--user-layer", home.to_str().unwrap()]);
        }
        let model = outer.join("model");
        sh(outer.path(), "cp -a src-os-1/w model").ok();
        Place { program, scratch, model, disk, _outer: outer }
    }

    fn view(&self) -> PathBuf {
        self.scratch.mnt().join("w")
    }

    /// Does `count` operations in the view, and those that succeed on the model as well. An operation may fail with
    /// what the model says or, in bad weather, with one of `weather`. How often each of these was.
    #[track_caller]
    fn work(&self, seed: u64, count: usize, weather: &'static [i32]) -> BTreeMap<i32, usize> {
        let (view, model) = (self.view(), self.model.clone());
        within(LIMIT, "working", move || {
            let (mut dice, mut met) = (Dice(seed), BTreeMap::new());
            for _ in 0..count {
                let operation = Operation::random(&mut dice);
                let seen = operation.run(&view);
                let code = seen.as_ref().err().and_then(io::Error::raw_os_error);
                if let Some(code) = code.filter(|c| weather.contains(c)) {
                    *met.entry(code).or_default() += 1;
                    continue;
                }
                // A full disk may take the first part of what is written.
                let wanted = operation.cut(*seen.as_ref().unwrap_or(&usize::MAX)).run(&model);
                let wanted = wanted.as_ref().err().and_then(io::Error::raw_os_error);
                assert_eq!(code, wanted, "seed {seed}: {operation:?}");
            }
            met
        })
    }

    #[track_caller]
    fn same(&self, when: &str) {
        let (view, model) = (self.view(), self.model.clone());
        let (seen, wanted) = within(LIMIT, "looking", move || (look(&view), look(&model)));
        assert!(seen == wanted, "{when}:\n{}", difference(&seen, &wanted).join("\n"));
    }

    /// The weather is good: everything works, also after a remount, and nothing is left over.
    #[track_caller]
    fn clear(&self, seed: u64) {
        self.same("when it cleared");
        assert_eq!(self.work(seed, 400, &[]), BTreeMap::new());
        self.same("in good weather");
        let report = self.program.swap(&["upgrade", "d", "--to", "os:2"]);
        assert_eq!(report["live"], true);
        self.same("after an upgrade");
        let (store, layer) =
            (self.scratch.store().join("desktops/d/work"), self.disk.path().join("layer/work"));
        let work = if layer.exists() { layer } else { store };
        let strays =
            || sh(&work, "find . -mindepth 1 ! -name '#whiteout' ! -name moved ! -name 'group*'").ok().out();
        assert_eq!(strays(), "", "left behind while mounted");
        self.program.ok(&["umount", "d"]);
        let mount = self.program.mount("d", self.scratch.mnt());
        self.same("after a remount");
        assert_eq!(strays(), "", "left behind after a remount");
        mount.umount();
        self.program.ok(&["fsck", "--deep"]);
        self.program.ok(&["settle", "d"]);
        let mount = self.program.mount("d", self.scratch.mnt());
        self.same("settled");
        mount.umount();
    }

    fn pid(&self) -> serde_json::Value {
        self.program.json(&["status", "d"])["pid"].clone()
    }
}

#[test]
fn a_full_disk_gives_errors_and_takes_nothing() {
    let place = Place::new(true);
    for round in 0..3 {
        let mount = place.program.mount("d", place.scratch.mnt());
        let pid = place.pid();
        place.work(100 * round, 40, &[]);
        sh(place.disk.path(), "dd if=/dev/zero of=filler bs=64k 2>/dev/null || :; dd if=/dev/zero of=filler2 bs=1k 2>/dev/null || :")
            .ok();
        let met = place.work(100 * round + 1, 300, &[libc::ENOSPC]);
        assert!(met.values().sum::<usize>() > 5, "the disk was not full: {met:?}");
        place.same("while the disk is full");
        // A swap that cannot be noted down does not happen.
        let swap = place.program.run(&["upgrade", "d", "--to", "os:2"]);
        assert!(matches!(swap.code, Some(0 | 1)), "{swap:?}");
        place.same("after a swap on a full disk");
        sh(place.disk.path(), "rm -f filler filler2").ok();
        assert_eq!(place.pid(), pid, "the daemon lives");
        place.same("when there is room again");
        place.work(100 * round + 2, 100, &[]);
        place.same("with room");
        mount.umount();
        place.program.run(&["rollback", "d", "--to", "os:1"]);
    }
    let mount = place.program.mount("d", place.scratch.mnt());
    mount.forget();
    place.clear(7);
}

#[test]
fn a_disk_without_inodes_gives_errors_and_takes_nothing() {
    let place = Place::new(true);
    let mount = place.program.mount("d", place.scratch.mnt());
    let pid = place.pid();
    mount.forget();
    place.work(1, 40, &[]);
    let all = "mkdir filler; cd filler; i=0; while mkdir $i 2>/dev/null; do (cd $i; seq 400 | xargs touch 2>/dev/null) || break; i=$((i+1)); done";
    sh(place.disk.path(), all).ok();
    let met = place.work(2, 400, &[libc::ENOSPC]);
    assert!(met.values().sum::<usize>() > 5, "there were inodes: {met:?}");
    place.same("without inodes");
    sh(place.disk.path(), "rm -rf filler").ok();
    assert_eq!(place.pid(), pid, "the daemon lives");
    place.clear(3);
}

#[test]
fn a_disk_that_becomes_read_only_gives_errors_and_takes_nothing() {
    let place = Place::new(false);
    place.program.mount("d", place.scratch.mnt()).forget();
    let pid = place.pid();
    place.work(1, 60, &[]);
    let remount = |mode: &str| {
        // A file that was written a moment ago may be open for a moment more.
        let script = format!(
            "for i in $(seq 100); do mount -o remount,{mode} . 2>/dev/null && exit 0; sleep 0.1; done; exit 1"
        );
        sh(place.disk.path(), &script).ok();
    };
    remount("ro");
    let met = place.work(2, 400, &[libc::EROFS]);
    assert!(met.values().sum::<usize>() > 50, "it was not read-only: {met:?}");
    place.same("while it is read-only");
    remount("rw");
    assert_eq!(place.pid(), pid, "the daemon lives");
    place.clear(3);
}

#[test]
fn a_disk_that_fails_gives_errors_and_comes_back_with_what_was_synced() {
    let place = Place::new(false);
    place.program.mount("d", place.scratch.mnt()).forget();
    let pid = place.pid();
    place.work(1, 100, &[]);
    sh(place.disk.path(), "sync -f .").ok();
    place.disk.cut();
    let met = place.work(2, 400, &[libc::EIO, libc::EROFS]);
    assert!(met.values().sum::<usize>() > 50, "it did not fail: {met:?}");
    assert_eq!(place.pid(), pid, "the daemon lives");
    place.program.run(&["umount", "d"]);
    assert_eq!(common::scratch::mounts_beneath(&place.scratch.mnt()), Vec::<PathBuf>::new());
    place.disk.again();
    place.program.mount("d", place.scratch.mnt()).forget();
    place.clear(3);
}

/// Puts a process into a group of its own with so many bytes of memory; the group goes with the guard.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    #[track_caller]
    fn new(name: &str, pid: &str, bytes: u64) -> MemoryGroup {
        // Version 1 as well as 2, as the machine has it.
        let (top, limit) = match Path::new("/sys/fs/cgroup/memory").exists() {
            true => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            false => ("/sys/fs/cgroup", "memory.max"),
        };
        if limit == "memory.max" {
            let _ = std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
        }
        let group = MemoryGroup(Path::new(top).join(name));
        std::fs::create_dir(&group.0).unwrap_or_else(|e| panic!("{}: {e}", group.0.display()));
        for (file, text) in [(limit, bytes.to_string().as_str()), ("cgroup.procs", pid)] {
            let path = group.0.join(file);
            std::fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        group
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // It can be removed when the daemon is gone, which may take a moment.
        for _ in 0..500 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_daemon_with_little_memory_lives_and_is_right() {
    let place = Place::new(false);
    let mount = place.program.mount("d", place.scratch.mnt());
    let pid = place.pid();
    let name = format!("reroot-weather-{}", std::process::id());
    let group = MemoryGroup::new(&name, &pid.to_string(), 64 << 20);
    place.work(1, 400, &[]);
    // Many names, and more bytes than the limit, through the daemon and past it.
    let load = "mkdir many && cd many && seq 8000 | xargs touch && ls -l | wc -l
        for i in 1 2 3; do head -c 8000000 /dev/zero >big; cp big big2; cat big big2 | wc -c; done
        cat ../w/c ../w/e/c >/dev/null 2>&1 || :; cd ..; rm -r many";
    let said = sh(&place.scratch.mnt(), load).ok().out();
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["8001", "16000000", "16000000", "16000000"]);
    place.work(2, 400, &[]);
    place.same("with little memory");
    assert_eq!(place.pid(), pid, "the daemon lives");
    mount.umount();
    drop(group);
    place.program.mount("d", place.scratch.mnt()).forget();
    place.clear(3);
}

#[test]
fn a_daemon_without_descriptors_gives_errors_and_takes_nothing() {
    let place = Place::new(true);
    let mut command = Command::new("prlimit");
    let mount = place.program.command(&["mount", "d", place.scratch.mnt().to_str().unwrap()]);
    command.arg("--nofile=64:64").arg(mount.get_program()).args(mount.get_args());
    command.envs(mount.get_envs().filter_map(|(k, v)| Some((k, v?))));
    run(&mut command, LIMIT).ok();
    let pid = place.pid();
    place.work(1, 60, &[]);
    let (view, held) = (place.view(), 200);
    let files = within(LIMIT, "opening", move || {
        let mut files = Vec::new();
        let mut errors = BTreeMap::new();
        for n in 0..held {
            let made = std::fs::File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(view.join(format!("held-{n}")));
            match made {
                Ok(file) => files.push(file),
                Err(e) => *errors.entry(e.raw_os_error()).or_insert(0) += 1,
            }
        }
        assert!(errors.keys().all(|e| matches!(e, Some(libc::EMFILE | libc::ENFILE))), "{errors:?}");
        files
    });
    let met = place.work(2, 200, &[libc::EMFILE, libc::ENFILE]);
    println!("{} files could be held open; then {met:?}", files.len());
    drop(files);
    let (view, model) = (place.view(), place.model.clone());
    within(LIMIT, "removing", move || {
        for n in 0..held {
            // What was closed just now is let go of a moment later.
            let path = view.join(format!("held-{n}"));
            while std::fs::remove_file(&path)
                .is_err_and(|e| matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)))
            {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            let _ = std::fs::remove_file(model.join(format!("held-{n}")));
        }
    });
    assert_eq!(place.pid(), pid, "the daemon lives");
    place.clear(3);
}

/// The limit on the length of files is each program's own. That of the daemon is nobody's.
#[test]
fn a_daemon_with_a_file_size_limit_lives_and_programs_keep_to_theirs() {
    let place = Place::new(true);
    // A hard limit cannot be lifted without CAP_SYS_RESOURCE: then long writes fail.
    for (data, limit) in [
        ("auto", "100000:"),
        ("coherent", "100000:"),
        ("auto", "100000:100000"),
        ("coherent", "100000:100000"),
    ] {
        let mut command = Command::new("prlimit");
        let mount = place.program.command(&[
            "mount",
            "d",
            place.scratch.mnt().to_str().unwrap(),
            "-o",
            &format!("data={data}"),
        ]);
        command.arg(format!("--fsize={limit}")).arg(mount.get_program()).args(mount.get_args());
        command.envs(mount.get_envs().filter_map(|(k, v)| Some((k, v?))));
        run(&mut command, LIMIT).ok();
        let pid = place.pid();
        let script = "set +e; exec 2>&1; head -c 300000 /dev/zero >long; stat -c %s long; truncate -s 0 long
            (trap '' XFSZ; ulimit -f 100; head -c 300000 /dev/zero >long; echo $?; stat -c %s long
             truncate -s 300000 long; echo $?; fallocate -l 300000 long; echo $?; stat -c %s long); rm long";
        let seen = sh(&place.view(), script).out();
        let wanted = sh(&place.model, script).out();
        assert!(limit.ends_with("00000") || seen == wanted, "data={data}:\n{seen}instead of\n{wanted}");
        assert!(seen.contains("File too large"), "{seen}");
        assert_eq!(place.pid(), pid, "the daemon lives");
        place.program.ok(&["umount", "d"]);
    }
    place.program.mount("d", place.scratch.mnt()).forget();
    place.clear(3);
}

/// What nobody syncs is on the disk after seconds, as `sync` does not reach a FUSE server: long before the kernel
/// writes by itself what lies on another disk.
#[test]
fn what_nobody_synced_is_on_the_disk_before_the_kernel_would_have_written_it() {
    let place = Place::new(true);
    let outer = Scratch::new();
    let other = Disk::new(&outer, "ext4", "disk", 64);
    let mount = place.program.mount("d", place.scratch.mnt());
    for round in 0..20 {
        // Nothing of it is in the images before.
        let line =
            |what: &str| format!("{what} in round {round} of process {}: ", std::process::id()).repeat(300);
        let (own, others) = (line("own"), line("other"));
        std::fs::write(place.view().join("unsynced"), &own).unwrap();
        std::fs::write(other.path().join("unsynced"), &others).unwrap();
        let began = std::time::Instant::now();
        let there = |image: &std::path::Path, line: &str| {
            let text = std::fs::read(image).unwrap();
            let line = &line.as_bytes()[..60.min(line.len())];
            text.windows(line.len()).any(|w| w == line)
        };
        let image = place._outer.join("disk.img");
        while !there(&image, &own) {
            assert!(began.elapsed() < LIMIT, "it never reached the disk");
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        // The kernel would have written both at about the same time, as would somebody who synced everything.
        std::thread::sleep(std::time::Duration::from_secs(4));
        if !there(&outer.join("disk.img"), &others) {
            mount.umount();
            return;
        }
    }
    panic!("the kernel itself was as quick each time");
}
