//! What is mounted from a store now.
//!
//! Each running mount holds an exclusive lock on `mounts/<id>.lock`, so that nobody needs to be asked whether
//! it lives, and describes itself in `mounts/<id>.json`: among other things the versions whose objects it
//! reads, also those of older generations that an open handle still needs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::{Digest, Store, to_json};
use crate::error::{Doing, Result};
use crate::sys::lock::{self, Lock, Share};
use crate::sys::publish::publish_for_now;

/// What a mount says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountEntry {
    /// The desktop's name; for an `inspect` mount an id of its own.
    pub id: String,
    /// Whether it is a desktop's.
    pub desktop: bool,
    /// Where it is attached.
    pub mountpoint: PathBuf,
    /// The daemon's process.
    pub pid: u32,
    /// Where the daemon listens.
    pub socket: PathBuf,
    /// Versions in use.
    pub versions: BTreeSet<Digest>,
    /// The process that starts another daemon when this one ends; none where nobody does.
    #[serde(default)]
    pub supervisor: Option<u32>,
    /// How often it has done so.
    #[serde(default)]
    pub restarts: u32,
}

impl MountEntry {
    /// The process that is there as long as the mount is.
    pub fn lasting_pid(&self) -> u32 {
        self.supervisor.unwrap_or(self.pid)
    }
}

/// The right to be the mount of that id, held while it runs.
#[derive(Debug)]
pub struct MountClaim {
    store: Store,
    id: String,
    described: AtomicBool,
    lock: Lock,
    /// Another process made the mount.
    resumed: bool,
}

impl MountClaim {
    /// Writes or replaces what the mount says of itself.
    pub fn describe(&self, entry: &MountEntry) -> Result<()> {
        let path = self.store.path("mounts").join(format!("{}.json", self.id));
        self.described.store(true, Ordering::Relaxed);
        publish_for_now(&path, &to_json(entry)).at("writing", path)
    }
}

impl MountClaim {
    /// The lock, for whoever goes on with the mount when this process ends.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// The mount has ended: removes what it said of itself. The claim is held until it is dropped.
    pub fn withdraw(&self) {
        let _ = fs::remove_file(self.store.path("mounts").join(format!("{}.json", self.id)));
    }
}

impl Drop for MountClaim {
    fn drop(&mut self) {
        // What a mount that was killed said of itself is still needed, by the next one: it clears what is left.
        // One that goes on is there whatever becomes of this process.
        if self.described.load(Ordering::Relaxed) && !self.resumed {
            self.withdraw();
        }
    }
}

impl Store {
    /// Claims the mount of that id; `None` if it runs already.
    pub fn claim_mount(&self, id: &str) -> Result<Option<MountClaim>> {
        let path = self.path("mounts").join(format!("{id}.lock"));
        // Somebody who only looks whether the mount runs holds the lock for a moment.
        for _ in 0..20 {
            if let Some(lock) = lock::attempt(&path, Share::Exclusive).at("locking", &path)? {
                return Ok(Some(MountClaim {
                    store: self.clone(),
                    id: id.into(),
                    described: AtomicBool::new(false),
                    lock,
                    resumed: false,
                }));
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Ok(None)
    }

    /// The claim of a mount that goes on: its process has ended, its lock was held on.
    pub fn resume_mount(&self, id: &str, lock: Lock) -> MountClaim {
        MountClaim {
            store: self.clone(),
            id: id.into(),
            described: AtomicBool::new(false),
            lock,
            resumed: true,
        }
    }

    /// Whether a mount of that id runs, begins or ends.
    pub fn mount_runs(&self, id: &str) -> Result<bool> {
        let path = self.path("mounts").join(format!("{id}.lock"));
        Ok(path.exists() && lock::attempt(&path, Share::Shared).at("locking", &path)?.is_none())
    }

    /// Removes what a mount that does not run any more has left; the lock's file only where the id never comes
    /// back, as those of `inspect` do not.
    pub fn forget_mount(&self, id: &str) {
        let path = self.path("mounts").join(format!("{id}.lock"));
        if !path.exists() {
            return;
        }
        if let Ok(Some(_held)) = lock::attempt(&path, Share::Exclusive) {
            let said = path.with_file_name(format!("{id}.json"));
            let words = fs::read(&said).ok().and_then(|b| serde_json::from_slice::<MountEntry>(&b).ok());
            if let Some(socket) = words.map(|w| w.socket)
                && fs::symlink_metadata(&socket).is_ok_and(|m| m.file_type().is_socket())
            {
                let _ = fs::remove_file(socket);
            }
            let _ = fs::remove_file(said);
            if id.starts_with('.') {
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// What a mount said of itself that stood at that place and did not take its leave.
    pub fn last_words_at(&self, point: &Path) -> Option<MountEntry> {
        let said = fs::read_dir(self.path("mounts")).ok()?.flatten().filter_map(|entry| {
            let json = entry.path().extension().is_some_and(|e| e == "json");
            json.then(|| fs::read(entry.path()).ok()).flatten()
        });
        said.filter_map(|bytes| serde_json::from_slice::<MountEntry>(&bytes).ok())
            .find(|e| e.mountpoint == point)
    }

    /// What a mount of that id says of itself, if it runs.
    pub fn mounted(&self, id: &str) -> Result<Option<MountEntry>> {
        if !self.mount_runs(id)? {
            return Ok(None);
        }
        let dir = self.path("mounts");
        match fs::read(dir.join(format!("{id}.json"))) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).at("reading", dir),
        }
    }

    /// Every running mount.
    pub fn mounts(&self) -> Result<Vec<MountEntry>> {
        let dir = self.path("mounts");
        let mut out = Vec::new();
        for entry in fs::read_dir(&dir).at("reading", &dir)?.flatten() {
            let name = entry.file_name();
            if let Some(id) = name.to_str().and_then(|n| n.strip_suffix(".json"))
                && let Some(mounted) = self.mounted(id)?
            {
                out.push(mounted);
            }
        }
        out.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(out)
    }
}
