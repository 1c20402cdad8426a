//! What a mount's daemon leaves to the next one, through its supervisor (see [`super::supervisor`]).
//!
//! The supervisor understands nothing of it: it holds descriptors under their names and gives all of them to each daemon
//! that it starts. Some of it is memory, in which a daemon notes things at the price of a store.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use super::MountRequest;
use crate::error::{Doing, Error, Result};
use crate::store::Digest;
use crate::store::mounts::MountEntry;
use crate::sys::shared::Shared;
use crate::sys::{notify, pass};
use crate::union::inherit::{self, Keeper, Slots};

/// What is held, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Key {
    /// The connection to the kernel. As long as somebody holds it, the kernel waits for answers.
    Device,
    /// The memory for notes.
    Notes,
    /// The control socket: who connects meanwhile waits.
    Listener,
    /// The lock that says that the mount runs.
    Claim,
    /// The lock on the user layer.
    UserLayer,
    /// A file that is open and has no name, by its node's number.
    Nameless(u64),
}

impl Key {
    /// Its name for a service manager.
    pub fn name(&self) -> String {
        match self {
            Key::Device => "device".into(),
            Key::Notes => "notes".into(),
            Key::Listener => "listener".into(),
            Key::Claim => "claim".into(),
            Key::UserLayer => "user-layer".into(),
            Key::Nameless(id) => format!("nameless-{id}"),
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Key> {
        match name.strip_prefix("nameless-") {
            Some(id) => Some(Key::Nameless(id.parse().ok()?)),
            None => [Key::Device, Key::Notes, Key::Listener, Key::Claim, Key::UserLayer]
                .into_iter()
                .find(|key| key.name() == name),
        }
    }
}

/// What a daemon says to its supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum Left {
    /// Hold the descriptor that comes with this.
    Keep(Key),
    /// It is not needed any more.
    LetGo(Key),
    /// The view answers.
    Ready(MountEntry),
    /// It will not.
    Failed {
        /// See [`Error::kind`].
        kind: String,
        /// For a person.
        message: String,
    },
}

/// What a supervisor says to a daemon.
#[derive(Debug, Serialize, Deserialize)]
pub enum Given {
    /// First: what to mount, and how.
    Begin(Box<Task>),
    /// One for each descriptor that it holds.
    Kept(Key),
    /// Last.
    Go,
}

/// What a daemon is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// The mount to make.
    pub request: MountRequest,
    /// It is made: what the daemon before said of it.
    pub entry: Option<MountEntry>,
    /// How many daemons there were before.
    pub restarts: u32,
    /// The supervisor's process.
    pub supervisor: u32,
    /// Lines of the log begin with the time.
    pub log_with_time: bool,
}

/// Sends a word, and a descriptor with it.
pub fn send(to: impl AsFd, word: &impl Serialize, fd: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
    pass::send(to, &serde_json::to_vec(word).unwrap_or_default(), fd)
}

/// A daemon's side of its supervisor.
#[derive(Debug)]
pub struct Estate {
    socket: OwnedFd,
    /// What it is to do.
    pub task: Task,
    kept: parking_lot::Mutex<HashMap<Key, OwnedFd>>,
    notes: OnceLock<Shared>,
    /// What the supervisor was to let go while it did not listen. No request waits for that one.
    late: parking_lot::Mutex<Vec<Key>>,
    /// It was said that it does not hear.
    deaf: AtomicBool,
    /// It is not there any more.
    alone: AtomicBool,
}

/// Places of the notes, behind those of the view.
const HELLO: usize = 0;
const ANSWER: usize = 50;
const TOLD: usize = 100;
const PLACE: usize = 120;
/// The longest greeting, in words without its length.
const GREETING: usize = 48;
/// Words of a version's note: its digest and the generation.
const VERSION: usize = Digest::LEN / 8 + 1;

impl Estate {
    /// Hears from the supervisor at the other end of a socket.
    pub fn receive(socket: OwnedFd) -> Result<Estate> {
        let doing = "hearing from the supervisor";
        let (mut task, mut kept) = (None, HashMap::new());
        loop {
            let Some((text, fd)) = pass::receive(&socket).doing(doing)? else {
                return Err(Error::Failed("the supervisor has ended".into()));
            };
            let word = serde_json::from_slice(&text).map_err(|e| {
                Error::Failed(format!("a word of the supervisor that is not understood: {e}"))
            })?;
            match (word, fd) {
                (Given::Begin(given), _) => task = Some(*given),
                (Given::Kept(key), Some(fd)) => {
                    kept.insert(key, fd);
                }
                (Given::Kept(key), None) => log::error!("{key:?} of the daemon before has been lost"),
                (Given::Go, _) => break,
            }
        }
        let task = task.ok_or_else(|| Error::Failed("the supervisor gave no task".into()))?;
        Ok(Estate {
            socket,
            task,
            kept: parking_lot::Mutex::new(kept),
            notes: OnceLock::new(),
            late: Default::default(),
            deaf: AtomicBool::new(false),
            alone: AtomicBool::new(false),
        })
    }

    /// What the daemon before said of the mount, where there was one.
    pub fn inherited(&self) -> Option<&MountEntry> {
        self.task.entry.as_ref()
    }

    /// Takes what the daemon before had left.
    pub fn take(&self, key: Key) -> Result<OwnedFd> {
        let missing = || Error::Failed(format!("{key:?} of the daemon before is not there"));
        self.kept.lock().remove(&key).ok_or_else(missing)
    }

    /// Files without a name, by their nodes' numbers.
    pub fn take_nameless(&self) -> HashMap<u64, OwnedFd> {
        let nameless = |key: &Key| if let Key::Nameless(id) = key { Some(*id) } else { None };
        let mut kept = self.kept.lock();
        kept.extract_if(|key, _| nameless(key).is_some())
            .filter_map(|(key, fd)| Some((nameless(&key)?, fd)))
            .collect()
    }

    /// Leaves something to the next daemon. A supervisor that has ended holds nothing: then there is no next one.
    pub fn leave(&self, key: Key, fd: impl AsFd) {
        self.say(&Left::Keep(key), Some(fd.as_fd()));
    }

    /// Says something.
    pub fn say(&self, word: &Left, fd: Option<BorrowedFd<'_>>) {
        if let Err(e) = send(&self.socket, word, fd) {
            log::warn!("the supervisor does not hear: {}", crate::error::words(&e));
        }
    }

    /// Leaves a file without a name, and `None` lets it go; in a request, so without waiting. One that the supervisor does
    /// not hear of ends with this daemon.
    fn leave_nameless(&self, id: u64, file: Option<BorrowedFd<'_>>) {
        let key = Key::Nameless(id);
        let mut late = self.late.lock();
        if self.alone.load(Ordering::Relaxed) {
            return;
        }
        let now =
            |word: &Left, fd| pass::send_now(&self.socket, &serde_json::to_vec(word).unwrap_or_default(), fd);
        let mut said = Ok(());
        while let Some(last) = late.last().copied() {
            said = now(&Left::LetGo(last), None);
            if said.is_err() {
                break;
            }
            late.pop();
        }
        if said.is_ok() {
            said = match file {
                Some(file) => now(&Left::Keep(key), Some(file)),
                None => now(&Left::LetGo(key), None),
            };
        }
        match said {
            Ok(()) => self.deaf.store(false, Ordering::Relaxed),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                if file.is_none() {
                    late.push(key);
                }
                if !self.deaf.swap(true, Ordering::Relaxed) {
                    log::warn!("the supervisor does not hear");
                }
            }
            Err(e) => {
                log::warn!(
                    "the supervisor has ended, and no daemon follows this one: {}",
                    crate::error::words(&e)
                );
                self.alone.store(true, Ordering::Relaxed);
                *late = Vec::new();
            }
        }
    }

    /// The memory: what the daemon before left, or new. What the view notes is in it too.
    pub fn slots(&self) -> Result<Slots> {
        let doing = "making the memory for a next daemon";
        let memory = match self.inherited() {
            Some(_) => Shared::of(self.take(Key::Notes)?).doing(doing)?,
            None => Shared::new(inherit::WORDS).doing(doing)?,
        };
        let same = memory.as_fd().try_clone_to_owned().doing(doing)?;
        if self.inherited().is_none() {
            self.leave(Key::Notes, &same);
        }
        let _ = self.notes.set(Shared::of(same).doing(doing)?);
        Slots::new(memory).ok_or_else(|| {
            Error::Failed(
                "what the daemon before has noted is noted in another way than this program does".into(),
            )
        })
    }

    fn words(&self, at: usize, count: usize) -> &[AtomicU64] {
        let at = inherit::FREE + at;
        let words = self.notes.get().map(|n| n.words().get(at..at + count));
        words.flatten().unwrap_or_default()
    }

    fn note_bytes(&self, at: usize, bytes: &[u8]) {
        let mut words = self.words(at, GREETING + 1).iter();
        if let Some(length) = words.next() {
            length.store(bytes.len() as u64, Ordering::Release);
        }
        for (word, piece) in words.zip(bytes.chunks(8)) {
            let mut number = [0; 8];
            number.iter_mut().zip(piece).for_each(|(to, from)| *to = *from);
            word.store(u64::from_ne_bytes(number), Ordering::Release);
        }
    }

    fn noted_bytes(&self, at: usize) -> Vec<u8> {
        let mut words = self.words(at, GREETING + 1).iter();
        let length = words.next().map_or(0, |w| w.load(Ordering::Acquire)) as usize;
        let mut bytes: Vec<u8> = words.flat_map(|w| w.load(Ordering::Acquire).to_ne_bytes()).collect();
        bytes.truncate(length);
        bytes
    }

    /// Notes what the kernel said first, and what it was answered.
    pub fn note_greeting(&self, hello: &[u8], answer: &[u8]) -> Result<()> {
        if hello.len().max(answer.len()) > GREETING * 8 {
            return Err(Error::Failed("the kernel's greeting is longer than any that is known".into()));
        }
        self.note_bytes(HELLO, hello);
        self.note_bytes(ANSWER, answer);
        Ok(())
    }

    /// What the kernel said first, and what it was answered.
    pub fn greeting(&self) -> (Vec<u8>, Vec<u8>) {
        (self.noted_bytes(HELLO), self.noted_bytes(ANSWER))
    }

    /// Whether the kernel sends again what it was not answered, by the protocol version of its greeting. (For tests, no
    /// with `REROOT_RESEND=no`.)
    pub fn kernel_sends_again(&self) -> bool {
        let (hello, _) = self.greeting();
        // `struct fuse_in_header` has 40 bytes; the versions follow.
        let number = |at: usize| Some(u32::from_ne_bytes(*hello.get(at..)?.first_chunk()?));
        let version = number(40).zip(number(44));
        version.is_some_and(|v| v >= notify::SENDS_AGAIN)
            && std::env::var("REROOT_RESEND").as_deref() != Ok("no")
    }

    /// Notes which file system the mount is, by its device number: so it is told from others at its mount point.
    pub fn note_device(&self, (major, minor): (u32, u32)) {
        if let Some(word) = self.words(PLACE, 1).first() {
            word.store(u64::from(major) << 32 | u64::from(minor), Ordering::Release);
        }
    }

    /// What was noted of that.
    pub fn device(&self) -> Option<(u32, u32)> {
        device_of(self.words(PLACE, 1).first()?)
    }

    /// Notes that the kernel knows nothing that is not so in this version, which the view shows as this generation.
    pub fn note_told(&self, version: &Digest, generation: u64) {
        let [which, rest @ ..] = self.words(TOLD, 1 + 2 * VERSION) else { return };
        // Beside the one that holds; then that one holds.
        let next = 1 - which.load(Ordering::Acquire).min(1);
        let Some([number, digest @ ..]) = rest.get(next as usize * VERSION..).and_then(|r| r.get(..VERSION))
        else {
            return;
        };
        number.store(generation, Ordering::Release);
        for (word, piece) in digest.iter().zip(version.0.as_chunks().0) {
            word.store(u64::from_ne_bytes(*piece), Ordering::Release);
        }
        which.store(next, Ordering::Release);
    }

    /// What was noted last. [`Estate::slots`] comes before.
    pub fn told(&self) -> Option<(Digest, u64)> {
        let [which, rest @ ..] = self.words(TOLD, 1 + 2 * VERSION) else { return None };
        let at = which.load(Ordering::Acquire).min(1) as usize * VERSION;
        let [number, words @ ..] = rest.get(at..)?.get(..VERSION)? else { return None };
        let mut digest = Digest([0; Digest::LEN]);
        for (piece, word) in digest.0.as_chunks_mut().0.iter_mut().zip(words) {
            *piece = word.load(Ordering::Acquire).to_ne_bytes();
        }
        Some((digest, number.load(Ordering::Acquire)))
    }
}

fn device_of(word: &AtomicU64) -> Option<(u32, u32)> {
    let word = word.load(Ordering::Acquire);
    (word != 0).then_some(((word >> 32) as u32, word as u32))
}

/// What a daemon has noted in such memory of the mount's device number. Where another program laid the memory out this may be
/// any number, which no mount at its mount point has.
pub fn device_noted(notes: &OwnedFd) -> Option<(u32, u32)> {
    let memory = Shared::of(notes.try_clone().ok()?).ok()?;
    device_of(memory.words().get(inherit::FREE + PLACE)?)
}

/// Holds files without a name, through the supervisor.
#[derive(Debug)]
pub struct Holding(pub Arc<Estate>);

impl Keeper for Holding {
    fn keep(&self, id: u64, file: BorrowedFd<'_>) {
        self.0.leave_nameless(id, Some(file));
    }

    fn let_go(&self, id: u64) {
        self.0.leave_nameless(id, None);
    }
}
