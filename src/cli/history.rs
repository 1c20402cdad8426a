//! `log`: the versions of an image and what each was made from.

use std::collections::{BTreeMap, BinaryHeap};

use serde_json::{Value, json};

use super::Done;
use super::args::Image;
use super::table::{count, size};
use super::ui::{Hue, Ui};
use crate::error::{Error, Result};
use crate::store::versions::Manifest;
use crate::store::{Digest, Store, check_name};

/// A version in an image's history.
struct Entry {
    version: Digest,
    manifest: Manifest,
    tags: Vec<String>,
    /// The parent is not in the store any more: nothing names it.
    cut: bool,
}

pub fn log(ui: &Ui, store: &Store, args: &Image) -> Done {
    check_name("an image", &args.image)?;
    let _held = store.in_use()?;
    let entries = history(store, &args.image)?;
    ui.answer(
        || entries.iter().map(entry_json).collect(),
        |out| {
            for entry in &entries {
                let m = &entry.manifest;
                let tags = if entry.tags.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", entry.tags.join(", "))
                };
                out.marked(Hue::Yellow, &entry.version.short(), format!("{tags} {}", m.created));
                let first = m.message.lines().next().unwrap_or_default();
                let gone = if entry.cut { ", its parent is not in the store any more" } else { "" };
                let what = format!(
                    "{}, {}, {}{gone}",
                    count(m.stack.len() as u64, "layer"),
                    count(m.paths, "path"),
                    size(m.bytes)
                );
                out.line(format!("    {what}"));
                if !first.is_empty() {
                    out.line(format!("    {first}"));
                }
            }
        },
    )?;
    Ok(0)
}

fn entry_json(entry: &Entry) -> Value {
    let m = &entry.manifest;
    json!({
        "version": entry.version,
        "tags": entry.tags,
        "created": m.created,
        "message": m.message,
        "annotations": m.annotations,
        "parent": m.parent,
        "parent_in_store": m.parent.map(|_| !entry.cut),
        "layers": m.stack.len(),
        "paths": m.paths,
        "bytes": m.bytes,
    })
}

/// The tagged versions and their chains of parents, the newest first and each before its parent.
fn history(store: &Store, image: &str) -> Result<Vec<Entry>> {
    let mut entries: BTreeMap<Digest, Entry> = BTreeMap::new();
    let mut todo = Vec::new();
    let mut tags: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    for r in store.refs()?.into_iter().filter(|r| r.image == image) {
        todo.push((r.version, store.version(&r.version)?));
        tags.entry(r.version).or_default().push(r.tag);
    }
    if todo.is_empty() {
        return Err(Error::Failed(format!(
            "there is no image {image:?}; `reroot images` lists what is there"
        )));
    }
    let present: std::collections::BTreeSet<Digest> = store.versions()?.into_iter().collect();
    let mut waiting: BTreeMap<Digest, usize> = BTreeMap::new();
    while let Some((version, manifest)) = todo.pop() {
        if entries.contains_key(&version) {
            continue;
        }
        let cut = manifest.parent.is_some_and(|p| !present.contains(&p));
        if let Some(parent) = manifest.parent.filter(|_| !cut) {
            *waiting.entry(parent).or_default() += 1;
            if !entries.contains_key(&parent) {
                todo.push((parent, store.version(&parent)?));
            }
        }
        let tags = tags.remove(&version).unwrap_or_default();
        entries.insert(version, Entry { version, manifest, tags, cut });
    }
    let mut ready: BinaryHeap<(String, Digest)> = entries
        .values()
        .filter(|e| !waiting.contains_key(&e.version))
        .map(|e| (e.manifest.created.clone(), e.version))
        .collect();
    let mut out = Vec::new();
    while let Some((_, version)) = ready.pop() {
        let Some(entry) = entries.remove(&version) else { continue };
        if let Some(parent) = entry.manifest.parent
            && let Some(count) = waiting.get_mut(&parent)
        {
            *count -= 1;
            if *count == 0
                && let Some(next) = entries.get(&parent)
            {
                ready.push((next.manifest.created.clone(), parent));
            }
        }
        out.push(entry);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::sample::Sample;

    #[test]
    fn a_version_comes_before_its_parent_whatever_the_clock_says() {
        let sample = Sample::new("log");
        let a = sample.version("1", None, &[("a", "1")]);
        let b = sample.version("", Some(&a), &[("a", "2")]);
        let c = sample.version("3", Some(&b), &[("a", "3")]);
        let d = sample.version("side", Some(&a), &[("a", "4")]);
        let order: Vec<_> =
            history(&sample.store, "office").unwrap().into_iter().map(|e| e.version).collect();
        let place = |v| order.iter().position(|o| *o == v).unwrap();
        assert_eq!(order.len(), 4);
        assert!(place(c) < place(b) && place(b) < place(a) && place(d) < place(a));
        assert!(history(&sample.store, "nothing").is_err());
        std::fs::remove_file(sample.store.path("versions").join(format!("{}.json", b.hex()))).unwrap();
        let after = history(&sample.store, "office").unwrap();
        assert!(after.iter().any(|e| e.version == c && e.cut));
    }
}
