//! What a layer refers to, for a collection (the store does not know how layers are written).

use crate::error::Result;
use crate::layer::stack;
use crate::store::collect::{self, Collected, Collection};
use crate::store::{Digest, Store};

/// The objects of a layer, which is checked against its digest first.
pub fn objects_of_layer(store: &Store, layer: &Digest) -> Result<Vec<Digest>> {
    let index = stack::open_layer(store, layer)?;
    Ok(stack::objects_of(&index)?.into_iter().map(|(digest, _)| digest).collect())
}

/// Removes from the store what nothing names any more. See [`crate::store::collect`].
pub fn collect(store: &Store, how: Collection, tell: &dyn Fn(&str)) -> Result<Collected> {
    collect::collect(store, how, &|layer| objects_of_layer(store, layer), tell)
}

#[cfg(test)]
#[path = "reach_tests.rs"]
mod tests;
