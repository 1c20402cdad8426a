//! The process that outlives a mount's daemon.
//!
//! It starts the daemon, holds what that leaves (see [`super::estate`]), and when the daemon ends while the kernel still
//! has the mount, starts another one, which goes on. It does not touch the mount, has one thread and hears only what its
//! daemon says, so that there is little in it that could end it. Where it ends all the same, the daemon goes on without it;
//! under systemd, which ends the daemon then, the service's next supervisor goes on with the mount (see [`super::held`]).
//!
//! The end of the daemon is the end of its side of the socket: then none of its threads does anything any more, not even
//! one that was waiting for a disk when the process was killed.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::estate::{self, Given, Key, Left, Task, send};
use super::held::Held;
use super::{MountRequest, Subject};
use crate::error::{Doing, Error, Result};
use crate::store::Store;
use crate::store::mounts::MountEntry;
use crate::sys::{mount, pass, process};

/// A daemon that ends sooner than this after the view answered has not done better than one that never came so far.
const QUICK: Duration = Duration::from_secs(1);
/// So many of those in a row, and the mount ends.
const PATIENCE: u32 = 5;

/// Whether a mount gets a supervisor: a desktop's and a version's. (The numbers of plain directories do not outlive their
/// process.) Not the root of a machine: systemd spares only the one process that was started for that, and a program could
/// not be looked for in its own mount.
pub fn is_for(request: &MountRequest) -> bool {
    !matches!(request.subject, Subject::Directories(_)) && !request.options.root
}

/// Who started a supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// A command that returns once the view answers; the log is a file.
    Command,
    /// A service manager, or somebody at a terminal.
    Service,
}

/// Serves a mount through daemons until it ends. `ready` is told once, when the view answers.
pub fn supervise(
    request: &MountRequest,
    parent: Parent,
    ready: impl FnOnce(&MountEntry),
) -> Result<Option<MountEntry>> {
    let mut held = match parent {
        Parent::Service => Held::of_service()?,
        Parent::Command => Held::nothing(),
    };
    let before = if held.has_mount() { entry_before(request, &held) } else { None };
    if before.is_none() {
        held.drop_all();
        if parent == Parent::Service {
            held = Held::of_service_anew()?;
        }
    }
    let task = Task {
        request: request.clone(),
        restarts: before.as_ref().map_or(0, |entry| entry.restarts + 1),
        entry: before,
        supervisor: std::process::id(),
        log_with_time: parent == Parent::Command,
    };
    let result = go_on(task, &mut held, ready);
    // The mount has ended, or ends with this.
    match parent {
        Parent::Service => held.drop_all(),
        // With the process: whoever waits for the locks finds none left.
        Parent::Command => std::mem::forget(held),
    }
    result
}

/// What a supervisor that was killed left of a mount: what its daemon said of it. `None`: nobody would find it, or it is not
/// at its place any more.
fn entry_before(request: &MountRequest, held: &Held) -> Option<MountEntry> {
    let Subject::Desktop(name) = &request.subject else { return None };
    let entry = Store::open(&request.store).and_then(|store| store.mounted(name));
    let entry = entry.inspect_err(|e| log::warn!("{e}")).ok().flatten();
    let entry = without_versions(entry.filter(|entry| entry.supervisor.is_some())?);
    let noted = held.get(Key::Notes).and_then(estate::device_noted);
    if !noted.is_some_and(|dev| mount::is_at(&entry.mountpoint, dev)) {
        log::warn!("what was mounted at {} is not there any more", entry.mountpoint.display());
        return None;
    }
    log::info!("going on with the mount at {} as it was made", entry.mountpoint.display());
    Some(entry)
}

/// They may be many, and each daemon reads them in the store.
fn without_versions(entry: MountEntry) -> MountEntry {
    MountEntry { versions: Default::default(), ..entry }
}

fn go_on(mut task: Task, held: &mut Held, ready: impl FnOnce(&MountEntry)) -> Result<Option<MountEntry>> {
    let program = Program::this()?;
    let signals = signals()?;
    process::raise_descriptor_limit();
    let mut ready = Some(ready);
    let (mut quick, mut told_to_end) = (0, false);
    let mut same = false;
    loop {
        let life = live(program.path(same), &task, held, &signals, &mut told_to_end, &mut |entry| {
            if let Some(ready) = ready.take() {
                ready(entry);
            }
        })?;
        // A program that was put in the place of this one may be unfit to go on with the mount; this one is not.
        same = life.answered.is_none();
        task.entry = life.entry.map(without_versions).or(task.entry);
        if life.well {
            return Ok(task.entry);
        }
        if task.entry.is_none() {
            return Err(life.failure);
        }
        if held.device().is_none() {
            return Err(Error::Failed(format!("{}; its mount is gone", life.failure)));
        }
        let lasted = life.answered.is_some_and(|since| since.elapsed() >= QUICK);
        quick = if lasted { 0 } else { quick + 1 };
        if quick >= PATIENCE {
            return Err(Error::Failed(format!(
                "{}; {PATIENCE} daemons have ended one after the other, and the mount with them",
                life.failure
            )));
        }
        log::warn!("{}; another one goes on", life.failure);
        std::thread::sleep(Duration::from_millis(200) * quick.saturating_sub(1));
        task.restarts += 1;
    }
}

/// One daemon, from its start to its end.
struct Life {
    /// It ended as it should.
    well: bool,
    /// How it ended, if not.
    failure: Error,
    /// When its view answered.
    answered: Option<Instant>,
    entry: Option<MountEntry>,
}

fn live(
    program: &Path,
    task: &Task,
    held: &mut Held,
    signals: &UnixStream,
    told_to_end: &mut bool,
    ready: &mut dyn FnMut(&MountEntry),
) -> Result<Life> {
    let (ours, theirs) = pass::pair().doing("starting the daemon")?;
    let started = Command::new(program)
        .arg("serve")
        .stdin(theirs)
        .stdout(Stdio::null())
        .current_dir("/")
        .spawn()
        .doing("starting the daemon");
    let mut child = match started {
        Ok(child) => child,
        // It may be possible a little later: no memory, a program that is being replaced.
        Err(failure) if task.entry.is_some() => {
            return Ok(Life { well: false, failure, answered: None, entry: None });
        }
        Err(e) => return Err(e),
    };
    let begin = || -> std::io::Result<()> {
        send(&ours, &Given::Begin(Box::new(task.clone())), None)?;
        for (key, fd) in held.iter() {
            send(&ours, &Given::Kept(*key), Some(fd.as_fd()))?;
        }
        send(&ours, &Given::Go, None)
    };
    if let Err(e) = begin() {
        // One that has ended already is heard of below; one that has not would wait.
        log::error!("telling the daemon what to do: {}", crate::error::words(&e));
        let _ = child.kill();
    }
    let (mut answered, mut entry, mut failure) = (None, None, None);
    loop {
        let waiting = pass::wait(&[ours.as_fd(), signals.as_fd()]).doing("waiting for the daemon")?;
        let [daemon, signal] = waiting[..] else { continue };
        if signal {
            let mut signals = signals;
            let _ = signals.read(&mut [0; 64]);
            *told_to_end = true;
            held.leave_service();
            // One that goes on with a mount listens to that once it serves, and ends the mount as it should.
            if answered.is_some() || task.entry.is_none() {
                process::terminate(child.id());
            }
        }
        if !daemon {
            continue;
        }
        match pass::receive(&ours) {
            Ok(Some((text, fd))) => match (serde_json::from_slice(&text), fd) {
                (Ok(Left::Keep(key)), Some(fd)) => {
                    held.keep(key, fd);
                }
                (Ok(Left::Keep(key)), None) => {
                    held.let_go(key);
                    log::error!("{key:?} cannot be held: too many open files");
                }
                (Ok(Left::LetGo(key)), _) => {
                    held.let_go(key);
                }
                (Ok(Left::Ready(said)), _) => {
                    answered = Some(Instant::now());
                    ready(&said);
                    entry = Some(said);
                    if *told_to_end {
                        // It was told before it listened to that.
                        process::terminate(child.id());
                    }
                }
                (Ok(Left::Failed { kind, message }), _) => failure = Some(Error::of_kind(&kind, message)),
                (Err(e), _) => log::error!("a word of the daemon that is not understood: {e}"),
            },
            Ok(None) => break,
            Err(e) => {
                // Its end is heard of all the same.
                log::error!("hearing the daemon: {}", crate::error::words(&e));
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
    let status = child.wait().doing("waiting for the daemon")?;
    Ok(Life {
        well: status.success(),
        failure: failure.unwrap_or_else(|| {
            Error::Failed(format!("the daemon (process {}) ended with {status}", child.id()))
        }),
        answered,
        entry,
    })
}

/// SIGTERM, SIGINT and SIGHUP, as something to wait for.
fn signals() -> Result<UnixStream> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let doing = "waiting for signals";
    let (read, write) = UnixStream::pair().doing(doing)?;
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::low_level::pipe::register(signal, write.try_clone().doing(doing)?).doing(doing)?;
    }
    Ok(read)
}

/// This program, for the next daemon: what stands at its path then, so that it can be upgraded; unless the path leads into
/// a mount of ours, which may wait for that daemon.
struct Program(PathBuf);

impl Program {
    fn this() -> Result<Program> {
        Ok(Program(std::env::current_exe().doing("finding this program")?))
    }

    fn path(&self, same: bool) -> &Path {
        const SAME: &str = "/proc/self/exe";
        if same {
            return Path::new(SAME);
        }
        let table = mount::table().unwrap_or_default();
        let over =
            table.iter().filter(|l| self.0.starts_with(&l.point)).max_by_key(|l| l.point.as_os_str().len());
        match over {
            Some(line) if !line.fstype.starts_with("fuse") && self.0.exists() => &self.0,
            _ => Path::new(SAME),
        }
    }
}
