//! The whiteout form of OCI layers (image-spec, "Filesystem Layer"), read as a delta.
//!
//! `.wh.NAME` hides NAME of the layers below, `.wh..wh..opq` all that they have in the directory. Both speak of
//! lower layers only, wherever they stand in the archive: what the same layer brings stays. Other names that
//! begin with `.wh..wh.` are AUFS's own and mean nothing.

use std::collections::HashSet;

use super::shown;
use crate::error::{Error, Result};
use crate::layer::model::{Content, Draft, InodeId, Meta, ROOT, join};

const WHITEOUT: &[u8] = b".wh.";
const OWN: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Turns marks into whiteouts and opaque directories. A directory that was only implied takes the attributes
/// that it has in `base`.
pub(super) fn delta_of(mut draft: Draft, implied: &HashSet<InodeId>, base: &Draft) -> Result<Draft> {
    let mut todo = vec![(Vec::new(), ROOT, Some(ROOT))];
    while let Some((path, id, below)) = todo.pop() {
        let marks: Vec<Vec<u8>> =
            draft.get(id).children.keys().filter(|n| n.starts_with(WHITEOUT)).cloned().collect();
        for mark in marks {
            draft.get_mut(id).children.remove(&mark);
            if mark == OPAQUE {
                if id == ROOT {
                    hide_all(&mut draft, base);
                } else {
                    draft.get_mut(id).content = Content::Dir { opaque: true };
                }
                continue;
            }
            let name = mark.get(WHITEOUT.len()..).unwrap_or_default();
            if mark.starts_with(OWN) {
                continue;
            }
            if matches!(name, b"" | b"." | b"..") {
                let mark = shown(&join(&path, &mark));
                return Err(Error::Failed(format!(
                    "the whiteout {mark} hides no possible name; make the delta again"
                )));
            }
            hide(&mut draft, id, name);
        }
        let hidden = matches!(draft.get(id).content, Content::Dir { opaque: true }) && id != ROOT;
        let below = below.filter(|_| !hidden);
        if implied.contains(&id)
            && let Some(lower) = below
        {
            draft.get_mut(id).meta = base.get(lower).meta.clone();
        }
        for (name, child) in draft.get(id).children.iter().filter(|(_, c)| draft.get(**c).content.is_dir()) {
            let lower = below.and_then(|b| base.get(b).children.get(name).copied());
            todo.push((join(&path, name), *child, lower.filter(|l| base.get(*l).content.is_dir())));
        }
    }
    Ok(draft)
}

fn hide(draft: &mut Draft, dir: InodeId, name: &[u8]) {
    match draft.get(dir).children.get(name).copied() {
        None => {
            let id = draft.add(Meta::default(), Content::Whiteout);
            draft.link(dir, name, id);
        }
        Some(id) if draft.get(id).content.is_dir() => {
            draft.get_mut(id).content = Content::Dir { opaque: true };
        }
        Some(_) => {}
    }
}

/// The root cannot be opaque in a delta: each of its names is hidden.
fn hide_all(draft: &mut Draft, base: &Draft) {
    for name in base.get(ROOT).children.keys() {
        hide(draft, ROOT, name);
    }
}
