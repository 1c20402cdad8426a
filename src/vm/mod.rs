//! A virtual machine whose root is a desktop's mount.
//!
//! Promise: what [`run`] has started and made has ended and is gone when it returns, whatever ended the machine: the
//! guest, its time limit, a signal, or the death of QEMU, virtiofsd or the mount's daemon. What was mounted before stays
//! mounted. If this process is killed, the kernel ends QEMU and virtiofsd with it, and the next [`run`] of the desktop takes
//! over the mount that is left and unmounts it in the end.
//!
//! ```text
//! guest ── virtio ── QEMU ── vhost-user socket ── virtiofsd ── the mount ── the desktop's daemon
//!          console ──► standard output           (each is a process of its own)
//! ```
//!
//! On disk: `desktops/NAME/vm.lock` is held while a machine runs on the desktop, since two guests on one root would not
//! know of each other's changes; it is taken before every other lock. `vm.log` beside it has what QEMU and virtiofsd said in
//! the last run. Kernel, initramfs and socket lie in a directory beneath [`daemon::runtime_dir`], named by the
//! desktop.
//!
//! It knows of a mount only its place and whether it is served: nothing of layers, and nothing of FUSE.

mod boot;
mod initramfs;
mod machine;
mod monitor;
mod part;
mod share;
mod snippet;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use crate::daemon::{self, MountOptions, MountRequest, Subject};
use crate::error::{Doing, Error, Result};
use crate::store::mounts::MountEntry;
use crate::store::{Digest, Store};
use crate::sys::process;

use monitor::Monitor;
use part::Part;
pub use share::{Virtiofsd, share};
pub use snippet::{Snippet, escaped, snippet};

/// How long a guest may take to shut down after its power button was pressed.
const SHUT_DOWN: Duration = Duration::from_secs(20);
/// How often the processes are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long QEMU may take to end after it was told to, and virtiofsd after QEMU has.
const END: Duration = Duration::from_secs(5);

/// How long virtiofsd lets a guest remember what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// For a second: the guest sees a swap of its running root.
    Auto,
    /// For ever: faster, and a swap shows at the next boot.
    Always,
}

impl Cache {
    /// As virtiofsd and libvirt write it.
    pub fn word(self) -> &'static str {
        match self {
            Cache::Auto => "auto",
            Cache::Always => "always",
        }
    }
}

/// How the guest's instructions are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// Translated by QEMU.
    Tcg,
}

impl Accelerator {
    fn word(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }
}

/// The machine that is wanted.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The kernel; the image's newest where none is given.
    pub kernel: Option<PathBuf>,
    /// The initramfs; one is made where none is given and the kernel needs one.
    pub initrd: Option<PathBuf>,
    /// More words for the kernel's command line.
    pub append: Vec<String>,
    /// Memory in MiB.
    pub memory: u64,
    /// Processors.
    pub cpus: u16,
    /// The accelerator; what works best where none is given.
    pub accelerator: Option<Accelerator>,
    /// How long the guest may run.
    pub timeout: Option<Duration>,
    /// The virtiofsd to use.
    pub virtiofsd: Option<PathBuf>,
    /// What the guest may remember.
    pub cache: Cache,
    /// Where the desktop is mounted if it is not mounted already.
    pub mountpoint: Option<PathBuf>,
    /// More options for QEMU.
    pub options: Vec<OsString>,
    /// Standard input goes to the guest's serial console.
    pub interactive: bool,
}

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest powered off.
    PoweredOff,
    /// The guest reset the machine: it rebooted, or its kernel panicked.
    Reset,
    /// The guest's kernel panicked.
    Panicked,
    /// The time limit passed.
    TimedOut,
    /// Somebody on this side stopped it: a signal, or QEMU's monitor.
    Stopped,
}

/// What happens while a machine runs.
#[derive(Debug)]
enum Event {
    /// QEMU says that the machine ends, and why.
    Shutdown(String),
    /// This process got a signal to end.
    Signal,
}

/// Runs a machine on a desktop until it ends. What the guest writes to its serial console goes to `console`; `note` is
/// told what was chosen, before the machine starts.
pub fn run(
    store: &Store,
    desktop: &str,
    guest: &Guest,
    console: impl Write + Send + 'static,
    note: &mut dyn FnMut(String),
) -> Result<Ending> {
    if !process::is_root() {
        return Err(Error::Failed(
            "a virtual machine on a desktop needs root, as virtiofsd acts as every user".into(),
        ));
    }
    let desktop = store.desktop(desktop)?;
    let virtiofsd = Virtiofsd::find(guest.virtiofsd.as_deref())?;
    let qemu = machine::find()?;
    let Some(_alone) = desktop.claim_machine()? else {
        return Err(Error::Failed(format!(
            "a virtual machine runs on {} already; two guests on one root would not know of each other's changes",
            desktop.name
        )));
    };
    let log = desktop.dir().join("vm.log");
    std::fs::write(&log, "").at("writing", &log)?;

    // From here signals are events: until the machine runs they are only remembered.
    let (send, events) = mpsc::channel();
    let _signals = Signals::begin(send.clone())?;

    // What is declared first is dropped last: the machine's parts, then the mount, then the directory.
    let place = Place::make(store, &desktop.name)?;
    let mount = Mount::make(store, &desktop.name, guest, &place)?;
    let pieces = Pieces::gather(guest, &mount.entry.mountpoint, &place.0, note)?;
    let accelerator = guest.accelerator.unwrap_or_else(|| machine::accelerator(&qemu, &log));
    note(format!(
        "starting {} on {} with {} and {}",
        desktop.name,
        mount.entry.mountpoint.display(),
        accelerator.word(),
        virtiofsd.program().display()
    ));

    if events.try_iter().any(|e| matches!(e, Event::Signal)) {
        mount.end()?;
        return Ok(Ending::Stopped);
    }
    let socket = place.0.join("root.sock");
    let listener = UnixListener::bind(&socket).at("listening at", &socket)?;
    let share = virtiofsd.start(&mount.entry.mountpoint, guest.cache, listener, &log)?;
    let (monitor, theirs) = Monitor::connect(send)?;
    let machine = machine::start(
        guest,
        &machine::Pieces {
            qemu: &qemu,
            kernel: &pieces.kernel,
            initrd: pieces.initrd.as_deref(),
            accelerator,
            socket: &socket,
        },
        theirs,
        &log,
    )?;
    let (store, root) = (store.clone(), mount.entry.clone());
    let mut running = Running { machine, monitor, share, store, root, log };
    let copier = copy(running.machine.stdout(), console)?;
    let ending = running.watch(&events, guest.timeout);
    running.take_down();
    drop(running);
    let _ = copier.join();
    let unmounted = mount.end();
    // How the machine ended is worth more to know.
    let ending = ending?;
    unmounted?;
    Ok(ending)
}

/// A machine, and what serves it.
struct Running {
    machine: Part,
    monitor: Monitor,
    share: Part,
    store: Store,
    /// The mount.
    root: MountEntry,
    log: PathBuf,
}

impl Running {
    /// Waits until the machine has ended, or must.
    fn watch(&mut self, events: &Receiver<Event>, limit: Option<Duration>) -> Result<Ending> {
        let begin = Instant::now();
        let mut reason = None;
        let mut pressed: Option<Instant> = None;
        loop {
            match events.recv_timeout(LOOK) {
                Ok(Event::Shutdown(why)) => {
                    // The first one says it: a panic is told before the end that it leads to.
                    reason.get_or_insert(why);
                    continue;
                }
                Ok(Event::Signal) if pressed.is_none() => {
                    self.monitor.press_power_button();
                    pressed = Some(Instant::now());
                }
                Ok(Event::Signal) => return Ok(Ending::Stopped),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            if let Some(status) = self.machine.ended() {
                self.monitor.finish();
                for event in events.try_iter() {
                    if let Event::Shutdown(why) = event {
                        reason.get_or_insert(why);
                    }
                }
                return match reason {
                    Some(why) if status.success() => Ok(ending(&why)),
                    _ => Err(self.machine.failure()),
                };
            }
            // QEMU may be about to end by itself, and virtiofsd has seen that first.
            if self.share.ended().is_some() && self.machine.wait(END).is_none() {
                return Err(self.share.failure());
            }
            // Another daemon may go on with the mount: then the guest only waits for a moment.
            if process::began(self.root.pid).is_none() && !self.store.mount_runs(&self.root.id)? {
                return Err(Error::Failed(format!(
                    "the daemon of the guest's root (process {}) has ended; its log is {}",
                    self.root.pid,
                    self.log.with_file_name("daemon.log").display()
                )));
            }
            if limit.is_some_and(|l| begin.elapsed() >= l) {
                return Ok(Ending::TimedOut);
            }
            if pressed.is_some_and(|p| p.elapsed() >= SHUT_DOWN) {
                return Ok(Ending::Stopped);
            }
        }
    }

    /// Ends what still runs: the machine first, so that the guest's last writes find their server.
    fn take_down(&mut self) {
        if self.machine.ended().is_none() {
            self.monitor.pull_the_plug();
            self.machine.stop(END);
        }
        self.share.stop(END);
    }
}

/// How a machine ended, by QEMU's word for it.
fn ending(reason: &str) -> Ending {
    match reason {
        "guest-shutdown" => Ending::PoweredOff,
        "guest-reset" => Ending::Reset,
        "guest-panic" => Ending::Panicked,
        _ => Ending::Stopped,
    }
}

/// Copies what the guest says, also when nobody reads it any more: a guest must not wait for that.
fn copy(
    from: Option<std::process::ChildStdout>,
    mut to: impl Write + Send + 'static,
) -> Result<std::thread::JoinHandle<()>> {
    let work = move || {
        let Some(mut from) = from else { return };
        let (mut piece, mut heard) = ([0u8; 8192], true);
        while let Ok(n) = from.read(&mut piece) {
            let Some(bytes) = piece.get(..n).filter(|b| !b.is_empty()) else { return };
            heard = heard && to.write_all(bytes).and_then(|()| to.flush()).is_ok();
        }
    };
    std::thread::Builder::new().name("console".into()).spawn(work).doing("starting")
}

/// SIGINT, SIGTERM and SIGHUP as events, until it is dropped.
struct Signals(signal_hook::iterator::Handle);

impl Signals {
    fn begin(events: Sender<Event>) -> Result<Signals> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let doing = "waiting for signals";
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).doing(doing)?;
        let handle = signals.handle();
        let forward = move || {
            for _ in signals.forever() {
                if events.send(Event::Signal).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(forward).doing(doing)?;
        Ok(Signals(handle))
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The directory for what lives as long as a machine; it goes with this.
struct Place(PathBuf);

impl Place {
    fn make(store: &Store, desktop: &str) -> Result<Place> {
        use std::os::unix::fs::DirBuilderExt;
        // Short, since a socket's path holds 107 bytes; and the same each time, so that what a killed run left is found.
        let name = [store.root().as_os_str().as_bytes(), b"\0", desktop.as_bytes()].concat();
        let dir = daemon::runtime_dir()?.join(format!("vm-{}", Digest::of(&name).short()));
        let place = Place(dir);
        place.clear();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&place.0).at("making", &place.0)?;
        Ok(place)
    }

    /// Removes what is in it, by name: nothing is ever removed recursively where something may be mounted.
    fn clear(&self) {
        for name in ["kernel", "initramfs", "root.sock"] {
            let _ = std::fs::remove_file(self.0.join(name));
        }
    }

    /// Says which daemon serves a mount that was made for the machine, so that the next run knows what a killed one left.
    fn mark(&self) -> PathBuf {
        self.0.join("mounted")
    }

    fn mountpoint(&self) -> Result<PathBuf> {
        let dir = self.0.join("root");
        match std::fs::create_dir(&dir) {
            // Of a run that was killed: maybe a mount whose daemon is dead, so it is not looked at.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(dir),
            r => r.at("making", &dir).map(|()| dir),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clear();
        let _ = std::fs::remove_dir(self.0.join("root"));
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// The desktop's mount: unmounted in the end if it was made here.
struct Mount {
    store: Store,
    entry: MountEntry,
    ours: bool,
    mark: PathBuf,
}

impl Mount {
    fn make(store: &Store, desktop: &str, guest: &Guest, place: &Place) -> Result<Mount> {
        let mark = place.mark();
        if let Some(entry) = store.mounted(desktop)? {
            let marked = std::fs::read_to_string(&mark).ok();
            let ours = marked.is_some_and(|pid| pid == entry.lasting_pid().to_string());
            return Ok(Mount { store: store.clone(), entry, ours, mark });
        }
        let mountpoint = match &guest.mountpoint {
            Some(given) => std::path::absolute(given).at("finding the mount point", given)?,
            None => place.mountpoint()?,
        };
        let request = MountRequest {
            store: store.root().to_path_buf(),
            subject: Subject::Desktop(desktop.into()),
            mountpoint,
            options: MountOptions::default(),
        };
        let entry = daemon::mount(&request, false)?;
        let pid = entry.lasting_pid();
        let mount = Mount { store: store.clone(), entry, ours: true, mark };
        std::fs::write(&mount.mark, pid.to_string()).at("writing", &mount.mark)?;
        Ok(mount)
    }

    fn end(mut self) -> Result<()> {
        self.unmount()
    }

    fn unmount(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.ours) {
            return Ok(());
        }
        let dead = !self.store.mount_runs(&self.entry.id)?;
        // What a dead daemon has left is found by its place.
        let result = match daemon::unmount(&self.store, &self.entry.id) {
            Err(_) if dead => daemon::unmount_path(Some(&self.store), &self.entry.mountpoint),
            r => r,
        };
        match result {
            // Somebody else has unmounted it.
            Ok(_) | Err(Error::Nothing(_)) => {
                let _ = std::fs::remove_file(&self.mark);
                // It has let go of everything; the process itself may be about to end.
                let since = Instant::now();
                while !dead && process::began(self.entry.pid).is_some() && since.elapsed() < END {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(())
            }
            Err(e) => Err(e),
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.unmount();
    }
}

/// What the machine boots from, as files.
struct Pieces {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
}

impl Pieces {
    fn gather(
        guest: &Guest,
        mountpoint: &Path,
        place: &Path,
        note: &mut dyn FnMut(String),
    ) -> Result<Pieces> {
        let root = boot::Root::open(mountpoint)?;
        let kernel = match &guest.kernel {
            Some(path) => {
                let file = std::fs::File::open(path).at("opening the kernel", path)?;
                let bytes = boot::read_all(file, boot::KERNEL).at("reading the kernel", path)?;
                boot::Kernel { place: path.display().to_string(), bytes }
            }
            None => root.kernel()?,
        };
        let write = |name: &str, bytes: &[u8]| -> Result<PathBuf> {
            // QEMU reads a copy: what is in the image may be exchanged at any time.
            let path = place.join(name);
            std::fs::write(&path, bytes).at("writing", &path)?;
            Ok(path)
        };
        let file = write("kernel", &kernel.bytes)?;
        if let Some(path) = &guest.initrd {
            std::fs::metadata(path).at("opening the initramfs", path)?;
            return Ok(Pieces { kernel: file, initrd: Some(path.clone()) });
        }
        let version = boot::version_of(&kernel.bytes)
            .ok_or_else(|| Error::Failed(format!("{} is no kernel for x86-64", kernel.place)))?;
        let initrd = match root.modules(&version)? {
            boot::Modules::BuiltIn => None,
            boot::Modules::Load(modules) => Some(write("initramfs", &initramfs::make(&root, &modules)?)?),
            boot::Modules::Unknown => {
                note(format!(
                    "the image has no modules of the kernel {version}: it must have virtio_pci and virtiofs in itself"
                ));
                None
            }
        };
        note(format!("the kernel is {} ({version})", kernel.place));
        Ok(Pieces { kernel: file, initrd })
    }
}

/// Programs of that name in `$PATH`.
fn in_path(name: &str) -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = std::env::split_paths(&path).map(|d| d.join(name)).collect();
    places.into_iter().filter(|p| p.is_file())
}
