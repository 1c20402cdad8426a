//! Check: whether what tags and desktops need is there and whole.
//!
//! For every version that something names: its manifest against its digest, each layer against its digest,
//! each object's presence and length (with `deep` its digest), and its tree against what the layers give.
//! A tree is derived, so a wrong one is replaced and reported as repaired. Nothing else is changed. What
//! nobody names is not looked at: a collection removes it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use super::index::Index;
use super::model::Draft;
use super::{encode, merge, stack};
use crate::error::{Doing, Error, Result};
use crate::store::collect::{Roots, read_pins};
use crate::store::versions::Manifest;
use crate::store::{Digest, Progress, Store};
use crate::sys::publish::publish;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Content is missing or wrong, and nothing here can bring it back.
    Damaged,
    /// It was wrong and is right now.
    Repaired,
    /// Worth knowing; nothing is lost.
    Warning,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in a sentence.
    pub what: String,
    /// The file in the store, relative to it.
    pub path: String,
    /// The tags, desktops and mounts that need it.
    pub needed_by: BTreeSet<String>,
}

/// What a check found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Checked {
    /// Versions looked at.
    pub versions: u64,
    /// Layers looked at.
    pub layers: u64,
    /// Trees looked at.
    pub trees: u64,
    /// Objects looked at.
    pub objects: u64,
    /// Bytes of objects that were read.
    pub bytes_read: u64,
    /// What is not as it should be, the worst first.
    pub findings: Vec<Finding>,
}

impl Checked {
    /// Whether anything is damaged.
    pub fn is_damaged(&self) -> bool {
        self.findings.iter().any(|f| f.severity == Severity::Damaged)
    }
}

/// Checks everything that is named, or `only` that version. The caller holds [`Store::in_use`].
pub fn check(
    store: &Store,
    only: Option<(Digest, String)>,
    deep: bool,
    progress: &dyn Progress,
) -> Result<Checked> {
    let mut work = Work { store, out: Checked::default() };
    let roots = match only {
        Some((version, name)) => Roots::from([(version, BTreeSet::from([name]))]),
        None => work.roots()?,
    };
    progress.begin("checking layers", None);
    let stacks = work.versions(&roots, progress);
    let layers = work.layers(&stacks, progress);
    work.objects(&stacks, &layers, deep, progress)?;
    progress.begin("checking trees", None);
    work.trees(&stacks, &layers, progress)?;
    work.out.findings.sort_by(|a, b| (a.severity, &a.path, &a.what).cmp(&(b.severity, &b.path, &b.what)));
    Ok(work.out)
}

/// Every stack, with who needs it; sorted, so that one that begins another comes before it.
type Stacks = BTreeMap<Vec<Digest>, BTreeSet<String>>;

/// The layers that are whole.
type Layers = HashMap<Digest, Index>;

struct Work<'a> {
    store: &'a Store,
    out: Checked,
}

impl Work<'_> {
    fn find(&mut self, severity: Severity, path: &Path, needed_by: BTreeSet<String>, what: String) {
        let path = path.strip_prefix(self.store.root()).unwrap_or(path).display().to_string();
        let what = without_advice(&what);
        self.out.findings.push(Finding { severity, what, path, needed_by });
    }

    /// As [`crate::store::collect::roots`], with a finding for each that cannot be read.
    fn roots(&mut self) -> Result<Roots> {
        let store = self.store;
        let mut out = Roots::new();
        let top = store.path("refs");
        for image in list(&top)? {
            for tag in list(&top.join(&image))? {
                if tag.starts_with('.') {
                    continue;
                }
                let name = format!("{image}:{tag}");
                match store.read_ref(&image, &tag) {
                    Ok(Some(version)) => {
                        out.entry(version).or_default().insert(name);
                    }
                    Ok(None) => {}
                    Err(e) => {
                        let path = top.join(&image).join(&tag);
                        self.find(Severity::Damaged, &path, [name].into(), e.to_string());
                    }
                }
            }
        }
        for desktop in store.desktops()? {
            let who = BTreeSet::from([format!("desktop {}", desktop.name)]);
            match desktop.state() {
                Ok(state) => {
                    for choice in [Some(state.current), state.previous, state.pending].into_iter().flatten() {
                        out.entry(choice.version).or_default().extend(who.clone());
                    }
                }
                Err(e) => {
                    let path = desktop.dir().join("state.json");
                    self.find(Severity::Damaged, &path, who.clone(), e.to_string());
                }
            }
            match desktop.user_layer() {
                Ok(dir) if dir.is_dir() => {}
                Ok(dir) => {
                    let what = "the user layer is not there (is its disk mounted?)".to_string();
                    self.find(Severity::Warning, &dir, who, what);
                }
                Err(e) => {
                    self.find(Severity::Damaged, &desktop.dir().join("desktop.toml"), who, e.to_string());
                }
            }
        }
        // Also the ledgers that removed desktops left beside their kept user layers.
        let desktops = store.path("desktops");
        for name in list(&desktops)?.into_iter().filter(|n| crate::store::valid_name(n)) {
            let path = desktops.join(&name).join("pins");
            let who = format!("desktop {name}");
            match read_pins(&path) {
                Ok(pins) => {
                    for version in pins {
                        out.entry(version).or_default().insert(who.clone());
                    }
                }
                Err(e) => self.find(Severity::Damaged, &path, [who].into(), e.to_string()),
            }
        }
        for mount in store.mounts()? {
            for version in mount.versions {
                out.entry(version).or_default().insert(format!("mount {}", mount.id));
            }
        }
        Ok(out)
    }

    fn versions(&mut self, roots: &Roots, progress: &dyn Progress) -> Stacks {
        let mut stacks = Stacks::new();
        for (version, needed_by) in roots {
            self.out.versions += 1;
            progress.advance(1, 0);
            match self.store.version(version) {
                Ok(manifest) => stacks.entry(manifest.stack).or_default().extend(needed_by.clone()),
                Err(e) => {
                    let path = self.store.path("versions").join(format!("{}.json", version.hex()));
                    self.find(Severity::Damaged, &path, needed_by.clone(), e.to_string());
                }
            }
        }
        stacks
    }

    fn layers(&mut self, stacks: &Stacks, progress: &dyn Progress) -> Layers {
        let store = self.store;
        let wanted: BTreeSet<Digest> = stacks.keys().flatten().copied().collect();
        self.out.layers = wanted.len() as u64;
        let read: Vec<(Digest, Result<Index>)> = wanted
            .into_par_iter()
            .map(|layer| {
                let index = stack::open_layer(store, &layer);
                progress.advance(1, index.as_ref().map_or(0, |i| i.bytes().len() as u64));
                // What its digest vouches for may still have been written wrongly.
                let checked = index.and_then(|i| encode::decode(&i).and(Ok(i)));
                (layer, checked)
            })
            .collect();
        let mut out = Layers::new();
        for (layer, result) in read {
            match result {
                Ok(index) => {
                    out.insert(layer, index);
                }
                Err(e) => {
                    let needed_by = needs_layer(stacks, &layer);
                    self.find(Severity::Damaged, &store.layer_path(&layer), needed_by, e.to_string());
                }
            }
        }
        out
    }

    fn objects(
        &mut self,
        stacks: &Stacks,
        layers: &Layers,
        deep: bool,
        progress: &dyn Progress,
    ) -> Result<()> {
        let store = self.store;
        let mut wanted = HashSet::new();
        for index in layers.values() {
            wanted.extend(stack::objects_of(index)?);
        }
        self.out.objects = wanted.len() as u64;
        let bytes: u64 = wanted.iter().map(|(_, size)| size).sum();
        progress.begin("checking objects", deep.then_some(bytes));
        let bad: Vec<((Digest, u64), String)> = wanted
            .into_par_iter()
            .filter_map(|(digest, size)| {
                let wrong = wrong_object(store, &digest, size, deep).err().map(|e| e.to_string());
                progress.advance(1, if deep { size } else { 0 });
                wrong.map(|what| ((digest, size), what))
            })
            .collect();
        self.out.bytes_read = if deep { bytes } else { 0 };
        for ((digest, size), what) in bad {
            let (mut needed_by, mut example) = (BTreeSet::new(), None);
            for (layer, index) in layers {
                if let Some(path) = first_path(index, &digest, size)? {
                    needed_by.extend(needs_layer(stacks, layer));
                    example = example.min(Some(path.clone())).or(Some(path));
                }
            }
            let example = String::from_utf8_lossy(&example.unwrap_or_default()).into_owned();
            let what = format!("{what}; it is the content of /{example}");
            self.find(Severity::Damaged, &store.object_path(&digest), needed_by, what);
        }
        Ok(())
    }

    /// Builds each stack's tree in memory, going on from the last one where the next stack begins with it.
    fn trees(&mut self, stacks: &Stacks, layers: &Layers, progress: &dyn Progress) -> Result<()> {
        let mut last: Option<(&[Digest], Draft)> = None;
        for (stack, needed_by) in stacks {
            progress.advance(1, 0);
            let manifest_stack = stack_digest(stack);
            let path = self.store.tree_path(&manifest_stack);
            // Without its layers nobody can say what a tree should be; and a missing tree is built at need.
            if !stack.iter().all(|l| layers.contains_key(l)) || !path.exists() {
                continue;
            }
            self.out.trees += 1;
            let (done, mut draft) = match last.take() {
                Some((prefix, draft)) if stack.starts_with(prefix) => (prefix.len(), Some(draft)),
                _ => (0, None),
            };
            for layer in stack.iter().skip(done) {
                let Some(index) = layers.get(layer) else { break };
                let delta = encode::decode(index)?;
                match &mut draft {
                    None => draft = Some(delta),
                    Some(full) => merge::apply(full, &delta),
                }
            }
            let Some(draft) = draft else { continue };
            let right = encode::tree(&draft, manifest_stack)?;
            if !holds(&path, &right)? {
                publish(&path, &right).at("writing the tree", &path)?;
                let what = "the tree differed from what its layers give, and was built again; a mount that is \
                            running goes on with the old one until it is mounted again";
                self.find(Severity::Repaired, &path, needed_by.clone(), what.into());
            }
            last = Some((stack, draft));
        }
        Ok(())
    }
}

fn stack_digest(stack: &[Digest]) -> Digest {
    Manifest {
        format: 1,
        stack: stack.to_vec(),
        parent: None,
        created: String::new(),
        message: String::new(),
        annotations: BTreeMap::new(),
        paths: 0,
        bytes: 0,
    }
    .stack_digest()
}

fn needs_layer(stacks: &Stacks, layer: &Digest) -> BTreeSet<String> {
    stacks.iter().filter(|(stack, _)| stack.contains(layer)).flat_map(|(_, who)| who.clone()).collect()
}

/// Other commands' messages advise to run this check; here that is no news.
fn without_advice(what: &str) -> String {
    match what.find("; `reroot fsck`") {
        Some(at) => {
            let end = what.get(at + 1..).and_then(|rest| rest.find(';')).map_or(what.len(), |n| at + 1 + n);
            format!("{}{}", what.get(..at).unwrap_or_default(), what.get(end..).unwrap_or_default())
        }
        None => what.to_string(),
    }
}

/// The names in a directory; none where it is a file or gone.
fn list(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::NotFound) => {
            return Ok(Vec::new());
        }
        r => r.at("reading", dir)?,
    };
    let mut out: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    out.sort();
    Ok(out)
}

fn wrong_object(store: &Store, digest: &Digest, size: u64, deep: bool) -> Result<()> {
    let path = store.object_path(digest);
    if !deep {
        // Lengths of many objects: without opening each.
        return match fs::metadata(&path) {
            Ok(m) if m.is_file() && m.len() == size => Ok(()),
            _ => store
                .open_object(digest, size)
                .map(|_| ())
                .and(Err(Error::Damaged(format!("object {digest} is not a regular file of {size} bytes")))),
        };
    }
    let (found, _) = Digest::of_reader(store.open_object(digest, size)?).at("reading the object", &path)?;
    if found != *digest {
        return Err(Error::Damaged(format!("the content of object {digest} does not match its digest")));
    }
    Ok(())
}

fn first_path(index: &Index, digest: &Digest, size: u64) -> Result<Option<Vec<u8>>> {
    for at in 0..index.len() {
        let node = index.node(at)?;
        if node.is_file() && node.size == size && index.object(&node)? == *digest {
            return index.path(&node).map(Some);
        }
    }
    Ok(None)
}

fn holds(path: &Path, right: &[u8]) -> Result<bool> {
    let file = File::open(path).at("opening the tree", path)?;
    if file.metadata().at("reading", path)?.len() != right.len() as u64 {
        return Ok(false);
    }
    Ok(fs::read(path).at("reading the tree", path)? == right)
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
