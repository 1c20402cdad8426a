//! One mount's process: from the claim to the last sync.
//!
//! The mount point is touched once, to attach the mount; afterwards the daemon works from descriptors only.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use fuser::{Config, Notifier, Session, SessionACL};
use parking_lot::Mutex;

use super::control;
use super::estate::{Estate, Holding, Key};
use super::options::DataMode;
use super::shown::shown;
use super::swap;
use super::{MountOptions, MountRequest, Subject};
use crate::error::{Doing, Error, Result};
use crate::fuse::{Adapter, Line, Manner, Servers};
use crate::store::desktops::Desktop;
use crate::store::mounts::{MountClaim, MountEntry};
use crate::store::{Digest, Store};
use crate::sys::lock::Lock;
use crate::sys::{mount, notify, pass, process};
use crate::union::completion::Pieces;
use crate::union::inherit::Inheritance;
use crate::union::lower::{Stack, Tree};
use crate::union::swap::Notice;
use crate::union::{Data, Generation, Settings, View};

/// Threads that serve requests. More than cores, since a request may wait for the disk.
const THREADS: usize = 10;
/// How often what was written is brought to the disk: a guest's `sync` does not reach a FUSE server.
const SYNC_EVERY: Duration = Duration::from_secs(5);

/// A running mount, as its control socket and its swaps see it.
#[derive(Debug)]
pub struct Running {
    /// The store.
    pub store: Store,
    /// The desktop; none for a version that is looked into.
    pub desktop: Option<Desktop>,
    /// The view.
    pub view: Arc<View>,
    /// What the mount says of itself.
    pub entry: Mutex<MountEntry>,
    /// Held by one swap at a time.
    pub swapping: Mutex<()>,
    /// Generations that requests held on to longer than a swap waited, and what to tell once they are done.
    pub late: Mutex<Vec<(Arc<Generation>, Vec<Notice>)>>,
    claim: MountClaim,
    /// What the next daemon will need, where there can be one.
    estate: Option<Arc<Estate>>,
    notifier: Notifier,
    /// The connection to the kernel, for what the notifier cannot say.
    device: OwnedFd,
}

impl Running {
    /// Tells the kernel; how many notices were sent.
    pub fn tell(&self, notices: &[Notice]) -> u64 {
        use std::os::unix::ffi::OsStrExt;
        for notice in notices {
            let sent = match notice {
                Notice::Entry(parent, name) => {
                    self.notifier.inval_entry(fuser::INodeNo(*parent), std::ffi::OsStr::from_bytes(name))
                }
                Notice::Expire(parent, name) => notify::expire_entry(&self.device, *parent, name),
                Notice::Inode(id) => self.notifier.inval_inode(fuser::INodeNo(*id), 0, 0),
                Notice::Attributes(id) => self.notifier.inval_inode(fuser::INodeNo(*id), -1, 0),
            };
            if let Err(e) = sent {
                log::warn!("telling the kernel of {notice:?}: {}", crate::error::words(&e));
            }
        }
        notices.len() as u64
    }

    /// The kernel knows nothing that is not so in the stack that the view shows now.
    pub fn note_told(&self) {
        let pin = self.view.pin();
        if let (Some(estate), Stack::Version(tree)) = (&self.estate, &pin.0.stack)
            && self.late.lock().is_empty()
        {
            estate.note_told(&tree.version, pin.0.number);
        }
    }

    /// Keeps a version's objects from collections while this mount runs.
    pub fn keep_version(&self, version: &Digest) -> Result<()> {
        let mut entry = self.entry.lock();
        if entry.versions.insert(*version) {
            self.claim.describe(&entry)?;
        }
        Ok(())
    }
}

/// How files are copied up in pieces. For tests, which have small ones and draw the time out, `REROOT_PIECES` says it as
/// `BYTES:MILLISECONDS`. Over plain directories none is: others read the upper directory too.
fn pieces(request: &MountRequest) -> Pieces {
    let usual = Pieces::default();
    if matches!(request.subject, Subject::Directories(_)) {
        return Pieces { from: u64::MAX, ..usual };
    }
    let asked = || {
        let text = std::env::var("REROOT_PIECES").ok()?;
        let (from, grace) = text.split_once(':')?;
        Some(Pieces { from: from.parse().ok()?, grace: Duration::from_millis(grace.parse().ok()?) })
    };
    asked().unwrap_or(usual)
}

/// The id under which a mount claims its place.
/// `process` is there as long as the mount is.
fn mount_id(subject: &Subject, process: u32) -> String {
    match subject {
        Subject::Desktop(name) => name.clone(),
        // Dots never begin a desktop's name, so these cannot meet one.
        Subject::Version { .. } => format!(".inspect-{process}"),
        Subject::Directories(_) => format!(".overlay-{process}"),
    }
}

fn process_id() -> u32 {
    std::process::id()
}

/// Refuses a mount point that would make the daemon wait for itself, or that is taken unless it is to cover what
/// is there.
pub fn check_mountpoint(point: &Path, others: &[PathBuf], over_others: bool) -> Result<PathBuf> {
    let real = match point.canonicalize() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::Usage(format!(
                "the mount point {} does not exist; make it with mkdir",
                point.display()
            )));
        }
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            let message =
                format!("a daemon ended without unmounting {0}; run `reroot umount {0}`", point.display());
            return Err(Error::Failed(message));
        }
        r => r.at("finding the mount point", point)?,
    };
    if !real.is_dir() {
        return Err(Error::Usage(format!("the mount point {} is not a directory", point.display())));
    }
    let table = mount::table().doing("reading the mount table")?;
    if let Some(line) = table.iter().rfind(|l| l.point == real && !over_others) {
        return Err(Error::Failed(format!(
            "{} is busy: {} ({}) is mounted there; unmount it first",
            point.display(),
            line.source,
            line.fstype
        )));
    }
    for part in others {
        if part.starts_with(&real) || real.starts_with(part) {
            return Err(Error::Usage(format!(
                "the mount point {} and {} lie within each other; mount elsewhere",
                point.display(),
                part.display()
            )));
        }
    }
    Ok(real)
}

/// Serves a mount until it ends. `ready` is told once the mount is attached. With an `estate` the mount outlives this
/// process, or has outlived another one.
pub fn serve(
    request: &MountRequest,
    estate: Option<Arc<Estate>>,
    ready: impl FnOnce(&MountEntry),
) -> Result<()> {
    let store = super::overlay::home(request)?;
    let before = estate.as_ref().and_then(|e| e.inherited());
    let process = estate.as_ref().map_or_else(process_id, |estate| estate.task.supervisor);
    let id = before.map_or_else(|| mount_id(&request.subject, process), |entry| entry.id.clone());
    let desktop = match &request.subject {
        Subject::Desktop(name) => Some(store.desktop(name)?),
        _ => None,
    };
    let heir = estate.as_deref().filter(|e| e.inherited().is_some());
    let claim = match heir {
        Some(heir) => store.resume_mount(&id, Lock::handed_on(heir.take(Key::Claim)?)),
        None => {
            let claim = store.claim_mount(&id)?.ok_or_else(|| {
                let place =
                    store.mounted(&id).ok().flatten().map(|e| format!(" at {}", e.mountpoint.display()));
                Error::Failed(format!("{id} is mounted already{}", place.unwrap_or_default()))
            })?;
            super::life::clear_dead_mount(&store, request)?;
            claim
        }
    };
    process::clear_umask();
    process::raise_descriptor_limit();
    process::lift_file_size_limit();
    process::map_large_buffers();

    // No collection runs from here until the mount's entry names its versions. That of a mount that goes on does: and whoever
    // collects may be waiting for this mount.
    let in_use = if heir.is_none() { Some(store.in_use()?) } else { None };
    // What is noted there is read from here on.
    let slots = match estate.as_ref().map(|estate| estate.slots()) {
        // A limit on the length of files that cannot be lifted, for one: then this daemon is the only one.
        Some(Err(e)) if heir.is_none() => {
            log::warn!("{e}; the mount ends with this process");
            None
        }
        slots => slots.transpose()?,
    };
    let estate = estate.clone().filter(|_| slots.is_some());
    let shown = shown(request, &store, desktop.as_ref(), heir)?;
    let settings = Settings {
        // `ro` is the kernel's to keep, so that a remount can change it.
        read_only: shown.user.is_none(),
        data: match request.options.data {
            // The kernel takes backing files from root only.
            _ if !process::is_root() => Data::Coherent,
            DataMode::Auto => Data::Auto,
            DataMode::Passthrough => Data::Passthrough,
            DataMode::Coherent => Data::Coherent,
        },
        metacopy: shown.metacopy,
        pieces: pieces(request),
    };
    if !shown.sealed {
        log::warn!(
            "not root: what lies below is read without a read-only mount clone, and nothing goes past the daemon"
        );
    }
    let point = shown.point;
    let view = View::new(shown.library, shown.user, shown.stack, shown.generation, settings)
        .map_err(|e| Error::Io("opening the view".into(), std::io::Error::from_raw_os_error(e.0)))?;
    let view = Arc::new(view);
    // Before anybody asks what is still to be copied.
    if !settings.read_only
        && let Err(e) = view.recall()
    {
        log::error!("finding the files that are still to be copied: error {}", e.0);
    }

    let socket = control::socket_path(&store, &id)?;
    let mut versions = before.map(|entry| entry.versions.clone()).unwrap_or_default();
    if heir.is_some() {
        // What the daemon before has shown since it began, and what moved directories stand on.
        versions.extend(store.mounted(&id)?.into_iter().flat_map(|said| said.versions));
        if let Some(desktop) = &desktop {
            versions.extend(desktop.pins()?.into_iter().filter(|pin| store.version(pin).is_ok()));
        }
    }
    versions.extend(shown.version);
    versions.extend(shown.ahead.as_ref().map(|tree| tree.version));
    let entry = MountEntry {
        id: id.clone(),
        desktop: desktop.is_some(),
        mountpoint: if request.options.root { "/".into() } else { point.clone() },
        pid: process_id(),
        socket: socket.clone(),
        versions,
        supervisor: estate.as_ref().map(|e| e.task.supervisor),
        restarts: estate.as_ref().map_or(0, |e| e.task.restarts),
    };
    claim.describe(&entry)?;
    drop(in_use);
    let listener = match heir {
        Some(heir) => UnixListener::from(heir.take(Key::Listener)?),
        None => control::socket(&socket)?,
    };
    if let (Some(estate), Some(slots)) = (&estate, slots) {
        view.leave_to_heirs(slots, Arc::new(Holding(estate.clone())));
        if heir.is_none() {
            estate.leave(Key::Claim, claim.lock());
            estate.leave(Key::Listener, &listener);
            if let Some(lock) = shown.claims.first() {
                estate.leave(Key::UserLayer, lock);
            }
            estate.note_told(&shown.version.unwrap_or(Digest([0; Digest::LEN])), shown.generation);
        }
    }

    // What the daemon before wrote last may not be on the disk yet.
    let dirty = Arc::new(AtomicBool::new(heir.is_some()));
    let (wake, woken) = mpsc::channel();
    let map_ids = !request.options.uid_map.is_empty() || !request.options.gid_map.is_empty();
    let line = Line::default();
    let manner = Manner { map_ids, strict_times: request.options.strictatime };
    let servers = Arc::new(Servers::new(THREADS));
    let adapter = Adapter::new(view.clone(), dirty.clone(), wake, line.clone(), servers.clone(), manner);
    // A mount that is not made leaves no socket.
    let first = heir.is_none();
    let left = |_: &Error| {
        if first {
            let _ = std::fs::remove_file(&socket);
        }
    };
    let (session, attach, device) =
        make_session(request, adapter, &point, &source(request), map_ids, estate.as_deref())
            .inspect_err(left)?;
    // Root's mount is attached at the end, and goes by itself before that.
    let mut attached = match mount::device_at(&point) {
        Some(dev) if !process::is_root() && heir.is_none() => Some(Attached { point: point.clone(), dev }),
        _ => None,
    };
    if let Some(heir) = heir {
        // Not before it is sure that this daemon can speak with the kernel: another one may have to read it too.
        let trees = entry.versions.iter().filter_map(|v| Tree::open(&store, v).ok()).collect();
        line.inherit(view.inherit(Inheritance { nameless: heir.take_nameless(), versions: trees }));
        log::info!("{id}: going on with what process {} served", before.map_or(0, |entry| entry.pid));
    }
    let _ = line.notifier.set(session.notifier());
    servers.listen_to(device.try_clone().doing("starting")?);
    line.connect(device.try_clone().doing("starting")?);
    let running = Arc::new(Running {
        store: store.clone(),
        desktop,
        view: view.clone(),
        entry: Mutex::new(entry.clone()),
        swapping: Mutex::new(()),
        late: Mutex::default(),
        claim,
        notifier: session.notifier(),
        device,
        estate: estate.clone(),
    });
    // A swap that the daemon before was in the middle of: from the first request on the view shows its target.
    let swap = shown.ahead.map(|tree| swap::Resumed::begin(&running, tree)).transpose()?;
    if let Some(estate) = &estate {
        // Before anybody serves: what is being served would be asked twice.
        match (estate.kernel_sends_again(), heir.is_some()) {
            (true, true) => {
                notify::send_again(&running.device).doing("asking the kernel for what was not answered")?;
            }
            (true, false) => {}
            (false, _) => {
                fail_what_was_lost(&running);
                view.note_requests();
            }
        }
    }
    let serving =
        thread::Builder::new().name("session".into()).spawn(move || session.run()).doing("starting")?;
    if heir.is_none() {
        attach(&point).inspect_err(left)?;
        if let (Some(estate), Some(dev)) = (&estate, mount::device_at(&point)) {
            estate.note_device(dev);
        }
        log::info!("{id} is mounted at {}", point.display());
    }
    if let Some(swap) = swap {
        swap.end(&running);
    }
    // Who asks something after this sees the swap as done.
    let control = control::listen(listener, &socket, running.clone())?;

    let ended = Arc::new(AtomicBool::new(false));
    let house = {
        let (running, ended) = (running.clone(), ended.clone());
        thread::Builder::new()
            .name("house".into())
            .spawn(move || keep_house(&running, &dirty, &woken, &ended))
            .doing("starting")?
    };
    // A thread of its own, since it copies contents, and notices must not wait for that.
    let copier = {
        let (view, ended, copies) = (view.clone(), ended.clone(), !settings.read_only);
        let copy = move || {
            if settings.metacopy {
                process::yield_to_others();
            }
            while !ended.load(Ordering::Relaxed) {
                if !settings.metacopy {
                    view.finish();
                }
                if !copies || !view.complete_some(false) {
                    thread::sleep(Duration::from_millis(100));
                }
            }
        };
        thread::Builder::new().name("copier".into()).spawn(copy).doing("starting")?
    };
    let watching = {
        let servers = servers.clone();
        thread::Builder::new().name("servers".into()).spawn(move || servers.watch()).doing("starting")?
    };
    if shown.unfinished {
        // A thread of its own: whoever holds the desktop's lock may wait for this mount.
        let running = running.clone();
        let finish = move || {
            if let Err(e) = finish_swap(&running) {
                log::warn!("the swap that was under way: {e}; the next one or the next mount finishes it");
            }
        };
        thread::Builder::new().name("finishing".into()).spawn(finish).doing("starting")?;
    }
    unmount_on_signal(point, estate.as_ref().and_then(|e| e.device()))?;
    ready(&entry);
    // From now on the next daemon goes on with it.
    if let Some(attached) = attached.take_if(|_| estate.is_some()) {
        std::mem::forget(attached);
    }

    let result =
        serving.join().unwrap_or_else(|_| Err(std::io::Error::other("a thread of the session ended early")));
    ended.store(true, Ordering::Relaxed);
    servers.end();
    let _ = watching.join();
    let _ = house.join();
    let _ = copier.join();
    drop(control);
    // Where the mount is still there, the next daemon needs the socket's place and what the mount says of itself.
    let goes_on = estate.is_some() && !mount::has_ended(&running.device);
    if !goes_on {
        let _ = std::fs::remove_file(&socket);
    }
    view.finish();
    if let Err(e) = view.close() {
        log::error!("the last sync of the user layer: error {}", e.0);
    }
    // Other threads may still hold the claim; it ends with this process.
    if !goes_on {
        running.claim.withdraw();
        log::info!("{id} is unmounted");
    }
    drop(shown.claims);
    result.doing("serving the mount")
}

/// Unmounts, and detaches what is in use.
fn unmount_as_user(point: &Path) -> std::io::Result<()> {
    mount::unmount_by_fusermount(point, false).or_else(|_| mount::unmount_by_fusermount(point, true))
}

/// An ordinary user's mount, which fusermount3 has attached: it does not outlive a failure of the only process that serves it.
struct Attached {
    point: PathBuf,
    /// Its device number.
    dev: (u32, u32),
}

impl Drop for Attached {
    fn drop(&mut self) {
        if mount::device_at(&self.point) == Some(self.dev) {
            let _ = unmount_as_user(&self.point);
        }
    }
}

fn source(request: &MountRequest) -> String {
    match (&request.options.source, &request.subject) {
        (Some(source), _) => source.clone(),
        (None, Subject::Desktop(name)) => name.clone(),
        (None, Subject::Version { name, .. }) => name.clone(),
        (None, Subject::Directories(_)) => "reroot".into(),
    }
}

type Attach = Box<dyn FnOnce(&Path) -> Result<()>>;

/// The FUSE session. Root makes the mount itself, so that it can be prepared before it is attached; others go
/// through fusermount3.
fn make_session(
    request: &MountRequest,
    adapter: Adapter,
    point: &Path,
    source: &str,
    map_ids: bool,
    estate: Option<&Estate>,
) -> Result<(Session<Adapter>, Attach, OwnedFd)> {
    let options = &request.options;
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.clone_fd = false;
    let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.acl = acl;
    if let Some(heir) = estate.filter(|e| e.inherited().is_some()) {
        let device = heir.take(Key::Device)?;
        let session = greet(adapter, &device, acl, config, heir)?;
        return Ok((session, Box::new(|_| Ok(())), device));
    }
    if !process::is_root() {
        if map_ids {
            return Err(Error::Refused("mapping ids needs root".into()));
        }
        let device = mount::fuse_by_fusermount(point, &fusermount_options(options, source)).map_err(|e| {
            Error::Io(format!("mounting at {} (an ordinary user needs fusermount3)", point.display()), e)
        })?;
        let session =
            begin(adapter, &device, acl, config, estate).inspect_err(|_| drop(unmount_as_user(point)))?;
        return Ok((session, Box::new(|_| Ok(())), device));
    }
    let how = mount::FuseMount {
        source: source.into(),
        subtype: options.subtype.then(|| "reroot".into()),
        allow_other: options.allow_other,
        default_permissions: options.default_permissions,
        attributes: options.attributes(),
        read_only: options.read_only,
    };
    let (device, detached) =
        mount::fuse_detached(&how).doing("making the FUSE mount (is the fuse module there?)")?;
    let session = begin(adapter, &device, acl, config, estate)?;
    if map_ids {
        let identity = vec![(0, 0, u32::MAX)];
        let pick = |m: &Vec<(u32, u32, u32)>| if m.is_empty() { identity.clone() } else { m.clone() };
        let space = mount::user_namespace(&pick(&options.uid_map), &pick(&options.gid_map))
            .doing("making the user name space of the id map")?;
        detached.map_ids(&space).doing("mapping ids (uidmap=, gidmap=)")?;
    }
    let attach = Box::new(move |point: &Path| detached.attach(point).at("mounting at", point));
    Ok((session, attach, device))
}

/// What fusermount3 is told of a mount. It knows commas by a backslash before them.
fn fusermount_options(options: &MountOptions, source: &str) -> String {
    let mut words = vec![format!("fsname={}", source.replace('\\', "\\\\").replace(',', "\\,"))];
    let flags = [
        (options.subtype, "subtype=reroot"),
        (options.allow_other, "allow_other"),
        (options.default_permissions, "default_permissions"),
        (options.read_only, "ro"),
        (options.noexec, "noexec"),
        (options.noatime, "noatime"),
    ];
    words.extend(flags.into_iter().filter(|(is, _)| *is).map(|(_, word)| word.into()));
    words.join(",")
}

/// The first session on a connection.
fn begin(
    adapter: Adapter,
    device: &OwnedFd,
    acl: SessionACL,
    config: Config,
    estate: Option<&Estate>,
) -> Result<Session<Adapter>> {
    match estate {
        Some(estate) => {
            estate.leave(Key::Device, device);
            greet(adapter, device, acl, config, estate)
        }
        None => {
            let device = device.try_clone().doing("making the FUSE mount")?;
            Session::from_fd(adapter, device, acl, config).doing("greeting the kernel")
        }
    }
}

/// A session whose greeting can be repeated. The kernel greets once, and fuser's session expects that: so it hears the
/// greeting from a socket, which is then exchanged for the connection. What a later daemon answers is not sent, and must
/// be what the kernel was answered by the first.
fn greet(
    adapter: Adapter,
    device: &OwnedFd,
    acl: SessionACL,
    config: Config,
    estate: &Estate,
) -> Result<Session<Adapter>> {
    let doing = "greeting the kernel";
    let first = estate.inherited().is_none();
    let (hello, answered) =
        if first { (pass::read_once(device).doing(doing)?, Vec::new()) } else { estate.greeting() };
    let (ours, theirs) = pass::pair().doing(doing)?;
    pass::send(&ours, &hello, None).doing(doing)?;
    let session = Session::from_fd(adapter, theirs, acl, config).doing(doing)?;
    let answer = pass::read_once(&ours).doing(doing)?;
    if first {
        pass::write_once(device, &answer).doing(doing)?;
        estate.note_greeting(&hello, &answer)?;
    } else if answer != answered {
        return Err(Error::Failed(
            "this program speaks with the kernel in another way than the one that made the mount; unmount and \
             mount again"
                .into(),
        ));
    }
    pass::put_in_place(session.as_fd(), device).doing(doing)?;
    Ok(session)
}

/// Brings writes to the disk, sends the view's notices, forgets what nobody needs.
fn keep_house(running: &Running, dirty: &AtomicBool, woken: &mpsc::Receiver<()>, ended: &AtomicBool) {
    let step = Duration::from_millis(100);
    let mut since = Duration::ZERO;
    while !ended.load(Ordering::Relaxed) {
        let told = woken.recv_timeout(step);
        if told.is_err() {
            since += step;
        }
        running.tell(&running.view.take_notices());
        let done: Vec<_> = running.late.lock().extract_if(.., |(old, _)| View::drained(old)).collect();
        for (old, notices) in done {
            running.tell(&notices);
            running.view.told(old.number + 1);
            // While a swap is under way it is that one's to say: the view may show what was not told of yet.
            if let Some(_none) = running.swapping.try_lock() {
                running.note_told();
            }
        }
        if since >= SYNC_EVERY {
            since = Duration::ZERO;
            running.view.sweep();
            let writing = running.view.is_being_written();
            if (dirty.swap(false, Ordering::Relaxed) || writing)
                && let Err(e) = running.view.sync()
            {
                log::error!("syncing the user layer: error {}", e.0);
            }
        }
    }
}

/// SIGTERM, SIGINT and SIGHUP unmount. Where the mount is in use it is detached, and the daemon goes on
/// until the last user is gone.
/// Answers what the daemon before had taken and not answered, where the kernel does not send that again: whoever asked would
/// wait for ever. What was opened for it is closed.
fn fail_what_was_lost(running: &Running) {
    let lost = running.view.take_requests();
    let near = |(number, error)| match notify::fail(&running.device, number, error) {
        Ok(true) => {
            for fh in running.view.never_given(number) {
                let _ = running.view.release(fh);
            }
            running.view.drop_dirs_never_given(number);
            log::warn!("a request was lost with the daemon before, and answered with error {error}");
        }
        // It was answered, or is not taken yet, or there is none of that number.
        Ok(false) => {}
        Err(e) => log::warn!("a request was lost with the daemon before: {}", crate::error::words(&e)),
    };
    lost.into_iter().for_each(near);
}

/// Says in the desktop's state that its swap is done.
fn finish_swap(running: &Running) -> Result<()> {
    let Some(desktop) = &running.desktop else { return Ok(()) };
    let held = desktop.lock()?;
    let mut state = desktop.state()?;
    if state.complete_pending() {
        desktop.write_state(&state, &held)?;
    }
    Ok(())
}

/// `dev` is the mount's device number, where it is known: what else stands at the mount point by then is somebody else's.
fn unmount_on_signal(point: PathBuf, dev: Option<(u32, u32)>) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals =
        signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).doing("waiting for signals")?;
    let waiting = move || {
        for _ in signals.forever() {
            if dev.is_some() && mount::device_at(&point) != dev {
                log::warn!("something else is mounted at {} by now, and stays", point.display());
                continue;
            }
            log::info!("unmounting {}", point.display());
            match mount::unmount(&point, false) {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                    log::warn!(
                        "{} is in use; it is detached now and ends with its last user",
                        point.display()
                    );
                    let _ = mount::unmount(&point, true);
                }
                Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                    let fusermount =
                        |how| std::process::Command::new("fusermount3").arg(how).arg(&point).status();
                    if !fusermount("-u").is_ok_and(|s| s.success()) {
                        let _ = fusermount("-uz");
                    }
                }
                _ => {}
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(waiting).doing("starting")?;
    Ok(())
}

/// Writes a line of JSON for whoever started this process.
pub fn say(value: &impl serde::Serialize) {
    let mut out = serde_json::to_vec(value).unwrap_or_default();
    out.push(b'\n');
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(&out);
    let _ = stdout.flush();
}
