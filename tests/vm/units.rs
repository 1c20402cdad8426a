//! The systemd units, started by a real systemd: in a guest whose own root is a desktop.

use std::fs;
use std::path::Path;

use crate::common::program::run;
use crate::common::{Scratch, sh};
use crate::guest::{Guest, Home, LIMIT, UNIT};

const UNITS: [&str; 5] = [
    "reroot@.service",
    "reroot-gc.service",
    "reroot-gc.timer",
    "reroot-virtiofsd@.service",
    "reroot-virtiofsd@.socket",
];

/// What the guest does. Each line that it says is compared.
const SERVICE: &str = r#"#!/bin/bash
exec >/root/log 2>&1
say() { echo "<2>GUEST $*" >/dev/kmsg; }
trap 'say "last: $(systemctl is-active reroot@alice)"; systemctl poweroff' EXIT
shows() { say "$1: $(findmnt -n -o FSTYPE /srv/alice) $(cat /srv/alice/hello) $(ls /srv/alice | tr '\n' ' ')"; }
until systemctl is-active -q reroot@alice; do sleep 0.2; done
shows "at start"
echo mine >/srv/alice/mine
exec 3</srv/alice/mine 4>/srv/alice/nameless; rm /srv/alice/nameless
# So long that systemd has it.
sleep 3
pid=$(systemctl show -p MainPID --value reroot@alice)
systemctl kill -s KILL --kill-whom=main reroot@alice
until systemctl is-active -q reroot@alice && [ "$(systemctl show -p MainPID --value reroot@alice)" != "$pid" ]; do sleep 0.2; done
shows "after a crash"
echo nameless >&4; say "open all the while: $(cat <&3) $(cat /proc/self/fd/4), $(journalctl -b -u reroot@alice -o cat | grep -c 'going on with what process')"
exec 3<&- 4>&-
systemctl start reroot-gc.service; say "collection: $(systemctl show -p Result --value reroot-gc.service)"
say "timer: $(systemctl is-active reroot-gc.timer)"
systemctl start reroot-virtiofsd@alice.socket
systemctl is-active -q reroot-virtiofsd@alice.service && say "virtiofsd runs for nobody"
# Asks as QEMU does (VHOST_USER_GET_FEATURES), and stays connected.
perl -MIO::Socket::UNIX -e 'my $s = IO::Socket::UNIX->new(Peer => "/run/reroot/virtiofsd-alice.sock") or die;
  syswrite $s, pack("LLL", 1, 1, 0); my $told = "";
  while (length $told < 20 && sysread $s, $told, 20 - length $told, length $told) {} $| = 1; print unpack("L", $told), "/", length $told, "\n"; sleep 600' >/run/told &
until [ -s /run/told ]; do sleep 0.1; done
say "virtiofsd: $(cat /run/told) $(systemctl is-active reroot-virtiofsd@alice.service)"
served=$(tr '\0' ' ' </proc/$(systemctl show -p MainPID --value reroot-virtiofsd@alice)/cmdline)
case $served in */virtiofsd*--fd=3*/srv/alice*) say "virtiofsd: of /srv/alice" ;; *) say "virtiofsd: $served" ;; esac
systemctl stop reroot@alice
say "virtiofsd went too: $(systemctl is-active reroot-virtiofsd@alice.service) $(systemctl is-active reroot-virtiofsd@alice.socket)"
say "stopped: $(systemctl show -p Result --value reroot@alice) $(findmnt -n /srv/alice || echo not mounted)"
mkdir -p /etc/reroot; printf 'MOUNTPOINT=/mnt/here\nOPTIONS=-o ro\n' >/etc/reroot/alice.conf
systemctl start reroot@alice
say "elsewhere: $(cat /mnt/here/mine) $(touch /mnt/here/x 2>&1 | grep -o 'Read-only.*')"
systemctl stop reroot@alice; rm /etc/reroot/alice.conf
systemctl start reroot@alice
cat /proc/$(systemctl show -p MainPID --value reroot@alice)/status | grep -E 'NoNewPrivs|Seccomp:' | tr -d '\n\t' >/root/confined
systemctl start reroot@nobody && say "started a desktop that is not there"
say "nobody: $(journalctl -b -u reroot@nobody -o cat | grep -m1 'no desktop')"
echo last >/srv/alice/last
# And so it is mounted when the machine goes down.
"#;

/// What `make install` puts in place, and a store with a desktop.
fn install(home: &Path, root: &Path) {
    fs::copy(env!("CARGO_BIN_EXE_reroot"), root.join("usr/local/bin/reroot")).unwrap();
    let units = root.join("usr/local/lib/systemd/system");
    fs::create_dir_all(&units).unwrap();
    for name in UNITS {
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-helpers").join(name), units.join(name))
            .unwrap();
    }
    let small = home.join("small");
    fs::create_dir(&small).unwrap();
    fs::write(small.join("hello"), "hello\n").unwrap();
    let store = home.join("store");
    for args in
        [&["import", &*format!("dir:{}", small.display()), "small:1"][..], &["create", "alice", "small:1"]]
    {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_reroot"));
        run(command.arg("--store").arg(&store).args(args), LIMIT).ok();
    }
    fs::write(root.join("usr/local/sbin/service"), SERVICE).unwrap();
    fs::write(root.join("etc/systemd/system/service.service"), UNIT).unwrap();
    virtiofsd(root);
    // A disk of its own: virtiofsd keeps `trusted.*` from guests.
    let script = format!(
        "mkfs.ext4 -q -d {} store.img 64M; mkdir -p var/lib/reroot var/log/journal
         echo '/store.img /var/lib/reroot ext4 loop 0 0' >>etc/fstab
         chmod 755 usr/local/sbin/service
         chroot . systemctl enable -q service.service reroot@alice.service reroot-gc.timer",
        store.display()
    );
    sh(root, &script).ok();
}

/// This machine's virtiofsd with its libraries: the guest is a Debian of the same age.
fn virtiofsd(root: &Path) {
    let script = "for program in /usr/libexec/virtiofsd /usr/lib/qemu/virtiofsd $(command -v virtiofsd); do
          if [ -x $program ]; then break; fi
        done
        install -D $program usr/libexec/virtiofsd
        ldd $program | sed -n 's/.* => \\(.*\\) (.*/\\1/p' | while read -r library; do
          [ -e \".$library\" ] || [ -e \"./usr$library\" ] || install -D \"$library\" usr/local/lib/${library##*/}
        done
        chroot . ldconfig";
    sh(root, script).ok();
}

#[test]
fn units_mount_a_desktop_at_start_after_a_crash_and_collect() {
    let beside = Scratch::new();
    let home = Home::with(|root| install(beside.path(), root));
    let mut guest = Guest::start(&mut home.plain_command(&["--append", "quiet", "--memory", "768M"]));
    guest.expect(0);
    let log = fs::read_to_string(home.user("root/log")).unwrap_or_default();
    for words in [
        "GUEST at start: fuse.reroot hello hello",
        "GUEST after a crash: fuse.reroot hello hello mine",
        "GUEST open all the while: mine nameless, 1",
        "GUEST collection: success",
        "GUEST timer: active",
        "GUEST virtiofsd: 1/20 active",
        "GUEST virtiofsd: of /srv/alice",
        "GUEST virtiofsd went too: inactive active",
        "GUEST stopped: success not mounted",
        "GUEST elsewhere: mine Read-only file system",
        "GUEST nobody: reroot: there is no desktop",
        "GUEST last: active",
    ] {
        assert!(guest.has_said(words), "{words}: {}\n{log}", guest.said.join("\n"));
    }
    let confined = fs::read_to_string(home.user("root/confined")).unwrap();
    assert_eq!(confined, "NoNewPrivs:1Seccomp:2");
    home.assert_clean();

    // The desktop within the desktop, seen from the host.
    let script = format!(
        "debugfs -R 'cat /desktops/alice/user/last' {} 2>/dev/null",
        home.user("store.img").display()
    );
    assert_eq!(sh(beside.path(), &script).ok().out(), "last\n");
}

#[test]
fn units_are_right_by_systemds_own_word() {
    let scratch = Scratch::new();
    for name in UNITS {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-helpers").join(name))
            .unwrap();
        // Where the program is not installed, its name is not found.
        let exe = format!("={} ", env!("CARGO_BIN_EXE_reroot"));
        fs::write(scratch.join(name.replace('@', "@pc")), text.replace("=reroot ", &exe)).unwrap();
    }
    let script = "SYSTEMD_LOG_LEVEL=warning systemd-analyze verify --man=no ./reroot@pc.service ./reroot-gc.service ./reroot-gc.timer \
         ./reroot-virtiofsd@pc.service ./reroot-virtiofsd@pc.socket";
    let answer = sh(scratch.path(), script).ok();
    assert_eq!(answer.err(), "");
}
