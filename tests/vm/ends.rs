//! Whatever ends a machine, nothing of it is left.

use std::fs;
use std::time::{Duration, Instant};

use crate::common::scratch::mount_type;
use crate::common::successor::replace_daemon;
use crate::guest::{Guest, Home, LIMIT, signal, signal_if_there};

#[test]
fn each_end_of_a_machine_has_its_status_and_leaves_nothing() {
    let home = Home::new();
    ends_of_its_own(&home);
    mounted_already(&home);
    killed(&home);
    stopped(&home);
    parts_that_end(&home);
    // The desktop is whole after all that.
    let answer = home.run("read,off", &[]).ok();
    assert!(answer.out().contains("GUEST written: written by a guest of 1"), "{}", answer.out());
}

/// The daemon of a guest's root is killed while the guest writes and reads; the guest notices nothing.
#[test]
fn a_guest_goes_on_when_the_daemon_of_its_root_is_killed() {
    for cache in ["always", "auto"] {
        let home = Home::new();
        let mut guest = home.start("write,count", &["--cache", cache]);
        guest.until("GUEST counts");
        for _ in 0..4 {
            replace_daemon(&home.program, "d");
        }
        // It has gone through all of that when it says so.
        fs::write(home.scratch.mnt().join("root/enough"), "").unwrap();
        guest.until("GUEST counted without an error");
        guest.expect(0);
        home.assert_clean();
        let lines = fs::read_to_string(home.user("root/counted")).unwrap();
        let numbers: Vec<u64> = lines.lines().map(|l| l.parse().unwrap()).collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "each once, in order");
        assert!(!home.user("root/goes").exists());
    }
}

fn ends_of_its_own(home: &Home) {
    for (words, code, ending) in [("off", 0, "powered-off"), ("reboot", 1, "reset"), ("panic", 1, "panicked")]
    {
        let answer = home.run(words, &["--json"]).expect_code(code);
        assert_eq!(answer.json()["ending"], ending, "{}", answer.err());
        assert_eq!(answer.json()["desktop"], "d");
    }
    // The limit begins with the machine, so this one passes in the midst of a boot or after it.
    let answer = home.run("write,wait", &["--json", "--timeout", "8"]).expect_code(1);
    assert_eq!(answer.json()["ending"], "timed-out", "{}", answer.err());
}

fn stopped(home: &Home) {
    let _ = fs::remove_file(home.user("root/written"));
    // The second signal does not wait for the guest to shut down.
    let mut guest = home.start("write,wait", &[]);
    guest.until("GUEST waits");
    let pid = guest.pid();
    signal(pid, "TERM");
    let begin = Instant::now();
    while guest.alive() && begin.elapsed() < LIMIT {
        signal_if_there(pid, "INT");
        std::thread::sleep(Duration::from_millis(50));
    }
    guest.expect(1);
    assert!(guest.has_said("was stopped"), "{:?}", guest.said);
    home.assert_clean();
    assert_eq!(fs::read_to_string(home.user("root/written")).unwrap().lines().count(), 1);
}

fn parts_that_end(home: &Home) {
    for (part, words) in [
        ("qemu-system", "QEMU ended with"),
        ("virtiofsd", "virtiofsd ended with"),
        (" serve", "the daemon of the guest's root"),
    ] {
        let mut guest = home.start("write,spin", &[]);
        guest.until("GUEST writes");
        let process = if part == "virtiofsd" { home.process("virtiofsd --fd") } else { home.process(part) };
        if part == " serve" {
            // Otherwise it would start another one, and the guest went on: see the next test.
            signal(home.process(" supervise"), "KILL");
        }
        signal(process, "KILL");
        guest.expect(1);
        assert!(guest.has_said(words), "{part}: {:?}", guest.said);
        home.assert_clean();
    }
}

/// A killed run takes its machine with it, and the next one its mount.
fn killed(home: &Home) {
    let own = |words: &str| {
        let append = format!("init=/sbin/quick-init quiet do={words}");
        home.program.command(&["vm", "run", "d", "--memory", "512M", "--append", &append])
    };
    let mut guest = Guest::start(&mut own("write,wait"));
    guest.until("GUEST waits");
    // A second guest on the same root is refused.
    let refused = home.program.run(&["vm", "run", "d"]).expect_code(1);
    assert!(refused.err().contains("runs on d already"), "{}", refused.err());
    signal(guest.pid(), "KILL");
    guest.end();
    let begin = Instant::now();
    while home.processes().iter().any(|l| !l.contains(" serve") && !l.contains(" supervise")) {
        assert!(begin.elapsed() < LIMIT, "{:?}", home.processes());
        std::thread::sleep(Duration::from_millis(20));
    }
    let point = home.run_directory().expect("the mount is still there").join("root");
    assert_eq!(mount_type(&point).as_deref(), Some("fuse.reroot"));
    let mut guest = Guest::start(&mut own("read,off"));
    guest.until("GUEST written: written by a guest of 1");
    guest.expect(0);
    home.assert_clean();
}

/// A desktop that is mounted stays mounted.
fn mounted_already(home: &Home) {
    let elsewhere = home.scratch.dir("elsewhere");
    let mount = home.program.mount("d", &elsewhere);
    mount.sh("rm -f root/written");
    let mut guest = home.start("write,off", &[]);
    guest.expect(0);
    assert_eq!(mount.sh("cat root/written"), "written by a guest of 1");
    assert_eq!(mount_type(&home.scratch.mnt()), None);
    home.umount(mount);
    home.assert_clean();
}
