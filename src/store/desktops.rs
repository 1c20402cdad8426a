//! Desktops: a user layer, the version it runs on, and its policy.
//!
//! ```text
//! desktops/<name>/
//!   desktop.toml   policy: where the user layer lies, labels; written by `create`
//!   state.json     image, current, previous, pending, generation; every change replaces it whole
//!   pins           versions whose objects the user layer needs; append-only
//!   pins-open      there while `pins` may not name the current version yet, which the user layer may need
//!   lock           held while the state changes
//!   user/          the user layer, unless `create --user-layer` put it elsewhere
//!   work/          beside it: files on their way, the index of numbers
//!   set-aside/     what a command took out of the user layer
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Digest, Store, check_name, now_text, to_json, valid_name};
use crate::error::{Doing, Error, Result};
use crate::sys::lock::{self, Lock, Share};
use crate::sys::publish::{publish, temporary_name};

/// `desktop.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// When it was made (RFC 3339, UTC).
    pub created: String,
    /// Directory that holds `user/` and `work/`; the desktop's own directory where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_layer: Option<PathBuf>,
    /// Words to choose desktops by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A version and the tag by which it was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The version.
    pub version: Digest,
    /// The tag, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The image that the desktop follows.
    pub image: String,
    /// What it runs on.
    pub current: Choice,
    /// What it ran on before the last swap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Choice>,
    /// The target of a swap that has begun: a mount comes up on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Choice>,
    /// The number of the last swap.
    pub generation: u64,
}

impl State {
    /// Finishes a swap that was begun: the pending version becomes current. Whether there was one.
    pub fn complete_pending(&mut self) -> bool {
        let Some(target) = self.pending.take() else { return false };
        self.previous = Some(std::mem::replace(&mut self.current, target));
        self.generation += 1;
        true
    }
}

/// There while the ledger of pins is open.
pub(super) const OPEN_LEDGER: &str = "pins-open";

/// A desktop in a store.
#[derive(Clone, Debug)]
pub struct Desktop {
    /// Its name.
    pub name: String,
    dir: PathBuf,
}

impl Desktop {
    /// Its directory in the store.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads its policy.
    pub fn policy(&self) -> Result<Policy> {
        let path = self.dir.join("desktop.toml");
        let text = fs::read_to_string(&path).at("reading", &path)?;
        toml::from_str(&text).map_err(|e| Error::Damaged(format!("{} cannot be read: {e}", path.display())))
    }

    /// Reads its state.
    pub fn state(&self) -> Result<State> {
        let path = self.dir.join("state.json");
        let bytes = fs::read(&path).at("reading", &path)?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::Damaged(format!("{} cannot be read: {e}", path.display())))
    }

    /// Replaces its state. The caller holds [`Desktop::lock`].
    pub fn write_state(&self, state: &State, _held: &Lock) -> Result<()> {
        let path = self.dir.join("state.json");
        publish(&path, &to_json(state)).at("writing", path)
    }

    /// Held while the state changes; waits for another holder.
    pub fn lock(&self) -> Result<Lock> {
        lock::wait(&self.dir.join("lock"), Share::Exclusive).at("locking", self.dir.join("lock"))
    }

    /// As [`Desktop::lock`], without waiting; `None` while somebody else holds it.
    pub fn lock_if_free(&self) -> Result<Option<Lock>> {
        let path = self.dir.join("lock");
        lock::attempt(&path, Share::Exclusive).at("locking", path)
    }

    /// Held while a virtual machine runs on it; `None` if one does already. Taken before every other lock.
    pub fn claim_machine(&self) -> Result<Option<Lock>> {
        let path = self.dir.join("vm.lock");
        lock::attempt(&path, Share::Exclusive).at("locking", path)
    }

    /// The user layer: the overlay format's upper directory.
    pub fn user_layer(&self) -> Result<PathBuf> {
        Ok(self.layer_home()?.join("user"))
    }

    /// The work directory, in the same file system as the user layer.
    pub fn work_dir(&self) -> Result<PathBuf> {
        Ok(self.layer_home()?.join("work"))
    }

    /// The directory that holds the user layer and the work directory.
    pub fn layer_home(&self) -> Result<PathBuf> {
        Ok(self.policy()?.user_layer.unwrap_or_else(|| self.dir.clone()))
    }

    /// The versions in the pin ledger. A last line that was cut off is not one.
    pub fn pins(&self) -> Result<BTreeSet<Digest>> {
        let path = self.dir.join("pins");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().filter_map(|l| l.parse().ok()).collect()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(e) => Err(e).at("reading", path),
        }
    }

    /// Notes in the ledger that the user layer needs a version's objects, and waits until that is on disk.
    pub fn pin(&self, version: &Digest) -> Result<()> {
        self.note_pin(version)?;
        self.sync_pins()
    }

    /// As [`Desktop::pin`] without waiting for the disk: enough while the ledger is open and the desktop runs on that
    /// version.
    pub fn note_pin(&self, version: &Digest) -> Result<()> {
        let path = self.dir.join("pins");
        let note = |mut file: File| file.write_all(format!("\n{version}\n").as_bytes());
        // A leading newline ends a line that a crash cut off.
        File::options().append(true).create(true).open(&path).and_then(note).at("writing", path)
    }

    /// Waits until the ledger is on disk.
    pub fn sync_pins(&self) -> Result<()> {
        let path = self.dir.join("pins");
        match File::open(&path).and_then(|file| file.sync_all()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            r => r.at("writing", path)?,
        }
        self.sync_dir()
    }

    fn sync_dir(&self) -> Result<()> {
        File::open(&self.dir).and_then(|dir| dir.sync_all()).at("writing", &self.dir)
    }

    /// Notes, on disk when this returns, that the ledger may not name the version that the desktop runs on.
    pub fn open_ledger(&self) -> Result<()> {
        let path = self.dir.join(OPEN_LEDGER);
        File::create(&path).at("writing", path)?;
        self.sync_dir()
    }

    /// Whether a mount has pins that may not be in the ledger, or had when its daemon ended early.
    pub fn ledger_is_open(&self) -> bool {
        self.dir.join(OPEN_LEDGER).exists()
    }

    /// The ledger names all versions that the user layer needs, on disk.
    pub fn close_ledger(&self) -> Result<()> {
        let ledger = self.dir.join("pins");
        if fs::read(&ledger).is_ok_and(|bytes| bytes.contains(&0)) {
            // What a power cut left; in a ledger that is closed it would be damage.
            self.replace_pins(&super::collect::read_pins(&ledger)?.into_iter().collect())?;
        }
        let path = self.dir.join(OPEN_LEDGER);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).at("removing", path),
            _ => Ok(()),
        }
    }

    /// Replaces the ledger, after what needed the others is gone from the user layer.
    pub fn replace_pins(&self, pins: &BTreeSet<Digest>) -> Result<()> {
        let path = self.dir.join("pins");
        let text: String = pins.iter().map(|p| format!("{p}\n")).collect();
        publish(&path, text.as_bytes()).at("writing", path)
    }
}

impl Store {
    /// Makes a desktop on a version. With `user_layer`, its user layer lies in that directory (made if
    /// missing; one that holds a user layer already is taken over).
    pub fn create_desktop(
        &self,
        name: &str,
        image: &str,
        current: Choice,
        user_layer: Option<&Path>,
        labels: BTreeMap<String, String>,
    ) -> Result<Desktop> {
        check_name("a desktop", name)?;
        let dir = self.path("desktops").join(name);
        let desktop = Desktop { name: name.into(), dir };
        if desktop.dir.join("state.json").exists() {
            return Err(Error::Failed(format!(
                "there is a desktop {name:?} already; `reroot status {name}` shows it"
            )));
        }
        let user_layer = match user_layer {
            Some(path) => {
                fs::create_dir_all(path).at("making the user layer", path)?;
                let path = path.canonicalize().at("finding the user layer", path)?;
                self.check_layer_home(&path)?;
                Some(path)
            }
            None => None,
        };
        fs::create_dir_all(desktop.dir.join("set-aside")).at("making", &desktop.dir)?;
        let policy = Policy { created: now_text(), user_layer, labels };
        let text =
            toml::to_string(&policy).map_err(|e| Error::Failed(format!("writing desktop.toml: {e}")))?;
        publish(&desktop.dir.join("desktop.toml"), text.as_bytes()).at("writing", &desktop.dir)?;
        for part in [desktop.user_layer()?, desktop.work_dir()?] {
            fs::create_dir_all(&part).at("making", &part)?;
        }
        let state = State { image: image.into(), current, previous: None, pending: None, generation: 0 };
        let held = desktop.lock()?;
        desktop.write_state(&state, &held)?;
        Ok(desktop)
    }

    /// Two desktops on one user layer would write over each other, and what is in the store is the store's.
    fn check_layer_home(&self, home: &Path) -> Result<()> {
        if home.starts_with(self.root()) || self.root().starts_with(home.join("user")) {
            return Err(Error::Usage(format!(
                "the user layer {} and the store lie within each other; give another directory",
                home.display()
            )));
        }
        for other in self.desktops()? {
            // One whose policy cannot be read is not made worse.
            if other.layer_home().is_ok_and(|theirs| theirs == home) {
                return Err(Error::Failed(format!(
                    "{} is the user layer of the desktop {:?}; nothing was made",
                    home.display(),
                    other.name
                )));
            }
        }
        Ok(())
    }

    /// The desktop of that name.
    pub fn desktop(&self, name: &str) -> Result<Desktop> {
        check_name("a desktop", name)?;
        let dir = self.path("desktops").join(name);
        if !dir.join("state.json").exists() {
            return Err(Error::Failed(format!("there is no desktop {name:?}; `reroot desktops` lists them")));
        }
        Ok(Desktop { name: name.into(), dir })
    }

    /// All desktops, sorted by name.
    pub fn desktops(&self) -> Result<Vec<Desktop>> {
        let top = self.path("desktops");
        let mut out: Vec<Desktop> = fs::read_dir(&top)
            .at("reading", &top)?
            .flatten()
            .filter(|e| e.path().join("state.json").exists())
            .filter_map(|e| Some(Desktop { name: e.file_name().into_string().ok()?, dir: e.path() }))
            .filter(|d| valid_name(&d.name))
            .collect();
        out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    /// Removes a desktop that is not mounted, and its user layer unless that is to be kept. A kept one stays
    /// where it is, with the ledger of its pins (so that a collection leaves what it needs) and what was set
    /// aside; a desktop that is made in its place takes it over.
    pub fn remove_desktop(&self, desktop: &Desktop, keep_user_layer: bool) -> Result<Removed> {
        let name = &desktop.name;
        let _held = desktop.lock()?;
        let Some(_claim) = self.claim_mount(name)? else {
            return Err(Error::Failed(format!(
                "the desktop {name:?} is mounted; `reroot umount {name}` first. Nothing was removed"
            )));
        };
        let home = desktop.layer_home()?;
        if keep_user_layer && desktop.ledger_is_open() {
            // Its daemon ended early; what is current will not be kept by the desktop's state any more.
            desktop.pin(&desktop.state()?.current.version)?;
            desktop.close_ledger()?;
        }
        let pins = desktop.pins()?.len() as u64;
        let removed = Removed { user_layer: desktop.user_layer()?, kept: keep_user_layer, pins };
        if keep_user_layer {
            // Without its state it is no desktop any more; what is cut off after that can be done again.
            for part in ["state.json", "desktop.toml", "lock"] {
                let path = desktop.dir.join(part);
                fs::remove_file(&path).at("removing", &path)?;
            }
            if pins == 0 {
                let _ = fs::remove_file(desktop.dir.join("pins"));
            }
            // Both fail while they hold something, and that is right.
            let _ = fs::remove_dir(desktop.dir.join("set-aside"));
            let _ = fs::remove_dir(&desktop.dir);
            return Ok(removed);
        }
        // One rename removes it; a collection clears what a crash leaves behind.
        let doomed = self.path("desktops").join(temporary_name());
        fs::rename(&desktop.dir, &doomed).at("removing", &desktop.dir)?;
        if home != desktop.dir {
            for part in ["user", "work"] {
                let path = home.join(part);
                match crate::sys::fs::remove_tree(&path) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    r => r.at("the desktop is removed, but not its user layer; removing", &path)?,
                }
            }
        }
        crate::sys::fs::remove_tree(&doomed)
            .at("the desktop is removed, but not all of its files; removing", &doomed)?;
        Ok(removed)
    }
}

/// What the removal of a desktop left.
#[derive(Clone, Debug)]
pub struct Removed {
    /// Where the user layer is, or was.
    pub user_layer: PathBuf,
    /// Whether it is still there.
    pub kept: bool,
    /// How many versions it needs content of.
    pub pins: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(name: &str) -> Store {
        let dir = std::env::temp_dir().join(format!("reroot-desktops-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        Store::open(&dir).unwrap()
    }

    fn desktop(store: &Store, layer: Option<&Path>) -> Desktop {
        let choice = Choice { version: Digest::of(b"v"), tag: None };
        store.create_desktop("pc", "office", choice, layer, BTreeMap::new()).unwrap()
    }

    #[test]
    fn a_mounted_desktop_is_not_removed() {
        let store = store("mounted");
        let pc = desktop(&store, None);
        let claim = store.claim_mount("pc").unwrap();
        assert!(matches!(store.remove_desktop(&pc, false), Err(Error::Failed(_))));
        drop(claim);
        store.remove_desktop(&pc, false).unwrap();
        assert_eq!(fs::read_dir(store.path("desktops")).unwrap().count(), 0);
        fs::remove_dir_all(store.root()).unwrap();
    }

    #[test]
    fn zeroes_in_a_ledger_are_a_power_cuts_while_it_is_open_and_damage_afterwards() {
        let store = store("zeroes");
        let pc = desktop(&store, None);
        let ledger = pc.dir.join("pins");
        let read = || crate::store::collect::read_pins(&ledger);
        pc.open_ledger().unwrap();
        pc.note_pin(&Digest::of(b"needed")).unwrap();
        let mut bytes = fs::read(&ledger).unwrap();
        bytes.extend([0; 100]);
        fs::write(&ledger, &bytes).unwrap();
        pc.note_pin(&Digest::of(b"needed too")).unwrap();
        let both = vec![Digest::of(b"needed"), Digest::of(b"needed too")];
        assert_eq!(read().unwrap(), both);
        pc.close_ledger().unwrap();
        assert!(!fs::read(&ledger).unwrap().contains(&0));
        assert_eq!(read().unwrap().len(), 2);
        fs::write(&ledger, &bytes).unwrap();
        assert!(read().is_err(), "nobody writes into a closed one");
        fs::remove_dir_all(store.root()).unwrap();
    }

    #[test]
    fn a_kept_user_layer_keeps_its_files_and_pins_and_can_be_taken_over() {
        let store = store("kept");
        for elsewhere in [false, true] {
            let home = store.root().with_extension("layer");
            let _ = fs::remove_dir_all(&home);
            let layer = elsewhere.then_some(home.as_path());
            let pc = desktop(&store, layer);
            let file = pc.user_layer().unwrap().join("file");
            fs::write(&file, "mine").unwrap();
            pc.pin(&Digest::of(b"needed")).unwrap();
            store.remove_desktop(&pc, true).unwrap();
            assert!(store.desktop("pc").is_err() && store.desktops().unwrap().is_empty());
            let again = desktop(&store, layer);
            assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
            assert_eq!(again.pins().unwrap().len(), 1);
            store.remove_desktop(&again, false).unwrap();
            assert!(!file.exists());
            let _ = fs::remove_dir_all(&home);
        }
        fs::remove_dir_all(store.root()).unwrap();
    }
}
