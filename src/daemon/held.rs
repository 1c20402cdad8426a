//! The descriptors that a supervisor holds for the next daemon, and through systemd for a next supervisor.
//!
//! A mount ends when nobody holds them any more. So a supervisor that ends a mount, or is told to end, or finds that the mount
//! has ended, takes them back from the service manager too; only where it is killed itself does that one still have them.
//!
//! The service manager is told by a thread of its own: it may be busy, or wait for this very mount. Files without a name,
//! of which programs make many for a moment, are given to it when they have lasted a little.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::estate::Key;
use crate::error::{Doing, Result};
use crate::sys::{lock, mount, service};

/// A file without a name that is closed sooner is not given to the service manager,
const LASTS: Duration = Duration::from_secs(1);
/// nor are more of them than that: it holds as many as its `FileDescriptorStoreMax=` says.
const MOST: usize = 2000;
/// How long the end of a mount waits for the service manager to hear of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Descriptors by their names.
#[derive(Debug, Default)]
pub struct Held {
    fds: HashMap<Key, OwnedFd>,
    manager: Option<Manager>,
}

impl Held {
    /// Holds nothing.
    pub fn nothing() -> Held {
        Held::default()
    }

    /// For the main process of a service: holds what its supervisor held that was killed, and tells the service manager of
    /// all else.
    pub fn of_service() -> Result<Held> {
        let doing = "looking at what the service manager holds";
        let mut fds = HashMap::new();
        for (name, fd) in service::held().doing(doing)? {
            match Key::named(&name) {
                Some(key) => drop(fds.insert(key, fd)),
                None => service::let_go(&name).doing(doing)?,
            }
        }
        let manager = Manager::start(fds.keys().copied().collect())?;
        Ok(Held { fds, manager: Some(manager) })
    }

    /// The same, where what the service manager held is given up.
    pub fn of_service_anew() -> Result<Held> {
        Ok(Held { fds: HashMap::new(), manager: Some(Manager::start(HashSet::new())?) })
    }

    /// Whether a mount is held that a next daemon can go on with.
    pub fn has_mount(&self) -> bool {
        let whole = [Key::Notes, Key::Listener, Key::Claim].iter().all(|key| self.fds.contains_key(key));
        whole && self.device().is_some()
    }

    /// The connection to the kernel, if the mount is there.
    pub fn device(&self) -> Option<&OwnedFd> {
        self.get(Key::Device).filter(|device| !mount::has_ended(device))
    }

    /// One of them.
    pub fn get(&self, key: Key) -> Option<&OwnedFd> {
        self.fds.get(&key)
    }

    /// Holds one.
    pub fn keep(&mut self, key: Key, fd: OwnedFd) {
        if let (Some(manager), Ok(same)) = (&self.manager, fd.try_clone()) {
            manager.tell(Word::Keep(key, same));
        }
        self.fds.insert(key, fd);
    }

    /// Holds one no longer.
    pub fn let_go(&mut self, key: Key) {
        if self.fds.remove(&key).is_some()
            && let Some(manager) = &self.manager
        {
            manager.tell(Word::LetGo(key));
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &OwnedFd)> {
        self.fds.iter()
    }

    /// The service manager is not to hold them any more: the next process of the service does not go on with the mount.
    pub fn leave_service(&mut self) {
        if let Some(manager) = self.manager.take() {
            manager.end(self.fds.keys().copied());
        }
    }

    /// Ends what they are for. The service manager lets go a little later: locks end at once.
    pub fn drop_all(&mut self) {
        self.leave_service();
        for (key, fd) in self.fds.drain() {
            if matches!(key, Key::Claim | Key::UserLayer) {
                let _ = lock::release(&fd);
            }
        }
    }
}

/// What the service manager is told.
#[derive(Debug)]
enum Word {
    Keep(Key, OwnedFd),
    LetGo(Key),
}

/// The way to the service manager.
#[derive(Debug)]
struct Manager {
    words: Sender<Word>,
    /// Ends when all is said.
    said: Receiver<()>,
}

impl Manager {
    /// `stored` is what it has.
    fn start(stored: HashSet<Key>) -> Result<Manager> {
        let (words, hear) = channel();
        let (end, said) = channel();
        let speak = move || {
            Speaker { stored, young: HashMap::new(), order: VecDeque::new() }.speak(&hear);
            drop(end);
        };
        std::thread::Builder::new().name("service".into()).spawn(speak).doing("starting")?;
        Ok(Manager { words, said })
    }

    fn tell(&self, word: Word) {
        let _ = self.words.send(word);
    }

    fn end(self, keys: impl Iterator<Item = Key>) {
        keys.for_each(|key| self.tell(Word::LetGo(key)));
        drop(self.words);
        if self.said.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            log::warn!("the service manager does not hear that the mount ends");
        }
    }
}

struct Speaker {
    stored: HashSet<Key>,
    /// Files without a name that may be closed in a moment, and since when.
    young: HashMap<Key, (Instant, OwnedFd)>,
    order: VecDeque<(Instant, Key)>,
}

impl Speaker {
    fn speak(mut self, hear: &Receiver<Word>) {
        loop {
            let due = self.order.front().map(|(since, _)| LASTS.saturating_sub(since.elapsed()));
            match hear.recv_timeout(due.unwrap_or(Duration::from_secs(3600))) {
                Ok(Word::Keep(key @ Key::Nameless(_), fd)) => {
                    // As many at once are no files that last.
                    if self.young.len() < MOST {
                        let now = Instant::now();
                        self.young.insert(key, (now, fd));
                        self.order.push_back((now, key));
                    }
                }
                Ok(Word::Keep(key, fd)) => self.store(key, &fd),
                Ok(Word::LetGo(key)) => {
                    self.young.remove(&key);
                    self.let_go(key);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Some((since, key)) = self.order.front().copied().filter(|(s, _)| s.elapsed() >= LASTS) {
                self.order.pop_front();
                // Another one of that number has come since, or none.
                if self.young.get(&key).is_none_or(|(began, _)| *began != since) {
                    continue;
                }
                if let Some((_, fd)) = self.young.remove(&key)
                    && self.stored.len() < MOST
                {
                    self.store(key, &fd);
                }
            }
        }
    }

    fn store(&mut self, key: Key, fd: &OwnedFd) {
        self.let_go(key);
        if let Err(e) = service::hold(&key.name(), fd.as_fd()) {
            log::warn!("the service manager does not hear: {}", crate::error::words(&e));
        }
        self.stored.insert(key);
    }

    fn let_go(&mut self, key: Key) {
        if self.stored.remove(&key)
            && let Err(e) = service::let_go(&key.name())
        {
            log::warn!("the service manager does not hear: {}", crate::error::words(&e));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_its_name() {
        let keys = [Key::Device, Key::Notes, Key::Listener, Key::Claim, Key::UserLayer, Key::Nameless(77)];
        assert!(keys.iter().all(|key| Key::named(&key.name()) == Some(*key)));
        assert!(["", "nameless-", "nameless-x", "unknown"].iter().all(|name| Key::named(name).is_none()));
    }
}
