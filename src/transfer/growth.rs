//! A draft that grows as an archive's members arrive, in whatever order, and from whomever.

use std::collections::HashSet;

use super::{DEPTH_LIMIT, PATH_LIMIT, shown};
use crate::layer::model::{Content, Draft, InodeId, Meta, ROOT};

/// Longest name, in bytes (`NAME_MAX`).
const NAME_LIMIT: usize = 255;

/// The tree so far.
#[derive(Debug)]
pub(super) struct Growth {
    pub draft: Draft,
    /// Directories that no member has described.
    pub implied: HashSet<InodeId>,
}

impl Growth {
    pub(super) fn new() -> Growth {
        Growth { draft: Draft::default(), implied: HashSet::from([ROOT]) }
    }

    /// Puts an inode at a path. A directory over a directory changes its attributes; anything else replaces.
    pub(super) fn put(&mut self, path: &[u8], meta: Meta, content: Content) -> Result<InodeId, String> {
        let names = components(path)?;
        let Some((name, dirs)) = names.split_last() else {
            if !content.is_dir() {
                return Err("the root of the archive is not a directory".into());
            }
            self.draft.get_mut(ROOT).meta = meta;
            self.implied.remove(&ROOT);
            return Ok(ROOT);
        };
        let dir = self.directory(dirs)?;
        if content.is_dir()
            && let Some(id) = self.draft.get(dir).children.get(*name).copied()
            && self.draft.get(id).content.is_dir()
        {
            self.draft.get_mut(id).meta = meta;
            self.implied.remove(&id);
            return Ok(id);
        }
        let id = self.draft.add(meta, content);
        self.draft.link(dir, name, id);
        Ok(id)
    }

    /// Gives what an earlier member put at `target` a further name.
    pub(super) fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), String> {
        let to = components(target).map_err(|e| format!("its hard link's target: {e}"))?;
        let found = to.iter().try_fold(ROOT, |at, name| self.draft.get(at).children.get(*name).copied());
        let Some(id) = found.filter(|id| *id != ROOT) else {
            return Err(format!(
                "it is a hard link to {}, which the archive does not hold before it",
                shown(target)
            ));
        };
        if self.draft.get(id).content.is_dir() {
            return Err(format!("it is a hard link to the directory {}", shown(target)));
        }
        let names = components(path)?;
        let Some((name, dirs)) = names.split_last() else {
            return Err("the root of the archive is not a directory".into());
        };
        let dir = self.directory(dirs)?;
        self.draft.link(dir, name, id);
        Ok(())
    }

    /// The directory at a path; what is missing on the way is made (mode 0755, root's, time 0).
    fn directory(&mut self, names: &[&[u8]]) -> Result<InodeId, String> {
        let mut at = ROOT;
        for (i, name) in names.iter().enumerate() {
            at = match self.draft.get(at).children.get(*name).copied() {
                Some(id) if self.draft.get(id).content.is_dir() => id,
                Some(_) => {
                    let through = names.get(..=i).unwrap_or_default().join(&b'/');
                    return Err(format!(
                        "its path goes through {}, which is not a directory",
                        shown(&through)
                    ));
                }
                None => {
                    let meta = Meta { mode: 0o755, ..Meta::default() };
                    let id = self.draft.add(meta, Content::Dir { opaque: false });
                    self.draft.link(at, name, id);
                    self.implied.insert(id);
                    id
                }
            };
        }
        Ok(at)
    }
}

/// The names of a path, without `.`; none for the root.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, String> {
    if path.is_empty() {
        return Err("its path is empty".into());
    }
    if path.starts_with(b"/") {
        return Err("its path is absolute; make the archive relative to the image's root".into());
    }
    if path.contains(&0) {
        return Err("its path holds a NUL byte".into());
    }
    let names: Vec<&[u8]> = path.split(|c| *c == b'/').filter(|n| !matches!(*n, b"" | b".")).collect();
    if names.contains(&&b".."[..]) {
        return Err("its path holds a `..`, which may lead out of the image".into());
    }
    if names.iter().any(|n| n.len() > NAME_LIMIT) {
        return Err(format!("a name in its path is longer than {NAME_LIMIT} bytes"));
    }
    if names.len() > DEPTH_LIMIT || path.len() > PATH_LIMIT {
        return Err(format!("its path has more than {DEPTH_LIMIT} components or {PATH_LIMIT} bytes"));
    }
    Ok(names)
}
