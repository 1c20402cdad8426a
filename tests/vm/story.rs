//! What virtual machines are for: upgrades and rollbacks of a guest's root that keep what its user wrote.

use std::fs;
use std::path::Path;

use crate::common::program::run;
use crate::guest::{Guest, Home, LIMIT, UNIT};

#[test]
fn a_guests_files_outlive_a_broken_upgrade_and_its_rollback() {
    let home = Home::new();
    broken_upgrade(&home);
    swap_of_a_running_root(&home);
}

fn broken_upgrade(home: &Home) {
    let answer = home.run("write,edit,off", &[]).ok();
    assert!(answer.out().contains("GUEST user space of 1"), "{}", answer.out());
    assert!(answer.err().contains("the guest powered off"), "{}", answer.err());
    assert_eq!(fs::read_to_string(home.user("root/written")).unwrap(), "written by a guest of 1\n");

    // The next version cannot start anything: its C library is cut off. Its kernel was unpacked and not installed, so
    // that no list says what its modules need.
    let broken = home.scratch.join("system-1");
    fs::write(broken.join("etc/version"), "2\n").unwrap();
    let script = "truncate -s 100000 usr/lib/x86_64-linux-gnu/libc.so.6; rm usr/lib/modules/*/modules.dep";
    crate::common::sh(&broken, script).ok();
    home.import("system-1", "debian:2", Some("debian:1"));
    let up = home.program.swap(&["upgrade", "d", "--to", "debian:2"]);
    assert_eq!(up["live"], false, "{up}");
    let answer = home.run("write,off", &["--json", "--timeout", "120"]).expect_code(1);
    assert_eq!(answer.json()["ending"], "panicked", "{}", answer.err());
    assert!(answer.err().contains("Kernel panic - not syncing"), "{}", answer.err());
    assert!(!answer.err().contains("GUEST"), "no program can run there: {}", answer.err());

    home.program.swap(&["rollback", "d"]);
    let answer = home.run("read,write,off", &[]).ok();
    assert!(answer.out().contains("GUEST written: written by a guest of 1"), "{}", answer.out());
    assert_eq!(fs::read_to_string(home.user("root/written")).unwrap().lines().count(), 2);
    let mount = home.program.mount("d", home.scratch.mnt());
    assert_eq!(
        mount.sh(
            "tail -1 etc/hostname; ls etc/motd 2>&1 | grep -c 'No such'; ls usr/share/papers | grep -c libc6"
        ),
        "edited by a guest\n1\n1"
    );
    mount.umount();
}

/// Versions 1 and 3, which both boot.
fn swap_of_a_running_root(home: &Home) {
    fs::remove_file(home.user("root/written")).unwrap();
    let third = home.unpacked("system-3");
    fs::write(third.join("etc/version"), "3\n").unwrap();
    home.import("system-3", "debian:3", Some("debian:1"));
    let mut guest = home.start("write,watch,write,watch,write,off", &["--cache", "auto"]);
    guest.until("GUEST watches 1");
    let up = home.program.swap(&["upgrade", "d", "--to", "debian:3"]);
    assert_eq!(up["live"], true, "{up}");
    guest.until("GUEST sees 3");
    guest.until("GUEST watches 3");
    home.program.swap(&["rollback", "d"]);
    guest.until("GUEST sees 1");
    guest.expect(0);
    let lines = fs::read_to_string(home.user("root/written")).unwrap();
    assert_eq!(lines, "written by a guest of 1\nwritten by a guest of 3\nwritten by a guest of 1\n");
    home.assert_clean();

    // What remembers for ever sees it at the next boot.
    let mut guest = home.start("wait", &["--cache", "always"]);
    guest.until("GUEST waits");
    home.program.swap(&["upgrade", "d", "--to", "debian:3"]);
    guest.kill();
    // The next run takes over the mount that a killed one left.
    let answer = home.run("off", &["--cache", "always"]).ok();
    assert!(answer.out().contains("GUEST user space of 3"), "{}", answer.out());
}

/// What the guest does once systemd has started everything.
const SERVICE: &str = r#"#!/bin/bash
exec >/root/log 2>&1
say() { echo "<2>GUEST $*" >/dev/kmsg; }
trap 'say "done: $(tail -1 /root/log)"; systemctl poweroff' EXIT
set -eu
# This service is what the start still waits for.
until state=$(systemctl is-system-running) || [ "$state" != starting ] && [ "$state" != initializing ]; do sleep 0.2; done
say "system is $state"
systemctl --failed --no-legend --plain | while read -r line; do say "failed: $line"; done
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
if [ ! -e /root/installed ]; then
  # One wants another to be configured before it is unpacked.
  dpkg -i /var/cache/apt/archives/*.deb || dpkg -i /var/cache/apt/archives/*.deb
  bad=$(dpkg --verify; dpkg --audit)
  [ -z "$bad" ] || { say "dpkg: $bad"; exit 1; }
  touch /root/installed
fi
say "six times seven is $(echo '6 * 7' | bc), cron is $(systemctl is-enabled cron)"
date +%s >>/root/boots
journalctl --sync
say "journal: $(journalctl -b -o cat _PID=1 | grep -c .)"
[ ! -e /usr/local/sbin/exercise ] || /usr/local/sbin/exercise
echo all well
"#;

/// Puts that into a system.
pub fn install(root: &Path) {
    fs::write(root.join("usr/local/sbin/service"), SERVICE).unwrap();
    fs::write(root.join("etc/systemd/system/service.service"), UNIT).unwrap();
    let script = "chmod 755 usr/local/sbin/service; chroot . systemctl enable -q service.service; mkdir -p var/log/journal";
    crate::common::sh(root, script).ok();
}

#[test]
fn systemd_comes_up_and_real_packages_install_in_a_guest() {
    let home = Home::with(install);
    for boot in 1..=2 {
        let mut guest = Guest::start(&mut home.plain_command(&["--append", "quiet", "--memory", "768M"]));
        let up = guest.until("GUEST system is");
        eprintln!("boot {boot}: systemd's start was done after {:.1} s", up.as_secs_f64());
        guest.expect(0);
        let log = fs::read_to_string(home.user("root/log")).unwrap_or_default();
        for words in [
            "GUEST system is running",
            "GUEST six times seven is 42, cron is enabled",
            "GUEST done: all well",
        ] {
            assert!(guest.has_said(words), "{words}: {}\n{log}", guest.said.join("\n"));
        }
        home.assert_clean();
    }
    assert_eq!(fs::read_to_string(home.user("root/boots")).unwrap().lines().count(), 2);
    // The same packages, seen from the host.
    let mount = home.program.mount("d", home.scratch.mnt());
    let mut verify = std::process::Command::new("chroot");
    verify.arg(mount.path()).args(["dpkg", "--verify"]);
    assert_eq!(run(&mut verify, LIMIT).ok().out(), "");
    mount.umount();
    run(&mut home.program.command(&["fsck"]), LIMIT).ok();
}
