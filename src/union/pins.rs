//! The ledger of pins, as a mount keeps it.
//!
//! Promise: whatever of the user layer is on the disk, the objects that its marks need are kept from collections, by the
//! ledger or because the desktop runs on their version.
//!
//! Waiting for the disk would cost a rename more than all the rest of it. The version that a desktop runs on is kept
//! anyway. So a pin on that one is written into the ledger before the mark that needs it, and waited for later:
//! with the next sync of the user layer, and before a swap writes what is pending. A killed daemon has then written
//! everything. A power cut may lose lines: that the ledger [`is open`](Desktop::ledger_is_open) is on the disk from before
//! the first pin until after the last sync, and whoever finds it so looks for marks in the user layer, and pins the
//! version if there is one. Until somebody does, the version is the one that the desktop runs on.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};

use parking_lot::Mutex;

use super::marks::Namespace;
use crate::error::Result;
use crate::store::Digest;
use crate::store::desktops::Desktop;
use crate::sys::fs::{self as sys, Open};

/// See the module.
#[derive(Debug, Default)]
pub struct Pins {
    /// None over plain directories, where nothing is pinned.
    desktop: Option<Desktop>,
    known: Mutex<Known>,
    /// Held while somebody waits for the disk; before `known`, and by no request.
    syncing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    /// Versions that the ledger names.
    named: HashSet<Digest>,
    /// The version that the desktop runs on, while no swap is about to change that.
    current: Option<Digest>,
    /// Not all of it is on the disk yet.
    behind: bool,
}

impl Pins {
    /// Completes a desktop's ledger and opens it for the pins of a mount on the version `current`. `top` is the upper
    /// directory.
    pub fn open(desktop: &Desktop, current: Digest, top: impl AsFd, marks: Namespace) -> Result<Pins> {
        complete(desktop, &current, top, marks)?;
        desktop.open_ledger()?;
        let named = desktop.pins()?.into_iter().collect();
        let known = Known { named, current: Some(current), behind: false };
        Ok(Pins { desktop: Some(desktop.clone()), known: Mutex::new(known), syncing: Mutex::default() })
    }

    /// Notes that the user layer needs a version, before the mark that does is made.
    pub fn add(&self, version: &Digest) -> Result<()> {
        let Some(desktop) = &self.desktop else { return Ok(()) };
        {
            let mut known = self.known.lock();
            if known.named.contains(version) {
                return Ok(());
            }
            if known.current == Some(*version) {
                // Under the lock: `leave_current` waits for the disk after this.
                desktop.note_pin(version)?;
                known.named.insert(*version);
                known.behind = true;
                return Ok(());
            }
        }
        desktop.note_pin(version)?;
        desktop.sync_pins()?;
        self.known.lock().named.insert(*version);
        Ok(())
    }

    /// Waits until the ledger is on the disk.
    pub fn sync(&self) -> Result<()> {
        let Some(desktop) = &self.desktop else { return Ok(()) };
        let _one = self.syncing.lock();
        if !std::mem::take(&mut self.known.lock().behind) {
            return Ok(());
        }
        desktop.sync_pins().inspect_err(|_| self.known.lock().behind = true)
    }

    /// Another version is about to be what the desktop runs on: every pin is on the disk when this returns, and from now
    /// on before its mark is made.
    pub fn leave_current(&self) -> Result<()> {
        self.known.lock().current = None;
        self.sync()
    }

    /// The desktop runs on this version, on the disk too.
    pub fn enter(&self, current: Digest) {
        self.known.lock().current = Some(current);
    }

    /// Nothing is pinned any more, and the user layer is on the disk.
    pub fn close(&self) -> Result<()> {
        let Some(desktop) = &self.desktop else { return Ok(()) };
        self.leave_current()?;
        desktop.close_ledger()
    }
}

/// Completes the ledger of a desktop that no mount has, and that runs on the version `current` so far. `top` is the upper
/// directory.
pub fn complete(desktop: &Desktop, current: &Digest, top: impl AsFd, marks: Namespace) -> Result<()> {
    if !desktop.ledger_is_open() {
        return Ok(());
    }
    if !desktop.pins()?.contains(current) && needs_objects(top, marks) {
        desktop.note_pin(current)?;
    }
    // What a killed daemon wrote need not be on the disk either.
    desktop.sync_pins()
}

/// Whether something in a user layer has a mark that names an object or a version. What cannot be read may.
fn needs_objects(top: impl AsFd, marks: Namespace) -> bool {
    let mut found = false;
    let look = |found: &mut bool, dir: &OwnedFd, name: &[u8], format: u32| {
        if *found || !matches!(format, libc::S_IFREG | libc::S_IFDIR) {
            return Ok(());
        }
        let fd = sys::open_at(dir, name, Open::Path)?;
        *found = marks.read(&fd).map_or(true, |m| m.pin.is_some() || m.partial.is_some());
        Ok(())
    };
    let walked = top
        .as_fd()
        .try_clone_to_owned()
        .and_then(|top| sys::walk(top, &mut |dir, name, format| look(&mut found, dir, name, format)));
    found || walked.is_err()
}
