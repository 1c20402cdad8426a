//! Layers, trees and versions in a store.
//!
//! A layer is checked against its digest whenever it is read to build something. A tree is derived: one that
//! is missing, or whose header does not name the stack, is built again from the layers.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;

use super::encode;
use super::index::Index;
use super::merge;
use super::model::{Content, Draft};
use crate::error::{Doing, Error, Result};
use crate::store::versions::Manifest;
use crate::store::{Digest, Store, now_text};
use crate::sys::publish::publish;

/// Writes a layer; gives back its digest.
pub fn put_layer(store: &Store, draft: &Draft) -> Result<Digest> {
    let bytes = encode::layer(draft)?;
    let digest = Digest::of(&bytes);
    let path = store.layer_path(&digest);
    if !path.exists() {
        publish(&path, &bytes).at("writing the layer", &path)?;
    }
    Ok(digest)
}

/// Opens a layer and checks it against its digest.
pub fn open_layer(store: &Store, digest: &Digest) -> Result<Index> {
    let path = store.layer_path(digest);
    let file = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::Damaged(format!("layer {digest} is missing; import the version again")));
        }
        r => r.at("opening the layer", &path)?,
    };
    let index = Index::open(&file).map_err(|e| Error::Damaged(format!("layer {digest}: {e}")))?;
    if Digest::of(index.bytes()) != *digest || index.is_tree() {
        return Err(Error::Damaged(format!("layer {digest} does not match its digest")));
    }
    Ok(index)
}

/// What a stack shows, merged from its layers.
pub fn merge_layers(store: &Store, stack: &[Digest]) -> Result<Draft> {
    let mut layers = stack.iter();
    let Some(base) = layers.next() else {
        return Err(Error::Damaged("a version without layers".into()));
    };
    let mut draft = encode::decode(&open_layer(store, base)?)?;
    for layer in layers {
        merge::apply(&mut draft, &encode::decode(&open_layer(store, layer)?)?);
    }
    Ok(draft)
}

/// Opens the tree of a version, building it if need be.
pub fn open_tree(store: &Store, manifest: &Manifest) -> Result<Index> {
    let stack = manifest.stack_digest();
    if let Some(tree) = existing_tree(store, &stack)? {
        return Ok(tree);
    }
    let draft = merge_layers(store, &manifest.stack)?;
    put_tree(store, &draft, stack)
}

fn existing_tree(store: &Store, stack: &Digest) -> Result<Option<Index>> {
    let path = store.tree_path(stack);
    let file = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        r => r.at("opening the tree", &path)?,
    };
    Ok(Index::open(&file).ok().filter(|i| i.is_tree() && i.stack() == *stack))
}

fn put_tree(store: &Store, draft: &Draft, stack: Digest) -> Result<Index> {
    let path = store.tree_path(&stack);
    publish(&path, &encode::tree(draft, stack)?).at("writing the tree", &path)?;
    Index::open(&File::open(&path).at("opening the tree", &path)?)
}

/// What a version shows, in memory.
///
/// Merged from the layers, which are checked against their digests: what is made of it must not carry the damage
/// of a tree, which is only derived.
pub fn draft_of(store: &Store, manifest: &Manifest) -> Result<Draft> {
    merge_layers(store, &manifest.stack)
}

/// The tree of a version, compared with what its layers give, and built again where it differs.
pub fn checked_tree(store: &Store, manifest: &Manifest) -> Result<Index> {
    let stack = manifest.stack_digest();
    let draft = draft_of(store, manifest)?;
    match existing_tree(store, &stack)? {
        Some(tree) if tree.bytes() == encode::tree(&draft, stack)? => Ok(tree),
        _ => put_tree(store, &draft, stack),
    }
}

/// What is said of a new version.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// The message.
    pub message: String,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Publishes a version that shows `full`. Without a parent it is a base; with one, one delta on top of it
/// that holds exactly what differs. `None` where nothing differs. The objects must be in the store already,
/// and the caller holds [`Store::in_use`] until a tag or a desktop names the version.
pub fn publish_version(
    store: &Store,
    parent: Option<(&Digest, &Manifest)>,
    full: &Draft,
    words: Words,
) -> Result<Option<(Digest, Manifest)>> {
    full.check_depth()?;
    let mut stack = Vec::new();
    let layer = match parent {
        None => put_layer(store, full)?,
        Some((_, manifest)) => {
            stack.clone_from(&manifest.stack);
            let old = draft_of(store, manifest)?;
            let delta = merge::delta(&old, full);
            let root = crate::layer::model::ROOT;
            if delta.get(root).children.is_empty() && delta.get(root).meta == old.get(root).meta {
                return Ok(None);
            }
            put_layer(store, &delta)?
        }
    };
    stack.push(layer);
    let (paths, bytes) = totals(full);
    let manifest = Manifest {
        format: 1,
        stack,
        parent: parent.map(|(digest, _)| *digest),
        created: now_text(),
        message: words.message,
        annotations: words.annotations,
        paths,
        bytes,
    };
    put_tree(store, full, manifest.stack_digest())?;
    let digest = store.put_version(&manifest)?;
    Ok(Some((digest, manifest)))
}

fn totals(draft: &Draft) -> (u64, u64) {
    let mut seen = HashSet::new();
    let (mut paths, mut bytes) = (0, 0u64);
    for (_, id) in draft.walk() {
        paths += 1;
        if let Content::File { size, .. } = draft.get(id).content
            && seen.insert(id)
        {
            bytes = bytes.saturating_add(size);
        }
    }
    (paths, bytes)
}

/// Every object that a layer or tree refers to, with its length.
pub fn objects_of(index: &Index) -> Result<Vec<(Digest, u64)>> {
    let mut out = Vec::new();
    for at in 0..index.len() {
        let node = index.node(at)?;
        if node.is_file() {
            out.push((index.object(&node)?, node.size));
        }
    }
    Ok(out)
}
