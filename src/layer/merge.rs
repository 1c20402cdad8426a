//! Pure functions on drafts: a delta put onto a tree, and the delta between two trees.
//!
//! The two are inverse: `apply(old, delta(old, new))` shows what `new` shows. A delta names either all of a
//! hard-link group's paths or none, so that applying it needs no knowledge of the groups below.

use std::collections::HashMap;

use super::model::{Content, Draft, InodeId, ROOT};

/// Puts `delta` onto `base`: whiteouts remove, opaque directories replace, directories merge, everything
/// else replaces. Whiteouts of names that are not there do nothing.
pub fn apply(base: &mut Draft, delta: &Draft) {
    let mut copied = HashMap::new();
    apply_dir(base, ROOT, delta, ROOT, &mut copied);
}

fn apply_dir(
    base: &mut Draft,
    to: InodeId,
    delta: &Draft,
    from: InodeId,
    copied: &mut HashMap<InodeId, InodeId>,
) {
    let source = delta.get(from);
    base.get_mut(to).meta = source.meta.clone();
    for (name, child) in &source.children {
        let inode = delta.get(*child);
        match &inode.content {
            Content::Whiteout => {
                base.get_mut(to).children.remove(name);
            }
            Content::Dir { opaque } => {
                let below = base.get(to).children.get(name).copied();
                let target = match below {
                    Some(id) if !opaque && base.get(id).content.is_dir() => id,
                    _ => {
                        let id = base.add(inode.meta.clone(), Content::Dir { opaque: false });
                        base.link(to, name, id);
                        id
                    }
                };
                apply_dir(base, target, delta, *child, copied);
            }
            content => {
                let id =
                    *copied.entry(*child).or_insert_with(|| base.add(inode.meta.clone(), content.clone()));
                base.link(to, name, id);
            }
        }
    }
}

/// What turns `old` into `new`, and no more: changed and added paths with their attributes, whiteouts for
/// removed ones, and the directories on the way.
pub fn delta(old: &Draft, new: &Draft) -> Draft {
    let mut out = Draft::new(new.get(ROOT).meta.clone());
    let mut work = Delta {
        old,
        new,
        old_paths: old.paths(),
        new_paths: new.paths(),
        out: &mut out,
        copied: HashMap::new(),
    };
    work.dir(Some(ROOT), ROOT, ROOT);
    out
}

struct Delta<'a> {
    old: &'a Draft,
    new: &'a Draft,
    old_paths: Vec<Vec<Vec<u8>>>,
    new_paths: Vec<Vec<Vec<u8>>>,
    out: &'a mut Draft,
    copied: HashMap<InodeId, InodeId>,
}

impl Delta<'_> {
    /// Writes into `to` what differs between two directories; whether anything does.
    fn dir(&mut self, old: Option<InodeId>, new: InodeId, to: InodeId) -> bool {
        let (before, after) = (self.old, self.new);
        let mut differs = old.is_none_or(|o| before.get(o).meta != after.get(new).meta);
        let none = Default::default();
        let olds = old.map_or(&none, |o| &before.get(o).children);
        let news = &after.get(new).children;
        for name in olds.keys().filter(|n| !news.contains_key(*n)) {
            let id = self.out.add(Default::default(), Content::Whiteout);
            self.out.link(to, name, id);
            differs = true;
        }
        for (name, child) in news {
            let was = olds.get(name).copied();
            let inode = after.get(*child);
            if inode.content.is_dir() {
                let below = was.filter(|o| before.get(*o).content.is_dir());
                let id = self.out.add(inode.meta.clone(), Content::Dir { opaque: false });
                if self.dir(below, *child, id) {
                    self.out.link(to, name, id);
                    differs = true;
                }
            } else if !was.is_some_and(|o| self.same(o, *child)) {
                let out = &mut *self.out;
                let id = *self
                    .copied
                    .entry(*child)
                    .or_insert_with(|| out.add(inode.meta.clone(), inode.content.clone()));
                self.out.link(to, name, id);
                differs = true;
            }
        }
        differs
    }

    fn same(&self, old: InodeId, new: InodeId) -> bool {
        let (a, b) = (self.old.get(old), self.new.get(new));
        a.meta == b.meta && a.content == b.content && self.old_paths.get(old) == self.new_paths.get(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::model::Meta;
    use crate::store::Digest;

    /// A small deterministic generator (xorshift), so that a failing seed can be run again.
    struct Random(u64);
    impl Random {
        fn below(&mut self, n: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % n
        }
    }

    fn random_tree(random: &mut Random) -> Draft {
        let mut draft = Draft::default();
        let mut dirs = vec![ROOT];
        let mut files = Vec::new();
        for _ in 0..random.below(14) {
            let dir = dirs[random.below(dirs.len() as u64) as usize];
            let name = [b'a' + random.below(3) as u8];
            if draft.get(dir).children.contains_key(&name[..]) {
                continue;
            }
            let meta = Meta { mode: 0o600 + random.below(2) as u32, ..Meta::default() };
            let id = match random.below(4) {
                0 => draft.add(meta, Content::Dir { opaque: false }),
                1 if !files.is_empty() => files[random.below(files.len() as u64) as usize],
                2 => draft.add(meta, Content::Symlink(vec![b'0' + random.below(2) as u8])),
                _ => {
                    let object = Digest::of(&[random.below(2) as u8]);
                    draft.add(meta, Content::File { object, size: 1 })
                }
            };
            draft.link(dir, &name, id);
            match draft.get(id).content {
                Content::Dir { .. } => dirs.push(id),
                _ => files.push(id),
            }
        }
        draft
    }

    /// What a person sees: every path with its attributes, and which paths are one file.
    #[allow(clippy::type_complexity)]
    fn shown(draft: &Draft) -> Vec<(Vec<u8>, Meta, Content, Vec<Vec<u8>>)> {
        let groups = draft.paths();
        draft
            .walk()
            .into_iter()
            .map(|(path, id)| {
                let inode = draft.get(id);
                let group = if inode.content.is_dir() { Vec::new() } else { groups[id].clone() };
                (path, inode.meta.clone(), inode.content.clone(), group)
            })
            .collect()
    }

    #[test]
    fn a_delta_put_onto_the_old_tree_shows_the_new_one() {
        for seed in 1..4000 {
            let mut random = Random(seed * 0x9e37_79b9);
            let (old, new) = (random_tree(&mut random), random_tree(&mut random));
            let change = delta(&old, &new);
            let mut result = old.clone();
            apply(&mut result, &change);
            assert_eq!(shown(&result), shown(&new), "seed {seed}");
        }
    }

    #[test]
    fn equal_trees_have_an_empty_delta() {
        for seed in 1..500 {
            let tree = random_tree(&mut Random(seed * 77));
            assert!(delta(&tree, &tree).get(ROOT).children.is_empty(), "seed {seed}");
        }
    }
}
