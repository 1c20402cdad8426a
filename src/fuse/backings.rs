//! The files that are registered with the kernel, whose bytes go past the daemon: one for each inode that has handles of
//! that kind. Whatever handle of the inode is opened next must use the same one.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use fuser::BackingId;
use parking_lot::Mutex;

use crate::sys::notify;
use crate::union::data::Opened;
use crate::union::{Answer, View};

/// Registered files, by inode.
#[derive(Debug, Default)]
pub struct Backings {
    registered: Mutex<HashMap<u64, Backing>>,
    /// The connection to the kernel, for what fuser does not offer; there once the session is.
    device: OnceLock<OwnedFd>,
}

/// A file that is registered with the kernel.
#[derive(Debug)]
enum Backing {
    /// By this daemon: its number, and what ends the registration.
    Ours(u32, Arc<BackingId>),
    /// By the one before.
    Inherited(u32),
}

impl Backings {
    pub(super) fn connect(&self, device: OwnedFd) {
        let _ = self.device.set(device);
    }

    pub(super) fn inherit(&self, registered: Vec<(u64, u32)>) {
        let registered = registered.into_iter().map(|(id, number)| (id, Backing::Inherited(number)));
        self.registered.lock().extend(registered);
    }

    /// The registered file of a handle's inode, registering it if it is the first. `None`: the kernel cannot.
    /// `wrap` makes fuser's value of its number.
    pub(super) fn of<R>(
        &self,
        view: &View,
        opened: &Opened,
        reply: &R,
        wrap: notify::Wrap<R, BackingId>,
    ) -> Answer<Option<(u32, Arc<BackingId>)>> {
        let mut backings = self.registered.lock();
        let number = match backings.get(&opened.id) {
            Some(Backing::Ours(number, backing)) => return Ok(Some((*number, backing.clone()))),
            Some(Backing::Inherited(number)) => *number,
            None => {
                let Some(device) = self.device.get() else { return Ok(None) };
                match BackingId::create_raw(device, view.backing(opened.fh)?) {
                    Ok(number) => number,
                    Err(e) => {
                        log::warn!(
                            "passthrough is not available here ({}); the daemon reads and writes",
                            crate::error::words(&e)
                        );
                        return Ok(None);
                    }
                }
            }
        };
        let backing = Arc::new(notify::take_over(wrap, reply, number));
        backings.insert(opened.id, Backing::Ours(number, backing.clone()));
        Ok(Some((number, backing)))
    }

    /// Closes a handle, and its inode's registration with the last one.
    pub(super) fn close(&self, view: &View, fh: u64) -> Answer<()> {
        if let Some(id) = view.release(fh)? {
            let dropped = {
                let mut backings = self.registered.lock();
                // Opened again meanwhile: the inode keeps its registration.
                if view.is_passing(id) { None } else { backings.remove(&id) }
            };
            if let (Some(Backing::Inherited(number)), Some(device)) = (&dropped, self.device.get())
                && let Err(e) = notify::close_backing(device, *number)
            {
                log::warn!("ending what an earlier daemon registered: {}", crate::error::words(&e));
            }
            drop(dropped);
        }
        Ok(())
    }
}
