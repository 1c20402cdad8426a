//! Several machines on one host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::Disk;
use crate::common::scratch::mount_type;
use crate::guest::{Guest, Home, signal};

/// A machine on a desktop of its own, that has not been started.
fn machine(home: &Home, desktop: &str, words: &str) -> Command {
    let append = format!("init=/sbin/quick-init quiet do={words}");
    let point = home.scratch.join(format!("root-{desktop}"));
    home.program.command(&[
        "vm",
        "run",
        desktop,
        "--memory",
        "256M",
        "--cache",
        "always",
        "--mountpoint",
        point.to_str().unwrap(),
        "--append",
        &append,
    ])
}

fn user(home: &Home, desktop: &str) -> PathBuf {
    home.scratch.store().join("desktops").join(desktop).join("user")
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(str::to_string).collect()
}

#[test]
fn a_guest_that_crashes_fills_its_disk_or_writes_without_end_leaves_the_others_alone() {
    let home = Home::new();
    let disk = Disk::new(&home.scratch, "ext4", "small", 48);
    let home_of_full = disk.path().join("full");
    fs::create_dir(&home_of_full).unwrap();
    for desktop in ["crashes", "endless", "good"] {
        home.program.ok(&["create", desktop, "debian:1"]);
        home.scratch.dir(&format!("root-{desktop}"));
    }
    home.program.ok(&["create", "full", "debian:1", "--user-layer", home_of_full.to_str().unwrap()]);
    let small = home_of_full.join("user");
    home.scratch.dir("root-full");

    let mut endless = Guest::start(&mut machine(&home, "endless", "write,spin"));
    let mut full = Guest::start(&mut machine(&home, "full", "write,fill,wait"));
    endless.until("GUEST writes");
    full.until("GUEST the disk is full");
    full.until("GUEST waits");
    let mut crashes = Guest::start(&mut machine(&home, "crashes", "write,panic"));
    let mut good = Guest::start(&mut machine(&home, "good", "write,work,off"));
    crashes.expect(1);
    good.until("GUEST has worked");
    good.expect(0);
    assert!(endless.alive() && full.alive(), "they go on beside it");

    // Each has what it wrote, and nothing of the others'.
    let work: Vec<String> = (1..=20).map(|n| n.to_string()).collect();
    assert_eq!(lines(&user(&home, "good").join("root/work")), work);
    for desktop in ["crashes", "endless", "good"] {
        assert_eq!(
            lines(&user(&home, desktop).join("root/written")),
            ["written by a guest of 1"],
            "{desktop}"
        );
    }
    assert_eq!(lines(&small.join("root/written")), ["written by a guest of 1"]);
    assert!(!user(&home, "good").join("root/filler").exists());
    assert!(fs::metadata(small.join("root/filler")).unwrap().len() > 16 << 20);

    for guest in [&mut endless, &mut full] {
        signal(guest.pid(), "TERM");
        while guest.alive() {
            signal(guest.pid(), "TERM");
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        guest.expect(1);
    }
    for desktop in ["crashes", "endless", "good", "full"] {
        assert_eq!(
            mount_type(&home.scratch.join(format!("root-{desktop}"))),
            None,
            "{desktop} is left mounted"
        );
    }
    home.program.ok(&["fsck", "--deep"]);
    // Where there is room again, the full one goes on with what it has.
    fs::remove_file(small.join("root/filler")).unwrap();
    let mut full = Guest::start(&mut machine(&home, "full", "work,off"));
    full.expect(0);
    assert_eq!(lines(&small.join("root/work")), work);
    home.assert_clean();
}
