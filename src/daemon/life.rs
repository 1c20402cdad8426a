//! Starting and ending mounts from the command line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::estate::{Estate, Left};
use super::{MountRequest, Subject, session, supervisor};
use crate::error::{Doing, Error, Result};
use crate::store::Store;
use crate::store::mounts::MountEntry;
use crate::sys::{mount as sys, pass, process, service};

/// How long an unmount waits for the daemon to bring the last writes to the disk.
const LAST_SYNC: Duration = Duration::from_secs(120);

/// What the daemon says on its standard output, once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Ready(MountEntry),
    Failed { kind: String, message: String },
}

/// Mounts. With `foreground` it returns when the mount has ended; without, when the view answers, with the
/// daemon in the background.
pub fn mount(request: &MountRequest, foreground: bool) -> Result<MountEntry> {
    let store = super::overlay::home(request)?;
    if foreground {
        log_to(None);
        let mut entry = None;
        let mut ready = |e: &MountEntry| {
            if let Err(e) = service::ready() {
                log::warn!("the service manager does not hear: {}", crate::error::words(&e));
            }
            entry = Some(e.clone());
        };
        if supervisor::is_for(request) {
            supervisor::supervise(request, supervisor::Parent::Service, ready)?;
        } else {
            session::serve(request, None, &mut ready)?;
        }
        return entry.ok_or_else(|| Error::Failed("the mount ended before it was ready".into()));
    }
    let log = log_path(&store, request)?;
    let log_file = File::options().create(true).append(true).open(&log).at("opening the log", &log)?;
    let program = std::env::current_exe().doing("finding this program")?;
    let mut child = Command::new(program)
        .arg(if supervisor::is_for(request) { "supervise" } else { "serve" })
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log_file)
        .current_dir("/")
        .spawn()
        .doing("starting the daemon")?;
    if let Some(mut stdin) = child.stdin.take() {
        let line = serde_json::to_vec(request).unwrap_or_default();
        stdin.write_all(&line).doing("starting the daemon")?;
    }
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).doing("waiting for the daemon")?;
    }
    match serde_json::from_str(&line) {
        Ok(Word::Ready(entry)) => {
            // The view answers: this is asked from here, since the daemon never touches its own mount.
            std::fs::metadata(&entry.mountpoint).at("looking at the new mount", &entry.mountpoint)?;
            Ok(entry)
        }
        Ok(Word::Failed { kind, message }) => {
            let _ = child.wait();
            Err(Error::of_kind(&kind, message))
        }
        Err(_) => {
            let _ = child.wait();
            Err(Error::Failed(format!("the daemon ended at once; its log is {}", log.display())))
        }
    }
}

/// The daemon itself. One that has a supervisor speaks with that, over a socket that is its standard input; another one
/// reads its request from standard input and says on standard output when the view is there.
pub fn serve() -> Result<()> {
    let _ = process::new_session();
    if let Some(socket) = pass::take_input().doing("looking for the supervisor")? {
        let estate = Arc::new(Estate::receive(socket)?);
        log_to(estate.task.log_with_time.then_some(()));
        let request = estate.task.request.clone();
        let ready = |entry: &MountEntry| estate.say(&Left::Ready(entry.clone()), None);
        let result = session::serve(&request, Some(estate.clone()), ready);
        if let Err(e) = &result {
            estate.say(&Left::Failed { kind: e.kind().into(), message: e.to_string() }, None);
            // The supervisor tells whoever waits.
            std::process::exit(1);
        }
        return result;
    }
    in_background(|request, ready| session::serve(request, None, ready))
}

/// The process that starts daemons: as [`serve`] without a supervisor.
pub fn supervise() -> Result<()> {
    let _ = process::new_session();
    in_background(|request, ready| {
        supervisor::supervise(request, supervisor::Parent::Command, ready).map(|_| ())
    })
}

/// Reads a request from standard input, and says on standard output when the view is there.
fn in_background(work: impl FnOnce(&MountRequest, &mut dyn FnMut(&MountEntry)) -> Result<()>) -> Result<()> {
    log_to(Some(()));
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).doing("reading the request")?;
    let request: MountRequest =
        serde_json::from_str(&text).map_err(|e| Error::Usage(format!("this is started by `mount`: {e}")))?;
    let mut said = false;
    let result = work(&request, &mut |entry| {
        session::say(&Word::Ready(entry.clone()));
        said = true;
    });
    if let Err(e) = &result {
        log::error!("{e}");
        if !said {
            session::say(&Word::Failed { kind: e.kind().into(), message: e.to_string() });
        }
    }
    result
}

fn log_path(store: &Store, request: &MountRequest) -> Result<PathBuf> {
    Ok(match &request.subject {
        Subject::Desktop(name) => store.desktop(name)?.dir().join("daemon.log"),
        Subject::Version { .. } => store.path("mounts").join("inspect.log"),
        Subject::Directories(_) => store.path("mounts").join("overlay.log"),
    })
}

/// A daemon that was killed leaves a mount that answers nothing. Where it is this desktop's, or stands where this
/// mount is to be, it is cleared. The caller has the claim: a daemon that is still dying has not given it up.
pub(super) fn clear_dead_mount(store: &Store, request: &MountRequest) -> Result<()> {
    if let Subject::Desktop(name) = &request.subject
        && let Some(entry) = last_words(store, name)
        && is_dead(&entry.mountpoint)
    {
        detach(&entry.mountpoint, true)?;
    }
    let point = request.mountpoint.canonicalize().unwrap_or_else(|_| request.mountpoint.clone());
    if is_dead(&point) {
        detach(&point, true)?;
    }
    Ok(())
}

/// What a mount that does not run any more said of itself.
fn last_words(store: &Store, id: &str) -> Option<MountEntry> {
    let bytes = std::fs::read(store.path("mounts").join(format!("{id}.json"))).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Whether a mount is there whose daemon is not.
fn is_dead(point: &Path) -> bool {
    is_ours(point) && sys::is_dead(point)
}

fn is_ours(point: &Path) -> bool {
    let table = sys::table().unwrap_or_default();
    let top = table.iter().rfind(|l| l.point == point);
    top.is_some_and(|l| l.fstype == "fuse.reroot" || l.fstype == "fuse" && is_listed(point))
}

/// Whether a mount of directories that shows no subtype says that it stands there.
fn is_listed(point: &Path) -> bool {
    let listed = || super::overlay::registry()?.mounts();
    listed().unwrap_or_default().iter().any(|e| e.mountpoint == point)
}

/// Unmounts what is attached at a path, whatever it shows.
pub fn unmount_path(store: Option<&Store>, point: &Path) -> Result<MountEntry> {
    let target = point.to_str().ok_or_else(|| Error::Usage(format!("{} is not UTF-8", point.display())))?;
    // A name without a slash would be a desktop's.
    let target = if target.contains('/') { target.to_string() } else { format!("./{target}") };
    match (unmount(&super::overlay::registry()?, &target), store) {
        (Err(Error::Nothing(_) | Error::Usage(_)), Some(store)) => unmount(store, &target),
        (result, _) => result,
    }
}

/// Detaches a mount of ours from its place; its daemon goes on until the last user is gone.
pub fn detach_lazily(point: &Path) -> Result<()> {
    let point = std::path::absolute(point).at("finding the mount point", point)?;
    if !is_ours(&point) {
        return Err(Error::Nothing(format!("nothing of reroot's is mounted at {}", point.display())));
    }
    detach(&point, true)
}

/// Changes the flags of a running mount: read-only or not, access times, and what has an effect in it. No option that
/// says what it shows can be changed.
pub fn remount(point: &Path, options: &super::MountOptions) -> Result<()> {
    let point = point.canonicalize().at("finding the mount point", point)?;
    if !is_ours(&point) {
        return Err(Error::Nothing(format!("nothing of reroot's is mounted at {}", point.display())));
    }
    sys::remount(&point, options.attributes()).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => Error::Failed(format!(
            "{} is in use for writing (fuser -vm {0} lists by whom); it stays as it is",
            point.display()
        )),
        _ => Error::Io(format!("remounting {}", point.display()), e),
    })
}

fn detach(point: &Path, lazy: bool) -> Result<()> {
    match sys::unmount(point, lazy) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
            sys::unmount_by_fusermount(point, lazy).at("unmounting", point)
        }
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Err(Error::Failed(format!(
            "{} is in use; end the programs that use it (fuser -vm {0} lists them) or unmount what is mounted beneath it",
            point.display()
        ))),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            Err(Error::Nothing(format!("nothing is mounted at {}", point.display())))
        }
        r => r.at("unmounting", point),
    }
}

/// Unmounts a desktop by name, or whatever of ours is attached at a path. Waits until the daemon has ended.
pub fn unmount(store: &Store, target: &str) -> Result<MountEntry> {
    let entry = find(store, target)?;
    let point = entry.mountpoint.clone();
    if is_ours(&point) {
        let dead = store.mounted(&entry.id)?.is_none();
        detach(&point, dead)?;
    }
    let begin = Instant::now();
    while store.mount_runs(&entry.id)? {
        if store.mounted(&entry.id)?.is_some_and(|e| e.lasting_pid() != entry.lasting_pid()) {
            // Mounted again already.
            break;
        }
        if begin.elapsed() > LAST_SYNC {
            return Err(Error::Failed(format!(
                "{} is unmounted here, but its daemon (process {}) has not ended: something still uses the view, \
                 for example in another mount name space",
                point.display(),
                entry.pid
            )));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    store.forget_mount(&entry.id);
    Ok(entry)
}

fn find(store: &Store, target: &str) -> Result<MountEntry> {
    if !target.contains('/') {
        if let Some(entry) = store.mounted(target)? {
            return Ok(entry);
        }
        if let Some(entry) = last_words(store, target).filter(|e| is_dead(&e.mountpoint)) {
            return Ok(entry);
        }
        let desktop = store.desktop(target);
        if desktop.is_ok() {
            return Err(Error::Nothing(format!("{target} is not mounted")));
        }
    }
    let path = Path::new(target);
    let absolute = match path.canonicalize() {
        Ok(path) => path,
        // A dead mount cannot be looked at; its path is taken as it is written.
        Err(_) => std::env::current_dir().doing("finding the working directory")?.join(path),
    };
    for entry in store.mounts()? {
        if entry.mountpoint == absolute {
            return Ok(entry);
        }
    }
    if is_ours(&absolute) {
        if is_dead(&absolute) {
            if let Some(entry) = store.last_words_at(&absolute) {
                return Ok(entry);
            }
            let none = MountEntry {
                id: String::from(".dead"),
                desktop: false,
                mountpoint: absolute,
                pid: 0,
                socket: PathBuf::new(),
                versions: Default::default(),
                supervisor: None,
                restarts: 0,
            };
            return Ok(none);
        }
        return Err(Error::Usage(format!(
            "{target} is a mount of another store; name that store with --store"
        )));
    }
    Err(Error::Nothing(format!("{target} is neither a mounted desktop nor a mount point of this store")))
}

/// The log goes to standard error, which is the journal or a file; in a file each line has its time.
fn log_to(with_time: Option<()>) {
    struct ToStandardError(bool);
    impl log::Log for ToStandardError {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.level() <= log::max_level()
        }
        fn log(&self, record: &log::Record<'_>) {
            if !self.enabled(record.metadata()) {
                return;
            }
            let time = if self.0 { format!("{} ", crate::store::now_text()) } else { String::new() };
            let _ = writeln!(std::io::stderr(), "{time}{}: {}", record.level(), record.args());
        }
        fn flush(&self) {}
    }
    log::set_max_level(if std::env::var_os("REROOT_DEBUG").is_some() {
        log::LevelFilter::Debug
    } else {
        log::LevelFilter::Info
    });
    let _ = log::set_boxed_logger(Box::new(ToStandardError(with_time.is_some())));
}
