//! A machine with a disk of its own, on which there is a store: its root is a desktop of that store. The initramfs is made by
//! the real initramfs-tools and by the real dracut, with what `make install` gives them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::disk::Disk;
use crate::common::program::run;
use crate::common::{Scratch, require_root, sh};
use crate::guest::{Guest, LIMIT, UNIT, unpack};

/// What the machine does once systemd has started everything. Each line that it says is compared.
const SERVICE: &str = r#"#!/bin/bash
exec >>/root/log 2>&1
say() { echo "<2>GUEST $*" >/dev/kmsg; }
trap 'systemctl poweroff' EXIT
# This service is what the start still waits for.
until state=$(systemctl is-system-running) || [ "$state" != starting ] && [ "$state" != initializing ]; do sleep 0.2; done
say "system is $state"
systemctl --failed --no-legend --plain | while read -r line; do say "failed: $line"; done
version() { say "$1: version $(cat /etc/version), shipped $(cat /srv/shipped/file || echo nothing)"; }
daemon=$(sed -n 's/.*"pid": \([0-9]*\),.*/\1/p' /run/initramfs/reroot/disk/srv/store/mounts/d.json)
say "root: $(findmnt -n -o FSTYPE,SOURCE /), daemon $(tr '\0' ' ' </proc/$daemon/cmdline)of $(cat /proc/$daemon/cgroup)"
say "files: $(sed -n 's/Max open files *//p' /proc/$daemon/limits), nr_open $(cat /proc/sys/fs/nr_open)"
say "for others: $(setpriv --reuid 1000 --clear-groups ls /run/initramfs/reroot/disk 2>&1)"
version start
read -r line </proc/cmdline
case $line in
  *do=back*)
    echo "written on $(cat /etc/version)" >>/root/written
    mount -t tmpfs none /srv/shipped
    say "beneath a mount: $(reroot rollback d 2>&1 | head -1)"
    umount /srv/shipped
    exec 3</srv/shipped/file
    reroot rollback d >/dev/null
    say "rollback: $?"
    version back
    say "open: $(cat <&3)"
    echo "written on $(cat /etc/version)" >>/root/written ;;
  *do=forth*)
    reroot upgrade d --to debian:2 >/dev/null
    say "upgrade: $?"
    version forth
    echo "written on $(cat /etc/version)" >>/root/written ;;
esac
say "written: $(tr '\n' ';' </root/written)"
"#;

/// What takes most of the time of a start in an emulated machine, and plays no part here.
const NOT_NEEDED: &str = "e2scrub_reap.service systemd-logind.service systemd-udev-trigger.service getty.target \
    serial-getty@ttyS0.service systemd-random-seed.service kmod-static-nodes.service dev-hugepages.mount dev-mqueue.mount \
    sys-kernel-debug.mount sys-kernel-tracing.mount modprobe@.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer";

/// A kernel, and an initramfs by each of the two.
struct Made {
    kernel: PathBuf,
    tools: PathBuf,
    dracut: PathBuf,
}

/// Something mounted for a while.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A Debian with what `make install` puts in place.
fn install(root: &Path) {
    let helpers = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-helpers");
    let script = format!(
        "strip -o usr/local/bin/reroot {}
         cp -r {helpers}/initramfs-tools/. usr/share/initramfs-tools/
         cp -r {helpers}/dracut/. usr/lib/dracut/modules.d/
         echo 'export REROOT=y' >etc/initramfs-tools/conf.d/reroot",
        env!("CARGO_BIN_EXE_reroot"),
        helpers = helpers.display(),
    );
    sh(root, &script).ok();
}

/// Makes what the machine boots from, in that Debian, and takes it out of it.
fn make(scratch: &Scratch, root: &Path) -> Made {
    let version = sh(root, "ls usr/lib/modules").ok().out().trim().to_string();
    let proc = root.join("proc");
    run(Command::new("mount").args(["-t", "proc", "proc"]).arg(&proc), LIMIT).ok();
    let mounted = Mounted(proc.clone());
    let made = Made {
        kernel: scratch.join("kernel"),
        tools: scratch.join("initramfs-tools"),
        dracut: scratch.join("dracut"),
    };
    let inside = |words: &[&str]| {
        let mut command = Command::new("chroot");
        command
            .arg(root)
            .args(words)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        run(&mut command, LIMIT).ok();
    };
    inside(&["mkinitramfs", "-o", "/tmp/initramfs-tools", &version]);
    let dracut =
        ["-q", "--no-hostonly", "--no-compress", "--add", "reroot", "--omit", "nvdimm btrfs lvm dm crypt"];
    inside(&[&["dracut"][..], &dracut, &["--kver", &version, "/tmp/dracut"]].concat());
    drop(mounted);
    let script = format!(
        "mv tmp/initramfs-tools tmp/dracut {0}; cp boot/vmlinuz-* {0}/kernel",
        scratch.path().display()
    );
    sh(root, &script).ok();
    made
}

/// The machine, not started.
fn machine(made: &Made, initramfs: &Path, disk: &Path, words: &str) -> Command {
    // Ended with the test, however that ends.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-accel", "tcg", "-m", "768", "-smp", "1"]);
    command.args(["-display", "none", "-nodefaults", "-serial", "stdio", "-no-reboot"]);
    command.arg("-kernel").arg(&made.kernel).arg("-initrd").arg(initramfs);
    command.arg("-drive").arg(format!("file={},format=raw,if=virtio,cache=unsafe", disk.display()));
    let line = format!(
        "root=/dev/vda rootfstype=ext4 ro console=ttyS0 quiet panic=-1 reroot.store=/srv/store {words}"
    );
    command.arg("-append").arg(line);
    command
}

#[test]
fn a_machine_boots_from_a_store_on_its_own_disk_and_is_taken_back() {
    require_root();
    let scratch = Scratch::new();
    let root = scratch.dir("root");
    unpack("boot.tar", &root);
    install(&root);
    let made = make(&scratch, &root);

    // The store is filled as an image engineer does it, with the disk in another machine.
    let disk = Disk::new(&scratch, "ext4", "disk", 2048);
    let store = disk.path().join("srv/store");
    fs::create_dir(disk.path().join("srv")).unwrap();
    let reroot = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reroot"));
        command.arg("--store").arg(&store).args(args);
        run(&mut command, LIMIT).ok()
    };
    fs::write(root.join("usr/local/sbin/service"), SERVICE).unwrap();
    fs::write(root.join("etc/systemd/system/service.service"), UNIT).unwrap();
    fs::write(root.join("etc/version"), "1\n").unwrap();
    sh(&root, "chmod 755 usr/local/sbin/service; chroot . systemctl enable -q service.service").ok();
    let mask = format!("chroot . systemctl mask -q {NOT_NEEDED}");
    sh(&root, &mask).ok();
    let source = format!("dir:{}", root.display());
    reroot(&["import", &source, "debian:1"]);
    fs::write(root.join("etc/version"), "2\n").unwrap();
    fs::create_dir(root.join("srv/shipped")).unwrap();
    fs::write(root.join("srv/shipped/file"), "with 2\n").unwrap();
    reroot(&["import", &source, "debian:2", "--parent", "debian:1"]);
    reroot(&["create", "d", "debian:1"]);
    reroot(&["upgrade", "d", "--to", "debian:2"]);
    let image = disk.close();

    // A desktop that is not there is said on the console.
    let mut guest = Guest::start(&mut machine(&made, &made.tools, &image, "reroot.desktop=nobody"));
    guest.until("there is no desktop \"nobody\"");
    guest.end();

    let all = [
        "GUEST system is running",
        "GUEST root: fuse.reroot d, daemon @reroot boot-serve of 0::/init.scope",
        "GUEST for others: ls: cannot access '/run/initramfs/reroot/disk': Permission denied",
    ];
    let boots = [
        (
            "initramfs-tools",
            &made.tools,
            "do=back",
            &[
                "GUEST start: version 2, shipped with 2",
                "GUEST beneath a mount: reroot: something is mounted at /srv/shipped, which the target removes or replaces",
                "GUEST rollback: 0",
                "GUEST back: version 1, shipped nothing",
                "GUEST open: with 2",
                "GUEST written: written on 2;written on 1;",
            ][..],
        ),
        (
            "dracut",
            &made.dracut,
            "do=forth",
            &[
                "GUEST start: version 1, shipped nothing",
                "GUEST upgrade: 0",
                "GUEST forth: version 2, shipped with 2",
                "GUEST written: written on 2;written on 1;written on 2;",
            ][..],
        ),
    ];
    for (kind, initramfs, words, expected) in boots {
        let words = format!("reroot.desktop=d {words}");
        let mut guest = Guest::start(&mut machine(&made, initramfs, &image, &words));
        let up = guest.until("GUEST system is");
        eprintln!("{kind}: systemd's start was done after {:.1} s", up.as_secs_f64());
        guest.expect(0);
        for words in all.iter().chain(expected) {
            assert!(guest.has_said(words), "{kind}: {words}\n{}", guest.said.join("\n"));
        }
        // As many files as the kernel allows at all.
        let files = guest.said.iter().find_map(|l| l.split_once("GUEST files: ")).unwrap().1;
        let numbers: Vec<&str> =
            files.split(|c: char| !c.is_ascii_digit()).filter(|w| !w.is_empty()).collect();
        assert!(numbers.len() == 3 && numbers.iter().all(|n| *n == numbers[0]), "{files}");

        // The disk in another machine again: what was written is in the user layer, and all is whole.
        let disk = Disk::open(&scratch, "disk");
        let written = fs::read_to_string(store.join("desktops/d/user/root/written")).unwrap();
        assert_eq!(written.lines().count(), if words.contains("back") { 2 } else { 3 });
        reroot(&["fsck", "debian:2"]);
        disk.close();
    }
    unmounted(&scratch);
}

/// Nothing of the scratch directory is mounted.
fn unmounted(scratch: &Scratch) {
    assert_eq!(crate::common::scratch::mounts_beneath(scratch.path()), Vec::<PathBuf>::new());
}
