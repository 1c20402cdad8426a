//! A machine whose own root is a desktop of a store on its disk: what is done in the initramfs, before there is a root.
//!
//! The kernel's command line names the disk as any machine's (`root=`), and `reroot.desktop=NAME`. The initramfs mounts the
//! disk where it mounts roots, and calls [`mount_root`], which puts the desktop in its place:
//!
//! ```text
//! MOUNTPOINT                    the desktop; the initramfs makes it `/`
//! /run/initramfs/reroot/disk    the disk with the store
//! /run/initramfs/reroot/room    the daemon's root directory
//! /run/reroot/store             a link to the store, for the commands of the running machine
//! ```
//!
//! The daemon goes on when the initramfs is gone, and until the machine is switched off:
//!
//! - Of the initramfs it needs nothing but its program, which stays in memory. Its root directory is the room, where it finds
//!   `/proc`, `/run/reroot` and the disk under the names that they have for everybody. It never has the desktop as
//!   its root: every look at a path would be a request to itself.
//! - Its name begins with `@`, which tells systemd to spare it, when the initramfs ends and when the machine goes down
//!   (systemd.io, "Storage daemons for the root file system"). What lies beneath `/run/initramfs` systemd leaves mounted.
//! - Nothing unmounts the root, so nothing ends the daemon. What was written has gone to the disk's file system by then,
//!   which the system syncs last of all.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::daemon::{self, MountOptions, MountRequest, Subject};
use crate::error::{Doing, Error, Result};
use crate::store::Store;
use crate::sys::{mount, process};

/// The disk with the store.
const DISK: &str = "/run/initramfs/reroot/disk";
/// The root directory of the daemon.
const ROOM: &str = "/run/initramfs/reroot/room";
/// In the room: where the daemon attaches the desktop, from where it is moved into its place.
const VIEW: &str = "/view";
/// A link to the store of a machine that runs from one.
const STORE: &str = "/run/reroot/store";
/// Where the daemon says that the desktop is there (sd_notify(3)).
const READY: &str = "/run/reroot/boot.notify";

/// What the kernel's command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Words {
    desktop: String,
    /// The store's directory on the disk.
    store: PathBuf,
    /// As after `-o`.
    options: String,
}

impl Words {
    /// `None` where no desktop is named. Of words that are given twice the later ones win, as with the kernel's own.
    fn of(line: &str) -> Option<Words> {
        let (mut desktop, mut store, mut options) = (None, PathBuf::from("var/lib/reroot"), String::new());
        for word in line.split_whitespace().take_while(|w| *w != "--") {
            match word.split_once('=') {
                Some(("reroot.desktop", name)) => desktop = Some(name.to_string()),
                Some(("reroot.store", path)) => store = path.trim_start_matches('/').into(),
                Some(("reroot.options", list)) => options = list.into(),
                _ => {}
            }
        }
        desktop.map(|desktop| Words { desktop, store, options })
    }
}

/// The store that this machine runs from, if it runs from one.
pub fn store() -> Option<PathBuf> {
    std::fs::canonicalize(STORE).ok().filter(|_| process::is_root())
}

/// Puts the desktop that the kernel's command line names into the place of the disk that is mounted at `mountpoint`.
/// Its name; `None` where none is named, and then nothing is done.
pub fn mount_root(mountpoint: &Path) -> Result<Option<String>> {
    let line = std::fs::read_to_string("/proc/cmdline").doing("reading the kernel's command line")?;
    let Some(words) = Words::of(&line) else { return Ok(None) };
    let options = MountOptions::parse(&words.options)?;

    make_dir(Path::new(DISK), 0o755)?;
    // Only for root: it holds what every user of the machine may not read.
    restrict(Path::new("/run/initramfs/reroot"))?;
    // A mount cannot be taken out of one that is shared, as they all are where systemd runs.
    mount::make_private(Path::new("/")).doing("preparing the mounts")?;
    mount::relocate(mountpoint, Path::new(DISK)).at("moving the disk that is mounted at", mountpoint)?;
    mount::remount(Path::new(DISK), 0).doing("making the disk writable")?;
    let store = Store::open(&Path::new(DISK).join(&words.store))?;
    if !store.root().starts_with(DISK) {
        return Err(Error::Usage(format!("reroot.store={} leads out of the disk", words.store.display())));
    }
    let desktop = store.desktop(&words.desktop)?;
    furnish()?;

    let request = MountRequest {
        store: store.root().to_path_buf(),
        subject: Subject::Desktop(desktop.name.clone()),
        mountpoint: VIEW.into(),
        options: MountOptions { root: true, ..options },
    };
    let log = desktop.dir().join("daemon.log");
    start(&request, &log)?;
    mount::relocate(&in_room(VIEW), mountpoint).at("moving the desktop to", mountpoint)?;
    // It was for /dev/fuse, which is open now.
    let _ = mount::unmount(&in_room("/dev"), true);
    let _ = std::fs::remove_file(STORE);
    symlink(store.root(), STORE).at("making", STORE)?;
    Ok(Some(desktop.name))
}

/// The daemon of a machine's root: reads its request from standard input, and serves.
pub fn serve() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).doing("reading the request")?;
    let request: MountRequest = serde_json::from_str(&text)
        .map_err(|e| Error::Usage(format!("`boot-serve` is started in an initramfs: {e}")))?;
    let _ = process::new_session();
    process::lift_descriptor_limit();
    // Out of the unit that it was started by, into that of the first process, where systemd already runs.
    let _ = std::fs::write("/sys/fs/cgroup/init.scope/cgroup.procs", std::process::id().to_string());
    // Without it nothing else can go on.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    process::change_root(Path::new(ROOM)).at("entering", ROOM)?;
    mount::see_as_the_first_process();
    daemon::mount(&request, true).map(drop)
}

fn in_room(path: &str) -> PathBuf {
    Path::new(ROOM).join(path.trim_start_matches('/'))
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).at("making", path)
}

fn restrict(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).at("preparing", path)
}

/// Puts into the daemon's room what it needs, under the names that it has everywhere.
fn furnish() -> Result<()> {
    let run = daemon::runtime_dir()?;
    for path in [Path::new("/proc"), Path::new("/dev"), Path::new(VIEW), &run, Path::new(DISK)] {
        make_dir(&Path::new(ROOM).join(path.strip_prefix("/").unwrap_or(path)), 0o755)?;
    }
    mount::process_table(&in_room("/proc")).doing("mounting /proc")?;
    for path in [Path::new("/dev"), &run, Path::new(DISK)] {
        let to = Path::new(ROOM).join(path.strip_prefix("/").unwrap_or(path));
        mount::bind(path, &to).at("mounting", &to)?;
    }
    Ok(())
}

/// Starts the daemon and waits until the desktop is there.
fn start(request: &MountRequest, log: &Path) -> Result<()> {
    let _ = std::fs::remove_file(READY);
    let ready = UnixDatagram::bind(READY).at("listening at", READY)?;
    ready.set_read_timeout(Some(Duration::from_millis(50))).doing("waiting for the daemon")?;
    let to = File::options().create(true).append(true).open(log).at("opening the log", log)?;
    let mut child = Command::new("/proc/self/exe")
        .arg0("@reroot")
        .arg("boot-serve")
        .env("NOTIFY_SOCKET", READY)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(to)
        .spawn()
        .doing("starting the daemon")?;
    if let Some(mut stdin) = child.stdin.take() {
        let line = serde_json::to_vec(request).unwrap_or_default();
        stdin.write_all(&line).doing("starting the daemon")?;
    }
    let result = wait(&mut child, &ready, log);
    let _ = std::fs::remove_file(READY);
    result
}

fn wait(child: &mut Child, ready: &UnixDatagram, log: &Path) -> Result<()> {
    let mut word = [0; 64];
    loop {
        if ready.recv(&mut word).is_ok_and(|n| word.get(..n) == Some(b"READY=1\n")) {
            return Ok(());
        }
        if let Some(status) = child.try_wait().doing("waiting for the daemon")? {
            let text = std::fs::read(log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let last = text.lines().last().unwrap_or_default();
            return Err(Error::Failed(format!("the daemon ended with {status}: {last}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_command_line_says_what_becomes_the_root() {
        assert_eq!(Words::of("root=/dev/vda ro quiet"), None);
        assert_eq!(Words::of("root=/dev/vda -- reroot.desktop=d"), None);
        let words = Words::of("root=/dev/vda reroot.desktop=d ro").unwrap();
        assert_eq!(words, Words { desktop: "d".into(), store: "var/lib/reroot".into(), options: "".into() });
        let line = "reroot.desktop=a reroot.store=/srv/s reroot.options=noatime,ro reroot.desktop=b\n";
        let words = Words::of(line).unwrap();
        assert_eq!(words, Words { desktop: "b".into(), store: "srv/s".into(), options: "noatime,ro".into() });
    }
}
