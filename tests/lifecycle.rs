//! The life of mounts: where they may be made, how they end, what is said of them, and what happens when the
//! daemon dies, the disk is full, or the user layer's file system cannot hold one.

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::program::LIMIT;
use common::scratch::{is_dead, mount_type, mounts_beneath};
use common::tree::{self, Item};
use common::{Disk, Program, Scratch, sh, within};

/// `os:1` and a desktop on it, `alice`.
fn alice(scratch: &Scratch) -> Program {
    common::require_root();
    let program = Program::new(scratch);
    tree::import(scratch, &program, "os:1", None, tree::small);
    program.ok(&["create", "alice", "os:1"]);
    program
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The process that serves a mounted desktop.
fn pid(program: &Program, desktop: &str) -> String {
    program.json(&["status", desktop])["pid"].as_u64().expect("a mounted desktop has a process").to_string()
}

#[test]
fn a_mount_point_that_cannot_work_is_refused_with_the_reason() {
    let scratch = Scratch::new();
    let program = alice(&scratch);
    let layer = scratch.dir("elsewhere");
    program.ok(&["create", "bob", "os:1", "--user-layer", text(&layer)]);
    std::fs::write(scratch.join("file"), "x").unwrap();
    let busy = scratch.dir("busy");
    sh(scratch.path(), "mount -t tmpfs tmpfs busy").ok();
    let store = scratch.store();
    scratch.dir("elsewhere/in");
    for (point, code, words) in [
        (scratch.join("missing"), 2, "does not exist"),
        (scratch.join("file"), 2, "not a directory"),
        (busy.clone(), 1, "busy"),
        (store.clone(), 2, "within each other"),
        (store.join("cache"), 2, "within each other"),
        (store.join("desktops/bob"), 2, "within each other"),
        (scratch.path().to_path_buf(), 2, "within each other"),
        (layer.clone(), 2, "within each other"),
        (layer.join("user"), 2, "within each other"),
        (layer.join("in"), 2, "within each other"),
    ] {
        let answer = program.run(&["mount", "bob", text(&point)]).expect_code(code);
        assert!(answer.err().contains(words), "{}: {}", point.display(), answer.err());
        assert!(answer.err().contains(text(&point)), "the message names it: {}", answer.err());
        let status = program.json(&["status", "bob"]);
        assert_eq!(status["mounted"], false, "{}: {status}", point.display());
    }
    program.run(&["mount", "nobody", text(&scratch.mnt())]).expect_code(1);
    program.run(&["mount", "alice"]).expect_code(2);
    sh(scratch.path(), "umount busy").ok();
    // What was refused is no obstacle afterwards.
    program.mount("bob", &busy).umount();
    let mount = program.mount("alice", scratch.mnt());
    program.run(&["mount", "bob", text(&scratch.mnt())]).expect_code(1);
    let below = mount.join("home");
    let bob = program.mount("bob", &below);
    assert_eq!(bob.sh("cat etc/hostname"), "small");
    bob.umount();
    mount.umount();
}

#[test]
fn a_desktop_is_mounted_once() {
    let scratch = Scratch::new();
    let program = alice(&scratch);
    let mount = program.mount("alice", scratch.mnt());
    for point in [scratch.mnt(), scratch.dir("mnt2")] {
        let answer = program.run(&["mount", "alice", text(&point)]).expect_code(1);
        assert!(answer.err().contains("mounted already"), "{}", answer.err());
        assert!(answer.err().contains(text(&scratch.mnt())), "it says where: {}", answer.err());
    }
    assert_eq!(mount.sh("cat etc/hostname"), "small", "the first mount goes on");
    // Several at once: one wins.
    program.ok(&["create", "bob", "os:1"]);
    let points: Vec<_> = (0..4).map(|i| scratch.dir(&format!("at-once-{i}"))).collect();
    let racing = points.iter().map(|point| {
        let (program, point) = (program.clone(), text(point).to_string());
        std::thread::spawn(move || program.run(&["mount", "bob", &point]).code)
    });
    let racing: Vec<_> = racing.collect();
    let codes: Vec<_> =
        racing.into_iter().map(|t| within(LIMIT, "mounting", move || t.join().unwrap())).collect();
    assert_eq!(codes.iter().filter(|c| **c == Some(0)).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|c| **c == Some(1)).count(), 3, "{codes:?}");
    assert_eq!(points.iter().map(|p| mounts_beneath(p).len()).sum::<usize>(), 1);
    program.ok(&["umount", "bob"]);
    program.run(&["settle", "alice"]).expect_code(1);
    let answer = program.run(&["rm", "alice"]).expect_code(1);
    assert!(answer.err().contains("umount"), "{}", answer.err());
    assert_eq!(mount.sh("cat etc/hostname"), "small");
    mount.umount();
    program.run(&["umount", "alice"]).expect_code(3);
    program.run(&["umount", text(&scratch.mnt())]).expect_code(3);
    program.run(&["umount", "nobody"]).expect_code(3);
}

#[test]
fn a_dead_mount_is_cleared_by_mount_and_by_umount() {
    let scratch = Scratch::new();
    let program = alice(&scratch);
    let point = scratch.mnt();
    let die = |n: u32| {
        program.mount("alice", &point).forget();
        sh(&point, &format!("echo {n} >home/written; sync -f home/written")).ok();
        assert_eq!(scratch.kill_daemons(), 1);
        let status = program.json(&["status", "alice"]);
        assert_eq!((status["mounted"].as_bool(), status["pid"].as_u64()), (Some(false), None), "{status}");
        assert_eq!(mount_type(&point).as_deref(), Some("fuse.reroot"), "the dead mount is still there");
    };
    let clear = || assert!(mounts_beneath(&point).is_empty(), "{:?}", mounts_beneath(&point));
    die(1);
    let mount = program.mount("alice", &point);
    assert_eq!(mounts_beneath(&point).len(), 1, "the dead one is gone");
    assert_eq!(mount.sh("cat home/written"), "1");
    mount.umount();
    clear();
    die(2);
    program.ok(&["umount", "alice"]);
    clear();
    die(3);
    program.ok(&["umount", text(&point)]);
    clear();
    // Mounted elsewhere, the dead one goes too.
    die(4);
    let other = program.mount("alice", scratch.dir("mnt2"));
    clear();
    assert_eq!(other.sh("cat home/written"), "4");
    other.umount();
    // An inspect mount that died, by its path and by the next mount there.
    for _ in 0..2 {
        program.inspect("os:1", &point).forget();
        assert_eq!(scratch.kill_daemons(), 1);
        program.ok(&["umount", text(&point)]);
        clear();
    }
    program.inspect("os:1", &point).forget();
    assert_eq!(scratch.kill_daemons(), 1);
    let mount = program.mount("alice", &point);
    assert_eq!(mount.sh("cat home/written"), "4");
    mount.umount();
    program.ok(&["gc"]);
    let left = sh(&scratch.store(), "ls -A mounts").ok().out();
    assert!(!left.contains("inspect-"), "{left}");
    program.ok(&["fsck", "--deep"]);
}

#[test]
fn a_busy_mount_is_not_unmounted_and_goes_on() {
    let scratch = Scratch::new();
    let program = alice(&scratch);
    let mount = program.mount("alice", scratch.mnt());
    let held = within(LIMIT, "open", {
        let path = mount.join("home/held");
        move || std::fs::File::create(path).unwrap()
    });
    for target in ["alice", text(&scratch.mnt())] {
        let answer = program.run(&["umount", target]).expect_code(1);
        assert!(answer.err().contains("in use"), "{}", answer.err());
    }
    mount.sh("echo still here >home/there; cat home/there");
    assert_eq!(program.json(&["status", "alice"])["mounted"], true);
    drop(held);
    mount.umount();
    assert_eq!(program.json(&["status", "alice"])["mounted"], false);
}

#[test]
fn a_signal_unmounts_also_when_busy() {
    let scratch = Scratch::new();
    let program = alice(&scratch);
    for signal in ["TERM", "INT", "HUP"] {
        let mount = program.mount("alice", scratch.mnt());
        mount.sh(&format!("echo {signal} >home/last"));
        let pid = pid(&program, "alice");
        mount.forget();
        sh(scratch.path(), &format!("kill -{signal} {pid}")).ok();
        wait_until("the daemon ends", || is_dead(pid.parse().unwrap()));
        assert!(mounts_beneath(&scratch.mnt()).is_empty());
        let user = scratch.store().join("desktops/alice/user/home/last");
        assert_eq!(std::fs::read_to_string(user).unwrap(), format!("{signal}\n"));
    }
    // Busy: it goes from the tree at once, whoever uses it finishes, then the daemon ends.
    let mount = program.mount("alice", scratch.mnt());
    let mut held = within(LIMIT, "open", {
        let path = mount.join("home/held");
        move || std::fs::File::create(path).unwrap()
    });
    let pid = pid(&program, "alice");
    mount.forget();
    sh(scratch.path(), &format!("kill -TERM {pid}")).ok();
    wait_until("the mount is detached", || mounts_beneath(&scratch.mnt()).is_empty());
    let held = within(LIMIT, "writing", move || {
        use std::io::Write;
        held.write_all(b"to the end\n").unwrap();
        held.sync_all().unwrap();
        held
    });
    assert!(!is_dead(pid.parse().unwrap()), "it serves its last user");
    program.run(&["mount", "alice", text(&scratch.mnt())]).expect_code(1);
    drop(held);
    wait_until("the daemon ends", || is_dead(pid.parse().unwrap()));
    let mount = program.mount("alice", scratch.mnt());
    assert_eq!(mount.sh("cat home/held home/last"), "to the end\nHUP");
    mount.umount();
}

#[test]
fn an_inspected_version_reads_like_the_tree_that_it_was_made_of() {
    use std::os::unix::fs::FileExt;
    common::require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    let source = tree::import(&scratch, &program, "os:1", None, |dir| {
        for i in 0..600u32 {
            let bytes: Vec<u8> = (0..i * 37).map(|n| (n * i % 251) as u8).collect();
            tree::write(dir, &[(&format!("many/{i}"), Item::File(&bytes))]);
        }
        tree::write(dir, &[("empty", Item::File(b""))]);
        sh(dir, "cp /bin/true program; cp /bin/sh shell; head -c 5000000 /dev/urandom >large").ok();
        sh(dir, "truncate -s 3M holes; echo x | dd of=holes bs=1M seek=1 conv=notrunc status=none").ok();
    });
    let mount = program.inspect("os:1", scratch.mnt());
    // More files at once than are kept open, several readers, and each file from two of them.
    let readers: Vec<_> = (0..4)
        .map(|start| {
            let (seen, source) = (mount.path().to_path_buf(), source.clone());
            std::thread::spawn(move || {
                let names = (0..600).map(|i| format!("many/{}", (i * 7 + start * 151) % 600));
                for name in names.chain(["empty", "program", "large", "holes"].map(String::from)) {
                    let same = std::fs::read(seen.join(&name)).unwrap()
                        == std::fs::read(source.join(&name)).unwrap();
                    assert!(same, "{name}");
                }
            })
        })
        .collect();
    within(LIMIT, "reading an inspected version", move || {
        readers.into_iter().for_each(|r| r.join().unwrap())
    });
    let open: Vec<_> =
        (0..600).map(|i| std::fs::File::open(mount.path().join(format!("many/{i}"))).unwrap()).collect();
    for (i, file) in open.iter().enumerate().skip(1) {
        let mut last = [0];
        let at = i as u32 * 37 - 1;
        file.read_exact_at(&mut last, at.into()).unwrap();
        assert_eq!(last[0], (at * i as u32 % 251) as u8);
    }
    drop(open);
    assert_eq!(sh(mount.path(), "./shell -c './program && echo ran'").ok().out().trim(), "ran");
    let holes = std::fs::File::open(mount.path().join("holes")).unwrap();
    let data = rustix::fs::seek(&holes, rustix::fs::SeekFrom::Data(0)).unwrap();
    let plain = std::fs::File::open(source.join("holes")).unwrap();
    assert_eq!(data, rustix::fs::seek(&plain, rustix::fs::SeekFrom::Data(0)).unwrap());
    holes.sync_all().unwrap();
    drop(holes);
    assert!(sh(mount.path(), "lsattr large").ok().out().starts_with("-----"));
    assert!(sh(mount.path(), "chattr +i large").err().contains("Read-only file system"));
    let copy = scratch.join("copy");
    std::fs::copy(mount.path().join("large"), &copy).unwrap();
    assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(source.join("large")).unwrap());
    mount.umount();
}

#[test]
fn an_inspected_version_is_read_only() {
    let scratch = Scratch::new();
    let program = alice(&scratch);
    let mount = program.inspect("os:1", scratch.mnt());
    for script in [
        "echo x >>etc/hostname",
        "echo x >etc/new",
        "mkdir d",
        "rm etc/passwd",
        "mv etc/passwd etc/p",
        "chmod 600 etc/passwd",
        "ln etc/passwd etc/p",
        "ln -s x y",
        "truncate -s 0 etc/passwd",
        "touch etc/passwd",
        "setfattr -n user.x -v 1 etc/passwd",
        "rmdir home",
        "mknod n c 1 3",
    ] {
        let answer = sh(mount.path(), script);
        assert_ne!(answer.code, Some(0), "{script}");
        assert!(answer.err().contains("Read-only file system"), "{script}: {}", answer.err());
    }
    // Two at once, and gone by their paths.
    let second = program.inspect("os:1", scratch.dir("mnt2"));
    let listed = program.json(&["desktops"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "an inspect mount is no desktop: {listed}");
    second.umount();
    mount.umount();
    let left = sh(&scratch.store(), "ls -A mounts").ok().out();
    assert!(!left.contains("inspect-") && !left.contains(".json"), "{left}");
    program.run(&["inspect", "os:9", text(&scratch.mnt())]).expect_code(1);
    let ro = program.mount_with("alice", scratch.mnt(), "ro");
    assert!(sh(ro.path(), "echo x >home/x").err().contains("Read-only file system"));
    assert_eq!(ro.sh("cat etc/hostname"), "small");
    ro.umount();
}

#[test]
fn a_file_system_that_cannot_hold_a_user_layer_is_refused() {
    let scratch = Scratch::new();
    let program = alice(&scratch);
    // ramfs keeps no extended attributes.
    let layer = scratch.dir("ramfs");
    sh(scratch.path(), "mount -t ramfs ramfs ramfs").ok();
    let layer = layer.join("bob");
    program.ok(&["create", "bob", "os:1", "--user-layer", text(&layer)]);
    let answer = program.run(&["mount", "bob", text(&scratch.mnt())]).expect_code(1);
    for words in ["cannot hold a user layer", text(&layer), "ext4"] {
        assert!(answer.err().contains(words), "{words}: {}", answer.err());
    }
    assert!(mounts_beneath(&scratch.mnt()).is_empty());
    assert_eq!(sh(&layer, "find user work -mindepth 1").ok().out(), "", "nothing is left there");
    program.ok(&["rm", "bob"]);
    sh(scratch.path(), "umount ramfs").ok();
    // tmpfs holds one.
    sh(scratch.path(), "mount -t tmpfs tmpfs ramfs").ok();
    program.ok(&["create", "bob", "os:1", "--user-layer", text(&layer)]);
    let mount = program.mount("bob", scratch.mnt());
    mount.sh("echo x >>etc/hostname; mv usr/lib usr/lib2");
    mount.umount();
    program.ok(&["rm", "bob"]);
    sh(scratch.path(), "umount ramfs").ok();
}

#[test]
fn a_full_disk_is_an_error_of_the_call_and_nothing_else() {
    common::require_root();
    let scratch = Scratch::new();
    let disk = Disk::new(&scratch, "ext4", "disk", 24);
    let program = Program::new(&scratch);
    let big = vec![b'x'; 2 << 20];
    tree::import(&scratch, &program, "os:1", None, |dir| {
        tree::small(dir);
        tree::write(dir, &[("usr/lib/big", Item::File(&big)), ("usr/lib/big2", Item::File(&big))]);
    });
    let layer = disk.path().join("layer");
    program.ok(&["create", "alice", "os:1", "--user-layer", text(&layer)]);
    let mount = program.mount("alice", scratch.mnt());
    mount.sh("echo mine >home/mine");
    // Small files until nothing fits: content, directory blocks, inodes.
    let fill = "dd if=/dev/zero of=home/fill bs=64k 2>&1 || true
                for i in $(seq 1 5000); do echo $i >home/s$i || exit 0; done 2>/dev/null";
    let full = sh(mount.path(), fill).ok();
    assert!(full.out().contains("No space left on device"), "{}", full.out());
    let before = sh(mount.path(), "ls home | wc -l").ok().out();
    for script in [
        "echo more >>usr/lib/big",
        "dd if=/dev/zero of=home/x bs=4k count=64 conv=fsync",
        "truncate -s 1 usr/lib/big2 && dd if=/dev/zero of=usr/lib/big2 bs=1M count=4 conv=notrunc",
    ] {
        let answer = sh(mount.path(), script);
        assert_ne!(answer.code, Some(0), "{script}");
        assert!(answer.err().contains("No space left on device"), "{script}: {}", answer.err());
    }
    mount.sh("rm -f home/x");
    let _ = before;
    let whole = mount.sh("cmp usr/lib/big /dev/stdin </dev/null >/dev/null 2>&1 || true; sha256sum <usr/lib/big; stat -c %s usr/lib/big");
    let expected =
        sh(scratch.path(), "head -c 2097152 /dev/zero | tr '\\0' x | sha256sum; echo 2097152").ok().out();
    assert_eq!(whole, expected.trim_end(), "a file that could not be copied up is as it was");
    assert_eq!(
        sh(&layer, "find work -mindepth 1 ! -name '#whiteout' ! -name moved").ok().out(),
        "",
        "nothing half copied up is left"
    );
    assert_eq!(program.json(&["status", "alice"])["mounted"], true, "the daemon lives");
    mount.sh("cat home/mine etc/hostname >/dev/null; rm home/fill; rm home/s*");
    mount.sh("echo more >>usr/lib/big; tail -c 5 usr/lib/big; dd if=/dev/zero of=home/x bs=1M count=1 conv=fsync 2>/dev/null");
    let worked = tree::listing(mount.path());
    mount.umount();
    let mount = program.mount("alice", scratch.mnt());
    tree::assert_same("after a remount", &worked, &tree::listing(mount.path()));
    mount.umount();
}

#[test]
fn a_removed_desktop_leaves_what_it_was_asked_to_leave() {
    let scratch = Scratch::new();
    let program = alice(&scratch);
    let layer = scratch.join("layers/bob");
    program.ok(&["create", "bob", "os:1", "--user-layer", text(&layer), "--label", "team=x"]);
    program.run(&["create", "bob", "os:1"]).expect_code(1);
    program.run(&["create", "../x", "os:1"]).expect_code(2);
    program.run(&["create", "carol", "os:7"]).expect_code(1);
    let taken = program.run(&["create", "carol", "os:1", "--user-layer", text(&layer)]).expect_code(1);
    assert!(taken.err().contains("bob"), "one user layer has one desktop: {}", taken.err());
    let inside = scratch.store().join("objects");
    program.run(&["create", "carol", "os:1", "--user-layer", text(&inside)]).expect_code(2);
    let mount = program.mount("bob", scratch.mnt());
    mount.sh("echo mine >home/mine; mv usr/share usr/share2");
    let worked = tree::listing(mount.path());
    mount.umount();
    assert!(layer.join("user/home/mine").exists(), "its user layer lies where it was told");
    let gone = program.json(&["rm", "bob", "--keep-user-layer"]);
    assert_eq!((gone["name"].as_str(), gone["kept"].as_bool()), (Some("bob"), Some(true)), "{gone}");
    assert!(layer.join("user/home/mine").exists());
    assert!(!program.ok(&["desktops"]).out().contains("bob"));
    program.ok(&["gc"]);
    // A desktop in its place takes the files over.
    program.ok(&["create", "bob", "os:1", "--user-layer", text(&layer)]);
    let mount = program.mount("bob", scratch.mnt());
    tree::assert_same("taken over", &worked, &tree::listing(mount.path()));
    mount.umount();
    program.ok(&["rm", "bob"]);
    assert!(!layer.join("user").exists() && !layer.join("work").exists());
    program.ok(&["rm", "alice"]);
    assert!(!scratch.store().join("desktops/alice").exists());
    program.run(&["rm", "alice"]).expect_code(1);
}

#[test]
fn mapped_owners_are_right_on_both_sides() {
    let scratch = Scratch::new();
    let program = alice(&scratch);
    let map = "uidmap=0:1000:1000,gidmap=0:1000:1000";
    let mount = program.mount_with("alice", scratch.mnt(), map);
    assert_eq!(mount.sh("stat -c %u:%g etc/hostname usr/bin"), "1000:1000\n1000:1000");
    let as_user = "setpriv --reuid 1000 --regid 1000 --clear-groups sh -euc";
    mount.sh(&format!("{as_user} 'echo mine >home/mine; mkdir home/d; ln -s x home/l; mkfifo home/p; echo more >>etc/hostname; chmod 600 etc/passwd'"));
    mount.sh(&format!("{as_user} 'touch home/d/f; ln home/mine home/d/hard; mv usr/share usr/share2'"));
    assert_eq!(
        mount.sh("stat -c %u:%g home/mine home/d home/l home/d/f etc/hostname"),
        ["1000:1000"; 5].join("\n")
    );
    mount.sh("chown 1007:1008 home/d");
    assert_eq!(mount.sh("stat -c %u:%g home/d"), "1007:1008");
    // Root itself has no number in this map: it may not create.
    let answer = sh(mount.path(), "touch home/by-root");
    assert_ne!(answer.code, Some(0));
    assert!(answer.err().contains("Value too large"), "{}", answer.err());
    mount.umount();
    let user = scratch.store().join("desktops/alice/user");
    let owner = |name: &str| {
        let meta = std::fs::symlink_metadata(user.join(name)).unwrap();
        (meta.uid(), meta.gid())
    };
    for name in ["home/mine", "home/l", "home/p", "home/d/f", "etc/hostname", "etc/passwd"] {
        assert_eq!(owner(name), (0, 0), "{name} on disk");
    }
    assert_eq!(owner("home/d"), (7, 8));
    let plain = program.mount("alice", scratch.mnt());
    assert_eq!(plain.sh("stat -c %u:%g home/mine home/d etc/hostname"), "0:0\n7:8\n0:0");
    plain.umount();
}

#[test]
fn options_are_taken_as_mount_takes_them() {
    let scratch = Scratch::new();
    let program = alice(&scratch);
    for (options, shown) in [
        ("noatime", Some("noatime")),
        ("nosuid,nodev,noexec", Some("noexec")),
        ("rw,defaults", None),
        ("x-systemd.automount,nofail,_netdev", None),
        ("data=coherent", None),
        ("data=passthrough", None),
    ] {
        let mount = program.mount_with("alice", scratch.mnt(), options);
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|l| l.contains(text(&scratch.mnt()))).unwrap();
        assert!(shown.is_none_or(|w| line.contains(w)), "{options}: {line}");
        assert_eq!(
            mount.sh("cat etc/hostname; echo x >home/x; cat home/x; rm home/x"),
            "small\nx",
            "{options}"
        );
        mount.umount();
    }
    let noexec = program.mount_with("alice", scratch.mnt(), "noexec");
    assert_ne!(sh(noexec.path(), "./usr/bin/tool").code, Some(0));
    noexec.umount();
    for bad in ["bogus", "data=other", "uidmap=1", "uidmap=a:b:c", "rw,bogus=1"] {
        let answer = program.run(&["mount", "alice", text(&scratch.mnt()), "-o", bad]).expect_code(2);
        assert!(answer.err().contains(bad.trim_start_matches("rw,")), "{bad}: {}", answer.err());
    }
    assert_eq!(program.json(&["status", "alice"])["mounted"], false);
}

#[test]
fn answers_in_json_have_the_promised_fields() {
    let scratch = Scratch::new();
    let program = alice(&scratch);
    let fields = "name image version tag previous generation mountpoint pid mounted window blocked user_layer user_layer_bytes";
    let check = |value: &serde_json::Value, fields: &str| {
        for field in fields.split(' ') {
            assert!(value.get(field).is_some(), "{field} in {value}");
        }
    };
    let status = program.json(&["status", "alice"]);
    check(&status, fields);
    assert_eq!(
        (status["name"].as_str(), status["tag"].as_str(), status["generation"].as_u64()),
        (Some("alice"), Some("1"), Some(0))
    );
    assert!(
        status["mountpoint"].is_null() && status["pid"].is_null() && status["previous"].is_null(),
        "{status}"
    );
    let mounted = program.json(&["mount", "alice", text(&scratch.mnt())]);
    check(&mounted, "name mountpoint pid");
    let status = program.json(&["status", "alice"]);
    check(&status, fields);
    assert_eq!(
        (status["mounted"].as_bool(), status["mountpoint"].as_str()),
        (Some(true), Some(text(&scratch.mnt())))
    );
    assert_eq!(status["pid"], mounted["pid"]);
    let list = program.json(&["desktops"]);
    check(&list[0], "name image version tag generation mountpoint mounted");
    sh(&scratch.mnt(), "head -c 1000000 /dev/zero | tr '\\0' y >home/y; sync -f home/y").ok();
    assert!(program.json(&["status", "alice"])["user_layer_bytes"].as_u64().is_some_and(|n| n >= 1_000_000));
    tree::import(&scratch, &program, "os:2", Some("os:1"), |dir| {
        tree::small(dir);
        tree::write(dir, &[("etc/hostname", Item::File(b"two\n"))]);
    });
    let swapped = program.swap(&["upgrade", "alice", "--to", "os:2"]);
    let report = "desktop from to generation live paths_differing invalidated pause_us total_ms conflicts";
    check(&swapped, report);
    check(&program.swap(&["rollback", "alice"]), report);
    for args in [
        &["images"][..],
        &["show", "os:1"],
        &["log", "os"],
        &["diff", "os:1", "os:2"],
        &["changes", "alice"],
        &["df"],
        &["gc", "--dry-run"],
        &["fsck"],
        &["umount", "alice"],
        &["settle", "alice"],
        &["commit", "alice", "os:3"],
        &["tag", "os:3", "t"],
        &["untag", "os:t"],
        &["rm", "alice"],
    ] {
        program.json(args);
    }
    for (args, code, kind) in [
        (&["status", "nobody"][..], 1, "failed"),
        (&["mount", "nobody", "/"], 1, "failed"),
        (&["nonsense"], 2, "usage"),
        (&["mount"], 2, "usage"),
        (&["umount", "nobody"], 3, "nothing"),
        (&["show", "os:77"], 1, "failed"),
        (&["create", "a/b", "os:1"], 2, "usage"),
        (&["mount", "x", "/", "-o", "bogus"], 2, "usage"),
    ] {
        let all: Vec<&str> = std::iter::once("--json").chain(args.iter().copied()).collect();
        let answer = program.run(&all).expect_code(code);
        let error = &answer.json()["error"];
        assert_eq!(
            (error["kind"].as_str(), error["exit"].as_i64()),
            (Some(kind), Some(i64::from(code))),
            "{args:?}: {error}"
        );
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{args:?}: {error}");
    }
}

#[test]
fn in_the_foreground_the_command_ends_with_the_mount() {
    let scratch = Scratch::new();
    let program = alice(&scratch);
    for way in ["umount", "TERM"] {
        let mut child = program
            .command(&["mount", "alice", text(&scratch.mnt()), "--foreground"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the view answers", || scratch.mnt().join("etc/hostname").exists());
        let status = program.json(&["status", "alice"]);
        assert_eq!(status["supervisor"], child.id(), "the command is what stays as long as the mount");
        assert!(child.try_wait().unwrap().is_none(), "it stays");
        if way == "umount" {
            program.ok(&["umount", "alice"]);
        } else {
            Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        }
        let began = Instant::now();
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(began.elapsed() < LIMIT, "it ends with the mount"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "{way}: {status}");
        assert!(mounts_beneath(&scratch.mnt()).is_empty());
    }
}

#[test]
fn names_with_every_byte_mount_and_unmount() {
    let scratch = Scratch::new();
    let program = alice(&scratch);
    for name in ["with space", "with\\backslash", "tab\there", "új-név", "-dash", "a,b"] {
        let point = scratch.dir(name);
        let mount = program.mount("alice", &point);
        assert_eq!(mount.sh("cat etc/hostname"), "small", "{name:?}");
        assert_eq!(program.json(&["status", "alice"])["mountpoint"].as_str(), Some(text(&point)));
        mount.umount();
        program.mount("alice", &point).forget();
        assert_eq!(scratch.kill_daemons(), 1);
        program.ok(&["umount", text(&point)]);
        assert!(mounts_beneath(&point).is_empty(), "{name:?}");
    }
}

/// Two stores may name one user layer: it is mounted once, and who comes second touches nothing in it.
#[test]
fn a_user_layer_is_one_mounts_whatever_store_it_is_named_in() {
    common::require_root();
    let (first, second) = (Scratch::new(), Scratch::new());
    let layer = first.dir("layer");
    let programs = [&first, &second].map(|scratch| {
        let program = Program::new(scratch);
        tree::import(scratch, &program, "os:1", None, tree::small);
        program.ok(&["create", "alice", "os:1", "--user-layer", text(&layer)]);
        program
    });
    let mount = programs[0].mount("alice", first.mnt());
    mount.sh("echo own >own");
    std::fs::write(layer.join("work/#in-work"), "of a copy-up that runs").unwrap();
    let point = second.dir("mnt");
    let refused = programs[1].run(&["mount", "alice", text(&point)]).expect_code(1);
    assert!(refused.err().contains("in use by another mount"), "{}", refused.err());
    assert!(layer.join("work/#in-work").exists(), "nothing was cleared");
    mount.umount();
    let mount = programs[1].mount("alice", point);
    assert_eq!(mount.sh("cat own"), "own");
    mount.umount();
}
