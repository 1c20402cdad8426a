//! The descriptors that a supervisor holds for the next daemon, and through systemd for a next supervisor.
//!
//! A mount ends when nobody holds them any more. So a supervisor that ends a mount, or finds that it has ended, takes them
//! back from the service manager too; only where it is killed itself does that one still have them.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use super::estate::Key;
use crate::sys::{lock, mount, service};

/// Descriptors by their names.
#[derive(Debug, Default)]
pub struct Held {
    fds: HashMap<Key, OwnedFd>,
    /// This process is a service's main one.
    service: bool,
}

impl Held {
    /// Holds nothing, or what a supervisor of this service held that was killed.
    pub fn new(service: bool) -> Held {
        let mut held = Held { fds: HashMap::new(), service };
        if service {
            let before = service::held().unwrap_or_else(|e| {
                log::warn!("what the service manager holds: {}", crate::error::words(&e));
                Vec::new()
            });
            for (name, fd) in before {
                match Key::named(&name) {
                    Some(key) => {
                        held.fds.insert(key, fd);
                    }
                    None => held.tell(service::let_go(&name)),
                }
            }
        }
        held
    }

    fn tell(&self, said: std::io::Result<()>) {
        if let Err(e) = said {
            log::warn!("the service manager does not hear: {}", crate::error::words(&e));
        }
    }

    /// Whether a mount is held that a next daemon can go on with. Otherwise nothing is held any more.
    pub fn has_mount(&mut self) -> bool {
        let whole = [Key::Notes, Key::Listener, Key::Claim].iter().all(|key| self.fds.contains_key(key));
        let there = whole && self.device().is_some();
        if !there {
            self.drop_all();
        }
        there
    }

    /// The connection to the kernel, if the mount is there.
    pub fn device(&self) -> Option<&OwnedFd> {
        self.fds.get(&Key::Device).filter(|device| !mount::has_ended(device))
    }

    /// Holds one.
    pub fn keep(&mut self, key: Key, fd: OwnedFd) {
        if self.service {
            if self.fds.contains_key(&key) {
                self.tell(service::let_go(&key.name()));
            }
            self.tell(service::hold(&key.name(), fd.as_fd()));
        }
        self.fds.insert(key, fd);
    }

    /// Holds one no longer.
    pub fn let_go(&mut self, key: Key) {
        if self.fds.remove(&key).is_some() && self.service {
            self.tell(service::let_go(&key.name()));
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &OwnedFd)> {
        self.fds.iter()
    }

    /// Ends what they are for. The service manager lets go a little later: locks end at once.
    pub fn drop_all(&mut self) {
        for (key, fd) in std::mem::take(&mut self.fds) {
            if matches!(key, Key::Claim | Key::UserLayer) {
                let _ = lock::release(&fd);
            }
            if self.service {
                self.tell(service::let_go(&key.name()));
            }
        }
    }
}
