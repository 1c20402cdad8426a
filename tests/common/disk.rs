//! Disks of other file systems in image files.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Scratch;
use super::program::{Answer, run};

/// A file system of its own, mounted from an image file. Unmounted, with its loop device released, when it goes.
#[derive(Debug)]
pub struct Disk {
    point: PathBuf,
    image: PathBuf,
}

impl Disk {
    /// Makes one of `kind` (ext4, xfs, btrfs) with `mib` MiB (at least 300 for xfs, 110 for btrfs) and mounts it
    /// in `scratch` under `name`. The image is sparse.
    #[track_caller]
    pub fn new(scratch: &Scratch, kind: &str, name: &str, mib: u64) -> Disk {
        let image = scratch.join(format!("{name}.img"));
        step(Command::new("truncate").arg("-s").arg(format!("{mib}M")).arg(&image));
        let mut make = Command::new(format!("mkfs.{kind}"));
        make.arg("-q");
        match kind {
            "ext4" => make.args(["-F", "-E", "lazy_itable_init=1,lazy_journal_init=1"]),
            "xfs" => make.args(["-f", "-m", "reflink=1"]),
            "btrfs" => make.arg("-f"),
            other => panic!("no disk of kind {other}"),
        };
        let path = std::env::var("PATH").unwrap_or_default();
        step(make.arg(&image).env("PATH", format!("{path}:/usr/sbin:/sbin")));
        Disk::open(scratch, name)
    }

    /// Mounts one that was made before.
    #[track_caller]
    pub fn open(scratch: &Scratch, name: &str) -> Disk {
        let (image, point) = (scratch.join(format!("{name}.img")), scratch.dir(name));
        // `mount -o loop` sets autoclear: the loop device goes with the last unmount.
        step(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&point));
        Disk { point, image }
    }

    /// Unmounts it; what is on it stays in the image file, whose path this is.
    #[track_caller]
    pub fn close(self) -> PathBuf {
        unmount(&self.point);
        let image = self.image.clone();
        // Nothing is left to unmount.
        std::mem::forget(self);
        image
    }

    /// Does not wait for the disk beneath at each fsync (ext4): for tests with many of them that are not about power
    /// cuts.
    #[track_caller]
    pub fn careless(&self) {
        step(Command::new("mount").args(["-o", "remount,nobarrier"]).arg(&self.point));
    }

    /// Fails from now on, as at a power cut: an ext4 file system is shut down without its journal being written
    /// (`EXT4_IOC_SHUTDOWN`). What lay in memory only is lost, and the next mount finds the journal as it was.
    #[track_caller]
    #[allow(unsafe_code)] // One ioctl.
    pub fn cut(&self) {
        /// `_IOR('X', 125, __u32)`
        const SHUTDOWN: libc::Ioctl = 0x8004_587d;
        /// The journal is not written either.
        const NO_LOG_FLUSH: u32 = 2;
        let top = std::fs::File::open(&self.point).unwrap();
        // SAFETY: the descriptor is open, and the call reads one number.
        let result = unsafe { libc::ioctl(top.as_raw_fd(), SHUTDOWN, &NO_LOG_FLUSH) };
        assert_eq!(result, 0, "shutting the disk down: {}", std::io::Error::last_os_error());
    }

    /// Unmounts it and mounts it again, as after a power cut. Nothing on it may be in use.
    #[track_caller]
    pub fn again(&self) {
        unmount(&self.point);
        step(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.point));
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut now = Command::new("timeout");
        now.args(["20", "umount", "--"]).arg(&self.point);
        if !now.stderr(std::process::Stdio::null()).status().is_ok_and(|s| s.success()) {
            let _ = Command::new("umount").args(["-l", "--"]).arg(&self.point).status();
        }
    }
}

/// Unmounts what a test mounted itself, trying for a while: see [`super::Mount::umount`].
#[track_caller]
pub fn unmount(point: &Path) {
    let script = "for i in $(seq 100); do umount -- \"$1\" && exit 0; sleep 0.1; done; exit 1";
    step(Command::new("sh").args(["-c", script, "sh"]).arg(point));
}

#[track_caller]
fn step(command: &mut Command) -> Answer {
    run(command, Duration::from_secs(60)).ok()
}
