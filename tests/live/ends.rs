//! How a mount with a supervisor ends.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::scratch::{is_dead, mounts_beneath};
use crate::common::successor::{daemon, kill_daemon, log, replace_daemon};
use crate::common::{Program, Scratch, require_root, tree, within};

const LIMIT: Duration = Duration::from_secs(120);

fn desktop(scratch: &Scratch) -> Program {
    require_root();
    let program = Program::new(scratch);
    tree::import(scratch, &program, "os:1", None, tree::small);
    program.ok(&["create", "d", "os:1"]);
    program
}

fn supervisor(program: &Program) -> u32 {
    program.json(&["status", "d"])["supervisor"].as_u64().unwrap() as u32
}

#[track_caller]
fn wait_until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < LIMIT, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(pid: u32, name: &str) {
    Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
}

#[test]
fn a_signal_to_either_process_ends_both_and_the_mount() {
    let scratch = Scratch::new();
    let program = desktop(&scratch);
    for (of, again) in [("daemon", false), ("supervisor", false), ("daemon", true), ("supervisor", true)] {
        let mount = program.mount("d", scratch.mnt());
        if again {
            replace_daemon(&program, "d");
        }
        let (daemon, supervisor) = (daemon(&program, "d"), supervisor(&program));
        signal(if of == "daemon" { daemon } else { supervisor }, "TERM");
        wait_until("both end", || is_dead(daemon) && is_dead(supervisor));
        assert!(mounts_beneath(&scratch.mnt()).is_empty(), "{of}");
        assert_eq!(program.json(&["status", "d"])["mounted"], false);
        mount.forget();
    }
}

#[test]
fn an_unmount_ends_both_also_while_no_daemon_is_there() {
    let scratch = Scratch::new();
    let program = desktop(&scratch);
    for _ in 0..10 {
        let mount = program.mount("d", scratch.mnt());
        let above = supervisor(&program);
        kill_daemon(&program, "d");
        // The claim is held on: nobody else can have the desktop, and who asks finds the mount.
        let second = program.run(&["mount", "d", scratch.dir("second").to_str().unwrap()]);
        second.expect_code(1);
        mount.umount();
        wait_until("the supervisor ends", || is_dead(above));
        assert_eq!(program.json(&["status", "d"])["mounted"], false);
    }
}

/// What is asked of the daemon by a command waits for the next one.
#[test]
fn commands_wait_for_the_next_daemon() {
    let scratch = Scratch::new();
    let program = desktop(&scratch);
    tree::import(&scratch, &program, "os:2", Some("os:1"), |dir| {
        tree::small(dir);
        fs::write(dir.join("new"), "new").unwrap();
    });
    let mount = program.mount("d", scratch.mnt());
    for tag in ["os:2", "os:1", "os:2"] {
        kill_daemon(&program, "d");
        let report = program.swap(&["upgrade", "d", "--to", tag]);
        assert_eq!(report["live"], true, "{report}");
        assert_eq!(mount.join("new").exists(), tag == "os:2");
    }
    mount.umount();
}

/// Whoever holds the desktop's lock may be waiting for the mount.
#[test]
fn the_next_daemon_does_not_wait_for_the_desktops_lock() {
    let scratch = Scratch::new();
    let program = desktop(&scratch);
    let mount = program.mount("d", scratch.mnt());
    let lock = scratch.store().join("desktops/d/lock");
    let mut holder = Command::new("sh")
        .args(["-c", "exec 9>>\"$0\"; flock 9; echo held; exec sleep 600"])
        .arg(&lock)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 5];
    holder.stdout.take().unwrap().read_exact(&mut said).unwrap();
    replace_daemon(&program, "d");
    assert_eq!(mount.sh("cat etc/hostname"), "small");
    holder.kill().unwrap();
    holder.wait().unwrap();
    mount.umount();
}

/// A signal that comes late does not end what somebody else has mounted there since.
#[test]
fn a_late_signal_leaves_alone_what_stands_there_by_now() {
    let scratch = Scratch::new();
    let program = desktop(&scratch);
    let mount = program.mount("d", scratch.mnt());
    // Somebody else's view of it goes on, and so the daemon does.
    let held = mount.sh("exec sleep 600 <etc/hostname >/dev/null 2>&1 & echo $!");
    let daemon = daemon(&program, "d");
    // By nobody's helper.
    assert!(Command::new("umount").args(["-i", "-l"]).arg(mount.path()).status().unwrap().success());
    let tmpfs = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(mount.path()).status().unwrap();
    assert!(tmpfs.success());
    signal(daemon, "TERM");
    std::thread::sleep(Duration::from_millis(300));
    let others = mounts_beneath(&scratch.mnt());
    assert!(Command::new("umount").arg(mount.path()).status().unwrap().success());
    signal(held.trim().parse().unwrap(), "KILL");
    assert_eq!(others.len(), 1, "{others:?}");
    wait_until("it ends with its last user", || is_dead(daemon));
    mount.forget();
}

/// A version that is looked into holds nothing but what is open.
#[test]
fn a_view_of_a_version_goes_on_too() {
    let scratch = Scratch::new();
    let program = desktop(&scratch);
    let mount = program.inspect("os:1", scratch.mnt());
    let hostname = File::open(mount.join("etc/hostname")).unwrap();
    let dir = File::open(mount.join("etc")).unwrap();
    let before = hostname.metadata().unwrap().ino();
    let pid = || {
        let entries = fs::read_dir(scratch.store().join("mounts")).unwrap().filter_map(|e| {
            let text = fs::read_to_string(e.unwrap().path()).ok()?;
            serde_json::from_str::<serde_json::Value>(&text).ok()
        });
        let entry: Vec<_> = entries.collect();
        assert_eq!(entry.len(), 1, "{entry:?}");
        (entry[0]["pid"].as_u64().unwrap() as u32, entry[0]["restarts"].as_u64().unwrap())
    };
    for round in 1..=2 {
        std::thread::sleep(Duration::from_millis(1100));
        signal(pid().0, "KILL");
        wait_until("another one follows", || pid().1 == round);
        let mut text = [0; 5];
        hostname.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(&text, b"small");
        assert_eq!(hostname.metadata().unwrap().ino(), before);
        assert_eq!(fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd())).unwrap().count(), {
            fs::read_dir(mount.join("etc")).unwrap().count()
        });
        assert_eq!(mount.sh("cat etc/hostname; touch x 2>&1 | grep -o 'Read-only'"), "small\nRead-only");
    }
    drop((hostname, dir));
    mount.umount();
    assert_eq!(
        fs::read_dir(scratch.store().join("mounts"))
            .unwrap()
            .filter(|e| { e.as_ref().unwrap().path().extension().is_some_and(|e| e == "json") })
            .count(),
        0
    );
}

/// Daemons that cannot serve do not follow each other for ever: the mount ends as it does without a supervisor.
#[test]
fn daemons_that_end_at_once_end_the_mount() {
    let scratch = Scratch::new();
    let program = desktop(&scratch);
    let mount = program.mount("d", scratch.mnt());
    let held = File::open(mount.join("etc/hostname")).unwrap();
    let above = supervisor(&program);
    // The version cannot be opened any more.
    let trees = scratch.store().join("trees");
    let layers = scratch.store().join("layers");
    for dir in [&trees, &layers] {
        fs::rename(dir, dir.with_extension("away")).unwrap();
    }
    signal(daemon(&program, "d"), "KILL");
    wait_until("the supervisor gives up", || is_dead(above));
    let point = mount.path().to_path_buf();
    let error = within(LIMIT, "a dead mount", move || File::create(point.join("etc/x")).unwrap_err());
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    drop(held);
    let said = log(&program, "d");
    assert!(said.contains("daemons have ended one after the other"), "{said}");
    for dir in [&trees, &layers] {
        fs::rename(dir.with_extension("away"), dir).unwrap();
    }
    mount.forget();
    // As after any crash.
    let mount = program.mount("d", scratch.mnt());
    assert_eq!(mount.sh("cat etc/hostname"), "small");
    mount.umount();
}

/// Without its supervisor a daemon goes on, and is not followed.
#[test]
fn a_daemon_goes_on_without_its_supervisor() {
    let scratch = Scratch::new();
    let program = desktop(&scratch);
    let mount = program.mount("d", scratch.mnt());
    let (below, above) = (daemon(&program, "d"), supervisor(&program));
    signal(above, "KILL");
    wait_until("it ends", || is_dead(above));
    assert_eq!(mount.sh("echo more >file; exec 3<file; rm file; cat <&3"), "more");
    assert_eq!(daemon(&program, "d"), below);
    mount.umount();
    wait_until("the daemon ends", || is_dead(below));
}
