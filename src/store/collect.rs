//! Collection: removing what nothing names any more.
//!
//! Roots are the tags, every desktop's current, previous and pending version, every ledger of pins (also one
//! that a removed desktop left beside its kept user layer), and the versions that running mounts name.
//! Nothing else: a parent keeps nothing alive.
//!
//! 1. The store's lock is held exclusively, so that nobody adds, resolves or begins a mount meanwhile.
//! 2. Everything reachable is worked out and read before anything is removed. A root that cannot be read, a
//!    version or layer that is missing or damaged ends the collection: what it needed is not known.
//! 3. Removal goes from what refers to what is referred to: versions, trees, layers, objects. Wherever it is
//!    cut off, everything that a remaining version needs is still there.
//!
//! This module does not know how layers are written; its caller lists a layer's objects.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde::Serialize;

use super::objects::remove_abandoned;
use super::{Digest, Store};
use crate::error::{Doing, Error, Result};
use crate::sys::lock::{self, Lock, Share};
use crate::sys::publish::is_abandoned;

/// How a collection is done.
#[derive(Clone, Copy, Debug)]
pub struct Collection {
    /// Only say what would be removed.
    pub dry_run: bool,
    /// How long to wait while somebody uses the store.
    pub patience: Duration,
}

/// What a collection removed, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Objects.
    pub objects: u64,
    /// Layers.
    pub layers: u64,
    /// Trees.
    pub trees: u64,
    /// Versions.
    pub versions: u64,
    /// Files and directories that a program left behind that ended early.
    pub leftovers: u64,
    /// Bytes on disk, of all of these.
    pub bytes: u64,
    /// Nothing was removed.
    pub dry_run: bool,
}

/// Lists the objects of a layer, after checking it against its digest.
pub type ObjectsOf<'a> = &'a dyn Fn(&Digest) -> Result<Vec<Digest>>;

/// Which version is needed, and by whom: `office:2025.10`, `desktop pc7`, `mount pc7`.
pub type Roots = BTreeMap<Digest, BTreeSet<String>>;

/// Removes what no root reaches. `tell` hears, once, that the store is in use and this waits.
pub fn collect(
    store: &Store,
    how: Collection,
    objects_of: ObjectsOf<'_>,
    tell: &dyn Fn(&str),
) -> Result<Collected> {
    let _held = wait_for_quiet(store, how.patience, tell)?;
    let live = Live::find(store, objects_of)?;
    let mut sweep = Sweep { dry_run: how.dry_run, count: 0, bytes: 0 };
    let mut done = Collected { dry_run: how.dry_run, ..Collected::default() };
    sweep.directory(&store.path("versions"), |name| {
        name.strip_suffix(".json").and_then(Digest::from_hex).map(|d| !live.versions.contains(&d))
    })?;
    done.versions = sweep.take();
    sweep
        .directory(&store.path("trees"), |name| Digest::from_hex(name).map(|d| !live.stacks.contains(&d)))?;
    done.trees = sweep.take();
    sweep
        .directory(&store.path("layers"), |name| Digest::from_hex(name).map(|d| !live.layers.contains(&d)))?;
    done.layers = sweep.take();
    // Objects refer to nothing, so the order in which they go does not matter: all cores remove them.
    let objects = entries(&store.path("objects"))?
        .par_iter()
        .filter_map(|fan| Some((fan, name_of(fan).filter(|n| n.len() == 2)?)))
        .map(|(fan, prefix)| {
            let mut sweep = Sweep { dry_run: how.dry_run, count: 0, bytes: 0 };
            let dead =
                |rest: &str| Digest::from_hex(&format!("{prefix}{rest}")).map(|d| !live.objects.contains(&d));
            sweep.directory(fan, dead)?;
            if !how.dry_run {
                // Fails while it holds something, and that is right.
                let _ = fs::remove_dir(fan);
            }
            Ok(sweep)
        })
        .collect::<Result<Vec<Sweep>>>()?;
    done.objects = objects.iter().map(|sweep| sweep.count).sum();
    sweep.bytes += objects.iter().map(|sweep| sweep.bytes).sum::<u64>();
    sweep.leftovers(store)?;
    done.leftovers = sweep.take();
    done.bytes = sweep.bytes;
    Ok(done)
}

fn wait_for_quiet(store: &Store, patience: Duration, tell: &dyn Fn(&str)) -> Result<Lock> {
    let since = Instant::now();
    let mut told = false;
    loop {
        if let Some(lock) = store.collecting()? {
            return Ok(lock);
        }
        if since.elapsed() >= patience {
            return Err(Error::Failed(format!(
                "the store {} is in use (an import, a commit, a mount that begins); nothing was removed, try again later",
                store.root().display()
            )));
        }
        if !told {
            tell("the store is in use; waiting for that to end");
            told = true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Every version that something needs, with who needs it. Fails rather than leave a root out.
pub fn roots(store: &Store) -> Result<Roots> {
    let mut out = Roots::new();
    let mut add = |version: Digest, who: String| {
        out.entry(version).or_default().insert(who);
    };
    for r in store.refs()? {
        add(r.version, format!("{}:{}", r.image, r.tag));
    }
    for desktop in store.desktops()? {
        let who = format!("desktop {}", desktop.name);
        let state = desktop.state()?;
        for choice in [Some(state.current), state.previous, state.pending].into_iter().flatten() {
            add(choice.version, who.clone());
        }
    }
    for dir in entries(&store.path("desktops"))? {
        let Some(name) = name_of(&dir).filter(|n| super::valid_name(n)) else { continue };
        for version in read_pins(&dir.join("pins"))? {
            add(version, format!("desktop {name}"));
        }
    }
    for (id, versions) in mounted(store)? {
        for version in versions {
            add(version, format!("mount {id}"));
        }
    }
    Ok(out)
}

/// The versions in a ledger. What a killed process or, while the ledger is open, a power cut left of a line is passed
/// over; any other line that is no digest means that a pin cannot be read.
pub fn read_pins(path: &Path) -> Result<Vec<Digest>> {
    let bytes = match fs::read(path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        r => r.at("reading", path)?,
    };
    let open = path.with_file_name(super::desktops::OPEN_LEDGER).exists();
    pins_in(&bytes).filter(|_| open || !bytes.contains(&0)).ok_or_else(|| {
        Error::Damaged(format!(
            "{} holds a line that is no digest; without it nobody knows what the user layer needs",
            path.display()
        ))
    })
}

/// None where a line can be neither read nor what is left of one. A file system may have the new length of a file
/// on the disk before the bytes that were added: after a power cut these read as zeroes, from any block on or up to one.
fn pins_in(bytes: &[u8]) -> Option<Vec<Digest>> {
    let mut out = Vec::new();
    for line in bytes.split(|c| *c == b'\n') {
        for (n, piece) in line.split(|c| *c == 0).enumerate().filter(|(_, piece)| !piece.is_empty()) {
            let text = std::str::from_utf8(piece).ok()?;
            match text.parse() {
                Ok(digest) => out.push(digest),
                Err(_) if is_start(text) || (n > 0 && is_end(text)) => {}
                Err(_) => return None,
            }
        }
    }
    Some(out)
}

/// Whether a digest may begin like this.
fn is_start(text: &str) -> bool {
    const START: &str = "sha384:";
    match text.strip_prefix(START) {
        Some(hex) => hex.len() < 2 * Digest::LEN && hex.bytes().all(|c| c.is_ascii_hexdigit()),
        None => START.starts_with(text),
    }
}

/// Whether a digest may end like this.
fn is_end(text: &str) -> bool {
    let (start, hex) = text.rsplit_once(':').map_or(("", text), |(start, hex)| (start, hex));
    "sha384".ends_with(start) && hex.len() <= 2 * Digest::LEN && hex.bytes().all(|c| c.is_ascii_hexdigit())
}

/// What running mounts name. One whose description cannot be read stops the collection.
fn mounted(store: &Store) -> Result<Vec<(String, BTreeSet<Digest>)>> {
    let dir = store.path("mounts");
    let mut out = Vec::new();
    for path in entries(&dir)? {
        let Some(id) = name_of(&path).and_then(|n| n.strip_suffix(".lock").map(str::to_string)) else {
            continue;
        };
        // A mount that ends removes its description a moment before its lock.
        let mut tries = 20;
        loop {
            if lock::attempt(&path, Share::Shared).at("locking", &path)?.is_some() {
                break;
            }
            if let Some(entry) = store.mounted(&id)? {
                out.push((id, entry.versions));
                break;
            }
            tries -= 1;
            if tries == 0 {
                return Err(Error::Failed(format!(
                    "the mount {id:?} runs and {}/{id}.json does not say what it needs; nothing was removed, \
                     unmount it and try again",
                    dir.display()
                )));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(out)
}

struct Live {
    versions: HashSet<Digest>,
    stacks: HashSet<Digest>,
    layers: HashSet<Digest>,
    objects: HashSet<Digest>,
}

impl Live {
    fn find(store: &Store, objects_of: ObjectsOf<'_>) -> Result<Live> {
        let mut live = Live {
            versions: HashSet::new(),
            stacks: HashSet::new(),
            layers: HashSet::new(),
            objects: HashSet::new(),
        };
        for (version, needed_by) in roots(store)? {
            let who = needed_by.into_iter().collect::<Vec<_>>().join(", ");
            let stop = |e: Error| match e {
                Error::Damaged(m) | Error::Failed(m) => Error::Damaged(format!(
                    "{m} (needed by {who}); nothing was removed. `reroot fsck` shows the damage"
                )),
                other => other,
            };
            let manifest = store.version(&version).map_err(stop)?;
            live.versions.insert(version);
            live.stacks.insert(manifest.stack_digest());
            for layer in manifest.stack {
                if live.layers.insert(layer) {
                    live.objects.extend(objects_of(&layer).map_err(stop)?);
                }
            }
        }
        Ok(live)
    }
}

/// Removes, or only counts.
struct Sweep {
    dry_run: bool,
    count: u64,
    bytes: u64,
}

impl Sweep {
    /// How many things were removed since the last call.
    fn take(&mut self) -> u64 {
        std::mem::take(&mut self.count)
    }

    /// Removes the files of a directory whose names are said to be dead; `None` is a name of something else.
    fn directory(&mut self, dir: &Path, dead: impl Fn(&str) -> Option<bool>) -> Result<()> {
        for path in entries(dir)? {
            if name_of(&path).is_some_and(|n| dead(&n) == Some(true)) {
                self.remove(&path)?;
            }
        }
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> Result<()> {
        let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
        self.bytes += if meta.is_dir() { disk_bytes(path)? } else { allocated(&meta) };
        self.count += 1;
        if self.dry_run {
            return Ok(());
        }
        let removed = if meta.is_dir() { crate::sys::fs::remove_tree(path) } else { fs::remove_file(path) };
        match removed {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            r => r.at("removing", path),
        }
    }

    /// Intakes that ended early, and temporary files of processes that are gone.
    fn leftovers(&mut self, store: &Store) -> Result<()> {
        let objects = store.path("objects");
        // An intake lives only while its owner uses the store, which nobody does now.
        for path in entries(&objects)? {
            if name_of(&path).is_some_and(|n| n.starts_with(".intake")) && path.is_dir() {
                self.bytes += disk_bytes(&path)?;
                self.count += 1;
            }
        }
        if !self.dry_run {
            remove_abandoned(&objects)?;
            for path in entries(&objects)? {
                let stray = name_of(&path).is_some_and(|n| n.starts_with(".intake") && n.ends_with(".lock"));
                if stray && let Ok(Some(_held)) = lock::attempt(&path, Share::Exclusive) {
                    let _ = fs::remove_file(&path);
                }
            }
        }
        for path in entries(&store.path("mounts"))? {
            // What an `inspect` left whose daemon was killed: its id never comes back.
            let Some(id) = name_of(&path).and_then(|n| n.strip_suffix(".lock").map(str::to_string)) else {
                continue;
            };
            if id.starts_with('.') && !store.mount_runs(&id)? {
                self.count += 1;
                if !self.dry_run {
                    store.forget_mount(&id);
                }
            }
        }
        let mut dirs = vec![store.root().to_path_buf()];
        for part in super::PARTS {
            dirs.push(store.path(part));
        }
        for nested in ["refs", "desktops"] {
            dirs.extend(entries(&store.path(nested))?.into_iter().filter(|p| p.is_dir()));
        }
        for dir in dirs {
            for path in entries(&dir)? {
                if name_of(&path).is_some_and(|n| is_abandoned(&n)) {
                    self.remove(&path)?;
                }
            }
        }
        Ok(())
    }
}

fn name_of(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_string())
}

/// What a directory holds; nothing where it is not there.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        r => {
            let mut out = Vec::new();
            for entry in r.at("reading", dir)? {
                out.push(entry.at("reading", dir)?.path());
            }
            out.sort();
            Ok(out)
        }
    }
}

fn allocated(meta: &Metadata) -> u64 {
    meta.blocks() * 512
}

/// Bytes on disk of everything beneath a path, symbolic links not followed; what vanishes meanwhile is
/// passed over.
pub fn disk_bytes(path: &Path) -> Result<u64> {
    let meta = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        r => r.at("reading", path)?,
    };
    if !meta.is_dir() {
        return Ok(allocated(&meta));
    }
    crate::sys::fs::open_dir(path).and_then(crate::sys::fs::disk_usage).at("reading", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_power_cut_leaves_of_a_ledger_is_read_and_damage_is_told_from_it() {
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let whole = format!("\n{one}\n\n{two}\n").into_bytes();
        assert_eq!(pins_in(&whole), Some(vec![one, two]));
        let second = whole.len() / 2;
        for at in second..=whole.len() {
            // Cut off; the rest is zeroes; the rest is there, and what was before it since the last sync is not.
            let left = if at == whole.len() || at == whole.len() - 1 { vec![one, two] } else { vec![one] };
            assert_eq!(pins_in(&whole[..at]), Some(left.clone()), "cut off at {at}");
            let mut zeroes = whole.clone();
            zeroes[at..].fill(0);
            assert_eq!(pins_in(&zeroes), Some(left), "zeroes from {at}");
            zeroes.extend_from_slice(&whole[..second]);
            assert_eq!(
                pins_in(&zeroes).map(|pins| pins.last() == Some(&one)),
                Some(true),
                "added after {at}"
            );
            let mut zeroes = whole.clone();
            zeroes[second..at].fill(0);
            let left = if at <= second + 1 { vec![one, two] } else { vec![one] };
            assert_eq!(pins_in(&zeroes), Some(left), "zeroes up to {at}");
        }
        for damage in ["x", "sha384:xyz", "sha512:00", "\0sha512:00", "abcdef", "\u{e4}"] {
            assert_eq!(pins_in(format!("{one}\n{damage}\n").as_bytes()), None, "{damage:?}");
        }
    }
}
